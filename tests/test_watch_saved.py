"""A watcher that is saved: save points, kill -9, one process at a time, the report of a stream."""

import json
import random
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import rewritten
from test_watch import call

from benchmarks.streams import kill_watch, log_lines
from isospike.errors import InputError
from isospike.memory import SequenceMachine, Watcher, line_template
from isospike.memory.report import MOST_EVENTS, MOST_SPANS, Trace, WatchReport
from isospike.report.disk import held


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 120), st.sampled_from(["symbols", "numbers", "phases"]))
def test_a_watcher_may_be_saved_anywhere(tmp_path_factory, cut, kind):
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    values = list("abracadabra" * 11)[:120] if kind == "symbols" else np.sin(range(120)).tolist()
    limits = () if kind == "symbols" else (-1, 1)
    count = 5 if kind == "phases" else 0
    phases = [i % 5 for i in range(120)]
    parts = [phases, phases[:cut], phases[cut:]] if count else [None] * 3
    whole, parted = (Watcher(*limits, phases=count) for _ in range(2))
    expected = whole.take_all(values, parts[0])
    found = parted.take_all(values[:cut], parts[1])
    parted.metadata["unit"] = "x"
    parted.save(path)
    loaded = Watcher.load(path)
    assert loaded.count == cut
    assert loaded.metadata == {"unit": "x"}
    assert [*found, *loaded.take_all(values[cut:], parts[2])] == expected


def test_a_watcher_that_was_interrupted_half_way_is_not_saved(tmp_path, monkeypatch):
    watcher = Watcher(0.0, 1.0)
    watcher.take(0.5)
    watcher.save(tmp_path / "w")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watcher.machines[5], "surprise_sequence", interrupt)
    with pytest.raises(KeyboardInterrupt):
        watcher.take(0.5)
    assert not watcher.whole
    with pytest.raises(InputError, match="save needs a watcher that took every value as a whole"):
        watcher.save(tmp_path / "w")
    monkeypatch.undo()
    with pytest.raises(InputError, match="take needs a watcher that took every value as a whole"):
        watcher.take(0.5)  # which would make it seem whole
    with pytest.raises(InputError, match="save needs a watcher that took every value as a whole"):
        watcher.save(tmp_path / "w")
    assert Watcher.load(tmp_path / "w").count == 1


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1}, {"range": [1.0, 0.0]}, {"range": None}, {"last": [[7, 1.0]]},
        {"watcher": []}, {"metadata": []}, {"last": [[0, 101.0]]},
        {"phases": 24}, {"phases": -1}, {"phases": None},
    ],
)  # fmt: skip
def test_a_file_that_no_watcher_wrote_is_refused(tmp_path, change):
    watcher = Watcher(0.0, 1.0)
    watcher.take_all([0.1, 0.2])
    watcher.save(tmp_path / "w")
    saved = (tmp_path / "w").read_bytes()
    rewritten(saved, tmp_path / "w", lambda about, _: about.update(change))
    with pytest.raises(InputError, match="load needs a sequence machine that isospike saved"):
        Watcher.load(tmp_path / "w")


def test_a_machine_is_no_watcher_nor_the_other_way(tmp_path):
    SequenceMachine("ab").save(tmp_path / "m")
    Watcher().save(tmp_path / "w")
    for load, name in ((Watcher.load, "m"), (SequenceMachine.load, "w")):
        with pytest.raises(InputError, match="load needs"):
            load(tmp_path / name)


def test_watch_goes_on_where_it_was(tmp_path):
    lines, model = log_lines(60), tmp_path / "w.safetensors"
    first = call("watch", "-", "--model", model, text="\n".join(lines[:25]))
    then = call("watch", "-", "--model", model, text="\n".join(lines[25:]))
    assert "has taken 25 symbols; counting goes on" in then.stderr
    whole = call("watch", "-", text="\n".join(lines))
    assert first.stdout + then.stdout == whole.stdout


def test_a_mistake_in_the_stream_loses_nothing_before_it(tmp_path):
    model = tmp_path / "w.safetensors"
    line = ("watch", "-", "--unit", "number", "--low", 0, "--high", 1, "--model", model)
    done = call(*line, text="0.1\n0.2\nnan\n0.3\n")
    assert done.exit_code == 2
    assert "got 'nan' in line 3" in done.stderr
    assert Watcher.load(model).count == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--unit", "char"), "watch needs a watcher of the unit char, got one of number"),
        (("--unit", "number", "--clock"), "watch needs --clock just as"),
        (("--unit", "number", "--low", 0, "--high", 2), r"watch needs the range (0.0, 1.0) of"),
        (("--every", 0), "watch needs --every of at least 1, got 0"),
    ],
)
def test_what_does_not_go_with_a_saved_watcher_is_refused(tmp_path, arguments, message):
    watcher = Watcher(0.0, 1.0)
    watcher.metadata["unit"] = "number"
    watcher.save(tmp_path / "w")
    before = (tmp_path / "w").read_bytes()
    done = call("watch", "-", *arguments, "--model", tmp_path / "w", text="1\n")
    assert done.exit_code == 2
    assert message in done.stderr
    assert (tmp_path / "w").read_bytes() == before


def test_a_second_process_on_one_file_is_refused(tmp_path):
    model = tmp_path / "w.safetensors"
    with held(model):
        done = call("watch", "-", "--model", model, text="a\n")
        assert done.exit_code == 2
        assert "watch needs a machine that no other process learns with" in done.stderr
        assert not model.exists()
        assert call("watch", "-", "--model", tmp_path / "other", text="a\n").exit_code == 0
    assert call("watch", "-", "--model", model, text="a\n").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "w.safetensors"]


def test_a_hold_of_a_dead_process_holds_nothing(tmp_path):
    with held(tmp_path / "m"):
        (left,) = tmp_path.iterdir()
    left.mkdir()  # as a killed process leaves it
    with held(tmp_path / "m"):
        assert left.exists()
    assert not left.exists()


def test_a_folder_that_was_made_to_hold_a_name_in_goes_if_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "a" / "b" / "m"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_killed_on_a_pipe_it_has_all_up_to_its_last_save_point(tmp_path):
    model, draw = tmp_path / "w.safetensors", random.Random(0)
    lines = log_lines(3000)
    for _ in range(2):
        done = kill_watch(lines, model, every=20, after=draw.uniform(0.05, 0.3))
        assert done.status == -signal.SIGKILL
        assert done.printed >= 1
        assert done.lost == 0
    loaded, whole = Watcher.load(model), Watcher()
    whole.take_all(map(line_template, lines[: loaded.count]))
    rest = [line_template(line) for line in lines[loaded.count : loaded.count + 50]]
    assert loaded.take_all(rest) == whole.take_all(rest)


def test_a_report_has_the_most_unusual_and_a_picture(tmp_path):
    values = [*np.sin(np.arange(300) / 5).round(3), 3.0, *np.sin(np.arange(300) / 5).round(3)]
    table = tmp_path / "v.csv"
    table.write_text("time,value\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    done = call("watch", table, "--unit", "number", "--out", tmp_path / "r")
    assert done.exit_code == 0
    report = WatchReport.from_json((tmp_path / "r/report.json").read_text())
    assert report.events[0].shown == "3.0"
    assert report.events[0].number == 301
    assert report.count == 601
    page = (tmp_path / "r/report.html").read_text()
    assert "is number 301: 3.0" in page
    assert all(f'aria-label="{what}' in page for what in ("The numbers", "Surprise", "Anomaly"))
    assert json.loads((tmp_path / "r/report.json").read_text())["unit"] == "number"


def test_an_empty_stream_has_a_report(tmp_path):
    assert call("watch", "-", "--out", tmp_path / "r", text="").exit_code == 0
    assert "The stream was empty." in (tmp_path / "r/report.html").read_text()


@settings(deadline=None)
@given(st.integers(1, 3 * MOST_SPANS))
def test_a_trace_is_bounded_and_keeps_the_extremes(count):
    from isospike.memory import Moment

    trace = Trace("number", start=7)
    draw = random.Random(count)
    moments = [Moment(draw.random(), draw.random()) for _ in range(count)]
    for i, moment in enumerate(moments):
        trace.add(moment, str(i), float(i))
    report = trace.report()
    assert len(report.spans) <= MOST_SPANS
    assert report.spans[0].first == 8
    assert max(span.bits for span in report.spans) == max(m.bits for m in moments)
    assert (report.spans[0].low, report.spans[-1].high) == (0.0, count - 1.0)
    best = sorted((m.anomaly for m in moments[93:]), reverse=True)[:MOST_EVENTS]
    assert [event.anomaly for event in report.events] == best


def test_numbers_of_a_file_are_watched_as_those_of_a_pipe(tmp_path):
    values = np.sin(np.arange(30)).round(2).tolist()
    table = tmp_path / "v.csv"
    table.write_text("".join(f"{v}\n" for v in [*values, "nan", 0.5]))
    line = ("--unit", "number", "--low", -1, "--high", 1, "--every", 7, "--model")
    done = [call("watch", name, *line, tmp_path / f"{i}", text=table.read_text())
            for i, name in enumerate((table, "-"))]  # fmt: skip
    assert done[0].stdout == done[1].stdout
    assert done[0].stdout.count("\n") == 30
    for i, one in enumerate(done):
        assert "got 'nan' in line 31" in one.stderr
        assert Watcher.load(tmp_path / f"{i}").count == 30
