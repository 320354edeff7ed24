"""Spectra of weights, without data: what a matrix has learned beyond noise.

For a weight W ``[n, m]`` with singular values s and lambda = s^2:

(1)  stable rank   sum lambda / lambda_1
(2)  power law     p(lambda) ~ lambda^-alpha for lambda >= x, of k values:
                   alpha = 1 + k / sum log(lambda / x),  standard error (alpha - 1) / sqrt(k),
                   x where the distance of Kolmogorov and Smirnov is least
(3)  noise edge    sigma^2 ((sqrt n + sqrt m)^2
                   + 2.02 (sqrt n + sqrt m) (1 / sqrt n + 1 / sqrt m)^(1/3))
(4)  rounding      u sigma (sqrt n + sqrt m), u the unit roundoff of the type it was made in

Entries drawn independently with mean square sigma^2 have all lambda below (3) in 99 of 100 draws:
what lies above was learned. (3) without its second term is the edge of Marchenko and Pastur; the
term is Tracy's and Widom's, whose 99th percentile is 2.02.

A float32 tensor whose values are all those of bfloat16 or float16 was made in that type, wherever
it lies now; its rank is that of its rounding there.

References: Clauset, Shalizi, Newman (2009), Power-law distributions in empirical data, for (2).
Marchenko, Pastur (1967); Johnstone (2001), On the distribution of the largest eigenvalue, for (3).
Martin, Mahoney (2021), Implicit self-regularization in deep neural networks, for (2) of weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isospike.errors import RangeError, ShapeError
from isospike.porting.product import SpikingProduct
from isospike.progress import update
from isospike.ranks.numerical import DECADE, as_real
from isospike.ranks.spikes import plain_weight

LEAST_TAIL = 10  # values that a power law is fitted to
TRACY_WIDOM = 2.02  # 99th percentile of the largest eigenvalue, in its own units
NORMAL = 1.96  # of a 95 % interval
AT_ONCE = 4096  # rows in float64, so that an embedding is never all of it twice


class PowerLaw(NamedTuple):
    """A power law (2) fitted to the largest of some values.

    Attributes:
        alpha: Exponent.
        low, high: Its 95 % interval.
        tail: Number of values k that it was fitted to.
        distance: Between their distribution and the law, 0 to 1.

    >>> PowerLaw(alpha=2.5, low=2.0, high=3.0, tail=40, distance=0.1).alpha
    2.5
    """

    alpha: float
    low: float
    high: float
    tail: int
    distance: float


class Spectrum(NamedTuple):
    """The spectrum of a matrix.

    Attributes:
        rows, columns: Its shape.
        dtype: Type in which its entries were made.
        size: Root mean square of its entries.
        rank: Singular values above the rounding (4), by half a decade.
        stable: Stable rank (1).
        law: The power law (2); None for fewer than 20 eigenvalues.
        above: Eigenvalues above the noise edge (3).

    >>> import torch
    >>> spectrum(torch.eye(4)).stable
    4.0
    """

    rows: int
    columns: int
    dtype: str
    size: float
    rank: int
    stable: float
    law: PowerLaw | None
    above: int


@dataclass(frozen=True)
class WeightRow:
    """One weight of a model.

    Attributes:
        name: Its name; one matrix of a stack has its number behind it.
        spectrum: Of it.
    """

    name: str
    spectrum: Spectrum


def fit_power_law(values: Float[Tensor, "n"]) -> PowerLaw:
    """Fit (2) to the largest of some positive values.

    >>> quantiles = (torch.arange(1, 1001, dtype=torch.float64) - 0.5) / 1000
    >>> round(fit_power_law(quantiles ** (-1 / 2)).alpha, 1)  # p ~ x^-3
    3.0

    Args:
        values: At least 10 that are not all equal; those that are not positive are left out.

    Returns:
        The law.

    Raises:
        RangeError: Fewer than 10 positive values, or all are equal.
    """
    x = values.detach().double().cpu().flatten()
    x = x[x > 0].sort(descending=True).values
    if len(x) < LEAST_TAIL or float(x[0]) == float(x[-1]):
        raise RangeError(
            f"fit_power_law needs at least {LEAST_TAIL} positive values that differ, got {len(x)}. "
            "Fit a larger matrix."
        )
    logs = x.log()
    count = torch.arange(1, len(x) + 1, dtype=torch.float64)
    total = logs.cumsum(0) - count * logs
    ks = torch.arange(LEAST_TAIL, len(x) + 1)
    ks = ks[total[ks - 1] > 0]
    alphas = 1 + ks / total[ks - 1]
    # Distance of each candidate: both steps of the empirical distribution against the law's.
    distance, at = math.inf, 0
    for part in _chunks(len(ks)):
        k, alpha = ks[part, None].double(), alphas[part, None]
        law = 1 - torch.exp((1 - alpha) * (logs[None] - logs[ks[part] - 1][:, None]))
        above = 1 - (count[None] - 1) / k  # share of values up to and with this one
        gap = torch.maximum((above - law).abs(), (above - 1 / k - law).abs())
        gap = gap.masked_fill(count[None] > k, 0.0)
        least, place = gap.amax(1).min(0)
        if float(least) < distance:
            distance, at = float(least), int(place) + part.start
    exponent, tail = float(alphas[at]), int(ks[at])
    error = NORMAL * (exponent - 1) / math.sqrt(tail)
    return PowerLaw(exponent, exponent - error, exponent + error, tail, distance)


def _chunks(count: int, size: int = 256) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def spectrum(weight: Any, computed_in: torch.dtype | None = None) -> Spectrum:
    """Measure (1) to (4) of a matrix.

    >>> spectrum(torch.eye(4)).stable
    4.0

    Args:
        weight: ``[rows, columns]``.
        computed_in: The type in which its entries were made; found from their values by default.

    Returns:
        The spectrum.

    Raises:
        ShapeError: It does not have two axes, or is empty.
        RangeError: An entry is NaN or infinite, or all are zero.
    """
    w, origin = as_real(weight, computed_in, "spectrum")
    if w.dim() != 2 or not w.numel():
        raise ShapeError(
            f"spectrum needs a matrix [rows, columns], got shape {list(w.shape)}. Flatten the "
            "kernel of a convolution to [out, rest]."
        )
    top = _largest(w)
    if not 0 < top < math.inf:
        raise RangeError(
            f"spectrum needs finite entries that are not all zero, got a maximum of {top}. Leave "
            "this weight out."
        )
    origin = computed_in or made_in(weight, origin)
    n, m = w.shape
    gram = torch.zeros(min(n, m), min(n, m), dtype=torch.float64)
    for some in torch.split((w if n > m else w.T).detach(), AT_ONCE):
        part = some.cpu().double() / top
        gram.addmm_(part.T, part)
    squares = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
    variance = float(gram.trace()) / (n * m)
    roots = math.sqrt(n) + math.sqrt(m)
    spread = roots * (1 / math.sqrt(n) + 1 / math.sqrt(m)) ** (1 / 3)
    edge = variance * (roots**2 + TRACY_WIDOM * spread)
    rounding = (torch.finfo(origin).eps / 2) ** 2 * variance * roots**2 * DECADE
    resolved = torch.finfo(torch.float64).eps * min(n, m) * float(squares[0])
    known = squares[squares > resolved]
    several = len(known) >= 2 * LEAST_TAIL and float(known[0]) > float(known[-1])
    return Spectrum(
        rows=n,
        columns=m,
        dtype=str(origin).removeprefix("torch."),
        size=top * math.sqrt(variance),
        rank=int((squares > max(rounding, resolved)).sum()),
        stable=float(squares.sum() / squares[0]),
        law=fit_power_law(known) if several else None,
        above=int((squares > edge).sum()),
    )


def _largest(x: Tensor) -> float:
    """The largest size of an entry; NaN if one is."""
    low, high = x.detach().aminmax()
    return float(torch.maximum(-low.double(), high.double()))


def made_in(weight: Any, origin: torch.dtype) -> torch.dtype:
    """The narrowest type that holds all entries of a tensor: it was made in that one.

    Args:
        weight: The tensor.
        origin: Its type.
    """
    if not isinstance(weight, Tensor) or origin not in (torch.float32, torch.float64):
        return origin
    for narrow in (torch.bfloat16, torch.float16, torch.float32):
        parts = torch.split(weight.detach(), AT_ONCE)
        if all(torch.equal(x.to(narrow).to(x.dtype), x) for x in parts):
            return narrow
    return origin


def measure_weights(model: nn.Module) -> tuple[WeightRow, ...]:
    """The spectrum of every weight of a model that is a matrix, or a stack or kernel of them.

    >>> [row.name for row in measure_weights(nn.Linear(3, 2))]
    ['weight']

    Args:
        model: Any; what several modules share is measured once. The weights of a port are taken
            without the amplitudes of its spikes.

    Returns:
        One row for each matrix, in the order of the model.
    """
    found = list(_matrices(model))
    rows = []
    for done, (name, matrix) in enumerate(found, 1):
        if 0 < _largest(matrix) < math.inf:
            rows.append(WeightRow(name, spectrum(matrix)))
        update("weights", done, len(found))
    return tuple(rows)


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[int, ...]] = set()
    for path, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            if tensor.dim() < 2 or not tensor.is_floating_point() or min(tensor.shape) < 1:
                continue
            place = (tensor.data_ptr(), *tensor.shape)
            if place in seen:
                continue
            seen.add(place)
            name = f"{path}.{leaf}".removeprefix(".")
            weight = tensor.detach()
            if isinstance(module, SpikingProduct) and leaf == "weight":
                weight = plain_weight(module).flatten(1)
            elif isinstance(module, nn.modules.conv._ConvNd) or tensor.dim() > 3:
                weight = weight.flatten(1)
            if weight.dim() == 2:
                if min(weight.shape) > 1:
                    yield name, weight
            elif min(weight.shape[1:]) > 1:
                yield from ((f"{name}.{i}", part) for i, part in enumerate(weight))
