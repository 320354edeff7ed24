"""What a command shows: results on stdout, progress, notes and errors on stderr, an exit code."""

import contextlib
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from isospike.errors import IsospikeError, MissingExtraError, first_sentence, is_disk_full

DONE, NOT_REACHED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
PIPE_WIDTH = 160  # in a pipe there is no edge to fold at
AGAIN_S = 30.0  # a phase that takes longer says in a pipe how far it is

_SUBJECT = re.compile(r"([A-Za-z_][\w.]*) needs (an? )?(\w*)(.*)", re.DOTALL)
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
        becomes ``embed --code needs one of ...``. Any other message follows the name and a colon.
        """
        match = _SUBJECT.fullmatch(message)
        if match is None:
            return f"{self.name}: {message}"
        subject, article, what, rest = match.groups(default="")
        if what == "one" and subject in self.options:
            return f"{self.name} {self.options[subject]} needs {what}{rest}"
        return f"{self.name} needs {self.options.get(what, article + what)}{rest}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command found.

    Attributes:
        data: What ``--json`` prints: an object, a text that is JSON already, or lines of it.
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


def emit(outcome: Outcome, as_json: bool) -> None:
    """Print an outcome."""
    if as_json:
        data = outcome.data
        print(data if isinstance(data, str) else json.dumps(data, allow_nan=False))
    elif callable(outcome.text):
        outcome.text()
    elif isinstance(outcome.text, str):
        if outcome.text:
            print(outcome.text)
    else:
        from rich.console import Console

        terminal = sys.stdout.isatty()
        Console(width=None if terminal else PIPE_WIDTH).print(outcome.text)
    if outcome.saved is not None and not as_json:
        note("saved", str(outcome.saved), link=outcome.saved)
    if outcome.problem is not None:
        say(*outcome.problem)


# -------------------------------------------------------------------------- errors


@contextlib.contextmanager
def errors_in_one_line(words: Words, *, quiet: bool, debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one line on stderr and an exit code."""
    token = _QUIET.set(quiet)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # of the libraries; ours are errors or reported
            yield
    except KeyboardInterrupt:
        _fail("interrupted", words.kept, INTERRUPTED, debug)
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - the last stop: reported, never swallowed
        _fail("error", explain(error, words), MISTAKE, debug)
    finally:
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
    if is_disk_full(error):
        where = getattr(error, "filename", None)
        place = f" while writing {where}" if where else ""
        return f"the disk is full{place}. Free some space; what was saved before is untouched."
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return f"{words.name}: {what}. Check the path."
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return f"{words.name} ran out of memory. Use a smaller {words.smaller}."
    return (
        f"{words.name}: unexpected {type(error).__name__}: {first_sentence(error)} Use --debug to "
        "see where."
    )


def note(kind: str, message: str, link: Path | None = None) -> None:
    """A line on stderr that ``--quiet`` leaves out."""
    if not _QUIET.get():
        say(kind, message, link)


def say(kind: str, message: str, link: Path | None = None) -> None:
    """One line on stderr, whatever the message holds."""
    line = " ".join(message.split())
    if not sys.stderr.isatty():
        print(f"{kind}: {line}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    colour = {"error": "bold red", "warning": "yellow", "not reached": "bold yellow"}
    style = Style(link=link.resolve().as_uri()) if link is not None else ""
    text = Text.assemble((f"{kind}: ", colour.get(kind, "bold")), (line, style))
    Console(stderr=True).print(text, soft_wrap=True)


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
            print(what, file=sys.stderr, flush=True)
            return
        start, last = self._phases[what]
        if now - last >= AGAIN_S and 0 < done < total:
            self._phases[what] = start, now
            left = (now - start) * (total - done) / done
            print(f"{what}: {done} of {total}, {_clock(left)} left", file=sys.stderr, flush=True)


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
