"""The two circuits of a head, as factors of its weights, without data.

A head with W_Q, W_K, W_V ``[d, d_k]`` and W_O ``[d_k, d]`` looks where x W_Q W_K^T x'^T is large
and moves x W_V W_O. Neither matrix is ever formed: of (A B) with A ``[n, k]``, B ``[k, m]``,

(1)  singular values of A B  = those of R_A R_B^T,  A = Q_A R_A, B^T = Q_B R_B
(2)  eigenvalues of A B      = those of B A, and n - k zeros
(3)  positive share          = sum Re(eigenvalues) / sum |eigenvalues|,  1 for a head that copies

Biases, norms and rotations by position between weight and product are left out.

Reference: Elhage et al. (2021), A mathematical framework for transformer circuits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import ShapeError
from isospike.tensors import check_floating


class Factored(NamedTuple):
    """A matrix A B of low rank by its factors.

    >>> Factored(torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0, 0.0]])).norm()
    2.8284271247461903

    Attributes:
        left: A, ``[n, k]``.
        right: B, ``[k, m]``.
    """

    left: Float[Tensor, "n k"]
    right: Float[Tensor, "k m"]

    def matrix(self) -> Float[Tensor, "n m"]:
        """A B."""
        return self.left @ self.right

    def singular_values(self) -> Float[Tensor, "k"]:
        """The singular values that can differ from 0, by (1), largest first, in float64."""
        left = torch.linalg.qr(self.left.double().cpu()).R
        right = torch.linalg.qr(self.right.double().cpu().T).R
        found: Tensor = torch.linalg.svdvals(left @ right.T)
        return found

    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.singular_values().norm())

    def stable_rank(self) -> float:
        """Squared Frobenius norm over that of the largest singular value; NaN for zeros."""
        squares = self.singular_values().square()
        return float(squares.sum() / squares[0]) if float(squares[0]) else math.nan

    def eigenvalues(self) -> Tensor:
        """The eigenvalues that can differ from 0, by (2), complex.

        Raises:
            ShapeError: A B is not square.
        """
        if self.left.shape[0] != self.right.shape[1]:
            raise ShapeError(
                f"eigenvalues needs a square matrix, got [{self.left.shape[0]}, "
                f"{self.right.shape[1]}]. Ask for singular values."
            )
        found: Tensor = torch.linalg.eigvals(self.right.double().cpu() @ self.left.double().cpu())
        return found

    def positive_share(self) -> float:
        """(3); NaN where A B is not square, or zero."""
        if self.left.shape[0] != self.right.shape[1]:
            return math.nan
        values = self.eigenvalues()
        total = float(values.abs().sum())
        return float(values.real.sum()) / total if total else math.nan


class Circuit(NamedTuple):
    """The circuits of one head.

    Attributes:
        ov: W_V W_O: what it moves; None if the weight of its values is not known.
        qk: W_Q W_K^T: where it looks; None likewise.

    >>> Circuit(ov=None, qk=None).ov is None
    True
    """

    ov: Factored | None
    qk: Factored | None


@dataclass(frozen=True)
class CircuitRow:
    """What the circuits of a head look like.

    Attributes:
        layer: Name of the layer.
        head: Index of the head.
        ov_norm, qk_norm: Frobenius norms of W_V W_O and W_Q W_K^T.
        ov_stable, qk_stable: Their stable ranks.
        ov_positive, qk_positive: Their positive shares (3); None where they are not square.
    """

    layer: str
    head: int
    ov_norm: float | None
    ov_stable: float | None
    ov_positive: float | None
    qk_norm: float | None
    qk_stable: float | None
    qk_positive: float | None


def head_circuits(
    weights: Sequence[Tensor | None], output: Float[Tensor, "channels d"], heads: int
) -> list[Circuit]:
    """The circuits of every head of one attention.

    >>> eye = torch.eye(4)
    >>> both = head_circuits((eye, eye, eye), eye, heads=2)
    >>> both[0].ov.matrix().diagonal().tolist()
    [1.0, 1.0, 0.0, 0.0]

    Args:
        weights: W_Q, W_K and W_V, ``[d, H d_k]`` each, the heads side by side; None for one that is
            not known. Keys and values that heads share are repeated.
        output: W_O, ``[H d_k, d]``.
        heads: H.

    Returns:
        One for each head.

    Raises:
        ShapeError: A weight is no matrix whose channels are divided by the number of heads.
    """
    for w in (*weights, output):
        if w is not None:
            check_floating("head_circuits", "a weight", w, read=True)
    wide = [w if w is None else w.T for w in weights]
    for w in (*wide, output):
        if w is not None and (w.dim() != 2 or heads < 1 or len(w) % heads):
            raise ShapeError(
                f"head_circuits needs weights of {heads} heads side by side, got "
                f"{list(w.shape)}. Give one head's channels after the other's."
            )
    none: list[Any] = [None] * heads
    q, k, v = (none if w is None else list(w.chunk(heads)) for w in wide)
    return [
        Circuit(
            None if v[h] is None else Factored(v[h].T, o),
            None if q[h] is None or k[h] is None else Factored(q[h].T, k[h]),
        )
        for h, o in enumerate(output.chunk(heads))
    ]


def circuit_rows(layer: str, circuits: Sequence[Circuit]) -> list[CircuitRow]:
    """What the circuits of a layer look like.

    Args:
        layer: Its name.
        circuits: Those of its heads.
    """
    return [
        CircuitRow(layer, head, *_figures(circuit.ov), *_figures(circuit.qk))
        for head, circuit in enumerate(circuits)
    ]


def _figures(found: Factored | None) -> tuple[float | None, float | None, float | None]:
    if found is None:
        return None, None, None
    squares = found.singular_values().square()
    total, first = float(squares.sum()), float(squares[0])
    share = found.positive_share()
    return (
        math.sqrt(total),
        total / first if first else None,
        None if math.isnan(share) else share,
    )
