"""Many small training runs: a cell is one task, one row of a table, one rate and one seed.

Every cell leaves one file, written whole or not at all; a run that is started again skips those
that are there. Models are equal in everything but the positional encoding:

=======================  ========================================================================
row                      what
=======================  ========================================================================
an encoding              see :data:`isospike.positions.POSITIONS`
no-attention             no position; tokens never meet, as many weights in the perceptron
shuffled                 the sinusoid at positions that are dealt out anew in every pass
spike-timing-rescaled    spike timing with embeddings times 1 / length (Lemma 1, L1c)
=======================  ========================================================================
"""

import json
import math
import multiprocessing
import signal
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from isospike.errors import IsospikeError, RangeError
from isospike.experiments import Progress, Result, Table
from isospike.experiments.tasks import TASKS, Task
from isospike.models.training import IGNORE, train
from isospike.models.transformer import Transformer
from isospike.positions import POSITIONS, NoPE, Sinusoidal, position
from isospike.report.files import write_file

WIDTH, HEADS, LAYERS = 32, 4, 2
FACTORS = {"x1": 1.0, "x1.5": 1.5, "x2": 2.0, "x3": 3.0}
TEXT_FACTORS = {"x1": 1.0, "x2": 2.0, "x4": 4.0}
SOLVED = 0.95
WHAT = {
    "token": "share of tokens right",
    "sequence": "share of sequences right",
    "bits": "bits a token",
}
CHOOSING = ("copy-8", "reversal")
"""Tasks that choose a row's learning rate: one that looks back, one that looks both ways."""

ROWS = (*POSITIONS, "no-attention", "shuffled", "spike-timing-rescaled")


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        steps: Of training.
        seeds: Of each row.
        rates: Learning rates to choose from, for each row.
        tests: Test sequences of each length.
    """

    name: str
    steps: int
    seeds: int
    rates: tuple[float, ...]
    tests: int = 128


SIZES = {
    size.name: size
    for size in (Size("small", 150, 2, (0.003, 0.01)), Size("full", 300, 5, (0.003, 0.01)))
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    row: str
    rate: float
    seed: int
    steps: int
    tests: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.task}_{self.row}_rate{self.rate:g}_steps{self.steps}_seed{self.seed}.json"

    @property
    def about(self) -> dict[str, Any]:
        """All that its result depends on, but the code."""
        model = {"width": WIDTH, "heads": HEADS, "layers": LAYERS}
        return {**asdict(self), "sizes": asdict(find_task(self.task)), "model": model}


class Shuffled(Sinusoidal):
    """The control of position: the sinusoid, at positions dealt out at random in every pass."""

    name = "shuffled"

    def index(self, length: int, start: int = 0) -> Int[Tensor, "{length}"]:
        return super().index(length, start)[torch.randperm(length)]


def build(task: Task, row: str) -> Transformer:
    """The model of a row.

    Raises:
        RangeError: No such row.
    """
    if row not in ROWS:
        raise RangeError(f"build needs a row of {', '.join(ROWS)}, got {row!r}.")
    if row == "shuffled":
        encoding: Any = Shuffled(WIDTH)
    elif row == "no-attention":
        encoding = NoPE()
    else:
        name = row.removesuffix("-rescaled")
        encoding = position(name, width=WIDTH, heads=HEADS, length=task.length, causal=task.causal)
    return Transformer(
        task.vocabulary, WIDTH, HEADS, LAYERS, encoding, causal=task.causal,
        scale=1 / task.length if row.endswith("-rescaled") else 1.0,
        attention=row != "no-attention",
    )  # fmt: skip


def find_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        RangeError: No such task; the message lists those known.
    """
    if name not in TASKS:
        raise RangeError(f"isospike needs a task of {', '.join(TASKS)}, got {name!r}.")
    return TASKS[name]


def compute(cell: Cell) -> dict[str, Any]:
    """Train and test one cell.

    Returns:
        ``cell``, all it depends on; ``parameters``; ``bits``, ``token`` and ``sequence`` (accuracy)
        by length factor, None past ``max_length``; ``steps_to_95``, the first look with 95 % of
        tokens right, or None; ``curve``, pairs of steps and bits of training batches; ``seconds``.
    """
    task, start = find_task(cell.task), time.perf_counter()
    generator = torch.Generator().manual_seed(1000 + cell.seed)
    with torch.random.fork_rng():
        torch.manual_seed(cell.seed)  # weights, and positions that are drawn
        model = build(task, cell.row)
        looked = task.sample(64, task.length, torch.Generator().manual_seed(500 + cell.seed))
        history = train(
            model,
            lambda draw: task.sample(task.batch, task.length, draw),
            cell.steps,
            cell.rate,
            generator=generator,
            watch=lambda model: score(model(looked[0]), looked[1])["token"],
            every=10,
        )
        factors = TEXT_FACTORS if cell.task == "text" else FACTORS
        tested = {name: _test(model, task, cell, factor) for name, factor in factors.items()}
    solved = [step for step, right in history.watched if right >= SOLVED]
    size = max(1, cell.steps // 40)
    parts = [history.bits[i : i + size] for i in range(0, cell.steps, size)]
    return {
        "cell": cell.about,
        "parameters": sum(p.numel() for p in model.parameters()),
        **{what: {name: t and t[what] for name, t in tested.items()}
           for what in ("bits", "token", "sequence")},
        "steps_to_95": solved[0] if solved else None,
        "curve": [[min(cell.steps, (i + 1) * size), statistics.mean(part)]
                  for i, part in enumerate(parts)],
        "seconds": time.perf_counter() - start,
        "versions": {"torch": torch.__version__},
    }  # fmt: skip


def score(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Bits of a scored token, share of those said right, share of sequences without a mistake."""
    scored = targets != IGNORE
    right = (logits.argmax(-1) == targets) | ~scored
    bits = cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE)
    return {
        "bits": bits.item() / math.log(2),
        "token": (right & scored).sum().item() / scored.sum().item(),
        "sequence": right.all(-1).double().mean().item(),
    }


def _test(model: Transformer, task: Task, cell: Cell, factor: float) -> dict[str, float] | None:
    length = int(task.length * factor)
    limit = model.position.max_length
    if limit is not None and length > limit:
        return None
    count = max(1, cell.tests * 32 // max(32, task.length))
    draw = torch.Generator().manual_seed(10_000 + cell.seed)
    inputs, targets = task.sample(count, length, draw, test=True)
    with torch.no_grad():
        return score(model(inputs), targets)


def run_cells(
    cells: Iterable[Cell], folder: Path, workers: int, progress: Progress, what: str
) -> list[dict[str, Any]]:
    """Compute the cells that have no file yet, and read all.

    Args:
        cells: In the order in which they are started and returned.
        folder: Where the files lie.
        workers: Processes; 1 computes here.
        progress: Told ``what``, how many are done, and of how many.
        what: What these cells are.

    Raises:
        IsospikeError: A file is not that of its cell.
    """
    wanted = list(cells)
    missing = [cell for cell in wanted if not (folder / cell.file).exists()]
    done = len(wanted) - len(missing)
    progress(what, done, len(wanted))

    def finished(cell: Cell, result: dict[str, Any]) -> None:
        nonlocal done
        write_file(folder / cell.file, json.dumps(result).encode())
        done += 1
        progress(what, done, len(wanted))

    if workers == 1 or len(missing) < 2:
        for cell in missing:
            finished(cell, compute(cell))
    else:
        # spawn: a forked process inherits torch's threads in a state that may deadlock.
        context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
        with ProcessPoolExecutor(workers, context, _start_worker) as pool:
            running = {pool.submit(compute, cell): cell for cell in missing}
            try:
                for future in as_completed(running):
                    finished(running[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in set(multiprocessing.active_children()) - set(others):
                    child.terminate()  # what it was at is computed again
                raise
    return [_read(folder / cell.file, cell) for cell in wanted]


def _start_worker() -> None:
    """One thread, and deaf to Ctrl-C, which the terminal sends to every process: ours stops all."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(path: Path, cell: Cell) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_bytes())
        same = result["cell"] == cell.about
    except (ValueError, KeyError, TypeError) as error:
        raise IsospikeError(
            f"run_cells needs whole result files, got {path} ({error}). Remove it and run again."
        ) from error
    if not same:
        raise IsospikeError(
            f"run_cells needs results of {cell.about}, got those of {result['cell']} in {path}. "
            "Remove it, or choose another folder."
        )
    return result


def run_rows(
    tasks: Sequence[str],
    rows: Sequence[str],
    size: Size,
    folder: Path,
    workers: int = 1,
    progress: Progress = lambda *_: None,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Every row of every task, over the seeds, at the rate that suits the row.

    That is the one with the fewest bits in :data:`CHOOSING` together, seed 0, at training length.

    Returns:
        ``[(task, row)]``: the results, seed by seed.
    """
    for task in tasks:
        find_task(task)
    for row in rows:
        if row not in ROWS:
            raise RangeError(f"isospike needs an encoding of {', '.join(ROWS)}, got {row!r}.")

    def run(pairs: list[tuple[str, str]], rates: list[float], seed: int, what: str) -> Any:
        cells = [
            Cell(*pair, rate, seed, size.steps, size.tests)
            for pair, rate in zip(pairs, rates, strict=True)
        ]
        return run_cells(cells, folder, workers, progress, what)

    best = dict.fromkeys(rows, size.rates[0])
    if len(size.rates) > 1:
        tried = [(rate, row) for row in rows for rate in size.rates]
        bits = dict.fromkeys(tried, 0.0)
        trials = [(task, key) for task in CHOOSING for key in tried]
        results = run(
            [(task, row) for task, (_, row) in trials], [r for _, (r, _) in trials], 0, "rates"
        )
        for (_, key), result in zip(trials, results, strict=True):
            bits[key] += result["bits"]["x1"]
        best = {row: min(size.rates, key=lambda rate: bits[rate, row]) for row in rows}
    pairs = [(task, row) for task in tasks for row in rows]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    for seed in range(size.seeds):
        results = run(pairs, [best[row] for _, row in pairs], seed, f"seed {seed}")
        for pair, result in zip(pairs, results, strict=True):
            found[pair].append(result)
    return found


def mean(results: Sequence[dict[str, Any]], what: str, factor: str) -> tuple[float, float] | None:
    """Mean over seeds and half of its 95 % interval (normal); None where it was not tested."""
    values = [result[what][factor] for result in results]
    if any(value is None for value in values):
        return None
    spread = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), spread


def token_result(
    name: str,
    tasks: Sequence[str],
    rows: Sequence[str],
    size: Size,
    folder: Path,
    workers: int,
    progress: Progress,
    shown: Sequence[str] = ("token",),
) -> Result:
    """An experiment's result: the share of tokens right, of every row of every task.

    Its numbers are called ``task row factor``; those past an encoding's last position are missing.
    Its tables show what is named in ``shown``.
    """
    found = run_rows(tasks, rows, size, folder, workers, progress)
    numbers = {}
    for task in tasks:
        for row in rows:
            for factor in found[task, row][0]["token"]:
                value = mean(found[task, row], "token", factor)
                if value is not None:
                    numbers[f"{task} {row} {factor}"] = value[0]
    tables = tuple(
        accuracy_table(found, task, rows, what, f"{task}: {WHAT[what]}")
        for task in tasks
        for what in shown
    )
    return Result(name, numbers, tables, asdict(size))


def accuracy_table(
    found: dict[tuple[str, str], list[dict[str, Any]]],
    task: str,
    rows: Sequence[str],
    what: str,
    title: str,
) -> Table:
    """One task: ``what`` of every row at every length, the rate, steps to 95 %, parameters."""
    factors = TEXT_FACTORS if task == "text" else FACTORS
    lines = []
    for row in rows:
        results = found[task, row]
        values = [mean(results, what, factor) for factor in factors]
        steps = [result["steps_to_95"] for result in results]
        solved = [s for s in steps if s is not None]
        lines.append((
            row,
            *(_shown(value, len(results), 4 if what == "bits" else 3) for value in values),
            f"{statistics.median(solved):.0f}" if 2 * len(solved) > len(steps) else "--",
            f"{results[0]['cell']['rate']:g}",
            str(results[0]["parameters"]),
        ))  # fmt: skip
    head = ("encoding", *factors, "steps to 95 %", "rate", "parameters")
    return Table(title, head, tuple(lines))


def overview(
    found: dict[tuple[str, str], list[dict[str, Any]]], tasks: Sequence[str], rows: Sequence[str]
) -> Table:
    """Share of tokens right at training length and at twice it, every row of every task."""
    lines = []
    for row in rows:
        cells = []
        for task in tasks:
            values = [mean(found[task, row], "token", factor) for factor in ("x1", "x2")]
            cells.append(" / ".join("n.a." if v is None else f"{v[0]:.2f}" for v in values))
        lines.append((row, *cells))
    title = "Share of tokens right, at training length / at twice it"
    return Table(title, ("encoding", *tasks), tuple(lines))


def _shown(value: tuple[float, float] | None, seeds: int, digits: int) -> str:
    if value is None:
        return "n.a."
    text = f"{value[0]:.{digits}f}"
    return f"{text} +- {value[1]:.{digits}f}" if seeds > 1 else text
