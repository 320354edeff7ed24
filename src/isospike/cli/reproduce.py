"""``isospike reproduce`` and ``positions``: claims tested, encodings compared."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from isospike import progress
from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.cli.options import WorkersOption, argument, option, out_option
from isospike.errors import InputError, RangeError

KEPT = "what was computed is kept; the same command goes on from there."

SizeOption = Annotated[
    str,
    option(
        "SIZE",
        "[b]small[/] takes minutes; [b]full[/] makes the tables of the documentation.",
        "--size",
    ),
]
OutOption = Annotated[
    Path,
    out_option("Where results go. What is there already is not computed again.", "out/positions"),
]


@command(
    "Research",
    examples=("isospike reproduce geometry", "isospike reproduce spike-timing --size full"),
    kept=KEPT,
    smaller="--size",
)
def reproduce(
    name: Annotated[
        str | None,
        argument("[NAME]", "An experiment; without one, they are listed."),
    ] = None,
    size: SizeOption = "small",
    workers: WorkersOption = None,
    out: OutOption = Path("out/positions"),
) -> Outcome:
    """Test a published claim: what it says, what was measured, whether it holds."""
    from isospike.experiments import EXPERIMENTS, find_experiment

    if name is None:
        claims = {known: find_experiment(known).CLAIM for known in EXPERIMENTS}
        text = "\n".join(f"{known:<24}{claim}" for known, claim in claims.items())
        return Outcome(data=claims, text=text)
    experiment = find_experiment(name)
    result = experiment.run(_size(size), out / "cells", _workers(workers), progress.update)
    verdict = experiment.holds(result)
    full = {**result.json(experiment.CLAIM, verdict), "versions": _versions()}
    _write(out / f"{name}-{size}.json", json.dumps(full, indent=1))
    tables = "".join(f"\n\n{table.markdown()}" for table in result.tables)
    text = f"claim    {experiment.CLAIM}\nverdict  {verdict}{tables}"
    return Outcome(data=json.dumps(full), text=text)


@command(
    "Research",
    examples=(
        "isospike positions --size small",
        "isospike positions --tasks copy-8,reversal --encodings none,sinusoidal,rope",
    ),
    kept=KEPT,
    smaller="--size",
)
def positions(
    tasks: Annotated[str | None, option("A,B", "Tasks.", default="all")] = None,
    encodings: Annotated[
        str | None,
        option("A,B", "Encodings and controls.", default="all"),
    ] = None,
    size: SizeOption = "small",
    seeds: Annotated[
        int | None,
        option("N", "Seeds of each row.", default="as the size says"),
    ] = None,
    workers: WorkersOption = None,
    out: OutOption = Path("out/positions"),
) -> Outcome:
    """Train one small transformer with every positional encoding on every task.

    Writes report.html, and tables.md with the same figures. An interrupted run goes on where it
    was.
    """
    from dataclasses import replace

    from isospike.experiments import page
    from isospike.experiments.grid import ROWS, WHAT, accuracy_table, overview, run_rows
    from isospike.experiments.tasks import TASKS

    chosen = _list(tasks, list(TASKS), "tasks")
    rows = _list(encodings, list(ROWS), "encodings")
    wanted = _size(size)
    if seeds is not None:
        if seeds < 1:
            raise RangeError(f"positions needs seeds of at least 1, got {seeds}. Try 2.")
        wanted = replace(wanted, seeds=seeds)
    found = run_rows(chosen, rows, wanted, out / "cells", _workers(workers), progress.update)
    _write(out / "report.html", page.html(found, chosen, rows, wanted))
    summary = overview(found, chosen, rows)
    tables = [summary.markdown()]
    tables += [
        accuracy_table(found, task, rows, what, f"{task}: {label}").markdown()
        for task in chosen
        for what, label in WHAT.items()
    ]
    _write(out / "tables.md", "\n\n".join(tables) + "\n")
    data = {"head": summary.head, "rows": summary.rows}
    return Outcome(data=data, text=summary.markdown(), saved=out / "report.html")


def _list(given: str | None, known: list[str], option: str) -> list[str]:
    names = known if given is None else [name.strip() for name in given.split(",") if name.strip()]
    if not names or any(name not in known for name in names):
        wrong = next((name for name in names if name not in known), "")
        raise InputError(
            f"positions needs {option} of {', '.join(known)}, got {wrong!r}. Choose from those."
        )
    return list(dict.fromkeys(names))


def _size(name: str) -> Any:
    from isospike.experiments.grid import SIZES

    if name not in SIZES:
        raise InputError(f"reproduce needs size of {', '.join(SIZES)}, got {name!r}. Choose one.")
    return SIZES[name]


def _workers(given: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    count = cores if given is None else given
    if count < 1:
        raise RangeError(f"reproduce needs workers of at least 1, got {count}. Leave it out.")
    return count


def _write(path: Path, text: str) -> None:
    from isospike.report.files import write_file

    write_file(path, text.encode())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("isospike", "torch", "numpy")}
