"""Minimum-diagonal symmetric elimination: a causal order from one matrix.

Let x_i = f_i(parents of i) + e_i with independent noises of one variance s2, and let

(1)  I = E[-grad^2 log p(x)]        the score's mean Jacobian, negated: the information matrix

A leaf, a variable without children, has the smallest diagonal entry, I_ll = 1 / s2; every other
entry is larger by the contributions of the variable's children. Removing a leaf from a linear model
is a Schur complement,

(2)  I <- I_SS - I_Sl I_lS / I_ll

which is the information matrix of the remaining variables, so the rule can be applied again. From
the roots the same elimination runs on the covariance, where a root has the smallest diagonal entry.

Adjacency matrices are ``[parent, child]`` throughout, and an order names causes first.

Reference: Ghoshal, Honorio (2018), Learning linear structural equation models in polynomial time
and sample complexity; Chen, Drton, Wang (2019), On causal discovery with an equal-variance
assumption (from the roots); Wu, Xie (2026), arXiv 2604.25295 (score Jacobians, blocks).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isospike.errors import InputError, RangeError, ShapeError
from isospike.kernels.elimination import NOT_POSITIVE, STUCK, eliminate, start

PANEL = 128  # pivots between two updates of the remaining matrix, which are matrix products


class SchurOrder(NamedTuple):
    """An order of variables and how clear each choice was.

    Attributes:
        order: The variables, causes first.
        layers: The variables in groups that were removed in one step; causes first.
        pivots: Diagonal entry of each variable when it was removed: the precision of its noise, or
            the variance of its noise where elimination starts at the roots.
        margins: Distance of each variable's diagonal entry to the next larger one of those that
            could be chosen at that step, relative to the entry; infinite where there was no other,
            as for the last variable. A margin near 0 means that the choice was arbitrary.

    >>> SchurOrder(np.array([1, 0]), ((1,), (0,)), np.ones(2), np.ones(2)).order.tolist()
    [1, 0]
    """

    order: Int[np.ndarray, "d"]
    layers: tuple[tuple[int, ...], ...]
    pivots: Float[np.ndarray, "d"]
    margins: Float[np.ndarray, "d"]


def schur_sort(
    matrix: Float[np.ndarray, "d d"],
    *,
    top_down: bool = False,
    ridge: float = 0.0,
    gamma: float = 0.0,
    before: Bool[np.ndarray, "d d"] | None = None,
) -> SchurOrder:
    """Order variables by eliminating the smallest diagonal entry, again and again.

    Only the diagonal is kept up to date. The column of a pivot is computed when it is chosen, and
    the remaining matrix is updated once in 128 pivots, by matrix products on torch's threads.

    >>> import numpy as np
    >>> schur_sort(np.array([[2.0, -1.0], [-1.0, 1.0]])).order.tolist()  # 0 -> 1
    [0, 1]

    Args:
        matrix: The information matrix (1); with ``top_down`` the covariance. Symmetric.
        top_down: Whether to remove roots first instead of leaves.
        ridge: Value added to each pivot in (2), in units of the matrix. At least 0.
        gamma: Variables whose entry is within this relative tolerance of the smallest one are
            removed in the same step (the blocks of the paper, which uses .05). With 0 only equal
            entries are.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Returns:
        The order. Equal entries are taken by index.

    Raises:
        ShapeError: The matrix is not square, or ``before`` has another shape.
        RangeError: The matrix is not symmetric, not finite or not positive definite, or an option
            is out of range.
        InputError: ``before`` has a cycle.
    """
    d = _check_symmetric(matrix, "schur_sort")
    if not (ridge >= 0 and gamma >= 0):
        raise RangeError(
            f"schur_sort needs ridge and gamma >= 0, got {ridge} and {gamma}. Use 0 for neither."
        )
    if before is not None and before.shape != (d, d):
        raise ShapeError(
            f"schur_sort needs before of shape {(d, d)}, got {before.shape}. Give it a row and a "
            "column for each variable of the matrix."
        )
    # Which variables must be removed first, from the end where elimination starts.
    ahead = np.empty((0, 0), bool)
    if before is not None:
        ahead = np.ascontiguousarray(before if top_down else before.T)
    state = start(matrix.astype(np.float64), ahead)
    floor = 1e-13 * float(state.diagonal.max())
    for removed in range(0, d, PANEL):
        status = eliminate(state, min(PANEL, d - removed), floor, ridge, gamma)
        _check_status(status, state)
    cuts = np.split(state.order, np.flatnonzero(state.first)[1:])
    blocks = [tuple(int(i) for i in block) for block in cuts]
    layers = blocks if top_down else [block[::-1] for block in reversed(blocks)]
    order = np.array([i for layer in layers for i in layer], np.int64)
    return SchurOrder(order, tuple(layers), state.pivots, state.margins)


def schur_complement(
    matrix: Float[np.ndarray, "d d"], remove: Int[np.ndarray, "r"], ridge: float = 0.0
) -> Float[np.ndarray, "s s"]:
    """``I_SS - I_SB (I_BB + ridge)^-1 I_BS``: (2) for several variables B at once.

    For a precision matrix the result is the precision matrix of the remaining variables' marginal.

    >>> import numpy as np
    >>> schur_complement(np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([1]))
    array([[1.]])

    Args:
        matrix: A symmetric matrix.
        remove: Indices of the variables B.
        ridge: Value added to the diagonal of the removed block.

    Returns:
        The matrix of the remaining variables, in their order.

    Raises:
        ShapeError: The matrix is not square.
        RangeError: The matrix is not symmetric or not finite.
    """
    d = _check_symmetric(matrix, "schur_complement")
    keep = np.setdiff1d(np.arange(d), remove)
    block = matrix[np.ix_(remove, remove)] + ridge * np.eye(len(remove))
    across = matrix[np.ix_(remove, keep)]
    rest: Float[np.ndarray, "s s"] = matrix[np.ix_(keep, keep)]
    return np.asarray(rest - across.T @ np.linalg.solve(block, across))


def leaf_rows(
    information: Float[np.ndarray, "d d"], order: Int[np.ndarray, "d"]
) -> Float[np.ndarray, "d d"]:
    """Linear weights from the rows of the leaves: ``w[j, l] = -I_lj / I_ll`` when l is the leaf.

    For a precision matrix the weights are the coefficients of the regression of l on all variables
    before it.

    >>> import numpy as np
    >>> float(leaf_rows(np.array([[2.0, -1.0], [-1.0, 1.0]]), np.array([0, 1]))[0, 1])
    1.0

    Args:
        information: A positive definite matrix.
        order: The variables, causes first; elimination starts at the end.

    Returns:
        Weights ``[parent, child]``; zero unless the parent comes first.

    Raises:
        ShapeError: The matrix is not square.
        RangeError: The matrix is not symmetric, not finite or not positive definite.
    """
    d = _check_symmetric(information, "leaf_rows")
    back = order[::-1]
    try:
        # Cholesky is the same elimination in a given order.
        lower = np.linalg.cholesky(information[np.ix_(back, back)])
    except np.linalg.LinAlgError:
        raise RangeError(
            "leaf_rows needs a positive definite matrix, got one that is not. Give more rows, "
            "or use information='shrinkage' with correction='mean'."
        ) from None
    weights = np.zeros((d, d))
    weights[np.ix_(back, back)] = -lower / lower.diagonal()
    weights[np.diag_indices(d)] = 0
    return weights


def sample_sort(
    jacobians: Float[np.ndarray, "n d d"],
    winsorise: float = 0.0,
    before: Bool[np.ndarray, "d d"] | None = None,
) -> SchurOrder:
    """Order variables, leaves first, by Schur complements in the Jacobian of every row.

    (3)  H_n <- H_n - h_n h_n^T / mean(H_ll),  h_n the leaf's column in row n

    The next leaf has the smallest mean diagonal entry. Exact where each function is a sum over its
    parents. With interactions the noise of h is squared; winsorising limits it.

    >>> import numpy as np
    >>> sample_sort(np.array([[[2.0, -1.0], [-1.0, 1.0]]] * 3)).order.tolist()  # 0 -> 1
    [0, 1]

    Args:
        jacobians: ``-grad^2 log p`` at every row.
        winsorise: Share of the rows, the most extreme ones, whose entries of h are replaced by the
            nearest other entries.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Returns:
        The order.

    Raises:
        RangeError: A diagonal entry is not positive.
    """
    n, d, _ = jacobians.shape
    h = jacobians.astype(np.float64)
    ahead = np.zeros((d, d), bool) if before is None else before
    left, waiting = np.ones(d, bool), ahead.sum(1)
    pivots, margins, back = np.empty(d), np.empty(d), []
    while left.any():
        value = np.where(left & (waiting == 0), np.einsum("nii->i", h) / n, np.inf)
        p = int(value.argmin())
        if not value[p] > 0 or not np.isfinite(value[p]):
            raise RangeError(
                f"sample_sort needs positive mean diagonals, got {value[p]:.3g} at variable {p}. "
                "Smooth the score, or use correction='mean'."
            )
        left[p] = False
        back.append(p)
        waiting = waiting - ahead[:, p]
        pivots[p] = value[p]
        margins[p] = value[left].min(initial=np.inf) / value[p] - 1
        column = h[:, :, p].copy()
        if winsorise:
            low, high = np.quantile(column, [winsorise / 2, 1 - winsorise / 2], axis=0)
            column = np.clip(column, low, high)
        column[:, ~left] = 0
        h -= column[:, :, None] * column[:, None, :] / value[p]  # (3)
    order = np.array(back[::-1], np.int64)
    return SchurOrder(order, tuple((int(i),) for i in order), pivots, margins)


def _check_status(status: int, state: Any) -> None:
    if status == STUCK:
        raise InputError(
            "schur_sort needs constraints without a cycle, got a cycle in before. Remove one of "
            "them."
        )
    if status == NOT_POSITIVE:
        name = int(state.order[state.line[2]])
        raise RangeError(
            f"schur_sort needs a positive definite matrix, got the pivot "
            f"{state.diagonal[state.places[name]]:.3g} of variable {name}. Give more rows, or use "
            "information='shrinkage' with correction='mean'."
        )


def _check_symmetric(matrix: Float[np.ndarray, "..."], who: str) -> int:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ShapeError(
            f"{who} needs a square matrix, got shape {matrix.shape}. Give one row and one column "
            "for each variable."
        )
    if not np.isfinite(matrix).all():
        raise RangeError(
            f"{who} needs finite numbers, got {int((~np.isfinite(matrix)).sum())} that are not. "
            "Remove the rows of data that gave them."
        )
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > 1e-8 * float(np.abs(matrix).max()):
        raise RangeError(
            f"{who} needs a symmetric matrix, got entries {gap:.3g} apart. Average it with its "
            "transpose."
        )
    return len(matrix)
