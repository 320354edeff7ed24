"""Settings for every test: no network, and the same hypothesis examples in every run."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("isospike", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("isospike")
