"""How the error of a model falls with the number of steps of its code.

    (1)  error(T)^2 = floor^2 + (scale * g(T)^exponent)^2

g(T) is the code's own error: the root mean square of (decode(encode(x)) - x) for x uniform over its
range, in closed form (:attr:`WeightedCode.mean_square_error`). It falls as 2^-T for digits, as
1 / T for counts and times, as 1 / sqrt(T) for independent spikes. ``scale`` is the range over the
spread of what is coded, ``exponent`` lies below 1 where more levels let ranges grow and cut fewer
values, and ``floor`` is what no number of steps removes; the two errors are orthogonal, so that
their squares add.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isospike.codes.base import WeightedCode
from isospike.codes.registry import CODES, code
from isospike.errors import RangeError

FLOORS = 200  # candidates between 0 and the least error


@dataclass(frozen=True)
class Law:
    """(1), for one code.

    Attributes:
        code: Its name.
        exponent: 1 if ranges stay as they are.
        scale: Factor.
        floor: The error that remains however many steps there are; 0 if none was detected.
        steps, errors: The calibration points it was fitted to; empty for an analytic law.

    >>> law = Law("signed-digit", exponent=1.0, scale=3.0)
    >>> law.fewest_steps(0.01)
    7
    """

    code: str
    exponent: float
    scale: float
    floor: float = 0.0
    steps: tuple[int, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def kind(self) -> type[WeightedCode]:
        """The class of its code."""
        return CODES[self.code]

    def error(self, steps: float | int) -> float:
        """(1). Between whole numbers of steps it is interpolated, for drawing.

        Args:
            steps: Number of time steps, T.

        Returns:
            Relative root-mean-square error.
        """
        below = min(max(self.kind.min_steps, math.floor(steps)), self.kind.max_steps - 1)
        fall = _unit_error(self.code, below)
        fall *= (_unit_error(self.code, below + 1) / fall) ** (steps - below)
        return math.hypot(self.floor, self.scale * fall**self.exponent)

    def fewest_steps(self, target: float) -> int | None:
        """The smallest number of steps with an error of at most ``target``.

        Args:
            target: Relative root-mean-square error.

        Returns:
            The steps; None if the code's search limit does not reach the target.

        Raises:
            RangeError: ``target`` is not above the floor; the message gives the floor.
        """
        if not 0 < target < math.inf:
            raise RangeError(
                f"fewest_steps needs target above 0 and finite, got {target:g}. Try 0.05."
            )
        if target <= self.floor:
            raise RangeError(
                f"fewest_steps needs target above the floor of the law, {self.floor:.3g}, got "
                f"{target:.3g}: no number of {self.code} steps reaches it. Ask for more error."
            )
        for steps in range(self.kind.min_steps, self.kind.search_limit + 1):
            if self.error(steps) <= target:
                return steps
        return None

    def more_steps(self, steps: int, excess: float) -> int | None:
        """The next number of steps to try after a measured error was too large.

        Args:
            steps: The steps that were tried.
            excess: Measured error over target, above 1.

        Returns:
            More steps; None at the code's search limit.
        """
        power = self.kind.error_power
        raised = steps + 1 if power is None else math.ceil(steps * excess ** (1 / power))
        raised = min(max(raised, steps + 1), self.kind.search_limit)
        return raised if raised > steps else None


def fit_law(code: str, errors: Mapping[int, float]) -> Law:
    """Fit (1) by least squares on log error: a straight line in log g for each candidate floor.

    The exponent is not negative. With three points or fewer the floor is 0, because two parameters
    leave nothing to estimate it from; with more it is kept if the residual is a quarter of that
    without it.

    Args:
        code: Name of the code.
        errors: Measured error by number of steps, at least two of them.

    Returns:
        The law, with the points it was fitted to.

    Raises:
        RangeError: Fewer than two points, or an error that is negative or not finite.

    >>> fit_law("phase", {3: 1 / 7, 5: 1 / 31}).error(4)
    0.0666...
    """
    _check_errors(errors)
    steps = sorted(errors)
    x = np.array([math.log(_unit_error(code, t)) for t in steps])
    e = np.array([max(errors[t], 1e-140) for t in steps])
    count = FLOORS if len(steps) > 3 else 1
    floors = e.min() * np.arange(count)[:, None] / FLOORS
    y = np.log(e**2 - floors**2) / 2
    centred = x - x.mean()
    slopes = np.maximum(0, y @ centred / max(float(centred @ centred), 1e-30))
    starts = y.mean(1) - slopes * x.mean()
    fitted = np.hypot(floors, np.exp(starts[:, None] + slopes[:, None] * x))
    residuals = np.square(np.log(fitted) - np.log(e)).sum(1)
    best = int(residuals.argmin())
    if residuals[best] >= residuals[0] / 4 or residuals[0] < 1e-12:
        best = 0
    return Law(
        code, float(slopes[best]), float(np.exp(starts[best])), float(floors[best, 0]),
        tuple(steps), tuple(float(errors[t]) for t in steps),
    )  # fmt: skip


def shortest_code(longest: WeightedCode, span: Tensor, amplitude: Tensor) -> WeightedCode:
    """The shortest code of a kind whose levels reach every channel's range.

    Args:
        longest: The longest code that may be returned.
        span: Range of each channel, of one sign if the code has a neuron for each.
        amplitude: Value of the integer 1, likewise.

    Returns:
        A code of the class of ``longest``.

    >>> import torch
    >>> from isospike.codes import PhaseCode
    >>> shortest_code(PhaseCode(8), torch.tensor([7.0]), torch.tensor([1.0]))
    PhaseCode(steps=3)
    """
    needed = float((span / amplitude).max()) * (1 - 1e-6)
    kind = type(longest)
    shorter = (kind(steps) for steps in range(kind.min_steps, longest.steps))
    return next((c for c in shorter if c.levels >= needed), longest)


def water_level(powers: Tensor, total: float, weights: Tensor | None = None) -> float:
    """The level w with ``sum_i min(powers_i, weights_i w) = total``: reverse water-filling.

    Args:
        powers: Powers of the components, at least 0.
        total: The sum to reach.
        weights: Weight of each component, 1 if not given.

    Returns:
        The level; infinity if the powers sum to less than ``total``.

    >>> import torch
    >>> water_level(torch.tensor([4.0, 0.1]), 0.6)
    0.5
    """
    weights = torch.ones_like(powers) if weights is None else weights
    if total >= float(powers.sum()):
        return math.inf
    heights, order = (powers / weights).sort()
    # With the i lowest under water: w = (total - their powers) / (the weight of the others).
    below = torch.cat([powers.new_zeros(1), powers[order].cumsum(0)[:-1]])
    others = weights[order].flip(0).cumsum(0).flip(0)
    levels = (total - below) / others
    return float(levels[(levels <= heights).nonzero()[0, 0]])


@functools.cache
def _unit_error(name: str, steps: int) -> float:
    return math.sqrt(code(name, steps).mean_square_error)


def _check_errors(errors: Mapping[int, float]) -> None:
    if len(errors) < 2:
        raise RangeError(
            f"fit_law needs errors at two numbers of steps at least, got {len(errors)}. Measure "
            "more."
        )
    for steps, error in errors.items():
        if not 0 <= error < math.inf:
            raise RangeError(
                f"fit_law needs finite errors of at least 0, got {error} at {steps} steps. Check "
                "the values that were coded."
            )
