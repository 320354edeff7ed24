"""Numbers as people read them: three digits and a unit."""

import math
import statistics
from collections.abc import Sequence

Number = int | float

NORMAL_95 = 1.96
ABSENT = "–"


def number(value: Number | None) -> str:
    """Three digits; a dash for None and NaN.

    Args:
        value: Any number.

    Returns:
        The text.

    >>> number(0.024441), number(None), number(float("inf"))
    ('0.0244', '–', '∞')
    """
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3g}"


def si(value: Number | None) -> str:
    """Three digits and a decimal prefix.

    Args:
        value: Any number.

    Returns:
        The text.

    >>> si(18.4e6), si(999.6)
    ('18.4 M', '1 k')
    """
    return _scaled(value, ("", "k", "M", "G", "T", "P"))


def memory(value: Number | None) -> str:
    """Three digits and a multiple of a byte.

    Args:
        value: Bytes.

    Returns:
        The text.

    >>> memory(90_900_000)
    '90.9 MB'
    """
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def energy(value_pj: Number | None) -> str:
    """Three digits and a multiple of a joule, from picojoules.

    Args:
        value_pj: Picojoules.

    Returns:
        The text.

    >>> energy(123_456)
    '123 nJ'
    """
    return _scaled(value_pj, ("pJ", "nJ", "µJ", "mJ", "J", "kJ"))


def percent(value: Number | None, digits: int = 1) -> str:
    """A share between 0 and 1 as percent.

    Args:
        value: A share between 0 and 1.
        digits: Digits after the point.

    Returns:
        The text.

    >>> percent(0.123456)
    '12.3%'
    """
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}%}"


def extent(values: Sequence[Number | None]) -> str:
    """The smallest and the largest value; one number if they are equal, a dash without any.

    Args:
        values: Numbers; None is left out.

    Returns:
        The text.

    >>> extent([3, 5, None, 4]), extent([2, 2])
    ('3–5', '2')
    """
    known = [v for v in values if v is not None]
    if not known:
        return ABSENT
    low, high = min(known), max(known)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def interval(values: Sequence[Number]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (normal; 0 for a single value).

    Args:
        values: Independent measurements.

    Returns:
        Mean and half width.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 0.0)
    """
    half = 0.0
    if len(values) > 1:
        half = NORMAL_95 * statistics.stdev(values) / len(values) ** 0.5
    return float(statistics.mean(values)), half


def _scaled(value: Number | None, units: Sequence[str], base: Number = 1000.0) -> str:
    if value is None or not math.isfinite(value):
        return number(value)
    k = 0
    while abs(value) >= 0.9995 * base and k + 1 < len(units):
        value, k = value / base, k + 1
    return f"{value:.3g} {units[k]}".rstrip()
