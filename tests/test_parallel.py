"""Ports made in two processes of torch.distributed, beside those of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").exists():
    pytest.skip("the package is tested without its benchmarks", allow_module_level=True)
PROGRAM = """
import sys
import torch
import isospike
from benchmarks.models import random_batches, small_bert

torch.set_num_threads(1)
if sys.argv[2] == "two":
    store = f"file://{sys.argv[1]}/store"
    rank = int(sys.argv[4])
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
batches = random_batches(5, 3, 7)
batches[1]["attention_mask"][:, 4:] = 0
if sys.argv[3] == "broken" and torch.distributed.get_rank() == 1:
    batches[1] = {"input_ids": batches[1]["input_ids"] + 10_000}
steps = isospike.Target(0.02) if sys.argv[3] == "target" else 6
port = isospike.port(small_bert(), batches[:3], steps=steps, evaluation=batches[3:])
rank = torch.distributed.get_rank() if sys.argv[2] == "two" else 0
report = port.report
torch.save({
    "state": port.model.state_dict(), "sites": [(s.usual_outside, s.code.name, s.code.steps)
    for s in isospike.porting.ported.Ported.of(port.model).sites],
    "texts": [(t.error, t.median, t.worst) for t in report.texts], "steps": report.steps,
    "spikes": report.counts.spikes, "dimension": [s.participation or 0.0 for s in report.sites],
}, f"{sys.argv[1]}/{sys.argv[2]}-{rank}.pt")
"""


def ported_here(folder, case, monkeypatch):
    """Run the program in this process; what it saved."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["program.py", str(folder), "one", case])
    threads = torch.get_num_threads()
    exec(PROGRAM, {})
    torch.set_num_threads(threads)
    return torch.load(folder / "one-0.pt")


def ported_by_two(folder, case):
    """Run the program in two processes; what they saved, and what each said and ended with."""
    script = folder / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), "two", case, rank],
            cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **paths},
        )
        for rank in "01"
    ]  # fmt: skip
    ends = [(process.communicate()[1], process.returncode) for process in running]
    return [torch.load(path) for path in sorted(folder.glob("two-*.pt"))], ends


@pytest.mark.parametrize("case", ["steps", pytest.param("target", marks=pytest.mark.slow)])
def test_two_processes_make_the_port_of_one_bit_for_bit(tmp_path, case, monkeypatch):
    one = ported_here(tmp_path, case, monkeypatch)
    two, ends = ported_by_two(tmp_path, case)
    assert [code for _, code in ends] == [0, 0], ends
    assert len(two) == 2
    for each in two:
        assert each["state"].keys() == one["state"].keys()
        for name, value in one["state"].items():
            assert torch.equal(each["state"][name], value), name
        assert each["sites"] == one["sites"]
        assert each["texts"] == one["texts"]
        assert each["steps"] == one["steps"]
        assert each["spikes"] == pytest.approx(one["spikes"], rel=1e-12)
        assert each["dimension"] == pytest.approx(one["dimension"], rel=1e-9)


def test_what_fails_in_one_process_is_an_error_in_both(tmp_path):
    found, ends = ported_by_two(tmp_path, "broken")
    assert not found
    for said, code in ends:
        assert code
        assert "needs batches that the model takes" in said
    text = "an error in process 1 of 2. port needs batches that the model takes"
    assert text in ends[0][0]
