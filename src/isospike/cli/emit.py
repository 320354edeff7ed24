"""What a command shows: results on stdout, progress, notes and errors on stderr, an exit code."""

import contextlib
import errno
import io
import json
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from isospike import interrupts
from isospike.errors import IsospikeError, MissingExtraError, first_sentence, is_disk_full

DONE, NOT_REACHED, MISTAKE, UNPRINTED = 0, 1, 2, 3
PIPE_WIDTH = 160  # in a pipe there is no edge to fold at
AGAIN_S = 30.0  # a phase that takes longer says in a pipe how far it is

_SUBJECT = re.compile(r"([A-Za-z_][\w.]*) needs (an? )?(\w*)(.*)", re.DOTALL)
_SETTING = re.compile(r"\b([a-z_]+)='?([\w-]+)\b'?")
_QUIET: ContextVar[bool] = ContextVar("isospike_quiet", default=False)


@dataclass(frozen=True, kw_only=True)
class Words:
    """How a command speaks of itself.

    Attributes:
        name: Name of the command; its errors begin with it.
        options: The option of each parameter of the library, by the name of the parameter.
        kept: What an interrupted command leaves.
        smaller: What to choose smaller when memory runs out.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    kept: str = "nothing was written."
    smaller: str = "model"

    def error(self, message: str) -> str:
        """The message of a library function in the words of the command that called it.

        ``load needs steps ...`` becomes ``embed needs --steps ...``, and ``code needs one of ...``
        becomes ``embed --code needs one of ...``.
        """
        match = _SUBJECT.fullmatch(message)
        if match is None:
            return f"{self.name} needs another input, got an error: {message}"
        subject, article, what, rest = match.groups(default="")
        if what == "one" and subject in self.options:
            return f"{self.name} {self.options[subject]} needs {what}{rest}"
        rest = _SETTING.sub(self._option, rest)
        return f"{self.name} needs {self.options.get(what, article + what)}{rest}"

    def _option(self, setting: re.Match[str]) -> str:
        """``missing='drop'`` as ``--missing drop``, if the command has that option."""
        name, value = setting.groups()
        return f"{self.options[name]} {value}" if name in self.options else setting[0]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command found.

    Attributes:
        data: What ``--json`` prints: an object, a text that is JSON already, or lines of it; or a
            function that prints them as it goes.
        text: What is printed otherwise: a text, anything that Rich can print, or a function that
            prints as it goes.
        saved: The file that a person opens first.
        status: Exit code.
        problem: Kind and text of the line on stderr that explains a status other than 0.
        then: Work that is left to do once the outcome is printed.
    """

    data: Any
    text: Any = ""
    saved: Path | None = None
    status: int = DONE
    problem: tuple[str, str] | None = None
    then: Callable[[], None] | None = None

    @classmethod
    def of(cls, report: Any, folder: Path | None = None) -> "Outcome":
        """The outcome of a report, which is saved if there is a folder."""
        if folder is not None:
            report.save(folder)
        page = None if folder is None else folder / "report.html"
        return cls(data=report.to_json(), text=report.summary(), saved=page)


def emit(outcome: Outcome, as_json: bool, name: str) -> int:
    """Print an outcome.

    Returns:
        The exit code: that of the outcome, unless it could not be printed.
    """
    status = outcome.status
    try:
        _print(outcome, as_json)
        sys.stdout.flush()
    except OSError as error:
        status = unprinted(error, name)
    if outcome.saved is not None and not as_json:
        note("saved", str(outcome.saved), link=outcome.saved)
    if outcome.problem is not None:
        say(*outcome.problem)
    return status


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        data = outcome.data
        if callable(data):
            data()
            return
        print(data if isinstance(data, str) else json.dumps(data, allow_nan=False))
    elif callable(outcome.text):
        outcome.text()
    elif isinstance(outcome.text, str):
        if outcome.text:
            print(outcome.text)
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        with console.capture() as shown:  # Rich itself would exit where a pipe is closed.
            console.print(outcome.text)
        print(shown.get(), end="")


class ClosedStream(io.TextIOBase):
    """What stdout is where the process was started without one."""

    def write(self, text: str) -> int:  # noqa: ARG002
        """Refuse, as a full disk does."""
        raise OSError(errno.EBADF, "a closed stdout")


def unprinted(error: OSError, name: str) -> int:
    """Say that stdout did not take the result; its reader may have read enough.

    Args:
        error: What the write raised.
        name: Of the command.

    Returns:
        The exit code.
    """
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    with contextlib.suppress(OSError):  # What is in the buffer is not tried again at the end.
        os.dup2(sys.stdout.fileno(), 1)
    if not isinstance(error, BrokenPipeError):
        say(
            "error",
            f"{name} needs a stdout that takes its result, got {error.strerror}. The work is done "
            "and files are written; print the result elsewhere.",
        )
    return UNPRINTED


# -------------------------------------------------------------------------- errors


@contextlib.contextmanager
def errors_in_one_line(words: Words, *, quiet: bool, debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one line on stderr and an exit code."""
    token = _QUIET.set(quiet)
    try:
        interrupts.begin_work(words.kept)
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # of the libraries; ours are errors or reported
            yield
    except KeyboardInterrupt:
        interrupts.tell()
        _fail("interrupted", words.kept, interrupts.STATUS, debug)
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - the last stop: reported, never swallowed
        _fail("error", explain(error, words), MISTAKE, debug)
    finally:
        interrupts.end_work()
        _QUIET.reset(token)


def _fail(kind: str, message: str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(kind, message)
    raise typer.Exit(status) from None


def explain(error: Exception, words: Words) -> str:
    """One line for an error: what was needed, what was got, what to do."""
    if isinstance(error, IsospikeError | MissingExtraError):
        return words.error(str(error))
    place = getattr(error, "filename", None)
    if is_disk_full(error):
        where = f" while writing {place}" if place else ""
        return (
            f"{words.name} needs space on the disk, got a full one{where}. Free some; what was "
            "saved before is untouched."
        )
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return (
            f"{words.name} needs more memory than there is, got none. Use a smaller "
            f"{words.smaller}."
        )
    if isinstance(error, OSError) and error.strerror:
        what = f"access to {place}" if place else "the help of the system"
        return f"{words.name} needs {what}, got {error.strerror}. Check the path."
    return (
        f"{words.name} needs an input that it can work on, got {type(error).__name__}: "
        f"{first_sentence(error)} Use --debug to see where."
    )


def note(kind: str, message: str, link: Path | None = None) -> None:
    """A line on stderr that ``--quiet`` leaves out."""
    if not _QUIET.get():
        say(kind, message, link)


@contextlib.contextmanager
def compiling(first: bool = True, after: float = 3.0) -> Iterator[None]:
    """Say that loops are compiled, if the first use of them on this machine takes long.

    Args:
        first: Whether this is the first use in this process.
        after: Seconds to wait before that.
    """
    if not first:
        yield
        return
    words = "compiling what will be fast from now on, once on this machine: up to a minute."
    timer = threading.Timer(after, copy_context().run, (note, "note", words))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(kind: str, message: str, link: Path | None = None) -> None:
    """One line on stderr, whatever the message holds."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    if not sys.stderr.isatty():
        _tell(f"{kind}: {line}")
        return
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    colour = {"error": "bold red", "warning": "yellow", "not reached": "bold yellow"}
    style = Style(link=link.resolve().as_uri()) if link is not None else ""
    text = Text.assemble((f"{kind}: ", colour.get(kind, "bold")), (line, style))
    Console(stderr=True).print(text, soft_wrap=True)


def _tell(line: str) -> None:
    """A line on stderr; work does not stop because nobody can read how far it is."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------ progress


class Bars:
    """Progress on stderr: bars with the time left on a terminal, plain lines in a pipe, or nothing.

    Called with what is being done, how much of it is done, and of how much.
    """

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._bars: Any = None
        self._phases: dict[str, Any] = {}

    def __enter__(self) -> "Bars":
        if not self._silent and sys.stderr.isatty():
            self._bars = _rich_bars()
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            if self._phases:
                print(file=sys.stderr)  # a line between the bars and the result

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._silent:
            return
        if self._bars is None:
            self._line(what, done, total)
            return
        if what not in self._phases:
            self._phases[what] = self._bars.add_task(what, count="")
        # A phase of one part shows a moving bar until it is done.
        shown = total if total > 1 or done >= total else None
        count = f"{done:,}/{total:,}" if total > 1 else ""
        self._bars.update(self._phases[what], completed=done, total=shown, count=count)

    def _line(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in self._phases:
            self._phases[what] = now, now
            _tell(what)
            return
        start, last = self._phases[what]
        if now - last >= AGAIN_S and 0 < done < total:
            self._phases[what] = start, now
            left = (now - start) * (total - done) / done
            _tell(f"{what}: {done} of {total}, {_clock(left)} left")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _rich_bars() -> Any:
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Clock(progress.ProgressColumn):
        """The time left; once done, the time it took."""

        def render(self, task: progress.Task) -> Text:
            if task.finished or task.time_remaining is None:
                return Text(_clock(task.finished_time or task.elapsed or 0), style="dim")
            return Text(f"{_clock(task.time_remaining)} left", style="cyan")

    return progress.Progress(
        progress.SpinnerColumn(finished_text="[green]✓[/]"),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.fields[count]}", style="dim", markup=False),
        Clock(),
        console=Console(stderr=True),
    )
