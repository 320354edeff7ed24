"""The page of ``isospike positions``: accuracy against length, learning curves, Gram matrices."""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from isospike.experiments.grid import (
    FACTORS,
    HEADS,
    METRICS,
    TEXT_FACTORS,
    WIDTH,
    Preset,
    Runs,
    accuracy_table,
    mean,
)
from isospike.positions import POSITIONS, Additive, RandomizedOrdered, position
from isospike.report.figures import INK, Axis, Figure, Series, heatmap, line, matrix
from isospike.report.page import Details, Grid, Section, legend, render

COLOURS = {
    "none": INK, "sinusoidal": "#c8553d", "spike-timing": "#e0a458",
    "frequency-compressed": "#a23b72", "rank-learned": "#7f4f24", "rank-significance": "#d08c60",
    "cpg": "#e5989b", "rope": "#1f6f8b", "alibi": "#5b8c5a", "t5": "#2a9d8f", "fire": "#7b5ea7",
    "log-distance": "#8ab17d", "gray-code": "#5a7dcf", "randomized": "#b5179e",
    "no-attention": "#9aa5ad", "shuffled": "#9aa5ad", "spike-timing-rescaled": "#e0a458",
}  # fmt: skip
DASHES = {"none": "dot", "no-attention": "dash", "shuffled": "dot", "spike-timing-rescaled": "dash"}
GRAM_LENGTH = 48


def html(runs: Runs, tasks: Sequence[str], variants: Sequence[str], preset: Preset) -> str:
    """The page of a grid of training runs.

    Args:
        runs: What :func:`isospike.experiments.grid.train_grid` returned.
        tasks: Names of the tasks.
        variants: Variants of the model.
        preset: How much was run.

    Returns:
        The page.
    """
    versions = runs[tasks[0], variants[0]][0]["versions"]
    footer = f"Preset {preset.name}; " + ", ".join(f"{k} {v}" for k, v in versions.items())
    learned = f"{preset.seeds} seed{'s' * (preset.seeds > 1)}"
    return render(
        "Positional encodings, tested",
        verdict=f"One small transformer, {preset.steps} steps of training, {len(variants)} ways to "
        f"give it the positions of its tokens, {learned}. Three of them are controls: none is no "
        "encoding, no-attention has no way to look at another token, and shuffled gives every "
        "token a random position.",
        sections=_sections(runs, tasks, variants),
        footer=(footer,),
    )


def _sections(runs: Runs, tasks: Sequence[str], variants: Sequence[str]) -> list[Section]:
    names = legend({variant: COLOURS[variant] for variant in variants}, DASHES)
    grams = [variant for variant in variants if variant in POSITIONS and variant != "none"]
    return [
        Section(
            "What each encoding solves",
            "Share of scored tokens that are right, at the length of training and at twice that "
            "length; mean over seeds. Empty: past the encoding's last position.",
            tuple(_overview(runs, tasks, variants, factor) for factor in ("x1", "x2")),
        ),
        Section(
            "Accuracy against length",
            "Share of scored tokens that are right in sequences longer than those of training; "
            "bars are 95 % intervals over seeds.",
            (
                names,
                Grid(tuple(_lengths(runs, task, variants) for task in tasks)),
            ),
        ),
        Section(
            "Learning curves",
            "Bits per scored token of the training batches, mean over seeds.",
            (
                names,
                Grid(tuple(_curves(runs, task, variants) for task in tasks)),
            ),
        ),
        Section(
            "Gram matrices",
            f"How alike two of the first {GRAM_LENGTH} positions are before training: cosine of "
            "the vectors that are added, product of two equal vectors once they are rotated, or "
            "bias of the first head, each on its own range (light is alike). Learned ones are "
            "shown as they start; that of t5 starts flat.",
            (Grid(tuple(_gram(variant) for variant in grams), 200),),
        ),
        Section(
            "Figures",
            "Mean over seeds with 95 % intervals (normal). Steps to 95 %: median, if most seeds "
            "get there.",
            tuple(_details(runs, task, variants, metric) for task in tasks for metric in METRICS),
        ),
    ]


def _overview(runs: Runs, tasks: Sequence[str], variants: Sequence[str], factor: str) -> Figure:
    values = []
    for variant in variants:
        means = [mean(runs[task, variant], "token", factor) for task in tasks]
        values.append([None if m is None else round(m[0], 3) for m in means])
    return heatmap(
        "plot-overview" if factor == "x1" else f"plot-overview-{factor}",
        f"Accuracy at length {factor}", values, list(tasks), list(variants), limits=(0, 1),
        title=f"length {factor}", texts=".2f",
    )  # fmt: skip


def _lengths(runs: Runs, task: str, variants: Sequence[str]) -> Figure:
    factors = TEXT_FACTORS if task == "text" else FACTORS
    series = []
    for variant in variants:
        points = [(factors[f], mean(runs[task, variant], "token", f)) for f in factors]
        known = [(x, m) for x, m in points if m is not None]
        series.append(
            Series(
                variant, [x for x, _ in known], [m[0] for _, m in known], COLOURS[variant],
                DASHES.get(variant, "solid"), spread=[m[1] for _, m in known],
            )
        )  # fmt: skip
    return line(
        f"plot-length-{task}", f"Accuracy against length, {task}", series,
        Axis("length, relative to training", ticks={v: k for k, v in factors.items()}),
        Axis("tokens right", limits=(-0.02, 1.03)), height=330, title=task, legend=False,
    )  # fmt: skip


def _curves(runs: Runs, task: str, variants: Sequence[str]) -> Figure:
    series = []
    for variant in variants:
        curves = [result["curve"] for result in runs[task, variant]]
        bits = [round(statistics.mean(c[i][1] for c in curves), 4) for i in range(len(curves[0]))]
        steps = [step for step, _ in curves[0]]
        dash = DASHES.get(variant, "solid")
        series.append(Series(variant, steps, bits, COLOURS[variant], dash, symbol=""))
    return line(
        f"plot-curve-{task}", f"Learning curves, {task}", series, Axis("steps"),
        Axis("bits", from_zero=True), height=330, title=task, legend=False,
    )  # fmt: skip


def _gram(variant: str) -> Figure:
    values = likeness(variant, GRAM_LENGTH)
    low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
    return matrix(
        f"plot-gram-{variant}", f"Gram matrix of {variant}", values.tolist(),
        limits=(low, max(high, low + 1e-6)), title=f"{variant}: {low:.3g} to {high:.3g}",
    )  # fmt: skip


@torch.no_grad()
def likeness(variant: str, length: int) -> Tensor:
    """How alike an encoding makes two positions before training.

    Args:
        variant: An encoding.
        length: Number of positions.

    Returns:
        ``[length, length]``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoding = position(variant, width=WIDTH, heads=HEADS, length=length).eval()
    at = encoding.index(length)
    if isinstance(encoding, RandomizedOrdered):
        encoding = encoding.base
    bias = encoding.bias(at, at)
    if bias is not None:
        return bias[0]
    if isinstance(encoding, Additive):
        table = torch.nn.functional.normalize(encoding.table(at), dim=-1)
        return table @ table.T
    unit = torch.ones(length, WIDTH // HEADS) / (WIDTH // HEADS) ** 0.5
    q, k = encoding.rotate(unit, unit, at)
    return q @ k.T


def _details(runs: Runs, task: str, variants: Sequence[str], metric: str) -> Details:
    table = accuracy_table(runs, task, variants, metric)
    return Details(table.title, (table,))
