"""Files, functions and parameter lists stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
# A kernel is one function, for the compiler's sake; a command has a parameter for each option, and
# so has what it calls.
WHOLE = {("gpu.py", "_backward")}
COMMANDS = {("analyse.py", "order"), ("port.py", "port")}


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def lines(function):
    """Without the docstring."""
    documented = ast.get_docstring(function, clean=False) is not None
    said = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - said


def parameters(function):
    every = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return sum(argument.arg not in ("self", "cls") for argument in every)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 560
    long = [f.name for f in functions(path) if lines(f) > 60 and (path.name, f.name) not in WHOLE]
    assert long == []


@pytest.mark.parametrize("path", [p for p in FILES if "src" in p.parts], ids=lambda p: p.name)
def test_a_public_function_has_at_most_ten_parameters(path):
    public = [f for f in functions(path) if f.name == "__init__" or not f.name.startswith("_")]
    many = {(path.name, f.name) for f in public if parameters(f) > 10}
    assert many - (COMMANDS if path.parent.name in ("cli", "porting") else set()) == set()


def test_lines_and_parameters_are_counted_as_described():
    text = 'def f(self, a, *b, c=1, **d):\n    """Said."""\n\n    return a\n'
    (function,) = ast.parse(text).body
    assert (lines(function), parameters(function)) == (3, 2)
