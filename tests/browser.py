"""A page as a browser sees it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def body(page):
    """The page without the contents of its scripts and styles."""
    return re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)


class Tags(HTMLParser):
    """Collects attributes and checks that elements close in the order they opened."""

    def __init__(self):
        super().__init__()
        self.open, self.values = [], []

    def handle_starttag(self, tag, attrs):
        self.values += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def browse(page, folder):
    """The page's DOM after its scripts ran, without them, and what the browser logged."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=15000", "--enable-logging=stderr", "--v=0", "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    return body(done.stdout), done.stderr
