"""Does spike timing serve as well as the sinusoid, of which it is a multiple?"""

from dataclasses import asdict
from pathlib import Path

from isospike.experiments import CORRECTED, FAILS, HOLDS, Progress, Result
from isospike.experiments.cells import Size, accuracy_table, mean, run_rows

CLAIM = (
    "Attention is invariant to the spike-timing map, so a transformer trains on spike times T/L as "
    "it does on the sinusoid."
)
TASKS = ("copy-1", "copy-8", "reversal")
ROWS = ("none", "spike-timing", "sinusoidal", "spike-timing-rescaled", "no-attention", "shuffled")


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Spike timing, plain and with embeddings times 1 / L, between no position and the sinusoid."""
    found = run_rows(TASKS, ROWS, size, folder, workers, progress)
    numbers = {}
    for task in TASKS:
        for row in ROWS:
            value = mean(found[task, row], "token", "x1")
            if value is not None:
                numbers[f"{task} {row}"] = value[0]
    tables = tuple(
        accuracy_table(found, task, ROWS, "token", f"{task}, share of tokens right")
        for task in TASKS
    )
    return Result("spike-timing", numbers, tables, asdict(size))


def holds(result: Result) -> str:
    """Plain spike timing is near the sinusoid, or only the rescaled one is."""

    def far(row: str, other: str) -> float:
        return max(
            abs(result.numbers[f"{t} {row}"] - result.numbers[f"{t} {other}"]) for t in TASKS
        )

    if far("spike-timing", "sinusoidal") < 0.05:
        return HOLDS
    return CORRECTED if far("spike-timing-rescaled", "sinusoidal") < 0.05 else FAILS
