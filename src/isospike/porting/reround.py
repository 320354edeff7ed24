"""Weights of few bits, rounded on what the rounded products before them give.

Products are taken in the order in which they run, one site at a time. With X what the float model
gives the readers of a site and Y what the port gives them, whose earlier products are rounded
already, on the same tokens and both without their means, a reader with the weight W shall give W X:

(1)  W' = W + W K,   K = (X - Y)^T Y (Y^T Y + r I)^-1

W' is rounded by the moments of what enters it in the port (:mod:`isospike.porting.synapses`), and
the bias takes up the mean of W X - W' Y. The ridge r keeps K to what many tokens share; it is as
large as the mean of the diagonal of Y^T Y, for a sample has few tokens and other inputs differ
(compare Li, Yin, Lee, Xiao, Panda 2025, GPTAQ, without a ridge).

The batches of both models wait at each site until all are there, so that one pass does it all.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isospike import progress
from isospike.hf.batches import Batch, count_tokens, token_masks
from isospike.porting.blocks import OutOfOrderError, in_step, without_cache
from isospike.porting.fidelity import same_draws
from isospike.porting.ported import Ported
from isospike.porting.product import REACH_ROWS, SpikingProduct, moments_of
from isospike.porting.sites import Site
from isospike.porting.statistics import Sample, Seen

MOST_ROWS = 8192  # tokens of one site, about
RIDGE = 1.0  # over the mean of the diagonal


class _Reader(NamedTuple):
    """A product with weights of few bits.

    Attributes:
        product: It, in the port.
        original: It, in the model.
    """

    product: SpikingProduct
    original: SpikingProduct


def _stages_of(ported: Ported, template: Ported, batch: Batch) -> list[list[_Reader]]:
    """The readers of each site, in the order in which a pass comes to them.

    Args:
        ported: A calibrated port.
        template: The model as it was discovered.
        batch: Some inputs.

    Raises:
        OutOfOrderError: They do not come to all sites.
    """
    readers: dict[str, list[_Reader]] = {}
    for product, original in zip(ported.products, template.products, strict=True):
        if not isinstance(product, SpikingProduct) or not isinstance(original, SpikingProduct):
            continue
        if product.conv is None and product.weight_bits < 16:
            readers.setdefault(product.site.name, []).append(_Reader(product, original))
    stages = {each[0].original: each for each in readers.values()}
    order: dict[nn.Module, list[_Reader]] = {}

    def note(module: Any, _: Any) -> None:
        order.setdefault(module, stages[module])

    hooks = [module.register_forward_pre_hook(note) for module in stages]
    try:
        with torch.no_grad(), same_draws():
            template.model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(order) < len(stages):
        raise OutOfOrderError
    return list(order.values())


def round_again(ported: Ported, template: Ported, batches: Sequence[Batch]) -> None:
    """Round the weights of few bits of a calibrated port as (1) says, in place.

    Args:
        ported: The port.
        template: The model as it was discovered.
        batches: The calibration inputs.

    Raises:
        OutOfOrderError: They do not all come to the same sites in one order.
    """
    stages = _stages_of(ported, template, batches[0])
    wanted: dict[str, Sample] = {}  # X
    given: dict[str, Sample] = {}  # Y
    tokens = [max(1, count_tokens(batch)) for batch in batches]

    def pass_of(part: Ported, samples: dict[str, Sample], number: int) -> None:
        before, total = (sum(t) / tokens[number] for t in (tokens[:number], tokens))
        watcher = _Entering(part.run, samples, number, before, total, MOST_ROWS)
        batch = batches[number]
        with torch.no_grad(), same_draws(), part.run.watching(watcher, token_masks(batch)):
            part.model(**batch)

    def arrived(product: Any, args: tuple[Tensor, ...]) -> None:
        product.run.watcher.take(product.site, args[0].to(product.weight.dtype))

    def begins(number: int) -> None:
        progress.update("round", number, len(stages))
        name = stages[number][0].product.site.name
        if name not in wanted or name not in given:
            raise OutOfOrderError
        _round(stages[number], wanted.pop(name), given.pop(name))

    passes = [
        partial(pass_of, part, samples, number)
        for number in range(len(batches))
        for part, samples in ((template, wanted), (ported, given))
    ]
    modules = [(readers[0].original, readers[0].product) for readers in stages]
    # What is collapsed has the bits of what is stepped, and one product in place of many.
    whole = ported.run.switched(execution="collapsed", precision="exact")
    with whole, without_cache(template.model), without_cache(ported.model):
        in_step([template.run, ported.run], modules, passes, arrived=arrived, begins=begins)
    progress.update("round", len(stages), len(stages))


class _Entering(Seen):
    """Takes note of what it is told to, and of nothing else."""

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        return x

    def on_values(self, name: str, x: Tensor) -> None:
        pass


def _round(readers: Sequence[_Reader], wanted: Sample, given: Sample) -> None:
    first, x = readers[0].product, wanted.rows.double()
    if len(x) != len(given.rows):
        raise OutOfOrderError
    moments = moments_of(first, given)
    decoded = first.site.decode(first.site.read(given.rows)).double()
    correction = _correction(x - decoded, decoded)
    for product, original in readers:
        weight = original.weight.detach().double()
        mean = weight @ wanted.some(REACH_ROWS).double().mean(0)  # of the rows that fold reads
        product.weight = nn.Parameter(
            (weight + weight @ correction).to(product.weight.dtype), requires_grad=False
        )
        with torch.no_grad():
            product.bias.copy_(original.bias)
            product.fold(given, product.weight_bits, moments, mean.to(product.weight.dtype))


def _correction(lost: Tensor, decoded: Tensor) -> Tensor:
    """K of (1)."""
    lost, decoded = lost - lost.mean(0), decoded - decoded.mean(0)
    h = decoded.T @ decoded
    h.diagonal().add_((RIDGE * h.diagonal().mean()).clamp_min(1e-30))
    k: Tensor = torch.linalg.solve(h, decoded.T @ lost).T
    return k
