"""ScoreSchurSort: the fit, its corrections, its edges and what it refuses or warns of."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch

import isospike
from isospike.causal.background import BackgroundKnowledge
from isospike.causal.edges import _fit, _linear_tests, prune, threshold_edges
from isospike.causal.guards import NoiseWarning, ScaleWarning, sortability
from isospike.causal.metrics import compare_to_truth, descendants, order_divergence
from isospike.causal.schur import sample_sort, schur_sort
from isospike.causal.scores import precision
from isospike.causal.simulate import random_dag, simulate
from isospike.causal.splines import (
    _Linear,
    _Regressions,
    affordable_features,
    features,
    orthonormal,
    spline_sort,
)
from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError


def made(mechanism, d=12, edges=1.0, rows=1000, seed=0, **options):
    draw = torch.Generator().manual_seed(seed)
    return simulate(random_dag(d, edges, "er", draw), rows, mechanism, generator=draw, **options)


@pytest.mark.parametrize("seed", range(3))
def test_linear_models_come_back_exactly(seed):
    data = made("linear", 20, 1.5, 2000, seed)
    fit = isospike.ScoreSchurSort().fit(data.data)
    assert compare_to_truth(fit.order_, fit.adjacency_, data.truth).shd <= 1
    assert order_divergence(fit.order_, data.truth) == 0
    assert [i for layer in fit.layers_ for i in layer] == fit.order_.tolist()
    assert fit.uneven_noise_ == 0


@pytest.mark.parametrize(("mechanism", "most"), [("sin", 1), ("quadratic", 7), ("gp", 3)])
def test_curved_models_come_back_nearly(mechanism, most):
    data = made(mechanism)
    fit = isospike.ScoreSchurSort().fit(data.data)
    assert order_divergence(fit.order_, data.truth) <= 2
    assert compare_to_truth(fit.order_, fit.adjacency_, data.truth).shd <= most


def test_the_regression_has_no_expectation_gap_where_the_mean_has_one():
    # The oracle's mean information matrix misorders; splines on the rows do not.
    wrong = {"mean": 0, "per-sample": 0, "winsorised": 0, "regression": 0}
    for seed in range(3):
        data = made("sin", 20, 1.0, 500, seed)
        h = data.hessians()
        for name in wrong:
            score = "precision" if name == "regression" else (lambda x, h=h: h)
            fit = isospike.ScoreSchurSort(score, name, "row").fit(data.data)
            wrong[name] += order_divergence(fit.order_, data.truth)
    assert wrong["mean"] >= 3 > wrong["per-sample"]
    assert wrong["regression"] == 0


def test_rows_that_agree_are_sorted_as_their_mean():
    matrix = precision(made("linear").data)
    one = sample_sort(np.tile(matrix, (3, 1, 1)))
    other = schur_sort(matrix)
    assert one.order.tolist() == other.order.tolist()
    np.testing.assert_allclose(one.margins, other.margins, rtol=1e-6)


def test_sparse_regressions_are_those_of_least_squares():
    x = made("gp", 6, rows=300).data
    found = _Regressions(x, 4)
    never = lambda free: np.inf  # noqa: E731
    found.grow(5, [2], [2], never)
    found.grow(5, [0], [2, 0], never)
    design = np.column_stack([orthonormal(x[:, p], 4) for p in (2, 0)])
    y = x[:, 5] - x[:, 5].mean()
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert found.variance[5] == pytest.approx(left @ left / (299 - 8))
    others = np.column_stack([orthonormal(x[:, p], 4) for p in range(6)])
    np.testing.assert_allclose(found.across[5], left @ others, atol=1e-6 * np.abs(y).max() * 17)
    gain = ((left @ orthonormal(x[:, 1], 4)) ** 2).sum()
    assert found.gains(1)[5] == pytest.approx(gain / 4 / ((left @ left - gain) / (291 - 4)))


def test_linear_elimination_along_an_order_gives_the_tests_of_its_regressions():
    from scipy import special

    x = made("linear", 6, 1.0, 80).data
    order = np.random.default_rng(0).permutation(6)
    linear = _Linear(np.cov(x, rowvar=False), 80)
    t2, free = [linear.remove(int(p)) for p in order[:4]][-1]
    assert free == 80 - 2 - 3
    expected = _linear_tests(x, order, special.fdtrc)[order[:4], order[4]]
    found = special.fdtrc(1, free, linear.tests(int(order[4])))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert t2[order[4]] == pytest.approx(linear.tests(int(order[4]))[3])


def test_parents_that_cancel_are_found():
    # 2 = 0 + e, 3 = 2 - 0 + e: alone, 0 tells nothing of 3, and 2 little.
    e = np.random.default_rng(0).normal(size=(500, 4))
    x = np.column_stack([e[:, 0], e[:, 1], 4 * e[:, 0] + e[:, 2], e[:, 3]])
    x[:, 3] += 0.6 * (x[:, 2] - 4 * x[:, 0])
    found = spline_sort(x, 3)
    assert found.pivots[3] == pytest.approx(1, abs=0.1)
    assert np.var(x[:, 3]) > 1.2


def test_fewer_rows_than_variables_still_give_an_order():
    data = made("sin", 60, 1.0, 50)
    order = spline_sort(data.data).order
    assert order_divergence(order, data.truth) < 0.25 * data.truth.sum()


def test_columns_of_few_values_are_taken():
    draw = np.random.default_rng(0)
    x = draw.integers(0, 2, (400, 6)).astype(float)
    x[:, 3] += x[:, 1]
    fit = isospike.ScoreSchurSort().fit(x)
    assert np.argwhere(fit.adjacency_).tolist() == [[1, 3]]


def test_features_span_a_cubic_spline():
    v = np.random.default_rng(0).normal(size=200) * 7 + 100
    assert features(v, 8).shape == (200, 8)
    np.testing.assert_allclose(features(v, 1)[:, 0], (v - v.mean()) / v.std())
    cubic = np.column_stack([np.ones(200), features(v, 3)])
    z = (v - 100) / 7
    fitted = cubic @ np.linalg.lstsq(cubic, z**3 - z, rcond=None)[0]
    np.testing.assert_allclose(fitted, z**3 - z, atol=1e-9)
    assert tuple(affordable_features(*s) for s in ((1000, 50), (1000, 200), (5000, 1000))) == (
        8,
        5,
        5,
    )


def test_columns_may_be_permuted_and_rescaled_together():
    x = made("gp", 10).data
    plain = isospike.ScoreSchurSort().fit(x)
    shuffle = np.random.default_rng(0).permutation(10)
    moved = isospike.ScoreSchurSort().fit(1000 * x[:, shuffle])
    assert shuffle[moved.order_].tolist() == plain.order_.tolist()
    assert np.array_equal(moved.adjacency_, plain.adjacency_[np.ix_(shuffle, shuffle)])


def test_noise_of_known_scale_may_differ():
    data = made("linear", 15, 1.0, 3000, 1, unequal=4.0)
    known = isospike.ScoreSchurSort(noise_scale=data.noise).fit(data.data)
    assert order_divergence(known.order_, data.truth) == 0
    with pytest.warns(ScaleWarning, match="residuals differ in size"):
        plain = isospike.ScoreSchurSort().fit(data.data)
    assert order_divergence(plain.order_, data.truth) > 0
    assert plain.noise_spread_ > 5 * known.noise_spread_
    with pytest.raises(RangeError, match="a positive noise_scale for each of 15 columns"):
        isospike.ScoreSchurSort(noise_scale=[1.0]).fit(data.data)


def test_standardised_columns_are_announced_and_the_forced_rule_orders_badly():
    data = made("linear", 15, 1.5)
    z = (data.data - data.data.mean(0)) / data.data.std(0)
    with pytest.warns(ScaleWarning, match="look standardised.*near chance"):
        fit = isospike.ScoreSchurSort(rule="equal-variance").fit(z)
    assert fit.rescaled_
    assert order_divergence(fit.order_, data.truth) >= 3
    boxed = (data.data - data.data.min(0)) / np.ptp(data.data, axis=0)
    with pytest.warns(ScaleWarning):
        isospike.ScoreSchurSort().fit(boxed)


def test_post_nonlinear_noise_is_announced_and_additive_noise_is_not():
    noise = pytest.warns(NoiseWarning, match="do not fit an additive noise model")
    with pytest.warns(ScaleWarning, match="differ in size"), noise:
        isospike.ScoreSchurSort().fit(made("post-nonlinear", 20).data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isospike.ScoreSchurSort().fit(made("additive-gp", 20).data)


def test_false_edges_stay_rare_without_any_true_one():
    x = np.random.default_rng(0).normal(size=(500, 40)) * np.linspace(1, 2, 40)
    graph, residuals = prune(x, np.arange(40), 0.001)
    assert not graph.any()
    np.testing.assert_allclose(residuals, x - x.mean(0))


def test_what_is_lost_without_a_parent_is_that_of_a_second_regression():
    draw = np.random.default_rng(0)
    basis = np.stack([np.linalg.qr(draw.normal(size=(60, 3)))[0] for _ in range(4)])
    v = draw.normal(size=60)
    left, lost = _fit(basis, [2, 0, 3], v)
    for k, others in enumerate(([0, 3], [2, 3], [2, 0])):
        design = np.concatenate([basis[p] for p in others], axis=1)
        rest = v - design @ np.linalg.lstsq(design, v, rcond=None)[0]
        assert lost[k] == pytest.approx(rest @ rest - left @ left, rel=1e-6)


def test_linear_tests_are_those_of_the_regression():
    x = made("linear", 6, 1.0, 80).data
    order = np.random.default_rng(0).permutation(6)
    from scipy import special, stats

    found = _linear_tests(x, order, special.fdtrc)
    child, before = order[4], order[:4]
    design = np.column_stack([np.ones(80), x[:, before]])
    w, rss, *_ = np.linalg.lstsq(design, x[:, child], rcond=None)
    se = np.sqrt(rss / 75 * np.linalg.inv(design.T @ design).diagonal())
    expected = 2 * stats.t.sf(np.abs(w / se), 75)[1:]
    np.testing.assert_allclose(found[before, child], expected, rtol=1e-6, atol=1e-12)


def test_leaf_rows_above_a_threshold_are_edges():
    data = made("linear", 10, 1.0, 5000)
    fit = isospike.ScoreSchurSort(prune="row").fit(data.data)
    assert np.array_equal(fit.adjacency_, data.truth)
    assert not threshold_edges(precision(data.data), fit.order_, 100.0).any()
    with pytest.raises(RangeError, match="a threshold >= 0, got -1"):
        threshold_edges(precision(data.data), fit.order_, -1.0)


def known(correction="regression", **knowledge):
    return isospike.ScoreSchurSort(
        correction=correction, background=BackgroundKnowledge(**knowledge)
    )


def test_background_knowledge_is_kept():
    data = made("gp", 8, 1.0, 400)
    plain = isospike.ScoreSchurSort().fit(data.data)
    last, first = (int(plain.order_[i]) for i in (-1, 0))
    fit = known(required=[(last, first)]).fit(data.data)
    assert fit.adjacency_[last, first]
    assert not descendants(fit.adjacency_)[first, last]
    parent, child = np.argwhere(plain.adjacency_)[0].tolist()
    fit = known(forbidden=[(f"x{parent}", child)]).fit(data.data)
    assert not fit.adjacency_[parent, child]
    for correction in ("regression", "mean"):
        tiers = [[last], [0 if last else 1, first]]
        fit = known(correction, tiers=tiers).fit(data.data)
        rank = np.argsort(fit.order_)
        assert rank[last] < rank[first]
    with pytest.raises(InputError, match="either required or forbidden, got x0 -> x1 as both"):
        known(required=[(0, 1)], forbidden=[(0, 1)]).fit(data.data)
    with pytest.raises(InputError, match="without cycles"):
        known(required=[(0, 1), (1, 0)]).fit(data.data)
    with pytest.raises(InputError, match="required with names of columns, got 'y'"):
        known(required=[("y", 0)]).fit(data.data)


def test_a_margin_is_to_what_else_could_be_chosen():
    matrix = precision(made("linear", 6).data)
    whole = np.triu(np.ones((6, 6), bool), 1)  # the whole order is known, and another than found
    free = schur_sort(matrix)
    back = np.argsort(np.argsort(free.order)[::-1])
    for before in (whole, whole[np.ix_(back, back)]):
        for forced in (
            schur_sort(matrix, before=before),
            sample_sort(np.tile(matrix, (3, 1, 1)), before=before),
        ):
            assert np.isinf(forced.margins).all()
    half = np.zeros((6, 6), bool)
    half[free.order[-1], free.order[:-1]] = True  # the last one must be the first
    for some in (
        schur_sort(matrix, before=half), sample_sort(np.tile(matrix, (3, 1, 1)), before=half)
    ):  # fmt: skip
        assert (some.margins >= 0).all()
        assert np.isinf(some.margins).sum() == 2


def test_a_report_where_all_is_known_has_no_margin():
    data = made("linear", 3, 1.0, 300)
    known = BackgroundKnowledge(tiers=[[2], [1], [0]])
    fit = isospike.ScoreSchurSort(background=known)
    report = isospike.order_causes(data.data, estimator=fit)
    assert report.order == ("x2", "x1", "x0")
    assert report.headline()["Smallest margin"].startswith("–")


def test_names_of_a_data_frame_name_the_graph():
    data = made("linear", 4, 1.0, 500)
    frame = type("Frame", (), {"columns": list("abcd"), "__array__": lambda *_, **__: data.data})()
    fit = isospike.ScoreSchurSort().fit(frame)
    assert list(fit.graph_.nodes) == ["abcd"[i] for i in fit.order_]
    assert len(fit.graph_.edges) == fit.adjacency_.sum()


def test_it_is_an_estimator_to_scikit_learn():
    from sklearn.base import clone

    one = isospike.ScoreSchurSort(correction="mean", gamma=0.1)
    other = clone(one)
    assert other.get_params() == one.get_params()
    assert repr(other) == "ScoreSchurSort(correction='mean', gamma=0.1)"
    assert other.set_params(gamma=0.2).gamma == 0.2
    with pytest.raises(ValueError, match="Invalid parameter 'delta'"):
        other.set_params(delta=1)


def test_sortability_by_hand():
    # 0 -> 1 -> 2 with growing variance: three directed paths, all upwards.
    graph = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    e = np.random.default_rng(0).normal(size=(2000, 3))
    x = np.column_stack([e[:, 0], 2 * e[:, 0] + e[:, 1], e @ [2, 1, 1]])
    found = sortability(x, graph)
    assert (found.var, found.score) == (1, 1)
    assert sortability(x, graph.T).var == 0
    assert np.isnan(sortability(x, np.zeros((3, 3), bool)).var)


x = np.random.default_rng(0).normal(size=(50, 3))


@pytest.mark.parametrize(
    ("table", "error", "got"),
    [
        (x[:, 0], ShapeError, r"at least 3 rows and 2 columns, got shape \(50,\)"),
        (x[:, :1], ShapeError, r"got shape \(50, 1\)"),
        (np.array([["a", "b"]] * 5), InputError, "numbers, got values that are not"),
        (np.where(x == x[4, 1], np.nan, x), InputError, "the first missing in row 5, column x1"),
        (np.where(x == x[7, 2], np.inf, x), InputError, "the first infinite in row 8, column x2"),
        (x * [1, 0, 1], InputError, "the constant column x1"),
        (x[:, [0, 1, 0]] * [1, 1, -2], InputError, "got x2, which is a multiple of x0"),
        (np.column_stack([x, x.sum(1)]), InputError, "linearly independent columns"),
        (np.random.default_rng(1).normal(size=(5, 8)), InputError, "more rows than columns"),
    ],
)
def test_unusable_tables_are_refused(table, error, got):
    with pytest.raises(error, match=got):
        isospike.ScoreSchurSort(correction="mean").fit(table)


@pytest.mark.parametrize(
    ("options", "error", "got"),
    [
        (
            {"information": "neural"},
            InputError,
            "information among precision, .*, got 'neural'. Choose one",
        ),
        (
            {"correction": "none"},
            InputError,
            "correction among regression, .*, got 'none'. Choose one",
        ),
        ({"prune": "das"}, InputError, "prune among cam, row, slopes, got 'das'. Choose one"),
        (
            {"information": "stein"},
            UnsupportedError,
            "information='precision' with correction='regression'",
        ),
        (
            {"correction": "per-sample"},
            UnsupportedError,
            "a matrix for every row with correction='per-sample', got information='precision'",
        ),
        ({"gamma": 2.0}, RangeError, r"gamma of at least 0 and below 1, got 2"),
        ({"gamma": math.nan}, RangeError, r"gamma of at least 0 and below 1, got nan"),
        ({"threshold": math.inf}, RangeError, r"threshold of at least 0 and finite, got inf"),
        ({"threshold": -1.0}, RangeError, r"threshold of at least 0 and finite, got -1"),
        ({"level": math.nan}, RangeError, r"level above 0 and below 1, got nan"),
        ({"level": 0.0}, RangeError, r"level above 0 and below 1, got 0"),
        (
            {"information": lambda v: v[0], "correction": "mean"},
            ShapeError,
            r"scores \(50, 3\), a matrix",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, got):
    with pytest.raises(error, match=got):
        isospike.ScoreSchurSort(**options).fit(x)


@pytest.mark.parametrize("score", ["shrinkage", "glasso", "stein"])
def test_every_score_can_be_eliminated(score):
    data = made("linear", 8, 1.0, 800, 3)
    fit = isospike.ScoreSchurSort(score, "mean").fit(data.data)
    assert order_divergence(fit.order_, data.truth) <= 2


@pytest.mark.parametrize(
    ("module", "call", "package"),
    [
        ("scipy.special", lambda fit: isospike.ScoreSchurSort().fit(x), "scipy"),
        ("networkx", lambda fit: fit.graph_, "networkx"),
        (
            "sklearn.covariance",
            lambda fit: isospike.ScoreSchurSort("glasso", "mean").fit(x),
            "scikit-learn",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module, call, package, monkeypatch):
    fit = isospike.ScoreSchurSort(prune="row").fit(x)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(isospike.MissingExtraError, match=rf"{package}.*isospike\[causal\]"):
        call(fit)


def test_few_rows_have_a_way_through():
    x = made("linear", 30, 1.0, 25).data
    fit = isospike.ScoreSchurSort("shrinkage", "mean").fit(x)
    assert sorted(fit.order_.tolist()) == list(range(30))
