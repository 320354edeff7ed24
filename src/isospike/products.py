"""Products of binary spikes: zeros and ones are exact in eight bits and in bfloat16.

``precision="exact"`` gives the float32 product; a CPU with a unit for it computes it in eight-bit
arithmetic (:mod:`isospike.kernels.product.int8`). ``precision="fast"`` takes bfloat16 weights and
gives a bfloat16 result, with float32 sums inside; it is faster on a processor with a bfloat16 unit,
and as fast as float32 on others.
"""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.kernels.product.int8 import FLOAT_PLANES, add_product, can_pack, pack_float32
from isospike.kernels.runtime.buffers import empty_pooled
from isospike.kernels.runtime.precision import has_bfloat16, in_float32, round_bfloat16
from isospike.kernels.runtime.torch_ops import define
from isospike.tensors import (
    check_devices,
    check_floating,
    check_tensor,
    is_transformed,
    unwrapped,
    without_autocast,
)

__all__ = ["spike_attention", "spike_linear", "spike_matmul"]

PRECISIONS = ("exact", "fast")
SPIKES = (torch.float32, torch.bfloat16, torch.uint8, torch.bool)
BYTES = (torch.uint8, torch.bool)
EXACT_COUNT = 256  # whole numbers up to here are exact in bfloat16
# Without a matrix unit for it, a processor's bfloat16 product is the slower one.
FAST_BFLOAT16 = torch.cpu._is_amx_tile_supported()


def spike_linear(
    s: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: str = "exact",
    pack: bool = False,
) -> Tensor:
    """Linear layer for spikes: ``s @ weight.T + bias``.

    Args:
        s: Spikes in {0, 1}, ``[..., inputs]``; float32, bfloat16, uint8 or bool. Whole numbers up
            to 255, sums of spikes, are as exact. Values on a GPU are not checked.
        weight: ``[outputs, inputs]``, float32.
        bias: ``[outputs]``, added in the result's type.
        precision: ``exact``: float32; each weight rounded to at most 2^-23 of the largest of its
            output, which together with the sums stays within the error of a float32 product;
            ``fast``: bfloat16 weights and result. Under ``torch.autocast`` it is always ``fast``.
        pack: Keep the spikes for the gradient as bits, an eighth of a byte each; for spikes in
            {0, 1} only, and a gradient taken once.

    Returns:
        ``[..., outputs]``, float32 or bfloat16.

    Raises:
        InputError: Something is not a tensor.
        ShapeError: The last axis is not the weight's, or the bias is not ``[outputs]``.
        RangeError: A type is not one of these, a floating spike is not a whole number in [0, 255],
            one to be packed is above 1, a weight is not finite (``exact``, with an eight-bit unit),
            or the devices differ.
        UnsupportedError: Unknown precision, a sparse, nested or quantised tensor, or a second
            derivative of a packed product.

    Gradient: of the weight, the bias and floating spikes, as often as wanted; its products are
    torch's own, in float32, or in bfloat16 if fast. Within ``torch.func`` (``vmap``, ``grad``) the
    product itself is torch's own too, and nothing is packed.

    >>> s = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8)
    >>> spike_linear(s, torch.tensor([[0.5, 1.0, -2.0]]))
    tensor([[-1.5000],
            [-2.0000]])
    """
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"spike_linear needs a known precision, got {precision!r}. Use one of "
            f"{', '.join(PRECISIONS)}."
        )
    check_tensor("spike_linear", "s", s)
    check_tensor("spike_linear", "weight", weight)
    check_devices("spike_linear", s=s, weight=weight)
    if s.dtype not in SPIKES or weight.dtype != torch.float32:
        raise RangeError(
            "spike_linear needs float32, bfloat16, uint8 or bool spikes and float32 weights, got "
            f"{s.dtype} and {weight.dtype}. Convert them first."
        )
    if weight.dim() != 2 or s.dim() == 0 or s.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"spike_linear needs spikes [..., inputs] and weights [outputs, inputs], got "
            f"{tuple(s.shape)} and {tuple(weight.shape)}. Put the features last."
        )
    if bias is not None:
        _check_bias(bias, weight)
    fast = precision == "fast" or _autocast(s.device)
    if is_transformed():
        _bytes(unwrapped(s))
        y = _multiply(s, weight.t(), torch.bfloat16 if fast else torch.float32)
    else:
        y = _SpikeLinear.apply(s, weight, fast, pack)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias.to(y.dtype)


def _check_bias(bias: Tensor, weight: Tensor) -> None:
    check_floating("spike_linear", "bias", bias)
    check_devices("spike_linear", bias=bias, weight=weight)
    if bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"spike_linear needs a bias of one value for each of {len(weight)} outputs, got "
            f"{tuple(bias.shape)}. Give the bias of this weight."
        )


def spike_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of two spike tensors, ``a @ b``: exact counts, in float32.

    With a bfloat16 unit the product is taken in bfloat16, 256 terms at a time, so that no count
    exceeds what bfloat16 holds exactly.

    Args:
        a: Spikes in {0, 1}, ``[..., rows, terms]``; float32, bfloat16, uint8 or bool.
        b: Spikes in {0, 1}, ``[..., terms, columns]``.

    Returns:
        Counts, float32, ``[..., rows, columns]``, exact up to 2^24.

    Raises:
        InputError: Something is not a tensor.
        ShapeError: The inner axes differ, or the others do not broadcast.
        RangeError: A type is not one of these, or the devices differ. That the values are 0 and 1
            is not checked.
        UnsupportedError: A sparse, nested or quantised tensor.

    Gradient: of floating operands, as often as wanted; products with it are float32.

    >>> spike_matmul(torch.tensor([[1.0, 0.0, 1.0]]), torch.ones(3, 1))
    tensor([[2.]])
    """
    _check_spikes("spike_matmul", a=a, b=b)
    if (
        min(a.dim(), b.dim()) < 2
        or a.shape[-1] != b.shape[-2]
        or not _broadcast(a.shape[:-2], b.shape[:-2])
    ):
        raise ShapeError(
            f"spike_matmul needs [..., rows, terms] and [..., terms, columns], got "
            f"{tuple(a.shape)} and {tuple(b.shape)}. Transpose one, so that the inner axes agree."
        )
    if is_transformed():
        return _multiply(a, b)
    y: Tensor = _SpikeMatmul.apply(a, b)  # type: ignore[no-untyped-call]
    return y


@in_float32
def spike_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 0.125) -> Tensor:
    """Attention between spikes, without a softmax: ``scale * q k^T v``, head by head.

    Every product counts spikes, so it may be taken in either order. Bytes on a CPU become sums of
    rows, exact. Elsewhere it is ``q (k^T v)`` where there are more tokens than channels, ``(q k^T)
    v`` else: the first product is exact in bfloat16 (see :func:`spike_matmul`), the second one
    takes counts and is float32, exact up to 2^24, under ``torch.autocast`` too.

    Args:
        q: Spikes in {0, 1}, ``[..., tokens, channels]``, one head; float32, bfloat16, uint8, bool.
        k: Spikes, ``[..., keys, channels]``.
        v: Spikes, ``[..., keys, values]``.
        scale: Multiplies the counts; a power of two keeps them exact.

    Returns:
        ``[..., tokens, values]``, float32.

    Raises:
        InputError: Something is not a tensor.
        ShapeError: The axes do not fit each other.
        RangeError: A type is not one of these, the devices differ, or one of the bytes that are
            summed is neither 0 nor 1. Floating values are not checked.
        UnsupportedError: A sparse, nested or quantised tensor.

    Gradient: of floating operands, as often as wanted.

    >>> q = k = v = torch.ones(2, 3, 4, dtype=torch.uint8)  # heads, tokens, channels of a head
    >>> spike_attention(q, k, v)[0, 0]
    tensor([1.5000, 1.5000, 1.5000, 1.5000])

    Reference: Zhou, Zhu, He, Wang, Yan, Tian, Yuan (2023), Spikformer: when spiking neural network
    meets transformer. The scale 1/8 is theirs, whatever the number of channels.
    """
    _check_spikes("spike_attention", q=q, k=k, v=v)
    leading = [x.shape[:-2] for x in (q, k, v)]
    if (
        min(x.dim() for x in (q, k, v)) < 2
        or q.shape[-1] != k.shape[-1]
        or k.shape[-2] != v.shape[-2]
        or not _broadcast(*leading)
    ):
        raise ShapeError(
            "spike_attention needs q [..., tokens, channels], k [..., keys, channels] and v "
            f"[..., keys, values], got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}. "
            "Split the heads first."
        )
    bytes_ = all(x.dtype in BYTES and x.device.type == "cpu" and x.numel() > 0 for x in (q, k, v))
    if bytes_ and leading[0] == leading[1] == leading[2] and not is_transformed():
        return _attend(*(x.view(torch.uint8) for x in (q, k, v)), scale)  # type: ignore[no-any-return]
    if q.shape[-2] > q.shape[-1]:
        return scale * _multiply(q, spike_matmul(k.transpose(-1, -2), v))
    return scale * _multiply(spike_matmul(q, k.transpose(-1, -2)), v)


def _check_spikes(owner: str, **spikes: Tensor) -> None:
    for name, x in spikes.items():
        check_tensor(owner, name, x)
        if x.dtype not in SPIKES:
            raise RangeError(
                f"{owner} needs float32, bfloat16, uint8 or bool spikes, got {x.dtype} as {name}. "
                "Convert them first."
            )
    check_devices(owner, **spikes)


def _broadcast(*shapes: Sequence[int]) -> bool:
    """Whether shapes may be broadcast to each other."""
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        shared = 1
        for size in sizes:
            if size != 1 and shared != 1 and size != shared:
                return False
            shared = shared if size == 1 else size
    return True


def _autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _multiply(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``a @ b`` in this type, under autocast too."""
    with without_autocast(a.device):
        if dtype == torch.bfloat16:
            return (round_bfloat16(a) @ round_bfloat16(b)).to(dtype)
        return a.to(dtype) @ b.to(dtype)


def pack_spikes(s: Tensor) -> Tensor:
    """Binary ``s [..., n]`` as bytes ``[..., ceil(n / 8)]``: entry i is bit ``i % 8`` of byte
    ``i // 8``."""
    padded = F.pad(s.to(torch.uint8), (0, -s.shape[-1] % 8))
    parts = padded.shape[-1] // 8
    bits = padded.view(*s.shape[:-1], parts, 8) << torch.arange(
        8, dtype=torch.uint8, device=s.device
    )
    return bits.sum(-1, dtype=torch.uint8)


def unpack_spikes(packed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The first ``count`` entries that :func:`pack_spikes` packed, as ``dtype``."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    spikes: Tensor = (bits & 1).flatten(-2)[..., :count].to(dtype)
    return spikes


def _rows(s: Tensor) -> Tensor:
    """``s [..., channels]`` as a matrix; no size is guessed, so that any may be 0."""
    return s.reshape(math.prod(s.shape[:-1]), s.shape[-1])


@in_float32
def _run(s: Tensor, weight: Tensor, fast: bool, binary: bool) -> Tensor:
    shape, dtype = (*s.shape[:-1], len(weight)), torch.bfloat16 if fast else torch.float32
    counts, weight = _bytes(_rows(s)).contiguous(), weight.detach().contiguous()
    if binary:
        _check_binary(counts)
    out = empty_pooled(shape, dtype, s.device)
    flat = out.view(len(counts), len(weight))
    if not s.numel() or not weight.numel():
        flat.zero_()
    elif fast and has_bfloat16(s.device):
        torch.mm(counts.bfloat16(), weight.bfloat16().t(), out=flat)
    elif fast:
        flat.copy_(_multiply(counts, weight.t(), dtype))
    elif can_pack(weight, FLOAT_PLANES):
        add_product(flat.zero_(), counts, pack_float32(weight))
    else:
        torch.mm(counts.float(), weight.t(), out=flat)
    return out


def _run_fake(s: Tensor, weight: Tensor, fast: bool, binary: bool) -> Tensor:
    dtype = torch.bfloat16 if fast else torch.float32
    return s.new_empty((*s.shape[:-1], len(weight)), dtype=dtype)


def _bytes(s: Tensor) -> Tensor:
    """Spikes as bytes; floating ones must be whole numbers that fit."""
    if s.dtype == torch.bool:
        return s.view(torch.uint8)
    counts = s.to(torch.uint8)
    if (
        s.dtype.is_floating_point
        and s.device.type == "cpu"
        and not torch.equal(counts.to(s.dtype), s)
    ):
        wrong = s[counts.to(s.dtype) != s]
        raise RangeError(
            f"spike_linear needs spikes, whole numbers in [0, 255], got {wrong[0].item():g} "
            f"({wrong.numel()} of {s.numel()} are not). Use torch.nn.functional.linear for others."
        )
    return counts


def _check_binary(counts: Tensor) -> None:
    if counts.device.type == "cpu" and counts.numel() and (most := int(counts.max())) > 1:
        raise RangeError(
            f"spike_linear needs spikes of 0 or 1 to pack them as bits, got {most} "
            f"({int((counts > 1).sum())} of {counts.numel()} are above 1). Leave pack out."
        )


_linear = define(
    "spike_linear(Tensor s, Tensor weight, bool fast, bool binary) -> Tensor", _run, _run_fake
)


def _laid_out(q: Tensor, v: Tensor, create: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """The result's memory, where the heads of a token are neighbours if those of q are."""
    shape = [*q.shape[:-1], v.shape[-1]]
    if q.dim() > 2 and q.stride(-3) < q.stride(-2):
        shape[-3], shape[-2] = shape[-2], shape[-3]
        return create(shape).transpose(-3, -2)
    return create(shape)


def _run_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    from isospike.kernels.product.attention import attend  # imports the compiler

    out = _laid_out(q, v, lambda shape: empty_pooled(shape, torch.float32, q.device))
    attend(q, k, v, scale, out)
    return out


def _run_attention_fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return _laid_out(q, v, lambda shape: q.new_empty(shape, dtype=torch.float32))


_attend = define(
    "spike_attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor",
    _run_attention,
    _run_attention_fake,
)


class _SpikeLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, fast: bool, pack: bool) -> Tensor:
        ctx.save_for_backward(pack_spikes(s) if pack else s, weight)
        ctx.fast, ctx.packed, ctx.dtype = fast, s.shape[-1] if pack else None, s.dtype
        out: Tensor = _linear(s, weight, fast, pack)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        s, weight = ctx.saved_tensors
        work = torch.bfloat16 if ctx.fast else torch.float32
        if ctx.packed is not None:
            if torch.is_grad_enabled():
                raise UnsupportedError(
                    "spike_linear needs pack=False to be differentiated twice, got pack=True. "
                    "Leave pack out."
                )
            s = unpack_spikes(s, ctx.packed, work)
        g = grads[0].to(work)
        grad_s = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_s = _multiply(g, weight, work).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _multiply(_rows(g).t(), _rows(s), work).to(weight.dtype)
        return grad_s, grad_weight, None, None


class _SpikeMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        if a.device.type == "cpu" and not FAST_BFLOAT16:
            return _multiply(a, b)
        a, b = a.bfloat16(), b.bfloat16()
        terms = a.shape[-1]
        parts = [slice(i, i + EXACT_COUNT) for i in range(0, max(1, terms), EXACT_COUNT)]
        out = (a[..., parts[0]] @ b[..., parts[0], :]).float()
        for part in parts[1:]:
            out += a[..., part] @ b[..., part, :]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad = _multiply(grads[0], b.transpose(-1, -2))
            grad_a = grad.sum_to_size(a.shape).to(a.dtype)
        if ctx.needs_input_grad[1]:
            grad = _multiply(a.transpose(-1, -2), grads[0])
            grad_b = grad.sum_to_size(b.shape).to(b.dtype)
        return grad_a, grad_b
