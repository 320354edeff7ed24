"""Training by transformers' own Trainer: checkpoints, resuming, several processes are its work."""

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.trainer import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

from isospike import progress
from isospike.errors import InputError, RangeError, is_disk_full
from isospike.models.integer import IntegerNet, IntegerNeurons, whiten
from isospike.report.files import write_file
from isospike.train.data import Batches, Data
from isospike.train.muon import Muon, can_even
from isospike.train.norms import share_norms
from isospike.train.recipe import Recipe, read_recipe

RATE_OF_OTHERS = 4  # with Muon, of weights that take its steps: those of the others
WHITEN = 2000  # images whose patches the first filters whiten


@dataclass(frozen=True)
class Fitted:
    """What a training gave.

    Attributes:
        model: In ``eval`` mode.
        accuracy: Share of the test images that are classified right.
        losses: Mean loss of the training steps, as logged.
        seconds: Of the clock.
        cpu_seconds: Of the processors.

    >>> Fitted(model=None, accuracy=0.9, losses=(1.2, 0.4), seconds=3.0, cpu_seconds=2.5).accuracy
    0.9
    """

    model: Any
    accuracy: float
    losses: tuple[float, ...]
    seconds: float
    cpu_seconds: float


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, counts epochs for the data, and lets neurons round in time."""

    def __init__(self, batches: Batches, model: nn.Module, clamped: float) -> None:
        self.batches, self.clamped = batches, clamped
        self.neurons = [x for x in model.modules() if isinstance(x, IntegerNeurons)]
        self.losses: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.batches.epoch = int(state.epoch + 1e-6)

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        for neurons in self.neurons:
            neurons.rounds = state.global_step >= self.clamped * state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        progress.update("train", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer that says in one line why it stops, and leaves no part of a checkpoint then.

    Attributes:
        recipe: Kept with each checkpoint.
    """

    recipe: Recipe

    def _save_checkpoint(self, *args: Any, **keywords: Any) -> None:
        place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **keywords)
            if self.args.should_save:
                write_file(place / "recipe.toml", self.recipe.toml().encode())
        except Exception as error:
            shutil.rmtree(place, ignore_errors=True)
            if is_disk_full(error) or isinstance(error, OSError):
                why = "a full disk" if is_disk_full(error) else str(error)
                raise InputError(
                    f"train needs to write {place}, got {why}. The checkpoint before is kept: make "
                    "room and resume."
                ) from error
            raise

    def training_step(self, *args: Any, **keywords: Any) -> Tensor:
        try:
            loss: Tensor = super().training_step(*args, **keywords)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"train needs two images or larger ones to normalise, got one of a single pixel at "
                f"step {self.state.global_step}. Choose another batch."
            ) from error
        if not loss.isfinite():
            raise RangeError(
                f"train needs a finite loss, got {loss.item()} at step {self.state.global_step}. "
                "The last checkpoint is kept; lower the rate."
            )
        return loss


def build(recipe: Recipe, data: Data) -> Any:
    """The model of a recipe for a data set, with random weights of its seed.

    Args:
        recipe: Which model, of which size.
        data: Its images and classes.

    Returns:
        The model.

    Raises:
        InputError: The type of model is unknown.
        RangeError: Its sizes do not fit.

    >>> from isospike.train import Part
    >>> part = Part(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> data = Data("dots", ("no", "yes"), part, part)
    >>> recipe = Recipe("isospike-integer-net", {"stem": 4, "channels": [4]}, steps=1)
    >>> build(recipe, data).config.num_labels
    2
    """
    set_seed(recipe.seed)
    shape = data.train.images.shape
    sizes = {"num_channels": shape[-3], "num_labels": len(data.classes), "steps": recipe.steps}
    try:
        config = AutoConfig.for_model(recipe.model, **{**sizes, **recipe.config})
    except ValueError:
        raise InputError(
            f"train needs a model of isospike.models, got {recipe.model!r}. Use "
            "isospike-integer-net, for example."
        ) from None
    config.id2label = dict(enumerate(data.classes))
    config.label2id = {name: i for i, name in enumerate(data.classes)}
    return AutoModelForImageClassification.from_config(config)


def fit(recipe: Recipe, data: Data, out: Path, *, resume: bool = False) -> Fitted:
    """Train a model by a recipe, and save both in a folder.

    Args:
        recipe: How.
        data: On what.
        out: Folder for checkpoints, the model and ``recipe.toml``.
        resume: Whether to go on from the last checkpoint there.

    Returns:
        The model and how good it is.

    Raises:
        InputError: The type of model is unknown, or there is no checkpoint to resume from.
        RangeError: A number of the recipe is out of range, or the loss is not finite.
        MissingExtraError: The package accelerate is missing.

    >>> fitted = fit(recipe, data, Path("out/cifar"))  # doctest: +SKIP
    >>> fitted.accuracy  # doctest: +SKIP
    0.87
    """
    recipe.check()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.batch % processes:
        raise RangeError(
            f"train needs a batch that {processes} processes share evenly, got {recipe.batch}. "
            "Choose a multiple."
        )
    model = build(recipe, data)
    if model.config.num_labels != len(data.classes):
        raise InputError("train needs num_labels of the data, got another. Leave it out.")
    last = need_checkpoint(out, recipe) if resume else None
    if not resume:
        _begin(out)
    train, test = batches(recipe, data)
    _try_one(model, train)
    if isinstance(model, IntegerNet):
        whiten(model, train.scaled(torch.arange(0, len(train), max(1, len(train) // WHITEN))))
    watch = _Watch(train, model, recipe.clamped)
    trainer = _Trainer(
        model,
        _arguments(recipe, out, math.ceil(len(data.train) / recipe.batch), processes),
        train_dataset=train,
        data_collator=_whole,
        optimizers=(_optimiser(recipe, model), None),
        callbacks=[watch],
    )
    trainer.recipe = recipe
    if processes > 1:
        share_norms(model)
    begun, used = time.perf_counter(), time.process_time()
    trainer.train(resume_from_checkpoint=last)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    model.eval()
    if trainer.is_world_process_zero():
        model.save_pretrained(out)
        write_file(out / "recipe.toml", recipe.toml().encode())
    return Fitted(model, accuracy(model, test), tuple(watch.losses), seconds, cpu)


def _checkpoints(out: Path) -> list[Path]:
    """Those in a folder, the last one first."""
    steps = {p: p.name.removeprefix("checkpoint-") for p in out.glob("checkpoint-*")}
    return sorted((p for p in steps if steps[p].isdigit()), key=lambda p: -int(steps[p]))


def find_checkpoint(out: Path) -> str | None:
    """The last whole checkpoint in a folder; one that a kill interrupted is passed over."""
    for place in _checkpoints(out):
        with contextlib.suppress(OSError, ValueError):
            json.loads((place / "trainer_state.json").read_bytes())  # is written last
            return str(place)
    return None


def need_checkpoint(out: Path, recipe: Recipe) -> str:
    """The last whole checkpoint in a folder; raises InputError if there is none of this recipe."""
    last = find_checkpoint(out)
    if last is None:
        raise InputError(f"train needs a checkpoint to resume from, got none in {out}. Start anew.")
    file = Path(last) / "recipe.toml"
    if file.exists():
        was = replace(read_recipe(file), epochs=recipe.epochs).toml().splitlines()
        now = recipe.toml().splitlines()
        if was != now:
            other = [line for line in now if line not in was] or ["fewer settings"]
            raise InputError(
                f"train needs the recipe of {last} to resume, got another with {other[0]}. Only "
                "the epochs may differ: use that one, or start anew in another folder."
            )
    return last


def _begin(out: Path) -> None:
    """Make a folder free of a finished training's checkpoints, which ``resume`` would take."""
    last = find_checkpoint(out)
    if last is not None and not (out / "recipe.toml").exists():
        raise InputError(
            f"train needs a folder without an unfinished training, got {last}. Resume that, remove "
            "it or name another folder."
        )
    for place in _checkpoints(out):
        shutil.rmtree(place, ignore_errors=True)


@torch.no_grad()
def _try_one(model: Any, train: Batches) -> None:
    """Raise what the model says of images of this size, before anything is trained."""
    sides = train.part.images.shape[-2:]
    if train.shift is not None and train.shift >= min(sides):
        raise RangeError(
            f"train needs a shift below the sides, got {train.shift} for {tuple(sides)} pixels. "
            "Use a smaller one."
        )
    model.eval()(train.scaled(torch.arange(1)))


def _arguments(recipe: Recipe, out: Path, steps: int, processes: int) -> TrainingArguments:
    return TrainingArguments(
        str(out),
        per_device_train_batch_size=recipe.batch // processes,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.rate,
        lr_scheduler_type="linear",
        warmup_steps=int(recipe.warmup * steps * recipe.epochs),
        label_smoothing_factor=recipe.smoothing,
        max_grad_norm=1.0 if recipe.optimiser == "adamw" else 0.0,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=max(1, steps // 4),
        seed=recipe.seed,
        report_to=[],
        use_cpu=not torch.accelerator.is_available(),  # several processes are not seen otherwise
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        log_level="error",
    )


def _optimiser(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """That of a recipe; biases and normalisations do not decay."""
    every = list(model.parameters())
    even = [p for p in every if recipe.optimiser == "muon" and can_even(p)]
    rest = [p for p in every if all(p is not q for q in even)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": recipe.decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser == "muon":
        own = {"lr": RATE_OF_OTHERS * recipe.rate, "momentum": 0.9}
        groups = [{"params": even, "even": True}, *({**group, **own} for group in groups)]
        return Muon([group for group in groups if group["params"]], lr=recipe.rate)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.rate)


def _whole(batch: Any) -> Any:
    """A batch as the data made it."""
    return batch


def batches(recipe: Recipe, data: Data) -> tuple[Batches, Batches]:
    """Batches to train on, and to judge by."""
    axes = [i for i in range(data.train.images.dim()) if i != data.train.images.dim() - 3]
    some = data.train.images[:: max(1, len(data.train) // 5000)].float()
    mean, deviation = some.mean(axes), some.std(axes).clamp(min=1e-3)
    if data.train.images.dim() == 5:  # counts of events keep their zero
        mean = torch.zeros_like(mean)
    varied = Batches(
        data.train, mean, deviation, seed=recipe.seed, shift=recipe.shift, flip=recipe.flip
    )
    return varied, Batches(data.test, mean, deviation)


@torch.no_grad()
def accuracy(model: Any, part: Batches, size: int = 250, steps: int | None = None) -> float:
    """Share of the images that a model classifies right.

    Args:
        model: In ``eval`` mode.
        part: The images.
        size: Images at once.
        steps: Time steps; None for the usual.

    Returns:
        In [0, 1].

    >>> from isospike.train import Part
    >>> part = Part(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> data = Data("dots", ("no", "yes"), part, part)
    >>> recipe = Recipe("isospike-integer-net", {"stem": 4, "channels": [4]}, steps=1)
    >>> 0 <= accuracy(build(recipe, data).eval(), batches(recipe, data)[1]) <= 1
    True
    """
    right = 0
    for i in range(0, len(part), size):
        batch = part.__getitems__(list(range(i, min(i + size, len(part)))))
        images, labels = (batch[name].to(model.device) for name in ("pixel_values", "labels"))
        right += int((model(images, steps=steps).logits.argmax(1) == labels).sum())
        progress.update("test", min(i + size, len(part)), len(part))
    return right / len(part)
