"""The command line of benchmarks that have several sections, and a line of their tables."""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch


def show(name: str, values: list[float]) -> None:
    """Mean and 95 % interval."""
    spread = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    print(f"| {name} | {statistics.mean(values):.3f} | +- {spread:.3f} |", flush=True)


def run(about: str, *sections: Callable[[int], None]) -> None:
    """Run the sections that ``--only`` names, all by default, with ``--seeds``, on one thread."""
    known = {section.__name__: section for section in sections}
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default=",".join(known))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only.split(","):
        if name not in known:
            sys.exit(f"--only needs some of {', '.join(known)}, got {name}")
        heading = (known[name].__doc__ or "").splitlines()[0]
        print(f"\n{heading}\n\n| what | mean | |\n|---|--:|--:|")
        known[name](args.seeds)
