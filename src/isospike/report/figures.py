"""Figures of a page: line, scatter, bar, heatmap and raster, with one layout and its colours.

A figure holds what it shows; :mod:`isospike.report.drawing` makes a picture of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from isospike.report.numbers import Number, si
from isospike.report.table import Table

ON, OFF, INK, MUTED = "#1f6f8b", "#b4511f", "var(--ink)", "var(--muted)"
PALETTE = (ON, OFF, "#7b5ea7", "#9a7416", "#4b7a4a", "#9a6a71", "#2b7f90", "#7f4f24")
"""Colours of series that have none of their own, in this order."""
SCALE = ("#f3e3d3", "#a9cdd2", "#1f6f8b")
"""Colours of a heatmap, from its least to its largest value."""
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30",
           "#fde725")  # fmt: skip
"""Colours of a matrix, the common scale of that name."""

Band = tuple[Number, Number]


@dataclass(frozen=True)
class Axis:
    """One axis of a figure.

    Attributes:
        title: Below or beside it.
        log: Whether it is logarithmic; values that are not positive are then left out.
        limits: The smallest and the largest value shown.
        ticks: Label of each tick by its value; round numbers by default.
        every: Distance of ticks.
        from_zero: Whether it begins at 0.
        quiet: Whether to leave out its grid and the marks of its ticks.
    """

    title: str = ""
    log: bool = False
    limits: tuple[Number, Number] | None = None
    ticks: Mapping[Number, str] | None = None
    every: Number | None = None
    from_zero: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        name: In the legend and beside the pointer.
        x, y: The points; a None in ``y`` leaves a gap.
        colour: One of :data:`PALETTE` by default.
        dash: ``solid``, ``dash`` or ``dot``; empty for marks without a line.
        symbol: One of :data:`SYMBOLS`, or that with ``-open``; empty for a line without marks.
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


SYMBOLS = ("circle", "square", "triangle-up", "triangle-down", "diamond", "cross", "star",
           "hexagon", "x-thin")  # fmt: skip
"""Marks of a series."""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, the first one on top.

    Attributes:
        values: Length of each bar, by its name.
        colour: Of all bars.
        hover: Text beside the pointer at each bar.
    """

    values: Mapping[str, Number]
    colour: str
    hover: Sequence[str] = ()


@dataclass(frozen=True)
class Cells:
    """A cell of colour for each value, the first row on top.

    Attributes:
        values: Row by row; rows may differ in length, None is left empty.
        columns: Labels of the columns; 1, 2, ... by default.
        rows: Labels of the rows; 1, 2, ... by default.
        limits: Values at both ends of the scale; those of the cells by default.
        scale: Colours from the least to the largest value, equally far apart.
        texts: Format in which each cell shows its value; empty for a scale beside the cells.
        bare: Whether to leave out gaps, labels and scale.
    """

    values: Sequence[Sequence[float | None]]
    columns: Sequence[str] | None = None
    rows: Sequence[str] | None = None
    limits: tuple[Number, Number] | None = None
    scale: Sequence[str] = SCALE
    texts: str = ""
    bare: bool = False


@dataclass(frozen=True)
class Spikes:
    """A short line for each spike: time to the right, neurons upwards.

    Attributes:
        groups: ``(time, neuron)`` of each spike, by the group of neurons.
        neurons: Number of neurons.
        colours: Of the groups.
        line_at: Heights of thin lines between neurons.
    """

    groups: Mapping[str, Sequence[tuple[Number, Number]]]
    neurons: int
    colours: Sequence[str]
    line_at: Sequence[Number] = ()


@dataclass(frozen=True)
class Figure:
    """What a figure shows.

    Attributes:
        name: Of its element; one page has each name once.
        label: What it shows, for those who cannot see it.
        height: In pixels.
        marks: Series, or one group of bars, cells or spikes.
        x: The horizontal axis.
        y: The vertical axis.
        title: Above the figure, for figures in a row.
        levels: Horizontal dotted lines, by their label.
        bands: Shaded ranges of x.
        legend: Whether to explain the colours above the figure.

    >>> Figure("rates", "Firing rates.", 200, (Series("rate", (0, 1), (0.2, 0.3)),)).kind
    'figure'
    """

    kind: ClassVar[str] = "figure"

    name: str
    label: str
    height: int
    marks: tuple[Series, ...] | Bars | Cells | Spikes
    x: Axis = Axis()
    y: Axis = Axis()
    title: str = ""
    levels: Mapping[str, Number] = field(default_factory=dict)
    bands: Sequence[Band] = ()
    legend: bool = True

    def table(self) -> Table:
        """The numbers behind the figure, a row for each mark."""
        x, y, marks = self.x.title or "x", self.y.title or "y", self.marks
        head: tuple[str, ...]
        rows: list[tuple[Any, ...]]
        if isinstance(marks, Bars):
            head, rows = ("", x), list(marks.values.items())
        elif isinstance(marks, Cells):
            head = (y, x, "value")
            rows = [
                (_name(marks.rows, i), _name(marks.columns, j), value)
                for i, row in enumerate(marks.values)
                for j, value in enumerate(row)
            ]
        elif isinstance(marks, Spikes):
            head = ("", "time", "neuron")
            rows = [(name, *spike) for name, group in marks.groups.items() for spike in group]
        else:
            spread = any(s.spread for s in marks)
            head = ("", x, y, *(["plus or minus"] if spread else []))
            rows = [
                (s.name, a, b, *([s.spread[i] if s.spread else None] if spread else []))
                for s in marks
                for i, (a, b) in enumerate(zip(s.x, s.y, strict=False))
            ]
        return Table(self.label, head, tuple(rows), small=True)

    def rows(self) -> list[Sequence[Any]]:
        """The table's headings, then its rows; None for what is not finite, as JSON takes it."""
        table = self.table()
        return [table.head, *([_finite(cell) for cell in row] for row in table.rows)]


def _finite(cell: Any) -> Any:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _name(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels is not None else str(index + 1)


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
    coloured = tuple(
        s if s.colour else replace(s, colour=PALETTE[i % len(PALETTE)])
        for i, s in enumerate(series)
    )
    return Figure(
        name, label, height, coloured, _axis_of(x), _axis_of(y), title, dict(levels or {}),
        tuple(bands), legend,
    )  # fmt: skip


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
    return line(name, label, marks, x, y, **more)


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
    shown = [f"{si(v)} {axis}" for v in values.values()]
    texts = [f"{a}\n{b}" for a, b in zip(shown, hover, strict=True)] if hover else shown
    height = 80 + 28 * len(values)
    return Figure(name, label, height, Bars(dict(values), colour, texts), Axis(axis))


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
    scale: Sequence[str] = SCALE,
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
        scale: Colours from the least to the largest value, equally far apart.

    Returns:
        The figure.
    """
    columns, rows = (None if names is None else tuple(map(str, names)) for names in (x, y))
    marks = Cells(_rounded(values), columns, rows, limits, scale, texts)
    height = 110 + 26 * max(len(values), 3)
    return Figure(name, label, height, marks, Axis(axes[0]), Axis(axes[1]), title)


def matrix(
    name: str,
    label: str,
    values: Sequence[Sequence[Number]],
    *,
    limits: tuple[Number, Number],
    title: str = "",
    scale: Sequence[str] = VIRIDIS,
    height: int = 230,
) -> Figure:
    """A square matrix as a small picture: no gaps, ticks or scale.

    Args:
        name: As in :func:`line`.
        label: What the figure shows.
        values: Row by row, the first row on top.
        limits: Values at both ends of the colour scale.
        title: Above the figure; it may say the limits.
        scale: Colours from the least to the largest value, equally far apart.
        height: In pixels.

    Returns:
        The figure.
    """
    marks = Cells(_rounded(values), limits=limits, scale=scale, bare=True)
    return Figure(name, label, height, marks, title=title)


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
    groups = {group: tuple(points) for group, points in spikes.items()}
    marks = Spikes(groups, neurons, tuple(colours), tuple(line_at))
    height = min(720, max(260, 150 + 5 * neurons))
    return Figure(name, label, height, marks, x, Axis("neuron"), bands=tuple(bands))


def _rounded(values: Sequence[Sequence[Number | None]]) -> tuple[tuple[float | None, ...], ...]:
    """Four digits of each value; None for what is not finite."""
    return tuple(
        tuple(None if v is None or not math.isfinite(v) else float(f"{v:.4g}") for v in row)
        for row in values
    )


def _axis_of(axis: Axis | str) -> Axis:
    return Axis(axis) if isinstance(axis, str) else axis
