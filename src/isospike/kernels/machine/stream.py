"""The inner loops of the sequence machine: next context, scores of symbols, a whole stream."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from isospike.kernels.machine.handle import parts
from isospike.kernels.machine.locations import (
    OR,
    activate_locations,
    largest,
    likely_largest,
    read_counters,
    write_counters,
)

SHIFT, RECURRENT = range(2)


class Fixed(NamedTuple):
    """What never changes while a machine runs.

    Attributes:
        kind: How the context is formed: SHIFT or RECURRENT.
        codes: Order of each symbol's code, ``[symbols + 1, N]``; the last starts a sequence.
        data_codes: The same in the store, ``[symbols, d]``.
        old, new: Weights from the old context and from the symbol to the context.
        gain_old, gain_new: Significance of their spikes; SHIFT: of each age, of each spike.
        gain_context: Significance of the context's spikes at the address decoder.
        gain_data: Significance of a symbol's spikes where it is stored.
        sigma: Significance of the locations.
        decoder: The address decoder's connections.
        rule, decay: The store's rule.
    """

    kind: int
    codes: Any
    data_codes: Any
    old: Any
    new: Any
    gain_old: Any
    gain_new: Any
    gain_context: Any
    gain_data: Any
    sigma: Any
    decoder: Any
    rule: int
    decay: float


class State(NamedTuple):
    """What every symbol changes, in place.

    Attributes:
        context: The context's order.
        history: SHIFT: the last symbols, latest first.
        active: Locations that the present context activates.
        counters: The store.
    """

    context: Any
    history: Any
    active: Any
    counters: Any


class Work(NamedTuple):
    """Scratch arrays, as long as the context, the locations, the data neurons and the symbols.

    ``guess``, ``[2, 2]``: for the scores of the context and of the locations, see
    :func:`likely_largest`.
    """

    context: Any
    locations: Any
    activity: Any
    scores: Any
    guess: Any


@njit(cache=True, nogil=True)
def add_row(score, gain, row):
    """``score += gain * row``, without a temporary."""
    for j in range(len(score)):
        score[j] += gain * row[j]


@njit(cache=True, nogil=True)
def activate(fixed, state, work):
    """Choose the locations of the present context."""
    activate_locations(
        state.context, fixed.gain_context, fixed.decoder, work.locations, state.active,
        work.guess[1],
    )  # fmt: skip


@njit(cache=True, nogil=True)
def match_symbols(fixed, work, locations):
    """Match of each symbol's code with the activity of the data neurons.

    Of marks, the share that is set, 1 if all are; of weights, the share of all symbols' sum.
    """
    spikes = fixed.data_codes.shape[1]
    whole = 0.0
    for s in range(len(work.scores)):
        total = 0.0
        for r in range(spikes):
            total += work.activity[fixed.data_codes[s, r]]
        work.scores[s] = total
        whole += total
    if fixed.rule == OR:
        whole = float(spikes * locations)
    if whole > 0:
        for s in range(len(work.scores)):
            work.scores[s] /= whole


@njit(cache=True, nogil=True)
def score_symbols(fixed, state, work):
    """Match of each symbol with what the active locations hold."""
    read_counters(state.counters, fixed.rule, state.active, fixed.sigma, work.activity)
    match_symbols(fixed, work, len(state.active))


@njit(cache=True, nogil=True)
def shift(fixed, state, work, symbol):
    """Put ``symbol`` into a register, whose last symbols are the context."""
    score = work.context
    score[:] = 0
    for i in range(len(state.history) - 1, 0, -1):
        state.history[i] = state.history[i - 1]
    state.history[0] = symbol
    size = len(score) // len(state.history)
    for i in range(len(state.history)):
        code = fixed.codes[state.history[i]]
        for r in range(len(code)):
            score[i * size + code[r]] = fixed.gain_old[i] * fixed.gain_new[r]
    likely_largest(score, state.context, work.guess[0])


@njit(cache=True, nogil=True)
def advance(fixed, state, work, symbol):
    """Put ``symbol`` into the context, and activate the locations of the new context."""
    if fixed.kind == SHIFT:
        shift(fixed, state, work, symbol)
    else:
        score, code = work.context, fixed.codes[symbol]
        score[:] = 0
        for r in range(len(state.context)):
            add_row(score, fixed.gain_old[r], fixed.old[state.context[r]])
        for r in range(len(code)):
            add_row(score, fixed.gain_new[r], fixed.new[code[r]])
        likely_largest(score, state.context, work.guess[0])
    activate(fixed, state, work)


@njit(cache=True, nogil=True)
def store(fixed, state, symbol):
    """Write ``symbol`` at the locations of the present context."""
    write_counters(
        state.counters, fixed.rule, fixed.decay, state.active, fixed.sigma,
        fixed.data_codes[symbol], fixed.gain_data,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def note(scores, symbol, top, n, guess, match, margin, chance):
    """Write what the scores say before ``symbol``, number ``n`` of a stream, comes."""
    largest(scores, len(top), top)
    guess[n] = top[0]
    match[n] = scores[top[0]]
    margin[n] = match[n] - (scores[top[1]] if len(top) > 1 else 0.0)
    whole = scores.sum()
    chance[n] = scores[symbol] / whole if whole > 0 else 1 / len(scores)


@njit(cache=True, nogil=True)
def rank(fixed, state, work, order, value):
    """The best symbols and their scores."""
    score_symbols(fixed, state, work)
    largest(work.scores, len(order), order)
    value[:] = work.scores[order]


@njit(cache=True, nogil=True)
def step(handle, symbol, learn, ahead, order, value):
    """Store a symbol, or only follow it, and rank what comes next if asked to.

    ``handle`` holds Fixed, State and Work; symbol -1 is none.
    """
    fixed, state, work = parts(handle)
    if learn:
        store(fixed, state, symbol)
    if symbol >= 0:
        advance(fixed, state, work, symbol)
    if ahead:
        rank(fixed, state, work, order, value)


@njit(cache=True, nogil=True)
def stream(handle, ids, learn, guess, match, margin, chance):
    """Predict every symbol of ``ids``, then learn it, or only follow it."""
    fixed, state, work = parts(handle)
    top = np.empty(min(2, len(work.scores)), np.int64)
    for n in range(len(ids)):
        score_symbols(fixed, state, work)
        note(work.scores, ids[n], top, n, guess, match, margin, chance)
        if learn:
            store(fixed, state, ids[n])
        advance(fixed, state, work, ids[n])
