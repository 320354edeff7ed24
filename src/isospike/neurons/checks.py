"""What every neuron asks of its input."""

import torch
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.tensors import check_tensor

INPUTS = (torch.float32, torch.bfloat16, torch.float64)


def check_steps(owner: str, x: Tensor) -> None:
    """Raise unless ``x`` is an input of at least one step.

    Args:
        owner: The function that the user called.
        x: What was given.

    Raises:
        InputError: It is no tensor.
        RangeError: It is of another type.
        ShapeError: Time is missing or has no steps.
    """
    check_tensor(owner, "x", x)
    if x.dtype not in INPUTS:
        raise RangeError(
            f"{owner} needs float32, bfloat16 or float64 input, got {x.dtype}. Convert x first."
        )
    if x.dim() == 0 or len(x) == 0:
        raise ShapeError(
            f"{owner} needs at least one step along axis 0, got shape {tuple(x.shape)}. "
            "Time is axis 0; one step is x[None]."
        )
