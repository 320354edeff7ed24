"""What a mixed context has learned, as arrays: lines of counters, their weights, and the votes.

A line is a context that has occurred; its cells count what followed, the latest symbol first.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from isospike.kernels.machine.hashing import SPREAD

OTHERS = 6  # kinds of context besides the last 1, 2, .. depth symbols
STATES = 40  # of a line: how much it has counted, and how many different symbols
COUNTS = 6  # a cell's count, told apart up to this
LATEST = 256  # latest symbols told apart, modulo
MATCHES = 24  # lengths of a match told apart
WIDEST = 255  # cells of a line
KEY = 6  # symbols by which a match is found
MOST_HISTORY = 2**20  # symbols in which matches are sought
MOST_STAMP = 2**31 - 2**20  # then firings are numbered anew
SEEN = 24  # last symbols that are kept, no fewer than a context has
LONGEST = 80  # of a match; longer ones are as good

# Places in ``Mixture.at``.
CLOCK, MATCH, LENGTH, COMMON, CELLS, LINES, STAMP, CLOSED, STORED = range(9)
PLACES = 9


class Mixture(NamedTuple):
    """What a mixed context has learned and where it stands, changed in place.

    Attributes:
        at: Numbers of the present place: symbols so far, where the match goes on, its length, the
            commonest symbol, cells and lines in use, the number of firings, whether full, whether
            a symbol was stored here.
        last: The last symbols, latest first; -1 before the start, ``[SEEN]``.
        spans: Hashes of the symbols since the commonest one, and of those before it, ``[2]``.
        seed: Of the hashes, ``[1]``.
        history: Symbols by their number, modulo its size, a power of two.
        recent: Where the last KEY symbols were met before, by their hash; a power of two.
        lines: Hash, first cell and last firing of each line, at its hash; a power of two.
        cells: Symbol, count and next cell of a line's list, the latest symbol first; 0 ends it.
        gains: What a cell adds to its symbol's score, learned.
        often: How often each symbol occurred, ``[symbols]``.
        by_state: Of each kind and state: weight of votes, of the latest symbol, of each count.
        by_depth, by_latest: Further weight of each kind by the longest context known, and by the
            latest symbol.
        by_match: Score of the symbol that continues a match, by its length.
        notes: Of symbols that are notes: lowest and highest pitch, -1 if silent, number of the
            shape, classes of pitches as bits, ``[symbols, 4]``; ``[0, 4]`` if they are none.
        index: Symbols by shape and lowest pitch, each one more, 0 for none; a power of two.
        tone: The latest lowest pitch, and the key, 0 to 11, ``[2]``.
        classes: How often each class of pitches occurred lately, ``[12]``.
    """

    at: Any
    last: Any
    spans: Any
    seed: Any
    history: Any
    recent: Any
    lines: Any
    cells: Any
    gains: Any
    often: Any
    by_state: Any
    by_depth: Any
    by_latest: Any
    by_match: Any
    notes: Any
    index: Any
    tone: Any
    classes: Any


class Votes(NamedTuple):
    """The votes for the next symbol: scratch.

    Attributes:
        ready: Whether they are those of the present place; length of the longest context known;
            candidates; state of the match or -1; number of the vote; second largest count, ``[6]``.
        place: Where each kind's line is or would be; its hash, state and cells, ``[kinds, 4]``.
        cell: Cell and symbol of each vote, ``[kinds, WIDEST, 2]``.
        vote: Its size, ``[kinds, WIDEST]``.
        marked: The last vote that took each symbol for a candidate, ``[symbols]``.
        candidates: Symbols that some line votes for.
        base, chain, score, share: Of each candidate: unigram, back-off, sum of votes, probability.
        rest: Probability of one over the unigram for all others, ``[1]``.
    """

    ready: Any
    place: Any
    cell: Any
    vote: Any
    marked: Any
    candidates: Any
    base: Any
    chain: Any
    score: Any
    share: Any
    rest: Any


READY, KNOWN, FOUND, MATCHED, NUMBER, SECOND = range(6)


@njit(cache=True, nogil=True)
def find_line(lines, check):
    """Where the line of a hash is, or would be."""
    last = np.uint64(len(lines) - 1)
    i = np.int64((np.uint64(check) * SPREAD) & last)
    while lines[i, 0] != 0 and lines[i, 0] != check:
        i = (i + 1) & np.int64(last)
    return i


@njit(cache=True, nogil=True)
def pack(m, places, checks, sizes, symbols, counts, gains):
    """The lines at ``places`` one after another, without what a list needs."""
    n = 0
    for i in range(len(places)):
        line = m.lines[places[i]]
        checks[i], j, first = line[0], line[1], n
        while j != 0:
            symbols[n], counts[n], gains[n] = m.cells[j, 0], m.cells[j, 1], m.gains[j]
            n += 1
            j = m.cells[j, 2]
        sizes[i] = n - first
    return n


@njit(cache=True, nogil=True)
def unpack(m, checks, sizes, symbols, counts, gains):
    """Fill empty lines and cells with what :func:`pack` made; the last line fired last."""
    n = 0
    for i in range(len(checks)):
        line = m.lines[find_line(m.lines, checks[i])]
        line[0], line[1], line[2] = checks[i], n + 1, i + 1
        for k in range(sizes[i]):
            n += 1
            m.cells[n, 0], m.cells[n, 1] = symbols[n - 1], counts[n - 1]
            m.cells[n, 2] = n + 1 if k + 1 < sizes[i] else 0
            m.gains[n] = gains[n - 1]
    m.at[CELLS], m.at[LINES], m.at[STAMP] = n, len(checks), len(checks)


@njit(cache=True, nogil=True)
def move_lines(old, new):
    """Put all lines into a larger table."""
    for i in range(len(old)):
        if old[i, 0] != 0:
            new[find_line(new, old[i, 0])] = old[i]


@njit(cache=True, nogil=True)
def count_cells(m, places):
    """How many cells the lines at ``places`` have."""
    n = 0
    for i in range(len(places)):
        j = m.lines[places[i], 1]
        while j != 0:
            n += 1
            j = m.cells[j, 2]
    return n
