"""What speaks against an order: rows that are not independent, codes, sums, row numbers.

Each check is silent on independent rows of continuous columns but for a known share: about one
table in a thousand for neighbouring rows, and none in our measurements for the others
(``python -m benchmarks causal-checks``).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_ROWS_EACH = 10  # rows of a column below which an order is a guess
_ALIKE_Z = 3.3  # one table in a thousand, before the number of columns counts
_FAR = 20.0  # robust standard deviations that are no chance in most columns
_APART = 8.0  # times as far as the next cell, which a heavy tail hardly has
_CODES = {-1.0, 9.0, 99.0, 999.0, 9999.0, 99999.0, -9.0, -99.0, -999.0, -9999.0, -99999.0, 0.0}
_FEW_VALUES = 10
_SHOWN = 5


def check_rows(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> tuple[str, ...]:
    """Look for signs that rows or columns are not what an order assumes.

    >>> rows = np.random.default_rng(0).normal(size=(200, 2))
    >>> check_rows(rows, ["a", "b"])
    ()
    >>> rows[7, 1] = -9999
    >>> check_rows(rows, ["a", "b"])[0][:50]
    'Column b has 1 cell of -9999, far from all others.'

    Args:
        x: The rows, finite.
        names: Names of the columns.

    Returns:
        A sentence or two for each sign.
    """
    found = [
        _few_rows(x), _row_numbers(x, names), _far_cells(x, names), _alike_rows(x, names),
        _repeated_rows(x), _discrete(x, names), _dependent(x, names),
    ]  # fmt: skip
    return tuple(text for text in found if text)


def _listed(names: Sequence[str], places: Sequence[int]) -> str:
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return ", ".join(names[j] for j in places[:_SHOWN]) + more


def _few_rows(x: Float[np.ndarray, "n d"]) -> str:
    n, d = x.shape
    if n >= _ROWS_EACH * d:
        return ""
    return (
        f"There are only {n} rows for {d} columns. With fewer than {_ROWS_EACH * d} an order is a "
        "guess."
    )


def _row_numbers(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> str:
    step = np.diff(np.sort(x, axis=0), axis=0)
    places = np.flatnonzero((step == 1).all(0) & (len(x) > _FEW_VALUES)).tolist()
    if not places:
        return ""
    return f"{_listed(names, places)} numbers the rows. Drop it: it is no variable."


def _far_cells(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> str:
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / 1.349
    distance = np.abs(x - middle)
    ranked = np.sort(distance, axis=0)
    far = distance > np.maximum(_FAR * spread, _last_gap(ranked))
    # A column that hardly varies in its middle has no scale to measure a distance by.
    far &= (spread > 0) & (far.mean(0) < 0.05)
    places = np.flatnonzero(far.any(0)).tolist()
    if not places:
        return ""
    first = places[0]
    values, counts = np.unique(x[far[:, first], first], return_counts=True)
    value, count = values[counts.argmax()], int(counts.max())
    cells = f"{count} cell{'s' * (count > 1)} of {value:g}"
    code = " It looks like a code for missing: make it empty." if value in _CODES else ""
    more = f" So have {_listed(names, places[1:])}." if len(places) > 1 else ""
    return (
        f"Column {names[first]} has {cells}, far from all others.{code}{more} One such cell can "
        "turn an order round."
    )


def _last_gap(ranked: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d"]:
    """The largest distance of each column above which there is none for a while; or infinity."""
    tail = ranked[-max(2, len(ranked) // 20) :]
    apart = tail[1:] > _APART * tail[:-1]
    below = np.where(apart, tail[:-1], np.inf)
    return np.asarray(below.min(0))


def _alike_rows(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> str:
    n, d = x.shape
    if n < 20:
        return ""
    rank = x.argsort(0).argsort(0).astype(np.float64)  # outliers do not count more than others
    rank -= rank.mean(0)
    alike = (rank[1:] * rank[:-1]).sum(0) / (rank**2).sum(0)
    least = (_ALIKE_Z + np.log(d)) / n**0.5  # above the normal quantile of 1 - .001 / (2 d)
    numbered = (np.diff(np.sort(x, axis=0), axis=0) == 1).all(0)
    places = np.flatnonzero((np.abs(alike) > least) & ~numbered & (np.ptp(x, axis=0) > 0)).tolist()
    if not places:
        return ""
    most = max(places, key=lambda j: abs(alike[j]))
    return (
        f"Neighbouring rows are alike in {_listed(names, places)} (correlation "
        f"{alike[most]:.2f}). Rows are assumed independent; in a time series or a sorted table "
        "edges appear that are none."
    )


def _repeated_rows(x: Float[np.ndarray, "n d"]) -> str:
    n = len(x)
    values = [len(np.unique(column)) for column in x.T]
    repeated = n - len(np.unique(x, axis=0))
    if max(values) < 30 or repeated <= 0.01 * n:
        return ""  # rows of few possible values repeat by chance
    return (
        f"{repeated} of {n} rows repeat others. Repeated rows look like evidence and are none; "
        "drop the copies."
    )


def _discrete(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> str:
    few = np.array([len(np.unique(column)) <= _FEW_VALUES for column in x.T])
    places = np.flatnonzero(few & (len(x) > 3 * _FEW_VALUES)).tolist()
    if not places:
        return ""
    return (
        f"{_listed(names, places)} take{'s' * (len(places) == 1)} {_FEW_VALUES} values at most. "
        "Sums of functions and noise are continuous, so their place in the order means little."
    )


def _dependent(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> str:
    n, d = x.shape
    if n <= d:
        return ""
    z = (x - x.mean(0)) / x.std(0)
    values, vectors = np.linalg.eigh(z.T @ z / n)
    if values[0] > 1e-9:
        return ""
    places = np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3).tolist()
    total = x[:, places].sum(1)
    sums = bool(np.ptp(total) <= 1e-6 * np.abs(total).max())
    what = "shares of a constant sum" if sums else "linearly dependent: each follows from the rest"
    return f"{_listed(names, places)} are {what}. Leave one out, or take log ratios."
