"""Choose a code and its number of time steps for an error, from an analytic law or a fitted one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isospike import codes
from isospike.codes import CODES, BernoulliCode, Law, fit_law
from isospike.codes.base import check_values
from isospike.errors import InputError, RangeError

BOOTSTRAPS = 200


def analytic_law(code: str, crest_factor: float) -> Law:
    """The law of a code before any measurement: exponent 1, no floor.

    Claim: the relative error of a value is its range over its spread, times g(T).
    Assumes: rounding errors uniform, that is steps fine against the distribution; a range that
        neither grows nor cuts.
    Source: derived; g is the closed form of each code.
    Test: exact for uniform values; for others the benchmark's table.
    Verdict: holds for digits; counts and times need a fitted law.

    Args:
        code: Name of the code.
        crest_factor: Range of the coded values (half of it for an ON/OFF pair) over their standard
            deviation; sqrt(12) for uniform values (sqrt(3) for a pair).

    Returns:
        The law.

    Raises:
        RangeError: ``crest_factor`` is not above 0 and finite.
        InputError: Unknown code.

    >>> analytic_law("phase", crest_factor=12**0.5).error(3)
    0.142857...
    """
    if not 0 < crest_factor < math.inf:
        raise RangeError(
            f"analytic_law needs a crest_factor above 0 and finite, got {crest_factor:g}. "
            "Use sqrt(3) for uniform values of both signs."
        )
    if code not in CODES:
        raise InputError(
            f"analytic_law needs a code among {', '.join(CODES)}, got {code!r}. Choose one of them."
        )
    return Law(code, 1.0, crest_factor)


def bootstrap_steps(
    code: str,
    squares: Mapping[int, Tensor],
    power: Tensor,
    target: float,
    *,
    share: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[int | None, int | None]:
    """Bootstrap interval of the fewest steps: inputs are resampled and the law is fitted again.

    Args:
        code: Name of the code.
        squares: Squared error of each input, by number of steps.
        power: Squared output of each input.
        target: Relative root-mean-square error.
        share: Fraction of the draws that lie within the interval.
        generator: Source of the draws.

    Returns:
        Both ends; None if no number of steps up to the code's limit reaches the target there.

    Raises:
        RangeError: Fewer than 2 inputs.

    >>> import torch
    >>> squares = {4: torch.full((5,), 0.04), 8: torch.full((5,), 0.01)}
    >>> bootstrap_steps("rate", squares, torch.ones(5), target=0.05)
    (16, 16)
    """
    if len(power) < 2:
        raise RangeError(
            f"bootstrap_steps needs at least 2 inputs to draw from, got {len(power)}. Give more."
        )
    fewest: list[float] = []
    for _ in range(BOOTSTRAPS):
        draw = torch.randint(len(power), (len(power),), generator=generator)
        total = float(power[draw].sum())
        law = fit_law(
            code, {t: math.sqrt(float(s[draw].sum()) / total) for t, s in squares.items()}
        )
        steps = None if law.floor >= target else law.fewest_steps(target)
        fewest.append(math.inf if steps is None else steps)
    fewest.sort()
    skipped = round(BOOTSTRAPS * (1 - share) / 2)
    low, high = fewest[skipped], fewest[-1 - skipped]
    return (None if math.isinf(low) else int(low)), (None if math.isinf(high) else int(high))


@dataclass(frozen=True)
class Choice:
    """A code that reaches a target.

    Attributes:
        code: Its name.
        steps: The fewest steps that reach it.
        spikes: Spikes per value at these steps.
        error: Predicted error at these steps.

    >>> Choice("phase", steps=8, spikes=4.0, error=0.001).steps
    8
    """

    code: str
    steps: int
    spikes: float
    error: float


def choose(
    target: float, laws: Sequence[Law], sample: Tensor | None = None, by: str = "steps"
) -> list[Choice]:
    """Rank the codes that reach a target, the best first.

    Args:
        target: Relative root-mean-square error.
        laws: One for each code, analytic or fitted.
        sample: Values in the codes' unit range to count spikes on, uniform ones if not given; only
            their part within a code's range is used.
        by: ``steps`` or ``spikes``: what to minimise.

    Returns:
        One choice for each code that reaches the target.

    Raises:
        InputError: ``by`` is something else.
        RangeError: No law reaches it; the message gives the least error of the laws.

    >>> laws = [analytic_law(name, crest_factor=3.0) for name in ("rate", "signed-digit")]
    >>> [(c.code, c.steps) for c in choose(0.01, laws)]
    [('signed-digit', 7), ('rate', 87)]
    """
    if by not in ("steps", "spikes"):
        raise InputError(f"choose needs by 'steps' or 'spikes', got {by!r}. Give one of them.")
    if sample is None:
        sample = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    choices = []
    for law in laws:
        steps = None if target <= law.floor else law.fewest_steps(target)
        if steps is None:
            continue
        code = codes.code(law.code, steps)
        inside = sample[(sample >= code.low) & (sample <= 1)]
        check_values(code, inside)
        if isinstance(code, BernoulliCode):
            spikes = code.count(inside, generator=torch.Generator().manual_seed(0))
        else:
            spikes = code.count(inside)
        choices.append(Choice(law.code, steps, float(spikes.double().mean()), law.error(steps)))
    if not choices:
        least = min((law.error(law.kind.search_limit) for law in laws), default=math.inf)
        raise RangeError(
            f"choose needs a target that some code reaches, got {target:g}; the least error of "
            f"these laws is {least:.3g}. Ask for more error."
        )
    return sorted(choices, key=lambda c: (getattr(c, by), c.steps, c.spikes))
