"""The weighted codes by name."""

from isospike.codes.base import WeightedCode
from isospike.codes.digits import HalfOctaveCode, PhaseCode, SignedDigitCode
from isospike.codes.unary import BernoulliCode, LatencyCode, RateCode
from isospike.errors import InputError

CODES: dict[str, type[WeightedCode]] = {
    c.name: c
    for c in (SignedDigitCode, PhaseCode, HalfOctaveCode, RateCode, BernoulliCode, LatencyCode)
}
"""The codes that a matrix product can run on."""


def code(name: str, steps: int) -> WeightedCode:
    """Make a code by its name.

    Args:
        name: A key of :data:`CODES`.
        steps: Number of time steps.

    Returns:
        The code.

    Raises:
        InputError: Unknown name.
        RangeError: ``steps`` is outside the code's range.

    >>> code("phase", 8)
    PhaseCode(steps=8)
    """
    if name not in CODES:
        raise InputError(f"code needs one of {', '.join(CODES)}, got {name!r}. Choose one of them.")
    return CODES[name](steps)
