"""Contexts of notes by their distance: what was learned in one key is known in all.

A relative line fires for the intervals of the last notes. What follows is counted in it as a shape
(the intervals within a chord, and its length) and the distance of its lowest pitch to that of the
latest notes; for the votes that is again the symbol that lies there.
"""

import numpy as np
from numba import njit

from isospike.kernels.machine.hashing import SPREAD, mix

RELATIVE = 5  # kinds of relative contexts
LOWEST, HIGHEST, SHAPE, CLASSES = range(4)  # columns of ``Mixture.notes``
PITCH, HOME = range(2)  # places in ``Mixture.tone``
MIDDLE = 60  # the latest pitch before there was one
_WIDTH = 256  # distances told apart
_FADE = 0.97  # what a note leaves of how often the classes of pitches occurred
_SCALE = np.array([0, 2, 4, 5, 7, 9, 11])


@njit(cache=True, nogil=True)
def _height(pitch, base):
    """A pitch over another one, as a number that is not negative; 0 of a rest."""
    return pitch - base + _WIDTH // 2 if pitch >= 0 else 0


@njit(cache=True, nogil=True)
def relate(m, place, first):
    """Hashes of the relative contexts, which are negative: no other line has them.

    They are of the last 1, 2 and 4 notes, of the highest pitches of the last three, and of the last
    one in its key.
    """
    base, notes, h, top = m.tone[PITCH], m.notes, mix(m.seed[0], 9), mix(m.seed[0], 10)
    for d in range(4):
        if m.last[d] >= 0:
            note = notes[m.last[d]]
            h = mix(mix(h, note[SHAPE] + 1), _height(note[LOWEST], base))
            top = mix(top, _height(note[HIGHEST], base)) if d < 3 else top
        if d != 2:
            place[first + min(d, 2), 1] = _line(mix(h, d))
    place[first + 3, 1] = _line(top)
    latest = notes[m.last[0], HIGHEST] if m.last[0] >= 0 else -1
    degree = (base - m.tone[HOME]) % 12
    place[first + 4, 1] = _line(mix(mix(mix(m.seed[0], 11), _height(latest, base)), degree))


@njit(cache=True, nogil=True)
def _line(h):
    number = np.int64(h >> np.uint64(33))
    return -1 - number if number < 2**31 - 1 else -number


@njit(cache=True, nogil=True)
def distance(m, symbol):
    """What a relative line counts for a symbol."""
    note = m.notes[symbol]
    away = note[LOWEST] - m.tone[PITCH] if note[LOWEST] >= 0 else 0
    return note[SHAPE] * _WIDTH + away + _WIDTH // 2


@njit(cache=True, nogil=True)
def at_distance(m, number):
    """The symbol that lies there now; -1 if the alphabet has none."""
    shape, lowest = number // _WIDTH, number % _WIDTH - _WIDTH // 2 + m.tone[PITCH]
    symbol = find_note(m.notes, m.index, shape, lowest)
    if symbol < 0 and number % _WIDTH == _WIDTH // 2:
        symbol = find_note(m.notes, m.index, shape, -1)
    return symbol


@njit(cache=True, nogil=True)
def find_note(notes, index, shape, lowest):
    """The symbol of a shape and a lowest pitch; -1 if there is none."""
    i = _slot(index, shape, lowest)
    while index[i] != 0:
        symbol = index[i] - 1
        if (
            symbol < len(notes)
            and notes[symbol, SHAPE] == shape
            and notes[symbol, LOWEST] == lowest
        ):
            return symbol
        i = (i + 1) & (len(index) - 1)
    return -1


@njit(cache=True, nogil=True)
def _slot(index, shape, lowest):
    return np.int64((np.uint64(shape * _WIDTH + lowest + 1) * SPREAD) & np.uint64(len(index) - 1))


@njit(cache=True, nogil=True)
def list_notes(notes, index, first):
    """Enter the symbols from ``first`` on; of two that are the same notes, the first one stays."""
    for symbol in range(first, len(notes)):
        shape, lowest = notes[symbol, SHAPE], notes[symbol, LOWEST]
        if find_note(notes, index, shape, lowest) < 0:
            i = _slot(index, shape, lowest)
            while index[i] != 0:
                i = (i + 1) & (len(index) - 1)
            index[i] = symbol + 1


@njit(cache=True, nogil=True)
def hear(m, symbol):
    """Note the pitch of a symbol that came, and find the key.

    The key is that of the major scale, or of its relative minor, whose pitches occurred most; of
    equal ones the lowest from C.
    """
    note = m.notes[symbol]
    if note[LOWEST] < 0:
        return
    m.tone[PITCH] = note[LOWEST]
    best = -1.0
    for pitch in range(12):
        m.classes[pitch] = _FADE * m.classes[pitch] + ((note[CLASSES] >> pitch) & 1)
    for home in range(12):
        fit = 0.5 * m.classes[home] + 0.25 * m.classes[(home + 7) % 12]
        for step in _SCALE:
            fit += m.classes[(home + step) % 12]
        if fit > best:
            best, m.tone[HOME] = fit, home
