"""Additive splines: features of a variable, and an order by what sparse regressions on them leave.

The Schur complement of the mean of a curved model leaves an excess on the parents' diagonal (the
expectation gap, ``Cov(grad f) / s2``). Here the roots are removed first instead, and each takes
functions of itself with it: a variable's diagonal entry is what an additive regression on those
before it leaves, the noise's variance once all its parents are before it. Each variable has its own
regression, on those few that explain it, so that a thousand of them need no more rows than a few.
"""

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.schur import SchurOrder
from isospike.errors import MissingExtraError, RangeError

MOST = 8  # features of a variable: a line and a cubic spline of six knots
MOST_PARENTS = 40
_FEATURES = 5000  # of all variables together: their products are then 200 MB


def features(v: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n count"]:
    """Centred columns that span a cubic spline with knots at quantiles, ``v`` itself first.

    Args:
        v: Values, not all equal.
        count: Columns: 1 for a line, 2 and 3 for powers, from 4 with ``count - 3`` knots.
    """
    z = (v - v.mean()) / v.std()
    knots = np.quantile(z, np.linspace(0, 1, max(0, count - 3) + 2)[1:-1])
    columns = [z, z**2, z**3][:count] + [np.maximum(z - k, 0) ** 3 for k in knots]
    out = np.column_stack(columns)
    size = out.std(0)
    return np.asarray((out - out.mean(0)) / np.where(size > 0, size, 1))


def orthonormal(v: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n count"]:
    """The same, made orthonormal; those that the earlier ones give are zero."""
    u, r = np.linalg.qr(features(v, count))
    return np.asarray(u * (np.abs(r.diagonal()) > 1e-6 * len(v) ** 0.5))


def affordable(rows: int, variables: int) -> int:
    """Features of each variable: 1 to 8, one in 40 rows, and in all as many as rows (1000 to 5000).

    More cost time and memory; each regression has only those of the few variables in it.
    """
    return max(1, min(MOST, rows // 40, min(max(rows, 1000), _FEATURES) // variables))


def spline_sort(
    x: Float[np.ndarray, "n d"],
    count: int | None = None,
    *,
    level: float = 0.01,
    gamma: float = 0.0,
    before: Bool[np.ndarray, "d d"] | None = None,
) -> SchurOrder:
    """Order variables by the variance that a sparse additive regression on those before leaves.

    When a variable is removed, it joins the regression of each variable left that it explains: its
    features in what that regression leaves (F-test), or itself linearly, given all before it
    (t-test), and then with all that pass the same test beside it, since effects may cancel. Those
    removed earlier that now pass the F-test follow. All is done on the features' inner products,
    made once in ``O(n (d count)^2)``; a regression is a small system in them.

    Args:
        x: The rows.
        count: Spline features of a variable; by default :func:`affordable`.
        level: Chance of taking a variable into a regression that has no part in it, in (0, 1).
        gamma: Variables within ``gamma`` of the least variance, relative to it, go at once.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Returns:
        The order; ``pivots`` are the variances left.

    Raises:
        RangeError: ``count`` or ``level`` out of range, or ``before`` with a cycle.
        MissingExtraError: SciPy is not installed.
    """
    n, d = x.shape
    count = affordable(n, d) if count is None else count
    if not 1 <= count < n - 1:
        raise RangeError(f"spline_sort needs count in [1, rows - 2], got {count} for {n} rows.")
    if not 0 < level < 1:
        raise RangeError(f"spline_sort needs a level in (0, 1), got {level}.")
    quantile = scipy("special", "spline_sort").fdtri
    ahead = np.zeros((d, d), bool) if before is None else before.T
    waiting = ahead.sum(1)
    found = _Regressions(x, count)
    linear = _Linear(np.atleast_2d(np.cov(x, rowvar=False)), n)
    left = np.ones(d, bool)
    gone: list[int] = []
    pivots, margins, layers = np.empty(d), np.empty(d), []
    while left.any():
        free = left & (waiting == 0)
        if not free.any():
            raise RangeError("spline_sort needs an order that can be kept, got a cycle.")
        value = np.where(free, found.variance, np.inf)
        inside = np.flatnonzero(value <= value.min() * (1 + gamma))
        layer = inside[np.argsort(value[inside], kind="stable")]
        layers.append(tuple(int(i) for i in layer))
        for p in layer.tolist():
            left[p] = False
            gone.append(p)
            variance = found.variance
            pivots[p] = variance[p]
            margins[p] = variance[left].min() / variance[p] - 1 if left.any() else np.inf
            waiting = waiting - ahead[:, p]
            least = 1 - level / len(gone)
            f = found.gains(p)
            taken = f > quantile(count, np.maximum(found.free - count, 1), least)
            t2, free_rows = linear.remove(p)
            if free_rows > 0:
                linear_least = quantile(1, free_rows, least)
                taken |= t2 > linear_least
            for j in np.flatnonzero(taken & left).tolist():
                new = {p: None}
                if free_rows > 0 and t2[j] > linear_least:
                    new |= dict.fromkeys(linear.gone[linear.tests(j) > linear_least].tolist())
                found.grow(j, list(new), gone, lambda free, q=least: quantile(count, free, q))
    order = np.array([i for layer in layers for i in layer], np.int64)
    return SchurOrder(order, tuple(layers), pivots, margins)


class _Regressions:
    """A sparse additive regression of each variable, kept as inner products."""

    def __init__(self, x: Float[np.ndarray, "n d"], count: int) -> None:
        n, d = x.shape
        self.rows, self.count = n, count
        self.solve = scipy("linalg.lapack", "spline_sort").dposv  # of positive definite systems
        self.parents: list[list[int]] = [[] for _ in range(d)]
        basis = np.empty((n, d * count), order="F")
        for i in range(d):
            basis[:, i * count : (i + 1) * count] = orthonormal(x[:, i], count)
        self.gram = basis.T @ basis
        # The first feature is the variable itself, up to this factor.
        self.size = np.array([basis[:, i * count] @ x[:, i] for i in range(d)])
        self.across = self.gram[::count] * self.size[:, None]  # what is left, with all features
        self.rest = self.size**2
        self.free = np.full(d, n - 1)

    @property
    def variance(self) -> Float[np.ndarray, "d"]:
        return np.asarray(self.rest / self.free)

    def gains(self, p: int) -> Float[np.ndarray, "d"]:
        """F of p's features in what each regression leaves."""
        block = self.across[:, p * self.count : (p + 1) * self.count]
        return np.asarray(self._f((block**2).sum(1), self.rest, self.free))

    def grow(self, j: int, new: list[int], gone: list[int], least: Any) -> None:
        """Take those new, then of those gone the one that explains most of the rest, while it does.

        There is room for 40, and for half of the rows.
        """
        c, own = self.count, self.parents[j]
        room = min(MOST_PARENTS, self.rows // (2 * c))
        earlier = np.array(gone)
        while new:
            new = [q for q in new if q not in own][: room - len(own)]
            own += new
            at = (np.array(own)[:, None] * c + np.arange(c)).ravel()
            target = self.gram[j * c] * self.size[j]
            system = self.gram[np.ix_(at, at)]
            system[np.diag_indices(len(at))] += 1e-9
            weight = self.solve(system, target[at])[1]
            self.across[j] = target
            for q, w in zip(own, weight.reshape(-1, c), strict=True):
                self.across[j] -= w @ self.gram[q * c : (q + 1) * c]
            self.rest[j] = max(self.size[j] ** 2 - weight @ target[at], 1e-12 * self.size[j] ** 2)
            self.free[j] -= c * len(new)
            gain = (self.across[j].reshape(-1, c) ** 2).sum(1)
            gain[own] = 0
            p = int(earlier[gain[earlier].argmax()])
            f = self._f(gain[p], self.rest[j], self.free[j])
            new = [p] if len(own) < room and f > least(self.free[j] - c) else []

    def _f(self, gain: Any, rest: Any, free: Any) -> Any:
        after = np.maximum(rest - gain, 1e-12 * rest) / np.maximum(free - self.count, 1)
        return gain / self.count / after


class _Linear:
    """Linear regressions of all variables on all that are gone: elimination in the covariance.

    With ``L`` the Cholesky factor along the order, ``columns`` holds its columns, for those left
    too, and ``inverse`` its inverse, for those gone.
    """

    def __init__(self, covariance: Float[np.ndarray, "d d"], rows: int) -> None:
        self.covariance, self.rows = covariance, rows
        self.gone = np.empty(0, np.int64)
        self.columns, self.inverse = np.zeros_like(covariance), np.zeros_like(covariance)
        self.variance = covariance.diagonal().copy()
        self.spread = np.zeros(len(covariance))  # diagonal of the inverse covariance of those gone

    def remove(self, p: int) -> tuple[Float[np.ndarray, "d"], int]:
        """``t^2`` of p in each variable's regression, and its degrees of freedom; 0 where rows, or
        what p has of its own, have run out."""
        k = len(self.gone)
        free = self.rows - 2 - k
        if free <= 0 or self.variance[p] <= 1e-10 * self.covariance[p, p]:
            return np.zeros(len(self.variance)), 0
        root = self.variance[p] ** 0.5
        self.inverse[k, :k] = -self.columns[:k, p] @ self.inverse[:k, :k] / root
        self.inverse[k, k] = 1 / root
        self.spread[: k + 1] += self.inverse[k, : k + 1] ** 2
        column = (self.covariance[p] - self.columns[:k, p] @ self.columns[:k]) / root
        self.columns[k] = column
        self.gone = np.append(self.gone, p)
        self.variance = np.maximum(self.variance - column**2, 1e-12 * self.variance)
        return column**2 / self.variance * free, free

    def tests(self, j: int) -> Float[np.ndarray, "gone"]:
        """``t^2`` of each of those gone in the regression of j on all of them."""
        k = len(self.gone)
        weight = self.columns[:k, j] @ self.inverse[:k, :k]
        t2 = weight**2 / (self.variance[j] * self.spread[:k]) * (self.rows - 1 - k)
        return np.asarray(t2)


def scipy(module: str, who: str) -> Any:
    """A module of SciPy, or the error that ``who`` needs it."""
    try:
        return import_module(f"scipy.{module}")
    except ImportError:
        raise MissingExtraError(
            f"{who} needs the package scipy. Install isospike[causal]."
        ) from None
