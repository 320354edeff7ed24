"""Spike times and positions: what about them is equivalent, and what is not.

A spike of rank p in a cycle of length T has the latency ``t(p) = p T / L``, and the sinusoid's
component i the phase ``w_i p = W_i t(p)``, ``W_i = w_i L / T``: a change of clock, whose table is
``c E`` with ``c = T / L``. The lemma that attention does not notice c is true of positions alone
(:func:`lemma_1a`). Attention reads contents and positions together, and then its scores have three
terms, of which each is scaled differently (:func:`score_terms`).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

from isospike.dimension import spectral_entropy
from isospike.errors import RangeError, ShapeError
from isospike.positions.base import BASE


def latency(
    position: Float[Tensor, "*shape"], length: int, cycle: float = 1.0
) -> Float[Tensor, "*shape"]:
    """When the spike of a rank comes: ``t(p) = p * cycle / length``, in units of ``cycle``."""
    _check_clock(length, cycle, "latency")
    return position * cycle / length


def phase_slopes(width: int, length: int, cycle: float = 1.0) -> Float[Tensor, "half"]:
    """Frequency of each oscillator that, read at the latencies, gives the sinusoid's phases.

    (1)  W_i = w_i length / cycle, so that W_i t(p) = w_i p, w_i = 10000^(-2i / width)
    """
    _check_clock(length, cycle, "phase_slopes")
    return _frequencies(width) * length / cycle


def wraps_after(width: int) -> Float[Tensor, "half"]:
    """Positions after which each component repeats: ``2 pi / w_i``.

    The map from rank to *observed* phase is one to one only below that: component 0 wraps every
    6.28 positions. Only all components together tell positions apart.
    """
    return 2 * math.pi / _frequencies(width)


class ScoreTerms(NamedTuple):
    """Scores of attention over contents x and positions c E, split by how they depend on c.

    ``scores(c) = content + c * mixed + c^2 * position``

    Attributes:
        content: ``x_p B x_q``.
        mixed: ``x_p B E_q + E_p B x_q``.
        position: ``E_p B E_q``.
    """

    content: Float[Tensor, "queries keys"]
    mixed: Float[Tensor, "queries keys"]
    position: Float[Tensor, "queries keys"]

    def at(self, factor: float) -> Float[Tensor, "queries keys"]:
        """The scores at c = ``factor``."""
        return self.content + factor * self.mixed + factor**2 * self.position


def score_terms(
    x: Float[Tensor, "length width"],
    table: Float[Tensor, "length width"],
    form: Float[Tensor, "width width"],
) -> ScoreTerms:
    """The three terms of the scores, for the bilinear form ``B = W_Q^T W_K``.

    Claim (published, Lemma 1): attention is invariant to the spike-timing map, up to one global
        scale of the positional part.
    Verdict: fails as read by users. The terms scale by 1, c and c^2, and a temperature scales all
        three alike. :func:`counterexample` is a pair of keys whose order c turns round.
    Source: derived.
    Test: ``tests/test_equivalence.py``.
    """
    if x.shape != table.shape:
        raise ShapeError(
            f"score_terms needs contents and positions of one shape, got {tuple(x.shape)} and "
            f"{tuple(table.shape)}."
        )
    return ScoreTerms(
        x @ form @ x.T, x @ form @ table.T + table @ form @ x.T, table @ form @ table.T
    )


def lemma_1a(
    table: Float[Tensor, "length width"], form: Float[Tensor, "width width"], factor: float
) -> tuple[Float[Tensor, "length length"], Float[Tensor, "length length"]]:
    """Attention over positions alone.

    Claim: ``softmax(scores of c E / c^2) = softmax(scores of E)``.
    Assumes: no content, x = 0; c > 0.
    Source: derived; the true core of the published Lemma 1.
    Test: equal to rounding.

    Returns:
        Both sides.
    """
    scaled = factor * table
    return (
        (scaled @ form @ scaled.T / factor**2).softmax(-1),
        (table @ form @ table.T).softmax(-1),
    )


def lemma_1b(
    x: Float[Tensor, "length width"],
    table: Float[Tensor, "length width"],
    form: Float[Tensor, "width width"],
    turn: Float[Tensor, "width width"],
) -> tuple[Float[Tensor, "length length"], Float[Tensor, "length length"]]:
    """Positions and contents turned by one orthogonal map R.

    Claim: ``(x + E) R`` under the form ``R^T B R`` has the scores of ``x + E`` under B. So weights
        absorb the map: a model that may learn them can compute the same.
    Assumes: R orthogonal, of contents and positions alike.
    Source: derived.
    Test: equal to rounding.

    Returns:
        Both sides.
    """
    y = x + table
    return (y @ turn) @ (turn.T @ form @ turn) @ (y @ turn).T, y @ form @ y.T


def lemma_1c(
    x: Float[Tensor, "length width"],
    table: Float[Tensor, "length width"],
    factor: float,
    eps: float = 0.0,
) -> tuple[Float[Tensor, "length width"], Float[Tensor, "length width"]]:
    """What the first layer of a pre-norm transformer reads.

    Claim: ``LN(x + c E) = LN(x / c + E)``: spike timing is the sinusoid with contents 1 / c = L / T
        times as large, and contents times c undo it.
    Assumes: c > 0; ``eps`` of the norm small against the variance. With eps = 1e-5 the sides differ
        where variances of the left side are not far above it.
    Source: derived.
    Test: equal to rounding at eps = 0; and as a training run, ``isospike reproduce spike-timing``.

    Returns:
        Both sides.
    """
    size = x.shape[-1:]
    return layer_norm(x + factor * table, size, eps=eps), layer_norm(
        x / factor + table, size, eps=eps
    )


def counterexample(factor: float) -> Float[Tensor, "2"]:
    """Scores of two keys, of which the first wins at c = 1 / 2 and the second at c = 1.

    One query with content 1 at position 2; a key with content 2 at position 0 and a key with
    content 0 at position 2; contents on the first channel, positions on the second, B = 1:

    (2)  scores(c) = (2, 4 c^2)

    A temperature changes no order. Hence no temperature makes attention at c that at 1.
    """
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    table = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    return score_terms(x, table, torch.eye(2)).at(factor)[2, :2]


class Geometry(NamedTuple):
    """How two tables of positions compare.

    Attributes:
        pearson, spearman: Correlation of their Gram matrices off the diagonal.
        ranks: Effective rank of each, centred.
        gaps: What a step costs in each: mean of the Gram matrix's diagonal less its neighbour.
        cosines: Least and largest cosine of two positions, of each.
    """

    pearson: float
    spearman: float
    ranks: tuple[float, float]
    gaps: tuple[float, float]
    cosines: tuple[tuple[float, float], tuple[float, float]]


def geometry(a: Float[Tensor, "length width"], b: Float[Tensor, "length_b width_b"]) -> Geometry:
    """Compare two tables of one length.

    Raises:
        ShapeError: The lengths differ, or are below 3.
    """
    if len(a) != len(b) or len(a) < 3:
        raise ShapeError(
            f"geometry needs two tables of one length of at least 3, got {len(a)} and {len(b)}."
        )
    above = torch.ones(len(a), len(a), dtype=torch.bool).triu(1)
    grams = [table.double() @ table.double().T for table in (a, b)]
    flat = torch.stack([gram[above] for gram in grams])
    ranked = torch.stack([_ranks(row) for row in flat])
    norms = [gram.diagonal().sqrt() for gram in grams]
    cosines = [
        (gram / norm[:, None] / norm)[above] for gram, norm in zip(grams, norms, strict=True)
    ]
    first, second = ((float(c.min()), float(c.max())) for c in cosines)
    gaps = [float(gram.diagonal().mean() - gram.diagonal(1).mean()) for gram in grams]
    return Geometry(
        pearson=float(flat.corrcoef()[0, 1]),
        spearman=float(ranked.corrcoef()[0, 1]),
        ranks=(_effective_rank(a), _effective_rank(b)),
        gaps=(gaps[0], gaps[1]),
        cosines=(first, second),
    )


def _effective_rank(table: Float[Tensor, "length width"]) -> float:
    """Exponential of the entropy of the variances along the principal axes.

    (3)  exp(-sum_i p_i ln p_i), p_i = l_i / sum_j l_j, l the eigenvalues of the covariance

    Reference: Roy, Vetterli (2007), The effective rank.
    """
    centred = table.double() - table.double().mean(0)
    return spectral_entropy(torch.linalg.svdvals(centred).square())


def _ranks(x: Tensor) -> Tensor:
    """Ranks from 0; equal values, to 12 digits, share their mean."""
    _, group, counts = torch.unique((x * 1e12).round(), return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts + 1) / 2
    return ranks[group]


def _frequencies(width: int) -> Tensor:
    if width < 2 or width % 2:
        raise RangeError(f"a sinusoid needs an even width, got {width}.")
    return BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def _check_clock(length: int, cycle: float, who: str) -> None:
    if length < 1 or not cycle > 0:
        raise RangeError(f"{who} needs length >= 1 and cycle > 0, got {length} and {cycle}.")
