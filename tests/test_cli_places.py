"""What a command may write: asked before it works, and nothing of anybody else."""

import pytest
from folders import (
    call,
    quiet_transformers,  # noqa: F401 - a fixture
    said,
)

from isospike.report.table import Table


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.npy"
    path.write_text("w1 w2 w3\n")
    return path


def test_embed_replaces_neither_its_input_nor_another_file(ported, lines, tmp_path):
    line = said(call("embed", ported, "--text", lines, "--out", lines))
    assert line.startswith("error: embed needs a new file, got the input ")
    other = tmp_path / "other.npy"
    other.write_text("mine")
    line = said(call("embed", ported, "--text", lines, "--out", other))
    assert line.startswith("error: embed needs --out to be new or a NumPy array, got another file")
    assert other.read_text() == "mine"


def test_learn_does_not_replace_its_input(lines):
    line = said(call("learn", lines, "--out", lines))
    assert line.startswith("error: learn needs a new file, got the input ")
    assert lines.read_text() == "w1 w2 w3\n"


def test_positions_leaves_a_page_of_somebody_else(tmp_path):
    page = tmp_path / "report" / "report.html"
    page.parent.mkdir()
    page.write_text("mine")
    line = said(call("positions", "--preset", "tiny", "--out", tmp_path))
    assert "needs a new folder or one it wrote itself, got " in line
    assert page.read_text() == "mine"


def test_reproduce_leaves_a_file_of_somebody_else(tmp_path):
    (tmp_path / "geometry-tiny.json").write_text("mine")
    line = said(call("reproduce", "geometry", "--preset", "tiny", "--out", tmp_path))
    assert line.startswith("error: reproduce needs JSON, got ")
    assert (tmp_path / "geometry-tiny.json").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["order", "sachs"], ["learn", "shakespeare"], ["reproduce", "geometry", "--preset", "tiny"],
        ["positions", "--preset", "tiny"],
    ],
)  # fmt: skip
def test_a_place_below_a_file_is_refused_before_any_work(arguments, lines):
    line = said(call(*arguments, "--out", lines / "below" / "it"))
    assert " needs " in line
    assert ", got " in line


@pytest.mark.parametrize("value", ["~nobody-of-this-name/x", "a\nb", "\udcff", "x" * 300, "a\0b"])
@pytest.mark.parametrize("command", ["learn", "order", "recall", "embed", "port", "dimension"])
def test_names_that_no_file_has_are_one_line(command, value):
    more = ["--text", "x"] if command == "embed" else []
    assert said(call(command, value, *more)).startswith(f"error: {command} needs ")


def test_a_tilde_is_the_home_folder_for_every_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("abab" * 20)
    done = call("learn", "~/text.txt", "--out", "~/machine.st", "--json")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "machine.st").is_file()
    assert call("recall", "~/machine.st", "--prompt", "ab", "--symbols", 4).exit_code == 0


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_that_not_every_generator_takes_is_refused(seed):
    assert "order needs --seed from 0 to 4294967295, got" in said(
        call("order", "sachs", "--seed", seed)
    )


def test_a_text_that_a_spreadsheet_would_run_is_escaped():
    rows = (("=cmd()", 1.5), ("@x", -2), ("-3", None), ("+a", 0), ("plain", 1))
    assert Table("t", ("-name", "value"), rows).csv() == (
        "'-name,value\n'=cmd(),1.5\n'@x,-2\n-3,\n'+a,0\nplain,1\n"
    )


@pytest.mark.parametrize(
    "command", ["rank {port} --out {port}", "compare {port} {port} --out {port}"]
)
def test_a_port_is_not_replaced_by_what_was_measured_of_it(command, ported):
    before = (ported / "report.json").read_bytes()
    name, *rest = command.format(port=ported).split()
    line = said(call(name, *rest))
    assert line.startswith(f"error: {name} needs a new folder, got the input ")
    assert (ported / "report.json").read_bytes() == before
