import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isospike.codes import PhaseCode, RateCode, SignedDigitCode
from isospike.porting.ranges import fit_range
from isospike.porting.sites import Site

seeds = st.integers(0, 2**31)
PAIR, SINGLE = SignedDigitCode(8), PhaseCode(8)
FINE = [SignedDigitCode(8), SignedDigitCode(12), PhaseCode(8), PhaseCode(12), RateCode(255)]


def normal(rows, channels, seed):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def heavy(rows, channels, seed):
    """A cubed Gaussian: mostly small values, some very large ones."""
    return normal(rows, channels, seed) ** 3


def ends(found, code):
    """The values that the ends of the code's range stand for."""
    return found.offset + code.low * found.scale, found.offset + found.scale


def coding_error(x, found, code):
    """Mean squared error of coding ``x`` in a range, per channel."""
    u = ((x - found.offset) / found.scale).clamp(code.low, 1.0)
    return (found.offset + found.scale * code.quantize(u) - x).square().mean(0)


def min_max(x, code):
    """The plain range: from the smallest value seen to the largest."""
    low, high = x.amin(0), x.amax(0)
    if code.neurons == 2:
        return type(fit_range(x, code))((low + high) / 2, (high - low) / 2)
    return type(fit_range(x, code))(low, high - low)


# Hand cases.


@pytest.mark.parametrize("code", [PAIR, SINGLE, SignedDigitCode(2), PhaseCode(2)])
@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 1e-3, 1e4])
def test_a_constant_channel_is_carried_exactly(code, value):
    x = torch.full((50, 3), value)
    found = fit_range(x, code)
    assert (found.scale > 0).all()
    assert found.scale.isfinite().all()
    decoded = found.offset + found.scale * code.quantize((x - found.offset) / found.scale)
    assert torch.equal(decoded, x)


@pytest.mark.parametrize("code", [PAIR, SINGLE])
def test_a_single_row_is_inside_its_range(code):
    x = normal(1, 6, 0)
    low, high = ends(fit_range(x, code), code)
    assert ((low <= x) & (x <= high)).all()
    assert fit_range(x, code).scale.isfinite().all()


@given(seeds, st.integers(1, 99))
def test_a_pair_of_many_levels_rests_at_the_median(seed, rows):
    x = heavy(rows, 4, seed)
    found = fit_range(x, PAIR)
    assert torch.equal(found.offset, x.median(0).values)


def test_a_silent_channel_costs_no_spike():
    # Zero for most inputs, as after a ReLU: the pair rests there.
    x = normal(200, 5, 3).relu() * (normal(200, 5, 4) > 0)
    site = Site("x", "linear", PAIR, (5,))
    site.fit(x)
    assert PAIR.encode_integers(site.read(torch.zeros(1, 5)).value).sum() == 0


# What the bounds promise.


@pytest.mark.parametrize("code", FINE)
@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize("rows", [2, 20, 200])
def test_many_levels_clip_no_value_of_the_sample(code, draw, rows):
    # Cutting the largest of n values by d costs d^2 / n, more than 255 levels gain from it.
    x = draw(rows, 40, 1)
    low, high = ends(fit_range(x, code), code)
    slack = 1e-3 * x.abs().amax(0)
    assert (x.amax(0) <= high + slack).all()
    assert (x.amin(0) >= low - slack).all()


@pytest.mark.parametrize("code", [SignedDigitCode(12), PhaseCode(12)])
def test_many_levels_leave_room_for_values_not_yet_seen(code):
    x, unseen = heavy(300, 40, 1), heavy(300, 40, 2)
    found = fit_range(x, code)
    low, high = ends(found, code)
    outside = ((unseen < low) | (unseen > high)).double().mean()
    plain = ((unseen < x.amin(0)) | (unseen > x.amax(0))).double().mean()
    assert outside < plain / 2
    assert (
        coding_error(unseen, found, code).mean()
        < coding_error(unseen, min_max(x, code), code).mean()
    )


@pytest.mark.parametrize(
    "code", [SignedDigitCode(2), SignedDigitCode(3), PhaseCode(3), PhaseCode(4), RateCode(8)]
)
def test_few_levels_cut_heavy_tails_and_err_less_on_fresh_data_than_the_plain_range(code):
    x, fresh = heavy(4000, 32, 5), heavy(4000, 32, 6)
    found, plain = fit_range(x, code), min_max(x, code)
    low, high = ends(found, code)
    assert ((x < low) | (x > high)).any(0).double().mean() > 0.9  # nearly every channel is cut
    ours, theirs = coding_error(fresh, found, code), coding_error(fresh, plain, code)
    assert ours.mean() < 0.7 * theirs.mean()
    assert (ours < theirs).double().mean() > 0.7


@pytest.mark.parametrize("steps", [3, 4])
def test_the_range_of_few_levels_is_near_the_best_symmetric_one(steps):
    code = SignedDigitCode(steps)
    x = normal(2000, 8, 7)
    found = fit_range(x, code)
    centre, largest = x.median(0).values, x.abs().amax(0)
    widths = torch.linspace(0.3, 1.2, 60).tolist()
    best = [coding_error(x, type(found)(centre, w * largest), code) for w in widths]
    assert (coding_error(x, found, code) < 1.15 * torch.stack(best).amin(0)).all()


@pytest.mark.parametrize("neurons", [1, 2])
def test_more_levels_never_narrow_the_range(neurons):
    x = heavy(300, 40, 9)
    kind = SignedDigitCode if neurons == 2 else PhaseCode
    scales = [fit_range(x, kind(steps)).scale for steps in (5, 6, 8, 10, 12)]
    for narrow, wide in zip(scales, scales[1:], strict=False):
        assert (wide >= narrow * (1 - 1e-6)).all()


def test_the_coding_error_of_a_uniform_channel_is_the_closed_form():
    # x uniform over [0, 1]: half a range of 1/2 about the median, error (1/2)^2 / (12 levels^2).
    x = torch.rand(4096, 8, generator=torch.Generator().manual_seed(2))
    error = coding_error(x, fit_range(x, PAIR), PAIR)
    torch.testing.assert_close(
        error, torch.full((8,), PAIR.mean_square_error / 4), rtol=0.15, atol=0
    )


# Symmetries.


@pytest.mark.parametrize("code", [PAIR, SINGLE, SignedDigitCode(3), PhaseCode(3)])
@settings(max_examples=20)
@given(seed=seeds, power=st.integers(-10, 10), shift=st.integers(-8, 8))
def test_shifting_and_scaling_the_data_shifts_and_scales_the_range(code, seed, power, shift):
    # Values and factors in few binary digits, so that the arithmetic is exact.
    x = (heavy(60, 3, seed) * 64).round() / 64
    scale = math.ldexp(1.0, power)
    found, moved = fit_range(x, code), fit_range((x + shift) * scale, code)
    torch.testing.assert_close(moved.scale, found.scale * scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        moved.offset, (found.offset + shift) * scale, rtol=1e-4, atol=1e-3 * scale
    )


@settings(max_examples=20)
@given(seeds)
def test_the_order_of_the_rows_does_not_matter(seed):
    x = heavy(50, 3, seed)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    for code in (PAIR, SINGLE):
        a, b = fit_range(x, code), fit_range(x[order], code)
        assert torch.equal(a.offset, b.offset)
        torch.testing.assert_close(a.scale, b.scale)


@settings(max_examples=20)
@given(seeds)
def test_a_channel_is_fitted_by_itself(seed):
    x = heavy(50, 4, seed)
    for code in (PAIR, SINGLE, SignedDigitCode(3)):
        whole, alone = fit_range(x, code), fit_range(x[:, 2:3], code)
        torch.testing.assert_close(whole.offset[2:3], alone.offset)
        torch.testing.assert_close(whole.scale[2:3], alone.scale)


def test_mirrored_data_of_a_pair_has_the_mirrored_range():
    x = heavy(51, 6, 8)  # an odd number of rows has one median
    a, b = fit_range(x, PAIR), fit_range(-x, PAIR)
    assert torch.equal(a.offset, -b.offset)
    assert torch.equal(a.scale, b.scale)


def test_the_sample_is_not_written_to():
    x = heavy(50, 4, 1)
    before = x.clone()
    fit_range(x, PAIR)
    fit_range(x, SINGLE)
    assert torch.equal(x, before)


# A site.


@pytest.mark.parametrize("code", [PAIR, SINGLE, SignedDigitCode(3), RateCode(20)])
def test_a_site_saturates_and_decodes_within_half_a_level(code):
    x = normal(200, 5, 3)
    site = Site("x", "linear", code, (5,))
    site.fit(x)
    integers = site.read(x).value
    decoded = site.offset + site.amplitude * integers
    low, high = site.offset + code.low * site.scale, site.offset + site.scale
    inside = (x >= low) & (x <= high)
    assert inside.any()
    half = site.amplitude.expand_as(x)[inside] / 2
    assert ((decoded - x)[inside].abs() <= half * (1 + 1e-3)).all()
    extreme = site.read(torch.tensor([[1e6], [-1e6]]).expand(2, 5)).value
    assert extreme[0].tolist() == [code.levels] * 5
    assert extreme[1].tolist() == [code.low * code.levels] * 5


def test_a_shared_site_remembers_a_tensor_only_while_it_is_unchanged():
    site = Site("x", "linear", PAIR, (5,))
    site.shared = True
    x = normal(8, 5, 0) / 4
    first = site.read(x).value
    assert site.read(x).value is first
    assert site.read(x.clone()).value is not first
    site.read(x)
    x.mul_(-1)
    assert not torch.equal(site.read(x).value, first)
    del x
    assert site._last is None
