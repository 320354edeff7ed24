"""Cache-sized blocks and reusable buffers for the CPU kernels.

Fresh memory costs a CPU a page fault every 4 KiB, as much time as the arithmetic done in it. There
are two ways around it, with these rules.

*A workspace* (:func:`workspace`) holds an intermediate result. It belongs to one thread and to one
:class:`Purpose`, and it is valid only until the same thread asks for the same purpose (and type)
again: so a function must not return it to code that may do so, must not keep it in an object, and
must not ask for a purpose while it or one of its callers still reads that purpose. Two results that
live at the same time need two purposes. Its contents are undefined when it is handed out. To find
code that breaks a rule, set the environment variable ``ISOSPIKE_POISON=1``: every workspace is then
filled with NaN (integers with their largest value) whenever it is handed out.

*A pooled tensor* (:func:`empty_pooled`) is an ordinary result: it is valid as long as something
refers to it, and its memory then waits for the next tensor of its size. :func:`empty_cache` gives
the waiting memory back to the system.
"""

import contextlib
import ctypes
import enum
import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 2**19  # elements; in float32, what the level-2 cache of one core holds

LARGE = 2**17  # bytes; a C library returns larger allocations to the system when they are freed
LINE = 64  # bytes of a cache line
Memory = npt.NDArray[np.uint8]
KEPT = 2**28  # largest number of bytes that the pool keeps
POISON = os.environ.get("ISOSPIKE_POISON", "") not in ("", "0")  # see the module's head


def cache_blocks(x: Tensor, elements: int) -> Iterator[slice]:
    """Equal slices of the first axis of ``x``, each with at most ``BLOCK`` of all ``elements``.

    Elsewhere than on a CPU the whole is one block.
    """
    count = len(x)
    whole = x.device.type != "cpu" or x.dim() < 2
    parts = 1 if whole else min(count, math.ceil(elements / BLOCK))
    size = math.ceil(count / max(1, parts))
    for start in range(0, count, max(1, size)):
        yield slice(start, min(start + size, count))


class Purpose(enum.Enum):
    """What a workspace holds. Two of them that are in use at the same time differ."""

    LINEAR = "integers that enter a linear product"
    QUERY = "integers of the queries"
    KEY = "integers of the keys"
    VALUE = "integers of the values"
    PROBABILITY = "integers of the attention weights"
    SCORES = "scores of an attention"
    DENSE = "spikes in the type of a product's sums"
    ROUNDED = "one block of values before it becomes integers"
    TRAINS = "integers before they become spike trains"
    SPIKES = "spikes of one step"
    MEMBRANE = "sums of a stepped product"
    CURRENTS = "input currents of a folded layer's neurons"
    PATCHES = "neighbourhoods that a convolution reads"


class _Workspaces(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[Purpose, torch.dtype, torch.device], Tensor] = {}


_workspaces = _Workspaces()


def workspace(
    purpose: Purpose, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """An uninitialised tensor of the calling thread; the rules are in the module's head.

    While torch traces a program there are no workspaces: one would be kept in the program, or a
    stand-in without memory be kept here.
    """
    if torch.compiler.is_compiling():
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    key, size = (purpose, dtype, device), math.prod(shape)
    kept = _workspaces.tensors.get(key)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):  # an inference tensor could not be used elsewhere
            kept = _workspaces.tensors[key] = torch.empty(size, dtype=dtype, device=device)
    space = kept[:size].view(tuple(shape))
    if POISON:
        floating = dtype.is_floating_point
        space.fill_(math.nan if floating else dtype != torch.bool and torch.iinfo(dtype).max)
    return space


def empty_pooled(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new, uninitialised tensor; on a CPU, a large one takes its memory from the pool.

    Memory that nothing refers to any longer is kept for the next tensor of its size, up to ``KEPT``
    bytes in all. A page of 4 KiB asked of the system costs as much time as writing it several times
    over; for new memory, NumPy asks for pages of 2 MiB where torch by default does not.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE or torch.compiler.is_compiling():
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    memory = _pool.take(size)
    start = -memory.ctypes.data % LINE
    own = memory[start : start + size]  # torch holds this view as long as it holds the memory
    weakref.finalize(own, _pool.give, memory).atexit = False
    return torch.from_numpy(own).view(dtype).view(tuple(shape))


class _Pool:
    """Memory that nothing refers to, by size; the size given back longest ago goes first."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a collection of garbage within ``take`` may call ``give``
        self.bytes = 0
        self.held: dict[int, list[Memory]] = {}

    def take(self, size: int) -> Memory:
        with self.lock:
            if held := self.held.get(size + LINE):
                self.bytes -= size + LINE
                return held.pop()
        return np.empty(size + LINE, np.uint8)

    def give(self, memory: Memory) -> None:
        size = len(memory)
        with self.lock:
            self.held[size] = self.held.pop(size, [])  # the last size given is the last in order
            self.held[size].append(memory)
            self.bytes += size
            while self.bytes > KEPT:
                first = next(iter(self.held))
                if self.held[first]:
                    self.bytes -= len(self.held[first].pop())
                else:
                    del self.held[first]

    def clear(self) -> None:
        with self.lock:
            self.held.clear()
            self.bytes = 0


_pool = _Pool()


def empty_cache() -> None:
    """Give memory that no result uses back to the system: the pool, up to 256 MiB, and the
    workspaces of the calling thread.

    Results stay valid, and the next call fills both anew.

    >>> import isospike.kernels
    >>> isospike.kernels.empty_cache()
    """
    _pool.clear()
    _workspaces.tensors.clear()


def trim() -> None:
    """Give the memory back that the C library keeps of what is free, of every thread.

    glibc holds the freed memory of each thread apart, for that thread alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
