"""Encodings that change the scores of attention: by rotating queries and keys, or by a bias."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from isospike.errors import RangeError, ShapeError
from isospike.positions.base import (
    BASE,
    At,
    Bias,
    Keys,
    Position,
    Queries,
    Vectors,
    check_even,
    check_positive,
)
from isospike.tensors import check_floating, without_autocast


class RoPE(Position):
    """Rotates channels i and i + width / 2 of queries and keys by the angle ``p w_i``.

    (6)  (a, b) -> (a cos(p w_i) - b sin(p w_i), b cos(p w_i) + a sin(p w_i))

    Products of rotated queries and keys depend on the distance only.

    Args:
        head_width: Channels of one head, an even number.
        base: The largest wavelength over the smallest, about.

    Raises:
        RangeError: ``head_width`` is odd, or ``base`` is not above 0.

    >>> q, k = torch.randn(2, 4, 10, 64)  # heads, tokens, channels of a head
    >>> q, k = RoPE(head_width=64).rotate(q, k)
    >>> q.shape
    torch.Size([4, 10, 64])

    Reference: Su et al. (2021), RoFormer. Pairs are laid out as in Llama.
    """

    name = "rope"
    relative = True

    def __init__(self, head_width: int, base: float = BASE) -> None:
        super().__init__()
        check_even("RoPE", head_width=head_width)
        if not base > 0:
            raise RangeError(f"RoPE needs a base above 0, got {base}. Use 10000.")
        self.head_width, self.base = head_width, base

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RoPE":
        return cls(width // heads)

    def rotate(self, q: Vectors, k: Vectors, at: At | None = None) -> tuple[Vectors, Vectors]:
        at, size = self._at(q, at), self.head_width
        check_floating("RoPE", "k", k)
        if k.dim() < 2 or not q.shape[-1] == k.shape[-1] == size or q.shape[-2:] != k.shape[-2:]:
            raise ShapeError(
                f"RoPE needs queries and keys of the same tokens and head_width {size}, got "
                f"{tuple(q.shape)} and {tuple(k.shape)}. Split the heads first."
            )
        exponent = torch.arange(0, self.head_width, 2, device=q.device).float() / self.head_width
        angle = at.float()[:, None] * (1.0 / self.base**exponent)
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)  # (6)


class ALiBi(Position):
    """A penalty for distance, another slope for each head.

    (7)  bias[h, p, q] = -slope_h |p - q|, slope_h = 2^(-8 (h + 1) / heads)

    for a power of two of heads; of other numbers, the slopes of the next lower power, then every
    second one of the next higher. Without a causal mask both directions are alike.

    Args:
        heads: Number of attention heads.

    Raises:
        RangeError: ``heads`` is below 1.

    >>> ALiBi(heads=8).bias(torch.arange(4), torch.arange(4))[0, 3]
    tensor([-1.5000, -1.0000, -0.5000, -0.0000])

    Reference: Press, Smith, Lewis (2022), Train short, test long.
    """

    name = "alibi"
    relative = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        check_positive("ALiBi", heads=heads)
        self.slopes = tuple(_slopes(heads))  # no buffer, which .bfloat16() would round

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "ALiBi":
        return cls(heads)

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        self._check_pair(queries, keys)
        slopes = torch.tensor(self.slopes, device=queries.device)
        return -slopes[:, None, None] * _distance(queries, keys).float()


def _slopes(heads: int) -> list[float]:
    power = 1 << heads.bit_length() - 1
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes + [2.0 ** (-4 * (h + 1) / power) for h in range(0, 2 * (heads - power), 2)]


class T5Buckets(Position):
    """A learned bias for each head and bucket of the distance.

    Half of the buckets hold one distance each, the others grow by a constant factor up to
    ``max_distance``, beyond which all share the last one. Without a causal mask each direction has
    half of the buckets; with one, later keys share bucket 0.

    Args:
        heads: Number of attention heads.
        causal: Whether attention looks back only.
        buckets: Number of buckets, a multiple of 4.
        max_distance: The distance from which on all share a bucket.

    Raises:
        RangeError: A number is outside its range.

    Reference: Raffel et al. (2020), Exploring the limits of transfer learning (T5).

    >>> at = torch.arange(4)
    >>> T5Buckets(heads=2).bias(at, at).shape
    torch.Size([2, 4, 4])
    """

    name = "t5"
    relative = True

    def __init__(
        self, heads: int, causal: bool = True, buckets: int = 32, max_distance: int = 128
    ) -> None:
        super().__init__()
        check_positive("T5Buckets", heads=heads)
        if buckets < 4 or buckets % 4:
            raise RangeError(f"T5Buckets needs a multiple of 4 buckets, got {buckets}. Use 32.")
        if max_distance <= buckets:
            raise RangeError(
                f"T5Buckets needs max_distance above the {buckets} buckets, got {max_distance}. "
                "Use fewer buckets or a larger distance."
            )
        self.causal, self.buckets, self.max_distance = causal, buckets, max_distance
        self.weight = nn.Parameter(torch.zeros(buckets, heads))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "T5Buckets":
        return cls(heads, causal)

    def bucket(self, queries: Queries, keys: Keys) -> Int[Tensor, "queries keys"]:
        """The bucket of every pair of a query and a key.

        Args:
            queries: Positions of the queries.
            keys: Positions of the keys.

        Returns:
            ``[queries, keys]``, whole numbers from 0.
        """
        self._check_pair(queries, keys)
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

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        return self.weight[self.bucket(queries, keys).to(self.weight.device)].permute(2, 0, 1)


class FIRE(Position):
    """A learned function of the distance relative to the query's position.

    (8)  bias[h, p, q] = f_h(psi(p - q) / psi(max(threshold, p))), psi(x) = log(1 + c x)

    f is a perceptron with one hidden layer, c and ``threshold`` are learned too. Progress into the
    sequence enters by max(threshold, p), so distances beyond those of training stay in [0, 1].
    Deviates from the paper: for a key after the query, psi is taken of the distance with the sign,
    and the larger of both positions counts as p.

    Args:
        heads: Number of attention heads.
        threshold: Where the learned threshold starts, a position.
        hidden: Hidden units of f.

    Raises:
        RangeError: A number is not above 0.

    Reference: Li et al. (2024), Functional interpolation for relative positions improves long
    context transformers.

    >>> at = torch.arange(4)
    >>> FIRE(heads=2).bias(at, at).shape
    torch.Size([2, 4, 4])
    """

    name = "fire"

    def __init__(self, heads: int, threshold: float = 512.0, hidden: int = 32) -> None:
        super().__init__()
        check_positive("FIRE", heads=heads, hidden=hidden)
        if not threshold > 0:
            raise RangeError(
                f"FIRE needs a threshold above 0, got {threshold}. "
                "Use the length of training sequences."
            )
        self.up, self.down = nn.Linear(1, hidden), nn.Linear(hidden, heads)  # f
        self.c = nn.Parameter(torch.tensor(0.1))
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "FIRE":
        return cls(heads, float(length))

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        self._check_pair(queries, keys)
        p, q = queries.float()[:, None], keys.float()
        progress = torch.maximum(self.threshold.float().abs(), torch.maximum(p, q))
        share = self._psi((p - q).abs()) * (p - q).sign() / self._psi(progress)
        with without_autocast(queries.device):  # (8)
            hidden = linear(share[..., None], self.up.weight.float(), self.up.bias.float()).relu()
            out = linear(hidden, self.down.weight.float(), self.down.bias.float())
        return out.permute(2, 0, 1)

    def _psi(self, x: Tensor) -> Tensor:
        return (1 + self.c.float().abs() * x).log()


class LogDistance(Position):
    """A whole number for the logarithm of the distance, with a learned gain for each head.

    (9)  bias[h, p, q] = -gain_h ceil(log2(1 + |p - q|))

    Deviates from the paper: it adds ``ceil(log2(length)) - ceil(log2(1 + |p - q|))``, without a
    gain, to the counts of a spiking attention; softmax does not see the constant.

    Args:
        heads: Number of attention heads.

    Raises:
        RangeError: ``heads`` is below 1.

    Reference: Lv et al. (2025), Toward relative positional encoding in spiking transformers.

    >>> at = torch.arange(4)
    >>> LogDistance(heads=2).bias(at, at).shape
    torch.Size([2, 4, 4])
    """

    name = "log-distance"
    relative = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        check_positive("LogDistance", heads=heads)
        self.gain = nn.Parameter(torch.ones(heads))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "LogDistance":
        return cls(heads)

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        self._check_pair(queries, keys)
        levels = (1 + _distance(queries, keys)).double().log2().ceil()
        return -self.gain[:, None, None] * levels.to(self.gain)


class GrayCode(Position):
    """Equal bits of the Gray codes of query's and key's position: spikes through XNOR gates.

    (10)  bias[h, p, q] = gain_h (bits - Hamming(g(p), g(q))), g(p) = p xor (p >> 1)

    Only roughly relative: the Hamming distance is 1 for neighbours and 2 for positions 2^n apart,
    n >= 1, and varies for other distances.

    Args:
        heads: Number of attention heads.
        bits: Bits of the code, which has 2^bits positions.

    Raises:
        RangeError: ``heads`` is below 1, or ``bits`` is outside [1, 62].

    Reference: Lv et al. (2025), Toward relative positional encoding in spiking transformers.

    >>> GrayCode(heads=1, bits=3).spikes(torch.arange(3)).int().tolist()
    [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    """

    name = "gray-code"

    def __init__(self, heads: int, bits: int = 10) -> None:
        super().__init__()
        check_positive("GrayCode", heads=heads)
        if not 1 <= bits <= 62:
            raise RangeError(f"GrayCode needs 1 to 62 bits, got {bits}. Use 10 for 1024 positions.")
        self.bits, self.max_length = bits, 1 << bits
        self.gain = nn.Parameter(torch.ones(heads))

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "GrayCode":
        return cls(heads)

    def spikes(self, at: At) -> Bool[Tensor, "length bits"]:
        """The Gray code of each position, lowest bit first.

        Args:
            at: Positions, whole numbers.

        Returns:
            ``[length, bits]``.
        """
        self._check_range(at)
        gray = at ^ (at >> 1)
        return (gray[:, None] >> torch.arange(self.bits, device=at.device) & 1).bool()

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        self._check_pair(queries, keys)
        equal = (self.spikes(queries)[:, None] == self.spikes(keys)).sum(-1)
        return self.gain[:, None, None] * equal.to(self.gain)


def _distance(queries: Tensor, keys: Tensor) -> Tensor:
    return (queries[:, None] - keys).abs()
