"""Is a learned vector for each rank as good as the sinusoid, at the length of training?"""

from dataclasses import asdict
from pathlib import Path

from isospike.experiments import FAILS, HOLDS, Progress, Result
from isospike.experiments.cells import Size, accuracy_table, mean, run_rows

CLAIM = "A learned vector for each rank does at least as well as the sinusoid at training length."
TASKS = ("copy-1", "copy-8", "reversal", "separator-copy", "sort")
ROWS = (
    "none", "sinusoidal", "rank-learned", "rank-significance", "no-attention", "shuffled",
)  # fmt: skip


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Both, and fixed rank-order codes, where position is needed."""
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
    return Result("learned-rank", numbers, tables, asdict(size))


def holds(result: Result) -> str:
    """Within .01 below the sinusoid, or above it, on every task."""
    n = result.numbers
    worst = min(n[f"{task} rank-learned"] - n[f"{task} sinusoidal"] for task in TASKS)
    return HOLDS if worst > -0.01 else FAILS
