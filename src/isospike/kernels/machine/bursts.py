"""First spikes of a layer that receives a burst: wheel and RDLIF neurons, event by event.

A burst is a list of events in time: the row of weights that a spike delivers, its gain (shunting
inhibition weakens later spikes) and its time. Between events the activation has a closed form.
"""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def wheel(weights, rows, gain, times, threshold, slope, start, arrived, fired):
    """Neuron i fires when ``slope (t - start)`` and what has arrived reach the threshold.

    ``arrived`` is scratch, in the precision in which weights are to be summed.
    """
    arrived[:] = 0
    fired[:] = np.inf
    for j in range(len(rows) + 1):
        lower = times[j - 1] if j > 0 else start
        upper = times[j] if j < len(rows) else np.inf
        for i in range(len(fired)):
            reach = start + (threshold - arrived[i]) / slope
            if fired[i] == np.inf and reach < upper:
                fired[i] = max(reach, lower)  # a jump may be what reaches it
        if j < len(rows):
            for i in range(len(fired)):
                arrived[i] += gain[j] * weights[rows[j], i]


@njit(cache=True, nogil=True)
def _activation(a, rate, s, tau_rate, tau):
    """Activation a time ``s`` after it was ``a`` and its driving force ``rate``."""
    if tau == tau_rate:
        return (a + rate * s) * math.exp(-s / tau)
    share = tau * tau_rate / (tau - tau_rate)
    slow = math.exp(-s / tau)
    return a * slow + rate * share * (slow - math.exp(-s / tau_rate))


@njit(cache=True, nogil=True)
def time_to_peak(a, rate, tau_rate, tau):
    """When the activation, left alone, stops rising; 0 if it falls."""
    if rate <= 0:
        return 0.0
    if tau == tau_rate:
        return max(0.0, tau - a / rate)
    share = tau * tau_rate / (tau - tau_rate)
    ratio = tau * rate * share / (tau_rate * (a + rate * share))
    return max(0.0, math.log(ratio) / (1 / tau_rate - 1 / tau)) if ratio > 0 else 0.0


@njit(cache=True, nogil=True)
def _crossing(a, rate, threshold, tau_rate, tau):
    """When a rising activation reaches the threshold.

    It is concave while it rises, so that Newton steps from the left never pass the crossing.
    """
    s = 0.0
    for _ in range(100):
        level = _activation(a, rate, s, tau_rate, tau)
        rise = rate * math.exp(-s / tau_rate) - level / tau
        if level >= threshold or rise <= 0:
            break
        step = (threshold - level) / rise
        if s + step == s:
            break
        s += step
    return s


@njit(cache=True, nogil=True)
def rdlif(weights, rows, gain, times, threshold, tau_rate, tau, fired, peaks, last):
    """First spikes of RDLIF neurons, infinity if none; weights must not be negative.

    Also the largest activation each reaches, were it not reset, and the one at the last event:
    what a threshold is chosen from.
    """
    a, rate = np.zeros(len(fired)), np.zeros(len(fired))
    fired[:] = np.inf
    peaks[:] = 0
    last[:] = 0
    for j in range(len(rows)):
        span = times[j + 1] - times[j] if j + 1 < len(rows) else np.inf
        fade = math.exp(-span / tau_rate)
        for i in range(len(fired)):
            rate[i] += gain[j] * weights[rows[j], i]
            if rate[i] == 0:
                continue
            rise = min(time_to_peak(a[i], rate[i], tau_rate, tau), span)
            top = _activation(a[i], rate[i], rise, tau_rate, tau)
            peaks[i] = max(peaks[i], top)
            if fired[i] == np.inf and top >= threshold:
                fired[i] = times[j] + min(_crossing(a[i], rate[i], threshold, tau_rate, tau), rise)
            if span < np.inf:
                a[i] = _activation(a[i], rate[i], span, tau_rate, tau)
                rate[i] *= fade
    if len(rows) > 0:
        last[:] = a
