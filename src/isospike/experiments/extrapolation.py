"""Which encodings work beyond the length they were trained on?"""

from pathlib import Path

from isospike.experiments import FAILS, HOLDS, Progress, Result
from isospike.experiments.grid import SOLVED, Size, token_result
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
    return token_result("extrapolation", TASKS, ROWS, size, folder, workers, progress)


def holds(result: Result) -> str:
    """Whatever an absolute encoding solves at training length falls below .95 at twice it."""
    kept = [
        (task, row)
        for task in TASKS
        for row in ABSOLUTE
        if result.numbers[f"{task} {row} x1"] >= SOLVED
        and result.numbers.get(f"{task} {row} x2", 0.0) >= SOLVED
    ]
    return FAILS if kept else HOLDS
