"""Temporaries that a CPU keeps in its cache, or at least need not ask the system for again."""

import math
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 2**19  # elements; in float32, what the level-2 cache of one core holds

LARGE = 2**17  # bytes from which a C library gives what is freed back to the system
LINE = 64  # bytes of a cache line
Memory = npt.NDArray[np.uint8]
KEPT = 2**28  # bytes of large results that are kept when nothing refers to them any longer


def blocks(x: Tensor, elements: int) -> Iterator[slice]:
    """Equal slices of the first axis of ``x``, each with at most ``BLOCK`` of all ``elements``.

    Elsewhere than on a CPU the whole is one block.
    """
    count = len(x)
    whole = x.device.type != "cpu" or x.dim() < 2
    parts = 1 if whole else min(count, math.ceil(elements / BLOCK))
    size = math.ceil(count / max(1, parts))
    for start in range(0, count, max(1, size)):
        yield slice(start, min(start + size, count))


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


_kept = _Kept()


def scratch(purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, the thread's own, valid until it is asked for again.

    Fresh memory costs a CPU a page fault every 4 KiB, as much time as the arithmetic done in it.
    """
    key, size = (purpose, dtype, device), math.prod(shape)
    kept = _kept.tensors.get(key)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):  # an inference tensor could not be used elsewhere
            kept = _kept.tensors[key] = torch.empty(size, dtype=dtype, device=device)
    return kept[:size].view(*shape)


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new, uninitialised tensor; on a CPU, a large one lies where another one lay if it can.

    What nothing refers to any longer is kept for the next of its size, up to ``KEPT`` bytes in all.
    A page of 4 KiB asked of the system costs as much time as writing it several times over; of new
    memory, NumPy asks for pages of 2 MiB where torch by default does not.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(*shape, dtype=dtype, device=device)
    memory = _idle.take(size)
    start = -memory.ctypes.data % LINE
    own = memory[start : start + size]  # torch holds this view as long as it holds the memory
    weakref.finalize(own, _idle.give, memory).atexit = False
    return torch.from_numpy(own).view(dtype).view(*shape)


class _Idle:
    """Memory that nothing refers to, by size; of a size long not given, the first to go."""

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


_idle = _Idle()
