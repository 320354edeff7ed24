"""Independent parts of long work in several processes, or as tasks of Ray.

Each part runs on one thread of torch, wherever it runs: sums are then rounded alike, and a result
is the same, bit for bit, for any number of workers.
"""

import multiprocessing
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from isospike.errors import InputError, MissingExtraError, RangeError, UnsupportedError

Workers = int | str
"""A number of processes; ``ray``, or ``ray:ADDRESS`` of a cluster that runs."""

ANSWER_S, START_S = 5.0, 15.0  # that a cluster may take to answer, and to let us join

C = TypeVar("C")
R = TypeVar("R")


def check_workers(who: str, workers: Workers) -> Workers:
    """Workers in the form that :func:`map_cells` takes.

    Args:
        who: The function that the user called.
        workers: A number, as text or not; ``ray``; or ``ray:ADDRESS``.

    Raises:
        InputError: It is something else.
        RangeError: A number below 1.

    >>> check_workers("sweep", "2"), check_workers("sweep", "ray:10.0.0.1:6379")
    (2, 'ray:10.0.0.1:6379')
    """
    text = str(workers)
    if text == "ray" or (text.startswith("ray:") and len(text) > 4):
        return text
    try:
        count = int(text)
    except ValueError:
        raise InputError(
            f"{who} needs workers as a number, as ray or as ray:ADDRESS, got {text!r}. Try 2."
        ) from None
    if count < 1:
        raise RangeError(f"{who} needs workers of at least 1, got {count}. Leave it out.")
    return count


def reach_workers(who: str, workers: Workers) -> Workers:
    """The same, once Ray is there and something answers at its address: before long work begins.

    Args:
        who: The function that the user called.
        workers: See :func:`check_workers`.

    Raises:
        InputError: It is something else, or nothing answers.
        RangeError: A number below 1.
        MissingExtraError: Ray is not installed.

    >>> reach_workers("sweep", "2")
    2
    """
    workers = check_workers(who, workers)
    if isinstance(workers, str):
        _ray(who)
        if address := workers.partition(":")[2]:
            _check_answers(who, address)
    return workers


def map_cells(
    function: Callable[[C], R],
    cells: Sequence[C],
    workers: Workers,
    finish: Callable[[C, R], object],
) -> None:
    """Compute ``function`` of each cell, and hand on each result as it comes, in any order.

    Args:
        function: Of a module, so that another process can find it; ``functools.partial`` of one
            takes its data along, once for each worker.
        cells: Its arguments.
        workers: A number of processes, of which 1 is this one; ``ray`` or ``ray:ADDRESS``.
        finish: Called in this process with a cell and its result.

    Raises:
        InputError: A worker died; what was finished before was handed on. Or no cluster answers.
        MissingExtraError: Ray is not installed.
        UnsupportedError: The function's data cannot be sent to another process.

    >>> found = []
    >>> map_cells(abs, [-1, 2], 1, lambda cell, result: found.append(result))
    >>> found
    [1, 2]
    """
    workers = reach_workers("map_cells", workers)
    if isinstance(workers, str):
        _on_ray(function, cells, workers.partition(":")[2], finish)
    elif workers == 1 or len(cells) < 2:
        for cell in cells:
            with _one_thread():
                result = function(cell)
            finish(cell, result)
    else:
        _in_processes(function, cells, min(workers, len(cells)), finish)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _died(error: BaseException) -> InputError:
    return InputError(
        f"map_cells needs its worker processes to stay alive, got one that was killed "
        f"({type(error).__name__}). What was computed is kept: run it again, with fewer workers if "
        "memory is short."
    )


# ------------------------------------------------------------------------------ processes


def _in_processes(
    function: Callable[[C], R],
    cells: Sequence[C],
    count: int,
    finish: Callable[[C, R], object],
) -> None:
    # spawn: a forked process inherits torch's threads in a state that may deadlock.
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    try:
        packed = pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UnsupportedError(
            f"map_cells needs functions and values that pickle can send to a process, got {error}. "
            "Use 1 worker, or ray."
        ) from error
    with ProcessPoolExecutor(count, context, _start, (packed,)) as pool:
        running = {pool.submit(_call, cell): cell for cell in cells}
        try:
            for future in as_completed(list(running)):
                result = future.result()
                finish(running.pop(future), result)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - set(others):
                child.terminate()  # its cell is computed again next time
            if not isinstance(error, BrokenExecutor):
                raise
            for future, cell in running.items():
                if _succeeded(future):
                    finish(cell, future.result())
            raise _died(error) from error


def _succeeded(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


_function: Callable[[Any], Any]  # of a worker


def _start(packed: bytes) -> None:
    """One thread; Ctrl-C, which a terminal sends to every process, is left to the first one."""
    import torch

    global _function
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _function = pickle.loads(packed)


def _call(cell: Any) -> Any:
    return _function(cell)


# ------------------------------------------------------------------------------------ Ray


def _on_ray(
    function: Callable[[C], R],
    cells: Sequence[C],
    address: str,
    finish: Callable[[C, R], object],
) -> None:
    ray = _ray("map_cells")
    own = not ray.is_initialized()
    if own:
        _join_ray(ray, address)
    try:
        shared = ray.put(function)
        task = ray.remote(num_cpus=1, max_retries=0)(_call_on_one_thread)
        running = {task.remote(shared, cell): cell for cell in cells}
        while running:
            (done, *_), _ = ray.wait(list(running))
            result = ray.get(done)
            finish(running.pop(done), result)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        ready = ray.wait(list(running), num_returns=len(running), timeout=0)[0]
        for reference in ready:
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError:
                continue
            finish(running[reference], result)
        raise _died(error) from None
    finally:
        if own:
            ray.shutdown()


def _call_on_one_thread(function: Callable[[Any], Any], cell: Any) -> Any:
    with _one_thread():
        return function(cell)


def _ray(who: str) -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            f"{who} needs the package ray for these workers, got none. Install isospike[ray]."
        ) from None
    return ray


def _join_ray(ray: Any, address: str) -> None:
    """Join a cluster, or start one on this machine; raise if it does not answer in 20 seconds."""
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings = {"address": address} if address else {"include_dashboard": False}
    failed: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(**settings, log_to_driver=False, logging_level="ERROR")
        except BaseException as error:  # noqa: BLE001 - of the thread
            failed.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(START_S if address else None)
    if joining.is_alive() or failed:
        why = type(failed[0]).__name__ if failed else f"nothing within {START_S:g} s"
        raise _no_ray("map_cells", address or "of its own", why)


def _check_answers(who: str, address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise _no_ray(who, address, "no HOST:PORT")
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(who, address, getattr(error, "strerror", None) or str(error)) from error


def _no_ray(who: str, address: str, why: str) -> InputError:
    return InputError(
        f"{who} needs workers of a Ray that answers, got {why} from {address}. Check the "
        "address, or start a cluster with ray start --head."
    )
