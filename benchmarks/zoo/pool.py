"""Measure many models, each in a process of its own: a crash or a hang ends nothing else."""

import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

from benchmarks.zoo.measure import CRASH, TIMEOUT, Outcome, measure
from benchmarks.zoo.registry import ENTRIES, Entry

LIMIT = 90.0
"""Seconds of the processor a model; of the clock it has :data:`PATIENCE` times as many, since
others may use the machine too."""
PATIENCE = 4.0


def measure_all(
    entries: Sequence[Entry],
    workers: int = 2,
    limit: float = LIMIT,
    done: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """What became of each model, in the order given.

    Args:
        entries: The models.
        workers: Processes at a time.
        limit: Seconds of the processor after which a model is given up.
        done: Called with each outcome as soon as it is known.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.zoo.child"])
    waiting, found = list(reversed(entries)), {}
    running: dict[Connection, tuple[Entry, multiprocessing.Process, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            entry = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(entry.name, theirs, limit), daemon=True)
            process.start()
            theirs.close()
            running[ours] = entry, process, time.monotonic()
        ready = set(wait(list(running), timeout=0.2))
        for connection, (entry, process, start) in list(running.items()):
            late = time.monotonic() - start > PATIENCE * limit
            if connection not in ready and not late:
                continue
            outcome = _received(connection, entry, process, late, time.monotonic() - start)
            process.kill()
            process.join()
            connection.close()
            del running[connection]
            found[entry.name] = outcome
            done(outcome)
    return [found[entry.name] for entry in entries]


def _received(
    connection: Connection, entry: Entry, process: multiprocessing.Process, late: bool,
    seconds: float,
) -> Outcome:  # fmt: skip
    try:
        if connection.poll():
            return connection.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return Outcome(entry.name, entry.kind, "", TIMEOUT, seconds=round(seconds, 1))
        said = f"the process ended with {process.exitcode}"
        return Outcome(entry.name, entry.kind, "", CRASH, message=said, seconds=round(seconds, 1))
    return Outcome(entry.name, entry.kind, "", TIMEOUT, seconds=round(seconds, 1))


def _child(name: str, connection: Connection, limit: float) -> None:
    import benchmarks.zoo.child  # noqa: F401, one thread and no hub

    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + limit) + 1, resource.RLIM_INFINITY))
    connection.send(measure(ENTRIES[name]))
