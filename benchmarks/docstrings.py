"""Docstrings as mkdocstrings shows them: a Griffe extension that ``mkdocs.yml`` names.

Docstrings are read in the terminal first, so they have Sphinx' roles, doctests without a fence and
tables of plain text. Here the roles become code, and the others blocks of code.
"""

import re
from typing import Any

try:
    from griffe import Extension
except ModuleNotFoundError:  # without the extra docs the rest can be tested
    Extension = object

ROLE = re.compile(r":(?:class|func|mod|data|meth|attr|exc|doc):`~?([^`]+)`")
TABLE = re.compile(r"^( *)=+(?:  *=+)+ *$")


def as_markdown(text: str) -> str:
    """A docstring with fences around doctests and tables, and without roles."""
    lines: list[str] = []
    fenced = previous = ""
    rules = 0
    for line in ROLE.sub(lambda m: f"`{m[1].removeprefix('isospike.')}`", text).splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if not fenced and line.lstrip().startswith(">>> "):
            fenced = "pycon"
            lines += ["", f"{indent}```pycon"]
        elif fenced == "pycon" and not line.strip():
            fenced = ""
            lines.append(f"{previous}```")
        elif TABLE.match(line):
            rules += 1
            if not fenced:
                fenced = "text"
                lines += ["", f"{indent}```text"]
        lines.append(line)
        if fenced == "text" and rules == 3:
            fenced, rules = "", 0
            lines.append(f"{indent}```")
        previous = indent if line.strip() else ""
    if fenced:
        lines.append(f"{previous}```")
    return "\n".join(lines)


class Markdown(Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: Any, **rest: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
