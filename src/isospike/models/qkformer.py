"""QKFormer (Zhou et al., 2024): token attention first, self-attention in the last stage.

Stages halve the image's sides and double the channels. In a token-attention block a token's
queries, counted in each head, decide whether its keys pass; the last stage counts ``q k^T v``.
Neurons end each branch, so the sums of branches are whole numbers of spikes.

The authors' code lets membranes of the last stage go on from one image of a batch to the next.
Ours does not; ``published_leak=True`` reproduces theirs.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from isospike.models.classifier import SpikingClassifier
from isospike.models.configs import QKFormerConfig
from isospike.models.importers import PARTS, Rule, rename
from isospike.models.layers import Block, Embedding, SelfAttention, Stage, TokenAttention
from isospike.models.levels import use_levels


class QKFormer(SpikingClassifier):
    """QKFormer-4-384 by default.

    Args:
        config: Its sizes.

    Raises:
        InputError: The form is unknown.
        RangeError: The sizes do not fit each other.

    >>> import torch
    >>> config = QKFormerConfig(channels=32, depths=(1, 1, 1), heads=(2, 2, 2), num_labels=10)
    >>> model = QKFormer(config)
    >>> model(torch.zeros(2, 3, 16, 16), steps=2).logits.shape
    torch.Size([2, 10])

    Reference: Zhou, Zhang, Zhou, Yu, Huang, Fan, Yuan, Ma, Zhou, Tian (2024), QKFormer:
    hierarchical spiking transformer using Q-K attention.
    """

    config_class = QKFormerConfig

    def __init__(self, config: QKFormerConfig) -> None:
        config.check()
        super().__init__(config)
        stages = len(config.depths)
        widths = [config.channels >> (stages - 1 - i) for i in range(stages)]
        self.stages = nn.ModuleList()
        for i, (width, depth, heads) in enumerate(
            zip(widths, config.depths, config.heads, strict=True)
        ):
            embedding = _stem(config, width) if i == 0 else _stage(config.form, width)
            last = i == stages - 1
            blocks = nn.ModuleList(
                Block(
                    SelfAttention(width, heads, True, config.published_leak)
                    if last
                    else TokenAttention(width, heads, True),
                    width,
                    config.expansion,
                )
                for _ in range(depth)
            )
            self.stages.append(Stage(embedding, blocks))
        self.head = nn.Linear(config.channels, config.num_labels)
        use_levels(self, config.levels)
        self.post_init()

    @property
    def stride(self) -> int:
        first = {"cifar": 1, "imagenet": 4, "dvs": 8}[self.config.form]
        return first << (len(self.config.depths) - 1)

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        x = frames
        for stage in self.stages:
            x = stage(x, steps)
        return x.to(frames.dtype).mean((2, 3))


def _stem(config: QKFormerConfig, width: int) -> Embedding:
    """The embedding that reads the input, of each form."""
    if config.form == "cifar":
        sizes, pools, shortcut, stride = [width // 2, width], [False, False], 1, 1
    elif config.form == "imagenet":
        sizes, pools, shortcut, stride = [width // 2, width, width], [True, True, False], 1, 2
    else:
        sizes, pools = [width >> 3, width >> 2, width >> 1, width], [False, True, True, True]
        shortcut, stride = 2, 4
    return Embedding([config.num_channels, *sizes], pools, shortcut=shortcut, stride=stride)


def _stage(form: str, width: int) -> Embedding:
    """The embedding between two stages: the first convolution pools in the form for ImageNet."""
    early = form == "imagenet"
    return Embedding([width // 2, width, width], [early, not early], shortcut=0, stride=2)


def _embedding(match: re.Match[str]) -> str:
    stage, number, part, leaf = match.groups()
    if number == "_res":
        where = "shortcut"
    elif stage == "1":
        where = f"layers.{number or 0}"
    else:  # their 3 and 4, or none and 4
        where = f"layers.{int(number == '4')}"
    return f"stages.{int(stage) - 1}.embed.{where}.{PARTS[part]}.{leaf}"


def _block(match: re.Match[str]) -> str:
    stage, block, place, part, leaf = match.groups()
    return f"stages.{int(stage) - 1}.blocks.{block}.{PLACES[place]}.{PARTS[part]}.{leaf}"


PLACES = {
    **{f"{kind}.{n}": f"mixer.{n}" for kind in ("tssa", "ssa", "attn") for n in "qkv"},
    **{f"{kind}.proj": "mixer.out" for kind in ("tssa", "ssa", "attn")},
    "mlp.mlp1": "up", "mlp.fc1": "up", "mlp.mlp2": "down", "mlp.fc2": "down",
}  # fmt: skip
AUTHORS: list[Rule] = [
    (r"patch_embed(\d)\.proj(\d?|_res)_(conv|bn)\.(\w+)", _embedding),
    (r"stage(\d)\.(\d+)\.((?:tssa|ssa|attn)\.(?:[qkv]|proj)|mlp\.\w+\d)_(conv|bn)\.(\w+)", _block),
    (r"head\.(weight|bias)", r"head.\1"),
]


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`QKFormer` from those of the authors' networks, of any form.

    Args:
        weights: The ``state_dict()`` of their network.

    Returns:
        The same weights under our names, for ``load_state_dict``.

    Raises:
        UnsupportedError: A name does not belong to that network.

    >>> import torch
    >>> list(from_authors({"stage1.0.tssa.q_conv.weight": torch.zeros(4, 4, 1)}))
    ['stages.0.blocks.0.mixer.q.conv.weight']

    Source: github.com/zhouchenlin2096/QKFormer at c2a00e8, whose neurons are SpikingJelly's
    ``clock_driven`` ones, without weights.
    """
    return rename("qkformer.from_authors", weights, AUTHORS, "QKFormer")
