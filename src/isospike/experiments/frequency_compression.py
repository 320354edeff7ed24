"""Does frequency compression fail where position matters?"""

from dataclasses import asdict
from pathlib import Path

from isospike.experiments import CORRECTED, FAILS, HOLDS, Progress, Result
from isospike.experiments.cells import SOLVED, Size, accuracy_table, mean, run_rows

CLAIM = "A transformer with the frequency-compressed sinusoid does not learn."
TASKS = ("copy-1", "copy-8", "reversal", "separator-copy")
ROWS = ("none", "frequency-compressed", "sinusoidal", "no-attention", "shuffled")


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """The compressed sinusoid between no position and the sinusoid, where position is needed."""
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
    return Result("frequency-compression", numbers, tables, asdict(size))


def holds(result: Result) -> str:
    """On every task that the sinusoid solves; corrected if on some of them."""
    solved = [t for t in TASKS if result.numbers[f"{t} sinusoidal"] >= SOLVED]
    failed = [t for t in solved if result.numbers[f"{t} frequency-compressed"] < SOLVED]
    if not failed:
        return FAILS
    return HOLDS if failed == solved else CORRECTED
