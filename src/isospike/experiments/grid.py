"""Many small training runs: one task, one variant of the model, one learning rate, one seed.

Every run leaves one file, written whole or not at all; a grid that is started again skips those
that are there. Models are equal in everything but the positional encoding:

=======================  ========================================================================
variant                  what
=======================  ========================================================================
an encoding              see :data:`isospike.positions.POSITIONS`
no-attention             no position; tokens never meet, as many weights in the perceptron
shuffled                 the sinusoid at positions in a new random order in every pass
spike-timing-rescaled    spike timing with embeddings times 1 / length (Lemma 1, L1c)
=======================  ========================================================================
"""

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from isospike import progress
from isospike.errors import InputError
from isospike.experiments.study import Context, Findings, shown
from isospike.experiments.tasks import TASKS, Task
from isospike.models.training import IGNORE, train
from isospike.models.transformer import Transformer
from isospike.positions import POSITIONS, NoPE, Sinusoidal, position
from isospike.report.files import write_file
from isospike.report.numbers import interval
from isospike.report.table import Table
from isospike.workers import Workers, map_cells

WIDTH, HEADS, LAYERS = 32, 4, 2
FACTORS = {"x1": 1.0, "x1.5": 1.5, "x2": 2.0, "x3": 3.0}
TEXT_FACTORS = {"x1": 1.0, "x2": 2.0, "x4": 4.0}
SOLVED = 0.95
METRICS = {
    "token": "share of tokens right",
    "sequence": "share of sequences right",
    "bits": "bits a token",
}
CHOOSING = ("copy-8", "reversal")
"""Tasks that choose a variant's learning rate: one that looks back, one that looks both ways."""

VARIANTS = (*POSITIONS, "no-attention", "shuffled", "spike-timing-rescaled")

Runs = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""``[(task, variant)]``: what :func:`train_one` returned, seed by seed."""


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        name: Of the preset.
        steps: Number of training steps.
        seeds: Number of seeds of each variant.
        rates: Learning rates from which one is chosen for each variant.
        tests: Number of test sequences of each length.
    """

    name: str
    steps: int
    seeds: int
    rates: tuple[float, ...]
    tests: int = 128


GRIDS = {
    preset.name: preset
    for preset in (
        Preset("tiny", 1, 1, (0.01,), tests=2),
        Preset("small", 150, 2, (0.003, 0.01)),
        Preset("full", 300, 5, (0.003, 0.01)),
    )
}
"""The presets of everything that trains on a grid, by name."""


@dataclass(frozen=True)
class TrainingRun:
    """One training run.

    Attributes:
        task: Name of the task.
        variant: Name of the model's variant.
        rate: Learning rate.
        seed: Of the weights and the data.
        steps: Number of training steps.
        tests: Number of test sequences of each length.
    """

    task: str
    variant: str
    rate: float
    seed: int
    steps: int
    tests: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return (
            f"{self.task}_{self.variant}_rate{self.rate:g}_steps{self.steps}_seed{self.seed}.json"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All that its result depends on, but the code."""
        model = {"width": WIDTH, "heads": HEADS, "layers": LAYERS}
        return {**asdict(self), "sizes": asdict(find_task(self.task)), "model": model}


class Shuffled(Sinusoidal):
    """A control without positions: the sinusoid, at positions in random order in every pass."""

    name = "shuffled"

    def index(self, length: int, start: int = 0) -> Int[Tensor, "{length}"]:
        return super().index(length, start)[torch.randperm(length)]


def build(task: Task, variant: str) -> Transformer:
    """The model of a variant.

    Args:
        task: What it is trained on.
        variant: One of :data:`VARIANTS`.

    Returns:
        The untrained model; its weights are drawn from torch's global generator.

    Raises:
        InputError: No such variant; the message lists those known.
    """
    if variant not in VARIANTS:
        raise InputError(
            f"build needs a variant of {', '.join(VARIANTS)}, got {variant!r}. Choose one of them."
        )
    if variant == "shuffled":
        encoding: Any = Shuffled(WIDTH)
    elif variant == "no-attention":
        encoding = NoPE()
    else:
        name = variant.removesuffix("-rescaled")
        encoding = position(name, width=WIDTH, heads=HEADS, length=task.length, causal=task.causal)
    return Transformer(
        task.vocabulary, WIDTH, HEADS, LAYERS, encoding, causal=task.causal,
        scale=1 / task.length if variant.endswith("-rescaled") else 1.0,
        attention=variant != "no-attention",
    )  # fmt: skip


def find_task(name: str) -> Task:
    """The task called ``name``.

    Args:
        name: One of :data:`isospike.experiments.tasks.TASKS`.

    Returns:
        The task.

    Raises:
        InputError: No such task; the message lists those known.
    """
    if name not in TASKS:
        raise InputError(
            f"find_task needs a task of {', '.join(TASKS)}, got {name!r}. Choose one of them."
        )
    return TASKS[name]


def train_one(run: TrainingRun) -> dict[str, Any]:
    """Train and test one model.

    Args:
        run: What is trained.

    Returns:
        ``run``, all it depends on; ``parameters``; ``bits``, ``token`` and ``sequence`` (accuracy)
        by length factor, None past ``max_length``; ``steps_to_95``, the first look with 95 % of
        tokens right, or None; ``curve``, pairs of steps and bits of training batches; ``seconds``.
    """
    task, start = find_task(run.task), time.perf_counter()
    generator = torch.Generator().manual_seed(1000 + run.seed)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)  # weights, and positions that are drawn
        model = build(task, run.variant)
        looked = task.sample(64, task.length, torch.Generator().manual_seed(500 + run.seed))
        history = train(
            model,
            lambda draw: task.sample(task.batch, task.length, draw),
            run.steps,
            run.rate,
            generator=generator,
            watch=lambda model: score(model(looked[0]), looked[1])["token"],
            every=10,
        )
        factors = TEXT_FACTORS if run.task == "text" else FACTORS
        tested = {name: _test(model, task, run, factor) for name, factor in factors.items()}
    solved = [step for step, right in history.watched if right >= SOLVED]
    size = max(1, run.steps // 40)
    parts = [history.bits[i : i + size] for i in range(0, run.steps, size)]
    return {
        "run": run.settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        **{metric: {name: t and t[metric] for name, t in tested.items()}
           for metric in ("bits", "token", "sequence")},
        "steps_to_95": solved[0] if solved else None,
        "curve": [[min(run.steps, (i + 1) * size), statistics.mean(part)]
                  for i, part in enumerate(parts)],
        "seconds": time.perf_counter() - start,
        "versions": {"torch": torch.__version__},
    }  # fmt: skip


def score(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Bits of a scored token, share of tokens right, share of sequences without a mistake.

    Args:
        logits: ``[count, length, vocabulary]``.
        targets: ``[count, length]``; ``IGNORE`` where nothing is scored.

    Returns:
        ``bits``, ``token`` and ``sequence``.
    """
    scored = targets != IGNORE
    right = (logits.argmax(-1) == targets) | ~scored
    bits = cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE)
    return {
        "bits": bits.item() / math.log(2),
        "token": (right & scored).sum().item() / scored.sum().item(),
        "sequence": right.all(-1).double().mean().item(),
    }


def _test(
    model: Transformer, task: Task, run: TrainingRun, factor: float
) -> dict[str, float] | None:
    length = int(task.length * factor)
    limit = model.position.max_length
    if limit is not None and length > limit:
        return None
    count = max(1, run.tests * 32 // max(32, task.length))
    draw = torch.Generator().manual_seed(10_000 + run.seed)
    inputs, targets = task.sample(count, length, draw, test=True)
    with torch.no_grad():
        return score(model(inputs), targets)


def train_all(
    runs: Iterable[TrainingRun], folder: Path, workers: Workers = 1, label: str = "training runs"
) -> list[dict[str, Any]]:
    """Train what has no file yet, and read all files.

    Args:
        runs: In the order in which they are started and returned.
        folder: Where the files lie.
        workers: See :func:`isospike.workers.map_cells`.
        label: Name of these runs in :mod:`isospike.progress`.

    Returns:
        What :func:`train_one` returned for each run.

    Raises:
        InputError: A file is damaged, or not that of its run.
    """
    every = list(runs)
    missing = [run for run in every if not (folder / run.file).exists()]
    done = len(every) - len(missing)
    progress.update(label, done, len(every))

    def finish(run: TrainingRun, result: dict[str, Any]) -> None:
        nonlocal done
        write_file(folder / run.file, json.dumps(result).encode())
        done += 1
        progress.update(label, done, len(every))

    map_cells(train_one, missing, workers, finish)
    return [_read(folder / run.file, run) for run in every]


def _read(path: Path, run: TrainingRun) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_bytes())
        same = result["run"] == run.settings
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"train_all needs whole result files, got {path} ({error}). Remove it and run again."
        ) from error
    if not same:
        raise InputError(
            f"train_all needs results of {run.settings}, got those of {result['run']} in {path}. "
            "Remove it, or choose another folder."
        )
    return result


def train_grid(
    tasks: Sequence[str],
    variants: Sequence[str],
    preset: Preset,
    folder: Path,
    workers: Workers = 1,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Train every variant on every task, over the seeds, at the rate that suits the variant.

    That is the rate with the fewest bits in :data:`CHOOSING` together, seed 0, at training length.

    Args:
        tasks: Names of tasks.
        variants: Some of :data:`VARIANTS`.
        preset: How much is run.
        folder: Where the files of the runs lie.
        workers: See :func:`isospike.workers.map_cells`.

    Returns:
        ``[(task, variant)]``: the results, seed by seed.

    Raises:
        InputError: An unknown name, or a damaged file.
    """
    for task in tasks:
        find_task(task)
    for variant in variants:
        if variant not in VARIANTS:
            raise InputError(
                f"train_grid needs variants of {', '.join(VARIANTS)}, got {variant!r}. Choose some "
                "of them."
            )

    def run(pairs: list[tuple[str, str]], rates: list[float], seed: int, label: str) -> Any:
        runs = [
            TrainingRun(*pair, rate, seed, preset.steps, preset.tests)
            for pair, rate in zip(pairs, rates, strict=True)
        ]
        return train_all(runs, folder, workers, label)

    best = dict.fromkeys(variants, preset.rates[0])
    if len(preset.rates) > 1:
        tried = [(rate, variant) for variant in variants for rate in preset.rates]
        bits = dict.fromkeys(tried, 0.0)
        trials = [(task, key) for task in CHOOSING for key in tried]
        results = run(
            [(task, variant) for task, (_, variant) in trials],
            [rate for _, (rate, _) in trials],
            0,
            "learning rates",
        )
        for (_, key), result in zip(trials, results, strict=True):
            bits[key] += result["bits"]["x1"]
        best = {v: min(preset.rates, key=lambda rate: bits[rate, v]) for v in variants}  # noqa: B023
    pairs = [(task, variant) for task in tasks for variant in variants]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    for seed in range(preset.seeds):
        results = run(pairs, [best[variant] for _, variant in pairs], seed, f"seed {seed}")
        for pair, result in zip(pairs, results, strict=True):
            found[pair].append(result)
    return found


def mean(
    results: Sequence[Mapping[str, Any]], metric: str, factor: str
) -> tuple[float, float] | None:
    """Mean over seeds and half of its 95 % interval; None where it was not tested.

    Args:
        results: What :func:`train_one` returned, seed by seed.
        metric: One of :data:`METRICS`.
        factor: Length of the test, as a multiple of that of training.
    """
    values = [result[metric][factor] for result in results]
    return None if any(value is None for value in values) else interval(values)


def grid_findings(
    tasks: Sequence[str],
    variants: Sequence[str],
    preset: Preset,
    context: Context,
    metrics: Sequence[str] = ("token",),
) -> Findings:
    """The share of tokens right, of every variant on every task.

    Args:
        tasks: Names of tasks.
        variants: Some of :data:`VARIANTS`.
        preset: How much is run.
        context: Its folder holds the files of the runs.
        metrics: What the tables show.

    Returns:
        Numbers called ``task variant factor``, without those past an encoding's last position, and
        a table for each task and metric.
    """
    found = train_grid(tasks, variants, preset, context.folder, context.workers)
    numbers = {
        f"{task} {variant} {factor}": value[0]
        for task in tasks
        for variant in variants
        for factor in found[task, variant][0]["token"]
        if (value := mean(found[task, variant], "token", factor)) is not None
    }
    tables = [accuracy_table(found, task, variants, metric) for task in tasks for metric in metrics]
    return Findings(numbers, tables)


def accuracy_table(runs: Runs, task: str, variants: Sequence[str], metric: str) -> Table:
    """One metric of one task: every variant at every length, its rate and steps to 95 %.

    Args:
        runs: What :func:`train_grid` returned.
        task: Name of the task.
        variants: The rows.
        metric: One of :data:`METRICS`.
    """
    factors = TEXT_FACTORS if task == "text" else FACTORS
    rows = []
    for variant in variants:
        results = runs[task, variant]
        digits = 4 if metric == "bits" else 3
        steps = [result["steps_to_95"] for result in results]
        solved = [s for s in steps if s is not None]
        rows.append((
            variant,
            *(_shown([result[metric][factor] for result in results], digits) for factor in factors),
            f"{statistics.median(solved):.0f}" if 2 * len(solved) > len(steps) else "--",
            f"{results[0]['run']['rate']:g}",
            str(results[0]["parameters"]),
        ))  # fmt: skip
    head = ("encoding", *factors, "steps to 95 %", "rate", "parameters")
    return Table(
        f"{task}: {METRICS[metric]}",
        head,
        tuple(rows),
        f"The {METRICS[metric]} in sequences as long as those of training (x1) and longer.",
    )


def overview(runs: Runs, tasks: Sequence[str], variants: Sequence[str]) -> Table:
    """Share of tokens right at training length and at twice it, every variant on every task.

    Args:
        runs: What :func:`train_grid` returned.
        tasks: The columns.
        variants: The rows.
    """
    rows = []
    for variant in variants:
        cells = []
        for task in tasks:
            values = [mean(runs[task, variant], "token", factor) for factor in ("x1", "x2")]
            cells.append(" / ".join("n.a." if v is None else f"{v[0]:.2f}" for v in values))
        rows.append((variant, *cells))
    return Table(
        "Share of tokens right, at training length / at twice it",
        ("encoding", *tasks),
        tuple(rows),
        "An encoding that extrapolates has two equal numbers; no-attention, shuffled and none are "
        "controls.",
    )


def _shown(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return shown(known, digits) if len(known) == len(values) else "n.a."
