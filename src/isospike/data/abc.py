"""Tunes in ABC notation as notes, and back.

Read are notes, rests, chords, accidentals until the bar ends, keys with their modes, lengths,
broken rhythm, tuplets, ties and voices. A repeat is read once; ornaments, words, chord names and
what is laid over a bar (``&``) are skipped. After an empty line, what is no music is text.

Reference: the ABC music standard 2.1 (2011).
"""

import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction

from isospike.data.notes import QUARTER, chord_of, note_symbol
from isospike.data.readers import MOST_NOTE, read_text
from isospike.errors import InputError

_FIELD = re.compile(r"([A-Za-z+]):\s*(.*)")
_LENGTH = r"\d*/*\d*"
# Letters of the standard, and what collections use beside them; others are of words.
_ORNAMENT = r"[H-Wkuv](?![H-Wh-w]{2})|!(?:D\.[CS]\.|[Dd]a capo|[Dd]al segno)[^!|]*!|![^!\s|]+!|[.~]"
_TOKEN = re.compile(
    r"\((?P<tuplet>\d)(?::(?P<q>\d?))?(?::(?P<r>\d?))?"
    rf'|(?P<skip>"[^"]*"|{_ORNAMENT}|!|\+[^+]*\+|\{{[^}}]*\}}|y\d*|[ \t`\\()*$])|(?P<over>&+)'
    r"|\[(?P<inline>[KLMV]):(?P<value>[^\]]*)\]|\[(?P<other>[A-Za-z]):[^\]]*\]"
    r"|(?P<bar>\[?\|[\]|:]*(?:\s?\[?\d[,\-\d]*)?|:+\|?[\]|:]*(?:\d[,\-\d]*)?|\[\d[,\-\d]*)"
    rf"|\[(?P<chord>(?:(?:[ ()]|{_ORNAMENT})*(?:[_^=]*[A-Ga-g][,']*|z){_LENGTH}-?)+)[ )]*\]"
    rf"(?P<length>{_LENGTH})(?P<tied>-?)"
    rf"|(?P<note>[_^=]*[A-Ga-g][,']*|[zxZX])(?P<long>{_LENGTH})(?P<tie>-?)|(?P<late>-)"
    r"|(?P<broken>>+|<+)"
)
_COMMENT = re.compile(r'(?:"[^"]*"|\\.|\\$|[^%"\\]|"(?![^"]*"))*')  # what stands before one
_PITCH = re.compile(rf"([_^=]*)([A-Ga-g])([,']*)({_LENGTH})(-?)")
_WORDS = re.compile(rf'"[^"]*"|{_ORNAMENT}')
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
_MODES = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3, "mix": -1, "dor": -2,
          "phr": -4, "lyd": 1, "loc": -5}  # fmt: skip
_KEY = re.compile(r"([A-G])([#b]?)\s*([A-Za-z]*)")
_EXTRA = re.compile(r"(?<!\S)(\^\^?|__?|=)([A-Ga-g])(?!\S)")
_IN_THE_TIME_OF = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}  # others: 2, or 3 in compound time
_NAMES = ("C", "^C", "D", "^D", "E", "F", "^F", "G", "^G", "A", "^A", "B")


def read_abc(path: str | os.PathLike[str]) -> list[list[str]]:
    r"""Read the tunes of a file in ABC notation, note by note.

    Args:
        path: The file; each tune begins with a line ``X:``.

    Returns:
        For every voice of every tune its notes: see :func:`~isospike.data.notes.note_symbol`.

    Raises:
        InputError: The file is missing or unreadable, holds no note, or a tune is cut or is none.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "tune.abc")
    ...     _ = file.write_text("X:1\nL:1/8\nK:D\nDF A2|[df]z|\n")
    ...     read_abc(file)
    [['62/12', '66/12', '69/24', '74-78/12', 'rest/12']]
    """
    name, tunes = os.fspath(path), []
    tune, head, prose = _Tune(), _Tune(), False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.startswith(("%%begin", "%%end")):
            prose = line.startswith("%%begin")
        text = "" if prose else _COMMENT.match(line)[0].rstrip()  # type: ignore[index]
        where = f"line {number} of {name!r}"
        field = _FIELD.fullmatch(text)
        if field and field[1] == "X" and re.match(r"\d|$", field[2]):
            tune = head.copy()
            tunes.append(tune)
        elif field and tunes:
            tune.take(field[1], field[2].strip(), where)
        elif field:
            head.take_length(field[1], field[2].strip())  # for all tunes
        elif tunes and (text or not line.strip()):
            tune.read_line(text, where)
    voices = [notes for tune in tunes for notes in tune.finished()]
    if not voices:
        raise InputError(
            f"read_abc needs tunes with notes, got none in {name!r}. A tune begins with a line X: "
            "and has its notes after K:."
        )
    return voices


class _Tune:
    """What has been read of one tune."""

    def __init__(self) -> None:
        self._begun = False
        self._over = 0  # bars to come that lie over others
        self._ended = False  # by an empty line: what follows is text, if it is no music
        self._early = ""  # the first notes that came before a key
        self._unit: Fraction | None = None  # length of a note, in quarters
        self._meter = Fraction(1)
        self._compound = False
        self._key: dict[str, int] = {}
        self._bar: dict[tuple[str, int], int] = {}  # accidentals until the bar ends
        self._held: dict[tuple[str, int], int] = {}  # those of a note that is tied over its end
        self._voices: dict[str, list[tuple[tuple[int, ...], Fraction]]] = {}
        self._voice = "1"
        self._tuplet = 0, Fraction(1)
        self._broken: Fraction | None = None  # what the next note is lengthened by
        self._last = Fraction(0)  # length of the last note, without what it is tied to
        self._tied = False

    def copy(self) -> "_Tune":
        """A tune of the same lengths that has not begun."""
        tune = _Tune()
        tune._unit, tune._meter, tune._compound = self._unit, self._meter, self._compound
        return tune

    def take(self, field: str, value: str, where: str) -> None:
        """A field of the head, or one between the notes."""
        self.take_length(field, value)
        if field == "K":
            self._check_early()
            if not (self._begun and re.match(r"\w+=", value)):  # a clef alone
                self._key = _key(value, where)
            self._begun = True
        elif field == "V":
            self._voice = value.split()[0] if value.split() else self._voice
            self._over = 0
            self._bar.clear()

    def take_length(self, field: str, value: str) -> None:
        """A field that says how long notes are."""
        if field == "L" and (length := _fraction(value)):
            self._unit = 4 * length
        elif field == "M" and (meter := _fraction({"C": "4/4", "C|": "2/2"}.get(value, value))):
            self._meter = meter
            self._compound = value.split("/")[0].strip() in ("6", "9", "12")

    def read_line(self, text: str, where: str) -> None:
        """A line that is no field: notes, or text before a key and after an empty line."""
        if not text:
            self._ended = any(self._voices.values())
        elif not self._begun:
            self._early = self._early or (f"{text[:40]!r} in {where}" if _is_music(text) else "")
        elif not self._ended or _is_music(text):
            self._ended = False
            self.read(text, where)

    def _check_early(self) -> None:
        if self._early:
            raise InputError(
                f"read_abc needs a key (K:) before the notes, got {self._early}. The tune may be "
                "cut: add its head."
            )

    def finished(self) -> list[list[str]]:
        """The symbols of each voice that has notes."""
        self._check_early()
        return [
            [note_symbol(notes, round(length * QUARTER)) for notes, length in voice]
            for voice in self._voices.values()
            if any(notes for notes, _ in voice)
        ]

    def read(self, text: str, where: str) -> None:
        """A line of notes."""
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise InputError(
                    f"read_abc needs notes, got {text[at : at + 20]!r} in {where}. The tune may be "
                    "cut there: mend it, or leave the tune out."
                )
            at = found.end()
            self._take_token(found, where)

    def _take_token(self, found: "re.Match[str]", where: str) -> None:
        if found["bar"]:
            self._held = dict(self._bar) if self._tied else {}
            self._bar.clear()
            self._over = max(0, self._over - 1)
        elif found["over"]:
            self._over = len(found["over"])
        elif found["inline"]:
            self.take(found["inline"], found["value"].strip(), where)
        elif self._over:
            pass
        elif found["late"]:
            self._tied = True
        elif found["tuplet"]:
            count = int(found["tuplet"])
            into = int(found["q"] or _IN_THE_TIME_OF.get(count, 3 if self._compound else 2))
            self._tuplet = int(found["r"] or count), Fraction(into, max(1, count))
        elif found["chord"]:
            inside = _PITCH.findall(_WORDS.sub("", found["chord"]))
            first = _length(inside[0][3]) if inside else Fraction(1)
            pitches = tuple(sorted({self._pitch(*part[:3]) for part in inside}))
            tied = bool(found["tied"]) or (bool(inside) and all(part[4] for part in inside))
            self._add(pitches, first * _length(found["length"]), tied)
        elif found["note"]:
            length = _length(found["long"])
            if found["note"] in "zx":
                self._add((), length, False)
            elif found["note"] in "ZX":  # rests of whole bars
                self._add((), length * 4 * self._meter / self._of_unit(), False)
            else:
                pitch = _PITCH.fullmatch(found["note"])
                one = self._pitch(*pitch.groups()[:3]) if pitch else 0
                self._add((one,), length, bool(found["tie"]))
        elif found["broken"]:
            self._break(found["broken"])

    def _of_unit(self) -> Fraction:
        if self._unit is None:
            self._unit = Fraction(1, 4) if self._meter < Fraction(3, 4) else Fraction(1, 2)
        return self._unit

    def _break(self, marks: str) -> None:
        """``a>b``: the first note is longer by half, the second shorter; ``<`` the reverse."""
        voice = self._voices.get(self._voice)
        if voice:
            less = Fraction(1, 2 ** len(marks))
            now, then = (2 - less, less) if marks[0] == ">" else (less, 2 - less)
            notes, length = voice[-1]
            voice[-1] = notes, length + (now - 1) * self._last
            self._broken = then

    def _add(self, notes: tuple[int, ...], units: Fraction, tied: bool) -> None:
        length = units * self._of_unit() * (self._broken or 1)
        self._broken = None
        left, factor = self._tuplet
        if left:
            length, self._tuplet = length * factor, (left - 1, factor)
        voice = self._voices.setdefault(self._voice, [])
        if self._tied and voice and voice[-1][0] == notes:
            voice[-1] = notes, voice[-1][1] + length
        else:
            voice.append((notes, length))
        self._last, self._tied = length, tied
        self._held.clear()

    def _pitch(self, accidental: str, letter: str, octave: str) -> int:
        up = octave.count("'") - octave.count(",") + letter.islower()
        place = letter.upper(), up
        if accidental:
            self._bar[place] = accidental.count("^") - accidental.count("_")
        shift = {**self._held, **self._bar}.get(place, self._key.get(letter.upper(), 0))
        return min(max(60 + 12 * up + _STEPS[letter.upper()] + shift, 0), MOST_NOTE)


def write_abc(symbols: Sequence[str], title: str = "isospike") -> str:
    r"""A tune of notes in ABC notation, every pitch with its accidental.

    Args:
        symbols: As :func:`~isospike.data.notes.note_symbol` has them.
        title: Of the tune, one line.

    Returns:
        The text of a file.

    Raises:
        InputError: A symbol that is no note.

    >>> write_abc(["62/12", "66/12", "rest/24"]).split("\n")[-2]
    '=D12 ^F12 z24'
    """
    parts = []
    for symbol in symbols:
        notes, length = chord_of(symbol)
        letters = [_letter(note) for note in notes]
        chord = f"[{''.join(letters)}]" if len(letters) > 1 else "".join(letters) or "z"
        parts.append(f"{chord}{length}")
    lines = [" ".join(parts[i : i + 12]) for i in range(0, len(parts), 12)]
    head = ["X:1", f"T:{' '.join(title.split())}", f"L:1/{4 * QUARTER}", "K:none"]
    return "\n".join([*head, *lines, ""])


def _letter(note: int) -> str:
    name, octave = _NAMES[note % 12], note // 12 - 5
    name = name if "^" in name else f"={name}"
    return f"{name}{chr(39) * octave}" if octave >= 0 else f"{name}{',' * -octave}"


def _is_music(text: str) -> bool:
    """Whether a line is all notes and what goes with them."""
    at, notes, bars = 0, 0, 0
    while at < len(text) and (found := _TOKEN.match(text, at)):
        at, notes = found.end(), notes + bool(found["note"] or found["chord"])
        bars += bool(found["bar"])
    return at == len(text) and notes > 0 and notes + bars > 1


def _length(text: str) -> Fraction:
    """``3``, ``/2``, ``3/2``, ``/``, ``//``: of the unit."""
    top, _, rest = text.partition("/")
    if "/" not in text:
        return Fraction(int(top or 1))
    halves = 2 ** (rest.count("/") + 1) if not rest.strip("/") else int(rest.strip("/") or 1)
    return Fraction(int(top or 1), max(1, halves))


def _fraction(text: str) -> Fraction | None:
    found = re.fullmatch(r"(\d{1,4})\s*/\s*(\d{1,4})", text.split("=")[0].strip())
    return Fraction(int(found[1]), int(found[2])) if found and int(found[2]) else None


def _key(value: str, where: str) -> dict[str, int]:
    """Sharps and flats of a key, by the letter."""
    extra = {letter.upper(): mark.count("^") - mark.count("_")
             for mark, letter in _EXTRA.findall(value)}  # fmt: skip
    if value.lower() in ("", "none") or re.match(r"\w+=|perc|exp|[_^=]", value):
        return extra
    if value.startswith(("HP", "Hp")):
        return {"F": 1, "C": 1}
    found = _KEY.match(value)
    mode = (found[3] if found else "").lower()
    short = mode if mode == "m" else mode[:3]
    if found is None:
        raise InputError(
            f"read_abc needs a key such as K:D or K:Em, got {value[:40]!r} in {where}. Mend it."
        )
    if re.search(r"\bexp\b", value):
        return extra
    fifths = _FIFTHS[found[1]] + 7 * ((found[2] == "#") - (found[2] == "b")) + _MODES.get(short, 0)
    letters = "FCGDAEB" if fifths > 0 else "BEADGCF"
    return {**{letter: int(math.copysign(1, fifths)) for letter in letters[: abs(fifths)]}, **extra}
