"""``from_pretrained`` of a port."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isospike.errors import InputError, UnsupportedError
from isospike.hf.hub import fetch_folder
from isospike.porting.calls import Calls
from isospike.porting.files import load_from, port_files, read_config
from isospike.porting.instrument import attach_run
from isospike.porting.port import port
from isospike.porting.run import run_of
from isospike.porting.saturation import saturation_of
from isospike.porting.saving import OWN, own_saving
from isospike.report.files import open_folder

HUB = ("cache_dir", "token", "local_files_only", "force_download", "revision", "subfolder")
OURS = ("execution", "precision")

# What transformers and its users say to every model, and what does not matter to a port.
IGNORED = frozenset(
    "_commit_hash _from_auto _from_pipeline adapter_kwargs attn_implementation "
    "ignore_mismatched_sizes low_cpu_mem_usage proxies trust_remote_code use_safetensors "
    "weights_only".split()
)
# What may be asked of the outputs of a model when it is loaded.
CHANGEABLE = frozenset(
    "_name_or_path dtype id2label label2id output_attentions output_hidden_states problem_type "
    "return_dict transformers_version use_cache".split()
)


def load_port(
    auto: str, classes: Sequence[type], place: str | Path, *, config: Any, **keywords: Any
) -> Any:
    """Load a port for an AutoModel class.

    Args:
        auto: Name of the AutoModel class.
        classes: What it loads for the model that was ported.
        place: A folder, or a name on the hub.
        config: What AutoConfig made of the folder's ``config.json``, with the user's changes.
        keywords: Of ``from_pretrained``; also ``execution`` and ``precision`` of
            :func:`isospike.load`.

    Returns:
        The ported model, or for AutoModel the part of it that its head reads; with
        ``output_loading_info=True`` also a dictionary without findings.

    Raises:
        InputError: There is no such folder, or the port is of another kind of model.
        UnsupportedError: Something is asked that a port cannot be.
    """
    given = {key: value for key, value in keywords.items() if value is not None}
    folder = fetch_folder(auto, place, **_taken(given, HUB))
    ours, device_map = _taken(given, OURS), given.pop("device_map", None)
    offload = _taken(given, ("max_memory", "offload_folder", "offload_buffers"))
    informed = given.pop("output_loading_info", False)
    _check(auto, given)
    with open_folder(folder) as snapshot:
        spec, plain = read_config(snapshot)
        whole = _check_class(auto, classes, spec.model)
        model: Any = load_from(snapshot, ours.get("execution"), ours.get("precision"))
        model = model if whole else _below_head(auto, classes, model)
    _take_changes(auto, model, config, plain)
    model.name_or_path = model.config._name_or_path = str(place)
    if device_map is not None:
        model = _placed(model, device_map, offload)
    found = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return (model, {name: [] for name in found}) if informed else model


def _taken(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What is given by these names, which are no longer given then."""
    return {name: given.pop(name) for name in names if name in given}


def _check(auto: str, given: dict[str, Any]) -> None:
    """Refuse what a port cannot be."""
    for name in ("dtype", "torch_dtype"):
        dtype = str(given.pop(name, "auto")).removeprefix("torch.")
        if dtype not in ("auto", "float32"):
            raise UnsupportedError(
                f"{auto} needs dtype float32 for a port, got {dtype}, which rounds its integers. "
                "For bfloat16 products, load it with precision='fast'."
            )
    rest = sorted(given.keys() - IGNORED)
    if rest:
        raise UnsupportedError(
            f"{auto} needs arguments that a port can follow, got {rest[0]}. Leave it out, or give "
            "it when the model is ported."
        )


def _check_class(auto: str, classes: Sequence[type], place: str) -> bool:
    """Whether a port is of a model that this AutoModel class loads; False if a part of it may be.

    Raises:
        InputError: It is of another, and so is every part of it.
    """
    name = place.rpartition(":")[2]
    if not place.startswith("transformers.") or name in {cls.__name__ for cls in classes}:
        return True
    if auto != "AutoModel":
        raise _of_another(auto, classes, name)
    return False


def _below_head(auto: str, classes: Sequence[type], model: Any) -> Any:
    """The part of a port that its head reads, a port of its own."""
    prefix = getattr(model, "base_model_prefix", "")
    base: Any = getattr(model, prefix, None) if prefix else None
    fits = isinstance(base, tuple(classes))
    if not fits:
        raise _of_another(auto, classes, type(model).__name__)
    start = f"{prefix}."
    for module in base.modules():
        if isinstance(vars(module).get("name"), str):
            module.name = module.name.removeprefix(start)
        if isinstance(module, Calls):
            module.calls = [
                replace(call, module=call.module.removeprefix(start)) for call in module.calls
            ]
    attach_run(base, run_of(model))
    own_saving(base, port_files)
    saturation_of(base).reset()
    return base


def _of_another(auto: str, classes: Sequence[type], name: str) -> InputError:
    return InputError(
        f"{auto} needs a port of {' or '.join(cls.__name__ for cls in classes)}, got one of "
        f"{name}. Load it with the AutoModel class of that, or port the other."
    )


def _take_changes(auto: str, model: Any, config: Any, plain: dict[str, Any]) -> None:
    """Follow what the user changed in the configuration, if it can be followed."""
    saved = type(config).from_dict(plain).to_dict()
    for key, value in config.to_dict().items():
        if value == saved.get(key):
            continue
        if key not in CHANGEABLE or (key == "id2label" and len(value) != len(saved[key])):
            raise UnsupportedError(
                f"{auto} needs the configuration that was ported, got {key}={value!r}. Port the "
                "model again with it."
            )
        if key not in ("_name_or_path", "dtype", "transformers_version"):
            setattr(model.config, key, getattr(config, key))


def _placed(model: Any, device_map: Any, offload: dict[str, Any]) -> Any:
    """The model on its devices."""
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if not isinstance(device_map, dict) and device_map not in ("auto", "balanced", "sequential"):
        return model.to(device_map)
    from accelerate import dispatch_model, infer_auto_device_map

    if not isinstance(device_map, dict):
        whole = list(model._no_split_modules or ())
        device_map = infer_auto_device_map(
            model, offload.pop("max_memory", None), no_split_module_classes=whole
        )
    offload.pop("max_memory", None)
    names = {"offload_folder": "offload_dir"}
    return dispatch_model(model, device_map, **{names.get(k, k): v for k, v in offload.items()})


def port_in_place(model: Any, **settings: Any) -> Any:
    """Make a model its own port, without data.

    Args:
        model: Of transformers.
        settings: Arguments of :func:`isospike.port`.

    Returns:
        The model.

    Raises:
        IsospikeError: As of :func:`isospike.port`.
    """
    ported = port(model, None, **settings).model
    vars(model).clear()
    vars(model).update(vars(ported))
    for name in (*OWN, "saturation"):
        vars(model)[name].model = model
    return model
