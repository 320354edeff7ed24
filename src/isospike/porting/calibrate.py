"""Set every range and bias of a fresh port from what a float pass has shown, block by block."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from isospike.codes import WeightedCode
from isospike.errors import InputError
from isospike.porting.attention import SpikingAttention
from isospike.porting.blocks import part_of
from isospike.porting.calls import Calls
from isospike.porting.elementary import EVERY
from isospike.porting.offload import at_hand
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct, moments_of, wire
from isospike.porting.sites import Site
from isospike.porting.statistics import Sample, Statistics
from isospike.porting.synapses import SIXTEEN, Synapses

# How even the scales of channels are: on other inputs other channels are large, and weights whose
# channels have scales of one size need fewer bits.
EVENNESS = 0.35
CodeOf = Callable[[Site, Statistics], WeightedCode]
"""The code of a site, once it is known what reaches it."""


class Calibration:
    """Calibrates a fresh port. Nothing is run and nothing trained: ranges, weights and biases
    follow from the samples.

    A block is calibrated once all samples of it are there. A site that is read in several blocks is
    calibrated at the end, with all that reads it.

    Args:
        ported: A copy of a discovered model.
        template: The model, of which samples are taken.
        code_of: The code of each site.
        dynamic: Whether ranges follow the input.
        blocks: Names of the blocks.
        synapses: Bits of the weights.
        again: Whether :mod:`isospike.porting.reround` follows; weights of few bits are then rounded
            to the nearest.
    """

    def __init__(
        self, ported: Ported, template: Ported, code_of: CodeOf, dynamic: bool,
        blocks: Sequence[str] = (), synapses: Synapses = SIXTEEN, again: bool = False,
    ) -> None:  # fmt: skip
        self.synapses, self.again = synapses, again
        self.ported, self.code_of, self.dynamic = ported, code_of, dynamic
        self.template = template
        self.originals = dict(zip(ported.products, template.products, strict=True))
        self.parts: dict[str, str] = {}  # block of every site, and of other samples
        self.blocks = blocks
        for site in ported.sites:
            site.octaves = ported.run.mode.spiking
        self.paths = {module: path for path, module in ported.model.named_modules()}
        for module in ported.products:
            part = part_of(self.paths[module], blocks)
            for site in module.sites:
                self.parts[site.name] = part if self.parts.get(site.name, part) == part else ""
        self.late = {self.paths[m] for m in ported.products if not self.parts[m.sites[0].name]}

    def part(self, block: str, statistics: Statistics) -> None:
        """Calibrate what is in a block, and drop its samples; what is left, for the empty name.

        Raises:
            InputError: Values at a site are too large to be encoded, or it was not reached.
        """
        products = [m for m in self.ported.products if self.parts[m.sites[0].name] == block]
        sites = {id(site): site for module in products for site in module.sites}.values()
        for site in sites:
            site.code = self.code_of(site, statistics)
        readers: dict[str, list[SpikingProduct]] = {}
        for product in products:
            if isinstance(product, SpikingProduct):
                readers.setdefault(product.site.name, []).append(product)
                continue
            if isinstance(product, SpikingAttention):  # what the latest pass has shown
                product.absolute = bool(self.originals[product].absolute)
            product.calibrate(statistics, self.dynamic)
            if block:
                statistics.drop(site.name for site in product.sites)
        for each in readers.values():
            size = self._size(each)
            self._fit(each[0].site, size, statistics)
            self._fold(each, size, statistics.sample(each[0].site.name))
            if block:
                statistics.drop([each[0].site.name])
        for module, path in self.paths.items():
            if part_of(path, self.blocks) != block:
                continue
            circuit: Any = module
            if isinstance(module, EVERY) and circuit.name in statistics.samples:
                circuit.fit(statistics.sample(circuit.name))
        for module, path in self.paths.items():
            if isinstance(module, Calls) and part_of(path, self.blocks) == block:
                module.share_digits()
        for site in sites:
            if not all(bool(t.isfinite().all()) for t in (site.scale, site.offset, site.limit)):
                raise InputError(
                    f"port needs finite activations, got NaN or infinity at {site.name}. Check the "
                    "model's weights and inputs."
                )
        if block:
            statistics.drop(
                name for name in chain(statistics.samples)
                if self.parts.get(name, part_of(name.partition("/")[0], self.blocks)) == block
            )  # fmt: skip
        else:
            self.ported.run.phase = "run"

    def _size(self, readers: Sequence[SpikingProduct]) -> Tensor:
        """Of each input channel's weights, over all products that read a site."""
        every = []
        for product in readers:
            with at_hand(self.template.model, self.paths[product]):
                every.append(product.by_input if len(readers) == 1 else product.by_input.clone())
        size: Tensor = torch.cat(every, 1).norm(dim=1)
        return size

    def _fit(self, site: Site, size: Tensor, statistics: Statistics) -> None:
        """Set the range of a site that products with a weight read."""
        sample = statistics.sample(site.name)
        if not self.dynamic:
            site.fit(sample.with_extremes)
            return
        site.follow(statistics.dynamic_range(site.name, size, EVENNESS), sample.extremes)

    def _fold(self, readers: Sequence[SpikingProduct], size: Tensor, sample: Sample) -> None:
        """Fold the ranges of a site into what reads it, and round the weights."""
        bits = {product: self.synapses.bits_of(product.name) for product in readers}
        few = [product for product, each in bits.items() if each < 16]
        if few:
            wire(few, size)
        moments = moments_of(few[0], sample) if few and not self.again else None
        for product, each in bits.items():
            with at_hand(self.template.model, self.paths[product]):
                product.fold(sample, each, moments)
