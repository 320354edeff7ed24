"""Positional encodings: attention does not know the order of tokens without one.

A :class:`Position` has three hooks: it may add to the input of the first layer, rotate queries and
keys, and bias the scores. ``score(p, q) = <rotated q_p, rotated k_q> / sqrt(head width) + bias(p,
q)``. It works on any tensors ``[..., length, width]``, spikes or floats:

    >>> import torch
    >>> from isospike.positions import RoPE
    >>> q, k = RoPE(head_width=64).rotate(torch.randn(8, 10, 64), torch.randn(8, 10, 64))

====================  =======  ======================================  ==========================
class                 hook     what                                    positions
====================  =======  ======================================  ==========================
NoPE                  --       nothing                                 any
Sinusoidal            add      sines and cosines                       any
SpikeTiming           add      the same, times cycle / length          any
FrequencyCompressed   add      phases divided by the length            any
RankLearned           add      a learned table                         ``max_length``
RankSignificance      add      a random N-of-M firing order            ``max_length``
CentralPatternGen..   add      spikes of oscillators, a learned map    any
RoPE                  rotate   pairs of channels, by the position      any
ALiBi                 bias     -slope * distance                       any
T5Buckets             bias     learned, by bucket of the distance      any
FIRE                  bias     a learned function of the distance      any
LogDistance           bias     -gain * ceil(log2(1 + distance))        any
GrayCode              bias     gain * equal bits of the Gray codes     ``max_length``, 2^bits
RandomizedOrdered     any      another encoding at random, ordered     ``max_length``
                               positions
====================  =======  ======================================  ==========================

"Any" means that the encoding is defined there, not that a model trained on shorter sequences works
there: ``docs/positions.md`` has what was measured.
"""

from isospike.errors import InputError, RangeError
from isospike.positions.additive import (
    CentralPatternGenerator,
    FrequencyCompressed,
    RankLearned,
    RankSignificance,
    Sinusoidal,
    SpikeTiming,
    sinusoid,
)
from isospike.positions.base import Additive, NoPE, Position, check_positive
from isospike.positions.randomized import RandomizedOrdered
from isospike.positions.relative import FIRE, ALiBi, GrayCode, LogDistance, RoPE, T5Buckets

__all__ = [
    "FIRE",
    "POSITIONS",
    "ALiBi",
    "Additive",
    "CentralPatternGenerator",
    "FrequencyCompressed",
    "GrayCode",
    "LogDistance",
    "NoPE",
    "Position",
    "RandomizedOrdered",
    "RankLearned",
    "RankSignificance",
    "RoPE",
    "Sinusoidal",
    "SpikeTiming",
    "T5Buckets",
    "position",
    "sinusoid",
]

POSITIONS: dict[str, type[Position]] = {
    cls.name: cls
    for cls in (
        NoPE, Sinusoidal, SpikeTiming, FrequencyCompressed, RankLearned, RankSignificance, RoPE,
        ALiBi, T5Buckets, FIRE, RandomizedOrdered, CentralPatternGenerator, GrayCode, LogDistance,
    )
}  # fmt: skip
"""Every encoding by name."""


def position(name: str, *, width: int, heads: int, length: int, causal: bool = True) -> Position:
    """The encoding called ``name`` for a model of this shape.

    Args:
        name: A key of :data:`POSITIONS`.
        width: Channels of the model; the heads divide it.
        heads: Number of attention heads.
        length: Length of the sequences it will be trained on.
        causal: Whether attention looks back only.

    Returns:
        The encoding.

    Raises:
        InputError: There is no encoding of this name.
        RangeError: The encoding cannot take this shape.

    >>> position("rope", width=64, heads=4, length=32)
    RoPE()
    """
    if name not in POSITIONS:
        raise InputError(
            f"position needs the name of an encoding, got {name!r}. Use one of "
            f"{', '.join(POSITIONS)}."
        )
    check_positive("position", heads=heads, length=length)
    if width < 1 or width % heads:
        raise RangeError(
            f"position needs a width that {heads} heads divide, got {width}. Choose a multiple of "
            f"{heads}."
        )
    return POSITIONS[name].for_model(width, heads, length, causal)
