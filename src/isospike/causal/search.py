"""Search of the order with the greatest penalised likelihood, whatever the scale of the noises.

Each variable is a sum of functions of its parents and of its own noise,

(1)  x_j = sum_p f_jp(x_p) + e_j,        L = -1/2 sum_j log Var(e_j) + sum_j J(e_j)

J is the negentropy of the standardised noise: 0 for Gaussian noise, and left out unless the noise
is known to be something else. Both terms ignore the units of the columns. L has a unique greatest
graph if the functions are curved or the noises are not Gaussian (Buhlmann et al. 2014; Shimizu et
al. 2006). For lines with Gaussian noise all graphs of one equivalence class tie, and
:mod:`isospike.causal.directions` says which arrows they share. With noises of one known variance
the first term becomes ``-1/2 sum_j Var(e_j) / variance``.

A variable's parents are chosen among those before it, each as a line or as a spline, by BIC. The
order is improved by moving one variable at a time to its best place (Andrews et al. 2023, BOSS),
from several starts and after shuffles of a few neighbours. The regressions only need the inner
products of the features; each is computed once for a set of possible parents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isospike.causal.splines import orthonormal
from isospike.kernels.growth import grow, negentropy, residual

_NOTABLE = 7.0  # squared partial correlation times rows that makes two variables neighbours
_WINDOW = 6  # neighbours in the order that are shuffled
_LEAST = 1e-9  # growth of the cost that counts
SHAPE_ROWS = 2000  # rows that the shape of a noise is taken from


class _Fit(NamedTuple):
    """A variable's regression: cost, parents, and number of features of each."""

    cost: float
    parents: Int[np.ndarray, "m"]
    widths: Int[np.ndarray, "m"]


class LikelihoodSearch:
    """Likelihoods of orders of one table.

    Attributes:
        shaped: Whether the negentropy of the noises counts.
    """

    def __init__(
        self,
        x: Float[np.ndarray, "n d"],
        count: int,
        *,
        shaped: bool = False,
        variance: float | None = None,
        before: Bool[np.ndarray, "d d"] | None = None,
        allowed: Bool[np.ndarray, "d d"] | None = None,
    ) -> None:
        """Compute the inner products of all features.

        Args:
            x: The rows.
            count: Number of spline features of a parent; 1 for linear models.
            shaped: Whether the negentropy of the noises counts.
            variance: The variance of every noise, where they share one.
            before: ``before[i, j]`` if i must come before j.
            allowed: ``allowed[i, j]`` if i may be a parent of j; all by default.
        """
        n, d = x.shape
        self.rows, self.variables, self.count = n, d, count
        self.shaped, self.before = shaped, before
        self.allowed = ~np.eye(d, dtype=bool) if allowed is None else allowed
        sd = x.std(0)
        self.scale = None if variance is None else sd**2 / variance
        self.basis = np.empty((d * count, n))
        for i in range(d):
            self.basis[i * count : (i + 1) * count] = orthonormal(x[:, i], count).T
        self.gram = self.basis @ self.basis.T
        self.penalty = np.log(n) / n
        self.room = n // 4
        # Starts are drawn in an order that depends on the data alone, not on that of the columns.
        self.canonical = np.argsort((np.abs(x - x.mean(0)) ** 3).mean(0) / sd**3, kind="stable")
        self._known: list[dict[int, _Fit]] = [{} for _ in range(d)]
        self._near = [0] * d  # possible parents, as bits
        inverse = np.linalg.inv(self.gram[::count, ::count] + 1e-9 * np.eye(d))
        size = inverse.diagonal()
        near = inverse**2 / np.outer(size, size) * n > _NOTABLE
        for j in range(d):
            near[self._grow(j, np.delete(np.arange(d), j))[0], j] = True
        for i, j in np.argwhere((near | near.T) & self.allowed).tolist():
            self._near[j] |= 1 << i

    def search(
        self, order: Sequence[int] | None = None, starts: int = 2, hops: int = 12
    ) -> list[int]:
        """The best order found.

        Args:
            order: An order to start from, beside the random ones.
            starts: Random orders to start from.
            hops: Shuffles of a few neighbours in the best order.

        Returns:
            The variables, causes first.
        """
        draw, d = np.random.default_rng(0), self.variables
        firsts = [] if order is None else [[int(v) for v in order]]
        firsts += [self._valid(self.canonical[draw.permutation(d)].tolist()) for _ in range(starts)]
        best, *others = (self.climb(first) for first in firsts)
        for other in others:
            best = other if self.cost(other) < self.cost(best) - _LEAST else best
        width = min(_WINDOW, d)
        for _ in range(hops):
            at = int(draw.integers(0, d - width + 1))
            new = best[:]
            new[at : at + width] = [best[at + k] for k in draw.permutation(width)]
            new = self.climb(self._valid(new))
            if self.cost(new) < self.cost(best) - _LEAST:
                best = new
        return best

    def climb(self, order: list[int]) -> list[int]:
        """Move variables, one at a time, while an order gets better."""
        self._complete(order)
        while True:
            order = self._sweeps(order)
            if not self._complete(order):
                return order

    def cost(self, order: Sequence[int]) -> float:
        """``-2 L / rows`` of an order, with the penalty of its features."""
        before, total = 0, 0.0
        for j in order:
            total += self._best(j, before)[0]
            before |= 1 << j
        return total

    def widths(self, order: Sequence[int]) -> Int[np.ndarray, "d d"]:
        """Number of features of each parent ``[parent, child]``: 0, 1 for a line, or more."""
        before, out = 0, np.zeros((self.variables, self.variables), np.int64)
        for j in order:
            _, parents, width = self._best(j, before)
            out[parents, j] = width
            before |= 1 << j
        return out

    def is_curved(self, order: Sequence[int]) -> bool:
        """Whether some parent along an order is better as a spline than as a line."""
        return bool((self.widths(order) > 1).any())

    def residuals(self, order: Sequence[int]) -> Float[np.ndarray, "n d"]:
        """Noise of every variable along an order; the variables have norm 1."""
        before, out = 0, np.empty((self.rows, self.variables))
        for j in order:
            fit = self._best(j, before)
            out[:, j] = self._rest(j, fit.parents.tolist(), fit.widths.tolist(), self.rows)
            before |= 1 << j
        return out

    def reversal_cost(self, parent: int, child: int, others: Sequence[int]) -> float:
        """Twice the loss of log likelihood if an edge is reversed.

        Args:
            parent: The end that the edge leaves.
            child: The other end.
            others: The other parents of either end, which both regressions get.

        Returns:
            The loss; about 0 for lines with Gaussian noise, whatever the data.
        """

        def cost(j: int, parents: list[int]) -> float:
            rest = self._rest(j, parents, [self.count] * len(parents), self.rows)
            spread = rest @ rest
            log = np.log(max(spread, 1e-12)) if self.scale is None else self.scale[j] * spread
            shape = negentropy(rest[:SHAPE_ROWS]) if self.shaped else 0.0
            return float(log - 2 * shape)

        given = list(others)
        with_edge = cost(parent, given) + cost(child, [*given, parent])
        reversed_edge = cost(child, given) + cost(parent, [*given, child])
        return float(self.rows * (reversed_edge - with_edge))

    def count_shape(self) -> None:
        """Count the negentropy of the noises from now on."""
        self.shaped = True
        self._known = [{} for _ in range(self.variables)]

    def _best(self, child: int, before: int) -> _Fit:
        """The regression of a variable on those before it; computed once."""
        key = before & self._near[child]
        fit = self._known[child].get(key)
        if fit is None:
            candidates = np.array([i for i in range(self.variables) if key >> i & 1], np.int64)
            parents, widths, log = self._grow(child, candidates)
            cost = log if self.scale is None else self.scale[child] * np.exp(log)
            cost += self.penalty * widths.sum()
            if self.shaped:
                cost -= 2 * negentropy(
                    self._rest(child, parents.tolist(), widths.tolist(), SHAPE_ROWS)
                )
            fit = self._known[child][key] = _Fit(float(cost), parents, widths)
        return fit

    def _grow(
        self, child: int, candidates: Int[np.ndarray, "m"]
    ) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], float]:
        """The chosen parents, their numbers of features, and the log of the residual variance."""
        width, log, _ = grow(self.gram, self.count, child, candidates, self.penalty, self.room)
        return candidates[width > 0], width[width > 0], log

    def _rest(
        self, child: int, parents: Sequence[int], widths: Sequence[int], rows: int
    ) -> Float[np.ndarray, "rows"]:
        """What a regression leaves of a variable whose norm is 1."""
        c = self.count
        at = [p * c + f for p, w in zip(parents, widths, strict=True) for f in range(w)]
        features = self.basis[:, :rows]
        return residual(self.gram, features, np.array(at, np.int64), child * c)  # type: ignore[no-any-return]

    def _sweeps(self, order: list[int]) -> list[int]:
        """Move every variable to its best place until none moves."""
        moved = True
        while moved:
            moved = False
            for v in order[:]:
                at = order.index(v)
                rest = order[:at] + order[at + 1 :]
                value = self._places(v, rest)
                best = int(np.argmax(value <= value.min() + _LEAST))  # ties not by rounding
                if value[best] < value[at] - _LEAST:
                    order, moved = [*rest[:best], v, *rest[best:]], True
        return order

    def _places(self, v: int, rest: list[int]) -> Float[np.ndarray, "d"]:
        """Cost of the order with v at each place among the others."""
        less, more, before, bit = [0.0], [], 0, 1 << v
        own = [self._best(v, before).cost]
        for u in rest:  # only what may be a parent changes a regression
            cost = self._best(u, before).cost
            less.append(cost)
            more.append(self._best(u, before | bit).cost if self._near[u] & bit else cost)
            before |= 1 << u
            own.append(self._best(v, before).cost if self._near[v] >> u & 1 else own[-1])
        value = np.cumsum(less) + own
        value[:-1] += np.cumsum(more[::-1])[::-1]
        if self.before is not None:
            earlier, later = self.before[rest, v], self.before[v, rest]
            low = int(np.flatnonzero(earlier)[-1]) + 1 if earlier.any() else 0
            high = int(np.flatnonzero(later)[0]) if later.any() else len(rest)
            value[:low] = value[high + 1 :] = np.inf
        return value

    def _complete(self, order: list[int]) -> bool:
        """Find parents along the order that are not neighbours yet; whether there are any.

        Effects on two ways may cancel given all other variables, but not along the order.
        """
        found = False
        for k, j in enumerate(order):
            candidates = np.array([i for i in sorted(order[:k]) if self.allowed[i, j]], np.int64)
            for i in self._grow(j, candidates)[0].tolist():
                if not self._near[j] >> i & 1:
                    found = True
                    for a, b in ((i, j), (j, i)):
                        if self.allowed[a, b]:
                            self._near[b] |= 1 << a
                            self._known[b].clear()
        return found

    def _valid(self, order: list[int]) -> list[int]:
        """The order with each variable after those that must come before it."""
        if self.before is None:
            return order
        out: list[int] = []
        while order:
            free = next(v for v in order if not self.before[order, v].any())
            out.append(free)
            order = [v for v in order if v != free]
        return out
