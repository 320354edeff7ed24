"""The neuron in one pass over memory, compiled by Triton, for float32, bfloat16 and any spikes.

A program keeps a block of neurons in registers through all steps. Sums and products are rounded one
by one (``enable_fp_fusion=False``), so that spikes are those of the other engines. The gradient
writes each step's h where the step's gradient of the input will be, or beside it if that is
narrower, and reads it again on its way back.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isospike.errors import MissingExtraError
from isospike.kernels.neuron.engine import BroadcastParam, Gradients, Problem

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise MissingExtraError(
        "engine='gpu' needs the package triton, got none. Install isospike[gpu]."
    ) from error

BLOCK = 1024  # neurons of one program
WARPS = 4  # that share them


@triton.jit
def _places(small: tl.constexpr, BLOCK: tl.constexpr):
    """The neurons of a program; 32 bits, where they suffice, divide faster."""
    if small:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    else:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return place


@triton.jit
def _load(values, period, inner, place, mask, kind: tl.constexpr):
    """A parameter: a number, or one for each neuron."""
    if kind == 0:
        value = tl.load(values)
    elif kind == 1:
        value = tl.load(values + place % period, mask=mask, other=1.0)
    else:
        value = tl.load(values + (place // inner) % period, mask=mask, other=1.0)
    return value


@triton.jit
def _forward(
    x, stride, steps, neurons, v, spikes, last, p0, p1, p2, p3, p4,
    n0, n1, n2, n3, n4, i0, i1, i2, i3, i4,
    hard: tl.constexpr, given: tl.constexpr, keep: tl.constexpr,
    k0: tl.constexpr, k1: tl.constexpr, k2: tl.constexpr, k3: tl.constexpr, k4: tl.constexpr,
    small: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = _places(small, BLOCK)
    mask = place < neurons
    decay, gain = _load(p0, n0, i0, place, mask, k0), _load(p1, n1, i1, place, mask, k1)
    bias, threshold = _load(p2, n2, i2, place, mask, k2), _load(p3, n3, i3, place, mask, k3)
    reset = _load(p4, n4, i4, place, mask, k4)
    now = tl.load(v + place, mask=mask, other=0.0) if given else tl.zeros([BLOCK], tl.float32)
    for step in range(steps):
        t = tl.cast(step, tl.int64)  # a place may lie beyond 2^31
        current = tl.load(x + t * stride + place, mask=mask, other=0.0).to(tl.float32)
        h = decay * now + gain * current + bias
        fires = h >= threshold
        s = tl.where(fires, 1.0, 0.0).to(spikes.dtype.element_ty)
        tl.store(spikes + t * neurons + place, s, mask=mask)
        if hard:
            now = tl.where(fires, reset, h)
        else:
            now = tl.where(fires, h - reset, h)
    if keep:
        tl.store(last + place, now, mask=mask)


@triton.jit
def _backward(
    x, stride, steps, neurons, v, h_kept, grad_spikes, grad_last, grad_x, grad_v, grads,
    p0, p1, p2, p3, p4, n0, n1, n2, n3, n4, i0, i1, i2, i3, i4, alpha,
    hard: tl.constexpr, detach: tl.constexpr, kind: tl.constexpr, given: tl.constexpr,
    has_spikes: tl.constexpr, has_last: tl.constexpr, learn: tl.constexpr,
    k0: tl.constexpr, k1: tl.constexpr, k2: tl.constexpr, k3: tl.constexpr, k4: tl.constexpr,
    small: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = _places(small, BLOCK)
    mask = place < neurons
    decay, gain = _load(p0, n0, i0, place, mask, k0), _load(p1, n1, i1, place, mask, k1)
    bias, threshold = _load(p2, n2, i2, place, mask, k2), _load(p3, n3, i3, place, mask, k3)
    reset = _load(p4, n4, i4, place, mask, k4)
    start = tl.load(v + place, mask=mask, other=0.0) if given else tl.zeros([BLOCK], tl.float32)
    now = start
    for step in range(steps):
        t = tl.cast(step, tl.int64)  # a place may lie beyond 2^31
        current = tl.load(x + t * stride + place, mask=mask, other=0.0).to(tl.float32)
        h = decay * now + gain * current + bias
        tl.store(h_kept + t * neurons + place, h, mask=mask)
        fires = h >= threshold
        if hard:
            now = tl.where(fires, reset, h)
        else:
            now = tl.where(fires, h - reset, h)
    tl.debug_barrier()  # h is read by other threads than wrote it, if another type is read with it
    gv = (
        tl.load(grad_last + place, mask=mask, other=0.0)
        if has_last
        else tl.zeros([BLOCK], tl.float32)
    )
    s0, s1, s2, s3, s4 = gv * 0, gv * 0, gv * 0, gv * 0, gv * 0
    for back in range(steps):
        t = tl.cast(steps - 1 - back, tl.int64)
        h = tl.load(h_kept + t * neurons + place, mask=mask, other=0.0)
        u = h - threshold
        if kind == 0:
            e = tl.exp(-tl.abs(alpha * u))
            slope = alpha * e / ((1 + e) * (1 + e))
        elif kind == 1:
            z = 1.5707963267948966 * alpha * u
            slope = alpha / 2 / (1 + z * z)
        elif kind == 2:
            slope = alpha * tl.maximum(1 - tl.abs(alpha * u), 0.0)
        elif kind == 3:
            slope = alpha * 0.5641895835477563 * tl.exp(-(alpha * u) * (alpha * u))
        else:
            z = 1 + tl.abs(alpha * u)
            slope = 1 / (z * z)
        fires = h >= threshold
        gs = tl.zeros([BLOCK], tl.float32)
        if has_spikes:
            gs = tl.load(grad_spikes + t * neurons + place, mask=mask, other=0.0).to(tl.float32)
        held = tl.where(fires, gv, 0.0)
        if hard:
            if not detach:
                gs += gv * (reset - h)
            gu = gs * slope
            gh = gu + (gv - held)
        else:
            if not detach:
                gs -= gv * reset
            gu = gs * slope
            gh = gu + gv
            held = -held
        if learn:
            before = start
            if t > 0:
                earlier = tl.load(h_kept + (t - 1) * neurons + place, mask=mask, other=0.0)
                if hard:
                    before = tl.where(earlier >= threshold, reset, earlier)
                else:
                    before = tl.where(earlier >= threshold, earlier - reset, earlier)
            current = tl.load(x + t * stride + place, mask=mask, other=0.0).to(tl.float32)
            s0 += gh * before
            s1 += gh * current
            s2 += gh
            s3 -= gu
            s4 += held
        tl.store(grad_x + t * neurons + place, (gain * gh).to(grad_x.dtype.element_ty), mask=mask)
        gv = decay * gh
    if given:
        tl.store(grad_v + place, gv, mask=mask)
    if learn:
        row = place.to(tl.int64)
        tl.store(grads + row, s0, mask=mask)
        row += neurons
        tl.store(grads + row, s1, mask=mask)
        row += neurons
        tl.store(grads + row, s2, mask=mask)
        row += neurons
        tl.store(grads + row, s3, mask=mask)
        row += neurons
        tl.store(grads + row, s4, mask=mask)


def forward(problem: Problem, spikes: Tensor, last: Tensor | None) -> None:
    """See :class:`isospike.kernels.neuron.engine.Engine`."""
    x, grid, sizes = _layout(problem.x)
    if grid is None:
        return
    out = spikes.view(torch.uint8) if spikes.dtype == torch.bool else spikes
    with torch.cuda.device_of(x):
        _forward[grid](
            x, *sizes, _or(problem.v, x), out, _or(last, x), *_split(problem.params),
            hard=problem.rule.hard, given=problem.v is not None, keep=last is not None,
            **_constants(problem),
        )  # fmt: skip


def backward(problem: Problem, grads: Gradients) -> None:
    """See :class:`isospike.kernels.neuron.engine.Engine`."""
    x, grid, sizes = _layout(problem.x)
    if grid is None:
        return
    v, rule = problem.v, problem.rule
    wide = grads.x.dtype == torch.float32
    kept = grads.x if wide else torch.empty_like(grads.x, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[grid](
            x, *sizes, _or(v, x), kept, _or(grads.spikes, x), _or(grads.last, x), grads.x,
            _or(grads.v, x), _or(grads.params, x), *_split(problem.params), rule.alpha,
            hard=rule.hard, detach=rule.detach, kind=rule.surrogate, given=v is not None,
            has_spikes=grads.spikes is not None, has_last=grads.last is not None,
            learn=grads.params is not None, **_constants(problem),
        )  # fmt: skip


def _layout(x: Tensor) -> tuple[Tensor, tuple[int] | None, tuple[int, int, int]]:
    """``x`` with dense steps, the programs, and step stride, steps and neurons."""
    neurons = math.prod(x.shape[1:])
    if not x[0].is_contiguous():
        x = x.contiguous()
    grid = (triton.cdiv(neurons, BLOCK),) if neurons else None
    return x, grid, (x.stride(0), len(x), neurons)


def _split(params: Sequence[BroadcastParam]) -> tuple[Any, ...]:
    values = tuple(p.values.contiguous() for p in params)
    return *values, *(len(p) for p in values), *(p.inner for p in params)


def _constants(problem: Problem) -> dict[str, Any]:
    """What the compiler is to know: how the parameters lie, and whether 32 bits count neurons."""
    params = problem.params
    kinds = {f"k{i}": (p.inner > 1) + 1 if len(p.values) > 1 else 0 for i, p in enumerate(params)}
    small = math.prod(problem.x.shape[1:]) + BLOCK < 2**31
    return {**kinds, "small": small, "BLOCK": BLOCK, "num_warps": WARPS, "enable_fp_fusion": False}


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    """A pointer is needed even where it is not followed."""
    return other if x is None else x.contiguous()
