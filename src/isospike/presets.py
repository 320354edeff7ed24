"""The neurons of other libraries as ours: by their arguments, or from a module of theirs.

Each function of parameters takes the arguments of the library's own neuron, with its names and
defaults, and the spikes are the same: tested against the libraries and against golden files made by
them. :func:`from_module` reads a neuron that is there.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from isospike.errors import RangeError, UnsupportedError
from isospike.kernels.neuron.ranges import check_range
from isospike.neurons import IF, LIF, PLIF, Neuron, NeuronParams
from isospike.surrogate import ATan, Erf, Sigmoid, SuperSpike, Surrogate, Triangle
from isospike.tensors import check_numbers

__all__ = ["from_module", "norse_lif_box", "snntorch_leaky", "spikingjelly_lif"]

SURROGATES: dict[str, type[Surrogate]] = {
    "spikingjelly.Sigmoid": Sigmoid, "spikingjelly.ATan": ATan, "spikingjelly.Erf": Erf,
    "spikingjelly.PiecewiseQuadratic": Triangle, "snntorch.atan": ATan, "snntorch.sigmoid": Sigmoid,
    "snntorch.fast_sigmoid": SuperSpike,
}  # fmt: skip
"""Ours by the library and its name there; the steepness means the same."""


def from_module(module: nn.Module) -> Neuron:
    """Our neuron that fires as another library's does.

    The state of ``module`` is not taken: ours has none, it is an argument of :meth:`Neuron.run`.
    Its input has time in front, as SpikingJelly's in the step mode ``m``.

    Args:
        module: SpikingJelly's ``IFNode``, ``LIFNode`` or ``ParametricLIFNode``, snnTorch's
            ``Leaky`` or Norse's ``LIFBoxCell``.

    Returns:
        An :class:`IF`, :class:`LIF` or :class:`PLIF` with the parameters as they are now.

    Raises:
        UnsupportedError: Another module, or a setting or surrogate that ours has not.
        RangeError: As for the function of its parameters in this module.

    >>> from_module(torch.nn.ReLU())
    Traceback (most recent call last):
    ...
    isospike.errors.UnsupportedError: from_module needs a neuron of SpikingJelly, snnTorch or \
Norse that it knows, got ReLU. Give one of IFNode, LIFNode, ParametricLIFNode, Leaky, LIFBoxCell.
    """
    library, name = type(module).__module__.partition(".")[0], type(module).__name__
    known: dict[str, Any] = {
        "spikingjelly.IFNode": _spikingjelly, "spikingjelly.LIFNode": _spikingjelly,
        "spikingjelly.ParametricLIFNode": _spikingjelly, "snntorch.Leaky": _snntorch,
        "norse.LIFBoxCell": _norse,
    }  # fmt: skip
    read = known.get(f"{library}.{name}")
    if read is None:
        raise UnsupportedError(
            "from_module needs a neuron of SpikingJelly, snnTorch or Norse that it knows, got "
            f"{name}. Give one of {', '.join(k.partition('.')[2] for k in known)}."
        )
    neuron: Neuron = read(module)
    return neuron


def _spikingjelly(node: Any) -> Neuron:
    kind = type(node).__name__
    surrogate = node.surrogate_function
    if not surrogate.spiking:
        raise UnsupportedError(
            f"from_module needs a surrogate that spikes, got {surrogate} of {kind}. Build it with "
            "spiking=True."
        )
    ours = _surrogate("spikingjelly", type(surrogate).__name__, getattr(surrogate, "alpha", None))
    common = {"v_threshold": node.v_threshold, "v_reset": node.v_reset,
              "detach_reset": node.detach_reset}  # fmt: skip
    if kind == "LIFNode":
        return LIF(spikingjelly_lif(node.tau, node.decay_input, **common), surrogate=ours)
    params = spikingjelly_lif(**common)._replace(gain=1.0, surrogate=ours)
    if kind == "IFNode":
        return IF(params)
    decay = 1 - torch.sigmoid(node.w.detach())
    return PLIF(params, decay=decay, input_decays=node.decay_input)


def _snntorch(leaky: Any) -> Neuron:
    if leaky.inhibition or float(leaky.graded_spikes_factor) != 1:
        raise UnsupportedError(
            "from_module needs a Leaky without inhibition and without graded spikes, got "
            f"inhibition={leaky.inhibition}, graded_spikes_factor={leaky.graded_spikes_factor}. "
            "Leave them at their defaults."
        )
    if leaky.beta.numel() != 1 or leaky.threshold.numel() != 1:
        raise UnsupportedError(
            f"from_module needs a Leaky with one beta and one threshold, got {leaky.beta.numel()} "
            f"and {leaky.threshold.numel()}. Build a LIF with tensors of them."
        )
    beta, threshold = (_exact(v) for v in (leaky.beta.clamp(0, 1), leaky.threshold))
    params = snntorch_leaky(beta, threshold, leaky.reset_mechanism, reset_delay=leaky.reset_delay)
    grad = leaky.spike_grad
    name = getattr(grad, "__qualname__", type(grad).__name__).partition(".")[0]
    alpha = grad.__closure__[0].cell_contents if getattr(grad, "__closure__", None) else None
    return LIF(params, surrogate=_surrogate("snntorch", name, alpha))


def _norse(cell: Any) -> Neuron:
    p = cell.p
    if p.method != "super":
        raise UnsupportedError(
            f"from_module needs a LIFBoxCell with Norse's method super, got {p.method!r}. "
            "Build a LIF with a surrogate of isospike."
        )
    rate, leak, threshold, reset = map(_exact, (p.tau_mem_inv, p.v_leak, p.v_th, p.v_reset))
    return LIF(norse_lif_box(rate, leak, threshold, reset, cell.dt))


def _exact(value: Any) -> float:
    """A number as it was written, where a tensor has rounded it."""
    return float(f"{float(value):.7g}")


def _surrogate(library: str, name: str, alpha: Any) -> Surrogate:
    ours = SURROGATES.get(f"{library}.{name}")
    if ours is None or alpha is None:
        names = ", ".join(k.partition(".")[2] for k in SURROGATES if k.startswith(library))
        raise UnsupportedError(
            f"from_module needs a surrogate of {names}, got {name}. Choose one of them, or build a "
            "LIF with a surrogate of isospike."
        )
    return ours(float(alpha))


def spikingjelly_lif(
    tau: float = 2.0,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
) -> NeuronParams:
    """SpikingJelly's ``LIFNode``.

    ``decay = 1 - 1/tau``, ``gain = 1/tau`` if ``decay_input`` else 1. Our membrane is theirs minus
    ``v_reset``, the value to which theirs decays.

    Args:
        tau: Membrane time constant, in steps.
        decay_input: Whether the input is divided by ``tau``.
        v_threshold: Threshold.
        v_reset: Membrane after a spike; None subtracts the threshold instead.
        detach_reset: Whether the gradient treats the spike of the reset as a constant.

    Returns:
        Parameters for :func:`isospike.neurons.run` and the layers.

    Raises:
        InputError: Something is not a number.
        RangeError: ``tau <= 1``, or the threshold is not above ``v_reset``.

    >>> spikingjelly_lif(tau=4.0).decay
    0.75

    Source: spikingjelly 2.0.0, tested against it. It charges by ``v + (x - v) / tau``, which rounds
    twice where (1) rounds differently; a spike differs where the membrane is within that of the
    threshold.
    """
    rest = 0.0 if v_reset is None else v_reset
    check_numbers("spikingjelly_lif", tau=tau, v_threshold=v_threshold, v_reset=rest)
    if not tau > 1:
        raise RangeError(
            f"spikingjelly_lif needs tau > 1, got {tau}. Use 2; for neurons without a leak, use IF."
        )
    threshold = v_threshold - rest
    check_range("spikingjelly_lif", "threshold", threshold)
    return NeuronParams(
        decay=1 - 1 / tau,
        gain=1 / tau if decay_input else 1.0,
        threshold=threshold,
        reset_to=None if v_reset is None else 0.0,
        detach_reset=detach_reset,
    )


def snntorch_leaky(
    beta: float, threshold: float = 1.0, reset_mechanism: str = "subtract", reset_delay: bool = True
) -> NeuronParams:
    """snnTorch's ``Leaky``, called step by step.

    It fires strictly above the threshold: our threshold is the next float32. Its default subtracts
    at the next step, after the decay: ``h[t] = beta h[t-1] + x[t] - threshold s[t-1]``, which is
    ``reset_by = threshold / beta``. Its ``mem`` is then h, ours the membrane after the reset.
    ``zero`` gives the same spikes whether delayed or not.

    Args:
        beta: Decay.
        threshold: Threshold.
        reset_mechanism: ``subtract``, ``zero`` or ``none``.
        reset_delay: Whether the reset comes one step after the spike.

    Returns:
        Parameters for :func:`isospike.neurons.run` and the layers.

    Raises:
        InputError: Something is not a number.
        RangeError: ``beta`` outside [0, 1]; 0 with a delayed reset, where there is no such
            parameter.
        UnsupportedError: ``subtract`` without delay, which in snnTorch is another rule (it does
            not subtract twice in a row), or an unknown mechanism.

    >>> snntorch_leaky(0.5).reset_by
    2.0

    Source: snntorch 1.0.0, tested against it.
    """
    check_numbers("snntorch_leaky", beta=beta, threshold=threshold)
    check_range("snntorch_leaky", "decay", beta)
    params = NeuronParams(
        beta, threshold=_just_above("snntorch_leaky", threshold), surrogate=ATan()
    )
    if reset_mechanism == "zero":
        return params._replace(reset_to=0.0)
    if reset_mechanism == "none":
        return params._replace(reset_by=0.0)
    if reset_mechanism != "subtract" or not reset_delay:
        raise UnsupportedError(
            "snntorch_leaky needs reset_mechanism zero, none or a delayed subtract, got "
            f"{reset_mechanism!r} with reset_delay={reset_delay}. Use one of them."
        )
    if beta == 0:
        raise RangeError(
            "snntorch_leaky needs beta > 0 to subtract at the next step, got 0. "
            "Use reset_mechanism='zero'."
        )
    return params._replace(reset_by=threshold / beta)


def norse_lif_box(
    tau_mem_inv: float = 100.0,
    v_leak: float = 0.0,
    v_th: float = 1.0,
    v_reset: float = 0.0,
    dt: float = 0.001,
) -> NeuronParams:
    """Norse's ``LIFBoxCell``.

    ``decay = 1 - dt tau_mem_inv``, ``gain = dt tau_mem_inv``. It resets to a value and fires
    strictly above the threshold. Our membrane is theirs minus ``v_leak``. Norse's own surrogate,
    "super", does not use its ``alpha``: it is ``SuperSpike(1)``.

    Args:
        tau_mem_inv: Inverse of the membrane's time constant, per second.
        v_leak: Value to which the membrane decays.
        v_th: Threshold.
        v_reset: Membrane after a spike.
        dt: Duration of a step, in seconds.

    Returns:
        Parameters for :func:`isospike.neurons.run` and the layers.

    Raises:
        InputError: Something is not a number.
        RangeError: ``dt tau_mem_inv`` outside [0, 1], or the threshold is not above ``v_leak``.

    >>> norse_lif_box(dt=0.005).decay
    0.5

    Source: norse 1.1.0, tested against it.
    """
    numbers = {"tau_mem_inv": tau_mem_inv, "v_leak": v_leak, "v_th": v_th, "v_reset": v_reset}
    check_numbers("norse_lif_box", **numbers, dt=dt)
    gain = dt * tau_mem_inv
    check_range("norse_lif_box", "decay", 1 - gain)
    return NeuronParams(
        decay=1 - gain,
        gain=gain,
        threshold=_just_above("norse_lif_box", v_th - v_leak),
        reset_to=v_reset - v_leak,
        detach_reset=False,
        surrogate=SuperSpike(1.0),
    )


def _just_above(owner: str, threshold: float) -> float:
    """The next float32: ``h >= _just_above(owner, threshold)`` is ``h > threshold``."""
    check_range(owner, "threshold", threshold)
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
