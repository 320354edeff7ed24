"""The spike-driven transformer, version 1 (Yao et al., 2023): attention without products.

A channel's tokens in which both key and value spike are counted; a neuron that reads the count
decides whether the channel's queries pass. Neurons begin each branch, and branches add membranes,
so that every product has binary spikes for an operand.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from isospike.models.classifier import SpikingClassifier
from isospike.models.configs import SpikeDrivenConfig
from isospike.models.importers import PARTS, Rule, rename
from isospike.models.layers import NEURONS, Block, MaskAttention, Synapses, pool_spikes
from isospike.neurons import LIF


class Stem(nn.Module):
    """Four convolutions, and a convolution that gives tokens their position.

    The first three pool spikes, the fourth pools currents, which are what the blocks read.
    """

    def __init__(self, config: SpikeDrivenConfig) -> None:
        super().__init__()
        sizes = [config.num_channels, *(config.channels >> i for i in (3, 2, 1, 0))]
        self.pools = tuple(config.pools)
        self.layers = nn.ModuleList(
            Synapses(a, b, 3, neurons=NEURONS if i < 3 else None, pool=i == 3 and self.pools[3])
            for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        )
        self.neurons = LIF(NEURONS)
        self.position = Synapses(config.channels, config.channels, 3)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        for layer, pool in zip(self.layers, (*self.pools[:3], False), strict=True):
            x = layer(x, steps)
            x = pool_spikes(x) if pool else x
        return x + self.position(self.neurons(x))  # type: ignore[no-any-return]


class SpikeDrivenTransformer(SpikingClassifier):
    """Spike-driven transformer 2-512 by default.

    Args:
        config: Its sizes.

    Raises:
        RangeError: The sizes do not fit each other.

    >>> import torch
    >>> model = SpikeDrivenTransformer(SpikeDrivenConfig(channels=16, blocks=1, num_labels=10))
    >>> model(torch.zeros(2, 3, 16, 16), steps=2).logits.shape
    torch.Size([2, 10])

    Reference: Yao, Hu, Zhou, Yuan, Tian, Xu, Li (2023), Spike-driven transformer.
    """

    config_class = SpikeDrivenConfig

    def __init__(self, config: SpikeDrivenConfig) -> None:
        config.check()
        super().__init__(config)
        channels = config.channels
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(
            Block(MaskAttention(channels), channels, config.expansion, first=True)
            for _ in range(config.blocks)
        )
        self.neurons = LIF(NEURONS)
        self.head = nn.Linear(channels, config.num_labels)
        self.post_init()

    @property
    def stride(self) -> int:
        return 1 << sum(map(bool, self.config.pools))

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        x = self.stem(frames, steps)
        for block in self.blocks:
            x = block(x)
        return self.neurons(x.mean((2, 3))).to(frames.dtype)  # type: ignore[no-any-return]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


AUTHORS: list[Rule] = [
    (r"patch_embed\.proj_(conv|bn)(\d?)\.(\w+)",
     lambda m: f"stem.layers.{m[2] or 0}.{PARTS[m[1]]}.{m[3]}"),
    (r"patch_embed\.rpe_(conv|bn)\.(\w+)", lambda m: f"stem.position.{PARTS[m[1]]}.{m[2]}"),
    (r"block\.(\d+)\.attn\.([qkv]|proj)_(conv|bn)\.(\w+)",
     lambda m: f"blocks.{m[1]}.mixer.{m[2].replace('proj', 'out')}.{PARTS[m[3]]}.{m[4]}"),
    (r"block\.(\d+)\.attn\.talking_heads\.weight", None),
    (r"block\.(\d+)\.mlp\.fc([12])_(conv|bn)\.(\w+)",
     lambda m: f"blocks.{m[1]}.{('up', 'down')[int(m[2]) - 1]}.{PARTS[m[3]]}.{m[4]}"),
    (r"head\.(weight|bias)", r"head.\1"),
]  # fmt: skip


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`SpikeDrivenTransformer` from those of the authors' network.

    Args:
        weights: The ``state_dict()`` of their network. Its ``talking_heads``, which it never uses,
            are left out.

    Returns:
        The same weights under our names, for ``load_state_dict``.

    Raises:
        UnsupportedError: A name does not belong to that network.

    >>> import torch
    >>> list(from_authors({"patch_embed.proj_conv1.weight": torch.zeros(4, 4, 3, 3)}))
    ['stem.layers.1.conv.weight']

    Source: github.com/BICLab/Spike-Driven-Transformer at 3faa822.
    """
    return rename("spike_driven.from_authors", weights, AUTHORS, "the spike-driven transformer")
