"""What of a model would run on spikes, before anything is calibrated."""

import json

import models
import pytest
import torch
from folders import call, files, quiet_transformers, said  # noqa: F401 - a fixture
from torch import nn

import isospike
from isospike.porting.check import CheckReport


@pytest.mark.parametrize(
    "name", ["bert", "llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit", "gpt2"))]
)
def test_what_is_on_spikes_is_what_a_port_has(name):
    model = models.make(name)
    report = isospike.check(model)
    assert report.outcome == "spikes"
    assert report.verdict().endswith("can run on spikes.")
    port = isospike.port(model, [models.batch(name)], steps=4, functions="spiking")
    linear = {s.name for s in port.report.sites if s.kind in ("linear", "conv")}
    products = {m.name for m in report.modules if m.kind == "weighted product"}
    assert linear <= products
    queries = {s.name.removesuffix(":query") for s in port.report.sites if s.kind == "query"}
    assert {m.name for m in report.modules if m.kind == "attention"} == queries
    circuits = {c.name for c in port.report.circuits if c.kind in ("activation", "normalisation")}
    assert circuits <= {m.name for m in report.modules}


def test_the_model_is_not_changed():
    model = models.make("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    isospike.check(model)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Mixed(nn.Module):
    """Two products that can be ported, one that cannot, and one that is never reached."""

    def __init__(self, outside):
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(6, 6) for _ in range(3))
        self.outside = nn.LSTM(6, 6) if outside else None

    def forward(self, x):
        y = self.second(self.first(x))
        if not self.outside:
            return y
        packed = nn.utils.rnn.pack_padded_sequence(y, [len(y)] * y.shape[1])
        return nn.utils.rnn.pad_packed_sequence(self.outside(packed)[0])[0]


def test_a_product_that_no_function_computes_is_refused_by_name_and_the_others_are_listed():
    report = isospike.check(Mixed(True), {"x": torch.randn(2, 4, 6)})
    assert report.outcome == "refused"
    refused, *others = report.modules
    assert (refused.name, refused.kind, refused.outcome) == ("outside", "LSTM", "refused")
    assert refused.reason.startswith("Products that functions of torch compute")
    assert {m.name: m.outcome for m in others} == {
        "first": "spikes", "second": "spikes", "unused": "float"
    }  # fmt: skip
    assert report.verdict() == "Mixed cannot be ported: outside is refused."


def test_what_the_sample_does_not_reach_stays_in_float():
    report = isospike.check(Mixed(False), {"x": torch.randn(2, 4, 6)}, name="mine")
    assert report.outcome == "float"
    assert report.verdict() == "mine can be ported; 1 of its 3 modules stay in float."


def test_a_function_without_a_circuit_stays_in_float():
    model = nn.Sequential(nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 6))
    report = isospike.check(model, {"input": torch.randn(2, 6)})
    (left,) = (m for m in report.modules if m.outcome == "float")
    assert (left.name, left.kind) == ("1", "ELU")
    assert left.reason == "No circuit computes elu: in float with every port."


def test_a_module_that_runs_twice_is_listed_for_each_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(self.layer(x))

    report = isospike.check(Twice(), {"x": torch.randn(2, 6)})
    assert {m.name: m.outcome for m in report.modules} == {
        "layer:weight": "spikes", "layer:weight.use1": "spikes"
    }  # fmt: skip


def test_a_model_of_another_kind_needs_a_sample():
    with pytest.raises(
        isospike.InputError, match="check needs a sample batch for a Mixed, got none"
    ):
        isospike.check(Mixed(False))


def test_a_check_is_a_report(tmp_path):
    report = isospike.check(models.make("bert"))
    assert CheckReport.from_json(report.to_json()) == report
    names = {str(name) for name in files(report.save(tmp_path / "out"))}
    assert names == {"report.html", "report.json", "kinds.csv", "modules.csv", "isospike.json"}


@pytest.mark.parametrize(("outcome", "status"), [("spikes", 0), ("float", 1), ("refused", 2)])
def test_the_exit_code_says_what_was_found(outcome, status, bert, monkeypatch):
    monkeypatch.setattr(CheckReport, "outcome", outcome)
    assert call("check", bert, "--json").exit_code == status


def test_check_prints_kinds_and_what_is_left(bert, gpt2, tmp_path):
    done = call("check", gpt2, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "weighted product" in done.stdout
    assert done.stderr.splitlines() == ["load gpt2", f"saved: {tmp_path / 'out' / 'report.html'}"]
    done = call("check", bert, "--json")
    assert json.loads(done.stdout)["model"] == "bert"
    assert "check needs an existing folder" in said(call("check", "./nowhere"))
