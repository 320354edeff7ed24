"""Networks that only run: normalisations folded into weights, spikes as bytes.

Products of spikes are taken in eight-bit arithmetic, neurons are compiled, and a few images are
taken at a time so that they stay in the cache.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.errors import UnsupportedError
from isospike.kernels.product.int8 import (
    FLOAT_PLANES,
    BytePlanes,
    add_product,
    can_pack,
    pack_float32,
)
from isospike.kernels.runtime.buffers import Purpose, workspace
from isospike.kernels.runtime.precision import in_float32
from isospike.models import spikformer
from isospike.models.classifier import AT_ONCE, SpikingClassifier
from isospike.models.layers import Synapses
from isospike.models.spikformer import Spikformer
from isospike.neurons import Neuron, scale_and_shift
from isospike.tensors import check_tensor


class FoldedSynapses(nn.Module):
    """:class:`~isospike.models.layers.Synapses` that only run: one product, bytes in and out."""

    def __init__(self, layer: Synapses) -> None:
        super().__init__()
        conv = layer.conv
        a, b = scale_and_shift(layer.norm)
        bias = b if conv.bias is None else b + a * conv.bias.detach()
        weight = conv.weight.detach() * a.view(-1, 1, 1, 1)
        rows = weight.permute(0, 2, 3, 1).flatten(1)  # as patches lie
        packs = conv.groups == 1 and can_pack(rows, FLOAT_PLANES)
        self.planes: BytePlanes | None = pack_float32(rows) if packs else None
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias, self.size, self.stride = bias, conv.kernel_size[0], conv.stride[0]
        self.padding, self.groups, self.layer = int(conv.padding[0]), conv.groups, layer

    def forward(self, x: Tensor, steps: int = 1) -> Tensor:
        """See :meth:`isospike.models.layers.Synapses.forward`."""
        if self.planes is None or x.dtype != torch.uint8:
            images = x.flatten(0, 1).permute(0, 3, 1, 2).to(self.weight.dtype)
            y = F.conv2d(images, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
            return self.layer.finish(y, x, steps)
        rows, shape = patches(x.flatten(0, 1), self.size, self.stride, self.padding)
        y = workspace(Purpose.CURRENTS, (len(rows), self.planes.sums), torch.float32, x.device)
        y.copy_(self.bias.expand_as(y))
        add_product(y, rows, self.planes)
        y = y.view(*shape, -1).permute(0, 3, 1, 2)
        return self.layer.finish(y if self.layer.neurons is not None else y.clone(), x, steps)


def patches(images: Tensor, size: int, stride: int, padding: int) -> tuple[Tensor, tuple[int, ...]]:
    """Neighbourhoods of ``images [images, height, width, channels]`` as rows ``[pixels, size * size
    * channels]``, and the shape of the pixels ``(images, height, width)``."""
    if size == 1:
        images = images[:, ::stride, ::stride].contiguous()
        return images.flatten(0, 2), tuple(images.shape[:3])
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, size, stride).unfold(2, size, stride).permute(0, 1, 2, 4, 5, 3)
    rows = workspace(Purpose.PATCHES, windows.shape, windows.dtype, windows.device).copy_(windows)
    return rows.view(-1, size * size * images.shape[-1]), tuple(windows.shape[:3])


class Folded:
    """A spiking classifier that only runs, made by :func:`fold`; it is called like the original."""

    def __init__(self, model: SpikingClassifier) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in list(self.model.modules()):
            for name, part in module.named_children():
                if isinstance(part, Synapses):
                    setattr(module, name, FoldedSynapses(part))
            if isinstance(module, Neuron):
                module.dtype = torch.uint8

    @torch.no_grad()
    @in_float32
    def __call__(self, pixel_values: Tensor, steps: int | None = None) -> Tensor:
        """``logits [batch, classes]``; see :meth:`SpikingClassifier.forward`."""
        check_tensor("fold", "pixel_values", pixel_values)
        if pixel_values.device.type != "cpu" or not pixel_values.numel() or not pixel_values.dim():
            return cast(Tensor, self.model(pixel_values, steps=steps).logits)
        parts = torch.split(pixel_values, AT_ONCE)
        return torch.cat([self.model(part, steps=steps).logits for part in parts])


def fold(model: Any, precision: str = "exact") -> Any:
    """Make a network that only runs, on the device where the model is, with the model's spikes.

    Args:
        model: A :class:`~isospike.models.SpikingClassifier`. It is not changed, and later changes
            of it have no effect.
        precision: ``exact``: products with the error of float32's own, so that a spike differs only
            where the membrane is within rounding of the threshold; ``fast``, of a Spikformer:
            bfloat16 weights.

    Returns:
        A function of images or frames, and of steps, that gives the logits.

    Raises:
        UnsupportedError: Another model or precision, a normalisation without running statistics, or
            a model with ``published_leak``, whose images depend on each other, or of integer
            neurons.

    Gradient: none.

    >>> from isospike.models import QKFormer, QKFormerConfig
    >>> config = QKFormerConfig(channels=32, depths=(1, 1), heads=(2, 2), num_labels=10)
    >>> fold(QKFormer(config))(torch.zeros(2, 3, 16, 16), steps=2).shape
    torch.Size([2, 10])
    """
    if isinstance(model, Spikformer):
        return spikformer.fold(model, precision)
    if precision != "exact" or not isinstance(model, SpikingClassifier):
        raise UnsupportedError(
            "fold needs a Spikformer, or another spiking classifier of isospike.models with "
            f"precision='exact', got a {type(model).__name__} and {precision!r}. Leave precision "
            "out, or give one of these."
        )
    if getattr(model.config, "published_leak", False):
        raise UnsupportedError(
            "fold needs a model whose images do not depend on each other, got published_leak=True. "
            "Configure published_leak=False."
        )
    if getattr(model.config, "levels", 0):
        raise UnsupportedError(
            f"fold needs neurons with a leak, got levels={model.config.levels}. Run the model "
            "itself: in one step its products are of small integers."
        )
    return Folded(model)
