"""The mixed context: probabilities, a store that grows, is full and forgets, files, the command."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import content, refused, rewritten
from typer.testing import CliRunner

from isospike.cli import app
from isospike.data import shakespeare
from isospike.errors import InputError, RangeError
from isospike.kernels.machine import hashing, mixture
from isospike.memory import Backoff, Mixed, SequenceMachine
from isospike.memory.addressed import Found
from isospike.memory.machine import Prediction
from isospike.report.disk import held

words = st.text("abcd", max_size=60)
PROSE = shakespeare()[100_000:120_000]


def machine(symbols="abcd", **more):
    return SequenceMachine(symbols, context=Mixed(**more))


@settings(deadline=None)
@given(words)
def test_probabilities_sum_to_one_and_surprise_is_their_logarithm(text):
    one, other = machine(), machine()
    bits = one.surprise_sequence(text)
    for symbol, expected in zip(text, bits, strict=True):
        found = dict(other.predict(4).alternatives)
        if found:
            assert math.isclose(sum(found.values()), 1, abs_tol=1e-5)
            assert math.isclose(-math.log2(found[symbol]), expected, abs_tol=1e-3)
        else:
            assert math.isclose(expected, 2)  # four symbols, nothing known
        other.learn(symbol)


def test_by_hand_one_symbol_is_half_a_count_and_one():
    one = machine("ab")
    one.learn("a")
    one.reset_context()
    # Unigram: (1 + 1/2) / (1 + 2/2) = 3/4 for a. The line of the start counted a once: its vote is
    # v = log(1 + (1/4) / (3/4 * q)) with q the unigram, q the back-off for the next longer ones.
    # Before a was learned nothing was known, so no weight has moved: .7 of the last symbol's line,
    # .1 of the six others, three of which the start has in common with the longer ones.
    guess = one.predict()
    assert guess.symbol == "a"
    assert 0.75 < guess.similarity < 1
    assert isinstance(guess, Prediction)


@settings(deadline=None)
@given(words, st.integers(0, 60))
def test_a_stream_equals_its_symbols_one_by_one_and_may_be_saved_anywhere(
    tmp_path_factory, text, cut
):
    one, other = machine(), machine()
    right = one.learn_sequence(text).tolist()
    path, singly = tmp_path_factory.getbasetemp() / "mixed", []
    for i, symbol in enumerate(text):
        if i == cut:
            other.save(path)
            other = SequenceMachine.load(path)
        guess = other.predict()
        singly.append(guess.similarity > 0 and guess.symbol == symbol)
        other.learn(symbol)
    assert right == singly
    assert one.predict() == other.predict()


def skewed(count, seed):
    """Symbols of which few are common and most are rare, in runs that come again."""
    draw = np.random.default_rng(seed)
    parts = [(draw.zipf(1.3, 6) % 300).tolist() for _ in range(60)]
    return [symbol for i in draw.integers(0, 60, count // 6) for symbol in parts[i]]


STREAMS = {
    "letters": list(PROSE[:3000]), "words": PROSE.split()[:1500], "skewed": skewed(2400, 0),
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("stream", STREAMS)
def test_every_way_to_ask_ranks_the_most_probable_of_all_symbols(stream, count):
    text = STREAMS[stream]
    symbols = sorted(set(text))
    one, other = machine(symbols), machine(symbols)
    ids = np.array([symbols.index(symbol) for symbol in text])
    found = Found.empty(len(ids))
    one.memory.stream(ids, True, found)
    for n, symbol in enumerate(text):
        guess = other.predict(count)
        if n > 0:
            assert guess.symbol == symbols[found.guess[n]], f"at {n}"
            assert guess.similarity == found.match[n]
            assert guess.margin == pytest.approx(found.margin[n], abs=1e-6)
            scores = other.memory.scores
            best = np.lexsort((np.arange(len(scores)), -scores))[:count]
            assert [s for s, _ in guess.alternatives] == [symbols[i] for i in best], f"at {n}"
        other.learn(symbol)
    for name, array in other.memory.tensors().items():
        np.testing.assert_array_equal(one.memory.tensors()[name], array)


def test_the_default_machine_is_at_least_as_good_as_back_off_on_prose():
    symbols = sorted(set(PROSE))
    default = SequenceMachine(symbols)
    assert isinstance(default.settings.context, Mixed)
    backoff = SequenceMachine(symbols, context=Backoff())
    assert default.learn_sequence(PROSE).mean() > backoff.learn_sequence(PROSE).mean()


def test_a_long_random_sequence_is_recalled_after_one_presentation():
    ids = np.random.default_rng(0).integers(0, 15, 2000).tolist()
    one = SequenceMachine(range(15))
    one.learn_sequence(ids)
    one.reset_context()
    assert one.follow_sequence(ids).mean() > 0.97
    one.reset_context()
    assert one.learn_sequence(ids).mean() > 0.98  # long contexts turn out to be reliable


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, MemoryError])
def test_a_growth_that_is_stopped_loses_nothing(monkeypatch, stopped):
    def stop(*arguments):
        unpack(*arguments)
        raise stopped

    one, other, unpack = machine(sorted(set(PROSE))), machine(sorted(set(PROSE))), mixture.unpack
    stops = 0
    for symbol in PROSE[:400]:
        one.learn(symbol)
        monkeypatch.setattr(mixture, "unpack", stop)
        try:
            other.learn(symbol)
        except stopped:
            stops += 1
            monkeypatch.setattr(mixture, "unpack", unpack)
            other.learn(symbol)
        monkeypatch.setattr(mixture, "unpack", unpack)
    assert stops >= 2
    assert other.memory.synapses == one.memory.synapses > 256
    assert one.predict() == other.predict()


@pytest.mark.parametrize("when_full", ["keep", "grow", "forget"])
def test_a_full_store_keeps_grows_or_forgets_and_says_so(when_full):
    one = SequenceMachine(sorted(set(PROSE)), context=Mixed(synapses=4096, when_full=when_full))
    assert not one.full
    right = one.learn_sequence(PROSE)
    assert one.full == (when_full == "keep")
    assert (one.synapses > 4096) == (when_full == "grow")
    assert right[-2000:].mean() > 0.2


def test_a_machine_that_forgot_recalls_what_came_last():
    ids = np.random.default_rng(0).integers(0, 15, 4000).tolist()
    one = SequenceMachine(range(15), context=Mixed(synapses=8192, when_full="forget"))
    one.learn_sequence(ids)
    one.reset_context()
    assert one.follow_sequence(ids[-200:])[10:].mean() > 0.7


@pytest.mark.parametrize("when_full", ["keep", "forget"])
def test_a_full_machine_goes_on_from_its_file_as_it_was(tmp_path, when_full):
    one = SequenceMachine(sorted(set(PROSE)), context=Mixed(synapses=4096, when_full=when_full))
    one.learn_sequence(PROSE[:5000])
    one.save(tmp_path / "m")
    other = SequenceMachine.load(tmp_path / "m")
    for each in (one, other):
        each.learn_sequence(PROSE[5000:9000])
    assert content(one) == content(other)


def test_a_file_is_as_large_as_what_was_learned(tmp_path):
    one = SequenceMachine(grow=True)
    one.learn_sequence(PROSE[:3000])
    one.save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 500_000


def test_a_stream_that_changes_its_alphabet_is_learned():
    one = SequenceMachine(grow=True)
    one.learn_sequence("abcabcabc")
    one.learn_sequence(list(range(600)))
    assert one.learn_sequence("abcabcabc")[4:].all()


def test_a_store_smaller_than_the_alphabet_still_predicts():
    one = SequenceMachine(range(6000), context=Mixed(synapses=4096))
    one.learn_sequence(list(range(6000)))
    assert one.full
    assert one.predict().symbol is not None


BAD = [
    ("at", 0, -1), ("at", 1, 99), ("at", 2, 1000), ("at", 3, 4), ("last", 0, 4), ("last", 0, -2),
    ("history", 0, 4), ("history", 0, -1), ("recent", 0, 99), ("checks", 0, 0), ("sizes", 0, 0),
    ("cell_symbols", 0, 4), ("cell_counts", 0, 0), ("gains", 0, math.nan), ("often", 0, -1),
    ("by_state", 0, math.inf), ("by_match", 0, 1e9), ("at", 5, 3), ("at", 4, 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "value"), BAD)
def test_a_number_that_no_store_holds_is_refused(tmp_path, name, place, value):
    one = machine()
    one.learn_sequence("abcdabca")

    def change(_, tensors):
        tensors[name].reshape(-1)[place] = value

    refused(rewritten(content(one), tmp_path / "m", change), "load needs a sequence machine")


def test_a_file_of_another_extent_is_refused(tmp_path):
    one = machine()
    one.learn_sequence("abcdabca")
    for extent in ([3, 2, 8], [2**40, 2**40, 8], [1.5, 2, 8], [1], "abc", None):
        path = rewritten(
            content(one),
            tmp_path / "m",
            lambda about, _: about.update(extent=extent),  # noqa: B023
        )
        refused(path, "load needs")


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"depth": 0}, RangeError, "Mixed needs depth from 1 to 24, got 0"),
        ({"depth": 25}, RangeError, "Mixed needs depth from 1 to 24, got 25"),
        ({"synapses": 100}, RangeError, "Mixed needs synapses from 4096"),
        ({"when_full": "stop"}, InputError, "Mixed needs when_full of keep, grow, forget"),
    ],
)
def test_settings_out_of_range_are_refused(values, kind, message):
    with pytest.raises(kind, match=message):
        Mixed(**values)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_learn_takes_context_depth_and_synapses_and_says_when_the_store_is_full(tmp_path):
    text = tmp_path / "prose.txt"
    text.write_text(PROSE)
    done = call("learn", text, "--synapses", 4096, "--depth", 3, "--out", tmp_path / "m", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["full"] is True
    assert SequenceMachine.load(tmp_path / "m").settings.context == Mixed(depth=3, synapses=4096)
    done = call("learn", text, "--context", "shift", "--synapses", 9, "--out", tmp_path / "n")
    assert "learn needs --synapses only for a context that has it" in done.stderr
    done = call("learn", text, "--context", "deep", "--out", tmp_path / "n")
    assert "learn needs --context to be one of combined, layer" in done.stderr
    done = call("learn", text, "--depth", 4, "--out", tmp_path / "m")
    assert "needs no --context, --depth, --synapses or --when-full for the machine" in done.stderr


def test_a_machine_is_learned_by_one_process_at_a_time(tmp_path):
    text, out = tmp_path / "t.txt", tmp_path / "m.safetensors"
    text.write_text("abcabc" * 20)
    line = ["learn", str(text), "--out", str(out)]
    assert CliRunner().invoke(app, line).exit_code == 0
    before = out.read_bytes()
    with held(out):  # as by the other process
        done = CliRunner().invoke(app, line)
    assert done.exit_code == 2
    assert "learn needs a machine that no other process learns with" in done.stderr
    assert out.read_bytes() == before
    assert CliRunner().invoke(app, line).exit_code == 0
    assert out.read_bytes() != before


def test_a_store_has_no_more_cells_than_the_power_of_two_below():
    one = SequenceMachine(sorted(set(PROSE)), context=Mixed(synapses=5000))
    one.learn_sequence(PROSE[:8000])
    assert one.full
    assert 3500 < one.synapses < 4096


def test_a_line_with_the_largest_hash_is_found_again(tmp_path):
    """Its number is kept in 32 bits, which one more would leave."""
    one = machine()
    memory, whole = one.memory, 2**64
    mixed = whole - 1  # what the context of the last symbol, number 1, is to be mixed to
    for value in (0, 1):  # backwards: x ^ x >> 29, times an odd number, x ^ value + 1
        undone = mixed
        for _ in range(3):
            undone = mixed ^ (undone >> 29)
        mixed = (undone * pow(int(hashing.MIX), -1, whole) % whole) ^ (value + 1)
    memory._mixture.seed[0] = mixed
    one.learn_sequence("babababab")
    checks = memory._mixture.lines[:, 0]
    checks = checks[checks != 0]
    assert checks.max() == 2**31 - 1
    assert checks.min() > 0
    assert len(np.unique(checks)) == len(checks)
    one.save(tmp_path / "m")
    assert SequenceMachine.load(tmp_path / "m").synapses == one.synapses
