"""Activations and attention maps of each layer during one forward pass, recorded by hooks only.

Three kinds of models are supported: those of transformers that use its attention interface
(BERT, GPT-2, Llama, ViT, ...), ports of them to spikes, and models that call torch's
``scaled_dot_product_attention`` (isospike's own, plain PyTorch). One layer's tensors are held at a
time, and the model is left as it was.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.hf.attention import routed
from isospike.hf.batches import batch_size, full_token_mask
from isospike.hf.modules import Product, layer_name, recognise
from isospike.models.gated_output import GatedOutputProjection
from isospike.porting.attention import SpikingAttention
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import Watcher
from isospike.ranks.norms import is_norm
from isospike.tensors import check_kind, check_tensor


@dataclass
class NormRecord:
    """One normalisation.

    Attributes:
        name: Name of the module.
        module: The module.
        x, y: Its input and its output, ``[batch, n, d]``.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor


@dataclass
class LayerRecord:
    """Activations of one layer.

    Attributes:
        name: Name of the layer.
        x, y: Input and output of the layer, ``[batch, n, d]``.
        maps: Attention maps, ``[batch, H, n, n]``.
        z: Input of the output projection, all heads side by side, ``[batch, n, H d_k]``.
        projection: The output projection.
        attention: Output of the projection.
        mlp: Output of the last product of the layer; None if there is none after attention.
        norms: Normalisations in order of execution.
    """

    name: str
    x: Tensor
    y: Tensor
    maps: Tensor
    z: Tensor
    projection: nn.Module
    attention: Tensor
    mlp: Tensor | None
    norms: list[NormRecord]

    @property
    def added(self) -> Tensor:
        """What is added to the stream after attention: its output, or a norm of its output."""
        return self._through(self.attention)

    @property
    def added_by_mlp(self) -> Tensor | None:
        """What is added to the stream after the MLP: its output, or a norm of its output."""
        return None if self.mlp is None else self._through(self.mlp)

    @property
    def read(self) -> Tensor:
        """Input of attention: a norm of the stream if one precedes it, or the stream itself."""
        return self._through(self.x)

    def _through(self, part: Tensor) -> Tensor:
        return next((norm.y for norm in self.norms if norm.x is part), part)


@dataclass
class _Draft:
    """A layer that is still running."""

    name: str
    x: Tensor
    maps: Tensor | None = None
    projected: tuple[nn.Module, Tensor, Tensor] | None = None
    mlp: Tensor | None = None
    norms: list[NormRecord] = field(default_factory=list)


def record(
    model: nn.Module,
    batch: Mapping[str, Any],
    on_layer: Callable[[LayerRecord], None],
    on_norm: Callable[[NormRecord], None],
) -> tuple[str, ...]:
    """Run the model once; call back for each layer when it is done, and for norms outside layers.

    Args:
        model: The model in any mode; it runs in ``eval`` mode and is put back.
        batch: Arguments of its forward. Values of padding are ignored.
        on_layer: Called with each layer.
        on_norm: Called with each normalisation outside the layers.

    Returns:
        Names of layers with attention after which no projection was recognised; they are left out.

    Raises:
        InputError: As for :func:`check_inputs`.
        UnsupportedError: The model has no attention that hooks can see.
        RangeError: An activation of an unpadded token is NaN or infinite; the message names the
            site.
        ShapeError: The attention mask does not fit the tokens.
    """
    check_inputs(model, batch)
    recorder = _Recorder(model, batch, on_layer, on_norm)
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad(), ExitStack() as stack:
            for context in recorder.contexts():
                stack.enter_context(context)
            model(**batch)
    finally:
        for module in training:
            module.training = True
    if not recorder.seen:
        raise UnsupportedError(
            f"measure_ranks needs attention that hooks can see, got none in "
            f"{type(model).__name__}. Use a model with the transformers attention interface, or "
            "one whose layers call torch's scaled_dot_product_attention."
        )
    return tuple(recorder.incomplete)


def check_inputs(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check what a model is run on.

    Args:
        model: The model.
        batch: Arguments of its forward.

    Raises:
        InputError: Not a model, not a dictionary, one without rows, or arrays instead of tensors.
        UnsupportedError: A tensor that is sparse, nested, quantised or on ``meta``.
    """
    check_kind("measure_ranks", "model", model, nn.Module, "a transformers model")
    check_kind("measure_ranks", "batch", batch, Mapping, "dict(input_ids=ids)")
    for name, value in batch.items():
        if isinstance(value, list | np.ndarray):
            raise InputError(
                f"measure_ranks needs tensors, got {type(value).__name__} for {name}. Ask the "
                "tokenizer for return_tensors='pt', or use torch.as_tensor."
            )
        if isinstance(value, Tensor):
            check_tensor("measure_ranks", name, value, read=True)
    if not batch_size(batch):
        raise InputError(
            "measure_ranks needs a batch with rows, got none. Give the model at least one sequence."
        )


def unpadded(
    model: nn.Module, batch: Mapping[str, Any], name: str, shape: tuple[int, int]
) -> Tensor:
    """The unpadded tokens of what a module reads, ``[batch, tokens]``.

    Args:
        model: The model.
        batch: Arguments of its forward.
        name: Name of the module: a decoder and a vision or audio tower have tokens of their own.
        shape: Rows and tokens.

    Raises:
        ShapeError: The mask of these tokens has another shape.
    """
    parts = name.split(".")
    if any(part.startswith(("vision", "visual", "image", "audio")) for part in parts):
        return torch.ones(shape, dtype=torch.bool)
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if two and "decoder" in parts:
        batch = {"attention_mask": batch.get("decoder_attention_mask")}
    return full_token_mask(batch, shape, "measure_ranks")


class _Recorder:
    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        on_layer: Callable[[LayerRecord], None],
        on_norm: Callable[[NormRecord], None],
    ) -> None:
        self.model, self.batch = model, batch
        self.on_layer, self.on_norm = on_layer, on_norm
        self.names = {id(module): name for name, module in model.named_modules()}
        self.now: _Draft | None = None
        self.pending: Tensor | None = None  # heads' outputs before their projection ran
        self.seen = False
        self.incomplete: list[str] = []

    def contexts(self) -> Iterator[Any]:
        yield self._hooks()
        if any(isinstance(m, SpikingAttention) for m in self.model.modules()):
            yield self._observed()
        else:
            yield routed(self.model, self._eager)
            yield _Products(self)

    # What is recorded.

    def attend(self, name: str, maps: Tensor, z: Tensor) -> None:
        """Attention maps ``[batch, H, n, m]`` and heads' outputs ``[batch, n, H, d_k]``."""
        if self.now is None or self.now.maps is not None or maps.shape[-1] != maps.shape[-2]:
            return  # no layer around it, or cross attention
        self.check(z.flatten(2), self.now.name, f"{name or self.now.name}, attention")
        self.now.maps, self.pending, self.seen = maps, z.flatten(2), True

    def multiplied(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        now = self.now
        if now is None or now.maps is None or not args or y.shape != now.x.shape:
            return
        if self.pending is None:
            now.mlp = y
            return
        x = module.gated(*args) if isinstance(module, GatedOutputProjection) else args[0]
        if x.shape == self.pending.shape:
            now.projected, self.pending = (module, x, y), None

    def check(self, x: Tensor, name: str, site: str) -> None:
        """Raise RangeError if an unpadded token of the layer or norm ``name`` is not finite."""
        bad = ~x.isfinite()
        valid = unpadded(self.model, self.batch, name, (x.shape[0], x.shape[1]))
        if bool(bad.any()):
            bad = bad & valid[:, :, None].to(x.device)
            if bool(bad.any()):
                at = [int(i) for i in bad.nonzero()[0]]
                raise RangeError(
                    f"measure_ranks needs finite activations, got {float(x[*at])} in {site} "
                    f"(sequence {at[0]}, token {at[1]}, {int(bad.sum())} in all). Use a wider "
                    "type, such as float32, or other weights."
                )

    # The hooks.

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        parts = {
            name: is_product(module)
            for name, module in self.model.named_modules()
            if is_product(module) or isinstance(module, SpikingAttention)
        }
        layers = {layer_name(name) for name in parts} - parts.keys()
        for name, module in self.model.named_modules():
            if name in layers:
                handles += [
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave),
                ]
            elif is_norm(module):
                handles.append(module.register_forward_hook(self._normed))
            elif parts.get(name, False):
                handles.append(module.register_forward_hook(self.multiplied))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("hidden_states")
        if isinstance(x, Tensor) and x.dim() == 3 and self.now is None:
            self.now = _Draft(self.names[id(module)], x)
            self.check(x, self.now.name, f"{self.now.name}, input")

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found, self.pending = self.now, None
        if found is None or found.name != self.names[id(module)]:
            return
        self.now = None
        y = output if isinstance(output, Tensor) else output[0]
        if found.projected is not None and found.maps is not None:
            self.check(y, found.name, f"{found.name}, output")
            projection, z, attention = found.projected
            self.on_layer(LayerRecord(found.name, found.x, y, found.maps, z, projection, attention,
                                      found.mlp, found.norms))  # fmt: skip
        elif found.maps is not None:
            self.incomplete.append(found.name)

    def _normed(self, module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        if not args or not isinstance(y, Tensor) or args[0].dim() != 3:
            return  # of queries or keys, head by head
        found = NormRecord(self.names[id(module)], module, args[0], y)
        if self.now is None:
            self.check(y, found.name, found.name)
            self.on_norm(found)
        elif y.shape == self.now.x.shape:
            self.now.norms.append(found)

    def _eager(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **keywords: Any,
    ) -> tuple[Tensor, Tensor]:
        """What the model computes without a faster attention, recorded."""
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise UnsupportedError(
                f"measure_ranks needs a model with eager attention, got {type(module).__name__}. "
                "Use a model of transformers that has it."
            )
        out, maps = eager(module, query, key, value, attention_mask, **keywords)
        self.attend(self.names[id(module)], maps, out)
        return out, maps

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """The attention of a port, from the probabilities that its spikes carry."""
        watcher = _Probabilities()

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            self.attend(module.name, watcher.maps, y.transpose(1, 2))  # type: ignore[arg-type]

        ported = Ported.of(self.model)
        spiking = [m for m in ported.products if isinstance(m, SpikingAttention)]
        handles = [m.register_forward_hook(hook) for m in spiking]
        try:
            with ported.run.watching(watcher):
                yield
        finally:
            for handle in handles:
                handle.remove()


class _Probabilities(Watcher):
    """Keeps what the last attention's spikes carry, divided by its sum."""

    maps: Tensor
    sees_maps = True

    def on_map(self, weights: Tensor) -> None:
        self.maps = weights


class _Products(TorchFunctionMode):
    """Sees the calls of ``scaled_dot_product_attention``."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args,
                             strict=False)) | kwargs  # fmt: skip
            q, k = named["query"], named["key"]
            if q.dim() == 4:
                k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
                scale = named.get("scale") or q.shape[-1] ** -0.5
                scores, mask = q @ k.transpose(-1, -2) * scale, named.get("attn_mask")
                if named.get("is_causal"):
                    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
                if mask is not None and mask.dtype == torch.bool:
                    scores = scores.masked_fill(~mask, -torch.inf)
                elif mask is not None:
                    scores = scores + mask
                self.recorder.attend("", scores.softmax(-1), out.transpose(1, 2))
        return out


def is_product(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight: Linear, Conv1D, on spikes or with gates.

    Args:
        module: The module.

    Returns:
        True for these products; False for convolutions.
    """
    if isinstance(module, SpikingProduct | GatedOutputProjection):
        return True
    known = recognise(module)
    return isinstance(known, Product) and not known.conv


def output_weight(projection: nn.Module) -> tuple[Tensor, Tensor | None]:
    """W_O ``[H d_k, d]`` and the bias of a projection, so that its output is ``z W_O + bias``.

    A port's weights contain the amplitudes of its spikes, and its bias their offsets; both are
    removed, so that z is the decoded input.

    Args:
        projection: The projection, float or spiking.

    Returns:
        The weight, and the bias if there is one.
    """
    weight: Any = projection.weight
    bias: Any = projection.bias
    if isinstance(projection, SpikingProduct):
        amplitude, offset = projection.site.amplitude, projection.site.offset
        plain = weight / amplitude
        return plain.detach().T, (bias - plain @ offset.expand(weight.shape[1])).detach()
    known = recognise(projection)
    weight = known.weight if isinstance(known, Product) else weight
    return weight.detach().T, None if bias is None else bias.detach()


def quantised_input(projection: nn.Module, z: Tensor) -> Tensor:
    """Input of a projection: z itself, or its value in spikes where a port runs the projection.

    Args:
        projection: The projection, float or spiking.
        z: Its input.

    Returns:
        The decoded input.
    """
    if not isinstance(projection, SpikingProduct):
        return z
    site = projection.site
    return site.decode(site.read(z))
