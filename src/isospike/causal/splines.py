"""Additive splines: features of a variable, and an order from sparse regressions on them.

In a curved model the Schur complement of the mean matrix overestimates the diagonal entries of the
leaf's parents (the expectation gap, ``Cov(grad f) / s2``). Here roots are removed first instead.
The diagonal entry of a variable is the residual variance of an additive regression on the variables
before it, which is the variance of its noise once all its parents are before it. Each variable has
its own sparse regression, so a thousand variables need no more rows than a few.
"""

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.schur import SchurOrder
from isospike.errors import InputError, MissingExtraError, RangeError

MAX_FEATURES = 8  # of one variable: a line and a cubic spline with six knots
MAX_PARENTS = 40
_MAX_TOTAL_FEATURES = 5000  # of all variables together: their inner products then take 200 MB


def features(v: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n count"]:
    """Centred columns that span a cubic spline with knots at quantiles; ``v`` itself is the first.

    Args:
        v: Values, not all equal.
        count: Number of columns: 1 for a line, 2 and 3 for powers, from 4 on with ``count - 3``
            knots.

    Returns:
        The columns, each with a standard deviation of 1.
    """
    z = (v - v.mean()) / v.std()
    knots = np.quantile(z, np.linspace(0, 1, max(0, count - 3) + 2)[1:-1])
    columns = [z, z**2, z**3][:count] + [np.maximum(z - k, 0) ** 3 for k in knots]
    out = np.column_stack(columns)
    size = out.std(0)
    return np.asarray((out - out.mean(0)) / np.where(size > 0, size, 1))


def orthonormal(v: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n count"]:
    """An orthonormal basis of the features; columns that depend on earlier ones are zero.

    Args:
        v: Values, not all equal.
        count: Number of columns.

    Returns:
        The basis.
    """
    if count == 1:
        return np.asarray((v - v.mean()) / (v.std() * len(v) ** 0.5))[:, None]
    u, r = np.linalg.qr(features(v, count))
    return np.asarray(u * (np.abs(r.diagonal()) > 1e-6 * len(v) ** 0.5))


def affordable_features(rows: int, variables: int) -> int:
    """Number of features of each variable for a data set of this size.

    One feature in 40 rows, from 1 to 8, and in all at most as many as rows (1000 to 5000). More
    cost time and memory; each regression only has the features of the few variables in it.

    Args:
        rows: Number of rows.
        variables: Number of variables.

    Returns:
        The number of features.
    """
    total = min(max(rows, 1000), _MAX_TOTAL_FEATURES)
    most = max(rows // 40, min(5, rows // 20)) if variables == 2 else rows // 40
    return max(1, min(MAX_FEATURES, most, total // variables))


def spline_sort(
    x: Float[np.ndarray, "n d"],
    count: int | None = None,
    *,
    level: float = 0.01,
    gamma: float = 0.0,
    before: Bool[np.ndarray, "d d"] | None = None,
) -> SchurOrder:
    """Order variables by the residual variance of a sparse additive regression on those before.

    A removed variable joins the regression of each remaining variable that it explains: through its
    features (an F-test on the residuals) or linearly (a t-test in the regression on all removed
    variables, together with all others that pass this test, since effects may cancel). Variables
    removed earlier that now pass the F-test follow. A regression is a small system in the inner
    products of the features, which are made once in ``O(n (d count)^2)``.

    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> x[:, 0] += 2 * np.sin(x[:, 1])
    >>> spline_sort(x).order.tolist()
    [1, 0]

    Args:
        x: The rows.
        count: Number of spline features of a variable; by default :func:`affordable_features`.
        level: Probability, in (0, 1), that a variable without effect enters a regression.
        gamma: Variables whose residual variance is within this relative tolerance of the smallest
            one are removed in the same step.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Returns:
        The order; its ``pivots`` are the residual variances.

    Raises:
        RangeError: ``count`` or ``level`` is out of range, or a variance is too small or too large
            to be computed.
        InputError: ``before`` has a cycle.
        MissingExtraError: SciPy is not installed.
    """
    n, d = x.shape
    count = affordable_features(n, d) if count is None else count
    _check_options(count, n, level)
    ahead = np.zeros((d, d), bool) if before is None else before.T
    waiting = ahead.sum(1)
    with np.errstate(over="ignore"):
        variance = x.var(0)
    possible = (variance > 0) & np.isfinite(variance)
    if not possible.all():
        raise RangeError(
            "spline_sort needs columns whose variance is a positive number, got one of "
            f"{variance[~possible][0]:g}. Multiply the data by a constant."
        )
    elimination = _Elimination(x, count, level)
    layers: list[tuple[int, ...]] = []
    while elimination.left.any():
        free = elimination.left & (waiting == 0)
        if not free.any():
            raise InputError(
                "spline_sort needs constraints without a cycle, got a cycle in before. Remove one "
                "of them."
            )
        layers.append(elimination.smallest(free, gamma))
        for p in layers[-1]:
            elimination.remove(p)
            waiting = waiting - ahead[:, p]
    order = np.array([i for layer in layers for i in layer], np.int64)
    return SchurOrder(order, tuple(layers), elimination.pivots, elimination.margins)


def check_level(owner: str, level: float) -> None:
    """Raise RangeError unless this is the level of a test: above 0 and below 1."""
    if not 0 < level < 1:
        raise RangeError(f"{owner} needs level above 0 and below 1, got {level:g}. Try 0.001.")


def _check_options(count: int, rows: int, level: float) -> None:
    if not 1 <= count < rows - 1:
        raise RangeError(
            f"spline_sort needs count in [1, rows - 2], got {count} for {rows} rows. Use fewer "
            "features, or more rows."
        )
    check_level("spline_sort", level)


class _Elimination:
    """The removal of roots, one at a time; ``left`` marks the remaining variables."""

    def __init__(self, x: Float[np.ndarray, "n d"], count: int, level: float) -> None:
        n, d = x.shape
        self.count, self.level = count, level
        self.quantile = scipy("special", "spline_sort").fdtri
        self.regressions = _Regressions(x, count)
        self.linear = _Linear(np.atleast_2d(np.cov(x, rowvar=False)), n)
        self.left = np.ones(d, bool)
        self.removed: list[int] = []
        self.pivots, self.margins = np.empty(d), np.empty(d)

    def smallest(self, free: Bool[np.ndarray, "d"], gamma: float) -> tuple[int, ...]:
        """The free variables within ``gamma`` of the smallest variance, in that order."""
        value = np.where(free, self.regressions.variance, np.inf)
        inside = np.flatnonzero(value <= value.min() * (1 + gamma))
        return tuple(inside[np.argsort(value[inside], kind="stable")].tolist())

    def remove(self, p: int) -> None:
        left, regressions, quantile = self.left, self.regressions, self.quantile
        left[p] = False
        self.removed.append(p)
        variance = regressions.variance
        self.pivots[p] = variance[p]
        self.margins[p] = variance[left].min() / variance[p] - 1 if left.any() else np.inf
        least = 1 - self.level / len(self.removed)
        f = regressions.gains(p)
        passed = f > quantile(self.count, np.maximum(regressions.free - self.count, 1), least)
        t2, free_rows = self.linear.remove(p)
        if free_rows > 0:
            linear_least = quantile(1, free_rows, least)
            passed |= t2 > linear_least
        for j in np.flatnonzero(passed & left).tolist():
            new = {p: None}
            if free_rows > 0 and t2[j] > linear_least:
                tests = self.linear.tests(j)
                new |= dict.fromkeys(self.linear.removed[tests > linear_least].tolist())
            regressions.grow(
                j, list(new), self.removed, lambda free: quantile(self.count, free, least)
            )


class _Regressions:
    """A sparse additive regression of each variable, kept as inner products."""

    def __init__(self, x: Float[np.ndarray, "n d"], count: int) -> None:
        n, d = x.shape
        self.rows, self.count = n, count
        self.solve = scipy("linalg.lapack", "spline_sort").dposv  # for positive definite systems
        self.parents: list[list[int]] = [[] for _ in range(d)]
        basis = np.empty((n, d * count), order="F")
        for i in range(d):
            basis[:, i * count : (i + 1) * count] = orthonormal(x[:, i], count)
        self.gram = basis.T @ basis
        # The first feature is the variable itself, up to this factor.
        self.size = np.array([basis[:, i * count] @ x[:, i] for i in range(d)])
        # Inner products of each residual with all features.
        self.across = self.gram[::count] * self.size[:, None]
        self.residual = self.size**2  # squared norms
        self.free = np.full(d, n - 1)

    @property
    def variance(self) -> Float[np.ndarray, "d"]:
        return np.asarray(self.residual / self.free)

    def gains(self, p: int) -> Float[np.ndarray, "d"]:
        """F statistic of p's features on the residuals of each regression."""
        block = self.across[:, p * self.count : (p + 1) * self.count]
        return np.asarray(self._f((block**2).sum(1), self.residual, self.free))

    def grow(self, j: int, new: list[int], removed: list[int], least: Any) -> None:
        """Add ``new`` to the regression of j, then others by forward selection.

        Of the removed variables the one with the largest F statistic is added next, while the
        statistic is above ``least``. There is room for 40 parents, and for features in half of the
        rows.
        """
        c, own = self.count, self.parents[j]
        room = min(MAX_PARENTS, self.rows // (2 * c))
        earlier = np.array(removed)
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
            square = self.size[j] ** 2
            self.residual[j] = max(square - weight @ target[at], 1e-12 * square)
            self.free[j] -= c * len(new)
            gain = (self.across[j].reshape(-1, c) ** 2).sum(1)
            gain[own] = 0
            p = int(earlier[gain[earlier].argmax()])
            f = self._f(gain[p], self.residual[j], self.free[j])
            new = [p] if len(own) < room and f > least(self.free[j] - c) else []

    def _f(self, gain: Any, residual: Any, free: Any) -> Any:
        after = np.maximum(residual - gain, 1e-12 * residual) / np.maximum(free - self.count, 1)
        return gain / self.count / after


class _Linear:
    """Linear regressions of all variables on all removed ones: elimination in the covariance.

    With ``L`` the Cholesky factor along the order, ``columns`` holds its columns, for the remaining
    variables too, and ``inverse`` its inverse, for the removed variables.
    """

    def __init__(self, covariance: Float[np.ndarray, "d d"], rows: int) -> None:
        self.covariance, self.rows = covariance, rows
        self.removed = np.empty(0, np.int64)
        self.columns, self.inverse = np.zeros_like(covariance), np.zeros_like(covariance)
        self.variance = covariance.diagonal().copy()
        # Diagonal of the inverse covariance of the removed variables.
        self.spread = np.zeros(len(covariance))

    def remove(self, p: int) -> tuple[Float[np.ndarray, "d"], int]:
        """``t^2`` of p in each variable's regression, and its degrees of freedom.

        The degrees of freedom are 0 if there are too few rows, or if p depends on the others.
        """
        k = len(self.removed)
        free = self.rows - 2 - k
        if free <= 0 or self.variance[p] <= 1e-10 * self.covariance[p, p]:
            return np.zeros(len(self.variance)), 0
        root = self.variance[p] ** 0.5
        self.inverse[k, :k] = -self.columns[:k, p] @ self.inverse[:k, :k] / root
        self.inverse[k, k] = 1 / root
        self.spread[: k + 1] += self.inverse[k, : k + 1] ** 2
        column = (self.covariance[p] - self.columns[:k, p] @ self.columns[:k]) / root
        self.columns[k] = column
        self.removed = np.append(self.removed, p)
        self.variance = np.maximum(self.variance - column**2, 1e-12 * self.variance)
        return column**2 / self.variance * free, free

    def tests(self, j: int) -> Float[np.ndarray, "removed"]:
        """``t^2`` of each removed variable in the regression of j on all of them."""
        k = len(self.removed)
        weight = self.columns[:k, j] @ self.inverse[:k, :k]
        t2 = weight**2 / (self.variance[j] * self.spread[:k]) * (self.rows - 1 - k)
        return np.asarray(t2)


def scipy(module: str, who: str) -> Any:
    """A module of SciPy.

    Args:
        module: Name of the module in SciPy.
        who: Name of the public function, for the error message.

    Returns:
        The module.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    try:
        return import_module(f"scipy.{module}")
    except ImportError:
        raise MissingExtraError(
            f"{who} needs the package scipy, got none. Install isospike[causal]."
        ) from None
