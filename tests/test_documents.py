"""What README and docs show runs as written; what they link to exists."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
QUICK = [
    "README.md", "docs/concepts/code.md", "docs/howto/add-a-family.md", "docs/howto/deploy.md",
    "docs/start/analyse.md",
]  # fmt: skip
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
OURS = "https://github.com/isospike/isospike/blob/main/"

pytestmark = pytest.mark.skipif(not PAGES, reason="the package is tested without its documents")


def blocks(page, language):
    """The fenced code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def name_of(page):
    return str(page.relative_to(ROOT))


def runs(page):
    """A page's Python as a test case: only some pages take seconds."""
    marks = () if name_of(page) in QUICK else pytest.mark.slow
    return pytest.param(page, id=name_of(page), marks=marks)


@pytest.mark.parametrize("page", [runs(page) for page in PYTHON])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code in blocks(page, "python"):
        exec(compile(code, name_of(page), "exec"), names)  # our own pages
    assert len(names) > 2


def command_lines(page):
    """The ``isospike ...`` lines of a page's shell blocks and inline code, without comments."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(isospike [^`]+)`", text)
    return [line for line in lines if line.strip().startswith("isospike ")]


@pytest.mark.parametrize("page", [p for p in PAGES if command_lines(p)], ids=name_of)
def test_the_commands_of_a_page_exist_with_their_options(page):
    import typer.main

    from isospike.cli import app

    commands = typer.main.get_command(app).commands
    for line in command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        if not words or words[0].startswith("-") or words[0].isupper():
            continue
        assert words[0] in commands, f"{line}: there is no command {words[0]}"
        command = commands[words[0]]
        parser = command.make_parser(typer.Context(command))
        parser.parse_args(words[1:])  # an option that there is not, or without its value, raises


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    links = LINK.findall(text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
    ours = [link.removeprefix(OURS) for link in links if link.startswith(OURS)]
    assert not [link for link in ours if not (ROOT / link).exists()]


def test_a_docstring_is_shown_with_its_examples_and_tables_in_blocks():
    from benchmarks.docstrings import as_markdown

    text = """A :class:`isospike.codes.Code` of numbers.

==== ====
a    b
==== ====
1    2
==== ====

Args:
    x: One.

>>> 1 + 1
2

The end.
"""
    shown = as_markdown(text)
    assert "A `codes.Code` of numbers." in shown
    assert "```text\n==== ====\na    b\n==== ====\n1    2\n==== ====\n```" in shown
    assert "```pycon\n>>> 1 + 1\n2\n```" in shown
    assert shown.count("```") == 4


def test_the_names_of_the_reference_are_there_and_none_is_missing():
    import isospike
    from benchmarks.reference import PAGES as REFERENCE
    from benchmarks.reference import names_of

    listed = {name for page in REFERENCE for name in names_of(page)}
    ends = {name.rpartition(".")[2] for name in listed}
    public = {name for name in isospike.__all__ if callable(getattr(isospike, name))}
    assert public <= ends
