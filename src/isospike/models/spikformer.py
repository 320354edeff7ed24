"""Spikformer (Zhou et al., 2023), in the form its authors use for 32 x 32 images.

Four convolutions turn an image into spiking tokens; blocks of spiking self-attention and a spiking
perceptron follow; the rate of the last tokens is classified. Every product is followed by a batch
normalisation and LIF neurons (tau 2, the input decaying too, reset to 0). Sums of residual branches
are whole numbers of spikes.

:class:`Spikformer` is for training. :func:`fold` makes a network for inference, faster on a
processor: normalisations are folded into weights and neurons, spikes have small types, a few images
are taken at a time so that they stay in the cache, and the first convolution, whose input repeats,
is done once.
"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

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
from isospike.kernels.runtime.precision import in_float32, round_bfloat16
from isospike.models.classifier import AT_ONCE, SpikingClassifier
from isospike.models.configs import SpikformerConfig
from isospike.models.importers import Rule, rename
from isospike.models.layers import ATTENTION, NEURONS, Synapses, pool_spikes, split_axis
from isospike.neurons import LIF, NeuronParams, compile_neuron, run, scale_and_shift
from isospike.products import PRECISIONS, spike_attention


class Projection(nn.Module):
    """``LIF(norm(x W))`` of tokens ``[steps, batch, tokens, channels]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        # Tokens as pixels with channels last, for which torch's normalisation is several times as
        # fast as for rows.
        self.norm = nn.BatchNorm2d(outputs)
        self.neurons = LIF(NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        spikes: Tensor = self.neurons(y)
        return spikes


class Block(nn.Module):
    """Spiking self-attention and a perceptron, each added to what it reads."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Projection(channels, 3 * channels)
        self.neurons = LIF(ATTENTION)
        self.out = Projection(channels, channels)
        self.up = Projection(channels, hidden)
        self.down = Projection(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.heads)
        y = spike_attention(q, k, v).transpose(-3, -2).flatten(-2)
        x = x + self.out(self.neurons(y))
        return torch.add(x, self.down(self.up(x)))


class Spikformer(SpikingClassifier):
    """Spikformer-4-384 by default.

    Args:
        config: Its sizes.

    Raises:
        RangeError: The sizes do not fit each other.

    >>> model = Spikformer(SpikformerConfig(channels=16, heads=2, blocks=1, num_labels=10))
    >>> model(torch.zeros(3, 3, 32, 32), steps=2).logits.shape
    torch.Size([3, 10])

    Reference: Zhou, Zhu, He, Wang, Yan, Tian, Yuan (2023), Spikformer: when spiking neural network
    meets transformer.
    """

    config_class = SpikformerConfig

    def __init__(self, config: SpikformerConfig) -> None:
        config.check()
        super().__init__(config)
        channels = config.channels
        sizes = [config.num_channels, *(channels >> i for i in (3, 2, 1, 0))]
        self.stages = nn.ModuleList(
            Synapses(a, b, 3, pool=i >= 2 and not config.pools_spikes, neurons=NEURONS)
            for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        )
        self.position = Synapses(channels, channels, 3, neurons=NEURONS)
        self.blocks = nn.ModuleList(
            Block(channels, config.heads, config.expansion * channels) for _ in range(config.blocks)
        )
        self.head = nn.Linear(channels, config.num_labels)
        self.post_init()

    @property
    def stride(self) -> int:
        return 4

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        x = frames
        for i, stage in enumerate(self.stages):
            x = stage(x, steps)
            x = pool_spikes(x) if i >= 2 and self.config.pools_spikes else x
        x = (x + self.position(x)).flatten(2, 3)
        for block in self.blocks:
            x = block(x)
        return x.mean(2)  # type: ignore[no-any-return]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)


def split_heads(x: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Split ``x [..., tokens, 3 heads channels]`` into queries, keys and values.

    Args:
        x: Queries, keys and values side by side.
        heads: Number of heads.

    Returns:
        Three tensors ``[..., heads, tokens, channels]``.
    """
    parts = (y.view(*y.shape[:-1], heads, -1) for y in x.chunk(3, -1))
    return tuple(y.transpose(-3, -2) for y in parts)


def from_spikingjelly(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`Spikformer` from those of SpikingJelly's ``spikformer_cifar10``.

    Args:
        weights: The ``state_dict()`` of SpikingJelly's network.

    Returns:
        The same weights under our names, for ``load_state_dict``.

    Raises:
        UnsupportedError: A name does not belong to that network.

    >>> list(from_spikingjelly({"head.bias": torch.zeros(10)}))
    ['head.bias']

    Source: spikingjelly 2.0.0, ``activation_based/model/spikformer.py``.
    """
    places = {
        "attn.qkv_conv_bn": "qkv",
        "attn.proj_conv_bn": "out",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    }
    state = {}
    for name, tensor in weights.items():
        kind, _, rest = name.partition(".")
        stem = rest.removeprefix("stages.").removeprefix("positional_encoding.")
        if kind == "head":
            state[name] = tensor
        elif kind == "patch_embed":
            place = f"stages.{rest.split('.')[1]}" if rest.startswith("stages") else "position"
            part, leaf = stem.split("block.")[1].split(".", 1)
            state[f"{place}.{('conv', 'norm')[int(part)]}.{leaf}"] = tensor
        elif kind == "blocks":
            number, rest = rest.split(".", 1)
            place, part, leaf = rest.rsplit(".", 2)
            if place not in places:
                raise _foreign(name)
            own = f"blocks.{number}.{places[place]}.{('linear', 'norm')[int(part)]}.{leaf}"
            state[own] = tensor.squeeze(-1) if part == "0" else tensor
        else:
            raise _foreign(name)
    return state


AUTHORS: list[Rule] = [
    (r"patch_embed\.proj_conv(\d?)\.(\w+)", lambda m: f"stages.{m[1] or 0}.conv.{m[2]}"),
    (r"patch_embed\.proj_bn(\d?)\.(\w+)", lambda m: f"stages.{m[1] or 0}.norm.{m[2]}"),
    (r"patch_embed\.rpe_conv\.(\w+)", r"position.conv.\1"),
    (r"patch_embed\.rpe_bn\.(\w+)", r"position.norm.\1"),
    (r"block\.(\d+)\.attn\.([qkv])_linear\.(\w+)", r"blocks.\1.\2.linear.\3"),
    (r"block\.(\d+)\.attn\.([qkv])_bn\.(\w+)", r"blocks.\1.\2.norm.\3"),
    (r"block\.(\d+)\.attn\.proj_linear\.(\w+)", r"blocks.\1.out.linear.\2"),
    (r"block\.(\d+)\.attn\.proj_bn\.(\w+)", r"blocks.\1.out.norm.\2"),
    (r"block\.(\d+)\.mlp\.fc([12])_linear\.(\w+)",
     lambda m: f"blocks.{m[1]}.{('up', 'down')[int(m[2]) - 1]}.linear.{m[3]}"),
    (r"block\.(\d+)\.mlp\.fc([12])_bn\.(\w+)",
     lambda m: f"blocks.{m[1]}.{('up', 'down')[int(m[2]) - 1]}.norm.{m[3]}"),
    (r"block\.\d+\.norm[12]\.(weight|bias)", None),  # never used
    (r"head\.(weight|bias)", r"head.\1"),
]  # fmt: skip


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a Spikformer with ``pools_spikes=True`` from those of the authors' network for
    small images, on SpikingJelly's old ``clock_driven``.

    Args:
        weights: The ``state_dict()`` of their network.

    Returns:
        The same weights under our names, for ``load_state_dict``. Queries, keys and values are one
        product here, and a bias before a normalisation is taken from the mean that it subtracts.

    Raises:
        UnsupportedError: A name does not belong to that network, or a tensor is missing.

    >>> list(from_authors({"block.0.mlp.fc1_linear.weight": torch.zeros(8, 4)}))
    ['blocks.0.up.linear.weight']

    Source: github.com/ZK-Zhou/spikformer at 6212689.
    """
    state = rename("spikformer.from_authors", weights, AUTHORS, "Spikformer")
    for name in [n for n in state if n.endswith(".linear.bias")]:
        mean = name.removesuffix("linear.bias") + "norm.running_mean"
        state[mean] = _take(state, mean) - state.pop(name)
    for name in [n for n in state if ".q." in n]:
        parts = [_take(state, name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(parts) if parts[0].dim() else parts[0]
    return state


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UnsupportedError(
            f"spikformer.from_authors needs all weights of Spikformer, got none for {name!r}. Give "
            "the whole state_dict()."
        )
    return state.pop(name)


def _foreign(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"from_spikingjelly needs the names of spikformer_cifar10, got {name!r}. Give the state of "
        "spikingjelly 2.0's network."
    )


class Folded(NamedTuple):
    """A product, its normalisation folded in, and the neurons behind it.

    Attributes:
        weight: Byte planes of ``[outputs, inputs]``; or the weight of a linear layer or a
            convolution, in bfloat16, or in float32 where the processor has no unit for the others.
        neurons: The neurons; their bias is that of the normalisation.
        size: Size of the kernel, 3 or 1.
        pool: Whether a maximum is taken over neighbours before the neurons.
        pools_spikes: Whether one is taken of their spikes.
    """

    weight: BytePlanes | Tensor
    neurons: Callable[[Tensor, torch.dtype], Tensor]
    size: int
    pool: bool
    pools_spikes: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the spikes in and out."""
        return torch.uint8 if isinstance(self.weight, BytePlanes) else self.weight.dtype


class FoldedSpikformer:
    """A Spikformer for inference, made by :func:`fold`; it is called with images or frames, and
    steps, and gives the logits.

    Args:
        model: The network, in inference.
        precision: ``exact``, or ``fast`` for weights in bfloat16.

    >>> from isospike.models import fold
    >>> model = Spikformer(SpikformerConfig(channels=16, heads=2, blocks=1)).eval()
    >>> isinstance(fold(model), FoldedSpikformer)
    True
    """

    def __init__(self, model: Spikformer, precision: str) -> None:
        stages = [cast(Synapses, stage) for stage in model.stages]
        blocks = [cast(Block, block) for block in model.blocks]
        self.frames = model.frames
        a, b = scale_and_shift(stages[0].norm)
        self.image_weight = stages[0].conv.weight.detach() * a.view(-1, 1, 1, 1)
        self.image_neurons = _neurons(NEURONS._replace(bias=b * NEURONS.gain), b)
        late = model.config.pools_spikes
        self.stages = [_fold(s, precision, late and i >= 2) for i, s in enumerate(stages) if i]
        self.position = _fold(model.position, precision)
        self.dtype = self.position.dtype
        self.blocks = [
            tuple(_fold(p, precision) for p in (block.qkv, block.out, block.up, block.down))
            for block in blocks
        ]
        self.heads = blocks[0].heads if blocks else 1
        self.attention_neurons = _neurons(ATTENTION, model.head.weight[0])
        self.head = copy.deepcopy(model.head)

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, steps: int | None = None) -> Tensor:
        """``logits [batch, classes]``; see :meth:`SpikingClassifier.forward`."""
        frames, steps = self.frames(pixel_values, steps)
        images = frames.shape[1]
        at_once = AT_ONCE if frames.device.type == "cpu" else images
        return torch.cat([self._run(part, steps) for part in torch.split(frames, at_once, 1)])

    @in_float32
    def _run(self, frames: Tensor, steps: int) -> Tensor:
        images = frames.flatten(0, 1).permute(0, 3, 1, 2)
        y = F.conv2d(images, self.image_weight, padding=1).permute(0, 2, 3, 1).contiguous()
        y = split_axis(y, 0, tuple(frames.shape[:2]))
        y = y.expand(steps, *y.shape[1:]) if len(y) == 1 else y
        x = self.image_neurons(y, self.dtype)
        for stage in self.stages:
            x = _spikes(x, stage)
        x = (x + _spikes(x, self.position)).flatten(2, 3)
        for qkv, out, up, down in self.blocks:
            q, k, v = split_heads(_spikes(x, qkv, torch.uint8), self.heads)
            y = spike_attention(q, k, v).transpose(-3, -2).flatten(-2)
            x = x + _spikes(self.attention_neurons(y, self.dtype), out)
            x = x + _spikes(_spikes(x, up), down)
        scores: Tensor = self.head(x.float().mean(2)).mean(0)
        return scores


def fold(model: Spikformer, precision: str = "exact") -> FoldedSpikformer:
    """Make a network for inference, on the device where the model is.

    Args:
        model: A Spikformer with running statistics. It is not changed, and later changes of it have
            no effect.
        precision: ``exact``: products with the error of float32's own, so that a spike differs only
            where the membrane is within rounding of the threshold; ``fast``: bfloat16 weights,
            faster on a processor with a bfloat16 unit. Counts, hence attention, are exact in both.

    Returns:
        A function of images or frames, and of steps, that gives the logits.

    Raises:
        UnsupportedError: Unknown precision, or a normalisation without running statistics.

    Gradient: none.

    >>> model = Spikformer(SpikformerConfig(channels=16, heads=2, blocks=1, num_labels=10))
    >>> fold(model.eval())(torch.zeros(3, 3, 32, 32), steps=2).shape
    torch.Size([3, 10])
    """
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"fold needs a known precision, got {precision!r}. Use one of {', '.join(PRECISIONS)}."
        )
    return FoldedSpikformer(model, precision)


def _fold(layer: Synapses | Projection, precision: str, late: bool = False) -> Folded:
    a, b = scale_and_shift(layer.norm)
    weight = layer.conv.weight if isinstance(layer, Synapses) else layer.linear.weight
    weight = weight.detach() * a.view(-1, *[1] * (weight.dim() - 1))
    neurons = _neurons(NEURONS._replace(bias=b * NEURONS.gain), b)
    size, pool = weight.shape[-1] if weight.dim() == 4 else 1, False
    if isinstance(layer, Synapses):
        pool = layer.pool
        weight = weight.contiguous(memory_format=torch.channels_last)
    if precision == "fast":
        return Folded(round_bfloat16(weight), neurons, size, pool, late)
    rows = weight.permute(0, 2, 3, 1).flatten(1) if size > 1 else weight  # as patches lie
    return Folded(
        pack_float32(rows) if can_pack(rows, FLOAT_PLANES) else weight, neurons, size, pool, late
    )


def _neurons(params: NeuronParams, channels: Tensor) -> Callable[[Tensor, torch.dtype], Tensor]:
    """Neurons from rest, for each entry of ``channels``, on its device."""
    if channels.device.type == "cpu":
        return compile_neuron(params, len(channels))
    return lambda x, dtype: run(x, params=params, dtype=dtype)[0]


def _spikes(s: Tensor, layer: Folded, dtype: torch.dtype | None = None) -> Tensor:
    """Spikes ``[steps, ..., outputs]`` from ``[steps, ..., inputs]``, in the layer's type, which is
    that of the result too unless another is asked for."""
    weight, size = layer.weight, layer.size
    if isinstance(weight, BytePlanes):
        rows = s.flatten(0, -2) if size == 1 else _patches(s.flatten(0, 1), size)
        y = workspace(Purpose.CURRENTS, (len(rows), weight.sums), torch.float32, s.device).zero_()
        add_product(y, rows, weight)
        y = y.view(*s.shape[:-1], -1)
    elif size == 1:
        rows = s.flatten(0, -2)
        y = workspace(Purpose.CURRENTS, (len(rows), len(weight)), s.dtype, s.device)
        y = torch.mm(rows, weight.t(), out=y).view(*s.shape[:-1], -1)
    else:
        images = s.flatten(0, 1).permute(0, 3, 1, 2)
        y = F.conv2d(images, weight, padding=size // 2).permute(0, 2, 3, 1)
        y = y.reshape(*s.shape[:2], *y.shape[1:])
    if layer.pool:
        pooled = F.max_pool2d(y.flatten(0, 1).permute(0, 3, 1, 2), 3, 2, 1)
        y = pooled.permute(0, 2, 3, 1).reshape(*s.shape[:2], *pooled.shape[2:], -1)
    spikes = layer.neurons(y, dtype or layer.dtype)
    return pool_spikes(spikes) if layer.pools_spikes else spikes


def _patches(images: Tensor, size: int) -> Tensor:
    """Every pixel's neighbourhood as a row: ``[pixels, size * size * channels]``."""
    half = size // 2
    padded = F.pad(images, (0, 0, half, half, half, half))
    windows = padded.unfold(1, size, 1).unfold(2, size, 1)  # [n, h, w, channels, size, size]
    windows = windows.permute(0, 1, 2, 4, 5, 3)
    rows = workspace(Purpose.PATCHES, windows.shape, windows.dtype, windows.device).copy_(windows)
    return rows.view(-1, size * size * images.shape[-1])
