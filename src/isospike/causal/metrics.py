"""Distances between an order or a graph and the true graph; adjacency is ``[parent, child]``."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from isospike.errors import InputError, RangeError, ShapeError


class Comparison(NamedTuple):
    """An order and a graph compared with the true graph.

    Attributes:
        divergence: Number of true edges whose child comes before the parent in the order; half of
            the edges for a random order.
        shd: Structural Hamming distance: number of pairs of variables whose edge differs (missing,
            extra or reversed). For the empty graph it is the number of true edges.
        sid: Structural intervention distance: number of ordered pairs for which adjusting for the
            graph's parents of the cause gives a wrong effect; None if it was not computed.
        tpr: True positive rate: the share of true edges that are in the graph; NaN if there are no
            true edges.
        fdr: False discovery rate: the share of the graph's edges that are not true, reversed ones
            included; 0 for a graph without edges.
        edges: Number of edges in the graph.

    >>> Comparison(divergence=0, shd=0, sid=0, tpr=1.0, fdr=0.0, edges=3).tpr
    1.0
    """

    divergence: int
    shd: int
    sid: int | None
    tpr: float
    fdr: float
    edges: int


def compare_to_truth(
    order: Int[np.ndarray, "d"],
    adjacency: Bool[np.ndarray, "d d"],
    truth: Bool[np.ndarray, "d d"],
    sid: bool = False,
    directed: Bool[np.ndarray, "d d"] | None = None,
) -> Comparison:
    """Compute every distance between an estimate and the true graph.

    >>> import numpy as np
    >>> truth = np.array([[False, True], [False, False]])
    >>> compare_to_truth(np.array([0, 1]), truth, truth)
    Comparison(divergence=0, shd=0, sid=None, tpr=1.0, fdr=0.0, edges=1)

    Args:
        order: The estimated order, causes first.
        adjacency: The estimated graph, ``[parent, child]``.
        truth: The true graph, acyclic.
        sid: Whether to compute the structural intervention distance too, which takes d^2 searches
            of the graph.
        directed: The edges of the graph whose direction is claimed; all by default. Any other edge
            is right, for ``shd``, ``tpr`` and ``fdr``, if the truth has it in either direction.

    Returns:
        The distances.

    Raises:
        RangeError: ``order`` does not contain each variable once.
        ShapeError: The two graphs are not square matrices of one size.
        InputError: With ``sid``, one of the graphs has a cycle.
    """
    distance = structural_intervention_distance(adjacency, truth) if sid else None
    if directed is not None:
        loose = adjacency & ~directed
        adjacency = adjacency & ~(loose & truth.T) | (loose.T & truth)
    edges, true_edges = int(adjacency.sum()), int(truth.sum())
    right = int((adjacency & truth).sum())
    return Comparison(
        order_divergence(order, truth),
        structural_hamming_distance(adjacency, truth),
        distance,
        right / true_edges if true_edges else float("nan"),
        1 - right / edges if edges else 0.0,
        edges,
    )


def order_divergence(order: Int[np.ndarray, "d"], truth: Bool[np.ndarray, "d d"]) -> int:
    """Number of true edges whose child comes before its parent in the order.

    >>> import numpy as np
    >>> order_divergence(np.array([1, 0]), np.array([[False, True], [False, False]]))
    1

    Args:
        order: The variables, causes first.
        truth: The true graph, ``[parent, child]``.

    Returns:
        The number of reversed edges.

    Raises:
        RangeError: ``order`` does not contain each variable once.
    """
    if sorted(order.tolist()) != list(range(len(truth))):
        raise RangeError(
            f"order_divergence needs an order of the {len(truth)} variables, got {len(order)} "
            "numbers that do not name each once. Give each index once."
        )
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    parent, child = np.nonzero(truth)
    return int((rank[parent] > rank[child]).sum())


def structural_hamming_distance(
    adjacency: Bool[np.ndarray, "d d"], truth: Bool[np.ndarray, "d d"]
) -> int:
    """Number of pairs of variables whose edge differs; a reversed edge counts once.

    >>> import numpy as np
    >>> structural_hamming_distance(np.eye(3, k=1, dtype=bool), np.zeros((3, 3), bool))
    2

    Args:
        adjacency: The estimated graph, ``[parent, child]``.
        truth: The true graph.

    Returns:
        The distance; 0 for equal graphs.

    Raises:
        ShapeError: The two graphs are not square matrices of one size.
    """
    _check_pair(adjacency, truth, "structural_hamming_distance")
    differ = adjacency != truth
    return int(np.triu(differ | differ.T, 1).sum())


def structural_intervention_distance(
    adjacency: Bool[np.ndarray, "d d"], truth: Bool[np.ndarray, "d d"]
) -> int:
    """Number of ordered pairs (i, j) whose effect is wrong after adjusting for the parents of i.

    The parents are those in the estimated graph. An effect is wrong if i affects j although the
    estimated graph makes j a parent of i, or if the parents Z of i in the estimated graph are not a
    valid adjustment set: a member of Z descends from a variable on a directed path from i to j, or
    a path that is not directed stays open given Z.

    >>> import numpy as np
    >>> chain = np.eye(3, k=1, dtype=bool)
    >>> structural_intervention_distance(chain, chain)
    0

    Args:
        adjacency: The estimated graph, ``[parent, child]``.
        truth: The true graph.

    Returns:
        The distance; 0 for equal graphs.

    Raises:
        ShapeError: The two graphs are not square matrices of one size.
        InputError: One of the graphs has a cycle.

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
    """Whether a directed path of at least one edge leads from one variable to another.

    Args:
        graph: An acyclic graph, ``[parent, child]``.
        who: Name of the public function, for the error message.

    Returns:
        ``[i, j]``: whether j descends from i.

    Raises:
        InputError: The graph has a cycle.
    """
    reach = graph.copy()
    for k in range(len(graph)):
        reach |= reach[:, k, None] & reach[k]
    if reach.diagonal().any():
        raise InputError(
            f"{who} needs a graph without cycles, got one through variable "
            f"{int(reach.diagonal().argmax())}. Remove an edge of the cycle."
        )
    return reach


def _connected(
    graph: Bool[np.ndarray, "d d"], start: int, end: int, given: Bool[np.ndarray, "d"]
) -> bool:
    """Whether a path from start to end is open given a set, by the Bayes ball."""
    d = len(graph)
    opens = given.copy()  # colliders that are in the set or have a descendant in it
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
            f"{truth.shape}. Give both graphs a row and a column for each variable."
        )
