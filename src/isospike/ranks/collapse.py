"""How near to collapse: tokens that are alike, attention that mixes all or looks at one.

A rank does not see it coming: real representations have full rank and may still lie near a line.
Of rows X ``[n, d]`` with mean row m and singular values s:

(1)  residual        composite(X - 1 m^T) / composite(X),  composite = sqrt(|.|_1 |.|_inf)
(2)  mu              |X - 1 m^T|_F / |X|_F
(3)  cosine          mean over pairs of rows
(4)  entropic rank   exp(-sum p ln p), p = s / sum s: of the singular values, not their squares
(5)  stable rank     sum s^2 / s_1^2;  participation ratio (sum s^2)^2 / sum s^4

None of (4) and (5) is centred: a common offset of all rows makes them small, and is meant to.

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


class Collapse(NamedTuple):
    """(1) to (5) of one table; see the module's head.

    ``cosine`` is NaN of fewer than two rows that are not zero.
    """

    residual: float
    mu: float
    cosine: float
    entropic: float
    stable: float
    participation: float


def collapse(X: Tensor) -> Collapse:
    """Measure (1) to (5).

    Args:
        X: ``[n, d]``, finite, not all zero.

    Raises:
        ShapeError: Not two axes, or none of one.
        RangeError: NaN or infinity, or nothing but zeros.
    """
    if X.dim() != 2 or not X.numel():
        raise ShapeError(f"collapse needs X [rows, columns], got shape {list(X.shape)}.")
    x = X.detach().double().cpu()
    top = float(x.abs().max())
    if not 0 < top < torch.inf:
        raise RangeError(
            f"collapse needs finite rows that are not all zero, got a maximum of {top}."
        )
    x = x / top
    rest = x - x.mean(0)
    rest = rest.masked_fill(rest.abs() < 4 * torch.finfo(torch.float64).eps, 0.0)
    norms = x.norm(dim=1)
    units = x[norms > 0] / norms[norms > 0, None]
    n = len(units)
    cosine = (float(units.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else float("nan")
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    squares = torch.linalg.eigvalsh(gram).clamp_min(0)
    return Collapse(
        residual=_composite(rest) / _composite(x),
        mu=float(rest.norm() / x.norm()),
        cosine=max(-1.0, min(1.0, cosine)) if n > 1 else cosine,
        entropic=spectral_entropy(squares.sqrt()),
        stable=stable_rank(squares),
        participation=participation_ratio(squares),
    )


def _composite(x: Tensor) -> float:
    size = x.abs()
    return float((size.sum(0).max() * size.sum(1).max()).sqrt())


class MapMeasures(NamedTuple):
    """Of attention maps, head by head.

    Attributes:
        ratio: Second singular value over the first: near 0, every token gets the same mixture
            (width collapse).
        entropy: Mean over rows of the entropy over that of uniform attention, rows that see one
            key left out: near 0, every token looks at one (entropy collapse). NaN of one row.
    """

    ratio: tuple[float, ...]
    entropy: tuple[float, ...]


def measure_maps(maps: Float[Tensor, "heads n n"]) -> MapMeasures:
    """The spectral gap and the row entropy of attention maps.

    Args:
        maps: Rows of weights that sum to one; causal if nothing lies above the diagonal.
    """
    a = maps.detach().double().cpu()
    n = a.shape[-1]
    squares = torch.linalg.eigvalsh(a @ a.transpose(1, 2)).clamp_min(0)
    ratio = (squares[:, -2] / squares[:, -1]).sqrt() if n > 1 else torch.zeros(len(a))
    causal = bool((a.triu(1) == 0).all())
    seen = torch.arange(1, n + 1) if causal else torch.full((n,), n)
    several = seen > 1
    rows = torch.special.entr(a).sum(-1)[:, several] / seen[several].double().log()
    return MapMeasures(tuple(ratio.tolist()), tuple(rows.mean(1).tolist()))


def generic_rank(
    tokens: int, width: int, rank: int, heads: int, head_width: int, *, bias: bool = False
) -> tuple[int, int]:
    """Rank of an attention's output Z and of X + Z, for almost all weights.

    (6)  rank Z = min(n, d, H min(r, d_k)),  rank (X + Z) = min(n, d, r + H min(r, d_k))

    **Claim** (arXiv 2604.23681): generically ``rank(X + Z) > rank(X)``.
    **Assumes**, which it does not say: r < min(n, d), and attention maps that differ. X and Z are
    functions of the same tokens, so identical rows stay identical whatever the weights.
    **Source**: the abstract; (6) is ours, measured.
    **Test**: ``tests/test_rank_collapse.py``.

    Args:
        tokens: n.
        width: d.
        rank: r of the rows that attention reads; with ``bias``, their affine rank.
        heads: H.
        head_width: d_k.
        bias: Whether values and output have one; the last adds a direction.
    """
    sizes = {"tokens": tokens, "width": width, "heads": heads, "head_width": head_width}
    for name, value in sizes.items():
        if value < 1:
            raise RangeError(f"generic_rank needs {name} >= 1, got {value}.")
    if rank < 0:
        raise RangeError(f"generic_rank needs rank >= 0, got {rank}.")
    read = heads * min(rank, head_width) + bias
    return min(tokens, width, read), min(tokens, width, rank + read)
