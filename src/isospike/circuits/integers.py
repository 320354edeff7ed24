"""Few-spike neurons in whole numbers, and the tables of their outputs."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from isospike.circuits.digits import gated_add
from isospike.circuits.few_spike import BUILTIN, few_spike_neuron

CELLS = 1024
"""Cells of a few-spike neuron's range: its thresholds and resets are whole numbers of them."""
FINE = 4096
"""Its output counts in units of 1 / FINE."""


@dataclass(frozen=True)
class IntegerNeuron:
    """A few-spike neuron in whole numbers: input 0 to ``CELLS``, output in units of 1 / FINE."""

    thresholds: tuple[int, ...]
    resets: tuple[int, ...]
    weights: tuple[int, ...]
    offset: int

    def run(self, v: Tensor, unit: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Run step by step.

        Args:
            v: Membranes at the start, in units.
            unit: Unit of thresholds and resets.

        Returns:
            Output, in units of 1 / FINE, and number of spikes.
        """
        total = torch.full_like(v, self.offset)
        count = torch.zeros_like(v)
        for threshold, reset, weight in zip(
            self.thresholds, self.resets, self.weights, strict=True
        ):
            fired = v >= threshold * unit
            if isinstance(unit, Tensor):
                v = gated_add(v, unit, fired, -reset)
            else:
                v = torch.add(v, fired, alpha=-reset * unit)
            total = torch.add(total, fired, alpha=float(weight))
            count = count + fired
        return total, count


@cache
def integer_neuron(name: str, scale: float = 1.0) -> IntegerNeuron:
    """A built-in few-spike neuron in whole numbers.

    Args:
        name: One of :data:`isospike.circuits.few_spike.BUILTIN`.
        scale: Factor of its output.

    Returns:
        The neuron.
    """
    neuron = few_spike_neuron(name)
    return IntegerNeuron(
        tuple(round(x * CELLS) for x in neuron.thresholds),
        tuple(round(x * CELLS) for x in neuron.resets),
        tuple(round(x * scale * FINE) for x in neuron.weights),
        round(neuron.offset * scale * FINE),
    )


@cache
def lookup_table(name: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Output and number of spikes of an integer neuron for each of its CELLS + 1 inputs.

    Args:
        name: One of :data:`isospike.circuits.few_spike.BUILTIN`.
        scale: Factor of its output.

    Returns:
        Outputs, in units of 1, and numbers of spikes.
    """
    every = torch.arange(CELLS + 1, dtype=torch.float64)
    with torch.inference_mode(False):
        total, count = integer_neuron(name, scale).run(every)
        return total.div_(FINE), count


def lookup(name: str, v: Tensor, *, stepped: bool = False) -> Tensor:
    """A few-spike neuron's function of ``v``, 0 to CELLS cells of its range, saturating.

    Error: that of the neuron; whole numbers add a few per cent to it. The number of spikes is in
    :func:`lookup_table`.

    Args:
        name: One of :data:`isospike.circuits.few_spike.BUILTIN`.
        v: Inputs, in cells.
        stepped: Whether spike by spike.

    Returns:
        Outputs, in the dtype of ``v``.
    """
    if stepped:
        total, _ = integer_neuron(name).run(v.double().clamp(0, CELLS))
        return (total / FINE).to(v.dtype)
    return take(lookup_table(name)[0], v)


@cache
def relative_error(name: str) -> float:
    """Largest measured error of :func:`lookup`, relative to the function.

    Args:
        name: One of :data:`isospike.circuits.few_spike.BUILTIN` that is nowhere 0.

    Returns:
        The error.
    """
    function, low, high = BUILTIN[name]
    at = torch.arange(16 * CELLS, dtype=torch.float64) / 16
    true = function(low + (high - low) * at / CELLS)
    return float((lookup(name, at) / true - 1).abs().max())


def take(values: Tensor, index: Tensor) -> Tensor:
    """``values[floor(index)]``; an index beyond the end takes the last value.

    Args:
        values: One-dimensional.
        index: Numbers of at least 0.

    Returns:
        Values in the shape and dtype of ``index``.
    """
    table = values.to(index.device, index.dtype)
    last = len(values) - 1
    place = index.clamp(0, last).to(torch.int32).clamp_(0, last)  # again, for NaN
    return table.index_select(0, place.flatten()).view(index.shape)
