"""A ported model as a folder: safetensors and JSON, written whole or not at all."""

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import InputError, IsospikeError, UnsupportedError, first_sentence
from isospike.hf.batches import Batch
from isospike.porting.attention import SpikingAttention
from isospike.porting.fingerprint import check_fingerprint, take_fingerprint
from isospike.porting.instrument import rebuild
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Mode, Run
from isospike.porting.saturation import saturation_of
from isospike.porting.sites import Site
from isospike.porting.spec import PortSpec, changed_attributes, restore_attributes
from isospike.report.files import Content, Snapshot, open_folder

MODEL_TYPE = "isospike"
"""In config.json, so that nothing else takes the folder for a model of numbers."""

CONFIG, WEIGHTS, ANSWERS = "config.json", "isospike.safetensors", "answers.safetensors"
GENERATION = "generation_config.json"

# Keys of a configuration by which transformers would fetch or run something.
DROPPED = frozenset(
    "attn_implementation _attn_implementation _attn_implementation_internal auto_map "
    "experts_implementation _experts_implementation quantization_config kernel_config use_kernels "
    "trust_remote_code custom_pipelines backbone backbone_config use_timm_backbone "
    "use_pretrained_backbone".split()
)
_OURS = (Site, SpikingProduct, SpikingAttention)
_SPARE_BYTES = 2**28  # of buffers that no file holds, such as positions
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Header = dict[str, tuple[tuple[int, ...], torch.dtype | None]]
"""Shape and type of every tensor of a file, by name."""


# --------------------------------------------------------------------------- save


def port_files(
    ported: nn.Module, rows: Sequence[Batch] = (), tokenizer: Any = None
) -> dict[str, Content]:
    """The files of a port: configuration, weights, answers on some rows, tokenizer.

    Args:
        ported: The ported model.
        rows: See :func:`isospike.porting.fingerprint.sample_rows`.
        tokenizer: Of transformers; None for none.

    Returns:
        What each file holds, by name.

    Raises:
        UnsupportedError: The model has no configuration of transformers that rebuilds it.
    """
    from safetensors.torch import save, save_model

    config = getattr(ported, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise UnsupportedError(
            "save needs a transformers model, which its config rebuilds, got "
            f"{type(ported).__name__}. Keep the result in memory, or pickle it yourself."
        )
    words = _tokenizer_files(tokenizer)
    spec = PortSpec.of(Ported.of(ported), sorted(words))
    plain = _without_dropped(json.loads(json.dumps(config.to_dict(), default=str)))
    answers, about = take_fingerprint(Ported.of(ported), rows)
    _keep_buffers(ported)
    try:
        fresh = _fresh(spec, plain, Ported.of(ported).run.mode)
        _check_header(fresh, _header_of(ported))
    except Exception as error:
        raise UnsupportedError(
            "save needs a transformers model that its config rebuilds, got one that differs: "
            f"{first_sentence(error)} Keep the result in memory, or pickle it yourself."
        ) from error
    spec = replace(spec, attributes=changed_attributes(ported, fresh))
    described = {"model_type": MODEL_TYPE, "isospike": asdict(spec), "model": plain}
    files: dict[str, Content] = {
        **words,
        CONFIG: json.dumps(described, indent=1),
        WEIGHTS: lambda path: save_model(ported, str(path)),
        ANSWERS: save(answers, metadata={"isospike": about}),
    }
    generation = getattr(ported, "generation_config", None)
    if generation is not None:
        files[GENERATION] = generation.to_json_string()
    return files


def _tokenizer_files(tokenizer: Any) -> dict[str, Content]:
    """What a tokenizer of transformers saves; nothing for None."""
    if tokenizer is None:
        return {}
    with TemporaryDirectory(prefix="isospike-") as scratch:
        tokenizer.save_pretrained(scratch)
        return {p.name: p.read_bytes() for p in sorted(Path(scratch).iterdir()) if p.is_file()}


def _keep_buffers(model: nn.Module) -> None:
    """Save floating-point buffers too: ``model.half()`` has rounded rotary frequencies, say."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._non_persistent_buffers_set.discard(name)


def _without_dropped(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _without_dropped(v) for k, v in config.items() if k not in DROPPED}
    return [_without_dropped(part) for part in config] if isinstance(config, list) else config


# --------------------------------------------------------------------------- load


def load(path: str | Path, execution: str | None = None, precision: str | None = None) -> nn.Module:
    """The ported model saved in a folder, ready to call.

    Every file is compared with its digest, every value checked, and what the port answers on a long
    and a short row is compared with what it answered when it was saved.

    Args:
        path: Folder written by :meth:`Port.save`.
        execution: ``collapsed`` or ``stepped``; as saved if None.
        precision: ``exact`` or ``fast``; as saved if None.

    Raises:
        IsospikeError: No port is there, or its files are damaged.
    """
    with open_folder(Path(path)) as snapshot:
        return load_from(snapshot, execution, precision)


def load_from(
    snapshot: Snapshot, execution: str | None = None, precision: str | None = None
) -> nn.Module:
    """The same out of an open folder.

    Args:
        snapshot: The folder.
        execution: See :func:`load`.
        precision: likewise.

    Raises:
        IsospikeError: As :func:`load`.
    """
    spec, plain = read_config(snapshot)
    mode = Mode(execution or spec.execution, precision or spec.precision, spec.nonlinear)
    with _told(snapshot.path):
        linear = [s for s in spec.sites.values() if s.kind in ("linear", "conv")]
        levels = [_code_of(site).levels for site in linear]
    mode.check("load", max(levels, default=0))
    with _told(snapshot.path):
        model = _rebuilt(snapshot, spec, plain, mode)
        restore_attributes(model, spec.attributes)
        if GENERATION in snapshot.digests:
            from transformers import GenerationConfig

            text = json.loads(snapshot.read(GENERATION))
            model.generation_config = GenerationConfig.from_dict(_without_dropped(text))
        from safetensors import safe_open

        with safe_open(snapshot.place(ANSWERS), "pt") as file:
            answers = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            about = file.metadata()["isospike"]
        check_fingerprint(Ported.of(model), answers, about)
    saturation_of(model).reset()
    return model


def read_config(snapshot: Snapshot) -> tuple[PortSpec, dict[str, Any]]:
    """What config.json says of a port, and the configuration of its model.

    Args:
        snapshot: Its folder.

    Raises:
        InputError: It is damaged, or not that of a port.
        UnsupportedError: It is of another format.
    """
    try:
        described = json.loads(snapshot.read(CONFIG))
    except (ValueError, RecursionError) as error:
        if isinstance(error, IsospikeError):
            raise
        raise _damaged(snapshot.path, error) from error
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise InputError(
            f"load needs a folder that isospike saved a port in, got {snapshot.path}, which holds "
            "something else. Port a model first."
        )
    with _told(snapshot.path):
        return PortSpec.read(described.get("isospike")), _without_dropped(described["model"])


def _rebuilt(snapshot: Snapshot, spec: PortSpec, plain: dict[str, Any], mode: Mode) -> nn.Module:
    """The model with its weights, built only once they are known to fit."""
    from safetensors import safe_open

    place = snapshot.place(WEIGHTS)
    with safe_open(place, "pt") as file:
        header: Header = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            header[name] = tuple(part.get_shape()), _TYPES.get(part.get_dtype())
        _check_room(spec, plain, header, _SPARE_BYTES + 4 * place.stat().st_size)
        with _keeping_rng():
            model = _built(spec, plain, mode)
        _check_header(model, header)
        _fill(model, {name: file.get_tensor(name) for name in header})
    return model


@contextlib.contextmanager
def _keeping_rng() -> Iterator[None]:
    """Random weights are drawn, and written over at once: nobody else's numbers change."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _plain_model(spec: PortSpec, plain: dict[str, Any]) -> nn.Module:
    cls = _class_of(spec.model, plain.get("model_type"))
    model: nn.Module = cls(cls.config_class.from_dict(dict(plain))).eval()
    return model


def _built(spec: PortSpec, plain: dict[str, Any], mode: Mode) -> nn.Module:
    """The model of a specification, its weights still to be loaded."""
    model = _plain_model(spec, plain)
    rebuild(model, asdict(spec), Run(mode, phase="run"))
    _keep_buffers(model)
    return model


def _class_of(name: str, model_type: Any) -> Any:
    """A model class of transformers that belongs to an architecture."""
    import transformers

    cls: Any = getattr(transformers, name, None)
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if known:
        known = cls.__module__.startswith("transformers.models.") and cls.config_class is not None
    if not known or cls.config_class.model_type != model_type:
        raise UnsupportedError(
            f"load needs a model class of transformers {transformers.__version__} for the "
            f"architecture {model_type!r}, got {name!r}. Install the version it was saved with."
        )
    return cls


def _fresh(spec: PortSpec, plain: dict[str, Any], mode: Mode) -> nn.Module:
    """The same, without memory if it can be."""
    try:
        with torch.device("meta"):
            return _built(spec, plain, mode)
    except (NotImplementedError, RuntimeError):  # some modules are recognised by what they compute
        with _keeping_rng():
            return _built(spec, plain, mode)


def _check_room(spec: PortSpec, plain: dict[str, Any], header: Header, spare: int) -> None:
    """Raise if a port has many more modules or numbers than its file, before any memory is taken.

    Args:
        spec: Of the port.
        plain: Configuration of its model.
        header: Of its file.
        spare: Bytes that are no matter.

    Raises:
        InputError: It has more.
    """
    thread, built = threading.get_ident(), 0

    def count(*_: Any) -> None:
        nonlocal built
        built += threading.get_ident() == thread
        if built > 50 * len(header) + 5000:
            raise _too_large(header, "many more modules")

    hook = nn.modules.module.register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            model = _plain_model(spec, plain)
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


def _header_of(model: nn.Module) -> Header:
    return {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}


def _check_header(model: nn.Module, header: Header) -> None:
    """Raise unless a file holds the tensors of a model, each once or by several names.

    Buffers of the modules of a port may have any size.
    """
    own = model.state_dict(keep_vars=True)
    free = set(_own_buffers(model))
    for name in header:
        if name not in own or (
            name not in free and header[name] != (tuple(own[name].shape), own[name].dtype)
        ):
            raise _unfit(name, header[name])
    saved = {id(own[name]) for name in header}
    for name, tensor in own.items():
        if id(tensor) not in saved:
            raise _unfit(name, None)


def _unfit(name: str, found: Any) -> InputError:
    what = "none" if found is None else f"one of shape {found[0]} and type {found[1]}"
    return InputError(
        f"load needs weights that fit config.json, got {what} for {name}. Save the port again."
    )


def _own_buffers(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Module and name of each buffer of the modules of a port, by its whole name."""
    return {
        f"{path}.{name}": (module, name)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _OURS)
        for name in module._buffers
    }


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the tensors of its file, which fit."""
    own, free = model.state_dict(keep_vars=True), _own_buffers(model)
    for name, tensor in tensors.items():
        if isinstance(own[name], nn.Parameter) and tensor.is_floating_point():
            if not bool(tensor.isfinite().all()):
                raise InputError(
                    f"load needs finite weights, got NaN or infinity in {name}. Save the port "
                    "again."
                )
        if name in free:
            module, leaf = free[name]
            module._buffers[leaf] = tensor.clone()
        else:
            own[name].data.copy_(tensor)


def _code_of(site: Any) -> Any:
    from isospike import codes

    return codes.code(site.code, site.steps)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever a library says of a damaged file is one error of ours."""
    try:
        yield
    except IsospikeError as error:
        text = str(error)
        if str(path) in text:
            raise
        if text.startswith("load needs"):
            raise type(error)(text.replace(". ", f" in {path}. ", 1)) from error
        raise _damaged(path, error) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> InputError:
    kind = "" if isinstance(error, IsospikeError) else f"{type(error).__name__} "
    return InputError(
        f"load needs the files that isospike wrote, got {path}: {kind}{first_sentence(error)} "
        "Port the model again."
    )
