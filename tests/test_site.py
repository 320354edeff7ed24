"""The site builds without a warning, and loads nothing from elsewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed"),
    pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="there are no documents"),
]
LOADED = re.compile(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"?(https?://[^\"> ]+)")


def test_the_site_builds_strictly_and_its_pages_load_nothing_from_elsewhere(tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr  # a broken link or a name without docstring
    pages = sorted(tmp_path.glob("**/*.html"))
    assert len(pages) >= 50
    loaded = {
        (page.name, url)
        for page in pages
        for url in LOADED.findall(page.read_text(encoding="utf-8"))
        if not url.startswith("https://github.com/isospike")
    }
    assert loaded == set()
