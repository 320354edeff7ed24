"""Experts of transformers whose weights lie in one tensor."""

from typing import Any

from torch import nn


def one_by_one(model: nn.Module) -> None:
    """Have a model compute its experts in a loop of ordinary products, not by one operator.

    Args:
        model: Any; models without such experts are left as they are.
    """
    choosing: Any = model
    if getattr(getattr(model, "config", None), "_experts_implementation", None):
        choosing.set_experts_implementation("eager")
