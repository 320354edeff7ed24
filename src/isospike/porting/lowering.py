"""The products of torch, each as one of four: with a weight, of two activations, convolution,
attention.

What a model calls, ``einsum`` say, is rearranged until a :class:`Multiplier` can compute it; what
does not multiply is done as torch does it.
"""

import functools
import math
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_TAPS = 8  # of a short convolution


class Convolution(NamedTuple):
    """How a kernel moves over its padded input; a number for each spatial axis.

    Attributes:
        stride: Between two outputs.
        dilation: Between two entries of the kernel.
        groups: Of channels that are convolved apart.
        padding: Zeros before and after.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return len(self.stride)

    def pad(self, x: Tensor) -> Tensor:
        """``x`` with its padding."""
        if not any(self.padding):
            return x
        return F.pad(x, [n for axis in reversed(self.padding) for n in (axis, axis)])

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of a padded input."""
        function: Any = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        y: Tensor = function(
            x, weight, stride=self.stride, dilation=self.dilation, groups=self.groups
        )
        return y


class Multiplier(ABC):
    """Computes products.

    Attributes:
        spiking: Whether it computes other functions too.
    """

    spiking = False

    @abstractmethod
    def is_weight(self, x: Tensor) -> bool:
        """Whether the model stores ``x``, or a tensor that it is a view of."""

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x [..., in]`` times a stored ``weight [out, in]``."""

    @abstractmethod
    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a [..., m, k]`` times ``b [..., k, n]``; one of them may be made of weights alone."""

    def matmul_of_one(self, a: Tensor, b: Tensor) -> Any:
        """The same where one product is summed; NotImplemented unless it is known that elsewhere
        other numbers are, as over the keys of a longer text."""
        return NotImplemented

    @abstractmethod
    def multiply(self, a: Tensor, b: Tensor) -> Any:
        """``a b``, entry by entry; NotImplemented if nothing adds up what it gives."""

    @abstractmethod
    def compute(self, form: str, x: Tensor, *others: Any, **how: Any) -> Any:
        """A function of ``x`` that is not a product; NotImplemented to have torch compute it."""

    @abstractmethod
    def convolve(self, x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
        """``x [batch, in, ...]``, already padded, with ``weight [out, in / groups, ...]``."""

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        """Softmax attention, ``[..., heads, tokens, channels]``, the mask added to the scores."""

    @abstractmethod
    def begin_step(self, first: bool) -> None:
        """A step of a recurrence begins; the products of later ones are those of the first."""


Lowering = Callable[..., Any]
"""Called with a multiplier and the arguments of a function of torch; NotImplemented if that does
not multiply."""


def _linear(m: Multiplier, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if weight.dim() != 2:
        return NotImplemented
    y = _matmul(m, input, weight.t())
    return y if y is NotImplemented or bias is None else y + bias


def matrices(m: Multiplier, a: Tensor, b: Tensor) -> Tensor:
    """``a [..., m, k]`` times ``b [..., k, n]``, whatever they are."""
    y: Any = _matmul(m, a, b)
    return a @ b if y is NotImplemented else y


def entrywise(m: Multiplier, a: Tensor, b: Tensor) -> Tensor:
    """``a b``, entry by entry."""
    y: Any = _mul(m, a, b)
    return a * b if y is NotImplemented else y


def _two(m: Multiplier, *operands: Tensor, **named: Tensor) -> Any:
    return _matmul(m, *operands, *named.values())


def _matmul(m: Multiplier, a: Tensor, b: Tensor) -> Any:
    if not _multiplies(a, b) or not a.dim() * b.dim():
        return NotImplemented
    if a.shape[-1] == 1:
        return m.matmul_of_one(a, b)
    if not a.numel() * b.numel():  # a router sent no token here
        return NotImplemented
    if a.dim() == 1:
        y = _matmul(m, a[None], b)
        return y if y is NotImplemented else y.squeeze(-1 if b.dim() == 1 else -2)
    if b.dim() == 1:
        y = _matmul(m, a, b[:, None])
        return y if y is NotImplemented else y.squeeze(-1)

    def linear(x: Tensor, weight: Tensor, _: int) -> Tensor:
        return m.linear(x, weight)

    if m.is_weight(b):
        while b.dim() > 2 and not b.stride(0) and b.dim() <= a.dim():  # one for all of a batch
            wide: Any = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
            a, b = a.expand(*wide, *a.shape[-2:]), b[0]
        return with_weight(linear, a, b)
    if m.is_weight(a):
        return with_weight(linear, b.mT, a.mT).mT
    return m.matmul(a, b)


def with_weight(
    linear: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, weight: Tensor
) -> Tensor:
    """A product with a weight, or with a stack of them, one by one.

    Args:
        linear: Computes ``x [..., k]`` times a weight ``[n, k]``, of which it is given the number.
        x: ``[..., m, k]``.
        weight: ``[..., k, n]``.
    """
    if weight.dim() == 2:
        return linear(x, weight.t(), 0)
    many = weight.shape[:-2]
    wide: Any = torch.broadcast_shapes(x.shape[:-2], many)  # type: ignore[no-untyped-call]
    x = x.expand(*wide, *x.shape[-2:])
    x = x.flatten(x.dim() - weight.dim(), -3)  # the axes of ``many``, as one
    parts = [linear(x.select(-3, i), _matrix(weight, i).t(), i) for i in range(math.prod(many))]
    y = torch.stack(parts, -3)
    return y.view(*y.shape[:-3], *many, *y.shape[-2:])


def _matrix(weight: Tensor, index: int) -> Tensor:
    """One matrix of a stack, as a view."""
    for axis, size in enumerate(weight.shape[:-2]):
        rest = math.prod(weight.shape[axis + 1 : -2])
        weight = weight[index // rest % size]
    return weight


def _mul(m: Multiplier, a: Any, b: Any) -> Any:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return NotImplemented
    if a.is_complex() and b.is_complex():
        y = m.multiply(a, b)
        if y is not NotImplemented:
            return y
        real = entrywise(m, a.real, b.real) - entrywise(m, a.imag, b.imag)
        return torch.complex(real, entrywise(m, a.real, b.imag) + entrywise(m, a.imag, b.real))
    if not all(x.is_floating_point() or x.is_complex() for x in (a, b)):
        return NotImplemented
    return m.multiply(a, b) if a.dim() and b.dim() else NotImplemented


def _mul_(m: Multiplier, a: Tensor, b: Any) -> Any:
    y = _mul(m, a, b)
    return y if y is NotImplemented else a.copy_(y)


def _addmm(
    m: Multiplier, input: Tensor, *operands: Tensor, beta: float = 1, alpha: float = 1, **named: Any
) -> Any:
    y = _two(m, *operands, **named)
    return y if y is NotImplemented else beta * input + alpha * y


def _addbmm(
    m: Multiplier, input: Tensor, *operands: Tensor, beta: float = 1, alpha: float = 1, **named: Any
) -> Any:
    y = _two(m, *operands, **named)
    return y if y is NotImplemented else beta * input + alpha * y.sum(0)


def _reflected(m: Multiplier, b: Tensor, a: Tensor) -> Any:
    return _matmul(m, a, b)


def _tensordot(m: Multiplier, a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> Any:
    if isinstance(dims, Tensor) or not _multiplies(a, b):
        return NotImplemented
    left = list(range(a.dim() - dims, a.dim())) if isinstance(dims, int) else list(dims[0])
    right = list(range(dims)) if isinstance(dims, int) else list(dims[1])
    letters = "abcdefghijklmnopqrstuvwxyz"
    names_a = list(letters[: a.dim()])
    names_b = list(letters[a.dim() : a.dim() + b.dim()])
    for i, j in zip(left, right, strict=True):
        names_b[j] = names_a[i]
    kept = [n for n in (*names_a, *names_b) if not (n in names_a and n in names_b)]
    return _einsum(m, f"{''.join(names_a)},{''.join(names_b)}->{''.join(kept)}", a, b)


def _inner(m: Multiplier, input: Tensor, other: Tensor) -> Any:
    if other.dim() > 2:
        return _tensordot(m, input, other, ([-1 % input.dim()], [-1 % other.dim()]))
    return _matmul(m, input, other.t() if other.dim() == 2 else other)


def _multi_dot(m: Multiplier, tensors: Sequence[Tensor], **_: Any) -> Any:
    y = tensors[0]
    for x in tensors[1:]:
        product = _matmul(m, y, x)
        y = y @ x if product is NotImplemented else product
    return y


def _bilinear(
    m: Multiplier, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    y = _matmul(m, input1, weight.transpose(1, 2).flatten(0, 1).t())
    if y is NotImplemented:
        return y
    y = y.view(*y.shape[:-1], weight.shape[0], weight.shape[2])
    y = m.matmul(y, input2[..., None])[..., 0]
    return y if bias is None else y + bias


def _einsum(m: Multiplier, equation: Any, *operands: Any) -> Any:
    if not isinstance(equation, str):
        return NotImplemented
    tensors = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)
    if len(tensors) < 2 or not _multiplies(*tensors):
        return NotImplemented
    inputs, output = _subscripts(equation, tensors)
    if any(len(set(names)) < len(names) for names in inputs):  # a diagonal
        return NotImplemented
    left, x = inputs[0], tensors[0]
    for i, (right, y) in enumerate(zip(inputs[1:], tensors[1:], strict=True), 1):
        later = {*output, *(n for names in inputs[i + 1 :] for n in names)}
        kept = [n for n in dict.fromkeys((*left, *right)) if n in later]
        x, left = _pair(m, x, left, y, right, kept)
    return x.permute([left.index(n) for n in output])


def _subscripts(equation: str, tensors: Sequence[Tensor]) -> tuple[list[list[str]], list[str]]:
    """The name of each axis of the operands and of the result; an ellipsis becomes digits."""
    given, arrow, output = equation.replace(" ", "").partition("->")
    parts, wide = given.split(","), 0
    for part, x in zip(parts, tensors, strict=True):
        wide = max(wide, x.dim() - len(part.replace("...", "")) if "..." in part else 0)
    dots = [str(i) for i in range(wide)]

    def names(part: str, count: int) -> list[str]:
        before, dotted, after = part.partition("...")
        return [*before, *(dots[len(dots) - count :] if dotted else []), *after]

    inputs = [names(p, x.dim() - len(p.replace("...", "")))
              for p, x in zip(parts, tensors, strict=True)]  # fmt: skip
    if not arrow:
        every = [n for part in inputs for n in part]
        return inputs, dots + sorted(n for n in set(every) if every.count(n) == 1 and n.isalpha())
    return inputs, names(output, wide)


def _pair(
    m: Multiplier, x: Tensor, left: list[str], y: Tensor, right: list[str], kept: list[str]
) -> tuple[Tensor, list[str]]:
    """One product of two operands; the names of its axes."""
    for names, other in ((left, right), (right, left)):
        alone = [n for n in names if n not in other and n not in kept]
        if alone and names is left:
            x, left = x.sum([left.index(n) for n in alone]), [n for n in left if n not in alone]
        elif alone:
            y, right = y.sum([right.index(n) for n in alone]), [n for n in right if n not in alone]
    summed = [n for n in left if n in right and n not in kept]
    batch = [n for n in left if n in right and n in kept]
    rows, columns = ([n for n in a if n not in b] for a, b in ((left, right), (right, left)))
    size = {n: max(s) for n in {*left, *right}
            for s in [[t.shape[names.index(n)] for t, names in ((x, left), (y, right))
                       if n in names]]}  # fmt: skip

    def shaped(t: Tensor, names: list[str], groups: Sequence[list[str]]) -> Tensor:
        t = t.permute([names.index(n) for group in groups for n in group])
        t = t.expand([size[n] for group in groups for n in group])
        merged = [math.prod(size[n] for n in group) for group in groups[1:]]
        return t.reshape([*(size[n] for n in groups[0]), *merged])

    a, b = shaped(x, left, (batch, rows, summed)), shaped(y, right, (batch, summed, columns))
    product = _matmul(m, a, b) if summed else NotImplemented
    z = a @ b if product is NotImplemented else product
    shape = [size[n] for n in (*batch, *rows, *columns)]
    return z.reshape(shape), [*batch, *rows, *columns]


def _batched(lowered: Lowering, dims: int) -> Lowering:
    """The lowering of a convolution, also of one image without an axis for the batch."""

    def any_lowered(m: Multiplier, input: Tensor, *args: Any, **named: Any) -> Any:
        if input.dim() == dims + 1:
            return lowered(m, input[None], *args, **named)[0]
        return lowered(m, input, *args, **named)

    return any_lowered


def _convolution(dims: int) -> Lowering:
    def lowered(
        m: Multiplier,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        stride, dilation = _each(stride, dims), _each(dilation, dims)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            x = F.pad(input, [n for t in reversed(total) for n in (t // 2, t - t // 2)])
        else:
            zeros = (0,) * dims if padding == "valid" else _each(padding, dims)
            x = Convolution(stride, dilation, groups, zeros).pad(input)
        how = Convolution(stride, dilation, groups)
        each = dims == 1 and groups == x.shape[1] > 1 and 1 < weight.shape[2] <= MOST_TAPS
        y = _tapped(m, x, weight, how) if each else m.convolve(x, weight, how)
        return y if bias is None else y + bias.view(-1, *[1] * dims)

    return _batched(lowered, dims)


def _tapped(m: Multiplier, x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
    """A short convolution of each channel: every position by every entry of the kernel, then their
    sums; so a position is encoded on its own, whatever stands after it."""
    taps = weight.shape[2]
    y = m.convolve(x, weight.reshape(-1, 1, 1), Convolution((1,), (1,), how.groups))
    y = y.view(len(y), -1, taps, y.shape[-1])
    (stride,), (dilation,) = how.stride, how.dilation
    last = x.shape[2] - dilation * (taps - 1)
    parts = (y[:, :, k, k * dilation : k * dilation + last : stride] for k in range(taps))
    z: Tensor = functools.reduce(torch.add, parts)
    return z


def _transposed(dims: int) -> Lowering:
    """The input is spread by the stride, then convolved with the mirrored kernel."""

    def lowered(
        m: Multiplier,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        stride, padding, output_padding, dilation = (
            _each(v, dims) for v in (stride, padding, output_padding, dilation)
        )
        sizes = [s * (n - 1) + 1 for s, n in zip(stride, input.shape[2:], strict=True)]
        spread = input.new_zeros(*input.shape[:2], *sizes)
        places: Any = (..., *(slice(None, None, s) for s in stride))
        spread[places] = input
        pads = [(d * (k - 1) - p, d * (k - 1) - p + o) for d, k, p, o in
                zip(dilation, weight.shape[2:], padding, output_padding, strict=True)]  # fmt: skip
        x = F.pad(spread, [n for pair in reversed(pads) for n in pair])
        kernel = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        kernel = kernel.flip(*range(2, 2 + dims))
        y = m.convolve(x, kernel, Convolution((1,) * dims, dilation, groups))
        return y if bias is None else y + bias.view(-1, *[1] * dims)

    return _batched(lowered, dims)


def _resized(function: Any) -> Lowering:
    """Two products with constant coefficients: those that an image of one row, or column, takes."""

    def lowered(
        m: Multiplier, input: Tensor, size: Any, align_corners: bool, scales: Any = None, *more: Any
    ) -> Any:
        if more or not _multiplies(input):
            return NotImplemented
        rows, columns = input.shape[-2:]
        if size is not None:
            height, width = size
        else:
            height, width = (int(n * s) for n, s in zip((rows, columns), scales, strict=True))
        if scales is not None and [height, width] != [rows * scales[0], columns * scales[1]]:
            return NotImplemented  # it would take the scale for the ratio of the sizes

        def matrix(old: int, new: int) -> Tensor:
            image = torch.eye(old, dtype=input.dtype, device=input.device).view(1, old, old, 1)
            y: Tensor = function(image, [new, 1], align_corners)[0, :, :, 0]
            return y  # [old, new]

        y = m.matmul(matrix(rows, height).t(), input)
        return m.matmul(y, matrix(columns, width))

    return lowered


def _attention(
    m: Multiplier,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    mask = attn_mask
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        mask = mask.tril()
    if mask is not None and mask.dtype == torch.bool:
        added = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
        mask = added.masked_fill_(~mask, torch.finfo(query.dtype).min)
    return m.attend(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale)


def _multiplies(*operands: Tensor) -> bool:
    """Whether the operands hold real numbers."""
    return all(x.is_floating_point() for x in operands)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * dims if len(value) == 1 else tuple(value)


def unwrapped(function: Any) -> Any:
    """A function that torch writes in Python, so that a mode sees what it calls."""
    asked = [name for name in function.__globals__ if name.startswith("has_torch_function")]
    seen = {**function.__globals__, **dict.fromkeys(asked, lambda *_: False)}
    found = types.FunctionType(function.__code__, seen, None, function.__defaults__)
    found.__kwdefaults__ = function.__kwdefaults__
    return found


_T = torch.Tensor
LOWERINGS: dict[Any, Lowering] = {
    torch._C._nn.linear: _linear,
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, torch.linalg.matmul, _T.matmul,
         _T.mm, _T.bmm, _T.mv, _T.dot),
        _two,
    ),
    _T.__rmatmul__: _reflected,
    **dict.fromkeys(
        (torch.mul, torch.multiply, _T.mul, _T.multiply, _T.__mul__, _T.__rmul__), _mul
    ),
    **dict.fromkeys((_T.mul_, _T.multiply_, _T.__imul__), _mul_),
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.addmv, _T.addmm, _T.baddbmm, _T.addmv),
                    _addmm),
    **dict.fromkeys((torch.addbmm, _T.addbmm), _addbmm),
    **dict.fromkeys((torch.inner, _T.inner), _inner),
    torch.tensordot: _tensordot,
    torch.einsum: _einsum,
    torch.linalg.multi_dot: _multi_dot,
    torch.bilinear: _bilinear,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed(1),
    torch.conv_transpose2d: _transposed(2),
    torch.conv_transpose3d: _transposed(3),
    torch._C._nn.scaled_dot_product_attention: _attention,
    torch._C._nn.upsample_bilinear2d: _resized(torch._C._nn.upsample_bilinear2d),
    torch._C._nn.upsample_bicubic2d: _resized(torch._C._nn.upsample_bicubic2d),
}  # fmt: skip
"""By function of torch."""

WRITTEN_IN_PYTHON = (F.multi_head_attention_forward, F.interpolate)
"""Functions that call those."""
