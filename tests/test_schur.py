"""Minimum-diagonal elimination: exact on populations, equal to the obvious loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isospike.causal.metrics import order_divergence
from isospike.causal.schur import leaf_rows, schur_complement, schur_sort
from isospike.errors import InputError, RangeError, ShapeError


def model(d, edges, seed, low=0.5):
    """Weights [parent, child] of a random linear model with shuffled columns."""
    draw = np.random.default_rng(seed)
    upper = np.triu(draw.random((d, d)) < min(1, 2 * edges / max(1, d - 1)), 1)
    weights = upper * draw.uniform(low, 2, (d, d)) * draw.choice([-1, 1], (d, d))
    shuffle = draw.permutation(d)
    return weights[np.ix_(shuffle, shuffle)]


def population(weights, noise=1.0):
    """Information matrix and covariance of x = W^T x + e."""
    a = np.eye(len(weights)) - weights
    inverse = np.linalg.inv(a)
    return a @ a.T / noise**2, noise**2 * inverse.T @ inverse


def naive(matrix):
    """The obvious loop: the smallest diagonal entry, one Schur complement, again."""
    rest, ids, out = matrix.copy(), list(range(len(matrix))), []
    while ids:
        p = int(rest.diagonal().argmin())
        out.append(ids.pop(p))
        rest = schur_complement(rest, np.array([p])) if ids else rest
    return np.array(out[::-1])


@settings(max_examples=30)
@given(st.integers(1, 60), st.floats(0.2, 3), st.integers(0, 2**31), st.floats(0.3, 3))
def test_population_matrices_give_an_order_without_violations(d, edges, seed, noise):
    weights = model(d, edges, seed)
    information, covariance = population(weights, noise)
    if np.linalg.cond(information) > 1e9:
        return  # pivots of nearly equal size would be rounding
    for gamma in (0.0, 0.05):
        found = schur_sort(information, gamma=gamma)
        assert order_divergence(found.order, weights != 0) == 0
    down = schur_sort(covariance, top_down=True)
    assert order_divergence(down.order, weights != 0) == 0
    np.testing.assert_allclose(found.pivots, noise**-2, rtol=1e-4)
    np.testing.assert_allclose(down.pivots, noise**2, rtol=1e-4)


@pytest.mark.parametrize("d", [300])
def test_population_matrices_beyond_one_panel(d):
    weights = model(d, 1, 5)
    information, covariance = population(weights)
    assert order_divergence(schur_sort(information).order, weights != 0) == 0
    assert order_divergence(schur_sort(information, gamma=0.05).order, weights != 0) == 0
    assert order_divergence(schur_sort(covariance, top_down=True).order, weights != 0) == 0


def spread(d, seed):
    """A generic positive definite matrix, no two diagonals alike."""
    x = np.random.default_rng(seed).normal(size=(2 * d, d))
    return x.T @ x / (2 * d)


@settings(max_examples=25)
@given(st.integers(2, 20), st.integers(0, 2**31))
def test_a_schur_complement_is_the_precision_of_the_marginal(d, seed):
    matrix = spread(d, seed)
    draw = np.random.default_rng(seed)
    remove = draw.choice(d, draw.integers(1, d), replace=False)
    keep = np.setdiff1d(np.arange(d), remove)
    marginal = np.linalg.inv(np.linalg.inv(matrix)[np.ix_(keep, keep)])
    np.testing.assert_allclose(schur_complement(matrix, remove), marginal, rtol=0, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 30, 128, 129, 290])
def test_lazy_elimination_is_the_naive_one(d):
    matrix = spread(d, d)
    before = matrix.copy()
    found = schur_sort(matrix)
    assert found.order.tolist() == naive(matrix).tolist()
    assert np.array_equal(matrix, before), "the input is not written to"
    assert np.array_equal(found.order, [i for layer in found.layers for i in layer])
    # The product of the pivots is the determinant.
    np.testing.assert_allclose(np.log(found.pivots).sum(), np.linalg.slogdet(matrix)[1], rtol=1e-9)


@settings(max_examples=25)
@given(st.integers(2, 25), st.integers(0, 2**31), st.sampled_from([0.0, 0.05, 0.5]))
def test_permuting_the_columns_permutes_the_order(d, seed, gamma):
    matrix = spread(d, seed)
    shuffle = np.random.default_rng(seed).permutation(d)
    plain = schur_sort(matrix, gamma=gamma)
    moved = schur_sort(matrix[np.ix_(shuffle, shuffle)], gamma=gamma)
    assert shuffle[moved.order].tolist() == plain.order.tolist()
    np.testing.assert_allclose(moved.margins, plain.margins[shuffle], rtol=1e-6, atol=1e-9)


@settings(max_examples=25)
@given(st.integers(2, 25), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_the_unit_of_all_columns_does_not_matter(d, seed, unit):
    matrix = spread(d, seed)
    assert np.array_equal(schur_sort(matrix * unit).order, schur_sort(matrix).order)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_block_is_removed_as_if_at_once(ridge):
    matrix = spread(6, 3) + np.diag([0, 0, 0, 5.0, 5, 5])
    first = schur_sort(matrix, gamma=1.0, ridge=ridge)
    assert sorted(first.layers[-1]) == [0, 1, 2]
    rest = schur_complement(matrix, np.array([0, 1, 2]), ridge)
    assert (first.order[:3] - 3).tolist() == schur_sort(rest, gamma=1.0, ridge=ridge).order.tolist()


def test_elimination_by_hand():
    # x1 = e1, x0 = 2 x1 + e0: I = [[1, -2], [-2, 5]]. The leaf 0 goes first, 5 / 1 - 1 = 4 clear.
    found = schur_sort(np.array([[1.0, -2.0], [-2.0, 5.0]]))
    assert found.order.tolist() == [1, 0]
    assert found.layers == ((1,), (0,))
    assert found.pivots.tolist() == [1, 1]
    assert found.margins.tolist() == [4, np.inf]


def test_equal_entries_are_taken_by_index():
    found = schur_sort(np.eye(4))
    assert found.order.tolist() == [3, 2, 1, 0]
    assert found.layers == ((3, 2, 1, 0),)
    assert schur_sort(np.eye(4), top_down=True).order.tolist() == [0, 1, 2, 3]


def test_leaf_rows_are_the_weights_of_a_linear_model():
    weights = model(40, 1.5, 2)
    information, _ = population(weights, 0.7)
    order = schur_sort(information).order
    np.testing.assert_allclose(leaf_rows(information, order), weights, atol=1e-8)
    # Of any precision matrix and order: the regression on all that come first.
    matrix = spread(9, 1)
    cov, order = np.linalg.inv(matrix), np.random.default_rng(0).permutation(9)
    first, last = order[:6], order[6]
    expected = np.linalg.solve(cov[np.ix_(first, first)], cov[first, last])
    np.testing.assert_allclose(leaf_rows(matrix, order)[first, last], expected, atol=1e-10)


@settings(max_examples=25)
@given(st.integers(2, 20), st.integers(0, 2**31), st.booleans())
def test_an_order_that_must_be_kept_is_kept(d, seed, top_down):
    matrix = spread(d, seed)
    rank = np.random.default_rng(seed).permutation(d)
    before = rank[:, None] + d // 3 < rank[None, :]
    order = schur_sort(matrix, top_down=top_down, before=before, gamma=0.1).order
    assert order_divergence(order, before) == 0
    full = rank[:, None] < rank[None, :]
    assert rank[schur_sort(matrix, top_down=top_down, before=full).order].tolist() == list(range(d))


def test_an_order_with_a_cycle_is_refused():
    with pytest.raises(InputError, match="without a cycle, got a cycle in before"):
        schur_sort(np.eye(3), before=np.roll(np.eye(3, dtype=bool), 1, 1))


@pytest.mark.parametrize(
    ("matrix", "error", "got"),
    [
        (np.ones((2, 3)), ShapeError, r"square matrix, got shape \(2, 3\)"),
        (np.empty((0, 0)), ShapeError, r"got shape \(0, 0\)"),
        (np.array([[1, 0.5], [0, 1]]), RangeError, r"entries 0\.5 apart"),
        (np.array([[1, np.nan], [np.nan, 1]]), RangeError, "finite numbers, got 2 that are not"),
        (np.array([[1.0, 2], [2, 1]]), RangeError, "positive definite matrix, got the pivot -3"),
        (np.ones((3, 3)), RangeError, "the pivot 0 of variable 1"),
    ],
)
def test_what_cannot_be_eliminated_is_refused(matrix, error, got):
    import inspect

    with pytest.raises(error, match=got):
        inspect.unwrap(schur_sort)(matrix)  # beartype would refuse some first


@pytest.mark.parametrize("option", [{"ridge": -1.0}, {"gamma": -0.1}, {"gamma": float("nan")}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(RangeError, match="ridge and gamma >= 0"):
        schur_sort(np.eye(2), **option)
