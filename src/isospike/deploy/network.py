"""A graph of spiking layers: what a NIR file becomes, and what is written as one.

Edges that end in one node are summed. An edge that closes a cycle carries the value of the step
before, 0 at first; a delay of one step or more on the cycle is that delay, and nothing is added.
Every node has explicit state, so a network may be cut anywhere in time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from isospike.deploy.order import Edge, order_nodes
from isospike.errors import InputError, ShapeError
from isospike.neurons import Delay
from isospike.tensors import check_tensor

Shape = tuple[int, ...]
DT = 1e-4  # seconds of a step, as most libraries have it


class NetworkState(NamedTuple):
    """What a network holds between two steps.

    Attributes:
        nodes: State of each node that has one.
        before: Last values of the nodes whose edges close a cycle.
    """

    nodes: dict[str, Any]
    before: dict[str, Tensor]


class Port(nn.Module):
    """An input or an output of a network, or a place where edges meet: it changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x


class Scale(nn.Module):
    """``factor x``.

    Args:
        factor: Broadcastable to one step of one input.
    """

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x [steps, batch, *shape]``."""
        return self.factor * x


class Shift(nn.Module):
    """``x + by``.

    Args:
        by: Broadcastable to one step of one input.
    """

    by: Tensor

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:
        """Shift ``x [steps, batch, *shape]``."""
        return x + self.by


class Chain(nn.Module):
    """Layers one after the other, of which each may have state.

    Args:
        layers: The layers.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def run(self, x: Tensor, state: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """Run ``x [steps, batch, *shape]`` from a state."""
        after = []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            x, kept = run_layer(layer, x, before)
            after.append(kept)
        return x, after


class Threshold(nn.Module):
    """1 where ``x >= threshold``, else 0.

    Args:
        threshold: Broadcastable to one step of one input.
    """

    threshold: Tensor

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)

    def forward(self, x: Tensor) -> Tensor:
        """Compare ``x [steps, batch, *shape]``."""
        return (x >= self.threshold).to(x.dtype)


class SumPool2d(nn.Module):
    """Sums over windows of images: an average times the size of the window.

    Args:
        size: Height and width of a window.
        stride: Steps from window to window.
        padding: Zeros at each side.
    """

    def __init__(self, size: Shape, stride: Shape, padding: Shape = (0, 0)) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Sum windows of ``x [images, channels, height, width]``."""
        return nn.functional.avg_pool2d(x, self.size, self.stride, self.padding, divisor_override=1)


class Reshape(nn.Module):
    """Another shape of each step of each input.

    Args:
        shape: The shape, without the axes of time and batch.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape ``x [steps, batch, *before]``."""
        return x.reshape(*x.shape[:2], *self.shape)


IMAGES = (nn.Conv1d, nn.Conv2d, nn.AvgPool2d, SumPool2d)  # they know one axis before the channels


class Network(nn.Module):
    """Layers joined by edges; see the module's head.

    Args:
        nodes: A module for each name. It maps ``[steps, batch, *shape]``; one with state has
            ``run(x, state)`` too.
        edges: Pairs of names.
        inputs: Names of the inputs and the shape of one step of one of each.
        outputs: Names of the outputs.
        shapes: Shape of one step of one output of each node whose edge closes a cycle, at least.
        dt: Duration of a step in seconds, for files.

    Raises:
        InputError: An edge leads to a node that there is not, nothing leads to a node, or an output
            is not there.
        UnsupportedError: A cycle of nodes none of which remembers anything.

    >>> network = Network({"in": Port(), "out": Port()}, [("in", "out")], {"in": (2,)}, ["out"])
    >>> network(torch.ones(3, 1, 2)).shape
    torch.Size([3, 1, 2])
    """

    def __init__(
        self,
        nodes: Mapping[str, nn.Module],
        edges: Sequence[Edge],
        inputs: Mapping[str, Shape],
        outputs: Sequence[str],
        *,
        shapes: Mapping[str, Shape] | None = None,
        dt: float = DT,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nodes.values())
        self.places = {name: place for place, name in enumerate(nodes)}
        self.edges = list(dict.fromkeys(edges))
        self.inputs, self.outputs, self.dt = dict(inputs), list(outputs), dt
        self.shapes = dict(shapes or {})
        self._check()
        self.order, self.closing, shorter = order_nodes(dict(nodes), self.edges, list(inputs))
        self.shorter = {name: Delay(cast(Delay, nodes[name]).steps - 1) for name in shorter}
        self.feeds = {name: self.sources(name) for name in self.places}
        if unknown := [a for a, _ in self.closing if a not in self.shapes]:
            raise InputError(
                f"Network needs the shape of each node whose edge closes a cycle, got none of "
                f"{unknown[0]!r}. Give it in shapes."
            )

    def node(self, name: str) -> nn.Module:
        """The module of this name.

        Args:
            name: Of the node.

        Returns:
            The module.
        """
        return self.layers[self.places[name]]

    def sources(self, name: str) -> list[str]:
        """Nodes whose edges end in this one, in order.

        Args:
            name: Of the node.

        Returns:
            Their names.
        """
        return [a for a, b in self.edges if b == name]

    def _check(self) -> None:
        for name in [end for edge in self.edges for end in edge] + [*self.inputs, *self.outputs]:
            if name not in self.places:
                raise InputError(
                    f"Network needs edges between its nodes, got one at {name!r}, which there is "
                    "not. Name the node, or leave the edge out."
                )
        fed = {b for _, b in self.edges} | set(self.inputs)
        if lonely := [name for name in self.places if name not in fed]:
            raise InputError(
                f"Network needs an edge into every node, got none into {lonely[0]!r}. Join it, or "
                "leave it out."
            )

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Run from rest; see :meth:`run`.

        Args:
            x: ``[steps, batch, *shape]``; with several inputs, one for each name.

        Returns:
            The output, or one for each name if there are several.
        """
        return self.run(x)[0]

    def run(
        self, x: Tensor | Mapping[str, Tensor], state: NetworkState | None = None
    ) -> tuple[Tensor | dict[str, Tensor], NetworkState]:
        """Run all steps, from a state.

        Args:
            x: ``[steps, batch, *shape]``; with several inputs, one for each name.
            state: State to start from; None is rest.

        Returns:
            The output, or one for each name if there are several; and the state.

        Raises:
            InputError: An input is missing.
            ShapeError: An input has another shape.
        """
        given = self._given(x)
        state = NetworkState({}, {}) if state is None else state
        if not self.closing:
            found, state = self._run(given, state)
            return self._answer(found), state
        parts = []
        for t in range(len(next(iter(given.values())))):
            part, state = self._run({n: v[t : t + 1] for n, v in given.items()}, state)
            parts.append(part)
        return self._answer({n: torch.cat([p[n] for p in parts]) for n in self.outputs}), state

    def _run(
        self, given: Mapping[str, Tensor], state: NetworkState
    ) -> tuple[dict[str, Tensor], NetworkState]:
        """All nodes once, for all steps that are given."""
        like = next(iter(given.values()))
        values: dict[str, Tensor] = {}
        after: dict[str, Any] = {}

        def before(name: str) -> Tensor:
            held = state.before.get(name)
            return like.new_zeros(*like.shape[:2], *self.shapes[name]) if held is None else held

        for name in self.order:
            parts = [given[name]] if name in given else []
            for source in self.feeds[name]:
                closes = (source, name) in self.closing
                parts.append(before(source) if closes else values[source])
            x = parts[0]
            for part in parts[1:]:
                x = x + part
            module = self.shorter.get(name) or self.node(name)
            values[name], after[name] = run_layer(module, x, state.nodes.get(name))
        return values, NetworkState(after, {a: values[a] for a, _ in self.closing})

    def trace_shapes(self) -> dict[str, Shape]:
        """Shape of one step of one output of each node."""
        given = {name: torch.zeros(1, 1, *shape) for name, shape in self.inputs.items()}
        values, _ = self._run(given, NetworkState({}, {}))
        return {name: tuple(value.shape[2:]) for name, value in values.items()}

    def _given(self, x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = list(self.inputs)
        if isinstance(x, Tensor) and len(names) == 1:
            x = {names[0]: x}
        if isinstance(x, Tensor) or set(x) != set(names):
            got = "one tensor" if isinstance(x, Tensor) else ", ".join(map(repr, x)) or "none"
            raise InputError(
                f"Network needs an input for each of {', '.join(map(repr, names))}, got {got}. "
                "Pass a dict of tensors."
            )
        for name, value in x.items():
            check_tensor("Network", name, value)
            if value.shape[2:] != self.inputs[name] or value.dim() < 2 or not len(value):
                raise ShapeError(
                    f"Network needs {name!r} of shape [steps, batch, "
                    f"{', '.join(map(str, self.inputs[name]))}], got {tuple(value.shape)}. Time is "
                    "axis 0, the batch axis 1."
                )
        if len({value.shape[:2] for value in x.values()}) > 1:
            shapes = " and ".join(str(tuple(value.shape)) for value in x.values())
            raise ShapeError(
                f"Network needs as many steps and rows of each input, got {shapes}. Align them."
            )
        return dict(x)

    def _answer(self, found: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if len(self.outputs) == 1:
            return found[self.outputs[0]]
        return {name: found[name] for name in self.outputs}


def run_layer(layer: nn.Module, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """A layer on ``x [steps, batch, *shape]``, from its state if it has one."""
    if hasattr(layer, "run"):
        y, after = cast(Any, layer).run(x, state)
        return y, after
    if not isinstance(layer, IMAGES):
        return layer(x), None
    y = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:]), None
