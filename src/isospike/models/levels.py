"""Spiking transformers of integer neurons: trained in one step, run as binary spikes in D steps.

With full = threshold / gain of the neurons that these replace, the smallest constant current that
drives neurons without a leak at every step, and D a power of two:

(1)  a = n / D,  n = floor(D clamp(x / full, 0, 1) + 1/2)        one step
(2)  s[t] = floor(n t / D + 1/2) - floor(n (t - 1) / D + 1/2)     D steps, binary, with mean a
(3)  mean over t of W s[t] = W a

In D steps each layer waits for the spikes of the layer before and takes the mean (3) of what they
drive, so that its currents are those of one step. A product of two operands holds the mean of one
and reads the spikes of the other. A gate, the mask of token attention, is open or closed in all
steps. Once weights are on a grid (:func:`round_synapses`), and so are the currents that are an
operand of a product, all sums are exact in float32 and both runs agree bit for bit.

Reference: Yao, Qiu, Hu, Hu, Chou, Tian, Liao, Leng, Xu, Li (2025), Scaling spike-driven transformer
with efficient spike firing approximation training.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from isospike.codes import RateCode
from isospike.errors import RangeError
from isospike.models.integer import EXACT, IntegerNeurons
from isospike.models.layers import Synapses
from isospike.neurons import LIF

BRANCHES = 8  # spikes of as many branches are added at most before synapses read them


class LevelNeurons(nn.Module):
    """Neurons that give (1) for one step of currents, and (2) for D equal steps.

    Args:
        levels: D.
        full: The current from which they fire at every step.

    >>> neurons = LevelNeurons(4, full=2.0)
    >>> neurons(torch.tensor([[1.1]])), neurons(torch.tensor([[1.1]]).expand(4, 1)).flatten()
    (tensor([[0.5000]]), tensor([1., 0., 1., 0.]))
    """

    def __init__(self, levels: int, full: float) -> None:
        super().__init__()
        self.levels, self.full = levels, full
        self.neurons = IntegerNeurons(levels)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, or what their mean is, of equal currents ``x [1 or D, *shape]``."""
        y = x[:1] * (self.levels / self.full)
        if len(x) == 1:
            return torch.div(self.neurons(y), self.levels)
        return RateCode(self.levels).encode_integers(self.neurons(y)[0])


class Gate(nn.Module):
    """Neurons that are open, 1, or closed, 0, in all steps alike.

    Args:
        full: Twice the current from which they are open.
    """

    def __init__(self, full: float) -> None:
        super().__init__()
        self.full, self.neurons = full, IntegerNeurons(1)

    def forward(self, x: Tensor) -> Tensor:
        """Whether each is open, shape of the equal currents ``x [1 or D, *shape]``."""
        gate: Tensor = self.neurons(x[:1] / self.full)
        return gate.expand_as(x)


def use_levels(model: nn.Module, levels: int) -> None:
    """Replace neurons with a leak by integer ones, in place.

    Args:
        model: Of :mod:`isospike.models.layers`; its synapses and attention then gather their steps.
        levels: D, a power of two; 0 leaves the model as it is.

    Raises:
        RangeError: ``levels`` is something else.
    """
    if levels == 0:
        return
    if not 0 < levels <= 64 or levels & (levels - 1):
        raise RangeError(
            f"{type(model).__name__} needs levels of 0 or a power of two up to 64, got {levels}. "
            "Use 4."
        )
    parts: list[Any] = list(model.modules())
    for module in parts:
        if hasattr(module, "gathers"):
            module.gathers = True
        for name, part in list(module.named_children()):
            if isinstance(part, LIF):
                full = float(part.params.threshold) / float(part.params.gain)
                gate = name == "mask"
                setattr(module, name, Gate(full) if gate else LevelNeurons(levels, full))


@torch.no_grad()
def round_synapses(model: nn.Module) -> None:
    """Put all weights that read spikes on grids, in place, so that sums (3) are exact in float32.

    The grid of an output is the finest power of two that leaves room for the sum of its weights
    over all steps, and for spikes of 8 branches: about 2^-10 of the largest weight.

    Args:
        model: A trained network with levels.

    Raises:
        RangeError: A weight is not finite.
    """
    levels = cast(Any, model).config.levels
    channels = cast(Any, model).config.num_channels
    for layer in model.modules():
        if not isinstance(layer, Synapses) or layer.conv.weight[0].numel() == 0:
            continue
        weight, bias = layer.conv.weight, layer.conv.bias
        if not weight.isfinite().all():
            raise RangeError("round_synapses needs finite weights, got others. Train again.")
        total = weight.abs().sum((1, 2, 3)).double() * BRANCHES
        total += 0 if bias is None else bias.abs()
        count = weight[0].numel() * BRANCHES + 1
        room = (EXACT - count * levels) / (total * levels).clamp(min=1e-30)
        step = torch.exp2(-room.log2().floor())
        if layer.conv.in_channels != channels:
            weight.copy_((weight / step.view(-1, 1, 1, 1)).round() * step.view(-1, 1, 1, 1))
            if bias is not None:
                bias.copy_((bias / step).round() * step)


@torch.no_grad()
def compare_levels(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Run images in one step and in D steps, and compare every neuron.

    Args:
        model: A network with levels, in ``eval`` mode.
        images: ``[batch, channels, height, width]``.

    Returns:
        ``neurons`` that were compared, ``spikes`` that they fired, how many of them ``differ``: in
        the mean of their spikes, or with a value that is not 0 or 1; and the logits of both runs,
        ``one`` and ``unrolled``.
    """
    seen: list[Tensor] = []
    kinds = (LevelNeurons, Gate)
    hooks = [
        m.register_forward_hook(lambda module, args, y: seen.append(y))
        for m in model.modules() if isinstance(m, kinds)
    ]  # fmt: skip
    try:
        one = cast(Any, model)(images, steps=1).logits
        means, seen = seen, []
        unrolled = cast(Any, model)(images, steps=cast(Any, model).config.levels).logits
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Any] = {"neurons": 0, "spikes": 0, "differ": 0}
    for mean, spikes in zip(means, seen, strict=True):
        binary = ((spikes == 0) | (spikes == 1)).all(0)
        found["neurons"] += mean.numel()
        found["spikes"] += int(spikes.sum())
        found["differ"] += int(((spikes.mean(0) != mean[0]) | ~binary).sum())
    return {**found, "one": one, "unrolled": unrolled}
