"""What a module computes, found by calling it; the name of the layer that it is in."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-3  # largest difference at which an activation counts as one of ACTIVATIONS
ROUNDINGS = 16  # roundings of its type by which a norm or a product may differ

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "erf": torch.erf,
}
"""Activation functions by name. GELU's tanh form is within 5e-4 of GELU."""


class Norm(NamedTuple):
    """A normalisation over channels.

    >>> Norm("rms").apply(torch.tensor([[3.0, 4.0]])).square().mean().item()
    1.0

    Attributes:
        kind: ``layer`` or ``rms``.
        gamma: ``[d]``, None for ones.
        beta: ``[d]``, None for zeros.
        eps: Added to the variance or mean square.
        width: d; 0 where neither gamma nor the module says it.
    """

    kind: str
    gamma: Tensor | None = None
    beta: Tensor | None = None
    eps: float = 0.0
    width: int = 0

    def divisor(self, x: Tensor) -> Tensor:
        """The divisor sigma of each row, ``[rows, 1]``.

        Args:
            x: The rows.

        Returns:
            The square root of the variance or mean square, plus eps.
        """
        centred = x - x.mean(1, keepdim=True) if self.kind == "layer" else x
        return (centred.square().mean(1, keepdim=True) + self.eps).sqrt()

    def apply(self, x: Tensor) -> Tensor:
        """Normalise rows.

        Args:
            x: The rows.

        Returns:
            The normalised rows.
        """
        centred = x - x.mean(1, keepdim=True) if self.kind == "layer" else x
        y = centred / self.divisor(x)
        if self.gamma is not None:
            y = y * self.gamma.to(y)
        return y if self.beta is None else y + self.beta.to(y)


class Activation(NamedTuple):
    """An elementwise function: one of :data:`ACTIVATIONS`."""

    name: str


class GatedMLP(NamedTuple):
    """``down(act(gate(x)) * up(x))``; the names of the four submodules."""

    gate: str
    up: str
    act: str
    down: str


class Product(NamedTuple):
    """A product with a weight.

    Attributes:
        weight: ``[out, in]``, of a convolution ``[out, in / groups, height, width]``.
        bias: ``[out]``, or None.
        conv: Whether it is a two-dimensional convolution.
    """

    weight: Tensor
    bias: Tensor | None
    conv: bool = False


def recognise(module: nn.Module) -> Norm | Activation | GatedMLP | Product | None:
    """What a module computes, if it is one of these; its name and its source do not matter.

    Modules whose type does not say so are called on made inputs, in ``eval`` mode and without
    moving torch's random state.

    Args:
        module: Any module; it is left as it was.

    Returns:
        None for anything else.

    >>> recognise(nn.GELU())
    Activation(name='gelu')
    """
    if type(module) in (nn.Linear, nn.Conv2d):
        plain: Any = module
        return Product(plain.weight, plain.bias, type(module) is nn.Conv2d)
    if any(True for _ in module.children()):
        return _gated_mlp(module)
    shape = getattr(module, "normalized_shape", ())
    own = {name: parameter.detach() for name, parameter in module.named_parameters()}
    if not own and not shape:
        return None if any(True for _ in module.buffers()) else _activation(module)
    weight, bias = own.get("weight"), own.get("bias")
    if set(own) - {"weight", "bias"} or len(shape) > 1:
        return None
    if weight is not None and weight.dim() == 2:
        return _product(module, weight, bias)
    return _norm(module, weight, bias, shape[0] if shape else 0)


def layer_name(name: str) -> str:
    """The block a module is in: its path up to the last number that something follows.

    >>> layer_name("vit.stages.0.blocks.1.attn.q")
    'vit.stages.0.blocks.1'
    >>> layer_name("layer.0.mlp.2"), layer_name("pooler.dense")
    ('layer.0', 'pooler.dense')
    """
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    inner = [i for i in numbers if i < len(parts) - 1]
    return ".".join(parts[: (inner or numbers or [len(parts)])[-1] + 1])


def _call(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module makes of ``x``; None if it is not a tensor or if the call fails."""
    before = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            y = module(x.clone())
    except Exception:  # noqa: BLE001 - it takes other arguments
        return None
    finally:
        for each, own, parameters, buffers in before:  # some replace a table that is too short
            vars(each).clear()
            vars(each).update(own)
            each._parameters.clear()
            each._parameters.update(parameters)
            each._buffers.clear()
            each._buffers.update(buffers)
    return y if isinstance(y, Tensor) else None


def _near(y: Tensor, expected: Tensor) -> bool:
    if y.shape != expected.shape:
        return False
    y, wide = y.double().cpu(), torch.finfo(y.dtype).eps
    coarse = ROUNDINGS * wide * max(1e-6, float(y.abs().max()))
    return float((y - expected.double().cpu()).abs().max()) < coarse


def _rows(width: int, like: Tensor | None) -> Tensor:
    rows = torch.linspace(-2, 3, 2 * width).sin().view(2, -1) + 0.5
    return rows if like is None else rows.to(like)


def _activation(module: nn.Module) -> Activation | None:
    x = torch.linspace(-12, 12, 2401)
    y = _call(module, x)
    if y is None or y.shape != x.shape or torch.equal(x, y):
        return None
    for name, function in ACTIVATIONS.items():
        if float((function(x) - y).abs().max()) <= TOLERANCE:
            return Activation(name)
    return None


def _product(module: nn.Module, weight: Tensor, bias: Tensor | None) -> Product | None:
    """A Linear of another class, or one with its weight transposed, as GPT-2's."""
    for turned in (weight, weight.t()):
        x = _rows(turned.shape[1], weight)
        y = _call(module, x)
        if y is not None and _near(y, F.linear(x.double(), turned.double(), _wide(bias))):
            return Product(turned, bias)
    return None


def _norm(module: nn.Module, weight: Tensor | None, bias: Tensor | None, width: int) -> Norm | None:
    width = width or (len(weight) if weight is not None and weight.dim() == 1 else 0)
    if width < 2:
        return None
    x = _rows(width, weight)
    y = _call(module, x)
    if y is None or y.shape != x.shape:
        return None
    # Some RMSNorms multiply by 1 + weight.
    gains = (None,) if weight is None else (weight, 1 + weight)
    for kind, gamma, eps in product(("layer", "rms"), gains, _eps(module, x.dtype)):
        norm = Norm(kind, gamma, bias, eps, width)
        if _near(y, norm.apply(x.double())):
            return norm
    return None


def _eps(module: nn.Module, dtype: torch.dtype) -> tuple[float, ...]:
    """What may be added to the variance: what the module says, or else the usual ones."""
    for name in ("eps", "variance_epsilon"):
        if hasattr(module, name):
            eps = getattr(module, name)
            # What nn.RMSNorm means by None.
            return (torch.finfo(dtype).eps if eps is None else float(eps),)
    return 1e-5, 1e-6, 0.0


def _gated_mlp(module: nn.Module) -> GatedMLP | None:
    if any(True for child in module.children() for _ in child.children()):
        return None
    children = {name: recognise(child) for name, child in module.named_children()}
    products = [n for n, c in children.items() if isinstance(c, Product) and not c.conv]
    acts = [n for n, c in children.items() if isinstance(c, Activation)]
    if len(products) != 3 or len(acts) != 1:
        return None
    parts = module.get_submodule
    act = parts(acts[0])
    for gate, up, down in _orders(products):
        wide: Any = [parts(n).weight for n in (gate, up)]
        x = _rows(children[gate].weight.shape[1], wide[0])  # type: ignore[union-attr]
        y = _call(module, x)
        if y is None:
            return None
        try:
            with torch.no_grad():
                expected = parts(down)(act(parts(gate)(x)) * parts(up)(x))
        except RuntimeError:  # the shapes do not fit each other
            continue
        size = float(y.abs().max())
        if y.shape == expected.shape and float((y - expected).abs().max()) <= TOLERANCE * size:
            return GatedMLP(gate, up, acts[0], down)
    return None


def _orders(names: list[str]) -> list[tuple[str, str, str]]:
    """Which may be gate, up and down; as they stand first."""
    a, b, c = names
    return [(a, b, c), (b, a, c), (a, c, b), (c, a, b), (b, c, a), (c, b, a)]


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()
