"""How often an order and its edges come again in random halves of the rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from isospike.causal.estimator import ScoreSchurSort
from isospike.causal.guards import check_data, in_range
from isospike.errors import InputError, RangeError
from isospike.progress import update


class Stability(NamedTuple):
    """Shares of the halves.

    Attributes:
        edges: ``[parent, child]``: the edge was there with this direction.
        joined: ``[i, j]``: the edge was there, whatever its direction.
        before: ``[i, j]``: i came before j, in another layer; half for those in one layer.
        resamples: Number of halves that could be fitted.
    """

    edges: Float[np.ndarray, "d d"]
    joined: Float[np.ndarray, "d d"]
    before: Float[np.ndarray, "d d"]
    resamples: int


def resample_order(
    fit: ScoreSchurSort, X: object, resamples: int = 100, seed: int = 0
) -> Stability:
    """Fit random halves of the rows by the rule of a fit.

    Halves are drawn without replacement: drawn rows that repeat would look like more evidence. A
    half has less evidence than the whole, so the shares are on the careful side.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> x[:, 0] += 2 * x[:, 1]
    >>> found = resample_order(ScoreSchurSort().fit(x), x, resamples=5)
    >>> float(found.edges[1, 0])
    1.0

    Args:
        fit: A fitted estimator.
        X: The table that it was fitted to.
        resamples: Number of halves, at least 1.
        seed: Seed of the draws.

    Returns:
        The shares.

    Raises:
        RangeError: ``resamples`` is below 1.
        InputError: There are too few rows for halves.

    Reference: Meinshausen, Buhlmann (2010), Stability selection.
    """
    if resamples < 1:
        raise RangeError(f"resample_order needs resamples >= 1, got {resamples}. Use 100.")
    x = fit._scaled(in_range(check_data(X, fit.names_, "resample_order")))
    n, d = x.shape
    check_halves("resample_order", n, d)
    half = n // 2
    draw = np.random.default_rng(seed)
    edges, joined, before, done = np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, d)), 0
    start = np.asarray(fit.order_)
    for number in range(resamples):
        update("resample", number, resamples)
        rows = x[draw.permutation(n)[:half]]
        if (rows == rows[0]).all(0).any():
            continue  # a column of few values is constant in this half
        found = fit._find(rows, start)
        edges += found.directed
        joined += found.graph | found.graph.T
        layer = np.empty(d)
        for place, members in enumerate(found.order.layers):
            layer[list(members)] = place
        before += (layer[:, None] < layer) + 0.5 * (layer[:, None] == layer)
        done += 1
    update("resample", resamples, resamples)
    share = max(done, 1)
    return Stability(edges / share, joined / share, before / share, done)


def check_halves(owner: str, rows: int, columns: int) -> None:
    """Raise InputError unless half of the rows is enough for a fit."""
    if rows // 2 <= columns + 1:
        raise InputError(
            f"{owner} needs more than {2 * columns + 3} rows for halves of {columns} columns, got "
            f"{rows}. Give more rows, or resamples=0."
        )
