"""``isospike order``: a causal order of a table's columns."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.app import app
from isospike.cli.console import DebugOption, Progress, errors_in_one_line, say


class ScoreName(StrEnum):
    """Where the information matrix comes from."""

    PRECISION = "precision"
    SHRINKAGE = "shrinkage"
    GLASSO = "glasso"
    STEIN = "stein"
    DENOISING = "denoising"


class CorrectionName(StrEnum):
    """What is eliminated, and in what order."""

    REGRESSION = "regression"
    MEAN = "mean"
    PER_SAMPLE = "per-sample"
    WINSORISED = "winsorised"


class PruneName(StrEnum):
    """Which of the earlier variables are parents."""

    CAM = "cam"
    ROW = "row"
    SLOPES = "slopes"


def _file(text: str) -> Any:
    return typer.Option(metavar="FILE", help=text, show_default=False)


@app.command(
    "order",
    epilog="[bold]Examples[/]\n  isospike order sachs\n"
    "  isospike order data.csv --truth edges.csv --out out/mine",
)
def order_command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A table of numbers, one row a line, separator and header found out; or "
            "[b]sachs[/], which comes with isospike.",
            show_default=False,
        ),
    ],
    truth: Annotated[
        Path | None, _file("True edges, a cause and an effect on each line.")
    ] = None,  # fmt: skip
    correction: Annotated[
        CorrectionName | None,
        typer.Option(
            metavar="NAME",
            help="[b]regression[/]: splines, from the roots (default). [b]mean[/]: the mean "
            "information matrix, from the leaves (default with another --score). "
            "[b]per-sample[/], [b]winsorised[/]: every row's Jacobian; with denoising only.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        ScoreName,
        typer.Option(
            metavar="NAME",
            help="Information matrix of the other corrections: [b]precision[/], [b]shrinkage[/], "
            "[b]glasso[/], [b]stein[/] or [b]denoising[/], a network.",
        ),
    ] = ScoreName.PRECISION,
    prune: Annotated[
        PruneName,
        typer.Option(
            metavar="NAME",
            help="Edges: [b]cam[/], F-tests of splines; [b]row[/], linear weights; [b]slopes[/], "
            "root mean squared slopes.",
        ),
    ] = PruneName.CAM,
    level: Annotated[
        float,
        typer.Option(metavar="SHARE", help="False edges that cam allows for, of those found."),
    ] = 0.001,
    threshold: Annotated[
        float, typer.Option(metavar="SLOPE", help="Of row and slopes, child over parent.")
    ] = 0.3,
    gamma: Annotated[
        float, typer.Option(metavar="SHARE", help="Variables this near the least go at once.")
    ] = 0.05,
    noise_scale: Annotated[
        Path | None, _file("Each noise's scale where they differ, a column and a number a line.")
    ] = None,
    required: Annotated[Path | None, _file("Edges that are known, as --truth.")] = None,
    forbidden: Annotated[Path | None, _file("Edges that cannot be, as --truth.")] = None,
    tiers: Annotated[
        Path | None, _file("Names of columns, a tier on each line, earlier ones first.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")] = Path("out/order"),
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Order the columns of a table, causes first, and draw the graph along the order.

    Writes report.html, report.json and edges.csv. With the true edges, the inverse covariance,
    sorting by variance, random orders and the empty graph stand beside what was found.
    """
    if correction is None:
        plain = score == ScoreName.PRECISION
        correction = CorrectionName.REGRESSION if plain else CorrectionName.MEAN
    options = {
        "score": str(score), "correction": str(correction), "prune": str(prune), "level": level,
        "threshold": threshold, "gamma": gamma,
    }  # fmt: skip
    files = {"required": required, "forbidden": forbidden, "tiers": tiers,
             "noise_scale": noise_scale}  # fmt: skip
    with errors_in_one_line(debug):
        _order(file, truth, options, files, out, as_json)


def _order(
    file: str, truth: Path | None, options: dict[str, Any], known_files: dict[str, Path | None],
    out: Path, as_json: bool,
) -> None:  # fmt: skip
    import csv
    import io

    from isospike.causal.background import read_background
    from isospike.causal.estimator import ScoreSchurSort
    from isospike.causal.report import causal_report
    from isospike.causal.table import parse_edges, parse_scales, read_table
    from isospike.data.datasets import read_text
    from isospike.report.files import write_file

    table = read_table(file)
    columns = table.columns
    say("read", f"{file}: {len(table.rows):,} rows, {len(columns)} columns, {table.file_format}")
    graph = table.truth
    if truth is not None:
        graph = parse_edges(read_text(truth), columns, str(truth))
    scale = known_files.pop("noise_scale")
    if any(known_files.values()):
        options["background"] = read_background(columns, **known_files)
    if scale is not None:
        options["noise_scale"] = parse_scales(read_text(scale), columns, str(scale))
    model = ScoreSchurSort(**options)
    with Progress(quiet=as_json) as progress:
        progress("order", 0, 1)
        report = causal_report(table, graph, model, form=table.file_format)
        progress("order", 1, 1)
    for warning in report.warnings:
        say("warning", warning)
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("cause", "effect"), *report.edges])
    files = {"report.html": report.html(), "report.json": report.to_json(),
             "edges.csv": lines.getvalue()}  # fmt: skip
    for name, content in files.items():
        write_file(out / name, content.encode())
    if as_json:
        print(report.to_json())
        return
    _show(report)
    say("saved", str(out / "report.html"))


def _show(report: Any) -> None:
    if not sys.stdout.isatty():
        print("order  " + " ".join(report.order))
        for parent, child in report.edges:
            print(f"edge  {parent} {child}")
        for m in report.methods:
            turned = "-" if m.divergence is None else f"{m.divergence:g}"
            print(f"{m.name}  divergence {turned}  SHD {m.shd:g}  TPR {m.tpr:.2f}  FDR {m.fdr:.2f}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, title="Causes first", title_justify="left")
    for heading in ("layer", "variable", "margin", "parents"):
        found.add_column(heading)
    for number, layer in enumerate(report.layers, 1):
        for name in layer:
            parents = ", ".join(p for p, c in report.edges if c == name)
            found.add_row(str(number), Text(name), f"{report.margins[name]:.3f}", Text(parents))
    Console().print(found)
    if not report.methods:
        return
    against = Table(box=box.SIMPLE_HEAD, title="Against the truth", title_justify="left")
    for heading in ("way", "divergence", "SHD", "TPR", "FDR", "edges"):
        against.add_column(heading, justify="left" if heading == "way" else "right")
    for m in report.methods:
        turned = "–" if m.divergence is None else f"{m.divergence:g}"
        against.add_row(
            m.name, turned, f"{m.shd:g}", f"{m.tpr:.2f}", f"{m.fdr:.2f}", f"{m.edges:g}"
        )
    Console().print(against)
