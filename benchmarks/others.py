"""A port beside what others make of the same weights, in one run.

torchao (eight and four bits), torch's own dynamic eight bits, and two recipes of SpikingJelly 2.0,
which take a plain copy of the blocks. What is not installed has a row that says so. The preset
``tiny`` takes a small random BERT.
"""

import copy
import importlib
import io
import warnings
from collections import Counter
from itertools import groupby
from types import SimpleNamespace as P
from typing import NamedTuple

import torch
from torch import nn

import isospike
from benchmarks.models import (
    exact_batches,
    load_minilm,
    random_batches,
    small_bert,
    sts_benchmark,
)
from benchmarks.port import STS
from benchmarks.synapses import float_bytes, folder_bytes
from isospike.data import foreign_texts
from isospike.errors import MissingExtraError
from isospike.experiments.study import Findings, study
from isospike.hf.batches import first_output
from isospike.porting.run import run_of
from isospike.progress import update
from isospike.report.table import Table

LENGTHS = (9, 14, 22)  # tokens of the sentences in-domain


class Way(NamedTuple):
    """What came of the weights."""

    model: nn.Module
    bytes: float
    spikes: float | None


# ------------------------------------------------------------------------- what others make


def needed(package):
    """A package that is optional here."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"beside-others needs the package {error.name or package}. Install it with pip install "
            "--no-deps."
        ) from error


def saved_bytes(model):
    """Bytes of a model's weights as torch saves them."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def dynamic(model, p):
    """torch's eight-bit products with a scale for each tensor of activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torchao
        made = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    return Way(made, saved_bytes(made), None)


def torchao_int8(model, p):
    """torchao's eight-bit weights, activations of eight bits by token."""
    quantization = needed("torchao").quantization
    return _torchao(model, quantization.Int8DynamicActivationInt8WeightConfig())


def torchao_int4(model, p):
    """torchao's four-bit weights in groups of 32, activations of eight bits by token."""
    quantization = needed("torchao").quantization
    group = quantization.granularity.PerGroup(32)
    how = quantization.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=group
    )
    return _torchao(model, how)


def _torchao(model, how):
    made = copy.deepcopy(model)
    needed("torchao").quantization.quantize_(made, how)
    return Way(made, saved_bytes(made), None)


class Block(nn.Module):
    """A block of a BERT, of torch's own modules."""

    def __init__(self, layer, heads):
        super().__init__()
        own, width = layer.attention.self, layer.output.dense.out_features
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        each = [own.query, own.key, own.value]
        self.attention.in_proj_weight.data = torch.cat([m.weight.data for m in each])
        self.attention.in_proj_bias.data = torch.cat([m.bias.data for m in each])
        self.attention.out_proj.load_state_dict(layer.attention.output.dense.state_dict())
        self.before = copy.deepcopy(layer.attention.output.LayerNorm)
        self.up, self.down = (copy.deepcopy(m.dense) for m in (layer.intermediate, layer.output))
        self.bend = nn.GELU()
        self.after = copy.deepcopy(layer.output.LayerNorm)

    def forward(self, x):
        y, _ = self.attention(x, x, x, need_weights=False)
        x = self.before(x + y)
        return self.after(x + self.down(self.bend(self.up(x))))


class Replayed(nn.Module):
    """Blocks that SpikingJelly converted, given an input at the first step and nothing after it."""

    def __init__(self, embeddings, converted, steps):
        super().__init__()
        self.embeddings, self.converted, self.steps = embeddings, converted, steps

    def forward(self, input_ids, attention_mask):
        functional = importlib.import_module("spikingjelly.activation_based.functional")
        functional.reset_net(self.converted)
        x = self.embeddings(input_ids=input_ids)
        sequence = x.new_zeros(self.steps, *x.shape)
        sequence[0] = x
        return (self.converted(sequence).sum(0),)


def time_difference(model, p):
    """SpikingJelly's replay of the float model by differences in time."""
    recipes = needed("spikingjelly.activation_based.ann2snn")
    return _converted(model, p, recipes.TransformerTDEquivalentRecipe(time_steps=p.steps))


def spatio_temporal(model, p):
    """SpikingJelly's Spatio-Temporal Approximation, in the mode that its documents recommend."""
    recipes = needed("spikingjelly.activation_based.ann2snn")
    with torch.no_grad():
        shown = [model.embeddings(input_ids=b["input_ids"]) for b in p.whole]
    recipe = recipes.STATransformerRecipe(shown, time_steps=p.steps, mode="spiking_encoder")
    return _converted(model, p, recipe)


def _converted(model, p, recipe):
    recipes = needed("spikingjelly.activation_based.ann2snn")
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    heads = model.config.num_attention_heads
    blocks = nn.Sequential(*(Block(layer, heads) for layer in model.encoder.layer)).eval()
    converted = recipes.Converter(recipe=recipe).convert(blocks)
    functional.set_step_mode(converted, "m")
    return Way(Replayed(model.embeddings, converted, p.steps).eval(), float_bytes(model), None)


def ported(model, p, bits):
    """This port."""
    port = isospike.port(model, p.calibration, steps=p.steps, weight_bits=bits, evaluation=p.whole)
    size = folder_bytes(port, None)
    return Way(port.model, size, port.report.spikes)


# ------------------------------------------------------------------------- measuring


def errors(model, batches, expected):
    """Error over all tokens, and that of the worst one over its own norm."""
    lost = power = worst = 0.0
    with torch.inference_mode():
        for batch, wanted in zip(batches, expected, strict=True):
            each = (first_output(model(**batch)) - wanted).double().norm(dim=-1)
            size = wanted.double().norm(dim=-1)
            lost += float(each.square().sum())
            power += float(size.square().sum())
            worst = max(worst, float((each / size).max()))
    return (lost / power) ** 0.5, worst


def operands(model, batch):
    """How many products read spikes, and what the audit calls most operands."""
    run = vars(model).get("isospike_run")
    if run is None:
        found = isospike.audit(model, batch)
    else:
        with run_of(model).switched(execution="stepped"):
            found = isospike.audit(model, batch)
    spiking = sum(product.spiking for product in found.products)
    (pair, _), *_ = Counter((x.left, x.right) for x in found.products).most_common(1) or [
        (("", ""), 0)
    ]
    return f"{spiking} of {len(found.products)}: {pair[0]} by {pair[1]}"


def equal_lengths(tokenizer, sentences, count):
    """Batches of sentences that have the same number of tokens, so that nothing is padded."""
    tokens = sorted(tokenizer(sentences)["input_ids"], key=len)
    groups = {n: list(rows)[:count] for n, rows in groupby(tokens, key=len)}
    return [batch_of(groups[n]) for n in LENGTHS]


def batch_of(rows):
    """Tokens, all there."""
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def inputs(p, ctx):
    """Model, calibration batches, batches by kind of text, and one to be timed on."""
    if p.sentences is None:
        made = random_batches(6, 8, 12)
        return small_bert(), made[:3], {"in-domain": made[3:4], "512 tokens": made[4:5],
                                        "foreign": made[5:]}, made[3]  # fmt: skip
    tokenizer, model = load_minilm()
    dev, _, chosen = sts_benchmark(ctx.file("stsb"), p.sentences)
    calibration = [dict(tokenizer(chosen[i : i + 32], padding=True, return_tensors="pt"))
                   for i in range(0, len(chosen), 32)]  # fmt: skip
    foreign = tokenizer(foreign_texts()[:: p.thin], truncation=True, max_length=128)["input_ids"]
    texts = {
        "in-domain": equal_lengths(tokenizer, dev, p.rows),
        "512 tokens": exact_batches(1, 2, 512),
        "foreign": [batch_of([row]) for row in foreign],
    }
    return model, calibration, texts, exact_batches(1, 8, 64)[0]


OTHERS = {
    "torch, dynamic int8": dynamic, "torchao, int8": torchao_int8, "torchao, int4": torchao_int4,
    "SpikingJelly, time difference": time_difference, "SpikingJelly, STA": spatio_temporal,
}  # fmt: skip


@study(
    "beside-others",
    question="What do others make of the same weights, and what does it cost?",
    data=STS,
    extra="demo",
    presets={
        "tiny": P(sentences=None, steps=6, bits=(8,), rounds=1),
        "small": P(sentences=64, steps=8, bits=(8,), rows=8, thin=12, rounds=2),
        "full": P(sentences=96, steps=8, bits=(16, 8, 4), rows=16, thin=4, rounds=3),
    },
)
def beside_others(p, ctx):
    """all-MiniLM-L6-v2, calibrated on STS-B train; errors of the last hidden state against float on
    STS-B dev, on 512 tokens of Shakespeare and on text of other kinds; nothing is padded, because
    SpikingJelly's attention has no mask for padding."""
    model, calibration, texts, timed = inputs(p, ctx)
    p = P(**vars(p), calibration=calibration, whole=texts["in-domain"])
    with torch.inference_mode():
        true = {kind: [first_output(model(**b)) for b in each] for kind, each in texts.items()}
    makers = {f"port, T={p.steps}, {bits} bits": (ported, bits) for bits in p.bits}
    makers |= {name: (make,) for name, make in OTHERS.items()}
    numbers, rows, costs = {}, [], []
    for done, (name, (make, *bits)) in enumerate(makers.items()):
        update("beside-others", done, len(makers))
        try:
            way = make(model, p, *bits)
        except (MissingExtraError, ValueError, RuntimeError) as error:
            rows.append((name, f"not run: {str(error).splitlines()[0][:90]}", *[None] * 3))
            continue
        found = {kind: errors(way.model, texts[kind], true[kind]) for kind in texts}
        reads = operands(way.model, texts["in-domain"][0])
        timing = ctx.timing({"way": _once(way.model, timed), "float": _once(model, timed)},
                            p.rounds)  # fmt: skip
        ratio, size = timing.ratio("way", "float", cpu=True), way.bytes / float_bytes(model)
        numbers |= {f"error, {kind}, {name}": e for kind, (e, _) in found.items()}
        worst = max(w for _, w in found.values())
        numbers |= {f"worst token, {name}": worst, f"time, {name}": ratio, f"bytes, {name}": size}
        rows.append((name, *(f"{e:.4f}" for e, _ in found.values()), f"{worst:.2f}"))
        spikes = None if way.spikes is None else f"{way.spikes:,.0f}"
        costs.append((name, f"{ratio:.2f}", f"{size:.2f}", spikes, reads))
    head = ("model", "error", "512 tokens", "foreign", "worst token")
    tables = [
        Table("The same weights in other hands: errors", head, tuple(rows),
              "Relative error of the last hidden state, in-domain and on text unlike the "
              "calibration's, and the error of the worst token over its own norm."),
        Table("The same weights in other hands: costs",
              ("model", "time / float", "bytes / float", "spikes/token", "products on spikes"),
              tuple(costs),
              "Time on 8 rows of 64 tokens, saved bytes, and how many products read spikes, with "
              "what the audit calls most of their operands: only the port's all do."),
    ]  # fmt: skip
    return Findings(numbers, tables)


def _once(model, batch):
    def run():
        with torch.inference_mode():
            model(**batch)

    return run
