"""The sequence machine: published protocols, recall, text, speed.

    python benchmarks/sequence.py [--seeds 10] [--only ijcnn,long,text,distractors,speed]

Figures are means over seeds with 95 % intervals of the mean (normal). One thread computes.
"""

import re
import resource
import statistics
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from sections import run, show

from isospike.data import chorales, shakespeare
from isospike.memory import (
    Backoff,
    BackoffNgram,
    Combined,
    Context,
    Layer,
    SequenceMachine,
    Shift,
    Store,
)

PUBLISHED = Store(locations=2048, connections=20, data=(11, 256))
# As many counters as the published store: 32768 x 16 against 2048 x 256.
OURS = Store(locations=32768)
LICENCE = Path("/usr/share/common-licenses/GPL-3")  # English, on every Debian


def area(margin: np.ndarray, right: np.ndarray) -> float:
    """Chance that a right prediction has the larger margin: the area under the ROC curve."""
    order = np.argsort(margin, kind="stable")
    values, first, counts = np.unique(margin[order], return_index=True, return_counts=True)
    rank = np.empty(len(margin))
    rank[order] = np.repeat(first + (counts + 1) / 2, counts)
    hits, misses = right.sum(), (~right).sum()
    return float((rank[right].sum() - hits * (hits + 1) / 2) / (hits * misses))


MODELS = {
    "combined": Combined(weight=0.5),
    "layer": Layer(weight=0.2),
    "shift register": Shift(depth=2),
}


def errors(ids: list[int], alphabet: int, seed: int, context: Context) -> int:
    """Wrong predictions of the second presentation, of the sequence's length less one."""
    store = replace(PUBLISHED, rule="max")
    machine = SequenceMachine(range(alphabet), context=context, store=store, seed=seed)
    machine.learn_sequence(ids)
    machine.reset_context()
    return int((~machine.follow_sequence(ids)[1:]).sum())


def ijcnn(seeds: int) -> None:
    """IJCNN 2005, Figures 6 and 7 and Table I: three contexts, published size, 3 x --seeds runs."""
    runs = range(3 * seeds)
    draw = [np.random.default_rng(seed) for seed in runs]
    for alphabet in (15, 50):
        for length in (20, 50, 100):
            ids = [rng.integers(0, alphabet, length).tolist() for rng in draw]
            for name, context in MODELS.items():
                wrong = [errors(ids[r], alphabet, r, context) for r in runs]
                show(f"Fig 6, alphabet {alphabet}, length {length}: errors, {name}", wrong)
    for weight in (
        0.0,
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
        1.0,
    ):  # their lambda: ours is lambda / (1 + lambda)
        wrong = [
            errors(rng.integers(0, 15, 100).tolist(), 15, r, Combined(weight=weight / (1 + weight)))
            for r, rng in enumerate(draw)
        ]
        show(f"Fig 7, length 100: errors, combined, lambda {weight}", wrong)
    for name, context in MODELS.items():
        right = []
        for r, rng in enumerate(draw):
            parts = [rng.integers(0, 12, n).tolist() for n in (5, 4, 5, 5)]
            ids = [*parts[0], *parts[1], *parts[2], *parts[1], *parts[3]]  # 5-4-5-4-5
            right.append(22 - errors(ids, 12, r, context))
        show(f"Table I: right of 22, {name}", right)
        show(f"Table I: share of perfect runs, {name}", [float(x == 22) for x in right])


def long(seeds: int) -> None:
    """Recall on the second pass of one random sequence, alphabet 15; area of the margin."""
    for name, store in (("published", PUBLISHED), ("narrow locations", OURS)):
        for length in (1000, 4000):
            recall, margins = [], []
            for seed in range(seeds):
                ids = np.random.default_rng(seed).integers(0, 15, length).tolist()
                machine = SequenceMachine(range(15), store=store, seed=seed)
                machine.learn_sequence(ids)
                machine.reset_context()
                right, _, margin = machine.match_sequence(ids)
                recall.append(float(right.mean()))
                if 0 < right.sum() < len(right):
                    margins.append(area(margin, right))
            show(f"{name}, {machine.synapses} synapses, length {length}: recall", recall)
            if margins:
                show(f"{name}, length {length}: area under ROC of the margin", margins)


def text(seeds: int) -> None:
    """On-line accuracy of the next symbol, one pass; seeds change the hash only."""
    plain = {"Shakespeare, 100000": shakespeare(), "Shakespeare, 6000": shakespeare()}
    if LICENCE.exists():
        plain = {"GPL-3, 6000": LICENCE.read_text(), **plain}
    for name, source in plain.items():
        letters = re.sub("[^a-z]+", " ", source.lower())[: int(name.split()[-1])]
        found, margins = [], []
        for seed in range(seeds):
            machine = SequenceMachine(sorted(set(letters)), context=Backoff(), seed=seed)
            right, _, margin = machine.match_sequence(letters, learn=True)
            found.append(float(right.mean()))
            margins.append(area(margin, right))
        show(f"{name} letters: back-off context", found)
        show(f"{name} letters: area under ROC of the margin", margins)
        show(f"{name} letters: order-5 n-gram", [np.mean(BackoffNgram(5).learn_sequence(letters))])
    machine, ngram = SequenceMachine(context=Backoff(), grow=True), BackoffNgram(5)
    right, peer = [], []
    for piece in chorales():
        machine.reset_context()
        ngram.reset_context()
        right += machine.learn_sequence(piece).tolist()
        peer += ngram.learn_sequence(piece)
    show("chorales: back-off context", [np.mean(right)])
    show("chorales: order-5 n-gram", [np.mean(peer)])


def distractors(seeds: int) -> None:
    """Recall of the first 200 of unique random transitions (two symbols to one, alphabet 128),
    published size against narrow locations, and stores of equal bytes that forget."""
    for count in (4000, 8000, 16000):
        results: dict[str, list[float]] = {}
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            keys = draw.permutation(128 * 128)[:count]
            cues, values = np.stack([keys // 128, keys % 128], 1), draw.integers(0, 128, count)
            stores = {"published": PUBLISHED, "narrow locations": Store(locations=4096)}
            for name, shape in stores.items():
                machine = SequenceMachine(range(128), context=Shift(), store=shape, seed=seed)
                for cue, value in zip(cues, values, strict=True):
                    for symbol in cue:
                        machine.follow(int(symbol))
                    machine.learn(int(value))
                hits = 0
                for cue, value in zip(cues[:200], values[:200], strict=True):
                    for symbol in cue:
                        machine.follow(int(symbol))
                    hits += machine.predict().symbol == int(value)
                results.setdefault(name, []).append(hits / 200)
            held = machine.synapses // 3  # pairs of three bytes
            store: OrderedDict[tuple[int, int], int] = OrderedDict()
            for cue, value in zip(cues.tolist(), values.tolist(), strict=True):
                store[tuple(cue)] = value
                if len(store) > held:
                    store.popitem(last=False)
            kept = np.mean([store.get(tuple(c)) == v for c, v in zip(cues[:200].tolist(),
                                                                     values[:200].tolist(),
                                                                     strict=True)])  # fmt: skip
            results.setdefault("FIFO = LRU (nothing is read before), equal bytes", []).append(kept)
        for name, found in results.items():
            show(f"{count} pairs: {name}", found)


def speed(seeds: int) -> None:
    """Symbols per second, predicted and learned; cost after a million; a million locations."""
    ids = np.random.default_rng(0).integers(0, 15, 20000).tolist()
    for name, store in (("published size", PUBLISHED), ("narrow locations", OURS)):
        machine = SequenceMachine(range(15), store=store)
        machine.learn_sequence(ids[:10])
        rates = []
        for _ in range(max(5, seeds)):
            start = time.perf_counter()
            machine.learn_sequence(ids)
            rates.append(len(ids) / (time.perf_counter() - start))
        print(f"| {name} | {statistics.median(rates):,.0f} symbols/s | best {max(rates):,.0f} |")
    machine = SequenceMachine(range(15), store=PUBLISHED)
    start = time.perf_counter()
    for symbol in ids[:5000]:
        machine.predict()
        machine.learn(symbol)
    rate = 5000 / (time.perf_counter() - start)
    print(f"| published size, a call for each symbol | {rate:,.0f} symbols/s | |")
    for name, make in (
        ("published size", partial(SequenceMachine, range(15), store=PUBLISHED)),
        ("back-off context", partial(SequenceMachine, range(15), context=Backoff())),
    ):
        old = make()
        start = time.perf_counter()
        for _ in range(50):  # a million symbols
            old.learn_sequence(ids)
        rate = 10**6 / (time.perf_counter() - start)
        ratios = []
        for _ in range(20):  # in turn with a machine of a thousand
            young = make()
            young.learn_sequence(ids[:1000])
            times = []
            for machine in (young, old):
                start = time.perf_counter()
                machine.learn_sequence(ids[:4000])
                times.append(time.perf_counter() - start)
            ratios.append(times[1] / times[0])
        print(
            f"| {name}, 10^6 symbols | {rate:,.0f} symbols/s | cost after 10^6 against after 10^3: "
            f"{statistics.median(ratios):.2f}x |"
        )
    for connections in (4, 8):
        store = Store(locations=1_000_000, connections=connections, data=(11, 256))
        large = SequenceMachine(range(15), store=store)
        large.learn_sequence(ids)
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            large.learn_sequence(ids[:4000])
            rates.append(4000 / (time.perf_counter() - start))
        rate = statistics.median(rates)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| W = 1,000,000, a = {connections} | {rate:,.0f} symbols/s | best {max(rates):,.0f}, "
            f"peak of the process {peak:.2f} GiB |"
        )
        del large


if __name__ == "__main__":
    run(__doc__, ijcnn, long, text, distractors, speed)
