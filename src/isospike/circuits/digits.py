"""Signed digits of a membrane, and what a spike does to another membrane."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SignedDigitFormat:
    """Signed digits of a membrane in units of ``grid``.

    (1)  on = v >= c w, off = v < (1 - c) w, v <- v - w (on - off), w = 2^(steps-1) .. 1

    with v = x / grid + 1/2 and c w = ceil(2 w / 3): the non-adjacent form of floor(v), which has
    the fewest spikes. Values beyond 2^steps - 1 units saturate.

    Attributes:
        grid: Unit, a power of two.
        steps: Time steps, 1 to 20.

    >>> import torch
    >>> SignedDigitFormat(grid=0.5, steps=4).integers(torch.tensor([1.6, -9.0])).tolist()
    [3.0, -15.0]
    """

    grid: float
    steps: int

    @classmethod
    def fit(cls, smallest: float, largest: float) -> "SignedDigitFormat":
        """The format for errors up to ``smallest`` and values up to ``largest``, in 20 steps.

        Args:
            smallest: Largest error of a value.
            largest: Largest magnitude of a value.

        Returns:
            The format.
        """
        grid = 2.0 ** math.floor(math.log2(max(2 * smallest, largest * 2.0**-20, 1e-30)))
        return cls(grid, max(1, min(20, math.ceil(math.log2(largest / grid + 2)))))

    @property
    def largest(self) -> int:
        """Largest whole number."""
        return int(2**self.steps - 1)

    def integers(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The whole number that the digits of each value encode.

        Args:
            x: Values.

        Returns:
            Whole numbers in the dtype of ``x``.
        """
        n = x.mul(1 / self.grid).add_(0.5).floor_()
        return n.clamp_(-self.largest, self.largest)

    def spikes(self, x: Float[Tensor, "*shape"]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(1), step by step.

        Args:
            x: Values.

        Returns:
            Weight, ON spikes and OFF spikes of each step.
        """
        return digits_of(x * (1 / self.grid) + 0.5, self.steps)

    @staticmethod
    def count(integers: Tensor) -> Int[Tensor, "*shape"]:
        """Number of spikes of each whole number.

        Args:
            integers: Whole numbers; a saturated one, all digits of one sign, is counted too low.

        Returns:
            Counts, in the shape of ``integers``.
        """
        n = integers.abs().long()
        return popcount(n ^ (3 * n))


def digits_of(v: Tensor, steps: int, unit: float | int = 1) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(1) for a membrane with weights in multiples of ``unit``.

    Args:
        v: Membranes.
        steps: Time steps.
        unit: Value of the last step's weight.

    Yields:
        Weight in units, ON spikes and OFF spikes of each step.
    """
    for t in range(steps - 1, -1, -1):
        w = 2**t
        c = -(-2 * w // 3)
        on, off = v >= c * unit, v < (1 - c) * unit
        v = add_spikes(v, on, off, w * unit, -1)
        yield w, on, off


def add_spikes(v: Tensor, on: Tensor, off: Tensor, weight: float | int, sign: int = 1) -> Tensor:
    """``v + sign weight (on - off)``: the spikes of an ON/OFF pair added to a membrane.

    Args:
        v: Membranes.
        on: Spikes of the ON neurons.
        off: Spikes of the OFF neurons.
        weight: Weight of a spike.
        sign: 1 to add, -1 to subtract.

    Returns:
        The new membranes.
    """
    return torch.add(torch.add(v, on, alpha=sign * weight), off, alpha=-sign * weight)


def gated_add(v: Tensor, trace: Tensor, spikes: Tensor, weight: float | int) -> Tensor:
    """``v + weight trace`` where there is a spike: a gate.

    Args:
        v: Membranes.
        trace: Values that the gate passes.
        spikes: 0 or 1, broadcast against them.
        weight: A power of two and a sign.

    Returns:
        The new membranes.
    """
    return torch.addcmul(v, trace, spikes.to(v.dtype), value=weight)


def popcount(n: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Number of ones in the binary form of whole numbers.

    Args:
        n: Whole numbers of at least 0.

    Returns:
        Counts, in the shape of ``n``.

    >>> import torch
    >>> popcount(torch.tensor([0, 7, 8])).tolist()
    [0, 3, 1]
    """
    total = torch.zeros_like(n)
    while bool((n > 0).any()):
        total += n & 1
        n = n >> 1
    return total
