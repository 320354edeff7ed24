"""Checks of the data, and warnings where they break an assumption or make the task too easy."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.scores import precision
from isospike.causal.simulate import topological_order
from isospike.errors import InputError, ShapeError

SCALE_WORDS = ("The columns look standardised.", "The residuals differ in size.")


class ScaleWarning(UserWarning):
    """The columns look rescaled: the equal noise that the order relies on is lost.

    >>> issubclass(ScaleWarning, UserWarning)  # warnings.filterwarnings takes it
    True
    """


class NoiseWarning(UserWarning):
    """The residuals do not fit an additive noise model.

    >>> issubclass(NoiseWarning, UserWarning)  # warnings.filterwarnings takes it
    True
    """


class Sortability(NamedTuple):
    """Share of a graph's directed paths along which a quantity grows; .5 is the chance level.

    Near 1, sorting the variables by that quantity alone would give the order.

    Attributes:
        var: The quantity is the variance.
        r2: The quantity is the share of variance that all other variables explain linearly; 0.5 if
            there are no more rows than columns.
        score: The quantity is the negated diagonal of the information matrix.

    Reference: Reisach, Seiler, Weichwald (2021), Beware of the simulated DAG; Reisach et al.
    (2023), A scale-invariant sorting criterion; Montagna et al. (2023), arXiv 2310.14246.

    >>> Sortability(var=0.98, r2=0.5, score=None).var > 0.9  # sorting by variance is enough
    True
    """

    var: float
    r2: float
    score: float


def sortability(x: Float[np.ndarray, "n d"], graph: Bool[np.ndarray, "d d"]) -> Sortability:
    """Compute var-, R2- and score-sortability over paths of every length.

    >>> graph = np.array([[False, True], [False, False]])
    >>> x = np.random.default_rng(0).normal(size=(100, 2)) @ [[1, 1], [0, 1]]
    >>> sortability(x, graph).var
    1.0

    Args:
        x: The rows.
        graph: An acyclic graph, ``[parent, child]``.

    Returns:
        The three shares; NaN for a graph without edges.

    Raises:
        InputError: The graph has a cycle.
    """
    variance = x.var(0, ddof=1)
    try:
        diagonal = precision(x).diagonal()
        r2, score = 1 - 1 / (diagonal * variance), -diagonal
    except InputError:
        r2 = score = np.zeros(len(variance))
    return Sortability(*(_grows(v, graph) for v in (variance, r2, score)))


def check_data(x: Any, names: Sequence[str] | None = None, who: str = "fit") -> np.ndarray:
    """Check that a table can be ordered.

    Args:
        x: An array or a data frame.
        names: Names of the columns, for error messages.
        who: Name of the public function, for error messages.

    Returns:
        The rows as float64.

    Raises:
        ShapeError: The table has fewer than two columns or three rows.
        InputError: There are values that are not finite numbers, or a column that is constant or a
            multiple of another.
    """
    table = _as_numbers(x, who)
    if table.ndim != 2 or table.shape[1] < 2 or table.shape[0] < 3:
        raise ShapeError(
            f"{who} needs a table of at least 3 rows and 2 columns, got shape {table.shape}"
            f"{_in_words(table)}. Give one row for each observation and one column for each "
            "variable."
        )
    names = list(names) if names is not None else [f"x{i}" for i in range(table.shape[1])]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(
            f"{who} needs different column names, got {twice!r} twice. Rename one of the columns."
        )
    bad = ~np.isfinite(table)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        kind = "missing" if np.isnan(table[row, column]) else "infinite"
        columns = np.flatnonzero(bad.any(0)).tolist()
        others = f" (and in {_some(names, columns[1:])})" if len(columns) > 1 else ""
        raise InputError(
            f"{who} needs finite numbers, got {int(bad.sum())} that are not (NaN or inf), the "
            f"first {kind} in row {row + 1}, column {names[column]}{others}. Drop those "
            "rows (--missing drop)."
        )
    constant = np.flatnonzero(np.ptp(table, axis=0) <= 1e-12 * np.abs(table).max(0))
    if len(constant):
        plural = "s" if len(constant) > 1 else ""
        raise InputError(
            f"{who} needs varying columns, got the constant column{plural} "
            f"{_some(names, constant.tolist())}. Drop {'them' if plural else 'it'}."
        )
    z = in_range(table, apart=True)
    z = (z - z.mean(0)) / z.std(0)
    same = np.triu(np.abs(z.T @ z) / len(z) > 1 - 1e-10, 1)
    if same.any():
        a, b = (int(i[0]) for i in np.nonzero(same))
        more = np.unique(np.nonzero(same)[1])
        others = (
            f" (so are {_some(names, [int(c) for c in more if c != b])})" if len(more) > 1 else ""
        )
        raise InputError(
            f"{who} needs different columns, got {names[b]}, which is a multiple of {names[a]}"
            f"{others}. Drop one of them."
        )
    return table


def in_range(x: Float[np.ndarray, "n d"], apart: bool = False) -> Float[np.ndarray, "n d"]:
    """Rows in units whose squares can be computed: divided by a power of two, which is exact.

    Args:
        x: The rows, no column constant.
        apart: Whether each column has a unit of its own; else only if sizes are 60 decades apart.

    Returns:
        The rows.
    """
    size = np.frexp(x.max(0) / 2 - x.min(0) / 2)[1]
    if not apart and size.max() - size.min() < 200:
        size = np.full_like(size, size.max())
    return np.asarray(np.ldexp(x, -size))


def _as_numbers(x: Any, who: str) -> np.ndarray:
    """An array of float64; missing values of any kind are NaN."""
    if np.iscomplexobj(x) or getattr(getattr(x, "dtype", None), "kind", "") == "c":
        raise InputError(
            f"{who} needs real numbers, got complex ones. Complex data not supported; give real "
            "and imaginary parts as columns."
        )
    if hasattr(x, "toarray"):
        raise InputError(
            f"{who} needs a dense table, got a sparse one. Sparse data not supported; call "
            "toarray() first."
        )
    if np.ma.isMaskedArray(x):
        x = np.ma.filled(x.astype(np.float64), np.nan)
    if hasattr(x, "requires_grad"):
        x = x.detach()
    try:
        if hasattr(x, "iloc"):  # pandas: its missing values have no float
            return np.asarray(x.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.asarray(x, np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{who} needs numbers, got values that are not. Drop or encode columns of text."
        ) from None


def _in_words(table: np.ndarray) -> str:
    """The size of a table in scikit-learn's words."""
    return f" (n_samples={len(table)}, n_features={table.shape[1]})" if table.ndim == 2 else ""


def _some(names: Sequence[str], places: Sequence[int]) -> str:
    more = f" and {len(places) - 8} more" if len(places) > 8 else ""
    return ", ".join(names[j] for j in places[:8]) + more


def looks_rescaled(x: Float[np.ndarray, "n d"]) -> bool:
    """Whether all columns have the same standard deviation, or the same minimum and maximum.

    Args:
        x: The rows.

    Returns:
        True if the columns were probably standardised or scaled to one range.
    """
    sd, low, high = x.std(0), x.min(0), x.max(0)
    width = float((high - low).max())
    boxed = np.ptp(low) < 1e-6 * width and np.ptp(high) < 1e-6 * width
    return bool(sd.max() < 1.001 * sd.min() or boxed)


def noise_spread(variances: Float[np.ndarray, "d"]) -> float:
    """Log ratio of the lower quartile of the residual variances to the smallest one.

    If all noises have one variance, all residual variances given an order are equal, up to chance
    and to missed parents. Rescaled columns break that, and so do noises that differ. The ratio uses
    the lower quartile because missed parents only increase a variance.

    Args:
        variances: Residual variance of each variable given those before it.

    Returns:
        The log ratio; 0 for equal variances.
    """
    return float(np.log(np.quantile(variances, 0.25) / variances.min()))


def uneven_scale(variances: Float[np.ndarray, "d"], rows: int) -> bool:
    """Whether :func:`noise_spread` is above ``.08 + 2 sqrt(2 / rows)``.

    The log of a variance estimated from Gaussian rows has a standard deviation of
    ``sqrt(2 / rows)``.

    Args:
        variances: Residual variance of each variable given those before it.
        rows: Number of rows they were estimated from.

    Returns:
        True if the noises differ in size by more than chance.
    """
    return bool(noise_spread(variances) > 0.08 + 2 * (2 / rows) ** 0.5)


def warn_of_scale(rescaled: bool, uneven: bool, rule: str) -> None:
    """Warn if the columns look rescaled, or else if the noises differ in size.

    Args:
        rescaled: Result of :func:`looks_rescaled`.
        uneven: Result of :func:`uneven_scale`.
        rule: The rule that the order was made by.
    """
    if not (rescaled or uneven):
        return
    what = SCALE_WORDS[0] if rescaled else SCALE_WORDS[1]
    then = {
        "equal-variance": "The order relies on noises of one variance in the columns' own units, "
        "so it is near chance or worse. Use rule='auto', or give each noise's scale as "
        "noise_scale.",
        "curvature": "Directions come from curved functions instead of equal variances.",
        "independence": "Directions come from noises that are not Gaussian instead of equal "
        "variances.",
        "partial": "The functions are lines and the noises Gaussian, so only arrows that follow "
        "from independences have a direction.",
        "pairwise": "Of two columns the likelihoods of both directions are compared instead.",
    }
    warnings.warn(f"{what} {then[rule]}", ScaleWarning, stacklevel=3)


def uneven_noise(
    x: Float[np.ndarray, "n d"],
    residuals: Float[np.ndarray, "n d"],
    graph: Bool[np.ndarray, "d d"],
) -> float:
    """Share of the variables with parents whose noise varies with the predicted value.

    For each variable, squared residuals are regressed on the fitted value and its square. The
    variable counts if ``n R^2`` is above 20, which has probability 5e-5 under an additive model
    (chi-squared with 2 degrees of freedom). Post-nonlinear models show here, and so do interactions
    that an additive fit misses.

    Args:
        x: The rows.
        residuals: Residuals of each variable given its parents.
        graph: The graph, ``[parent, child]``.

    Returns:
        The share; 0 for a graph without edges.

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
    """Warn if the noise of more than 40 % of the variables is uneven.

    Args:
        share: Result of :func:`uneven_noise`.
    """
    if share > 0.4:
        warnings.warn(
            f"The noise of {share:.0%} of the variables with parents depends on their causes. The "
            "data do not fit an additive noise model (perhaps they are post-nonlinear), so the "
            "order is not reliable.",
            NoiseWarning,
            stacklevel=3,
        )


def _grows(value: Float[np.ndarray, "d"], graph: Bool[np.ndarray, "d d"]) -> float:
    topological_order(graph, "sortability")  # raises on a cycle
    more = (value[None, :] > value[:, None]) + 0.5 * (value[None, :] == value[:, None])
    paths, right, total = graph.copy(), 0.0, 0
    while paths.any():
        right += float(more[paths].sum())
        total += int(paths.sum())
        paths = (paths.astype(np.float64) @ graph) > 0
    return right / total if total else float("nan")
