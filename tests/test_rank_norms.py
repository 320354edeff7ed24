"""What LayerNorm and RMSNorm do to rank: exactly, in rational numbers, and in floats."""

from fractions import Fraction as F
from math import isqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isospike
from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.ranks.norms import Norm, find_norm, norm_rank

# ------------------------------------------------------------------- rational arithmetic


def exact_rank(rows):
    """By elimination, without a tolerance."""
    rows, rank = [list(map(F, row)) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] / rows[rank][column]
            if factor:
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


def on_sphere(t):
    """A rational point of the unit sphere of one more dimension, by stereographic projection."""
    s = sum((v * v for v in t), F(0))
    return [2 * v / (1 + s) for v in t] + [(1 - s) / (1 + s)]


def turned(row):
    """(a, y) -> the row of mean a / sqrt(d) and centred part y, d a square: a Householder map."""
    d = len(row)
    root = F(1, isqrt(d))
    v = [1 - root] + [-root] * (d - 1)
    share = 2 * sum(a * b for a, b in zip(v, row, strict=True)) / sum(a * a for a in v)
    return [x - share * a for x, a in zip(row, v, strict=True)]


def divisor(row):
    """Standard deviation of a row whose variance is a rational square."""
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    found = F(isqrt(variance.numerator), isqrt(variance.denominator))
    assert found * found == variance
    return found


def measured(rows, gamma=None, beta=None):
    """rank X, arank X, rank [XP Gamma, sigma], arank LN(X), and the brackets of (3), exactly."""
    d = len(rows[0])
    gamma, beta = gamma or [F(1)] * d, beta or [F(0)] * d
    centred = [[x - sum(row) / d for x in row] for row in rows]
    sigma = [divisor(row) for row in rows]
    inner = [[x * g for x, g in zip(row, gamma, strict=True)] for row in centred]
    out = [
        [x / s + b for x, b in zip(row, beta, strict=True)]
        for row, s in zip(inner, sigma, strict=True)
    ]
    rank, arank = exact_rank(rows), exact_rank([[*r, 1] for r in rows])
    return {
        "rank": rank,
        "arank": arank,
        "identity": exact_rank([[*r, s] for r, s in zip(inner, sigma, strict=True)]),
        "out": exact_rank([[*r, 1] for r in out]),
        "rank_out": exact_rank(out),
        "sigma_outside": exact_rank([[*r, s] for r, s in zip(centred, sigma, strict=True)])
        - exact_rank(centred),
        "ones_outside_columns": arank - rank,
        "ones_in_rows": rank - exact_rank(centred),
    }


def rows_of(kind, n, r, d, draw):
    """n rows, whose centred parts lie in r dimensions and have rational lengths."""
    found = []
    for _ in range(n):
        t = [F(draw(st.integers(-4, 4)), draw(st.integers(1, 3))) for _ in range(r - 1)]
        size = F(draw(st.integers(1, 4)), draw(st.integers(1, 3)))
        y = [size * v for v in on_sphere(t)]
        mean = 3 * y[0] - y[-1]  # a function of y: 1_d stays outside the row space
        if kind == "free mean":
            mean = F(draw(st.integers(-4, 4)))
        elif kind == "offset":  # a constant last coordinate of rational length
            s = sum((v * v for v in t), F(0))
            y = [2 * v / (1 - s) for v in t] + [F(1)] if s != 1 else [F(0)] * (r - 1) + [F(1)]
            mean = F(2)
        elif kind == "cone":  # |y| = 5 / 3 of the last coordinate
            y = [*y, size * F(3, 4)]
        found.append(turned([mean, *y, *[F(0)] * (d - 1 - len(y))]))
    return found


@settings(max_examples=20)  # fractions are slow
@given(st.data(), st.sampled_from(["plain", "free mean", "offset", "cone"]))
def test_the_identity_of_layernorm_is_exact(data, kind):
    n, r = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 3))
    rows = rows_of(kind, n, r, 9, data.draw)
    gamma = [F(data.draw(st.sampled_from([-2, 1, 3]))) for _ in range(9)]
    beta = [F(data.draw(st.integers(-2, 2))) for _ in range(9)]
    f = measured(rows, gamma, beta)
    assert f["out"] == f["identity"]
    moved = f["sigma_outside"] - f["ones_outside_columns"] - f["ones_in_rows"]
    assert f["out"] - f["arank"] == moved
    assert -2 <= moved <= 1
    # Zeros in gamma too, with them in the identity.
    gamma[0] = gamma[4] = F(0)
    f = measured(rows, gamma, beta)
    assert f["out"] == f["identity"]


def made(kind, n=12, r=4, d=16, seed=0):
    """The same with a seeded draw instead of hypothesis."""
    draw = torch.Generator().manual_seed(seed)

    def number(strategy):
        low, high = (-4, 4) if "-4" in repr(strategy) else (1, 3)
        return int(torch.randint(low, high + 1, (), generator=draw))

    return rows_of(kind, n, r, d, number)


@pytest.mark.parametrize(
    ("kind", "hypotheses", "change"),
    [
        ("plain", (True, True, True), 0),  # H2, H4, H5 hold: the published conclusion
        ("offset", (True, True, False), 1),  # H1 to H4 hold, and the conclusion does not
        ("free mean", (False, True, True), -1),
        ("cone", (True, False, True), -1),
    ],
)
def test_the_published_theorem_needs_a_fifth_hypothesis(kind, hypotheses, change):
    rows = made(kind)
    f = measured(rows)
    assert (not f["ones_in_rows"], bool(f["sigma_outside"]), bool(f["ones_outside_columns"])) == (
        hypotheses
    )
    assert f["out"] - f["arank"] == change
    # The floats see the same.
    found = norm_rank(torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64))
    assert (found.rank.rank, found.affine.rank) == (f["rank"], f["arank"])
    assert (found.predicted.rank, found.measured.rank) == (f["out"], f["out"])
    assert found.agrees
    assert found.change == change
    assert (
        found.ones_not_in_rows, found.sigma_not_in_columns, found.ones_not_in_columns
    ) == hypotheses  # fmt: skip
    assert found.hypotheses_hold == (hypotheses[:2] == (True, True))


def test_without_bias_layernorm_keeps_the_rank_where_ones_lie_outside_the_rows():
    for kind in ("plain", "offset", "cone"):
        f = measured(made(kind))
        assert f["rank_out"] == f["rank"]
    f = measured(made("free mean"))
    assert f["rank_out"] == f["rank"] - 1


# -------------------------------------------------------------------------------- floats


def normal(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@given(
    st.integers(0, 2**31), st.integers(2, 14), st.integers(2, 14), st.integers(1, 14),
    st.sampled_from(["none", "offset", "ones", "scaled"]), st.sampled_from(["layer", "rms"]),
)  # fmt: skip
def test_the_identity_holds_for_random_tables(seed, n, d, r, extra, kind):
    x = normal(seed, n, min(r, n, d)) @ normal(seed + 1, min(r, n, d), d)
    x = x + {"none": 0, "offset": normal(2, 1, d), "ones": normal(2, n, 1), "scaled": 0}[extra]
    norm = Norm(kind, gamma=normal(3, d), beta=normal(4, d) if kind == "layer" else None, eps=1e-6)
    found = norm_rank(x, norm)
    assert found.agrees is not False
    if kind == "rms":
        assert found.rank_out.rank == found.rank.rank


def test_more_tokens_than_channels_lose_one_and_fewer_lose_none():
    tall, wide = norm_rank(normal(0, 40, 24)), norm_rank(normal(0, 16, 24))
    assert (tall.rank_out.rank, tall.affine.rank, tall.measured.rank) == (23, 25, 24)
    assert tall.ones_not_in_rows is False
    assert (wide.affine.rank, wide.measured.rank, wide.change) == (16, 16, 0)
    assert wide.sigma_not_in_columns is False  # the conclusion holds, the theorem does not say so
    assert wide.hypotheses_hold is False


def test_a_constant_row_becomes_beta_and_zeros_in_gamma_cut():
    x = normal(0, 20, 6) @ normal(1, 6, 32)
    x[3] = 2.0
    found = norm_rank(x, Norm("layer", beta=normal(2, 32), eps=1e-5))
    assert found.not_constant is False
    assert found.agrees
    assert found.change == -1
    gamma = torch.ones(32, dtype=torch.float64)
    gamma[:10] = 0
    cut = norm_rank(normal(0, 64, 32), Norm("layer", gamma=gamma))
    assert (cut.affine.rank, cut.measured.rank, cut.gamma_not_zero) == (33, 23, False)


def test_rmsnorm_keeps_rank_and_may_move_the_affine_rank_either_way():
    x = normal(0, 20, 6) @ normal(1, 6, 32)
    assert norm_rank(x, "rms").change == 0
    offset = norm_rank(x + normal(2, 1, 32), "rms")
    assert (offset.rank.rank, offset.rank_out.rank, offset.change) == (7, 7, 1)
    basis = torch.linalg.qr(normal(3, 32, 6)).Q.T
    cone = normal(4, 20, 6)
    cone[:, 0] = 2 * cone[:, 1:].norm(dim=1)
    found = norm_rank(cone @ basis, "rms")
    assert (found.rank.rank, found.rank_out.rank, found.change) == (6, 6, -1)
    assert found.sigma_not_in_columns is False


def test_ranks_do_not_change_with_what_the_norms_do_not_see():
    x = normal(0, 12, 4) @ normal(1, 4, 16)
    q = torch.linalg.qr(torch.cat([torch.ones(16, 1).double(), normal(2, 16, 15)], 1)).Q
    q = q @ torch.block_diag(torch.ones(1, 1), torch.linalg.qr(normal(3, 15, 15)).Q) @ q.T
    torch.testing.assert_close(q.sum(1), torch.ones(16).double())  # Q 1 = 1
    base = norm_rank(x)
    scale = torch.rand(12, 1, generator=torch.Generator().manual_seed(0)).double() + 0.1
    for other in (x.flip(0), x * scale, x @ q):
        found = norm_rank(other)
        assert found.measured.rank == base.measured.rank
        assert found.predicted.rank == base.predicted.rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_norm_of_a_half_precision_model_agrees(dtype):
    x = (normal(0, 40, 6) @ normal(1, 6, 64)).to(dtype)
    layer = nn.LayerNorm(64).to(dtype)
    found = norm_rank(x, layer, output=layer(x))
    assert (found.rank.rank, found.agrees) == (6, True)


def test_modules_are_known_by_what_they_do():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class GemmaRMSNorm(LlamaRMSNorm):
        def forward(self, x):  # its gain is 1 + weight
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    gemma = GemmaRMSNorm(8)
    nn.init.normal_(gemma.weight, generator=torch.Generator().manual_seed(0))
    assert find_norm(LlamaRMSNorm(8, 1e-5))[0] == "rms"
    assert find_norm(nn.RMSNorm(8))[0] == "rms"
    torch.testing.assert_close(find_norm(gemma).gamma, 1 + gemma.weight.detach().double())
    x = normal(0, 5, 8).float()
    torch.testing.assert_close(find_norm(gemma).apply(x.double()).float(), gemma(x))
    layer = nn.LayerNorm(8, eps=0.1)
    torch.testing.assert_close(find_norm(layer).apply(x.double()).float(), layer(x))
    with pytest.raises(UnsupportedError, match="needs LayerNorm or RMSNorm .*, got GroupNorm"):
        norm_rank(x, nn.GroupNorm(2, 8))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: norm_rank(torch.eye(3), "batch"), InputError, "known norm, got 'batch'. Choose"),
        (lambda: norm_rank(torch.ones(2, 3)), RangeError, "divisor above 0, got 0 in row 0"),
        (lambda: norm_rank(torch.eye(3), Norm("layer", gamma=torch.ones(2))), ShapeError,
         r"gamma of the rows' width 3, got \[2\]"),
        (lambda: norm_rank(torch.eye(3), output=torch.eye(4)), ShapeError, r"\[3, 3\], got"),
        (lambda: isospike.ranks.norm_rank(torch.tensor([[torch.nan, 1.0]])), RangeError, "got nan"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
