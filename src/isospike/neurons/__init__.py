"""Spiking neurons, synaptic currents, leaky integrators and delays, with explicit state.

:mod:`isospike.neurons.spiking` has the recurrence of IF, LIF and PLIF; without its spike it is the
integrator of :mod:`isospike.neurons.currents`, which is a synaptic current before a neuron.
"""

from isospike.neurons.currents import (
    CubaLIF,
    CubaState,
    Delay,
    DelayState,
    Integrator,
    IntegratorParams,
    delay,
    integrate,
)
from isospike.neurons.norms import fold_norm, scale_and_shift
from isospike.neurons.spiking import (
    IF,
    LIF,
    PLIF,
    Neuron,
    NeuronParams,
    NeuronState,
    compile_neuron,
    run,
    step,
)

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "CubaLIF",
    "CubaState",
    "Delay",
    "DelayState",
    "Integrator",
    "IntegratorParams",
    "Neuron",
    "NeuronParams",
    "NeuronState",
    "compile_neuron",
    "delay",
    "fold_norm",
    "integrate",
    "run",
    "scale_and_shift",
    "step",
]
