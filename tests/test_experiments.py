import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_report import browse, needs_chromium
from typer.testing import CliRunner

from isospike.cli import app
from isospike.errors import IsospikeError, RangeError
from isospike.experiments import (
    CORRECTED,
    EXPERIMENTS,
    FAILS,
    HOLDS,
    Result,
    Table,
    find_experiment,
    geometry,
    grid,
    lemma,
    overlap_kernel,
    page,
)
from isospike.experiments.grid import ROWS, SIZES, Cell, Size, build, compute, run_cells, run_rows
from isospike.experiments.tasks import TASKS, Recall
from isospike.models.training import IGNORE

TINY = Size("tiny", 3, 2, (0.003, 0.01), tests=8)


def draw(seed):
    return torch.Generator().manual_seed(seed)


def quiet(*_):
    pass


# Tasks.


@pytest.mark.parametrize("name", TASKS)
def test_a_task_draws_tokens_and_targets_of_its_vocabulary(name):
    task = TASKS[name]
    for length in (task.length, 2 * task.length):
        x, y = task.sample(5, length, draw(0))
        assert x.shape == y.shape == (5, length)
        assert 0 <= x.min() <= x.max() < task.vocabulary
        scored = y[y != IGNORE]
        assert len(scored)
        assert 0 <= scored.min() <= scored.max() < task.vocabulary
        again = task.sample(5, length, draw(0))
        assert torch.equal(x, again[0])
        assert torch.equal(y, again[1])
        if task.next_token:
            assert torch.equal(
                (x[:, 1:] == y[:, :-1]) | (y[:, :-1] == IGNORE), torch.ones(5, length - 1).bool()
            )


def test_targets_are_what_the_tasks_say():
    x, y = TASKS["successor"].sample(3, 9, draw(0))
    assert torch.equal(y, (x + 1) % 50)
    x, y = TASKS["copy-8"].sample(3, 20, draw(0))
    assert torch.equal(y[:, 8:], x[:, :-8])
    assert (y[:, :8] == IGNORE).all()
    x, y = TASKS["reversal"].sample(3, 9, draw(0))
    assert torch.equal(y, x.flip(1))
    x, y = TASKS["sort"].sample(3, 9, draw(0))
    assert torch.equal(y, x.sort(1).values)
    x, y = TASKS["separator-copy"].sample(3, 9, draw(0))
    assert torch.equal(y[:, 4:8], x[:, :4])
    assert (x[:, 4] == 16).all()
    assert (y[:, :4] == IGNORE).all()


def test_recall_asks_each_key_for_its_value():
    x, y = TASKS["recall"].sample(6, 32, draw(0))
    for tokens, targets in zip(x.tolist(), y.tolist(), strict=True):
        pairs = dict(zip(tokens[0:16:2], tokens[1:16:2], strict=True))
        assert len(pairs) == 8
        for i in range(16, 32, 2):
            assert targets[i] == pairs[tokens[i]] == tokens[i + 1]
        assert targets[:16] == [IGNORE] * 16
    with pytest.raises(RangeError, match="at most 32 pairs, got 33"):
        Recall().sample(1, 132, draw(0))


def test_test_text_is_not_training_text():
    task = TASKS["text"]
    train, test = (task.sample(200, 64, draw(1), test=t)[0] for t in (False, True))
    seen = {tuple(row.tolist()) for row in train.unfold(1, 32, 1).flatten(0, 1)}
    assert not any(tuple(row.tolist()) in seen for row in test.unfold(1, 32, 1).flatten(0, 1))


# Cells.


def test_models_of_one_task_differ_by_their_encoding_only():
    for task in (TASKS["copy-1"], TASKS["reversal"]):
        plain = sum(p.numel() for p in build(task, "none").parameters())
        for row in ROWS:
            model = build(task, row)
            own = sum(p.numel() for p in model.position.parameters())
            more = sum(p.numel() for p in model.parameters()) - own - plain
            assert more == (-128 if row == "no-attention" else 0)  # two norms less
            assert model.causal == task.causal


def test_shuffled_positions_are_dealt_out_anew():
    position = build(TASKS["copy-1"], "shuffled").position
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = position.index(32), position.index(32)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(32))


def test_score_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [[2.0, 0.0]] * 3])
    targets = torch.tensor([[0, 1, IGNORE], [0, 1, 0]])
    found = grid.score(logits, targets)
    miss, hit = math.log2(1 + math.e**2), math.log2(1 + math.e**-2)
    assert found["bits"] == pytest.approx((4 * hit + miss) / 5)
    assert (found["token"], found["sequence"]) == (0.8, 0.5)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("copy-1", "rope"),
        ("reversal", "shuffled"),
        ("recall", "randomized"),
        ("sort", "rank-learned"),
    ],
)
def test_a_cell_is_reproducible_whatever_the_world_drew(task, row):
    cell = Cell(task, row, 0.01, 3, 4, 8)
    first = compute(cell)
    torch.rand(5)
    before = torch.get_rng_state()
    second = compute(cell)
    assert torch.equal(torch.get_rng_state(), before), "and leaves the world as it was"
    for name in first:
        assert first[name] == second[name] or name == "seconds"
    assert (first["token"]["x2"] is None) == (row == "rank-learned")


def test_a_started_run_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    wanted = [Cell("copy-1", row, 0.01, 0, 2, 4) for row in ("none", "alibi", "no-attention")]
    done = []

    def count(cell):
        done.append(cell.row)
        if len(done) == 3:
            raise KeyboardInterrupt
        return compute(cell)

    monkeypatch.setattr(grid, "compute", count)
    with pytest.raises(KeyboardInterrupt):
        run_cells(wanted, tmp_path, 1, quiet, "cells")
    assert len(list(tmp_path.iterdir())) == 2
    told = []
    found = run_cells(wanted, tmp_path, 1, lambda *now: told.append(now), "cells")
    assert done == ["none", "alibi", "no-attention", "no-attention"]
    assert told == [("cells", 2, 3), ("cells", 3, 3)]
    assert [result["cell"]["row"] for result in found] == ["none", "alibi", "no-attention"]


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_cell_is_named(damage, tmp_path):
    cell = Cell("copy-1", "none", 0.01, 0, 2, 4)
    run_cells([cell], tmp_path, 1, quiet, "cells")
    path = tmp_path / cell.file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "empty":
        path.write_text("[]")
    else:
        other = json.loads(path.read_bytes())
        other["cell"]["model"]["width"] = 64
        path.write_text(json.dumps(other))
    with pytest.raises(IsospikeError, match=r"^run_cells needs .*copy-1_none_.*\. Remove it"):
        run_cells([cell], tmp_path, 1, quiet, "cells")


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    wanted = [Cell("copy-1", row, 0.01, 1, 2, 4) for row in ("none", "rope", "shuffled")]
    one = run_cells(wanted, tmp_path / "one", 1, quiet, "cells")
    two = run_cells(wanted, tmp_path / "two", 2, quiet, "cells")
    for a, b in zip(one, two, strict=True):
        assert a["token"] == b["token"]
        assert a["curve"] == b["curve"]


def test_rows_choose_their_rate_on_seed_0(tmp_path, monkeypatch):
    def pretend(cell):
        wins = {"rope": 0.003, "none": 0.01}[cell.row]
        bits = 1.0 if cell.rate == wins else 2.0
        flat = dict.fromkeys(grid.FACTORS, 0.5)
        return {"cell": cell.about, "bits": {**flat, "x1": bits}, "token": flat, "sequence": flat,
                "parameters": 1, "steps_to_95": None, "curve": [[1, 1.0]], "seconds": 0.0,
                "versions": {}}  # fmt: skip

    monkeypatch.setattr(grid, "compute", pretend)
    found = run_rows(("copy-1", "sort"), ("rope", "none"), TINY, tmp_path)
    assert {key: [r["cell"]["rate"] for r in results] for key, results in found.items()} == {
        ("copy-1", "rope"): [0.003, 0.003], ("sort", "rope"): [0.003, 0.003],
        ("copy-1", "none"): [0.01, 0.01], ("sort", "none"): [0.01, 0.01],
    }  # fmt: skip
    assert [r["cell"]["seed"] for r in found["sort", "none"]] == [0, 1]


def test_means_and_tables():
    def result(seed, x1, x3, steps):
        return {"token": {"x1": x1, "x1.5": x1, "x2": x1, "x3": x3}, "steps_to_95": steps,
                "cell": {"rate": 0.01}, "parameters": 7}  # fmt: skip

    found = {("copy-1", "none"): [result(0, 0.5, None, None), result(1, 0.7, None, 20)],
             ("copy-1", "rope"): [result(0, 1.0, 0.9, 10), result(1, 1.0, 0.7, 30)]}  # fmt: skip
    value, half = grid.mean(found["copy-1", "rope"], "token", "x3")
    assert value == pytest.approx(0.8)
    assert half == pytest.approx(1.96 * 0.1 * 2**0.5 / 2**0.5)
    table = grid.accuracy_table(found, "copy-1", ("none", "rope"), "token", "T")
    assert table.rows[0] == ("none", *["0.600 +- 0.196"] * 3, "n.a.", "--", "0.01", "7")
    assert table.rows[1][-3] == "20"
    assert grid.overview(found, ("copy-1",), ("none",)).rows == (("none", "0.60 / 0.60"),)
    assert (
        Table("T", ("a", "b"), (("1", "2"),)).markdown() == "T\n\n| a | b |\n|---|--:|\n| 1 | 2 |"
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: run_rows(("copy-9",), ("none",), TINY, f), "a task of successor, .*'copy-9'"),
        (lambda f: run_rows(("sort",), ("rotary",), TINY, f), "an encoding of none, .*'rotary'"),
        (lambda f: build(TASKS["sort"], "rotary"), "a row of none, .*, got 'rotary'"),
        (lambda f: find_experiment("table"), "an experiment of published-table, .*, got 'table'"),
    ],
)
def test_unknown_names_are_answered_with_those_known(call, text, tmp_path):
    with pytest.raises(RangeError, match=text):
        call(tmp_path)


# Experiments.


def test_every_experiment_states_a_claim():
    for name in EXPERIMENTS:
        experiment = find_experiment(name)
        assert experiment.CLAIM.endswith(".")
        assert callable(experiment.run)
        assert experiment.holds.__doc__


def test_geometry_and_the_lemma_hold_corrected(tmp_path):
    for experiment in (geometry, lemma):
        result = experiment.run(TINY, tmp_path, 1, quiet)
        assert experiment.holds(result) == CORRECTED
        json.dumps(result.json(experiment.CLAIM, CORRECTED), allow_nan=False)


def test_the_overlap_kernel_is_near_an_exponential_and_not_one():
    fit = overlap_kernel.measure(0.9, (20, 16, 1024), 60, draw(0))
    assert fit.cosine[0] == pytest.approx(1)
    assert fit.kernel[0] == pytest.approx(1)
    assert all(a >= b - 0.02 for a, b in zip(fit.kernel, fit.kernel[1:], strict=False))
    assert 2 < fit.beta < 6
    assert 0.02 < fit.error < 0.08
    assert fit.kernel[-1] < 0.01 < math.exp(-fit.beta)  # nothing in common: no overlap


def verdict(name, numbers):
    return find_experiment(name).holds(Result(name, numbers))


def test_verdicts_follow_the_numbers():
    position = find_experiment("spike-timing")
    for timing, rescaled, expected in ((1.0, 1.0, HOLDS), (0.2, 1.0, CORRECTED), (0.2, 0.5, FAILS)):
        numbers = {}
        for task in position.TASKS:
            numbers |= {f"{task} sinusoidal x1": 1.0, f"{task} spike-timing x1": timing,
                        f"{task} spike-timing-rescaled x1": rescaled}  # fmt: skip
        assert verdict("spike-timing", numbers) == expected
    tasks = find_experiment("frequency-compression").TASKS
    for failing, expected in ((len(tasks), HOLDS), (1, CORRECTED), (0, FAILS)):
        numbers = {f"{t} sinusoidal x1": 1.0 for t in tasks}
        numbers |= {f"{t} frequency-compressed x1": 0.2 if i < failing else 1.0
                    for i, t in enumerate(tasks)}  # fmt: skip
        assert verdict("frequency-compression", numbers) == expected
    tasks = find_experiment("learned-rank").TASKS
    numbers = {f"{t} {row} x1": 1.0 for t in tasks for row in ("sinusoidal", "rank-learned")}
    assert verdict("learned-rank", {**numbers, "sort rank-learned x1": 0.9}) == CORRECTED
    for rank, expected in ((0.995, HOLDS), (0.9, FAILS)):
        numbers = {f"{t} sinusoidal x1": 1.0 for t in tasks} | {
            f"{t} rank-learned x1": rank for t in tasks
        }
        assert verdict("learned-rank", numbers) == expected
    far = find_experiment("extrapolation")
    for there, expected in ((0.5, HOLDS), (0.97, FAILS)):
        numbers = {f"{t} {r} x1": 1.0 for t in far.TASKS for r in far.ROWS}
        numbers |= {f"{t} {r} x2": there for t in far.TASKS for r in far.ROWS}
        assert verdict("extrapolation", numbers) == expected
    table = find_experiment("published-table")
    for control, expected in ((1.0, FAILS), (0.1, HOLDS)):
        numbers = {f"successor {r} {f}": control for r in table.ROWS for f in grid.FACTORS}
        assert verdict("published-table", numbers) == expected
    for best, expected in ((0.1, CORRECTED), (1.0, FAILS)):
        numbers = {"recall: rope transformer, trained": best, "recall: last symbol": 1.0}
        assert verdict("online", numbers) == expected


@pytest.mark.parametrize("name", ["published-table", "spike-timing"])
def test_an_experiment_that_trains_runs_from_its_cells(name, tmp_path):
    experiment = find_experiment(name)
    tiny = dataclasses.replace(TINY, seeds=1, rates=(0.01,), steps=1, tests=2)
    result = experiment.run(tiny, tmp_path, 1, quiet)
    count = len(list(tmp_path.iterdir()))
    again = experiment.run(tiny, tmp_path, 1, quiet)
    assert result == again
    tasks = 1 if name == "published-table" else 5
    assert len(list(tmp_path.iterdir())) == count == tasks * len(experiment.ROWS)
    assert experiment.holds(result) in (HOLDS, CORRECTED, FAILS)


# The page and the command line.


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("positions")
    grid.SIZES["tiny"] = dataclasses.replace(TINY, steps=1, tests=2, rates=(0.01,))
    done = run("positions", "--size", "tiny", "--tasks", "copy-1,reversal", "--out", place,
               "--encodings", "none,rope,rank-learned,t5", "--workers", 1)  # fmt: skip
    yield place, done
    del grid.SIZES["tiny"]


def test_positions_leaves_a_page_and_tables(folder):
    place, done = folder
    assert done.exit_code == 0, done.output
    assert "| encoding | copy-1 | reversal |" in done.output
    text = (place / "tables.md").read_text()
    assert text.count("| rank-learned |") == 7
    html = (place / "report.html").read_text()
    plots = re.findall(r'draw\("(plot-[\w-]+)"', html)
    assert plots == [
        "plot-overview", "plot-overview-x2", "plot-length-copy-1", "plot-length-reversal",
        "plot-curve-copy-1", "plot-curve-reversal", "plot-gram-rope", "plot-gram-rank-learned",
        "plot-gram-t5",
    ]  # fmt: skip
    assert all(f'id="{name}"' in html for name in plots)
    assert len(list((place / "cells").iterdir())) == 16


@needs_chromium
def test_the_browser_draws_the_page_without_a_word(folder):
    place, _ = folder
    dom, log = browse((place / "report.html").read_text(), place)
    assert "CONSOLE" not in log
    assert 'data-errors=""' in dom
    assert 'data-plots="9"' in dom
    assert dom.count('class="main-svg"') >= 9


def test_gram_matrices_show_likeness():
    for name in ROWS[:14]:
        if name == "none":
            continue
        values = page.likeness(name, 20)
        assert values.shape == (20, 20)
        assert values.isfinite().all()
        if name not in ("t5", "fire"):  # as they start
            assert (values.diagonal() >= values.max(1).values - 1e-5).all()


def test_reproduce_lists_and_runs(tmp_path):
    listed = run("reproduce")
    assert listed.exit_code == 0
    assert all(name in listed.output for name in EXPERIMENTS)
    done = run("reproduce", "geometry", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["verdict"] == CORRECTED
    assert told == json.loads((tmp_path / "geometry-small.json").read_text())
    plain = run("reproduce", "geometry", "--out", tmp_path)
    assert "verdict  holds corrected" in plain.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("reproduce", "gravity"), "error: reproduce needs an experiment of published-table, "),
        (("reproduce", "geometry", "--size", "huge"), "a --size of small, full.*, got 'huge'"),
        (("reproduce", "geometry", "--workers", "0"), "--workers of at least 1, got 0"),
        (("positions", "--tasks", "copy-1,juggle"), "--tasks of successor, .*, got 'juggle'"),
        (("positions", "--encodings", "rotary"), "--encodings of none, .*, got 'rotary'"),
        (("positions", "--tasks", ","), "--tasks of successor, .*, got ''"),
        (("positions", "--seeds", "0"), "--seeds of at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_2(arguments, text, tmp_path):
    done = run(*arguments, "--out", tmp_path)
    assert done.exit_code == 2
    assert re.search(text, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_ends_in_one_line_and_leaves_whole_files(tmp_path):
    script = [
        sys.executable, "-m", "isospike", "positions", "--tasks", "copy-1", "--workers", "2",
        "--encodings", "no-attention,none,alibi,rope", "--out", str(tmp_path),
    ]  # fmt: skip
    started = subprocess.Popen(
        script,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("cells/[!.]*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted: what was computed is kept")
    for path in tmp_path.glob("cells/*"):
        json.loads(path.read_bytes())
    assert SIZES["small"].steps == 150
