"""Claims about positional encodings: which tasks, which variants, and what decides."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from isospike.experiments.grid import (
    FACTORS,
    GRIDS,
    METRICS,
    SOLVED,
    VARIANTS,
    Preset,
    accuracy_table,
    grid_findings,
    overview,
    train_grid,
)
from isospike.experiments.study import (
    CORRECTED,
    FAILS,
    HOLDS,
    Context,
    Findings,
    Verdict,
    claim,
    study,
)
from isospike.experiments.tasks import TASKS

SOURCE = "arXiv 2605.00662 and its public scripts"
COPIES = ("copy-1", "copy-8", "reversal", "separator-copy")
CONTROLS = ("no-attention", "shuffled")
ABSOLUTE = (
    "sinusoidal", "spike-timing", "frequency-compressed", "rank-learned", "rank-significance",
    "cpg", "gray-code",
)  # fmt: skip

Numbers = Mapping[str, float]


class PositionClaim(NamedTuple):
    """A claim that training on a grid decides.

    Attributes:
        statement: The claim.
        question: What is asked.
        tasks: Names of the tasks.
        variants: Variants of the model.
        verdict: Decides by the shares of tokens right.
        metrics: What the tables show.
    """

    statement: str
    question: str
    tasks: tuple[str, ...]
    variants: tuple[str, ...]
    verdict: Verdict
    metrics: tuple[str, ...] = ("token",)


def published_table(numbers: Numbers) -> str:
    """It says nothing about position if models without position or attention do as well.

    Args:
        numbers: Shares of tokens right.
    """
    controls = ("none", *CONTROLS)
    void = min(numbers[f"successor {control} {f}"] for control in controls for f in FACTORS) > 0.99
    return FAILS if void or numbers["successor frequency-compressed x1"] > 0.99 else HOLDS


def spike_timing(numbers: Numbers) -> str:
    """Holds if plain spike timing is near the sinusoid; corrected if only the rescaled one is.

    Args:
        numbers: Shares of tokens right.
    """

    def distance(variant: str) -> float:
        tasks = (*COPIES, "sort")
        return max(
            abs(numbers[f"{task} {variant} x1"] - numbers[f"{task} sinusoidal x1"])
            for task in tasks
        )

    if distance("spike-timing") < 0.05:
        return HOLDS
    return CORRECTED if distance("spike-timing-rescaled") < 0.05 else FAILS


def frequency_compression(numbers: Numbers) -> str:
    """Holds if it fails every task that the sinusoid solves; corrected if it fails some of them.

    Args:
        numbers: Shares of tokens right.
    """
    solved = [t for t in COPIES if numbers[f"{t} sinusoidal x1"] >= SOLVED]
    failed = [t for t in solved if numbers[f"{t} frequency-compressed x1"] < SOLVED]
    if not failed:
        return FAILS
    return HOLDS if failed == solved else CORRECTED


def learned_rank(numbers: Numbers) -> str:
    """Holds if it is at most .01 below the sinusoid on every task; corrected if on some.

    Args:
        numbers: Shares of tokens right.
    """
    kept = [
        numbers[f"{task} rank-learned x1"] > numbers[f"{task} sinusoidal x1"] - 0.01
        for task in (*COPIES, "sort")
    ]
    return HOLDS if all(kept) else CORRECTED if any(kept) else FAILS


def extrapolation(numbers: Numbers) -> str:
    """Holds if whatever an absolute encoding solves falls below .95 at twice the length.

    Args:
        numbers: Shares of tokens right.
    """
    kept = [
        (task, variant)
        for task in COPIES
        for variant in ABSOLUTE
        if numbers[f"{task} {variant} x1"] >= SOLVED
        and numbers.get(f"{task} {variant} x2", 0.0) >= SOLVED
    ]
    return FAILS if kept else HOLDS


CLAIMS = {
    "published-table": PositionClaim(
        "On y_t = (x_t + 1) mod 50, spike timing keeps its bits at every length as RoPE does; the "
        "sinusoid's grow, and frequency compression does not train.",
        "Does the published comparison of encodings say anything about position?",
        ("successor",),
        ("none", *CONTROLS, "sinusoidal", "spike-timing", "frequency-compressed", "rank-learned",
         "rope"),
        published_table,
        ("bits", "token"),
    ),
    "spike-timing": PositionClaim(
        "Attention is invariant to the spike-timing map, so a transformer trains on spike times "
        "T/L as it does on the sinusoid.",
        "Does spike timing serve as well as the sinusoid, of which it is a multiple?",
        (*COPIES, "sort"),
        ("none", "spike-timing", "sinusoidal", "spike-timing-rescaled", *CONTROLS),
        spike_timing,
    ),
    "frequency-compression": PositionClaim(
        "A transformer with the frequency-compressed sinusoid does not learn.",
        "Does frequency compression fail where position matters?",
        COPIES,
        ("none", "frequency-compressed", "sinusoidal", *CONTROLS),
        frequency_compression,
    ),
    "learned-rank": PositionClaim(
        "A learned vector for each rank does at least as well as the sinusoid at training length.",
        "Is a learned vector for each rank as good as the sinusoid, at the length of training?",
        (*COPIES, "sort"),
        ("none", "sinusoidal", "rank-learned", "rank-significance", *CONTROLS),
        learned_rank,
    ),
    "extrapolation": PositionClaim(
        "No absolute encoding extrapolates: what it solves at training length it loses at twice "
        "it.",
        "Which encodings work beyond the length they were trained on?",
        COPIES,
        VARIANTS[:-1],
        extrapolation,
    ),
}  # fmt: skip
"""The claims by name."""

for _name, _one in CLAIMS.items():
    claim(
        _name, source=SOURCE, statement=_one.statement, verdict=_one.verdict,
        question=_one.question, presets=GRIDS,
    )(partial(grid_findings, _one.tasks, _one.variants, metrics=_one.metrics))  # fmt: skip


@dataclass(frozen=True)
class Encodings:
    """Which part of the grid is run.

    Attributes:
        grid: How much is run of each.
        tasks: Names of the tasks.
        variants: Variants of the model.
    """

    grid: Preset
    tasks: tuple[str, ...] = tuple(TASKS)
    variants: tuple[str, ...] = VARIANTS


@study(
    "encodings",
    question="Which positional encoding solves which task, and at which length?",
    presets={
        "tiny": Encodings(GRIDS["tiny"], ("copy-1", "sort"), ("none", "rope", "no-attention")),
        "small": Encodings(GRIDS["small"]),
        "full": Encodings(GRIDS["full"]),
    },
)
def encodings(preset: Encodings, context: Context) -> Findings:
    """Train every variant on every task.

    Args:
        preset: Which part of the grid.
        context: Its folder holds the files of the runs.

    Returns:
        An overview, and each metric of each task.
    """
    tasks, variants = preset.tasks, preset.variants
    runs = train_grid(tasks, variants, preset.grid, context.folder, context.workers)
    tables = [accuracy_table(runs, task, variants, metric) for task in tasks for metric in METRICS]
    return Findings(tables=[overview(runs, tasks, variants), *tables])
