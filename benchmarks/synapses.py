"""Ports with weights of 16, 8 and 4 bits.

The preset ``tiny`` ports a small random BERT on random tokens.
"""

import tempfile
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace as P

import torch

import isospike
from benchmarks.models import (
    exact_batches,
    load_minilm,
    minilm_path,
    random_batches,
    small_bert,
)
from benchmarks.port import STS, embed, sentences, spearman
from isospike.data import foreign_texts
from isospike.experiments.study import Findings, Goal, study
from isospike.hf.load import load
from isospike.kernels.product.int8 import MAX_PAIRED_SPIKE, largest_spike
from isospike.progress import update
from isospike.report.table import Table

ERRORS = {8: 0.034, 4: 0.12}
SPEARMANS = {8: 0.2, 4: 1.0}
SIZES = {8: 0.30, 4: 0.17}
TIMES = {"collapsed, 8 bits, T=8": 0.5, "collapsed, 8 bits, T=7": 0.4, "stepped, 8 bits, T=8": 3.0}


def folder_bytes(port, tokenizer):
    """Bytes of a saved port without its report."""
    with tempfile.TemporaryDirectory() as place:
        folder = port.save(Path(place) / "port", tokenizer)
        return sum(f.stat().st_size for f in folder.iterdir()
                   if not f.name.startswith("report") and f.suffix != ".csv")  # fmt: skip


def float_bytes(model):
    """Bytes of the float model's weights."""
    return sum(p.numel() * 4 for p in model.parameters())


def dynamic_int8(model):
    """The same model with torch's dynamic eight-bit products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torchao
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


@study(
    "synapses",
    question="What do weights of eight and of four bits cost, and what do they save?",
    data=STS,
    extra="demo",
    presets={
        "tiny": P(sentences=None, steps=6, bits=(8,)),
        "small": P(sentences=96, steps=8, bits=(16, 8)),
        "full": P(sentences=256, steps=8, bits=(16, 8, 4)),
    },
)
def synapses(p, ctx):
    """all-MiniLM-L6-v2, calibrated on sentences of STS-B train, measured on dev and on text of
    other kinds; beside it the quantised network of as many bits."""
    model, calibration, dev, scores = sentences(p, ctx)
    evaluation = {"held out": [batch for _, batch in dev[:: max(1, len(dev) // 4)]]}
    tokenizer = None
    if p.sentences is not None:
        source = load(minilm_path())
        tokenizer = source.tokenizer
        evaluation["foreign"] = source.batches(foreign_texts())
    reference = spearman(embed(model, dev)[0], scores)
    numbers, goals, rows = {"Spearman, float32": reference}, {}, []
    for done, bits in enumerate(p.bits):
        update("synapses", done, len(p.bits))
        port = isospike.port(model, calibration, steps=p.steps, evaluation=evaluation,
                             weight_bits=bits)  # fmt: skip
        report = port.report
        change = spearman(embed(port.model, dev)[0], scores) - reference
        size = folder_bytes(port, tokenizer) / float_bytes(model)
        name = f"{bits} bits"
        numbers |= {
            f"error, {name}": report.error, f"quantised network's error, {name}":
            report.error_quantised, f"Spearman change, {name}": change, f"folder, {name}": size,
        }  # fmt: skip
        numbers |= {f"error on {t.name} text, {name}": t.error for t in report.texts[1:]}
        if bits in ERRORS and p.sentences is not None:
            goals |= {f"error, {name}": Goal(report.error, ERRORS[bits]),
                      f"Spearman change, {name}": Goal(abs(change), SPEARMANS[bits]),
                      f"folder, {name}": Goal(size, SIZES[bits])}  # fmt: skip
        foreign = next((f"{t.error:.4f}" for t in report.texts[1:]), None)
        rows.append((name, f"{report.error:.4f}", foreign, f"{report.error_quantised:.4f}",
                     f"{reference + change:.2f} ({change:+.2f})", f"{size:.3f}"))  # fmt: skip
    if p.sentences is not None:
        states = embed(dynamic_int8(model), dev)
        true = embed(model, dev)
        lost = sum(float((a - b).square().sum()) for a, b in zip(states[1], true[1], strict=True))
        power = sum(float(b.square().sum()) for b in true[1])
        change = spearman(states[0], scores) - reference
        numbers["error, torch's dynamic int8"] = (lost / power) ** 0.5
        rows.append(("torch, dynamic int8", f"{(lost / power) ** 0.5:.4f}", None, None,
                     f"{reference + change:.2f} ({change:+.2f})", None))  # fmt: skip
    head = ("weights", "error", "foreign text", "quantised network's error", "Spearman (change)",
            "folder / float32")  # fmt: skip
    meaning = (
        "Error of the last hidden state, that of the quantised network of as many bits on the same "
        "sentences, and the size of the saved folder beside the float weights: at 8 bits the port "
        "is as good as at 16 and a third of the size or less."
    )
    return Findings(numbers, [Table("MiniLM by bits of a weight", head, tuple(rows), meaning)],
                    goals)  # fmt: skip


@study(
    "synapse-speed",
    question="How much of a port's time do weights of eight bits save?",
    extra="demo",
    presets={
        "tiny": P(rounds=1, rows=2, tokens=12, threads=1, ways=((8, 6),)),
        "small": P(rounds=3, rows=8, tokens=64, threads=2, ways=((16, 8), (8, 8))),
        "full": P(rounds=5, rows=32, tokens=64, threads=2,
                  ways=((16, 8), (8, 8), (8, 7), (8, 6))),
    },
)  # fmt: skip
def synapse_speed(p, ctx):
    """all-MiniLM-L6-v2: ports of some bits and steps, collapsed and stepped, in turn with the float
    model and with torch's dynamic eight bits."""
    torch.set_num_threads(p.threads)
    small = p.tokens < 64
    model = small_bert() if small else load_minilm()[1]
    batch, *calibration = (random_batches if small else exact_batches)(3, p.rows, p.tokens)
    models = {"float32": model, "torch's dynamic int8": dynamic_int8(model)}
    with tempfile.TemporaryDirectory() as place:
        for bits, steps in p.ways:
            port = isospike.port(model, calibration, steps=steps, weight_bits=bits)
            folder = port.save(Path(place) / f"{bits}-{steps}")
            for execution in ("collapsed", "stepped"):
                name = f"{execution}, {bits} bits, T={steps}"
                models[name] = isospike.load(folder, execution=execution)
    with torch.inference_mode():
        times = ctx.timing({name: partial(m, **batch) for name, m in models.items()}, p.rounds)
    numbers = {name: times.ratio(name, "float32") for name in models}
    rows = [(name, f"{1e3 * times.seconds(name):.0f}", f"{numbers[name]:.2f}") for name in models]
    goals = {} if small else {n: Goal(numbers[n], limit) for n, limit in TIMES.items()
                              if n in numbers}  # fmt: skip
    numbers["largest byte that is counted exactly"] = largest_spike()
    meaning = (
        f"{p.rows} x {p.tokens} tokens, {p.threads} threads. A processor whose eight-bit unit adds "
        f"in 16 bits counts bytes up to {MAX_PAIRED_SPIKE} exactly: a collapsed run then uses it "
        "up to 6 steps. One that adds in 32 bits counts up to 255: up to 7 steps in one product, 8 "
        "in two. With AVX2 alone all products are float32's, which take less time there."
    )
    table = Table("Time of a forward pass", ("run", "ms", "ratio to float32"), tuple(rows), meaning)
    return Findings(numbers, [table], goals)
