"""What a causal order found and how far it can be trusted, as JSON and one HTML page."""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from isospike.causal.edges import prune
from isospike.causal.estimator import ScoreSchurSort
from isospike.causal.guards import NoiseWarning, ScaleWarning, check_data
from isospike.causal.metrics import compare_to_truth
from isospike.causal.schur import schur_sort
from isospike.causal.scores import precision
from isospike.errors import InputError, ShapeError
from isospike.report.figures import INK, MUTED, ON
from isospike.report.old_page import page

_RANDOM_ORDERS = 10


@dataclass(frozen=True)
class MethodRow:
    """One way to an order and a graph against the truth; means over the draws where it is random.

    Attributes:
        name: Of the way.
        divergence, shd, sid, tpr, fdr, edges: As in :class:`isospike.causal.metrics.Comparison`.
    """

    name: str
    divergence: float | None
    shd: float
    sid: float | None
    tpr: float
    fdr: float
    edges: float


@dataclass(frozen=True)
class CausalReport:
    """An order of a table's columns.

    Attributes:
        names: Of the columns.
        rows: How many there were.
        settings: Arguments of the estimator that were not the defaults, as text.
        order: Names, causes first.
        layers: The same in groups that could not be told apart.
        margins: By name, how clear each choice was.
        edges: ``(parent, child)``.
        sortability: Var-, R2- and score-sortability along the graph found.
        warnings: What speaks against trusting the order.
        methods: Against the truth, with baselines; empty without one.
        form: How the file was read.
        seed: Of the random orders.
    """

    names: tuple[str, ...]
    rows: int
    settings: str
    order: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    margins: dict[str, float]
    edges: tuple[tuple[str, str], ...]
    sortability: dict[str, float]
    warnings: tuple[str, ...]
    methods: tuple[MethodRow, ...] = ()
    form: str = ""
    seed: int = 0

    def to_json(self) -> str:
        """All of it; what is not finite becomes null."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=1, allow_nan=False)

    def html(self) -> str:
        """One self-contained page that makes no request."""
        return _page(self)


def causal_report(
    X: Any,
    truth: Any = None,
    estimator: ScoreSchurSort | None = None,
    *,
    form: str = "",
    seed: int = 0,
) -> CausalReport:
    """Fit, and put what simple ways find beside it.

    With a true graph the report holds every measure for the fit, for the elimination of the
    inverse covariance, for sorting by variance, for random orders (means of ten), all with the same
    pruning, and for the empty graph. A method that does not beat those has found nothing.

    Args:
        X: The table; a data frame's columns give the names.
        truth: The true graph ``[parent, child]``, acyclic.
        estimator: :class:`isospike.ScoreSchurSort` by default.
        form: How the table was read, to be told on the page.
        seed: Of the random orders.

    Raises:
        ShapeError: ``truth`` of another size.
        RangeError: As :meth:`isospike.ScoreSchurSort.fit`.
    """
    model = estimator or ScoreSchurSort()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(X)
    kept = [w for w in said if issubclass(w.category, ScaleWarning | NoiseWarning)]
    x = check_data(X, model.names_)
    named = model.names_
    methods: tuple[MethodRow, ...] = ()
    if truth is not None:
        graph = np.asarray(truth, bool)
        if graph.shape != (len(named),) * 2:
            raise ShapeError(
                f"causal_report needs a truth of {len(named)} variables, got shape {graph.shape}."
            )
        methods = _compare_all(x, graph, model, seed)
    return CausalReport(
        names=tuple(named),
        rows=len(x),
        settings=repr(model),
        order=tuple(named[i] for i in model.order_),
        layers=tuple(tuple(named[i] for i in layer) for layer in model.layers_),
        margins={name: float(m) for name, m in zip(named, model.margins_, strict=True)},
        edges=tuple((named[i], named[j]) for i, j in np.argwhere(model.adjacency_)),
        sortability=model.sortability_._asdict(),
        warnings=tuple(str(w.message) for w in kept),
        methods=methods,
        form=form,
        seed=seed,
    )


def _compare_all(
    x: np.ndarray, truth: np.ndarray, model: ScoreSchurSort, seed: int
) -> tuple[MethodRow, ...]:
    d = x.shape[1]
    small = d <= 60
    rows = [_row("this fit", [compare_to_truth(model.order_, model.adjacency_, truth, small)])]
    draw = np.random.default_rng(seed)
    ways: list[tuple[str, list[Any]]] = []
    try:
        ways.append(("inverse covariance", [schur_sort(precision(x)).order]))
    except InputError:
        pass  # too few rows
    ways.append(("sorted by variance", [x.var(0).argsort(kind="stable")]))
    ways.append(("random orders", [draw.permutation(d) for _ in range(_RANDOM_ORDERS)]))
    for name, orders in ways:
        found = [compare_to_truth(o, prune(x, o, model.level)[0], truth, small) for o in orders]
        rows.append(_row(name, found))
    empty = compare_to_truth(np.arange(d), np.zeros((d, d), bool), truth, small)
    rows.append(dataclasses.replace(_row("empty graph", [empty]), divergence=None))
    return tuple(rows)


def _row(name: str, found: list[Any]) -> MethodRow:
    def mean(field: str) -> float:
        return float(np.mean([getattr(f, field) for f in found]))

    sid = None if found[0].sid is None else mean("sid")
    return MethodRow(
        name, mean("divergence"), mean("shd"), sid, mean("tpr"), mean("fdr"), mean("edges")
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _page(report: CausalReport) -> str:
    said = "".join(f'<p class="warn">{escape(w)}</p>' for w in report.warnings)
    share = ", ".join(
        f"{label} {report.sortability[key]:.2f}"
        for key, label in (("var", "variance"), ("r2", "R²"), ("score", "score"))
    )
    read = f" The file was read as {escape(report.form)}." if report.form else ""
    margin = {n: f"{m:.3f}" if np.isfinite(m) else "last" for n, m in report.margins.items()}
    parents = {n: [p for p, c in report.edges if c == n] for n in report.names}
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{number}</td><td>{margin[name]}</td>"
        f"<td>{escape(', '.join(parents[name])) or '–'}</td></tr>"
        for number, layer in enumerate(report.layers, 1)
        for name in layer
    )
    sections = [
        f'<section><h2>Graph</h2><p class="meaning">Causes at the left. Arrows are the '
        f"{len(report.edges)} edges that passed.</p>{_picture(report)}</section>",
        '<section><h2>Order</h2><p class="meaning">Variables of one layer lay within the tolerance '
        "of one another. The margin says by how much the next candidate was worse, relative to the "
        "choice: near 0, the choice was a toss-up.</p>"
        '<div class="scroll"><table><thead><tr><th>variable</th><th>layer</th><th>margin</th>'
        f"<th>parents</th></tr></thead><tbody>{lines}</tbody></table></div></section>",
    ]
    if report.methods:
        sections.append(_methods(report))
    header = (
        f"<header><h1>Causal order of {len(report.names)} variables</h1>"
        f"<p>From {report.rows:,} rows.{read} An order rests on assumptions that data alone cannot "
        "prove: no hidden causes, additive noise, and noise of one scale in the units of the "
        f'columns.</p>{said}<p class="fine">Sortability along the graph found: {share}. '
        "Near 1, sorting by that quantity alone gives this order; .5 says nothing.</p></header>"
    )
    footer = f"<footer>{escape(report.settings)}</footer>"
    return page("Causal order", header, sections, footer, [])


def _methods(report: CausalReport) -> str:
    def cell(value: float | None, digits: int = 1) -> str:
        if value is None or not np.isfinite(value):
            return "<td>–</td>"
        text = f"{value:.{digits}f}"
        return f"<td>{text.rstrip('0').rstrip('.') if '.' in text else text}</td>"

    body = "".join(
        f"<tr><td>{escape(m.name)}</td>{cell(m.divergence)}{cell(m.shd)}{cell(m.sid)}"
        f"{cell(m.tpr, 2)}{cell(m.fdr, 2)}{cell(m.edges)}</tr>"
        for m in report.methods
    )
    return (
        '<section><h2>Against the truth</h2><p class="meaning">Divergence: true edges that the '
        "order turns round. SHD: pairs whose edge differs. SID: pairs whose effect would come out "
        "wrong. TPR: true edges found. FDR: found edges that are not true. A method that is no "
        "better than the lines below it has found nothing.</p>"
        '<div class="scroll"><table><thead><tr><th>way</th><th>divergence</th><th>SHD</th>'
        "<th>SID</th><th>TPR</th><th>FDR</th><th>edges</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _picture(report: CausalReport) -> str:
    """The graph as SVG: a variable's column is the longest path to it."""
    if len(report.names) > 60:
        return '<p class="fine">Not drawn: more than 60 variables. The edges are in edges.csv.</p>'
    depth: dict[str, int] = {}
    for name in report.order:
        depth[name] = max((depth[p] + 1 for p, c in report.edges if c == name), default=0)
    columns = [[n for n in report.order if depth[n] == k] for k in range(max(depth.values()) + 1)]
    wide, high = 150, 46
    tallest = max(map(len, columns))
    place = {
        name: (70 + wide * k, 30 + high * (i + (tallest - len(column)) / 2))
        for k, column in enumerate(columns)
        for i, name in enumerate(column)
    }
    arrows = []
    for parent, child in report.edges:
        (x0, y0), (x1, y1) = place[parent], place[child]
        bend = 0.0 if depth[child] - depth[parent] == 1 else 46.0
        arrows.append(
            f'<path d="M{x0 + 52},{y0:.0f} Q{(x0 + x1) / 2:.0f},{(y0 + y1) / 2 - bend:.0f} '
            f'{x1 - 56},{y1:.0f}" fill="none" stroke="{MUTED}" marker-end="url(#tip)"/>'
        )
    boxes = [
        f'<rect x="{x - 52}" y="{y - 14:.0f}" width="104" height="28" rx="6" fill="white" '
        f'stroke="{ON}"/><text x="{x}" y="{y + 5:.0f}" text-anchor="middle" fill="{INK}" '
        f'font-size="13">{escape(name if len(name) <= 13 else name[:12] + "…")}</text>'
        for name, (x, y) in place.items()
    ]
    width, height = 140 + wide * (len(columns) - 1), 60 + high * (tallest - 1)
    return (
        f'<div class="scroll"><svg width="{width}" height="{height}" role="img" '
        f'aria-label="Graph of {len(report.names)} variables and {len(report.edges)} edges">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{MUTED}"/></marker>'
        "</defs>"
        f"{''.join(arrows)}{''.join(boxes)}</svg></div>"
    )
