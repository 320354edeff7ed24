"""Ranks of transformers: the rules for a tolerance, heads, a model on spikes, cost of a report."""

import copy
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace as P

import torch
import transformers

import isospike
from benchmarks.models import (
    Tokenizer,
    load_llama2c,
    load_minilm,
    random_batches,
    small_bert,
    small_llama,
)
from benchmarks.port import STORIES, measured_apart
from isospike.experiments.study import Findings, Goal, study
from isospike.ranks.heads import head_ambiguity, recover_heads
from isospike.ranks.numerical import affine_rank, numerical_rank, rounded
from isospike.report.table import Table

TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16,
         "float16": torch.float16}  # fmt: skip


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@study(
    "rank-tolerance",
    question="Below which singular value is a rounded table's rank noise?",
    presets={"tiny": P(rows=48, width=32, rank=8), "small": P(rows=256, width=192, rank=40),
             "full": P(rows=256, width=192, rank=40)},
)  # fmt: skip
def tolerance(p, ctx):
    """A table of known rank (one more with an offset), rounded, then upcast."""
    low = normal(0, p.rows, p.rank) @ normal(1, p.rank, p.width) / p.rank**0.5
    wide = low * torch.logspace(-4, 0, p.rows, dtype=torch.float64)[:, None]
    offset = 1e3 * normal(2, 1, p.width)
    cases = {"plain": low, "offset 1e3": low + offset, "rows 1e-4 to 1, offset 1e3": wide + offset}
    rows, numbers = [], {}
    for case, exact in cases.items():
        for name, dtype in TYPES.items():
            x = exact.to(dtype).double()
            s = torch.linalg.svdvals(x)
            own = int((s > s[0] * p.rows * torch.finfo(dtype).eps).sum())
            found = numerical_rank(x, dtype)
            numbers[f"{case}, {name}"] = found.rank
            rows.append((f"{case}, {name}", str(int(torch.linalg.matrix_rank(x))), str(own),
                         str(found), f"{found.gap:.3g}", str(affine_rank(x, dtype))))  # fmt: skip
    head = ("data, type", "NumPy's default", "eps of the type", "ours", "gap", "ours, affine")
    title = f"Rank {p.rank} of {p.rows} rows of width {p.width}"
    meaning = (
        "The default takes rounding for rank; ours finds it in float32 and float64. Where half "
        "precision lies far from 0 it finds less, with the offset out of the mean mostly "
        "undetermined."
    )
    return Findings(numbers, [Table(title, head, tuple(rows), meaning)])


@study(
    "rank-noise",
    question="Is the assumed rounding noise that of a real model?",
    extra="demo",
    presets={"tiny": P(tokens=16, layers=(0, 1)), "small": P(tokens=64, layers=(0, 1, 3, 6)),
             "full": P(tokens=256, layers=(0, 1, 3, 6))},
)  # fmt: skip
def noise(p, ctx):
    """Rounding of a model's activations against the edge of one rounding, by a float64 copy."""
    small = p.tokens < 64
    model = small_bert() if small else load_minilm()[1]
    draw, bounds = torch.Generator().manual_seed(0), (5, 1000) if small else (1000, 20000)
    ids = torch.randint(*bounds, (1, p.tokens), generator=draw)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        low = copy.deepcopy(model).to(dtype)
        with torch.no_grad():
            ours = low(ids, output_hidden_states=True).hidden_states
            true = copy.deepcopy(low).double()(ids, output_hidden_states=True).hidden_states
        for layer in p.layers:
            x, y = ours[layer][0], true[layer][0]
            at = rounded(x, dtype, "noise")
            top, scale = float(x.double().abs().max()), at.noise.norm(dim=1, keepdim=True)
            s = torch.linalg.svdvals((x.double() - y) / top / scale)
            edge = 1 + float((at.noise / scale).norm(dim=0).max())
            name = str(dtype).removeprefix("torch.")
            rows.append((f"{name}, {layer}", f"{edge:.1f}", f"{float(s[0]):.1f}",
                         f"{float(s.median()):.1f}"))  # fmt: skip
    head = ("type, layer", "edge", "largest singular value of the error", "median")
    meaning = (
        f"{'A small BERT' if small else 'MiniLM'} at {p.tokens} tokens, against a float64 copy: "
        "errors grow with depth; the median stays near the edge of one rounding in bfloat16, and "
        "grows to six times it in float32."
    )
    return Findings({}, [Table("Rounding of activations", head, tuple(rows), meaning)])


@study(
    "rank-heads",
    question="How much of the heads' outputs is lost in their sum?",
    presets={"tiny": P(scale=8), "small": P(scale=1), "full": P(scale=1)},
)
def heads(p, ctx):
    """Dimensions lost at 512 tokens, random W_O: published, and true."""
    each, width = 64 // p.scale, 768 // p.scale
    cases = {"12 heads, as BERT-base": (12, None), "16 heads, wider than the model": (16, None),
             "12 heads, rank 5/6": (12, 5 * width // 6),
             "all heads in one subspace": (12, each)}  # fmt: skip
    rows = []
    for name, (count, rank) in cases.items():
        w = normal(0, count * each, width)
        if rank is not None:
            w = normal(1, count * each, rank) @ normal(2, rank, width)
        found = head_ambiguity(w, count)
        y = normal(3, 64, count, each)
        back = recover_heads(y.flatten(1) @ w, w, count)
        rows.append((name, f"{512 * found.published_nullity:,}", f"{512 * found.nullity:,}",
                     f"{max(found.noise_gains):.3g}",
                     f"{float((back - y).abs().max() / y.abs().max()):.1e}"))  # fmt: skip
    head = ("W_O", "published n (H - 1) d_k", "true", "largest noise gain", "recovered to")
    meaning = "Nothing is lost unless W_O is rank-deficient."
    return Findings({}, [Table("Dimensions lost", head, tuple(rows), meaning)])


def windows_of(p, ctx):
    """A Llama and windows of text."""
    if p.tokens < 128:
        return small_llama(), [
            {"input_ids": b["input_ids"]} for b in random_batches(5, 1, p.tokens)
        ]
    text = ctx.file(STORIES[2]).read_text(encoding="utf-8")
    tokenizer = Tokenizer(ctx.file(STORIES[1]))
    ids = [tokenizer.encode(part.strip()) for part in text.split("<|endoftext|>") if part.strip()]
    tokens = torch.tensor([i for story in ids for i in story])
    windows = tokens[: len(tokens) // 128 * 128].view(-1, 128)
    model = load_llama2c(ctx.file(STORIES[0]))
    return model, [{"input_ids": windows[i : i + 1]} for i in range(len(windows))]


@study(
    "rank-spikes",
    question="Does a spike code change the rank of a model's activations?",
    data=STORIES,
    presets={"tiny": P(tokens=16, steps=(4,)), "small": P(tokens=128, steps=(4,)),
             "full": P(tokens=128, steps=(2, 4, 8))},
)  # fmt: skip
def spikes(p, ctx):
    """A decoder on spikes, one window of 128 tokens that calibration did not see."""
    model, batches = windows_of(p, ctx)
    reports = {"float": isospike.measure_ranks(model, batches[-1], controls=False)}
    for steps in p.steps:
        ported = isospike.port(model, batches[:-2], steps=steps, evaluation=batches[-2:]).model
        name = f"signed-digit, T={steps}"
        reports[name] = isospike.measure_ranks(ported, batches[-1], controls=False)
    ranks, alike = [], []
    for name, r in reports.items():
        z = [s for row in r.depth for s in r.at(row.layer, "attention")]
        end, last = r.at(r.depth[-1].layer, "output")[0], r.depth[-1]
        ranks.append((
            name, f"{min(s.rank.rank for s in z)} to {max(s.rank.rank for s in z)}",
            f"{sum(s.collapse.entropic for s in z) / len(z):.1f}", str(end.rank),
            f"{last.entropic:.1f}",
        ))  # fmt: skip
        alike.append((
            name, f"{last.cosine:.3f}", f"{sum(d.ratio for d in r.depth) / len(r.depth):.3f}",
            f"{sum(d.entropy for d in r.depth) / len(r.depth):.3f}",
            f"{max(x.recovered for x in r.layers):.1e}",
        ))  # fmt: skip
    return Findings(
        {},
        [
            Table("Rank of activations", ("model", "rank of attention's output", "entropic",
                  "rank at the end", "entropic, end"), tuple(ranks), f"One window of {p.tokens} "
                  "tokens that calibration did not see: no number of steps costs a rank."),
            Table("Likeness of tokens", ("model", "cosine", "s2/s1", "entropy", "worst recovery"),
                  tuple(alike), "Cosine of tokens at the end; means over layers of the second "
                  "singular value over the first and of attention's entropy. Two steps make "
                  "attention sharper and tokens a little more alike, more change little."),
        ],
    )  # fmt: skip


SUMS = 1e-5
"""A difference between the heads' sum and the attention's output that is rounding, in float32."""

NOTHING = "measure_ranks needs a model with attention or with repeated layers"
"""What is said of a single module, such as a convolution: there is nothing to rank."""


def rank_one(entry):
    """Heads, layers and calls of one model, the largest difference of a sum, or what was said."""
    from benchmarks.zoo.registry import draw, make
    from isospike.errors import IsospikeError
    from isospike.ranks.measure import measure_forward

    model, batch = make(entry), draw(entry.inputs, 2, 1)
    family = getattr(getattr(model, "config", None), "model_type", "") or entry.name
    try:
        found = measure_forward(model, batch)
    except IsospikeError as error:
        return family, None, None, " ".join(str(error).split()).partition(". ")[0][:160]
    layers = len(dict.fromkeys(s.layer for s in found.sites if s.site == "output"))
    # In units of what the model's type rounds to, where that is coarser.
    unit = max(1.0, max(torch.finfo(getattr(torch, s.dtype)).eps for s in found.sites) / 2**-20)
    worst = max((row.summed / unit for row in found.layers), default=None)
    left = f"without projection: {', '.join(found.left_out)}" if found.left_out else ""
    return family, layers, worst, left[:160]


def ported_names(names):
    """Those of some models that the study of architectures has ported."""
    stored = Path(__file__).parents[1] / "results" / "architectures-full.json"
    if not stored.exists():
        return set(names)
    tables = json.loads(stored.read_text(encoding="utf-8"))["results"]
    failed = [t for t in tables if t["title"] == "Models that do not work"]
    return set(names) - {row[0] for table in failed for row in table["rows"]}


@study(
    "rank-architectures",
    question="In which architectures are layers and heads found, and do the heads sum to what the "
    "attention gives?",
    presets={"tiny": P(names=("BERT", "GPT-2", "MLP only")), "small": P(names=("T5", "ALBERT",
             "Falcon (new decoder)", "Mixtral", "XLNet", "Swin", "nn.TransformerEncoder seq-first",
             "Mamba")), "full": P(names=())},
)  # fmt: skip
def rank_architectures(p, ctx):
    """Small random models, two rows of inputs; float32."""
    import benchmarks.zoo.models  # noqa: F401, registers them
    from benchmarks.zoo.registry import ENTRIES
    from isospike.progress import update

    entries = [ENTRIES[name] for name in p.names or ENTRIES]
    ported = ported_names(e.name for e in entries)
    families, others, ranked, summed, heads, bare = {}, [], 0, 0, 0, 0
    for done, entry in enumerate(entries, 1):
        try:
            family, layers, worst, said = rank_one(entry)
        except Exception as error:  # noqa: BLE001 - a package that is not installed, or a crash
            family, layers, worst = entry.name, None, None
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        ports = entry.name in ported
        good = worst is not None and worst < SUMS
        ranked += ports and layers is not None
        bare += ports and said.startswith(NOTHING)
        heads += ports and worst is not None
        summed += ports and good
        row = families.setdefault((entry.kind, family), [0, 0, 0, 0.0])
        for i, count in enumerate((1, layers is not None, good)):
            row[i] += count
        row[3] = max(row[3], worst or 0.0)
        if said or (worst is not None and not good):
            others.append((entry.name, "yes" if ports else "no", said or f"{worst:.1e}"))
        update("rank models", done, len(entries))
    rows = []
    for (kind, family), row in families.items():
        else_said = "no attention" if row[1] else "not ranked"
        rows.append((kind, family, *row[:3], f"{row[3]:.1e}" if row[3] else else_said))
    head = ("kind", "family", "models", "ranked", "heads sum", "largest difference")
    meaning = (
        "Heads sum: models whose heads' outputs sum to their attention's within 1e-5 of its "
        "largest value, in every layer."
    )
    tables = [Table("Ranks by family", head, tuple(rows), meaning)]
    if others:
        meaning = "Models that are not ranked, or of which a part is left out."
        head = ("model", "ports", "said")
        tables.append(Table("What else was said", head, tuple(others), meaning))
    numbers = {"models": len(entries), "port": len(ported), "without layers": int(bare),
               "ranked of these": int(ranked), "with attention": int(heads),
               "heads sum": int(summed)}  # fmt: skip
    goals = {} if p.names else {
        "models with layers that port and are not ranked": Goal(
            len(ported) - int(bare) - int(ranked), 0
        ),
        "of these, heads that do not sum": Goal(int(heads) - int(summed), 0),
    }  # fmt: skip
    return Findings(numbers, tables, goals)


CASES = ("import", "forward", "report", "report without controls")


@study(
    "rank-cost",
    question="What does a rank report cost, beside a forward pass?",
    presets={"tiny": P(layers=1, tokens=16, apart=False),
             "small": P(layers=4, tokens=128, apart=True),
             "full": P(layers=12, tokens=512, apart=True)},
)  # fmt: skip
def cost(p, ctx):
    """A random BERT-base; each case in a process of its own."""
    rows, peaks, seconds = [], {}, {}
    for case in CASES:
        seconds[case], cpu, peaks[case] = measured_apart(run_case, case, p)
        ratio = f"{peaks[case] / peaks['forward']:.2f}" if "forward" in peaks else None
        rows.append((case, f"{seconds[case]:.1f}", f"{cpu:.1f}", f"{peaks[case]:.0f}", ratio))
    goals = {} if p.layers < 12 else {
        "seconds of a report": Goal(seconds["report"], 40.0),
        "memory of a report": Goal(peaks["report"] / peaks["forward"], 1.7),
    }  # fmt: skip
    head = ("case", "s", "CPU s", "peak MiB", "of the forward's")
    meaning = "A report takes about twice the memory of a forward pass."
    return Findings({}, [Table("Cost of a report", head, tuple(rows), meaning)], goals)


def run_case(case, p):
    """Seconds, CPU seconds and peak MiB of one case."""
    torch.manual_seed(0)
    size = {} if p.apart else {"hidden_size": 48, "intermediate_size": 96}
    model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=p.layers, **size))
    ids = torch.randint(1000, 30000, (1, p.tokens))
    start, cpu = time.perf_counter(), time.process_time()
    if case == "forward":
        with torch.inference_mode():
            model.eval()(ids)
    elif case.startswith("report"):
        isospike.measure_ranks(model.eval(), {"input_ids": ids}, controls=case == "report")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return time.perf_counter() - start, time.process_time() - cpu, peak
