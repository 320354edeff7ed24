"""The module that computes softmax attention between spikes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.circuits.softcap import soft_capped
from isospike.kernels.product.trains import spike_steps
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace
from isospike.kernels.runtime.precision import in_float32
from isospike.porting.functions import cells, mean_of, numerator, softcap_stats, softmax_stats
from isospike.porting.product import PLACEHOLDER, accumulation_dtype
from isospike.porting.ranges import Range
from isospike.porting.run import Run, Watcher
from isospike.porting.sites import MOST_SHARES, SHARES, Gain, Site
from isospike.porting.statistics import Statistics

MAX_INTEGER_GAIN = 15  # largest integer gain between a query's and a key's channel
EVENNESS = 0.5  # of a head's scales: a rotation by position turns one channel into another
EXACT_SUM = 2**24  # sums of whole numbers up to here are exact in float32


class Terms(NamedTuple):
    """What an attention computes beside the softmax of products.

    Attributes:
        mask: Added to the scores, ``[batch or 1, heads or 1, queries or 1, keys]``.
        scaling: Multiplies the products.
        softcap: Bound of the scores.
        sinks: Scores of keys without a value, ``[batch or 1, heads or 1, queries or 1, sinks]``.
    """

    mask: Tensor | None
    scaling: Tensor | float
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def absolute(self) -> bool:
        """Whether something is done to the scores that depends on more than their differences."""
        return self.softcap is not None or self.sinks is not None

    def of_rows(self, part: slice) -> "Terms":
        """The terms of some rows."""
        mask, sinks = (x if x is None or len(x) == 1 else x[part] for x in (self.mask, self.sinks))
        return self._replace(mask=mask, sinks=sinks)

    def with_sinks(self, z: Tensor) -> Tensor:
        """Scores of the keys, and then of the sinks."""
        if self.sinks is None:
            return z
        return torch.cat([z, self.sinks.to(z).expand(*z.shape[:-1], -1)], -1)

    def float_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Those of real queries and keys."""
        z = q @ _repeat(k, q.shape[1] // k.shape[1]).transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            z = torch.tanh(z / self.softcap) * self.softcap
        return self.with_sinks(z if self.mask is None else z + self.mask)


class SpikingAttention(nn.Module):
    """Softmax attention between spiking queries, keys, values and probabilities.

    Keys and values are *stored*: as their spikes arrive they are counted, with the step's weight,
    into integer traces N_k and N_v, which then act as synaptic weights. Queries and probabilities
    *address* that store step by step with binary spikes. Every pair of steps of the two operands
    is thereby accounted for exactly, with T products instead of T^2.

    (1)  A[i, j]  = sum_t w[t] (m * s_q[i, t]) . N_k[j],  B[j] = (m * r) . N_k[j]
    (2)  e[i, j]  = exp(z[i, j] - max_j z[i, j]), in (0, 1], coded as it is, where
         z[i, j]  = unit * g_k[j] * (g_q[i] * A[i, j] + B[j]) + log g_v[j] + mask
    (3)  y[i]     = o_v + a_v * (sum_t w[t] s_e[i, :, t] N_v) / (sum_j N_e[i, j] / g_v[j])

    (a amplitude, o offset, g gain, 1 with static ranges; r = o_q / a_q.) The terms of the scores
    that do not depend on j cancel in (2). Calibration widens each query's range by up to one part
    in ``MAX_INTEGER_GAIN`` so that a_q a_k = m * unit with small integers m and r; a value's gain
    is one over a whole number of parts. Every sum in (1) and (3) is then a whole number and exact,
    in any order. Coding e instead of the probability keeps the largest weight of each row at full
    scale whatever the length; it includes the value's gain, because that is what the key adds; and
    dividing by the sum of what was encoded keeps the weights summing to one.

    A softcap and sinks depend on the scores themselves. They get the rest of q . k: calibration
    rounds o_k to a whole number r_k of a_k, so the keys' offset is one more key, of gain 1,

    (4)  x[i, j]  = unit * (g_k[j] * (g_q[i] * A[i, j] + B[j]) + g_q[i] * A[i, rest] + B[rest])
    (5)  z[i, j]  = softcap * tanh(x[i, j] / softcap) + log g_v[j] + mask,  or without the tanh

    with N_k[rest] = r_k. A sink is a key of score z = sink whose value is nothing. It takes part in
    the maximum of (2), is coded as the others are, and adds to the sum of weights alone, as a value
    of gain 1 would:

    (6)  y[i]     = (o_v * S + a_v * sum_t w[t] s_e[i, :, t] N_v) / (S + N_e[i, sink]),
         S        = sum_j N_e[i, j] / g_v[j]
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
        self.absolute = False  # whether (4) is wanted, as the float phase has seen
        self.register_buffer("gain", torch.zeros(()))  # m, [heads, 1, channels]
        self.register_buffer("current", torch.zeros(()))  # m * r, [heads, channels, 1]
        self.register_buffer("unit", torch.zeros(()))  # [heads, 1, 1]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its four sites."""
        return self.query, self.key, self.value, self.probability

    @in_float32
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: Tensor | float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        mapped: bool = False,
    ) -> Tensor:
        """Attention output, or its map.

        Args:
            query: ``[batch, heads, queries, channels]``.
            key: ``[batch, key heads, keys, channels]``; heads share them in groups.
            value: likewise.
            mask: Added to the scores, broadcastable to ``[batch, heads, queries, keys]``.
            scaling: Multiplies the products of queries and keys, broadcastable likewise.
            softcap: Bound of the scores, before the mask.
            sinks: Scores of keys without a value, broadcastable to ``[batch, heads, queries,
                sinks]``.
            mapped: Whether the weight of each key for each query is wanted, ``[batch, heads,
                queries, keys]``.

        Returns:
            ``[batch, heads, queries, channels]``.
        """
        terms = Terms(_of_four_axes(mask), scaling, softcap, sinks)
        if mapped:
            return self._map(query, key, value, terms)
        if self.run.phase == "run":
            return self._run(query, key, value, terms)
        self.absolute |= terms.absolute
        return self._float(query, key, value, terms)

    def calibrate(self, statistics: Statistics, dynamic: bool) -> None:
        """Set the ranges of queries, keys and values; their codes are known.

        Args:
            statistics: Of the float model.
            dynamic: Whether ranges follow the input. An error of a query counts as much as the
                keys of its channel spread, and the other way round.
        """
        sites = self.query, self.key, self.value
        samples = [statistics.sample(site.name) for site in sites]
        if dynamic:
            q, k, v = (sample.rows for sample in samples)
            groups = q.shape[1] // k.shape[1]
            size = q.square().mean(0).view(-1, groups, q.shape[-1]).mean(1).sqrt()
            spread = _repeat(k.std(0, correction=0), groups, 0)
            for site, weight in zip(sites, (spread, size, torch.ones_like(v[0])), strict=True):
                found = statistics.dynamic_range(site.name, weight, EVENNESS)
                site.follow(found, statistics.sample(site.name).extremes)
        else:
            for site, sample in zip(sites, samples, strict=True):
                site.fit(sample.with_extremes)
        self.probability.to(self.query.offset.device).coarsen()
        self.probability.fitted = True
        self._fold()
        if dynamic:
            query = self.query
            found = Range(query.offset.squeeze(1), query.scale.squeeze(1))
            query.follow(found, samples[0].extremes)

    def _map(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        if self.run.phase == "run":
            store, gain = self._values(value, terms)
            e = self._numerator(self._scores(query, key, terms, gain), terms)
            return self._weights(e, store)[..., : key.shape[-2]]
        return torch.softmax(terms.float_scores(query, key), -1)[..., : key.shape[-2]]

    def _weights(self, e: Tensor, store: Tensor) -> Tensor:
        """What each key's value is weighted with, from what is encoded of ``e``."""
        share = _repeat(store[..., -1:], e.shape[1] // store.shape[1]).transpose(-1, -2)
        parts = self.probability.read(e).value * share
        return parts / parts.sum(-1, keepdim=True)

    def _float(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        run = self.run
        q, k, v = (
            run.seen(site, x)
            for site, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        z, v = terms.float_scores(q, k), _repeat(v, q.shape[1] // v.shape[1])
        keys = slice(v.shape[-2])
        if run.watcher is None or not run.watcher.sees_probabilities:
            return torch.softmax(z, -1)[..., keys] @ v
        e = run.seen(self.probability, (z - z.detach().amax(-1, keepdim=True)).exp())
        return e[..., keys] @ v / e.sum(-1, keepdim=True)

    def _fold(self) -> None:
        """Round the queries' ranges so that (1) counts in whole numbers."""
        groups = self.query.offset.shape[0] // self.key.offset.shape[0]
        a_k = self.key.amplitude
        if self.absolute:
            self.key.offset = self._rest(1).mT.to(a_k) * a_k
        a_k = _repeat(a_k, groups, 0)
        product = self.query.amplitude * a_k
        self.unit = product.amax(-1, keepdim=True) / MAX_INTEGER_GAIN
        self.gain = (product / self.unit).ceil().clamp_(1, MAX_INTEGER_GAIN)
        amplitude = self.gain * self.unit / a_k
        rest = (self.query.offset / amplitude).round()
        self.query.scale = amplitude * self.query.code.levels
        self.query.offset = rest * amplitude
        self.current = (self.gain * rest).transpose(1, 2).contiguous()

    def _run(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        run = self.run
        batch, heads, queries, channels = *query.shape[:3], value.shape[-1]
        groups = heads // value.shape[1]
        offset_v = _repeat(self.value.offset, groups, 0)
        parts_of_one = SHARES if self.value.dynamic else 1
        amplitude_v = _repeat(self.value.amplitude * parts_of_one, groups, 0)
        # Laid out as the model wants it next, [batch, queries, heads, channels].
        y = query.new_empty(batch, queries, heads, channels).transpose(1, 2)
        scores = batch * heads * queries * key.shape[-2]
        parts = (slice(None),) if run.watcher is not None else cache_blocks(query, scores)
        for part in parts:
            rule = terms.of_rows(part)
            store, gain = self._values(value[part], rule)
            e = self._numerator(self._scores(query[part], key[part], rule, gain), rule)
            weighted, total = self._sum(e, store)
            if run.mode.spiking:
                mean = mean_of(weighted, total, run.mode.stepped)
            else:
                mean = weighted / total
            mean, offset = mean.to(offset_v.dtype), offset_v
            if rule.sinks is not None:
                mean, kept = mean[..., :-1], mean[..., -1:]
                offset = offset_v * kept
            if run.mode.spiking:  # rounded twice, as every machine can
                y[part] = mean.mul_(amplitude_v).add_(offset)
            else:
                y[part] = torch.addcmul(offset, mean, amplitude_v)
        if run.watcher is not None:
            self._show(run.watcher, query, key, value, e, terms)
            if run.watcher.sees_maps:
                run.watcher.on_map(self._weights(e, store)[..., : key.shape[-2]])
        if run.mode.spiking and (watcher := run.circuit_watcher):
            live = self._live(e, terms)
            mask = run.mask_at(self.query.name, query)
            if mask is not None and mask.shape[-1] == 1:
                live &= mask
            z = self._scores(query, key, terms, gain, live[..., : key.shape[-2]])
            places = cells(terms.with_sinks(z if terms.mask is None else z.add_(terms.mask)))
            watcher.on_circuit(softmax_stats(self.name, places, e, total, channels, live))
        return y

    def _values(self, value: Tensor, terms: Terms) -> tuple[Tensor, Gain | None]:
        """N_v with one more channel, ``1 / g_v`` in parts; and g_v, None with static ranges.

        Sinks come last. They have that channel only: with them, one before it holds that of keys.
        """
        site, dtype = self.value, self.gain.dtype
        if self.run.mode.stepped:
            trains, gain = site.trains(value)
            n = self.gain.new_zeros(trains.shape[1:])
            for step in spike_steps(site.code, trains):
                n.add_(step.dense(dtype), alpha=step.weight)
        else:
            n, gain = site.read(value, dtype, into=Purpose.VALUE)
        share = n.new_ones(()) if gain is None else gain.parts().to(dtype)
        share = share.expand(*n.shape[:-1], 1)
        if terms.sinks is None:
            return torch.cat([n, share], -1), gain
        store = F.pad(torch.cat([n, share, share], -1), (0, 0, 0, terms.sinks.shape[-1]))
        store[..., n.shape[-2] :, -1] = 1 if gain is None else SHARES
        return store, gain

    def _scores(
        self,
        query: Tensor,
        key: Tensor,
        terms: Terms,
        gain_v: Gain | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """z of (2) or (5), without the mask; the softcap's spikes at ``counted`` are reported."""
        groups, stepped = query.shape[1] // key.shape[1], self.run.mode.stepped
        dtype = accumulation_dtype(self.gain, self.query, self.key)
        gain, current = self.gain.to(dtype), self.current.to(dtype)
        rest = self._rest(groups) if terms.absolute else None
        a_rest = None
        if stepped:
            k, drive, gain_k = self._stored_keys(key, current)
            # The gain belongs to the store, so that the spikes enter the product as they are.
            stored = (_repeat(k, groups) * gain).transpose(-1, -2)
            trains, gain_q = self.query.trains(query)
            z = self._address(self.query, trains, stored)
            if rest is not None:
                rests = (rest * self.gain.mT).expand(len(z), -1, -1, -1)
                a_rest = self._address(self.query, trains, rests)
        else:
            k, gain_k = self.key.read(key, dtype, into=Purpose.KEY)
            k = _repeat(k, groups)
            q, gain_q = self.query.read(query, dtype, into=Purpose.QUERY)
            q = q * gain if self.query.shared else q.mul_(gain)
            z = workspace(Purpose.SCORES, (*q.shape[:-1], k.shape[-2]), q.dtype, q.device)
            torch.matmul(q, k.transpose(-1, -2), out=z)
            drive = (k @ current).transpose(-1, -2)
            a_rest = None if rest is None else q.double() @ rest
        unit = (self.unit * terms.scaling).to(dtype)
        along = None if gain_k is None else gain_k.along_keys(groups)
        logs = None if gain_v is None else gain_v.along_keys(groups).log().to(dtype)
        if rest is None or a_rest is None:
            return _with_gains(z, drive * unit, unit, gain_q, along, logs)
        z = _with_gains(z, drive * unit, unit, gain_q, along, None)
        a_rest = a_rest * unit
        b_rest = (rest * self.current).sum(-2, keepdim=True) * unit
        z += (b_rest + (a_rest if gain_q is None else gain_q.times(a_rest))).to(dtype)
        if terms.softcap is not None:
            z = self._capped(z, terms.softcap, counted)
        return z if logs is None else z.add_(logs)

    def _rest(self, groups: int) -> Tensor:
        """r_k of (4), ``[heads, channels, 1]``; its sums are of any size, and exact."""
        whole = (self.key.offset / self.key.amplitude).round()
        return _repeat(whole.transpose(1, 2), groups, 0).double()

    def _capped(self, x: Tensor, softcap: float, counted: Tensor | None) -> Tensor:
        """The bounded scores of (5)."""
        run = self.run
        if not run.mode.spiking:
            return x.div_(softcap).tanh_().mul_(softcap)
        y = soft_capped(x, softcap, stepped=run.mode.stepped)
        if counted is not None and (watcher := run.circuit_watcher):
            watcher.on_circuit(softcap_stats(self.name, x[counted], y[counted], softcap))
        return y

    def _stored_keys(self, key: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Gain | None]:
        """N_k, B of (1) and g_k, as key spikes arrive: each is stored, and drives."""
        site, (heads, _, _), key_heads = self.key, current.shape, key.shape[1]
        trains, gain = site.trains(key)
        # A head's current flows where its key's spikes arrive: [key heads, channels, group].
        current = current.view(key_heads, heads // key_heads, -1)
        trace = current.new_zeros(key.shape)
        drive = current.new_zeros(*key.shape[:-1], current.shape[1])
        for step in spike_steps(site.code, trains):
            s = step.dense(trace.dtype)
            trace.add_(s, alpha=step.weight)
            drive.add_(s @ current.transpose(1, 2), alpha=step.weight)
        drive = drive.transpose(-1, -2).reshape(len(key), heads, 1, -1)
        return trace, drive, gain

    def _sum(self, e: Tensor, store: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of (3)."""
        site = self.probability
        largest = max(self.value.code.levels, MOST_SHARES if self.value.dynamic else 1)
        row = float(e.shape[-1])  # each is at most 1
        if e.numel() and not torch.compiler.is_compiling():
            row = float(e.sum(-1).amax())
        exact = (row * site.code.levels + e.shape[-1]) * largest < EXACT_SUM
        dtype = self.gain.dtype if exact else torch.float64
        store = _repeat(store.to(dtype), e.shape[1] // store.shape[1])
        if self.run.mode.stepped:
            y = self._address(site, site.trains(e).value, store)
        else:
            y = site.read(e, dtype, into=Purpose.PROBABILITY).value @ store
        return y[..., :-1], y[..., -1:]

    @staticmethod
    def _address(site: Site, trains: Tensor, stored: Tensor) -> Tensor:
        """``N stored``: the spikes of ``trains`` read the store step by step."""
        shape = (*trains.shape[1:-1], stored.shape[-1])
        stored = stored.flatten(0, 1)
        y = stored.new_zeros(shape).flatten(0, 1)
        for step in spike_steps(site.code, trains):
            y.baddbmm_(step.dense(stored.dtype).flatten(0, 1), stored, alpha=step.weight)
        return y.view(shape)

    def _numerator(self, z: Tensor, terms: Terms) -> Tensor:
        """(2): softmax without its division."""
        if terms.mask is not None:
            z += terms.mask
        z = terms.with_sinks(z)
        if self.run.mode.spiking:
            return numerator(cells(z), self.run.mode.stepped)
        return z.sub_(z.amax(-1, keepdim=True)).exp_()

    @staticmethod
    def _live(e: Tensor, terms: Terms) -> Tensor:
        """Pairs of query and key that the mask leaves, and all sinks."""
        live = torch.ones_like(e, dtype=torch.bool)
        if terms.mask is not None:
            keys = terms.mask.shape[-1]
            live[..., :keys] &= terms.mask > torch.finfo(terms.mask.dtype).min / 2
        return live

    def _show(
        self, watcher: Watcher, query: Tensor, key: Tensor, value: Tensor, e: Tensor, terms: Terms
    ) -> None:
        live, keys = self._live(e, terms), key.shape[-2]
        reached = live[..., :keys].sum(-1, keepdim=True) + int(terms.absolute)
        watcher.on_site(self.query, query, fan_out=reached.float())
        # Storing a spike is one addition to its trace; a key's also drives the current h of (1).
        watcher.on_site(self.key, key, fan_out=2.0, macs=False)
        watcher.on_site(self.value, value, fan_out=1.0, macs=False)
        channels = e.new_full(e.shape[-1:], value.shape[-1])
        channels[keys:] = 1  # a sink has no value
        watcher.on_site(self.probability, e, fan_out=channels, live=live)


def _with_gains(
    z: Tensor,
    drive: Tensor,
    unit: Tensor,
    gain_q: Gain | None,
    gain_k: Gain | None,
    logs: Tensor | None,
) -> Tensor:
    """``gain_k (gain_q unit z + drive) + logs``, in the memory of ``z`` if it can be.

    Args:
        z: Sums of whole numbers, ``[batch, heads, queries, keys]``.
        drive: Of each key, ``[batch, heads, 1, keys]``.
        unit: Of ``z``.
        gain_q: Of each query; None if ranges are static.
        gain_k: Of each key, likewise.
        logs: Likewise.
    """
    if gain_q is None or gain_k is None:
        return torch.addcmul(drive, z, unit, out=z)
    if not gain_k.octaves:  # in two passes
        drive = drive * gain_k.factor
        if logs is not None:
            drive += logs
        z.mul_(gain_q.factor.to(z.dtype) * unit)
        return torch.addcmul(drive, z, gain_k.factor.to(z.dtype), out=z)
    z = gain_q.times(z.mul_(unit))
    if logs is None:
        return gain_k.times(z + drive)
    return gain_k.times(z.add_(drive)).add_(logs)


def _of_four_axes(mask: Tensor | None) -> Tensor | None:
    return mask if mask is None else mask[(None,) * (4 - mask.dim())]


def _repeat(x: Tensor, groups: int, axis: int = 1) -> Tensor:
    """One head's store serves a group of queries."""
    return x if groups == 1 else x.repeat_interleave(groups, axis)
