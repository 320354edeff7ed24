"""NIR files: a graph of spiking layers that other libraries and chips read.

:func:`read_nir` makes a network of a file, :func:`write_nir` writes one. The package ``nir`` is in
the extra of that name. Attention in NIR's nodes is in :mod:`isospike.deploy.attention`.
"""

import io
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from isospike.deploy.network import DT, Network, Scale, Shape, Threshold
from isospike.deploy.nodes import Reader, Writer, array, tensor
from isospike.deploy.order import Edge
from isospike.errors import InputError, MissingExtraError, RangeError, first_sentence
from isospike.neurons import Delay, Integrator, IntegratorParams, Neuron
from isospike.report.files import write_file
from isospike.report.reading import read_file

MOST_BYTES = 2**32
SAME = 1e-9  # relative difference of two durations that are one


def read_nir(
    path: str | os.PathLike[str], *, dt: float | None = None, strict: bool = False
) -> Network:
    """Read a network from a NIR file.

    Args:
        path: The file.
        dt: Duration of a step in seconds. NIR's equations have none: it is what the library that
            wrote the file computed with. None is what the file says, or else 0.0001 s, as most
            libraries have it.
        strict: Whether a neuron fires only above its threshold, as NIR and Norse have it, and not
            at it, as SpikingJelly and this library.

    Returns:
        The network, of the modules of :mod:`isospike.neurons` and of torch; membranes start at
        rest. An edge that closes a cycle carries the value of the step before.

    Raises:
        InputError: There is no such file, it is no NIR file or is cut short, a parameter is
            missing, or it was written for another ``dt``.
        UnsupportedError: A node that no module computes, by name, or a cycle without memory.
        RangeError: ``dt`` is not above 0.
        MissingExtraError: The package nir is not installed.

    >>> network = read_nir("net.nir")  # doctest: +SKIP
    >>> network(torch.rand(10, 1, 3)).shape  # steps, batch, outputs  # doctest: +SKIP
    torch.Size([10, 1, 2])
    """
    nir = find_nir("read_nir")
    data = read_file(path, "read_nir", MOST_BYTES)
    try:
        with import_module("h5py").File(io.BytesIO(data)) as file:
            held = nir.serialization.hdf2dict(file["node"])
    except (OSError, KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise InputError(
            f"read_nir needs a NIR file, got {os.fspath(path)!r}: {first_sentence(error)} Write it "
            "again; it may be cut short."
        ) from None
    return from_nir(_parse(nir, "the file", held), dt=dt, strict=strict)


def from_nir(graph: Any, *, dt: float | None = None, strict: bool = False) -> Network:
    """Make a network of a graph of the package nir; see :func:`read_nir`.

    Args:
        graph: A ``nir.NIRGraph``.
        dt: Duration of a step in seconds; None is what the graph says, or 0.0001.
        strict: Whether neurons fire only above the threshold.

    Returns:
        The network.

    Raises:
        InputError, UnsupportedError, RangeError: As for :func:`read_nir`.

    >>> network = from_nir(nir.read("net.nir"))  # doctest: +SKIP
    >>> network.outputs  # doctest: +SKIP
    ['output']
    """
    dt = _duration(dt, getattr(graph, "metadata", None) or {})
    nodes, edges = _flat(graph)
    reader = Reader(dt, strict)
    layers = {name: reader.read(name, node) for name, node in nodes.items()}
    inputs = {n: _shape(nodes[n], "input") for n in graph.nodes if _is(nodes.get(n), "Input")}
    outputs = [n for n in graph.nodes if _is(nodes.get(n), "Output")]
    if not inputs or not outputs:
        raise InputError(
            f"read_nir needs an Input and an Output, got {len(inputs)} and {len(outputs)} of them. "
            "Add the node that is missing."
        )
    found = {n: _shape(node, "output") for n, node in nodes.items()}
    shapes = {n: shape for n, shape in found.items() if shape is not None}
    network = Network(
        layers, edges, {n: s or () for n, s in inputs.items()}, outputs, shapes=shapes, dt=dt
    )
    _check_shapes(network)
    return network.eval()


def write_nir(
    network: Network,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str | float] | None = None,
) -> None:
    """Write a network as a NIR file, whole or not at all.

    Neurons that reset by subtraction, which NIR's do not, become an integrator, a threshold and a
    delay; see :func:`spread_resets`.

    Args:
        network: The network; membranes start at rest.
        path: The file.
        metadata: Kept in the file, beside ``dt``, the step.

    Raises:
        UnsupportedError: A node that NIR does not have, by name.
        InputError: The file cannot be written.
        MissingExtraError: The package nir is not installed.

    >>> layers = nn.Sequential(nn.Linear(3, 2), LIF())  # doctest: +SKIP
    >>> network, _ = sequential_network(layers, [3])  # doctest: +SKIP
    >>> write_nir(network, "net.nir")  # doctest: +SKIP
    """
    nir = find_nir("write_nir")
    held = io.BytesIO()
    nir.write(held, to_nir(network, metadata))
    write_file(Path(path), held.getvalue())


def to_nir(network: Network, metadata: Mapping[str, str | float] | None = None) -> Any:
    """Make a graph of the package nir of a network; see :func:`write_nir`.

    Args:
        network: The network.
        metadata: Kept in the graph, beside ``dt``, the step.

    Returns:
        A ``nir.NIRGraph``.

    Raises:
        UnsupportedError, MissingExtraError: As for :func:`write_nir`.

    >>> layers = nn.Sequential(nn.Linear(3, 2), LIF())  # doctest: +SKIP
    >>> network, _ = sequential_network(layers, [3])  # doctest: +SKIP
    >>> sorted(to_nir(network).nodes)  # doctest: +SKIP
    ['0', '1', 'input', 'output']
    """
    nir = find_nir("write_nir")
    network = spread_resets(network)
    shapes = network.trace_shapes()
    writer = Writer(nir, network.dt)
    nodes: dict[str, Any] = {}
    for name in network.places:
        if name in network.inputs:
            nodes[name] = nir.Input(np.array(network.inputs[name]))
        elif name in network.outputs:
            nodes[name] = nir.Output(np.array(shapes[name]))
        else:
            sources = network.feeds[name]
            nodes[name] = writer.write(name, network.node(name), shapes[sources[0]], shapes[name])
    said = {"dt": network.dt, "scheme": "euler", "writer": "isospike", **(metadata or {})}
    # The package's own shapes are wrong for groups of channels and for oblong kernels.
    plain = all(
        getattr(node, "groups", 1) == 1
        and len({*getattr(node, "weight", np.ones((1, 1))).shape[2:]}) < 2
        for node in nodes.values()
    )
    return nir.NIRGraph(nodes, list(network.edges), metadata=said, type_check=plain)


def spread_resets(network: Network) -> Network:
    """The same network without neurons that reset by subtraction.

    NIR's neurons reset to a value. Such a neuron becomes a leaky integrator and a threshold, and
    its spike, scaled by what a step keeps of the reset, comes back one step later:
    ``h[t] = decay h[t-1] + gain x[t] - decay reset s[t-1]``, the same membrane in other order.

    Args:
        network: The network; it is not changed.

    Returns:
        A network that shares the other modules.
    """
    shapes = network.trace_shapes()
    nodes: dict[str, nn.Module] = {}
    edges, entry = list(network.edges), {}
    for name in network.places:
        layer = network.node(name)
        if not isinstance(layer, Neuron) or layer.params.reset_to is not None:
            nodes[name] = layer
            continue
        params, shape = layer.params, shapes[name]
        reset = params.threshold if params.reset_by is None else params.reset_by
        back = -array(params.decay).astype(np.float64) * array(reset) / array(params.gain)
        membrane, scaled, wait = (f"{name}_{part}" for part in ("membrane", "reset", "wait"))
        nodes |= {
            membrane: Integrator(IntegratorParams(params.decay, params.gain, params.bias)),
            name: Threshold(tensor(np.broadcast_to(array(params.threshold), shape))),
            scaled: Scale(tensor(np.broadcast_to(back, shape))),
            wait: Delay(1),
        }
        entry[name] = membrane
        edges += [(membrane, name), (name, scaled), (scaled, wait), (wait, membrane)]
        shapes |= {scaled: shape, membrane: shape, wait: shape}
    moved = [(a, entry[b]) if (a, b) in network.edges and b in entry else (a, b) for a, b in edges]
    return Network(
        nodes, moved, network.inputs, network.outputs, shapes=shapes, dt=network.dt
    ) if entry else network  # fmt: skip


def find_nir(owner: str) -> Any:
    """The package nir.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import_module("h5py")
        return import_module("nir")
    except ImportError:
        raise MissingExtraError(
            f"{owner} needs the package nir, got none. Install isospike[nir]."
        ) from None


def _parse(nir: Any, name: str, held: Any) -> Any:
    """The nodes of a file, one by one, so that a mistake names its node."""
    if not isinstance(held, dict) or "type" not in held:
        raise InputError(
            f"read_nir needs a type for every node, got none for {name}. Write the file again."
        )
    if held["type"] != "NIRGraph":
        try:
            return nir.dict2NIRNode(dict(held))
        except AssertionError as error:
            if str(error):
                raise _unreadable(name, held, error) from None
            return type(str(held["type"]), (), {"input_type": None, "output_type": None})()
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise _unreadable(name, held, error) from None
    try:
        edges = [(nir.ir.utils.ensure_str(a), nir.ir.utils.ensure_str(b)) for a, b in held["edges"]]
        nodes = {key: _parse(nir, repr(key), node) for key, node in held["nodes"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, held, error) from None
    return SimpleNamespace(nodes=nodes, edges=edges, metadata=held.get("metadata", {}))


def _unreadable(name: str, held: Mapping[str, Any], error: Exception) -> InputError:
    return InputError(
        f"read_nir needs the parameters of a {held['type']} in {name}, got others: "
        f"{first_sentence(error)} Write the file again, and check the library that wrote it."
    )


def _flat(graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[Edge]]:
    """Nodes and edges without graphs inside of graphs, whose inputs and outputs stay as places."""
    nodes: dict[str, Any] = {}
    edges: list[Edge] = []
    into: dict[str, str] = {}
    out: dict[str, str] = {}
    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        if not hasattr(node, "nodes"):
            nodes[full] = node
            continue
        inner, within = _flat(node, f"{full}.")
        ends = [[n for n in node.nodes if _is(node.nodes[n], kind)] for kind in PORTS]
        if any(len(found) != 1 for found in ends):
            raise InputError(
                f"read_nir needs one Input and one Output in the graph {full!r}, got "
                f"{len(ends[0])} and {len(ends[1])}. Split it."
            )
        into[full], out[full] = (f"{full}.{found[0]}" for found in ends)
        nodes |= inner
        edges += within
    for edge in graph.edges:
        a, b = (f"{prefix}{end}" for end in edge)
        edges.append((out.get(a, a), into.get(b, b)))
    return nodes, edges


PORTS = ("Input", "Output")


def _is(node: Any, kind: str) -> bool:
    return type(node).__name__ == kind


def _shape(node: Any, side: str) -> Shape | None:
    kind = getattr(node, f"{side}_type", None) or {}
    shape = kind.get(side)
    return None if shape is None else tuple(int(size) for size in np.asarray(shape).ravel())


def _duration(dt: float | None, metadata: Mapping[str, Any]) -> float:
    said = metadata.get("dt")
    if dt is None:
        dt = DT if said is None else float(said)
    if not 0 < dt < np.inf:
        raise RangeError(f"read_nir needs dt > 0, in seconds, got {dt}. Most libraries use 0.0001.")
    if said is not None and abs(float(said) - dt) > SAME * dt:
        raise InputError(
            f"read_nir needs the dt of the file, {float(said):g} s, got {dt:g} s. Leave dt out."
        )
    return dt


def _check_shapes(network: Network) -> None:
    """Raise, by the name of the node, unless the shapes of all nodes fit."""
    try:
        network.trace_shapes()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"read_nir needs nodes whose shapes fit together, got others: {first_sentence(error)} "
            "Check the library that wrote the file."
        ) from None
