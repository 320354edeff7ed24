"""A sequence machine on disk, and how much memory it takes."""

import json
import os
import subprocess
import sys

import pytest
from machines import (
    CONTEXTS,
    LETTERS,
    TEXT,
    content,
    each_context,
    followed,
    one_by_one,
    refused,
    rewritten,
    small,
)
from safetensors.numpy import save as to_bytes

from isospike.errors import InputError
from isospike.memory import (
    Backoff,
    SequenceMachine,
    Store,
)
from isospike.memory.contexts import MachineSettings
from isospike.report.files import write_file


@each_context
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"store": Store(rule="decay", data=(11, 256), locations=1024)},
        {"grow": True, "confidence": 0.7},
    ],
)
def test_a_loaded_machine_goes_on_as_the_saved_one(tmp_path, context, more):
    machine = small(context=context, seed=4, **more)
    machine.learn_sequence(TEXT * 3)
    machine.save(tmp_path / "deep" / "m")
    loaded = SequenceMachine.load(str(tmp_path / "deep" / "m"))
    assert os.listdir(tmp_path / "deep") == ["m"]
    assert loaded.symbols == machine.symbols
    assert loaded.predict(30) == machine.predict(30), "it stands where the saved one stood"
    other = TEXT[::-1] + ("ABC" if machine.settings.grow else "")
    assert one_by_one(loaded, other) == one_by_one(machine, other)
    assert content(loaded) == content(machine)
    assert loaded.generate("the q", 30) == machine.generate("the q", 30)
    assert followed(loaded, TEXT) == followed(machine, TEXT)


@pytest.mark.parametrize("context", [*CONTEXTS.values(), Backoff(depth=3, synapses=64)])
@pytest.mark.parametrize("data", [None, (3, 20)])
def test_settings_survive_json(context, data):
    store = None if isinstance(context, Backoff) else Store(rule="max", data=data, alpha=0.5)
    settings = MachineSettings(context=context, store=store, confidence=0.25, seed=2**61)
    assert MachineSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_symbols_keep_their_type_in_a_file(tmp_path):
    symbols = ["1", 1, -(2**70), "", "é\n\ud800", "\0"]
    machine = small(symbols)
    machine.save(tmp_path / "m")
    assert SequenceMachine.load(tmp_path / "m").symbols == symbols


@pytest.fixture(scope="module")
def saved():
    machine = small()
    machine.learn_sequence(TEXT)
    return content(machine)


@pytest.mark.parametrize("share", [0, 1, 7, 8, 9, 200, 0.1, 0.5, 0.9, -8, -1])
def test_a_truncated_file_is_refused(tmp_path, saved, share):
    length = int(share * len(saved)) if isinstance(share, float) else share % len(saved)
    (tmp_path / "m").write_bytes(saved[:length])
    refused(tmp_path / "m", "cut short")


@pytest.mark.parametrize("text", ["", "short", "A text that is no machine.\n" * 100, "{}"])
def test_a_text_is_refused(tmp_path, text):
    (tmp_path / "m").write_text(text)
    refused(tmp_path / "m", "sequence machine that isospike saved")


def test_a_path_without_a_file_is_refused(tmp_path):
    refused(tmp_path / "none", "load needs a machine's file")
    refused(tmp_path, "load needs a machine's file")


@pytest.mark.parametrize("where", [-1, -5000, 600])
def test_a_file_with_a_changed_byte_is_refused(tmp_path, saved, where):
    changed = bytearray(saved)
    changed[where] ^= 1
    (tmp_path / "m").write_bytes(changed)
    refused(tmp_path / "m", "load needs a sequence machine that isospike saved")


@pytest.mark.parametrize("number", [0, 1, 2, 3, "4", None])
def test_another_format_is_refused(tmp_path, saved, number):
    path = rewritten(saved, tmp_path / "m", lambda about, _: about.update(format=number))
    refused(path, f"needs format 4, got {number!r} in .* Learn the sequences again")


def test_tensors_of_another_file_are_refused(tmp_path, saved):
    (tmp_path / "m").write_bytes(to_bytes({}, metadata={"format": "pt"}))
    refused(tmp_path / "m", "sequence machine that isospike saved")
    (tmp_path / "m").write_bytes(to_bytes({}, metadata={"isospike": "{"}))
    refused(tmp_path / "m", "sequence machine that isospike saved")
    path = rewritten(
        saved, tmp_path / "m", lambda _, t: t.update(counters=t["counters"][:5].copy())
    )
    refused(path, "no counters of")


PARTS = {
    "no counters": lambda _, tensors: tensors.pop("counters"),
    "no right": lambda _, tensors: tensors.pop("right"),
    "short right": lambda _, tensors: tensors.update(right=tensors["right"][:3].copy()),
    "no settings": lambda about, _: about.pop("settings"),
    "no symbols": lambda about, _: about.pop("symbols"),
    "another setting": lambda about, _: about["settings"].update(colour=1),
    "another context": lambda about, _: about["settings"]["context"].update(name="deep"),
    "a setting of another context": lambda about, _: about["settings"]["context"].update(depth=1),
    "a number out of range": lambda about, _: about["settings"].update(confidence=2.0),
}


TENSORS = ("no counters", "no right", "short right")


@pytest.mark.parametrize("part", TENSORS)
def test_a_file_with_tensors_amiss_is_refused(tmp_path, saved, part):
    refused(rewritten(saved, tmp_path / "m", PARTS[part]), "load needs")


@pytest.mark.parametrize("part", [name for name in PARTS if name not in TENSORS])
def test_a_file_with_metadata_amiss_is_refused(tmp_path, saved, part):
    refused(rewritten(saved, tmp_path / "m", PARTS[part]), "load needs")


@pytest.mark.parametrize("symbol", [("a", 1), 2.5, True, b"a", frozenset()])
def test_symbols_that_a_file_cannot_hold_are_refused_and_the_old_file_stays(
    tmp_path, saved, symbol
):
    (tmp_path / "m").write_bytes(saved)
    machine = small(["a", symbol])
    with pytest.raises(InputError, match="strings or integers"):
        machine.save(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == saved


def test_a_write_that_fails_is_one_line_and_leaves_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    (tmp_path / "file").write_text("old")
    for place in (tmp_path / "folder", tmp_path / "file" / "m"):
        with pytest.raises(InputError, match=r"^save needs (to write|a file),? [^\n]*$"):
            small("ab").save(place)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_text() == "new"


KILL = f"""
import os, random, signal, sys, time
from isospike.memory import SequenceMachine, Store
path = sys.argv[1]
store = Store(locations=4096)
machines = [SequenceMachine({LETTERS!r}, store=store, seed=s) for s in (1, 2)]
for m in machines:
    m.learn_sequence({TEXT!r})
machines[0].save(path)
draw = random.Random(0)
for _ in range(20):
    child = os.fork()
    if child == 0:
        while True:
            for m in machines:
                m.save(path)
    time.sleep(draw.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child saved till it was killed"
    m = SequenceMachine.load(path)
    m.reset_context()
    assert m.settings.seed in (1, 2) and m.follow_sequence({TEXT!r}).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_file_survives_a_kill_at_any_moment(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILL, str(tmp_path / "m")]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    small("ab").save(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


# Memory.


GROWTH = """
import random, resource, sys
from isospike.memory import Combined, SequenceMachine, Store
context, store = Combined(code=(5, 64), context_code=(5, 64)), Store(locations=1024, active=5)
m = SequenceMachine(range(50), context=context, store=store)
draw = random.Random(0)
peaks = []
for first in range(0, int(sys.argv[1]) + 1, 10_000):
    m.learn_sequence(draw.choices(range(50), k=10_000))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[-1] - peaks[0]) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize("length", [200_000, pytest.param(10**6, marks=pytest.mark.slow)])
def test_a_stream_needs_constant_memory(length):
    command = [sys.executable, "-c", GROWTH, str(length)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20e6
