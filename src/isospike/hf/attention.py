"""The attention interface of transformers: one registration, for every use in isospike.

Models that use the interface call the function registered under the name of their
``attn_implementation``. Ours is the function of the innermost :func:`routed`, or, in a model that
was routed for good, the submodule ``isospike_attention`` of the module that attends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import UnsupportedError

IMPLEMENTATION = "isospike"
HANDLE = "isospike_attention"  # submodule of a module that attends
# Arguments of the interface that change the scores in a way that softmax attention does not.
CHANGES_SCORES = (
    "softcap", "s_aux", "sinks", "position_bias", "head_mask", "indices", "block_indices",
)  # fmt: skip

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""Called with the module, query, key, value, mask and keywords, as transformers calls it."""

_function: ContextVar[Attend | None] = ContextVar("isospike_attention", default=None)


def has_interface(model: nn.Module) -> bool:
    """Whether a model lets its attention be chosen."""
    return hasattr(model, "set_attn_implementation")


def route(model: nn.Module) -> None:
    """Send a model's attention through the submodules named ``isospike_attention``, for good."""
    if not has_interface(model):
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    _choose(model, IMPLEMENTATION)


@contextmanager
def routed(model: nn.Module, function: Attend) -> Iterator[None]:
    """Have ``function`` compute the attention of a model; does nothing to other models."""
    if not has_interface(model):
        yield
        return
    config: Any = model.config
    before = config._attn_implementation
    route(model)
    token = _function.set(function)
    try:
        yield
    finally:
        _function.reset(token)
        _choose(model, before)


def _choose(model: nn.Module, implementation: str) -> None:
    choosing: Any = model
    choosing.set_attn_implementation(implementation)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function registered with transformers; its mask is added to the scores."""
    function = _function.get() or attend_on_handle
    return function(module, query, key, value, _additive(attention_mask, query), **keywords)


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask to add: a boolean one is True where a query may see a key."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    added = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
    return added.masked_fill_(~mask, torch.finfo(query.dtype).min)


def attend_on_handle(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention by the module's submodule ``isospike_attention``, and its map if wanted.

    Raises:
        UnsupportedError: There is none, or an argument asks for another attention.
    """
    handle = getattr(module, HANDLE, None)
    if handle is None:
        raise UnsupportedError(
            f"{IMPLEMENTATION} attention needs a ported model, got a plain "
            f"{type(module).__name__}. Use isospike.port, on inputs that reach it."
        )
    for argument in CHANGES_SCORES:
        if keywords.get(argument) is not None:
            raise UnsupportedError(
                f"port needs plain softmax attention, got {argument} in {handle.name}. This model "
                "cannot be ported."
            )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    y: Tensor = handle(query, key, value, attention_mask, scaling)
    return y.transpose(1, 2).contiguous(), handle.map(query, key, value, attention_mask, scaling)
