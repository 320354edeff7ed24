"""Put sites and circuits into a model: the modules that stand for its own, and copies of them."""

import copy
import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from isospike import codes
from isospike.circuits.digits import SignedDigitFormat
from isospike.errors import UnsupportedError
from isospike.hf.attention import HANDLE, hold, route
from isospike.hf.batches import Batch
from isospike.hf.experts import one_by_one
from isospike.hf.modules import Product, recognise
from isospike.porting.attention import SpikingAttention
from isospike.porting.calls import CALLS, Call, Hooks, Runner, restore
from isospike.porting.fidelity import same_draws
from isospike.porting.functions import make_circuit
from isospike.porting.lowering import Convolution
from isospike.porting.matmul import SpikingMatmul, SpikingScale
from isospike.porting.offload import at_hand, has_hooks
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE, Run, run_of
from isospike.porting.saturation import Saturation, saturation_of
from isospike.porting.sites import Site

AGREEMENT = 2e-3  # of a circuit's function with its module's, as far as modules are recognised


def in_python(model: nn.Module) -> nn.Module:
    """A model that Python runs, module by module; of a compiled one, what was compiled.

    Raises:
        UnsupportedError: A part is compiled, scripted or quantised, or its weights wrap others.
    """
    model = getattr(model, "_orig_mod", model)
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            kind, way = "a compiled module", "Port the model, then compile the port"
        elif isinstance(module, torch.jit.ScriptModule):
            kind, way = "a scripted module", "Port the module that was scripted"
        elif type(module).__module__.startswith(("torch.ao.nn", "torch.nn.quantized")):
            kind, way = "a quantised module", "Port the model as it was before it was quantised"
        elif any(is_traceable_wrapper_subclass(p) for p in module.parameters(recurse=False)):
            kind, way = "weights that wrap others", "Port the model before it is quantised or split"
        else:
            continue
        raise UnsupportedError(
            f"port needs modules that Python runs, with weights of real numbers, got {kind} in "
            f"{name or 'the model'} ({type(module).__name__}). {way}."
        )
    return model


def copy_of(ported: Ported) -> Ported:
    """A copy that shares the memory of all tensors but the biases, which calibration writes to."""
    written = {id(p.bias) for p in ported.products if isinstance(p, SpikingProduct)}
    memo: dict[int, Any] = {}
    for parameter in ported.model.parameters():
        if id(parameter) not in written:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    for buffer in ported.model.buffers():
        memo[id(buffer)] = buffer.detach()
    return Ported.of(copy.deepcopy(ported.model, memo))


def own_memory(ported: Ported, other: Ported) -> None:
    """Give ``ported`` memory of its own where it shares some with ``other``."""
    shared = {
        t.untyped_storage().data_ptr()
        for t in (*other.model.parameters(), *other.model.buffers())
        if t.numel()
    }
    for tensor in (*ported.model.parameters(), *ported.model.buffers()):
        if tensor.untyped_storage().data_ptr() in shared:
            tensor.data = tensor.detach().clone()


def place_circuits(
    model: nn.Module, run: Run, sample: Batch | None = None, names: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Replace what is not a product, and has a circuit, by its circuit.

    Args:
        model: It is changed.
        run: Its state.
        sample: Only modules are replaced whose circuit gives the same on these inputs.
        names: Without a sample, those to replace.

    Returns:
        What was replaced, by name.

    Raises:
        UnsupportedError: One of them does more than its class.
    """
    found = {}
    for name, module in model.named_modules():
        if sample is None and name not in names:
            continue
        with at_hand(model, name):
            circuit = make_circuit(name, module, recognise(module), run)
        if circuit is not None:
            found[name] = circuit
    if sample is not None:
        found = _agreeing(model, found, sample)
    replaced = {}
    for name, circuit in found.items():  # an MLP comes before the activation within it
        replaced[name] = model.get_submodule(name)
        check_plain(name, replaced[name])
        model.set_submodule(name, circuit)
    return replaced


def _agreeing(model: nn.Module, circuits: Mapping[str, nn.Module], sample: Batch) -> dict[str, Any]:
    """The circuits that give, in float, what their modules give on a model's inputs; those of
    modules that are not called stay."""
    wrong: set[str] = set()

    def compare(name: str, module: nn.Module, args: Any, named: Any, y: Any) -> None:
        try:
            same = torch.allclose(circuits[name](*args, **named), y, rtol=1e-2, atol=AGREEMENT)
        except (TypeError, RuntimeError):  # it is called with more, or on other shapes
            same = False
        if not same:
            wrong.add(name)

    hooks = [model.get_submodule(n).register_forward_hook(partial(compare, n), with_kwargs=True)
             for n in circuits]  # fmt: skip
    try:
        with torch.no_grad(), same_draws():
            model(**sample)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: circuit for name, circuit in circuits.items() if name not in wrong}


def special(module: nn.Module) -> str:
    """What a module does beyond what its class computes; empty for nothing."""
    if has_hooks(module):
        return "a hook"
    if "forward" in vars(module):
        return "a forward of its own"
    if any(isinstance(vars(module).get(w), Tensor) for w in ("weight", "bias")):
        return "a weight that is computed"
    return ""


def check_plain(name: str, module: nn.Module) -> None:
    """Refuse to put a circuit in the place of a module that does more than its class.

    Raises:
        UnsupportedError: It has hooks, a ``forward`` of its own or a weight that is computed.
    """
    if does := special(module):
        raise UnsupportedError(
            f"port needs a plain {type(module).__name__} in {name}, got one with {does}, which its "
            "spiking form would lose. Remove it, or keep the functions in float."
        )


def guard(name: str, module: nn.Module) -> None:
    """Let a module that calibration did not reach raise when it is called."""
    module.register_forward_pre_hook(partial(_refuse, name))


def _refuse(name: str, module: nn.Module, args: Any) -> None:
    raise UnsupportedError(
        f"this port needs calibration inputs that reach {name}, got none. Port the model again on "
        "inputs that use it."
    )


def replacement(name: str, module: nn.Module, run: Run) -> SpikingProduct | None:
    """The product of spikes that stands for a product with a weight; None where it does more than
    its class, or pads its input in another way than by zeros."""
    known = recognise(module)
    if not isinstance(known, Product) or special(module):
        return None
    if not isinstance(module, nn.Conv2d):
        return _described(SpikingProduct(name, run, known.weight, known.bias), module)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return None
    conv = Convolution(module.stride, module.dilation, module.groups, module.padding)
    return _described(SpikingProduct(name, run, known.weight, known.bias, conv), module)


def _described(product: SpikingProduct, module: nn.Module) -> SpikingProduct:
    """The product with its original's sizes, which other modules may ask for."""
    for name, value in vars(module).items():
        plain = isinstance(value, int | float | str | tuple) and not name.startswith("_")
        if plain and not hasattr(product, name):
            setattr(product, name, value)
    return product


def attach_run(model: nn.Module, run: Run) -> None:
    """Make a model with replaced modules a port that runs as ``run`` says."""
    vars(model)[ATTRIBUTE] = run
    vars(model)["saturation"] = Saturation(model)
    model.register_forward_pre_hook(_before, with_kwargs=True)
    model.register_forward_hook(_after, always_call=True)


class _Entered(threading.local):
    """What the running ports of a thread have entered, the innermost last."""

    def __init__(self) -> None:
        self.stacks: list[ExitStack] = []


_entered = _Entered()


def _before(module: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
    stack, run = ExitStack(), run_of(module)
    _entered.stacks.append(stack)
    default = getattr(getattr(module, "config", None), "output_attentions", False)
    if keywords.get("output_attentions", default):
        run.wants_maps = True
    if run.phase != "run" or torch.compiler.is_compiling():
        return
    tensors = itertools.chain(module.parameters(), module.buffers())
    weight = next(t for t in tensors if t.is_floating_point())
    if weight.dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(
            f"a port needs float32 or float64, got {str(weight.dtype).removeprefix('torch.')}, "
            "which rounds its integers. Load or port it again without converting it; for faster "
            "products in bfloat16, use precision='fast'."
        )
    if run.learning is None:
        stack.enter_context(torch.no_grad())
    for device in {"cpu", weight.device.type} - {"meta"}:  # offloaded weights are nowhere yet
        if torch.is_autocast_enabled(device):  # its products are exact in float32 only
            stack.enter_context(torch.autocast(device, enabled=False))


def _after(module: nn.Module, args: Any, output: Any) -> Any:
    run = run_of(module)
    run.wants_maps = False
    if not torch.compiler.is_compiling():
        saturation_of(module).warn()
    if _entered.stacks:
        _entered.stacks.pop().close()
    # A fast run computes in bfloat16; what the model returns keeps its type.
    output = as_float32(output)
    if run.learning is not None:
        return output
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    if run.phase == "run" and trained and not torch.compiler.is_compiling():
        return _each(output, _untrained)
    return output


class _Untrained(torch.autograd.Function):
    """The identity; its gradient is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedError(
            "a port needs passes without a gradient, since spikes have none, got a backward pass. "
            "Train what Port.trainable returns, or freeze the port by requires_grad_(False)."
        )


def as_float32(output: Any) -> Any:
    """A model's output with its bfloat16 tensors in float32; a cache stays as it is."""
    return _each(output, lambda x: x.float() if x.dtype == torch.bfloat16 else x)


def _untrained(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    refusing: Tensor = _Untrained.apply(  # type: ignore[no-untyped-call]
        x, torch.zeros((), requires_grad=True)
    )
    return refusing


def _each(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A model's output with ``function`` of its tensors; a cache stays as it is."""
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, Mapping):
        for key, value in output.items():
            output[key] = _each(value, function)  # type: ignore[index]
        return output
    return tuple(_each(x, function) for x in output) if type(output) is tuple else output


def rebuild(model: nn.Module, spec: Mapping[str, Any], run: Run) -> Ported:
    """Make a model the port that was saved; its weights are still to be loaded.

    Args:
        model: Of the class and the configuration that were saved.
        spec: What the file says of its sites.
        run: How it runs.
    """
    place_circuits(model, run, names=spec["circuits"])
    found = {name: _saved_site(name, s) for name, s in spec["sites"].items()}
    for name, site in spec["products"].items():
        if CALLS in name.split("."):
            continue
        product = replacement(name, model.get_submodule(name), run)
        if product is None:
            raise UnsupportedError(
                f"load needs at {name} the kind of layer that was ported, got a "
                f"{type(model.get_submodule(name)).__name__}. Port the model again."
            )
        product.site = found[site]
        model.set_submodule(name, product)
    restore(model, {n: [Call(**c) for c in each] for n, each in spec["calls"].items()}, run)
    for name, module in model.named_modules():
        if isinstance(recognise(module), Product) and name not in spec["calls"]:
            guard(name, module)
    route(model)
    one_by_one(model)
    for name in spec["attention"]:
        if ":" not in name:
            setattr(model.get_submodule(name), HANDLE, SpikingAttention(name, run))
    hold(model)
    for path, module in model.named_modules():
        if isinstance(module, SpikingProduct) and path in spec["products"]:
            module.site = found[spec["products"][path]]
            module.make_room(*spec["synapses"].get(path, (16, 0)))
        elif isinstance(module, SpikingAttention | SpikingMatmul | SpikingScale):
            for site in module.sites:
                setattr(module, site.kind, found[site.name])
        if isinstance(module, SpikingAttention):
            heads, _, channels = module.query.offset.shape
            module.gain = torch.zeros(heads, 1, channels)
            module.current = torch.zeros(heads, channels, 1)
            module.unit = torch.zeros(heads, 1, 1)
    for name, parts in spec["digits"].items():
        for part, (grid, steps) in parts.items():
            module = model.get_submodule(name)
            if not isinstance(getattr(module, part, 0), SignedDigitFormat):
                raise UnsupportedError(
                    f"load needs circuits where they were saved, got none at {name!r}. Port the "
                    "model again."
                )
            setattr(module, part, SignedDigitFormat(grid, steps))
    attach_run(model, run)
    if spec["calls"]:
        Hooks(model, run)
        run.multiplier = Runner(run.mode.spiking)
    return Ported(model, run)


def _saved_site(name: str, spec: Mapping[str, Any]) -> Site:
    code = codes.code(spec["code"], spec["steps"])
    site = Site(name, spec["kind"], code, tuple(spec["shape"]))
    site.fan_out, site.shared, site.fitted = spec["fan_out"], spec["shared"], True
    site.dynamic, site.octaves = spec["dynamic"], spec["octaves"]
    site.usual_outside = spec["usual_outside"]
    return site
