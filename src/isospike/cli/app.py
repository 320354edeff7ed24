"""The ``isospike`` command: what every subcommand hangs on.

Whatever goes wrong ends in one line on stderr and an exit code, never in half a result; ``--debug``
adds the traceback. Results go to stdout, progress and errors to stderr.
"""

import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="isospike",
    help="Sequence models that compute with spikes: port a pretrained transformer, measure it, use "
    "it; see what collapses in it; learn sequences in one pass; test what is claimed of positions; "
    "order a table's causes.",
    epilog="[bold]Start with[/]\n  isospike port minilm\n  isospike learn shakespeare\n"
    "  isospike order sachs",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``isospike`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A terminal may lack a letter of the text.
            stream.reconfigure(errors="replace")
    app(prog_name="isospike")


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(f"isospike {version('isospike')}")
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
