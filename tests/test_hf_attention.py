"""One registration with transformers, for a port and for whoever wants to look."""

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
