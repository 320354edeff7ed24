"""``isospike dimension``: how many directions a model's activations use, site by site."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.app import app
from isospike.cli.console import DebugOption, Progress, errors_in_one_line
from isospike.errors import RangeError
from isospike.hf.load import (
    MAX_SENTENCES,
    TextOption,
    batches_of,
    find_model,
    load_config,
    load_model,
    load_tokenizer,
)

PIPE_WIDTH = 160
REPLICATES = 20  # enough for a standard error; each one takes an eigendecomposition


@app.command(
    "dimension",
    epilog="[bold]Examples[/]\n  isospike dimension minilm\n"
    "  isospike dimension ./my-model --text my.txt --share 0.99 --json",
)
def dimension_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that transformers saved, a name on the Hugging Face hub, or "
            "[b]minilm[/].",
            show_default=False,
        ),
    ],
    text: TextOption = None,
    share: Annotated[
        float,
        typer.Option(metavar="X", help="Of the variance, for the count of principal components."),
    ] = 0.95,
    sentences: Annotated[
        int, typer.Option(metavar="N", help=f"Passages of the text to use, 1 to {MAX_SENTENCES}.")
    ] = MAX_SENTENCES,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="Print JSON, with intervals and the sample-size curve."
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Measure the effective dimension at every site of a float model: what a port would code.

    A site is the input of a matrix product, a row one token. A number after ≥ is limited by the
    number of rows, not by the model: give more text.
    """
    with errors_in_one_line(debug):
        if not 0 < share <= 1:
            raise RangeError(f"dimension needs --share in (0, 1], got {share:g}. Try 0.95.")
        if not 1 <= sentences <= MAX_SENTENCES:
            raise RangeError(
                f"dimension needs --sentences from 1 to {MAX_SENTENCES}, got {sentences}. Choose "
                "a number in that range."
            )
        found = _measure(model, text, share, sentences, quiet=as_json)
        _show(found, share, as_json)


def _measure(
    model: str, text: Path | None, share: float, sentences: int, quiet: bool
) -> dict[str, tuple[str, Any]]:
    from isospike.data.datasets import passages, read_text, shakespeare

    source, name, _ = find_model(model, "dimension")
    chosen = passages(shakespeare() if text is None else read_text(text), sentences)
    with Progress(quiet) as progress:
        progress(f"load {name}", 0, 1)
        import torch

        from isospike.dimension import EffectiveDimension
        from isospike.porting.measure import site_dimensions

        config = load_config(source, name, "dimension")
        tokenizer = load_tokenizer(source, "dimension")
        loaded = load_model(source, name, config, "dimension")
        batches = batches_of(chosen, tokenizer, loaded, "dimension")
        progress(f"load {name}", 1, 1)
        generator = torch.Generator().manual_seed(0)
        return site_dimensions(
            loaded,
            batches,
            lambda: EffectiveDimension(share, replicates=REPLICATES, generator=generator),
            progress,
        )


def _show(found: dict[str, tuple[str, Any]], share: float, as_json: bool) -> None:
    if as_json:
        sites = {name: {"kind": kind, **_plain(d)} for name, (kind, d) in found.items()}
        print(json.dumps(sites, allow_nan=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("site", overflow="fold")
    names = ("width", "rows", f"PCA {100 * share:g} %", "particip.", "entropy", "stable")
    for name in (*names, "TwoNN", "MLE"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, (_, d) in found.items():
        estimates = (d.pca, d.participation, d.entropy, d.stable_rank, d.two_nn, d.mle)
        table.add_row(name, str(d.width), str(d.rows), *(_short(e) for e in estimates))
    # In a pipe there is no edge to fold at.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _plain(dimension: Any) -> dict[str, Any]:
    plain = {
        name: value._asdict() if hasattr(value, "_asdict") else value
        for name, value in asdict(dimension).items()
    }
    return {**plain, "curve": [point._asdict() for point in dimension.curve]}


def _short(estimate: Any) -> str:
    if estimate is None:
        return "–"
    return f"{'≥ ' if estimate.capped else ''}{estimate.value:.3g}"
