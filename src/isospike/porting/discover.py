"""Find every product of a model, and what reads the same input: one copy, one traced run."""

import copy
import logging
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import UnsupportedError
from isospike.hf.attention import HANDLE, attend_on_handle, has_interface, hold, route, routed
from isospike.hf.batches import Batch, first_output, named_outputs, streams
from isospike.hf.experts import one_by_one
from isospike.hf.modules import Product, recognise
from isospike.kernels.runtime.buffers import trim
from isospike.porting.attention import SpikingAttention
from isospike.porting.axes import Axes, measure_axes, variants
from isospike.porting.blocks import find_blocks
from isospike.porting.calls import OWN, Hooks, Runner
from isospike.porting.choices import find_choices
from isospike.porting.fidelity import check_same, draws_random_numbers, in_float32, same_draws
from isospike.porting.instrument import (
    attach_run,
    copy_of,
    guard,
    in_python,
    place_circuits,
    replacement,
)
from isospike.porting.offload import at_hand
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.recorder import HANDLED, Recorder, install
from isospike.porting.run import ATTRIBUTE, Mode, Run, Watcher
from isospike.porting.sites import HEADS, Site, tensor_version
from isospike.porting.streams import Streams, assign, changed_inputs, media
from isospike.porting.trace import Product as TracedProduct
from isospike.porting.trace import trace


@dataclass(frozen=True)
class Discovery:
    """A model whose sites are known, ready to be ported many times.

    Attributes:
        model: The float model, in ``eval`` mode.
        template: A copy with its products replaced, in the float phase; calibrate copies of it.
        unreached: Modules that no input reached; they raise when they are called.
        random: Whether the model draws random numbers.
        blocks: Names of its blocks, in the order in which they run.
        in_float: With circuits, the operators of functions that have none, by module.
    """

    model: nn.Module
    template: Ported
    unreached: tuple[str, ...] = ()
    random: bool = False
    blocks: tuple[str, ...] = ()
    in_float: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the sites, in order of execution as far as the modules' order tells."""
        return [site.name for site in self.template.sites]

    @property
    def product_names(self) -> list[str]:
        """Names of the products with a weight."""
        return [p.name for p in self.template.products if isinstance(p, SpikingProduct)]

    def instrument(self) -> Ported:
        """A fresh port to calibrate; it shares the memory of what calibration does not change."""
        return copy_of(self.template)


@dataclass(frozen=True)
class Survey:
    """A copy of a model with its products replaced, and what one traced run of it showed.

    Attributes:
        ported: The copy, in the float phase; its sites are final if nothing is refused.
        unreached: Names of the modules that no run reached; they raise when they are called.
        refused: Why a module cannot be ported, by its name, in order.
        in_float: With circuits, the operators of functions that have none, by module.
        blocks: Names of the blocks.
    """

    ported: Ported
    unreached: tuple[str, ...]
    refused: dict[str, str]
    in_float: dict[str, tuple[str, ...]]
    blocks: tuple[str, ...] = ()


def discover(
    model: nn.Module, sample: Batch, functions: str = "float", further: Iterable[Batch] = ()
) -> Discovery:
    """Replace the products of a copy of ``model``, and find its sites by running it.

    Args:
        model: A float model; it is not changed.
        sample: A few rows of its inputs.
        functions: With ``spiking``, what is not a product is replaced too, by circuits of spikes;
            a function without a circuit stays in float.
        further: More inputs, for modules that the sample does not reach.

    Raises:
        UnsupportedError: The model is a port, or it has a product that no function of torch
            computes where Python sees it (an LSTM's, one in a script): named by its module.
    """
    found = survey(model, sample, functions, further)
    for reason in found.refused.values():
        raise UnsupportedError(f"port needs {reason}")
    original = in_float32(model)
    check_same(original, found.ported.model, sample)
    random = draws_random_numbers(original, sample)
    run = found.ported.run
    run.axes, run.streams = _axes(found.ported, sample)
    run.choices = find_choices(original, sample)
    reference = model if not model.training else copy.deepcopy(model).eval()
    return Discovery(reference, found.ported, found.unreached, random, found.blocks, found.in_float)


def survey(
    model: nn.Module, sample: Batch, functions: str = "float", further: Iterable[Batch] = ()
) -> Survey:
    """Replace the products of a copy of ``model``, run it, and list what cannot be ported.

    Args:
        model: A float model; it is not changed.
        sample: A few rows of its inputs.
        functions: As for `discover`.
        further: Likewise.

    Returns:
        The copy, with one entry for each module that cannot be ported or stays in float.

    Raises:
        UnsupportedError: The model is a port, or a copy with spiking products does not run.
    """
    if ATTRIBUTE in vars(model):
        raise UnsupportedError(
            f"port needs a float model, got a {type(model).__name__} that is already ported. Port "
            "the original."
        )
    model = in_python(model)
    run = Run(Mode(functions=functions))
    copied = _copy(model)
    replaced = place_circuits(copied, run, sample) if run.mode.spiking else {}
    replaced |= _replace_products(model, copied, run)
    route(copied)
    attach_run(copied, run)
    hooks = Hooks(copied, run)
    passes = _Passes(copied, run, hooks, sample, further)
    while passes.find(replaced):
        hooks.refresh()
    if install(copied, passes.recorder, run):
        hooks.refresh()
        run.multiplier = Runner(run.mode.spiking)
    else:
        hooks.remove()
    hold(copied)
    for name in passes.unreached:
        guard(name, copied.get_submodule(name))
    if not passes.refused:
        _group_sites(copied, passes.inputs())
    wanted = run.mode.spiking and not passes.refused
    in_float = _functions_in_float(copied, sample) if wanted else {}
    unreached = (*passes.unreached, *passes.recorder.partly)
    trim()
    blocks = find_blocks(copied, passes.recorder.entries)
    return Survey(Ported(copied, run), unreached, passes.refused, in_float, blocks)


def _copy(model: nn.Module) -> nn.Module:
    """A copy in ``eval`` mode and float32; computed weights, which a hook computes anew, too.

    It shares the memory of weights that are in float32; nothing writes to them.
    """
    computed = [v for m in model.modules() for v in vars(m).values()
                if isinstance(v, Tensor) and not v.is_leaf]  # fmt: skip
    memo: dict[int, Any] = {id(v): v.detach().clone() for v in computed}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    try:
        copied = copy.deepcopy(model, memo).eval().float()
    except (TypeError, copy.Error, pickle.PickleError) as error:
        raise UnsupportedError(
            f"port needs a model that can be copied, got a {type(model).__name__} with what "
            f"cannot: {error}. Keep that outside its modules."
        ) from error
    one_by_one(copied)
    return copied


class _Passes:
    """Runs a copy of a model until it is known what it multiplies.

    Attributes:
        recorder: The products that are called.
        unreached: Modules that no input reached, neither as they are nor replaced.
        refused: Modules with a product that spikes cannot enter, and why.
    """

    def __init__(
        self, copied: nn.Module, run: Run, hooks: Hooks, sample: Batch, further: Iterable[Batch]
    ) -> None:
        self.copied, self.run, self.hooks = copied, run, hooks
        self.sample, self.further = sample, tuple(further)
        self.recorder = Recorder(copied)
        self.unreached: list[str] = []
        self.gates: dict[tuple[str, str], None] = {}
        self.rotations: dict[tuple[str, str], None] = {}
        self.refused: dict[str, str] = {}
        self.batches: list[Batch] = []

    def find(self, replaced: dict[str, nn.Module]) -> bool:
        """Look for products.

        Modules are put back, so that what they call is found, that run several times, whose weight
        others read, or that did not run (which may depend on their class).

        Args:
            replaced: The original of every module that was replaced, by name.

        Returns:
            Whether to look again.
        """
        spiking = self.run.mode.spiking
        self.recorder = Recorder(self.copied, tuple(self.gates), tuple(self.rotations), spiking)
        known = len(self.gates) + len(self.rotations)
        self.refused, self.batches = {}, []
        left = dict.fromkeys((*replaced, *self.unreached))
        with _reached(self.copied, left):
            back = self._pass(self.sample, replaced)
            if self.recorder.placed:  # what of it changes with the input, or is called later?
                for others in variants(self.sample):
                    back |= self._any(others, replaced)
                called, before = set(self.recorder.found), dict(left)
                back |= self._any([self.sample], replaced, write=True)
                # What only the text that it writes reached is calibrated if a batch reaches it.
                self.recorder.forget_parts(called)
                left |= before
            for batch in self.further:
                if not left and not self.recorder.partly:
                    break
                back |= self._pass(batch, replaced)
        self.unreached = list(left)
        back |= left.keys() & replaced.keys()
        for name in back:
            self.copied.set_submodule(name, replaced.pop(name))
        return bool(back) or len(self.gates) + len(self.rotations) > known

    def inputs(self) -> "_Inputs":
        """What every site reads."""
        inputs = _Inputs()
        for batch in self.batches:
            inputs.start()
            with torch.no_grad(), self.run.watching(inputs):
                self.copied(**batch)
        return inputs

    def _pass(
        self, batch: Batch, replaced: Mapping[str, nn.Module], write: bool = False
    ) -> set[str]:
        _attach_attention(self.copied, self.run, batch)
        self.hooks.refresh()
        recorder = self.run.multiplier = self.recorder
        try:
            with torch.no_grad(), recorder.passing():
                found = trace(
                    self.copied, batch, judge=False, owners=_owners(self.copied),
                    recorder=recorder, call=_write if write else None,
                )  # fmt: skip
        finally:
            self.run.multiplier = None
        if not write:
            self.batches.append(batch)
        self.gates |= dict.fromkeys(sorted(found.labels))
        if self.run.mode.spiking:
            self.rotations |= dict.fromkeys(sorted(found.rotations))
        for name, reason in _products_outside(self.copied, found.products).items():
            self.refused.setdefault(name, reason)
        return {n for n, count in recorder.entries.items() if count > 1 and n in replaced
                and isinstance(self.copied.get_submodule(n), SpikingProduct)} | {
                *found.readers}  # fmt: skip

    def _any(
        self, batches: Iterable[Batch], replaced: Mapping[str, nn.Module], write: bool = False
    ) -> set[str]:
        """A pass over the first of some batches that the model accepts."""
        for batch in batches:
            try:
                return self._pass(batch, replaced, write)
            except Exception:  # noqa: BLE001 - arguments that do not fit each other
                continue
        return set()


def _write(model: nn.Module, batch: Batch) -> None:
    """Have a model write two tokens, the second with the cache of the first."""
    writing: Any = model
    if not writing.can_generate():
        raise TypeError
    given = {k: v for k, v in batch.items() if not k.startswith("decoder_") and k != "labels"}
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a batch that is padded on the right is meant to be
    try:
        writing.generate(**given, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    finally:
        logger.setLevel(level)


@contextmanager
def _reached(model: nn.Module, left: dict[str, None]) -> Iterator[None]:
    """Take the modules that are called out of ``left``."""

    def take(name: str) -> Any:
        return lambda *_: left.pop(name, None)

    hooks = [model.get_submodule(n).register_forward_pre_hook(take(n)) for n in list(left)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _owners(model: nn.Module) -> dict[int, str]:
    """The product that alone may read a weight or bias: calibration changes them."""
    return {
        id(tensor): name
        for name, module in model.named_modules()
        if isinstance(module, SpikingProduct)
        for tensor in (module.weight, module.bias)
    }


def _products_outside(copied: nn.Module, traced: Sequence[TracedProduct]) -> dict[str, str]:
    """Modules with a matrix product that spikes cannot enter, and why they are refused."""
    refused: dict[str, str] = {}
    for product in traced:
        if product.matrix and _outside(copied, product):
            kind = type(copied.get_submodule(product.module)).__name__
            refused.setdefault(
                product.module,
                f"products that functions of torch compute in Python's sight, got {product.op} in "
                f"{product.module or 'the model'} ({kind}). This model cannot be ported.",
            )
    return refused


def _outside(copied: nn.Module, product: TracedProduct) -> bool:
    if product.module == HANDLED or product.contraction <= 1 or not product.macs:
        return False
    return not isinstance(copied.get_submodule(product.module), OWN)


def _replace_products(model: nn.Module, copied: nn.Module, run: Run) -> dict[str, nn.Module]:
    """Replace the plain products of the copy; those that were, by name. Of others, what they call
    is found."""
    replaced = {}
    for name, module in model.named_modules():
        with at_hand(model, name):
            known = recognise(module)
        if name and isinstance(known, Product):
            original = copied.get_submodule(name)
            product = replacement(name, original, run)
            if product is not None:
                copied.set_submodule(name, product)
                replaced[name] = original
    return replaced


class _Inputs(Watcher):
    """What every site reads: kept alive, so that an address says which tensor it was."""

    def __init__(self) -> None:
        self.seen: list[tuple[Site, Tensor, int]] = []
        self.count: Counter[str] = Counter()
        self.known: set[int] = set()

    def start(self) -> None:
        """A new pass begins; sites of earlier ones are not seen again."""
        self.count.clear()
        self.known = {id(site) for site, *_ in self.seen}

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        self.count[site.name] += 1
        if id(site) not in self.known:
            self.seen.append((site, x, tensor_version(x)))
        return x


class _Shapes(Watcher):
    """The shape of what every site reads, and the sum of its values."""

    sees_probabilities = True

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, ...]] = {}
        self.sums: dict[str, float] = {}

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        if site.name not in self.seen:
            self.seen[site.name] = tuple(x.shape)
            self.sums[site.name] = float(x.double().sum())
        return x

    def on_values(self, name: str, x: Tensor) -> None:
        if name not in self.seen:
            self.seen[name], self.sums[name] = tuple(x.shape), float(x.double().sum())

    on_place = on_values


def _axes(ported: Ported, sample: Batch) -> tuple[dict[str, Axes], Streams]:
    """Rows and tokens of every site, of outputs (``->`` before their names) and, named "", of the
    first one; the streams that all of them belong to."""
    sums: dict[str, float] = {}

    def shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
        watcher = _Shapes()
        with torch.no_grad(), ported.run.watching(watcher), same_draws():
            output = ported.model(**batch)
        named = {f"->{name}": x for name, x in named_outputs(output).items()}
        outputs = {"": first_output(output), **named}
        sums.clear()
        sums.update(watcher.sums, **{n: float(x.double().sum()) for n, x in outputs.items()})
        return {**watcher.seen, **{name: tuple(x.shape) for name, x in outputs.items()}}

    found = measure_axes(shapes, sample)
    changes: dict[str, list[str]] = {}
    if others := changed_inputs(sample):
        shapes(sample)
        before = dict(sums)
        for stream, batch in others.items():
            shapes(batch)
            changes[stream] = [n for n, s in sums.items() if s != before.get(n)]
    return found, assign(found, changes, [*streams(sample), *media(sample)])


def _attach_attention(copied: nn.Module, run: Run, sample: Batch) -> None:
    """Give every module that calls the attention interface a SpikingAttention."""
    if not has_interface(copied):
        return
    names = {id(module): name for name, module in copied.named_modules()}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, *others: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not hasattr(module, HANDLE):
            setattr(module, HANDLE, SpikingAttention(names[id(module)], run))
        return attend_on_handle(module, query, key, *others, **keywords)

    with torch.no_grad(), routed(copied, attend):
        copied(**sample)


def _group_sites(copied: nn.Module, inputs: _Inputs) -> None:
    """One site per distinct input: products that read the same tensor read the same neurons."""
    by_input: dict[tuple[int, int], Site] = {}
    readers = {id(p.site): p for p in copied.modules() if isinstance(p, SpikingProduct)}
    shapes = {}
    for placeholder, x, version in inputs.seen:
        module = readers.get(id(placeholder))
        if module is None:
            if placeholder.kind in HEADS:
                shapes[placeholder.name] = (x.shape[1], 1, x.shape[-1])
            continue
        site = by_input.get((id(x), version))
        if site is None:
            site = Site(module.name, module.kind, module.site.code, module.channels)
            by_input[id(x), version] = site
        else:
            site.shared = True
        site.fan_out += module.fan_out
        module.site = site
    for attention in copied.modules():
        if isinstance(attention, SpikingAttention):
            for old in (attention.query, attention.key, attention.value):
                setattr(attention, old.kind, Site(old.name, old.kind, old.code, shapes[old.name]))


def _functions_in_float(copied: nn.Module, sample: Batch) -> dict[str, tuple[str, ...]]:
    """The operators of functions without a circuit, by module, with the products that no matrix
    operator computes."""
    found = trace(copied, sample, judge=False)
    outside = [p for p in found.products if not p.matrix and _outside(copied, p)]
    left: dict[str, tuple[str, ...]] = {}
    for name, operator in [*((p.module, p.op) for p in outside), *found.operators]:
        if not isinstance(copied.get_submodule(name), OWN):
            left[name] = (*left.get(name, ()), operator)
    return left
