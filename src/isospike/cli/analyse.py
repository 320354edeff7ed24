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

    The effective dimension is the number of directions in which the values vary, which a port has
    to encode. A site is the input of a matrix product; each token gives one row of data. A number
    after ≥ is limited by the number of rows, not by the model: give more text.

    Args:
        share: Fraction of the variance that the counted principal components explain, above 0 and
            at most 1.
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

    Prints one line for each layer, and warnings; writes a page, JSON and CSV tables.

    Args:
        model (MODEL): A folder that transformers saved or isospike port wrote, a name on the
            Hugging Face hub, or ``minilm``.
        tokens: Tokens of each sequence. No rank can exceed their number, so give more than the
            model has channels if it reads so many. [default: all that the model reads, up to 512]
        sequences: Number of sequences to measure, 1 to 64.
        controls: Also measure, for comparison, the model with new random weights, with the tokens
            in random order, and with fewer tokens.
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
    """Order the columns of a table, causes first, and draw the causal graph.

    Writes a page, JSON and CSV tables. With --truth, the result is compared with those of the
    inverse covariance, of sorting by variance, of random orders and of the empty graph.

    Args:
        file (FILE): A table of numbers, one row a line, whose separator and header are detected;
            JSON records; with pandas an Excel or parquet file; or ``sachs``, which comes with
            isospike.
        truth: True edges, if they are known: a cause and an effect on each line.
        correction: How columns are ordered. ``regression``: causes first, by spline regressions
            (default). ``mean``: effects first, by the mean information matrix (default with another
            --information than precision). ``per-sample``, ``winsorised``: effects first, by a
            matrix for every row; with --information denoising only.
        information: How the information matrix of --correction mean is estimated: ``precision``,
            the inverse covariance; ``shrinkage``; ``glasso``; ``stein``; or ``denoising``, by a
            neural network.
        prune: How edges are chosen: ``cam``, by F-tests of splines; ``row``, by linear weights;
            ``slopes``, by root-mean-square slopes.
        level (RATE): Target false discovery rate of --prune cam, above 0 and below 1.
        threshold (SLOPE): Smallest edge weight that --prune row and slopes keep.
        gamma (SHARE): Columns whose criterion is within this fraction of the smallest are ordered
            in the same step.
        noise_scale: Scale of each column's noise, up to a common factor: a column and a number on
            each line. [default: all equal]
        required: Edges that are known to exist, written as in --truth.
        forbidden: Edges that are known not to exist, written as in --truth.
        tiers: Groups of columns whose order is known: the columns of one group on each line, causes
            before effects.
        rule: How directions are found: ``auto``, chosen by the data; ``equal-variance`` of the
            noises; ``curvature`` of the functions; ``independence`` of noises that are not
            Gaussian; ``partial``, only what follows from independences; ``pairwise``, for two
            columns.
        columns (NAMES): Columns to keep, separated by commas.
        drop (NAMES): Columns to leave out, separated by commas.
        missing: What to do about missing cells: ``refuse`` the table, ``drop`` the rows that have
            them, or ``impute`` the column's median.
        resamples: How many random halves of the rows are ordered too, to say how often each edge is
            found again; 0 for none.
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
    from isospike.causal.estimator import ScoreSchurSort
    from isospike.causal.table import read_table

    ScoreSchurSort(**options).check()

    table = read_table(file, columns=_names(columns), drop=_names(drop) or (), missing=missing)
    shape = f"{len(table.rows):,} rows, {len(table.columns)} columns"
    note("read", "; ".join((f"{file}: {shape}, {table.file_format}", *table.notes)))
    graph, known = _known(
        table.columns, truth, noise_scale, required=required, forbidden=forbidden, tiers=tiers
    )
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
