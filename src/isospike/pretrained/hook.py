"""Make transformers know ports and our models once both are imported, whichever comes first.

Importing isospike imports no transformers. It leaves a finder that waits for the modules of
transformers that keep its lists, and adds to these lists when they are made.
"""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WAITING = {
    "transformers.models.auto.configuration_auto": (
        "isospike.pretrained.config",
        "isospike.models.configs",
    ),
    "transformers.models.auto.modeling_auto": ("isospike.models.auto",),
    "transformers.quantizers.auto": ("isospike.pretrained.quantizer",),
}
"""The modules of transformers that keep lists, and ours that add to them when they are imported."""


def install() -> None:
    """Register now with what is imported, and later with what is not."""
    later = dict(WAITING)
    for name in WAITING:
        if name in sys.modules:
            importlib.import_module(name)  # another thread may be at it
            _import(later.pop(name))
    if later:
        sys.meta_path.insert(0, _Finder(later))


def _import(ours: tuple[str, ...]) -> None:
    for name in ours:
        importlib.import_module(name)


class _Finder(MetaPathFinder):
    """Finds no module; imports ours once those it waits for are there."""

    def __init__(self, waiting: dict[str, tuple[str, ...]]) -> None:
        self.waiting = waiting

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = self.waiting.pop(name, None)
        if ours is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            _import(ours)

        loader.exec_module = then_register
        return spec
