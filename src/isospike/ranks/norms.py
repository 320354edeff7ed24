"""Effect of LayerNorm and RMSNorm on rank: exact identities, and the published theorem.

With P = I - 1 1^T / d, sigma_i the divisor of row i (the square root of its variance or mean
square, plus eps) and Gamma = diag(gamma):

(1)  LayerNorm  arank(LN X) = rank [X P Gamma, sigma]
(2)  RMSNorm    arank(RMS X) = rank [X Gamma, sigma],  rank(RMS X) = rank(X Gamma)

because the rows of [LN X, 1] times sigma_i are those of [X P Gamma, sigma], after beta is removed
with the column of ones. The only hypothesis is sigma_i > 0, which eps guarantees. If no gamma_j is
0, (1) gives the change of the affine rank by LayerNorm:

(3)  arank(LN X) - arank(X) = [sigma not in col(XP)] - [1_n not in col(X)] - [1_d in row(X)]

**Claim** (arXiv 2604.23681): if (H1) no row is constant, (H2) 1_d is not in row(X), (H3) no
gamma_j is 0, (H4) sigma is not in col(XP), then arank(LN X) = arank(X).
**Assumes** in addition, as (3) shows: (H5) 1_n is not in col(X).
**Source**: the abstract and a public summary of the paper; its proofs were not available.
**Test**: ``tests/test_rank_norms.py``, in exact rational arithmetic, each counterexample by name.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.hf.modules import Norm, recognise
from isospike.ranks.numerical import (
    NumericalRank,
    RoundedMatrix,
    affine_rank_of,
    as_numbers,
    rank_of,
    rounded,
)
from isospike.tensors import check_kind

KINDS = ("layer", "rms")


@dataclass(frozen=True)
class NormRank:
    """The ranks of a normalisation's input X ``[n, d]`` and of its output.

    Attributes:
        kind: ``layer`` or ``rms``.
        rank, affine: Rank and affine rank of X.
        predicted: Affine rank of the output by (1) or (2).
        measured: Affine rank of the output itself.
        rank_out: Rank of the output.
        not_constant, ones_not_in_rows, gamma_not_zero, sigma_not_in_columns: Whether the hypotheses
            H1 to H4 of the published theorem hold; None where a rank was undetermined. H1 and H2 do
            not apply to RMSNorm and are None; H4 is then about col(X).
        ones_not_in_columns: Whether H5 holds, which the theorem lacks.

    >>> x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    >>> norm_rank(x, "rms").rank_out.rank
    4
    """

    kind: str
    rank: NumericalRank
    affine: NumericalRank
    predicted: NumericalRank
    measured: NumericalRank
    rank_out: NumericalRank
    not_constant: bool | None
    ones_not_in_rows: bool | None
    gamma_not_zero: bool
    sigma_not_in_columns: bool | None
    ones_not_in_columns: bool | None

    @property
    def agrees(self) -> bool | None:
        """Whether the identity's prediction was measured; None where either is undetermined."""
        if not (self.predicted.determined and self.measured.determined):
            return None
        return self.predicted.rank == self.measured.rank

    @property
    def change(self) -> int | None:
        """Measured affine rank minus that of X; None where either is undetermined."""
        if not (self.affine.determined and self.measured.determined):
            return None
        return self.measured.rank - self.affine.rank

    @property
    def hypotheses_hold(self) -> bool | None:
        """Whether H1 to H4 hold, so that the theorem promises no change; None if undetermined."""
        flags = (
            self.not_constant,
            self.ones_not_in_rows,
            self.gamma_not_zero,
            self.sigma_not_in_columns,
        )
        if self.kind == "rms" or False in flags:
            return False
        return None if None in flags else True


def norm_rank(
    rows: Any,
    norm: str | Norm | nn.Module = "layer",
    computed_in: torch.dtype | None = None,
    *,
    output: Any = None,
) -> NormRank:
    """Measure what a normalisation does to rank, and check (1) or (2) and the hypotheses.

    >>> rows = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0]])
    >>> result = norm_rank(rows, "rms")
    >>> result.rank.rank, result.rank_out.rank, result.agrees
    (2, 2, True)

    Args:
        rows: Input X of the normalisation, ``[n, d]``.
        norm: ``layer``, ``rms``, a :class:`Norm`, or a module of one.
        computed_in: The type in which the rows were computed; their own type by default.
        output: Output of the normalisation, if it was recorded; computed from ``rows`` otherwise.

    Returns:
        The ranks, and which hypotheses hold.

    Raises:
        ShapeError: ``rows`` is not a matrix, or the norm or the output has another width.
        RangeError: A value is NaN or infinite, or a divisor is 0.
        InputError: The name of the norm is unknown.
        UnsupportedError: The module is neither LayerNorm nor RMSNorm.
    """
    x = rounded(rows, computed_in, "norm_rank")
    raw, origin = as_numbers(rows, computed_in, "norm_rank")
    known = _as_norm(norm)
    for name, vector in (("gamma", known.gamma), ("beta", known.beta)):
        if vector is not None and vector.shape != raw.shape[1:]:
            raise ShapeError(
                f"norm_rank needs {name} of the rows' width {raw.shape[1]}, got "
                f"{list(vector.shape)}. Give the input of this norm."
            )
    sigma = known.divisor(raw)
    if not bool((sigma > 0).all()):
        row = int((sigma[:, 0] == 0).nonzero()[0])
        raise RangeError(
            f"norm_rank needs rows with a divisor above 0, got 0 in row {row}. Give the norm an "
            "eps."
        )
    if output is None:
        out = rounded(known.apply(raw), origin, "norm_rank")
    else:
        out = rounded(output, origin, "norm_rank")
        if out.values.shape != x.values.shape:
            raise ShapeError(
                f"norm_rank needs an output of the rows' shape {list(x.values.shape)}, got "
                f"{list(out.values.shape)}. Give the output of the same tokens."
            )
    return _compare(x, raw, out, known, sigma)


def _compare(
    x: RoundedMatrix, raw: Tensor, out: RoundedMatrix, norm: Norm, sigma: Tensor
) -> NormRank:
    layer = norm.kind == "layer"
    gain = None if norm.gamma is None else norm.gamma.detach().cpu().to(torch.float64)
    alive = gain is None or bool((gain != 0).all())
    # sigma on the scale of x, with the error caused by the rounding of its row.
    top = float(raw.abs().max()) or 1.0
    column = RoundedMatrix(sigma / top, x.noise.norm(dim=1, keepdim=True) / raw.shape[1] ** 0.5)
    inner = x.without_mean() if layer else x
    rank, flat = rank_of(x), affine_rank_of(x)
    inner_rank = rank_of(inner) if layer else rank
    beside = rank_of(inner.beside(column))
    predicted = beside
    if gain is not None:  # a gain may be nearly 0
        predicted = rank_of(
            RoundedMatrix(inner.values * gain, inner.noise * gain.abs()).beside(column)
        )
    variance = inner.values.square().sum(1)
    constant = variance <= inner.noise.square().sum(1)
    return NormRank(
        kind=norm.kind,
        rank=rank,
        affine=flat,
        predicted=predicted,
        measured=affine_rank_of(out),
        rank_out=rank_of(out),
        not_constant=not bool(constant.any()) if layer else None,
        ones_not_in_rows=_differs(inner_rank, rank, False) if layer else None,
        gamma_not_zero=alive,
        sigma_not_in_columns=_differs(inner_rank, beside, True),
        ones_not_in_columns=_differs(rank, flat, True),
    )


def _differs(low: NumericalRank, high: NumericalRank, value: bool) -> bool | None:
    """``value`` if ``high`` is one more than ``low``, and not ``value`` if they are equal."""
    step = high.rank - low.rank
    if not (low.determined and high.determined) or step not in (0, 1):
        return None
    return value if step else not value


def _as_norm(norm: str | Norm | nn.Module) -> Norm:
    if isinstance(norm, nn.Module):
        return find_norm(norm)
    known = Norm(norm) if isinstance(norm, str) else norm
    check_kind("norm_rank", "norm", known, Norm, "'layer'")
    if known.kind not in KINDS:
        raise InputError(
            f"norm_rank needs a known norm, got {known.kind!r}. Choose one of {', '.join(KINDS)}."
        )
    return known


def is_norm(module: nn.Module) -> bool:
    """Whether a module is LayerNorm or RMSNorm according to its class.

    Args:
        module: The module.

    Returns:
        True for classes of torch, and for those named so.
    """
    name = type(module).__name__
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or name.endswith(("RMSNorm", "LayerNorm"))


def find_norm(module: nn.Module) -> Norm:
    """Recognise a normalisation by its class and by its output on test rows.

    Some RMSNorms multiply by ``weight`` and some by ``1 + weight``; the output decides.

    Args:
        module: The module.

    Returns:
        What the module computes.

    Raises:
        UnsupportedError: The module computes neither LayerNorm nor RMSNorm over the last axis.
    """
    known = recognise(module)
    if isinstance(known, Norm):
        return known._replace(gamma=_plain(known.gamma), beta=_plain(known.beta))
    raise UnsupportedError(
        f"norm_rank needs LayerNorm or RMSNorm over the last axis, got {type(module).__name__}. "
        "Give another module, or a Norm."
    )


def _plain(vector: Any) -> Tensor | None:
    return None if vector is None else vector.detach().double().cpu()
