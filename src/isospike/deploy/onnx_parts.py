"""The parts of a collapsed port in ONNX's operators: sites, products, attention, functions.

What enters a product is whole numbers, and so are the weights, in steps of an output: every sum is
a whole number below 2^24, which float32 and every order of addition hold exactly. Functions on
spikes are tables, shifts by powers of two and sums of whole numbers, in the order of torch's own
operations, so that a runtime computes the same bits. Functions in float are the runtime's own.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from isospike.circuits.arithmetic import LOG2E, OCTAVES, REACH, exp2_negative
from isospike.circuits.few_spike import BUILTIN
from isospike.circuits.integers import CELLS, lookup_table
from isospike.circuits.octaves import HIGHEST, LOWEST
from isospike.errors import UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.functions import SpikingActivation, SpikingNorm
from isospike.porting.product import SpikingProduct
from isospike.porting.sites import MOST_SHARES, SHARES, VALUE_HIGHEST, VALUE_LOWEST, Site
from isospike.porting.tables import table_bits, whole_rows

LEAST_GAIN = 1e-30
END = np.iinfo(np.int64).max  # of a slice
LARGEST = 52  # bits of a sum that an inverse is taken of


class Gain(NamedTuple):
    """A site's gain in a graph, by name.

    Attributes:
        factor: It.
        octaves: Its octaves; an empty string if it is any number.
    """

    factor: str
    octaves: str = ""


class Graph:
    """Nodes and constants of an ONNX graph, made one after the other; values go by name.

    Args:
        onnx: The package.
    """

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def value(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"c{len(self.constants)}"
        held = np.ascontiguousarray(array.astype(dtype)).reshape(array.shape)
        self.constants[name] = self.onnx.numpy_helper.from_array(held, name)
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **options: Any) -> str:
        """A node with one output, and the name of that."""
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name, **options))
        return name

    def whole(self, *numbers: int) -> str:
        """A constant of whole numbers."""
        return self.value(list(numbers), np.int64)

    def cast(self, x: str, kind: str) -> str:
        """``x`` in the type ``FLOAT``, ``DOUBLE`` or ``INT32``."""
        return self.add("Cast", x, to=getattr(self.onnx.TensorProto, kind))

    def clip(self, x: str, low: float, high: float, dtype: Any = np.float32) -> str:
        """``x`` between two ends."""
        return self.add("Clip", x, self.value(low, dtype), self.value(high, dtype))

    def take(self, table: Tensor, index: str, dtype: Any = np.float32) -> str:
        """Entries of a table at whole numbers in float; of runtimes' two ways, the fast one."""
        flat = self.add("Reshape", self.cast(index, "INT32"), self.whole(-1))
        found = self.add("GatherElements", self.value(table, dtype), flat, axis=0)
        return self.add("Reshape", found, self.add("Shape", index))

    def turn(self, x: str) -> str:
        """The last two axes of four, exchanged."""
        return self.add("Transpose", x, perm=[0, 1, 3, 2])

    def slice(self, x: str, start: int, end: int) -> str:
        """Some places of the last axis."""
        return self.add("Slice", x, self.whole(start), self.whole(end), self.whole(-1))

    def above(self, x: str, thresholds: Tensor, dtype: Any = np.float32, *, equal: bool) -> str:
        """How many thresholds are below ``x [..., 1]``, in float32."""
        kind = "GreaterOrEqual" if equal else "Greater"
        over = self.cast(self.add(kind, x, self.value(thresholds, dtype)), "FLOAT")
        return self.add("ReduceSum", over, self.whole(-1))


class PortGraph(Graph):
    """A graph of a port's parts.

    Args:
        onnx: The package.
        integers: Whether the integers of every site are outputs.
    """

    def __init__(self, onnx: Any, integers: bool) -> None:
        super().__init__(onnx)
        self.integers = integers
        self.outputs: list[tuple[str, int]] = []
        self._last: tuple[Site, str, tuple[str, Gain | None]] | None = None

    # ---------------------------------------------------------------------------- sites

    def read(self, site: Site, x: str) -> tuple[str, Gain | None]:
        """The integers of a site and the gain, as :meth:`Site.read` finds them."""
        levels = float(site.code.levels)
        if not site.dynamic:
            factor = levels / site.scale
            scaled = self.add("Mul", x, self.value(factor))
            shifted = self.add("Add", scaled, self.value(0.5 - site.offset * factor))
            n = self.clip(self.add("Floor", shifted), float(site.code.low * levels), levels)
            return self._keep(site, n), None
        inverse = 1 / site.scale
        u = self.add("Mul", x, self.value(inverse))
        u = self.add("Add", u, self.value(-site.offset * inverse))
        top, least = (self.add(f"Reduce{e}", u, self.whole(-1)) for e in ("Max", "Min"))
        most = self.add("Max", top, self.add("Neg", least))
        if site.octaves:
            gain = self._octaves(site, most)
            scaled = self.add("Mul", u, self.take(levels * torch.exp2(-_exponents()), gain.octaves))
        else:
            gain = self._any_gain(site, most)
            scaled = self.add("Mul", u, self.add("Div", self.value(levels), gain.factor))
        n = self.add("Round", scaled)
        if site.kind == "value" or site.octaves:
            n = self.clip(n, -levels, levels)
        return self._keep(site, n), gain

    def _any_gain(self, site: Site, most: str) -> Gain:
        gain = self.add("Max", most, self.value(LEAST_GAIN))
        if site.kind == "value":
            parts = self.add("Floor", self.add("Div", self.value(float(SHARES)), gain))
            parts = self.clip(parts, 1.0, float(MOST_SHARES))
            gain = self.add("Div", self.value(float(SHARES)), parts)
        return Gain(gain)

    def _octaves(self, site: Site, most: str) -> Gain:
        """As :func:`isospike.circuits.octaves.count_octaves` finds them."""
        count = self.above(most, torch.exp2(_exponents()[:-1]), equal=False)
        if site.kind == "value":
            low, high = (float(end - LOWEST) for end in (VALUE_LOWEST, VALUE_HIGHEST))
            count = self.clip(count, low, high)
        return Gain(self.take(torch.exp2(_exponents()), count), count)

    def _log(self, gain: Gain) -> str:
        if not gain.octaves:
            return self.add("Log", gain.factor)
        exponent = self.add("Add", gain.octaves, self.value(float(LOWEST)))
        return self.add("Mul", exponent, self.value(math.log(2)))

    def _keep(self, site: Site, n: str) -> str:
        if not self.integers:
            return n
        dims = 4 if site.kind in ("query", "key", "value", "probability") else 3
        dims = 2 if site.name.startswith("pooler") else dims
        self.outputs.append((site.name, dims))
        return self.add("Identity", n, name=site.name)

    # ------------------------------------------------------------------------- products

    def product(self, product: Any, x: str) -> str:
        """(1) of :class:`SpikingProduct`: ``bias + gain W N``."""
        if not isinstance(product, SpikingProduct):
            raise UnsupportedError(
                f"write_onnx needs spiking products everywhere, got a {type(product).__name__}. "
                "Port the whole model."
            )
        site = product.site
        if self._last is None or self._last[:2] != (site, x):
            self._last = (site, x, self.read(site, x))
        n, gain = self._last[2]
        if product.twins.numel():
            twins = self.value(product.twins, np.int64)
            n = self.add("Concat", n, self.add("Gather", n, twins, axis=-1), axis=-1)
        if gain is not None and gain.octaves:  # a power of two may multiply before the sum
            n = self.add("Mul", n, gain.factor)
        y = self.add("MatMul", n, self._weight(product))
        if gain is not None and not gain.octaves:
            y = self.add("Mul", y, gain.factor)
        return self.add("Add", self.value(product.bias), y)

    def _weight(self, product: SpikingProduct) -> str:
        """``[inputs, outputs]``, of 8 bits in bytes and one quantum for each output.

        No DequantizeLinear: runtimes join it to the product, and then round what enters.
        """
        if not product.bytewise:
            return self.value(product.weight.T)
        quantum = product.quantum[:, 0]
        whole = self.value((product.weight.T / quantum).round(), np.int8)
        return self.add("Mul", self.cast(whole, "FLOAT"), self.value(quantum))

    def look_up(self, table: nn.Embedding, index: str) -> str:
        """Rows of a table, of bytes with a quantum each where it was rounded to those."""
        bits = table_bits(table)
        if not 0 < bits <= 8:
            return self.add("Gather", self.value(table.weight), index)
        whole, quantum = whole_rows(table.weight.detach(), bits)
        rows = self.cast(self.add("Gather", self.value(whole, np.int8), index), "FLOAT")
        return self.add("Mul", rows, self.add("Gather", self.value(quantum), index))

    # ------------------------------------------------------------------------ attention

    def split(self, x: str, heads: int, channels: int) -> str:
        """``[batch, tokens, heads channels]`` as ``[batch, heads, tokens, channels]``."""
        x = self.add("Reshape", x, self.whole(0, 0, heads, channels))
        return self.add("Transpose", x, perm=[0, 2, 1, 3])

    def join(self, x: str, width: int) -> str:
        """The other way round."""
        x = self.add("Transpose", x, perm=[0, 2, 1, 3])
        return self.add("Reshape", x, self.whole(0, 0, width))

    def attention(self, attention: SpikingAttention, q: str, k: str, v: str, mask: str) -> str:
        """(1) to (3) of :class:`SpikingAttention`, of ``[batch, heads, tokens, channels]``."""
        heads = len(attention.key.offset)
        groups = len(attention.query.offset) // heads
        (n_q, gain_q), (n_k, gain_k), (n_v, gain_v) = (
            self.read(site, x)
            for site, x in ((attention.query, q), (attention.key, k), (attention.value, v))
        )
        if gain_q is None or gain_k is None or gain_v is None or attention.absolute:
            raise UnsupportedError(
                "write_onnx needs dynamic ranges in attention without softcap and sinks, got "
                "others. Port with --ranges dynamic."
            )
        n_k, n_v = (self._repeat(n, heads, groups) for n in (n_k, n_v))
        gain_k, gain_v = (
            Gain(*(self._repeat(n, heads, groups) for n in gain)) for gain in (gain_k, gain_v)
        )
        unit = self.value(attention.unit * attention.query.offset.shape[-1] ** -0.5)
        stored = self.add("Mul", n_q, self.value(attention.gain))
        z = self.add("MatMul", stored, self.turn(n_k))
        drive = self.turn(self.add("MatMul", n_k, self.value(attention.current)))
        drive = self.add("Mul", drive, unit)
        z = self._with_gains(z, drive, unit, gain_q, gain_k, self.turn(self._log(gain_v)))
        n_e = self._numerator(attention, self.add("Add", z, mask))
        share = self.add("Round", self.add("Div", self.value(float(SHARES)), gain_v.factor))
        store = self.cast(self.add("Concat", n_v, share, axis=-1), "DOUBLE")
        y = self.add("MatMul", self.cast(n_e, "DOUBLE"), store)
        weighted, total = self.slice(y, 0, -1), self.slice(y, -1, END)
        if attention.run.mode.spiking:
            mean = self.add("Mul", weighted, self._inverse(total, LARGEST))
        else:
            mean = self.add("Div", weighted, total)
        amplitude = (attention.value.amplitude * SHARES).repeat_interleave(groups, 0)
        offset = attention.value.offset.repeat_interleave(groups, 0)
        y = self.add("Mul", self.cast(mean, "FLOAT"), self.value(amplitude))
        return self.add("Add", self.value(offset), y)

    def _repeat(self, x: str, heads: int, groups: int) -> str:
        """One head's store serves a group of queries."""
        if groups == 1 or not x:
            return x
        every = torch.arange(heads).repeat_interleave(groups)
        return self.add("Gather", x, self.value(every, np.int64), axis=1)

    def _with_gains(
        self, z: str, drive: str, unit: str, gain_q: Gain, gain_k: Gain, logs: str
    ) -> str:
        """``gain_k (gain_q unit z + drive) + logs``, in the order of torch's operations."""
        along = self.turn(gain_k.factor)
        z = self.add("Mul", z, self.add("Mul", gain_q.factor, unit))
        if gain_q.octaves:
            return self.add("Add", self.add("Mul", self.add("Add", z, drive), along), logs)
        drive = self.add("Add", self.add("Mul", drive, along), logs)
        return self.add("Add", drive, self.add("Mul", z, along))

    def _numerator(self, attention: SpikingAttention, z: str) -> str:
        """The integers of (2): softmax without its division."""
        site, most = attention.probability, self.whole(-1)
        if not attention.run.mode.spiking:
            e = self.add("Exp", self.add("Sub", z, self.add("ReduceMax", z, most)))
            return self.read(site, e)[0]
        cells = self.add("Floor", self.add("Mul", z, self.value(LOG2E * CELLS)))
        top = self.clip(self.add("ReduceMax", cells, most), -float(REACH), REACH - 1.0)
        silent = OCTAVES * CELLS
        below = self.clip(self.add("Sub", top, cells), 0.0, float(silent))
        every = exp2_negative(torch.arange(silent + 1, dtype=torch.float32))
        return self._keep(site, self.take(site.read(every).value, below))

    # ------------------------------------------------------------------------ functions

    def norm(self, norm: Any, x: str) -> str:
        """A LayerNorm or RMSNorm, in float or on spikes."""
        if isinstance(norm, SpikingNorm):
            return self._spiking_norm(norm, x)
        weight = self.value(norm.weight)
        if isinstance(norm, nn.LayerNorm):
            bias = self.value(norm.bias)
            return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)
        mean = self.add("ReduceMean", self.add("Mul", x, x), self.whole(-1))
        size = self.add("Sqrt", self.add("Add", mean, self.value(norm.variance_epsilon)))
        return self.add("Mul", weight, self.add("Div", x, size))

    def _spiking_norm(self, norm: SpikingNorm, x: str) -> str:
        """:func:`isospike.circuits.arithmetic.layer_norm`."""
        digits, width = norm.digits, norm.width
        n = self.add("Mul", x, self.value(1 / digits.grid))
        n = self.add("Floor", self.add("Add", n, self.value(0.5)))
        c = self.clip(n, -float(digits.largest), float(digits.largest))
        if norm.centre:
            total = self.add("ReduceSum", self.cast(c, "DOUBLE"), self.whole(-1))
            total = self.add("Add", total, self.value(width // 2, np.float64))
            mean = self.add("Floor", self.add("Div", total, self.value(width, np.float64)))
            c = self.add("Sub", c, self.cast(mean, "FLOAT"))
        wide = self.cast(c, "DOUBLE")
        squares = self.add("ReduceSum", self.add("Mul", wide, wide), self.whole(-1))
        current = max(1.0, float(round(width * norm.eps / digits.grid**2)))
        squares = self.add("Add", squares, self.value(current, np.float64))
        factor = self.cast(self._inverse(squares, LARGEST, root=True), "FLOAT")
        weight = torch.ones(width) if norm.weight is None else norm.weight
        gain = self.value(weight * math.sqrt(width))
        y = self.add("Mul", self.add("Mul", c, factor), gain)
        return y if norm.bias is None else self.add("Add", y, self.value(norm.bias))

    def _inverse(self, total: str, bits: int, *, root: bool = False) -> str:
        """:func:`isospike.circuits.arithmetic.inverse` of whole numbers from 1, in float64."""
        powers = torch.exp2(torch.arange(bits + 1, dtype=torch.float64))
        k = self.above(total, powers[1:], np.float64, equal=True)
        m = self.add("Mul", total, self.take(1 / powers, k, np.float64))
        cells = self.add("Sub", m, self.value(1.0, np.float64))
        cells = self.add("Floor", self.add("Mul", cells, self.value(float(CELLS), np.float64)))
        if not root:
            found = self.take(lookup_table("reciprocal")[0], cells, np.float64)
            return self.add("Mul", found, self.take(1 / powers, k, np.float64))
        tables = [lookup_table("rsqrt", scale)[0] for scale in (1.0, math.sqrt(0.5))]
        every = torch.arange(bits + 1, dtype=torch.float64)
        place = self.add("Add", cells, self.take(every % 2 * len(tables[0]), k, np.float64))
        found = self.take(torch.cat(tables), place, np.float64)
        halves = torch.exp2(-(every / 2).floor())
        return self.add("Mul", found, self.take(halves, k, np.float64))

    def activation(self, module: Any, x: str) -> str:
        """An activation function, in float or on spikes."""
        if isinstance(module, SpikingActivation):
            return self._spiking_activation(module, x)
        kind = type(module).__name__
        if kind == "ReLU":
            return self.add("Relu", x)
        if kind == "Tanh":
            return self.add("Tanh", x)
        if kind in ("SiLUActivation", "SiLU"):
            return self.add("Mul", x, self.add("Sigmoid", x))
        if kind != "GELUActivation":
            raise UnsupportedError(
                f"write_onnx needs GELU, SiLU or ReLU, got {kind}. Port a model with one of them."
            )
        raised = self.add("Erf", self.add("Mul", x, self.value(0.5**0.5)))
        half = self.add("Mul", x, self.value(0.5))
        return self.add("Mul", half, self.add("Add", raised, self.value(1.0)))

    def _spiking_activation(self, module: SpikingActivation, x: str) -> str:
        """(1) of :class:`isospike.porting.functions.ActivationCircuit`."""
        circuit = module.circuit
        if circuit.neuron is None:
            return self.add("Relu", x)
        per_unit = CELLS * circuit.scale / BUILTIN[circuit.neuron][2]
        cells = self.add("Mul", self.add("Abs", x), self.value(per_unit))
        table = lookup_table(circuit.neuron)[0].float()
        weight = circuit.odd or circuit.even
        g = self.take(table * weight, self.clip(cells, 0.0, float(CELLS)))
        if not circuit.odd:
            return self.add("Add", self.add("Relu", x), g)
        g = self.add("Where", self.add("Less", x, self.value(0.0)), self.add("Neg", g), g)
        return self.add("Add", g, self.value(circuit.shift))


def _exponents() -> Tensor:
    """Of the gains that are powers of two."""
    return torch.arange(LOWEST, HIGHEST + 1, dtype=torch.float32)
