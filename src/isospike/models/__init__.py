"""Models with spikes, and the transformer that they are compared with: one paper, one file."""

from isospike.models.gated_output import GatedOutputProjection
from isospike.models.spikformer import FoldedSpikformer, Spikformer, fold, from_spikingjelly
from isospike.models.training import History, train
from isospike.models.transformer import Cache, Transformer

__all__ = [
    "Cache",
    "FoldedSpikformer",
    "GatedOutputProjection",
    "History",
    "Spikformer",
    "Transformer",
    "fold",
    "from_spikingjelly",
    "train",
]
