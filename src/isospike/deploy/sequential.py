"""Networks of torch's layers one after the other, as nodes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from isospike.deploy.build import Builder, Refused, convolution
from isospike.deploy.network import DT, Network, Reshape, Scale, Shape, SumPool2d, Threshold
from isospike.deploy.nodes import array
from isospike.errors import InputError
from isospike.neurons import LIF, CubaLIF, Delay, Integrator, Neuron, NeuronParams, scale_and_shift

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)  # in inference
NODES = (nn.AvgPool2d, SumPool2d, CubaLIF, Delay, Integrator, Reshape, Scale, Threshold)
REASONS = {
    nn.MaxPool2d: "a maximum of currents is no sum; pool spikes, or take a stride of 2",
    nn.LayerNorm: "it divides by what it reads",
    nn.Softmax: "it divides by what it reads",
    nn.MultiheadAttention: "softmax and products of two activations",
}


def sequential_network(
    model: nn.Module, shape: Sequence[int], *, dt: float = DT, partial: bool = False
) -> tuple[Network, list[Refused]]:
    """Make a network of ``nn.Sequential``: products, pooling, batch normalisation and neurons.

    A batch normalisation is folded into the product before it, and the bias and the gain of neurons
    too. Every layer reads ``[steps, batch, *shape]``.

    Args:
        model: The layers, in inference. It is not changed.
        shape: Of one step of one input.
        dt: Duration of a step in seconds, for files.
        partial: Whether a layer that has no node is left out and has ports around it.

    Returns:
        The network, and the layers left out.

    Raises:
        UnsupportedError: A layer that has no node, by name, unless ``partial``.
        InputError: The model is no ``nn.Sequential``.

    >>> layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    >>> sequential_network(layers, [3], partial=True)[1][0].name
    '2'
    """
    if not isinstance(model, nn.Sequential):
        raise InputError(
            f"sequential_network needs an nn.Sequential, got {type(model).__name__}. Put the "
            "layers into one."
        )
    build = Builder()
    last = build.input("input", shape)
    layers = list(_joined(dict(model.named_children())).items())
    for name, layer in layers:
        last = _add(build, name, layer, last)
    build.output("output", last)
    return build.network(dt, partial=partial), build.refused


def _joined(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Layers whose batch normalisations and biases of neurons are in the product before them."""
    found: dict[str, nn.Module] = {}
    product = ""
    for name, layer in layers.items():
        norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        if norm and product:
            found[product] = fold(found[product], *scale_and_shift(layer))
        elif isinstance(layer, Neuron) and product and _biased(layer.params):
            found[product], found[name] = _without_bias(found[product], layer)
        elif not isinstance(layer, NOTHING):
            found[name] = layer
        if not isinstance(layer, NOTHING) and not norm:
            product = name if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) else ""
    return found


def _biased(params: NeuronParams) -> bool:
    return bool(array(params.bias).any())


def _without_bias(product: nn.Module, layer: Neuron) -> tuple[nn.Module, Neuron]:
    """The bias and the gain of neurons in the product before them."""
    params = layer.params
    a, b = (torch.as_tensor(v).flatten().float() for v in (params.gain, params.bias))
    outputs = cast(Any, product).weight.shape[0]
    moved = fold(product, a.expand(outputs), b.expand(outputs))
    kept = params._replace(gain=1.0, bias=0.0)
    return moved, LIF(kept)


def fold(product: nn.Module, a: Tensor, b: Tensor) -> nn.Module:
    """The product whose outputs are ``a y + b``, channel by channel."""
    layer = cast(Any, product)
    weight = layer.weight.detach() * a.view(-1, *[1] * (layer.weight.dim() - 1))
    bias = b if layer.bias is None else b + a * layer.bias.detach()
    if isinstance(product, nn.Conv2d) and not isinstance(product.padding, str):
        return convolution(
            weight, bias, stride=product.stride, padding=product.padding,
            dilation=product.dilation, groups=product.groups,
        )  # fmt: skip
    options = {}
    if not isinstance(product, nn.Linear):
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        options = {name: getattr(layer, name) for name in names}
        inputs, outputs = layer.in_channels, layer.out_channels
    else:
        inputs, outputs = product.in_features, product.out_features
    kind: Any = type(product)
    made = kind(inputs, outputs, **options).requires_grad_(False)
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made  # type: ignore[no-any-return]


def _add(build: Builder, name: str, layer: nn.Module, last: str) -> str:
    before: Shape = build.shapes[last]
    if isinstance(layer, nn.Flatten):
        sizes = (1, *before)
        start, end = layer.start_dim % (len(sizes)), layer.end_dim % len(sizes)
        if start < 1:
            return _refuse(build, name, layer, last, "it joins the batch with something")
        flat = int(torch.tensor(sizes[start : end + 1]).prod())
        return build.add(name, Reshape((*sizes[1:start], flat, *sizes[end + 1 :])), last)
    if isinstance(layer, nn.Linear) and len(before) != 1:
        return _refuse(build, name, layer, last, f"it reads {len(before)} axes; flatten them")
    if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, Neuron, *NODES)):
        return build.add(name, layer, last)
    reason = next((text for kind, text in REASONS.items() if isinstance(layer, kind)), None)
    return _refuse(build, name, layer, last, reason or "no node computes it")


def _refuse(build: Builder, name: str, layer: nn.Module, last: str, reason: str) -> str:
    y = layer(torch.zeros(1, *build.shapes[last]))
    shape = tuple(y.shape[1:]) if isinstance(y, Tensor) else build.shapes[last]
    part = Refused(name, type(layer).__name__, reason)
    return build.refuse(part, shape, input=[last])
