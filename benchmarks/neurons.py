"""Speed of neurons and spike products against SpikingJelly and snnTorch, as ratios.

Runs of one table alternate in one process; equal outputs are checked first. The preset ``tiny``
runs without the peers.
"""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace as P

import torch
import torch.nn.functional as F

from isospike.experiments.study import Findings, Goal, study
from isospike.kernels.neuron.cpu import CompiledNeuron
from isospike.kernels.product.int8 import add_product, pack_float32
from isospike.models import SpikformerConfig
from isospike.models import spikformer as home
from isospike.models.spikformer import Spikformer, fold, from_spikingjelly
from isospike.neurons import LIF
from isospike.presets import spikingjelly_lif
from isospike.products import spike_attention, spike_linear
from isospike.report.table import Table


def presets(tiny, real):
    return {
        "tiny": P(peers=False, rounds=1, threads=1, shape=tiny),
        "small": P(peers=True, rounds=3, threads=2, shape=real),
        "full": P(peers=True, rounds=9, threads=2, shape=real),
    }


def faster(ctx, p, title, runs, base, goals, meaning):
    """A table of times and of how many times faster than ``base`` each run is; the goals."""
    torch.set_num_threads(p.threads)
    base = base if base in runs else next(iter(runs))
    times = ctx.timing(runs, p.rounds)
    ratios = {name: times.ratio(base, name) for name in runs}
    rows = tuple(
        (name, f"{1e3 * times.seconds(name):.1f}", f"{ratios[name]:.2f}",
         f"{times.ratio(base, name, cpu=True):.2f}")
        for name in runs
    )  # fmt: skip
    met = {f"{title}: {n}": Goal(ratios[n], limit, True) for n, limit in goals.items()}
    head = ("run", "ms", f"{base} / run", "of CPU time")
    return Table(title, head, rows, meaning), met if p.peers else {}


def spikes(shape, rate, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate


def lif_peers(p):
    """SpikingJelly's and snnTorch's neuron as functions of the input."""
    if not p.peers:
        return {}
    from snntorch import Leaky
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.neuron import LIFNode

    node, leaky = LIFNode(step_mode="m"), Leaky(0.5, reset_mechanism="zero", reset_delay=False)

    def spikingjelly(x):
        functional.reset_net(node)
        return node(x)

    def snntorch(x):
        mem, out = torch.zeros_like(x[0]), []
        for current in x:
            s, mem = leaky(0.5 * current, mem)
            out.append(s)
        return torch.stack(out)

    return {"SpikingJelly": spikingjelly, "snnTorch": snntorch}


@study(
    "lif",
    question="How fast is a LIF neuron, and are its spikes those of others?",
    extra="peers",
    presets=presets((4, 2, 8, 16), (4, 32, 196, 384)),
)
def lif(p, ctx):
    """Forward, then forward and backward."""
    x = 1.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    up = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    layer, small = (LIF(spikingjelly_lif(), dtype=t) for t in (None, torch.uint8))
    graded, peers = x.clone().requires_grad_(), lif_peers(p)

    def no_grad(f):
        with torch.no_grad():
            return f(x)

    def both(f):
        return torch.autograd.grad(f(graded), graded, up)[0]

    ours, gradient = no_grad(layer), both(layer)
    numbers = {"rate": float(ours.mean()),
               "bytes differ": int((no_grad(small).float() != ours).sum())}  # fmt: skip
    for name, f in peers.items():
        numbers[f"spikes that differ, {name}"] = int((no_grad(f) != ours).sum())
    for name, f in {**dict(list(peers.items())[:1]), "isospike": layer}.items():
        numbers[f"kept for the gradient over the input, {name}"] = kept_by(f, graded) / x.nbytes
    if peers:
        difference = (both(peers["SpikingJelly"]) - gradient).abs().max()
        numbers["difference of the gradient"] = float(difference)
    forward = {
        **{name: partial(no_grad, f) for name, f in peers.items()},
        "isospike": partial(no_grad, layer),
        "isospike, bytes out": partial(no_grad, small),
        "clone of the input": lambda: x.clone(),
    }
    memory = {n: forward[n] for n in ("isospike, bytes out", "clone of the input")}
    backward = {n: partial(both, f) for n, f in {**peers, "isospike": layer}.items()}
    made = [
        faster(ctx, p, "LIF forward", forward, "SpikingJelly",
               {"isospike": 10, "isospike, bytes out": 10}, "Ten times faster and more."),
        faster(ctx, p, "LIF beside a copy", memory, "clone of the input",
               {"isospike, bytes out": 1}, "As fast as copying its input."),
        faster(ctx, p, "LIF forward and backward", backward, "SpikingJelly", {"isospike": 8},
               "Eight times faster, with a third of the memory kept."),
    ]  # fmt: skip
    return Findings(numbers, [t for t, _ in made], {k: g for _, m in made for k, g in m.items()})


def kept_by(f, x):
    """Bytes that a forward pass keeps for its gradient."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t
    ):
        f(x)
    return sum(kept.values())


@study(
    "spike-linear",
    question="How fast and how exact is a linear layer on spikes?",
    presets=presets((4, 2, 8, 32), (4, 32, 64, 384)),
)
def linear(p, ctx):
    """Four times as many outputs as inputs, spikes at 15 %."""
    s = spikes(p.shape, 0.15, 0).to(torch.uint8)
    single, width = s.float(), p.shape[-1]
    weight = 0.1 * torch.randn(4 * width, width, generator=torch.Generator().manual_seed(1))
    true = single.double() @ weight.double().t()
    results = {"float32": F.linear(single, weight), "exact": spike_linear(s, weight),
               "fast": spike_linear(s, weight, precision="fast")}  # fmt: skip
    numbers = {f"error of {name}": float((y - true).square().mean().sqrt() / true.std())
               for name, y in results.items()}  # fmt: skip
    half, weights = single.bfloat16(), weight.bfloat16()
    runs = {
        "float32": lambda: F.linear(single, weight),
        "exact": lambda: spike_linear(s, weight),
        "fast": lambda: spike_linear(s, weight, precision="fast"),
        "torch's bfloat16": lambda: F.linear(half, weights),
    }
    if p.peers:
        rows, planes = s.flatten(0, 2), pack_float32(weight)
        out = torch.empty(len(rows), 4 * width)
        runs["exact, weights packed before"] = lambda: add_product(out.zero_(), rows, planes)
    table, goals = faster(ctx, p, "Linear layer", runs, "float32", {"exact": 1, "fast": 6},
                          "Exact costs about what float32 costs; fast a fraction where there is a "
                          "bfloat16 unit.")  # fmt: skip
    return Findings(numbers, [table], goals)


@study(
    "spike-attention",
    question="How fast is attention between spikes?",
    extra="peers",
    presets=presets((2, 1, 2, 8, 16), (4, 8, 6, 196, 64)),
)
def attention(p, ctx):
    """q k^T v of spikes at 15 %."""
    q, k, v = (spikes(p.shape, 0.15, i).to(torch.uint8) for i in range(3))
    single = [x.float() for x in (q, k, v)]
    runs, numbers = {}, {}
    if p.peers:
        from spikingjelly.activation_based.layer import SpikingSelfAttention

        qkv = torch.stack([x.transpose(-1, -2) for x in single], 2).contiguous()
        runs["SpikingJelly"] = partial(SpikingSelfAttention._ssa_kernel_torch, qkv, 0.125)
        same = torch.equal(runs["SpikingJelly"](), spike_attention(q, k, v).transpose(-1, -2))
        numbers["outputs equal"] = float(same)
    runs |= {"isospike, from bytes": lambda: spike_attention(q, k, v),
             "isospike, from float32": lambda: spike_attention(*single)}  # fmt: skip
    table, goals = faster(ctx, p, "Attention", runs, "SpikingJelly", {"isospike, from bytes": 3},
                          "Counts are added, nothing is multiplied.")  # fmt: skip
    return Findings(numbers, [table], goals)


@study(
    "spikformer",
    question="How fast is a spiking transformer, and does it spike like SpikingJelly's?",
    extra="peers",
    presets=presets((1, 3, 32, 32), (8, 3, 32, 32)),
)
def network(p, ctx):
    """Spikformer-4-384, inference, T = 4, normalisations calibrated."""
    draw = torch.Generator().manual_seed(0)
    sample, x = (torch.rand(p.shape, generator=draw) for _ in range(2))
    ours, runs, numbers = Spikformer(SpikformerConfig(num_labels=10)).eval(), {}, {}
    if p.peers:
        theirs, run_theirs, kind = spikingjelly_spikformer(sample, x)
        ours.load_state_dict(from_spikingjelly(theirs.state_dict()))
        runs["SpikingJelly"] = run_theirs
    ways = ("exact", "fast") if p.peers else ("exact",)
    folded = {way: fold(ours, way) for way in ways}
    with torch.inference_mode():
        if p.peers:
            seen = record_modules(theirs, kind, run_theirs)
            numbers["rate"] = float(sum(s.sum() for s in seen) / sum(s.numel() for s in seen))
            numbers["differ, module"] = differing(seen, record_modules(ours, LIF, lambda: ours(x)))
            for name, model in folded.items():
                numbers[f"differ, {name}"] = differing(seen, record_folded(partial(model, x)))
        runs |= {"isospike, module": partial(ours, x)}
        runs |= {f"isospike, {name}": partial(model, x) for name, model in folded.items()}
        table, goals = faster(ctx, p, "Spikformer", runs, "SpikingJelly",
                              {"isospike, exact": 3, "isospike, fast": 6} if p.peers else {},
                              "Exact gives every spike of SpikingJelly's.")  # fmt: skip
    if p.peers:
        goals["spikes that agree, fast"] = Goal(1 - numbers["differ, fast"], 0.999, at_least=True)
    return Findings(numbers, [table], goals)


@study(
    "spikformer-training",
    question="How fast does a spiking transformer train, and how much memory does a step keep, "
    "beside SpikingJelly's?",
    extra="peers",
    presets={
        "tiny": P(peers=False, rounds=1, threads=1, images=2),
        "small": P(peers=True, rounds=2, threads=1, images=16),
        "full": P(peers=True, rounds=5, threads=1, images=64),
    },
)
def training(p, ctx):
    """Forward, loss and backward of Spikformer-2-96 at T = 4, images of 32 x 32."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(p.images, 3, 32, 32, generator=draw)
    labels = torch.randint(0, 10, (p.images,), generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = Spikformer(SpikformerConfig(channels=96, heads=8, blocks=2, num_labels=10)).train()
    losses = {}
    if p.peers:
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.model.spikformer import Spikformer as Theirs

        theirs = Theirs(T=4, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10,
                        embed_dims=96, num_heads=8, mlp_ratio=4.0, depths=2).train()  # fmt: skip
        ours.load_state_dict(from_spikingjelly(theirs.state_dict()))

        def spikingjelly(_):
            functional.reset_net(theirs)
            return F.cross_entropy(theirs(x).mean(0), labels)

        losses["SpikingJelly"] = spikingjelly
    losses["isospike"] = lambda _: ours(x, labels).loss
    numbers = {f"MB kept for the gradient, {n}": kept_by(f, x) / 1e6 for n, f in losses.items()}
    numbers |= {f"loss, {name}": float(f(x).detach()) for name, f in losses.items()}
    runs = {n: partial(lambda f: f(x).backward(), f) for n, f in losses.items()}
    title, kept = "a training step", "MB kept for the gradient, "
    table, goals = faster(ctx, p, title, runs, "SpikingJelly", {"isospike": 2},
                          "Forward, loss and backward; convolutions take most of it.")  # fmt: skip
    if p.peers:
        share = numbers[f"{kept}isospike"] / numbers[f"{kept}SpikingJelly"]
        goals["memory over SpikingJelly's"] = Goal(share, 0.6)
    return Findings(numbers, [table], goals)


def spikingjelly_spikformer(sample, x):
    """The calibrated peer, a function that runs it, and the class of its neurons."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.spikformer import spikformer_cifar10
    from spikingjelly.activation_based.neuron import LIFNode

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = spikformer_cifar10()
    for module in theirs.modules():
        if hasattr(module, "running_mean"):
            module.momentum = None
    theirs.train()
    with torch.no_grad():
        theirs(sample)
    theirs.eval()

    def run():
        functional.reset_net(theirs)
        return theirs(x)

    return theirs, run, LIFNode


def differing(theirs, ours):
    """Share of spikes that differ, over all layers."""
    # Channels may lie elsewhere: each layer's spikes are aligned first.
    wrong = [int((align(b, a) != a).sum()) for a, b in zip(theirs, ours, strict=True)]
    return sum(wrong) / sum(a.numel() for a in theirs)


def align(ours, theirs):
    """Our ``[T, N, ..., channels]`` as their channels-first layout, flattened alike."""
    a, b = ours.flatten(2), theirs.flatten(2)
    if ours.shape == theirs.shape:
        return ours
    if ours.dim() == 5 and ours.shape[2] != theirs.shape[2] and theirs.dim() == 5:
        return ours.permute(0, 1, 4, 2, 3).reshape(theirs.shape)
    return ours.transpose(-1, -2).reshape(theirs.shape) if a.shape == b.shape else ours


def record_modules(model, kind, run):
    """Spikes of every neuron layer, in order of use."""
    seen = []
    hooks = [m.register_forward_hook(lambda m, i, s: seen.append(s.float()))
             for m in model.modules() if isinstance(m, kind)]  # fmt: skip
    run()
    for hook in hooks:
        hook.remove()
    return seen


def record_folded(run):
    """The same of a folded network, whose images pass a few at a time."""
    seen, original = [], CompiledNeuron.__call__

    def recording(neurons, x, dtype):
        out = original(neurons, x, dtype)
        seen.append(out.float())
        return out

    at_once, home.AT_ONCE = home.AT_ONCE, 10**9
    CompiledNeuron.__call__ = recording
    try:
        run()
    finally:
        home.AT_ONCE = at_once
        CompiledNeuron.__call__ = original
    return seen


@study(
    "neuron-start",
    question="How long do imports, help and the first neuron of a process take?",
    presets={"tiny": P(rounds=0, limit=0.3), "small": P(rounds=3, limit=0.3),
             "full": P(rounds=9, limit=0.3)},
)  # fmt: skip
def start(p, ctx):
    """Processes that import, run a neuron, train one, against one that imports torch; and help."""
    if not p.rounds:
        return Findings()
    code = ("import torch; from isospike.neurons import LIF; x = torch.zeros(2, 4); "
            "torch.set_grad_enabled(False); LIF()(x)")  # fmt: skip
    trained = ("import torch; from isospike.neurons import LIF; x = torch.zeros(2, 4); "
               "LIF()(x.requires_grad_()).sum().backward()")  # fmt: skip
    commands = {"import torch": "import torch", "import torch, isospike": "import torch, isospike",
                "one LIF": code, "one LIF, trained": trained}  # fmt: skip
    runs = {n: partial(subprocess.run, [sys.executable, "-c", c], check=True)
            for n, c in commands.items()}  # fmt: skip
    runs["isospike --help"] = partial(
        subprocess.run, [sys.executable, "-m", "isospike", "--help"], check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    times = ctx.timing(runs, p.rounds)
    rows = tuple((name, f"{times.seconds(name):.2f}") for name in runs)
    extra = times.seconds("one LIF") - times.seconds("import torch")
    meaning = ("Small runs without gradient wait for no compiler, on any machine; the first "
               "gradient loads Numba, and compiles five seconds more where it was not compiled "
               "before.")  # fmt: skip
    table = Table("A new process", ("process", "s"), rows, meaning)
    both = times.seconds("import torch, isospike") / times.seconds("import torch")
    goals = {
        "extra seconds": Goal(extra, p.limit),
        "import isospike over import torch": Goal(both, 1.1),
        "help, seconds": Goal(times.seconds("isospike --help"), 0.25),
    }
    return Findings({"extra, s": extra}, [table], goals)
