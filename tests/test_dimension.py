import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from isospike.dimension import (
    EffectiveDimension,
    Estimate,
    Moments,
    is_capped,
    mle,
    participation_ratio,
    pca_count,
    spectral_entropy,
    stable_rank,
    two_nn,
)
from isospike.errors import RangeError, ShapeError

seeds = st.integers(0, 2**31)
spectra = st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda s: sum(s) > 1e-9)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def in_latent(seed, rows, latent, width):
    """Gaussian rows of a random subspace."""
    basis = torch.linalg.qr(normal(seed, width, latent)).Q
    return normal(seed + 1, rows, latent) @ basis.T


def measure(rows, **options):
    return EffectiveDimension(generator=seeded(0), **options).fit(rows).dimension_


# Hand traces.


def test_measures_of_a_spectrum_by_hand():
    # Shares 1/2, 1/4, 1/8, 1/8: running sums .5 .75 .875 1.
    variances = torch.tensor([1.0, 4.0, 2.0, 1.0])
    assert [pca_count(variances, s) for s in (0.5, 0.51, 0.75, 0.875, 0.9, 1.0)] == [
        1, 2, 2, 3, 4, 4,
    ]  # fmt: skip
    assert participation_ratio(variances) == pytest.approx(64 / 22)
    assert spectral_entropy(variances) == pytest.approx(2**1.75)
    assert stable_rank(variances) == 2


def test_mle_and_two_nn_by_hand():
    # On a line at 0, 1, 3: distances (1, 3), (1, 2), (2, 3).
    rows = torch.tensor([[0.0], [1.0], [3.0]])
    logs = [math.log(3), math.log(2), math.log(1.5)]
    assert mle(rows, neighbours=2) == pytest.approx(3 / sum(logs))
    # Kept: the two smallest, 0.9 * 3 rounded down, against -ln(2/3) and -ln(1/3).
    x, y = (logs[2], logs[1]), (math.log(1.5), math.log(3))
    slope = (x[0] * y[0] + x[1] * y[1]) / (x[0] ** 2 + x[1] ** 2)
    assert two_nn(rows) == pytest.approx(slope)


def test_moments_by_hand():
    moments = Moments(2)
    moments.update(torch.tensor([[0.0, 0.0]]))
    moments.update(torch.tensor([[2.0, 0.0], [4.0, 6.0]]))
    assert moments.rows == 3
    assert moments.mean.tolist() == [2, 2]
    torch.testing.assert_close(moments.scatter, torch.tensor([[8.0, 12], [12, 24]]).double())


# Properties.


@given(spectra, st.floats(0.01, 1))
def test_measures_are_ordered_and_bounded(spectrum, share):
    variances = torch.tensor(spectrum, dtype=torch.float64)
    positive = int((variances > 0).sum())
    ratio, rank = participation_ratio(variances), stable_rank(variances)
    entropy = spectral_entropy(variances)
    assert 1 - 1e-9 <= rank <= ratio * (1 + 1e-9)
    assert ratio <= entropy * (1 + 1e-9)
    assert entropy <= positive * (1 + 1e-9)
    assert 1 <= pca_count(variances, share) <= positive


@given(spectra, st.floats(1e-6, 1e6))
def test_measures_ignore_scale_and_order(spectrum, factor):
    variances = torch.tensor(spectrum, dtype=torch.float64)
    turned = factor * variances.flip(0)
    for of in (participation_ratio, spectral_entropy, stable_rank):
        assert of(turned) == pytest.approx(of(variances), rel=1e-9)


@given(seeds, st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_batches_give_the_moments_of_the_whole(seed, sizes, offset):
    x = normal(seed, sum(sizes), 4) + offset
    moments = Moments(4)
    for part in x.split(sizes):
        moments.update(part)
    centred = x - x.mean(0)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.scatter, centred.T @ centred, rtol=1e-9, atol=1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    x = normal(0, 500, 3)
    far, near = Moments(3), Moments(3)
    for part in x.split(50):
        near.update(part)
        far.update(part + 1e7)
    # An uncentred product of 1e14 would leave a variance of 1 two digits.
    torch.testing.assert_close(far.variances(), near.variances(), rtol=1e-6, atol=0)


@settings(max_examples=20)
@given(seeds, st.integers(1, 59))
def test_a_fit_in_parts_is_the_fit_of_the_whole(seed, cut):
    x = normal(seed, 60, 3)
    options = {"replicates": 2, "neighbours": 3}
    whole = EffectiveDimension(**options, generator=seeded(1)).fit(x)
    parts = EffectiveDimension(**options, generator=seeded(1))
    parts.partial_fit(x[:cut]).partial_fit(x[cut:])
    for name in ("pca", "participation", "entropy", "stable_rank", "two_nn", "mle"):
        a, b = getattr(whole.dimension_, name).value, getattr(parts.dimension_, name).value
        assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("change", ["shift", "turn", "scale", "append constant columns"])
def test_changes_that_keep_the_shape_keep_every_measure(change):
    x = normal(3, 200, 5) * torch.tensor([5.0, 3, 2, 1, 1])
    y = {
        "shift": x + 7,
        "turn": x @ torch.linalg.qr(normal(4, 5, 5)).Q,
        "scale": 0.01 * x,
        "append constant columns": torch.cat([x, torch.full((200, 2), 0.1)], 1),
    }[change]
    a, b = measure(x), measure(y)
    assert (a.constant, b.constant) == (0, 2 if "append" in change else 0)
    for name in ("pca", "participation", "entropy", "stable_rank", "two_nn", "mle"):
        assert getattr(b, name).value == pytest.approx(getattr(a, name).value, rel=1e-6)


def test_rows_are_kept_uniformly_and_memory_is_bounded():
    kept = torch.zeros(200)
    for seed in range(200):
        estimator = EffectiveDimension(keep=20, generator=seeded(seed))
        for part in torch.arange(200.0)[:, None].split(41):
            estimator.partial_fit(part)
            assert len(estimator._kept) <= 20
        kept[estimator._kept.flatten().long()] += 1
    # 20 expected of each; their standard deviation is 4.2.
    assert kept.sum() == 4000
    assert 2 < kept.min() < kept.max() < 40
    assert abs(kept[:100].mean() - kept[100:].mean()) < 2.5


# Data of known dimension.


@pytest.mark.parametrize("latent", [1, 2, 8, 32])
def test_a_gaussian_subspace_has_its_dimension(latent):
    found = measure(in_latent(latent, 3000, latent, 64), share=1.0, replicates=2)
    assert found.pca.value == latent
    assert found.participation.value == pytest.approx(latent, rel=0.03)
    assert found.entropy.value == pytest.approx(latent, rel=0.02)
    if latent <= 8:  # beyond, neighbours are far: see the next test
        assert found.two_nn.value == pytest.approx(latent, rel=0.15)
        assert found.mle.value == pytest.approx(latent, rel=0.15)


def test_the_intrinsic_dimension_of_a_curved_surface_is_below_its_linear_one():
    # A swiss roll: two parameters in three linear dimensions.
    u = torch.rand(2, 1000, generator=seeded(5), dtype=torch.float64)
    angle = 1.5 * math.pi * (1 + 2 * u[0])
    x = torch.stack([angle * angle.cos(), 21 * u[1], angle * angle.sin()], 1)
    found = measure(x, share=0.99, replicates=5)
    assert found.pca.value == 3
    for estimate in (found.two_nn, found.mle):
        assert estimate.value == pytest.approx(2, abs=0.2)
        assert not estimate.capped


def test_an_intrinsic_dimension_too_high_for_its_rows_is_low_and_flagged():
    found = measure(in_latent(0, 1000, 40, 64))
    assert found.mle.value < 30
    assert found.mle.capped
    assert found.two_nn.capped


@pytest.mark.parametrize("decay", [0.3, 1.0, 2.0])
def test_what_is_not_flagged_is_within_a_tenth_of_the_population(decay):
    variances = torch.arange(1, 129, dtype=torch.float64) ** -decay
    for rows in (50, 200, 800, 3200):
        found = measure(normal(rows, rows, 128) * variances.sqrt(), replicates=2, keep=50)
        for name, of in (
            ("pca", pca_count),
            ("participation", participation_ratio),
            ("entropy", spectral_entropy),
        ):
            estimate, true = getattr(found, name), of(variances)
            assert estimate.capped == (rows < 10 * estimate.value)
            if not estimate.capped:
                assert estimate.value == pytest.approx(true, rel=0.1, abs=1)


def test_a_count_capped_by_the_sample_says_so_and_its_curve_rises():
    # 100 rows of 400 equal dimensions, of which the population's count is 380.
    found = measure(normal(0, 100, 400))
    assert found.pca.value == pytest.approx(86, abs=1)
    assert found.pca.capped
    assert str(found.pca) == f"≥ {found.pca.value:.3g} (capped by 100 rows)"
    counts = [point.pca for point in found.curve]
    assert [point.rows for point in found.curve] == [6, 12, 25, 50, 100]
    assert counts == sorted(counts)
    assert counts[-1] > 1.8 * counts[-2]


def test_intervals_cover_the_population():
    variances = torch.tensor([8.0, 4, 2, 1, 1, 1], dtype=torch.float64)
    true = {"participation": participation_ratio, "entropy": spectral_entropy}
    covered = dict.fromkeys(true, 0)
    for seed in range(50):
        x = normal(seed, 300, 6) * variances.sqrt()
        found = measure(x, keep=100, replicates=25, neighbours=2)
        for name, of in true.items():
            estimate = getattr(found, name)
            covered[name] += estimate.low <= of(variances) <= estimate.high
    # 47.5 expected; binomial standard deviation 1.5, and the error itself is estimated.
    assert min(covered.values()) >= 42


# Parity: formulas written here, on NumPy and SciPy.


def test_spectral_measures_are_those_of_the_singular_values():
    x = in_latent(7, 300, 10, 20) + 0.1 * normal(8, 300, 20)
    s = np.linalg.svd(x.numpy() - x.numpy().mean(0), compute_uv=False) ** 2
    p = s / s.sum()
    found = measure(x.numpy())
    assert found.pca.value == np.searchsorted(np.cumsum(p), 0.95) + 1
    assert found.participation.value == pytest.approx(1 / (p**2).sum())
    assert found.entropy.value == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert found.stable_rank.value == pytest.approx(s.sum() / s[0])


@settings(max_examples=20)
@given(seeds)
def test_neighbour_measures_are_those_of_a_search_tree(seed):
    x = normal(seed, 120, 3).numpy()
    r = KDTree(x).query(x, k=11)[0][:, 1:]
    local = 1 / np.mean(np.log(r[:, -1:] / r[:, :-1]), axis=1)
    assert mle(torch.tensor(x), 10) == pytest.approx(1 / np.mean(1 / local), rel=1e-9)
    mu = np.sort(r[:, 1] / r[:, 0])
    keep = int(0.9 * len(mu))
    lhs, rhs = np.log(mu[:keep]), -np.log(1 - np.arange(1, keep + 1) / len(mu))
    slope = np.linalg.lstsq(lhs[:, None], rhs, rcond=None)[0][0]
    assert two_nn(torch.tensor(x)) == pytest.approx(slope, rel=1e-9)


def test_equal_rows_count_once_for_neighbours():
    x = normal(0, 100, 3)
    assert two_nn(torch.cat([x, x])) == pytest.approx(two_nn(x))
    assert measure(torch.tensor([[0.0], [1.0]] * 50)).two_nn is None


# Bad input.


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: EffectiveDimension().dimension_, RangeError, "at least 2 rows, got 0"),
        (lambda: measure(torch.ones(1, 3)), RangeError, "at least 2 rows, got 1"),
        (lambda: measure(torch.full((5, 3), 0.1)), RangeError, "5 equal ones: all 3 columns"),
        (lambda: measure(torch.tensor([[0.0, 1], [math.nan, 2]])), RangeError,
         r"got nan in row 1, column 0 \(1 in all\)"),
        (lambda: measure(torch.tensor([[0.0, math.inf]])), RangeError, "got inf in row 0"),
        (lambda: measure(torch.ones(5)), ShapeError, r"got shape \[5\]"),
        (lambda: measure(torch.ones(5, 0)), ShapeError, r"got shape \[5, 0\]"),
        (lambda: EffectiveDimension().fit(torch.ones(2, 3)).partial_fit(torch.ones(2, 4)),
         ShapeError, "rows of width 3, as before, got 4"),
        (lambda: EffectiveDimension(0.0), RangeError, r"a share in \(0, 1\], got 0"),
        (lambda: EffectiveDimension(keep=1), RangeError, "keep >= 2, got 1"),
        (lambda: pca_count(torch.ones(2), 1.5), RangeError, "got 1.5"),
        (lambda: stable_rank(torch.zeros(2)), RangeError, "stable_rank needs a variance above 0"),
        (lambda: two_nn(torch.ones(9, 2)), RangeError, "at least 3 different rows, got 1"),
        (lambda: mle(normal(0, 9, 2), 9), RangeError, "at least 10 different rows, got 9"),
        (lambda: mle(normal(0, 9, 2), 1), RangeError, "at least 2 neighbours, got 1"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_an_empty_batch_changes_nothing_and_integers_are_numbers():
    x = np.array([[0, 1], [2, 0], [5, 5]])
    estimator = EffectiveDimension(neighbours=2).partial_fit(np.zeros((0, 2))).partial_fit(x)
    assert estimator.dimension_.rows == 3
    assert estimator.dimension_.participation == measure(x, neighbours=2).participation._replace(
        low=estimator.dimension_.participation.low, high=estimator.dimension_.participation.high
    )


def test_an_estimate_reads_well():
    assert str(Estimate(12.0, 11.2, 12.8, 500, False)) == "12 [11.2, 12.8]"
    assert is_capped(51.0, 100)
    assert not is_capped(10.0, 100)
