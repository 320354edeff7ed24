"""Fit the few-spike neurons that isospike ships, and say how well they do.

`--write FILE` writes the table of `src/isospike/data/few_spike.json`.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from isospike.circuits.few_spike import BUILTIN, few_spike_neuron, fit_few_spike, measure

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--write", type=Path, help="fit anew and write the table here")
parser.add_argument("--only", nargs="+", default=list(BUILTIN), choices=BUILTIN, help="fit these")
parser.add_argument("--rounds", type=int, default=20_000)
arguments = parser.parse_args()

if arguments.write:
    found = {name: few_spike_neuron(name) for name in BUILTIN if name not in arguments.only}
    for name in arguments.only:
        function, low, high = BUILTIN[name]
        generator = torch.Generator().manual_seed(0)
        found[name] = fit_few_spike(
            function, low, high, 16, rounds=arguments.rounds, generator=generator
        )
        print(name, found[name].error, flush=True)
    table = {name: asdict(found[name]) for name in BUILTIN}
    arguments.write.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

print(
    "| function | range | T | RMS error | of the function's range | largest | spikes | staircase |"
)
print("|---|---|--:|--:|--:|--:|--:|--:|")
for name, (function, low, high) in BUILTIN.items():
    neuron = measure(few_spike_neuron(name), function)
    values = function(torch.linspace(low, high, 4001, dtype=torch.float64))
    span = float(values.max() - values.min())
    # The best of T fixed levels that the same number of steps counts up to.
    stairs = 1 / (math.sqrt(12) * (neuron.steps + 1))
    print(
        f"| {name} | [{low:g}, {high:g}] | {neuron.steps} | {neuron.error:.4f} | "
        f"{neuron.error / span:.2%} | {neuron.largest:.4f} | {neuron.spikes:.2f} | {stairs:.2%} |"
    )
