"""What every spike code is: numbers to spike trains and back.

Time is axis 0 of every spike train, and each neuron spikes at most once per step. ``quantize(x)``
is ``decode(encode(x))`` bit for bit, without the time axis.
"""

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.errors import RangeError, ShapeError
from isospike.tensors import FLOATING, check_floating, check_tensor, unwrapped


@dataclass(frozen=True)
class Code(ABC):
    """A code between numbers and spike trains of ``steps`` time steps: frozen and hashable.

    Attributes:
        steps: Length of the spike train; any whole number, NumPy's too, is kept as an int.
        name: Its name on the command line and in files.
        summary: One line that says how it works.
        low: Smallest value it can carry; the largest is 1.
        neurons: Neurons per value: 1, or 2 for an ON/OFF pair.
        min_steps, max_steps: Range of ``steps``.

    >>> import torch
    >>> from isospike.codes import PhaseCode
    >>> code = PhaseCode(2)
    >>> code.decode(code.encode(torch.tensor([0.3, 0.9]))).tolist()
    [0.333..., 1.0]
    """

    steps: int

    name: ClassVar[str]
    summary: ClassVar[str]
    low: ClassVar[float] = 0.0
    neurons: ClassVar[int] = 1
    min_steps: ClassVar[int] = 1
    max_steps: ClassVar[int] = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_steps(type(self), self.steps))

    @abstractmethod
    def encode(self, x: Float[Tensor, "*shape"]) -> Tensor:
        """Spikes of ``x``.

        Args:
            x: Values in [``low``, 1], any shape, floating point.

        Returns:
            Spikes in {0, 1}, shape ``[steps, *x.shape]``, or ``[steps, 2, *x.shape]`` (ON, OFF) for
            a pair. Dtype and device of ``x``.

        Raises:
            InputError: ``x`` is not a tensor.
            RangeError: Some value is NaN or out of range, or ``x`` is not floating point.
            UnsupportedError: ``x`` is sparse, nested, quantised or on ``meta``.

        Gradient: none, the spikes are a rounding of ``x``. ``torch.func.vmap`` may map it, unless
        it draws.
        """

    @abstractmethod
    def decode(self, spikes: Tensor) -> Tensor:
        """Values of a spike train; the inverse of :meth:`encode` up to its rounding.

        Args:
            spikes: Spikes as :meth:`encode` returns them.

        Returns:
            Values, in the shape without the time and pair axes. Dtype and device of ``spikes``.

        Raises:
            InputError: ``spikes`` is not a tensor.
            ShapeError: The leading axes are not ``[steps]`` (``[steps, 2]`` for a pair).
            RangeError: ``spikes`` is not floating point; values have the dtype of their spikes.
            UnsupportedError: ``spikes`` is sparse, nested or quantised.
        """

    def quantize(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``decode(encode(x))``, bit for bit, without building the time axis.

        Args:
            x: Values in [``low``, 1].

        Returns:
            The values the code can carry that ``x`` is rounded to.

        Raises:
            RangeError: Some value is NaN or out of range.
        """
        return self.decode(self.encode(x))

    def count(self, x: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Number of spikes of each value of ``x``, over all steps and both neurons of a pair.

        Args:
            x: Values in [``low``, 1].

        Returns:
            Whole numbers, in the shape of ``x``.

        Raises:
            RangeError: Some value is NaN or out of range.
        """
        return self.encode(x).sum(tuple(range(self.neurons))).long()


@dataclass(frozen=True)
class WeightedCode(Code):
    """A code that decodes by a weighted sum, ``decode(s) = sum_t weights[t] * s[t]``.

    A matrix product commutes with it: ``W @ decode(s) = sum_t weights[t] * (W @ s[t])``. Its values
    are the integers ``0 .. levels`` (``-levels .. levels`` for an ON/OFF pair) divided by
    ``levels``. It is not a *linear code* of coding theory.

    Subclasses define the integer value of each number (:meth:`integers`), the spikes of each
    integer (:meth:`encode_integers`) and the integer weight of each step (:attr:`step_weights`).

    Attributes:
        error_law: How the error falls with ``T`` steps, as text: ``2^-T``, ``T^-1/2``.
        error_power: The error falls as ``steps ** -error_power``; None if exponentially.
        steps_per_octave: Steps that halve the error; None if no number of steps does everywhere.
        spikes_per_octave: Spikes per value that halving the error costs; None likewise.
        fit_steps: Numbers of steps at which the error law of a model is fitted.
        search_limit: Largest number of steps that a search for an error may return.
        sweep_steps: Numbers of steps at which a report compares the codes.
        colour: Its colour in figures.

    >>> from isospike.codes import SignedDigitCode
    >>> code = SignedDigitCode(3)
    >>> code.levels, code.step_weights, code.spikes_per_octave
    (7, (4, 2, 1), 0.333...)
    """

    error_law: ClassVar[str]
    error_power: ClassVar[float | None] = None
    steps_per_octave: ClassVar[int | None] = None
    spikes_per_octave: ClassVar[float | None] = None
    fit_steps: ClassVar[tuple[int, ...]]
    search_limit: ClassVar[int]
    sweep_steps: ClassVar[tuple[int, ...]]
    colour: ClassVar[str]

    @property
    @abstractmethod
    def levels(self) -> int:
        """Largest integer value: ``decode`` gives multiples of ``1 / levels``."""

    @property
    @abstractmethod
    def step_weights(self) -> tuple[int, ...]:
        """Integer weight of a spike at each step; ``weights * levels``."""

    @abstractmethod
    def encode_integers(self, integers: Tensor) -> Tensor:
        """Spikes of integer values, which are not checked.

        Args:
            integers: Whole numbers from :meth:`integers`, any shape, floating point.

        Returns:
            Spikes ``[steps, *shape]``, or ``[steps, 2, *shape]`` for a pair. Dtype of ``integers``.
        """

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

    def integers(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The integer value of each number, ``floor(x * levels + 1/2)``.

        Args:
            x: Values in [``low``, 1], which are not checked.

        Returns:
            Whole numbers in the dtype of ``x``.
        """
        return torch.floor(x * self.levels + 0.5)

    def encode(self, x: Float[Tensor, "*shape"]) -> Tensor:
        check_values(self, x)
        return self.encode_integers(self.integers(widen(self, x))).to(x.dtype)

    def decode(self, spikes: Tensor) -> Tensor:
        check_spikes(self, spikes)
        s = widen(self, spikes)
        if self.neurons == 2:
            s = s[:, 0] - s[:, 1]
        weights = torch.tensor(self.step_weights, dtype=s.dtype, device=s.device)
        return (weighted_sum(weights, s) / self.levels).to(spikes.dtype)

    def quantize(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        check_values(self, x)
        return (self.integers(widen(self, x)) / self.levels).to(x.dtype)


def check_steps(code: type[Code], steps: Any) -> int:
    """Check a number of steps.

    Args:
        code: The class of the code.
        steps: The number to check: an int, or what stands for one, as NumPy's whole numbers do.

    Returns:
        The number.

    Raises:
        RangeError: ``steps`` is not a whole number within the code's range.
    """
    try:
        whole = operator.index(steps)
    except TypeError:
        whole = None
    if whole is None or isinstance(steps, bool):
        raise RangeError(
            f"{code.__name__} needs a whole number of steps, got {steps!r}. Give an int."
        )
    if not code.min_steps <= whole <= code.max_steps:
        raise RangeError(
            f"{code.__name__} needs steps in [{code.min_steps}, {code.max_steps}], got {whole}. "
            "Choose a number in that range."
        )
    return whole


def check_values(code: Code, x: Tensor) -> None:
    """Check values before they are encoded.

    Args:
        code: The code.
        x: The values.

    Raises:
        RangeError: Some value is NaN or outside the code's range, or ``x`` is not floating point.
    """
    check_floating(type(code).__name__, "x", x, read=True)
    x = unwrapped(x)
    inside = (x >= code.low) & (x <= 1)
    if not inside.all():
        first = x[~inside].flatten()[0].item()
        raise RangeError(
            f"{type(code).__name__} needs values in [{code.low:g}, 1], got {first!r} "
            f"({int((~inside).sum())} of {x.numel()} outside). Rescale x first."
        )


def check_spikes(code: Code, spikes: Tensor) -> None:
    """Check spikes before they are decoded.

    Args:
        code: The code.
        spikes: The spikes.

    Raises:
        ShapeError: They do not lead with ``[steps]``, or ``[steps, 2]`` for a pair.
        RangeError: They are not floating point.
    """
    check_tensor(f"{type(code).__name__}.decode", "spikes", spikes)
    lead = (code.steps, 2) if code.neurons == 2 else (code.steps,)
    if tuple(spikes.shape[: len(lead)]) != lead:
        raise ShapeError(
            f"{type(code).__name__}.decode needs spikes of shape "
            f"[{', '.join(map(str, lead))}, ...], got {list(spikes.shape)}. Time is axis 0."
        )
    if spikes.dtype not in FLOATING:
        raise RangeError(
            f"{type(code).__name__}.decode needs floating-point spikes, the type of its values, "
            f"got {spikes.dtype}. Convert them first."
        )


def widen(code: Code, x: Tensor) -> Tensor:
    """``x`` in a type whose integers reach the code's largest level.

    Args:
        code: The code.
        x: Values or spikes.
    """
    wide = x.dtype == torch.float64 or (isinstance(code, WeightedCode) and code.levels >= 2**16)
    return x.to(torch.float64 if wide else torch.float32)


def weighted_sum(weights: Tensor, s: Tensor) -> Tensor:
    """``sum_t weights[t] * s[t]``, exact; a matrix product would round under autocast or TF32.

    Args:
        weights: One a step.
        s: Spikes, time first.
    """
    return (weights.view(-1, *[1] * (s.dim() - 1)) * s).sum(0)
