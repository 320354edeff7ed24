"""Cells of a sweep in several processes and on Ray."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import models
import pytest
import torch
from folders import call, said

import isospike
from isospike.experiments.grid import TrainingRun, train_all, train_one
from isospike.porting.sweep import _point
from isospike.workers import check_workers, map_cells


def collect(function, cells, workers):
    found = {}
    map_cells(function, cells, workers, found.__setitem__)
    return found


def summed(size, seed):
    """A sum that depends on the number of threads."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).sum().item()


def die(marker, cell):
    """The last cell kills its worker, once the others are written down."""
    if cell != 3:
        return cell
    while len(list(marker.iterdir())) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def fail(cell):
    raise isospike.RangeError(f"fail needs no cell, got {cell}. Give none.")


def test_any_number_of_workers_gives_the_same_bits():
    cells = list(range(5))
    one = collect(partial(summed, 10**6), cells, 1)
    assert list(one) == cells
    assert collect(partial(summed, 10**6), cells, 2) == one
    assert [one[0]] == [*collect(partial(summed, 10**6), [0], 4).values()]


def test_the_threads_of_this_process_are_put_back():
    before = torch.get_num_threads()
    collect(abs, [1, 2], 1)
    assert torch.get_num_threads() == before


def test_an_error_in_a_worker_is_that_of_the_function():
    for workers in (1, 2):
        with pytest.raises(isospike.RangeError, match="fail needs no cell, got"):
            collect(fail, [1, 2], workers)


def test_a_worker_that_is_killed_is_one_line_and_the_finished_cells_are_kept(tmp_path):
    found = []

    def finish(cell, result):
        found.append(cell)
        (tmp_path / str(cell)).touch()

    with pytest.raises(
        isospike.InputError, match="worker processes to stay alive, got one that was k"
    ) as error:
        map_cells(partial(die, tmp_path), [0, 1, 2, 3, 4, 5], 2, finish)
    assert "\n" not in str(error.value)
    assert {0, 1, 2} <= set(found) <= {0, 1, 2, 4, 5}


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(
        isospike.UnsupportedError, match="needs functions and values that pickle can send"
    ):
        collect(lambda cell: cell, [1, 2], 2)


@pytest.mark.parametrize("given", [1, "3", "ray", "ray:auto", "ray:10.0.0.1:6379"])
def test_workers_are_a_number_or_ray(given):
    assert check_workers("sweep", given) == (int(given) if "ray" not in str(given) else given)


@pytest.mark.parametrize(
    ("given", "message"),
    [(0, "at least 1, got 0"), ("-2", "at least 1, got -2"), ("two", "a number, .* got 'two'"),
     ("ray:", "got 'ray:'"), ("", "got ''"), ("2.5", "got '2.5'")],
)  # fmt: skip
def test_other_workers_are_refused(given, message):
    with pytest.raises(isospike.IsospikeError, match=f"sweep needs workers .*{message}"):
        check_workers("sweep", given)


# Sweeps.


@pytest.fixture(scope="module")
def port():
    with pytest.MonkeyPatch.context() as patch:
        for kind in isospike.codes.CODES.values():
            patch.setattr(kind, "sweep_steps", kind.sweep_steps[:2])
        model = models.make("bert", num_hidden_layers=1)
        generator = torch.Generator().manual_seed(5)
        yield isospike.port(model, models.batches("bert"), steps=4, generator=generator)


CURVE = ("signed-digit", "bernoulli")


@pytest.fixture(scope="module")
def curve(port):
    return port.sweep(CURVE, workers=1).report.curve


@pytest.mark.slow
def test_a_sweep_of_two_workers_is_that_of_one(port, curve):
    assert len(curve) == 4
    assert port.sweep(CURVE, workers=2).report.curve == curve


def test_a_sweep_goes_on_where_it_was_cut_short(port, curve, tmp_path, monkeypatch):
    port.sweep(CURVE, workers=1, folder=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    files[1].unlink()
    computed = []

    def counting(function, cells, workers, finish):
        computed.extend(cells)
        map_cells(function, cells, workers, finish)

    monkeypatch.setattr("isospike.porting.sweep.map_cells", counting)
    assert port.sweep(CURVE, workers=1, folder=tmp_path).report.curve == curve
    assert len(computed) == 1
    files[1].write_text('{"code": 3}')
    with pytest.raises(isospike.InputError, match="sweep needs whole files of points, got .*json"):
        port.sweep(CURVE, workers=1, folder=tmp_path)


RUNS = [TrainingRun("copy-1", variant, 0.01, 0, 1, 2) for variant in ("none", "rope", "alibi")]


def without_time(results):
    return [{key: value for key, value in r.items() if key != "seconds"} for r in results]


def spare(where):
    """Kills its worker the first time, once another cell is written down."""
    marker = where / "died"
    if marker.exists():
        return
    while not list(where.rglob("*.json")):
        time.sleep(0.01)
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def train_or_die(where, run):
    if run == RUNS[2]:
        spare(where)
    return train_one(run)


def point_or_die(where, builder, few, cell):
    if cell[0] == CURVE[1]:
        spare(where)
    return _point(builder, few, cell)


@pytest.mark.slow
def test_training_whose_worker_was_killed_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    whole = train_all(RUNS, tmp_path / "whole", 1)
    cells = tmp_path / "cells"
    cells.mkdir()
    monkeypatch.setattr("isospike.experiments.grid.train_one", partial(train_or_die, cells))
    with pytest.raises(isospike.InputError, match="got one that was killed") as caught:
        train_all(RUNS, cells, 2)
    assert "\n" not in str(caught.value)
    kept = {path: path.stat().st_mtime_ns for path in cells.rglob("*.json")}
    assert 1 <= len(kept) < len(RUNS)
    assert without_time(train_all(RUNS, cells, 2)) == without_time(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.slow
def test_a_curve_whose_worker_was_killed_goes_on_with_what_is_missing(
    port, curve, tmp_path, monkeypatch
):
    point = partial(point_or_die, tmp_path)
    monkeypatch.setattr("isospike.porting.sweep._point", point)
    with pytest.raises(isospike.InputError, match="got one that was killed"):
        port.sweep(CURVE, workers=2, folder=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert 1 <= len(kept) < len(curve)
    assert port.sweep(CURVE, workers=2, folder=tmp_path).report.curve == curve
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


# Ray.


@pytest.mark.parametrize(
    "line",
    [
        ["port", "nothing", "--text", "nothing"],
        ["reproduce", "geometry", "--preset", "tiny"],
        ["positions", "--tasks", "copy-1", "--encodings", "none", "--preset", "tiny"],
    ],
)
def test_a_command_whose_cluster_does_not_answer_says_so_before_it_works(
    line, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("isospike.workers._ray", lambda who: None)  # as if it were installed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    error = said(call(*line, "--workers", f"ray:{address}", "--out", tmp_path / "out"))
    expected = (
        f"error: {line[0]} needs --workers of a Ray that answers, got Connection refused from "
    )
    assert error.startswith(expected + address)
    assert not list(tmp_path.iterdir())


def test_ray_that_is_not_installed_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    error = said(call("reproduce", "geometry", "--workers", "ray", "--out", tmp_path / "out"))
    assert error.endswith(
        "needs the package ray for these workers, got none. Install isospike[ray]."
    )
    assert not list(tmp_path.iterdir())


def test_an_address_where_nothing_answers_is_one_line_at_once():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    for address in (f"127.0.0.1:{port}", "nowhere.invalid:6379", "here"):
        with pytest.raises(isospike.InputError, match=f"a Ray that answers, got .* {address}") as e:
            collect(abs, [1, 2], f"ray:{address}")
        assert "\n" not in str(e.value)
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_an_address_where_something_else_answers_is_one_line_within_20_seconds():
    pytest.importorskip("ray")
    script = (
        "import sys, isospike\n"
        "from isospike.workers import map_cells\n"
        "try:\n"
        "    map_cells(abs, [1, 2], sys.argv[1], print)\n"
        "except isospike.InputError as error:\n"
        "    print(error, flush=True)\n"
        "    import os; os._exit(2)\n"
    )
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        address = f"ray:127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script, address], capture_output=True, text=True, timeout=60
        )
    assert done.stdout.startswith("map_cells needs workers of a Ray that answers, got ")
    assert time.monotonic() - start < 40  # with the start of the process


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    places = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", places)  # its processes find these tests
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_ray_give_the_same_bits(ray, port, curve, tmp_path):
    cells = list(range(5))
    one = collect(partial(summed, 10**6), cells, 1)
    assert collect(partial(summed, 10**6), cells, "ray") == one
    assert port.sweep(CURVE, workers="ray").report.curve == curve
    trained = [train_all(RUNS, tmp_path / str(w), w) for w in (1, "ray")]
    assert without_time(trained[0]) == without_time(trained[1])
    assert train_all(RUNS, tmp_path / "ray", "ray") == trained[1]  # read, not computed


@pytest.mark.filterwarnings("ignore")
def test_a_task_of_ray_that_dies_is_one_line_and_the_next_run_goes_on(ray, tmp_path):
    found = []

    def finish(cell, result):
        found.append(cell)
        (tmp_path / str(cell)).touch()

    with pytest.raises(
        isospike.InputError, match="worker processes to stay alive, got one that was k"
    ):
        map_cells(partial(die, tmp_path), [0, 1, 2, 3], "ray", finish)
    assert sorted(found) == [0, 1, 2]
    with pytest.raises(isospike.RangeError, match="fail needs no cell"):
        collect(fail, [1, 2], "ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_is_joined_by_its_address(ray):
    address = ray.get_runtime_context().gcs_address
    script = (
        "import sys\n"
        "from isospike.workers import map_cells\n"
        "map_cells(abs, [-1, -2], sys.argv[1], lambda cell, result: print(cell, result))\n"
    )
    command = [sys.executable, "-c", script, f"ray:{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.split("\n")) == ["", "-1 1", "-2 2"], done.stderr
