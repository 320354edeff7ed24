"""Many arrays as one argument of compiled code."""

import copy
import pickle
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import njit

from isospike.kernels.machine.handle import Handle, parts
from isospike.memory import Backoff, Combined, Mixed, SequenceMachine, Shift, addressed


class Pair(NamedTuple):
    table: Any
    pair: Any


@njit
def totals(handle, out):
    """What compiled code sees of each part; the first array is changed."""
    (table, (whole, share)), row = parts(handle)
    out[0], out[1], out[2] = table[1, 2], whole * share, row.sum()
    table[1, 2] += 1
    return table.shape[0] * table.shape[1] * len(row)


def made(dtype):
    table = np.arange(6).reshape(2, 3).astype(dtype)
    return table, Handle(Pair(table, (3, 0.25)), np.ones(4, np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float32, np.float64])
def test_compiled_code_reads_and_changes_the_arrays_of_a_handle(dtype):
    table, handle = made(dtype)
    out = np.zeros(3)
    assert totals(handle, out) == 24
    assert out.tolist() == [5, 0.75, 4]
    assert table.tolist() == [[0, 1, 2], [3, 4, 6]]
    totals(handle, out)
    assert (out[0], table[1, 2]) == (6, 7)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
def test_a_copy_has_arrays_of_its_own(copied):
    table, handle = made(np.int64)
    other, out = copied(handle), np.zeros(3)
    totals(other, out)
    assert (table[1, 2], other.parts[0].table[1, 2]) == (5, 6)
    del handle, table
    assert (totals(other, out), out[0]) == (24, 6)


def test_an_array_with_gaps_is_refused():
    with pytest.raises(ValueError, match="arrays without gaps"):
        Handle(np.zeros((4, 4))[:, ::2])


@pytest.mark.parametrize("context", [Mixed(), Backoff(), Combined(), Shift()])
def test_a_copied_machine_and_its_original_go_separate_ways(context):
    machine = SequenceMachine("abc", context=context)
    for symbol in "abcabcab":
        machine.predict()
        machine.learn(symbol)
    other = copy.deepcopy(machine)
    expected = copy.deepcopy(machine)
    for symbol in "ccccaaaa":  # of the original alone
        machine.predict()
        machine.learn(symbol)
    assert other.predict() == expected.predict()
    assert other.generate("ab", 6) == expected.generate("ab", 6)


def test_a_machine_that_grows_past_its_arrays_goes_on():
    """Calls equal sequences of one symbol while history, lines and cells move."""
    text = [(7 * n * n + n // 3) % 300 for n in range(700)]
    one, other = (SequenceMachine(range(300)) for _ in range(2))
    for symbol in text:
        assert one.predict()[:4] == other.predict()[:4]
        one.learn(symbol)
        other.learn_sequence([symbol])
    assert one.synapses == other.synapses > 256


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("context", [Mixed(), Backoff(), Combined(), Shift()])
def test_a_copy_whose_alphabet_grows_knows_what_it_learned(context, copied):
    machine = SequenceMachine("ab", context=context, grow=True)
    machine.learn_sequence("ab" * 50)
    other = copied(machine)
    for one in (machine, other):
        one.learn_sequence("b" * 100)
        one.learn("c")  # is new
    assert other.predict(3) == machine.predict(3)
    assert other.surprise_sequence("abcb").tolist() == machine.surprise_sequence("abcb").tolist()


@pytest.mark.parametrize("context", [Combined(), Shift()])
def test_a_growth_that_fails_leaves_the_machine_as_it_was(context, monkeypatch):
    machine, other = (SequenceMachine("abc", context=context, grow=True) for _ in range(2))
    for one in (machine, other):
        one.learn_sequence("abcabc")
    drawn = addressed.random_orders
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise MemoryError
        return drawn(*arguments)

    monkeypatch.setattr(addressed, "random_orders", fails)
    with pytest.raises(MemoryError):
        machine.learn_sequence("abdefghijk")
    monkeypatch.setattr(addressed, "random_orders", drawn)
    assert machine.symbols == ["a", "b", "c"]
    for one in (machine, other):
        one.learn_sequence("abdefghijkabde")
    assert machine.symbols == other.symbols
    assert machine.predict() == other.predict()


@pytest.mark.parametrize("context", [Mixed(), Combined()])
def test_a_machine_is_copied_whole_while_another_thread_learns(context):
    machine = SequenceMachine("abcdef", context=context)
    machine.learn_sequence("abcdef")
    stop = threading.Event()

    def learn():
        while not stop.is_set():
            machine.learn_sequence("abcdeffedcba")

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        copies = [pickle.loads(pickle.dumps(machine)) for _ in range(20)]
        copies.append(copy.copy(machine))
    finally:
        stop.set()
        thread.join()
    for one in copies:
        one.memory.check(one.memory.tensors())
        assert one.learn_sequence("abcdef").shape == (6,)
    assert copies[-1].memory is not machine.memory
