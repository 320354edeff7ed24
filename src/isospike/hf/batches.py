"""Batches of keyword arguments: their rows, their tokens, and which of these are padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.errors import InputError, ShapeError

Batch = Mapping[str, Any]

SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""Arguments whose axis 1 is the sequence, by the names transformers uses."""


def batch_size(batch: Batch) -> int:
    """Rows of a batch."""
    return next((len(v) for v in batch.values() if isinstance(v, Tensor) and v.dim()), 0)


def rows_of(batch: Batch, rows: slice) -> dict[str, Any]:
    """Some rows of a batch."""
    return {k: v[rows] if isinstance(v, Tensor) and v.dim() else v for k, v in batch.items()}


def merge(batches: Sequence[Batch]) -> dict[str, Any]:
    """One batch of all rows, padded on the right to the longest; the attention mask says where.

    Args:
        batches: With the same arguments.

    Raises:
        InputError: The batches have different arguments.
    """
    first = batches[0]
    for batch in batches:
        if set(batch) != set(first):
            raise InputError(
                f"port needs the same arguments in every batch, got {', '.join(first)} and "
                f"{', '.join(batch)}. Give them all or leave them out."
            )
    tensors = [k for k, v in first.items() if isinstance(v, Tensor)]
    merged: dict[str, Any] = dict(first)
    lengths = {b[k].shape[1] for b in batches for k in tensors if k in SEQUENCES}
    if len(lengths) > 1 and "attention_mask" not in first:
        batches = [{**b, "attention_mask": _ones(b)} for b in batches]
        tensors.append("attention_mask")
    longest = max(lengths, default=0)
    for key in tensors:
        parts = [b[key] for b in batches]
        if key in SEQUENCES:
            parts = [F.pad(p, [0, 0] * (p.dim() - 2) + [0, longest - p.shape[1]]) for p in parts]
        merged[key] = torch.cat(parts)
    return merged


def doubled(batch: Batch) -> dict[str, Any]:
    """All rows twice, one after the other."""
    return {
        k: torch.cat([v, v]) if isinstance(v, Tensor) and v.dim() else v for k, v in batch.items()
    }


def token_mask(batch: Batch) -> Tensor | None:
    """Mask of the unpadded tokens, ``[batch, tokens]``; None if the batch has none."""
    mask = batch.get("attention_mask", batch.get("mask"))
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    return mask.bool()


def full_token_mask(batch: Batch, shape: tuple[int, int], who: str) -> Tensor:
    """The same of exactly this shape, all True if the batch has no mask.

    Raises:
        ShapeError: A mask of another shape.
    """
    mask = batch.get("attention_mask", batch.get("mask"))
    if not isinstance(mask, Tensor):
        return torch.ones(shape, dtype=torch.bool)
    if mask.dim() != 2 or tuple(mask.shape) != shape:
        raise ShapeError(
            f"{who} needs an attention_mask of shape {list(shape)}, got {list(mask.shape)}. Give "
            "the tokenizer's mask of these tokens."
        )
    return mask.bool().cpu()


def over_tokens(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A token mask that broadcasts to ``x [batch, tokens, channels]`` or ``[batch, heads, tokens,
    channels]``; None where it does not fit."""
    if mask is None:
        return None
    if x.dim() == 3 and x.shape[:2] == mask.shape:
        return mask[:, :, None]
    if x.dim() == 4 and (x.shape[0], x.shape[2]) == tuple(mask.shape):
        return mask[:, None, :, None]
    return None


def fitting(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The token mask, if ``x`` is ``[batch, tokens, channels]`` of its tokens; None otherwise."""
    fits = mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape
    return mask if fits else None


def packed(x: Tensor, mask: Tensor | None) -> Tensor:
    """The unpadded tokens of ``x``, one row each; ``x`` itself without a mask."""
    return x if mask is None else x[mask]


def unpacked(rows: Tensor, mask: Tensor | None) -> Tensor:
    """What :func:`packed` packed, with zeros for the padding."""
    if mask is None:
        return rows
    x = rows.new_zeros(*mask.shape, rows.shape[-1])
    x[mask] = rows
    return x


def token_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Unpadded tokens of ``x [batch, tokens, channels]``; all of them where no mask fits."""
    mask = fitting(mask, x)
    return x.reshape(-1, x.shape[-1]) if mask is None else x[mask]


def count_tokens(batch: Batch) -> int:
    """Unpadded tokens of a batch; its rows if it has neither a mask nor ``input_ids``."""
    mask, ids = token_mask(batch), batch.get("input_ids")
    if mask is not None:
        return int(mask.sum())
    return ids.numel() if isinstance(ids, Tensor) else batch_size(batch)


def first_output(output: Any) -> Tensor:
    """The first tensor a model returns; a scalar, such as a loss, is not an output."""
    if isinstance(output, Tensor):
        return output
    values = output.to_tuple() if hasattr(output, "to_tuple") else tuple(output)
    return next(v for v in values if isinstance(v, Tensor) and v.dim())


def _ones(batch: Batch) -> Tensor:
    ids = next(batch[k] for k in SEQUENCES if k in batch)
    return torch.ones(ids.shape[:2], dtype=torch.long)
