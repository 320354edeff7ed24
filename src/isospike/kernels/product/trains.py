"""Spike trains packed into words, and read out one step at a time."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from isospike.codes import WeightedCode
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace

MAX_TABLE_STEPS = 16  # longest train that is read from a table
# Types of one neuron's bits and of a pair's, for trains of up to 8 and of up to 16 steps.
_HALVES = ((torch.uint8, torch.int16), (torch.int16, torch.int32))


def pack_trains(code: WeightedCode, integers: Tensor) -> Tensor:
    """Each integer's train as the bits of one word: step t is bit t, an OFF neuron's in the upper
    half. Trains too long for a table stay ``integers``."""
    if code.steps > MAX_TABLE_STEPS:
        return integers
    table = _words(code).to(integers.device)
    low = -code.levels if code.neurons == 2 else 0
    words = torch.empty_like(integers, dtype=table.dtype)
    for part in cache_blocks(integers, integers.numel()):
        index = (integers[part] - low).int()
        words[part] = table.index_select(0, index.flatten()).view(index.shape)
    return words


def spike_steps(code: WeightedCode, words: Tensor) -> Iterator[tuple[float, Tensor]]:
    """The trains of :func:`pack_trains`, ``[..., channels]``, one step at a time.

    Yields:
        The integer weight that a spike of this step has when counted as 1, divided by the one
        number it is shown as; and the spikes, unsigned bytes ``[..., channels]``, zero or that
        number, valid until the next step. An ON/OFF pair gives ``[..., 2 channels]``, the two
        neurons of a value side by side; see :func:`pair_weights`.
    """
    if code.steps > MAX_TABLE_STEPS:
        for weight, spikes in zip(code.step_weights, code.encode_integers(words), strict=True):
            both = spikes.movedim(0, -1).flatten(-2) if code.neurons == 2 else spikes
            yield float(weight), both.to(torch.uint8)
        return
    half, _ = _HALVES[code.steps > 8]
    both = 1 if code.neurons == 1 else 1 + (1 << 8 * half.itemsize)  # the bits of step 0
    out = workspace(Purpose.SPIKES, words.shape, words.dtype, words.device)
    for t, weight in enumerate(code.step_weights):
        if code.steps <= 8:  # a spike is shown as its bit: no shift, one pass less
            bits = torch.tensor(both << t).to(words)
            yield weight / (1 << t), torch.bitwise_and(words, bits, out=out).view(half)
        else:
            torch.bitwise_right_shift(words, t, out=out).bitwise_and_(both)
            yield float(weight), out.view(half).to(torch.uint8)


def pair_weights(weight: Tensor, neurons: int, axis: int = -1) -> Tensor:
    """``weight`` for the spikes of :func:`spike_steps`: an OFF spike counts negative."""
    if neurons == 1:
        return weight
    axis %= weight.dim()
    return torch.stack([weight, -weight], axis + 1).flatten(axis, axis + 1)


@functools.lru_cache(maxsize=32)
def _words(code: WeightedCode) -> Tensor:
    """The words of every integer, from the lowest; see :func:`pack_trains`."""
    half, word = _HALVES[code.steps > 8]
    low = -code.levels if code.neurons == 2 else 0
    trains = code.encode_integers(torch.arange(low, code.levels + 1, dtype=torch.float32)).long()
    place = torch.arange(code.steps).view(-1, *[1] * (trains.dim() - 1))
    bits = (trains << place).sum(0)
    if code.neurons == 1:
        return bits.to(half)
    return (bits[0] | (bits[1] << (8 * half.itemsize))).to(word)
