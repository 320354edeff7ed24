"""Minimum-diagonal symmetric elimination: a causal order from one matrix.

Let x_i = f_i(parents of i) + e_i with independent noises of one variance s2, and let

(1)  I = E[-grad^2 log p(x)]        the score's mean Jacobian, negated: the information matrix

A leaf, a variable without children, has the smallest diagonal entry, I_ll = 1 / s2; every other has
that plus what its children add. Removing a leaf from a linear model is a Schur complement,

(2)  I <- I_SS - I_Sl I_lS / I_ll

which is the information matrix of the remaining variables, so the rule can be applied again. From
the roots the same elimination runs on the covariance, where a root has the smallest diagonal entry.

Adjacency matrices are ``[parent, child]`` throughout, and an order names causes first.

Reference: Ghoshal, Honorio (2018), Learning linear structural equation models in polynomial time
and sample complexity; Chen, Drton, Wang (2019), On causal discovery with an equal-variance
assumption (from the roots); Wu, Xie (2026), arXiv 2604.25295 (score Jacobians, blocks).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isospike.errors import RangeError, ShapeError
from isospike.kernels.elimination import NOT_POSITIVE, STUCK, eliminate, start

PANEL = 128  # pivots between two updates of the rest: most of the work is then matrix products


class SchurOrder(NamedTuple):
    """What :func:`schur_sort` finds.

    Attributes:
        order: The variables, causes first.
        layers: The same, grouped into what was removed at once; causes first.
        pivots: Diagonal entry of each variable at its removal, by variable: its noise's precision,
            or its variance from the roots.
        margins: By variable, how far the next smallest diagonal entry lay above the variable's own,
            relative to it; infinite for the last one left. Near 0, the choice was a toss-up.
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

    Only the diagonal is kept up to date. The column of a pivot is made when it is chosen, and what
    is left is updated once in 128 pivots, by matrix products on torch's threads.

    Args:
        matrix: The information matrix (1); with ``top_down`` the covariance. Symmetric.
        top_down: Find roots first instead of leaves.
        ridge: Added to each pivot in (2), in units of the matrix. At least 0.
        gamma: Variables within ``gamma`` of the smallest entry, relative to it, are removed at
            once: the paper's blocks, there .05. At 0 only equal ones are.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Returns:
        The order. Equal entries are taken by index.

    Raises:
        ShapeError: Not square, or ``before`` of another shape.
        RangeError: Not symmetric or not finite, a pivot that is not positive (the matrix is not
            positive definite), an option out of range, or ``before`` with a cycle.
    """
    d = _check_symmetric(matrix, "schur_sort")
    if not (ridge >= 0 and gamma >= 0):
        raise RangeError(f"schur_sort needs ridge and gamma >= 0, got {ridge} and {gamma}.")
    if before is not None and before.shape != (d, d):
        raise ShapeError(f"schur_sort needs before of shape {(d, d)}, got {before.shape}.")
    # Who goes first, from the end where elimination starts.
    ahead = np.empty((0, 0), bool)
    if before is not None:
        ahead = np.ascontiguousarray(before if top_down else before.T)
    state = start(matrix.astype(np.float64), ahead)
    floor = 1e-13 * float(state.diagonal.max())
    for gone in range(0, d, PANEL):
        said = eliminate(state, min(PANEL, d - gone), floor, ridge, gamma)
        if said == STUCK:
            raise RangeError("schur_sort needs an order that can be kept, got a cycle.")
        if said == NOT_POSITIVE:
            name = int(state.order[state.line[2]])
            raise RangeError(
                f"schur_sort needs a positive definite matrix, got the pivot "
                f"{state.diagonal[state.places[name]]:.3g} of variable {name}. Give more rows, or "
                "shrink the matrix (score='shrinkage')."
            )
    cuts = np.split(state.order, np.flatnonzero(state.first)[1:])
    blocks = [tuple(int(i) for i in block) for block in cuts]
    layers = blocks if top_down else [block[::-1] for block in reversed(blocks)]
    order = np.array([i for layer in layers for i in layer], np.int64)
    return SchurOrder(order, tuple(layers), state.pivots, state.margins)


def schur_complement(
    matrix: Float[np.ndarray, "d d"], remove: Int[np.ndarray, "r"], ridge: float = 0.0
) -> Float[np.ndarray, "s s"]:
    """``I_SS - I_SB (I_BB + ridge)^-1 I_BS``: (2) for several variables B at once.

    Of a precision matrix this is the precision matrix of the others' marginal.

    Args:
        matrix: Symmetric.
        remove: The variables B.
        ridge: Added to the diagonal of the removed block.

    Returns:
        The matrix of the others, in their order.
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
    """Linear weights read off the leaf rows: ``w[j, l] = -I_lj / I_ll`` when l is the leaf.

    For a precision matrix these are the coefficients of the regression of l on all before it.

    Args:
        information: Positive definite.
        order: Causes first; the elimination runs from its end.

    Returns:
        Weights ``[parent, child]``; zero unless the parent comes first.

    Raises:
        RangeError: Not positive definite.
    """
    d = _check_symmetric(information, "leaf_rows")
    back = order[::-1]
    try:
        # Cholesky is the same elimination, the order given.
        lower = np.linalg.cholesky(information[np.ix_(back, back)])
    except np.linalg.LinAlgError:
        raise RangeError(
            "leaf_rows needs a positive definite matrix, got one that is not. Shrink it."
        ) from None
    weights = np.zeros((d, d))
    weights[np.ix_(back, back)] = -lower / lower.diagonal()
    weights[np.diag_indices(d)] = 0
    return weights


def _check_symmetric(matrix: Float[np.ndarray, "..."], who: str) -> int:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ShapeError(f"{who} needs a square matrix, got shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise RangeError(
            f"{who} needs finite numbers, got {int((~np.isfinite(matrix)).sum())} not."
        )
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > 1e-8 * float(np.abs(matrix).max()):
        raise RangeError(
            f"{who} needs a symmetric matrix, got entries {gap:.3g} apart. Average it with its "
            "transpose."
        )
    return len(matrix)
