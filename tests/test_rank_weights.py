"""Spectra of weights and circuits of heads, without data."""

import math

import pytest
import torch
from models import make
from torch import nn

from isospike.errors import RangeError, ShapeError
from isospike.ranks import (
    Factored,
    fit_power_law,
    head_circuits,
    measure_weights,
    spectrum,
    weights,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_of_a_power_law_is_in_its_interval(alpha):
    inside = 0
    for seed in range(20):
        u = torch.rand(2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        law = fit_power_law(u ** (-1 / (alpha - 1)))
        inside += law.low <= alpha <= law.high
        assert law.alpha == pytest.approx(alpha, rel=0.25)
    assert inside >= 15  # the chosen start is itself fitted, so fewer than 19 may be


def test_the_tail_begins_where_the_distance_is_least():
    """Against the definition, value by value."""
    values = normal(60).abs().exp().sort(descending=True).values
    best = (math.inf, 0, 0.0)
    for k in range(10, 61):
        tail, start = values[:k], float(values[k - 1])
        total = float((tail / start).log().sum())
        alpha = 1 + k / total
        gaps = []
        for j, x in enumerate(sorted(tail.tolist())):
            law = 1 - (x / start) ** (1 - alpha)
            gaps += [abs(j / k - law), abs((j + 1) / k - law)]
        best = min(best, (max(gaps), k, alpha))
    law = fit_power_law(values)
    assert (law.tail, law.alpha, law.distance) == pytest.approx((best[1], best[2], best[0]))


def test_noise_stays_below_its_edge_and_what_is_added_does_not():
    above = [spectrum(normal(60, 90, seed=seed)).above for seed in range(100)]
    assert sum(above) <= 5
    spiked = normal(60, 90) + 3 * normal(60, 2, seed=1) @ normal(2, 90, seed=2)
    assert spectrum(spiked).above == 2


def test_a_weight_has_the_rank_of_the_type_that_it_was_made_in():
    low = normal(48, 8, seed=1) @ normal(8, 48, seed=2)
    made = low.bfloat16()
    assert (spectrum(made).rank, spectrum(made).dtype) == (8, "bfloat16")
    assert (spectrum(made.float()).rank, spectrum(made.float()).dtype) == (8, "bfloat16")
    assert spectrum(made.float(), torch.float32).rank == 48  # as if the rounding were signal
    assert spectrum(low.float()).dtype == "float32"
    assert spectrum(low).rank == 8


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_a_spectrum_does_not_depend_on_scale_or_transposition(factor):
    w = normal(24, 40)
    one, other = spectrum(w), spectrum(factor * w.T)
    assert (one.rank, one.above, one.rows) == (other.rank, other.above, other.columns)
    assert one.stable == pytest.approx(other.stable)
    assert one.law.alpha == pytest.approx(other.law.alpha)
    s = torch.linalg.svdvals(w)
    assert one.stable == pytest.approx(float(s.square().sum() / s[0] ** 2))
    assert one.size == pytest.approx(float(w.square().mean().sqrt()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_of_many_rows_is_read_in_parts(dtype, monkeypatch):
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = spectrum(x.float())
    monkeypatch.setattr(weights, "AT_ONCE", 7)
    for same in (x.float(), x.T.float()):
        parts = spectrum(same)
        assert (parts.rank, parts.dtype, parts.above) == (whole.rank, whole.dtype, whole.above)
        assert parts.stable == pytest.approx(whole.stable, rel=1e-12)
        assert parts.size == pytest.approx(whole.size, rel=1e-12)
    s = torch.linalg.svdvals(x.double())
    assert whole.stable == pytest.approx(float(s.square().sum() / s[0].square()), rel=1e-9)


def test_every_matrix_of_a_model_has_a_row_and_tied_ones_have_one():
    model = make("gpt2")
    rows = {row.name: row.spectrum for row in measure_weights(model)}
    assert "transformer.wte.weight" in rows
    assert "lm_head.weight" not in rows
    assert len(rows) == 2 + 2 * 4
    stack = nn.Module()
    stack.experts = nn.Parameter(normal(3, 5, 4))
    stack.conv = nn.Conv2d(2, 6, 3)
    rows = {row.name: row.spectrum for row in measure_weights(stack)}
    assert set(rows) == {"experts.0", "experts.1", "experts.2", "conv.weight"}
    assert (rows["conv.weight"].rows, rows["conv.weight"].columns) == (6, 18)


def test_a_product_by_its_factors_has_the_values_of_the_whole():
    a = Factored(normal(9, 3), normal(3, 9, seed=1))
    whole = torch.linalg.svdvals(a.matrix())[:3]
    torch.testing.assert_close(a.singular_values(), whole)
    ours = sorted(a.eigenvalues().real.tolist())
    theirs = torch.linalg.eigvals(a.matrix())
    assert ours == pytest.approx(sorted(theirs[theirs.abs().argsort()[-3:]].real.tolist()))
    assert Factored(normal(9, 3), normal(9, 3).T).positive_share() == pytest.approx(1)
    assert Factored(normal(9, 3), -normal(9, 3).T).positive_share() == pytest.approx(-1)
    assert math.isnan(Factored(normal(9, 3), normal(3, 8)).positive_share())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fit_power_law(torch.ones(50)), RangeError, "positive values that differ"),
        (lambda: fit_power_law(torch.arange(5.0)), RangeError, "at least 10 .* got 4"),
        (lambda: spectrum(torch.ones(3)), ShapeError, r"\[rows, columns\], got shape \[3\]"),
        (lambda: spectrum(torch.zeros(3, 3)), RangeError, "not all zero"),
        (lambda: spectrum(torch.full((3, 3), torch.nan)), RangeError, "finite entries"),
        (lambda: Factored(torch.ones(3, 1), torch.ones(1, 2)).eigenvalues(), ShapeError,
         r"square matrix, got \[3, 2\]"),
        (lambda: head_circuits((None, None, torch.ones(4, 3)), torch.ones(4, 4), 2), ShapeError,
         r"2 heads side by side, got \[3, 4\]"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
