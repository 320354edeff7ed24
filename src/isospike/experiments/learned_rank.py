"""Is a learned vector for each rank as good as the sinusoid, at the length of training?"""

from pathlib import Path

from isospike.experiments import CORRECTED, FAILS, HOLDS, Progress, Result
from isospike.experiments.grid import Size, token_result

CLAIM = "A learned vector for each rank does at least as well as the sinusoid at training length."
TASKS = ("copy-1", "copy-8", "reversal", "separator-copy", "sort")
ROWS = (
    "none", "sinusoidal", "rank-learned", "rank-significance", "no-attention", "shuffled",
)  # fmt: skip


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Both, and fixed rank-order codes, where position is needed."""
    return token_result("learned-rank", TASKS, ROWS, size, folder, workers, progress)


def holds(result: Result) -> str:
    """Within .01 below the sinusoid, or above it, on every task; corrected if on some."""
    n = result.numbers
    kept = [n[f"{task} rank-learned x1"] > n[f"{task} sinusoidal x1"] - 0.01 for task in TASKS]
    return HOLDS if all(kept) else CORRECTED if any(kept) else FAILS
