"""Pages of sections written by hand, until each subject's page is one of Report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from isospike.report.figures import FONT as _FONT
from isospike.report.figures import GRID, INK, MUTED, OFF, ON


@dataclass(frozen=True)
class Plot:
    """One Plotly figure: its element, a spoken label, its height in pixels, traces and layout."""

    name: str
    label: str
    height: int
    data: list[dict[str, Any]]
    layout: dict[str, Any]


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


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it is written into."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
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
