"""The estimator: data in, order, layers, margins and graph out."""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from isospike.causal.background import BackgroundKnowledge, Constraints
from isospike.causal.denoising import denoising_score
from isospike.causal.edges import parent_slopes, prune, threshold_edges
from isospike.causal.guards import (
    check_data,
    in_range,
    looks_rescaled,
    sortability,
    uneven_noise,
    warn_of_noise,
    warn_of_scale,
)
from isospike.causal.rules import RULES, RuleFit, edge_directions, order_by_rule
from isospike.causal.schur import SchurOrder, sample_sort, schur_sort
from isospike.causal.scores import SCORES, information, score_covariance
from isospike.causal.splines import check_level
from isospike.errors import (
    InputError,
    MissingExtraError,
    RangeError,
    ShapeError,
    UnsupportedError,
    not_fitted,
)

CORRECTIONS = ("regression", "mean", "per-sample", "winsorised")
PRUNES = ("cam", "row", "slopes")
WINSORISED_SHARE = 0.1

try:
    from sklearn.base import BaseEstimator
except ImportError:  # fits do not need it; cloning and pipelines do
    BaseEstimator = object

Score = Callable[[Float[np.ndarray, "n d"]], np.ndarray]


class _Found(NamedTuple):
    """What a fit finds in checked rows; the names are those of the estimator's attributes."""

    rule: str
    spread: float
    uneven: bool
    graph: Bool[np.ndarray, "d d"]
    directed: Bool[np.ndarray, "d d"]
    order: SchurOrder
    residuals: Float[np.ndarray, "n d"] | None


class ScoreSchurSort(BaseEstimator):  # type: ignore[misc]
    """Estimate a causal order of the columns of a table, and a graph along that order.

    Assumes additive noise and no hidden causes. The name is that of its linear case: columns are
    removed one by one by Schur complements of the information matrix. The default first tries the
    rule of equal variances, which needs noises of one variance in the columns' own units. Where
    that does not hold, as in rescaled columns, it warns and takes directions from curved functions
    or from noises that are not Gaussian. Lines with Gaussian noise give a partially directed graph.
    Two columns are compared by :func:`isospike.causal.pairs.compare_directions`. The class follows
    the conventions of scikit-learn, so that ``clone``, pipelines and grid searches accept it.

    ==========  =================================================================================
    correction
    ==========  =================================================================================
    regression  roots first, by the residual variance of sparse spline regressions on the variables
                before: additive models
    mean        leaves first, in the mean information matrix: the paper, exact for linear models
    per-sample  leaves first, in every row's Jacobian: exact for additive models
    winsorised  the same, with the most extreme tenth of the rows pulled in
    ==========  =================================================================================

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> x[:, 0] += 2 * x[:, 1]
    >>> x[:, 2] += np.sin(x[:, 0])
    >>> fit = ScoreSchurSort().fit(x)
    >>> fit.rule_, fit.order_.tolist(), np.argwhere(fit.directed_).tolist()
    ('equal-variance', [1, 0, 2], [[0, 2], [1, 0]])

    Args:
        information: Method for the information matrix: ``precision``, ``shrinkage``, ``glasso``,
            ``stein`` or ``denoising``; or a function of the rows that returns scores ``[n, d]``
            (their covariance is used), the matrix ``[d, d]``, or negated Jacobians ``[n, d, d]``.
            ``per-sample`` and ``winsorised`` need Jacobians, from a function or ``denoising``;
            ``regression`` only accepts ``precision``, since it fits its own model.
        correction: A name from the table.
        prune: ``cam`` for spline F-tests, ``row`` for linear weights above ``threshold``,
            ``slopes`` for root mean squared slopes above it, by Stein's score.
        level: Target false discovery rate of ``cam``, above 0 and below 1.
        threshold: Smallest edge weight kept by ``row`` and ``slopes``, in units of the child over
            units of the parent.
        ridge: Value added to each pivot (:func:`isospike.causal.schur.schur_sort`).
        gamma: Variables within this relative tolerance of the minimum are removed in the same step.
        noise_scale: Scale of each variable's noise, up to a common factor, where they differ.
        background: Known edges and tiers.
        rule: Where directions come from (:mod:`isospike.causal.rules`), with ``regression``:
            ``auto``, ``equal-variance``, ``curvature``, ``independence``, ``partial`` or, for two
            columns, ``pairwise``.

    Attributes:
        rule_: The rule that was used; ``equal-variance`` with other corrections.
        order_: Indices of the variables, causes first. Where edges have no direction it is one of
            several.
        layers_: The variables in groups without an order inside: removed in one step, within
            ``gamma``, or joined by edges without a direction.
        margins_: How clear each variable's choice was
            (:class:`isospike.causal.schur.SchurOrder`); by other rules than ``equal-variance`` the
            loss of log likelihood for each row if the variable changes places with the next.
        adjacency_: The graph ``[parent, child]`` along the order.
        directed_: Its edges whose direction the data carry. The others may point either way.
        names_: Names of the columns; ``feature_names_in_`` too if the data have names.
        sortability_: Var-, R2- and score-sortability along the estimated graph.
        rescaled_: Whether all columns have one standard deviation or one range.
        noise_spread_: How much the residual variances differ
            (:func:`isospike.causal.guards.noise_spread`); 0 unless ``correction`` is
            ``regression``.
        uneven_noise_: Share of variables whose noise is not additive; with ``cam``.
    """

    def __init__(
        self,
        information: str | Score = "precision",
        correction: str = "regression",
        prune: str = "cam",
        *,
        level: float = 0.001,
        threshold: float = 0.3,
        ridge: float = 0.0,
        gamma: float = 0.05,
        noise_scale: Sequence[float] | Float[np.ndarray, "d"] | None = None,
        background: BackgroundKnowledge | None = None,
        rule: str = "auto",
    ) -> None:
        self.rule = rule
        self.information, self.correction, self.prune = information, correction, prune
        self.level, self.threshold, self.ridge, self.gamma = level, threshold, ridge, gamma
        self.noise_scale, self.background = noise_scale, background

    def fit(self, X: Any, y: None = None) -> "ScoreSchurSort":  # noqa: ARG002
        """Order the columns of a table.

        Args:
            X: An array or a data frame; a data frame's columns give the names.
            y: Not used; scikit-learn passes it.

        Returns:
            The estimator itself.

        Raises:
            ShapeError: The data are not a table.
            InputError: The data, an option's name or the background knowledge cannot be used.
            RangeError: A number is out of range.
            UnsupportedError: The options do not fit together.
            MissingExtraError: scikit-learn or SciPy is needed and not installed.
        """
        self.check()
        columns = getattr(X, "columns", None)
        names = None if columns is None else [str(c) for c in columns]
        # As scikit-learn has it: only where all names are text.
        self.__dict__.pop("feature_names_in_", None)
        if columns is not None and all(isinstance(c, str) for c in columns):
            self.feature_names_in_ = np.array(names, object)
        given = check_data(X, names, "ScoreSchurSort.fit")
        x = in_range(given)
        self.n_features_in_ = x.shape[1]
        self.names_ = names or [f"x{i}" for i in range(x.shape[1])]
        x = self._scaled(x)
        # Sizes sixty decades apart are no units to compare either.
        own_units = np.ptp(np.log2(np.ptp(given / 2, axis=0))) < 200
        self.rescaled_ = self.noise_scale is None and (looks_rescaled(x) or not own_units)
        found = self._find(x)
        self.rule_, self.noise_spread_ = found.rule, found.spread
        warn_of_scale(self.rescaled_, found.uneven, found.rule)
        self.adjacency_, self.directed_, order = found.graph, found.directed, found.order
        self.order_, self.layers_, self.margins_ = order.order, order.layers, order.margins
        if found.residuals is not None:
            self.uneven_noise_ = uneven_noise(x, found.residuals, found.graph)
            if found.rule != "pairwise":  # which has models for it
                warn_of_noise(self.uneven_noise_)
        self.sortability_ = sortability(x, self.adjacency_)
        return self

    def _find(
        self, x: Float[np.ndarray, "n d"], start: Int[np.ndarray, "d"] | None = None
    ) -> "_Found":
        """Order and graph of checked rows; ``start`` is an order by the same rule."""
        known = (self.background or BackgroundKnowledge()).constraints(self.names_)
        fit = self._order(x, known, start)
        graph, residuals = self._select(x, fit.order.order, known.required, known.forbidden)
        directed, order = edge_directions(fit, graph, known.before)
        return _Found(fit.rule, fit.spread, fit.uneven, graph, directed, order, residuals)

    @property
    def graph_(self) -> Any:
        """The graph as a networkx.DiGraph with the columns' names.

        Raises:
            MissingExtraError: networkx is not installed.
        """
        try:
            networkx = import_module("networkx")
        except ImportError:
            raise MissingExtraError(
                "graph_ needs the package networkx, got none. Install isospike[causal]."
            ) from None
        graph = networkx.DiGraph()
        graph.add_nodes_from(self.names_[i] for i in self.order_)
        graph.add_edges_from(
            (self.names_[i], self.names_[j]) for i, j in np.argwhere(self.adjacency_)
        )
        return graph

    def __getattr__(self, name: str) -> Any:
        """Only asked for what is not there: an attribute of a fit, before one."""
        if name.endswith("_") and not name.startswith("_"):
            raise not_fitted(type(self).__name__, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __sklearn_is_fitted__(self) -> bool:
        return "order_" in vars(self)

    def check(self) -> None:
        """Check the options, which needs no data; :meth:`fit` does so first.

        Raises:
            InputError: An option has a name that is not known.
            RangeError: A number is out of range.
            UnsupportedError: The options do not fit together.
        """
        check_level("ScoreSchurSort", self.level)
        for name, value, most in (
            ("threshold", self.threshold, math.inf), ("gamma", self.gamma, 1),
            ("ridge", self.ridge, math.inf),
        ):  # fmt: skip
            if not 0 <= value < most:
                bound = "finite" if most == math.inf else f"below {most}"
                raise RangeError(
                    f"ScoreSchurSort needs {name} of at least 0 and {bound}, got {value:g}. "
                    "Choose a number in that range."
                )
        for name, known in (("correction", CORRECTIONS), ("prune", PRUNES), ("rule", RULES),
            ("information", SCORES),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in known and not (name == "information" and callable(value)):
                raise InputError(
                    f"ScoreSchurSort needs {name} among {', '.join(known)}, got {value!r}. Choose "
                    "one of them."
                )
        if self.correction == "regression" and self.information != "precision":
            raise UnsupportedError(
                f"ScoreSchurSort needs information='precision' with correction='regression', got "
                f"{self.information!r}. Use correction='mean' with that one."
            )
        gives = callable(self.information) or self.information == "denoising"
        if self.correction in CORRECTIONS[2:] and not gives:
            raise UnsupportedError(
                f"ScoreSchurSort needs a matrix for every row with correction={self.correction!r}, "
                f"got information={self.information!r}. Use information='denoising', or a function "
                "that returns Jacobians."
            )

    def _scaled(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        if self.noise_scale is None:
            return x
        d = x.shape[1]
        scale = np.asarray(self.noise_scale, np.float64)
        if scale.shape != (d,) or not (scale > 0).all():
            raise RangeError(
                f"ScoreSchurSort.fit needs a positive noise_scale for each of {d} columns, got "
                f"{scale.tolist()}. Give {d} positive numbers."
            )
        return x / scale

    def _order(
        self,
        x: Float[np.ndarray, "n d"],
        known: Constraints,
        start: Int[np.ndarray, "d"] | None = None,
    ) -> RuleFit:
        n, d = x.shape
        if self.correction != "regression":
            # The pivots contain the expectation gap, so nothing is known of the noises.
            return RuleFit("equal-variance", self._sort(x, known.before), None, 0.0, False)
        if n <= d:
            raise InputError(
                f"ScoreSchurSort.fit needs more rows than columns, got {n} rows and {d} "
                "columns. Give more rows, or use information='shrinkage' with correction='mean'."
            )
        allowed = ~known.forbidden & ~np.eye(d, dtype=bool)
        if known.before is not None:
            allowed &= ~known.before.T
        rule = self.rule if start is None else self.rule_
        return order_by_rule(x, rule, self.rescaled_, self.gamma, known.before, allowed, start)

    def _sort(
        self, x: Float[np.ndarray, "n d"], before: Bool[np.ndarray, "d d"] | None
    ) -> SchurOrder:
        n, d = x.shape
        options: dict[str, Any] = {"gamma": self.gamma, "before": before}
        if isinstance(self.information, str) and self.correction == "mean":
            return schur_sort(information(x, self.information), ridge=self.ridge, **options)
        if callable(self.information):
            values = np.asarray(self.information(x), np.float64)
        else:
            draw = torch.Generator().manual_seed(0)
            values = denoising_score(x, generator=draw).jacobians(x)
        if self.correction == "mean":
            matrix = _mean_information(values, n, d)
            return schur_sort((matrix + matrix.T) / 2, ridge=self.ridge, **options)
        share = WINSORISED_SHARE if self.correction == "winsorised" else 0.0
        return sample_sort(values, share, before)

    def _select(
        self,
        x: Float[np.ndarray, "n d"],
        order: Int[np.ndarray, "d"],
        required: Bool[np.ndarray, "d d"],
        forbidden: Bool[np.ndarray, "d d"],
    ) -> tuple[Bool[np.ndarray, "d d"], Float[np.ndarray, "n d"] | None]:
        """The graph along the order; with ``cam`` the residuals too."""
        if self.prune == "cam":
            return prune(x, order, self.level, forbidden=forbidden, required=required)
        if self.prune == "slopes":
            edges = parent_slopes(x, order) > self.threshold
        else:
            named = self.information if isinstance(self.information, str) else "precision"
            edges = threshold_edges(information(x, named), order, self.threshold)
        return np.asarray(edges & ~forbidden | required), None


def _mean_information(values: np.ndarray, n: int, d: int) -> Float[np.ndarray, "d d"]:
    """The information matrix from what a user's score function returned."""
    if values.shape == (n, d):
        return score_covariance(values)
    if values.shape == (d, d):
        return values
    if values.shape == (n, d, d):
        return np.asarray(values.mean(0))
    raise ShapeError(
        f"ScoreSchurSort needs scores {(n, d)}, a matrix {(d, d)} or Jacobians {(n, d, d)}, got "
        f"{values.shape}. Return one of these from the score function."
    )
