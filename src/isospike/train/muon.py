"""An optimiser for convolutions before a normalisation: steps as large in every direction.

With gradient g of a weight w, seen as a matrix of outputs by inputs,

(1)  m <- mu m + g,  u = g + mu m
(2)  w <- |w_0| w / |w| - rate O(u)

where O(u) is u with its singular values from a tenth of |u| on brought near 1 (.6 to 1.3), found by
three steps of

(3)  x <- (a + (b + c x x^T) x x^T) x,  x = u / |u|

A normalisation behind the convolution makes the size of w of no account, so that (2) keeps it. All
other weights take steps of stochastic gradient descent with Nesterov's momentum.

torch.optim.Muon takes matrices alone, and no others.

Reference: Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein (2024), Muon: an optimizer for
hidden layers in neural networks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

A, B, C = 3.4445, -4.775, 2.0315  # of (3), by the reference: small singular values grow the fastest
STEPS = 3


def even_out(matrix: Tensor) -> Tensor:
    """O(u): a matrix with the same singular vectors, whose larger singular values are near 1.

    Args:
        matrix: ``[outputs, inputs]``.

    Returns:
        Another of its shape.

    >>> even_out(torch.tensor([[6.0, 0.0], [0.0, 2.0]])).diagonal() > 0.6
    tensor([True, True])
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    even: Tensor = x if wide else x.T
    return even


class Muon(torch.optim.Optimizer):
    """Steps (2) for convolutions of several channels, of SGD for the rest.

    Args:
        groups: Of parameters. Where ``even`` is true they take steps (2), others those of SGD with
            ``weight_decay``.
        lr: Rate of the groups that have none.
        momentum: mu.

    >>> conv = torch.nn.Conv2d(2, 3, 1, bias=False)
    >>> size = conv.weight.norm()
    >>> optimiser = Muon([{"params": [conv.weight], "even": True}], lr=1e-3)
    >>> conv(torch.ones(1, 2, 1, 1)).sum().backward()
    >>> optimiser.step()
    >>> bool((conv.weight.norm() - size).abs() < 0.01)
    True
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float = 0.1, momentum: float = 0.8
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "even": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move all parameters that have a gradient.

        Args:
            closure: Computes the gradients anew and gives the loss; None if they are there.

        Returns:
            The closure's loss; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, mu = group["lr"], group["momentum"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state["momentum"], state["size"] = torch.zeros_like(w), w.norm()
                g = w.grad if group["even"] else w.grad.add(w, alpha=group["weight_decay"])
                u = g.add(state["momentum"].mul_(mu).add_(g), alpha=mu)
                if group["even"]:
                    w.mul_(state["size"] / w.norm().clamp(min=1e-30))
                    u = even_out(u.flatten(1)).view(w.shape)
                w.add_(u, alpha=-rate)
        return loss


def can_even(weight: Tensor) -> bool:
    """Whether a parameter is the weight of a convolution that mixes channels, and is trained.

    Args:
        weight: Any parameter.

    Returns:
        True for steps (2).
    """
    return weight.requires_grad and weight.dim() > 2 and weight.shape[1] > 1
