"""Products of spikes with weights of one to three bytes, exact in eight-bit arithmetic.

(1)  W = step * w, w a whole number
(2)  w = h                         one signed byte: weights of 8 bits
     w = 256 h + l                 two: weights on a 16-bit grid
     w = 65536 a + 256 b + c       three: any float32, rounded to 2^-23 of its output's largest
(3)  s W^T = step (256 s h^T + s l^T), likewise with one and three

Spikes are small whole numbers, so that an eight-bit matrix unit counts the product of spikes with
one plane of bytes exactly. The planes are put together in float32: of two, each has its own sum,
which makes a stepped product equal the float32 product bit for bit where that one is exact; the
three of a float32 weight are added one after the other.

Bytes have no sign. Signed whole numbers, those of a collapsed run, are shown above a *zero*, which
the unit takes off again, in whole numbers too.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isospike.errors import RangeError
from isospike.kernels.runtime.buffers import Purpose, workspace

FLOAT_PLANES = 3  # of a float32 weight
MAX_WEIGHT = 126 * 256 + 127  # |w| that two signed bytes hold, in either sign
# Without instructions for it (VNNI and the like) a processor adds two products in 16 bits, where
# sums saturate: 2 * 128 * 128 is the largest that fits.
MAX_PAIRED_SPIKE = 128


class BytePlanes(NamedTuple):
    """Weights laid out for :func:`add_product`.

    Attributes:
        packed: Planes, highest first; each is the weight of one product. Two planes that have
            their own sums are one, side by side.
        scales: What a count of each row of a plane is multiplied by.
        zeros: The zero points, all 0, one for each sum.
    """

    packed: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    zeros: Tensor

    @property
    def sums(self) -> int:
        """What each row of spikes gives: one for each output, or one for each of its bytes."""
        return len(self.zeros)


def can_pack(weight: Tensor, planes: int) -> bool:
    """Whether ``weight`` is a float32 matrix on a CPU that multiplies its ``planes`` of bytes
    sooner than itself: several only where the processor adds in 32 bits."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.dim() == 2
        and largest_spike() > (0 if planes == 1 else MAX_PAIRED_SPIKE)
    )


@functools.cache
def largest_spike() -> int:
    """The largest byte that this machine's eight-bit product counts exactly, found by trying: 255
    with VNNI or its like, ``MAX_PAIRED_SPIKE`` with AVX-512 alone. 0 where torch has no such
    product, and with AVX2 alone, where it takes longer than float32's."""
    weight = torch.tensor([[127] * 8, [-128] * 8], dtype=torch.int8)
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    for spike in (255, MAX_PAIRED_SPIKE) if wide else (255,):
        try:
            planes = _pack([weight], [torch.ones(2)])
            out = torch.zeros(4, 2)
            add_product(out, torch.full((4, 8), spike, dtype=torch.uint8), planes)
        except (AttributeError, RuntimeError, NotImplementedError):
            return 0
        if torch.equal(out, (8.0 * spike * weight[:, 0]).expand(4, 2)):
            return spike
    return 0


def byte_passes(span: int) -> int:
    """Products of bytes that integers of ``span + 1`` values take, where those are faster than a
    product in float32: one if a byte holds them; with one bit apart two, if the unit adds in 32
    bits, which makes it several times as fast as float32; otherwise 0."""
    largest = largest_spike()
    if span <= largest:
        return 1
    return 2 if span >> 1 <= largest and largest > MAX_PAIRED_SPIKE else 0


def pack_byte(weight: Tensor, quantum: Tensor) -> BytePlanes:
    """One plane, of weights of 8 bits.

    Args:
        weight: ``[outputs, inputs]``, whole multiples w of ``quantum``, |w| < 128.
        quantum: That of each output, ``[outputs, 1]``.
    """
    return _pack([(weight / quantum).round().to(torch.int8)], [quantum.flatten()])


def pack_grid(weight: Tensor, step: Tensor) -> BytePlanes:
    """Two planes, each with its own sum, of weights on a grid.

    Args:
        weight: ``[outputs, inputs]``, whole multiples w of ``step``, |w| <= ``MAX_WEIGHT``.
        step: The grid of each output ``[outputs, 1]``, a power of two.
    """
    high, low = _split(weight, step.flatten(), 2)
    scales = torch.cat([256 * step.flatten(), step.flatten()])
    return _pack([torch.cat([high, low])], [scales])


def pack_float32(weight: Tensor) -> BytePlanes:
    """Three planes with one sum, of ``weight [outputs, inputs]``, float32 on a CPU.

    Raises:
        RangeError: Some weight is NaN or infinite, which no byte can show.
    """
    if not weight.isfinite().all():
        wrong = int((~weight.isfinite()).sum())
        raise RangeError(
            f"spike_linear needs finite weights, got {wrong} of {weight.numel()} that are NaN or "
            "infinite. Check how they were made."
        )
    from isospike.kernels.product.digits import find_steps  # imports the compiler

    step = np.empty(len(weight), np.float32)
    find_steps(weight.detach().contiguous().numpy(), step)
    planes = _split(weight, torch.from_numpy(step), FLOAT_PLANES)
    return _pack(planes, [torch.from_numpy(p * step) for p in (65536, 256, 1)])


def new_membrane(weight: BytePlanes, rows: int) -> Tensor:
    """Zeros ``[rows, sums]``; a workspace."""
    shape = (rows, weight.sums)
    return workspace(Purpose.MEMBRANE, shape, torch.float32, torch.device("cpu")).zero_()


def add_product(
    out: Tensor, spikes: Tensor, weight: BytePlanes, scale: float = 1.0, zero: int = 0
) -> None:
    """``out += scale * (spikes - zero) @ W.T`` in place, for bytes ``spikes [rows, inputs]`` up to
    :func:`largest_spike`, and float32 ``out``: ``[rows, outputs]`` of :func:`pack_byte` and
    :func:`pack_float32`, ``[rows, 2 outputs]`` of :func:`pack_grid`."""
    for packed, scales in zip(weight.packed, weight.scales, strict=True):
        torch.ops.onednn.qlinear_pointwise.binary(
            spikes, scale, zero, packed, scales, weight.zeros, out,
            None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip


def _pack(planes: list[Tensor], scales: list[Tensor]) -> BytePlanes:
    packed = tuple(torch.ops.onednn.qlinear_prepack(plane, None) for plane in planes)
    scales = [scale.contiguous() for scale in scales]  # the product reads their memory as it lies
    zeros = torch.zeros(len(scales[0]), dtype=torch.int32)
    return BytePlanes(packed, tuple(scales), zeros)


def _split(weight: Tensor, step: Tensor, count: int) -> list[Tensor]:
    """(2): ``count`` planes of ``weight``, highest first."""
    from isospike.kernels.product.digits import find_digits  # imports the compiler

    digits = np.empty((count, *weight.shape), np.int8)
    find_digits(weight.detach().contiguous().numpy(), step.contiguous().numpy(), tuple(digits))
    return list(torch.from_numpy(digits))
