"""What really enters the matrix products of a model, measured while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from isospike.porting.trace import Product, trace
from isospike.report.numbers import percent, si
from isospike.report.page import Details, Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Columns, Table


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

    >>> import torch
    >>> print(audit(torch.nn.Linear(3, 2), torch.eye(3)).verdict())
    Every matrix product of Linear (1) reads spikes: one operand is binary, and none has real
    values.
    """
    found = trace(model, batch, judge=True)
    nonlinear: dict[str, int] = {}
    for (_, kind), elements in found.nonlinear.items():
        nonlinear[kind] = nonlinear.get(kind, 0) + elements
    known_as = name or type(model).__name__
    return AuditReport(
        title=f"Matrix products of {known_as}",
        provenance=Provenance.of(),
        model=known_as,
        products=tuple(p for p in found.products if p.contraction > 1),
        float_ops=dict(found.float_ops),
        nonlinear_ops=nonlinear,
    )
