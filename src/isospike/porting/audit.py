"""What really enters the matrix products of a model, measured while it runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isospike.report.numbers import percent, si
from isospike.report.page import Details, Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Columns, Table

LARGEST_INTEGER = 2**24  # float32 counts exactly up to here
MOST_LEVELS = 2**16  # a graded operand has at most this many levels per channel
FEWEST_ROWS = 8  # fewer samples per channel cannot tell a grid from real values


@dataclass(frozen=True)
class Product:
    """One matrix product.

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
    def real(self) -> bool:
        """Whether an operand that is not a weight takes real values."""
        return "float" in (self.left, self.right)

    @property
    def spiking(self) -> bool:
        """Whether one operand is binary and none is real-valued."""
        return "binary" in (self.left, self.right) and not self.real


@dataclass(frozen=True, kw_only=True)
class AuditReport(Report):
    """Every matrix product of one run, in order.

    Attributes:
        model: Name or class of the model.
        products: The products. Outer products (nothing is summed) are left out.
        float_ops: Elements passed through float functions between the products, by kind.
        nonlinear_ops: Those of them, and others, that are no accumulation, threshold, reset or gain
            by a constant: non-linear functions, and products (kind ``product``) of two values that
            both depend on the input and of which neither counts spikes.
    """

    model: str
    products: tuple[Product, ...]
    float_ops: dict[str, int] = field(default_factory=dict)
    nonlinear_ops: dict[str, int] = field(default_factory=dict)

    @property
    def first_real(self) -> str | None:
        """The first real-valued operand, as ``module: op(left, right)``; None if there is none."""
        return next((_text(p) for p in self.products if p.real), None)

    @property
    def exceptions(self) -> tuple[str, ...]:
        """Modules with a product that has no binary operand or has a real one."""
        return tuple(dict.fromkeys(p.module for p in self.products if not p.spiking))

    @property
    def spiking(self) -> bool:
        """Whether every product has a binary operand and no real-valued one."""
        return not self.exceptions

    def verdict(self) -> str:
        """Whether all products run on spikes, or which one is the first that does not."""
        count = len(self.products)
        if not count:
            return f"{self.model} has no matrix product."
        others = [p for p in self.products if not p.spiking]
        if not others:
            return (
                f"Every matrix product of {self.model} ({count}) reads spikes: one operand is "
                "binary, and none has real values."
            )
        if len(others) == count:
            return (
                f"No matrix product of {self.model} ({count}) reads spikes. The first is "
                f"{_text(others[0])}."
            )
        share = sum(p.macs for p in others) / max(1, sum(p.macs for p in self.products))
        return (
            f"{len(others)} of the {count} matrix products of {self.model} do not read spikes, "
            f"{percent(share)} of the multiplications. The first is {_text(others[0])}."
        )

    def headline(self) -> dict[str, str]:
        """Products, those on spikes, and functions between them."""
        spiking = [p for p in self.products if p.spiking]
        macs = sum(p.macs for p in self.products)
        return {
            "Products": f"{len(self.products)}\n{si(macs)} multiply-accumulates",
            "On spikes": f"{len(spiking)}\n{si(sum(p.macs for p in spiking))} of them",
            "Float functions": f"{si(sum(self.float_ops.values()))}\nelements between products",
            "Not on spikes": f"{si(sum(self.nonlinear_ops.values()))}\nelements of functions",
        }

    def tables(self) -> dict[str, Table]:
        """Every product, the pairs of operands, and the functions."""
        columns: Columns = {
            "module": ("module", "code"), "op": "operator", "left": "left", "right": "right",
            "macs": ("MACs", "si"), "contraction": "summed", "spiking": "on spikes",
        }  # fmt: skip
        kinds = dict.fromkeys([*self.float_ops, *self.nonlinear_ops])
        functions = [
            {"kind": k, "float_ops": self.float_ops.get(k), "nonlinear": self.nonlinear_ops.get(k)}
            for k in kinds
        ]
        heads: Columns = {
            "kind": "kind", "float_ops": ("float operations", "si"),
            "nonlinear": ("not on spikes", "si"),
        }  # fmt: skip
        meaning = "Every matrix product, in order of execution, with what its operands were."
        return {
            "products": Table.of("Every product", self.products, columns, meaning=meaning),
            "operands": self._operand_table(),
            "functions": Table.of(
                "Functions between the products", functions, heads, meaning="Elements by kind."
            ),
        }

    def brief(self) -> Sequence[Table]:
        """The pairs of operands and the functions."""
        tables = self.tables()
        return [tables["operands"], tables["functions"]]

    def sections(self) -> Sequence[Section]:
        """Pairs of operands, functions, and every product on demand."""
        tables = self.tables()
        shown = Details(f"Show {len(self.products)} products", (tables["products"],))
        return [
            *(Section(tables[n].title, tables[n].meaning, (tables[n],))
              for n in ("operands", "functions")),
            Section("Every product", tables["products"].meaning, (shown,)),
        ]  # fmt: skip

    def _operand_table(self) -> Table:
        pairs: dict[tuple[str, str], list[Product]] = {}
        for p in self.products:
            pairs.setdefault((p.left, p.right), []).append(p)
        rows = tuple(
            (*pair, len(found), sum(p.macs for p in found), "yes" if found[0].spiking else "no")
            for pair, found in pairs.items()
        )
        head = ("left", "right", "products", "MACs", "on spikes")
        meaning = "A product runs on spikes if one side is binary and none is float."
        return Table("Operands", head, rows, meaning=meaning, formats=("", "", "", "si", ""))


def _text(p: Product) -> str:
    return f"{p.module}: {p.op}({p.left}, {p.right})"


def audit(
    model: nn.Module, batch: Mapping[str, Any] | Tensor, *, name: str | None = None
) -> AuditReport:
    """Run a model once and report what entered its matrix products.

    The operands are judged by their values, not by what a layer is called, and in doubt against the
    model: with fewer than eight samples per channel only 0/1 and whole numbers are recognised. A
    tensor stored in the model (parameter or buffer, or a view of one) is a weight.

    Args:
        model: Any PyTorch model.
        batch: Keyword arguments for it, or its single input.
        name: Name of the model in the report.

    Returns:
        The report: ``report.spiking`` is whether every product reads spikes.

    >>> print(audit(torch.nn.Linear(3, 2), torch.eye(3)).verdict())
    Every matrix product of Linear (1) reads spikes: one operand is binary, and none has real
    values.
    """
    trace = _run(model, batch, judge=True)
    nonlinear: dict[str, int] = {}
    for (_, kind), elements in trace.nonlinear.items():
        nonlinear[kind] = nonlinear.get(kind, 0) + elements
    known_as = name or type(model).__name__
    return AuditReport(
        title=f"Matrix products of {known_as}",
        provenance=Provenance.of(),
        model=known_as,
        products=tuple(p for p in trace.products if p.contraction > 1),
        float_ops=dict(trace.float_ops),
        nonlinear_ops=nonlinear,
    )


def trace_products(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> list[Product]:
    """The products of one run with their operands not judged, outer products included."""
    return _run(model, batch, judge=False).products


def trace_nonlinear(
    model: nn.Module, batch: Mapping[str, Any] | Tensor
) -> dict[tuple[str, str], int]:
    """``AuditReport.nonlinear_ops`` of one run by module and operator."""
    return dict(_run(model, batch, judge=False).operators)


def count_float_ops(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> dict[str, int]:
    """Elements passed through float functions that are not matrix products, by kind."""
    return dict(_run(model, batch, judge=False).float_ops)


def _run(model: nn.Module, batch: Mapping[str, Any] | Tensor, judge: bool) -> "_Trace":
    trace = _Trace(model, judge)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides a whole encoder layer in one operator
    try:
        with torch.no_grad(), _named(model, trace.stack), trace:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return trace


@contextmanager
def _named(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the running module on top of ``stack``."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(_push, stack, name)))
        hooks.append(
            module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True)
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _push(stack: list[str], name: str, *_: Any) -> None:
    stack.append(name)


# Operators by what they do to their operands. SDPA variants hide two products and a softmax.
_MM = {"mm", "bmm", "_int_mm", "_grouped_mm", "mv", "dot", "matmul"}
_ADDMM = {"addmm", "baddbmm", "addmv", "addbmm"}
_FLOAT_KINDS = {
    "_softmax": "softmax",
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
    **dict.fromkeys(
        ("native_group_norm", "sqrt", "reciprocal", "var", "var_mean"), "normalisation"
    ),
    **dict.fromkeys(("std", "std_mean", "linalg_vector_norm"), "normalisation"),
    "pow": "product",
    **dict.fromkeys(("exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "erf"), "activation"),
    **dict.fromkeys(("elu", "hardswish", "hardsigmoid", "mish", "softplus"), "activation"),
}


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module, judge: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[str] = []
        self.products: list[Product] = []
        self.float_ops: dict[str, int] = {}
        self.nonlinear: dict[tuple[str, str], int] = {}  # by module and kind
        self.operators: dict[tuple[str, str], int] = {}  # by module and operator
        self.judge = judge
        tensors = [*model.parameters(), *model.buffers()]
        for module in model.modules():  # tensors kept as plain attributes are weights too
            tensors += [v for v in vars(module).values() if isinstance(v, Tensor)]
        self.stored = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
        self.constant = {0, *self.stored}  # and what is made of nothing else, such as positions
        self.kept: list[Tensor] = []  # storages of constants: addresses stay unique

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        name = name if name.startswith("_") else name.rstrip("_")  # in place: the same product
        self._follow(name, args, kwargs or {}, out)
        if name in _MM:
            self._add(name, args[0], args[1])
        elif name in _ADDMM:
            self._add(name, args[1], args[2])
        elif name in ("linear", "_linear_pointwise"):
            self._add(name, args[0], args[1].t())
        elif name in ("convolution", "_convolution", "mkldnn_convolution"):
            self._add_convolution(name, args[0], args[1], out)
        elif name.startswith("_scaled_dot_product"):
            q, k, v = args[:3]
            self._add(name, q, k.transpose(-1, -2))
            # The probabilities live inside the operator: a softmax, real-valued.
            self._count("softmax", math.prod(q.shape[:-1]) * k.shape[-2])
            self._note(
                name, "float", self._kind(v, -2), math.prod(q.shape) * k.shape[-2], k.shape[-2]
            )
        elif name == "mkldnn_rnn_layer":
            # An LSTM layer: the input and the hidden state, a product of real gates, meet weights.
            rows = args[0][..., 0].numel()
            for left, weight in ((self._kind(args[0], -1), args[1]), ("float", args[2])):
                self._note(name, left, "weight", rows * weight.numel(), weight.shape[-1])
        elif name == "_trilinear":  # nn.Bilinear
            left, right = self._kind(args[0], -1), self._kind(args[2], -1)
            rows, k = args[0].numel() // args[0].shape[-1], args[1][0].numel()
            self._note(name, left, right, rows * args[1].numel(), k)
        elif name == "qlinear_pointwise":
            self._note(name, self._kind(args[0], -1), "weight", out.numel() * args[0].shape[-1],
                       args[0].shape[-1])  # fmt: skip
        elif isinstance(out, Tensor) and out.is_floating_point():
            self._count(_FLOAT_KINDS.get(name), out.numel())
        elif name == "native_layer_norm":
            self._count("normalisation", out[0].numel())
        return out

    def _follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep track of constants, and note what is not linear in the others."""
        made, inputs = _tensors(out), _tensors(args)
        new, old = {id(x) for x in made}, {id(x) for x in inputs}
        given = [x for x in (*inputs, *_tensors(kwargs)) if id(x) not in new]
        written = [x for x in made if id(x) in old]
        varying = [x for x in (*given, *written) if not self._is_constant(x)]
        for tensor in made:
            place = _place(tensor)
            if varying:
                self.constant.discard(place)
            elif tensor.numel():
                self.constant.add(place)
                self.kept.append(tensor)
        if not varying or not made or not made[0].is_floating_point():
            return
        kind = _NONLINEAR.get(name)
        if name == "mul" and len(varying) == 2 and not any(map(_counts_spikes, varying)):
            kind = "product"
        if name == "div" and len(args) > 1 and any(args[1] is x for x in varying):
            kind = "product"
        if name.startswith("_scaled_dot_product"):
            kind = "softmax"
        if kind is not None:
            module = self.stack[-1] if self.stack else ""
            for counts, key in ((self.nonlinear, kind), (self.operators, name)):
                counts[module, key] = counts.get((module, key), 0) + made[0].numel()

    def _is_constant(self, x: Tensor) -> bool:
        return _place(x) in self.constant

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
        module = self.stack[-1] if self.stack else ""
        self.products.append(Product(module, op, left, right, macs, contraction))

    def _kind(self, x: Tensor, contraction: int) -> str:
        if x.untyped_storage().data_ptr() in self.stored:
            return "weight"
        return operand_kind(x, contraction) if self.judge else ""


def _place(x: Tensor) -> int:
    """Address of a tensor's storage; 0 for packed weights, which have none."""
    return x.untyped_storage().data_ptr() if x.layout == torch.strided else 0


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        x = x.values()
    elif not isinstance(x, list | tuple):
        return []
    return [t for y in x for t in _tensors(y)]


def _counts_spikes(x: Tensor) -> bool:
    """Whether all values are 0 or one other, or multiples of one power of two up to 65,536."""
    if not x.is_floating_point():
        return True
    x = x.detach().double()
    if not bool(x.isfinite().all()):
        return False
    if _constant(x[x != 0]):
        return True
    fraction, _ = torch.frexp(x)
    # The lowest bit of each value: below it, all are multiples.
    whole = (fraction * 2**53).long()
    lowest = torch.ldexp((whole & -whole).double() * 2.0**-53, torch.frexp(x)[1])[x != 0].min()
    return float(x.abs().max() / lowest) <= MOST_LEVELS


def operand_kind(x: Tensor, contraction: int) -> str:
    """``binary``, ``integer``, ``graded`` or ``float``, by the values of ``x``.

    A channel is one index of the contraction axis (per batch entry of a batched product): a weight
    can absorb its scale, so scales may differ between channels, not within one.
    """
    x = x.detach()
    if x.numel() == 0 or bool(((x == 0) | (x == 1)).all()):
        return "binary"
    x = x.double()
    if not bool(x.isfinite().all()):
        return "float"
    if x.numel() >= FEWEST_ROWS and _constant(x[x != 0]):
        return "binary"
    whole = bool((x == x.round()).all()) and float(x.abs().max()) < LARGEST_INTEGER
    channels = _by_channel(x, contraction)
    if channels.shape[1] >= FEWEST_ROWS:
        nonzero = channels != 0
        top = channels.masked_fill(~nonzero, -torch.inf).amax(1)
        bottom = channels.masked_fill(~nonzero, torch.inf).amin(1)
        if bool(((top == bottom) | ~nonzero.any(1)).all()):
            return "binary"
    if whole:
        return "integer"
    if channels.shape[1] < FEWEST_ROWS:
        return "float"
    return "graded" if _on_grid(channels) else "float"


def _constant(x: Tensor) -> bool:
    return x.numel() == 0 or bool(x.min() == x.max())


def _by_channel(x: Tensor, contraction: int) -> Tensor:
    """``[channels, rows]``: batched products keep their batch entries apart."""
    if x.dim() == 3 and contraction in (-1, -2):
        x = x.movedim(contraction, 1)
        return x.reshape(-1, x.shape[-1])
    return x.movedim(contraction, 0).reshape(x.shape[contraction], -1)


def _on_grid(channels: Tensor) -> bool:
    """Whether each channel is an integer multiple of one step, up to float32 rounding."""
    ordered = channels.sort(1).values
    gaps = ordered.diff(dim=1)
    size = ordered.abs().amax(1, keepdim=True).clamp_min(1e-300)
    gaps = gaps.masked_fill(gaps <= 1e-6 * size, torch.inf)
    smallest = gaps.amin(1, keepdim=True)
    fits = smallest[:, 0].isinf()
    for divisor in range(1, 9):  # no two of the sample's levels may be neighbours
        multiple = (ordered - ordered[:, :1]) / (smallest / divisor)
        whole = ((multiple - multiple.round()).abs() < 0.02).all(1)
        fits |= whole & (multiple[:, -1] <= MOST_LEVELS)
    return bool(fits.all())
