"""What a sparse distributed memory holds: order, sets, noisy addresses, beside theory.

    python benchmarks/capacity.py [--seeds 10] [--only order,sets,noise,timed]

W = 4096, 11-of-256 addresses and data, a = 20. Figures are means over seeds with 95 % intervals.
"""

import numpy as np
import torch
from sections import run, show

from isospike.codes.orders import random_orders, similarity
from isospike.memory.sdm import SparseDistributedMemory, capacity, expected_recall


def build(
    pairs: int, seed: int, w: int = 16, **settings: object
) -> tuple[SparseDistributedMemory, torch.Tensor, torch.Tensor, torch.Generator]:
    """A memory that holds random pairs."""
    draw = torch.Generator().manual_seed(seed)
    memory = SparseDistributedMemory(
        (11, 256), (20, w, 4096), (11, 256), generator=draw, **settings
    )
    address, data = (random_orders(pairs, 11, 256, draw) for _ in range(2))
    memory.write(address, data)
    return memory, address, data, draw


def order(seeds: int) -> None:
    """Exact order and exact set of recalled pairs, w = 16, 300 reads."""
    for rule, alpha in (("max", 0.99), ("max", 0.9), ("rank", 0.9)):
        for pairs in (1000, 2000, 4000):
            exact, sets = [], []
            for seed in range(seeds):
                memory, address, data, _ = build(pairs, seed, rule=rule, alpha=alpha)
                likeness = similarity(memory.read(address[:300]), data[:300], alpha)
                exact.append(likeness.order_exact.double().mean().item())
                sets.append(likeness.set_exact.double().mean().item())
            show(f"{rule}, alpha {alpha}, {pairs} pairs: order", exact)
            show(f"{rule}, alpha {alpha}, {pairs} pairs: set", sets)


def sets(seeds: int) -> None:
    """Exact sets of unordered codes against theory, all lines, 1000 reads."""
    for w in (16, 20):
        print(
            f"| w = {w}: one spurious neuron is expected at | {capacity(w, 11, 4096, 256):.0f} | |"
        )
        for pairs in (4000, 5000, 6000, 7000, 8000):
            theory = expected_recall(float(pairs), w, 11, 4096, 256)
            for alpha in (1.0, 0.9):
                found = []
                for seed in range(seeds):
                    memory, address, data, _ = build(pairs, seed, w, rule="or", alpha=alpha)
                    likeness = similarity(memory.read(address[:1000]), data[:1000], alpha)
                    found.append(likeness.set_exact.double().mean().item())
                show(f"w = {w}, alpha {alpha}, {pairs} pairs (theory {theory:.3f})", found)


def noise(seeds: int) -> None:
    """Address with wrong bits, w = 20: lines shared, bits and sets recalled, theory given lines."""
    for alpha in (1.0, 0.9):
        peaks: dict[int, float] = {}
        for pairs in (250, 500, 1000, 2000, 4000):
            rows: dict[int, list[tuple[float, ...]]] = {}
            for seed in range(seeds):
                memory, address, data, draw = build(pairs, seed, 20, rule="or", alpha=alpha)
                true = memory.active_locations(address[:200]).numpy()
                for bits in range(5):
                    cue = address[:200].clone()
                    for row in cue:
                        free = torch.ones(256, dtype=torch.bool)
                        free[row] = False
                        other = torch.nonzero(free).flatten()
                        place = torch.randperm(11, generator=draw)[:bits]
                        row[place] = other[torch.randperm(245, generator=draw)[:bits]]
                    lines = memory.active_locations(cue).numpy()
                    shared = [len(set(x) & set(y)) for x, y in zip(lines, true, strict=True)]
                    likeness = similarity(memory.read(cue), data[:200], alpha)
                    theory = [expected_recall(float(pairs), 20, 11, 4096, 256, s) for s in shared]
                    rows.setdefault(bits, []).append(
                        (
                            float(np.mean(shared)), likeness.matched.double().mean().item(),
                            likeness.set_exact.double().mean().item(), float(np.mean(theory)),
                        )
                    )  # fmt: skip
            for bits, values in rows.items():
                shared, matched, exact, theory = (list(x) for x in zip(*values, strict=True))
                peaks[bits] = max(peaks.get(bits, 0.0), pairs * float(np.mean(exact)))
                show(
                    f"alpha {alpha}, {pairs} pairs, {bits} wrong bits (lines shared "
                    f"{np.mean(shared):.1f}): bits {np.mean(matched):.3f}, sets in theory "
                    f"{np.mean(theory):.3f}, measured",
                    exact,
                )
        print(
            f"| alpha {alpha}: most sets recalled, 0 to 4 wrong bits | {list(peaks.values())} | |"
        )


def timed(seeds: int) -> None:
    """Rules that see spike times, wheel layers, alpha 0.9, w = 16, 200 reads."""
    for rule in ("max", "trace", "stdp"):
        for pairs in (100, 250, 500):
            exact, found = [], []
            for seed in range(seeds):
                memory, address, data, _ = build(pairs, seed, rule=rule, layers="wheel")
                likeness = similarity(memory.read(address[:200]), data[:200], 0.9)
                exact.append(likeness.order_exact.double().mean().item())
                found.append(likeness.set_exact.double().mean().item())
            show(f"{rule}, {pairs} pairs: order", exact)
            show(f"{rule}, {pairs} pairs: set", found)


if __name__ == "__main__":
    run(__doc__, order, sets, noise, timed)
