"""The inner loops of the sequence machine: next context, scores of symbols, a whole stream."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from isospike.kernels.machine.locations import (
    OR,
    choose_lines,
    largest,
    likely_largest,
    read_cells,
    write_cells,
)

SHIFT, RECURRENT = range(2)
CONSTANT, AGREEMENT, ACTIVITY = range(3)


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
        sigma: Significance of the lines.
        decoder: The address decoder's connections.
        rule, keep: The store's rule.
        adapt: What the old context's share follows: CONSTANT, AGREEMENT or ACTIVITY.
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
    keep: float
    adapt: int


class State(NamedTuple):
    """What every symbol changes, in place.

    Attributes:
        context: The context's order.
        history: SHIFT: the last symbols, latest first.
        chosen: Lines of the present context.
        cells: The store.
    """

    context: Any
    history: Any
    chosen: Any
    cells: Any


class Work(NamedTuple):
    """Scratch: of the context's, the lines', the data neurons' and the symbols' size.

    ``guess``, ``[2, 2]``: of the context's and of the lines' scores, as in :func:`likely_largest`.
    """

    context: Any
    lines: Any
    activity: Any
    scores: Any
    guess: Any


@njit(cache=True, nogil=True)
def add_row(score, gain, row):
    """``score += gain * row``, without a temporary."""
    for j in range(len(score)):
        score[j] += gain * row[j]


@njit(cache=True, nogil=True)
def choose(fixed, state, work):
    """Choose the lines of the present context."""
    choose_lines(
        state.context, fixed.gain_context, fixed.decoder, work.lines, state.chosen,
        work.guess[1],
    )  # fmt: skip


@njit(cache=True, nogil=True)
def match_symbols(fixed, work, lines):
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
        whole = float(spikes * lines)
    if whole > 0:
        for s in range(len(work.scores)):
            work.scores[s] /= whole


@njit(cache=True, nogil=True)
def score_symbols(fixed, state, work):
    """Match of each symbol with what the chosen lines hold."""
    read_cells(state.cells, fixed.rule, state.chosen, fixed.sigma, work.activity)
    match_symbols(fixed, work, len(state.chosen))


@njit(cache=True, nogil=True)
def trust(fixed, state, work, symbol):
    """What the old context's share is multiplied by, in [0, 1]."""
    if fixed.adapt == CONSTANT or symbol == len(work.scores):  # the start symbol
        return np.float32(1)
    score_symbols(fixed, state, work)
    return work.scores[symbol] if fixed.adapt == AGREEMENT else work.scores.max()


@njit(cache=True, nogil=True)
def advance(fixed, state, work, symbol):
    """Put ``symbol`` into the context, and choose the lines of the new context."""
    score = work.context
    score[:] = 0
    code = fixed.codes[symbol]
    if fixed.kind == SHIFT:
        for i in range(len(state.history) - 1, 0, -1):
            state.history[i] = state.history[i - 1]
        state.history[0] = symbol
        size = len(score) // len(state.history)
        for i in range(len(state.history)):
            code = fixed.codes[state.history[i]]
            for r in range(len(code)):
                score[i * size + code[r]] = fixed.gain_old[i] * fixed.gain_new[r]
    else:
        weight = trust(fixed, state, work, symbol)
        for r in range(len(state.context)):
            add_row(score, np.rint(weight * fixed.gain_old[r]), fixed.old[state.context[r]])
        for r in range(len(code)):
            add_row(score, fixed.gain_new[r], fixed.new[code[r]])
    likely_largest(score, state.context, work.guess[0])
    choose(fixed, state, work)


@njit(cache=True, nogil=True)
def store(fixed, state, symbol):
    """Write ``symbol`` at the lines of the present context."""
    write_cells(
        state.cells, fixed.rule, fixed.keep, state.chosen, fixed.sigma,
        fixed.data_codes[symbol], fixed.gain_data,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def stream(fixed, state, work, ids, learn, guess, match, margin):
    """Predict every symbol of ``ids``, then learn it, or only follow it."""
    top = np.empty(min(2, len(work.scores)), np.int64)
    for n in range(len(ids)):
        score_symbols(fixed, state, work)
        largest(work.scores, len(top), top)
        guess[n] = top[0]
        match[n] = work.scores[top[0]]
        margin[n] = match[n] - (work.scores[top[1]] if len(top) > 1 else 0.0)
        if learn:
            store(fixed, state, ids[n])
        advance(fixed, state, work, ids[n])
