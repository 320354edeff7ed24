"""Firing orders: which N of M neurons fire, the first one first.

An N-of-M code is held as its *order*: an integer tensor ``[..., N]`` of distinct neurons in
[0, M). Its *significance* is the vector that a layer with shunting inhibition sees, every later
spike weaker by the same factor:

(1)  s[order[r]] = alpha^r, r = 0 .. N-1, and 0 elsewhere

Reference: Bose, Furber, Shapiro (2005), A system for transmitting a coherent burst activity through
a network of spiking neurons; Furber et al. (2007), Sparse distributed memory using rank-order
neural codes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isospike.codes.base import Code, check_spikes, weighted_sum, widen
from isospike.errors import RangeError, ShapeError
from isospike.tensors import FLOATING, WHOLE, check_floating, check_tensor, check_whole, unwrapped


def nof_m(x: Float[Tensor, "*batch m"], n: int) -> Int[Tensor, "*batch n"]:
    """The order of the ``n`` largest values, the largest first; equal values by index.

    Unchanged by any increasing map of ``x``.

    Args:
        x: Vectors of M values, in the last axis.
        n: Number of neurons that fire.

    Returns:
        Indices of the neurons, the first to fire first.

    Raises:
        InputError: ``x`` is not a tensor.
        ShapeError: ``x`` has fewer than ``n`` values.
        RangeError: ``n`` < 1, or some value is NaN or not a real number.

    >>> import torch
    >>> nof_m(torch.tensor([0.1, 0.9, 0.3, 0.5]), 3).tolist()
    [1, 3, 2]
    """
    check_tensor("nof_m", "x", x, read=True)
    if x.dtype not in (*FLOATING, *WHOLE):
        raise RangeError(f"nof_m needs real numbers, got {x.dtype}. Convert x first.")
    if n < 1:
        raise RangeError(f"nof_m needs n >= 1, got {n}. Let one neuron fire at least.")
    if x.dim() == 0 or x.shape[-1] < n:
        raise ShapeError(
            f"nof_m needs at least n={n} values in the last axis, got shape {tuple(x.shape)}. Give "
            "longer vectors or a smaller n."
        )
    if (nan := unwrapped(x).isnan()).any():
        raise RangeError(
            f"nof_m needs ordered values, got NaN in {int(nan.sum())} places. Remove them first."
        )
    return x.argsort(dim=-1, descending=True, stable=True)[..., :n]


def significance(
    order: Int[Tensor, "*batch n"], m: int, alpha: float, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "*batch {m}"]:
    """(1): the vector of an order.

    Args:
        order: Orders, in the last axis.
        m: Number of neurons.
        alpha: Ratio of the significance of consecutive ranks, in (0, 1].
        dtype: Type of the result.

    Returns:
        Vectors of m values, 0 where a neuron does not fire.

    Raises:
        InputError: ``order`` is not a tensor.
        ShapeError: It has no axis.
        RangeError: Not whole numbers, a neuron outside [0, m), one that fires twice, or ``alpha``
            outside (0, 1].

    >>> import torch
    >>> significance(torch.tensor([2, 0]), m=4, alpha=0.5).tolist()
    [0.5, 0.0, 1.0, 0.0]
    """
    check_whole("significance", "order", order, read=True)
    check_order(order, order.shape[-1] if order.dim() else 0, m, "significance")
    check_alpha(alpha, "significance")
    rank = torch.arange(order.shape[-1], dtype=dtype, device=order.device)
    x = torch.zeros(*order.shape[:-1], m, dtype=dtype, device=order.device)
    return x.scatter(-1, order.long(), (alpha**rank).expand(order.shape))


def random_orders(
    count: int, n: int, m: int, generator: torch.Generator | None = None
) -> Int[Tensor, "{count} n"]:
    """Draw independent uniform orders of ``n`` of ``m`` neurons.

    Args:
        count: Number of orders.
        n: Neurons that fire.
        m: All neurons.
        generator: Source of randomness; torch's global one if not given.

    Returns:
        The orders, one a row.

    Raises:
        RangeError: ``n`` is not from 1 to ``m``.

    >>> random_orders(3, n=2, m=5).shape
    torch.Size([3, 2])
    """
    if not 1 <= n <= m:
        raise RangeError(
            f"random_orders needs 1 <= n <= m, got n={n} and m={m}. Let fewer neurons fire."
        )
    draws = torch.rand(count, m, generator=generator, dtype=torch.float64)
    return draws.argsort(dim=-1, descending=True, stable=True)[..., :n]


class Similarity(NamedTuple):
    """How alike two orders are, entry by entry; each has the batch shape.

    Attributes:
        matched: Fraction of the neurons that are in both.
        set_exact: Whether the neurons are the same.
        order_exact: Whether they fire in the same order too.
        kendall: Kendall's tau over the neurons in both: concordant less discordant pairs, over
            pairs. NaN with fewer than two.
        cosine: Cosine of the significance vectors. At alpha near 1 it hardly depends on the order:
            for 11 neurons and alpha = 0.99 the reversed order scores .998.

    >>> import torch
    >>> one, other = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 0, 2]])
    >>> alike = similarity(one, other, 0.9)
    >>> alike.set_exact.tolist(), alike.order_exact.tolist()
    ([True], [False])
    """

    matched: Float[Tensor, "*batch"]
    set_exact: Bool[Tensor, "*batch"]
    order_exact: Bool[Tensor, "*batch"]
    kendall: Float[Tensor, "*batch"]
    cosine: Float[Tensor, "*batch"]


def similarity(a: Int[Tensor, "*batch n"], b: Int[Tensor, "*batch n"], alpha: float) -> Similarity:
    """Compare two orders of one length by every measure.

    Args:
        a: Orders, in the last axis.
        b: Orders to compare them with, of the same shape.
        alpha: Ratio of the significance of consecutive ranks, in (0, 1].

    Returns:
        The measures, each of the batch's shape.

    Raises:
        InputError: Something is not a tensor.
        ShapeError: The shapes differ.
        RangeError: ``alpha`` is outside (0, 1], or an order is not of whole numbers.

    >>> import torch
    >>> alike = similarity(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 3]), alpha=0.9)
    >>> alike.matched.item(), alike.kendall.item()
    (0.666..., -1.0)
    """
    check_whole("similarity", "a", a)
    check_whole("similarity", "b", b)
    if a.shape != b.shape or a.dim() == 0:
        raise ShapeError(
            f"similarity needs orders of one shape, got {tuple(a.shape)} and {tuple(b.shape)}. "
            "Compare orders of equally many neurons."
        )
    check_alpha(alpha, "similarity")
    n = a.shape[-1]
    same = a[..., :, None] == b[..., None, :]  # [..., rank in a, rank in b]
    common = same.any(-1)
    rank_b = same.double().argmax(-1)
    later = torch.ones(n, n, dtype=torch.bool, device=a.device).triu(1)
    both = common[..., :, None] & common[..., None, :] & later
    concordant = (rank_b[..., :, None] < rank_b[..., None, :]) & both
    pairs = both.sum((-1, -2)).double()
    weight = alpha ** torch.arange(n, dtype=torch.float64, device=a.device)
    return Similarity(
        matched=common.double().mean(-1),
        set_exact=common.all(-1),
        order_exact=(a == b).all(-1),
        kendall=(2 * concordant.sum((-1, -2)) - pairs) / pairs,
        cosine=(same * weight[:, None] * weight).sum((-1, -2)) / weight.square().sum(),
    )


def bits(n: int, m: int, ordered: bool = True) -> float:
    """Information of one N-of-M word: ``log2 C(m, n)``, plus ``log2 n!`` if the order counts.

    Args:
        n: Neurons that fire.
        m: All neurons.
        ordered: Whether the order counts.

    Returns:
        Bits.

    Raises:
        RangeError: ``n`` is not from 0 to ``m``.

    >>> bits(2, 4, ordered=False)
    2.58...
    """
    if not 0 <= n <= m:
        raise RangeError(f"bits needs 0 <= n <= m, got n={n} and m={m}. Let fewer neurons fire.")
    return math.log2(math.comb(m, n)) + (math.log2(math.factorial(n)) if ordered else 0.0)


@dataclass(frozen=True)
class RankOrderCode(Code):
    """N-of-M rank order: the N largest of M values spike, one per step, the largest first.

    ``decode`` gives each spiking value its significance ``alpha^rank`` and the others 0. Values are
    compared within the last axis; equal values spike in index order. The code depends on the order
    only: any increasing map of ``x`` leaves the spikes unchanged.

    Attributes:
        steps: N, the number of spikes per vector.
        alpha: Ratio of the significance of consecutive ranks, in (0, 1].

    Reference: Furber, Brown, Bose, Cumpstey, Marshall, Shapiro (2007), Sparse distributed memory
    using rank-order neural codes.

    >>> import torch
    >>> RankOrderCode(2, alpha=0.5).quantize(torch.tensor([3.0, 9.0, 1.0])).tolist()
    [0.5, 1.0, 0.0]
    """

    alpha: float = 0.9

    name = "rank-order"
    summary = "order of the N largest of M values"
    low = -math.inf
    max_steps = 65536

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha, "RankOrderCode")

    def encode(self, x: Float[Tensor, "*shape"]) -> Tensor:
        """Spikes of the N largest values; step r holds the one spike of the value of rank r.

        Args:
            x: Vectors of M values, in the last axis.

        Returns:
            Spikes ``[N, ..., M]``.

        Raises:
            ShapeError: The last axis has fewer than ``steps`` values.
            RangeError: Some value is NaN, or ``x`` is not floating point.
        """
        check_floating("RankOrderCode", "x", x, read=True)
        if x.dim() == 0 or x.shape[-1] < self.steps:
            raise ShapeError(
                f"RankOrderCode needs at least steps={self.steps} values in the last axis, got "
                f"shape {tuple(x.shape)}. Give longer vectors or a smaller N."
            )
        if (nan := unwrapped(x).isnan()).any():
            raise RangeError(
                "RankOrderCode needs ordered values, got NaN "
                f"({int(nan.sum())} of {nan.numel()}). Remove them first."
            )
        order = nof_m(x, self.steps)
        spikes = torch.zeros(self.steps, *x.shape, dtype=x.dtype, device=x.device)
        return spikes.scatter(-1, order.movedim(-1, 0).unsqueeze(-1), 1.0)

    def decode(self, spikes: Tensor) -> Tensor:
        check_spikes(self, spikes)
        ranks = torch.arange(self.steps, dtype=torch.float64, device=spikes.device)
        s = widen(self, spikes)
        # One spike per value at most, so the sum has one term and is exact.
        return weighted_sum((self.alpha**ranks).to(s.dtype), s).to(spikes.dtype)


def check_order(order: Tensor, n: int, m: int, who: str, what: str = "order") -> None:
    """Check an order: integers ``[..., n]``, distinct and in [0, m).

    Args:
        order: The order to check.
        n: Number of neurons that fire.
        m: Number of neurons.
        who: First words of the message.
        what: What ``who`` calls it.

    Raises:
        InputError: It is not a tensor.
        ShapeError: Another number of neurons.
        RangeError: Something else is wrong.
    """
    check_tensor(who, what, order, read=True)
    if order.dtype not in WHOLE:
        raise RangeError(
            f"{who} needs {what} in whole numbers, got {order.dtype}. Make an order from a vector "
            "with nof_m."
        )
    if order.dim() == 0 or order.shape[-1] != n:
        raise ShapeError(
            f"{who} needs {what} [..., {n}], got shape {tuple(order.shape)}. Give {n} neurons each."
        )
    if order.numel() == 0:
        return
    order = unwrapped(order).long()
    if int(order.min()) < 0 or int(order.max()) >= m:
        raise RangeError(
            f"{who} needs {what} with neurons in [0, {m}), got {int(order.min())} to "
            f"{int(order.max())}. Number them from 0."
        )
    if bool((order.sort(-1).values.diff(dim=-1) == 0).any()):
        raise RangeError(
            f"{who} needs each neuron of {what} to fire once, got one twice. Name it once."
        )


def check_alpha(alpha: float, who: str) -> None:
    """Check the ratio of significances.

    Args:
        alpha: The ratio.
        who: First words of the message.

    Raises:
        RangeError: ``alpha`` is outside (0, 1].
    """
    if not 0 < alpha <= 1:
        raise RangeError(f"{who} needs alpha in (0, 1], got {alpha}. Try 0.9.")
