"""One registration with transformers, for a port and for whoever wants to look."""

import functools

import models
import pytest
import torch

import isospike
from isospike.hf.attention import IMPLEMENTATION, route, routed


def eager(module, query, key, value, mask, scaling, **_):
    scores = query @ key.transpose(-1, -2) * scaling
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_a_routed_model_computes_the_same_and_is_put_back(name):
    model, inputs = models.make(name), models.batch(name, 3)
    before, expected = model.config._attn_implementation, models.run(model, inputs)
    callers = []

    def attend(module, *arguments, **keywords):
        callers.append(module)
        return eager(module, *arguments, **keywords)

    with routed(model, attend):
        got = models.run(model, inputs)
    where = models.valid(inputs)
    torch.testing.assert_close(got[where], expected[where])
    assert len(callers) == 2
    assert model.config._attn_implementation == before
    assert torch.equal(models.run(model, inputs), expected)


def test_the_innermost_function_is_called_and_an_error_puts_the_outer_one_back():
    model, inputs = models.make("bert"), models.batch("bert", 3)
    seen = []

    def named(name):
        def attend(*arguments, **keywords):
            seen.append(name)
            return eager(*arguments, **keywords)

        return attend

    def fail(*_, **__):
        raise KeyError("inner")

    with routed(model, named("outer")):
        with pytest.raises(KeyError), routed(model, fail):
            models.run(model, inputs)
        models.run(model, inputs)
    assert seen == ["outer"] * 2


def test_a_model_without_the_interface_is_left_alone():
    with routed(torch.nn.Linear(2, 2), eager) as nothing:
        assert nothing is None


def test_the_implementation_of_a_port_is_refused_by_a_plain_model():
    model = models.make("bert")
    route(model)
    assert model.config._attn_implementation == IMPLEMENTATION
    with pytest.raises(isospike.UnsupportedError, match="needs a ported model, got a plain Bert"):
        models.run(model, models.batch("bert", 2))


def boolean(name, inputs):
    """The mask of a batch as ``[rows, 1, queries, keys]``, True where a query may see a key."""
    seen = inputs["attention_mask"].bool()[:, None, None].expand(-1, 1, models.LONGEST, -1)
    return (
        seen if name == "bert" else seen & torch.ones(models.LONGEST, models.LONGEST).bool().tril()
    )


@functools.cache
def coarse(name):
    """A port of 4 steps, which tests leave as it was."""
    return isospike.port(models.make(name), models.batches(name), steps=4).model


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_boolean_mask_is_the_mask_of_tokens_and_not_a_number_to_add(name, execution):
    port = coarse(name)
    inputs = models.batch(name, 4, seed=9)
    other = {**inputs, "attention_mask": boolean(name, inputs)}
    expected, got = (models.run(port, x, execution) for x in (inputs, other))
    assert torch.equal(expected[models.valid(inputs)], got[models.valid(inputs)])


def test_a_boolean_mask_is_applied_by_whoever_computes_the_attention():
    model, inputs = models.make("bert"), models.batch("bert", 3)
    expected = models.run(model, inputs)
    with routed(model, eager):
        got = models.run(model, {**inputs, "attention_mask": boolean("bert", inputs)})
    where = models.valid(inputs)
    torch.testing.assert_close(got[where], expected[where])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_port_gives_the_maps_of_its_attention_when_they_are_asked_for(name):
    model, inputs = models.make(name, attn_implementation="eager"), models.batch(name, 4, seed=9)
    port = isospike.port(model, models.batches(name), steps=12).model
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
        got = port(**inputs, output_attentions=True).attentions
        assert port(**inputs).get("attentions") is None
    assert len(got) == len(expected) == 2
    where = models.valid(inputs)
    for x, y in zip(expected, got, strict=True):
        torch.testing.assert_close(
            x.transpose(1, 2)[where], y.transpose(1, 2)[where], atol=0.03, rtol=0
        )


def test_maps_may_be_asked_for_by_the_calibration_inputs():
    model = models.make("bert", attn_implementation="eager")
    batches = [{**batch, "output_attentions": True} for batch in models.batches("bert")]
    port = isospike.port(model, batches).model
    assert not [name for name, _ in port.named_modules() if "isospike_calls" in name]
    assert len(port(**batches[0]).attentions) == 2


def test_generation_gives_maps_too():
    port = isospike.port(models.make("gpt2"), models.batches("gpt2")).model
    found = port.generate(
        input_ids=torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False,
        output_attentions=True, return_dict_in_generate=True,
    ).attentions  # fmt: skip
    assert [maps[-1].shape for maps in found] == [(1, 3, 2, 2), (1, 3, 1, 3), (1, 3, 1, 4)]
    assert all(torch.allclose(maps[0].sum(-1), torch.ones(())) for maps in found)


def test_an_error_in_a_pass_that_wants_maps_leaves_the_next_one_without():
    port = isospike.port(models.make("bert"), models.batches("bert")).model
    with pytest.raises(ValueError, match="specify"):
        port(output_attentions=True)
    assert port(**models.batch("bert", 2)).get("attentions") is None


def test_a_port_attends_on_spikes_whatever_implementation_is_chosen_later(tmp_path):
    saved = isospike.port(models.make("gpt2"), models.batches("gpt2"))
    inputs = models.batch("gpt2", 2)
    expected = models.run(saved.model, inputs)
    for port in (saved.model, isospike.load(saved.save(tmp_path / "port"))):
        port.set_attn_implementation("eager")  # as Whisper does for the times of its words
        assert torch.equal(models.run(port, inputs), expected)
        port.set_attn_implementation("sdpa")
        with pytest.raises(
            isospike.UnsupportedError, match="needs its own attention, got .* 'sdpa'"
        ):
            port(**inputs)
        port.set_attn_implementation("isospike")
        assert torch.equal(models.run(port, inputs), expected)
