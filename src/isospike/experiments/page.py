"""The page of ``isospike positions``: accuracy against length, Gram matrices, learning curves."""

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from isospike.experiments import Table
from isospike.experiments.grid import (
    FACTORS,
    HEADS,
    TEXT_FACTORS,
    WHAT,
    WIDTH,
    Size,
    accuracy_table,
    mean,
)
from isospike.porting.page import MUTED, Plot, page, place, plot_layout, section
from isospike.positions import POSITIONS, Additive, RandomizedOrdered, position

Found = dict[tuple[str, str], list[dict[str, Any]]]

COLOURS = {
    "none": "#22303a", "sinusoidal": "#c8553d", "spike-timing": "#e0a458",
    "frequency-compressed": "#a23b72", "rank-learned": "#7f4f24", "rank-significance": "#d08c60",
    "cpg": "#e5989b", "rope": "#1f6f8b", "alibi": "#5b8c5a", "t5": "#2a9d8f", "fire": "#7b5ea7",
    "log-distance": "#8ab17d", "gray-code": "#5a7dcf", "randomized": "#b5179e",
    "no-attention": "#9aa5ad", "shuffled": "#9aa5ad", "spike-timing-rescaled": "#e0a458",
}  # fmt: skip
DASHES = {"none": "dot", "no-attention": "dash", "shuffled": "dot", "spike-timing-rescaled": "dash"}
GRAM_LENGTH = 48
_GRID = '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax({}px,1fr));gap:8px">'


def html(found: Found, tasks: Sequence[str], rows: Sequence[str], size: Size) -> str:
    """The page of the runs in ``found``, see :func:`isospike.experiments.grid.run_rows`."""
    plots: list[Plot] = []
    title = "Positional encodings, tested"
    chips = " &nbsp; ".join(
        f'<span style="color:{COLOURS[row]};white-space:nowrap">'
        f"{'┄┄' if row in DASHES else '━━'} {escape(row)}</span>"
        for row in rows
    )
    header = (
        f"<header><h1>{title}</h1><p>One small transformer, {size.steps} steps of training, "
        f"{len(rows)} ways to tell it where a token stands, {size.seeds} "
        f"seed{'s' * (size.seeds > 1)}. Three of the rows are controls: none is no encoding, "
        "no-attention has no way to look at another token, and "
        f'shuffled deals positions out at random.</p><p class="fine">{chips}</p></header>'
    )
    grams = [row for row in rows if row in POSITIONS and row != "none"]
    sections = [
        section(
            "What each encoding solves",
            "Share of scored tokens that are right, at the length of training and at twice that "
            "length; mean over seeds. Empty: past the encoding's last position.",
            place(_overview(found, tasks, rows, "x1", "plot-overview"), plots),
            place(_overview(found, tasks, rows, "x2", "plot-overview-x2"), plots),
        ),
        section(
            "Accuracy against length",
            "Share of scored tokens that are right in sequences longer than those of training; "
            "bars are 95 % intervals over seeds. Hover for names.",
            _GRID.format(420),
            *(place(_lengths(found, task, rows), plots) for task in tasks),
            "</div>",
        ),
        section(
            "Learning curves",
            "Bits per scored token of the training batches, mean over seeds.",
            _GRID.format(420),
            *(place(_curves(found, task, rows), plots) for task in tasks),
            "</div>",
        ),
        section(
            "Gram matrices",
            f"How alike two of the first {GRAM_LENGTH} positions are before training: cosine of "
            "the vectors that are added, product of two equal vectors once they are rotated, or "
            "bias of the first head, each on its own range (light is alike). Learned ones are as "
            "they start; that of t5 starts flat.",
            _GRID.format(200),
            *(place(_gram(row), plots) for row in grams),
            "</div>",
        ),
        section(
            "Figures",
            "Mean over seeds with 95 % intervals (normal). Steps to 95 %: median, if most seeds "
            "get there.",
            *(_details(accuracy_table(found, task, rows, what, f"{task}: {label}"))
              for task in tasks for what, label in WHAT.items()),
        ),
    ]  # fmt: skip
    versions = found[tasks[0], rows[0]][0]["versions"]
    footer = "".join(f"{escape(k)} {escape(v)}" for k, v in versions.items())
    return page(
        title, header, sections, f"<footer>Size {escape(size.name)}. {footer}</footer>", plots
    )


def _overview(
    found: Found, tasks: Sequence[str], rows: Sequence[str], factor: str, name: str
) -> Plot:
    values = []
    for row in reversed(rows):
        means = [mean(found[task, row], "token", factor) for task in tasks]
        values.append([None if m is None else round(m[0], 3) for m in means])
    data = {
        "type": "heatmap",
        "x": list(tasks),
        "y": list(reversed(rows)),
        "z": values,
        "text": [["" if v is None else f"{v:.2f}" for v in line] for line in values],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}, %{x}: %{z}<extra></extra>",
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#f6f1ea"], [0.8, "#a9cdd2"], [1, "#1f6f8b"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    layout = plot_layout(
        title={"text": f"length {factor}", "font": {"size": 14}, "x": 0.01},
        xaxis={"side": "top", "showline": False, "ticks": "", "type": "category"},
        yaxis={"showline": False, "ticks": "", "type": "category"},
        margin={"l": 64, "r": 24, "t": 80, "b": 16},
    )
    return Plot(name, f"Accuracy at length {factor}", 110 + 26 * len(rows), [data], layout)


def _lengths(found: Found, task: str, rows: Sequence[str]) -> Plot:
    factors = TEXT_FACTORS if task == "text" else FACTORS
    traces = []
    for row in rows:
        points = [(factors[f], mean(found[task, row], "token", f)) for f in factors]
        known = [(x, m) for x, m in points if m is not None]
        traces.append({
            **_line(row),
            "mode": "lines+markers",
            "x": [x for x, _ in known],
            "y": [m[0] for _, m in known],
            "error_y": {"array": [m[1] for _, m in known], "thickness": 1, "width": 2},
        })  # fmt: skip
    layout = plot_layout(
        title={"text": task, "font": {"size": 14}, "x": 0.02},
        xaxis={"title": {"text": "length, of that of training"},
               "tickvals": list(factors.values()), "ticktext": list(factors)},
        yaxis={"title": {"text": "tokens right"}, "range": [-0.02, 1.03]},
        showlegend=False,
    )  # fmt: skip
    return Plot(f"plot-length-{task}", f"Accuracy against length, {task}", 330, traces, layout)


def _curves(found: Found, task: str, rows: Sequence[str]) -> Plot:
    traces = []
    for row in rows:
        curves = [result["curve"] for result in found[task, row]]
        traces.append({
            **_line(row),
            "mode": "lines",
            "x": [step for step, _ in curves[0]],
            "y": [round(statistics.mean(c[i][1] for c in curves), 4)
                  for i in range(len(curves[0]))],
        })  # fmt: skip
    layout = plot_layout(
        title={"text": task, "font": {"size": 14}, "x": 0.02},
        xaxis={"title": {"text": "steps"}},
        yaxis={"title": {"text": "bits"}, "rangemode": "tozero"},
        showlegend=False,
    )
    return Plot(f"plot-curve-{task}", f"Learning curves, {task}", 330, traces, layout)


def _line(row: str) -> dict[str, Any]:
    style = {"color": COLOURS[row], "width": 2, "dash": DASHES.get(row, "solid")}
    return {"type": "scatter", "name": row, "line": style, "marker": {"size": 5}}


def _gram(row: str) -> Plot:
    values = likeness(row, GRAM_LENGTH)
    low, high = float(values.min()), float(values.max())
    data = {
        "type": "heatmap",
        "z": [[round(v, 3) for v in line] for line in values.tolist()],
        "zmin": low,
        "zmax": max(high, low + 1e-6),
        "colorscale": "Viridis",
        "showscale": False,
        "hovertemplate": "%{x}, %{y}: %{z}<extra></extra>",
    }
    quiet = {"showticklabels": False, "ticks": "", "showline": False, "showgrid": False}
    layout = plot_layout(
        title={"text": row, "font": {"size": 13}, "x": 0.05},
        xaxis=quiet,
        yaxis={**quiet, "autorange": "reversed", "scaleanchor": "x"},
        margin={"l": 8, "r": 8, "t": 34, "b": 8},
    )
    layout["annotations"] = [
        {
            "text": f"{low + 0.0:.3g} to {high + 0.0:.3g}",
            "showarrow": False,
            "xref": "paper",
            "yref": "paper",
            "x": 0.95,
            "y": 1.14,
            "font": {"size": 11, "color": MUTED},
        }
    ]
    return Plot(f"plot-gram-{row}", f"Gram matrix of {row}", 220, [data], layout)


@torch.no_grad()
def likeness(row: str, length: int) -> Tensor:
    """How alike an encoding makes two positions, ``[length, length]``, before training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoding = position(row, width=WIDTH, heads=HEADS, length=length).eval()
    at = encoding.index(length)
    if isinstance(encoding, RandomizedOrdered):
        encoding = encoding.base
    bias = encoding.bias(at, at)
    if bias is not None:
        return bias[0]
    if isinstance(encoding, Additive):
        table = torch.nn.functional.normalize(encoding.table(at), dim=-1)
        return table @ table.T
    unit = torch.ones(length, WIDTH // HEADS) / (WIDTH // HEADS) ** 0.5
    q, k = encoding.rotate(unit, unit, at)
    return q @ k.T


def _details(table: Table) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"

    body = "".join(cells(row, "td") for row in table.rows)
    return (
        f"<details><summary>{escape(table.title)}</summary><div class='scroll'>"
        f"<table><thead>{cells(table.head, 'th')}</thead><tbody>{body}</tbody></table>"
        "</div></details>"
    )
