"""Every public name says what it takes, gives and raises, and has an example that runs."""

import ast
import inspect
import sys
import textwrap
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

import isospike

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks


def public_names():
    if not (ROOT / "benchmarks").is_dir():
        return []  # the package is tested without its documents
    reference = import_module("benchmarks.reference")
    names = {name for page in reference.PAGES for name in reference.names_of(page)}
    return sorted(names)


def find(name):
    place, _, end = name.rpartition(".")
    return getattr(isospike if place == "isospike" else import_module(place), end)


def raises(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def missing(function, says):
    """Sections that a function's docstring lacks; without arguments its first line is enough."""
    signature = inspect.signature(function)
    taken = [name for name in signature.parameters if name not in ("self", "cls")]
    gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    needed = {"Args:": bool(taken), "Returns:": bool(taken) and gives, "Raises:": raises(function)}
    if says is None:
        return ["docstring"]
    if "Yields:" in says:
        needed["Returns:"] = False
    return [title for title, wanted in needed.items() if wanted and title not in says]


def methods(cls):
    """The public methods that a class defines or describes itself."""
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)
        inherited = any(getattr(vars(b).get(name), "__doc__", None) for b in cls.__mro__[1:])
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        if function.__module__.startswith("isospike") and (function.__doc__ or not inherited):
            yield name, function


def fields_are_said(cls, says):
    own = vars(cls).get("__annotations__", {})
    record = is_dataclass(cls) or issubclass(cls, tuple)
    if record:
        plain = [name for name, kind in own.items() if "ClassVar" not in str(kind)]
        return not plain or "Attributes:" in says or "Args:" in says
    init = vars(cls).get("__init__")
    return init is None or len(inspect.signature(init).parameters) < 2 or "Args:" in says


def lacks(name):
    """What the docstrings of a public name lack, method by method."""
    value = find(name)
    says = inspect.getdoc(value) or ""
    found = [] if ">>>" in says else ["example"]
    if inspect.isclass(value):
        found += [] if fields_are_said(value, says) else ["Args or Attributes"]
        found += [f"{m}: {part}" for m, f in methods(value) for part in missing(f, f.__doc__)]
    else:
        found += missing(value, says)
    return found


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_says_what_it_takes_gives_and_raises_with_an_example(name):
    assert lacks(name) == []
