"""The inside of a machine by its settings, and what a file of it holds."""

import math
from typing import Any

from isospike.memory.addressed import AddressedMemory, Memory
from isospike.memory.backoff import BackoffMemory
from isospike.memory.bursts import SpikingMemory
from isospike.memory.contexts import MOST_BYTES, Backoff, MachineSettings, Mixed, Store
from isospike.memory.files import Shapes
from isospike.memory.layers import ABSTRACT
from isospike.memory.mixed import MixedMemory

BINS = 64  # intervals of the margin, for calibration


def make_memory(settings: MachineSettings) -> Memory:
    """An empty memory of some settings.

    Args:
        settings: Of a machine.
    """
    context, seed = settings.context, settings.seed
    if isinstance(context, Mixed):
        return MixedMemory(context, seed)
    if isinstance(context, Backoff):
        return BackoffMemory(context, seed)
    store = settings.store or Store()
    if settings.layers != ABSTRACT:
        return SpikingMemory(settings.layers, context, store, seed)
    return AddressedMemory(context, store, seed)


def expected_arrays(about: dict[str, Any]) -> Shapes:
    """The arrays of a machine's file by what it says about itself, every part of which is checked.

    Args:
        about: What the file says.

    Raises:
        LookupError, TypeError, ValueError: It says what no machine says.
    """
    settings, symbols = MachineSettings.from_dict(about["settings"]), about["symbols"]
    if not isinstance(symbols, list) or not all(type(s) in (str, int) for s in symbols):
        raise ValueError("its symbols are not strings and integers")
    if len(set(symbols)) < len(symbols) or settings.room(len(symbols)) > MOST_BYTES:
        raise ValueError("its alphabet has a symbol twice, or is too large")
    if not isinstance(about["metadata"], dict):
        raise ValueError("its metadata are no dictionary")
    expected = about["expected"]
    if expected is not None:
        guess, margin = expected
        if type(guess) is not int or type(margin) is not float or not math.isfinite(margin):
            raise ValueError("its last prediction is none")
        if not (0 <= guess < len(symbols) and margin >= 0):
            raise ValueError("its last prediction is out of range")
    context, store = settings.context, settings.store
    extent = about["extent"]
    if not all(type(size) is int for size in extent):
        raise ValueError("its extent is none")
    if isinstance(context, Mixed):
        shapes = MixedMemory.shapes(context, len(symbols), extent)
    elif isinstance(context, Backoff) or store is None:
        shapes = BackoffMemory.shapes(context, len(symbols), extent)  # type: ignore[arg-type]
    else:
        kind = AddressedMemory if settings.layers == ABSTRACT else SpikingMemory
        shapes = kind.shapes(context, store, len(symbols))
    bins = (BINS,), "float64"
    return {**shapes, "right": bins, "seen": bins}
