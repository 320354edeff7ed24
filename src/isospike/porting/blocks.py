"""Block by block: all batches pass through one block of a model, then all through the next.

What a block needs, its weights and what is measured of it, is then at hand once for all batches,
and only then. The forward of each batch is a thread that waits where a block begins. One thread
runs at a time, so the code between the blocks is the model's own, and each batch's numbers are
those it has alone. So are its random numbers: they go on where its last part ended.
"""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from isospike.hf.attention import configs_of
from isospike.kernels.runtime.buffers import trim
from isospike.porting import parallel
from isospike.porting.run import Run

Result = TypeVar("Result")
Pass = Callable[[], None]
"""The forward of one batch, or of several models on one batch after the other."""


def find_blocks(model: nn.Module, entries: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """The blocks of a model: members of a list of modules of one class that run once in a pass.

    Args:
        model: The model.
        entries: How often each module ran in one pass, in the order in which they began; None for
            all that may be blocks, in the model's order.

    Returns:
        Their names, in the order in which they run; the outermost where lists are nested.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        kinds = [type(member) for member in module]
        members = {f"{name}.{key}".lstrip("."): member for key, member in module.named_children()}
        alike = [path for path, member in members.items()
                 if kinds.count(type(member)) > 1 and next(member.children(), None) is not None
                 and (entries is None or entries.get(path) == 1)]  # fmt: skip
        found += alike if len(alike) > 1 else []
    if entries is not None:
        order = {name: place for place, name in enumerate(entries)}
        found.sort(key=order.__getitem__)
    return tuple(found)


def part_of(name: str, blocks: Sequence[str]) -> str:
    """The block that a module or a site is in; empty for what is in none.

    Args:
        name: Of the module, or of the site, which begins with that of its module.
        blocks: Names of the blocks.
    """
    return next((b for b in blocks if name == b or name.startswith((f"{b}.", f"{b}:"))), "")


class OutOfOrderError(Exception):
    """A batch came to a block that the others had left behind."""


def by_block(blocks: Sequence[str], work: Callable[[Sequence[str]], Result]) -> Result:
    """``work(blocks)``, or without blocks where batches run them in different orders or there are
    several processes.

    Args:
        blocks: Their names.
        work: Begins anew when it is called again.
    """
    if not can_wait():
        return work(())
    try:
        return work(blocks)
    except OutOfOrderError:
        return work(())


def can_wait() -> bool:
    """Whether passes can wait for each other: each process runs blocks in its own time, and modes
    of torch belong to a thread."""
    modes = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    return parallel.processes() == 1 and not modes


class _LeftError(BaseException):
    """Ends a pass that nobody goes on with."""


@dataclass
class _Waiting:
    """A pass that runs in a thread of its own, part by part."""

    work: Pass
    block: int = -1  # before which it waits
    done: bool = False
    error: BaseException | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    state: tuple[Any, ...] = ()  # of random numbers, and of the runs


def in_step(
    runs: Sequence[Run],
    blocks: Sequence[Sequence[nn.Module]],
    passes: Sequence[Pass],
    finished: Callable[[int], None] = lambda _: None,
    arrived: Callable[[nn.Module, Any], None] = lambda *_: None,
    begins: Callable[[int], None] = lambda _: None,
) -> None:
    """Run passes side by side, all of them through one block before any through the next.

    Args:
        runs: State of the models that run, of which each pass has its own watcher and masks.
        blocks: In the order in which a pass comes to them, each with its module in every model that
            runs. Without any, each pass runs as a whole.
        passes: They take their turns in this order.
        finished: Told the number of a block that all have left.
        arrived: Told of each pass that comes to a block: the module, and the arguments it is
            called with.
        begins: Told the number of a block that all have come to, before any runs it.

    Raises:
        OutOfOrderError: A pass came to a block that the others had left behind.
    """
    if not blocks:
        for work in passes:
            work()
        return
    _InStep(runs, blocks, passes, arrived).run(finished, begins)


class _InStep:
    def __init__(
        self, runs: Sequence[Run], blocks: Sequence[Sequence[nn.Module]], passes: Sequence[Pass],
        arrived: Callable[[nn.Module, Any], None],
    ) -> None:  # fmt: skip
        self.runs, self.blocks, self.arrived = runs, blocks, arrived
        self.back = threading.Semaphore(0)
        self.leaving = False
        self.passes = [_Waiting(work) for work in passes]
        self.threads: dict[int, _Waiting] = {}

    def run(self, finished: Callable[[int], None], begins: Callable[[int], None]) -> None:
        """To the end of all passes."""
        start = self._state()
        workers = []
        for each in self.passes:
            each.state = start
            run = partial(contextvars.copy_context().run, self._work, each)
            workers.append(threading.Thread(target=run, daemon=True))
        hooks = [
            module.register_forward_pre_hook(partial(self._arrive, number), prepend=True)
            for number, block in enumerate(self.blocks)
            for module in block
        ]
        try:
            for worker, each in zip(workers, self.passes, strict=True):
                worker.start()
                self._resume(each, -1)
            while waiting := [each for each in self.passes if not each.done]:
                block = min(each.block for each in waiting)
                begins(block)
                for each in waiting:
                    if each.block == block:
                        self._resume(each, block)
                finished(block)
        finally:
            self.leaving = True
            for each in self.passes:
                each.go.release()
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
            for hook in hooks:
                hook.remove()
            self._set_state(start)

    def _resume(self, each: _Waiting, block: int) -> None:
        """Let a pass run to the next block."""
        self._set_state(each.state)
        each.go.release()
        self.back.acquire()
        trim()
        each.state = self._state()
        if each.error is not None:
            raise each.error
        if not each.done and each.block <= block:
            raise OutOfOrderError

    def _work(self, each: _Waiting) -> None:
        each.go.acquire()
        self.threads[threading.get_ident()] = each
        try:
            if not self.leaving:
                each.work()
        except _LeftError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the passes were asked for
            each.error = error
        finally:
            each.done = True
            self.back.release()

    def _arrive(self, block: int, module: nn.Module, args: Any) -> None:
        each = self.threads.get(threading.get_ident())
        if each is None:
            return
        self.arrived(module, args)
        each.block = block
        self.back.release()
        each.go.acquire()
        if self.leaving:
            raise _LeftError

    def _state(self) -> tuple[Any, ...]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        runs = [(r.watcher, r.masks, r.token_mask, r.wants_maps) for r in self.runs]
        return torch.get_rng_state(), cuda, runs

    def _set_state(self, state: tuple[Any, ...]) -> None:
        random, cuda, runs = state
        torch.set_rng_state(random)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        for run, kept in zip(self.runs, runs, strict=True):
            run.watcher, run.masks, run.token_mask, run.wants_maps = kept


@contextlib.contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Have a model keep no keys and values, which nobody reads when nothing is written.

    Args:
        model: Any.
    """
    keeping = [config for config in configs_of(model) if getattr(config, "use_cache", False)]
    for config in keeping:
        config.use_cache = False
    try:
        yield
    finally:
        for config in keeping:
            config.use_cache = True
