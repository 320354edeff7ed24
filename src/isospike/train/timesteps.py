"""How accuracy, error and effective dimension of a small spiking transformer go with its steps.

A network is trained at T steps, then run at others with the same weights. The error of its scores
is that against its own scores at 32 steps,

(1)  error(T) = |y(T) - y(32)| / |y(32) - mean y(32)|

and the rates of its neurons, spikes over steps, have errors likewise. A theory that counts
independent spikes asks for ``r (1 - r) / eps^2`` steps of a neuron of rate r where its rate is to
have the error eps (:func:`isospike.theory.laws.bernoulli_steps`). With the measured eps that many
spikes are the theoretical ones, and what the neuron fired are the observed ones:

(2)  observed / theoretical = T eps^2 / mean[r (1 - r)]
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.dimension import EffectiveDimension
from isospike.errors import InputError, RangeError
from isospike.models.classifier import SpikingClassifier
from isospike.models.layers import Block, Embedding
from isospike.models.spike_driven import Stem
from isospike.models.spiking_resformer import Pair
from isospike.models.training import train
from isospike.neurons import Neuron
from isospike.report.numbers import Number
from isospike.train.data import load_data

TIMES = (1, 2, 4, 8, 16)
REFERENCE = 32
SIDE = 16  # pixels, of all images
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "QKFormer": ("isospike-qkformer", {
        "form": "imagenet", "channels": 48, "depths": [1, 1], "heads": [4, 4], "expansion": 2,
    }),
    "Max-Former": ("isospike-max-former", {
        "form": "imagenet", "channels": 48, "depths": [1, 1], "heads": [4, 4], "expansion": 2,
        "kernels": [3],
    }),
    "Spike-Driven": ("isospike-spike-driven", {
        "channels": 48, "blocks": 1, "expansion": 2, "pools": [True, False, True, False],
    }),
    "SpikingResformer": ("isospike-spiking-resformer", {
        "form": "imagenet", "channels": [24, 48], "depths": [1, 1], "heads": [1, 2],
        "patches": [2, 1], "group": 24, "expansion": 2,
    }),
}  # fmt: skip
DATA = {"MNIST": "mnist", "CIFAR-10": "cifar10_jpeg", "N-MNIST": "nmnist_small"}
ATTENTION = {  # what chooses where attention looks, which a control freezes
    "QKFormer": ("mixer.q.", "mixer.k."), "Max-Former": ("mixer.q.", "mixer.k."),
    "Spike-Driven": ("mixer.q.", "mixer.k."), "SpikingResformer": ("mixer.both.",),
}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Images of 16 x 16 pixels, or recordings of events in frames of so many.

    Attributes:
        train, train_labels: To learn from.
        test, test_labels: To judge by.

    >>> noise(8).train.shape
    torch.Size([8, 1, 16, 16])
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def noise(count: int, seed: int = 0) -> Images:
    """Images of noise and classes that do not go with them, where there are no others.

    Args:
        count: Images of either part.
        seed: Of the noise.

    Returns:
        The images.

    >>> noise(3).test_labels
    tensor([0, 1, 2])
    """
    drawn = torch.randn(2, count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 10
    return Images(drawn[0], labels, drawn[1], labels)


@functools.lru_cache(maxsize=8)
def small_images(folder: Path, count: int, tests: int, steps: int = 0) -> Images:
    """A data set in small: means of 2 x 2 pixels, of variance 1.

    Frames of events are counts per frame in units of their root mean square at 4 frames, times
    the number of frames over 4, so that their mean does not depend on it.

    Args:
        folder: In a form of :func:`isospike.train.load_data`.
        count: Images to learn from, drawn at random.
        tests: Images to judge by: of the test part, then of the training part, but no others.
        steps: Frames of a recording; 0 for images.

    Returns:
        The images.

    Raises:
        InputError: The folder is none, or damaged.
        RangeError: There are fewer images.

    >>> small_images(Path("data/mnist"), 3000, 1000)  # doctest: +SKIP
    """
    data = load_data(folder, steps=max(1, steps))
    most, whole = len(data.train), len(data.train) + len(data.test)
    if not 1 <= count <= most or tests < 1 or count + tests > whole:
        raise RangeError(
            f"small_images needs count from 1 to {most}, and with tests at most {whole}, got "
            f"{count} and {tests}. Ask for fewer."
        )
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train), generator=draw)
    first = torch.randperm(len(data.test), generator=draw)[:tests]
    more = order[len(order) - (tests - len(first)) :] if tests > len(first) else order[:0]
    train, labels = data.train.images[order[:count]], data.train.labels[order[:count]]
    test = torch.cat([data.test.images[first], data.train.images[more]])
    answers = torch.cat([data.test.labels[first], data.train.labels[more]])
    train, test = _shrink(train), _shrink(test)
    axes = [i for i in range(train.dim()) if i != train.dim() - 3]
    if steps:
        scale = train.sum(1).square().mean().sqrt() / 4
        train, test = (part * (steps / 4) / scale for part in (train, test))
        return Images(train, labels, test, answers)
    mean = train.mean(axes).view(-1, 1, 1)
    deviation = train.std(axes).clamp(min=1e-3).view(-1, 1, 1)
    return Images((train - mean) / deviation, labels, (test - mean) / deviation, answers)


def _shrink(images: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, with the border filled or cut to 16 x 16."""
    x = images.float()
    wide, high = (max(0, 2 * SIDE - x.shape[axis]) for axis in (-1, -2))
    x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
    x = F.avg_pool2d(x.flatten(0, -4), 2).view(*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)
    top, left = ((x.shape[axis] - SIDE) // 2 for axis in (-2, -1))
    return x[..., top : top + SIDE, left : left + SIDE]


class Scores(nn.Module):
    """A classifier at one number of steps, as :func:`isospike.models.train` takes it.

    Args:
        model: The classifier.
        steps: Its steps; None for those of the frames.

    >>> model = build_small("QKFormer", noise(2), seed=0)
    >>> Scores(model, 2)(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 10])
    """

    def __init__(self, model: SpikingClassifier, steps: int | None) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``[batch, classes]`` of images or frames."""
        return self.model(images, steps=self.steps).logits  # type: ignore[no-any-return]


def build_small(family: str, images: Images, seed: int) -> SpikingClassifier:
    """The small network of a family with drawn weights; torch's global generator stays as it is.

    Args:
        family: One of :data:`FAMILIES`.
        images: What it is to read.
        seed: Of the weights.

    Returns:
        The network, of ten classes.

    Raises:
        InputError: There is no such family.

    >>> build_small("Max-Former", noise(2), seed=0).num_parameters() < 10**6
    True
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    if family not in FAMILIES:
        raise InputError(
            f"build_small needs a family of {', '.join(FAMILIES)}, got {family!r}. Choose one."
        )
    kind, sizes = FAMILIES[family]
    config = AutoConfig.for_model(kind, num_channels=images.train.shape[-3], num_labels=10, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: SpikingClassifier = AutoModelForImageClassification.from_config(config)
    return model


def train_small(
    family: str, images: Images, *, steps: int, epochs: Number, seed: int, frozen: bool = False
) -> SpikingClassifier:
    """Train a small network.

    Args:
        family: One of :data:`FAMILIES`.
        images: What it learns from; frames have their own number of steps.
        steps: T.
        epochs: Passes over the training images.
        seed: Of weights and batches.
        frozen: Whether the weights that choose where attention looks stay as they were drawn.

    Returns:
        The network, in ``eval`` mode.

    Raises:
        InputError: There is no such family.
        RangeError: There are no steps, or no epochs.

    >>> train_small("QKFormer", noise(4), steps=1, epochs=1, seed=0).training
    False
    """
    model = build_small(family, images, seed)
    if frozen:
        for name, parameter in model.named_parameters():
            if any(part in name for part in ATTENTION[family]):
                parameter.requires_grad_(False)
    size = min(25, len(images.train))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.randint(len(images.train), (size,), generator=generator)
        return images.train[at], images.train_labels[at]

    count = max(1, round(epochs * len(images.train) / size))
    train(
        Scores(model, None if images.train.dim() == 5 else steps), draw, count, 4e-3,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    model.eval()
    return model


@torch.no_grad()
def scores_at(model: SpikingClassifier, images: Tensor, steps: int) -> Tensor:
    """Scores at a number of steps, in batches.

    Args:
        model: In ``eval`` mode.
        images: Images, or frames of so many.
        steps: T.

    Returns:
        ``[images, classes]``.

    >>> scores_at(build_small("QKFormer", noise(2), seed=0).eval(), noise(2).test, steps=2).shape
    torch.Size([2, 10])
    """
    return torch.cat([model(part, steps=steps).logits for part in torch.split(images, 100)])


def relative_error(scores: Tensor, reference: Tensor) -> float:
    """(1).

    Args:
        scores: ``[images, classes]``.
        reference: The same at :data:`REFERENCE` steps.

    Returns:
        The error; 0 where the reference does not vary and is met.

    >>> relative_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]]))
    0.5
    """
    spread = (reference - reference.mean(0)).norm().clamp(min=1e-30)
    return float((scores - reference).norm() / spread)


def places(model: SpikingClassifier) -> dict[str, nn.Module]:
    """The parts of a network that give its tokens, and its layers, in order.

    Args:
        model: Of a family of :data:`FAMILIES`.

    Returns:
        The parts by name, ``tokens`` first.

    >>> list(places(build_small("QKFormer", noise(2), seed=0)))
    ['tokens', 'layer 1', 'layer 2']
    """
    found = list(model.modules())
    tokens = next((m for m in found if isinstance(m, (Embedding, Stem))), None)
    layers = [m for m in found if isinstance(m, (Block, Pair))]
    first: Any = getattr(model, "stem", None) if tokens is None else tokens
    return {"tokens": first, **{f"layer {i}": m for i, m in enumerate(layers, 1)}}


@torch.no_grad()
def outputs_of(
    model: SpikingClassifier, parts: dict[str, nn.Module], images: Tensor, steps: int
) -> dict[str, Tensor]:
    """What parts of a network give, as means over steps.

    Args:
        model: In ``eval`` mode.
        parts: Its modules by any name.
        images: One batch.
        steps: T.

    Returns:
        ``[batch, ..., channels]`` by name, of those that ran.

    >>> model = build_small("QKFormer", noise(2), seed=0).eval()
    >>> outputs_of(model, places(model), noise(2).test, 2)["layer 2"].shape
    torch.Size([2, 2, 2, 48])
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, y: Tensor) -> None:
            found[name] = y.float().mean(0)

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    try:
        model(images, steps=steps)
    finally:
        for hook in hooks:
            hook.remove()
    return found


MEASURES = ("pca", "participation", "two_nn")


def dimensions(
    model: SpikingClassifier, images: Tensor, steps: int, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Effective dimensions of pixels, of tokens and of each layer's output.

    Args:
        model: In ``eval`` mode.
        images: At least 3, one row each for the pixels; tokens of images are rows of the others.
        steps: T.
        seed: Of the rows that are kept.

    Returns:
        By place: ``pca`` (components of 95 % of the variance), ``participation`` (ratio),
        ``two_nn`` and ``width``; 0 where rows do not differ.

    >>> model = build_small("QKFormer", noise(9), seed=0).eval()
    >>> dimensions(model, noise(9).test, steps=1)["pixels"]["width"]
    256.0
    """
    pixels = images.mean(1) if images.dim() == 5 else images
    tables = {"pixels": pixels.flatten(1)}
    for name, y in outputs_of(model, places(model), images, steps).items():
        tables[name] = y.flatten(0, -2)
    found = {}
    for name, rows in tables.items():
        draw = torch.Generator().manual_seed(seed)
        estimator = EffectiveDimension(replicates=2, keep=512, generator=draw).partial_fit(rows)
        values = dict.fromkeys(MEASURES, 0.0)
        if estimator.varies_:
            all_of_it = estimator.dimension_
            for measure in MEASURES:
                one = getattr(all_of_it, measure)
                values[measure] = 0.0 if one is None else float(one.value)
        found[name] = {**values, "width": float(rows.shape[1])}
    return found


def rate_errors(model: SpikingClassifier, images: Images, of: Callable[[int], Images], steps: int
                ) -> dict[str, float]:  # fmt: skip
    """(2), over all neurons: how many spikes they fire, and how many a theory asks for.

    Args:
        model: In ``eval`` mode.
        images: Those at ``steps``.
        of: Gives the images for other numbers of steps.
        steps: T.

    Returns:
        ``rate``, spikes of a neuron in a step; ``eps``, the error of a rate, root mean square;
        ``spread``, mean[r (1 - r)]; ``ratio``, (2), NaN where nothing varies.

    >>> model = build_small("QKFormer", noise(2), seed=0).eval()
    >>> sorted(rate_errors(model, noise(2), lambda steps: noise(2), 2))
    ['eps', 'rate', 'ratio', 'spread']
    """
    neurons: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, Neuron)
    }
    now = outputs_of(model, neurons, images.test[:50], steps)
    then = outputs_of(model, neurons, of(REFERENCE).test[:50], REFERENCE)
    rates, limits = (torch.cat([y[n].flatten() for n in neurons]) for y in (now, then))
    squares = float((rates - limits).square().mean())
    spread = float((limits * (1 - limits)).mean())
    return {
        "rate": float(rates.mean()),
        "eps": math.sqrt(squares),
        "spread": spread,
        "ratio": steps * squares / spread if spread else math.nan,
    }


def run_at_times(
    model: SpikingClassifier, of: Callable[[int], Images], times: tuple[int, ...] = TIMES
) -> dict[str, dict[str, float]]:
    """Accuracy and error of one network at several numbers of steps.

    Args:
        model: In ``eval`` mode.
        of: Gives the images for a number of steps.
        times: The numbers.

    Returns:
        ``right``, a share of the test images; ``error``, (1) on them; ``seen``, (1) on 100 of the
        training images, from which a law is fitted; each by the number of steps.

    >>> model = build_small("QKFormer", noise(2), seed=0).eval()
    >>> sorted(run_at_times(model, lambda steps: noise(2), (1,)))
    ['error', 'right', 'seen']
    """
    found: dict[str, dict[str, float]] = {"right": {}, "error": {}, "seen": {}}
    last = of(REFERENCE)
    reference = scores_at(model, last.test, REFERENCE)
    known = scores_at(model, last.train[:100], REFERENCE)
    for steps in times:
        images, key = of(steps), str(steps)
        scores = scores_at(model, images.test, steps)
        right = scores.argmax(1) == images.test_labels
        found["right"][key] = float(right.double().mean())
        found["error"][key] = relative_error(scores, reference)
        found["seen"][key] = relative_error(scores_at(model, images.train[:100], steps), known)
    return found
