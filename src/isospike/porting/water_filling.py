"""Where the steps go: reverse water-filling of a model's error over its sites and channels.

The output's error is nearly the sum of what each site's code adds, weighed by how far the output
moves (1). An octave of resolution costs every value that is not silent the same spikes (2). So at
the least number of spikes every value adds the same error (3), whatever site it belongs to.

    (1)  e^2 = sum_i S_i s_i^2,  s_i^2 = a_i^2 / 12, at most the variance l_i
    (2)  spikes = sum_i n_i (c_i - r log2 a_i),  r = the code's spikes_per_octave
    (3)  S_i s_i^2 = min(n_i w, S_i l_i),  so  a_i = sqrt(12 w n_i / S_i)

i counts the channels of all sites, a is the value of a code's integer 1, n the values per token, S
the sensitivity: the square error of the output, relative to the output, that noise of variance 1 in
the channel adds. w is the water level. A channel whose variance lies below it stays silent.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from isospike.codes import CODES, WeightedCode
from isospike.codes.law import water_level
from isospike.errors import RangeError, UnsupportedError


class Channels(NamedTuple):
    """The channels of one site.

    Attributes:
        sensitivity: S of (1), one entry per channel.
        variance: l, likewise.
        values: n, values per channel and token.
    """

    sensitivity: Tensor
    variance: Tensor
    values: float


class Allocation(NamedTuple):
    """What an error leaves to each site.

    Attributes:
        amplitude: By site, a of (3): the coarsest value of the integer 1 of each channel. Infinite
            where the output does not depend on the channel.
        error: The error (1) predicts.
        share: By site, its part of the squared error.
    """

    amplitude: dict[str, Tensor]
    error: float
    share: dict[str, float]


def check_allocation(kind: type[WeightedCode]) -> None:
    """Raise UnsupportedError unless a code's spikes follow (2)."""
    if kind.spikes_per_octave is None:
        digits = [name for name, other in CODES.items() if other.spikes_per_octave is not None]
        raise UnsupportedError(
            f"port needs a code of digits for per_channel, {' or '.join(digits)}, got "
            f"{kind.name!r}, whose spikes do not grow by octaves. Use one of them, or leave "
            "per_channel out."
        )


def water_fill(sites: Mapping[str, Channels], error: float) -> Allocation:
    """Amplitudes with the fewest spikes for an error of the output.

    Claim: (3) minimises (2) under (1).
    Assumes: errors of channels independent, small enough for first order, and as (1) says; no
        value so rare that (2) fails.
    Source: Lagrange: d spikes / d a_i = -r n_i / (ln 2 a_i) against d e^2 / d a_i = S_i a_i / 6.
        Reverse water-filling is the same with bits in place of spikes (Cover, Thomas 2006).
    Test: no exchange between two channels is better; by hand; a measured port.

    Args:
        sites: Their channels, by name.
        error: e, relative root-mean-square error of the output.

    Raises:
        RangeError: No sites, an error that is not positive, or sensitivities that are not finite.
    """
    if not sites:
        raise RangeError(
            "water_fill needs at least one site, got none. Give a model with products."
        )
    if not 0 < error < math.inf:
        raise RangeError(f"water_fill needs an error above 0 and finite, got {error:g}. Try 0.05.")
    for name, site in sites.items():
        if not all(bool((t >= 0).all() and t.isfinite().all()) for t in site[:2]):
            raise RangeError(
                f"water_fill needs finite sensitivities and variances of at least 0, got others at "
                f"{name}. Check the model's weights and inputs."
            )
    powers = [(s.sensitivity * s.variance).flatten().double() for s in sites.values()]
    values = [torch.full_like(p, s.values) for p, s in zip(powers, sites.values(), strict=True)]
    level = water_level(torch.cat(powers), error**2, torch.cat(values))
    spent = [float(torch.minimum(p, n * level).sum()) for p, n in zip(powers, values, strict=True)]
    total = sum(spent)
    return Allocation(
        {name: (12 * level * s.values / s.sensitivity).sqrt() for name, s in sites.items()},
        math.sqrt(total),
        {name: part / total if total else 0.0 for name, part in zip(sites, spent, strict=True)},
    )
