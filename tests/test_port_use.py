"""A port in use: types, autocast, training and new weights."""

import copy

import models
import pytest
import torch
from torch import nn

import isospike


@pytest.fixture(scope="module")
def bert():
    """A port; tests leave it as it was."""
    return isospike.port(models.make("bert"), models.batches("bert"), steps=6).model


INPUTS = models.batch("bert", 4, seed=9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_port_is_refused(bert, dtype):
    rounded = copy.deepcopy(bert).to(dtype)
    with pytest.raises(isospike.UnsupportedError, match=f"float64, got {str(dtype)[6:]}, which"):
        rounded(**INPUTS)


def test_a_port_runs_in_double_precision(bert):
    wide = copy.deepcopy(bert).double()
    got = models.run(wide, INPUTS)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, models.run(bert, INPUTS).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
def test_autocast_does_not_reach_a_port(bert, execution):
    expected = models.run(bert, INPUTS, execution)
    with torch.autocast("cpu", torch.bfloat16):
        got = models.run(bert, INPUTS, execution)
        assert torch.is_autocast_enabled("cpu")
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    assert torch.equal(got, expected)


def test_an_error_leaves_autocast_and_gradients_as_they_were(bert):
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="specify"):
            bert()
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_the_gradient_of_a_port_is_refused(bert):
    loss = bert(**INPUTS).last_hidden_state.square().sum()
    with pytest.raises(isospike.UnsupportedError, match="passes without a gradient, .*backward"):
        loss.backward()
    assert all(p.grad is None for p in bert.parameters())


def test_a_head_on_a_frozen_port_is_trained(bert):
    frozen = copy.deepcopy(bert).requires_grad_(False)
    head = models.seeded(lambda: nn.Linear(24, 2))
    head(frozen(**INPUTS).last_hidden_state).square().sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_training_mode_drops_out_as_the_original_does(bert):
    port = copy.deepcopy(bert).train()
    outputs = models.seeded(lambda: [models.run(port, INPUTS) for _ in range(2)])
    assert not torch.equal(*outputs)
    assert torch.equal(models.run(port.eval(), INPUTS), models.run(bert, INPUTS))


@pytest.mark.parametrize("settings", [{"precision": "fast"}, {"execution": "stepped"}])
def test_new_weights_are_used_at_once(settings):
    """What is packed or rounded for speed is of the weights that are there."""
    one, two = (
        isospike.port(
            models.make("bert", seed), models.batches("bert"), steps={"*": 4}, **settings
        ).model
        for seed in (0, 1)
    )
    expected = models.run(two, INPUTS)
    models.run(one, INPUTS)
    one.load_state_dict(two.state_dict())
    assert torch.equal(models.run(one, INPUTS), expected)
    for parameter in one.parameters():
        parameter.data = parameter.detach().clone()
        parameter.data.zero_()
    assert not models.run(one, INPUTS).any()
