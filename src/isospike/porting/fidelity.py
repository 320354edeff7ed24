"""Whether a copy of a model computes what the model does, and in which module the two part."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import UnsupportedError
from isospike.hf.batches import Batch, token_mask

TOLERANCE = 1e-3  # largest relative difference of two models that compute the same


@contextmanager
def same_draws(seed: int | None = 0) -> Iterator[None]:
    """The random numbers of ``seed`` for what runs inside, or, if None, those that come next;
    torch's state is put back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def in_float32(model: nn.Module) -> nn.Module:
    """The model itself in ``eval`` mode and float32, or a copy that is."""
    rounded = any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())
    if not rounded and not model.training:
        return model
    return copy.deepcopy(model).eval().float()


def draws_random_numbers(model: nn.Module, batch: Batch) -> bool:
    """Whether two passes with two seeds differ."""
    outputs = []
    for seed in (0, 1):
        with torch.no_grad(), same_draws(seed):
            outputs.append(model(**batch))
    one, two = outputs
    return not largest_difference(one, two, token_mask(batch)) <= TOLERANCE


def check_same(model: nn.Module, copied: nn.Module, batch: Batch) -> None:
    """Compare two models in float on one batch, under one seed.

    Args:
        model: The original, in ``eval`` mode and float32.
        copied: Its copy with replaced modules, in the float phase.
        batch: Inputs of both.

    Raises:
        UnsupportedError: The outputs differ by more than ``TOLERANCE``; it names the first module
            that gives another result.
    """
    mask = token_mask(batch)
    outputs = []
    for each in (model, copied):
        with torch.no_grad(), same_draws():
            outputs.append(each(**batch))
    expected, got = outputs
    difference = largest_difference(expected, got, mask)
    if difference <= TOLERANCE:
        return
    with torch.no_grad(), same_draws():
        again = model(**batch)
    if not largest_difference(expected, again, mask) <= TOLERANCE:
        raise UnsupportedError(
            f"port needs a model that computes the same twice under one seed of torch, got a "
            f"{type(model).__name__} that does not. Switch off what it draws or keeps."
        )
    name = _first_to_differ(model, copied, batch, mask)
    where = name or "the model"
    raise UnsupportedError(
        "port needs a model that computes the same once its products are replaced, got a relative "
        f"difference of {difference:.2g}, first in {where} "
        f"({type(model.get_submodule(name)).__name__}). Replace what is special in that module."
    )


def largest_difference(expected: Any, got: Any, mask: Tensor | None) -> float:
    """The largest relative difference of two outputs' tensors, over unpadded tokens.

    What is not a tensor in both, such as a cache, is left out.
    """
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        return _difference(expected, got, mask)
    if hasattr(expected, "to_tuple") and hasattr(got, "to_tuple"):
        expected, got = dict(expected), dict(got)
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        pairs = [(expected[k], got[k]) for k in expected if k in got]
    elif isinstance(expected, tuple | list) and isinstance(got, tuple | list):
        pairs = list(zip(expected, got, strict=False))
    else:
        return 0.0
    found = [largest_difference(x, y, mask) for x, y in pairs]
    return max(found, key=lambda d: (d != d, d), default=0.0)  # NaN is the largest


def _difference(x: Tensor, y: Tensor, mask: Tensor | None) -> float:
    if x.shape != y.shape:
        return float("inf")
    if mask is not None and x.shape[:2] == mask.shape:
        x, y = x[mask], y[mask]
    kind = torch.complex128 if x.is_complex() else torch.float64
    x, y = x.to(kind), y.to(kind)
    same = (x == y) | (x.isnan() & y.isnan())
    difference = torch.where(same, 0, x - y).abs().square().sum().sqrt()
    size = x[x.isfinite()].abs().square().sum().sqrt()
    return float(difference / size.clamp_min(1e-30)) if bool(difference != 0) else 0.0


def _first_to_differ(model: nn.Module, copied: nn.Module, batch: Batch, mask: Tensor | None) -> str:
    expected, got = (_outputs(each, batch) for each in (model, copied))
    for name, output in expected.items():
        if name in got and not largest_difference(output, got[name], mask) <= TOLERANCE:
            return name
    return ""


def _outputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What each module gives at its first call, in the order in which they finish."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found.setdefault(name, copy.copy(output))

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad(), same_draws():
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found
