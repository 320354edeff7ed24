"""Every measure of a table's dimension in one pass over its rows, with intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.dimension.measures import (
    is_capped,
    is_capped_intrinsic,
    mle_of,
    nearest_distances,
    participation_ratio,
    pca_count,
    spectral_entropy,
    stable_rank,
    two_nn_of,
)
from isospike.errors import RangeError, ShapeError
from isospike.report.numbers import NORMAL_95

BLOCK = 2**19  # numbers that are added at once


class Moments:
    """Running mean and covariance of rows that come in batches, in float64.

    (7)  n' = n + m,  mean' = mean + (m / n') d,  S' = S + S_batch + (n m / n') d d^T,
         d = mean_batch - mean

    Nothing is subtracted at the end, so that a mean far from 0 costs no digits. Rows that are fewer
    than half the width are kept as they are: the variances are those of their products.

    Attributes:
        rows: Seen so far.
        width: Of a row.
        scatter: S, ``[width, width]``: the covariance times ``rows``.

    Args:
        width: Columns of a row.
        device: Where the sums are kept; the CPU if None.

    Reference: Chan, Golub, LeVeque (1979), Updating formulae for computing sample variances.

    >>> import torch
    >>> moments = Moments(2)
    >>> moments.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> moments.mean.tolist(), moments.variances().tolist()
    ([2.0, 0.0], [1.0, 0.0])
    """

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.rows = 0
        self.width = width
        self._few = [torch.zeros(0, width, dtype=torch.float64, device=device)]
        self._sums: tuple[Tensor, Tensor] | None = None

    @property
    def mean(self) -> Float[Tensor, "width"]:
        """Of the rows so far; 0 of none."""
        if self._sums is not None:
            return self._sums[0]
        return torch.cat(self._few).sum(0) / max(1, self.rows)

    @property
    def scatter(self) -> Float[Tensor, "width width"]:
        """S of (7)."""
        if self._sums is not None:
            return self._sums[1]
        centred = torch.cat(self._few) - self.mean
        return centred.t() @ centred

    def update(self, rows: Float[Tensor, "rows width"]) -> None:
        """Add a batch.

        Args:
            rows: The batch, which is not changed.
        """
        if not len(rows):
            return
        if self._sums is None:
            if self.rows + len(rows) <= self.width // 2:
                self._few.append(rows.to(torch.float64, copy=True))
                self.rows += len(rows)
                return
            few, self.rows, self._few = self._few, 0, []
            zero = few[0].new_zeros
            self._sums = zero(self.width), zero(self.width, self.width)
            for each in few[1:]:
                self._add(each, *self._sums)
        for part in torch.split(rows, max(1, BLOCK // self.width)):
            self._add(part.to(torch.float64, copy=True), *self._sums)

    def include(self, other: "Moments") -> None:
        """Add the rows that another has seen.

        Args:
            other: Of the same width; it is not changed.
        """
        if other._sums is None:
            for each in other._few[1:]:
                self.update(each)
            return
        mean, scatter = other._sums
        if self._sums is None:
            few, self.rows = self._few[1:], other.rows
            self._sums, self._few = (mean.clone(), scatter.clone()), []
            for each in few:
                self.update(each)
            return
        total, step = self.rows + other.rows, mean - self._sums[0]
        self._sums[1].add_(scatter).addr_(step, step, alpha=self.rows * other.rows / total)
        self._sums[0].add_(step * (other.rows / total))
        self.rows = total

    def _add(self, centred: Tensor, mean: Tensor, scatter: Tensor) -> None:
        """(7), in place."""
        own = centred.mean(0)
        centred -= own
        total = self.rows + len(centred)
        step = own - mean
        scatter.addmm_(centred.t(), centred)
        scatter.addr_(step, step, alpha=self.rows * len(centred) / total)
        mean += step * (len(centred) / total)
        self.rows = total

    def variances(self) -> Float[Tensor, "width"]:
        """Variances along the principal axes, from the largest."""
        if self._sums is not None:
            return _spectrum(self._sums[1] / max(self.rows, 1))
        centred = torch.cat(self._few) - self.mean
        found = _spectrum(centred @ centred.t() / max(self.rows, 1))
        return torch.cat([found, found.new_zeros(self.width - len(found))])


class Estimate(NamedTuple):
    """A measure with its 95 % interval.

    Attributes:
        value: The measure of all rows; of the kept rows for (5) and (6).
        low, high: ``value`` -+ 1.96 bootstrap standard errors.
        rows: Number of rows that it was computed from.
        capped: Whether it is limited by the number of rows: the true value is at least this.

    >>> print(Estimate(86.0, 80.0, 92.0, rows=100, capped=True))
    ≥ 86 (capped by 100 rows)
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
    """The measures of a random part of the kept rows; None if undefined.

    Attributes:
        rows: Rows of the part.
        pca: Components that hold the share of the variance.
        participation: Participation ratio.
        entropy: Spectral entropy, as a number of dimensions.
        stable_rank: Stable rank.
        two_nn: TwoNN's estimate.
        mle: The estimate of maximum likelihood.

    >>> estimator = EffectiveDimension().partial_fit(torch.randn(200, 4))
    >>> estimator.dimension_.curve[-1].pca
    4
    """

    rows: int
    pca: int | None
    participation: float | None
    entropy: float | None
    stable_rank: float | None
    two_nn: float | None
    mle: float | None


@dataclass(frozen=True)
class Dimension:
    """Every measure of one table.

    Attributes:
        rows, width: Shape of the table.
        kept: Number of rows that were kept for intervals, distances and the curve.
        constant: Number of columns that never change. They take no part in any measure.
        share: Fraction of the variance that :attr:`pca` holds.
        pca, participation, entropy, stable_rank: (1) to (4).
        two_nn, mle: (5) and (6); None with too few different rows.
        curve: The measures of the kept rows and of a half, a quarter, ... of them, smallest
            first. Do not trust a measure that still rises at the end.

    >>> rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> found = EffectiveDimension().partial_fit(rows).dimension_
    >>> found.rows, found.width, found.pca.value
    (200, 4, 4.0)
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
    """Estimate how many directions rows of data use: ``EffectiveDimension().fit(x).dimension_``.

    The six measures (1) to (6) are those of :class:`Dimension`, all in one pass over the rows.
    Memory does not grow with the rows: it holds their moments (:class:`Moments`, of all of them)
    and a uniform sample of ``keep`` rows. Standard errors are those of resampled kept rows
    (resampled neighbourhoods for (5) and (6), where copies of a row would have distance 0), times
    ``sqrt(kept / rows)`` for (1) to (4), which all rows determine.

    Assumes: independent rows, for the intervals. Tokens of one sentence are not; intervals of
    activations are too narrow.

    Args:
        share: Fraction of the variance, for the PCA count; in (0, 1].
        neighbours: k of (6).
        keep: Rows to keep, at least 2.
        replicates: Bootstrap samples, at least 2. Each takes an eigendecomposition.
        generator: Source of randomness, for the rows that are kept and for the bootstrap.

    Raises:
        RangeError: A number is outside its range.

    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> rows = torch.randn(2000, 3, generator=draw) @ torch.randn(3, 10, generator=draw)
    >>> dimension = EffectiveDimension(replicates=2, generator=draw).fit(rows).dimension_
    >>> int(dimension.pca.value), round(dimension.two_nn.value)
    (3, 3)
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
        """Forget the rows so far and take these.

        Args:
            rows: See :meth:`partial_fit`.

        Returns:
            The estimator.
        """
        self._moments = None
        return self.partial_fit(rows)

    def partial_fit(self, rows: Any) -> "EffectiveDimension":
        """Take another batch of rows.

        Args:
            rows: ``[rows, width]``, a tensor or anything NumPy takes; real numbers.

        Returns:
            The estimator.

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
    def varies_(self) -> bool:
        """Whether two of the rows so far differ; if not, they have no dimension."""
        return bool(self._changes.any())

    @property
    def dimension_(self) -> Dimension:
        """The measures of all rows so far.

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
        if not self.varies_:
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
            two_nn=None if near is None else self._intrinsic(two_nn_of, near),
            mle=None if near is None or self._too_few(near) else self._intrinsic(mle_of, near),
            curve=self._curve(first),
        )

    def _neighbours(self, distinct: Tensor) -> Tensor | None:
        """Distances to as many neighbours as (6) takes, or as there are; None without two."""
        count = min(self.neighbours, len(distinct) - 1)
        return nearest_distances(distinct, count) if count >= 2 else None

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
            two_nn=None if near is None else two_nn_of(near),
            mle=None if near is None or self._too_few(near) else mle_of(near),
        )


def _first_of_equals(rows: Tensor) -> Tensor:
    """Mask of the rows that equal none before them."""
    at = torch.arange(len(rows))
    distinct, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(rows)).scatter_reduce(0, group, at, "amin")
    return first[group] == at


def _differ(rows: Tensor) -> bool:
    """Whether they do; the variance of equal rows is 0 only up to rounding."""
    return bool((rows != rows[:1]).any())


def _variances(rows: Tensor) -> Tensor:
    """Variances along the principal axes, from the largest, by the smaller product."""
    centred = rows - rows.mean(0)
    wide = rows.shape[1] > len(rows)
    product = centred @ centred.t() if wide else centred.t() @ centred
    return _spectrum(product / len(rows))


def _spectrum(symmetric: Tensor) -> Tensor:
    """Eigenvalues from the largest; those that rounding makes negative are 0."""
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.clamp_min(0).flip(0)


def _spread(values: list[float]) -> float:
    """Standard deviation; 0 of fewer than two values."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else 0.0


def _estimate(value: float, error: float, rows: int, capped: bool) -> Estimate:
    reach = NORMAL_95 * error
    return Estimate(value, value - reach, value + reach, rows, capped)
