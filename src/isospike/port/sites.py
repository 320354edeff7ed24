"""A site: the population of neurons at the input of one or more matrix products."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isospike.codes import BernoulliCode, LinearCode
from isospike.kernels.binary import spell_bytes
from isospike.port.ranges import fit_range


class Site(nn.Module):
    """Turns real values into the spikes that enter a matrix product.

    (1)  u = (x - offset) / scale, saturating at the ends of the code's range
    (2)  N = code.integers(u), the integer that the spike train spells
    (3)  x ~ offset + amplitude * N, with amplitude = scale / levels

    ``offset`` is a constant current folded into the bias that follows, ``amplitude`` a gain folded
    into the weights, so that only the spikes themselves enter the product.

    Attributes:
        name: See :class:`isospike.port.result.SiteReport`.
        kind: likewise.
        code: Its code.
        offset, scale: Per channel, shaped to broadcast against ``x``.
        fitted: Whether the range has been set.
        fan_out: Additions that one spike causes, over all products that read this site.
        shared: Whether several products read it; its last result is then kept for them.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, name: str, kind: str, code: LinearCode, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.code = code
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.fitted = False
        self.fan_out = 0.0
        self.shared = False
        self._last: tuple[Any, int, str, Tensor] | None = None

    @property
    def amplitude(self) -> Tensor:
        """Value of the integer 1, per channel."""
        return self.scale / self.code.levels

    def fit(self, rows: Tensor) -> None:
        """Set the range from a sample ``[rows, channels]``."""
        found = fit_range(rows, self.code)
        self.offset = found.offset.view(self.offset.shape)
        self.scale = found.scale.view(self.scale.shape)
        self.fitted = True

    def integers(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(2), the collapsed form of the spike train."""
        return self._once("integers", x, lambda: self._integers(x, generator))

    def spikes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The spike train, ``[steps, *x.shape]`` or ``[steps, 2, *x.shape]``, as uint8."""
        return self._once("spikes", x, lambda: spell_bytes(self.code, self._integers(x, generator)))

    def _integers(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        code = self.code
        if isinstance(code, BernoulliCode):
            u = ((x - self.offset) / self.scale).clamp_(code.low, 1.0)
            return code.integers(u, generator=generator)
        # floor(u * levels + 1/2) with the affine map folded in: one pass, then two in place.
        gain = code.levels / self.scale
        n = torch.addcmul(0.5 - self.offset * gain, x, gain).floor_()
        top = _representable(code.levels, n.dtype)
        return n.clamp_(code.low * top, top)

    def _once(self, what: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, kept for the other readers of a shared site while ``x`` is alive."""
        if not self.shared:
            return compute()
        version = tensor_version(x)
        if self._last is not None and self._last[0]() is x and self._last[1:3] == (version, what):
            return self._last[3]
        result = compute()
        self._last = (weakref.ref(x, lambda _: self._forget()), version, what, result)
        return result

    def _forget(self) -> None:
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def extra_repr(self) -> str:
        return f"{self.name}, {self.kind}, {self.code}"


def tensor_version(x: Tensor) -> int:
    """How often ``x`` was written to in place; the same tensor may hold other values later."""
    return 0 if x.is_inference() else x._version


def _representable(levels: int, dtype: torch.dtype) -> float:
    """The largest whole number of ``dtype`` up to ``levels``: 2^25 - 1 rounds up in float32."""
    if levels < 2**24:
        return float(levels)
    top = torch.tensor(levels, dtype=torch.float64).to(dtype)
    return float(top if int(top) <= levels else torch.nextafter(top, torch.zeros_like(top)))
