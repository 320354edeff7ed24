"""``isospike dimension``, ``rank`` and ``order``: what a model or a table holds."""

from pathlib import Path
from typing import Any

from isospike.cli.app import command
from isospike.cli.emit import Outcome, note
from isospike.cli.port import check_sentences
from isospike.errors import RangeError
from isospike.hf.load import MAX_SENTENCES, Source, TextModel, find_model
from isospike.report.files import check_destination

MOST_SEQUENCES = 64
MOST_TOKENS = 512  # unless asked for


@command(
    "Analyse",
    examples=(
        "isospike dimension minilm",
        "isospike dimension ./my-model --text my.txt --share 0.99 --json",
    ),
    smaller="--sentences",
)
def dimension(
    model: str,
    *,
    text: Path | None = None,
    share: float = 0.95,
    sentences: int = MAX_SENTENCES,
    seed: int = 0,
    out: Path | None = None,
) -> Outcome:
    """Measure the effective dimension at every site of a model.

    It says how many directions a port would have to code. A site is the input of a matrix
    product, a row one token. A number after ≥ is limited by the number of rows, not by the model:
    give more text.

    Args:
        share: Share of the variance that the counted principal components explain.
        out (DIR): Where to write a page, JSON and a table.
    """
    if not 0 < share <= 1:
        raise RangeError(f"dimension needs share in (0, 1], got {share:g}. Try 0.95.")
    if out is not None:
        check_destination(out)
    check_sentences(sentences, 1)
    from isospike.data import passages

    source = find_model(model)
    chosen = passages(_read(text), sentences)
    text_model = _load(source)
    import torch

    from isospike.porting.dimensions import measure_dimension

    report = measure_dimension(
        text_model.model,
        text_model.batches(chosen),
        share=share,
        generator=torch.Generator().manual_seed(seed),
        name=source.name,
    )
    return Outcome.of(report, out)


@command(
    "Analyse",
    examples=(
        "isospike rank minilm",
        "isospike rank ./my-model --text my.txt --tokens 256 --out out/mine",
        "isospike rank out/minilm     # what spikes do to rank: a folder of isospike port",
    ),
    smaller="--tokens",
)
def rank(
    model: str,
    *,
    text: Path | None = None,
    tokens: int | None = None,
    sequences: int = 2,
    controls: bool = True,
    seed: int = 0,
    out: Path | None = None,
) -> Outcome:
    """Find representations that collapse and heads that are redundant.

    Prints one line for each layer and warnings in words; writes a page, JSON and CSV tables.

    Args:
        model (MODEL): A folder that transformers saved or isospike port wrote, a name on the
            Hugging Face hub, or ``minilm``.
        tokens: Tokens of a sequence. No rank exceeds it, so more than channels show more.
            [default: all that the model reads, up to 512]
        sequences: Pieces of the text to measure, 1 to 64.
        controls: Also run new random weights, tokens in random order, and fewer tokens.
        out (DIR): Where to write. [default: out/rank/<name of the model>]
    """
    if not 1 <= sequences <= MOST_SEQUENCES:
        raise RangeError(
            f"rank needs sequences from 1 to {MOST_SEQUENCES}, got {sequences}. Choose a number in "
            "that range."
        )
    if tokens is not None and tokens < 2:
        raise RangeError(f"rank needs tokens of at least 2, got {tokens}. Try 64.")
    source = find_model(model, ports=True)
    folder = out or Path("out/rank") / source.label
    check_destination(folder, source.place)
    words = _read(text)
    text_model = _load(source)
    wanted = min(MOST_TOKENS, text_model.longest) if tokens is None else tokens
    batch = text_model.pieces(words, sequences, wanted)
    from isospike.ranks.report import measure_ranks

    report = measure_ranks(text_model.model, batch, controls=controls, seed=seed, name=source.name)
    return Outcome.of(report, folder)


@command(
    "Analyse",
    examples=("isospike order sachs", "isospike order data.csv --truth edges.csv --out out/mine"),
    smaller="table",
)
def order(
    file: str,
    *,
    truth: Path | None = None,
    correction: str | None = None,
    information: str = "precision",
    prune: str = "cam",
    level: float = 0.001,
    threshold: float = 0.3,
    gamma: float = 0.05,
    noise_scale: Path | None = None,
    required: Path | None = None,
    forbidden: Path | None = None,
    tiers: Path | None = None,
    rule: str = "auto",
    columns: str | None = None,
    drop: str | None = None,
    missing: str = "refuse",
    resamples: int = 100,
    seed: int = 0,
    out: Path = Path("out/order"),
) -> Outcome:
    """Order the columns of a table, causes first, and draw the graph.

    Writes a page, JSON and CSV tables. With the true edges, the inverse covariance, sorting by
    variance, random orders and the empty graph are compared with the result.

    Args:
        file (FILE): A table of numbers, one row a line, separator and header found out; JSON
            records; with pandas an Excel or parquet file; or ``sachs``, which comes with isospike.
        truth: True edges, a cause and an effect on each line.
        correction: ``regression``: splines, from the roots (default). ``mean``: the mean
            information matrix, from the leaves (default with others). ``per-sample``,
            ``winsorised``: every row's Jacobian; with denoising only.
        information: Matrix of the other corrections: ``precision``, ``shrinkage``, ``glasso``,
            ``stein`` or ``denoising``, a network.
        prune: Edges: ``cam``, F-tests of splines; ``row``, linear weights; ``slopes``, root mean
            squared slopes.
        level (SHARE): Target false discovery rate of --prune cam.
        threshold (SLOPE): Smallest edge weight that row and slopes keep.
        gamma (SHARE): Variables within this relative tolerance of the minimum are removed in the
            same step.
        noise_scale: Scale of the noise of each column, a name and a number on each line.
        required: Edges that are known, as --truth.
        forbidden: Edges that cannot be, as --truth.
        tiers: Names of columns, a tier on each line, earlier ones first.
        rule: Where directions come from: ``auto``, what the data allow; ``equal-variance``;
            ``curvature``; ``independence``; ``partial``, arrows that follow from independences;
            ``pairwise``, for two columns.
        columns (NAMES): Columns to keep, separated by commas.
        drop (NAMES): Columns to leave out, separated by commas.
        missing: Rows with missing cells: ``refuse``, ``drop`` them, or ``impute`` medians.
        resamples: Random halves of the rows that say how often each edge comes again; 0 for none.
        out (DIR): Where to write.
    """
    check_destination(out)
    if resamples < 0:
        raise RangeError(f"order needs resamples of at least 0, got {resamples}. Try 100.")
    if correction is None:
        correction = "regression" if information == "precision" else "mean"
    options: dict[str, Any] = {
        "information": information, "correction": correction, "prune": prune, "level": level,
        "threshold": threshold, "gamma": gamma, "rule": rule,
    }  # fmt: skip
    from isospike.causal.table import read_table

    table = read_table(file, columns=_names(columns), drop=_names(drop) or (), missing=missing)
    shape = f"{len(table.rows):,} rows, {len(table.columns)} columns"
    note("read", "; ".join((f"{file}: {shape}, {table.file_format}", *table.notes)))
    graph, known = _known(
        table.columns, truth, noise_scale, required=required, forbidden=forbidden, tiers=tiers
    )
    from isospike.causal.estimator import ScoreSchurSort
    from isospike.causal.report import order_causes

    report = order_causes(
        table,
        graph,
        estimator=ScoreSchurSort(**options, **known),
        resamples=resamples,
        seed=seed,
    )
    return Outcome.of(report, out)


# ------------------------------------------------------------------------- helpers


def _read(text: Path | None) -> str:
    from isospike.data import read_text, shakespeare

    return shakespeare() if text is None else read_text(text)


def _load(source: Source) -> TextModel:
    """A model or a port, with its tokenizer."""
    from isospike.hf.load import load
    from isospike.porting.embed import load_text_port

    return load_text_port(source.place) if source.is_port else load(source)


def _names(text: str | None) -> list[str] | None:
    """Names separated by commas."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _known(
    columns: tuple[str, ...], truth: Path | None, scale: Path | None, **background: Path | None
) -> tuple[Any, dict[str, Any]]:
    """The true graph if a file has it, and options from the other files."""
    from isospike.causal.background import read_background
    from isospike.causal.table import parse_edges, parse_scales
    from isospike.data import read_text

    options: dict[str, Any] = {}
    graph = None if truth is None else parse_edges(read_text(truth), columns, str(truth))
    if any(background.values()):
        options["background"] = read_background(columns, **background)
    if scale is not None:
        options["noise_scale"] = parse_scales(read_text(scale), columns, str(scale))
    return graph, options
