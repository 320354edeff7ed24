"""A bound of scores, ``cap tanh(x / cap)``, that is as accurate for small scores as for large ones.

(1)  tanh(u) ~ u (945 + 105 s + s^2) / (945 + 420 s + 15 s^2),  s = u^2, for u up to 3.5

A few-spike neuron of tanh is wrong by half a per cent of the cap whatever the score, which softmax
would multiply. The quotient is wrong by some thousandths of the score itself, once its reciprocal r
of the lower line q, a few-spike neuron's, has been put right:

(2)  r <- r + r (1 - q r)

All are whole numbers; a product adds one membrane to another as often as the digits of a third say.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from isospike.circuits.arithmetic import ScaledInteger, inverse, inverse_spikes, multiply
from isospike.circuits.digits import gated_add, popcount
from isospike.circuits.integers import FINE

LARGEST = 3.5  # of u: beyond, the result is that of 3.5
UNITS = 2**14  # of u in 1
SQUARES = 2**6  # units of s in 1


class _Parts(NamedTuple):
    """The whole numbers of (1), their sizes without a unit."""

    u: Tensor
    s: Tensor
    upper: Tensor
    lower: Tensor


def soft_capped(x: Tensor, cap: float, *, stepped: bool = False) -> Tensor:
    """``cap tanh(x / cap)``: squares and products by the digits of a membrane, and a reciprocal.

    Claim: wrong by at most .5 % of the result, or 1 / UNITS of the cap.
    Assumes: nothing; beyond 3.5 caps (1) is within .2 % of the cap.
    Source: derived. Lambert's continued fraction of tanh to five terms is right to .1 %, half a
        unit of s is .26 %, half a unit of the reciprocal .02 %.
    Test: five decades of scores.
    Verdict: holds.

    Args:
        x: Scores.
        cap: The bound, above 0.
        stepped: Whether spike by spike.

    Returns:
        Scores within the bound; NaN stays.

    >>> import torch
    >>> soft_capped(torch.tensor([0.5, 100.0]), 50.0).round(decimals=1).tolist()
    [0.5, 48.2]
    """
    parts = _parts(x, cap, stepped)
    upper, reciprocal = _gated(parts.u, parts.upper, stepped), _refined(parts.lower, stepped)
    size = multiply(upper, reciprocal, stepped=stepped) * (cap / UNITS)
    return torch.where(x.isnan(), x, torch.where(x < 0, -size, size).to(x.dtype))


def soft_cap_spikes(x: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Number of spikes of :func:`soft_capped`.

    Args:
        x: Its input.
        cap: Likewise.

    Returns:
        All of them, and those that open a gate or add to a membrane.
    """
    parts = _parts(x, cap, stepped=False)
    finding, digits = inverse_spikes(parts.lower)
    better = popcount(_refined(parts.lower, stepped=False).mantissa.long())
    gates = 2 * popcount(parts.u.long()) + popcount(parts.s.long()) + 2 * digits + better
    return gates + finding + (x < 0), gates + finding


def _parts(x: Tensor, cap: float, stepped: bool) -> _Parts:
    u = x.double().abs().nan_to_num(0.0) * (UNITS / cap)
    u = (u + 0.5).floor().clamp_max(LARGEST * UNITS)
    s = (_gated(u, u, stepped) * (SQUARES / UNITS**2) + 0.5).floor()
    square = _gated(s, s, stepped)
    one = 945.0 * SQUARES**2
    return _Parts(u, s, one + 105 * SQUARES * s + square, one + 420 * SQUARES * s + 15 * square)


def _refined(lower: Tensor, stepped: bool) -> ScaledInteger:
    """(2): the reciprocal to 12 bits."""
    found = inverse(lower, stepped=stepped)
    error = ((1 - multiply(lower, found, stepped=stepped)) * FINE + 0.5).floor()
    more = (_gated(found.mantissa, error, stepped) / FINE + 0.5).floor()
    return found._replace(mantissa=found.mantissa + more)


def _gated(n: Tensor, x: Tensor, stepped: bool) -> Tensor:
    """``n x``: each binary digit of the whole number n lets x in. Exact, below 2^53."""
    if not stepped:
        return n * x
    y, v = torch.zeros_like(x), n
    for t in range(int(LARGEST * UNITS).bit_length() - 1, -1, -1):
        fired = v >= 2**t
        v = torch.add(v, fired, alpha=-(2.0**t))
        y = gated_add(y, x, fired, 2.0**t)
    return y
