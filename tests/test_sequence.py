"""The sequence machine: what it recalls, what it refuses, what survives on disk."""

import json
import os
import random
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from isospike import IsospikeError, RangeError, SequenceMachine
from isospike.memory.machine import Prediction
from isospike.report.files import write_file

CONTEXTS = ("combined", "layer", "shift")  # those that address lines
LETTERS = "abcdefghijklmnopqrstuvwxyz "
TEXT = "the quick brown fox jumps over a lazy dog"
NOTHING = Prediction(None, 0.0, 0.0, (), False)

seeds = st.integers(0, 1000)
words = st.text("abcdef", max_size=30)
contexts = st.sampled_from(CONTEXTS)
rules = st.sampled_from(["or", "max", "add", "decay"])


def small(symbols=LETTERS, context="combined", **more):
    return SequenceMachine(symbols, context, **{"decoder": (8, 11, 1024), **more})


def content(machine):
    """All that a machine has learned, and where it stands."""
    with tempfile.TemporaryDirectory() as folder:
        machine.save(Path(folder) / "m")
        return (Path(folder) / "m").read_bytes()


def one_by_one(machine, sequence):
    """What :meth:`learn_sequence` is: predict, learn, and again."""
    right = []
    for symbol in sequence:
        right.append(machine.predict().symbol == symbol)
        machine.learn(symbol)
    return right


def followed(machine, sequence):
    """Every prediction along a sequence, with the one after it."""
    machine.restart()
    out = [machine.predict(50)]
    for symbol in sequence:
        machine.follow(symbol)
        out.append(machine.predict(50))
    return out


# What it recalls.


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("text", ["a", "hello", TEXT])
def test_a_sequence_learned_once_is_recalled(context, text):
    machine = small(context=context)
    machine.learn_sequence(text)
    machine.restart()
    assert machine.follow_sequence(text).tolist() == [True] * len(text)


@examples(max_examples=30)
@given(contexts, st.permutations(LETTERS), st.integers(1, 27), seeds)
def test_any_sequence_without_repeats_is_recalled(context, order, length, seed):
    machine = small(context=context, seed=seed)
    machine.learn_sequence(order[:length])
    machine.restart()
    assert machine.follow_sequence(order[:length]).all()


@pytest.mark.parametrize("rule", ["or", "max", "add", "decay"])
@pytest.mark.parametrize("data", [None, (11, 256)])
def test_every_rule_and_data_code_recalls(rule, data):
    machine = small(rule=rule, data=data)
    machine.learn_sequence(TEXT)
    machine.restart()
    assert machine.follow_sequence(TEXT).all()


@pytest.mark.parametrize("context", ["combined", "layer"])
def test_a_long_context_tells_apart_what_the_last_symbols_do_not(context):
    # After "xab" comes c, after "yab" d: a register of two symbols sees "ab" both times.
    machine = small(context=context)
    for text in ("xabc", "yabd"):
        machine.restart()
        machine.learn_sequence(text)
    assert machine.generate("xab", 1) == ["c"]
    assert machine.generate("yab", 1) == ["d"]
    register = small(context="shift", depth=2)
    for text in ("xabc", "yabd"):
        register.restart()
        register.learn_sequence(text)
    assert {s for s, match in register.predict(2).alternatives if match == 1} <= {"c", "d"}
    assert register.generate("xab", 1) == register.generate("yab", 1)


def test_by_hand_a_machine_of_one_line():
    # One line fires in every context, so it holds all symbols seen: one of one cells each.
    machine = SequenceMachine("abc", decoder=(1, 1, 1))
    assert machine.predict() == NOTHING
    machine.learn("b")
    assert machine.predict().alternatives == (("b", 1.0), ("a", 0.0), ("c", 0.0))
    assert machine.predict().margin == 1.0
    machine.learn("a")
    assert machine.predict().alternatives == (("a", 1.0), ("b", 1.0), ("c", 0.0))
    assert machine.predict().margin == 0.0


def test_by_hand_a_register_of_depth_one_is_a_table_of_successors():
    machine = small("abc", "shift", depth=1)
    machine.learn_sequence("abca")
    assert machine.generate("", 7) == list("abcabca")
    assert machine.generate("b", 3) == list("cab")


# On-line, and one by one.


@examples(max_examples=60)
@given(contexts, rules, st.sampled_from([None, (3, 20)]), words, words, seeds)
def test_learn_sequence_is_predict_and_learn_symbol_by_symbol(
    context, rule, data, first, second, seed
):
    options = {"rule": rule, "data": data, "seed": seed, "decoder": (8, 11, 128)}
    whole, single = (small("abcdef", context, **options) for _ in range(2))
    for text in (first, second):
        assert whole.learn_sequence(text).tolist() == one_by_one(single, text)
    assert content(whole) == content(single)
    assert whole.predict() == single.predict()


@examples(max_examples=30)
@given(contexts, words, st.integers(0, 30))
def test_a_sequence_may_be_cut_anywhere(context, text, cut):
    whole, parts = (small("abcdef", context, decoder=(8, 11, 128)) for _ in range(2))
    right = whole.learn_sequence(text).tolist()
    pieces = [parts.learn_sequence(text[:cut]), parts.learn_sequence(text[cut:])]
    assert right == [r for piece in pieces for r in piece.tolist()]
    assert content(whole) == content(parts)


@pytest.mark.parametrize("context", CONTEXTS)
def test_follow_sequence_is_predict_and_follow_and_learns_nothing(context):
    whole, single = small(context=context), small(context=context)
    for machine in (whole, single):
        machine.learn_sequence(TEXT)
        machine.restart()
    other = TEXT[:20] + TEXT[4:9]
    right = []
    for symbol in other:
        right.append(single.predict().symbol == symbol)
        single.follow(symbol)
    assert whole.follow_sequence(other).tolist() == right
    assert content(whole) == content(single)
    fresh = small(context=context)
    fresh.learn_sequence(TEXT)
    fresh.restart()
    whole.restart()
    assert content(whole) == content(fresh)


@pytest.mark.parametrize("grow", [False, True])
def test_an_empty_sequence_has_an_empty_result(grow):
    for symbols in ("", "ab"):
        machine = small(symbols, grow=grow)
        before = content(machine)
        assert machine.learn_sequence("").shape == (0,)
        assert machine.follow_sequence(iter(())).shape == (0,)
        assert content(machine) == before


def test_sequences_may_be_iterators():
    listed, drawn = small(), small(iter(LETTERS))
    assert listed.learn_sequence(list(TEXT)).tolist() == drawn.learn_sequence(iter(TEXT)).tolist()
    assert listed.generate("the", 5) == drawn.generate(iter("the"), 5)


# Generate.


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_generate_continues_a_known_text(context, cut):
    machine = small(context=context)
    machine.learn_sequence(TEXT)
    assert "".join(machine.generate(TEXT[:cut], len(TEXT) - cut)) == TEXT[cut:]


def test_generate_stops_where_nothing_is_known():
    assert small().generate("abc", 10) == []
    assert small("").generate("", 10) == []
    machine = small(decoder=(8, 11, 16384))
    machine.learn_sequence("abcde")
    out = machine.generate("", 10**6)
    assert "".join(out) == "abcde"


def test_generate_of_none_is_none_and_of_fewer_is_refused():
    machine = small()
    machine.learn_sequence(TEXT)
    assert machine.generate("the", 0) == []
    before = content(machine)
    with pytest.raises(RangeError, match=r"count >= 0, got -1"):
        machine.generate("the", -1)
    assert content(machine) == before


# Predictions.


def test_an_empty_machine_predicts_nothing():
    assert small("").predict() == NOTHING
    assert small("", grow=True).predict() == NOTHING
    assert small("abc").predict() == NOTHING


@examples(max_examples=60)
@given(contexts, words, st.integers(0, 9), st.sampled_from([None, (3, 20)]))
def test_a_prediction_ranks_its_alternatives(context, text, count, data):
    machine = small("abcdef", context, decoder=(8, 11, 64), data=data)
    machine.learn_sequence(text)
    p = machine.predict(count)
    assert isinstance(p.accepted, bool)
    assert 0 <= p.similarity <= 1
    if p.symbol is None:
        assert p == NOTHING
        return
    everything = machine.predict(6).alternatives
    assert p.alternatives == everything[:count]
    assert sorted(s for s, _ in everything) == list("abcdef")
    assert all(a >= b for (_, a), (_, b) in pairwise(everything))
    assert everything[0] == (p.symbol, p.similarity)
    assert p.margin == pytest.approx(everything[0][1] - everything[1][1], abs=1e-6)


def test_a_lone_symbol_has_all_of_its_similarity_as_margin():
    machine = small("a")
    machine.learn_sequence("aa")
    machine.restart()
    p = machine.predict()
    assert (p.symbol, p.similarity, p.margin, p.alternatives) == ("a", 1.0, 1.0, (("a", 1.0),))


@pytest.mark.parametrize("rule", ["max", "add"])
def test_similarity_is_a_share_under_every_rule(rule):
    machine = small(rule=rule)
    machine.learn_sequence(TEXT)
    assert all(p.similarity <= 1 + 1e-6 for p in followed(machine, TEXT))


@examples(max_examples=20)
@given(contexts, words)
def test_predict_changes_nothing(context, text):
    machine = small("abcdef", context, decoder=(8, 11, 128))
    machine.learn_sequence(text)
    before = content(machine)
    first = machine.predict()
    assert [machine.predict(n) for n in (0, 5, 99)][1] == first
    assert content(machine) == before


# Calibration.


def test_a_guess_of_low_margin_on_random_symbols_is_not_accepted():
    draw = random.Random(1)
    machine = small(LETTERS[:16], decoder=(8, 11, 4096))
    machine.learn_sequence(draw.choices(LETTERS[:16], k=600))
    guesses = followed(machine, draw.choices(LETTERS[:16], k=200))
    low = [p for p in guesses if p.symbol is not None and p.margin < 0.3]
    assert len(low) > 50
    assert not any(p.accepted for p in low)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_guess_of_high_margin_on_a_repeated_sequence_is_accepted(context):
    machine = small(context=context, confidence=0.9)
    for _ in range(20):
        machine.restart()
        machine.learn_sequence(TEXT)
    high = [p for p in followed(machine, TEXT)[:-1] if p.margin > 0.5]
    assert len(high) >= 15
    assert all(p.accepted for p in high)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_a_margin_is_trusted_as_far_as_it_was_right(whole, right):
    # Only z is known to follow a; a guess after it is of margin 1, right or not.
    machine = small("azy", "shift", depth=1, rule="add", confidence=0.75)
    machine.restart()
    machine.follow("a")
    for _ in range(100):
        machine.learn("z")
        machine.restart()
        machine.follow("a")
    assert machine.predict().accepted
    for _ in range(20):
        machine.restart()
        machine.follow("a")
        if whole:
            machine.learn_sequence("z" if right else "y")
        else:
            machine.predict()
            machine.learn("z" if right else "y")
    machine.restart()
    machine.follow("a")
    assert machine.predict().symbol == "z"
    assert machine.predict().accepted is right


def test_a_guess_that_is_followed_is_not_counted():
    machine = small()
    machine.learn_sequence(TEXT)
    machine.restart()
    before = content(machine)
    for symbol in "zzzz":
        machine.predict()
        machine.follow(symbol)
    machine.predict()
    machine.restart()
    assert content(machine) == before


# The alphabet.


@pytest.mark.parametrize("call", ["learn", "follow", "learn_sequence", "follow_sequence"])
def test_an_unknown_symbol_is_named_and_changes_nothing(call):
    machine = small("abc")
    before = content(machine)
    argument = ["a", "b", "Q7"] if "sequence" in call else "Q7"
    with pytest.raises(RangeError, match=r"alphabet of 3, got 'Q7'.*grow=True"):
        getattr(machine, call)(argument)
    assert content(machine) == before


@pytest.mark.parametrize("call", ["learn", "follow", "learn_sequence", "follow_sequence"])
def test_a_growing_machine_takes_an_unknown_symbol(call):
    machine = small("abc", grow=True)
    getattr(machine, call)(["Q7"] if "sequence" in call else "Q7")
    assert machine.symbols == ["a", "b", "c", "Q7"]


@examples(max_examples=40)
@given(contexts, st.text(LETTERS, max_size=40), seeds)
def test_a_grown_machine_equals_one_given_the_alphabet_at_once(context, text, seed):
    options = {"grow": True, "seed": seed, "decoder": (8, 11, 128)}
    alphabet = dict.fromkeys(text)
    whole, single, given_all = (
        small(known, context, **options) for known in ("", alphabet and text[0], alphabet)
    )
    right = given_all.learn_sequence(text).tolist()
    assert whole.learn_sequence(text).tolist() == right
    assert one_by_one(single, text) == right
    assert content(whole) == content(single) == content(given_all)
    assert followed(whole, text) == followed(single, text) == followed(given_all, text)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_machine_that_grows_while_it_follows_equals_one_given_the_alphabet(context):
    grown, given_all = small("", context, grow=True), small("abc", context, grow=True)
    for machine in (grown, given_all):
        for symbol in "abc":
            machine.follow(symbol)
    assert content(grown) == content(given_all)


def test_a_symbol_may_be_anything_hashable():
    sequence = [("a", 1), 2.5, frozenset({3}), "x", 7]
    machine = small(sequence)
    machine.learn_sequence(sequence)
    assert machine.generate([("a", 1)], 4) == sequence[1:]


def test_none_may_be_a_symbol():
    machine = small(["a", None, "b"])
    machine.learn_sequence(["a", None, "b"])
    assert machine.generate(["a"], 2) == [None, "b"]


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": (12, 11)}, r"1 <= N <= M in code, got 12-of-11"),
        ({"code": (0, 11)}, r"1 <= N <= M in code, got 0-of-11"),
        ({"context_code": (12, 11)}, r"1 <= N <= M in context_code, got 12-of-11"),
        ({"data": (12, 11)}, r"1 <= N <= M in data, got 12-of-11"),
        ({"decoder": (513, 11, 1024)}, r"connections.*got 513 of 512"),
        ({"decoder": (8, 11, 10)}, r"lines.*got 11 of 10"),
        ({"alpha": 0.0}, r"alpha in \(0, 1\], got 0"),
        ({"alpha": 1.5}, r"alpha in \(0, 1\], got 1\.5"),
        ({"weight": -1.0}, r"weight in \[0, 1.*, got -1"),
        ({"weight": float("nan")}, r"weight in \[0, 1.*, got nan"),
        ({"decay": 1.5}, r"decay in \[0, 1\], got 1\.5"),
        ({"keep": -0.5}, r"keep in \[0, 1\], got -0\.5"),
        ({"confidence": 2.0}, r"confidence in \[0, 1\], got 2"),
        ({"context": "deep"}, r"combined, layer, shift.*, got 'deep'"),
        ({"rule": "nor"}, r"or, max, add, decay, got 'nor'"),
        ({"rule": "rank"}, r"or, max, add, decay, got 'rank'"),
        ({"context": "shift", "depth": 0}, r"depth >= 1, got 0"),
        ({"grow": True, "data": (11, 256)}, r"data=None to grow"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings, message):
    with pytest.raises(RangeError, match=message) as error:
        small("abc", **settings)
    assert "\n" not in str(error.value)


def test_a_weight_of_one_is_refused():
    with pytest.raises(RangeError, match="weight"):
        small(weight=1.0)


@pytest.mark.parametrize("symbols", ["aba", [1, 2, 1.0], [None, None]])
def test_a_symbol_twice_is_refused(symbols):
    with pytest.raises(RangeError, match=r"each symbol once, got .* twice"):
        small(symbols)


# Seeds.


RECITE = f"""
from isospike import SequenceMachine
for context in {CONTEXTS}:
    m = SequenceMachine({LETTERS!r}, context, decoder=(8, 11, 1024), rule="max", seed=3)
    m.learn_sequence({TEXT!r})
    m.restart()
    for symbol in {TEXT[::-1]!r}:
        print(m.predict())
        m.follow(symbol)
    print(m.generate("the", 50))
"""


def test_one_seed_gives_the_same_predictions_with_any_number_of_threads():
    said = []
    for threads in ("1", "2"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        out = subprocess.run(
            [sys.executable, "-c", RECITE], env=env, capture_output=True, text=True, check=True
        )
        said.append(out.stdout)
    assert said[0] == said[1]
    assert said[0].count("Prediction(") == 3 * len(TEXT)


@pytest.mark.parametrize("context", CONTEXTS)
def test_one_seed_is_one_machine_and_another_another(context):
    draw = random.Random(0)
    text = draw.choices(LETTERS, k=500)
    same, again, other = (small(context=context, seed=s) for s in (1, 1, 2))
    for machine in (same, again, other):
        machine.learn_sequence(text)
    assert content(same) == content(again)
    assert followed(same, text[:50]) == followed(again, text[:50]) != followed(other, text[:50])


def test_a_seed_draws_the_codes_of_symbols():
    one, two = small("abc", seed=1), small("abc", seed=2)
    codes = [m._memory._fixed.codes[:-1].tolist() for m in (one, two)]
    assert codes[0] != codes[1]


def test_two_machines_share_nothing():
    busy, idle = small(), small()
    before = content(idle)
    busy.learn_sequence(TEXT)
    assert content(idle) == before
    assert idle.predict() == NOTHING
    idle.restart()
    assert idle.generate(TEXT[:4], 5) == []


# Files.


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    "more", [{}, {"rule": "decay", "data": (11, 256)}, {"grow": True, "confidence": 0.7}]
)
def test_a_loaded_machine_goes_on_as_the_saved_one(tmp_path, context, more):
    machine = small(context=context, seed=4, **more)
    machine.learn_sequence(TEXT * 3)
    machine.save(tmp_path / "deep" / "m")
    loaded = SequenceMachine.load(str(tmp_path / "deep" / "m"))
    assert os.listdir(tmp_path / "deep") == ["m"]
    assert loaded.symbols == machine.symbols
    assert loaded.predict(30) == machine.predict(30), "it stands where the saved one stood"
    other = TEXT[::-1] + ("ABC" if machine.grow else "")
    assert one_by_one(loaded, other) == one_by_one(machine, other)
    assert content(loaded) == content(machine)
    assert loaded.generate("the q", 30) == machine.generate("the q", 30)
    assert followed(loaded, TEXT) == followed(machine, TEXT)


def test_symbols_keep_their_type_in_a_file(tmp_path):
    symbols = ["1", 1, -(2**70), "", "é\n\ud800", "\0"]
    machine = small(symbols)
    machine.save(tmp_path / "m")
    assert SequenceMachine.load(tmp_path / "m").symbols == symbols


@pytest.fixture(scope="module")
def saved():
    machine = small()
    machine.learn_sequence(TEXT)
    return content(machine)


def refused(path, message):
    with pytest.raises(IsospikeError, match=message) as error:
        SequenceMachine.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("share", [0, 1, 7, 8, 9, 200, 0.1, 0.5, 0.9, -8, -1])
def test_a_truncated_file_is_refused(tmp_path, saved, share):
    length = int(share * len(saved)) if isinstance(share, float) else share % len(saved)
    (tmp_path / "m").write_bytes(saved[:length])
    refused(tmp_path / "m", "cut short")


@pytest.mark.parametrize("text", ["", "short", "A text that is no machine.\n" * 100, "{}"])
def test_a_text_is_refused(tmp_path, text):
    (tmp_path / "m").write_text(text)
    refused(tmp_path / "m", "sequence machine that isospike saved")


def test_a_path_without_a_file_is_refused(tmp_path):
    refused(tmp_path / "none", "load needs a machine's file")
    refused(tmp_path, "load needs a machine's file")


def rewritten(saved, path, change):
    """Write the file ``saved`` after ``change(about, tensors)``."""
    path.write_bytes(saved)
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["isospike"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about, tensors)
    path.write_bytes(to_bytes(tensors, metadata={"isospike": json.dumps(about)}))
    return path


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused(tmp_path, saved, number):
    path = rewritten(saved, tmp_path / "m", lambda about, _: about.update(format=number))
    refused(path, f"needs format 1, got {number}")


def test_tensors_of_another_file_are_refused(tmp_path, saved):
    (tmp_path / "m").write_bytes(to_bytes({}, metadata={"format": "pt"}))
    refused(tmp_path / "m", "sequence machine that isospike saved")
    (tmp_path / "m").write_bytes(to_bytes({}, metadata={"isospike": "{"}))
    refused(tmp_path / "m", "sequence machine that isospike saved")
    path = rewritten(saved, tmp_path / "m", lambda _, t: t.update(cells=t["cells"][:5].copy()))
    refused(path, "needs cells")


PARTS = {
    "no cells": lambda _, tensors: tensors.pop("cells"),
    "no right": lambda _, tensors: tensors.pop("right"),
    "short right": lambda _, tensors: tensors.update(right=tensors["right"][:3].copy()),
    "no settings": lambda about, _: about.pop("settings"),
    "no symbols": lambda about, _: about.pop("symbols"),
    "another setting": lambda about, _: about["settings"].update(colour=1),
}


@pytest.mark.parametrize("part", ["no cells", "no right", "short right"])
def test_a_file_with_tensors_amiss_is_refused(tmp_path, saved, part):
    refused(rewritten(saved, tmp_path / "m", PARTS[part]), "load needs")


@pytest.mark.parametrize("part", ["no settings", "no symbols", "another setting"])
def test_a_file_with_metadata_amiss_is_refused(tmp_path, saved, part):
    refused(rewritten(saved, tmp_path / "m", PARTS[part]), "load needs")


@pytest.mark.parametrize("symbol", [("a", 1), 2.5, None, True, b"a", frozenset()])
def test_symbols_that_a_file_cannot_hold_are_refused_and_the_old_file_stays(
    tmp_path, saved, symbol
):
    (tmp_path / "m").write_bytes(saved)
    machine = small(["a", symbol])
    with pytest.raises(RangeError, match="strings or integers"):
        machine.save(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == saved


def test_a_write_that_fails_is_one_line_and_leaves_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    (tmp_path / "file").write_text("old")
    for place in (tmp_path / "folder", tmp_path / "file" / "m"):
        with pytest.raises(IsospikeError, match=r"^save needs to write [^\n]*$"):
            small("ab").save(place)
        with pytest.raises((IsADirectoryError, NotADirectoryError, FileExistsError)):
            write_file(place, b"new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_text() == "new"


KILL = f"""
import os, random, signal, sys, time
from isospike import SequenceMachine
path = sys.argv[1]
machines = [SequenceMachine({LETTERS!r}, decoder=(8, 11, 4096), seed=s) for s in (1, 2)]
for m in machines:
    m.learn_sequence({TEXT!r})
machines[0].save(path)
draw = random.Random(0)
for _ in range(20):
    child = os.fork()
    if child == 0:
        while True:
            for m in machines:
                m.save(path)
    time.sleep(draw.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child saved till it was killed"
    m = SequenceMachine.load(path)
    m.restart()
    assert m.settings["seed"] in (1, 2) and m.follow_sequence({TEXT!r}).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_file_survives_a_kill_at_any_moment(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILL, str(tmp_path / "m")]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    stray = [name for name in os.listdir(tmp_path) if name != "m"]
    assert len(stray) <= 20
    assert all(name.startswith(".m.") for name in stray)


# Memory.


GROWTH = """
import random, resource, sys
from isospike import SequenceMachine
m = SequenceMachine(range(50), code=(5, 64), context_code=(5, 64), decoder=(8, 5, 1024))
draw = random.Random(0)
peaks = []
for first in range(0, int(sys.argv[1]) + 1, 10_000):
    m.learn_sequence(draw.choices(range(50), k=10_000))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[-1] - peaks[0]) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize("length", [200_000, pytest.param(10**6, marks=pytest.mark.slow)])
def test_a_stream_needs_constant_memory(length):
    command = [sys.executable, "-c", GROWTH, str(length)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20e6
