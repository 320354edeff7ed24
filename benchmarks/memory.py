"""The machine's memory and layers of spiking neurons: capacity, noise, thresholds, bursts."""

import statistics
import time
from types import SimpleNamespace as P

import numpy as np
import torch

from isospike.codes.orders import nof_m, random_orders, significance, similarity
from isospike.experiments.study import Findings, Goal, shown, study
from isospike.memory import (
    SparseDistributedMemory,
    SpikingLayer,
    capacity,
    expected_recall,
    first_spikes,
    wheel_times,
)
from isospike.report.table import Table

SEEDS = {"tiny": P(seeds=1), "small": P(seeds=3), "full": P(seeds=10)}


def memory_of(pairs, seed, w=16, **settings):
    """A memory of 4096 locations that holds random pairs of 11-of-256 orders."""
    draw = torch.Generator().manual_seed(seed)
    memory = SparseDistributedMemory(
        (11, 256), (20, w, 4096), (11, 256), generator=draw, **settings
    )
    address, data = (random_orders(pairs, 11, 256, draw) for _ in range(2))
    memory.write(address, data)
    return memory, address, data, draw


def recalled(seeds, pairs, reads, w, alpha, **settings):
    """Shares of pairs recalled in the exact order, and as the exact set, seed by seed."""
    exact, sets = [], []
    for seed in range(seeds):
        memory, address, data, _ = memory_of(pairs, seed, w, alpha=alpha, **settings)
        likeness = similarity(memory.read(address[:reads]), data[:reads], alpha)
        exact.append(likeness.order_exact.double().mean().item())
        sets.append(likeness.set_exact.double().mean().item())
    return exact, sets


@study(
    "pairs",
    question="How many firing orders does the memory keep?",
    presets={"tiny": P(seeds=1, pairs=(200,), goal=False),
             "small": P(seeds=3, pairs=(1000,), goal=True),
             "full": P(seeds=10, pairs=(1000, 2000, 4000), goal=True)},
)  # fmt: skip
def pairs(p, ctx):
    """Exact orders of recalled pairs, W = 4096, w = 16, a = 20, 300 reads."""
    rules = {"max, alpha .99 (published)": ("max", 0.99), "max, alpha .9": ("max", 0.9),
             "rank (ours)": ("rank", 0.9)}  # fmt: skip
    numbers, rows, sets = {}, [], []
    for count in p.pairs:
        found = {n: recalled(p.seeds, count, 300, 16, a, rule=r) for n, (r, a) in rules.items()}
        rows.append((f"{count:,}", *(shown(exact) for exact, _ in found.values())))
        sets.append((f"{count:,}", *(shown(s) for _, s in found.values())))
        numbers |= {f"order, {n}, {count}": np.mean(exact) for n, (exact, _) in found.items()}
    head = ("pairs", *rules)
    goals = {"order, rank, 1,000 pairs": numbers.get("order, rank (ours), 1000")} if p.goal else {}
    goals = {name: Goal(value, 0.95, at_least=True) for name, value in goals.items()}
    meaning = (
        "Share of 300 pairs recalled in the exact order: counting ranks keeps them, the published "
        "rule does not."
    )
    kept = (
        "Share recalled with the right neurons, in any order: the published rule and counted ranks "
        "keep them, the largest weight at alpha .9 does not."
    )
    return Findings(
        numbers,
        [Table("Orders recalled", head, tuple(rows), meaning),
         Table("Sets recalled", head, tuple(sets), kept)],
        goals,
    )  # fmt: skip


@study(
    "sets",
    question="Does theory predict how many sets of neurons the memory keeps?",
    presets={"tiny": P(seeds=1, pairs=(500,), ws=(16,)),
             "small": P(seeds=2, pairs=(4000, 6000), ws=(16,)),
             "full": P(seeds=10, pairs=(4000, 5000, 6000, 7000, 8000), ws=(16, 20))},
)  # fmt: skip
def sets(p, ctx):
    """Exact sets of unordered codes against theory, all locations, 1000 reads."""
    tables, numbers = [], {}
    head = ("pairs", "theory", "alpha .9", "alpha 1")
    meaning = (
        "Share of 1,000 sets recalled: theory is an upper bound at alpha .9, as locations are used "
        "unevenly; at alpha 1 recall falls more slowly and ends above it."
    )
    for w in p.ws:
        rows = []
        numbers[f"capacity, w = {w}"] = capacity(w, 11, 4096, 256)
        for count in p.pairs:
            theory = expected_recall(float(count), w, 11, 4096, 256)
            found = [recalled(p.seeds, count, 1000, w, alpha, rule="or")[1] for alpha in (0.9, 1.0)]
            rows.append((f"{count:,}", f"{theory:.3f}", *map(shown, found)))
        title = f"Sets against theory, {w} firing locations"
        tables.append(Table(title, head, tuple(rows), meaning))
        meaning = f"The same with {p.ws[-1]} firing locations."
    return Findings(numbers, tables)


def with_wrong_bits(cue, bits, draw):
    """Addresses with ``bits`` spikes moved to neurons that were silent."""
    cue = cue.clone()
    for row in cue:
        free = torch.ones(256, dtype=torch.bool)
        free[row] = False
        other = torch.nonzero(free).flatten()
        place = torch.randperm(11, generator=draw)[:bits]
        row[place] = other[torch.randperm(245, generator=draw)[:bits]]
    return cue


MOST_SETS = ("3,350", "950", "450", "below 200")
"""Published: most sets of unordered codes recalled, by wrong bits."""


@study(
    "noisy-address",
    question="How many wrong bits may an address have?",
    presets={"tiny": P(seeds=1, pairs=(250,), bits=3), "small": P(seeds=2, pairs=(1000,), bits=5),
             "full": P(seeds=10, pairs=(250, 500, 1000, 2000, 4000), bits=5)},
)  # fmt: skip
def noisy_address(p, ctx):
    """w = 20, rule ``or``, 200 reads: locations shared, bits and sets recalled, theory by these."""
    tables, read, most, numbers = [], [], [], {}
    middle = p.pairs[len(p.pairs) // 2]
    for alpha in (1.0, 0.9):
        rows = []
        for count in p.pairs:
            found = {}
            for seed in range(p.seeds):
                memory, address, data, draw = memory_of(count, seed, 20, rule="or", alpha=alpha)
                true = memory.active_locations(address[:200]).numpy()
                for bits in range(p.bits):
                    cue = with_wrong_bits(address[:200], bits, draw)
                    lines = memory.active_locations(cue).numpy()
                    shared = [len(set(x) & set(y)) for x, y in zip(lines, true, strict=True)]
                    likeness = similarity(memory.read(cue), data[:200], alpha)
                    theory = [expected_recall(float(count), 20, 11, 4096, 256, s) for s in shared]
                    found.setdefault(bits, []).append((
                        np.mean(shared), likeness.set_exact.double().mean().item(),
                        np.mean(theory), likeness.matched.double().mean().item(),
                    ))  # fmt: skip
            right = []
            for bits, values in found.items():
                shared, exact, theory, matched = (np.mean(x) for x in zip(*values, strict=True))
                right.append(f"{matched:.3f}")
                if count == middle:
                    rows.append((str(bits), f"{shared:.1f}", f"{exact:.3f}", f"{theory:.3f}"))
                key = f"most sets, alpha {alpha:g}, {bits} wrong bits"
                numbers[key] = max(numbers.get(key, 0.0), count * exact)
                numbers[f"bits, alpha {alpha:g}, {count} pairs, {bits} wrong bits"] = matched
            read.append((f"{alpha:g}, {count:,}", *right))
        title = f"Addresses with wrong bits, {middle:,} pairs, alpha {alpha:g}"
        head = ("wrong bits of 11", "locations left of 20", "sets", "theory")
        meaning = "Share of sets recalled, and by theory for the locations that are left."
        tables.append(Table(title, head, tuple(rows), meaning))
    given = ", ".join(f"{(11 - bits) / 11:.3f}" for bits in range(p.bits))
    tables.append(Table(
        "Bits of the data that are right",
        ("alpha, pairs", "none wrong", *(f"{bits} wrong" for bits in range(1, p.bits))),
        tuple(read),
        f"In the address {given} of the bits are right: with three wrong bits the read of "
        f"{middle:,} pairs is no better.",
    ))  # fmt: skip
    for bits in range(p.bits):
        ours = [f"{numbers[f'most sets, alpha {a}, {bits} wrong bits']:,.0f}" for a in ("1", "0.9")]
        most.append((str(bits), *ours, MOST_SETS[bits] if bits < len(MOST_SETS) else None))
    tables.append(Table(
        "Most sets recalled", ("wrong bits", "alpha 1", "alpha 0.9", "published, unordered"),
        tuple(most), "Over all numbers of pairs: alpha 1 has about what was published for "
        "unordered codes, alpha .9 more.",
    ))  # fmt: skip
    return Findings(numbers, tables)


@study(
    "spike-time-rules",
    question="Do learning rules that see spike times keep more orders?",
    presets={"tiny": P(seeds=1, pairs=(20,)), "small": P(seeds=3, pairs=(100, 250)),
             "full": P(seeds=10, pairs=(100, 250, 500))},
)  # fmt: skip
def spike_time_rules(p, ctx):
    """Wheel layers, alpha 0.9, w = 16, 200 reads: share recalled in the exact order."""
    rows = []
    for rule in ("max", "trace", "stdp"):
        found = [recalled(p.seeds, count, 200, 16, 0.9, rule=rule, layers="wheel")
                 for count in p.pairs]  # fmt: skip
        rows.append((rule, *(shown(exact) for exact, _ in found)))
    head = ("rule", *(f"{count} pairs" for count in p.pairs))
    meaning = (
        "Share recalled in the exact order: the rule that keeps the largest weight is ahead of "
        "both that see spike times."
    )
    return Findings({}, [Table("Rules that see spike times", head, tuple(rows), meaning)])


def euler_layer(weights, order, tau, step, count):
    """An RDLIF layer's activation integrated step by step: what the closed form replaces."""
    rate, a = np.zeros((2, len(weights)))
    fired = np.full(len(weights), np.inf)
    gain, due = 0.99 ** np.arange(len(order)), {round(r / step): r for r in range(len(order))}
    for k in range(count):
        if k in due:
            rate += weights[:, order[due[k]]] * gain[due[k]]
        rate -= rate / tau * step
        a += (rate - a / tau) * step
        fired[(a >= 1e9) & np.isinf(fired)] = k * step
    return fired


@study(
    "spiking-memory",
    question="Does a memory of spiking neurons recall what the abstract one recalls?",
    presets={"tiny": P(seeds=1, pairs=40, euler=10), "small": P(seeds=3, pairs=160, euler=1500),
             "full": P(seeds=10, pairs=160, euler=1500)},
)  # fmt: skip
def spiking_memory(p, ctx):
    """Pairs of 6-of-64, W = 256, w = 8, a = 20, alpha .99: recalled with cosine >= 0.9."""
    speeds, rows, numbers = [], [], {}
    for layers, rule in (("abstract", "max"), ("wheel", "max"), ("rdlif", "max"),
                         ("rdlif", "trace")):  # fmt: skip
        found, exact = [], []
        for seed in range(p.seeds):
            draw = torch.Generator().manual_seed(seed)
            memory = SparseDistributedMemory(
                (6, 64), (20, 8, 256), (6, 64), 0.99, rule=rule, layers=layers, generator=draw
            )
            address, data = (random_orders(p.pairs, 6, 64, draw) for _ in range(2))
            start = time.process_time()
            memory.write(address, data)
            middle = time.process_time()
            read = memory.read(address)
            if layers == "rdlif":
                speeds.append((middle - start, time.process_time() - middle))
            whole = (read >= 0).all(1)
            likeness = similarity(read[whole], data[whole], 0.99)
            found.append(float((likeness.cosine >= 0.9).sum()))
            exact.append(float(likeness.order_exact.sum()))
        kind = "RDLIF" if layers == "rdlif" else layers
        rows.append((f"{kind}, {rule}", shown(found, 1), shown(exact, 1)))
        numbers[f"recalled, {layers}, {rule}"] = np.mean(found)
    write, read = (statistics.median(x) / p.pairs * 1e3 for x in zip(*speeds, strict=True))
    weights, order = np.random.default_rng(0).random((256, 64)), np.arange(6)
    runs = []
    for _ in range(3):
        start = time.process_time()
        euler_layer(weights, order, 60.0, 0.01, p.euler)
        runs.append((time.process_time() - start) * 1e3)
    euler = statistics.median(runs)
    cost = (("a write", f"{write:.2f}"), ("a read", f"{read:.2f}"),
            (f"{p.euler} Euler steps of the locations alone", f"{euler:.1f}"))  # fmt: skip
    goals = {} if p.pairs < 160 else {
        "pairs recalled by RDLIF neurons": Goal(numbers["recalled, rdlif, max"], 150, True),
        "Euler steps over a write": Goal(euler / write, 100, True),
    }  # fmt: skip
    return Findings(
        numbers,
        [
            Table("Pairs recalled", ("layers, rule", f"of {p.pairs}", "in the exact order"),
                  tuple(rows), "Pairs of 6-of-64 recalled with cosine at least .9: wheel neurons "
                  "are equal to the abstract memory, RDLIF neurons not behind."),
            Table("Cost", ("what", "CPU ms"), cost, "Event by event, not step by step."),
        ],
        goals,
    )  # fmt: skip


@study(
    "wheel-threshold",
    question="How early may a layer of wheel neurons fire?",
    presets=SEEDS,
)
def wheel_threshold(p, ctx):
    """A layer of 256 wheel neurons, 11 input spikes, thresholds as a share of the exact one."""
    rows = []
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        kept, latency = [], []
        for seed in range(10 * p.seeds):
            draw = torch.Generator().manual_seed(seed)
            weights = torch.rand(256, 256, generator=draw, dtype=torch.float64)
            order = random_orders(1, 11, 256, draw)[0]
            h = weights @ significance(order, 256, 0.9)
            # The burst takes as long as the winners differ: slope and jumps count alike.
            times = torch.arange(11, dtype=torch.float64)
            slope = float(h.max() - h.median()) / 11
            threshold = share * float(h.max() + slope * times[-1]) * (1 + 1e-9)
            fired = wheel_times(weights, order, times, alpha=0.9, threshold=threshold, slope=slope)
            first = first_spikes(fired, 11)
            kept.append(len(set(first.tolist()) & set(nof_m(h, 11).tolist())) / 11)
            latency.append(float(fired[first].max()))
        rows.append((f"{100 * share:.0f} %", shown(kept), shown(latency, 1)))
    head = ("threshold, of the exact one", "winners kept", "last spike, intervals")
    meaning = (
        "256 wheel neurons, 11 input spikes: a lower threshold is earlier and picks other neurons."
    )
    return Findings({}, [Table("Threshold and latency", head, tuple(rows), meaning)])


def chain_run(seed, connectivity, dispersion, threshold, layers):
    """How many of 1000 RDLIF neurons fire in each of a chain of layers, and over what time.

    Weights are uniform in [0, 1] on a share of the connections, time constants 1. With a threshold
    every neuron may fire once; without, a layer is reset after 11 spikes, and its threshold is
    seven tenths of what its eleventh neuron reaches at most in a burst that comes all at once.
    """
    rng = np.random.default_rng(seed)
    order, times = rng.permutation(1000)[:11], np.sort(rng.random(11)) * dispersion
    counts, widths = [], []
    for _ in range(layers):
        weights = rng.random((1000, 1000)) * (rng.random((1000, 1000)) < connectivity)
        gain = np.ones(len(order))
        layer = SpikingLayer("rdlif", weights, 11 if threshold is None else 1000,
                             [(order, gain, times)])  # fmt: skip
        layer.tau = 1.0
        if threshold is None:
            layer.threshold = (
                0.7 * np.exp(-1) * np.sort(weights[rng.permutation(1000)[:11]].sum(0))[-11]
            )
        else:
            layer.threshold = threshold
        order, times = layer.run((order, gain, times))
        counts.append(len(order))
        widths.append(float(times[-1] - times[0]) if len(order) else 0.0)
        if len(order) == 0:
            break
    return counts, widths


@study(
    "burst-chain",
    question="Does a burst keep its size and length through a chain of layers?",
    presets={"tiny": P(seeds=1, layers=6, thresholds=(0.8, 0.9)),
             "small": P(seeds=2, layers=30, thresholds=(0.6, 0.8, 0.85, 1.0)),
             "full": P(seeds=10, layers=30, thresholds=(0.3, 0.6, 0.8, 0.85, 0.9, 1.0, 1.2))},
)  # fmt: skip
def burst_chain(p, ctx):
    """Layers of 1000 RDLIF neurons, 11 spikes in, with and without reset inhibition."""
    free = []
    for threshold in p.thresholds:
        counts, _ = chain_run(0, 0.1, 0.0, threshold, p.layers)
        free.append((f"{threshold:g}", ", ".join(map(str, counts[:6])), str(counts[-1])))
    cases = [(0.1, d) for d in (0.0, 0.5, 1.0, 2.0)] + [(c, 0.0) for c in (0.2, 0.3, 1.0)]
    reset, start = [], min(4, p.layers - 1)
    for connectivity, dispersion in cases:
        found = [chain_run(s, connectivity, dispersion, None, p.layers) for s in range(p.seeds)]
        alive = [float(len(c) == p.layers and c[-1] == 11) for c, _ in found]
        widths = [float(np.mean(w[start:])) if len(w) > start else 0.0 for _, w in found]
        reset.append((f"{100 * connectivity:.0f} %, {dispersion:g}", shown(alive, 2),
                      shown([w[0] for _, w in found]), shown(widths)))  # fmt: skip
    return Findings(
        {},
        [
            Table("Without reset inhibition, 10 % connected",
                  ("threshold", "spikes in the first six layers", "in the last"), tuple(free),
                  "11 spikes in, 1,000 neurons in a layer: a low threshold lets the burst explode, "
                  "a high one kills it."),
            Table("Reset after 11 spikes",
                  ("connections, length of the input", f"alive after {p.layers} layers",
                   "length, first layer", f"layers {start + 1} to {p.layers}"), tuple(reset),
                  "Lengths in time constants: that of a burst does not depend on that of the "
                  "first one."),
        ],
    )  # fmt: skip
