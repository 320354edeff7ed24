"""From an order to a graph: which of the earlier variables are parents."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from isospike.causal.schur import leaf_rows
from isospike.causal.scores import information
from isospike.causal.splines import MAX_FEATURES, MAX_PARENTS, check_level, orthonormal, scipy
from isospike.errors import RangeError

_Fit = tuple[np.ndarray, np.ndarray]  # residual, and the growth of its square sum without a parent


def threshold_edges(
    information: Float[np.ndarray, "d d"], order: Int[np.ndarray, "d"], threshold: float = 0.3
) -> Bool[np.ndarray, "d d"]:
    """Edges whose linear weight, taken from the leaf rows, is above a threshold in size.

    For linear models. A function that rises as much as it falls has a linear weight of 0.

    >>> import numpy as np
    >>> threshold_edges(np.array([[2.0, -1.0], [-1.0, 1.0]]), np.array([0, 1]))
    array([[False,  True],
           [False, False]])

    Args:
        information: The information matrix, positive definite.
        order: The variables, causes first.
        threshold: Smallest size of a weight, in units of the child over units of the parent.

    Returns:
        The graph, ``[parent, child]``.

    Raises:
        RangeError: The threshold is negative, or the matrix is not positive definite.
    """
    if not threshold >= 0:
        raise RangeError(
            f"threshold_edges needs a threshold >= 0, got {threshold}. Use 0 to keep every edge."
        )
    return np.asarray(np.abs(leaf_rows(information, order)) > threshold)


def parent_slopes(
    x: Float[np.ndarray, "n d"], order: Int[np.ndarray, "d"], score: str = "stein"
) -> Float[np.ndarray, "d d"]:
    """Root mean squared slopes of the mechanisms: the parent score of CaPS.

    (1)  E[(d_j f_l)^2] = s2 (I_jj with the child l - I_jj without it),  1 / s2 = I_ll

    The diagonal of the information matrix is estimated for the variables up to the child, with and
    without the child. The slopes also show functions that rise as much as they fall; with the score
    ``precision`` they are the sizes of the linear weights. One estimate for each variable.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> x[:, 1] += x[:, 0] ** 2
    >>> bool(parent_slopes(x, np.array([0, 1]))[0, 1] > 0.5)
    True

    Args:
        x: The rows.
        order: The variables, causes first.
        score: Method of :func:`isospike.causal.scores.information`.

    Returns:
        The slopes, ``[parent, child]``.

    Raises:
        InputError: The score is unknown, or the rows are too few for it.

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
    """Select parents by F-tests of additive splines, with a controlled false discovery rate.

    For each variable, predecessors with a significant linear coefficient (t-test, regression on all
    predecessors) are accepted first; others are added by forward selection, largest F statistic
    first. Both tests use ``level`` divided by the number of candidates. A parent that fails the
    F-test in the final model is dropped, the weakest first. The rule of Benjamini and Hochberg is
    then applied to the whole graph; pairs that were not accepted count as failed tests.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> x[:, 1] += x[:, 0] ** 2
    >>> prune(x, np.array([0, 1]))[0]
    array([[False,  True],
           [False, False]])

    Args:
        x: The rows.
        order: The variables, causes first.
        level: Target false discovery rate, in (0, 1).
        count: Number of spline features of a parent; by default 8, fewer where there are few rows.
        forbidden: Edges that are never accepted, ``[parent, child]``.
        required: Edges that are always accepted.

    Returns:
        The graph ``[parent, child]``, and each variable's residuals given its parents.

    Raises:
        RangeError: ``level`` is out of range.
        MissingExtraError: SciPy is not installed.

    Reference: Buhlmann, Peters, Ernest (2014), CAM: causal additive models (the pruning step).
    """
    check_level("prune", level)
    d = x.shape[1]
    allowed = np.ones((d, d), bool) if forbidden is None else ~forbidden
    always = np.zeros((d, d), bool) if required is None else required
    selection = _Selection(x, order, level, count)
    p_value = np.ones((d, d))
    residuals = x - x.mean(0)
    for rank, child in enumerate(order):
        candidates = [int(p) for p in order[:rank] if allowed[p, child]]
        kept = [p for p in candidates if always[p, child]]
        total = residuals[:, child].copy()
        parents, fit = selection.forward(int(child), rank, candidates, kept, total)
        tests, residuals[:, child] = selection.backward(parents, fit, kept, len(candidates), total)
        p_value[list(tests), child] = list(tests.values())
    pairs = d * (d - 1) // 2
    ranked = np.sort(p_value[p_value < 1])
    passed = np.flatnonzero(ranked <= level * np.arange(1, len(ranked) + 1) / pairs)
    cut = ranked[passed[-1]] if len(passed) else -1.0
    return (p_value <= cut) | always, residuals


class _Selection:
    """Forward and backward selection of one variable's parents along an order."""

    def __init__(
        self,
        x: Float[np.ndarray, "n d"],
        order: Int[np.ndarray, "d"],
        level: float,
        count: int | None,
    ) -> None:
        n, d = x.shape
        self.count = count = max(1, min(MAX_FEATURES, n // 40)) if count is None else count
        self.rows, self.order, self.level = n, order, level
        self.tail = scipy("special", "prune").fdtrc  # P(F > f)
        self.linear = _linear_tests(x, order, self.tail)
        self.basis = np.empty((d, n, count))
        self.side = np.empty((n, d * count), order="F")  # the bases side by side, in the order
        for rank, i in enumerate(order):
            self.basis[i] = orthonormal(x[:, i], count)
            self.side[:, rank * count : (rank + 1) * count] = self.basis[i]
        self.room = min(MAX_PARENTS, (n // 2) // count)

    def forward(
        self, child: int, rank: int, candidates: list[int], kept: list[int], total: np.ndarray
    ) -> tuple[list[int], _Fit]:
        """``kept``, then linear parents, then the candidates that explain most of the residual."""
        order, count = self.order, self.count
        least = self.level / max(1, len(candidates))
        tested = sorted((float(self.linear[p, child]), p) for p in candidates)
        linear = [p for value, p in tested if value < least and p not in kept]
        parents = kept + linear[: max(0, self.room - len(kept))]
        residual, lost = _fit(self.basis, parents, total)
        while len(parents) < min(self.room, len(candidates)):
            gain = ((residual @ self.side[:, : rank * count]) ** 2).reshape(rank, count).sum(1)
            gain[~np.isin(order[:rank], candidates) | np.isin(order[:rank], parents)] = -1
            best = int(order[gain.argmax()])
            new, losses = _fit(self.basis, [*parents, best], total)
            free = self.rows - 1 - (len(parents) + 1) * count
            f = ((residual @ residual - new @ new) / count) / (new @ new / free)
            if self.tail(count, free, f) > least:
                break
            parents, residual, lost = [*parents, best], new, losses
        return parents, (residual, lost)

    def backward(
        self, parents: list[int], fit: _Fit, kept: list[int], candidates: int, total: np.ndarray
    ) -> tuple[dict[int, float], np.ndarray]:
        """The p-value of each parent in the final model, and the residual."""
        residual, lost = fit
        while parents:
            free = self.rows - 1 - len(parents) * self.count
            f = lost / (residual @ residual) * free / self.count
            p_value = self.tail(self.count, free, f)
            loose = [k for k, p in enumerate(parents) if p not in kept]
            weakest = min(loose, key=lambda k: f[k], default=None)
            if weakest is None or p_value[weakest] <= self.level / max(1, candidates):
                return dict(zip(parents, p_value.tolist(), strict=True)), residual
            parents = parents[:weakest] + parents[weakest + 1 :]
            residual, lost = _fit(self.basis, parents, total)
        return {}, residual


def _fit(
    basis: Float[np.ndarray, "d n count"], parents: list[int], v: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "parents"]]:
    """Residual of an additive regression, and the growth of its square sum without each parent."""
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
    """P-values of the linear weights ``[parent, child]`` in regressions on all predecessors.

    All follow from one factorisation ``C = L L^T`` of the ordered covariance: row r of ``L^-1`` is
    the regression of variable r, and its first r rows give the inverse covariance of the variables
    before it.
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
