"""Notes as symbols: the tables by which compiled code knows a symbol's pitches."""

from collections.abc import Hashable, Iterable

import numpy as np

from isospike.data.notes import chord_of
from isospike.data.readers import MOST_NOTE
from isospike.errors import InputError
from isospike.kernels.machine.intervals import list_notes

_LEAST = 256  # rows, a power of two
_NUMBERS = frozenset(range(MOST_NOTE + 1))
Shape = tuple[tuple[int, ...], int]
"""Intervals over the lowest pitch, and a length."""


class Notes:
    """Pitches and shapes of the symbols of an alphabet.

    A symbol is a note or a chord with its length (:func:`isospike.data.notes.chord_of`). Its shape
    is its length and the intervals of its pitches over the lowest one: a chord in another key has
    the same shape. Of two names of one chord, such as ``60`` and ``60/24``, the first one stands
    for both.

    Attributes:
        rows: Lowest and highest pitch, -1 of a rest, the number of the shape, and the classes of
            pitches as bits, ``[symbols, 4]``.
        index: Symbols by shape and lowest pitch, each one more; 0 is none.
    """

    def __init__(self) -> None:
        self._shapes: dict[Shape, int] = {}
        self._room = np.zeros((_LEAST, 4), np.int32)
        self.rows, self.index = self._room[:0], np.zeros(2 * _LEAST, np.int32)

    def add(self, symbols: Iterable[Hashable]) -> None:
        """Enter symbols behind those that are known.

        Args:
            symbols: New ones.

        Raises:
            InputError: One is no note; then none is entered.
        """
        known, fresh = len(self.rows), dict[Shape, int]()
        found = np.array([self._row(symbol, fresh) for symbol in symbols], np.int32).reshape(-1, 4)
        size = known + len(found)
        room, index = self._room, self.index
        if size > len(room):
            room = np.zeros((1 << (size - 1).bit_length(), 4), np.int32)
            room[:known], index = self.rows, np.zeros(2 * len(room), np.int32)
        room[known:size] = found
        list_notes(room[:size], index, 0 if index is not self.index else known)
        self._room, self.rows, self.index = room, room[:size], index
        self._shapes |= fresh

    def _row(self, symbol: Hashable, fresh: dict[Shape, int]) -> tuple[int, int, int, int]:
        """The row of a symbol, whose shape may be a fresh one."""
        if type(symbol) is not str and symbol not in _NUMBERS:
            large = type(symbol) is int and abs(symbol) > 10**6
            raise InputError(
                "a tune needs notes such as 60 or 60-64/12, got "
                f"{'a larger number' if large else repr(symbol)[:40]}. MIDI has 0 to {MOST_NOTE}."
            )
        written, length = chord_of(str(symbol))
        pitches = sorted(set(written))
        shape = tuple(pitch - pitches[0] for pitch in pitches), length
        place = self._shapes.get(shape)
        if place is None:
            place = fresh.setdefault(shape, len(self._shapes) + len(fresh))
        if not pitches:
            return -1, -1, place, 0
        return pitches[0], pitches[-1], place, sum({1 << pitch % 12 for pitch in pitches})
