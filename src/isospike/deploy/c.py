"""A network of spiking layers as one C99 file, with whole weights and no dependencies.

Weights are whole numbers of a layer's step, a power of two, so that sums of spikes are whole and
the same in every order; membranes are float32, in the order of torch's own operations. The program
reads the numbers of one step after the other from its standard input, and prints what each step
gives. Compile it without contracted multiplications: ``cc -std=c99 -O2 -ffp-contract=off``.
"""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isospike.deploy.network import Network, Port, Reshape, Shape
from isospike.deploy.nodes import array
from isospike.errors import RangeError, UnsupportedError
from isospike.neurons import Neuron
from isospike.report.files import write_file

Array = Any  # NumPy's, of any type
BITS = (8, 16)
HEAD = """/* {title}: {inputs} numbers a step in, {outputs} out. Weights are whole, in a step.
   cc -std=c99 -O2 -ffp-contract=off; for each step, its numbers on the standard input. */
#include <stdint.h>
#include <stdio.h>
"""
FUNCTIONS = {
    "convolve": """
/* y = step * (bias + w * x), kernels of h x w at strides and paddings, groups of channels. */
static void convolve(const float *x, float *y, const int{bits}_t *w, const int32_t *bias,
                     double step, const int n[13]) {
  int inputs = n[0], high = n[1], wide = n[2], outputs = n[3], tall = n[4], broad = n[5];
  int h = n[6], width = n[7], groups = n[12], each = inputs / groups;
  for (int o = 0; o < outputs; o++)
    for (int r = 0; r < tall; r++)
      for (int c = 0; c < broad; c++) {
        double sum = bias[o];
        for (int i = 0; i < each; i++)
          for (int a = 0; a < h; a++)
            for (int b = 0; b < width; b++) {
              int row = r * n[8] + a - n[10], column = c * n[9] + b - n[11];
              if (row < 0 || row >= high || column < 0 || column >= wide) continue;
              int from = o / (outputs / groups) * each + i;
              sum += (double)w[((o * each + i) * h + a) * width + b] *
                     x[(from * high + row) * wide + column];
            }
        y[(o * tall + r) * broad + c] = (float)(step * sum);
      }
}
""",
    "average": """
/* Mean of each of n channels of m numbers. */
static void average(const float *x, float *y, int n, int m) {
  for (int i = 0; i < n; i++) {
    double sum = 0;
    for (int j = 0; j < m; j++) sum += x[i * m + j];
    y[i] = (float)(sum / m);
  }
}
""",
    "fire": """
/* h = decay v + gain x; a spike where h reaches the threshold, and v is reset. */
static void fire(const float *x, float *y, float *v, int n, float decay, float gain,
                 float threshold, float reset) {
  for (int i = 0; i < n; i++) {
    float h = decay * v[i] + gain * x[i];
    y[i] = h >= threshold ? 1.0f : 0.0f;
    v[i] = h >= threshold ? reset : h;
  }
}
""",
    "add": """
static void add(float *y, const float *x, int n) {
  for (int i = 0; i < n; i++) y[i] += x[i];
}
""",
}
MAIN = """
int main(void) {{
  int n = 0;
  while (scanf("%f", &{first}[n]) == 1) {{
    if (++n < {inputs}) continue;
    n = 0;
    step();
    for (int i = 0; i < {outputs}; i++) printf("%.9g ", {last}[i]);
    puts("");
  }}
  return n != 0;
}}
"""


def round_network(network: Network, bits: int = 8) -> Network:
    """Put the weights of a network on a grid for each layer, as :func:`write_c` needs them.

    Args:
        network: It is not changed.
        bits: Of a weight, 8 or 16. Biases are multiples of the same step.

    Returns:
        A network whose weights are ``step`` times whole numbers, ``step`` a power of two.

    Raises:
        RangeError: Other bits.

    >>> from isospike.deploy.sequential import sequential_network
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 0.3)
    >>> network, _ = sequential_network(nn.Sequential(layer), [1])
    >>> round_network(network).node("0").weight.item() * 2**8
    77.0
    """
    _check_bits("round_network", bits)
    rounded = copy.deepcopy(network)
    for layer in rounded.layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            step = _step(layer, bits)
            for value in (layer.weight, layer.bias):
                if value is not None:
                    value.data = (value.data / step).round() * step
    return rounded


def write_c(
    network: Network, path: str | os.PathLike[str], *, bits: int = 8, title: str = "A network"
) -> None:
    """Write a network as one C99 file, whose program gives the network's spikes.

    Args:
        network: With one input and one output, without recurrences, of linear layers, convolutions,
            averages over whole images, and neurons that reset to a value.
        path: The file.
        bits: Of a weight, 8 or 16.
        title: What the file says that it is.

    Raises:
        UnsupportedError: A node that the file cannot hold, by name; or several inputs or outputs.
        RangeError: Other bits, or weights that are no whole numbers of a step.
        InputError: The file cannot be written.

    >>> write_c(network, "net.c")  # of sequential_network, for instance  # doctest: +SKIP
    """
    _check_bits("write_c", bits)
    if len(network.inputs) != 1 or len(network.outputs) != 1 or network.closing:
        raise UnsupportedError(
            f"write_c needs one input, one output and no recurrences, got {len(network.inputs)}, "
            f"{len(network.outputs)} and {len(network.closing)}. Export the parts one by one."
        )
    write_file(Path(path), _Program(network, bits).text(title).encode())


def _check_bits(owner: str, bits: int) -> None:
    if bits not in BITS:
        raise RangeError(f"{owner} needs weights of 8 or 16 bits, got {bits}. Choose 8.")


def _step(layer: Any, bits: int) -> float:
    """The power of two that the largest weight is a whole number of."""
    largest = max(float(layer.weight.detach().abs().max()), 1e-30)
    return float(2.0 ** np.ceil(np.log2(largest / (2 ** (bits - 1) - 1))))


class _Program:
    """The text of a network.

    Args:
        network: It.
        bits: Of a weight.
    """

    def __init__(self, network: Network, bits: int) -> None:
        self.network, self.bits = network, bits
        self.shapes = network.trace_shapes()
        self.names = {name: f"y{place}" for name, place in network.places.items()}
        self.constants: list[str] = []
        self.lines: list[str] = []

    def text(self, title: str) -> str:
        """The file."""
        network = self.network
        (first,), (last,) = network.inputs, network.outputs
        for name in network.order:
            if name != first:
                self._node(name, network.node(name))
        sizes = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        numbers = {"inputs": sizes[first], "outputs": sizes[last]}
        memory = [f"static float {self.names[n]}[{size}];" for n, size in sizes.items()]
        body = ["", "static void step(void) {", *(f"  {line}" for line in self.lines), "}"]
        head = HEAD.format(title=title, **numbers)
        for function, source in FUNCTIONS.items():
            if any(f"{function}(" in line for line in self.lines):
                head += source.replace("{bits}", str(self.bits))
        main = MAIN.format(first=self.names[first], last=self.names[last], **numbers)
        return head + "\n".join(["", *memory, *self.constants, *body]) + "\n" + main

    def _node(self, name: str, layer: nn.Module) -> None:
        shape, y = self.shapes[name], self.names[name]
        size = int(np.prod(shape))
        x, before = self._read(name)
        self.lines.append(f"/* {name} */")
        if isinstance(layer, nn.Linear | nn.Conv2d):
            self._product(name, layer, x, before, shape)
        elif isinstance(layer, nn.AvgPool2d):
            if tuple(np.broadcast_to(layer.kernel_size, 2)) != before[1:]:
                raise self._refused(name, "an average over whole images", "one over parts")
            self.lines.append(f"average({x}, {y}, {size}, {int(np.prod(before[1:]))});")
        elif isinstance(layer, Neuron):
            self._neuron(name, layer, x, size)
        elif isinstance(layer, Port | Reshape):
            self.lines.append(f"for (int i = 0; i < {size}; i++) {y}[i] = {x}[i];")
        else:
            raise self._refused(name, "a layer that it knows", f"a {type(layer).__name__}")

    def _read(self, name: str) -> tuple[str, Shape]:
        """What a node reads, after the sum of its sources."""
        sources = self.network.feeds[name]
        before = self.shapes[sources[0]]
        if len(sources) == 1:
            return self.names[sources[0]], before
        size, total = int(np.prod(before)), f"s{self.network.places[name]}"
        self.constants.append(f"static float {total}[{size}];")
        start = self.names[sources[0]]
        self.lines.append(f"for (int i = 0; i < {size}; i++) {total}[i] = {start}[i];")
        self.lines += [f"add({total}, {self.names[source]}, {size});" for source in sources[1:]]
        return total, before

    def _product(self, name: str, layer: Any, x: str, before: Shape, shape: Shape) -> None:
        step = _step(layer, self.bits)
        place = self.network.places[name]
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        for kind, title, value in ((self.bits, "w", layer.weight), (32, "b", bias)):
            whole = array(value).astype(np.float64) / step
            if np.any(whole != np.rint(whole)) or np.any(np.abs(whole) >= 2 ** (kind - 1)):
                raise RangeError(
                    f"write_c needs weights that are whole numbers of {kind} bits in {name!r}, got "
                    "others. Pass the network through round_network."
                )
            held = ",".join(f"{n:.0f}" for n in whole.flat)
            self.constants.append(f"static const int{kind}_t {title}{place}[] = {{{held}}};")
        numbers = [*(*before, 1, 1)[:3], *(*shape, 1, 1)[:3], *(*layer.weight.shape[2:], 1, 1)[:2]]
        if isinstance(layer, nn.Conv2d):
            if isinstance(layer.padding, str) or set(layer.dilation) != {1}:
                raise self._refused(name, "paddings in numbers and no dilation", "others")
            numbers += [*layer.stride, *layer.padding, layer.groups]
        else:
            numbers += [1, 1, 0, 0, 1]
        held = ", ".join(str(int(n)) for n in numbers)
        self.constants.append(f"static const int n{place}[13] = {{{held}}};")
        y = self.names[name]
        self.lines.append(f"convolve({x}, {y}, w{place}, b{place}, {step!r}, n{place});")

    def _neuron(self, name: str, layer: Any, x: str, size: int) -> None:
        params, place = layer.params, self.network.places[name]
        values = [
            array(v) for v in (params.decay, params.gain, params.threshold, params.reset_to, 0)
        ]
        plain = params.reset_to is not None and all(v.size == 1 for v in values)
        if not plain or np.any(array(params.bias)):
            raise self._refused(
                name, "neurons alike that reset to a value, without a bias", "others"
            )
        self.constants.append(f"static float v{place}[{size}];")
        held = ", ".join(f"{np.float32(v.item()):.9g}f" for v in values[:4])
        held = ", ".join(v if "." in v or "e" in v else v[:-1] + ".0f" for v in held.split(", "))
        self.lines.append(f"fire({x}, {self.names[name]}, v{place}, {size}, {held});")

    @staticmethod
    def _refused(name: str, needs: str, got: str) -> UnsupportedError:
        return UnsupportedError(f"write_c needs {needs} in {name!r}, got {got}. Leave it out.")
