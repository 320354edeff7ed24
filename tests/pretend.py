"""A device that is none: its tensors hold their numbers on the CPU and say ``meta``.

What mixes devices, or takes numbers from a device without asking, fails here as it does on a GPU.
"""

import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map, tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten
# torch itself takes these from a CPU.
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Pretended(torch.Tensor):
    """A tensor on the pretended device."""

    is_meta = False

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Pretended({self.held})"

    def tolist(self):
        return self.held.tolist()

    def untyped_storage(self):
        """That of the numbers, whose address is their own as on a real device."""
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Makes new tensors of the device, and answers for it what torch does not know of ``meta``."""

    def __enter__(self):
        self.asked = torch.is_autocast_enabled
        torch.is_autocast_enabled = lambda *device: False
        return super().__enter__()

    def __exit__(self, *error):
        torch.is_autocast_enabled = self.asked
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
    here = any(isinstance(t, Pretended) for t in tensors)
    target = kwargs.get("device")
    if not here and (target is None or torch.device(target) != DEVICE):
        return func(*args, **kwargs)
    first = isinstance(args[0], Pretended) if args else False
    foreign = [t for t in tensors if not isinstance(t, Pretended) and t.dim() and t.numel()]
    if foreign and func not in COPIES and not (func in INDEXED and first):
        raise RuntimeError(f"{func} met {tuple(foreign[0].shape)} on the CPU and others on a GPU")
    if sum(not isinstance(t, Pretended) and not t.dim() for t in tensors) > 1:
        raise RuntimeError(f"{func} met more than one number on the CPU and others on a GPU")
    named = kwargs if target is None else {**kwargs, "device": torch.device("cpu")}
    out = func(*real(args), **real(named))
    if target is not None and torch.device(target) != DEVICE:
        return out.clone() if out is args[0] else out
    if func is aten.copy_.default and not first:
        return args[0]
    out = tree_map_only(torch.Tensor, Pretended, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here else out


def real(value):
    """The numbers, on the CPU."""

    def find(t):
        if isinstance(t, Pretended):
            return t.held
        return torch.empty_like(t, device="cpu") if t.device == DEVICE and not t.numel() else t

    return tree_map_only(torch.Tensor, find, value)


def moved(value):
    """A copy on the device, of tensors or of a module."""
    if not isinstance(value, torch.nn.Module):
        return tree_map(lambda t: Pretended(t.clone()) if isinstance(t, torch.Tensor) else t, value)
    module = copy.deepcopy(value)
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = torch.nn.Parameter(moved(p.detach()), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = moved(b)
    return module
