"""What runs in a model, operator by operator: its products, and what is not linear in its input.

A product is seen by the operator that computes it, whatever it is called: a matrix product, one
hidden in another operator (a Fourier transform, distances, interpolation), or an element-wise
product whose results are then added up.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from isospike.porting.operands import counts_spikes, operand_kind


@dataclass(frozen=True)
class Product:
    """One product: of matrices, or another operator that multiplies and adds up.

    Attributes:
        module: Innermost module it ran in; empty for the model itself.
        op: Name of the operator.
        left, right: What the operands were: ``weight``, ``binary`` (0 or one value per channel),
            ``integer``, ``graded`` (a uniform grid of at most 65,536 levels per channel) or
            ``float``.
        macs: Multiply-accumulates.
        contraction: Length of the summed axis.
    """

    module: str
    op: str
    left: str
    right: str
    macs: int
    contraction: int

    @property
    def matrix(self) -> bool:
        """Whether a matrix-product operator or a convolution computed it."""
        return self.op not in (*_COEFFICIENTS, *_DISTANCES, *_GATHERED, *_ELEMENTWISE)

    @property
    def real(self) -> bool:
        """Whether an operand that is not a weight takes real values."""
        return "float" in (self.left, self.right)

    @property
    def spiking(self) -> bool:
        """Whether one operand is binary and none is real-valued."""
        return "binary" in (self.left, self.right) and not self.real


def trace_products(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> list[Product]:
    """The products of one run with their operands not judged, outer products included."""
    return trace(model, batch, judge=False).products


def trace_nonlinear(
    model: nn.Module, batch: Mapping[str, Any] | Tensor
) -> dict[tuple[str, str], int]:
    """``AuditReport.nonlinear_ops`` of one run by module and operator."""
    return dict(trace(model, batch, judge=False).operators)


def count_float_ops(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> dict[str, int]:
    """Elements passed through float functions that are not matrix products, by kind.

    The kind ``product`` holds the multiplications of products outside matrix products.
    """
    return dict(trace(model, batch, judge=False).float_ops)


def trace(
    model: nn.Module,
    batch: Mapping[str, Any] | Tensor,
    judge: bool,
    owners: Mapping[int, str] | None = None,
    recorder: Any = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
) -> "Trace":
    """Run a model once and note its operators.

    Args:
        model: The model.
        batch: Its inputs.
        judge: Whether to judge the operands of products.
        owners: The module that alone may read a tensor, by the tensor's identity.
        recorder: Is told of the trace while the model runs.
        call: How to run it, if not by a call.
    """
    found = Trace(model, judge, owners or {})
    if recorder is not None:
        recorder.trace = found
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides a whole encoder layer in one operator
    try:
        with torch.no_grad(), _named(model, found.stack), found:
            if call is not None:
                call(model, batch)
            else:
                model(**batch) if isinstance(batch, Mapping) else model(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return found


@contextmanager
def _named(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the running module on top of ``stack``."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(_push, stack, name)))
        hooks.append(module.register_forward_hook(partial(_pop, stack), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _push(stack: list[str], name: str, *_: Any) -> None:
    stack.append(name)


def _pop(stack: list[str], *_: Any) -> None:
    stack.pop()


# Operators by what they do to their operands. SDPA variants hide two products and a softmax.
_MM = {
    "mm", "bmm", "_int_mm", "_grouped_mm", "_scaled_mm", "_scaled_grouped_mm", "mv", "dot", "vdot",
    "matmul",
}  # fmt: skip
_ADDMM = {"addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation"}
_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "_slow_conv2d_forward"}
# A constant coefficient for each value: the length of the sum, if the operator fixes it.
_COEFFICIENTS = {
    "_fft_r2c": 0, "_fft_c2c": 0, "_fft_c2r": 0, "upsample_linear1d": 2, "upsample_bilinear2d": 4,
    "_upsample_bilinear2d_aa": 4, "upsample_trilinear3d": 8, "upsample_bicubic2d": 16,
    "_upsample_bicubic2d_aa": 16,
}  # fmt: skip
_DISTANCES = {"_cdist_forward", "_euclidean_dist", "_pdist_forward"}
# Values picked by places that the model computes, and weighted.
_GATHERED = {
    "grid_sampler_2d": 4, "grid_sampler_3d": 8, "_embedding_bag": 0,
    "_embedding_bag_forward_only": 0,
}  # fmt: skip
# Libraries whose operators are in these lists, or do not multiply.
_KNOWN = {"aten", "prim", "prims", "isospike", "onednn", "mkldnn", "profiler", "inductor"}
# Products inside operators whose operands nothing here can judge, and all that begin with linalg.
_OPAQUE = {
    "cholesky_solve", "cholesky_inverse", "triangular_solve", "lu_solve", "ormqr", "conv_tbc",
    "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_cudnn_rnn", "miopen_rnn",
}  # fmt: skip
# Whole numbers choose what these give: an activation.
_LOOKUPS = {"embedding", "index", "index_select", "gather", "take", "scatter", "index_put"}
_SUMS = {"sum", "mean", "nansum", "cumsum", "index_add", "scatter_add", "segment_reduce"}
_SUM, _ADD = "mul+sum", "mul+add"
_ELEMENTWISE = (_SUM, _ADD)

_FLOAT_KINDS = {
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "exp": "softmax",
    "native_layer_norm": "normalisation",
    "_fused_rms_norm": "normalisation",
    "rsqrt": "normalisation",
    "gelu": "activation",
    "silu": "activation",
    "relu": "activation",
    "tanh": "activation",
    "sigmoid": "activation",
    "mul": "elementwise",
    "add": "elementwise",
    "sub": "elementwise",
    "div": "elementwise",
    "pow": "elementwise",
}


# No accumulation, threshold or reset, whatever their arguments; by kind.
_NONLINEAR = {
    "_log_softmax": "softmax",
    **{name: kind for name, kind in _FLOAT_KINDS.items() if kind != "elementwise"},
    "relu": None,  # a threshold
    **dict.fromkeys(("logsumexp", "logcumsumexp", "logaddexp", "logaddexp2"), "softmax"),
    **dict.fromkeys(
        ("native_group_norm", "sqrt", "reciprocal", "var", "var_mean"), "normalisation"
    ),
    **dict.fromkeys(("std", "std_mean", "linalg_vector_norm", "renorm", "dist"), "normalisation"),
    **dict.fromkeys(("pow", "prod", "cumprod", "glu", "atan2", "hypot", "xlogy"), "product"),
    **dict.fromkeys(("exp2", "expm1", "log", "log2", "log1p", "log10", "erf"), "activation"),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh"), "activation"),
    **dict.fromkeys(("elu", "celu", "selu", "hardswish", "hardsigmoid", "mish"), "activation"),
    **dict.fromkeys(("softplus", "log_sigmoid_forward", "logit", "erfc", "erfinv"), "activation"),
}


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what runs while it is entered.

    Attributes:
        products: Every product, in order.
        float_ops: Elements passed through float functions, by kind.
        nonlinear: Those that are not linear in the input, by module and kind.
        operators: The same by module and operator.
        readers: The first other module that read what an owner alone may read, by owner.
    """

    def __init__(self, model: nn.Module, judge: bool, owners: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[str] = []
        self.products: list[Product] = []
        self.float_ops: dict[str, int] = {}
        self.nonlinear: dict[tuple[str, str], int] = {}
        self.operators: dict[tuple[str, str], int] = {}
        self.judge = judge
        self.owners, self.readers = owners, dict[str, str]()
        # A spiking module multiplies its sums by gains, which are counted as such.
        self.spiking = {n for n, m in model.named_modules()
                        if type(m).__module__.startswith("isospike.porting.")}  # fmt: skip
        tensors = [*model.parameters(), *model.buffers()]
        for module in model.modules():  # tensors kept as plain attributes are weights too
            tensors += [v for v in vars(module).values() if isinstance(v, Tensor)]
        self.stored = {place for t in tensors if t.numel() and (place := _place(t))}
        # What is stored, and what is made of nothing else, such as a weight times its scale.
        self.constant = {0, *self.stored}
        # What is made of those and of whole numbers and switches of the input: masks, factors of a
        # rotation by position. They multiply as weights do.
        self.tables = set[int]()
        self.reached = False  # whether the input reaches the operator that is looked at
        self.kept: list[Tensor] = []  # storages of constants: addresses stay unique
        self.brief: tuple[str, list[Tensor]] = "", []  # those of one spiking module, while it runs
        self.multiplied: dict[int, _Multiplied] = {}  # by address
        self.label: Any = None  # of what multiplies entry by entry now
        self.labels: set[Any] = set()  # of what did, where the results were added up
        self.rotations: set[Any] = set()  # of what a rotation by position multiplies

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        name = name if name.startswith("_") else name.rstrip("_")  # in place: the same product
        if self.brief[1] and self.brief[0] != self._module:
            self._forget()
        self.reached = not all(map(self.is_constant, _tensors(args)))
        for owner in (self.owners.get(id(x)) for x in _tensors(args)):
            if owner is not None and self._module != owner:
                self.readers.setdefault(owner, self._module)
        opaque = name in _OPAQUE or name.startswith(("linalg_", "_linalg_"))
        if func.namespace in _KNOWN and (not opaque or name in _NONLINEAR):
            self._look(name, args, out)
        elif func.namespace in _KNOWN:
            self._add_foreign(name, args, out)
        else:
            self._add_foreign(f"{func.namespace}::{name}", args, out)
        self._follow(func, name, args, kwargs or {}, out)
        return out

    def _look(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """Note a product or a float function."""
        if name in _MM:
            self._add(name, args[0], args[1])
        elif name in _ADDMM:
            self._add(name, args[1], args[2])
        elif name in ("linear", "_linear_pointwise"):
            self._add(name, args[0], args[1].t())
        elif name in _CONVOLUTIONS:
            self._add_convolution(name, args[0], args[1], out)
        elif name.startswith("_scaled_dot_product"):
            self._add_attention(name, *args[:3])
        elif name in ("mkldnn_rnn_layer", "_trilinear", "qlinear_pointwise"):
            self._add_layer(name, args, out)
        elif name in (*_COEFFICIENTS, *_DISTANCES, *_GATHERED):
            self._add_hidden(name, args, out)
        elif isinstance(out, Tensor) and out.is_floating_point():
            self._count(_FLOAT_KINDS.get(name), out.numel())
            self._add_elementwise(name, args, out)
        elif name == "native_layer_norm":
            self._count("normalisation", out[0].numel())

    def _follow(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Keep track of constants, and note what is not linear in the others."""
        written = _written(func, args, kwargs)
        returned = _tensors(out)
        made = [*returned, *(x for x in written if not any(x is y for y in returned))]
        new, old = {id(x) for x in made}, {id(x) for x in _tensors(args)}
        given = [x for x in (*_tensors(args), *_tensors(kwargs)) if id(x) not in new]
        if name == "lift_fresh":  # of a number in the source
            given, old = [], set[int]()
        varying = [x for x in (*given, *made) if id(x) not in new or id(x) in old]
        varying = [x for x in varying if not self.is_constant(x)]
        real = [x for x in varying if x.is_floating_point() and not self._is_table(x)]
        table = not real and name not in _LOOKUPS
        for tensor in made:
            place = _place(tensor)
            if varying:
                self.constant -= {place} - {0}
                self.tables -= {place} - {0}
            elif tensor.numel():
                self.constant.add(place)
            if tensor.numel() and (table or not varying):
                if self._module in self.spiking:  # a weight in another form, say, and as large
                    self.brief = self._module, [*self.brief[1], *([] if varying else [tensor])]
                else:
                    self.kept.append(tensor)
                self.tables |= {place} if varying and tensor.is_floating_point() else set()
        self._follow_product(name, args, made, written)
        if not varying or not made or not made[0].is_floating_point():
            return
        kind = _NONLINEAR.get(name) if real else None
        if name == "mul" and len(real) == 2 and not any(map(counts_spikes, real)):
            kind = "product"
        if name == "div" and len(args) > 1 and any(args[1] is x for x in real):
            kind = "product"
        if name.startswith("_scaled_dot_product"):
            kind = "softmax"
        if kind is not None:
            module = self._module
            for counts, key in ((self.nonlinear, kind), (self.operators, name)):
                counts[module, key] = counts.get((module, key), 0) + made[0].numel()

    def _forget(self) -> None:
        """A spiking module has run, and its constants are no more."""
        gone = {_place(x) for x in self.brief[1]} - self.stored - {0}
        self.constant -= gone
        self.tables -= gone
        self.brief = "", []

    def _follow_product(
        self, name: str, args: tuple[Any, ...], made: list[Tensor], written: list[Tensor]
    ) -> None:
        """Remember where the results of element-wise products are, until they are overwritten."""
        places = {_place(x) for x in _tensors(args)}
        for tensor in made:
            if _place(tensor) not in places or any(tensor is x for x in written):
                self.multiplied.pop(_place(tensor), None)
        factors = args[1:3] if name == "addcmul" else args[:2]
        if name not in ("mul", "addcmul") or not made or not made[0].is_floating_point():
            return
        pair = [x for x in factors if isinstance(x, Tensor)]
        if self._module in self.spiking or len(pair) < 2 or pair[0] is pair[1]:
            return
        if all(map(self.is_constant, pair)):
            return
        if any(x.numel() <= 1 or not x.is_floating_point() for x in pair):
            return
        if not any(map(counts_spikes, pair)):
            left, right = (
                "weight" if self.is_constant(x) or self._is_table(x) else "float" for x in pair
            )
            shapes = tuple(_aligned(x.shape, made[0].dim()) for x in pair)
            self.multiplied[_place(made[0])] = _Multiplied(
                left, right, made[0].shape, shapes, self.label
            )

    def _add_elementwise(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        """A sum of the results of an element-wise product."""
        found = [(x, m) for x in _tensors(args) if (m := self.multiplied.get(_place(x)))]
        if name in _SUMS and found:
            x, factors = found[0]
            length = x.shape[args[1]] if name == "cumsum" else x.numel() // max(1, out.numel())
            if name not in ("sum", "mean", "nansum", "cumsum"):
                length = 2
            if factors.meet_along(x.shape, _axes(name, args, x.dim())):
                self._note_real(_SUM, factors.left, factors.right, x.numel(), length)
                if "weight" not in (factors.left, factors.right):
                    self.labels |= {factors.label} - {None}
        real = [m for _, m in found if "weight" not in (m.left, m.right)]
        if name in ("add", "sub") and len({_place(x) for x, _ in found}) == 2 and len(real) == 2:
            self._note_real(_ADD, "float", "float", 2 * out.numel(), 2)
            self.labels |= {m.label for m in real} - {None}
        if name in ("add", "sub") and len({_place(x) for x, _ in found}) == 2:
            if all(m.by_position for _, m in found):
                self.rotations |= {m.label for _, m in found} - {None}

    def _add_attention(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._add(name, q, k.transpose(-1, -2))
        # The probabilities live inside the operator: a softmax, real-valued.
        self._count("softmax", math.prod(q.shape[:-1]) * k.shape[-2])
        self._note(name, "float", self._kind(v, -2), math.prod(q.shape) * k.shape[-2], k.shape[-2])

    def _add_layer(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        if name == "mkldnn_rnn_layer":
            # An LSTM layer: the input and the hidden state, a product of real gates, meet weights.
            rows = args[0][..., 0].numel()
            for left, weight in ((self._kind(args[0], -1), args[1]), ("float", args[2])):
                self._note(name, left, "weight", rows * weight.numel(), weight.shape[-1])
        elif name == "_trilinear":  # nn.Bilinear
            left, right = self._kind(args[0], -1), self._kind(args[2], -1)
            rows, k = args[0].numel() // args[0].shape[-1], args[1][0].numel()
            self._note(name, left, right, rows * args[1].numel(), k)
        else:
            self._note(name, self._kind(args[0], -1), "weight", out.numel() * args[0].shape[-1],
                       args[0].shape[-1])  # fmt: skip

    def _add_foreign(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """An operator of another library, which may multiply: taken for a product."""
        y = next((x for x in _tensors(out) if x.is_floating_point()), None)
        x = next((x for x in _tensors(args) if x.is_floating_point()), None)
        if y is not None and x is not None:
            self._note(name, self._judged(x), "float", y.numel(), max(2, x.shape[-1]))

    def _add_hidden(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """A product that no matrix operator computes."""
        x = args[0]
        y = out[0] if isinstance(out, tuple) else out
        if name.startswith("_fft"):
            length = math.prod(max(x.shape[d], y.shape[d]) for d in args[1])
            # Real numbers: a complex product has four of them.
            macs = 2 * max(x.numel(), y.numel()) * max(1, math.ceil(math.log2(max(2, length))))
            self._note_real(name, self._judged(x), "weight", macs, length)
        elif name in _COEFFICIENTS:
            length = _COEFFICIENTS[name]
            self._note_real(name, self._judged(x), "weight", y.numel() * length, length)
        elif name in _DISTANCES:
            other = x if name == "_pdist_forward" else args[1]
            k = x.shape[-1]
            self._note_real(name, self._judged(x), self._judged(other), y.numel() * k, k)
        elif name.startswith("_embedding_bag"):
            weights = args[6] if len(args) > 6 else None
            left = "binary" if weights is None else self._judged(weights)
            macs = args[1].numel() * x.shape[-1]
            self._note_real(name, left, self._judged(x), macs, max(2, args[1].numel()))
        else:
            length = _GATHERED[name]
            self._note_real(name, self._judged(x), "float", y.numel() * length, length)

    def _judged(self, x: Tensor) -> str:
        """Like :meth:`_kind`, of an operand that is looked at as a whole."""
        if self._is_weight(x):
            return "weight"
        if x.is_complex():
            return "float"
        return operand_kind(x.reshape(-1, 1), -1) if self.judge else ""

    def _note_real(self, op: str, left: str, right: str, macs: int, contraction: int) -> None:
        """A product outside matrix products: its multiplications are float operations too."""
        self._count("product", macs)
        self._note(op, left, right, macs, max(2, contraction))

    @property
    def _module(self) -> str:
        return self.stack[-1] if self.stack else ""

    def is_constant(self, x: Tensor) -> bool:
        """Whether ``x`` is stored, or made of what is stored alone."""
        return _place(x) in self.constant

    def is_activation(self, x: Tensor) -> bool:
        """Whether ``x`` depends on the input by more than whole numbers and switches."""
        real = x.is_floating_point() or x.is_complex()
        return real and not self.is_constant(x) and not self._is_table(x)

    def _is_table(self, x: Tensor) -> bool:
        return _place(x) in self.tables

    def _is_weight(self, x: Tensor) -> bool:
        """Whether the model stores it, or makes it of what it stores and multiplies the input."""
        return self.is_constant(x) and (self.reached or _place(x) in self.stored)

    def _count(self, kind: str | None, elements: int) -> None:
        if kind is not None:
            self.float_ops[kind] = self.float_ops.get(kind, 0) + elements

    def _add(self, name: str, left: Tensor, right: Tensor) -> None:
        k = left.shape[-1]
        columns = right.shape[-1] if right.dim() > 1 else 1
        self._note(name, self._kind(left, -1), self._kind(right, -2 if right.dim() > 1 else -1),
                   left.numel() * columns, k)  # fmt: skip

    def _add_convolution(self, name: str, x: Tensor, weight: Tensor, out: Tensor) -> None:
        k = weight[0].numel()
        self._note(name, self._kind(x, 1), self._kind(weight, 1), out.numel() * k, k)

    def _note(self, op: str, left: str, right: str, macs: int, contraction: int) -> None:
        if not self.reached:  # of weights alone: known before any input
            return
        self.products.append(Product(self._module, op, left, right, macs, contraction))

    def _kind(self, x: Tensor, contraction: int) -> str:
        if self._is_weight(x):
            return "weight"
        return operand_kind(x, contraction) if self.judge else ""


@dataclass(frozen=True)
class _Multiplied:
    """The result of an element-wise product of two operands, neither of which counts spikes."""

    left: str
    right: str
    shape: torch.Size
    factors: tuple[tuple[int, ...], ...]
    label: Any = None

    @property
    def by_position(self) -> bool:
        """Whether an activation was multiplied by a factor that is not the same for all tokens."""
        if (self.left == "weight") == (self.right == "weight"):
            return False
        return max(self.factors[0 if self.left == "weight" else 1][:-1], default=1) > 1

    def meet_along(self, shape: torch.Size, axes: tuple[int, ...]) -> bool:
        """Whether both operands have more than one value along what is summed."""
        if shape != self.shape:
            return True
        return any(all(factor[axis] > 1 for factor in self.factors) for axis in axes)


def _aligned(shape: torch.Size, dims: int) -> tuple[int, ...]:
    return (*[1] * (dims - len(shape)), *shape)


def _axes(name: str, args: tuple[Any, ...], dims: int) -> tuple[int, ...]:
    """The axes a sum runs over."""
    given = args[1] if len(args) > 1 and name in ("sum", "mean", "nansum", "cumsum") else None
    if isinstance(given, int):
        given = [given]
    return tuple(d % dims for d in given) if given else tuple(range(dims))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operator writes to."""
    schema = func._schema
    if not schema.is_mutable:
        return []
    names = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    return [
        x
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write
        for x in _tensors(names.get(a.name))
    ]


def _place(x: Tensor) -> int:
    """Address of a tensor's storage, or of the first that it wraps; 0 for packed weights."""
    while is_traceable_wrapper_subclass(x):
        x = getattr(x, x.__tensor_flatten__()[0][0])
    return x.untyped_storage().data_ptr() if x.layout == torch.strided else 0


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        x = tuple(x.values())
    parts = x if isinstance(x, list | tuple) else ()
    parts = [y for y in parts if isinstance(y, Tensor | list | tuple | Mapping)]
    return [t for y in parts for t in ([y] if isinstance(y, Tensor) else _tensors(y))]
