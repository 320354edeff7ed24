import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from isospike.errors import RangeError, ShapeError
from isospike.positions import FrequencyCompressed, Sinusoidal, SpikeTiming, sinusoid
from isospike.theory.equivalence import (
    counterexample,
    geometry,
    latency,
    lemma_1a,
    lemma_1b,
    lemma_1c,
    phase_slopes,
    score_terms,
    wraps_after,
)

factors = st.floats(1e-3, 1e3)
seeds = st.integers(0, 2**31)


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positions(length, width):
    return sinusoid(torch.arange(length), width).double()


# The map from rank to latency to phase.


@given(st.integers(1, 300), st.floats(0.01, 100))
def test_phase_is_linear_in_latency_with_the_stated_slope(length, cycle):
    p = torch.arange(length).double()
    t = latency(p, length, cycle)
    assert t.max() < cycle
    phase = t[:, None] * phase_slopes(16, length, cycle)
    true = p[:, None] * 10000.0 ** (-torch.arange(0, 16, 2).double() / 16)
    torch.testing.assert_close(phase, true, rtol=1e-12, atol=1e-12)


def test_observed_phase_wraps_and_only_all_components_tell_positions_apart():
    period = wraps_after(128)
    assert period[0].item() == pytest.approx(6.2832, abs=1e-4)
    assert int((period > 127).sum()) == 43  # of 64 components are one to one over 128 positions
    for i, length in ((0, 7), (10, 27)):
        assert (period[i] < length) == (i == 0 or period[10] < 27)
        phase = torch.arange(length).double() * 2 * math.pi / period[i]
        assert bool((phase > 2 * math.pi).any()) == bool(period[i] < length - 1)
    table = positions(2000, 128)
    assert torch.pdist(table).min() > 0.5


# Lemma 1, as far as it holds.


@given(seeds, factors)
def test_attention_over_positions_alone_is_invariant(seed, factor):
    ours, true = lemma_1a(positions(20, 8), normal(seed, 8, 8), factor)
    torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-12)


@given(seeds)
def test_orthogonal_maps_are_absorbed(seed):
    turn = torch.linalg.qr(normal(seed, 8, 8)).Q
    ours, true = lemma_1b(normal(seed + 1, 9, 8), positions(9, 8), normal(seed + 2, 8, 8), turn)
    torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-9)


def test_other_maps_are_not_absorbed():
    stretch = torch.diag(torch.tensor([2.0] + [1.0] * 7, dtype=torch.float64))
    ours, true = lemma_1b(normal(1, 9, 8), positions(9, 8), normal(2, 8, 8), stretch)
    assert (ours - true).abs().max() > 1


@given(seeds, factors)
def test_a_pre_norm_layer_reads_a_ratio_of_content_to_position(seed, factor):
    ours, true = lemma_1c(normal(seed, 12, 8), positions(12, 8), factor)
    torch.testing.assert_close(ours, true, rtol=1e-6, atol=1e-9)


def test_the_epsilon_of_the_norm_limits_that():
    x, table = normal(0, 64, 64), positions(64, 64)
    for factor, bound in ((1.0, 1e-12), (1 / 64, 1e-4)):
        ours, true = lemma_1c(x, table, factor, 1e-5)
        assert (ours - true).abs().max() < bound
    ours, true = lemma_1c(1e-4 * x, table, 1e-4, 1e-5)  # variance 1e-8, far below eps
    assert (ours - true).abs().max() > 0.5


@given(seeds, factors)
def test_terms_of_the_scores_scale_by_1_c_and_c_squared(seed, factor):
    x, table, form = normal(seed, 6, 4), positions(6, 4), normal(seed + 1, 4, 4)
    true = (x + factor * table) @ form @ (x + factor * table).T
    torch.testing.assert_close(score_terms(x, table, form).at(factor), true, rtol=1e-9, atol=1e-6)


def test_the_unrestricted_lemma_fails():
    assert counterexample(1.0).tolist() == [2, 4]
    assert counterexample(0.5).tolist() == [2, 1]
    # The order of two keys turns round: softmax at no temperature is that of the other.
    for beta in (1e-3, 1.0, 4.0, 1e3):
        weaker = (beta * counterexample(0.5)).softmax(-1)
        assert weaker[0] > 0.5 > counterexample(1.0).softmax(-1)[0]


def test_no_temperature_helps_with_random_contents_either():
    x, table, form = normal(0, 32, 16), positions(32, 16), normal(1, 16, 16) / 16
    terms = score_terms(x, table, form)
    true = terms.at(1.0).softmax(-1)
    beta = torch.logspace(-3, 3, 200, dtype=torch.float64)
    apart = [(true - (b * terms.at(1 / 32)).softmax(-1)).abs().sum(-1).mean() / 2 for b in beta]
    assert min(apart) > 0.1  # total variation


def test_spike_timing_shrinks_the_gram_matrix_by_c_squared():
    at = torch.arange(128)
    plain, timed = Sinusoidal(128).table(at), SpikeTiming(128, 128).table(at)
    found = geometry(plain, timed)
    assert found.pearson == pytest.approx(1, abs=1e-6)
    ratio = (timed @ timed.T) / (plain @ plain.T)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 6.1035e-5), rtol=1e-3, atol=0)


# Geometry.


@pytest.mark.parametrize(
    ("length", "width", "pearson", "spearman", "ranks"),
    [
        (128, 128, 0.7062, 0.9651, (20.4, 1.06)),  # published .706 and .965
        (64, 64, 0.6957, 0.9294, (12.0, 1.06)),
        (512, 128, 0.6741, 0.9145, None),
        (128, 512, 0.7189, 0.9997, None),
    ],
)
def test_geometry_is_the_published_one(length, width, pearson, spearman, ranks):
    at = torch.arange(length)
    found = geometry(Sinusoidal(width).table(at), FrequencyCompressed(width, length).table(at))
    assert found.pearson == pytest.approx(pearson, abs=5e-5)
    assert found.spearman == pytest.approx(spearman, abs=2e-4)
    if ranks is not None:
        assert found.ranks == pytest.approx(ranks, abs=0.05)
    if (length, width) == (128, 128):
        assert found.gaps == pytest.approx((1.906, 1.22e-4), rel=0.01)
        assert found.cosines[0] == pytest.approx((0.358, 0.970), abs=1e-3)
        assert found.cosines[1] == pytest.approx((0.9707, 1.0), abs=1e-4)


@given(seeds)
def test_spearman_is_scipys(seed):
    a, b = normal(seed, 9, 3), normal(seed + 1, 9, 5)
    above = torch.ones(9, 9, dtype=torch.bool).triu(1)
    true = stats.spearmanr((a @ a.T)[above], (b @ b.T)[above]).statistic
    assert geometry(a, b).spearman == pytest.approx(true, abs=1e-9)


def test_ranks_of_a_geometry_count_equal_directions():
    for count in (2, 3, 8):
        table = torch.cat([torch.eye(8)[:count], -torch.eye(8)[:count]])
        assert geometry(table, table).ranks == pytest.approx((count, count), abs=1e-6)


# Errors.


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: latency(torch.ones(2), 0), RangeError, "latency needs length >= 1"),
        (
            lambda: phase_slopes(4, 3, 0.0),
            RangeError,
            "phase_slopes needs .* cycle > 0, got 3 and 0",
        ),
        (lambda: wraps_after(3), RangeError, "an even width, got 3"),
        (lambda: geometry(torch.ones(3, 2), torch.ones(4, 2)), ShapeError, "got 3 and 4"),
        (lambda: geometry(torch.ones(2, 2), torch.ones(2, 2)), ShapeError, "at least 3, got 2"),
    ],
)
def test_mistakes_are_named(make, kind, text):
    with pytest.raises(kind, match=text):
        make()
