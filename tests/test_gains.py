"""Ranges that follow the input: scales, gains, and what they hold on inputs that were not seen."""

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isospike
from isospike.circuits.octaves import HIGHEST, LOWEST, count_octaves, shift_octaves
from isospike.codes import SignedDigitCode
from isospike.porting.gains import fit_scales
from isospike.porting.run import run_of
from isospike.porting.sites import MOST_SHARES, SHARES, Site

seeds = st.integers(0, 2**31)
CODE = SignedDigitCode(8)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def site_for(x, kind="linear", code=CODE, **attributes):
    channels = (x.shape[-1],) if kind == "linear" else (x.shape[1], 1, x.shape[-1])
    site = Site("x", kind, code, channels)
    site.follow(fit_scales(x, torch.ones(x.shape[1:])), torch.stack([x.amax(0), x.amin(0)]))
    for name, value in attributes.items():
        setattr(site, name, value)
    return site


def loss(x, weight, offset, scale):
    """(2) of gains.py without its normalisation: mean square gain times the noise of one step."""
    gain = ((x - offset).abs() / scale).amax(-1)
    return gain.square().mean() * (weight * scale).square().sum()


# ------------------------------------------------------------------------------------- scales


@given(seeds)
def test_the_scales_beat_those_of_the_site_and_of_each_channel(seed):
    spread = (2 * draw(24, seed=seed)).exp()
    x, weight = draw(400, 24, seed=seed + 1) * spread, draw(24, seed=seed + 2).exp()
    found = fit_scales(x, weight)
    widest = (x - found.offset).abs().amax(0)
    ours = loss(x, weight, found.offset, found.scale)
    for alpha in (0.0, 0.5, 1.0):
        other = widest**alpha * widest.max() ** (1 - alpha)
        assert ours <= 1.1 * loss(x, weight, found.offset, other)


def test_two_channels_by_hand():
    # Equal tokens on either channel alone: noise and gains are shared alike, so w s is equal.
    x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).repeat(100, 1)
    scale = fit_scales(x, torch.tensor([1.0, 4.0])).scale
    assert float(scale[0] / scale[1]) == pytest.approx(4.0, rel=0.05)


def test_a_channel_that_never_moves_keeps_a_finite_scale():
    x = draw(50, 3)
    x[:, 1] = 7.0
    found = fit_scales(x, torch.ones(3))
    assert (found.scale > 0).all()
    assert found.scale.isfinite().all()
    assert float(found.offset[1]) == 7.0


# -------------------------------------------------------------------------------------- gains


@given(seeds, st.floats(1e-3, 1e3))
def test_no_value_of_a_token_lies_outside_and_each_is_within_half_a_step(seed, times):
    site = site_for(draw(64, 12, seed=seed))
    x = times * draw(9, 12, seed=seed + 1) ** 3
    reading = site.read(x)
    assert reading.value.abs().max() <= CODE.levels
    step = reading.gain.factor * site.amplitude
    assert ((site.decode(reading) - x).abs() <= step / 2 * (1 + 1e-4) + 1e-6 * times).all()


@given(seeds, st.floats(1e-2, 1e2))
def test_a_louder_token_has_the_same_spikes(seed, times):
    site = site_for(draw(64, 12, seed=seed))
    x = draw(5, 12, seed=seed + 1)
    louder = site.offset + times * (x - site.offset)
    assert (site.read(louder).value - site.read(x).value).abs().max() <= 1  # float rounding


@given(seeds)
def test_the_gain_of_a_value_is_one_over_a_whole_number_of_parts(seed):
    x = draw(64, 3, 8, seed=seed)
    site = site_for(x, "value")
    reading = site.read(4 * draw(2, 3, 5, 8, seed=seed + 1))
    parts = SHARES / reading.gain.factor
    torch.testing.assert_close(parts, parts.round(), rtol=1e-6, atol=0)
    assert parts.round().min() >= 1
    assert parts.round().max() <= MOST_SHARES
    assert torch.equal(reading.gain.parts(), parts.round())


@given(seeds, st.booleans())
def test_octaves_are_the_same_one_by_one_and_at_once(seed, up):
    u = draw(7, 9, seed=seed) * torch.exp2(6 * draw(7, 1, seed=seed + 1))
    count = count_octaves(u, (-1,))
    assert torch.equal(count, count_octaves(u, (-1,), stepped=True))
    y = draw(7, 4, seed=seed + 2)
    once = shift_octaves(y, count, up=up)
    assert torch.equal(once, shift_octaves(y, count, up=up, stepped=True))
    gain = torch.exp2(count + LOWEST)
    assert torch.equal(once, y * gain if up else y / gain)
    inside = (u.abs().amax(-1, keepdim=True) <= 2.0**HIGHEST).expand_as(u)
    assert (u.abs() <= gain)[inside].all()


def test_an_octave_is_not_taken_too_early():
    u = torch.tensor([[1.0], [1.0001], [0.0], [2.0**HIGHEST * 8]])
    expected = torch.tensor([[0.0], [1.0], [LOWEST], [HIGHEST]])
    assert torch.equal(count_octaves(u, (-1,)) + LOWEST, expected)


# -------------------------------------------------------------------------------------- ports


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_the_error_is_below_that_of_static_ranges(name):
    port = lambda ranges: isospike.port(models.make(name), models.batches(name), ranges=ranges)  # noqa: E731
    dynamic, static = port("dynamic").report, port("static").report
    assert (dynamic.ranges, static.ranges) == ("dynamic", "static")
    assert dynamic.error < static.error
    assert dynamic.counts.spiking_float_ops["gain"] > 0
    assert static.counts.spiking_float_ops is None


def test_inputs_of_another_kind_are_reported_beside_and_hardly_worse():
    calibration, held = models.batches("bert", 32, 8)
    word = torch.full((4, 9), 7)
    kinds = {"held out": [held], "one word": [{"input_ids": word, "attention_mask": word * 0 + 1}]}
    report = isospike.port(models.make("bert"), [calibration], evaluation=kinds).report
    assert [t.name for t in report.texts] == ["held out", "one word"]
    assert report.texts[0].error == report.error
    assert report.texts[1].error < 2 * report.error
    assert all(t.median <= t.p999 <= t.worst for t in report.texts)
    assert "one word" in report.tables()["texts"].text()


def test_a_port_without_calibration_data_errs_at_most_twice_as_much():
    calibration, held = models.batches("bert", 32, 8)
    known = isospike.port(models.make("bert"), [calibration], evaluation=[held]).report
    blind = isospike.port(models.make("bert"), None, evaluation=[held]).report
    assert blind.error < 2 * known.error
    pixels = isospike.port(models.make("vit"), None, evaluation=[models.batch("vit")]).report
    assert pixels.error < 0.05
    with pytest.raises(isospike.UnsupportedError, match="calibration inputs for a Linear"):
        isospike.port(torch.nn.Linear(3, 3), None)


@pytest.mark.parametrize("code", ["phase", "rate", "bernoulli"])
def test_codes_of_one_neuron_keep_static_ranges(code):
    report = isospike.port(models.make("bert"), models.batches("bert"), code=code, steps=8).report
    assert report.ranges == "static"


def test_other_ranges_are_refused():
    with pytest.raises(isospike.InputError, match="ranges among dynamic, static, got 'wide'"):
        isospike.port(models.make("bert"), models.batches("bert"), ranges="wide")


def test_a_run_counts_what_leaves_the_ranges_and_warns_once(monkeypatch):
    monkeypatch.setattr("isospike.porting.saturation.LEAST", {False: 1e9, True: 10})
    calibration, held = models.batches("vit", 16, 4)
    model = isospike.port(models.make("vit"), [calibration], evaluation=[held]).model
    with torch.no_grad():
        model(**held)
    assert max(model.saturation().values()) < 0.05
    model.saturation.reset()
    louder = {"pixel_values": 1e3 * models.batch("vit", 64)["pixel_values"]}
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"outside the range.*saturation\(\)"):
            model(**louder)
        model(**louder)  # no second warning
    assert max(model.saturation().values()) > 0.5


def test_saturation_is_kept_by_a_saved_port(tmp_path):
    result = isospike.port(models.make("bert"), models.batches("bert"))
    result.save(tmp_path / "port")
    again = isospike.load(tmp_path / "port")
    inputs = models.batch("bert", 4, seed=5)
    assert torch.equal(models.run(again, inputs), models.run(result.model, inputs))
    assert again.saturation().keys() == result.model.saturation().keys()
    sites = {m.name: m for m in again.modules() if isinstance(m, Site)}
    assert any(site.dynamic for site in sites.values())
    assert run_of(again).phase == "run"


def test_the_order_and_the_batches_of_the_calibration_rows_do_not_matter():
    calibration, held = models.batches("bert", 24, 8)
    rows = [{k: v[i : i + 6] for k, v in calibration.items()} for i in range(0, 24, 6)]
    whole = isospike.port(models.make("bert"), [calibration], evaluation=[held]).report
    parts = isospike.port(models.make("bert"), rows, evaluation=[held]).report
    assert parts.error == pytest.approx(whole.error, rel=0.02)
