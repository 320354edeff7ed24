"""The configuration of a port, for AutoConfig, AutoTokenizer, and all AutoModel classes.

A port's ``config.json`` says ``"model_type": "isospike"``, which transformers does not know by
itself: it refuses the folder. Here it learns that such a file holds the configuration of the model
that was ported, so that tokenizers and pipelines find what they look for in it, and that such a
model is loaded by :func:`isospike.load`.
"""

import functools
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from isospike.errors import InputError, UnsupportedError

MODEL_TYPE = "isospike"


class PortConfig(PreTrainedConfig):  # type: ignore[misc]
    """Reads the ``config.json`` of a port."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **keywords: Any) -> Any:
        """The configuration of the model that was ported.

        Args:
            config_dict: The content of the port's ``config.json``.
            keywords: As of transformers' own method.

        Returns:
            A configuration of a class like the model's, by the same name, which the AutoModel
            classes know as that of a port.

        Raises:
            InputError: It is not the file of a port.
            UnsupportedError: The model is not one of transformers.
        """
        from isospike.porting.skeleton import without_dropped

        plain = without_dropped(config_dict.get("model"))
        if not isinstance(plain, dict) or "isospike" not in config_dict:
            raise InputError(
                "AutoConfig needs a config.json that isospike saved, got one without the model it "
                "was made of. Save the port again."
            )
        kind = plain.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == MODEL_TYPE:
            raise UnsupportedError(
                "AutoConfig needs a port of a model that transformers knows, got "
                f"{kind or 'one without a configuration'!r}. Load it with isospike.load(folder, "
                "model)."
            )
        return _ported(CONFIG_MAPPING[kind]).from_dict(plain, **keywords)


@functools.cache
def _ported(native: Any) -> Any:
    """A configuration class like ``native``, with which AutoModel classes load a port."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    config_class = type(native.__name__, (native,), {"__module__": __name__})
    classes: list[Any] = [kind for kind in vars(modeling_auto).values() if isinstance(kind, type)]
    for auto in classes:
        mapping = getattr(auto, "_model_mapping", None)
        if issubclass(auto, _BaseAutoModelClass) and mapping is not None and native in mapping:
            about = {"config_class": config_class, "native": native, "auto": auto}
            loader = type(f"Ported{auto.__name__}", (_Loader,), about)
            auto.register(config_class, loader, exist_ok=True)  # a class by the name of another
    return config_class


class _Loader:
    """Stands for a model class where an AutoModel class looks for one."""

    native: Any
    auto: Any

    @classmethod
    def from_pretrained(cls, place: Any, *arguments: Any, **keywords: Any) -> Any:
        """Load the port; see :func:`isospike.pretrained.load.load_port`."""
        from isospike.pretrained.load import load_port

        classes = cls.auto._model_mapping[cls.native]
        classes = classes if isinstance(classes, list | tuple) else (classes,)
        return load_port(cls.auto.__name__, classes, place, *arguments, **keywords)

    @classmethod
    def _from_config(cls, *arguments: Any, **keywords: Any) -> Any:
        raise UnsupportedError(
            f"{cls.auto.__name__} needs from_pretrained for a port, got from_config. A port has "
            "weights."
        )


AutoConfig.register(MODEL_TYPE, PortConfig, exist_ok=True)
