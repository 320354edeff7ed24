"""Every error says what was needed, what was got, and what to do."""

import ast
import re
from pathlib import Path

import isospike
from isospike import errors

ROOT = Path(isospike.__file__).parent
KINDS = {name for name in vars(errors) if name.endswith("Error")}
# They pass on what another message says.
PASSED_ON = {
    "at {}: {}",
    "port needs {}",
    "from_json needs {} in {} ({}). Use the version of isospike that saved it, or make it again.",
}


def text_of(node):
    """The text of an f-string or of joined strings, with {} for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(v) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "{}"


def messages():
    """Where an error is made, and its text."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if made and node.func.id in KINDS and node.args:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text_of(node.args[0])


def test_every_error_ends_with_what_to_do():
    found = [m for m in messages() if m[1] not in PASSED_ON]
    assert len(found) > 300
    # A sentence, a full stop, another sentence; a text that only fills in is made elsewhere.
    ends = re.compile(r"[.)}'\"] [A-Z{][^.]*\S")
    assert [m for m in found if not ends.search(m[1]) and m[1] != "{}"] == []


def test_every_error_says_what_was_needed_and_what_was_got():
    # A text that begins with what is filled in has its "needs" from there.
    form = re.compile(r"([^,]+ needs \S|\{\}).*, got ", re.DOTALL)
    assert [m for m in messages() if m[1] not in {*PASSED_ON, "{}"} and not form.match(m[1])] == []
