"""The modules that multiply two activations between spikes."""

import torch
from torch import Tensor, nn

from isospike.kernels.product.trains import spike_steps
from isospike.kernels.runtime.precision import in_float32
from isospike.porting.product import PLACEHOLDER
from isospike.porting.ranges import Range
from isospike.porting.run import Run
from isospike.porting.sites import Gain, Site
from isospike.porting.statistics import Statistics

EXACT_SUM = 2**24  # sums of whole numbers up to here are exact in float32


class _TwoSites(nn.Module):
    """A module with a site at each of its two operands."""

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name, self.run = name, run
        self.left = Site(f"{name}:left", "left", PLACEHOLDER, ())
        self.right = Site(f"{name}:right", "right", PLACEHOLDER, ())

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its two sites."""
        return self.left, self.right


class SpikingMatmul(_TwoSites):
    """``a b`` of two activations.

    The right operand is *stored*: as its spikes arrive they are counted, with the step's weight,
    into the integers N_b, which then act as synaptic weights. The left operand *addresses* that
    store step by step with binary spikes:

    (1)  y[m, n] = amplitude * g_a[m] * g_b[n] * (sum_t w[t] s_a[m, t]) . N_b[:, n]

    with one gain for each row of a, and for each column of b. Where the tokens are summed over, as
    they are behind attention weights, the right operand has a gain for each summed entry k in place
    of one for each column, which the left operand takes over before it is encoded:

    (2)  y[m, n] = amplitude * g_a[m] * sum_k N_a[m, k] N_b[k, n],  N_a encodes a[m, k] g_b[k]

    so a token's output does not depend on tokens whose weight is zero. All sums are of whole
    numbers. Static ranges have offsets o in place of gains, whose terms are sums of spikes:

    (3)  a b = (o_a + A N_a) (o_b + B N_b)

    Attributes:
        name: Of the call it stands for.
        keyed: Whether (2) holds.
    """

    def __init__(self, name: str, run: Run, keyed: bool) -> None:
        super().__init__(name, run)
        self.keyed = keyed

    @in_float32
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The product.

        Args:
            a: ``[..., m, k]``.
            b: ``[..., k, n]``.

        Returns:
            ``[..., m, n]``.
        """
        b = b if self.keyed else b.transpose(-1, -2)  # what shares a gain comes last
        if self.run.phase == "run":
            return self._run(a, b)
        a, b = self.run.seen(self.left, a), self.run.seen(self.right, b)
        return a @ (b if self.keyed else b.transpose(-1, -2))

    def calibrate(self, statistics: Statistics, dynamic: bool) -> None:
        """Set the ranges; the codes are known.

        Args:
            statistics: Of the float model.
            dynamic: Whether ranges follow the input; they then need no sample.
        """
        for site in self.sites:
            _fit(site, statistics, dynamic)
        if dynamic and self.keyed and self.right.name in statistics.samples:
            largest = statistics.sample(self.right.name).extremes.abs().max()
            self.left.limit = self.left.limit * largest

    def _run(self, a: Tensor, b: Tensor) -> Tensor:
        watcher = self.run.watcher
        stored, gain_b = _stored(self.right, b, self.run.mode.stepped)
        if gain_b is not None:
            gain_b = gain_b._replace(factor=gain_b.factor.transpose(-1, -2))
        if not self.keyed:
            stored = stored.transpose(-1, -2)
        elif gain_b is not None:
            a = gain_b.times(a)
        if watcher is not None:
            watcher.on_site(self.left, a, fan_out=float(stored.shape[-1]))
            watcher.on_site(self.right, b, fan_out=1.0, macs=False)
        stored = stored.to(self._dtype(a))
        static = gain_b is None
        if static:  # one more column counts the left operand's spikes
            stored = torch.cat([stored, stored.new_ones(*stored.shape[:-1], 1)], -1)
        y, gain_a = self._address(a, stored)
        y = y.to(a.dtype)
        if static:
            y = self._with_offsets(y, stored)
        else:
            y = y * (self.left.amplitude * self.right.amplitude)
        if gain_a is not None:
            y = gain_a.times(y)
        return y if gain_b is None or self.keyed else gain_b.times(y)

    def _with_offsets(self, y: Tensor, stored: Tensor) -> Tensor:
        """(3), of sums with one column more."""
        a, b = self.left, self.right
        y, total = y[..., :-1], y[..., -1:]
        counted = stored[..., :-1].sum(-2, keepdim=True).to(y.dtype)
        return (
            y * (a.amplitude * b.amplitude)
            + total * (a.amplitude * b.offset)
            + counted * (a.offset * b.amplitude)
            + stored.shape[-2] * a.offset * b.offset
        )

    def _dtype(self, a: Tensor) -> torch.dtype:
        """Type in which the sums are exact: entries whose size adds up to so many largest ones have
        integers of at most so many times the levels."""
        size = (a - self.left.offset).abs()
        top = size.amax(-1) if self.left.dynamic else self.left.scale
        many = (EXACT_SUM / self.right.code.levels - a.shape[-1]) / self.left.code.levels
        exact = bool((size.sum(-1) < many * top.clamp_min(1e-30)).all())
        return self.left.offset.dtype if exact and many > 0 else torch.float64

    def _address(self, a: Tensor, stored: Tensor) -> tuple[Tensor, Gain | None]:
        """``N_a stored``, and the gain of a."""
        site = self.left
        if not self.run.mode.stepped:
            integers, gain = site.read(a, stored.dtype)
            return integers @ stored, gain
        trains, gain = site.trains(a)
        y: Tensor | float = 0.0
        for step in spike_steps(site.code, trains):
            y = y + step.weight * (step.dense(stored.dtype) @ stored)
        return y, gain  # type: ignore[return-value]


class SpikingScale(_TwoSites):
    """``a b`` of two activations, entry by entry: a weight of each expert's output, say.

    The right operand is stored, as in :class:`SpikingMatmul`; a spike of the left one adds the
    entry that it meets:

    (1)  y[c] = amplitude * g_a * g_b * sum_t w[t] s_a[c, t] N_b[c]

    with a gain for each token of an operand, or one static range where a token has a single value.

    Attributes:
        name: Of the call it stands for.
        single: Which operands have a single value a token, ``left`` and ``right``.
    """

    def __init__(self, name: str, run: Run, single: tuple[str, ...]) -> None:
        super().__init__(name, run)
        self.single = tuple(single)

    @in_float32
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The product.

        Args:
            a: Any shape, channels last.
            b: Likewise; the two are broadcast.
        """
        if self.run.phase != "run":
            return self.run.seen(self.left, a) * self.run.seen(self.right, b)
        left, right = self.sites
        stored, gain_b = _stored(right, b, self.run.mode.stepped)
        if (watcher := self.run.watcher) is not None:
            wide = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
            watcher.on_site(left, a, fan_out=wide.numel() / a.numel(), macs=True)
            watcher.on_site(right, b, fan_out=1.0, macs=False)
        small = left.code.levels * right.code.levels < EXACT_SUM
        y, n, gain_a = self._address(a, stored.to(left.offset.dtype if small else torch.float64))
        y = y.to(left.offset.dtype) * (left.amplitude * right.amplitude)
        if not left.dynamic or not right.dynamic:
            y = y + n * (left.amplitude * right.offset) + stored * (left.offset * right.amplitude)
            y = y + left.offset * right.offset
        for gain in (gain_a, gain_b):
            y = y if gain is None else gain.times(y)
        return y

    def _address(self, a: Tensor, stored: Tensor) -> tuple[Tensor, Tensor, Gain | None]:
        """``N_a stored``, N_a, and the gain of a."""
        site = self.left
        if not self.run.mode.stepped:
            n, gain = site.read(a, site.offset.dtype)
            return n * stored, n, gain
        trains, gain = site.trains(a)
        y, n = torch.zeros_like(stored), a.new_zeros((), dtype=site.offset.dtype)
        for step in spike_steps(site.code, trains):
            s = step.dense(n.dtype)
            n, y = n + step.weight * s, y + step.weight * (s * stored)
        return y, n, gain

    def calibrate(self, statistics: Statistics, dynamic: bool) -> None:
        """Set the ranges; the codes are known.

        Args:
            statistics: Of the float model.
            dynamic: Whether ranges follow the input.
        """
        for site in self.sites:
            follows = site.kind not in self.single or site.name not in statistics.samples
            _fit(site, statistics, dynamic and follows)


def _fit(site: Site, statistics: Statistics, dynamic: bool) -> None:
    """Set the range of an operand."""
    if not dynamic:
        site.fit(statistics.sample(site.name).with_extremes)
        return
    one = torch.ones((), device=site.offset.device)
    largest = torch.full((2, 1), torch.inf)
    if site.name in statistics.samples:
        largest = statistics.sample(site.name).extremes
    site.follow(Range(0 * one, one), largest.nan_to_num(posinf=1e30))


def _stored(site: Site, x: Tensor, stepped: bool) -> tuple[Tensor, Gain | None]:
    """The integers of an operand, counted spike by spike where the run is stepped; its gain."""
    if not stepped:
        return site.read(x, site.offset.dtype)
    trains, gain = site.trains(x)
    n = x.new_zeros(trains.shape[1:], dtype=site.offset.dtype)
    for step in spike_steps(site.code, trains):
        n.add_(step.dense(n.dtype), alpha=step.weight)
    return n, gain
