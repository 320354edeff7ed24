"""What a model chooses by its activations: the experts of a token, say, by its largest scores.

A choice is an operator that gives places (the largest scores, an order) which a later one reads. It
is known by its module and its number in one call of that.
"""

import threading
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isospike.hf.batches import Batch

Choice = tuple[str, int]
"""Module, and number in one call of it."""

_BY_SIZE = ("topk", "sort", "argmax", "argmin", "max", "min")


class Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what the modules of a model choose while it is entered.

    Args:
        model: It.
        known: The choices to keep; with None, those whose places are read are found.

    Attributes:
        made: Each choice and its places, ``[..., chosen]``, in order of execution.
        read: The choices whose places a later operator read.
    """

    def __init__(self, model: nn.Module, known: Collection[Choice] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.known = model, known
        self.made: list[tuple[Choice, Tensor]] = []
        self.read: dict[Choice, None] = {}
        self._stack: list[tuple[str, list[int]]] = [("", [0])]
        self._places: dict[int, Choice] = {}
        self._hooks: list[Any] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> "Choices":
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._enter_module(name)))
            self._hooks.append(module.register_forward_hook(self._leave_module, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _enter_module(self, name: str) -> Any:
        def enter(*_: Any) -> None:
            if threading.get_ident() == self._thread:  # others may run the model meanwhile
                self._stack.append((name, [0]))

        return enter

    def _leave_module(self, *_: Any) -> None:
        if threading.get_ident() == self._thread:
            self._stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.known is None:
            for x in args:
                found = x if isinstance(x, list | tuple) else [x]
                for y in found:
                    if isinstance(y, Tensor) and not y.is_floating_point():
                        choice = self._places.get(_place(y))
                        if choice is not None:
                            self.read[choice] = None
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _BY_SIZE and isinstance(args[0], Tensor) and args[0].is_floating_point():
            indices = out[1] if isinstance(out, tuple) else out
            if indices.dtype == torch.int64:
                self._note(name, args, kwargs or {}, indices)
        return out

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], indices: Tensor
    ) -> None:
        module, count = self._stack[-1]
        choice = module, count[0]
        count[0] += 1
        if self.known is not None and choice not in self.known:
            return
        self._places[_place(indices)] = choice
        place = 2 if name == "topk" else 1
        axis = kwargs.get("dim", args[place] if len(args) > place else -1)
        whole = args[0].dim()
        if not isinstance(axis, int) or not indices.dim():
            chosen = indices.reshape(-1, 1)
        elif indices.dim() < whole:
            chosen = indices[..., None]
        else:
            chosen = indices.movedim(axis, -1)
        if name == "topk":  # in any order
            chosen = chosen.sort(-1).values
        self.made.append((choice, chosen))
        if self.known is None:
            self.made.append((choice, indices))  # kept, so that its address stays its own


def find_choices(model: nn.Module, batch: Batch) -> tuple[Choice, ...]:
    """The choices of a model whose places it reads, in order of execution.

    Args:
        model: A float model.
        batch: Its inputs.
    """
    with torch.no_grad(), Choices(model) as seen:
        model(**batch)
    return tuple(seen.read)


def changed(expected: Tensor, got: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """Whether each unpadded token has other places, ``[tokens]``.

    Args:
        expected: Places of the float model, ``[..., chosen]``.
        got: Those of its port.
        masks: Of the unpadded tokens, by stream.
    """
    rows = expected.reshape(-1, expected.shape[-1])
    differ = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    if got.shape == expected.shape:
        differ = (got.reshape(rows.shape) != rows).any(-1)
    fits = next((m for m in masks.values() if m.numel() == len(rows)), None)
    return differ if fits is None else differ[fits.flatten().to(differ.device)]


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
