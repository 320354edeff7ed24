"""Leaky integrators, synaptic currents and delays: the recurrence without its spike."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.errors import RangeError, ShapeError
from isospike.neurons import (
    LIF,
    CubaLIF,
    CubaState,
    Delay,
    DelayState,
    Integrator,
    IntegratorParams,
    NeuronParams,
    NeuronState,
    delay,
    integrate,
    run,
)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(st.floats(0, 1), st.floats(-2, 2), st.integers(1, 12), st.integers(0, 99))
def test_an_integrator_is_the_sum_of_what_it_keeps(decay, gain, steps, seed):
    x = draw(steps, 3, seed=seed, dtype=torch.float64)
    found, _ = integrate(x, None, IntegratorParams(decay, gain, 0.25))
    kept = decay ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    right = (kept[:, None] * (gain * x + 0.25)).sum(0)
    torch.testing.assert_close(found[-1], right)


def test_an_integrator_hand_trace():
    # v = 1, 1/2 + 2 = 2.5, 1.25 + 4 = 5.25
    found, state = integrate(torch.tensor([[1.0], [2.0], [4.0]]))
    assert found.flatten().tolist() == [1.0, 2.5, 5.25]
    assert state.v.item() == 5.25


def test_the_gradient_of_an_integrator_is_what_a_step_keeps():
    x = torch.zeros(4, 1, requires_grad=True)
    integrate(x)[0][-1].sum().backward()
    assert x.grad.flatten().tolist() == [0.125, 0.25, 0.5, 1.0]


def test_an_integrator_is_the_membrane_of_a_neuron_that_never_fires():
    x = draw(9, 4)
    params = NeuronParams(0.75, gain=0.5, bias=0.125, threshold=1e9)
    found, state = integrate(x, None, IntegratorParams(0.75, 0.5, 0.125))
    _, last = run(x, None, params)
    assert torch.equal(state.v, last.v)
    assert torch.equal(found[-1], last.v)


LAYERS = {
    "integrator": Integrator(IntegratorParams(torch.tensor([0.5, 0.75, 1.0]))),
    "current and neuron": CubaLIF(NeuronParams(0.75, threshold=0.6), IntegratorParams(0.5)),
    "delay": Delay(torch.tensor([0, 1, 3])),
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@layers
@pytest.mark.parametrize("cut", range(1, 6))
def test_a_layer_may_be_cut_anywhere_in_time(layer, cut):
    x = draw(6, 2, 3, seed=cut)
    whole, end = layer.run(x)
    head, state = layer.run(x[:cut])
    tail, state = layer.run(x[cut:], state)
    assert torch.equal(torch.cat([head, tail]), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, end, strict=True))


@layers
def test_rows_of_a_batch_do_not_touch_each_other(layer):
    x = draw(6, 4, 3)
    assert torch.equal(layer(x)[:, [2, 0]], layer(x[:, [2, 0]]))


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_keeps_its_input_and_its_type(layer, dtype):
    if dtype == torch.float64 and not isinstance(layer, Delay):
        layer = type(layer)()
    x = draw(5, 2, 3).to(dtype)
    before = x.clone()
    y = layer(x)
    assert torch.equal(x, before)
    assert y.dtype in (dtype, torch.float32)


def test_a_neuron_with_a_current_is_a_neuron_behind_an_integrator():
    x = draw(12, 5)
    params, synapse = NeuronParams(0.75, threshold=0.7, reset_to=0.0), IntegratorParams(0.5)
    spikes, state = CubaLIF(params, synapse).run(x)
    current, held = integrate(x, None, synapse)
    right, last = run(current, None, params)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, right)
    assert torch.equal(state.current, held.v)
    assert torch.equal(state.membrane, last.v)


def test_a_delay_gives_what_came_before_and_zero_at_first():
    x = torch.arange(1.0, 6.0)[:, None].expand(5, 3)
    y, state = delay(x, torch.tensor([0, 2, 7]))
    assert y.T.tolist() == [[1, 2, 3, 4, 5], [0, 0, 1, 2, 3], [0, 0, 0, 0, 0]]
    assert state.waiting.shape == (7, 3)
    later, _ = delay(x, torch.tensor([0, 2, 7]), state)
    assert later.T.tolist() == [[1, 2, 3, 4, 5], [4, 5, 1, 2, 3], [0, 0, 1, 2, 3]]


def test_the_gradient_of_a_delay_goes_to_what_came_out():
    x = torch.ones(4, 1, requires_grad=True)
    delay(x, 1)[0].sum().backward()
    assert x.grad.flatten().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("steps", [-1, torch.tensor([0, -2, 1]), torch.tensor([0.5, 1.0, 2.0])])
def test_what_is_no_number_of_steps_is_refused(steps):
    for call in (lambda: Delay(steps), lambda: delay(torch.zeros(2, 3), steps)):
        with pytest.raises(RangeError, match="needs whole numbers of steps of at least 0, got"):
            call()


def test_states_and_parameters_of_other_shapes_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"integrate needs state.v of the shape of one step, got"):
        integrate(x, NeuronState(torch.zeros(1)))
    with pytest.raises(ShapeError, match=r"delay needs a state of shape \(2, 3\), got \(1, 3\)"):
        delay(x, 2, DelayState(torch.zeros(1, 3)))
    with pytest.raises(ShapeError, match="delay needs steps broadcastable to one step"):
        delay(x, torch.tensor([1, 2]))
    with pytest.raises(ShapeError, match="integrate needs decay broadcastable to one step"):
        integrate(x, None, IntegratorParams(torch.full((2,), 0.5)))
    with pytest.raises(RangeError, match=r"Integrator needs decay in \[0, 1\], got 2"):
        Integrator(IntegratorParams(2.0))(x)
    with pytest.raises(ShapeError, match="delay needs at least one step along axis 0"):
        delay(torch.zeros(0, 3), 1)
    assert isinstance(CubaLIF().run(x)[1], CubaState)
    assert LIF()(x).shape == x.shape
