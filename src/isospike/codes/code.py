"""Numbers to spike trains and back.

A code is a frozen object with ``steps``. Time is axis 0 of every spike train and each neuron spikes
at most once per step. ``quantize(x)`` is ``decode(encode(x))`` bit for bit, without the time axis.

A *linear* code decodes by a weighted sum, ``decode(s) = sum_t weights[t] * s[t]``, so a matrix
product commutes with it: ``W @ decode(s) = sum_t weights[t] * (W @ s[t])``. Its values are the
integers ``0 .. levels`` (``-levels .. levels`` for an ON/OFF pair) divided by ``levels``.

=================  ==============  ========  ====================  ==========================
code               name            neurons   levels                root-mean-square error [1]_
=================  ==============  ========  ====================  ==========================
RateCode           rate            1         T                     1 / (sqrt(12) T)
BernoulliCode      bernoulli       1         T                     1 / sqrt(6 T)
PhaseCode          phase           1         2^T - 1               1 / (sqrt(12) (2^T - 1))
SignedDigitCode    signed-digit    2         2^T - 1 each sign     1 / (sqrt(12) (2^T - 1))
HalfOctaveCode     half-octave     2         2^(T/2) [2]_          1 / (sqrt(12) levels)
LatencyCode        latency         1         T - 1                 1 / (sqrt(12) (T - 1))
RankOrderCode      (vectors)       1         --                    --
=================  ==============  ========  ====================  ==========================

.. [1] For x uniform over the code's range.
.. [2] ``2^((T + 1) / 2) - 1`` for odd T, ``3 * 2^(T / 2 - 1) - 1`` for even T.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.codes.orders import check_alpha, nof_m
from isospike.errors import RangeError, ShapeError


@dataclass(frozen=True)
class Code(ABC):
    """Numbers <-> spike trains of ``steps`` time steps.

    Attributes:
        steps: Length of the spike train.
        name: Its name on the command line and in files.
        low: Smallest value it can carry; the largest is 1.
        neurons: Neurons per value: 1, or 2 for an ON/OFF pair.
        min_steps, max_steps: Range of ``steps``.
    """

    steps: int

    name: ClassVar[str]
    low: ClassVar[float] = 0.0
    neurons: ClassVar[int] = 1
    min_steps: ClassVar[int] = 1
    max_steps: ClassVar[int] = 32

    def __post_init__(self) -> None:
        check_steps(type(self), self.steps)

    @abstractmethod
    def encode(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Spikes of ``x``.

        Args:
            x: Values in [``low``, 1], any shape, floating point.
            generator: Source of randomness; only :class:`BernoulliCode` draws.

        Returns:
            Spikes in {0, 1}, shape ``[steps, *x.shape]``, or ``[steps, 2, *x.shape]`` (ON, OFF) for
            a pair. Dtype and device of ``x``.

        Raises:
            RangeError: Some value is NaN or out of range.

        Gradient: none, the spikes are a rounding of ``x``.
        """

    @abstractmethod
    def decode(self, spikes: Tensor) -> Tensor:
        """Values of a spike train; the inverse of :meth:`encode` up to its rounding.

        Raises:
            ShapeError: The leading axes are not ``[steps]`` (``[steps, 2]`` for a pair).
            RangeError: ``spikes`` is not floating point; values have the dtype of their spikes.
        """

    def quantize(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        """``decode(encode(x))``, bit for bit, without building the time axis."""
        return self.decode(self.encode(x, generator=generator))

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        """Spikes emitted for each value of ``x``, over all steps and both neurons of a pair."""
        spikes = self.encode(x, generator=generator)
        return spikes.sum(tuple(range(self.neurons))).long()


@dataclass(frozen=True)
class LinearCode(Code):
    """A code that decodes by a weighted sum over time; see the module's head.

    Subclasses give the integer value of each number (:meth:`integers`), the digits of each integer
    (:meth:`spell`) and the integer weight of each step (:attr:`step_weights`).
    """

    @property
    @abstractmethod
    def levels(self) -> int:
        """Largest integer value: ``decode`` gives multiples of ``1 / levels``."""

    @property
    @abstractmethod
    def step_weights(self) -> tuple[int, ...]:
        """Integer weight of a spike at each step; ``weights * levels``."""

    @abstractmethod
    def spell(self, integers: Tensor) -> Tensor:
        """Spikes of integer values, ``[steps, *shape]`` or ``[steps, 2, *shape]``, unchecked."""

    @property
    def mean_square_error(self) -> float:
        """Mean of ``(quantize(x) - x)^2`` for x uniform over the range: the closed form."""
        return 1 / (12 * self.levels**2)

    @property
    def bits(self) -> int:
        """Bits of the quantised network with at least as many levels."""
        return math.ceil(math.log2(self.neurons * self.levels + 1))

    @property
    def weights(self) -> Float[Tensor, "{self.steps}"]:
        """Weight of a spike at each step; the OFF neuron of a pair counts negative."""
        return torch.tensor(self.step_weights, dtype=torch.float64).div(self.levels).float()

    def integers(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        """``floor(x * levels + 1/2)``: the integer value of each number, unchecked."""
        return torch.floor(x * self.levels + 0.5)

    def encode(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Tensor:
        check_values(self, x)
        return self.spell(self.integers(_exact(self, x), generator=generator)).to(x.dtype)

    def decode(self, spikes: Tensor) -> Tensor:
        check_spikes(self, spikes)
        s = _exact(self, spikes)
        if self.neurons == 2:
            s = s[:, 0] - s[:, 1]
        weights = torch.tensor(self.step_weights, dtype=s.dtype, device=s.device)
        return (_weigh(weights, s) / self.levels).to(spikes.dtype)

    def quantize(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]:
        check_values(self, x)
        return (self.integers(_exact(self, x), generator=generator) / self.levels).to(x.dtype)


@dataclass(frozen=True)
class RateCode(LinearCode):
    """Spike count of an integrate-and-fire neuron driven by the constant current ``x``.

    Soft reset, membrane started at half threshold: the count after t steps is ``floor(x t + 1/2)``,
    which is the closed form used here. Error at most ``1 / (2 T)``.
    """

    name = "rate"
    max_steps = 4096

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def step_weights(self) -> tuple[int, ...]:
        return (1,) * self.steps

    def encode(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Tensor:
        check_values(self, x)
        v = _exact(self, x)
        time = torch.arange(self.steps + 1, dtype=v.dtype, device=v.device)
        counts = torch.floor(time.view(-1, *[1] * v.dim()) * v + 0.5)
        return counts.diff(dim=0).to(x.dtype)

    def spell(self, integers: Tensor) -> Tensor:
        # The train of the current N / T, in integers: after t steps, floor(N t / T + 1/2).
        time = torch.arange(self.steps + 1, dtype=torch.float64, device=integers.device)
        doubled = 2 * time.view(-1, *[1] * integers.dim()) * integers.double() + self.steps
        return torch.floor(doubled / (2 * self.steps)).diff(dim=0).to(integers.dtype)

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return self.integers(_exact(self, x)).long()


@dataclass(frozen=True)
class BernoulliCode(LinearCode):
    """Independent spikes of probability ``x`` at every step; the variance is ``x (1 - x) / T``.

    Random: ``encode``, ``quantize`` and ``count`` agree when given generators in the same state.
    """

    name = "bernoulli"
    max_steps = 4096

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def step_weights(self) -> tuple[int, ...]:
        return (1,) * self.steps

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
        v = _exact(self, x)
        return torch.stack([_draw(v, generator) for _ in range(self.steps)]).to(x.dtype)

    def spell(self, integers: Tensor) -> Tensor:
        # The order of a given number of spikes does not matter to a sum: the rate train is as good.
        return RateCode(self.steps).spell(integers)

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return self.integers(_exact(self, x), generator=generator).long()


@dataclass(frozen=True)
class PhaseCode(LinearCode):
    """Binary digits, most significant first: a spike at step t weighs ``2^-(t+1)``, normalised.

    The weights are divided by ``1 - 2^-T``, so that 1.0 is the train of T spikes.

    Reference: Kim, Kim, Huh, Lee, Choi (2018), Deep neural networks with weighted spikes.
    """

    name = "phase"

    @property
    def levels(self) -> int:
        return int(2**self.steps - 1)

    @property
    def step_weights(self) -> tuple[int, ...]:
        return tuple(2 ** (self.steps - 1 - t) for t in range(self.steps))

    def spell(self, integers: Tensor) -> Tensor:
        n = integers.long()
        return torch.stack([(n >> (self.steps - 1 - t)) & 1 for t in range(self.steps)]).to(
            integers.dtype
        )

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return _bit_count(self.integers(_exact(self, x)).long())


@dataclass(frozen=True)
class SignedDigitCode(LinearCode):
    """An ON/OFF pair that spells a signed value with the fewest binary digits.

    The ON neuron spikes for digit +1, the OFF neuron for -1, never both; a spike at step t weighs
    ``2^-(t+1)``, normalised as in :class:`PhaseCode`. With remainder r and weight w, the digit is
    ``sign(r)`` if ``|r| > 2 w / 3`` else 0. The digits are then the canonical signed-digit
    (non-adjacent) form wherever T digits can hold it: a third of them are non-zero on average, a
    half in plain binary, and 0.0 is silence.

    Reference: Reitwiesner (1960), Binary arithmetic (non-adjacent form has minimal weight).
    """

    name = "signed-digit"
    low = -1.0
    neurons = 2

    @property
    def levels(self) -> int:
        return int(2**self.steps - 1)

    @property
    def step_weights(self) -> tuple[int, ...]:
        return tuple(2 ** (self.steps - 1 - t) for t in range(self.steps))

    def spell(self, integers: Tensor) -> Tensor:
        remainder = integers.clone()
        spikes = []
        for weight in self.step_weights:
            on = remainder * 3 > 2 * weight
            off = remainder * 3 < -2 * weight
            pair = torch.stack([on, off]).to(integers.dtype)
            remainder -= weight * (pair[0] - pair[1])
            spikes.append(pair)
        return torch.stack(spikes)

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        remainder = self.integers(_exact(self, x)).abs()
        total = torch.zeros_like(remainder, dtype=torch.long)
        for weight in self.step_weights:
            spike = remainder * 3 > 2 * weight
            remainder = torch.where(spike, (remainder - weight).abs(), remainder)
            total += spike
        return total


@dataclass(frozen=True)
class HalfOctaveCode(LinearCode):
    """An ON/OFF pair like :class:`SignedDigitCode` with two steps to the octave: fewer spikes.

    The weights fall as ..., 16, 12, 8, 6, 4, 3, 2, 1, normalised. With remainder r, weight w and
    next weight w', the digit is ``sign(r)`` if ``|r| > (w + w') / 2`` else 0: the nearest weight
    spikes. An
    octave costs 1/4 of a spike on average, not 1/3, for twice the steps. The digits are those of
    the non-adjacent form of window 3, +-1 and +-3.

    Reference: Cohen, Miyaji, Ono (1998), Efficient elliptic curve exponentiation (window forms).
    """

    name = "half-octave"
    low = -1.0
    neurons = 2

    @property
    def levels(self) -> int:
        half = (self.steps + 1) // 2
        return (1 << half) - 1 if self.steps % 2 else 3 * (1 << half - 1) - 1

    @property
    def step_weights(self) -> tuple[int, ...]:
        rising = [1, *(v << k for k in range(self.steps) for v in (2, 3))]
        return tuple(reversed(rising[: self.steps]))

    def spell(self, integers: Tensor) -> Tensor:
        remainder = integers.clone()
        spikes = []
        for weight, following in zip(self.step_weights, (*self.step_weights[1:], 0), strict=True):
            on = remainder * 2 > weight + following
            off = remainder * 2 < -(weight + following)
            pair = torch.stack([on, off]).to(integers.dtype)
            remainder -= weight * (pair[0] - pair[1])
            spikes.append(pair)
        return torch.stack(spikes)

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return self.spell(self.integers(_exact(self, x))).sum((0, 1)).long()


@dataclass(frozen=True)
class LatencyCode(LinearCode):
    """One spike per value; a larger value spikes earlier: ``time(x) = (T-1) - round(x (T-1))``.

    Reference: Thorpe, Delorme, Van Rullen (2001), Spike-based strategies for rapid processing.
    """

    name = "latency"
    min_steps = 2
    max_steps = 4096

    @property
    def levels(self) -> int:
        return self.steps - 1

    @property
    def step_weights(self) -> tuple[int, ...]:
        return tuple(range(self.steps - 1, -1, -1))

    def spell(self, integers: Tensor) -> Tensor:
        time = (self.levels - integers).long()
        spikes = torch.zeros(
            self.steps, *integers.shape, dtype=integers.dtype, device=integers.device
        )
        return spikes.scatter_(0, time[None], 1.0)

    def count(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape"]:
        check_values(self, x)
        return torch.ones_like(x, dtype=torch.long)


@dataclass(frozen=True)
class RankOrderCode(Code):
    """N-of-M rank order: the N largest of M values spike, one per step, the largest first.

    ``decode`` gives each spiking value its significance ``alpha^rank`` and the others 0. Values are
    compared within the last axis; equal values spike in index order. The code depends on the order
    only: any increasing map of ``x`` leaves the spikes unchanged.

    Attributes:
        steps: N, the number of spikes per vector.
        alpha: Ratio of the significance of consecutive ranks, in (0, 1].

    Reference: Furber, Brown, Bose, Cumpstey, Marshall, Shapiro (2007), Sparse distributed memory
    using rank-order neural codes.
    """

    alpha: float = 0.9

    name = "rank-order"
    low = -math.inf
    max_steps = 65536

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha, "RankOrderCode")

    def encode(
        self, x: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Spikes ``[N, ..., M]``: step r holds the one spike of the value of rank r.

        Raises:
            ShapeError: The last axis has fewer than ``steps`` values.
            RangeError: Some value is NaN, or ``x`` is not floating point.
        """
        if x.dim() == 0 or x.shape[-1] < self.steps:
            raise ShapeError(
                f"RankOrderCode needs at least steps={self.steps} values in the last axis, got "
                f"shape {tuple(x.shape)}. Give longer vectors or a smaller N."
            )
        if not x.dtype.is_floating_point:
            raise RangeError(
                f"RankOrderCode needs floating-point values, got {x.dtype}. Convert x first."
            )
        if x.isnan().any():
            raise RangeError(
                "RankOrderCode needs ordered values, got NaN "
                f"({int(x.isnan().sum())} of {x.numel()}). Remove them first."
            )
        order = nof_m(x, self.steps)
        spikes = torch.zeros(self.steps, *x.shape, dtype=x.dtype, device=x.device)
        return spikes.scatter_(-1, order.movedim(-1, 0).unsqueeze(-1), 1.0)

    def decode(self, spikes: Tensor) -> Tensor:
        check_spikes(self, spikes)
        ranks = torch.arange(self.steps, dtype=torch.float64, device=spikes.device)
        s = _exact(self, spikes)
        # One spike per value at most, so the sum has one term and is exact.
        return _weigh((self.alpha**ranks).to(s.dtype), s).to(spikes.dtype)


CODES: dict[str, type[LinearCode]] = {
    c.name: c
    for c in (SignedDigitCode, PhaseCode, HalfOctaveCode, RateCode, BernoulliCode, LatencyCode)
}
"""The linear codes by name: those a matrix product can run on."""


def linear_code(name: str, steps: int) -> LinearCode:
    """The linear code of that name, e.g. ``linear_code("phase", 8)``.

    Raises:
        RangeError: Unknown name, or ``steps`` outside the code's range.
    """
    if name not in CODES:
        raise RangeError(f"code needs one of {', '.join(CODES)}, got {name!r}. Choose one of them.")
    return CODES[name](steps)


def check_steps(code: type[Code], steps: object) -> None:
    """Raise RangeError unless ``steps`` is a whole number within the code's range."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise RangeError(
            f"{code.__name__} needs a whole number of steps, got {steps!r}. Give an int."
        )
    if not code.min_steps <= steps <= code.max_steps:
        raise RangeError(
            f"{code.__name__} needs steps in [{code.min_steps}, {code.max_steps}], got {steps}. "
            "Choose a number in that range."
        )


def check_values(code: Code, x: Tensor) -> None:
    """Raise RangeError if some value is NaN or outside the code's range."""
    if not x.dtype.is_floating_point:
        raise RangeError(
            f"{type(code).__name__} needs floating-point values, got {x.dtype}. Convert x first."
        )
    inside = (x >= code.low) & (x <= 1)
    if not inside.all():
        first = x[~inside].flatten()[0].item()
        raise RangeError(
            f"{type(code).__name__} needs values in [{code.low:g}, 1], got {first!r} "
            f"({int((~inside).sum())} of {x.numel()} outside). Rescale x first."
        )


def check_spikes(code: Code, spikes: Tensor) -> None:
    """Raise unless spikes are floats and lead with ``[steps]``, or ``[steps, 2]`` for a pair."""
    lead = (code.steps, 2) if code.neurons == 2 else (code.steps,)
    if tuple(spikes.shape[: len(lead)]) != lead:
        raise ShapeError(
            f"{type(code).__name__}.decode needs spikes of shape "
            f"[{', '.join(map(str, lead))}, ...], got {list(spikes.shape)}. Time is axis 0."
        )
    if not spikes.dtype.is_floating_point:
        raise RangeError(
            f"{type(code).__name__}.decode needs floating-point spikes, the type of its values, "
            f"got {spikes.dtype}. Convert them first."
        )


def _exact(code: Code, x: Tensor) -> Tensor:
    """``x`` in a type whose integers reach the code's largest level."""
    wide = x.dtype == torch.float64 or (isinstance(code, LinearCode) and code.levels >= 2**16)
    return x.to(torch.float64 if wide else torch.float32)


def _weigh(weights: Tensor, s: Tensor) -> Tensor:
    """``sum_t weights[t] * s[t]``, exact; a matrix product would round under autocast or TF32."""
    return (weights.view(-1, *[1] * (s.dim() - 1)) * s).sum(0)


def _draw(x: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return (noise < x).to(x.dtype)


def _bit_count(n: Tensor) -> Tensor:
    total = torch.zeros_like(n)
    while bool((n > 0).any()):
        total += n & 1
        n = n >> 1
    return total
