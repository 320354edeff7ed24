"""``isospike learn`` and ``recall``: the sequence machine on a file."""

import itertools
import json
import sys
from collections.abc import Hashable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.app import app
from isospike.cli.console import DebugOption, Progress, errors_in_one_line, say
from isospike.errors import RangeError

CHUNK = 2000  # symbols between two looks at the progress
NGRAM = 5


class Unit(StrEnum):
    """What a symbol of a text is."""

    CHAR = "char"
    WORD = "word"
    LINE = "line"


@app.command(
    "learn",
    epilog="[bold]Examples[/]\n  isospike learn my.txt\n"
    "  isospike learn chorales --model out/bach.safetensors",
)
def learn_command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A UTF-8 text; melodies as JSON, lists of MIDI numbers or of chords; or "
            "[b]shakespeare[/] or [b]chorales[/], which come with isospike.",
            show_default=False,
        ),
    ],
    unit: Annotated[Unit, typer.Option(help="What a symbol of a text is.")] = Unit.CHAR,
    model: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where to save; a machine that is there learns on."),
    ] = Path("out/sequence.safetensors"),
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most symbols to learn.", show_default="all"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Learn a text or melodies in one pass, symbol by symbol.

    Every symbol is predicted before it is learned. Beside the machine's accuracy stands that of a
    back-off n-gram of order 5, learned in the same way.
    """
    with errors_in_one_line(debug):
        if limit is not None and limit < 1:
            raise RangeError(
                f"learn needs --limit of at least 1, got {limit}. Leave it out for all."
            )
        melodies = file == "chorales" or Path(file).suffix == ".json"
        _learn(_read(file, unit, limit), "melody" if melodies else unit, model, as_json)


@app.command(
    "recall",
    epilog="[bold]Example[/]\n  isospike recall out/sequence.safetensors --prompt 'To be, or'",
)
def recall_command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A machine that isospike learn saved.", show_default=False
        ),
    ],
    prompt: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What to continue; symbols of melodies with spaces."),
    ] = "",
    count: Annotated[
        int, typer.Option("--symbols", metavar="N", help="Most symbols to add.")
    ] = 100,
    debug: DebugOption = False,
) -> None:
    """Continue a prompt with what a machine has learned."""
    with errors_in_one_line(debug):
        from isospike.memory.machine import SequenceMachine

        machine = SequenceMachine.load(model)
        unit = machine.notes.get("unit", "char")
        symbols = _split(prompt, unit)
        unknown = [s for s in symbols if s not in machine]
        if unknown:
            raise RangeError(
                f"recall needs a --prompt of symbols the machine has met, got {unknown[0]!r}. It "
                f"knows {len(machine.symbols)}."
            )
        joint = {"char": "", "line": "\n"}.get(unit, " ")
        print(joint.join(str(s) for s in [*symbols, *machine.generate(symbols, count)]))


def _read(file: str, unit: Unit, limit: int | None) -> list[list[Hashable]]:
    """The sequences of a file, each to be learned from the start."""
    from isospike.data import datasets

    sequences: list[list[Hashable]]
    if file == "chorales":
        sequences = [list(s) for s in datasets.chorales()]
    elif file == "shakespeare":
        sequences = [_split(datasets.shakespeare(), unit)]
    elif Path(file).suffix == ".json":
        sequences = [list(s) for s in datasets.read_melodies(file)]
    else:
        sequences = [_split(datasets.read_text(file), unit)]
    if limit is None:
        return sequences
    starts = itertools.accumulate((len(s) for s in sequences), initial=0)
    return [
        s[: max(0, limit - start)] for s, start in zip(sequences, starts, strict=False)
        if start < limit
    ]  # fmt: skip


def _split(text: str, unit: str) -> list[Hashable]:
    if unit == Unit.CHAR:
        return list(text)
    return list(text.splitlines()) if unit == Unit.LINE else list(text.split())


def _learn(sequences: list[list[Hashable]], unit: str, path: Path, as_json: bool) -> None:
    from isospike.memory.machine import SequenceMachine
    from isospike.memory.ngram import BackoffNgram

    if path.exists():
        machine = SequenceMachine.load(path)
        if machine.notes.get("unit", unit) != unit:
            raise RangeError(
                f"learn needs a machine of the same unit, {unit}, got one of "
                f"{machine.notes['unit']} in {path}. Name another --model."
            )
        say("note", "the machine has learned before, the n-gram has not: do not compare them.")
    else:
        machine = SequenceMachine(context="voting", grow=True)
    machine.notes["unit"] = str(unit)
    ngram = BackoffNgram(NGRAM)
    total, done, right, right_ngram = sum(map(len, sequences)), 0, 0, 0
    with Progress(quiet=as_json) as progress:
        for sequence in sequences:
            machine.restart()
            ngram.restart()
            for start in range(0, len(sequence), CHUNK):
                part = sequence[start : start + CHUNK]
                right += int(machine.learn_sequence(part).sum())
                right_ngram += sum(ngram.learn_sequence(part))
                done += len(part)
                progress("learn", done, total)
        machine.save(path)
    result: dict[str, Any] = {
        "symbols": total,
        "alphabet": len(machine.symbols),
        "accuracy": right / total,
        f"ngram_{NGRAM}": right_ngram / total,
        "model": str(path),
    }
    if as_json:
        print(json.dumps(result))
        return
    if not sys.stdout.isatty():
        print("\n".join(f"{k}  {v}" for k, v in result.items()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_row("learned", f"{total:,} symbols of {len(machine.symbols)}")
    table.add_row("predicted before learning", f"{right / total:.1%}")
    table.add_row(f"order-{NGRAM} back-off n-gram", f"{right_ngram / total:.1%}")
    Console().print(table)
    say("saved", str(path))
