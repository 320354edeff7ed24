"""A score learnt by denoising: a network that starts as the score of a Gaussian.

(1)  s(x) = -A x + W3 silu(W2 silu(W1 x + b1) + b2)
(2)  minimise E |s(x + u e) + e / u|^2 + l sum over j of |W1's column j|,  e ~ N(0, 1)

The minimiser of the first term is the score of the rows after adding noise of size u. A starts as
the inverse of their covariance and W3 as 0, so that the network learns only the difference from the
Gaussian. The second term, a group lasso, removes variables from the network one at a time.

Reference: Vincent (2011), A connection between score matching and denoising autoencoders; Yuan, Lin
(2006), Model selection and estimation in regression with grouped variables.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from isospike.errors import RangeError
from isospike.progress import update

_BATCH_ROWS = 256
_EVALUATE_EVERY = 25  # training steps between two evaluations on the held-out rows
_PATIENCE = 10  # evaluations without an improvement


@dataclass(frozen=True)
class DenoisingSettings:
    """Settings of :func:`denoising_score`.

    >>> DenoisingSettings(steps=200).width
    128

    Attributes:
        noise: Size u of the noise, in units of the median column's standard deviation given all
            other columns.
        lasso: Weight l of the group lasso, with the columns in the same units.
        width: Number of units in each hidden layer.
        steps: Largest number of training steps; training stops after 250 without an improvement.
        learning_rate: Learning rate of Adam.
        held_out: Share of the rows held out for early stopping, in (0, 1).
    """

    noise: float = 0.3
    lasso: float = 0.01
    width: int = 128
    steps: int = 1000
    learning_rate: float = 1e-3
    held_out: float = 0.2


@dataclass(frozen=True)
class ScoreNetwork:
    """The network of (1), which reads rows minus ``centre``.

    Attributes:
        centre: Means of the columns.
        weights: A, W1, b1, W2, b2, W3.
        losses: Pairs of training steps and loss on the held-out rows; the first is the Gaussian's.
        best: Number of training steps after which the weights were kept.
    """

    centre: Tensor
    weights: tuple[Tensor, ...]
    losses: tuple[tuple[int, float], ...]
    best: int

    def scores(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """``grad log p`` at the rows.

        Args:
            x: The rows.

        Returns:
            The scores.
        """
        return np.asarray(_score(self._centred(x), self.weights).double().cpu().numpy())

    def jacobians(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d d"]:
        """``-grad s`` at the rows, symmetric.

        Args:
            x: The rows.

        Returns:
            A matrix for each row: n d^2 numbers.
        """
        a, w1, _, w2, _, w3 = self.weights
        d1, d2 = self._slopes(x)
        inner = torch.einsum("ij,nj,jk->nik", w2, d1, w1)
        out = a - torch.einsum("di,ni,nik->ndk", w3, d2, inner)
        return np.asarray(((out + out.mT) / 2).double().cpu().numpy())

    def information(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
        """Mean of the Jacobians, computed without them: W2 times the mean product of the slopes.

        Args:
            x: The rows.

        Returns:
            The information matrix.
        """
        a, w1, _, w2, _, w3 = self.weights
        d1, d2 = self._slopes(x)
        out = a - w3 @ (w2 * (d2.T @ d1 / len(x))) @ w1
        return np.asarray(((out + out.T) / 2).double().cpu().numpy())

    def _centred(self, x: Float[np.ndarray, "n d"]) -> Tensor:
        return torch.from_numpy(x).to(self.centre) - self.centre

    def _slopes(self, x: Float[np.ndarray, "n d"]) -> tuple[Tensor, Tensor]:
        _, w1, b1, w2, b2, _ = self.weights
        h1 = self._centred(x) @ w1.T + b1
        h2 = silu(h1) @ w2.T + b2
        return _silu_slope(h1), _silu_slope(h2)


def denoising_score(
    x: Float[np.ndarray, "n d"],
    settings: DenoisingSettings = DenoisingSettings(),  # noqa: B008 - frozen
    *,
    device: str = "cpu",
    generator: torch.Generator | None = None,
) -> ScoreNetwork:
    """Train the network of (1) by (2), in float32; keep the weights with the best held-out loss.

    Args:
        x: The rows.
        settings: Size of the network and of its training.
        device: Name of a torch device.
        generator: Source of randomness for the split, the weights and the noise; on the CPU.

    Returns:
        The trained network.

    Raises:
        RangeError: A setting is out of range, or the loss is not a number.
    """
    n, d = x.shape
    _check_settings(settings, n)
    shuffled = torch.randperm(n, generator=generator)
    rows = torch.from_numpy(x)[shuffled]
    cut = n - round(settings.held_out * n)
    centre = rows[:cut].mean(0)
    covariance = torch.cov((rows[:cut] - centre).T).reshape(d, d)
    unit = float(_conditional_deviation(covariance))
    rows = ((rows - centre) / unit).float().to(device)
    start = torch.linalg.inv(covariance / unit**2 + settings.noise**2 * torch.eye(d)).float()
    training = _Training(settings, start.to(device), generator)
    a, w1, b1, w2, b2, w3 = training.run(rows[:cut], rows[cut:])
    # s(x) = s_unit(x / unit) / unit
    rescaled = (a / unit**2, w1 / unit, b1, w2, b2, w3 / unit)
    losses = tuple(training.losses)
    return ScoreNetwork(centre.float().to(device), rescaled, losses, training.best)


class _Training:
    """One training of the network on rows in units of the noise."""

    def __init__(
        self, settings: DenoisingSettings, start: Tensor, generator: torch.Generator | None
    ) -> None:
        self.settings, self.device, self.generator = settings, start.device, generator
        self.losses: list[tuple[int, float]] = []
        self.best = 0
        width, d = settings.width, len(start)
        self.weights: tuple[Tensor, ...] = (
            start,
            self._normal(width, d) / d**0.5,
            torch.zeros(width, device=self.device),
            self._normal(width, width) / width**0.5,
            torch.zeros(width, device=self.device),
            torch.zeros(d, width, device=self.device),
        )
        for w in self.weights:
            w.requires_grad_()

    def run(self, train: Tensor, test: Tensor) -> tuple[Tensor, ...]:
        """The weights with the smallest loss on ``test``."""
        settings, kept = self.settings, self.weights
        optimizer = torch.optim.Adam(self.weights, lr=settings.learning_rate)
        test_noise = self._normal(*test.shape)
        for step in range(settings.steps + 1):
            if step % _EVALUATE_EVERY == 0 or step == settings.steps:
                if self._evaluate(test, test_noise, step):
                    kept, self.best = tuple(w.detach().clone() for w in self.weights), step
                update("score", step, settings.steps)
                if step - self.best >= _PATIENCE * _EVALUATE_EVERY:
                    break
            picked = torch.randint(
                len(train), (min(_BATCH_ROWS, len(train)),), generator=self.generator
            )
            batch = train[picked.to(self.device)]
            loss = _loss(batch, self._normal(*batch.shape), settings.noise, self.weights)
            loss = loss + settings.lasso * self.weights[1].norm(dim=0).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        update("score", settings.steps, settings.steps)
        return tuple(w.detach() for w in kept)

    def _evaluate(self, test: Tensor, test_noise: Tensor, step: int) -> bool:
        """Whether the loss on ``test`` is the smallest so far."""
        with torch.no_grad():
            loss = float(_loss(test, test_noise, self.settings.noise, self.weights))
        if not np.isfinite(loss):
            raise RangeError(
                f"denoising_score needs a loss that is a number, got {loss} after {step} steps of "
                "training. Lower the learning rate, or raise the noise."
            )
        self.losses.append((step, loss))
        return loss <= min(earlier for _, earlier in self.losses)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)


def _check_settings(settings: DenoisingSettings, rows: int) -> None:
    s = settings
    positive = s.noise > 0 and s.learning_rate > 0 and s.lasso >= 0
    positive = positive and s.width >= 1 and s.steps >= 1
    if not (positive and 1 <= round(s.held_out * rows) < rows):
        raise RangeError(
            "denoising_score needs noise, learning_rate, width and steps above 0, lasso >= 0 and "
            f"held_out in (0, 1), got {s}. Change the setting that is outside."
        )


def _silu_slope(h: Tensor) -> Tensor:
    return h.sigmoid() * (1 + h * (1 - h.sigmoid()))


def _score(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    a, w1, b1, w2, b2, w3 = weights
    return silu(silu(x @ w1.T + b1) @ w2.T + b2) @ w3.T - x @ a.T


def _loss(x: Tensor, e: Tensor, noise: float, weights: tuple[Tensor, ...]) -> Tensor:
    """The first term of (2), times ``noise^2 / d``: 1 for a score of 0."""
    return ((noise * _score(x + noise * e, weights) + e) ** 2).mean()


def _conditional_deviation(covariance: Tensor) -> Any:
    """Median standard deviation of a column given all others, or alone where rows are too few."""
    scale = covariance.diagonal().sqrt()
    inverse, failed = torch.linalg.inv_ex(covariance / torch.outer(scale, scale))
    own = scale / inverse.diagonal().clamp(min=1).sqrt()
    return (scale if failed or not own.isfinite().all() else own).median()
