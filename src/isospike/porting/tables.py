"""Tables of embeddings as whole numbers: no synapses, but most of a small model's file.

A row is a whole multiple of its own quantum, its largest number over the largest of its bits.
Numbers are as large below zero as above.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isospike.porting.calls import Calls

TABLE_BITS = {8: 8, 4: 6}
"""Bits of a table by those of the weights."""

_ATTRIBUTE = "_isospike_table_bits"  # of a module


def round_tables(model: nn.Module, weight_bits: int) -> None:
    """Round the tables of a port, each into memory of its own.

    A table that is multiplied too, where a module calls a product with it, stays as it is.

    Args:
        model: A port, as it is made.
        weight_bits: Of its weights; with 16, nothing is rounded.
    """
    if weight_bits not in TABLE_BITS:
        return
    bits = TABLE_BITS[weight_bits]
    multiplied = {
        getattr(holder, call.tensor).untyped_storage().data_ptr()
        for calls in model.modules()
        if isinstance(calls, Calls)
        for call, (holder,) in zip(calls.calls, calls.stored, strict=True)
        if holder is not None
    }
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or module.weight.dtype != torch.float32:
            continue
        weight = module.weight
        if weight.is_meta or weight.untyped_storage().data_ptr() in multiplied:
            continue
        if id(weight) not in done:
            q, quantum = whole_rows(weight.detach(), bits)
            done[id(weight)] = nn.Parameter(q * quantum, requires_grad=False)
        module.weight = done[id(weight)]
        setattr(module, _ATTRIBUTE, bits)


def tables_of(model: nn.Module) -> dict[str, int]:
    """Bits of the tables of a port that were rounded, by the name of the tensor."""
    return {
        f"{path}.weight": bits
        for path, module in model.named_modules()
        if (bits := table_bits(module))
    }


def table_bits(module: nn.Module) -> int:
    """Bits of a module's table; 0 if it has none that was rounded."""
    bits: int = vars(module).get(_ATTRIBUTE, 0)
    return bits


def mark_tables(model: nn.Module, tables: Mapping[str, int]) -> None:
    """Have a port know which of its tables were rounded, as its file says.

    Args:
        model: The port.
        tables: See :func:`tables_of`.
    """
    for name, bits in tables.items():
        setattr(model.get_submodule(name.removesuffix(".weight")), _ATTRIBUTE, bits)


def whole_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The whole numbers of a table, and the quantum of each row.

    Rounding what they give is no further rounding.

    Args:
        weight: ``[rows, channels]``, float32.
        bits: Of a number.
    """
    quantum = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    quantum = torch.where(quantum > 0, quantum, torch.ones_like(quantum))
    return (weight / quantum).round(), quantum
