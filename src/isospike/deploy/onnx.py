"""A collapsed port as an ONNX graph, which other runtimes run with the same integers.

Sums of whole numbers are the same in every runtime. Where the port's functions run on spikes, all
the rest is too, bit for bit. Functions in float (softmax's exponential, normalisation, activation)
are the runtime's own, whose last bit may differ from torch's; a value that stands between two whole
numbers then falls on the other side. The package ``onnx`` is in the extra of that name.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isospike.deploy.onnx_parts import END, PortGraph
from isospike.errors import MissingExtraError, RangeError, UnsupportedError
from isospike.porting.product import EXACT_LEVELS, SpikingProduct
from isospike.porting.run import ATTRIBUTE
from isospike.report.files import write_file

OPSET, OLDEST = 20, 18
LEAST = torch.finfo(torch.float32).min


def write_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    strict: bool = False,
    integers: bool = False,
) -> None:
    """Write a port as an ONNX file; batch and length are free.

    Inputs are ``input_ids`` and ``attention_mask``, int64 ``[batch, length]``. Of an encoder, the
    outputs are ``last_hidden_state`` and, if the model has a pooler, ``pooler_output``. A decoder
    gives ``logits``, and reads what it keeps of earlier tokens: ``past_key.0``, ``past_value.0``
    and so on, ``[batch, heads, before, channels]``, of length 0 at first, whose successors it gives
    as ``present_key.0`` and so on. Its ``attention_mask`` covers earlier tokens too.

    Args:
        model: A port of a ``BertModel`` or a ``LlamaForCausalLM``, collapsed.
        path: The file.
        opset: Version of ONNX's operators, from 18.
        strict: Whether to refuse functions in float, which a runtime computes its own way.
        integers: Whether the integers of every site are outputs too, by the name of the site, for
            comparison.

    Raises:
        UnsupportedError: The model is no port of one of these, its functions on spikes have no
            nodes, or it has functions in float and ``strict`` is asked for.
        RangeError: The opset is too old, or a code has more levels than float32 sums hold.
        InputError: The file cannot be written.
        MissingExtraError: The package onnx is not installed.

    >>> port = isospike.port(model, batches)  # doctest: +SKIP
    >>> write_onnx(port.model, "port.onnx")  # doctest: +SKIP
    """
    onnx = find_onnx("write_onnx")
    if opset < OLDEST:
        raise RangeError(
            f"write_onnx needs an opset from {OLDEST}, got {opset}. {OPSET} is the usual."
        )
    kind = _check(model, strict)
    write_file(Path(path), kind(onnx, model, integers).build(opset))


def find_onnx(owner: str) -> Any:
    """The package onnx.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module("onnx")
    except ImportError:
        raise MissingExtraError(
            f"{owner} needs the package onnx, got none. Install isospike[onnx]."
        ) from None


def _check(model: nn.Module, strict: bool) -> "type[ModelGraph]":
    run = getattr(model, ATTRIBUTE, None)
    name = type(model).__name__
    if run is None or name not in KINDS:
        got = f"a port of {name}" if run is not None else f"a {name} that is no port"
        raise UnsupportedError(
            f"write_onnx needs a port of a {' or '.join(KINDS)}, got {got}. Port one of these, "
            "such as minilm."
        )
    if strict and not run.mode.spiking:
        raise UnsupportedError(
            "write_onnx needs no functions in float for strict, got softmax, normalisation and "
            "activations of a port with functions='float'. Port with --functions spiking, or leave "
            "strict out."
        )
    if run.mode.spiking and not KINDS[name].spiking:
        raise UnsupportedError(
            f"write_onnx needs functions='float' of a {name}, got 'spiking'. Port again without "
            "--functions."
        )
    for module in model.modules():
        for site in module.sites if isinstance(module, SpikingProduct) else ():
            if site.code.levels > EXACT_LEVELS:
                raise RangeError(
                    f"write_onnx needs codes of at most {EXACT_LEVELS} levels, got "
                    f"{site.code.levels} at {site.name!r}. Port with 8 steps or fewer."
                )
    return KINDS[name]


class ModelGraph(PortGraph):
    """The graph of a port.

    Args:
        onnx: The package.
        model: The port.
        integers: Whether the integers are outputs.

    Attributes:
        spiking: Whether functions on spikes are known of this kind.
    """

    spiking = False

    def __init__(self, onnx: Any, model: Any, integers: bool) -> None:
        super().__init__(onnx, integers)
        self.model = model
        self.inputs: list[tuple[str, str, list[Any]]] = [
            ("input_ids", "INT64", ["batch", "length"]),
            ("attention_mask", "INT64", ["batch", self.seen]),
        ]

    seen = "length"

    def parts(self) -> list[tuple[str, list[Any]]]:
        """Make the nodes.

        Returns:
            Name and shape of each output.
        """
        raise NotImplementedError

    def build(self, opset: int) -> bytes:
        """The file's bytes."""
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        found: list[tuple[str, list[Any]]] = self.parts()
        found += [(name, [None] * dims) for name, dims in self.outputs]
        ends = [helper.make_tensor_value_info(n, kinds.FLOAT, shape) for n, shape in found]
        starts = [
            helper.make_tensor_value_info(n, getattr(kinds, kind), shape)
            for n, kind, shape in self.inputs
        ]
        made = helper.make_graph(
            self.nodes, "isospike", starts, ends, list(self.constants.values())
        )
        versions = [helper.make_opsetid("", opset)]
        model = helper.make_model(made, opset_imports=versions, producer_name="isospike")
        model.ir_version = 9
        self.onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    def hide(self, kept: str) -> str:
        """What is added to the scores: 0 where ``kept`` is 1, else the least number."""
        hidden = self.add("Sub", self.value(1.0), kept)
        return self.add("Mul", hidden, self.value(LEAST))


class BertGraph(ModelGraph):
    """The graph of a port of a BertModel."""

    spiking = True

    def parts(self) -> list[tuple[str, list[Any]]]:
        """Make the nodes."""
        model, width = self.model, self.model.config.hidden_size
        kept = self.cast("attention_mask", "FLOAT")
        mask = self.hide(self.add("Unsqueeze", kept, self.whole(1, 2)))
        x = self._embed(model.embeddings)
        for layer in model.encoder.layer:
            x = self._layer(layer, x, mask)
        self.add("Identity", x, name="last_hidden_state")
        found: list[tuple[str, list[Any]]] = [("last_hidden_state", ["batch", "length", width])]
        if model.pooler is not None:
            first = self.add("Gather", x, self.value(0, np.int64), axis=1)
            pooled = self.activation(
                model.pooler.activation, self.product(model.pooler.dense, first)
            )
            self.add("Identity", pooled, name="pooler_output")
            found.append(("pooler_output", ["batch", width]))
        return found

    def _embed(self, embeddings: Any) -> str:
        words = self.look_up(embeddings.word_embeddings, "input_ids")
        first = self.value(embeddings.token_type_embeddings.weight[0])
        shape = self.add("Shape", "input_ids", start=1, end=2)
        table = self.value(embeddings.position_embeddings.weight)
        places = self.add("Slice", table, self.whole(0), shape, self.whole(0))
        x = self.add("Add", self.add("Add", words, first), places)
        return self.norm(embeddings.LayerNorm, x)

    def _layer(self, layer: Any, x: str, mask: str) -> str:
        attention, part = layer.attention, layer.attention.self
        heads, channels = part.num_attention_heads, part.attention_head_size
        q, k, v = (
            self.split(self.product(getattr(part, name), x), heads, channels)
            for name in ("query", "key", "value")
        )
        y = self.join(self.attention(part.isospike_attention, q, k, v, mask), heads * channels)
        y = self.product(attention.output.dense, y)
        x = self.norm(attention.output.LayerNorm, self.add("Add", y, x))
        y = self.activation(
            layer.intermediate.intermediate_act_fn, self.product(layer.intermediate.dense, x)
        )
        y = self.product(layer.output.dense, y)
        return self.norm(layer.output.LayerNorm, self.add("Add", y, x))


class LlamaGraph(ModelGraph):
    """The graph of a port of a LlamaForCausalLM, with its cache."""

    seen = "seen"

    def parts(self) -> list[tuple[str, list[Any]]]:
        """Make the nodes."""
        model = self.model.model
        x = self.look_up(model.embed_tokens, "input_ids")
        cos, sin, mask = self._places()
        found: list[tuple[str, list[Any]]] = []
        for number, layer in enumerate(model.layers):
            part = layer.self_attn
            y = self.norm(layer.input_layernorm, x)
            y, kept = self._attend(part, y, (cos, sin), mask, str(number))
            x = self.add("Add", x, self.product(part.o_proj, y))
            found += kept
            y, mlp = self.norm(layer.post_attention_layernorm, x), layer.mlp
            gate = self.activation(mlp.act_fn, self.product(mlp.gate_proj, y))
            gated = self.add("Mul", gate, self.product(mlp.up_proj, y))
            x = self.add("Add", x, self.product(mlp.down_proj, gated))
        logits = self.product(self.model.lm_head, self.norm(model.norm, x))
        self.add("Identity", logits, name="logits")
        width = self.model.config.vocab_size
        return [("logits", ["batch", "length", width]), *found]

    def _places(self) -> tuple[str, str, str]:
        """Cosines and sines of the tokens' positions, and what is added to the scores."""
        count = self.model.config.max_position_embeddings
        every = torch.arange(count)[None]
        tables = self.model.model.rotary_emb(torch.zeros(1), every)
        seen = self.cast("attention_mask", "FLOAT")
        order = self.add("CumSum", "attention_mask", self.value(1, np.int64))
        order = self.add("Max", self.add("Sub", order, self.whole(1)), self.whole(0))
        length = self.add("Shape", "input_ids", start=1, end=2)
        own = [self.add("Neg", length), self.whole(END), self.whole(1)]
        places = self.add("Slice", order, *own)
        cos, sin = (
            self.add("Unsqueeze", self.add("Gather", self.value(t[0]), places), self.whole(1))
            for t in tables
        )
        one, zero = self.value(1, np.int64), self.value(0, np.int64)
        total = self.add("Squeeze", self.add("Shape", "attention_mask", start=1, end=2))
        keys = self.add("Range", zero, total, one)
        queries = self.add("Slice", keys, *own[:2], self.whole(0))
        queries = self.add("Unsqueeze", queries, self.whole(1))
        causal = self.cast(self.add("LessOrEqual", keys, queries), "FLOAT")
        kept = self.add("Unsqueeze", seen, self.whole(1, 2))
        return cos, sin, self.hide(self.add("Mul", causal, kept))

    def _attend(
        self, part: Any, x: str, turns: tuple[str, str], mask: str, number: str
    ) -> tuple[str, list[tuple[str, list[Any]]]]:
        """Attention over what is kept and what is new; and what is kept from now on."""
        attention, channels = part.isospike_attention, part.head_dim
        heads, stores = len(attention.query.offset), len(attention.key.offset)
        q = self._rotate(self.split(self.product(part.q_proj, x), heads, channels), turns)
        new = {
            "key": self._rotate(self.split(self.product(part.k_proj, x), stores, channels), turns),
            "value": self.split(self.product(part.v_proj, x), stores, channels),
        }
        shape = ["batch", stores, "before", channels]
        found = []
        for name, value in new.items():
            past, present = f"past_{name}.{number}", f"present_{name}.{number}"
            self.inputs.append((past, "FLOAT", shape))
            self.add("Concat", past, value, name=present, axis=2)
            found.append((present, ["batch", stores, self.seen, channels]))
        (k, _), (v, _) = found
        return self.join(self.attention(attention, q, k, v, mask), heads * channels), found

    def _rotate(self, x: str, turns: tuple[str, str]) -> str:
        """``x cos + half(x) sin``, where half exchanges the halves and turns the sign of one."""
        half = self.model.config.head_dim // 2
        other = self.add("Neg", self.slice(x, half, END))
        turned = self.add("Concat", other, self.slice(x, 0, half), axis=-1)
        return self.add("Add", self.add("Mul", x, turns[0]), self.add("Mul", turned, turns[1]))


KINDS: dict[str, type[ModelGraph]] = {"BertModel": BertGraph, "LlamaForCausalLM": LlamaGraph}
