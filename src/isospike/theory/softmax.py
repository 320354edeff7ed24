"""Circuits of spiking neurons for softmax and exp, each with the law of its error.

===========================  =================================================  ====================
circuit                      error against softmax, T steps, n neurons          what it needs
===========================  =================================================  ====================
:func:`softmax_race`         root mean square sqrt((1 - sum a^2) / T), any n    noise, one winner
:func:`softmax_shunting`     sum of errors 1 to 2 times n / (4 T)               input exp, a product
:func:`softmax_subtractive`  does not fall to 0 with a leak                     (published)
===========================  =================================================  ====================
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import RangeError

BLOCK = 2**20  # random numbers drawn at once
GOLDEN = (math.sqrt(5) - 1) / 2  # whose multiples spread evenly over [0, 1)


def softmax_race(
    scores: Float[Tensor, "neurons"], steps: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "neurons"]:
    """Softmax as the rates of a winner-take-all race with noise.

    (1)  s_i[t] = 1 where i maximises z_i + g_i[t], g standard Gumbel noise, anew each step

    A race of Poisson neurons of intensity exp(z_i), of which the first spike silences all, has the
    same law: no exponential of a score is computed.

    Claim: the mean square of ``|rates - a|_2`` is exactly ``(1 - sum a^2) / T``, a = softmax(z),
        for every number of neurons; :func:`race_error` is its root.
    Assumes: noise independent between neurons and steps; one winner a step.
    Source: Gumbel (1954), the maximum's law; the variance of a multinomial. The sound replacement
        of arXiv 2604.15769, Theorem 4.
    Test: n in 4, 16, 64, 197, T to 16,384, near-ties among them.
    Verdict: holds.

    Args:
        scores: z, one a neuron.
        steps: T, at least 1.
        generator: Source of the noise.

    Returns:
        Spikes of each neuron over ``steps``; they add up to 1.

    Raises:
        RangeError: Scores not finite, or ``steps < 1``.

    >>> import torch
    >>> softmax_race(torch.tensor([0.0, 1.0]), steps=64).sum().item()
    1.0
    """
    _check(scores, steps, "softmax_race")
    counts = torch.zeros(len(scores), dtype=torch.float64)
    for start in range(0, steps, max(1, BLOCK // len(scores))):
        size = min(max(1, BLOCK // len(scores)), steps - start)
        uniform = torch.rand(size, len(scores), dtype=torch.float64, generator=generator)
        noise = -(-uniform.clamp_min(1e-300).log()).log()
        winners = (scores.double() + noise).argmax(1)
        counts += torch.bincount(winners, minlength=len(scores))
    return (counts / steps).to(scores.dtype)


def race_error(scores: Float[Tensor, "neurons"], steps: int) -> float:
    """Root mean square of ``|softmax_race - softmax|_2``, in closed form; see :func:`softmax_race`.

    Args:
        scores: z, one a neuron.
        steps: T, at least 1.

    Returns:
        The error.

    Raises:
        RangeError: Scores not finite, or ``steps < 1``.

    >>> import torch
    >>> race_error(torch.zeros(2), steps=50)
    0.1
    """
    _check(scores, steps, "race_error")
    return math.sqrt(float(1 - scores.double().softmax(0).square().sum()) / steps)


def softmax_shunting(scores: Float[Tensor, "neurons"], steps: int) -> Float[Tensor, "neurons"]:
    """Softmax as the rates of integrate-and-fire neurons behind one shared, shunting gain.

    (2)  v_i[t] = v_i[t-1] + G[t] exp(z_i - max z) - s_i[t], threshold 1
    (3)  G[t+1] = G[t] exp((1 - sum_i s_i[t]) / sqrt(t)), G[1] = 1 / n

    Inhibition multiplies: the gain falls while more than one neuron spikes a step and rises while
    fewer do. Membranes start spread over [0, 1), ``v_i[0] = i (sqrt(5) - 1) / 2 mod 1``: from one
    value, neurons of near-tied scores would all fire at once, then none for n steps. (3) settles
    the total; the ratios are right whatever it does:

    Claim: with N spikes in all, ``sum_i |count_i / N - a_i| < 2 n / N``, hence about 1 / T.
    Assumes: membranes within [0, 1] at the end, as they are unless the gain overshoots at first.
    Source: derived. count_i = sum_t G[t] e_i - (v_i - v_i[0]), and the sums of G cancel.
    Test: n in 4, 16, 64, 197, T to 16,384, near-ties among them.
    Verdict: holds.

    Args:
        scores: z, one a neuron.
        steps: T, at least 1.

    Returns:
        Spikes of each neuron over ``steps``; they add up to 1 only in the limit.

    Raises:
        RangeError: Scores not finite, or ``steps < 1``.

    >>> import torch
    >>> softmax_shunting(torch.zeros(2), steps=1000).sum().item()
    1.0...
    """
    _check(scores, steps, "softmax_shunting")
    drive = (scores.double() - scores.double().max()).exp()
    v = torch.arange(1, len(drive) + 1, dtype=torch.float64) * GOLDEN % 1
    counts = torch.zeros_like(drive)
    log_gain = -math.log(len(scores))
    for t in range(1, steps + 1):
        v += math.exp(log_gain) * drive
        spikes = (v >= 1).double()
        v -= spikes
        counts += spikes
        log_gain += (1 - float(spikes.sum())) / math.sqrt(t)
    return (counts / steps).to(scores.dtype)


def softmax_subtractive(
    scores: Float[Tensor, "neurons"],
    steps: int,
    *,
    decay: float,
    drive: float = 1.0,
    inhibition: float = 1.0,
) -> Float[Tensor, "neurons"]:
    """The published circuit, lateral inhibition by the mean of all spikes: a counterexample.

    (4)  v_i[t] = decay v_i[t-1] + drive a_i - inhibition mean_j s_j[t-1] - s_i[t], threshold 1

    driven by the softmax a itself, which a softmax circuit would have to compute first.

    Claim: its rates tend to softmax as 1 / sqrt(T).
    Assumes: a leak; inhibition by the mean of all spikes.
    Source: arXiv 2604.15769, Lemma 3, Theorem 4; simulated here.
    Test: its error over a grid of drives and inhibitions, against :func:`softmax_race`.
    Verdict: fails. To subtract is not to divide: with a leak, weak neurons stay below threshold for
        ever, and no drive or inhibition helps. The best error of a grid does not fall as T grows.

    Args:
        scores: z, one a neuron.
        steps: T, at least 1.
        decay: Factor by which a membrane shrinks in one step, in [0, 1].
        drive: Gain of the input.
        inhibition: Gain of the mean of all spikes.

    Returns:
        Spikes of each neuron over ``steps``.

    Raises:
        RangeError: Scores not finite, ``steps < 1``, or a decay outside [0, 1].

    >>> rates = softmax_subtractive(torch.tensor([0.0, 2.0]), 64, decay=0.5, drive=4.0)
    >>> rates.shape
    torch.Size([2])
    """
    _check(scores, steps, "softmax_subtractive")
    if not 0 <= decay <= 1:
        raise RangeError(
            f"softmax_subtractive needs a decay in [0, 1], got {decay:g}. Use 1 for no leak."
        )
    current = drive * scores.double().softmax(0)
    v, spikes, counts = (torch.zeros_like(current) for _ in range(3))
    for _ in range(steps):
        v = decay * v + current - inhibition * spikes.mean()
        spikes = (v >= 1).double()
        v -= spikes
        counts += spikes
    return (counts / steps).to(scores.dtype)


class Coincidence(NamedTuple):
    """exp by coincidence at one point.

    Attributes:
        value: Its limit, the Taylor polynomial.
        bias: ``value`` less exp(z).
        variance: Variance of one step; T steps have 1 / T of it.
        spikes: Mean spikes of one step, of the trains and of the coincidence detectors together.

    >>> Coincidence(value=1.0, bias=0.0, variance=0.5, spikes=3.0).variance
    0.5
    """

    value: float
    bias: float
    variance: float
    spikes: float

    def steps(self, relative: float) -> int:
        """Fewest steps with a standard deviation of ``relative`` times the value.

        Args:
            relative: Relative error, above 0.

        Returns:
            The steps.

        Raises:
            RangeError: ``relative`` is not above 0.
        """
        if not relative > 0:
            raise RangeError(
                f"Coincidence.steps needs an error above 0, got {relative:g}. Try 0.1."
            )
        return max(1, math.ceil(self.variance / (relative * self.value) ** 2))


def coincidence(z: float, reach: float, order: int, *, shared: bool = True) -> Coincidence:
    """The law of :func:`exp_by_coincidence`, in closed form.

    (5)  exp(z) = exp(-M) sum_j (2 M)^j / j! r^j, r = (z + M) / (2 M), cut after ``order``
    (6)  cov of detectors j and k: r^max(j, k) - r^(j + k) if they share trains, else 0 for j != k

    Claim: coincidences of J trains compute exp.
    Assumes: independent trains for each score.
    Source: arXiv 2604.15769, Lemma 2; the variance is derived.
    Test: ``tests/test_softmax.py``, Monte Carlo.
    Verdict: holds, with J independent trains for each score, and at a cost the lemma does not name:
        for 10 % at z = 0 it takes 57 steps at M = 1 and thousands at M = 5; 27 and 662 where every
        detector has trains of its own, J (J + 1) / 2 for each score. Trains of deterministic
        neurons are not independent, and their products are wrong.

    Args:
        z: The score.
        reach: M, its largest magnitude.
        order: J, of the polynomial.
        shared: Whether detector j reads the first j of J trains (published), or j of its own.

    Returns:
        Its value, bias, variance and spikes.

    Raises:
        RangeError: ``|z| > reach``, ``reach <= 0`` or ``order < 1``.

    >>> coincidence(0.0, reach=1.0, order=30).steps(0.1)
    57
    """
    r, c = _series(z, reach, order, "coincidence")
    powers = [r**j for j in range(order + 1)]
    value = sum(a * p for a, p in zip(c, powers, strict=True))
    variance = sum(
        c[j] * c[k] * (powers[max(j, k)] - powers[j] * powers[k])
        for j in range(order + 1)
        for k in (range(order + 1) if shared else [j])
    )
    return Coincidence(
        value=value,
        bias=value - math.exp(z),
        variance=max(0.0, variance),
        spikes=(order if shared else order * (order + 1) / 2) * r + sum(powers[2:]),
    )


def exp_by_coincidence(
    z: float,
    reach: float,
    steps: int,
    *,
    order: int = 30,
    generator: torch.Generator | None = None,
) -> float:
    """exp(z) from coincidences of independent Bernoulli trains; see :func:`coincidence`.

    A detector of order j spikes when trains 1 to j, shared, all do. Their spikes are summed with
    the weights of (5), over ``steps``.

    Args:
        z: The score.
        reach: M, its largest magnitude.
        steps: T, at least 1.
        order: J, of the polynomial.
        generator: Source of the trains.

    Returns:
        The estimate of exp(z).

    Raises:
        RangeError: A number is outside its range.

    >>> generator = torch.Generator().manual_seed(0)
    >>> abs(exp_by_coincidence(0.0, 1.0, 4000, generator=generator) - 1.0) < 0.1
    True
    """
    r, c = _series(z, reach, order, "exp_by_coincidence")
    if steps < 1:
        raise RangeError(f"exp_by_coincidence needs steps >= 1, got {steps}. Give at least one.")
    trains = torch.rand(steps, order, dtype=torch.float64, generator=generator) < r
    detectors = trains.cumprod(1).double().mean(0)
    return float(c[0] + detectors @ torch.tensor(c[1:], dtype=torch.float64))


def _series(z: float, reach: float, order: int, who: str) -> tuple[float, list[float]]:
    """r and the weights of (5)."""
    if not reach > 0 or not abs(z) <= reach or order < 1:
        raise RangeError(
            f"{who} needs |z| <= reach, reach > 0 and order >= 1, got {z:g}, {reach:g} and "
            f"{order}. Raise reach to the largest score."
        )
    weights = [math.exp(-reach)]
    for j in range(1, order + 1):
        weights.append(weights[-1] * 2 * reach / j)
    return (z + reach) / (2 * reach), weights


def _check(scores: Tensor, steps: int, who: str) -> None:
    if not len(scores) or not bool(scores.isfinite().all()):
        raise RangeError(
            f"{who} needs finite scores, at least one, got {scores.tolist()[:4]}. Check them."
        )
    if steps < 1:
        raise RangeError(f"{who} needs steps >= 1, got {steps}. Give at least one.")
