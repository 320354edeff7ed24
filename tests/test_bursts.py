"""Memories and machines whose layers are spiking neurons."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isospike.codes.orders import random_orders, similarity
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.memory import (
    Combined,
    Layer,
    SequenceMachine,
    Shift,
    SparseDistributedMemory,
    SpikingLayer,
    Store,
)
from isospike.memory.sdm import nearest_pair, trace

seeds = st.integers(0, 2**31)
COMBINED = Combined(code=(5, 32), context_code=(10, 64))
SHIFT = Shift(code=(5, 32))
CONTEXTS = {
    "combined": COMBINED,
    "layer": Layer(code=(5, 32), context_code=(10, 64)),
    "shift": SHIFT,
}
STORE = Store(locations=256, active=7)


def sequence(seed, length=150, symbols=9):
    return np.random.default_rng(seed).integers(0, symbols, length).tolist()


def machine(layers="abstract", context=COMBINED, store=STORE, **kwargs):
    return SequenceMachine(range(9), context=context, store=store, layers=layers, **kwargs)


# Wheel neurons compute the abstract machine.


@pytest.mark.parametrize("data", [None, (4, 32)])
@pytest.mark.parametrize("rule", ["or", "max"])
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_wheel_machine_predicts_bit_for_bit_as_the_abstract_one(context, rule, data):
    ids, store = sequence(1), replace(STORE, rule=rule, data=data)
    abstract, wheel = (machine(kind, context, store) for kind in ("abstract", "wheel"))
    for learn in (True, False):
        want, got = abstract.match_sequence(ids, learn), wheel.match_sequence(ids, learn)
        for a, b in zip(want, got, strict=True):
            assert np.array_equal(a, b)
        abstract.reset_context()
        wheel.reset_context()


@pytest.mark.parametrize("rule", ["or", "max"])
def test_a_wheel_memory_reads_as_the_abstract_one(rule):
    draw = torch.Generator().manual_seed(0)
    address, data = (random_orders(60, 6, 64, draw) for _ in range(2))
    read = []
    for layers in ("abstract", "wheel"):
        memory = SparseDistributedMemory(
            (6, 64), (20, 8, 256), (6, 64), 0.9, rule=rule, layers=layers,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        memory.write(address, data)
        read.append(
            (memory.read(address), memory.activity(address), memory.active_locations(address))
        )
    assert torch.equal(read[0][0], read[1][0])
    assert torch.equal(read[0][2], read[1][2])
    assert (read[0][1] - read[1][1]).abs().max() < 1e-12 * 1e2


# RDLIF neurons come near.


@pytest.mark.parametrize("layers", ["wheel", "rdlif"])
@given(seeds)
@settings(max_examples=25)
def test_no_neuron_fires_before_its_burst_is_complete(layers, seed):
    draw = np.random.default_rng(seed)
    weights = draw.random((30, 50)) * (draw.random((30, 50)) < 0.5)
    bursts = [
        (draw.permutation(30)[:8], 0.9 ** np.arange(8), np.sort(draw.random(8) * 5))
        for _ in range(10)
    ]
    layer = SpikingLayer(layers, weights, 6, bursts)
    for rows, gain, times in bursts:
        order, fired = layer.run((rows, gain, times))
        assert (fired >= times[-1] - times[0] - 1e-9).all()
        assert (np.diff(fired) >= 0).all()
        assert len(set(order)) == len(order) <= 6


@pytest.mark.parametrize("rule", ["or", "max", "trace", "stdp"])
def test_an_rdlif_memory_recalls_sets(rule):
    draw = torch.Generator().manual_seed(0)
    memory = SparseDistributedMemory(
        (6, 64), (20, 8, 256), (6, 64), 0.99, rule=rule, layers="rdlif", generator=draw
    )
    address, data = (random_orders(80, 6, 64, draw) for _ in range(2))
    memory.write(address, data)
    recalled = memory.read(address)
    whole = (recalled >= 0).all(1)
    assert whole.double().mean() > 0.95
    assert similarity(recalled[whole], data[whole], 0.99).set_exact.double().mean() > 0.95


def test_an_rdlif_machine_recalls_a_sequence():
    ids = sequence(2, 60)
    spiking = machine("rdlif")
    spiking.learn_sequence(ids)
    spiking.reset_context()
    assert spiking.follow_sequence(ids).mean() > 0.9


def test_an_address_never_met_recalls_nothing_in_rdlif_neurons():
    memory = SparseDistributedMemory((6, 64), (20, 8, 256), (6, 64), rule="or", layers="rdlif")
    assert (memory.read(torch.arange(6)) == -1).all()
    assert (memory.activity(torch.arange(6)) == 0).all()


@pytest.mark.parametrize("layers", ["wheel", "rdlif"])
def test_one_call_for_each_symbol_is_the_stream_and_files_keep_it(layers, tmp_path):
    ids = sequence(3, 40)
    stream, steps = machine(layers), machine(layers)
    right = stream.learn_sequence(ids)
    found = []
    for symbol in ids:
        found.append(steps.predict().symbol == symbol)
        steps.learn(symbol)
    assert found == right.tolist()
    stream.save(tmp_path / "machine.safetensors")
    again = SequenceMachine.load(tmp_path / "machine.safetensors")
    assert again.predict() == stream.predict() == steps.predict()
    for symbol in ids:
        for m in (again, stream):
            m.learn(symbol)
    assert again.predict() == stream.predict()


@pytest.mark.parametrize("context", [COMBINED, SHIFT])
@pytest.mark.parametrize("layers", ["wheel", "rdlif"])
def test_spikes_are_those_of_the_step_and_change_nothing(layers, context):
    ids = sequence(5, 40)
    seen, other = (machine(layers, context, replace(STORE, data=(4, 32))) for _ in range(2))
    for m in (seen, other):
        m.learn_sequence(ids)
    bursts = seen.spikes(3)
    assert seen.predict() == other.predict()
    sizes = {"input": 5, "learning": 4, "context": 10, "locations": 7, "output": 4}
    for name, (neurons, times) in bursts.items():
        assert len(neurons) == len(times) <= sizes[name]
        assert len(set(neurons.tolist())) == len(neurons)
        assert (np.diff(times) >= 0).all()
    assert bursts["context"][1][0] <= bursts["locations"][1][0] <= bursts["output"][1][0]
    again = seen.spikes(3)
    for name, (neurons, times) in bursts.items():
        assert np.array_equal(neurons, again[name][0])
        assert np.array_equal(times, again[name][1])


@pytest.mark.parametrize("layers", ["wheel", "rdlif"])
def test_a_machine_whose_alphabet_grows_reads_the_counters_it_writes(layers):
    """Each symbol is one data neuron: more symbols, other counters."""
    ids = sequence(6, 60)
    grown = SequenceMachine(context=COMBINED, store=STORE, layers=layers, grow=True)
    for symbol in ids:
        grown.learn(symbol)
    whole = SequenceMachine(list(dict.fromkeys(ids)), context=COMBINED, store=STORE, layers=layers)
    for symbol in ids:
        whole.learn(symbol)
    assert grown.predict() == whole.predict()
    grown.reset_context()
    assert grown.follow_sequence(ids).mean() > 0.8


def test_spikes_need_spiking_layers():
    with pytest.raises(UnsupportedError, match="spikes needs a machine of spiking layers"):
        machine().spikes(0)
    with pytest.raises(InputError, match="alphabet, got 99"):
        machine("wheel").spikes(99)


@pytest.mark.parametrize("connections", [1, 2])
def test_rdlif_layers_with_few_connections_work_or_say_why_not(connections):
    for seed in range(5):
        try:
            store = Store(locations=16, active=7, connections=connections)
            few = machine("rdlif", store=store, seed=seed)
        except RangeError as error:
            assert "more connections" in str(error)  # noqa: PT017
        else:
            few.learn_sequence(sequence(seed, 30))
            few.predict()


# Rules that see spike times.


@given(st.floats(0.1, 0.999), st.floats(0.01, 10), st.integers(1, 20))
def test_the_trace_of_an_even_burst_is_its_significance(alpha, spacing, spikes):
    times = 3.0 + spacing * np.arange(spikes)
    tau = -spacing / np.log(alpha)
    assert np.abs(trace(times, tau) - alpha ** np.arange(spikes)).max() < 1e-12
    assert np.abs(nearest_pair(times, tau) - alpha ** np.arange(spikes)[::-1]).max() < 1e-12


def test_an_even_burst_writes_with_the_trace_what_max_writes():
    cells = []
    for rule in ("max", "trace"):
        memory = SparseDistributedMemory(
            (6, 64), (20, 8, 256), (6, 64), 0.9, rule=rule, layers="wheel",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        even = -memory._tau * np.log(0.9)
        draw = np.random.default_rng(0)
        for _ in range(50):
            burst = (draw.permutation(256)[:8], even * np.arange(8))
            memory._write_spikes(burst, draw.permutation(64)[:6])
        cells.append(memory.counters)
    assert np.abs(cells[0] - cells[1]).max() < 1e-12


# Bad input.


def test_bad_layers_are_refused():
    with pytest.raises(UnsupportedError, match="or or max for layers='wheel', got 'add'"):
        machine("wheel", store=replace(STORE, rule="add"))
    with pytest.raises(UnsupportedError, match="for layers='wheel', got 'rank'"):
        SparseDistributedMemory(layers="wheel")
    with pytest.raises(UnsupportedError, match="for the rule trace, got 'abstract'"):
        SparseDistributedMemory(rule="trace")
    with pytest.raises(InputError, match="abstract, wheel, rdlif, got 'lif'"):
        SparseDistributedMemory(rule="max", layers="lif")
    with pytest.raises(InputError, match="a kind of wheel, rdlif, got 'lif'"):
        SpikingLayer("lif", np.ones((2, 2)), 1, [])
