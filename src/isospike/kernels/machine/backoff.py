"""The inner loops of back-off: the context of every length counts what followed it.

A context's counters are found by a hash of its symbols, so contexts share counters only by chance;
each count is kept twice and the smaller is read (a count-min sketch with conservative update).
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from isospike.kernels.machine.handle import parts
from isospike.kernels.machine.hashing import mix
from isospike.kernels.machine.locations import largest
from isospike.kernels.machine.stream import note

_DISCOUNT = 0.75  # taken off every count


class Sketch(NamedTuple):
    """What back-off has counted (a count-min sketch) and where it stands, changed in place.

    Attributes:
        history: The last symbols, latest first.
        filled: How many of them there are, ``[1]``.
        seed: Of the hash, ``[1]``.
        counts: How often each symbol followed each context, ``[2, size]``, size a power of two.
        totals, kinds: Symbols after each context, and different ones, ``[2, size / 4]``.
    """

    history: Any
    filled: Any
    seed: Any
    counts: Any
    totals: Any
    kinds: Any


@njit(cache=True, nogil=True)
def _context(sketch, length):
    """Hash of the last ``length`` symbols."""
    h = mix(sketch.seed[0], length)
    for i in range(length):
        h = mix(h, sketch.history[i])
    return h


@njit(cache=True, nogil=True)
def _least(table, h):
    """The smaller of the two entries that ``h`` leads to."""
    last = np.uint64(table.shape[1] - 1)
    return min(table[0, h & last], table[1, (h >> np.uint64(32)) & last])


@njit(cache=True, nogil=True)
def _raise(table, h, value):
    """Let neither entry be below ``value``."""
    last = np.uint64(table.shape[1] - 1)
    i, j = h & last, (h >> np.uint64(32)) & last
    table[0, i] = max(table[0, i], value)
    table[1, j] = max(table[1, j], value)


@njit(cache=True, nogil=True)
def score(sketch, scores):
    """Probability of each symbol: longer contexts correct shorter ones (Kneser and Ney)."""
    scores[:] = 0
    for length in range(sketch.filled[0] + 1):
        h = _context(sketch, length)
        total = _least(sketch.totals, h)
        if total <= 0:
            return
        if length == 0:
            scores[:] = 1 / len(scores)
        kinds = _least(sketch.kinds, h)
        # Each other kind was counted too, so shared counters cannot lift a symbol above 1.
        most = total - (kinds - 1)
        scores *= _DISCOUNT * kinds / total
        for s in range(len(scores)):
            count = _least(sketch.counts, mix(h, s))
            if count > 0:
                scores[s] += (min(count, most) - _DISCOUNT) / total


@njit(cache=True, nogil=True)
def store(sketch, symbol):
    """Count ``symbol`` from the longest context down to the first that has met it."""
    for length in range(sketch.filled[0], -1, -1):
        h = _context(sketch, length)
        counter = mix(h, symbol)
        total = _least(sketch.totals, h)
        # What a new context seems to have counted belongs to others.
        count = _least(sketch.counts, counter) if total > 0 else 0.0
        _raise(sketch.counts, counter, count + 1)
        _raise(sketch.totals, h, total + 1)
        if count > 0:
            return
        _raise(sketch.kinds, h, _least(sketch.kinds, h) + 1)


@njit(cache=True, nogil=True)
def advance(sketch, symbol):
    """Put ``symbol`` into the context."""
    for i in range(len(sketch.history) - 1, 0, -1):
        sketch.history[i] = sketch.history[i - 1]
    if len(sketch.history) > 0:
        sketch.history[0] = symbol
        sketch.filled[0] = min(sketch.filled[0] + 1, len(sketch.history))


@njit(cache=True, nogil=True)
def rank(sketch, scores, order, value):
    """The best symbols and their scores."""
    score(sketch, scores)
    largest(scores, len(order), order)
    value[:] = scores[order]


@njit(cache=True, nogil=True)
def step(handle, symbol, learn, ahead, order, value):
    """Store a symbol, or only follow it, and rank what comes next if asked to.

    ``handle`` holds a Sketch and the scores; symbol -1 is none.
    """
    sketch, scores = parts(handle)
    if learn:
        store(sketch, symbol)
    if symbol >= 0:
        advance(sketch, symbol)
    if ahead:
        rank(sketch, scores, order, value)


@njit(cache=True, nogil=True)
def stream(handle, ids, learn, guess, match, margin, chance):
    """Predict every symbol of ``ids``, then learn it, or only follow it."""
    sketch, scores = parts(handle)
    top = np.empty(min(2, len(scores)), np.int64)
    for n in range(len(ids)):
        score(sketch, scores)
        note(scores, ids[n], top, n, guess, match, margin, chance)
        if learn:
            store(sketch, ids[n])
        advance(sketch, ids[n])
