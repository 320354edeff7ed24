"""Files of the sequence machine: what they keep, and what no file may do."""

import copy
import functools
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import jaxtyping
import numpy as np
import pytest
import torch
from machines import content, refused, rewritten
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from isospike.errors import InputError, RangeError
from isospike.memory import Backoff, Combined, SequenceMachine, Shift, Store


def small(symbols="abcd", **more):
    if not isinstance(more.get("context"), Backoff):
        more = {"store": Store(locations=1024), **more}
    return SequenceMachine(symbols, **more)


# A file whose digest is right, and whose content is not: compiled loops must not see it.


MACHINES = {
    "combined": {},
    "shift": {"context": Shift(depth=3)},
    "wheel": {"layers": "wheel"},
    "decay": {"store": Store(rule="decay", locations=256, data=(3, 20))},
    "backoff": {"context": Backoff(depth=3, synapses=64)},
}


@functools.cache
def file_of(name):
    machine = small("abcd", **MACHINES[name])
    machine.learn_sequence("abcdabca")
    return content(machine)


BAD = {"i": [2**40, -1, -(2**63)], "u": [2, 255], "f": [-1.0, math.nan, math.inf]}


@pytest.mark.parametrize("name", MACHINES)
def test_a_number_that_no_machine_holds_is_refused(tmp_path, name):
    (tmp_path / "whole").write_bytes(file_of(name))
    with safe_open(tmp_path / "whole", "np") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    for part, tensor in tensors.items():
        for value in BAD[tensor.dtype.kind] if tensor.size else ():
            if part == "times" and value == math.inf:
                continue  # a neuron that does not fire
            changed = tensor.copy()
            changed.reshape(-1)[0] = value
            path = rewritten(
                file_of(name),
                tmp_path / "m",
                lambda _, t: t.update({part: changed}),  # noqa: B023
            )
            refused(path, f"it has ({part}|right|seen) outside")


def test_a_context_that_fires_a_neuron_twice_is_refused(tmp_path):
    def change(_, tensors):
        tensors["context"][1] = tensors["context"][0]

    for name in ("combined", "shift", "wheel"):
        path = rewritten(file_of(name), tmp_path / "m", change)
        refused(path, "a neuron of its context fires twice")
    path = rewritten(
        file_of("wheel"), tmp_path / "m", lambda _, t: t.update(times=t["times"][::-1].copy())
    )
    refused(path, "its times are not in order")


HOSTILE = {
    "synapses": ("backoff", ("context", "synapses"), [2**40, 2**33, 1e6, "x", True, -1, None, [8]]),
    "depth": ("backoff", ("context", "depth"), [10**9, 10**300, 0, 2.5, {}]),
    "context": ("combined", ("context", "context_code"), [[22, 2**40], [22], [1, 2, 3], 7, None]),
    "code": ("combined", ("context", "code"), [[11, 2**40], [0, 0], [11.0, 256], "ab"]),
    "alpha": ("combined", ("context", "alpha"), [None, "x", math.nan, -1, [0.5], True]),
    "locations": ("combined", ("store", "locations"), [2**40, 10**10, -1, "many"]),
    "connections": ("combined", ("store", "connections"), [2**40, 0, 1e3]),
    "active": ("combined", ("store", "active"), [0, 2**40, 1.5]),
    "data": ("combined", ("store", "data"), [[1, 2**40], [2, 1], "ab", 3]),
    "seed": ("combined", ("seed",), [-1, 1.5, "0", None]),
    "grow": ("combined", ("grow",), [1, None, "yes"]),
    "layers": ("combined", ("layers",), [None, 3, "deep"]),
}


@pytest.mark.parametrize("part", HOSTILE)
def test_settings_that_ask_for_too_much_or_are_of_another_kind_are_refused(tmp_path, part):
    name, (*path, last), values = HOSTILE[part]
    whole = file_of(name)
    for value in values:

        def change(about, _):
            place = about["settings"]
            for step in path:
                place = place[step]
            place[last] = value  # noqa: B023

        start = time.process_time()  # of this process: a busy machine does not count
        refused(rewritten(whole, tmp_path / "m", change), "load needs")
        assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "change",
    [
        {"symbols": ["a", "b", "c", None]},
        {"symbols": ["a", "b", "c", 1.5]},
        {"symbols": ["a", "b", "c", True]},
        {"symbols": ["a", "b", "c", "c"]},
        {"symbols": "abcd"},
        {"symbols": [str(i) for i in range(9)]},
        {"metadata": [1]},
        {"expected": [4, 0.5]},
        {"expected": [-1, 0.5]},
        {"expected": [0, math.nan]},
        {"expected": [0.0, 0.5]},
        {"expected": 3},
    ],
)
def test_an_alphabet_or_a_prediction_that_no_machine_has_is_refused(tmp_path, change):
    for name in ("shift", "backoff") if list(change) != ["symbols"] else ("shift",):
        path = rewritten(file_of(name), tmp_path / "m", lambda about, _: about.update(change))
        refused(path, "load needs")


def test_arrays_of_other_types_or_too_many_are_refused(tmp_path):
    for change in (
        {"seen": np.zeros(64, np.float32)},
        {"seen": np.zeros(64, np.int64)},
        {"more": np.zeros(3)},
        {"history": np.zeros(2, np.int16)},
    ):
        path = rewritten(file_of("shift"), tmp_path / "m", lambda _, t: t.update(change))  # noqa: B023
        refused(path, f"it has no {next(iter(change))} of this machine's size")
    header = b'{"seen":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]},"__metadata__":{}}'
    (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    refused(tmp_path / "m", "load needs")
    deep = json.dumps({"isospike": "[" * 100_000})
    (tmp_path / "m").write_bytes(to_bytes({}, metadata=json.loads(deep)))
    refused(tmp_path / "m", "load needs")


# What a file holds.


def test_a_prediction_that_waits_for_its_symbol_is_saved(tmp_path):
    machine = small("abc")
    machine.learn_sequence("abcabc")
    machine.reset_context()
    machine.predict()
    machine.save(tmp_path / "m")
    loaded = SequenceMachine.load(tmp_path / "m")
    for each in (machine, loaded):
        each.learn("a")
    assert content(loaded) == content(machine)


def test_symbols_out_of_arrays_are_the_numbers_they_hold(tmp_path):
    machine = SequenceMachine(np.arange(3), grow=True, context=Shift(depth=1))
    for kind in (np.int64, np.int32, torch.tensor, int):
        machine.learn_sequence([kind(i) for i in (0, 1, 2, 7)])
    assert machine.symbols == [0, 1, 2, 7]
    assert {type(s) for s in machine.symbols} == {int}
    assert np.int8(7) in machine
    machine.save(tmp_path / "m")
    assert SequenceMachine.load(tmp_path / "m").symbols == [0, 1, 2, 7]


def test_numbers_of_numpy_may_be_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for a user
    context = Shift(depth=np.int64(2), decay=np.float32(0.5), code=(np.int32(3), 30))
    SequenceMachine("ab", context=context, seed=np.int64(3)).save(tmp_path / "m")
    assert SequenceMachine.load(tmp_path / "m").settings.context == context


def test_none_is_no_symbol():
    with pytest.raises(InputError, match="equal themselves and are not None"):
        SequenceMachine(["a", None])
    with pytest.raises(InputError, match="equal themselves and are not None"):
        SequenceMachine(grow=True).learn_sequence([1, None])
    with pytest.raises(InputError, match="got nan. Use a text"):
        SequenceMachine(grow=True).learn(math.nan)


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), b"bytes", math.nan, (1, 2), {1: "a"}, np.int64(1)]
)
def test_metadata_that_a_file_would_change_are_refused(tmp_path, value):
    machine = small("ab")
    machine.metadata["note"] = value
    with pytest.raises(InputError, match="save needs metadata of JSON"):
        machine.save(tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_threads_may_share_a_machine():
    machine = small("abcdefgh", context=Shift(depth=2))
    machine.learn_sequence("abcdefgh" * 4)
    expected = {start: machine.generate(start, 40) for start in "abcdefgh"}
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = pool.map(lambda s: machine.generate(s, 40), expected)
            assert list(found) == list(expected.values())


def test_a_machine_can_be_copied():
    machine = small("ab")
    machine.learn_sequence("abab")
    other = copy.deepcopy(machine)
    machine.learn_sequence("bbbb")
    assert other.generate("a", 2) == ["b", "a"]


def test_connections_beyond_all_memory_are_refused():
    for context in (Combined(context_code=(22, 2**17)), Shift(depth=2, code=(1, 2**30))):
        with pytest.raises(RangeError, match="connections that take at most 4 GiB, got"):
            SequenceMachine("ab", context=context)
