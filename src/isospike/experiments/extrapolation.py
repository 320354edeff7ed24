"""Which encodings work beyond the length they were trained on?"""

from dataclasses import asdict
from pathlib import Path

from isospike.experiments import FAILS, HOLDS, Progress, Result
from isospike.experiments.cells import SOLVED, Size, accuracy_table, mean, run_rows
from isospike.positions import POSITIONS

CLAIM = "No absolute encoding extrapolates: what it solves at training length it loses at twice it."
TASKS = ("copy-1", "copy-8", "reversal", "separator-copy")
ABSOLUTE = (
    "sinusoidal", "spike-timing", "frequency-compressed", "rank-learned", "rank-significance",
    "cpg", "gray-code",
)  # fmt: skip
ROWS = (*POSITIONS, "no-attention", "shuffled")


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Every encoding at once, twice and three times the length of training."""
    found = run_rows(TASKS, ROWS, size, folder, workers, progress)
    numbers = {}
    for task in TASKS:
        for row in ROWS:
            here = mean(found[task, row], "token", "x1")
            there = mean(found[task, row], "token", "x2")
            if here is not None:
                numbers[f"{task} {row} x1"] = here[0]
                numbers[f"{task} {row} x2"] = 0.0 if there is None else there[0]
    tables = tuple(
        accuracy_table(found, task, ROWS, "token", f"{task}, share of tokens right")
        for task in TASKS
    )
    return Result("extrapolation", numbers, tables, asdict(size))


def holds(result: Result) -> str:
    """Whatever an absolute encoding solves at training length falls below .95 at twice it."""
    kept = [
        (task, row)
        for task in TASKS
        for row in ABSOLUTE
        if result.numbers[f"{task} {row} x1"] >= SOLVED
        and result.numbers[f"{task} {row} x2"] >= SOLVED
    ]
    return FAILS if kept else HOLDS
