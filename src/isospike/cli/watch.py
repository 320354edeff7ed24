"""``isospike watch``: what surprises in a file or a pipe."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from isospike.cli.app import command
from isospike.cli.emit import Outcome, compiling, note
from isospike.cli.sequence import alone
from isospike.errors import InputError, RangeError
from isospike.report.files import check_destination, check_file

WATCHED = ("char", "line", "number")
MOST_LINE = 2**16  # characters of a line that is watched
HOURS = 24
MOST_AT_ONCE = 256  # numbers of a file

Row = tuple[Any, int | None, str]  # a symbol, its hour, as it is shown


@command(
    "Sequence memory",
    examples=("isospike watch server.log --out out/log", "tail -f values.csv | isospike watch - "
              "--unit number --low 0 --high 100 --model out/values.safetensors"),
    kept="what was printed stays, and what was learned is saved if there is a --model.",
)  # fmt: skip
def watch(
    file: str,
    *,
    unit: str = "line",
    low: float | None = None,
    high: float | None = None,
    clock: bool = False,
    model: Path | None = None,
    every: int = 1000,
    out: Path | None = None,
    seed: int = 0,
) -> Outcome:
    """Say how much each line, number or character of a stream surprises, and how unusual that is.

    Each symbol is predicted before it is learned. For each, one line is printed as it comes: its
    place in the stream, its surprise in bits (-log2 of its predicted probability), how unusual that
    is, from 0 to 1, and the symbol.

    Args:
        file (FILE): A file, or ``-`` for a pipe.
        unit (UNIT): What a symbol is: ``line`` (words with digits left out, as of a log),
            ``char``, or ``number`` (one a line, or the last column of a CSV).
        low: Smallest number expected; needed where numbers come by a pipe. [default: the file's]
        high: Largest number expected; likewise. [default: the file's]
        clock: Take the hour of the day into account, for numbers of a CSV whose first column is
            date and time, such as ``2026-11-28 01:30:00``.
        model (FILE): File to save what is learned in, every --every symbols and at the end, also
            after Ctrl-C. If it is there already, it is loaded and goes on learning.
        every: Number of symbols between two saves. If the process is killed, give it again what
            came after the last save.
        out (DIR): Where to write a page with pictures, JSON and tables, at the end.
    """
    if unit not in WATCHED:
        raise InputError(
            f"watch needs unit to be one of {', '.join(WATCHED)}, got {unit!r}. Choose one of them."
        )
    if unit != "number" and (low, high) != (None, None):
        raise InputError(f"watch needs --low and --high only with --unit number, got --unit {unit}."
                         " Leave them out.")  # fmt: skip
    if unit != "number" and clock:
        raise InputError(
            f"watch needs --clock only with --unit number, got --unit {unit}. Leave it out."
        )
    if every < 1:
        raise RangeError(f"watch needs every of at least 1, got {every}. Try 1000.")
    if model is not None:
        check_file(model, *(() if file == "-" else (Path(file),)))
    if out is not None:
        check_destination(out)
    make = partial(_watcher, file, unit, (low, high), clock, model, seed)
    show = partial(_watch, make, file, unit, clock, model, every, out)
    return Outcome(data=partial(show, True), text=partial(show, False), saved=_page(out))


def _page(out: Path | None) -> Path | None:
    return None if out is None else out / "report.html"


def _watcher(
    file: str, unit: str, limits: tuple[float | None, float | None], clock: bool,
    model: Path | None, seed: int,
) -> Any:  # fmt: skip
    """A new watcher, or the one that was saved."""
    from isospike.memory.watch import Watcher

    if model is not None and model.exists():
        watcher = Watcher.load(model)
        saved = watcher.metadata.get("unit")
        if saved != unit:
            raise InputError(
                f"watch needs a watcher of the unit {unit}, got one of {saved} in {model}. Name "
                "another --model."
            )
        if limits not in ((None, None), watcher.limits):
            raise InputError(
                f"watch needs the range {watcher.limits} of {model}, got {limits}. Leave --low and "
                "--high out, or name another --model."
            )
        if clock != (watcher.phases == HOURS):
            raise InputError(
                f"watch needs --clock just as {model} was made, got {'it' if clock else 'none'}. "
                f"{'Leave it out' if clock else 'Add --clock'}, or name another --model."
            )
        note("note", f"{model} has taken {watcher.count:,} symbols; counting goes on.")
        return watcher
    low, high = limits
    if unit == "number" and file != "-" and None in limits:
        numbers = [number for number, _, _ in _symbols(file, unit, clock)]
        low = min(numbers, default=0.0) if low is None else low
        most = max(numbers, default=0.0) if high is None else high
        high = low + 1.0 if high is None and most <= low else most
    elif unit == "number" and (low is None or high is None):
        raise InputError(
            "watch needs --low and --high for numbers of a pipe, got one or none. Name the range "
            "in which they are expected."
        )
    watcher = Watcher(low, high, phases=HOURS if clock else 0, seed=seed)
    watcher.metadata["unit"] = unit
    return watcher


def _watch(
    make: Callable[[], Any], file: str, unit: str, clock: bool, model: Path | None, every: int,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Print what a watcher says of every symbol, as it comes."""
    from isospike.memory.report import Trace

    with contextlib.ExitStack() as stack:
        if model is not None:
            stack.enter_context(alone(model, "watch"))
        watcher = make()
        begun = saved = watcher.count
        trace = Trace(unit, begun)
        try:
            # A pipe waits for its next value; numbers of a file are taken faster side by side.
            most = 1 if file == "-" or unit != "number" else MOST_AT_ONCE
            for run in _runs(_symbols(file, unit, clock), most if model is None else every, most):
                symbols, hours, texts = zip(*run, strict=True)
                first = watcher.count
                with compiling(first == begun):
                    moments = watcher.take_all(symbols, hours if clock else None)
                for count, (moment, symbol, shown) in enumerate(
                    zip(moments, symbols, texts, strict=True), first + 1
                ):
                    trace.add(moment, _safe(shown), symbol if unit == "number" else None)
                    _print(count, moment, shown, as_json)
                if model is not None and watcher.count - saved == every:
                    watcher.save(model)
                    saved = watcher.count
        finally:  # also by Ctrl-C, at a mistake in the stream, and where nobody reads on
            if model is not None and watcher.whole and watcher.count > saved:
                watcher.save(model)
            if out is not None:
                trace.report({"file": file, "unit": unit}).save(out)


def _runs(symbols: Iterator[Row], every: int, most: int) -> Iterator[list[Row]]:
    """Rows in lists of at most ``most``, of which one ends at each multiple of ``every``.

    A mistake in the stream is raised once what came before it was taken.
    """
    run: list[Row] = []
    try:
        for place, row in enumerate(symbols, 1):
            run.append(row)
            if len(run) == most or place % every == 0:
                yield run
                run = []
    except InputError:
        if run:
            yield run
        raise
    if run:
        yield run


def _print(count: int, moment: Any, shown: str, as_json: bool) -> None:
    if as_json:
        about = {"symbol": shown, "bits": moment.bits, "anomaly": moment.anomaly}
        print(json.dumps(about), flush=True)
    else:
        print(f"{count}\t{moment.bits:.2f}\t{moment.anomaly:.3f}\t{_safe(shown)}", flush=True)


def _safe(shown: str) -> str:
    """Without codes for the terminal."""
    return shown if shown.isprintable() else repr(shown)[1:-1]


def _symbols(file: str, unit: str, clock: bool = False) -> Iterator[tuple[Any, int | None, str]]:
    """Symbols of a file or a pipe as they come, their hours, and as they are shown."""
    from isospike.data import read_text
    from isospike.memory.watch import line_template

    if file == "-" and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # whatever the locale says
    lines: Any = sys.stdin if file == "-" else io.StringIO(read_text(file), newline=None)
    try:
        for count, line in enumerate(iter(partial(lines.readline, MOST_LINE), ""), 1):
            text = line.rstrip("\r\n")
            if unit == "char":
                yield from ((letter, None, repr(letter)[1:-1]) for letter in line)
            elif unit == "line":
                yield line_template(text), None, text
            elif text.strip():
                cell = text.rsplit(",", 1)[-1].strip()
                try:
                    number = float(cell)
                except ValueError:
                    if count == 1:
                        continue  # the names of the columns
                    number = math.nan
                if not math.isfinite(number):
                    raise InputError(
                        f"watch needs finite numbers, got {cell[:40]!r} in line {count}. Leave the "
                        "line out."
                    )
                yield number, _hour(text, count) if clock else None, cell
    except UnicodeDecodeError:
        raise InputError(
            f"watch needs UTF-8 text, got other bytes in {file!r}. Convert it to UTF-8."
        ) from None


def _hour(text: str, count: int) -> int:
    """The hour of the day in the first column of a row."""
    cell = text.split(",", 1)[0].strip()
    try:
        return datetime.fromisoformat(cell).hour
    except ValueError:
        raise InputError(
            f"watch needs date and time in the first column for --clock, got {cell[:40]!r} in line "
            f"{count}. Write 2026-11-28 01:30:00, or leave --clock out."
        ) from None
