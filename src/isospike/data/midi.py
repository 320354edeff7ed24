"""Tunes in standard MIDI files as notes, and back, through mido."""

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from isospike.data.notes import QUARTER, chord_of, note_symbol
from isospike.errors import InputError, MissingExtraError, first_sentence
from isospike.report.reading import read_file

_DRUMS = 9  # channel of percussion, whose numbers are no pitches
_SHORT = 3  # shorter gaps between notes are the player's, not rests
_VELOCITY = 80


def read_midi(path: str | os.PathLike[str]) -> list[list[str]]:
    """Read the notes of a MIDI file, a melody for every track and channel that has any.

    Notes that begin together are a chord. A note lasts until the next one of its melody, unless it
    ends well before: then a rest follows. Percussion is left out.

    Args:
        path: The file, of format 0 or 1.

    Returns:
        The notes of each melody: see :func:`~isospike.data.notes.note_symbol`.

    Raises:
        InputError: The file is missing, unreadable, cut, no MIDI file, or has no notes.
        MissingExtraError: mido is not installed.

    >>> read_midi("tune.mid")  # doctest: +SKIP
    [['60-64/24', 'rest/12', '62/12']]
    """
    mido, name = _mido("read_midi"), os.fspath(path)
    data = read_file(path, "read_midi")
    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        beat = file.ticks_per_beat
    except Exception as error:  # noqa: BLE001 - of a library: whatever is in the file
        why = first_sentence(error).rstrip(".") or "it ends too early"
        raise InputError(
            f"read_midi needs a whole MIDI file, got {name!r} ({why}). It may be cut: export it "
            "again."
        ) from None
    if beat <= 0:
        raise InputError(
            f"read_midi needs lengths in beats, got times of a film in {name!r}. Export it again."
        )
    melodies = [melody for track in file.tracks for melody in _melodies(track, beat)]
    if not melodies:
        raise InputError(
            f"read_midi needs notes, got none in {name!r}. Percussion does not count; name another."
        )
    return melodies


def _melodies(track: Any, beat: int) -> list[list[str]]:
    """The notes of each channel of a track, in the order of the channels."""
    now = 0
    begun: dict[tuple[int, int], int] = {}
    found: dict[int, list[tuple[int, int, int]]] = {}  # start, end, pitch
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
            continue
        key = message.channel, message.note
        if key in begun:
            found[message.channel].append((begun.pop(key), _units(now, beat), message.note))
        if message.type == "note_on" and message.velocity:
            begun[key] = _units(now, beat)
            found.setdefault(message.channel, [])
    for (channel, note), start in begun.items():  # never ended
        found[channel].append((start, max(start + 1, _units(now, beat)), note))
    return [_symbols(notes) for _, notes in sorted(found.items()) if notes]


def _units(ticks: int, beat: int) -> int:
    return round(Fraction(ticks * QUARTER, beat))


def _symbols(notes: list[tuple[int, int, int]]) -> list[str]:
    """Chords and rests, one after another."""
    chords: dict[int, tuple[set[int], int]] = {}
    for start, end, pitch in sorted(notes):
        pitches, last = chords.get(start, (set(), 0))
        chords[start] = pitches | {pitch}, max(last, end)
    starts, out = sorted(chords), []
    for start, then in zip(starts, [*starts[1:], None], strict=True):
        pitches, end = chords[start]
        if then is not None and (end > then or then - end < _SHORT):
            end = then
        out.append(note_symbol(tuple(sorted(pitches)), end - start))
        if then is not None and then > end:
            out.append(note_symbol((), then - end))
    return out


def write_midi(symbols: Sequence[str], tempo: int = 120) -> bytes:
    """A tune of notes as a MIDI file of one track.

    Args:
        symbols: As :func:`~isospike.data.notes.note_symbol` has them.
        tempo: Quarter notes a minute.

    Returns:
        The bytes of the file.

    Raises:
        InputError: A symbol that is no note.
        MissingExtraError: mido is not installed.

    >>> write_midi(["60-64/24", "rest/12", "62/12"])[:4]  # doctest: +SKIP
    b'MThd'
    """
    mido = _mido("write_midi")
    file = mido.MidiFile(ticks_per_beat=QUARTER * 20)
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)))
    wait = 0
    for symbol in symbols:
        notes, length = chord_of(symbol)
        ticks = 20 * length
        if not notes:
            wait += ticks
            continue
        for kind, before in (("note_on", wait), ("note_off", ticks)):
            for i, note in enumerate(notes):
                time = 0 if i else before
                track.append(mido.Message(kind, note=note, velocity=_VELOCITY, time=time))
        wait = 0
    track.append(mido.MetaMessage("end_of_track", time=wait))
    file.tracks.append(track)
    out = io.BytesIO()
    file.save(file=out)
    return out.getvalue()


def _mido(who: str) -> Any:
    try:
        import mido
    except ImportError:
        raise MissingExtraError(f"{who} needs mido, got none. Install isospike[music].") from None
    return mido
