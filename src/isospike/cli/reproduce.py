"""``isospike reproduce`` and ``positions``: claims tested, encodings compared."""

import os
import sys
from pathlib import Path

from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.errors import InputError, RangeError
from isospike.report.files import check_destination, check_file, write_folder
from isospike.workers import Workers, reach_workers

MOST_SEEDS = 1000
KEPT = "what was computed is kept; the same command goes on from there."


@command(
    "Research",
    examples=("isospike reproduce geometry", "isospike reproduce spike-timing --preset full"),
    kept=KEPT,
    smaller="--preset",
)
def reproduce(
    name: str | None = None,
    *,
    preset: str = "small",
    studies: str = "isospike.experiments",
    data: Path | None = None,
    workers: str | None = None,
    out: Path = Path("out/studies"),
) -> Outcome:
    """Test a published claim: what it says, what was measured, and whether it holds.

    Args:
        name: Name of a claim; without one, all are listed.
        preset: ``tiny`` takes seconds, ``small`` minutes; ``full`` makes the tables of the
            documentation.
        studies (PACKAGE): Python package that holds the studies; ``benchmarks`` has more, in a
            copy of the repository.
        data (DIR): Folder of the data sets that a study needs. [default: $ISOSPIKE_DATA]
        out (DIR): Where results go, as NAME-PRESET.json. Parts of long work that are there already
            are not computed again.
    """
    from isospike.experiments import study

    if name is None:
        known = {
            one.name: one.statement or one.question for one in study.find_studies(studies).values()
        }
        return Outcome(data=known, text="\n".join(f"{n:<24}{text}" for n, text in known.items()))
    stored = out / f"{name}-{preset}.json"
    check_file(stored)
    if stored.exists():
        study.stored(stored)  # refuses what no study wrote
    report = study.reproduce(
        name,
        preset,
        package=studies,
        folder=out / "cells",
        data=data,
        workers=_workers("reproduce", workers),
    )
    study.store(report, out)
    tables = "".join(f"\n\n{t.title}\n\n{t.markdown()}" for t in report.results)
    first = f"claim    {report.statement}\nverdict  {report.decision}"
    text = (first if report.statement else report.verdict()) + tables
    return Outcome(data=report.to_json(), text=text, saved=stored)


@command(
    "Research",
    examples=(
        "isospike positions --preset small",
        "isospike positions --tasks copy-8,reversal --encodings none,sinusoidal,rope",
    ),
    kept=KEPT,
    smaller="--preset",
)
def positions(
    *,
    tasks: str | None = None,
    encodings: str | None = None,
    preset: str = "small",
    seeds: int | None = None,
    workers: str | None = None,
    out: Path = Path("out/positions"),
) -> Outcome:
    """Compare positional encodings: train each one on every task.

    They all train the same small transformer. Writes report/report.html, and tables.md with the
    same figures. After an interruption the same command continues.

    Args:
        tasks (NAMES): Tasks to train on, separated by commas. [default: all]
        encodings (NAMES): Positional encodings to train, separated by commas; ``none``,
            ``no-attention`` and ``shuffled`` are controls. [default: all]
        preset: ``tiny`` takes seconds, ``small`` minutes; ``full`` makes the tables of the
            documentation.
        seeds: Number of runs, each with another seed, of every encoding on every task.
            [default: as the preset says]
        out (DIR): Where results go. What is there already is not computed again.
    """
    from dataclasses import replace

    from isospike.experiments import page
    from isospike.experiments.grid import (
        GRIDS,
        METRICS,
        VARIANTS,
        accuracy_table,
        overview,
        train_grid,
    )
    from isospike.experiments.tasks import TASKS

    chosen = _list(tasks, list(TASKS), "tasks")
    variants = _list(encodings, list(VARIANTS), "encodings")
    if preset not in GRIDS:
        raise InputError(
            f"positions needs a preset of {', '.join(GRIDS)}, got {preset!r}. Choose one of them."
        )
    grid = GRIDS[preset]
    if seeds is not None:
        if not 1 <= seeds <= MOST_SEEDS:
            raise RangeError(
                f"positions needs seeds of at least 1 and at most {MOST_SEEDS}, got {seeds}. Try 2."
            )
        grid = replace(grid, seeds=seeds)
    count = _workers("positions", workers)
    folder = out / "report"
    check_destination(folder)
    runs = train_grid(chosen, variants, grid, out / "cells", count)
    tables = [overview(runs, chosen, variants)]
    tables += [accuracy_table(runs, t, variants, metric) for t in chosen for metric in METRICS]
    texts = [f"{table.title}\n\n{table.markdown()}" for table in tables]
    html, markdown = page.html(runs, chosen, variants, grid), "\n\n".join(texts) + "\n"
    write_folder(folder, {"report.html": html, "tables.md": markdown})
    data = {"head": tables[0].head, "rows": tables[0].rows}
    return Outcome(data=data, text=texts[0], saved=folder / "report.html")


def _list(given: str | None, known: list[str], option: str) -> list[str]:
    names = known if given is None else [name.strip() for name in given.split(",") if name.strip()]
    if not names or any(name not in known for name in names):
        wrong = next((name for name in names if name not in known), "")
        raise InputError(
            f"positions needs {option} of {', '.join(known)}, got {wrong!r}. Choose from those."
        )
    return list(dict.fromkeys(names))


def _workers(who: str, given: str | None) -> Workers:
    """The workers that were asked for, or a process for each core."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return reach_workers(who, cores if given is None else given)
