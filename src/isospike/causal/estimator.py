"""The estimator: data in, order, layers, margins and graph out."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from isospike.causal.denoising import denoising_score
from isospike.causal.edges import parent_slopes, prune, threshold_edges
from isospike.causal.guards import (
    check_data,
    looks_rescaled,
    noise_spread,
    sortability,
    uneven_noise,
    uneven_scale,
    warn_of_noise,
    warn_of_scale,
)
from isospike.causal.metrics import descendants
from isospike.causal.schur import SchurOrder, schur_sort
from isospike.causal.scores import SCORES, information, score_covariance
from isospike.causal.splines import spline_sort
from isospike.errors import MissingExtraError, RangeError, ShapeError, UnsupportedError

CORRECTIONS = ("regression", "mean", "per-sample", "winsorised")
PRUNES = ("cam", "row", "slopes")
WINSORISE = 0.1

Score = Callable[[Float[np.ndarray, "n d"]], np.ndarray]


class ScoreSchurSort:
    """Causal order of observational data by Schur complements, and a graph along it.

    Assumes additive noise of one variance in the columns' own units. Rescaled columns break that;
    the fit warns where it shows.

    ==========  =================================================================================
    correction
    ==========  =================================================================================
    regression  roots first, by what sparse regressions on splines of those before leave: additive
                models
    mean        leaves first, in the mean information matrix: the paper, exact for linear models
    per-sample  the same in every row's Jacobian: additive models without error of their own
    winsorised  the same, the tenth of the rows that lie furthest out pulled in
    ==========  =================================================================================

    Args:
        score: Where the information matrix comes from: ``precision``, ``shrinkage``, ``glasso``,
            ``stein`` or ``denoising``; or a function of the rows that gives scores ``[n, d]``
            (their covariance is taken), the matrix ``[d, d]``, or negative Jacobians ``[n, d, d]``.
            The last two corrections need Jacobians, which ``denoising`` gives too; ``regression``
            takes only ``precision``: it fits its own.
        correction: See the table.
        prune: ``cam`` for spline F-tests, ``row`` for linear weights above ``threshold``,
            ``slopes`` for root mean squared slopes above it, by Stein's score: one estimate each.
        level: False edges allowed for by ``cam``, as a share of those found.
        threshold: Of ``row`` and ``slopes``, in units of the child over units of the parent.
        ridge, gamma: As in :func:`isospike.causal.schur.schur_sort`.
        noise_scale: Each noise's scale, up to a common factor, where they differ.
        required, forbidden: Edges by names or indices, ``(parent, child)``.
        tiers: Groups of variables, earlier groups before later ones; others are free.

    Attributes:
        order_: Variables by index, causes first.
        layers_: The same, grouped into what was within ``gamma`` and removed at once.
        margins_: By variable, how clear its choice was (:class:`isospike.causal.schur.SchurOrder`).
        adjacency_: The graph ``[parent, child]``.
        names_: The columns' names.
        sortability_: Var-, R2- and score-sortability along the graph found.
        rescaled_: Whether the columns are of one standard deviation or one range.
        noise_spread_: How unequal the noises are that the order leaves
            (:func:`isospike.causal.guards.noise_spread`); 0 for other corrections than
            ``regression``.
        uneven_noise_: Share of variables whose noise is not additive; with ``cam``.
    """

    def __init__(
        self,
        score: str | Score = "precision",
        correction: str = "regression",
        prune: str = "cam",
        *,
        level: float = 0.001,
        threshold: float = 0.3,
        ridge: float = 0.0,
        gamma: float = 0.05,
        noise_scale: Sequence[float] | Float[np.ndarray, "d"] | None = None,
        required: Iterable[tuple[Any, Any]] = (),
        forbidden: Iterable[tuple[Any, Any]] = (),
        tiers: Iterable[Iterable[Any]] = (),
    ) -> None:
        self.score, self.correction, self.prune = score, correction, prune
        self.level, self.threshold, self.ridge, self.gamma = level, threshold, ridge, gamma
        self.noise_scale, self.required, self.forbidden = noise_scale, required, forbidden
        self.tiers = tiers

    def fit(self, X: Any, y: None = None) -> "ScoreSchurSort":  # noqa: ARG002
        """Order the columns of a table, an array or a data frame.

        Raises:
            ShapeError: Not a table.
            RangeError: Unusable data, options or background knowledge.
            MissingExtraError: scikit-learn or SciPy is needed and not installed.
        """
        self._check_options()
        columns = getattr(X, "columns", None)
        names = None if columns is None else [str(c) for c in columns]
        x = check_data(X, names, "ScoreSchurSort.fit")
        d = x.shape[1]
        self.names_ = names or [f"x{i}" for i in range(d)]
        self.n_features_in_ = d
        if self.noise_scale is not None:
            scale = np.asarray(self.noise_scale, np.float64)
            if scale.shape != (d,) or not (scale > 0).all():
                raise RangeError(
                    f"ScoreSchurSort.fit needs a positive noise_scale for each of {d} columns, got "
                    f"{scale.tolist()}."
                )
            x = x / scale
        self.rescaled_ = self.noise_scale is None and looks_rescaled(x)
        required = self._edges(self.required, "required")
        forbidden = self._edges(self.forbidden, "forbidden")
        if (required & forbidden).any():
            raise RangeError("ScoreSchurSort.fit needs no edge both required and forbidden.")
        known = required | self._tiers()
        before = descendants(known, "ScoreSchurSort.fit") if known.any() else None
        found = self._sort(x, before)
        self.order_, self.layers_, self.margins_ = found.order, found.layers, found.margins
        # Other corrections leave the expectation gap in their pivots.
        left = found.pivots if self.correction == "regression" else np.ones(d)
        self.noise_spread_ = noise_spread(left)
        warn_of_scale(self.rescaled_, uneven_scale(left, len(x)))
        if self.prune == "cam":
            self.adjacency_, residuals = prune(
                x, found.order, self.level, forbidden=forbidden, required=required
            )
            self.uneven_noise_ = uneven_noise(x, residuals, self.adjacency_)
            warn_of_noise(self.uneven_noise_)
        elif self.prune == "slopes":
            slopes = parent_slopes(x, found.order)
            self.adjacency_ = (slopes > self.threshold) & ~forbidden | required
        else:
            named = self.score if isinstance(self.score, str) else "precision"
            rows = threshold_edges(information(x, named), found.order, self.threshold)
            self.adjacency_ = rows & ~forbidden | required
        self.sortability_ = sortability(x, self.adjacency_)
        return self

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
                "graph_ needs the package networkx. Install isospike[causal]."
            ) from None
        graph = networkx.DiGraph()
        graph.add_nodes_from(self.names_[i] for i in self.order_)
        graph.add_edges_from(
            (self.names_[i], self.names_[j]) for i, j in np.argwhere(self.adjacency_)
        )
        return graph

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """The arguments, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> "ScoreSchurSort":
        """Change arguments by name."""
        for name, value in params.items():
            if name not in self.get_params():
                raise RangeError(
                    f"set_params needs an argument of ScoreSchurSort, got {name!r}. It has "
                    f"{', '.join(self.get_params())}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        default = {k: p.default for k, p in inspect.signature(type(self)).parameters.items()}
        changed = {k: v for k, v in self.get_params().items() if v is not default[k]}
        return f"ScoreSchurSort({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    def _check_options(self) -> None:
        for name, known in (("correction", CORRECTIONS), ("prune", PRUNES), ("score", SCORES)):
            value = getattr(self, name)
            if value not in known and not (name == "score" and callable(value)):
                raise RangeError(
                    f"ScoreSchurSort needs {name} of {', '.join(known)}, got {value!r}."
                )
        if self.correction == "regression" and self.score != "precision":
            raise UnsupportedError(
                f"ScoreSchurSort needs score='precision' with correction='regression', got "
                f"{self.score!r}. Use correction='mean' with other scores."
            )
        gives = callable(self.score) or self.score == "denoising"
        if self.correction in CORRECTIONS[2:] and not gives:
            raise UnsupportedError(
                f"ScoreSchurSort needs a score that gives Jacobians with correction="
                f"{self.correction!r}, got {self.score!r}. Give denoising, or a function."
            )

    def _sort(
        self, x: Float[np.ndarray, "n d"], before: Bool[np.ndarray, "d d"] | None
    ) -> SchurOrder:
        n, d = x.shape
        options: dict[str, Any] = {"gamma": self.gamma, "before": before}
        if self.correction == "regression":
            if n <= d:
                raise RangeError(
                    f"ScoreSchurSort.fit needs more rows than columns, got {n} rows and {d} "
                    "columns. Use the score shrinkage or glasso with the correction mean."
                )
            return spline_sort(x, **options)
        if isinstance(self.score, str) and self.correction == "mean":
            return schur_sort(information(x, self.score), ridge=self.ridge, **options)
        if callable(self.score):
            values = np.asarray(self.score(x), np.float64)
        else:
            draw = torch.Generator().manual_seed(0)
            values = denoising_score(x, generator=draw).jacobians(x)
        if self.correction == "mean":
            if values.shape not in ((n, d), (d, d), (n, d, d)):
                raise ShapeError(
                    f"ScoreSchurSort needs scores {(n, d)}, a matrix {(d, d)} or Jacobians "
                    f"{(n, d, d)}, got {values.shape}."
                )
            matrix = values if values.shape == (d, d) else values.mean(0)
            if values.shape == (n, d):
                matrix = score_covariance(values)
            return schur_sort((matrix + matrix.T) / 2, ridge=self.ridge, **options)
        return sample_sort(values, WINSORISE if self.correction == "winsorised" else 0.0, before)

    def _edges(self, edges: Iterable[tuple[Any, Any]], what: str) -> Bool[np.ndarray, "d d"]:
        out = np.zeros((len(self.names_),) * 2, bool)
        for parent, child in edges:
            out[self._index(parent, what), self._index(child, what)] = True
        return out

    def _tiers(self) -> Bool[np.ndarray, "d d"]:
        out = np.zeros((len(self.names_),) * 2, bool)
        tiers = [[self._index(v, "tiers") for v in tier] for tier in self.tiers]
        for earlier, later in zip(tiers, tiers[1:], strict=False):
            out[np.ix_(earlier, later)] = True
        return out

    def _index(self, variable: Any, what: str) -> int:
        if variable in self.names_:
            return self.names_.index(variable)
        if isinstance(variable, int | np.integer) and 0 <= variable < len(self.names_):
            return int(variable)
        raise RangeError(
            f"ScoreSchurSort needs {what} of known columns, got {variable!r}. They are "
            f"{', '.join(self.names_[:8])}{' ...' if len(self.names_) > 8 else ''}."
        )


def sample_sort(
    jacobians: Float[np.ndarray, "n d d"],
    winsorise: float = 0.0,
    before: Bool[np.ndarray, "d d"] | None = None,
) -> SchurOrder:
    """Leaves first, by the mean diagonal, with the Schur complement taken in every row.

    (1)  H_n <- H_n - h_n h_n^T / mean(H_ll),  h_n the leaf's column in row n

    Without error of its own where each function is a sum over its parents; with interactions the
    noise of h is squared, against which the rows furthest out can be pulled in.

    Args:
        jacobians: ``-grad^2 log p`` at every row.
        winsorise: Share of the rows whose entries of h are pulled in to the nearest others.
        before: ``before[i, j]`` if i must come before j, with all that follows from it.

    Raises:
        RangeError: A diagonal entry is not positive.
    """
    n, d, _ = jacobians.shape
    h = jacobians.astype(np.float64)
    ahead = np.zeros((d, d), bool) if before is None else before
    left, waiting = np.ones(d, bool), ahead.sum(1)
    pivots, margins, back = np.empty(d), np.empty(d), []
    while left.any():
        value = np.where(left & (waiting == 0), np.einsum("nii->i", h) / n, np.inf)
        p = int(value.argmin())
        if not value[p] > 0 or not np.isfinite(value[p]):
            raise RangeError(
                f"sample_sort needs positive mean diagonals, got {value[p]:.3g} at variable {p}. "
                "Smooth the score, or use correction='mean'."
            )
        left[p] = False
        back.append(p)
        waiting = waiting - ahead[:, p]
        pivots[p] = value[p]
        others = np.einsum("nii->i", h)[left] / n
        margins[p] = others.min() / value[p] - 1 if len(others) else np.inf
        column = h[:, :, p].copy()
        if winsorise:
            low, high = np.quantile(column, [winsorise / 2, 1 - winsorise / 2], axis=0)
            column = np.clip(column, low, high)
        column[:, ~left] = 0
        h -= column[:, :, None] * column[:, None, :] / value[p]  # (1)
    order = np.array(back[::-1], np.int64)
    return SchurOrder(order, tuple((int(i),) for i in order), pivots, margins)
