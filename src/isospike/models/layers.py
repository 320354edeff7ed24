"""What the spiking transformers share: currents, embeddings, attention, blocks.

Time is axis 0 and channels are last: ``[steps, batch, height, width, channels]``. A model is made
of two kinds of parts. :class:`Synapses` are a convolution and its batch normalisation, with or
without neurons behind; neurons also stand alone. Two kinds of networks differ in where neurons are:

- neurons end a branch, and branches add *spikes*: Spikformer, QKFormer;
- neurons begin a branch, and branches add *membranes*, so that synapses read binary spikes only:
  MS-QKFormer, Max-Former, the spike-driven transformer (``first=True`` here).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.neurons import LIF, NeuronParams
from isospike.presets import spikingjelly_lif
from isospike.products import spike_attention

NEURONS = spikingjelly_lif(detach_reset=True)
ATTENTION = spikingjelly_lif(v_threshold=0.5, detach_reset=True)


class Synapses(nn.Module):
    """``pool(norm(conv(x)))``, and the spikes of neurons that it drives, if there are any.

    Args:
        inputs: Channels that are read.
        outputs: Channels that are driven.
        size: Side of the kernel; the padding of an odd one keeps the image's size, and an even one
            has none.
        stride: Pixels between two positions of the kernel.
        groups: Groups of channels that do not mix.
        bias: Whether the convolution has a bias, which training does not need beside the
            normalisation.
        pool: Whether the largest of 3 x 3 neighbours is taken, with stride 2.
        neurons: Parameters of the neurons; None for currents.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        pool: bool = False,
        neurons: NeuronParams | None = None,
    ) -> None:
        super().__init__()
        padding = size // 2 if size % 2 else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = pool
        self.gathers = False  # whether currents are the mean over steps, see models.levels
        self.neurons = None if neurons is None else LIF(neurons)

    def forward(self, x: Tensor, steps: int = 1) -> Tensor:
        """Currents or spikes of ``x [steps, batch, height, width, inputs]``.

        Args:
            x: Spikes, or an image, which has one step.
            steps: How often the currents of one step are repeated.
        """
        y = self.conv(x.flatten(0, 1).permute(0, 3, 1, 2))
        if self.gathers and len(x) > 1:
            y, x, steps = split_axis(y, 0, tuple(x.shape[:2])).mean(0), x[:1], len(x)
        return self.finish(self.norm(y), x, steps)

    def finish(self, y: Tensor, x: Tensor, steps: int) -> Tensor:
        """Pool the currents ``y [images, channels, height, width]`` of ``x``, repeat, and fire."""
        y = pool_largest(y) if self.pool else y
        y = split_axis(y.permute(0, 2, 3, 1), 0, tuple(x.shape[:2]))
        y = y.expand(steps, *y.shape[1:]) if len(y) == 1 else y
        return y if self.neurons is None else self.neurons(y)


def pool_largest(y: Tensor) -> Tensor:
    """The largest of 3 x 3 neighbours, stride 2, of ``y [images, channels, height, width]``."""
    return F.max_pool2d(y, 3, 2, 1)


class Embedding(nn.Module):
    """Convolutions from image or spikes to tokens, and a shortcut from one of them to the end.

    Args:
        channels: Of what is read, and of what each convolution gives.
        pools: Whether each convolution pools.
        shortcut: Number of convolutions before the place where the shortcut begins.
        stride: Of the shortcut.
        strides: Of each convolution; 1 where it is not given.
        pooled: Whether the shortcut pools.
        first: Whether neurons come before synapses.
        image: Whether the first convolution reads an image.
    """

    def __init__(
        self,
        channels: Sequence[int],
        pools: Sequence[bool],
        *,
        shortcut: int,
        stride: int = 1,
        strides: Sequence[int] = (1, 1, 1, 1),
        pooled: bool = False,
        first: bool = False,
        image: bool = False,
    ) -> None:
        super().__init__()
        behind = None if first else NEURONS
        sizes = zip(channels, channels[1:], pools, strides, strict=False)
        self.layers = nn.ModuleList(
            Synapses(a, b, 3, stride=s, pool=pool, neurons=behind) for a, b, pool, s in sizes
        )
        self.shortcut = Synapses(
            channels[shortcut], channels[-1], stride=stride, pool=pooled, neurons=behind
        )
        self.start = shortcut
        spiking = range(image, len(self.layers)) if first else ()
        self.neurons = nn.ModuleDict({str(i): LIF(NEURONS) for i in spiking})

    def forward(self, x: Tensor, steps: int) -> Tensor:
        kept = x
        for i, layer in enumerate(self.layers):
            x = self.neurons[str(i)](x) if str(i) in self.neurons else x
            kept = x if i == self.start else kept
            x = layer(x, steps)
        return torch.add(x, self.shortcut(kept))


class TokenAttention(nn.Module):
    """QKFormer's attention: a token's queries, counted in each head, decide whether its keys pass.

    Args:
        channels: Of a token.
        heads: Groups of channels, each with a mask of its own.
        fires: Whether neurons end it.
    """

    def __init__(self, channels: int, heads: int, fires: bool) -> None:
        super().__init__()
        self.heads, self.gathers = heads, False
        self.q = Synapses(channels, channels, neurons=NEURONS)
        self.k = Synapses(channels, channels, neurons=NEURONS)
        self.mask = LIF(ATTENTION)
        self.out = Synapses(channels, channels, bias=True, neurons=NEURONS if fires else None)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (split_axis(s, -1, (self.heads, -1)) for s in (self.q(x), self.k(x)))
        counts = count(q, -1)
        mask = self.mask(gather(counts) if self.gathers else counts)
        y: Tensor = self.out((mask.unsqueeze(-1) * k).flatten(-2))
        return y


class SelfAttention(nn.Module):
    """Spikformer's attention, ``q k^T v / 8`` in each head, without a softmax.

    Args:
        channels: Of a token.
        heads: Groups of channels.
        fires: Whether neurons end it.
        leak: Whether the membranes of the last neurons go on from one image to the next, as in
            QKFormer's published code.
    """

    def __init__(self, channels: int, heads: int, fires: bool, leak: bool = False) -> None:
        super().__init__()
        self.heads, self.leak, self.gathers = heads, leak, False
        self.q = Synapses(channels, channels, neurons=NEURONS)
        self.k = Synapses(channels, channels, neurons=NEURONS)
        self.v = Synapses(channels, channels, neurons=NEURONS)
        self.neurons = LIF(ATTENTION)
        self.out = Synapses(channels, channels, bias=True, neurons=NEURONS if fires else None)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.q, self.k, self.v))
        y = (self._count if self.gathers else spike_attention)(q, k, v)
        y = y.transpose(-3, -2).flatten(-2)
        s = self.neurons(y).view(x.shape)
        if self.leak:  # steps and images are one axis of time
            return self.out(s.flatten(0, 1)[:, None]).view(x.shape)  # type: ignore[no-any-return]
        return self.out(s)  # type: ignore[no-any-return]

    def _split(self, s: Tensor) -> Tensor:
        return split_axis(s.flatten(2, 3), -1, (self.heads, -1)).transpose(-3, -2)

    def _count(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q k^T v / 8`` of the means over steps: one operand of each product is held."""
        scores = gather(q) @ k.transpose(-1, -2)
        return gather(gather(scores) @ v).mul(0.125)


class MaskAttention(nn.Module):
    """The spike-driven transformer's attention: a channel's tokens with both key and value,
    counted, decide whether its queries pass. It has no products, and heads would change nothing.

    Args:
        channels: Of a token.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q = Synapses(channels, channels, neurons=NEURONS)
        self.k = Synapses(channels, channels, neurons=NEURONS)
        self.v = Synapses(channels, channels, neurons=NEURONS)
        self.mask = LIF(ATTENTION)
        self.out = Synapses(channels, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        both = self.k(x) * self.v(x)
        mask = self.mask(count(both, (2, 3)))
        y: Tensor = self.out(self.q(x) * mask)
        return y


class Block(nn.Module):
    """A mixer of tokens and a perceptron, each added to what it reads.

    Args:
        mixer: Mixes tokens; None for a perceptron alone.
        channels: Of a token.
        expansion: Hidden neurons of the perceptron per channel.
        first: Whether neurons come before synapses. A hidden layer as wide as the token then has a
            shortcut of its own.
    """

    def __init__(
        self, mixer: nn.Module | None, channels: int, expansion: int, first: bool = False
    ) -> None:
        super().__init__()
        behind, hidden = None if first else NEURONS, expansion * channels
        self.inner = first and expansion == 1
        self.mixer = mixer
        self.up = Synapses(channels, hidden, bias=True, neurons=behind)
        self.down = Synapses(hidden, channels, bias=True, neurons=behind)
        places = ("mixer", "up", "down") if mixer is not None else ("up", "down")
        self.before = nn.ModuleDict({n: LIF(NEURONS) if first else nn.Identity() for n in places})

    def forward(self, x: Tensor) -> Tensor:
        if self.mixer is not None:
            x = x + self.mixer(self.before["mixer"](x))
        y = self.up(self.before["up"](x))
        if self.inner:
            x = y = x + y
        return x + self.down(self.before["down"](y))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """An embedding and the blocks that read its tokens."""

    def __init__(self, embed: Embedding, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.embed, self.blocks = embed, blocks

    def forward(self, x: Tensor, steps: int) -> Tensor:
        x = self.embed(x, steps)
        for block in self.blocks:
            x = block(x)
        return x


def split_axis(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """``x`` with one axis as several."""
    return x.unflatten(axis, sizes)  # type: ignore[no-any-return,no-untyped-call]


def gather(x: Tensor) -> Tensor:
    """The mean over steps of ``x [steps, *shape]``, in each step."""
    return x if len(x) == 1 else x.mean(0, keepdim=True).expand_as(x)


def count(spikes: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """The number of spikes along ``axes``, which are gone, or 1 if there are several: a float."""
    dtype = spikes.dtype if spikes.dtype.is_floating_point else torch.float32
    return spikes.sum(axes, keepdim=not isinstance(axes, int), dtype=dtype)


def pool_spikes(x: Tensor) -> Tensor:
    """Whether one of 3 x 3 neighbours spikes, with stride 2, of ``x [steps, batch, height, width,
    channels]``."""
    y = x if x.dtype.is_floating_point else x.float()  # torch pools no bytes
    y = pool_largest(y.flatten(0, 1).permute(0, 3, 1, 2))
    return split_axis(y.permute(0, 2, 3, 1), 0, tuple(x.shape[:2])).to(x.dtype)
