"""``python -m benchmarks [NAME ...] [--preset small]``: run studies and store their results."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from isospike.errors import IsospikeError, MissingExtraError
from isospike.experiments.study import PRESETS, find_studies, reproduce, store
from isospike.progress import shown_by


def main() -> int:
    """Run the studies that are named, or list them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--data", type=Path, help="data sets; ISOSPIKE_DATA by default")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--keep", type=Path, default=Path("out/studies"), help="parts of long work")
    given = parser.parse_args()
    if not given.names:
        for name, study in find_studies("benchmarks").items():
            print(f"{name:<22}{study.question}")
    console = Console(stderr=True)
    for name in given.names:
        try:
            with shown_by(lambda label, done, total: console.log(label, f"{done}/{total}")):
                report = reproduce(
                    name, given.preset, package="benchmarks", folder=given.keep, data=given.data
                )
        except (IsospikeError, MissingExtraError) as error:
            console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            return 2
        Console(width=120).print(report.summary())
        print(f"saved  {store(report, given.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
