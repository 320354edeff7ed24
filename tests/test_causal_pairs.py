"""Two columns: an arrow where one direction is clearly likelier, and none where both are."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isospike
from isospike.causal.background import BackgroundKnowledge
from isospike.causal.guards import NoiseWarning, ScaleWarning
from isospike.causal.pairs import _log_density, compare_directions
from isospike.errors import InputError


def gauss(draw, n):
    return draw.normal(size=n)


# Effects with a direction; noise that is added, a factor, of varying size, or inside a function.
EFFECTS = {
    "tanh": lambda d, x: np.tanh(2 * x) + 0.3 * gauss(d, len(x)),
    "square": lambda d, x: (x + 0.5) ** 2 + 0.5 * gauss(d, len(x)),
    "exp times uniform": lambda d, x: np.exp(x) * d.uniform(0.5, 1.5, len(x)),
    "sine of varying noise": lambda d, x: np.sin(2 * x) + np.exp(x) * gauss(d, len(x)) / 5,
    "sinh of a sum": lambda d, x: np.sinh(np.sin(2 * x) + 0.3 * gauss(d, len(x))),
    "line, exponential": lambda d, x: x + d.exponential(size=len(x)),
}
# Functions of a Gaussian pair with a straight dependence: both directions are equally good.
TIES = {
    "line": lambda d, x: 2 * x + gauss(d, len(x)),
    "exp of a sum": lambda d, x: np.exp(0.7 * x + 0.5 * gauss(d, len(x))),
    "tanh of a sum": lambda d, x: np.tanh(x + gauss(d, len(x))),
    "nothing": lambda d, x: d.exponential(size=len(x)),
}


def both_ways(effect, seed, n):
    """An arrow, 1 if it is right, -1 if it is wrong and 0 if there is none, and the same turned."""
    draw = np.random.default_rng(seed)
    x = gauss(draw, n)
    columns = np.column_stack([x, effect(draw, x)])
    for table, cause in ((columns, 0), (columns[:, ::-1], 1)):
        found = compare_directions(table)
        yield (1 if found.first == cause else -1) if found.decided else 0


def fitted(x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoiseWarning)
        warnings.simplefilter("ignore", ScaleWarning)
        return isospike.ScoreSchurSort(**options).fit(x)


@pytest.mark.parametrize("name", EFFECTS)
def test_the_arrow_is_right_whichever_column_is_first(name):
    found = [tuple(both_ways(EFFECTS[name], seed, 1000)) for seed in range(8)]
    assert all(a == b for a, b in found)
    arrows = [a for a, _ in found]
    assert -1 not in arrows
    assert arrows.count(1) >= 5


@pytest.mark.parametrize("name", TIES)
def test_there_is_no_arrow_where_both_directions_are_equally_good(name):
    arrows = [a for seed in range(20) for a in both_ways(TIES[name], seed, 300)]
    assert np.count_nonzero(arrows) <= 4  # of 40; one in ten is far above the measured share


def test_few_rows_give_few_arrows_and_no_wrong_ones():
    arrows = [a for seed in range(12) for a in both_ways(EFFECTS["tanh"], seed, 100)]
    assert -1 not in arrows


@settings(max_examples=20)
@given(
    st.sampled_from(list(EFFECTS)),
    st.integers(0, 99),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.booleans(),
)
def test_units_change_nothing(name, seed, shift, size, turned):
    draw = np.random.default_rng(seed)
    x = gauss(draw, 200)
    columns = np.column_stack([x, EFFECTS[name](draw, x)])
    plain = compare_directions(columns)
    moved = compare_directions((columns[:, ::-1] if turned else columns) * size + shift)
    assert moved.gain == pytest.approx(plain.gain, abs=1e-3 * max(1, plain.gain))
    if plain.z > 0.01:
        assert moved.first == (1 - plain.first if turned else plain.first)


def test_densities_are_those_that_were_drawn_from():
    even = (np.arange(4000) + 0.5) / 4000
    box = _log_density(3 * even)
    assert np.abs(box - np.log(1 / 3)).max() < 0.01  # to the ends of the range
    exponential = -np.log(1 - even)
    error = _log_density(exponential) + exponential
    assert np.abs(error[100:-400]).max() < 0.01
    assert np.mean(error) == pytest.approx(0, abs=0.02)


def test_an_arrow_is_drawn_only_along_an_edge_and_what_is_known_overrules_the_data():
    draw = np.random.default_rng(0)
    cause = gauss(draw, 1000)
    effect = np.exp(0.7 * cause) * draw.uniform(0.3, 1.7, 1000)
    x = np.column_stack([cause, effect])
    fit = fitted(x)
    assert fit.rule_ == "pairwise"
    assert np.argwhere(fit.directed_).tolist() == [[0, 1]]
    assert fit.layers_ == ((0,), (1,))
    assert fit.margins_[0] > 0
    known = BackgroundKnowledge(required=[("x1", "x0")])
    assert np.argwhere(fitted(x, background=known).directed_).tolist() == [[1, 0]]
    forbidden = BackgroundKnowledge(forbidden=[("x0", "x1")])
    turned = fitted(x, background=forbidden)
    assert turned.order_.tolist() == [1, 0]
    assert not turned.directed_.any()  # the data say otherwise
    apart = fitted(np.column_stack([cause, draw.permutation(effect)]))
    assert not apart.adjacency_.any()


def test_a_tie_is_one_layer_and_the_verdict_says_so():
    draw = np.random.default_rng(0)
    x = gauss(draw, 400)
    report = isospike.order_causes(np.column_stack([x, np.exp(x + gauss(draw, 400))]))
    assert report.edges == ()
    assert len(report.undirected) == len(report.layers) == 1
    assert "The data carry no direction." in report.verdict()


def test_columns_of_few_values_have_no_arrow():
    draw = np.random.default_rng(0)
    x = gauss(draw, 1000)
    effect = np.tanh(2 * x) + 0.3 * gauss(draw, 1000)
    assert compare_directions(np.column_stack([x, effect])).decided
    for columns in ((x, np.round(effect * 2)), (np.round(x), effect)):
        found = compare_directions(np.column_stack(columns))
        assert not found.fits
        assert found.tied


def test_three_columns_are_no_pair():
    with pytest.raises(InputError, match="two columns for rule='pairwise', got 3. Use rule='auto'"):
        isospike.ScoreSchurSort(rule="pairwise").fit(np.random.default_rng(0).normal(size=(50, 3)))
