"""The ranges of a neuron's numbers, and their check in compiled code."""

import math
import numbers

import torch
from torch import Tensor

from isospike.errors import InputError, RangeError
from isospike.kernels.runtime.torch_ops import define
from isospike.tensors import check_floating, unwrapped

ADVICE = {
    "decay": "Use 0.5, or 1 for no leak; PLIF keeps a learned one inside.",
    "threshold": "Use 1, and scale the input instead; clamp a learned one after each update.",
}


def check_range(owner: str, name: str, value: object) -> None:
    """Raise RangeError, in the name of ``owner``, unless ``value`` may be a neuron's ``name``.

    Tensors on a GPU are not checked, which would wait for it.
    """
    low: float
    high: float
    if isinstance(value, Tensor):
        check_floating(owner, name, value)
        held = unwrapped(value).detach()
        if held.device.type != "cpu" or not held.numel():
            return
        low, high = (end.item() for end in held.aminmax())
    elif isinstance(value, numbers.Real):
        low = high = float(value)
    else:
        raise InputError(
            f"{owner} needs {name} as a number or a tensor, got {type(value).__name__}. Convert it "
            "with torch.as_tensor."
        )
    if not -math.inf < low <= high < math.inf:  # comparisons, which can be traced
        needs = "to be finite"
    elif name == "decay" and not 0 <= low <= high <= 1:
        needs = "in [0, 1]"
    elif name == "threshold" and low <= 0:
        needs = "above 0"
    else:
        return
    got = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    advice = ADVICE.get(name, "Look for NaN or infinity in what computed it.")
    raise RangeError(f"{owner} needs {name} {needs}, got {got}. {advice}")


def _check(value: Tensor, owner: str, name: str) -> Tensor:
    check_range(owner, name, value)
    return value.clone()


check_compiled = define(
    "check_range(Tensor value, str owner, str name) -> Tensor",
    _check,
    lambda value, owner, name: torch.empty_like(value),
    lambda ctx, grad: (grad, None, None),
)
""":func:`check_range` in a graph, where only operators see values; it gives the value again."""
