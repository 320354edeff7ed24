"""A copy of a model in which every matrix product reads spikes."""

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isospike import codes
from isospike.circuits.digits import SignedDigitFormat
from isospike.errors import UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.audit import trace_nonlinear, trace_products
from isospike.porting.functions import SpikingNorm, circuit_of
from isospike.porting.ported import CIRCUITS, Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE, Mode, Run, Watcher
from isospike.porting.sites import Site, tensor_version

ATTENTION = "isospike"
HANDLE = "isospike_attention"  # submodule that the surgery adds to each attention module
# Arguments of the attention interface that change the scores in a way SpikingAttention does not.
CHANGES_SCORES = ("softcap", "s_aux", "position_bias", "head_mask")


class _Inputs(Watcher):
    """What every site reads: kept alive, so that an address says which tensor it was."""

    def __init__(self) -> None:
        self.seen: list[tuple[Site, Tensor, int]] = []

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        self.seen.append((site, x, tensor_version(x)))
        return x


def open_up(model: nn.Module, batch: Mapping[str, Any], functions: str = "float") -> Ported:
    """A copy of ``model`` with its products replaced, in the float phase, its sites discovered.

    With ``functions="spiking"``, what is no product is replaced too, by circuits of spikes.

    Raises:
        UnsupportedError: A matrix product outside Linear, Conv1D, Conv2d and the transformers
            attention interface, or a non-linear function that no circuit computes, named by its
            module.
    """
    ported = copy.deepcopy(model).eval().float()
    run = Run(Mode(functions=functions))
    if run.mode.spiking:
        _place_circuits(ported, run)
    replaced = {
        name: ported.get_submodule(name)
        for name, module in model.named_modules()
        if _is_product(module)
    }
    for name, module in replaced.items():
        ported.set_submodule(name, _replacement(name, module, run))
    _route_attention(ported)
    _attach_run(ported, run)
    _attach_attention(ported, run)
    inputs = _Inputs()
    with torch.no_grad(), run.watching(inputs):
        traced = trace_products(ported, batch)
    for product in traced:
        module = ported.get_submodule(product.module)
        if not isinstance(module, SpikingProduct | SpikingAttention) and product.contraction > 1:
            raise UnsupportedError(
                f"port needs every matrix product in a Linear, Conv1D, Conv2d or the transformers "
                f"attention interface, got {product.op} in {product.module or 'the model'} "
                f"({type(module).__name__}). This model cannot be ported."
            )
    _check_once(inputs)
    reached = {id(site) for site, *_ in inputs.seen}
    for name, module in replaced.items():
        if id(_sites_of(ported, name)[0]) not in reached:
            ported.set_submodule(name, module)  # never called: leave it alone
    for name, module in list(ported.named_modules()):
        if isinstance(module, SpikingAttention) and id(module.query) not in reached:
            delattr(ported.get_submodule(name.rpartition(".")[0]), HANDLE)
    _group_sites(ported, inputs)
    if run.mode.spiking:
        _place_relays(ported)
        _check_functions(ported, batch)
    return Ported(ported, run)


def _sites_of(ported: nn.Module, name: str) -> tuple[Site, ...]:
    module = ported.get_submodule(name)
    return module.sites if isinstance(module, SpikingProduct | SpikingAttention) else ()


def _check_once(inputs: _Inputs) -> None:
    """Raise UnsupportedError if a module ran more than once."""
    names = [site.name for site, *_ in inputs.seen]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UnsupportedError(
            f"port needs each module to run once per input, got {twice.partition(':')[0]} run "
            f"{names.count(twice)} times. Models that share weights between layers cannot be "
            "ported."
        )


def _place_circuits(ported: nn.Module, run: Run) -> None:
    found = {}
    for name, module in ported.named_modules():
        circuit = circuit_of(name, module, run)
        if circuit is not None:
            found[name] = circuit
    for name, circuit in found.items():  # an MLP comes before the activation within it
        ported.set_submodule(name, circuit)


def _place_relays(ported: nn.Module) -> None:
    """Digits at what a rotation by position reads: queries and keys, after their norms if any."""
    for name, module in list(ported.named_modules()):
        if not isinstance(module, SpikingAttention) or not name.endswith(HANDLE):
            continue
        owner = ported.get_submodule(name.rpartition(".")[0])
        if not _rotates(type(owner)):  # type: ignore[arg-type]
            continue
        for part in ("q", "k"):
            source = getattr(owner, f"{part}_norm", getattr(owner, f"{part}_proj", None))
            if not isinstance(source, SpikingProduct | SpikingNorm):
                raise UnsupportedError(
                    f"port needs functions='float' for rotary positions in {module.name}, got "
                    "'spiking', which needs them to follow q_proj and k_proj."
                )
            source.relay = SignedDigitFormat(1.0, 1)


def _check_functions(ported: nn.Module, batch: Mapping[str, Any]) -> None:
    with torch.no_grad():
        found = trace_nonlinear(ported, batch)
    for name, operator in found:
        module = ported.get_submodule(name)
        if not isinstance(module, (*CIRCUITS, SpikingAttention)):
            raise UnsupportedError(
                f"port needs functions='float' for {operator} in {name or 'the model'} "
                f"({type(module).__name__}), got 'spiking', which has circuits for activation "
                "modules, LayerNorm, RMSNorm and gated MLPs."
            )


def rebuild(model: nn.Module, spec: Mapping[str, Any], run: Run) -> Ported:
    """Perform in place the surgery of a saved port; its weights are still to be loaded."""
    if run.mode.spiking:
        _place_circuits(model, run)
    found = {name: _saved_site(name, s) for name, s in spec["sites"].items()}
    for name, site in spec["products"].items():
        product = _replacement(name, model.get_submodule(name), run)
        product.site = found[site]
        # A storage of its own: an output layer may still be tied to the embedding.
        product.weight = nn.Parameter(torch.empty_like(product.weight), requires_grad=False)
        model.set_submodule(name, product)
    _route_attention(model)
    for name in spec["attention"]:
        attention = SpikingAttention(name, run)
        for kind in ("query", "key", "value", "probability"):
            setattr(attention, kind, found[f"{name}:{kind}"])
        heads, _, channels = attention.query.offset.shape
        attention.gain = torch.zeros(heads, 1, channels)
        attention.current = torch.zeros(heads, channels, 1)
        attention.unit = torch.zeros(heads, 1, 1)
        setattr(model.get_submodule(name), HANDLE, attention)
    for name, parts in spec["digits"].items():
        for part, (grid, steps) in parts.items():
            setattr(model.get_submodule(name), part, SignedDigitFormat(grid, steps))
    _attach_run(model, run)
    return Ported(model, run)


def saved_digits(model: nn.Module) -> dict[str, dict[str, tuple[float, int]]]:
    """Grid and steps of every circuit's digits, by module and attribute."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for name, module in model.named_modules():
        for part in ("digits", "relay"):
            digits = getattr(module, part, None)
            if isinstance(digits, SignedDigitFormat):
                found.setdefault(name, {})[part] = (digits.grid, digits.steps)
    return found


def _saved_site(name: str, spec: Mapping[str, Any]) -> Site:
    site = Site(name, spec["kind"], codes.code(spec["code"], spec["steps"]), tuple(spec["shape"]))
    site.fan_out, site.shared, site.fitted = spec["fan_out"], spec["shared"], True
    return site


def _is_product(module: nn.Module) -> bool:
    # transformers' Conv1D is a Linear with its weight transposed; by name, to stay import-free.
    return type(module) in (nn.Linear, nn.Conv2d) or type(module).__name__ == "Conv1D"


def _replacement(name: str, module: nn.Module, run: Run) -> SpikingProduct:
    weight, bias = module.weight, module.bias
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise UnsupportedError(f"port needs a plain weight in {name}, got {type(weight).__name__}.")
    if not isinstance(module, nn.Conv2d):
        transposed = not isinstance(module, nn.Linear)
        return SpikingProduct(name, run, weight.t() if transposed else weight, bias, None)
    if module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise UnsupportedError(
            f"port needs Conv2d with groups=1 and zero padding given as numbers, got {module} in "
            f"{name}. This model cannot be ported."
        )
    conv = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    return SpikingProduct(name, run, weight, bias, conv)


def _attach_run(model: nn.Module, run: Run) -> None:
    vars(model)[ATTRIBUTE] = run
    # A fast run computes in bfloat16; what the model returns keeps its type.
    model.register_forward_hook(_return_float32)


def _return_float32(module: nn.Module, args: Any, output: Any) -> Any:
    return as_float32(output)


def as_float32(output: Any) -> Any:
    """A model's output with its bfloat16 tensors in float32; a cache stays as it is."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype == torch.bfloat16 else output
    if isinstance(output, Mapping):
        for key, value in output.items():
            output[key] = as_float32(value)  # type: ignore[index]
        return output
    return tuple(map(as_float32, output)) if type(output) is tuple else output


def _route_attention(model: nn.Module) -> None:
    """Send the model's attention through :func:`_attention`."""
    if not hasattr(model, "set_attn_implementation"):
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def _attach_attention(model: nn.Module, run: Run) -> None:
    """Give every module that asks for the attention interface a SpikingAttention."""
    for name, module in list(model.named_modules()):
        if uses_interface(type(module)):  # type: ignore[arg-type]
            setattr(module, HANDLE, SpikingAttention(name, run))


@functools.cache
def _rotates(kind: type[nn.Module]) -> bool:
    return "rotary" in inspect.getsource(kind.forward)


@functools.cache
def uses_interface(kind: type[nn.Module]) -> bool:
    """Whether a module class calls the transformers attention interface."""
    try:
        return "attention_interface" in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with the transformers attention interface."""
    handle = getattr(module, HANDLE, None)
    if handle is None:
        raise UnsupportedError(
            f"attention implementation {ATTENTION!r} needs a ported model, got a plain "
            f"{type(module).__name__}. Use isospike.port."
        )
    for argument in CHANGES_SCORES:
        if kwargs.get(argument) is not None:
            raise UnsupportedError(
                f"port needs plain softmax attention, got {argument} in {handle.name}. This model "
                "cannot be ported."
            )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    y: Tensor = handle(query, key, value, attention_mask, scaling)
    return y.transpose(1, 2).contiguous(), None


def _group_sites(ported: nn.Module, inputs: _Inputs) -> None:
    """One site per distinct input: products that read the same tensor read the same neurons."""
    by_input: dict[tuple[int, int], Site] = {}
    readers = {id(p.site): p for p in ported.modules() if isinstance(p, SpikingProduct)}
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
    for attention in ported.modules():
        if isinstance(attention, SpikingAttention):
            for old in (attention.query, attention.key, attention.value):
                setattr(attention, old.kind, Site(old.name, old.kind, old.code, shapes[old.name]))
