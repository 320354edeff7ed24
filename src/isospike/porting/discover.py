"""Find every product of a model, and what reads the same input: one copy, one traced run."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isospike.circuits.digits import SignedDigitFormat
from isospike.errors import UnsupportedError
from isospike.hf.attention import HANDLE, attend_on_handle, has_interface, route, routed
from isospike.hf.batches import Batch, first_output
from isospike.hf.modules import ACTIVATIONS, Product, recognise
from isospike.porting.attention import SpikingAttention
from isospike.porting.axes import Axes, measure_axes
from isospike.porting.fidelity import check_same, draws_random_numbers, in_float32, same_draws
from isospike.porting.functions import Reencoder
from isospike.porting.instrument import (
    attach_run,
    copy_of,
    guard,
    place_circuits,
    refusal,
    replacement,
)
from isospike.porting.ported import CIRCUITS, Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE, Mode, Run, Watcher
from isospike.porting.sites import Site, tensor_version
from isospike.porting.trace import Product as TracedProduct
from isospike.porting.trace import trace

Replaced = (*CIRCUITS, SpikingProduct, SpikingAttention)


@dataclass(frozen=True)
class Discovery:
    """A model whose sites are known, ready to be ported many times.

    Attributes:
        model: The float model, in ``eval`` mode.
        template: A copy with its products replaced, in the float phase; calibrate copies of it.
        unreached: Modules that no input reached; they raise when they are called.
        random: Whether the model draws random numbers.
    """

    model: nn.Module
    template: Ported
    unreached: tuple[str, ...] = ()
    random: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the sites, in order of execution as far as the modules' order tells."""
        return [site.name for site in self.template.sites]

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
    """

    ported: Ported
    unreached: tuple[str, ...]
    refused: dict[str, str]
    in_float: dict[str, tuple[str, ...]]


def discover(
    model: nn.Module, sample: Batch, functions: str = "float", further: Iterable[Batch] = ()
) -> Discovery:
    """Replace the products of a copy of ``model``, and find its sites by running it.

    Args:
        model: A float model; it is not changed.
        sample: A few rows of its inputs.
        functions: With ``spiking``, what is not a product is replaced too, by circuits of spikes.
        further: More inputs, for modules that the sample does not reach.

    Raises:
        UnsupportedError: The model is a port; it has a product outside Linear, Conv1D,
            Conv2d and the transformers attention interface; a non-linear function that no
            circuit computes, or a module that does more than its class: named by its module.
    """
    found = survey(model, sample, functions, further)
    for reason in found.refused.values():
        raise UnsupportedError(f"port needs {reason}")
    for name, operators in found.in_float.items():
        module = found.ported.model.get_submodule(name)
        raise UnsupportedError(
            f"port needs functions='float' for {operators[0]} in {name or 'the model'} "
            f"({type(module).__name__}), got 'spiking', which has circuits for "
            f"{', '.join(ACTIVATIONS)} as modules, LayerNorm, RMSNorm, gated MLPs and softmax. "
            "Keep the functions in float."
        )
    original = in_float32(model)
    check_same(original, found.ported.model, sample)
    random = draws_random_numbers(original, sample)
    found.ported.run.axes = _axes(found.ported, sample)
    reference = model if not model.training else copy.deepcopy(model).eval()
    return Discovery(reference, found.ported, found.unreached, random)


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
    for name, module in model.named_modules():
        if any(isinstance(v, Tensor) and not v.is_leaf for v in vars(module).values()):
            raise UnsupportedError(refusal(name, module, "a weight that is computed"))
    run = Run(Mode(functions=functions))
    copied = copy.deepcopy(model).eval().float()
    replaced = place_circuits(copied, run) if run.mode.spiking else {}
    refused: dict[str, str] = {}
    replaced |= _replace_products(model, copied, run, refused)
    route(copied)
    attach_run(copied, run)
    inputs = _Inputs()
    left = set(replaced)
    with _reached(copied, left):
        for batch in itertools.chain([sample], further):
            _attach_attention(copied, run, batch)
            inputs.start()
            with torch.no_grad(), run.watching(inputs):
                found = trace(copied, batch, judge=False, owners=_owners(copied))
            seen = _products_outside(copied, found.products) | _run_twice(inputs)
            for name, reason in (seen | _read_elsewhere(found.readers, seen)).items():
                refused.setdefault(name, reason)
            if not left:
                break
    unreached = tuple(name for name in replaced if name in left)
    for name in unreached:  # a circuit before the products within it
        copied.set_submodule(name, replaced[name])
        guard(name, replaced[name])
    if not refused:
        _group_sites(copied, inputs)
    in_float = _functions_in_float(copied, sample) if run.mode.spiking and not refused else {}
    return Survey(Ported(copied, run), unreached, refused, in_float)


def _read_elsewhere(readers: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Modules whose weights others read, and why that is refused, beside what is ``known``."""
    return {
        name: f"the weight and bias of {name} to be read by that module alone, got "
        f"{reader or 'the model'} that reads them too. This model cannot be ported."
        for name, reader in readers.items()
        if name not in known
    }


@contextmanager
def _reached(model: nn.Module, left: set[str]) -> Iterator[None]:
    """Take the modules that are called out of ``left``."""

    def take(name: str) -> Any:
        return lambda *_: left.discard(name)

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
                "every matrix product in a Linear, Conv1D, Conv2d or the transformers attention "
                f"interface, got {product.op} in {product.module or 'the model'} ({kind}). This "
                "model cannot be ported.",
            )
    return refused


def _outside(copied: nn.Module, product: TracedProduct) -> bool:
    owner = copied.get_submodule(product.module)
    return product.contraction > 1 and not isinstance(owner, Replaced)


def _replace_products(
    model: nn.Module, copied: nn.Module, run: Run, refused: dict[str, str]
) -> dict[str, nn.Module]:
    """Replace the products of the copy; those that were, by name."""
    replaced = {}
    for name, module in model.named_modules():
        if isinstance(recognise(module), Product):
            original = copied.get_submodule(name)
            try:
                copied.set_submodule(name, replacement(name, original, run))
            except UnsupportedError as error:
                refused[name] = str(error).removeprefix("port needs ")
            else:
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
    """The shape of what every site reads."""

    sees_probabilities = True

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, ...]] = {}

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        self.seen.setdefault(site.name, tuple(x.shape))
        return x


def _axes(ported: Ported, sample: Batch) -> dict[str, Axes]:
    """Rows and tokens of every site and, named "", of the first output."""

    def shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
        watcher = _Shapes()
        with torch.no_grad(), ported.run.watching(watcher), same_draws():
            output = first_output(ported.model(**batch))
        return {**watcher.seen, "": tuple(output.shape)}

    return measure_axes(shapes, sample)


def _attach_attention(copied: nn.Module, run: Run, sample: Batch) -> None:
    """Give every module that calls the attention interface a SpikingAttention.

    With circuits, what a rotation by position reads is sent on as spikes of its own.
    """
    if not has_interface(copied):
        return
    names = {id(module): name for name, module in copied.named_modules()}
    mixing = _Mixing(copied) if run.mode.spiking else None

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, *others: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not hasattr(module, HANDLE):
            setattr(module, HANDLE, SpikingAttention(names[id(module)], run))
        if mixing is not None:
            for x in (query, key):
                source = mixing.source(x)
                if source is not None:
                    source.relay = SignedDigitFormat(1.0, 1)
        return attend_on_handle(module, query, key, *others, **keywords)

    try:
        with torch.set_grad_enabled(mixing is not None), routed(copied, attend):
            copied(**sample)
    finally:
        if mixing is not None:
            mixing.remove()


class _Mixing:
    """Finds which module's channels are added up on the way to a tensor, by its gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.leaves: list[tuple[Reencoder, Tensor]] = []
        self.hooks = [
            module.register_forward_hook(self._cut)
            for module in model.modules()
            if isinstance(module, Reencoder)
        ]

    def _cut(self, module: nn.Module, args: Any, y: Tensor) -> Tensor:
        leaf = y.detach().requires_grad_()
        if isinstance(module, Reencoder):
            self.leaves.append((module, leaf))
        return leaf.clone()  # what follows may write to it

    def source(self, x: Tensor) -> Reencoder | None:
        """The module before ``x [batch, heads, tokens, channels]`` whose channels it mixes."""
        if not x.requires_grad:
            return None
        for channel in (0, -1):
            gradients = torch.autograd.grad(
                x[0, 0, -1, channel], [leaf for _, leaf in self.leaves],
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
            for (module, _), g in zip(reversed(self.leaves), reversed(gradients), strict=True):
                if g is not None and int(g.count_nonzero()):
                    if int(g.count_nonzero()) > 1:
                        return module
                    break
        return None

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _run_twice(inputs: _Inputs) -> dict[str, str]:
    """Modules that ran more than once, and why that is refused."""
    return {
        name.partition(":")[0]: (
            f"each module to run once per input, got {name.partition(':')[0]} run {times} times. "
            "Models that share weights between layers cannot be ported."
        )
        for name, times in inputs.count.items()
        if times > 1
    }


def _group_sites(copied: nn.Module, inputs: _Inputs) -> None:
    """One site per distinct input: products that read the same tensor read the same neurons."""
    by_input: dict[tuple[int, int], Site] = {}
    readers = {id(p.site): p for p in copied.modules() if isinstance(p, SpikingProduct)}
    shapes = {}
    for placeholder, x, version in inputs.seen:
        module = readers.get(id(placeholder))
        if module is None:
            shapes[placeholder.name] = (x.shape[1], 1, x.shape[-1])
            continue
        site = by_input.get((id(x), version))
        if site is None:
            channels = (module.in_channels,) if module.conv is None else (module.in_channels, 1, 1)
            site = Site(module.name, module.kind, module.site.code, channels)
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
        if not isinstance(copied.get_submodule(name), Replaced):
            left[name] = (*left.get(name, ()), operator)
    return left
