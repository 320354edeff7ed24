"""Every use of a port, through the real libraries: each gives what the port gives, or refuses.

The table in the documents is made of the same functions, by the study `uses`.
"""

import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").exists():
    pytest.skip("the package is tested without its benchmarks", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import uses  # noqa: E402

FAST = {"double()", "half()", "bfloat16()", "autocast to bfloat16", "output_attentions=True"}
MARKS = {name: () if name in FAST else (pytest.mark.slow,) for name in uses.USES}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS[name]) for name in uses.USES])
def test_a_use_gives_what_the_port_gives_or_refuses_in_one_line(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        word, said, far = uses.outcome(name)
    if word == "not installed":
        pytest.skip(f"{said} is not installed")
    assert word == ("refused" if uses.USES[name][1] else "works"), (said, far)
    assert "\n" not in said
