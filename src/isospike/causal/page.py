"""The drawing of a graph along an order."""

from collections.abc import Sequence

from markupsafe import Markup

from isospike.report.figures import INK, MUTED, ON
from isospike.report.page import Block, Drawing, Note

MAX_DRAWN = 60
WIDE, HIGH = 150, 46  # distance of two variables
_ARROW = Markup(
    '<path d="M{},{:.0f} Q{:.0f},{:.0f} {},{:.0f}" fill="none" stroke="{}" marker-end="url(#tip)"/>'
)
_BOX = Markup(
    '<rect x="{}" y="{:.0f}" width="104" height="28" rx="6" fill="white" stroke="{}"/>'
    '<text x="{}" y="{:.0f}" text-anchor="middle" fill="{}" font-size="13">{}</text>'
)
_SVG = Markup(
    '<svg width="{}" height="{:.0f}" role="img" aria-label="Graph of {} variables and {} edges">'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{}"/></marker></defs>{}{}</svg>'
)


def draw_graph(order: Sequence[str], edges: Sequence[tuple[str, str]]) -> Block:
    """Draw a graph with causes at the left: a variable's column is the longest path to it.

    Args:
        order: The variables, causes first.
        edges: Pairs of cause and effect.

    Returns:
        The drawing, or a note for more than 60 variables.
    """
    if len(order) > MAX_DRAWN:
        return Note(f"Not drawn: more than {MAX_DRAWN} variables. The edges are in edges.csv.")
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = max((depth[p] + 1 for p, c in edges if c == name), default=0)
    columns = [[n for n in order if depth[n] == k] for k in range(max(depth.values()) + 1)]
    tallest = max(map(len, columns))
    place = {
        name: (70 + WIDE * k, 30 + HIGH * (i + (tallest - len(column)) / 2))
        for k, column in enumerate(columns)
        for i, name in enumerate(column)
    }
    arrows = []
    for parent, child in edges:
        (x0, y0), (x1, y1) = place[parent], place[child]
        bend = 0.0 if depth[child] - depth[parent] == 1 else 46.0
        middle = (x0 + x1) / 2, (y0 + y1) / 2 - bend
        arrows.append(_ARROW.format(x0 + 52, y0, *middle, x1 - 56, y1, MUTED))
    boxes = [
        _BOX.format(x - 52, y - 14, ON, x, y + 5, INK, name if len(name) <= 13 else name[:12] + "…")
        for name, (x, y) in place.items()
    ]
    width, height = 140 + WIDE * (len(columns) - 1), 60 + HIGH * (tallest - 1)
    svg = _SVG.format(
        width, height, len(order), len(edges), MUTED, Markup("").join(arrows),
        Markup("").join(boxes),
    )  # fmt: skip
    return Drawing(svg)
