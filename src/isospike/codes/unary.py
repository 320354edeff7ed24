"""Codes whose number of levels grows with the number of steps: rate, Bernoulli and latency."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.codes.base import WeightedCode, check_values, widen


@dataclass(frozen=True)
class UnaryCode(WeightedCode):
    """A code of one neuron with about as many levels as steps."""

    max_steps = 4096
    error_law = "T^-1"
    error_power = 1.0
    fit_steps = (8, 24, 64, 128)
    search_limit = 256
    sweep_steps: ClassVar[tuple[int, ...]] = (8, 32, 128)

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def step_weights(self) -> tuple[int, ...]:
        return (1,) * self.steps


@dataclass(frozen=True)
class RateCode(UnaryCode):
    """Spike count of an integrate-and-fire neuron driven by the constant current ``x``.

    Soft reset, membrane started at half threshold: the count after t steps is ``floor(x t + 1/2)``,
    which is the closed form used here. Error at most ``1 / (2 T)``.

    >>> import torch
    >>> RateCode(4).encode(torch.tensor(0.75)).tolist()
    [1.0, 1.0, 0.0, 1.0]
    """

    name = "rate"
    summary = "spike count of an integrate-and-fire neuron"
    colour = "#c8553d"

    def encode(self, x: Float[Tensor, "*shape"]) -> Tensor:
        check_values(self, x)
        v = widen(self, x)
        time = torch.arange(self.steps + 1, dtype=v.dtype, device=v.device)
        counts = torch.floor(time.view(-1, *[1] * v.dim()) * v + 0.5)
        return counts.diff(dim=0).to(x.dtype)

    def encode_integers(self, integers: Tensor) -> Tensor:
        # The train of the current N / T, in integers: after t steps, floor(N t / T + 1/2).
        time = torch.arange(self.steps + 1, dtype=torch.float64, device=integers.device)
        doubled = 2 * time.view(-1, *[1] * integers.dim()) * integers.double() + self.steps
        return torch.floor(doubled / (2 * self.steps)).diff(dim=0).to(integers.dtype)

    def count(self, x: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return self.integers(widen(self, x)).long()


@dataclass(frozen=True)
class BernoulliCode(UnaryCode):
    """Independent spikes of probability ``x`` at every step; the variance is ``x (1 - x) / T``.

    The only random code: ``encode``, ``quantize``, ``count`` and ``integers`` take a ``generator``,
    torch's global one if not given, and agree when given generators in the same state.

    >>> import torch
    >>> BernoulliCode(4).count(torch.tensor([0.0, 1.0])).tolist()
    [0, 4]
    """

    name = "bernoulli"
    summary = "independent random spikes"
    error_law = "T^-1/2"
    error_power = 0.5
    sweep_steps = (4, 16)
    colour = "#c99a2e"

    @property
    def mean_square_error(self) -> float:
        return 1 / (6 * self.steps)

    def integers(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        total = torch.zeros_like(x)
        for _ in range(self.steps):
            total += _draw(x, generator)
        return total

    def encode(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Tensor:
        check_values(self, x)
        v = widen(self, x)
        return torch.stack([_draw(v, generator) for _ in range(self.steps)]).to(x.dtype)

    def encode_integers(self, integers: Tensor) -> Tensor:
        # The order of a given number of spikes does not matter to a sum: the rate train is as good.
        return RateCode(self.steps).encode_integers(integers)

    def quantize(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        check_values(self, x)
        return (self.integers(widen(self, x), generator=generator) / self.levels).to(x.dtype)

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return self.integers(widen(self, x), generator=generator).long()


@dataclass(frozen=True)
class LatencyCode(UnaryCode):
    """One spike per value; a larger value spikes earlier: ``time(x) = (T-1) - round(x (T-1))``.

    Reference: Thorpe, Delorme, Van Rullen (2001), Spike-based strategies for rapid processing.

    >>> import torch
    >>> LatencyCode(5).encode(torch.tensor([0.25, 1.0])).argmax(0).tolist()
    [3, 0]
    """

    name = "latency"
    summary = "the time of a single spike"
    min_steps = 2
    colour = "#5b8c5a"

    @property
    def levels(self) -> int:
        return self.steps - 1

    @property
    def step_weights(self) -> tuple[int, ...]:
        return tuple(range(self.steps - 1, -1, -1))

    def encode_integers(self, integers: Tensor) -> Tensor:
        time = (self.levels - integers).long()
        spikes = torch.zeros(
            self.steps, *integers.shape, dtype=integers.dtype, device=integers.device
        )
        return spikes.scatter(0, time[None], 1.0)

    def count(self, x: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return torch.ones_like(x, dtype=torch.long)


def _draw(x: Tensor, generator: torch.Generator | None) -> Tensor:
    place = x.device if generator is None else generator.device
    noise = torch.rand(x.shape, dtype=x.dtype, device=place, generator=generator).to(x.device)
    return (noise < x).to(x.dtype)
