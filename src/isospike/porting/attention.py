"""The module that computes softmax attention between spikes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.kernels.product.trains import pair_weights
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace
from isospike.kernels.runtime.precision import in_float32
from isospike.porting.functions import cells, mean_of, numerator, softmax_stats
from isospike.porting.product import PLACEHOLDER, accumulation_dtype
from isospike.porting.run import Run, Watcher, join
from isospike.porting.sites import Site

MAX_INTEGER_GAIN = 15  # largest integer gain between a query's and a key's channel


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
    in (2). Calibration widens each query's range by up to one part in ``MAX_INTEGER_GAIN`` so that
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
        self.query = Site(f"{name}:query", "query", PLACEHOLDER, ())
        self.key = Site(f"{name}:key", "key", PLACEHOLDER, ())
        self.value = Site(f"{name}:value", "value", PLACEHOLDER, ())
        self.probability = Site(f"{name}:probability", "probability", PLACEHOLDER, ())
        self.register_buffer("gain", torch.zeros(()))  # m, [heads, 1, channels]
        self.register_buffer("current", torch.zeros(()))  # m * r, [heads, channels, 1]
        self.register_buffer("unit", torch.zeros(()))  # [heads, 1, 1]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its four sites."""
        return self.query, self.key, self.value, self.probability

    @in_float32
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
            return self._float(query, key, value, mask, scaling)
        (q_float, q), (k_float, k), (v_float, v) = (run.split(x) for x in (query, key, value))
        half = mask if mask is None or len(mask) == 1 else mask[: len(q)]
        target = None
        if q_float is not None and k_float is not None and v_float is not None:
            target = _float_attention(q_float, k_float, v_float, half, scaling)
        for site, x in ((self.query, q), (self.key, k), (self.value, v)):
            site.fit(run.rows(x.transpose(1, 2).flatten(2)))
        self.probability.to(q.device).coarsen()
        self.probability.fitted = True
        self._fold()
        return join(target, self._run(q, k, v, half, scaling))

    def map(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Weight of each key for each query, ``[batch, heads, queries, keys]``, if it is wanted."""
        if not self.run.wants_maps:
            return None
        if self.run.phase == "run":
            e = self._numerator(self._scores(query, key), mask, scaling)
            spelled = self.probability.integers(e)
            return spelled / spelled.sum(-1, keepdim=True)
        scores = query @ _repeat(key, query.shape[1] // key.shape[1]).transpose(-1, -2) * scaling
        return torch.softmax(scores if mask is None else scores + mask, -1)

    def _float(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        run = self.run
        q, k, v = (
            run.seen(site, x)
            for site, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        if run.watcher is None or not run.watcher.sees_probabilities:
            return _float_attention(q, k, v, mask, scaling)
        groups = q.shape[1] // k.shape[1]
        z = q @ _repeat(k, groups).transpose(-1, -2) * scaling
        z = z if mask is None else z + mask
        e = run.seen(self.probability, (z - z.detach().amax(-1, keepdim=True)).exp())
        return e @ _repeat(v, groups) / e.sum(-1, keepdim=True)

    def _fold(self) -> None:
        """Round the queries' ranges so that (1) counts in whole numbers."""
        groups = self.query.offset.shape[0] // self.key.offset.shape[0]
        a_k = _repeat(self.key.amplitude, groups, 0)
        product = self.query.amplitude * a_k
        self.unit = product.amax(-1, keepdim=True) / MAX_INTEGER_GAIN
        self.gain = (product / self.unit).ceil().clamp_(1, MAX_INTEGER_GAIN)
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
        stepped = run.mode.stepped
        parts = (slice(None),) if run.watcher is not None else cache_blocks(query, scores)
        for part in parts:
            q, k, v = query[part], key[part], value[part]
            z = self._stepped_scores(q, k) if stepped else self._scores(q, k)
            e = self._numerator(z, mask if mask is None or len(mask) == 1 else mask[part], scaling)
            weighted, total = self._stepped_sum(e, v) if stepped else self._sum(e, v)
            if run.mode.spiking:
                mean = mean_of(weighted, total, stepped)
            else:
                mean = weighted / total
            y[part] = torch.addcmul(offset_v, mean.to(offset_v.dtype), amplitude_v)
        if run.watcher is not None:
            self._show(run.watcher, query, key, value, e, mask)
        if run.mode.spiking and (watcher := run.circuit_watcher):
            places = cells(self._scores(query, key), self.unit * scaling, mask)
            live = self._live(e, mask)
            if run.token_mask is not None and run.token_mask.shape == (batch, queries):
                live &= run.token_mask[:, None, :, None]
            watcher.on_circuit(softmax_stats(self.name, places, e, total, channels, live))
        return y

    def _gain_and_current(self) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(self.gain, self.query, self.key)
        return self.gain.to(dtype), self.current.to(dtype)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(1)."""
        gain, current = self._gain_and_current()
        k = self.key.integers(key, gain.dtype, into=Purpose.KEY)
        q = self.query.integers(query, gain.dtype, into=Purpose.QUERY)
        torch.addcmul(current.transpose(1, 2), q, gain, out=q)
        z = workspace(Purpose.SCORES, (*q.shape[:-1], k.shape[-2]), q.dtype, q.device)
        return torch.matmul(q, _repeat(k, q.shape[1] // k.shape[1]).transpose(-1, -2), out=z)

    def _sum(self, e: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of (3)."""
        dtype = accumulation_dtype(self.gain, self.probability, self.value)
        integers = self.probability.integers(e, dtype, into=Purpose.PROBABILITY)
        v = self.value.integers(value, dtype, into=Purpose.VALUE)
        return integers @ _repeat(v, e.shape[1] // v.shape[1]), integers.sum(-1, keepdim=True)

    def _stepped_scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(1), step by step: key spikes are stored and drive, query spikes address."""
        code, (heads, key_heads) = self.key.code, (query.shape[1], key.shape[1])
        # A head's current flows where its key's spikes arrive: [key heads, channels, group].
        gain, current = self._gain_and_current()
        current = pair_weights(current, code.neurons, 1).view(key_heads, heads // key_heads, -1)
        trace = gain.new_zeros(*key.shape[:-1], current.shape[-1])
        drive = gain.new_zeros(*key.shape[:-1], current.shape[1])
        for weight, spikes in self.key.spikes(key):
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
        dtype = accumulation_dtype(self.gain, self.probability, self.value)
        neurons = self.value.code.neurons
        shape = (*value.shape[:-1], neurons * value.shape[-1])
        trace = self.gain.new_zeros(shape, dtype=dtype)
        for weight, spikes in self.value.spikes(value):
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
        for weight, spikes in site.spikes(x):
            y.baddbmm_(_dense(spikes, stored.dtype).flatten(0, 1), stored, alpha=weight)
        return y.view(membrane.shape)

    def _numerator(self, z: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """(2): softmax without its division."""
        if self.run.mode.spiking:
            places = cells(z, self.unit * scaling, mask)
            return numerator(places, self.run.mode.stepped)
        z = z.mul_(self.unit * scaling)
        if mask is not None:
            z += mask
        return z.sub_(z.amax(-1, keepdim=True)).exp_()

    @staticmethod
    def _live(e: Tensor, mask: Tensor | None) -> Tensor:
        """Pairs of query and key that the mask leaves."""
        live = torch.ones_like(e, dtype=torch.bool)
        return live if mask is None else live & (mask > torch.finfo(mask.dtype).min / 2)

    def _show(
        self,
        watcher: Watcher,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        e: Tensor,
        mask: Tensor | None,
    ) -> None:
        live = self._live(e, mask)
        watcher.on_site(self.query, query, fan_out=live.sum(-1, keepdim=True).float())
        # Storing a spike is one addition to its trace; a key's also drives the current h of (1).
        watcher.on_site(self.key, key, fan_out=2.0, macs=False)
        watcher.on_site(self.value, value, fan_out=1.0, macs=False)
        watcher.on_site(self.probability, e, fan_out=float(value.shape[-1]), live=live)


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
