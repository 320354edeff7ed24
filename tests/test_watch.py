"""Watching a stream: surprise, overlapping tilings, the command."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from isospike.cli import app
from isospike.cli.watch import _symbols
from isospike.errors import InputError, RangeError
from isospike.memory import Mixed, SequenceMachine, Watcher, line_template
from isospike.memory.watch import TILINGS


def test_a_watcher_of_symbols_is_a_machine_that_learns():
    text = "the cat sat on the mat " * 3
    machine = SequenceMachine(context=Mixed(depth=4, synapses=2**22, when_full="forget"), grow=True)
    expected = [float(machine.surprise_sequence(letter)[0]) for letter in text]
    watcher = Watcher()
    assert [watcher.take(letter).bits for letter in text] == expected


def test_a_number_near_the_expected_one_surprises_less_than_a_far_one():
    found = []
    for last in (5.5, 9.0):
        watcher = Watcher(0.0, 10.0)
        for _ in range(100):
            watcher.take(5.0)
        found.append(watcher.take(last))
    assert found[0].bits < 1 < 10 < found[1].bits
    assert found[0].anomaly < found[1].anomaly < 1


def test_what_is_usual_at_another_hour_surprises():
    day = [0.2] * 12 + [0.8] * 12
    hours = list(range(24))
    watcher = Watcher(0.0, 1.0, phases=24)
    watcher.take_all(day * 30, hours * 30)
    night = watcher.take_all([0.2] * 24, hours)  # the day does not come
    assert all(moment.bits < 0.5 for moment in night[1:12])
    assert night[12].bits > 3
    assert max(moment.anomaly for moment in night) > 0.98


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 90))
def test_numbers_with_phases_may_be_cut_anywhere(cut):
    values, phases = np.sin(np.arange(90)).tolist(), [i % 6 for i in range(90)]
    whole, parted = (Watcher(-1, 1, phases=6) for _ in range(2))
    found = parted.take_all(values[:cut], phases[:cut])
    for value, phase in zip(values[cut:], phases[cut:], strict=True):
        found.append(parted.take(value, phase))
    assert found == whole.take_all(values, phases)


def test_one_event_is_one_alarm():
    watcher = Watcher()
    moments = [watcher.take(symbol) for symbol in "ab" * 60 + "cdef"]
    assert all(moment.anomaly == 0 for moment in moments[60:120])
    assert moments[120].anomaly > 0.9


def test_numbers_outside_the_range_are_taken():
    watcher = Watcher(0.0, 1.0)
    assert all(math.isfinite(watcher.take(x).bits) for x in (-1e9, 0, 0.5, 1, 2, 1e300))


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ((0.0, None), InputError, "Watcher needs low and high for numbers, or neither"),
        ((1.0, 1.0), RangeError, "Watcher needs finite low < high, got 1.0 and 1.0"),
        ((0.0, math.inf), RangeError, "Watcher needs finite low < high"),
    ],
)
def test_a_range_that_is_none_is_refused(values, kind, message):
    with pytest.raises(kind, match=message):
        Watcher(*values)


@pytest.mark.parametrize(
    ("make", "take", "kind", "message"),
    [
        ({"phases": 24}, (), InputError, "Watcher needs numbers for phases, got phases=24"),
        ({"low": 0.0, "high": 1.0, "phases": -1}, (), RangeError, "phases from 0 to 1024, got -1"),
        ({"low": 0.0, "high": 1.0, "phases": 24}, (0.5,), InputError, "a phase a value, got none"),
        ({"low": 0.0, "high": 1.0}, (0.5, 3), InputError, "take needs no phases, got some"),
        ({"low": 0.0, "high": 1.0, "phases": 4}, (0.5, 4), RangeError, "from 0 to 3, got 4"),
    ],
)
def test_phases_that_are_none_are_refused(make, take, kind, message):
    with pytest.raises(kind, match=message):
        Watcher(**make).take(*take)


def test_not_as_many_phases_as_values_are_refused_and_change_nothing():
    watcher = Watcher(0.0, 1.0, phases=4)
    with pytest.raises(InputError, match="take_all needs a phase a value, got 1 for 2"):
        watcher.take_all([0.5, 0.6], [1])
    assert watcher.count == 0
    assert watcher.whole
    assert watcher.take_all([], []) == []


def test_what_is_no_number_is_refused_and_changes_nothing():
    watcher = Watcher(0.0, 1.0)
    with pytest.raises(RangeError, match="take needs a finite number, got nan"):
        watcher.take(math.nan)
    with pytest.raises(InputError, match="take needs a number, got 'a'"):
        watcher.take("a")
    assert watcher.machines[0].synapses == 0


def test_a_template_leaves_out_what_varies():
    lines = ("10:01 sshd[199]: from 1.2.3.4 port 22", "10:02 sshd[7]: from 9.9.9.9 port 8080")
    assert len({line_template(line) for line in lines}) == 1
    assert line_template("RAS KERNEL INFO data TLB error") == "RAS KERNEL INFO data TLB error"


def call(*arguments, text=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=text)


def test_watch_prints_one_line_a_symbol_of_a_file_and_of_a_pipe(tmp_path):
    lines = [f"10:{i:02} connect ok" for i in range(30)] + ["10:31 disk failure"]
    log = tmp_path / "a.log"
    log.write_text("\n".join(lines) + "\n")
    shown = call("watch", log)
    assert shown.exit_code == 0
    piped = call("watch", "-", "--json", text=log.read_text())
    moments = [json.loads(line) for line in piped.stdout.splitlines()]
    assert len(moments) == len(shown.stdout.splitlines()) == 31
    assert max(moments[5:], key=lambda m: m["anomaly"])["symbol"] == "10:31 disk failure"


def test_a_pipe_of_other_bytes_is_refused_whatever_the_locale(monkeypatch):
    done = CliRunner().invoke(app, ["watch", "-"], input=b"good\n\xff\xfe\x80\n")
    assert done.exit_code == 2
    assert "watch needs UTF-8 text, got other bytes in '-'" in done.stderr
    pipe = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", pipe)
    with pytest.raises(InputError, match="needs UTF-8 text"):
        list(_symbols("-", "line"))


def test_a_line_sends_no_codes_to_the_terminal():
    shown = call("watch", "-", text="red \x1b[31m alert\n").stdout
    assert shown.endswith("red \\x1b[31m alert\n")


def test_watch_takes_numbers_of_a_csv(tmp_path):
    values = [*np.sin(np.arange(300) / 5).round(3), 3.0]
    table = tmp_path / "v.csv"
    table.write_text("time,value\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    found = [
        json.loads(x)
        for x in call("watch", table, "--unit", "number", "--json").stdout.split("\n")
        if x
    ]
    assert found[-1]["bits"] == max(moment["bits"] for moment in found[50:])


def test_watch_takes_the_hour_of_a_csv(tmp_path):
    times = [f"2026-03-{day:02} {hour:02}:00:00" for day in range(1, 29) for hour in range(24)]
    values = [0.2 + 0.6 * (time[11:13] >= "12") for time in times]
    values[-12:] = [0.2] * 12
    table = tmp_path / "v.csv"
    rows = zip(times, values, strict=True)
    table.write_text("time,value\n" + "".join(f"{t},{v}\n" for t, v in rows))
    line = ("watch", table, "--unit", "number", "--json", "--clock")
    found = [json.loads(x) for x in call(*line).stdout.split("\n") if x]
    assert len(found) == 28 * 24
    assert max(m["anomaly"] for m in found[100:-12]) < max(m["anomaly"] for m in found[-12:])


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (("--clock",), "", "watch needs --clock only with --unit number"),
        (("--unit", "number", "--low", 0, "--high", 1, "--clock"), "t,v\nx,1\n",
         "watch needs date and time in the first column for --clock, got 'x' in line 2"),
        (("--unit", "word"), "", "watch needs --unit to be one of char, line, number"),
        (("--unit", "number"), "1\n", "watch needs --low and --high for numbers of a pipe"),
        (("--unit", "number", "--low", 0, "--high", 1), "1\nnan\n", "got 'nan' in line 2"),
        (("--unit", "number", "--low", 0, "--high", 1), "1\nx\n", "got 'x' in line 2"),
        (("--unit", "number", "--low", 1, "--high", 0), "1\n", "finite low < high"),
        (("--low", 0), "", "only with --unit number"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, text, message):
    done = call("watch", "-", *arguments, text=text)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_numbers_of_any_type_and_size_fall_into_their_cells():
    cells = Watcher(0, 100_000)._cells
    assert cells(np.float16(50_000)) == cells(float(np.float16(50_000))) != cells(0.0)
    assert Watcher(0, 1e-300)._cells(1e10) == [n + 2 for n, _ in TILINGS]
    assert Watcher(-1.5e308, 1.5e308)._cells(-1.7e308) == Watcher(-1.5, 1.5)._cells(-1.7)
    with pytest.raises(RangeError, match="take needs a finite number, got 1000"):
        Watcher(0, 1).take(10**400)


def test_a_file_gives_its_own_letters_and_no_others(tmp_path, monkeypatch):
    """A form feed or a line separator ends no line; a long line and the last one get no end."""
    text = "a\x0cb\u2028c\r\nd" + "e" * 70_000
    (tmp_path / "t").write_text(text, newline="")
    letters = [symbol for symbol, _, _ in _symbols(str(tmp_path / "t"), "char")]
    assert "".join(letters) == text.replace("\r\n", "\n")
    pipe = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", pipe)
    assert [symbol for symbol, _, _ in _symbols("-", "char")] == letters
    assert len(list(_symbols(str(tmp_path / "t"), "line"))) == 3


def test_a_limit_that_is_missing_is_the_files(tmp_path):
    (tmp_path / "n.txt").write_text("1\n5\n3\n")
    for options, limits in (
        (["--low", "0"], (0, 5)), (["--high", "9"], (1, 9)), ([], (1, 5)), (["--low", "7"], (7, 8)),
    ):  # fmt: skip
        model = tmp_path / f"w{len(options)}{options[-1:]}"
        done = CliRunner().invoke(
            app, ["watch", str(tmp_path / "n.txt"), *options, "--unit", "number", "--model",
                  str(model), "--quiet"],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert Watcher.load(model).limits == limits
