"""Set every range and bias of an opened-up model in one pass over the calibration inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.errors import RangeError
from isospike.porting.ported import Ported

Batch = Mapping[str, Any]


def calibrate(ported: Ported, batch: Batch) -> tuple[Tensor, Tensor]:
    """Calibrate a freshly opened-up model whose sites have their codes; it then runs on spikes.

    The batch goes through once, doubled: float stream and spiking stream side by side, so each site
    sees the spiking activations it will get and the float output it should give. Nothing is
    trained.

    Returns:
        The two first outputs, float and spiking, on the calibration inputs themselves.
    """
    doubled = {k: _twice(v) for k, v in batch.items()}
    with torch.no_grad(), ported.run.calibrating(valid_tokens(batch)):
        out = first_output(ported.model(**doubled))
    for site in ported.sites:
        if not bool(site.scale.isfinite().all() and site.offset.isfinite().all()):
            raise RangeError(
                f"port needs finite activations, got NaN or infinity at {site.name}. Check the "
                "model's weights and inputs."
            )
    float_out, spiking_out = out.chunk(2)
    return float_out, spiking_out


def merge(batches: Sequence[Batch]) -> dict[str, Any]:
    """One batch of all rows, padded on the right to the longest; the attention mask says where."""
    first = batches[0]
    for batch in batches:
        if set(batch) != set(first):
            raise RangeError(
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


SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""Arguments whose axis 1 is the sequence, by the names transformers uses."""


def rows_of(batch: Batch, rows: slice) -> dict[str, Any]:
    """Some rows of a batch."""
    return {k: v[rows] if isinstance(v, Tensor) and v.dim() else v for k, v in batch.items()}


def batch_size(batch: Batch) -> int:
    """Rows of a batch."""
    return next((len(v) for v in batch.values() if isinstance(v, Tensor) and v.dim()), 0)


def valid_tokens(batch: Batch) -> Tensor | None:
    """Mask of the unpadded tokens, ``[batch, tokens]``; None if nothing is padded."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    return mask.bool()


def first_output(output: Any) -> Tensor:
    """The first tensor a model returns; a scalar, such as a loss, is not an output."""
    if isinstance(output, Tensor):
        return output
    values = output.to_tuple() if hasattr(output, "to_tuple") else tuple(output)
    return next(v for v in values if isinstance(v, Tensor) and v.dim())


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value


def _ones(batch: Batch) -> Tensor:
    ids = next(batch[k] for k in SEQUENCES if k in batch)
    return torch.ones(ids.shape[:2], dtype=torch.long)
