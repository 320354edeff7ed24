"""The ``isospike`` command, and the decorator that makes a function one of its commands.

Whatever goes wrong ends in one line on stderr and an exit code, never in half a result.
"""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from isospike import interrupts
from isospike.cli.emit import (
    MISTAKE,
    UNPRINTED,
    Bars,
    ClosedStream,
    Outcome,
    Words,
    emit,
    errors_in_one_line,
    say,
    unprinted,
)
from isospike.cli.options import COMMON, option_name, parameters, split_docstring
from isospike.errors import InputError, RangeError
from isospike.progress import shown_by

Handler = Callable[..., Outcome]
_UsageError: Any = typer.BadParameter.__mro__[1]
MOST_SEEDS = 2**32  # what every generator takes
_COMMAND = re.compile(r"No such command (.*?)(?:\. (Did you mean .*))?", re.DOTALL)
_VALUE = re.compile(r"Option '(.*?)' (requires|does not take) (?:an argument|a value)")


class _PlainHelp:
    """Help without types: a metavar says what a value is, and a switch has none."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if param.param_type_name == "argument":
                shown = param.metavar if param.required else f"[{param.metavar}]"
                param.get_usage_pieces = lambda ctx, shown=shown: [shown]  # noqa: ARG005
                param.display_type_rich = lambda ctx: None  # noqa: ARG005
            elif param.is_flag:
                param.metavar = ""
        return params


class _Command(_PlainHelp, TyperCommand):
    pass


class _Group(_PlainHelp, TyperGroup):
    """The group of all commands; wrong usage is one line, as any other error."""

    def main(self, args: Any = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        if not extra.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            if not (sys.argv[1:] if args is None else args):
                print(START)
                status = 0
            else:
                status = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
        except _UsageError as error:
            say("error", self._usage(error, sys.argv[1:] if args is None else args))
            status = MISTAKE
        except OSError as error:
            status = unprinted(error, "isospike")
        except SystemExit:  # of Rich, where the pipe that reads the help is closed
            status = UNPRINTED
        sys.exit(status or 0)

    def _usage(self, error: Any, args: Sequence[str]) -> str:
        """Wrong usage in the form of any other error."""
        name = next((arg for arg in args if arg in self.commands), "")
        help_line = f"See {' '.join(f'isospike {name}'.split())} --help."
        param, kind = getattr(error, "param", None), type(error).__name__
        message = error.message.strip().rstrip(".")
        if param is not None:
            named = param.metavar if param.param_type_name == "argument" else param.opts[0]
        if kind == "MissingParameter":
            needs, got = named, "none."
        elif kind == "NoSuchOption":
            maybe = " ".join(f"Did you mean {name}?" for name in error.possibilities or ())
            needs, got = "options that it knows", f"{error.option_name}. {maybe}".strip()
        elif param is not None:
            needs, got = f"a valid {named}", f"a mistake: {message}."
        elif known := _COMMAND.fullmatch(message):
            needs, got = "a command that it knows", f"{known[1]}. {known[2] or ''}".strip()
        elif lacks := _VALUE.fullmatch(message):
            needs, got = lacks[1], ("none." if lacks[2] == "requires" else "one.")
            needs = f"{'a' if lacks[2] == 'requires' else 'no'} value for {needs}"
        else:
            needs, got = "no other arguments than its help names", f"others: {message}."
        return f"{name or 'isospike'} needs {needs}, got {got} {help_line}"


def _epilog(title: str, lines: Sequence[str]) -> str:
    # The markup keeps the indentation, which Typer would take away.
    indented = (f"[not bold]  {line}[/]" for line in lines)
    return "\n".join((f"[bold]{title}[/]", *indented)) + "\n\n" if lines else ""


START = """\
isospike: sequence models that compute with spikes.

See it, each in about a minute:
  isospike demo port       a sentence model on binary spikes
  isospike demo train      a spiking network that learns small pictures
  isospike demo learn      melodies learned in one pass, and continued
  isospike demo analyse    causes in a table, what collapses in a model

With what you have:
  isospike check MODEL     which parts of it would run on spikes
  isospike port MODEL      port it, measure it, save it
  isospike train NAME DIR  train a spiking network on your pictures
  isospike learn FILE      learn a text or melodies, symbol by symbol
  isospike order TABLE     order its columns, causes first

All commands: isospike --help\
"""
"""What the command prints alone."""

app = typer.Typer(
    name="isospike",
    cls=_Group,
    help="Sequence models that compute with spikes: port a pretrained transformer, measure and use "
    "the port; find representations of a model that collapse; learn sequences in one pass; order "
    "the causes in a table.",
    epilog=_epilog(
        "Start with", ("isospike port minilm", "isospike learn shakespeare", "isospike order sachs")
    )
    + _epilog(
        "Exit codes",
        (
            "0    done",
            "1    done, but what was asked for was not reached",
            "2    a mistake or a full disk; one line says what",
            "3    done, and files are written, but the result could not be printed",
            "130  interrupted",
        ),
    ),
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that the arguments name, and exit."""
    sys.stdout = sys.stdout or ClosedStream()
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A terminal may lack a letter of the text.
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="isospike")
    finally:
        interrupts.ignore()


def command(
    group: str,
    *,
    examples: Sequence[str] = (),
    exits: Sequence[str] = (),
    words: dict[str, str] | None = None,
    kept: str = "nothing was written.",
    smaller: str = "model",
) -> Callable[[Handler], Handler]:
    """Make a function a command of its own name: errors, progress, ``--json`` and exit codes.

    The function takes its options, checks them before it loads anything, calls the library once
    and returns an `Outcome`. It gets ``as_json`` if it has a parameter of that name.

    Args:
        group: Heading of the command in ``isospike --help``.
        examples: Command lines of its help.
        exits: Exit codes of its help that it does not share with all commands.
        words: Options for parameters of the library that have another name there.
        kept: What an interrupted command leaves.
        smaller: What to choose smaller when memory runs out.

    Returns:
        The decorator, which returns the function unchanged.
    """
    epilog = _epilog("Examples" if len(examples) > 1 else "Example", examples)
    epilog += _epilog("Exit codes", exits)

    def decorate(function: Handler) -> Handler:
        about, _ = split_docstring(function)
        given = list(parameters(function))
        own = inspect.signature(function).parameters
        options = {p.name: option_name(p.name) for p in given if p.kind is p.KEYWORD_ONLY}
        speech = Words(
            name=function.__name__, options={**options, **(words or {})}, kept=kept, smaller=smaller
        )

        @functools.wraps(function)
        def run(**values: Any) -> int:
            as_json, quiet, debug = (values[name] for name in COMMON)
            with errors_in_one_line(speech, quiet=quiet, debug=debug):
                with Bars(silent=quiet or as_json) as bars, shown_by(bars):
                    outcome = function(**{n: _checked(own[n], values[n], speech) for n in own})
                status = emit(outcome, as_json, speech.name)
            if outcome.then is not None:
                after = replace(speech, kept="what was saved before stays.")
                with errors_in_one_line(after, quiet=quiet, debug=debug):
                    with Bars(silent=quiet or as_json) as bars, shown_by(bars):
                        outcome.then()
            return status

        run.__dict__["__signature__"] = inspect.Signature(given, return_annotation=int)
        run.__annotations__ = {p.name: p.annotation for p in given}
        app.command(cls=_Command, help=about, epilog=epilog, rich_help_panel=group)(run)
        return function

    return decorate


def _checked(parameter: inspect.Parameter, value: Any, words: Words) -> Any:
    """A value in the form and range that is the same for all commands: places and seeds."""
    name = words.options.get(parameter.name, parameter.name)
    kinds = getattr(parameter.annotation, "__args__", (parameter.annotation,))
    if value is not None and (Path in kinds or parameter.kind is not parameter.KEYWORD_ONLY):
        try:
            os.fsencode(value)
            place = os.path.expanduser(value)  # noqa: PTH111 - that of Path raises for ~nobody
        except ValueError:
            place = "\0"
        if "\0" in place:
            raise InputError(
                f"{words.name} needs {name} to be a name that files can have, got {str(value)!r}. "
                "Choose another."
            )
        return type(value)(place)
    if parameter.name == "seed" and value is not None and not 0 <= value < MOST_SEEDS:
        raise RangeError(
            f"{words.name} needs seed from 0 to {MOST_SEEDS - 1}, got {value}. Choose another."
        )
    return value


def _print_version(asked: bool) -> bool:
    if asked:
        from isospike import __version__

        print(f"isospike {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _isospike(
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_print_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    pass
