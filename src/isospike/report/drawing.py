"""A figure as an SVG picture: no script, the page's colours, a line of text at each mark."""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from isospike.report.figures import INK, MUTED, Axis, Bars, Cells, Figure, Series, Spikes
from isospike.report.numbers import Number, number, si

GRID, EDGE, BAND = "var(--grid)", "var(--edge)", "var(--band)"
SIZE = 12
"""Of texts, in pixels."""
MOST_CELLS = 2500
"""More of them are one image."""


def draw(figure: Figure, width: int) -> Markup:
    """The figure as an SVG element.

    Colours of lines and texts are variables of the page's style sheet: ``--ink``, ``--muted``,
    ``--grid``, ``--edge``, ``--band``.

    Args:
        figure: What to show.
        width: Of the picture, in pixels; it scales with its place.

    Returns:
        The element. Every text is escaped.
    """
    marks = figure.marks
    if isinstance(marks, Bars):
        body, height = _bars(figure, marks, width)
    elif isinstance(marks, Cells):
        body, height = _cells(figure, marks, width)
    else:
        body, height = _plot(figure, marks, width)
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" font-size="{}" fill="{}">{}</svg>'
    ).format(width, _px(height), figure.label, SIZE, INK, Markup("").join(body))


@dataclass(frozen=True)
class Scale:
    """Where a value lies on an axis.

    Attributes:
        low: Value at the beginning.
        high: Value at the end.
        start: Pixel of the beginning.
        end: Pixel of the end.
        log: Whether equal ratios are equally far apart.
    """

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    def __call__(self, value: Number) -> Number:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def shows(self, value: Number | None) -> bool:
        """Whether the axis has a place for this value."""
        return value is not None and math.isfinite(value) and (not self.log or value > 0)


# --------------------------------------------------------------------------- axes


def _range(axis: Axis, values: Iterable[Number | None]) -> tuple[Number, Number]:
    """Smallest and largest value of an axis, with a little room around the points."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    if axis.limits is not None:
        return float(axis.limits[0]), float(axis.limits[1])
    if axis.log:
        known = [math.log10(v) for v in known if v > 0]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if axis.from_zero:
        low = min(low, 0.0)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    ends = (low if axis.from_zero and low == 0 else low - room), high + room
    return (10 ** ends[0], 10 ** ends[1]) if axis.log else ends


def _ticks(axis: Axis, low: Number, high: Number, most: int) -> dict[Number, str]:
    """Label of each tick by its value."""
    if axis.ticks is not None:
        return {float(v): text for v, text in axis.ticks.items() if low <= v <= high}
    if axis.log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        digits = (1, 2, 5) if math.log10(high / low) <= 2.5 else (1,)
        every = max(1, (last - first) // max(2, most))
        ticks = (d * 10.0**k for k in range(first, last + 1, every) for d in digits)
        return {t: f"{t:g}" for t in ticks if low <= t <= high}
    step = float(axis.every or 0) or _round_step((high - low) / most)
    while (high - low) / step > 2 * most:
        step *= 2
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {k * step: f"{k * step:.6g}" for k in range(first, last + 1)}


def _round_step(least: Number) -> Number:
    """The smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(d * power for d in (1, 2, 5, 10) if d * power >= least * 0.999)


def _across(axis: Axis, scale: Scale, top: Number, bottom: Number) -> Iterator[Markup]:
    """The horizontal axis: grid, ticks, as many labels as fit, title."""
    ticks = _ticks(axis, scale.low, scale.high, max(2, int(abs(scale.end - scale.start) / 80)))
    slanted = _crowded(ticks, scale)
    least = SIZE * 1.2 if slanted else 0
    last = -math.inf
    for value, text in ticks.items():
        x = scale(value)
        if not axis.quiet:
            yield _line(x, top, x, bottom, GRID)
        if x - last < least:
            continue
        last = x
        if slanted:
            yield Markup('<g transform="translate({} {}) rotate(-40)">{}</g>').format(
                _px(x + 4), _px(bottom + 14), _text(0, 0, _short(text, 16), "end")
            )
        else:
            edge = x + _wide(text) / 2 > scale.end + 12
            yield _text(
                scale.end + 12 if edge else x, bottom + 17, text, "end" if edge else "middle"
            )
    yield _line(scale.start, bottom, scale.end, bottom, EDGE)
    if axis.title:
        under = _depth(axis, scale) - 6
        yield _text((scale.start + scale.end) / 2, bottom + under, axis.title, "middle")


def _crowded(ticks: Mapping[Number, str], scale: Scale) -> bool:
    at = [(scale(v), _wide(text)) for v, text in ticks.items()]
    return any(abs(b - a) < (m + n) / 2 + 8 for (a, m), (b, n) in pairwise(at))


def _depth(axis: Axis, scale: Scale) -> Number:
    """Pixels below a horizontal axis."""
    ticks = _ticks(axis, scale.low, scale.high, max(2, int(abs(scale.end - scale.start) / 80)))
    longest = max((_wide(_short(text, 16)) for text in ticks.values()), default=0.0)
    labels = 18 + (longest * 0.64 if _crowded(ticks, scale) else 6)
    return labels + (22 if axis.title else 4)


def _up(axis: Axis, scale: Scale, left: Number, right: Number) -> Iterator[Markup]:
    """The vertical axis: grid, labels, title along it."""
    ticks = _ticks(axis, scale.low, scale.high, max(2, int(abs(scale.end - scale.start) / 45)))
    for value, text in ticks.items():
        y = scale(value)
        yield _line(left, y, right, y, GRID)
        yield _text(left - 6, y + 4, text, "end")
    yield _line(left, scale.start, left, scale.end, EDGE)
    if axis.title:
        middle = (scale.start + scale.end) / 2
        yield Markup('<g transform="translate(13 {}) rotate(-90)">{}</g>').format(
            _px(middle), _text(0, 0, axis.title, "middle")
        )


# --------------------------------------------------------------------------- points and spikes


def _plot(
    figure: Figure, marks: tuple[Series, ...] | Spikes, width: int
) -> tuple[list[Markup], Number]:
    """Series or spikes between two axes."""
    body = [_text(8, 18, figure.title, size=14)] if figure.title else []
    top = 30.0 if figure.title else 10.0
    if figure.legend:
        explained, top = _legend(_explained(marks), width, top)
        body += explained
    across, up = figure.x, figure.y
    if isinstance(marks, Spikes):
        low_y, high_y = -1.0, float(marks.neurons)
        low_x, high_x = _range(across, (t for g in marks.groups.values() for t, _ in g))
    else:
        low_y, high_y = _range(up, [*(v for s in marks for v in s.y), *figure.levels.values()])
        low_x, high_x = _range(across, (v for s in marks for v in s.x))
    labels = _ticks(up, low_y, high_y, 8).values()
    left = max((_wide(t) for t in labels), default=0.0) + 12 + (20 if up.title else 4)
    x = Scale(low_x, high_x, left, width - 14.0, across.log)
    bottom = max(figure.height - _depth(across, x), top + 60)
    y = Scale(low_y, high_y, bottom, top, up.log)
    for low, high in figure.bands:
        a, b = x(max(low, low_x)), x(min(high, high_x))
        body.append(_rect(a, top, b - a, bottom - top, BAND))
    body += [*_up(up, y, x.start, x.end), *_across(across, x, top, bottom)]
    for text, level in figure.levels.items():
        if y.shows(level):
            body.append(_line(x.start, y(level), x.end, y(level), MUTED, "2 4"))
            body.append(_text(x.end, y(level) - 4, text, "end", colour=MUTED))
    drawn = (
        _spikes(marks, x, y) if isinstance(marks, Spikes)
        else (part for s in marks for part in _series(s, x, y))
    )  # fmt: skip
    body.append(Markup('<g class="marks">{}</g>').format(Markup("").join(drawn)))
    return body, bottom + _depth(across, x)


def _spikes(marks: Spikes, x: Scale, y: Scale) -> Iterator[Markup]:
    for height in marks.line_at:
        yield _line(x.start, y(height), x.end, y(height), MUTED)
    for points, colour in zip(marks.groups.values(), marks.colours, strict=False):
        half = 0.42 * abs(y(1) - y(0))
        path = "".join(f"M{_px(x(t))} {_px(y(n) - half)}v{_px(2 * half)}" for t, n in points)
        yield Markup('<path d="{}" stroke="{}" stroke-width="2" fill="none"/>').format(path, colour)


def _series(series: Series, x: Scale, y: Scale) -> Iterator[Markup]:
    points = [
        (x(a), y(b), b, i) if x.shows(a) and b is not None and y.shows(b) else None
        for i, (a, b) in enumerate(zip(series.x, series.y, strict=False))
    ]
    if series.dash:
        path, pen = [], "M"
        for point in points:
            path.append(f"{pen}{_px(point[0])} {_px(point[1])}" if point else "")
            pen = "L" if point else "M"
        dash = {"dash": "7 5", "dot": "2 4"}.get(series.dash, "")
        yield Markup(
            '<path d="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>'
        ).format("".join(path), series.colour, series.width, dash or "none")
    for point in filter(None, points):
        across, up, value, i = point
        if series.spread is not None and (spread := series.spread[i]):
            ends = [y(v) if y.shows(v) else y.start for v in (value - spread, value + spread)]
            yield _line(across, ends[0], across, ends[1], series.colour)
        if series.symbol:
            text = series.hover[i] if series.hover else series.name
            tip = f"{text}\n{number(series.x[i])}, {number(value)}"
            yield _symbol(series.symbol, across, up, series.mark / 2, series.colour, tip)


def _polygon(
    corners: int, turn: Number = 0.0, inner: Number = 1.0
) -> Sequence[tuple[Number, Number]]:
    """Corners of a regular polygon or, with an inner radius between them, of a star."""
    turns = [turn + k / corners for k in range(corners)]
    radii = [1.0 if k % 2 == 0 else inner for k in range(corners)]
    return [
        (r * math.sin(2 * math.pi * t), -r * math.cos(2 * math.pi * t))
        for t, r in zip(turns, radii, strict=True)
    ]


SHAPES: Mapping[str, Sequence[tuple[Number, Number]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle-up": _polygon(3),
    "triangle-down": _polygon(3, 0.5),
    "diamond": _polygon(4),
    "star": _polygon(10, 0.0, 0.45),
    "hexagon": _polygon(6),
    "cross": [(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35),
              (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)],
}  # fmt: skip


def _symbol(name: str, x: Number, y: Number, radius: Number, colour: str, tip: str = "") -> Markup:
    shape, _, style = name.partition("-open")
    hollow = name.endswith("-open") or name == "x-thin"
    paint = Markup('fill="{}" stroke="{}" stroke-width="{}"').format(
        "none" if hollow else colour, colour, 2 if hollow else 0
    )
    title = Markup("<title>{}</title>").format(tip) if tip else Markup()
    if shape == "circle":
        return Markup('<circle cx="{}" cy="{}" r="{}" {}>{}</circle>').format(
            _px(x), _px(y), _px(radius), paint, title
        )
    if shape == "x-thin":
        side = _px(2 * radius)
        d = f"M{_px(x - radius)} {_px(y - radius)}l{side} {side}m0 -{side}l-{side} {side}"
    else:
        corners = SHAPES[shape]
        d = "M" + "L".join(f"{_px(x + radius * a)} {_px(y + radius * b)}" for a, b in corners) + "Z"
    return Markup('<path d="{}" {}>{}</path>').format(d, paint, title)


def _explained(marks: tuple[Series, ...] | Spikes) -> list[Series]:
    """The series that a legend shows."""
    if isinstance(marks, Spikes):
        groups = list(zip(marks.groups, marks.colours, strict=False))
        return [Series(g, (), (), c, symbol="") for g, c in groups] if len(groups) > 1 else []
    return [s for s in marks if s.legend]


def _legend(series: Sequence[Series], width: int, top: Number) -> tuple[list[Markup], Number]:
    """Line or mark and name of each series, in as many rows as it takes; where they end."""
    parts, x, y = [], 8.0, top + 8
    for s in series:
        wide = 30 + _wide(s.name) + 16
        if x > 8 and x + wide > width:
            x, y = 8.0, y + 20
        if s.dash:
            dash = {"dash": "7 5", "dot": "2 4"}.get(s.dash, "none")
            parts.append(_line(x, y, x + 22, y, s.colour, dash, 2))
        if s.symbol:
            parts.append(_symbol(s.symbol, x + 11, y, min(5.0, max(3.5, s.mark / 2)), s.colour))
        parts.append(_text(x + 28, y + 4, s.name))
        x += wide
    group = Markup('<g class="marks">{}</g>').format(Markup("").join(parts))
    return [group], y + 16 if series else top


# --------------------------------------------------------------------------- bars and cells


def _bars(figure: Figure, marks: Bars, width: int) -> tuple[list[Markup], Number]:
    """Names at the left, bars, their values at the ends."""
    room = int(width * 0.42 / (0.56 * SIZE))
    left = max((_wide(_short(name, room)) for name in marks.values), default=0.0) + 14
    largest = max(marks.values.values(), default=0) or 1
    x = Scale(0.0, float(largest), left, width - 70.0)
    body, top = [], 10.0
    for i, (name, value) in enumerate(marks.values.items()):
        y = top + 28 * i
        tip = f"{name}\n{marks.hover[i]}" if marks.hover else name
        body.append(_text(left - 8, y + 16, _short(name, room), "end"))
        body.append(Markup('<g class="marks">{}</g>').format(
            _rect(left, y + 3, max(x(value) - left, 0), 18, marks.colour, tip)))  # fmt: skip
        body.append(_text(x(value) + 6, y + 16, si(value)))
    bottom = top + 28 * len(marks.values)
    body += [_line(left, top, left, bottom, EDGE), _line(left, bottom, x.end, bottom, EDGE)]
    body.append(_text((left + x.end) / 2, bottom + 20, figure.x.title, "middle"))
    return body, bottom + 30


def _cells(figure: Figure, marks: Cells, width: int) -> tuple[list[Markup], Number]:
    """Cells of colour; names above, numbers below; a scale at the right."""
    if marks.bare:
        return _bare(figure, marks, width)
    wide, high = max(map(len, marks.values), default=0) or 1, len(marks.values) or 1
    body = [_text(8, 18, figure.title, size=14)] if figure.title else []
    names = marks.rows or [str(i + 1) for i in range(high)]
    room = int(width * 0.35 / (0.56 * SIZE))
    left = max(_wide(_short(n, room)) for n in names) + 12 + (20 if figure.y.title else 2)
    right = width - (14.0 if marks.texts else 70.0)
    columns = marks.columns or [str(j + 1) for j in range(wide)]
    x = Scale(-0.5, wide - 0.5, left, right)
    slanted = _crowded({j: _short(c, 16) for j, c in enumerate(columns)}, x) and marks.columns
    top = 26.0 if figure.title else 8.0
    if marks.columns:
        top += max(_wide(_short(c, 16)) for c in columns) * 0.66 + 14 if slanted else 20
    y = Scale(-0.5, high - 0.5, top, top + 26 * max(high, 3) if high < 3 else top + 26 * high)
    body += _painted(marks, x, y)
    for i, name in enumerate(names):
        if i % max(1, high // 24) == 0:
            body.append(_text(left - 6, y(i) + 4, _short(name, room), "end"))
    every = 1 if marks.columns else max(1, round(wide * 26 / (right - left)))
    for j, name in enumerate(columns):
        if slanted:
            body.append(Markup('<g transform="translate({} {}) rotate(-40)">{}</g>').format(
                _px(x(j) + 2), _px(top - 6), _text(0, 0, _short(name, 16))))  # fmt: skip
        elif j % every == 0:
            body.append(_text(x(j), top - 6 if marks.columns else y.end + 16, name, "middle"))
    bottom = y.end + (4 if marks.columns else 20)
    if figure.x.title:
        body.append(_text((left + right) / 2, bottom + 16, figure.x.title, "middle"))
        bottom += 20
    if figure.y.title:
        body.append(Markup('<g transform="translate(13 {}) rotate(-90)">{}</g>').format(
            _px((y.start + y.end) / 2), _text(0, 0, figure.y.title, "middle")))  # fmt: skip
    if not marks.texts:
        body += _bar_of_scale(marks, right + 14, y)
    return body, bottom + 6


def _bare(figure: Figure, marks: Cells, width: int) -> tuple[list[Markup], Number]:
    """A square without labels."""
    side = min(width - 16.0, figure.height - 34.0)
    left = (width - side) / 2
    size = len(marks.values) or 1
    x, y = Scale(-0.5, size - 0.5, left, left + side), Scale(-0.5, size - 0.5, 28, 28 + side)
    return [_text(8, 18, figure.title, size=13), *_painted(marks, x, y)], side + 34


def _limits(marks: Cells) -> tuple[Number, Number]:
    known = [v for row in marks.values for v in row if v is not None]
    low, high = marks.limits or (min(known, default=0.0), max(known, default=1.0))
    return float(low), float(high) if high > low else float(low) + 1.0


def _painted(marks: Cells, x: Scale, y: Scale) -> Iterator[Markup]:
    """The cells: rectangles with their values or, where there are many, one image."""
    low, high = _limits(marks)
    if len(marks.values) * max(map(len, marks.values), default=0) > MOST_CELLS:
        yield _image([[_colour(marks.scale, v, low, high) for v in row] for row in marks.values],
                     x.start, y.start, x.end - x.start, y.end - y.start)  # fmt: skip
        return
    gap = 0 if marks.bare else 1
    for i, row in enumerate(marks.values):
        for j, value in enumerate(row):
            if value is None:
                continue
            colour = _colour(marks.scale, value, low, high)
            name = marks.rows[i] if marks.rows else i + 1
            column = marks.columns[j] if marks.columns else j + 1
            left, top = x(j - 0.5), y(i - 0.5)
            yield _rect(left, top, x(j + 0.5) - left - gap, y(i + 0.5) - top - gap,
                        _hex(colour), f"{name}, {column}: {number(value)}")  # fmt: skip
            if marks.texts:
                ink = "#000" if _luminance(colour) > 0.18 else "#fff"
                yield _text(x(j), y(i) + 4, format(value, marks.texts), "middle", colour=ink)


def _bar_of_scale(marks: Cells, left: Number, y: Scale) -> Iterator[Markup]:
    low, high = _limits(marks)
    parts = 24
    step = (y.end - y.start) / parts
    for k in range(parts):
        colour = _colour(marks.scale, high - (k + 0.5) / parts * (high - low), low, high)
        yield _rect(left, y.start + k * step, 10, step + 0.5, _hex(colour))
    yield _text(left + 14, y.start + 10, number(high))
    yield _text(left + 14, y.end, number(low))


Colour = tuple[int, int, int]


def _colour(scale: Sequence[str], value: Number | None, low: Number, high: Number) -> Colour | None:
    """The scale's colour of a value, straight between its neighbours; None for nothing."""
    if value is None:
        return None
    at = min(max((value - low) / (high - low), 0.0), 1.0) * (len(scale) - 1)
    k = min(int(at), len(scale) - 2)
    a, b = (tuple(bytes.fromhex(c[1:])) for c in scale[k : k + 2])
    red, green, blue = (round(m + (n - m) * (at - k)) for m, n in zip(a, b, strict=True))
    return red, green, blue


def _hex(colour: Colour | None) -> str:
    return "none" if colour is None else "#" + bytes(colour).hex()


def _luminance(colour: Colour | None) -> Number:
    """Relative luminance as WCAG defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in colour or (255, 255, 255))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _image(
    rows: Sequence[Sequence[Colour | None]],
    left: Number,
    top: Number,
    width: Number,
    height: Number,
) -> Markup:
    """Cells as a PNG picture of a pixel each."""
    wide = max(map(len, rows))
    lines = b"".join(
        b"\0" + b"".join(bytes((*c, 255)) if c else bytes(4) for c in row).ljust(4 * wide, b"\0")
        for row in rows
    )

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", wide, len(rows), 8, 6, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return Markup(
        '<image x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated" href="data:image/png;base64,{}"/>'
    ).format(_px(left), _px(top), _px(width), _px(height), base64.b64encode(png).decode())


# --------------------------------------------------------------------------- elements


def _px(value: Number) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _wide(text: str, size: int = SIZE) -> Number:
    """About how many pixels a text takes: nobody has measured it before the page is read."""
    return sum(1.0 if ord(c) > 0x2E80 else 0.56 for c in text) * size


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[len(text) - most + 1 :]


def _text(
    x: Number, y: Number, text: str, anchor: str = "start", *, colour: str = "", size: int = SIZE
) -> Markup:
    extra = Markup(' fill="{}"').format(colour) if colour else Markup()
    if size != SIZE:
        extra += Markup(' font-size="{}"').format(size)
    if anchor != "start":
        extra += Markup(' text-anchor="{}"').format(anchor)
    return Markup('<text x="{}" y="{}"{}>{}</text>').format(_px(x), _px(y), extra, text)


def _line(
    x1: Number, y1: Number, x2: Number, y2: Number, colour: str, dash: str = "", width: Number = 1
) -> Markup:
    return Markup(
        '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="{}"{}/>'
    ).format(
        _px(x1), _px(y1), _px(x2), _px(y2), colour, _px(width),
        Markup(' stroke-dasharray="{}"').format(dash) if dash else "",
    )  # fmt: skip


def _rect(
    x: Number, y: Number, width: Number, height: Number, colour: str, tip: str = ""
) -> Markup:
    title = Markup("<title>{}</title>").format(tip) if tip else Markup()
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}">{}</rect>').format(
        _px(x), _px(y), _px(max(width, 0)), _px(max(height, 0)), colour, title
    )
