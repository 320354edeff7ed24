"""What a process that measures models loads first: once, before it is forked for each of them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.zoo.torchvision_names import name_operators

name_operators()

import transformers  # noqa: E402
from transformers import GenerationMixin, LlamaForCausalLM, T5Model, ViTModel  # noqa: E402, F401

import benchmarks.zoo.measure  # noqa: E402
import benchmarks.zoo.models  # noqa: E402, F401
from isospike import audit, load, port  # noqa: E402, F401

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
