"""Weights of other people's networks under our names.

A table of rules says for each name where its tensor belongs. A file that has other names is not of
that network, and is refused with the first of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from isospike.errors import UnsupportedError
from isospike.tensors import check_tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
"""A pattern of a whole name, and our name: a template, a function of the match, or None for a
tensor that has no use."""

PARTS = {"conv": "conv", "bn": "norm"}
"""What others call a convolution and its normalisation, and what we call them."""


def rename(
    owner: str, weights: Mapping[str, Tensor], rules: Sequence[Rule], network: str
) -> dict[str, Tensor]:
    """The tensors of ``weights`` under our names.

    Args:
        owner: The public function, first word of an error.
        weights: A ``state_dict()``; a prefix ``module.`` of every name is left out.
        rules: The first that fits a name counts.
        network: What the weights should be of, for the error.

    Returns:
        Our names and their tensors; kernels of one pixel have four axes.

    Raises:
        UnsupportedError: A name fits no rule, or two names have one place.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        check_tensor(owner, name, tensor)
        plain = name.removeprefix("module.")
        rule = next((r for r in rules if re.fullmatch(r[0], plain)), None)
        if rule is None:
            raise UnsupportedError(
                f"{owner} needs the weights of {network}, got {name!r} among "
                f"{len(weights)} names. Give the state_dict() of that network."
            )
        place = _place(plain, *rule)
        if place is None:
            continue
        if place in state:
            raise UnsupportedError(
                f"{owner} needs the weights of one network, got two tensors for {place}. Give the "
                "state_dict() alone."
            )
        kernel = place.endswith("conv.weight") and tensor.dim() in (2, 3)
        state[place] = tensor[(...,) + (None,) * (4 - tensor.dim())] if kernel else tensor
    return state


def _place(name: str, pattern: str, place: Any) -> str | None:
    match = re.fullmatch(pattern, name)
    if match is None or place is None:
        return None
    return match.expand(place) if isinstance(place, str) else str(place(match))
