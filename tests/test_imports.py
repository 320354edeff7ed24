"""Imports point down only, and importing isospike loads nothing heavy but torch and numpy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import isospike

ROOT = Path(isospike.__file__).parent
LAYERS = (  # Top to bottom. energy lies with theory: the port fills its counts.
    {"cli"},
    {"experiments", "scale", "order_report", "ranks_report"},
    {"ranks_page"},
    {"report"},
    {"ranks", "interop", "protocol"},
    {"models", "port", "sequence", "training"},
    {"attention", "memory", "theory", "causal", "energy"},
    {"neurons"},
    {"kernels"},
    {"surrogate", "codes", "ngram", "positions", "datasets", "saving"},
    {"orders"},
    {"errors"},
)
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"
)


def member(module: Path) -> str:
    """``port/record.py`` -> ``port``; ``codes.py`` -> ``codes``: its name in LAYERS."""
    return module.parts[0].removesuffix(".py")


def imported(source: str, module: Path) -> set[str]:
    """Members of isospike that a module's source imports, anywhere in it; "" is isospike itself."""
    package = ["isospike", *module.parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            if origin == "isospike":  # from isospike import codes
                names += [f"isospike.{a.name}" if a.name in DEPTH else origin for a in node.names]
            else:
                names.append(origin)
    ours = [name.split(".") for name in names if name.split(".")[0] == "isospike"]
    return {parts[1] if len(parts) > 1 else "" for parts in ours}


def wrong_imports(source: str, module: Path) -> set[str]:
    """Those of the same layer or above, or of no layer, outside the module's own package."""
    own = member(module)
    return {
        name
        for name in imported(source, module) - {own}
        if name not in DEPTH or DEPTH[name] <= DEPTH[own]
    }


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_layer_and_imports_only_from_layers_below(module):
    assert member(module) in DEPTH, f"{module} is in no layer of design.md"
    wrong = wrong_imports((ROOT / module).read_text(encoding="utf-8"), module)
    assert not wrong, f"{module} imports {sorted(wrong)}, which lie beside or above it"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("codes.py", "from isospike.errors import RangeError", set()),
        ("codes.py", "from isospike.datasets import shakespeare", {"datasets"}),
        ("codes.py", "def late():\n    import isospike.cli", {"cli"}),
        ("codes.py", "from isospike import errors, neurons", {"neurons"}),
        ("codes.py", "import isospike", {""}),
        ("codes.py", "from isospike import RateCode", {""}),
        ("codes.py", "from isospike.helpers import x", {"helpers"}),
        ("port/record.py", "from isospike.port.result import SiteReport", set()),
        ("port/record.py", "from . import result", set()),
        ("port/record.py", "from .result import SiteReport", set()),
        ("port/record.py", "from ..models import transformer", {"models"}),
        ("port/record.py", "from .. import energy, report", {"report"}),
        ("port/__init__.py", "from isospike.energy import Counts", set()),
        ("energy.py", "import torch\nimport isospike.codes as c", set()),
    ],
)
def test_the_rule_sees_every_way_to_import(module, source, wrong):
    assert wrong_imports(source, Path(module)) == wrong


def test_importing_isospike_loads_no_heavy_package():
    heavy = ["transformers", "plotly", "rich", "typer", "scipy", "sklearn"]
    script = f"import isospike, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.strip(), done.stderr.strip()) == ("[]", "")
