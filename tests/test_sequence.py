"""The sequence machine: what it recalls and what it refuses."""

import hashlib
import itertools
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from machines import (
    CONTEXTS,
    LETTERS,
    TEXT,
    content,
    each_context,
    followed,
    one_by_one,
    small,
)

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.memory import (
    Backoff,
    Combined,
    Layer,
    Prediction,
    SequenceMachine,
    Shift,
    Store,
)

NOTHING = Prediction(None, 0.0, 0.0, (), False)

seeds = st.integers(0, 1000)
words = st.text("abcdef", max_size=30)
contexts = st.sampled_from(list(CONTEXTS.values()))
rules = st.sampled_from(["or", "max", "add", "decay"])


# What it recalls.


@each_context
@pytest.mark.parametrize("text", ["a", "hello", TEXT])
def test_a_sequence_learned_once_is_recalled(context, text):
    machine = small(context=context)
    machine.learn_sequence(text)
    machine.reset_context()
    assert machine.follow_sequence(text).tolist() == [True] * len(text)


@examples(max_examples=30)
@given(contexts, st.permutations(LETTERS), st.integers(1, 27), seeds)
def test_any_sequence_without_repeats_is_recalled(context, order, length, seed):
    machine = small(context=context, seed=seed)
    machine.learn_sequence(order[:length])
    machine.reset_context()
    assert machine.follow_sequence(order[:length]).all()


@pytest.mark.parametrize("rule", ["or", "max", "add", "decay"])
@pytest.mark.parametrize("data", [None, (11, 256)])
def test_every_rule_and_data_code_recalls(rule, data):
    machine = small(store=Store(rule=rule, data=data, locations=1024))
    machine.learn_sequence(TEXT)
    machine.reset_context()
    assert machine.follow_sequence(TEXT).all()


@pytest.mark.parametrize("context", [Combined(), Layer()])
def test_a_long_context_tells_apart_what_the_last_symbols_do_not(context):
    # After "xab" comes c, after "yab" d: a register of two symbols sees "ab" both times.
    machine = small(context=context)
    for text in ("xabc", "yabd"):
        machine.reset_context()
        machine.learn_sequence(text)
    assert machine.generate("xab", 1) == ["c"]
    assert machine.generate("yab", 1) == ["d"]
    register = small(context=Shift(depth=2))
    for text in ("xabc", "yabd"):
        register.reset_context()
        register.learn_sequence(text)
    assert {s for s, match in register.predict(2).alternatives if match == 1} <= {"c", "d"}
    assert register.generate("xab", 1) == register.generate("yab", 1)


def test_by_hand_a_machine_of_one_location():
    # It is active in every context, so it holds all symbols seen: one of one counters each.
    machine = SequenceMachine("abc", store=Store(locations=1, active=1, connections=1))
    assert machine.predict() == NOTHING
    machine.learn("b")
    assert machine.predict().alternatives == (("b", 1.0), ("a", 0.0), ("c", 0.0))
    assert machine.predict().margin == 1.0
    machine.learn("a")
    assert machine.predict().alternatives == (("a", 1.0), ("b", 1.0), ("c", 0.0))
    assert machine.predict().margin == 0.0


def test_by_hand_a_register_of_depth_one_is_a_table_of_successors():
    machine = small("abc", Shift(depth=1))
    machine.learn_sequence("abca")
    assert machine.generate("", 7) == list("abcabca")
    assert machine.generate("b", 3) == list("cab")


# A regression file of one line each: made from our own output, before the settings became objects.
DIGESTS = {"combined": "b7ddd25042150a1c", "layer": "587eebf685527b7c", "shift": "613ef339faa697cd"}


@each_context
def test_every_rule_predicts_and_stores_what_it_always_did(context):
    sizes = {"context_code": (10, 64)} if context.name != "shift" else {}
    context = replace(context, code=(5, 32), **sizes)
    digest = hashlib.sha256()
    for rule, data in itertools.product(("or", "max", "add", "decay"), (None, (4, 32))):
        store = Store(rule=rule, data=data, locations=256, active=7)
        machine = SequenceMachine(range(9), context=context, store=store, seed=3)
        digest.update(machine.learn_sequence([(i * i + i // 7) % 9 for i in range(200)]))
        digest.update((machine.memory.tensors()["counters"] != 0).copy())
        digest.update(machine.memory.tensors()["context"].astype("<i8"))
    assert digest.hexdigest()[:16] == DIGESTS[context.name]


# On-line, and one by one.


@examples(max_examples=60)
@given(contexts, rules, st.sampled_from([None, (3, 20)]), words, words, seeds)
def test_learn_sequence_is_predict_and_learn_symbol_by_symbol(
    context, rule, data, first, second, seed
):
    store = Store(rule=rule, data=data, locations=128)
    whole, single = (small("abcdef", context, store=store, seed=seed) for _ in range(2))
    for text in (first, second):
        assert whole.learn_sequence(text).tolist() == one_by_one(single, text)
    assert content(whole) == content(single)
    assert whole.predict() == single.predict()


@examples(max_examples=30)
@given(contexts, words, st.integers(0, 30))
def test_a_sequence_may_be_cut_anywhere(context, text, cut):
    whole, parts = (small("abcdef", context, store=Store(locations=128)) for _ in range(2))
    right = whole.learn_sequence(text).tolist()
    pieces = [parts.learn_sequence(text[:cut]), parts.learn_sequence(text[cut:])]
    assert right == [r for piece in pieces for r in piece.tolist()]
    assert content(whole) == content(parts)


@each_context
def test_follow_sequence_is_predict_and_follow_and_learns_nothing(context):
    whole, single = small(context=context), small(context=context)
    for machine in (whole, single):
        machine.learn_sequence(TEXT)
        machine.reset_context()
    other = TEXT[:20] + TEXT[4:9]
    right = []
    for symbol in other:
        right.append(single.predict().symbol == symbol)
        single.follow(symbol)
    assert whole.follow_sequence(other).tolist() == right
    assert content(whole) == content(single)
    fresh = small(context=context)
    fresh.learn_sequence(TEXT)
    fresh.reset_context()
    whole.reset_context()
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


@each_context
@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_generate_continues_a_known_text(context, cut):
    machine = small(context=context)
    machine.learn_sequence(TEXT)
    assert "".join(machine.generate(TEXT[:cut], len(TEXT) - cut)) == TEXT[cut:]


def test_generate_stops_where_nothing_is_known():
    assert small().generate("abc", 10) == []
    assert small("").generate("", 10) == []
    machine = small(store=Store())
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
    machine = small("abcdef", context, store=Store(locations=64, data=data))
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
    machine.reset_context()
    p = machine.predict()
    assert (p.symbol, p.similarity, p.margin, p.alternatives) == ("a", 1.0, 1.0, (("a", 1.0),))


@pytest.mark.parametrize("rule", ["max", "add"])
def test_similarity_is_a_share_under_every_rule(rule):
    machine = small(store=Store(rule=rule, locations=1024))
    machine.learn_sequence(TEXT)
    assert all(p.similarity <= 1 + 1e-6 for p in followed(machine, TEXT))


@examples(max_examples=20)
@given(contexts, words)
def test_predict_changes_nothing(context, text):
    machine = small("abcdef", context, store=Store(locations=128))
    machine.learn_sequence(text)
    before = content(machine)
    first = machine.predict()
    assert [machine.predict(n) for n in (0, 5, 99)][1] == first
    machine._expected = None  # waits for the symbol
    assert content(machine) == before


# Calibration.


def test_a_guess_of_low_margin_on_random_symbols_is_not_accepted():
    draw = random.Random(1)
    machine = small(LETTERS[:16], store=Store(locations=4096))
    machine.learn_sequence(draw.choices(LETTERS[:16], k=600))
    guesses = followed(machine, draw.choices(LETTERS[:16], k=200))
    low = [p for p in guesses if p.symbol is not None and p.margin < 0.3]
    assert len(low) > 50
    assert not any(p.accepted for p in low)


@each_context
def test_a_guess_of_high_margin_on_a_repeated_sequence_is_accepted(context):
    machine = small(context=context, confidence=0.9)
    for _ in range(20):
        machine.reset_context()
        machine.learn_sequence(TEXT)
    high = [p for p in followed(machine, TEXT)[:-1] if p.margin > 0.5]
    assert len(high) >= 15
    assert all(p.accepted for p in high)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_a_margin_is_trusted_as_far_as_it_was_right(whole, right):
    # Only z is known to follow a; a guess after it is of margin 1, right or not.
    machine = small("azy", Shift(depth=1), store=Store(rule="add", locations=1024), confidence=0.75)
    machine.reset_context()
    machine.follow("a")
    for _ in range(100):
        machine.learn("z")
        machine.reset_context()
        machine.follow("a")
    assert machine.predict().accepted
    for _ in range(20):
        machine.reset_context()
        machine.follow("a")
        if whole:
            machine.learn_sequence("z" if right else "y")
        else:
            machine.predict()
            machine.learn("z" if right else "y")
    machine.reset_context()
    machine.follow("a")
    assert machine.predict().symbol == "z"
    assert machine.predict().accepted is right


def test_a_guess_that_is_followed_is_not_counted():
    machine = small()
    machine.learn_sequence(TEXT)
    machine.reset_context()
    before = content(machine)
    for symbol in "zzzz":
        machine.predict()
        machine.follow(symbol)
    machine.predict()
    machine.reset_context()
    assert content(machine) == before


# The alphabet.


@pytest.mark.parametrize("call", ["learn", "follow", "learn_sequence", "follow_sequence"])
def test_an_unknown_symbol_is_named_and_changes_nothing(call):
    machine = small("abc")
    before = content(machine)
    argument = ["a", "b", "Q7"] if "sequence" in call else "Q7"
    with pytest.raises(InputError, match=r"alphabet of 3, got 'Q7'.*grow=True"):
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
    options = {"grow": True, "seed": seed, "store": Store(locations=128)}
    alphabet = dict.fromkeys(text)
    whole, single, given_all = (
        small(known, context, **options) for known in ("", alphabet and text[0], alphabet)
    )
    right = given_all.learn_sequence(text).tolist()
    assert whole.learn_sequence(text).tolist() == right
    assert one_by_one(single, text) == right
    assert content(whole) == content(single) == content(given_all)
    assert followed(whole, text) == followed(single, text) == followed(given_all, text)


@each_context
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


# Settings.


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (Combined, {"code": (12, 11)}, r"Combined needs code = .* 1 <= N <= M, got \(12, 11\)"),
        (Layer, {"code": (0, 11)}, r"Layer needs code = .* 1 <= N <= M, got \(0, 11\)"),
        (Shift, {"code": (0, 11)}, r"Shift needs code = .* 1 <= N <= M, got \(0, 11\)"),
        (Combined, {"context_code": (12, 11)}, r"context_code = .* 1 <= N <= M, got \(12, 11\)"),
        (Store, {"data": (12, 11)}, r"Store needs data = .* 1 <= N <= M, got \(12, 11\)"),
        (Store, {"connections": 0}, r"Store needs connections >= 1, got 0"),
        (Store, {"locations": 10}, r"Store needs 1 <= active <= locations, got 11 of 10"),
        (Combined, {"alpha": 0.0}, r"Combined needs alpha in \(0, 1\], got 0"),
        (Store, {"alpha": 1.5}, r"Store needs alpha in \(0, 1\], got 1\.5"),
        (Combined, {"weight": -1.0}, r"Combined needs weight in \[0, 1\), got -1"),
        (Layer, {"weight": 1.0}, r"Layer needs weight in \[0, 1\), got 1\.0"),
        (Combined, {"weight": float("nan")}, r"weight in \[0, 1\), got nan"),
        (Shift, {"decay": 1.5}, r"Shift needs decay in \[0, 1\], got 1\.5"),
        (Store, {"decay": -0.5}, r"Store needs decay in \[0, 1\], got -0\.5"),
        (Shift, {"depth": 0}, r"Shift needs depth >= 1, got 0"),
        (Backoff, {"depth": 0}, r"Backoff needs depth >= 1, got 0"),
        (Backoff, {"synapses": 7}, r"Backoff needs synapses >= 8, got 7"),
        (SequenceMachine, {"confidence": 2.0}, r"confidence in \[0, 1\], got 2"),
        (SequenceMachine, {"seed": -1}, r"SequenceMachine needs a seed >= 0, got -1"),
        (
            SequenceMachine,
            {"store": Store(connections=513)},
            r"connections <= address neurons, got 513 of 512",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(make, settings, message):
    with pytest.raises(RangeError, match=message + r".*\. [A-Z].*\.$") as error:
        make(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        (InputError, lambda: Store(rule="nor"), r"or, max, add, decay, got 'nor'"),
        (InputError, lambda: Store(rule="rank"), r"or, max, add, decay, got 'rank'"),
        (InputError, lambda: small(layers="lif"), r"abstract, wheel, rdlif, got 'lif'"),
        (
            InputError,
            lambda: small(seed=1, generator=torch.Generator()),
            r"a seed or a generator, got seed=1",
        ),
        (
            UnsupportedError,
            lambda: small(grow=True, store=Store(data=(11, 256))),
            r"a store with data=None to grow, got data=\(11, 256\)",
        ),
        (
            UnsupportedError,
            lambda: small(layers="wheel", store=Store(rule="add")),
            r"or or max for layers='wheel', got 'add'",
        ),
        (
            UnsupportedError,
            lambda: SequenceMachine(context=Backoff(), layers="wheel"),
            r"a context with a store for layers='wheel', got Backoff",
        ),
        (UnsupportedError, lambda: small(context=Backoff()), r"needs no store with Backoff"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_by_name(kind, make, message):
    with pytest.raises(kind, match=message + r".*\. [A-Z].*\.$"):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"context": "combined"},
            r"a context of Combined, Layer, Shift, Backoff, Mixed, got 'combined'",
        ),
        ({"store": "or"}, r"needs a Store, got 'or'"),
    ],
)
def test_a_part_of_another_kind_is_refused_by_name(monkeypatch, settings, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for a user
    with pytest.raises(InputError, match=message):
        SequenceMachine("abc", **settings)


@pytest.mark.parametrize("symbols", ["aba", [1, 2, 1.0], [(), ()]])
def test_a_symbol_twice_is_refused(symbols):
    with pytest.raises(InputError, match=r"each symbol once, got .* twice"):
        small(symbols)


# Seeds.


RECITE = f"""
from isospike.memory import Combined, Layer, SequenceMachine, Shift, Store
for context in (Combined(), Layer(), Shift()):
    store = Store(rule="max", locations=1024)
    m = SequenceMachine({LETTERS!r}, context=context, store=store, seed=3)
    m.learn_sequence({TEXT!r})
    m.reset_context()
    for symbol in {TEXT[::-1]!r}:
        print(m.predict())
        m.follow(symbol)
    print(m.generate("the", 50))
"""


def test_one_seed_gives_the_same_predictions_with_any_number_of_threads(capsys):
    exec(RECITE, {})
    here = capsys.readouterr().out
    threads = "2" if torch.get_num_threads() == 1 else "1"
    env = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
    there = subprocess.run(
        [sys.executable, "-c", RECITE], env=env, capture_output=True, text=True, check=True
    )
    assert here == there.stdout
    assert here.count("Prediction(") == 3 * len(TEXT)


@each_context
def test_one_seed_is_one_machine_and_another_another(context):
    draw = random.Random(0)
    text = draw.choices(LETTERS, k=500)
    same, again, other = (small(context=context, seed=s) for s in (1, 1, 2))
    for machine in (same, again, other):
        machine.learn_sequence(text)
    assert content(same) == content(again)
    assert followed(same, text[:50]) == followed(again, text[:50]) != followed(other, text[:50])


def test_a_generator_draws_the_seed():
    one, again = (small("abc", generator=torch.Generator().manual_seed(1)) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    first, second = (small("abc", generator=generator) for _ in range(2))
    assert one.settings == again.settings == first.settings != second.settings
    assert small("abc", seed=one.settings.seed).settings == one.settings


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
    idle.reset_context()
    assert idle.generate(TEXT[:4], 5) == []
