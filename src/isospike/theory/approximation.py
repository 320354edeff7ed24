"""Universal approximation by a spiking transformer, built: a map that treats n tokens alike.

One layer of attention and three of threshold neurons, every signal a binary spike:

(1)  token -> its cell      digits of x, ``bits`` steps; one neuron for each cell of the grid fires
(2)  tokens -> their counts uniform attention adds up the cells' spikes
(3)  counts -> at least k   one neuron for each cell and k <= n fires if the count is k or more
(4)  case                   one neuron for each cell and each set of n cells with it fires if its
                            own cell does and so do all n neurons of (3) that the set asks for
(5)  y = value at the centre of the case, as the weights of its neuron

As counts add up to n, "at least" in all of them is "equal": (4) is exact, and one case fires for
each token.

Claim (arXiv 2604.15769, Theorem 7): spiking transformers approximate every continuous map that is
    equivariant to permutations within eps, with ``log 1 / eps`` layers, ``n^2 d / eps^2`` heads and
    ``n^2 d_k^2 / eps^2`` steps.
Assumes: a Lipschitz constant in the largest-value norm; inputs in [0, 1].
Source: (1) to (5) after Yun et al. (2020), Are transformers universal approximators of
    sequence-to-sequence functions?, with counts for their contextual mapping; the bound by counting
    functions (Kolmogorov, Tikhomirov 1959).
Test: n from 2 to 8, d from 2 to 4; every input within the bound, and a map that meets it.
Verdict: universality holds, by (1) to (5): the error is at most ``lipschitz 2^-bits / 2``. The size
    does not: the steps are far too many (``log2 1 / eps`` are enough) and the heads too few. No
    network that is written down in fewer bits than :func:`bits_needed` approximates all such maps,
    and that number grows as ``eps^-(n d)``. See :func:`published_bits`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.codes import PhaseCode
from isospike.errors import RangeError, ShapeError

MOST_CASES = 200_000  # neurons of (4) that are built
WEIGHT_BITS = 32


@dataclass(frozen=True)
class Approximation:
    """Output of the built network.

    Attributes:
        y: Its output, ``[batch, tokens, out]``.
        spikes: Spikes for each input of the batch.
    """

    y: Tensor
    spikes: Tensor


class EquivariantTable:
    """The network (1) to (5) of a map.

    Args:
        function: ``[batch, tokens, channels]`` in [0, 1] to ``[batch, tokens, out]``, equivariant
            to permutations of the tokens.
        tokens: n, at least 1.
        channels: d, at least 1.
        bits: Digits of each channel, and time steps; at least 1.

    Attributes:
        neurons: Number of neurons in (1), for all tokens, (3) and (4).
        steps: Time steps of the digits.

    Raises:
        RangeError: A number out of range, or more than 200,000 cases.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], tokens: int, channels: int, bits: int
    ) -> None:
        if min(tokens, channels, bits) < 1:
            raise RangeError(
                "EquivariantTable needs tokens, channels and bits of at least 1, got "
                f"{tokens}, {channels} and {bits}. Raise the smallest."
            )
        cells = 2 ** (bits * channels)
        cases = cells * math.comb(cells + tokens - 2, tokens - 1)
        if cases > MOST_CASES:
            raise RangeError(
                f"EquivariantTable needs at most {MOST_CASES:,} cases, got {cases:,} for {tokens} "
                f"tokens of {channels} channels and {bits} bits. Ask for fewer bits."
            )
        self.tokens, self.channels, self.bits, self.cells = tokens, channels, bits, cells
        self.steps = bits
        sets = torch.tensor(list(combinations_with_replacement(range(cells), tokens)))
        first = torch.ones_like(sets, dtype=torch.bool)
        first[:, 1:] = sets[:, 1:] != sets[:, :-1]
        # The k-th of equal cells asks for a count of k.
        place = torch.arange(tokens).expand_as(sets)
        rank = place - torch.where(first, place, 0).cummax(1).values
        row, column = first.nonzero(as_tuple=True)
        self.own = sets[row, column]
        self.needs = (sets * tokens + rank)[row]
        values = function(self.centres(sets))
        self.weights = values[row, column]
        self.neurons = tokens * cells + cells * tokens + len(self.own)

    def centres(self, cells: Tensor) -> Tensor:
        """Centre of each cell.

        Args:
            cells: Indices of cells.

        Returns:
            Values in [0, 1], ``[..., channels]``.
        """
        places = 2 ** (self.bits * torch.arange(self.channels))
        integers = cells[..., None] // places % 2**self.bits
        centres: Tensor = (integers.double() + 0.5) / 2**self.bits
        return centres

    def __call__(self, x: Float[Tensor, "batch tokens channels"]) -> Approximation:
        """Run on spikes.

        Args:
            x: Values in [0, 1].

        Returns:
            Output and number of spikes.

        Raises:
            ShapeError: Another number of tokens or channels.
            RangeError: Some value is NaN or outside [0, 1].
        """
        if x.shape[1:] != (self.tokens, self.channels):
            raise ShapeError(
                f"EquivariantTable needs [batch, {self.tokens}, {self.channels}], got "
                f"{tuple(x.shape)}. Build another table for that shape."
            )
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise RangeError(
                "EquivariantTable needs values in [0, 1], got others. Rescale x first."
            )
        integers = (x.double() * 2**self.bits).floor().clamp_max(2**self.bits - 1)
        digits = PhaseCode(self.bits).encode_integers(integers)  # [bits, batch, tokens, channels]
        # A cell's weights: +1 for each digit it has, -1 for each it has not; threshold: their sum.
        wanted = self._digits_of_cells()
        potential = torch.einsum("sbnd,scd->bnc", digits, 2 * wanted - 1)
        own = (potential >= wanted.sum((0, 2))).double()  # (1)
        counts = own.sum(1)  # (2)
        enough = (counts[..., None] >= torch.arange(1, self.tokens + 1)).double().flatten(1)  # (3)
        met = enough[:, self.needs].sum(-1)
        fired = ((own[:, :, self.own] + met[:, None]) >= self.tokens + 1).double()  # (4)
        spikes = digits.sum((0, 2, 3)) + own.sum((1, 2)) + enough.sum(1) + fired.sum((1, 2))
        return Approximation((fired @ self.weights.double()).to(x.dtype), spikes.long())  # (5)

    def _digits_of_cells(self) -> Tensor:
        places = 2 ** (self.bits * torch.arange(self.channels))
        integers = torch.arange(self.cells)[:, None] // places % 2**self.bits
        return PhaseCode(self.bits).encode_integers(integers.double())

    def bound(self, lipschitz: float) -> float:
        """Largest error of the network.

        Args:
            lipschitz: Lipschitz constant of the map, in the largest-value norm.

        Returns:
            The error.
        """
        return lipschitz * 2.0**-self.bits / 2


def bits_needed(tokens: int, channels: int, eps: float, lipschitz: float = 1.0) -> int:
    """Bits of a network that can come within ``eps`` of any map of the class.

    (6)  binomial(q^d, n) with q = floor(lipschitz / (4 eps))

    *Derivation.* Cut [0, 1] into q parts of at least 4 eps / lipschitz. Each set of n different
    cells of the grid of tokens may carry a bump of height 2 eps or -2 eps, alike for all orders of
    its tokens: two to that number of maps, each two of which are 4 eps apart somewhere. No output
    is within eps of two.

    Args:
        tokens: n.
        channels: d.
        eps: Largest error.
        lipschitz: Lipschitz constant of the maps.

    Returns:
        Bits.

    Raises:
        RangeError: A number is not above 0.

    >>> bits_needed(tokens=2, channels=2, eps=0.05)
    300
    """
    if min(tokens, channels) < 1 or not 0 < eps < math.inf or not 0 < lipschitz < math.inf:
        raise RangeError(
            "bits_needed needs tokens, channels, eps and lipschitz above 0, got "
            f"{tokens}, {channels}, {eps:g} and {lipschitz:g}. Give positive numbers."
        )
    return math.comb(int(lipschitz / (4 * eps)) ** channels, tokens)


def published_bits(tokens: int, channels: int, eps: float) -> float:
    """Bits of the network of Theorem 7, all its constants 1: see the head of this module.

    ``log2(1 / eps)`` layers of ``n^2 d / eps^2`` heads of four d x d matrices of 32 bits.

    Args:
        tokens: n.
        channels: d.
        eps: Largest error.

    Returns:
        Bits.

    Raises:
        RangeError: eps not in (0, 1).

    >>> published_bits(tokens=2, channels=2, eps=0.5)
    16384.0
    """
    if not 0 < eps < 1:
        raise RangeError(f"published_bits needs an eps between 0 and 1, got {eps:g}. Try 0.1.")
    heads = tokens**2 * channels / eps**2
    return math.log2(1 / eps) * heads * 4 * channels**2 * WEIGHT_BITS


def published_steps(tokens: int, channels: int, eps: float) -> float:
    """Steps of Theorem 7, ``n^2 d_k^2 / eps^2`` with d_k = d; ours take ``log2(1 / eps)``.

    Args:
        tokens: n.
        channels: d.
        eps: Largest error.

    Returns:
        Steps.
    """
    return tokens**2 * channels**2 / eps**2
