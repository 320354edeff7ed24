"""One page that leads to all reports of a folder."""

import json

import pytest
from browser import Tags, body
from test_port_report import make_report
from typer.testing import CliRunner

from isospike.cli import app

HOSTILE = "</script><b>&\"'"


@pytest.fixture
def folder(tmp_path):
    for name in ("b/t4", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_report(title=f"Port {name} {HOSTILE}").save(tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.html").write_text("x")
    (tmp_path / "broken" / "report.json").write_text("[1")
    (tmp_path / "empty").mkdir()
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, ["reports", *map(str, arguments)])


def test_the_index_leads_to_every_report(folder):
    done = call(folder)
    assert done.exit_code == 0, done.output
    page = (folder / "index.html").read_text()
    tags = Tags()
    tags.feed(body(page))
    links = [value for _, name, value in tags.values if name == "href" and value != "data:,"]
    assert links == ["a/report.html", "b/t4/report.html"]
    assert all((folder / link).is_file() for link in links)
    assert HOSTILE not in page
    assert "outputs differ from the original&#39;s by 2.4%" in page
    assert call(folder).exit_code == 0  # the index is replaced


def test_the_list_is_json_too(folder):
    found = json.loads(call(folder, "--json").stdout)
    assert [r["folder"] for r in found] == ["a", "b/t4"]
    assert found[0]["title"] == f"Port a {HOSTILE}"


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_folder_without_reports_is_one_line(tmp_path, place):
    (tmp_path / "empty").mkdir()
    done = call(tmp_path / place)
    assert done.exit_code == 2
    assert done.output.startswith("error: reports needs a folder")
    assert done.output.count("\n") == 1
