"""The neuron in one pass over memory, compiled by Numba, for float32 and bfloat16.

The neurons are cut into chunks whose membranes stay in the cache; a chunk runs through all steps
before the next begins. Threads take equal ranges of neurons and share nothing, so that their number
changes no bit.

Sums and products are rounded one by one, as torch does it. Only the surrogates' derivatives may be
contracted.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from isospike.kernels.neuron.engine import BroadcastParam, Gradients, Problem
from isospike.kernels.runtime.buffers import empty_pooled
from isospike.kernels.runtime.threads import parallel_for

CHUNK = 1024  # neurons; their membranes and currents lie in the first-level cache
KEPT = 2**13  # membranes of all steps that the gradient keeps at a time
BIAS = 2  # its place among the parameters
ZERO, HALF, ONE, HALF_PI, ROOT_PI = (
    np.float32(c) for c in (0, 0.5, 1, math.pi / 2, 1 / math.sqrt(math.pi))
)
ROUND = np.float32(3 << 22)  # a number to which this is added loses its fraction
SMALL = 2**16  # elements that one thread does sooner than a second one starts

Split = tuple[tuple[Any, ...], tuple[int, ...], tuple[Any, ...]]  # what _split gives


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


def _row(shared, p, i):
    """Parameter ``i`` of a chunk's neurons: the number they share, or their row of ``p``."""


@overload(_row, inline="always")
def _(shared, p, i):
    if len(shared) > 0:
        return lambda shared, p, i: shared[i]
    return lambda shared, p, i: p[i]


def _at(row, j):
    """Entry ``j`` of what :func:`_row` gave."""


@overload(_at, inline="always")
def _(row, j):
    if isinstance(row, types.Float):
        return lambda row, j: row
    return lambda row, j: row[j]


def _keep(out, j, value):
    """``out[j] = value``; nothing where ``out`` is None."""


@overload(_keep)
def _(out, j, value):
    if isinstance(out, types.NoneType):
        return lambda out, j, value: None

    def keep(out, j, value):
        out[j] = value

    return keep


@njit(cache=True, nogil=True)
def _step(shared, p, x, v, h, hard, spikes, silent, fired):
    """One step of a chunk: charge, fire, reset. ``v`` is overwritten; ``h`` and ``spikes`` are
    filled unless they are None."""
    decay, gain, threshold = _row(shared, p, 0), _row(shared, p, 1), _row(shared, p, 3)
    reset, bias = _row(shared, p, 4), p[2]
    if hard:
        for j in range(len(x)):
            u, r = _at(decay, j) * v[j] + _at(gain, j) * x[j] + bias[j], _at(reset, j)
            fires = u >= _at(threshold, j)
            _keep(spikes, j, fired if fires else silent)
            _keep(h, j, u)
            v[j] = r if fires else u
    else:
        for j in range(len(x)):
            u, r = _at(decay, j) * v[j] + _at(gain, j) * x[j] + bias[j], _at(reset, j)
            fires = u >= _at(threshold, j)
            _keep(spikes, j, fired if fires else silent)
            _keep(h, j, u)
            v[j] = u - r if fires else u


@njit(cache=True, nogil=True)
def _start(v, first, out):
    """The membranes of a chunk before the first step; an empty ``v`` is rest."""
    if len(v) > 0:
        out[:] = v[first : first + len(out)]
    else:
        out[:] = 0


@njit(cache=True, nogil=True)
def _forward(x, stride, steps, v, values, inner, shared, hard, spikes, signs, last, start, stop):
    neurons = len(spikes) // steps
    p = np.empty((5, CHUNK), np.float32)
    now, v_now = np.empty_like(p[0]), np.empty_like(p[0])
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
            _step(shared, p, current, v_now, None, hard, out, signs[0], signs[1])
        if len(last) > 0:
            last[first : first + size] = v_now[:size]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _exp(z):
    """``e^z`` for z <= 0 to 1e-7, in a form that becomes vectors; 0 below -64, where products with
    it would soon be subnormal, which are slow."""
    alive = z > np.float32(-64)
    z = z if alive else ZERO
    k = z * np.float32(1.44269504) + ROUND  # its last bits are those of the number n
    n = k - ROUND
    r = (z - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    q = np.float32(1.9875691500e-4)
    q = q * r + np.float32(1.3981999507e-3)
    q = q * r + np.float32(8.3334519073e-3)
    q = q * r + np.float32(4.1665795894e-2)
    q = q * r + np.float32(1.6666665459e-1)
    q = q * r + np.float32(5.0000001201e-1)
    bits = np.int32((np.float32(k).view(np.int32) + np.int32(127)) << np.int32(23))
    return (q * r * r + r + ONE) * (bits.view(np.float32) if alive else ZERO)


def _slope(alpha, z):
    """The derivative at ``z = h - threshold`` of the surrogate ``len(alpha) - 1``, numbered as in
    ``isospike.surrogate``. A length is part of a type: a compiled loop contains one of these."""


@overload(_slope, inline="always")
def _(alpha, z):
    def sigmoid(alpha, z):
        e = _exp(-abs(alpha[0] * z))
        return alpha[0] * e / ((ONE + e) * (ONE + e))

    def atan(alpha, z):
        y = HALF_PI * alpha[0] * z
        return HALF * alpha[0] / (ONE + y * y)

    def triangle(alpha, z):
        return alpha[0] * max(ONE - abs(alpha[0] * z), ZERO)

    def erf(alpha, z):
        y = alpha[0] * z
        return ROOT_PI * alpha[0] * _exp(-(y * y))

    def superspike(alpha, z):
        y = ONE + abs(alpha[0] * z)
        return ONE / (y * y)

    return (sigmoid, atan, triangle, erf, superspike)[len(alpha) - 1]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _step_back(shared, p, h, alpha, gs, gv, hard, detach, learn, gh, gu, gr, gx):
    """The gradient of :func:`_step`: from those of the spikes and of the membrane after it to
    those of the input and of the membrane before it, which overwrites ``gv``. To learn, also those
    of h, of h through the spike alone, and of what the spikes reset."""
    decay, gain = _row(shared, p, 0), _row(shared, p, 1)
    threshold, reset = _row(shared, p, 3), _row(shared, p, 4)
    through = ZERO if detach else ONE
    if hard:
        for j in range(len(gx)):
            now, g = h[j], gv[j]
            z = now - _at(threshold, j)
            held = g if z >= ZERO else ZERO
            u = (gs[j] + through * (g * (_at(reset, j) - now))) * _slope(alpha, z)
            g = u + (g - held)
            if learn:
                gh[j], gu[j], gr[j] = g, u, held
            gx[j] = _at(gain, j) * g
            gv[j] = _at(decay, j) * g
    else:
        for j in range(len(gx)):
            g, z = gv[j], h[j] - _at(threshold, j)
            held = g if z >= ZERO else ZERO
            u = (gs[j] - through * (g * _at(reset, j))) * _slope(alpha, z)
            g = u + g
            if learn:
                gh[j], gu[j], gr[j] = g, u, -held
            gx[j] = _at(gain, j) * g
            gv[j] = _at(decay, j) * g


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
    x, stride, steps, v, values, inner, shared, hard, detach, alpha,
    grad_spikes, grad_last, grad_x, grad_v, grad_params, start, stop,
):  # fmt: skip
    neurons = len(grad_x) // steps
    chunk = max(32, min(CHUNK, KEPT // steps))
    p = np.empty((5, chunk), np.float32)
    kept = np.empty((2, steps, chunk), np.float32)
    h, before = kept[0], kept[1]
    rows = np.empty((7, chunk), np.float32)
    now, wide, gv, scratch = rows[0], rows[1], rows[2], rows[3]
    gh, gu, gr = rows[4], rows[5], rows[6]
    none = np.zeros(chunk, np.float32)
    sums = np.empty((5, chunk), np.float32)
    learn = len(grad_params) > 0
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
            _step(shared, p, current, now, h[t], hard, None, 0, 0)
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
            gx = _place(grad_x[at : at + size], scratch[:size])
            _step_back(shared, p, h[t], alpha, gs, gv, hard, detach, learn, gh, gu, gr, gx)
            _narrow(gx, grad_x[at : at + size])
            if learn:
                at = t * stride + first
                current = _widen(x[at : at + size], wide[:size])
                _add_up(current, before[t], gh, gu, gr, sums)
        if len(grad_v) > 0:
            grad_v[first : first + size] = gv[:size]
        if learn:
            grad_params[:, first : first + size] = sums[:, :size]


def forward(problem: Problem, spikes: Tensor, last: Tensor | None) -> None:
    """See :class:`isospike.kernels.neuron.engine.Engine`."""
    params = _split(problem.params)
    _run(problem.x, problem.v, params, problem.rule.hard, spikes, last)


class CompiledNeuron:
    """Neurons that run from rest, and whose parameters no longer change: laid out once.

    Args:
        params: See :class:`isospike.kernels.neuron.engine.Problem`.
        hard: Whether they are reset to a value.
    """

    def __init__(self, params: Sequence[BroadcastParam], hard: bool) -> None:
        self.params = _split(params)
        self.hard = hard

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Spikes of ``x [steps, *shape]``, of type ``dtype``."""
        spikes = empty_pooled(x.shape, dtype, x.device)
        _run(x, None, self.params, self.hard, spikes, None)
        return spikes


def _run(
    x: Tensor, v: Tensor | None, params: Split, hard: bool, spikes: Tensor, last: Tensor | None
) -> None:
    flat, stride = _by_step(x)
    arguments = (
        flat, stride, len(x), _optional(v, np.float32), *params, hard, _numpy(spikes).reshape(-1),
        _signs(spikes.dtype), _optional(last, np.float32),
    )  # fmt: skip
    parallel_for(_forward, arguments, math.prod(x.shape[1:]), _threads(x))


@functools.cache
def _signs(dtype: torch.dtype) -> Any:
    """No spike and a spike."""
    return _numpy(torch.tensor([0, 1], dtype=dtype))


def backward(problem: Problem, grads: Gradients) -> None:
    """See :class:`isospike.kernels.neuron.engine.Engine`."""
    x, rule = problem.x, problem.rule
    flat, stride = _by_step(x)
    alpha = (np.float32(rule.alpha),) * (rule.surrogate + 1)
    grad_x = _numpy(grads.x)
    arguments = (
        flat, stride, len(x), _optional(problem.v, np.float32), *_split(problem.params),
        rule.hard, rule.detach, alpha, _optional(grads.spikes, grad_x.dtype),
        _optional(grads.last, np.float32), grad_x.reshape(-1), _optional(grads.v, np.float32),
        np.empty((0, 0), np.float32) if grads.params is None else _numpy(grads.params.flatten(1)),
    )  # fmt: skip
    parallel_for(_backward, arguments, math.prod(x.shape[1:]), _threads(x))


def _threads(x: Tensor) -> int:
    """As many as torch would use, and as the work is worth."""
    return max(1, min(torch.get_num_threads(), x.numel() // SMALL, math.prod(x.shape[1:])))


def _split(params: Sequence[BroadcastParam]) -> Split:
    """Values, how many neurons share one, and the numbers themselves where all neurons share all
    but the bias: the compiled code is then one with fewer loads."""
    values = tuple(_numpy(p.values.contiguous()) for p in params)
    alone = all(len(v) == 1 for i, v in enumerate(values) if i != BIAS)
    shared = tuple(v[0] for v in values) if alone else ()
    return values, tuple(p.inner for p in params), shared


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
