"""Products of float32 that a GPU shall not round, and of bfloat16 that a CPU may not have.

In TF32 a GPU rounds the operands of a float32 product to 11 bits. torch takes it for convolutions
unless told otherwise, and for matrices where the user allows it. Sums of spikes with weights of 16
bits are exact in float32 and not in TF32.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
_lock = threading.Lock()
_inside = 0  # functions that run; the first one switches TF32 off, the last one back
_before: tuple[Any, Any] = (None, None)
# Without AVX-512 or the like, a bfloat16 product takes seven to ten times as long as float32's.
_HAS_BFLOAT16 = (
    torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are at least as fast as in float32."""
    return device.type != "cpu" or _HAS_BFLOAT16


def round_bfloat16(x: Tensor) -> Tensor:
    """``x`` rounded to bfloat16, in the type in which its product is faster: that one or float32.

    A product of bfloat16 has float32 sums, so both give the same but for its own rounding.
    """
    half = x.bfloat16()
    return half if has_bfloat16(x.device) else half.float()


def in_float32(function: F) -> F:
    """Have a function, or a method of a module, run without TF32 if its first tensor is on a GPU.

    Args:
        function: It takes tensors, by place or by name.
    """

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        given = (x for x in (*args, *named.values()) if isinstance(x, torch.Tensor))
        first = next(given, None)
        if first is None or first.device.type != "cuda":
            return function(*args, **named)
        with _without_tf32():
            return function(*args, **named)

    return cast(F, run)


@contextmanager
def _without_tf32() -> Iterator[None]:
    global _inside, _before
    with _lock:
        if not _inside:
            _before = _switch((_OFF, _OFF))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _switch(_before)


# From torch 2.9 on, the switches have another name, and reading the old one may fail.
_NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")
_NAME, _OFF = ("fp32_precision", "ieee") if _NEW else ("allow_tf32", False)


def _switch(values: tuple[Any, Any]) -> tuple[Any, Any]:
    """Set the switches of matrix products and of convolutions, and give what they were."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv if _NEW else backends.cudnn)
    before = tuple(getattr(place, _NAME) for place in places)
    for place, value in zip(places, values, strict=True):
        setattr(place, _NAME, value)
    return cast(tuple[Any, Any], before)
