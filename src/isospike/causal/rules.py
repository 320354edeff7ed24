"""Which rule the data allow, and the order by it.

==============  ==================================================================================
equal-variance  noises of one variance in the columns' own units: roots have the smallest one
curvature       curved functions: they leave smaller residuals forwards than backwards
independence    lines, and noises that are not Gaussian: they are independent in one direction only
partial         lines and Gaussian noises: only arrows that follow from independences
pairwise        two columns: the likelihoods of both directions (:mod:`isospike.causal.pairs`)
==============  ==================================================================================

Two columns have a rule of their own. Of more, the first is tried first and given up when columns
look rescaled or residual variances differ too much. Then lines are fitted; noises that are not
Gaussian add their shape to the likelihood; and splines replace lines where the Bayesian information
criterion wants them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isospike.causal.directions import chain_components, directed_edges
from isospike.causal.guards import noise_spread, uneven_scale
from isospike.causal.pairs import compare_directions
from isospike.causal.schur import SchurOrder
from isospike.causal.search import SHAPE_ROWS, LikelihoodSearch
from isospike.causal.splines import affordable_features, spline_sort
from isospike.errors import InputError
from isospike.kernels.growth import negentropy

RULES = ("auto", "equal-variance", "curvature", "independence", "partial", "pairwise")
MAX_REFINED = 100  # variables of an order by equal variances that is improved by a search
_MAX_THOROUGH, _MAX_HOPPED = 30, 60  # variables of a search that tries harder
_MAX_BOTH = 8  # variables for which curves are sought from the start
_SHAPE_LEVEL = 0.001  # probability that Gaussian noises count as something else
_MAX_RATIO = 1e6  # of standard deviations, for a rule that compares variances


class RuleFit(NamedTuple):
    """An order, the rule that gave it, and the likelihoods behind it.

    Attributes:
        rule: A name from the table.
        order: The order; its layers are final where there is no search.
        search: Likelihoods under the rule; None for two columns and more than a hundred.
        spread: How much the residual variances differ under equal variances; 0 if never tried.
        uneven: Whether they differ by more than chance.
    """

    rule: str
    order: SchurOrder
    search: LikelihoodSearch | None
    spread: float
    uneven: bool


def order_by_rule(
    x: Float[np.ndarray, "n d"],
    rule: str,
    rescaled: bool,
    gamma: float,
    before: Bool[np.ndarray, "d d"] | None,
    allowed: Bool[np.ndarray, "d d"],
    start: Int[np.ndarray, "d"] | None = None,
) -> RuleFit:
    """Order the variables by a rule, or by the first one that the data allow.

    Args:
        x: The rows.
        rule: One of ``RULES``.
        rescaled: Whether the columns look rescaled.
        gamma: Tolerance of :func:`isospike.causal.splines.spline_sort`.
        before: ``before[i, j]`` if i must come before j.
        allowed: ``allowed[i, j]`` if i may be a parent of j.
        start: An order near the best one, for a shorter search by a given rule.

    Returns:
        The order with its rule.

    Raises:
        InputError: ``before`` has a cycle, or ``pairwise`` is asked for more than two columns.
        MissingExtraError: SciPy is not installed.
    """
    if rule == "pairwise" and x.shape[1] > 2:
        raise InputError(
            f"ScoreSchurSort.fit needs two columns for rule='pairwise', got {x.shape[1]}. Use "
            "rule='auto'."
        )
    if rule == "pairwise" or (rule == "auto" and x.shape[1] == 2):
        return RuleFit("pairwise", _pair_order(x, before, allowed), None, 0.0, False)
    sd = x.std(0)
    comparable = bool(sd.max() < _MAX_RATIO * sd.min())
    spread, uneven = 0.0, False
    if rule == "equal-variance" or (rule == "auto" and comparable and not rescaled):
        order = spline_sort(x, gamma=gamma, before=before)
        spread, uneven = noise_spread(order.pivots), uneven_scale(order.pivots, len(x))
        if rule == "equal-variance" or not uneven:
            return _refined(x, order, spread, uneven, before, allowed)
    z = (x - x.mean(0)) / sd
    if start is None:
        name, search, found = _search(z, rule, before, allowed)
    else:
        count = affordable_features(*x.shape) if rule == "curvature" else 1
        shaped = rule == "independence"
        search = LikelihoodSearch(z, count, shaped=shaped, before=before, allowed=allowed)
        name, found = rule, search.search(start.tolist(), int(not shaped), 0)
    return RuleFit(name, _as_order(search, found), search, spread, uneven)


def edge_directions(
    fit: RuleFit, graph: Bool[np.ndarray, "d d"], before: Bool[np.ndarray, "d d"] | None
) -> tuple[Bool[np.ndarray, "d d"], SchurOrder]:
    """The edges whose direction the data carry, and the order with its ties as layers.

    Args:
        fit: The order and its rule.
        graph: The graph along the order, ``[parent, child]``.
        before: ``before[i, j]`` if i must come before j.

    Returns:
        The edges, and the order.
    """
    fixed = np.zeros_like(graph) if before is None else before
    if fit.search is None:
        layer = np.empty(len(graph), np.int64)
        for number, members in enumerate(fit.order.layers):
            layer[list(members)] = number
        return graph & ((layer[:, None] != layer) | fixed), fit.order
    search = fit.search
    least = 10.0 + 2 * search.count

    def carried(i: int, j: int) -> bool:
        others = np.flatnonzero(graph[:, i] | graph[:, j])
        return search.reversal_cost(i, j, [int(v) for v in others if v != i]) > least

    directed = directed_edges(graph, fixed, carried)
    layers = chain_components(graph, directed, fit.order.order)
    if all(len(layer) == 1 for layer in layers):
        return directed, fit.order
    order = np.array([v for layer in layers for v in layer], np.int64)
    return directed, fit.order._replace(order=order, layers=layers)


def _pair_order(
    x: Float[np.ndarray, "n 2"],
    before: Bool[np.ndarray, "2 2"] | None,
    allowed: Bool[np.ndarray, "2 2"],
) -> SchurOrder:
    """The order of two columns: one layer unless the data, or what is known, carry it."""
    found = compare_directions(x)
    first, known = found.first, False
    if before is not None and before.any():
        first, known = int(before[1, 0]), True
    elif allowed[0, 1] != allowed[1, 0]:
        first = int(allowed[1, 0])
    order = np.array([first, 1 - first], np.int64)
    sure = known or (found.decided and first == found.first)
    layers: tuple[tuple[int, ...], ...] = (
        ((first,), (1 - first,)) if sure else ((first, 1 - first),)
    )
    margins = np.full(2, np.inf)
    margins[first] = 0.0 if found.tied or first != found.first else found.gain / len(x)
    return SchurOrder(order, layers, np.ones(2), margins)


def _refined(
    x: Float[np.ndarray, "n d"],
    order: SchurOrder,
    spread: float,
    uneven: bool,
    before: Bool[np.ndarray, "d d"] | None,
    allowed: Bool[np.ndarray, "d d"],
) -> RuleFit:
    """An order by equal variances, improved where moves of single variables make it likelier."""
    n, d = x.shape
    if d > MAX_REFINED:
        return RuleFit("equal-variance", order, None, spread, uneven)
    search = LikelihoodSearch(
        x,
        affordable_features(n, d),
        variance=float(np.median(order.pivots)),
        before=before,
        allowed=allowed,
    )
    found = search.climb(order.order.tolist())
    if found != order.order.tolist():
        pivots, margins = order.pivots, _as_order(search, found).margins
        order = SchurOrder(np.array(found), tuple((v,) for v in found), pivots, margins)
    return RuleFit("equal-variance", order, search, spread, uneven)


def _search(
    z: Float[np.ndarray, "n d"],
    rule: str,
    before: Bool[np.ndarray, "d d"] | None,
    allowed: Bool[np.ndarray, "d d"],
) -> tuple[str, LikelihoodSearch, list[int]]:
    """The rule that the data allow, its likelihoods, and its order."""
    n, d = z.shape
    effort = int(d <= _MAX_THOROUGH) + int(d <= _MAX_HOPPED)
    lines = LikelihoodSearch(z, 1, before=before, allowed=allowed)
    first = lines.search(None, 1, 0)
    count = affordable_features(n, d) if rule in ("auto", "curvature") else 1
    curves = lines if count == 1 else LikelihoodSearch(z, count, before=before, allowed=allowed)
    # An order of lines may be one of several; the others may be the curved ones.
    both = count > 1 and d <= _MAX_BOTH
    other = curves.climb(first) if both else first
    bends, shape = lines.cost(first) - curves.cost(other), _shape(lines, first)
    order, independent = first, rule == "independence"
    if independent or (rule == "auto" and shape > max(0.0, bends)):
        independent = True
        lines.count_shape()
        order = lines.search(first, 0, 6 * effort)
    if rule != "curvature" and not (
        count > 1 and (curves.is_curved(order) or (both and curves.is_curved(other)))
    ):
        if independent:
            return "independence", lines, order
        return "partial", lines, lines.search(order, effort, 10 * effort)
    bent = curves.search(order, effort // 2, 2 * effort)
    if _shape(curves, bent):
        curves.count_shape()
        bent = curves.climb(bent)
        if not lines.shaped:
            lines.count_shape()
            order = lines.climb(order)
        if rule == "auto" and lines.cost(order) <= curves.cost(bent):
            return "independence", lines, order
    return "curvature", curves, bent


def _shape(search: LikelihoodSearch, order: list[int]) -> float:
    """Gain of the cost by the shape of the noises; 0 if all may be Gaussian.

    Of Gaussian noise twice the rows times the negentropy is chi-squared with 2 degrees of freedom.
    """
    rests = search.residuals(order)[:SHAPE_ROWS]
    gains = 2 * np.array([negentropy(np.ascontiguousarray(rest)) for rest in rests.T])
    clear = len(rests) * gains > -2 * np.log(_SHAPE_LEVEL / len(order))
    return float(gains[clear].sum())


def _as_order(search: LikelihoodSearch, found: list[int]) -> SchurOrder:
    """An order with the loss of likelihood, for each row, if a variable changes with the next; it
    is infinite where it is known to come first."""
    margins = np.full(len(found), np.inf)
    cost = search.cost(found)
    for k in range(len(found) - 1):
        if search.before is not None and search.before[found[k], found[k + 1]]:
            continue
        swapped = [*found[:k], found[k + 1], found[k], *found[k + 2 :]]
        margins[found[k]] = max(0.0, search.cost(swapped) - cost)
    return SchurOrder(
        np.array(found, np.int64), tuple((v,) for v in found), np.ones(len(found)), margins
    )
