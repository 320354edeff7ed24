"""Sections of the page of a rank report."""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from isospike.ranks.controls import Control, DepthRow
from isospike.ranks.measure import ForwardMeasurements, SiteRow
from isospike.ranks.numerical import NumericalRank, format_range
from isospike.ranks.weights import WeightRow
from isospike.report.figures import INK, MUTED, OFF, ON, Axis, Figure, Series, heatmap, line
from isospike.report.numbers import extent, number, percent
from isospike.report.page import Details, Grid, Section, legend
from isospike.report.table import Table

PURPLE, GOLD = "#7b5ea7", "#c99a2e"
CONTROL_COLOURS = (OFF, PURPLE, GOLD, "#5b8c5a", "#b5838d")

Value = Callable[[SiteRow], Any]


def sections(
    measured: ForwardMeasurements, depth: Sequence[DepthRow], weights: Sequence[WeightRow],
    controls: Sequence[Control], name: str,
) -> list[Section]:  # fmt: skip
    """The sections of the page, without those that have nothing to show.

    Args:
        measured: The measurements of the model.
        depth: The same layer by layer.
        weights: The spectra of the weights.
        controls: The baselines.
        name: Name of the model.

    Returns:
        The sections.
    """
    parts = [_likeness(measured), _ranks(measured)]
    if measured.heads:
        parts.append(_attention(measured))
    if controls:
        parts.append(_controls(depth, controls, name))
    if measured.projections:
        parts.append(_heads(measured))
    if measured.norms:
        parts.append(_norms(measured))
    parts.append(_layers(measured))
    if weights:
        parts.append(_weights(weights))
    return parts


def _likeness(measured: ForwardMeasurements) -> Section:
    stream = _Stream(measured)
    series = [
        stream.series("cosine", ON, lambda s: s.collapse.cosine),
        stream.without_first("cosine, without the first token", ON, "cosine"),
        stream.series("Dong's residual", OFF, lambda s: s.collapse.residual),
        stream.without_first("residual, without the first token", OFF, "residual"),
        stream.series("mu", PURPLE, lambda s: s.collapse.mu),
    ]
    return Section(
        "Are the tokens alike?",
        "Medians over sequences, layer by layer. Cosine: mean over pairs of tokens; 1 if all point "
        "in the same direction. Residual: the distance to the mean token in the composite norm; "
        "mu: the same in the Frobenius norm. Both are 0 if all tokens are equal.",
        (
            stream.figure(
                "plot-alike",
                "Likeness of tokens by layer",
                series,
                Axis("likeness, distance", from_zero=True),
            ),
        ),
    )


def _ranks(measured: ForwardMeasurements) -> Section:
    stream = _Stream(measured)
    series = [
        stream.series("numerical rank", INK, lambda s: _plain(s.rank)),
        stream.series("affine rank", MUTED, lambda s: _plain(s.affine), "dot"),
        stream.series("entropic rank", ON, lambda s: s.collapse.entropic),
        stream.without_first("entropic, without the first token", ON, "entropic"),
        stream.series("participation ratio", GOLD, lambda s: s.collapse.participation),
        stream.series("stable rank", OFF, lambda s: s.collapse.stable),
        stream.without_first("stable, without the first token", OFF, "stable"),
    ]
    vague = sum(s.rank is not None and not s.rank.determined for s in measured.sites)
    meaning = (
        "Numerical rank: number of singular values above the rounding error of the type in which "
        "the activations were computed. The other measures are smooth functions of the same "
        "singular values, not ranks. They are not centred, so an offset common to all tokens makes "
        "them small."
    )
    if vague:
        meaning += f" {vague} of {len(measured.sites)} ranks have no clear gap."
    plot = stream.figure(
        "plot-ranks", "Ranks by layer", series, Axis("directions", log=True)
    )  # fmt: skip
    return Section("How many directions?", meaning, (plot,))


def _attention(measured: ForwardMeasurements) -> Section:
    def heat(name: str, title: str, field: str) -> Figure:
        rows: list[list[float | None]] = []
        for layer in dict.fromkeys(h.layer for h in measured.heads):
            mine = [h for h in measured.heads if h.layer == layer]
            heads = sorted({h.head for h in mine})
            values = ([getattr(h, field) for h in mine if h.head == head] for head in heads)
            rows.append([statistics.mean(v) for v in values])
        most = max(map(len, rows))
        rows = [row + [None] * (most - len(row)) for row in rows]
        return _heatmap(name, title, rows, (0.0, 1.0))

    return Section(
        "Attention maps",
        "Each cell is a head, averaged over sequences. Left: second singular value over the first; "
        "near 0 every token gets the same mixture (width collapse). Right: entropy of the rows "
        "over its maximum; near 0 every token attends to one other (entropy collapse), near 1 to "
        "all equally.",
        (
            Grid(
                (
                    heat("plot-ratio", "s2/s1", "ratio"),
                    heat("plot-entropy", "row entropy / its maximum", "entropy"),
                )
            ),
        ),
    )


def _controls(depth: Sequence[DepthRow], controls: Sequence[Control], name: str) -> Section:
    runs = [(name, depth, INK)]
    runs += [
        (c.name if c.name.startswith("first") else f"{c.name} ({c.tokens})", c.rows, colour)
        for c, colour in zip(controls, cycle(CONTROL_COLOURS), strict=False)
    ]
    plots = []
    for field, label in (
        ("cosine", "cosine of tokens"), ("entropic", "entropic rank"), ("ratio", "mean s2/s1"),
        ("entropy", "mean entropy"),
    ):  # fmt: skip
        series = [
            Series(run, range(1, len(rows) + 1), _finite(getattr(r, field) for r in rows), colour)
            for run, rows, colour in runs
        ]
        plots.append(
            line(
                f"plot-control-{field}",
                f"{label}, with controls",
                series,
                _depth_axis(len(depth)),
                Axis(label, from_zero=True),
                height=320,
                legend=False,
            )
        )
    return Section(
        "Beside controls",
        "The same model before training, on its tokens in random order, and on fewer tokens (less "
        "than, equal to and more than the width, if the sequences are long enough). An effect that "
        "a control shows too does not come from training or from the meaning of the text.",
        (legend({run: colour for run, _, colour in runs}), Grid(tuple(plots))),
    )


def _heads(measured: ForwardMeasurements) -> Section:
    rows: list[tuple[Any, ...]] = []
    gains: list[list[float | None]] = []
    for p in measured.projections:
        r = p.result
        mine = [row for row in measured.layers if row.layer == p.layer]
        angles = [a for i, row in enumerate(r.angles) for j, a in enumerate(row) if i < j]
        counts = {v: r.verdicts.count(v) for v in dict.fromkeys(r.verdicts)}
        rows.append((
            p.layer,
            f"{r.rank} of {r.heads * r.head_width}",
            number(r.condition),
            f"{r.nullity:,}",
            f"{r.published_nullity:,}",
            ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
            number(max(r.noise_gains)),
            f"{min(angles):.1f}°" if angles else "–",
            f"{max(row.recovered for row in mine):.1e}",
            f"{max(row.summed for row in mine):.1e}",
        ))  # fmt: skip
        gains.append([math.log10(g) if 0 < g < math.inf else None for g in r.noise_gains])
    head = ("layer", "rank W_O", "condition", "lost per token", "published", "heads", "noise gain",
            "angle", "recovered to", "sum to")  # fmt: skip
    top = max((g for row in gains for g in row if g is not None), default=0.0)
    most = max(map(len, gains))
    gains = [row + [None] * (most - len(row)) for row in gains]
    return Section(
        "Which heads can be identified?",
        "The heads leave attention as one sum. Lost: dimensions per token that cannot be recovered "
        "from the sum and W_O, H d_k − rank W_O; published: (H − 1) d_k. Noise gain: factor by "
        "which recovery amplifies an error, 1 / sin of the smallest angle between the output "
        "directions of a head and those of all others. Angle: the smallest one between two heads. "
        "Recovered to: largest error of the heads' outputs computed from the sum, relative to "
        "their largest value. Sum to: largest difference between the layer's output and the sum of "
        "the heads' contributions, relative to its largest value.",
        (
            Table("Heads", head, tuple(rows)),
            _heatmap("plot-gain", "log10 of the noise gain", gains, (0.0, max(3.0, top))),
        ),
    )


def _norms(measured: ForwardMeasurements) -> Section:
    rows = []
    for name in dict.fromkeys(n.name for n in measured.norms):
        mine = [n.result for n in measured.norms if n.name == name]
        flags = [
            [getattr(r, field) for r in mine]
            for field in ("not_constant", "ones_not_in_rows", "gamma_not_zero",
                          "sigma_not_in_columns", "ones_not_in_columns")
        ]  # fmt: skip
        rows.append((
            name,
            "LayerNorm" if mine[0].kind == "layer" else "RMSNorm",
            format_range([r.rank for r in mine]),
            format_range([r.affine for r in mine]),
            format_range([r.predicted for r in mine]),
            format_range([r.measured for r in mine]),
            *(_sign(values) for values in flags),
            _sign([r.agrees for r in mine]),
        ))  # fmt: skip
    head = ("norm", "kind", "rank in", "affine in", "predicted", "affine out", "H1", "H2", "H3",
            "H4", "H5", "identity")  # fmt: skip
    return Section(
        "Normalisation",
        "The affine rank of the output is rank [XP, σ] for LayerNorm and rank [X, σ] for RMSNorm, "
        "for any X (identity). The published theorem says that LayerNorm keeps the affine rank if "
        "H1 to H4 hold: no constant row, 1 not in the row space, no gain of 0, σ not in the "
        "columns of XP. It also needs H5: 1 not in the columns of X. At full rank H2 or H4 fails. "
        "✓ holds, ✗ does not hold, ? undetermined, – does not apply.",
        (Table("Normalisation", head, tuple(rows), small=True),),
    )


def _layers(measured: ForwardMeasurements) -> Section:
    rows = []
    for layer in dict.fromkeys(site.layer for site in measured.sites):
        mine = [r for r in measured.layers if r.layer == layer]
        cells = [layer]
        for site in ("attention", "after attention"):
            at = measured.at(layer, site)
            cells += [format_range([s.rank for s in at]), extent([s.predicted for s in at])]
        outside = [r.mlp_outside for r in mine if r.mlp_outside is not None]
        cells += [
            format_range([s.rank for s in measured.at(layer, "mlp")]),
            format_range([s.rank for s in measured.at(layer, "output")]),
            extent([r.attention_adds for r in mine]),
            extent([r.mlp_adds for r in mine]),
            percent(statistics.median(outside) if outside else None),
        ]
        rows.append(tuple(cells))
    head = ("layer", "rank Z", "generic", "rank X + Z", "generic", "rank MLP", "rank out",
            "attention adds", "MLP adds", "of its norm")  # fmt: skip
    return Section(
        "What each layer adds",
        "Z is the attention's output, which is added to the stream X. Generic: the rank for almost "
        "all weights and maps, min(n, d, H min(r, d_k)) and min(n, d, r + that). Adds: directions "
        "of the attention's output outside the row space of X, and of the MLP's output outside "
        "both; of its norm: share of the MLP's squared norm in these directions.",
        (Table("Layers", head, tuple(rows)),),
    )


def _weights(weights: Sequence[WeightRow]) -> Section:
    rows = []
    for row in weights:
        s = row.spectrum
        law = s.law and f"{s.law.alpha:.2f} ({s.law.low:.2f}–{s.law.high:.2f})"
        rows.append((row.name, f"{s.rows} × {s.columns}", s.dtype, f"{s.rank}", f"{s.stable:.1f}",
                     law, s.above))  # fmt: skip
    head = ("weight", "shape", "made in", "rank", "stable rank", "exponent", "above noise")
    return Section(
        "Weights",
        "Without data. Made in: the narrowest type that holds all entries; rank: singular values "
        "above its rounding. Exponent: of the power law that the largest eigenvalues of W W^T "
        "follow, with its 95 % interval; about 2 to 4 in well-trained layers, larger in random "
        "ones. Above noise: eigenvalues that independent entries of this size would not have.",
        (Details("Every weight", (Table("Weights", head, tuple(rows), small=True),)),),
    )


# ------------------------------------------------------------------------------ parts


class _Stream:
    """Measures of the residual stream: before the first layer, then after each layer."""

    def __init__(self, measured: ForwardMeasurements) -> None:
        layers = list(dict.fromkeys(s.layer for s in measured.sites))
        places = [(layers[0], "input"), *((layer, "output") for layer in layers)]
        self.sites = [measured.at(*place) for place in places]
        self.layers = len(layers)

    def series(self, name: str, colour: str, value: Value, dash: str = "solid") -> Series:
        """The median of a measure over sequences."""
        medians = []
        for sites in self.sites:
            known = [float(v) for s in sites if (v := value(s)) is not None]
            medians.append(statistics.median(known) if known else None)
        return Series(name, range(self.layers + 1), _finite(medians), colour, dash)

    def without_first(self, name: str, colour: str, field: str) -> Series:
        """The same without the first token of each sequence."""

        def value(site: SiteRow) -> Any:
            return site.without_first and getattr(site.without_first, field)

        return self.series(name, colour, value, "dash")

    def figure(self, name: str, label: str, series: Sequence[Series], y: Axis) -> Figure:
        return line(name, label, series, _depth_axis(self.layers), y)


def _depth_axis(layers: int) -> Axis:
    return Axis("layers passed", limits=(-0.3, layers + 0.3), every=max(1, layers // 12))


def _heatmap(
    name: str,
    title: str,
    values: Sequence[Sequence[float | None]],
    limits: tuple[float, float],
) -> Figure:
    label = f"{title}, by layer and head"
    return heatmap(name, label, values, axes=("head", "layer"), limits=limits, title=title)


def _plain(rank: NumericalRank | None) -> int | None:
    return None if rank is None else rank.rank


def _finite(values: Any) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else v for v in values]


def _sign(values: Sequence[bool | None]) -> str:
    """One sign for several sequences; how many hold where they differ."""
    if all(v is None for v in values):
        return "?" if values else "–"
    if any(v is None for v in values):
        return f"{sum(v is True for v in values)}/{len(values)}?"
    if len(set(values)) > 1:
        return f"{sum(map(bool, values))}/{len(values)}"
    return "✓" if values[0] else "✗"
