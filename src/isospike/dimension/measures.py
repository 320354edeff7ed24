"""Effective dimension: the number of directions in which the rows of a table vary.

From the variances l along the principal axes, sorted from the largest:

(1)  PCA share           the fewest k with l_1 + ... + l_k >= share (l_1 + l_2 + ...)
(2)  participation ratio (sum l)^2 / sum l^2
(3)  spectral entropy    exp(-sum p ln p), p = l / sum l
(4)  stable rank         sum l / l_1

From the distances r_1 <= r_2 <= ... of a row to the other rows, so that a curved surface counts by
its own dimension:

(5)  TwoNN   slope through 0 of -ln(1 - i / N) against the i-th smallest ln(r_2 / r_1), the largest
             tenth left out
(6)  MLE     1 / mean over rows of (1 / (k - 1)) sum_{j < k} ln(r_k / r_j)

Every one of them is limited by the number of rows, and long before it equals that number. The field
``capped`` of an :class:`Estimate` says whether it was.

References: Roy, Vetterli (2007), The effective rank (3). Rudelson, Vershynin (2007), Sampling from
large matrices (4). Facco, d'Errico, Rodriguez, Laio (2017), Estimating the intrinsic dimension by
minimal neighbourhood information (5). Levina, Bickel (2004), Maximum likelihood estimation of
intrinsic dimension, averaged as MacKay and Ghahramani (2005) correct it (6).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import RangeError

ROWS_PER_DIMENSION = 10  # with fewer, the sample limits a spectral measure
BLOCK = 64  # rows whose neighbours are held at once

# ------------------------------------------------------------------- from variances


def pca_count(variances: Float[Tensor, "width"], share: float = 0.95) -> int:
    """(1): the number of principal components that hold a fraction of the variance.

    Args:
        variances: Variances along the principal axes, in any order.
        share: The fraction, in (0, 1]; 1 counts the variances above rounding.

    Returns:
        The number.

    Raises:
        RangeError: ``share`` is outside (0, 1], or there is no variance.

    >>> import torch
    >>> pca_count(torch.tensor([8.0, 1.5, 0.5]), share=0.9)
    2
    """
    if not 0 < share <= 1:
        raise RangeError(f"pca_count needs a share in (0, 1], got {share:g}. Try 0.95.")
    p = _shares(variances, "pca_count")
    return int((p.sort(descending=True).values.cumsum(0) < share - 1e-12).sum()) + 1


def participation_ratio(variances: Float[Tensor, "width"]) -> float:
    """(2): 1 if one axis has all the variance, the number of axes if all have the same.

    Args:
        variances: Variances along the principal axes, in any order.

    Returns:
        The ratio.

    Raises:
        RangeError: There is no variance.

    >>> import torch
    >>> participation_ratio(torch.tensor([1.0, 1.0, 0.0]))
    2.0
    """
    return float(1 / _shares(variances, "participation_ratio").square().sum())


def spectral_entropy(variances: Float[Tensor, "width"]) -> float:
    """(3), also called the effective rank; at least (2).

    Args:
        variances: Variances along the principal axes, in any order.

    Returns:
        The exponential of the entropy.

    Raises:
        RangeError: There is no variance.

    >>> import torch
    >>> spectral_entropy(torch.tensor([1.0, 1.0, 0.0]))
    2.0
    """
    p = _shares(variances, "spectral_entropy")
    return float(torch.special.entr(p).sum().exp())


def stable_rank(variances: Float[Tensor, "width"]) -> float:
    """(4): squared Frobenius over squared spectral norm of the centred rows; at most (2).

    Args:
        variances: Variances along the principal axes, in any order.

    Returns:
        The rank.

    Raises:
        RangeError: There is no variance.

    >>> import torch
    >>> stable_rank(torch.tensor([4.0, 1.0, 1.0]))
    1.5
    """
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

    Assumes: density constant up to a row's second neighbour. Equal rows count once.

    Args:
        rows: The table.

    Returns:
        The dimension.

    Raises:
        RangeError: Fewer than 3 different rows.

    >>> import torch
    >>> line = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    >>> round(two_nn(line @ torch.ones(1, 5)))
    1
    """
    return two_nn_of(nearest_distances(_distinct(rows, 3, "two_nn"), 2))


def mle(rows: Float[Tensor, "rows width"], neighbours: int = 20) -> float:
    """(6): intrinsic dimension from the distances to the ``neighbours`` nearest rows.

    Assumes: density constant over those neighbours. Equal rows count once.

    Args:
        rows: The table.
        neighbours: k, at least 2.

    Returns:
        The dimension.

    Raises:
        RangeError: ``neighbours < 2``, or not more different rows than neighbours.

    >>> import torch
    >>> plane = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    >>> round(mle(plane @ torch.ones(2, 5).tril()))
    2
    """
    if neighbours < 2:
        raise RangeError(f"mle needs at least 2 neighbours, got {neighbours}. Try 20.")
    return mle_of(nearest_distances(_distinct(rows, neighbours + 1, "mle"), neighbours))


def two_nn_of(nearest: Tensor) -> float:
    """(5) from the distances of each row to its two nearest, at least."""
    n = len(nearest)
    kept = max(1, int(0.9 * n))
    x = (nearest[:, 1] / nearest[:, 0]).log().sort().values[:kept]
    y = -torch.log1p(-torch.arange(1, kept + 1, dtype=x.dtype) / n)
    return float((x * y).sum() / x.square().sum().clamp_min(1e-300))


def mle_of(nearest: Tensor) -> float:
    """(6) from the distances of each row to its k nearest, ascending."""
    logs = nearest.log()
    terms = (logs[:, -1:] - logs[:, :-1]).mean(1)
    return float(1 / terms.mean().clamp_min(1e-300))


def _distinct(rows: Tensor, least: int, who: str) -> Tensor:
    different: Tensor = torch.unique(rows.double(), dim=0)
    if len(different) < least:
        raise RangeError(
            f"{who} needs at least {least} different rows, got {len(different)}. Give more of them."
        )
    return different


def nearest_distances(rows: Tensor, count: int) -> Tensor:
    """Distances to the nearest other rows, ``[rows, count]``, ascending."""
    rows = rows - rows.mean(0)
    squares = rows.square().sum(1)
    distances = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        # The product finds the near rows; it rounds small distances away.
        rough = torch.addmm(squares[None], block, rows.t(), alpha=-2)
        rough[torch.arange(len(block)), start + torch.arange(len(block))] = math.inf
        near = rows[rough.topk(count, largest=False).indices]
        distances.append((near - block[:, None]).norm(dim=-1).sort().values)
    return torch.cat(distances)


def is_capped(count: float, rows: int) -> bool:
    """Whether a spectral measure is limited by the number of rows: fewer than ten a dimension.

    Args:
        count: The measure.
        rows: Number of rows.

    Returns:
        True if more rows would raise the measure.

    >>> is_capped(86.0, rows=100)
    True
    """
    return rows < ROWS_PER_DIMENSION * count


def is_capped_intrinsic(dimension: float, rows: int) -> bool:
    """Whether an intrinsic dimension is limited by the rows: ``rows < 10^(dimension / 2)``.

    Args:
        dimension: The dimension.
        rows: Number of rows.

    Returns:
        True if more rows would raise it.

    Reference: Eckmann, Ruelle (1992), Fundamental limitations for estimating dimensions.

    >>> is_capped_intrinsic(7.0, rows=1000)
    True
    """
    return dimension > 2 * math.log10(rows)
