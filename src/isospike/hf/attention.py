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
# Arguments of the interface that change the scores, and are computed.
COMPUTED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "is_causal")
# Those that attention does not depend on, or not beyond its mask: what transformers' own function
# for ``eager`` leaves alone.
IGNORED = (
    "sliding_window", "position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k",
    "max_length_q", "max_length_k", "seq_idx", "deterministic", "output_attentions",
    "output_hidden_states", "output_router_logits", "use_cache", "return_dict",
    "num_items_in_batch", "token_type_ids", "mm_token_type_ids",
)  # fmt: skip

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""Called with the module, query, key, value, mask and keywords, as transformers calls it."""

_function: ContextVar[Attend | None] = ContextVar("isospike_attention", default=None)


def has_interface(model: nn.Module) -> bool:
    """Whether a model, or one within it, lets its attention be chosen."""
    return bool(_choosing(model))


def route(model: nn.Module) -> None:
    """Send a model's attention through the submodules named ``isospike_attention``, for good."""
    if not has_interface(model):
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    for choosing in _choosing(model):
        choosing.set_attn_implementation(IMPLEMENTATION)


def hold(model: nn.Module) -> None:
    """Have the modules of a port attend by their submodules, whatever is chosen later.

    A function of transformers may set ``eager`` to be given maps of attention, which a port gives
    too; with another name, masks would be made that say less.

    Raises:
        UnsupportedError: When one of them is called after another implementation was chosen.
    """
    for module in model.modules():
        if hasattr(module, HANDLE):
            module.register_forward_pre_hook(_hold)


def _hold(module: nn.Module, args: Any) -> None:
    config: Any = getattr(module, "config", None)
    chosen = getattr(config, "_attn_implementation", IMPLEMENTATION)
    if chosen == "eager":
        config._attn_implementation = IMPLEMENTATION
    elif chosen != IMPLEMENTATION:
        raise UnsupportedError(
            f"a port needs its own attention, got attn_implementation {chosen!r}. Call "
            f"set_attn_implementation({IMPLEMENTATION!r})."
        )


@contextmanager
def routed(model: nn.Module, function: Attend) -> Iterator[None]:
    """Have ``function`` compute the attention of a model; does nothing to other models."""
    if not has_interface(model):
        yield
        return
    # A part of a model may have another implementation than the whole.
    before = [(config, config._attn_implementation) for config in configs_of(model)]
    route(model)
    token = _function.set(function)
    try:
        yield
    finally:
        _function.reset(token)
        for config, implementation in before:
            config._attn_implementation = implementation


def _choosing(model: nn.Module) -> list[Any]:
    """The outermost modules whose attention can be chosen, with that of all within them."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        within = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not within and hasattr(module, "set_attn_implementation"):
            found[name] = module
    return list(found.values())


def configs_of(model: nn.Module) -> list[Any]:
    """The configurations of a model and its parts, a whole before its parts."""
    left: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    found: list[Any] = []
    while left:
        config = left.pop(0)
        if hasattr(config, "_attn_implementation") and all(config is not c for c in found):
            found.append(config)
            left = [getattr(config, part, None) for part in config.sub_configs] + left
    return found


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
        UnsupportedError: There is none, or an argument is not known.
    """
    handle = getattr(module, HANDLE, None)
    if handle is None:
        raise UnsupportedError(
            f"{IMPLEMENTATION} attention needs a ported model, got a plain "
            f"{type(module).__name__}. Use isospike.port, on inputs that reach it."
        )
    for argument, given in keywords.items():
        if argument not in (*COMPUTED, *IGNORED) and given is not None:
            raise UnsupportedError(
                f"port needs attention whose arguments are known ({', '.join(COMPUTED)} and those "
                f"that do not change it), got {argument} in {handle.name}. This model cannot be "
                "ported."
            )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sinks = keywords.get("s_aux")
    sinks = keywords.get("sinks") if sinks is None else sinks
    if sinks is not None and sinks.dim() == 1:  # one for each head
        sinks = sinks[None, :, None, None]
    mask = _whole_mask(query, key, attention_mask, keywords)
    arguments = query, key, value, mask, scaling, keywords.get("softcap"), sinks
    y: Tensor = handle(*arguments)
    weights = handle(*arguments, mapped=True) if handle.run.wants_maps else None
    return y.transpose(1, 2).contiguous(), weights


def _whole_mask(
    query: Tensor, key: Tensor, mask: Tensor | None, keywords: dict[str, Any]
) -> Tensor | None:
    """All that is added to the scores."""
    lowest = torch.finfo(query.dtype).min
    queries, keys = query.shape[2], key.shape[2]
    if keywords.get("is_causal") and mask is None and queries > 1:
        later = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(1)
        mask = query.new_zeros(queries, keys).masked_fill(later, lowest)
    if (indices := keywords.get("indices")) is not None:  # of the keys that a query may see
        mask = query.new_zeros(()) if mask is None else mask
        hidden = torch.ones(*indices.shape[:2], keys, dtype=torch.bool, device=query.device)
        mask = mask.masked_fill(hidden.scatter(-1, indices.long(), False)[:, None], lowest)
    if (bias := keywords.get("position_bias")) is not None:
        mask = bias if mask is None else mask + bias
    return mask
