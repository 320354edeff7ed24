"""The module that replaces a product with a weight: Linear, Conv1D, Conv2d.

Every module of a port runs in one of three phases (:class:`isospike.porting.run.Run`):

``float``      its original function, used to discover the model's sites.
``calibrate``  the batch holds the float stream in its first half and the spiking stream in its
               second. The module runs both, sets its range from the spiking stream, and moves its
               bias by the mean difference of the two outputs: one pass calibrates a whole model in
               sequence.
``run``        spikes.

A ``run`` is *stepped* or *collapsed*. Stepped is the specification: at each step only binary spikes
enter the products, and weighted currents add up in the membranes. Collapsed multiplies the integers
that the spike trains spell, once.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.codes import PhaseCode
from isospike.hf.batches import fitting, packed, unpacked
from isospike.kernels.product.int8 import (
    MAX_WEIGHT,
    BytePlanes,
    add_product,
    can_pack,
    new_membrane,
    pack_grid,
)
from isospike.kernels.product.trains import pair_weights, spike_steps
from isospike.kernels.runtime.buffers import Purpose, cache_blocks
from isospike.kernels.runtime.precision import in_float32
from isospike.porting.functions import Reencoder
from isospike.porting.run import Run, join
from isospike.porting.sites import Site, tensor_version

# Of a site that has not been given its code yet.
PLACEHOLDER = PhaseCode(1)
# Integers this small leave room for the weights in float32's 24 bits, and are exact in bfloat16;
# larger ones are added up in float64, so that a stepped and a collapsed run still agree.
EXACT_LEVELS = 255
# oneDNN has a bfloat16 product only on processors with AVX-512 or the like.
_HAS_ONEDNN = (
    hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


class SpikingProduct(Reencoder):
    """A Linear, Conv1D or Conv2d whose input arrives as spikes.

    (1)  y = W x + b ~ (W amplitude) N + (W offset + b + c)

    with N the site's integers and c the mean error found in calibration. Stepped,
    ``N = sum_t w[t] (on[t] - off[t])``: each step adds ``w[t]`` times a product of binary spikes.

    Attributes:
        name: Path of the module it replaces.
        weight: ``[out, in]`` or ``[out, in, height, width]``; once calibrated, W amplitude.
        bias: Once calibrated, the bracket of (1).
        step: Grid of each output's weights, a power of two; 0 where they are not on one.
        site: The neurons at its input, shared with the products that read the same tensor.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    step: Tensor

    def __init__(
        self, name: str, run: Run, weight: Tensor, bias: Tensor | None, conv: dict[str, Any] | None
    ) -> None:
        super().__init__(name, run)
        self.conv = conv
        self.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
        zeros = torch.zeros(len(weight), device=weight.device)
        bias = zeros if bias is None else bias.detach().float().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.site: Site = Site(name, "linear", PLACEHOLDER, ())
        self.register_buffer("step", torch.zeros_like(zeros))
        self._kept: dict[str, tuple[object, Any]] = {}

    @property
    def kind(self) -> str:
        return "linear" if self.conv is None else "conv"

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site it reads."""
        return (self.site,)

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1]

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        return self.reencoded(self._forward(x))

    def _forward(self, x: Tensor) -> Tensor:
        if self.conv is not None and any(self.conv["padding"]):
            ph, pw = self.conv["padding"]
            x = F.pad(x, (pw, pw, ph, ph))  # padding is an input like any other: it is coded too
        if self.run.phase == "run":
            return self._run(x)
        x = x.to(self.weight.dtype)
        if self.run.phase == "float":
            x = self.run.seen(self.site, x)
            return self._product(x, self.weight) + self._along(self.bias)
        return self._calibrate(x)

    def _run(self, x: Tensor) -> Tensor:
        run, site = self.run, self.site
        if run.watcher is not None and site.name == self.name:
            run.watcher.on_site(site, self._channels_last(x), fan_out=site.fan_out)
        if run.mode.stepped:
            return self._stepped(self._channels_last(site.words(x)))
        if run.mode.fast:
            return self._fast(site.integers(x, torch.bfloat16, into=Purpose.LINEAR))
        dtype = accumulation_dtype(self.weight, site)
        integers = site.integers(x, dtype, into=Purpose.LINEAR)
        y = self._product(integers, self.weight.to(dtype)).to(self.weight.dtype)
        return y.add_(self._along(self.bias))

    def _stepped(self, words: Tensor) -> Tensor:
        """Step by step: binary spikes enter the product, weighted currents add up in membranes."""
        code = self.site.code
        if self._can_pack():
            flat = words.reshape(-1, words.shape[-1])
            packed: BytePlanes = self._once(
                "bytes", lambda: pack_grid(self.weight, self.step[:, None], code.neurons)
            )
            y = self.weight.new_empty(len(flat), len(self.weight))
            for part in cache_blocks(flat, 2 * y.numel()):
                membrane = new_membrane(packed, len(y[part]))
                for weight, spikes in spike_steps(code, flat[part]):
                    add_product(membrane, spikes, packed, weight)
                high, low = membrane.chunk(2, -1)
                torch.add(high, low, out=y[part]).add_(self.bias)
            return y.view(*words.shape[:-1], -1)
        both = pair_weights(
            self.weight.to(accumulation_dtype(self.weight, self.site)), code.neurons, 1
        )
        y = torch.zeros((), dtype=both.dtype, device=both.device)
        for weight, spikes in spike_steps(code, words):
            s = spikes.to(both.dtype)
            y = y + weight * self._product(s if self.conv is None else s.movedim(-1, 1), both)
        return y.to(self.weight.dtype).add_(self._along(self.bias))

    def _fast(self, integers: Tensor) -> Tensor:
        weight, bias = self._once(
            "bfloat16", lambda: (self.weight.bfloat16(), self.bias.bfloat16())
        )
        if self.conv is None and weight.device.type == "cpu" and _HAS_ONEDNN:
            # F.linear would first spread the bias over the result, which takes half as long again.
            y: Tensor = torch.ops.mkldnn._linear_pointwise(integers, weight, bias, "none", [], "")
            return y
        return self._product(integers, weight) + self._along(bias)

    def _calibrate(self, x: Tensor) -> Tensor:
        """Set range, weights and bias. Padding is not multiplied: it comes out as zeros."""
        run = self.run
        x_float, x_spiking = run.split(x)
        mask = fitting(run.token_mask, x_spiking) if self.conv is None else None
        target = self._target(None if x_float is None else packed(x_float, mask))
        if not self.site.fitted:
            self.site.fit(run.rows(self._channels_last(x_spiking)))
        integers = packed(self.site.integers(x_spiking), mask)
        self._fold(integers)
        y = self._product(integers, self.weight).add_(self._along(self.bias))
        error = run.rows(self._channels_last(target - y)).mean(0)
        self.bias.add_(error)
        y = unpacked(y + self._along(error), mask)
        return join(None if x_float is None else unpacked(target, mask), y)

    def _target(self, x: Tensor | None) -> Tensor:
        """The float result, computed from ``x`` or kept from an earlier pass."""
        targets = self.run.targets
        if x is not None:
            target = self._product(x, self.weight) + self._along(self.bias)
            if targets is not None:
                targets.keep(self.name, target)
            return target
        if targets is None:
            raise RuntimeError(f"the float stream did not pass {self.name}")
        return targets.of(self.name)

    def _fold(self, integers: Tensor) -> None:
        """Fold the site's offset and amplitude into bias and weight, and round the weights.

        Up to ``EXACT_LEVELS`` levels the weights of each output become whole multiples of a power
        of two: as fine as 16 bits hold and as keeps every partial sum of the calibration inputs
        below 2^23 of them. Sums are then exact in float32, so the order of addition cannot matter.
        """
        offset, amplitude = self.site.offset, self.site.amplitude
        kernel_sum = self.weight if self.conv is None else self.weight.sum((2, 3))
        self.bias.add_(kernel_sum @ offset.flatten())
        weight = self.weight * amplitude  # out of place: an embedding may share the float weight
        if self.site.code.levels <= EXACT_LEVELS:
            reach = self._channels_last(self._product(integers.abs(), weight.abs()))
            reach = self.run.rows(reach).amax(0) / 2**23
            finest = weight.abs().flatten(1).amax(1) / MAX_WEIGHT
            self.step = torch.exp2(torch.maximum(reach, finest).clamp_min(1e-30).log2().ceil())
            step = self.step.view(-1, *[1] * (weight.dim() - 1))
            weight = (weight / step).round() * step
        self.weight = nn.Parameter(weight, requires_grad=False)

    def _can_pack(self) -> bool:
        return self.conv is None and can_pack(self.weight) and bool((self.step > 0).all())

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        """``make()``, kept until the weight or the bias is another."""
        key = [
            (tensor_version(p), p.data_ptr(), p.device, p.dtype) for p in (self.weight, self.bias)
        ]
        if what not in self._kept or self._kept[what][0] != key:
            self._kept[what] = key, make()
        return self._kept[what][1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.conv is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, stride=self.conv["stride"], dilation=self.conv["dilation"])

    def _along(self, bias: Tensor) -> Tensor:
        return bias if self.conv is None else bias[:, None, None]

    def _channels_last(self, x: Tensor) -> Tensor:
        return x if self.conv is None else x.movedim(1, -1)

    @property
    def fan_out(self) -> float:
        """Additions that one input spike causes; for a convolution, away from the border."""
        if self.conv is None:
            return float(self.weight.shape[0])
        (kh, kw), (sh, sw) = self.weight.shape[2:], self.conv["stride"]
        return float(self.weight.shape[0] * kh * kw / (sh * sw))


def accumulation_dtype(weight: Tensor, *sites: Site) -> torch.dtype:
    """Type in which sums of the sites' integers are exact, or nearly so."""
    small = all(site.code.levels <= EXACT_LEVELS for site in sites)
    return weight.dtype if small else torch.float64
