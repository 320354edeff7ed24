"""Which arrows of a graph the data carry.

Graphs with the same neighbours and the same colliders say the same of which variables are
independent, so in linear models with Gaussian noise only the arrows that all of them share are
known. Curved functions, other noises, noises of one variance and background knowledge fix more.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int


def directed_edges(
    graph: Bool[np.ndarray, "d d"],
    fixed: Bool[np.ndarray, "d d"],
    carried: Callable[[int, int], bool] | None = None,
) -> Bool[np.ndarray, "d d"]:
    """The arrows that hold in every graph that agrees with the data and with what is fixed.

    Colliders are fixed, then edges whose reversal the data refuse, then what follows by Meek's
    four rules.

    >>> chain = np.eye(3, k=1, dtype=bool)
    >>> bool(directed_edges(chain, np.zeros((3, 3), bool)).any())
    False
    >>> collider = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], bool)
    >>> int(directed_edges(collider, np.zeros((3, 3), bool)).sum())
    2

    Args:
        graph: An acyclic graph, ``[parent, child]``.
        fixed: Edges of the graph that are known otherwise.
        carried: Whether the data refuse to reverse an edge; asked for the edges that would stay
            open. No by default.

    Returns:
        The edges of the graph whose direction is known.

    Reference: Meek (1995), Causal inference and causal explanation with background knowledge.
    """
    joined = graph | graph.T
    known = graph & fixed
    for child in range(len(graph)):
        parents = np.flatnonzero(graph[:, child])
        apart = ~joined[np.ix_(parents, parents)] & ~np.eye(len(parents), dtype=bool)
        known[parents[apart.any(1)], child] = True
    known = _closed(graph, known)
    if carried is not None:
        open_edges = [(int(i), int(j)) for i, j in np.argwhere(graph & ~known)]
        for i, j in open_edges:
            known[i, j] = carried(i, j)
        known = _closed(graph, known)
    return known


def _closed(graph: Bool[np.ndarray, "d d"], known: Bool[np.ndarray, "d d"]) -> np.ndarray:
    """Meek's rules; an edge they turn is turned as in the graph, which obeys them."""
    joined = graph | graph.T
    while True:
        loose = joined & ~known & ~known.T
        apart = ~joined & ~np.eye(len(graph), dtype=bool)
        k = known.astype(np.int64)
        first = (k.T @ apart) > 0  # [b, c]: a -> b, a and c apart
        second = (k @ k) > 0  # a -> c -> b
        new = loose & (first | second) & graph
        for a, b in np.argwhere(loose & graph & ~new).tolist():
            into = np.flatnonzero(loose[a] & known[:, b])  # a - c -> b
            third = apart[np.ix_(into, into)].any()
            # a - d -> c -> b with d and b apart
            ahead = np.flatnonzero(joined[a] & known[:, b])
            fourth = (known[np.ix_(loose[a] & apart[b], ahead)]).any()
            new[a, b] = third or fourth
        if not new.any():
            return known
        known = known | new


def chain_components(
    graph: Bool[np.ndarray, "d d"], directed: Bool[np.ndarray, "d d"], order: Int[np.ndarray, "d"]
) -> tuple[tuple[int, ...], ...]:
    """Groups of variables joined by edges without a direction, causes first.

    Args:
        graph: An acyclic graph, ``[parent, child]``.
        directed: Its edges whose direction is known.
        order: The variables, causes first.

    Returns:
        The groups; most variables are alone. Within a group the order is arbitrary.
    """
    d = len(graph)
    together = (graph & ~directed) | (graph & ~directed).T | np.eye(d, dtype=bool)
    for _ in range(int(np.ceil(np.log2(d))) + 1):
        together = (together.astype(np.float64) @ together) > 0
    first = np.array([int(order[together[v, order]][0]) for v in range(d)])
    into = np.zeros((d, d), bool)
    parent, child = np.nonzero(graph)
    into[first[parent], first[child]] = True
    np.fill_diagonal(into, False)
    left, groups = list(dict.fromkeys(first[order].tolist())), []
    while left:
        # The groups have no cycle (Perkovic 2020); the first is a guard against a cut graph.
        free = next((g for g in left if not into[left, g].any()), left[0])
        groups.append(tuple(int(v) for v in order if first[v] == free))
        left.remove(free)
    return tuple(groups)
