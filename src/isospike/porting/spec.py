"""What the file of a port says of it beyond its weights, read strictly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from isospike.circuits.digits import SignedDigitFormat
from isospike.errors import InputError, UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.calls import CALLS, Call
from isospike.porting.functions import CIRCUITS
from isospike.porting.matmul import SpikingMatmul, SpikingScale
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.run import EXECUTIONS, FUNCTIONS, PRECISIONS
from isospike.porting.sites import OPERANDS
from isospike.porting.synapses import WEIGHT_BITS
from isospike.porting.tables import tables_of
from isospike.report import codec

FORMAT = 5
PROBE = "The 3 cats' naïve café: 'Hello, World!'\n\t1,024 + 0.5 = ?"
"""Two tokenizers of as many words that read it alike are taken for the same."""
DIGITS = ("digits",)  # attributes of a circuit
Plain = bool | int | float | str | None


@dataclass(frozen=True)
class SiteSpec:
    """A site; its attributes are those of :class:`isospike.porting.sites.Site`."""

    kind: str
    code: str
    steps: int
    shape: list[int]
    fan_out: float
    shared: bool
    dynamic: bool
    octaves: bool
    usual_outside: float


@dataclass(frozen=True)
class PortSpec:
    """A port beyond its weights and the configuration of its model.

    Attributes:
        format: Of the folder.
        model: Class of the model: :func:`class_path`.
        switches: Arguments of its constructor beside the configuration; None where no configuration
            builds it.
        execution: See :class:`isospike.porting.run.Mode`.
        precision: likewise.
        nonlinear: likewise, its functions.
        digits: Grid and steps of every circuit's digits, by module and attribute.
        sites: By name.
        products: The site of every product with a weight, by module.
        synapses: Of every product whose weights are whole numbers: their bits, and columns beyond
            the input channels.
        tables: Bits of every table of embeddings that has whole numbers, by name of the tensor.
        attention: Names of the attention modules.
        operands: Names of the products of two activations.
        calls: The products and functions that modules call, by module.
        circuits: The modules that circuits stand for.
        tokenizer: How the tokenizer that was saved with it reads :data:`PROBE`, and the size
            of its vocabulary; empty for none.
        attributes: What :func:`changed_attributes` found.
        layers: Where no configuration builds the float model, the class of each of its modules.
    """

    format: int
    model: str
    switches: dict[str, bool] | None
    execution: str
    precision: str
    nonlinear: str
    digits: dict[str, dict[str, tuple[float, int]]]
    sites: dict[str, SiteSpec]
    products: dict[str, str]
    attention: list[str]
    operands: list[str]
    calls: dict[str, list[Call]]
    circuits: list[str]
    tokenizer: list[int]
    attributes: dict[str, dict[str, Plain]] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    synapses: dict[str, tuple[int, int]] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ported: Ported, tokenizer: list[int]) -> "PortSpec":
        """What is to be saved of a port.

        Args:
            ported: The port.
            tokenizer: See :class:`PortSpec`.
        """
        mode, modules = ported.run.mode, dict(ported.model.named_modules())
        sites = {
            s.name: SiteSpec(
                s.kind,
                s.code.name,
                s.code.steps,
                list(s.offset.shape),
                s.fan_out,
                s.shared,
                s.dynamic,
                s.octaves,
                s.usual_outside,
            )  # fmt: skip
            for s in ported.sites
        }
        return cls(
            format=FORMAT,
            model=class_path(ported.model),
            switches={},
            execution=mode.execution,
            precision=mode.precision,
            nonlinear=mode.functions,
            digits=_digits(modules),
            sites=sites,
            products={n: m.site.name for n, m in modules.items() if isinstance(m, SpikingProduct)},
            synapses={
                n: (m.weight_bits, len(m.twins))
                for n, m in modules.items()
                if isinstance(m, SpikingProduct) and bool((m.step > 0).all())
            },
            tables=tables_of(ported.model),
            attention=[m.name for m in modules.values() if isinstance(m, SpikingAttention)],
            operands=[
                m.name for m in modules.values() if isinstance(m, SpikingMatmul | SpikingScale)
            ],
            calls={n: getattr(m, CALLS).calls for n, m in modules.items() if hasattr(m, CALLS)},
            circuits=[
                n
                for n, m in modules.items()
                if isinstance(m, CIRCUITS) and CALLS not in n.split(".")
            ],  # fmt: skip
            tokenizer=tokenizer,
        )

    @classmethod
    def read(cls, value: Any) -> "PortSpec":
        """The part ``isospike`` of a config.json.

        Args:
            value: As JSON has it.

        Raises:
            InputError: A value of another kind, or one that no port has.
            UnsupportedError: The file is of another format.
        """
        number = value.get("format") if isinstance(value, dict) else None
        if type(number) is not int or number != FORMAT:
            newer = type(number) is int and number > FORMAT
            way = "Update isospike" if newer else "Use the isospike version that saved it"
            raise UnsupportedError(
                f"load needs the file format {FORMAT} of a port, got {number!r}. {way}, or port "
                "the model again."
            )
        spec: PortSpec = codec.decode(cls, value)
        wrong = spec._first_wrong()
        if wrong:
            raise InputError(f"load needs a port that isospike saved, got {wrong}. Save it again.")
        return spec

    def _first_wrong(self) -> str:
        for value, known in ((self.execution, EXECUTIONS), (self.precision, PRECISIONS),
                             (self.nonlinear, FUNCTIONS)):  # fmt: skip
            if value not in known:
                return f"{value!r} in place of {' or '.join(known)}"
        for name, parts in self.digits.items():
            for part, (grid, steps) in parts.items():
                if part not in DIGITS or not 0 < grid < math.inf or not 1 <= steps <= 20:
                    return f"digits {part!r} of {name!r} with grid {grid} and {steps} steps"
        for name, (bits, further) in self.synapses.items():
            if name not in self.products or bits not in WEIGHT_BITS or not 0 <= further < 2**20:
                return f"synapses of {name!r} with {bits} bits and {further} further ones"
        for name, site in self.sites.items():
            if not 1 <= site.steps <= 2**20 or min(site.shape, default=0) < 0:
                return f"a site {name!r} of {site.steps} steps and shape {site.shape}"
        used = {*self.products.values()}
        for name in self.attention:
            used |= {f"{name}:{kind}" for kind in ("query", "key", "value", "probability")}
        for name in self.operands:
            used |= {f"{name}:{kind}" for kind in OPERANDS}
        if not self.sites or used != set(self.sites):
            return "sites that no product reads, or products without a site"
        return ""


def class_path(model: nn.Module) -> str:
    """Module and name of a model's class, with a colon between them."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def changed_attributes(model: nn.Module, fresh: nn.Module | None) -> dict[str, dict[str, Plain]]:
    """Numbers, switches and texts of the modules that are not as they are made.

    A rotary embedding that grows with the text keeps the length it has seen, say.

    Args:
        model: That ran.
        fresh: The same, just made; without one, all are given.

    Returns:
        Values by module and attribute.
    """
    found: dict[str, dict[str, Plain]] = {}
    others = {} if fresh is None else dict(fresh.named_modules())
    for name, module in model.named_modules():
        like = others.get(name)
        now = _plain_attributes(module)
        before = _plain_attributes(like) if like is not None and type(like) is type(module) else {}
        if fresh is None:
            before = dict.fromkeys(now, _NOTHING)
        kept = {key: now[key] for key in now.keys() & before.keys() if now[key] != before[key]}
        if kept:
            found[name] = dict(sorted(kept.items()))
    return found


_NOTHING: Any = object()


def restore_attributes(model: nn.Module, values: Mapping[str, Mapping[str, Plain]]) -> None:
    """Give modules what :func:`changed_attributes` found.

    Args:
        model: Just made.
        values: By module and attribute.

    Raises:
        InputError: A module that there is not, or an attribute that it has not.
    """
    modules = dict(model.named_modules())
    for name, attributes in values.items():
        known = _plain_attributes(modules[name]) if name in modules else {}
        for key, value in attributes.items():
            if key not in known or {type(value), type(known[key])} not in _LIKE:
                raise InputError(
                    f"load needs attributes that the model has, got {key!r} of {name!r}. Save it "
                    "again."
                )
            setattr(modules[name], key, value)


_LIKE = tuple({kind, other} for kind in (bool, int, float, str) for other in (kind, type(None))) + (
    {int, float},
    {type(None)},
)


def _plain_attributes(module: nn.Module) -> dict[str, Plain]:
    return {
        key: value
        for key, value in vars(module).items()
        if (value is None or type(value) in (bool, int, float, str))
        and not key.startswith("_")
        and key != "training"
    }


def _digits(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, tuple[float, int]]]:
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for name, module in modules.items():
        for part in DIGITS:
            digits = getattr(module, part, None)
            if isinstance(digits, SignedDigitFormat):
                found.setdefault(name, {})[part] = (digits.grid, digits.steps)
    return found
