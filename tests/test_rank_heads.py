"""Which heads can be told apart: dimensions counted, heads recovered, gains and angles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isospike
from isospike.errors import RangeError, ShapeError
from isospike.ranks.heads import head_ambiguity, recover_heads


def normal(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def null_space(matrix):
    return matrix.shape[1] - int(torch.linalg.matrix_rank(matrix))


def counted(w, heads, n):
    """The three dimensions, from the map Y -> Y W_O written out for n tokens."""
    each = len(w) // heads
    whole = torch.block_diag(*[w.T] * n)
    kernel = null_space(whole)
    coordinates, contributions = [], []
    u, s, vh = torch.linalg.svd(w.T)
    basis = vh[int((s > 1e-9 * s[0]).sum()) :]  # of {y: y W_O = 0}
    for h in range(heads):
        part = basis[:, h * each : (h + 1) * each]
        lost = part @ w[h * each : (h + 1) * each]
        rank = [
            int(torch.linalg.matrix_rank(m, atol=1e-9, rtol=0.0)) if len(m) else 0
            for m in (part, lost)
        ]
        coordinates.append(n * rank[0])
        contributions.append(n * rank[1])
    return kernel, coordinates, contributions


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9),
       st.integers(1, 9))  # fmt: skip
def test_dimensions_are_those_of_the_map(seed, heads, each, d, rank):
    n = 2
    rank = min(rank, heads * each, d)
    w = normal(seed, heads * each, rank) @ normal(seed + 1, rank, d)
    found = head_ambiguity(w, heads)
    kernel, coordinates, contributions = counted(w, heads, n)
    assert n * found.nullity == kernel
    assert [n * c for c in found.coordinates] == coordinates
    assert [n * c for c in found.contributions] == contributions


@pytest.mark.parametrize(
    ("n", "heads", "each", "d", "rank", "kernel", "claimed"),
    [
        (4, 2, 2, 4, None, 0, 8),
        (3, 4, 4, 16, None, 0, 36),
        (3, 4, 8, 16, None, 48, 72),  # H d_k > d
        (3, 4, 4, 16, 10, 18, 36),
        (3, 4, 4, 16, 4, 36, 36),  # all heads in one subspace: the published number is met
        (512, 12, 64, 768, None, 0, 360_448),  # BERT-base at 512 tokens
    ],
)
def test_the_published_dimension_is_an_upper_bound_met_in_one_case(
    n, heads, each, d, rank, kernel, claimed
):
    w = normal(0, heads * each, d)
    if rank is not None:
        w = normal(1, heads * each, rank) @ normal(2, rank, d)
    found = head_ambiguity(w, heads)
    assert (n * found.nullity, n * found.published_nullity) == (kernel, claimed)
    assert set(found.verdicts) == ({"ambiguous"} if kernel else {"exact"})


def test_every_head_is_recovered_from_the_sum():
    w, y = normal(0, 24, 24), normal(1, 7, 3, 8)
    z = y.flatten(1) @ w
    torch.testing.assert_close(recover_heads(z, w, 3), y, atol=1e-11, rtol=0)
    # One linear layer can do it, hence the first matrix of an MLP.
    torch.testing.assert_close(z @ torch.linalg.inv(w), y.flatten(1), atol=1e-10, rtol=0)
    # Of more rows than channels only the sum comes back.
    wide = normal(2, 24, 10)
    back = recover_heads(y.flatten(1) @ wide, wide, 3)
    torch.testing.assert_close(back.flatten(1) @ wide, y.flatten(1) @ wide)
    assert (back - y).abs().max() > 0.1


def test_of_the_stream_with_the_sum_added_nothing_is_recovered():
    # X + Z is observed, X is not known: any heads are possible.
    w, x = normal(0, 8, 8), normal(1, 5, 8)
    one, other = normal(2, 5, 8), normal(3, 5, 8)
    seen = x + one @ w
    torch.testing.assert_close((seen - other @ w) + other @ w, seen)


def test_the_gain_is_one_over_the_sine_of_the_angle_and_bounds_the_error():
    w = normal(0, 16, 20)
    found = head_ambiguity(w, 4)
    blocks = w.view(4, 4, 20)
    for h in range(4):
        others = torch.cat([blocks[i] for i in range(4) if i != h])
        a, b = (torch.linalg.qr(m.T).Q for m in (blocks[h], others))
        cosine = float(torch.linalg.matrix_norm(a.T @ b, 2))
        assert found.noise_gains[h] == pytest.approx(1 / math.sqrt(1 - cosine**2))
        # An error of the sum, along the worst direction, is amplified by just that.
        inverse = torch.linalg.pinv(w)[:, 4 * h : 4 * h + 4]
        assert found.noise_gains[h] == pytest.approx(
            float(torch.linalg.svdvals(inverse @ blocks[h])[0])
        )
    assert found.condition == pytest.approx(float(torch.linalg.cond(w)))


def test_orthogonal_heads_have_gain_one_and_right_angles():
    q = torch.linalg.qr(normal(0, 12, 12)).Q
    found = head_ambiguity(q, 3)
    assert found.noise_gains == pytest.approx((1, 1, 1))
    angles = torch.tensor(found.angles)
    torch.testing.assert_close(angles, 90 - 90 * torch.eye(3), atol=1e-5, rtol=0)
    assert found.condition == pytest.approx(1)


def test_nearly_parallel_heads_are_ill_conditioned_in_float32_only():
    w = normal(0, 8, 8)
    w[4:] = w[:4] + 1e-6 * normal(1, 4, 8)
    assert head_ambiguity(w, 2).verdicts == ("exact", "exact")
    assert set(head_ambiguity(w.float(), 2).verdicts) <= {"ill-conditioned", "ambiguous"}
    assert head_ambiguity(w, 2).angles[0][1] < 1e-3
    w[4:] = 0
    found = head_ambiguity(w, 2)
    assert (found.nullity, found.coordinates, found.contributions) == (4, (0, 4), (0, 0))
    assert found.verdicts == ("exact", "exact")  # the second head contributes nothing, for sure


def test_one_head_has_nothing_to_be_confused_with():
    found = head_ambiguity(normal(0, 6, 6), 1)
    assert (found.nullity, found.published_nullity, found.noise_gains[0]) == (
        0,
        0,
        pytest.approx(1),
    )


def test_weights_are_known_up_to_an_invertible_map_of_each_head():
    x, maps = normal(0, 5, 8), normal(1, 2, 5, 5).softmax(-1)
    v, o, g = normal(2, 2, 8, 4), normal(3, 2, 4, 8), normal(4, 2, 4, 4)

    def out(v, o):
        return (maps @ x @ v @ o).sum(0)

    torch.testing.assert_close(out(v @ g, torch.linalg.inv(g) @ o), out(v, o))


@pytest.mark.parametrize(
    ("w", "heads", "error", "text"),
    [
        (torch.ones(6, 4), 4, ShapeError, r"of 4 heads, got \[6, 4\]. Transpose"),
        (torch.ones(6), 2, ShapeError, r"got \[6\]"),
        (torch.ones(6, 4), 0, RangeError, "heads >= 1, got 0"),
        (torch.full((4, 4), math.nan), 2, RangeError, "finite weights, got 16"),
    ],
)
def test_mistakes_are_named(w, heads, error, text):
    with pytest.raises(error, match=f"head_ambiguity needs .*{text}"):
        isospike.ranks.head_ambiguity(w, heads)
    with pytest.raises(error, match=text):
        isospike.ranks.recover_heads(torch.ones(2, 4), w, heads)


def test_a_sum_of_another_width_is_named():
    with pytest.raises(ShapeError, match=r"heads_sum \[n, 4\], got \[2, 5\]"):
        recover_heads(torch.ones(2, 5), torch.eye(4), 2)
