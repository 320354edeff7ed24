"""Which axis of a tensor inside a model is its rows, and which the tokens of which sequence.

They are measured: the model runs on fewer rows, and on a sequence of fewer tokens, and the axes
whose size changes are those. An encoder and a decoder of the same length are thereby two sequences.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isospike.hf.batches import Batch, batch_size, rows_of, streams

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Axes:
    """Where the rows and the tokens of a tensor are.

    Attributes:
        rows: The axis of the rows; None if it has none.
        tokens: The axis of the tokens; None if it has none. The same axis where rows and tokens
            are one after the other.
        stream: Prefix of the arguments that hold these tokens: empty, ``decoder_``, ``encoder_``.
    """

    rows: int | None = None
    tokens: int | None = None
    stream: str = ""

    def mask(self, masks: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
        """The mask of the unpadded tokens of ``x``, broadcastable to it; None if all are.

        Args:
            masks: ``[rows, tokens]`` for each stream that has padding.
            x: The tensor.
        """
        mask = masks.get(self.stream)
        if mask is None or self.tokens is None or self.tokens >= x.dim():
            return None
        shape = [1] * x.dim()
        if self.rows == self.tokens:
            mask = mask.flatten()
        elif self.rows is None:
            mask = mask.any(0)
        else:
            mask = mask if self.rows < self.tokens else mask.t()
            shape[self.rows] = x.shape[self.rows]
        shape[self.tokens] = x.shape[self.tokens]
        fits = mask.shape == torch.Size(n for d, n in enumerate(shape) if d in self._axes)
        return mask.reshape(shape) if fits else None

    @property
    def _axes(self) -> set[int | None]:
        return {self.rows, self.tokens}


def measure_axes(shapes: Callable[[Batch], Shapes], sample: Batch) -> dict[str, Axes]:
    """The axes of what a model computes.

    Args:
        shapes: The shapes of some tensors, by name, on given inputs.
        sample: A few rows of its inputs.
    """
    whole = shapes(sample)
    rows = _changed(shapes, whole, other_rows(sample))
    tokens = {prefix: _changed(shapes, whole, shorter(sample, prefix))
              for prefix in streams(sample)}  # fmt: skip
    found = {}
    for name in whole:
        hits = [(min(axes[name]), prefix) for prefix, axes in tokens.items() if axes.get(name)]
        at, stream = min(hits, default=(None, ""))
        row_axes = rows.get(name, ())
        found[name] = Axes(min(row_axes) if row_axes else None, at, stream)
    return found


def variants(sample: Batch) -> list[list[dict[str, Any]]]:
    """The sample with another number of rows, and with one token less in each of its sequences (one
    entry less of the second axis, where no argument is known to hold tokens); in several ways, of
    which a model may take none."""
    found = [other_rows(sample), *(shorter(sample, prefix) for prefix in streams(sample))]
    if len(found) == 1:
        sizes = {x.shape[1] for x in sample.values() if isinstance(x, Tensor) and x.dim() > 2}
        found += [[_cut(sample, list(sample), n)] for n in sizes if n > 1]
    return found


def _changed(
    shapes: Callable[[Batch], Shapes], whole: Shapes, batches: list[dict[str, Any]]
) -> dict[str, tuple[int, ...]]:
    """The axes whose size is another on the first of ``batches`` that the model accepts."""
    for batch in batches:
        try:
            other = shapes(batch)
        except Exception:  # noqa: BLE001 - arguments that do not fit each other
            continue
        return {
            name: tuple(d for d, n in enumerate(shape) if n != other[name][d])
            for name, shape in whole.items()
            if name in other and len(shape) == len(other[name])
        }
    return {}


def other_rows(sample: Batch) -> list[dict[str, Any]]:
    """The sample with another number of rows."""
    size = batch_size(sample)
    if size > 1:
        return [rows_of(sample, slice(0, size - 1))]
    return [{k: torch.cat([v, v]) if isinstance(v, Tensor) and v.dim() and len(v) == size else v
             for k, v in sample.items()}]  # fmt: skip


def shorter(sample: Batch, prefix: str) -> list[dict[str, Any]]:
    """The sample with one token less in one of its sequences; labels may belong to it or not."""
    length = streams(sample)[prefix]
    others = tuple(p for p in ("decoder_", "encoder_") if p != prefix)
    mine = [k for k in sample if not k.startswith(others) and k.startswith(prefix)]
    without = [k for k in mine if "label" not in k]
    labels = [k for k in sample if "label" in k]
    choices = [without, [*without, *labels], mine, list(sample)] if mine else [labels]
    return [_cut(sample, keys, length) for keys in choices] if length > 1 else []


def _cut(sample: Batch, keys: list[str], length: int) -> dict[str, Any]:
    found = dict(sample)
    for key in keys:
        x = sample[key]
        if not isinstance(x, Tensor) or x.dim() < 2:
            continue
        axes = [d for d in range(1, x.dim()) if x.shape[d] == length]
        for axis in axes[-2:] if "mask" in key else axes[:1]:
            found[key] = found[key].narrow(axis, 0, length - 1).contiguous()
    return found
