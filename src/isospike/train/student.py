"""A SpikingBERT that begins with what its teacher knows.

A sub-layer of a SpikingBERT gives values in [0, 1]; of BERT it gives any. The affine map

(1)  a = (x - low) / span

takes the values x that a teacher's sub-layer gives on some text to [0, 1], and the layers around it
take it back, so that neither attention nor normalisation sees a difference:

- behind (1) a layer ``W x + b`` reads ``(W span) a + (b + W low)``;
- a query may be multiplied by a key's span, and a key's low adds the same to all scores of a query;
- weights of attention add up to 1, so that (1) of values is (1) of their means;
- a shortcut is added with weight 1, so that all its channels have one span, and a normalisation
  does not see it; or, with ``shortcut_weights``, with each channel's own span as its weight;
- GELU is nearly linear in the large: a hidden neuron that gives more than 1 has its input and its
  output scaled, and the mean that this loses is a bias of the next layer.

What is outside the range is lost, and what GELU gives below 0; training wins it back.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.errors import InputError, RangeError
from isospike.models.spiking_bert import SpikingBert, from_bert
from isospike.tensors import check_tensor

LEAST = 1e-3  # the span of a channel that does not vary


class Range(NamedTuple):
    """Lowest value of each channel, and the span from it to the highest: (1)."""

    low: Tensor
    span: Tensor


def spiking_student(
    teacher: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    layers: Sequence[int],
    *,
    share: float = 0.9995,
    **settings: Any,
) -> tuple[SpikingBert, nn.ModuleList]:
    """A SpikingBERT with some layers of a teacher, which gives what they give within its ranges.

    Args:
        teacher: A ``BertForSequenceClassification``, in evaluation. It is not changed.
        batches: Text that sets the ranges, as keywords of the teacher: ``input_ids``, and
            ``attention_mask`` where there is padding.
        layers: Numbers of the teacher's layers that the student has, from 0, in order.
        share: Share of the values of a channel that are below the top of its range, and of those
            above its bottom.
        settings: Of the student's configuration. ``shortcut_weights=True`` gives every channel of a
            shortcut a span of its own: with one for all, the widest channel sets it, and most have
            few of the steps.

    Returns:
        The student, in evaluation; and for the embedding and each of its layers a linear map of its
        rates to the hidden states of the teacher, for :func:`distil`.

    Raises:
        InputError: The teacher is no classifier of transformers' type bert, or there is no text.
        RangeError: There is no such layer, or ``share`` is not between 1/2 and 1.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = BertConfig(vocab_size=9, num_hidden_layers=2, **sizes)
    >>> teacher = BertForSequenceClassification(config).eval()
    >>> text = [{"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])}]
    >>> student, maps = spiking_student(teacher, text, (0, 1), share=1.0)
    >>> apart = student(**text[0]).logits - teacher(**text[0]).logits
    >>> bool(apart.abs().max() < 0.01), len(maps)
    (True, 3)
    """
    bert: Any = teacher
    config = getattr(bert, "config", None)
    if getattr(config, "model_type", "") != "bert" or not hasattr(bert, "classifier"):
        raise InputError(
            "spiking_student needs a classifier of transformers' type bert, got "
            f"{type(teacher).__name__}. Load one with AutoModelForSequenceClassification."
        )
    count = len(bert.bert.encoder.layer)
    if not layers or list(layers) != sorted({n for n in layers if 0 <= n < count}):
        raise RangeError(
            f"spiking_student needs layers from 0 to {count - 1} in order, got {tuple(layers)}. "
            "Choose every second one."
        )
    if not 0.5 < share <= 1:
        raise RangeError(f"spiking_student needs share in (1/2, 1], got {share}. Use 0.9995.")
    seen = _record(bert, batches)
    student = from_bert(teacher, **settings, num_hidden_layers=len(layers)).eval()
    maps = nn.ModuleList()
    with torch.no_grad():
        weights = [*student.shortcuts]
        joined = _range if weights else _common
        at = joined(seen["embedding"], share)
        _squeeze(student.bert.embeddings.LayerNorm, at)
        maps.append(_back(at))
        for i, (own, number) in enumerate(zip(student.bert.encoder.layer, layers, strict=True)):
            own.load_state_dict(bert.bert.encoder.layer[number].state_dict())
            own_seen = {name: seen[f"{number} {name}"] for name in PLACES}
            after, end = (joined(own_seen[name], share) for name in ("attention", "output"))
            _join(own.attention.output, at, after, weights[2 * i] if weights else None)
            _join(own.output, after, end, weights[2 * i + 1] if weights else None)
            _fit_layer(own, at, after, own_seen, share)
            maps.append(_back(at := end))
        _read(student.classifier, bert, at)
    return student, maps


PLACES = ("key", "value", "attention", "hidden", "output")


def _record(bert: Any, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What the sub-layers give for all tokens that are no padding, ``[tokens, channels]``."""
    places = {"embedding": bert.bert.embeddings}
    for i, layer in enumerate(bert.bert.encoder.layer):
        attention = layer.attention
        own = (attention.self.key, attention.self.value, attention.output)
        both = zip(PLACES, (*own, layer.intermediate, layer.output), strict=True)
        places |= {f"{i} {name}": module for name, module in both}
    seen: dict[str, list[Tensor]] = {name: [] for name in places}
    kept: Any = ...

    with ExitStack() as stack, torch.no_grad():
        for name, module in places.items():

            def keep(module: nn.Module, given: Any, got: Tensor, name: str = name) -> None:
                seen[name].append(got[kept])

            stack.callback(module.register_forward_hook(keep).remove)
        for batch in batches:
            tokens: Any = batch.get("input_ids")
            check_tensor("spiking_student", "input_ids", tokens)
            mask = batch.get("attention_mask")
            kept = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask != 0
            bert(**batch)
    if not seen["embedding"]:
        raise InputError("spiking_student needs text, got no batches. Give some of the training's.")
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _range(x: Tensor, share: float) -> Range:
    """That of each channel, but for the largest and smallest values."""
    cut = int((1 - share) * len(x))
    low, high = x.kthvalue(1 + cut, 0).values, x.kthvalue(len(x) - cut, 0).values
    return Range(low, (high - low).clamp(min=LEAST))


def _common(x: Tensor, share: float) -> Range:
    """One with the same span for all channels, each in its middle."""
    each = _range(x, share)
    span = each.span.max()
    return Range(each.low + (each.span - span) / 2, span)


def _squeeze(layer: Any, to: Range) -> None:
    """Make a linear layer or a normalisation give (1) of what it gives."""
    layer.weight.div_(to.span[:, None] if layer.weight.dim() == 2 else to.span)
    layer.bias.copy_((layer.bias - to.low) / to.span)


def _expand(layer: nn.Linear, at: Range) -> None:
    """Make a linear layer read (1) of what it reads."""
    layer.bias.add_(layer.weight @ at.low)
    layer.weight.mul_(at.span)


def _back(at: Range) -> nn.Linear:
    """The map from rates to what they stand for."""
    layer = nn.Linear(len(at.low), len(at.low))
    layer.weight.copy_(torch.eye(len(at.low)) * at.span)
    layer.bias.copy_(at.low)
    return layer


def _fit_layer(
    layer: Any, at: Range, after: Range, seen: Mapping[str, Tensor], share: float
) -> None:
    """Make what is between the shortcuts of a layer read and give rates; ``at`` and ``after`` are
    the ranges that attention and the perceptron read."""
    own, output = layer.attention.self, layer.attention.output
    for part in (own.query, own.key, own.value):
        _expand(part, at)
    key, value = _range(seen["key"], share), _range(seen["value"], share)
    _squeeze(own.key, key)
    _squeeze(own.value, value)
    own.query.weight.mul_(key.span[:, None])
    own.query.bias.mul_(key.span)
    _expand(output.dense, value)
    hidden = seen["hidden"]
    top = _range(hidden, share)
    top = Range(torch.zeros_like(top.low), (top.low + top.span).clamp(min=1))
    up = layer.intermediate.dense
    _expand(up, after)
    up.weight.div_(top.span[:, None])
    up.bias.div_(top.span)
    rates = F.linear((seen["attention"] - after.low) / after.span, up.weight, up.bias)
    lost = (hidden - layer.intermediate.intermediate_act_fn(rates).clamp(0, 1) * top.span).mean(0)
    down = layer.output.dense
    down.bias.add_(down.weight @ lost)
    _expand(down, top)


def _join(output: Any, at: Range, to: Range, weight: Tensor | None) -> None:
    """Make a product and the shortcut of rates beside it one sum of their scale, or weigh the
    shortcut; and make its normalisation give rates."""
    if weight is None:
        output.dense.weight.div_(at.span)
        output.dense.bias.copy_((output.dense.bias + at.low) / at.span)
    else:
        weight.copy_(at.span)
        output.dense.bias.add_(at.low)
    _squeeze(output.LayerNorm, to)


def _read(classifier: nn.Linear, bert: Any, at: Range) -> None:
    """Make the classifier read rates; BERT's pooler before it is taken as linear."""
    pooler = bert.bert.pooler.dense
    classifier.weight.copy_(bert.classifier.weight @ pooler.weight)
    classifier.bias.copy_(bert.classifier.bias + bert.classifier.weight @ pooler.bias)
    _expand(classifier, at)
