"""What a process that measures models loads first."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

import benchmarks.zoo.measure  # noqa: E402, F401
