"""Weights that are at hand a block at a time, for models larger than memory.

The float model's weights stay where they are, in the type they have: in a file that is mapped, in
memory, or where accelerate keeps them. They have addresses of their own, as float32, without memory
behind them; a block's get memory, and its values, when the block is about to run, and lose it when
another one is. What a port is made of is written to a file without a name, which goes when nothing
refers to it any longer, and is mapped from there.
"""

import contextlib
import copy
import ctypes
import math
import mmap
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import InputError, is_disk_full
from isospike.porting.blocks import find_blocks, part_of
from isospike.porting.product import SpikingProduct

SMALL = 2**16  # numbers of a weight up to which it stays in memory
LINE = 64  # bytes that addresses are multiples of
_PAGE_OUT = 21  # of madvise: give memory back that a file has, or keep it


class Part:
    """Weights that are at hand together.

    Args:
        shelf: Of all parts of a model and its port.
    """

    def __init__(self, shelf: "Shelf") -> None:
        self.shelf = shelf
        self.users = 0  # that run now
        self.memory: mmap.mmap | None = None

    def fill(self) -> None:
        """Get the weights."""

    def drop(self) -> None:
        """Give their memory back."""
        if self.memory is not None:
            self.memory.madvise(mmap.MADV_DONTNEED)

    def __enter__(self) -> None:
        self.shelf.bring(self)
        self.users += 1

    def __exit__(self, *_: Any) -> None:
        self.users = max(0, self.users - 1)


class Lent(Part):
    """Weights of a float model: addresses, with what to fill their memory from."""

    def __init__(self, shelf: "Shelf", sources: Sequence[tuple[torch.Size, Callable[[], Tensor]]]):
        super().__init__(shelf)
        sizes = [_rounded(4 * shape.numel()) for shape, _ in sources]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self.memory = mmap.mmap(-1, max(1, sum(sizes)), flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # a page asked for costs more than what is written to it
            with contextlib.suppress(OSError):
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.tensors = [
            torch.frombuffer(self.memory, dtype=torch.float32, count=shape.numel(), offset=at)
            .view(shape) for at, (shape, _) in zip(starts, sources, strict=True)
        ]  # fmt: skip
        self.sources = [source for _, source in sources]

    def fill(self) -> None:
        for tensor, source in zip(self.tensors, self.sources, strict=True):
            given = source()
            tensor.copy_(given)
            _page_out(given)


class Filed(Part):
    """Weights of a port, mapped from a file."""

    def __init__(self, shelf: "Shelf", tensors: Sequence[Tensor], module: nn.Module) -> None:
        super().__init__(shelf)
        self.module = module
        sizes = [_rounded(t.nbytes) for t in tensors]
        with shelf.told(), tempfile.TemporaryFile(dir=shelf.folder) as file:
            for tensor, size in zip(tensors, sizes, strict=True):
                file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
                file.write(bytes(size - tensor.nbytes))
            file.flush()
            if tensors:
                self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.tensors = [
            torch.frombuffer(self.memory, dtype=t.dtype, count=t.numel(), offset=at).view(t.shape)
            for at, t in zip(starts, tensors, strict=True)
        ]

    def drop(self) -> None:
        super().drop()
        for module in self.module.modules():
            if isinstance(module, SpikingProduct):
                module.forget()


class AtHand:
    """A hook that brings a part when its module is about to run."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.part.__enter__()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook that says that the module has run."""
        self.part.__exit__()

    def __deepcopy__(self, memo: Any) -> "AtHand":
        return self


class Shelf:
    """The parts of a model and of its ports.

    Args:
        folder: Where the weights of ports are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.present: list[Part] = []

    def bring(self, part: Part) -> None:
        """Have the memory of a part filled, and drop that of others that do not run."""
        if part in self.present:
            return
        for other in [p for p in self.present if not p.users]:
            other.drop()
            self.present.remove(other)
        part.fill()
        self.present.append(part)

    def lend(self, model: nn.Module) -> nn.Module:
        """A copy in ``eval`` mode and float32 whose large weights are lent.

        Args:
            model: Its weights are in memory, mapped from files, or offloaded by accelerate.

        Raises:
            InputError: The folder has no room for the weights of a port.
        """
        sources = _sources(model)
        blocks = find_blocks(model)
        parts: dict[str, list[int]] = {name: [] for name in (*blocks, "")}
        weights = {id(p): p for p in model.parameters() if _is_large(p)}
        for key, names in _names(model).items():
            within = {part_of(name, blocks) for name in names}
            if key in weights:
                parts[within.pop() if len(within) == 1 else ""].append(key)
        self._check_room(4 * sum(weights[k].numel() for each in parts.values() for k in each))
        memo: dict[int, Any] = {}
        lent = {}
        for name, keys in parts.items():
            lent[name] = part = Lent(self, [(weights[k].shape, sources[k]) for k in keys])
            for key, tensor in zip(keys, part.tensors, strict=True):
                memo[key] = nn.Parameter(tensor, requires_grad=weights[key].requires_grad)
        for key, source in sources.items():
            if key not in memo:
                memo[key] = nn.Parameter(source().detach().clone(), requires_grad=False)
        copied = _plain_copy(model, memo).eval().float()
        self._attach(copied, lent)
        return copied

    def keep(
        self, model: nn.Module, name: str, blocks: Sequence[str], later: Collection[str] = ()
    ) -> None:
        """Write what a part of a port is made of, and map it from there.

        Args:
            model: The port.
            name: Of the block; empty for what is in none.
            blocks: Names of all blocks.
            later: Modules of the blocks that belong to what is in none.

        Raises:
            InputError: The disk is full.
        """
        found: dict[tuple[int, torch.Size], list[tuple[dict[str, Any], str]]] = {}
        tensors: dict[tuple[int, torch.Size], Tensor] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            if ("" if path in later else part_of(path, blocks)) != name:
                continue
            for kept in (module._parameters, module._buffers):
                for leaf, tensor in kept.items():
                    if tensor is None or not _is_large(tensor):
                        continue
                    key = tensor.data_ptr(), tensor.shape
                    tensors[key] = tensor
                    found.setdefault(key, []).append((kept, leaf))
        part = Filed(self, list(tensors.values()), model.get_submodule(name))
        for key, tensor in zip(tensors, part.tensors, strict=True):
            for kept, leaf in found[key]:
                old = kept[leaf]
                kept[leaf] = (
                    nn.Parameter(tensor, False) if isinstance(old, nn.Parameter) else tensor
                )
        tops = [model, *(child for n, child in model.named_children() if n not in blocks)]
        hooked = [model.get_submodule(name)] if name else tops
        for module in hooked:
            _unhook(module)
            _hook(module, part)

    def check(self, model: nn.Module, look: Callable[[str, Tensor], None]) -> None:
        """Have ``look`` see every parameter and buffer, a part at a time."""
        blocks = find_blocks(model)
        for block in (*blocks, ""):
            with at_hand(model, block):
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                    if part_of(name, blocks) == block:
                        look(name, tensor)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong in writing to the folder, in one line."""
        try:
            yield
        except OSError as error:
            why = "a full disk" if is_disk_full(error) else error.strerror or str(error)
            raise InputError(
                f"port needs to write weights to {self.folder}, got {why}. Free some space, or "
                "name another folder."
            ) from error

    def _check_room(self, size: int) -> None:
        with self.told():
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        if free < size:
            raise InputError(
                f"port needs {size / 2**30:.1f} GiB in {self.folder} for the weights of the port, "
                f"got {free / 2**30:.1f} GiB free. Free some space, or name another folder."
            )

    def _attach(self, model: nn.Module, parts: dict[str, Lent]) -> None:
        for name, part in parts.items():
            _hook(model.get_submodule(name), part)
        for name, child in model.named_children():
            if name not in parts:
                _hook(child, parts[""])


def offload(model: nn.Module, folder: str | Path | None = None) -> nn.Module:
    """A copy of a float model whose weights are at hand a block at a time.

    What is ported of it (:func:`isospike.port`) is also kept in files and at hand a block at a
    time. A model that does not fit into memory is loaded so that its weights are mapped from their
    files, as transformers does where they keep their type (``dtype="auto"``), or with accelerate's
    ``device_map``.

    Args:
        model: A PyTorch transformer; it is not changed, and its weights must not be.
        folder: Where the weights of a port are kept while it is in use, 4 bytes each; the system's
            folder for temporary files by default. The files have no names and go by themselves.

    Returns:
        The copy, in ``eval`` mode. It computes in float32 whatever type the weights have.

    Raises:
        InputError: A weight without values, or the folder has no room.

    >>> import torch
    >>> layers = nn.Sequential(*(nn.Sequential(nn.Linear(300, 300)) for _ in range(2)))
    >>> x = torch.ones(1, 300)
    >>> torch.equal(offload(layers)(x), layers(x))
    True
    """
    place = Path(tempfile.gettempdir() if folder is None else folder)
    return Shelf(place).lend(model)


def shelf_of(model: nn.Module) -> Shelf | None:
    """The shelf of a model that was offloaded; None for any other."""
    hooks = [h for h in model._forward_pre_hooks.values() if isinstance(h, AtHand)]
    return hooks[0].part.shelf if hooks else None


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks beside those of a shelf."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return not all(_is_ours(hook) for hook in hooks)


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, AtHand) or isinstance(getattr(hook, "__self__", None), AtHand)


def _hook(module: nn.Module, part: Part) -> None:
    hook = AtHand(part)
    module.register_forward_pre_hook(hook)
    module.register_forward_hook(hook.leave, always_call=True)


def _unhook(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if _is_ours(hook):
                del hooks[key]


@contextlib.contextmanager
def at_hand(model: nn.Module, name: str) -> Iterator[None]:
    """Have the weights of a module at hand, where they are lent.

    Args:
        model: The model.
        name: Of the module.
    """
    with contextlib.ExitStack() as stack:
        parts = name.split(".") if name else []
        for i in range(len(parts), -1, -1):
            module = model.get_submodule(".".join(parts[:i]))
            hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, AtHand)]
            if hooks:
                stack.enter_context(hooks[0].part)
                break
        yield


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate keeps weights of a model elsewhere."""
    return any("_hf_hook" in vars(m) for m in model.modules()) and any(
        p.is_meta for p in model.parameters()
    )


def _is_large(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > SMALL


def _rounded(size: int) -> int:
    return math.ceil(size / LINE) * LINE


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter, by its identity."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _sources(model: nn.Module) -> dict[int, Callable[[], Tensor]]:
    """Where the values of large parameters, and of those without values, come from."""
    found: dict[int, Callable[[], Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            if _is_large(parameter):
                found[id(parameter)] = parameter.detach
            continue
        source = _offloaded(model, name)
        if source is None:
            raise InputError(
                f"port needs weights in memory, got {name} without values. Load the model's "
                "weights first."
            )
        found[id(parameter)] = source
    return found


def _offloaded(model: nn.Module, name: str) -> Callable[[], Tensor] | None:
    """Where accelerate keeps a parameter; None if it does not."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        hook = vars(model.get_submodule(".".join(parts[:i]))).get("_hf_hook")
        for each in getattr(hook, "hooks", [hook]):
            if (weights := getattr(each, "weights_map", None)) is not None:
                return partial(weights.__getitem__, ".".join(parts[i:]))
    return None


def _plain_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy without accelerate's hooks, whose forwards are those of the classes again."""
    hooked = [module for module in model.modules() if "_hf_hook" in vars(module)]
    for module in hooked:
        for name in ("_hf_hook", "forward", "_old_forward"):
            if name in vars(module):
                memo[id(vars(module)[name])] = None
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        if "_hf_hook" in vars(module):
            for name in ("_hf_hook", "forward", "_old_forward"):
                vars(module).pop(name, None)
    return copied


def _page_out(tensor: Tensor) -> None:
    """Give back the memory of a tensor that is mapped from a file; others keep theirs."""
    storage = tensor.untyped_storage()
    start = math.ceil(storage.data_ptr() / mmap.PAGESIZE) * mmap.PAGESIZE
    end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.device.type == "cpu" and end > start:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGE_OUT
            )
