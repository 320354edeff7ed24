"""Simple methods to compare an order and a graph with, where the true graph is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from isospike.causal.edges import prune
from isospike.causal.estimator import ScoreSchurSort
from isospike.causal.metrics import Comparison, compare_to_truth
from isospike.causal.schur import schur_sort
from isospike.causal.scores import precision
from isospike.errors import InputError
from isospike.progress import update

RANDOM_ORDERS = 10
MAX_SID_VARIABLES = 60  # the structural intervention distance takes d^2 searches of the graph


@dataclass(frozen=True)
class MethodRow:
    """One method compared with the true graph; means over the draws of a random method.

    Attributes:
        name: Name of the method.
        divergence, shd, sid, tpr, fdr, edges: As in :class:`isospike.causal.metrics.Comparison`;
            the empty graph has no order, hence no divergence.
    """

    name: str
    divergence: float | None
    shd: float
    sid: float | None
    tpr: float
    fdr: float
    edges: float


def compare_methods(
    x: Float[np.ndarray, "n d"], truth: Bool[np.ndarray, "d d"], fit: ScoreSchurSort, seed: int = 0
) -> tuple[MethodRow, ...]:
    """Compare a fit and simple methods with the true graph.

    The methods are the elimination of the inverse covariance, sorting by variance and random
    orders, all with the pruning ``cam``, and the empty graph.

    Args:
        x: The rows.
        truth: The true graph, ``[parent, child]``.
        fit: The fitted estimator.
        seed: Seed of the random orders.

    Returns:
        One row for each method, the fit first.

    Raises:
        InputError: The true graph has a cycle.
    """
    d = x.shape[1]
    sid = d <= MAX_SID_VARIABLES
    draw = np.random.default_rng(seed)
    methods: list[tuple[str, list[np.ndarray]]] = []
    try:
        methods.append(("inverse covariance", [schur_sort(precision(x)).order]))
    except InputError:
        pass  # too few rows
    methods.append(("sorted by variance", [x.var(0).argsort(kind="stable")]))
    methods.append(("random orders", [draw.permutation(d) for _ in range(RANDOM_ORDERS)]))
    rows = [
        _row("this fit", [compare_to_truth(fit.order_, fit.adjacency_, truth, sid, fit.directed_)])
    ]
    for done, (name, orders) in enumerate(methods):
        update("compare", done, len(methods))
        graphs = [prune(x, order, fit.level)[0] for order in orders]
        pairs = zip(orders, graphs, strict=True)
        rows.append(_row(name, [compare_to_truth(o, g, truth, sid) for o, g in pairs]))
    update("compare", len(methods), len(methods))
    empty = compare_to_truth(np.arange(d), np.zeros((d, d), bool), truth, sid)
    return (*rows, replace(_row("empty graph", [empty]), divergence=None))


def _row(name: str, comparisons: Sequence[Comparison]) -> MethodRow:
    def mean(field: str) -> float:
        return float(np.mean([getattr(c, field) for c in comparisons]))

    sid = None if comparisons[0].sid is None else mean("sid")
    return MethodRow(
        name, mean("divergence"), mean("shd"), sid, mean("tpr"), mean("fdr"), mean("edges")
    )
