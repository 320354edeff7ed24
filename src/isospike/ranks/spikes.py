"""What the modules of a port compute, for those who follow what flows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from isospike.porting.attention import SpikingAttention
from isospike.porting.calls import OWN
from isospike.porting.matmul import SpikingMatmul
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE, Watcher
from isospike.ranks.flow import Flow


@contextmanager
def followed(model: nn.Module, flow: Flow) -> Iterator[None]:
    """Follow what flows through a model, float or port.

    Args:
        model: It.
        flow: Is told what the modules of a port compute, whose own functions are not followed.
    """
    with ExitStack() as stack:
        if ATTRIBUTE in vars(model):
            stack.enter_context(_spiking(model, flow))
        stack.enter_context(flow)
        yield


@contextmanager
def _spiking(model: nn.Module, flow: Flow) -> Iterator[None]:
    ported, watcher, handles = Ported.of(model), _Probabilities(), []

    def before(module: nn.Module, args: Any) -> None:
        flow.closed += 1

    def after(module: nn.Module, args: Any, y: Any) -> None:
        flow.closed -= 1
        if flow.closed or not isinstance(y, Tensor):
            return
        if isinstance(module, SpikingProduct) and module.conv is not None:
            flow.passed(args[0], y)
        elif isinstance(module, SpikingProduct):
            flow.multiplied(args[0], lambda: (*_weight(module), _decoded(module, args[0])), y)
        elif isinstance(module, SpikingAttention):
            flow.attention(y, args[0], args[1], args[2], watcher.maps)
        elif isinstance(module, SpikingMatmul):
            flow.matmul(args[0], args[1], y)
        else:
            flow.follow(None, "", args, {}, y)

    for module in model.modules():
        if isinstance(module, OWN):
            handles += [module.register_forward_pre_hook(before),
                        module.register_forward_hook(after)]  # fmt: skip
    try:
        with ported.run.watching(watcher):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Probabilities(Watcher):
    """Keeps what the last attention's spikes carry, divided by its sum."""

    maps: Tensor
    sees_maps = True

    def on_map(self, weights: Tensor) -> None:
        self.maps = weights


def plain_weight(product: SpikingProduct) -> Tensor:
    """W ``[out, in, ...]`` of a product, without the amplitudes of its spikes."""
    return (product.weight / product._by_input(product.site.amplitude)).detach()


def _weight(product: SpikingProduct) -> tuple[Tensor, Tensor]:
    """W ``[in, out]`` and bias without the amplitudes and offsets of the spikes."""
    plain, offset = plain_weight(product), product.site.offset
    return plain.T, (product.bias - plain @ offset.expand(plain.shape[1])).detach()


def _decoded(product: SpikingProduct, z: Tensor) -> Tensor:
    return product.site.decode(product.site.read(z))
