"""The sequence machine and a trained transformer: the same sequences, the same harness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from isospike import memory, progress
from isospike.experiments.grid import build, find_task
from isospike.experiments.study import CORRECTED, FAILS, Context, Findings, claim
from isospike.experiments.tasks import Task
from isospike.memory import Backoff, Combined, SequenceMachine, Shift, Store
from isospike.models.training import IGNORE, train
from isospike.protocol import (
    MachineOperations,
    OnlineScore,
    OnlineSequence,
    TransformerOperations,
    run_online,
)
from isospike.report.table import Table

TASKS = ("copy-1", "copy-8", "copy-32", "separator-copy", "recall", "text")
SMALLER = Store(rule="add", locations=4096)
MACHINES: dict[str, tuple[memory.Context, Store | None]] = {
    "last symbol": (Shift(depth=1), SMALLER),
    "last two symbols": (Shift(depth=2), SMALLER),
    "combined": (Combined(), SMALLER),
    "back-off, to depth 6": (Backoff(synapses=2**22), None),
}
POSITION = "rope"


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        steps: Training steps of the transformer.
        tested: Number of test sequences; a store that lasts has seen four times as many before.
        tasks: Names of the tasks.
    """

    steps: int
    tested: int = 30
    tasks: tuple[str, ...] = TASKS


def decide(numbers: Mapping[str, float]) -> str:
    """Corrected: the same operations, not the same machine; each solves what the other does not.

    Args:
        numbers: Shares of tokens right.
    """
    best: dict[str, dict[bool, float]] = {}
    for key, value in numbers.items():
        task, label = key.split(": ")
        mine = best.setdefault(task, {})
        trained = "transformer" in label
        mine[trained] = max(mine.get(trained, 0.0), value)
    machine = any(b[False] > 0.95 and b[True] < 0.5 for b in best.values())
    trained = any(b[True] > 0.95 and b[False] < 0.5 for b in best.values())
    return CORRECTED if machine or trained else FAILS


@claim(
    "online",
    source="arXiv 2605.00662 and its public scripts",
    statement="The sequence machine and the transformer are the same machine in five operations.",
    verdict=decide,
    question="Do the sequence machine and a transformer solve the same tasks on line?",
    presets={
        "tiny": Preset(2, 2, ("copy-1", "recall")),
        "small": Preset(150),
        "full": Preset(300),
    },
)
def compare_machines(preset: Preset, context: Context) -> Findings:
    """Each machine with an empty store for each sequence and with one that lasts; the transformer.

    Args:
        preset: How much is run.
        context: Not used.
    """
    rows, numbers = [], {}
    for done, name in enumerate(preset.tasks):
        progress.update("on line", done, len(preset.tasks))
        task = find_task(name)
        draw = torch.Generator().manual_seed(7)
        tested = _sequences(task, preset.tested, draw, test=True)
        before = _sequences(task, 4 * preset.tested, draw, test=False)
        runs = {f"{POSITION} transformer, trained": _transformer(task, preset.steps, tested)}
        for label, (kind, store) in MACHINES.items():
            machine = MachineOperations(
                SequenceMachine(range(task.vocabulary), context=kind, store=store)
            )
            runs[f"{label}, empty store"] = run_online(machine, tested, reset_memory=True)
            machine.reset_memory()
            runs[f"{label}, lasting store"] = run_online(
                machine, [*before, *tested], skip=len(before)
            )
        for label, found in runs.items():
            numbers[f"{name}: {label}"] = found.accuracy
            rows.append((
                name, label, f"{found.accuracy:.3f}", f"{found.sequence_accuracy:.3f}",
                f"{found.bits:.2f}", f"{found.largest_state:,}",
            ))  # fmt: skip
    progress.update("on line", len(preset.tasks), len(preset.tasks))
    head = ("task", "machine", "token", "sequence", "bits", "largest state")
    title = f"On line, {preset.tested} sequences of training length"
    meaning = (
        "Share of tokens and of sequences right: recall is the machine's, copy-8 the transformer's."
    )
    return Findings(numbers, [Table(title, head, tuple(rows), meaning)])


def _transformer(task: Task, steps: int, tested: Sequence[OnlineSequence]) -> OnlineScore:
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


def _sequences(task: Task, count: int, draw: torch.Generator, test: bool) -> list[OnlineSequence]:
    inputs, targets = task.sample(count, task.length, draw, test=test)
    sequences = []
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        scored = [symbol != IGNORE for symbol in y]
        if task.next_token:  # All symbols are stored, as in a cache.
            y = [*x[1:], y[-1]]  # noqa: PLW2901
        sequences.append(OnlineSequence(x, [None if s == IGNORE else s for s in y], scored))
    return sequences
