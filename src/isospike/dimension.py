"""Effective dimension: how many directions the rows of a table use.

From the variances l along the principal axes, sorted from the largest:

(1)  PCA share           the fewest k with l_1 + ... + l_k >= share (l_1 + l_2 + ...)
(2)  participation ratio (sum l)^2 / sum l^2
(3)  spectral entropy    exp(-sum p ln p), p = l / sum l
(4)  stable rank         sum l / l_1

From the distances r_1 <= r_2 <= ... of a row to the other rows, hence along a curved surface too:

(5)  TwoNN   slope through 0 of -ln(1 - i / N) against the i-th smallest ln(r_2 / r_1), the largest
             tenth left out
(6)  MLE     1 / mean over rows of (1 / (k - 1)) sum_{j < k} ln(r_k / r_j)

Every one of them is bounded by the number of rows, long before it equals it. An :class:`Estimate`
says whether it was.

References: Roy, Vetterli (2007), The effective rank (3). Rudelson, Vershynin (2007), Sampling from
large matrices (4). Facco, d'Errico, Rodriguez, Laio (2017), Estimating the intrinsic dimension by
minimal neighbourhood information (5). Levina, Bickel (2004), Maximum likelihood estimation of
intrinsic dimension, averaged as MacKay and Ghahramani (2005) correct it (6).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import RangeError, ShapeError

ROWS_PER_DIMENSION = 10  # of a spectral measure, below which the sample caps it
NORMAL_95 = 1.96
BLOCK = 64  # rows whose neighbours are held at once

# ------------------------------------------------------------------- from variances


def pca_count(variances: Float[Tensor, "width"], share: float = 0.95) -> int:
    """(1): principal components that hold ``share`` of the variance.

    Args:
        variances: Along the principal axes, in any order.
        share: In (0, 1]; 1 counts the variances above rounding.

    Raises:
        RangeError: ``share`` is outside (0, 1], or there is no variance.
    """
    if not 0 < share <= 1:
        raise RangeError(f"pca_count needs a share in (0, 1], got {share:g}. Try 0.95.")
    p = _shares(variances, "pca_count")
    return int((p.sort(descending=True).values.cumsum(0) < share - 1e-12).sum()) + 1


def participation_ratio(variances: Float[Tensor, "width"]) -> float:
    """(2): 1 if one axis has all the variance, the number of axes if all have the same."""
    return float(1 / _shares(variances, "participation_ratio").square().sum())


def spectral_entropy(variances: Float[Tensor, "width"]) -> float:
    """(3), also called the effective rank; at least (2)."""
    p = _shares(variances, "spectral_entropy")
    return float(torch.special.entr(p).sum().exp())


def stable_rank(variances: Float[Tensor, "width"]) -> float:
    """(4): squared Frobenius over squared spectral norm of the centred rows; at most (2)."""
    return float(1 / _shares(variances, "stable_rank").max())


def _shares(variances: Tensor, who: str) -> Tensor:
    total = variances.double().clamp_min(0).sum()
    if not bool(total.isfinite()) or total <= 0:
        raise RangeError(
            f"{who} needs a variance above 0, got {float(total):g}. Give rows that differ."
        )
    return variances.double().clamp_min(0) / total


# ------------------------------------------------------------------- from distances


def two_nn(rows: Float[Tensor, "rows width"]) -> float:
    """(5): intrinsic dimension from the ratio of the two smallest distances of each row.

    Assumes: density constant over a row's second neighbour. Equal rows count once.

    Raises:
        RangeError: Fewer than 3 different rows.
    """
    return _two_nn(_nearest(_distinct(rows, 3, "two_nn"), 2))


def mle(rows: Float[Tensor, "rows width"], neighbours: int = 20) -> float:
    """(6): intrinsic dimension from the distances to the ``neighbours`` nearest rows.

    Assumes: density constant over those neighbours. Equal rows count once.

    Raises:
        RangeError: ``neighbours < 2``, or not more different rows than neighbours.
    """
    if neighbours < 2:
        raise RangeError(f"mle needs at least 2 neighbours, got {neighbours}. Try 20.")
    return _mle(_nearest(_distinct(rows, neighbours + 1, "mle"), neighbours))


def _two_nn(nearest: Tensor) -> float:
    n = len(nearest)
    kept = max(1, int(0.9 * n))
    x = (nearest[:, 1] / nearest[:, 0]).log().sort().values[:kept]
    y = -torch.log1p(-torch.arange(1, kept + 1, dtype=x.dtype) / n)
    return float((x * y).sum() / x.square().sum().clamp_min(1e-300))


def _mle(nearest: Tensor) -> float:
    logs = nearest.log()
    terms = (logs[:, -1:] - logs[:, :-1]).mean(1)
    return float(1 / terms.mean().clamp_min(1e-300))


def _distinct(rows: Tensor, least: int, who: str) -> Tensor:
    found: Tensor = torch.unique(rows.double(), dim=0)
    if len(found) < least:
        raise RangeError(
            f"{who} needs at least {least} different rows, got {len(found)}. Give more of them."
        )
    return found


def _nearest(rows: Tensor, count: int) -> Tensor:
    """Distances to the nearest other rows, ``[rows, count]``, ascending."""
    rows = rows - rows.mean(0)
    squares = rows.square().sum(1)
    found = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        # The product tells which rows are near; it rounds small distances away.
        rough = torch.addmm(squares[None], block, rows.t(), alpha=-2)
        rough[torch.arange(len(block)), start + torch.arange(len(block))] = math.inf
        near = rows[rough.topk(count, largest=False).indices]
        found.append((near - block[:, None]).norm(dim=-1).sort().values)
    return torch.cat(found)


# ---------------------------------------------------------------------- one pass


class Moments:
    """Mean and covariance of rows that come in batches, in float64.

    (7)  n' = n + m,  mean' = mean + (m / n') d,  S' = S + S_batch + (n m / n') d d^T,
         d = mean_batch - mean

    Nothing is subtracted at the end, so that a mean far from 0 costs no digits.

    Attributes:
        rows: Seen so far.
        mean: ``[width]``.
        scatter: S, ``[width, width]``: the covariance times ``rows``.

    Reference: Chan, Golub, LeVeque (1979), Updating formulae for computing sample variances.
    """

    def __init__(self, width: int) -> None:
        self.rows = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def update(self, rows: Float[Tensor, "rows width"]) -> None:
        """Add a batch; it is not written to."""
        if not len(rows):
            return
        centred = rows.to(torch.float64, copy=True)
        mean = centred.mean(0)
        centred -= mean
        total = self.rows + len(rows)
        step = mean - self.mean
        self.scatter.addmm_(centred.t(), centred)
        self.scatter.addr_(step, step, alpha=self.rows * len(rows) / total)
        self.mean += step * (len(rows) / total)
        self.rows = total

    def variances(self) -> Float[Tensor, "width"]:
        """Along the principal axes, from the largest."""
        return _spectrum(self.scatter / max(self.rows, 1))


def is_capped(count: float, rows: int) -> bool:
    """Whether a spectral measure is limited by the rows: fewer than ten for each dimension."""
    return rows < ROWS_PER_DIMENSION * count


def is_capped_intrinsic(dimension: float, rows: int) -> bool:
    """Whether an intrinsic dimension is: ``rows < 10^(dimension / 2)``.

    Reference: Eckmann, Ruelle (1992), Fundamental limitations for estimating dimensions.
    """
    return dimension > 2 * math.log10(rows)


class Estimate(NamedTuple):
    """A measure with its 95 % interval.

    Attributes:
        value: Of all rows; for (5) and (6), of the kept rows.
        low, high: ``value`` -+ 1.96 bootstrap standard errors.
        rows: That it was computed from.
        capped: Whether it is limited by the number of rows: the truth is at least this.
    """

    value: float
    low: float
    high: float
    rows: int
    capped: bool

    def __str__(self) -> str:
        number = f"{self.value:.3g}" if self.value < 1000 else f"{self.value:.0f}"
        if self.capped:
            return f"≥ {number} (capped by {self.rows} rows)"
        return f"{number} [{self.low:.3g}, {self.high:.3g}]"


class AtSize(NamedTuple):
    """The measures of a part of the kept rows, chosen at random. None where undefined."""

    rows: int
    pca: int | None
    participation: float | None
    entropy: float | None
    stable_rank: float | None
    two_nn: float | None
    mle: float | None


@dataclass(frozen=True)
class Dimension:
    """What was measured of one table.

    Attributes:
        rows, width: Of the table.
        kept: Rows that were kept for intervals, distances and the curve.
        constant: Columns that never change. They take no part in any measure.
        share: Of :attr:`pca`.
        pca, participation, entropy, stable_rank: (1) to (4).
        two_nn, mle: (5) and (6); None with too few different rows.
        curve: The measures of the kept rows and of a half, a quarter, ... of them, the fewest
            first. Do not trust a measure that still rises at the end.
    """

    rows: int
    width: int
    kept: int
    constant: int
    share: float
    pca: Estimate
    participation: Estimate
    entropy: Estimate
    stable_rank: Estimate
    two_nn: Estimate | None
    mle: Estimate | None
    curve: tuple[AtSize, ...]


class EffectiveDimension:
    """Estimator of :class:`Dimension`, in one pass: ``EffectiveDimension().fit(x).dimension_``.

    Memory does not grow with the rows: their moments (:class:`Moments`, of all of them) and a
    uniform sample of ``keep`` rows. Standard errors are those of resampled kept rows (resampled
    neighbourhoods for (5) and (6), where copies of a row would have distance 0), times
    ``sqrt(kept / rows)`` for (1) to (4), which all rows determine.

    Assumes: independent rows, for the intervals. Tokens of one sentence are not; intervals of
    activations are too narrow.

    Args:
        share: Of the variance, for the PCA count; in (0, 1].
        neighbours: k of (6).
        keep: Rows to keep, at least 2.
        replicates: Bootstrap samples, at least 2. Each takes an eigendecomposition.
        generator: Source of randomness, of what is kept and of the bootstrap.

    Raises:
        RangeError: A number is outside its range.
    """

    def __init__(
        self,
        share: float = 0.95,
        *,
        neighbours: int = 20,
        keep: int = 1024,
        replicates: int = 50,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise RangeError(
                f"EffectiveDimension needs a share in (0, 1], got {share:g}. Try 0.95."
            )
        for name, value in (("neighbours", neighbours), ("keep", keep), ("replicates", replicates)):
            if value < 2:
                raise RangeError(f"EffectiveDimension needs {name} >= 2, got {value}. Raise it.")
        self.share = share
        self.neighbours = neighbours
        self.keep = keep
        self.replicates = replicates
        self.generator = generator
        self._moments: Moments | None = None
        self._found: Dimension | None = None
        self._first = self._changes = self._kept = self._keys = torch.empty(0)

    def fit(self, rows: Any) -> "EffectiveDimension":
        """Forget what was seen and take all of ``rows``; see :meth:`partial_fit`."""
        self._moments = None
        return self.partial_fit(rows)

    def partial_fit(self, rows: Any) -> "EffectiveDimension":
        """Take a batch of rows more.

        Args:
            rows: ``[rows, width]``, a tensor or anything NumPy takes; real numbers.

        Raises:
            ShapeError: Not two axes, no columns, or another width than before.
            RangeError: NaN or infinity.
        """
        x = torch.as_tensor(rows).detach().to("cpu", torch.float64)
        if x.dim() != 2 or x.shape[1] == 0:
            raise ShapeError(
                f"EffectiveDimension needs rows [rows, width], got shape {list(x.shape)}. Flatten "
                "each sample to a row."
            )
        if not bool(x.isfinite().all()):
            at = (~x.isfinite()).nonzero()[0].tolist()
            raise RangeError(
                f"EffectiveDimension needs finite numbers, got {float(x[at[0], at[1]])} in row "
                f"{at[0]}, column {at[1]} ({int((~x.isfinite()).sum())} in all). Remove them first."
            )
        if self._moments is None:
            self._moments = Moments(x.shape[1])
            self._first = x[:1].clone()
            self._changes = torch.zeros(x.shape[1], dtype=torch.bool)
            self._kept, self._keys = x[:0], x[:0, 0]
        if x.shape[1] != len(self._changes):
            raise ShapeError(
                f"EffectiveDimension needs rows of width {len(self._changes)}, as before, got "
                f"{x.shape[1]}. Fit another estimator."
            )
        if not len(self._first):
            self._first = x[:1].clone()
        self._changes |= (x != self._first).any(0)
        self._moments.update(x)
        # The rows with the smallest of independent keys: a uniform sample, in random order.
        keys = torch.rand(len(x), dtype=torch.float64, generator=self.generator)
        keys, order = torch.cat([self._keys, keys]).sort()
        self._keys = keys[: self.keep]
        self._kept = torch.cat([self._kept, x])[order[: self.keep]]
        self._found = None
        return self

    @property
    def dimension_(self) -> Dimension:
        """Measured of all rows so far.

        Raises:
            RangeError: Fewer than 2 rows, or all of them equal.
        """
        if self._found is None:
            self._found = self._measure()
        return self._found

    def _measure(self) -> Dimension:
        rows = 0 if self._moments is None else self._moments.rows
        if self._moments is None or rows < 2:
            raise RangeError(
                f"EffectiveDimension needs at least 2 rows, got {rows}. Give more of them."
            )
        if not bool(self._changes.any()):
            raise RangeError(
                f"EffectiveDimension needs rows that differ, got {rows} equal ones: all "
                f"{len(self._changes)} columns are constant. Give other data."
            )
        variances = self._moments.variances()
        spectra = self._resampled_spectra()
        shrink = math.sqrt(len(self._kept) / rows)

        def spectral(measure: Callable[[Tensor], int | float]) -> Estimate:
            value = float(measure(variances))
            error = shrink * _spread([float(measure(s)) for s in spectra])
            return _estimate(value, error, rows, is_capped(value, rows))

        first = _first_of_equals(self._kept)
        near = self._neighbours(self._kept[first])
        return Dimension(
            rows=rows,
            width=len(self._changes),
            kept=len(self._kept),
            constant=int((~self._changes).sum()),
            share=self.share,
            pca=spectral(partial(pca_count, share=self.share)),
            participation=spectral(participation_ratio),
            entropy=spectral(spectral_entropy),
            stable_rank=spectral(stable_rank),
            two_nn=None if near is None else self._intrinsic(_two_nn, near),
            mle=None if near is None or self._too_few(near) else self._intrinsic(_mle, near),
            curve=self._curve(first),
        )

    def _neighbours(self, distinct: Tensor) -> Tensor | None:
        """Distances to as many neighbours as (6) takes, or as there are; None without two."""
        count = min(self.neighbours, len(distinct) - 1)
        return _nearest(distinct, count) if count >= 2 else None

    def _too_few(self, near: Tensor) -> bool:
        return near.shape[1] < self.neighbours

    def _resampled_spectra(self) -> list[Tensor]:
        """Variances of the kept rows, resampled with replacement, where they differ."""
        n = len(self._kept)
        spectra = []
        for _ in range(self.replicates):
            rows = self._kept[torch.randint(n, (n,), generator=self.generator)]
            if _differ(rows):
                spectra.append(_variances(rows))
        return spectra

    def _intrinsic(self, estimate: Callable[[Tensor], float], near: Tensor) -> Estimate:
        n = len(near)
        value = estimate(near)
        again = [
            estimate(near[torch.randint(n, (n,), generator=self.generator)])
            for _ in range(self.replicates)
        ]
        return _estimate(value, _spread(again), n, is_capped_intrinsic(value, n))

    def _curve(self, first: Tensor) -> tuple[AtSize, ...]:
        n = len(self._kept)
        sizes = [n >> i for i in range(5) if n >> i >= 2]
        return tuple(self._at(self._kept[:size], first[:size]) for size in reversed(sizes))

    def _at(self, rows: Tensor, first: Tensor) -> AtSize:
        variances = _variances(rows)
        varied = _differ(rows)
        near = self._neighbours(rows[first])
        return AtSize(
            rows=len(rows),
            pca=pca_count(variances, self.share) if varied else None,
            participation=participation_ratio(variances) if varied else None,
            entropy=spectral_entropy(variances) if varied else None,
            stable_rank=stable_rank(variances) if varied else None,
            two_nn=None if near is None else _two_nn(near),
            mle=None if near is None or self._too_few(near) else _mle(near),
        )


def _first_of_equals(rows: Tensor) -> Tensor:
    """Mask of the rows that equal none before them."""
    at = torch.arange(len(rows))
    found, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(found),), len(rows)).scatter_reduce(0, group, at, "amin")
    return first[group] == at


def _differ(rows: Tensor) -> bool:
    """Whether they do; the variance of equal rows is 0 only up to rounding."""
    return bool((rows != rows[:1]).any())


def _variances(rows: Tensor) -> Tensor:
    """Along the principal axes, from the largest; of the smaller of the two products."""
    centred = rows - rows.mean(0)
    wide = rows.shape[1] > len(rows)
    product = centred @ centred.t() if wide else centred.t() @ centred
    return _spectrum(product / len(rows))


def _spectrum(symmetric: Tensor) -> Tensor:
    """Eigenvalues from the largest; what rounding puts below 0 is 0."""
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.clamp_min(0).flip(0)


def _spread(values: list[float]) -> float:
    """Standard deviation; 0 of fewer than two values."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else 0.0


def _estimate(value: float, error: float, rows: int, capped: bool) -> Estimate:
    reach = NORMAL_95 * error
    return Estimate(value, value - reach, value + reach, rows, capped)
