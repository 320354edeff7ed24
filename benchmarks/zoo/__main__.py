"""``python -m benchmarks.zoo ['t5*' ...]``: port models of the zoo, one line each."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import benchmarks.zoo.models  # noqa: F401, registers them
from benchmarks.zoo.measure import OUTCOMES, Outcome
from benchmarks.zoo.pool import LIMIT, measure_all
from benchmarks.zoo.registry import named


def show(found: Outcome) -> None:
    """One line."""
    error = "" if found.error is None else f"{found.error:.3f}"
    said = " | ".join(part for part in (found.stage, found.message, found.place) if part)
    said = " ".join(said.split())
    print(
        f"{found.name:<36}{found.outcome:<9}{error:<7}{found.seconds:>5.1f} s  {said}", flush=True
    )


def main() -> int:
    """Measure the models that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="patterns; all by default")
    parser.add_argument("--list", action="store_true", help="only list the models")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a model")
    parser.add_argument("--json", type=Path, help="where to write all outcomes")
    given = parser.parse_args()
    entries = named(given.names)
    if given.list:
        for entry in entries:
            print(f"{entry.name:<36}{entry.kind}")
        return 0
    found = measure_all(entries, given.workers, given.limit, show)
    count = Counter(one.outcome for one in found)
    print(f"{len(found)} models: " + ", ".join(f"{count[o]} {o}" for o in OUTCOMES if count[o]))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
