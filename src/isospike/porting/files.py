"""A ported model as a folder: safetensors and JSON, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isospike.errors import IsospikeError, RangeError, UnsupportedError
from isospike.porting.instrument import rebuild, saved_digits, sites
from isospike.porting.product import Run, SpikingAttention, SpikingProduct
from isospike.porting.sites import Site

FORMAT = 1
EXECUTIONS = ("collapsed", "stepped")
PRECISIONS = ("exact", "fast")
NONLINEAR = ("float", "spiking")
Writer = str | Callable[[Path], None]


def check_mode(execution: str, precision: str, levels: int) -> None:
    """Raise RangeError unless a port can run this way."""
    if execution not in EXECUTIONS:
        raise RangeError(f"execution needs one of {', '.join(EXECUTIONS)}, got {execution!r}.")
    if precision not in PRECISIONS:
        raise RangeError(f"precision needs one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "fast" and (execution == "stepped" or levels > 256):
        raise RangeError(
            f"precision 'fast' needs collapsed execution and at most 256 levels, got {execution} "
            f"and {levels} levels. Use 8 steps or fewer, or precision 'exact'."
        )


def check_nonlinear(nonlinear: str) -> None:
    """Raise RangeError unless functions can be computed this way."""
    if nonlinear not in NONLINEAR:
        raise RangeError(f"nonlinear needs one of {', '.join(NONLINEAR)}, got {nonlinear!r}.")


def check_destination(path: Path) -> None:
    """Raise unless ``path`` is free, an empty folder, or a folder that isospike wrote.

    Raises:
        IsospikeError: It holds something else.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise IsospikeError(f"save needs a folder, got the file {path}. Choose another name.")
    present = {p.name for p in path.iterdir()}
    if not present:
        return
    try:
        ours = set(json.loads((path / "config.json").read_text())["isospike"]["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    if not ours or present - ours:
        other = sorted(present - ours)[0]
        raise IsospikeError(
            f"save needs a new folder or one it wrote itself, got {path} holding {other!r}. "
            "Choose another folder or empty it."
        )


def write_folder(path: Path, files: Mapping[str, Writer]) -> None:
    """Write all files beside ``path``, then put them in its place in one rename.

    An error, a full disk or Ctrl-C leaves what was there before, and nothing else.
    """
    check_destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        fresh.mkdir()
        for name, content in files.items():
            if isinstance(content, str):
                (fresh / name).write_text(content, encoding="utf-8")
            else:
                content(fresh / name)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def model_files(ported: nn.Module, files: Mapping[str, Writer]) -> dict[str, Writer]:
    """``model.safetensors`` and ``config.json`` of a port, beside the caller's own files.

    Raises:
        UnsupportedError: The model has no transformers configuration to rebuild it from.
    """
    config = getattr(ported, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise UnsupportedError(
            "save needs a transformers model, which its config rebuilds, got "
            f"{type(ported).__name__}. Keep the result in memory, or pickle it yourself."
        )

    def write_weights(path: Path) -> None:
        from safetensors.torch import save_model

        _keep_buffers(ported)
        save_model(ported, str(path))

    names = sorted({"model.safetensors", "config.json", *files})
    described = {**config.to_dict(), "isospike": {**_describe(ported), "files": names}}
    text = json.dumps(described, indent=1, default=str)
    return {"model.safetensors": write_weights, "config.json": text, **files}


def load(path: str | Path, execution: str | None = None, precision: str | None = None) -> nn.Module:
    """The ported model saved in a folder, ready to call.

    Args:
        path: Folder written by :meth:`PortResult.save`.
        execution: ``collapsed`` or ``stepped``; as saved if None.
        precision: ``exact`` or ``fast``; as saved if None.

    Raises:
        IsospikeError: No port is there, or its files are damaged.
    """
    path = Path(path)
    described = _read_description(path)
    spec = described.pop("isospike")
    import transformers

    cls: Any = getattr(transformers, str(spec.get("class")), None)
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not known or cls.config_class is None:
        raise UnsupportedError(
            f"load needs a model class of transformers {transformers.__version__}, got "
            f"{spec.get('class')!r} in {path}. Install the version it was saved with."
        )
    state = torch.get_rng_state()
    try:
        model: nn.Module = cls(cls.config_class.from_dict(described)).eval()
        run = Run(
            phase="run",
            execution=execution or spec["execution"],
            precision=precision or spec["precision"],
            nonlinear=spec.get("nonlinear", "float"),
        )
        rebuild(model, spec, run)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise IsospikeError(
            f"load needs the config.json that isospike wrote, got {path / 'config.json'}: "
            f"{type(error).__name__} {first}. Port the model again."
        ) from error
    finally:
        torch.set_rng_state(state)  # the random initial weights are overwritten at once
    _keep_buffers(model)
    check_mode(run.execution, run.precision, max(s.code.levels for s in sites(model)))
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(model, str(path / "model.safetensors"))
    except (SafetensorError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise IsospikeError(
            f"load needs intact weights, got {path / 'model.safetensors'}: {first}. Port the "
            "model again."
        ) from error
    return model


def _keep_buffers(model: nn.Module) -> None:
    """Save floating-point buffers too: ``model.half()`` has rounded rotary frequencies, say."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._non_persistent_buffers_set.discard(name)


def _describe(ported: nn.Module) -> dict[str, Any]:
    """Everything beyond the weights that :func:`load` needs."""
    run: Run = ported.isospike_run  # type: ignore[assignment]
    modules = dict(ported.named_modules())
    return {
        "format": FORMAT,
        "class": type(ported).__name__,
        "execution": run.execution,
        "precision": run.precision,
        "nonlinear": run.nonlinear,
        "digits": saved_digits(ported),
        "sites": {site.name: _describe_site(site) for site in sites(ported)},
        "products": {
            name: m.site.name for name, m in modules.items() if isinstance(m, SpikingProduct)
        },
        "attention": [m.name for m in modules.values() if isinstance(m, SpikingAttention)],
    }


def _describe_site(site: Site) -> dict[str, Any]:
    return {
        "kind": site.kind,
        "code": site.code.name,
        "steps": site.code.steps,
        "shape": list(site.offset.shape),
        "fan_out": site.fan_out,
        "shared": site.shared,
    }


def _read_description(path: Path) -> dict[str, Any]:
    try:
        described = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IsospikeError(
            f"load needs a folder that isospike saved, got {path} without config.json. Port a "
            "model first."
        ) from None
    except (OSError, ValueError) as error:
        raise IsospikeError(
            f"load needs a readable config.json, got {path / 'config.json'}: {error}. Port the "
            "model again."
        ) from error
    if not isinstance(described, dict) or not isinstance(described.get("isospike"), dict):
        raise IsospikeError(
            f"load needs a folder that isospike saved, got a plain model in {path}. Port it first."
        )
    if described["isospike"].get("format") != FORMAT:
        raise UnsupportedError(
            f"load needs format {FORMAT}, got {described['isospike'].get('format')!r} in {path}. "
            "Use the isospike version that saved it."
        )
    return described
