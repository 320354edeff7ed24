"""What the data must be, and what in them would make an order look better than it is."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.scores import precision
from isospike.causal.simulate import topological
from isospike.errors import RangeError, ShapeError


class ScaleWarning(UserWarning):
    """The columns look rescaled: their common noise, which the order rests on, is gone."""


class NoiseWarning(UserWarning):
    """The residuals are not those of an additive noise model."""


class Sortability(NamedTuple):
    """Share of a graph's directed paths along which a quantity grows; .5 says nothing.

    Near 1, sorting by that quantity alone would have given the order.

    Attributes:
        var: Variance.
        r2: Share of variance that all other variables explain linearly; 0.5 if n <= d.
        score: Less precision given all others: the diagonal of the information matrix falls.

    Reference: Reisach, Seiler, Weichwald (2021), Beware of the simulated DAG; Reisach et al.
    (2023), A scale-invariant sorting criterion; Montagna et al. (2023), arXiv 2310.14246.
    """

    var: float
    r2: float
    score: float


def sortability(x: Float[np.ndarray, "n d"], graph: Bool[np.ndarray, "d d"]) -> Sortability:
    """All three of data and a graph, by paths of every length; NaN for a graph without edges."""
    variance = x.var(0, ddof=1)
    try:
        diagonal = precision(x).diagonal()
        r2, score = 1 - 1 / (diagonal * variance), -diagonal
    except RangeError:
        r2 = score = np.zeros(len(variance))
    return Sortability(*(_grows(v, graph) for v in (variance, r2, score)))


def check_data(x: Any, names: Sequence[str] | None = None, who: str = "fit") -> np.ndarray:
    """The rows as floats.

    Raises:
        ShapeError: Not a table of at least two columns and rows.
        RangeError: Not numbers, missing or infinite values, a constant or a duplicated column.
    """
    try:
        table = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        raise RangeError(
            f"{who} needs numbers, got values that are not. Drop or encode columns of text."
        ) from None
    if table.ndim != 2 or table.shape[1] < 2 or table.shape[0] < 3:
        raise ShapeError(
            f"{who} needs a table of at least 3 rows and 2 columns, got shape {table.shape}."
        )
    names = list(names) if names is not None else [f"x{i}" for i in range(table.shape[1])]
    bad = ~np.isfinite(table)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        kind = "missing" if np.isnan(table[row, column]) else "infinite"
        raise RangeError(
            f"{who} needs finite numbers, got {int(bad.sum())} that are not, the first {kind} in "
            f"row {row + 1}, column {names[column]}. Drop those rows."
        )
    constant = np.flatnonzero(np.ptp(table, axis=0) <= 1e-12 * np.abs(table).max(0))
    if len(constant):
        raise RangeError(
            f"{who} needs columns that vary, got the constant column {names[constant[0]]}. Drop it."
        )
    z = (table - table.mean(0)) / table.std(0)
    same = np.triu(np.abs(z.T @ z) / len(z) > 1 - 1e-10, 1)
    if same.any():
        a, b = (int(i[0]) for i in np.nonzero(same))
        raise RangeError(
            f"{who} needs different columns, got {names[b]}, which {names[a]} gives exactly. "
            "Drop one."
        )
    return table


def looks_rescaled(x: Float[np.ndarray, "n d"]) -> bool:
    """Whether all columns have one standard deviation, or one smallest and one largest value."""
    sd, low, high = x.std(0), x.min(0), x.max(0)
    width = float((high - low).max())
    boxed = np.ptp(low) < 1e-6 * width and np.ptp(high) < 1e-6 * width
    return bool(sd.max() < 1.001 * sd.min() or boxed)


def noise_spread(variances: Float[np.ndarray, "d"]) -> float:
    """Log of the lower quartile of the noises' variances over the least.

    What an order leaves of each variable is one number, up to chance and to parents that were
    missed, if all noises are of one variance. Rescaled columns break that, and so do noises that
    differ. The lower quarter is used since missed parents only add.

    Args:
        variances: What is left of each variable by those before it.
    """
    return float(np.log(np.quantile(variances, 0.25) / variances.min()))


def uneven_scale(variances: Float[np.ndarray, "d"], rows: int) -> bool:
    """Whether :func:`noise_spread` is above ``.08 + 2 sqrt(2 / rows)``.

    The log of a variance from Gaussian rows has a standard deviation of ``sqrt(2 / rows)``.
    """
    return bool(noise_spread(variances) > 0.08 + 2 * (2 / rows) ** 0.5)


def warn_of_scale(rescaled: bool, uneven: bool) -> None:
    """Warn loudly if the columns look rescaled, or else if the noises differ in size."""
    if rescaled:
        warnings.warn(
            "The columns look standardised. The order rests on noise of one scale in the columns' "
            "own units: on standardised data it is near chance or worse. Give the data in their "
            "units, or each noise's scale as noise_scale.",
            ScaleWarning,
            stacklevel=3,
        )
    elif uneven:
        warnings.warn(
            "The noises that the order leaves differ in size. The order rests on noise of one "
            "scale in the columns' own units: were the columns rescaled, each in its own way, or "
            "are their units different? Give each noise's scale as noise_scale if it is known.",
            ScaleWarning,
            stacklevel=3,
        )


def uneven_noise(
    x: Float[np.ndarray, "n d"],
    residuals: Float[np.ndarray, "n d"],
    graph: Bool[np.ndarray, "d d"],
) -> float:
    """Share of the variables with parents whose noise changes its size with what is predicted.

    For each, squared residuals are regressed on the fitted value and its square; ``n R^2`` above 20
    (chance 5e-5 under an additive model, chi-squared of 2) counts. Noise that passes through a
    curve, as in post-nonlinear models, shows here; so do interactions that an additive fit misses.

    Reference: Breusch, Pagan (1979), A simple test for heteroscedasticity.
    """
    n, hits, tested = len(x), 0, 0
    for child in np.flatnonzero(graph.any(0)):
        fit = x[:, child] - x[:, child].mean() - residuals[:, child]
        z = (fit - fit.mean()) / fit.std()
        q, _ = np.linalg.qr(np.column_stack([np.ones(n), z, z**2]))
        square = residuals[:, child] ** 2
        off = square - square.mean()
        hits += bool(n * ((q.T @ off) ** 2).sum() / (off @ off) > 20)
        tested += 1
    return hits / tested if tested else 0.0


def warn_of_noise(share: float) -> None:
    """Warn if the noise of many variables is uneven."""
    if share > 0.4:
        warnings.warn(
            f"The noise of {share:.0%} of the variables with parents depends on their causes: this "
            "is no additive noise model (perhaps a post-nonlinear one), and the order is not to be "
            "trusted.",
            NoiseWarning,
            stacklevel=3,
        )


def _grows(value: Float[np.ndarray, "d"], graph: Bool[np.ndarray, "d d"]) -> float:
    topological(graph)  # raises on a cycle
    more = (value[None, :] > value[:, None]) + 0.5 * (value[None, :] == value[:, None])
    paths, right, total = graph.copy(), 0.0, 0
    while paths.any():
        right += float(more[paths].sum())
        total += int(paths.sum())
        paths = (paths.astype(np.float64) @ graph) > 0
    return right / total if total else float("nan")
