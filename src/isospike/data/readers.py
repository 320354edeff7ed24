"""Readers of your files: plain text, melodies; and passages of a text."""

import codecs
import json
import os
from itertools import groupby
from typing import Any

from isospike.errors import InputError, RangeError, first_sentence
from isospike.report.reading import read_file

RECODE = "Save it as UTF-8."
MOST_NOTE = 127  # of MIDI
FORMATS = {
    codecs.BOM_UTF32_LE: ("UTF-32", RECODE), codecs.BOM_UTF32_BE: ("UTF-32", RECODE),
    codecs.BOM_UTF16_LE: ("UTF-16", RECODE), codecs.BOM_UTF16_BE: ("UTF-16", RECODE),
    b"MThd": ("a MIDI file", "Let its name end in .mid."),
    b"\x1f\x8b": ("a gzip archive", "Unpack it first."),
    b"BZh": ("a bzip2 archive", "Unpack it first."),
    b"\xfd7zXZ": ("an xz archive", "Unpack it first."),
    b"PK\x03\x04": ("a zip archive", "Unpack it, or export its text from the program it is of."),
    b"%PDF": ("a PDF", "Export its text."),
}  # fmt: skip
"""What a file that is no text begins with, what it is, and what to do with it."""


def read_text(path: str | os.PathLike[str]) -> str:
    r"""Read a UTF-8 text file.

    Args:
        path: The file.

    Returns:
        Its text, with line ends as ``\n`` and without a byte-order mark.

    Raises:
        InputError: ``path`` is missing, no plain file, unreadable or larger than 256 MiB; or the
            file holds no text, or bytes that are not UTF-8 (the message gives the offset of the
            first).

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "note.txt")
    ...     _ = file.write_bytes(b"one\r\ntwo")
    ...     read_text(file)
    'one\ntwo'
    """
    name, packed = os.fspath(path), read_file(path, "read_text")
    for first, (what, advice) in FORMATS.items():
        if packed.startswith(first):
            raise InputError(f"read_text needs UTF-8 text, got {what} in {name!r}. {advice}")
    try:
        text = packed.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"read_text needs UTF-8 text, got byte 0x{packed[error.start]:02x} at offset "
            f"{error.start} of {name!r}. Convert the file to UTF-8."
        ) from None
    if text[:1000].count("\0") > len(text[:1000]) // 4:
        raise InputError(f"read_text needs UTF-8 text, got UTF-16 or UTF-32 in {name!r}. {RECODE}")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError(f"read_text needs some text, got the empty file {name!r}. Name another.")
    return text


def passages(text: str, count: int, min_words: int = 8, max_words: int = 40) -> list[str]:
    """Choose different passages of a text, evenly spaced over it and in its order.

    A passage is a paragraph on one line; in a text without blank lines, a line. In a play, where
    most paragraphs open with a line that ends in a colon (the speaker), that line is left out.
    Paragraphs longer than ``max_words`` are cut into consecutive passages of that length; a last
    piece of fewer than ``min_words`` is skipped. No choice is random.

    Args:
        text: Plain text.
        count: Number of passages, at least 1. A text with fewer gives all it has.
        min_words: Fewest words of a passage, at least 1.
        max_words: Most words of a passage, at least ``min_words``.

    Returns:
        At least one and at most ``count`` lines of words separated by single spaces.

    Raises:
        RangeError: A number is outside its range.
        InputError: The text has no such passage.

    >>> passages("one two three\\n\\nfour five six", count=1, min_words=2)
    ['one two three']
    """
    if count < 1:
        raise RangeError(f"passages needs count >= 1, got {count}. Ask for at least one.")
    if not 1 <= min_words <= max_words:
        raise RangeError(
            f"passages needs 1 <= min_words <= max_words, got {min_words} and {max_words}. "
            "Widen the bounds."
        )
    pieces: dict[str, None] = {}  # An ordered set.
    for paragraph in _paragraphs(text):
        words = paragraph.split()
        for start in range(0, len(words), max_words):
            piece = words[start : start + max_words]
            if len(piece) >= min_words:
                pieces[" ".join(piece)] = None
    if not pieces:
        raise InputError(
            f"passages needs a paragraph or line of at least {min_words} words, got none in "
            f"{len(text)} characters of text. Give a longer text."
        )
    every = list(pieces)
    chosen = min(count, len(every))
    return [every[i * len(every) // chosen] for i in range(chosen)]


def read_melodies(path: str | os.PathLike[str]) -> list[list[str]]:
    """Read melodies from a JSON file.

    Args:
        path: A file that holds a list of MIDI numbers, or a list of melodies, each of MIDI numbers
            and of chords (lists of MIDI numbers).

    Returns:
        The symbols of each melody; see :func:`chord_symbol`.

    Raises:
        InputError: The file is missing or unreadable, not JSON, or of another form, or a number is
            not one of MIDI, 0 to 127.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "song.json")
    ...     _ = file.write_text("[[60, [64, 60], []]]")
    ...     read_melodies(file)
    [['60', '60-64', 'rest']]
    """
    name = os.fspath(path)
    try:
        content = json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # deep lists, numbers of thousands of digits
        raise InputError(
            f"read_melodies needs JSON, got {name!r}: {first_sentence(error)} Write a list of MIDI "
            "numbers."
        ) from None
    if isinstance(content, list) and content and all(isinstance(n, int) for n in content):
        content = [content]
    try:
        melodies = [[chord_symbol(c) for c in _checked(melody)] for melody in _checked(content)]
        _check_notes(content, name)
    except TypeError:
        melodies = []
    if not any(melodies):
        raise InputError(
            f"read_melodies needs lists of MIDI numbers or chords, got something else in {name!r}. "
            "Write melodies such as [[60, [60, 64], []]]."
        )
    return [m for m in melodies if m]


def chord_symbol(notes: int | list[int]) -> str:
    """The symbol of a chord: its MIDI numbers joined by dashes, low to high; silence is ``rest``.

    Args:
        notes: MIDI numbers, or one of them.

    Returns:
        One word.

    Raises:
        TypeError: Something else.
    """
    if type(notes) is int:  # A boolean is an int too.
        return str(notes)
    if not all(type(n) is int for n in _checked(notes)):
        raise TypeError
    return "-".join(map(str, sorted(_checked(notes)))) or "rest"


def _check_notes(melodies: list[list[int | list[int]]], name: str) -> None:
    """Raise unless all notes are on the keyboard of MIDI."""
    for melody in melodies:
        for chord in melody:
            for note in [chord] if isinstance(chord, int) else chord:
                if not 0 <= note <= MOST_NOTE:
                    raise InputError(
                        f"read_melodies needs MIDI numbers from 0 to {MOST_NOTE}, got {note} in "
                        f"{name!r}. Middle C is 60."
                    )


def _checked(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a text without their speakers, or its lines where no line between is blank."""
    lines = text.strip().splitlines()
    blocks = [
        list(group) for blank, group in groupby(lines, lambda line: not line.strip()) if not blank
    ]
    if len(blocks) == 1:
        return lines
    speakers = [block[0].rstrip().endswith(":") for block in blocks]
    if 2 * sum(speakers) > len(blocks):
        blocks = [b[1:] if speaks else b for b, speaks in zip(blocks, speakers, strict=True)]
    return [" ".join(block) for block in blocks]
