"""Products of binary spikes with integer weights, exact in eight-bit arithmetic.

A weight on a 16-bit grid, ``W = step * w`` with w an integer, splits into two bytes, ``w = 256 h +
l``. Spikes are 0 or 1, so the sums over h and over l are small integers, which eight-bit matrix
units count exactly; put together they are the float32 product, bit for bit where that one is exact.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from isospike.codes import LinearCode

LARGEST_WEIGHT = 126 * 256 + 127  # |w| that two signed bytes hold, in either sign
MOST_BITS = 16  # spikes per value, over all steps and neurons, that one table word holds


class PackedWeight(NamedTuple):
    """Weights laid out for :func:`spike_linear`: both bytes, and both signs for an ON/OFF pair."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    outputs: int


def can_pack(weight: Tensor) -> bool:
    """Whether this build of torch and this device have the eight-bit product."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.dim() == 2
        and "onednn" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.onednn, "qlinear_prepack")
    )


def pack(weight: Tensor, step: Tensor, neurons: int) -> PackedWeight:
    """Lay out ``weight [out, in]``, whole multiples of ``step [out, 1]``, |w| <=
    ``LARGEST_WEIGHT``.

    Args:
        weight: The weights.
        step: The grid of each output, a power of two.
        neurons: 2 if the input is an ON/OFF pair, whose OFF half counts negative; else 1.
    """
    w = (weight / step).round()
    high = ((w + 128) / 256).floor()
    both = torch.cat([high, w - 256 * high])
    if neurons == 2:
        both = torch.cat([both, -both], 1)
    # The OFF copy of a low byte -128 is 128, one too many: carry it into the high byte.
    over = (both[len(weight) :] > 127).to(both.dtype)
    both[: len(weight)] += over
    both[len(weight) :] -= 256 * over
    both = both.to(torch.int8)
    scales = torch.cat([256 * step.flatten(), step.flatten()])
    packed = torch.ops.onednn.qlinear_prepack(both.contiguous(), None)
    return PackedWeight(packed, scales, torch.zeros(len(scales), dtype=torch.int32), len(weight))


def spike_linear(spikes: Tensor, weight: PackedWeight) -> Tensor:
    """``spikes @ W.T`` in float32.

    Args:
        spikes: uint8 in {0, 1}, ``[..., in]``; for a pair ``[..., 2 in]``, ON then OFF.
        weight: See :func:`pack`.
    """
    flat = spikes.reshape(-1, spikes.shape[-1])
    y = torch.ops.onednn.qlinear_pointwise(
        flat, 1.0, 0, weight.packed, weight.scales, weight.zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    total: Tensor = y[:, : weight.outputs] + y[:, weight.outputs :]
    return total.view(*spikes.shape[:-1], weight.outputs)


def spell_bytes(code: LinearCode, integers: Tensor) -> Tensor:
    """``code.spell(integers)`` as uint8; short trains are read from a table of words."""
    neurons, steps = code.neurons, code.steps
    bits = steps * neurons
    if bits > MOST_BITS:
        return code.spell(integers).to(torch.uint8)
    low = -code.levels if neurons == 2 else 0
    words = _words(code).index_select(0, (integers.flatten() - low).int())
    out = torch.empty((bits, words.numel()), dtype=torch.uint8)
    for start in range(0, bits, 8):
        byte = ((words >> start) & 255).to(torch.uint8)
        for bit in range(start, min(start + 8, bits)):
            torch.bitwise_and(byte >> (bit - start), 1, out=out[bit])
    lead = (steps, neurons) if neurons == 2 else (steps,)
    return out.view(*lead, *integers.shape)


@functools.lru_cache(maxsize=32)
def _words(code: LinearCode) -> Tensor:
    """The train of every integer as the bits of one int32."""
    low = -code.levels if code.neurons == 2 else 0
    trains = code.spell(torch.arange(low, code.levels + 1, dtype=torch.float32))
    flat = trains.reshape(code.steps * code.neurons, -1).int()
    place = torch.arange(len(flat), dtype=torch.int32)[:, None]
    return (flat << place).sum(0).int()
