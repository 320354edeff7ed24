"""Surrogates: a step forward, the derivative of the documented primitive backward."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.errors import RangeError
from isospike.surrogate import SURROGATES, ATan, Erf, Sigmoid, SuperSpike, Triangle, spike

kinds = pytest.mark.parametrize("kind", SURROGATES.values(), ids=SURROGATES)


@kinds
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0, 25.0])
def test_the_gradient_is_the_derivative_of_the_documented_primitive(kind, alpha):
    # 601 points around the threshold and none on a corner of the triangle.
    u = (torch.linspace(-3, 3, 601, dtype=torch.float64) + 1e-4).requires_grad_()
    (ours,) = torch.autograd.grad(spike(u, kind(alpha)).sum(), u)
    (true,) = torch.autograd.grad(kind(alpha).primitive(u).sum(), u)
    torch.testing.assert_close(ours, true, rtol=1e-6, atol=1e-12)


@kinds
def test_the_gradient_is_the_slope_of_the_primitive_by_differences(kind):
    surrogate, eps = kind(2.0), 1e-5
    u = torch.linspace(-2, 2, 57, dtype=torch.float64) + 1e-3
    slope = (surrogate.primitive(u + eps) - surrogate.primitive(u - eps)) / (2 * eps)
    torch.testing.assert_close(surrogate.derivative(u), slope, rtol=1e-6, atol=1e-7)


@kinds
def test_twenty_decades_of_membranes_give_finite_even_falling_derivatives(kind):
    u = torch.logspace(-10, 10, 201)
    slope = kind().derivative(u)
    assert slope.isfinite().all()
    assert (slope >= 0).all()
    assert (slope.diff() <= 1e-6 * slope[:-1]).all()
    assert torch.equal(slope, kind().derivative(-u))


@kinds
def test_the_primitive_does_not_fall(kind):
    u = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    assert (kind(3.0).primitive(u).diff() >= 0).all()


@pytest.mark.parametrize(
    ("surrogate", "peak", "at_half"),
    [
        (Sigmoid(4.0), 1.0, 0.4199743416),
        (ATan(2.0), 1.0, 0.2884004),
        (Triangle(1.0), 1.0, 0.5),
        (Erf(2.0), 2 / math.sqrt(math.pi), 2 / math.sqrt(math.pi) / math.e),
        (SuperSpike(25.0), 1.0, 1 / 13.5**2),
    ],
)
def test_derivatives_by_hand(surrogate, peak, at_half):
    slope = surrogate.derivative(torch.tensor([0.0, -0.5], dtype=torch.float64))
    assert slope.tolist() == pytest.approx([peak, at_half], rel=1e-6)


@kinds
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_a_spike_is_a_step_that_fires_at_the_threshold(kind, values):
    u = torch.tensor([*values, 0.0, -0.0])
    assert torch.equal(spike(u, kind()), (u >= 0).float())


def test_nan_is_silent():
    assert spike(torch.tensor([torch.nan]), Sigmoid()).item() == 0


@kinds
def test_a_spike_may_be_differentiated_twice(kind):
    u = torch.tensor([-0.3, 0.02, 0.4], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(spike(u, kind(1.5)).sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u)
    (slope,) = torch.autograd.grad(kind(1.5).primitive(u).sum(), u, create_graph=True)
    (true,) = torch.autograd.grad(slope.sum(), u)
    torch.testing.assert_close(second, true)


@kinds
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_alpha_is_a_steepness(kind, alpha):
    with pytest.raises(RangeError, match=rf"^{kind.__name__} needs a finite alpha > 0, got"):
        kind(alpha)
