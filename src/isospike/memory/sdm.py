"""Sparse distributed memory with N-of-M codes."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.codes.orders import check_alpha, check_order
from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.kernels.machine import locations as kernels
from isospike.memory.decoder import AddressDecoder
from isospike.memory.layers import Burst, SpikingLayer

RULES = {
    "or": kernels.OR,
    "max": kernels.MAX,
    "add": kernels.ADD,
    "decay": kernels.DECAY,
    "rank": kernels.RANK,
}
TIMED = ("trace", "stdp")  # rules that see spike times
_SAMPLE = 200  # bursts from which thresholds are chosen


class SparseDistributedMemory:
    """One-shot memory from firing orders to firing orders.

    An address of i spikes makes w of W lines fire (:class:`AddressDecoder`), with significance
    ``sigma[k] = alpha^rank``; each line holds a cell for each of D data neurons. Writing the data
    order with significance y changes w * d cells:

    =======  =======================================  ===================================
    rule     cell m[k, j] becomes                     a read ranks data neurons by
    =======  =======================================  ===================================
    or       1                                        lines with the cell set
    max      max(m, sigma[k] y[j])                    sum_k sigma[k] m[k, j]
    add      m + sigma[k] y[j]                        the same
    decay    keep m + (1 - keep) sigma[k] y[j]        the same (all cells of the line decay)
    rank     1 + the spike's rank (the last one wins) lines with the cell set; the d first, then
                                                      ordered by the commonest rank in their cells
    trace    max(m, x[k] y[j]), x the :func:`trace`   as ``max``
             of the line's spike
    stdp     the same, x its :func:`nearest_pair`     as ``max``
    =======  =======================================  ===================================

    ``or`` and ``rank`` keep a byte per cell, the others a float. ``rank``, the default, recalls the
    order of more pairs at 4,000 than ``max`` at 1,000 (docs/measurements.md): a cell that two pairs
    share is one wrong vote among w, not a sum that is wrong. ``trace`` and ``stdp`` see spike times
    t, and need ``layers``: a trace that fades by alpha in the mean time between the lines' spikes
    is ``max`` where they are evenly spaced; pairs of nearest spikes (``stdp``) give *late* lines
    the larger weight.

    Args:
        address: (i, A), spikes and neurons of an address.
        decoder: (a, w, W), connections of a line, lines that fire, lines.
        data: (d, D), spikes and neurons of the data.
        alpha: Ratio of significance of consecutive spikes, in (0, 1].
        rule: See the table.
        keep: Share that ``decay`` leaves.
        floor: N-max floor: a data neuron whose activity is lower stays silent.
        layers: ``wheel`` or ``rdlif`` to choose lines and recall data with spiking neurons
            (:class:`isospike.memory.layers.SpikingLayer`). Not for ``add``, ``decay``, ``rank``.
        generator: Draws the decoder's connections.
        dtype: Of decoder strengths, activities and float cells.

    Reference: Kanerva (1988), Sparse distributed memory; Furber, Bainbridge, Cumpstey, Temple
    (2004), Sparse distributed memory using N-of-M codes; Furber et al. (2007).
    """

    def __init__(
        self,
        address: tuple[int, int] = (11, 256),
        decoder: tuple[int, int, int] = (20, 16, 4096),
        data: tuple[int, int] = (11, 256),
        alpha: float = 0.9,
        *,
        rule: str = "rank",
        keep: float = 0.7,
        floor: float = 0.0,
        layers: str | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_alpha(alpha, "SparseDistributedMemory")
        for name, (n, m) in {"address": address, "data": data}.items():
            if not 1 <= n <= m:
                raise RangeError(
                    f"SparseDistributedMemory needs 1 <= N <= M spikes in {name}, got {n}-of-{m}."
                )
        if rule not in (*RULES, *TIMED):
            raise RangeError(
                f"SparseDistributedMemory needs a rule of {', '.join((*RULES, *TIMED))}, got "
                f"{rule!r}."
            )
        if (layers is None and rule in TIMED) or (layers and rule in ("add", "decay", "rank")):
            raise UnsupportedError(
                f"SparseDistributedMemory needs layers for the rules {' and '.join(TIMED)}, and "
                f"none for add, decay and rank, got {layers!r} and {rule!r}."
            )
        if rule == "rank" and data[0] > 255:
            raise RangeError(f"rule 'rank' needs at most 255 data spikes, got {data[0]}.")
        if dtype not in (torch.float32, torch.float64):
            raise RangeError(f"SparseDistributedMemory needs float32 or float64, got {dtype}.")
        if not 0 <= keep <= 1:
            raise RangeError(f"SparseDistributedMemory needs keep in [0, 1], got {keep}.")
        self.address, self.data, self.alpha = address, data, alpha
        self.rule, self.keep, self.floor = rule, keep, floor
        connections, fire, lines = decoder
        self.decoder = AddressDecoder(address[1], connections, fire, lines, alpha, generator, dtype)
        floats = np.float64 if dtype == torch.float64 else np.float32
        self.cells = np.zeros((lines, data[1]), np.uint8 if rule in ("or", "rank") else floats)
        self._gain = {
            n: (alpha ** np.arange(n)).astype(floats) for n in (address[0], data[0], fire)
        }
        self.layers = layers
        if layers:
            self._make_layers(layers)

    def write(self, address: Int[Tensor, "*batch i"], data: Int[Tensor, "*batch d"]) -> None:
        """Store pairs of orders, a batch in its order.

        Raises:
            ShapeError: Not ``[..., i]`` and ``[..., d]``, or batches that differ.
            RangeError: Not whole numbers, a neuron out of range, or one that fires twice.
        """
        addresses, values = self._orders(address, "address"), self._orders(data, "data")
        if address.shape[:-1] != data.shape[:-1]:
            raise ShapeError(
                f"write needs as many data as addresses, got shapes {tuple(address.shape)} and "
                f"{tuple(data.shape)}."
            )
        if self.layers:
            for order, value in zip(addresses, values, strict=True):
                self._write_spikes(self._chooser.run(self._burst(order)), value)
            return
        kernels.write_pairs(
            self.decoder.arrays, self.cells, RULES[self.rule], self.keep, self._sigma,
            addresses, values, self._gain[self.address[0]], self._gain[self.data[0]],
        )  # fmt: skip

    def read(self, address: Int[Tensor, "*batch i"]) -> Int[Tensor, "*batch d"]:
        """The recalled orders. Outputs without activity, or below the floor, are -1, at the end."""
        return self._recall(address)[0]

    def activity(self, address: Int[Tensor, "*batch i"]) -> Float[Tensor, "*batch D"]:
        """What :meth:`read` ranks: the activity of every data neuron."""
        return self._recall(address)[1]

    def lines(self, address: Int[Tensor, "*batch i"]) -> Int[Tensor, "*batch w"]:
        """The lines that fire, the most excited first."""
        addresses = self._orders(address, "address")
        out = np.full((len(addresses), self.decoder.fire), kernels.SILENT, np.int64)
        if self.layers:
            for row, order in zip(out, addresses, strict=True):
                chosen, _ = self._chooser.run(self._burst(order))
                row[: len(chosen)] = chosen
        else:
            kernels.choose_all(self.decoder.arrays, addresses, self._gain[self.address[0]], out)
        return torch.from_numpy(out).view(*address.shape[:-1], self.decoder.fire)

    @property
    def occupancy(self) -> float:
        """Share of the cells that hold something."""
        return float((self.cells != 0).mean())

    @property
    def _sigma(self) -> Any:
        return self._gain[self.decoder.fire]

    def _recall(self, address: Tensor) -> tuple[Tensor, Tensor]:
        addresses = self._orders(address, "address")
        orders = np.empty((len(addresses), self.data[0]), np.int64)
        activity = np.empty((len(addresses), self.data[1]), self._sigma.dtype)
        if self.layers:
            for k, order in enumerate(addresses):
                orders[k], activity[k] = self._read_spikes(order)
        else:
            kernels.read_addresses(
                self.decoder.arrays, self.cells, RULES[self.rule], self.floor, self._sigma,
                addresses, self._gain[self.address[0]], orders, activity,
            )  # fmt: skip
        batch = address.shape[:-1]
        return (
            torch.from_numpy(orders).view(*batch, self.data[0]),
            torch.from_numpy(activity).view(*batch, self.data[1]),
        )

    def _make_layers(self, kind: str) -> None:
        """Spiking neurons in place of lines and data neurons, with thresholds from a sample."""
        (i, size), w = self.address, self.decoder.fire
        draw = np.random.default_rng(0)
        heard = [self._burst(draw.permutation(size)[:i]) for _ in range(_SAMPLE)]
        matrix = self.decoder.matrix().t().contiguous().numpy()
        self._chooser = SpikingLayer(kind, matrix, w, heard)
        chosen = [self._chooser.run(burst) for burst in heard]
        lengths = [np.ptp(times) for _, times in chosen if len(times)]
        if kind == "wheel":
            chosen = [(np.arange(w), np.linspace(0, w, w))]  # no burst is longer
        self._output = SpikingLayer(
            kind, self.cells, self.data[0], [self._excited(*c) for c in chosen], strongest=1.0
        )
        spacing = np.mean(lengths) / max(1, w - 1)
        self._tau = -spacing / np.log(self.alpha) if self.alpha < 1 else np.inf

    def _burst(self, order: Any) -> Burst:
        """An address, a spike each unit of time."""
        return order, self._gain[self.address[0]], np.arange(len(order), dtype=np.float64)

    def _excited(self, lines: Any, times: Any) -> Burst:
        """The lines' burst at the data neurons; marks are counted, without shunting inhibition."""
        sigma = self._sigma[: len(lines)]
        return lines, np.ones_like(sigma) if self.rule == "or" else sigma, times

    def _write_spikes(self, lines: tuple[Any, Any], data: Any) -> None:
        chosen, times = lines
        if self.rule not in TIMED:
            kernels.write_cells(
                self.cells, RULES[self.rule], self.keep, chosen, self._sigma, data,
                self._gain[self.data[0]],
            )  # fmt: skip
        elif len(chosen):
            left = (trace if self.rule == "trace" else nearest_pair)(times, self._tau)
            where = np.ix_(chosen, data)
            new = left[:, None] * self._gain[self.data[0]]
            self.cells[where] = np.maximum(self.cells[where], new)

    def _read_spikes(self, order: Any) -> tuple[Any, Any]:
        burst = self._excited(*self._chooser.run(self._burst(order)))
        fired = self._output.times(burst)
        activity = self._output.activity(fired, burst)
        recalled = np.empty(self.data[0], np.int64)
        kernels.largest(-fired, len(recalled), recalled)
        silent = ~np.isfinite(fired[recalled])
        silent |= (activity[recalled] <= 0) | (activity[recalled] < self.floor)
        recalled[silent] = kernels.SILENT
        return recalled, activity

    def _orders(self, order: Tensor, what: str) -> Any:
        n, m = self.address if what == "address" else self.data
        check_order(order, n, m, f"{what} of the memory")
        return order.reshape(-1, n).long().contiguous().numpy()


def trace(times: Any, tau: float) -> Any:
    """What each spike of a burst leaves behind: ``exp(-(t - t_first) / tau)``.

    Of spikes evenly spaced by ``-tau log(alpha)`` it is ``alpha^rank``.
    """
    return np.exp(-(times - times[0]) / tau)


def nearest_pair(times: Any, tau: float) -> Any:
    """What each spike counts for an event at the end of the burst: ``exp(-(t_last - t) / tau)``.

    Spike-timing-dependent plasticity of nearest pairs: the later, the more.
    """
    return np.exp(-(times[-1] - times) / tau)


def occupancy(pairs: float, w: int, d: int, lines: int, size: int) -> float:
    """Share of cells set by random pairs: ``1 - (1 - w d / (W D))^Z``."""
    return float(-np.expm1(pairs * np.log1p(-w * d / (lines * size))))


def expected_recall(
    pairs: float, w: int, d: int, lines: int, size: int, shared: int | None = None
) -> float:
    """Chance that a set is recalled exactly when ``shared`` of its w lines fire (all by default).

    (1)  p = 1 - (1 - w d / (W D))^Z, the :func:`occupancy`
    (2)  a stored neuron counts shared + Binomial(w - shared, p) marks, another Binomial(w, p)
    (3)  P = sum over c of P(most of the D - d others = c) P(least of the d stored > c)

    With all lines P = (1 - p^w)^(D - d). A noisy address shares some of the lines; how many is a
    matter of the decoder (:meth:`SparseDistributedMemory.lines`).

    Assumes lines that are used evenly and neurons that are marked independently; measured recall is
    a few points lower (docs/measurements.md).
    """
    v = w if shared is None else shared
    if not 0 <= v <= w:
        raise RangeError(f"expected_recall needs shared in [0, {w}], got {v}.")
    p = occupancy(pairs, w, d, lines, size)
    most = np.diff(np.cumsum(_binomial(w, p)) ** (size - d), prepend=0.0)
    stored = np.concatenate([np.zeros(v), _binomial(w - v, p)])
    least = np.append(np.cumsum(stored[:0:-1])[::-1], 0.0) ** d  # P(all > c)
    return float(most @ least)


def _binomial(n: int, p: float) -> Any:
    """P(k successes of n), k = 0 .. n."""
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def capacity(w: int, d: int, lines: int, size: int) -> float:
    """Pairs at which one spurious neuron is expected: ``ln(1 - p*) / ln(1 - w d / (W D))`` with
    ``p* = (D - d)^(-1/w)``."""
    return float(np.log1p(-((size - d) ** (-1 / w))) / np.log1p(-w * d / (lines * size)))
