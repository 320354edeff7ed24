"""A site: the population of neurons at the input of one or more matrix products."""

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isospike.codes import BernoulliCode, WeightedCode
from isospike.codes.law import shortest_code
from isospike.kernels.product.trains import MAX_TABLE_STEPS, pack_trains, spike_steps
from isospike.kernels.runtime.buffers import Purpose, cache_blocks, workspace
from isospike.porting.ranges import fit_range


class Site(nn.Module):
    """Turns real values into the spikes that enter a matrix product.

    (1)  u = (x - offset) / scale, saturating at the ends of the code's range
    (2)  N = code.integers(u), the integer that the spike train spells
    (3)  x ~ offset + amplitude * N, with amplitude = scale / levels

    ``offset`` is a constant current folded into the bias that follows, ``amplitude`` a gain folded
    into the weights, so that only the spikes themselves enter the product.

    Attributes:
        name: See :class:`isospike.porting.report.SiteReport`.
        kind: likewise.
        code: Its code.
        offset, scale: Per channel, shaped to broadcast against ``x``.
        fitted: Whether the range has been set.
        fan_out: Additions that one spike causes, over all products that read this site.
        shared: Whether several products read it; its last result is then kept for them.
        wanted: The coarsest amplitude of each channel, if it was given one; its code then is the
            longest it may have, until the range is fitted.
        generator: Source of randomness of the Bernoulli code; torch's global one if None.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, name: str, kind: str, code: WeightedCode, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.code = code
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.fitted = False
        self.fan_out = 0.0
        self.shared = False
        self.wanted: Tensor | None = None
        self.generator: torch.Generator | None = None
        self._last: tuple[Any, Any, Tensor] | None = None

    @property
    def amplitude(self) -> Tensor:
        """Value of the integer 1, per channel."""
        return self.scale / self.code.levels

    def fit(self, rows: Tensor) -> None:
        """Set the range from a sample ``[rows, channels]``."""
        found = fit_range(rows, self.code)
        self.offset = found.offset.view(self.offset.shape)
        self.scale = found.scale.view(self.scale.shape)
        self.coarsen()
        self.fitted = True

    def coarsen(self) -> None:
        """Give every channel its wanted amplitude, and the site no more steps than they need."""
        if self.wanted is None:
            return
        span = self.scale
        # Nothing is left of a channel at twice its range; a row of attention keeps its largest.
        coarsest = span if self.kind == "probability" else 4 * span
        amplitude = torch.minimum(self.wanted.to(span), coarsest)
        amplitude = torch.maximum(amplitude, span / self.code.levels)
        self.code = shortest_code(self.code, span, amplitude)
        self.scale, self.wanted = amplitude * self.code.levels, None

    def integers(
        self,
        x: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        into: Purpose | None = None,
    ) -> Tensor:
        """(2), the collapsed form of the spike train.

        Args:
            x: Values, channels where ``offset`` has them.
            dtype: Of the result; bfloat16 holds up to 8 bits and a sign. float64 stays float64.
            into: The workspace for a result that is used at once; by default it has memory of its
                own.
        """
        into = None if self.shared else into
        return self._once(x, dtype, lambda: self._integers(x, dtype, into))

    def words(self, x: Tensor) -> Tensor:
        """The spike trains, each in a word: :func:`isospike.kernels.product.trains.pack_trains`."""
        wide = self.offset.dtype

        def spell() -> Tensor:
            # A long train stays integers; those that other readers will ask for are kept.
            kept = self.shared and self.code.steps > MAX_TABLE_STEPS
            into = None if kept else Purpose.TRAINS
            return pack_trains(self.code, self._integers(x, wide, into))

        return self._once(x, "words", spell)

    def spikes(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Weight and spikes of each step: :func:`isospike.kernels.product.trains.spike_steps`."""
        return spike_steps(self.code, self.words(x))

    def _once(self, x: Tensor, what: object, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, kept for the other readers of a shared site while ``x`` is alive."""
        if not self.shared:
            return compute()
        key, last = (tensor_version(x), what), self._last
        if last is not None and last[0]() is x and last[1] == key:
            return last[2]
        result = compute()
        self._last = (weakref.ref(x, lambda _: self._forget()), key, result)
        return result

    def _integers(self, x: Tensor, dtype: torch.dtype, into: Purpose | None) -> Tensor:
        code, x = self.code, x.detach()
        wide = self.offset.dtype
        dtype = wide if wide == torch.float64 else dtype
        if isinstance(code, BernoulliCode):
            u = ((x - self.offset) / self.scale).clamp_(code.low, 1.0)
            return code.integers(u, generator=self.generator).to(dtype)
        # floor(u * levels + 1/2) with the affine map folded in.
        gain = code.levels / self.scale
        shift = 0.5 - self.offset * gain
        top = _representable(code.levels, wide)
        memory = functools.partial(workspace, device=x.device)
        n = memory(into, x.shape, dtype) if into else x.new_empty(x.shape, dtype=dtype)
        for part in cache_blocks(x, x.numel()):
            value = x[part]
            block = n[part] if dtype == wide else memory(Purpose.ROUNDED, value.shape, wide)
            if x.dtype != wide:
                value = block.copy_(value)
            if gain.dim():
                torch.addcmul(shift, value, gain, out=block)
            else:  # several times faster with scalars
                torch.mul(value, gain, out=block).add_(shift)
            block.floor_().clamp_(code.low * top, top)
            if dtype != wide:
                n[part] = block
        return n

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
