"""Settings for every test: no network, shapes checked, the same examples in every run."""

import os
import pkgutil
from importlib.util import find_spec

import checked
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Shapes and types are checked at every call, but in compiled code.
UNCHECKED = {"kernels", "__main__"}
ROOT = find_spec("isospike")
checked.install(
    [
        f"isospike.{room.name}"
        for room in pkgutil.iter_modules(ROOT.submodule_search_locations)
        if room.name not in UNCHECKED
    ]
)

# A busy machine is slow, and no fault of the test.
settings.register_profile(
    "isospike",
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("isospike")

# Fixtures of folders that several files of tests read; what they import is hooked by now.
from folders import bert, gpt2, home, ported, text, writer  # noqa: E402, F401
