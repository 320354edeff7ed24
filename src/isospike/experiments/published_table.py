"""The published comparison of encodings, with the controls that it lacked."""

from dataclasses import asdict
from pathlib import Path

from isospike.experiments import FAILS, HOLDS, Progress, Result
from isospike.experiments.cells import FACTORS, Size, accuracy_table, mean, run_rows

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
    found = run_rows(("successor",), ROWS, size, folder, workers, progress)
    numbers = {}
    for row in ROWS:
        for factor in FACTORS:
            value = mean(found["successor", row], "token", factor)
            if value is not None:
                numbers[f"{row} {factor}"] = value[0]
    tables = tuple(
        accuracy_table(found, "successor", ROWS, what, f"Successor, {label}")
        for what, label in (("bits", "bits a token"), ("token", "share of tokens right"))
    )
    return Result("published-table", numbers, tables, asdict(size))


def holds(result: Result) -> str:
    """It says nothing about position if models without position or attention do as well."""
    controls = ("none", "no-attention", "shuffled")
    solved = min(result.numbers[f"{row} {f}"] for row in controls for f in FACTORS) > 0.99
    return FAILS if solved or result.numbers["frequency-compressed x1"] > 0.99 else HOLDS
