"""``isospike train``: a spiking transformer trained on a folder of images."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.errors import MissingExtraError
from isospike.report.files import check_file


@command(
    "Research",
    examples=(
        "isospike train integer-net cifar10 --out out/cifar",
        "isospike train qkformer pictures --epochs 40 --steps 4",
    ),
    kept="the last checkpoint is kept; --resume goes on from there.",
    smaller="--batch",
)
def train(
    model: str,
    data: str,
    *,
    size: str = "small",
    epochs: int | None = None,
    batch: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    skip_broken: bool = False,
    out: Path = Path("out/trained"),
) -> Outcome:
    """Train a spiking network on labelled images, and test it.

    Writes the model, which AutoModelForImageClassification loads, its recipe.toml and checkpoints.
    The accuracy is that on the test part of the data.

    Args:
        model (NAME): ``integer-net``, ``qkformer``, ``ms-qkformer``, ``max-former``,
            ``spike-driven``, ``spikformer``, ``spiking-resformer``, ``sequence-net``, or a
            recipe.toml.
        data (DIR): Class folders in ``train`` and ``test``, the files of MNIST, or two archives
            ``*train.npz`` and ``*test.npz`` of JPEG files or of events.
        size (SIZE): ``small`` trains on two cores; ``full`` is the recipe of the paper.
        epochs: Number of passes over the training part. [default: as --size says]
        batch: Number of images in each step of the optimiser. [default: as --size says]
        steps: Number of time steps of the model. [default: as --size says]
        seed: Seed of every random draw. [default: 0, or the recipe's]
        resume: Go on from the last checkpoint in --out.
        skip_broken: Skip files that cannot be read as images.
        out (DIR): Where to write the model.
    """
    from importlib.util import find_spec

    from isospike.train.data import load_data
    from isospike.train.fit import need_checkpoint
    from isospike.train.recipe import find_recipe

    check_file(out / "recipe.toml")
    given: dict[str, Any] = {"epochs": epochs, "batch": batch, "steps": steps, "seed": seed}
    recipe = replace(find_recipe(model, size), **{k: v for k, v in given.items() if v is not None})
    recipe.check()
    if resume:
        need_checkpoint(out, recipe)
    if find_spec("accelerate") is None:
        raise MissingExtraError(
            "train needs the package accelerate, got none. Install isospike[train]."
        )
    from isospike.train.fit import fit

    with contextlib.redirect_stdout(sys.stderr):  # transformers prints what it logs
        fitted = fit(
            recipe, load_data(data, steps=recipe.steps, skip_broken=skip_broken), out, resume=resume
        )
    found = {
        "accuracy": fitted.accuracy,
        "seconds": fitted.seconds,
        "cpu_seconds": fitted.cpu_seconds,
        "parameters": fitted.model.num_parameters(),
    }
    text = (
        f"accuracy    {100 * fitted.accuracy:.1f} %\n"
        f"parameters  {found['parameters'] / 1e6:.2f} million\n"
        f"time        {fitted.seconds / 60:.1f} minutes\n"
        f"processors  {fitted.cpu_seconds / 60:.1f} minutes"
    )
    return Outcome(data=found, text=text, saved=out / "recipe.toml")
