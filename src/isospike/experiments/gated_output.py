"""A gate for each head and token on the output projection: what it changes and what it identifies.

Two tasks, :class:`isospike.models.Transformer` with and without
:class:`isospike.models.GatedOutputProjection`, equal otherwise: RoPE, width 32, 4 heads, 2 layers.
Two questions that need no training stand beside: the dimension of the heads' outputs that give the
same sum, and that of the changes of weights that give the same function (null space of its
Jacobian).
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isospike import progress
from isospike.errors import InputError
from isospike.experiments.grid import HEADS, LAYERS, WIDTH, find_task, score
from isospike.experiments.study import CORRECTED, FAILS, HOLDS, Context, Findings, claim, shown
from isospike.models.gated_output import GatedOutputProjection
from isospike.models.training import train
from isospike.models.transformer import Transformer
from isospike.positions import position
from isospike.ranks.heads import head_ambiguity
from isospike.ranks.measure import measure_forward
from isospike.report.table import Table

TASKS = ("sort", "text")
RATE = 0.01
LOOKS = 6
MEASURED = {"bits", "token", "at", "evolution", "entropic", "kernel", "gain", "gate", "parameters"}
AUDITED = {"BERT-base, GPT-2": (768, 12), "BERT-large": (1024, 16), "MiniLM": (384, 12)}

Trained = Mapping[tuple[str, bool], list[dict[str, Any]]]
"""``[(task, gated)]``: what was measured, seed by seed."""


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        steps: Number of training steps, at least 6.
        seeds: Number of seeds.
        tests: Number of test sequences of 32 tokens.
    """

    steps: int
    seeds: int
    tests: int = 128


def decide(numbers: Mapping[str, float]) -> str:
    """Corrected if the parameters are as few and gates tell apart only heads with equal maps.

    Args:
        numbers: Overheads and dimensions.
    """
    n = numbers
    fewer = n["overhead BERT-base, GPT-2"] < 0.016
    same = n["kernel, gated"] == n["kernel, plain"] and n["null, gated"] == n["null, plain"]
    apart = n["null, equal maps, gated"] < n["null, equal maps, plain"]
    if not fewer:
        return FAILS
    if not same:
        return HOLDS
    return CORRECTED if apart else FAILS


@claim(
    "gated-output",
    source="the abstract of arXiv 2604.23681 and public summaries",
    statement="A position-gated output projection (PG-OP) partly restores the heads' "
    "identifiability, at less than 1.6 % more parameters.",
    verdict=decide,
    question="What does a gate on the output projection change, and what does it identify?",
    presets={"tiny": Preset(6, 1, 8), "small": Preset(300, 2), "full": Preset(600, 5)},
)
def train_gated(preset: Preset, context: Context) -> Findings:
    """Train every seed of every task with and without gates; then count dimensions.

    Args:
        preset: How much is run.
        context: Its folder keeps the finished runs.
    """
    runs = [(t, g, s) for t in TASKS for s in range(preset.seeds) for g in (False, True)]
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for done, (task, gated, seed) in enumerate(runs):
        progress.update("gated output", done, len(runs))
        name = f"gated-output_{task}_{'gated' if gated else 'plain'}_{preset.steps}_{seed}"
        result = context.cached(name, partial(_train, task, gated, seed, preset))
        found.setdefault((task, gated), []).append(_check(context.folder / name, result))
    progress.update("gated output", len(runs), len(runs))
    numbers: dict[str, float] = {}
    for (task, gated), results in found.items():
        for metric in ("bits", "token", "entropic", "kernel", "gain", "gate"):
            label = f"{task} {'gated' if gated else 'plain'} {metric}"
            numbers[label] = statistics.mean(r[metric] for r in results)
    for task in TASKS:
        pairs = zip(found[task, False], found[task, True], strict=True)
        numbers[f"{task} bits saved"] = statistics.mean(a["bits"] - b["bits"] for a, b in pairs)
    numbers |= kernels() | null_spaces()
    numbers |= {
        f"overhead {name}": GatedOutputProjection(*sizes).overhead
        for name, sizes in AUDITED.items()
    }
    tables = (_trained(found, preset), _evolution(found), _identified(numbers))
    return Findings(numbers, tables)


def kernels(tokens: int = 5) -> dict[str, float]:
    """dim {Y: the heads' outputs add up to 0}, W_O of rank 8 of 12, with gates and without."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(12, 8, generator=draw).double() @ torch.randn(8, 12, generator=draw).double()
    blocks: Any = torch.block_diag
    plain = blocks(*[w.T] * tokens)
    gates = 2 * torch.rand(tokens, 3, generator=draw).double().repeat_interleave(4, 1)
    gated = blocks(*[w.T * g for g in gates])
    return {
        f"kernel, {name}": float(12 * tokens - int(torch.linalg.matrix_rank(m)))
        for name, m in (("plain", plain), ("gated", gated))
    }


def null_spaces(heads: int = 3, head_width: int = 2, tokens: int = 60) -> dict[str, float]:
    """Directions of (W_V, W_O, W_g) along which no output changes, counted at random weights.

    With maps of its own, each head leaves the d_k^2 of its W_V G, G^-1 W_O. Heads with one map are
    one head of width H d_k: (H d_k)^2, unless gates tell them apart.
    """
    draw = torch.Generator().manual_seed(1)
    width = heads * head_width

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x = random(tokens, width)
    own = random(heads, tokens, tokens).softmax(-1)
    found = {}
    for label, maps in (("", own), (", equal maps", own[:1].expand(heads, -1, -1))):
        mixed = maps @ x  # [H, n, d]
        for name in ("plain", "gated"):

            def output(v: Tensor, o: Tensor, g: Tensor, mixed: Tensor = mixed) -> Tensor:
                gates = 2 * torch.sigmoid(x @ g)
                return torch.einsum("hnd,hdk,hke,nh->ne", mixed, v, o, gates)

            v, o = random(heads, width, head_width), random(heads, head_width, width)
            weights = (v, o, random(width, heads) if name == "gated" else torch.zeros(width, heads))
            count = 3 if name == "gated" else 2
            fixed = weights[count:]
            differentiate: Any = torch.autograd.functional.jacobian
            jacobian = differentiate(
                lambda *w, output=output, fixed=fixed: output(*w, *(f.double() for f in fixed)),
                weights[:count],
            )
            flat = torch.cat([j.reshape(tokens * width, -1) for j in jacobian], 1)
            rank = int(torch.linalg.matrix_rank(flat, rtol=1e-9))
            found[f"null{label}, {name}"] = float(flat.shape[1] - rank)
    return found


def _train(name: str, gated: bool, seed: int, preset: Preset) -> dict[str, Any]:
    task, steps = find_task(name), preset.steps
    generator = torch.Generator().manual_seed(1000 + seed)
    looked = task.sample(2, task.length, torch.Generator().manual_seed(500 + seed))[0]
    evolution: list[dict[str, float]] = []

    def watch(model: torch.nn.Module) -> float:
        rows = measure_forward(model, {"tokens": looked}, outputs_only=True)
        last = [s.collapse for s in rows.sites if s.layer.endswith(str(LAYERS - 1))]
        evolution.append({
            "entropic": statistics.mean(c.entropic for c in last),
            "cosine": statistics.mean(c.cosine for c in last),
            "ratio": statistics.mean(h.ratio for h in rows.heads),
        })  # fmt: skip
        return evolution[-1]["entropic"]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoding = position(
            "rope", width=WIDTH, heads=HEADS, length=task.length, causal=task.causal
        )
        model = Transformer(
            task.vocabulary, WIDTH, HEADS, LAYERS, encoding, causal=task.causal, gated=gated
        )
        watch(model.eval())
        history = train(
            model, lambda draw: task.sample(task.batch, task.length, draw), steps, RATE,
            generator=generator, watch=watch, every=steps // LOOKS,
        )  # fmt: skip
        draw = torch.Generator().manual_seed(10_000 + seed)
        count = max(1, preset.tests * 32 // task.length)
        inputs, targets = task.sample(count, task.length, draw, test=True)
        with torch.no_grad():
            tested = score(model(inputs), targets)
    joins: Any = [block.join for block in model.blocks]
    heads = [head_ambiguity(join.weight.T, HEADS) for join in joins]
    return {
        "bits": tested["bits"],
        "token": tested["token"],
        "at": [0, *(n for n, _ in history.watched)],
        "evolution": evolution,
        "entropic": evolution[-1]["entropic"],
        "kernel": max(h.nullity for h in heads),
        "gain": max(max(h.noise_gains) for h in heads),
        "gate": _gate_spread(model, looked),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _check(file: Path, result: Any) -> dict[str, Any]:
    """The result if it is whole."""
    missing = MEASURED - result.keys() if isinstance(result, dict) else MEASURED
    if missing:
        raise InputError(
            f"gated-output needs whole result files, got {file}.json without "
            f"{', '.join(sorted(missing))}. Remove it and run again."
        )
    whole: dict[str, Any] = result
    return whole


def _gate_spread(model: torch.nn.Module, tokens: Tensor) -> float:
    """Standard deviation of the gates over tokens, mean over heads and layers; 0 without."""
    spreads: list[float] = []
    handles = [
        m.gate.register_forward_hook(
            lambda _m, _x, y: spreads.append(float((2 * y.sigmoid()).flatten(0, 1).std(0).mean()))
        )
        for m in model.modules()
        if isinstance(m, GatedOutputProjection)
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return statistics.mean(spreads) if spreads else 0.0


def _trained(found: Trained, preset: Preset) -> Table:
    rows = tuple(
        (
            f"{task}, {'gated' if gated else 'plain'}",
            *(shown([r[metric] for r in results]) for metric in ("bits", "token")),
            shown([r["entropic"] for r in results], 1),
            f"{max(r['kernel'] for r in results)}",
            f"{max(r['gain'] for r in results):.3g}",
            shown([r["gate"] for r in results], 2),
            str(results[0]["parameters"]),
        )
        for (task, gated), results in found.items()
    )
    head = ("task", "bits", "tokens right", "entropic rank", "lost a token", "largest gain",
            "spread of gates", "parameters")  # fmt: skip
    meaning = "Differences between plain and gated are within their intervals."
    title = f"After {preset.steps} steps, {preset.seeds} seeds, rate {RATE:g}"
    return Table(title, head, rows, meaning)


def _evolution(found: Trained) -> Table:
    at = next(iter(found.values()))[0]["at"]
    rows = tuple(
        (
            f"{task}, {'gated' if gated else 'plain'}: {label}",
            *(
                f"{statistics.mean(r['evolution'][i][metric] for r in results):.{digits}f}"
                for i in range(len(at))
            ),
        )
        for (task, gated), results in found.items()
        for metric, label, digits in (
            ("entropic", "entropic rank", 1), ("cosine", "cosine", 2), ("ratio", "s2/s1", 2),
        )
    )  # fmt: skip
    meaning = "Rank and likeness of tokens develop alike with and without gates."
    return Table("During training, last layer", ("steps", *map(str, at)), rows, meaning)


def _identified(n: dict[str, float]) -> Table:
    rows = (
        ("outputs of heads with one sum, W_O of rank 8 of 12, 5 tokens", "kernel"),
        ("weights of one function, 3 heads of width 2", "null"),
        ("the same, heads with equal maps", "null, equal maps"),
    )
    return Table(
        "Dimensions that are not identified",
        ("of", "plain", "gated"),
        tuple((t, f"{n[f'{k}, plain']:.0f}", f"{n[f'{k}, gated']:.0f}") for t, k in rows),
        "Gates change the count only where heads have equal maps.",
    )
