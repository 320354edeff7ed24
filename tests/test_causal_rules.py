"""Where directions come from: the rule that the data allow, and never an arrow beyond it."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isospike
from isospike.causal.background import BackgroundKnowledge
from isospike.causal.directions import chain_components, directed_edges
from isospike.causal.guards import NoiseWarning, ScaleWarning
from isospike.causal.metrics import compare_to_truth, order_divergence
from isospike.causal.search import LikelihoodSearch
from isospike.causal.simulate import random_dag, simulate, topological_order
from isospike.errors import InputError
from isospike.kernels.growth import grow, negentropy, residual

NONE = np.zeros((4, 4), bool)


def linear(d, noise, seed=0, rows=1000, density=1.5):
    """Lines with noises of unequal size, as z-scores, and the graph."""
    truth = random_dag(d, density, "er", torch.Generator().manual_seed(seed))
    draw = np.random.default_rng(seed)
    size = 2 ** draw.uniform(-1, 1, d)
    x = (
        size
        * {
            "gauss": lambda: draw.normal(size=(rows, d)),
            "laplace": lambda: draw.laplace(size=(rows, d)),
            "uniform": lambda: draw.uniform(-1, 1, (rows, d)),
        }[noise]()
    )
    weights = draw.uniform(0.5, 2, (d, d)) * draw.choice([-1, 1], (d, d)) * truth
    for i in topological_order(truth):
        x[:, i] += x @ weights[:, i]
    return (x - x.mean(0)) / x.std(0), truth


def curved(d, seed=0, unequal=2.0):
    draw = torch.Generator().manual_seed(seed)
    truth = random_dag(d, 1.5, "er", draw)
    return simulate(truth, 1000, "additive-gp", unequal=unequal, generator=draw).data, truth


def fitted(x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaleWarning)
        warnings.simplefilter("ignore", NoiseWarning)
        return isospike.ScoreSchurSort(**options).fit(x)


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (linear(12, "laplace"), "independence"),
        (linear(12, "uniform"), "independence"),
        (curved(12), "curvature"),
        (linear(12, "gauss"), "partial"),
    ],
)
def test_the_rule_follows_from_the_data_and_no_arrow_is_wrong(made, rule):
    x, truth = made
    with pytest.warns(ScaleWarning):
        fit = isospike.ScoreSchurSort().fit(x)
    assert fit.rule_ == rule
    assert not (fit.directed_ & truth.T).any()
    assert not (fit.directed_ & ~fit.adjacency_).any()
    found = compare_to_truth(fit.order_, fit.adjacency_, truth, directed=fit.directed_)
    assert found.shd <= 2
    if rule != "partial":
        assert order_divergence(fit.order_, truth) == 0


def test_data_that_fit_equal_variances_keep_that_rule_and_all_their_arrows():
    data = simulate(np.eye(5, k=1, dtype=bool), 500, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = isospike.ScoreSchurSort().fit(data.data)
    assert fit.rule_ == "equal-variance"
    assert np.array_equal(fit.directed_, data.truth)


def test_a_chain_of_lines_with_gaussian_noise_has_edges_and_no_arrow():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(800, 4)) * [1, 3, 0.5, 2]
    for i in range(1, 4):
        x[:, i] += x[:, i - 1]
    fit = fitted(x)
    assert fit.rule_ == "partial"
    assert (fit.adjacency_ | fit.adjacency_.T).sum() == 6
    assert not fit.directed_.any()
    assert len(fit.layers_) == 1  # one tie
    report = isospike.order_causes(x)
    assert report.edges == ()
    assert len(report.undirected) == 3
    assert report.verdict().startswith("No order was found, with 3 edges. The data carry no dir")
    assert report.html().count("marker-end") == 0


@pytest.mark.parametrize("made", [linear(10, "gauss", 3), linear(10, "laplace", 3), curved(10, 3)])
def test_neither_units_nor_the_order_of_columns_change_the_graph(made):
    x, _ = made
    x = (x - x.mean(0)) / x.std(0)
    plain = fitted(x)
    shuffle = np.random.default_rng(1).permutation(10)
    moved = fitted(x[:, shuffle] * 10.0 ** np.arange(-5, 5))
    at = np.ix_(shuffle, shuffle)
    assert moved.rule_ == plain.rule_
    assert np.array_equal(
        moved.adjacency_ | moved.adjacency_.T, (plain.adjacency_ | plain.adjacency_.T)[at]
    )
    assert np.array_equal(moved.directed_, plain.directed_[at])


def test_a_rule_can_be_asked_for():
    x, truth = linear(8, "laplace")
    assert fitted(x, rule="partial").rule_ == "partial"
    assert fitted(x, rule="independence").rule_ == "independence"
    assert fitted(x, rule="curvature").rule_ == "curvature"
    with pytest.raises(
        InputError, match="rule among auto, equal-variance, .*, got 'best'. Choose one"
    ):
        isospike.ScoreSchurSort(rule="best").fit(x)


def test_known_tiers_give_directions_to_edges_that_have_none():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(500, 3)) * [1, 3, 0.4]
    x[:, 1] += 2 * x[:, 0]
    x[:, 2] += x[:, 1]
    assert not fitted(x).directed_.any()
    known = BackgroundKnowledge(tiers=[["x0"], ["x1", "x2"]])
    assert np.argwhere(fitted(x, background=known).directed_).tolist() == [[0, 1], [1, 2]]


def test_forbidden_edges_shape_the_order_and_not_only_the_graph():
    draw = np.random.default_rng(0)
    x = draw.laplace(size=(600, 4)) * [1, 2, 0.5, 1.5]
    x[:, 1:] += x[:, :1]
    free = fitted(x)
    assert np.argwhere(free.directed_).tolist() == [[0, 1], [0, 2], [0, 3]]
    known = BackgroundKnowledge(forbidden=[(0, 1), (0, 2), (0, 3)])
    fit = fitted(x, background=known)
    assert fit.order_[-1] == 0
    assert fit.adjacency_[1:, 0].all()


# ------------------------------------------------------------------------- directions


def equivalents(graph):
    """All acyclic graphs with the neighbours and the colliders of a graph."""

    def colliders(g):
        return {
            (min(a, b), c, max(a, b))
            for a, b, c in itertools.permutations(range(len(g)), 3)
            if g[a, c] and g[b, c] and not (g[a, b] or g[b, a])
        }

    edges = np.argwhere(graph)
    for turned in itertools.product([False, True], repeat=len(edges)):
        other = np.zeros_like(graph)
        for (a, b), turn in zip(edges, turned, strict=True):
            other[(b, a) if turn else (a, b)] = True
        try:
            topological_order(other)
        except InputError:
            continue
        if colliders(other) == colliders(graph):
            yield other


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=10, max_size=10), st.permutations(range(5)), st.data())
def test_arrows_are_those_that_all_equivalent_graphs_share(bits, order, data):
    graph = np.zeros((5, 5), bool)
    graph[np.triu_indices(5, 1)] = bits
    graph = graph[np.ix_(order, order)]
    everything = list(equivalents(graph))
    assert np.array_equal(directed_edges(graph, np.zeros((5, 5), bool)), np.all(everything, axis=0))
    fixed = np.zeros((5, 5), bool)
    if graph.any():
        a, b = data.draw(st.sampled_from(np.argwhere(graph).tolist()))
        fixed[a, b] = True
    kept = [g for g in everything if (g >= fixed).all()]
    directed = directed_edges(graph, fixed)
    assert np.array_equal(directed, np.all(kept, axis=0))
    groups = chain_components(graph, directed, np.array(topological_order(graph)))
    assert order_divergence(np.array([v for g in groups for v in g]), graph) == 0


# ------------------------------------------------------------------------- likelihoods


def test_the_cost_of_an_order_is_its_criterion_by_least_squares():
    x, truth = linear(6, "gauss")
    search = LikelihoodSearch(x, 1)
    order = topological_order(truth)
    assert np.array_equal(search.widths(order) > 0, truth)
    cost = 0.0
    for j in range(6):
        parents = x[:, truth[:, j]]
        rest = x[:, j] - parents @ np.linalg.lstsq(parents, x[:, j], rcond=None)[0]
        cost += np.log(rest.var()) + parents.shape[1] * np.log(1000) / 1000
    assert search.cost(order) == pytest.approx(cost, abs=1e-6)


def test_a_climb_never_makes_an_order_worse_and_finds_cancelling_parents():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1000, 4))
    x[:, 1] += x[:, 0]
    x[:, 2] += x[:, 1] - x[:, 0]  # 0 and 2 are uncorrelated
    x[:, 3] += x[:, 2]
    search = LikelihoodSearch(x, 1)
    for first in itertools.permutations(range(4)):
        before = search.cost(list(first))
        assert search.cost(search.climb(list(first))) <= before + 1e-9
    assert (search.widths([0, 1, 2, 3]) > 0).tolist() == [
        [False, True, True, False], [False, False, True, False],
        [False, False, False, True], [False] * 4,
    ]  # fmt: skip


def test_lines_with_gaussian_noise_cost_the_same_both_ways_and_others_do_not():
    draw = np.random.default_rng(0)
    for noise, low, high in ((draw.normal, -1e-6, 1e-6), (draw.laplace, 20, 1e4)):
        x = noise(size=(1000, 2))
        x[:, 1] += x[:, 0]
        search = LikelihoodSearch(x, 1, shaped=noise == draw.laplace)
        assert low <= search.reversal_cost(0, 1, []) <= high
        assert search.reversal_cost(1, 0, []) == pytest.approx(-search.reversal_cost(0, 1, []))


def test_selection_finds_the_best_set_of_parents():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(300, 5)) @ draw.normal(size=(5, 5))
    x /= np.linalg.norm(x - x.mean(0), axis=0)
    x -= x.mean(0)
    penalty = np.log(300) / 300
    width, log, used = grow(x.T @ x, 1, 4, np.arange(4), penalty, 100)
    best = min(
        np.log(((x[:, 4] - x[:, s] @ np.linalg.lstsq(x[:, s], x[:, 4], rcond=None)[0]) ** 2).sum())
        + penalty * len(s)
        for k in range(5)
        for s in map(list, itertools.combinations(range(4), k))
    )
    assert log + penalty * used == pytest.approx(best)
    assert used == width.sum()


def test_what_a_regression_leaves_is_what_least_squares_leave():
    draw = np.random.default_rng(0)
    x = np.linalg.qr(draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6)))[0] + 0.1
    x /= np.linalg.norm(x, axis=0)
    gram, features = x.T @ x, np.ascontiguousarray(x.T)
    for at in ([], [3], [5, 0, 2], [1, 2, 3, 4, 5]):
        left = residual(gram, features, np.array(at, np.int64), 0 if 0 not in at else 1)
        y = x[:, 0 if 0 not in at else 1]
        weight = np.linalg.lstsq(x[:, at], y, rcond=None)[0]
        np.testing.assert_allclose(left, y - x[:, at] @ weight, atol=1e-7)


def test_negentropy_is_nothing_for_a_gaussian_and_ignores_place_and_size():
    from scipy.stats import norm

    even = (np.arange(4000) + 0.5) / 4000
    assert negentropy(norm.ppf(even)) < 1e-5
    # Of the exponential: entropy 1 nat against 1.419.
    exponential = -np.log(1 - even)
    assert negentropy(exponential) == pytest.approx(0.419, abs=0.1)
    assert negentropy(7 - 300 * exponential) == pytest.approx(negentropy(exponential))


def test_twice_the_rows_times_negentropy_is_chi_squared_for_a_gaussian():
    draw = np.random.default_rng(0)
    values = np.array([2 * 500 * negentropy(draw.normal(size=500)) for _ in range(1000)])
    assert values.mean() == pytest.approx(2, abs=0.3)
    assert np.mean(values > 9.21) == pytest.approx(0.01, abs=0.01)
