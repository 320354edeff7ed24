"""Figures of a page: line, scatter, bar, heatmap and raster, with one layout and its colours.

Texts may hold anything: what Plotly would read as markup is escaped here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, ClassVar

from isospike.report.numbers import Number, si

ON, OFF, INK, MUTED, GRID, EDGE = "#1f6f8b", "#d1622b", "#22303a", "#6b7883", "#e7ebee", "#b8c1c8"
PALETTE = (ON, OFF, "#7b5ea7", "#c99a2e", "#5b8c5a", "#b5838d", "#3a9db0", "#7f4f24")
"""Colours of series that have none of their own, in this order."""
SCALE = ((0.0, "#f3e3d3"), (0.5, "#a9cdd2"), (1.0, "#1f6f8b"))
"""Colours of a heatmap, from its least to its largest value."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

Band = tuple[Number, Number]


@dataclass(frozen=True)
class Figure:
    """One Plotly figure.

    Attributes:
        name: Of its element; one page has each name once.
        label: What it shows, for those who cannot see it.
        height: In pixels.
        data: Plotly's traces.
        layout: Plotly's layout.
    """

    kind: ClassVar[str] = "figure"

    name: str
    label: str
    height: int
    data: tuple[dict[str, Any], ...]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One axis of a figure.

    Attributes:
        title: Below or beside it.
        log: Whether it is logarithmic; values that are not positive are then left out.
        limits: The smallest and the largest value shown.
        ticks: Label of each tick by its value; Plotly's choice by default.
        every: Distance of ticks.
        from_zero: Whether it begins at 0.
        reversed: Whether it runs downwards.
        quiet: Whether to leave out its grid and the marks of its ticks.
    """

    title: str = ""
    log: bool = False
    limits: tuple[Number, Number] | None = None
    ticks: Mapping[Number, str] | None = None
    every: Number | None = None
    from_zero: bool = False
    reversed: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        name: In the legend and beside the pointer.
        x, y: The points; a None in ``y`` leaves a gap.
        colour: One of :data:`PALETTE` by default.
        dash: ``solid``, ``dash`` or ``dot``; empty for marks without a line.
        symbol: Plotly's name of the mark; empty for a line without marks.
        width: Of the line, in pixels.
        mark: Size of the marks, in pixels.
        spread: Half the length of the bar at each point.
        hover: Text beside the pointer at each point, above the numbers.
        legend: Whether the legend shows it.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number | None]
    colour: str = ""
    dash: str = "solid"
    symbol: str = "circle"
    width: Number = 2
    mark: Number = 5
    spread: Sequence[Number] | None = None
    hover: Sequence[str] = field(default=())
    legend: bool = True


def line(
    name: str,
    label: str,
    series: Sequence[Series],
    x: Axis | str = "",
    y: Axis | str = "",
    *,
    height: int = 400,
    title: str = "",
    levels: Mapping[str, Number] | None = None,
    bands: Sequence[Band] = (),
    legend: bool = True,
) -> Figure:
    """Lines with marks, one for each series.

    Args:
        name: Of the figure's element, without spaces.
        label: What the figure shows, for those who cannot see it.
        series: The lines.
        x: The horizontal axis, or its title.
        y: The vertical axis, or its title.
        height: In pixels.
        title: Above the figure, for figures in a row.
        levels: Horizontal dotted lines, by their label.
        bands: Shaded ranges of x.
        legend: Whether to explain the colours above the figure.

    Returns:
        The figure.
    """
    across, up = _axis_of(x), _axis_of(y)
    coloured = [
        s if s.colour else replace(s, colour=PALETTE[i % len(PALETTE)])
        for i, s in enumerate(series)
    ]
    values = [float(v) for s in series for v in s.y if v is not None]
    values += [float(v) for v in (levels or {}).values()]
    shapes = [_band(low, high) for low, high in bands]
    shapes += [_level(text, value) for text, value in (levels or {}).items()]
    parts: dict[str, Any] = {
        "xaxis": _axis(across, [float(v) for s in series for v in s.x]),
        "yaxis": _axis(up, values),
        "shapes": shapes,
        "showlegend": legend,
    }
    if title:
        parts["title"] = _title(title)
    traces = tuple(_trace(s, log=up.log) for s in coloured)
    return Figure(name, label, height, traces, plot_layout(**parts))


def scatter(
    name: str,
    label: str,
    series: Sequence[Series],
    x: Axis | str = "",
    y: Axis | str = "",
    **more: Any,
) -> Figure:
    """Marks without lines, 8 pixels wide unless a series says otherwise.

    Args:
        name: As in :func:`line`, as are all others.
        label: What the figure shows.
        series: The points of each colour.
        x: The horizontal axis.
        y: The vertical axis.
        more: Other arguments of :func:`line`.

    Returns:
        The figure.
    """
    marks = [replace(s, dash="", mark=8 if s.mark == 5 else s.mark) for s in series]
    figure = line(name, label, marks, x, y, **more)
    return replace(figure, layout={**figure.layout, "hovermode": "closest"})


def bar(
    name: str,
    label: str,
    values: Mapping[str, Number],
    axis: str,
    *,
    colour: str = ON,
    hover: Sequence[str] = (),
) -> Figure:
    """Horizontal bars, the first one on top, each with its value at its end.

    Args:
        name: As in :func:`line`.
        label: What the figure shows.
        values: Length of each bar, by its name.
        axis: Title of the horizontal axis.
        colour: Of all bars.
        hover: Text beside the pointer at each bar, below its value.

    Returns:
        The figure.
    """
    lengths = list(values.values())
    below = [f"<br>{_plain(text)}" for text in hover] or [""] * len(lengths)
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": lengths,
        "y": [_plain(text) for text in values],
        "text": [si(v) for v in lengths],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": below,
        "marker": {"color": colour, "opacity": 0.85},
        "hovertemplate": f"%{{y}}<br>%{{text}} {_plain(axis)}%{{customdata}}<extra></extra>",
    }
    layout = plot_layout(
        # Room at the right for the numbers at the ends of the bars.
        xaxis={"title": {"text": _plain(axis)}, "range": [0, 1.16 * max(lengths, default=0) or 1]},
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category", "ticksuffix": " "},
        bargap=0.35,
        margin={"l": 64, "r": 24, "t": 28, "b": 56},
        showlegend=False,
        hovermode="closest",
    )
    return Figure(name, label, 94 + 28 * len(lengths), (trace,), layout)


def heatmap(
    name: str,
    label: str,
    values: Sequence[Sequence[Number | None]],
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
    *,
    axes: tuple[str, str] = ("", ""),
    limits: tuple[Number, Number] | None = None,
    title: str = "",
    texts: str = "",
    scale: Any = SCALE,
) -> Figure:
    """A cell of colour for each value, the first row on top.

    Args:
        name: As in :func:`line`.
        label: What the figure shows.
        values: Row by row; rows may differ in length, None and what is not finite is left white.
        x: Labels of the columns; 1, 2, ... by default.
        y: Labels of the rows; 1, 2, ... by default.
        axes: Titles of the columns and of the rows.
        limits: Values at both ends of the colour scale.
        title: Above the figure.
        texts: Format in which each cell shows its value, such as ``.2f``; none by default.
        scale: Colours, as Plotly takes them.

    Returns:
        The figure.
    """
    cells = [[None if v is None or not math.isfinite(v) else float(f"{v:.4g}") for v in row]
             for row in values]  # fmt: skip
    wide = max(map(len, cells), default=0)
    names = [f"{axis} " if axis else "" for axis in map(_plain, axes)]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": [_label(v) for v in x] if x is not None else list(range(1, wide + 1)),
        "y": [_label(v) for v in y] if y is not None else list(range(1, len(cells) + 1)),
        "z": cells,
        "hovertemplate": f"{names[1]}%{{y}}, {names[0]}%{{x}}: %{{z}}<extra></extra>",
        "colorscale": [list(stop) for stop in scale] if not isinstance(scale, str) else scale,
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "showscale": not texts,
        "xgap": 1,
        "ygap": 1,
    }
    if limits is not None:
        trace |= {"zmin": limits[0], "zmax": limits[1]}
    if texts:
        trace |= {
            "text": [["" if v is None else format(v, texts) for v in row] for row in cells],
            "texttemplate": "%{text}",
        }
    parts = _heatmap_axes(axes, x is not None, y is not None, wide, len(cells))
    if title:
        parts["title"] = _title(title)
    if x is not None:
        parts["margin"] = {"l": 64, "r": 24, "t": 80 if title else 44, "b": 16}
    height = 150 + 26 * max(len(cells), 3)
    return Figure(name, label, height, (trace,), plot_layout(**parts))


def matrix(
    name: str,
    label: str,
    values: Sequence[Sequence[Number]],
    *,
    limits: tuple[Number, Number],
    title: str = "",
    scale: str = "Viridis",
    height: int = 230,
) -> Figure:
    """A square matrix as a small picture: no gaps, ticks or scale.

    Args:
        name: As in :func:`line`.
        label: What the figure shows.
        values: Row by row, the first row on top.
        limits: Values at both ends of the colour scale.
        title: Above the figure; it may say the limits.
        scale: Plotly's name of the colours.
        height: In pixels.

    Returns:
        The figure.
    """
    figure = heatmap(name, label, values, limits=limits, title=title, scale=scale)
    (trace,) = figure.data
    quiet = {"showticklabels": False, "ticks": "", "showline": False, "showgrid": False}
    layout = plot_layout(
        title=_title(title),
        xaxis={**quiet, "constrain": "domain"},
        yaxis={**quiet, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
        margin={"l": 8, "r": 8, "t": 38, "b": 8},
    )
    plain = {**trace, "xgap": 0, "ygap": 0, "showscale": False}
    return Figure(name, label, height, (plain,), layout)


def raster(
    name: str,
    label: str,
    spikes: Mapping[str, Iterable[tuple[Number, Number]]],
    x: Axis,
    neurons: int,
    *,
    colours: Sequence[str] = (ON, OFF),
    bands: Sequence[Band] = (),
    line_at: Sequence[Number] = (),
) -> Figure:
    """A tick for each spike: time to the right, neurons upwards.

    Args:
        name: As in :func:`line`.
        label: What the figure shows.
        spikes: ``(time, neuron)`` of each spike, by the group of neurons.
        x: The axis of time, with its limits.
        neurons: Number of neurons.
        colours: Of the groups.
        bands: Shaded ranges of time.
        line_at: Heights of thin lines between neurons.

    Returns:
        The figure.
    """
    traces = []
    for (group, points), colour in zip(spikes.items(), colours, strict=False):
        along: list[Number | None] = []
        up: list[Number | None] = []
        for time, neuron in points:
            # One path with gaps draws a hundred thousand ticks; as many markers would not.
            along += [time, time, None]
            up += [neuron - 0.42, neuron + 0.42, None]
        traces.append({
            "type": "scatter", "mode": "lines", "name": _plain(group),
            "x": along or [None], "y": up or [None],
            "line": {"color": colour, "width": 2}, "hoverinfo": "skip",
        })  # fmt: skip
    thin = {"color": MUTED, "width": 1}
    layout = plot_layout(
        xaxis={**_axis(x, []), "showgrid": False, "ticks": ""},
        yaxis={"title": {"text": "neuron"}, "range": [-1, neurons], "showgrid": False},
        shapes=[
            *(_band(low, high) for low, high in bands),
            *({**_across(height), "line": thin} for height in line_at),
        ],
        showlegend=len(spikes) > 1,
        hovermode=False,
    )
    return Figure(name, label, min(720, max(260, 150 + 5 * neurons)), tuple(traces), layout)


def plot_layout(**parts: Any) -> dict[str, Any]:
    """A Plotly layout in the colours and type of the pages.

    Args:
        parts: Parts of the layout; ``xaxis`` and ``yaxis`` are needed.

    Returns:
        The layout.
    """
    axis = {
        "gridcolor": GRID,
        "linecolor": EDGE,
        "showline": True,
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": EDGE,
    }
    layout: dict[str, Any] = {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 24, "t": 44, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "color": INK}},
        **parts,
    }
    for name in ("xaxis", "yaxis"):
        layout[name] = {**axis, **layout[name]}
    return layout


def _trace(series: Series, *, log: bool) -> dict[str, Any]:
    finite = [
        None if v is None or not math.isfinite(v) or (log and v <= 0) else v for v in series.y
    ]
    mode = "+".join(part for part, on in (("lines", series.dash), ("markers", series.symbol)) if on)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode,
        "name": _plain(series.name),
        "showlegend": series.legend,
        "x": list(series.x),
        "y": finite,
        "hovertemplate": "%{fullData.name}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    }
    if series.dash:
        trace["line"] = {"color": series.colour, "width": series.width, "dash": series.dash}
    if series.symbol:
        trace["marker"] = {"color": series.colour, "symbol": series.symbol, "size": series.mark}
        if "open" in series.symbol or "thin" in series.symbol:
            trace["marker"]["line"] = {"width": 2, "color": series.colour}
    if series.hover:
        trace["customdata"] = ["<br>".join(map(_plain, h.splitlines())) for h in series.hover]
        trace["hovertemplate"] = "%{customdata}<br>%{y:.4g}<extra></extra>"
    if series.spread is not None:
        trace["error_y"] = {"array": list(series.spread), "thickness": 1, "width": 2}
    return trace


def _heatmap_axes(
    titles: tuple[str, str], named_columns: bool, named_rows: bool, columns: int, rows: int
) -> dict[str, Any]:
    """Both axes of a heatmap: names as they are, numbers not more than fit."""
    quiet = {"showgrid": False, "ticks": "", "showline": False}
    across: dict[str, Any] = {"dtick": columns // 16 or 1}
    if named_columns:
        across = {"side": "top", "type": "category"}
    down: dict[str, Any] = {"type": "category"} if named_rows else {"dtick": rows // 24 or 1}
    return {
        "xaxis": {**quiet, **across, "title": {"text": _plain(titles[0])}},
        "yaxis": {**quiet, **down, "title": {"text": _plain(titles[1])}, "autorange": "reversed"},
    }


def _axis_of(axis: Axis | str) -> Axis:
    return Axis(axis) if isinstance(axis, str) else axis


def _axis(axis: Axis, values: Sequence[Number]) -> dict[str, Any]:
    plotted: dict[str, Any] = {"title": {"text": _plain(axis.title)}}
    if axis.log:
        plotted |= {"type": "log", **_decades(values)}
    if axis.limits is not None:
        ends = [math.log10(v) for v in axis.limits] if axis.log else list(axis.limits)
        plotted["range"] = ends[::-1] if axis.reversed else ends
    elif axis.reversed:
        plotted["autorange"] = "reversed"
    if axis.ticks is not None:
        plotted["tickvals"] = list(axis.ticks)
        plotted["ticktext"] = [_plain(text) for text in axis.ticks.values()]
    if axis.every is not None:
        plotted["dtick"] = axis.every
    if axis.quiet:
        plotted |= {"showgrid": False, "ticks": ""}
    if axis.from_zero:
        plotted["rangemode"] = "tozero"
    return plotted


def _decades(values: Sequence[Number]) -> dict[str, Any]:
    """Ticks of a log axis at 1, 2 and 5 of every decade; at 1 only where there are many decades."""
    positive = [v for v in values if v > 0 and math.isfinite(v)]
    if not positive:
        return {}
    low, high = (math.floor(math.log10(v)) for v in (min(positive), max(positive)))
    digits = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [d * 10.0**k for k in range(low - 1, high + 2) for d in digits]
    return {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}


def _band(low: Number, high: Number) -> dict[str, Any]:
    return {
        "type": "rect", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1,
        "fillcolor": "#f3f5f7", "line": {"width": 0}, "layer": "below",
    }  # fmt: skip


def _across(height: Number) -> dict[str, Any]:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}


def _level(text: str, value: Number) -> dict[str, Any]:
    font = {"size": 11, "color": MUTED}
    return {
        **_across(value),
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
        "label": {"text": _plain(text), "textposition": "end", "font": font},
    }


def _title(text: str) -> dict[str, Any]:
    return {"text": _plain(text), "font": {"size": 14}, "x": 0.01}


def _plain(text: str) -> str:
    # Plotly draws a subset of HTML and knows the entities of these three characters.
    return escape(text, quote=False)


def _label(value: Any) -> Any:
    return _plain(value) if isinstance(value, str) else value
