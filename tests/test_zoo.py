"""The zoo's models are measured apart; whatever ends one of them ends no other."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from isospike.errors import InputError

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").exists():
    pytest.skip("the package is tested without its benchmarks", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import NAMED  # noqa: E402
from benchmarks.zoo.inputs import left, text  # noqa: E402
from benchmarks.zoo.measure import CRASH, REFUSED, UNBUILT, WORKS, measure  # noqa: E402
from benchmarks.zoo.registry import ENTRIES, Entry, make, named  # noqa: E402


class Perceptron(nn.Module):
    """Reads ``x``; what it does with it is given."""

    def __init__(self, then=lambda y: y):
        super().__init__()
        self.first, self.second, self.then = nn.Linear(8, 8), nn.Linear(8, 4), then

    def forward(self, x):
        return self.second(self.then(self.first(x).relu()))


def entry(then=lambda y: y):
    def inputs(rows, generator):
        return {"x": torch.randn(rows, 5, 8, generator=generator)}

    return Entry("perceptron", "plain", lambda: Perceptron(then), inputs)


def test_a_model_is_found_by_a_pattern_in_any_case():
    import benchmarks.zoo.models  # noqa: F401

    assert [e.name for e in named(["bert seq*", "LLAMA"])] == ["BERT seq-cls", "Llama"]
    with pytest.raises(InputError, match="got 'no such'"):
        named(["no such"])


def test_a_model_is_the_same_each_time_and_nothing_in_it_is_0_or_1():
    one, two = make(entry()), make(entry())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.isin(a, torch.tensor([0.0, 1.0])).any()


def test_padding_is_on_the_right_or_on_the_left_and_marked():
    right, leftward = (f(6, torch.Generator().manual_seed(0)) for f in (text, left))
    assert right["attention_mask"].sum(1).max() == 12
    assert right["attention_mask"].sum(1).min() == 4
    assert torch.equal(right["input_ids"] > 0, right["attention_mask"].bool())
    assert bool(right["attention_mask"][:, 0].all())
    assert bool(leftward["attention_mask"][:, -1].all())


def test_an_outcome_says_where_a_model_ended():
    def crash(y):
        if y.shape[0] > 10:  # not when the float model is tried
            raise ValueError("too many rows")
        return y

    def broken(y):
        raise ValueError("never runs")

    assert measure(entry(broken)).outcome == UNBUILT
    found = measure(entry(crash))
    assert (found.outcome, found.message) == (CRASH, "ValueError: too many rows")
    assert "then" in found.place or "crash" in found.place
    found = measure(entry(lambda y: torch.matmul(y, y.transpose(1, 2)) @ y))
    assert found.outcome in (WORKS, REFUSED, "partly")
    assert found.error is not None or "port needs" in found.message


def test_a_model_without_a_configuration_ports_but_is_not_saved():
    found = measure(entry())
    assert found.error is not None
    assert found.error < 0.05
    assert (found.outcome, found.stage) in (("partly", "save"), (WORKS, ""))
    assert found.family == "Perceptron"


@pytest.mark.slow  # a second process imports torch and transformers
def test_a_model_that_hangs_or_kills_its_process_ends_no_other(monkeypatch):
    from benchmarks.zoo import pool

    monkeypatch.setattr(pool, "_child", _child)
    monkeypatch.setattr(pool, "PATIENCE", 8.0)
    entries = [
        Entry(n, "plain", entry().build, text) for n in ("hangs", "works on", "dies", "answers")
    ]
    found = pool.measure_all(entries, limit=2.0)
    assert [(f.name, f.outcome) for f in found] == [
        ("hangs", "timeout"), ("works on", "timeout"), ("dies", "crash"), ("answers", "works"),
    ]  # fmt: skip
    assert found[2].message == "the process ended with 3"


def _child(name, connection, limit):
    import resource

    from benchmarks.zoo.measure import Outcome

    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + int(limit), resource.RLIM_INFINITY))
    if name == "hangs":
        time.sleep(100)
    while name == "works on":
        pass
    if name == "dies":
        os._exit(3)
    connection.send(Outcome(name, "plain", "", "works"))


FAST = ("nn.MultiheadAttention", "MPNet")
NEEDS = {"timm ViT": "timm", "SentenceTransformer in a wrapper": "sentence_transformers"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMED]
)
def test_a_model_that_must_be_ported_keeps_all_that_a_port_promises(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    import benchmarks.zoo.models  # noqa: F401

    found = measure(ENTRIES[name])
    assert (found.outcome, found.message) == (WORKS, "")
