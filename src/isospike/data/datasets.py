"""Real data: what the package ships, and text files of yours."""

import gzip
import json
import os
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from isospike.errors import RangeError


def shakespeare() -> str:
    """Tiny Shakespeare, which the package ships: 1 115 394 characters of plays, 65 symbols.

    Speeches are separated by blank lines; the first line of each names the speaker.

    Reference: Karpathy (2015), char-rnn; see ``data/README.md``. Public domain.
    """
    packed = (files("isospike") / "data" / "tinyshakespeare.txt.gz").read_bytes()
    return gzip.decompress(packed).decode("ascii")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with line ends as ``\\n`` and without a byte-order mark.

    Raises:
        RangeError: ``path`` is missing, a folder or unreadable; or the file holds no text, or bytes
            that are not UTF-8 (the message gives the offset of the first).
    """
    name = os.fspath(path)
    try:
        packed = Path(path).read_bytes()
    except FileNotFoundError:
        raise RangeError(
            f"read_text needs an existing file, got {name!r}. Check the path."
        ) from None
    except IsADirectoryError:
        raise RangeError(
            f"read_text needs a file, got the folder {name!r}. Name a file in it."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path.
        reason = getattr(error, "strerror", None) or error
        raise RangeError(
            f"read_text needs a readable file, got {name!r}: {reason}. Check the path."
        ) from None
    try:
        text = packed.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RangeError(
            f"read_text needs UTF-8 text, got byte 0x{packed[error.start]:02x} at offset "
            f"{error.start} of {name!r}. Convert the file to UTF-8."
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise RangeError(f"read_text needs some text, got the empty file {name!r}. Name another.")
    return text


def passages(text: str, count: int, min_words: int = 8, max_words: int = 40) -> list[str]:
    """Different passages of a text, in its order, evenly spaced over it; always the same ones.

    A passage is a paragraph on one line; in a text without blank lines, a line. In a play, where
    most paragraphs open with a line that ends in a colon (the speaker), that line is left out.
    Paragraphs longer than ``max_words`` are cut into consecutive passages of that length; what is
    left with fewer than ``min_words`` is skipped.

    Args:
        text: Plain text.
        count: Passages wanted, at least 1. A text with fewer gives all it has.
        min_words: Fewest words of a passage, at least 1.
        max_words: Most words of a passage, at least ``min_words``.

    Returns:
        At least one and at most ``count`` lines of words separated by single spaces.

    Raises:
        RangeError: A number is outside its range, or the text has no such passage.
    """
    if count < 1:
        raise RangeError(f"passages needs count >= 1, got {count}. Ask for at least one.")
    if not 1 <= min_words <= max_words:
        raise RangeError(
            f"passages needs 1 <= min_words <= max_words, got {min_words} and {max_words}. "
            "Widen the bounds."
        )
    found: dict[str, None] = {}  # An ordered set.
    for paragraph in _paragraphs(text):
        words = paragraph.split()
        for start in range(0, len(words), max_words):
            piece = words[start : start + max_words]
            if len(piece) >= min_words:
                found[" ".join(piece)] = None
    if not found:
        raise RangeError(
            f"passages needs a paragraph or line of at least {min_words} words, got none in "
            f"{len(text)} characters of text. Give a longer text."
        )
    every = list(found)
    chosen = min(count, len(every))
    return [every[i * len(every) // chosen] for i in range(chosen)]


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


def chorales(split: str = "train") -> list[list[str]]:
    """Bach chorales, which the package ships, on a quarter-note grid: 229 train, 76 valid, 77 test.

    A symbol is a chord, its MIDI numbers joined by dashes, low to high; silence is ``rest``.

    Reference: Boulanger-Lewandowski, Bengio, Vincent (2012), Modeling temporal dependencies in
    high-dimensional sequences; see ``data/README.md``. Public domain music.
    """
    packed = (files("isospike") / "data" / "jsb-chorales-quarter.json.gz").read_bytes()
    splits = json.loads(gzip.decompress(packed))
    if split not in splits:
        raise RangeError(f"chorales needs a split of {', '.join(splits)}, got {split!r}.")
    return [[_chord(c) for c in piece] for piece in splits[split]]


def sachs() -> tuple[str, tuple[tuple[str, str], ...]]:
    """Cells by flow cytometry, which the package ships, as CSV text, and their consensus graph.

    853 cells of the unperturbed condition, 11 columns. The graph is the acyclic consensus of 17
    edges that the bnlearn repository holds. A file of 18 edges in wide use has the cycle PIP2,
    PIP3, PLC and so is the graph of no order.

    Reference: Sachs et al. (2005), Causal protein-signaling networks derived from multiparameter
    single-cell data; see ``data/README.md``. CC0.
    """
    packed = (files("isospike") / "data" / "sachs-observational.csv.gz").read_bytes()
    edges = tuple(
        (parent, child) for child, parents in _SACHS_PARENTS.items() for parent in parents.split()
    )
    return gzip.decompress(packed).decode("ascii"), edges


_SACHS_PARENTS = {
    "akt": "erk pka", "erk": "mek pka", "jnk": "pka pkc", "mek": "pka pkc raf", "p38": "pka pkc",
    "pip2": "pip3 plc", "pip3": "plc", "pka": "pkc", "raf": "pka pkc",
}  # fmt: skip


def read_melodies(path: str | os.PathLike[str]) -> list[list[str]]:
    """Melodies of a JSON file: a list of MIDI numbers or chords (lists of them), or a list of such.

    Raises:
        RangeError: Missing or unreadable, not JSON, or of another form.
    """
    name = os.fspath(path)
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise RangeError(f"read_melodies needs JSON, got {name!r}: {error}.") from None
    if isinstance(found, list) and found and all(isinstance(n, int) for n in found):
        found = [found]
    try:
        melodies = [[_chord(c) for c in melody] for melody in found]
    except TypeError:
        melodies = []
    if not any(melodies):
        raise RangeError(
            f"read_melodies needs lists of MIDI numbers or chords, got something else in {name!r}."
        )
    return [m for m in melodies if m]


def _chord(notes: int | list[int]) -> str:
    if isinstance(notes, int):
        return str(notes)
    if not all(isinstance(n, int) for n in notes):
        raise TypeError
    return "-".join(map(str, sorted(notes))) or "rest"
