"""SpikingResformer (Shi, Hao, Yu, 2024): attention with two products of spikes and currents.

(1)  s = LIF(x)                                  spikes of the tokens
(2)  y1, y2 = BN(conv(s))                        currents of patches, in each head
(3)  a = LIF(y1 s^T / sqrt(f_s channels))        which patches a token belongs to, spikes
(4)  x <- x + BN(W LIF(a^T y2 / sqrt(f_a patches)))

Each product has one binary operand, so it is a sum of currents. f_s and f_a are the firing rates of
s and a in each head, kept as running means like the statistics of a normalisation. A stage halves
the image's sides. Neurons begin each branch, and branches add membranes.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isospike.models.classifier import SpikingClassifier
from isospike.models.configs import SpikingResformerConfig
from isospike.models.importers import Rule, rename
from isospike.models.layers import Synapses, gather, split_axis
from isospike.models.levels import use_levels
from isospike.neurons import LIF, PLIF, Neuron
from isospike.presets import spikingjelly_lif
from isospike.surrogate import ATan

NEURONS = spikingjelly_lif(detach_reset=True)._replace(surrogate=ATan(2.0))
MOMENTUM = 0.999
GRID = 1024  # steps of one in currents that are held


def neurons(learned_leak: bool) -> Neuron:
    """A layer of the family's neurons."""
    return PLIF(NEURONS._replace(gain=1.0)) if learned_leak else LIF(NEURONS)


class Rate(nn.Module):
    """The running firing rate of each head, one over whose square root scales a product.

    The first batch sets it. A rate of zero, before training or of silent neurons, counts as one.
    """

    mean: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, heads, 1, 1))

    def forward(self, spikes: Tensor, inputs: int) -> Tensor:
        """``1 / sqrt(rate inputs)`` of ``spikes [steps, batch, heads, tokens, channels]``."""
        if self.training:
            with torch.no_grad():
                now = spikes.to(self.mean.dtype).mean((0, 1, 3, 4), keepdim=True)
                before = self.mean if bool(self.mean.any()) else now
                self.mean = torch.lerp(now, before, MOMENTUM)
        return torch.rsqrt(torch.where(self.mean > 0, self.mean, 1.0) * inputs)


class DualAttention(nn.Module):
    """Spiking self-attention with two products, equations (2) to (4) without the shortcut.

    Args:
        channels: Of a token.
        heads: Groups of channels.
        patch: Pixels of a patch's side.
        learned_leak: Whether its neurons learn their leak.
    """

    def __init__(self, channels: int, heads: int, patch: int, learned_leak: bool) -> None:
        super().__init__()
        self.heads, self.gathers = heads, False
        self.both = Synapses(channels, 2 * channels, patch, stride=patch)
        self.rate, self.chosen_rate = Rate(heads), Rate(heads)
        self.choice, self.neurons = neurons(learned_leak), neurons(learned_leak)
        self.out = Synapses(channels, channels)

    def forward(self, s: Tensor) -> Tensor:
        to, of = self._split(self.both(s)).chunk(2, -1)  # [steps, batch, heads, patches, channels]
        tokens = self._split(s)
        to = self._held(to * self.rate(tokens, to.shape[-1]))
        y = tokens.to(to.dtype) @ to.transpose(-1, -2)
        chosen = self.choice(gather(y) if self.gathers else y)  # (3)
        of = self._held(of * self.chosen_rate(chosen, of.shape[-2]))
        y = chosen.to(of.dtype) @ of
        y = gather(y) if self.gathers else y
        return self.out(self.neurons(y.transpose(-3, -2).reshape(s.shape)))  # type: ignore[no-any-return]

    def _held(self, currents: Tensor) -> Tensor:
        """Currents on a grid where steps are gathered, so that sums of them are exact."""
        exact = self.gathers and not self.training
        return currents.mul(GRID).round().div(GRID) if exact else currents

    def _split(self, x: Tensor) -> Tensor:
        return split_axis(x.flatten(2, 3), -1, (self.heads, -1)).transpose(-3, -2)


class Pair(nn.Module):
    """Attention and a perceptron with a 3 x 3 convolution inside, each added to what it reads."""

    def __init__(self, config: SpikingResformerConfig, stage: int) -> None:
        super().__init__()
        channels, learned = config.channels[stage], config.learned_leak
        hidden = config.expansion * channels
        self.mixer = DualAttention(channels, config.heads[stage], config.patches[stage], learned)
        self.up = Synapses(channels, hidden)
        self.inner = Synapses(hidden, hidden, 3, groups=hidden // config.group)
        self.down = Synapses(hidden, channels)
        places = ("mixer", "up", "inner", "down")
        self.before = nn.ModuleDict({name: neurons(learned) for name in places})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.before["mixer"](x))
        y = self.up(self.before["up"](x))
        y = y + self.inner(self.before["inner"](y))
        return x + self.down(self.before["down"](y))  # type: ignore[no-any-return]


class SpikingResformer(SpikingClassifier):
    """SpikingResformer-Ti for 32 x 32 images by default.

    Args:
        config: Its sizes.

    Raises:
        InputError: The form is unknown.
        RangeError: The sizes do not fit each other.

    >>> import torch
    >>> sizes = {"channels": (16, 32), "depths": (1, 1), "heads": (1, 2), "patches": (2, 1)}
    >>> config = SpikingResformerConfig(**sizes, group=16, num_labels=10)
    >>> SpikingResformer(config)(torch.zeros(2, 3, 16, 16), steps=2).logits.shape
    torch.Size([2, 10])

    Reference: Shi, Hao, Yu (2024), SpikingResformer: bridging ResNet and vision transformer in
    spiking neural networks.
    """

    config_class = SpikingResformerConfig

    def __init__(self, config: SpikingResformerConfig) -> None:
        config.check()
        super().__init__(config)
        channels, learned = config.channels, config.learned_leak
        large = config.form == "imagenet"
        self.stem = Synapses(
            config.num_channels, channels[0], 7 if large else 3, stride=1 + large, pool=large
        )
        self.shrink = nn.ModuleList(
            nn.Sequential(neurons(learned), Synapses(a, b, 3, stride=2))
            for a, b in zip(channels, channels[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Pair(config, i) for _ in range(depth)))
            for i, depth in enumerate(config.depths)
        )
        self.head = nn.Linear(channels[-1], config.num_labels, bias=False)
        use_levels(self, config.levels)
        self.post_init()

    @property
    def stride(self) -> int:
        first = 4 if self.config.form == "imagenet" else 1
        return first * math.lcm(*(p << i for i, p in enumerate(self.config.patches)))

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        x = self.stages[0](self.stem(frames, steps))
        for shrink, stage in zip(self.shrink, self.stages[1:], strict=True):
            x = stage(shrink(x))
        x = x[:1] if self.config.levels else x  # membranes are then the same in all steps
        return x.mean((2, 3))  # type: ignore[no-any-return]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)


PARTS = {"W": "mixer.both", "Wproj": "mixer.out", "up": "up", "conv.0": "inner", "down": "down"}
NORMS = {"norm": "mixer.both", "norm_proj": "mixer.out"}
LEAKS = {
    "activation_in": "before.mixer", "activation_attn": "mixer.choice",
    "activation_out": "mixer.neurons", "up.0": "before.up", "conv.0.0": "before.inner",
    "down.0": "before.down",
}  # fmt: skip
RATES = {"x": "mixer.rate", "attn": "mixer.chosen_rate"}


def _pair(stage: str, layer: str) -> str:
    """The pair that their attention or perceptron of this number belongs to.

    Their later stages begin with the layer that shrinks the image.
    """
    return f"stages.{stage}.{(int(layer) - (stage != '0')) // 2}"


AUTHORS: list[Rule] = [
    (r"prologue\.0\.weight", "stem.conv.weight"),
    (r"prologue\.1\.bn\.(\w+)", r"stem.norm.\1"),
    (r"layers\.([1-9])\.0\.conv\.weight", lambda m: f"shrink.{int(m[1]) - 1}.1.conv.weight"),
    (r"layers\.([1-9])\.0\.norm\.bn\.(\w+)", lambda m: f"shrink.{int(m[1]) - 1}.1.norm.{m[2]}"),
    (r"layers\.([1-9])\.0\.activation\.w", lambda m: f"shrink.{int(m[1]) - 1}.0.w"),
    (r"layers\.(\d)\.(\d+)\.firing_rate_(x|attn)",
     lambda m: f"{_pair(m[1], m[2])}.{RATES[m[3]]}.mean"),
    (r"layers\.(\d)\.(\d+)\.(W|Wproj)\.weight",
     lambda m: f"{_pair(m[1], m[2])}.{PARTS[m[3]]}.conv.weight"),
    (r"layers\.(\d)\.(\d+)\.(norm|norm_proj)\.bn\.(\w+)",
     lambda m: f"{_pair(m[1], m[2])}.{NORMS[m[3]]}.norm.{m[4]}"),
    (r"layers\.(\d)\.(\d+)\.(up|conv\.0|down)\.1\.weight",
     lambda m: f"{_pair(m[1], m[2])}.{PARTS[m[3]]}.conv.weight"),
    (r"layers\.(\d)\.(\d+)\.(up|conv\.0|down)\.2\.bn\.(\w+)",
     lambda m: f"{_pair(m[1], m[2])}.{PARTS[m[3]]}.norm.{m[4]}"),
    (r"layers\.(\d)\.(\d+)\.(activation_\w+|up\.0|conv\.0\.0|down\.0)\.w",
     lambda m: f"{_pair(m[1], m[2])}.{LEAKS[m[3]]}.w"),
    (r"classifier\.weight", "head.weight"),
]  # fmt: skip


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`SpikingResformer` from those of the authors' networks, of any form.

    Args:
        weights: The ``state_dict()`` of their network, ``checkpoint["model"]`` in their files. The
            form for events needs ``learned_leak=True``.

    Returns:
        The same weights under our names, for ``load_state_dict``.

    Raises:
        UnsupportedError: A name does not belong to that network.

    >>> import torch
    >>> list(from_authors({"layers.1.1.W.weight": torch.zeros(4, 2, 2, 2)}))
    ['stages.1.0.mixer.both.conv.weight']

    Source: github.com/xyshi2000/SpikingResformer at 3f75127. Its attention divides by the number of
    patches of the size it was built for; this model by that of the image it reads, the same number
    wherever a network reads images of that size.
    """
    return rename("spiking_resformer.from_authors", weights, AUTHORS, "SpikingResformer")
