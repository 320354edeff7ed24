"""Arithmetic by spiking neurons: additions, comparisons and resets are the only operations.

============================  =========================================  ========================
circuit                       how                                        what a spike does
============================  =========================================  ========================
:class:`SignedDigitFormat`    signed digits of a membrane                adds its step's weight
:func:`lookup`                few-spike neuron, whole thresholds         adds a constant weight
:func:`subtract_row_max`      race: a common threshold, digit by digit   inhibits all alike
:func:`exp2_negative`         octaves, then a few-spike neuron           halves; adds a weight
:func:`inverse`               doubled thresholds, then a few-spike one   doubles; adds a weight
:func:`multiply`              gated accumulation                         adds the other's membrane
:func:`softmax`               the four above                             see there
:func:`layer_norm`            digits, products, inverse root             see there
============================  =========================================  ========================

Two operations go beyond an addition of constant weights, and hardware must have them. In a product,
a spike of one number adds the *membrane* of the other, shifted by the spike's step: a gate and a
shift, no multiplier. Halving and doubling are shifts, or one step of a leak of 1/2.

Each circuit has a *stepped* form, spike by spike, which is the specification, and a collapsed one,
which gives the same numbers, bit for bit. That is possible as every threshold and reset is a whole
number of the membrane's smallest unit: a real membrane v then fires as floor(v) does.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isospike.circuits.digits import (
    SignedDigitFormat,
    add_spikes,
    digits_of,
    gated_add,
    popcount,
)
from isospike.circuits.integers import CELLS, FINE, integer_neuron, lookup_table, take
from isospike.errors import RangeError

OCTAVES = 16
"""exp2 is silent below 2^-OCTAVES."""
REACH = 2**20
"""Largest score, in cells, that :func:`subtract_row_max` can represent: 1,024 octaves."""
RACE_STEPS = REACH.bit_length()
LOG2E = math.log2(math.e)


def subtract_row_max(scores: Float[Tensor, "*rows n"], *, stepped: bool = False) -> Tensor:
    """Subtract each row's largest whole number from the row.

    (2)  s_j = 1 if v_j >= w; v <- v - w if any s_j; w = REACH .. 1, from v = scores + REACH

    A race: the threshold comes down digit by digit, and the first to fire inhibits all alike. 21
    steps whatever the row's length. Whole numbers, so exact. A row that is -inf throughout stays
    silent and as it is.

    Args:
        scores: Whole numbers within REACH of 0, or -inf; larger ones count as REACH.
        stepped: Whether spike by spike.

    Returns:
        Whole numbers of at most 0.

    >>> import torch
    >>> subtract_row_max(torch.tensor([3.0, 5.0, -1.0])).tolist()
    [-2.0, 0.0, -6.0]
    """
    if not stepped:
        top = scores.amax(-1, keepdim=True).clamp_(-REACH, REACH - 1)
        return scores - top
    v = scores + REACH
    for weight, spikes in _race(scores):
        v = torch.add(v, spikes.any(-1, keepdim=True), alpha=-float(weight))
    return v


def _race(scores: Tensor) -> Iterator[tuple[int, Bool[Tensor, "*rows n"]]]:
    """Weight and spikes of each step of (2)."""
    v, weight = scores + REACH, REACH
    while weight:
        spikes = v >= weight
        v = torch.add(v, spikes.any(-1, keepdim=True), alpha=-float(weight))
        yield weight, spikes
        weight //= 2


def race_spikes(scores: Float[Tensor, "*rows n"]) -> Tensor:
    """Number of spikes of a race, :func:`subtract_row_max`.

    Args:
        scores: Its input.

    Returns:
        For each row, spikes of its neurons and spikes of its inhibitory neuron.
    """
    each = [(spikes.sum(-1), spikes.any(-1)) for _, spikes in _race(scores)]
    return torch.stack([torch.stack([s for s, _ in each]).sum(0),
                        torch.stack([a for _, a in each]).sum(0)])  # fmt: skip


def exp2_negative(d: Float[Tensor, "*shape"], *, stepped: bool = False) -> Float[Tensor, "*shape"]:
    """``2^-(d / CELLS)`` for whole d >= 0; silent from OCTAVES octaves on.

    (3)  2^-(k + f) = 2^-k 2^-f: a spike for each octave k, which halves; a few-spike neuron for f

    Error: relative, the same in every octave: that of the few-spike neuron on [0, 1).

    Args:
        d: Whole numbers of cells, at least 0.
        stepped: Whether spike by spike.

    Returns:
        Powers of two, in the dtype of ``d``.

    >>> import torch
    >>> exp2_negative(torch.tensor([0.0, 1024.0, 1536.0])).tolist()
    [1.0, 0.5, 0.35]
    """
    if not stepped:
        return take(_exp2_table(), d)
    v = d.double().clamp_min(0)
    halvings = []
    for _ in range(OCTAVES):
        fired = v >= CELLS
        v = torch.add(v, fired, alpha=-float(CELLS))
        halvings.append(fired)
    y, _ = integer_neuron("exp2").run(v)
    y = torch.where(halvings.pop(), 0.0, y)  # the last octave's spike silences
    for fired in halvings:
        y = gated_add(y, y, fired, -0.5)
    return (y / FINE).to(d.dtype)


@cache
def _exp2_table() -> Tensor:
    with torch.inference_mode(False):
        octaves = torch.exp2(-torch.arange(OCTAVES, dtype=torch.float64))
        each = octaves[:, None] * lookup_table("exp2")[0][:CELLS]
        return torch.cat([each.flatten(), torch.zeros(1, dtype=torch.float64)])


def exp2_spikes(d: Tensor) -> Tensor:
    """Number of spikes of :func:`exp2_negative`, of its octaves and its few-spike neuron.

    Args:
        d: Its input.

    Returns:
        Counts, in the shape of ``d``.
    """
    d = d.clamp(0, OCTAVES * CELLS)
    octaves = (d / CELLS).floor()
    return octaves + torch.where(
        octaves < OCTAVES, take(lookup_table("exp2")[1], d - octaves * CELLS), 0.0
    )


class ScaledInteger(NamedTuple):
    """A number ``mantissa 2^-shift / FINE``, the mantissa whole."""

    mantissa: Tensor
    shift: Tensor

    @property
    def value(self) -> Tensor:
        """As one number, exact."""
        return torch.ldexp(self.mantissa, -self.shift) / FINE


def inverse(
    total: Float[Tensor, "*shape"], *, root: bool = False, stepped: bool = False
) -> ScaledInteger:
    """``1 / total`` or ``1 / sqrt(total)``; silent, 0, below 1.

    (4)  1 / (m 2^k) = 2^-k (1 / m),   1 / sqrt(m 2^k) = 2^-(k // 2) m^(-1/2) (2^(-1/2) if k is odd)

    A neuron fires while its threshold, which every spike doubles, is below ``total``: k spikes.
    That shifts the thresholds of a few-spike neuron, which finds the function of m in [1, 2).
    For the root it is one of two neurons, with weights apart by sqrt(2).

    Error: relative, the same at every scale: that of the few-spike neuron.

    Args:
        total: Whole numbers from 0 to 2^53.
        root: Whether to take the root.
        stepped: Whether spike by spike.

    Returns:
        The result as mantissa and shift.

    >>> import torch
    >>> inverse(torch.tensor([4.0])).value.item()
    0.25
    """
    x = total.double()
    name = "rsqrt" if root else "reciprocal"
    if not stepped:
        m, k = torch.frexp(x)
        k = (k - 1).clamp_min_(0)
        cells = ((2 * m - 1) * CELLS).floor()
        y = take(lookup_table(name)[0], cells)
        if root:
            y = torch.where(k % 2 == 1, take(lookup_table(name, math.sqrt(0.5))[0], cells), y)
        return ScaledInteger(torch.where(x >= 1, y * FINE, 0.0), k // 2 if root else k)
    top, k = torch.ones_like(x), torch.zeros_like(x, dtype=torch.long)
    odd = torch.zeros_like(x, dtype=torch.bool)
    for _ in range(53):
        fired = x >= 2 * top
        top = torch.where(fired, 2 * top, top)
        odd = odd ^ fired
        k = k + (fired & ~odd if root else fired)
    y, _ = integer_neuron(name).run(x - top, top / CELLS)
    if root:
        y = torch.where(odd, integer_neuron(name, math.sqrt(0.5)).run(x - top, top / CELLS)[0], y)
    return ScaledInteger(torch.where(x >= 1, y, 0.0), k)


def inverse_spikes(total: Tensor, *, root: bool = False) -> tuple[Tensor, Tensor]:
    """Number of spikes of :func:`inverse`.

    Args:
        total: Its input.
        root: Whether to take the root.

    Returns:
        Spikes that compute it, and spikes of its digits, each of which opens a gate.
    """
    m, k = torch.frexp(total.double())
    cells = ((2 * m - 1) * CELLS).floor()
    finding = k.double() + take(lookup_table("rsqrt" if root else "reciprocal")[1], cells)
    alive = total >= 1
    digits = popcount(inverse(total, root=root).mantissa.long())
    return torch.where(alive, finding, 0.0), digits


def multiply(
    trace: Float[Tensor, "*rows n"], factor: ScaledInteger, *, stepped: bool = False
) -> Float[Tensor, "*rows n"]:
    """``trace`` times a number of each row, ``[*rows, 1]``.

    (5)  y = sum_t w[t] s[t] trace: a spike of the factor's digit t adds the trace, shifted by t

    Exact up to the rounding of ``trace``'s type.

    Args:
        trace: Values.
        factor: The number of each row.
        stepped: Whether spike by spike.

    Returns:
        Products, in the dtype of ``trace``.
    """
    if not stepped:
        return trace * factor.value.to(trace.dtype)
    y, x, v = torch.zeros_like(trace, dtype=torch.float64), trace.double(), factor.mantissa
    for t in range(FINE.bit_length(), -1, -1):
        fired = v >= 2**t
        v = torch.add(v, fired, alpha=-(2.0**t))
        y = gated_add(y, x, fired, 2.0**t)
    for i in range(int(factor.shift.max()) if factor.shift.numel() else 0):
        y = gated_add(y, y, factor.shift > i, -0.5)
    return (y / FINE).to(trace.dtype)


def cells_of(scores: Tensor) -> Tensor:
    """Scores as whole numbers of cells of an octave.

    Args:
        scores: Natural logarithms.

    Returns:
        Whole numbers.
    """
    return (scores * (LOG2E * CELLS)).floor()


def softmax(scores: Float[Tensor, "*rows n"], *, stepped: bool = False) -> Tensor:
    """Softmax of each row, by (2), (3), a sum, (4) and (5).

    Claim: ``|y - softmax|_1 <= 2 (r + 1 / CELLS) + q + 2 n 2^-OCTAVES``, r and q the largest
        relative errors of the few-spike neurons of exp2 and of the reciprocal.
    Assumes: scores finite and within 709 of 0, or -inf. A row that is all -inf gives 0.
    Source: derived. Weights wrong by at most r each change their shares by 2 r in sum, to first
        order; the common factor is wrong by q; weights below 2^-OCTAVES are lost.
    Test: n in 4, 16, 64, 197, near-ties and masks among them.
    Verdict: holds.

    Args:
        scores: Finite numbers or -inf.
        stepped: Whether spike by spike.

    Returns:
        Rows that add up to 1 within q.

    Raises:
        RangeError: NaN or +inf among the scores, or an empty row.

    >>> import torch
    >>> [round(p, 2) for p in softmax(torch.tensor([0.0, 1.0])).tolist()]
    [0.27, 0.73]
    """
    if not scores.shape[-1] or not bool((scores < math.inf).all()):
        raise RangeError(
            "softmax needs scores that are finite or -inf, at least one in each row, got "
            f"{'none' if not scores.shape[-1] else 'NaN or +inf'}. Check the layer before."
        )
    below = subtract_row_max(cells_of(scores.double()), stepped=stepped)
    e = exp2_negative(-below, stepped=stepped)
    # In units of the smallest spike that e can have, sums are whole.
    weights = e * (FINE * 2.0**OCTAVES)
    total = inverse(weights.sum(-1, keepdim=True), stepped=stepped)
    return multiply(weights, total, stepped=stepped).to(scores.dtype)


@dataclass(frozen=True)
class LayerNormTrace:
    """Result and intermediate values of a layer norm.

    Attributes:
        y: Its result.
        integers: Its inputs as whole numbers.
        mean: Their mean, a whole number; 0 for an RMSNorm.
        squares: The sum (7).
    """

    y: Tensor
    integers: Tensor
    mean: Tensor
    squares: Tensor


def layer_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, "width"],
    bias: Float[Tensor, "width"] | None,
    eps: float,
    digits: SignedDigitFormat,
    *,
    subtract_mean: bool = True,
    stepped: bool = False,
) -> LayerNormTrace:
    """LayerNorm, or RMSNorm without ``subtract_mean``.

    (6)  c = n - m, n the digits of x, m those of sum(n) / width: the mean inhibits all channels
    (7)  Q = sum c^2 + e: each spike of c's digits adds c's own trace; e = width eps / grid^2, >= 1
    (8)  y = bias + weight sqrt(width) c Q^(-1/2), by (4) and (5)

    Claim: the mean square error is at most ``(q^2 + g^2 / 2) mean weight^2``, with q the relative
        error of (4) and g the grid in standard deviations of the row.
    Assumes: digits that do not saturate; eps below the variance.
    Source: derived. q multiplies y. Rounding x to the grid has the mean square g^2 / 12, and so
        has rounding the mean, for all channels alike; that both agree at worst gives g^2 / 3, and
        half as much again is left for (7).
    Test: widths 4 to 768, twenty decades of scale, constant rows.
    Verdict: holds.

    A constant row has c = 0 and gives the bias. NaN anywhere makes its row NaN.

    Args:
        x: Values, normalised along the last axis.
        weight: Gain of each channel.
        bias: Shift of each channel, if any.
        eps: Added to the variance.
        digits: Format that the inputs are encoded in.
        subtract_mean: Whether the mean is subtracted.
        stepped: Whether spike by spike.

    Returns:
        The result and intermediate values, which the number of spikes depends on.

    Raises:
        RangeError: ``eps < 0`` or not finite.
    """
    if not 0 <= eps < math.inf:
        raise RangeError(f"layer_norm needs a finite eps of at least 0, got {eps:g}. Try 1e-5.")
    width = x.shape[-1]
    current = max(1.0, float(round(width * eps / digits.grid**2)))
    run = _norm_stepped if stepped else _norm_collapsed
    n, mean, c, squares = run(x, digits, subtract_mean, current)
    y = multiply(c, inverse(squares, root=True, stepped=stepped), stepped=stepped)
    y = y * (weight * math.sqrt(width))
    return LayerNormTrace(y if bias is None else y + bias, n, mean, squares)


def _norm_collapsed(
    x: Tensor, digits: SignedDigitFormat, subtract_mean: bool, current: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = digits.integers(x)
    width = x.shape[-1]
    mean = torch.zeros_like(n[..., :1], dtype=torch.float64)
    c = n
    if subtract_mean:
        total = n.sum(-1, keepdim=True, dtype=torch.float64)
        mean = torch.div(total + width // 2, width, rounding_mode="floor")
        c = n - mean.to(n.dtype)
    wide = c.double()
    return n, mean, c, torch.linalg.vecdot(wide, wide)[..., None] + current


def _norm_stepped(
    x: Tensor, digits: SignedDigitFormat, subtract_mean: bool, current: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = x.double()
    n = torch.zeros_like(wide)
    total = torch.zeros_like(wide[..., :1])
    for w, on, off in digits.spikes(x):
        n = add_spikes(n, on, off, w)
        total = total + w * (on.sum(-1, keepdim=True) - off.sum(-1, keepdim=True))
    mean, c, width = torch.zeros_like(total), n, x.shape[-1]
    if subtract_mean:
        # Thresholds in multiples of the width: to divide by it takes no division.
        for w, on, off in digits_of(total + width // 2, digits.steps + 1, width):
            mean = add_spikes(mean, on, off, w)
        c = n - mean
    squares = torch.full_like(total, current)
    for w, on, off in digits_of(c, digits.steps + 2):
        gated = gated_add(gated_add(torch.zeros_like(c), c, on, w), c, off, -w)
        squares = squares + gated.sum(-1, keepdim=True)
    return n.to(x.dtype), mean, c.to(x.dtype), squares
