"""Spikes that can be trained: a step forward, the derivative of a smooth primitive backward.

Each surrogate names its primitive g and its derivative g'; the gradient of a spike is g' exactly.

==========  =======================================  =================================  ======
surrogate   primitive g(u)                           derivative g'(u)                   alpha
==========  =======================================  =================================  ======
Sigmoid     sigmoid(alpha u)                         alpha g (1 - g)                    4
ATan        1/2 + arctan(pi alpha u / 2) / pi        alpha / 2 / (1 + (pi alpha u/2)^2) 2
Triangle    a parabola up to 0, its mirror beyond    alpha max(0, 1 - alpha |u|)        1
Erf         (1 + erf(alpha u)) / 2                   alpha / sqrt(pi) exp(-(alpha u)^2) 2
SuperSpike  u / (1 + alpha |u|)                      1 / (1 + alpha |u|)^2              25
==========  =======================================  =================================  ======

u is the membrane above the threshold, in units of the membrane. ``alpha`` has the meaning it has
for SpikingJelly's surrogates of these names (Triangle is its PiecewiseQuadratic) and for snnTorch's
``atan`` and ``fast_sigmoid`` (SuperSpike). SpikingJelly's SuperSpike is another function, ``alpha /
(1 + |u|)^2``, in which alpha scales the gradient and not the membrane.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from isospike.errors import InputError, RangeError
from isospike.tensors import check_floating

__all__ = [
    "SURROGATES",
    "ATan",
    "Erf",
    "Sigmoid",
    "SuperSpike",
    "Surrogate",
    "Triangle",
    "spike",
]


@dataclass(frozen=True)
class Surrogate(ABC):
    """A primitive and its derivative; see the module's head.

    Attributes:
        alpha: Steepness, above 0; the primitive's slope is steepest at the threshold.
        kind: Its number in the compiled engines.

    >>> isinstance(ATan(), Surrogate), ATan().alpha
    (True, 2.0)
    """

    alpha: float

    kind: ClassVar[int]

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise RangeError(
                f"{type(self).__name__} needs a finite alpha > 0, got {self.alpha}. "
                "Use the default, or more for a steeper one."
            )

    @abstractmethod
    def primitive(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The smooth function whose derivative is the gradient of a spike.

        Args:
            u: Membrane above the threshold.

        Returns:
            Its values, in the shape of ``u``.
        """

    @abstractmethod
    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of :meth:`primitive`: even, not negative, largest at 0, finite everywhere.

        Args:
            u: Membrane above the threshold.

        Returns:
            Its values, in the shape of ``u``.

        Gradient: that of the formula, so a spike may be differentiated twice.
        """


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """The logistic function; the default of the spiking transformers.

    Attributes:
        alpha: Steepness, above 0.

    >>> Sigmoid(alpha=4.0).derivative(torch.tensor(0.0))
    tensor(1.)
    """

    alpha: float = 4.0
    kind = 0

    def primitive(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(self.alpha * u)

    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        z = self.alpha * u
        return self.alpha * torch.sigmoid(z) * torch.sigmoid(-z)


@dataclass(frozen=True)
class ATan(Surrogate):
    """The arc tangent, with heavy tails.

    Attributes:
        alpha: Steepness, above 0.

    Reference: Fang, Yu, Chen, Masquelier, Huang, Tian (2021), Incorporating learnable membrane time
    constant to enhance learning of spiking neural networks.

    >>> ATan(alpha=2.0).derivative(torch.tensor(0.0))
    tensor(1.)
    """

    alpha: float = 2.0
    kind = 1

    def primitive(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 0.5 + torch.atan(math.pi / 2 * self.alpha * u) / math.pi

    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())


@dataclass(frozen=True)
class Triangle(Surrogate):
    """A triangle of base ``2 / alpha``: silent neurons far from the threshold get no gradient.

    ``g = max(0, 1 + z)^2 / 2`` for ``z = alpha u <= 0`` and ``1 - max(0, 1 - z)^2 / 2`` beyond.

    Attributes:
        alpha: Steepness, above 0.

    Reference: Bellec, Salaj, Subramoney, Legenstein, Maass (2018), Long short-term memory and
    learning-to-learn in networks of spiking neurons.

    >>> Triangle(alpha=1.0).derivative(torch.tensor([0.0, 0.5, 2.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """

    alpha: float = 1.0
    kind = 2

    def primitive(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        half = (1 - (self.alpha * u).abs()).clamp_min(0).square() / 2
        return torch.where(u <= 0, half, 1 - half)

    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.alpha * (1 - self.alpha * u.abs()).clamp_min(0)


@dataclass(frozen=True)
class Erf(Surrogate):
    """The error function: the chance that Gaussian noise of deviation ``1 / (sqrt(2) alpha)``
    lifts the membrane over the threshold.

    Attributes:
        alpha: Steepness, above 0.

    >>> Erf(alpha=2.0).primitive(torch.tensor(0.0))
    tensor(0.5000)
    """

    alpha: float = 2.0
    kind = 3

    def primitive(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        tail: Tensor = torch.special.erfc(-self.alpha * u)
        return tail / 2

    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-(self.alpha * u).square())


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """The fast sigmoid; its derivative is 1 at the threshold whatever alpha is.

    Attributes:
        alpha: Steepness, above 0.

    Reference: Zenke, Ganguli (2018), SuperSpike: supervised learning in multilayer spiking neural
    networks, section 3.3.2.

    >>> SuperSpike(alpha=1.0).derivative(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.2500])
    """

    alpha: float = 25.0
    kind = 4

    def primitive(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return u / (1 + self.alpha * u.abs())

    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        slope: Tensor = (1 + self.alpha * u.abs()).square().reciprocal()
        return slope


SURROGATES: dict[str, type[Surrogate]] = {
    c.__name__: c for c in (Sigmoid, ATan, Triangle, Erf, SuperSpike)
}
"""The surrogates by name."""


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, surrogate: Surrogate) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(u), None


def spike(u: Float[Tensor, "*shape"], surrogate: Surrogate) -> Float[Tensor, "*shape"]:
    """A spike where the membrane reaches the threshold: ``s = 1 if u >= 0 else 0``. NaN gives 0.

    Args:
        u: Membrane above the threshold.
        surrogate: Gives the gradient.

    Returns:
        Spikes in {0, 1}, dtype and device of ``u``.

    Raises:
        InputError: ``u`` is not a tensor, or ``surrogate`` not a :class:`Surrogate`.
        UnsupportedError: ``u`` is sparse, nested or quantised.
        RangeError: ``u`` is not floating point.

    Gradient: ``surrogate.derivative(u)``; differentiable again. ``torch.func`` may map and
    differentiate it.

    >>> u = torch.tensor([-0.1, 0.0], requires_grad=True)
    >>> s = spike(u, Triangle(alpha=1.0))
    >>> s.detach(), torch.autograd.grad(s.sum(), u)[0]
    (tensor([0., 1.]), tensor([0.9000, 1.0000]))
    """
    check_floating("spike", "u", u)
    if not isinstance(surrogate, Surrogate):
        raise InputError(
            f"spike needs a Surrogate, got {type(surrogate).__name__}. Use Sigmoid(), for example."
        )
    return fire(u, surrogate)


def fire(u: Tensor, surrogate: Surrogate) -> Tensor:
    """:func:`spike` without its checks, for every step of a neuron."""
    out: Tensor = _Spike.apply(u, surrogate)  # type: ignore[no-untyped-call]
    return out
