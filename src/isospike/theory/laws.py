"""How many steps an error needs: the error of each code, and lower bounds for every decoder.

These laws are derived, with nothing fitted, and say what they assume. The error of a whole network
is measured and fitted instead: :mod:`isospike.codes.law`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.codes import BernoulliCode, WeightedCode
from isospike.codes.base import check_values
from isospike.codes.law import water_level
from isospike.errors import RangeError

PUBLISHED_CONSTANT = 2.3

# ------------------------------------------------------------------- one value


def square_error(code: WeightedCode, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean square error of a code at each value, ``E (decode(encode(x)) - x)^2``.

    (1)  Bernoulli: x (1 - x) / T. It is unbiased, so this is its variance.
    (2)  All others round to the nearest multiple of 1 / levels: (round(x levels) / levels - x)^2,
         at most 1 / (2 levels)^2.

    Its mean over uniform x is ``code.mean_square_error``.

    Args:
        code: The code.
        x: Values in the code's range.

    Returns:
        The mean square error of each value.

    Raises:
        RangeError: Some value is NaN or outside the code's range.

    >>> import torch
    >>> square_error(BernoulliCode(4), torch.tensor([0.5, 1.0])).tolist()
    [0.0625, 0.0]
    """
    check_values(code, x)
    if isinstance(code, BernoulliCode):
        return x * (1 - x) / code.steps
    return (code.quantize(x) - x).square()


def dithered_square_error(x: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, "*shape"]:
    """Mean square error of an integrate-and-fire neuron with a random initial membrane.

    (3)  f (1 - f) / T^2, f = x T - floor(x T); over uniform x its mean is 1 / (6 T^2)

    Claim: the count ``floor(x T + u)``, u uniform in [0, 1), over T is unbiased with variance (3).
    Assumes: constant drive x in [0, 1], no leak, soft reset, threshold 1.
    Source: derived; the count is the integer below x T, or with probability f the one above.
    Test: Monte Carlo; at 1 / 2 and T = 1 it is that of the Bernoulli code, 1 / 4.
    Verdict: holds.

    Args:
        x: Constant drives in [0, 1].
        steps: T, at least 1.

    Returns:
        The mean square error of each value.

    Raises:
        RangeError: ``steps < 1``.

    >>> import torch
    >>> dithered_square_error(torch.tensor(0.5), steps=1).item()
    0.25
    """
    if steps < 1:
        raise RangeError(f"dithered_square_error needs steps >= 1, got {steps}. Give at least one.")
    part = x * steps - torch.floor(x * steps)
    return part * (1 - part) / steps**2


def rheobase(decay: float, threshold: float = 1.0) -> float:
    """Rheobase: the largest constant drive at which a leaky neuron never fires.

    ``(1 - decay) threshold``

    Claim (published, setting): the expected count of a rate-coded leaky neuron is x T.
    Assumes: constant drive, a membrane that starts at 0.
    Source: derived: the sum of a geometric series.
    Test: the recurrence, on both sides of it.
    Verdict: fails for decay < 1. The membrane tends to x / (1 - decay); a drive below the rheobase
        does not lift it to the threshold. Holds for Bernoulli spikes, and for decay = 1.

    Args:
        decay: Factor by which the membrane shrinks in one step, in [0, 1].
        threshold: Membrane at which the neuron fires.

    Returns:
        The drive.

    Raises:
        RangeError: ``decay`` is outside [0, 1].

    >>> rheobase(0.75)
    0.25
    """
    if not 0 <= decay <= 1:
        raise RangeError(f"rheobase needs a decay in [0, 1], got {decay:g}. Use 1 for no leak.")
    return (1 - decay) * threshold


# -------------------------------------------------------- many values, in a subspace


class ProjectionLaw(NamedTuple):
    """Error of Bernoulli trains read by a projection: ``MSE(T) = noise / T + floor``.

    Attributes:
        noise: Squared error of one step, per coordinate.
        floor: Squared error of the projection, per coordinate. No number of steps removes it.

    >>> ProjectionLaw(noise=0.1, floor=0.01).mean_square_error(10)
    0.02
    """

    noise: float
    floor: float

    def mean_square_error(self, steps: int) -> float:
        """Mean square error per coordinate.

        Args:
            steps: T, at least 1.

        Returns:
            ``noise / steps + floor``.
        """
        return self.noise / steps + self.floor

    def steps(self, error: float) -> int:
        """(6): the fewest steps with a root-mean-square error of at most ``error``.

        Args:
            error: Root-mean-square error, above the root of the floor.

        Returns:
            The steps.

        Raises:
            RangeError: ``error`` is not above the floor; the message gives the floor.
        """
        room = error**2 - self.floor
        if error <= 0 or room <= 0:
            raise RangeError(
                f"ProjectionLaw.steps needs an error above its floor, {math.sqrt(self.floor):.4g}, "
                f"got {error:g}. Ask for more error, or project on more components."
            )
        return max(1, math.ceil(self.noise / room * (1 - 1e-12)))


def projection_law(rows: Float[Tensor, "rows width"], rank: int) -> ProjectionLaw:
    """The law of rows of rates, read by the projector on their first principal components.

    Each rate r is sent as T independent Bernoulli spikes; the decoder is
    ``mean + P (counts / T - mean)``.

    (4)  MSE = tr(P diag(mean r (1 - r))) / (d T) + (1 - v) sigma^2
    (5)      = (k / d) mean[r (1 - r)] / T + (1 - v) sigma^2   if every P_ii = k / d
    (6)  T >= (k / d) mean[r (1 - r)] / (eps^2 - (1 - v) sigma^2)

    v is the share of variance in the k components, sigma^2 the mean variance of a coordinate.

    Claim: (4) is the error, an equality. (5) is the form in which effective dimension enters; its
        constant mean[r (1 - r)] <= 1 / 4 is computed, not fitted.
    Assumes: spikes independent between steps and coordinates; the decoder projects. (5) also needs
        a subspace incoherent with the axes.
    Source: derived. The error is P n - (I - P)(x - mean), n the noise; the parts are orthogonal.
    Test: Monte Carlo; sharp with a Hadamard basis; (5) a factor d / k too low where k coordinates
        vary and the others are silent; independent of k where the decoder does not project, and
        far too high for integrate-and-fire trains.
    Verdict: holds for independent spikes and a projecting decoder.

    Args:
        rows: Rates in [0, 1].
        rank: k, the number of principal components that the decoder reads.

    Returns:
        The law (4).

    Raises:
        RangeError: Fewer than 2 rows, a rate outside [0, 1], or a rank outside 1 .. width.

    >>> rates = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    >>> projection_law(rates, rank=8).floor < 1e-6
    True
    """
    if len(rows) < 2:
        raise RangeError(f"projection_law needs at least 2 rows, got {len(rows)}. Give more.")
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        raise RangeError(
            "projection_law needs rates in [0, 1], got values outside or NaN. Rescale the rows."
        )
    width = rows.shape[1]
    if not 1 <= rank <= width:
        raise RangeError(f"projection_law needs a rank from 1 to {width}, got {rank}. Choose one.")
    x = rows.double()
    centred = x - x.mean(0)
    variances, axes = torch.linalg.eigh(centred.t() @ centred / len(x))
    kept = axes[:, width - rank :]
    diagonal = kept.square().sum(1)
    noise = diagonal @ (x * (1 - x)).mean(0) / width
    floor = variances[: width - rank].clamp_min(0).sum() / width
    return ProjectionLaw(float(noise), float(floor))


def incoherent_law(
    rank: int, width: int, spread: float, variance: float, share: float
) -> ProjectionLaw:
    """(5) from its parts alone.

    Args:
        rank: k, the effective dimension.
        width: d.
        spread: mean[r (1 - r)], at most 1 / 4.
        variance: sigma^2.
        share: v, the fraction of the variance in the k components.

    Returns:
        The law (5).

    Raises:
        RangeError: A number is outside its range.

    >>> incoherent_law(rank=47, width=384, spread=0.2, variance=0.05, share=1.0).floor
    0.0
    """
    if not 1 <= rank <= width or not 0 <= spread <= 0.25 or variance < 0 or not 0 <= share <= 1:
        raise RangeError(
            "incoherent_law needs 1 <= rank <= width, spread in [0, 1/4], variance >= 0 and share "
            f"in [0, 1], got {rank}, {width}, {spread:g}, {variance:g} and {share:g}. Choose "
            "numbers in these ranges."
        )
    return ProjectionLaw(rank / width * spread, (1 - share) * variance)


def published_steps(dimension: float, error: float) -> int:
    """The published rule, ``T = 2.3 d_eff / eps^2``, as written.

    Claim: a rate code of effective dimension d_eff needs T steps for an error eps; T = 4 to 8 are
        recommended at d_eff = 47 to 89.
    Assumes: values in [0, 1]; the rest is not stated.
    Source: arXiv 2604.15769, Theorem 13.
    Test: its own numbers; :func:`incoherent_law` for the same dimension.
    Verdict: fails as written: at eps = .1 it asks for 10,810 steps, and T = 4 needs an error of 5.2
        where values lie in [0, 1]. Divided by the width it is (5) with another constant.

    Args:
        dimension: d_eff, above 0.
        error: eps, above 0.

    Returns:
        The steps.

    Raises:
        RangeError: A number is not above 0.

    >>> published_steps(47.0, 0.1)
    10810
    """
    if dimension <= 0 or error <= 0:
        raise RangeError(
            f"published_steps needs a dimension and an error above 0, got {dimension:g} and "
            f"{error:g}. Give positive numbers."
        )
    return math.ceil(PUBLISHED_CONSTANT * dimension / error**2 * (1 - 1e-12))


# ------------------------------------------------------------------- lower bounds


def bernoulli_steps(rate: float, error: float) -> int:
    """Fewest steps of independent spikes of one rate: ``r (1 - r) / eps^2``.

    Claim: no unbiased decoder of T Bernoulli spikes has a smaller variance than r (1 - r) / T.
    Assumes: independent spikes of equal probability; an unbiased decoder. It bounds no other train.
    Source: Cramer-Rao; the published lower bound (Theorem 8) where it is true.
    Test: the mean meets it; a constant decoder, biased, beats it; so does every other code.
    Verdict: holds for independent spikes, fails for others.

    Args:
        rate: r, the probability of a spike in a step.
        error: eps, root-mean-square error.

    Returns:
        The steps.

    Raises:
        RangeError: A number is outside its range.

    >>> bernoulli_steps(0.5, 0.05)
    100
    """
    _check_error(error, "bernoulli_steps")
    if not 0 <= rate <= 1:
        raise RangeError(
            f"bernoulli_steps needs a rate in [0, 1], got {rate:g}. Rates are spikes per step."
        )
    return math.ceil(rate * (1 - rate) / error**2 * (1 - 1e-12))


def count_steps(error: float) -> int:
    """Fewest steps of a decoder that sees only a count: ``1 / (sqrt(12) eps) - 1``.

    Claim: a count of T steps has T + 1 values, so for uniform x in [0, 1] its root-mean-square
        error is at least 1 / (sqrt(12) (T + 1)), whatever the train.
    Assumes: one neuron, at most one spike a step, x uniform.
    Source: derived; equal cells are the best T + 1.
    Test: met by the mid-points of T + 1 equal cells; the rate code needs one step more.
    Verdict: holds.

    Args:
        error: eps, root-mean-square error.

    Returns:
        The steps.

    Raises:
        RangeError: ``error`` is not above 0 and finite.

    >>> count_steps(0.01)
    28
    """
    _check_error(error, "count_steps")
    return max(0, math.ceil((1 / (math.sqrt(12) * error) - 1) * (1 - 1e-12)))


def rate_distortion(variances: Float[Tensor, "width"], mean_square: float) -> float:
    """Bits per row that a mean square error needs, summed over its coordinates.

    (7)  R = sum_i max(0, log2(l_i / w) / 2), with the level w such that sum_i min(l_i, w) = D

    Claim: no code of fewer bits reaches the total error D on average, with spikes or without.
    Assumes: rows Gaussian with these variances along their axes, coded in long blocks. Then it is
        met; for other rows of equal variances it is an upper bound of the bits, not a lower one.
    Source: Shannon; reverse water-filling (Cover, Thomas 2006, theorem 10.3.3).
    Test: equal variances by hand; continuous and falling in D.
    Verdict: holds.

    Args:
        variances: l, at least 0.
        mean_square: D, above 0.

    Returns:
        R, bits per row.

    Raises:
        RangeError: A variance is negative or not finite, or ``mean_square`` is not above 0.

    >>> import torch
    >>> rate_distortion(torch.ones(4), 1.0)
    4.0
    """
    _check_error(mean_square, "rate_distortion")
    if bool((variances < 0).any()) or not bool(variances.isfinite().all()):
        raise RangeError(
            "rate_distortion needs finite variances of at least 0, got others. Check them."
        )
    values = variances.double()
    level = water_level(values, mean_square)
    if math.isinf(level):
        return 0.0
    return float((values / level).log2().clamp_min(0).sum() / 2)


def spike_bits(spikes: int, slots: int) -> float:
    """Largest number of bits that ``spikes`` spikes or fewer can carry in ``slots`` places.

    (8)  log2 sum_{j <= spikes} binomial(slots, j)

    Claim: no decoder reads more; a spike carries up to log2(slots) bits, not at most one.
    Assumes: nothing.
    Source: derived: the number of trains.
    Test: the phase code at T = 8 uses all 8 bits with 4 spikes on average.
    Verdict: holds.

    Args:
        spikes: Largest number of spikes.
        slots: Places for a spike: neurons times steps.

    Returns:
        Bits.

    Raises:
        RangeError: ``spikes`` is not from 0 to ``slots``.

    >>> spike_bits(1, 255)
    8.0
    """
    if not 0 <= spikes <= slots:
        raise RangeError(
            f"spike_bits needs a number of spikes from 0 to {slots} slots, got {spikes}. Each "
            "place holds one."
        )
    return math.log2(sum(math.comb(slots, j) for j in range(spikes + 1)))


def fewest_spikes(bits: float, slots: int) -> int:
    """The inverse of (8): the smallest number of spikes that can carry ``bits``.

    Args:
        bits: Bits to carry.
        slots: Places for a spike: neurons times steps.

    Returns:
        The largest number of spikes that a train then has.

    Raises:
        RangeError: More bits than slots: no number of spikes is enough.

    >>> fewest_spikes(8.0, 255)
    1
    """
    if not 0 <= bits <= slots:
        raise RangeError(
            f"fewest_spikes needs bits from 0 to {slots} slots, got {bits:g}. Give more steps."
        )
    total, spikes = 1, 0
    while math.log2(total) < bits * (1 - 1e-12):
        spikes += 1
        total += math.comb(slots, spikes)
    return spikes


def _check_error(error: float, who: str) -> None:
    if not 0 < error < math.inf:
        raise RangeError(f"{who} needs an error above 0 and finite, got {error:g}. Try 0.05.")
