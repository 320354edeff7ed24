"""The pictures of docs/sequence_machine.md: a learning step in spikes, and what a memory holds.

    python benchmarks/pictures.py [--seeds 5]

Writes a Plotly page for each to out/pictures and, where a Chromium is installed, the picture of it
that docs show to docs/pictures.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from isospike.memory.sdm import SparseDistributedMemory, expected_recall
from isospike.orders import random_orders, similarity
from isospike.sequence import SequenceMachine

INK, COLOURS = "#222", ("#3366aa", "#cc6633", "#338855", "#884499", "#aa3344")


def raster() -> go.Figure:
    """One symbol comes to a wheel machine that has learned a sequence."""
    ids = np.random.default_rng(0).integers(0, 15, 200).tolist()
    machine = SequenceMachine(
        range(15), layers="wheel", decoder=(20, 11, 2048), data=(11, 256), alpha=0.9
    )
    machine.learn_sequence(ids)
    machine.restart()
    for symbol in ids[:20]:
        machine.follow(symbol)
    bursts = machine.spikes(ids[20])
    names = {
        "input": "input: 11 of 256",
        "learning": "data neurons, learning: 11 of 256",
        "context": "context: 22 of 512",
        "lines": "lines: 11 of 2,048",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    pages, pictures = Path("out/pictures"), Path("docs/pictures")
    for folder in (pages, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    for name, figure in {"raster": raster(), "capacity": curve(args.seeds)}.items():
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
