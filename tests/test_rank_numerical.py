"""Numerical and affine rank: the tolerance of the type, the gap, the interval."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isospike
from isospike.errors import RangeError, ShapeError
from isospike.ranks import numerical
from isospike.ranks.numerical import affine_rank, format_range, numerical_rank

N, D, R = 96, 72, 20
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
seeds = st.integers(0, 2**31)


def normal(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def low_rank(seed=0, n=N, d=D, r=R):
    return normal(seed, n, r) @ normal(seed + 1, r, d) / r**0.5


# The rules of the study rank-tolerance: ours is right in every type, the usual ones are not.


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_rank_of_rounded_numbers_is_that_before_rounding(dtype):
    x = low_rank().to(dtype)
    assert (numerical_rank(x).rank, affine_rank(x).rank) == (R, R + 1)
    assert numerical_rank(x).determined
    # Upcast later, the values still know no more than they did.
    assert numerical_rank(x.double(), dtype) == numerical_rank(x)


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_the_default_sees_full_rank_and_the_types_own_eps_too_little_in_bfloat16(dtype):
    x = low_rank().to(dtype).double()
    assert int(torch.linalg.matrix_rank(x)) == D
    s = torch.linalg.svdvals(x)
    own = int((s > s[0] * N * torch.finfo(dtype).eps).sum())
    assert own < R / 2 if dtype == torch.bfloat16 else own == R


def test_rows_of_all_sizes_on_a_large_offset_keep_their_rank_in_float32():
    wide = low_rank() * torch.logspace(-4, 0, N, dtype=torch.float64)[:, None]
    x = (wide + 1e3 * normal(7, 1, D)).float()
    assert (str(numerical_rank(x)), str(affine_rank(x))) == ("21", "21")
    assert numerical_rank((low_rank() + 1e3 * normal(7, 1, D)).bfloat16()).rank == 1  # it is lost


def test_one_huge_row_costs_the_others_nothing():
    x = torch.cat([1e4 * normal(3, 1, D), low_rank()]).bfloat16()
    assert (numerical_rank(x).rank, affine_rank(x).rank) == (R + 1, R + 2)
    assert affine_rank(x).determined


def test_a_spectrum_without_a_gap_is_undetermined():
    u, v = torch.linalg.qr(normal(0, N, D)).Q, torch.linalg.qr(normal(1, D, D)).Q
    x = (u * torch.logspace(0, -12, D, dtype=torch.float64)) @ v.T
    found = numerical_rank(x, torch.float32)
    assert not found.determined
    assert found.low < found.rank < found.high
    assert str(found) == f"undetermined ({found.low} to {found.high})"
    assert format_range([found, numerical_rank(low_rank())]) == f"20–{found.high}?"
    assert format_range([None]) == "–"


def test_hand_traces():
    assert numerical_rank(torch.zeros(3, 2)) == (0, 0, 0, math.inf, 0.0, True)
    assert affine_rank(torch.full((4, 3), 0.1)).rank == 1
    assert affine_rank([[1, 2], [3, 4], [5, 6]]).rank == 2  # a line
    assert numerical_rank(np.eye(4)).rank == 4
    assert affine_rank(np.eye(4)).rank == 4  # four corners of a simplex of dimension 3
    assert affine_rank(np.vstack([np.eye(4), np.zeros(4)])).rank == 5
    assert numerical_rank(torch.ones(1, 1)).rank == 1


@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(0, 12))
def test_rank_and_affine_rank_of_made_tables(seed, n, d, r):
    r = min(r, n, d)
    x = normal(seed, n, r) @ normal(seed + 1, r, d)
    assert numerical_rank(x).rank == r
    assert affine_rank(x).rank == min(n, r + 1)


@given(seeds, st.floats(-30, 30))
def test_scales_of_rows_and_of_all_do_not_matter(seed, power):
    x = low_rank(seed, 12, 9, 4)
    scaled = x * 10.0**power * torch.rand(12, 1, dtype=torch.float64).add(0.1)
    assert numerical_rank(scaled).rank == numerical_rank(x[torch.randperm(12)]).rank == 4
    assert affine_rank(10.0**power * x).rank == 5


def test_tiny_and_huge_numbers_have_ranks_too():
    assert [numerical_rank(scale * low_rank()).rank for scale in (1e-300, 1e300)] == [R, R]
    assert numerical_rank((1e-37 * low_rank()).float()).rank == R
    few_bits = numerical_rank((1e-44 * low_rank()).float())  # subnormal: a bit or four are left
    assert few_bits.low < R


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (30, 200)])
@pytest.mark.parametrize("rank", [numerical_rank, affine_rank])
def test_the_fast_way_says_what_singular_values_say(shape, rank, monkeypatch):
    x = (normal(0, *shape) + normal(1, 1, shape[1])).float()
    fast = rank(x)
    monkeypatch.setattr(numerical, "_clearly_full", lambda *_: None)
    monkeypatch.setattr(numerical, "_RANKS", {})
    slow = rank(x)
    assert (fast.rank, fast.low, fast.high) == (slow.rank, slow.low, slow.high)
    assert fast.determined
    if rank is numerical_rank:
        assert fast.gap == pytest.approx(slow.gap, rel=0.1)


def test_ranks_are_kept_by_content_type_and_kind(monkeypatch):
    monkeypatch.setattr(numerical, "_RANKS", kept := {})
    x = normal(0, 6, 9).float()
    first = numerical_rank(x)
    assert numerical_rank(x.clone()) is first
    assert affine_rank(x) != first
    assert numerical_rank(x, torch.bfloat16).gap < first.gap / 1000
    x[5] = x[0]  # the same tensor with other content
    assert numerical_rank(x).rank == 5
    for seed in range(100):
        numerical_rank(normal(seed, 3, 4))
    assert len(kept) == numerical.MOST_KEPT


@pytest.mark.parametrize(
    ("x", "dtype", "error", "text"),
    [
        (torch.ones(3), None, ShapeError, r"a matrix \[rows, columns\], got shape \[3\]"),
        (torch.ones(0, 3), None, ShapeError, r"got shape \[0, 3\]"),
        (torch.tensor([[1.0, math.nan]]), None, RangeError, "got nan in row 0, column 1"),
        (torch.tensor([[1.0], [math.inf]]), None, RangeError, "got inf in row 1"),
        (torch.ones(2, 2), torch.int8, RangeError, "a floating computed_in, got .* torch.int8"),
        (torch.ones(2, 2, dtype=torch.complex64), None, RangeError, "got torch.complex64"),
    ],
)
@pytest.mark.parametrize("rank", [isospike.ranks.numerical_rank, isospike.ranks.affine_rank])
def test_mistakes_are_named(rank, x, dtype, error, text):
    with pytest.raises(error, match=f"{rank.__name__} needs .*{text}"):
        rank(x, dtype)
