"""The inner loops of a sequence machine whose layers are spiking neurons."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from isospike.kernels.machine import stream
from isospike.kernels.machine.bursts import answer, fire, received
from isospike.kernels.machine.handle import parts
from isospike.kernels.machine.locations import OR, largest, write_counters


class Layers(NamedTuple):
    """The neurons of a machine, and the bursts of the present context.

    Attributes:
        former: Neurons that form the context; of a register, which has none, any.
        chooser: Neurons of the locations.
        output: Data neurons.
        times: When the context's neurons fired; infinity where fewer did.
        spikes: When the active locations fired, after the context's first spike; likewise.
        ones: Gain of each location where marks are counted.
    """

    former: Any
    chooser: Any
    output: Any
    times: Any
    spikes: Any
    ones: Any


@njit(cache=True, nogil=True)
def fired(times):
    """How many of the times, in order, are those of spikes."""
    n = len(times)
    while n > 0 and times[n - 1] == np.inf:
        n -= 1
    return n


@njit(cache=True, nogil=True)
def meet(old, order, gain_old, times, code, gain_new):
    """The burst of the old context and that of a symbol's code, which start together.

    Rows of the symbol come after the ``old`` ones of the context.
    """
    k, n = len(order), len(code)
    rows, when = np.empty(k + n, np.int64), np.empty(k + n)
    gain = np.empty(k + n, gain_old.dtype)
    i, r = 0, 0
    for j in range(k + n):
        if r == n or (i < k and times[i] - times[0] <= r):
            rows[j], gain[j], when[j] = order[i], gain_old[i], times[i] - times[0]
            i += 1
        else:
            rows[j], gain[j], when[j] = old + code[r], gain_new[r], r
            r += 1
    return rows, gain, when


@njit(cache=True, nogil=True)
def choose(fixed, state, layers):
    """Let the locations of the present context fire."""
    n = fired(layers.times)
    answer(
        layers.chooser, state.context[:n], fixed.gain_context[:n], layers.times[:n], state.active,
        layers.spikes,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def advance(fixed, state, work, layers, symbol):
    """Put ``symbol`` into the context, and let the locations of the new context fire."""
    if fixed.kind == stream.SHIFT:
        stream.shift(fixed, state, work, symbol)
        for i in range(len(layers.times)):
            layers.times[i] = i
    else:
        n = fired(layers.times)
        rows, gain, when = meet(
            len(fixed.old), state.context[:n], fixed.gain_old[:n], layers.times[:n],
            fixed.codes[symbol], fixed.gain_new,
        )  # fmt: skip
        answer(layers.former, rows, gain, when, state.context, layers.times)
    choose(fixed, state, layers)


@njit(cache=True, nogil=True)
def score(fixed, state, work, layers):
    """Match of each symbol with what the data neurons received."""
    n = fired(layers.spikes)
    gain = layers.ones[:n] if fixed.rule == OR else fixed.sigma[:n]
    fire(layers.output, state.active[:n], gain, layers.spikes[:n], len(layers.output.fired))
    received(layers.output, gain, layers.spikes[:n], work.activity)
    stream.match_symbols(fixed, work, len(state.active))


@njit(cache=True, nogil=True)
def store(fixed, state, layers, symbol):
    """Write ``symbol`` at the locations that fired."""
    write_counters(
        state.counters, fixed.rule, fixed.decay, state.active[: fired(layers.spikes)], fixed.sigma,
        fixed.data_codes[symbol], fixed.gain_data,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def step(handle, symbol, learn, ahead, order, value):
    """Store a symbol, or only follow it, and rank what comes next if asked to; -1 is none.

    ``handle`` holds Fixed, State, Work and Layers.
    """
    fixed, state, work, layers = parts(handle)
    if learn:
        store(fixed, state, layers, symbol)
    if symbol >= 0:
        advance(fixed, state, work, layers, symbol)
    if ahead:
        score(fixed, state, work, layers)
        largest(work.scores, len(order), order)
        value[:] = work.scores[order]


@njit(cache=True, nogil=True)
def follow(handle, ids, learn, guess, match, margin, chance):
    """Predict every symbol of ``ids``, then learn it, or only follow it."""
    fixed, state, work, layers = parts(handle)
    top = np.empty(min(2, len(work.scores)), np.int64)
    for n in range(len(ids)):
        score(fixed, state, work, layers)
        stream.note(work.scores, ids[n], top, n, guess, match, margin, chance)
        if learn:
            store(fixed, state, layers, ids[n])
        advance(fixed, state, work, layers, ids[n])
