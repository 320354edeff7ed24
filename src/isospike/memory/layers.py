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
from isospike.errors import InputError, IsospikeError, RangeError, ShapeError
from isospike.kernels.machine import bursts
from isospike.tensors import check_floating, check_whole

ABSTRACT = "abstract"  # layers that compute the order directly, without spikes in time
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

    Args:
        weights: ``[out, in]``.
        order: The input neurons that fire, in their order.
        times: When they fire.
        alpha: Gain of a spike over that of the spike before (shunting inhibition), in (0, 1].
        threshold: Activation at which a neuron fires, above 0.
        slope: Charge per unit of time, above 0.
        start: Time at which charging starts, not after the first spike.

    Returns:
        The time of each output neuron's spike.

    Raises:
        InputError: Something is not a tensor.
        RangeError: A number outside its range or not finite, a neuron that has no weights, times
            before ``start`` or not in order.
        ShapeError: ``order`` and ``times`` differ in length, or weights are no matrix.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[2.0], [0.0]])
        >>> wheel_times(weights, torch.tensor([0]), torch.tensor([1.0]), alpha=1.0, threshold=4.0)
        tensor([2., 4.])

    Reference: Bose, Furber, Shapiro (2005), A system for transmitting a coherent burst activity.
    """
    _check_burst("wheel_times", weights, order, times, alpha, threshold)
    if not 0 < slope < math.inf:
        raise RangeError(f"wheel_times needs slope > 0, got {slope}. Use 1, for example.")
    if len(times) and float(times[0]) < start:
        raise RangeError(
            f"wheel_times needs spikes at or after start={start}, got {float(times[0])}. Give an "
            "earlier start."
        )
    sums, fired = np.empty((2, len(weights))), np.empty(len(weights))
    bursts.wheel(*_events(weights, order, times, alpha), threshold, slope, start, sums, fired)
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
    crossing is sought on the rise only, by Newton steps, to machine precision.

    Args:
        weights: ``[out, in]``, not negative.
        order: The input neurons that fire, in their order.
        times: When they fire.
        alpha: Gain of a spike over that of the spike before (shunting inhibition), in (0, 1].
        threshold: Activation at which a neuron fires, above 0.
        tau_rate: Time constant of the driving force, above 0.
        tau: Time constant of the activation, above 0.

    Returns:
        The time of each output neuron's first spike.

    Raises:
        InputError: Something is not a tensor.
        RangeError: A negative weight, a number that is not finite, a neuron that has no weights, a
            time constant or threshold not positive, times not in order.
        ShapeError: ``order`` and ``times`` differ in length, or weights are no matrix.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[2.0], [0.0]])
        >>> rdlif_times(weights, torch.tensor([0]), torch.tensor([0.0]), alpha=1.0, threshold=1.0)
        tensor([0.5130,    inf])

    Reference: Bose, Furber, Shapiro (2005), A spiking neural sparse distributed memory (WIRN).
    """
    _check_burst("rdlif_times", weights, order, times, alpha, threshold)
    if not (0 < tau_rate < math.inf and 0 < tau < math.inf):
        raise RangeError(
            f"rdlif_times needs time constants > 0, got {tau_rate} and {tau}. Use 20, for example."
        )
    if bool((weights < 0).any()):
        raise RangeError(
            f"rdlif_times needs weights >= 0, got {float(weights.min())}. Shift the weights, "
            "or use wheel_times."
        )
    sums, fired = np.empty((2, len(weights))), np.empty(len(weights))
    events = _events(weights, order, times, alpha)
    bursts.rdlif(*events, threshold, tau_rate, tau, sums, fired, len(fired))
    return torch.from_numpy(fired).to(times.dtype)


class SpikingLayer:
    """A layer that answers every burst with the burst of its first ``fire`` neurons.

    Threshold and time constant are chosen once, from bursts like those it will receive:

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
        weights: ``[in, out]``, not negative.
        fire: Output spikes after which the layer is reset.
        sample: Bursts, each the input neurons, gains and times of its spikes.
        strongest: Largest weight that ``weights`` may come to hold, if larger than those there now.

    Raises:
        InputError: An unknown kind of neuron.
        RangeError: No burst in the sample has a spike.

    Example:
        >>> import numpy as np
        >>> burst = np.array([1, 0]), np.array([1.0, 0.5]), np.array([0.0, 1.0])
        >>> layer = SpikingLayer("wheel", np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]]), 2, [burst])
        >>> order, times = layer.run(burst)
        >>> order.tolist()
        [1, 2]

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
            raise InputError(
                f"SpikingLayer needs a kind of {', '.join(KINDS)}, got {kind!r}. Use one of them."
            )
        sample = [burst for burst in sample if len(burst[0])]
        if not sample:
            raise RangeError(
                "SpikingLayer needs bursts to choose its threshold from, got none: no neuron of "
                "the layer before fires. Give that one more connections."
            )
        self.kind, self.weights, self.fire = kind, weights, fire
        span = max(float(times[-1] - times[0]) for _, _, times in sample)
        most = max(float(gain.sum()) for _, gain, _ in sample)
        self.slope, self.tau = 1.0, 10 * max(span, 1.0)
        if kind == "wheel":
            h = 1.001 * most * float(weights.max() if strongest is None else strongest)
            self.slope = h / fire
            self.threshold = h + self.slope * span
        else:
            if strongest is not None:
                weights = np.full((len(weights), 1), strongest)
            self.threshold = self._lowest_safe_threshold(weights, sample)

    @property
    def neurons(self) -> bursts.Neurons:
        """The layer as compiled loops take it, with room for what they sum."""
        out = self.weights.shape[1]
        # A wheel sums in the precision of the abstract layer: equal sums stay equal.
        double = self.kind == "rdlif" or self.weights.dtype == np.float64
        sums = np.empty((2, out), np.float64 if double else np.float32)
        return bursts.Neurons(
            KINDS.index(self.kind), float(self.threshold), float(self.slope), float(self.tau),
            self.weights, sums, np.empty(out),
        )  # fmt: skip

    def times(self, burst: Burst) -> Any:
        """When each neuron fires.

        Args:
            burst: Input neurons, gains and times, the first spike first.

        Returns:
            Times after the first input spike, ``[out]``; infinity for a neuron that does not fire.
        """
        neurons = self.neurons
        bursts.fire(neurons, *burst, len(neurons.fired))
        return neurons.fired

    def run(self, burst: Burst) -> tuple[Any, Any]:
        """The burst that answers a burst.

        Args:
            burst: Input neurons, gains and times, the first spike first.

        Returns:
            The neurons that fire until the layer is reset, in order, and their times.
        """
        neurons = self.neurons
        order = np.empty(min(self.fire, len(neurons.fired)), np.int64)
        times = np.empty(len(order))
        n = bursts.answer(neurons, *burst, order, times)
        return order[:n], times[:n]

    def activity(self, fired: Any, burst: Burst) -> Any:
        """What the neurons received, computed from the times at which they fire.

        Args:
            fired: Times of the neurons, from :meth:`times`.
            burst: The burst they answer.

        Returns:
            The sum of gain x weight of each neuron, ``[out]``; for RDLIF neurons about so.
        """
        activity = np.empty(len(fired))
        bursts.received(self.neurons._replace(fired=fired), *burst[1:], activity)
        return activity

    def _lowest_safe_threshold(self, weights: Any, sample: list[Burst]) -> float:
        """The largest activation with which a neuron meets the last spike of a burst."""
        lowest = 0.0
        for rows, gain, times in sample:
            sums = np.empty((2, weights.shape[1]))
            bursts.receive(weights, rows, gain, times, self.tau, self.tau, sums)
            lowest = max(lowest, float(sums[1].max()))
        return lowest


def first_spikes(times: Float[Tensor, "out"], n: int) -> Int[Tensor, "k"]:
    """The order of the first neurons to fire: what reset inhibition lets through.

    Args:
        times: When each neuron fires; infinity if never.
        n: Spikes until the reset, at least 1.

    Returns:
        The neurons, equal times by index; fewer than ``n`` if fewer fire.

    Raises:
        InputError: ``times`` is not a tensor.
        ShapeError: It has not one axis.
        RangeError: ``n < 1``, or a time is NaN.

    Example:
        >>> import torch
        >>> first_spikes(torch.tensor([3.0, 1.0, torch.inf, 2.0]), 2)
        tensor([1, 3])
    """
    check_floating("first_spikes", "times", times, read=True)
    if times.dim() != 1 or times.isnan().any():
        kind: type[IsospikeError] = ShapeError if times.dim() != 1 else RangeError
        raise kind(
            f"first_spikes needs times [neurons], infinity for none, got shape "
            f"{tuple(times.shape)} and {int(times.isnan().sum())} NaN. Give one layer's times."
        )
    if n < 1:
        raise RangeError(f"first_spikes needs n >= 1, got {n}. Use 1 for the winner alone.")
    order = times.argsort(stable=True)[:n]
    return order[times[order].isfinite()]


def _events(weights: Tensor, order: Tensor, times: Tensor, alpha: float) -> tuple[Any, ...]:
    """Weights by input neuron, and row, gain and time of every event, as the loops take them."""
    gain = alpha ** np.arange(len(order), dtype=np.float64)
    rows = weights.T.double().contiguous().numpy()
    return rows, order.long().numpy(), gain, times.double().numpy()


def _check_burst(
    who: str, weights: Tensor, order: Tensor, times: Tensor, alpha: float, threshold: float
) -> None:
    check_alpha(alpha, who)
    check_floating(who, "weights", weights, read=True)
    check_whole(who, "order", order, read=True)
    check_floating(who, "times", times, read=True)
    if order.shape != times.shape or order.dim() != 1:
        raise ShapeError(
            f"{who} needs one time per spike, got shapes {tuple(order.shape)} and "
            f"{tuple(times.shape)}. Give both the shape [spikes]."
        )
    if weights.dim() != 2:
        raise ShapeError(
            f"{who} needs weights [out, in], got {tuple(weights.shape)}. Add the missing axis."
        )
    inputs = weights.shape[1]
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < inputs:
        raise RangeError(
            f"{who} needs input neurons in [0, {inputs}), got {int(order.min())} to "
            f"{int(order.max())}. Number them from 0."
        )
    for name, x in {"weights": weights, "times": times}.items():
        if not x.isfinite().all():
            raise RangeError(
                f"{who} needs finite {name}, got {int((~x.isfinite()).sum())} of {x.numel()} that "
                "are not. Leave them out."
            )
    if not 0 < threshold < math.inf:
        raise RangeError(f"{who} needs a finite threshold > 0, got {threshold}. Use 1.")
    if bool((times.diff() < 0).any()):
        raise RangeError(
            f"{who} needs spike times in order, got a later one first. Sort the burst first."
        )
