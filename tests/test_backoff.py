"""The back-off context, the n-gram beside it, and the two commands."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from isospike.cli import app
from isospike.data import chorales, read_melodies
from isospike.errors import InputError
from isospike.memory import Backoff, BackoffNgram, SequenceMachine

words = st.text("abcd", max_size=60)


def kneser_ney(text, alphabet, depth):
    """The same probabilities from exact counts, straight from the formula."""
    counts = defaultdict(Counter)
    found = []
    for i, symbol in enumerate(text):
        p = dict.fromkeys(alphabet, 1 / len(alphabet))
        for length in range(min(depth, i) + 1):
            seen = counts[text[i - length : i]]
            if not seen:
                break
            n, u = seen.total(), len(seen)
            p = {s: (max(seen[s] - 0.75, 0) + 0.75 * u * p[s]) / n for s in alphabet}
        found.append(p)
        for length in range(min(depth, i), -1, -1):
            seen = counts[text[i - length : i]]
            seen[symbol] += 1
            if seen[symbol] > 1:
                break
    return found


@given(words, st.integers(1, 6))
def test_back_off_predicts_kneser_ney_probabilities(text, depth):
    machine = SequenceMachine("abcd", context=Backoff(depth=depth, synapses=2**16))
    for symbol, expected in zip(text, kneser_ney(text, "abcd", depth), strict=True):
        guess = machine.predict(4)
        if guess.similarity:
            got = dict(guess.alternatives)
            assert all(math.isclose(got[s], expected[s], abs_tol=1e-5) for s in "abcd")
            assert math.isclose(sum(got.values()), 1, abs_tol=1e-5)
        machine.learn(symbol)


def test_back_off_by_hand():
    machine = SequenceMachine("ab", context=Backoff(depth=1))
    machine.learn_sequence("aab")
    # Context "": a 1 (nothing before it), then counted in "a" as well: a 2; b 1.
    # p(b) = (1/4 + 3/4 * 2 * 1/2) / 3 = 1/3, p(a) = 2/3. "b" has not been met yet.
    assert machine.predict().symbol == "a"
    assert math.isclose(machine.predict().similarity, 2 / 3, abs_tol=1e-6)
    machine.learn_sequence("ab")
    # Context "" has a once more, after "b": a 3, b 1; "b" is known after "a", so not b again.
    # p(a) = (9/4 + 3/4) / 4 = 3/4, and after "b": p(a) = 1/4 + 3/4 * 3/4.
    assert machine.predict().symbol == "a"
    assert math.isclose(machine.predict().similarity, 13 / 16, abs_tol=1e-6)


@given(words)
def test_a_stream_equals_its_symbols_one_by_one(text):
    one, other = (SequenceMachine("abcd", context=Backoff(synapses=2**12)) for _ in range(2))
    right = one.learn_sequence(text).tolist()
    singly = []
    for symbol in text:
        guess = other.predict()
        singly.append(guess.similarity > 0 and guess.symbol == symbol)
        other.learn(symbol)
    assert right == singly
    assert one.predict() == other.predict()


def test_few_synapses_share_counts_and_still_predict():
    text = "the cat sat on the mat " * 20
    small = SequenceMachine(sorted(set(text)), context=Backoff(synapses=256))
    assert small.synapses == 256
    right, match, margin = small.match_sequence(text, learn=True)
    assert right[-100:].mean() > 0.3
    assert (margin >= 0).all()
    assert match.max() <= 1 + 1e-6


def test_back_off_machines_are_saved(tmp_path):
    machine = SequenceMachine(context=Backoff(), grow=True)
    machine.learn_sequence("to be or not to be")
    machine.metadata["unit"] = "char"
    machine.save(tmp_path / "m")
    again = SequenceMachine.load(tmp_path / "m")
    assert again.metadata == {"unit": "char"}
    assert again.generate("to b", 3) == machine.generate("to b", 3)
    assert again.learn_sequence("or not").tolist() == machine.learn_sequence("or not").tolist()


def test_the_ngram_backs_off_to_the_longest_context_it_has_met():
    ngram = BackoffNgram(2)
    assert ngram.predict() is None
    assert ngram.learn_sequence("abab") == [False, False, True, True]
    ngram.reset_context()
    assert ngram.predict() == "a"  # a and b twice each: the earlier


def test_chorales_are_chords_of_midi_numbers():
    assert [len(chorales(s)) for s in ("train", "valid", "test")] == [229, 76, 77]
    assert chorales("test")[0][:2] == ["72-76-79-84", "72-76-79-84"]
    with pytest.raises(InputError, match="split"):
        chorales("dev")


@pytest.mark.parametrize(
    ("content", "melodies"),
    [
        ("[60, 62, 64]", [["60", "62", "64"]]),
        ("[[60, 62], [64]]", [["60", "62"], ["64"]]),
        ("[[[64, 60], [], [67]]]", [["60-64", "rest", "67"]]),
    ],
)
def test_melodies_are_read(tmp_path, content, melodies):
    (tmp_path / "m.json").write_text(content)
    assert read_melodies(tmp_path / "m.json") == melodies


@pytest.mark.parametrize(
    "content", ["{", '"text"', "[]", "[[]]", '[["a"]]', "[[[1.5]]]", "{}", "7"]
)
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(InputError, match="read_melodies needs"):
        read_melodies(tmp_path / "m.json")


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_learn_and_recall(tmp_path):
    text = tmp_path / "song.txt"
    text.write_text("row row row your boat gently down the stream\n" * 5)
    model = tmp_path / "out" / "song"
    done = call("learn", text, "--out", model, "--json")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["symbols"] == 225
    assert 0.5 < result["accuracy"] < 1
    assert 0.5 < result["ngram_5"] < 1
    done = call("recall", model, "--prompt", "gently d", "--symbols", 14)
    assert done.stdout == "gently down the stream\n"
    # A machine that is there learns on, and keeps its unit.
    assert json.loads(call("learn", text, "--out", model, "--json").stdout)["accuracy"] > 0.9
    done = call("learn", text, "--out", model, "--unit", "word")
    assert done.exit_code == 2
    assert "unit" in done.stderr


@pytest.mark.parametrize("unit", ["word", "line"])
def test_units(tmp_path, unit):
    text = tmp_path / "song.txt"
    text.write_text("one two\nthree\n" * 4)
    assert call("learn", text, "--unit", unit, "--out", tmp_path / "m", "--json").exit_code == 0
    done = call("recall", tmp_path / "m", "--prompt", "one two", "--symbols", 1)
    assert done.stdout.split() == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("learn", "none.txt"), "existing file"),
        (("learn", "shakespeare", "--limit", "0"), "--limit"),
        (("recall", "none"), "machine's file"),
        (("learn", "chorales", "--limit", "20", "--out", "{}/m"), None),
        (("recall", "{}/m", "--prompt", "x"), "has learned"),
        (("recall", "{}/m", "--symbols", "-1"), "--symbols of at least 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path_factory, arguments, message):
    place = tmp_path_factory.getbasetemp() / "mistakes"
    if message in ("has learned", "--symbols of at least 0"):
        call("learn", "chorales", "--limit", "20", "--out", place / "m")
    done = call(*[a.format(place) for a in arguments])
    if message is None:
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_margin_tells_right_from_wrong():
    text = "the cat sat on the mat and the dog sat on the log " * 6
    machine = SequenceMachine(sorted(set(text)), context=Backoff())
    right, match, margin = machine.match_sequence(text, True)
    assert right.shape == match.shape == margin.shape == (len(text),)
    assert margin[right].mean() > margin[~right].mean()
    assert np.all(margin <= match + 1e-6)
