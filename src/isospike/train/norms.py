"""Batch normalisations that several processes compute as one."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def share_norms(model: nn.Module) -> None:
    """Let batch normalisations in training use the mean and variance of all processes' images.

    ``torch.nn.SyncBatchNorm`` does this on GPUs alone.

    Args:
        model: Changed in place: its batch normalisations, and nothing that is saved.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_normalise, module)  # type: ignore[method-assign]


def _normalise(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        plain: Tensor = type(norm).forward(norm, x)
        return plain
    axes = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    total = _Sum.apply  # the number of images may differ
    count = total(x.new_tensor(x.numel() / x.shape[1]))  # type: ignore[no-untyped-call]
    mean = total(x.sum(axes)) / count  # type: ignore[no-untyped-call]
    centred = x - mean.view(shape)
    variance = total(centred.square().sum(axes)) / count  # type: ignore[no-untyped-call]
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * count / (count - 1), share)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    y: Tensor = centred * scale.view(shape) + norm.bias.view(shape)
    return y
