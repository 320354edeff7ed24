"""What public functions ask of the tensors that they are given, at their door."""

import numbers
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from isospike.errors import InputError, RangeError, UnsupportedError, first_sentence

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_tensor(owner: str, name: str, x: object, *, read: bool = False) -> None:
    """Check that something is a dense tensor.

    Args:
        owner: The public function or class, first word of the message.
        name: What it calls this argument.
        x: The argument.
        read: Whether its values are read, which a tensor on ``meta`` does not have.

    Raises:
        InputError: It is not a tensor.
        UnsupportedError: It is sparse, nested or quantised; or without values, if they are read.

    >>> check_tensor("run", "x", [1.0, 2.0])
    Traceback (most recent call last):
    ...
    isospike.errors.InputError: run needs x as a torch.Tensor, got list. Convert it with
    torch.as_tensor.
    """
    if not isinstance(x, Tensor):
        raise InputError(
            f"{owner} needs {name} as a torch.Tensor, got {type(x).__name__}. Convert it with "
            "torch.as_tensor."
        )
    if x.is_nested or x.layout != torch.strided or x.is_quantized:
        kind = "nested" if x.is_nested else "quantised" if x.is_quantized else "sparse"
        remedy = {"nested": "to_padded_tensor(0.0)", "quantised": "dequantize()"}
        raise UnsupportedError(
            f"{owner} needs {name} as a dense tensor, got a {kind} one. Convert it by "
            f"{remedy.get(kind, 'to_dense()')}."
        )
    if read and x.is_meta:
        raise UnsupportedError(
            f"{owner} needs the values of {name}, got a tensor on meta, which has none. Move it to "
            "a device."
        )


def check_floating(owner: str, name: str, x: object, *, read: bool = False) -> None:
    """:func:`check_tensor`, and RangeError unless its numbers are real, of 16 bits or more."""
    check_tensor(owner, name, x, read=read)
    if isinstance(x, Tensor) and x.dtype not in FLOATING:
        raise RangeError(
            f"{owner} needs {name} of a floating-point type, got {x.dtype}. Convert it first."
        )


def check_whole(owner: str, name: str, x: object, *, read: bool = False) -> None:
    """:func:`check_tensor`, and RangeError unless its numbers are whole."""
    check_tensor(owner, name, x, read=read)
    if isinstance(x, Tensor) and x.dtype not in WHOLE:
        raise RangeError(
            f"{owner} needs {name} in whole numbers, got {x.dtype}. Convert it with .long()."
        )


def check_numbers(owner: str, **values: object) -> None:
    """Raise InputError unless all ``values`` of ``owner`` are real numbers."""
    for name, value in values.items():
        if not isinstance(value, numbers.Real):
            raise InputError(
                f"{owner} needs {name} as a number, got {type(value).__name__}. Pass its value."
            )


def check_kind(owner: str, name: str, value: object, kind: type, example: str) -> None:
    """Raise InputError, in the name of ``owner``, unless ``value`` is of this kind."""
    if not isinstance(value, kind):
        raise InputError(
            f"{owner} needs {name} as {kind.__name__}, got {type(value).__name__}. Pass "
            f"{example}, for example."
        )


def check_devices(owner: str, **tensors: Tensor) -> None:
    """Raise RangeError unless all ``tensors`` of ``owner`` are on one device."""
    if len({x.device for x in tensors.values()}) > 1:
        where = " and ".join(f"{name} on {x.device}" for name, x in tensors.items())
        raise RangeError(f"{owner} needs tensors on one device, got {where}. Move them to one.")


def check_device(owner: str, name: str) -> None:
    """Raise InputError unless this computer has the device ``name``."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"{owner} needs device to be one that torch finds here, got {name!r} "
            f"({first_sentence(error)}) Try cpu."
        ) from None


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which products keep the type of their operands."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_transformed() -> bool:
    """Whether ``torch.func`` runs the code (``vmap``, ``grad``, ``jvp``): tensors are then
    wrapped, and our operators, which know nothing of wraps, must not see them."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def unwrapped(x: Tensor) -> Tensor:
    """The tensor within the wraps of ``torch.func``, with all values of a mapped axis, to be
    checked: ``vmap`` allows no decision on values."""
    inner: Any = x
    while is_transformed() and torch._C._functorch.is_functorch_wrapped_tensor(inner):
        inner = torch._C._functorch.get_unwrapped(inner)
    return inner  # type: ignore[no-any-return]
