"""The compiled engines as one operator that torch can differentiate and compile.

An engine computes :func:`isospike.kernels.neuron.reference.run_steps` in one pass over memory, and
its gradient in another. The gradient recomputes the membranes from the input: what is kept for it
is the input and nothing else.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from isospike.errors import UnsupportedError
from isospike.kernels.runtime.buffers import empty_pooled
from isospike.kernels.runtime.torch_ops import define


class NeuronRule(NamedTuple):
    """What a neuron does, apart from its parameters; see ``run_steps``."""

    hard: bool
    detach: bool
    surrogate: int
    alpha: float


class BroadcastParam(NamedTuple):
    """A parameter of the neurons in memory order: neuron n has ``values[(n // inner) % period]``.

    Attributes:
        values: One axis, ``period`` long.
        inner: Consecutive neurons that share a value.
    """

    values: Tensor
    inner: int


class Problem(NamedTuple):
    """What an engine is given.

    Attributes:
        x: The input ``[steps, *shape]``.
        v: The first membrane ``[*shape]``; None is rest.
        params: The five parameters of ``run_steps``, in order.
        rule: The kind of reset and of gradient.
    """

    x: Tensor
    v: Tensor | None
    params: Sequence[BroadcastParam]
    rule: NeuronRule


class Gradients(NamedTuple):
    """Gradients that an engine is given, and those that it fills.

    Attributes:
        spikes: Given, of the spikes; None is 0.
        last: Given, of the last membrane; None is 0.
        x: To be filled, of the input.
        v: To be filled, of the first membrane, unless it is None.
        params: To be filled, ``[5, *shape]``, of each neuron's parameters, summed over the steps,
            unless it is None.
    """

    spikes: Tensor | None
    last: Tensor | None
    x: Tensor
    v: Tensor | None
    params: Tensor | None


class Engine(Protocol):
    """The two passes over memory."""

    def forward(self, problem: Problem, spikes: Tensor, last: Tensor | None) -> None:
        """Fill ``spikes`` and, unless it is None, ``last``."""

    def backward(self, problem: Problem, grads: Gradients) -> None:
        """Fill the gradients that are to be filled."""


def broadcast_param(value: Tensor, shape: torch.Size) -> BroadcastParam:
    """``value``, broadcastable to ``shape``, without expanding it where its axes are neighbours."""
    own = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    varying = [axis for axis, size in enumerate(own) if size != 1]
    if not varying:
        return BroadcastParam(value.reshape(1), 1)
    first, last = varying[0], varying[-1]
    if own[first : last + 1] != tuple(shape[first : last + 1]):
        return BroadcastParam(value.expand(shape).reshape(-1), 1)
    return BroadcastParam(value.reshape(-1), shape[last + 1 :].numel())


def _engine(name: str) -> Engine:
    # Imported when first used: neither compiler is needed to import isospike.
    return cast(Engine, import_module(f"isospike.kernels.neuron.{name}"))


def _problem(x: Tensor, v: Tensor | None, params: list[Tensor], rule: Sequence[Any]) -> Problem:
    return Problem(x, v, [broadcast_param(p, x.shape[1:]) for p in params], NeuronRule(*rule))


# The operators' arguments are flat: x, v, params, the four of the rule, and their own.


def _run(x: Tensor, v: Tensor | None, params: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    *rule, dtype, keep, engine = rest
    spikes = empty_pooled(x.shape, dtype, x.device)
    last = empty_pooled(x.shape[1:] if keep else (0,), params[0].dtype, x.device)
    _engine(engine).forward(_problem(x, v, params, rule), spikes, last if keep else None)
    return spikes, last


def _run_fake(
    x: Tensor, v: Tensor | None, params: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor]:
    *_, dtype, keep, _ = rest
    spikes = x.new_empty(x.shape, dtype=dtype)
    return spikes, x.new_empty(x.shape[1:] if keep else (0,), dtype=params[0].dtype)


def _run_backward(
    x: Tensor, v: Tensor | None, params: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *rule, engine, grad_spikes, grad_last, learn = rest
    shape, membrane = x.shape[1:], params[0].dtype
    grad_x = empty_pooled(x.shape, x.dtype, x.device)
    grad_v = empty_pooled((0,) if v is None else shape, membrane, x.device)
    grad_params = empty_pooled((len(params) if learn else 0, *shape), membrane, x.device)
    grads = Gradients(
        grad_spikes, grad_last, grad_x,
        None if v is None else grad_v, grad_params if learn else None,
    )  # fmt: skip
    _engine(engine).backward(_problem(x, v, params, rule), grads)
    return grad_x, grad_v, grad_params


def _run_backward_fake(
    x: Tensor, v: Tensor | None, params: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    membrane, learn = params[0], rest[-1]
    return (
        x.new_empty(x.shape),
        membrane.new_empty((0,) if v is None else x.shape[1:]),
        membrane.new_empty((len(params) if learn else 0, *x.shape[1:])),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, v, params, *rule, dtype, keep, engine = inputs
    ctx.save_for_backward(x, v, *params)
    ctx.rule, ctx.engine = rule, engine
    ctx.set_materialize_grads(False)
    if not dtype.is_floating_point:
        ctx.mark_non_differentiable(output[0])


def _differentiate(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> Any:
    x, v, *params = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2]
    learn = any(wanted) if isinstance(wanted, (list, tuple)) else bool(wanted)
    if grad_last is not None and grad_last.numel() != x[0].numel():
        grad_last = None
    grad_x, grad_v, grads = _neuron_backward(
        x, v, params, *ctx.rule, ctx.engine, grad_spikes, grad_last, learn
    )
    reduced = [
        grad.double().sum_to_size(p.shape).to(p.dtype) if learn else None
        for grad, p in zip(grads if learn else params, params, strict=True)
    ]
    return grad_x, grad_v if v is not None else None, reduced, *(None,) * 7


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise UnsupportedError(
        "run needs engine='reference' to be differentiated twice, got a compiled engine. "
        "Call it with engine='reference'."
    )


_neuron_backward = define(
    "neuron_backward(Tensor x, Tensor? v, Tensor[] params, bool hard, bool detach, int surrogate, "
    "float alpha, str engine, Tensor? grad_spikes, Tensor? grad_last, bool learn) "
    "-> (Tensor, Tensor, Tensor)",
    _run_backward,
    _run_backward_fake,
    _refuse,
    _save_nothing,
)
"""Gradients of the input, of the first membrane unless it was None, and, if ``learn``, of each
neuron's parameters."""

neuron = define(
    "neuron(Tensor x, Tensor? v, Tensor[] params, bool hard, bool detach, int surrogate, "
    "float alpha, ScalarType dtype, bool keep, str engine) -> (Tensor, Tensor)",
    _run,
    _run_fake,
    _differentiate,
    _save,
)
"""``run_steps`` by a compiled engine.

``x [steps, *shape]`` is the input and ``v [*shape]`` the first membrane, None at rest; ``params``
are the five of ``run_steps`` in order, all of the membrane's type; ``hard`` to ``alpha`` are those
of :class:`NeuronRule`; ``dtype`` is that of the spikes; unless ``keep``, an empty tensor comes in
place of the last membrane; ``engine`` is cpu or gpu.
"""
