"""The range of values a site's code is stretched over, per channel.

Ranges decide the error of a port: too wide wastes levels, too narrow cuts values. Each channel gets
the bound h that minimises an estimate of its mean squared error,

(1)  error(h) = m (h + h')^2 + 1/n sum_i max(x_i - h, 0)^2 + 2 b^2 / n * exp(-max(h - max x, 0) / b)

with m the code's mean squared error for a unit range, h' the bound on the other side, n the sample
size. The second term is what the sample loses to clipping. The third is what text not yet seen may
lose: beyond the sample's largest value an exponential tail of mean excess b, estimated from the top
2 %, still holds a mass of about 1/n. Without it a high-resolution code cuts unseen outliers;
without the second, a low-resolution one wastes its few levels on them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from isospike.codes import LinearCode

# Grid of candidate bounds, as a multiple of the largest value seen.
CANDIDATES = torch.linspace(0.25, 1.6, 55)
COARSE_LEVELS = 63  # up to here rounding is measured; its closed form is as good beyond
ROUNDED_ROWS = 1024  # on so many rows
MOST_ROWS = 8192  # a larger sample is thinned evenly
TAIL = 0.1  # share of the sample kept sorted for the second term: no bound lies below it


class Range(NamedTuple):
    """``x = offset + scale * u`` with u in the code's [low, 1]; one entry per channel."""

    offset: Tensor
    scale: Tensor


def fit_range(x: Tensor, code: LinearCode) -> Range:
    """The range of each channel for this code.

    An ON/OFF pair rests at the median, where most values are, and is silent there; its range is
    symmetric. A single neuron starts at the lower bound.

    Args:
        x: Sample, ``[rows, channels]``.
        code: The code whose range is chosen.
    """
    columns = x[:: len(x) // MOST_ROWS + 1].t().contiguous()
    centre = columns.median(-1).values
    mse = code.mean_square_error
    if code.neurons == 2:
        distance = (columns - centre[:, None]).abs()
        coarse = code.levels if code.levels <= COARSE_LEVELS else None
        half = _bound(_tail(distance), torch.zeros_like(centre), mse, distance, coarse)
        return Range(centre, _positive(half))
    up, down = _tail(columns - centre[:, None]), _tail(centre[:, None] - columns)
    high, low = up.largest, down.largest
    for _ in range(3):  # each bound is optimal given the other; converges in two or three rounds
        high = _bound(up, low, mse)
        low = _bound(down, high, mse)
    return Range(centre - low, _positive(high + low))


class _Tail(NamedTuple):
    """The upper tail of each channel's sample: its largest values, in order, and b of (1)."""

    top: Tensor  # [channels, kept]
    largest: Tensor
    excess: Tensor
    rows: int


def _tail(columns: Tensor) -> _Tail:
    rows = columns.shape[1]
    kept = min(rows, max(2, int(TAIL * rows)))
    top = columns.topk(kept, -1).values
    fifth = max(1, kept // 5)
    excess = (top[:, :fifth] - top[:, fifth - 1 : fifth]).mean(-1).clamp_min(1e-12)
    return _Tail(top, top[:, 0].clamp_min(0), excess, rows)


def _bound(
    tail: _Tail,
    other: Tensor,
    mse: float,
    sample: Tensor | None = None,
    levels: int | None = None,
) -> Tensor:
    """The minimiser over h of (1), for each channel.

    With ``levels``, the first term is what rounding ``sample`` to that many really costs: with few
    levels most values may share one, and their error is then not spread evenly over a step.
    """
    top, largest, excess, rows = tail
    best = torch.full_like(largest, torch.inf)
    bound = largest.clone()
    for factor in CANDIDATES.tolist():
        h = largest * factor
        seen = (top - h[:, None]).clamp_min(0).pow(2).sum(-1) / rows
        unseen = 2 * excess**2 / rows * torch.exp(-(h - largest).clamp_min(0) / excess)
        cost = _rounding(mse, h + other, sample, levels) + seen + unseen
        better = (cost < best) & (h >= top[:, -1])
        best = torch.where(better, cost, best)
        bound = torch.where(better, h, bound)
    return bound


def _rounding(mse: float, h: Tensor, sample: Tensor | None, levels: int | None) -> Tensor:
    """The first term of (1), or its measurement on a part of the sample."""
    if sample is None or levels is None:
        return mse * h**2
    part = sample[:, :: sample.shape[1] // ROUNDED_ROWS + 1]
    step = (h / levels).clamp_min(1e-30)[:, None]
    error = (part / step).round_().mul_(step).sub_(part)
    return error.square_().masked_fill_(part > h[:, None], 0.0).mean(-1)


def _positive(scale: Tensor) -> Tensor:
    """A constant channel needs no resolution, but its scale must be invertible."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
