"""Compiled loops on torch's own threads.

OpenMP's threads stay awake for some milliseconds after torch's last operation, waiting for the
next. Threads of our own would fight with them for the cores: a neuron between two torch operations
takes half as long on theirs. Where torch brings no OpenMP that can be called, and in a forked
process, whose OpenMP threads are gone, plain threads are started.
"""

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import torch

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def parallel_for(
    kernel: Callable[..., None], arguments: tuple[Any, ...], count: int, parts: int
) -> None:
    """Run ``kernel(*arguments, start, stop)`` over ``parts`` equal ranges of ``count``, one for
    each thread, and raise what it raises. It should release the interpreter's lock."""
    if parts <= 1:
        kernel(*arguments, 0, count)
        return
    kernel(*arguments, 0, 0)  # compiles, where that is still to be done, in this thread
    edges = [count * i // parts for i in range(parts + 1)]
    left, errors = itertools.count(), []

    def work(_: Any = None) -> None:
        try:
            while (i := next(left)) < parts:
                kernel(*arguments, edges[i], edges[i + 1])
        except BaseException as error:  # noqa: BLE001 - OpenMP's threads cannot raise it
            errors.append(error)

    run_on_threads(work, parts)
    if errors:
        raise errors[0]


def run_on_threads(work: Callable[[Any], None], threads: int) -> None:
    """Call ``work`` once in each of so many threads, of which one is this, and wait for all."""
    parallel = None if _forked.is_set() else _openmp()
    if parallel is not None:
        parallel(_Task(work), None, threads, 0)
        return
    others = [threading.Thread(target=work, args=(None,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work(None)
    for thread in others:
        thread.join()


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """The entry of the OpenMP that torch has loaded, under GNU's name for it."""
    try:
        parallel: Any = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    parallel.argtypes = [_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel  # type: ignore[no-any-return]


_forked = threading.Event()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked.set)
