"""A GPU: how fast are neurons, products, ports and Spikformers there? ``tiny`` runs on a CPU."""

import statistics
from functools import partial

import torch
import torch.nn.functional as F

import isospike
from benchmarks.gpu import card, on, presets
from benchmarks.models import load_minilm, random_batches, small_bert
from benchmarks.neurons import (
    differing,
    lif_peers,
    record_modules,
    spikes,
    spikingjelly_spikformer,
)
from isospike.experiments.study import Findings, study
from isospike.hf.batches import first_output
from isospike.models import SpikformerConfig
from isospike.models.spikformer import Spikformer, fold, from_spikingjelly
from isospike.neurons import LIF, NeuronParams
from isospike.porting.run import run_of
from isospike.presets import spikingjelly_lif
from isospike.products import spike_attention, spike_linear
from isospike.progress import update
from isospike.report.table import Table


def milliseconds(p, runs):
    """Median milliseconds of each run, by events of the device; runs alternate."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(p.rounds + 2):
        for name, each in runs.items():
            if p.device != "cuda":
                each()
                times[name].append(1.0)
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(p.inner):
                each()
            end.record()
            end.synchronize()
            if i >= 2:
                times[name].append(start.elapsed_time(end) / p.inner)
    return {name: statistics.median(t) for name, t in times.items()}


def faster(p, title, runs, base, meaning):
    """Times, how many times faster than ``base`` each is, and runs that fail."""
    good, rows = {}, []
    for name, each in runs.items():
        try:
            each()
            good[name] = each
        except Exception as error:  # noqa: BLE001 - the others are to be timed
            rows.append((name, "failed", f"{type(error).__name__}: {str(error)[:200]}"))
    times = milliseconds(p, good)
    base = base if base in times else next(iter(times))
    ratios = {name: times[base] / t for name, t in times.items()}
    rows = [(name, f"{t:.3g}", f"{ratios[name]:.3g}") for name, t in times.items()] + rows
    table = Table(f"{title}, {card(p)}", ("run", "ms", f"{base} / run"), tuple(rows), meaning)
    return table, {f"{title}: {name}": r for name, r in ratios.items()}


def torch_loop(x):
    """The neuron in torch, step by step."""
    v, out = torch.zeros_like(x[0]), []
    for current in x:
        h = 0.5 * v + 0.5 * current
        s = (h >= 1).to(x.dtype)
        out.append(s)
        v = h * (1 - s)
    return torch.stack(out)


@study(
    "gpu-neurons",
    question="How fast are neurons and spike products on a GPU?",
    extra="peers",
    presets=presets(
        shape=((4, 2, 8, 16), (4, 256, 196, 384)),
        rows=((4, 2, 8, 32), (4, 64, 196, 384)),
        heads=((2, 1, 2, 8, 16), (4, 64, 12, 196, 32)),
    ),
)
def neurons(p, ctx):
    """LIF over a torch loop, SpikingJelly and a copy; products over torch's."""
    card(p)
    x = 1.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.device)
    up = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(p.device)
    graded, layer = x.clone().requires_grad_(), LIF(spikingjelly_lif())
    small, half = LIF(spikingjelly_lif(), dtype=torch.uint8), x.bfloat16()
    peers = lif_peers(p)

    def no_grad(f, x=x):
        with torch.no_grad():
            return f(x)

    def both(f):
        return torch.autograd.grad(f(graded), graded, up)[0]

    channels = torch.linspace(0.25, 0.75, p.shape[-1], device=p.device)
    learnt = LIF(NeuronParams(decay=channels, gain=channels, threshold=channels + 0.5))
    ours = no_grad(layer)
    numbers = {}
    for name, f in peers.items():
        try:
            numbers[f"spikes that differ, {name}"] = int((no_grad(f) != ours).sum())
        except Exception as error:  # noqa: BLE001 - see the tables
            update(f"{name}: {error}", 0, 1)
    forward = {
        "torch loop": partial(no_grad, torch_loop),
        **{name: partial(no_grad, f) for name, f in peers.items()},
        "isospike": partial(no_grad, layer),
        "isospike, bytes out": partial(no_grad, small),
        "isospike, bfloat16": partial(no_grad, layer, half),
        "isospike, three parameters for each channel": partial(no_grad, learnt),
        "copy of the input": x.clone,
    }
    backward = {n: partial(both, f) for n, f in {**peers, "isospike": layer}.items()}
    backward["three copies of the input"] = lambda: [x.clone() for _ in range(3)]
    linear, attention = products(p)
    made = [
        faster(p, "LIF forward", forward, "torch loop", "A copy is the limit of float32 spikes."),
        faster(p, "LIF forward and backward", backward, "SpikingJelly",
               "The gradient reads the input and the spikes' gradient, and writes one."),
        faster(p, "Linear layer", linear, "torch, float32", "Spikes at 15 %."),
        faster(p, "Attention", attention, "torch, float32", "Spikes at 15 %."),
    ]  # fmt: skip
    for _, ratios in made:
        numbers |= ratios
    return Findings(numbers, [t for t, _ in made])


def products(p):
    """Calls of a linear layer and of attention, on spikes of each type and in torch."""
    s = spikes(p.rows, 0.15, 0).to(p.device)
    weight = torch.randn(4 * s.shape[-1], s.shape[-1], generator=torch.Generator().manual_seed(1))
    weight, single, width = weight.to(p.device), s.float(), s.bfloat16()
    halved = weight.bfloat16()
    linear = {
        "torch, float32": lambda: F.linear(single, weight),
        "torch, bfloat16": lambda: F.linear(width, halved),
        **{f"isospike, {way}, from {kind}": partial(spike_linear, t, weight, precision=way)
           for way in ("exact", "fast")
           for kind, t in (("bytes", s.byte()), ("float32", single), ("bfloat16", width))},
    }  # fmt: skip
    q, k, v = (spikes(p.heads, 0.15, i).to(p.device) for i in range(3))
    floats, halves = ([t.to(d) for t in (q, k, v)] for d in (torch.float32, torch.bfloat16))
    attention = {
        "torch, float32": lambda: 0.125 * (floats[0] @ floats[1].transpose(-1, -2) @ floats[2]),
        **{f"isospike, from {n}": partial(spike_attention, *t)
           for n, t in (("bytes", [t.byte() for t in (q, k, v)]), ("float32", floats),
                        ("bfloat16", halves))},
    }  # fmt: skip
    return linear, attention


@study(
    "gpu-models",
    question="How fast are ports and Spikformers on a GPU?",
    extra="peers",
    presets=presets(batch=((4, 12), (32, 64)), images=(1, 64)),
)
def models(p, ctx):
    """MiniLM collapsed and stepped over float32; Spikformer over SpikingJelly's."""
    card(p)
    rows, tokens = p.batch
    model = load_minilm()[1] if p.peers else small_bert()
    batches = random_batches(3, rows, tokens)
    port = isospike.port(model, batches[:2], evaluation=batches[2:])
    there = on(p.device, batches[2])
    ported, model = port.model.to(p.device), model.to(p.device)
    half = type(model)(model.config).eval().to(p.device, torch.bfloat16)
    numbers = {"error": port.report.error}

    def ours(**settings):
        with torch.inference_mode(), run_of(ported).switched(**settings):
            return first_output(ported(**there))

    def floats(m):
        with torch.inference_mode():
            return first_output(m(**there))

    true = floats(model)
    numbers["error there"] = float((ours() - true).norm() / true.norm())
    numbers["stepped and collapsed differ"] = int((ours() != ours(execution="stepped")).sum())
    numbers["error there, fast"] = float((ours(precision="fast") - true).norm() / true.norm())
    runs = {
        "float32": partial(floats, model), "bfloat16": partial(floats, half),
        "collapsed": ours, "collapsed, fast": partial(ours, precision="fast"),
        "stepped": partial(ours, execution="stepped"),
    }  # fmt: skip
    made = [faster(p, f"MiniLM, {rows} x {tokens} tokens", runs, "float32",
                   "The port pays for its rounding.")]  # fmt: skip
    try:
        made.append(spikformers(p, numbers))
    except Exception as error:  # noqa: BLE001 - the first table is worth keeping
        text = f"{type(error).__name__}: {str(error)[:300]}"
        made.append((Table("Spikformer failed", ("error",), ((text,),)), {}))
    for _, ratios in made:
        numbers |= ratios
    return Findings(numbers, [t for t, _ in made])


def spikformers(p, numbers):
    """Spikformer-4-384, inference."""
    draw = torch.Generator().manual_seed(0)
    sample, x = (torch.rand(p.images, 3, 32, 32, generator=draw).to(p.device) for _ in range(2))
    ours, runs = Spikformer(SpikformerConfig(num_labels=10)).eval().to(p.device), {}
    if p.peers:
        from spikingjelly.activation_based import functional

        theirs, _, kind = spikingjelly_spikformer(sample.cpu()[:8], x.cpu()[:8])
        theirs = theirs.to(p.device)

        def run_theirs():
            functional.reset_net(theirs)
            return theirs(x)

        ours.load_state_dict(from_spikingjelly(theirs.state_dict()))
        runs["SpikingJelly"] = run_theirs
    folded = {way: fold(ours, way) for way in ("exact", "fast")}
    with torch.inference_mode():
        if p.peers:
            seen = record_modules(theirs, kind, run_theirs)
            numbers["spikes that differ, module"] = differing(
                seen, record_modules(ours, LIF, lambda: ours(x))
            )
        runs |= {"isospike, module": partial(ours, x)}
        runs |= {f"isospike, {name}": partial(m, x) for name, m in folded.items()}

        def inferring(f):
            with torch.inference_mode():
                return f()

        return faster(p, f"Spikformer, {p.images} images",
                      {n: partial(inferring, f) for n, f in runs.items()}, "SpikingJelly",
                      "Modules of both run in float32, convolutions in TF32.")  # fmt: skip
