"""Port a model as transformers loads it: ``from_pretrained(..., quantization_config=...)``."""

from typing import Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from isospike.errors import UnsupportedError

METHOD = "isospike"


class IsospikeConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Port a model to spikes as transformers loads it, on random inputs instead of data.

    Ranges that follow the input need little of the inputs they were made on; with data at hand,
    :func:`isospike.port` measures the error on it.

    Args:
        code: See :func:`isospike.port`, as all others.
        steps: likewise.
        settings: Further arguments of :func:`isospike.port`, such as ``functions="spiking"``.

    Example:
        >>> how = IsospikeConfig(code="signed-digit", steps=8)
        >>> how.to_dict()["steps"]
        8
    """

    def __init__(self, code: str = "signed-digit", steps: Any = 8, **settings: Any) -> None:
        settings.pop("quant_method", None)
        self.quant_method = METHOD
        self.code, self.steps, self.settings = code, steps, settings
        self._check()

    def _check(self) -> None:
        import inspect

        from isospike.porting.port import port

        known = {
            n for n, p in inspect.signature(port).parameters.items() if p.kind is p.KEYWORD_ONLY
        }
        for name in self.settings:
            if name not in known:
                raise UnsupportedError(
                    f"IsospikeConfig needs arguments of isospike.port, got {name!r}. Choose among "
                    f"{', '.join(sorted(known - {'evaluation', 'generator'}))}."
                )


class PortingQuantizer(HfQuantizer):  # type: ignore[misc]
    """Ports a model once its weights are loaded."""

    is_trainable = False

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` writes the model, which is then a port."""
        return True

    def _process_model_after_weight_loading(self, model: Any, **keywords: Any) -> Any:
        from isospike.pretrained.load import port_in_place

        self.remove_quantization_config(model)
        how = self.quantization_config
        return port_in_place(model, code=how.code, steps=how.steps, **how.settings)


AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = IsospikeConfig
AUTO_QUANTIZER_MAPPING[METHOD] = PortingQuantizer
