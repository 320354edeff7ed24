"""Make transformers' AutoModel classes know the spiking families; SpikingBert follows with its
first configuration."""

from transformers.models.auto.modeling_auto import AutoModelForImageClassification

from isospike.models.integer import IntegerNet
from isospike.models.max_former import MaxFormer, MSQKFormer
from isospike.models.qkformer import QKFormer
from isospike.models.sequence import SequenceNet
from isospike.models.spike_driven import SpikeDrivenTransformer
from isospike.models.spikformer import Spikformer
from isospike.models.spiking_resformer import SpikingResformer

IMAGES = (
    IntegerNet,
    MSQKFormer,
    MaxFormer,
    QKFormer,
    SequenceNet,
    SpikeDrivenTransformer,
    Spikformer,
    SpikingResformer,
)
for _model in IMAGES:
    AutoModelForImageClassification.register(_model.config_class, _model, exist_ok=True)
