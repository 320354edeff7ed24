"""float32 weights as three planes of bytes, for products with spikes in eight-bit units.

``w = step (65536 a + 256 b + c)``, with signed bytes a, b, c and a power-of-two step for each
output: a weight is rounded to 2^-23 of the largest one of its output. The product of spikes with a
plane is a whole number; the three are added in float32.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from isospike.errors import RangeError

LARGEST = 127 * 65536 + 127 * 256 + 127  # what three signed bytes hold
PLACES = (65536, 256, 1)


class Planes(NamedTuple):
    """Packed planes, the highest first, and the step of each, ``[outputs]``."""

    packed: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    zeros: Tensor


@njit(cache=True, nogil=True)
def _digits(weight, digits, steps):
    """The bytes of each row of ``weight`` and its step."""
    for i in range(len(weight)):
        largest = 0.0
        for w in weight[i]:
            largest = max(largest, abs(w))
        step = 2.0 ** math.ceil(math.log2(max(largest, 1e-30) / LARGEST))
        steps[i] = step
        for j in range(weight.shape[1]):
            w = np.int64(round(weight[i, j] / step))
            low = (w + 128) % 256 - 128
            w = (w - low) // 256
            middle = (w + 128) % 256 - 128
            digits[0, i, j], digits[1, i, j], digits[2, i, j] = (w - middle) // 256, middle, low


def split_planes(weight: Tensor) -> Planes:
    """The planes of ``weight [outputs, inputs]``, float32 on a CPU.

    Raises:
        RangeError: Some weight is NaN or infinite, which no byte can show.
    """
    if not weight.isfinite().all():
        wrong = int((~weight.isfinite()).sum())
        raise RangeError(
            f"spike_linear needs finite weights, got {wrong} of {weight.numel()} that are NaN or "
            "infinite. Look at what made them."
        )
    digits = np.empty((3, *weight.shape), np.int8)
    steps = np.empty(len(weight), np.float32)
    _digits(weight.detach().contiguous().numpy(), digits, steps)
    packed = tuple(
        torch.ops.onednn.qlinear_prepack(torch.from_numpy(digit), None) for digit in digits
    )
    scales = tuple(torch.from_numpy(place * steps) for place in PLACES)
    return Planes(packed, scales, torch.zeros(len(weight), dtype=torch.int32))


def add_planes(s: Tensor, planes: Planes, out: Tensor) -> None:
    """``out += s @ weight.T`` for bytes ``s [rows, inputs]`` and float32 ``out``."""
    for packed, scale in zip(planes.packed, planes.scales, strict=True):
        torch.ops.onednn.qlinear_pointwise.binary(
            s, 1.0, 0, packed, scale, planes.zeros, out,
            None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
