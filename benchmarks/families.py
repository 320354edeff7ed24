"""Spiking transformers of integer neurons on CIFAR-10; every spike of the unrolled run is checked.

Times are of processors: 30 minutes on two cores are 60, in one process of one thread.
"""

from types import SimpleNamespace as P

import torch

from benchmarks.training import CIFAR, MINUTES, drawn, trained
from isospike.experiments.study import Findings, Goal, study
from isospike.models.levels import compare_levels, round_synapses
from isospike.progress import update
from isospike.report.table import Table
from isospike.train.fit import batches, build
from isospike.train.recipe import RECIPES

NAMES = {
    "QKFormer": "qkformer", "Max-Former": "max-former", "SpikingResformer": "spiking-resformer",
}  # fmt: skip
ASKED = 0.8
TWO = 2  # families of which it is asked


@torch.no_grad()
def judge(model, part, size=100):
    """Right answers in one step and in D steps, and what differs between them."""
    total = dict.fromkeys(("neurons", "spikes", "differ", "one", "unrolled"), 0)
    for i in range(0, len(part), size):
        batch = part.__getitems__(list(range(i, min(i + size, len(part)))))
        found = compare_levels(model, batch["pixel_values"])
        for run in ("one", "unrolled"):
            found[run] = int((found[run].argmax(1) == batch["labels"]).sum())
        total = {name: total[name] + found[name] for name in total}
        update("test", min(i + size, len(part)), len(part))
    return total


def measured(name, p, ctx):
    """One family, trained here unless that was done, and judged."""
    recipe = RECIPES[name]["small"]
    if p.data is None:
        data, minutes = drawn(p.images), 0.0
        model = build(recipe, data).eval()
    else:
        model, data, spent = trained(ctx, f"cifar-{name}", recipe)
        minutes = spent["cpu_seconds"] / 60
    round_synapses(model)
    total = judge(model, batches(recipe, data)[1])
    count = len(data.test)
    return {
        "weights": model.num_parameters(),
        "epochs": recipe.epochs,
        "accuracy in one step": total["one"] / count,
        f"accuracy in {model.config.levels} steps": total["unrolled"] / count,
        "spikes of an image": total["spikes"] / count,
        "neurons compared": total["neurons"],
        "neurons that differ": total["differ"],
        "minutes of processors": minutes,
    }


@study(
    "cifar-families",
    question="How well do spiking transformers of half a million to a million weights classify "
    "CIFAR-10, trained with integers in one step for 30 minutes on two cores and run on binary "
    "spikes?",
    presets={
        "tiny": P(data=None, images=4),
        "small": P(data=None, images=100),
        "full": P(data="cifar10_jpeg", images=10_000),
    },
    data=CIFAR,
)
def cifar_families(p, ctx):
    found = {title: measured(name, p, ctx) for title, name in NAMES.items()}
    rows = tuple(
        (
            title,
            f"{f['weights'] / 1e6:.2f}",
            f"{f['accuracy in one step']:.2%} / {f['accuracy in 4 steps']:.2%}",
            f"{f['spikes of an image']:,.0f}",
            f"{f['neurons that differ']:,} of {f['neurons compared']:,}",
            f"{f['minutes of processors']:.1f}",
        )
        for title, f in found.items()
    )
    head = (
        "family", "weights, million", "right: one step / four", "spikes an image",
        "neurons that differ", "processor minutes",
    )  # fmt: skip
    meaning = (
        "Integers of 0 to 4 in one step, and the same weights on binary spikes in four steps. "
        "Every neuron of the run on spikes is compared with the integer of the run in one step, on "
        "each test image. By the test images nothing was chosen."
    )
    table = Table("CIFAR-10 by families, on integers and on spikes", head, rows, meaning)
    best = sorted((f["accuracy in 4 steps"] for f in found.values()), reverse=True)
    differ = sum(f["neurons that differ"] for f in found.values())
    goals = {"neurons that differ": Goal(differ, 0)}
    if p.data is not None:
        longest = max(f["minutes of processors"] for f in found.values())
        goals |= {
            "accuracy of the second best": Goal(best[TWO - 1], ASKED, True),
            "minutes of processors of the longest": Goal(longest, MINUTES),
        }
    numbers = {f"{title}: {name}": v for title, f in found.items() for name, v in f.items()}
    return Findings(numbers, (table,), goals)
