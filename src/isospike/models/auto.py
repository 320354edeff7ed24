"""Make transformers' AutoModel classes know the spiking transformers."""

from transformers.models.auto.modeling_auto import AutoModelForImageClassification

from isospike.models.integer import IntegerNet
from isospike.models.max_former import MaxFormer, MSQKFormer
from isospike.models.qkformer import QKFormer
from isospike.models.sequence import SequenceNet
from isospike.models.spike_driven import SpikeDrivenTransformer

for _model in (IntegerNet, MSQKFormer, MaxFormer, QKFormer, SequenceNet, SpikeDrivenTransformer):
    AutoModelForImageClassification.register(_model.config_class, _model, exist_ok=True)
