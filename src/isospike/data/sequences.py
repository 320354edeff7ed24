"""Sequences of symbols for the sequence machine: texts, melodies, and shipped data."""

import os
from itertools import accumulate
from pathlib import Path

from isospike.data.abc import read_abc
from isospike.data.midi import read_midi
from isospike.data.readers import read_melodies, read_text
from isospike.data.shipped import chorales, shakespeare
from isospike.errors import InputError

UNITS = ("char", "word", "line")
MUSIC = {".json": read_melodies, ".abc": read_abc, ".mid": read_midi, ".midi": read_midi}
"""Readers of melodies by the ending of the file's name."""


def split_symbols(text: str, unit: str = "char") -> list[str]:
    """Cut a text into symbols.

    Args:
        text: Plain text.
        unit: ``char``, ``word`` (between white space) or ``line``.

    Returns:
        The symbols in their order. Any other unit is split like words: the notes of a melody.

    >>> split_symbols("to be", "word")
    ['to', 'be']
    """
    if unit == "char":
        return list(text)
    return text.splitlines() if unit == "line" else text.split()


def read_sequences(
    source: str | os.PathLike[str], unit: str = "char", limit: int | None = None
) -> list[list[str]]:
    """Sequences of symbols, each with a start of its own.

    Args:
        source: A UTF-8 text, which is one sequence; melodies in a file ``.json``, ``.abc`` or
            ``.mid``; or ``shakespeare`` or ``chorales``, which the package ships.
        unit: What a symbol of a text is: ``char``, ``word`` or ``line``.
        limit: Most symbols in all; None for all there are.

    Returns:
        The sequences in their order.

    Raises:
        InputError: The file cannot be read, or an unknown unit.
        MissingExtraError: A MIDI file, and mido is not installed.

    >>> read_sequences("shakespeare", "word", limit=3)
    [['First', 'Citizen:', 'Before']]
    """
    name = os.fspath(source)
    if unit not in UNITS:
        raise InputError(
            f"read_sequences needs unit to be {', '.join(UNITS)}, got {unit!r}. Choose one of them."
        )
    if name == "chorales":
        sequences = chorales()
    elif name == "shakespeare":
        sequences = [split_symbols(shakespeare(), unit)]
    elif is_music(name):
        sequences = MUSIC[Path(name).suffix.lower()](name)
    else:
        sequences = [split_symbols(read_text(name), unit)]
    if limit is None:
        return sequences
    starts = accumulate((len(s) for s in sequences), initial=0)
    return [s[: limit - at] for s, at in zip(sequences, starts, strict=False) if at < limit]


def is_music(source: str | os.PathLike[str]) -> bool:
    """Whether :func:`read_sequences` reads melodies from a source.

    Args:
        source: As there.

    Returns:
        Whether its symbols are notes, whatever the unit.

    >>> is_music("chorales"), is_music("tune.abc"), is_music("tune.txt")
    (True, True, False)
    """
    name = os.fspath(source)
    return name == "chorales" or Path(name).suffix.lower() in MUSIC
