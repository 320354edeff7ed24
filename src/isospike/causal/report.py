"""A causal order of a table's columns, and how far it can be trusted."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any

import numpy as np

from isospike.causal.baselines import MethodRow, compare_methods
from isospike.causal.checks import check_rows
from isospike.causal.estimator import ScoreSchurSort
from isospike.causal.guards import (
    SCALE_WORDS,
    NoiseWarning,
    ScaleWarning,
    Sortability,
    check_data,
    in_range,
)
from isospike.causal.page import dot_text, draw_graph, graphml_text
from isospike.causal.stability import check_halves, resample_order
from isospike.causal.table import DataTable
from isospike.errors import RangeError, ShapeError
from isospike.progress import update
from isospike.report.files import Content
from isospike.report.page import Note, Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Table

RULE_WORDS = {
    "equal-variance": "noises of one variance in the columns' own units",
    "curvature": "curved functions",
    "independence": "noises that are not Gaussian",
    "partial": "independences between variables",
    "pairwise": "the likelihoods of both ways",
}
PACKAGES = ("isospike", "numpy", "scipy", "scikit-learn", "torch")


@dataclass(frozen=True, kw_only=True)
class OrderReport(Report):
    """An order of a table's columns, and a graph along it.

    Attributes:
        names: Names of the columns.
        rows: Number of rows.
        order: Names of the columns, causes first.
        layers: The same in groups that were removed in one step.
        margins: How clear the choice of each column was, by its name; NaN for the last one.
        rule: Where the directions come from (:mod:`isospike.causal.rules`).
        edges: Pairs of cause and effect.
        undirected: Pairs of variables joined by an edge whose direction the data do not carry.
        pairs: First and second variable of every pair in the order, and the share of random halves
            of the rows in which they have this order; empty without resamples.
        shares: For each edge, then each undirected one, the share of halves that have it.
        resamples: Number of those halves.
        sortability: Var-, R2- and score-sortability along the estimated graph.
        methods: Comparison with the truth, simple methods included; empty without a truth.
        file_format: Description of the file that the table was read from.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> x[:, 0] += 2 * x[:, 1]
    >>> report = order_causes(x)
    >>> report.names, report.rows
    (('x0', 'x1', 'x2'), 200)
    """

    names: tuple[str, ...]
    rows: int
    order: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    margins: dict[str, float]
    rule: str
    edges: tuple[tuple[str, str], ...]
    undirected: tuple[tuple[str, str], ...]
    sortability: Sortability
    methods: tuple[MethodRow, ...] = ()
    file_format: str = ""
    pairs: tuple[tuple[str, str, float], ...] = ()
    shares: tuple[float, ...] = ()
    resamples: int = 0

    def verdict(self) -> str:
        """How good the order is, where its directions come from, and what speaks against it."""
        if self.methods:
            return f"{self._against_truth()} {self._directions()}"
        ends = f"{self.order[0]} comes first and {self.order[-1]} last"
        if not self.edges:
            ends = "No order was found"
        count = len(self.edges) + len(self.undirected)
        text = f"{ends}, with {count} edge{'' if count == 1 else 's'}. {self._directions()}"
        if any(not w.startswith(SCALE_WORDS) for w in self.warnings) or (
            self.warnings and self.rule == "equal-variance"
        ):
            return f"{text} The data seem to break an assumption, so the order may be wrong."
        if self.edges and self.sortability.var > 0.95:
            text += " Sorting the columns by variance gives the same directions."
        return f"{text} The data show no sign of a broken assumption."

    def _against_truth(self) -> str:
        ours, empty = self.methods[0], self.methods[-1]
        named = {m.name: m for m in self.methods}
        chance, by_size = named["random orders"], named["sorted by variance"]
        text = (
            f"The order reverses {ours.divergence:g} of {empty.shd:g} true edges; random "
            f"orders reverse {chance.divergence:.1f} on average. The graph differs from the "
            f"truth in {ours.shd:g} pairs of variables, the empty graph in {empty.shd:g}."
        )
        better = (ours.divergence or 0) < (by_size.divergence or 0)
        return (
            f"{text} Sorting by variance reverses {by_size.divergence:g}: the order is "
            f"{'better' if better else 'no better'}."
        )

    def _directions(self) -> str:
        known, loose = len(self.edges), len(self.undirected)
        if not known + loose:
            return "There is nothing to direct."
        if not known:
            return "The data carry no direction."
        text = f"Directions come from {RULE_WORDS[self.rule]}"
        return f"{text}; {loose} of {known + loose} edges have none." if loose else f"{text}."

    def headline(self) -> dict[str, str]:
        """Size of the table and of the graph, the least clear choice, and sortability."""
        known = {n: m for n, m in self.margins.items() if math.isfinite(m)}
        least = min(known, key=lambda n: known[n], default=None)
        margin = "–\nwhat is known left no choice"
        if least is not None:
            margin = f"{known[least]:.3f}\nfor {least}; near 0 the choice is arbitrary"
        share = self.sortability
        read = f"\n{self.file_format}" if self.file_format else ""
        return {
            "Variables": f"{len(self.names)}\nfrom {self.rows:,} rows{read}",
            "Layers": f"{len(self.layers)}\ngroups removed in one step",
            "Edges": f"{len(self.edges) + len(self.undirected)}\n{len(self.undirected)} without "
            "a direction",
            "Smallest margin": margin,
            "Sortability": f"{share.var:.2f}\nby variance; by R² {share.r2:.2f}, by score "
            f"{share.score:.2f}; 0.5 is chance",
        }

    def tables(self) -> dict[str, Table]:
        """The order, the edges, and the comparison with the truth if there is one."""
        parents = {n: [p for p, c in self.edges if c == n] for n in self.names}
        rows = tuple(
            (
                name, number, self.margins[name] if math.isfinite(self.margins[name]) else None,
                ", ".join(parents[name]) or None,
            )
            for number, layer in enumerate(self.layers, 1)
            for name in layer
        )  # fmt: skip
        tables = {
            "order": Table(
                "Order",
                ("variable", "layer", "margin", "parents"),
                rows,
                "Causes first. Variables of one layer were within the tolerance of one another. "
                "The margin is the relative distance to the next candidate: near 0 the choice was "
                "arbitrary.",
                formats=("", "", ".3f", ""),
            ),
            "edges": self._edge_table(),
        }
        if self.pairs:
            tables["pairs"] = Table(
                "Pairs",
                ("first", "second", "share"),
                self.pairs,
                f"Share of {self.resamples} random halves of the rows in which the two have this "
                "order; 0.5 is a toss-up, as is a tie.",
                formats=("", "", ".2f"),
            )
        if self.methods:
            tables["methods"] = Table.of(
                "Against the truth",
                self.methods,
                {
                    "name": "method", "divergence": "divergence", "shd": "SHD", "sid": "SID",
                    "tpr": ("TPR", ".2f"), "fdr": ("FDR", ".2f"), "edges": "edges",
                },
                meaning="Divergence: true edges that the order reverses. SHD: pairs of variables "
                "whose edge differs. SID: pairs whose effect would be estimated wrongly. TPR: "
                "share of true edges in the graph. FDR: share of the graph's edges that are not "
                "true. A method that is no better than the rows below it has found nothing.",
            )  # fmt: skip
        return tables

    def _edge_table(self) -> Table:
        shares = self.shares or (None,) * (len(self.edges) + len(self.undirected))
        marks = [(a, "->", b) for a, b in self.edges] + [(a, "--", b) for a, b in self.undirected]
        return Table(
            "Edges",
            ("cause", "edge", "effect", "share"),
            tuple((*mark, share) for mark, share in zip(marks, shares, strict=True)),
            "An edge -> has a direction, an edge -- has none that the data carry. The share is "
            "that of random halves of the rows that have the edge, with its direction if it has "
            "one.",
            formats=("", "", "", ".2f"),
        )

    def brief(self) -> Sequence[Table]:
        """The order, and the comparison with the truth."""
        return [t for name, t in self.tables().items() if name not in ("edges", "pairs")]

    def sections(self) -> Sequence[Section]:
        """The graph, the order, and the comparison with the truth."""
        graph = Section(
            "Graph",
            f"Causes are at the left. {len(self.edges) + len(self.undirected)} edges passed the "
            "test; those without a tip have no direction that the data carry."
            + (" A wide edge comes again in most random halves of the rows." * bool(self.shares)),
            (
                draw_graph(self.order, self.edges, self.undirected, self.shares),
                Note(
                    "An order rests on assumptions that data alone cannot prove: no hidden causes, "
                    "additive noise, and for the rule of equal variances noises of one scale in "
                    "the units of the columns. A sortability near 1 means that sorting by that "
                    "quantity alone gives this order."
                ),
            ),
        )
        return [graph, *(Section(t.title, t.meaning, (t,)) for t in self.brief())]

    def files(self) -> dict[str, Content]:
        """The page, JSON, a CSV file for each table, and the graph as DOT and GraphML."""
        graph = (self.order, self.edges, self.undirected)
        return {
            **super().files(),
            "graph.dot": dot_text(*graph),
            "graph.graphml": graphml_text(*graph),
        }


def order_causes(
    table: Any,
    truth: Any = None,
    *,
    estimator: ScoreSchurSort | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> OrderReport:
    """Order the columns of a table, causes first, and draw a graph along the order.

    With a true graph the report compares the fit with simple methods: the elimination of the
    inverse covariance, sorting by variance, random orders (means of ten), all with the same
    pruning, and the empty graph. A fit that is no better than these has found nothing.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> x[:, 0] += 2 * x[:, 1]
    >>> report = order_causes(x)
    >>> report.rule, report.edges
    ('equal-variance', (('x1', 'x0'),))

    Args:
        table: An array, a data frame, or the result of :func:`isospike.causal.table.read_table`;
            columns give the names.
        truth: The true graph ``[parent, child]``, acyclic; by default that of the table, if it has
            one.
        estimator: The method with its options; ``ScoreSchurSort()`` by default.
        resamples: Number of random halves of the rows that say how often each edge and pair comes
            again (:func:`isospike.causal.stability.resample_order`).
        seed: Seed of the random orders and halves.

    Returns:
        The report.

    Raises:
        ShapeError: The data are not a table, or ``truth`` has another size.
        InputError: The data, or the options of the estimator, cannot be used.
        RangeError: A number is out of range.
        UnsupportedError: The options of the estimator do not fit together.
        MissingExtraError: scikit-learn or SciPy is needed and not installed.
    """
    columns = getattr(table, "columns", None)
    names = None if columns is None else [str(c) for c in columns]
    x = in_range(check_data(table, names, "order_causes"))
    fit = estimator or ScoreSchurSort()
    fit.check()
    if resamples < 0:
        raise RangeError(f"order_causes needs resamples >= 0, got {resamples}. Use 100, or 0.")
    if resamples:
        check_halves("order_causes", *x.shape)
    graph = _true_graph(table, truth, x.shape[1])
    update("order", 0, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(table)
    update("order", 1, 1)
    ours = [w for w in caught if issubclass(w.category, ScaleWarning | NoiseWarning)]
    known = fit.names_
    rank = np.argsort(fit.order_)
    edges = sorted(np.argwhere(fit.directed_).tolist(), key=lambda e: (rank[e[0]], rank[e[1]]))
    loose = np.argwhere(fit.adjacency_ & ~fit.directed_).tolist()
    return OrderReport(
        title=f"Causal order of {len(known)} variables",
        provenance=Provenance.of(_parameters(fit), seed, PACKAGES),
        warnings=(
            *(str(w.message) for w in ours),
            *check_rows(check_data(table, known, "order_causes"), known),
        ),
        names=tuple(known),
        rows=len(x),
        order=tuple(known[i] for i in fit.order_),
        layers=tuple(tuple(known[i] for i in layer) for layer in fit.layers_),
        margins={name: float(m) for name, m in zip(known, fit.margins_, strict=True)},
        rule=fit.rule_,
        edges=tuple((known[i], known[j]) for i, j in edges),
        undirected=tuple((known[i], known[j]) for i, j in loose),
        sortability=fit.sortability_,
        methods=() if graph is None else compare_methods(x, graph, fit, seed),
        file_format=_origin(table),
        **_stability(fit, table, (edges, loose), resamples, seed),
    )


def _stability(
    fit: ScoreSchurSort, table: Any, edges: tuple[Any, Any], resamples: int, seed: int
) -> dict[str, Any]:
    """The fields of a report that random halves of the rows fill."""
    if not resamples:
        return {}
    found = resample_order(fit, table, resamples, seed)
    shares = [found.edges[i, j] for i, j in edges[0]] + [found.joined[i, j] for i, j in edges[1]]
    order, names = fit.order_.tolist(), fit.names_
    pairs = [(i, j) for k, i in enumerate(order) for j in order[k + 1 :]]
    return {
        "pairs": tuple((names[i], names[j], float(found.before[i, j])) for i, j in pairs),
        "shares": tuple(map(float, shares)),
        "resamples": found.resamples,
    }


def _origin(table: Any) -> str:
    """What is known of the file that a table was read from."""
    if not isinstance(table, DataTable):
        return ""
    return "; ".join((table.file_format, *table.notes))


def _true_graph(table: Any, truth: Any, variables: int) -> np.ndarray | None:
    """The truth that was given, or else that of the table."""
    if truth is None and isinstance(table, DataTable):
        truth = table.truth
    if truth is None:
        return None
    graph = np.asarray(truth, bool)
    if graph.shape != (variables,) * 2:
        raise ShapeError(
            f"order_causes needs a truth of {variables} variables, got shape {graph.shape}. Give "
            "it a row and a column for each column of the table."
        )
    return graph


def _parameters(fit: ScoreSchurSort) -> dict[str, Any]:
    """The estimator's arguments as JSON can hold them."""
    parameters = {name: getattr(fit, name) for name in signature(ScoreSchurSort).parameters}
    if callable(fit.information):
        name = getattr(fit.information, "__name__", type(fit.information).__name__)
        parameters["information"] = name
    if fit.noise_scale is not None:
        parameters["noise_scale"] = [float(s) for s in fit.noise_scale]
    if fit.background is not None:
        parameters["background"] = asdict(fit.background)
    return parameters
