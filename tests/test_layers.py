"""Wheel and RDLIF layers: against the abstract code, and against integration by others."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from isospike.codes.orders import nof_m, random_orders, significance
from isospike.errors import RangeError, ShapeError
from isospike.kernels.machine import bursts
from isospike.memory.layers import first_spikes, rdlif_times, wheel_times

seeds = st.integers(0, 2**31)
alphas = st.sampled_from([0.5, 0.9, 0.99, 1.0])


def burst(seed, outputs=40, inputs=24, spikes=11):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(outputs, inputs, generator=draw, dtype=torch.float64)
    order = random_orders(1, spikes, inputs, draw)[0]
    times = torch.rand(spikes, generator=draw, dtype=torch.float64).sort().values
    return weights, order, times


@given(seeds, alphas, st.floats(0.1, 10))
def test_above_the_stated_threshold_a_wheel_layer_is_nof_m(seed, alpha, slope):
    weights, order, times = burst(seed)
    h = weights @ significance(order, 24, alpha)
    threshold = float(h.max() + slope * times[-1]) * (1 + 1e-9)
    got = wheel_times(weights, order, times, alpha=alpha, threshold=threshold, slope=slope)
    assert (got - (threshold - h) / slope).abs().max() < 1e-12 * max(1, threshold / slope)
    assert torch.equal(first_spikes(got, 11), nof_m(h, 11))


@given(seeds, st.floats(0.2, 1.2))
def test_a_wheel_fires_when_its_activation_reaches_the_threshold(seed, share):
    weights, order, times = burst(seed)
    threshold = share * float((weights @ significance(order, 24, 0.9)).max())
    fired = wheel_times(weights, order, times, alpha=0.9, threshold=threshold)
    gain = 0.9 ** torch.arange(11, dtype=torch.float64)

    def activation(t):
        arrived = (times <= t[:, None]) * gain
        return t + (weights[:, order] * arrived).sum(1)

    assert (activation(fired) >= threshold - 1e-12).all()
    assert (activation(fired - 1e-9) < threshold).all()


def test_a_wheel_by_hand():
    # Weight 2 at time 1, then slope 1: 1 + 2 = 3 at once; the other reaches 4 at time 4.
    weights = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    got = wheel_times(weights, torch.tensor([0]), torch.tensor([1.0]).double(), alpha=1.0,
                      threshold=3.0)  # fmt: skip
    assert got.tolist() == [1.0, 3.0]


@pytest.mark.parametrize(("tau_rate", "tau"), [(0.5, 2.0), (2.0, 0.5), (1.0, 1.0), (0.7, 0.7001)])
@pytest.mark.parametrize("seed", range(3))
def test_rdlif_crossings_agree_with_numerical_integration(tau_rate, tau, seed):
    weights, order, times = burst(seed, outputs=6)
    threshold = 0.9
    got = rdlif_times(weights, order, times, alpha=0.9, threshold=threshold, tau_rate=tau_rate,
                      tau=tau)  # fmt: skip

    def crossing(t, y):
        return y[1] - threshold

    crossing.terminal, crossing.direction = True, 1
    for i in range(6):
        y, found = [0.0, 0.0], math.inf
        ends = [*times.tolist()[1:], float(times[-1]) + 20]
        for rank, (start, end) in enumerate(zip(times.tolist(), ends, strict=True)):
            y[0] += float(weights[i, order[rank]]) * 0.9**rank
            solved = solve_ivp(
                lambda _, y: [-y[0] / tau_rate, y[0] - y[1] / tau], (start, end), y,
                rtol=1e-11, atol=1e-13, events=crossing,
            )  # fmt: skip
            if len(solved.t_events[0]):
                found = solved.t_events[0][0]
                break
            y = solved.y[:, -1].tolist()
        assert got[i].item() == pytest.approx(found, abs=1e-8)


@given(seeds)
def test_rdlif_activation_at_the_spike_is_the_threshold(seed):
    weights, order, times = burst(seed)
    got = rdlif_times(weights, order, times, alpha=0.9, threshold=0.8, tau_rate=1.0, tau=2.0)
    s = (got[:, None] - times).clamp_min(0)
    kernel = 2 * (torch.exp(-s / 2) - torch.exp(-s))
    gain = 0.9 ** torch.arange(11, dtype=torch.float64)
    at = (weights[:, order] * gain * kernel).sum(1)
    assert (at[got.isfinite()] - 0.8).abs().max() < 1e-12


@given(seeds, st.floats(0.05, 1.5), st.sampled_from([0.3, 2.0, 50.0]), st.integers(1, 40))
def test_sums_and_a_horizon_find_what_every_neuron_followed_by_itself_does(seed, share, tau, count):
    """Thresholds that are reached before the burst is complete, after it, and never."""
    weights, order, times = (x.numpy() for x in burst(seed))
    rows, gain = weights.T * (weights.T > 0.4), 0.9 ** np.arange(11)
    sums, (fired, few) = np.empty((2, 40)), np.empty((2, 40))
    bursts.receive(rows, order, gain, times, tau, tau, sums)
    highest = max(sums[1].max(), tau * sums[0].max() / math.e)
    about = order, gain, times, share * highest, tau, tau
    bursts.rdlif(rows, *about, sums, fired, 40)
    bursts.rdlif(rows, *about, sums, few, count)
    alone = [bursts._rdlif_spike(rows, *about[:3], i, *about[3:]) for i in range(40)]
    assert fired.tolist() == pytest.approx(alone, rel=1e-9)
    first = np.sort(fired, kind="stable")[:count]
    assert np.array_equal(np.sort(few, kind="stable")[:count], first)
    assert np.array_equal(few[few <= first[-1]], fired[few <= first[-1]])


@given(seeds, st.floats(0.1, 2.5))
def test_a_wheel_summed_at_once_is_the_wheel_followed_by_itself(seed, share):
    weights, order, times = (x.numpy() for x in burst(seed))
    rows, gain = weights.T - 0.3, 0.9 ** np.arange(11)
    threshold = share * float((gain @ rows[order]).max()) + 0.1
    sums, fired = np.empty((2, 40)), np.empty(40)
    bursts.wheel(rows, order, gain, times, threshold, 1.0, 0.0, sums, fired)
    for i in range(40):
        alone = bursts._wheel_spike(rows, order, gain, times, i, threshold, 1.0, 0.0, fired)
        assert fired[i] == alone


def test_a_burst_that_lasts_longer_than_numbers_reach_is_followed_to_its_end():
    weights = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    times = torch.tensor([0.0, 1e6], dtype=torch.float64)  # exp(1e6 / 20) is infinite
    got = rdlif_times(weights, torch.tensor([0, 1]), times, alpha=1.0, threshold=5.0)
    once = rdlif_times(weights[:1, :1], torch.tensor([0]), times[:1], alpha=1.0, threshold=5.0)
    assert got[0] == once[0]
    assert got[1] - 1e6 == pytest.approx(float(once[0]), abs=1e-9)


def test_rdlif_with_slow_neurons_fires_in_the_order_of_the_abstract_code():
    weights, order, times = burst(0)
    h = weights @ significance(order, 24, 0.9)
    got = rdlif_times(weights, order, times * 1e-6, alpha=0.9, threshold=5.0, tau=1e3, tau_rate=1e3)
    assert torch.equal(first_spikes(got, 11), nof_m(h, 11))


def test_rdlif_neurons_that_never_reach_the_threshold_stay_silent():
    weights, order, times = burst(1)
    got = rdlif_times(weights, order, times, alpha=0.9, threshold=1e6)
    assert got.isinf().all()
    assert first_spikes(got, 11).numel() == 0
    silent = rdlif_times(weights * 0, order, times, alpha=0.9, threshold=1.0)
    assert silent.isinf().all()


def test_bad_bursts_are_refused():
    weights, order, times = burst(0)
    good = {"alpha": 0.9, "threshold": 1.0}
    with pytest.raises(RangeError, match="in order"):
        wheel_times(weights, order, times.flip(0), **good)
    with pytest.raises(RangeError, match="slope"):
        wheel_times(weights, order, times, **good, slope=0.0)
    with pytest.raises(RangeError, match="threshold"):
        wheel_times(weights, order, times, alpha=0.9, threshold=0.0)
    with pytest.raises(RangeError, match="after start"):
        wheel_times(weights, order, times, **good, start=5.0)
    with pytest.raises(RangeError, match="alpha"):
        rdlif_times(weights, order, times, alpha=0.0, threshold=1.0)
    with pytest.raises(RangeError, match="weights >= 0"):
        rdlif_times(-weights, order, times, **good)
    with pytest.raises(RangeError, match="time constants"):
        rdlif_times(weights, order, times, **good, tau=0.0)
    with pytest.raises(RangeError, match="n >= 1"):
        first_spikes(times, 0)


def test_a_time_for_every_spike():
    weights, order, times = burst(0)
    with pytest.raises((ShapeError, TypeError)):  # jaxtyping's check, in tests, comes first
        wheel_times(weights, order, times[:-1], alpha=0.9, threshold=1.0)


@pytest.mark.parametrize("apart", [1e-16, 1e-15, 1e-12, 1e-9, -1e-15, -1e-12])
def test_two_time_constants_that_are_nearly_one_give_its_spikes(apart):
    """0.1 * 3 is not 0.3; the difference of two exponentials would be rounding alone."""
    weights, order, times = burst(1, outputs=6)
    options = {"alpha": 0.9, "threshold": 0.9, "tau_rate": 4.0}
    same = rdlif_times(weights, order, times, tau=4.0, **options)
    near = rdlif_times(weights, order, times, tau=4.0 * (1 + apart), **options)
    assert same.isfinite().any()
    torch.testing.assert_close(near, same, rtol=1e-8, atol=1e-8)
