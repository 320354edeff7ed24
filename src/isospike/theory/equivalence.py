"""Spike times and positions: where they are equivalent, and where they are not.

A spike of rank p in a cycle of length T has the latency ``t(p) = p T / L``, and the sinusoid's
component i the phase ``w_i p = W_i t(p)``, ``W_i = w_i L / T``: a change of clock, whose table is
``c E`` with ``c = T / L``. The lemma that attention does not depend on c is true of positions alone
(:func:`lemma_1a`). With contents and positions together the scores have three terms, and each
scales differently (:func:`score_terms`).
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
    """Time of the spike of a rank: ``t(p) = p * cycle / length``, in units of ``cycle``.

    Args:
        position: Ranks, from 0.
        length: L, number of ranks.
        cycle: T, length of the cycle.

    Returns:
        Times, in the shape of ``position``.

    Raises:
        RangeError: A number is outside its range.

    >>> import torch
    >>> latency(torch.tensor([0.0, 3.0]), length=4).tolist()
    [0.0, 0.75]
    """
    _check_clock(length, cycle, "latency")
    return position * cycle / length


def phase_slopes(width: int, length: int, cycle: float = 1.0) -> Float[Tensor, "half"]:
    """Frequency of each oscillator that, read at the latencies, gives the sinusoid's phases.

    (1)  W_i = w_i length / cycle, so that W_i t(p) = w_i p, w_i = 10000^(-2i / width)

    Args:
        width: Even width of the sinusoid.
        length: L, number of ranks.
        cycle: T, length of the cycle.

    Returns:
        One frequency for each pair of channels.

    Raises:
        RangeError: A number is outside its range.

    >>> phase_slopes(width=4, length=10).tolist()
    [10.0, 0.1]
    """
    _check_clock(length, cycle, "phase_slopes")
    return _frequencies(width) * length / cycle


def wraps_after(width: int) -> Float[Tensor, "half"]:
    """Positions after which each component repeats: ``2 pi / w_i``.

    The map from rank to *observed* phase is one to one only below that: component 0 wraps every
    6.28 positions. Only all components together identify a position.

    Args:
        width: Even width of the sinusoid.

    Returns:
        Positions, one for each pair of channels.

    Raises:
        RangeError: ``width`` is odd or below 2.

    >>> wraps_after(2).tolist()
    [6.28...]
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
        """The scores at one change of clock.

        Args:
            factor: c.

        Returns:
            Scores ``[queries, keys]``.
        """
        return self.content + factor * self.mixed + factor**2 * self.position


def score_terms(
    x: Float[Tensor, "length width"],
    table: Float[Tensor, "length width"],
    form: Float[Tensor, "width width"],
) -> ScoreTerms:
    """The three terms of the scores, for the bilinear form ``B = W_Q^T W_K``.

    Claim (published, Lemma 1): attention is invariant to the spike-timing map, up to one global
        scale of the positional part.
    Assumes: contents and positions are added before the product, as in a transformer.
    Source: derived.
    Test: ``tests/test_equivalence.py``.
    Verdict: fails as users read it. The terms scale by 1, c and c^2, and a temperature scales all
        three alike. :func:`counterexample` has a pair of keys whose order c reverses.

    Args:
        x: Contents, one row a token.
        table: Positions E, one row a token.
        form: B.

    Returns:
        The three terms.

    Raises:
        ShapeError: Contents and positions differ in shape.

    >>> import torch
    >>> one = torch.eye(2)
    >>> score_terms(one, one, one).at(2.0)[0, 0].item()
    9.0
    """
    if x.shape != table.shape:
        raise ShapeError(
            f"score_terms needs contents and positions of one shape, got {tuple(x.shape)} and "
            f"{tuple(table.shape)}. Give one position for each token."
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
    Source: derived; the part of the published Lemma 1 that is true.
    Test: equal to rounding.
    Verdict: holds.

    Args:
        table: Positions E.
        form: The bilinear form of the scores.
        factor: c.

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
    Assumes: R orthogonal, the same for contents and positions.
    Source: derived.
    Test: equal to rounding.
    Verdict: holds.

    Args:
        x: Contents.
        table: Positions E.
        form: B.
        turn: R.

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
    """The input of the first layer of a pre-norm transformer.

    Claim: ``LN(x + c E) = LN(x / c + E)``: spike timing is the sinusoid with contents 1 / c = L / T
        times as large, and contents times c undo it.
    Assumes: c > 0; ``eps`` of the norm small against the variance. With eps = 1e-5 the sides differ
        where variances of the left side are not far above it.
    Source: derived.
    Test: equal to rounding at eps = 0; and as a training run, ``isospike reproduce spike-timing``.
    Verdict: holds.

    Args:
        x: Contents.
        table: Positions E.
        factor: c.
        eps: Constant that the norm adds to the variance.

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

    A temperature changes no order. Hence no temperature makes attention at c equal to that at 1.

    Args:
        factor: c.

    Returns:
        Scores of the two keys.

    >>> counterexample(0.5).tolist(), counterexample(1.0).tolist()
    ([2.0, 1.0], [2.0, 4.0])
    """
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    table = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    return score_terms(x, table, torch.eye(2)).at(factor)[2, :2]


class Geometry(NamedTuple):
    """How two tables of positions compare.

    Attributes:
        pearson, spearman: Correlation of their Gram matrices off the diagonal.
        ranks: Effective rank of each, centred.
        gaps: Loss of similarity by one step, in each: mean of the Gram matrix's diagonal less that
            of its neighbour.
        cosines: Smallest and largest cosine of two positions, in each.
    """

    pearson: float
    spearman: float
    ranks: tuple[float, float]
    gaps: tuple[float, float]
    cosines: tuple[tuple[float, float], tuple[float, float]]


def geometry(a: Float[Tensor, "length width"], b: Float[Tensor, "length_b width_b"]) -> Geometry:
    """Compare two tables of positions of one length.

    Args:
        a: Vectors of positions, one a row.
        b: Vectors of the same positions.

    Returns:
        Both geometries.

    Raises:
        ShapeError: The lengths differ, or are below 3.

    >>> import torch
    >>> geometry(torch.eye(4), 2 * torch.eye(4)).gaps
    (1.0, 4.0)
    """
    if len(a) != len(b) or len(a) < 3:
        raise ShapeError(
            f"geometry needs two tables of one length of at least 3, got {len(a)} and {len(b)}. "
            "Cut the longer one."
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
        raise RangeError(f"a sinusoid needs an even width, got {width}. Add or drop a channel.")
    return BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def _check_clock(length: int, cycle: float, who: str) -> None:
    if length < 1 or not cycle > 0:
        raise RangeError(
            f"{who} needs length >= 1 and cycle > 0, got {length} and {cycle}. Try a cycle of 1."
        )
