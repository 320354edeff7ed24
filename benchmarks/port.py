"""Ports of real models: what survives, what it costs, how fast it runs, and in how much memory.

The preset ``tiny`` ports small random models on random tokens.
"""

import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace as P

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import isospike
from benchmarks.models import (
    Tokenizer,
    exact_batches,
    load_llama2c,
    load_minilm,
    make_batches,
    passage_batches,
    random_batches,
    sample,
    small_bert,
    small_llama,
    sts_benchmark,
)
from isospike.energy import TABLES, estimate_energy
from isospike.experiments.study import Findings, Goal, study
from isospike.progress import update
from isospike.report.table import Table

COSINES = {4: 0.975, 6: 0.997, 8: 0.9995}
SPEARMANS = {6: 0.5, 8: 0.2}  # points
FUNCTIONS = 1.5  # points that functions on spikes may cost
STS = ("stsb/stsb-en-train.csv", "stsb/stsb-en-dev.csv")
STORIES = (
    "stories260k/stories260K.bin", "stories260k/tok512.bin",
    "tinystories_sample/tinystories_sample.txt",
)  # fmt: skip


def embed(model, batches):
    """Mean-pooled embedding of each sentence, and hidden states of unpadded tokens."""
    embeddings, hidden = [], []
    with torch.inference_mode():
        for _, batch in batches:
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"]
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            embeddings.append(F.normalize(pooled, dim=-1))
            hidden.append(states[mask.bool()])
    order = torch.tensor([i for rows, _ in batches for i in rows])
    return torch.cat(embeddings)[order.argsort()], hidden


def spearman(embeddings, scores):
    """Rank correlation of the pairs' cosines and their scores, in points."""
    first, second = embeddings.chunk(2)
    return 100 * float(spearmanr((first * second).sum(-1).numpy(), scores).statistic)


def sentences(p, ctx):
    """Model, calibration and evaluation batches ``(positions, tokens)``, scores of the pairs."""
    if p.sentences is None:
        batches = random_batches(5, 8, 12)
        dev = [(range(8 * i, 8 * i + 8), b) for i, b in enumerate(batches[:2])]
        return small_bert(), batches[2:], dev, list(range(8))
    tokenizer, model = load_minilm()
    dev, scores, chosen = sts_benchmark(ctx.file("stsb"), p.sentences)
    calibration = [batch for _, batch in make_batches(tokenizer, chosen, 32)]
    return model, calibration, list(make_batches(tokenizer, dev, 50)), scores


@study(
    "stsb",
    question="How much of a sentence model's meaning survives its port to spikes?",
    data=STS,
    extra="demo",
    presets={
        "tiny": P(sentences=None, codes=("signed-digit",), steps=(4,), functions=("float",)),
        "small": P(sentences=96, codes=("signed-digit",), steps=(8,), functions=("float",)),
        "full": P(sentences=256, codes=("signed-digit", "phase"), steps=(4, 6, 7, 8),
                  functions=("float", "spiking")),
    },
)  # fmt: skip
def stsb(p, ctx):
    """all-MiniLM-L6-v2 on STS-B: calibrated on the train split, measured on the dev split."""
    model, calibration, dev, scores = sentences(p, ctx)
    held_out = [batch for _, batch in dev[:: max(1, len(dev) // 4)]]
    expected, expected_hidden = embed(model, dev)
    power = sum(float(h.double().square().sum()) for h in expected_hidden)
    reference = spearman(expected, scores)
    numbers, goals, rows = {"Spearman, float32": reference}, {}, []
    ways = [(f, c, s) for f in p.functions for c in p.codes for s in p.steps
            if f == "float" or c == p.codes[0]]  # fmt: skip
    for done, (functions, code, steps) in enumerate(ways):
        update("stsb", done, len(ways))
        result = isospike.port(
            model, calibration, code=code, steps=steps, evaluation=held_out, functions=functions
        )
        got, hidden = embed(result.model, dev)
        cosine = float((got * expected).sum(-1).double().mean())
        change = spearman(got, scores) - reference
        pairs = zip(hidden, expected_hidden, strict=True)
        lost = sum(float((h - e).double().square().sum()) for h, e in pairs)
        name = f"{code}, T={steps}" + (", functions on spikes" if functions == "spiking" else "")
        numbers |= {f"cosine, {name}": cosine, f"Spearman change, {name}": change}
        if functions == "spiking":
            goals[f"Spearman change, {name}"] = Goal(change, -FUNCTIONS, at_least=True)
        elif steps in COSINES and p.sentences is not None:
            goals[f"cosine, {name}"] = Goal(cosine, COSINES[steps], at_least=True)
            if steps in SPEARMANS:
                goals[f"Spearman change, {name}"] = Goal(abs(change), SPEARMANS[steps])
        values = sum(site.values for site in result.report.sites)
        rows.append((name, f"{cosine:.5f}", f"{reference + change:.2f} ({change:+.2f})",
                     f"{(lost / power) ** 0.5:.4f}", f"{result.report.spikes:,.0f}",
                     f"{result.report.spikes / values:.3f}"))  # fmt: skip
    head = ("code, steps", "cosine", "Spearman (change)", "error", "spikes/token", "spikes/value")
    meaning = (
        "Cosine of a sentence's embedding to the float one, and Spearman correlation with people's "
        "scores in points: at 8 steps the port is as good as the model."
    )
    return Findings(numbers, [Table("MiniLM on STS-B", head, tuple(rows), meaning)], goals)


def nats(model, stories):
    """Mean cross-entropy of every token but the first of each ``[1, tokens]``."""
    with torch.inference_mode():
        losses = [
            F.cross_entropy(model(input_ids=s[:, :-1]).logits[0], s[0, 1:], reduction="none")
            for s in stories
        ]
    return float(torch.cat(losses).double().mean())


def greedy(model, ids, count):
    """The prompt and the ``count`` most likely tokens after it, with a cache."""
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
    return out[0].tolist()


def read_stories(p, ctx):
    """Model, stories, and a prompt."""
    if p.length < 512:
        ids = random_batches(3, 1, p.length)
        return small_llama(), [batch["input_ids"] for batch in ids], ids[0]["input_ids"][:, :4]
    model = load_llama2c(ctx.file(STORIES[0]))
    tokenizer = Tokenizer(ctx.file(STORIES[1]))
    parts = ctx.file(STORIES[2]).read_text(encoding="utf-8").split("<|endoftext|>")
    limit = model.config.max_position_embeddings
    ids = [torch.tensor([tokenizer.encode(s.strip())[:limit]]) for s in parts if s.strip()]
    return model, ids, torch.tensor([tokenizer.encode("Once upon a time")])


@study(
    "stories",
    question="Does a decoder on spikes predict text as well as the float model?",
    data=STORIES,
    presets={
        "tiny": P(texts=2, length=24, codes=("signed-digit",), steps=(6,), written=4),
        "small": P(texts=16, length=512, codes=("signed-digit",), steps=(8,), written=100),
        "full": P(texts=16, length=512, codes=("signed-digit", "phase"), steps=(6, 8), written=100),
    },
)
def stories(p, ctx):
    """stories260K, a Llama, calibrated on text that the float model wrote, as long as its context:
    RoPE turns keys further at each position, so static ranges of early positions cut later keys.
    """
    model, texts, prompt = read_stories(p, ctx)
    calibration = [{"input_ids": sample(model, p.texts, p.length, 0)}]
    held_out = [{"input_ids": story} for story in texts]
    joined, limit = torch.cat(texts, 1), model.config.max_position_embeddings
    packed = [joined[:, i : i + limit + 1] for i in range(0, joined.shape[1] - 1, limit)]
    reference, reference_packed = nats(model, texts), nats(model, packed)
    float_text = greedy(model, prompt, p.written)
    numbers, goals = {"nats, float32": reference, "nats packed, float32": reference_packed}, {}
    rows = [("float32", f"{reference:.4f}", f"{reference_packed:.4f}", None, None, None)]
    for code in p.codes:
        for steps in p.steps:
            result = isospike.port(model, calibration, code=code, steps=steps, evaluation=held_out)
            changes = (
                nats(result.model, texts) - reference, nats(result.model, packed) - reference_packed
            )  # fmt: skip
            pairs = zip(greedy(result.model, prompt, p.written), float_text, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(float_text))
            report, name = result.report, f"{code}, T={steps}"
            numbers |= {f"change, {name}": changes[0], f"change packed, {name}": changes[1],
                        f"same tokens, {name}": same - prompt.shape[1]}  # fmt: skip
            if steps == 8:
                goals[f"nats, {name}"] = Goal(max(map(abs, changes)), 0.02)
            values = sum(site.values for site in report.sites)
            rows.append((
                name, f"{reference + changes[0]:.4f} ({changes[0]:+.4f})",
                f"{reference_packed + changes[1]:.4f} ({changes[1]:+.4f})", f"{report.error:.4f}",
                f"{report.agreement:.3f}", f"{report.spikes / values:.3f}",
            ))  # fmt: skip
    head = ("code, steps", "nats by story (change)", "packed (change)", "error",
            "same arg-max", "spikes/value")  # fmt: skip
    meaning = "Nats per token, story by story and in full windows: the change is small beside them."
    return Findings(
        numbers, [Table("stories260K on TinyStories", head, tuple(rows), meaning)], goals
    )


@study(
    "allocation",
    question="How many spikes does it save to give every channel its own number of steps?",
    data=STS,
    extra="demo",
    presets={
        "tiny": P(sentences=None, steps=(5,), codes=("signed-digit",)),
        "small": P(sentences=48, steps=(8,), codes=("half-octave", "signed-digit")),
        "full": P(sentences=96, steps=(8, 6), codes=("half-octave", "signed-digit")),
    },
)
def allocation(p, ctx):
    """Every allocated port is asked for the error that a uniform one of signed digits reached."""
    model, calibration, dev, _ = sentences(p, ctx)
    held_out = [batch for _, batch in dev[len(dev) // 4 :: max(1, len(dev) // 2)]]
    table = next(t for t in TABLES if t.quantised_mac_per_bit_pj)
    numbers, goals, sent, costs = {}, {}, [], []

    def port(how, code, against, steps):
        report = isospike.port(
            model, calibration, evaluation=held_out, code=code, steps=steps
        ).report
        steps = sorted({s.steps for s in report.sites})
        shown = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        fewer = None if against is None else 1 - report.spikes / against.spikes
        bits = sum(s.values for s in report.sites) * report.counts.bits
        spent = estimate_energy(report.counts, table)
        name = f"{how}, {code}, {shown} steps"
        sent.append((name, f"{report.error:.4f}",
                     report.error_predicted and f"{report.error_predicted:.4f}",
                     f"{report.spikes:,.0f}", fewer and f"{100 * fewer:.1f} %"))  # fmt: skip
        costs.append((name, f"{bits:,.0f}", f"{spent.spiking_pj / 1e3:,.0f}",
                      f"{(spent.quantised_pj or 0) / 1e3:,.0f}"))  # fmt: skip
        return report, fewer

    same = {}
    for done, steps in enumerate(p.steps):
        update("allocation", done, len(p.steps))
        same[steps], _ = port("uniform", "signed-digit", None, steps)
        for code in p.codes:
            target = isospike.Target(same[steps].error, per_channel=True)
            _, fewer = port("allocated", code, same[steps], target)
            numbers[f"fewer, {code}, error of T={steps}"] = fewer
            if p.sentences is not None:
                goals[f"fewer spikes, {code}, error of T={steps}"] = Goal(
                    fewer, 0.25, at_least=True
                )
    for steps in p.steps:
        port("uniform", "half-octave", same[steps], 2 * steps - 1)
    return Findings(
        numbers,
        [
            Table("Spikes at the same error", ("port", "error", "predicted", "spikes/token",
                  "fewer"), tuple(sent),
                  "An allocated port spends fewer spikes than the uniform one at its error."),
            Table("Beside the equal-bit network",
                  ("port", "bits/token", "energy, nJ", "equal-bit network, nJ"),
                  tuple(costs), f"Energy per token without memory, by "
                  f"the table '{table.name}': spikes cost less in every row."),
        ],
        goals,
    )  # fmt: skip


CASES = ("import", "forward", "port")
LIMITS = {"collapsed": 1.25, "fast": 0.6, "stepped": 8.0}


@study(
    "port-speed",
    question="How much slower than the float model is its port?",
    extra="demo",
    presets={"tiny": P(rounds=1, rows=2, tokens=12, threads=1, commands=False),
             "small": P(rounds=5, rows=32, tokens=64, threads=2, commands=True),
             "full": P(rounds=14, rows=32, tokens=64, threads=2, commands=True)},
)  # fmt: skip
def port_speed(p, ctx):
    """The float32 model, one port of it run in three ways, one with functions on spikes in two."""
    torch.set_num_threads(p.threads)
    small = p.tokens < 64
    model = small_bert() if small else load_minilm()[1]
    batches = random_batches(4, p.rows, p.tokens) if small else exact_batches(4, p.rows, p.tokens)
    batch, *calibration = batches
    result = isospike.port(model, calibration, steps=8)
    circuits = isospike.port(model, calibration, steps=8, functions="spiking")
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "port")
        other = circuits.save(Path(folder) / "circuits")
        models = {
            "float32": model,
            "collapsed": isospike.load(path),
            "fast": isospike.load(path, precision="fast"),
            "stepped": isospike.load(path, execution="stepped"),
            "collapsed, functions on spikes": isospike.load(other),
            "stepped, functions on spikes": isospike.load(other, execution="stepped"),
        }
    with torch.inference_mode():
        times = ctx.timing({name: partial(m, **batch) for name, m in models.items()}, p.rounds)
    rows = [(n, f"{1e3 * times.seconds(n):.0f}", f"{times.ratio(n, 'float32'):.2f}")
            for n in models]  # fmt: skip
    tables = [Table("Forward pass", ("run", "ms", "ratio to float32"), tuple(rows),
                    f"{p.rows} x {p.tokens} tokens, 8 steps, {p.threads} threads: collapsed is "
                    "what users wait for, stepped is the specification.")]  # fmt: skip
    numbers = {name: times.ratio(name, "float32") for name in models}
    goals = {} if small else {n: Goal(numbers[n], limit) for n, limit in LIMITS.items()}
    if p.commands:
        commands = {
            "import torch": ("-c", "import torch"),
            "import the port": ("-c", "from isospike import port"),
            "isospike --help": ("-m", "isospike", "--help"),
        }
        times = ctx.timing({n: partial(fresh, *c) for n, c in commands.items()}, p.rounds)
        rows = [(n, f"{times.seconds(n):.2f}", f"{times.ratio(n, 'import torch'):.2f}")
                for n in commands]  # fmt: skip
        tables.append(Table("Fresh processes", ("command", "s", "ratio to import torch"),
                            tuple(rows), "The port is imported as fast as torch; help needs no "
                            "torch."))  # fmt: skip
        goals["import"] = Goal(times.ratio("import the port", "import torch"), 1.15)
        goals["help, s"] = Goal(times.seconds("isospike --help"), 0.5)
    return Findings(numbers, tables, goals)


def fresh(*arguments):
    """Run Python anew."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


@study(
    "port-memory",
    question="How much memory does a port take, beside the model's own forward?",
    extra="demo",
    presets={"tiny": P(rows=2, tokens=12, batches=2, apart=False),
             "small": P(rows=32, tokens=64, batches=4, apart=True),
             "full": P(rows=32, tokens=64, batches=10, apart=True)},
)  # fmt: skip
def port_memory(p, ctx):
    """Each case in a process of its own, whose peak resident set is read at its end."""
    peaks = {case: measured_apart(peak_of, case, p)[0] for case in CASES}
    ratios = {case: peak / peaks["forward"] for case, peak in peaks.items()}
    rows = tuple((case, f"{peak:.0f}", f"{ratios[case]:.2f}") for case, peak in peaks.items())
    table = Table("Peak memory", ("case", "peak MiB", "ratio to the forward"), rows,
                  "Blocks are calibrated and measured one after the other.")  # fmt: skip
    goals = {} if not p.apart else {"peak of the port": Goal(ratios["port"], 1.5)}
    return Findings(ratios, [table], goals)


def measured_apart(function, case, p):
    """The numbers that a function of a case returns in a process of its own; ``tiny`` runs here."""
    if not p.apart:
        return function(case, p)
    code = f"from types import SimpleNamespace as P; from {function.__module__} import *; "
    code += f"print(*{function.__name__}({case!r}, P(**{vars(p)!r})))"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    return [float(word) for word in out.stdout.split()]


def peak_of(case, p):
    """Peak resident set of this process in MiB, after running one case."""
    model = load_minilm()[1] if p.apart else small_bert()
    if case == "forward":
        make = exact_batches if p.apart else random_batches
        with torch.inference_mode():
            model(**make(1, p.rows, p.tokens)[0])
    elif case == "port":
        inputs = (
            passage_batches(p.batches, p.rows) if p.apart else random_batches(2, p.rows, p.tokens)
        )
        cut = max(1, 4 * len(inputs) // 5)
        isospike.port(model, inputs[:cut], evaluation=inputs[cut:])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,)
