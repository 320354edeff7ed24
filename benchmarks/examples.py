"""The pages of docs/examples/: scripts and notebooks of examples/, as they are stored."""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
REPOSITORY = "https://github.com/isospike/isospike/blob/main/examples/"


def read_notebook(path: Path) -> list[dict]:
    """The cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: text, Python, and what it printed."""
    parts = []
    for cell in read_notebook(path):
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(one.get("text", "")) for one in cell["outputs"]).strip("\n")
        if printed:
            parts.append(f"```text\n{printed}\n```")
    made = f"<!-- Made by `make docs` from examples/{path.name}. -->"
    where = f"[This notebook]({REPOSITORY}{path.name})"
    return "\n\n".join([parts[0], made, *parts[1:], where]) + "\n"


def example_pages() -> dict[str, str]:
    """The pages, by path in docs/."""
    pages, notebooks, scripts = {}, [], []
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        pages[f"examples/{path.stem}.md"] = page = notebook_page(path)
        title, _, rest = page.partition("\n\n")
        first = rest.split("-->")[0].split("<!--")[0].strip().replace("\n", " ")
        notebooks.append(f"- [{title.removeprefix('# ')}]({path.stem}.md). {first}".rstrip())
    for path in sorted(EXAMPLES.glob("*.py")):
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        scripts.append(f"- [{path.name}]({REPOSITORY}{path.name}): {says.splitlines()[0]}")
    intro = (
        "Scripts of 20 to 40 lines and notebooks with their output, on what the package ships. "
        "They run as they are, without a network."
    )
    pages["examples/README.md"] = "\n\n".join(
        ["# Examples", "<!-- Made by `make docs` from examples/. -->", intro, "## Notebooks",
         "\n".join(notebooks), "## Scripts", "\n".join(scripts)]
    ) + "\n"  # fmt: skip
    return pages
