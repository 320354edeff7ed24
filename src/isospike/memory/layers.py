"""Spiking layers that turn one burst into the next: wheel and RDLIF neurons, event by event.

A burst is an order of input neurons and the times of their spikes. Shunting inhibition weakens
every later spike by ``alpha``; reset inhibition stops a layer after N spikes, so that its output is
an N-of-M order. Between two input spikes a neuron's activation has a closed form: there is no time
step.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.orders import check_alpha


def wheel_times(
    weights: Float[Tensor, "out in_"],
    order: Int[Tensor, "n"],
    times: Float[Tensor, "n"],
    *,
    alpha: float,
    threshold: float,
    slope: float = 1.0,
    start: float = 0.0,
) -> Float[Tensor, "out"]:
    """When each wheel neuron fires.

    (1)  a_i(t) = slope (t - start) + sum over spikes with t_j <= t of w_ij alpha^rank(j)

    A neuron fires when a_i reaches the threshold; it has no leak and always does. If ``threshold >
    max h + slope (t_last - start)`` with ``h = W s`` and s the significance of the input, every
    spike arrives first, ``T_i = start + (threshold - h_i) / slope``, and the first N to fire are
    ``nof_m(h, N)``. Below, strong early inputs fire neurons before the burst is complete.

    Raises:
        RangeError: ``slope`` or ``threshold`` not positive, times before ``start`` or not in order.
        ShapeError: ``order`` and ``times`` differ in length.

    Reference: Bose, Furber, Shapiro (2005), A system for transmitting a coherent burst activity.
    """
    _check_burst(order, times, alpha, threshold)
    if slope <= 0:
        raise RangeError(f"wheel_times needs slope > 0, got {slope}.")
    if len(times) and float(times[0]) < start:
        raise RangeError(f"wheel_times needs spikes after start={start}, got {float(times[0])}.")
    arrived = _arrived(weights, order, alpha)  # after 0, 1, .. n spikes
    reach = start + (threshold - arrived) / slope
    first, infinite = times.new_tensor([start]), times.new_tensor([math.inf])
    lower, upper = torch.cat([first, times]), torch.cat([times, infinite])
    # The first interval before whose end the threshold is reached; a jump may be what reaches it.
    k = (reach < upper).double().argmax(1)
    return torch.maximum(reach.gather(1, k[:, None])[:, 0], lower[k])


def rdlif_times(
    weights: Float[Tensor, "out in_"],
    order: Int[Tensor, "n"],
    times: Float[Tensor, "n"],
    *,
    alpha: float,
    threshold: float,
    tau_rate: float = 20.0,
    tau: float = 20.0,
) -> Float[Tensor, "out"]:
    """When each rate-driven leaky integrate-and-fire neuron first fires; infinity if never.

    (1)  r' = sum_j w_ij alpha^rank(j) delta(t - t_j) - r / tau_rate
    (2)  a' = r - a / tau, a spike when a reaches the threshold

    Weights must not be negative: between two spikes a then rises to one peak and falls, and the
    crossing is sought on the rise only, to machine precision by bisection.

    Raises:
        RangeError: A negative weight, a time constant or threshold not positive, times not in
            order.
        ShapeError: ``order`` and ``times`` differ in length.

    Reference: Bose, Furber, Shapiro (2005), A spiking neural sparse distributed memory (WIRN).
    """
    _check_burst(order, times, alpha, threshold)
    if min(tau_rate, tau) <= 0:
        raise RangeError(f"rdlif_times needs time constants > 0, got {tau_rate} and {tau}.")
    if bool((weights < 0).any()):
        raise RangeError(f"rdlif_times needs weights >= 0, got {float(weights.min())}.")
    jumps = _arrived(weights, order, alpha).diff(dim=1)
    rate = weights.new_zeros(len(weights))
    a = weights.new_zeros(len(weights))
    fired = weights.new_full((len(weights),), math.inf)
    for j, time in enumerate(times.tolist()):
        rate = rate + jumps[:, j]
        span = float(times[j + 1]) - time if j + 1 < len(times) else math.inf
        rise = _time_to_peak(a, rate, tau_rate, tau).clamp_max(span)
        crosses = (_activation(a, rate, rise, tau_rate, tau) >= threshold) & fired.isinf()
        low, high = torch.zeros_like(rise), rise.clone()
        for _ in range(100):
            middle = (low + high) / 2
            above = _activation(a, rate, middle, tau_rate, tau) >= threshold
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        fired = torch.where(crosses, time + high, fired)
        if math.isfinite(span):
            gap = torch.full_like(a, span)
            a = _activation(a, rate, gap, tau_rate, tau)
            rate = rate * math.exp(-span / tau_rate)
    return fired


def first_spikes(times: Float[Tensor, "out"], n: int) -> Int[Tensor, "k"]:
    """The order of the first ``n`` neurons to fire: reset inhibition; ties by index. Shorter if
    fewer fire."""
    if n < 1:
        raise RangeError(f"first_spikes needs n >= 1, got {n}.")
    order = times.argsort(stable=True)[:n]
    return order[times[order].isfinite()]


def _arrived(weights: Tensor, order: Tensor, alpha: float) -> Tensor:
    """Weighted input after 0, 1, .. n spikes, ``[out, n + 1]``."""
    shunt = alpha ** torch.arange(len(order), dtype=weights.dtype, device=weights.device)
    total = (weights[:, order] * shunt).cumsum(1)
    return torch.cat([total.new_zeros(len(weights), 1), total], 1)


def _activation(a: Tensor, rate: Tensor, s: Tensor, tau_rate: float, tau: float) -> Tensor:
    """Activation a time ``s`` after it was ``a`` and the rate ``rate``."""
    if tau == tau_rate:
        return (a + rate * s) * torch.exp(-s / tau)
    share = tau * tau_rate / (tau - tau_rate)
    return a * torch.exp(-s / tau) + rate * share * (torch.exp(-s / tau) - torch.exp(-s / tau_rate))


def _time_to_peak(a: Tensor, rate: Tensor, tau_rate: float, tau: float) -> Tensor:
    """When the activation, left alone, stops rising; 0 if it falls."""
    if tau == tau_rate:
        peak = tau - a / rate
    else:
        share = tau * tau_rate / (tau - tau_rate)
        ratio = tau * rate * share / (tau_rate * (a + rate * share))
        peak = ratio.log() / (1 / tau_rate - 1 / tau)
    return peak.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)


def _check_burst(order: Tensor, times: Tensor, alpha: float, threshold: float) -> None:
    check_alpha(alpha, "a spiking layer")
    if order.shape != times.shape or order.dim() != 1:
        raise ShapeError(
            f"a spiking layer needs one time per spike, got shapes {tuple(order.shape)} and "
            f"{tuple(times.shape)}."
        )
    if threshold <= 0:
        raise RangeError(f"a spiking layer needs threshold > 0, got {threshold}.")
    if bool((times.diff() < 0).any()):
        raise RangeError("a spiking layer needs spike times in order. Sort the burst first.")
