"""Additive splines: features of a variable, and the elimination among them.

The Schur complement of the mean of a curved model leaves an excess on the parents' diagonal (the
expectation gap, ``Cov(grad f) / s2``). Here the roots are removed first instead, and each takes a
few functions of itself with it: the elimination runs on the covariance of the variables together
with spline features of those already removed. A variable's diagonal entry is then what an additive
regression on all before it leaves, the noise's variance once all its parents are before it.
"""

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.schur import SchurOrder
from isospike.errors import RangeError

MOST = 8  # features of a variable: a line and a cubic spline of six knots


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
    return np.asarray((out - out.mean(0)) / out.std(0))


def affordable(rows: int, variables: int) -> int:
    """Features of each variable that leave four rows to each; at least 1, at most 8."""
    return max(1, min(MOST, rows // (4 * variables)))


def spline_sort(
    x: Float[np.ndarray, "n d"],
    count: int,
    *,
    gamma: float = 0.0,
    before: Bool[np.ndarray, "d d"] | None = None,
) -> SchurOrder:
    """Order variables by the variance that an additive regression on those before leaves.

    With one feature each this is :func:`isospike.causal.schur.schur_sort` of the covariance, from
    the roots. The features are made orthogonal as they come, ``O(n (d count)^2)`` in all.

    Args:
        x: The rows.
        count: Spline features of a variable; ``d * count`` below the number of rows.
        gamma: Variables within ``gamma`` of the least variance, relative to it, go at once.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Returns:
        The order; ``pivots`` are the variances left.

    Raises:
        RangeError: Too many features for the rows, or ``before`` with a cycle.
    """
    n, d = x.shape
    if not 1 <= count * d < n:
        raise RangeError(
            f"spline_sort needs d * count features, fewer than rows, got {d} * {count} for {n} "
            "rows. Lower count."
        )
    ahead = np.zeros((d, d), bool) if before is None else before.T
    waiting = ahead.sum(1)
    rest = x - x.mean(0)
    basis, used = np.empty((n, d * count), order="F"), 0
    left = np.ones(d, bool)
    pivots, margins, layers = np.empty(d), np.empty(d), []
    while left.any():
        free = left & (waiting == 0)
        if not free.any():
            raise RangeError("spline_sort needs an order that can be kept, got a cycle.")
        variance = (rest**2).mean(0)
        value = np.where(free, variance, np.inf)
        inside = np.flatnonzero(value <= value.min() * (1 + gamma))
        layer = inside[np.argsort(value[inside], kind="stable")]
        layers.append(tuple(int(i) for i in layer))
        for p in layer:
            left[p] = False
            pivots[p] = variance[p]
            margins[p] = variance[left].min() / variance[p] - 1 if left.any() else np.inf
            waiting = waiting - ahead[:, p]
            new = features(x[:, p], count)
            for _ in range(2):  # once more against rounding
                done = basis[:, :used]
                new = new - done @ (done.T @ new)
            u, size, _ = np.linalg.svd(new, full_matrices=False)
            u = u[:, size > 1e-6 * n**0.5]
            basis[:, used : used + u.shape[1]] = u
            used += u.shape[1]
            rest -= u @ (u.T @ rest)
    order = np.array([i for layer in layers for i in layer], np.int64)
    return SchurOrder(order, tuple(layers), pivots, margins)
