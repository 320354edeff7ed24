"""The model of a saved port before its weights are filled in: built again, or given by the caller.

A file says by which class and configuration its model is built. No module is imported because a
file names it, but for the model code of transformers: any other class must be imported already, and
what no configuration builds is given, as new, by whoever loads the port.
"""

import contextlib
import copy
import inspect
import itertools
import json
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from isospike.errors import InputError, UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.instrument import rebuild
from isospike.porting.matmul import SpikingMatmul, SpikingScale
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE, Mode, Run
from isospike.porting.sites import Site
from isospike.porting.spec import PortSpec, class_path

Header = Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]
"""Shape and type of every tensor of a file, by name."""

Forms = Mapping[str, tuple[tuple[int, ...] | None, torch.dtype]]
"""Those that a file is to have; None for a row of any length."""

# Keys of a configuration by which transformers would fetch or run something.
DROPPED = frozenset(
    "attn_implementation _attn_implementation _attn_implementation_internal auto_map "
    "experts_implementation _experts_implementation quantization_config kernel_config use_kernels "
    "trust_remote_code custom_pipelines backbone use_pretrained_backbone".split()
)
_OURS = (Site, SpikingProduct, SpikingAttention, SpikingMatmul, SpikingScale)
_LIBRARY = re.compile(r"transformers\.models\.\w+\.modeling_\w+")
_MOST_SWITCHES = 4  # of a constructor, that are tried


# ------------------------------------------------------------------------- before saving


def check_builds(model: nn.Module) -> None:
    """Raise unless a saved port of a float model could be loaded without a model to fill.

    Args:
        model: In float.

    Raises:
        UnsupportedError: It has adapters of PEFT, which no configuration describes, or differs from
            what its configuration builds.
    """
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise UnsupportedError(
                "port needs a model whose adapters are merged into its weights, got a "
                f"{type(module).__name__} in {name or 'the model'}. Call merge_and_unload() first, "
                "and port what it returns."
            )
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    place, config = class_path(model), config_of(model)
    for switches in switches_of(place):
        with contextlib.suppress(Exception):  # whatever a constructor raises
            fresh = _light(lambda: plain_model(place, switches, config))  # noqa: B023
            if {name: tensor.shape for name, tensor in fresh.state_dict().items()} == wanted:
                return
    raise UnsupportedError(
        "port needs a model that its configuration builds again, got a "
        f"{type(model).__name__} that differs. Port it in Python: isospike.load(folder, model) "
        "fills one that you build."
    )


def with_recipe(spec: PortSpec, config: Mapping[str, Any], ported: nn.Module, mode: Mode) -> Any:
    """A specification that says how its model is built, and the port it builds.

    Args:
        spec: Of the port.
        config: Configuration of its model.
        ported: The port.
        mode: Its settings.

    Returns:
        The specification, and a port as new; None where whoever loads it must give the model.
    """
    header = header_of(ported)
    for switches in switches_of(spec.model) if config else ():
        tried = replace(spec, switches=switches)
        with contextlib.suppress(Exception):  # whatever a constructor raises
            fresh = _light(lambda: built(tried, config, mode))  # noqa: B023
            check_header(fresh, header)
            return tried, fresh
    return replace(spec, switches=None), None


def switches_of(place: str) -> Iterator[dict[str, bool]]:
    """Arguments of a constructor, beside the configuration, by which a model may have been built.

    The model does not keep them: ``add_pooling_layer=False``, say. First none, then every other
    value of each argument that is true or false, then of two of them, and so on.

    Args:
        place: See :func:`isospike.porting.spec.class_path`.
    """
    module, _, name = place.partition(":")
    cls = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if not isinstance(cls, type):
        return
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(cls).parameters.values()
        if isinstance(parameter.default, bool)
    }
    names = list(defaults)[:_MOST_SWITCHES]
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            yield {switch: not defaults[switch] for switch in chosen}


def layers_of(model: nn.Module) -> dict[str, str]:
    """The class of each module of a float model, by name."""
    return {name: type(module).__qualname__ for name, module in model.named_modules()}


def config_of(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model of transformers as JSON; empty for any other model."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    plain: dict[str, Any] = without_dropped(json.loads(json.dumps(config.to_dict(), default=str)))
    return plain


def without_dropped(config: Any) -> Any:
    """A configuration without what would fetch or run something."""
    if isinstance(config, dict):
        return {k: without_dropped(v) for k, v in config.items() if k not in DROPPED}
    return [without_dropped(part) for part in config] if isinstance(config, list) else config


# ------------------------------------------------------------------------------ building


def built(spec: PortSpec, config: Mapping[str, Any], mode: Mode) -> nn.Module:
    """The port of a specification, its weights still to be loaded.

    Args:
        spec: Of the port.
        config: Configuration of its model.
        mode: How it runs.

    Raises:
        UnsupportedError: There is no such class, or it must be given.
    """
    return _ported(spec, plain_model(spec.model, spec.switches, config), mode)


def like(spec: PortSpec, given: nn.Module, mode: Mode) -> nn.Module:
    """The port of a specification made of a copy of a model that is given.

    Args:
        spec: Of the port.
        given: Of the class and the sizes that were saved; its weights do not matter.
        mode: How the port runs.

    Raises:
        InputError: The model is another one; the message names the first difference.
    """
    cls = spec.model.partition(":")[2]
    if ATTRIBUTE in vars(given) or type(given).__qualname__ != cls:
        kind = "port" if ATTRIBUTE in vars(given) else type(given).__qualname__
        raise _another(f"a new {cls} to fill", f"a {kind}")
    if any(t.is_meta for t in itertools.chain(given.parameters(), given.buffers())):
        raise _another(f"a {cls} in memory to fill", "one without values")
    layers = layers_of(given)
    for name in {**spec.layers, **layers} if spec.layers else ():
        if layers.get(name) != spec.layers.get(name):
            saved, found = spec.layers.get(name, "nothing"), layers.get(name, "nothing")
            raise _another(f"a model with {saved} at {name}, as it was saved", found)
    return _ported(spec, copy.deepcopy(given).eval().float(), mode)


def plain_model(
    place: str, switches: Mapping[str, bool] | None, config: Mapping[str, Any]
) -> nn.Module:
    """A float model with random weights.

    Args:
        place: See :func:`isospike.porting.spec.class_path`.
        switches: Arguments of its constructor beside the configuration.
        config: The configuration.

    Raises:
        UnsupportedError: There is no such class, or it must be given.
    """
    cls = _class_of(place, switches, config.get("model_type"))
    model: nn.Module = cls(cls.config_class.from_dict(dict(config)), **(switches or {})).eval()
    return model


def _class_of(place: str, switches: Mapping[str, bool] | None, model_type: Any) -> Any:
    """A model class of transformers, or one made of it, that belongs to an architecture."""
    import transformers

    module, _, name = place.partition(":")
    library = _LIBRARY.fullmatch(module) is not None
    if switches is None:
        raise UnsupportedError(
            f"load needs a new model to fill, for no configuration builds a {name}, got none. "
            "Build one as it was built when it was ported: isospike.load(folder, model)."
        )
    if library:
        with contextlib.suppress(ImportError):
            import_module(module)
    cls: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    known = known and cls.__module__ == module
    if known and cls.config_class is not None and cls.config_class.model_type == model_type:
        return cls
    way = f"Install the version of transformers it was saved with, not {transformers.__version__}."
    if not library:
        way = (
            "It is not imported because a file names it: import it yourself, or give a new model: "
            "isospike.load(folder, model)."
        )
    raise UnsupportedError(
        f"load needs a model class for the architecture {model_type!r}, got {place!r}. {way}"
    )


def _ported(spec: PortSpec, model: nn.Module, mode: Mode) -> nn.Module:
    rebuild(model, asdict(spec), Run(mode, phase="run"))
    keep_buffers(model)
    return model


def keep_buffers(model: nn.Module) -> None:
    """Save floating-point buffers too: ``model.half()`` has rounded rotary frequencies, say."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._non_persistent_buffers_set.discard(name)


def _light(build: Any) -> nn.Module:
    """What ``build`` makes, without memory if it can be."""
    model: nn.Module
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError):  # some modules are recognised by what they compute
        with keeping_rng():
            model = build()
    return model


@contextlib.contextmanager
def keeping_rng() -> Iterator[None]:
    """Random weights are drawn, and written over at once: nobody else's numbers change."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


# ------------------------------------------------------------------------------- checking


def check_room(spec: PortSpec, config: Mapping[str, Any], header: Header, spare: int) -> None:
    """Raise if a port has many more modules or numbers than its file, before any memory is taken.

    Args:
        spec: Of the port.
        config: Configuration of its model.
        header: Of its file.
        spare: Bytes that are no matter.

    Raises:
        InputError: It has more.
    """
    thread, count = threading.get_ident(), 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > 50 * len(header) + 5000:
            raise _too_large(header, "many more modules")

    hook = nn.modules.module.register_module_module_registration_hook(counted)
    try:
        with torch.device("meta"):
            model = plain_model(spec.model, spec.switches, config)
    finally:
        hook.remove()
    tensors = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
    there = {id(t) for n, t in tensors.items() if header.get(n, ((), None))[0] == tuple(t.shape)}
    extra = sum(t.nbytes for t in {id(t): t for t in tensors.values()}.values()
                if id(t) not in there)  # fmt: skip
    extra += sum(4 * math.prod(site.shape) for site in spec.sites.values())
    if extra > spare:
        raise _too_large(header, f"{extra >> 20} MiB of further numbers")


def _too_large(header: Header, what: str) -> InputError:
    return InputError(
        f"load needs a config.json that fits its {len(header)} tensors, got one with {what}. Save "
        "the port again."
    )


def header_of(model: nn.Module) -> Header:
    """Shape and type of what a model saves."""
    return {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}


def check_header(
    model: nn.Module, header: Header, packed: Forms | None = None, given: bool = False
) -> None:
    """Raise unless a file holds the tensors of a model, each once or by several names.

    Buffers of the modules of a port may have any size.

    Args:
        model: A port.
        header: Of the file.
        packed: What it is to have for tensors that are packed; a shape of None is that of any row.
        given: Whether the user gave the model.

    Raises:
        InputError: It does not; the message names the first difference.
    """
    own = model.state_dict(keep_vars=True)
    free = set(own_buffers(model))
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
    for name, (shape, kind) in (packed or {}).items():
        row = shape is None and name in header and len(header[name][0]) == 1
        found[name] = header[name][0] if row else shape or (), kind
    for name in {**dict.fromkeys(n for n in own if n in header), **header}:  # in the model's order
        if name not in own or (name not in free and header[name] != found[name]):
            raise _unfit(name, header[name], found.get(name), given)
    saved = {id(own[name]) for name in header}
    for name, tensor in own.items():
        if id(tensor) not in saved:
            raise _unfit(name, None, found[name], given)


def _unfit(name: str, saved: Any, own: Any, given: bool) -> InputError:
    told = ["none" if x is None else f"one of shape {x[0]} and type {x[1]}" for x in (saved, own)]
    if given:
        return _another(f"a model with {told[0]} for {name}, as it was saved", told[1])
    return InputError(
        f"load needs weights that fit config.json, got {told[0]} for {name}. Save the port again."
    )


def _another(needs: str, got: str) -> InputError:
    return InputError(
        f"load needs {needs}, got {got}. Build the model as it was built when it was ported."
    )


def own_buffers(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Module and name of each buffer of the modules of a port, by its whole name."""
    return {
        f"{path}.{name}": (module, name)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _OURS)
        for name in module._buffers
    }
