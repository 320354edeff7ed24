"""IF, LIF and PLIF: one recurrence, explicit state, three engines.

(1)  h[t] = decay v[t-1] + gain x[t] + bias
(2)  s[t] = 1 if h[t] >= threshold else 0
(3)  v[t] = h[t] - reset_by s[t]                     reset by subtraction
     v[t] = (1 - s[t]) h[t] + reset_to s[t]          reset to a value

IF has ``decay = 1``, LIF a constant decay, PLIF learns it. The membrane is in the units of the
threshold, time in steps. :func:`run` is the function; the modules hold its parameters. State goes
in and comes out: nothing is remembered between calls, and there is nothing to reset.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.kernels.neuron.engine import broadcast_param, neuron
from isospike.kernels.neuron.reference import run_steps
from isospike.surrogate import ATan, Sigmoid, SuperSpike, Surrogate

ENGINES = ("auto", "reference", "cpu", "gpu")
INPUTS = (torch.float32, torch.bfloat16, torch.float64)
SPIKES = (*INPUTS, torch.uint8, torch.bool)


class NeuronParams(NamedTuple):
    """Parameters of the recurrence. Tensors are per neuron, broadcastable to one step of the input;
    so a ``[channels]`` vector fits channels-last inputs and ``[channels, 1, 1]`` images.

    A normalisation before the neuron, ``a x + b`` per channel, is folded in by ``gain * a`` and
    ``gain * b``; see :func:`fold_norm`.

    Attributes:
        decay: Share of the membrane that a step keeps, in [0, 1].
        gain: Multiplies the input.
        bias: Constant current, added after ``gain``.
        threshold: Above 0.
        reset_by: What a spike subtracts; None stands for the threshold.
        reset_to: Reset to this value instead; None is reset by subtraction.
        detach_reset: Whether the gradient treats the spike in (3) as a constant.
        surrogate: Gives the gradient of (2).
    """

    decay: float | Tensor = 0.5
    gain: float | Tensor = 1.0
    bias: float | Tensor = 0.0
    threshold: float | Tensor = 1.0
    reset_by: float | Tensor | None = None
    reset_to: float | Tensor | None = None
    detach_reset: bool = True
    surrogate: Surrogate = Sigmoid()


DEFAULT = NeuronParams()


class NeuronState(NamedTuple):
    """The membrane between two steps.

    Attributes:
        v: ``[*shape]``, one step of the input; float32 for float32 and bfloat16 inputs, float64 for
            float64.
    """

    v: Tensor


def run(
    x: Tensor,
    state: NeuronState | None = None,
    params: NeuronParams = DEFAULT,
    *,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
) -> tuple[Tensor, NeuronState]:
    """All steps of ``x``; see the module's head.

    Args:
        x: Input ``[steps, *shape]``; float32, bfloat16 or float64.
        state: Membrane to start from; None is rest, 0.
        params: Of the neurons.
        dtype: Type of the spikes: None for that of ``x``; a floating type, ``torch.uint8`` or
            ``torch.bool``, which carry no gradient.
        engine: ``reference`` (torch, step by step: the specification), ``cpu`` (Numba, one pass
            over memory), ``gpu`` (Triton, likewise), or ``auto``: the compiled one of the input's
            device. ``reference`` is the only one for float64 and for other devices.

    Returns:
        Spikes in {0, 1}, shape of ``x``, and the state after the last step. The engines give the
        same spikes and membranes bit for bit for finite membranes.

    Raises:
        ShapeError: Time is missing or has no steps; a parameter does not broadcast to one step;
            the state has another shape.
        RangeError: A number is outside its range, or a tensor of another type or device than
            described. (Tensors on a GPU are not looked into, which would wait for it.)
        UnsupportedError: Unknown engine, one that cannot run on the input's device, or spikes
            without gradient where one is asked for.
        MissingExtraError: ``gpu`` without the package triton.

    Gradient: of ``x``, the state and every tensor in ``params``, by the surrogate through (2), and
    exact through (1) and (3). The compiled engines keep ``x`` for it and nothing else, and can be
    differentiated once; ``reference`` as often as wanted.
    """
    return _run(x, state, params, dtype, engine, keep=True)


def step(
    x: Tensor,
    state: NeuronState | None = None,
    params: NeuronParams = DEFAULT,
    *,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
) -> tuple[Tensor, NeuronState]:
    """One step: ``run`` of ``x [*shape]``, without the axis of time."""
    spikes, state = run(x[None], state, params, dtype=dtype, engine=engine)
    return spikes[0], state


def fold_norm(params: NeuronParams, norm: nn.Module, axes: int = 0) -> NeuronParams:
    """Neurons that also do the batch normalisation before them, with its running statistics.

    ``gain' = gain a`` and ``bias' = bias + gain b``, where the normalisation is ``a x + b`` per
    channel, so that a layer reads its input once. Rounds differently from two steps.

    Args:
        params: The neurons behind the normalisation.
        norm: A ``BatchNorm`` with running statistics.
        axes: Axes behind the channels: 0 for ``[steps, batch, ..., channels]``, 2 for images.

    Raises:
        UnsupportedError: ``norm`` is something else, or keeps no statistics.

    Gradient: none, for inference.
    """
    a, b = affine(norm)
    a, b = (n.view(-1, *[1] * axes) for n in (a, b))
    return params._replace(gain=a * params.gain, bias=b * params.gain + params.bias)


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``a`` and ``b`` of a batch normalisation in inference, ``a x + b`` per channel.

    Raises:
        UnsupportedError: ``norm`` is no batch normalisation, or keeps no statistics.
    """
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or mean is None or var is None:
        raise UnsupportedError(
            f"fold_norm needs a batch normalisation with running statistics, got {norm}. "
            "Fold it into the layer before, or run it on its own."
        )
    a = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        a = a * norm.weight.detach().double()
    b = -mean.double() * a
    if norm.bias is not None:
        b = b + norm.bias.detach().double()
    return a.to(mean.dtype), b.to(mean.dtype)


def compile_neuron(params: NeuronParams, channels: int) -> Callable[[Tensor, torch.dtype], Tensor]:
    """Neurons that only run, from rest and on a CPU: checked and laid out once.

    Args:
        params: Numbers, or tensors of one value for each channel, the last axis. Later changes of
            them are not seen.
        channels: How many.

    Returns:
        A function of ``x [steps, ..., channels]``, float32 or bfloat16, and of a type, that gives
        the spikes of :func:`run`, in that type.

    Raises:
        RangeError, ShapeError: As for :func:`run`, of the parameters; the input is not checked.
    """
    from isospike.kernels.neuron.cpu import CompiledNeuron  # imports the compiler

    values = _check_params(params, torch.empty(1, channels), torch.float32)
    spreads = [broadcast_param(value.detach(), torch.Size([channels])) for value in values]
    return CompiledNeuron(spreads, params.reset_to is not None)


def _run(
    x: Tensor,
    state: NeuronState | None,
    params: NeuronParams,
    dtype: torch.dtype | None,
    engine: str,
    keep: bool,
) -> tuple[Tensor, NeuronState]:
    if x.dtype not in INPUTS:
        raise RangeError(
            f"run needs float32, bfloat16 or float64 input, got {x.dtype}. Convert x first."
        )
    if x.dim() == 0 or len(x) == 0:
        raise ShapeError(
            f"run needs at least one step along axis 0, got shape {tuple(x.shape)}. "
            "Time is axis 0; one step is x[None]."
        )
    dtype = x.dtype if dtype is None else dtype
    if dtype not in SPIKES:
        raise RangeError(
            f"run needs spikes of a floating type, torch.uint8 or torch.bool, got {dtype}. "
            "Leave dtype out for that of x."
        )
    membrane = torch.float64 if x.dtype == torch.float64 else torch.float32
    engine = _choose(engine, x)
    values = _check_params(params, x, membrane)
    v = None if state is None else _check_state(state, x, membrane)
    tensors = [x, *values] + ([] if v is None else [v])
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if graded and not dtype.is_floating_point:
        raise UnsupportedError(
            f"run needs floating-point spikes where gradients are recorded, got {dtype}. "
            "Leave dtype out, or run under torch.no_grad()."
        )
    hard, surrogate = params.reset_to is not None, params.surrogate
    if engine == "reference":
        spikes, last = run_steps(x, v, values, hard, params.detach_reset, surrogate, dtype)
    else:
        spikes, last = neuron(
            x, v, values, hard, params.detach_reset, surrogate.kind, surrogate.alpha, dtype, keep,
            engine,
        )  # fmt: skip
    return spikes, NeuronState(last)


def _choose(engine: str, x: Tensor) -> str:
    if engine not in ENGINES:
        raise UnsupportedError(
            f"run needs engine to be one of {', '.join(ENGINES)}, got {engine!r}. Choose one."
        )
    fits = {"cpu": "cpu", "cuda": "gpu"}.get(x.device.type, "reference")
    if x.dtype == torch.float64:
        fits = "reference"
    if engine == "gpu" and os.environ.get("TRITON_INTERPRET") == "1" and x.dtype != torch.float64:
        return engine  # Triton's interpreter takes any tensor
    if engine not in ("auto", "reference", fits):
        raise UnsupportedError(
            f"run needs float32 or bfloat16 input on the device of engine={engine!r}, got "
            f"{x.dtype} on {x.device}. Move x, or leave engine out."
        )
    return fits if engine == "auto" else engine


def _check_params(params: NeuronParams, x: Tensor, membrane: torch.dtype) -> list[Tensor]:
    """The five numbers of the recurrence as tensors of the membrane's type."""
    if params.reset_by is not None and params.reset_to is not None:
        raise RangeError(
            f"NeuronParams needs one kind of reset, got reset_by={params.reset_by} and "
            f"reset_to={params.reset_to}. Leave one of them None."
        )
    reset = params.reset_by if params.reset_to is None else params.reset_to
    values = {
        "decay": params.decay,
        "gain": params.gain,
        "bias": params.bias,
        "threshold": params.threshold,
        "reset": params.threshold if reset is None else reset,
    }
    return [_check_param(name, value, x, membrane) for name, value in values.items()]


def _check_param(name: str, value: float | Tensor, x: Tensor, membrane: torch.dtype) -> Tensor:
    if not isinstance(value, Tensor):
        check_range(name, value, value)
        return torch.full((), value, dtype=membrane, device=x.device)
    if value.dtype not in (membrane, torch.bfloat16) or value.device != x.device:
        raise RangeError(
            f"run needs {name} as a {membrane} tensor on {x.device}, the membrane's type and the "
            f"input's device, got {value.dtype} on {value.device}. Convert it first."
        )
    shape = x.shape[1:]
    own = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    if len(own) != len(shape) or any(a not in (1, b) for a, b in zip(own, shape, strict=True)):
        raise ShapeError(
            f"run needs {name} broadcastable to one step {tuple(shape)}, got "
            f"{tuple(value.shape)}. Axes align at the end: channels of images are [channels, 1, 1]."
        )
    if value.device.type == "cpu" and value.numel() and not torch.compiler.is_compiling():
        low, high = value.detach().aminmax()
        check_range(name, low.item(), high.item())
    return value.to(membrane)


def check_range(name: str, low: float, high: float) -> None:
    """Raise RangeError unless all from ``low`` to ``high`` may be a neuron's ``name``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        needs = "finite numbers"
    elif name == "decay" and not 0 <= low <= high <= 1:
        needs = "in [0, 1]"
    elif name == "threshold" and low <= 0:
        needs = "above 0"
    else:
        return
    got = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    raise RangeError(f"run needs {name} {needs}, got {got}. Choose it there.")


def _check_state(state: NeuronState, x: Tensor, membrane: torch.dtype) -> Tensor:
    v = state.v
    if v.shape != x.shape[1:]:
        raise ShapeError(
            f"run needs state.v of the shape of one step, got state.v {tuple(v.shape)} and x "
            f"{tuple(x.shape)}. A new batch needs a new state; None is rest."
        )
    if v.dtype != membrane or v.device != x.device:
        raise RangeError(
            f"run needs state.v as a {membrane} tensor on {x.device}, got {v.dtype} on {v.device}. "
            "Convert it first."
        )
    return v


class Neuron(nn.Module, ABC):
    """A layer of neurons: holds parameters, remembers nothing.

    ``layer(x)`` gives the spikes of ``x [steps, *shape]`` from rest, so it fits ``nn.Sequential``;
    :meth:`run` takes and gives the state.

    Args:
        params: Its parameters. Tensors in it become buffers, ``nn.Parameter`` stays one.
        dtype: Type of the spikes, see :func:`run`.
        engine: See :func:`run`.
    """

    def __init__(
        self,
        params: NeuronParams = DEFAULT,
        *,
        dtype: torch.dtype | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.engine = engine
        self._fixed = params
        for name, value in params._asdict().items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor):
                self.register_buffer(name, value)

    @property
    @abstractmethod
    def params(self) -> NeuronParams:
        """What :func:`run` is given."""

    def _held(self) -> NeuronParams:
        """The parameters, tensors as the module holds them now."""
        held: dict[str, Any] = {
            name: value
            for name, value in (
                *self.named_buffers(recurse=False),
                *self.named_parameters(recurse=False),
            )
            if name in NeuronParams._fields
        }
        return self._fixed._replace(**held)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of ``x [steps, *shape]`` from rest."""
        return _run(x, None, self.params, self.dtype, self.engine, keep=False)[0]

    def run(self, x: Tensor, state: NeuronState | None = None) -> tuple[Tensor, NeuronState]:
        """Spikes of ``x`` from ``state``, None at rest, and the state after the last step."""
        return run(x, state, self.params, dtype=self.dtype, engine=self.engine)

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}"
            for name, value in self.params._asdict().items()
        )


class LIF(Neuron):
    """Leaky integrate and fire, with a constant decay (or one given as an ``nn.Parameter``)."""

    @property
    def params(self) -> NeuronParams:
        return self._held()


class IF(Neuron):
    """Integrate and fire: ``decay = 1``, whatever ``params.decay`` says."""

    @property
    def params(self) -> NeuronParams:
        return self._held()._replace(decay=1.0)


class PLIF(Neuron):
    """Leaky integrate and fire that learns its decay.

    ``decay = 1 - sigmoid(w)``, with w learned; ``params.decay`` is where it starts, a number or a
    tensor of one per neuron.

    Args:
        params: As for :class:`LIF`; ``decay`` strictly between 0 and 1.
        input_decays: Whether the input is scaled by ``1 - decay``, times ``params.gain``.
        dtype, engine: See :func:`run`.

    Raises:
        RangeError: The decay to start from is not strictly between 0 and 1.

    Reference: Fang, Yu, Chen, Masquelier, Huang, Tian (2021), Incorporating learnable membrane time
    constant to enhance learning of spiking neural networks.
    """

    w: nn.Parameter

    def __init__(
        self,
        params: NeuronParams = DEFAULT,
        *,
        input_decays: bool = True,
        dtype: torch.dtype | None = None,
        engine: str = "auto",
    ) -> None:
        decay = torch.as_tensor(params.decay, dtype=torch.float64)
        if not bool(((decay > 0) & (decay < 1)).all()):
            raise RangeError(
                f"PLIF needs a decay strictly between 0 and 1 to start from, got {params.decay}. "
                "A decay of 0 or 1 cannot be learned from."
            )
        super().__init__(params._replace(decay=0.5), dtype=dtype, engine=engine)
        self.input_decays = input_decays
        self.w = nn.Parameter(torch.logit(1 - decay.detach()).float())

    @property
    def params(self) -> NeuronParams:
        share = torch.sigmoid(self.w)
        held = self._held()._replace(decay=1 - share)
        return held._replace(gain=share * held.gain) if self.input_decays else held


def spikingjelly_lif(
    tau: float = 2.0,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
) -> NeuronParams:
    """SpikingJelly's ``LIFNode`` of these arguments; defaults and names are its own.

    ``decay = 1 - 1/tau``, ``gain = 1/tau`` if ``decay_input`` else 1; ``v_reset=None`` subtracts.
    The membrane is counted from ``v_reset``, to which it decays: its v is ours plus ``v_reset``.

    Raises:
        RangeError: ``tau <= 1``, or the threshold is not above ``v_reset``.

    Source: spikingjelly 2.0.0, tested against it. It charges by ``v + (x - v) / tau``, which rounds
    twice where (1) rounds differently; a spike differs where the membrane is within that of the
    threshold.
    """
    if not tau > 1:
        raise RangeError(
            f"spikingjelly_lif needs tau > 1, got {tau}. IF is the limit of large tau."
        )
    rest = 0.0 if v_reset is None else v_reset
    return NeuronParams(
        decay=1 - 1 / tau,
        gain=1 / tau if decay_input else 1.0,
        threshold=v_threshold - rest,
        reset_to=None if v_reset is None else 0.0,
        detach_reset=detach_reset,
    )


def snntorch_leaky(
    beta: float, threshold: float = 1.0, reset_mechanism: str = "subtract", reset_delay: bool = True
) -> NeuronParams:
    """snnTorch's ``Leaky`` of these arguments, called step by step; defaults and names are its own.

    It fires strictly above the threshold: ours is the next float32. Its default subtracts at the
    next step, after the decay: ``h[t] = beta h[t-1] + x[t] - threshold s[t-1]``, which is
    ``reset_by = threshold / beta``. Its ``mem`` is then h, ours the membrane after the reset.
    ``zero`` gives the same spikes whether delayed or not.

    Raises:
        RangeError: ``beta`` outside [0, 1]; 0 with a delayed reset, where there is no such
            parameter.
        UnsupportedError: ``subtract`` without delay, which in snnTorch is yet another rule (it does
            not subtract twice in a row), or an unknown mechanism.

    Source: snntorch 1.0.0, tested against it.
    """
    check_range("decay", beta, beta)
    params = NeuronParams(beta, threshold=_just_above(threshold), surrogate=ATan())
    if reset_mechanism == "zero":
        return params._replace(reset_to=0.0)
    if reset_mechanism == "none":
        return params._replace(reset_by=0.0)
    if reset_mechanism != "subtract" or not reset_delay:
        raise UnsupportedError(
            "snntorch_leaky needs reset_mechanism zero, none or a delayed subtract, got "
            f"{reset_mechanism!r} with reset_delay={reset_delay}. Choose one of them."
        )
    if beta == 0:
        raise RangeError("snntorch_leaky needs beta > 0 to subtract later, got 0. Reset to zero.")
    return params._replace(reset_by=threshold / beta)


def norse_lif_box(
    tau_mem_inv: float = 100.0,
    v_leak: float = 0.0,
    v_th: float = 1.0,
    v_reset: float = 0.0,
    dt: float = 0.001,
) -> NeuronParams:
    """Norse's ``LIFBoxCell`` of these parameters; defaults and names are its own.

    ``decay = 1 - dt tau_mem_inv``, ``gain = dt tau_mem_inv``, reset to a value, fires strictly
    above the threshold. The membrane is counted from ``v_leak``. Norse's own surrogate, "super",
    does not use its ``alpha``: it is ``SuperSpike(1)``.

    Raises:
        RangeError: ``dt tau_mem_inv`` outside [0, 1], or the threshold is not above ``v_leak``.

    Source: norse 1.1.0, tested against it.
    """
    share = dt * tau_mem_inv
    check_range("decay", 1 - share, 1 - share)
    return NeuronParams(
        decay=1 - share,
        gain=share,
        threshold=_just_above(v_th - v_leak),
        reset_to=v_reset - v_leak,
        detach_reset=False,
        surrogate=SuperSpike(1.0),
    )


def _just_above(threshold: float) -> float:
    """The next float32: ``h >= _just_above(threshold)`` is ``h > threshold``."""
    check_range("threshold", threshold, threshold)
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
