import math

import pytest
import torch

from isospike.circuits.few_spike import (
    BUILTIN,
    FewSpikeNeuron,
    few_spike_neuron,
    fit_few_spike,
    measure,
)
from isospike.errors import InputError, RangeError

HALVES = FewSpikeNeuron(0.0, 2.0, (0.5, 0.25), (0.5, 0.25), (4.0, 2.0), 1.0, 0.0, 0.0, 0.0)


def test_a_neuron_by_hand():
    # v = x / 2; binary digits of it, worth 4 and 2, above 1.
    x = torch.tensor([0.0, 0.5, 1.0, 1.6, 2.0])
    assert HALVES.encode(x).tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]]
    assert HALVES(x).tolist() == [1, 3, 5, 7, 7]


@pytest.mark.parametrize("name", BUILTIN)
def test_a_shipped_neuron_has_the_error_it_states(name):
    function, low, high = BUILTIN[name]
    neuron = few_spike_neuron(name)
    assert (neuron.low, neuron.high, neuron.steps) == (low, high, 16)
    generator = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(200_000, generator=generator, dtype=torch.float64)
    error = neuron(x) - function(x)
    assert float(error.square().mean().sqrt()) == pytest.approx(neuron.error, rel=0.02)
    assert float(error.abs().max()) <= neuron.largest * 1.05
    assert float(neuron.encode(x).sum(0).mean()) == pytest.approx(neuron.spikes, rel=0.01)
    again = measure(neuron, function)
    assert again.error == pytest.approx(neuron.error, rel=1e-6)
    # Counting the value itself in 16 steps has 1.7 % of its range.
    values = function(torch.linspace(low, high, 999, dtype=torch.float64))
    span = float(values.max() - values.min())
    assert neuron.error < 0.013 * span
    assert neuron(x.float()).dtype == torch.float32


def test_a_fit_finds_a_staircase_it_can_hold_exactly():
    def digits(x):
        return torch.floor(x * 8).clamp_max(7) / 8

    neuron = fit_few_spike(digits, 0.0, 1.0, 3, rounds=1)
    assert neuron.error < 0.01  # its start: three binary digits


def test_a_fit_is_the_same_for_the_same_generator_and_better_with_more_rounds():
    def fit(rounds):
        generator = torch.Generator().manual_seed(1)
        return fit_few_spike(torch.exp, -2.0, 0.0, 6, rounds=rounds, generator=generator)

    assert fit(50) == fit(50)
    assert fit(800).error < fit(1).error


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: few_spike_neuron("exp")(torch.tensor([0.5])),
            r"values in \[-8, 0\], got 0.5 \(1 of 1",
        ),
        (lambda: HALVES.encode(torch.tensor([math.nan])), "got nan"),
        (lambda: fit_few_spike(torch.exp, 0.0, 0.0), "low < high, got 16, 20000, 0 and 0"),
        (lambda: fit_few_spike(torch.exp, 0.0, 1.0, 0), "steps from 1 to 32"),
        (lambda: fit_few_spike(torch.log, -1.0, 1.0), "finite on"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(RangeError, match=text):
        call()


def test_an_unknown_neuron_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="sqrt, gelu, .*, softplus residual, erf, got 'tan'"):
        few_spike_neuron("tan")
