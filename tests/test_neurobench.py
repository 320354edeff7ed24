"""NeuroBench's harness with our counts."""

import sys

import numpy as np
import pytest
import torch
from models import batches
from ports import quick
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isospike.deploy.neurobench import (
    Work,
    count_family,
    count_machine,
    count_port,
    harness_metrics,
    harness_model,
)
from isospike.errors import MissingExtraError, UnsupportedError
from isospike.memory import Combined, SequenceMachine, Shift, Store
from isospike.models import QKFormer, QKFormerConfig, SpikeDrivenConfig, SpikeDrivenTransformer
from isospike.models.levels import compare_levels, round_synapses

KINDS = {
    "QKFormer": QKFormer(
        QKFormerConfig(channels=16, depths=(1, 1), heads=(2, 2), num_labels=4)
    ),
    "spike-driven": SpikeDrivenTransformer(
        SpikeDrivenConfig(channels=16, blocks=1, num_labels=4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("functions", ["float", "spiking"])
def test_the_work_of_a_port_is_that_of_its_report(functions):
    held_out = batches("bert")
    port = quick(functions=functions, evaluation=held_out)
    work = Work()
    for batch in held_out:
        work.include(count_port(port.model, batch)[1])
    counts, tokens = port.report.counts, port.report.held_out_tokens
    assert work.samples == sum(len(batch["input_ids"]) for batch in held_out)
    assert work.synaptic_ops == pytest.approx(counts.synaptic_ops * tokens, rel=1e-9)
    assert work.neuron_updates == pytest.approx(counts.neuron_updates * tokens, rel=1e-9)
    assert work.spikes == pytest.approx(counts.spikes * tokens, rel=1e-9)
    assert work.dense == pytest.approx(counts.macs * tokens, rel=1e-9)


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
def test_the_work_of_a_family_counts_every_spike_that_a_layer_reads(model):
    model.eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.bias.data.fill_(0.6)
            norm.running_var.fill_(0.01)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scores, work = count_family(model, x, 3)
    with torch.no_grad():
        assert torch.equal(scores, model(x, steps=3).logits)
    assert work.samples == 2
    assert 0 < work.spikes < work.neuron_updates
    assert work.macs == 2 * 3 * 64 * model_stem(model)  # the pixels, once for all steps
    assert 0 < work.synaptic_ops
    again = count_family(model, x[:1], 3)[1]
    again.include(count_family(model, x[1:], 3)[1])
    assert again == work
    doubled = count_family(model, torch.cat([x, x]), 3)[1]
    assert doubled.synaptic_ops == 2 * work.synaptic_ops


def test_the_spikes_of_integer_neurons_are_counted_in_all_their_steps():
    config = QKFormerConfig(channels=16, depths=(1, 1), heads=(2, 2), num_labels=4, levels=4)
    model = QKFormer(config).eval()
    round_synapses(model)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    work, found = count_family(model, x, 4)[1], compare_levels(model, x)
    assert found["spikes"] > 0
    assert (work.spikes, work.neuron_updates) == (found["spikes"], 4 * found["neurons"])
    assert work.synaptic_ops > work.spikes
    assert work.macs == 2 * 3 * 64 * model_stem(model)


@pytest.mark.parametrize("context", [Combined(), Shift()], ids=["combined", "shift"])
def test_the_work_of_a_sequence_machine_is_that_of_its_store(context):
    text = "abracadabra"
    machine = SequenceMachine("abcdr", context=context, store=Store(rule="add"), seed=0)
    alone = SequenceMachine("abcdr", context=context, store=Store(rule="add"), seed=0)
    found, work = count_machine(machine, text)
    assert [x == y for x, y in zip(found, text, strict=True)] == alone.learn_sequence(text).tolist()
    store, (k, m), (n, d) = machine.settings.store, context.context_code, context.code
    assert work.samples == len(text)
    assert work.spikes == len(text) * (k + n + store.active)
    made = (m + d) * m if isinstance(context, Combined) else context.depth * n
    dense = made + store.locations * store.connections + store.locations * 8
    assert work.dense == len(text) * dense
    # One symbol more: by hand, from the connections of each location.
    memory = machine._memory
    strength = memory._decoder.matrix() != 0
    fires = memory._state.context.copy()
    made = (k + n) * m if isinstance(context, Combined) else context.depth * n
    read = (memory._state.counters[memory._state.active] != 0).sum()
    one = count_machine(machine, "a", learn=False)[1]
    assert one.synaptic_ops == made + int(strength[:, fires].sum()) + read


def test_a_machine_without_a_store_is_not_counted():
    with pytest.raises(UnsupportedError, match=r"with a store, got context=Mixed\(\)"):
        count_machine(SequenceMachine("ab"), "ab")


def model_stem(model):
    """Additions that a value of the image would cause in the first convolution."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    return first.weight[:, 0].numel()


def test_the_harness_has_our_columns():
    benchmarks = pytest.importorskip("neurobench.benchmarks")
    calls = []

    def count(x):
        calls.append(len(x))
        spikes = float(x.sum())
        return x, Work(len(x), 3 * spikes, 3.0 * x.numel(), 0.0, float(x.numel()), spikes)

    x = (torch.arange(20).view(5, 4) % 3 == 0).float()
    loader = DataLoader(TensorDataset(x, x), batch_size=2)
    model = harness_model(count, nn.Linear(2, 2))
    found = benchmarks.Benchmark(model, loader, [], [], [[], harness_metrics()]).run(quiet=True)
    assert calls == [2, 2, 1]
    assert found["SynapticOperations"] == {
        "Effective_MACs": 0.0, "Effective_ACs": 3 * 7 / 5, "Dense": 12.0
    }  # fmt: skip
    assert np.isclose(found["ActivationSparsity"], 1 - 7 / 20)
    assert found["MembraneUpdates"] == 4.0


def test_a_model_that_is_no_port_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(UnsupportedError, match="count_port needs a port, got a Linear"):
        count_port(nn.Linear(2, 2), {})
    monkeypatch.setitem(sys.modules, "neurobench.models", None)
    with pytest.raises(MissingExtraError, match=r"neurobench, got none\. Install isospike"):
        harness_model(lambda x: (x, Work()), nn.Linear(2, 2))
