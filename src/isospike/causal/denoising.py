"""A score learnt by denoising: a network that starts as the score of a Gaussian.

(1)  s(x) = -A x + W3 silu(W2 silu(W1 x + b1) + b2)
(2)  minimise E |s(x + u e) + e / u|^2 + l sum over j of |W1's column j|,  e ~ N(0, 1)

The minimiser of the first part is the score of the rows with noise of size u added. A starts as the
inverse of their covariance and W3 as 0, so that what is learnt is what the Gaussian lacks. The
second part, a group lasso, takes variables out of the network one at a time.

Reference: Vincent (2011), A connection between score matching and denoising autoencoders; Yuan, Lin
(2006), Model selection and estimation in regression with grouped variables.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from isospike.errors import RangeError

_ROWS = 256  # of a step
_LOOK = 25  # steps between two looks at the rows held out
_PATIENCE = 10  # looks without an improvement


@dataclass(frozen=True)
class ScoreNetwork:
    """The network of (1), for rows less ``centre``.

    Attributes:
        centre: The columns' means.
        weights: A, W1, b1, W2, b2, W3.
        losses: ``(steps, loss of the rows held out)``; the first is the Gaussian's.
        best: Steps after which the weights were kept.
    """

    centre: Tensor
    weights: tuple[Tensor, ...]
    losses: tuple[tuple[int, float], ...]
    best: int

    def scores(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """``grad log p`` at the rows."""
        return np.asarray(_score(self._in(x), self.weights).double().cpu().numpy())

    def jacobians(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d d"]:
        """``-grad s`` at the rows, symmetric: n d^2 numbers."""
        a, w1, _, w2, _, w3 = self.weights
        d1, d2 = self._slopes(x)
        inner = torch.einsum("ij,nj,jk->nik", w2, d1, w1)
        out = a - torch.einsum("di,ni,nik->ndk", w3, d2, inner)
        return np.asarray(((out + out.mT) / 2).double().cpu().numpy())

    def information(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
        """Mean of the Jacobians, without making them: W2 times the mean product of the slopes."""
        a, w1, _, w2, _, w3 = self.weights
        d1, d2 = self._slopes(x)
        out = a - w3 @ (w2 * (d2.T @ d1 / len(x))) @ w1
        return np.asarray(((out + out.T) / 2).double().cpu().numpy())

    def _in(self, x: Float[np.ndarray, "n d"]) -> Tensor:
        return torch.from_numpy(x).to(self.centre) - self.centre

    def _slopes(self, x: Float[np.ndarray, "n d"]) -> tuple[Tensor, Tensor]:
        _, w1, b1, w2, b2, _ = self.weights
        h1 = self._in(x) @ w1.T + b1
        h2 = silu(h1) @ w2.T + b2
        return _slope(h1), _slope(h2)


def denoising_score(
    x: Float[np.ndarray, "n d"],
    *,
    noise: float = 0.3,
    lasso: float = 0.01,
    width: int = 128,
    steps: int = 1000,
    rate: float = 1e-3,
    held_out: float = 0.2,
    device: str = "cpu",
    generator: torch.Generator | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ScoreNetwork:
    """Train the network of (1) by (2), in float32, and keep the weights that were best on the rows
    held out.

    Args:
        x: The rows.
        noise: u, in units of the median column's standard deviation given all others.
        lasso: l, where columns are in the same units.
        width: Units of each hidden layer.
        steps: At most; it stops after 250 without an improvement.
        rate: Of Adam.
        held_out: Share of the rows, in (0, 1).
        device: As torch names it.
        generator: On the CPU; draws the split, the weights and the noise.
        progress: Called with ``score``, steps done and ``steps``.

    Raises:
        RangeError: An option out of range, or the loss is not a number.
    """
    n, d = x.shape
    positive = noise > 0 and rate > 0 and lasso >= 0 and width >= 1 and steps >= 1
    if not (positive and 1 <= round(held_out * n) < n):
        raise RangeError(
            "denoising_score needs noise, rate, width and steps above 0, lasso >= 0 and held_out "
            f"in (0, 1), got {noise}, {rate}, {width}, {steps}, {lasso} and {held_out}."
        )
    shuffled = torch.randperm(n, generator=generator)
    rows = torch.from_numpy(x)[shuffled]
    cut = n - round(held_out * n)
    centre = rows[:cut].mean(0)
    covariance = torch.cov((rows[:cut] - centre).T).reshape(d, d)
    unit = float(_own(covariance))
    rows = ((rows - centre) / unit).float().to(device)
    start = torch.linalg.inv(covariance / unit**2 + noise**2 * torch.eye(d)).float()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    weights: tuple[Tensor, ...] = (
        start.to(device),
        normal(width, d) / d**0.5,
        torch.zeros(width, device=device),
        normal(width, width) / width**0.5,
        torch.zeros(width, device=device),
        torch.zeros(d, width, device=device),
    )
    for w in weights:
        w.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=rate)
    train, test = rows[:cut], rows[cut:]
    test_noise = normal(*test.shape)
    losses: list[tuple[int, float]] = []
    kept, best = weights, 0
    for step in range(steps + 1):
        if step % _LOOK == 0 or step == steps:
            with torch.no_grad():
                losses.append((step, float(_loss(test, test_noise, noise, weights))))
            if not np.isfinite(losses[-1][1]):
                raise RangeError(
                    f"denoising_score needs a loss that is a number, got {losses[-1][1]} after "
                    f"{step} steps. Lower the rate, or raise the noise."
                )
            if losses[-1][1] <= min(loss for _, loss in losses):
                kept, best = tuple(w.detach().clone() for w in weights), step
            if progress is not None:
                progress("score", step, steps)
            if step - best >= _PATIENCE * _LOOK:
                break
        picked = torch.randint(cut, (min(_ROWS, cut),), generator=generator)
        batch = train[picked.to(device)]
        loss = _loss(batch, normal(*batch.shape), noise, weights)
        loss = loss + lasso * weights[1].norm(dim=0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if progress is not None:
        progress("score", steps, steps)
    a, w1, b1, w2, b2, w3 = (w.detach() for w in kept)
    # s(x) = s_unit(x / unit) / unit
    whole = (a / unit**2, w1 / unit, b1, w2, b2, w3 / unit)
    return ScoreNetwork(centre.float().to(device), whole, tuple(losses), best)


def _slope(h: Tensor) -> Tensor:
    """Of silu."""
    return h.sigmoid() * (1 + h * (1 - h.sigmoid()))


def _score(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    a, w1, b1, w2, b2, w3 = weights
    return silu(silu(x @ w1.T + b1) @ w2.T + b2) @ w3.T - x @ a.T


def _loss(x: Tensor, e: Tensor, noise: float, weights: tuple[Tensor, ...]) -> Tensor:
    """The first part of (2), times ``noise^2 / d``: 1 for a score of 0."""
    return ((noise * _score(x + noise * e, weights) + e) ** 2).mean()


def _own(covariance: Tensor) -> Any:
    """Median standard deviation of a column given all others, or alone where rows are too few."""
    scale = covariance.diagonal().sqrt()
    inverse, failed = torch.linalg.inv_ex(covariance / torch.outer(scale, scale))
    own = scale / inverse.diagonal().clamp(min=1).sqrt()
    return (scale if failed or not own.isfinite().all() else own).median()
