"""Measures of collapse: similar tokens, and attention that mixes all tokens or attends to one.

A rank cannot show collapse: real representations have full rank and may still lie near a line. For
rows X ``[n, d]`` with mean row m and singular values s:

(1)  residual        composite(X - 1 m^T) / composite(X),  composite = sqrt(|.|_1 |.|_inf)
(2)  mu              |X - 1 m^T|_F / |X|_F
(3)  cosine          mean over pairs of rows
(4)  entropic rank   exp(-sum p ln p), p = s / sum s: of the singular values, not their squares
(5)  stable rank     sum s^2 / s_1^2;  participation ratio (sum s^2)^2 / sum s^4

(4) and (5) are not centred on purpose: an offset common to all rows makes them small.

References: Dong, Cordonnier, Loukas (2021), Attention is not all you need (1). Wu, Ajorlou, Wu,
Jadbabaie (2024), On the role of attention masks and LayerNorm in transformers, mu, here over the
norm of X (2). Roy, Vetterli (2007), The effective rank (4). Nait Saada, Naderi, Tanner (2024), Mind
the gap, the spectral gap of attention. Zhai et al. (2023), Stabilizing transformer training by
preventing attention entropy collapse.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.dimension import participation_ratio, spectral_entropy, stable_rank
from isospike.errors import RangeError, ShapeError
from isospike.tensors import check_floating


class Collapse(NamedTuple):
    """The measures (1) to (5) of one matrix.

    Attributes:
        residual: Dong's residual (1): 0 if all rows are equal.
        mu: The same in the Frobenius norm (2).
        cosine: Mean cosine of two rows (3); NaN for fewer than two rows that are not zero.
        entropic: Entropic rank (4).
        stable: Stable rank (5).
        participation: Participation ratio (5).

    >>> measure_collapse(torch.ones(3, 2)).residual
    0.0
    """

    residual: float
    mu: float
    cosine: float
    entropic: float
    stable: float
    participation: float


def measure_collapse(rows: Tensor) -> Collapse:
    """Measure (1) to (5).

    >>> measure_collapse(torch.ones(3, 4)).cosine  # equal rows
    1.0

    Args:
        rows: ``[n, d]``, finite, not all zero.

    Returns:
        The measures.

    Raises:
        ShapeError: ``rows`` does not have two axes, or is empty.
        RangeError: A value is NaN or infinite, or all are zero.
    """
    check_floating("measure_collapse", "rows", rows, read=True)
    if rows.dim() != 2 or not rows.numel():
        raise ShapeError(
            f"measure_collapse needs a matrix [rows, columns], got shape {list(rows.shape)}. Give "
            "one row for each token."
        )
    x = rows.detach().double().cpu()
    top = float(x.abs().max())
    if not 0 < top < torch.inf:
        raise RangeError(
            f"measure_collapse needs finite rows that are not all zero, got a maximum of {top}. "
            "Leave such rows out."
        )
    x = x / top
    centred = x - x.mean(0)
    centred = centred.masked_fill(centred.abs() < 4 * torch.finfo(torch.float64).eps, 0.0)
    norms = x.norm(dim=1)
    units = x[norms > 0] / norms[norms > 0, None]
    n = len(units)
    cosine = (float(units.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else float("nan")
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    squares = torch.linalg.eigvalsh(gram).clamp_min(0)
    return Collapse(
        residual=_composite(centred) / _composite(x),
        mu=float(centred.norm() / x.norm()),
        cosine=max(-1.0, min(1.0, cosine)) if n > 1 else cosine,
        entropic=spectral_entropy(squares.sqrt()),
        stable=stable_rank(squares),
        participation=participation_ratio(squares),
    )


def _composite(x: Tensor) -> float:
    size = x.abs()
    return float((size.sum(0).max() * size.sum(1).max()).sqrt())


class MapMeasures(NamedTuple):
    """Measures of attention maps, head by head.

    Attributes:
        ratio: Second singular value over the first. Near 0 every token gets the same mixture (width
            collapse).
        entropy: Entropy of a row over that of uniform attention, mean over rows that see more than
            one key. Near 0 every token attends to one other (entropy collapse). NaN for one row.

    >>> MapMeasures(ratio=(0.02,), entropy=(1.0,)).ratio[0] < 0.1  # nearly one mixture for all
    True
    """

    ratio: tuple[float, ...]
    entropy: tuple[float, ...]


def measure_maps(maps: Float[Tensor, "heads n m"]) -> MapMeasures:
    """The spectral gap and the row entropy of attention maps.

    >>> measure_maps(torch.full((1, 4, 4), 0.25)).entropy  # uniform attention
    (1.0,)

    Args:
        maps: Rows of weights that sum to 1, of n queries and m keys. Square maps with zeros above
            the diagonal count as causal.

    Returns:
        The measures.

    Raises:
        InputError: ``maps`` is not a tensor.
        ShapeError: Not ``[heads, n, m]``, or empty.
        RangeError: A weight is NaN, infinite or negative.
    """
    check_floating("measure_maps", "maps", maps, read=True)
    if maps.dim() != 3 or not maps.numel():
        raise ShapeError(
            f"measure_maps needs maps [heads, n, m], got {list(maps.shape)}. Give one sequence's "
            "maps of a layer."
        )
    a = maps.detach().double().cpu()
    if not bool(((a >= 0) & a.isfinite()).all()):
        raise RangeError(
            f"measure_maps needs finite weights of at least 0, got {float(a.min())} to "
            f"{float(a.max())}. Give maps after their softmax."
        )
    n, m = a.shape[1:]
    squares = torch.linalg.eigvalsh(a @ a.mT if n <= m else a.mT @ a).clamp_min(0)
    ratio = (squares[:, -2] / squares[:, -1]).sqrt() if min(n, m) > 1 else torch.zeros(len(a))
    causal = n == m and bool((a.triu(1) == 0).all())
    seen = torch.arange(1, n + 1) if causal else torch.full((n,), m)
    several = seen > 1
    rows = torch.special.entr(a).sum(-1)[:, several] / seen[several].double().log()
    return MapMeasures(tuple(ratio.tolist()), tuple(rows.mean(1).tolist()))


def generic_rank(
    tokens: int, width: int, rank: int, heads: int, head_width: int, *, bias: bool = False
) -> tuple[int, int]:
    """Rank of an attention's output Z and of X + Z, for almost all weights.

    (6)  rank Z = min(n, d, H min(r, d_k)),  rank (X + Z) = min(n, d, r + H min(r, d_k))

    **Claim** (arXiv 2604.23681): generically ``rank(X + Z) > rank(X)``.
    **Assumes**, without saying so: r < min(n, d), and attention maps that differ. X and Z are
    functions of the same tokens, so identical rows stay identical whatever the weights.
    **Source**: the abstract; (6) is ours, measured.
    **Test**: ``tests/test_rank_collapse.py``.

    >>> generic_rank(tokens=512, width=384, rank=10, heads=2, head_width=32)
    (20, 30)

    Args:
        tokens: Number of tokens n.
        width: Width of the model, d.
        rank: Rank r of the rows that attention reads; with ``bias`` their affine rank.
        heads: Number of heads H.
        head_width: Width of a head, d_k.
        bias: Whether values and output have a bias; that of the output adds a direction.

    Returns:
        The ranks of Z and of X + Z.

    Raises:
        RangeError: A size is not positive, or the rank is negative.
    """
    sizes = {"tokens": tokens, "width": width, "heads": heads, "head_width": head_width}
    for name, value in sizes.items():
        if value < 1:
            raise RangeError(
                f"generic_rank needs {name} >= 1, got {value}. Give the model's {name}."
            )
    if rank < 0:
        raise RangeError(f"generic_rank needs rank >= 0, got {rank}. Use 0 for rows of zeros.")
    read = heads * min(rank, head_width) + bias
    return min(tokens, width, read), min(tokens, width, rank + read)
