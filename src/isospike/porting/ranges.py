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

import numpy as np
import torch
from torch import Tensor

from isospike.codes import WeightedCode

# Candidate bounds, as multiples of the largest value seen; 1 is one of them, because the few huge
# activations of a transformer repeat the same value, which is then encoded exactly.
CANDIDATES = torch.linspace(0.25, 1.6, 55)
COARSE_LEVELS = 15  # up to here an idle level costs more than a spike
TAIL = 0.1  # share of the sample kept sorted for the second term: no bound lies below it


class Range(NamedTuple):
    """``x = offset + scale * u`` with u in the code's [low, 1]; one entry per channel."""

    offset: Tensor
    scale: Tensor


def fit_range(x: Tensor, code: WeightedCode) -> Range:
    """The range of each channel for this code.

    An ON/OFF pair rests at the median, where most values are, and is silent there; its range is
    symmetric. With few levels it cannot afford the half that a skewed channel leaves idle: its
    range then spans the channel's own two bounds. A single neuron starts at the lower one.

    Args:
        x: Sample, ``[rows, channels]``.
        code: The code whose range is chosen.
    """
    columns = x.t().contiguous()
    centre = lower_median(columns)
    mse = code.mean_square_error
    pair = code.neurons == 2
    if pair and code.levels > COARSE_LEVELS:
        half = _bound(_tail((columns - centre[:, None]).abs()), torch.zeros_like(centre), mse)
        return Range(centre, positive(half))
    up, down = _tail(columns - centre[:, None]), _tail(centre[:, None] - columns)
    high, low = (t.largest[:, 0].to(x.dtype) for t in (up, down))
    mse = mse / 4 if pair else mse  # a pair's unit is half its range
    for _ in range(3):  # each bound is optimal given the other; converges in two or three rounds
        high = _bound(up, low, mse)
        low = _bound(down, high, mse)
    if pair:
        return Range(centre + (high - low) / 2, positive((high + low) / 2))
    return Range(centre - low, positive(high + low))


def lower_median(columns: Tensor) -> Tensor:
    """The lower median of each channel; NumPy's partition is several times faster than torch's."""
    middle = (columns.shape[1] - 1) // 2
    part = np.partition(columns.cpu().numpy(), middle, axis=-1)[:, middle]
    return torch.from_numpy(part.copy()).to(columns.device)


class _Tail(NamedTuple):
    """The upper tail of each channel's sample, sorted, with what (1) needs of it."""

    top: Tensor  # [channels, kept], smallest first
    first: Tensor  # [channels, kept + 1], sum of the values from each place on
    second: Tensor  # the same of their squares
    largest: Tensor  # [channels, 1]
    excess: Tensor  # b of (1)
    rows: int


def _tail(columns: Tensor) -> _Tail:
    rows = columns.shape[1]
    kept = min(rows, max(2, int(TAIL * rows)))
    # NumPy's partition is several times faster than torch.topk here; sums in float64 may cancel.
    part = np.partition(columns.cpu().numpy(), rows - kept, axis=-1)[:, rows - kept :]
    top = torch.from_numpy(np.sort(part, axis=-1)).to(columns.device).double()
    fifth = max(1, kept // 5)
    excess = (top[:, -fifth:] - top[:, -fifth, None]).mean(-1, keepdim=True).clamp_min(1e-12)
    return _Tail(top, _sums(top), _sums(top**2), top[:, -1:].clamp_min(0), excess, rows)


def _sums(x: Tensor) -> Tensor:
    """``[:, i]`` is the sum of ``x[:, i:]``."""
    return torch.nn.functional.pad(x.flip(-1).cumsum(-1).flip(-1), (0, 1))


def _bound(tail: _Tail, other: Tensor, mse: float) -> Tensor:
    """The minimiser over h of (1) among the candidates, for each channel."""
    h = tail.largest * CANDIDATES.to(tail.largest)
    place = torch.searchsorted(tail.top, h)
    above = tail.top.shape[1] - place
    seen = tail.second.gather(1, place) - 2 * h * tail.first.gather(1, place) + above * h**2
    beyond = (h - tail.largest).clamp_min(0) / tail.excess
    unseen = 2 * tail.excess**2 * torch.exp(-beyond)
    cost = mse * (h + other.double()[:, None]) ** 2 + (seen + unseen) / tail.rows
    best = cost.masked_fill(h < tail.top[:, :1], torch.inf).argmin(1, keepdim=True)
    return h.gather(1, best)[:, 0].to(other.dtype)


def positive(scale: Tensor) -> Tensor:
    """A constant channel needs no resolution, but its scale must be invertible."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
