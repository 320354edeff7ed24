"""Batches of keyword arguments: their rows, their tokens, and which of these are padding."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.errors import InputError, ShapeError

Batch = Mapping[str, Any]

ROWS_OF = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
"""Arguments whose first axis is the rows, by the names transformers uses."""
IGNORED = -100  # a label that does not count
_MASK = "attention_mask"


def batch_size(batch: Batch) -> int:
    """Rows of a batch: those of its first argument by name, else the commonest first axis."""
    sizes = {k: len(v) for k, v in batch.items() if isinstance(v, Tensor) and v.dim()}
    named = [sizes[k] for k in ROWS_OF if k in sizes]
    if named:
        return named[0]
    count = Counter(sizes.values())
    return max(count, key=lambda size: (count[size], size), default=0)


def rows_of(batch: Batch, rows: slice) -> dict[str, Any]:
    """Some rows of a batch; an argument with another first axis, such as one row of positions for
    all, stays whole."""
    size = batch_size(batch)
    return {k: v[rows] if _has_rows(v, size) else v for k, v in batch.items()}


def streams(batch: Batch) -> dict[str, int]:
    """Length of each sequence of tokens that a batch holds.

    Returns:
        By the prefix of its arguments: the empty one, ``decoder_`` or ``encoder_``.
    """
    found: dict[str, int] = {}
    for key, value in batch.items():
        if not isinstance(value, Tensor) or value.dim() < 2:
            continue
        for name in (_MASK, "mask", "input_ids", "inputs_embeds", "hidden_states"):
            prefix = key.removesuffix(name)
            if prefix != key and prefix in ("", "decoder_", "encoder_"):
                is_mask = name in (_MASK, "mask")
                found.setdefault(prefix, value.shape[-1] if is_mask else value.shape[1])
    return found


def merge(batches: Sequence[Batch]) -> dict[str, Any]:
    """One batch of all rows, padded on the right to the longest; the attention masks say where.

    Args:
        batches: With the same arguments.

    Raises:
        InputError: The batches have different arguments, or one of them has several shapes in an
            axis that is no sequence of tokens.
    """
    first = batches[0]
    for batch in batches:
        if set(batch) != set(first):
            raise InputError(
                f"port needs the same arguments in every batch, got {', '.join(first)} and "
                f"{', '.join(batch)}. Give them all or leave them out."
            )
    for prefix in ("", "decoder_"):
        if len({streams(b).get(prefix) for b in batches}) > 1 and prefix + _MASK not in first:
            batches = [{**b, prefix + _MASK: _ones(b, prefix)} for b in batches]
    merged: dict[str, Any] = dict(batches[0])
    for key, value in merged.items():
        if isinstance(value, Tensor) and value.dim():
            merged[key] = torch.cat(_padded(key, batches))
    return merged


def _padded(key: str, batches: Sequence[Batch]) -> list[Tensor]:
    """One argument of every batch, with a row for each of its rows and all of one shape."""
    parts = []
    for batch in batches:
        x, rows = batch[key], batch_size(batch)
        parts.append(x.expand(rows, *x.shape[1:]) if len(x) == 1 else x)
    if len({x.dim() for x in parts}) > 1:
        raise _several_shapes(key, parts)
    widest = [max(sizes) for sizes in zip(*(x.shape[1:] for x in parts), strict=True)]
    fill: float = 0
    if "mask" in key and parts[0].is_floating_point():
        fill = torch.finfo(parts[0].dtype).min if parts[0].dim() > 2 else 0
    elif "label" in key:
        fill = IGNORED
    padded = []
    for batch, x in zip(batches, parts, strict=True):
        missing = [w - n for w, n in zip(widest, x.shape[1:], strict=True)]
        lengths = set(streams(batch).values())
        if any(m and n not in lengths for m, n in zip(missing, x.shape[1:], strict=True)):
            raise _several_shapes(key, parts)
        pads = [p for m in reversed(missing) for p in (0, m)]
        padded.append(F.pad(x, pads, value=bool(fill) if x.dtype == torch.bool else fill))
    return padded


def _several_shapes(key: str, parts: Sequence[Tensor]) -> InputError:
    shapes = list(dict.fromkeys(str(list(x.shape[1:])) for x in parts))
    return InputError(
        f"port needs {key} of one shape in every batch, got rows of {' and '.join(shapes[:2])}. "
        "Give batches of one shape, or pad them and say so in the attention mask."
    )


def doubled(batch: Batch) -> dict[str, Any]:
    """All rows twice, one after the other."""
    size = batch_size(batch)
    return {k: torch.cat([v, v]) if _has_rows(v, size) else v for k, v in batch.items()}


def token_mask(batch: Batch) -> Tensor | None:
    """Mask of the unpadded tokens, ``[batch, tokens]``; None if the batch has none."""
    return token_masks(batch).get("")


def token_masks(batch: Batch) -> dict[str, Tensor]:
    """Masks of the unpadded tokens of every sequence, ``[batch, tokens]``, by the prefix of their
    names. A mask of queries and keys leaves out the keys that no query sees."""
    found = {}
    for key, mask in batch.items():
        prefix = key.removesuffix(_MASK) if key.endswith(_MASK) else ""
        if not isinstance(mask, Tensor) or mask.dim() < 2:
            continue
        if key not in (prefix + _MASK, "mask") or prefix not in ("", "decoder_", "encoder_"):
            continue
        seen = mask.bool()
        if mask.dim() > 2:
            if mask.is_floating_point():
                seen = mask > torch.finfo(mask.dtype).min / 2
            seen = seen.flatten(1, -2).any(1).expand(batch_size(batch), -1)
        found[prefix] = seen
    return found


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


def count_positions(batch: Batch) -> int:
    """Tokens of a batch with its padding; its rows if it has neither a mask nor ``input_ids``."""
    mask, ids = token_mask(batch), batch.get("input_ids")
    if mask is not None:
        return mask.numel()
    return ids.numel() if isinstance(ids, Tensor) else batch_size(batch)


def first_output(output: Any) -> Tensor:
    """The first tensor a model returns; a scalar, such as a loss, is not an output."""
    if isinstance(output, Tensor):
        return output
    values = output.to_tuple() if hasattr(output, "to_tuple") else tuple(output)
    return next(v for v in values if isinstance(v, Tensor) and v.dim())


def _ones(batch: Batch, prefix: str) -> Tensor:
    device = next(v.device for v in batch.values() if isinstance(v, Tensor))
    shape = batch_size(batch), streams(batch)[prefix]
    return torch.ones(shape, dtype=torch.long, device=device)


def _has_rows(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == size
