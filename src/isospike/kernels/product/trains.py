"""Spike trains packed into bytes, and read out one step at a time.

A step of an ON/OFF pair is one number, ON less OFF: a spike of the one neuron adds the weight that
a spike of the other takes away, and no code has both spike at once. Shown as a byte, a step is

(1)  byte = zero + unit * (on - off),   zero = unit for a pair, 0 for a single neuron

with ``unit`` the power of two where the step lies in its byte: a byte holds eight steps of a
neuron, four of a pair. Reading a step is one ``and``, and no byte is above 128.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from isospike.codes import WeightedCode
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace

MAX_TABLE_STEPS = 16  # longest train that is read from a table


class Step(NamedTuple):
    """One step of the trains of :func:`pack_trains`.

    Attributes:
        weight: The integer weight of a spike, over ``unit`` of (1).
        spikes: Bytes of (1), in the shape of the integers; valid until the next step.
        zero: That of (1).
    """

    weight: float
    spikes: Tensor
    zero: int

    @property
    def fired(self) -> Tensor:
        """Which neurons spike, ``[neurons, *shape]``."""
        on = self.spikes > self.zero
        return torch.stack([on, self.spikes < self.zero]) if self.zero else on[None]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """``unit * (on - off)`` in the type of a product that it enters; a workspace."""
        shape, device = self.spikes.shape, self.spikes.device
        out = workspace(Purpose.DENSE, shape, dtype, device).copy_(self.spikes)
        return out.sub_(self.zero) if self.zero else out


def pack_trains(code: WeightedCode, integers: Tensor) -> Tensor:
    """Each integer's train, ``[bytes, *shape]``; the integers ``[1, *shape]`` themselves where
    trains are too long for a table."""
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
    """The trains of :func:`pack_trains`, or a part of them, one step at a time."""
    pair = code.neurons == 2
    if code.steps > MAX_TABLE_STEPS:
        for weight, spikes in zip(code.step_weights, code.encode_integers(trains[0]), strict=True):
            shown = 1 + spikes[0] - spikes[1] if pair else spikes
            yield Step(float(weight), shown.to(torch.uint8), int(pair))
        return
    out = workspace(Purpose.SPIKES, trains.shape[1:], torch.uint8, trains.device)
    for t, weight in enumerate(code.step_weights):
        plane, place = divmod(t, _steps_in_byte(code))
        unit = 1 << (2 * place if pair else place)
        mask = 3 * unit if pair else unit
        torch.bitwise_and(trains[plane], mask, out=out)
        yield Step(weight / unit, out, unit if pair else 0)


def _steps_in_byte(code: WeightedCode) -> int:
    return 8 // code.neurons


@functools.lru_cache(maxsize=32)
def _trains(code: WeightedCode) -> Tensor:
    """The bytes of every integer, from the lowest: ``[bytes, integers]``."""
    low = -code.levels if code.neurons == 2 else 0
    trains = code.encode_integers(torch.arange(low, code.levels + 1, dtype=torch.float32)).int()
    shown = 1 + trains[:, 0] - trains[:, 1] if code.neurons == 2 else trains
    each = _steps_in_byte(code)
    places = torch.arange(len(shown)) % each * code.neurons
    shown = shown << places[:, None]
    return torch.stack([s.sum(0) for s in shown.split(each)]).to(torch.uint8)
