"""A graph along an order: drawn in layers, and as DOT and GraphML for other programs."""

import json
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from markupsafe import Markup

from isospike.report.figures import INK, MUTED, ON
from isospike.report.page import Block, Drawing, Note

Edges = Sequence[tuple[str, str]]

MAX_DRAWN = 60
WIDE, HIGH, LANE = 160, 46, 20  # distance of two layers, of two variables, of two passing edges
_SWEEPS = 8
_BOX = Markup(
    '<rect x="{:.0f}" y="{:.0f}" width="104" height="28" rx="6" fill="var(--paper)" stroke="{}"/>'
    '<text x="{:.0f}" y="{:.0f}" text-anchor="middle" fill="{}" font-size="13">{}</text>'
)
_LINE = Markup('<path d="{}" fill="none" stroke="{}" stroke-width="{:.1f}" {}/>')
_SVG = Markup(
    '<svg width="{}" height="{:.0f}" role="img" aria-label="Graph of {} variables and {} edges">'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{}"/></marker>'
    "</defs>{}{}</svg>"
)


def draw_graph(
    order: Sequence[str], edges: Edges, undirected: Edges = (), shares: Sequence[float] = ()
) -> Block:
    """Draw a graph with causes at the left: a variable's column is the longest path to it.

    An edge over several columns has a lane of its own in each, so it never runs behind a box.

    Args:
        order: The variables, causes first.
        edges: Pairs of cause and effect.
        undirected: Pairs, in the order's direction, that are drawn without a tip.
        shares: Widths of the edges and then of the undirected ones, from 0 to 1; equal by default.

    Returns:
        The drawing, or a note for more than 60 variables.
    """
    if len(order) > MAX_DRAWN:
        return Note(f"Not drawn: more than {MAX_DRAWN} variables. The edges are in edges.csv.")
    joined = [*edges, *undirected]
    place, routes = _layout(order, joined)
    widths = [1 + 3 * share for share in shares] or [1.5] * len(joined)
    lines = []
    for number, (pair, width) in enumerate(zip(joined, widths, strict=True)):
        mark = 'marker-end="url(#tip)"' if number < len(edges) else 'stroke-dasharray="5 4"'
        lines.append(_LINE.format(_path(routes[pair]), MUTED, width, Markup(mark)))  # noqa: S704
    boxes = [
        _BOX.format(x - 52, y - 14, ON, x, y + 5, INK, name if len(name) <= 13 else name[:12] + "…")
        for name, (x, y) in place.items()
    ]
    width = max(x for x, _ in place.values()) + 70
    height = max(y for route in [list(place.values()), *routes.values()] for _, y in route) + 30
    return Drawing(
        _SVG.format(
            width, height, len(order), len(joined), MUTED, Markup("").join(lines),
            Markup("").join(boxes),
        )
    )  # fmt: skip


def dot_text(order: Sequence[str], edges: Edges, undirected: Edges = ()) -> str:
    """The graph in the DOT language of Graphviz.

    >>> print(dot_text(["a", "b"], [("a", "b")]))
    digraph {
      rankdir=LR;
      "a";
      "b";
      "a" -> "b";
    }
    <BLANKLINE>

    Args:
        order: The variables.
        edges: Pairs of cause and effect.
        undirected: Pairs without a direction.

    Returns:
        The text.
    """

    def quote(name: str) -> str:
        return json.dumps(name, ensure_ascii=False)

    lines = [f"  {quote(name)};" for name in order]
    lines += [f"  {quote(a)} -> {quote(b)};" for a, b in edges]
    lines += [f"  {quote(a)} -> {quote(b)} [dir=none];" for a, b in undirected]
    return "\n".join(["digraph {", "  rankdir=LR;", *lines, "}", ""])


def graphml_text(order: Sequence[str], edges: Edges, undirected: Edges = ()) -> str:
    """The graph in GraphML, which networkx, Gephi, yEd and Cytoscape read.

    >>> "<edge" in graphml_text(["a", "b"], [("a", "b")])
    True

    Args:
        order: The variables; each is a node with its name as identifier.
        edges: Pairs of cause and effect.
        undirected: Pairs without a direction: edges whose attribute ``direction`` is ``none``.

    Returns:
        The text.
    """
    nodes = [f"    <node id={quoteattr(name)}/>" for name in order]
    lines = [
        f"    <edge source={quoteattr(a)} target={quoteattr(b)}>"
        f'<data key="direction">{escape(kind)}</data></edge>'
        for pairs, kind in ((edges, "known"), (undirected, "none"))
        for a, b in pairs
    ]
    head = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        '  <key id="direction" for="edge" attr.name="direction" attr.type="string"/>',
        '  <graph edgedefault="directed">',
    ]
    return "\n".join([*head, *nodes, *lines, "  </graph>", "</graphml>", ""])


def _layout(
    order: Sequence[str], edges: Edges
) -> tuple[dict[str, tuple[float, float]], dict[tuple[str, str], list[tuple[float, float]]]]:
    """The place of every variable, and the points of every edge (Sugiyama et al. 1981)."""
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = max((depth[p] + 1 for p, c in edges if c == name), default=0)
    columns: list[list[object]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in order:
        columns[depth[name]].append(name)
    chains: dict[tuple[str, str], list[object]] = {}
    for a, b in edges:
        lanes = [(a, b, k) for k in range(depth[a] + 1, depth[b])]
        for lane in lanes:
            columns[lane[2]].append(lane)
        chains[a, b] = [a, *lanes, b]
    links: list[tuple[object, object]] = []
    for chain in chains.values():
        links += zip(chain, chain[1:], strict=False)
    _uncross(columns, links)
    point: dict[object, tuple[float, float]] = {}
    heights = [sum(HIGH if isinstance(v, str) else LANE for v in column) for column in columns]
    for k, column in enumerate(columns):
        y = 10 + (max(heights) - heights[k]) / 2
        for v in column:
            high = HIGH if isinstance(v, str) else LANE
            point[v] = (70.0 + WIDE * k, y + high / 2)
            y += high
    routes = {pair: [point[v] for v in chain] for pair, chain in chains.items()}
    return {name: point[name] for name in order}, routes


def _uncross(columns: list[list[object]], links: list[tuple[object, object]]) -> None:
    """Sort each column by the mean place of its neighbours, to and fro; fewer edges then cross."""
    before: dict[object, list[object]] = {}
    after: dict[object, list[object]] = {}
    for a, b in links:
        after.setdefault(a, []).append(b)
        before.setdefault(b, []).append(a)
    for sweep in range(_SWEEPS):
        forwards = sweep % 2 == 0
        joined = before if forwards else after
        for column in columns if forwards else columns[::-1]:
            at = {v: k / max(1, len(c) - 1) for c in columns for k, v in enumerate(c)}
            mean = {
                v: sum(at[u] for u in joined[v]) / len(joined[v]) if v in joined else at[v]
                for v in column
            }
            column.sort(key=lambda v, mean=mean: mean[v])  # type: ignore[misc]


def _path(points: list[tuple[float, float]]) -> str:
    """A smooth line from the right side of the first box to the left side of the last."""
    points = [(points[0][0] + 52, points[0][1]), *points[1:-1], (points[-1][0] - 54, points[-1][1])]
    text = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    for number, ((x0, y0), (x1, y1)) in enumerate(zip(points, points[1:], strict=False)):
        # A lane is as wide as a box: straight through it, and bent between the columns.
        start = x0 if number == 0 else x0 + 52
        end = x1 if number == len(points) - 2 else x1 - 52
        half = (end - start) / 2
        text += f" L{start:.0f},{y0:.0f} C{start + half:.0f},{y0:.0f}"
        text += f" {end - half:.0f},{y1:.0f} {end:.0f},{y1:.0f}"
    return text
