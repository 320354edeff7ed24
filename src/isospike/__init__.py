"""Sequence models that compute with spikes.

Importing this loads nothing heavy: every public name is imported when it is first used. The names
and where they live are in ``__init__.pyi``, which type checkers and editors read too.
"""

from isospike.pretrained.hook import install as _install

_modules: "dict[str, str]" = {}  # the module of each public name, once one was asked for


def _read_stub() -> "dict[str, str]":
    import ast
    from pathlib import Path

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("isospike")
    _modules.update(_modules or _read_stub())
    if name == "__all__":
        return sorted(_modules)
    from importlib import import_module

    place = _modules.get(name, __name__)
    if place == __name__:  # a room of the package, public or not
        try:
            return import_module(f"isospike.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"isospike.{name}":
                raise
            raise AttributeError(f"module 'isospike' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(place), name)
    return value  # type: ignore[no-any-return]


def __dir__() -> "list[str]":
    return [*__getattr__("__all__"), "__version__"]  # type: ignore[misc]


_install()  # transformers knows ports once it is imported too
