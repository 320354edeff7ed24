"""Spikes against error: the same steps everywhere, steps allocated, and the equal-bit network.

    python benchmarks/allocation.py --data data [--sentences 96] [--steps 8 6]

MiniLM on the STS benchmark, as in stsb.py: sentences of the train split calibrate, two batches of
the dev split are held back. Every allocated port is asked for the error that a uniform one of
signed digits reached; `fewer` is what it saves of that one's spikes. The equal-bit network
multiplies the same values as integers: `bits` is what it sends, values times bits. Energies by the
45 nm table, per token, without memory.
"""

import argparse
import json
import os
import random
from pathlib import Path

import torch
from stsb import load_minilm, make_batches, read_pairs

import isospike
from isospike.energy import TABLES, estimate_energy
from isospike.porting import PortReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ISOSPIKE_DATA", "data"))
    parser.add_argument("--sentences", type=int, default=96, help="to calibrate on")
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 6])
    parser.add_argument("--out", type=Path, default=Path("out/allocation.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = load_minilm()
    folder = Path(args.data) / "stsb"
    left, right, _ = read_pairs(folder / "stsb-en-dev.csv")
    dev = list(make_batches(tokenizer, left + right, 50))
    train_left, train_right, _ = read_pairs(folder / "stsb-en-train.csv")
    pool = sorted(set(train_left + train_right) - set(left + right))
    chosen = random.Random(0).sample(pool, args.sentences)
    calibration = [batch for _, batch in make_batches(tokenizer, chosen, 32)]
    held_back = [batch for _, batch in dev[len(dev) // 4 :: len(dev) // 2]]
    table = next(t for t in TABLES if t.quantised_mac_per_bit_pj)
    print(f"Energies: {table.name}\n")
    print(
        "| how | code | steps | error | predicted | spikes/token | fewer | bits/token | "
        "energy, nJ | equal-bit, nJ |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    points = []

    def row(how: str, against: PortReport | None, **how_to: object) -> PortReport:
        report = isospike.port(model, calibration, evaluation=held_back, **how_to).report
        fewer = "" if against is None else f"{100 * (1 - report.spikes / against.spikes):.1f} %"
        steps = sorted({s.steps for s in report.sites})
        shown = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        predicted = "" if report.error_predicted is None else f"{report.error_predicted:.4f}"
        bits = sum(s.values for s in report.sites) * report.counts.bits
        spent = estimate_energy(report.counts, table)
        print(
            f"| {how} | {report.code} | {shown} | {report.error:.4f} | {predicted} | "
            f"{report.spikes:,.0f} | {fewer} | {bits:,.0f} | {spent.spiking_pj / 1e3:,.0f} | "
            f"{(spent.quantised_pj or 0) / 1e3:,.0f} |",
            flush=True,
        )
        points.append((how, report.code, report.error, report.spikes, bits))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(points))
        return report

    same = {}
    for steps in args.steps:
        same[steps] = row("uniform", None, code="signed-digit", steps=steps)
        for code in ("half-octave", "signed-digit"):
            row(
                "allocated",
                same[steps],
                code=code,
                steps=isospike.Target(same[steps].error, per_channel=True),
            )
    for steps in args.steps:
        row("uniform", same[steps], code="half-octave", steps=2 * steps - 1)


if __name__ == "__main__":
    main()
