"""The ``isospike`` command, and the decorator that makes a function one of its commands.

Whatever goes wrong ends in one line on stderr and an exit code, never in half a result.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from isospike.cli.emit import MISTAKE, Bars, Outcome, Words, emit, errors_in_one_line, say
from isospike.cli.options import COMMON, option_name, parameters, split_docstring
from isospike.progress import shown_by

Handler = Callable[..., Outcome]
_UsageError: Any = typer.BadParameter.__mro__[1]


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
            status = super().main(args, prog_name, standalone_mode=False, **extra)
        except _UsageError as error:
            path = error.ctx.command_path if error.ctx else "isospike"
            name, what = path.rpartition(" ")[2], error.format_message().strip()
            stop = "" if what.endswith((".", "?")) else "."
            say("error", f"{name}: {what}{stop} See {path} --help.")
            status = MISTAKE
        sys.exit(status or 0)


def _epilog(title: str, lines: Sequence[str]) -> str:
    # The markup keeps the indentation, which Typer would take away.
    indented = (f"[not bold]  {line}[/]" for line in lines)
    return "\n".join((f"[bold]{title}[/]", *indented)) + "\n\n" if lines else ""


app = typer.Typer(
    name="isospike",
    cls=_Group,
    help="Sequence models that compute with spikes: port a pretrained transformer, measure and use "
    "the port; see what collapses in a model; learn sequences in one pass; order the causes in a "
    "table.",
    epilog=_epilog(
        "Start with", ("isospike port minilm", "isospike learn shakespeare", "isospike order sachs")
    )
    + _epilog(
        "Exit codes",
        (
            "0    done",
            "1    done, but what was asked for was not reached",
            "2    a mistake or a full disk; one line says what",
            "130  interrupted",
        ),
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``isospike`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A terminal may lack a letter of the text.
            stream.reconfigure(errors="replace")
    app(prog_name="isospike")


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
                    outcome = function(**{name: values[name] for name in own})
                emit(outcome, as_json)
            if outcome.then is not None:
                after = replace(speech, kept="what was saved before stays.")
                with errors_in_one_line(after, quiet=quiet, debug=debug):
                    with Bars(silent=quiet or as_json) as bars, shown_by(bars):
                        outcome.then()
            return outcome.status

        run.__dict__["__signature__"] = inspect.Signature(given, return_annotation=int)
        run.__annotations__ = {p.name: p.annotation for p in given}
        app.command(cls=_Command, help=about, epilog=epilog, rich_help_panel=group)(run)
        return function

    return decorate


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
