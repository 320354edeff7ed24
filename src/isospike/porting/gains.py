"""Channel scales for a site whose gain follows its input: one gain for each token.

A token of values x is encoded as ``N = round(levels * (x - offset) / (scale * gain))`` with

(1)  gain = max_c |x_c - offset_c| / scale_c

so no value lies outside its range, and a channel's step is ``scale_c * gain / levels``. The scales
only say how the channels share the levels. The products that read the site weigh an error of
channel c by w_c, so the scales that minimise the error which the sample's tokens would add,

(2)  loss(s) = mean_t (gain_t^2 / power_t) * sum_c w_c^2 s_c^2

are wanted. In log s this is a sum of exponentials of maxima of linear functions: convex, without
local minima. At the minimum the share of a channel in the noise equals its share in the gains,

(3)  w_c^2 s_c^2 / sum w^2 s^2  =  sum_{t: c is largest in t} v_t / sum_t v_t,  v = gain^2 / power

and the iteration moves log s by half the difference of the logarithms of both sides of (3), with a
soft maximum so that every channel has a share.
"""

import torch
from torch import Tensor

from isospike.porting.ranges import Range, lower_median, positive

ROWS = 512  # tokens that scales are fitted to, about
GOLDEN = (5**0.5 - 1) / 2
ITERATIONS = 25
RATE = 0.35  # of the iteration; more oscillates
SHARPNESS = 12.0  # of the soft maximum, in nats of log |x| / s
FLOOR = 1e-4  # share of the gains that idle channels have together
USUAL = 0.99  # share of the sample's tokens whose gain is at most 1


def fit_scales(x: Tensor, weight: Tensor, evenness: float = 0.0) -> Range:
    """Offset and scale of each channel of a site with a gain for each token.

    Args:
        x: Sample, ``[rows, *groups, channels]``; every group has a gain of its own.
        weight: How strongly an error of each channel counts, ``[*groups, channels]``.
        evenness: How far the scales go from the minimum of (2), at 0, to one scale for the group,
            at 1, for channels whose sizes differ on inputs that the sample lacks.

    Returns:
        Offsets, the medians; and scales, normalised so that the gain (1) of nearly all rows of the
        sample is at most 1.
    """
    offset = lower_median(x.flatten(1).t()).view(x.shape[1:])
    distance = (x - offset).abs_()
    place = torch.arange(len(x), dtype=torch.float64)
    few = distance[(place * GOLDEN % 1 < ROWS / max(1, len(x))).to(x.device)]
    scale = _balance(few, weight)
    scale = scale ** (1 - evenness) * scale.amax(-1, keepdim=True) ** evenness
    gain = (distance / scale).amax(-1, keepdim=True)
    usual = gain.float().quantile(USUAL, dim=0)
    return Range(offset, positive(scale * usual))


def _balance(distance: Tensor, weight: Tensor) -> Tensor:
    """The minimiser of (2), up to a factor for each group."""
    x = distance.clamp_min(1e-30).log()
    widest = x.amax(0)
    idle = distance.amax(0) == 0
    w = weight.clamp_min(1e-12).log()
    power = (2 * (x + w)).logsumexp(-1)
    power = torch.logaddexp(power, power.logsumexp(0) - torch.tensor(float(len(x))).log())
    widest = torch.where(idle, widest.amax(-1, keepdim=True), widest)
    s = 0.7 * widest + 0.3 * widest.amax(-1, keepdim=True)
    for _ in range(ITERATIONS):
        above = x - s
        gain = above.amax(-1, keepdim=True)
        soft = torch.softmax(SHARPNESS * (above - gain), -1)
        value = torch.softmax(2 * gain - power[..., None], 0)
        active = (value * soft).sum(0) + FLOOR / x.shape[-1]
        noise = torch.log_softmax(2 * (w + s), -1)
        s = s + RATE * (active.log() - noise).clamp(-2, 2) / 2
        s = s - s.mean(-1, keepdim=True)
    # A channel that never moved has no step of its own: the mean of the others.
    return torch.where(idle, s.masked_fill(idle, 0).mean(-1, keepdim=True), s).exp()
