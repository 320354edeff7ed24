"""Data with a known graph: additive noise models of many mechanisms, and their exact scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isospike.errors import InputError, RangeError, UnsupportedError

MECHANISMS = ("linear", "sin", "quadratic", "gp", "additive-gp", "mlp", "post-nonlinear")
_BLOCK = 512  # rows of which a process is computed at once
_FEATURES = 200  # random Fourier features of a Gaussian process

Function = Callable[[Tensor], Tensor]  # [..., parents] -> [...]


@dataclass(frozen=True)
class Simulation:
    """A data set and the model that generated it.

    Attributes:
        data: The rows.
        truth: The graph, ``[parent, child]``.
        noise: Standard deviation of each variable's noise.
        functions: Each variable's mechanism, a function of its parents in order of their indices.
        mechanism: Name of the mechanism.

    >>> simulation = simulate(np.eye(3, k=1, dtype=bool), 100)
    >>> simulation.mechanism, simulation.noise.tolist()
    ('linear', [1.0, 1.0, 1.0])
    """

    data: Float[np.ndarray, "n d"]
    truth: Bool[np.ndarray, "d d"]
    noise: Float[np.ndarray, "d"]
    functions: tuple[Function, ...]
    mechanism: str

    def hessians(self, rows: int | None = None) -> Float[np.ndarray, "rows d d"]:
        """Exact ``-grad^2 log p(x)`` at the first rows; no estimator can do better.

        Args:
            rows: Number of rows; all of them by default.

        Returns:
            A symmetric matrix for each row.

        Raises:
            UnsupportedError: The model is post-nonlinear.
        """
        self._check_additive("hessians")
        x = torch.from_numpy(self.data[:rows]).requires_grad_()
        total = torch.zeros((), dtype=x.dtype)  # -log p, up to a constant
        for i, f in enumerate(self.functions):
            e = x[:, i] - f(x[:, self.truth[:, i]])
            total = total + (e**2).sum() / (2 * self.noise[i] ** 2)
        (slope,) = torch.autograd.grad(total, x, create_graph=True)
        rows_of = [torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for s in slope.unbind(1)]
        return torch.stack(rows_of, 1).numpy()

    def gradients(self, child: int) -> Float[np.ndarray, "n d"]:
        """Gradient of one variable's mechanism at every row; zero except for its parents.

        Args:
            child: Index of the variable.

        Returns:
            The gradients, a row for each row of the data.
        """
        x = torch.from_numpy(self.data).requires_grad_()
        value = self.functions[child](x[:, self.truth[:, child]])
        return torch.autograd.grad(value.sum(), x)[0].numpy()

    def scores(self) -> Float[np.ndarray, "n d"]:
        """Exact ``grad log p`` at every row.

        Returns:
            The scores, a row for each row of the data.

        Raises:
            UnsupportedError: The model is post-nonlinear.
        """
        self._check_additive("scores")
        e = np.empty_like(self.data)
        for i, f in enumerate(self.functions):
            e[:, i] = self.data[:, i] - f(torch.from_numpy(self.data[:, self.truth[:, i]])).numpy()
        e /= self.noise**2
        return sum((e[:, i, None] * self.gradients(i) for i in range(e.shape[1])), -e)

    def _check_additive(self, who: str) -> None:
        if self.mechanism == "post-nonlinear":
            raise UnsupportedError(
                f"Simulation.{who} needs an additive noise model, got a post-nonlinear one. "
                "Simulate with another mechanism."
            )


def random_dag(
    variables: int,
    edges_per_variable: float = 1.0,
    kind: str = "er",
    generator: torch.Generator | None = None,
) -> Bool[np.ndarray, "d d"]:
    """A random acyclic graph whose variables are in random order.

    >>> int(random_dag(5, 2.0).sum())  # all ten pairs
    10

    Args:
        variables: Number of variables, at least 2.
        edges_per_variable: Expected number of edges divided by the number of variables: 1 for ER1,
            2 for ER2.
        kind: ``er`` (Erdos-Renyi): every pair has the same probability. ``sf`` (scale-free): each
            new variable draws its parents in proportion to their number of edges.
        generator: Source of randomness.

    Returns:
        The graph, ``[parent, child]``.

    Raises:
        RangeError: The size or the density is out of range.
        InputError: The kind is unknown.
    """
    if variables < 2 or not 0 < edges_per_variable <= (variables - 1) / 2:
        raise RangeError(
            "random_dag needs variables >= 2 and edges_per_variable in (0, (variables - 1) / 2], "
            f"got {variables} and {edges_per_variable}. Use more variables or fewer edges."
        )
    if kind not in ("er", "sf"):
        raise InputError(f"random_dag needs a known kind, got {kind!r}. Choose er or sf.")
    upper = torch.zeros(variables, variables, dtype=torch.bool)
    if kind == "er":
        draws = torch.rand(variables, variables, generator=generator, dtype=torch.float64)
        upper = (draws < 2 * edges_per_variable / (variables - 1)).triu(1)
    else:
        each = max(1, round(edges_per_variable))
        for i in range(1, variables):
            weight = (upper.sum(0) + upper.sum(1) + 1)[:i].double()
            picked = weight.multinomial(min(each, i), generator=generator)
            upper[picked, i] = True
    shuffle = torch.randperm(variables, generator=generator)
    return upper[shuffle][:, shuffle].numpy()


def simulate(
    truth: Bool[np.ndarray, "d d"],
    rows: int,
    mechanism: str = "linear",
    noise: float = 1.0,
    unequal: float = 1.0,
    generator: torch.Generator | None = None,
) -> Simulation:
    """Draw rows of an additive noise model with Gaussian noise on a given graph.

    ==============  ========================================================================
    linear          w . z, weights +-U[.5, 2]
    sin             sum of w_j sin(z_j), weights +-U[1, 2]
    quadratic       sum of w_j z_j^2, scaled to a standard deviation of 1.5
    gp              one draw of a Gaussian process of all parents, length scale 1, amplitude 1.5
    additive-gp     a sum of such draws, one for each parent
    mlp             100 sigmoid units, weights +-U[.5, 2]
    post-nonlinear  2 tanh(gp + e): not an additive noise model; such methods should fail on it
    ==============  ========================================================================

    >>> chain = np.eye(3, k=1, dtype=bool)
    >>> simulate(chain, 100, "sin").data.shape
    (100, 3)

    Args:
        truth: The graph, acyclic.
        rows: Number of rows.
        mechanism: A name from the table.
        noise: Standard deviation of the noise.
        unequal: Largest factor by which a variable's noise may differ either way, log-uniform; 1
            for equal noise.
        generator: Source of randomness.

    Returns:
        The data with the model that generated it.

    Raises:
        InputError: The mechanism is unknown, or the graph has a cycle.
        RangeError: A number is out of range.
    """
    _check_options(rows, mechanism, noise, unequal)
    d = len(truth)
    draw = torch.rand(d, generator=generator, dtype=torch.float64)
    scale = noise * unequal ** (2 * draw - 1)
    e = torch.randn(rows, d, generator=generator, dtype=torch.float64) * scale
    x = torch.zeros_like(e)
    functions: list[Function] = [_nothing] * d
    for i in topological_order(truth, "simulate"):
        z = x[:, truth[:, i]]
        if z.shape[1]:
            functions[i] = _draw_function(mechanism, z, generator)
        x[:, i] = functions[i](z) + e[:, i]
        if mechanism == "post-nonlinear":
            x[:, i] = 2 * torch.tanh(x[:, i])
    return Simulation(x.numpy(), truth, scale.numpy(), tuple(functions), mechanism)


def topological_order(graph: Bool[np.ndarray, "d d"], who: str = "topological_order") -> list[int]:
    """The variables of a graph, parents first; variables without an order between them by index.

    Args:
        graph: An acyclic graph, ``[parent, child]``.
        who: Name of the public function, for the error message.

    Returns:
        The indices of the variables.

    Raises:
        InputError: The graph has a cycle.
    """
    waiting, order = graph.sum(0), []
    ready = np.flatnonzero(waiting == 0).tolist()
    while ready:
        node = ready.pop(0)
        order.append(node)
        for child in np.flatnonzero(graph[node]).tolist():
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    if len(order) < len(graph):
        stuck = int(np.flatnonzero(waiting > 0)[0])
        raise InputError(
            f"{who} needs a graph without cycles, got one at variable {stuck}. Remove an edge of "
            "the cycle."
        )
    return order


def _check_options(rows: int, mechanism: str, noise: float, unequal: float) -> None:
    if mechanism not in MECHANISMS:
        raise InputError(
            f"simulate needs a known mechanism, got {mechanism!r}. Choose one of "
            f"{', '.join(MECHANISMS)}."
        )
    if not (rows >= 1 and noise > 0 and unequal >= 1):
        raise RangeError(
            f"simulate needs rows >= 1, noise > 0 and unequal >= 1, got {rows}, {noise} and "
            f"{unequal}. Choose numbers in these ranges."
        )


def _nothing(z: Tensor) -> Tensor:
    return z.sum(-1)  # 0, since there are no parents


def _draw_function(mechanism: str, z: Tensor, generator: torch.Generator | None) -> Function:
    parents = z.shape[1]
    kwargs: dict[str, Any] = {"generator": generator, "dtype": torch.float64}

    def signed(low: float, high: float, *shape: int) -> Tensor:
        size = low + (high - low) * torch.rand(*shape, **kwargs)
        return size * (1 - 2 * (torch.rand(*shape, **kwargs) < 0.5).double())

    if mechanism == "linear":
        w = signed(0.5, 2.0, parents)
        return lambda v: v @ w
    if mechanism == "sin":
        w = signed(1.0, 2.0, parents)
        return lambda v: torch.sin(v) @ w
    if mechanism == "quadratic":
        w = signed(0.5, 2.0, parents)
        w = w * 1.5 / ((z**2) @ w).std()
        return lambda v: (v**2) @ w
    if mechanism == "mlp":
        inner, outer = signed(0.5, 2.0, parents, 100), signed(0.5, 2.0, 100)
        return lambda v: torch.sigmoid(v @ inner) @ outer
    frequency = torch.randn(parents, _FEATURES, **kwargs)
    phase = 2 * torch.pi * torch.rand(_FEATURES, **kwargs)
    weight = 1.5 * (2 / _FEATURES) ** 0.5 * torch.randn(_FEATURES, **kwargs)
    if mechanism == "additive-gp":
        parts = weight[:, None] * torch.randn(_FEATURES, parents, **kwargs).sign()
        return lambda v: torch.stack(
            [
                torch.cos(v[..., j, None] * frequency[j] + phase) @ parts[:, j]
                for j in range(parents)
            ]
        ).sum(0)

    def gaussian(v: Tensor) -> Tensor:
        # By blocks: large arrays between the small ones that stay would leave holes in memory.
        blocks = torch.split(v.reshape(-1, parents), _BLOCK)
        sums = [torch.cos(block @ frequency + phase) @ weight for block in blocks]
        return torch.cat(sums).reshape(v.shape[:-1])

    return gaussian
