"""A network built node by node, and what of a model has no place in it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isospike.deploy.network import DT, Network, Port, Shape, run_layer
from isospike.deploy.order import Edge
from isospike.errors import UnsupportedError


class Refused(NamedTuple):
    """A part of a model that no node computes.

    Attributes:
        name: Its name, and that of the port in its place.
        kind: What it computes.
        reason: Why it is refused.
    """

    name: str
    kind: str
    reason: str


class Builder:
    """A network that is built node by node; images are channels first.

    A part that has no node becomes a hole: what it reads is an output of the network, and what it
    gives is an input.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, nn.Module] = {}
        self.edges: list[Edge] = []
        self.inputs: dict[str, Shape] = {}
        self.outputs: list[str] = []
        self.shapes: dict[str, Shape] = {}
        self.refused: list[Refused] = []

    def add(self, name: str, layer: nn.Module, *sources: str) -> str:
        """Add a layer that reads the sum of these nodes, and give its name."""
        self.nodes[name] = layer
        self.edges += [(source, name) for source in sources]
        if sources:
            x = torch.zeros(1, 1, *self.shapes[sources[0]])
            self.shapes[name] = tuple(run_layer(layer, x)[0].shape[2:])
        return name

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Add an input of this shape, and give its name."""
        self.inputs[name] = self.shapes[name] = tuple(shape)
        return self.add(name, Port())

    def output(self, name: str, *sources: str) -> str:
        """Add an output, the sum of these nodes, and give its name."""
        self.outputs.append(name)
        return self.add(name, Port(), *sources)

    def refuse(self, part: Refused, shape: Shape, **reads: Sequence[str]) -> str:
        """Leave a part out, whose inputs ``reads`` are by name, and give the port in its place."""
        self.refused.append(part)
        for name, sources in reads.items():
            self.output(f"{part.name}_{name}", *sources)
        return self.input(part.name, shape)

    def network(self, dt: float = DT, *, partial: bool = True) -> Network:
        """The network.

        Args:
            dt: Duration of a step in seconds.
            partial: Whether parts may have been left out.

        Raises:
            UnsupportedError: Parts were left out, and may not be.
        """
        if self.refused and not partial:
            first = self.refused[0]
            raise UnsupportedError(
                f"export needs parts that NIR has, got {len(self.refused)} others; the first is "
                f"{first.name!r}, {first.kind}: {first.reason}. Export with --partial what is "
                "between them."
            )
        return Network(self.nodes, self.edges, self.inputs, self.outputs, dt=dt).eval()


def convolution(
    weight: Tensor, bias: Tensor | None = None, *, stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> nn.Conv2d:  # fmt: skip
    """A convolution of these weights ``[outputs, inputs / groups, height, width]``."""
    layer = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], (weight.shape[2], weight.shape[3]),
        (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups,
        bias is not None,
    ).requires_grad_(False)  # fmt: skip
    layer.weight.copy_(weight)
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias)
    return layer
