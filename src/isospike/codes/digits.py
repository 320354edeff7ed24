"""Codes whose spikes are the digits of a number, the largest first: few steps, many levels.

    (1)  digit[t] = sign(r) if |r| > thresholds[t] else 0,  then  r -= step_weights[t] * digit[t]

starting from r, the integer value. A pair of neurons carries digits -1, 0, 1; one carries 0 and 1.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.codes.base import WeightedCode, check_values, widen


@dataclass(frozen=True)
class DigitCode(WeightedCode):
    """A code of digits, chosen greedily by (1)."""

    error_law = "2^-T"
    steps_per_octave = 1
    fit_steps = (5, 6, 7, 9)
    search_limit = 16
    sweep_steps = (2, 4, 6, 8)

    @property
    @abstractmethod
    def thresholds(self) -> tuple[int, ...]:
        """Largest remainder at which each step is silent."""

    def encode_integers(self, integers: Tensor) -> Tensor:
        remainder = integers.clone()
        lead = (self.steps, self.neurons) if self.neurons == 2 else (self.steps,)
        spikes = integers.new_empty(*lead, *integers.shape)
        weights = zip(self.step_weights, self.thresholds, strict=True)
        for t, (weight, threshold) in enumerate(weights):
            on = spikes[t, 0] if self.neurons == 2 else spikes[t]
            on.copy_(remainder > threshold)
            if self.neurons == 2:
                spikes[t, 1].copy_(remainder < -threshold)
                remainder.add_(spikes[t, 1], alpha=weight)
            remainder.sub_(on, alpha=weight)
        return spikes

    def count(self, x: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        remainder = self.integers(widen(self, x)).abs()
        total = torch.zeros_like(remainder)
        for weight, threshold in zip(self.step_weights, self.thresholds, strict=True):
            spikes = (remainder > threshold).to(remainder.dtype)
            total += spikes
            remainder.sub_(spikes, alpha=weight).abs_()
        return total.long()


@dataclass(frozen=True)
class PhaseCode(DigitCode):
    """Binary digits, most significant first: a spike at step t weighs ``2^-(t+1)``, normalised.

    The weights are divided by ``1 - 2^-T``, so that 1.0 is the train of T spikes.

    Reference: Kim, Kim, Huh, Lee, Choi (2018), Deep neural networks with weighted spikes.

    >>> import torch
    >>> PhaseCode(3).encode(torch.tensor(5 / 7)).tolist()
    [1.0, 0.0, 1.0]
    """

    name = "phase"
    summary = "binary digits of a value of one sign"
    spikes_per_octave = 1 / 2
    colour = "#7b5ea7"

    @property
    def levels(self) -> int:
        return int(2**self.steps - 1)

    @property
    def step_weights(self) -> tuple[int, ...]:
        return _powers(self.steps)

    @property
    def thresholds(self) -> tuple[int, ...]:
        return tuple(weight - 1 for weight in self.step_weights)


@dataclass(frozen=True)
class SignedDigitCode(DigitCode):
    """An ON/OFF pair that encodes a signed value with the fewest non-zero binary digits.

    The ON neuron spikes for digit +1, the OFF neuron for -1, never both; a spike at step t weighs
    ``2^-(t+1)``, normalised as in :class:`PhaseCode`. A step of weight w is silent up to a
    remainder of ``2 w / 3``. The digits are then the canonical signed-digit (non-adjacent) form
    wherever T digits can hold it: a third of them are non-zero on average, a half in plain binary,
    and 0.0 is silence.

    Reference: Reitwiesner (1960), Binary arithmetic (non-adjacent form has minimal weight).

    >>> import torch
    >>> on, off = SignedDigitCode(4).encode(torch.tensor(7 / 15)).unbind(1)
    >>> (on - off).tolist()
    [1.0, 0.0, 0.0, -1.0]
    """

    name = "signed-digit"
    summary = "fewest non-zero binary digits of a signed value"
    low = -1.0
    neurons = 2
    spikes_per_octave = 1 / 3
    colour = "#1f6f8b"

    @property
    def levels(self) -> int:
        return int(2**self.steps - 1)

    @property
    def step_weights(self) -> tuple[int, ...]:
        return _powers(self.steps)

    @property
    def thresholds(self) -> tuple[int, ...]:
        return tuple(2 * weight // 3 for weight in self.step_weights)


@dataclass(frozen=True)
class HalfOctaveCode(DigitCode):
    """An ON/OFF pair like :class:`SignedDigitCode` with two steps to the octave: fewer spikes.

    The weights fall as ..., 16, 12, 8, 6, 4, 3, 2, 1, normalised. A step of weight w before one of
    weight w' is silent up to a remainder of ``(w + w') / 2``: the nearest weight spikes. An octave
    costs 1/4 of a spike on average, not 1/3, for twice the steps. The digits are those of the
    non-adjacent form of window 3, +-1 and +-3.

    Reference: Cohen, Miyaji, Ono (1998), Efficient elliptic curve exponentiation (window forms).

    >>> import torch
    >>> on, off = HalfOctaveCode(5).encode(torch.tensor(5 / 7)).unbind(1)
    >>> (on - off).tolist()
    [0.0, 1.0, 0.0, 0.0, 1.0]
    """

    name = "half-octave"
    summary = "signed digits with two steps per octave: fewer spikes, more steps"
    low = -1.0
    neurons = 2
    error_law = "2^-T/2"
    steps_per_octave = 2
    spikes_per_octave = 1 / 4
    fit_steps = (9, 11, 13, 17)
    search_limit = 31
    sweep_steps = (3, 7, 11, 15)
    colour = "#3a9db0"

    @property
    def levels(self) -> int:
        half = (self.steps + 1) // 2
        return (1 << half) - 1 if self.steps % 2 else 3 * (1 << half - 1) - 1

    @property
    def step_weights(self) -> tuple[int, ...]:
        rising = [1, *(v << k for k in range(self.steps) for v in (2, 3))]
        return tuple(reversed(rising[: self.steps]))

    @property
    def thresholds(self) -> tuple[int, ...]:
        weights = self.step_weights
        return tuple((w + after) // 2 for w, after in zip(weights, (*weights[1:], 0), strict=True))


def _powers(steps: int) -> tuple[int, ...]:
    return tuple(2 ** (steps - 1 - t) for t in range(steps))
