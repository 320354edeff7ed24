"""How far an order and a graph are from the true graph; adjacency is ``[parent, child]``."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from isospike.errors import RangeError, ShapeError


class Comparison(NamedTuple):
    """An order and a graph against the truth.

    Attributes:
        divergence: True edges whose child comes before the parent in the order; half the edges for
            a random order.
        shd: Pairs of variables whose edge differs: missing, extra or reversed. For the empty graph,
            the number of true edges.
        sid: Ordered pairs for which adjusting for the graph's parents of the cause gives a wrong
            effect; None if it was not asked for.
        tpr: True edges found, of all true edges; NaN if there are none.
        fdr: Found edges that are not true, reversed ones included, of all found; 0 if none is.
        edges: Edges found.
    """

    divergence: int
    shd: int
    sid: int | None
    tpr: float
    fdr: float
    edges: int


def compare(
    order: Int[np.ndarray, "d"],
    adjacency: Bool[np.ndarray, "d d"],
    truth: Bool[np.ndarray, "d d"],
    sid: bool = False,
) -> Comparison:
    """Every measure at once.

    Args:
        order: Causes first.
        adjacency: The graph found.
        truth: The true graph, acyclic.
        sid: Whether to take the structural intervention distance too: d^2 searches of the graph.
    """
    found, true = int(adjacency.sum()), int(truth.sum())
    right = int((adjacency & truth).sum())
    return Comparison(
        order_divergence(order, truth),
        structural_hamming_distance(adjacency, truth),
        structural_intervention_distance(adjacency, truth) if sid else None,
        right / true if true else float("nan"),
        1 - right / found if found else 0.0,
        found,
    )


def order_divergence(order: Int[np.ndarray, "d"], truth: Bool[np.ndarray, "d d"]) -> int:
    """True edges whose child comes before its parent.

    Raises:
        RangeError: ``order`` does not name each variable once.
    """
    if sorted(order.tolist()) != list(range(len(truth))):
        raise RangeError(
            f"order_divergence needs an order of the {len(truth)} variables, got {len(order)} "
            "numbers that do not name each once."
        )
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    parent, child = np.nonzero(truth)
    return int((rank[parent] > rank[child]).sum())


def structural_hamming_distance(
    adjacency: Bool[np.ndarray, "d d"], truth: Bool[np.ndarray, "d d"]
) -> int:
    """Pairs of variables whose edge differs; a reversed edge counts once."""
    _check_pair(adjacency, truth, "structural_hamming_distance")
    differ = adjacency != truth
    return int(np.triu(differ | differ.T, 1).sum())


def structural_intervention_distance(
    adjacency: Bool[np.ndarray, "d d"], truth: Bool[np.ndarray, "d d"]
) -> int:
    """Ordered pairs (i, j) whose effect comes out wrong with the graph's parents of i adjusted for.

    Wrong means: i affects j, and the graph makes j a parent of i; or else the parents Z of i in the
    graph are no valid adjustment: one of them descends from a variable on a directed path from i to
    j, or a path that is not directed stays open given Z.

    Raises:
        RangeError: One of the graphs has a cycle.

    Reference: Peters, Buhlmann (2015), Structural intervention distance for evaluating causal
    graphs.
    """
    _check_pair(adjacency, truth, "structural_intervention_distance")
    d = len(truth)
    reach = descendants(truth, "structural_intervention_distance") | np.eye(d, dtype=bool)
    descendants(adjacency, "structural_intervention_distance")
    wrong = 0
    for i in range(d):
        z = adjacency[:, i]
        for j in range(d):
            if i == j:
                continue
            if z[j]:
                wrong += bool(reach[i, j])
                continue
            path = reach[i] & reach[:, j]  # on a directed path from i to j
            path[i] = False
            if (reach[path].any(0) & z).any():
                wrong += 1
                continue
            cut = truth.copy()
            cut[i, path] = False
            wrong += _connected(cut, i, j, z)
    return wrong


def descendants(
    graph: Bool[np.ndarray, "d d"], who: str = "descendants"
) -> Bool[np.ndarray, "d d"]:
    """``[i, j]``: whether a directed path of at least one edge goes from i to j.

    Raises:
        RangeError: The graph has a cycle.
    """
    reach = graph.copy()
    for k in range(len(graph)):
        reach |= reach[:, k, None] & reach[k]
    if reach.diagonal().any():
        raise RangeError(
            f"{who} needs a graph without cycles, got one through variable "
            f"{int(reach.diagonal().argmax())}. Remove an edge of the cycle."
        )
    return reach


def _connected(
    graph: Bool[np.ndarray, "d d"], start: int, end: int, given: Bool[np.ndarray, "d"]
) -> bool:
    """Whether some path from start to end is open given a set: the Bayes ball."""
    d = len(graph)
    opens = given.copy()  # colliders that are given, or have a descendant that is
    for _ in range(d):
        more = opens | graph[:, opens].any(1)
        if (more == opens).all():
            break
        opens = more
    seen, stack = set(), [(start, False)]  # (variable, whether reached from a parent)
    while stack:
        node, down = stack.pop()
        if (node, down) in seen:
            continue
        seen.add((node, down))
        if node == end:
            return True
        if not given[node]:
            stack += [(int(c), True) for c in np.flatnonzero(graph[node])]
        if opens[node] if down else not given[node]:
            stack += [(int(p), False) for p in np.flatnonzero(graph[:, node])]
    return False


def _check_pair(
    adjacency: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], who: str
) -> None:
    if adjacency.shape != truth.shape or truth.ndim != 2 or truth.shape[0] != truth.shape[1]:
        raise ShapeError(
            f"{who} needs two square matrices of one shape, got {adjacency.shape} and "
            f"{truth.shape}."
        )
