"""Allocation: reverse water-filling by hand, and in ports of small models."""

import math

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isospike
from isospike.codes import PhaseCode, SignedDigitCode
from isospike.codes.law import shortest_code, water_level
from isospike.errors import RangeError, UnsupportedError
from isospike.porting import Target
from isospike.porting.discover import discover
from isospike.porting.ported import Ported
from isospike.porting.run import Watcher
from isospike.porting.sensitivity import measure_channels
from isospike.porting.water_filling import Channels, water_fill
from isospike.theory.laws import rate_distortion

positive = st.floats(0.01, 100)


def channels(sensitivity, variance, values=1.0):
    return Channels(torch.tensor(sensitivity), torch.tensor(variance), values)


def test_two_channels_by_hand():
    # S = 4 and 1, far above the water: each adds e^2 / 2 = S a^2 / 12.
    found = water_fill({"x": channels([4.0, 1.0], [9.0, 9.0])}, 0.1)
    expected = torch.tensor([math.sqrt(12 * 0.005 / 4), math.sqrt(12 * 0.005)])
    torch.testing.assert_close(found.amplitude["x"], expected)
    assert found.error == pytest.approx(0.1)
    assert found.share == {"x": pytest.approx(1.0)}


def test_a_channel_under_water_adds_what_it_has():
    # The second holds .001 of .01; the first takes the other .009.
    found = water_fill({"a": channels([1.0], [9.0]), "b": channels([1.0], [0.001])}, 0.1)
    assert found.share["b"] == pytest.approx(0.1)
    assert float(found.amplitude["a"]) == pytest.approx(math.sqrt(12 * 0.009))
    assert float(found.amplitude["b"]) ** 2 / 12 > 0.001  # coarser than its spread: silent


@given(
    st.lists(st.tuples(positive, positive), min_size=2, max_size=6),
    st.floats(0.01, 0.9),
    st.integers(0, 5),
    st.integers(0, 5),
    st.floats(0.5, 2),
)
def test_no_exchange_between_two_channels_is_cheaper(pairs, part, i, j, factor):
    i, j = i % len(pairs), j % len(pairs)
    s = torch.tensor([p[0] for p in pairs], dtype=torch.float64)
    variance = torch.tensor([p[1] for p in pairs], dtype=torch.float64)
    error = math.sqrt(part * float((s * variance).min()))  # nobody under water
    a = water_fill({"x": Channels(s, variance, 1.0)}, error).amplitude["x"]
    other = a.clone()
    other[i] *= factor
    room = (s * a**2).sum() - (s * other**2).sum() + s[j] * other[j] ** 2
    if i == j or room <= 0:
        return
    other[j] = (room / s[j]).sqrt()  # the same error
    assert float(-other.log2().sum()) >= float(-a.log2().sum()) - 1e-9


@given(st.lists(positive, min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_the_water_level_holds_the_total(powers, part):
    p = torch.tensor(powers, dtype=torch.float64)
    weights = torch.arange(1, len(p) + 1, dtype=torch.float64)
    total = part * float(p.sum())
    level = water_level(p, total, weights)
    assert float(torch.minimum(p, weights * level).sum()) == pytest.approx(total)
    assert rate_distortion(p, total) >= 0


def test_the_fewest_steps_reach_the_widest_channel():
    span, amplitude = torch.tensor([1.0, 7.0]), torch.tensor([0.5, 1.0])
    assert shortest_code(SignedDigitCode(8), span, amplitude) == SignedDigitCode(3)
    assert shortest_code(SignedDigitCode(8), span * 1.01, amplitude) == SignedDigitCode(4)
    assert shortest_code(PhaseCode(2), span, amplitude) == PhaseCode(2)


def opened(name):
    batch = models.batch(name)
    return discover(models.make(name), batch).template, batch


class Noise(Watcher):
    """Adds noise at one site, the same to all that read it."""

    def __init__(self, name, seed, spread):
        self.name, self.spread, self.noisy = name, spread, None
        self.draw = torch.Generator().manual_seed(seed)

    sees_probabilities = True

    def on_input(self, site, x):
        if site.name != self.name:
            return x
        if self.noisy is None:
            self.noisy = x + torch.randn(x.shape, generator=self.draw) * self.spread * (x != 0)
        return self.noisy


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama"])
def test_sensitivities_predict_what_small_noise_does(name):
    ported, batch = opened(name)
    found = measure_channels(ported, [batch] * 4)
    assert list(found) == [site.name for site in ported.sites if site.name in found]
    keep = models.valid(batch)
    expected = models.run(ported.model, batch)[keep]
    for chosen in [n for n in found if float(found[n].sensitivity.sum()) > 0][::5]:
        spread = 1e-3 / found[chosen].sensitivity.sum().sqrt()
        errors = []
        for seed in range(4):
            with ported.run.watching(Noise(chosen, seed, spread)):
                errors.append(models.relative(expected, models.run(ported.model, batch)[keep]))
        mean = math.sqrt(sum(e**2 for e in errors) / len(errors))
        assert mean == pytest.approx(1e-3, rel=0.4), chosen


class Parts(torch.nn.Module):
    """Multiplies its rows with themselves, some rows at a time, as an expert does its tokens."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.layer = sizes, torch.nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x)
        return torch.cat([p @ p.mT @ p for p in y.split(self.sizes)])


@pytest.mark.parametrize("sizes", [[2, 3], [1, 1, 3]])
def test_calls_of_one_site_have_the_sensitivity_of_one_call_of_all_rows(sizes):
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for each in ([5], sizes):
        model = models.seeded(lambda each=each: Parts(each)).eval()
        found.append(measure_channels(discover(model, {"x": x}).template, [{"x": x}]))
    whole, parts = found
    assert list(parts) == list(whole)
    for name, channel in whole.items():
        torch.testing.assert_close(parts[name].sensitivity, channel.sensitivity)
        torch.testing.assert_close(parts[name].variance, channel.variance)
        assert parts[name].values == channel.values


@pytest.mark.parametrize("code", ["signed-digit", "half-octave", "phase"])
def test_an_allocated_port_reaches_its_error_with_fewer_spikes(code):
    batches = models.batches("bert", rows=64, held=32)
    model = models.make("bert")
    report = isospike.port(model, batches, code=code, steps=Target(0.05, per_channel=True)).report
    assert report.reached
    assert 0.03 < report.error <= 0.05
    assert 1 / 2 < report.error / report.error_predicted < 2
    assert sum(s.share for s in report.sites if s.share is not None) == pytest.approx(1.0)
    assert report.law is None
    if code == "signed-digit":
        same = isospike.port(model, batches, code=code, steps=Target(0.05)).report
        assert report.spikes < 0.9 * same.spikes
    assert isospike.porting.PortReport.from_json(report.to_json()) == report


def test_what_the_first_output_does_not_depend_on_is_not_lost():
    model, batches = models.make("bert"), models.batches("bert")
    result = isospike.port(model, batches, steps=Target(0.1, per_channel=True))
    pooler = next(s for s in result.report.sites if s.name == "pooler.dense")
    assert pooler.steps == max(s.steps for s in result.report.sites)
    with torch.no_grad():
        found = result.model(**batches[0]).pooler_output
        assert models.relative(model(**batches[0]).pooler_output, found) < 0.2


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_an_allocated_port_steps_as_it_collapses_and_keeps_its_steps(name, tmp_path):
    result = isospike.port(
        models.make(name), models.batches(name), steps=Target(0.1, per_channel=True)
    )
    inputs = models.batch(name, seed=9)
    collapsed = models.run(result.model, inputs, "collapsed")
    if max(s.steps for s in result.report.sites) <= 8:
        assert torch.equal(models.run(result.model, inputs, "stepped"), collapsed)
    loaded = isospike.load(result.save(tmp_path / name))
    assert torch.equal(models.run(loaded, inputs), collapsed)
    steps = {site.name: site.code.steps for site in Ported.of(loaded).sites}
    assert {s.name: s.steps for s in result.report.sites}.items() <= steps.items()
    assert len(set(steps.values())) > 1


def test_what_cannot_be_allocated_is_named():
    target = Target(0.1, per_channel=True)
    with pytest.raises(UnsupportedError, match="code of digits"):
        isospike.port(models.make("bert"), models.batches("bert"), code="rate", steps=target)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: water_fill({}, 0.1), "at least one site, got none"),
        (lambda: water_fill({"x": channels([1.0], [1.0])}, 0.0), "error above 0 and finite, got 0"),
        (lambda: water_fill({"x": channels([math.nan], [1.0])}, 0.1), "got others at x"),
        (lambda: water_fill({"x": channels([1.0], [-1.0])}, 0.1), "got others at x"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(RangeError, match=says):
        call()
