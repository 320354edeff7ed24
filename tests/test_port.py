"""A port: its two executions, what it keeps of its model, and contracts of every architecture."""

import copy

import models
import pytest
import torch
import transformers
from ports import ARCHITECTURES, TEXT, default, float_model, ported, quick
from torch import nn

import isospike
from isospike.porting.ported import Ported
from isospike.porting.run import run_of

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


# Precision and execution.


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fast_precision_is_near_exact_and_its_error_is_reported(name):
    exact = default(name)
    fast = quick(name=name, precision="fast")
    inputs = models.batch(name, seed=9)
    a, b = models.run(exact.model, inputs), models.run(fast.model, inputs)
    assert models.relative(a, b) < 0.1
    # Where bfloat16 is emulated, which takes ten times as long, the products stay exact.
    assert torch.equal(a, b) != torch.ops.mkldnn._is_mkldnn_bf16_supported()
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
