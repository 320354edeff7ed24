"""Machines of notes: what is known in one key is known in all."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import content, refused, rewritten
from typer.testing import CliRunner

from isospike.cli import app
from isospike.data import chorales, read_melodies
from isospike.errors import InputError
from isospike.kernels.machine import intervals
from isospike.memory import Mixed, SequenceMachine
from isospike.memory.notes import Notes

chords = st.lists(st.integers(36, 84), max_size=4, unique=True).map(
    lambda notes: "-".join(map(str, sorted(notes))) or "rest"
)
TUNE = "60 62 64 60 60 62 64 60 64 65 67 67 64 65 67 67".split()
BACH = [chord for piece in chorales()[:30] for chord in piece]


def machine(symbols=(), notes=True, **more):
    return SequenceMachine(symbols, context=Mixed(notes=notes, **more), grow=True)


def higher(tune, by):
    return ["-".join(str(int(n) + by) for n in chord.split("-")) for chord in tune]


def test_a_tune_is_known_in_another_key():
    again = higher(TUNE, 5)
    bits = {}
    for notes in (False, True):
        one = machine(sorted({*TUNE, *again}), notes)
        one.learn_sequence(TUNE * 3)
        one.reset_context()
        bits[notes] = one.surprise_sequence(again)[4:].mean()
    assert bits[True] < 1.5
    assert bits[False] > 3


def test_what_follows_is_a_shape_at_a_distance_by_hand():
    one = machine(["60", "64", "60-64-67", "65-69-72", "72-76-79", "rest"])
    one.follow("60")
    m = one.memory._mixture
    fifth = intervals.distance(m, 2)  # the chord over the same note
    assert fifth % 256 == 128
    assert intervals.at_distance(m, fifth) == 2
    one.follow("65-69-72")
    assert m.tone[intervals.PITCH] == 65
    assert intervals.at_distance(m, fifth) == 3  # now the same chord over 65
    assert intervals.distance(m, 5) % 256 == 128  # a rest lies nowhere
    one.follow("rest")
    assert m.tone[intervals.PITCH] == 65
    one.follow("64")
    assert intervals.at_distance(m, fifth) == -1  # none over 64 in the alphabet


@settings(deadline=None)
@given(st.lists(chords, min_size=1, max_size=30, unique=True), st.lists(chords, max_size=10))
def test_every_symbol_is_found_at_its_distance(symbols, before):
    one = machine(symbols)
    for chord in before:
        one.follow(chord)
    m = one.memory._mixture
    for number, _ in enumerate(one.symbols):
        assert intervals.at_distance(m, intervals.distance(m, number)) == number


@pytest.mark.parametrize("home", range(12))
def test_the_key_is_that_of_a_scale_and_of_its_relative_minor(home):
    for steps in ((0, 2, 4, 5, 7, 9, 11, 12), (-3, -1, 0, 2, 4, 5, 7, 9)):
        one = machine()
        one.learn_sequence([str(60 + home + step) for step in steps * 2])
        assert one.memory._mixture.tone[intervals.HOME] == home


def test_chorales_are_predicted_better_than_without_intervals():
    accuracy = {notes: machine(sorted(set(BACH)), notes).learn_sequence(BACH).mean()
                for notes in (False, True)}  # fmt: skip
    assert accuracy[True] > accuracy[False] + 0.02


@settings(deadline=None)
@given(st.lists(chords, max_size=60), st.integers(0, 60))
def test_a_file_is_the_machine(tmp_path_factory, tune, cut):
    path = tmp_path_factory.mktemp("notes") / "m"
    one = machine()
    one.learn_sequence(tune[:cut])
    one.save(path)
    other, third = SequenceMachine.load(path), copy.deepcopy(one)
    rest = [*tune[cut:], "60", "64-67/12"]
    expected = one.surprise_sequence(rest)
    assert np.array_equal(other.surprise_sequence(rest), expected)
    assert np.array_equal(third.surprise_sequence(rest), expected)


def test_one_symbol_at_a_time_is_a_stream():
    one, other = machine(sorted(set(BACH[:600]))), machine(sorted(set(BACH[:600])))
    right, match, _ = one.match_sequence(BACH[:600], learn=True)
    for symbol, hit, expected in zip(BACH, right, match, strict=False):
        guess = other.predict()
        assert np.float32(guess.similarity) == expected
        assert (guess.symbol == symbol) == hit
        other.learn(symbol)


@pytest.mark.parametrize("when_full", ["keep", "forget", "grow"])
def test_a_full_store_goes_on(when_full, tmp_path):
    one = machine(synapses=4096, when_full=when_full)
    one.learn_sequence(BACH[:1500])
    assert one.full == (when_full == "keep")
    assert (one.synapses <= 4096) == (when_full != "grow")
    one.save(tmp_path / "m")
    again = SequenceMachine.load(tmp_path / "m")
    assert np.array_equal(
        one.surprise_sequence(BACH[1500:1600]), again.surprise_sequence(BACH[1500:1600])
    )


@pytest.mark.parametrize(
    "symbol",
    [
        "x",
        "128",
        "60-",
        "60/x",
        "-5",
        (60, 64),
        1.5,
        -1,
        200,
        True,
        pytest.param(10**5000, id="large"),
    ],
)
def test_what_is_no_note_is_refused_and_nothing_is_learned(symbol):
    one, other = machine(), machine()
    for each in (one, other):
        each.learn_sequence(TUNE)
    with pytest.raises(InputError, match="a tune needs notes such as 60"):
        one.learn(symbol)
    with pytest.raises(InputError, match="a tune needs notes such as 60"):
        one.learn_sequence(["72", symbol])
    assert one.symbols == other.symbols
    more = ["71", "67", "74"]
    assert np.array_equal(one.surprise_sequence(more), other.surprise_sequence(more))


def test_numbers_are_notes_too():
    one = machine()
    one.learn_sequence([60, 62, 64, 60] * 4 + [65, 67, 69])
    assert one.generate([65, 67, 69], 1) == [65]


def test_two_names_of_a_chord_are_two_symbols():
    one = machine(["60-64", "64-60", "60/24"])
    one.learn_sequence(["64-60", "60-64", "60/24"] * 5)
    assert one.predict().symbol == "64-60"


def test_cleared_a_memory_keeps_its_notes():
    one, other = machine(sorted(set(TUNE))), machine(sorted(set(TUNE)))
    one.learn_sequence(TUNE)
    one.memory.clear()
    one.reset_context()
    assert np.array_equal(one.surprise_sequence(TUNE), other.surprise_sequence(TUNE))


def test_a_memory_of_notes_needs_the_symbols():
    with pytest.raises(InputError, match="resize needs the new symbols"):
        machine(["60"]).memory.resize(2)
    one = machine(["60"])
    with pytest.raises(InputError, match="resize needs the new symbols .*, got 1"):
        one.memory.resize(3, ["62"])
    one.learn("64")  # goes on
    assert one.symbols == ["60", "64"]


def test_tables_grow_past_their_room():
    every = [f"{n}/{length}" for length in range(1, 12) for n in range(128)]
    one, other = Notes(), Notes()
    one.add(every)
    for symbol in every:
        other.add([symbol])
    assert np.array_equal(one.rows, other.rows)
    found = [intervals.find_note(t.rows, t.index, row[intervals.SHAPE], row[intervals.LOWEST])
             for t in (one, other) for row in t.rows]  # fmt: skip
    assert found == [*range(len(every))] * 2


def test_a_file_from_before_there_were_notes_is_read(tmp_path):
    one = machine("abc", notes=False)
    one.learn_sequence("abcabc")

    def older(about, tensors):
        del about["settings"]["context"]["notes"]

    path = rewritten(content(one), tmp_path / "m", older)
    assert SequenceMachine.load(path).generate("a", 2) == ["b", "c"]


@pytest.mark.parametrize(
    ("name", "change"),
    [("tone", lambda t: np.array([128, 0])), ("tone", lambda t: np.array([60, 12])),
     ("classes", lambda t: np.full(12, np.nan)), ("cell_symbols", lambda t: -t - 1),
     ("cell_symbols", lambda t: t + 1000), ("checks", lambda t: np.where(t < 0, 0, t))],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, name, change):
    one = machine()
    one.learn_sequence(TUNE)

    def damage(about, tensors):
        tensors[name] = change(tensors[name]).astype(tensors[name].dtype)

    refused(rewritten(content(one), tmp_path / "m", damage), f"{name} outside")


def test_the_command_counts_intervals_of_music_alone(tmp_path):
    out = tmp_path / "m.safetensors"
    for file, notes in (("chorales", True), ("shakespeare", False)):
        out.unlink(missing_ok=True)
        done = CliRunner().invoke(app, ["learn", file, "--limit", "300", "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert SequenceMachine.load(out).settings.context.notes is notes


@pytest.mark.parametrize("notes", [[60, 128], [[60, [64, -1]]]])
def test_melodies_have_notes_of_midi(tmp_path, notes):
    path = tmp_path / "song.json"
    path.write_text(json.dumps(notes))
    with pytest.raises(InputError, match="needs MIDI numbers from 0 to 127, got"):
        read_melodies(path)
