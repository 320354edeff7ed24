"""How many directions a table of rounded numbers has, and how sure that is.

A stored number x carries the error of its rounding, at most u |x| with u = eps / 2 of the type in
which it was made, whatever type the singular values are computed in. Rows may be scaled without
changing the rank, so each is scaled until its error has norm 1:

(1)  noise[i, j] = u max(|x[i, j]|, smallest normal number)
(2)  y[i] = x[i] / |noise[i]|, s = singular values of y
(3)  edge = max(1 + max_j |noise[:, j] / |noise[i]||,  s_1 max(n, d) eps_64)

(3) bounds the largest singular value of such an error alone (row norm plus column norm), and what
the float64 SVD itself makes. An activation is the result of several rounded operations: the
tolerance lies half a decade above the edge,

(4)  rank = #{s > sqrt(10) edge}, between #{s > 10 edge} and #{s > edge}
(5)  gap = s_rank / s_(rank + 1); at full rank s_rank / tolerance

and below a gap of 10 the rank is called undetermined.

References: Bandeira, van Handel (2016), Sharp nonasymptotic bounds on the norm of random matrices
with independent entries, for (3). ``max(n, d) eps s_1``, the default of NumPy and torch, is right
for float64 data only: upcast float32 has full rank by it, and bfloat16 rank 0.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import RangeError, ShapeError

CLEAR_GAP = 10.0
DECADE = 10.0
INVERSE_STEPS = 20
EPS_64 = torch.finfo(torch.float64).eps


class NumericalRank(NamedTuple):
    """A rank with what it rests on.

    Attributes:
        rank: Singular values above the tolerance.
        low, high: The rank at the two ends of a decade of tolerances around it.
        gap: The last singular value above the tolerance over the first one below it; over the
            tolerance, if there is none below.
        tolerance: In units of (2), where rounding has size 1.
        determined: Whether the gap is at least 10.
    """

    rank: int
    low: int
    high: int
    gap: float
    tolerance: float
    determined: bool

    def __str__(self) -> str:
        if self.determined:
            return str(self.rank)
        if self.low == self.high:
            return f"undetermined (near {self.rank})"
        return f"undetermined ({self.low} to {self.high})"


def span(ranks: Sequence[NumericalRank | None]) -> str:
    """Ranks of several tables in a few letters, with a question mark if one is undetermined."""
    known = [r for r in ranks if r is not None]
    if not known:
        return "–"
    low = min(r.rank if r.determined else r.low for r in known)
    high = max(r.rank if r.determined else r.high for r in known)
    text = str(low) if low == high else f"{low}–{high}"
    return text if all(r.determined for r in known) else f"{text}?"


class Noisy(NamedTuple):
    """Values ``[rows, columns]`` in float64, and the size of the rounding error in each."""

    values: Tensor
    noise: Tensor

    def beside(self, other: "Noisy") -> "Noisy":
        """The columns of both."""
        return Noisy(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))

    def without_mean(self) -> "Noisy":
        """Each row less its mean over the columns: X P."""
        mean_noise = self.noise.square().mean(1, keepdim=True) / self.values.shape[1]
        return Noisy(
            self.values - self.values.mean(1, keepdim=True),
            (self.noise.square() + mean_noise).sqrt(),
        )


def numerical_rank(X: Any, dtype_of_origin: torch.dtype | None = None) -> NumericalRank:
    """(4): the rank of a table of rounded numbers.

    Args:
        X: ``[rows, columns]``, a tensor or anything NumPy takes.
        dtype_of_origin: The type in which the numbers were made; that of ``X`` if None. Say
            ``torch.bfloat16`` of activations of a bfloat16 model that were upcast later.

    Returns:
        The rank; invariant to the scale of each row.

    Raises:
        ShapeError: Not two axes, or none of one.
        RangeError: NaN or infinity, or ``dtype_of_origin`` is not a floating type.
    """
    return count(as_noisy(X, dtype_of_origin, "numerical_rank"))


def affine_rank(X: Any, dtype_of_origin: torch.dtype | None = None) -> NumericalRank:
    """``rank [X, 1]``: the dimension of the rows' affine hull, plus one.

    (6)  rank [X, 1] = 1 + rank (X - 1 c^T), c any weighted mean of the rows

    which is how it is computed, weights falling with a row's error: a common offset then costs
    digits only where rounding has lost them already, and one huge row costs the others none.

    Args:
        X: As of :func:`numerical_rank`.
        dtype_of_origin: As there.

    Returns:
        The rank; invariant to a shift of all rows.

    Raises:
        ShapeError: As :func:`numerical_rank`.
        RangeError: As :func:`numerical_rank`.
    """
    return affine(as_noisy(X, dtype_of_origin, "affine_rank"))


def affine(x: Noisy) -> NumericalRank:
    """(6) of noisy values."""
    size = x.noise.norm(dim=1, keepdim=True)
    weight = (size.min() / size.clamp_min(1e-300)).square().clamp_min(1e-300)
    weight = weight / weight.sum()
    values = x.values - (weight * x.values).sum(0)
    values = values - (weight * values).sum(0)  # again: the first mean was rounded itself
    mean_noise = (weight * x.noise).square().sum(0)
    found = count(Noisy(values, (x.noise.square() + mean_noise).sqrt()), weight[:, 0])
    return found._replace(rank=found.rank + 1, low=found.low + 1, high=found.high + 1)


def as_noisy(X: Any, dtype_of_origin: torch.dtype | None, who: str) -> Noisy:
    """(1) of a checked table, scaled as a whole so that its largest entry is 1."""
    x = torch.as_tensor(X).detach().cpu()
    origin = dtype_of_origin or x.dtype
    if not origin.is_floating_point:
        if dtype_of_origin is not None or x.is_complex():
            raise RangeError(f"{who} needs a floating dtype_of_origin, got {origin}.")
        origin = torch.float64  # whole numbers are exact
    x = x.to(torch.float64)
    if x.dim() != 2 or not x.numel():
        raise ShapeError(f"{who} needs X [rows, columns], got shape {list(x.shape)}.")
    if not bool(x.isfinite().all()):
        at = (~x.isfinite()).nonzero()[0].tolist()
        raise RangeError(
            f"{who} needs finite numbers, got {float(x[at[0], at[1]])} in row {at[0]}, column "
            f"{at[1]} ({int((~x.isfinite()).sum())} in all)."
        )
    limits = torch.finfo(origin)
    top = float(x.abs().max()) or 1.0
    x = x / top
    return Noisy(x, limits.eps / 2 * x.abs().clamp_min(limits.smallest_normal / top))


def count(x: Noisy, null: Tensor | None = None) -> NumericalRank:
    """(2) to (5).

    Full rank that is clear is found from a Cholesky factor, many times as fast as singular values;
    ``gap`` is then found by inverse iteration. Only what is clear is decided so, since the factor
    is that of products, which have half of the digits.

    Args:
        x: The table.
        null: ``[rows]``, known weights with which the rows add up to 0; full rank is then one less.
    """
    sizes = x.values.abs().amax(1, keepdim=True)
    kept = sizes[:, 0] > 0
    if not bool(kept.any()):
        return NumericalRank(0, 0, 0, math.inf, 0.0, True)
    values, noise = x.values[kept] / sizes[kept], x.noise[kept] / sizes[kept]
    scale = noise.norm(dim=1, keepdim=True)
    y = values / scale
    edge = 1 + float((noise / scale).norm(dim=0).max())
    if float(y.norm()) * max(y.shape) * EPS_64 < edge:
        weights = None if null is None else (null[kept] * (scale * sizes[kept])[:, 0])
        full = _clearly_full(y, edge, weights)
        if full is not None:
            return full
    spectrum = torch.linalg.svdvals(y)
    return _cut(spectrum, max(edge, float(spectrum[0]) * max(y.shape) * EPS_64))


def _clearly_full(y: Tensor, edge: float, null: Tensor | None) -> NumericalRank | None:
    """The rank if it is full by a clear gap, None if that is not sure."""
    wide = y.shape[0] <= y.shape[1]
    gram = y @ y.T if wide else y.T @ y
    rank = len(gram)
    size = float(gram.trace())
    if wide and null is not None:
        unit = null / null.norm()
        gram.addr_(unit, unit, alpha=size / len(gram))  # the direction that cannot count
        rank -= 1
    tolerance = edge * math.sqrt(DECADE)
    rounding = 8 * len(gram) * EPS_64 * size
    least = (CLEAR_GAP * tolerance) ** 2 + rounding
    diagonal = gram.diagonal()
    diagonal -= least
    if int(torch.linalg.cholesky_ex(gram).info):
        return None
    diagonal += least
    factor = torch.linalg.cholesky(gram)
    z = torch.linspace(1, len(gram), len(gram), dtype=gram.dtype).cos()[:, None]
    for _ in range(INVERSE_STEPS):
        z = torch.cholesky_solve(z / z.norm(), factor)
    return NumericalRank(rank, rank, rank, float(z.norm()) ** -0.5 / tolerance, tolerance, True)


def _cut(spectrum: Float[Tensor, "most"], edge: float) -> NumericalRank:
    tolerance = edge * math.sqrt(DECADE)
    low, rank, high = (int((spectrum > t).sum()) for t in (DECADE * edge, tolerance, edge))
    above = float(spectrum[rank - 1]) if rank else tolerance
    below = float(spectrum[rank]) if rank < len(spectrum) else tolerance
    gap = above / below if below else math.inf
    return NumericalRank(rank, low, high, gap, tolerance, gap >= CLEAR_GAP)
