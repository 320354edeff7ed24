"""``isospike`` alone, and its demonstrations."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from isospike.cli import app
from isospike.cli import demo as room
from isospike.train.data import load_data

GROUP = typer.main.get_command(app)


def test_the_command_alone_says_where_to_begin():
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0
    for door in room.DOORS:
        assert f"isospike demo {door} " in done.output
    named = {line.split()[1] for line in done.output.splitlines() if line.startswith("  isospike ")}
    assert named <= set(GROUP.commands)


def test_the_command_alone_has_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "isospike"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("door", room.DOORS)
def test_every_command_of_a_demonstration_takes_its_options(door):
    for line in room.DOORS[door]:
        name, *arguments = line.split()
        context = GROUP.commands[name].make_context(name, [*arguments, "--quiet"])
        assert context.params["quiet"]


def ran(monkeypatch, status, *arguments):
    """What demo prints, and the commands that it would run."""
    calls = []

    def run(command, **_):
        calls.append(command[3:])
        return SimpleNamespace(stdout="found\n", stderr="error: no\n", returncode=status)

    monkeypatch.setattr(room.subprocess, "run", run)
    return CliRunner().invoke(app, ["demo", *arguments]), calls


def test_a_demonstration_shows_its_commands_and_what_they_print(monkeypatch, tmp_path):
    done, calls = ran(monkeypatch, 0, "port", "--out", str(tmp_path))
    assert done.exit_code == 0
    assert [c[0] for c in calls] == ["port", "embed"]
    assert done.output.count("found") == 2
    assert f"$ isospike embed {tmp_path}/minilm --text {tmp_path}/lines.txt" in done.output
    assert (tmp_path / "lines.txt").read_text().count("\n") == 3


def test_a_demonstration_stops_at_a_command_that_fails(monkeypatch):
    done, calls = ran(monkeypatch, 2, "learn", "--json")
    assert done.exit_code == 2
    assert len(calls) == 1
    assert json.loads(done.stdout)["commands"][0]["output"].endswith("error: no")


def test_an_unknown_door_is_one_line():
    done = CliRunner().invoke(app, ["demo", "windows"])
    assert done.exit_code == 2
    assert "needs one of port, train, learn, analyse, got 'windows'" in done.output


def test_the_bars_of_the_training_are_four_classes_that_a_picture_tells_apart(tmp_path):
    room._draw_bars(tmp_path)
    data = load_data(tmp_path)
    assert data.train.images.shape == (room.TRAIN, 1, room.SIDE, room.SIDE)
    assert sorted(np.unique(data.test.labels)) == [0, 1, 2, 3]
    flat = data.train.images[data.train.labels == 0].float().mean((0, 1))
    assert flat.std(0).mean() > flat.std(1).mean()  # a lying bar varies from top to bottom


@pytest.mark.slow
@pytest.mark.parametrize("door", ["learn", "analyse"])
def test_a_demonstration_runs(door):
    done = CliRunner().invoke(app, ["demo", door, "--quiet"])
    assert done.exit_code == 0, done.output
    assert done.output.count("$ isospike") == 2
