"""Activations and attention maps of each layer during one forward pass.

A layer is found by what runs: the repeated module around an attention, or, in a model without, one
that multiplies. Each call of it is a layer of its own, so a model that shares one set of weights
has as many layers as it runs. The attentions of a layer are found by what it calls
(:mod:`isospike.ranks.flow`), in models of transformers, plain PyTorch and ports alike; the second
one of a decoder's layer, which reads another sequence, has a name of its own.

One layer's tensors are held at a time, and the model is left as it was.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isospike.errors import InputError, RangeError
from isospike.hf.batches import batch_size, token_masks
from isospike.porting.axes import Axes
from isospike.porting.fidelity import same_draws
from isospike.ranks.circuits import Circuit
from isospike.ranks.flow import MLP, Attention, Flow, Listener, Projected
from isospike.ranks.layers import Plan, first_tensor, plan_of
from isospike.ranks.norms import is_norm
from isospike.ranks.spikes import followed
from isospike.tensors import check_kind, check_tensor


@dataclass(frozen=True)
class Tokens:
    """Where the rows, tokens and channels of a layer's input are.

    Attributes:
        axes: Of it.
        shape: Of it.
        rows: Rows of the batch.
        masks: Of the unpadded tokens of each stream.
        width: Number of channels; 0 if not known.
    """

    axes: Axes
    shape: tuple[int, ...]
    rows: int
    masks: Mapping[str, Tensor]
    width: int = 0

    def of(self, x: Tensor) -> Tensor:
        """``x`` as ``[rows, tokens, channels]``."""
        size = torch.Size(self.shape).numel()
        if x.shape != self.shape and x.numel() == size and x.shape[-1] == self.shape[-1]:
            x = x.reshape(self.shape)
        if x.shape == self.shape:
            return self._first(x)
        many = x.numel() // max(1, x.shape[-1])
        rows = self.rows if many % self.rows == 0 else 1
        if x.dim() == len(self.shape) == 3 and self.axes.rows == 1:
            return x.transpose(0, 1)
        return x.reshape(rows, -1, x.shape[-1])

    def _first(self, x: Tensor) -> Tensor:
        row = self.axes.rows
        if x.dim() == 4 and self._channels == 1:
            x = x.movedim(1, -1)
        elif row is not None and row < x.dim() - 1:
            x = x.movedim(row, 0)
        if x.dim() < 3 or len(x) != self.rows:
            many = x.numel() // x.shape[-1]
            whole = row is not None and many % self.rows == 0
            return x.reshape(self.rows if whole else 1, -1, x.shape[-1])
        return x.flatten(1, -2)

    @property
    def _channels(self) -> int:
        last = self.shape[-1] if self.width == 0 else self.width
        images = self.width == 0 or self.shape[-1] != last
        return 1 if len(self.shape) == 4 and images else len(self.shape) - 1

    @cached_property
    def mask(self) -> Tensor:
        """The unpadded tokens, ``[rows, tokens]``."""
        like = torch.empty(self.shape, device="meta")
        found = self.axes.mask({k: m.cpu() for k, m in self.masks.items()}, like)
        if found is None:
            return torch.ones(self.of(like).shape[:2], dtype=torch.bool)
        wide = found.expand(*self.shape[:-1], 1) if found.shape[-1] == 1 else found
        return self._first(wide.contiguous())[..., 0].bool()

    def mask_of(self, x: Tensor) -> Tensor:
        """The unpadded tokens of ``x [rows, tokens, channels]``; all if it has others."""
        fits = x.shape[:2] == self.mask.shape
        return self.mask if fits else torch.ones(x.shape[:2], dtype=torch.bool)


@dataclass
class NormRecord:
    """One normalisation.

    Attributes:
        name: Name of the module, and its call.
        module: The module.
        x, y: Its input and its output.
        tokens: Where their tokens are.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor
    tokens: Tokens


@dataclass
class Projection:
    """A product with a weight that adds up the heads of an attention: ``y = z W_O + bias``.

    Attributes:
        heads: Their number.
        weight: W_O, ``[H d_k, d]``.
        bias: ``[d]``, or None.
        z: The heads' outputs side by side, ``[rows, n, H d_k]``; decoded, in a port.
        y: What is made of them, ``[rows, n, d]``.
    """

    heads: int
    weight: Tensor
    bias: Tensor | None
    z: Tensor
    y: Tensor


@dataclass
class AttentionRecord:
    """One attention of a layer.

    Attributes:
        name: Name of the layer; of a further attention, with what it is.
        cross: Whether its keys are another sequence's.
        maps: Its weights, ``[entries, n, m]``.
        entries: Which of them are those of each row and head, ``[rows, n, H]``.
        projection: The product after it.
        before: The stream that it is added to, ``[rows, n, d]``.
        read: What it reads: a norm of the stream if one precedes it, or the stream itself.
        added: What is added: the projection's result, or what a norm or a scale makes of it.
        after: The stream with it; None where these have other tokens.
        circuits: Of its heads; empty at a later call of the same weights.
    """

    name: str
    cross: bool
    maps: Tensor | None
    entries: Tensor
    projection: Projection
    before: Tensor
    read: Tensor
    added: Tensor
    after: Tensor | None
    circuits: list[Circuit]


@dataclass
class LayerRecord:
    """Activations of one layer.

    Attributes:
        name: Name of the layer, and its call.
        x, y: Input and output of the layer, ``[rows, n, d]``.
        mask: The unpadded tokens, ``[rows, n]``.
        attentions: In order of execution.
        mlp: What is added after them; None if nothing is.
        norms: Normalisations in order of execution.
    """

    name: str
    x: Tensor
    y: Tensor
    mask: Tensor
    attentions: list[AttentionRecord]
    mlp: Tensor | None
    norms: list[NormRecord]


@dataclass
class _Draft:
    """A layer that is still running."""

    name: str
    called: tuple[str, int]
    module: nn.Module
    x: Tensor
    tokens: Tokens
    attended: dict[int, Attention] = field(default_factory=dict)
    projected: dict[int, Projected] = field(default_factory=dict)
    added: dict[int, tuple[Tensor, Tensor, Tensor, bool, Tensor | None]] = field(
        default_factory=dict
    )
    mlp: Tensor | None = None
    norms: list[NormRecord] = field(default_factory=list)

    def turn(self) -> None:
        """Where all entries of the first axis have one map, they are the tokens of a sequence."""
        maps = next((rows for *_, rows in self.added.values() if rows is not None), None)
        if maps is None or self.x.dim() != 3 or maps.shape != self.x.shape or len(self.x) < 2:
            return
        if self.tokens.axes.rows == 0 and bool((maps == maps[:1]).all()):
            axes = replace(self.tokens.axes, rows=1, tokens=0)
            self.tokens = replace(self.tokens, axes=axes, rows=self.x.shape[1])
            for norm in self.norms:
                norm.tokens = self.tokens

    def keep(self, x: Tensor) -> None:
        """Copy what is held of the memory of ``x``, which is about to change."""
        place, copies = x.untyped_storage().data_ptr(), dict[int, Tensor]()

        def kept(held: Any) -> Any:
            if not isinstance(held, Tensor) or held.untyped_storage().data_ptr() != place:
                return held
            if id(held) not in copies:
                copies[id(held)] = held.clone()
            return copies[id(held)]

        self.x, self.mlp = kept(self.x), kept(self.mlp)
        self.added = {part: tuple(map(kept, of)) for part, of in self.added.items()}
        for norm in self.norms:
            norm.x, norm.y = kept(norm.x), kept(norm.y)
        for found in self.projected.values():
            found.z, found.y = kept(found.z), kept(found.y)
        for attention in self.attended.values():
            attention.maps = kept(attention.maps)

    def through(self, part: Tensor) -> Tensor:
        """A norm of ``part``, if one reads it, or ``part`` itself."""
        return next((norm.y for norm in self.norms if norm.x is part), part)


def record(
    model: nn.Module,
    batch: Mapping[str, Any],
    on_layer: Callable[[LayerRecord], None],
    on_norm: Callable[[NormRecord], None],
    plan: Plan | None = None,
) -> tuple[tuple[str, ...], Plan]:
    """Run the model; call back for each layer when it is done, and for norms outside layers.

    A few rows are run several times before, to find the layers and the axes of their tokens.

    Args:
        model: The model in any mode; it runs in ``eval`` mode and is put back.
        batch: Arguments of its forward. Values of padding are ignored.
        on_layer: Called with each layer.
        on_norm: Called with each normalisation outside the layers.
        plan: The layers of a model of the same modules on inputs of the same shapes, so that they
            need not be found again.

    Returns:
        Names of attentions after which no projection was found; they are left out. And the layers.

    Raises:
        InputError: As for :func:`check_inputs`.
        UnsupportedError: The model has neither an attention nor repeated layers.
        RangeError: An activation of an unpadded token is NaN or infinite; the message names the
            site.
    """
    check_inputs(model, batch)
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            if plan is None:
                with same_draws():
                    plan = plan_of(model, batch)
            recorder = _Recorder(model, batch, plan, on_layer, on_norm)
            with recorder.running():
                model(**batch)
    finally:
        for module in training:
            module.training = True
    return tuple(recorder.incomplete), plan


def check_inputs(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check what a model is run on.

    Args:
        model: The model.
        batch: Arguments of its forward.

    Raises:
        InputError: Not a model, not a dictionary, one without rows, or arrays instead of tensors.
        UnsupportedError: A tensor that is sparse, nested, quantised or on ``meta``.
    """
    check_kind("measure_ranks", "model", model, nn.Module, "a transformers model")
    check_kind("measure_ranks", "batch", batch, Mapping, "dict(input_ids=ids)")
    for name, value in batch.items():
        if isinstance(value, list | np.ndarray):
            raise InputError(
                f"measure_ranks needs tensors, got {type(value).__name__} for {name}. Ask the "
                "tokenizer for return_tensors='pt', or use torch.as_tensor."
            )
        if isinstance(value, Tensor):
            check_tensor("measure_ranks", name, value, read=True)
    if not batch_size(batch):
        raise InputError(
            "measure_ranks needs a batch with rows, got none. Give the model at least one sequence."
        )
    if not any(True for _ in model.parameters()):
        raise InputError(
            f"measure_ranks needs a model with weights, got a {type(model).__name__} without. Give "
            "a transformer."
        )


class _Recorder(Listener):
    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        plan: Plan,
        on_layer: Callable[[LayerRecord], None],
        on_norm: Callable[[NormRecord], None],
    ) -> None:
        self.model, self.plan = model, plan
        self.on_layer, self.on_norm = on_layer, on_norm
        self.masks, self.rows = token_masks(batch), batch_size(batch)
        self.flow = Flow(self, (*model.parameters(), *model.buffers()))
        self.open: list[_Draft] = []
        self.calls: Counter[str] = Counter()
        self.incomplete: list[str] = []
        self.last: Tokens | None = None  # of the layer before

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hooks on layers and norms, for one pass."""
        handles = []
        for name, module in self.model.named_modules():
            if name in self.plan.layers:
                handles += [
                    module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True),
                    module.register_forward_hook(self._leave),
                ]
            elif is_norm(module):
                handles.append(module.register_forward_hook(partial(self._normed, name)))
        try:
            with followed(self.model, self.flow):
                yield
        finally:
            for handle in handles:
                handle.remove()

    # What flows.

    def attended(self, attention: Attention) -> None:
        if self.open:
            self.open[-1].attended[attention.number] = attention

    def projected(self, found: Projected) -> None:
        if self.open:
            self.open[-1].projected[found.attention.number] = found

    def added(
        self, part: int, x: Tensor, rows: Tensor | None, other: Tensor, y: Tensor, others: Any
    ) -> None:
        if not self.open:
            return
        draft = self.open[-1]
        if part == MLP:
            if x.numel() == draft.x.numel() and others != {MLP}:
                draft.mlp = x
        elif part not in draft.added:
            alone = others == {MLP}  # an MLP beside the attention
            draft.added[part] = x, draft.x if alone else other, y, alone, rows

    def overwritten(self, x: Any) -> None:
        if isinstance(x, Tensor) and self.open:
            with self.flow.unseen():
                for draft in self.open:
                    draft.keep(x)

    # The modules.

    def _called(self, name: str) -> tuple[str, int]:
        self.calls[name] += 1
        count = self.calls[name]
        return (name if count == 1 else f"{name}, call {count}"), count

    def _tokens(self, name: str, count: int, x: Tensor, width: int = 0) -> Tokens:
        axes = self.plan.axes.get((name, count)) or self.plan.axes.get((name, 1), Axes())
        return Tokens(axes, tuple(x.shape), self.rows, self.masks, width)

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        called, count = self._called(name)
        x = first_tensor(args, kwargs)
        if x is None:
            return
        tokens = self._tokens(name, count, x, self.plan.layers[name])
        self.open.append(_Draft(called or "the model", (name, count), module, x, tokens))
        self.check(x, self.open[-1], f"{self.open[-1].name}, input")
        self.flow.enter(x)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.open or self.open[-1].module is not module:
            return
        draft = self.open.pop()
        self.flow.leave()
        with self.flow.unseen():
            y = first_tensor((output,) if isinstance(output, Tensor) else tuple(
                output.values() if isinstance(output, Mapping) else output), {})  # fmt: skip
            if y is None:
                return
            self.incomplete += [
                _name(draft, a, draft.attended) for a in draft.attended.values()
                if not a.projected
            ]  # fmt: skip
            if draft.attended and not draft.projected:
                return
            self.on_layer(self._finish(draft, y))

    def _finish(self, draft: _Draft, y: Tensor) -> LayerRecord:
        draft.turn()
        self.last = draft.tokens
        tokens, x = draft.tokens, draft.tokens.of(draft.x)
        attentions = [self._attention(draft, found) for _, found in sorted(draft.projected.items())]
        self.check(y, draft, f"{draft.name}, output")
        return LayerRecord(
            draft.name, x, tokens.of(y), tokens.mask_of(x),
            attentions, None if draft.mlp is None else tokens.of(draft.mlp), draft.norms,
        )  # fmt: skip

    def _attention(self, draft: _Draft, found: Projected) -> AttentionRecord:
        attention, tokens = found.attention, draft.tokens
        z, y, entries = _by_sequence(found, tokens)
        name = _name(draft, attention, draft.projected)
        self.check(found.z, draft, f"{name}, attention")
        raw = draft.through(found.y)
        before, alone, after = draft.x, True, None
        if attention.number in draft.added:
            raw, before, after, alone, _ = draft.added[attention.number]
        read = tokens.of(draft.through(before))
        before = tokens.of(before)
        added = y if raw is found.y else tokens.of(raw)
        if added.shape == y.shape and added.equal(y):
            added = y  # so that who compares them sees that they are one
        if alone or after is None:
            after = before + added if before.shape == added.shape else None
        else:
            after = tokens.of(after)
        maps = attention.maps
        if maps is not None:
            maps = maps.reshape(-1, *maps.shape[-2:])
        projection = Projection(found.heads, found.weight, found.bias, z, y)
        name_of, count = draft.called
        place = sorted(draft.projected).index(attention.number)
        circuits = self.plan.circuits.get((name_of, place), []) if count == 1 else []
        return AttentionRecord(
            name, attention.cross, maps, entries, projection, before, read, added, after, circuits
        )

    def _normed(self, name: str, module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        if self.flow.closed or not args or not isinstance(y, Tensor):
            return  # called by what measures it
        called, count = self._called(name)
        x = args[0]
        if self.open:
            draft = self.open[-1]
            if x.numel() == draft.x.numel() and x.shape[-1] == draft.x.shape[-1]:
                draft.norms.append(NormRecord(called, module, x, y, draft.tokens))
        elif x.dim() in (2, 3) and y.shape == x.shape:
            tokens = self._tokens(name, count, x, x.shape[-1])
            if self.last is not None and self.last.shape == x.shape:
                tokens = self.last
            with self.flow.unseen():
                self._check(y, tokens, called)
                self.on_norm(NormRecord(called, module, x, y, tokens))

    def check(self, x: Tensor, draft: _Draft, site: str) -> None:
        """Raise RangeError if an unpadded token of a layer is not finite."""
        with self.flow.unseen():
            self._check(x, draft.tokens, site)

    def _check(self, x: Tensor, tokens: Tokens, site: str) -> None:
        if bool(x.isfinite().all()):
            return
        rows = tokens.of(x)
        bad = ~rows.isfinite() & tokens.mask_of(rows)[:, :, None].to(x.device)
        if bool(bad.any()):
            at = [int(i) for i in bad.nonzero()[0]]
            raise RangeError(
                f"measure_ranks needs finite activations, got {float(rows[*at])} in {site} "
                f"(sequence {at[0]}, token {at[1]}, {int(bad.sum())} in all). Use a wider "
                "type, such as float32, or other weights."
            )


def _by_sequence(found: Projected, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output of a projection and the maps of its heads, ``[rows, n, ...]``: whatever
    axes it has, rows of one map are of one sequence, and sequences come in the order of maps."""
    first = found.maps[:, 0]
    counts = torch.unique(first, return_counts=True)[1]
    even = int(counts.min()) == int(counts.max()) and len(counts) % tokens.rows == 0
    if found.attention.maps is None or not even:
        entries = found.maps.view(*found.z.shape[:-1], -1)
        return tokens.of(found.z), tokens.of(found.y), tokens.of(entries)
    parts = [x.reshape(len(first), -1) for x in (found.z, found.y, found.maps)]
    order = first.argsort(stable=True)
    if not torch.equal(order, torch.arange(len(order))):
        parts = [x[order.to(x.device)] for x in parts]
    z, y, entries = (x.view(tokens.rows, -1, x.shape[-1]) for x in parts)
    return z, y, entries


def _name(draft: _Draft, attention: Attention, among: Mapping[int, Any]) -> str:
    """The layer's name for its first attention to itself; others say what they are."""
    alike = [
        number for number in sorted(among)
        if draft.attended[number].cross == attention.cross
    ]  # fmt: skip
    place = alike.index(attention.number) + 1
    if attention.cross:
        return f"{draft.name}, cross attention" + (f" {place}" if place > 1 else "")
    return draft.name if place == 1 else f"{draft.name}, attention {place}"
