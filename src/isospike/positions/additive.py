"""Encodings that add a vector to the input of the first layer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isospike.codes.orders import random_orders, significance
from isospike.errors import RangeError
from isospike.positions.base import BASE, Additive, At, check_even, check_positive


def sinusoid(at: Tensor, width: int) -> Float[Tensor, "length {width}"]:
    """Sines and cosines of a position.

    (1)  E[p, 2i] = sin(w_i p), E[p, 2i + 1] = cos(w_i p), w_i = 10000^(-2i / width)

    ``|E_p|^2 = width / 2`` and ``<E_p, E_q> = sum_i cos(w_i (p - q))``.

    Args:
        at: Positions ``[length]``; they may be fractions.
        width: Channels.

    Returns:
        A vector for each position, float32.

    Raises:
        RangeError: ``width`` is odd or below 2.

    >>> sinusoid(torch.tensor([0, 1]), 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    check_even("sinusoid", width=width)
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=at.device) / width
    phase = at.double()[:, None] * BASE**-exponent  # (1)
    return torch.stack([phase.sin(), phase.cos()], -1).flatten(-2).float()


class Sinusoidal(Additive):
    """Sines and cosines of the position (1).

    Args:
        width: Channels of the input, an even number.

    Raises:
        RangeError: ``width`` is odd or below 2.

    >>> Sinusoidal(64).add(torch.zeros(10, 64)).shape
    torch.Size([10, 64])

    Reference: Vaswani et al. (2017), Attention is all you need.
    """

    name = "sinusoidal"

    def __init__(self, width: int) -> None:
        super().__init__()
        check_even("Sinusoidal", width=width)
        self.width = width

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "Sinusoidal":
        return cls(width)

    def table(self, at: At) -> Float[Tensor, "length width"]:
        return sinusoid(at, self.width)


class SpikeTiming(Additive):
    """The sinusoid read as spike times ``t = p * cycle / length`` of a cycle: E times that factor.

    (2)  E'[p] = (cycle / length) E[p]

    The factor makes the encoding weaker and changes nothing else: see
    :mod:`isospike.theory.equivalence` for what is invariant and what is not.

    Args:
        width: Channels of the input, an even number.
        length: Positions in a cycle.
        cycle: Duration of a cycle.

    Raises:
        RangeError: ``width`` is odd, or another number is not above 0.

    >>> SpikeTiming(width=4, length=10).table(torch.arange(2))[0].tolist()
    [0.0, 0.1..., 0.0, 0.1...]
    """

    name = "spike-timing"

    def __init__(self, width: int, length: int, cycle: float = 1.0) -> None:
        super().__init__()
        check_even("SpikeTiming", width=width)
        check_positive("SpikeTiming", length=length)
        if not cycle > 0:
            raise RangeError(f"SpikeTiming needs a cycle above 0, got {cycle}. Leave it at 1.")
        self.width, self.scale = width, cycle / length

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "SpikeTiming":
        return cls(width, length)

    def table(self, at: At) -> Float[Tensor, "length width"]:
        return self.scale * sinusoid(at, self.width)  # (2)


class FrequencyCompressed(Additive):
    """The sinusoid of ``p / length``: within ``length`` every phase stays below one radian.

    Args:
        width: Channels of the input, an even number.
        length: The position whose largest phase is one radian.

    Raises:
        RangeError: ``width`` is odd, or ``length`` is below 1.

    >>> FrequencyCompressed(width=4, length=10).table(torch.arange(2)).shape
    torch.Size([2, 4])
    """

    name = "frequency-compressed"

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        check_even("FrequencyCompressed", width=width)
        check_positive("FrequencyCompressed", length=length)
        self.width, self.length = width, length

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "FrequencyCompressed":
        return cls(width, length)

    def table(self, at: At) -> Float[Tensor, "length width"]:
        return sinusoid(at.double() / self.length, self.width)


class RankLearned(Additive):
    """A learned vector for each rank; it starts with the energy of the sinusoid, width / 2.

    Args:
        width: Channels of the input.
        max_length: Number of positions.

    Raises:
        RangeError: A number is below 1.

    >>> RankLearned(width=4, max_length=10).add(torch.zeros(3, 4)).shape
    torch.Size([3, 4])
    """

    name = "rank-learned"

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        check_positive("RankLearned", width=width, max_length=max_length)
        self.max_length = max_length
        self.weight = nn.Parameter(torch.randn(max_length, width) * math.sqrt(0.5))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RankLearned":
        return cls(width, length)

    def table(self, at: At) -> Float[Tensor, "length width"]:
        return self.weight[at]


class RankSignificance(Additive):
    """A random N-of-M firing order for each position, as the sequence machine has for each symbol.

    (3)  E[p, order_p[r]] = scale * alpha^r, r = 0 .. spikes - 1, and 0 elsewhere

    ``scale`` gives it the energy of the sinusoid, width / 2. Nearby positions are no more alike
    than distant ones.

    Args:
        width: Channels of the input, the M of the code.
        max_length: Number of positions.
        spikes: The N of the code.
        alpha: Ratio of significance of consecutive spikes.
        generator: Draws the orders; without it they are always the same.

    Raises:
        RangeError: ``max_length`` is below 1, or there are more spikes than channels.

    >>> encoding = RankSignificance(width=16, max_length=10, spikes=3)
    >>> (encoding.table(torch.arange(2)) != 0).sum(1).tolist()
    [3, 3]
    """

    name = "rank-significance"

    def __init__(
        self,
        width: int,
        max_length: int,
        spikes: int = 11,
        alpha: float = 0.9,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_positive("RankSignificance", max_length=max_length)
        if not 1 <= spikes <= width:
            raise RangeError(
                f"RankSignificance needs 1 <= spikes <= width, got {spikes} of {width}. "
                "Use fewer spikes or a larger width."
            )
        self.max_length = max_length
        generator = generator or torch.Generator().manual_seed(0)
        code = significance(random_orders(max_length, spikes, width, generator), width, alpha)
        self.code: Tensor
        self.register_buffer("code", (code * math.sqrt(width / 2) / code[0].norm()).float())

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RankSignificance":
        return cls(width, length, min(11, width))

    def table(self, at: At) -> Float[Tensor, "length width"]:
        return self.code[at]


class CentralPatternGenerator(Additive):
    """Spikes of coupled oscillators, mapped into the input by learned weights.

    (4)  s[p, 2i] = 1 if sin(p / base^(i / pairs)) > threshold
         s[p, 2i + 1] = 1 if cos(p / base^(i / pairs)) > threshold
    (5)  x[p] + W s[p]

    Deviates from the paper: it joins s to x and maps both by one matrix; here the part of x is the
    identity.

    Args:
        width: Channels of the input.
        pairs: Pairs of oscillators; each has one neuron for its sine and one for its cosine.
        threshold: The neurons spike above it.

    Raises:
        RangeError: A size is below 1, or the threshold is outside [-1, 1).

    Reference: Lv et al. (2024), Advancing spiking neural networks for sequential modeling with
    central pattern generators.

    >>> CentralPatternGenerator(width=4, pairs=2).spikes(torch.arange(2)).tolist()
    [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]
    """

    name = "cpg"

    def __init__(self, width: int, pairs: int = 10, threshold: float = 0.8) -> None:
        super().__init__()
        check_positive("CentralPatternGenerator", width=width, pairs=pairs)
        if not -1 <= threshold < 1:
            raise RangeError(
                f"CentralPatternGenerator needs a threshold in [-1, 1), got {threshold}. Use 0.8."
            )
        self.pairs, self.threshold = pairs, threshold
        self.project = nn.Linear(2 * pairs, width, bias=False)

    @classmethod
    def for_model(
        cls, width: int, heads: int, length: int, causal: bool
    ) -> "CentralPatternGenerator":
        return cls(width)

    def spikes(self, at: At) -> Float[Tensor, "length neurons"]:
        """The spikes (4) of all neurons at these positions, 0 or 1.

        Args:
            at: Positions, whole numbers.

        Returns:
            ``[length, neurons]``.
        """
        return (sinusoid(at, 2 * self.pairs) > self.threshold).float()

    def table(self, at: At) -> Float[Tensor, "length width"]:
        added: Tensor = self.project(self.spikes(at).to(self.project.weight.dtype))  # (5)
        return added
