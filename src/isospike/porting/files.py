"""A ported model as a folder: safetensors and JSON, written whole or not at all."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from isospike.errors import IsospikeError, UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.instrument import rebuild, saved_digits
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Mode, Run
from isospike.porting.sites import Site
from isospike.report.files import Content

FORMAT = 1


def model_files(ported: nn.Module) -> dict[str, Content]:
    """``model.safetensors`` and ``config.json`` of a port.

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

    described = {**config.to_dict(), "isospike": _describe(Ported.of(ported))}
    text = json.dumps(described, indent=1, default=str)
    return {"model.safetensors": write_weights, "config.json": text}


def tokenizer_files(tokenizer: Any) -> dict[str, Content]:
    """What a tokenizer of transformers saves; nothing for None."""
    if tokenizer is None:
        return {}
    with TemporaryDirectory(prefix="isospike-") as scratch:
        tokenizer.save_pretrained(scratch)
        return {p.name: p.read_bytes() for p in sorted(Path(scratch).iterdir()) if p.is_file()}


def load(path: str | Path, execution: str | None = None, precision: str | None = None) -> nn.Module:
    """The ported model saved in a folder, ready to call.

    Args:
        path: Folder written by :meth:`Port.save`.
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
        mode = Mode(
            execution or spec["execution"], precision or spec["precision"], spec["nonlinear"]
        )
        ported = rebuild(model, spec, Run(mode, phase="run"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise IsospikeError(
            f"load needs the config.json that isospike wrote, got {path / 'config.json'}: "
            f"{type(error).__name__} {first}. Port the model again."
        ) from error
    finally:
        torch.set_rng_state(state)  # the random initial weights are overwritten at once
    _keep_buffers(model)
    mode.check("load", max(site.code.levels for site in ported.sites))
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


def _describe(ported: Ported) -> dict[str, Any]:
    """Everything beyond the weights that :func:`load` needs."""
    mode = ported.run.mode
    modules = dict(ported.model.named_modules())
    return {
        "format": FORMAT,
        "class": type(ported.model).__name__,
        "execution": mode.execution,
        "precision": mode.precision,
        "nonlinear": mode.functions,
        "digits": saved_digits(ported.model),
        "sites": {site.name: _describe_site(site) for site in ported.sites},
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
