"""Tunes as notes: ABC and MIDI, in and out, and what is none."""

import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from isospike.cli import app
from isospike.data import read_abc, read_midi, read_sequences, write_abc, write_midi
from isospike.data.notes import chord_of, note_symbol
from isospike.errors import InputError, MissingExtraError

pitches = st.lists(st.integers(0, 127), max_size=3, unique=True).map(lambda p: tuple(sorted(p)))
notes = st.tuples(pitches, st.integers(3, 200))
tunes = st.lists(notes, min_size=1, max_size=20).filter(lambda t: any(chord for chord, _ in t))

# Ours: a tune in two parts, with what a reader has to know.
TUNE = """\
X:1
T:The Wheel and the Counter
M:6/8
L:1/8
K:Em
"Em"EFG !trill!B2 e|^dB^d e3|{g}f>g a z3|(3BAG F2 [EGB]-[EGB]:|
w: not a note
[M:2/4][L:1/16] E4 E4-|E4 =f2^f2|]

X:2
T:Second
K:C
c/ C, c' _B B | B// z
"""


def written(tmp_path, text, name="t.abc"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_tune_of_abc_by_hand(tmp_path):
    first, second = read_abc(written(tmp_path, TUNE))
    assert first == [
        "64/12", "66/12", "67/12", "71/24", "76/12",
        "75/12", "71/12", "75/12", "76/36",
        "78/18", "79/6", "81/12", "rest/36",
        "71/8", "69/8", "67/8", "66/24", "64-67-71/24",
        "64/24", "64/48", "77/12", "78/12",
    ]  # fmt: skip
    assert second == ["72/6", "48/12", "84/12", "70/12", "70/12", "71/3", "rest/12"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("C", 65), ("G", 66), ("Ddor", 65), ("D", 66), ("Bb", 65), ("Amix", 66), ("Fm", 65),
     ("F#", 66), ("C Lydian", 66), ("none", 65), ("HP", 66)],
)  # fmt: skip
def test_a_key_has_its_sharps(tmp_path, key, expected):
    (tune,) = read_abc(written(tmp_path, f"X:1\nL:1/4\nK:{key}\nF\n"))
    assert tune == [f"{expected}/24"]


@pytest.mark.parametrize(
    "bars", ["C|[EG]2|", "C| [EG]2|", "C||[EG]2|]", "C|:[EG]2:|", "C|1[EG]2|", "C|[1[EG]2|"]
)
def test_a_chord_may_follow_a_bar_at_once(tmp_path, bars):
    file = tmp_path / "tune.abc"
    file.write_text(f"X:1\nL:1/8\nK:C\n{bars}\n")
    assert read_abc(file) == [["60/12", "64-67/24"]]


@pytest.mark.parametrize(
    ("bars", "expected"),
    [("kC2vD2 UE2~F2", ["60/24", "62/24", "64/24", "65/24"]),
     ("C2 - C2 -| -C2", ["60/72"]),
     ("C2 -D2", ["60/24", "62/24"]),
     ("[.C(kE)]2 [ C~E ]2", ["60-64/24", "60-64/24"]),
     ("C2 & E2 E2|D2", ["60/24", "62/24"]),
     ("!C2 D2!", ["60/24", "62/24"]),
     ("C2\n%note\nD2", ["60/24", "62/24"]),
     ("C2\n\nSee the book, page 12.", ["60/24"])],
)  # fmt: skip
def test_what_collections_of_tunes_write(tmp_path, bars, expected):
    text = f"X:1\nL:1/8\n  1 2 3 of a comment\nI :: ::\nK:C\n{bars}\n"
    assert read_abc(written(tmp_path, text)) == [expected]


def test_what_lies_over_a_bar_ends_with_its_voice(tmp_path):
    text = "X:1\nL:1/8\nK:C\nV:1\nC2 & E2\nV:2\nG2 A2|B2\n"
    assert read_abc(written(tmp_path, text)) == [["60/24"], ["67/24", "69/24", "71/24"]]


def test_lengths_before_the_first_tune_are_those_of_all(tmp_path):
    text = "L:1/16\nM:3/4\n\nX:1\nK:C\nC2|\n\nX: marks the spot\n\nX:2\nL:1/4\nK:C\nD|\n"
    assert read_abc(written(tmp_path, text)) == [["60/12"], ["62/24"]]


@pytest.mark.parametrize(
    "body",
    ["K:C\nC2|\nThe end of side two\n", "K:C\nC2 Fine D2|\n", "CDEF|\nK:C\nG2|\n", "CDEF|\n",
     "K:C\nC1/2/3|\n", "K:C\n[" + 30 * "C))" + "|\n", "K:C\n" + '[' + 40 * '"' + "|\n"],
)  # fmt: skip
def test_what_may_be_no_music_is_refused_with_its_line(tmp_path, body):
    with pytest.raises(InputError, match=r"read_abc needs .* in line \d"):
        read_abc(written(tmp_path, f"X:1\nL:1/8\n{body}"))


def test_a_length_has_six_digits_at_most(tmp_path):
    (tune,) = read_abc(written(tmp_path, "X:1\nL:1/4\nK:C\nC z50000 D90000000\n"))
    assert tune == ["60/24", "rest/999999", "62/999999"]
    assert all(chord_of(note)[1] for note in tune)


def test_voices_are_melodies_of_their_own(tmp_path):
    text = "X:1\nL:1/4\nK:C\nV:1\nCD\nV:2\nE2\n[V:1]E\n"
    assert read_abc(written(tmp_path, text)) == [["60/24", "62/24", "64/24"], ["64/48"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X:1\nT:cut\nCDEF\n", "needs a key .K:. before the notes, got 'CDEF' in line 3 of"),
        ("X:1\nK:C\nCDE [CE\n", r"needs notes, got '\[CE' in line 3 of .*cut there"),
        ('X:1\nK:C\nC "Am\n', "needs notes, got '\"Am' in line 3"),
        ("X:1\nK:H\nC\n", "needs a key such as K:D or K:Em, got 'H' in line 2"),
        ("X:1\nK:C\nz4|\n", "needs tunes with notes, got none"),
        ("no tune at all\n", "needs tunes with notes, got none"),
    ],
)
def test_a_tune_that_is_cut_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_abc(written(tmp_path, text))


@settings(deadline=None)
@given(tunes)
def test_abc_comes_back_as_it_was_written(tmp_path_factory, tune):
    tune = [note_symbol(*part) for part in tune]
    path = written(tmp_path_factory.mktemp("a"), write_abc(tune))
    assert read_abc(path) == [tune]


@settings(deadline=None)
@given(st.text("XK:CDab|[](){}!\"<>/1234_^=',zZ-\n ", max_size=80))
def test_whatever_abc_holds_it_is_read_or_refused(tmp_path_factory, text):
    path = written(tmp_path_factory.mktemp("a"), f"X:1\nK:C\nC{text}")
    found, refusal = [], ""
    try:
        found = read_abc(path)
    except InputError as error:
        refusal = str(error)
    assert bool(found) != refusal.startswith("read_abc needs")
    assert all(chord_of(note)[1] >= 1 for tune in found for note in tune)


def test_a_symbol_is_a_chord_and_a_length():
    assert chord_of("60-64-67/12") == ((60, 64, 67), 12)
    assert chord_of("60") == ((60,), 24)
    for wrong in ("H", "128/4", "60/", "", "60--64"):
        with pytest.raises(InputError, match="a tune needs notes such as"):
            chord_of(wrong)


def monophonic(tune):
    """Without rests at both ends, and rests put together: what a MIDI file can say."""
    out = []
    for symbol in tune:
        chord, length = chord_of(symbol)
        if out and not chord and not out[-1][0]:
            out[-1] = (), out[-1][1] + length
        elif chord or out:
            out.append((chord, length))
    while out and not out[-1][0]:
        out.pop()
    return [note_symbol(*part) for part in out]


@settings(deadline=None)
@given(tunes)
def test_midi_comes_back_as_it_was_written(tmp_path_factory, tune):
    pytest.importorskip("mido")
    tune = [note_symbol(*part) for part in tune]
    path = tmp_path_factory.mktemp("m") / "t.mid"
    path.write_bytes(write_midi(tune))
    assert read_midi(path) == [monophonic(tune)]


def midi_file(*tracks):
    """Bytes of a MIDI file, by mido, 480 ticks a quarter note."""
    mido = pytest.importorskip("mido")
    file, out = mido.MidiFile(), io.BytesIO()
    for messages in tracks:
        file.tracks.append(mido.MidiTrack(mido.Message(*m[:1], **m[1]) for m in messages))
    file.save(file=out)
    return out.getvalue()


def on(note, time, channel=0, velocity=64):
    return "note_on", {"note": note, "time": time, "channel": channel, "velocity": velocity}


def test_tracks_and_channels_are_melodies_and_drums_are_none(tmp_path):
    data = midi_file(
        [on(60, 0), on(64, 0), on(60, 470, velocity=0), on(64, 0, velocity=0), on(62, 10),
         on(62, 240, velocity=0), on(65, 240), on(65, 480, velocity=0)],
        [on(40, 0, channel=9), on(50, 480, channel=2), on(50, 960, channel=2, velocity=0)],
    )  # fmt: skip
    (tmp_path / "t.mid").write_bytes(data)
    expected = [["60-64/24", "62/12", "rest/12", "65/24"], ["50/48"]]
    assert read_midi(tmp_path / "t.mid") == read_sequences(tmp_path / "t.mid") == expected


def test_a_midi_file_that_is_cut_or_without_notes_is_refused(tmp_path):
    data = midi_file([on(60, 0), on(60, 480, velocity=0)])
    path = tmp_path / "t.mid"
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"^read_midi needs"):
            read_midi(path)
    path.write_bytes(midi_file([on(40, 0, channel=9)]))
    with pytest.raises(InputError, match="read_midi needs notes, got none in"):
        read_midi(path)
    path.write_bytes(b"MThd" + bytes(range(256)))
    with pytest.raises(InputError, match="needs a whole MIDI file"):
        read_midi(path)


def test_without_mido_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(MissingExtraError, match=r"write_midi needs mido.*isospike\[music\]"):
        write_midi(["60"])


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_tune_is_learned_and_written(tmp_path):
    source, machine = written(tmp_path, TUNE), tmp_path / "m.safetensors"
    assert "29 symbols of" in call("learn", source, "--out", machine).stdout
    done = call("recall", machine, "--prompt", "64/12 66/12", "--symbols", 6,
                "--out", tmp_path / "o.abc")  # fmt: skip
    assert done.exit_code == 0
    (tune,) = read_abc(tmp_path / "o.abc")
    assert tune == done.stdout.split()
    assert tune[:4] == ["64/12", "66/12", "67/12", "71/24"]


@pytest.mark.parametrize(
    ("name", "unit", "message"),
    [("o.wav", "melody", "needs --out to end in .mid or .midi or .abc, got"),
     ("o.mid", "char", "needs a machine of melodies for --out, got one of the unit char")],
)  # fmt: skip
def test_what_is_no_tune_is_not_written(tmp_path, name, unit, message):
    source = written(tmp_path, TUNE, "t.abc" if unit == "melody" else "t.txt")
    call("learn", source, "--out", tmp_path / "m")
    done = call("recall", tmp_path / "m", "--out", tmp_path / name)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / name).exists()
