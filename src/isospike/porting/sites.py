"""A site: the population of neurons at the input of one or more matrix products."""

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isospike.circuits.octaves import LOWEST, count_octaves, shift_octaves
from isospike.codes import BernoulliCode, WeightedCode
from isospike.codes.law import shortest_code
from isospike.kernels.product.trains import MAX_TABLE_STEPS, pack_trains
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace
from isospike.porting.ranges import Range, fit_range

SHARES = 32  # of a value's gain: gain = SHARES / share, with a whole share
MOST_SHARES = 255
VALUE_LOWEST, VALUE_HIGHEST = -2, 5  # exponents of a value's gain that is a power of two
MARGIN = 1.25  # of a gain's limit over the largest one on the calibration inputs
HEADS = ("query", "key", "value")  # kinds of sites with a range for each head
OPERANDS = ("left", "right")  # kinds of sites with one range for all channels


class Reading(NamedTuple):
    """What a site made of its input.

    Attributes:
        value: The integers, or their spike trains in bytes.
        gain: Of each token and group, broadcastable to ``value``; None if ranges are static.
    """

    value: Tensor
    gain: "Gain | None"


class Gain(NamedTuple):
    """One factor for each token and group.

    Attributes:
        factor: It; with functions on spikes, the octaves of :mod:`isospike.circuits.octaves`.
        octaves: Whether it is a power of two, given by its octaves.
        stepped: Whether it was found, and multiplies, octave by octave.
    """

    factor: Tensor
    octaves: bool = False
    stepped: bool = False

    def times(self, y: Tensor) -> Tensor:
        """``y`` times the gain."""
        if self.octaves:
            return shift_octaves(y, self.factor, stepped=self.stepped)
        return y * self.factor.to(y.dtype)

    def log(self) -> Tensor:
        """Its natural logarithm."""
        if self.octaves:
            return (self.factor + LOWEST) * math.log(2)
        return self.factor.log()

    def parts(self) -> Tensor:
        """The whole number that ``SHARES`` over the gain is."""
        if self.octaves:
            whole = torch.full_like(self.factor, SHARES)
            return shift_octaves(whole, self.factor, up=False, stepped=self.stepped)
        return (SHARES / self.factor).round_()

    def along_keys(self, groups: int) -> "Gain":
        """The gain of each key, for a group of heads, ``[batch, heads, 1, keys]``."""
        factor = self.factor.repeat_interleave(groups, 1) if groups > 1 else self.factor
        return self._replace(factor=factor.transpose(-1, -2))


class Site(nn.Module):
    """Turns real values into the spikes that enter a matrix product.

    (1)  u = (x - offset) / scale, saturating at the ends of the code's range
    (2)  N = code.integers(u), the integer that the spike train carries
    (3)  x ~ offset + amplitude * N, with amplitude = scale / levels

    ``offset`` is a constant current folded into the bias that follows, ``amplitude`` a gain folded
    into the weights, so that only the spikes themselves enter the product.

    With *dynamic* ranges every token (every head of it, in attention; every image before a
    convolution) has a gain,

    (4)  gain = max_c |x_c - offset_c| / scale_c,  u = (x - offset) / (scale * gain)
    (5)  x ~ offset + gain * amplitude * N

    which multiplies the sum over channels once, after the product. The gain of a value stands
    inside the sum over keys, where it has to be exact: it is ``SHARES`` over a whole number. With
    functions on spikes every gain is a power of two.

    Attributes:
        name: See :class:`isospike.porting.report.SiteReport`.
        kind: likewise.
        code: Its code.
        dynamic: Whether its ranges follow the input.
        octaves: Whether its gains are powers of two.
        offset, scale: Per channel, shaped to broadcast against ``x``.
        limit: Gain above which a token counts as outside: ``MARGIN`` times the largest one on the
            calibration inputs.
        outside: How many values were out of range (tokens whose gain is above ``limit``, with
            dynamic ranges), and how many there were, ``[2]``, since :meth:`forget_outside`.
        usual_outside: Share of them on the held-out inputs.
        fitted: Whether the range has been set.
        fan_out: Additions that one spike causes, over all products that read this site.
        shared: Whether several products read it; its last result is then kept for them.
        wanted: The coarsest amplitude of each channel, if it was given one; its code then is the
            longest it may have, until the range is fitted.
        generator: Source of randomness of the Bernoulli code; torch's global one if None.
    """

    offset: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, name: str, kind: str, code: WeightedCode, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.code = code
        self.dynamic = False
        self.octaves = False
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        groups = (*channels[:-1], 1) if kind in HEADS and channels else ()
        self.register_buffer("limit", torch.full(groups, torch.finfo(torch.float32).max))
        self.outside = torch.zeros(2, dtype=torch.float64)
        self.usual_outside = 0.0
        self.fitted = False
        self.fan_out = 0.0
        self.shared = False
        self.wanted: Tensor | None = None
        self.generator: torch.Generator | None = None
        self._last: tuple[Any, Any, Reading] | None = None

    @property
    def amplitude(self) -> Tensor:
        """Value of the integer 1, per channel, at gain 1."""
        return self.scale / self.code.levels

    @property
    def gain_axes(self) -> tuple[int, ...]:
        """Axes that share a gain."""
        return tuple(range(-self.offset.dim(), 0)) if self.kind == "conv" else (-1,)

    def fit(self, rows: Tensor) -> None:
        """Set a static range from a sample ``[rows, channels]``."""
        self._take(fit_range(rows.flatten(1), self.code))
        self.coarsen()

    def follow(self, found: Range, extremes: Tensor) -> None:
        """Have a gain for each token from now on.

        Args:
            found: Offsets and scales at gain 1.
            extremes: Values of the calibration inputs that set ``limit``, ``[rows, *channels]``.
        """
        self._take(found)
        self.dynamic = True
        gains = ((extremes - found.offset).abs() / found.scale).amax(0)
        self.limit = MARGIN * gains.amax(-1).reshape(self.limit.shape)

    def _take(self, found: Range) -> None:
        self.to(found.offset.device)
        self.offset = found.offset.reshape(self.offset.shape)
        self.scale = found.scale.reshape(self.scale.shape)
        self.fitted = True

    def coarsen(self) -> None:
        """Give every channel its wanted amplitude, and the site no more steps than they need."""
        if self.wanted is None:
            return
        span = self.scale
        # Nothing is left of a channel at twice its range; a row of attention keeps its largest.
        coarsest = span if self.kind == "probability" else 4 * span
        amplitude = torch.minimum(self.wanted.to(span), coarsest)
        amplitude = torch.maximum(amplitude, span / self.code.levels)
        self.code = shortest_code(self.code, span, amplitude)
        self.scale, self.wanted = amplitude * self.code.levels, None

    def read(
        self,
        x: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        into: Purpose | None = None,
    ) -> Reading:
        """(2), the collapsed form of the spike train, and (4).

        Args:
            x: Values, channels where ``offset`` has them.
            dtype: Of the integers; bfloat16 holds up to 8 bits and a sign. float64 stays float64.
                In int16 and uint8, which products of bytes read, the lowest integer of the code is
                shown as 0.
            into: The workspace for integers that are used at once; by default they have memory of
                their own.
        """
        into = None if self.shared else into
        return self._once(x, dtype, lambda: self._integers(x, dtype, into))

    def trains(self, x: Tensor) -> Reading:
        """The spike trains in bytes: :func:`isospike.kernels.product.trains.pack_trains`."""
        wide = self.offset.dtype

        def pack() -> Reading:
            # A long train stays integers; those that other readers will ask for are kept.
            kept = self.shared and self.code.steps > MAX_TABLE_STEPS
            into = None if kept else Purpose.TRAINS
            integers, gain = self._integers(x, wide, into, stepped=True)
            return Reading(pack_trains(self.code, integers), gain)

        return self._once(x, "trains", pack)

    def decode(self, reading: Reading) -> Tensor:
        """(3) or (5): the values that integers stand for."""
        value = reading.value if reading.gain is None else reading.gain.times(reading.value)
        return torch.addcmul(self.offset, value, self.amplitude)

    @property
    def share_outside(self) -> float:
        """``outside`` as a share."""
        beyond, seen = self.outside.tolist()
        return beyond / seen if seen else 0.0

    def forget_outside(self) -> None:
        """Count the values outside the range from 0 again."""
        self.outside = torch.zeros(2, dtype=torch.float64)

    def _once(self, x: Tensor, what: object, compute: Callable[[], Reading]) -> Reading:
        """``compute()``, kept for the other readers of a shared site while ``x`` is alive."""
        if not self.shared:
            return compute()
        key, last = (tensor_version(x), what), self._last
        if last is not None and last[0]() is x and last[1] == key:
            return last[2]
        result = compute()
        self._last = (weakref.ref(x, lambda _: self._forget()), key, result)
        return result

    def _integers(
        self, x: Tensor, dtype: torch.dtype, into: Purpose | None, stepped: bool = False
    ) -> Reading:
        code, x = self.code, x.detach()
        wide = self.offset.dtype
        dtype = wide if wide == torch.float64 else dtype
        if isinstance(code, BernoulliCode):
            u = ((x - self.offset) / self.scale).clamp_(code.low, 1.0)
            drawn = code.integers(u, generator=self.generator)
            return Reading(self._shown(drawn, dtype), None)
        memory = functools.partial(workspace, device=x.device)
        n = memory(into, x.shape, dtype) if into else x.new_empty(x.shape, dtype=dtype)
        gains, out, seen = [], x.new_zeros(()), 0
        for part in cache_blocks(x, x.numel()):
            value = x[part]
            block = n[part] if dtype == wide else memory(Purpose.ROUNDED, value.shape, wide)
            if x.dtype != wide:
                value = block.copy_(value)
            if self.dynamic:
                gain, beyond = self._follow(value, block, stepped)
                gains.append(gain)
                seen += gain.numel()
            else:
                beyond = self._saturate(value, block)
                seen += block.numel()
            out = out + beyond
            if dtype != wide:
                n[part] = self._shown(block, dtype)
        passed = torch.stack([out.double(), out.new_full((), seen, dtype=torch.float64)])
        if not torch.compiler.is_compiling():  # an exported program keeps no count
            self.outside = self.outside.to(x.device) + passed
        if not self.dynamic:
            return Reading(n, None)
        if not gains:  # no rows: a router sent none here
            gains = [self._none(x)]
        factor = torch.cat(gains) if len(gains) != 1 else gains[0]
        return Reading(n, Gain(factor, self.octaves, stepped))

    def _shown(self, integers: Tensor, dtype: torch.dtype) -> Tensor:
        """Integers, which are written over, as :meth:`read` gives them."""
        if not dtype.is_floating_point and self.code.neurons == 2:
            integers.add_(self.code.levels)
        return integers.to(dtype)

    def _saturate(self, value: Tensor, block: Tensor) -> Tensor:
        """floor(u * levels + 1/2) into ``block``, with the affine map folded in; those cut off."""
        code = self.code
        factor = code.levels / self.scale
        shift = 0.5 - self.offset * factor
        top = _representable(code.levels, block.dtype)
        if factor.dim():
            torch.addcmul(shift, value, factor, out=block)
        else:  # several times faster with scalars
            torch.mul(value, factor, out=block).add_(shift)
        block.floor_()
        beyond = block.new_zeros(())
        if self.kind != "probability" and self._any_beyond(block, code.low * top, top):
            count = torch.count_nonzero
            beyond = count(block > top) + count(block < code.low * top)
        block.clamp_(code.low * top, top)
        return beyond

    @staticmethod
    def _any_beyond(block: Tensor, low: float, high: float) -> bool:
        """Whether to count: on a CPU a look at the extremes is faster, and mostly enough."""
        if block.device.type != "cpu" or torch.compiler.is_compiling() or not block.numel():
            return True
        least, largest = torch.aminmax(block)
        return not (float(least) >= low and float(largest) <= high)

    def _follow(self, value: Tensor, block: Tensor, stepped: bool) -> tuple[Tensor, Tensor]:
        """(4) and the integers into ``block``; the gains, and how many are above the limit."""
        levels = self.code.levels
        inverse = 1 / self.scale
        if self.octaves:  # rounded twice, as every machine can
            torch.mul(value, inverse, out=block).sub_(self.offset * inverse)
            return self._follow_octaves(block, stepped)
        torch.addcmul(-self.offset * inverse, value, inverse, out=block)
        # Several times faster than a norm of order infinity.
        gain = block.amax(self.gain_axes, keepdim=True)
        gain = torch.maximum(gain, block.amin(self.gain_axes, keepdim=True).neg_())
        beyond = torch.count_nonzero(gain > self.limit)
        gain.clamp_min_(1e-30)
        if self.kind == "value":
            gain = SHARES / (SHARES / gain).floor_().clamp_(1, MOST_SHARES)
        block.mul_(levels / gain).round_()
        if self.kind == "value" or levels >= 2**20:
            top = _representable(levels, block.dtype)
            block.clamp_(-top, top)
        return gain, beyond

    def _follow_octaves(self, block: Tensor, stepped: bool) -> tuple[Tensor, Tensor]:
        """The same with gains that are powers of two, as their octaves."""
        count = count_octaves(block, self.gain_axes, stepped=stepped)
        beyond = (count + LOWEST - 1 > self.limit.log2()).sum()
        if self.kind == "value":  # 1 to MOST_SHARES parts
            count = count.clamp(VALUE_LOWEST - LOWEST, VALUE_HIGHEST - LOWEST)
        top = _representable(self.code.levels, block.dtype)
        block.copy_(shift_octaves(block.mul_(top), count, up=False, stepped=stepped))
        block.round_().clamp_(-top, top)
        return count, beyond

    def _none(self, x: Tensor) -> Tensor:
        """The gains of no tokens."""
        axes = [axis % x.dim() for axis in self.gain_axes]
        return x.new_ones([1 if d in axes else n for d, n in enumerate(x.shape)])

    def _forget(self) -> None:
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def extra_repr(self) -> str:
        return f"{self.name}, {self.kind}, {self.code}"


class Readings:
    """Tells what a site reads anew from what several products that share it read."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    def is_new(self, site: Site, x: Tensor) -> bool:
        """Whether the last reader of the site read another tensor, or other values in it."""
        last, version = self._last.get(site.name), tensor_version(x)
        if last is not None and last[0]() is x and last[1] == version:
            return False
        self._last[site.name] = weakref.ref(x), version
        return True


def tensor_version(x: Tensor) -> int:
    """How often ``x`` was written to in place; the same tensor may hold other values later."""
    return 0 if x.is_inference() else x._version


def _representable(levels: int, dtype: torch.dtype) -> float:
    """The largest whole number of ``dtype`` up to ``levels``: 2^25 - 1 rounds up in float32."""
    if levels < 2**24:
        return float(levels)
    top = torch.tensor(levels, dtype=torch.float64).to(dtype)
    return float(top if int(top) <= levels else torch.nextafter(top, torch.zeros_like(top)))
