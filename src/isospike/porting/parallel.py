"""Calibration and evaluation in several processes of torch.distributed, as torchrun starts them.

Every process has the model and all batches, and runs every n-th of them. What they have seen is
then put together in the order of the batches, in every process, so that each of them makes the port
that one process makes, bit for bit; sums in its report differ by rounding.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch.distributed as dist

from isospike.errors import InputError

Item = TypeVar("Item")


def processes() -> int:
    """How many there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own(count: int) -> range:
    """The numbers of the batches that this process runs.

    Args:
        count: Of all batches.
    """
    several = processes()
    return range(count) if several == 1 else range(dist.get_rank(), count, several)


def from_all(found: Item) -> list[Item]:
    """What each process found, in their order. All of them must ask.

    Args:
        found: What this one did.
    """
    if processes() == 1:
        return [found]
    every: list[Item | None] = [None] * processes()
    dist.all_gather_object(every, found)
    return every  # type: ignore[return-value]


def by_number(found: Mapping[int, Item]) -> list[Item]:
    """What all processes found, in the order of the batches.

    Args:
        found: By number of the batch, what this process did.
    """
    every = {number: item for each in from_all(found) for number, item in each.items()}
    return [every[number] for number in sorted(every)]


def together(work: Callable[[], None]) -> None:
    """Do this process's part; an error in one of them is an error in all.

    Args:
        work: The part.

    Raises:
        InputError: Another process failed.
    """
    if processes() == 1:
        work()
        return
    error: Exception | None = None
    try:
        work()
    except Exception as raised:  # noqa: BLE001 - raised again once the others know
        error = raised
    errors = from_all(None if error is None else str(error))
    if error is not None:
        raise error
    for rank, message in enumerate(errors):
        if message is not None:
            raise InputError(
                "port needs every process to run its batches, got an error in process "
                f"{rank} of {len(errors)}. {message}"
            )
