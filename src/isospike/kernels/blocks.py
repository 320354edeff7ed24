"""Temporaries that a CPU keeps in its cache, or at least need not ask the system for again."""

import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**19  # elements; in float32, what the level-2 cache of one core holds

LARGE = 2**22  # bytes from which NumPy asks for large pages
LINE = 64  # bytes of a cache line


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
    """A new, uninitialised tensor; on a CPU, a large one lies in large pages.

    NumPy asks the system for 2 MiB pages where torch by default does not: a hundredth of the page
    faults, and half the time of writing a tensor once.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(*shape, dtype=dtype, device=device)
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(*shape)
