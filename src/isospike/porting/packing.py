"""Whole numbers of few bits as the bytes of a port's file."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from isospike.porting.product import SpikingProduct
from isospike.porting.spec import PortSpec
from isospike.porting.tables import whole_rows

_WHOLE = {8: torch.int8, 16: torch.int16}


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
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type that the file has for what :func:`packed` packs.

    Args:
        model: A port that has room for its weights.
        spec: What the file says of it.
    """
    own, found = model.state_dict(), {}
    for path, (bits, _) in spec.synapses.items():
        shape = tuple(own[f"{path}.weight"].shape)
        flat = ((_bytes(math.prod(shape), bits),), torch.uint8)
        found[f"{path}.weight"] = (shape, _WHOLE[bits]) if bits in _WHOLE else flat
    for name, bits in spec.tables.items():
        rows, width = own[name].shape
        found[name] = ((4 * rows + _bytes(rows * width, bits),), torch.uint8)
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


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def pack(q: Tensor, bits: int) -> Tensor:
    """Signed whole numbers of ``bits`` bits, one after the other, the highest bit first.

    Args:
        q: Any shape, ``-2^(bits - 1) <= q < 2^(bits - 1)``.
        bits: 2 to 16.

    Returns:
        Bytes, ``[ceil(q.numel() * bits / 8)]``; int8 or int16 of the shape of ``q`` where that is
        the same.

    >>> pack(torch.tensor([-1, 3, 0]), 4).tolist()
    [123, 128]
    """
    if bits in _WHOLE:
        return q.to(_WHOLE[bits]).contiguous()
    unsigned = (q.flatten().long() + 2 ** (bits - 1)).numpy().astype(">u2").view(np.uint8)
    every = np.unpackbits(unsigned.reshape(-1, 2), axis=1)[:, -bits:]
    return torch.from_numpy(np.packbits(every))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """What :func:`pack` packed.

    Args:
        packed: Its bytes.
        bits: Of a number.
        shape: Of all of them.

    Returns:
        int16.

    >>> unpack(torch.tensor([123, 128], dtype=torch.uint8), 4, (3,)).tolist()
    [-1, 3, 0]
    """
    if bits in _WHOLE:
        return packed.to(torch.int16).view(shape)
    count = int(np.prod(shape))
    every = np.unpackbits(packed.numpy())[: count * bits].reshape(count, bits)
    padded = np.pad(every, ((0, 0), (16 - bits, 0)))
    unsigned = np.packbits(padded, axis=1).view(">u2").astype(np.int32)
    return torch.from_numpy((unsigned - 2 ** (bits - 1)).astype(np.int16)).view(shape)
