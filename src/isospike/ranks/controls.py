"""The measures along the depth of a model, and the same for controls."""

import copy
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isospike.porting.run import ATTRIBUTE
from isospike.ranks.measure import ForwardMeasurements, measure_forward


@dataclass(frozen=True)
class DepthRow:
    """One layer: medians over sequences, means over heads.

    Attributes:
        layer: Name of the layer.
        cosine, residual, entropic: Measures of collapse of its output
            (:class:`isospike.ranks.collapse.Collapse`).
        ratio, entropy: Measures of its attention maps
            (:class:`isospike.ranks.collapse.MapMeasures`); NaN without any.
    """

    layer: str
    cosine: float
    residual: float
    entropic: float
    ratio: float
    entropy: float


@dataclass(frozen=True)
class Control:
    """A baseline with the same measures: re-initialised weights, shuffled tokens, fewer tokens.

    Attributes:
        name: Name of the baseline.
        tokens: Median number of tokens in a sequence.
        rows: One row for each layer.
    """

    name: str
    tokens: int
    rows: tuple[DepthRow, ...]


def depth_rows(measured: ForwardMeasurements) -> tuple[DepthRow, ...]:
    """Summarise a forward pass layer by layer.

    Args:
        measured: The measurements.

    Returns:
        One row for each layer.
    """
    rows = []
    for layer in dict.fromkeys(s.layer for s in measured.sites if s.site == "output"):
        outputs = [s.collapse for s in measured.at(layer, "output")]
        maps = [h for h in measured.heads if h.layer == layer]
        rows.append(
            DepthRow(
                layer,
                statistics.median(c.cosine for c in outputs),
                statistics.median(c.residual for c in outputs),
                statistics.median(c.entropic for c in outputs),
                statistics.mean(h.ratio for h in maps) if maps else math.nan,
                statistics.mean(h.entropy for h in maps) if maps else math.nan,
            )
        )
    return tuple(rows)


def measure_controls(
    model: nn.Module, batch: Mapping[str, Any], measured: ForwardMeasurements, seed: int
) -> tuple[Control, ...]:
    """Run the baselines of a model.

    The baselines are the model with new random weights, its tokens in random order, and the first
    d / 2, d and 2 d tokens where there are as many.

    Args:
        model: The model.
        batch: Arguments of its forward.
        measured: The measurements of the model itself.
        seed: Seed of the new weights and of the order.

    Returns:
        The baselines.
    """
    width = measured.sites[0].width
    tokens = min(site.tokens for site in measured.sites)
    controls = []
    for name, other, inputs in _baselines(model, batch, width, tokens, seed):
        same = all(inputs[k].shape == v.shape for k, v in batch.items() if isinstance(v, Tensor))
        like = measured if same else None
        what = f"control: {name}"
        found = measure_forward(other, inputs, outputs_only=True, like=like, what=what)
        median = statistics.median_low(s.tokens for s in found.sites)
        controls.append(Control(name, median, depth_rows(found)))
    return tuple(controls)


def _baselines(
    model: nn.Module, batch: Mapping[str, Any], width: int, tokens: int, seed: int
) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    fresh = _reinitialised(model, seed)
    if fresh is not None:
        yield "new random weights", fresh, batch
    del fresh
    key = next((k for k in ("input_ids", "tokens") if isinstance(batch.get(k), Tensor)), None)
    if key is None:
        return
    yield "tokens in random order", model, {**batch, key: _shuffled(batch, key, seed)}
    for length in (width // 2, width, 2 * width):
        if 2 <= length < batch[key].shape[1] and length <= tokens:
            yield f"first {length} tokens", model, _cut(batch, key, length)


def _cut(batch: Mapping[str, Any], key: str, length: int) -> dict[str, Any]:
    """The first unpadded tokens of each sequence, and of a decoder's, on whichever side it pads."""
    cut = dict(batch)
    streams = {key: ("attention_mask", "mask"), "decoder_input_ids": ("decoder_attention_mask",)}
    for first, masks in streams.items():
        ids = batch.get(first)
        if not isinstance(ids, Tensor) or ids.shape[1] <= length:
            continue
        seen = next((batch[m] for m in masks if isinstance(batch.get(m), Tensor)), ids >= 0)
        # The places of unpadded tokens come first, in their order.
        places = (seen == 0).long().argsort(dim=1, stable=True)[:, :length].to(ids.device)
        for name, value in batch.items():
            own = name.startswith("decoder_") == first.startswith("decoder_")
            fits = isinstance(value, Tensor) and value.dim() == 2
            if own and fits and value.shape[1] == ids.shape[1]:
                cut[name] = value.expand_as(ids).gather(1, places)
    return cut


def _reinitialised(model: nn.Module, seed: int) -> nn.Module | None:
    """The model with new weights, as before training; None for a port."""
    if ATTRIBUTE in vars(model):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "config") and hasattr(model, "set_attn_implementation"):
            kind: Any = type(model)
            fresh: nn.Module = kind(copy.deepcopy(model.config)).eval()
            return fresh.to(next(model.parameters()).dtype)
        other = copy.deepcopy(model)
        for module in other.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        return other


def _shuffled(batch: Mapping[str, Any], key: str, seed: int) -> Tensor:
    """Each sequence's unpadded tokens in random order."""
    generator = torch.Generator().manual_seed(seed)
    ids: Tensor = batch[key].clone()
    mask = batch.get("attention_mask", batch.get("mask"))
    for i, row in enumerate(ids):
        at = torch.arange(len(row)) if mask is None else mask[i].bool().nonzero()[:, 0].cpu()
        ids[i, at] = row[at[torch.randperm(len(at), generator=generator)]]
    return ids
