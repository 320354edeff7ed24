"""Speed of neurons and spike products against SpikingJelly and snnTorch, as ratios.

    python benchmarks/neurons.py [--rounds 9] [--threads 2] [--only lif,linear,attention,...]

Runs of one table alternate in one process, after one round of warm-up; equal outputs are checked
first. A ratio is the median over rounds of the ratio within the round, of wall time and of the
process's CPU time (on a busy machine the latter is the steadier one). Needs the extra ``peers``.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from snntorch import Leaky
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.layer import SpikingSelfAttention
from spikingjelly.activation_based.model.spikformer import spikformer_cifar10
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor

from isospike.kernels.neuron.cpu import CompiledNeuron
from isospike.kernels.product.int8 import add_product, pack_float32
from isospike.models import spikformer as home
from isospike.models.spikformer import Spikformer, fold, from_spikingjelly
from isospike.neurons import LIF
from isospike.presets import spikingjelly_lif
from isospike.products import spike_attention, spike_linear

ROUNDS = 9


def interleave(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each run in each round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i in range(ROUNDS + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if i:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds


def table(runs: Mapping[str, Callable[[], object]], base: str, goals: Mapping[str, float]) -> None:
    """A line for each run: its median times, and how many times faster than ``base`` it is."""
    seconds = interleave(runs)
    print(
        f"| run | wall ms | CPU ms | {base} / run, wall | CPU | goal |\n|---|--:|--:|--:|--:|---|"
    )
    for name, times in seconds.items():
        wall, cpu = (statistics.median(t) * 1e3 for t in zip(*times, strict=True))
        ratios = [
            statistics.median(b[k] / t[k] for b, t in zip(seconds[base], times, strict=True))
            for k in (0, 1)
        ]
        goal = f">= {goals[name]:g}x" if name in goals else ""
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {goal} |")
    print(flush=True)


def spikes(shape: tuple[int, ...], rate: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate


def lif() -> None:
    """LIF, x [4, 32, 196, 384]: forward, then forward and backward"""
    x = 1.2 * torch.randn(4, 32, 196, 384, generator=torch.Generator().manual_seed(0))
    up = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    node, leaky = LIFNode(step_mode="m"), Leaky(0.5, reset_mechanism="zero", reset_delay=False)
    layer, small = (LIF(spikingjelly_lif(), dtype=t) for t in (None, torch.uint8))
    graded = x.clone().requires_grad_()

    def theirs(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    def snntorchs(x: Tensor) -> Tensor:
        mem, out = torch.zeros_like(x[0]), []
        for current in x:
            s, mem = leaky(0.5 * current, mem)
            out.append(s)
        return torch.stack(out)

    def no_grad(f: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return f(x)

    def both(f: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(f(graded), graded, up)[0]

    a, b = no_grad(theirs), no_grad(layer)
    print(f"rate {a.mean():.3f}; spikes that differ: {(a != b).sum()} of {a.numel()} from "
          f"SpikingJelly, {(no_grad(snntorchs) != b).sum()} from snnTorch; "
          f"bytes equal: {torch.equal(no_grad(small).float(), b)}")  # fmt: skip
    print(f"largest difference of the gradient: {(both(theirs) - both(layer)).abs().max():.1e}")
    for name, f in (("SpikingJelly", theirs), ("isospike", layer)):
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t
        ):
            f(graded)
        print(f"bytes kept for the gradient / input: {name} {sum(kept.values()) / x.nbytes:.2f}")
    runs = {
        "SpikingJelly": partial(no_grad, theirs),
        "snnTorch": partial(no_grad, snntorchs),
        "isospike": partial(no_grad, layer),
        "isospike, bytes out": partial(no_grad, small),
        "clone of the input": lambda: x.clone(),
    }
    table(runs, "SpikingJelly", {"isospike": 10, "isospike, bytes out": 10})
    table(dict(list(runs.items())[3:]), "clone of the input", {"isospike, bytes out": 1})
    runs = {"SpikingJelly": partial(both, theirs), "snnTorch": partial(both, snntorchs),
            "isospike": partial(both, layer)}  # fmt: skip
    table(runs, "SpikingJelly", {"isospike": 8})


def linear() -> None:
    """Linear 384 -> 1536 on spikes at 15 %, T = 4, 32 x 64 tokens"""
    s = spikes((4, 32, 64, 384), 0.15, 0).to(torch.uint8)
    single = s.float()
    weight = 0.1 * torch.randn(1536, 384, generator=torch.Generator().manual_seed(1))
    rows, planes, out = s.flatten(0, 2), pack_float32(weight), torch.empty(4 * 32 * 64, 1536)
    true = single.double() @ weight.double().t()
    for name, y in (
        ("float32", F.linear(single, weight)),
        ("exact", spike_linear(s, weight)),
        ("fast", spike_linear(s, weight, precision="fast")),
    ):
        print(
            f"error of {name}: {(y - true).square().mean().sqrt() / true.std():.1e} of the result"
        )
    half, weights = single.bfloat16(), weight.bfloat16()
    table(
        {
            "float32": lambda: F.linear(single, weight),
            "exact": lambda: spike_linear(s, weight),
            "exact, weights packed before": lambda: add_product(out.zero_(), rows, planes),
            "fast": lambda: spike_linear(s, weight, precision="fast"),
            "torch's bfloat16": lambda: F.linear(half, weights),
        },
        "float32",
        {"exact": 1, "fast": 6},
    )


def attention() -> None:
    """q k^T v of spikes at 15 %, T = 4, batch 8, 196 tokens, 6 heads of 64"""
    q, k, v = (spikes((4, 8, 6, 196, 64), 0.15, i).to(torch.uint8) for i in range(3))
    single = [x.float() for x in (q, k, v)]
    qkv = torch.stack([x.transpose(-1, -2) for x in single], 2).contiguous()

    def theirs() -> Tensor:
        return SpikingSelfAttention._ssa_kernel_torch(qkv, 0.125)

    same = torch.equal(theirs(), spike_attention(q, k, v).transpose(-1, -2))
    print(f"outputs equal: {same}")
    table(
        {
            "SpikingJelly": theirs,
            "isospike, from bytes": lambda: spike_attention(q, k, v),
            "isospike, from float32": lambda: spike_attention(*single),
        },
        "SpikingJelly",
        {"isospike, from bytes": 3},
    )


def network() -> None:
    """Spikformer-4-384, inference, batch 8, 32 x 32, T = 4, normalisations calibrated"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = spikformer_cifar10()
    draw = torch.Generator().manual_seed(0)
    sample, x = (torch.rand(8, 3, 32, 32, generator=draw) for _ in range(2))
    for module in theirs.modules():
        if hasattr(module, "running_mean"):
            module.momentum = None
    theirs.train()
    with torch.no_grad():
        theirs(sample)
    theirs.eval()
    ours = Spikformer().eval()
    ours.load_state_dict(from_spikingjelly(theirs.state_dict()))
    folded = {p: fold(ours, p) for p in ("exact", "fast")}

    def run_theirs() -> Tensor:
        functional.reset_net(theirs)
        return theirs(x)

    with torch.inference_mode():
        seen = record_modules(theirs, LIFNode, run_theirs)
        rate = sum(s.sum() for s in seen) / sum(s.numel() for s in seen)
        print(f"spikes per neuron and step: {rate:.3f}")
        compare("module", seen, record_modules(ours, LIF, lambda: ours(x)))
        for name, model in folded.items():
            compare(name, seen, record_folded(lambda model=model: model(x)))
        table(
            {
                "SpikingJelly": run_theirs,
                "isospike, module": lambda: ours(x),
                "isospike, exact": lambda: folded["exact"](x),
                "isospike, fast": lambda: folded["fast"](x),
            },
            "SpikingJelly",
            {"isospike, exact": 3, "isospike, fast": 6},
        )


def compare(name: str, theirs: list[Tensor], ours: list[Tensor]) -> None:
    """Share of spikes that agree, over all layers and in the first and the last."""
    # Channels may lie elsewhere: each layer's spikes are compared sorted by channel where needed.
    wrong = [int((align(b, a) != a).sum()) for a, b in zip(theirs, ours, strict=True)]
    total = sum(a.numel() for a in theirs)
    print(f"{name}: {sum(wrong)} of {total} spikes differ ({100 - 100 * sum(wrong) / total:.4f} % "
          f"agree); by layer {wrong}")  # fmt: skip


def align(ours: Tensor, theirs: Tensor) -> Tensor:
    """Our ``[T, N, ..., channels]`` as their channels-first layout, flattened alike."""
    a, b = ours.flatten(2), theirs.flatten(2)
    if ours.shape == theirs.shape:
        return ours
    if ours.dim() == 5 and ours.shape[2] != theirs.shape[2] and theirs.dim() == 5:
        return ours.permute(0, 1, 4, 2, 3).reshape(theirs.shape)
    return ours.transpose(-1, -2).reshape(theirs.shape) if a.shape == b.shape else ours


def record_modules(model: torch.nn.Module, kind: type, run: Callable[[], object]) -> list[Tensor]:
    """Spikes of every neuron layer, in order of use."""
    seen: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda m, i, s: seen.append(s.float()))
             for m in model.modules() if isinstance(m, kind)]  # fmt: skip
    run()
    for hook in hooks:
        hook.remove()
    return seen


def record_folded(run: Callable[[], object]) -> list[Tensor]:
    """The same of a folded network, whose images pass a few at a time."""
    seen: list[Tensor] = []
    original = CompiledNeuron.__call__

    def recording(neurons: CompiledNeuron, x: Tensor, dtype: torch.dtype) -> Tensor:
        spikes = original(neurons, x, dtype)
        seen.append(spikes.float())
        return spikes

    at_once, home.AT_ONCE = home.AT_ONCE, 10**9
    CompiledNeuron.__call__ = recording  # type: ignore[method-assign]
    try:
        run()
    finally:
        home.AT_ONCE = at_once
        CompiledNeuron.__call__ = original  # type: ignore[method-assign]
    return seen


def start() -> None:
    """A process that runs one neuron, against one that only imports torch"""
    code = ("import torch; from isospike.neurons import LIF; x = torch.zeros(2, 4); "
            "torch.set_grad_enabled(False); LIF()(x)")  # fmt: skip
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "one LIF, compiled before": [sys.executable, "-c", code],
    }
    subprocess.run(commands["one LIF, compiled before"], check=True)
    runs = {n: partial(subprocess.run, c, check=True) for n, c in commands.items()}
    seconds = interleave(runs)
    extra = statistics.median(
        b[0] - a[0] for a, b in zip(*(seconds[name] for name in commands), strict=True)
    )
    print(f"extra: {extra:.2f} s (goal 0.3 s)\n")


TABLES = {"lif": lif, "linear": linear, "attention": attention, "network": network, "start": start}


def main() -> None:
    global ROUNDS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(TABLES))
    args = parser.parse_args()
    ROUNDS = args.rounds
    torch.set_num_threads(args.threads)
    for name in args.only.split(","):
        if name not in TABLES:
            sys.exit(f"--only needs some of {', '.join(TABLES)}, got {name}")
        print(f"{TABLES[name].__doc__}; {args.threads} threads, {args.rounds} rounds\n")
        TABLES[name]()


if __name__ == "__main__":
    main()
