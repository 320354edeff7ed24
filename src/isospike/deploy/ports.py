"""What of a port has nodes in NIR: its products with weights, each between two named ports.

A product is linear, so each step's spikes may enter it on their own; the sums of the steps are
added up with the code's weight. Rate codes need an integrator. Where each weight is twice the next,
the largest first, the sum doubles at every step and a spike is added (Horner's rule): a cycle of a
scale of 2 and a delay of one step. The result is that of the last step.
"""

from typing import Any

import torch
from torch import nn

from isospike.deploy.build import Builder, Refused
from isospike.deploy.network import DT, Network, Scale
from isospike.errors import UnsupportedError
from isospike.neurons import Delay, Integrator, IntegratorParams
from isospike.porting.attention import SpikingAttention
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE

WHY = {
    "attention": "it divides by a sum, and multiplies two numbers that change",
    "gain": "its gain per token multiplies the sum; it is left to what reads the port",
}


def port_network(
    model: nn.Module, *, dt: float = DT, partial: bool = False
) -> tuple[Network, list[Refused]]:
    """Make a network of the weighted products of a port.

    Of each product, the input is the spikes of its site: 1 of the ON neuron, -1 of the OFF neuron,
    step by step. The output of the last step is what equation (1) of
    :class:`isospike.porting.product.SpikingProduct` multiplies with the gain of the token, if
    ranges are dynamic, and adds the bias to.

    Args:
        model: A port.
        dt: Duration of a step in seconds.
        partial: Whether what has no node may be left out. It always has to be: a transformer has
            softmax and normalisations.

    Returns:
        The network, and everything that is left out.

    Raises:
        UnsupportedError: The model is no port, it has parts without nodes and ``partial`` is not
            set, or none that has any.

    >>> import isospike
    >>> layer, x = nn.Sequential(nn.Linear(8, 4)), torch.rand(8, 8)
    >>> port = isospike.port(layer, [{"input": x}] * 4, ranges="static")
    >>> network, left_out = port_network(port.model)
    >>> left_out
    []
    """
    if getattr(model, ATTRIBUTE, None) is None:
        raise UnsupportedError(
            f"port_network needs a port, got a {type(model).__name__}. Port it first."
        )
    build = Builder()
    shapes: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(module, SpikingProduct):
            if (reason := _reason(module)) is not None:
                build.refused.append(Refused(name, type(module).__name__, reason))
            continue
        if (missing := _missing(module)) is not None:
            build.refused.append(Refused(name, "product", missing))
            continue
        if module.site.dynamic:
            build.refused.append(Refused(f"{name} (gain)", "gain", WHY["gain"]))
        shapes |= _product(build, name, module)
    if not build.outputs:
        raise UnsupportedError(
            "port_network needs a linear layer whose code NIR's neurons can compute, got none. "
            "Port with the code rate, phase or signed-digit."
        )
    if build.refused and not partial:
        build.network(dt, partial=False)
    return Network(
        build.nodes, build.edges, build.inputs, build.outputs, shapes=shapes, dt=dt
    ), build.refused  # fmt: skip


def _reason(module: nn.Module) -> str | None:
    """Why a module that computes something has no node; None for what only holds others."""
    if isinstance(module, SpikingAttention):
        return WHY["attention"]
    own = any(True for _ in module.parameters(recurse=False))
    if isinstance(module, nn.Embedding):
        return "it looks up rows of a table; give them as currents"
    if type(module).__module__.startswith("isospike") or not (own or _activates(module)):
        return None
    return "no node computes it; it stays in float at the soma"


def _activates(module: nn.Module) -> bool:
    place = type(module).__module__
    return place.endswith(("activation", "activations"))


def _missing(product: SpikingProduct) -> str | None:
    if product.conv is not None:
        return "the size of its images is not fixed in a port"
    weights = product.site.code.step_weights
    if not (_even(weights) or _doubling(weights)):
        return f"no node has the step weights of {product.site.code}"
    return None


def _even(weights: tuple[int, ...]) -> bool:
    return len(set(weights)) == 1


def _doubling(weights: tuple[int, ...]) -> bool:
    return weights[-1] == 1 and all(a == 2 * b for a, b in zip(weights, weights[1:], strict=False))


def _product(build: Builder, name: str, product: SpikingProduct) -> dict[str, Any]:
    weight = product.weight.detach()
    layer = nn.Linear(weight.shape[1], len(weight), bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    spikes = build.input(f"{name}_spikes", [weight.shape[1]])
    current = build.add(f"{name}_product", layer, spikes)
    weights = product.site.code.step_weights
    if _even(weights):
        gain = float(weights[0])
        summed = build.add(f"{name}_sum", Integrator(IntegratorParams(1.0, gain)), current)
        build.output(name, summed)
        return {}
    summed = build.add(f"{name}_sum", Scale(torch.ones(len(weight))), current)
    twice = build.add(f"{name}_twice", Scale(torch.full((len(weight),), 2.0)), summed)
    wait = build.add(f"{name}_wait", Delay(torch.ones(len(weight), dtype=torch.long)), twice)
    build.edges.append((wait, summed))
    build.output(name, summed)
    shape = (len(weight),)
    return dict.fromkeys((current, summed, twice, wait), shape)
