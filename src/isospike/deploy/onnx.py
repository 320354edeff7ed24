"""A collapsed port as an ONNX graph, which other runtimes run with the same integers.

What enters a product is whole numbers, and so are the weights, in steps of an output: every sum is
a whole number below 2^24, which float32 and every order of addition hold exactly. The functions
between the products (softmax's exponential, normalisation, activation) are the runtime's own, whose
last bit may differ from torch's; a value that stands between two whole numbers then falls on the
other side. The package ``onnx`` is in the extra of that name.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isospike.errors import MissingExtraError, RangeError, UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.product import EXACT_LEVELS, SpikingProduct
from isospike.porting.run import ATTRIBUTE
from isospike.porting.sites import MOST_SHARES, SHARES, Site
from isospike.report.files import write_file

OPSET, OLDEST = 20, 17
LEAST_GAIN = 1e-30
END = np.iinfo(np.int64).max  # of a slice


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
        """``x`` in the type ``FLOAT``, ``DOUBLE`` or ``INT64``."""
        return self.add("Cast", x, to=getattr(self.onnx.TensorProto, kind))


def write_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    strict: bool = False,
    integers: bool = False,
) -> None:
    """Write a port as an ONNX file; batch and length are free.

    Inputs are ``input_ids`` and ``attention_mask``, int64 ``[batch, length]``; outputs
    ``last_hidden_state`` and, if the model has a pooler, ``pooler_output``.

    Args:
        model: A port of a ``BertModel``, collapsed.
        path: The file.
        opset: Version of ONNX's operators, from 17.
        strict: Whether to refuse functions in float, which a runtime computes its own way.
        integers: Whether the integers of every site are outputs too, by the name of the site, for
            comparison.

    Raises:
        UnsupportedError: The model is no port of a BertModel, its functions run on spikes, or it
            has functions in float and ``strict`` is asked for.
        RangeError: The opset is too old, or a code has more levels than float32 sums hold.
        InputError: The file cannot be written.
        MissingExtraError: The package onnx is not installed.

    >>> port = isospike.port(model, batches)  # doctest: +SKIP
    >>> write_onnx(port.model, "port.onnx")  # doctest: +SKIP
    """
    try:
        onnx = import_module("onnx")
    except ImportError:
        raise MissingExtraError(
            "write_onnx needs the package onnx, got none. Install isospike[onnx]."
        ) from None
    if opset < OLDEST:
        raise RangeError(
            f"write_onnx needs an opset from {OLDEST}, got {opset}. {OPSET} is the usual."
        )
    _check(model, strict)
    write_file(Path(path), BertGraph(onnx, model, integers).build(opset))


def _check(model: nn.Module, strict: bool) -> None:
    run = getattr(model, ATTRIBUTE, None)
    name = type(model).__name__
    if run is None or name != "BertModel":
        got = f"a port of {name}" if run is not None else f"a {name} that is no port"
        raise UnsupportedError(
            f"write_onnx needs a port of a BertModel, got {got}. Port an encoder such as minilm."
        )
    if run.mode.spiking:
        raise UnsupportedError(
            "write_onnx needs functions='float', got 'spiking'. Port again without --functions."
        )
    if strict:
        raise UnsupportedError(
            "write_onnx needs no functions in float for strict, got softmax, normalisation and "
            "activations of a port with functions='float'. Leave strict out."
        )
    for module in model.modules():
        for site in module.sites if isinstance(module, SpikingProduct) else ():
            if site.code.levels > EXACT_LEVELS or site.octaves:
                raise RangeError(
                    f"write_onnx needs codes of at most {EXACT_LEVELS} levels, got "
                    f"{site.code.levels} at {site.name!r}. Port with 8 steps or fewer."
                )


class BertGraph:
    """The graph of a port of a BertModel.

    Args:
        onnx: The package.
        model: The port.
        integers: Whether the integers are outputs.
    """

    def __init__(self, onnx: Any, model: Any, integers: bool) -> None:
        self.onnx, self.model, self.integers = onnx, model, integers
        self.graph = Graph(onnx)
        self.seen: dict[str, str] = {}
        self.outputs: list[tuple[str, int]] = []
        self.last: tuple[Site, str, tuple[str, str | None]] | None = None

    def build(self, opset: int) -> bytes:
        """The file's bytes."""
        graph, helper, kinds = self.graph, self.onnx.helper, self.onnx.TensorProto
        mask = self._mask()
        x = self._embed()
        for layer in self.model.encoder.layer:
            x = self._layer(layer, x, mask)
        graph.add("Identity", x, name="last_hidden_state")
        found = [("last_hidden_state", ["batch", "length", self.model.config.hidden_size])]
        if self.model.pooler is not None:
            first = graph.add("Gather", x, graph.value(0, np.int64), axis=1)
            pooled = self._product(self.model.pooler.dense, first)
            graph.add("Tanh", pooled, name="pooler_output")
            found.append(("pooler_output", ["batch", self.model.config.hidden_size]))
        ends = [helper.make_tensor_value_info(n, kinds.FLOAT, shape) for n, shape in found]
        ends += [
            helper.make_tensor_value_info(n, kinds.FLOAT, [None] * dims) for n, dims in self.outputs
        ]
        names = ("input_ids", "attention_mask")
        shape = ["batch", "length"]
        starts = [helper.make_tensor_value_info(n, kinds.INT64, shape) for n in names]
        made = helper.make_graph(
            graph.nodes, "isospike", starts, ends, list(graph.constants.values())
        )
        versions = [helper.make_opsetid("", opset)]
        model = helper.make_model(made, opset_imports=versions, producer_name="isospike")
        model.ir_version = 9
        self.onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    def _mask(self) -> str:
        """What is added to the scores, ``[batch, 1, 1, length]``."""
        graph = self.graph
        kept = graph.cast("attention_mask", "FLOAT")
        least = torch.finfo(torch.float32).min
        hidden = graph.add("Mul", graph.add("Sub", graph.value(1.0), kept), graph.value(least))
        return graph.add("Unsqueeze", hidden, graph.whole(1, 2))

    def _embed(self) -> str:
        graph, embeddings = self.graph, self.model.embeddings
        words = graph.add("Gather", graph.value(embeddings.word_embeddings.weight), "input_ids")
        first = graph.value(embeddings.token_type_embeddings.weight[0])
        shape = graph.add("Shape", "input_ids", start=1, end=2)
        table = graph.value(embeddings.position_embeddings.weight)
        places = graph.add("Slice", table, graph.whole(0), shape, graph.whole(0))
        x = graph.add("Add", graph.add("Add", words, first), places)
        return self._norm(embeddings.LayerNorm, x)

    def _norm(self, norm: Any, x: str) -> str:
        weight, bias = (self.graph.value(value) for value in (norm.weight, norm.bias))
        return self.graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def _layer(self, layer: Any, x: str, mask: str) -> str:
        graph, attention = self.graph, layer.attention
        q, k, v = (
            self._product(getattr(attention.self, name), x) for name in ("query", "key", "value")
        )
        y = self._attention(attention.self.isospike_attention, q, k, v, mask)
        y = self._product(attention.output.dense, y)
        x = self._norm(attention.output.LayerNorm, graph.add("Add", y, x))
        y = self._product(layer.intermediate.dense, x)
        y = self._product(layer.output.dense, self._activation(layer.intermediate, y))
        return self._norm(layer.output.LayerNorm, graph.add("Add", y, x))

    def _activation(self, part: Any, x: str) -> str:
        kind = type(part.intermediate_act_fn).__name__
        graph = self.graph
        if kind == "ReLU":
            return graph.add("Relu", x)
        if kind != "GELUActivation":
            raise UnsupportedError(
                f"write_onnx needs GELU or ReLU, got {kind}. Port a model with one of them."
            )
        raised = graph.add("Erf", graph.add("Mul", x, graph.value(0.5**0.5)))
        half = graph.add("Mul", x, graph.value(0.5))
        return graph.add("Mul", half, graph.add("Add", raised, graph.value(1.0)))

    def _product(self, product: Any, x: str) -> str:
        """(1) of :class:`SpikingProduct`: ``bias + gain W N``."""
        if not isinstance(product, SpikingProduct):
            raise UnsupportedError(
                f"write_onnx needs spiking products everywhere, got a {type(product).__name__}. "
                "Port the whole model."
            )
        graph, site = self.graph, product.site
        if self.last is None or self.last[:2] != (site, x):
            self.last = (site, x, self._read(site, x))
        n, gain = self.last[2]
        if product.twins.numel():
            twins = graph.value(product.twins, np.int64)
            n = graph.add("Concat", n, graph.add("Gather", n, twins, axis=-1), axis=-1)
        y = graph.add("MatMul", n, graph.value(product.weight.T))
        y = y if gain is None else graph.add("Mul", y, gain)
        return graph.add("Add", graph.value(product.bias), y)

    def _read(self, site: Site, x: str) -> tuple[str, str | None]:
        """The integers of a site and the gain, as :meth:`Site.read` finds them."""
        graph, levels = self.graph, site.code.levels
        if not site.dynamic:
            factor = levels / site.scale
            shifted = graph.add(
                "Add", graph.add("Mul", x, graph.value(factor)),
                graph.value(0.5 - site.offset * factor),
            )  # fmt: skip
            ends = (graph.value(float(end)) for end in (site.code.low * levels, levels))
            return self._keep(site, graph.add("Clip", graph.add("Floor", shifted), *ends)), None
        inverse = 1 / site.scale
        u = graph.add("Mul", x, graph.value(inverse))
        u = graph.add("Add", u, graph.value(-site.offset * inverse))
        axis = graph.whole(-1)
        top = graph.add("ReduceMax", u, axis)
        gain = graph.add("Max", top, graph.add("Neg", graph.add("ReduceMin", u, axis)))
        gain = graph.add("Max", gain, graph.value(LEAST_GAIN))
        if site.kind == "value":
            parts = graph.add("Floor", graph.add("Div", graph.value(float(SHARES)), gain))
            parts = graph.add("Clip", parts, graph.value(1.0), graph.value(float(MOST_SHARES)))
            gain = graph.add("Div", graph.value(float(SHARES)), parts)
        scaled = graph.add("Mul", u, graph.add("Div", graph.value(float(levels)), gain))
        n = graph.add("Round", scaled)
        if site.kind == "value":
            n = graph.add("Clip", n, graph.value(-float(levels)), graph.value(float(levels)))
        return self._keep(site, n), gain

    def _keep(self, site: Site, n: str) -> str:
        if not self.integers:
            return n
        dims = 4 if site.kind in ("query", "key", "value", "probability") else 3
        dims = 2 if site.name.startswith("pooler") else dims
        self.outputs.append((site.name, dims))
        return self.graph.add("Identity", n, name=site.name)

    def _attention(self, attention: SpikingAttention, q: str, k: str, v: str, mask: str) -> str:
        """(1) to (3) of :class:`SpikingAttention`."""
        graph = self.graph
        heads, _, channels = attention.query.offset.shape
        shape = graph.whole(0, 0, heads, channels)
        q, k, v = (
            graph.add("Transpose", graph.add("Reshape", x, shape), perm=[0, 2, 1, 3])
            for x in (q, k, v)
        )
        (n_q, gain_q), (n_k, gain_k), (n_v, gain_v) = (
            self._read(site, x)
            for site, x in ((attention.query, q), (attention.key, k), (attention.value, v))
        )
        if gain_q is None or gain_k is None or gain_v is None:
            raise UnsupportedError(
                "write_onnx needs dynamic ranges in attention, got static ones. Port with "
                "--ranges dynamic."
            )
        scaling = channels**-0.5
        unit = graph.value(attention.unit * scaling)
        stored = graph.add("Mul", n_q, graph.value(attention.gain))
        z = graph.add("MatMul", stored, self._turn(n_k))
        drive = self._turn(graph.add("MatMul", n_k, graph.value(attention.current)))
        drive = graph.add("Mul", graph.add("Mul", drive, unit), self._turn(gain_k))
        drive = graph.add("Add", drive, self._turn(graph.add("Log", gain_v)))
        z = graph.add("Mul", z, graph.add("Mul", gain_q, unit))
        z = graph.add("Add", drive, graph.add("Mul", z, self._turn(gain_k)))
        z = graph.add("Add", z, mask)
        most = graph.add("ReduceMax", z, graph.whole(-1))
        e = graph.add("Exp", graph.add("Sub", z, most))
        n_e, _ = self._read(attention.probability, e)
        share = graph.add("Round", graph.add("Div", graph.value(float(SHARES)), gain_v))
        store = graph.cast(graph.add("Concat", n_v, share, axis=-1), "DOUBLE")
        y = graph.add("MatMul", graph.cast(n_e, "DOUBLE"), store)
        last = graph.whole(-1)
        weighted = graph.add("Slice", y, graph.whole(0), last, last)
        total = graph.add("Slice", y, last, graph.whole(END), last)
        mean = graph.cast(graph.add("Div", weighted, total), "FLOAT")
        amplitude = graph.value(attention.value.amplitude * SHARES)
        y = graph.add("Add", graph.value(attention.value.offset), graph.add("Mul", mean, amplitude))
        y = graph.add("Transpose", y, perm=[0, 2, 1, 3])
        return graph.add("Reshape", y, graph.whole(0, 0, heads * channels))

    def _turn(self, x: str) -> str:
        return self.graph.add("Transpose", x, perm=[0, 1, 3, 2])
