"""What is no matrix product, by spikes: activations, normalisation, softmax, gates, rotations.

``port(..., functions="spiking")`` puts these in the place of float functions at the soma. They run
in the phases of :mod:`isospike.porting.product`, stepped or collapsed, with the same result bit for
bit; their equations are those of :mod:`isospike.circuits.arithmetic`.

Between spikes a membrane is added to, compared with a threshold, and reset. Constants (a gain, a
scale, the weight of a normalisation) are synaptic weights or thresholds of what reads the value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.circuits.arithmetic import (
    LOG2E,
    OCTAVES,
    RACE_STEPS,
    ScaledInteger,
    exp2_negative,
    exp2_spikes,
    inverse,
    inverse_spikes,
    layer_norm,
    multiply,
    race_spikes,
    subtract_row_max,
)
from isospike.circuits.digits import SignedDigitFormat, add_spikes, gated_add
from isospike.circuits.few_spike import BUILTIN
from isospike.circuits.integers import CELLS, lookup, lookup_table
from isospike.errors import RangeError, UnsupportedError
from isospike.kernels.runtime.buffers import cache_blocks
from isospike.porting.run import CircuitStats, Run

FEW_STEPS = 16  # of the few-spike neurons
FACTOR_STEPS = 14  # digits of a factor
# How fine digits are: the standard deviation of what they spell, over their grid.
FINENESS = 128.0


@dataclass(frozen=True)
class Shape:
    """An activation function, from one few-spike neuron of ``|x|``.

    ``f(x) = max(x, 0) - g(s |x|) / s``, or ``sign(x) g(|x|)`` for an odd one.

    Attributes:
        function: What it stands for.
        neuron: Name of g, a shipped few-spike neuron; None for a bare ramp.
        scale: s.
        odd: Whether the function is.
    """

    function: Callable[[Tensor], Tensor]
    neuron: str | None = None
    scale: float = 1.0
    odd: bool = False


SHAPES = {
    "relu": Shape(torch.relu),
    "gelu": Shape(F.gelu, "gelu residual"),
    "silu": Shape(F.silu, "silu residual"),
    "quick-gelu": Shape(lambda x: x * torch.sigmoid(1.702 * x), "silu residual", 1.702),
    "tanh": Shape(torch.tanh, "tanh", odd=True),
}
"""Activation functions that have a circuit. GELU's tanh form is within 5e-4 of GELU."""

SAME = 1e-3  # largest difference at which an activation counts as one of them


class SpikingActivation(nn.Module):
    """An activation function by a few-spike neuron.

    A neuron holds x and one holds -x; the one above 0 fires. If it is the second, the first is
    reset to 0: that is the ramp. The few-spike neuron's spikes then take the rest from it.
    """

    def __init__(self, name: str, run: Run, shape: str) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        run, function = self.run, SHAPES[self.shape].function
        if run.phase == "float":
            return function(x)
        if run.phase == "calibrate":
            x_float, x_spiking = x.chunk(2)
            return torch.cat([function(x_float), self._spiking(x_spiking)])
        y = self._spiking(x)
        if watcher := run.circuit_watcher:
            watcher.on_circuit(self._stats_of(run.rows(x), run.rows(y)))
        return y

    def _spiking(self, x: Tensor) -> Tensor:
        shape, stepped = SHAPES[self.shape], self.run.mode.stepped
        if shape.neuron is None:
            return x.clamp_min(0)
        y = torch.empty_like(x)
        for part in cache_blocks(x, x.numel()):
            z = x[part]
            g = lookup(shape.neuron, self._cells(z), stepped=stepped)
            if shape.odd:
                y[part] = torch.where(z.isnan(), z, torch.where(z < 0, -g, g))
            else:
                # Both in the wider type: bfloat16 rounds once, at the end.
                torch.sub(z.to(g.dtype).clamp_min(0), g, alpha=1 / shape.scale, out=g)
                y[part] = g
        return y

    def _cells(self, x: Tensor) -> Tensor:
        """The few-spike neuron's membrane."""
        shape = SHAPES[self.shape]
        x = x.float() if x.dtype == torch.bfloat16 else x
        return x.abs() * (CELLS * shape.scale / BUILTIN[str(shape.neuron)][2])

    def _stats_of(self, x: Tensor, y: Tensor) -> CircuitStats:
        true = SHAPES[self.shape].function(x)
        spikes, steps = float((x < 0).sum()), 1
        if SHAPES[self.shape].neuron is not None:
            v = self._cells(x).floor().clamp(0, CELLS).long()
            spikes += float(lookup_table(str(SHAPES[self.shape].neuron))[1][v].sum())
            steps += FEW_STEPS
        # ON, OFF and few-spike neuron.
        n = float(x.numel())
        return _stats(self.name, "activation", 3 * n, 3 * n * steps, spikes, spikes, y, true)

    def extra_repr(self) -> str:
        return self.shape


class Reencoder(nn.Module):
    """A module whose results may be sent on as spikes of its own.

    A rotation by position adds up values of two channels, so each has to arrive as spikes: two
    additions for each, with weights cos and sin. Without that, only membranes would meet.

    Attributes:
        name: Path of the module it replaces.
        run: That of the model.
        relay: What its results are sent in, where other neurons than its own need them.
    """

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.relay: SignedDigitFormat | None = None

    def reencoded(self, y: Tensor) -> Tensor:
        """``y`` as the spikes of ``relay`` carry it, if it has them."""
        run = self.run
        if self.relay is None or run.phase == "float":
            return y
        if run.phase == "calibrate":
            y_float, y_spiking = y.chunk(2)
            self.relay = _digits_for(self.name, run.rows(y_spiking))
            return torch.cat([y_float, self.relay.integers(y_spiking) * self.relay.grid])
        x = y.to(_wide(y))
        n = _spelled(self.relay, x) if run.mode.stepped else self.relay.integers(x)
        sent = n * self.relay.grid
        if watcher := run.circuit_watcher:
            spikes, rows = float(SignedDigitFormat.count(run.rows(n)).sum()), run.rows(x)
            count = float(2 * rows.numel())
            watcher.on_circuit(_stats(self.name, "relay", count, count * self.relay.steps, spikes,
                                      2 * spikes, run.rows(sent), rows))  # fmt: skip
        return sent.to(y.dtype)


class SpikingNorm(Reencoder):
    """LayerNorm or RMSNorm by :func:`isospike.circuits.arithmetic.layer_norm`.

    Args:
        name: Its path.
        run: That of the model.
        module: What it stands for.
        centre: Whether the mean is subtracted.
        more: Added to the module's weight: Gemma's has 1 less than it multiplies by.

    Attributes:
        digits: What its inputs are spelled in; calibration sets it.
    """

    def __init__(
        self, name: str, run: Run, module: nn.Module, centre: bool, more: float = 0.0
    ) -> None:
        super().__init__(name, run)
        self.centre = centre
        self.eps = _eps(module)
        self.width = _width(module)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        ones = torch.ones(self.width)
        self.weight = nn.Parameter(ones if weight is None else weight.detach() + more, False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), False)
        self.digits = SignedDigitFormat(1.0, 1)

    def forward(self, x: Tensor) -> Tensor:
        run = self.run
        if run.phase == "float":
            y = self.float_norm(x)
        elif run.phase == "calibrate":
            x_float, x_spiking = x.chunk(2)
            rows = run.rows(x_spiking)
            spread = rows.std(-1, correction=0) if self.centre else rows.square().mean(-1).sqrt()
            least = max(float(spread.median()), self.eps**0.5) / FINENESS / 2
            self.digits = _fit(self.name, least, 2 * float(rows.abs().max()))
            y = torch.cat([self.float_norm(x_float), self._spiking(x_spiking)])
        else:
            y = self._spiking(x)
            if watcher := run.circuit_watcher:
                watcher.on_circuit(self._stats_of(run.rows(x)))
        return self.reencoded(y)

    def float_norm(self, x: Tensor) -> Tensor:
        """The function itself."""
        if self.centre:
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        return F.rms_norm(x, (self.width,), self.weight, self.eps)

    def _spiking(self, x: Tensor) -> Tensor:
        y, stepped = torch.empty_like(x), self.run.mode.stepped
        for part in cache_blocks(x, x.numel()):
            wide = x[part].to(self.weight.dtype)
            y[part] = layer_norm(
                wide, self.weight, self.bias, self.eps, self.digits,
                subtract_mean=self.centre, stepped=stepped,
            ).y  # fmt: skip
        return y

    def _stats_of(self, x: Tensor) -> CircuitStats:
        x = x.to(self.weight.dtype)
        done = layer_norm(
            x, self.weight, self.bias, self.eps, self.digits, subtract_mean=self.centre
        )
        rows, width, steps = float(x[..., :1].numel()), self.width, self.digits.steps
        digits = SignedDigitFormat.count(done.integers).sum()
        mean, centred = torch.zeros(()), digits
        if self.centre:
            mean = SignedDigitFormat.count(done.mean).sum()
            centred = SignedDigitFormat.count(done.integers - done.mean.to(x.dtype)).sum()
        finding, gates = (s.sum() for s in inverse_spikes(done.squares, root=True))
        # Input digits reach the mean; the mean's, all channels; the centred ones', the sum of
        # squares; those of the factor let all channels through.
        stages = (digits, mean, centred) if self.centre else (digits,)
        spikes = sum(float(s) for s in (*stages, finding, gates))
        ops = float(digits + finding + centred * self.centre + (mean + gates) * width)
        neurons = rows * (width * (2 if self.centre else 1) * 2 + 5)
        updates = rows * (2 * width * (2 if self.centre else 1) + 2) * steps + float(finding)
        updates += rows * (2 * FEW_STEPS + FACTOR_STEPS)
        return _stats(self.name, "normalisation", neurons, updates, spikes, ops,
                    done.y, self.float_norm(x))  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps:g}, centre={self.centre}, {self.digits}"


MLP_PARTS = ("gate_proj", "up_proj", "act_fn", "down_proj")


class SpikingGatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``: the digits of the activated gate let ``up`` in.

    Attributes:
        digits: What the gate is spelled in; calibration sets it.
    """

    gate_proj: nn.Module
    up_proj: nn.Module
    act_fn: nn.Module
    down_proj: nn.Module

    def __init__(self, name: str, run: Run, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.run = run
        for part in MLP_PARTS:
            setattr(self, part, module.get_submodule(part))
        self.digits = SignedDigitFormat(1.0, 1)

    def forward(self, x: Tensor) -> Tensor:
        run = self.run
        gate, up = self.act_fn(self.gate_proj(x)), self.up_proj(x)
        if run.phase == "float":
            return self.down_proj(gate * up)  # type: ignore[no-any-return]
        if run.phase == "calibrate":
            (g_float, g), (u_float, u) = gate.chunk(2), up.chunk(2)
            self.digits = _digits_for(self.name, run.rows(g))
            return self.down_proj(  # type: ignore[no-any-return]
                torch.cat([g_float * u_float, self._product(g, u)])
            )
        y = self._product(gate, up)
        if watcher := run.circuit_watcher:
            g, u = run.rows(gate), run.rows(up)
            spikes = float(SignedDigitFormat.count(self.digits.integers(g.to(_wide(g)))).sum())
            n = float(g.numel())
            watcher.on_circuit(_stats(self.name, "product", 2 * n, 2 * n * self.digits.steps,
                                      spikes, spikes, run.rows(y), g * u))  # fmt: skip
        return self.down_proj(y)  # type: ignore[no-any-return]

    def _product(self, gate: Tensor, up: Tensor) -> Tensor:
        """``grid sum_t w[t] (on[t] - off[t]) up``: additions of what ``up`` has accumulated."""
        g, u = gate.to(_wide(gate)), up.to(_wide(up))
        if not self.run.mode.stepped:
            return (self.digits.integers(g) * u * self.digits.grid).to(up.dtype)
        y, u = torch.zeros_like(u, dtype=torch.float64), u.double()
        for w, on, off in self.digits.spikes(g):
            y = gated_add(gated_add(y, u, on, w), u, off, -w)
        return (y.to(_wide(up)) * self.digits.grid).to(up.dtype)


def _digits_for(name: str, rows: Tensor) -> SignedDigitFormat:
    """Digits fine enough for a sample, and wide enough for twice its largest value."""
    spread = float(rows.float().square().mean().sqrt())
    return _fit(name, spread / FINENESS / 2, 2 * float(rows.abs().max()))


def _fit(name: str, smallest: float, largest: float) -> SignedDigitFormat:
    if not math.isfinite(smallest + largest):
        raise RangeError(
            f"port needs finite activations, got NaN or infinity at {name}. Check the model's "
            "weights and inputs."
        )
    return SignedDigitFormat.fit(smallest, largest)


def _spelled(digits: SignedDigitFormat, x: Tensor) -> Tensor:
    n = torch.zeros_like(x)
    for w, on, off in digits.spikes(x.double()):
        n = add_spikes(n, on, off, w)
    return n.to(x.dtype)


def cells(z: Tensor, scale: Tensor | float, mask: Tensor | None) -> Tensor:
    """``scale z + mask`` in whole cells of an octave, in place."""
    z.mul_(scale * (LOG2E * CELLS))
    if mask is not None:
        z += mask * (LOG2E * CELLS)
    return z.floor_()


def numerator(scores: Tensor, stepped: bool) -> Tensor:
    """``2^(score - largest)``, the scores in cells: a race, then few-spike neurons."""
    return exp2_negative(subtract_row_max(scores, stepped=stepped).neg_(), stepped=stepped)


def mean_of(weighted: Tensor, total: Tensor, stepped: bool) -> Tensor:
    """``weighted / total``: the digits of the reciprocal let ``weighted`` in."""
    factor: ScaledInteger = inverse(total, stepped=stepped)
    return multiply(weighted, factor, stepped=stepped)


def softmax_stats(
    name: str, scores: Tensor, e: Tensor, total: Tensor, channels: int, live: Tensor
) -> CircuitStats:
    """Softmax of one attention: race, exp2 and reciprocal.

    Args:
        name: The attention.
        scores: In cells, ``[batch, heads, queries, keys]``.
        e: What the circuit made of them.
        total: Their sum as spelled, ``[batch, heads, queries, 1]``.
        channels: Of a value.
        live: Pairs that exist, likewise; False throughout in the rows of padding.
    """
    rows = live.any(-1)
    keys = live.sum(-1).double()
    below = subtract_row_max(scores)
    race, inhibition = race_spikes(torch.where(live, scores, -torch.inf))
    exp2 = torch.where(live, exp2_spikes(-below), 0.0).sum(-1).double()
    finding, gates = (s[..., 0] for s in inverse_spikes(total))
    spikes = (race + inhibition + exp2 + finding + gates)[rows].sum()
    ops = (race + inhibition * keys + exp2 + finding + gates * channels)[rows].sum()
    n, r = float(keys[rows].sum()), float(rows.sum())
    updates = n * (RACE_STEPS + OCTAVES + FEW_STEPS) + r * (RACE_STEPS + FEW_STEPS + FACTOR_STEPS)
    true = torch.exp2(below / CELLS)
    return _stats(name, "softmax", 2 * n + 4 * r, updates + float(finding[rows].sum()),
                float(spikes), float(ops), e[live], true[live])  # fmt: skip


def _stats(
    name: str, kind: str, neurons: float, updates: float, spikes: float, ops: float,
    y: Tensor, true: Tensor,
) -> CircuitStats:  # fmt: skip
    error = float((y - true).double().square().sum())
    return CircuitStats(name, kind, float(y.numel()), neurons, spikes, ops, updates, error,
               float(true.double().square().sum()))  # fmt: skip


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


# ------------------------------------------------------------------------- which module is what


def circuit_of(name: str, module: nn.Module, run: Run) -> nn.Module | None:
    """The circuit that stands for a module of the float model; None if it needs none.

    Judged by what it computes, not by what it is called.

    Raises:
        UnsupportedError: An activation or normalisation that no circuit computes.
    """
    kind = type(module)
    if kind.__module__ in ("torch.nn.modules.activation", "transformers.activations"):
        return _activation(name, module, run)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) or kind.__name__.endswith("RMSNorm"):
        return _norm(name, module, run)
    if all(isinstance(getattr(module, part, None), nn.Module) for part in MLP_PARTS):
        return _gated(name, module, run)
    return None


def _activation(name: str, module: nn.Module, run: Run) -> nn.Module | None:
    x = torch.linspace(-12, 12, 2401)
    if any(True for _ in module.parameters()) or isinstance(module, nn.MultiheadAttention):
        return None
    with torch.no_grad():
        y = module(x.clone())
    if torch.equal(x, y):
        return None
    for shape, of in SHAPES.items():
        if float((of.function(x) - y).abs().max()) <= SAME:
            return SpikingActivation(name, run, shape)
    raise UnsupportedError(
        f"port needs functions='float' for {type(module).__name__} in {name}, got 'spiking', which "
        f"has circuits for {', '.join(SHAPES)}."
    )


def _norm(name: str, module: nn.Module, run: Run) -> nn.Module:
    width = _width(module)
    if width:
        x = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            y = module(x)
            for centre, more in ((True, 0.0), (False, 0.0), (False, 1.0)):
                found = SpikingNorm(name, run, module, centre, more)
                if y.shape == x.shape and torch.allclose(found.float_norm(x), y, 1e-3, 1e-4):
                    return found
    raise UnsupportedError(
        f"port needs functions='float' for {type(module).__name__} in {name}, got 'spiking', which "
        "has circuits for LayerNorm and RMSNorm over one axis with a plain weight."
    )


def _gated(name: str, module: nn.Module, run: Run) -> nn.Module:
    width = getattr(module.get_submodule("gate_proj"), "in_features", 0)
    if width:
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
        found = SpikingGatedMLP(name, Run(run.mode), module)
        with torch.no_grad():
            y = module(x)
            if isinstance(y, Tensor) and torch.allclose(found(x), y, 1e-3, 1e-4):
                found.run = run
                return found
    raise UnsupportedError(
        f"port needs functions='float' for {type(module).__name__} in {name}, got 'spiking', which "
        "has a circuit for down_proj(act_fn(gate_proj(x)) * up_proj(x))."
    )


def _eps(module: nn.Module) -> float:
    found = getattr(module, "eps", getattr(module, "variance_epsilon", 0.0))
    # What nn.RMSNorm means by None.
    return float(torch.finfo(torch.float32).eps if found is None else found)


def _width(module: nn.Module) -> int:
    """Channels that are normalised together; 0 where more than one axis is."""
    shape = getattr(module, "normalized_shape", None)
    if shape is None:
        weight = getattr(module, "weight", None)
        shape = () if weight is None else tuple(weight.shape)
    return int(shape[0]) if len(shape) == 1 else 0
