"""The modules that replace a transformer's matrix products, and the one attention function.

Every module runs in one of three phases (:class:`Run`):

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
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.circuits.arithmetic import Digits
from isospike.codes import PhaseCode
from isospike.kernels.product.int8 import (
    MAX_WEIGHT,
    BytePlanes,
    add_product,
    can_pack,
    new_membrane,
    pack_grid,
)
from isospike.kernels.product.trains import pair_weights, spike_steps
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace
from isospike.porting.functions import (
    Use,
    cells,
    mean_of,
    numerator,
    softmax_use,
    through_relay,
)
from isospike.porting.sites import Site


@runtime_checkable
class Observe(Protocol):
    """What a measurement is told about a site during a run."""

    def __call__(
        self,
        site: Site,
        x: Tensor,
        *,
        fan_out: Tensor | float,
        macs: bool = True,
        live: Tensor | None = None,
    ) -> None:
        """Take note.

        Args:
            site: The site.
            x: Its input, channels last.
            fan_out: Additions that one spike causes.
            macs: Whether the float product multiplies each value ``fan_out`` times.
            live: Entries of ``x`` that exist; a causal mask removes some.
        """


# A site that has not been given its code yet.
_PLACEHOLDER = PhaseCode(1)
# Integers this small leave room for the weights in float32's 24 bits, and are exact in bfloat16;
# larger ones are added up in float64, so that a stepped and a collapsed run still agree.
EXACT_LEVELS = 255
# oneDNN has a bfloat16 product only on processors with AVX-512 or the like.
_HAS_ONEDNN = (
    hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)
# Largest integer gain between a query's and a key's channel.
GAINS = 15


@dataclass
class Run:
    """How all modules of one ported model run; a single object shared by them.

    Attributes:
        phase: ``float``, ``calibrate`` or ``run``.
        execution: ``collapsed`` or ``stepped``.
        precision: ``exact`` (float32) or ``fast`` (collapsed only: weights and the results of
            linear products in bfloat16; the integers are exact in it).
        valid: Mask of the unpadded tokens, ``[batch, tokens]``; None if all are.
        generator: Source of randomness of the Bernoulli code.
        discover: Called in the float phase with each module and its inputs.
        observe: Called in a run with each site and its input.
        nonlinear: How softmax, activations and normalisation are computed: ``float``, ``spiking``.
        tally: Called in a run with each circuit of :mod:`isospike.porting.functions` and what it
            did.
        perturb: Called in the float phase with each site and its input, which it may replace.
    """

    phase: str = "float"
    execution: str = "collapsed"
    precision: str = "exact"
    nonlinear: str = "float"
    valid: Tensor | None = None
    generator: torch.Generator | None = None
    discover: Callable[[nn.Module, tuple[Tensor, ...]], None] | None = None
    observe: "Observe | None" = None
    tally: Callable[[Use], None] | None = None
    perturb: Callable[[Site, Tensor], Tensor] | None = None

    def perturbed(self, site: Site, x: Tensor) -> Tensor:
        """``x`` as the float phase shall see it."""
        return x if self.perturb is None else self.perturb(site, x)

    def rows(self, x: Tensor) -> Tensor:
        """Unpadded tokens of ``x [batch, tokens, channels]``; all of them where no mask fits."""
        if self.valid is not None and x.shape[:2] == self.valid.shape and x.dim() == 3:
            return x[self.valid]
        return x.reshape(-1, x.shape[-1])


class SpikingProduct(nn.Module):
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
        relay: Digits that its results are spelled in, where other neurons than its own need them.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    step: Tensor

    def __init__(
        self, name: str, run: Run, weight: Tensor, bias: Tensor | None, conv: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.conv = conv
        self.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().float().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.site: Site = Site(name, "linear", _PLACEHOLDER, ())
        self.relay: Digits | None = None
        self.register_buffer("step", torch.zeros(len(weight)))
        self._bfloat16: tuple[Tensor, Tensor] | None = None
        self._packed: BytePlanes | None = None

    @property
    def kind(self) -> str:
        return "linear" if self.conv is None else "conv"

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return through_relay(self, self._forward(x))

    def _forward(self, x: Tensor) -> Tensor:
        if self.conv is not None and any(self.conv["padding"]):
            ph, pw = self.conv["padding"]
            x = F.pad(x, (pw, pw, ph, ph))  # padding is an input like any other: it is coded too
        if self.run.phase == "run":
            return self._run(x)
        x = x.to(self.weight.dtype)
        if self.run.phase == "float":
            if self.run.discover is not None:
                self.run.discover(self, (x,))
            x = self.run.perturbed(self.site, x)
            return self._product(x, self.weight) + self._along(self.bias)
        return self._calibrate(x)

    def _run(self, x: Tensor) -> Tensor:
        run, site = self.run, self.site
        if run.observe is not None and site.name == self.name:
            run.observe(site, self._channels_last(x), fan_out=site.fan_out)
        if run.execution == "stepped":
            return self._stepped(self._channels_last(site.words(x, run.generator)))
        if run.precision == "fast":
            return self._fast(site.integers(x, run.generator, torch.bfloat16, into=Purpose.LINEAR))
        dtype = accumulator(self.weight, site)
        integers = site.integers(x, run.generator, dtype, into=Purpose.LINEAR)
        y = self._product(integers, self.weight.to(dtype)).to(self.weight.dtype)
        return y.add_(self._along(self.bias))

    def _stepped(self, words: Tensor) -> Tensor:
        """Step by step: binary spikes enter the product, weighted currents add up in membranes."""
        code = self.site.code
        if self._can_pack():
            if self._packed is None:
                self._packed = pack_grid(self.weight, self.step[:, None], code.neurons)
            flat, packed = words.reshape(-1, words.shape[-1]), self._packed
            y = self.weight.new_empty(len(flat), len(self.weight))
            for part in cache_blocks(flat, 2 * y.numel()):
                membrane = new_membrane(packed, len(y[part]))
                for weight, spikes in spike_steps(code, flat[part]):
                    add_product(membrane, spikes, packed, weight)
                high, low = membrane.chunk(2, -1)
                torch.add(high, low, out=y[part]).add_(self.bias)
            return y.view(*words.shape[:-1], -1)
        both = pair_weights(self.weight.to(accumulator(self.weight, self.site)), code.neurons, 1)
        y = torch.zeros((), dtype=both.dtype, device=both.device)
        for weight, spikes in spike_steps(code, words):
            s = spikes.to(both.dtype)
            y = y + weight * self._product(s if self.conv is None else s.movedim(-1, 1), both)
        return y.to(self.weight.dtype).add_(self._along(self.bias))

    def _fast(self, integers: Tensor) -> Tensor:
        if self._bfloat16 is None:
            self._bfloat16 = self.weight.bfloat16(), self.bias.bfloat16()
        weight, bias = self._bfloat16
        if self.conv is None and weight.device.type == "cpu" and _HAS_ONEDNN:
            # F.linear would first spread the bias over the result, which takes half as long again.
            y: Tensor = torch.ops.mkldnn._linear_pointwise(integers, weight, bias, "none", [], "")
            return y
        return self._product(integers, weight) + self._along(bias)

    def _calibrate(self, x: Tensor) -> Tensor:
        x_float, x_spiking = x.chunk(2)
        target = self._product(x_float, self.weight) + self._along(self.bias)
        if not self.site.fitted:
            self.site.fit(self.run.rows(self._channels_last(x_spiking)))
        integers = self.site.integers(x_spiking, self.run.generator)
        self._fold(integers)
        y = self._product(integers, self.weight).add_(self._along(self.bias))
        error = self.run.rows(self._channels_last(target - y)).mean(0)
        self.bias.add_(error)
        return torch.cat([target, y + self._along(error)])

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bfloat16": None, "_packed": None}

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


class SpikingAttention(nn.Module):
    """Softmax attention between spiking queries, keys, values and probabilities.

    Keys and values are *stored*: as their spikes arrive they are counted, with the step's weight,
    into integer traces N_k and N_v, which then act as synaptic weights. Queries and probabilities
    *address* that store step by step with binary spikes. Every pair of steps of the two operands
    is thereby accounted for exactly, with T products instead of T^2.

    (1)  z[i, j]  = sum_t w[t] (m * s_q[i, t]) . N_k[j] + (m * r) . N_k[j]
    (2)  e[i, j]  = exp(z'[i, j] - max_j z'[i, j]), in (0, 1], z' = unit * z + mask, coded as it is
    (3)  y[i]     = o_v + a_v * (sum_t w[t] s_e[i, :, t] N_v) / sum_j N_e[i, j]

    (a amplitude, o offset; r = o_q / a_q.) The terms of the scores that do not depend on j cancel
    in (2). Calibration widens each query's range by up to one part in ``GAINS`` so that
    a_q a_k = m * unit with small integers m and r: every sum in (1) and (3) is then a whole number
    and exact in float32, in any order. Coding e instead of the probability keeps the largest
    weight of each row at full scale whatever the length, and dividing by the sum of what was
    *spelled* keeps the weights summing to one.
    """

    gain: Tensor
    current: Tensor
    unit: Tensor

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.query = Site(f"{name}:query", "query", _PLACEHOLDER, ())
        self.key = Site(f"{name}:key", "key", _PLACEHOLDER, ())
        self.value = Site(f"{name}:value", "value", _PLACEHOLDER, ())
        self.probability = Site(f"{name}:probability", "probability", _PLACEHOLDER, ())
        self.register_buffer("gain", torch.zeros(()))  # m, [heads, 1, channels]
        self.register_buffer("current", torch.zeros(()))  # m * r, [heads, channels, 1]
        self.register_buffer("unit", torch.zeros(()))  # [heads, 1, 1]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        """Attention output.

        Args:
            query: ``[batch, heads, queries, channels]``.
            key: ``[batch, key heads, keys, channels]``; heads share them in groups.
            value: likewise.
            mask: Added to the scores, broadcastable to ``[batch, heads, queries, keys]``.
            scaling: Multiplies the scores.

        Returns:
            ``[batch, heads, queries, channels]``.
        """
        run = self.run
        if run.phase == "run":
            return self._run(query, key, value, mask, scaling)
        if run.phase == "float":
            if run.discover is not None:
                run.discover(self, (query, key, value))
            return self._float(query, key, value, mask, scaling)
        (q_float, q), (k_float, k), (v_float, v) = (x.chunk(2) for x in (query, key, value))
        half = mask if mask is None or len(mask) == 1 else mask[: len(q)]
        target = _float_attention(q_float, k_float, v_float, half, scaling)
        for site, x in ((self.query, q), (self.key, k), (self.value, v)):
            site.fit(run.rows(x.transpose(1, 2).flatten(2)))
        self.probability.coarsen()
        self.probability.fitted = True
        self._fold()
        return torch.cat([target, self._run(q, k, v, half, scaling)])

    def _float(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        run = self.run
        if run.perturb is None:
            return _float_attention(query, key, value, mask, scaling)
        q, k, v = (
            run.perturbed(site, x)
            for site, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        groups = q.shape[1] // k.shape[1]
        z = q @ _repeat(k, groups).transpose(-1, -2) * scaling
        z = z if mask is None else z + mask
        e = run.perturbed(self.probability, (z - z.detach().amax(-1, keepdim=True)).exp())
        return e @ _repeat(v, groups) / e.sum(-1, keepdim=True)

    def _fold(self) -> None:
        """Round the queries' ranges so that (1) counts in whole numbers."""
        groups = self.query.offset.shape[0] // self.key.offset.shape[0]
        a_k = _repeat(self.key.amplitude, groups, 0)
        product = self.query.amplitude * a_k
        self.unit = product.amax(-1, keepdim=True) / GAINS
        self.gain = (product / self.unit).ceil().clamp_(1, GAINS)
        amplitude = self.gain * self.unit / a_k
        rest = (self.query.offset / amplitude).round()
        self.query.scale = amplitude * self.query.code.levels
        self.query.offset = rest * amplitude
        self.current = (self.gain * rest).transpose(1, 2).contiguous()

    def _run(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        run = self.run
        batch, heads, queries, channels = *query.shape[:3], value.shape[-1]
        offset_v = _repeat(self.value.offset, heads // value.shape[1], 0)
        amplitude_v = _repeat(self.value.amplitude, heads // value.shape[1], 0)
        # Laid out as the model wants it next, [batch, queries, heads, channels].
        y = query.new_empty(batch, queries, heads, channels).transpose(1, 2)
        scores = batch * heads * queries * key.shape[-2]
        stepped = run.execution == "stepped"
        watched = run.observe is not None or run.tally is not None
        parts = (slice(None),) if watched else cache_blocks(query, scores)
        for part in parts:
            q, k, v = query[part], key[part], value[part]
            z = self._stepped_scores(q, k) if stepped else self._scores(q, k)
            e = self._numerator(z, mask if mask is None or len(mask) == 1 else mask[part], scaling)
            weighted, total = self._stepped_sum(e, v) if stepped else self._sum(e, v)
            if run.nonlinear == "spiking":
                mean = mean_of(weighted, total, stepped)
            else:
                mean = weighted / total
            y[part] = torch.addcmul(offset_v, mean.to(offset_v.dtype), amplitude_v)
        if run.observe is not None:
            self._observe(run.observe, query, key, value, e, mask)
        if run.tally is not None and run.nonlinear == "spiking":
            places = cells(self._scores(query, key), self.unit * scaling, mask)
            live = self._live(e, mask)
            if run.valid is not None and run.valid.shape == (batch, queries):
                live &= run.valid[:, None, :, None]
            run.tally(softmax_use(self.name, places, e, total, channels, live))
        return y

    def _gain_and_current(self) -> tuple[Tensor, Tensor]:
        dtype = accumulator(self.gain, self.query, self.key)
        return self.gain.to(dtype), self.current.to(dtype)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(1)."""
        gain, current = self._gain_and_current()
        k = self.key.integers(key, self.run.generator, gain.dtype, into=Purpose.KEY)
        q = self.query.integers(query, self.run.generator, gain.dtype, into=Purpose.QUERY)
        torch.addcmul(current.transpose(1, 2), q, gain, out=q)
        z = workspace(Purpose.SCORES, (*q.shape[:-1], k.shape[-2]), q.dtype, q.device)
        return torch.matmul(q, _repeat(k, q.shape[1] // k.shape[1]).transpose(-1, -2), out=z)

    def _sum(self, e: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of (3)."""
        dtype = accumulator(self.gain, self.probability, self.value)
        integers = self.probability.integers(e, self.run.generator, dtype, into=Purpose.PROBABILITY)
        v = self.value.integers(value, self.run.generator, dtype, into=Purpose.VALUE)
        return integers @ _repeat(v, e.shape[1] // v.shape[1]), integers.sum(-1, keepdim=True)

    def _stepped_scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(1), step by step: key spikes are stored and drive, query spikes address."""
        code, (heads, key_heads) = self.key.code, (query.shape[1], key.shape[1])
        # A head's current flows where its key's spikes arrive: [key heads, channels, group].
        gain, current = self._gain_and_current()
        current = pair_weights(current, code.neurons, 1).view(key_heads, heads // key_heads, -1)
        trace = gain.new_zeros(*key.shape[:-1], current.shape[-1])
        drive = gain.new_zeros(*key.shape[:-1], current.shape[1])
        for weight, spikes in self.key.spikes(key, self.run.generator):
            s = _dense(spikes, trace.dtype)
            trace.add_(s, alpha=weight)
            drive.add_(s @ current.transpose(1, 2), alpha=weight)
        drive = drive.transpose(-1, -2).reshape(len(key), heads, 1, -1)
        # The gain belongs to the store, so that the spikes enter the product as they are.
        stored = _repeat(_unpaired(trace, code.neurons), heads // key_heads) * gain
        z = drive.expand(-1, -1, query.shape[2], -1)
        return self._address(self.query, query, stored.transpose(-1, -2), z)

    def _stepped_sum(self, e: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of (3), step by step."""
        dtype = accumulator(self.gain, self.probability, self.value)
        neurons = self.value.code.neurons
        shape = (*value.shape[:-1], neurons * value.shape[-1])
        trace = self.gain.new_zeros(shape, dtype=dtype)
        for weight, spikes in self.value.spikes(value, self.run.generator):
            trace.add_(_dense(spikes, dtype), alpha=weight)
        stored = _repeat(_unpaired(trace, neurons), e.shape[1] // value.shape[1])
        # One more channel, which stores 1 for every key, counts what was spelled.
        stored = F.pad(stored, (0, 1), value=1.0)
        rest = stored.new_zeros(*e.shape[:-1], stored.shape[-1])
        y = self._address(self.probability, e, stored, rest)
        return y[..., :-1], y[..., -1:]

    def _address(self, site: Site, x: Tensor, stored: Tensor, membrane: Tensor) -> Tensor:
        """``membrane + N stored``, the spikes of ``x`` reading the store step by step."""
        stored = pair_weights(stored, site.code.neurons, -2).flatten(0, 1)
        y = membrane.clone(memory_format=torch.contiguous_format).flatten(0, 1)
        for weight, spikes in site.spikes(x, self.run.generator):
            y.baddbmm_(_dense(spikes, stored.dtype).flatten(0, 1), stored, alpha=weight)
        return y.view(membrane.shape)

    def _numerator(self, z: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """(2): softmax without its division."""
        if self.run.nonlinear == "spiking":
            places = cells(z, self.unit * scaling, mask)
            return numerator(places, self.run.execution == "stepped")
        z = z.mul_(self.unit * scaling)
        if mask is not None:
            z += mask
        return z.sub_(z.amax(-1, keepdim=True)).exp_()

    @staticmethod
    def _live(e: Tensor, mask: Tensor | None) -> Tensor:
        """Pairs of query and key that the mask leaves."""
        live = torch.ones_like(e, dtype=torch.bool)
        return live if mask is None else live & (mask > torch.finfo(mask.dtype).min / 2)

    def _observe(
        self,
        observe: "Observe",
        query: Tensor,
        key: Tensor,
        value: Tensor,
        e: Tensor,
        mask: Tensor | None,
    ) -> None:
        live = self._live(e, mask)
        observe(self.query, query, fan_out=live.sum(-1, keepdim=True).float())
        # Storing a spike is one addition to its trace; a key's also drives the current h of (1).
        observe(self.key, key, fan_out=2.0, macs=False)
        observe(self.value, value, fan_out=1.0, macs=False)
        observe(self.probability, e, fan_out=float(value.shape[-1]), live=live)


def accumulator(weight: Tensor, *sites: Site) -> torch.dtype:
    """Type in which sums of the sites' integers are exact, or nearly so."""
    small = all(site.code.levels <= EXACT_LEVELS for site in sites)
    return weight.dtype if small else torch.float64


def _float_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    scores = q @ _repeat(k, groups).transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ _repeat(v, groups)


def _repeat(x: Tensor, groups: int, axis: int = 1) -> Tensor:
    """One head's store serves a group of queries."""
    return x if groups == 1 else x.repeat_interleave(groups, axis)


def _dense(spikes: Tensor, dtype: torch.dtype) -> Tensor:
    """Spikes in the type of the product they enter, valid until the next step."""
    return workspace(Purpose.DENSE, spikes.shape, dtype, spikes.device).copy_(spikes)


def _unpaired(trace: Tensor, neurons: int) -> Tensor:
    """ON less OFF, of two neurons side by side."""
    return trace if neurons == 1 else trace[..., 0::2] - trace[..., 1::2]
