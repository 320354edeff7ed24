"""Functions that no module stands for, computed by spikes where a model calls them.

They are found as products are: :mod:`isospike.porting.recorder` notes each place that calls one on
values that depend on the input, and :class:`isospike.porting.calls.Runner` sends it to one of
these, which run in the phases of :mod:`isospike.porting.product`, stepped or collapsed, bit for
bit the same.

======================  ======================================================================
circuit                 error, at most
======================  ======================================================================
:class:`SpikingGate`    half a unit of its digits, times the other operand
:class:`SpikingRelay`   half a unit of its digits, times the factor
:class:`SpikingRoot`    that of a few-spike neuron, and 1 / FINENESS_OF_ROOTS, of the result
:class:`SpikingExp`     that of a few-spike neuron, and one cell, of the result
:class:`SpikingSoftmax` see :func:`isospike.circuits.arithmetic.softmax`
======================  ======================================================================
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isospike.circuits.arithmetic import (
    LOG2E,
    OCTAVES,
    cells_of,
    exp2_negative,
    exp2_spikes,
    inverse,
    inverse_spikes,
    multiply,
    softmax,
    subtract_row_max,
)
from isospike.circuits.digits import SignedDigitFormat
from isospike.circuits.integers import CELLS, FINE
from isospike.hf.modules import ACTIVATIONS, Norm
from isospike.porting.functions import (
    CIRCUITS,
    DEFAULT,
    FACTOR_STEPS,
    FEW_STEPS,
    SpikingActivation,
    SpikingNorm,
    digits_for,
    encoded_integers,
    gated,
    make_stats,
    softmax_stats,
    wide,
)
from isospike.porting.run import CircuitStats, Run
from isospike.porting.statistics import Sample

FINENESS_OF_ROOTS = 2**11  # units in the smallest argument of a root or reciprocal
LARGEST_ROOT = 2.0**52  # units in the largest


def _unpadded(run: Run, x: Tensor, name: str) -> Tensor:
    """The values of unpadded tokens, ``[values, 1]``, of ``x [batch, tokens, ...]`` or ``[batch,
    heads, tokens, channels]`` in the circuit ``name``; all of them where no mask fits."""
    mask = run.circuit_mask(name)
    if mask is not None and x.dim() == 4 and (len(x), x.shape[2]) == mask.shape:
        x = x.transpose(1, 2)
    if mask is not None and x.shape[:2] == mask.shape:
        x = x[mask]
    return x.reshape(-1, 1)


class SpikingGate(nn.Module):
    """``a b``, entry by entry: the digits of the operand with fewer values let the other in.

    Attributes:
        name: Of the call it stands for.
        run: That of the model.
        digits: How the values are encoded; calibration sets it.
    """

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name, self.run, self.digits = name, run, DEFAULT

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The product.

        Args:
            a: Any shape.
            b: Likewise; the two are broadcast.
        """
        run = self.run
        few, many = (a, b) if a.numel() <= b.numel() else (b, a)
        if run.phase == "float":
            run.place(self.name, few)
            run.show(self.name, _unpadded(run, few, self.name))
            return a * b
        y = gated(self.digits, few, many, run.mode.stepped).to(torch.result_type(a, b))
        if watcher := run.circuit_watcher:
            rows = _unpadded(run, few, self.name)
            spikes = float(SignedDigitFormat.count(self.digits.integers(rows.to(wide(rows)))).sum())
            n = float(rows.numel())
            watcher.on_circuit(make_stats(self.name, "product", 2 * n, 2 * n * self.digits.steps,
                               spikes, spikes * many.numel() / max(1, few.numel()),
                               *(_unpadded(run, z, self.name) for z in (y, a * b))))  # fmt: skip
        return y

    def fit(self, sample: Sample) -> None:
        """Set the digits, from float values."""
        self.digits = digits_for(sample)


class SpikingRelay(nn.Module):
    """An activation times a factor that its position gives: part of a rotation by position.

    A rotation adds up values of two channels, so each has to arrive as spikes: two additions for
    each, with weights cos and sin. Without that, only membranes would meet.

    Args:
        name: Of the call it stands for.
        run: That of the model.
        side: Which operand is sent on as spikes, ``left`` or ``right``.
        source: The relay whose spikes these are, if another part of the rotation sends them.

    Attributes:
        digits: How the values are encoded; calibration sets it.
    """

    def __init__(self, name: str, run: Run, side: str, source: str = "") -> None:
        super().__init__()
        self.name, self.run, self.side, self.source = name, run, side, source
        self.digits = DEFAULT

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The product.

        Args:
            a: Real or complex.
            b: Likewise.
        """
        x, factor = (a, b) if self.side == "left" else (b, a)
        return self._sent(x) * factor

    def _sent(self, x: Tensor) -> Tensor:
        """``x`` as its spikes carry it."""
        if x.is_complex():
            return torch.view_as_complex(self._sent(torch.view_as_real(x)))
        run = self.run
        if run.phase == "float":
            run.place(self.name, x)
            run.show(self.name, _unpadded(run, x, self.name))
            return x
        z = x.to(wide(x))
        n = encoded_integers(self.digits, z) if run.mode.stepped else self.digits.integers(z)
        sent = n * self.digits.grid
        if (watcher := run.circuit_watcher) and not self.source:
            n, kept, rows = (_unpadded(run, y, self.name) for y in (n, sent, z))
            spikes = float(SignedDigitFormat.count(n).sum())
            count = float(2 * rows.numel())
            watcher.on_circuit(make_stats(self.name, "relay", count, count * self.digits.steps,
                               spikes, 2 * spikes, kept, rows))  # fmt: skip
        return sent.to(x.dtype)

    def fit(self, sample: Sample) -> None:
        """Set the digits, from float values."""
        self.digits = digits_for(sample)


ROOTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rsqrt": torch.rsqrt, "sqrt": torch.sqrt, "reciprocal": torch.reciprocal,
}  # fmt: skip


class SpikingRoot(nn.Module):
    """``x^(-1/2)``, ``x^(1/2)``, or ``a / x``, by :func:`isospike.circuits.arithmetic.inverse`.

    (1)  n = floor(|x| / unit),  x^(-1/2) = n^(-1/2) / sqrt(unit),  x^(1/2) = n n^(-1/2) sqrt(unit)

    Claim: relative error at most q + 1 / FINENESS_OF_ROOTS, with q that of the few-spike neuron.
    Assumes: x of at least the smallest magnitude that calibration has seen.
    Source: derived. Rounding x down changes it, and its root or reciprocal, by less than one unit
        in FINENESS_OF_ROOTS.
    Test: twenty octaves above the smallest magnitude.
    Verdict: holds.

    Below one unit the result is 0. A square root and a reciprocal square root read x above 0 only.

    Attributes:
        name: Of the call it stands for.
        run: That of the model.
        function: One of :data:`ROOTS`.
        digits: Its grid is the unit, a power of four; calibration sets it.
    """

    def __init__(self, name: str, run: Run, function: str) -> None:
        super().__init__()
        self.name, self.run, self.function, self.digits = name, run, function, DEFAULT

    def forward(self, x: Tensor, upper: Tensor | float | None = None) -> Tensor:
        """The function of ``x``; of a reciprocal, ``upper / x``.

        Args:
            x: Any shape.
            upper: What is divided; 1 by default.
        """
        run = self.run
        if run.phase == "float":
            run.place(self.name, x)
            values = _unpadded(run, x, self.name)
            sizes = values.abs()
            inverses = torch.where(sizes > 0, sizes.reciprocal(), sizes)
            run.show(self.name, torch.cat([values, inverses.nan_to_num(posinf=0.0)], 1))
            return self._true(x, upper)
        y = self._spiking(x, upper)
        if watcher := run.circuit_watcher:
            rows = _unpadded(run, x, self.name)
            finding, gates = (
                float(s.sum()) for s in inverse_spikes(self._whole(rows), root=self._root)
            )
            n = float(rows.numel())
            true = _unpadded(run, self._true(x, upper), self.name)
            kept = true.isfinite()
            updates = n * (2 * FEW_STEPS + FACTOR_STEPS) + finding
            watcher.on_circuit(make_stats(self.name, "normalisation", 5 * n, updates,
                               finding + gates, finding + gates * y.numel() / max(1, x.numel()),
                               _unpadded(run, y, self.name)[kept], true[kept]))  # fmt: skip
        return y

    def fit(self, sample: Sample) -> None:
        """Set the unit, from float values."""
        most, most_inverse = sample.extremes.abs().amax(0).double().tolist()
        least = 1 / most_inverse if most_inverse else 1.0
        least = max(least / FINENESS_OF_ROOTS, most / LARGEST_ROOT)
        self.digits = SignedDigitFormat(4.0 ** math.floor(math.log2(max(least, 1e-30)) / 2), 20)

    @property
    def _root(self) -> bool:
        return self.function != "reciprocal"

    def _true(self, x: Tensor, upper: Tensor | float | None) -> Tensor:
        return ROOTS[self.function](x) if upper is None else upper / x

    def _whole(self, x: Tensor) -> Tensor:
        x = x.to(wide(x)).double()
        x = x.clamp_min(0) if self._root else x.abs()
        return (x * (1 / self.digits.grid)).floor().clamp_max(2 * LARGEST_ROOT)

    def _spiking(self, x: Tensor, upper: Tensor | float | None) -> Tensor:
        n, unit, stepped = self._whole(x), self.digits.grid, self.run.mode.stepped
        factor = inverse(n, root=self._root, stepped=stepped)
        if self._root:
            top = n if self.function == "sqrt" else torch.ones_like(n)
            y = multiply(top, factor, stepped=stepped)
            y = y * (math.sqrt(unit) if self.function == "sqrt" else 1 / math.sqrt(unit))
        else:
            given = torch.as_tensor(1.0 if upper is None else upper, device=x.device)
            kind = torch.result_type(x, given)
            shape = torch.broadcast_shapes(x.shape, given.shape)  # type: ignore[no-untyped-call]
            top = given.to(kind).to(torch.float32 if kind == torch.bfloat16 else kind)
            y = multiply(top.expand(shape), factor, stepped=stepped) * (1 / unit)
            return torch.where(x < 0, -y, y).to(kind)
        return torch.where(x.isnan(), x, y.to(x.dtype))

    def extra_repr(self) -> str:
        return self.function


class SpikingExp(nn.Module):
    """``exp(x)``, the octaves of ``x`` below a largest one, then a few-spike neuron.

    (2)  exp(x) = top 2^-(d / CELLS),  d = CELLS log2 top - floor(x CELLS log2 e), at least 0

    Claim: relative error at most r + ln 2 / CELLS, r that of the few-spike neuron of exp2.
    Assumes: results from top 2^-OCTAVES to top, twice the largest that calibration has seen, or
        more. Below, the result is 0.
    Source: derived.
    Test: sixteen octaves.
    Verdict: holds.

    Attributes:
        name: Of the call it stands for.
        run: That of the model.
        digits: Its grid is the largest result, a power of two; calibration sets it.
    """

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name, self.run, self.digits = name, run, SignedDigitFormat(1.0, 20)

    def forward(self, x: Tensor) -> Tensor:
        """The function of ``x``, of any shape."""
        run = self.run
        if run.phase == "float":
            run.place(self.name, x)
            run.show(self.name, _unpadded(run, x, self.name).clamp_min(-1e4))
            return x.exp()
        d = self._below(x)
        y = (exp2_negative(d, stepped=run.mode.stepped) * self.digits.grid).to(x.dtype)
        if watcher := run.circuit_watcher:
            rows, given = (_unpadded(run, z, self.name) for z in (x, y))
            spikes, n = float(exp2_spikes(self._below(rows)).sum()), float(rows.numel())
            watcher.on_circuit(make_stats(self.name, "activation", n, n * (OCTAVES + FEW_STEPS),
                               spikes, spikes, given, rows.exp()))  # fmt: skip
        return torch.where(x.isnan(), x, y)

    def fit(self, sample: Sample) -> None:
        """Set the largest result, from float values."""
        top = math.ceil(float(sample.extremes.max()) * LOG2E) + 1
        self.digits = SignedDigitFormat(2.0 ** min(100, max(-100, top)), 20)

    def _below(self, x: Tensor) -> Tensor:
        """d of (2)."""
        top = CELLS * math.log2(self.digits.grid)
        return (top - (x.double() * (LOG2E * CELLS)).floor()).clamp(0, OCTAVES * CELLS)


class SpikingSoftmax(nn.Module):
    """Softmax along an axis.

    Attributes:
        name: Of the call it stands for.
        run: That of the model.
    """

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name, self.run = name, run

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """The shares along ``dim``, in the type of ``x``."""
        run = self.run
        if run.phase == "float":
            return x.softmax(dim)
        scores = x.movedim(dim, -1)
        y = softmax(scores, stepped=run.mode.stepped)
        if watcher := run.circuit_watcher:
            watcher.on_circuit(_softmax_stats(self.name, scores))
        return y.movedim(-1, dim)


def _softmax_stats(name: str, scores: Tensor) -> CircuitStats:
    z = cells_of(scores.double())
    e = exp2_negative(-subtract_row_max(z))
    total = (e * (FINE * 2.0**OCTAVES)).sum(-1, keepdim=True)
    live = scores > torch.finfo(scores.dtype).min / 2
    return softmax_stats(name, z, e, total, scores.shape[-1], live)


def make_called(form: str, name: str, run: Run, how: Any) -> nn.Module | None:
    """The circuit of a function that is called; None if there is none of that name.

    Args:
        form: The function.
        name: Of the call.
        run: That of the model.
        how: The call, for what it says beside that.
    """
    if form in ACTIVATIONS:
        return SpikingActivation(name, run, form)
    if form in ROOTS:
        return SpikingRoot(name, run, form)
    if form in ("layer norm", "rms norm"):
        return SpikingNorm(name, run, Norm(form.split()[0], eps=how.eps))
    if form == "relay":
        return SpikingRelay(name, run, how.side, how.source)
    plain: Any = {"gate": SpikingGate, "exp": SpikingExp, "softmax": SpikingSoftmax}.get(form)
    return None if plain is None else plain(name, run)


CALLED = (SpikingGate, SpikingRelay, SpikingRoot, SpikingExp, SpikingSoftmax)
EVERY = (*CIRCUITS, *CALLED)
"""All circuits."""
