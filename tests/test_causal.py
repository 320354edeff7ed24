"""Simulators, scores and metrics of isospike.causal."""

import inspect

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isospike.causal.metrics import (
    compare_to_truth,
    descendants,
    order_divergence,
    structural_hamming_distance,
    structural_intervention_distance,
)
from isospike.causal.schur import schur_complement, schur_sort
from isospike.causal.scores import SCORES, information, precision, score_covariance, stein_score
from isospike.causal.simulate import MECHANISMS, random_dag, simulate, topological_order
from isospike.errors import InputError, IsospikeError, RangeError, ShapeError


def draw(seed):
    return torch.Generator().manual_seed(seed)


def graph(d, *edges):
    out = np.zeros((d, d), bool)
    for parent, child in edges:
        out[parent, child] = True
    return out


@pytest.mark.parametrize("kind", ["er", "sf"])
@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_random_graphs_are_acyclic_and_the_generators(kind, d, seed):
    one = random_dag(d, 0.5, kind, draw(seed))
    assert nx.is_directed_acyclic_graph(nx.DiGraph(one.astype(int)))
    assert np.array_equal(one, random_dag(d, 0.5, kind, draw(seed)))
    assert order_divergence(np.array(topological_order(one)), one) == 0
    paths = nx.transitive_closure_dag(nx.from_numpy_array(one, create_using=nx.DiGraph))
    assert np.array_equal(descendants(one), nx.to_numpy_array(paths, nodelist=range(d)) > 0)


def test_random_graphs_have_the_edges_asked_for_and_shuffled_columns():
    edges = [random_dag(50, 2.0, "er", draw(s)).sum() for s in range(40)]
    assert np.mean(edges) == pytest.approx(100, abs=4 * 10 / 40**0.5)
    assert random_dag(50, 2.0, "sf", draw(0)).sum() == 97
    below = [np.tril(random_dag(50, 2.0, "er", draw(s))).sum() for s in range(40)]
    assert np.mean(below) == pytest.approx(50, abs=5)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_gives_finite_rows_with_the_noise_asked_for(mechanism):
    truth = random_dag(8, 1.0, "er", draw(1))
    made = simulate(truth, 4000, mechanism, 0.5, generator=draw(2))
    assert made.data.shape == (4000, 8)
    assert np.isfinite(made.data).all()
    assert made.data.std(0).max() < 200
    x = torch.from_numpy(made.data)
    for i in range(8):
        e = torch.atanh(x[:, i] / 2) if mechanism == "post-nonlinear" else x[:, i]
        e = e - made.functions[i](x[:, truth[:, i]])
        assert e.std().item() == pytest.approx(0.5, rel=0.06)
    again = simulate(truth, 4000, mechanism, 0.5, generator=draw(2))
    assert np.array_equal(made.data, again.data)


def test_unequal_noise_stays_within_its_factor():
    made = simulate(np.zeros((60, 60), bool), 5, unequal=2.0, noise=3.0, generator=draw(0))
    assert 1.5 <= made.noise.min() < 2 < 5 < made.noise.max() <= 6


@pytest.mark.parametrize("mechanism", ["linear", "sin", "gp", "mlp", "additive-gp", "quadratic"])
def test_the_expectation_gap_is_the_covariance_of_the_gradient(mechanism):
    # Marginalising a leaf l takes E[g g^T] / s^2 off; the Schur complement of the mean takes
    # E[g] E[g]^T / s^2. The rest, exactly: Schur(E[H]) - E[H without l] = Cov(g) / s^2.
    truth = random_dag(6, 1.5, "er", draw(3))
    made = simulate(truth, 300, mechanism, 0.8, generator=draw(4))
    leaf = next(i for i in range(6) if truth[:, i].any() and not truth[i].any())
    keep = np.delete(np.arange(6), leaf)
    h = made.hessians()
    expected = h.mean(0)
    g = made.gradients(leaf)[:, keep]
    # In the sample, E[e grad^2 f] is not 0: it is in both sides' I_SS and cancels.
    marginal = expected[np.ix_(keep, keep)] - g.T @ g / len(g) / 0.8**2
    gap = schur_complement(expected, np.array([leaf])) - marginal
    np.testing.assert_allclose(gap, np.cov(g, rowvar=False, bias=True) / 0.8**2, atol=1e-10)
    assert expected[leaf, leaf] == pytest.approx(1 / 0.8**2)


def test_the_information_is_the_covariance_of_the_score():
    made = simulate(random_dag(5, 1.0, "er", draw(0)), 5000, "gp", generator=draw(1))
    error = score_covariance(made.scores()) - made.hessians().mean(0)
    assert np.abs(error).max() < 0.3


def test_an_oracle_orders_linear_models():
    truth = random_dag(12, 1.5, "er", draw(0))
    made = simulate(truth, 10, "linear", generator=draw(1))
    h = made.hessians()
    assert np.allclose(h, h[0])
    assert order_divergence(schur_sort(h.mean(0)).order, truth) == 0


@pytest.mark.parametrize("score", SCORES)
def test_every_score_is_near_the_truth_of_a_linear_model(score):
    truth = random_dag(8, 1.0, "er", draw(2))
    made = simulate(truth, 1500, "linear", generator=draw(3))
    found = information(made.data, score)
    true = made.hessians(1)[0]
    assert np.array_equal(found, found.T) or np.allclose(found, found.T, rtol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0
    bound = {"precision": 0.1, "shrinkage": 0.2, "glasso": 0.7, "stein": 0.6, "denoising": 0.5}[
        score
    ]
    assert np.linalg.norm(found - true) < bound * np.linalg.norm(true)


def test_precision_is_numpys_inverse_and_follows_the_columns():
    x = np.random.default_rng(0).normal(size=(50, 7)) * np.logspace(-6, 6, 7)
    found = precision(x)
    cov = np.cov(x, rowvar=False)
    scale = np.sqrt(np.outer(cov.diagonal(), cov.diagonal()))
    np.testing.assert_allclose((found * scale) @ (cov / scale), np.eye(7), atol=1e-9)
    shuffle = np.random.default_rng(1).permutation(7)
    np.testing.assert_allclose(
        precision(x[:, shuffle]), found[np.ix_(shuffle, shuffle)], rtol=1e-7, atol=1e-300
    )


def test_precision_refuses_too_few_rows_and_dependent_columns():
    x = np.random.default_rng(0).normal(size=(5, 5))
    with pytest.raises(InputError, match="more rows than columns, got 5 rows and 5 columns"):
        precision(x)
    x = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.raises(InputError, match="linearly independent columns"):
        precision(np.column_stack([x, x.sum(1)]))
    with pytest.raises(
        InputError, match="a score among precision, shrinkage, glasso, .*, got 'x'. Choose one"
    ):
        information(x, "x")


def test_steins_score_of_a_gaussian_is_its_score():
    x = np.random.default_rng(0).normal(size=(800, 2)) * [1, 3]
    found = stein_score(x)
    true = -x / np.array([1, 9])
    inner = np.abs(x / [1, 3]).max(1) < 2
    for i in range(2):
        assert np.corrcoef(found[inner, i], true[inner, i])[0, 1] > 0.95


@settings(max_examples=25)
@given(st.integers(2, 9), st.integers(0, 2**31))
def test_distances_to_itself_are_zero_and_divergence_is_below_the_others(d, seed):
    a, b = (random_dag(d, 0.5 * min(2, d - 1) / 2, "er", draw(seed + k)) for k in (0, 1))
    assert structural_intervention_distance(a, a) == structural_hamming_distance(a, a) == 0
    empty = np.zeros_like(a)
    assert structural_hamming_distance(empty, a) == a.sum()
    assert structural_hamming_distance(a, b) == structural_hamming_distance(b, a)
    order = np.array(topological_order(b))
    assert order_divergence(order, a) <= structural_hamming_distance(b, a)
    shuffle = np.random.default_rng(seed).permutation(d)
    cut = np.ix_(shuffle, shuffle)
    assert structural_intervention_distance(b, a) == structural_intervention_distance(
        b[cut], a[cut]
    )


@settings(max_examples=25)
@given(st.integers(2, 7), st.integers(0, 2**31))
def test_sid_agrees_with_networkxs_separation(d, seed):
    truth, found = (random_dag(d, (d - 1) / 4, "er", draw(seed + k)) for k in (0, 1))
    g, wrong = nx.DiGraph(truth.astype(int)), 0
    for i in range(d):
        z = set(np.flatnonzero(found[:, i]).tolist())
        for j in set(range(d)) - {i}:
            below = nx.descendants(g, i)
            if j in z:
                wrong += j in below
                continue
            path = {v for v in below if j == v or j in nx.descendants(g, v)}
            bad = set().union(*(nx.descendants(g, v) | {v} for v in path))
            cut = g.copy()
            cut.remove_edges_from([(i, v) for v in path if g.has_edge(i, v)])
            wrong += bool(bad & z) or not nx.is_d_separator(cut, {i}, {j}, z)
    assert structural_intervention_distance(found, truth) == wrong


def test_sid_of_the_published_example():
    # Two causes of three effects, 0 -> 1: an extra edge costs nothing, the reversed one 8 pairs.
    effects = [(c, e) for c in (0, 1) for e in (2, 3, 4)]
    truth = graph(5, (0, 1), *effects)
    assert structural_intervention_distance(graph(5, (0, 1), (2, 3), *effects), truth) == 0
    assert structural_intervention_distance(graph(5, (1, 0), *effects), truth) == 8


def test_comparison_by_hand():
    truth = graph(4, (0, 1), (1, 2), (0, 2))
    found = graph(4, (0, 1), (2, 1), (2, 3))
    got = compare_to_truth(np.array([0, 2, 1, 3]), found, truth, sid=True)
    # 1 before 2 is violated; 1-2 reversed, 0-2 missing, 2-3 extra.
    assert (got.divergence, got.shd, got.edges) == (1, 3, 3)
    assert (got.tpr, got.fdr) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert np.isnan(compare_to_truth(np.arange(2), graph(2), graph(2)).tpr)


def test_metrics_refuse_what_they_cannot_compare():
    with pytest.raises(RangeError, match="order of the 3 variables"):
        order_divergence(np.array([0, 1, 1]), graph(3))
    with pytest.raises(ShapeError, match=r"one shape, got \(2, 2\) and \(3, 3\)"):
        inspect.unwrap(structural_hamming_distance)(graph(2), graph(3))
    with pytest.raises(InputError, match="without cycles, got one through variable 0"):
        structural_intervention_distance(graph(2, (0, 1), (1, 0)), graph(2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: random_dag(1), "variables >= 2"),
        (lambda: random_dag(4, 5.0), r"\(variables - 1\) / 2\], got 4 and 5"),
        (lambda: random_dag(4, 1.0, "ring"), "a known kind, got 'ring'. Choose er or sf"),
        (
            lambda: simulate(graph(2), 5, "cubic"),
            "a known mechanism, got 'cubic'. Choose one of linear, ",
        ),
        (lambda: simulate(graph(2), 0), "rows >= 1"),
        (lambda: simulate(graph(2, (0, 1), (1, 0)), 5), "without cycles, got one at variable 0"),
        (
            lambda: simulate(graph(2, (0, 1)), 5, "post-nonlinear").hessians(),
            "an additive noise model",
        ),
    ],
)
def test_simulators_refuse(call, text):
    with pytest.raises(IsospikeError, match=text):
        call()
