"""The page of a rank report."""

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from isospike.ranks.numerical import span
from isospike.report.figures import INK, MUTED, OFF, ON, plot_layout
from isospike.report.old_page import Plot, page, place, section

COLOURS = (OFF, "#7b5ea7", "#c99a2e", "#5b8c5a", "#b5838d")
_GRID = (
    '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:8px">'
)


def html(report: Any) -> str:
    """The page of a :class:`isospike.RankReport`."""
    plots: list[Plot] = []
    sections = [
        _alike(report, plots),
        _ranks(report, plots),
        _attention(report, plots),
        _controls(report, plots),
        _heads(report, plots),
        _norms(report),
        _streams(report),
    ]
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in report.versions.items())
    footer = f"<footer>{versions}. Seed of the controls {report.seed}.</footer>"
    title = f"Ranks of {escape(report.name)}"
    return page(title, _header(report, title), [s for s in sections if s], footer, plots)


def _header(report: Any, title: str) -> str:
    depth, found = report.depth, report.measured
    worst = max(depth, key=lambda row: row.cosine)
    kernel = max(p.found.kernel for p in found.projections)
    gain = max((g for p in found.projections for g in p.found.gains if g < math.inf), default=0.0)
    last = report.at(depth[-1].layer, "output")
    low, high = min(report.tokens), max(report.tokens)
    cards = [
        ("Layers", str(len(depth)), [f"{report.width} channels",
                                     f"{found.projections[0].found.heads} heads each"]),
        ("Tokens", str(low) if low == high else f"{low}–{high}",
         [f"in {len(report.tokens)} sequence{'s' * (len(report.tokens) > 1)}, each by itself"]),
        ("Rank at the end", span([s.rank for s in last]),
         [f"entropic rank {depth[-1].entropic:.1f}"]),
        ("Most alike", f"{worst.cosine:.2f}", ["mean cosine of two tokens",
                                              f"after {worst.layer}"]),
        ("Heads lost", str(kernel), ["dimensions per token, worst layer",
                                     f"noise gain up to {gain:.3g}"]),
    ]  # fmt: skip
    body = "".join(
        f'<div class="card"><div class="name">{escape(name)}</div>'
        f'<div class="big">{escape(value)}</div>'
        + "".join(f'<div class="fine">{escape(line)}</div>' for line in lines)
        + "</div>"
        for name, value, lines in cards
    )
    said = "".join(f'<p class="warn">{escape(w)}</p>' for w in report.warnings)
    return (
        f"<header><h1>{title}</h1><p>Which representations collapse, where, and which heads can be "
        "told apart. Padding is left out; every sequence is measured by itself.</p>"
        f'<div class="cards">{body}</div>{said}</header>'
    )


def _alike(report: Any, plots: list[Plot]) -> str:
    traces = [
        _line(report, "cosine", lambda c: c.cosine, ON),
        _line(report, "cosine, without the first token", lambda c: c.cosine, ON, rest=True),
        _line(report, "Dong's residual", lambda c: c.residual, OFF),
        _line(report, "residual, without the first", lambda c: c.residual, OFF, rest=True),
        _line(report, "mu", lambda c: c.mu, "#7b5ea7"),
    ]
    return section(
        "Are the tokens alike?",
        "Along the depth, medians over sequences. Cosine: mean over pairs of tokens, 1 when all "
        "point the same way. Residual: what is left without the mean token, in the composite norm; "
        "mu: the same in the Frobenius norm. Both are 0 when all tokens are equal.",
        place(_depth_plot(report, "plot-alike", "Likeness of tokens by layer", traces,
                          {"title": {"text": "likeness, distance"}, "rangemode": "tozero"}), plots),
    )  # fmt: skip


def _ranks(report: Any, plots: list[Plot]) -> str:
    traces = [
        _line(report, "numerical rank", lambda c: c.rank.rank, INK, row=True),
        _line(report, "affine rank", lambda c: c.affine.rank, MUTED, row=True, dash="dot"),
        _line(report, "entropic rank", lambda c: c.entropic, ON),
        _line(report, "entropic, without the first token", lambda c: c.entropic, ON, rest=True),
        _line(report, "participation ratio", lambda c: c.participation, "#c99a2e"),
        _line(report, "stable rank", lambda c: c.stable, OFF),
        _line(report, "stable, without the first", lambda c: c.stable, OFF, rest=True),
    ]
    vague = sum(not s.rank.determined for s in report.measured.sites)
    meaning = (
        "Numerical rank: singular values above the rounding of the type in which the activations "
        "were made. The others are smooth measures of the same, uncentred singular values, so that "
        "an offset common to all tokens makes them small; they are no ranks."
    )
    if vague:
        meaning += f" {vague} of {len(report.measured.sites)} ranks have no clear gap."
    return section(
        "How many directions?",
        meaning,
        place(_depth_plot(report, "plot-ranks", "Ranks by layer", traces,
                          {"title": {"text": "directions"}, "type": "log", "dtick": 1}), plots),
    )  # fmt: skip


def _attention(report: Any, plots: list[Plot]) -> str:
    maps = (
        _heat(report, "plot-ratio", "s2/s1", lambda h: h.ratio),
        _heat(report, "plot-entropy", "row entropy / its maximum", lambda h: h.entropy),
    )
    return section(
        "Attention maps",
        "Each cell is a head, mean over sequences. Left: second over first singular value; near 0 "
        "every token gets the same mixture (width collapse). Right: entropy of the rows; near 0 "
        "every token looks at one (entropy collapse), near 1 at all alike.",
        _GRID,
        *(place(plot, plots) for plot in maps),
        "</div>",
    )


def _controls(report: Any, plots: list[Plot]) -> str:
    if not report.controls:
        return ""
    runs = [(f"{report.name}, {max(report.tokens)} tokens", report.depth, INK)]
    runs += [
        (f"{c.name}" + ("" if c.name.startswith("first") else f" ({c.tokens})"), c.rows, colour)
        for c, colour in zip(report.controls, _cycle(len(report.controls)), strict=True)
    ]
    shown = (
        ("cosine", "cosine of tokens"), ("entropic", "entropic rank"), ("ratio", "mean s2/s1"),
        ("entropy", "mean entropy"),
    )  # fmt: skip
    body = []
    for i, (field, label) in enumerate(shown):
        traces = [
            _trace(name, [getattr(row, field) for row in rows], colour, legend=i == 0)
            for name, rows, colour in runs
        ]
        yaxis = {"title": {"text": label}, "rangemode": "tozero"}
        name = f"plot-control-{field}"
        body.append(_depth_plot(report, name, f"{label}, with controls", traces, yaxis, 320))
    chips = " &nbsp; ".join(
        f'<span style="color:{colour};white-space:nowrap">━━ {escape(name)}</span>'
        for name, _, colour in runs
    )
    for plot in body:
        plot.layout["showlegend"] = False
    return section(
        "Beside controls",
        "The same model before training, on its tokens in random order, and on fewer tokens than, "
        "as many as and more than channels, where the sequences are long enough. What a control "
        "shows too, training or meaning has not made.",
        f'<p class="fine">{chips}</p>',
        _GRID,
        *(place(plot, plots) for plot in body),
        "</div>",
    )


def _heads(report: Any, plots: list[Plot]) -> str:
    lines, rows = [], report.measured.layers
    for p in report.measured.projections:
        f = p.found
        mine = [r for r in rows if r.layer == p.layer]
        flat = [a for i, row in enumerate(f.angles) for j, a in enumerate(row) if i < j]
        verdicts = {v: f.verdicts.count(v) for v in dict.fromkeys(f.verdicts)}
        lines.append((
            p.layer,
            f"{f.rank} of {f.heads * f.head_width}",
            _short(f.condition),
            f"{f.kernel:,}",
            f"{f.published:,}",
            ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()),
            _short(max(f.gains)),
            f"{min(flat):.1f}°" if flat else "–",
            f"{max(r.recovered for r in mine):.1e}",
            f"{max(r.summed for r in mine):.1e}",
        ))  # fmt: skip
    head = ("layer", "rank W_O", "condition", "lost per token", "published", "heads", "noise gain",
            "angle", "recovered to", "sum to")  # fmt: skip
    gains = [[math.log10(g) if 0 < g < math.inf else None for g in p.found.gains]
             for p in report.measured.projections]  # fmt: skip
    top = max((g for row in gains for g in row if g is not None), default=0.0)
    heat = _heatmap(report, "plot-gain", "log10 of the noise gain", gains, (0.0, max(3.0, top)))
    return section(
        "Which heads can be told apart?",
        "The heads leave attention as one sum. Lost: dimensions per token that no one can recover "
        "from the sum and W_O, H d<sub>k</sub> − rank W_O; published: (H − 1) d<sub>k</sub>. Noise "
        "gain: how much recovery amplifies an error, 1 / sin of the smallest angle between a "
        "head's output directions and all others'. Angle: the smallest between two heads. "
        "Recovered to: largest error of the heads' outputs computed back from the sum, over "
        "their largest value. "
        "Sum to: the same of the sum of the heads' shares beside what the layer gave.",
        _table(head, lines),
        place(heat, plots),
    )


def _norms(report: Any) -> str:
    if not report.measured.norms:
        return ""
    lines = []
    names = dict.fromkeys(n.name for n in report.measured.norms)
    for name in names:
        mine = [n.found for n in report.measured.norms if n.name == name]
        flags = [
            [getattr(f, field) for f in mine]
            for field in ("not_constant", "ones_not_in_rows", "gamma_not_zero",
                          "sigma_not_in_columns", "ones_not_in_columns")
        ]  # fmt: skip
        lines.append((
            name,
            "LayerNorm" if mine[0].kind == "layer" else "RMSNorm",
            span([f.rank for f in mine]),
            span([f.affine for f in mine]),
            span([f.predicted for f in mine]),
            span([f.measured for f in mine]),
            *(_flag(values) for values in flags),
            _flag([f.agrees for f in mine]),
        ))  # fmt: skip
    head = ("norm", "kind", "rank in", "affine in", "predicted", "affine out", "H1", "H2", "H3",
            "H4", "H5", "identity")  # fmt: skip
    return section(
        "Normalisation",
        "The affine rank of what leaves is rank [XP, σ] for LayerNorm and rank [X, σ] for RMSNorm, "
        "whatever X is (identity). The published theorem says that LayerNorm keeps the affine rank "
        "if H1 to H4 hold: no constant row, 1 not in the row space, no gain of 0, σ not in the "
        "columns of XP; it needs H5 too, 1 not in the columns of X. At full rank H2 or H4 fails. "
        "✓ holds, ✗ does not, ? undetermined, – says nothing here.",
        _table(head, lines, "sites"),
    )


def _streams(report: Any) -> str:
    lines = []
    for row in report.depth:
        mine = [r for r in report.measured.layers if r.layer == row.layer]
        cells = [row.layer]
        for site in ("attention", "after attention"):
            at = report.at(row.layer, site)
            cells += [span([s.rank for s in at]), _plain_span([s.predicted for s in at])]
        cells += [
            span([s.rank for s in report.at(row.layer, "mlp")]),
            span([s.rank for s in report.at(row.layer, "output")]),
            _plain_span([r.attention_adds for r in mine]),
            _plain_span([r.mlp_adds for r in mine]),
            _share([r.mlp_outside for r in mine]),
        ]
        lines.append(tuple(cells))
    head = ("layer", "rank Z", "generic", "rank X + Z", "generic", "rank MLP", "rank out",
            "attention adds", "MLP adds", "of its norm")  # fmt: skip
    return section(
        "What each layer adds",
        "Z is what attention adds to the stream X. Generic: the rank for almost all weights and "
        "maps, min(n, d, H min(r, d<sub>k</sub>)) and min(n, d, r + that). Adds: directions of "
        "attention's rows outside the row space of X, and of the MLP's rows outside both; of its "
        "norm: share of the MLP's squared norm that lies there.",
        _table(head, lines),
    )


# ------------------------------------------------------------------------------ parts


def _line(
    report: Any,
    name: str,
    value: Callable[[Any], float],
    colour: str,
    *,
    rest: bool = False,
    row: bool = False,
    dash: str = "solid",
) -> dict[str, Any]:
    """A measure of the stream: of the input, then of each layer's output."""
    sites = [("input", report.depth[0].layer), *(("output", r.layer) for r in report.depth)]
    values: list[float | None] = []
    for site, layer in sites:
        at = report.at(layer, site)
        of = [s if row else s.rest if rest else s.collapse for s in at]
        known = [float(value(o)) for o in of if o is not None]
        values.append(statistics.median(known) if known else None)
    return _trace(name, values, colour, "dash" if rest else dash, start=0)


def _trace(
    name: str,
    values: Sequence[float | None],
    colour: str,
    dash: str = "solid",
    *,
    start: int = 1,
    legend: bool = True,
) -> dict[str, Any]:
    finite = [None if v is None or not math.isfinite(v) else v for v in values]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(name, quote=False),
        "showlegend": legend,
        "x": list(range(start, start + len(finite))),
        "y": finite,
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"size": 5},
        "hovertemplate": "%{fullData.name}<br>after layer %{x}<br>%{y:.4g}<extra></extra>",
    }


def _depth_plot(
    report: Any,
    name: str,
    label: str,
    traces: list[dict[str, Any]],
    yaxis: dict[str, Any],
    height: int = 400,
) -> Plot:
    count = len(report.depth)
    xaxis = {
        "title": {"text": "layers passed"},
        "dtick": max(1, count // 12),
        "range": [-0.3, count + 0.3],
    }
    return Plot(name, label, height, traces, plot_layout(xaxis=xaxis, yaxis=yaxis))


def _heat(report: Any, name: str, title: str, value: Callable[[Any], float]) -> Plot:
    table = []
    for row in report.depth:
        mine = [h for h in report.measured.heads if h.layer == row.layer]
        heads = sorted({h.head for h in mine})
        table.append([statistics.mean(value(h) for h in mine if h.head == head) for head in heads])
    return _heatmap(report, name, title, table, (0.0, 1.0))


def _heatmap(
    report: Any,
    name: str,
    title: str,
    table: Sequence[Sequence[float | None]],
    limits: tuple[float, float] | None = None,
) -> Plot:
    rows = len(table)
    shown = [[None if v is None or not math.isfinite(v) else round(v, 3) for v in line]
             for line in table]  # fmt: skip
    data: dict[str, Any] = {
        "type": "heatmap",
        "y": list(range(1, rows + 1)),
        "x": list(range(1, max(map(len, table)) + 1)),
        "z": shown,
        "hovertemplate": "layer %{y}, head %{x}: %{z}<extra></extra>",
        "colorscale": [[0, "#f3e3d3"], [0.5, "#a9cdd2"], [1, "#1f6f8b"]],
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "xgap": 1,
        "ygap": 1,
    }
    if limits is not None:
        data |= {"zmin": limits[0], "zmax": limits[1]}
    layout = plot_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01},
        xaxis={"title": {"text": "head"}, "showgrid": False, "ticks": "", "dtick": 1},
        yaxis={"title": {"text": "layer"}, "autorange": "reversed", "showgrid": False,
               "ticks": "", "dtick": 1},
    )  # fmt: skip
    return Plot(name, f"{title}, by layer and head", 150 + 26 * max(rows, 3), [data], layout)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    of_kind = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{of_kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _flag(values: Sequence[bool | None]) -> str:
    """One sign for several sequences; where they differ, how many hold."""
    if all(v is None for v in values):
        return "?" if values else "–"
    if any(v is None for v in values):
        return f"{sum(v is True for v in values)}/{len(values)}?"
    if len(set(values)) > 1:
        return f"{sum(map(bool, values))}/{len(values)}"
    return "✓" if values[0] else "✗"


def _plain_span(values: Sequence[int | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    low, high = min(known), max(known)
    return str(low) if low == high else f"{low}–{high}"


def _share(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.median(known):.1%}" if known else "–"


def _short(value: float) -> str:
    return "∞" if value == math.inf else f"{value:.3g}"


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
