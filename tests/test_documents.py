"""What README and docs show runs as written; what they link to exists."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")

pytestmark = pytest.mark.skipif(not PAGES, reason="the package is tested without its documents")


def blocks(page, language):
    """The fenced code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
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
        options = {o for parameter in commands[words[0]].params for o in parameter.opts}
        used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
        assert used <= options, f"{line}: {words[0]} has no {', '.join(sorted(used - options))}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
