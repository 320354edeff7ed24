"""What every neuron asks of its input."""

import torch
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.tensors import check_tensor

INPUTS = (torch.float32, torch.bfloat16, torch.float64)
COUNTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_steps(owner: str, x: Tensor) -> Tensor:
    """``x``, an input of at least one step; whole numbers, such as counts of events, as float32.

    Args:
        owner: The function that the user called.
        x: What was given.

    Returns:
        The input, of a floating-point type.

    Raises:
        InputError: It is no tensor.
        RangeError: It is of another type.
        ShapeError: Time is missing or has no steps.
    """
    check_tensor(owner, "x", x)
    if x.dtype not in INPUTS + COUNTS:
        raise RangeError(
            f"{owner} needs float32, bfloat16 or float64 input, or whole numbers, got {x.dtype}. "
            "Convert x first."
        )
    if x.dim() == 0 or len(x) == 0:
        raise ShapeError(
            f"{owner} needs at least one step along axis 0, got shape {tuple(x.shape)}. "
            "Time is axis 0; one step is x[None]."
        )
    return x.float() if x.dtype in COUNTS else x
