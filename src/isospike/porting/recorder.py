"""Find the products that the modules of a model call, and put modules for them into it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.errors import UnsupportedError
from isospike.porting.calls import (
    CALLS,
    OWN,
    Call,
    Calls,
    begin_step,
    next_place,
    running,
    view_of,
)
from isospike.porting.elementary import make_called
from isospike.porting.lowering import Convolution, Multiplier
from isospike.porting.operands import counts_spikes
from isospike.porting.run import Run

MOST_TIMES = 64  # a stored weight is multiplied in one pass, and has a site for each
HANDLED = "\0"  # a module of this name stands in a trace for what a recorder computes


@dataclass
class _Found:
    """What is known of a product that was called."""

    call: Call
    weight: Tensor | None = None
    times: set[int] = field(default_factory=set)  # of a stored weight, in each pass
    lengths: set[int] = field(default_factory=set)  # of the axis that is summed
    heads: set[int] = field(default_factory=set)


class Recorder(Multiplier):
    """Notes the products that the modules of a model call, in float.

    Args:
        model: Whose :class:`Hooks` are set.
        gates: Module and place of products entry by entry whose results are added up.
        rotations: Likewise, of two activations by factors of their positions.
        spiking: Whether functions that are no products are noted too.

    Attributes:
        found: By module, and place or stored weight.
        entries: The most that each module ran in one pass.
    """

    def __init__(
        self, model: nn.Module, gates: Collection[tuple[str, str]] = (),
        rotations: Collection[tuple[str, str]] = (), spiking: bool = False,
    ) -> None:  # fmt: skip
        self.gates, self.rotations, self.spiking = gates, rotations, spiking
        self._sent: dict[str, list[tuple[str, Tensor]]] = {}
        self.found: dict[tuple[str, object], _Found] = {}
        self.entries: dict[str, int] = {}
        self._entered: dict[str, int] = {}
        self._uses: dict[tuple[str, object], int] = {}
        self.trace: Any = None
        self.holders: dict[int, tuple[str, nn.Module, str, Tensor]] = {}
        self._stacks: dict[tuple[str, str], int] = {}  # sizes of weights of three axes
        for name, module in model.named_modules():
            if isinstance(module, OWN):
                continue
            for kept in (module._parameters, module._buffers):
                for leaf, tensor in kept.items():
                    if tensor is not None and tensor.numel():
                        place = tensor.untyped_storage().data_ptr()
                        self.holders.setdefault(place, (name, module, leaf, tensor))
                        if tensor.dim() == 3:
                            self._stacks[name, leaf] = len(tensor)

    def begin(self) -> None:
        """A pass begins."""
        self._count_uses()
        self._entered.clear()
        self._sent.clear()

    def entered(self, name: str) -> None:
        """A module begins to run."""
        self._entered[name] = self._entered.get(name, 0) + 1
        self.entries[name] = max(self._entered[name], self.entries.get(name, 0))

    def _count_uses(self) -> None:
        for key, count in self._uses.items():
            self.found[key].times.add(count)
        self._uses.clear()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A call of the model, or several; forgotten if one fails."""
        before = {k: replace(f, times=set(f.times), lengths=set(f.lengths), heads=set(f.heads))
                  for k, f in self.found.items()}  # fmt: skip
        entries = dict(self.entries)
        try:
            yield
            self._count_uses()
        except BaseException:
            self.found, self.entries = before, entries
            self._uses.clear()
            raise

    def is_weight(self, x: Tensor) -> bool:
        return x.layout == torch.strided and x.untyped_storage().data_ptr() in self.holders

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        self._note_stored(weight, Call("linear", 0, shape=tuple(weight.shape)))
        return self._in_float(F.linear, x, weight)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        constant = "right" if self._is_constant(b) else "left" if self._is_constant(a) else ""
        weight = {"right": b, "left": a.mT, "": None}[constant]
        found = self._note("matmul", constant, weight)
        found.lengths.add(a.shape[-1])
        return self._in_float(torch.matmul, a, b)

    def multiply(self, a: Tensor, b: Tensor) -> Any:
        if a.is_complex() and b.is_complex() and self._varies(a) and self._varies(b):
            next_place()
            return NotImplemented  # four products of real numbers
        key = running.frames[-1].name, next_place()
        running.count -= 1
        if key not in self.gates:
            self._note_function_of_two(key, a, b)
            if self.trace is not None:
                self.trace.label = key
            y = a * b
            if self.trace is not None:
                self.trace.label = None
            return y
        found = self._note("scale", "", None)
        for side, x in (("left", a), ("right", b)):
            if x.shape[-1:] in (torch.Size([1]), torch.Size([])) and side not in found.call.single:
                found.call = replace(found.call, single=(*found.call.single, side))
        return self._in_float(torch.mul, a, b)

    def _note_function_of_two(self, key: tuple[str, str], a: Tensor, b: Tensor) -> None:
        """A product entry by entry that nothing adds up, of two activations; or a rotation."""
        varying = [self._varies(x) for x in (a, b)]
        if not self.spiking or not any(varying):
            running.count += 1
            return
        turned = key in self.rotations or a.is_complex() or b.is_complex()
        if all(varying) and not a.is_complex() and not any(map(counts_spikes, (a, b))):
            self._note("gate", "", None)
        elif not all(varying) and turned:
            found = self._note("relay", "", None)
            side = "left" if varying[0] else "right"
            source = self._source(key, a if varying[0] else b)
            found.call = replace(found.call, side=side, source=source)
        else:
            running.count += 1

    def _source(self, key: tuple[str, str], x: Tensor) -> str:
        """The place of the same values, in another order or with another sign, in this pass."""
        name, place = key
        values = torch.view_as_real(x).flatten(-2) if x.is_complex() else x
        values = values.detach().abs().sort(-1).values
        for other, sent in self._sent.setdefault(name, []):
            if sent.shape == values.shape and torch.equal(sent, values):
                return other if other != place else ""
        self._sent[name].append((place, values))
        return ""

    def compute(self, form: str, x: Tensor, *others: Any, **how: Any) -> Any:
        if not self._varies(x):
            next_place()
            return NotImplemented
        found = self._note(form, "", None, f".{form}")
        found.call = replace(found.call, eps=how.get("eps", 0.0))
        module = make_called(form, "", Run(), found.call)
        return self._in_float(module, x, *others)

    def _varies(self, x: Tensor) -> bool:
        """Whether a tensor holds activations."""
        return self.trace is not None and self.trace.is_activation(x)

    def convolve(self, x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
        if self.is_weight(weight):
            self._note_stored(weight, _convolution(Call("conv", 0), weight, how))
        else:
            found = self._note("conv", "right" if self._is_constant(weight) else "", weight)
            found.call = _convolution(found.call, weight, how)
        return self._in_float(how.apply, x, weight)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        found = self._note("attention", "", None)
        found.heads.add(q.shape[-3] if q.dim() > 3 else 0)
        return self._in_float(
            F.scaled_dot_product_attention, q, k, v, mask, scale=scaling,
            enable_gqa=q.dim() > 3 and q.shape[-3] != k.shape[-3],
        )  # fmt: skip

    def begin_step(self, first: bool) -> None:
        begin_step(first)

    def _in_float(self, function: Any, *args: Any, **named: Any) -> Tensor:
        """The float result; what the trace sees of it is known."""
        stack = [] if self.trace is None else self.trace.stack
        stack.append(HANDLED)
        try:
            y: Tensor = function(*args, **named)
        finally:
            stack.pop()
        return y

    def _is_constant(self, x: Tensor) -> bool:
        return self.trace is not None and self.trace.is_constant(x)

    def _note_stored(self, weight: Tensor, call: Call) -> None:
        frame = running.frames[-1]
        name, _, leaf, _ = self.holders[weight.untyped_storage().data_ptr()]
        view = view_of(weight)
        key = frame.name, (name, leaf, view)
        call = replace(call, module=name, tensor=leaf, view=view)
        self.found.setdefault(key, _Found(call, weight))
        uses = self._uses.get(key, 0)
        self._uses[key] = max(1, uses) if running.repeats else uses + 1

    def _note(self, form: str, constant: str, weight: Tensor | None, more: str = "") -> _Found:
        """A product that is known by its place; it has a weight if that is always the same."""
        frame = running.frames[-1]
        key = frame.name, next_place() + more
        found = self.found.get(key)
        if found is None:
            alike = [n for (n, _), f in self.found.items()
                     if n == frame.name and f.call.form == form and f.call.place]  # fmt: skip
            call = Call(form, len(alike), place=key[1], constant=constant)
            kept = weight.detach().clone() if weight is not None and constant else None
            found = self.found[key] = _Found(call, kept)
        elif found.call.form != form:
            raise UnsupportedError(
                f"port needs one kind of product at a place, got {form} and {found.call.form} at "
                f"{key[1]} in {frame.name or 'the model'} ({type(frame.module).__name__}). This "
                "model cannot be ported."
            )
        elif found.call.constant:
            before = found.weight
            same = before is not None and weight is not None and constant == found.call.constant
            if not same or not torch.equal(weight, before):  # type: ignore[arg-type]
                found.call, found.weight = replace(found.call, constant=""), None
        return found

    @property
    def placed(self) -> bool:
        """Whether a product is known by its place only."""
        return any(not f.call.tensor for f in self.found.values())

    @property
    def partly(self) -> list[str]:
        """Stacks of weights of which some were not multiplied, as experts that no token went to."""
        seen: dict[tuple[str, str], set[int]] = {}
        sizes: dict[tuple[str, str], int] = {}
        for found in self.found.values():
            if size := self._stack_of(found.call):
                place = found.call.module, found.call.tensor
                sizes[place] = size
                seen.setdefault(place, set()).add(found.call.view[0])
        return [f"{'.'.join(filter(None, p))}" for p, n in sizes.items() if len(seen[p]) < n]

    def forget_parts(self, known: Collection[object]) -> None:
        """Forget the parts of stacks of weights, as an expert's, that were found since.

        Args:
            known: Keys of what was found before.
        """
        for key in [k for k, f in self.found.items() if k not in known and self._stack_of(f.call)]:
            del self.found[key]

    def _stack_of(self, call: Call) -> int:
        """The size of the stack of weights that a product's is one of; 0 if it is of none."""
        return self._stacks.get((call.module, call.tensor), 0) if len(call.shape) == 2 else 0


def _convolution(call: Call, weight: Tensor, how: Convolution) -> Call:
    return replace(call, shape=tuple(weight.shape), stride=how.stride, dilation=how.dilation,
                   groups=how.groups)  # fmt: skip


def install(model: nn.Module, recorder: Recorder, run: Run) -> int:
    """Put the modules of the products that were found into a model.

    Args:
        model: It; its hooks are set.
        recorder: What was found.
        run: Of the port.

    Returns:
        How many there are.

    Raises:
        UnsupportedError: A convolution whose kernel is computed from the input.
    """
    holders = {(n, leaf): module for n, module, leaf, _ in recorder.holders.values()}
    count = 0
    for (owner, _), found in recorder.found.items():
        module = model.get_submodule(owner)
        calls = getattr(module, CALLS, None)
        if calls is None:
            calls = Calls()
            setattr(module, CALLS, calls)
        for call, weight in _resolved(owner, found):
            built = call.build(owner, run, weight)
            holder = holders.get((call.module, call.tensor)) if call.tensor else None
            calls.add(call, built, holder)
            count += 1
    return count


def _resolved(owner: str, found: _Found) -> Iterator[tuple[Call, Tensor | None]]:
    """The calls of one product, with their weights."""
    call, weight = found.call, found.weight
    if call.tensor:
        often = max(found.times)
        several = often if len(found.times) == 1 and often <= MOST_TIMES else 1
        for number in range(several):
            yield replace(call, number=number), weight
    elif call.form == "matmul" and call.constant and weight is not None:
        for part, matrix in enumerate(weight.reshape(-1, *weight.shape[-2:]).mT):
            yield replace(call, form="linear", part=part, shape=tuple(matrix.shape)), matrix
    elif call.form == "conv" and not call.constant:
        raise UnsupportedError(
            f"port needs kernels that are weights, got a convolution in {owner or 'the model'} "
            "whose kernel is computed from the input. This model cannot be ported."
        )
    else:
        keyed = call.form == "matmul" and len(found.lengths) > 1
        heads = len(found.heads) == 1 and 0 not in found.heads
        yield replace(call, constant="" if call.form == "matmul" else call.constant,
                      keyed=keyed, heads=heads), weight  # fmt: skip
