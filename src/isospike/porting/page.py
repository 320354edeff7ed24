"""The page of a port: its sections and figures."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from isospike.codes import CODES, Law
from isospike.energy import TABLES, Counts, estimate_energy
from isospike.porting.costs import MEMORY_MEANING, shown_costs, winner_text
from isospike.porting.records import CurvePoint, LayerSum, Raster, SiteReport
from isospike.report.figures import INK, MUTED, OFF, ON, Axis, Figure, Series, bar, line, scatter
from isospike.report.figures import raster as raster_figure
from isospike.report.numbers import number, si
from isospike.report.page import Block, Details, Items, Note, Section, Slider, swatch
from isospike.report.table import Columns, Table

Points = list[tuple[int, float, str]]
"""Number of the site, value, and the text beside the pointer."""
Marks = Mapping[str, tuple[str, str]]
"""Colour and symbol by name."""

KIND_MARKS: Marks = {
    "linear": ("#33658a", "circle"),
    "conv": ("#2a9d8f", "square"),
    "query": ("#e07a5f", "triangle-up"),
    "key": ("#b5838d", "triangle-down"),
    "value": ("#81a263", "diamond"),
    "probability": ("#8d6cab", "cross"),
    "left": ("#b0723a", "star"),
    "right": ("#5c7c8a", "hexagon"),
}

DIMENSION_MARKS: Marks = {
    "95 % of variance": ("#33658a", "circle"),
    "95 % of variance, at least": ("#33658a", "circle-open"),
    "participation ratio": ("#c99a2e", "diamond"),
}


def curve_section(
    curve: Sequence[CurvePoint],
    law: Law | None,
    this_port: tuple[str, int, float],
    max_error: float | None,
) -> Section:
    """Error against steps of every code, the fitted law, and this port's own steps and error.

    Args:
        curve: Error of each code and number of steps.
        law: The fitted law, if any.
        this_port: Code, steps and error of the port.
        max_error: The error that was asked for, if any.

    Returns:
        The section.
    """
    heading = "Error against time steps"
    if not any(p.error > 0 for p in curve):
        return Section(heading, "No curve was measured for this port.")
    meaning = Markup(
        "Error of the whole model's output when every site uses the same code and the same number "
        "of steps. Lower and further left is better. The points are calibrated on a part of the "
        "inputs, the port itself (the ring) on all of them."
    )
    if law is not None:
        meaning += _law_meaning(law)
    code, steps, error = this_port
    figure = _curve_figure(curve, law, (steps, error), max_error)
    return Section(heading, meaning, (figure, *_steps_slider(curve, law, code)))


def _steps_slider(curve: Sequence[CurvePoint], law: Law | None, code: str) -> tuple[Block, ...]:
    """Error and spikes at other numbers of steps, as measured or by the law."""
    points = {p.steps: p for p in curve if p.code == code}
    if len(points) < 2:
        return ()
    steps = sorted(points)
    fitted = law if law is not None and law.code == code and law.code in CODES else None
    if fitted is not None:
        steps = list(range(min(steps), max(steps) + 1))
    options = {}
    for t in steps:
        cards = {}
        if t in points:
            cards = {"Error": f"{number(points[t].error)}\nmeasured",
                     "Spikes": f"{si(points[t].spikes)}\nper token"}  # fmt: skip
        elif fitted is not None:
            cards = {"Error": f"{number(fitted.error(t))}\nby the law"}
        options[str(t)] = {"Steps": f"{t}\n{code}", **cards}
    return (Slider("Time steps", options, str(steps[-1])),)


def _law_meaning(law: Law) -> Markup:
    form = law.kind.error_law if law.code in CODES else law.code
    base, _, power = form.partition("^")
    floor = (
        f"no number of steps brings the error below its floor, {number(law.floor)}"
        if law.floor
        else "no floor was found below which steps do not help"
    )
    return Markup(
        " The dashed line is the fitted law: the code's own error, which falls as "
        "{}<sup>{}</sup>, to the power {}, times {}; {}. It is fitted to the calibration points "
        "drawn as small crosses."
    ).format(base, power.replace("-", "−"), number(law.exponent), number(law.scale), floor)


def steps_section(sites: Sequence[SiteReport], predicted: float | None, error: float) -> Section:
    """Steps that an allocation gave each site.

    Args:
        sites: The sites in order of execution.
        predicted: Error that the allocation predicts.
        error: Error measured.

    Returns:
        The section.
    """
    meaning = (
        "Steps were allocated: every channel has the resolution with which all values add the same "
        "error to the output, and a site takes the steps that its widest channel needs. Sensitive "
        f"sites get more. The error predicted from the sensitivities is "
        f"{number(predicted)}, measured {number(error)}. Hover for a site's "
        "part of the squared error."
    )
    groups: dict[str, Points] = {}
    for i, site in enumerate(sites, 1):
        groups.setdefault(site.kind, []).append((i, float(site.steps), _site_text(site)))
    axis = Axis("time steps", from_zero=True, every=2)
    figure = sites_figure([s.layer for s in sites], "plot-steps", axis, groups, KIND_MARKS)
    return Section("Steps by site", meaning, (figure,))


def layers_section(layers: Sequence[LayerSum], code: str) -> Section:
    """Spikes of each layer.

    Args:
        layers: The layers in order of execution.
        code: Name of the code, for its colour.

    Returns:
        The section.
    """
    hover = [
        f"{si(layer.synaptic_ops)} synaptic operations\n"
        + (f"{layer.spikes / layer.neuron_updates:.3g}" if layer.neuron_updates else "–")
        + " spikes per neuron and step"
        for layer in layers
    ]
    figure = bar(
        "plot-layers",
        "Spikes per token by layer",
        {layer.name: layer.spikes for layer in layers},
        "spikes per token",
        colour=_code_colour(code),
        hover=hover,
    )
    meaning = "Spikes emitted per token, added up over the sites of each layer."
    return Section("Spikes by layer", meaning, (figure,))


def errors_section(sites: Sequence[SiteReport]) -> Section:
    """Coding error of each site.

    Args:
        sites: The sites in order of execution.

    Returns:
        The section.
    """
    exact = sum(s.error <= 0 for s in sites)
    meaning = (
        "Error each site's code makes on its own values, relative to their spread. One mark per "
        "matrix-product input, in order of execution."
    )
    if exact:
        meaning += f" {exact} without any error cannot be shown on this scale."
    groups: dict[str, Points] = {}
    for i, site in enumerate(sites, 1):
        if site.error > 0:
            groups.setdefault(site.kind, []).append((i, site.error, _site_text(site)))
    axis = Axis("coding error (relative RMS)", log=True)
    figure = sites_figure([s.layer for s in sites], "plot-errors", axis, groups, KIND_MARKS)
    return Section("Coding error by site", meaning, (figure,))


def dimension_section(sites: Sequence[SiteReport]) -> Section:
    """Effective dimension of each site.

    Args:
        sites: The sites in order of execution.

    Returns:
        The section.
    """
    heading = "Effective dimension by site"
    known, at_least, participation = DIMENSION_MARKS
    groups: dict[str, Points] = {known: [], at_least: [], participation: []}
    for i, s in enumerate(sites, 1):
        if s.pca95:
            groups[at_least if s.capped else known].append((i, float(s.pca95), _site_text(s)))
        if s.participation:
            groups[participation].append((i, s.participation, _site_text(s)))
    if not any(groups.values()):
        return Section(heading, "Not measured for this port.")
    capped = len(groups[at_least])
    meaning = (
        "How many directions each site's values really use: components holding 95 % of the "
        "variance, and the participation ratio, which weighs every component."
    )
    if capped:
        marks = "mark is a lower bound" if capped == 1 else "marks are lower bounds"
        meaning += f" {capped} hollow {marks}: there were too few tokens to see more components."
    axis = Axis("dimensions", log=True)
    figure = sites_figure([s.layer for s in sites], "plot-dimension", axis, groups, DIMENSION_MARKS)
    return Section(heading, meaning, (figure,))


def raster_section(raster: Raster | None, code: str) -> Section:
    """Spikes of one input at a site of this code.

    Args:
        raster: The spikes; None if not recorded.
        code: Name of the code at that site.

    Returns:
        The section.
    """
    heading = "Spikes of one input"
    if raster is None:
        return Section(heading, "No raster was recorded for this port.")
    paired = code in CODES and CODES[code].neurons == 2
    colours = Markup("Each row is one neuron.")
    if paired:
        colours = Markup(
            "{} ON neurons carry positive digits, {} OFF neurons, above the line, negative ones."
        ).format(swatch(ON), swatch(OFF))
    meaning = Markup(
        "Every spike of the first neurons at <code>{}</code> while the model reads “{}”. Each "
        "token is shown for {} steps. {}"
    ).format(raster.site, raster.text, raster.steps, colours)
    return Section(heading, meaning, (_raster_figure(raster, paired),))


def cost_section(counts: Counts, error: float, code: str) -> Section:
    """Operations, memory and energy of three machines, and which one takes least.

    Args:
        counts: Operations per token.
        error: Error of the port.
        code: Name of its code.

    Returns:
        The section.
    """
    equal = (
        "The quantised network with the same levels computes the same numbers, so it has the same "
        f"error, {number(error)}. Spikes bring no accuracy here; they can only lower the "
        "cost."
    )
    if code == "bernoulli":
        equal = (
            "A quantised network with the same levels would round where this code draws at random: "
            "its error is smaller. Spikes bring no accuracy here; they can only lower the cost."
        )
    verdicts = tuple(
        Markup('<b>{}.</b> {}<div class="fine">{} Source: {}.</div>').format(
            table.name, winner_text(estimate_energy(counts, table)), table.note, table.source
        )
        for table in TABLES
    )
    return Section(
        "What it costs",
        "Operations, memory and energy per token of three machines that run the same model. "
        "Operations are measured; energies are those operations times published figures. "
        "The least energy under each table is bold.",
        (
            Note(equal, "aside"),
            shown_costs(counts),
            Items(verdicts, numbered=True),
            Note(MEMORY_MEANING),
        ),
    )


def float_section(
    counts: Counts,
    circuits: Table | None,
    exceptions: Sequence[str],
    in_float: Mapping[str, Sequence[str]],
) -> Section:
    """What is computed in float, and what circuits compute in its place.

    Args:
        counts: Operations per token.
        circuits: Table of the circuits; None without.
        exceptions: Products without a binary operand.
        in_float: Operators without a circuit, by module.

    Returns:
        The section.
    """
    left = counts.float_ops if counts.spiking_float_ops is None else counts.spiking_float_ops
    kept = ", ".join(f"{kind} ({si(count)})" for kind, count in left.items())
    blocks: list[Block] = [
        f"Computed in float at the soma, operations per token: {kept}."
        if kept
        else "No float operation was counted at the soma."
    ]
    if circuits is not None:
        blocks += [
            "Softmax, normalisation, activations and gates run on spikes: they add, compare and "
            "reset. Gates and shifts stand for products.",
            Details(f"Show {len(circuits.rows)} circuits, per token", (circuits,)),
        ]
    if in_float:
        lines = tuple(Markup("<code>{}</code>: {}").format(name or "the model", ", ".join(ops))
                      for name, ops in in_float.items())  # fmt: skip
        blocks += [f"Functions without a circuit ({len(lines)} modules):", Items(lines)]
    if exceptions:
        names = tuple(Markup("<code>{}</code>").format(name) for name in exceptions)
        blocks += [
            f"Matrix products without a binary operand ({len(names)}):",
            Items(names),
        ]
    else:
        blocks.append("Matrix products without a binary operand: none.")
    meaning = "The part of the model that does not run on spikes."
    return Section("What stays in float", meaning, tuple(blocks))


def sites_section(sites: Sequence[SiteReport]) -> Section:
    """Every site, on demand.

    Args:
        sites: The sites in order of execution.

    Returns:
        The section.
    """
    columns: Columns = {
        "name": ("site", "code"), "kind": "kind", "code": "code", "steps": "steps",
        "neurons": ("neurons", "si"), "spikes": ("spikes", "si"),
        "synaptic_ops": ("synaptic ops", "si"), "neuron_updates": ("neuron updates", "si"),
        "macs": ("MACs", "si"), "error": "error", "pca95": "PCA-95",
        "participation": "part. ratio",
    }  # fmt: skip
    rows = [vars(s) | ({"pca95": f"≥ {s.pca95}"} if s.capped else {}) for s in sites]
    table = Table.of("Every site", rows, columns, small=True)
    meaning = "One row per matrix-product input, in order of execution; counts are per token."
    return Section(table.title, meaning, (Details(f"Show {len(rows)} sites", (table,)),))


# --------------------------------------------------------------------------- figures


def _curve_figure(
    curve: Sequence[CurvePoint],
    law: Law | None,
    this_port: tuple[int, float],
    max_error: float | None,
) -> Figure:
    shown = [p for p in curve if p.error > 0]  # a log axis has no zero
    series = []
    for code in dict.fromkeys(p.code for p in shown):
        points = sorted((p for p in shown if p.code == code), key=lambda p: p.steps)
        hover = [f"{code}, {p.steps} steps\n{si(p.spikes)} spikes per token" for p in points]
        x, y = [p.steps for p in points], [p.error for p in points]
        series.append(Series(code, x, y, _code_colour(code), mark=7, hover=hover))
    steps = [p.steps for p in shown] + [this_port[0]]
    errors = [p.error for p in shown]
    if law is not None and law.code in CODES:
        own = [p.steps for p in shown if p.code == law.code] + list(law.steps)
        series += _law_series(law, min(own), max(own))
        errors += [e for e in law.errors if e > 0]
    if this_port[1] > 0:
        errors.append(this_port[1])
        series.append(
            Series("this port", [this_port[0]], [this_port[1]], INK, dash="",
                   symbol="circle-open", mark=17)
        )  # fmt: skip
    levels = {}
    if max_error is not None and max_error > 0:
        errors.append(max_error)
        levels["asked for"] = max_error
    top = math.ceil(math.log2(max(steps))) + 1
    return line(
        "plot-curve",
        "Error against time steps for every code",
        series,
        Axis(
            "time steps",
            log=True,
            limits=(min(steps) / 1.15, max(steps) * 1.15),
            ticks={2**k: str(2**k) for k in range(top)},
        ),
        Axis(
            "error of the output (relative RMS)",
            log=True,
            limits=(min(errors) / 1.5, max(errors) * 1.5),
        ),
        height=460,
        levels=levels,
    )


def _law_series(law: Law, low: int, high: int) -> list[Series]:
    colour = _code_colour(law.code)
    ratio = max(high / low, 1.01)
    grid = [low * ratio ** (i / 120) for i in range(121)]
    return [
        Series("fitted law", grid, [law.error(t) for t in grid], colour, "dash", "", 1.5),
        Series("calibration", law.steps, law.errors, colour, "", "x-thin", mark=7),
    ]


def sites_figure(
    layers: Sequence[str], name: str, axis: Axis, groups: Mapping[str, Points], marks: Marks
) -> Figure:
    """Marks over the sites in order of execution, layers as bands.

    Args:
        layers: Layer of each site.
        name: Name of the figure's element.
        axis: The vertical axis.
        groups: The points of each colour, by its name in the legend.
        marks: Colour and symbol of each group.

    Returns:
        The figure.
    """
    series = []
    for group, points in groups.items():
        colour, symbol = marks.get(group, (MUTED, "circle"))
        hover = [text for _, _, text in points]
        x, y = [i for i, _, _ in points], [value for _, value, _ in points]
        if points:
            series.append(Series(group, x, y, colour, symbol=symbol, hover=hover))
    bands, labels, start = [], {}, 1
    for n, (layer, of_layer) in enumerate(groupby(layers)):
        end = start + len(list(of_layer))
        if n % 2:
            bands.append((start - 0.5, end - 0.5))
        labels[(start + end - 1) / 2] = ".".join(layer.split(".")[-2:])
        start = end
    across = Axis(
        "site, in order of execution, by layer",
        limits=(0.3, start - 0.3),
        ticks=labels,
        quiet=True,
    )
    return scatter(name, f"{axis.title} by site", series, across, axis, bands=bands)


def _site_text(site: SiteReport) -> str:
    share = "" if site.share is None else f"\n{site.share:.1%} of the squared error"
    return f"{site.name}\n{site.code}, {site.steps} steps{share}"


def _raster_figure(raster: Raster, paired: bool) -> Figure:
    half = raster.neurons // 2 if paired else raster.neurons
    groups: dict[str, list[tuple[int, int]]] = {"ON": [], "OFF": []} if paired else {"spikes": []}
    names = list(groups)
    for token, step, neuron in raster.spikes:
        groups[names[neuron >= half]].append((token * raster.steps + step, neuron))
    count = len(raster.tokens)
    ticks = {(t + 0.5) * raster.steps - 0.5: token for t, token in enumerate(raster.tokens)}
    return raster_figure(
        "plot-raster",
        "Spike raster of one input",
        groups,
        Axis(
            f"token, {raster.steps} steps each",
            limits=(-0.5, count * raster.steps - 0.5),
            ticks=ticks,
        ),
        raster.neurons,
        bands=[(t * raster.steps - 0.5, (t + 1) * raster.steps - 0.5) for t in range(1, count, 2)],
        line_at=[half - 0.5] if paired else [],
    )


def _code_colour(code: str) -> str:
    return CODES[code].colour if code in CODES else MUTED


def streams_section(table: Table) -> Section:
    """Error and spikes of each of several inputs."""
    return Section(
        "Each input",
        "The model reads several inputs side by side. An input's spikes are those of the sites "
        "that read what is made of it alone, divided by its own positions; its error is that of "
        "the first output that is made of it, or empty if there is none.",
        (table,),
    )


def choices_section(table: Table) -> Section:
    """How often the model chooses otherwise than in float."""
    return Section(
        "What the model chooses",
        "A choice by the largest scores, of the experts of a token say, is another where two "
        "scores are nearer to each other than the port's error. The token then meets other "
        "weights, and its error is large.",
        (table,),
    )
