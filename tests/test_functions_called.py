"""Functions that are called, not modules: each by a circuit, found where it is called."""

import math

import models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isospike
from isospike.circuits.digits import SignedDigitFormat
from isospike.circuits.integers import CELLS, relative_error
from isospike.hf.modules import ACTIVATIONS
from isospike.porting.check import check
from isospike.porting.discover import discover, survey
from isospike.porting.elementary import (
    ROOTS,
    SpikingExp,
    SpikingGate,
    SpikingRelay,
    SpikingRoot,
    SpikingSoftmax,
)
from isospike.porting.functions import SpikingActivation
from isospike.porting.run import Mode, Run, Watcher
from isospike.porting.statistics import Sample


def both(circuit, *args):
    """What a circuit gives, collapsed and stepped alike."""
    circuit.run.phase = "run"
    circuit.run.mode = Mode(functions="spiking")
    y = circuit(*args)
    circuit.run.mode = Mode("stepped", functions="spiking")
    assert torch.equal(circuit(*args), y)
    return y


def fitted(circuit, *args):
    """A circuit whose digits were fitted to what it was called with in float."""
    sample, watcher = Sample(), Watcher()
    watcher.on_values = lambda name, rows: sample.add(rows, 0, 0.0, 1.0)
    with circuit.run.watching(watcher):
        circuit(*args)
    circuit.fit(sample)
    return circuit


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------- single circuits


@pytest.mark.parametrize("function", ROOTS)
def test_a_root_is_within_its_bound_over_twenty_octaves(function):
    x = torch.logspace(-3, 17, 4001, base=2.0)
    circuit = fitted(SpikingRoot("f", Run(), function), x)
    true = ROOTS[function](x)
    neuron = "reciprocal" if function == "reciprocal" else "rsqrt"
    # Whole numbers add a few per cent to the error of a few-spike neuron.
    bound = 1.1 * relative_error(neuron) + 2.0**-11
    assert float((both(circuit, x) / true - 1).abs().max()) <= bound


def test_a_quotient_has_both_signs_and_keeps_what_is_no_number():
    a, b = torch.tensor([3.0, -3.0, 3.0]), torch.tensor([2.0, 2.0, -4.0])
    circuit = fitted(SpikingRoot("f", Run(), "reciprocal"), b)
    y = both(circuit, b, a)
    assert y.tolist() == pytest.approx([1.5, -1.5, -0.75], rel=0.01)
    x = torch.tensor([torch.nan, 0.0, 4.0])
    root = fitted(SpikingRoot("f", Run(), "sqrt"), torch.tensor([1.0, 4.0]))
    root.run.phase = "run"
    assert root(x)[0].isnan()
    assert root(x)[1:].tolist() == pytest.approx([0.0, 2.0], rel=0.01)


def test_an_exponential_is_within_its_bound_over_fifteen_octaves():
    x = torch.linspace(-9.0, 0.5, 3001)
    circuit = fitted(SpikingExp("f", Run()), x)
    bound = 1.1 * relative_error("exp2") + math.log(2) / CELLS
    assert float((both(circuit, x) / x.exp() - 1).abs().max()) <= bound
    assert circuit(torch.tensor([-1e9])).item() == 0.0


def test_a_gate_hand_trace():
    # Grid 1/2 and 4 digits: 1.6 is 3 halves, -9 saturates at -15 halves.
    gate = SpikingGate("f", Run())
    gate.digits = SignedDigitFormat(0.5, 4)
    y = both(gate, torch.tensor([1.6, -9.0]), torch.tensor([2.0, 0.25]))
    assert y.tolist() == [3.0, -1.875]


def test_a_gate_is_within_half_a_unit_of_its_digits_times_the_other_operand():
    a, b = normal(64, 1), normal(64, 32, seed=1)
    gate = fitted(SpikingGate("f", Run()), a, b)
    assert bool(((both(gate, a, b) - a * b).abs() <= gate.digits.grid / 2 * b.abs() + 1e-6).all())
    assert torch.equal(both(gate, b, a), both(gate, a, b))  # the one with fewer values is spelled


@pytest.mark.parametrize("complex_", [False, True])
def test_a_relay_is_within_half_a_unit_of_its_digits_times_the_factor(complex_):
    x, angle = normal(5, 7, 8), normal(7, 8, seed=1)
    x = torch.view_as_complex(x.view(5, 7, 4, 2)) if complex_ else x
    factor = torch.polar(torch.ones(7, 4), angle[:, :4]) if complex_ else angle.cos()
    relay = fitted(SpikingRelay("f", Run(), "right"), factor, x)
    parts = 2 if complex_ else 1
    error = (both(relay, factor, x) - factor * x).abs()
    assert bool((error <= relay.digits.grid / 2 * parts * factor.abs() + 1e-6).all())


@pytest.mark.parametrize("dim", [-1, 1])
def test_softmax_of_a_call_is_within_a_hundredth_along_any_axis(dim):
    x = 3 * normal(4, 9, 6)
    x[0, 0, 1:] = -torch.inf
    error = both(SpikingSoftmax("f", Run()), x, dim) - x.softmax(dim)
    assert float(error.abs().sum(dim).max()) < 0.02


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "erf"])
def test_an_activation_is_as_exact_as_its_neuron(name):
    circuit = SpikingActivation("f", Run(), name)
    x = torch.linspace(-12, 12, 4801)
    assert float((both(circuit, x) - ACTIVATIONS[name](x)).abs().max()) <= 0.021


# --------------------------------------------------------------------- found by their calls

FUNCTIONS = {
    "squared relu": lambda x: torch.relu(x) ** 2,
    "sigmoid": lambda x: x.sigmoid(),
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "swish": lambda x: x * torch.sigmoid(1.5 * x),
    "mish": F.mish,
    "log sigmoid": F.logsigmoid,
    "length 1": lambda x: F.normalize(x, dim=-1),
    "length 1, divided": lambda x: x / x.norm(dim=-1, keepdim=True),
    "root of the mean square": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "variance": lambda x: x / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5),
    "layer norm": lambda x: F.layer_norm(x, (8,), torch.arange(8.0)),
    "rms norm": lambda x: F.rms_norm(x, (8,)),
    "group norm": lambda x: F.group_norm(x.mT, 2).mT,
    "softmax": lambda x: x.softmax(-1),
    "gated halves": lambda x: F.silu(x.chunk(2, -1)[0]).mul(x.chunk(2, -1)[1]).repeat(1, 1, 2),
    "glu": lambda x: F.glu(x).repeat(1, 1, 2),
    "exponential": lambda x: torch.exp(-x.square()),
    "cube": lambda x: x**3,
    "fraction": lambda x: 1 / (1 + x * x),
    "in place": lambda x: x.clone().sigmoid_().div_(1 + x.abs()),
}


class Between(nn.Module):
    """A function between two products."""

    def __init__(self, function):
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 4)
        self.function = function

    def forward(self, x):
        return self.after(self.function(self.before(x)))


def between(function):
    torch.manual_seed(0)
    return Between(function).eval()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_called_runs_on_spikes(name):
    model = between(FUNCTIONS[name])
    batches = [{"x": normal(16, 6, 8, seed=s)} for s in (1, 2)]
    result = isospike.port(model, batches[:1], evaluation=batches[1:], functions="spiking")
    assert result.report.in_float == {}
    assert result.report.counts.spiking_float_ops == {}
    assert result.report.error < 0.05
    assert any(c.kind != "gain" for c in result.report.circuits)
    x = {"x": normal(4, 6, 8, seed=3)}
    collapsed, stepped = (models.run(result.model, x, how) for how in ("collapsed", "stepped"))
    assert torch.equal(collapsed, stepped)


def test_a_port_with_called_functions_is_saved_and_loaded_into_a_model(tmp_path):
    every = list(FUNCTIONS.values())
    model = between(lambda x: sum(f(x) for f in every[:6]) + every[10](x))
    batches = [{"x": normal(16, 6, 8, seed=s)} for s in (1, 2)]
    result = isospike.port(model, batches[:1], evaluation=batches[1:], functions="spiking")
    result.save(tmp_path / "port")
    again = isospike.load(tmp_path / "port", between(model.function))
    x = {"x": normal(4, 6, 8, seed=3)}
    assert torch.equal(models.run(again, x), models.run(result.model, x))


def test_what_no_circuit_computes_is_listed_by_check_and_in_the_report():
    model = between(lambda x: torch.tanh(torch.sin(x)))
    x = {"x": normal(8, 6, 8)}
    (left,) = [m for m in check(model, x).modules if m.outcome == "float"]
    assert "No circuit computes sin" in left.reason
    report = isospike.port(model, [x], evaluation=[x], functions="spiking").report
    assert report.in_float == {"": ("sin",)}
    assert "sin" in report.counts.spiking_float_ops or report.counts.spiking_float_ops
    assert any("No circuit computes sin" in warning for warning in report.warnings)
    assert "Functions without a circuit" in report.html()


def test_what_depends_on_positions_alone_is_no_function_of_an_activation():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(8, 8)

        def forward(self, x, places):
            return self.dense(x) * torch.cos(places.float())[..., None].sqrt().exp()

    sample = {"x": normal(2, 3, 8), "places": torch.arange(3).expand(2, 3) % 2}
    found = survey(Positions(), sample, "spiking")
    assert found.in_float == {}
    assert found.ported.circuits == ()


# ------------------------------------------------------------------------------- rotations


class Rotary(nn.Module):
    """Attention with rotary positions, written out; queries and keys in one product."""

    def __init__(self, interleaved):
        super().__init__()
        self.qk, self.v, self.interleaved = (
            nn.Linear(8, 16, bias=False),
            nn.Linear(8, 8),
            interleaved,
        )
        angle = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.5, 0.25, 0.125])
        self.register_buffer("angle", angle, persistent=False)

    def turned(self, x):
        cos, sin = self.angle.cos(), self.angle.sin()
        if self.interleaved == "complex":
            z = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())
            return torch.view_as_real(z * torch.polar(torch.ones_like(cos), self.angle)).flatten(-2)
        if self.interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        cos, sin = cos.repeat(1, 2), sin.repeat(1, 2)
        half = torch.cat([-x[..., 4:], x[..., :4]], -1)
        return x * cos + half * sin

    def forward(self, x):
        q, k = (F.linear(x, w) for w in self.qk.weight.chunk(2))
        return F.scaled_dot_product_attention(self.turned(q), self.turned(k), self.v(x))


@pytest.mark.parametrize("kind", [False, True, "complex"])
def test_what_enters_a_rotation_is_sent_as_spikes_and_counted_once(kind):
    torch.manual_seed(0)
    model = Rotary(kind).eval()
    batches = [{"x": normal(8, 6, 8, seed=s)} for s in (1, 2)]
    result = isospike.port(model, batches[:1], evaluation=batches[1:], functions="spiking")
    relays = [c for c in result.report.circuits if c.kind == "relay"]
    # An ON and an OFF neuron for every channel of a query and a key; no part is counted twice.
    assert sum(c.neurons for c in relays) * 48 == 2 * 2 * 8 * 48
    assert result.report.counts.spiking_float_ops == {}
    x = {"x": normal(4, 6, 8, seed=3)}
    assert torch.equal(*(models.run(result.model, x, how) for how in ("collapsed", "stepped")))


def test_a_gain_of_each_channel_is_no_rotation():
    model = between(lambda x: x * torch.arange(8.0) + x.flip(-1) * torch.ones(8))
    found = discover(model, {"x": normal(4, 6, 8)}, "spiking").template
    assert found.circuits == ()


# ------------------------------------------------------------------- modules that do more


class GatedNorm(nn.RMSNorm):
    """A norm that multiplies by a gate where one is given."""

    def forward(self, x, gate=None):
        y = super().forward(x)
        return y if gate is None else y * F.silu(gate)


class Modules(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.norm = nn.Linear(8, 8), GatedNorm(8)
        self.image, self.groups = nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8)
        self.act = nn.SiLU()

    def forward(self, x):
        y = self.norm(self.dense(x), x)
        z = self.groups(self.image(y.mT[..., None]))[..., 0].mT
        return self.act(y) + self.act(z)


def test_a_module_is_replaced_only_where_its_circuit_gives_the_same():
    torch.manual_seed(0)
    model, x = Modules().eval(), {"x": normal(8, 6, 8)}
    result = isospike.port(model, [x], evaluation=[x], functions="spiking")
    names = [c.name for c in result.report.circuits if c.kind != "gain"]
    assert names == ["norm:rms-norm", "norm:silu", "norm:gate", "groups:layer-norm", "act"]
    assert result.report.counts.spiking_float_ops == {}
