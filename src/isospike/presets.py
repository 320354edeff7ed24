"""Parameters of the neurons of other libraries, for :mod:`isospike.neurons`.

Each function takes the arguments of the library's own neuron, with its names and defaults, and the
spikes are the same: tested against the libraries and against golden files made by them.
"""

import numpy as np

from isospike.errors import RangeError, UnsupportedError
from isospike.kernels.neuron.ranges import check_range
from isospike.neurons import NeuronParams
from isospike.surrogate import ATan, SuperSpike
from isospike.tensors import check_numbers

__all__ = ["norse_lif_box", "snntorch_leaky", "spikingjelly_lif"]


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
