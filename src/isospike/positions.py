"""Positional encodings: what tells attention which token came when.

A :class:`Position` may do three things, and does nothing by default: add to the input of the first
layer, rotate queries and keys, bias the scores. ``score(p, q) = <rotated q_p, rotated k_q> / sqrt
(head width) + bias(p, q)``. It works on any tensors ``[..., length, width]``, spikes or floats:

    position = RoPE(head_width=64)
    q, k = position.rotate(q, k)

====================  =======  ======================================  ==========================
class                 hook     what                                    positions
====================  =======  ======================================  ==========================
NoPE                  --       nothing                                 any
Sinusoidal            add      sines and cosines                       any
SpikeTiming           add      the same, times cycle / length          any
FrequencyCompressed   add      phases divided by the length            any
RankLearned           add      a learned table                         ``max_length``
RankSignificance      add      a random N-of-M firing order            ``max_length``
CentralPatternGen..   add      spikes of oscillators, a learned map    any
RoPE                  rotate   pairs of channels, by the position      any
ALiBi                 bias     -slope * distance                       any
T5Buckets             bias     learned, by bucket of the distance      any
FIRE                  bias     a learned function of the distance      any
LogDistance           bias     -gain * ceil(log2(1 + distance))        any
GrayCode              bias     gain * equal bits of the Gray codes     ``max_length``, 2^bits
RandomizedOrdered     any      another encoding at random, ordered     ``max_length``
                               positions
====================  =======  ======================================  ==========================

"Any" says that it is defined there, not that a model trained on shorter sequences works there:
``docs/positions.md`` has what was measured.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from isospike.codes.orders import random_orders, significance
from isospike.errors import RangeError, ShapeError, UnsupportedError

BASE = 10000.0


class Position(nn.Module, ABC):
    """What tells attention where a token stands. Leave a hook alone and it does nothing.

    Positions are counted from 0 and passed as ``at``, one per token; left out, they are 0, 1, ...
    :meth:`index` gives them, and refuses those past :attr:`max_length`.

    Attributes:
        name: Its name on the command line, see :data:`POSITIONS`.
        relative: Whether the shift law holds: scores depend on distances only.
        max_length: Positions it is defined for; None for any number.
    """

    name: ClassVar[str]
    relative: ClassVar[bool] = False
    max_length: int | None = None

    @classmethod
    @abstractmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "Position":
        """The encoding for a model of this shape, trained on sequences of ``length``."""

    def index(self, length: int, start: int = 0) -> Int[Tensor, "{length}"]:
        """Positions of ``length`` tokens that follow ``start`` others.

        Raises:
            RangeError: Past :attr:`max_length`.
        """
        if length < 0 or start < 0:
            raise RangeError(f"index needs length and start >= 0, got {length} and {start}.")
        if self.max_length is not None and start + length > self.max_length:
            raise RangeError(
                f"{type(self).__name__} needs at most {self.max_length} positions, got "
                f"{start + length}. Make it with a larger max_length, or take an encoding without "
                "a limit."
            )
        return torch.arange(start, start + length)

    def add(
        self, x: Float[Tensor, "*batch length width"], at: Int[Tensor, "length"] | None = None
    ) -> Float[Tensor, "*batch length width"]:
        """The input of the first layer, with what this encoding adds."""
        return x

    def rotate(
        self,
        q: Float[Tensor, "*batch length width"],
        k: Float[Tensor, "*batch length width"],
        at: Int[Tensor, "length"] | None = None,
    ) -> tuple[Float[Tensor, "*batch length width"], Float[Tensor, "*batch length width"]]:
        """Queries and keys of the same tokens, rotated."""
        return q, k

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        """What is added to the scores of queries and keys at these positions; None for nothing."""
        return None

    def _at(self, x: Tensor, at: Tensor | None) -> Tensor:
        """Positions of the tokens of ``x``, checked."""
        if x.dim() < 2:
            raise ShapeError(
                f"{type(self).__name__} needs tensors [..., length, width], got {tuple(x.shape)}."
            )
        if at is None:
            return self.index(x.shape[-2]).to(x.device)
        if at.shape != x.shape[-2:-1]:
            raise ShapeError(
                f"{type(self).__name__} needs a position for each of {x.shape[-2]} tokens, got "
                f"{tuple(at.shape)}."
            )
        self._check_range(at)
        return at.to(x.device)

    def _check_range(self, at: Tensor) -> None:
        if self.max_length is None or not at.numel():
            return
        if int(at.min()) < 0 or int(at.max()) >= self.max_length:
            raise RangeError(
                f"{type(self).__name__} needs positions in [0, {self.max_length}), got "
                f"{int(at.min())} to {int(at.max())}. Make it with a larger max_length."
            )


class Additive(Position):
    """An encoding that is a vector for each position, added to the input of the first layer."""

    @abstractmethod
    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        """The vector of each position."""

    def add(
        self, x: Float[Tensor, "*batch length width"], at: Int[Tensor, "length"] | None = None
    ) -> Float[Tensor, "*batch length width"]:
        table = self.table(self._at(x, at))
        if x.shape[-1] != table.shape[-1]:
            raise ShapeError(
                f"{type(self).__name__} needs input of width {table.shape[-1]}, got "
                f"{tuple(x.shape)}."
            )
        return x + table.to(x.dtype)


# Nothing, and what is added to the input.


class NoPE(Position):
    """No positional encoding.

    Without a causal mask the model is then equivariant to permutations of its tokens. With one it
    is not: how many tokens a query sees betrays its position.

    Reference: Kazemnejad et al. (2023), The impact of positional encoding on length generalization
    in transformers.
    """

    name = "none"
    relative = True

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "NoPE":
        return cls()


def sinusoid(at: Tensor, width: int) -> Float[Tensor, "length {width}"]:
    """(1)  E[p, 2i] = sin(w_i p), E[p, 2i + 1] = cos(w_i p), w_i = 10000^(-2i / width)

    Positions may be fractions. ``|E_p|^2 = width / 2`` and ``<E_p, E_q> = sum_i cos(w_i (p - q))``.

    Raises:
        RangeError: ``width`` is odd or below 2.
    """
    _check_even(width, "sinusoid", "width")
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=at.device) / width
    phase = at.double()[:, None] * BASE**-exponent  # (1)
    return torch.stack([phase.sin(), phase.cos()], -1).flatten(-2).float()


class Sinusoidal(Additive):
    """Sines and cosines of the position (1).

    Reference: Vaswani et al. (2017), Attention is all you need.
    """

    name = "sinusoidal"

    def __init__(self, width: int) -> None:
        super().__init__()
        _check_even(width, "Sinusoidal", "width")
        self.width = width

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "Sinusoidal":
        return cls(width)

    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        return sinusoid(at, self.width)


class SpikeTiming(Additive):
    """The sinusoid seen as spike times ``t = p * cycle / length`` of a cycle: E times that factor.

    (2)  E'[p] = (cycle / length) E[p]

    Which only makes it weaker: see :mod:`isospike.theory.equivalence` for what is invariant and
    what is not.
    """

    name = "spike-timing"

    def __init__(self, width: int, length: int, cycle: float = 1.0) -> None:
        super().__init__()
        _check_even(width, "SpikeTiming", "width")
        _check_positive(length, "SpikeTiming", "length")
        if not cycle > 0:
            raise RangeError(f"SpikeTiming needs a cycle above 0, got {cycle}.")
        self.width, self.scale = width, cycle / length

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "SpikeTiming":
        return cls(width, length)

    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        return self.scale * sinusoid(at, self.width)  # (2)


class FrequencyCompressed(Additive):
    """The sinusoid of ``p / length``: within ``length`` every phase stays below one radian."""

    name = "frequency-compressed"

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        _check_even(width, "FrequencyCompressed", "width")
        _check_positive(length, "FrequencyCompressed", "length")
        self.width, self.length = width, length

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "FrequencyCompressed":
        return cls(width, length)

    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        return sinusoid(at.double() / self.length, self.width)


class RankLearned(Additive):
    """A learned vector for each rank; it starts with the energy of the sinusoid, width / 2."""

    name = "rank-learned"

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        _check_positive(width, "RankLearned", "width")
        _check_positive(max_length, "RankLearned", "max_length")
        self.max_length = max_length
        self.weight = nn.Parameter(torch.randn(max_length, width) * math.sqrt(0.5))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RankLearned":
        return cls(width, length)

    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        return self.weight[at]


class RankSignificance(Additive):
    """A random N-of-M firing order for each position, as the sequence machine has for each symbol.

    (3)  E[p, order_p[r]] = scale * alpha^r, r = 0 .. spikes - 1, and 0 elsewhere

    ``scale`` gives it the energy of the sinusoid, width / 2. Nearby positions are no more alike
    than distant ones.

    Args:
        width: Channels, the M of the code.
        max_length: Positions.
        spikes: The N of the code.
        alpha: Ratio of significance of consecutive spikes.
        generator: Draws the orders; the same ones without.
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
        _check_positive(max_length, "RankSignificance", "max_length")
        if not 1 <= spikes <= width:
            raise RangeError(
                f"RankSignificance needs 1 <= spikes <= width, got {spikes} of {width}."
            )
        self.max_length = max_length
        generator = generator or torch.Generator().manual_seed(0)
        code = significance(random_orders(max_length, spikes, width, generator), width, alpha)
        self.code: Tensor
        self.register_buffer("code", (code * math.sqrt(width / 2) / code[0].norm()).float())

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RankSignificance":
        return cls(width, length, min(11, width))

    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        return self.code[at]


class CentralPatternGenerator(Additive):
    """Spikes of coupled oscillators, mapped into the input by learned weights.

    (4)  s[p, 2i] = 1 if sin(p / base^(i / pairs)) > threshold
         s[p, 2i + 1] = 1 if cos(p / base^(i / pairs)) > threshold
    (5)  x[p] + W s[p]

    Deviates from the paper: it joins s to x and maps both by one matrix; here the part of x is the
    identity.

    Reference: Lv et al. (2024), Advancing spiking neural networks for sequential modeling with
    central pattern generators.
    """

    name = "cpg"

    def __init__(self, width: int, pairs: int = 10, threshold: float = 0.8) -> None:
        super().__init__()
        _check_positive(width, "CentralPatternGenerator", "width")
        _check_positive(pairs, "CentralPatternGenerator", "pairs")
        if not -1 <= threshold < 1:
            raise RangeError(
                f"CentralPatternGenerator needs a threshold in [-1, 1), got {threshold}."
            )
        self.pairs, self.threshold = pairs, threshold
        self.project = nn.Linear(2 * pairs, width, bias=False)

    @classmethod
    def for_model(
        cls, width: int, heads: int, length: int, causal: bool
    ) -> "CentralPatternGenerator":
        return cls(width)

    def spikes(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length neurons"]:
        """(4): 0 or 1."""
        return (sinusoid(at, 2 * self.pairs) > self.threshold).float()

    def table(self, at: Int[Tensor, "length"]) -> Float[Tensor, "length width"]:
        added: Tensor = self.project(self.spikes(at))  # (5)
        return added


# What rotates queries and keys.


class RoPE(Position):
    """Rotates channels i and i + width / 2 of queries and keys by the angle ``p w_i``.

    (6)  (a, b) -> (a cos(p w_i) - b sin(p w_i), b cos(p w_i) + a sin(p w_i))

    Products of rotated queries and keys depend on the distance only.

    Reference: Su et al. (2021), RoFormer. Pairs are laid out as in Llama.
    """

    name = "rope"
    relative = True

    def __init__(self, head_width: int, base: float = BASE) -> None:
        super().__init__()
        _check_even(head_width, "RoPE", "head_width")
        if not base > 0:
            raise RangeError(f"RoPE needs a base above 0, got {base}.")
        self.head_width, self.base = head_width, base

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RoPE":
        return cls(width // heads)

    def rotate(
        self,
        q: Float[Tensor, "*batch length width"],
        k: Float[Tensor, "*batch length width"],
        at: Int[Tensor, "length"] | None = None,
    ) -> tuple[Float[Tensor, "*batch length width"], Float[Tensor, "*batch length width"]]:
        size = self.head_width
        if not q.shape[-1] == k.shape[-1] == size or q.shape[-2:] != k.shape[-2:]:
            raise ShapeError(
                f"RoPE needs queries and keys of the same tokens and head_width {size}, got "
                f"{tuple(q.shape)} and {tuple(k.shape)}."
            )
        exponent = torch.arange(0, self.head_width, 2, device=q.device).float() / self.head_width
        angle = self._at(q, at).float()[:, None] * (1.0 / self.base**exponent)
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)  # (6)


# What biases the scores.


class ALiBi(Position):
    """A penalty for distance, another slope for each head.

    (7)  bias[h, p, q] = -slope_h |p - q|, slope_h = 2^(-8 (h + 1) / heads)

    for a power of two of heads; of other numbers, the slopes of the next lower power, then every
    second one of the next higher. Without a causal mask both directions are alike.

    Reference: Press, Smith, Lewis (2022), Train short, test long.
    """

    name = "alibi"
    relative = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        _check_positive(heads, "ALiBi", "heads")
        self.slopes: Tensor
        self.register_buffer("slopes", torch.tensor(_slopes(heads)))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "ALiBi":
        return cls(heads)

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        return -self.slopes[:, None, None] * _distance(queries, keys).to(self.slopes)


def _slopes(heads: int) -> list[float]:
    power = 1 << heads.bit_length() - 1
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes + [2.0 ** (-4 * (h + 1) / power) for h in range(0, 2 * (heads - power), 2)]


class T5Buckets(Position):
    """A learned bias for each head and bucket of the distance.

    Half of the buckets hold one distance each, the others grow by a constant factor up to
    ``max_distance``, beyond which all share the last one. Without a causal mask each direction has
    half of the buckets; with one, later keys share bucket 0.

    Reference: Raffel et al. (2020), Exploring the limits of transfer learning (T5).
    """

    name = "t5"
    relative = True

    def __init__(
        self, heads: int, causal: bool = True, buckets: int = 32, max_distance: int = 128
    ) -> None:
        super().__init__()
        _check_positive(heads, "T5Buckets", "heads")
        if buckets < 4 or buckets % 4:
            raise RangeError(f"T5Buckets needs a multiple of 4 buckets, got {buckets}.")
        if max_distance <= buckets:
            raise RangeError(
                f"T5Buckets needs max_distance above the {buckets} buckets, got {max_distance}."
            )
        self.causal, self.buckets, self.max_distance = causal, buckets, max_distance
        self.weight = nn.Parameter(torch.zeros(buckets, heads))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "T5Buckets":
        return cls(heads, causal)

    def bucket(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Int[Tensor, "queries keys"]:
        """The bucket of every pair."""
        back = queries[:, None] - keys  # how far the key lies behind
        first, count = torch.zeros_like(back), self.buckets
        if self.causal:
            back = back.clamp(min=0)
        else:
            count //= 2
            first = count * (back < 0)
            back = back.abs()
        exact = count // 2
        growth = (count - exact) / math.log(self.max_distance / exact)
        far = exact + ((back.clamp(min=1).float() / exact).log() * growth).long()
        return first + torch.where(back < exact, back, far.clamp(max=count - 1))

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        return self.weight[self.bucket(queries, keys).to(self.weight.device)].permute(2, 0, 1)


class FIRE(Position):
    """A learned function of the distance relative to the query's position.

    (8)  bias[h, p, q] = f_h(psi(p - q) / psi(max(threshold, p))), psi(x) = log(1 + c x)

    f is a perceptron with one hidden layer, c and ``threshold`` are learned too. Progress into the
    sequence enters by max(threshold, p), so distances beyond those of training stay in [0, 1].
    Deviates from the paper: for a key after the query, psi is taken of the distance with the sign,
    and the larger of both positions counts as p.

    Reference: Li et al. (2024), Functional interpolation for relative positions improves long
    context transformers.
    """

    name = "fire"

    def __init__(self, heads: int, threshold: float = 512.0, hidden: int = 32) -> None:
        super().__init__()
        _check_positive(heads, "FIRE", "heads")
        _check_positive(hidden, "FIRE", "hidden")
        if not threshold > 0:
            raise RangeError(f"FIRE needs a threshold above 0, got {threshold}.")
        self.function = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, heads))
        self.c = nn.Parameter(torch.tensor(0.1))
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "FIRE":
        return cls(heads, float(length))

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        p, q = queries.to(self.c)[:, None], keys.to(self.c)
        progress = torch.maximum(self.threshold.abs(), torch.maximum(p, q))
        share = self._psi((p - q).abs()) * (p - q).sign() / self._psi(progress)
        out: Tensor = self.function(share[..., None])  # (8)
        return out.permute(2, 0, 1)

    def _psi(self, x: Tensor) -> Tensor:
        return (1 + self.c.abs() * x).log()


class LogDistance(Position):
    """A whole number for the logarithm of the distance, with a learned gain for each head.

    (9)  bias[h, p, q] = -gain_h ceil(log2(1 + |p - q|))

    Deviates from the paper: it adds ``ceil(log2(length)) - ceil(log2(1 + |p - q|))``, without a
    gain, to the counts of a spiking attention; softmax does not see the constant.

    Reference: Lv et al. (2025), Toward relative positional encoding in spiking transformers.
    """

    name = "log-distance"
    relative = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        _check_positive(heads, "LogDistance", "heads")
        self.gain = nn.Parameter(torch.ones(heads))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "LogDistance":
        return cls(heads)

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        levels = (1 + _distance(queries, keys)).double().log2().ceil()
        return -self.gain[:, None, None] * levels.to(self.gain)


class GrayCode(Position):
    """Equal bits of the Gray codes of query's and key's position: spikes through XNOR gates.

    (10)  bias[h, p, q] = gain_h (bits - Hamming(g(p), g(q))), g(p) = p xor (p >> 1)

    Only roughly relative: the Hamming distance is 1 for neighbours and 2 for positions 2^n apart,
    n >= 1, and varies for other distances.

    Reference: Lv et al. (2025), Toward relative positional encoding in spiking transformers.
    """

    name = "gray-code"

    def __init__(self, heads: int, bits: int = 10) -> None:
        super().__init__()
        _check_positive(heads, "GrayCode", "heads")
        if not 1 <= bits <= 62:
            raise RangeError(f"GrayCode needs 1 to 62 bits, got {bits}.")
        self.bits, self.max_length = bits, 1 << bits
        self.gain = nn.Parameter(torch.ones(heads))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "GrayCode":
        return cls(heads)

    def spikes(self, at: Int[Tensor, "length"]) -> Bool[Tensor, "length bits"]:
        """The Gray code of each position, lowest bit first."""
        self._check_range(at)
        gray = at ^ (at >> 1)
        return (gray[:, None] >> torch.arange(self.bits, device=at.device) & 1).bool()

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        equal = (self.spikes(queries)[:, None] == self.spikes(keys)).sum(-1)
        return self.gain[:, None, None] * equal.to(self.gain)


# What places another encoding.


class RandomizedOrdered(Position):
    """Another encoding at random positions of which only the order counts.

    In training, L tokens stand at L positions drawn from ``max_length`` without repetition, in
    order. In ``eval`` mode they stand at the means of those draws, rounded:
    ``(i + 1) (max_length + 1) / (L + 1) - 1``. Deviates from the paper, which draws then as well.

    Reference: Ruoss et al. (2023), Randomized positional encodings boost length generalization of
    transformers.
    """

    name = "randomized"

    def __init__(
        self, base: Position, max_length: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        _check_positive(max_length, "RandomizedOrdered", "max_length")
        if base.max_length is not None and base.max_length < max_length:
            raise RangeError(
                f"RandomizedOrdered needs a base for {max_length} positions, got one for "
                f"{base.max_length}."
            )
        self.base, self.max_length, self.generator = base, max_length, generator

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RandomizedOrdered":
        return cls(Sinusoidal(width), 8 * length)

    def index(self, length: int, start: int = 0) -> Int[Tensor, "{length}"]:
        super().index(length, start)
        if start:
            raise UnsupportedError(
                "RandomizedOrdered needs the whole sequence at once, got tokens that follow "
                f"{start} others. Use another encoding with a cache."
            )
        limit = self.max_length or 0
        if self.training:
            drawn = torch.randperm(limit, generator=self.generator)[:length]
            return drawn.sort().values
        rank = torch.arange(1, length + 1, dtype=torch.float64)
        return (rank * (limit + 1) / (length + 1) - 1).round().long()

    def add(
        self, x: Float[Tensor, "*batch length width"], at: Int[Tensor, "length"] | None = None
    ) -> Float[Tensor, "*batch length width"]:
        return self.base.add(x, self._at(x, at))

    def rotate(
        self,
        q: Float[Tensor, "*batch length width"],
        k: Float[Tensor, "*batch length width"],
        at: Int[Tensor, "length"] | None = None,
    ) -> tuple[Float[Tensor, "*batch length width"], Float[Tensor, "*batch length width"]]:
        return self.base.rotate(q, k, self._at(q, at))

    def bias(
        self, queries: Int[Tensor, "queries"], keys: Int[Tensor, "keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        return self.base.bias(queries, keys)


POSITIONS: dict[str, type[Position]] = {
    cls.name: cls
    for cls in (
        NoPE, Sinusoidal, SpikeTiming, FrequencyCompressed, RankLearned, RankSignificance, RoPE,
        ALiBi, T5Buckets, FIRE, RandomizedOrdered, CentralPatternGenerator, GrayCode, LogDistance,
    )
}  # fmt: skip
"""Every encoding by name."""


def make_position(name: str, width: int, heads: int, length: int, causal: bool = True) -> Position:
    """The encoding called ``name`` for a model of this shape, trained on sequences of ``length``.

    Raises:
        RangeError: No such encoding, or a shape it cannot take.
    """
    if name not in POSITIONS:
        raise RangeError(
            f"make_position needs an encoding of {', '.join(POSITIONS)}, got {name!r}."
        )
    _check_positive(heads, "make_position", "heads")
    _check_positive(length, "make_position", "length")
    if width < 1 or width % heads:
        raise RangeError(f"make_position needs a width that {heads} heads divide, got {width}.")
    return POSITIONS[name].for_model(width, heads, length, causal)


def _distance(queries: Tensor, keys: Tensor) -> Tensor:
    return (queries[:, None] - keys).abs()


def _check_positive(value: int, who: str, what: str) -> None:
    if value < 1:
        raise RangeError(f"{who} needs {what} >= 1, got {value}.")


def _check_even(value: int, who: str, what: str) -> None:
    if value < 2 or value % 2:
        raise RangeError(f"{who} needs an even {what}, two channels to a frequency, got {value}.")
