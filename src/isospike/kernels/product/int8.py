"""Products of binary spikes with integer weights, exact in eight-bit arithmetic.

A weight on a 16-bit grid, ``W = step * w`` with w an integer, splits into two bytes, ``w = 256 h +
l``. Spikes are 0 or 1, so the sums over h and over l are small integers, which eight-bit matrix
units count exactly; put together they are the float32 product, bit for bit where that one is exact.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from isospike.codes.code import LinearCode
from isospike.kernels.runtime.buffers import blocks, scratch

LARGEST_WEIGHT = 126 * 256 + 127  # |w| that two signed bytes hold, in either sign
MOST_STEPS = 16  # longest train that is read from a table
# Types of one neuron's bits and of a pair's, for trains of up to 8 and of up to 16 steps.
_HALVES = ((torch.uint8, torch.int16), (torch.int16, torch.int32))


def spell_words(code: LinearCode, integers: Tensor) -> Tensor:
    """Each integer's train as the bits of one word: step t is bit t, an OFF neuron's in the upper
    half. Trains too long for a table stay ``integers``."""
    if code.steps > MOST_STEPS:
        return integers
    table = _words(code).to(integers.device)
    low = -code.levels if code.neurons == 2 else 0
    words = torch.empty_like(integers, dtype=table.dtype)
    for part in blocks(integers, integers.numel()):
        index = (integers[part] - low).int()
        words[part] = table.index_select(0, index.flatten()).view(index.shape)
    return words


def spike_steps(code: LinearCode, words: Tensor) -> Iterator[tuple[float, Tensor]]:
    """The trains of :func:`spell_words`, ``[..., channels]``, one step at a time.

    Yields:
        The integer weight that a spike of this step has when counted as 1, divided by the one
        number it is shown as; and the spikes, unsigned bytes ``[..., channels]``, zero or that
        number, valid until the next step. An ON/OFF pair gives ``[..., 2 channels]``, the two
        neurons of a value side by side; see :func:`paired`.
    """
    if code.steps > MOST_STEPS:
        for weight, spikes in zip(code.step_weights, code.spell(words), strict=True):
            both = spikes.movedim(0, -1).flatten(-2) if code.neurons == 2 else spikes
            yield float(weight), both.to(torch.uint8)
        return
    half, _ = _HALVES[code.steps > 8]
    both = 1 if code.neurons == 1 else 1 + (1 << 8 * half.itemsize)  # the bits of step 0
    out = scratch("spikes", words.shape, words.dtype, words.device)
    for t, weight in enumerate(code.step_weights):
        if code.steps <= 8:  # a spike is shown as its bit: no shift, one pass less
            bits = torch.tensor(both << t).to(words)
            yield weight / (1 << t), torch.bitwise_and(words, bits, out=out).view(half)
        else:
            torch.bitwise_right_shift(words, t, out=out).bitwise_and_(both)
            yield float(weight), out.view(half).to(torch.uint8)


def paired(weight: Tensor, neurons: int, axis: int = -1) -> Tensor:
    """``weight`` for the spikes of :func:`spike_steps`: an OFF spike counts negative."""
    if neurons == 1:
        return weight
    axis %= weight.dim()
    return torch.stack([weight, -weight], axis + 1).flatten(axis, axis + 1)


class PackedWeight(NamedTuple):
    """Weights laid out for :func:`add_product`: both bytes, one column per neuron."""

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
        neurons: Neurons per input channel, 1 or 2.
    """
    w = paired((weight / step).round(), neurons)
    high = ((w + 128) / 256).floor()
    both = torch.cat([high, w - 256 * high])
    scales = torch.cat([256 * step.flatten(), step.flatten()])
    packed = torch.ops.onednn.qlinear_prepack(both.to(torch.int8).contiguous(), None)
    return PackedWeight(packed, scales, torch.zeros(len(scales), dtype=torch.int32), len(weight))


def new_membrane(weight: PackedWeight, rows: int) -> Tensor:
    """Zeros ``[rows, 2 out]``: one accumulator for each byte of the weights; scratch memory."""
    shape = (rows, 2 * weight.outputs)
    return scratch("membrane", shape, torch.float32, weight.packed.device).zero_()


def add_product(membrane: Tensor, spikes: Tensor, weight: PackedWeight, scale: float) -> None:
    """``membrane += scale * spikes @ W.T`` in place, for bytes ``spikes [rows, in]``."""
    torch.ops.onednn.qlinear_pointwise.binary(
        spikes, scale, 0, weight.packed, weight.scales, weight.zeros, membrane,
        None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
    )  # fmt: skip


@functools.lru_cache(maxsize=32)
def _words(code: LinearCode) -> Tensor:
    """The words of every integer, from the lowest; see :func:`spell_words`."""
    half, word = _HALVES[code.steps > 8]
    low = -code.levels if code.neurons == 2 else 0
    trains = code.spell(torch.arange(low, code.levels + 1, dtype=torch.float32)).long()
    place = torch.arange(code.steps).view(-1, *[1] * (trains.dim() - 1))
    bits = (trains << place).sum(0)
    if code.neurons == 1:
        return bits.to(half)
    return (bits[0] | (bits[1] << (8 * half.itemsize))).to(word)
