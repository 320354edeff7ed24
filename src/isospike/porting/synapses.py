"""Weights as whole numbers of few bits, rounded so that the product errs least.

A weight that reads the spikes of input channel c and excites output o is

(1)  W[o, c] = step[o] share[o, g] q[o, c],   -2^(bits - 1) <= q < 2^(bits - 1),   g the group of c

with ``step`` a power of two and ``share`` a whole number, so that a product of spikes adds whole
multiples of the step and its order of addition cannot matter. A share may be negative: q has one
number more below zero than above, and each group puts it where it helps. At eight bits an output is
one group; at four, a group has 32 inputs.

The sum over the calibration's integers N of the squared error of an output is, with D its row of
rounding errors and the mean left out, which the bias takes up,

(2)  D H D^T,   H = sum over rows of (N - mean N)^T (N - mean N)

Rounding goes channel by channel, those of largest H first, and each one's error is made up for by
the channels that are still to be rounded (Frantar, Ashkboos, Hoefler, Alistarh 2023, GPTQ). Then
every channel is rounded anew, given all others, which lowers (2) further (Behdin and others 2023,
QuantEase).

An input channel whose weights are several times as large as the others' would set the quantum of
all of them. It gets several synapses on each output, which share its weight.
"""

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.errors import InputError, RangeError

WEIGHT_BITS = (16, 8, 4)
GROUP = 32  # inputs that share a quantum, at four bits
MOST_SHARE = 127
PARTS = tuple(n / 20 for n in range(21, 9, -1))  # of the quantum that reaches the largest weight
BLOCK = 128  # channels rounded before the others hear of their errors
DAMPING = 0.3  # of the mean of H's diagonal: a sample has few rows, and other inputs differ
SWEEPS = 4  # in which every channel is rounded anew
WIDE = 1.5  # times the usual size of a channel's weights, for each synapse


@dataclass(frozen=True)
class Synapses:
    """Which product has weights of how many bits.

    Attributes:
        bits: 16, 8 or 4.
        keep: Names of modules that keep 16, with wildcards.
    """

    bits: int = 16
    keep: tuple[str, ...] = ()

    def check(self, products: Collection[str] | None = None) -> None:
        """Raise unless these can be the synapses of a model.

        Args:
            products: Their names, once they are known.

        Raises:
            RangeError: No weights have so many bits.
            InputError: A name that no product has.
        """
        if type(self.bits) is not int or self.bits not in WEIGHT_BITS:
            raise RangeError(
                f"port needs weight_bits among {', '.join(map(str, WEIGHT_BITS))}, got "
                f"{self.bits!r}. Choose one of them."
            )
        if products is None:
            return
        for pattern in self.keep:
            if not fnmatch.filter(products, pattern):
                raise InputError(
                    f"port needs names of products to keep, got {pattern!r} which matches none of "
                    f"{len(products)} such as {min(products)}. See the names in report.sites."
                )

    def bits_of(self, name: str) -> int:
        """Bits of the weights of a product.

        Args:
            name: Its name.
        """
        return 16 if any(fnmatch.fnmatchcase(name, p) for p in self.keep) else self.bits


SIXTEEN = Synapses()


class Rounded(NamedTuple):
    """A weight of the form (1).

    Attributes:
        weight: It, ``[outputs, inputs]``.
        step: ``[outputs]``.
        share: ``[outputs, groups]``, not 0.
    """

    weight: Tensor
    step: Tensor
    share: Tensor


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest whole number of so many bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def wide_channels(size: Tensor) -> Tensor:
    """The input channels that get more synapses than one, each as often as it gets another.

    Args:
        size: Of each channel's weights, ``[inputs]``.
    """
    usual = size[size > 0].median() if bool((size > 0).any()) else size.new_ones(())
    more = (size / (WIDE * usual)).ceil().clamp(1, 8).long() - 1
    return torch.arange(len(size), device=size.device).repeat_interleave(more)


class Moments:
    """H of (2), factorised once for all products that read a site.

    Args:
        integers: What entered, ``[rows, inputs]``, each row times its gain.
    """

    def __init__(self, integers: Tensor) -> None:
        x = integers.double()
        x = x - x.mean(0)
        h = x.T @ x / max(1, len(x))
        power = h.diagonal().clone()
        h.diagonal().add_(DAMPING * power.mean().clamp_min(1e-30))
        self.power, self.h = power, h
        self.order = torch.argsort(power, descending=True, stable=True)
        h = h[self.order][:, self.order]
        # H = R R^T with R upper triangular, so that the inverse is U^T U with U = R^-1.
        lower = torch.linalg.cholesky(h.flip(0, 1))
        eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
        self.inverse = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)


def round_weight(weight: Tensor, reach: Tensor, bits: int, moments: Moments | None) -> Rounded:
    """A weight in the form (1).

    Args:
        weight: ``[outputs, inputs]``.
        reach: The least step that each output may have, ``[outputs]``.
        bits: 8 or 4.
        moments: Of what enters; None to round every weight to the nearest.

    Returns:
        The weight, on its grid.
    """
    width = weight.shape[1]
    group = GROUP if bits < 8 else width
    wide = weight.double()
    power = wide.new_ones(width) if moments is None else moments.power + 1e-12
    step, share = _shares(wide, power, reach.double(), bits, group)
    quantum = (step[:, None] * share).repeat_interleave(group, 1)[:, :width]
    if moments is None:
        q = (wide / quantum).round().clamp(*limits(bits))
    else:
        q = _round_in_order(wide, quantum, limits(bits), moments)
        _round_anew(q, wide, quantum, limits(bits), moments)
    return Rounded((q * quantum).to(weight.dtype), step.to(weight.dtype), share.to(weight.dtype))


def _shares(
    weight: Tensor, power: Tensor, reach: Tensor, bits: int, group: int
) -> tuple[Tensor, Tensor]:
    """The step of each output, and of each group the share that errs least."""
    ends = limits(bits)
    pad = -weight.shape[1] % group
    grouped = F.pad(weight, (0, pad)).view(len(weight), -1, group)
    counts = F.pad(power, (0, pad)).view(-1, group)
    largest = grouped.abs().amax(-1) / ends[1]
    step = torch.maximum(reach, largest.amax(-1) / MOST_SHARE)
    step = step.clamp_min(1e-30).log2().ceil().exp2()
    usual = torch.where(largest > 0, largest, 1.0)[..., None]
    share, least = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for part in (*PARTS, *(-part for part in PARTS)):
        q = (grouped / (part * usual)).round_().clamp_(*ends)
        both = (counts * grouped * q).sum(-1)
        own = (counts * q.square_()).sum(-1)
        # With these q, the share that errs least; then the error less what no share changes.
        found = (both / (own * step[:, None]).clamp_min(1e-300)).round()
        found = torch.where(found == 0, 1, found).clamp(-MOST_SHARE, MOST_SHARE)
        quantum = found * step[:, None]
        error = (own * quantum - 2 * both) * quantum
        better = error < least
        share[better], least[better] = found[better], error[better]
    return step, share


def _round_in_order(
    weight: Tensor, quantum: Tensor, ends: tuple[int, int], moments: Moments
) -> Tensor:
    """q of (1), each channel's error made up for by those that follow."""
    order, inverse = moments.order, moments.inverse
    left, quantum = weight[:, order], quantum[:, order]
    q = torch.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        stop = min(start + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for c in range(start, stop):
            q[:, c] = (left[:, c] / quantum[:, c]).round().clamp(*ends)
            error = (left[:, c] - q[:, c] * quantum[:, c]) / inverse[c, c]
            left[:, c:stop].addr_(error, inverse[c, c:stop], alpha=-1)
            errors[:, c - start] = error
        left[:, stop:].addmm_(errors, inverse[start:stop, stop:], alpha=-1)
    back = torch.empty_like(q)
    back[:, order] = q
    return back


def _round_anew(
    q: Tensor, weight: Tensor, quantum: Tensor, ends: tuple[int, int], moments: Moments
) -> None:
    """Lower (2), channel by channel: each is best at its weight less its share of the slope D H."""
    slope = (q * quantum - weight) @ moments.h
    for c in [*moments.order.tolist()] * SWEEPS:
        best = q[:, c] - slope[:, c] / (moments.h[c, c] * quantum[:, c])
        change = best.round().clamp(*ends) - q[:, c]
        if bool(change.any()):
            q[:, c] += change
            slope.addr_(change * quantum[:, c], moments.h[c])
