"""Integer neurons, trained in one step and run as spikes: E-SpikeFormer's idea, in a small network.

(1)  n = floor(clamp(x, 0, D) + 1/2)                 one step, an integer
(2)  s[t] = floor(n t / D + 1/2) - floor(n (t - 1) / D + 1/2),  t = 1 ... D     D steps, binary
(3)  sum over t of W s[t] = W n
(4)  currents of the first neurons = +-(D/2) (L + e)^(-1/2) E^T x, for 2 x 2 pixels x

The first layer is not trained. Its filters whiten patches of training images, whose covariance is
E L E^T (:func:`whiten`); each has both signs, as cells that fire for more and for less.

Training has no time: the gradient of (1) is 1 inside (0, D). It may begin with what (1) rounds, and
end with integers (``Recipe.clamped``). A run of D steps is the same network on binary spikes: every
layer waits for the D spikes of the layer before, adds what they drive, and fires (2), an integrate-
and-fire neuron with a constant current that starts at half its threshold. Once the weights are on a
grid (:func:`round_weights`) the sums of (3) are exact in float32, in any order, and the two runs
agree bit for bit.

Deviates from the paper: a half is rounded up, as the neuron does, not to the even number.

Reference: Yao, Qiu, Hu, Hu, Chou, Tian, Liao, Leng, Xu, Li (2025), Scaling spike-driven transformer
with efficient spike firing approximation training. (4) and the order of the convolutions: Jordan
(2024), 94% on CIFAR-10 in 3.29 seconds on a single GPU.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.codes import RateCode
from isospike.errors import RangeError, ShapeError
from isospike.models.classifier import SpikingClassifier, check_levels
from isospike.models.configs import IntegerNetConfig

EXACT = 2**24  # whole numbers up to here are exact in float32
SMALLEST = 5e-3  # e in (4), for images of variance 1


class _Integer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, rounds: bool) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < levels))
        clamped = x.clamp(0, levels)
        return clamped.add_(0.5).floor_() if rounds else clamped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


class IntegerNeurons(nn.Module):
    """Neurons that give (1) in one step and (2) in ``levels`` steps.

    Args:
        levels: D, the largest integer; 0 for a rectifier, whose network has no spikes.

    Attributes:
        rounds: Whether integers are given in training too; else what (1) rounds, clamped values.

    >>> neurons = IntegerNeurons(4)
    >>> neurons(torch.tensor([-1.0, 0.5, 2.2, 9.0]))
    tensor([0., 1., 2., 4.])
    >>> neurons.fire(torch.tensor([2.2])).flatten()
    tensor([1., 0., 1., 0.])
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels, self.rounds = levels, True

    def forward(self, x: Tensor) -> Tensor:
        """Integers of currents ``x``, shape of ``x``."""
        if self.levels == 0:
            return F.relu(x)
        rounds = self.rounds or not self.training
        return _Integer.apply(x, self.levels, rounds)  # type: ignore[no-any-return,no-untyped-call]

    def fire(self, x: Tensor) -> Tensor:
        """Spikes ``[levels, *shape]`` of currents ``x [*shape]``."""
        counts = x.clamp(0, self.levels).add_(0.5).floor_()
        return RateCode(self.levels).encode_integers(counts)


class _Fixed(nn.Conv2d):
    """A convolution of 2 x 2 that is not trained, also after transformers has loaded it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, bias=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.detach())


class IntegerLayer(nn.Module):
    """``norm(pool(conv(x)))``, then integer neurons; the first layer is a fixed ``conv`` alone."""

    def __init__(self, inputs: int, outputs: int, pool: bool, levels: int, first: bool) -> None:
        super().__init__()
        self.conv: nn.Conv2d = (
            _Fixed(inputs, outputs)
            if first
            else nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        )
        self.pool = pool
        self.norm = nn.Identity() if first else nn.BatchNorm2d(outputs)
        self.neurons = IntegerNeurons(levels)

    def drive(self, y: Tensor) -> Tensor:
        """Currents of the neurons from the convolution's sums ``y``."""
        return self.norm(F.max_pool2d(y, 2) if self.pool else y)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.neurons(self.drive(self.conv(x)))  # type: ignore[no-any-return]

    def fire(self, spikes: Tensor) -> Tensor:
        """Spikes from spikes ``[steps, batch, channels, height, width]``, step by step."""
        sums = self.conv(spikes[0])
        for s in spikes[1:]:
            sums = sums + self.conv(s)
        return self.neurons.fire(self.drive(sums))


class IntegerNet(SpikingClassifier):
    """A small convolutional network of integer neurons.

    A fixed convolution reads 2 x 2 pixels; each stage has one convolution that pools and one that
    keeps the size.

    Args:
        config: Its sizes.

    Raises:
        RangeError: The sizes do not fit each other.

    >>> model = IntegerNet(IntegerNetConfig(channels=(8, 16), num_labels=10))
    >>> x = torch.zeros(2, 3, 16, 16)
    >>> torch.equal(model.eval()(x).logits, model(x, steps=4).logits)
    True
    """

    config_class = IntegerNetConfig

    def __init__(self, config: IntegerNetConfig) -> None:
        config.check()
        super().__init__(config)
        inputs, levels = config.num_channels, config.levels
        sizes = [8 * inputs, *config.channels]
        self.stem = IntegerLayer(inputs, sizes[0], False, levels, True)
        self.layers = nn.ModuleList()
        for a, b in zip(sizes, sizes[1:], strict=False):
            self.layers.append(IntegerLayer(a, b, True, levels, False))
            self.layers.append(IntegerLayer(b, b, False, levels, False))
        self.head = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    @property
    def stride(self) -> int:
        return 1

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        levels = self.config.levels
        check_levels("IntegerNet", levels, frames.shape[0] != 1, steps, self.training)
        x = frames[0].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        if min(x.shape[2:]) <= 1 << len(self.config.channels):
            raise ShapeError(
                f"IntegerNet needs sides above {1 << len(self.config.channels)} pixels for "
                f"{len(self.config.channels)} stages, got {tuple(x.shape[2:])}. Use fewer stages."
            )
        if steps == 1:
            for layer in self.all_layers():
                x = layer(x)
            counts = x
        else:
            stem, *layers = self.all_layers()
            spikes = stem.neurons.fire(stem.conv(x))
            for layer in layers:
                spikes = layer.fire(spikes)
            counts = spikes.sum(0)
        return torch.div(counts.mean((2, 3))[None], self.config.divisor or max(1, levels))

    def all_layers(self) -> list[IntegerLayer]:
        """The layers in order, the one that reads the image first."""
        return [self.stem, *cast(list[IntegerLayer], list(self.layers))]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d) and self.config.levels:
            nn.init.constant_(module.weight, self.config.levels / 2)  # so that all levels are used


@torch.no_grad()
def whiten(model: IntegerNet, images: Tensor) -> None:
    """Set the filters (4) of a network's first layer, in place.

    Args:
        model: Before it is trained.
        images: ``[batch, channels, height, width]``, scaled as for training: mean 0, variance 1.

    Raises:
        ShapeError: The images have other channels.
    """
    weight = model.stem.conv.weight
    if images.dim() != 4 or images.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"whiten needs images [batch, {weight.shape[1]}, height, width], got "
            f"{tuple(images.shape)}. Give those that the network is trained on."
        )
    patches = F.unfold(images.to(weight.dtype), 2).transpose(1, 2).flatten(0, 1).double()
    patches -= patches.mean(0)
    sizes, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (sizes.clamp(min=0) + SMALLEST).sqrt()).T * max(1, model.config.levels / 2)
    filters = filters.view(-1, *weight.shape[1:])
    weight.copy_(torch.cat([filters, -filters]))


@torch.no_grad()
def round_weights(model: IntegerNet) -> None:
    """Put the weights that read spikes on a grid, in place, so that every sum of (3) is exact.

    The grid of an output is the finest power of two with ``D sum |w| <= 2^24`` steps; a weight
    moves by half a step of it at most, about 2^-14 of the largest.

    Args:
        model: A trained network.

    Raises:
        RangeError: A weight is not finite.
    """
    for layer in model.all_layers()[1:]:
        weight = layer.conv.weight
        if not weight.isfinite().all():
            raise RangeError("round_weights needs finite weights, got others. Train again.")
        total = weight.abs().sum((1, 2, 3)).double() * model.config.levels
        count = weight[0].numel() * model.config.levels
        room = (EXACT - count) / total.clamp(min=1e-30)  # half a step more for each weight
        step = torch.exp2(-room.log2().floor()).view(-1, 1, 1, 1)
        weight.copy_((weight.double() / step).round() * step)


@torch.no_grad()
def compare_runs(model: IntegerNet, images: Tensor) -> dict[str, int]:
    """Run images on integers and on spikes, and compare every neuron.

    Args:
        model: In ``eval`` mode.
        images: ``[batch, channels, height, width]``.

    Returns:
        ``neurons`` that were compared, ``spikes`` that they fired, and how many of them ``differ``:
        in their count, or with a value that is not 0 or 1.
    """
    found = {"neurons": 0, "spikes": 0, "differ": 0}
    stem, *layers = model.all_layers()
    y = stem.conv(images)
    integers, spikes = stem.neurons(y), stem.neurons.fire(y)
    for layer in (*layers, None):
        binary = ((spikes == 0) | (spikes == 1)).all(0)
        found["neurons"] += integers.numel()
        found["spikes"] += int(spikes.sum())
        found["differ"] += int(((spikes.sum(0) != integers) | ~binary).sum())
        if layer is not None:
            integers, spikes = layer(integers), layer.fire(spikes)
    return found
