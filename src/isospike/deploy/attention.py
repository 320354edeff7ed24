"""Attention of spikes in NIR's own nodes, exactly.

NIR multiplies nothing by anything but weights. A product of two spikes needs no more: neurons that
forget at each step and fire at two inputs are an AND, and neurons that fire at one are an OR. So a
mask that spikes make of spikes exports: QKFormer's token attention and the spike-driven
transformer's. What has numbers on both sides does not: softmax, ``q k^T v``, a gain per token.
"""

from collections.abc import Sequence

import torch
from torch import nn

from isospike.deploy.build import Builder, convolution
from isospike.errors import RangeError
from isospike.neurons import LIF, NeuronParams

FORGETS = 1 - 1 / 1.001  # a thousandth stays, since some readers need tau above a step


def spike_and() -> LIF:
    """Neurons that fire where two spikes of one step meet: a logical AND of what is summed.

    The leak keeps a thousandth, too little to matter: one spike gives at most 0.9995 of the
    threshold's two thirds.

    >>> spike_and()(torch.tensor([[0.0, 1.0, 2.0]]))
    tensor([[0., 0., 1.]])
    """
    return _forgetful(1.5)


def spike_or() -> LIF:
    """Neurons that fire where there was any spike in a step: a logical OR of what is summed.

    >>> spike_or()(torch.tensor([[0.0, 1.0, 7.0]]))
    tensor([[0., 1., 1.]])
    """
    return _forgetful(0.5)


def _forgetful(threshold: float) -> LIF:
    kept = 1 - FORGETS
    return LIF(NeuronParams(FORGETS, kept, threshold=threshold * kept, reset_to=0.0))


def token_attention(
    build: Builder, name: str, q: str, k: str, channels: int, heads: int, mask: nn.Module
) -> str:
    """QKFormer's attention: ``mask(sum of a head's queries) AND key``, for every token.

    Args:
        build: Gets the nodes, five of them.
        name: What their names begin with.
        q: Node of the queries' spikes ``[channels, height, width]``.
        k: Node of the keys' spikes.
        channels: Of a token.
        heads: Groups of channels with a mask each.
        mask: The neurons that read the sums.

    Returns:
        Name of the node whose spikes are the attention's.

    Raises:
        RangeError: The channels are no multiple of the heads.

    Reference: Zhou et al. (2024), QKFormer.
    """
    if heads < 1 or channels % heads:
        raise RangeError(
            f"token_attention needs channels a multiple of heads, got {channels} and {heads}. "
            "Give those of the model."
        )
    head = torch.eye(heads).repeat_interleave(channels // heads, 0)[:, :, None, None]
    counted = build.add(f"{name}_count", convolution(head.transpose(0, 1)), q)
    fires = build.add(f"{name}_mask", mask, counted)
    spread = build.add(f"{name}_spread", convolution(head), fires)
    passed = build.add(f"{name}_key", convolution(torch.eye(channels)[:, :, None, None]), k)
    return build.add(name, spike_and(), spread, passed)


def mask_attention(
    build: Builder, name: str, q: str, k: str, v: str, shape: Sequence[int], mask: nn.Module
) -> str:
    """The spike-driven transformer's attention: ``mask(sum over tokens of k AND v) AND q``.

    Args:
        build: Gets the nodes, seven of them.
        name: What their names begin with.
        q: Node of the queries' spikes ``[channels, height, width]``.
        k: Node of the keys' spikes.
        v: Node of the values' spikes.
        shape: Channels, height and width.
        mask: The neurons that read the sums.

    Returns:
        Name of the node whose spikes are the attention's.

    Reference: Yao et al. (2023), Spike-driven transformer.
    """
    channels, height, width = shape
    same = torch.eye(channels)[:, :, None, None]
    whole = same.expand(channels, channels, height, width)
    both = build.add(f"{name}_both", convolution(same), k, v)
    meet = build.add(f"{name}_meet", spike_and(), both)
    counted = build.add(f"{name}_count", convolution(whole), meet)
    fires = build.add(f"{name}_mask", mask, counted)
    around = (height - 1, width - 1)  # the one pixel reaches every place of the kernel
    spread = build.add(f"{name}_spread", convolution(whole, padding=around), fires)
    passed = build.add(f"{name}_query", convolution(same), q)
    return build.add(name, spike_and(), spread, passed)
