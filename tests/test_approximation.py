import math

import pytest
import torch

from isospike.errors import RangeError, ShapeError
from isospike.theory.approximation import (
    EquivariantTable,
    bits_needed,
    published_bits,
    published_steps,
)


def spread(x):
    """Of each token and channel, the distance to the farthest other: constant 2."""
    return (x[:, :, None] - x[:, None]).abs().amax(2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("tokens", "channels", "bits"),
    [(2, 2, 3), (2, 3, 2), (2, 4, 1), (3, 2, 2), (3, 4, 1), (4, 2, 2), (4, 3, 1), (8, 2, 1)],
)
def test_the_built_network_is_within_its_bound(tokens, channels, bits):
    network = EquivariantTable(spread, tokens, channels, bits)
    x = torch.rand(64, tokens, channels, generator=seeded(bits), dtype=torch.float64)
    found = network(x)
    assert (found.y - spread(x)).abs().max() <= network.bound(2.0)
    # At most one case for each token, and exactly one: weights are read once.
    assert found.spikes.max() <= tokens * (channels * bits + 1 + 1) + tokens
    assert network.steps == bits


def test_tokens_may_be_permuted_and_equal():
    network = EquivariantTable(spread, 3, 2, 2)
    x = torch.rand(16, 3, 2, generator=seeded(0), dtype=torch.float64)
    x[:8, 1] = x[:8, 0]
    order = [2, 0, 1]
    assert torch.equal(network(x[:, order]).y, network(x).y[:, order])
    assert torch.equal(network(x[:8]).y[:, 0], network(x[:8]).y[:, 1])


def test_the_bound_is_met_by_the_identity_at_a_corner():
    network = EquivariantTable(lambda x: x, 2, 2, 2)
    found = network(torch.zeros(1, 2, 2))
    assert float(found.y.max()) == network.bound(1.0) == 0.125


def test_the_published_size_is_too_small_and_its_steps_too_many():
    assert bits_needed(2, 2, 1 / 16, 1.0) == math.comb(16, 2)
    for tokens, channels, eps in ((4, 4, 0.01), (8, 4, 0.01), (8, 2, 0.01)):
        assert bits_needed(tokens, channels, eps) > 1e7 * published_bits(tokens, channels, eps)
    # Where the class is small enough, it is not too small.
    assert bits_needed(2, 2, 0.01) < published_bits(2, 2, 0.01)
    assert published_steps(2, 2, 0.125) == 1024  # and 3 bits have an error of 1/16


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: EquivariantTable(spread, 8, 4, 2), "at most 200,000 cases, got"),
        (lambda: EquivariantTable(spread, 0, 4, 2), "at least 1, got 0, 4 and 2"),
        (lambda: EquivariantTable(spread, 2, 2, 1)(torch.full((1, 2, 2), math.nan)), r"\[0, 1\]"),
        (lambda: bits_needed(2, 2, 0.0), "above 0"),
        (lambda: published_bits(2, 2, 1.5), "between 0 and 1"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(RangeError, match=text):
        call()


def test_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"\[batch, 2, 2\], got \(1, 3, 2\)"):
        EquivariantTable(spread, 2, 2, 1)(torch.zeros(1, 3, 2))
