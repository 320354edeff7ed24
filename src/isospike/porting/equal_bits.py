"""The quantised network of as many bits as a port, run: what every product reads and its weights
are integers on a uniform grid, everything else stays float.

(1)  x -> low + step * round((x - low) / step),  step = (high - low) / (2^bits - 1)

with ``low`` and ``high`` those of each token (each head of it in attention, each image before a
convolution), as is usual for quantised transformers, and ``bits`` those of the spike code that the
port has there. Weights are symmetric and rounded to the nearest, in the groups of
:mod:`isospike.porting.synapses`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isospike.hf.batches import Batch
from isospike.porting.measure import compare
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Watcher
from isospike.porting.sites import Site
from isospike.porting.synapses import round_weight
from isospike.porting.tables import tables_of, whole_rows


def equal_bit_error(
    model: nn.Module, template: Ported, ported: Ported, batches: Sequence[Batch],
    blocks: Sequence[str] = (),
) -> float:  # fmt: skip
    """Error of the quantised network of as many bits as a port.

    Args:
        model: The float model.
        template: It as discovered.
        ported: Its port.
        batches: What it is measured on.
        blocks: Names of the blocks that run one by one.

    Returns:
        The relative root-mean-square error of the first output.
    """
    weights = {p.name: p.weight_bits for p in ported.products if isinstance(p, SpikingProduct)}
    watcher = EqualBits({site.name: site.code.bits for site in ported.sites})
    with rounded_weights(template, weights, tables_of(ported.model)):
        return compare(model, template, batches, watcher, blocks=blocks).error


class EqualBits(Watcher):
    """Rounds what the sites of a float pass read, by (1).

    Args:
        bits: Of each site, by name.
    """

    sees_probabilities = True

    def __init__(self, bits: Mapping[str, int]) -> None:
        self.bits = bits

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        low, high = (f(x, site.gain_axes, keepdim=True) for f in (torch.amin, torch.amax))
        step = (high - low).clamp_min_(1e-30) / (2 ** self.bits[site.name] - 1)
        return torch.addcmul(low, ((x - low) / step).round_(), step)


@contextmanager
def rounded_weights(
    template: Ported, bits: Mapping[str, int], tables: Mapping[str, int]
) -> Iterator[None]:
    """Have the products and the tables of a template use whole numbers, one at a time.

    Args:
        template: A discovered model.
        bits: Of the weights of each product, by name; those of 16 stay as they are.
        tables: Of each table that is rounded, by the name of its tensor.
    """
    swaps: list[tuple[nn.Module, _Swap]] = [
        (product, _Swap(partial(_rounded, bits=bits[product.name])))
        for product in template.products
        if isinstance(product, SpikingProduct) and bits[product.name] < 16
    ]
    for name, each in tables.items():
        table = template.model.get_submodule(name.removesuffix(".weight"))
        swaps.append((table, _Swap(partial(_rounded_rows, bits=each))))
    with ExitStack() as stack:
        for module, swap in swaps:
            for handle in (
                module.register_forward_pre_hook(swap.enter),
                module.register_forward_hook(swap.leave, always_call=True),
            ):
                stack.callback(handle.remove)
        yield


def _rounded(weight: Tensor, bits: int) -> Tensor:
    flat = weight.flatten(1)
    return round_weight(flat, flat.new_zeros(len(flat)), bits, None).weight.view_as(weight)


def _rounded_rows(weight: Tensor, bits: int) -> Tensor:
    q, quantum = whole_rows(weight, bits)
    return q * quantum


class _Swap:
    """Gives a module its rounded weight while it runs."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]) -> None:
        self.rounded = rounded
        self.kept: list[nn.Parameter] = []

    def enter(self, module: Any, args: Sequence[Any]) -> None:
        self.kept.append(module.weight)
        rounded = self.rounded(module.weight.detach())
        module.weight = nn.Parameter(rounded, requires_grad=False)

    def leave(self, module: Any, args: Sequence[Any], output: Any) -> None:
        module.weight = self.kept.pop()
