"""A :class:`~isospike.porting.report.PortReport` for people: one HTML page, or a few lines.

The page is a single file. Plotly's script is written into it and a content security policy forbids
every request, so it works from disk, without a network, years later.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from isospike.codes import CODES, Law
from isospike.energy import TABLES, EnergyRow, estimate_energy, memory_moved_bytes
from isospike.porting.report import CircuitReport, PortReport, Raster, SiteReport

if TYPE_CHECKING:
    import rich.console

_Points = list[tuple[int, float, SiteReport]]
_Marks = dict[str, tuple[str, str]]

KIND_MARKS: _Marks = {
    "linear": ("#33658a", "circle"),
    "conv": ("#2a9d8f", "square"),
    "query": ("#e07a5f", "triangle-up"),
    "key": ("#b5838d", "triangle-down"),
    "value": ("#81a263", "diamond"),
    "probability": ("#8d6cab", "cross"),
}

DIMENSION_MARKS: _Marks = {
    "95 % of variance": ("#33658a", "circle"),
    "95 % of variance, at least": ("#33658a", "circle-open"),
    "participation ratio": ("#c99a2e", "diamond"),
}

ON, OFF, INK, MUTED, GRID = "#1f6f8b", "#d1622b", "#22303a", "#6b7883", "#e7ebee"


@dataclass(frozen=True)
class Layer:
    """The sites of one layer together, per token.

    Attributes:
        name: The layer.
        spikes, synaptic_ops, neuron_updates: Sums over its sites and circuits.
        error: The largest coding error of a site, or error of a circuit.
    """

    name: str
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    error: float


@dataclass(frozen=True)
class Plot:
    """One Plotly figure: its element, a spoken label, its height in pixels, traces and layout."""

    name: str
    label: str
    height: int
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def layers(report: PortReport) -> tuple[Layer, ...]:
    """The report's sites and circuits added up by layer, in order of execution."""
    sites: dict[str, list[SiteReport | CircuitReport]] = {}
    for site in report.populations:
        sites.setdefault(site.layer, []).append(site)
    return tuple(
        Layer(
            name=name,
            spikes=sum(s.spikes for s in group),
            synaptic_ops=sum(s.synaptic_ops for s in group),
            neuron_updates=sum(s.neuron_updates for s in group),
            error=max(s.error for s in group),
        )
        for name, group in sites.items()
    )


def summary(report: PortReport) -> "rich.console.Group":
    """The headline and the five costliest layers, to be printed by a Rich console.

    Args:
        report: What a port measured.

    Returns:
        Two tables, one under the other. Costliest means most synaptic operations per token.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim")
    head.add_column()
    for label, value in _headline(report):
        head.add_row(label, Text(value))  # Text: a name like [bold] is not markup

    found = layers(report)
    total = sum(layer.synaptic_ops for layer in found)
    costly = Table(box=box.SIMPLE_HEAD, title="Costliest layers, per token", title_justify="left")
    costly.add_column("layer")
    for heading in ("synaptic ops", "share", "spikes", "worst error"):
        costly.add_column(heading, justify="right")
    for layer in sorted(found, key=lambda layer: -layer.synaptic_ops)[:5]:
        share = layer.synaptic_ops / total if total else 0.0
        costly.add_row(
            Text(layer.name),
            _si(layer.synaptic_ops),
            f"{share:.0%}",
            _si(layer.spikes),
            _number(layer.error),
        )
    return Group(head, costly)


def html(report: PortReport) -> str:
    """The report as one self-contained HTML page.

    Args:
        report: What a port measured.

    Returns:
        The page, about 5 MB, nearly all of it Plotly. It makes no request and stores nothing. Every
        text that came from the model or its input is escaped. An error in one of its scripts is
        added to the attribute ``data-errors`` of the root element.
    """
    plots: list[Plot] = []
    sections = [
        _curve_section(report, plots),
        _allocation_section(report, plots),
        _layers_section(report, plots),
        _errors_section(report, plots),
        _dimension_section(report, plots),
        _raster_section(report, plots),
        _cost_section(report),
        _float_section(report),
        _sites_section(report),
    ]
    title = f"{escape(report.model)} on spikes"
    return page(title, _header(report, title), sections, _footer(report), plots)


def page(title: str, header: str, sections: Sequence[str], footer: str, plots: list[Plot]) -> str:
    """A self-contained page: sections of HTML, and the plots that they have places for.

    All of it is written as it is: escape what others wrote. The page makes no request and stores
    nothing. An error in one of its scripts is added to the attribute ``data-errors`` of the root.
    Plotly, 5 MB, is in it only where there are plots.
    """
    library, drawing = "", ""
    calls = "\n".join(
        f"draw({_script_json(p.name)}, {_script_json(p.data)}, {_script_json(p.layout)});"
        for p in plots
    )
    if plots:
        from plotly.offline import get_plotlyjs

        library = f"\n<script>{get_plotlyjs()}</script>"
        drawing = f"\n<script>{_DRAW}\n{calls}</script>"
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en-GB" data-errors="" data-plots="{len(plots)}">',
            f'<head>\n<meta charset="utf-8">\n<title>{title}</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<script>{_RECORD_ERRORS}</script>\n<style>{_STYLE}</style>{library}",
            "</head>\n<body>\n<main>",
            header,
            *sections,
            footer,
            f"</main>{drawing}\n</body>\n</html>\n",
        ]
    )


# ---------------------------------------------------------------------------- text


def _headline(report: PortReport) -> list[tuple[str, str]]:
    rows = [
        ("model", report.model),
        ("code", report.code),
        ("steps", _steps(report)),
        ("functions", report.nonlinear),
        ("error, measured", _number(report.error)),
    ]
    if report.error_fast is not None:
        rows.append(("error, fast precision", _number(report.error_fast)))
    if report.error_predicted is not None:
        rows.append(("error, predicted", _number(report.error_predicted)))
    if report.law is not None and report.law.floor:
        rows.append(("floor of the law", _number(report.law.floor)))
    if report.max_error is not None:
        rows.append(("error, asked for", _target(report)))
    rows.append(("cosine", f"{report.cosine:.4f} by token, {report.cosine_pooled:.4f} pooled"))
    if report.agreement is not None:
        rows.append(("same arg-max", f"{report.agreement:.1%} of tokens"))
    return [
        *rows,
        ("spikes", f"{_si(report.spikes)} per token"),
        ("synaptic ops", f"{_si(report.synaptic_ops)} per token"),
    ]


def _steps(report: PortReport) -> str:
    if report.steps_by_site:
        low = min(s.steps for s in report.sites) if report.sites else report.steps
        return f"{low} to {report.steps}, by site"
    return str(report.steps)


def _target(report: PortReport) -> str:
    return f"{_number(report.max_error)}, {'reached' if report.reached else 'not reached'}"


def _header(report: PortReport, title: str) -> str:
    errors = []
    if report.error_predicted is not None:
        errors.append(f"predicted {_number(report.error_predicted)}")
    if report.max_error is not None:
        errors.append(f"asked for {_target(report)}")
    if report.error_fast is not None:
        errors.append(f"{_number(report.error_fast)} with fast precision")
    cosine = [f"by token; {report.cosine_pooled:.4f} pooled over tokens"]
    if report.agreement is not None:
        cosine.append(f"same arg-max for {report.agreement:.1%} of tokens")
    rate, macs = report.counts.spike_rate, report.counts.macs
    operations = ["additions per token"]
    if macs:
        operations.append(f"{report.counts.synaptic_ops / macs:.3g} per float MAC")
    cards = [
        ("Code", report.code, [f"{_steps(report)} time steps"]),
        ("Error", _number(report.error), errors),
        ("Cosine", f"{report.cosine:.4f}", cosine),
        ("Spikes", _si(report.spikes), ["per token", f"{rate:.3g} per neuron and step"]),
        ("Synaptic operations", _si(report.synaptic_ops), operations),
    ]
    body = "".join(
        f'<div class="card"><div class="name">{escape(name)}</div>'
        f'<div class="big">{escape(value)}</div>'
        + "".join(f'<div class="fine">{escape(line)}</div>' for line in lines)
        + "</div>"
        for name, value, lines in cards
    )
    left = len(report.exceptions)
    products = f"All matrix products but {left} were" if left else "Every matrix product was"
    foresight = ""
    if report.error_predicted is not None:
        foresight = "; the prediction was made before they were seen"
    missed = ""
    if not report.reached:
        missed = (
            f'<p class="warn">The error asked for, {_number(report.max_error)}, was not reached: '
            f"measured {_number(report.error)}.</p>"
        )
    return (
        f"<header><h1>{title}</h1><p>{products} given a binary operand: a spike train in place of "
        "numbers. This page says what that does to the output of the pretrained model, and what it "
        f'costs.</p>{missed}<div class="cards">{body}</div>'
        '<p class="fine">Error: root-mean-square difference between the outputs of the two models, '
        "relative to the output itself. Cosine: mean over tokens. Both on "
        f"{report.held_back_tokens:,} held-back tokens{foresight}.</p></header>"
    )


def _footer(report: PortReport) -> str:
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in report.versions.items())
    return (
        f"<footer>Run {escape(report.execution)}, {escape(report.precision)} precision. Calibrated "
        f"on {report.calibration_tokens:,} tokens, measured on {report.held_back_tokens:,} others. "
        f"{versions}.</footer>"
    )


def section(heading: str, meaning: str, *body: str) -> str:
    """A part of a page: a heading, what it means, and what it shows, all of it HTML."""
    return f'<section><h2>{heading}</h2><p class="meaning">{meaning}</p>{"".join(body)}</section>'


def place(plot: Plot, plots: list[Plot]) -> str:
    """The element of a plot, which is put on the list of those to draw."""
    plots.append(plot)
    return (
        f'<div class="plot" id="{plot.name}" role="img" aria-label="{escape(plot.label)}" '
        f'style="height:{plot.height}px"></div>'
    )


# ------------------------------------------------------------------------ sections


def _curve_section(report: PortReport, plots: list[Plot]) -> str:
    if not any(p.error > 0 for p in report.curve):
        return section("Error against time steps", "No curve was measured for this port.")
    meaning = (
        "Error of the whole model's output when every site uses the same code and the same number "
        "of steps. Lower and further left is better. The points are calibrated on a part of the "
        "inputs, the port itself (the ring) on all of them."
    )
    if report.law is not None:
        meaning += (
            " The dashed line is the fitted law: the code's own error, which falls as "
            f"{_law_html(report.law)}, to the power {_number(report.law.exponent)}, times "
            f"{_number(report.law.scale)}; {_floor(report.law)}. It is fitted to the calibration "
            "points drawn as small crosses."
        )
    return section("Error against time steps", meaning, place(_curve_plot(report), plots))


def _floor(law: Law) -> str:
    if not law.floor:
        return "no floor was found below which steps do not help"
    return f"no number of steps brings the error below its floor, {_number(law.floor)}"


def _allocation_section(report: PortReport, plots: list[Plot]) -> str:
    points = [(i, float(s.steps), s) for i, s in enumerate(report.sites, 1)]
    if not any(s.share is not None for s in report.sites):
        return ""
    meaning = (
        "Steps were allocated: every channel has the resolution with which all values add the same "
        "error to the output, and a site takes the steps that its widest channel needs. Sensitive "
        f"sites get more. The error predicted from the sensitivities is "
        f"{_number(report.error_predicted)}, measured {_number(report.error)}. Hover for a site's "
        "part of the squared error."
    )
    groups: dict[str, _Points] = {}
    for point in points:
        groups.setdefault(point[2].kind, []).append(point)
    plot = _sites_plot(report, "plot-steps", "time steps", groups, KIND_MARKS, log=False)
    return section("Steps by site", meaning, place(plot, plots))


def _layers_section(report: PortReport, plots: list[Plot]) -> str:
    return section(
        "Spikes by layer",
        "Spikes emitted per token, added up over the sites of each layer.",
        place(_layers_plot(report), plots),
    )


def _errors_section(report: PortReport, plots: list[Plot]) -> str:
    exact = sum(s.error <= 0 for s in report.sites)
    meaning = (
        "Error each site's code makes on its own values, relative to their spread. One mark per "
        "matrix-product input, in order of execution."
    )
    if exact:
        meaning += f" {exact} without any error cannot be shown on this scale."
    groups: dict[str, _Points] = {}
    for i, site in enumerate(report.sites, 1):
        if site.error > 0:
            groups.setdefault(site.kind, []).append((i, site.error, site))
    axis = "coding error (relative RMS)"
    plot = _sites_plot(report, "plot-errors", axis, groups, KIND_MARKS)
    return section("Coding error by site", meaning, place(plot, plots))


def _dimension_section(report: PortReport, plots: list[Plot]) -> str:
    pca = [(i, float(s.pca95), s) for i, s in enumerate(report.sites, 1) if s.pca95]
    ratio = [(i, s.participation, s) for i, s in enumerate(report.sites, 1) if s.participation]
    if not pca and not ratio:
        return section("Effective dimension by site", "Not measured for this port.")
    capped = sum(s.capped for _, _, s in pca)
    meaning = (
        "How many directions each site's values really use: components holding 95 % of the "
        "variance, and the participation ratio, which weighs every component."
    )
    if capped:
        marks = "mark is a lower bound" if capped == 1 else "marks are lower bounds"
        meaning += f" {capped} hollow {marks}: there were too few tokens to see more components."
    known, at_least, participation = DIMENSION_MARKS
    groups: dict[str, _Points] = {
        known: [p for p in pca if not p[2].capped],
        at_least: [p for p in pca if p[2].capped],
        participation: ratio,
    }
    plot = _sites_plot(report, "plot-dimension", "dimensions", groups, DIMENSION_MARKS)
    return section("Effective dimension by site", meaning, place(plot, plots))


def _raster_section(report: PortReport, plots: list[Plot]) -> str:
    if report.raster is None:
        return section("Spikes of one input", "No raster was recorded for this port.")
    paired = _is_paired(report, report.raster)
    colours = (
        f'<b style="color:{ON}">ON</b> neurons carry positive digits, '
        f'<b style="color:{OFF}">OFF</b> neurons, above the line, negative ones.'
        if paired
        else "Each row is one neuron."
    )
    return section(
        "Spikes of one input",
        f"Every spike of the first neurons at <code>{escape(report.raster.site)}</code> while "
        f"the model reads “{escape(report.raster.text)}”. Each token is shown for "
        f"{report.raster.steps} steps. {colours}",
        place(_raster_plot(report.raster, paired), plots),
    )


def _cost_section(report: PortReport) -> str:
    counts = report.counts
    rows = [estimate_energy(counts, table) for table in TABLES]
    moved = memory_moved_bytes(counts)
    lines = [
        _row("Multiply-accumulates", [_si(counts.macs), _si(counts.macs), None]),
        _row("Synaptic operations (additions)", [None, None, _si(counts.synaptic_ops)]),
        _row("Neuron updates", [None, None, _si(counts.neuron_updates)]),
    ]
    spiking = counts.spiking_float_ops
    for kind, number in counts.float_ops.items():
        left = number if spiking is None else spiking.get(kind)
        cells = [_si(number), _si(number), None if left is None else _si(left)]
        lines.append(_row(f"Float operations left: {kind}", cells))
    traffic = (moved.float32, moved.quantised, moved.spiking)
    lines.append(_row("Memory moved", [_bytes(t.total_bytes) for t in traffic], "group"))
    lines.append(_row("of which weights", [_bytes(t.weight_bytes) for t in traffic], "sub"))
    lines.append(
        _row("of which activations or membranes", [_bytes(t.state_bytes) for t in traffic], "sub")
    )
    for i, row in enumerate(rows):
        values = [row.float_pj, row.quantised_pj, row.spiking_pj]
        cells = [None if v is None else _energy(v) for v in values]
        winners = ("float", "quantised", "spiking")
        best = winners.index(row.winner) if row.winner in winners else None
        lines.append(
            _row(f"Energy: {row.table.name}", cells, "" if i else "group", best=best, note=i + 1)
        )
    verdicts = "".join(
        f"<li><b>{escape(row.table.name)}.</b> {_verdict(row)}"
        f'<div class="fine">{escape(row.table.note)} Source: {escape(row.table.source)}.</div></li>'
        for row in rows
    )
    return section(
        "What it costs",
        "Operations, memory and energy per token of three machines that run the same model. "
        "Operations are measured; energies are those operations times published figures. "
        "The least energy under each table is bold.",
        f'<p class="aside">{_equal_error(report)}</p>',
        '<div class="scroll"><table class="costs"><thead><tr><th>per token</th><th>float32</th>'
        f"<th>quantised, {counts.bits} bits</th><th>spiking</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>",
        f'<ol class="verdicts">{verdicts}</ol>',
        f'<p class="fine">{_MEMORY_MEANING}</p>',
    )


def _float_section(report: PortReport) -> str:
    counts = report.counts
    left = counts.float_ops if counts.spiking_float_ops is None else counts.spiking_float_ops
    kept = ", ".join(f"{escape(k)} ({_si(n)})" for k, n in left.items())
    soma = (
        f"<p>Computed in float at the soma, operations per token: {kept}.</p>"
        if kept
        else "<p>No float operation was counted at the soma.</p>"
    )
    if report.circuits:
        soma += _circuits(report)
    if report.exceptions:
        names = "".join(f"<li><code>{escape(name)}</code></li>" for name in report.exceptions)
        products = (
            f"<p>Matrix products without a binary operand ({len(report.exceptions)}):</p>"
            f"<ul>{names}</ul>"
        )
    else:
        products = "<p>Matrix products without a binary operand: none.</p>"
    return section(
        "What stays in float", "The part of the model that does not run on spikes.", soma, products
    )


def _circuits(report: PortReport) -> str:
    heads = (
        "circuit", "kind", "neurons", "spikes", "synaptic ops", "neuron updates", "error",
    )  # fmt: skip
    rows = "".join(
        f"<tr><td><code>{escape(c.name)}</code></td><td>{escape(c.kind)}</td>"
        + "".join(
            f"<td>{_si(v)}</td>" for v in (c.neurons, c.spikes, c.synaptic_ops, c.neuron_updates)
        )
        + f"<td>{_number(c.error)}</td></tr>"
        for c in report.circuits
    )
    return (
        "<p>Softmax, normalisation, activations and gates run on spikes: they add, compare and "
        "reset. Gates and shifts stand for products.</p>"
        f"<details><summary>Show {len(report.circuits)} circuits, per token</summary>"
        f'<div class="scroll"><table class="sites"><thead><tr>'
        f"{''.join(f'<th>{h}</th>' for h in heads)}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _sites_section(report: PortReport) -> str:
    heads = (
        "site", "kind", "code", "steps", "neurons", "spikes", "synaptic ops", "neuron updates",
        "MACs", "error", "PCA-95", "part. ratio",
    )  # fmt: skip
    rows = "".join(
        f"<tr><td><code>{escape(s.name)}</code></td><td>{escape(s.kind)}</td>"
        f"<td>{escape(s.code)}</td>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                s.steps,
                *(_si(v) for v in (s.neurons, s.spikes, s.synaptic_ops, s.neuron_updates, s.macs)),
                _number(s.error),
                "–" if s.pca95 is None else f"{'≥ ' if s.capped else ''}{s.pca95}",
                "–" if s.participation is None else f"{s.participation:.3g}",
            )
        )
        + "</tr>"
        for s in report.sites
    )
    head = "".join(f"<th>{h}</th>" for h in heads)
    return section(
        "Every site",
        "One row per matrix-product input, in order of execution; counts are per token.",
        f"<details><summary>Show {len(report.sites)} sites</summary>"
        f'<div class="scroll"><table class="sites"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>",
    )


def _equal_error(report: PortReport) -> str:
    if report.code == "bernoulli":
        return (
            "A quantised network with the same levels would round where this code draws at random: "
            "its error is smaller. Spikes bring no accuracy here; they can only lower the cost."
        )
    return (
        "The quantised network with the same levels computes the same numbers, so it has the same "
        f"error, {_number(report.error)}. Spikes bring no accuracy here; they can only lower the "
        "cost."
    )


def _verdict(row: EnergyRow) -> str:
    """Who wins under a table, by how much, and at what spike rate that would change."""
    spiking = _energy(row.spiking_pj)
    if row.quantised_pj is None:
        return f"Spiking takes {spiking}. The table has no figure for another machine: no winner."
    quantised, rate = _energy(row.quantised_pj), f"{row.rate:.3g}"
    leads = row.spiking_pj < row.quantised_pj
    times = ""
    if row.ratio:
        times = f", {1 / row.ratio if leads else row.ratio:.3g} times as much"
    if row.winner == "float":
        text = (
            f"Float wins: {_energy(row.float_pj or 0.0)}; quantised {quantised}, spiking {spiking}."
        )
    elif leads:
        text = f"Spiking wins: {spiking}; the quantised network takes {quantised}{times}."
    else:
        text = f"The quantised network wins: {quantised}; spiking takes {spiking}{times}."
    if row.break_even_rate is not None:
        return (
            f"{text} They break even at {row.break_even_rate:.3g} spikes per neuron and step, "
            f"below which spiking beats the quantised network; measured {rate}."
        )
    if not row.rate:
        return f"{text} Nothing spiked, so no break-even rate is known."
    if leads:
        return f"{text} No spike rate breaks even: spiking would win even at one spike per step."
    return f"{text} No spike rate breaks even: neuron updates and float operations alone take more."


def _row(
    name: str, cells: Sequence[str | None], kind: str = "", best: int | None = None, note: int = 0
) -> str:
    mark = f"<sup>{note}</sup>" if note else ""
    return (
        f'<tr class="{kind}"><td>{escape(name)}{mark}</td>'
        + "".join(
            f"<td{' class=best' if i == best else ''}>{'–' if cell is None else escape(cell)}</td>"
            for i, cell in enumerate(cells)
        )
        + "</tr>"
    )


# --------------------------------------------------------------------------- plots


def _curve_plot(report: PortReport) -> Plot:
    shown = [p for p in report.curve if p.error > 0]  # a log axis has no zero
    traces: list[dict[str, Any]] = []
    for code in dict.fromkeys(p.code for p in shown):
        points = sorted((p for p in shown if p.code == code), key=lambda p: p.steps)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": _plot_text(code),
                "x": [p.steps for p in points],
                "y": [p.error for p in points],
                "customdata": [_si(p.spikes) for p in points],
                "line": {"color": _code_colour(code), "width": 2},
                "marker": {"size": 7},
                "hovertemplate": "%{x} steps<br>error %{y:.3g}<br>%{customdata} spikes per token",
            }
        )
    steps = [p.steps for p in shown] + [report.steps]
    errors = [p.error for p in shown]
    if report.law is not None and report.law.code in CODES:
        own = [p.steps for p in shown if p.code == report.law.code] + list(report.law.steps)
        traces += _law_traces(report.law, _code_colour(report.law.code), min(own), max(own))
        errors += [e for e in report.law.errors if e > 0]
    if report.error > 0:
        errors.append(report.error)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "this port",
                "x": [report.steps],
                "y": [report.error],
                "marker": {
                    "size": 17,
                    "symbol": "circle-open",
                    "color": INK,
                    "line": {"width": 2.5},
                },
                "hovertemplate": "this port<br>%{x} steps<br>error %{y:.4g}",
            }
        )
    shapes = []
    if report.max_error is not None and report.max_error > 0:
        errors.append(report.max_error)
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": report.max_error,
                "y1": report.max_error,
                "line": {"color": MUTED, "width": 1, "dash": "dot"},
                "label": {
                    "text": "asked for",
                    "textposition": "end",
                    "font": {"size": 11, "color": MUTED},
                },
            }
        )
    top = math.ceil(math.log2(max(steps))) + 1
    layout = plot_layout(
        xaxis={
            "title": {"text": "time steps"},
            "type": "log",
            "tickvals": [2**k for k in range(top)],
            "range": [math.log10(min(steps) / 1.15), math.log10(max(steps) * 1.15)],
        },
        yaxis={
            "title": {"text": "error of the output (relative RMS)"},
            "type": "log",
            "range": [math.log10(min(errors) / 1.5), math.log10(max(errors) * 1.5)],
            **_decades(errors),
        },
        shapes=shapes,
    )
    return Plot("plot-curve", "Error against time steps for every code", 460, traces, layout)


def _law_traces(law: Law, colour: str, low: int, high: int) -> list[dict[str, Any]]:
    ratio = max(high / low, 1.01)
    grid = [low * ratio ** (i / 120) for i in range(121)]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "fitted law",
            "x": grid,
            "y": [law.error(t) for t in grid],
            "line": {"color": colour, "width": 1.5, "dash": "dash"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "calibration",
            "x": list(law.steps),
            "y": [e if e > 0 else None for e in law.errors],
            "marker": {"color": colour, "symbol": "x-thin", "size": 7, "line": {"width": 1.5}},
            "hovertemplate": "calibration<br>%{x} steps<br>error %{y:.3g}",
        },
    ]


def _layers_plot(report: PortReport) -> Plot:
    found = layers(report)
    most = max(layer.spikes for layer in found)
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [layer.spikes for layer in found],
        "y": [_plot_text(layer.name) for layer in found],
        "text": [_si(layer.spikes) for layer in found],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": [
            [
                _si(layer.synaptic_ops),
                f"{layer.spikes / layer.neuron_updates:.3g}" if layer.neuron_updates else "–",
            ]
            for layer in found
        ],
        "marker": {"color": _code_colour(report.code), "opacity": 0.85},
        "hovertemplate": (
            "%{y}<br>%{x:.4s} spikes per token<br>%{customdata[0]} synaptic operations<br>"
            "%{customdata[1]} spikes per neuron and step<extra></extra>"
        ),
    }
    layout = plot_layout(
        # Room at the right for the numbers at the ends of the bars.
        xaxis={"title": {"text": "spikes per token"}, "range": [0, 1.14 * most or 1]},
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category", "ticksuffix": " "},
        bargap=0.35,
        margin={"l": 64, "r": 24, "t": 8, "b": 56},
        showlegend=False,
        hovermode="closest",
    )
    return Plot("plot-layers", "Spikes per token by layer", 74 + 28 * len(found), [trace], layout)


def _sites_plot(
    report: PortReport,
    name: str,
    axis: str,
    groups: dict[str, _Points],
    marks: _Marks,
    *,
    log: bool = True,
) -> Plot:
    """Marks over the sites in order of execution, one colour per group, layers as bands."""
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": _plot_text(group),
            "x": [i for i, _, _ in points],
            "y": [value for _, value, _ in points],
            "customdata": [
                f"{_plot_text(s.name)}<br>{_plot_text(s.code)}, {s.steps} steps{_share(s)}"
                for _, _, s in points
            ],
            "marker": {
                "color": marks.get(group, (MUTED, "circle"))[0],
                "symbol": marks.get(group, (MUTED, "circle"))[1],
                "size": 8,
            },
            "hovertemplate": "%{customdata}<br>%{y:.3g}<extra></extra>",
        }
        for group, points in groups.items()
        if points
    ]
    shapes, middles, labels, start = [], [], [], 1
    for n, (layer, group) in enumerate(groupby(report.sites, key=lambda s: s.layer)):
        end = start + len(list(group))
        if n % 2:
            shapes.append(_band(start - 0.5, end - 0.5))
        middles.append((start + end - 1) / 2)
        labels.append(_plot_text(".".join(layer.split(".")[-2:])))
        start = end
    layout = plot_layout(
        xaxis={
            "title": {"text": "site, in order of execution, by layer"},
            "range": [0.3, start - 0.3],
            "tickvals": middles,
            "ticktext": labels,
            "showgrid": False,
            "ticks": "",
        },
        yaxis={
            "title": {"text": axis},
            **(
                {"type": "log", **_decades([v for points in groups.values() for _, v, _ in points])}
                if log
                else {"rangemode": "tozero", "dtick": 2}
            ),
        },
        shapes=shapes,
        hovermode="closest",
    )
    return Plot(name, f"{axis} by site", 400, traces, layout)


def _share(site: SiteReport) -> str:
    return "" if site.share is None else f"<br>{site.share:.1%} of the squared error"


def _raster_plot(raster: Raster, paired: bool) -> Plot:
    half = raster.neurons // 2 if paired else raster.neurons
    parts = {"ON": (ON, range(half)), "OFF": (OFF, range(half, raster.neurons))}
    traces = []
    for part, (colour, rows) in parts.items():
        x: list[float | None] = []
        y: list[float | None] = []
        for token, step, neuron in raster.spikes:
            if neuron in rows:
                time = token * raster.steps + step
                # One path with gaps draws a hundred thousand ticks; as many markers would not.
                x += [time, time, None]
                y += [neuron - 0.42, neuron + 0.42, None]
        if rows:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": part if paired else "spikes",
                    "x": x or [None],
                    "y": y or [None],
                    "line": {"color": colour, "width": 2},
                    "hoverinfo": "skip",
                }
            )
    shapes = [
        _band(t * raster.steps - 0.5, (t + 1) * raster.steps - 0.5)
        for t in range(1, len(raster.tokens), 2)
    ]
    if paired:
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": half - 0.5,
                "y1": half - 0.5,
                "line": {"color": MUTED, "width": 1},
            }
        )
    layout = plot_layout(
        xaxis={
            "title": {"text": f"token, and time step within it ({raster.steps} steps each)"},
            "range": [-0.5, len(raster.tokens) * raster.steps - 0.5],
            "tickvals": [(t + 0.5) * raster.steps - 0.5 for t in range(len(raster.tokens))],
            "ticktext": [_plot_text(token) for token in raster.tokens],
            "showgrid": False,
            "ticks": "",
        },
        yaxis={
            "title": {"text": "neuron"},
            "range": [-1, raster.neurons],
            "showgrid": False,
        },
        shapes=shapes,
        showlegend=paired,
        hovermode=False,
    )
    height = min(720, max(260, 150 + 5 * raster.neurons))
    return Plot("plot-raster", "Spike raster of one input", height, traces, layout)


def _is_paired(report: PortReport, raster: Raster) -> bool:
    code = next((s.code for s in report.sites if s.name == raster.site), report.code)
    return code in CODES and CODES[code].neurons == 2


def _band(low: float, high: float) -> dict[str, Any]:
    return {
        "type": "rect",
        "yref": "paper",
        "x0": low,
        "x1": high,
        "y0": 0,
        "y1": 1,
        "fillcolor": "#f3f5f7",
        "line": {"width": 0},
        "layer": "below",
    }


def plot_layout(**parts: Any) -> dict[str, Any]:
    """A Plotly layout in the colours and type of the pages; ``xaxis`` and ``yaxis`` are needed."""
    axis = {
        "gridcolor": GRID,
        "linecolor": "#b8c1c8",
        "showline": True,
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": "#b8c1c8",
    }
    layout: dict[str, Any] = {
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 24, "t": 44, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "white", "font": {"family": _FONT, "color": INK}},
        **parts,
    }
    for name in ("xaxis", "yaxis"):
        layout[name] = {**axis, **layout[name]}
    return layout


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of a log axis at 1, 2 and 5 of every decade; at 1 only where there are many decades."""
    positive = [v for v in values if v > 0]
    if not positive:
        return {}
    low, high = (math.floor(math.log10(v)) for v in (min(positive), max(positive)))
    digits = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [d * 10.0**k for k in range(low - 1, high + 2) for d in digits]
    return {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}


def _code_colour(code: str) -> str:
    return CODES[code].colour if code in CODES else MUTED


def _plot_text(text: str) -> str:
    # Plotly draws a subset of HTML and knows the entities of these three characters.
    return escape(text, quote=False)


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it is written into."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


# ------------------------------------------------------------------------- numbers


def _scaled(value: float, units: Sequence[str], base: float = 1000.0) -> str:
    k = 0
    while abs(value) >= 0.9995 * base and k + 1 < len(units):
        value, k = value / base, k + 1
    return f"{value:.3g} {units[k]}".rstrip()


def _si(value: float) -> str:
    return _scaled(value, ("", "k", "M", "G", "T", "P"))


def _bytes(value: float) -> str:
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def _energy(value_pj: float) -> str:
    return _scaled(value_pj, ("pJ", "nJ", "µJ", "mJ", "J", "kJ"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _law_html(law: Law) -> str:
    form = law.kind.error_law if law.code in CODES else law.code
    base, _, power = form.partition("^")
    return f"{escape(base)}<sup>{escape(power).replace('-', '−')}</sup>"


# ---------------------------------------------------------------------------- page

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

_MEMORY_MEANING = (
    "Memory moved, assumed: a dense network reads every weight once per input, and writes and "
    "reads every activation once; weights take 4 bytes in float32 and 1 byte otherwise. The "
    "spiking network reads a 1-byte weight for every synaptic operation, and reads and writes a "
    "4-byte membrane at every neuron update. Sums of one step stay in registers; spikes are not "
    "stored."
)

_RECORD_ERRORS = """
(function () {
  var root = document.documentElement;
  function record(text) { root.setAttribute("data-errors", root.dataset.errors + text + "\\n"); }
  window.onerror = function (message, source, line) { record(message + " (line " + line + ")"); };
  window.addEventListener("unhandledrejection", function (e) { record(String(e.reason)); });
})();
"""

_DRAW = """
function draw(id, data, layout) {
  Plotly.newPlot(id, data, layout, {
    displayModeBar: false,
    responsive: true,
  });
}
"""

_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f6f8f9; color: {INK}; font: 16px/1.55 {_FONT}; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 40px 20px 60px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }}
h2 {{ font-size: 20px; margin: 0 0 4px; }}
header > p {{ max-width: 46em; margin: 0 0 20px; }}
section {{ background: white; border: 1px solid #e3e8eb; border-radius: 10px;
  padding: 22px 24px; margin: 20px 0; }}
.meaning {{ color: #4d5a64; max-width: 52em; margin: 0 0 12px; }}
.cards + .fine {{ max-width: 80em; margin: 10px 0 0; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(175px, 1fr)); gap: 12px; }}
.card {{ background: white; border: 1px solid #e3e8eb; border-radius: 10px; padding: 14px 16px; }}
.card .name {{ color: {MUTED}; font-size: 13px; }}
.card .big {{ font-size: 22px; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }}
.fine {{ color: {MUTED}; font-size: 13px; line-height: 1.45; }}
.warn {{ background: #fdf1e7; border-left: 4px solid {OFF}; padding: 8px 14px; }}
.aside {{ background: #eef5f8; border-left: 4px solid {ON}; padding: 8px 14px; margin: 0 0 14px; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 15px; }}
th, td {{ padding: 7px 12px; text-align: right; border-bottom: 1px solid {GRID}; }}
td {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
th {{ color: {MUTED}; font-weight: 600; font-size: 13px; border-bottom-color: #b8c1c8; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
tr.group td {{ border-top: 1px solid #b8c1c8; }}
tr.sub td {{ color: {MUTED}; font-size: 14px; }}
tr.sub td:first-child {{ padding-left: 18px; }}
table.costs th:not(:first-child) {{ width: 17%; }}
td.best {{ font-weight: 700; color: {ON}; }}
table.sites :is(th, td) {{ padding: 4px 6px; font-size: 12px; }}
table.sites :is(th, td):nth-child(-n+3) {{ text-align: left; }}
.verdicts {{ padding-left: 22px; }}
.verdicts li {{ margin-bottom: 12px; }}
code {{ font-size: 0.92em; font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
summary {{ cursor: pointer; color: {ON}; font-weight: 600; }}
footer {{ color: {MUTED}; font-size: 13px; margin-top: 24px; }}
@media (max-width: 640px) {{ main {{ padding: 20px 10px; }} section {{ padding: 16px 12px; }} }}
@media print {{ body {{ background: white; }} section {{ break-inside: avoid; }} }}
"""
