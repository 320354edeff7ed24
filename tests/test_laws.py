import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike import codes
from isospike.codes import CODES, BernoulliCode, PhaseCode, RateCode
from isospike.errors import RangeError
from isospike.theory.laws import (
    ProjectionLaw,
    bernoulli_steps,
    count_steps,
    dithered_square_error,
    fewest_spikes,
    incoherent_law,
    projection_law,
    published_steps,
    rate_distortion,
    rheobase,
    spike_bits,
    square_error,
)

DRAWS = 20_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def quantize(code, x, seed):
    if isinstance(code, BernoulliCode):
        return code.quantize(x, generator=seeded(seed))
    return code.quantize(x)


def uniform(seed, *shape):
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


# Codes.


@pytest.mark.parametrize("steps", [2, 5, 16])
@pytest.mark.parametrize("name", CODES)
def test_square_error_is_what_is_measured(name, steps):
    code = codes.code(name, steps)
    x = torch.linspace(code.low, 1, 7, dtype=torch.float64).expand(DRAWS, 7)
    measured = (quantize(code, x, 0) - x).square()
    law = square_error(code, x[0])
    # Five standard errors; none where the code draws nothing.
    slack = 5 * measured.std(0) / math.sqrt(DRAWS) + 1e-12
    assert bool(((measured.mean(0) - law).abs() <= slack).all())


@pytest.mark.parametrize("name", CODES)
def test_its_mean_over_uniform_values_is_the_codes_own(name):
    for steps in (2, 7):
        code = codes.code(name, steps)
        cells = 40 * code.levels * (1 if code.low == 0 else 2)
        x = code.low + (1 - code.low) * (torch.arange(cells).double() + 0.5) / cells
        assert float(square_error(code, x).mean()) == pytest.approx(
            code.mean_square_error, rel=1e-3
        )


@pytest.mark.parametrize("steps", [1, 4, 31])
def test_a_random_membrane_dithers(steps):
    x = torch.tensor([0.0, 0.1, 0.37, 0.5, 0.99, 1.0], dtype=torch.float64)
    counts = torch.floor(x * steps + uniform(steps, DRAWS, 1))
    error = counts / steps - x
    slack = 5 * error.square().std(0) / math.sqrt(DRAWS) + 1e-12
    assert bool(((error.square().mean(0) - dithered_square_error(x, steps)).abs() <= slack).all())
    assert bool((error.mean(0).abs() <= 5 * error.std(0) / math.sqrt(DRAWS) + 1e-12).all())
    grid = (torch.arange(10_000).double() + 0.5) / 10_000
    mean = float(dithered_square_error(grid, steps).mean())
    assert mean == pytest.approx(1 / (6 * steps**2), rel=1e-3)


def test_at_one_step_dithering_is_the_bernoulli_code():
    x = uniform(0, 50)
    torch.testing.assert_close(dithered_square_error(x, 1), square_error(BernoulliCode(1), x))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_a_leaky_neuron_is_silent_below_its_dead_zone(decay):
    def count(drive, steps=2000):
        v, spikes = 0.0, 0
        for _ in range(steps):
            v = decay * v + drive
            fired = v >= 1
            v, spikes = v - fired, spikes + fired
        return spikes

    edge = rheobase(decay)
    assert edge == pytest.approx(1 - decay)
    assert count(edge * 0.999) == 0  # x T would be 2 to 999
    assert count(edge * 1.01) > 0


# The projection law.


def hadamard(order):
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(order):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(len(h))


def rates(basis, seed=0, rows=400, reach=0.5):
    """Rates around 1/2 that vary in the columns of ``basis`` only, each as much."""
    signs = torch.randint(2, (rows, basis.shape[1]), generator=seeded(seed)).double() * 2 - 1
    return 0.5 + reach * (signs / basis.shape[1]) @ (basis / basis.abs().amax()).T


def simulate(x, rank, steps, code=BernoulliCode, project=True, repeats=20):
    """Measured mean square error per coordinate."""
    mean = x.mean(0)
    axes = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors[:, x.shape[1] - rank :]
    total = 0.0
    for i in range(repeats):
        got = quantize(code(steps), x, i) - mean
        total += float(((got @ axes @ axes.T if project else got) + mean - x).square().mean())
    return total / repeats


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("steps", [1, 4, 32])
def test_the_projection_law_is_the_measured_error(rank, steps):
    x = (0.5 + 0.15 * torch.randn(400, 8, generator=seeded(1), dtype=torch.float64)
         * torch.tensor([2.0, 1.5, 1, 1, 0.5, 0.3, 0.2, 0.1])).clamp(0, 1)  # fmt: skip
    law = projection_law(x, rank)
    assert simulate(x, rank, steps) == pytest.approx(law.mean_square_error(steps), rel=0.05)
    assert (law.floor > 0) == (rank < 8)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_incoherent_form_is_sharp_with_a_hadamard_basis(rank):
    x = rates(hadamard(4)[:, :rank], seed=rank)
    law = projection_law(x, rank)
    spread, variance = float((x * (1 - x)).mean()), float(x.var(0, correction=0).mean())
    parts = incoherent_law(rank, 16, spread, variance, 1.0)
    assert parts.noise == pytest.approx(law.noise, rel=1e-6)
    assert (parts.floor, law.floor) == (0, pytest.approx(0, abs=1e-12))
    steps = parts.steps(0.05)
    assert parts.mean_square_error(steps) <= 0.05**2
    assert steps == 1 or parts.mean_square_error(steps - 1) > 0.05**2
    assert simulate(x, rank, 4) == pytest.approx(parts.mean_square_error(4), rel=0.05)


def test_the_incoherent_form_fails_where_few_coordinates_vary():
    # 4 of 16 coordinates vary, the others are silent: the noise is all in the subspace.
    x = torch.cat([uniform(0, 400, 4), torch.zeros(400, 12, dtype=torch.float64)], 1)
    law = projection_law(x, 4)
    parts = incoherent_law(4, 16, float((x * (1 - x)).mean()), float(x.var(0).mean()), 1.0)
    assert law.noise == pytest.approx(parts.noise * 16 / 4, rel=1e-6)
    assert simulate(x, 4, 4) == pytest.approx(law.mean_square_error(4), rel=0.05)


def test_without_a_projecting_decoder_effective_dimension_does_not_matter():
    errors = []
    for rank in (1, 4, 16):
        x = rates(hadamard(4)[:, :rank], seed=rank, reach=0.2)
        errors.append(simulate(x, rank, 4, project=False))
        assert errors[-1] == pytest.approx(float((x * (1 - x)).mean()) / 4, rel=0.05)
    assert max(errors) < 1.2 * min(errors)


def test_the_law_is_not_that_of_integrate_and_fire_trains():
    x = uniform(3, 400, 8)
    law = projection_law(x, 8)
    assert simulate(x, 8, 32, RateCode, repeats=1) < law.mean_square_error(32) / 20


@given(st.floats(1e-6, 0.25), st.floats(0, 0.1), st.floats(1e-3, 1))
def test_the_steps_reach_the_error_and_one_fewer_does_not(noise, floor, extra):
    law = ProjectionLaw(noise, floor)
    error = math.sqrt(floor) + extra
    steps = law.steps(error)
    assert law.mean_square_error(steps) <= error**2 * (1 + 1e-9)
    assert steps == 1 or law.mean_square_error(steps - 1) > error**2 * (1 - 1e-9)


def test_the_published_rule_asks_for_thousands_of_steps():
    assert published_steps(47.0, 0.1) == 10_810
    assert published_steps(89.0, 0.1) == 20_470
    # T = 4, as recommended, at errors where values lie in [0, 1]:
    for dimension, error in ((47.0, 5.2), (68.0, 6.26), (89.0, 7.16)):
        assert published_steps(dimension, error) == 4
    # Ours for the same dimension, in 384 channels at their most noisy.
    assert incoherent_law(47, 384, 0.25, 0.0, 1.0).steps(0.1) == 4


# Lower bounds.


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.5))
def test_the_mean_of_bernoulli_spikes_meets_cramer_rao(rate, error):
    steps = bernoulli_steps(rate, error)
    assert rate * (1 - rate) / max(steps, 1) <= error**2 * (1 + 1e-9)
    assert steps == 1 or rate * (1 - rate) / (steps - 1) > error**2 * (1 - 1e-9)


def test_the_bernoulli_bound_is_not_one_of_spikes():
    error = PhaseCode(8).mean_square_error ** 0.5
    assert error == pytest.approx(1.13e-3, rel=0.01)
    assert bernoulli_steps(0.5, error) > 190_000
    assert count_steps(error) == 254  # any count needs 32 times the phase code's 8 steps


@given(st.floats(1e-3, 0.28))
def test_equal_cells_meet_the_bound_of_counts_and_the_rate_code_needs_one_more(error):
    steps = count_steps(error)
    assert 1 / (12 * (steps + 1) ** 2) <= error**2 * (1 + 1e-9)
    assert steps == 0 or 1 / (12 * steps**2) > error**2 * (1 - 1e-9)
    if steps:
        assert RateCode(steps + 1).mean_square_error <= error**2 * (1 + 1e-9)
        assert RateCode(steps).mean_square_error > error**2 * (1 - 1e-9)


def test_rate_distortion_by_hand():
    assert rate_distortion(torch.ones(4), 1.0) == pytest.approx(4)  # w = 1/4: one bit each
    assert rate_distortion(torch.tensor([4.0, 0.25]), 0.5) == pytest.approx(2)  # w = 1/4
    assert rate_distortion(torch.tensor([4.0, 0.1]), 0.6) == pytest.approx(1.5)  # w = 1/2
    assert rate_distortion(torch.tensor([4.0, 0.0]), 4.0) == 0


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.floats(1e-3, 0.99))
def test_the_level_of_the_water_spends_the_error(variances, part):
    l = torch.tensor(variances, dtype=torch.float64)  # noqa: E741
    total = part * float(l.sum())
    bits = rate_distortion(l, total)
    low, high = 0.0, float(l.max())
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if float(l.clamp_max(level).sum()) < total else (low, level)
    assert bits == pytest.approx(float((l / high).log2().clamp_min(0).sum() / 2), abs=1e-6)
    assert rate_distortion(l, total * 0.9) > bits


def test_a_spike_carries_more_than_a_bit():
    assert spike_bits(8, 8) == 8  # the phase code: all trains, 4 spikes on average
    assert spike_bits(1, 255) == 8  # one spike in 256 values: its time is eight bits
    assert fewest_spikes(8.0, 255) == 1
    assert fewest_spikes(8.0, 8) == 8
    assert fewest_spikes(0.0, 8) == 0
    x = uniform(0, 4000)
    assert float(PhaseCode(8).count(x).double().mean()) == pytest.approx(4, abs=0.1)


@given(st.integers(1, 60), st.data())
def test_fewest_spikes_is_the_inverse(slots, data):
    bits = data.draw(st.floats(0, slots))
    spikes = fewest_spikes(bits, slots)
    assert spike_bits(spikes, slots) >= bits - 1e-9
    assert spikes == 0 or spike_bits(spikes - 1, slots) < bits


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ProjectionLaw(0.1, 0.25).steps(0.5), "above its floor, 0.5, got 0.5"),
        (lambda: ProjectionLaw(0.1, 0.0).steps(-1.0), "got -1"),
        (lambda: projection_law(torch.ones(1, 3), 1), "at least 2 rows, got 1"),
        (lambda: projection_law(torch.full((3, 3), math.nan), 1), "outside or NaN"),
        (lambda: projection_law(torch.ones(3, 3), 4), "a rank from 1 to 3, got 4"),
        (lambda: incoherent_law(2, 4, 0.3, 1.0, 1.0), "got 2, 4, 0.3, 1 and 1"),
        (lambda: published_steps(0.0, 0.1), "got 0 and 0.1"),
        (lambda: rheobase(1.5), "got 1.5"),
        (lambda: dithered_square_error(torch.ones(1), 0), "steps >= 1, got 0"),
        (lambda: bernoulli_steps(2.0, 0.1), "a rate in"),
        (lambda: count_steps(0.0), "above 0 and finite, got 0"),
        (lambda: rate_distortion(torch.tensor([-1.0]), 0.1), "variances of at least 0"),
        (lambda: spike_bits(3, 2), "from 0 to 2 slots, got 3"),
        (lambda: fewest_spikes(9.0, 8), "from 0 to 8 slots, got 9"),
        (lambda: square_error(RateCode(4), torch.tensor([1.5])), r"\[0, 1\], got 1.5"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(RangeError, match=text):
        call()
