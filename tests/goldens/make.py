"""Writes the golden files: what isospike reported, said and computed before it was restructured.

Run in tests/: ``HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m goldens.make [reports cli_help ..]``.
test_goldens.py compares. What is hashed is computed from fractions that are the same on every
machine; reports and pages rest on random weights and matrix products, which round differently.
"""

import contextlib
import csv
import hashlib
import json
import random
import shutil
import sys
import tempfile
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path

import models
import numpy as np
import torch
from folders import WORDS, make_folder
from typer.testing import CliRunner

# ------------------------------------------- the only names of isospike below: adapt them here
import isospike.neurons as neurons
from isospike import Target, measure_ranks, order_causes, port, positions
from isospike.causal.simulate import random_dag, simulate
from isospike.causal.table import DataTable, read_table
from isospike.circuits.few_spike import few_spike_neuron
from isospike.cli import app
from isospike.codes import CODES, RankOrderCode
from isospike.codes.orders import nof_m, significance, similarity
from isospike.errors import IsospikeError
from isospike.experiments.grid import Preset, train_grid
from isospike.experiments.page import html as positions_page
from isospike.memory import (
    Backoff,
    Combined,
    Layer,
    SequenceMachine,
    Shift,
    SparseDistributedMemory,
    Store,
)

ENGINES = ("reference", "cpu")
IF, LIF, PLIF, NeuronParams = neurons.IF, neurons.LIF, neurons.PLIF, neurons.NeuronParams
PORTS = {
    "uniform": {"code": "signed-digit", "steps": 6},
    "by error": {"steps": Target(0.1)},
    "allocated": {"steps": Target(0.1, per_channel=True)},
    "spiking": {"steps": 6, "functions": "spiking"},
    "static": {"steps": 6, "ranges": "static"},
}
OTHER_PORTS = {
    "phase": {"code": "phase", "steps": 6},
    "half-octave": {"code": "half-octave", "steps": 9},
    "rate": {"code": "rate", "steps": 16},
    "bernoulli": {"code": "bernoulli", "steps": 16},
    "latency": {"code": "latency", "steps": 16},
    "stepped": {"steps": 4, "execution": "stepped"},
    "by site": {"steps": (("*", 6), ("*dense", 4))},
    "curve": {"steps": 4, "sweep": ("signed-digit", "rate")},
    "no such code": {"code": "morse"},
    "too low an error": {"steps": Target(1e-9)},
    "no such functions": {"functions": "boolean"},
}
# ---------------------------------------------------------------------------------------------

HERE = Path(__file__).parent
NAMES = ("bert", "vit", "gpt2", "llama")
DROPPED = ("versions", "seconds")
MANY = 40  # whole numbers in a list, above which their digest is stored
TEXT = "the quick brown fox jumps over the lazy dog. the quick red fox sleeps. " * 3


def digest(tensor):
    """A sha256 of values and shape; whole numbers whatever their type, floats to 6 digits."""
    array = np.asarray(tensor.detach().double() if isinstance(tensor, torch.Tensor) else tensor)
    text = f"{array.shape} {' '.join(f'{v:.6g}' for v in array.astype(float).ravel())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value):
    """JSON without versions and times, long lists of whole numbers by their digest."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in DROPPED}
    if isinstance(value, list):
        flat = [v for row in value for v in (row if isinstance(row, list) else [row])]
        if len(flat) > MANY and all(type(v) is int for v in flat):
            return f"{len(value)} of digest {digest(flat)}"
        return [plain(v) for v in value]
    return value


def rounding():
    """A digest of the four float models' outputs, bit by bit: it tells how a machine rounds."""
    outputs = (models.run(models.make(n), models.batch(n)).numpy().tobytes() for n in NAMES)
    return hashlib.sha256(b"".join(outputs)).hexdigest()[:16]


def refusal(run):
    """What ``run`` gives, or the text with which it is refused."""
    try:
        return run()
    except IsospikeError as error:
        return {"error": f"{type(error).__name__}: {error}"}


# ----------------------------------------------------------------------- reports


@cache
def ported(name, steps=8, sweep=(), **arguments):
    steps = dict(steps) if isinstance(steps, tuple) else steps
    calibration, held = models.batches(name)
    model = models.make(name)
    model.name_or_path = name
    return models.seeded(  # Bernoulli spikes are drawn by torch's global generator
        lambda: (
            port(model, [calibration], evaluation=[held], steps=steps, **arguments)
            .sweep(sweep)
            .report
        )
    )


def port_report(name, arguments, home):
    return refusal(lambda: plain(json.loads(ported(name, **arguments).to_json())))


def other_port(arguments, home):
    """The headline only."""
    found = refusal(lambda: plain(json.loads(ported("bert", **arguments).to_json())))
    return {key: value for key, value in found.items() if key not in ("sites", "counts", "raster")}


@cache
def ranks(name, controls=False):
    return measure_ranks(models.make(name), models.batch(name, 2), controls=controls, name=name)


def ranks_json(name, home):
    return plain(json.loads(ranks(name, controls=name == "bert").to_json()))


@cache
def order(mechanism):
    if mechanism == "sachs":
        table = read_table("sachs")
        return order_causes(table.rows, table.truth)
    draw = torch.Generator().manual_seed(0)
    made = simulate(random_dag(6, 1.0, "er", draw), 300, mechanism, generator=draw)
    table = DataTable(tuple(f"x{i}" for i in range(6)), made.data, "simulated")
    return order_causes(table, made.truth)


def order_json(mechanism, home):
    return plain(json.loads(order(mechanism).to_json()))


def dimensions(name, home):
    done = call(home, f"dimension {name} --text text.txt --sentences 6 --json")
    sites = {s["name"]: {"kind": s["kind"], **s["dimension"]} for s in done["stdout"]["sites"]}
    return {"exit": done["exit"], "stderr": done["stderr"], **sites}


# ------------------------------------------------------------------ command lines

COMMANDS = (
    "", "check", "port", "compare", "embed", "generate", "dimension", "rank", "learn", "recall",
    "watch",
    "reproduce", "positions", "order",
)  # fmt: skip
PORT = "port bert --text text.txt --out out/port --json --no-curve"
RUNS = (
    f"{PORT} --steps 4 --sentences 8",
    f"{PORT} --max-error 1e-9 --sentences 8",
    "check bert",
    "compare ported ported --out out/both",
    "embed ported --text lines.txt --json",
    "rank bert --text text.txt --tokens 16 --no-controls",
    "learn text.txt --out out/m.safetensors --json",
    "learn text.txt --unit word --out out/m.safetensors --limit 99",
    "recall machine.safetensors --prompt w1 --symbols 30",
    "order data.csv --out out/order",
    "order data.csv --truth edges.csv --out out/order --json",
    "reproduce",
    "--version",
)
MISTAKES = (
    "prot", "port", "port bert --steps many", f"{PORT} --steps 0", f"{PORT} --steps 33",
    f"{PORT} --code morse", f"{PORT} --steps 8 --max-error 0.1", f"{PORT} --max-error nan",
    f"{PORT} --per-channel", f"{PORT} --sentences 1", f"{PORT} --functions both",
    f"{PORT} --precision fast --execution stepped", "port ./nowhere", "port text.txt",
    "port bert --text missing.txt", "port bert --text empty.txt", "port ported --text text.txt",
    "port bert --text text.txt --out other",
    "check ./nowhere", "check ported", "compare ported nowhere", "compare bert@4 bert@x",
    "embed", "embed nowhere --text lines.txt", "embed bert --text lines.txt",
    "embed ported --text lines.txt --json --out x.npy", "embed ported --text lines.txt --out x.txt",
    "embed ported --text empty.txt", "generate nowhere --prompt w1", "generate bert --prompt w1",
    "generate ported --prompt w1", "generate ported --prompt w1 --tokens 0",
    "generate ported --prompt w1 --temperature nan", "dimension bert --share 0",
    "dimension bert --sentences 0", "dimension bert --text missing.txt", "dimension ./nowhere",
    "rank bert --sequences 0", "rank bert --tokens 1", "rank bert --tokens 999", "rank ./nowhere",
    "rank bert --text empty.txt", "learn missing.txt", "learn text.txt --limit 0",
    "learn text.txt --unit page", "learn empty.txt", "learn text.txt --unit word --out "
    "machine.safetensors", "recall missing.safetensors", "recall text.txt",
    "recall machine.safetensors --prompt Z", "recall machine.safetensors --symbols -1",
    "order missing.csv", "order lines.txt", "order empty.txt", "order data.csv --truth missing.csv",
    "order data.csv --truth lines.txt", "order data.csv --information best",
    "order data.csv --gamma 2",
    "order data.csv --level 2", "order data.csv --correction per-sample", "reproduce nothing",
    "reproduce geometry --preset huge", "reproduce geometry --workers 0", "positions --tasks chess",
    "positions --encodings rotary", "positions --preset huge", "positions --seeds 0",
)  # fmt: skip


def prepare(home):
    """A folder with models, texts, a table, a port and a sequence machine."""
    for name in ("bert", "gpt2"):
        make_folder(home / name, name)
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(8, 20))) for _ in range(30)]
    (home / "text.txt").write_text("\n".join(lines))
    (home / "lines.txt").write_text("w1 w2 w3\n\nw4\nw5 w6\n")
    (home / "empty.txt").write_text("")
    (home / "other").mkdir()
    (home / "other" / "thesis.txt").write_text("all of it")
    noise = [[chance.random() for _ in "abcd"] for _ in range(120)]
    rows = [(a, 2 * a + b, a * a + b + c, a + b + d) for a, b, c, d in noise]
    with (home / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list("abcd"), *rows])
    (home / "edges.csv").write_text("a,b\na,c\nb,c\nb,d\n")
    for line in (
        "port bert --text text.txt --out ported --steps 4 --sentences 8 --no-curve",
        "learn text.txt --out machine.safetensors --limit 2000",
    ):
        if call(home, line)["exit"] != 0:
            raise RuntimeError(line)


def call(home, line):
    """Exit code, stdout and stderr of a command line, 80 columns wide and without colour."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    with contextlib.chdir(home):
        shutil.rmtree("out", ignore_errors=True)
        environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
        done = CliRunner().invoke(app, line.split(), env=environment)
    logging.set_verbosity(level)
    logging.enable_progress_bar()
    text = done.stdout.replace(f"{home}/", "")
    out = text.splitlines()
    with contextlib.suppress(json.JSONDecodeError):
        out = plain([json.loads(row) for row in out])
    with contextlib.suppress(json.JSONDecodeError):
        out = plain(json.loads(text))
    return {"exit": done.exit_code, "stdout": out, "stderr": done.stderr.splitlines()}


# ------------------------------------------------------------------------- pages


class Outline(HTMLParser):
    """Headings and table cells, in order, tag by tag; a table row is a list of its cells."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = [], None

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.found.append([])
        if tag in ("h1", "h2", "h3", "th", "td"):
            self.inside = [f"{tag}: "]

    def handle_data(self, data):
        if self.inside is not None:
            self.inside.append(data)

    def handle_endtag(self, tag):
        if self.inside is not None and self.inside[0] == f"{tag}: ":
            text = " ".join("".join(self.inside).split())
            (self.found[-1] if tag in ("th", "td") else self.found).append(text)
            self.inside = None


def outline(page):
    parser = Outline()
    parser.feed(page)
    return parser.found


def positions_outline(home):
    preset = Preset("tiny", 3, 2, (0.003, 0.01), tests=8)
    tasks, variants = ("copy-1", "sort"), ("rope", "none")
    runs = train_grid(tasks, variants, preset, home / "cells")
    return outline(positions_page(runs, tasks, variants, preset))


# ------------------------------------------------------------------------ hashes


def spread(*shape, step=7919):
    """Multiples of 1/64 from -1 to 2.5, well mixed and the same everywhere."""
    n = int(np.prod(shape))
    return ((torch.arange(n) * step) % 224 - 64).view(shape) / 64


def neuron_spikes(home):
    x, found = spread(40, 3, 16), {}
    channels = torch.arange(16) / 32 + 0.5
    for cls in (IF, LIF, PLIF):
        for what, params in {
            "": NeuronParams(decay=0.5),
            " to a value": NeuronParams(decay=0.75, gain=0.5, bias=0.125, reset_to=-0.25),
            " by an amount": NeuronParams(decay=0.5, threshold=1.5, reset_by=0.5),
            " by channel": NeuronParams(decay=0.5, threshold=channels),
        }.items():
            for engine in ENGINES:
                spikes, state = cls(params, engine=engine).run(x)
                found[f"{cls.__name__}{what} {engine}"] = {
                    "spikes": digest(spikes), "count": int(spikes.sum()), "v": digest(state.v),
                }  # fmt: skip
    return found


def code_spikes(home):
    found, x = {}, torch.arange(97) / 96
    for name, cls in CODES.items():
        for steps in (3, 6, 9):
            code = cls(steps)
            values = 2 * x - 1 if code.low < 0 else x
            draws = name == "bernoulli"

            def seeded(draws=draws):
                return {"generator": torch.Generator().manual_seed(5)} if draws else {}

            spikes = code.encode(values, **seeded())
            found[f"{name} {steps}"] = {
                "spikes": digest(spikes), "count": int(spikes.sum()), "levels": code.levels,
                "weights": [int(w) for w in code.step_weights],
                "decoded": digest(code.decode(spikes)),
                "quantized": digest(code.quantize(values, **seeded())),
                "counts": digest(code.count(values, **seeded())),
            }  # fmt: skip
    code = RankOrderCode(5)
    spikes = code.encode(spread(8, 32))
    found["rank-order 5"] = {"spikes": digest(spikes), "decoded": digest(code.decode(spikes))}
    for name in ("sqrt", "gelu", "exp", "silu residual"):
        neuron = few_spike_neuron(name)
        values = neuron.low + (neuron.high - neuron.low) * x
        found[f"few-spike {name}"] = {
            "spikes": digest(neuron.encode(values)), "y": neuron(values[::12]).tolist(),
        }  # fmt: skip
    return found


def machine(context, layers, home):
    kinds = {"combined": Combined(), "layer": Layer(), "shift": Shift(), "voting": Backoff()}
    learner = SequenceMachine(
        sorted(set(TEXT)), context=kinds[context], layers=layers or "abstract",
        store=None if context == "voting" else Store(locations=1024),
    )  # fmt: skip
    right = learner.learn_sequence(TEXT)
    learner.reset_context()
    guesses = []
    for symbol in TEXT[:71]:
        guesses.append(learner.predict())
        learner.follow(symbol)
    fields = ("similarity", "margin", "accepted")
    return {
        "right": digest(right), "count": int(right.sum()),
        "predicted": "".join(str(g.symbol or "_") for g in guesses),
        **{name: float(sum(getattr(g, name) for g in guesses)) for name in fields},
        "generated": "".join(learner.generate("the ", 40)),
    }  # fmt: skip


def own_orders(count, n, m, step):
    """Different orders of n of m, the same everywhere."""
    return ((torch.arange(count * m) * step) % 10007).view(count, m).double().argsort(-1)[:, :n]


def memory(home):
    found = {}
    address, data = own_orders(60, 11, 256, 7919), own_orders(60, 11, 256, 4243)
    for rule, layers in (
        *((rule, None) for rule in ("or", "max", "add", "decay", "rank")),
        *((rule, kind) for kind in ("wheel", "rdlif") for rule in ("or", "max", "trace", "stdp")),
    ):
        store = SparseDistributedMemory(
            decoder=(20, 16, 512), rule=rule, layers=layers or "abstract",
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        store.write(address, data)
        read = store.read(address)
        found[f"{rule} {layers}"] = {
            "read": digest(read), "right": int((read == data).sum()),
            "lines": digest(store.active_locations(address)), "occupancy": store.occupancy,
        }  # fmt: skip
    a, b = own_orders(20, 5, 16, 7919), own_orders(20, 5, 16, 4243)
    found["orders"] = {
        "nof_m": digest(nof_m(spread(8, 32), 5)), "significance": digest(significance(a, 16, 0.75)),
        **{k: digest(v.nan_to_num(9.0).double()) for k, v in
           similarity(a, b, 0.75)._asdict().items()},
    }  # fmt: skip
    return found


def position(name, home):
    encoding = models.seeded(lambda: positions.position(name, width=24, heads=3, length=20)).eval()
    x, q, at = spread(2, 12, 24), spread(2, 3, 12, 8), torch.arange(12)
    rotated, bias = encoding.rotate(q, q), encoding.bias(at, at)
    parts = {"add": encoding.add(x) - x, "rotate": rotated[0] - q, "bias": bias}
    return {
        key: [round(v, 6) for v in value.detach().flatten()[::29].tolist()]
        for key, value in parts.items()
        if value is not None and value.any()
    } | {"index": encoding.index(12).tolist()}


# ------------------------------------------------------------------------- files

REPORTS = {
    **{f"port {n} {way}": partial(port_report, n, p) for n in NAMES for way, p in PORTS.items()},
    **{f"port bert {way}": partial(other_port, p) for way, p in OTHER_PORTS.items()},
    **{f"rank {name}": partial(ranks_json, name) for name in ("bert", "gpt2", "llama")},
    **{f"order {name}": partial(order_json, name) for name in ("linear", "sin", "sachs")},
    "dimension bert": partial(dimensions, "bert"),
}
PAGES = {
    **{f"port bert {way}": lambda home, p=p: outline(ported("bert", **p).html())
       for way, p in {**PORTS, "curve": OTHER_PORTS["curve"]}.items()},
    "rank": lambda home: outline(ranks("bert", controls=True).html()),
    "order": lambda home: outline(order("linear").html()),
    "positions": positions_outline,
}  # fmt: skip
HASHES = {
    "neurons": neuron_spikes,
    "codes": code_spikes,
    **{f"machine {context} {layers}": partial(machine, context, layers)
       for context in ("combined", "layer", "shift", "voting")
       for layers in ((None,) if context == "voting" else (None, "wheel", "rdlif"))},
    "memory": memory,
    **{f"position {name}": partial(position, name) for name in positions.POSITIONS},
}  # fmt: skip
CASES = {
    "reports": REPORTS,
    "cli_help": {f"{c} --help".strip(): lambda home, c=c: call(home, f"{c} --help")
                 for c in COMMANDS},
    "cli_errors": {line: lambda home, line=line: call(home, line) for line in (*RUNS, *MISTAKES)},
    "pages": PAGES,
    "hashes": HASHES,
}  # fmt: skip
"""By file and by case, what is computed; every function is given the folder of :func:`prepare`."""

SLOW = (
    *(f"port {name} {way}" for name in NAMES[1:] for way in ("spiking", "allocated")),
    "port bert too low an error",
    *(f"port bert {way}" for way in ("rate", "half-octave", "bernoulli", "phase", "latency")),
    "port bert by site",
    *(f"port {name} static" for name in NAMES[1:]),
    RUNS[1],
)
LINES = {"reports": 3, "cli_help": 3, "cli_errors": 2, "pages": 2, "hashes": 2}


def lay_out(value, levels):
    """JSON with one line for each thing so many levels down."""
    if levels == 0 or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, list):
        return "[\n" + ",\n".join(lay_out(v, levels - 1) for v in value) + "\n]"
    lines = (f"{json.dumps(k, ensure_ascii=False)}: {lay_out(v, levels - 1)}"
             for k, v in value.items())  # fmt: skip
    return "{\n" + ",\n".join(lines) + "\n}"


def main():
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for file in sys.argv[1:] or CASES:
            found = {case: run(Path(folder)) for case, run in CASES[file].items()}
            (HERE / f"{file}.json").write_text(lay_out(found, LINES[file]) + "\n", encoding="utf-8")
        (HERE / "rounding.json").write_text(json.dumps(rounding()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
