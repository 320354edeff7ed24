"""What is no matrix product, by spikes: activations, normalisation, softmax, gates, rotations.

``port(..., functions="spiking")`` puts these in the place of float functions at the soma. They run
in the phases of :mod:`isospike.porting.product`, stepped or collapsed, with the same result bit for
bit; their equations are those of :mod:`isospike.circuits.arithmetic`.

Between spikes a membrane is added to, compared with a threshold, and reset. Constants (a gain, a
scale, the weight of a normalisation) are synaptic weights or thresholds of what reads the value.
"""

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
from isospike.circuits.integers import CELLS, lookup, lookup_table, take
from isospike.circuits.softcap import soft_cap_spikes
from isospike.hf.modules import ACTIVATIONS, Activation, GatedMLP, Norm, Product
from isospike.kernels.runtime.buffers import cache_blocks
from isospike.porting.run import CircuitStats, Run
from isospike.porting.statistics import Sample

FEW_STEPS = 16  # of the few-spike neurons
FACTOR_STEPS = 14  # digits of a factor
# How fine digits are: the standard deviation of what they spell, over their grid.
FINENESS = 128.0
DEFAULT = SignedDigitFormat(2.0**-10, 20)
"""Digits of a circuit that calibration does not reach, as in a step of generation."""


@dataclass(frozen=True)
class ActivationCircuit:
    """How one few-spike neuron of ``|x|`` gives an activation function.

    ``f(x) = ramp max(x, 0) + even g(s |x|) + odd sign(x) g(s |x|) + shift``

    The error is at most that of the neuron, times ``|even|`` or ``|odd|``; beyond the neuron's
    range, also what the function still changes there.

    Attributes:
        neuron: Name of g, a shipped few-spike neuron; None for a bare ramp.
        scale: s.
        ramp, even, odd, shift: The weights.
    """

    neuron: str | None = None
    scale: float = 1.0
    ramp: float = 1.0
    even: float = 0.0
    odd: float = 0.0
    shift: float = 0.0


ACTIVATION_CIRCUITS = {
    "relu": ActivationCircuit(),
    "gelu": ActivationCircuit("gelu residual", even=-1.0),
    "silu": ActivationCircuit("silu residual", even=-1.0),
    "quick-gelu": ActivationCircuit("silu residual", 1.702, even=-1 / 1.702),
    "tanh": ActivationCircuit("tanh", ramp=0.0, odd=1.0),
    "sigmoid": ActivationCircuit("tanh", 0.5, ramp=0.0, odd=0.5, shift=0.5),
    "softplus": ActivationCircuit("softplus residual", even=1.0),
    "erf": ActivationCircuit("erf", ramp=0.0, odd=1.0),
}
"""One for each of :data:`isospike.hf.modules.ACTIVATIONS`."""


class SpikingActivation(nn.Module):
    """An activation function by a few-spike neuron.

    A neuron holds x and one holds -x; the one above 0 fires. If it is the second, the first is
    reset to 0: that is the ramp. The few-spike neuron's spikes then take the rest from it.
    """

    def __init__(self, name: str, run: Run, function: str) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.function = function
        self.circuit = ACTIVATION_CIRCUITS[function]

    def forward(self, x: Tensor) -> Tensor:
        run, function = self.run, ACTIVATIONS[self.function]
        if run.phase == "float":
            run.place(self.name, x)
            return function(x)
        y = self._spiking(x)
        if watcher := run.circuit_watcher:
            watcher.on_circuit(self._stats_of(run.rows(x, self.name), run.rows(y, self.name)))
        return y

    def _spiking(self, x: Tensor) -> Tensor:
        circuit, stepped = self.circuit, self.run.mode.stepped
        if circuit.neuron is None:
            return x.clamp_min(0)
        y = torch.empty_like(x)
        for part in cache_blocks(x, x.numel()) if x.dim() else (...,):
            z = x[part]
            g = lookup(circuit.neuron, self._cells(z), stepped=stepped)
            if circuit.odd:
                g = torch.where(z < 0, -g, g) * circuit.odd + circuit.shift
                y[part] = torch.where(z.isnan(), z, g)
            else:
                # Both in the wider type: bfloat16 rounds once, at the end.
                y[part] = torch.add(z.to(g.dtype).clamp_min(0), g, alpha=circuit.even, out=g)
        return y

    def _cells(self, x: Tensor) -> Tensor:
        """The few-spike neuron's membrane."""
        circuit = self.circuit
        x = x.float() if x.dtype == torch.bfloat16 else x
        return x.abs() * (CELLS * circuit.scale / BUILTIN[str(circuit.neuron)][2])

    def _stats_of(self, x: Tensor, y: Tensor) -> CircuitStats:
        true = ACTIVATIONS[self.function](x)
        spikes, steps = float((x < 0).sum()), 1
        if self.circuit.neuron is not None:
            v = self._cells(x).double().clamp(0, CELLS)
            spikes += float(take(lookup_table(str(self.circuit.neuron))[1], v).sum())
            steps += FEW_STEPS
        # ON, OFF and few-spike neuron.
        n = float(x.numel())
        return make_stats(self.name, "activation", 3 * n, 3 * n * steps, spikes, spikes, y, true)

    def extra_repr(self) -> str:
        return self.function


class SpikingNorm(nn.Module):
    """LayerNorm or RMSNorm by :func:`isospike.circuits.arithmetic.layer_norm`.

    Args:
        name: Its path.
        run: That of the model.
        norm: What it computes; of width 0 for rows of any width, without a gain of its own.

    Attributes:
        digits: How its inputs are encoded; calibration sets it.
    """

    def __init__(self, name: str, run: Run, norm: Norm) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.centre = norm.kind == "layer"
        self.eps = norm.eps
        self.width = norm.width
        gamma, beta = norm.gamma, norm.beta
        gain = torch.ones(norm.width) if gamma is None else gamma
        self.weight = nn.Parameter(gain, False) if norm.width else None
        self.bias = None if beta is None else nn.Parameter(beta, False)
        self.digits = DEFAULT

    def forward(self, x: Tensor) -> Tensor:
        run = self.run
        if run.phase == "float":
            run.show(self.name, x if self.width else _sizes(run.rows(x, self.name), self.centre))
            return self.float_norm(x)
        y = self._spiking(x)
        if watcher := run.circuit_watcher:
            watcher.on_circuit(self._stats_of(run.rows(x, self.name)))
        return y

    def fit(self, sample: Sample) -> None:
        """Set the digits of its inputs, from float values."""
        rows = sample.rows
        spread = _sizes(rows, self.centre)[:, 0] if self.width else rows[:, 0]
        least = max(float(spread.median()), self.eps**0.5) / FINENESS / 2
        self.digits = SignedDigitFormat.fit(least, 2 * float(sample.extremes.abs().max()))

    def float_norm(self, x: Tensor) -> Tensor:
        """The function itself."""
        if self.centre:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def _gain(self, x: Tensor) -> Tensor:
        """The gain of each channel."""
        return x.new_ones(x.shape[-1], dtype=wide(x)) if self.weight is None else self.weight

    def _spiking(self, x: Tensor) -> Tensor:
        y, stepped, gain = torch.empty_like(x), self.run.mode.stepped, self._gain(x)
        for part in cache_blocks(x, x.numel()):
            y[part] = layer_norm(
                x[part].to(gain.dtype), gain, self.bias, self.eps, self.digits,
                subtract_mean=self.centre, stepped=stepped,
            ).y  # fmt: skip
        return y

    def _stats_of(self, x: Tensor) -> CircuitStats:
        gain = self._gain(x)
        x = x.to(gain.dtype)
        done = layer_norm(x, gain, self.bias, self.eps, self.digits, subtract_mean=self.centre)
        rows, width, steps = float(x[..., :1].numel()), x.shape[-1], self.digits.steps
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
        return make_stats(self.name, "normalisation", neurons, updates, spikes, ops,
                    done.y, self.float_norm(x))  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps:g}, centre={self.centre}, {self.digits}"


class SpikingGatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``: the digits of the activated gate let ``up`` in.

    Attributes:
        digits: How the gate is encoded; calibration sets it.
    """

    def __init__(self, name: str, run: Run, module: nn.Module, parts: GatedMLP) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.parts = parts
        for part in parts:
            self.add_module(part, module.get_submodule(part))
        self.digits = DEFAULT

    def forward(self, x: Tensor) -> Tensor:
        run = self.run
        gate_part, up_part, act, down = map(self.get_submodule, self.parts)
        gate, up = act(gate_part(x)), up_part(x)
        if run.phase == "float":
            run.show(self.name, gate)
        y = self.product(gate, up)
        if run.phase == "run" and (watcher := run.circuit_watcher):
            g, u = run.rows(gate, self.name), run.rows(up, self.name)
            spikes = float(SignedDigitFormat.count(self.digits.integers(g.to(wide(g)))).sum())
            n = float(g.numel())
            watcher.on_circuit(make_stats(self.name, "product", 2 * n, 2 * n * self.digits.steps,
                                      spikes, spikes, run.rows(y, self.name), g * u))  # fmt: skip
        return down(y)  # type: ignore[no-any-return]

    def product(self, gate: Tensor, up: Tensor) -> Tensor:
        """``gate * up``."""
        if self.run.phase == "float":
            return gate * up
        return gated(self.digits, gate, up, self.run.mode.stepped)

    def fit(self, sample: Sample) -> None:
        """Set the digits of the gate, from float values."""
        self.digits = digits_for(sample)


def gated(digits: SignedDigitFormat, gate: Tensor, up: Tensor, stepped: bool) -> Tensor:
    """``grid sum_t w[t] (on[t] - off[t]) up``: additions of what ``up`` has accumulated.

    Args:
        digits: How the gate is encoded.
        gate: One operand.
        up: The other one.
        stepped: Whether spike by spike.

    Returns:
        The product, in the type of ``up``.
    """
    g, u = gate.to(wide(gate)), up.to(wide(up))
    if not stepped:
        return (digits.integers(g) * u * digits.grid).to(up.dtype)
    u = u.double()
    y = u.new_zeros(torch.broadcast_shapes(g.shape, u.shape))  # type: ignore[no-untyped-call]
    for w, on, off in digits.spikes(g):
        y = gated_add(gated_add(y, u, on, w), u, off, -w)
    return (y.to(wide(up)) * digits.grid).to(up.dtype)


def digits_for(sample: Sample) -> SignedDigitFormat:
    """Digits fine enough for a sample, and wide enough for twice its largest value."""
    spread = float(sample.rows.float().square().mean().sqrt())
    largest = float(sample.extremes.abs().max())
    return SignedDigitFormat.fit(spread / FINENESS / 2, 2 * largest)


def _sizes(x: Tensor, centre: bool) -> Tensor:
    """Standard deviation, or root of the mean square, and largest magnitude of each row."""
    rows = x.flatten(0, -2)
    spread = rows.std(-1, correction=0) if centre else rows.square().mean(-1).sqrt()
    return torch.stack([spread, rows.abs().amax(-1)], -1)


def encoded_integers(digits: SignedDigitFormat, x: Tensor) -> Tensor:
    """``digits.integers(x)``, spike by spike."""
    n = torch.zeros_like(x)
    for w, on, off in digits.spikes(x.double()):
        n = add_spikes(n, on, off, w)
    return n.to(x.dtype)


def cells(z: Tensor) -> Tensor:
    """Scores in whole cells of an octave, in place."""
    return z.mul_(LOG2E * CELLS).floor_()


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
        total: Their sum as encoded, ``[batch, heads, queries, 1]``.
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
    return make_stats(name, "softmax", 2 * n + 4 * r, updates + float(finding[rows].sum()),
                float(spikes), float(ops), e[live], true[live])  # fmt: skip


def softcap_stats(name: str, x: Tensor, y: Tensor, cap: float) -> CircuitStats:
    """The bound of one attention's scores.

    Args:
        name: The attention.
        x: Its scores.
        y: What the circuit made of them.
        cap: The bound.
    """
    spikes, ops = (float(each.sum()) for each in soft_cap_spikes(x, cap))
    n = float(x.numel())
    # ON, OFF, square, upper and lower line, reciprocal; as many steps for each.
    return make_stats(name, "activation", 6 * n, 6 * n * FEW_STEPS, spikes, ops, y,
                  cap * torch.tanh(x / cap))  # fmt: skip


def make_stats(
    name: str, kind: str, neurons: float, updates: float, spikes: float, ops: float,
    y: Tensor, true: Tensor,
) -> CircuitStats:  # fmt: skip
    """What a circuit did that gave ``y``, where the function gives ``true``."""
    error = float((y - true).double().square().sum())
    return CircuitStats(name, kind, float(y.numel()), neurons, spikes, ops, updates, error,
               float(true.double().square().sum()))  # fmt: skip


def wide(x: Tensor) -> torch.dtype:
    """The type that a circuit computes in."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def make_circuit(
    name: str,
    module: nn.Module,
    known: Norm | Activation | GatedMLP | Product | None,
    run: Run,
) -> SpikingActivation | SpikingNorm | SpikingGatedMLP | None:
    """The circuit that stands for a module; None if it needs none or has none.

    Args:
        name: Path of the module.
        module: It.
        known: What it computes: :func:`isospike.hf.modules.recognise`.
        run: That of the model.
    """
    if isinstance(known, Activation):
        return SpikingActivation(name, run, known.name)
    if isinstance(known, Norm):
        return SpikingNorm(name, run, known)
    if isinstance(known, GatedMLP):
        return SpikingGatedMLP(name, run, module, known)
    return None


CIRCUITS = (SpikingActivation, SpikingNorm, SpikingGatedMLP)
