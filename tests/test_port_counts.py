"""What a port counts and reports."""

import importlib
import importlib.metadata

import models
import pytest
import torch
from ports import ARCHITECTURES, float_model, ported, quick
from torch import nn

import isospike
from isospike.codes import CODES, PhaseCode
from isospike.dimension import EffectiveDimension
from isospike.porting import Target
from isospike.porting.dimensions import site_dimensions
from isospike.porting.measure import Meter, compare
from isospike.porting.per_token import site_reports
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Watcher, run_of
from isospike.porting.sites import Site
from isospike.progress import shown_by

# Spikes and counts.


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("code", "steps"), [("signed-digit", 8), ("phase", 6)])
def test_every_neuron_spikes_at_most_once_per_step_and_spikes_are_binary(name, code, steps):
    model = ported(name, code, steps).model
    seen = {}

    def watch(site, x):
        x = x.movedim(-1, 1) if site.kind == "conv" else x
        spikes = site.code.encode_integers(site.read(x).value)
        assert torch.equal(models.train(site, x).to(spikes.dtype), spikes)
        assert ((spikes == 0) | (spikes == 1)).all()
        lead = (site.code.steps, 2) if site.code.neurons == 2 else (steps,)
        assert spikes.shape == (*lead, *x.shape)
        if site.code.neurons == 2:
            assert (spikes.sum(1) <= 1).all()
        seen[site.name] = seen.get(site.name, 0) + int(spikes.sum())

    with run_of(model).watching(OnSite(watch)):
        models.run(model, models.batch(name, seed=4), "stepped")
    assert seen.keys() == {s.name for s in Ported.of(model).sites}
    assert all(count > 0 for count in seen.values())


def test_products_that_read_one_tensor_share_one_site():
    result = ported("bert")
    layer = result.model.encoder.layer[0].attention.self
    assert layer.query.site is layer.key.site is layer.value.site
    assert layer.query.site.fan_out == 3 * 24
    names = [s.name for s in result.report.sites]
    assert len(set(names)) == len(names)
    prefix = "encoder.layer.0.attention.self"
    assert [n for n in names if n.startswith(prefix)] == [
        f"{prefix}.query", f"{prefix}:query", f"{prefix}:key", f"{prefix}:value",
        f"{prefix}:probability",
    ]  # fmt: skip
    observed = []
    with run_of(result.model).watching(OnSite(lambda site, x: observed.append(site.name))):
        models.run(result.model, models.batch("bert"))
    assert sorted(observed) == sorted(names)


def measured(model, port, batches):
    """Comparison and what passed the sites."""
    meter = Meter(Ported.of(port).run, dimension=False)
    return compare(model, Ported.of(port), batches, meter), meter.sites


class OnSite(Watcher):
    """Calls a function with each site and its input."""

    def __init__(self, look):
        self.look = look

    def on_site(self, site, x, **_):
        self.look(site, x)


class WritesInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x * 1
        x.add_(self.before(x))
        return self.after(x)


def test_a_tensor_written_to_between_two_products_is_two_sites():
    model = models.seeded(WritesInPlace)
    generator = torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(256, 8, generator=generator)}
    result = isospike.port(model, [inputs], steps=16, evaluation=[inputs])
    assert [s.name for s in result.report.sites] == ["before", "after"]
    assert result.report.error < 1e-3


def bert_macs(lengths, hidden=24, inner=40, layers=2):
    """By hand: four square products, two of the feed-forward, q k and p v, and one pooler a row."""
    per_token = layers * (4 * hidden * hidden + 2 * hidden * inner)
    attention = layers * 2 * hidden * sum(n * n for n in lengths)
    return per_token * sum(lengths) + attention + hidden * hidden * len(lengths)


def test_multiplications_of_padded_bert_equal_the_count_by_hand():
    held = models.batches("bert", rows=192, held=16)[1]
    lengths = held["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 2
    counts = ported("bert").report.counts
    assert counts.macs * sum(lengths) == pytest.approx(bert_macs(lengths), rel=1e-9)
    assert counts.tokens_per_input == sum(lengths) / 16


def test_multiplications_of_an_unpadded_batch_equal_what_the_audit_saw():
    inputs = models.batch("bert", rows=4, padded=False)
    seen = sum(p.macs for p in isospike.audit(float_model("bert"), inputs).products)
    assert seen == bert_macs([models.LONGEST] * 4)
    comparison, sums = measured(float_model("bert"), ported("bert").model, [inputs])
    reports = site_reports(Ported.of(ported("bert").model), sums, comparison.tokens, {})
    assert sum(s.macs for s in reports) * comparison.tokens == pytest.approx(seen, rel=1e-9)


@pytest.mark.parametrize("code", ["signed-digit", "phase"])
def test_synaptic_operations_are_the_additions_that_the_spikes_cause(code):
    steps = {"signed-digit": 8, "phase": 6}[code]
    model = ported("bert", code, steps).model
    inputs = models.batch("bert", rows=4, seed=6, padded=False)
    comparison, sums = measured(float_model("bert"), model, [inputs])
    trains = {}
    watcher = OnSite(lambda site, x: trains.update({site.name: models.train(site, x)}))
    with run_of(model).watching(watcher):
        models.run(model, inputs, "stepped")
    for name in ("encoder.layer.1.intermediate.dense", "encoder.layer.0.attention.self.query"):
        readers = [
            m for m in model.modules() if isinstance(m, SpikingProduct) and m.site.name == name
        ]
        # Each spike of input i reaches every row of column i of every weight that reads it.
        spikes = int(trains[name].long().sum())
        assert sums[name].spikes == spikes
        assert sums[name].synaptic_ops == sum(spikes * len(r.weight) for r in readers)
    report = next(
        s
        for s in site_reports(Ported.of(model), sums, comparison.tokens, {})
        if s.name == "encoder.layer.1.intermediate.dense"
    )
    assert report.synaptic_ops == pytest.approx(report.spikes * 40)
    assert report.neurons == 24 * (2 if code == "signed-digit" else 1)
    assert report.neuron_updates == report.neurons * steps


def test_spikes_of_attention_reach_only_the_keys_a_mask_leaves():
    inputs = models.batch("gpt2", rows=4, padded=False)
    _, sums = measured(float_model("gpt2"), ported("gpt2").model, [inputs])
    n = models.LONGEST
    live = 4 * n * (n + 1) / 2  # causal
    assert sums["transformer.h.0.attn:query"].macs == live * 24
    assert sums["transformer.h.0.attn:probability"].macs == live * 24
    assert sums["transformer.h.0.attn:probability"].values == live * 3
    key = sums["transformer.h.0.attn:key"]
    assert key.synaptic_ops == 2 * key.spikes


# The report.


CURVE = {
    "signed-digit": (2, 5),
    "phase": (2, 5),
    "half-octave": (3, 9),
    "rate": (4, 16),
    "bernoulli": (4, 16),
    "latency": (4, 16),
}


@pytest.fixture(scope="module")
def full():
    """A report with everything in it, and what progress was told."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        for code, steps in CURVE.items():
            patch.setattr(CODES[code], "sweep_steps", steps)
        model = models.make("bert")
        model.name_or_path = "tiny"
        with shown_by(lambda *now: told.append(now)):
            result = isospike.port(model, models.batches("bert"), steps=Target(0.2)).sweep(
                tuple(CURVE)
            )
    return result.labelled(Tokenizer()).report, told


class Tokenizer:
    """A word for every token: its number."""

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(map(str, ids)) if skip_special_tokens else "a"


def test_a_report_is_the_same_after_a_round_trip_through_json(full):
    report, _ = full
    text = report.to_json()
    assert isospike.porting.PortReport.from_json(text) == report
    assert "NaN" not in text
    assert "Infinity" not in text
    simple = ported("vit").report
    assert isospike.porting.PortReport.from_json(simple.to_json()) == simple


def test_the_curve_sweeps_the_codes_asked_for(full):
    report, _ = full
    points = [(p.code, p.steps) for p in report.curve]
    assert sorted(points) == sorted((code, t) for code, steps in CURVE.items() for t in steps)
    for code in CURVE:
        errors = [p.error for p in report.curve if p.code == code]
        assert errors[1] < errors[0]
        spikes = [p.spikes for p in report.curve if p.code == code]
        assert spikes[1] > spikes[0] or code == "latency"  # one spike whatever the steps


def test_the_report_says_what_was_measured(full):
    report, _ = full
    held = models.batches("bert")[1]
    assert report.model == "tiny"
    assert report.agreement is None
    assert 0.9 < report.cosine <= 1
    assert 0.9 < report.cosine_pooled <= 1
    assert report.held_out_tokens == int(held["attention_mask"].sum())
    assert report.spikes == pytest.approx(report.counts.spikes)
    assert report.synaptic_ops == pytest.approx(report.counts.synaptic_ops)
    versions = report.provenance.versions
    assert set(versions) == {"python", "isospike", "torch", "transformers"}
    assert versions["torch"] == importlib.metadata.version("torch")
    for site in report.sites:
        assert (site.pca95 is None) == (site.kind == "probability")
        assert site.pca95 is None or 1 <= site.pca95 <= 40
        assert site.participation is None or site.participation >= 1
        assert 0 <= site.error < 1


def test_the_raster_shows_the_unpadded_tokens_of_the_first_held_back_input(full):
    report, _ = full
    ids = models.batches("bert")[1]["input_ids"][0].tolist()
    assert report.raster.text == " ".join(map(str, ids))
    assert report.raster.tokens == ("a",) * models.LONGEST
    assert report.raster.site == "encoder.layer.0.attention.self.query"
    assert report.raster.neurons == 2 * 24
    token, step, neuron = (max(axis) for axis in zip(*report.raster.spikes, strict=True))
    assert token < models.LONGEST
    assert step < report.steps
    assert 24 <= neuron < 48  # OFF neurons spike too


def test_progress_is_told_from_0_to_the_total(full):
    _, told = full
    for what in {what for what, *_ in told}:
        done = [(done, total) for each, done, total in told if each == what]
        total = done[0][1]
        assert done == [(i, total) for i in range(total + 1)]


def test_a_model_is_copied_and_traced_once_however_many_ports_are_made(monkeypatch):
    home = importlib.import_module("isospike.porting.discover")
    traced, discovered = [], []
    trace, discover = home.trace, home.discover
    monkeypatch.setattr(home, "trace", lambda *a, **k: traced.append(1) or trace(*a, **k))
    monkeypatch.setattr(
        importlib.import_module("isospike.porting.port"),
        "discover",
        lambda *a: discovered.append(1) or discover(*a),
    )
    for code, steps in CURVE.items():
        monkeypatch.setattr(CODES[code], "sweep_steps", steps)
    result = quick(steps=Target(0.2)).sweep(("signed-digit", "phase"))
    result.sweep(("rate",))
    assert (len(discovered), len(traced)) == (1, 1)


def test_a_port_shares_no_memory_with_the_model_or_with_what_it_sweeps():
    model = float_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = quick(steps=4)
    curve = result.sweep(("phase",)).report.curve
    with torch.no_grad():
        for tensor in (*result.model.parameters(), *result.model.buffers()):
            tensor.zero_()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert result.sweep(("phase",)).report.curve == curve


def test_agreement_is_the_share_of_equal_best_logits():
    inputs = models.batches("gpt2", rows=192, held=16)[1]
    where = models.valid(inputs)
    expected = models.run(float_model("gpt2"), inputs)[where].argmax(-1)
    got = models.run(ported("gpt2").model, inputs)[where].argmax(-1)
    share = (expected == got).double().mean().item()
    assert ported("gpt2").report.agreement == pytest.approx(share)


def test_error_and_cosine_are_those_of_the_unpadded_held_back_tokens():
    inputs = models.batches("bert", rows=192, held=16)[1]
    where = models.valid(inputs)
    expected = models.run(float_model("bert"), inputs)[where].double()
    got = models.run(ported("bert").model, inputs)[where].double()
    report = ported("bert").report
    assert report.error == pytest.approx(models.relative(expected, got))
    cosine = torch.cosine_similarity(expected, got, dim=-1).mean().item()
    assert report.cosine == pytest.approx(cosine)


# ---------------------------------------------------------- effective dimension


def test_site_dimensions_are_those_of_the_float_activations():
    model, inputs = models.make("bert"), models.batch("bert", 24)
    found, constant = site_dimensions(
        model, [inputs], lambda: EffectiveDimension(replicates=2, neighbours=4)
    )
    assert constant == ()
    seen = {}
    name = "encoder.layer.1.intermediate.dense"
    model.get_submodule(name).register_forward_hook(lambda _, x, y: seen.update(x=x[0]))
    models.run(model, inputs)
    rows = seen["x"][models.valid(inputs)]
    kind, site = found[name]
    assert (kind, site.rows, site.width) == ("linear", len(rows), 24)
    s = torch.linalg.svdvals(rows - rows.mean(0)).square()
    assert site.participation.value == pytest.approx(
        float(s.sum() ** 2 / s.square().sum()), rel=1e-4
    )
    # One site for query, key and value products: they read the same tensor.
    assert "encoder.layer.0.attention.self.query" in found
    assert "encoder.layer.0.attention.self.key" not in found
    assert found["encoder.layer.0.attention.self:key"][0] == "key"


def test_site_dimensions_name_the_site_of_a_mistake():
    model, inputs = models.make("bert"), models.batch("bert")
    with torch.no_grad():
        model.encoder.layer[0].output.LayerNorm.weight[3] = float("nan")
    with pytest.raises(
        isospike.RangeError, match=r"at encoder\.layer\.1.*got nan in row 0, column 3"
    ):
        site_dimensions(model, [inputs], EffectiveDimension)
    with pytest.raises(isospike.UnsupportedError, match="a model with matrix products, got a Tanh"):
        site_dimensions(torch.nn.Tanh(), [{"input": torch.ones(2, 3)}], EffectiveDimension)


def test_a_shared_site_keeps_long_trains_while_another_site_encodes():
    first, second = (Site(name, "linear", PhaseCode(20), ()) for name in "ab")
    first.shared = True
    x = torch.rand(3, 4)
    trains = first.trains(x).value
    expected = trains.clone()
    second.trains(torch.rand(3, 4))
    assert torch.equal(trains, expected)
    assert first.trains(x).value is trains
