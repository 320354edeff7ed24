"""The sequence machine and a trained transformer, told the same sequences by the same harness."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from isospike.experiments import CORRECTED, FAILS, Progress, Result, Table
from isospike.experiments.grid import Size, build, find_task
from isospike.experiments.tasks import Task
from isospike.memory.machine import SequenceMachine
from isospike.models.training import IGNORE, train
from isospike.protocol import MachineOperations, Online, Told, TransformerOperations, run_online

CLAIM = "The sequence machine and the transformer are the same machine in five operations."
TASKS = ("copy-1", "copy-8", "copy-32", "separator-copy", "recall", "text")
TESTED = 30  # sequences
SMALLER = {"decoder": (8, 11, 4096), "rule": "add"}
MACHINES = {
    "last symbol": ("shift", {"depth": 1, **SMALLER}),
    "last two symbols": ("shift", {"depth": 2, **SMALLER}),
    "combined": ("combined", SMALLER),
    "voting, to depth 6": ("voting", {"synapses": 2**22}),
}
POSITION = "rope"


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Each machine with an empty store for each sequence and with one that lasts; the transformer.

    A store that lasts has seen as many sequences before, and the transformer was trained on
    ``size.steps`` batches.
    """
    rows, numbers = [], {}
    for done, name in enumerate(TASKS):
        progress("on line", done, len(TASKS))
        task = find_task(name)
        draw = torch.Generator().manual_seed(7)
        tested = _sequences(task, TESTED, draw, test=True)
        before = _sequences(task, 4 * TESTED, draw, test=False)
        runs = {f"{POSITION} transformer, trained": _transformer(task, size.steps, tested)}
        for label, (context, settings) in MACHINES.items():
            machine = MachineOperations(
                SequenceMachine(range(task.vocabulary), context, **settings)  # type: ignore[arg-type]
            )
            runs[f"{label}, empty store"] = run_online(machine, tested, forget=True)
            machine.forget()
            runs[f"{label}, lasting store"] = run_online(
                machine, [*before, *tested], skip=len(before)
            )
        for label, found in runs.items():
            numbers[f"{name}: {label}"] = found.token
            rows.append((
                name, label, f"{found.token:.3f}", f"{found.sequence:.3f}", f"{found.bits:.2f}",
                f"{found.largest_state:,}",
            ))  # fmt: skip
    progress("on line", len(TASKS), len(TASKS))
    head = ("task", "machine", "token", "sequence", "bits", "largest state")
    title = f"On line, {TESTED} sequences of training length"
    settings = {**asdict(size), "tested": TESTED, "position": POSITION}
    return Result("online", numbers, (Table(title, head, tuple(rows)),), settings)


def holds(result: Result) -> str:
    """The same operations, not the same machine: each solves a task on which the other fails."""
    best: dict[str, dict[bool, float]] = {}
    for key, value in result.numbers.items():
        task, label = key.split(": ")
        mine = best.setdefault(task, {})
        trained = "transformer" in label
        mine[trained] = max(mine.get(trained, 0.0), value)
    machine = any(b[False] > 0.95 and b[True] < 0.5 for b in best.values())
    trained = any(b[True] > 0.95 and b[False] < 0.5 for b in best.values())
    return CORRECTED if machine or trained else FAILS


def _transformer(task: Task, steps: int, tested: Sequence[Told]) -> Online:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(task, POSITION)
        train(
            model,
            lambda draw: task.sample(task.batch, task.length, draw),
            steps,
            0.01,
            generator=torch.Generator().manual_seed(0),
        )
    return run_online(TransformerOperations(model), tested)


def _sequences(task: Task, count: int, draw: torch.Generator, test: bool) -> list[Told]:
    inputs, targets = task.sample(count, task.length, draw, test=test)
    told = []
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        scored = [symbol != IGNORE for symbol in y]
        if task.next_token:  # All that is told is stored, as a cache does.
            y = [*x[1:], y[-1]]  # noqa: PLW2901
        told.append(Told(x, [None if s == IGNORE else s for s in y], scored))
    return told
