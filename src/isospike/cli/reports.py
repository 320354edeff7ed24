"""``isospike reports``: one page that leads to all reports in a folder."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.errors import InputError
from isospike.report.files import check_file, write_file

DEEP = 4  # folders below the one that is searched
_VERDICT = re.compile(r'<p class="verdict">(.*?)</p>', re.DOTALL)


class Found(NamedTuple):
    """A report that was saved: its folder, its title, its verdict, and the command that made it."""

    folder: str
    title: str
    verdict: str
    command: str


@command("Start", examples=("isospike reports", "isospike reports out/ports"))
def reports(folder: Path = Path("out")) -> Outcome:
    """List the reports in a folder, and write a page that leads to each of them.

    The page is index.html in that folder.

    Args:
        folder (DIR): Where reports were written.
    """
    if not folder.is_dir():
        raise InputError(f"reports needs a folder, got {str(folder)!r}. Port a model first.")
    found = list(_search(folder, DEEP))
    if not found:
        raise InputError(
            f"reports needs a folder with reports, got none below {str(folder)!r}. Save one there, "
            "as with isospike port minilm --out DIR."
        )
    page = folder / "index.html"
    check_file(page)
    from isospike.report.page import Section, render

    sections = [
        Section(
            report.title,
            Markup('{}<br><a href="{}">{}</a> &nbsp; <code>{}</code>').format(
                report.verdict, f"{report.folder}/report.html", report.folder, report.command
            ),
        )
        for report in found
    ]
    write_file(page, render("Reports", sections=sections).encode())
    text = "\n".join(f"{r.folder}  {r.title}" for r in found)
    return Outcome(data=[r._asdict() for r in found], text=text, saved=page)


def _search(root: Path, deep: int, below: str = "") -> Iterator[Found]:
    """The reports below a folder, in the order of their names; other files are passed by."""
    for place in sorted(p for p in (root / below).iterdir() if p.is_dir() and p.name[0] != "."):
        name = f"{below}/{place.name}".lstrip("/")
        page, data = place / "report.html", place / "report.json"
        if page.is_file() and data.is_file():
            try:
                about = json.loads(data.read_text(encoding="utf-8"))
                said = _VERDICT.search(page.read_text(encoding="utf-8"))
                title, made = str(about["title"]), str(about["provenance"]["command"])
            except (ValueError, KeyError, TypeError, OSError):
                continue
            yield Found(name, title, html.unescape(said[1]) if said else "", made)
        elif deep:
            yield from _search(root, deep - 1, name)
