"""Does spike timing serve as well as the sinusoid, of which it is a multiple?"""

from pathlib import Path

from isospike.experiments import CORRECTED, FAILS, HOLDS, Progress, Result
from isospike.experiments.grid import Size, token_result

CLAIM = (
    "Attention is invariant to the spike-timing map, so a transformer trains on spike times T/L as "
    "it does on the sinusoid."
)
TASKS = ("copy-1", "copy-8", "reversal", "separator-copy", "sort")
ROWS = ("none", "spike-timing", "sinusoidal", "spike-timing-rescaled", "no-attention", "shuffled")


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Spike timing, plain and with embeddings times 1 / L, between no position and the sinusoid."""
    return token_result("spike-timing", TASKS, ROWS, size, folder, workers, progress)


def holds(result: Result) -> str:
    """Plain spike timing is near the sinusoid, or only the rescaled one is."""

    def far(row: str, other: str) -> float:
        n = result.numbers
        return max(abs(n[f"{task} {row} x1"] - n[f"{task} {other} x1"]) for task in TASKS)

    if far("spike-timing", "sinusoidal") < 0.05:
        return HOLDS
    return CORRECTED if far("spike-timing-rescaled", "sinusoidal") < 0.05 else FAILS
