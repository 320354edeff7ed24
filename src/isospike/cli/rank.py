"""``isospike rank``: what collapses in a transformer, and which heads can be told apart."""

from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.app import app
from isospike.cli.console import DebugOption, Progress, errors_in_one_line, say
from isospike.errors import RangeError
from isospike.hf.load import (
    TextOption,
    find_model,
    is_port,
    load_config,
    load_model,
    load_tokenizer,
    most_tokens,
    others,
    quiet_transformers,
    tokenize,
)

MOST_SEQUENCES = 64
MOST_TOKENS = 512  # unless asked for
LETTERS = 12  # of a token, at most, in a text that is long enough


@app.command(
    "rank",
    epilog="[bold]Examples[/]\n  isospike rank minilm\n"
    "  isospike rank ./my-model --text my.txt --tokens 256 --out out/mine\n"
    "  isospike rank out/minilm        what spikes do to rank: a folder that isospike port wrote",
)
def rank_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that transformers saved or isospike port wrote, a name on the Hugging "
            "Face hub, or [b]minilm[/].",
            show_default=False,
        ),
    ],
    text: TextOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write.",
            show_default="out/rank/<name of the model>",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a sequence. No rank exceeds it, so more than channels show more.",
            show_default=f"all that the model reads, up to {MOST_TOKENS}",
        ),
    ] = None,
    sequences: Annotated[
        int,
        typer.Option(metavar="N", help=f"Pieces of the text to measure, 1 to {MOST_SEQUENCES}."),
    ] = 2,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            metavar="",
            help="Also run new random weights, tokens in random order, and fewer tokens.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Measure which representations of a transformer collapse, and which heads can be told apart.

    Prints one line for each layer and warnings in words; writes a page, JSON and CSV tables.
    """
    with errors_in_one_line(debug):
        if not 1 <= sequences <= MOST_SEQUENCES:
            raise RangeError(
                f"rank needs --sequences from 1 to {MOST_SEQUENCES}, got {sequences}. Choose a "
                "number in that range."
            )
        if tokens is not None and tokens < 2:
            raise RangeError(f"rank needs --tokens of at least 2, got {tokens}.")
        _rank(model, text, out, tokens, sequences, controls, as_json)


def _rank(
    model: str,
    text: Path | None,
    out: Path | None,
    tokens: int | None,
    sequences: int,
    controls: bool,
    as_json: bool,
) -> None:
    from isospike.data.datasets import read_text, shakespeare

    words = shakespeare() if text is None else read_text(text)
    folder = Path(model).expanduser()
    ported = is_port(folder)
    source, name, short = (
        (str(folder), folder.resolve().name, folder.resolve().name)
        if ported
        else find_model(model, "rank")
    )
    with Progress(quiet=as_json) as progress:
        progress(f"load {name}", 0, 1)
        if ported:
            loaded = _load_port(folder)
        else:
            loaded = load_model(source, name, load_config(source, name, "rank"), "rank")
        tokenizer = load_tokenizer(source, "rank")
        progress(f"load {name}", 1, 1)
        batch = _batch(words, tokenizer, loaded, tokens, sequences)
        from isospike.ranks.report import rank_report

        report = rank_report(loaded, batch, controls=controls, name=name, progress=progress)
    place = report.save(out or Path("out/rank") / short)
    if as_json:
        print(report.to_json())
        return
    print(report.summary())
    say("saved", str(place / "report.html"))


def _load_port(folder: Path) -> Any:
    quiet_transformers()
    from isospike.porting import load

    with others(f"the port {str(folder)!r} could not be loaded"):
        return load(folder)


def _batch(words: str, tokenizer: Any, model: Any, tokens: int | None, count: int) -> Any:
    """Pieces of a text, evenly spaced over it, as one batch."""
    most = most_tokens(model, tokenizer)
    wanted = min(MOST_TOKENS, most) if tokens is None else tokens
    if wanted > most:
        raise RangeError(
            f"rank needs --tokens of at most {most}, which is what this model reads, got {wanted}."
        )
    plain = " ".join(words.split())
    piece = min(len(plain), LETTERS * wanted)
    starts = [i * (len(plain) - piece) // max(1, count - 1) for i in range(count)]
    pieces = list(dict.fromkeys(plain[start : start + piece] for start in starts))
    batch = tokenize(pieces, tokenizer, model, wanted)
    fewest = int(batch["attention_mask"].sum(1).min())
    if fewest < 2:
        raise RangeError(
            f"rank needs a text of at least 2 tokens, got {fewest}. Give a longer --text."
        )
    return batch
