"""Which of two columns is the cause: the likelihoods of both directions, and no answer if unsure.

With two columns there is no third one to be independent of, so a direction comes from the shape of
the dependence alone. In each direction several models are fitted,

(1)  t(y) = f(x) + g(x) e,      e independent of x

with f a line or a spline, g constant or a spline, and t the identity or the map to Gaussian scores,
which stands for any increasing function. Noise that is added, noise that is a factor, noise whose
size depends on the cause, and functions of a sum are all of this form. With the densities estimated
from spacings a direction has the log likelihood

(2)  sum_i log p(x_i) + log p(y_i)  +  sum_i log p(t(y_i) | x_i) - log p(t(y_i))

whose first part both directions share. So the second part decides, less ``log(n) / 2`` for each
feature. Where a function of one variable makes both Gaussian and the dependence a line, both
directions fit equally well, and there is no answer.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from isospike.causal.splines import affordable_features, orthonormal, scipy

LEAST_Z = 1.5  # of the difference of two likelihoods, in its standard deviations (Vuong 1989)
_LEAST_GAIN = 3.0  # of log likelihood
_TIE_Z = 0.5  # below which neither direction is likelier
_FIT_LEVEL = 0.001  # probability that a noise independent of the cause counts as dependent
_FEW_VALUES = 10  # of a column that is no measurement
_SIZE_FEATURES = 4  # of the spline for the size of the noise
_SIZE_ROUNDS = 3
_MOST_ROWS = 2000  # more find misfits of every model that are too small to matter


class PairEvidence(NamedTuple):
    """What two columns say about their direction.

    Attributes:
        first: The likelier cause, 0 or 1.
        gain: Difference of the log likelihoods of the two directions, at least 0.
        z: The gain over its standard deviation.
        fits: Whether the noise of the likelier direction is independent of the cause.
    """

    first: int
    gain: float
    z: float
    fits: bool

    @property
    def decided(self) -> bool:
        """Whether the data carry the direction."""
        return self.fits and self.z >= LEAST_Z and self.gain >= _LEAST_GAIN

    @property
    def tied(self) -> bool:
        """Whether neither direction is likelier."""
        return not self.fits or self.z < _TIE_Z


class _Model(NamedTuple):
    """A model of one direction: log likelihood ratio of each row, features, and the noise."""

    gains: Float[np.ndarray, "n"]
    features: int
    noise: Float[np.ndarray, "n"]

    @property
    def total(self) -> float:
        """The log likelihood ratio less the cost of the features."""
        return float(self.gains.sum() - np.log(len(self.gains)) / 2 * self.features)


def compare_directions(x: Float[np.ndarray, "n 2"]) -> PairEvidence:
    """Compare the two directions of two columns; units do not matter.

    >>> draw = np.random.default_rng(0)
    >>> cause = draw.normal(size=500)
    >>> effect = np.exp(cause) * draw.uniform(0.5, 1.5, 500)
    >>> found = compare_directions(np.column_stack([effect, cause]))
    >>> found.first, found.decided
    (1, True)

    Args:
        x: The rows, of which 2000 are drawn if there are more; neither column constant.

    Returns:
        The evidence; nothing fits if a column has ten values at most.

    Raises:
        MissingExtraError: SciPy is not installed.

    Reference: Immer et al. (2023), On the identifiability and estimation of causal location-scale
    noise models; Vuong (1989), Likelihood ratio tests for model selection.
    """
    x = x[np.random.default_rng(0).permutation(len(x))[:_MOST_ROWS]] if len(x) > _MOST_ROWS else x
    columns = [_spread((v - v.mean()) / v.std()) for v in x.T]
    best = []
    for cause, effect in (columns, columns[::-1]):
        best.append((max(_models(cause, effect), key=lambda m: m.total), cause))
    first = int(best[1][0].total > best[0][0].total)
    (likelier, cause), (other, _) = best[first], best[1 - first]
    gain = likelier.total - other.total
    spread = float((likelier.gains - other.gains).std()) * len(x) ** 0.5
    few = min(len(np.unique(v)) for v in x.T) <= _FEW_VALUES
    fits = not few and _independent(likelier.noise, cause)
    return PairEvidence(first, gain, gain / spread if spread > 0 else 0.0, fits)


def _models(cause: Float[np.ndarray, "n"], effect: Float[np.ndarray, "n"]) -> list[_Model]:
    """All models of one direction."""
    n = len(cause)
    count = affordable_features(n, 2)
    models = []
    for scale in (effect, _gaussian_scores(effect)):
        alone = _log_density(scale)
        for basis in (cause, _gaussian_scores(cause)):
            line, curve = _design(basis, 1), _design(basis, count)
            size = _design(basis, min(_SIZE_FEATURES, count))
            for mean in (line, curve):
                noise = scale - mean @ (mean.T @ scale)
                models.append(_Model(_log_density(noise) - alone, mean.shape[1], noise))
            noise, log_size = _scaled_noise(scale, curve, size)
            gains = _log_density(noise) - log_size - alone
            models.append(_Model(gains, curve.shape[1] + size.shape[1] - 1, noise))
    return models


def _scaled_noise(
    effect: Float[np.ndarray, "n"],
    mean: Float[np.ndarray, "n p"],
    size: Float[np.ndarray, "n q"],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The noise of a model whose size depends on the cause, and the log of that size.

    In turns the log of the squared residual is regressed on the cause, and the effect by weighted
    least squares.
    """
    rest, log_size = effect - mean @ (mean.T @ effect), np.zeros(len(effect))
    for _ in range(_SIZE_ROUNDS):
        square = np.exp(2 * log_size)
        least = 1e-3 * np.mean(rest**2) / square.mean() * square
        log_size = size @ (size.T @ np.log(rest**2 + least)) / 2
        log_size -= log_size.mean()
        weight = np.exp(-log_size)
        slopes = np.linalg.lstsq(mean * weight[:, None], effect * weight, rcond=None)[0]
        rest = effect - mean @ slopes
    return rest * np.exp(-log_size), log_size


def _design(v: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n p"]:
    """An orthonormal basis of the constant and the spline features of a variable."""
    return np.column_stack([np.full(len(v), len(v) ** -0.5), orthonormal(v, count)])


def _gaussian_scores(v: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Gaussian quantiles of the ranks; no two values are equal."""
    rank = v.argsort().argsort()
    return np.asarray(scipy("special", "ScoreSchurSort.fit").ndtri((rank + 0.5) / len(v)))


def _spread(v: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The values, with equal ones spread half way to their neighbours: densities need no atoms."""
    value, place, count = np.unique(v, return_inverse=True, return_counts=True)
    if len(value) == len(v):
        return v
    gap = np.diff(value)
    below, above = np.append(gap[0], gap)[place], np.append(gap, gap[-1])[place]
    step = np.random.default_rng(0).uniform(-0.5, 0.5, len(v))
    return np.where(count[place] > 1, v + step * np.where(step < 0, below, above), v)


def _log_density(v: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Log density at each value by the distance of the ``sqrt(n)`` nearest ranks on either side.

    Its means over neighbours are returned. Spacings adapt to the density, and have no bias at the
    sharp ends of a range, where kernels have one.

    Reference: Vasicek (1976), A test for normality based on sample entropy.
    """
    n = len(v)
    reach = max(3, round(n**0.5))
    place = np.arange(n)
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach, n - 1)
    order = v.argsort(kind="stable")
    ranked = v[order]
    width = np.maximum(ranked[high] - ranked[low], 1e-12 * (ranked[-1] - ranked[0]))
    log = np.log((high - low) / n) - np.log(width)
    total = np.append(0, np.cumsum(log))
    low, high = np.maximum(place - reach // 2, 0), np.minimum(place + reach // 2 + 1, n)
    out = np.empty(n)
    out[order] = (total[high] - total[low]) / (high - low)
    return out


def _independent(noise: Float[np.ndarray, "n"], cause: Float[np.ndarray, "n"]) -> bool:
    """Whether a chi-squared test of equally filled cells finds no dependence."""
    n = len(noise)
    cells = 4 if n < 300 else 5
    i, j = (v.argsort().argsort() * cells // n for v in (noise, cause))
    seen = np.bincount(i * cells + j, minlength=cells**2).reshape(cells, cells)
    expected = np.outer(seen.sum(1), seen.sum(0)) / n
    excess = float(((seen - expected) ** 2 / expected).sum())
    tail = scipy("special", "ScoreSchurSort.fit").chdtrc  # P(chi-squared > value)
    return bool(tail((cells - 1) ** 2, excess) >= _FIT_LEVEL)
