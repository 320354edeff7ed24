"""Spiking layers that turn one burst into the next: wheel and RDLIF neurons, event by event.

A burst is an order of input neurons and the times of their spikes. Shunting inhibition weakens
every later spike by ``alpha``; reset inhibition stops a layer after N spikes, so that its output is
an N-of-M order. Between two input spikes a neuron's activation has a closed form: there is no time
step.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.codes.orders import check_alpha
from isospike.errors import RangeError, ShapeError
from isospike.kernels.machine import bursts
from isospike.kernels.machine.locations import largest

KINDS = ("wheel", "rdlif")
Burst = tuple[Any, Any, Any]  # of every spike: the neuron, its gain, its time


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
    fired = np.empty(len(weights))
    arrived = np.zeros(len(weights))
    bursts.wheel(*_events(weights, order, times, alpha), threshold, slope, start, arrived, fired)
    return torch.from_numpy(fired).to(times.dtype)


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
    fired, peaks, last = np.empty((3, len(weights)))
    bursts.rdlif(
        *_events(weights, order, times, alpha), threshold, tau_rate, tau, fired, peaks, last
    )
    return torch.from_numpy(fired).to(times.dtype)


class SpikingLayer:
    """A layer that answers every burst with the burst of its first ``fire`` neurons.

    Threshold and time constant are chosen once, from bursts like those it will hear:

    =====  ======================================================================================
    wheel  slope = H / fire and threshold = H + slope * span, with span the longest burst and H
           more than any neuron can receive: exactly the abstract order (:func:`wheel_times`)
    rdlif  time constants of ten spans, and the lowest threshold that no neuron reaches before the
           last input spike of any of the bursts
    =====  ======================================================================================

    Attributes:
        weights: ``[in, out]``, not negative; may change later.
        fire: Output spikes after which the layer is reset.
        threshold, slope, tau: See the table.

    Args:
        kind: ``wheel`` or ``rdlif``.
        sample: Bursts, each the input neurons, gains and times of its spikes.
        strongest: Weight of the strongest neuron that may come to be, if not one there already;
            it hears every spike.

    Reference: as :func:`wheel_times` and :func:`rdlif_times`.
    """

    def __init__(
        self,
        kind: str,
        weights: Any,
        fire: int,
        sample: list[Burst],
        strongest: float | None = None,
    ) -> None:
        if kind not in KINDS:
            raise RangeError(f"a spiking layer needs wheel or rdlif, got {kind!r}.")
        sample = [burst for burst in sample if len(burst[0])]
        if not sample:
            raise RangeError(
                "a spiking layer needs bursts to choose its threshold from, got none: no neuron of "
                "the layer before fires. Give that one more connections."
            )
        self.kind, self.weights, self.fire = kind, weights, fire
        span = max(float(times[-1] - times[0]) for _, _, times in sample)
        most = max(float(gain.sum()) for _, gain, _ in sample)
        self.slope, self.tau, self.threshold = 1.0, 10 * max(span, 1.0), math.inf
        if kind == "wheel":
            h = 1.001 * most * float(weights.max() if strongest is None else strongest)
            self.slope = h / fire
            self.threshold = h + self.slope * span
            return
        lowest = 0.0
        if strongest is not None:
            weights = np.full((len(weights), 1), strongest)
        for rows, gain, times in sample:
            fired, peaks, last = np.empty((3, weights.shape[1]))
            bursts.rdlif(
                weights, rows, gain, times - times[0], math.inf, self.tau, self.tau, fired, peaks,
                last,
            )  # fmt: skip
            lowest = max(lowest, float(last.max()))
        self.threshold = lowest

    def times(self, burst: Burst) -> Any:
        """When each neuron fires after the first input spike; infinity if never."""
        rows, gain, times = burst
        fired, peaks, last = np.empty((3, self.weights.shape[1]))
        if len(rows) == 0:
            fired[:] = math.inf
        elif self.kind == "wheel":
            # Summed in the precision of the abstract layer: equal sums stay equal.
            double = self.weights.dtype == np.float64
            arrived = np.empty(len(fired), np.float64 if double else np.float32)
            bursts.wheel(
                self.weights, rows, gain, times - times[0], self.threshold, self.slope, 0.0,
                arrived, fired,
            )  # fmt: skip
        else:
            bursts.rdlif(
                self.weights, rows, gain, times - times[0], self.threshold, self.tau, self.tau,
                fired, peaks, last,
            )  # fmt: skip
        return fired

    def run(self, burst: Burst) -> tuple[Any, Any]:
        """The neurons that fire until the layer is reset, in order, and when."""
        fired = self.times(burst)
        order = np.empty(min(self.fire, len(fired)), np.int64)
        largest(-fired, len(order), order)
        order = order[np.isfinite(fired[order])]
        return order, fired[order]

    def activity(self, fired: Any, burst: Burst) -> Any:
        """What the neurons received, read from their times: the sooner, the more."""
        _, gain, times = burst
        if len(times) == 0:
            return np.zeros(len(fired))
        if self.kind == "wheel":
            return self.threshold - self.slope * fired
        mean = times[0] + gain @ (times - times[0]) / gain.sum()  # as if all arrived there
        late = np.where(np.isfinite(fired), times[0] + fired - mean, 1.0)
        reach = late * np.exp(-late / self.tau)
        return np.where(np.isfinite(fired), self.threshold / reach, 0.0)


def first_spikes(times: Float[Tensor, "out"], n: int) -> Int[Tensor, "k"]:
    """The order of the first ``n`` neurons to fire: reset inhibition; ties by index. Shorter if
    fewer fire."""
    if n < 1:
        raise RangeError(f"first_spikes needs n >= 1, got {n}.")
    order = times.argsort(stable=True)[:n]
    return order[times[order].isfinite()]


def _events(weights: Tensor, order: Tensor, times: Tensor, alpha: float) -> tuple[Any, ...]:
    """What the kernels take: weights by input neuron, and row, gain and time of every event."""
    gain = alpha ** np.arange(len(order), dtype=np.float64)
    rows = weights.T.double().contiguous().numpy()
    return rows, order.long().numpy(), gain, times.double().numpy()


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
