"""The sequence machine: published protocols, long sequences, text, spiking layers, speed."""

import re
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace as P

import numpy as np

from isospike.data import chorales, shakespeare
from isospike.experiments.study import Findings, Goal, shown, study
from isospike.memory import (
    Backoff,
    BackoffNgram,
    Combined,
    Layer,
    SequenceMachine,
    Shift,
    Store,
)
from isospike.progress import update
from isospike.report.table import Table

PUBLISHED = Store(locations=2048, connections=20, data=(11, 256))
# As many counters as the published store: 32768 x 16 against 2048 x 256.
OURS = Store(locations=32768)
CONTEXTS = {
    "combined": Combined(weight=0.5), "layer": Layer(weight=0.2),
    "shift register": Shift(depth=2),
}  # fmt: skip
REPEATED = {"combined": "22.03 (10)", "layer": "20.30 (4)", "shift register": "20.47 (0)"}
"""Published: right of 23 with a repeated subsequence, and perfect runs of 30 (Table I)."""
LICENCE = Path("/usr/share/common-licenses/GPL-3")  # English, on every Debian


def area(margin, right):
    """Chance that a right prediction has the larger margin: the area under the ROC curve."""
    order = np.argsort(margin, kind="stable")
    _, first, counts = np.unique(margin[order], return_index=True, return_counts=True)
    rank = np.empty(len(margin))
    rank[order] = np.repeat(first + (counts + 1) / 2, counts)
    hits, misses = right.sum(), (~right).sum()
    return float((rank[right].sum() - hits * (hits + 1) / 2) / (hits * misses))


def errors(ids, alphabet, seed, context):
    """Wrong predictions of the second presentation, of the sequence's length less one."""
    store = replace(PUBLISHED, rule="max")
    machine = SequenceMachine(range(alphabet), context=context, store=store, seed=seed)
    machine.learn_sequence(ids)
    machine.reset_context()
    return int((~machine.follow_sequence(ids)[1:]).sum())


@study(
    "protocols",
    question="Does the machine make the errors that were published for it?",
    presets={"tiny": P(runs=1, lengths=((15, 20),), weights=(0.0, 1.0)),
             "small": P(runs=5, lengths=((15, 100), (50, 100)), weights=(0.0, 0.5, 1.0)),
             "full": P(runs=30, weights=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), lengths=tuple(
                 (a, n) for a in (15, 50) for n in (20, 50, 100)))},
)  # fmt: skip
def protocols(p, ctx):
    """IJCNN 2005, Figures 6 and 7 and Table I: three contexts, W = 2048, data 11-of-256."""
    runs, numbers, rows = range(p.runs), {}, []
    draw = [np.random.default_rng(seed) for seed in runs]
    for alphabet, length in p.lengths:
        update("protocols", len(rows), len(p.lengths))
        ids = [rng.integers(0, alphabet, length).tolist() for rng in draw]
        wrong = {name: [errors(ids[r], alphabet, r, context) for r in runs]
                 for name, context in CONTEXTS.items()}  # fmt: skip
        rows.append((f"{alphabet}, {length}", *(shown(v, 1) for v in wrong.values())))
        numbers |= {f"errors, {alphabet}, {length}, {n}": np.mean(v) for n, v in wrong.items()}
    weights = []
    for weight in p.weights:  # their lambda: ours is lambda / (1 + lambda)
        context = Combined(weight=weight / (1 + weight))
        wrong = [errors(g.integers(0, 15, 100).tolist(), 15, r, context)
                 for r, g in enumerate(draw)]  # fmt: skip
        weights.append((f"{weight:g}", shown(wrong, 1)))
    repeated = []
    for name, context in CONTEXTS.items():
        right = []
        for r, rng in enumerate(draw):
            parts = [rng.integers(0, 12, n).tolist() for n in (5, 4, 5, 5)]
            ids = [*parts[0], *parts[1], *parts[2], *parts[1], *parts[3]]  # 5-4-5-4-5
            right.append(22 - errors(ids, 12, r, context))
        perfect = str(sum(x == 22 for x in right))
        repeated.append((name, shown(right, 1), perfect, REPEATED[name]))
    return Findings(
        numbers,
        [
            Table("Errors of the second presentation", ("alphabet, length", *CONTEXTS),
                  tuple(rows), f"Wrong predictions, means of {p.runs}: the combined context makes "
                  "none; layer and shift register fall behind as sequences grow. Published for "
                  "alphabet 15, length 100: 0 to 3, 5 to 15 and 17 to 20."),
            Table("Errors by the weight of the context", ("lambda", "combined, length 100"),
                  tuple(weights), "More context, fewer errors (published: 70, then 20 to 32 from "
                  ".1 to .9, then 0 to 3)."),
            Table("A subsequence that is repeated",
                  ("context", "right of 22", f"perfect runs of {p.runs}",
                   "published, of 23 (perfect of 30)"), tuple(repeated),
                  "Only the combined context tells both occurrences apart in every run (parts of "
                  "5, 4, 5, 4 and 5 symbols, of which both of 4 are the same; alphabet 12)."),
        ],
    )  # fmt: skip


@study(
    "long-sequences",
    question="How long a sequence does the machine recall after one presentation?",
    presets={"tiny": P(seeds=1, lengths=(100,), goal=False),
             "small": P(seeds=3, lengths=(1000,), goal=False),
             "full": P(seeds=10, lengths=(1000, 4000), goal=True)},
)  # fmt: skip
def long_sequences(p, ctx):
    """Second pass of one random sequence, alphabet 15; area under the margin's ROC curve."""
    rows, numbers = [], {}
    sizes = {"published": (PUBLISHED, "2,048 x 256"), "narrow": (OURS, "32,768 x 16")}
    for name, (store, size) in sizes.items():
        for length in p.lengths:
            recall, margins = [], []
            for seed in range(p.seeds):
                ids = np.random.default_rng(seed).integers(0, 15, length).tolist()
                machine = SequenceMachine(range(15), store=store, seed=seed)
                machine.learn_sequence(ids)
                machine.reset_context()
                right, _, margin = machine.match_sequence(ids)
                recall.append(float(right.mean()))
                if 0 < right.sum() < len(right):
                    margins.append(area(margin, right))
            numbers[f"recall, {name}, {length}"] = np.mean(recall)
            rows.append((f"{name}, {size}; {length:,}", shown(recall),
                         shown(margins) if margins else None))  # fmt: skip
            if margins:
                numbers[f"area, {name}, {length}"] = np.mean(margins)
    goals = {
        "recall, narrow, 4,000": Goal(numbers["recall, narrow, 4000"], 0.95, True),
        "area of the margin, narrow, 4,000": Goal(numbers["area, narrow, 4000"], 0.85, True),
    } if p.goal else {}  # fmt: skip
    head = ("store, locations x counters; length", "recall", "area of the margin")
    meaning = (
        "Share of 15 symbols right on the second pass, and the chance that a right prediction has "
        "the larger margin than a wrong one: with as many counters, narrow locations recall four "
        "times the length."
    )
    return Findings(numbers, [Table("One random sequence", head, tuple(rows), meaning)], goals)


def trusting(machine, ids, way, learn=False):
    """The prediction after each symbol, where the old context counts as much as it was trusted.

    Its gains are multiplied by the similarity of the symbol that came (``agreement``), by that of
    the best match (``activity``), or by 1 (``constant``).
    """
    memory, after = machine.memory, []
    gains = memory._fixed.gain_old
    whole = gains.copy()
    for symbol in ids:
        if learn:
            memory.store(symbol)
        memory.score()
        trust = {"constant": 1.0, "agreement": memory.scores[symbol],
                 "activity": memory.scores.max()}[way]  # fmt: skip
        gains[:] = whole * trust
        memory.advance(symbol)
        memory.score()
        after.append(int(memory.scores.argmax()))
    gains[:] = whole
    return after


@study(
    "context-weight",
    question="Does a context weight that adapts help?",
    presets={"tiny": P(seeds=1, length=40), "small": P(seeds=3, length=300),
             "full": P(seeds=10, length=300)},
)  # fmt: skip
def context_weight(p, ctx):
    """Second pass of one random sequence, alphabet 15, with wrong cues, and from its middle."""
    numbers, rows = {}, []
    cases = {"5 % of the cues wrong": (0.05, 0), "20 % wrong": (0.2, 0),
             "from the middle": (0.0, p.length // 2)}  # fmt: skip
    for context in (Combined(weight=0.3), Combined(weight=0.5), Layer(weight=0.4)):
        for way in ("constant", "agreement", "activity"):
            found = {case: [] for case in cases}
            for seed in range(p.seeds):
                draw = np.random.default_rng(seed)
                ids = draw.integers(0, 15, p.length)
                machine = SequenceMachine(range(15), context=context, store=PUBLISHED, seed=seed)
                trusting(machine, ids.tolist(), way, learn=True)
                for case, (share, start) in cases.items():
                    cues, wrong = ids.copy(), draw.random(p.length) < share
                    cues[wrong] = draw.integers(0, 15, int(wrong.sum()))
                    machine.reset_context()
                    after = trusting(machine, cues[start:-1].tolist(), way)
                    found[case].append(float(np.mean(after == ids[start + 1 :])))
            name = f"{context.name} {context.weight:g}, {way}"
            numbers |= {f"{name}, {case}": np.mean(values) for case, values in found.items()}
            rows.append((name, *(shown(values) for values in found.values())))
    meaning = (
        f"Share of next symbols right, length {p.length}, published size. The weight is constant, "
        "or multiplied by the similarity of the symbol that came (agreement) or of the best match "
        "(activity): the constant one is best nearly everywhere."
    )
    head = ("context and weight", *cases)
    table = Table("Recall with a weight that adapts", head, tuple(rows), meaning)
    return Findings(numbers, [table])


@study(
    "distractors",
    question="How many transitions does the machine keep, beside a plain store of equal bytes?",
    presets={"tiny": P(seeds=1, pairs=(300,), goal=False),
             "small": P(seeds=1, pairs=(4000,), goal=True),
             "full": P(seeds=10, pairs=(4000, 8000, 16000), goal=True)},
)  # fmt: skip
def distractors(p, ctx):
    """Recall of the first 200 of unique random transitions, two symbols to one, alphabet 128."""
    limits, rows, numbers, goals = {4000: 0.955, 8000: 0.555, 16000: 0.12}, [], {}, {}
    stores = {"published size": PUBLISHED, "narrow locations": Store(locations=4096)}
    for count in p.pairs:
        results = {name: [] for name in stores}
        for seed in range(p.seeds):
            draw = np.random.default_rng(seed)
            keys = draw.permutation(128 * 128)[:count]
            cues, values = np.stack([keys // 128, keys % 128], 1), draw.integers(0, 128, count)
            for name, store in stores.items():
                machine = SequenceMachine(range(128), context=Shift(), store=store, seed=seed)
                for cue, value in zip(cues, values, strict=True):
                    for symbol in cue:
                        machine.follow(int(symbol))
                    machine.learn(int(value))
                hits = 0
                for cue, value in zip(cues[:200], values[:200], strict=True):
                    for symbol in cue:
                        machine.follow(int(symbol))
                    hits += machine.predict().symbol == int(value)
                results[name].append(hits / 200)
            held = machine.synapses // 3  # pairs of three bytes
        numbers |= {f"recall, {name}, {count}": np.mean(v) for name, v in results.items()}
        # What is never read leaves a plain store in the order it came.
        plain = 1.0 if count <= held else 0.0
        rows.append((f"{count:,}", *(shown(v) for v in results.values()), f"{plain:.3f}"))
        if p.goal:
            value = np.mean(results["narrow locations"])
            goals[f"recall, {count:,} pairs"] = Goal(value, limits[count], at_least=True)
    head = ("transitions", "published size, 2,048 x 256", "narrow locations, 4,096 x 128",
            "FIFO or LRU store of equal bytes")  # fmt: skip
    meaning = (
        "Share of the first 200 recalled; both memories have 524,288 counters. A plain store of "
        "exact keys holds all transitions; the memory also recalls from noisy keys."
    )
    return Findings(numbers, [Table("Unique transitions", head, tuple(rows), meaning)], goals)


@study(
    "text",
    question="How well does the machine predict text on line?",
    presets={"tiny": P(seeds=1, letters=(1000,), chords=False),
             "small": P(seeds=1, letters=(6000,), chords=False),
             "full": P(seeds=10, letters=(100_000, 6000), chords=True)},
)  # fmt: skip
def text(p, ctx):
    """Accuracy of the next symbol, one pass, a-z and space; seeds change the hash only."""
    plain = {f"Shakespeare, first {n:,}": (shakespeare(), n) for n in p.letters}
    if LICENCE.exists() and 6000 in p.letters:
        plain = {"GPL-3, first 6,000": (LICENCE.read_text(encoding="utf-8"), 6000), **plain}
    rows, numbers, goals = [], {}, {}
    for name, (source, count) in plain.items():
        letters = re.sub("[^a-z]+", " ", source.lower())[:count]
        found, margins = [], []
        for seed in range(p.seeds):
            machine = SequenceMachine(sorted(set(letters)), context=Backoff(), seed=seed)
            right, _, margin = machine.match_sequence(letters, learn=True)
            found.append(float(right.mean()))
            margins.append(area(margin, right))
        peer = float(np.mean(BackoffNgram(5).learn_sequence(letters)))
        numbers |= {f"accuracy, {name}": np.mean(found), f"n-gram, {name}": peer}
        rows.append((name, shown(found), f"{peer:.3f}", shown(margins)))
        if name.startswith("GPL"):
            goals = {"accuracy, GPL-3": Goal(np.mean(found), 0.526, at_least=True),
                     "area of the margin, GPL-3": Goal(np.mean(margins), 0.85, True)}  # fmt: skip
    if p.chords:
        machine, ngram = SequenceMachine(context=Backoff(), grow=True), BackoffNgram(5)
        right, peer = [], []
        for piece in chorales():
            machine.reset_context()
            ngram.reset_context()
            right += machine.learn_sequence(piece).tolist()
            peer += ngram.learn_sequence(piece)
        rows.append((f"chorales, {len(right):,} chords", f"{np.mean(right):.3f}",
                     f"{np.mean(peer):.3f}", None))  # fmt: skip
    head = ("text", f"back-off context, depth {Backoff().depth}", "order-5 n-gram",
            "area of the margin")  # fmt: skip
    meaning = (
        "Share of next symbols right in one pass, a-z and space: a point or two above the n-gram's."
    )
    return Findings(numbers, [Table("Text on line", head, tuple(rows), meaning)], goals)


@study(
    "spiking-machine",
    question="Does the machine predict alike on abstract and on spiking layers?",
    presets={"tiny": P(seeds=1, length=40), "small": P(seeds=2, length=500),
             "full": P(seeds=10, length=500)},
)  # fmt: skip
def spiking_machine(p, ctx):
    """Published size, one random sequence, second presentation: share right."""
    rows = []
    for context in (Combined(), Layer(), Shift()):
        cells = []
        for layers in ("abstract", "wheel", "rdlif"):
            found = []
            for seed in range(p.seeds):
                ids = np.random.default_rng(seed).integers(0, 15, p.length).tolist()
                machine = SequenceMachine(
                    range(15), context=context, store=PUBLISHED, layers=layers, seed=seed
                )
                machine.learn_sequence(ids)
                machine.reset_context()
                found.append(float(machine.follow_sequence(ids).mean()))
            cells.append(shown(found))
        rows.append((context.name, *cells))
    head = ("context", "abstract", "wheel", "RDLIF")
    meaning = (
        f"Share of {p.length} symbols right on the second pass, published size: wheel neurons "
        "predict exactly as the abstract machine does."
    )
    return Findings({}, [Table("Machines on neurons", head, tuple(rows), meaning)])


def cost_ratio(p, ctx, make, old, ids):
    """Time of 4,000 symbols in an old machine over that in a new one, in turn; the median."""
    ratios = []
    for _ in range(p.young):
        young = make()
        young.learn_sequence(ids[:1000])
        some = ids[:4000]
        runs = {"young": partial(young.learn_sequence, some),
                "old": partial(old.learn_sequence, some)}  # fmt: skip
        ratios.append(ctx.timing(runs, 1, warm_up=0).ratio("old", "young"))
    return statistics.median(ratios)


LEAST = {  # symbols a second
    "default context, two calls a symbol": 50_000,
    "published size, two calls a symbol": 50_000,
    "published size, RDLIF neurons": 5000,
    "default context, text": 300_000,
}


def other_rates(ids):
    """Symbols a second where a call predicts each and another learns it, on neurons, and of the
    default context, which is quicker where few symbols follow a context."""
    rates = {}
    for name, store in (("default context", None), ("published size", PUBLISHED)):
        for _ in range(2):  # the first one compiles what is not in the cache yet
            machine = SequenceMachine(range(15), store=store)
            start = time.perf_counter()
            for symbol in ids:
                machine.predict()
                machine.learn(symbol)
        rates[f"{name}, two calls a symbol"] = len(ids) / (time.perf_counter() - start)
    machine = SequenceMachine(range(15), store=PUBLISHED, layers="rdlif")
    machine.learn_sequence(ids[:10])
    some = ids[: len(ids) // 10]
    start = time.perf_counter()
    machine.learn_sequence(some)
    rates["published size, RDLIF neurons"] = len(some) / (time.perf_counter() - start)
    for name, stream in (("random symbols", ids), ("text", shakespeare()[: 5 * len(ids)])):
        machine = SequenceMachine(sorted(set(stream)))
        start = time.perf_counter()
        machine.learn_sequence(stream)
        rates[f"default context, {name}"] = len(stream) / (time.perf_counter() - start)
    return rates


@study(
    "machine-speed",
    question="How many symbols a second does the machine predict and learn?",
    presets={"tiny": P(symbols=500, repeats=2, young=1, large=0, longest=0),
             "small": P(symbols=20_000, repeats=5, young=5, large=0, longest=0),
             "full": P(symbols=20_000, repeats=50, young=20, large=1_000_000, longest=500)},
)  # fmt: skip
def machine_speed(p, ctx):
    """One thread; cost after ``repeats`` passes against a new machine's, in turn."""
    ids = np.random.default_rng(0).integers(0, 15, p.symbols).tolist()
    makers = {
        "published size": partial(SequenceMachine, range(15), store=PUBLISHED),
        "narrow locations": partial(SequenceMachine, range(15), store=OURS),
        "back-off context": partial(SequenceMachine, range(15), context=Backoff()),
    }
    rows, numbers, goals = [], {}, {}
    for name, make in makers.items():
        old = make()
        old.learn_sequence(ids[:10])
        start = time.perf_counter()
        for _ in range(p.repeats):
            old.learn_sequence(ids)
        rate = p.repeats * len(ids) / (time.perf_counter() - start)
        ratio = cost_ratio(p, ctx, make, old, ids)
        numbers |= {f"symbols/s, {name}": rate, f"old over new, {name}": ratio}
        rows.append((name, f"{rate:,.0f}", f"{ratio:.2f}"))
        if name == "published size" and p.longest:
            for _ in range(p.longest - p.repeats):
                old.learn_sequence(ids)
            ratio = cost_ratio(p, ctx, make, old, ids)
            numbers["very old over new, published size"] = ratio
            rows.append((f"the same after {p.longest * p.symbols:,}", None, f"{ratio:.2f}"))
    for name, rate in other_rates(ids).items():
        numbers[f"symbols/s, {name}"] = rate
        rows.append((name, f"{rate:,.0f}", None))
    for connections in (4, 8) if p.large else ():
        store = Store(locations=p.large, connections=connections, data=(11, 256))
        large = SequenceMachine(range(15), store=store)
        large.learn_sequence(ids)
        runs = {"large": partial(large.learn_sequence, ids[:4000])}
        rate = 4000 / ctx.timing(runs, 5, warm_up=0).seconds("large")
        numbers[f"symbols/s, large, a = {connections}"] = rate
        rows.append((f"W = {p.large:,}, a = {connections}", f"{rate:,.0f}", None))
    if p.large:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        goals = {
            "symbols/s, published size": Goal(numbers["symbols/s, published size"], 50_000, True),
            "cost after a million symbols": Goal(numbers["old over new, published size"], 1.1),
            "cost after ten million symbols": Goal(
                numbers["very old over new, published size"], 1.15
            ),
            "symbols/s, a million locations": Goal(numbers["symbols/s, large, a = 4"], 2000, True),
            "memory of a million locations, GiB": Goal(peak, 2.0),
        } | {
            f"symbols/s, {name}": Goal(numbers[f"symbols/s, {name}"], least, True)
            for name, least in LEAST.items()
        }
    head = ("machine", "symbols/s", "cost when old over new")
    meaning = "Predicted and learned; the cost does not grow with what was learned."
    return Findings(numbers, [Table("Symbols a second", head, tuple(rows), meaning)], goals)


@study(
    "machine-files",
    question="How large is the file of a machine?",
    presets={"tiny": P(sizes={300: None}), "small": P(sizes={3000: 0.5}),
             "full": P(sizes={3000: 0.5, 1_000_000: 60})},
)  # fmt: skip
def machine_files(p, ctx):
    """The default machine, after the first characters of Shakespeare."""
    rows, numbers, goals = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for size, most in p.sizes.items():
            machine = SequenceMachine(grow=True)
            machine.learn_sequence(shakespeare()[:size])
            machine.save(Path(folder) / "machine")
            mega = (Path(folder) / "machine").stat().st_size / 1e6
            numbers[f"MB after {size:,} characters"] = mega
            rows.append((f"{size:,}", f"{machine.memory.synapses:,}", f"{mega:.2f}"))
            if most is not None:
                goals[f"MB after {size:,} characters"] = Goal(mega, most)
    table = Table("Files", ("characters", "synapses", "MB"), tuple(rows),
                  "A file is as large as what was learned.")  # fmt: skip
    return Findings(numbers, [table], goals)
