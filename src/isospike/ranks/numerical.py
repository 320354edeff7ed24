"""Numerical rank of a matrix of rounded numbers, and how certain it is.

A stored number x carries a rounding error of at most u |x|, with u = eps / 2 of the type in which
it was computed; the type of the SVD does not matter. Scaling a row does not change the rank, so
each row is scaled until its error has norm 1:

(1)  noise[i, j] = u max(|x[i, j]|, smallest normal number)
(2)  y[i] = x[i] / |noise[i]|, s = singular values of y
(3)  edge = max(1 + max_j |noise[:, j] / |noise[i]||,  s_1 max(n, d) eps_64)

(3) bounds the largest singular value of such an error alone (row norm plus column norm), and the
error of the float64 SVD itself. An activation is the result of several rounded operations, so the
tolerance lies half a decade above the edge,

(4)  rank = #{s > sqrt(10) edge}, between #{s > 10 edge} and #{s > edge}
(5)  gap = s_rank / s_(rank + 1); at full rank s_rank / tolerance

and below a gap of 10 the rank is called undetermined.

References: Bandeira, van Handel (2016), Sharp nonasymptotic bounds on the norm of random matrices
with independent entries, for (3). ``max(n, d) eps s_1``, the default of NumPy and torch, is right
for float64 data only: upcast float32 has full rank by it, and bfloat16 rank 0.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import InputError, RangeError, ShapeError, first_sentence
from isospike.tensors import check_tensor

CLEAR_GAP = 10.0
DECADE = 10.0
INVERSE_STEPS = 20
MOST_KEPT = 64  # ranks of the last matrices
EPS_64 = torch.finfo(torch.float64).eps


class NumericalRank(NamedTuple):
    """A rank, and the evidence for it.

    Attributes:
        rank: Number of singular values above the tolerance.
        low, high: Rank at the upper and the lower end of a decade of tolerances around it.
        gap: Ratio of the last singular value above the tolerance to the first one below it, or to
            the tolerance if there is none below.
        tolerance: Tolerance in the units of (2), in which the rounding error has size 1.
        determined: Whether the gap is at least 10.

    >>> numerical_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))).rank
    2
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


def format_range(ranks: Sequence[NumericalRank | None]) -> str:
    """The smallest and the largest of several ranks, with ``?`` if one is undetermined.

    Args:
        ranks: The ranks; None for one that was not measured.

    Returns:
        Text such as ``3–5?``, or a dash if none was measured.
    """
    known = [r for r in ranks if r is not None]
    if not known:
        return "–"
    low = min(r.rank if r.determined else r.low for r in known)
    high = max(r.rank if r.determined else r.high for r in known)
    text = str(low) if low == high else f"{low}–{high}"
    return text if all(r.determined for r in known) else f"{text}?"


class RoundedMatrix(NamedTuple):
    """A matrix in float64 with the size of the rounding error of each value.

    Attributes:
        values: ``[rows, columns]``.
        noise: Size of the error in each value.
    """

    values: Tensor
    noise: Tensor

    def beside(self, other: "RoundedMatrix") -> "RoundedMatrix":
        """The columns of both matrices.

        Args:
            other: A matrix with as many rows.

        Returns:
            The wider matrix.
        """
        return RoundedMatrix(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))

    def without_mean(self) -> "RoundedMatrix":
        """The matrix X P: each row minus its mean over the columns."""
        mean_noise = self.noise.square().mean(1, keepdim=True) / self.values.shape[1]
        return RoundedMatrix(
            self.values - self.values.mean(1, keepdim=True),
            (self.noise.square() + mean_noise).sqrt(),
        )


def numerical_rank(rows: Any, computed_in: torch.dtype | None = None) -> NumericalRank:
    """The rank of a matrix of rounded numbers, by (4).

    >>> x = torch.eye(3)
    >>> x[2] = x[0] + 1e-9 * x[1]  # below the rounding of float32
    >>> numerical_rank(x).rank
    2

    Args:
        rows: ``[rows, columns]``, a tensor or an array.
        computed_in: The type in which the numbers were computed; that of ``rows`` by default. Use
            ``torch.bfloat16`` for activations of a bfloat16 model that were upcast later.

    Returns:
        The rank. Scaling a row does not change it.

    Raises:
        InputError: ``rows`` is no matrix of numbers, or ``computed_in`` no ``torch.dtype``.
        ShapeError: ``rows`` does not have two axes, or is empty.
        RangeError: A value is NaN, infinite or complex, or ``computed_in`` is not a floating type.
    """
    return rank_of(rounded(rows, computed_in, "numerical_rank"))


def affine_rank(rows: Any, computed_in: torch.dtype | None = None) -> NumericalRank:
    """``rank [X, 1]``: the dimension of the rows' affine hull, plus one.

    (6)  rank [X, 1] = 1 + rank (X - 1 c^T), c any weighted mean of the rows

    It is computed by (6), with weights that fall with a row's error. A common offset then costs
    digits only where rounding has lost them already, and one huge row costs the other rows none.

    >>> affine_rank([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]).rank  # points on a line
    2

    Args:
        rows: As for :func:`numerical_rank`.
        computed_in: As for :func:`numerical_rank`.

    Returns:
        The rank. Shifting all rows does not change it.

    Raises:
        ShapeError: As for :func:`numerical_rank`.
        RangeError: As for :func:`numerical_rank`.
    """
    return affine_rank_of(rounded(rows, computed_in, "affine_rank"))


def affine_rank_of(x: RoundedMatrix) -> NumericalRank:
    """The affine rank (6).

    Args:
        x: The matrix.

    Returns:
        The rank.
    """
    size = x.noise.norm(dim=1, keepdim=True)
    weight = (size.min() / size.clamp_min(1e-300)).square().clamp_min(1e-300)
    weight = weight / weight.sum()
    values = x.values - (weight * x.values).sum(0)
    values = values - (weight * values).sum(0)  # again: the first mean was rounded itself
    mean_noise = (weight * x.noise).square().sum(0)
    centred = RoundedMatrix(values, (x.noise.square() + mean_noise).sqrt())
    rank = rank_of(centred, weight[:, 0])
    return rank._replace(rank=rank.rank + 1, low=rank.low + 1, high=rank.high + 1)


def rounded(rows: Any, computed_in: torch.dtype | None, who: str) -> RoundedMatrix:
    """Check a matrix, scale it so that its largest entry is 1, and add the errors (1).

    Args:
        rows: As for :func:`numerical_rank`.
        computed_in: As for :func:`numerical_rank`.
        who: Name of the public function, for error messages.

    Returns:
        The matrix with its rounding errors.

    Raises:
        ShapeError: As for :func:`numerical_rank`.
        RangeError: As for :func:`numerical_rank`.
    """
    x, origin = as_numbers(rows, computed_in, who)
    if x.dim() != 2 or not x.numel():
        raise ShapeError(
            f"{who} needs a matrix [rows, columns], got shape {list(x.shape)}. Give one row for "
            "each token."
        )
    if not bool(x.isfinite().all()):
        at = (~x.isfinite()).nonzero()[0].tolist()
        raise RangeError(
            f"{who} needs finite numbers, got {float(x[at[0], at[1]])} in row {at[0]}, column "
            f"{at[1]} ({int((~x.isfinite()).sum())} in all). Leave those rows out."
        )
    limits = torch.finfo(origin)
    top = float(x.abs().max()) or 1.0
    x = x / top
    return RoundedMatrix(x, limits.eps / 2 * x.abs().clamp_min(limits.smallest_normal / top))


def as_numbers(rows: Any, computed_in: torch.dtype | None, who: str) -> tuple[Tensor, torch.dtype]:
    """Real numbers in float64, and the type in which they were computed.

    Args:
        rows: As for :func:`as_real`.
        computed_in: As for :func:`as_real`.
        who: As for :func:`as_real`.

    Raises:
        InputError: As for :func:`as_real`.
        RangeError: As for :func:`as_real`.
        UnsupportedError: As for :func:`as_real`.
    """
    x, origin = as_real(rows, computed_in, who)
    return x.detach().cpu().to(torch.float64), origin


def as_real(rows: Any, computed_in: torch.dtype | None, who: str) -> tuple[Tensor, torch.dtype]:
    """Real numbers in their own type, and the type in which they were computed.

    Args:
        rows: A tensor, an array or a list.
        computed_in: That type; that of ``rows`` by default, float64 for whole numbers.
        who: Name of the public function, for error messages.

    Raises:
        InputError: ``rows`` cannot be made a tensor, or ``computed_in`` is no ``torch.dtype``.
        RangeError: The numbers are complex, or ``computed_in`` is not a floating type.
        UnsupportedError: A sparse, nested or quantised tensor, or one on ``meta``.
    """
    try:
        x = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{who} needs a tensor, an array or rows of numbers, got {type(rows).__name__} "
            f"({first_sentence(error)}) Give one number for each entry."
        ) from error
    check_tensor(who, "its matrix", x, read=True)
    if computed_in is not None and not isinstance(computed_in, torch.dtype):
        raise InputError(
            f"{who} needs computed_in as a torch.dtype, got {computed_in!r}. Use torch.float32, "
            "for example."
        )
    origin = computed_in or x.dtype
    if x.is_complex() or (computed_in is not None and not origin.is_floating_point):
        raise RangeError(
            f"{who} needs real numbers and a floating computed_in, got {x.dtype} and "
            f"{computed_in}. Name a type such as torch.float32."
        )
    return x, origin if origin.is_floating_point else torch.float64  # whole numbers are exact


_RANKS: dict[bytes, NumericalRank] = {}


def rank_of(x: RoundedMatrix, null: Tensor | None = None) -> NumericalRank:
    """The rank by (2) to (5).

    Those of the last matrices are kept, by their content: in a transformer the output of one module
    is what several others read.

    Args:
        x: The matrix.
        null: ``[rows]``, known weights for which the weighted rows sum to 0; full rank is then one
            less.

    Returns:
        The rank.
    """
    key = hashlib.blake2b(repr(x.values.shape).encode())
    for part in (*x, null):
        key.update(b"" if part is None else part.numpy().tobytes())
    known = key.digest()
    if known not in _RANKS:
        _RANKS[known] = _rank_of(x, null)
        if len(_RANKS) > MOST_KEPT:
            _RANKS.pop(next(iter(_RANKS)), None)
    return _RANKS[known]


def _rank_of(x: RoundedMatrix, null: Tensor | None) -> NumericalRank:
    """The same, computed.

    A clear full rank is found from a Cholesky factor, many times as fast as singular values, and
    its ``gap`` by inverse iteration. Other ranks need singular values, since the factor is that of
    products, which have half of the digits.
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
    """The rank if it is full by a clear gap, otherwise None."""
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
