"""Batches of keyword arguments: their rows, their tokens, and which of these are padding."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Mapping[str, Any]

ROWS_OF = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
"""Arguments whose first axis is the rows, by the names transformers uses."""
_MASK = "attention_mask"
IGNORED = -100  # label of a token that is padding


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
    all, stays whole; what was one tensor stays one."""
    size = batch_size(batch)
    cut = {id(v): v[rows] for v in batch.values() if _has_rows(v, size)}
    return {k: cut.get(id(v), v) for k, v in batch.items()}


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
    if (labels := _labels(batch)) is not None:  # of which a decoder makes what it reads
        found["decoder_"] = labels.shape[1]
    return found


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
    if (labels := _labels(batch)) is not None:
        found["decoder_"] = labels != IGNORED
    return found


def _labels(batch: Batch) -> Tensor | None:
    """Labels of tokens, in a batch without tokens of a decoder."""
    labels = batch.get("labels")
    given = any(key.startswith("decoder_") for key in batch)
    whole = isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()
    return labels if whole and not given else None


def token_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Unpadded tokens of ``x [batch, tokens, channels]``; all of them where no mask fits."""
    fits = mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape
    return x[mask] if fits else x.reshape(-1, x.shape[-1])


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


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of real numbers that a model returns by name, without a scalar such as a loss;
    several of one shape, as of single images, as one."""
    found = dict(output) if isinstance(output, Mapping) else {}
    for key, value in found.items():
        parts = value if isinstance(value, list | tuple) else ()
        if parts and all(isinstance(x, Tensor) and x.shape == parts[0].shape for x in parts):
            found[key] = torch.stack(list(parts))
    return {k: v for k, v in found.items()
            if isinstance(v, Tensor) and v.dim() and v.is_floating_point()}  # fmt: skip


def _has_rows(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == size
