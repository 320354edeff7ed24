"""Attention between spikes, without a softmax."""

import torch
from torch import Tensor

from isospike.errors import ShapeError
from isospike.kernels.product.attention import attend, laid_out
from isospike.kernels.runtime.torch_ops import define
from isospike.products import spike_matmul

BYTES = (torch.uint8, torch.bool)


def spike_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 0.125) -> Tensor:
    """``scale * q k^T v`` of binary q, k and v, head by head.

    Every product counts spikes, so it may be taken in either order. Bytes on a CPU become sums of
    rows, exact. Elsewhere it is ``q (k^T v)`` where there are more tokens than channels, ``(q k^T)
    v`` else: the first product is exact in bfloat16 (see :func:`isospike.spike_matmul`), the second
    one takes counts and is float32, exact up to 2^24.

    Args:
        q: Spikes in {0, 1}, ``[..., tokens, channels]``, one head; float32, bfloat16, uint8, bool.
        k: Spikes, ``[..., keys, channels]``.
        v: Spikes, ``[..., keys, values]``.
        scale: Multiplies the counts; a power of two keeps them exact.

    Returns:
        ``[..., tokens, values]``, float32.

    Raises:
        ShapeError: The axes do not fit each other.
        RangeError: A type is not one of these, or a byte is neither 0 nor 1. Floating values are
            not checked.

    Gradient: of floating operands, as often as wanted.

    Reference: Zhou, Zhu, He, Wang, Yan, Tian, Yuan (2023), Spikformer: when spiking neural network
    meets transformer. The scale 1/8 is theirs, whatever the number of channels.
    """
    if (
        min(x.dim() for x in (q, k, v)) < 2
        or q.shape[-1] != k.shape[-1]
        or k.shape[-2] != v.shape[-2]
    ):
        raise ShapeError(
            "spike_attention needs q [..., tokens, channels], k [..., keys, channels] and v "
            f"[..., keys, values], got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}. "
            "Split the heads first."
        )
    leading = {x.shape[:-2] for x in (q, k, v)}
    if all(x.dtype in BYTES and x.device.type == "cpu" for x in (q, k, v)) and len(leading) == 1:
        return _attend(*(x.view(torch.uint8) for x in (q, k, v)), scale)  # type: ignore[no-any-return]
    if q.shape[-2] > q.shape[-1]:
        return scale * (q.float() @ spike_matmul(k.transpose(-1, -2), v))
    return scale * (spike_matmul(q, k.transpose(-1, -2)) @ v.float())


def _attend_fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return laid_out(q, v, lambda shape: q.new_empty(shape, dtype=torch.float32))


_attend = define(
    "spike_attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor", attend, _attend_fake
)
