"""Spiking networks trained on two cores; of integers, every spike of the unrolled run is checked.

Times are of processors: 30 minutes on two cores are 60, in one process of one thread.
"""

import json
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace as P

import torch

from isospike.experiments.study import Findings, Goal, study
from isospike.models import IntegerNet, IntegerNetConfig
from isospike.models.integer import compare_runs, round_weights
from isospike.progress import update
from isospike.report.files import write_file
from isospike.report.table import Table
from isospike.train.data import Batches, Data, Part, load_data
from isospike.train.recipe import RECIPES, Recipe

ASKED = 0.87
MINUTES = 60  # of processors: 30 on two cores
CIFAR = ("cifar10_jpeg/cifar10_train.npz", "cifar10_jpeg/cifar10_test.npz")


def drawn(count):
    """Images of noise, where there are no others."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    part = Part(images, torch.arange(count) % 10)
    return Data("noise", tuple(map(str, range(10))), part, part)


def trained(ctx, name, recipe, file="cifar10_jpeg", **form):
    """A network and its data, trained here unless that was done; and how it went.

    ``cpu_seconds`` are those of the processors for all of it: reading the data, training, testing.
    """
    from transformers import AutoModelForImageClassification

    from isospike.train.fit import fit

    start, folder = time.process_time(), ctx.folder / name
    done, data = folder / "trained.json", load_data(ctx.file(file), **form)
    if not done.exists():
        for place in folder.glob("checkpoint-*"):  # begun and not ended: its time was not kept
            shutil.rmtree(place)
        found = fit(recipe, data, folder)
        spent = {"cpu_seconds": time.process_time() - start, "accuracy": found.accuracy}
        write_file(done, json.dumps(spent).encode())
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    return model, data, json.loads(done.read_bytes())


@torch.no_grad()
def judge(model, batches, size=100):
    """Accuracy in one step and in D steps, and what differs between them."""
    names = ("neurons", "spikes", "differ", "one", "unrolled", "mirrored")
    total = dict.fromkeys(names, 0)
    for i in range(0, len(batches), size):
        batch = batches.__getitems__(list(range(i, min(i + size, len(batches)))))
        x, labels = batch["pixel_values"], batch["labels"]
        for images in (x, x.flip(-1)):
            for name, value in compare_runs(model, images).items():
                total[name] += value
        one = model(x, steps=1).logits
        spikes, mirrored = (model(y, steps=model.config.levels).logits for y in (x, x.flip(-1)))
        for name, logits in (("one", one), ("unrolled", spikes), ("mirrored", spikes + mirrored)):
            total[name] += int((logits.argmax(1) == labels).sum())
        update("test", i + len(labels), len(batches))
    return total


@study(
    "cifar-integers",
    question="How well does a network classify that is trained with integers in one step and runs "
    "on binary spikes, after 30 minutes on two cores?",
    presets={
        "tiny": P(data=None, images=20),
        "small": P(data=None, images=200),
        "full": P(data="cifar10_jpeg", images=10_000),
    },
    data=CIFAR,
)
def cifar_integers(p, ctx):
    recipe = RECIPES["integer-net"]["small"]
    if p.data is None:
        data, minutes = drawn(p.images), 0.0
        model = IntegerNet(IntegerNetConfig(**recipe.config, num_labels=10)).eval()
        batches = Batches(data.test, torch.full((3,), 128.0), torch.full((3,), 64.0))
    else:
        from isospike.train.fit import batches as make

        model, data, spent = trained(ctx, "cifar-integers", recipe)
        minutes = spent["cpu_seconds"] / 60
        batches = make(recipe, data)[1]
    round_weights(model)
    total = judge(model, batches)
    count = len(batches)
    numbers = {
        "weights": model.num_parameters(),
        "epochs": recipe.epochs,
        "minutes of processors": minutes,
        "accuracy in one step": total["one"] / count,
        f"accuracy in {model.config.levels} steps": total["unrolled"] / count,
        "accuracy, image and its mirror image": total["mirrored"] / count,
        "neurons compared": total["neurons"],
        "spikes": total["spikes"],
        "spikes per neuron": total["spikes"] / total["neurons"],
        "neurons that differ": total["differ"],
    }
    rows = tuple((name, f"{value:.4g}") for name, value in numbers.items())
    meaning = (
        "Every neuron of the run on spikes is compared with the integer of the run in one step, on "
        "each test image and its mirror image."
    )
    goals = {
        "neurons that differ": Goal(total["differ"], 0),
        "accuracy": Goal(total["unrolled"] / count, ASKED, True),
        "accuracy with the mirror image": Goal(total["mirrored"] / count, ASKED, True),
        "minutes of processors": Goal(minutes, MINUTES),
    }
    if p.data is None:
        goals = {"neurons that differ": goals["neurons that differ"]}
    table = Table("CIFAR-10 on integers and on spikes", ("", "value"), rows, meaning)
    return Findings(numbers, (table,), goals)


EVENTS = Recipe(
    "isospike-spike-driven",
    {"channels": 64, "blocks": 1, "expansion": 2, "pools": [True, False, True, False]},
    epochs=20, batch=50, optimiser="adamw", rate=4e-3, decay=0.01, flip=False, steps=4,
)  # fmt: skip
PLANS = {
    "tiny": P(data=False, images=2),
    "small": P(data=True, images=0),
    "full": P(data=True, images=0),
}


def tried(name, recipe, shape, p, ctx, file):
    """How one training went; random weights on noise where there are no data."""
    from transformers import AutoConfig, AutoModelForImageClassification

    if p.data:
        form = {"steps": recipe.steps} if len(shape) == 4 else {}
        model, _, spent = trained(ctx, name, recipe, file, **form)
    else:
        sizes = {"num_channels": shape[-3], "num_labels": 10, "steps": recipe.steps}
        config = AutoConfig.for_model(recipe.model, **{**sizes, **recipe.config})
        model = AutoModelForImageClassification.from_config(config).eval()
        with torch.no_grad():
            right = model(torch.rand(p.images, *shape)).logits.argmax(1) == 0
        spent = {"cpu_seconds": 0.0, "accuracy": float(right.float().mean())}
    return {
        "weights": model.num_parameters(),
        "steps": recipe.steps,
        "epochs": recipe.epochs,
        "minutes of processors": spent["cpu_seconds"] / 60,
        "accuracy": spent["accuracy"],
    }


def single(name, question, recipe, shape, file, files, asked, minutes):
    """A study of one training; an accuracy may be asked for, and minutes of processors are."""

    @study(name, question=question, presets=PLANS, data=files)
    def run(p, ctx):
        numbers = tried(name, recipe, shape, p, ctx, file)
        rows = tuple((what, f"{value:.4g}") for what, value in numbers.items())
        meaning = "Accuracy is that on the test part, by which nothing was chosen."
        goals = {"minutes of processors": Goal(numbers["minutes of processors"], minutes)}
        if asked is not None:
            goals["accuracy"] = Goal(numbers["accuracy"], asked, True)
        table = Table("Trained by one command", ("", "value"), rows, meaning)
        return Findings(numbers, (table,), goals if p.data else {})

    return run


TWIN = RECIPES["integer-net"]["small"]
TWIN = replace(TWIN, config={**TWIN.config, "levels": 0, "divisor": None})
cifar_floats = single(
    "cifar-floats",
    "How well does the network of cifar-integers classify with rectifiers in place of integers, "
    "trained by the same recipe?",
    TWIN, (3, 32, 32), "cifar10_jpeg", CIFAR, None, MINUTES,
)  # fmt: skip
sequential_mnist = single(
    "sequential-mnist",
    "How well do leaky neurons with delays classify MNIST read row by row, after 20 minutes on two "
    "cores?",
    RECIPES["sequence-net"]["small"], (1, 28, 28), "mnist", ("mnist/train-images-idx3-ubyte.gz",),
    0.97, 40,
)  # fmt: skip
event_digits = single(
    "event-digits",
    "How well does a spike-driven transformer classify 100 recordings of a camera of events, "
    "trained on 1,000 for 5 minutes on two cores?",
    EVENTS, (4, 2, 36, 36), "nmnist_small", ("nmnist_small/nmnist_train.npz",), 0.85, 10,
)  # fmt: skip
