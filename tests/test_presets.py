"""Presets: the neurons of other libraries, spike for spike."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.neurons import LIF, NeuronParams, run
from isospike.presets import from_module, norse_lif_box, snntorch_leaky, spikingjelly_lif
from isospike.surrogate import SuperSpike

GOLDEN = json.loads((Path(__file__).parent / "golden" / "neurons.json").read_text(encoding="utf-8"))
PRESETS = {f.__name__: f for f in (spikingjelly_lif, snntorch_leaky, norse_lif_box)}


def draw(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['preset']} {c['arguments']}")
def test_a_preset_fires_as_the_golden_file_says(case):
    x = torch.tensor([[int(n) for n in row.split()] for row in GOLDEN["x times 64"]]) / 64
    true = torch.tensor([[int(s) for s in row] for row in case["spikes"]])
    spikes, _ = run(x, None, PRESETS[case["preset"]](**case["arguments"]))
    assert 0.03 < true.float().mean() < 0.9
    assert torch.equal(spikes.long(), true)


def installed(name):
    """Version of a peer whose golden spikes we have; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def need(name):
    if installed(name) is None:
        pytest.skip(f"{name} is not installed")


DRIVE = (16, 32, 40)
peers = pytest.mark.filterwarnings("ignore")  # other libraries' own


@peers
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
def test_spikes_and_gradients_are_spikingjellys(decay_input, v_reset):
    need("spikingjelly")
    from spikingjelly.activation_based.neuron import LIFNode

    x = (1.5 * torch.randn(DRIVE, generator=draw(0)) + 0.5).requires_grad_()
    node = LIFNode(2.5, decay_input, v_reset=v_reset, step_mode="m")
    layer = LIF(spikingjelly_lif(2.5, decay_input, v_reset=v_reset))
    up = torch.randn(DRIVE, generator=draw(1))
    spikes, ours = node(x), layer(x)
    assert torch.equal(ours, spikes)
    (true,) = torch.autograd.grad(spikes, x, up)
    (grad,) = torch.autograd.grad(ours, x, up)
    torch.testing.assert_close(grad, true, rtol=1e-4, atol=1e-5)


@peers
@pytest.mark.parametrize(("reset", "delay"), [("subtract", True), ("zero", True), ("zero", False)])
def test_spikes_are_snntorchs(reset, delay):
    need("snntorch")
    from snntorch import Leaky

    x = torch.randn(DRIVE, generator=draw(0)) + 0.5
    node = Leaky(0.9, threshold=1.25, reset_mechanism=reset, reset_delay=delay)
    mem, spikes = torch.zeros(DRIVE[1:]), []
    for current in x:
        s, mem = node(current, mem)
        spikes.append(s)
    ours, _ = run(x, None, snntorch_leaky(0.9, 1.25, reset, delay))
    assert torch.equal(ours, torch.stack(spikes))


@peers
def test_spikes_are_norses():
    need("norse")
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxParameters

    x = 2 * torch.randn(DRIVE, generator=draw(0)) + 1
    cell, state, spikes = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(300.0))), None, []
    for current in x:
        s, state = cell(current, state)
        spikes.append(s)
    ours, _ = run(x, None, norse_lif_box(300.0))
    assert torch.equal(ours, torch.stack(spikes))


def test_strictly_above_the_threshold_where_the_library_is():
    x = torch.tensor([[1.0], [1.0000001]])
    assert run(x, None, snntorch_leaky(0.0, reset_mechanism="zero"))[0][:, 0].tolist() == [0, 1]
    assert run(x, None, NeuronParams(decay=0.0))[0][:, 0].tolist() == [1, 1]


# Errors.


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: spikingjelly_lif(1.0), "needs tau > 1, got 1.0"),
        (lambda: spikingjelly_lif(v_reset=2.0), "spikingjelly_lif needs threshold above 0, got -1"),
        (lambda: snntorch_leaky(1.5), "snntorch_leaky needs decay in"),
        (lambda: snntorch_leaky(0.5, 0.0), "needs threshold above 0, got 0"),
        (
            lambda: snntorch_leaky(0.0),
            "beta > 0 to subtract at the next step, got 0. Use reset_mechanism='zero'",
        ),
        (lambda: norse_lif_box(2000.0), "norse_lif_box needs decay in"),
        (lambda: norse_lif_box(v_leak=2.0), "needs threshold above 0"),
    ],
)
def test_presets_refuse_what_is_out_of_range(call, match):
    with pytest.raises(RangeError, match=match):
        call()


def test_snntorchs_other_rules_are_refused():
    with pytest.raises(UnsupportedError, match="got 'subtract' with reset_delay=False"):
        snntorch_leaky(0.5, reset_delay=False)


def their_neurons():
    """A neuron of each kind, by name; none of a library that is not installed."""
    made = {}
    if installed("spikingjelly"):
        from spikingjelly.activation_based import neuron, surrogate

        made["IFNode"] = neuron.IFNode(v_threshold=0.7, v_reset=None, step_mode="m")
        made["LIFNode"] = neuron.LIFNode(
            3.0, decay_input=False, v_reset=-0.2, surrogate_function=surrogate.ATan(3.0),
            step_mode="m",
        )  # fmt: skip
        made["ParametricLIFNode"] = neuron.ParametricLIFNode(
            3.0, surrogate_function=surrogate.PiecewiseQuadratic(0.8), step_mode="m"
        )
    return made


# Parity.
@peers
@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_a_node_of_spikingjelly_is_read_with_its_gradient(name):
    need("spikingjelly")
    node = their_neurons()[name]
    x = (1.5 * torch.randn(DRIVE, generator=draw(2)) + 0.5).requires_grad_()
    up = torch.randn(DRIVE, generator=draw(3))
    theirs, ours = node(x), from_module(node)(x)
    assert 0.05 < theirs.mean() < 0.9
    assert (ours != theirs).sum() <= 2  # the two round the membrane otherwise
    if torch.equal(ours, theirs):
        (a,), (b,) = (torch.autograd.grad(y, x, up, retain_graph=True) for y in (ours, theirs))
        assert torch.allclose(a, b, atol=1e-4)


@peers
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("kind", ["atan", "fast_sigmoid", "sigmoid"])
def test_a_leaky_of_snntorch_is_read_with_its_surrogate(reset, kind):
    need("snntorch")
    import snntorch

    grad = getattr(snntorch.surrogate, kind)(3.0)
    leaky = snntorch.Leaky(0.9, threshold=0.8, spike_grad=grad, reset_mechanism=reset)
    ours = from_module(leaky)
    assert ours.params.surrogate.alpha == 3
    x = torch.randn(DRIVE, generator=draw(4))
    mem, spikes = leaky.reset_mem(), []
    for step in x:
        fired, mem = leaky(step, mem)
        spikes.append(fired)
    assert torch.equal(ours(x), torch.stack(spikes))


@peers
def test_a_cell_of_norse_is_read():
    need("norse")
    import norse.torch

    cell = norse.torch.LIFBoxCell(norse.torch.LIFBoxParameters(torch.tensor(200.0)))
    x, state, spikes = 2 * torch.rand(DRIVE, generator=draw(5)), None, []
    for step in x:
        fired, state = cell(step, state)
        spikes.append(fired)
    assert torch.equal(from_module(cell)(x), torch.stack(spikes))


class Leaky(torch.nn.Module):
    """A stand-in for snnTorch's, in its settings."""

    beta, threshold = torch.tensor(0.5), torch.tensor(1.0)
    reset_mechanism, reset_delay = "subtract", True
    inhibition, graded_spikes_factor = False, torch.tensor(1.0)
    spike_grad = None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inhibition": True}, "without inhibition and without graded spikes"),
        ({"beta": torch.ones(3)}, "one beta and one threshold, got 3 and 1"),
        ({}, "a surrogate of atan, sigmoid, fast_sigmoid, got NoneType"),
        ({"reset_delay": False}, "a delayed subtract"),
    ],
)
def test_settings_that_ours_has_not_are_refused(monkeypatch, change, match):
    monkeypatch.setattr(Leaky, "__module__", "snntorch._neurons.leaky")
    leaky = Leaky()
    for name, value in change.items():
        monkeypatch.setattr(leaky, name, value)
    with pytest.raises(UnsupportedError, match=match):
        from_module(leaky)


def test_parameters_by_name_are_those_of_the_tuple():
    x = torch.rand(DRIVE, generator=draw(6))
    named, given = LIF(decay=0.9, threshold=0.7), LIF(NeuronParams(decay=0.9, threshold=0.7))
    assert torch.equal(named(x), given(x))
    assert LIF(spikingjelly_lif(), surrogate=SuperSpike(5.0)).params.gain == 0.5
    with pytest.raises(InputError, match="parameters that it knows, got 'tau'"):
        LIF(tau=2.0)
    with pytest.raises(RangeError, match="decay"):
        LIF(decay=1.5)
