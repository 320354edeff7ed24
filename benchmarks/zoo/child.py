"""What a process that measures models loads first: once, before it is forked for each of them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import GenerationMixin, LlamaForCausalLM, T5Model, ViTModel  # noqa: F401

import benchmarks.zoo.measure
import benchmarks.zoo.models  # noqa: F401
from isospike import audit, load, port  # noqa: F401

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
