"""Which heads can be told apart in the sum that leaves attention.

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

What no data can tell, whatever n, is the choice of W_V^h G, G^-1 W_O^h for an invertible G of each
head: H d_k^2 directions of the *weights* in every layer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.ranks.numerical import NumericalRank, numerical_rank

DIGITS = 0.01  # of a head's output that must survive the rounding of the sum


@dataclass(frozen=True)
class HeadAmbiguity:
    """(1) to (5), per token: multiply dimensions by n.

    Attributes:
        heads, head_width, width: H, d_k, d.
        rank: Of W_O.
        condition: Its largest singular value over the smallest one that counts.
        coordinates: (2) of each head.
        contributions: (3) of each head.
        gains: (5) of each head; infinite where (3) is not 0.
        angles: Smallest principal angle between the row spaces of two heads, in degrees.
        rounding: Unit roundoff of the weights' type.
    """

    heads: int
    head_width: int
    width: int
    rank: NumericalRank
    condition: float
    coordinates: tuple[int, ...]
    contributions: tuple[int, ...]
    gains: tuple[float, ...]
    angles: tuple[tuple[float, ...], ...]
    rounding: float

    @property
    def kernel(self) -> int:
        """(1) per token."""
        return self.heads * self.head_width - self.rank.rank

    @property
    def published(self) -> int:
        """(H - 1) d_k: what the paper says of (1)."""
        return (self.heads - 1) * self.head_width

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Of each head's contribution: ``exact``, ``ill-conditioned`` or ``ambiguous``.

        Ill-conditioned: the gain leaves fewer than two digits of the weights' type.
        """
        return tuple(
            "ambiguous" if lost else "ill-conditioned" if g * self.rounding > DIGITS else "exact"
            for lost, g in zip(self.contributions, self.gains, strict=True)
        )


def head_ambiguity(
    W_O: Any, heads: int, dtype_of_origin: torch.dtype | None = None
) -> HeadAmbiguity:
    """Which heads' outputs the sum that leaves attention still tells.

    Args:
        W_O: ``[H d_k, d]``, heads one below the other: Z = Y W_O. That is the transpose of an
            ``nn.Linear``'s weight, and the weight itself of a GPT-2's Conv1D.
        heads: H.
        dtype_of_origin: The type in which it was made; its own if None.

    Raises:
        ShapeError: Not a table, or a number of rows that ``heads`` does not divide.
        RangeError: ``heads < 1``, NaN or infinity.
    """
    return invert_heads(W_O, heads, dtype_of_origin)[0]


def invert_heads(
    W_O: Any, heads: int, dtype_of_origin: torch.dtype | None = None
) -> tuple[HeadAmbiguity, Float[Tensor, "d channels"]]:
    """:func:`head_ambiguity`, and W_O^+ with it."""
    w, origin = _stacked(W_O, heads, dtype_of_origin, "head_ambiguity")
    rank = numerical_rank(w, origin)
    head_width = len(w) // heads
    blocks = w.view(heads, head_width, -1)
    if rank.rank == len(w):  # independent rows: nothing is lost, and nothing more to count
        coordinates = contributions = (0,) * heads
    else:
        others = [torch.cat([blocks[:h], blocks[h + 1 :]]).flatten(0, 1) for h in range(heads)]
        own = [numerical_rank(block, origin).rank for block in blocks]
        rest = [numerical_rank(o, origin).rank if heads > 1 else 0 for o in others]
        coordinates = tuple(head_width - rank.rank + r for r in rest)
        contributions = tuple(o + r - rank.rank for o, r in zip(own, rest, strict=True))
    inverse, condition = _inverse(w, rank.rank)
    # |A B|_2 with A [d, d_k] and B [d_k, d]: that of their triangular factors.
    left = torch.linalg.qr(inverse.view(-1, heads, head_width).movedim(1, 0)).R
    right = torch.linalg.qr(blocks.transpose(1, 2)).R
    norms = torch.linalg.matrix_norm(left @ right.transpose(1, 2), 2).tolist()
    found = HeadAmbiguity(
        heads=heads,
        head_width=head_width,
        width=w.shape[1],
        rank=rank,
        condition=condition,
        coordinates=coordinates,
        contributions=contributions,
        gains=tuple(
            math.inf if lost else gain for lost, gain in zip(contributions, norms, strict=True)
        ),
        angles=_angles(blocks, origin, rank.rank == len(w)),
        rounding=torch.finfo(origin).eps / 2,
    )
    return found, inverse


def recover_heads(
    Z: Float[Tensor, "n d"],
    W_O: Any,
    heads: int,
    dtype_of_origin: torch.dtype | None = None,
) -> Float[Tensor, "n {heads} width"]:
    """The heads' outputs Y from their sum, ``Z W_O^+``: all of Y if W_O's rows are independent.

    Otherwise the smallest Y with that sum. A bias of the sum is to be taken off before.

    Args:
        Z: What attention adds to the stream.
        W_O: As of :func:`head_ambiguity`.
        heads: H.
        dtype_of_origin: The type in which W_O was made; its own if None.

    Returns:
        ``[n, heads, d_k]``, float64.

    Raises:
        ShapeError: As :func:`head_ambiguity`, or Z of another width.
        RangeError: As :func:`head_ambiguity`.
    """
    w, origin = _stacked(W_O, heads, dtype_of_origin, "recover_heads")
    if Z.shape[-1] != w.shape[1]:
        raise ShapeError(f"recover_heads needs Z [n, {w.shape[1]}], got {list(Z.shape)}.")
    inverse, _ = _inverse(w, numerical_rank(w, origin).rank)
    return (Z.detach().double().cpu() @ inverse).view(len(Z), heads, -1)


def _stacked(
    W_O: Any, heads: int, dtype_of_origin: torch.dtype | None, who: str
) -> tuple[Tensor, torch.dtype]:
    given = torch.as_tensor(W_O).detach().cpu()
    w = given.to(torch.float64)
    if heads < 1:
        raise RangeError(f"{who} needs heads >= 1, got {heads}.")
    if w.dim() != 2 or not w.numel() or len(w) % heads:
        raise ShapeError(
            f"{who} needs W_O [heads * head width, width] of {heads} heads, got {list(w.shape)}. "
            "Transpose the weight of an nn.Linear."
        )
    if not bool(w.isfinite().all()):
        raise RangeError(f"{who} needs finite weights, got {int((~w.isfinite()).sum())} others.")
    own = given.dtype if given.dtype.is_floating_point else torch.float64
    return w, dtype_of_origin or own


def _inverse(w: Tensor, kept: int) -> tuple[Tensor, float]:
    """W_O^+ from its ``kept`` largest singular values, ``[d, H d_k]``, and their condition."""
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
    """Smallest principal angles, pair by pair; of a block of lower rank, over its row space."""
    if independent:
        bases = torch.linalg.qr(blocks.transpose(1, 2)).Q.transpose(1, 2)
    else:
        bases = torch.zeros_like(blocks)
        for basis, block in zip(bases, blocks, strict=True):
            if bool((block != 0).any()):
                kept = numerical_rank(block, origin).rank
                basis[:kept] = torch.linalg.svd(block, full_matrices=False).Vh[:kept]
    # Rows of zeros, if any, are at right angles to all.
    cosines = torch.linalg.matrix_norm(bases[:, None] @ bases.transpose(1, 2), 2).clamp(0, 1)
    return tuple(map(tuple, cosines.acos().rad2deg().tolist()))
