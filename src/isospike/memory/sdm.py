"""Sparse distributed memory from firing orders to firing orders, with the theory of its recall."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike.codes.orders import check_alpha, check_order
from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.kernels.machine import locations as kernels
from isospike.memory.decoder import AddressDecoder
from isospike.memory.layers import ABSTRACT, KINDS, Burst, SpikingLayer

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

    An address of i spikes activates w of W hard locations (:class:`AddressDecoder`), with
    significance ``sigma[k] = alpha^rank``. Each location holds a counter for each of D data
    neurons. Writing the data order with significance y changes w * d counters:

    =======  =======================================  ===================================
    rule     counter m[k, j] becomes                  a read ranks data neurons by
    =======  =======================================  ===================================
    or       1                                        locations with the counter set
    max      max(m, sigma[k] y[j])                    sum_k sigma[k] m[k, j]
    add      m + sigma[k] y[j]                        the same
    decay    decay m + (1 - decay) sigma[k] y[j]      the same (all counters of the location decay)
    rank     1 + the spike's rank (the last one wins) locations with the counter set; the d first,
                                                      then ordered by their commonest rank
    trace    max(m, x[k] y[j]), x the :func:`trace`   as ``max``
             of the location's spike
    stdp     the same, x its :func:`nearest_pair`     as ``max``
    =======  =======================================  ===================================

    ``or`` and ``rank`` keep a byte per counter, the others a float. ``rank``, the default, recalls
    the order of more pairs at 4,000 than ``max`` at 1,000 (docs/measurements/memory.md): a counter
    that two pairs share is one wrong vote among w, not a sum that is wrong. ``trace`` and ``stdp``
    see spike times t, and need spiking ``layers``: a trace that fades by alpha in the mean time
    between the locations' spikes is ``max`` where they are evenly spaced; pairs of nearest spikes
    (``stdp``) give *late* locations the larger weight.

    Attributes:
        counters: ``[W, D]``.
        decoder: The connections of the locations.

    Args:
        address: (i, A): spikes and neurons of an address.
        decoder: (a, w, W): connections of a location, locations that are active, locations.
        data: (d, D): spikes and neurons of the data.
        alpha: Ratio of significance of consecutive spikes, in (0, 1].
        rule: See the table.
        decay: What the rule ``decay`` leaves of a counter, in [0, 1].
        floor: A data neuron whose activity is lower stays silent.
        layers: ``abstract``; or ``wheel`` or ``rdlif`` to activate locations and recall data with
            spiking neurons (:class:`SpikingLayer`), which ``add``, ``decay`` and ``rank`` cannot.
        generator: Draws the decoder's connections.
        dtype: Of decoder strengths, activities and float counters.

    Raises:
        InputError: An unknown rule, kind of layer or dtype.
        RangeError: A number outside its range.
        UnsupportedError: A rule that does not go with the layers.

    Example:
        >>> import torch
        >>> from isospike import SparseDistributedMemory
        >>> memory = SparseDistributedMemory(
        ...     (3, 16), (4, 3, 64), (3, 16), generator=torch.Generator().manual_seed(0)
        ... )
        >>> memory.write(torch.tensor([5, 2, 9]), torch.tensor([7, 1, 4]))
        >>> memory.read(torch.tensor([5, 2, 9]))
        tensor([7, 1, 4])

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
        decay: float = 0.7,
        floor: float = 0.0,
        layers: str = ABSTRACT,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_alpha(alpha, "SparseDistributedMemory")
        _check_codes(address, data, rule)
        _check_rule(rule, layers)
        if dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"SparseDistributedMemory needs float32 or float64, got {dtype}. Use one of them."
            )
        if not 0 <= decay <= 1:
            raise RangeError(
                f"SparseDistributedMemory needs decay in [0, 1], got {decay}. Its default is 0.7."
            )
        self.address, self.data, self.alpha = address, data, alpha
        self.rule, self.decay, self.floor, self.layers = rule, decay, floor, layers
        connections, active, locations = decoder
        self.decoder = AddressDecoder(
            address[1], connections, active, locations, alpha, generator, dtype
        )
        floats = np.float64 if dtype == torch.float64 else np.float32
        self.counters = np.zeros(
            (locations, data[1]), np.uint8 if rule in ("or", "rank") else floats
        )
        self._gain = {
            n: (alpha ** np.arange(n)).astype(floats) for n in (address[0], data[0], active)
        }
        if layers != ABSTRACT:
            self._make_layers(layers)

    def write(self, address: Int[Tensor, "*batch i"], data: Int[Tensor, "*batch d"]) -> None:
        """Store pairs of orders, a batch in its order.

        Args:
            address: Orders of i of A neurons.
            data: Orders of d of D neurons, one for each address.

        Raises:
            InputError: Something is not a tensor.
            ShapeError: Not ``[..., i]`` and ``[..., d]``, or batches that differ.
            RangeError: Not whole numbers, a neuron out of range, or one that fires twice.
        """
        addresses, values = self._orders("write", address), self._orders("write", data, "data")
        if address.shape[:-1] != data.shape[:-1]:
            raise ShapeError(
                f"write needs as many data as addresses, got shapes {tuple(address.shape)} and "
                f"{tuple(data.shape)}. Give one data order for each address."
            )
        if self.layers != ABSTRACT:
            for order, value in zip(addresses, values, strict=True):
                self._write_spikes(self._chooser.run(self._burst(order)), value)
            return
        kernels.write_pairs(
            self.decoder.arrays, self.counters, RULES[self.rule], self.decay, self._sigma,
            addresses, values, self._gain[self.address[0]], self._gain[self.data[0]],
        )  # fmt: skip

    def read(self, address: Int[Tensor, "*batch i"]) -> Int[Tensor, "*batch d"]:
        """Recall the data of addresses.

        Args:
            address: Orders of i of A neurons.

        Returns:
            The recalled orders; -1, at the end, for outputs without activity or below the floor.

        Raises:
            InputError, ShapeError, RangeError: As :meth:`write`.
        """
        return self._recall("read", address)[0]

    def activity(self, address: Int[Tensor, "*batch i"]) -> Float[Tensor, "*batch D"]:
        """The activity by which :meth:`read` ranks data neurons.

        Args:
            address: Orders of i of A neurons.

        Returns:
            The activity of every data neuron.

        Raises:
            InputError, ShapeError, RangeError: As :meth:`write`.
        """
        return self._recall("activity", address)[1]

    def active_locations(self, address: Int[Tensor, "*batch i"]) -> Int[Tensor, "*batch w"]:
        """The locations that an address activates.

        Args:
            address: Orders of i of A neurons.

        Returns:
            Their indices, the most excited first; -1 at the end if fewer than w neurons fire.

        Raises:
            InputError, ShapeError, RangeError: As :meth:`write`.
        """
        addresses = self._orders("active_locations", address)
        out = np.full((len(addresses), self.decoder.active), kernels.SILENT, np.int64)
        if self.layers != ABSTRACT:
            for row, order in zip(out, addresses, strict=True):
                active, _ = self._chooser.run(self._burst(order))
                row[: len(active)] = active
        else:
            kernels.activate_all(self.decoder.arrays, addresses, self._gain[self.address[0]], out)
        return torch.from_numpy(out).view(*address.shape[:-1], self.decoder.active)

    @property
    def occupancy(self) -> float:
        """Share of the counters that are not 0."""
        return float((self.counters != 0).mean())

    @property
    def _sigma(self) -> Any:
        return self._gain[self.decoder.active]

    def _recall(self, who: str, address: Tensor) -> tuple[Tensor, Tensor]:
        addresses = self._orders(who, address)
        orders = np.empty((len(addresses), self.data[0]), np.int64)
        activity = np.empty((len(addresses), self.data[1]), self._sigma.dtype)
        if self.layers != ABSTRACT:
            for k, order in enumerate(addresses):
                orders[k], activity[k] = self._read_spikes(order)
        else:
            kernels.read_addresses(
                self.decoder.arrays, self.counters, RULES[self.rule], self.floor, self._sigma,
                addresses, self._gain[self.address[0]], orders, activity,
            )  # fmt: skip
        batch = address.shape[:-1]
        return (
            torch.from_numpy(orders).view(*batch, self.data[0]),
            torch.from_numpy(activity).view(*batch, self.data[1]),
        )

    def _make_layers(self, kind: str) -> None:
        """Spiking neurons for locations and data neurons, with thresholds from a sample."""
        (i, size), w = self.address, self.decoder.active
        draw = np.random.default_rng(0)
        bursts = [self._burst(draw.permutation(size)[:i]) for _ in range(_SAMPLE)]
        matrix = self.decoder.matrix().t().contiguous().numpy()
        self._chooser = SpikingLayer(kind, matrix, w, bursts)
        active = [self._chooser.run(burst) for burst in bursts]
        lengths = [np.ptp(times) for _, times in active if len(times)]
        if kind == "wheel":
            active = [(np.arange(w), np.linspace(0, w, w))]  # no burst is longer
        self._output = SpikingLayer(
            kind, self.counters, self.data[0], [self._excited(*c) for c in active], strongest=1.0
        )
        spacing = np.mean(lengths) / max(1, w - 1)
        self._tau = -spacing / np.log(self.alpha) if self.alpha < 1 else np.inf

    def _burst(self, order: Any) -> Burst:
        """An address, a spike each unit of time."""
        return order, self._gain[self.address[0]], np.arange(len(order), dtype=np.float64)

    def _excited(self, locations: Any, times: Any) -> Burst:
        """The locations' burst at the data neurons; marks are counted, without inhibition."""
        sigma = self._sigma[: len(locations)]
        return locations, np.ones_like(sigma) if self.rule == "or" else sigma, times

    def _write_spikes(self, locations: tuple[Any, Any], data: Any) -> None:
        active, times = locations
        if self.rule not in TIMED:
            kernels.write_counters(
                self.counters, RULES[self.rule], self.decay, active, self._sigma, data,
                self._gain[self.data[0]],
            )  # fmt: skip
        elif len(active):
            left = (trace if self.rule == "trace" else nearest_pair)(times, self._tau)
            where = np.ix_(active, data)
            new = left[:, None] * self._gain[self.data[0]]
            self.counters[where] = np.maximum(self.counters[where], new)

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

    def _orders(self, who: str, order: Tensor, what: str = "address") -> Any:
        n, m = self.address if what == "address" else self.data
        check_order(order, n, m, who, what)
        return order.reshape(-1, n).long().cpu().contiguous().numpy()


def _check_codes(address: tuple[int, int], data: tuple[int, int], rule: str) -> None:
    """Raise unless addresses and data are N-of-M codes, and their ranks fit a byte."""
    for name, (n, m) in {"address": address, "data": data}.items():
        if not 1 <= n <= m:
            raise RangeError(
                f"SparseDistributedMemory needs 1 <= N <= M spikes in {name}, got {n}-of-{m}. Give "
                "more neurons."
            )
    if rule == "rank" and data[0] > 255:
        raise RangeError(
            f"SparseDistributedMemory needs at most 255 data spikes for the rule rank, got "
            f"{data[0]}. Use the rule max."
        )


def _check_rule(rule: str, layers: str) -> None:
    """Raise unless rule and layers are known and go together."""
    if rule not in (*RULES, *TIMED):
        raise InputError(
            f"SparseDistributedMemory needs a rule of {', '.join((*RULES, *TIMED))}, got {rule!r}. "
            "Use one of them."
        )
    if layers not in (ABSTRACT, *KINDS):
        raise InputError(
            f"SparseDistributedMemory needs layers of {', '.join((ABSTRACT, *KINDS))}, got "
            f"{layers!r}. Use one of them."
        )
    if layers == ABSTRACT and rule in TIMED:
        raise UnsupportedError(
            f"SparseDistributedMemory needs spiking layers for the rule {rule}, got {layers!r}. "
            "Use layers='wheel'."
        )
    if layers != ABSTRACT and rule in ("add", "decay", "rank"):
        raise UnsupportedError(
            f"SparseDistributedMemory needs the rule or, max, trace or stdp for layers={layers!r}, "
            f"got {rule!r}. Use one of them, or layers='abstract'."
        )


def trace(times: Any, tau: float) -> Any:
    """The trace that each spike of a burst leaves: ``exp(-(t - t_first) / tau)``.

    Of spikes evenly spaced by ``-tau log(alpha)`` it is ``alpha^rank``.

    Args:
        times: When the spikes come, in order.
        tau: Time constant.

    Returns:
        A weight in (0, 1] for each spike.
    """
    return np.exp(-(times - times[0]) / tau)


def nearest_pair(times: Any, tau: float) -> Any:
    """The weight of each spike for an event at the end of the burst: ``exp(-(t_last - t) / tau)``.

    Spike-timing-dependent plasticity of nearest pairs: later spikes weigh more.

    Args:
        times: When the spikes come, in order.
        tau: Time constant.

    Returns:
        A weight in (0, 1] for each spike.
    """
    return np.exp(-(times[-1] - times) / tau)


def occupancy(pairs: int | float, active: int, spikes: int, locations: int, neurons: int) -> float:
    """Share of the counters that random pairs set: ``1 - (1 - w d / (W D))^Z``.

    Args:
        pairs: Z, stored pairs.
        active: w, locations that an address activates.
        spikes: d, of the data.
        locations: W.
        neurons: D, data neurons.

    Returns:
        A share in [0, 1].

    Example:
        >>> round(occupancy(1000, 16, 11, 4096, 256), 3)
        0.155
    """
    return float(-np.expm1(pairs * np.log1p(-active * spikes / (locations * neurons))))


def expected_recall(
    pairs: int | float,
    active: int,
    spikes: int,
    locations: int,
    neurons: int,
    shared: int | None = None,
) -> float:
    """Probability that a set is recalled exactly.

    (1)  p = 1 - (1 - w d / (W D))^Z, the :func:`occupancy`
    (2)  a stored neuron counts shared + Binomial(w - shared, p) marks, another Binomial(w, p)
    (3)  P = sum over c of P(most of the D - d others = c) P(least of the d stored > c)

    With all locations P = (1 - p^w)^(D - d). A noisy address shares some of the locations; how many
    depends on the decoder (:meth:`SparseDistributedMemory.active_locations`).

    Assumes locations that are used evenly and neurons that are marked independently; measured
    recall is a few points lower (docs/measurements/memory.md).

    Args:
        pairs: Z, stored pairs.
        active: w, locations that an address activates.
        spikes: d, of the data.
        locations: W.
        neurons: D, data neurons.
        shared: How many of the w locations a noisy address activates; None for all.

    Returns:
        A probability.

    Raises:
        RangeError: ``shared`` outside [0, w].

    Example:
        >>> round(expected_recall(4000, 20, 11, 4096, 256), 3)
        0.997
        >>> round(expected_recall(1000, 20, 11, 4096, 256, shared=13), 3)
        0.998
    """
    w, d = active, spikes
    v = w if shared is None else shared
    if not 0 <= v <= w:
        raise RangeError(
            f"expected_recall needs shared in [0, {w}], got {v}. An address shares at most all "
            "active locations."
        )
    p = occupancy(pairs, w, d, locations, neurons)
    most = np.diff(np.cumsum(_binomial(w, p)) ** (neurons - d), prepend=0.0)
    stored = np.concatenate([np.zeros(v), _binomial(w - v, p)])
    least = np.append(np.cumsum(stored[:0:-1])[::-1], 0.0) ** d  # P(all > c)
    return float(most @ least)


def capacity(active: int, spikes: int, locations: int, neurons: int) -> float:
    """Pairs at which one spurious neuron is expected in a recalled set.

    ``ln(1 - p*) / ln(1 - w d / (W D))`` with ``p* = (D - d)^(-1/w)``.

    Args:
        active: w, locations that an address activates.
        spikes: d, of the data.
        locations: W.
        neurons: D, data neurons.

    Returns:
        A number of pairs.

    Example:
        >>> round(capacity(20, 11, 4096, 256))
        6792
    """
    w, d = active, spikes
    return float(np.log1p(-((neurons - d) ** (-1 / w))) / np.log1p(-w * d / (locations * neurons)))


def _binomial(n: int, p: float) -> Any:
    """P(k successes of n), k = 0 .. n."""
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
