"""Spike trains packed into bytes, and read out one step at a time.

A neuron's step is one bit, and eight steps are a byte. Reading a step is one ``and``, which leaves
0 or the bit's own value: no byte is above 128. The neurons of an ON/OFF pair are read one after the
other, and a spike of the OFF neuron counts negative.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from isospike.codes import WeightedCode
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace

MAX_TABLE_STEPS = 16  # longest train that is read from a table
BYTE = 8  # steps in one


class Step(NamedTuple):
    """One step of one neuron of every value.

    Attributes:
        weight: The integer weight of a spike over the one number that shows it, negative for OFF.
        spikes: 0, or that number, a byte each; valid until the next step.
    """

    weight: float
    spikes: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The spikes in the type of a product that they enter; a workspace."""
        shape, device = self.spikes.shape, self.spikes.device
        return workspace(Purpose.DENSE, shape, dtype, device).copy_(self.spikes)


def pack_trains(code: WeightedCode, integers: Tensor) -> Tensor:
    """Each integer's train: ``[planes, *shape]``, the bytes of the ON neuron first; the integers
    ``[1, *shape]`` themselves where trains are too long for a table."""
    if code.steps > MAX_TABLE_STEPS:
        return integers[None]
    tables = _trains(code).to(integers.device)
    low = -code.levels if code.neurons == 2 else 0
    packed = integers.new_empty((len(tables), *integers.shape), dtype=torch.uint8)
    for part in cache_blocks(integers, integers.numel()):
        index = (integers[part] - low).int().flatten()
        for table, plane in zip(tables, packed, strict=True):
            plane[part] = table.index_select(0, index).view_as(integers[part])
    return packed


def spike_steps(code: WeightedCode, trains: Tensor) -> Iterator[Step]:
    """The trains of :func:`pack_trains`, or a part of them: the first step of each neuron, then
    the second, and so on."""
    signs = (1, -1)[: code.neurons]
    if code.steps > MAX_TABLE_STEPS:
        every = code.encode_integers(trains[0]).to(torch.uint8)
        for weight, spikes in zip(code.step_weights, every, strict=True):
            for sign, one in zip(signs, spikes if code.neurons == 2 else (spikes,), strict=True):
                yield Step(sign * float(weight), one)
        return
    out = workspace(Purpose.SPIKES, trains.shape[1:], torch.uint8, trains.device)
    planes = len(trains) // code.neurons
    for t, weight in enumerate(code.step_weights):
        unit = 1 << t % BYTE
        for neuron, sign in enumerate(signs):
            torch.bitwise_and(trains[neuron * planes + t // BYTE], unit, out=out)
            yield Step(sign * weight / unit, out)


@functools.lru_cache(maxsize=32)
def _trains(code: WeightedCode) -> Tensor:
    """The bytes of every integer, from the lowest: ``[planes, integers]``."""
    low = -code.levels if code.neurons == 2 else 0
    trains = code.encode_integers(torch.arange(low, code.levels + 1, dtype=torch.float32)).int()
    neurons = trains.movedim(1, 0) if code.neurons == 2 else trains[None]
    places = torch.arange(code.steps) % BYTE
    shown = neurons << places[:, None]
    planes = [part.sum(0) for each in shown for part in each.split(BYTE)]
    return torch.stack(planes).to(torch.uint8)
