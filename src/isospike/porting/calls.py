"""Products and functions that no module stands for, computed by spikes where they are called.

While a module of a port runs, a mode of torch sees every function that is called in it. A product
with a tensor that the model stores is known by that tensor, wherever it is kept and in whatever
order the products come (an expert's, say); any other by the place in the source that calls it. A
weight that is multiplied several times in one pass has a site and a bias for each.
"""

import functools
import itertools
import sys
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isospike.errors import UnsupportedError
from isospike.porting import lowering, recurrent, transforms
from isospike.porting.attention import SpikingAttention
from isospike.porting.elementary import EVERY, make_called
from isospike.porting.function_calls import FUNCTIONS
from isospike.porting.lowering import Convolution, Multiplier, with_weight
from isospike.porting.matmul import SpikingMatmul, SpikingScale
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Run

LOWERINGS = {**lowering.LOWERINGS, **recurrent.LOWERINGS, **transforms.LOWERINGS}
WRITTEN_IN_PYTHON = {
    f: lowering.unwrapped(f) for f in (*lowering.WRITTEN_IN_PYTHON, *transforms.WRITTEN_IN_PYTHON)
}
CALLS = "isospike_calls"  # submodule of a module that calls products
OWN = (*EVERY, SpikingProduct, SpikingAttention, SpikingMatmul, SpikingScale)
"""Modules whose own products are spikes' already."""

Called = Any  # one of those
View = tuple[int, ...]
"""Offset, sizes and strides of a tensor in its storage."""


@dataclass(frozen=True)
class Call:
    """Which product of a module a :data:`Called` stands for.

    Attributes:
        form: ``linear``, ``conv``, ``matmul``, ``scale`` or ``attention``; or a function of
            :func:`isospike.porting.elementary.make_called`.
        number: Tells products of one name apart; of a stored weight, its use in one pass.
        place: In the source, of a product without a stored weight.
        module, tensor: Where the weight is stored, if it is.
        view: What of it.
        constant: The operand that is made of weights alone, ``left`` or ``right``, if it is not
            stored; the other one is the input.
        part: Which of a stack of such weights.
        shape: Of the weight.
        stride, dilation, groups: Of a convolution.
        keyed: See :class:`SpikingMatmul`.
        single: See :class:`SpikingScale`.
        heads: Whether the third axis from the end of an attention is its heads.
        side, source: Of a :class:`isospike.porting.elementary.SpikingRelay`.
        eps: Of a normalisation.
    """

    form: str
    number: int
    place: str = ""
    module: str = ""
    tensor: str = ""
    view: tuple[int, ...] = ()
    constant: str = ""
    part: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    keyed: bool = False
    single: tuple[str, ...] = ()
    heads: bool = True
    side: str = ""
    source: str = ""
    eps: float = 0.0

    @property
    def convolution(self) -> Convolution | None:
        """How the kernel moves, of a convolution."""
        if self.form != "conv":
            return None
        return Convolution(tuple(self.stride), tuple(self.dilation), self.groups)

    def name(self, owner: str) -> str:
        """Of the product, and of its site.

        Args:
            owner: The module that calls it.
        """
        if not self.tensor:
            parts = [self.form.replace(" ", "-"), str(self.number) if self.number else "",
                     f"part{self.part}" if self.part else ""]  # fmt: skip
        else:
            path = f"{self.module}.{self.tensor}".removeprefix(f"{owner}.").removeprefix(".")
            offset, sizes = self.view[0], self.shape
            size = torch.Size(sizes).numel()
            place = str(offset // size) if offset % size == 0 else f"from{offset}"
            parts = [path, place if offset else "", f"use{self.number}" if self.number else ""]
        return f"{owner}:{'.'.join(p for p in parts if p)}"

    def build(self, owner: str, run: Run, weight: Tensor | None) -> Called:
        """The module that computes it, its site still to be found.

        Args:
            owner: The module that calls it.
            run: Of the port.
            weight: Its weight, if it has one.
        """
        name = self.name(owner)
        circuit = make_called(self.form, name, run, self)
        if circuit is not None:
            return circuit
        if self.form == "attention":
            return SpikingAttention(name, run)
        if self.form == "matmul":
            return SpikingMatmul(name, run, self.keyed)
        if self.form == "scale":
            return SpikingScale(name, run, self.single)
        if weight is None:
            weight = torch.zeros(self.shape)
        return SpikingProduct(name, run, weight, None, self.convolution)


class Calls(nn.ModuleList):
    """The products that one module calls.

    Attributes:
        calls: Which each of them is.
        stored: The module that stores its weight, if one does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.stored: list[tuple[nn.Module | None]] = []  # in tuples, so that they are no children
        self._viewed: dict[tuple[int, View], list[Called]] = {}
        self._placed: dict[tuple[str, int], Any] = {}

    def add(self, call: Call, module: Called, holder: nn.Module | None) -> None:
        """One more product.

        Args:
            call: Which it is.
            module: What computes it.
            holder: The module that stores its weight.
        """
        self.append(module)
        self.calls.append(call)
        self.stored.append((holder,))
        self._viewed.clear()
        self._placed.clear()

    def at(self, place: str, part: int = 0) -> tuple[Call, Called] | None:
        """A product that is known by its place."""
        if not self._placed:
            self._placed = {(c.place, c.part): (c, m) for c, m in
                            zip(self.calls, self, strict=True) if c.place}  # fmt: skip
        return self._placed.get((place, part))

    def share_digits(self) -> None:
        """Have the parts of a rotation send the same spikes."""
        for call, module in zip(self.calls, self, strict=True):
            source = self.at(call.source) if call.source else None
            if source is not None:
                module.digits = source[1].digits

    def stores(self, x: Tensor) -> bool:
        """Whether ``x`` is of a weight that is multiplied here."""
        place = x.untyped_storage().data_ptr()
        if place not in {place for place, _ in self._viewed}:
            self._viewed = self._by_view()
        return any(place == p for p, _ in self._viewed)

    def viewed(self, x: Tensor) -> list[Called]:
        """The products with a stored weight, one for each time it is multiplied in a pass."""
        return self._viewed.get((x.untyped_storage().data_ptr(), view_of(x)), [])

    def _by_view(self) -> dict[tuple[int, View], list[Called]]:
        found: dict[tuple[int, View], list[Called]] = {}
        for call, (holder,), module in zip(self.calls, self.stored, self, strict=True):
            if holder is not None:
                place = getattr(holder, call.tensor).untyped_storage().data_ptr()
                found.setdefault((place, call.view), []).append(module)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_viewed": {}, "_placed": {}}


def view_of(x: Tensor) -> View:
    """Where a tensor is in its storage."""
    return (x.storage_offset(), *x.shape, *x.stride())


# ----------------------------------------------------------------------------- while it runs


@dataclass
class Frame:
    """A module that runs."""

    name: str
    module: nn.Module


class _Running(threading.local):
    """The modules of a port that run in a thread, the innermost last."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.times: dict[tuple[str, int, View], int] = {}
        self.place = ""  # that calls the present function of torch
        self.count = 0  # products of its so far
        self.repeats = False  # whether they are those of an earlier step of a recurrence
        self.before = 0  # products before the recurrence
        self.mode: Any = None


running = _Running()


class _Mode(TorchFunctionMode):
    """Has a multiplier compute what multiplies."""

    def __init__(self, multiplier: Multiplier) -> None:
        self.multiplier = multiplier

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        lowered = LOWERINGS.get(function)
        if lowered is None and self.multiplier.spiking:
            lowered = FUNCTIONS.get(function)
        if lowered is None:
            written = WRITTEN_IN_PYTHON.get(function)
            if written is None:
                return function(*args, **kwargs)
            with self:
                return written(*args, **kwargs)
        if isinstance(running.frames[-1].module, OWN):
            return function(*args, **kwargs)
        running.place, running.count, running.repeats = _place(sys._getframe(1)), 0, False
        named = {key: value for key, value in kwargs.items() if key != "out"}
        y = lowered(self.multiplier, *args, **named)
        if y is NotImplemented:
            return function(*args, **kwargs)
        return y if kwargs.get("out") is None else kwargs["out"].copy_(y)


# What calls the mode from Python: functions of torch, and the type checks of the tests.
_BETWEEN = {"torch.overrides", "torch.functional", "torch._tensor", "jaxtyping._decorator"}


def _place(frame: Any) -> str:
    """The function that calls, and where the call begins and ends in it: lines, counted from the
    function's first, and columns."""
    while frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    return _text_of(frame.f_code, frame.f_lasti)


@functools.lru_cache(maxsize=4096)
def _text_of(code: types.CodeType, instruction: int) -> str:
    first, last, start, end = next(itertools.islice(code.co_positions(), instruction // 2, None))
    lines = [(line or 0) - code.co_firstlineno for line in (first, last)]
    return f"{code.co_name}.{lines[0]}.{start}-{lines[1]}.{end}"


def next_place() -> str:
    """The place of the next product that the present function of torch computes."""
    running.count += 1
    return running.place if running.count == 1 else f"{running.place}.{running.count}"


def begin_step(first: bool) -> None:
    """A step of a recurrence begins; its products have the places of the first one's."""
    if first:
        running.before = running.count
    running.count, running.repeats = running.before, not first


class Hooks:
    """Has the products that the modules of a port call seen, by what ``run.multiplier`` is.

    Args:
        model: The port.
        run: Its state.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.model, self.run = model, run
        self.handles: dict[int, tuple[nn.Module, list[Any]]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Also of modules that came later."""
        for name, module in self.model.named_modules():
            if id(module) not in self.handles:
                enter = partial(_enter, self.run, name)
                self.handles[id(module)] = (
                    module,
                    [
                        module.register_forward_pre_hook(enter, prepend=True),
                        module.register_forward_hook(_leave, always_call=True),
                    ],
                )

    def remove(self) -> None:
        """No longer."""
        for _, handles in self.handles.values():
            for handle in handles:
                handle.remove()


def _enter(run: Run, name: str, module: nn.Module, args: Any) -> None:
    if run.multiplier is None:
        return
    if not running.frames:
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if traced or _within_dynamo():
            raise _not_compiled()
        running.times.clear()
        run.multiplier.begin()
        running.mode = _Mode(run.multiplier)
        running.mode.__enter__()
    running.frames.append(Frame(name, module))
    run.multiplier.entered(name)


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    frames = running.frames
    if frames and frames[-1].module is module:
        frames.pop()
        if not frames:
            running.mode.__exit__(None, None, None)


class Runner(Multiplier):
    """Sends every product to its module.

    Args:
        spiking: Whether functions have modules too.
    """

    def __init__(self, spiking: bool) -> None:
        self.spiking = spiking

    def begin(self) -> None:
        """A pass begins."""

    def entered(self, name: str) -> None:
        """A module begins to run."""

    def is_weight(self, x: Tensor) -> bool:
        calls = self._calls
        return calls is not None and x.layout == torch.strided and calls.stores(x)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = self._stored(weight)(x)
        return y

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        place = next_place()
        call, module = self._at(place)
        if call.form == "matmul":
            y: Tensor = module(a, b)
            return y

        def linear(x: Tensor, _: Tensor, part: int) -> Tensor:
            y: Tensor = self._at(place, part)[1](x)
            return y

        if call.constant == "right":
            return with_weight(linear, a, b)
        return with_weight(linear, b.mT, a.mT).mT

    def matmul_of_one(self, a: Tensor, b: Tensor) -> Any:
        place = running.place if not running.count else f"{running.place}.{running.count + 1}"
        found = None if self._calls is None else self._calls.at(place)
        if found is None or not found[0].keyed or min(a.dim(), b.dim()) < 2:
            return NotImplemented  # of a line that sums over channels, as some masks are made
        return self.matmul(a, b)

    def multiply(self, a: Tensor, b: Tensor) -> Any:
        found = None if self._calls is None else self._calls.at(next_place())
        return NotImplemented if found is None else found[1](a, b)

    def compute(self, form: str, x: Tensor, *others: Any, **how: Any) -> Any:
        place = f"{next_place()}.{form}"
        found = None if self._calls is None else self._calls.at(place)
        return NotImplemented if found is None else found[1](x, *others)

    def convolve(self, x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
        module = self._stored(weight) if self.is_weight(weight) else self._at(next_place())[1]
        y: Tensor = module(x)
        return y

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        call, module = self._at(next_place())
        return attend(module, q, k, v, mask, scaling, call.heads)

    def begin_step(self, first: bool) -> None:
        begin_step(first)

    @property
    def _calls(self) -> Calls | None:
        found: Calls | None = getattr(running.frames[-1].module, CALLS, None)
        return found

    def _stored(self, weight: Tensor) -> Called:
        """The product of a stored weight; past its last use in a pass, the last one's."""
        calls, frame = self._calls, running.frames[-1]
        modules = [] if calls is None else calls.viewed(weight)
        if not modules:
            raise _unknown(frame)
        return modules[min(times(frame, weight), len(modules) - 1)]

    def _at(self, place: str, part: int = 0) -> tuple[Call, Called]:
        calls, frame = self._calls, running.frames[-1]
        found = None if calls is None else calls.at(place, part)
        if found is None:
            raise _unknown(frame)
        return found


def times(frame: Frame, weight: Tensor) -> int:
    """How often a module has multiplied a stored weight in this pass before."""
    key = frame.name, weight.untyped_storage().data_ptr(), view_of(weight)
    count = running.times.get(key, 0)
    if running.repeats and count:
        return count - 1
    running.times[key] = count + 1
    return count


def _not_compiled() -> UnsupportedError:
    """The error of a port that is compiled, exported or traced though it sees calls."""
    return UnsupportedError(
        "torch needs a port whose matrix products are all modules to compile, export or trace it, "
        "got one with products in the code of a forward. Run it without that."
    )


def _within_dynamo() -> bool:
    """Whether torch.compile has a part in the call, be it that it fell back to Python."""
    caller: Any = sys._getframe(1)
    while caller is not None:
        if str(caller.f_globals.get("__name__")) == "torch._dynamo.eval_frame":
            if caller.f_code.co_name == "compile_wrapper":
                return True
        caller = caller.f_back
    return False


def _unknown(frame: Frame) -> UnsupportedError:
    return UnsupportedError(
        f"this port needs calibration inputs that reach every matrix product, got one in "
        f"{frame.name or 'the model'} ({type(frame.module).__name__}) that they did not reach. "
        "Port the model again on inputs that use it."
    )


def attend(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float,
    heads: bool,
) -> Tensor:
    """Attention of any number of axes, by a module that has four.

    Args:
        module: Called with query, key, value, mask and scaling.
        q: Query, ``[..., tokens, channels]``.
        k: Key, likewise.
        v: Value, likewise.
        mask: Added to the scores.
        scaling: Multiplies them.
        heads: Whether the third axis from the end is the heads; it has one size then.
    """
    heads = heads and q.dim() > 3
    batch = q.shape[: -3 if heads else -2]

    def four(x: Tensor) -> Tensor:
        x = x.expand(*batch, *x.shape[len(batch) - x.dim() :]) if x.dim() < q.dim() else x
        return x.reshape(-1, *(x.shape[-3:] if heads else (1, *x.shape[-2:])))

    if mask is not None and q.dim() != 4 or not heads and mask is not None:
        scores = (*q.shape[:-1], k.shape[-2])
        mask = mask.expand(scores).reshape(-1, *(scores[-3:] if heads else (1, *scores[-2:])))
    y: Tensor = module(four(q), four(k), four(v), mask, scaling)
    return y.reshape(*q.shape[:-1], v.shape[-1])


def restore(model: nn.Module, calls: Mapping[str, list[Call]], run: Run) -> None:
    """Make a model with the products that were saved; their weights are still to be loaded.

    Args:
        model: Of the class and the configuration that were saved.
        calls: By module.
        run: How it runs.
    """
    for owner, each in calls.items():
        module = model.get_submodule(owner)
        found = Calls()
        setattr(module, CALLS, found)
        for call in each:
            holder = model.get_submodule(call.module) if call.tensor else None
            found.add(call, call.build(owner, run, None), holder)
