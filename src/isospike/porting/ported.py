"""A model on spikes, with the parts that port, measurements and files need of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from isospike.porting.attention import SpikingAttention
from isospike.porting.elementary import EVERY
from isospike.porting.matmul import SpikingMatmul, SpikingScale
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Run, run_of
from isospike.porting.sites import Site

Product = SpikingProduct | SpikingAttention | SpikingMatmul | SpikingScale


@dataclass(frozen=True)
class Ported:
    """A model whose products read spikes.

    Attributes:
        model: Called like the original.
        run: The state its modules share.
    """

    model: nn.Module
    run: Run

    @classmethod
    def of(cls, model: nn.Module) -> "Ported":
        """The parts of a ported model.

        Raises:
            UnsupportedError: The model is not a port.
        """
        return cls(model, run_of(model))

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """All modules that multiply, in order."""
        return tuple(m for m in self.model.modules() if isinstance(m, Product))

    @cached_property
    def circuits(self) -> tuple[Any, ...]:
        """All modules that compute a function by spikes, in order."""
        return tuple(m for m in self.model.modules() if isinstance(m, EVERY))

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All sites, each once, in order of execution as far as the modules' order tells."""
        seen: dict[int, Site] = {}
        for module in self.products:
            for site in module.sites:
                seen.setdefault(id(site), site)
        return tuple(seen.values())

    def seed(self, generator: torch.Generator | None) -> None:
        """Have the sites of the Bernoulli code draw from ``generator``."""
        for site in self.sites:
            site.generator = generator
