"""Set every range and bias of a fresh port from what a float pass has shown."""

import torch

from isospike.errors import InputError
from isospike.porting.functions import SpikingGatedMLP, SpikingNorm
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.sites import Site
from isospike.porting.statistics import Statistics


def calibrate(ported: Ported, statistics: Statistics, dynamic: bool) -> None:
    """Calibrate a fresh port whose sites have their codes; it then runs on spikes.

    Nothing is run and nothing is trained: ranges, weights and biases follow from the samples.

    Args:
        ported: A copy of a discovered model.
        statistics: Of the model, from its calibration inputs.
        dynamic: Whether ranges follow the input.

    Raises:
        InputError: Values at a site are too large to be encoded, or it was not reached.
    """
    for site in ported.sites:
        site.octaves = ported.run.mode.spiking
    readers: dict[str, list[SpikingProduct]] = {}
    for product in ported.products:
        if not isinstance(product, SpikingProduct):
            product.calibrate(statistics, dynamic)
        else:
            readers.setdefault(product.site.name, []).append(product)
    for products in readers.values():
        _fit(products[0].site, products, statistics, dynamic)
        for product in products:
            product.fold(statistics.sample(product.site.name))
    for module in ported.model.modules():
        if isinstance(module, SpikingNorm | SpikingGatedMLP):
            module.fit(statistics.sample(module.name))
        if isinstance(module, SpikingProduct | SpikingNorm) and module.relay is not None:
            module.fit_relay(statistics.sample(module.relay_name))
    for site in ported.sites:
        if not all(bool(t.isfinite().all()) for t in (site.scale, site.offset, site.limit)):
            raise InputError(
                f"port needs finite activations, got NaN or infinity at {site.name}. Check the "
                "model's weights and inputs."
            )
    ported.run.phase = "run"


def _fit(site: Site, readers: list[SpikingProduct], statistics: Statistics, dynamic: bool) -> None:
    """Set the range of a site that products with a weight read."""
    sample = statistics.sample(site.name)
    if not dynamic:
        site.fit(sample.with_extremes)
        return
    every = torch.cat([p.by_input for p in readers], 1)
    site.follow(statistics.dynamic_range(site.name, every.norm(dim=1)), sample.extremes)
