"""The module that stands for a product with a weight: a Linear, a convolution.

Every module of a port runs in one of two phases (:class:`isospike.porting.run.Run`):

``float``  its original function, used to discover the model's sites and to calibrate them.
``run``    spikes.

A ``run`` is *stepped* or *collapsed*. Stepped is the specification: at each step only binary spikes
enter the products, and weighted currents add up in the membranes. Collapsed multiplies the integers
that the spike trains spell, once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.codes import PhaseCode
from isospike.kernels.product.int8 import (
    MAX_WEIGHT,
    BytePlanes,
    add_product,
    byte_passes,
    can_pack,
    new_membrane,
    pack_byte,
    pack_grid,
)
from isospike.kernels.product.trains import spike_steps
from isospike.kernels.runtime.buffers import Purpose, cache_blocks
from isospike.kernels.runtime.precision import has_bfloat16, in_float32
from isospike.porting.lowering import Convolution
from isospike.porting.run import Run
from isospike.porting.sites import Gain, Site, tensor_version
from isospike.porting.statistics import Sample
from isospike.porting.synapses import GROUP, Moments, round_weight, wide_channels

# Of a site that has not been given its code yet.
PLACEHOLDER = PhaseCode(1)
# Integers this small leave room for the weights in float32's 24 bits, and are exact in bfloat16;
# larger ones are added up in float64, so that a stepped and a collapsed run still agree.
EXACT_LEVELS = 255
REACH_ROWS = 1024  # of a site's sample, that the largest sums and the mean error are taken of
_OF_PASSES = {1: torch.uint8, 2: torch.int16}  # what a site gives for so many products of bytes
_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


class SpikingProduct(nn.Module):
    """A product with a weight whose input arrives as spikes.

    (1)  y = W x + b ~ gain * (W amplitude) N + (W offset + b + c)

    with N the site's integers, its gain (1 if ranges are static), and c the mean error on the
    calibration inputs. Stepped, ``N = sum_t w[t] (on[t] - off[t])``: each step adds ``w[t]`` times
    a product of binary spikes. Weights of 8 bits meet bytes in whole numbers, stepped and
    collapsed, where the processor is fast at that.

    Attributes:
        name: Path of the module, or name of the call, that it stands for.
        weight: ``[out, in]``, of a convolution ``[out, in / groups, ...]``; once calibrated, W
            amplitude, with a column for each synapse of a channel.
        bias: Once calibrated, the bracket of (1).
        step: Grid of each output's weights, a power of two; 0 where they are not on one.
        share: Steps of each group's quantum, ``[out, groups]``, where weights have few bits;
            empty else. See :mod:`isospike.porting.synapses`.
        twins: Input channels that have a further synapse, as often as they have one.
        weight_bits: Bits of the whole numbers that the weights are.
        site: The neurons at its input, shared with the products that read the same tensor.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    step: Tensor
    share: Tensor
    twins: Tensor

    def __init__(
        self,
        name: str,
        run: Run,
        weight: Tensor,
        bias: Tensor | None,
        conv: Convolution | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.conv = conv
        self.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
        zeros = torch.zeros(len(weight), device=weight.device)
        bias = zeros if bias is None else bias.detach().float().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.site: Site = Site(name, "linear", PLACEHOLDER, ())
        self.register_buffer("step", torch.zeros_like(zeros))
        self.register_buffer("share", zeros.new_empty(len(zeros), 0, dtype=torch.int8))
        self.register_buffer("twins", torch.empty(0, dtype=torch.long, device=weight.device))
        self.weight_bits = 16
        self._kept: dict[str, tuple[object, Any]] = {}

    def make_room(self, bits: int, further: int) -> None:
        """Prepare for weights that are read from a file.

        Args:
            bits: Of a weight.
            further: Columns beyond the input channels.
        """
        self.weight_bits = bits
        shape = list(self.weight.shape)
        shape[1] += further
        # A storage of its own: an output layer may still be tied to the embedding.
        self.weight = nn.Parameter(self.weight.new_empty(shape), requires_grad=False)

    @property
    def quantum(self) -> Tensor:
        """What each weight is a whole multiple of, in the weight's shape."""
        width = self.weight[0].numel()
        each = self.step[:, None]
        if self.share.numel():
            groups = self.share.shape[1]
            length = GROUP if groups > 1 else width
            each = (each * self.share).repeat_interleave(length, 1)[:, :width]
        return each.expand(-1, width).reshape(self.weight.shape)

    @property
    def by_token(self) -> bool:
        """Whether it is a convolution of single positions that keeps channels apart; its input is
        encoded as that of a Linear is, token by token."""
        return self.conv is not None and self.conv.groups > 1 and self.weight[0].numel() == 1

    @property
    def kind(self) -> str:
        return "linear" if self.conv is None or self.by_token else "conv"

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site it reads."""
        return (self.site,)

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1] * (1 if self.conv is None else self.conv.groups)

    @property
    def channels(self) -> tuple[int, ...]:
        """Shape of its site's channels."""
        return (self.in_channels, *[1] * (0 if self.kind == "linear" else self._dims))

    @property
    def _dims(self) -> int:
        return 0 if self.conv is None else self.conv.dims

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        if self.by_token:
            return self._forward(x.movedim(1, -1)).movedim(-1, 1)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.conv is not None and not self.by_token:
            x = self.conv.pad(x)  # padding is an input like any other: it is coded too
        if self.run.phase == "run":
            return self._run(x)
        x = self.run.seen(self.site, x.to(self.weight.dtype))
        return self._product(self.wired(x), self.weight) + self._along(self.bias)

    def _run(self, x: Tensor) -> Tensor:
        run, site = self.run, self.site
        if run.watcher is not None and site.name == self.name:
            run.watcher.on_site(site, self._channels_last(x), fan_out=site.fan_out)
        if run.mode.stepped:
            trains, gain = site.trains(x)
            return self._stepped(self._channels_last(self.wired(trains)), gain)
        if run.mode.fast and has_bfloat16(x.device):
            integers, gain = site.read(x, torch.bfloat16, into=Purpose.LINEAR)
            return self._fast(self.wired(integers), gain)
        if passes := self._byte_passes():
            integers, gain = site.read(x, _OF_PASSES[passes], into=Purpose.LINEAR)
            return self._finish(self._counted(self.wired(integers)), gain)
        dtype = accumulation_dtype(self.weight, site)
        integers, gain = site.read(x, dtype, into=Purpose.LINEAR)
        return self._finish(self._product(self.wired(integers), self.weight.to(dtype)), gain)

    def wired(self, x: Tensor) -> Tensor:
        """Spikes or integers of the site, those of ``twins`` once more for each synapse.

        Args:
            x: They, ``[..., channels]``, of a convolution ``[..., batch, channels, *positions]``.
        """
        if not self.twins.numel():
            return x
        axis = x.dim() - 1 - self._dims
        return torch.cat([x, x.index_select(axis, self.twins)], axis)

    def _finish(self, y: Tensor, gain: Gain | None) -> Tensor:
        """The soma: gain and bias, after the sums."""
        y, bias = y.to(self.weight.dtype), self._along(self.bias)
        if gain is None or gain.octaves:
            return (y if gain is None else gain.times(y)).add_(bias)
        return torch.addcmul(bias, y, gain.factor, out=y)

    def _stepped(self, trains: Tensor, gain: Gain | None) -> Tensor:
        """Step by step: binary spikes enter the product, weighted currents add up in membranes."""
        code = self.site.code
        if self._can_pack():
            flat = trains.flatten(1, -2)
            packed = self._packed()
            y = self.weight.new_zeros(flat.shape[1], len(self.weight))
            for part in cache_blocks(flat[0], 2 * y.numel()):
                two = packed.sums > y.shape[1]
                membrane = new_membrane(packed, len(y[part])) if two else y[part]
                for step in spike_steps(code, flat[:, part]):
                    add_product(membrane, step.spikes, packed, step.weight)
                if two:
                    high, low = membrane.chunk(2, -1)
                    torch.add(high, low, out=y[part])
            return self._finish(y.view(*trains.shape[1:-1], y.shape[-1]), gain)
        weight = self.weight.to(accumulation_dtype(self.weight, self.site))
        y = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for step in spike_steps(code, trains):
            s = step.dense(weight.dtype)
            s = s.movedim(-1, 1) if self.kind == "conv" else s
            y = y + step.weight * self._product(s, weight)
        # Laid out as a collapsed run does it: what follows may round by where values lie.
        return self._finish(y.contiguous(), gain)

    def _byte_passes(self) -> int:
        """Products of bytes that a collapsed run takes; 0 where float32 is to be had sooner."""
        if not self.bytewise or torch.compiler.is_compiling() or not self._can_pack():
            return 0
        return byte_passes(self.site.code.levels * self.site.code.neurons)

    @property
    def bytewise(self) -> bool:
        """Whether the weights of an output are whole multiples of one quantum, in a byte each."""
        return self.weight_bits <= 8 and self.share.shape[1] == 1

    def _packed(self) -> BytePlanes:
        if self.bytewise:
            return self._once("bytes", lambda: pack_byte(self.weight, self.quantum[:, :1]))  # type: ignore[no-any-return]
        return self._once("bytes", lambda: pack_grid(self.weight, self.step[:, None]))  # type: ignore[no-any-return]

    def _counted(self, shown: Tensor) -> Tensor:
        """The product of integers, shown as :meth:`Site.read` does, in whole numbers."""
        code, packed = self.site.code, self._packed()
        low = code.levels if code.neurons == 2 else 0
        flat = shown.flatten(0, -2)
        y = self.weight.new_zeros(len(flat), len(self.weight))
        for part in cache_blocks(flat, y.numel()):
            x = flat[part]
            if x.dtype == torch.uint8:
                add_product(y[part], x, packed, 1.0, low)
                continue
            # x - low = 2 (x // 2 - low // 2) + (x % 2 - low % 2)
            add_product(y[part], (x >> 1).to(torch.uint8), packed, 2.0, low >> 1)
            add_product(y[part], (x & 1).to(torch.uint8), packed, 1.0, low & 1)
        return y.view(*shown.shape[:-1], y.shape[-1])

    def _fast(self, integers: Tensor, gain: Gain | None) -> Tensor:
        weight, bias = self._once(
            "bfloat16", lambda: (self.weight.bfloat16(), self.bias.bfloat16())
        )
        if self.conv is None and weight.device.type == "cpu" and _HAS_ONEDNN:
            # F.linear would first spread the bias over the result, which takes half as long again.
            known = bias if gain is None else None
            y: Tensor = torch.ops.mkldnn._linear_pointwise(integers, weight, known, "none", [], "")
        else:
            y = self._product(integers, weight)
            y = y + self._along(bias) if gain is None else y
        return y if gain is None else gain.times(y) + self._along(bias)

    def fold(
        self, sample: Sample, bits: int = 16, moments: Moments | None = None,
        mean: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Fold the site's offset and amplitude into bias and weight, and round the weights.

        Up to ``EXACT_LEVELS`` levels the weights of each output become whole multiples of a power
        of two: as fine as their bits hold and as keeps every partial sum of the calibration inputs
        below 2^23 of them. Sums are then exact in float32, so the order of addition cannot matter.

        Args:
            sample: What calibration saw of the site.
            bits: Of a weight: 16, 8 or 4.
            moments: Of the site's integers, with its twins; for the rounding to few bits.
            mean: What the product shall give on average, without its bias; what it gives of the
                sample if None.
        """
        site = self.site
        inputs = sample.first_images if self.kind == "conv" else sample.some(REACH_ROWS)
        integers, gain = site.read(inputs.to(self.weight.dtype))
        wanted = self._mean(inputs, self.weight) if mean is None else mean.clone()
        if self.conv is None:
            resting = self.weight @ site.offset.flatten()
        else:
            resting = (self.weight * self._by_input(site.offset)).flatten(1).sum(1)
        self.bias.add_(resting)
        wanted -= resting
        # Out of place: an embedding may share the float weight.
        weight = self._split(self.weight * self._by_input(site.amplitude))
        integers = self.wired(integers)
        exact = site.code.levels <= EXACT_LEVELS
        self.weight_bits = bits
        if exact or bits < 16:
            reach = self._channels_last(self._product(integers.abs(), weight.abs()))
            reach = reach.flatten(0, -2).amax(0) / 2**23 if exact else torch.zeros_like(self.step)
            weight = self._on_grid(weight, reach, moments)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias.add_(
            wanted - self._mean(integers if gain is None else gain.times(integers), weight)
        )

    def _split(self, weight: Tensor) -> Tensor:
        """A weight whose columns share what the synapses of a channel have together."""
        if not self.twins.numel():
            return weight
        places = torch.cat([torch.arange(weight.shape[1], device=weight.device), self.twins])
        each = places.bincount(minlength=weight.shape[1])[places].to(weight.dtype)
        return weight.index_select(1, places) / each.view(-1, *[1] * (weight.dim() - 2))

    def _on_grid(self, weight: Tensor, reach: Tensor, moments: Moments | None) -> Tensor:
        """Rounded; the step of each output is at least ``reach``."""
        flat = weight.flatten(1)
        if self.weight_bits < 16:
            flat, self.step, share = round_weight(flat, reach, self.weight_bits, moments)
            self.share = share.to(torch.int8)
            return flat.view_as(weight)
        finest = flat.abs().amax(1) / MAX_WEIGHT
        self.step = torch.exp2(torch.maximum(reach, finest).clamp_min(1e-30).log2().ceil())
        return (flat / self.step[:, None]).round_().mul_(self.step[:, None]).view_as(weight)

    def _mean(self, x: Tensor, weight: Tensor) -> Tensor:
        """Mean of the products of ``x``: the product of their mean."""
        if self.conv is None:
            return weight @ x.mean(0)
        y = self._channels_last(self._product(x.mean(0, keepdim=True), weight))
        return y.flatten(0, -2).mean(0)

    def _by_input(self, x: Tensor) -> Tensor:
        """A value of each input channel, to multiply the weights with."""
        if self.conv is None or self.conv.groups == 1:
            return x
        each = len(self.weight) // self.conv.groups
        grouped = x.view(self.conv.groups, 1, -1).expand(-1, each, -1)
        return grouped.flatten(0, 1).view(*self.weight.shape[:2], *[1] * self.conv.dims)

    def by_column(self, x: Tensor) -> Tensor:
        """A value of each input channel, for each column of the weights.

        Args:
            x: In the shape of the site's channels.
        """
        return torch.cat([x, x[self.twins]]) if self.twins.numel() else self._by_input(x)

    @property
    def by_input(self) -> Tensor:
        """The weights of each input channel, ``[in, ...]``."""
        if self.conv is None or self.conv.groups == 1:
            return self.weight.transpose(0, 1).flatten(1)
        grouped = self.weight.view(self.conv.groups, -1, *self.weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1).flatten(1)

    def _can_pack(self) -> bool:
        planes = 1 if self.bytewise else 2
        return self.conv is None and can_pack(self.weight, planes) and bool((self.step > 0).all())

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        """``make()``, kept until the weight or the bias is another."""
        key = [
            (tensor_version(p), p.data_ptr(), p.device, p.dtype) for p in (self.weight, self.bias)
        ]
        if what not in self._kept or self._kept[what][0] != key:
            self._kept[what] = key, make()
        return self._kept[what][1]

    def forget(self) -> None:
        """Keep the weight in no other form; it is made anew when it is asked for."""
        self._kept.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.conv is None:
            return F.linear(x, weight)
        if not self.by_token:
            return self.conv.apply(x, weight)
        rows = x.reshape(1, -1, x.shape[-1]).mT
        y = F.conv1d(rows, weight.flatten(1)[:, :, None], groups=self.conv.groups)
        return y.mT.reshape(*x.shape[:-1], len(weight)).contiguous()

    def _along(self, bias: Tensor) -> Tensor:
        return bias.view(-1, *[1] * self._dims) if self.kind == "conv" else bias

    def _channels_last(self, x: Tensor) -> Tensor:
        return x.movedim(-1 - self._dims, -1) if self.kind == "conv" else x

    @property
    def fan_out(self) -> float:
        """Additions that one input spike causes; for a convolution, away from the border."""
        if self.conv is None:
            return float(self.weight.shape[0])
        kernel, stride = math.prod(self.weight.shape[2:]), math.prod(self.conv.stride)
        return float(self.weight.shape[0] * kernel / (stride * self.conv.groups))


def wire(readers: Sequence[SpikingProduct], size: Tensor) -> None:
    """Give the products of a site that have weights of few bits their synapses.

    Args:
        readers: They.
        size: Of each input channel's weights, ``[inputs]``.
    """
    if any(p.conv is not None and p.conv.groups > 1 for p in readers):
        return
    twins = wide_channels(size * readers[0].site.amplitude.flatten())
    for product in readers:
        product.twins = twins


def moments_of(reader: SpikingProduct, sample: Sample) -> Moments | None:
    """What the products of a site, with their synapses, are rounded by; None before a convolution.

    Args:
        reader: One of them.
        sample: What was seen of the site.
    """
    if reader.conv is not None:
        return None
    integers, gain = reader.site.read(sample.rows.to(reader.weight.dtype))
    return Moments(reader.wired(integers if gain is None else gain.times(integers)))


def accumulation_dtype(weight: Tensor, *sites: Site) -> torch.dtype:
    """Type in which sums of the sites' integers are exact, or nearly so."""
    small = all(site.code.levels <= EXACT_LEVELS for site in sites)
    return weight.dtype if small else torch.float64
