"""Functions of torch that are no product, each as a few that have a circuit.

As :mod:`isospike.porting.lowering` does for products. What depends on no activation, as the cosine
of a position, is left to torch; so is a function without a circuit.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.porting.lowering import Lowering, Multiplier

_T = torch.Tensor


def _times(m: Multiplier, a: Tensor, b: Tensor) -> Tensor:
    y = m.multiply(a, b)
    return a * b if y is NotImplemented else y


def _plain(form: str) -> Lowering:
    def lowered(m: Multiplier, input: Tensor, *_: Any, **__: Any) -> Any:
        return m.compute(form, input)

    return lowered


def _in_place(lowering: Lowering) -> Lowering:
    def lowered(m: Multiplier, input: Tensor, *args: Any, **named: Any) -> Any:
        y = lowering(m, input, *args, **named)
        return y if y is NotImplemented else input.copy_(y)

    return lowered


def _softplus(m: Multiplier, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if beta == 1:
        return m.compute("softplus", input)
    y = m.compute("softplus", input * beta)
    return y if y is NotImplemented else y / beta


def _log_sigmoid(m: Multiplier, input: Tensor) -> Any:
    y = m.compute("softplus", -input)
    return y if y is NotImplemented else -y


def _mish(m: Multiplier, input: Tensor, inplace: bool = False) -> Any:
    y = m.compute("softplus", input)
    return y if y is NotImplemented else _times(m, input, m.compute("tanh", y))


def _glu(m: Multiplier, input: Tensor, dim: int = -1) -> Any:
    a, b = input.chunk(2, dim)
    y = m.compute("sigmoid", b)
    return y if y is NotImplemented else _times(m, a, y)


def _softmax(m: Multiplier, input: Tensor, dim: Any = None, dtype: Any = None, **named: Any) -> Any:
    dtype = named.get("dtype", dtype) if "_stacklevel" in named else dtype
    if not isinstance(dim, int) or not input.is_floating_point() or not input.dim():
        return NotImplemented
    return m.compute("softmax", input if dtype is None else input.to(dtype), dim)


_POWERS = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


def _pow(m: Multiplier, input: Tensor, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or not input.is_floating_point():
        return NotImplemented
    if float(exponent) in _POWERS:
        return m.compute(_POWERS[float(exponent)], input)
    if exponent not in (2, 3, 4) or input.numel() < 2:
        return NotImplemented
    square = m.multiply(input, input)
    if square is NotImplemented or exponent == 2:
        return square
    return _times(m, square, input if exponent == 3 else square)


def _square(m: Multiplier, input: Tensor) -> Any:
    return _pow(m, input, 2)


def _div(m: Multiplier, input: Any, other: Any, *, rounding_mode: Any = None) -> Any:
    real = isinstance(other, Tensor) and other.is_floating_point()
    if not real or rounding_mode is not None:
        return NotImplemented
    return m.compute("reciprocal", other, input if isinstance(input, Tensor) else float(input))


def _divided_by(m: Multiplier, input: Tensor, other: Any) -> Any:
    return _div(m, other, input)


def _squares(m: Multiplier, x: Tensor, dim: Any, keepdim: bool) -> Any:
    if dim is None or not x.is_floating_point():
        return NotImplemented
    y = _pow(m, x, 2)
    return y if y is NotImplemented else y.sum(dim, keepdim)


def _norm(
    m: Multiplier, input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    y = _squares(m, input, dim, keepdim) if p in (2, None, "fro") else NotImplemented
    return y if y is NotImplemented else _else(m.compute("sqrt", y), y.sqrt)


def _vector_norm(m: Multiplier, x: Tensor, ord: Any = 2, *args: Any, **named: Any) -> Any:
    return _norm(m, x, ord, *args, **named)


def _normalize(
    m: Multiplier, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Any:
    y = _squares(m, input, dim, True) if p == 2 else NotImplemented
    if y is NotImplemented:
        return y
    y = y.clamp_min(max(eps**2, torch.finfo(y.dtype).tiny))
    return _times(m, input, _else(m.compute("rsqrt", y), y.rsqrt))


def _else(y: Any, function: Any) -> Tensor:
    found: Tensor = function() if y is NotImplemented else y
    return found


def _var(
    m: Multiplier, input: Tensor, dim: Any = None, unbiased: bool | None = None,
    keepdim: bool = False, *, correction: Any = None,
) -> Any:  # fmt: skip
    if dim is None or isinstance(dim, bool):
        return NotImplemented
    y = _squares(m, input - input.mean(dim, keepdim=True), dim, keepdim)
    if y is NotImplemented:
        return y
    less = correction if correction is not None else int(unbiased is not False)
    count = math.prod(input.shape[d] for d in (dim if isinstance(dim, Sequence) else (dim,)))
    return y / max(count - less, 0)


def _std(m: Multiplier, input: Tensor, *args: Any, **named: Any) -> Any:
    y = _var(m, input, *args, **named)
    return y if y is NotImplemented else _else(m.compute("sqrt", y), y.sqrt)


def _layer_norm(
    m: Multiplier, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, *_: Any, form: str = "layer norm",
) -> Any:  # fmt: skip
    axes = len(normalized_shape)
    y = m.compute(form, input.flatten(-axes), eps=float(eps))
    return y if y is NotImplemented else _scaled(y.reshape(input.shape), weight, bias)


def _rms_norm(
    m: Multiplier, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:  # fmt: skip
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _layer_norm(m, input, normalized_shape, weight, None, eps, form="rms norm")


def _group_norm(
    m: Multiplier, input: Tensor, num_groups: int, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, *_: Any,
) -> Any:  # fmt: skip
    y = m.compute("layer norm", input.reshape(len(input), num_groups, -1), eps=float(eps))
    if y is NotImplemented:
        return y
    shape = (-1, *[1] * (input.dim() - 2))
    weight, bias = (None if t is None else t.view(shape) for t in (weight, bias))
    return _scaled(y.reshape(input.shape), weight, bias)


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _every(*names: str) -> list[Any]:
    """The functions of these names, of torch, of a tensor and of torch.nn.functional."""
    special: Any = torch._C
    places: tuple[Any, ...] = (torch, _T, F, special._nn, special._special)
    return [getattr(place, name) for name in names for place in places if hasattr(place, name)]


_UNARY = {
    "gelu": ("gelu",), "silu": ("silu",), "tanh": ("tanh",), "erf": ("erf", "special_erf"),
    "sigmoid": ("sigmoid", "expit", "special_expit"), "exp": ("exp",), "rsqrt": ("rsqrt",),
    "sqrt": ("sqrt",), "reciprocal": ("reciprocal",),
}  # fmt: skip
FUNCTIONS: dict[Any, Lowering] = {
    **{f: _plain(form) for form, names in _UNARY.items() for f in _every(*names)},
    **{
        f: _in_place(_plain(form))
        for form, names in _UNARY.items()
        for f in _every(*(f"{n}_" for n in names))
    },
    **dict.fromkeys(_every("softplus"), _softplus),
    **dict.fromkeys(_every("log_sigmoid", "logsigmoid"), _log_sigmoid),
    **dict.fromkeys(_every("mish"), _mish),
    **dict.fromkeys(_every("glu"), _glu),
    **dict.fromkeys(_every("softmax", "special_softmax"), _softmax),
    **dict.fromkeys((*_every("pow"), _T.__pow__), _pow),
    **dict.fromkeys(_every("square"), _square),
    **dict.fromkeys(_every("pow_"), _in_place(_pow)),
    **dict.fromkeys(_every("square_"), _in_place(_square)),
    **dict.fromkeys((*_every("div", "true_divide", "divide"), _T.__truediv__), _div),
    **dict.fromkeys((*_every("div_", "true_divide_", "divide_"), _T.__itruediv__), _in_place(_div)),
    **dict.fromkeys((_T.__rdiv__, _T.__rtruediv__), _divided_by),
    **dict.fromkeys(_every("norm"), _norm),
    **dict.fromkeys((torch.linalg.vector_norm, torch.linalg.norm), _vector_norm),
    **dict.fromkeys(_every("normalize"), _normalize),
    **dict.fromkeys(_every("var"), _var),
    **dict.fromkeys(_every("std"), _std),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), _layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), _rms_norm),
    **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
}
"""By function of torch."""
