"""What cannot be ported, how many steps are taken, and which batches are of use."""

import importlib
import importlib.metadata
from dataclasses import replace

import models
import pytest
import torch
from ports import default, float_model, ported, quick
from torch import nn

import isospike
from isospike.codes import CODES, Law, fit_law
from isospike.porting import Target
from isospike.porting.plan import Builder
from isospike.porting.ported import Ported

# What cannot be ported.


class Toy(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(8, 8), mix(), nn.Linear(8, 8)

    def forward(self, x):
        h = self.first(x)
        if isinstance(self.mix, nn.MultiheadAttention):
            h = self.mix(h, h, h, need_weights=False)[0]
        elif isinstance(self.mix, nn.Bilinear):
            h = self.mix(h, h)
        elif isinstance(self.mix, nn.LSTM | nn.GRU):
            h = self.mix(h)[0]
        elif isinstance(self.mix, nn.Conv1d | nn.Conv2d):
            h = self.mix(h.view(-1, 8, 3, 3) if isinstance(self.mix, nn.Conv2d) else h.mT)
            h = h.reshape(len(x), -1, 8)
        elif isinstance(self.mix, RawProduct | nn.TransformerEncoderLayer):
            h = self.mix(h)
        return self.last(h)


class RawProduct(nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.mT, -1) @ x


@pytest.mark.parametrize(
    "mix",
    [
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        RawProduct,
        lambda: nn.Bilinear(8, 8, 8),
        lambda: nn.Conv1d(8, 8, 3, padding=1),
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
        lambda: nn.Conv2d(8, 8, 3, padding="same"),
    ],
)
def test_a_product_without_a_module_of_its_own_is_ported(mix):
    model = models.seeded(lambda: Toy(mix)).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(24, 9, 8, generator=generator)}]
    result = isospike.port(model, batches, steps=10)
    assert result.report.error < 2e-2
    assert not result.report.exceptions


def test_a_toy_without_hugging_face_is_ported():
    model = models.seeded(lambda: Toy(nn.Identity)).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(64, 9, 8, generator=generator)}]
    result = isospike.port(model, batches, steps=12)
    assert [s.name for s in result.report.sites] == ["first", "last"]
    assert result.report.error < 1e-2


def test_a_port_is_not_ported_again():
    with pytest.raises(isospike.UnsupportedError, match="BertModel that is already ported"):
        isospike.port(ported("bert").model, models.batches("bert"))


def test_a_plain_model_asked_for_isospike_attention_says_so():
    ported("bert")  # registers the attention function
    model = models.make("bert")
    model.set_attn_implementation("isospike")
    with pytest.raises(isospike.UnsupportedError, match="needs a ported model, got a plain Bert"):
        models.run(model, models.batch("bert"))


# Steps.


def test_steps_are_8_signed_digits_unless_told():
    report = default().report
    assert (report.code, report.steps, report.ranges) == ("signed-digit", 8, "dynamic")
    heads = dict.fromkeys(("query", "key", "value"), 6)
    expected = {"linear": 8, "probability": 9, **heads}
    assert all(s.steps == expected[s.kind] for s in report.sites)
    static = isospike.port(float_model("bert"), models.batches("bert"), ranges="static").report
    assert (static.steps, static.steps_by_site, static.ranges) == (8, {}, "static")
    assert report.max_error is report.error_predicted is report.law is report.error_fast is None
    assert report.reached


def test_the_last_matching_pattern_gives_a_site_its_steps():
    steps = {"*": 8, "*.output.dense": 4, "encoder.layer.1.*": 6, "*:key": 5}
    report = quick(steps=steps).report
    by_name = {s.name: s.steps for s in report.sites}
    assert by_name["pooler.dense"] == 8
    assert by_name["encoder.layer.0.output.dense"] == 4
    assert by_name["encoder.layer.1.output.dense"] == 6
    assert by_name["encoder.layer.0.attention.self:key"] == 5
    assert by_name["encoder.layer.1.attention.self:key"] == 5
    assert report.steps == 8
    assert report.steps_by_site == {k: v for k, v in by_name.items() if v != 8}


def test_sites_of_different_steps_run_stepped_and_collapsed_alike():
    model = quick(name="llama", steps={"*": 7, "*:key": 4, "*.down_proj": 3, "*:value": 5}).model
    inputs = models.batch("llama", seed=9)
    assert torch.equal(models.run(model, inputs, "stepped"), models.run(model, inputs, "collapsed"))


@pytest.mark.parametrize("code", ["signed-digit", "rate"])
def test_max_error_takes_the_fewest_steps_predicted_to_reach_it(code):
    batches = models.batches("bert", rows=96, held=48)
    report = isospike.port(float_model("bert"), batches, code=code, steps=Target(0.05)).report
    assert report.reached
    assert report.error <= 0.05
    assert report.error_predicted == pytest.approx(report.law.error(report.steps))
    assert report.error_predicted <= 0.05
    assert 1 / 2 < report.error / report.error_predicted < 2
    assert report.law.fewest_steps(0.05) <= report.steps
    assert report.law.steps == CODES[code].fit_steps


@pytest.mark.parametrize(("code", "most"), [("signed-digit", 4), ("latency", 6)])
def test_a_max_error_out_of_reach_stops_at_the_most_steps_and_says_so(monkeypatch, code, most):
    monkeypatch.setattr(CODES[code], "search_limit", most)
    report = quick(code=code, steps=Target(5e-3)).report
    assert not report.reached
    assert "was not reached: measured" in report.warnings[0]
    assert report.steps == most
    assert report.error > 5e-3
    assert report.error_predicted > 5e-3


def measures(monkeypatch, errors):
    """Let the calibration error be ``errors`` by the number of steps; which were measured."""
    seen = []

    def error(builder, built):
        seen.append(built.plan.steps)
        return errors[seen[-1]]

    monkeypatch.setattr(Builder, "error", error)
    return seen


def test_a_floor_of_four_short_codes_refuses_no_max_error_that_the_longest_reaches(monkeypatch):
    short = {t: Law("signed-digit", 1.0, 6.0, 0.07).error(t) for t in (5, 6, 7, 9)}
    assert fit_law("signed-digit", short).floor == pytest.approx(0.07, rel=0.01)
    seen = measures(monkeypatch, {**short, 16: 0.04})
    report = quick(steps=Target(0.05)).report
    assert seen == [5, 6, 7, 9, 16]
    assert report.law.steps == (5, 6, 7, 9, 16)
    assert report.law.floor < 0.04
    assert 9 < report.steps <= 16
    measures(monkeypatch, {**short, 16: 0.06})
    with pytest.raises(
        isospike.RangeError, match=r"its longest code reaches, 0\.06 at 16 .* steps, got 0\.05\."
    ):
        quick(steps=Target(0.05))


def test_a_short_code_that_reaches_a_max_error_is_taken_if_the_longest_does_not(monkeypatch):
    short = {t: Law("signed-digit", 1.0, 6.0, 0.07).error(t) for t in (5, 6, 7)}
    measures(monkeypatch, {**short, 9: 0.049, 16: 0.051})
    law = Law("signed-digit", 1.0, 3.0, 0.07)
    monkeypatch.setattr(importlib.import_module("isospike.porting.plan"), "fit_law", lambda *_: law)
    assert quick(steps=Target(0.05)).report.steps == 9


def test_measured_steps_that_reach_a_max_error_are_taken_whatever_the_law_says(monkeypatch):
    errors = {5: 0.9, 6: 0.8, 7: 0.19, 9: 0.18}
    assert fit_law("signed-digit", errors).fewest_steps(0.2) > 7
    measures(monkeypatch, errors)
    report = quick(steps=Target(0.2)).report
    assert (report.steps, report.reached) == (7, True)
    assert report.error <= 0.2 < report.error_predicted


def test_a_model_without_products_is_refused():
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return (2 * x,)

    with pytest.raises(isospike.UnsupportedError, match="matrix products, got a Doubled without"):
        isospike.port(Doubled(), [{"x": torch.ones(8, 2, 3)}])


@pytest.mark.parametrize("code", ["signed-digit", "rate"])
def test_steps_are_raised_where_the_measured_error_exceeds_the_prediction(monkeypatch, code):
    def hopeful(code, errors):
        law = fit_law(code, errors)
        return replace(law, scale=law.scale / 3)

    monkeypatch.setattr(importlib.import_module("isospike.porting.plan"), "fit_law", hopeful)
    batches = models.batches("bert", rows=64, held=32)
    report = isospike.port(float_model("bert"), batches, code=code, steps=Target(0.2)).report
    first = report.law.fewest_steps(0.2)
    assert report.steps > first
    assert report.reached
    assert report.error <= 0.2


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"steps": -1}, r"needs steps in \[1, 32\], got -1"),
        ({"steps": 0}, r"needs steps in \[1, 32\], got 0"),
        ({"steps": 33}, r"needs steps in \[1, 32\], got 33"),
        ({"steps": True}, "whole number of steps, got True"),
        ({"steps": {"*": 33}}, r"needs steps in \[1, 32\], got 33"),
        ({"steps": 1, "code": "latency"}, r"needs steps in \[2, 4096\], got 1"),
        ({"steps": {"*.dense": 4}}, r"steps for every site, got none for .*query"),
        ({"steps": {}}, r"steps for every site, got none for .*query"),
        ({"steps": {"*": 8, "*.nothing": 4}}, r"got '\*\.nothing' which matches none of 1\d sites"),
        ({"code": "morse"}, "among signed-digit, phase, .* got 'morse'"),
        ({"execution": "sideways"}, "needs execution among collapsed, stepped, got 'sideways'"),
        ({"precision": "rough"}, "needs precision among exact, fast, got 'rough'"),
        ({"precision": "fast", "execution": "stepped"}, "got stepped and 255 levels"),
        ({"precision": "fast", "steps": 9}, "got collapsed and 511 levels"),
    ],
)
def test_a_wrong_argument_is_one_line_of_error(arguments, got):
    with pytest.raises(isospike.IsospikeError, match=got) as caught:
        quick(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [0.0, -0.1, float("nan")])
def test_a_target_is_positive(error):
    with pytest.raises(
        isospike.RangeError, match=f"Target needs error above 0 and finite, got {error:g}"
    ):
        Target(error)


# Batches.


def test_weights_that_are_not_finite_are_named():
    model = models.make("bert")
    model.encoder.layer[1].output.dense.weight.data[0, :3] = torch.tensor([torch.nan, torch.inf, 1])
    with pytest.raises(
        isospike.InputError, match=r"encoder\.layer\.1\.output\.dense\.weight \(2 of 960\)"
    ):
        quick(model)


def test_activations_that_are_not_finite_are_named():
    model = models.seeded(lambda: Toy(nn.Identity))
    inputs = {"x": torch.full((8, 3, 8), 3e38)}
    with pytest.raises(isospike.InputError, match="finite activations, got NaN or infinity at"):
        isospike.port(model, [inputs])


@pytest.mark.parametrize(
    ("batches", "got"),
    [
        ([], "at least one calibration batch, got none"),
        ([models.batch("bert", rows=1)], "got 1 input"),
        ([{}], "tensors in its batches, got none in calibration batch 0"),
        (
            [models.batch("bert"), {"input_ids": torch.zeros(0, 4)}],
            "only padding in calibration batch 1",
        ),
        (
            [
                models.batch("bert"),
                {
                    "input_ids": torch.ones(2, 4).long(),
                    "attention_mask": torch.zeros(2, 4).long(),
                },
            ],
            "only padding in calibration batch 1",
        ),
    ],
)
def test_unusable_batches_are_refused(batches, got):
    with pytest.raises(isospike.InputError, match=got):
        isospike.port(float_model("bert"), batches)


def test_an_unusable_evaluation_batch_is_refused():
    padding = {"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.zeros(1, 4).long()}
    with pytest.raises(isospike.InputError, match="only padding in evaluation batch 0"):
        quick(evaluation=[padding])


def test_one_batch_of_two_rows_is_enough():
    report = isospike.port(float_model("bert"), [models.batch("bert", rows=2)], steps=4).report
    assert (report.calibration_tokens, report.held_out_tokens) == (models.LONGEST, 3)


def test_a_quarter_of_the_batches_is_held_back():
    batches = [models.batch("bert", rows=4, seed=i) for i in range(8)]
    report = isospike.port(float_model("bert"), batches, steps=2).report
    lengths = [int(b["attention_mask"].sum()) for b in batches]
    assert report.calibration_tokens == sum(lengths[:6])
    assert report.held_out_tokens == sum(lengths[6:])


def test_held_back_batches_may_be_given():
    given = [models.batch("bert", rows=4, seed=50)]
    report = quick(evaluation=given, steps=2).report
    assert report.held_out_tokens == int(given[0]["attention_mask"].sum())
    assert report.calibration_tokens == sum(
        int(b["attention_mask"].sum()) for b in models.batches("bert")
    )


@pytest.mark.parametrize("masked", [True, False])
def test_batches_of_different_lengths_are_padded_and_padding_changes_nothing(masked):
    short, long = models.batch("bert", 8, 1, padded=False), models.batch("bert", 8, 2, padded=False)
    short = {k: v[:, :5] for k, v in short.items()}
    wide = {k: nn.functional.pad(v, (0, 4)) for k, v in short.items()}
    held = [models.batch("bert", seed=3)]
    expected = isospike.port(float_model("bert"), [wide, long], evaluation=held)
    if not masked:
        short, long = ({"input_ids": b["input_ids"]} for b in (short, long))
    got = isospike.port(float_model("bert"), [short, long], evaluation=held)
    # Float sums of another length round otherwise; what follows is the same but for that.
    for here, there in zip(
        Ported.of(got.model).sites, Ported.of(expected.model).sites, strict=True
    ):
        torch.testing.assert_close(here.scale, there.scale, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(here.offset, there.offset, rtol=1e-4, atol=1e-5)
    assert got.report.error == pytest.approx(expected.report.error, rel=0.05)


def test_padded_tokens_set_no_range():
    batch, held = models.batches("bert")
    changed = {**batch, "input_ids": batch["input_ids"] + 17 * (1 - batch["attention_mask"])}
    a, b = (isospike.port(float_model("bert"), [x], evaluation=[held]) for x in (batch, changed))
    for x, y in zip(Ported.of(a.model).sites, Ported.of(b.model).sites, strict=True):
        assert torch.equal(x.scale, y.scale)
        assert torch.equal(x.offset, y.offset)


def test_a_loss_is_not_the_first_output():
    batches = [{**b, "labels": b["input_ids"]} for b in models.batches("gpt2")]
    model = models.make("gpt2", loss_type="ForCausalLM")
    report = isospike.port(model, batches, steps=8).report
    assert report.error < 0.1
    assert report.agreement > 0.5
