import copy
import functools
import importlib
import importlib.metadata
from dataclasses import replace

import models
import pytest
import torch
import transformers
from torch import nn

import isospike
from isospike.codes import CODES, Law, PhaseCode, fit_law
from isospike.dimension import EffectiveDimension
from isospike.porting import Target
from isospike.porting.dimensions import site_dimensions
from isospike.porting.measure import Meter, compare, site_reports
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Watcher, run_of
from isospike.porting.sites import Site
from isospike.progress import shown_by

ARCHITECTURES = ("bert", "vit", "gpt2", "llama")
TEXT = ("bert", "gpt2", "llama")


@functools.cache
def float_model(name):
    return models.make(name)


@functools.cache
def ported(name, code="signed-digit", steps=8):
    """A port calibrated on 192 inputs; shared by tests, which leave it as it was."""
    batches = models.batches(name, rows=192, held=16)
    return isospike.port(float_model(name), batches, code=code, steps=steps)


def quick(model=None, name="bert", **arguments):
    """A port calibrated on few inputs."""
    return isospike.port(model or float_model(name), models.batches(name), **arguments)


@functools.cache
def default(name="bert"):
    """A port with no arguments; shared likewise."""
    return quick(name=name)


# The two executions.


@pytest.mark.parametrize(
    ("name", "code", "steps"),
    [(name, "signed-digit", 8) for name in ARCHITECTURES]
    + [(name, "phase", 6) for name in ARCHITECTURES]
    + [("bert", "rate", 20), ("gpt2", "latency", 20)],
)
def test_stepped_and_collapsed_are_equal_bit_for_bit_up_to_255_levels(name, code, steps):
    model = ported(name, code, steps).model
    inputs = models.batch(name, seed=99)
    collapsed = models.run(model, inputs, "collapsed")
    assert torch.equal(models.run(model, inputs, "stepped"), collapsed)
    assert collapsed.isfinite().all()
    assert collapsed.std() > 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stepped_and_collapsed_agree_in_double_precision_beyond_255_levels(name):
    model = copy.deepcopy(ported(name, steps=12).model).double()
    inputs = {
        k: v.double() if v.is_floating_point() else v
        for k, v in models.batch(name, seed=99).items()
    }
    collapsed = models.run(model, inputs, "collapsed")
    assert collapsed.dtype == torch.float64
    assert models.relative(collapsed, models.run(model, inputs, "stepped")) < 1e-9


@pytest.mark.parametrize(
    ("name", "code", "steps"),
    [
        *((name, "signed-digit", 9) for name in ARCHITECTURES),
        *((name, "phase", 12) for name in ARCHITECTURES),
        pytest.param("bert", "rate", 260, marks=pytest.mark.slow),
    ],
)
def test_in_float32_they_agree_beyond_255_levels_too(name, code, steps):
    # In float32 sums a value next to a boundary tips over now and then, by a whole level.
    model = quick(name=name, code=code, steps=steps).model
    inputs = models.batch(name, seed=99)
    collapsed = models.run(model, inputs, "collapsed")
    assert models.relative(collapsed, models.run(model, inputs, "stepped")) < 1e-6


@pytest.mark.parametrize(("code", "steps"), [("phase", 25), ("signed-digit", 32)])
def test_stepped_follows_collapsed_where_float32_cannot_hold_the_largest_level(code, steps):
    # 2^25 - 1 rounds up to 2^25, whose lowest 25 bits are silence.
    model = quick(code=code, steps=steps).model
    inputs = models.batch("bert", seed=99)
    collapsed = models.run(model, inputs, "collapsed")
    assert models.relative(collapsed, models.run(model, inputs, "stepped")) < 1e-5


# Parity with Hugging Face.


@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES[1:])]
)
def test_error_on_unseen_inputs_falls_with_steps(name):
    inputs = models.batch(name, rows=32, seed=77)
    where = models.valid(inputs)
    expected = models.run(float_model(name), inputs)
    errors = [
        models.relative(expected[where], models.run(ported(name, steps=t).model, inputs)[where])
        for t in (4, 8, 16)
    ]
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 4
    # What many steps leave are values beyond every calibration input.
    assert errors[2] < min(errors[1], 0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_16_steps_the_calibration_inputs_are_reproduced(name):
    inputs = models.batches(name, rows=192)[0]
    where = models.valid(inputs)
    expected = models.run(float_model(name), inputs)[where]
    got = models.run(ported(name, steps=16).model, inputs)[where]
    assert models.relative(expected, got) < 1e-3


def test_a_sliding_window_is_the_mask_it_was():
    config = transformers.MistralConfig(
        vocab_size=models.VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=24, sliding_window=3, pad_token_id=0,
    )  # fmt: skip
    model = models.seeded(lambda: models.scatter(transformers.MistralForCausalLM(config))).eval()
    inputs = models.batch("llama", rows=64)
    result = isospike.port(model, [inputs], steps=16, evaluation=[inputs])
    assert result.report.error < 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_output_has_the_type_of_the_original(name):
    inputs = models.batch(name)
    with torch.no_grad():
        expected, got = float_model(name)(**inputs), ported(name).model(**inputs)
    assert type(got) is type(expected)
    assert got.keys() == expected.keys()
    assert type(ported(name).model) is type(float_model(name))


def test_the_ported_model_runs_in_inference_mode():
    inputs = models.batch("bert")
    model = ported("bert").model
    with torch.inference_mode():
        got = model(**inputs)[0]
    assert torch.equal(got, models.run(model, inputs))


def test_a_half_precision_model_is_ported_from_its_rounded_weights():
    model = models.make("bert").bfloat16()
    report = quick(model).report
    assert report.error < 0.1
    assert next(model.parameters()).dtype == torch.bfloat16


# The model given.


@pytest.mark.parametrize(
    ("name", "training"), [("bert", True), ("vit", False), ("gpt2", False), ("llama", True)]
)
def test_the_model_given_is_left_untouched(name, training):
    model = models.make(name)
    inputs = models.batch(name)
    before = models.run(model, inputs)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [type(m) for m in model.modules()]
    config = model.config.to_dict(), model.config._attn_implementation
    model.train(training)
    quick(model, name, steps=2)
    assert model.training is training
    assert (model.config.to_dict(), model.config._attn_implementation) == config
    assert [type(m) for m in model.modules()] == modules
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[k], v) for k, v in state.items())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(models.run(model.eval(), inputs), before)


def test_a_model_in_training_mode_is_ported_as_in_evaluation_mode():
    inputs = models.batch("bert")
    expected = default().model
    got = quick(models.make("bert").train()).model
    assert not got.training
    assert torch.equal(models.run(got, inputs), models.run(expected, inputs))


def test_the_batches_given_are_left_untouched():
    batches = models.batches("bert")
    before = [{k: v.clone() for k, v in b.items()} for b in batches]
    isospike.port(float_model("bert"), batches, steps=2)
    for batch, copied in zip(batches, before, strict=True):
        assert all(torch.equal(batch[k], copied[k]) for k in copied)


# Audit of a port.


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("code", "steps"), [("signed-digit", 8), ("phase", 6)])
def test_the_stepped_run_passes_the_audit_and_the_collapsed_has_no_real_operand(name, code, steps):
    result = ported(name, code, steps)
    inputs = models.batch(name, rows=3, seed=5)
    assert result.report.exceptions == ()
    collapsed = isospike.audit(result.model, inputs)
    assert collapsed.first_real is None
    assert not collapsed.spiking
    models.switch(result.model, execution="stepped")
    try:
        stepped = isospike.audit(result.model, inputs)
    finally:
        models.switch(result.model, execution="collapsed")
    assert stepped.first_real is None
    assert stepped.spiking
    assert stepped.exceptions == ()
    assert {p.module for p in stepped.products} == {p.module for p in collapsed.products}


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_audit_passes_sequences_too_short_to_tell_a_grid_from_real_values(tokens):
    batches = [{k: v[:, :tokens] for k, v in b.items()} for b in models.batches("llama")]
    assert isospike.port(float_model("llama"), batches).report.exceptions == ()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("bert", "encoder.layer.0.attention.self.query: addmm(float, weight)"),
        ("vit", "vit.embeddings.patch_embeddings.projection: convolution(float, weight)"),
        ("gpt2", "transformer.h.0.attn.c_attn: addmm(float, weight)"),
        ("llama", "model.layers.0.self_attn.q_proj: mm(float, weight)"),
    ],
)
def test_the_float_model_fails_the_audit_at_its_first_product(name, first):
    found = isospike.audit(float_model(name), models.batch(name))
    assert found.first_real == first
    assert not found.spiking
    assert len(found.exceptions) > 8


# Contracts.


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_permuting_the_batch_permutes_the_output_exactly(name, execution):
    model = ported(name).model
    inputs = models.batch(name, rows=6, seed=3)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    expected = models.run(model, inputs, execution)[order]
    got = models.run(model, {k: v[order] for k, v in inputs.items()}, execution)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_of_two_is_two_batches_exactly(name, execution):
    model = ported(name).model
    inputs = models.batch(name, rows=2, seed=3, padded=False)
    alone = [
        models.run(model, {k: v[i : i + 1] for k, v in inputs.items()}, execution) for i in (0, 1)
    ]
    assert torch.equal(models.run(model, inputs, execution), torch.cat(alone))


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("name", TEXT)
def test_padding_on_the_right_changes_no_unpadded_token(name, execution):
    # Exactly: a padded key has e = 0, sums are exact in any order, the rest is token by token.
    model = ported(name).model
    inputs = models.batch(name, rows=4, seed=3, padded=False)
    wider = {k: nn.functional.pad(v, (0, 5)) for k, v in inputs.items()}
    got = models.run(model, wider, execution)[:, : models.LONGEST]
    assert torch.equal(got, models.run(model, inputs, execution))


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_a_cache_equals_generation_without(name, execution):
    model = ported(name).model
    inputs = models.batch(name, rows=3, seed=8, padded=False)
    models.switch(model, execution=execution)
    try:
        cached, whole = (
            model.generate(
                **inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache,
                output_logits=True, return_dict_in_generate=True,
            )
            for use_cache in (True, False)
        )  # fmt: skip
    finally:
        models.switch(model, execution="collapsed")
    assert cached.sequences.shape == (3, models.LONGEST + 8)
    assert torch.equal(cached.sequences, whole.sequences)
    for a, b in zip(cached.logits, whole.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_token_never_sees_what_follows_it(name):
    model = ported(name).model
    inputs = models.batch(name, rows=4, seed=3, padded=False)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 5:] = 7
    before, after = models.run(model, inputs), models.run(model, changed)
    assert torch.equal(after[:, :5], before[:, :5])
    assert not torch.equal(after[:, 5:], before[:, 5:])


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
    ("mix", "got"),
    [
        (lambda: nn.LSTM(8, 8, batch_first=True), r"mix \(LSTM\)"),
        (lambda: nn.GRU(8, 8, batch_first=True), r"mix \(GRU\)"),
    ],
)
def test_a_product_that_cannot_be_ported_is_named(mix, got):
    model = models.seeded(lambda: Toy(mix)).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(4, 9, 8, generator=generator)}]
    with pytest.raises(isospike.UnsupportedError, match=got) as caught:
        isospike.port(model, batches)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("This model cannot be ported.")


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


def test_a_max_error_below_the_floor_of_the_law_is_refused_with_the_floor(monkeypatch):
    home = importlib.import_module("isospike.porting.plan")
    monkeypatch.setattr(home, "fit_law", lambda code, errors: Law(code, 1.0, 3.0, 0.07))
    with pytest.raises(
        isospike.RangeError, match="the floor of its law, 0.07, got 0.05: no number"
    ):
        quick(steps=Target(0.05))


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
        ([], "at least one batch, got none"),
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


# Precision and execution.


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fast_precision_is_near_exact_and_its_error_is_reported(name):
    exact = default(name)
    fast = quick(name=name, precision="fast")
    inputs = models.batch(name, seed=9)
    a, b = models.run(exact.model, inputs), models.run(fast.model, inputs)
    assert 0 < models.relative(a, b) < 0.1
    assert b.dtype == a.dtype == torch.float32
    assert fast.report.error == exact.report.error
    assert fast.report.error_fast is not None
    assert fast.report.error_fast < fast.report.error + 0.1
    assert fast.report.precision == "fast"


def test_a_port_runs_the_way_it_was_asked_to():
    result = quick(execution="stepped", steps=3)
    assert run_of(result.model).mode.execution == result.report.execution == "stepped"
    inputs = models.batch("bert")
    models.switch(result.model, execution="collapsed")
    assert not isospike.audit(result.model, inputs).spiking
    models.switch(result.model, execution="stepped")
    assert isospike.audit(result.model, inputs).spiking


def test_bernoulli_spikes_are_drawn_anew_and_their_mean_is_right():
    result = quick(code="bernoulli", steps=24)
    inputs = models.batch("bert", seed=9)
    where = models.valid(inputs)
    outputs = []
    for seed in (1, 1, 2):
        Ported.of(result.model).seed(torch.Generator().manual_seed(seed))
        outputs.append(models.run(result.model, inputs)[where])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    expected = models.run(float_model("bert"), inputs)[where]
    assert models.relative(expected, outputs[0]) < 0.5


def test_two_ports_with_equal_generators_agree_and_leave_the_global_state_alone():
    inputs = models.batch("bert", seed=9)
    before = torch.get_rng_state()
    outputs = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        result = quick(code="bernoulli", steps=24, generator=generator).sweep(("bernoulli",))
        outputs.append((models.run(result.model, inputs), result.report.error, result.report.curve))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert outputs[0][1:] == outputs[1][1:]
    assert not torch.equal(outputs[0][0], outputs[2][0])
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------- effective dimension


def test_site_dimensions_are_those_of_the_float_activations():
    model, inputs = models.make("bert"), models.batch("bert", 24)
    found = site_dimensions(model, [inputs], lambda: EffectiveDimension(replicates=2, neighbours=4))
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
    words = first.words(x).value
    expected = words.clone()
    second.words(torch.rand(3, 4))
    assert torch.equal(words, expected)
    assert first.words(x).value is words
