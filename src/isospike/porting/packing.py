"""Whole numbers of few bits as the bytes of a port's file.

Numbers of 8 and 16 bits are there as they are. Smaller ones have a prefix code: weights are nearer
to a Gaussian than to uniform, so numbers of 4 bits take 3.6 and those of 6 take 5.4.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from isospike.errors import InputError
from isospike.porting.product import SpikingProduct
from isospike.porting.spec import PortSpec
from isospike.porting.tables import whole_rows

_WHOLE = {8: torch.int8, 16: torch.int16}
_RAW = -zlib.MAX_WBITS  # a stream without a header


def is_packed(name: str, spec: PortSpec) -> bool:
    """Whether a tensor of a port is whole numbers in its file.

    Args:
        name: Of the tensor.
        spec: What is said of the port.
    """
    return name in spec.tables or (
        name.endswith(".weight") and name.removesuffix(".weight") in spec.synapses
    )


def packed(name: str, tensor: Tensor, model: nn.Module, spec: PortSpec) -> Tensor:
    """What a file holds for such a tensor.

    Args:
        name: Of the tensor.
        tensor: It.
        model: The port.
        spec: What is said of it.
    """
    if name in spec.tables:
        q, quantum = whole_rows(tensor, spec.tables[name])
        numbers = pack(q, spec.tables[name]).flatten().view(torch.uint8)
        return torch.cat([quantum.flatten().view(torch.uint8), numbers])
    path = name.removesuffix(".weight")
    q = (tensor / _product(model, path).quantum).round()
    return pack(q, spec.synapses[path][0])


def packed_forms(
    model: nn.Module, spec: PortSpec
) -> dict[str, tuple[tuple[int, ...] | None, torch.dtype]]:
    """Shape, None where it is a row of bytes of any length, and type that the file has for what
    :func:`packed` packs.

    Args:
        model: A port that has room for its weights.
        spec: What the file says of it.
    """
    own = model.state_dict()
    found: dict[str, tuple[tuple[int, ...] | None, torch.dtype]] = {}
    for path, (bits, _) in spec.synapses.items():
        shape = tuple(own[f"{path}.weight"].shape)
        found[f"{path}.weight"] = (shape, _WHOLE[bits]) if bits in _WHOLE else (None, torch.uint8)
    for name in spec.tables:
        found[name] = None, torch.uint8
    return found


def unpacked(name: str, tensor: Tensor, model: nn.Module, spec: PortSpec) -> Tensor:
    """A tensor of a file whose form fits, as the port has it.

    Args:
        name: Of the tensor.
        tensor: What :func:`packed` made of it.
        model: The port, which has what the file does not pack.
        spec: What is said of it.
    """
    if name in spec.tables:
        bits = spec.tables[name]
        rows, width = model.state_dict()[name].shape
        quantum = tensor[: 4 * rows].clone().view(torch.float32)[:, None]
        numbers = tensor[4 * rows :].clone()
        numbers = numbers.view(_WHOLE[bits]) if bits in _WHOLE else numbers
        return unpack(numbers, bits, (rows, width)).float() * quantum
    path = name.removesuffix(".weight")
    product = _product(model, path)
    q = unpack(tensor, spec.synapses[path][0], tuple(product.weight.shape))
    return q.to(product.step.dtype) * product.quantum


def _product(model: nn.Module, path: str) -> SpikingProduct:
    product: SpikingProduct = model.get_submodule(path)  # type: ignore[assignment]
    return product


def pack(q: Tensor, bits: int) -> Tensor:
    """Signed whole numbers of ``bits`` bits.

    Args:
        q: Any shape, ``-2^(bits - 1) <= q < 2^(bits - 1)``.
        bits: 2 to 8, or 16.

    Returns:
        int8 or int16 of the shape of ``q`` where a number is whole bytes. Else a row of bytes: the
        numbers, each as an int8, by the prefix code of a raw deflate stream (RFC 1951), without
        its search for what repeats.

    >>> pack(torch.tensor([-1, 3, 0]), 8).tolist()
    [-1, 3, 0]
    >>> len(pack(torch.zeros(8000, dtype=torch.int8), 4)) < 1100  # 8,000 bits and a table
    True
    """
    if bits in _WHOLE:
        return q.to(_WHOLE[bits]).contiguous()
    coder = zlib.compressobj(wbits=_RAW, strategy=zlib.Z_HUFFMAN_ONLY)
    numbers = coder.compress(q.to(torch.int8).contiguous().numpy().data) + coder.flush()
    return torch.frombuffer(bytearray(numbers), dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """What :func:`pack` packed.

    Args:
        packed: Its bytes.
        bits: Of a number.
        shape: Of all of them.

    Returns:
        int16.

    Raises:
        InputError: The bytes hold something else.

    >>> unpack(pack(torch.tensor([-1, 3, 0]), 4), 4, (3,)).tolist()
    [-1, 3, 0]
    """
    if bits in _WHOLE:
        return packed.to(torch.int16).view(shape)
    count = math.prod(shape)
    coder = zlib.decompressobj(wbits=_RAW)
    try:  # no more than is wanted, however much the bytes would give
        numbers = np.frombuffer(coder.decompress(packed.numpy().data, count + 1), np.int8)
    except zlib.error as error:
        raise InputError(
            f"load needs packed weights that unpack, got {error}. Save the port again."
        ) from error
    if len(numbers) != count or not coder.eof or coder.unused_data:
        raise InputError(
            f"load needs {count} packed weights, got a file with another number of them. Save the "
            "port again."
        )
    most = 2 ** (bits - 1)
    if count and not -most <= numbers.min() <= numbers.max() < most:
        raise InputError(
            f"load needs packed weights of {bits} bits, got larger ones. Save the port again."
        )
    return torch.from_numpy(numbers.astype(np.int16)).view(shape)
