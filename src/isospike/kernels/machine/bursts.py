"""First spikes of a layer that receives a burst: wheel and RDLIF neurons.

A burst is a list of events in time: the row of weights that a spike delivers, its gain (shunting
inhibition weakens later spikes) and its time. Between events an activation has a closed form, and
after the last one it follows from sums over all events. So a layer is summed once, and only the
few neurons that may have fired before are followed event by event.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

WHEEL, RDLIF = range(2)


class Neurons(NamedTuple):
    """A layer as the loops take it.

    Attributes:
        kind: WHEEL or RDLIF.
        threshold: Activation at which a neuron fires.
        slope: WHEEL: charge per unit of time.
        tau: RDLIF: time constant of the driving force and of the activation.
        weights: ``[in, out]``.
        sums: Scratch, ``[2, out]``, in the precision in which weights are to be summed.
        fired: When each neuron fired last, ``[out]``.
    """

    kind: int
    threshold: float
    slope: float
    tau: float
    weights: Any
    sums: Any
    fired: Any


@njit(cache=True, nogil=True)
def wheel(weights, rows, gain, times, threshold, slope, start, sums, fired):
    """Neuron i fires when ``slope (t - start)`` and what has arrived reach the threshold.

    ``sums`` receives what has arrived, and the largest that was.
    """
    sums[:] = 0
    arrived, most = sums[0], sums[1]
    for j in range(len(rows)):
        row, g = weights[rows[j]], gain[j]
        for i in range(len(arrived)):
            arrived[i] += g * row[i]
            most[i] = max(most[i], arrived[i])
    charged = slope * (times[-1] - start) if len(rows) > 0 else 0.0
    for i in range(len(fired)):
        if most[i] + charged < threshold:
            fired[i] = start + (threshold - arrived[i]) / slope
        else:
            fired[i] = _wheel_spike(weights, rows, gain, times, i, threshold, slope, start, most)


@njit(cache=True, nogil=True)
def _wheel_spike(weights, rows, gain, times, i, threshold, slope, start, precision):
    """When one neuron fires, event by event; sums have the precision of an array."""
    arrived = np.zeros_like(precision[:1])
    lower = start
    for j in range(len(rows)):
        reach = start + (threshold - arrived[0]) / slope
        if reach < times[j]:
            return max(reach, lower)  # a jump may be what reaches it
        arrived[0] += gain[j] * weights[rows[j], i]
        lower = times[j]
    return max(start + (threshold - arrived[0]) / slope, lower)


@njit(cache=True, nogil=True)
def _activation(a, rate, s, tau_rate, tau):
    """Activation a time ``s`` after it was ``a`` and its driving force ``rate``."""
    if tau == tau_rate:
        return (a + rate * s) * math.exp(-s / tau)
    apart = (tau - tau_rate) / (tau * tau_rate)  # of the two rates of decay, however near
    return math.exp(-s / tau) * (a - rate * math.expm1(-s * apart) / apart)


@njit(cache=True, nogil=True)
def _time_to_peak(a, rate, tau_rate, tau):
    """When the activation, left alone, stops rising; 0 if it falls."""
    if rate <= 0:
        return 0.0
    if tau == tau_rate:
        return max(0.0, tau - a / rate)
    apart = (tau - tau_rate) / (tau * tau_rate)
    more = apart * (rate * tau - a) / (a * apart + rate)
    return max(0.0, math.log1p(more) / apart) if more > -1 else 0.0


@njit(cache=True, nogil=True)
def _crossing(a, rate, span, threshold, tau_rate, tau):
    """When an activation reaches the threshold, if it does so within ``span``; else infinity.

    It is concave while it rises, so that Newton steps from the left never pass the crossing.
    """
    rise = min(_time_to_peak(a, rate, tau_rate, tau), span)
    if _activation(a, rate, rise, tau_rate, tau) < threshold:
        return np.inf
    s = 0.0
    for _ in range(100):
        level = _activation(a, rate, s, tau_rate, tau)
        up = rate * math.exp(-s / tau_rate) - level / tau
        if level >= threshold or up <= 0:
            break
        step = (threshold - level) / up
        if s + step == s:
            break
        s += step
    return min(s, rise)


@njit(cache=True, nogil=True)
def _rdlif_spike(weights, rows, gain, times, i, threshold, tau_rate, tau):
    """When one neuron fires, event by event; infinity if it does not."""
    a, rate = 0.0, 0.0
    for j in range(len(rows)):
        span = times[j + 1] - times[j] if j + 1 < len(rows) else np.inf
        rate += gain[j] * weights[rows[j], i]
        s = _crossing(a, rate, span, threshold, tau_rate, tau)
        if s < np.inf:
            return times[j] + s
        if span < np.inf:
            a = _activation(a, rate, span, tau_rate, tau)
            rate *= math.exp(-span / tau_rate)
    return np.inf


@njit(cache=True, nogil=True)
def receive(weights, rows, gain, times, tau_rate, tau, sums):
    """Driving force and activation of RDLIF neurons at the last event, had none fired."""
    sums[:] = 0
    rate, level = sums[0], sums[1]
    for j in range(len(rows)):
        ago = times[-1] - times[j]
        force = gain[j] * math.exp(-ago / tau_rate)
        effect = gain[j] * _activation(0.0, 1.0, ago, tau_rate, tau)
        row = weights[rows[j]]
        for i in range(len(rate)):
            rate[i] += force * row[i]
            level[i] += effect * row[i]


@njit(cache=True, nogil=True)
def rdlif(weights, rows, gain, times, threshold, tau_rate, tau, sums, fired, count):
    """First spikes of RDLIF neurons, infinity if none; weights must not be negative.

    A neuron whose activation was at the threshold before the last event has lost at most what
    leaks meanwhile: one below that has not fired yet.

    Only the ``count`` first spikes need be right; the times of others may be infinity. ``sums`` is
    that of :func:`receive`.
    """
    fired[:] = np.inf
    if len(rows) == 0:
        return
    receive(weights, rows, gain, times, tau_rate, tau, sums)
    rate, level = sums[0], sums[1]
    early = threshold * math.exp((times[0] - times[-1]) / tau)
    effect = np.inf
    if count < len(fired):
        effect = _largest_effect(rate, level, threshold, tau_rate, tau, count)
    for i in range(len(fired)):
        if level[i] >= early:
            fired[i] = _rdlif_spike(weights, rows, gain, times, i, threshold, tau_rate, tau)
        elif rate[i] > 0 and level[i] + rate[i] * effect >= threshold:
            s = _crossing(level[i], rate[i], np.inf, threshold, tau_rate, tau)
            fired[i] = times[-1] + s


@njit(cache=True, nogil=True)
def _largest_effect(rate, level, threshold, tau_rate, tau, count):
    """What a driving force of one adds to an activation at most until ``count`` neurons fired.

    Those that are ahead some time after the last event are asked when they fire; infinity if one
    does not. Leaks are left out.
    """
    soon = tau / 10
    decay, effect = math.exp(-soon / tau), _activation(0.0, 1.0, soon, tau_rate, tau)
    ahead, kept = np.empty(count), 0
    which = np.empty(count, np.int64)
    for i in range(len(rate)):
        kept = insert(-(level[i] * decay + rate[i] * effect), i, which, ahead, kept)
    last = 0.0
    for i in which:
        last = max(last, _crossing(level[i], rate[i], np.inf, threshold, tau_rate, tau))
    if last == np.inf:
        return np.inf
    return _activation(0.0, 1.0, min(last, _time_to_peak(0.0, 1.0, tau_rate, tau)), tau_rate, tau)


@njit(cache=True, nogil=True)
def insert(time, i, order, times, kept):
    """Insert a neuron that fires into the first ones, equal times by index; returns how many."""
    if kept == len(order) and not time < times[kept - 1]:
        return kept
    place = kept if kept < len(order) else kept - 1
    while place > 0 and times[place - 1] > time:
        order[place], times[place] = order[place - 1], times[place - 1]
        place -= 1
    order[place], times[place] = i, time
    return min(kept + 1, len(order))


@njit(cache=True, nogil=True)
def fire(neurons, rows, gain, times, count):
    """Write to ``neurons.fired`` when each neuron fires, in time after the first event.

    Only the ``count`` first spikes need be right, as in :func:`rdlif`.
    """
    weights, sums, fired = neurons.weights, neurons.sums, neurons.fired
    if len(rows) == 0:
        fired[:] = np.inf
        return
    after, threshold = times - times[0], neurons.threshold
    if neurons.kind == WHEEL:
        wheel(weights, rows, gain, after, threshold, neurons.slope, 0.0, sums, fired)
    else:
        rdlif(weights, rows, gain, after, threshold, neurons.tau, neurons.tau, sums, fired, count)


@njit(cache=True, nogil=True)
def answer(neurons, rows, gain, times, order, spikes):
    """The first neurons to fire, as many as ``order`` has room for, and when; returns how many.

    ``spikes`` is infinity where none fired.
    """
    fire(neurons, rows, gain, times, len(order))
    spikes[:] = np.inf
    kept = 0
    for i in range(len(neurons.fired)):
        if neurons.fired[i] < np.inf:
            kept = insert(neurons.fired[i], i, order, spikes, kept)
    return kept


@njit(cache=True, nogil=True)
def received(neurons, gain, times, activity):
    """What the neurons received, from the times at which they fired, see :func:`fire`.

    The sum of gain x weight of each neuron; for RDLIF neurons about so.
    """
    activity[:] = 0
    if len(times) == 0:
        return
    whole, mean = 0.0, 0.0  # as if all arrived at the mean time
    for j in range(len(times)):
        whole += gain[j]
        mean += gain[j] * (times[j] - times[0])
    mean /= whole
    for i in range(len(activity)):
        fired = neurons.fired[i]
        if neurons.kind == WHEEL:
            activity[i] = neurons.threshold - neurons.slope * fired
        elif fired < np.inf:
            late = fired - mean
            activity[i] = neurons.threshold / (late * math.exp(-late / neurons.tau))
