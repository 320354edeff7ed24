"""The published comparison of encodings, with the controls that it lacked."""

from pathlib import Path

from isospike.experiments import FAILS, HOLDS, Progress, Result
from isospike.experiments.grid import FACTORS, Size, token_result

CLAIM = (
    "On y_t = (x_t + 1) mod 50, spike timing keeps its bits at every length as RoPE does; the "
    "sinusoid's grow, and frequency compression does not train."
)
ROWS = (
    "none", "no-attention", "shuffled", "sinusoidal", "spike-timing", "frequency-compressed",
    "rank-learned", "rope",
)  # fmt: skip


def run(size: Size, folder: Path, workers: int, progress: Progress) -> Result:
    """Train the table's encodings and the controls on its task."""
    return token_result(
        "published-table", ("successor",), ROWS, size, folder, workers, progress, ("bits", "token")
    )


def holds(result: Result) -> str:
    """It says nothing about position if models without position or attention do as well."""
    numbers = result.numbers
    controls = ("none", "no-attention", "shuffled")
    void = min(numbers[f"successor {row} {f}"] for row in controls for f in FACTORS) > 0.99
    return FAILS if void or numbers["successor frequency-compressed x1"] > 0.99 else HOLDS
