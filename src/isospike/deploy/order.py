"""In which order the nodes of a graph run, and which edges close its cycles."""

from collections.abc import Mapping, Sequence

from torch import nn

from isospike.errors import UnsupportedError
from isospike.neurons import Delay

Edge = tuple[str, str]


def remembers(module: nn.Module) -> bool:
    """Whether a node has state, so that a cycle through it is defined."""
    if isinstance(module, Delay):
        return holds(module)
    return hasattr(module, "run")


def holds(module: nn.Module) -> bool:
    """Whether this is a delay of at least one step for every entry."""
    return isinstance(module, Delay) and bool((module.steps >= 1).all())


def order_nodes(
    nodes: Mapping[str, nn.Module], edges: Sequence[Edge], inputs: Sequence[str]
) -> tuple[list[str], list[Edge], list[str]]:
    """Nodes in the order of a step, and the edges that carry the value of the step before.

    Every edge into a delay on a cycle carries the value of the step before, and the delay runs with
    one step less, which is the same. In another cycle it is the edge that a walk from the inputs
    finds to lead back; or, where only single nodes without state lie before it, the edge into the
    first of them, so that what they add is added from the first step on.

    Args:
        nodes: Modules by name.
        edges: Pairs of names.
        inputs: Where the walk begins.

    Returns:
        The order, the closing edges, and the delays that run with one step less.

    Raises:
        UnsupportedError: A cycle of nodes without state.
    """
    closing: list[Edge] = []
    shorter = []
    for name, module in nodes.items():
        if holds(module) and name in _behind(name, edges, closing):
            closing += [edge for edge in edges if edge[1] == name]
            shorter.append(name)
    for cycle in _walk(nodes, [edge for edge in edges if edge not in closing], inputs, []):
        if not any(remembers(nodes[name]) for name in cycle):
            raise UnsupportedError(
                f"Network needs a neuron or a delay on every cycle, got none on "
                f"{' -> '.join(map(repr, cycle))}. Add a Delay of one step."
            )
        closing.append(_first(cycle, nodes, edges))
    order: list[str] = []
    _walk(nodes, [edge for edge in edges if edge not in closing], inputs, order)
    return order[::-1], closing, shorter


def _first(cycle: Sequence[str], nodes: Mapping[str, nn.Module], edges: Sequence[Edge]) -> Edge:
    """The edge of a cycle that carries the value of the step before; the last leads back."""
    source, target = cycle[-1], cycle[0]
    for before in cycle[-2::-1]:
        single = [sum(source == edge[side] for edge in edges) == 1 for side in (0, 1)]
        if remembers(nodes[source]) or not all(single):
            break
        source, target = before, source
    return source, target


def _behind(name: str, edges: Sequence[Edge], without: Sequence[Edge]) -> set[str]:
    """Every node that can be reached from this one."""
    found: set[str] = set()
    new = {name}
    while new:
        new = {b for a, b in edges if a in new and (a, b) not in without} - found
        found |= new
    return found


def _walk(
    nodes: Mapping[str, nn.Module], edges: Sequence[Edge], inputs: Sequence[str], done: list[str]
) -> list[list[str]]:
    """Every cycle that a depth-first walk closes; ``done`` gets the nodes, the last first."""
    targets: dict[str, list[str]] = {name: [] for name in nodes}
    for a, b in edges:
        targets[a].append(b)
    cycles: list[list[str]] = []
    seen: set[str] = set()
    for start in [*inputs, *nodes]:
        if start in seen:
            continue
        seen.add(start)
        path, left = [start], [iter(targets[start])]
        while path:
            step = next(left[-1], None)
            if step is None:
                done.append(path.pop())
                left.pop()
            elif step in path:
                cycles.append(path[path.index(step) :])
            elif step not in seen:
                seen.add(step)
                path.append(step)
                left.append(iter(targets[step]))
    return cycles
