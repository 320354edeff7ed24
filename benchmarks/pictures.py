"""The pictures of docs/sequence_machine.md and docs/theory.md.

    python -m benchmarks.pictures [--seeds 5] [--only raster,capacity,laws,dimension,allocation]

`dimension` needs the extra demo; `allocation` draws the stored result of that study. Writes
a Plotly page for each to out/pictures and, where a Chromium is installed, the picture of it that
docs show to docs/pictures.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from isospike.codes import CODES
from isospike.codes.orders import random_orders, similarity
from isospike.data import passages, shakespeare
from isospike.dimension import Moments, participation_ratio, pca_count
from isospike.experiments.study import stored
from isospike.hf.batches import rows_of, token_masks
from isospike.hf.load import load
from isospike.memory import SequenceMachine, SparseDistributedMemory, Store, expected_recall
from isospike.porting.discover import discover
from isospike.porting.measure import site_rows
from isospike.porting.run import Watcher

INK, COLOURS = "#222", ("#3366aa", "#cc6633", "#338855", "#884499", "#aa3344")


def raster() -> go.Figure:
    """One symbol comes to a wheel machine that has learned a sequence."""
    ids = np.random.default_rng(0).integers(0, 15, 200).tolist()
    store = Store(locations=2048, connections=20, data=(11, 256))
    machine = SequenceMachine(range(15), store=store, layers="wheel")
    machine.learn_sequence(ids)
    machine.reset_context()
    for symbol in ids[:20]:
        machine.follow(symbol)
    bursts = machine.spikes(ids[20])
    names = {
        "input": "input: 11 of 256",
        "learning": "data neurons, learning: 11 of 256",
        "context": "context: 22 of 512",
        "locations": "locations: 11 of 2,048",
        "output": "data neurons, predicting: 11 of 256",
    }
    figure = make_subplots(rows=len(bursts), shared_xaxes=True, vertical_spacing=0.045,
                           subplot_titles=list(names.values()))  # fmt: skip
    for row, (name, colour) in enumerate(zip(names, COLOURS, strict=True), 1):
        neurons, times = bursts[name]
        figure.add_trace(
            go.Scatter(
                x=times, y=neurons, mode="markers", name=name,
                marker={"symbol": "line-ns-open", "size": 13, "color": colour},
            ),
            row=row, col=1,
        )  # fmt: skip
    figure.update_xaxes(title="time, in intervals between the spikes of a code", row=5, col=1)
    figure.update_yaxes(title="neuron", row=3, col=1)
    return figure.update_layout(showlegend=False, height=760)


def curve(seeds: int) -> go.Figure:
    """Exact recall against pairs written: order by two rules, sets beside theory."""
    pairs = (250, 500, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000)
    figure = go.Figure()
    cases = (
        ("sets", {"rule": "or", "alpha": 0.9}, "set_exact"),
        ("order, rank votes (ours)", {"rule": "rank", "alpha": 0.9}, "order_exact"),
        ("order, published rule, alpha 0.99", {"rule": "max", "alpha": 0.99},
         "order_exact"),
    )  # fmt: skip
    for (name, settings, measure), colour in zip(cases, COLOURS, strict=False):
        means, spreads = [], []
        for count in pairs:
            found = []
            for seed in range(seeds):
                draw = torch.Generator().manual_seed(seed)
                memory = SparseDistributedMemory(generator=draw, **settings)
                address, data = (random_orders(count, 11, 256, draw) for _ in range(2))
                memory.write(address, data)
                read = similarity(memory.read(address[:300]), data[:300], settings["alpha"])
                found.append(getattr(read, measure).double().mean().item())
            means.append(np.mean(found))
            spreads.append(1.96 * np.std(found, ddof=1) / seeds**0.5)
        figure.add_trace(
            go.Scatter(x=pairs, y=means, name=name, line={"color": colour}, mode="lines+markers",
                       error_y={"array": spreads, "thickness": 1})
        )  # fmt: skip
    grid = list(range(250, 8001, 50))
    theory = [expected_recall(float(z), 16, 11, 4096, 256) for z in grid]
    figure.add_trace(
        go.Scatter(x=grid, y=theory, name="sets, theory",
                   line={"color": COLOURS[0], "dash": "dot"})
    )  # fmt: skip
    figure.update_xaxes(title="pairs written (W = 4096, w = 16, 11-of-256)")
    figure.update_yaxes(title="share recalled exactly", range=[-0.02, 1.04])
    return figure.update_layout(height=460, legend={"x": 0.0, "y": 1.12, "orientation": "h"})


def laws() -> go.Figure:
    """Error of each code against its steps: closed form, and uniform values coded."""
    figure = go.Figure()
    for name, colour in zip(CODES, (*COLOURS, "#999933"), strict=True):
        digits = CODES[name].neurons == 2 or name == "phase"
        steps = range(2, 17) if digits else [2**k for k in range(1, 9)]
        codes = [CODES[name](t) for t in steps]
        law = [c.mean_square_error**0.5 for c in codes]
        figure.add_trace(
            go.Scatter(x=list(steps), y=law, name=name, mode="lines", line={"color": colour})
        )
        draw = torch.Generator().manual_seed(0)
        measured = []
        for code in codes:
            x = code.low + (1 - code.low) * torch.rand(20_000, generator=draw).double()
            drawn = {"generator": draw} if name == "bernoulli" else {}
            error = code.quantize(x, **drawn) - x
            measured.append(float(error.square().mean().sqrt()))
        figure.add_trace(
            go.Scatter(x=list(steps), y=measured, mode="markers", showlegend=False,
                       marker={"color": colour, "size": 6})
        )  # fmt: skip
    ticks = [2**k for k in range(1, 9)]
    figure.update_xaxes(title="time steps (lines: closed form; points: measured)", type="log",
                        tickvals=ticks, ticktext=[str(t) for t in ticks])  # fmt: skip
    figure.update_yaxes(title="root-mean-square error, uniform values", type="log",
                        exponentformat="power", dtick=1)  # fmt: skip
    return figure.update_layout(height=460, legend={"x": 0.0, "y": 1.12, "orientation": "h"})


def dimension() -> go.Figure:
    """Effective dimension of MiniLM's sites, layer by layer."""
    text_model = load("minilm")
    model, batch = text_model.model, text_model.batch(passages(shakespeare(), 128))
    opened = discover(model, rows_of(batch, slice(0, 2))).template
    found: dict[str, tuple[str, Moments]] = {}

    class Take(Watcher):
        def on_input(self, site, x):
            if site.name not in found:
                rows = site_rows(opened.run, site, x)
                found[site.name] = site.kind, Moments(rows.shape[1])
                found[site.name][1].update(rows)
            return x

    with torch.no_grad(), opened.run.watching(Take(), token_masks(batch)):
        opened.model(**batch)
    names = {
        "self.query": "input of query, key and value", "self:query": "query", "self:key": "key",
        "self:value": "value", "attention.output.dense": "attention output",
        "intermediate.dense": "input of the feed-forward part", "output.dense": "its hidden layer",
    }  # fmt: skip
    figure = make_subplots(rows=1, cols=2, shared_xaxes=True, horizontal_spacing=0.09,
                           subplot_titles=["components with 95 % of the variance",
                                           "participation ratio"])  # fmt: skip
    colours = (*COLOURS, "#999933", "#777777")
    for (ending, label), colour in zip(names.items(), colours, strict=True):
        sites = [
            (int(n.split(".")[2]), m.variances())
            for n, (_, m) in found.items()
            if n.endswith(ending) and "layer" in n
            and (ending != "output.dense" or "attention" not in n)
        ]  # fmt: skip
        for column, measure in ((1, pca_count), (2, participation_ratio)):
            figure.add_trace(
                go.Scatter(x=[layer for layer, _ in sites], y=[measure(v) for _, v in sites],
                           name=label, showlegend=column == 1, mode="lines+markers",
                           line={"color": colour}),
                row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="layer", dtick=1)
    figure.update_yaxes(type="log", tickvals=[10, 20, 50, 100, 200, 500])
    return figure.update_layout(height=480, legend={"x": 0.0, "y": -0.2, "orientation": "h"})


def allocation() -> go.Figure:
    """Spikes against error of MiniLM's port, from the stored result of the study `allocation`."""
    rows = stored("results/allocation-full.json").results[0].rows
    points = [(*row[0].split(", ")[:2], float(row[1]), int(row[3].replace(",", "")))
              for row in rows]  # fmt: skip
    figure = go.Figure()
    names = {
        ("uniform", "signed-digit"): "same steps everywhere, signed digits",
        ("uniform", "half-octave"): "same steps everywhere, half-octave digits",
        ("allocated", "signed-digit"): "allocated, signed digits",
        ("allocated", "half-octave"): "allocated, half-octave digits",
    }
    for (key, label), colour in zip(names.items(), COLOURS, strict=False):
        own = sorted((p[2], p[3]) for p in points if (p[0], p[1]) == key)
        dash = "dot" if key[0] == "uniform" else "solid"
        figure.add_trace(
            go.Scatter(x=[p[0] for p in own], y=[p[1] for p in own], name=label,
                       mode="lines+markers", line={"color": colour, "dash": dash})
        )  # fmt: skip
    figure.update_xaxes(title="error of the output (relative RMS)")
    figure.update_yaxes(title="spikes per token", rangemode="tozero")
    return figure.update_layout(height=460, legend={"x": 0.0, "y": 1.2, "orientation": "h"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="raster,capacity,laws,dimension")
    args = parser.parse_args()
    torch.set_num_threads(1)
    makers = {
        "raster": raster, "capacity": lambda: curve(args.seeds), "laws": laws,
        "dimension": dimension, "allocation": allocation,
    }  # fmt: skip
    pages, pictures = Path("out/pictures"), Path("docs/pictures")
    for folder in (pages, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    for name in args.only.split(","):
        figure = makers[name]()
        figure.update_layout(template="plotly_white", width=900, font={"color": INK, "size": 14},
                             margin={"l": 70, "r": 20, "t": 40, "b": 60})  # fmt: skip
        page = pages / f"{name}.html"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        if browser:
            size = f"--window-size=920,{figure.layout.height + 20}"
            subprocess.run(  # noqa: S603
                [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size,
                 "--virtual-time-budget=5000", f"--screenshot={pictures.resolve() / name}.png",
                 page.resolve().as_uri()],
                check=True, capture_output=True,
            )  # fmt: skip
        print(page)


if __name__ == "__main__":
    main()
