"""A note as a symbol: its pitches, as MIDI numbers, and its length."""

import re

from isospike.data.readers import MOST_NOTE, chord_symbol
from isospike.errors import InputError

QUARTER = 24
"""Units of a quarter note's length: a sixteenth is 6, a triplet's eighth 8."""

MOST_LENGTH = 999_999
"""Of a note, longer than any piece."""

_NOTE = re.compile(r"(rest|\d{1,3}(?:-\d{1,3})*)(?:/(\d{1,6}))?", re.ASCII)


def note_symbol(notes: tuple[int, ...], length: int) -> str:
    """The symbol of a note or a chord with its length.

    Args:
        notes: MIDI numbers, low to high; none for a rest.
        length: In 24ths of a quarter note; at least 1 and at most 999,999 is written.

    Returns:
        One word.

    >>> note_symbol((60, 64), 24), note_symbol((), 12)
    ('60-64/24', 'rest/12')
    """
    return f"{chord_symbol(list(notes))}/{min(max(1, length), MOST_LENGTH)}"


def chord_of(symbol: str) -> tuple[tuple[int, ...], int]:
    """Pitches and length of a symbol; one without a length is a quarter note.

    Args:
        symbol: As :func:`note_symbol` or :func:`~isospike.data.readers.chord_symbol` made it.

    Returns:
        MIDI numbers, none for a rest, and the length in 24ths of a quarter note.

    Raises:
        InputError: It is no note.

    >>> chord_of("60-64/12"), chord_of("rest")
    (((60, 64), 12), ((), 24))
    """
    found = _NOTE.fullmatch(symbol)
    notes = () if not found or found[1] == "rest" else tuple(map(int, found[1].split("-")))
    if found is None or any(note > MOST_NOTE for note in notes):
        raise InputError(
            f"a tune needs notes such as 60 or 60-64/12, got {symbol[:40]!r}. Learn "
            "music, not text."
        )
    return notes, int(found[2] or QUARTER)
