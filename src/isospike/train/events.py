"""Recordings of events as frames that count them, and data sets of tonic.

A recording is an array with the fields ``x``, ``y``, ``p`` (0 or 1) and ``t``, one entry an event,
as tonic's data sets give them; a frame counts the events of each pixel and polarity.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from isospike.errors import InputError, RangeError, ShapeError
from isospike.train.data import Data, Part, count_events

Array = Shaped[np.ndarray, "..."]
FIELDS = ("x", "y", "t", "p")


def event_frames(events: Any, steps: int, size: Sequence[int]) -> Tensor:
    """Frames of a recording, with as many events in each, in the order of time.

    Args:
        events: A structured array with the fields ``x``, ``y``, ``t`` and ``p``, such as a
            recording of tonic.
        steps: Number of frames.
        size: Height and width in pixels.

    Returns:
        Counts ``[steps, 2, height, width]``: polarity 0 first. Neurons and spiking classifiers read
        them as they are.

    Raises:
        InputError: It is no such array.
        RangeError: There are no steps, or an event is outside the image or of no polarity.
        ShapeError: ``size`` is no height and width.

    >>> kinds = [("x", int), ("y", int), ("t", int), ("p", int)]
    >>> events = np.array([(0, 0, 5, 1), (1, 0, 9, 0), (1, 0, 12, 0)], kinds)
    >>> event_frames(events, steps=1, size=(1, 2)).tolist()
    [[[[0, 2]], [[1, 0]]]]
    """
    names = getattr(getattr(events, "dtype", None), "names", None) or ()
    if not isinstance(events, np.ndarray) or events.ndim != 1 or not set(FIELDS) <= set(names):
        found = f"fields {', '.join(names)}" if names else type(events).__name__
        raise InputError(
            f"event_frames needs an array of events with fields x, y, t and p, got {found}. Rename "
            "its fields, or give a recording of tonic."
        )
    if steps < 1:
        raise RangeError(f"event_frames needs steps >= 1, got {steps}. Use 4.")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(
            f"event_frames needs a height and a width, got {tuple(size)}. Give those of the sensor."
        )
    events = events[np.argsort(events["t"], kind="stable")]
    x, y, p = (events[name].astype(np.int64) for name in ("x", "y", "p"))
    for name, values, count in (("y", y, size[0]), ("x", x, size[1]), ("p", p, 2)):
        wrong = values[(values < 0) | (values >= count)]
        if len(wrong):
            raise RangeError(
                f"event_frames needs {name} from 0 to {count - 1}, got {wrong[0]} in {len(wrong)} "
                f"of {len(values)} events. Give the size of the sensor."
            )
    return torch.from_numpy(count_events(x, y, p, steps, (size[0], size[1])))


def tonic_data(
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    steps: int = 4,
    size: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "events",
) -> Data:
    """Two data sets of tonic as one to train on.

    Args:
        train: Pairs of a recording and the number of its class, or of frames ``[steps, channels,
            height, width]`` that a transform of tonic made, and that number.
        test: The same, to judge by.
        steps: Frames of a recording; frames that are there keep theirs.
        size: Height and width in pixels; None for those of ``train.sensor_size``, as tonic's data
            sets have it, made multiples of 4.
        classes: Names of the classes; None for ``train.classes``, or else their numbers.
        name: Of the data.

    Returns:
        The data, for :func:`fit`.

    Raises:
        InputError: A pair or a recording is none, a part is empty, or the size is not known.
        ShapeError: Frames differ in size.
        RangeError: A label is not one of the classes, or an event is outside the sensor.

    >>> kinds = [("x", int), ("y", int), ("t", int), ("p", int)]
    >>> recording = np.array([(0, 0, 5, 1), (3, 2, 9, 0)], kinds)
    >>> pairs = [(recording, 0), (recording, 1)]
    >>> tonic_data(pairs, pairs, steps=2, size=(4, 4)).train.images.shape
    torch.Size([2, 2, 2, 4, 4])
    """
    sensor = getattr(train, "sensor_size", None)  # width, height, polarities
    if size is None and sensor is not None:
        size = tuple(-(-n // 4) * 4 for n in (sensor[1], sensor[0]))
    parts = [_part(part, steps, size) for part in (train, test)]
    if parts[0].images.shape[1:] != parts[1].images.shape[1:]:
        raise ShapeError(
            "tonic_data needs parts of one size, got "
            f"{tuple(parts[0].images.shape[1:])} and {tuple(parts[1].images.shape[1:])}. Give size."
        )
    most = max(int(part.labels.max()) for part in parts)
    named = classes if classes is not None else getattr(train, "classes", range(most + 1))
    if most >= len(named) or min(int(part.labels.min()) for part in parts) < 0:
        raise RangeError(
            f"tonic_data needs labels from 0 to {len(named) - 1}, got {most}. Give their classes."
        )
    return Data(name, tuple(map(str, named)), *parts)


def _part(pairs: Iterable[Any], steps: int, size: Sequence[int] | None) -> Part:
    """The frames of one part."""
    frames: list[Tensor] = []
    labels: list[int] = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(
                "tonic_data needs pairs of a recording and a class, got "
                f"{type(pair).__name__}. Give a data set of tonic."
            )
        given, label = pair
        if getattr(getattr(given, "dtype", None), "names", None) is None:
            found = torch.as_tensor(given)
        elif size is None:
            raise InputError(
                "tonic_data needs the sensor's height and width, got none. Give size=(34, 34)."
            )
        else:
            found = event_frames(given, steps, size)
        if found.dim() != 4 or (frames and found.shape != frames[0].shape):
            first = tuple(frames[0].shape) if frames else "[steps, channels, height, width]"
            raise ShapeError(
                f"tonic_data needs frames of one size, got {tuple(found.shape)} beside {first}. "
                "Use the same number of frames for all."
            )
        frames.append(found)
        labels.append(int(label))
    if not frames:
        raise InputError("tonic_data needs recordings in both parts, got none. Add some.")
    whole = torch.stack(frames)
    if not whole.dtype.is_floating_point:  # counts, in the smallest type that holds them
        low, high = int(whole.min()), int(whole.max())
        whole = whole.to(torch.uint8 if low >= 0 and high < 256 else torch.int32)
    return Part(whole, torch.tensor(labels))
