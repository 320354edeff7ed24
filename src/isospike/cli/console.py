"""How the command line speaks: progress and errors on stderr, one line each, and exit codes."""

import contextlib
import errno
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from isospike.errors import IsospikeError, MissingExtraError

DONE, NOT_REACHED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

DebugOption = Annotated[
    bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")
]


class Progress:
    """How far the work is: bars on a terminal, one line per phase in a pipe, or nothing.

    Called with what is being done, how much of it is done, and of how much.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._phases: dict[str, Any] = {}

    def __enter__(self) -> "Progress":
        if not self._quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(
                progress.SpinnerColumn(finished_text="[green]✓[/]"),
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=30),
                progress.TextColumn("{task.fields[count]}", style="dim", markup=False),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._bars is None:
            if what not in self._phases:
                self._phases[what] = None
                print(what, file=sys.stderr, flush=True)
            return
        if what not in self._phases:
            self._phases[what] = self._bars.add_task(what, count="")
        # A phase of one part shows a moving bar until it is done.
        shown = total if total > 1 or done >= total else None
        count = f"{done}/{total}" if total > 1 else ""
        self._bars.update(self._phases[what], completed=done, total=shown, count=count)


@contextlib.contextmanager
def errors_in_one_line(debug: bool, kept: str = "nothing was written.") -> Iterator[None]:
    """Turn whatever goes wrong into one line on stderr and an exit code.

    ``kept`` is what to say of an interrupted command.
    """
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # of the libraries; ours are errors
            yield
    except KeyboardInterrupt:
        fail("interrupted", kept, INTERRUPTED, debug)
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - the last stop: said, never swallowed
        fail("error", explain(error), MISTAKE, debug)


def fail(kind: str, message: str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(kind, message)
    raise typer.Exit(status) from None


def explain(error: Exception) -> str:
    """One line for an error: what was needed, what was got, what to do."""
    if isinstance(error, IsospikeError | MissingExtraError):
        return str(error)
    if is_disk_full(error):
        where = getattr(error, "filename", None)
        place = f" while writing {where}" if where else ""
        return f"the disk is full{place}. Free some space; what was saved before is untouched."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "out of memory. Use fewer --sentences, or a smaller model."
    return f"unexpected {type(error).__name__}: {first_sentence(error)} Use --debug to see where."


def is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)  # as safetensors words it


def first_sentence(error: Exception) -> str:
    """The first line of what a library said, at a readable length, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    line = (
        " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    )  # a heading alone says little
    if len(line) > 200:
        line = f"{line[:200].rsplit(' ', 1)[0]} ..."
    return line if line.endswith((".", "!", "?")) else f"{line}."


def say(kind: str, message: str) -> None:
    """One line on stderr, whatever the message holds."""
    line = " ".join(message.split())
    if not sys.stderr.isatty():
        print(f"{kind}: {line}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    colour = {"error": "bold red", "not reached": "bold yellow"}.get(kind, "bold")
    text = Text.assemble((f"{kind}: ", colour), line)
    Console(stderr=True).print(text, soft_wrap=True)
