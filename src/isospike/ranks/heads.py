"""Which heads can be identified from their sum, the output of attention.

The heads' outputs Y = [Y^1 .. Y^H], ``[n, H d_k]``, leave as Z = Y W_O, W_O ``[H d_k, d]``. Given Z
and W_O, and with W^h the rows of head h and W^-h the others:

(1)  dim {Y: Y W_O = 0}            = n (H d_k - rank W_O)
(2)  ambiguity of Y^h              = n (d_k - rank W_O + rank W^-h)
(3)  ambiguity of Y^h W^h          = n (rank W^h + rank W^-h - rank W_O)
(4)  contribution of head h        = Z P_h,  P_h = (W_O^+)_h W^h, if (3) is 0
(5)  noise gain of head h          = |P_h|_2 = 1 / sin(smallest angle of row(W^h) and row(W^-h))

**Claim** (arXiv 2604.23681): head h's channel is lost in the sum, in n (H - 1) d_k dimensions.
**Assumes**: by (1) it is n (H - 1) d_k only where rank W_O = d_k, all heads writing to one
subspace; it is an upper bound wherever one block has full rank. Where W_O is invertible, as
drawn or trained with H d_k = d, it is 0. (The proofs were not available: the published kernel may
be meant for an unknown W_O, which is another question, see below.)
**Source**: the abstract and a public summary; (1) to (5) are linear algebra.
**Test**: ``tests/test_rank_heads.py``.

No data, whatever n, can determine the choice of W_V^h G, G^-1 W_O^h for an invertible G of each
head: H d_k^2 directions of the *weights* in every layer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.ranks.numerical import NumericalRank, as_numbers, numerical_rank
from isospike.tensors import check_floating

MAX_AMPLIFIED_ROUNDING = 0.01  # relative error of a head's output that still counts as exact


@dataclass(frozen=True)
class HeadAmbiguity:
    """The quantities (1) to (5) per token; multiply dimensions by n for a sequence.

    Attributes:
        heads: Number of heads H.
        head_width: Width of a head, d_k.
        width: Width of the model, d.
        rank: Rank of W_O.
        condition: Largest singular value of W_O divided by the smallest one that counts.
        coordinates: Dimensions (2) of each head.
        contributions: Dimensions (3) of each head.
        noise_gains: Noise gain (5) of each head; infinite where (3) is not 0.
        angles: Smallest principal angle between the row spaces of two heads, in degrees.
        rounding: Unit roundoff of the weights' type.

    >>> ambiguity = head_ambiguity(torch.eye(8), heads=2)
    >>> ambiguity.rank.rank, ambiguity.contributions
    (8, (0, 0))
    """

    heads: int
    head_width: int
    width: int
    rank: NumericalRank
    condition: float
    coordinates: tuple[int, ...]
    contributions: tuple[int, ...]
    noise_gains: tuple[float, ...]
    angles: tuple[tuple[float, ...], ...]
    rounding: float

    @property
    def nullity(self) -> int:
        """Dimension (1) per token: the directions of the heads' outputs that are lost."""
        return self.heads * self.head_width - self.rank.rank

    @property
    def published_nullity(self) -> int:
        """(H - 1) d_k: the paper's value for (1)."""
        return (self.heads - 1) * self.head_width

    @property
    def verdicts(self) -> tuple[str, ...]:
        """``exact``, ``ill-conditioned`` or ``ambiguous`` for each head's contribution.

        Ill-conditioned means that the noise gain leaves fewer than two digits of the weights' type.
        """
        return tuple(
            "ambiguous"
            if lost
            else "ill-conditioned"
            if gain * self.rounding > MAX_AMPLIFIED_ROUNDING
            else "exact"
            for lost, gain in zip(self.contributions, self.noise_gains, strict=True)
        )


def head_ambiguity(
    weight: Any, heads: int, computed_in: torch.dtype | None = None
) -> HeadAmbiguity:
    """Which heads' outputs can be recovered from their sum.

    >>> both = head_ambiguity(torch.eye(4), heads=2)  # each head writes to its own channels
    >>> both.nullity, both.verdicts
    (0, ('exact', 'exact'))

    Args:
        weight: W_O, ``[H d_k, d]``, the heads one below the other: Z = Y W_O. That is the transpose
            of an ``nn.Linear``'s weight, and the weight itself of a GPT-2's Conv1D.
        heads: Number of heads H.
        computed_in: The type in which the weights were computed; their own type by default.

    Returns:
        The lost dimensions and the noise gains.

    Raises:
        ShapeError: ``weight`` is not a matrix, or its rows cannot be divided among the heads.
        RangeError: ``heads < 1``, or a weight is NaN or infinite.
    """
    return invert_heads(weight, heads, computed_in)[0]


def invert_heads(
    weight: Any, heads: int, computed_in: torch.dtype | None = None
) -> tuple[HeadAmbiguity, Float[Tensor, "d channels"]]:
    """:func:`head_ambiguity`, and the pseudoinverse of the weight.

    Args:
        weight: As for :func:`head_ambiguity`.
        heads: As for :func:`head_ambiguity`.
        computed_in: As for :func:`head_ambiguity`.

    Returns:
        The ambiguity, and W_O^+.

    Raises:
        ShapeError: As for :func:`head_ambiguity`.
        RangeError: As for :func:`head_ambiguity`.
    """
    w, origin = _stacked(weight, heads, computed_in, "head_ambiguity")
    rank = numerical_rank(w, origin)
    head_width = len(w) // heads
    blocks = w.view(heads, head_width, -1)
    if rank.rank == len(w):  # independent rows: nothing is lost
        coordinates = contributions = (0,) * heads
    else:
        others = [torch.cat([blocks[:h], blocks[h + 1 :]]).flatten(0, 1) for h in range(heads)]
        own = [numerical_rank(block, origin).rank for block in blocks]
        rest = [numerical_rank(o, origin).rank if heads > 1 else 0 for o in others]
        coordinates = tuple(head_width - rank.rank + r for r in rest)
        contributions = tuple(o + r - rank.rank for o, r in zip(own, rest, strict=True))
    inverse, condition = _inverse(w, rank.rank)
    # |A B|_2 with A [d, d_k] and B [d_k, d] is that of their triangular factors.
    left = torch.linalg.qr(inverse.view(-1, heads, head_width).movedim(1, 0)).R
    right = torch.linalg.qr(blocks.transpose(1, 2)).R
    norms = torch.linalg.matrix_norm(left @ right.transpose(1, 2), 2).tolist()
    ambiguity = HeadAmbiguity(
        heads=heads,
        head_width=head_width,
        width=w.shape[1],
        rank=rank,
        condition=condition,
        coordinates=coordinates,
        contributions=contributions,
        noise_gains=tuple(
            math.inf if lost else gain for lost, gain in zip(contributions, norms, strict=True)
        ),
        angles=_angles(blocks, origin, rank.rank == len(w)),
        rounding=torch.finfo(origin).eps / 2,
    )
    return ambiguity, inverse


def recover_heads(
    heads_sum: Float[Tensor, "n d"],
    weight: Any,
    heads: int,
    computed_in: torch.dtype | None = None,
) -> Float[Tensor, "n {heads} width"]:
    """The heads' outputs Y from their sum, ``Z W_O^+``.

    Exact if the rows of W_O are independent; otherwise the smallest Y with that sum. Subtract a
    bias of the sum first.

    >>> outputs = torch.arange(4.0).view(1, 2, 2)
    >>> recover_heads(outputs.view(1, 4) @ (2 * torch.eye(4)), 2 * torch.eye(4), heads=2).tolist()
    [[[0.0, 1.0], [2.0, 3.0]]]

    Args:
        heads_sum: Z, the output of attention.
        weight: As for :func:`head_ambiguity`.
        heads: Number of heads H.
        computed_in: The type in which the weights were computed; their own type by default.

    Returns:
        ``[n, heads, d_k]``, float64.

    Raises:
        ShapeError: As for :func:`head_ambiguity`, or ``heads_sum`` has another width.
        RangeError: As for :func:`head_ambiguity`.
    """
    w, origin = _stacked(weight, heads, computed_in, "recover_heads")
    check_floating("recover_heads", "heads_sum", heads_sum, read=True)
    if heads_sum.dim() != 2 or heads_sum.shape[-1] != w.shape[1]:
        raise ShapeError(
            f"recover_heads needs heads_sum [n, {w.shape[1]}], got {list(heads_sum.shape)}. Give "
            "the output of the same attention layer."
        )
    inverse, _ = _inverse(w, numerical_rank(w, origin).rank)
    return (heads_sum.detach().double().cpu() @ inverse).view(len(heads_sum), heads, -1)


def _stacked(
    weight: Any, heads: int, computed_in: torch.dtype | None, who: str
) -> tuple[Tensor, torch.dtype]:
    w, origin = as_numbers(weight, computed_in, who)
    if heads < 1:
        raise RangeError(f"{who} needs heads >= 1, got {heads}. Give the model's number of heads.")
    if w.dim() != 2 or not w.numel() or len(w) % heads:
        raise ShapeError(
            f"{who} needs a weight [heads * head width, width] of {heads} heads, got "
            f"{list(w.shape)}. Transpose the weight of an nn.Linear."
        )
    if not bool(w.isfinite().all()):
        raise RangeError(
            f"{who} needs finite weights, got {int((~w.isfinite()).sum())} that are not. Load the "
            "model again."
        )
    return w, origin


def _inverse(w: Tensor, kept: int) -> tuple[Tensor, float]:
    """W_O^+ from its ``kept`` largest singular values, ``[d, H d_k]``, and its condition number."""
    if kept == len(w):
        q, r = torch.linalg.qr(w.T)
        s = torch.linalg.svdvals(r)
        # W^T = Q R, so that W^+ = Q R^-T.
        return torch.linalg.solve_triangular(r, q.T, upper=True).T, float(s[0] / s[-1])
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    inverse = (v[:kept].T / s[:kept]) @ u[:, :kept].T
    return inverse, float(s[0] / s[kept - 1]) if kept else math.inf


def _angles(
    blocks: Tensor, origin: torch.dtype, independent: bool
) -> tuple[tuple[float, ...], ...]:
    """Smallest principal angle between the row spaces of each pair of blocks."""
    if independent:
        bases = torch.linalg.qr(blocks.transpose(1, 2)).Q.transpose(1, 2)
    else:
        bases = torch.zeros_like(blocks)
        for basis, block in zip(bases, blocks, strict=True):
            if bool((block != 0).any()):
                kept = numerical_rank(block, origin).rank
                basis[:kept] = torch.linalg.svd(block, full_matrices=False).Vh[:kept]
    # Rows of zeros are at right angles to all others.
    first, second = torch.triu_indices(len(bases), len(bases))
    cosines = bases.new_empty(len(bases), len(bases))
    found = torch.linalg.matrix_norm(bases[first] @ bases[second].mT, 2).clamp(0, 1)
    cosines[first, second] = cosines[second, first] = found
    return tuple(map(tuple, cosines.acos().rad2deg().tolist()))
