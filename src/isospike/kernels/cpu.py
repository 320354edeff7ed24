"""The neuron in one pass over memory, compiled by Numba, for float32 and bfloat16.

The neurons are cut into chunks whose membranes stay in the cache; a chunk runs through all steps
before the next begins. Threads take equal ranges of neurons and share nothing, so that their number
changes no bit. They are plain threads, which run the compiled code without the interpreter's lock:
they follow ``torch.set_num_threads``, survive a fork and may be used from several threads at once.

Sums and products are rounded one by one, as torch does it. Only the surrogates' derivatives may be
contracted.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from isospike.kernels.engine import Rule, Spread

CHUNK = 512  # neurons; with five parameters, within the first-level cache
KEPT = 2**12  # membranes of all steps that the gradient keeps at a time
SMALL = 2**16  # elements that one thread does sooner than a second one starts


@njit(cache=True, nogil=True)
def _lay(values, inner, first, out):
    """``out[j] = values[((first + j) // inner) % len(values)]``, run by run."""
    j = 0
    while j < len(out):
        place = (first + j) // inner
        k = place % len(values)
        if inner == 1:
            run = min(len(out) - j, len(values) - k)
            for i in range(run):
                out[j + i] = values[k + i]
        else:
            run = min(len(out) - j, (place + 1) * inner - (first + j))
            for i in range(run):
                out[j + i] = values[k]
        j += run


def _widen(x, out):
    """``x`` as float32: itself, or for 16-bit words, which are bfloat16, the upper half of a
    float32, ``out`` filled with them."""


@overload(_widen)
def _(x, out):
    if x.dtype == types.uint16:

        def copy(x, out):
            for j in range(len(out)):
                out[j] = np.int32(np.int32(x[j]) << np.int32(16)).view(np.float32)
            return out

        return copy
    return lambda x, out: x


def _place(out, scratch):
    """Where float32 results for ``out`` go: there, or to ``scratch`` first if it is bfloat16."""


@overload(_place)
def _(out, scratch):
    if out.dtype == types.uint16:
        return lambda out, scratch: scratch
    return lambda out, scratch: out


def _narrow(values, out):
    """``values`` to a bfloat16 ``out``, rounded to the nearest, ties to even; else they are there
    already."""


@overload(_narrow)
def _(values, out):
    if out.dtype != types.uint16:
        return lambda values, out: None

    def copy(values, out):
        for j in range(len(values)):
            bits = np.float32(values[j]).view(np.int32)
            odd = np.int32(bits >> np.int32(16)) & np.int32(1)
            rounded = np.int32(bits + np.int32(0x7FFF) + odd)
            quiet = np.int32(bits | np.int32(0x400000))  # NaN stays NaN
            kept = rounded if values[j] == values[j] else quiet
            out[j] = np.uint16(np.int32(kept >> np.int32(16)) & np.int32(0xFFFF))

    return copy


@njit(cache=True, nogil=True)
def _step(p, x, v, h, hard, spikes, silent, fired):
    """One step of a chunk: charge, fire, reset; ``v`` is overwritten, ``h`` filled."""
    decay, gain, bias, threshold, reset = p[0], p[1], p[2], p[3], p[4]
    if hard:
        for j in range(len(x)):
            u, r = decay[j] * v[j] + gain[j] * x[j] + bias[j], reset[j]
            fires = u >= threshold[j]
            spikes[j] = fired if fires else silent
            h[j] = u
            v[j] = r if fires else u
    else:
        for j in range(len(x)):
            u, r = decay[j] * v[j] + gain[j] * x[j] + bias[j], reset[j]
            fires = u >= threshold[j]
            spikes[j] = fired if fires else silent
            h[j] = u
            v[j] = u - r if fires else u


@njit(cache=True, nogil=True)
def _start(v, first, out):
    """The membranes of a chunk before the first step; an empty ``v`` is rest."""
    if len(v) > 0:
        out[:] = v[first : first + len(out)]
    else:
        out[:] = 0


@njit(cache=True, nogil=True)
def _forward(x, stride, steps, v, values, inner, hard, spikes, signs, last, start, stop):
    neurons = len(spikes) // steps
    p = np.empty((5, CHUNK), np.float32)
    now, v_now, h = np.empty_like(p[0]), np.empty_like(p[0]), np.empty_like(p[0])
    for first in range(start, stop, CHUNK):
        size = min(CHUNK, stop - first)
        for i in range(5):
            if len(values[i]) > 1 or first == start:
                _lay(values[i], inner[i], first, p[i, : size if len(values[i]) > 1 else CHUNK])
        _start(v, first, v_now[:size])
        for t in range(steps):
            at = t * stride + first
            current = _widen(x[at : at + size], now[:size])
            out = spikes[t * neurons + first :]
            _step(p, current, v_now, h, hard, out, signs[0], signs[1])
        if len(last) > 0:
            last[first : first + size] = v_now[:size]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _exp(z):
    """``e^z`` for z <= 0 to 1e-7, and 0 below -87, in a form that becomes vectors."""
    z = max(z, np.float32(-87))
    k = np.int32(z * np.float32(1.44269504) - np.float32(0.5))
    n = np.float32(k)
    r = (z - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    q = np.float32(1.9875691500e-4)
    q = q * r + np.float32(1.3981999507e-3)
    q = q * r + np.float32(8.3334519073e-3)
    q = q * r + np.float32(4.1665795894e-2)
    q = q * r + np.float32(1.6666665459e-1)
    q = q * r + np.float32(5.0000001201e-1)
    power = np.int32((k + np.int32(127)) << np.int32(23)).view(np.float32)
    return (q * r * r + r + np.float32(1)) * power


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _derive(h, threshold, kind, alpha, out):
    """The surrogates' derivatives at ``h - threshold``, numbered as in ``isospike.surrogate``."""
    a, one, zero = alpha[0], np.float32(1), np.float32(0)
    if kind == 0:
        for j in range(len(h)):
            e = _exp(-abs(a * (h[j] - threshold[j])))
            out[j] = a * e / ((one + e) * (one + e))
    elif kind == 1:
        for j in range(len(h)):
            z = alpha[1] * (h[j] - threshold[j])
            out[j] = alpha[2] / (one + z * z)
    elif kind == 2:
        for j in range(len(h)):
            slope = a * (one - abs(a * (h[j] - threshold[j])))
            out[j] = slope if slope > zero else zero
    elif kind == 3:
        for j in range(len(h)):
            z = a * (h[j] - threshold[j])
            out[j] = alpha[3] * _exp(-(z * z))
    else:
        for j in range(len(h)):
            z = one + abs(a * (h[j] - threshold[j]))
            out[j] = one / (z * z)


@njit(cache=True, nogil=True)
def _step_back(p, h, slope, gs, gv, hard, detach, learn, gh, gu, gr, gx):
    """The gradient of :func:`_step`: from those of the spikes and of the membrane after it to
    those of the input and of the membrane before it, which overwrites ``gv``. To learn, also those
    of h, of h through the spike alone, and of what the spikes reset."""
    decay, gain, threshold, reset = p[0], p[1], p[3], p[4]
    zero = np.float32(0)
    through = zero if detach else np.float32(1)
    if hard:
        for j in range(len(slope)):
            now, g, u = h[j], gv[j], gs[j]
            held = g if now >= threshold[j] else zero
            u = (u + through * (g * (reset[j] - now))) * slope[j]
            g = u + (g - held)
            if learn:
                gh[j], gu[j], gr[j] = g, u, held
            gx[j] = gain[j] * g
            gv[j] = decay[j] * g
    else:
        for j in range(len(slope)):
            g, u = gv[j], gs[j]
            held = g if h[j] >= threshold[j] else zero
            u = (u - through * (g * reset[j])) * slope[j]
            g = u + g
            if learn:
                gh[j], gu[j], gr[j] = g, u, -held
            gx[j] = gain[j] * g
            gv[j] = decay[j] * g


@njit(cache=True, nogil=True)
def _add_up(x, before, gh, gu, gr, sums):
    """Add a step's share to the gradients of the five parameters."""
    for j in range(len(x)):
        sums[0, j] += gh[j] * before[j]
    for j in range(len(x)):
        sums[1, j] += gh[j] * x[j]
    for j in range(len(x)):
        sums[2, j] += gh[j]
    for j in range(len(x)):
        sums[3, j] -= gu[j]
    for j in range(len(x)):
        sums[4, j] += gr[j]


@njit(cache=True, nogil=True)
def _backward(
    x, stride, steps, v, values, inner, hard, detach, kind, alpha,
    grad_spikes, grad_last, grad_x, grad_v, grad_params, start, stop,
):  # fmt: skip
    neurons = len(grad_x) // steps
    chunk = max(32, min(CHUNK // 2, KEPT // steps))
    p = np.empty((5, chunk), np.float32)
    kept = np.empty((2, steps, chunk), np.float32)
    h, before = kept[0], kept[1]
    rows = np.empty((8, chunk), np.float32)
    now, slope, wide, gv = rows[0], rows[1], rows[2], rows[3]
    gh, gu, gr, scratch = rows[4], rows[5], rows[6], rows[7]
    none = np.zeros(chunk, np.float32)
    sums = np.empty((5, chunk), np.float32)
    ignored, sign = np.empty(chunk, np.uint8), np.uint8(0)
    learn = len(grad_params) > 0
    threshold = p[3]
    for first in range(start, stop, chunk):
        size = min(chunk, stop - first)
        for i in range(5):
            if len(values[i]) > 1 or first == start:
                _lay(values[i], inner[i], first, p[i, : size if len(values[i]) > 1 else chunk])
        _start(v, first, now[:size])
        for t in range(steps):
            at = t * stride + first
            current = _widen(x[at : at + size], wide[:size])
            if learn:
                before[t, :size] = now[:size]
            _step(p, current, now, h[t], hard, ignored, sign, sign)
        if len(grad_last) > 0:
            gv[:size] = grad_last[first : first + size]
        else:
            gv[:size] = 0
        if learn:
            sums[:] = 0
        for t in range(steps - 1, -1, -1):
            at = t * neurons + first
            gs = none[:size]
            if len(grad_spikes) > 0:
                gs = _widen(grad_spikes[at : at + size], wide[:size])
            _derive(h[t, :size], threshold, kind, alpha, slope)
            gx = _place(grad_x[at : at + size], scratch[:size])
            _step_back(p, h[t], slope[:size], gs, gv, hard, detach, learn, gh, gu, gr, gx)
            _narrow(gx, grad_x[at : at + size])
            if learn:
                at = t * stride + first
                current = _widen(x[at : at + size], wide[:size])
                _add_up(current, before[t], gh, gu, gr, sums)
        if len(grad_v) > 0:
            grad_v[first : first + size] = gv[:size]
        if learn:
            grad_params[:, first : first + size] = sums[:, :size]


def forward(
    x: Tensor,
    v: Tensor | None,
    params: Sequence[Spread],
    rule: Rule,
    spikes: Tensor,
    last: Tensor | None,
) -> None:
    """See :class:`isospike.kernels.engine.Engine`."""
    flat, stride = _by_step(x)
    out = _numpy(spikes).reshape(-1)
    signs = _numpy(torch.tensor([0, 1], dtype=spikes.dtype))
    arguments = (
        flat, stride, len(x), _optional(v, np.float32), *_split(params), rule.hard, out, signs,
        _optional(last, np.float32),
    )  # fmt: skip
    _share(_forward, arguments, math.prod(x.shape[1:]), x.numel())


def backward(
    x: Tensor,
    v: Tensor | None,
    params: Sequence[Spread],
    rule: Rule,
    grad_spikes: Tensor | None,
    grad_last: Tensor | None,
    grad_x: Tensor,
    grad_v: Tensor | None,
    grad_params: Tensor | None,
) -> None:
    """See :class:`isospike.kernels.engine.Engine`."""
    flat, stride = _by_step(x)
    alpha = np.array(
        [rule.alpha, math.pi / 2 * rule.alpha, rule.alpha / 2, rule.alpha / math.sqrt(math.pi)],
        np.float32,
    )
    arguments = (
        flat, stride, len(x), _optional(v, np.float32), *_split(params), rule.hard, rule.detach,
        rule.surrogate, alpha, _optional(grad_spikes, _numpy(grad_x).dtype),
        _optional(grad_last, np.float32), _numpy(grad_x).reshape(-1), _optional(grad_v, np.float32),
        np.empty((0, 0), np.float32) if grad_params is None else _numpy(grad_params.flatten(1)),
    )  # fmt: skip
    _share(_backward, arguments, math.prod(x.shape[1:]), x.numel())


def _share(
    kernel: Callable[..., None], arguments: tuple[Any, ...], count: int, elements: int
) -> None:
    """Run ``kernel(*arguments, start, stop)`` over equal ranges of ``count``, by one thread or
    more, as the work on all ``elements`` is worth it."""
    parts = max(1, min(torch.get_num_threads(), count, elements // SMALL))
    edges = [count * i // parts for i in range(parts + 1)]
    threads = [
        threading.Thread(target=kernel, args=(*arguments, *edge))
        for edge in zip(edges[1:-1], edges[2:], strict=True)
    ]
    for thread in threads:
        thread.start()
    kernel(*arguments, edges[0], edges[1])
    for thread in threads:
        thread.join()


def _split(params: Sequence[Spread]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    values = tuple(_numpy(p.values.contiguous()) for p in params)
    return values, tuple(p.inner for p in params)


def _by_step(x: Tensor) -> tuple[Any, int]:
    """The memory of ``x`` as one axis, and how far apart two steps lie in it; 0 if repeated."""
    if not x[0].is_contiguous():
        x = x.contiguous()
    if x.numel() == 0:
        return _numpy(x).reshape(-1), 0
    stride = x.stride(0) if len(x) > 1 else x[0].numel()
    extent = stride * (len(x) - 1) + x[0].numel()
    return _numpy(x.as_strided((extent,), (1,))), stride


def _optional(x: Tensor | None, dtype: Any) -> Any:
    """One axis of memory; none at all stands for None."""
    return np.empty(0, dtype) if x is None else _numpy(x.contiguous()).reshape(-1)


def _numpy(x: Tensor) -> Any:
    """The memory of ``x``; bfloat16 and bool, which Numba does not know, as words and bytes."""
    x = x.detach()
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    elif x.dtype == torch.bool:
        x = x.view(torch.uint8)
    return x.numpy()
