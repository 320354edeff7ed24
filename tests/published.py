"""Weights and images drawn by name, so that our models and the authors' networks have the same."""

import zlib

import torch


def generator(name):
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def draw(name, shape):
    """A tensor for a parameter or buffer of this name: one with which neurons fire."""
    g = generator(name)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=g)
    if name.rpartition(".")[2].startswith("firing_rate"):
        return 0.05 + 0.3 * torch.rand(shape, generator=g)
    if len(shape) == 1:
        scale, shift = {"weight": (0.2, 1.0), "bias": (0.3, 0.8), "running_mean": (0.1, 0.0)}[
            name.rpartition(".")[2]
        ]
        conv = name.endswith("conv.bias") or name == "head.bias"
        return shift * (not conv) + scale * torch.randn(shape, generator=g)
    inputs = shape[1:].numel() if isinstance(shape, torch.Size) else torch.Size(shape[1:]).numel()
    return torch.randn(shape, generator=g) * (2 / inputs) ** 0.5


def weights(shapes):
    """Tensors for all these names and shapes."""
    return {name: draw(name, shape) for name, shape in shapes.items()}


def images(shape):
    """Images in [0, 1)."""
    return torch.rand(shape, generator=generator("images"))
