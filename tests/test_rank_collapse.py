"""Measures of collapse, the generic rank of a residual layer, and what can never change."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isospike
from isospike.errors import RangeError, ShapeError
from isospike.ranks.collapse import generic_rank, measure_collapse, measure_maps
from isospike.ranks.numerical import numerical_rank


def normal(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def test_collapse_by_hand():
    # Two orthogonal rows 3 e1, 4 e2: mean (1.5, 2), rest rows +-(1.5, -2).
    found = measure_collapse(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    # |rest|_1 = 4 (largest column), |rest|_inf = 3.5 (largest row); |x|_1 = |x|_inf = 4.
    assert found.residual == pytest.approx(math.sqrt(4 * 3.5 / 16))
    assert found.mu == pytest.approx(math.sqrt(12.5 / 25))
    assert found.cosine == pytest.approx(0)
    p = (3 / 7, 4 / 7)  # singular values 3 and 4, not their squares
    assert found.entropic == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)))
    assert found.stable == pytest.approx(25 / 16)
    assert found.participation == pytest.approx(25**2 / (81 + 256))


def test_equal_rows_have_collapsed_whatever_their_size():
    for scale in (1e-200, 1e-3, 1e200):
        found = measure_collapse(scale * normal(0, 1, 8).expand(5, 8))
        assert (found.residual, found.mu) == (0, 0)
        assert found.cosine == pytest.approx(1)
        assert found.entropic == pytest.approx(1, abs=1e-4)  # of an eigenvalue's square root
    assert math.isnan(measure_collapse(torch.ones(1, 3)).cosine)


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 9))
def test_measures_stay_in_their_bounds(seed, n, d):
    x = normal(seed, n, d)
    found = measure_collapse(x)
    assert 0 <= found.mu <= 1 + 1e-12
    assert -1 <= found.cosine <= 1
    most = min(n, d) + 1e-6
    assert 1 <= found.stable <= found.participation + 1e-9 <= most
    assert found.participation <= found.entropic + 1e-6
    rest = measure_collapse(x @ torch.linalg.qr(normal(1, d, d)).Q)
    assert rest.entropic == pytest.approx(found.entropic)
    assert rest.cosine == pytest.approx(found.cosine, abs=1e-9)


def test_maps_by_hand():
    same = torch.full((1, 4, 4), 0.25)  # every token the same mixture
    own = torch.eye(4)[None]  # every token itself
    causal = torch.ones(4, 4).tril()
    causal = (causal / causal.sum(1, keepdim=True))[None]
    found = [measure_maps(a) for a in (same, own, causal)]
    assert [f.ratio[0] for f in found] == pytest.approx([0, 1, found[2].ratio[0]], abs=1e-7)
    assert [f.entropy[0] for f in found] == pytest.approx([1, 0, 1])  # uniform over what is seen
    s = torch.linalg.svdvals(causal[0].double())
    assert found[2].ratio[0] == pytest.approx(float(s[1] / s[0]))


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 3, 5, 10, 20, 40]), st.booleans())
def test_the_generic_rank_is_that_of_random_weights(seed, r, causal):
    n, d, heads, each = 40, 48, 4, 12
    x = normal(seed, n, r) @ normal(seed + 1, r, d)
    scores = normal(seed + 2, heads, n, n)
    if causal:
        scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    v, o = normal(seed + 3, heads, d, each), normal(seed + 4, heads, each, d)
    z = (scores.softmax(-1) @ x @ v @ o).sum(0)
    ranks = numerical_rank(z).rank, numerical_rank(x + z).rank
    assert ranks == generic_rank(n, d, r, heads, each)


def test_the_generic_rank_by_hand():
    assert generic_rank(48, 64, 1, 4, 16) == (4, 5)
    assert generic_rank(48, 64, 20, 4, 16) == (48, 48)
    assert generic_rank(200, 64, 3, 2, 16, bias=True) == (7, 10)
    assert generic_rank(48, 64, 0, 4, 16) == (0, 0)
    with pytest.raises(RangeError, match="heads >= 1, got 0"):
        generic_rank(48, 64, 1, 0, 16)
    with pytest.raises(RangeError, match="rank >= 0, got -1"):
        generic_rank(48, 64, -1, 4, 16)


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_equal_tokens_stay_equal_through_every_layer(kinds):
    # No position, no mask: k kinds of tokens, k different rows, rank at most k, for any weights.
    tokens = torch.arange(12)[None] % kinds
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = isospike.models.Transformer(5, 16, 4, 3, causal=False).double()
    report = isospike.measure_ranks(model, {"tokens": tokens}, controls=False)
    for row in report.sites:
        assert row.rank.rank <= kinds
    assert any(f"reads only {kinds} different rows for 12" in w for w in report.warnings)
    # A causal mask tells equal tokens apart, where there are two kinds.
    looking_back = isospike.models.Transformer(5, 16, 4, 3).double()
    last = isospike.measure_ranks(looking_back, {"tokens": tokens}, controls=False)
    assert (last.sites[-1].rank.rank > kinds) == (kinds > 1)


def test_attention_alone_leaves_the_span_of_its_tokens_but_is_linear_for_one():
    n, d = 6, 12
    x = normal(0, n, 1) @ normal(1, 1, d)
    v, o = normal(2, 3, d, 4), normal(3, 3, 4, d)
    maps = normal(4, 3, n, n).softmax(-1)
    y = x + (maps @ x @ v @ o).sum(0)
    assert numerical_rank(y).rank == 4  # of rank 1
    assert numerical_rank(torch.cat([x, y])).rank == 4  # outside the row space of x

    def one(x):  # a single token attends to itself
        return x + (x @ v @ o).sum(0)

    a, b = normal(5, 1, d), normal(6, 1, d)
    torch.testing.assert_close(one(a + b), one(a) + one(b))


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (torch.zeros(2, 2), RangeError, "not all zero, got a maximum of 0"),
        (torch.tensor([[math.nan, 1.0]]), RangeError, "finite rows"),
        (torch.ones(3), ShapeError, r"got shape \[3\]"),
    ],
)
def test_mistakes_are_named(x, error, text):
    with pytest.raises(error, match=text):
        measure_collapse(x)
