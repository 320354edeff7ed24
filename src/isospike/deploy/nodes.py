"""One node of NIR as one of our layers, and back.

NIR's neurons are differential equations; a step of duration dt is Euler's, so a membrane keeps
``1 - dt / tau`` and its input counts ``r dt / tau``. A CubaLIF reads the current of the same step.
NIR fires above the threshold, several libraries at it. What we write has the threshold one float32
below ours, so that both give our spikes.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isospike.deploy.network import (
    Chain,
    Port,
    Reshape,
    Scale,
    Shape,
    Shift,
    SumPool2d,
    Threshold,
)
from isospike.errors import InputError, IsospikeError, UnsupportedError
from isospike.neurons import (
    IF,
    LIF,
    CubaLIF,
    Delay,
    Integrator,
    IntegratorParams,
    Neuron,
    NeuronParams,
)

Array = Any  # NumPy's, of any type
WHOLE = 1e-6  # relative: how far from a whole number of steps a delay may be


class Reader:
    """Makes a layer of each node.

    Args:
        dt: Duration of a step in seconds.
        strict: Whether neurons fire above the threshold only, as NIR has it.
    """

    def __init__(self, dt: float, strict: bool) -> None:
        self.dt, self.strict = dt, strict
        self.kinds: dict[str, Callable[[Any], nn.Module]] = {
            "Input": lambda _: Port(), "Output": lambda _: Port(),
            "Affine": _linear, "Linear": _linear, "Conv1d": _conv, "Conv2d": _conv,
            "AvgPool2d": _average, "SumPool2d": _sum, "Flatten": _flatten,
            "Scale": lambda n: Scale(tensor(n.scale)),
            "Threshold": lambda n: Threshold(self._fires(n.threshold)),
            "Delay": self._delay, "I": self._i, "LI": self._li, "CubaLI": self._cuba_li,
            "IF": self._if, "LIF": self._lif, "CubaLIF": self._cuba_lif,
        }  # fmt: skip

    def read(self, name: str, node: Any) -> nn.Module:
        """The layer of a node.

        Raises:
            UnsupportedError: The node is of an unknown kind, or a step of dt is none of its.
            InputError: Its parameters are no node's.
        """
        kind = type(node).__name__
        if kind not in self.kinds:
            raise UnsupportedError(
                f"read_nir needs nodes that it knows, got {name!r} of kind {kind}. It knows "
                f"{', '.join(self.kinds)}."
            )
        held = {n: array(v) if isinstance(v, Tensor) else v for n, v in vars(node).items()}
        try:
            return self.kinds[kind](SimpleNamespace(**held))
        except IsospikeError as error:
            raise type(error)(
                f"read_nir cannot take the node {name!r}, a {kind}: {error}"
            ) from None
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"read_nir needs the parameters of a {kind} in {name!r}, got others: {error}. "
                "Check the library that wrote the file."
            ) from None

    def _share(self, tau: Array) -> Array:
        """``dt / tau``, at most 1."""
        share = self.dt / np.asarray(tau, np.float64)
        if not np.all((share > 0) & (share <= 1 + WHOLE)):
            raise UnsupportedError(
                f"a step needs a dt of at most the time constant, got {self.dt:g} s for a constant "
                f"of {float(np.min(tau)):g} s. Give the dt that the file was made for."
            )
        return np.minimum(share, 1.0)

    def _fires(self, threshold: Array) -> Any:
        value = np.asarray(threshold, np.float32)
        return tensor(np.nextafter(value, np.float32(np.inf)) if self.strict else value)

    def _i(self, n: Any) -> nn.Module:
        return Integrator(IntegratorParams(1.0, number(n.r * self.dt)))

    def _leaky(self, tau: Array, r: Array) -> IntegratorParams:
        share = self._share(tau)
        return IntegratorParams(number(1 - share), number(r * share))

    def _li(self, n: Any) -> nn.Module:
        membrane = Integrator(self._leaky(n.tau, n.r))
        return Chain([membrane, Shift(tensor(n.v_leak))]) if np.any(n.v_leak) else membrane

    def _cuba_li(self, n: Any) -> nn.Module:
        parts = [
            Integrator(self._leaky(n.tau_syn, n.w_in)),
            Integrator(self._leaky(n.tau_mem, n.r)),
        ]
        return Chain([*parts, Shift(tensor(n.v_leak))] if np.any(n.v_leak) else parts)

    def _params(self, n: Any, decay: Array, gain: Array, leak: Array) -> NeuronParams:
        threshold = self._fires(np.asarray(n.v_threshold, np.float64) - leak)
        return NeuronParams(
            number(decay), number(gain), threshold=number(threshold.numpy()),
            reset_to=number(np.asarray(n.v_reset, np.float64) - leak),
        )  # fmt: skip

    def _if(self, n: Any) -> nn.Module:
        return IF(self._params(n, 1.0, n.r * self.dt, 0.0))

    def _lif(self, n: Any) -> nn.Module:
        share = self._share(n.tau)
        return LIF(self._params(n, 1 - share, n.r * share, n.v_leak))

    def _cuba_lif(self, n: Any) -> nn.Module:
        share = self._share(n.tau_mem)
        params = self._params(n, 1 - share, n.r * share, n.v_leak)
        return CubaLIF(params, self._leaky(n.tau_syn, n.w_in))

    def _delay(self, n: Any) -> nn.Module:
        steps = np.asarray(n.delay, np.float64) / self.dt
        whole = np.round(steps)
        if not np.all(np.abs(steps - whole) <= WHOLE * np.maximum(1, whole)):
            raise UnsupportedError(
                f"a delay needs a whole number of steps of {self.dt:g} s, got "
                f"{float(steps.flat[0]):g} of them. Give the dt that the file was made for."
            )
        return Delay(torch.from_numpy(whole.astype(np.int64)))


def tensor(value: Array) -> Tensor:
    """An array of a file as float32."""
    return torch.from_numpy(np.array(value, np.float32))


def number(value: Array) -> float | Tensor:
    """One number where all entries are the same, else a tensor."""
    array = np.asarray(value)
    if array.size and np.all(array == array.flat[0]):
        return float(array.flat[0])
    return tensor(array)


def _linear(n: Any) -> nn.Module:
    weight, bias = tensor(n.weight), getattr(n, "bias", None)
    if weight.dim() != 2:
        raise ValueError(f"a weight [outputs, inputs] is needed, not {tuple(weight.shape)}")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _set(layer, weight, bias)


def _conv(n: Any) -> nn.Module:
    weight = tensor(n.weight)
    kind: Any = nn.Conv1d if weight.dim() == 3 else nn.Conv2d
    axes = weight.dim() - 2
    padding = n.padding if isinstance(n.padding, str) else _sizes(n.padding, axes)
    groups = int(n.groups)
    layer = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),
        stride=_sizes(n.stride, axes), padding=padding, dilation=_sizes(n.dilation, axes),
        groups=groups,
    )  # fmt: skip
    return _set(layer, weight, n.bias)


def _set(layer: Any, weight: Tensor, bias: Array) -> nn.Module:
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(tensor(bias))
    return layer  # type: ignore[no-any-return]


def _sizes(value: Array, axes: int = 2) -> Shape:
    return tuple(int(n) for n in np.broadcast_to(np.asarray(value), (axes,)))


def _average(n: Any) -> nn.Module:
    size, stride, padding = (_sizes(v) for v in (n.kernel_size, n.stride, n.padding))
    return nn.AvgPool2d((size[0], size[1]), (stride[0], stride[1]), (padding[0], padding[1]))


def _sum(n: Any) -> nn.Module:
    return SumPool2d(_sizes(n.kernel_size), _sizes(n.stride), _sizes(n.padding))


def _flatten(n: Any) -> nn.Module:
    shape = n.input_type["input"]
    if shape is None:
        raise ValueError("the shape of its input is needed")
    sizes = [int(size) for size in shape]
    start, end = (int(d) % len(sizes) for d in (n.start_dim, n.end_dim))
    flat = int(np.prod(sizes[start : end + 1]))
    return Reshape((*sizes[:start], flat, *sizes[end + 1 :]))


class Writer:
    """Makes the node of a layer.

    Args:
        nir: The package.
        dt: Duration of a step in seconds.
    """

    def __init__(self, nir: Any, dt: float) -> None:
        self.nir, self.dt = nir, dt

    def write(self, name: str, layer: nn.Module, before: Shape, after: Shape) -> Any:
        """The node of a layer.

        Args:
            name: Its name, for errors.
            layer: One of those of a :class:`~isospike.deploy.network.Network`.
            before: Shape of one step of one input.
            after: Shape of its output.

        Raises:
            UnsupportedError: No node computes the same.
        """
        nir = self.nir
        if isinstance(layer, Neuron):
            return self._neuron(name, layer.params, after)
        if isinstance(layer, CubaLIF):
            return self._cuba_lif(name, layer, after)
        if isinstance(layer, Integrator):
            return self._integrator(name, layer.params, after)
        if isinstance(layer, nn.Linear):
            if len(before) != 1:
                raise refused(name, "a linear layer of one axis", before, "Flatten first")
            weight = array(layer.weight)
            return (
                nir.Linear(weight) if layer.bias is None else nir.Affine(weight, array(layer.bias))
            )
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            return self._conv(name, layer, before)
        if isinstance(layer, nn.AvgPool2d | SumPool2d):
            return self._pool(name, layer)
        if isinstance(layer, Reshape):
            return self._reshape(name, layer, before)
        if isinstance(layer, Delay):
            steps = np.broadcast_to(array(layer.steps), after)
            return nir.Delay(steps * self.dt)
        if isinstance(layer, Scale):
            return nir.Scale(np.array(np.broadcast_to(array(layer.factor), after)))
        if isinstance(layer, Threshold):
            return nir.Threshold(below(np.broadcast_to(array(layer.threshold), after)))
        raise refused(name, "a layer that NIR has", f"a {type(layer).__name__}", "Leave it out")

    def _neuron(self, name: str, params: NeuronParams, shape: Shape) -> Any:
        if params.reset_to is None:
            raise refused(
                name,
                "neurons that reset to a value",
                "some that subtract",
                "Pass through spread_resets",
            )
        if np.any(array(params.bias)):
            raise refused(name, "neurons without a bias", "one", "Put it into the layer before")
        values = {
            "v_threshold": below(self._full(params.threshold, shape)),
            "v_reset": self._full(params.reset_to, shape),
        }
        decay, gain = self._full(params.decay, shape), self._full(params.gain, shape)
        if np.all(decay == 1):
            return self.nir.IF(r=gain / self.dt, **values)
        return self.nir.LIF(**self._leak(name, decay, gain), v_leak=np.zeros(shape), **values)

    def _leak(self, name: str, decay: Array, gain: Array) -> dict[str, Array]:
        if np.any(decay == 1):
            raise refused(name, "leaks everywhere or nowhere", "both", "Split the layer")
        kept = gain == 1 - decay
        return {"tau": self.dt / (1 - decay), "r": np.where(kept, 1.0, gain / (1 - decay))}

    def _cuba_lif(self, name: str, layer: CubaLIF, shape: Shape) -> Any:
        neuron = self._neuron(name, layer.neurons.params, shape)
        synapse = layer.synapse.params
        if not hasattr(neuron, "tau") or np.any(array(synapse.bias)):
            raise refused(
                name, "membranes that leak, and currents without a bias", "others", "Change them"
            )
        leak = self._leak(name, self._full(synapse.decay, shape), self._full(synapse.gain, shape))
        return self.nir.CubaLIF(
            tau_syn=leak["tau"], w_in=leak["r"], tau_mem=neuron.tau, r=neuron.r,
            v_leak=neuron.v_leak, v_threshold=neuron.v_threshold, v_reset=neuron.v_reset,
        )  # fmt: skip

    def _integrator(self, name: str, params: IntegratorParams, shape: Shape) -> Any:
        decay, gain = self._full(params.decay, shape), self._full(params.gain, shape)
        if np.any(array(params.bias)):
            raise refused(
                name, "an integrator without a bias", "one", "Put it into the layer before"
            )
        if np.all(decay == 1):
            return self.nir.I(r=gain / self.dt)
        return self.nir.LI(**self._leak(name, decay, gain), v_leak=np.zeros(shape))

    def _full(self, value: Any, shape: Shape) -> Array:
        return np.array(np.broadcast_to(array(value).astype(np.float64), shape))

    def _conv(self, name: str, layer: Any, before: Shape) -> Any:
        if layer.padding_mode != "zeros":
            raise refused(name, "zeros as padding", layer.padding_mode, "Pad before")
        axes = before[1:]
        one = len(axes) == 1

        def sizes(value: Any) -> Any:
            return value if isinstance(value, str) else value[0] if one else tuple(value)

        kind = self.nir.Conv1d if one else self.nir.Conv2d
        bias = np.zeros(layer.out_channels, np.float32) if layer.bias is None else array(layer.bias)
        return kind(
            input_shape=axes[0] if one else axes, weight=array(layer.weight),
            stride=sizes(layer.stride), padding=sizes(layer.padding),
            dilation=sizes(layer.dilation), groups=layer.groups, bias=bias,
        )  # fmt: skip

    def _pool(self, name: str, layer: Any) -> Any:
        if isinstance(layer, SumPool2d):
            size, stride, padding = layer.size, layer.stride, layer.padding
            return self.nir.SumPool2d(*(np.array(v) for v in (size, stride, padding)))
        plain = layer.count_include_pad or not np.any(layer.padding)
        if layer.ceil_mode or layer.divisor_override is not None or not plain:
            raise refused(
                name,
                "an average of whole windows",
                "another",
                "Leave the options at their defaults",
            )
        values = (layer.kernel_size, layer.stride, layer.padding)
        return self.nir.AvgPool2d(*(np.array(_sizes(v)) for v in values))

    def _reshape(self, name: str, layer: Reshape, before: Shape) -> Any:
        left = 0
        most = min(len(before), len(layer.shape) - 1)  # one axis at least is of joined ones
        while left < most and before[left] == layer.shape[left]:
            left += 1
        right = len(before) - (len(layer.shape) - left - 1)
        if layer.shape[left + 1 :] != before[right:] or right <= left:
            raise refused(name, "axes that are joined", f"{before} to {layer.shape}", "Flatten")
        return self.nir.Flatten(
            input_type={"input": np.array(before)}, start_dim=left, end_dim=right - 1
        )


def array(value: Any) -> Array:
    """A number or a tensor as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def below(threshold: Array) -> Array:
    """The float32 below, as float64: what is not below ours is above this."""
    value = np.asarray(threshold, np.float32)
    return np.nextafter(value, np.float32(-np.inf)).astype(np.float64)


def refused(name: str, needs: str, got: Any, advice: str) -> UnsupportedError:
    """The error for a layer that no node computes."""
    return UnsupportedError(f"write_nir needs {needs} in {name!r}, got {got}. {advice}.")
