"""Information matrices from data: what :func:`isospike.causal.schur.schur_sort` eliminates.

For smooth densities the negated mean Jacobian of the score equals the score's covariance,
E[-ds/dx] = E[s s^T]. So any score gives a positive semidefinite matrix without a Jacobian. For
Gaussian data the matrix is the inverse covariance, which is the default and the reference: its
Schur complements are exactly the inverse covariances of the marginals.
"""

import math
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from isospike.causal.denoising import denoising_score
from isospike.errors import InputError, MissingExtraError

SCORES = ("precision", "shrinkage", "glasso", "stein", "denoising")


def information(x: Float[np.ndarray, "n d"], score: str = "precision") -> Float[np.ndarray, "d d"]:
    """Estimate E[-grad^2 log p] by one of five methods.

    =========  ==================================================================================
    precision  the inverse covariance; needs more rows than columns
    shrinkage  the same, shrunk towards the identity by the rule of Ledoit and Wolf
    glasso     sparse, by the graphical lasso on the correlations
    stein      covariance of Stein's kernel estimate of the score; memory and time of n^2 and n^3
    denoising  mean Jacobian of a network (:func:`isospike.causal.denoising.denoising_score`)
    =========  ==================================================================================

    >>> import numpy as np
    >>> information(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).round(6)
    array([[1.5, 0. ],
           [0. , 1.5]])

    Args:
        x: The rows.
        score: A name from the table.

    Returns:
        The information matrix, symmetric.

    Raises:
        InputError: The score is unknown, the columns are linearly dependent, or there are too few
            rows for ``precision``.
        MissingExtraError: ``shrinkage`` or ``glasso`` without scikit-learn.
    """
    if score == "precision":
        return precision(x)
    if score == "shrinkage":
        covariance, _ = _covariance_module().ledoit_wolf(x)
        return _inverse(covariance)
    if score == "glasso":
        return graphical_lasso(x)
    if score == "stein":
        return score_covariance(stein_score(x))
    if score == "denoising":
        draw = torch.Generator().manual_seed(0)
        return denoising_score(x, generator=draw).information(x)
    raise InputError(
        f"information needs a score among {', '.join(SCORES)}, got {score!r}. Choose one of them."
    )


def precision(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """Inverse of the covariance.

    Args:
        x: The rows.

    Returns:
        The inverse covariance.

    Raises:
        InputError: There are no more rows than columns, or columns are linearly dependent.
    """
    n, d = x.shape
    if n <= d:
        raise InputError(
            f"precision needs more rows than columns, got {n} rows and {d} columns. Use the score "
            "shrinkage or glasso (with the correction mean)."
        )
    return _inverse(np.atleast_2d(np.cov(x, rowvar=False)))


def graphical_lasso(
    x: Float[np.ndarray, "n d"], penalty: float | None = None
) -> Float[np.ndarray, "d d"]:
    """Sparse inverse covariance, penalised on the scale of correlations.

    Args:
        x: The rows.
        penalty: Weight of each off-diagonal entry; ``sqrt(log d / n)`` by default.

    Returns:
        The sparse inverse covariance, in the units of the data.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    n, d = x.shape
    if penalty is None:
        penalty = math.sqrt(math.log(max(2, d)) / n)
    scale = x.std(0)
    correlation = np.atleast_2d(np.corrcoef(x, rowvar=False))
    # Strong correlations need the inner problems solved to more digits than by default.
    _, sparse = _covariance_module().graphical_lasso(
        correlation, penalty, enet_tol=1e-8, max_iter=300
    )
    return np.asarray(sparse / np.outer(scale, scale))


def score_covariance(scores: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """``mean of s s^T``: the information matrix of any score, positive semidefinite.

    Args:
        scores: ``grad log p`` at each row.

    Returns:
        The information matrix.
    """
    return np.asarray(scores.T @ scores / len(scores))


def stein_score(
    x: Float[np.ndarray, "n d"], width: float | None = None, ridge: float = 0.01
) -> Float[np.ndarray, "n d"]:
    """``grad log p`` at the rows by Stein's identity with a Gaussian kernel.

    (1)  G = -(K + ridge I)^-1 sum_m grad_m k(x_m, .)

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> bool(np.corrcoef(stein_score(x)[:, 0], -x[:, 0])[0, 1] > 0.7)  # a Gaussian's is -x
    True

    Args:
        x: The rows.
        width: Width of the kernel; the median distance of two rows by default.
        ridge: Regularisation against noise; it shrinks the score towards 0.

    Returns:
        The score at each row.

    Reference: Li, Turner (2018), Gradient estimators for implicit models.
    """
    n = len(x)
    norms = (x**2).sum(1)
    square = np.maximum(norms[:, None] + norms - 2 * x @ x.T, 0)
    if width is None:
        width = math.sqrt(float(np.median(square[np.triu_indices(n, 1)])))
    kernel = np.exp(-square / (2 * width**2))
    # The gradient of k(x_m, x_j) with respect to x_m, summed over m: (x_j - x_m) k / width^2.
    slope = (kernel.sum(1)[:, None] * x - kernel @ x) / width**2
    return np.linalg.solve(kernel + ridge * np.eye(n), -slope)


def _inverse(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    scale = np.sqrt(covariance.diagonal())
    correlation = covariance / np.outer(scale, scale)
    try:
        lower = np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError:
        lower = np.zeros_like(correlation)
    if lower.diagonal().min() < 1e-6:  # R^2 of 1 - 1e-12 with the columns before
        raise InputError(
            "precision needs linearly independent columns, got some that are linear combinations "
            "of others. Drop them, or use the score shrinkage."
        )
    root = np.linalg.inv(lower)
    inverse: Float[np.ndarray, "d d"] = root.T @ root / np.outer(scale, scale)
    return inverse


def _covariance_module() -> Any:
    try:
        return import_module("sklearn.covariance")
    except ImportError:
        raise MissingExtraError(
            "score needs the package scikit-learn, got none. Install isospike[causal]."
        ) from None
