"""Sequence models that compute with spikes.

Importing this loads nothing heavy: every public name is imported when it is first used. The names
and where they live are in ``__init__.pyi``, which type checkers and editors read too.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any


def _read_stub() -> dict[str, str]:
    """The module of each public name."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


_MODULES = _read_stub()
__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("isospike")
    place = _MODULES.get(name, __name__)
    if place == __name__:  # a room of the package, public or not
        try:
            return import_module(f"isospike.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"isospike.{name}":
                raise
            raise AttributeError(f"module 'isospike' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(place), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
