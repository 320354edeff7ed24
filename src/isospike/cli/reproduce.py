"""``isospike reproduce`` and ``positions``: claims tested, encodings compared."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.app import app
from isospike.cli.console import DebugOption, Progress, errors_in_one_line, say
from isospike.errors import RangeError

KEPT = "what was computed is kept; the same command goes on from there."

SizeOption = Annotated[
    str,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="[b]small[/] takes minutes; [b]full[/] makes the tables of the documentation.",
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Where results go. What is there already is not computed again.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", help="Processes at work.", show_default="as there are cores"
    ),
]


@app.command(
    "reproduce",
    epilog="[bold]Examples[/]\n  isospike reproduce geometry\n"
    "  isospike reproduce spike-timing --size full",
)
def reproduce_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="An experiment; without one, they are listed.",
            show_default=False,
        ),
    ] = None,
    size: SizeOption = "small",
    out: OutOption = Path("out/positions"),
    workers: WorkersOption = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Test a published claim: what it says, what was measured, whether it holds."""
    with errors_in_one_line(debug, KEPT):
        from isospike.experiments import EXPERIMENTS, find_experiment

        if name is None:
            for known in EXPERIMENTS:
                print(f"{known:<24}{find_experiment(known).CLAIM}")
            return
        experiment = find_experiment(name)
        sizes, count = _size(size), _workers(workers)
        with Progress(quiet=as_json) as progress:
            result = experiment.run(sizes, out / "cells", count, progress)
        verdict = experiment.holds(result)
        full = {**result.json(experiment.CLAIM, verdict), "versions": _versions()}
        _write(out / f"{name}-{size}.json", json.dumps(full, indent=1))
        if as_json:
            print(json.dumps(full))
            return
        print(f"claim    {experiment.CLAIM}\nverdict  {verdict}")
        for table in result.tables:
            print(f"\n{table.markdown()}")


@app.command(
    "positions",
    epilog="[bold]Examples[/]\n  isospike positions --size small\n"
    "  isospike positions --tasks copy-8,reversal --encodings none,sinusoidal,rope",
)
def positions_command(
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Tasks.", show_default="all"),
    ] = None,
    encodings: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Encodings and controls.", show_default="all"),
    ] = None,
    size: SizeOption = "small",
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seeds of each row.", show_default="as the size says"),
    ] = None,
    out: OutOption = Path("out/positions"),
    workers: WorkersOption = None,
    debug: DebugOption = False,
) -> None:
    """Train one small transformer with every positional encoding on every task.

    Leaves DIR/report.html, and DIR/tables.md with the same figures. An interrupted run goes on
    where it was.
    """
    with errors_in_one_line(debug, KEPT):
        from dataclasses import replace

        from isospike.experiments import page
        from isospike.experiments.grid import ROWS, WHAT, accuracy_table, overview, run_rows
        from isospike.experiments.tasks import TASKS

        chosen = _list(tasks, list(TASKS), "--tasks")
        rows = _list(encodings, list(ROWS), "--encodings")
        wanted = _size(size)
        if seeds is not None:
            if seeds < 1:
                raise RangeError(f"positions needs --seeds of at least 1, got {seeds}.")
            wanted = replace(wanted, seeds=seeds)
        with Progress(quiet=False) as progress:
            found = run_rows(chosen, rows, wanted, out / "cells", _workers(workers), progress)
        _write(out / "report.html", page.html(found, chosen, rows, wanted))
        tables = [overview(found, chosen, rows).markdown()]
        tables += [
            accuracy_table(found, task, rows, what, f"{task}: {label}").markdown()
            for task in chosen
            for what, label in WHAT.items()
        ]
        _write(out / "tables.md", "\n\n".join(tables) + "\n")
        print(overview(found, chosen, rows).markdown())
        say("saved", str(out / "report.html"))


def _list(given: str | None, known: list[str], option: str) -> list[str]:
    names = known if given is None else [name.strip() for name in given.split(",") if name.strip()]
    if not names or any(name not in known for name in names):
        wrong = next((name for name in names if name not in known), "")
        raise RangeError(f"positions needs {option} of {', '.join(known)}, got {wrong!r}.")
    return list(dict.fromkeys(names))


def _size(name: str) -> Any:
    from isospike.experiments.grid import SIZES

    if name not in SIZES:
        raise RangeError(f"isospike needs a --size of {', '.join(SIZES)}, got {name!r}.")
    return SIZES[name]


def _workers(given: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    count = cores if given is None else given
    if count < 1:
        raise RangeError(f"isospike needs --workers of at least 1, got {count}.")
    return count


def _write(path: Path, text: str) -> None:
    from isospike.report.files import write_file

    write_file(path, text.encode())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("isospike", "torch", "numpy")}
