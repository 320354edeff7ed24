"""Spiking transformers as graphs that NIR holds.

Normalisations are folded into the convolutions before them. A membrane that branches add to is no
node: what reads it has an edge from every branch. Largest spikes of neighbours are an OR, and masks
of spikes an AND (:mod:`isospike.deploy.attention`). A maximum of currents and ``q k^T v`` have no
node; each is left out by name, with ports in its place.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from isospike.deploy.attention import mask_attention, spike_or, token_attention
from isospike.deploy.build import Builder, Refused, convolution
from isospike.deploy.network import DT, Network, Reshape
from isospike.errors import ShapeError, UnsupportedError
from isospike.models.layers import (
    Block,
    Embedding,
    MaskAttention,
    SelfAttention,
    Synapses,
    TokenAttention,
)
from isospike.models.max_former import MaxFormer, MSQKFormer
from isospike.models.qkformer import QKFormer
from isospike.models.spike_driven import SpikeDrivenTransformer
from isospike.neurons import LIF, Neuron, scale_and_shift

FAMILIES = (MSQKFormer, MaxFormer, QKFormer, SpikeDrivenTransformer)
Membrane = tuple[str, ...]
"""Nodes whose sum it is."""
MAXIMUM = "a maximum of currents is no sum of spikes"
PRODUCT = "it multiplies two numbers that change"


def family_network(
    model: nn.Module, size: Sequence[int], *, dt: float = DT, partial: bool = False
) -> tuple[Network, list[Refused]]:
    """Make a network of a spiking transformer's nodes.

    The input ``image`` is the same image in every step, or one frame a step; the output ``scores``
    has the scores of a step, whose mean over the steps is the model's answer.

    Args:
        model: A :class:`~isospike.models.SpikeDrivenTransformer`, ``QKFormer``, ``MSQKFormer`` or
            ``MaxFormer``, with running statistics. It is not changed.
        size: Height and width of an image.
        dt: Duration of a step in seconds, for files.
        partial: Whether parts without a node are left out, with ports in their place.

    Returns:
        The network, and the parts that are left out.

    Raises:
        UnsupportedError: Another model, or a part that has no node, unless ``partial``.
        ShapeError: The size is no multiple of what a token covers.

    >>> from isospike.models import SpikeDrivenConfig
    >>> config = SpikeDrivenConfig(channels=16, blocks=1, pools=(False,) * 4, num_labels=10)
    >>> network, left_out = family_network(SpikeDrivenTransformer(config), (8, 8))
    >>> network(torch.zeros(2, 1, 3, 8, 8)).shape, left_out
    (torch.Size([2, 1, 10]), [])
    """
    name = type(model).__name__
    if not isinstance(model, FAMILIES):
        known = ", ".join(family.__name__ for family in FAMILIES)
        raise UnsupportedError(
            f"family_network needs a spiking transformer of {known}, got a {name}. Of layers one "
            "after the other, make a sequential_network."
        )
    if getattr(model.config, "published_leak", False):
        raise UnsupportedError(
            "family_network needs a model whose images do not depend on each other, got "
            "published_leak=True. Configure published_leak=False."
        )
    if getattr(model.config, "levels", 0):
        raise UnsupportedError(
            f"family_network needs neurons with a leak, got levels={model.config.levels}. Train "
            "with levels=0."
        )
    if len(size) != 2 or any(n < 1 or n % model.stride for n in size):
        raise ShapeError(
            f"family_network needs a height and a width that are multiples of {model.stride}, got "
            f"{tuple(size)}. Give those of the images."
        )
    family = _Family()
    with torch.no_grad():
        family.make(model, (model.config.num_channels, *size))
    return family.build.network(dt, partial=partial), family.build.refused


class _Family:
    """Makes the nodes of a model's parts."""

    def __init__(self) -> None:
        self.build = Builder()

    def make(self, model: Any, shape: tuple[int, ...]) -> None:
        """All of them."""
        build = self.build
        x: Membrane = (build.input("image", shape),)
        if isinstance(model, SpikeDrivenTransformer):
            x = self._stem(model.stem, x)
            x = self._blocks("blocks", model.blocks, x)
        else:
            for i, stage in enumerate(model.stages):
                x = self._embedding(f"stages_{i}_embed", stage.embed, x)
                x = self._blocks(f"stages_{i}_blocks", stage.blocks, x)
        channels, *size = build.shapes[x[0]]
        last = build.add("mean", nn.AvgPool2d((size[0], size[1])), *x)
        if hasattr(model, "neurons"):
            last = self._neurons("neurons", model.neurons, (last,))[0]
        flat = build.add("flat", Reshape((channels,)), last)
        head = nn.Linear(*model.head.weight.shape[::-1]).requires_grad_(False)
        head.load_state_dict(model.head.state_dict())
        build.output("scores", build.add("head", head, flat))

    def _stem(self, stem: Any, x: Membrane) -> Membrane:
        for i, (layer, pool) in enumerate(zip(stem.layers, stem.pools, strict=True)):
            x = self._synapses(f"stem_layers_{i}", layer, x)
            if pool and i < len(stem.layers) - 1:  # the last one pools currents itself
                channels = self.build.shapes[x[0]][0]
                near = torch.eye(channels)[:, :, None, None].expand(-1, -1, 3, 3)
                around = convolution(near, stride=(2, 2), padding=(1, 1))
                count = self.build.add(f"stem_layers_{i}_near", around, *x)
                x = (self.build.add(f"stem_layers_{i}_pool", spike_or(), count),)
        fired = self._neurons("stem_neurons", stem.neurons, x)
        return x + self._synapses("stem_position", stem.position, fired)

    def _embedding(self, name: str, embed: Embedding, x: Membrane) -> Membrane:
        kept = x
        for i, layer in enumerate(embed.layers):
            if str(i) in embed.neurons:
                x = self._neurons(f"{name}_neurons_{i}", embed.neurons[str(i)], x)
            kept = x if i == embed.start else kept
            x = self._synapses(f"{name}_layers_{i}", cast(Synapses, layer), x)
        return x + self._synapses(f"{name}_shortcut", embed.shortcut, kept)

    def _blocks(self, name: str, blocks: Any, x: Membrane) -> Membrane:
        for i, block in enumerate(blocks):
            x = self._block(f"{name}_{i}", block, x)
        return x

    def _block(self, name: str, block: Block, x: Membrane) -> Membrane:
        def before(place: str, x: Membrane) -> Membrane:
            layer = block.before[place]
            return self._neurons(f"{name}_{place}_before", layer, x)

        if block.mixer is not None:
            x = x + self._mixer(f"{name}_mixer", block.mixer, before("mixer", x))
        y = self._synapses(f"{name}_up", block.up, before("up", x))
        if block.inner:
            x = y = x + y
        return x + self._synapses(f"{name}_down", block.down, before("down", y))

    def _mixer(self, name: str, mixer: Any, x: Membrane) -> Membrane:
        if isinstance(mixer, Synapses):
            return self._synapses(name, mixer, x)
        build, places = self.build, ("q", "k") if isinstance(mixer, TokenAttention) else "qkv"
        ends = [self._synapses(f"{name}_{n}", getattr(mixer, n), x)[0] for n in places]
        shape = build.shapes[ends[0]]
        if isinstance(mixer, TokenAttention):
            q, k = ends
            mask = LIF(mixer.mask.params)
            y = token_attention(build, f"{name}_mask", q, k, shape[0], mixer.heads, mask)
        elif isinstance(mixer, MaskAttention):
            q, k, v = ends
            y = mask_attention(build, f"{name}_mask", q, k, v, shape, LIF(mixer.mask.params))
        elif isinstance(mixer, SelfAttention):
            part = Refused(f"{name}_product", "q k^T v", PRODUCT)
            y = build.refuse(part, shape, **{n: [end] for n, end in zip("qkv", ends, strict=True)})
            y = self._neurons(f"{name}_neurons", mixer.neurons, (y,))[0]
        else:
            raise UnsupportedError(
                f"family_network needs a mixer that it knows in {name!r}, got a "
                f"{type(mixer).__name__}. Leave it out of the model."
            )
        return self._synapses(f"{name}_out", mixer.out, (y,))

    def _synapses(self, name: str, layer: Synapses, x: Membrane) -> Membrane:
        """Its convolution, what pools, and the neurons behind."""
        conv = layer.conv
        a, b = scale_and_shift(layer.norm)
        weight = conv.weight * a.view(-1, 1, 1, 1)
        bias = b if conv.bias is None else b + a * conv.bias
        folded = convolution(
            weight, bias, stride=conv.stride, padding=cast(tuple[int, int], conv.padding),
            groups=conv.groups,
        )  # fmt: skip
        y = self.build.add(name, folded, *x)
        if layer.pool:
            channels, height, width = self.build.shapes[y]
            part = Refused(f"{name}_pool", "max-pool of currents", MAXIMUM)
            half = (channels, (height + 1) // 2, (width + 1) // 2)
            y = self.build.refuse(part, half, currents=[y])
        if layer.neurons is None:
            return (y,)
        return self._neurons(f"{name}_neurons", layer.neurons, (y,))

    def _neurons(self, name: str, layer: nn.Module, x: Membrane) -> Membrane:
        """Neurons of their own; nothing for a layer that passes all on."""
        if not isinstance(layer, Neuron):
            return x
        return (self.build.add(name, LIF(layer.params), *x),)
