"""Max-Former (Fang et al., 2025), and QKFormer with membrane shortcuts from the same authors.

Both have QKFormer's stages, with neurons before synapses: branches add membranes, so that every
product reads binary spikes, and no state goes from image to image. Max-Former mixes tokens by
nothing, by convolutions of each channel and, in the last stage, by self-attention; its embeddings
pool first, which keeps high frequencies.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from isospike.models.classifier import SpikingClassifier
from isospike.models.configs import MaxFormerConfig, MSQKFormerConfig
from isospike.models.importers import PARTS, Rule, rename
from isospike.models.layers import (
    NEURONS,
    Block,
    Embedding,
    SelfAttention,
    Stage,
    Synapses,
    TokenAttention,
)
from isospike.models.levels import use_levels
from isospike.neurons import LIF


class MembraneFormer(SpikingClassifier):
    """What both have: stages of embedding and blocks, and neurons before the head."""

    def __init__(self, config: MaxFormerConfig | MSQKFormerConfig) -> None:
        config.check()
        super().__init__(config)
        count = len(config.depths)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(config.depths):
            width = config.channels >> (count - 1 - i)
            blocks = nn.ModuleList(
                Block(self.mixer(i, width), width, config.expansion, first=True)
                for _ in range(depth)
            )
            self.stages.append(Stage(self.embed(i, width), blocks))
        self.neurons = LIF(NEURONS)
        self.head = nn.Linear(config.channels, config.num_labels)
        use_levels(self, config.levels)
        self.post_init()

    def mixer(self, stage: int, width: int) -> nn.Module | None:
        """A mixer of tokens in this stage."""
        raise NotImplementedError

    def embed(self, stage: int, width: int) -> Embedding:
        """The embedding that begins this stage."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        first = 4 if getattr(self.config, "form", "cifar") == "imagenet" else 1
        return first << (len(self.config.depths) - 1)

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        x = frames
        for stage in self.stages:
            x = stage(x, steps)
        return self.neurons(x.mean((2, 3))).to(frames.dtype)  # type: ignore[no-any-return]


class MSQKFormer(MembraneFormer):
    """MS-QKFormer-4-384 by default: QKFormer with membrane shortcuts, for 32 x 32 images.

    Args:
        config: Its sizes.

    Raises:
        RangeError: The sizes do not fit each other.

    >>> import torch
    >>> config = MSQKFormerConfig(channels=32, depths=(1, 1, 1), heads=(2, 2, 2), num_labels=10)
    >>> MSQKFormer(config)(torch.zeros(2, 3, 16, 16), steps=2).logits.shape
    torch.Size([2, 10])

    Reference: Fang, Zhou, Wang, Zhang, Guo, Zhao, Jin, Xu (2025), Spiking transformers need high
    frequency information.
    """

    config_class = MSQKFormerConfig

    def mixer(self, stage: int, width: int) -> nn.Module:
        heads = self.config.heads[stage]
        last = stage == len(self.config.depths) - 1
        return (SelfAttention if last else TokenAttention)(width, heads, False)

    def embed(self, stage: int, width: int) -> Embedding:
        if stage == 0:
            return stem(self.config.num_channels, width)
        sizes = [width // 2, width, width]
        return Embedding(sizes, [False, True], shortcut=0, stride=2, first=True)


class MaxFormer(MembraneFormer):
    """Max-Former-4-384 by default, for 32 x 32 images.

    Args:
        config: Its sizes.

    Raises:
        InputError: The form is unknown.
        RangeError: The sizes do not fit each other.

    >>> import torch
    >>> config = MaxFormerConfig(channels=32, depths=(1, 1, 1), heads=(2, 2, 2), num_labels=10)
    >>> MaxFormer(config)(torch.zeros(2, 3, 16, 16), steps=2).logits.shape
    torch.Size([2, 10])

    Reference: Fang, Zhou, Wang, Zhang, Guo, Zhao, Jin, Xu (2025), Spiking transformers need high
    frequency information.
    """

    config_class = MaxFormerConfig

    def mixer(self, stage: int, width: int) -> nn.Module | None:
        size = self.config.kernels[stage] if stage < len(self.config.depths) - 1 else 0
        if stage == len(self.config.depths) - 1:
            return SelfAttention(width, self.config.heads[stage], False)
        return Synapses(width, width, size, groups=width, bias=True) if size else None

    def embed(self, stage: int, width: int) -> Embedding:
        if stage == 0 and self.config.form == "cifar":
            return stem(self.config.num_channels, width)
        if stage == 0:
            sizes = [self.config.num_channels, width // 2, width, width]
            return Embedding(
                sizes, [False] * 3, shortcut=1, stride=2, strides=(2, 2, 1), first=True, image=True
            )
        sizes = [width // 2, width, width]
        return Embedding(sizes, [True, False], shortcut=0, pooled=True, first=True)


def stem(channels: int, width: int) -> Embedding:
    """The embedding that reads images of 32 x 32 pixels, without pooling."""
    sizes = [channels, width // 2, width]
    return Embedding(sizes, [False, False], shortcut=1, first=True, image=True)


def _stem(match: re.Match[str]) -> str:
    number, part, leaf = match.groups()
    where = {"1": "layers.1", "2": "shortcut"}[number]
    return f"stages.0.embed.{where}.{PARTS[part]}.{leaf}"


def _stem_imagenet(match: re.Match[str]) -> str:
    number, part, leaf = match.groups()
    where = "shortcut" if number == "4" else f"layers.{int(number) - 1}"
    return f"stages.0.embed.{where}.{PARTS[part]}.{leaf}"


def _later(first: str, second: str, shortcut: str) -> Rule:
    """The rule of an embedding between two stages, by the authors' names of its parts."""
    places = {first: "layers.0", second: "layers.1", shortcut: "shortcut"}

    def place(match: re.Match[str]) -> str:
        stage, name, part, leaf = match.groups()
        return f"stages.{int(stage) - 1}.embed.{places[name]}.{PARTS[part]}.{leaf}"

    names = "|".join(places)
    return rf"patch_embed([23])\.({names})\.embed_(conv|bn)\.(\w+)", place


def _block(match: re.Match[str]) -> str:
    stage, block, place, part, leaf = match.groups()
    return f"stages.{int(stage) - 1}.blocks.{block}.{PLACES[place]}.{PARTS[part]}.{leaf}"


def _mixer(match: re.Match[str]) -> str:
    stage, block, norm, leaf = match.groups()
    return f"stages.{int(stage) - 1}.blocks.{block}.mixer.{'norm' if norm else 'conv'}.{leaf}"


PLACES = {
    **{f"attn.{n}": f"mixer.{n}" for n in "qkv"},
    "attn.proj": "mixer.out", "mlp.fc1": "up", "mlp.fc2": "down",
}  # fmt: skip
SHARED: list[Rule] = [
    (r"patch_embed1\.proj_conv\.(\w+)", r"stages.0.embed.layers.0.conv.\1"),
    (r"patch_embed1\.proj_bn\.(\w+)", r"stages.0.embed.layers.0.norm.\1"),
    (r"stage(\d)\.(\d+)\.(attn\.(?:[qkv]|proj)|mlp\.fc[12])_(conv|bn)\.(\w+)", _block),
    (r"stage(\d)\.(\d+)\.mixer\.conv5?(_bn)?\.(\w+)", _mixer),
    (r"head\.(weight|bias)", r"head.\1"),
]
CIFAR_STEM: Rule = (r"patch_embed1\.embed([12])\.embed_(conv|bn)\.(\w+)", _stem)
IMAGENET_STEM: Rule = (r"patch_embed1\.embed([1-4])\.embed_(conv|bn)\.(\w+)", _stem_imagenet)
MAX: list[Rule] = [*SHARED, _later("max_embed1", "embed1", "max_embed2")]
MS: list[Rule] = [*SHARED, CIFAR_STEM, _later("embed1", "max_embed1", "embed2")]


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`MaxFormer` or :class:`MSQKFormer` from those of the authors' networks.

    Args:
        weights: The ``state_dict()`` of their Max-Former, for small images or ImageNet, or of their
            MS-QKFormer for small images.

    Returns:
        The same weights under our names, for ``load_state_dict``.

    Raises:
        UnsupportedError: A name does not belong to these networks.

    >>> import torch
    >>> list(from_authors({"stage2.0.mixer.conv_bn.weight": torch.zeros(4)}))
    ['stages.1.blocks.0.mixer.norm.weight']

    Source: github.com/bic-L/MaxFormer at 6ddd4cc.
    """
    if any("patch_embed2.embed2." in name for name in weights):
        rules = MS
    else:
        small = any("patch_embed1.proj_conv" in name for name in weights)
        rules = [*MAX, CIFAR_STEM if small else IMAGENET_STEM]
    return rename("max_former.from_authors", weights, rules, "Max-Former or MS-QKFormer")
