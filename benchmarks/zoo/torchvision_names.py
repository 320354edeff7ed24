"""torchvision without its compiled operators, which fit one build of torch alone.

timm needs torchvision for what it does to images, not for its models; it imports once the operators
have their names.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import torch

OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def name_operators() -> None:
    """Give the operators names if torchvision is there and cannot load its own."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        for library in Path(found.origin).parent.glob("_C*.so"):
            ctypes.CDLL(str(library))
    except OSError:
        for name, signature in OPERATORS.items():
            torch.library.define(f"torchvision::{name}", signature)
