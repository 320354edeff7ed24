"""Models with spikes, and the transformer that they are compared with: one paper, one file.

A name is imported when it is first asked for: the configurations load without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isospike.models.classifier import SpikingClassifier
    from isospike.models.configs import (
        IntegerNetConfig,
        MaxFormerConfig,
        MSQKFormerConfig,
        QKFormerConfig,
        SequenceNetConfig,
        SpikeDrivenConfig,
        SpikformerConfig,
        SpikingBertConfig,
        SpikingResformerConfig,
    )
    from isospike.models.folding import fold
    from isospike.models.gated_output import GatedOutputProjection
    from isospike.models.integer import IntegerNet
    from isospike.models.max_former import MaxFormer, MSQKFormer
    from isospike.models.qkformer import QKFormer
    from isospike.models.sequence import SequenceNet
    from isospike.models.spike_driven import SpikeDrivenTransformer
    from isospike.models.spikformer import FoldedSpikformer, Spikformer, from_spikingjelly
    from isospike.models.spiking_bert import SpikingBert
    from isospike.models.spiking_resformer import SpikingResformer
    from isospike.models.training import History, train
    from isospike.models.transformer import Cache, Transformer

_PLACES = {
    "Cache": "transformer",
    "FoldedSpikformer": "spikformer",
    "GatedOutputProjection": "gated_output",
    "History": "training",
    "IntegerNet": "integer",
    "IntegerNetConfig": "configs",
    "MSQKFormer": "max_former",
    "MSQKFormerConfig": "configs",
    "MaxFormer": "max_former",
    "MaxFormerConfig": "configs",
    "QKFormer": "qkformer",
    "QKFormerConfig": "configs",
    "SequenceNet": "sequence",
    "SequenceNetConfig": "configs",
    "SpikeDrivenConfig": "configs",
    "SpikeDrivenTransformer": "spike_driven",
    "Spikformer": "spikformer",
    "SpikformerConfig": "configs",
    "SpikingBert": "spiking_bert",
    "SpikingBertConfig": "configs",
    "SpikingClassifier": "classifier",
    "SpikingResformer": "spiking_resformer",
    "SpikingResformerConfig": "configs",
    "Transformer": "transformer",
    "fold": "folding",
    "from_spikingjelly": "spikformer",
    "train": "training",
}
__all__ = [
    "Cache",
    "FoldedSpikformer",
    "GatedOutputProjection",
    "History",
    "IntegerNet",
    "IntegerNetConfig",
    "MSQKFormer",
    "MSQKFormerConfig",
    "MaxFormer",
    "MaxFormerConfig",
    "QKFormer",
    "QKFormerConfig",
    "SequenceNet",
    "SequenceNetConfig",
    "SpikeDrivenConfig",
    "SpikeDrivenTransformer",
    "Spikformer",
    "SpikformerConfig",
    "SpikingBert",
    "SpikingBertConfig",
    "SpikingClassifier",
    "SpikingResformer",
    "SpikingResformerConfig",
    "Transformer",
    "fold",
    "from_spikingjelly",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
