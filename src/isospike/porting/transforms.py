"""Fourier transforms, distances and sampling as products of matrices.

A Fourier transform is a product with constant coefficients, of n^2 in place of n log n
multiplications: what spikes enter is a matrix.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isospike.porting.lowering import Lowering, Multiplier, matrices

# ------------------------------------------------------------------------- Fourier


def _scale(norm: str | None, n: int, inverse: bool) -> float:
    if norm == "ortho":
        return float(n**-0.5)
    return 1 / n if (norm == "forward") != inverse else 1.0


def _waves(rows: int, columns: int, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi j k / n, ``[rows, columns]``."""
    j, k = (torch.arange(size, device=like.device) for size in (rows, columns))
    angle = (j[:, None] * k % n).double() * (2 * math.pi / n)
    kind = like.real.dtype
    return angle.cos().to(kind), angle.sin().to(kind)


def _sized(x: Tensor, n: int) -> Tensor:
    """The last axis cut to a size, or filled up with zeros."""
    if x.shape[-1] >= n:
        return x[..., :n]
    return torch.cat([x, x.new_zeros(*x.shape[:-1], n - x.shape[-1])], -1)


def _parts(x: Tensor) -> Tensor:
    """Real parts, then imaginary ones, if there are some."""
    return torch.cat([x.real, x.imag], -1) if x.is_complex() else x


def _transform(
    m: Multiplier, x: Tensor, n: int | None, dim: int, norm: str | None, inverse: bool,
    half: bool = False,
) -> Tensor:  # fmt: skip
    """A transform along an axis; of its ``n`` frequencies the first half and one, or all."""
    x = x.movedim(dim, -1)
    n = x.shape[-1] if n is None else n
    x = _sized(x, n)
    count = n // 2 + 1 if half else n
    cosine, sine = _waves(n, count, n, x)
    sine = sine if inverse else -sine
    rows = [torch.cat([cosine, sine], 1)]
    if x.is_complex():
        rows.append(torch.cat([-sine, cosine], 1))
    y = matrices(m, _parts(x), torch.cat(rows) * _scale(norm, n, inverse))
    return torch.complex(y[..., :count].contiguous(), y[..., count:].contiguous()).movedim(-1, dim)


def _real_inverse(m: Multiplier, x: Tensor, n: int | None, dim: int, norm: str | None) -> Tensor:
    """Real values of the first half of their frequencies."""
    x = x.movedim(dim, -1)
    n = 2 * (x.shape[-1] - 1) if n is None else n
    count = n // 2 + 1
    x = _sized(x, count)
    cosine, sine = _waves(count, n, n, x)
    often = torch.full((count, 1), 2.0, dtype=cosine.dtype, device=x.device)
    often[0] = 1.0
    if n % 2 == 0:
        often[-1] = 1.0
    rows = [often * cosine, -often * sine] if x.is_complex() else [often * cosine]
    return matrices(m, _parts(x), torch.cat(rows) * _scale(norm, n, True)).movedim(-1, dim)


def _along(inverse: bool, half: bool = False) -> Lowering:
    def lowered(
        m: Multiplier, input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None,
        **_: Any,
    ) -> Any:  # fmt: skip
        if not _numbers(input):
            return NotImplemented
        if inverse and half:
            return _real_inverse(m, input, n, dim, norm)
        return _transform(m, input, n, dim, norm, inverse, half)

    return lowered


def _along_many(inverse: bool, half: bool = False, two: bool = False) -> Lowering:
    """Along several axes, one after the other; the halved one is the last."""

    def lowered(
        m: Multiplier, input: Tensor, s: Sequence[int] | None = None, dim: Any = None,
        norm: str | None = None, **_: Any,
    ) -> Any:  # fmt: skip
        if not _numbers(input):
            return NotImplemented
        default = range(-2 if two else -(len(s) if s is not None else input.dim()), 0)
        axes = list(default if dim is None else dim)
        sizes: list[Any] = [None if n == -1 else n for n in s] if s is not None else []
        pairs = list(zip(axes, sizes or [None] * len(axes), strict=True))
        first, last = pairs[:-1], pairs[-1]
        x = input
        if not inverse:
            x = _transform(m, x, last[1], last[0], norm, False, half)
        for axis, n in reversed(first):
            x = _transform(m, x, n, axis, norm, inverse)
        if not inverse:
            return x
        if half:
            return _real_inverse(m, x, last[1], last[0], norm)
        return _transform(m, x, last[1], last[0], norm, True)

    return lowered


def _numbers(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


# ------------------------------------------------------------------------- distances


def _distances(m: Multiplier, x1: Tensor, x2: Tensor, p: float = 2.0, *_: Any, **__: Any) -> Any:
    """|a - b|^2 = |a|^2 - 2 a b + |b|^2."""
    if p != 2 or not x1.is_floating_point():
        return NotImplemented
    sizes = x1.square().sum(-1, keepdim=True) + x2.square().sum(-1)[..., None, :]
    return (sizes - 2 * matrices(m, x1, x2.mT)).clamp_min(0).sqrt()


# ------------------------------------------------------------------------- sampling


def _sampled(
    m: Multiplier, input: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool
) -> Any:
    """Four neighbours, and a row of their four weights, for each place."""
    if input.dim() != 4 or mode != 0 or padding == 2:  # bilinear, without reflection
        return NotImplemented
    height, width = input.shape[2:]
    places, weights = [], []
    for axis, size in ((1, height), (0, width)):
        at = grid[..., axis].flatten(1)
        at = (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2
        at = at.clamp(0, size - 1) if padding == 1 else at
        low = at.floor()
        both = torch.stack([low, low + 1])
        share = torch.stack([low + 1 - at, at - low])
        weights.append(share * ((both >= 0) & (both < size)))
        places.append(both.clamp(0, size - 1).long())
    where = (places[0][:, None] * width + places[1]).flatten(0, 1)  # [4, batch, places]
    weight = (weights[0][:, None] * weights[1]).flatten(0, 1)
    flat = input.flatten(2)
    corners = [flat.gather(2, w[:, None].expand(-1, flat.shape[1], -1)) for w in where]
    values = torch.stack(corners, -1).permute(0, 2, 3, 1)  # [batch, places, 4, channels]
    y = matrices(m, weight.permute(1, 2, 0)[:, :, None], values)[:, :, 0]
    return y.transpose(1, 2).reshape(len(y), -1, *grid.shape[1:3])


LOWERINGS: dict[Any, Lowering] = {
    torch.fft.fft: _along(False), torch.fft.ifft: _along(True),
    torch.fft.rfft: _along(False, half=True), torch.fft.irfft: _along(True, half=True),
    torch.fft.fftn: _along_many(False), torch.fft.ifftn: _along_many(True),
    torch.fft.rfftn: _along_many(False, half=True), torch.fft.irfftn: _along_many(True, half=True),
    torch.fft.fft2: _along_many(False, two=True), torch.fft.ifft2: _along_many(True, two=True),
    torch.fft.rfft2: _along_many(False, half=True, two=True),
    torch.fft.irfft2: _along_many(True, half=True, two=True),
    torch.grid_sampler: _sampled,
    torch.cdist: _distances,
}  # fmt: skip
"""By function of torch."""
WRITTEN_IN_PYTHON: tuple[Callable[..., Any], ...] = (F.grid_sample,)
"""Functions that call those."""
