"""From an order to a graph: which of the earlier variables are parents."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from isospike.causal.schur import leaf_rows
from isospike.causal.scores import information
from isospike.causal.splines import MOST, MOST_PARENTS, orthonormal, scipy
from isospike.errors import RangeError


def threshold_edges(
    information: Float[np.ndarray, "d d"], order: Int[np.ndarray, "d"], threshold: float = 0.3
) -> Bool[np.ndarray, "d d"]:
    """Edges whose linear weight, read off the leaf rows, is above a threshold in size.

    A function that rises as much as it falls has no linear weight: for linear models.

    Args:
        information: Positive definite.
        order: Causes first.
        threshold: In units of the child over units of the parent.
    """
    if not threshold >= 0:
        raise RangeError(f"threshold_edges needs a threshold >= 0, got {threshold}.")
    return np.asarray(np.abs(leaf_rows(information, order)) > threshold)


def parent_slopes(
    x: Float[np.ndarray, "n d"], order: Int[np.ndarray, "d"], score: str = "stein"
) -> Float[np.ndarray, "d d"]:
    """Root mean squared slopes ``[parent, child]``: the parent score of CaPS.

    (1)  E[(d_j f_l)^2] = s2 (I_jj with the child l - I_jj without it),  1 / s2 = I_ll

    The diagonal of the information matrix of those up to the child is estimated with it and
    without. Sees functions that rise as much as they fall; of ``precision`` these are the sizes of
    the linear weights. One estimate a variable.

    Args:
        x: The rows.
        order: Causes first.
        score: As in :func:`isospike.causal.scores.information`.

    Reference: Xu et al. (2024), Ordering-based causal discovery for linear and nonlinear relations.
    """
    d = len(order)
    slopes = np.zeros((d, d))
    after: np.ndarray | None = None
    for k in range(d, 0, -1):
        diagonal = information(x[:, order[:k]], score).diagonal()
        if after is not None:
            gain = np.maximum(after[:-1] - diagonal, 0) / after[-1]
            slopes[order[:k], order[k]] = np.sqrt(gain)
        after = diagonal
    return slopes


def prune(
    x: Float[np.ndarray, "n d"],
    order: Int[np.ndarray, "d"],
    level: float = 0.001,
    count: int | None = None,
    forbidden: Bool[np.ndarray, "d d"] | None = None,
    required: Bool[np.ndarray, "d d"] | None = None,
) -> tuple[Bool[np.ndarray, "d d"], Float[np.ndarray, "n d"]]:
    """Parents by F-tests of additive splines, with the false discoveries controlled.

    For each variable, those before it with a linear weight are taken at once, by t-tests in the
    regression on all of them; then others one by one, the one that explains most of what is left
    first; both at ``level`` over the number of candidates. What fails in the model of all taken is
    dropped, the weakest first. Benjamini and Hochberg's rule is then applied to the whole graph;
    pairs not taken count as tests that failed.

    Args:
        x: The rows.
        order: Causes first.
        level: Share of false edges among those found that is allowed for, in (0, 1).
        count: Spline features of a parent; by default 8, fewer where there are few rows.
        forbidden: Edges never taken, ``[parent, child]``.
        required: Edges always taken.

    Returns:
        The graph ``[parent, child]``, and each variable's residuals given those taken.

    Raises:
        RangeError: ``level`` out of range.
        MissingExtraError: SciPy is not installed.

    Reference: Buhlmann, Peters, Ernest (2014), CAM: causal additive models (the pruning step).
    """
    if not 0 < level < 1:
        raise RangeError(f"prune needs a level in (0, 1), got {level}.")
    n, d = x.shape
    if count is None:
        count = max(1, min(MOST, n // 40))
    tail = scipy("special", "prune").fdtrc  # P(F > f)
    linear = _linear_tests(x, order, tail)
    basis = np.empty((d, n, count))
    side = np.empty((n, d * count), order="F")  # the same side by side, in the order
    for rank, i in enumerate(order):
        basis[i] = orthonormal(x[:, i], count)
        side[:, rank * count : (rank + 1) * count] = basis[i]
    most = min(MOST_PARENTS, (n // 2) // count)
    allowed = np.ones((d, d), bool) if forbidden is None else ~forbidden
    always = np.zeros((d, d), bool) if required is None else required
    p_value = np.ones((d, d))
    residuals = x - x.mean(0)
    for rank, child in enumerate(order):
        before = np.array([p for p in order[:rank] if allowed[p, child]], np.int64)
        least = level / max(1, len(before))
        lines = sorted(
            (float(linear[p, child]), int(p)) for p in before if linear[p, child] < least
        )
        taken = [int(p) for p in before if always[p, child]]
        taken += [p for _, p in lines if p not in taken][: max(0, most - len(taken))]
        total = residuals[:, child].copy()
        left, lost = _fit(basis, taken, total)
        while len(taken) < min(most, len(before)):
            gain = ((left @ side[:, : rank * count]) ** 2).reshape(rank, count).sum(1)
            gain[~allowed[order[:rank], child] | np.isin(order[:rank], taken)] = -1
            best = int(order[gain.argmax()])
            new, losses = _fit(basis, [*taken, best], total)
            free = n - 1 - (len(taken) + 1) * count
            f = ((left @ left - new @ new) / count) / (new @ new / free)
            if tail(count, free, f) > least:
                break
            taken, left, lost = [*taken, best], new, losses
        while taken:
            free = n - 1 - len(taken) * count
            f = lost / (left @ left) * free / count
            p_value[taken, child] = tail(count, free, f)
            loose = [k for k, p in enumerate(taken) if not always[p, child]]
            weakest = min(loose, key=lambda k: f[k], default=None)
            if weakest is None or p_value[taken[weakest], child] <= least:
                break
            p_value[taken[weakest], child] = 1
            del taken[weakest]
            left, lost = _fit(basis, taken, total)
        residuals[:, child] = left
    tests = d * (d - 1) // 2
    ranked = np.sort(p_value[p_value < 1])
    passed = np.flatnonzero(ranked <= level * np.arange(1, len(ranked) + 1) / tests)
    cut = ranked[passed[-1]] if len(passed) else -1.0
    return (p_value <= cut) | always, residuals


def _fit(
    basis: Float[np.ndarray, "d n count"], parents: list[int], v: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "parents"]]:
    """What an additive regression leaves, and by how much its square sum grows without each."""
    if not parents:
        return v, np.empty(0)
    design = np.concatenate([basis[p] for p in parents], axis=1)
    # Each block is orthonormal; the ridge keeps blocks that share a column apart.
    inverse = np.linalg.inv(design.T @ design + 1e-9 * np.eye(design.shape[1]))
    weight = inverse @ (design.T @ v)
    m, count = len(parents), basis.shape[2]
    own = inverse.reshape(m, count, m, count)[np.arange(m), :, np.arange(m)]
    parts = weight.reshape(m, count, 1)
    lost = (parts * np.linalg.solve(own, parts)).sum((1, 2))
    return v - design @ weight, lost


def _linear_tests(
    x: Float[np.ndarray, "n d"], order: Int[np.ndarray, "d"], tail: Any
) -> Float[np.ndarray, "d d"]:
    """P-values of the linear weights ``[parent, child]`` in the regressions on all before.

    One factorisation ``C = L L^T`` of the ordered covariance holds them all: row r of ``L^-1`` is
    the regression of variable r, and its first r rows give the inverse covariance of those before.
    """
    n, d = x.shape
    p_value = np.ones((d, d))
    if n <= d + 1:
        return p_value
    ordered = np.corrcoef(x[:, order], rowvar=False) if d > 1 else np.ones((1, 1))
    inverse = np.linalg.inv(np.linalg.cholesky(ordered + 1e-12 * np.eye(d)))
    spread = np.cumsum(inverse**2, axis=0)
    for r in range(1, d):
        t2 = inverse[r, :r] ** 2 / spread[r - 1, :r] * (n - 1 - r)
        p_value[order[:r], order[r]] = tail(1, n - 1 - r, t2)
    return p_value
