"""Spiking layers: a memory of RDLIF neurons, latency of wheel neurons, bursts through a chain.

    python benchmarks/bursts.py [--seeds 10] [--only rdlif,wheel,machine,chain]

Times are in units of the interval between a code's spikes. Means with 95 % intervals.
"""

import statistics
import time

import numpy as np
import torch
from sections import run, show
from sequence import PUBLISHED

from isospike.codes.orders import nof_m, random_orders, significance, similarity
from isospike.memory import (
    Combined,
    Layer,
    SequenceMachine,
    Shift,
    SparseDistributedMemory,
    SpikingLayer,
    first_spikes,
    wheel_times,
)


def euler_layer(weights: np.ndarray, order: np.ndarray, tau: float, step: float) -> np.ndarray:
    """An RDLIF layer's activation integrated in 1500 steps: what the closed form replaces."""
    rate, a = np.zeros((2, len(weights)))
    fired = np.full(len(weights), np.inf)
    gain, due = 0.99 ** np.arange(len(order)), {round(r / step): r for r in range(len(order))}
    for k in range(1500):
        if k in due:
            rate += weights[:, order[due[k]]] * gain[due[k]]
        rate -= rate / tau * step
        a += (rate - a / tau) * step
        fired[(a >= 1e9) & np.isinf(fired)] = k * step
    return fired


def rdlif(seeds: int) -> None:
    """160 pairs of 6-of-64, W = 256, w = 8, a = 20, alpha 0.99: recalled with cosine >= 0.9."""
    speeds = []
    for layers, rule in (
        ("abstract", "max"),
        ("wheel", "max"),
        ("rdlif", "max"),
        ("rdlif", "trace"),
    ):
        recalled, exact = [], []
        for seed in range(seeds):
            draw = torch.Generator().manual_seed(seed)
            memory = SparseDistributedMemory(
                (6, 64), (20, 8, 256), (6, 64), 0.99, rule=rule, layers=layers, generator=draw
            )
            address, data = (random_orders(160, 6, 64, draw) for _ in range(2))
            start = time.perf_counter()
            memory.write(address, data)
            middle = time.perf_counter()
            read = memory.read(address)
            if layers == "rdlif":
                speeds.append((middle - start, time.perf_counter() - middle))
            whole = (read >= 0).all(1)
            likeness = similarity(read[whole], data[whole], 0.99)
            recalled.append(float((likeness.cosine >= 0.9).sum()))
            exact.append(float(likeness.order_exact.sum()))
        show(f"{layers}, {rule}: of 160", recalled)
        show(f"{layers}, {rule}: in the exact order", exact)
    write, read_time = (statistics.median(x) / 160 * 1e3 for x in zip(*speeds, strict=True))
    weights, order = np.random.default_rng(0).random((256, 64)), np.arange(6)
    start = time.perf_counter()
    for _ in range(20):
        euler_layer(weights, order, 60.0, 0.01)
    euler = (time.perf_counter() - start) / 20 * 1e3
    print(f"| ms a write, a read | {write:.3f} | {read_time:.3f} |")
    print(
        f"| 1500 Euler steps of 256 lines, ms; times a write | {euler:.1f} | {euler / write:.0f} |"
    )


def wheel(seeds: int) -> None:
    """A layer of 256 wheel neurons hears 11 spikes: share of the 11 winners kept, and latency,
    by threshold as a share of the exact one."""
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        kept, latency = [], []
        for seed in range(10 * seeds):
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
        show(f"{share:.0%} of the exact threshold: winners kept", kept)
        show(f"{share:.0%} of the exact threshold: time of the last spike", latency)


def machine(seeds: int) -> None:
    """The machine on spiking layers, published size, one sequence of 500: second presentation."""
    for context in (Combined(), Layer(), Shift()):
        for layers in ("abstract", "wheel", "rdlif"):
            found = []
            for seed in range(seeds):
                ids = np.random.default_rng(seed).integers(0, 15, 500).tolist()
                one = SequenceMachine(
                    range(15), context=context, store=PUBLISHED, layers=layers, seed=seed
                )
                one.learn_sequence(ids)
                one.reset_context()
                found.append(float(one.follow_sequence(ids).mean()))
            show(f"{context.name}, {layers}", found)


def chain_run(
    seed: int, connectivity: float, dispersion: float, threshold: float | None, layers: int
) -> tuple[list[int], list[float]]:
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


def chain(seeds: int) -> None:
    """Bursts through a chain of RDLIF layers, with and without reset inhibition."""
    print(
        "| without reset, 30 layers, 10 % connected: threshold | spikes in layers 1, 2, 3, .. | |"
    )
    for threshold in (0.3, 0.6, 0.8, 0.85, 0.9, 1.0, 1.2):
        counts, _ = chain_run(0, 0.1, 0.0, threshold, 30)
        print(
            f"| {threshold} | {counts[:8]}{' ..' if len(counts) > 8 else ''} | last {counts[-1]} |"
        )
    for dispersion in (0.0, 0.5, 1.0, 2.0):
        found = [chain_run(s, 0.1, dispersion, None, 30) for s in range(seeds)]
        alive = [float(len(c) == 30 and c[-1] == 11) for c, _ in found]
        show(f"reset after 11, input dispersion {dispersion}: bursts of 11 after 30 layers", alive)
        show(f"reset after 11, input dispersion {dispersion}: first layer's dispersion",
             [w[0] for _, w in found])  # fmt: skip
        show(f"reset after 11, input dispersion {dispersion}: mean of layers 5 to 30",
             [float(np.mean(w[4:])) if len(w) > 4 else 0.0 for _, w in found])  # fmt: skip
    for connectivity in (0.1, 0.2, 0.3, 1.0):
        found = [chain_run(s, connectivity, 0.0, None, 30) for s in range(seeds)]
        show(f"reset after 11, {connectivity:.0%} connected: mean dispersion, layers 5 to 30",
             [float(np.mean(w[4:])) if len(w) > 4 else 0.0 for _, w in found])  # fmt: skip


if __name__ == "__main__":
    run(__doc__, rdlif, wheel, machine, chain)
