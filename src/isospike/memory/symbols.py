"""What may be a symbol of a sequence machine."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from isospike.errors import InputError


def plain_symbol(symbol: Any) -> Hashable:
    """A symbol as Python has it: the number in an array's element, which a file can hold.

    Args:
        symbol: Of the user.

    Raises:
        InputError: It is not hashable.
    """
    if isinstance(symbol, np.generic | np.ndarray | torch.Tensor) and symbol.ndim == 0:
        symbol = symbol.item()
    # A tensor's hash is not that of its values; a tuple may hold a list.
    if isinstance(symbol, torch.Tensor) or not _is_hashable(symbol):
        raise InputError(
            f"SequenceMachine needs hashable symbols, got a {type(symbol).__name__}. Make "
            "strings, numbers or tuples of yours."
        )
    found: Hashable = symbol
    return found


def checked_symbol(symbol: Any) -> Hashable:
    """:func:`plain_symbol`, unless it may be none.

    Args:
        symbol: Of the user.

    Raises:
        InputError: It is not hashable, or None, or NaN.
    """
    plain = plain_symbol(symbol)
    if plain is None or plain != plain:
        raise InputError(
            "SequenceMachine needs symbols that equal themselves and are not None, which says that "
            f"nothing is known, got {plain}. Use a text such as 'none'."
        )
    return plain


def _is_hashable(symbol: object) -> bool:
    try:
        hash(symbol)
    except TypeError:
        return False
    return True
