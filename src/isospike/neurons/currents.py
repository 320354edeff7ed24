"""Synaptic currents, leaky integrators and delays: what carries a signal to a neuron.

A leaky integrator is line (1) of the recurrence of :mod:`isospike.neurons.spiking` without the
spike:

(1)  v[t] = decay v[t-1] + gain x[t] + bias

Before a neuron it is its synaptic current, and the two are a CubaLIF, which reads the current of
the same step. A delay gives what came some steps ago. State goes in and comes out.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isospike.errors import RangeError, ShapeError
from isospike.kernels.neuron.reference import integrate_steps
from isospike.neurons.checks import read_steps
from isospike.neurons.spiking import (
    DEFAULT,
    LIF,
    NeuronParams,
    NeuronState,
    _check_param,
    _check_state,
)
from isospike.tensors import check_kind

__all__ = [
    "CubaLIF", "CubaState", "Delay", "DelayState", "Integrator", "IntegratorParams", "delay",
    "integrate",
]  # fmt: skip


class IntegratorParams(NamedTuple):
    """Parameters of a leaky integrator; tensors as for :class:`isospike.neurons.NeuronParams`.

    Attributes:
        decay: Share that a step keeps, in [0, 1]; 1 is no leak.
        gain: Multiplies the input.
        bias: Constant current.

    >>> IntegratorParams(decay=0.9).gain
    1.0
    """

    decay: float | Tensor = 0.5
    gain: float | Tensor = 1.0
    bias: float | Tensor = 0.0


class CubaState(NamedTuple):
    """Current and membrane of a CubaLIF between two steps.

    Attributes:
        current: ``v`` of the integrator, one step of the input.
        membrane: ``v`` of the neuron.

    >>> _, state = CubaLIF().run(torch.ones(1, 2))
    >>> state.current, state.membrane
    (tensor([1., 1.]), tensor([0., 0.]))
    """

    current: Tensor
    membrane: Tensor


class DelayState(NamedTuple):
    """What a delay still holds.

    Attributes:
        waiting: ``[longest, *shape]``: the last inputs, the oldest first; longest is the most steps
            that an entry waits.

    >>> delay(torch.ones(1, 2), 3)[1].waiting[:, 0]
    tensor([0., 0., 1.])
    """

    waiting: Tensor


CURRENT = IntegratorParams()


def integrate(
    x: Tensor, state: NeuronState | None = None, params: IntegratorParams = CURRENT
) -> tuple[Tensor, NeuronState]:
    """Run leaky integrators through all steps of ``x``; the equation is in the module's head.

    Args:
        x: Input ``[steps, *shape]``; float32, bfloat16 or float64, or whole numbers such as counts
            of events, which are read as float32.
        state: Value to start from; None is 0.
        params: Parameters of the integrators.

    Returns:
        Values of every step, shape of ``x``, in float32, or float64 for such an input; and the
        state after the last step.

    Raises:
        InputError: Something is no tensor, state or parameters.
        ShapeError: Time is missing or has no steps; a parameter does not broadcast to one step; the
            state has another shape.
        RangeError: A number is outside its range, or a tensor of another type or device.

    Gradient: of the input, the state and the parameters, exact.

    >>> values, state = integrate(torch.ones(3, 1))
    >>> values.flatten(), state.v
    (tensor([1.0000, 1.5000, 1.7500]), tensor([1.7500]))
    """
    return _integrate("integrate", x, state, params)


def _integrate(
    owner: str, x: Tensor, state: NeuronState | None, params: IntegratorParams
) -> tuple[Tensor, NeuronState]:
    x = read_steps(owner, x)
    check_kind(owner, "params", params, IntegratorParams, "IntegratorParams(decay=0.9)")
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = [_check_param(owner, n, v, x, kind) for n, v in params._asdict().items()]
    v = None if state is None else _check_state(owner, state, x, kind)
    found, last = integrate_steps(x, v, values)
    return found, NeuronState(last)


def delay(
    x: Tensor, steps: int | Tensor, state: DelayState | None = None
) -> tuple[Tensor, DelayState]:
    """Give every entry some steps later: ``y[t] = x[t - steps]``, and 0 before there was input.

    Args:
        x: Input ``[time, *shape]``, floating point or whole numbers.
        steps: Whole number of steps, at least 0; or one for each entry, as an integer tensor
            broadcastable to ``shape``.
        state: What was still held; None is nothing.

    Returns:
        The delayed input, shape of ``x``, and what is still held.

    Raises:
        InputError: ``x`` is no tensor.
        ShapeError: Time is missing, ``steps`` does not broadcast, or the state has another shape.
        RangeError: A number of steps is negative or not whole.

    Gradient: that of the entry which came out.

    >>> delay(torch.tensor([[1.0], [2.0], [3.0]]), 1)[0].flatten()
    tensor([0., 1., 2.])
    """
    x = read_steps("delay", x)
    wait = _check_wait("delay", steps).to(x.device)
    shape = x.shape[1:]
    try:
        wait = wait.expand(shape)
    except RuntimeError:
        raise ShapeError(
            f"delay needs steps broadcastable to one step {tuple(shape)}, got {tuple(wait.shape)}. "
            "Axes align at the end."
        ) from None
    longest = int(wait.max()) if wait.numel() else 0
    held = x.new_zeros(longest, *shape) if state is None else state.waiting
    if held.shape != (longest, *shape):
        raise ShapeError(
            f"delay needs a state of shape {(longest, *shape)}, got {tuple(held.shape)}. A new "
            "batch needs a new state; None holds nothing."
        )
    line = torch.cat([held, x])
    time = torch.arange(len(x), device=x.device).view(-1, *[1] * len(shape))
    at = (time + longest - wait).expand(len(x), *shape)
    return line.gather(0, at), DelayState(line[len(x) :])


def _check_wait(owner: str, steps: int | Tensor) -> Tensor:
    wait = torch.as_tensor(steps)
    if wait.is_floating_point() or wait.dtype == torch.bool or bool((wait < 0).any()):
        raise RangeError(
            f"{owner} needs whole numbers of steps of at least 0, got {steps}. Divide times by the "
            "duration of a step first."
        )
    return wait.long()


class Integrator(nn.Module):
    """A layer of leaky integrators. It holds parameters and no state.

    Args:
        params: Parameters; tensors become buffers.

    >>> Integrator(IntegratorParams(decay=1.0))(torch.ones(3, 1)).flatten()
    tensor([1., 2., 3.])
    """

    def __init__(self, params: IntegratorParams = CURRENT) -> None:
        super().__init__()
        self._fixed = _hold(self, params)

    @property
    def params(self) -> IntegratorParams:
        """The parameters, where the layer is now."""
        return IntegratorParams(**_held(self, self._fixed))

    def forward(self, x: Tensor) -> Tensor:
        """Integrate ``x [steps, *shape]`` from 0; errors as for :func:`integrate`.

        Args:
            x: Values ``[steps, *shape]``.

        Returns:
            The integrated values, in the shape of ``x``.
        """
        return self.run(x)[0]

    def run(self, x: Tensor, state: NeuronState | None = None) -> tuple[Tensor, NeuronState]:
        """Integrate ``x [steps, *shape]`` from a state; errors as for :func:`integrate`.

        Args:
            x: Values ``[steps, *shape]``.
            state: What a call before returned; None for 0.

        Returns:
            The integrated values, and the state after the last step.
        """
        return _integrate("Integrator", x, state, self.params)


class CubaLIF(nn.Module):
    """LIF neurons that read a synaptic current, which decays too.

    ``current[t] = decay current[t-1] + gain x[t]``, and the neuron reads ``current[t]``.

    Args:
        params: Parameters of the neurons.
        synapse: Parameters of their currents.

    >>> layer = CubaLIF(NeuronParams(threshold=1.5), IntegratorParams(decay=0.5))
    >>> layer(torch.ones(4, 1)).flatten()
    tensor([0., 1., 1., 1.])
    """

    def __init__(self, params: NeuronParams = DEFAULT, synapse: IntegratorParams = CURRENT) -> None:
        super().__init__()
        self.neurons = LIF(params)
        self.synapse = Integrator(synapse)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of ``x [steps, *shape]`` from rest; errors as for :func:`integrate`.

        Args:
            x: Values ``[steps, *shape]``.

        Returns:
            Spikes, 0 or 1, in the shape of ``x``.
        """
        return self.run(x)[0]

    def run(self, x: Tensor, state: CubaState | None = None) -> tuple[Tensor, CubaState]:
        """Spikes of ``x [steps, *shape]`` from a state; errors as for :func:`integrate`.

        Args:
            x: Values ``[steps, *shape]``.
            state: What a call before returned; None for rest.

        Returns:
            The spikes, and the state after the last step.
        """
        if state is not None:
            check_kind("CubaLIF", "state", state, CubaState, "CubaState(current, membrane)")
        before = (None, None) if state is None else tuple(NeuronState(v) for v in state)
        current, synapse = self.synapse.run(x, before[0])
        spikes, neurons = self.neurons.run(current, before[1])
        return spikes.to(x.dtype), CubaState(synapse.v, neurons.v)


class Delay(nn.Module):
    """A layer that gives its input some steps later; it holds no state.

    Args:
        steps: Steps of all entries, or a tensor of one for each; see :func:`delay`.

    Raises:
        RangeError: A number of steps is negative or not whole.

    >>> Delay(2)(torch.tensor([[1.0], [2.0], [3.0]])).flatten()
    tensor([0., 0., 1.])
    """

    steps: Tensor

    def __init__(self, steps: int | Tensor) -> None:
        super().__init__()
        self.register_buffer("steps", _check_wait("Delay", steps))

    def forward(self, x: Tensor) -> Tensor:
        """Delay ``x [time, *shape]``; errors as for :func:`delay`.

        Args:
            x: Values ``[steps, *shape]``.

        Returns:
            ``x``, later; the first steps are 0.
        """
        return self.run(x)[0]

    def run(self, x: Tensor, state: DelayState | None = None) -> tuple[Tensor, DelayState]:
        """Delay ``x``, after what was still held; errors as for :func:`delay`.

        Args:
            x: Values ``[steps, *shape]``.
            state: What a call before returned; None if nothing is held.

        Returns:
            The delayed values, and what is still held.
        """
        return delay(x, self.steps, state)


def _hold(module: nn.Module, params: IntegratorParams) -> dict[str, float]:
    """Keep tensors as buffers, and give the numbers."""
    check_kind(
        type(module).__name__, "params", params, IntegratorParams, "IntegratorParams(decay=0.9)"
    )
    numbers = {}
    for name, value in params._asdict().items():
        if isinstance(value, Tensor):
            module.register_buffer(name, value)
        else:
            numbers[name] = value
    return numbers


def _held(module: nn.Module, fixed: dict[str, float]) -> dict[str, Any]:
    return {n: getattr(module, n) if n not in fixed else fixed[n] for n in CURRENT._fields}
