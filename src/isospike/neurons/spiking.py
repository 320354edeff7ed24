"""IF, LIF and PLIF neurons: one recurrence, explicit state, three engines.

(1)  h[t] = decay v[t-1] + gain x[t] + bias
(2)  s[t] = 1 if h[t] >= threshold else 0
(3)  v[t] = h[t] - reset_by s[t]                     reset by subtraction
     v[t] = (1 - s[t]) h[t] + reset_to s[t]          reset to a value

IF has ``decay = 1``, LIF a constant decay, PLIF learns it. The membrane is in the units of the
threshold, time in steps. :func:`run` is the function; the modules hold its parameters. State goes
in and comes out: nothing is remembered between calls, and there is nothing to reset. The parameters
of other libraries' neurons are in :mod:`isospike.presets`.
"""

import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.kernels.neuron.engine import broadcast_param, neuron
from isospike.kernels.neuron.ranges import check_compiled, check_range
from isospike.kernels.neuron.reference import run_steps
from isospike.neurons.checks import INPUTS, read_steps
from isospike.surrogate import Sigmoid, Surrogate
from isospike.tensors import check_kind, check_tensor, is_transformed

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Neuron",
    "NeuronParams",
    "NeuronState",
    "compile_neuron",
    "run",
    "step",
]

ENGINES = ("auto", "reference", "cpu", "gpu")
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

    >>> NeuronParams(decay=0.9, threshold=torch.full((384,), 0.5)).reset_to is None
    True
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

    >>> spikes, state = run(torch.full((4, 1), 0.75))
    >>> state.v
    tensor([0.1562])
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
    """Run neurons through all steps of ``x``; the equations are in the module's head.

    Args:
        x: Input ``[steps, *shape]``; float32, bfloat16 or float64, or whole numbers such as counts
            of events, which are read as float32.
        state: Membrane to start from; None is rest, 0.
        params: Parameters of the neurons.
        dtype: Type of the spikes: None for that of ``x``; a floating type, ``torch.uint8`` or
            ``torch.bool``, which carry no gradient.
        engine: ``reference`` (torch, step by step: the specification), ``cpu`` (Numba, one pass
            over memory), ``gpu`` (Triton, likewise), or ``auto``: the compiled one of the input's
            device, once half a second of small runs without gradient has shown that it is worth
            its start. ``reference`` is the only one for float64 and for other devices.

    Returns:
        Spikes in {0, 1}, shape of ``x``, and the state after the last step. The engines give the
        same spikes and membranes bit for bit for finite membranes.

    Raises:
        InputError: ``x`` is not a tensor, ``state`` not a :class:`NeuronState`, or ``params`` not
            :class:`NeuronParams`.
        ShapeError: Time is missing or has no steps; a parameter does not broadcast to one step;
            the state has another shape.
        RangeError: A number is outside its range, also in compiled code, or a tensor of another
            type or device than described. (Values of tensors on a GPU are not checked, which would
            wait for it.)
        UnsupportedError: Unknown engine, one that cannot run on the input's device, a sparse,
            nested or quantised tensor, or spikes without gradient where one is asked for.
        MissingExtraError: ``gpu`` without the package triton.

    Gradient: of ``x``, the state and every tensor in ``params``, by the surrogate through (2), and
    exact through (1) and (3). The compiled engines keep ``x`` for it and nothing else, and can be
    differentiated once; ``reference`` as often as wanted. Within ``torch.func`` (``vmap``,
    ``grad``), ``auto`` is ``reference``.

    >>> spikes, state = run(torch.full((4, 1), 0.75))
    >>> spikes.flatten()
    tensor([0., 1., 0., 1.])
    >>> spikes, state = run(torch.full((4, 1), 0.75), state)  # goes on
    """
    return _run("run", x, state, params, dtype, engine, keep=True)


def step(
    x: Tensor,
    state: NeuronState | None = None,
    params: NeuronParams = DEFAULT,
    *,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
) -> tuple[Tensor, NeuronState]:
    """Run neurons for one step.

    Args:
        x: Input ``[*shape]``, without the axis of time.
        state: Membrane to start from; None is rest, 0.
        params: Parameters of the neurons.
        dtype: Type of the spikes, see :func:`run`.
        engine: See :func:`run`.

    Returns:
        Spikes ``[*shape]`` and the state after the step.

    Raises:
        ShapeError, RangeError, UnsupportedError, MissingExtraError: As for :func:`run`.

    >>> spikes, state = step(torch.tensor([0.75, 1.5]))
    >>> spikes, state.v
    (tensor([0., 1.]), tensor([0.7500, 0.5000]))
    """
    check_tensor("step", "x", x)
    spikes, state = _run("step", x[None], state, params, dtype, engine, keep=True)
    return spikes[0], state


def compile_neuron(params: NeuronParams, channels: int) -> Callable[[Tensor, torch.dtype], Tensor]:
    """Prepare neurons for inference on a CPU, from rest: parameters are checked and laid out once.

    Args:
        params: Numbers, or tensors of one value for each channel, the last axis. Later changes of
            them have no effect.
        channels: Number of channels.

    Returns:
        A function of ``x [steps, ..., channels]``, float32 or bfloat16, and of a type, that gives
        the spikes of :func:`run`, in that type. It does not check its input.

    Raises:
        RangeError: A parameter is outside its range.
        ShapeError: A parameter does not have one value for each channel.

    >>> fire = compile_neuron(NeuronParams(), channels=2)
    >>> fire(torch.full((4, 2), 0.75), torch.uint8)[:, 0]
    tensor([0, 1, 0, 1], dtype=torch.uint8)
    """
    from isospike.kernels.neuron.cpu import CompiledNeuron  # imports the compiler

    values = _check_params("compile_neuron", params, torch.empty(1, channels), torch.float32)
    spreads = [broadcast_param(value.detach(), torch.Size([channels])) for value in values]
    return CompiledNeuron(spreads, params.reset_to is not None)


def _run(
    owner: str,
    x: Tensor,
    state: NeuronState | None,
    params: NeuronParams,
    dtype: torch.dtype | None,
    engine: str,
    keep: bool,
) -> tuple[Tensor, NeuronState]:
    x = read_steps(owner, x)
    dtype = x.dtype if dtype is None else dtype
    if dtype not in SPIKES:
        raise RangeError(
            f"{owner} needs spikes of a floating type, torch.uint8 or torch.bool, got {dtype}. "
            "Leave dtype out for that of x."
        )
    membrane = torch.float64 if x.dtype == torch.float64 else torch.float32
    chosen, engine = engine == "auto", _choose(owner, engine, x)
    values = _check_params(owner, params, x, membrane)
    v = None if state is None else _check_state(owner, state, x, membrane)
    tensors = [x, *values] + ([] if v is None else [v])
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if graded and not dtype.is_floating_point:
        raise UnsupportedError(
            f"{owner} needs floating-point spikes where gradients are recorded, got {dtype}. "
            "Leave dtype out, or run under torch.no_grad()."
        )
    hard, surrogate = params.reset_to is not None, params.surrogate
    if engine == "reference":
        spikes, last = run_steps(x, v, values, hard, params.detach_reset, surrogate, dtype)
    elif chosen and engine == "cpu" and not graded and _waits.for_compiler(x):
        with _waits:
            spikes, last = run_steps(x, v, values, hard, params.detach_reset, surrogate, dtype)
    else:
        spikes, last = neuron(
            x, v, values, hard, params.detach_reset, surrogate.kind, surrogate.alpha, dtype, keep,
            engine,
        )  # fmt: skip
    return spikes, NeuronState(last)


class _Waits:
    """The reference engine in place of a compiler that takes seconds to start.

    The spikes are the same bit for bit, so nobody sees when the engine changes.
    """

    PATIENCE = 0.5  # seconds of the reference engine, in all, before the compiled one is loaded
    SMALL = 2**20  # elements of an input

    def __init__(self) -> None:
        self.spent = 0.0

    def for_compiler(self, x: Tensor) -> bool:
        """Whether this input is small and the compiled engine is not worth loading yet."""
        waits = self.spent < self.PATIENCE and x.numel() <= self.SMALL
        return waits and not torch.compiler.is_compiling()

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent += time.perf_counter() - self.start


_waits = _Waits()


def _choose(owner: str, engine: str, x: Tensor) -> str:
    if engine not in ENGINES:
        raise UnsupportedError(
            f"{owner} needs a known engine, got {engine!r}. Use one of {', '.join(ENGINES)}."
        )
    fits = {"cpu": "cpu", "cuda": "gpu"}.get(x.device.type, "reference")
    if x.dtype == torch.float64 or is_transformed():
        fits = "reference"
    if engine == "gpu" and os.environ.get("TRITON_INTERPRET") == "1" and x.dtype != torch.float64:
        return engine  # Triton's interpreter takes any tensor
    if engine not in ("auto", "reference", fits):
        within = " within torch.func" if is_transformed() else ""
        raise UnsupportedError(
            f"{owner} needs float32 or bfloat16 input on the device of engine={engine!r}, got "
            f"{x.dtype} on {x.device}{within}. Move x, or leave engine out."
        )
    return fits if engine == "auto" else engine


def _check_params(
    owner: str, params: NeuronParams, x: Tensor, membrane: torch.dtype
) -> list[Tensor]:
    """The five numbers of the recurrence as tensors of the membrane's type."""
    check_kind(owner, "params", params, NeuronParams, "NeuronParams(decay=0.9)")
    check_kind(owner, "surrogate", params.surrogate, Surrogate, "Sigmoid()")
    if params.reset_by is not None and params.reset_to is not None:
        raise RangeError(
            f"{owner} needs one kind of reset, got reset_by={params.reset_by} and "
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
    return [_check_param(owner, name, value, x, membrane) for name, value in values.items()]


def _check_param(
    owner: str, name: str, value: float | Tensor, x: Tensor, membrane: torch.dtype
) -> Tensor:
    if not isinstance(value, Tensor):
        check_range(owner, name, value)
        if x.device.type != "cuda" or torch.compiler.is_compiling():
            return torch.full((), value, dtype=membrane, device=x.device)
        return _number(float(value), membrane, x.device)
    check_tensor(owner, name, value)
    if value.dtype not in (membrane, torch.bfloat16) or value.device != x.device:
        raise RangeError(
            f"{owner} needs {name} as a {membrane} tensor on {x.device}, got {value.dtype} on "
            f"{value.device}. Convert it to the membrane's type and the input's device."
        )
    shape = x.shape[1:]
    own = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    # No ``in``: a size may be a symbol, of which torch.compile knows equality only.
    if len(own) != len(shape) or not all(a == 1 or a == b for a, b in zip(own, shape, strict=True)):
        raise ShapeError(
            f"{owner} needs {name} broadcastable to one step {tuple(shape)}, got "
            f"{tuple(value.shape)}. Axes align at the end: channels of images are [channels, 1, 1]."
        )
    if torch.compiler.is_compiling():
        return check_compiled(value.to(membrane), owner, name)  # type: ignore[no-any-return]
    check_range(owner, name, value)
    return value.to(membrane)


@functools.lru_cache(maxsize=256)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number on a GPU, where making one costs as much time as a small layer of neurons."""
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


def _check_state(owner: str, state: NeuronState, x: Tensor, membrane: torch.dtype) -> Tensor:
    check_kind(owner, "state", state, NeuronState, "NeuronState(v)")
    v = state.v
    check_tensor(owner, "state.v", v)
    if v.shape != x.shape[1:]:
        raise ShapeError(
            f"{owner} needs state.v of the shape of one step, got state.v {tuple(v.shape)} and x "
            f"{tuple(x.shape)}. A new batch needs a new state; None is rest."
        )
    if v.dtype != membrane or v.device != x.device:
        raise RangeError(
            f"{owner} needs state.v as a {membrane} tensor on {x.device}, got {v.dtype} on "
            f"{v.device}. Convert it first."
        )
    return v


class Neuron(nn.Module, ABC):
    """A layer of neurons. It holds parameters and no state.

    ``layer(x)`` gives the spikes of ``x [steps, *shape]`` from rest, so it fits ``nn.Sequential``;
    :meth:`run` takes and gives the state.

    Args:
        params: Parameters of the neurons. Tensors become buffers, an ``nn.Parameter`` stays one.
        changes: Single parameters by name, as ``decay=0.9``, in place of those of ``params``.
        dtype: Type of the spikes, see :func:`run`.
        engine: See :func:`run`.

    Raises:
        RangeError: A parameter is outside its range.

    >>> isinstance(LIF(), Neuron)
    True
    """

    def __init__(
        self,
        params: NeuronParams = DEFAULT,
        *,
        dtype: torch.dtype | None = None,
        engine: str = "auto",
        **changes: Any,
    ) -> None:
        super().__init__()
        params = _changed(type(self).__name__, params, changes)
        self.dtype = dtype
        self.engine = engine
        self._fixed = params
        owner = type(self).__name__
        check_kind(owner, "surrogate", params.surrogate, Surrogate, "Sigmoid()")
        for name, value in params._asdict().items():
            left_out = name in ("reset_by", "reset_to") and value is None
            if name not in ("detach_reset", "surrogate") and not left_out:
                check_range(owner, name, value)
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor):
                self.register_buffer(name, value)

    @property
    @abstractmethod
    def params(self) -> NeuronParams:
        """The parameters for :func:`run`."""

    def _held(self) -> NeuronParams:
        """The parameters, tensors as the module holds them now."""
        held = {
            **dict(self.named_buffers(recurse=False)),
            **dict(self.named_parameters(recurse=False)),
        }
        now: dict[str, Any] = {n: held[n] for n in NeuronParams._fields if n in held}
        return self._fixed._replace(**now)

    def forward(self, x: Tensor) -> Tensor:
        """Run from rest.

        Args:
            x: Input ``[steps, *shape]``.

        Returns:
            Spikes, shape of ``x``.

        Raises:
            ShapeError, RangeError, UnsupportedError, MissingExtraError: As for the function
                :func:`isospike.neurons.run`.
        """
        owner = type(self).__name__
        return _run(owner, x, None, self.params, self.dtype, self.engine, keep=False)[0]

    def run(self, x: Tensor, state: NeuronState | None = None) -> tuple[Tensor, NeuronState]:
        """Run from a state.

        Args:
            x: Input ``[steps, *shape]``.
            state: Membrane to start from; None is rest.

        Returns:
            Spikes, shape of ``x``, and the state after the last step.

        Raises:
            ShapeError, RangeError, UnsupportedError, MissingExtraError: As for the function
                :func:`isospike.neurons.run`.
        """
        owner = type(self).__name__
        return _run(owner, x, state, self.params, self.dtype, self.engine, keep=True)

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}"
            for name, value in self.params._asdict().items()
        )


def _changed(owner: str, params: NeuronParams, changes: dict[str, Any]) -> NeuronParams:
    """Parameters with some of them given by name."""
    check_kind(owner, "params", params, NeuronParams, "NeuronParams(decay=0.9)")
    unknown = [name for name in changes if name not in NeuronParams._fields]
    if unknown:
        raise InputError(
            f"{owner} needs parameters that it knows, got {unknown[0]!r}. Use "
            f"{', '.join(NeuronParams._fields)}; for those of other libraries isospike.presets."
        )
    return params._replace(**changes)


class LIF(Neuron):
    """Leaky integrate-and-fire neurons: the decay is constant, or an ``nn.Parameter``.

    Args and errors are those of :class:`Neuron`.

    >>> layer = LIF(decay=0.5, threshold=1.0)
    >>> layer(torch.full((4, 1), 0.75)).flatten()  # time is axis 0
    tensor([0., 1., 0., 1.])
    """

    @property
    def params(self) -> NeuronParams:
        return self._held()


class IF(Neuron):
    """Integrate-and-fire neurons: ``decay = 1``, ``params.decay`` is not used.

    >>> IF()(torch.full((4, 1), 0.75)).flatten()
    tensor([0., 1., 1., 1.])
    """

    @property
    def params(self) -> NeuronParams:
        return self._held()._replace(decay=1.0)


class PLIF(Neuron):
    """Leaky integrate-and-fire neurons that learn their decay.

    ``decay = 1 - sigmoid(w)``, with w learned; ``params.decay`` is the value before training, a
    number or a tensor of one per neuron.

    Args:
        params: As for :class:`Neuron`; ``decay`` strictly between 0 and 1.
        changes: As for :class:`Neuron`.
        input_decays: Whether the input is scaled by ``1 - decay``, times ``params.gain``.
        dtype: Type of the spikes, see :func:`run`.
        engine: See :func:`run`.

    Raises:
        RangeError: The decay before training is not strictly between 0 and 1.

    >>> layer = PLIF(decay=0.5)
    >>> [name for name, _ in layer.named_parameters()]
    ['w']

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
        **changes: Any,
    ) -> None:
        params = _changed("PLIF", params, changes)
        start = params.decay
        inside = ((start > 0) & (start < 1)).all() if isinstance(start, Tensor) else 0 < start < 1
        if not bool(inside):
            raise RangeError(
                f"PLIF needs a decay strictly between 0 and 1 to start from, got {params.decay}. "
                "Start near the end instead, at 0.01 or 0.99."
            )
        super().__init__(params._replace(decay=0.5), dtype=dtype, engine=engine)
        self.input_decays = input_decays
        decay = torch.as_tensor(start, dtype=torch.float64).detach()
        self.w = nn.Parameter(torch.logit(1 - decay).float())

    @property
    def params(self) -> NeuronParams:
        lost = torch.sigmoid(self.w)
        held = self._held()._replace(decay=1 - lost)
        return held._replace(gain=lost * held.gain) if self.input_decays else held
