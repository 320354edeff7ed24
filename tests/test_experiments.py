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
from browser import browse, needs_chromium
from typer.testing import CliRunner

from isospike import progress
from isospike.cli import app
from isospike.errors import InputError, RangeError
from isospike.experiments import grid, overlap_kernel, page, positions
from isospike.experiments.grid import (
    GRIDS,
    VARIANTS,
    Preset,
    TrainingRun,
    build,
    train_all,
    train_grid,
    train_one,
)
from isospike.experiments.study import (
    CORRECTED,
    FAILS,
    HOLDS,
    Context,
    StudyReport,
    find_studies,
    find_study,
    reproduce,
)
from isospike.experiments.tasks import TASKS, Recall
from isospike.models.training import IGNORE

TINY = Preset("tiny", 3, 2, (0.003, 0.01), tests=8)


def draw(seed):
    return torch.Generator().manual_seed(seed)


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


# Training runs.


def test_models_of_one_task_differ_by_their_encoding_only():
    for task in (TASKS["copy-1"], TASKS["reversal"]):
        plain = sum(p.numel() for p in build(task, "none").parameters())
        for variant in VARIANTS:
            model = build(task, variant)
            own = sum(p.numel() for p in model.position.parameters())
            more = sum(p.numel() for p in model.parameters()) - own - plain
            assert more == (-128 if variant == "no-attention" else 0)  # two norms less
            assert model.causal == task.causal


def test_shuffled_positions_have_a_new_order_in_every_pass():
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
    ("task", "variant"),
    [
        ("copy-1", "rope"),
        ("reversal", "shuffled"),
        ("recall", "randomized"),
        ("sort", "rank-learned"),
    ],
)
def test_a_training_run_is_reproducible_and_leaves_the_global_generator_alone(task, variant):
    run = TrainingRun(task, variant, 0.01, 3, 4, 8)
    first = train_one(run)
    torch.rand(5)
    before = torch.get_rng_state()
    second = train_one(run)
    assert torch.equal(torch.get_rng_state(), before)
    for name in first:
        assert first[name] == second[name] or name == "seconds"
    assert (first["token"]["x2"] is None) == (variant == "rank-learned")


def test_a_grid_that_stopped_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    runs = [TrainingRun("copy-1", v, 0.01, 0, 2, 4) for v in ("none", "alibi", "no-attention")]
    started = []

    def count(run):
        started.append(run.variant)
        if len(started) == 3:
            raise KeyboardInterrupt
        return train_one(run)

    monkeypatch.setattr(grid, "train_one", count)
    with pytest.raises(KeyboardInterrupt):
        train_all(runs, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    reported = []
    with progress.shown_by(lambda *now: reported.append(now)):
        results = train_all(runs, tmp_path, label="runs")
    assert started == ["none", "alibi", "no-attention", "no-attention"]
    assert reported == [("runs", 2, 3), ("runs", 3, 3)]
    assert [result["run"]["variant"] for result in results] == ["none", "alibi", "no-attention"]


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_file_is_named(damage, tmp_path):
    run = TrainingRun("copy-1", "none", 0.01, 0, 2, 4)
    train_all([run], tmp_path)
    path = tmp_path / run.file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "empty":
        path.write_text("[]")
    else:
        other = json.loads(path.read_bytes())
        other["run"]["model"]["width"] = 64
        path.write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"^train_all needs .*copy-1_none_.*\. Remove it"):
        train_all([run], tmp_path)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    runs = [TrainingRun("copy-1", v, 0.01, 1, 2, 4) for v in ("none", "rope", "shuffled")]
    one = train_all(runs, tmp_path / "one", 1)
    two = train_all(runs, tmp_path / "two", 2)
    for a, b in zip(one, two, strict=True):
        assert a["token"] == b["token"]
        assert a["curve"] == b["curve"]


def test_a_variant_chooses_its_rate_on_seed_0(tmp_path, monkeypatch):
    def pretend(run):
        wins = {"rope": 0.003, "none": 0.01}[run.variant]
        bits = 1.0 if run.rate == wins else 2.0
        flat = dict.fromkeys(grid.FACTORS, 0.5)
        return {"run": run.settings, "bits": {**flat, "x1": bits}, "token": flat, "sequence": flat,
                "parameters": 1, "steps_to_95": None, "curve": [[1, 1.0]], "seconds": 0.0,
                "versions": {}}  # fmt: skip

    monkeypatch.setattr(grid, "train_one", pretend)
    found = train_grid(("copy-1", "sort"), ("rope", "none"), TINY, tmp_path)
    assert {key: [r["run"]["rate"] for r in results] for key, results in found.items()} == {
        ("copy-1", "rope"): [0.003, 0.003], ("sort", "rope"): [0.003, 0.003],
        ("copy-1", "none"): [0.01, 0.01], ("sort", "none"): [0.01, 0.01],
    }  # fmt: skip
    assert [r["run"]["seed"] for r in found["sort", "none"]] == [0, 1]


def test_means_and_tables():
    def result(seed, x1, x3, steps):
        return {"token": {"x1": x1, "x1.5": x1, "x2": x1, "x3": x3}, "steps_to_95": steps,
                "run": {"rate": 0.01}, "parameters": 7}  # fmt: skip

    found = {("copy-1", "none"): [result(0, 0.5, None, None), result(1, 0.7, None, 20)],
             ("copy-1", "rope"): [result(0, 1.0, 0.9, 10), result(1, 1.0, 0.7, 30)]}  # fmt: skip
    value, half = grid.mean(found["copy-1", "rope"], "token", "x3")
    assert value == pytest.approx(0.8)
    assert half == pytest.approx(1.96 * 0.1 * 2**0.5 / 2**0.5)
    table = grid.accuracy_table(found, "copy-1", ("none", "rope"), "token")
    assert table.rows[0] == ("none", *["0.600 +- 0.196"] * 3, "n.a.", "--", "0.01", "7")
    assert table.rows[1][-3] == "20"
    assert grid.overview(found, ("copy-1",), ("none",)).rows == (("none", "0.60 / 0.60"),)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: train_grid(("copy-9",), ("none",), TINY, f), "a task of succ.*, got 'copy-9'"),
        (lambda f: train_grid(("sort",), ("rotary",), TINY, f), "variants of none, .*'rotary'"),
        (lambda f: build(TASKS["sort"], "rotary"), "a variant of none, .*, got 'rotary'"),
        (lambda f: find_study("table"), "a study of encodings, .*, got 'table'"),
    ],
)
def test_unknown_names_are_answered_with_those_known(call, text, tmp_path):
    with pytest.raises(InputError, match=text):
        call(tmp_path)


# Claims.


def test_every_claim_has_a_statement_a_source_and_a_verdict_of_three():
    claims = {name: one for name, one in find_studies().items() if name != "encodings"}
    assert set(positions.CLAIMS) < set(claims)
    for one in claims.values():
        assert one.statement.endswith(".")
        assert one.question.endswith("?")
        assert one.source
        assert one.decide is not None
        assert set(one.presets) == {"tiny", "small", "full"}


def test_geometry_and_the_lemma_hold_corrected():
    for name in ("geometry", "lemma-1"):
        report = reproduce(name, "full")
        assert report.decision == CORRECTED
        assert StudyReport.from_json(report.to_json()) == report


def test_the_overlap_kernel_is_near_an_exponential_and_not_one():
    fit = overlap_kernel.measure(0.9, (20, 16, 1024), 60, draw(0))
    assert fit.cosine[0] == pytest.approx(1)
    assert fit.kernel[0] == pytest.approx(1)
    assert all(a >= b - 0.02 for a, b in zip(fit.kernel, fit.kernel[1:], strict=False))
    assert 2 < fit.beta < 6
    assert 0.02 < fit.error < 0.08
    assert fit.kernel[-1] < 0.01 < math.exp(-fit.beta)  # nothing in common: no overlap


def verdict(name, numbers):
    return find_study(name).decide(numbers)


def test_verdicts_follow_the_numbers():
    position = positions.CLAIMS["spike-timing"]
    for timing, rescaled, expected in ((1.0, 1.0, HOLDS), (0.2, 1.0, CORRECTED), (0.2, 0.5, FAILS)):
        numbers = {}
        for task in position.tasks:
            numbers |= {f"{task} sinusoidal x1": 1.0, f"{task} spike-timing x1": timing,
                        f"{task} spike-timing-rescaled x1": rescaled}  # fmt: skip
        assert verdict("spike-timing", numbers) == expected
    tasks = positions.CLAIMS["frequency-compression"].tasks
    for failing, expected in ((len(tasks), HOLDS), (1, CORRECTED), (0, FAILS)):
        numbers = {f"{t} sinusoidal x1": 1.0 for t in tasks}
        numbers |= {f"{t} frequency-compressed x1": 0.2 if i < failing else 1.0
                    for i, t in enumerate(tasks)}  # fmt: skip
        assert verdict("frequency-compression", numbers) == expected
    tasks = positions.CLAIMS["learned-rank"].tasks
    numbers = {
        f"{t} {variant} x1": 1.0 for t in tasks for variant in ("sinusoidal", "rank-learned")
    }
    assert verdict("learned-rank", {**numbers, "sort rank-learned x1": 0.9}) == CORRECTED
    for rank, expected in ((0.995, HOLDS), (0.9, FAILS)):
        numbers = {f"{t} sinusoidal x1": 1.0 for t in tasks} | {
            f"{t} rank-learned x1": rank for t in tasks
        }
        assert verdict("learned-rank", numbers) == expected
    far = positions.CLAIMS["extrapolation"]
    for there, expected in ((0.5, HOLDS), (0.97, FAILS)):
        numbers = {f"{t} {r} x1": 1.0 for t in far.tasks for r in far.variants}
        numbers |= {f"{t} {r} x2": there for t in far.tasks for r in far.variants}
        assert verdict("extrapolation", numbers) == expected
    table = positions.CLAIMS["published-table"]
    for control, expected in ((1.0, FAILS), (0.1, HOLDS)):
        numbers = {f"successor {r} {f}": control for r in table.variants for f in grid.FACTORS}
        assert verdict("published-table", numbers) == expected
    for best, expected in ((0.1, CORRECTED), (1.0, FAILS)):
        numbers = {"recall: rope transformer, trained": best, "recall: last symbol": 1.0}
        assert verdict("online", numbers) == expected


@pytest.mark.parametrize("name", ["published-table", "spike-timing"])
def test_a_claim_about_positions_runs_from_its_files(name, tmp_path):
    context = Context(tmp_path)
    report = find_study(name).run("tiny", context)
    count = len(list(tmp_path.iterdir()))
    again = find_study(name).run("tiny", context)
    assert report == again
    tasks = 1 if name == "published-table" else 5
    assert len(list(tmp_path.iterdir())) == count == tasks * len(positions.CLAIMS[name].variants)
    assert report.decision in (HOLDS, CORRECTED, FAILS)


# The page and the command line.


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("positions")
    done = run(
        "positions", "--preset", "tiny", "--seeds", 2, "--tasks", "copy-1,reversal", "--out", place,
        "--encodings", "none,rope,rank-learned,t5", "--workers", 1,
    )  # fmt: skip
    return place, done


def test_positions_leaves_a_page_and_tables(folder):
    place, done = folder
    assert done.exit_code == 0, done.output
    assert "| encoding | copy-1 | reversal |" in done.output
    text = (place / "report/tables.md").read_text()
    assert text.count("| rank-learned |") == 7
    html = (place / "report/report.html").read_text()
    plots = re.findall(r'<figure class="plot" id="(plot-[\w-]+)"', html)
    assert plots == [
        "plot-overview", "plot-overview-x2", "plot-length-copy-1", "plot-length-reversal",
        "plot-curve-copy-1", "plot-curve-reversal", "plot-gram-rope", "plot-gram-rank-learned",
        "plot-gram-t5",
    ]  # fmt: skip
    assert len(list((place / "cells").iterdir())) == 16


@needs_chromium
def test_the_browser_draws_the_page_without_a_word(folder):
    place, _ = folder
    dom, log = browse((place / "report/report.html").read_text(), place)
    assert "CONSOLE" not in log
    assert 'data-errors=""' in dom
    assert dom.count('<figure class="plot"') == 9


def test_gram_matrices_show_likeness():
    for name in VARIANTS[:14]:
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
    assert all(name in listed.output for name in find_studies())
    done = run("reproduce", "geometry", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["decision"] == CORRECTED
    assert printed == json.loads((tmp_path / "geometry-small.json").read_text())
    plain = run("reproduce", "geometry", "--out", tmp_path)
    assert "verdict  holds corrected" in plain.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("reproduce", "gravity"), "error: reproduce needs a study of encodings, "),
        (
            ("reproduce", "geometry", "--preset", "huge"),
            "--preset of tiny, small, full.*, got 'huge'",
        ),
        (("reproduce", "geometry", "--workers", "0"), "--workers of at least 1, got 0"),
        (("positions", "--tasks", "copy-1,juggle"), "--tasks of successor, .*, got 'juggle'"),
        (("positions", "--encodings", "rotary"), "--encodings of none, .*, got 'rotary'"),
        (("positions", "--tasks", ","), "--tasks of successor, .*, got ''"),
        (("positions", "--seeds", "0"), "--seeds of at least 1 and at most 1000, got 0"),
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
    assert GRIDS["small"].steps == 150
