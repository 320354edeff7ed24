"""Few-spike neurons: one neuron that computes a scalar function with a few weighted spikes.

(1)  v[0] = (x - low) / (high - low)
(2)  s[t] = 1 if v[t] >= threshold[t] else 0;  v[t+1] = v[t] - reset[t] s[t]
(3)  f(x) ~ offset + sum_t weight[t] s[t]

Given thresholds and resets, and so the spikes, the best weights solve a linear least-squares
problem; only the thresholds and resets of (2) are searched.

Reference: Stoeckl, Maass (2021), Optimized spiking neurons can classify images with high accuracy
through temporal coding with two spikes.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import InputError, RangeError

BUILTIN: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "exp": (torch.exp, -8.0, 0.0),
    "reciprocal": (torch.reciprocal, 1.0, 2.0),
    "sqrt": (torch.sqrt, 0.0, 1.0),
    "gelu": (torch.nn.functional.gelu, -4.0, 4.0),
    "exp2": (lambda x: torch.exp2(-x), 0.0, 1.0),
    "rsqrt": (torch.rsqrt, 1.0, 2.0),
    "tanh": (torch.tanh, 0.0, 4.0),
    "gelu residual": (lambda x: x * torch.special.ndtr(-x), 0.0, 4.0),
    "silu residual": (lambda x: x * torch.sigmoid(-x), 0.0, 8.0),
    "softplus residual": (lambda x: torch.nn.functional.softplus(-x), 0.0, 8.0),
    "erf": (torch.erf, 0.0, 4.0),
}
"""The functions whose neurons come with isospike: the function, and the range of the fit.

exp2 is ``2^-x``. The residual of GELU and SiLU is ReLU less the function: ``f(x) = max(x, 0) -
residual(|x|)``; that of softplus is the function less ReLU.
"""

POINTS = 600  # of the fit
BASES = (2.0, 2.0, 1.6, 1.6)  # one search starts at the digits in each of these

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FewSpikeNeuron:
    """One fitted neuron; called with values, it gives (3).

    Attributes:
        low, high: Range of its input.
        thresholds, resets, weights: One number per step.
        offset: Output without a spike.
        error: Root-mean-square error over a uniform input.
        largest: Largest error over the range.
        spikes: Mean number of spikes over a uniform input.
    """

    low: float
    high: float
    thresholds: tuple[float, ...]
    resets: tuple[float, ...]
    weights: tuple[float, ...]
    offset: float
    error: float
    largest: float
    spikes: float

    @property
    def steps(self) -> int:
        """Time steps."""
        return len(self.thresholds)

    def encode(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "steps *shape"]:
        """(2): the spikes, 0 or 1.

        Args:
            x: Values in [low, high].

        Returns:
            Spikes, time first.

        Raises:
            RangeError: Some value is NaN or outside [low, high].
        """
        inside = (x >= self.low) & (x <= self.high)
        if not bool(inside.all()):
            raise RangeError(
                f"FewSpikeNeuron needs values in [{self.low:g}, {self.high:g}], got "
                f"{float(x[~inside].flatten()[0]):g} ({int((~inside).sum())} of {x.numel()} "
                "outside). Rescale x first."
            )
        v = (x.double() - self.low) / (self.high - self.low)
        spikes = []
        for threshold, reset in zip(self.thresholds, self.resets, strict=True):
            fired = (v >= threshold).double()
            v = v - reset * fired
            spikes.append(fired)
        return torch.stack(spikes).to(x.dtype)

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """(3). Gradient: none."""
        total = torch.full(x.shape, self.offset, dtype=torch.float64)
        for weight, spikes in zip(self.weights, self.encode(x), strict=True):
            total += weight * spikes
        return total.to(x.dtype)


def fit_few_spike(
    function: Callable[[Tensor], Tensor],
    low: float,
    high: float,
    steps: int = 16,
    *,
    rounds: int = 20_000,
    generator: torch.Generator | None = None,
) -> FewSpikeNeuron:
    """Fit a neuron to a scalar function on [low, high].

    Thresholds and resets start at the digits of a number and are moved at random, a few at a time,
    by less and less; a move is kept if it lowers the mean square error, early on also if it raises
    it a little. The best of four such searches is returned.

    Args:
        function: Elementwise, finite on the range.
        low: Smallest input; inputs are uniform in between.
        high: Largest input.
        steps: Time steps, at most as many spikes; 1 to 32.
        rounds: Moves of one search, at least 1.
        generator: Source of randomness.

    Returns:
        The neuron, with its errors.

    Raises:
        RangeError: A number is outside its range, or the function not finite there.

    >>> import torch
    >>> neuron = fit_few_spike(torch.square, 0.0, 1.0, steps=4, rounds=100)
    >>> neuron.steps, neuron.error < 0.1
    (4, True)
    """
    if not 1 <= steps <= 32 or rounds < 1 or not -math.inf < low < high < math.inf:
        raise RangeError(
            "fit_few_spike needs steps from 1 to 32, rounds >= 1 and low < high, got "
            f"{steps}, {rounds}, {low:g} and {high:g}. Give 16 steps and a range."
        )
    unit = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    values = function(low + (high - low) * unit)
    if not bool(values.isfinite().all()):
        raise RangeError(
            f"fit_few_spike needs a function that is finite on [{low:g}, {high:g}], got NaN or "
            "infinity. Choose another range."
        )
    seed = int(torch.randint(2**62, (), generator=generator))
    chance = np.random.default_rng(seed)
    x, y = unit.numpy(), values.numpy()
    searches = [_search(x, y, base, steps, rounds, chance) for base in BASES]
    _, thresholds, resets = min(searches, key=lambda search: search[0])
    weights, _ = _solve(_spikes(x, thresholds, resets), y)
    neuron = FewSpikeNeuron(
        low, high, _tuple(thresholds), _tuple(resets), _tuple(weights[:-1]), float(weights[-1]),
        0.0, 0.0, 0.0,
    )  # fmt: skip
    return measure(neuron, function)


def measure(neuron: FewSpikeNeuron, function: Callable[[Tensor], Tensor]) -> FewSpikeNeuron:
    """Measure a neuron's errors and spikes, on a grid finer than that of the fit.

    Args:
        neuron: The neuron.
        function: The function that it was fitted to.

    Returns:
        The neuron with these figures.
    """
    at = torch.linspace(0, 1, 16 * POINTS + 1, dtype=torch.float64)
    x = (neuron.low + (neuron.high - neuron.low) * at).clamp(neuron.low, neuron.high)
    error = neuron(x) - function(x)
    measured = {
        "error": float(error.square().mean().sqrt()),
        "largest": float(error.abs().max()),
        "spikes": float(neuron.encode(x).sum(0).mean()),
    }
    return FewSpikeNeuron(**{**asdict(neuron), **measured})


@cache
def few_spike_neuron(name: str) -> FewSpikeNeuron:
    """Make a neuron of 16 steps that comes with isospike.

    Args:
        name: One of :data:`BUILTIN`.

    Returns:
        The neuron.

    Raises:
        InputError: Unknown name.

    >>> import torch
    >>> few_spike_neuron("sqrt")(torch.tensor(0.25)).item()
    0.51
    """
    if name not in BUILTIN:
        raise InputError(
            f"few_spike_neuron needs one of {', '.join(BUILTIN)}, got {name!r}. Fit others with "
            "fit_few_spike."
        )
    table = json.loads(files("isospike").joinpath("data/few_spike.json").read_text("utf-8"))[name]
    lists = ("thresholds", "resets", "weights")
    return FewSpikeNeuron(**{**table, **{key: tuple(table[key]) for key in lists}})


def _search(
    x: Array, y: Array, base: float, steps: int, rounds: int, chance: np.random.Generator
) -> tuple[float, Array, Array]:
    """Mean square error, thresholds and resets of one annealed search."""
    thresholds = base ** -np.arange(1.0, steps + 1)
    resets = thresholds.copy()
    error = _solve(_spikes(x, thresholds, resets), y)[1]
    best = error, thresholds, resets
    for i in range(rounds):
        size = 0.5 * 0.004 ** (i / rounds)
        moved = chance.integers(steps, size=1 if chance.random() < 0.7 else 3)
        tried = [thresholds.copy(), resets.copy()]
        for row in tried:
            row[moved] += chance.normal(size=len(moved)) * size * (np.abs(row[moved]) + 0.02)
        new = _solve(_spikes(x, *tried), y)[1]
        if new < error * (1 + 0.02 * (1 - i / rounds) * chance.exponential()):
            error, (thresholds, resets) = new, tried
            best = min(best, (error, thresholds, resets), key=lambda search: search[0])
    return best


def _spikes(x: Array, thresholds: Array, resets: Array) -> Array:
    """(2), with a row of ones for the offset."""
    v, spikes = x.copy(), np.ones((len(thresholds) + 1, len(x)))
    for t in range(len(thresholds)):
        spikes[t] = v >= thresholds[t]
        v -= resets[t] * spikes[t]
    return spikes


def _solve(spikes: Array, y: Array) -> tuple[Array, float]:
    """Least-squares weights and their mean square error; a spike that never changes weighs 0."""
    normal = spikes @ spikes.T
    normal[np.diag_indices(len(normal))] += 1e-9 * len(y)
    weights: Array = np.linalg.solve(normal, spikes @ y).astype(np.float64)
    return weights, float(np.mean((weights @ spikes - y) ** 2))


def _tuple(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
