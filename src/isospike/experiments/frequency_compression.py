"""Does frequency compression fail where position matters?"""

from pathlib import Path

from isospike.experiments import CORRECTED, FAILS, HOLDS, Progress, Result
from isospike.experiments.grid import SOLVED, Size, token_result

CLAIM = "A transformer with the frequency-compressed sinusoid does not learn."
TASKS = ("copy-1", "copy-8", "reversal", "separator-copy")
ROWS = ("none", "frequency-compressed", "sinusoidal", "no-attention", "shuffled")


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """The compressed sinusoid between no position and the sinusoid, where position is needed."""
    return token_result("frequency-compression", TASKS, ROWS, size, folder, workers, progress)


def holds(result: Result) -> str:
    """On every task that the sinusoid solves; corrected if on some of them."""
    solved = [t for t in TASKS if result.numbers[f"{t} sinusoidal x1"] >= SOLVED]
    failed = [t for t in solved if result.numbers[f"{t} frequency-compressed x1"] < SOLVED]
    if not failed:
        return FAILS
    return HOLDS if failed == solved else CORRECTED
