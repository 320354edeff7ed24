"""``q (k^T v)`` of binary spikes by adding rows, compiled by Numba for bytes.

A spike adds a row of small integers, a few instructions for a head's width: at usual rates less
work than a product, and at any rate exact. Sixty-four bytes become the bits of a word, whose ones a
processor finds without searching.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from isospike.errors import RangeError
from isospike.kernels.runtime.threads import parallel_for

BYTES = 8  # of a word
GATHER = np.uint64(0x0102040810204080)  # times a word of zeros and ones: byte i is bit i of the top
ONES = np.uint64(0x0101010101010101)
ZERO, ONE, TOP = np.uint64(0), np.uint64(1), np.uint64(56)
NONE = 64  # the place of the lowest one in a word that has none
SMALL = 2**17  # bytes of q that one thread does sooner than a second one starts


@intrinsic
def _lowest(typing, word):
    """The place of the lowest one of a word."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.int64(types.uint64), generate


@njit(cache=True, nogil=True)
def _gather(words):
    """Up to eight words of zeros and ones as the bits of one, and all that they hold."""
    bits, seen = ZERO, ZERO
    for i in range(len(words)):
        word = np.uint64(words[i])
        bits |= ((word * GATHER) >> TOP) << np.uint64(BYTES * i)
        seen |= word
    return bits, seen


@njit(cache=True, nogil=True)
def _row(memory, strides, i, head, token, size):
    """The row of a token, whose entries are neighbours, as the compiler is to know."""
    first = strides[0] * i + strides[1] * head + strides[2] * token
    return memory[first : first + size]


@njit(cache=True, nogil=True)
def _attend(q, k, v, out, strides, sizes, scale, zero, faults, start, stop):
    heads, tokens, keys, words, width = sizes
    parts = (words + BYTES - 1) // BYTES
    rows = np.empty((parts, NONE + 1, width), zero.dtype)  # k^T v, 64 channels and a row of zeros
    row = np.empty(width, zero.dtype)
    seen, most = ZERO, np.zeros(width, np.uint8)
    for group in range(start, stop):
        i, head = group // heads, group % heads
        rows[:] = 0
        for token in range(keys):
            spikes = _row(k, strides[1], i, head, token, words)
            values = _row(v, strides[2], i, head, token, width)
            for d in range(width):
                row[d] = values[d]
                most[d] |= values[d]
            for p in range(parts):
                bits, held = _gather(spikes[BYTES * p : BYTES * (p + 1)])
                seen |= held
                while bits != ZERO:
                    sums = rows[p, _lowest(bits)]
                    bits &= bits - ONE
                    for d in range(width):
                        sums[d] += row[d]
        for token in range(tokens):
            spikes = _row(q, strides[0], i, head, token, words)
            result = _row(out, strides[3], i, head, token, width)
            row[:] = 0
            for p in range(parts):
                bits, held = _gather(spikes[BYTES * p : BYTES * (p + 1)])
                seen |= held
                while bits != ZERO:  # four at once: fewer turns, which are hard to foresee
                    r0 = rows[p, _lowest(bits)]
                    bits &= bits - ONE
                    r1 = rows[p, _lowest(bits)]
                    bits &= bits - ONE
                    r2 = rows[p, _lowest(bits)]
                    bits &= bits - ONE
                    r3 = rows[p, _lowest(bits)]
                    bits &= bits - ONE
                    for d in range(width):
                        row[d] += (r0[d] + r1[d]) + (r2[d] + r3[d])
            for d in range(width):
                result[d] = scale * np.float32(row[d])
    if seen & ~ONES or most.max() > 1:
        faults[0] = 1


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Fill ``out [..., tokens, values]``, float32, with ``scale * q (k^T v)``.

    ``q [..., tokens, channels]``, ``k [..., keys, channels]`` and ``v [..., keys, values]`` are
    bytes on a CPU with the same leading axes.

    Raises:
        RangeError: One of them is neither 0 nor 1.
    """
    zero = np.zeros((), np.int16 if q.shape[-1] * k.shape[-2] < 2**15 else np.int32)
    faults = np.zeros(1, np.uint8)
    v = v if v.stride(-1) == 1 else v.contiguous()
    four = [_four(x) for x in (_words(q), _words(k), v, out)]
    arguments = (
        *(_memory(x) for x in four), tuple(x.stride()[:3] for x in four),
        (four[0].shape[1], q.shape[-2], k.shape[-2], four[0].shape[3], v.shape[-1]),
        np.float32(scale), zero, faults,
    )  # fmt: skip
    groups = four[0].shape[0] * four[0].shape[1]
    threads = max(1, min(torch.get_num_threads(), groups, q.numel() // SMALL))
    parallel_for(_attend, arguments, groups, threads)
    if faults[0]:
        raise RangeError(
            "spike_attention needs values 0 or 1, got values above 1. "
            "Pass spikes, not spike counts."
        )


def _words(x: Tensor) -> Tensor:
    """Eight bytes as one word; zeros fill the last."""
    x = F.pad(x, (0, -x.shape[-1] % BYTES)) if x.shape[-1] % BYTES else x
    steps = (x.storage_offset(), *x.stride()[:-1])
    aligned = x.stride(-1) == 1 and not any(step % BYTES for step in steps)
    return (x if aligned else x.contiguous()).view(torch.int64)


def _four(x: Tensor) -> Tensor:
    """``[all others, heads, tokens, channels]``, a view of ``x`` where its strides allow it."""
    return x.flatten(0, -4) if x.dim() > 3 else x[(None,) * (4 - x.dim())]


def _memory(x: Tensor) -> Any:
    """All from the first entry of ``x`` to its last."""
    ends = zip(x.shape, x.stride(), strict=True)
    extent = 1 + sum((size - 1) * step for size, step in ends) if x.numel() else 0
    return x.as_strided((extent,), (1,)).numpy()
