"""The denoising score, slopes of parents, and networks from BIF files."""

import functools

import numpy as np
import pytest
import torch

import isospike
from isospike.causal.background import BackgroundKnowledge
from isospike.causal.denoising import DenoisingSettings, denoising_score
from isospike.causal.edges import parent_slopes
from isospike.causal.metrics import order_divergence
from isospike.causal.networks import parse_bif
from isospike.causal.schur import leaf_rows
from isospike.causal.scores import precision
from isospike.causal.simulate import random_dag, simulate
from isospike.errors import InputError, RangeError
from isospike.progress import shown_by


def made(mechanism, d=8, rows=600, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return simulate(random_dag(d, 1.0, "er", draw), rows, mechanism, generator=draw)


def learn(x, **options):
    settings = DenoisingSettings(**options)
    return denoising_score(x, settings, generator=torch.Generator().manual_seed(0))


def test_a_network_starts_as_the_score_of_a_gaussian():
    x = np.random.default_rng(0).normal(size=(2000, 3)) @ np.diag([1, 2, 3]) + 5
    found = learn(x, steps=1, noise=0.1)
    assert found.losses[0][0] == 0
    np.testing.assert_allclose(found.information(x), np.diag([1, 1 / 4, 1 / 9]), atol=0.1)


def test_mean_jacobians_are_means_of_jacobians_and_those_of_autograd():
    x = made("gp").data
    found = learn(x, steps=100, held_out=0.5)
    assert found.best > 0
    assert found.losses[-1][1] < found.losses[0][1]
    each = found.jacobians(x[:40])
    np.testing.assert_allclose(found.information(x[:40]), each.mean(0), atol=1e-4)
    step = 1e-2 * np.eye(8)
    slope = [(found.scores(x[:40] + e) - found.scores(x[:40] - e)) / 2e-2 for e in step]
    expected = -np.stack(slope, 1)
    np.testing.assert_allclose(each, (expected + expected.swapaxes(1, 2)) / 2, atol=0.02)


def test_denoising_orders_curved_models_and_repeats(monkeypatch):
    data = made("sin", 5, 300)
    quick = functools.partial(denoising_score, settings=DenoisingSettings(steps=300))
    for module in ("scores", "estimator"):
        monkeypatch.setattr(f"isospike.causal.{module}.denoising_score", quick)
    for correction in ("mean", "per-sample"):
        fit = isospike.ScoreSchurSort("denoising", correction, "row").fit(data.data)
        assert order_divergence(fit.order_, data.truth) <= 1
    nets = [learn(data.data, steps=30) for _ in range(2)]
    assert np.array_equal(*[net.scores(data.data) for net in nets])


def test_a_large_lasso_leaves_the_gaussian():
    x = made("sin").data
    norms = [learn(x, steps=200, lasso=v).weights[1].norm(dim=0).mean().item() for v in (0.0, 1.0)]
    assert norms[1] < norms[0]


def test_training_reports_its_progress_to_the_end():
    updates = []
    with shown_by(lambda *a: updates.append(a)):
        learn(made("sin").data, steps=30)
    assert updates[0] == ("score", 0, 30)
    assert updates[-1] == ("score", 30, 30)


@pytest.mark.parametrize(
    "option", [{"noise": 0.0}, {"steps": 0}, {"lasso": -1.0}, {"held_out": 0.0}]
)
def test_options_of_the_network_out_of_range_are_refused(option):
    with pytest.raises(RangeError, match="denoising_score needs noise, learning_rate, width"):
        learn(made("sin").data, **option)


def test_slopes_of_the_precision_are_linear_weights():
    x = made("linear").data
    order = np.random.default_rng(0).permutation(8)
    found = parent_slopes(x, order, "precision")
    np.testing.assert_allclose(found, np.abs(leaf_rows(precision(x), order)), rtol=1e-5, atol=1e-8)


def test_slopes_see_a_parabola_that_linear_weights_do_not():
    e = np.random.default_rng(0).normal(size=(500, 2))
    x = np.column_stack([e[:, 0], e[:, 0] ** 2 + e[:, 1]])
    order = np.array([0, 1])
    assert abs(leaf_rows(precision(x), order)[0, 1]) < 0.5
    assert parent_slopes(x, order)[0, 1] > 0.8
    fit = isospike.ScoreSchurSort(prune="slopes", background=BackgroundKnowledge([(0, 1)])).fit(x)
    assert fit.adjacency_.tolist() == [[False, True], [False, False]]


ASIA = """network unknown { }
variable a { type discrete [ 2 ] { yes, no }; }
variable b { type discrete [ 3 ] { x, y, z }; }
variable c { type discrete [ 2 ] { yes, no }; }
probability ( a ) { table 0.2, 0.8; }
probability ( b | a ) { (yes) 0.5, 0.5, 0.0; (no) 0.1, 0.2, 0.7; }
probability ( c | b, a ) { default 0.0, 1.0; (x, yes) 1.0, 0.0; }
"""


def test_a_network_is_read_and_sampled():
    network = parse_bif(ASIA)
    assert network.names == ("a", "b", "c")
    assert np.argwhere(network.truth).tolist() == [[0, 1], [0, 2], [1, 2]]
    x = network.sample(20000, np.random.default_rng(0))
    assert (x[:, 0] == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert (x[x[:, 0] == 1, 1] == 2).mean() == pytest.approx(0.7, abs=0.02)
    assert np.array_equal(x[:, 2] == 0, (x[:, 1] == 0) & (x[:, 0] == 0))


@pytest.mark.parametrize(
    ("old", "new", "got"),
    [
        (ASIA, "nothing", "variables of type discrete, got none"),
        ("( c | b, a )", "( c | d, a )", "probabilities of declared variables, got 'd'"),
        (
            "probability ( a ) { table 0.2, 0.8; }",
            "",
            "probabilities of each variable, got none of a",
        ),
        ("0.1, 0.2, 0.7", "0.1, 0.2, 0.6", "sum to 1, got 0.9 for b"),
        ("(x, yes)", "(w, yes)", r"known states and 2 probabilities, got \(w, yes\)"),
    ],
)
def test_networks_that_are_none_are_refused(old, new, got):
    with pytest.raises(InputError, match=got):
        parse_bif(ASIA.replace(old, new))
