"""Training a port: its integers run forward, gradients go straight through them backward.

A module of a port runs as it always does. Backward it stands for its own float function, at the
values that its spikes carry:

(1)  y = run(x, w),  dx = J^T dy,  J the Jacobian of float(x^, w) by x^ at x^ = decode(encode(x))

so encoding has the slope 1 where the range holds ``x``, and 0 where it cuts ``x`` off. The gain of
a token is a constant of (1). With the rounding's slope taken as 1, ``gain * round(x / gain)`` has
the slope 1 by ``x`` whatever the gain does; were the gain differentiated, the token's largest
channel would also receive the rounding errors of all others, which have mean 0: noise.

A weight of few bits has a real *master*, which the optimizer moves:

(2)  w = quantum * clamp(round(unit * master / quantum), -top, top),  dmaster = unit * dw inside

and 0 outside, with ``unit`` the power of two next to the amplitude that is folded into the weights
of a channel: masters are as large as the weights of the float model, within a factor of sqrt(2),
and learn at its rates. A port that has no grid has ``w = unit * master``.

Quanta, ranges and codes stay as calibration set them, so that what is trained is again a port of
the same grid. See Bengio, Léonard, Courville (2013), Estimating or propagating gradients through
stochastic neurons; Esser and others (2020), Learned step size quantization.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isospike.errors import UnsupportedError
from isospike.kernels.product.int8 import MAX_WEIGHT
from isospike.porting.calls import OWN
from isospike.porting.files import port_files
from isospike.porting.functions import SpikingGatedMLP, SpikingNorm
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Mode, Watcher, run_of
from isospike.porting.saving import own_saving
from isospike.porting.sites import Site
from isospike.porting.synapses import limits
from isospike.porting.tables import tables_of

SLACK = 1 + 2.0**-20  # of a range: its largest value may lie above it by a rounding
TRAINED = "\n\nTrained further since: the figures above are of the port before.\n"


def trainable(model: nn.Module) -> nn.Module:
    """A copy of a port that gradients pass, by (1) and (2).

    Args:
        model: The port, which is not changed.

    Returns:
        A model that is called like the port and gives the same bits as its collapsed run; in
        ``train()`` mode it drops out as the float model does. Weights, biases and normalisations
        have gradients, tables of rounded embeddings have none. ``save_pretrained`` saves the port
        that it is; :func:`settled` is that port.

    Raises:
        UnsupportedError: The model is no port, or one whose weights are not in memory.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UnsupportedError(
            "trainable needs a port in memory, got one whose weights are offloaded. Save it, and "
            "load it with isospike.load where there is memory for it."
        )
    mode = run_of(model).mode
    learner = copy.deepcopy(model)
    run = run_of(learner)
    run.learning, run.mode = mode, Mode(functions=mode.functions)
    for module in learner.modules():
        if isinstance(module, SpikingGatedMLP):
            vars(module)["product"] = _Straight(module, "product")
        elif isinstance(module, OWN):
            vars(module)["forward"] = _Straight(module, "forward")
        if isinstance(module, SpikingProduct):
            module.weight.data = module.weight / _unit(module)
        if isinstance(module, SpikingProduct | SpikingNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    for name in tables_of(learner):
        learner.get_parameter(name).requires_grad_(False)
    own_saving(learner, _files)
    return learner


def settled(model: nn.Module) -> nn.Module:
    """The port that a trainable model is, with its weights on their grid.

    Args:
        model: Of :func:`trainable`, which is not changed; adapters are merged before.

    Raises:
        UnsupportedError: The model is not one.
    """
    learning = run_of(model).learning
    if learning is None:
        raise UnsupportedError(
            f"settled needs a model that Port.trainable made, got a {type(model).__name__} that is "
            "a port already. Train what Port.trainable returns, and pass that."
        )
    port = copy.deepcopy(model).eval()
    run = run_of(port)
    run.mode, run.learning = learning, None
    for module in port.modules():
        for method in ("product", "forward"):
            if isinstance(vars(module).get(method), _Straight):
                del vars(module)[method]
        if isinstance(module, SpikingProduct):
            module.weight.data = _on_grid(module, module.weight.detach())
            module.requires_grad_(False)
            module.forget()
    run.origin = replace(run.origin, card=run.origin.card and run.origin.card.rstrip() + TRAINED)
    own_saving(port, port_files)
    return port


def _files(model: nn.Module, tokenizer: Any = None) -> Mapping[str, Any]:
    return port_files(settled(model), tokenizer)


def _unit(product: SpikingProduct) -> Tensor:
    """That of (2), of each column; to divide by it and to multiply with it loses nothing."""
    return product.by_column(product.site.amplitude).log2().round().exp2()


def _on_grid(product: SpikingProduct, master: Tensor) -> Tensor:
    """(2)."""
    weight = master * _unit(product)
    if not bool((product.step > 0).all()):
        return weight
    bits = product.weight_bits
    ends = (-MAX_WEIGHT, MAX_WEIGHT) if bits == 16 else limits(bits)
    rounded: Tensor = _Round.apply(weight, product.quantum, ends)  # type: ignore[no-untyped-call]
    return rounded


class _Round(torch.autograd.Function):
    """(2)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantum: Tensor, ends: tuple[int, int]) -> Tensor:
        whole = weight / quantum
        ctx.save_for_backward((whole >= ends[0]) & (whole <= ends[1]))
        return whole.round_().clamp_(*ends).mul_(quantum)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return dw * inside, None, None


class _Decoded(Watcher):
    """Has a float pass read what the spikes of each site carry, with the slope of (1)."""

    sees_probabilities = True

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        with torch.no_grad():
            reading = site.read(x)
            carried, gain = site.decode(reading), reading.gain
            bound = site.scale if gain is None else SLACK * gain.times(site.scale.expand_as(x))
        low = site.offset + site.code.low * bound
        inside = x.clamp(low, site.offset + bound)
        value = inside + (carried - inside).detach()
        if site.kind in ("linear", "conv"):  # scales are in the weights, offsets in the bias
            value = (value - site.offset) / site.amplitude
        return value


_TENSOR = object()  # where an argument is one


class _Straight:
    """Takes the place of a method of a module that is trained."""

    def __init__(self, module: nn.Module, method: str) -> None:
        self.module, self.method, self.kind = module, method, type(module)

    def __call__(self, *args: Any, **named: Any) -> Any:
        module: Any = self.module
        # As attributes, not parameters: adapters compute them.
        own = {n: getattr(module, n) for n in ("weight", "bias") if hasattr(module, n)}
        if isinstance(module, SpikingProduct):
            own["weight"] = _on_grid(module, own["weight"])
        values = [*args, *named.values(), *own.values()]
        tensors = [x for x in values if isinstance(x, Tensor)]
        # Without the tensors: a graph is to end with its last reader.
        blank = [_TENSOR if isinstance(x, Tensor) else x for x in values]
        call = partial(self._call, blank, len(args), tuple(named), tuple(own))
        if module.run.phase == "float" or not torch.is_grad_enabled():
            return call(*tensors)
        return _Through.apply(call, partial(self._smooth, call), *tensors)  # type: ignore[no-untyped-call]

    def _call(
        self, blank: Sequence[Any], count: int, names: Sequence[str], own: Sequence[str],
        *tensors: Tensor,
    ) -> Any:  # fmt: skip
        """The method with these tensors in place of those it was called with."""
        each = iter(tensors)
        values = [next(each) if x is _TENSOR else x for x in blank]
        named = dict(zip(names, values[count:], strict=False))
        stand_in = self._with(dict(zip(own, values[count + len(names) :], strict=True)))
        return getattr(stand_in, self.method)(*values[:count], **named)

    def _smooth(self, call: Callable[..., Any], *tensors: Tensor) -> Any:
        """The float function of (1), at the values that spikes carry."""
        run: Any = self.module.run
        phase, run.phase = run.phase, "float"
        try:
            with run.watching(_Decoded()):
                return call(*tensors)
        finally:
            run.phase = phase

    def _with(self, own: Mapping[str, Any]) -> Any:
        """The module as it was before, with other parameters."""
        stand_in = object.__new__(self.kind)
        state = {k: v for k, v in vars(self.module).items() if k != self.method}
        state["_parameters"] = {**state["_parameters"], **own}
        if "_kept" in state:  # of other weights
            state["_kept"] = {}
        vars(stand_in).update(state)
        return stand_in


class _Through(torch.autograd.Function):
    """(1)."""

    @staticmethod
    def forward(ctx: Any, run: Any, smooth: Any, *tensors: Tensor) -> Tensor:
        ctx.smooth = smooth
        ctx.save_for_backward(*tensors)
        result: Tensor = run(*tensors)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        wanted = ctx.needs_input_grad[2:]
        leaves = [
            x.detach().requires_grad_(want)
            for x, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            y = ctx.smooth(*leaves)
        found = torch.autograd.grad(
            y, [x for x in leaves if x.requires_grad], dy, allow_unused=True
        )
        each = iter(found)
        return None, None, *(next(each) if want else None for want in wanted)
