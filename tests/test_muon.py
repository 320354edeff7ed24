"""Muon: even steps, whose singular values are near 1, that keep the size of a weight."""

import pytest
import torch
from torch import nn

from isospike.train.muon import Muon, can_even, even_out


@pytest.mark.parametrize("shape", [(4, 4), (6, 20), (20, 6), (1, 9)])
def test_singular_values_become_nearly_one_and_vectors_stay(shape):
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=g).double()
    u, sizes, vectors = torch.linalg.svd(matrix, full_matrices=False)
    got = u.T @ even_out(matrix) @ vectors.T
    assert torch.allclose(got, torch.diag(got.diagonal()), atol=1e-12)
    large = sizes > 0.1 * sizes.norm()
    assert got.diagonal()[large].min() > 0.6
    assert got.diagonal().max() < 1.3


def test_a_step_by_hand():
    """One row: x = u / |u| stays a unit vector, of which (3) makes a multiple."""
    w = nn.Parameter(torch.tensor([[[[3.0]], [[4.0]]]]))
    optimiser = Muon([{"params": [w], "even": True}], lr=0.1, momentum=0.5)
    w.grad = torch.tensor([[[[0.0]], [[2.0]]]])
    optimiser.step()
    factor = 1.0
    for _ in range(3):
        factor = 3.4445 * factor - 4.775 * factor**3 + 2.0315 * factor**5
    torch.testing.assert_close(w.detach().flatten(), torch.tensor([3.0, 4.0 - 0.1 * factor]))
    w.grad = torch.zeros_like(w)
    before = w.detach().clone()
    optimiser.step()  # the momentum alone, after the size is 5 again
    kept = (before * (5 / before.norm())).flatten()
    torch.testing.assert_close(w.detach().flatten(), kept - torch.tensor([0.0, 0.1 * factor]))


def test_other_weights_take_the_steps_of_sgd():
    g = torch.Generator().manual_seed(1)
    ours = nn.Parameter(torch.randn(3, 4, generator=g))
    theirs = nn.Parameter(ours.detach().clone())
    settings = {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-2}
    one, other = (
        Muon([{"params": [ours], **settings}]),
        torch.optim.SGD([theirs], nesterov=True, **settings),
    )
    for _ in range(4):
        grad = torch.randn(3, 4, generator=g)
        ours.grad, theirs.grad = grad, grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_a_closure_computes_the_gradients_and_gives_the_loss():
    w = nn.Parameter(torch.tensor([2.0]))
    optimiser = Muon([{"params": [w]}], lr=0.1, momentum=0.0)

    def closure():
        optimiser.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss.item()

    assert optimiser.step(closure) == 4.0
    torch.testing.assert_close(w.detach(), torch.tensor([1.6]))


def test_convolutions_that_mix_channels_alone_take_even_steps():
    assert can_even(nn.Conv2d(3, 4, 3).weight)
    assert not can_even(nn.Conv2d(4, 4, 3, groups=4).weight)
    assert not can_even(nn.Linear(3, 4).weight)
    assert not can_even(nn.Conv2d(3, 4, 3).bias)
    assert not can_even(nn.Conv2d(3, 4, 3).requires_grad_(False).weight)


def test_a_weight_that_begins_at_zero_stays_finite():
    w = nn.Parameter(torch.zeros(2, 3, 1, 1))
    optimiser = Muon([{"params": [w], "even": True}], lr=0.1)
    for _ in range(3):
        w.grad = torch.ones_like(w)
        optimiser.step()
    assert w.isfinite().all()
