"""A gain that is a power of two, by spikes: find the octave of the largest value, shift by it.

One neuron for each channel and each octave compares the value with a threshold, a power of two;
how many octaves have a spike in any channel is the shift. Each such spike opens a gate that lets a
membrane be added to itself, which doubles it, or half of it be taken off.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.circuits.digits import gated_add

LOWEST, HIGHEST = -6, 6
"""Smallest and largest exponent of a gain."""


def count_octaves(
    u: Float[Tensor, "..."], axes: tuple[int, ...], *, stepped: bool = False
) -> Float[Tensor, "..."]:
    """Octaves above ``2^LOWEST`` that the largest magnitude along ``axes`` reaches into.

    ``count = clamp(ceil(log2 max |u|), LOWEST, HIGHEST) - LOWEST``

    Args:
        u: Values.
        axes: Those that share a gain; they stay, with length 1.
        stepped: Whether to compare octave by octave, or all at once; the result is the same.

    Returns:
        Whole numbers from 0 to ``HIGHEST - LOWEST``.

    >>> count_octaves(torch.tensor([[0.3, -2.5, 1.0]]), (-1,)) + LOWEST
    tensor([[2.]])
    """
    magnitude = u.abs()
    if stepped:
        fired = [(magnitude > 2.0**k).any(axes, keepdim=True) for k in range(LOWEST, HIGHEST)]
        count = torch.zeros(fired[0].shape, dtype=u.dtype, device=u.device)
        for spike in fired:
            count = count + spike.to(u.dtype)
        return count
    mantissa, exponent = torch.frexp(magnitude.amax(axes, keepdim=True))
    ceiling = exponent - (mantissa == 0.5).int()
    lowest = torch.where(mantissa == 0, LOWEST, ceiling)
    return (lowest.clamp(LOWEST, HIGHEST) - LOWEST).to(u.dtype)


def shift_octaves(
    y: Float[Tensor, "..."],
    count: Float[Tensor, "..."],
    *,
    up: bool = True,
    stepped: bool = False,
) -> Float[Tensor, "..."]:
    """``y`` times, or over, the gain ``2^(LOWEST + count)``.

    Args:
        y: Membranes.
        count: As of :func:`count_octaves`, broadcastable.
        up: Whether to multiply; otherwise to divide.
        stepped: Whether to double octave by octave, or all at once; the result is the same.

    Returns:
        The new membranes.

    >>> shift_octaves(torch.tensor([3.0]), torch.tensor([8.0]))
    tensor([12.])
    """
    sign = 1 if up else -1
    if not stepped:
        return y * torch.exp2(sign * (LOWEST + count)).to(y.dtype)
    y = y * 2.0 ** (sign * LOWEST)
    for k in range(HIGHEST - LOWEST):
        y = gated_add(y, y, (count > k).to(y.dtype), 1.0 if up else -0.5)
    return y
