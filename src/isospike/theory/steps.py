"""Choose a code and its number of time steps for an error: from its law alone, or a calibration.

    (1)  error(T)^2 = floor^2 + (scale * g(T)^exponent)^2

g(T) is the code's own error: the root mean square of (decode(encode(x)) - x) for x uniform over its
range, in closed form (:attr:`LinearCode.mean_square_error`). It falls as 2^-T for digits, as
1 / T for counts and times, as 1 / sqrt(T) for independent spikes. ``scale`` is the range over the
spread of what is coded, ``exponent`` lies below 1 where more levels let ranges grow and cut fewer
values, and ``floor`` is what no number of steps removes; the two errors are orthogonal, so that
their squares add.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isospike.codes.code import CODES, check_values, linear_code
from isospike.errors import RangeError

FORMS = {
    "signed-digit": "2^-T",
    "half-octave": "2^-T/2",
    "phase": "2^-T",
    "rate": "T^-1",
    "latency": "T^-1",
    "bernoulli": "T^-1/2",
}
"""How g(T) falls, by code."""
FIT_AT = {
    "2^-T": (5, 6, 7, 9),
    "2^-T/2": (9, 11, 13, 17),
    "T^-1": (8, 24, 64, 128),
    "T^-1/2": (8, 24, 64, 128),
}
"""Steps that a port's law is fitted at."""
MOST_STEPS = {"2^-T": 16, "2^-T/2": 31, "T^-1": 256, "T^-1/2": 256}
"""Most steps that a port's search may take."""
FLOORS = 200  # candidates between 0 and the least error
BOOTSTRAPS = 200


@dataclass(frozen=True)
class Law:
    """(1), for one code.

    Attributes:
        code: Its name.
        exponent: 1 if ranges stay as they are.
        scale: Factor.
        floor: What is left however long the train; 0 where none was found.
        steps, errors: The calibration points it was fitted to; empty if it is the law alone.
    """

    code: str
    exponent: float
    scale: float
    floor: float = 0.0
    steps: tuple[int, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def form(self) -> str:
        """How it falls: ``2^-T``, ``2^-T/2``, ``T^-1`` or ``T^-1/2``."""
        return FORMS.get(self.code, self.code)

    def error(self, steps: float | int) -> float:
        """(1). Between whole numbers of steps it is interpolated, for drawing."""
        code = CODES[self.code]
        below = min(max(code.min_steps, math.floor(steps)), code.max_steps - 1)
        fall = _unit_error(self.code, below)
        fall *= (_unit_error(self.code, below + 1) / fall) ** (steps - below)
        return math.hypot(self.floor, self.scale * fall**self.exponent)

    def fewest_steps(self, target: float) -> int | None:
        """The fewest steps with an error of at most ``target``; None where a search ends before.

        Raises:
            RangeError: ``target`` is not above the floor; the message says what the floor is.
        """
        if not 0 < target < math.inf:
            raise RangeError(f"steps need a target above 0 and finite, got {target:g}. Try 0.05.")
        if target <= self.floor:
            raise RangeError(
                f"steps need a target above the floor of the law, {self.floor:.3g}, got "
                f"{target:.3g}: no number of {self.code} steps reaches it. Ask for more error."
            )
        for steps in range(CODES[self.code].min_steps, MOST_STEPS[self.form] + 1):
            if self.error(steps) <= target:
                return steps
        return None


def law_alone(code: str, crest: float) -> Law:
    """The law of a code before anything is run: exponent 1, no floor.

    Claim: the relative error of a value is its range over its spread, times g(T).
    Assumes: rounding errors uniform, that is steps fine against the distribution; a range that
        neither grows nor cuts.
    Source: derived; g is the closed form of each code.
    Test: exact for uniform values; for others the benchmark's table.

    Args:
        code: Name of the code.
        crest: Range of what is coded (half of it for an ON/OFF pair) over its standard deviation;
            sqrt(12) for uniform values (sqrt(3) for a pair).
    """
    if not 0 < crest < math.inf:
        raise RangeError(f"law_alone needs a crest above 0 and finite, got {crest:g}.")
    linear_code(code, CODES[code].min_steps) if code in CODES else linear_code(code, 1)
    return Law(code, 1.0, crest)


def fit_law(code: str, errors: Mapping[int, float]) -> Law:
    """Least squares on log error, a straight line in log g for each candidate of the floor.

    The exponent is not negative. With three points or fewer the floor is 0, which two parameters
    leave no room to tell; with more it is kept if the residual is a quarter of that without it.

    Args:
        code: Name of the code.
        errors: Measured error by number of steps, at least two of them.

    Raises:
        RangeError: Fewer than two points, or an error that is negative or not finite.
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


def bootstrap_steps(
    code: str,
    squares: Mapping[int, Tensor],
    power: Tensor,
    target: float,
    *,
    share: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[int | None, int | None]:
    """Interval of the fewest steps: the inputs drawn again with replacement, the law fitted anew.

    Args:
        code: Name of the code.
        squares: Squared error of each input, by number of steps.
        power: Squared output of each input.
        target: Relative root-mean-square error.
        share: Of the draws that lie within the interval.
        generator: Source of the draws.

    Returns:
        Both ends; None where the search, or the floor, ends before.
    """
    if len(power) < 2:
        raise RangeError(
            f"bootstrap_steps needs at least 2 inputs to draw from, got {len(power)}. Give more."
        )
    found: list[float] = []
    for _ in range(BOOTSTRAPS):
        draw = torch.randint(len(power), (len(power),), generator=generator)
        total = float(power[draw].sum())
        law = fit_law(
            code, {t: math.sqrt(float(s[draw].sum()) / total) for t, s in squares.items()}
        )
        steps = None if law.floor >= target else law.fewest_steps(target)
        found.append(math.inf if steps is None else steps)
    found.sort()
    skipped = round(BOOTSTRAPS * (1 - share) / 2)
    low, high = found[skipped], found[-1 - skipped]
    return (None if math.isinf(low) else int(low)), (None if math.isinf(high) else int(high))


@dataclass(frozen=True)
class Choice:
    """A code that reaches a target.

    Attributes:
        code: Its name.
        steps: The fewest.
        spikes: Per value, at them.
        error: Predicted.
    """

    code: str
    steps: int
    spikes: float
    error: float


def choose(
    target: float, laws: Sequence[Law], sample: Tensor | None = None, by: str = "steps"
) -> list[Choice]:
    """The codes that reach a target, the best first.

    Args:
        target: Relative root-mean-square error.
        laws: One for each code, alone or fitted.
        sample: Values in the codes' unit range to count spikes on, uniform ones if not given; only
            their part within a code's range is used.
        by: ``steps`` or ``spikes``: what there shall be few of.

    Raises:
        RangeError: No law reaches it; the message gives the lowest floor.
    """
    if by not in ("steps", "spikes"):
        raise RangeError(f"choose needs by 'steps' or 'spikes', got {by!r}. Give one of them.")
    if sample is None:
        sample = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    choices = []
    for law in laws:
        steps = None if target <= law.floor else law.fewest_steps(target)
        if steps is None:
            continue
        code = linear_code(law.code, steps)
        inside = sample[(sample >= code.low) & (sample <= 1)]
        check_values(code, inside)
        spikes = code.count(inside, generator=torch.Generator().manual_seed(0))
        choices.append(Choice(law.code, steps, float(spikes.double().mean()), law.error(steps)))
    if not choices:
        least = min((law.error(MOST_STEPS[law.form]) for law in laws), default=math.inf)
        raise RangeError(
            f"choose needs a target that some code reaches, got {target:g}; the least error of "
            f"these laws is {least:.3g}. Ask for more error."
        )
    return sorted(choices, key=lambda c: (getattr(c, by), c.steps, c.spikes))


@functools.cache
def _unit_error(code: str, steps: int) -> float:
    return math.sqrt(linear_code(code, steps).mean_square_error)


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
