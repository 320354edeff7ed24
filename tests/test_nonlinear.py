"""``port(functions="spiking")``: what is no product runs on spikes too."""

from dataclasses import replace

import models
import pytest
import torch
from torch import nn

import isospike
from isospike.errors import InputError
from isospike.hf.modules import ACTIVATIONS, recognise
from isospike.porting import load
from isospike.porting.audit import audit
from isospike.porting.discover import discover
from isospike.porting.functions import (
    SpikingActivation,
    cells,
    mean_of,
    numerator,
)
from isospike.porting.run import Mode, Run, run_of

KINDS = {
    "bert": {"normalisation", "softmax", "activation"},
    "vit": {"normalisation", "softmax", "activation"},
    "gpt2": {"normalisation", "softmax", "activation"},
    "llama": {"normalisation", "softmax", "activation", "relay", "product"},
}


@pytest.fixture(scope="module")
def ports():
    """A port of each architecture with functions on spikes, made once."""
    made = {}

    def get(name):
        if name not in made:
            model = models.make(name)
            made[name] = (
                model,
                isospike.port(model, models.batches(name, 16, 4), functions="spiking"),
            )
        return made[name]

    return get


@pytest.mark.parametrize("name", KINDS)
def test_no_float_operation_is_left_between_spikes(ports, name):
    model, result = ports(name)
    report = result.report
    assert report.functions == "spiking"
    assert report.counts.spiking_float_ops == {}
    assert report.exceptions == ()
    assert {c.kind for c in report.circuits} == KINDS[name] | {"gain"}
    assert all(c.spikes > 0 for c in report.circuits)
    assert all(0 < c.error < 0.03 for c in report.circuits if c.kind != "gain")
    # The audit sees what the float model does.
    kinds = audit(model, models.batch(name, 2)).nonlinear_ops
    assert {"softmax", "normalisation", "activation"} <= set(kinds)
    assert ("product" in kinds) == (name in ("gpt2", "llama"))  # GPT-2 spells out its GELU


@pytest.mark.parametrize("name", KINDS)
def test_stepped_and_collapsed_agree_bit_for_bit(ports, name):
    model, result = ports(name)
    inputs = models.batch(name, 4, seed=7)
    collapsed = models.run(result.model, inputs, "collapsed")
    assert torch.equal(collapsed, models.run(result.model, inputs, "stepped"))
    float_port = isospike.port(model, models.batches(name, 16, 4))
    # The gain of a circuit is a power of two: up to twice the step.
    assert result.report.error < 2 * float_port.report.error + 0.01
    assert float_port.report.circuits == ()
    counts = float_port.report.counts
    assert counts.spiking_float_ops == {
        **counts.float_ops,
        "gain": counts.spiking_float_ops["gain"],
    }
    assert counts.spiking_float_ops["gain"] > 0


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_saved_port_comes_back_the_same(ports, name, tmp_path):
    _, result = ports(name)
    result.save(tmp_path / "port")
    again = load(tmp_path / "port")
    inputs = models.batch(name, 4, seed=7)
    assert run_of(again).mode.functions == "spiking"
    assert torch.equal(models.run(again, inputs), models.run(result.model, inputs))
    text = (tmp_path / "port" / "report.json").read_text()
    assert isospike.porting.PortReport.from_json(text) == result.report


def test_the_report_names_the_circuits_and_counts_their_spikes(ports):
    _, result = ports("bert")
    report = result.report
    page = report.html()
    assert f"Show {len(report.circuits)} circuits" in page
    assert "No float operation was counted at the soma" in page
    sites = sum(site.spikes for site in report.sites)
    assert report.spikes == pytest.approx(sites + sum(c.spikes for c in report.circuits))
    assert report.counts.spikes == pytest.approx(report.spikes)
    assert report.counts.neuron_updates > sum(site.neuron_updates for site in report.sites)
    plain = replace(report.counts, spiking_float_ops=None)
    table = isospike.energy.INT8_45NM
    kept = isospike.energy.estimate_energy(plain, table).spiking_pj
    soma = 4.6 * sum(report.counts.float_ops.values())
    assert isospike.energy.estimate_energy(report.counts, table).spiking_pj == pytest.approx(
        kept - soma
    )


@pytest.mark.parametrize(("code", "steps"), [("rate", 24), ("phase", 7), ("latency", 40)])
def test_other_codes_step_and_collapse_alike(code, steps):
    model = models.make("bert", num_hidden_layers=1)
    result = isospike.port(
        model, models.batches("bert", 8, 2), code=code, steps=steps, functions="spiking"
    )
    inputs = models.batch("bert", 3, seed=7)
    collapsed = models.run(result.model, inputs, "collapsed")
    assert torch.equal(collapsed, models.run(result.model, inputs, "stepped"))


def test_fast_precision_is_close():
    model = models.make("bert", num_hidden_layers=1)
    result = isospike.port(
        model, models.batches("bert", 8, 2), precision="fast", functions="spiking"
    )
    assert result.report.error_fast < 2 * result.report.error + 0.01


# ------------------------------------------------------------------------- single circuits


@pytest.mark.parametrize("shape", ACTIVATIONS)
def test_an_activation_is_within_a_fiftieth_and_right_beyond_its_range(shape):
    circuit = SpikingActivation("f", Run(phase="run"), shape)
    x = torch.linspace(-30, 30, 6001)
    y = circuit(x)
    assert (y - ACTIVATIONS[shape](x)).abs().max() <= 0.021
    circuit.run.mode = Mode("stepped")
    assert torch.equal(circuit(x), y)
    assert bool(circuit(torch.tensor([torch.nan])).isnan())


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("minus", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_masked_key_weighs_nothing_and_a_masked_row_gives_nothing(stepped, minus):
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 5)
    mask[1, 2:], mask[2] = minus, minus
    e = numerator(cells(z + mask), stepped)
    assert not e[1, 2:].any()
    assert not e[2].any()
    assert e[:2].amax(-1).sub(1).abs().max() < 0.01
    whole = (255 * e).round()
    mean = mean_of(whole @ torch.ones(5, 2), whole.sum(-1, keepdim=True), stepped)
    assert (mean[:2] - 1).abs().max() < 0.01
    assert not mean[2].any()


# -------------------------------------------------------------------------------- mistakes


def test_another_word_is_refused():
    with pytest.raises(InputError, match="needs functions among float, spiking, got 'soft'"):
        isospike.port(models.make("bert"), models.batches("bert", 4, 2), functions="soft")


def test_activations_that_are_not_finite_are_named():
    calibration, held = models.batches("vit", 4, 2)
    calibration["pixel_values"][1, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="finite activations, got NaN or infinity at vit"):
        isospike.port(models.make("vit"), [calibration, held], functions="spiking")


class Strange(nn.Module):
    """A layer of its own making."""

    def __init__(self, act):
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.act = act

    def forward(self, x):
        return self.act(self.dense(x))


class Functional(nn.Module):
    def forward(self, x):
        return torch.nn.functional.gelu(x)


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.weight * x / x.abs().sum(-1, keepdim=True)


OddRMSNorm = type("OddRMSNorm", (Odd,), {})


class PlusOneRMSNorm(Odd):
    """As Gemma's."""

    def forward(self, x):
        return (1 + self.weight) * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_a_norm_is_known_by_what_it_computes():
    found = recognise(PlusOneRMSNorm())
    assert (found.kind, found.gamma.tolist(), found.eps) == ("rms", [2, 2, 2, 2], 1e-6)
    assert recognise(nn.RMSNorm(4, eps=1e-6)).gamma.tolist() == [1, 1, 1, 1]
    assert recognise(nn.LayerNorm(4)).kind == "layer"


@pytest.mark.parametrize(
    ("act", "operator"), [(nn.ELU(), "elu"), (nn.Hardswish(), "hardswish"), (Sine(), "sin")]
)
def test_a_function_without_a_circuit_is_named(act, operator):
    sample = {"x": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))}
    assert discover(Strange(act), sample, "spiking").in_float == {"act": (operator,)}
    assert discover(Strange(act), sample).in_float == {}  # all functions may stay


@pytest.mark.parametrize("act", [nn.Mish(), nn.Softmax(-1), OddRMSNorm(), Square()])
def test_a_module_without_a_circuit_of_its_own_is_made_of_those_of_what_it_calls(act):
    sample = {"x": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))}
    found = discover(Strange(act), sample, "spiking")
    assert found.in_float == {}
    assert found.template.circuits


def test_a_module_of_another_class_that_computes_an_activation_gets_its_circuit():
    sample = {"x": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))}
    found = discover(Strange(Functional()), sample, "spiking").template
    assert [circuit.function for circuit in found.circuits] == ["gelu"]


def test_a_gain_a_gate_and_an_identity_are_no_functions():
    class Linear(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, 0.5 * x + 1, 0.0) - x.mean(-1, keepdim=True) / 2

    sample = {"x": torch.randn(2, 3, 4)}
    found = discover(Strange(Linear()), sample, "spiking").template
    assert audit(found.model, sample).nonlinear_ops == {}
    assert recognise(nn.Identity()) is None
