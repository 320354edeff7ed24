"""What flows where while a model runs: maps, heads' outputs, and what is added to the stream.

Nothing is known of the model's modules. A tensor carries a mark of what it was made of, from the
function of torch that made it to those that read it: the softmax whose weights it holds, the heads
whose outputs lie in it, and in which channel each; the part of the layer, an attention or the MLP,
whose result it is. So an attention is found by what is called, and so is its output projection: the
first product with a weight that reads what the heads have given.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from isospike.porting.calls import WRITTEN_IN_PYTHON
from isospike.porting.lowering import LOWERINGS, Convolution, Multiplier

MLP = -1
"""The part of a layer that is no attention; the attentions are numbered from 0."""

_ADDS = {"add", "add_"}
_SOFTMAX = {"softmax", "_softmax"}
# What only moves entries, so that it moves their numbers too.
_MOVES = {
    "transpose", "permute", "reshape", "view", "flatten", "unflatten", "movedim", "moveaxis",
    "swapaxes", "swapdims", "unsqueeze", "squeeze", "t", "adjoint", "__get__", "__getitem__",
    "chunk", "split", "tensor_split", "unbind", "narrow", "select", "expand", "expand_as",
    "view_as", "reshape_as", "roll", "index_select", "flip", "cat", "concat", "concatenate",
    "stack", "repeat", "unfold",
}  # fmt: skip
_ANEW = {"view": torch.Tensor.reshape, "view_as": torch.Tensor.reshape_as}
_PRODUCTS = {
    "linear", "matmul", "mm", "bmm", "mv", "dot", "__rmatmul__", "addmm", "baddbmm", "addmv",
    "addbmm", "inner", "tensordot", "einsum", "multi_dot", "bilinear",
    "scaled_dot_product_attention",
}  # fmt: skip
_GROUPED = {"grouped_mm", "_grouped_mm", "_scaled_mm"}  # of experts
_PLAIN = {"matmul", "mm", "bmm"}


@dataclass
class Made:
    """Which channels of a product with a weight lie in a tensor.

    Attributes:
        weight: ``[in, out]``.
        channels: The channel of each entry, in the shape of the tensor.
    """

    weight: Tensor
    channels: Tensor


@dataclass
class Attention:
    """One attention while it runs.

    Attributes:
        number: Of its layer.
        cross: Whether its queries and its keys come from different sequences.
        maps: Its weights, ``[..., queries, keys]``; None if they were not wanted.
        operands: What made query, key and value, ``[entries, channels]`` each, where that is known
            and wanted.
        projected: Whether a product with a weight has read the heads' outputs.
    """

    number: int
    cross: bool
    maps: Tensor | None
    operands: tuple[Made | None, ...] = ()
    projected: bool = False


@dataclass
class Mark:
    """What a tensor was made of.

    Attributes:
        stream: Whether the layer's input is in it.
        parts: The parts of the layer whose results are in it.
        map: Whether it holds the weights of a softmax.
        cross: Of scores and maps, whether the operands come from different sequences.
        heads: The map that made each entry, in the shape of the tensor; of the projection's result,
            that of the first head.
        attention: Whose these are.
        made: The product with a weight that made it, where that is wanted.
        operands: Of scores and maps, what made query and key.
    """

    stream: bool = False
    parts: frozenset[int] = frozenset()
    map: bool = False
    cross: bool | None = None
    heads: Tensor | None = None
    attention: Attention | None = None
    made: Made | None = None
    operands: tuple[Made | None, ...] = ()


@dataclass
class Projected:
    """The product with a weight that reads the heads' outputs.

    Attributes:
        attention: Whose heads they are.
        weight: ``[H d_k, d]``, the heads one below the other.
        bias: ``[d]``, or None.
        z: Its input, ``[..., H d_k]``, in the same order.
        y: Its output, ``[..., d]``.
        maps: Which map each head of each row of ``z`` is of, ``[rows, H]``.
    """

    attention: Attention
    weight: Tensor
    bias: Tensor | None
    z: Tensor
    y: Tensor
    maps: Tensor

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(self.maps.shape[1])


class Listener:
    """Is told what was found; override what you want to know."""

    def attended(self, attention: Attention) -> None:
        """Heads have multiplied their maps with their values."""

    def projected(self, found: Projected) -> None:
        """Their outputs were multiplied by a weight."""

    def added(
        self, part: int, x: Tensor, rows: Tensor | None, other: Tensor, y: Tensor, others: Any
    ) -> None:
        """The result ``x`` of one part alone was added to ``other``, of parts ``others``: ``y``.

        ``rows`` is the map that made each entry, of an attention.
        """

    def overwritten(self, x: Any) -> None:
        """What lies in the memory of ``x`` is about to change."""


@dataclass
class _Layer:
    marks: Any = field(default_factory=WeakIdKeyDictionary)
    attentions: int = 0


class Flow(TorchFunctionMode):
    """Follows the tensors of a model while it is active.

    Args:
        listener: Is told what is found.
        weights: The tensors that the model stores.
        maps: Whether maps are wanted that torch does not show; if not, what made query, key and
            value is followed instead.
    """

    def __init__(self, listener: Listener, weights: Iterable[Tensor], maps: bool = True) -> None:
        super().__init__()
        self.listener, self.wants_maps = listener, maps
        self.stored = {w.untyped_storage().data_ptr() for w in weights if w.numel()}
        self.layers = [_Layer()]
        self.closed = 0  # modules that run whose functions are not to be followed
        self.multiplier = _Again(self)

    def enter(self, x: Tensor) -> None:
        """A layer begins, which reads ``x``."""
        self.layers.append(_Layer())
        self.marks[x] = Mark(stream=True)

    def leave(self) -> None:
        """It is done."""
        self.layers.pop()

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Functions that are called inside are not followed."""
        self.closed += 1
        try:
            with torch._C.DisableTorchFunction():  # or each of them would ask first
                yield
        finally:
            self.closed -= 1

    @property
    def marks(self) -> Any:
        """The marks of the tensors of the layer that runs."""
        return self.layers[-1].marks

    def multiplied(self, x: Tensor, weight: Callable[[], Any], y: Tensor) -> None:
        """A product with a weight ``x`` -> ``y``; ``weight()`` gives weight, bias and the input."""
        mark = self.marks.get(x, Mark())
        if mark.heads is None or mark.attention is None or mark.attention.projected:
            self.marks[y] = Mark(mark.stream, frozenset({MLP}))
            if not self.wants_maps:
                channels = torch.arange(y.shape[-1], dtype=torch.int32).expand(y.shape)
                self.marks[y].made = Made(weight()[0], channels)
            return
        matrix, bias, z = weight()
        found = _projected(mark.attention, mark.heads, matrix, bias, z, y)
        if found is None:
            return
        mark.attention.projected = True
        self.listener.projected(found)
        rows = found.maps[:, :1].view(*y.shape[:-1], 1).expand(y.shape)
        self.marks[y] = Mark(mark.stream, frozenset({mark.attention.number}), heads=rows,
                             attention=mark.attention)  # fmt: skip

    def passed(self, x: Tensor, y: Tensor) -> None:
        """A product ``x`` -> ``y`` that is no projection of heads."""
        self.marks[y] = Mark(self._stream(x), frozenset({MLP}))

    def attention(
        self, y: Tensor, query: Tensor, key: Tensor, value: Tensor, maps: Tensor | None
    ) -> None:
        """An attention by one function or module: ``y [..., queries, channels]``."""
        made = tuple(self.marks.get(x, Mark()).made for x in (query, key, value))
        self.attended(y, maps, self._stream(query) != self._stream(key), made)

    def attended(
        self, y: Tensor, maps: Tensor | None, cross: bool, made: tuple[Made | None, ...]
    ) -> None:
        """Maps have multiplied values: ``y [..., queries, channels]``."""
        batch = y.shape[:-2]
        count = int(torch.Size(batch).numel())
        numbers = torch.arange(count, dtype=torch.int32).view(*batch, 1, 1).expand(y.shape)
        layer = self.layers[-1]
        operands = tuple(_by_entry(m, batch) for m in made)
        attention = Attention(layer.attentions, cross, maps, operands)
        layer.attentions += 1
        self.marks[y] = Mark(True, heads=numbers, attention=attention)
        self.listener.attended(attention)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.closed:
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "__setitem__" or (name[-1:] == "_" and name[-2:] != "__"):
            self.listener.overwritten(args[0])
        if function in LOWERINGS and (name in _PRODUCTS or name.startswith("conv")):
            return self._product(function, name, args, kwargs)
        if function in WRITTEN_IN_PYTHON:
            with self:
                return WRITTEN_IN_PYTHON[function](*args, **kwargs)
        if name in _ADDS and len(args) > 1 and isinstance(args[1], Tensor):
            return self._add(function, name, args, kwargs)
        y = function(*args, **kwargs)
        if name in _GROUPED and isinstance(y, Tensor):
            self.passed(args[0], y)
            return y
        self.follow(function, name, args, kwargs, y)
        if name in _SOFTMAX and isinstance(y, Tensor):
            mark = self.marks.get(y, Mark())
            self.marks[y] = Mark(mark.stream, map=True, cross=mark.cross, operands=mark.operands)
        return y

    def _product(self, function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "scaled_dot_product_attention":
            y = function(*args, **kwargs)
            self._scaled_dot_product(y, *args, **kwargs)
            return y
        if name == "linear":
            y = function(*args, **kwargs)
            self._linear(y, *args, **kwargs)
            return y
        if name in _PLAIN and len(args) == 2 and not kwargs:
            y = function(*args)
            self.matmul(args[0], args[1], y)
            return y
        if name == "addmm" and len(args) == 3 and not kwargs and args[0].dim() == 1:
            y = function(*args)
            self.multiplied(args[1], lambda: (args[2], args[0], args[1]), y)
            return y
        if name.startswith("conv"):
            y = function(*args, **kwargs)
            self._convolution(y, *args, **kwargs)
            return y
        with self:
            named = {key: value for key, value in kwargs.items() if key != "out"}
            y = LOWERINGS[function](self.multiplier, *args, **named)
        if y is NotImplemented or kwargs.get("out") is not None:
            y = function(*args, **kwargs)
            self.follow(function, name, args, kwargs, y)
        return y

    def _scaled_dot_product(
        self, y: Tensor, query: Tensor, key: Tensor, value: Tensor,
        attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> None:  # fmt: skip
        maps = None
        if self.wants_maps:
            k = key
            if enable_gqa and k.shape[-3] != query.shape[-3]:
                k = k.repeat_interleave(query.shape[-3] // k.shape[-3], -3)
            scores = query @ k.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
            mask = attn_mask
            if is_causal:
                mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
            if mask is not None and mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -torch.inf)
            elif mask is not None:
                scores = scores + mask
            hidden = (scores == -torch.inf).all(-1, keepdim=True)  # of padding: softmax is NaN
            maps = scores.softmax(-1).masked_fill(hidden, 0.0)
        self.attention(y, query, key, value, maps)

    def _linear(self, y: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self.multiplied(input, lambda: (weight.t(), bias, input), y)

    def matmul(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """A product of two tensors."""
        left, right = self.marks.get(a, Mark()), self.marks.get(b, Mark())
        if min(a.dim(), b.dim()) < 2:
            self.marks[y] = Mark(left.stream or right.stream)
        elif not left.map and (self._is_weight(b) or left.heads is not None and b.dim() == 2):
            self.multiplied(a, lambda: (b, None, a), y)
        elif self._is_weight(a) and not right.map:
            turned = y.mT
            self.multiplied(b, lambda: (a.mT, None, b.mT), turned)
            self.marks[y] = self.marks.get(turned)
        elif left.map:
            self.attended(y, a, bool(left.cross), (*left.operands, right.made))
        elif right.map:
            turned = y.mT
            value = left.made and Made(left.made.weight, left.made.channels.mT)
            self.attended(turned, b.mT, bool(right.cross), (*right.operands, value))
            mark = self.marks[turned]
            self.marks[y] = Mark(True, heads=mark.heads.mT, attention=mark.attention)
        elif self.marks.get(b) is None and self.marks.get(a) is not None:
            self.passed(a, y)  # with a weight that is computed, or an expert's
        elif self.marks.get(a) is None and self.marks.get(b) is not None:
            self.passed(b, y)
        else:
            key = right.made and Made(right.made.weight, right.made.channels.mT)
            self.marks[y] = Mark(left.stream or right.stream, cross=left.stream != right.stream,
                                 operands=(left.made, key))  # fmt: skip

    def _convolution(
        self, y: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any,
        **how: Any,
    ) -> None:  # fmt: skip
        x = input
        flat = weight.shape[1] == (x.shape[1] if x.dim() == weight.dim() else -1)
        if not flat or any(n > 1 for n in weight.shape[2:]) or x.shape[2:] != y.shape[2:]:
            self.passed(x, y)
            return
        mark = self.marks.get(x, Mark())
        last, turned = x.movedim(1, -1), y.movedim(1, -1)
        if mark.heads is not None:
            self.marks[last] = Mark(mark.stream, heads=mark.heads.movedim(1, -1),
                                    attention=mark.attention)  # fmt: skip
        self.multiplied(last, lambda: (weight.flatten(1).t(), bias, last), turned)
        self.marks[y] = self.marks.get(turned, Mark(mark.stream))

    def _add(self, function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        pair = list(args[:2])
        marks = [self.marks.get(x, Mark()) for x in pair]
        alone = [len(mark.parts) == 1 for mark in marks]
        if not any(alone) or pair[0].shape != pair[1].shape:
            y = function(*args, **kwargs)
            self.follow(function, name, args, kwargs, y)
            return y
        if name == "add_":  # the first is about to be another
            pair[0] = pair[0].clone()
        y = function(*args, **kwargs)
        for i, (x, mark) in enumerate(zip(pair, marks, strict=True)):
            if alone[i]:
                result = y.clone() if name == "add_" else y
                (part,) = mark.parts
                self.listener.added(part, x, mark.heads, pair[1 - i], result, marks[1 - i].parts)
        self.follow(function, name, args, kwargs, y)
        return y

    def follow(self, function: Any, name: str, args: Any, kwargs: dict[str, Any], y: Any) -> None:
        """Mark what a function gives, that does not multiply."""
        known = [(x, m) for x in _tensors((*args, *kwargs.values()))
                 if (m := self.marks.get(x)) is not None]  # fmt: skip
        if not known:
            return
        if name == "__setitem__":
            self._write(args, known)
            return
        if name[-1:] == "_" and name[:-1] in _MOVES:  # in place
            name, function = name[:-1], getattr(Tensor, name[:-1])
        joined = [m.attention for _, m in known if m.attention and not m.attention.projected]
        for other in joined[1:]:
            if other is not joined[0]:  # parts of one attention, whose maps are apart
                other.projected, joined[0].maps = True, None
        stream = any(m.stream for _, m in known)
        parts = frozenset(p for _, m in known for p in m.parts)
        flags = [m.cross for _, m in known if m.cross is not None]
        cross = all(flags) if flags else None
        maps = [x for x, m in known if m.map]
        operands = next((m.operands for _, m in known if m.operands), ())
        heads = self._numbers(function, name, args, kwargs, y, [
            (x, m.heads, m.attention) for x, m in known if m.heads is not None])  # fmt: skip
        if name in _ADDS and any(self._is_stream(x) for x in _tensors(args[:2])):
            heads = []  # added to the stream: it is no longer the heads' alone
        made = self._numbers(function, name, args, kwargs, y, [
            (x, m.made.channels, m.made.weight) for x, m in known if m.made is not None
        ])  # fmt: skip
        for i, out in enumerate(_tensors((y,))):
            if not out.is_floating_point():
                continue
            is_map = bool(maps) and (name in _MOVES or name in ("as_strided", "pad")
                                     or any(x.shape == out.shape for x in maps))  # fmt: skip
            self.marks[out] = mark = Mark(stream, parts, is_map, cross, operands=operands)
            mark.heads, mark.attention = heads[i] if i < len(heads) else (None, None)
            if i < len(made) and made[i][0] is not None:
                mark.made = Made(made[i][1], made[i][0])

    def _numbers(
        self, function: Any, name: str, args: Any, kwargs: dict[str, Any], y: Any,
        known: list[tuple[Tensor, Tensor, Any]],
    ) -> list[tuple[Any, Any]]:  # fmt: skip
        """The numbers of the entries of each tensor of ``y``, which a function gave, and whose they
        are, from its arguments ``known``, the numbers of their entries, and whose these are."""
        if not known:
            return []
        owner = known[0][2]
        if name not in _MOVES or not args:
            return [
                next(((n, w) for x, n, w in known if x.shape == out.shape), (None, None))
                for out in _tensors((y,))
            ]
        by_tensor = {id(x): n for x, n, _ in known}

        def numbers(x: Any) -> Any:
            if isinstance(x, list | tuple) and any(isinstance(t, Tensor) for t in x):
                return [numbers(t) for t in x]
            if not isinstance(x, Tensor) or not x.is_floating_point():
                return x
            return by_tensor.get(id(x), torch.full(x.shape, -1, dtype=torch.int32))

        try:
            found = _ANEW.get(name, function)(numbers(args[0]), *args[1:], **kwargs)
        except (RuntimeError, TypeError):
            return []
        return [(x, owner) for x in _tensors((found,))]

    def _write(self, args: Any, known: list[tuple[Tensor, Mark]]) -> None:
        into, index, value = args[0], args[1], args[2]
        mark = self.marks.get(value) if isinstance(value, Tensor) else None
        old = self.marks.get(into, Mark())
        if mark is None:
            return
        heads = old.heads
        if mark.heads is not None:
            if heads is None:
                heads = torch.full(into.shape, -1, dtype=torch.int32)
            heads = heads.clone()
            heads[index] = mark.heads
        self.marks[into] = Mark(
            old.stream or mark.stream, old.parts | mark.parts, old.map or mark.map, mark.cross,
            heads, mark.attention or old.attention,
        )  # fmt: skip

    def _is_stream(self, x: Tensor) -> bool:
        mark = self.marks.get(x, Mark())
        return x.dim() > 1 and mark.heads is None and not mark.parts

    def _stream(self, x: Tensor) -> bool:
        return bool(self.marks.get(x, Mark()).stream)

    def _is_weight(self, x: Tensor) -> bool:
        return x.dim() == 2 and x.untyped_storage().data_ptr() in self.stored


class _Again(Multiplier):
    """Has what a function was lowered to followed as if the model had called it."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def is_weight(self, x: Tensor) -> bool:
        return self.flow._is_weight(x)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def multiply(self, a: Tensor, b: Tensor) -> Any:
        return NotImplemented

    def compute(self, form: str, x: Tensor, *others: Any, **how: Any) -> Any:
        return NotImplemented

    def convolve(self, x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
        return how.apply(x, weight)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scaling)

    def begin_step(self, first: bool) -> None:
        pass


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values, and in the lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (x for x in value if isinstance(x, Tensor))


def _by_entry(made: Made | None, batch: torch.Size) -> Made | None:
    """The channels of each entry ``[entries, channels]``, those of shared keys repeated."""
    if made is None or made.channels.dim() < 3:
        return None
    own = made.channels[..., 0, :]
    if own.shape[:-1] != batch:
        if own.dim() < 2 or not len(batch) or batch[-1] % own.shape[-2]:
            return None
        own = own.repeat_interleave(batch[-1] // own.shape[-2], -2)
    return Made(made.weight, own.reshape(-1, own.shape[-1]))


def _projected(
    attention: Attention, numbers: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor, y: Tensor
) -> Projected | None:
    """Sorts the channels of ``z`` by head; None if they are not all of heads of one width."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    which = rows[0]
    own, head, counts = torch.unique(which, return_inverse=True, return_counts=True)
    if not len(which) or int(own[0]) < 0 or int(counts.min()) != int(counts.max()):
        return None
    order = head.argsort(stable=True)
    width = len(which) // len(own)
    if not torch.equal(order, torch.arange(len(order))):
        at = order.to(z.device)
        z, weight = z[..., at], weight[at]
    maps = rows[:, order[::width]].clone()
    bias = None if bias is None else bias.detach()
    return Projected(attention, weight.detach(), bias, z, y, maps)
