"""What of a model would run on spikes, module by module, before anything is calibrated."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from isospike.errors import InputError, UnsupportedError
from isospike.hf.batches import Batch
from isospike.porting.attention import SpikingAttention
from isospike.porting.discover import Survey, survey
from isospike.porting.elementary import (
    SpikingExp,
    SpikingGate,
    SpikingRelay,
    SpikingRoot,
    SpikingSoftmax,
)
from isospike.porting.functions import SpikingActivation, SpikingGatedMLP, SpikingNorm
from isospike.porting.matmul import SpikingMatmul, SpikingScale
from isospike.porting.product import SpikingProduct
from isospike.report.result import Provenance, Report
from isospike.report.table import Table

SPIKES, FLOAT, REFUSED = "spikes", "float", "refused"
ROWS, TOKENS = 2, 8  # of a sample that is made up
_PRODUCTS = {
    SpikingProduct: "weighted product",
    SpikingMatmul: "product of two activations",
    SpikingScale: "product of two activations",
    SpikingAttention: "attention",
}
_CIRCUITS = {
    SpikingActivation: "activation", SpikingNorm: "normalisation", SpikingGatedMLP: "gated MLP",
    SpikingGate: "product entry by entry", SpikingRelay: "rotation by position",
    SpikingRoot: "root or reciprocal", SpikingExp: "exponential", SpikingSoftmax: "softmax",
}  # fmt: skip


@dataclass(frozen=True)
class ModuleCheck:
    """What would become of one module.

    Attributes:
        name: Name of the module in the model.
        kind: What it computes.
        outcome: ``spikes``, ``float`` (it stays in float) or ``refused`` (the port is refused).
        reason: Why it is not on spikes; empty if it is.
    """

    name: str
    kind: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckReport(Report):
    """What of a model would run on spikes.

    Attributes:
        model: Name of the model.
        modules: Every module that computes something, what is refused first.
    """

    model: str
    modules: tuple[ModuleCheck, ...]

    @property
    def outcome(self) -> str:
        """``refused`` if a module is, ``float`` if one stays in float, else ``spikes``."""
        found = {module.outcome for module in self.modules}
        return next((o for o in (REFUSED, FLOAT) if o in found), SPIKES)

    def verdict(self) -> str:
        """Whether the model can be ported, and how much of it."""
        count = Counter(module.outcome for module in self.modules)
        if self.outcome == REFUSED:
            first = next(m for m in self.modules if m.outcome == REFUSED)
            return f"{self.model} cannot be ported: {first.name or 'the model'} is refused."
        if self.outcome == FLOAT:
            return (
                f"{self.model} can be ported; {count[FLOAT]} of its {len(self.modules)} modules "
                "stay in float."
            )
        return (
            f"{self.model} can be ported, and all of its {len(self.modules)} modules can run on "
            "spikes."
        )

    def headline(self) -> Mapping[str, str]:
        """How many modules have each outcome."""
        count = Counter(module.outcome for module in self.modules)
        labels = {SPIKES: "on spikes", FLOAT: "in float", REFUSED: "refused"}
        return {label: f"{count[outcome]} modules" for outcome, label in labels.items()}

    def tables(self) -> Mapping[str, Table]:
        """All modules, and how often each kind has each outcome."""
        return {"kinds": self._kinds(), "modules": self._modules(self.modules)}

    def brief(self) -> Sequence[Table]:
        """The kinds, and the modules that are not on spikes."""
        left = [module for module in self.modules if module.outcome != SPIKES]
        return [self._kinds(), *([self._modules(left)] if left else [])]

    def _kinds(self) -> Table:
        count = Counter((m.kind, m.outcome) for m in self.modules)
        rows = [(kind, outcome, number) for (kind, outcome), number in count.items()]
        return Table(
            "What the model computes",
            ("computation", "outcome", "modules"),
            tuple(rows),
            meaning="Products run on spikes in every port, the others with functions='spiking'.",
        )

    def _modules(self, modules: Sequence[ModuleCheck]) -> Table:
        columns = {n: n for n in ("name", "kind", "outcome", "reason")}
        return Table.of("Modules", modules, columns)


def check(model: nn.Module, sample: Batch | None = None, *, name: str | None = None) -> CheckReport:
    """Say which modules of a model a port would run on spikes, keep in float or refuse.

    It is much faster than a port, since nothing is calibrated.

    Args:
        model: A PyTorch transformer, usually from Hugging Face; it is not changed.
        sample: Arguments of its forward, a few rows. Made up by default, for a transformers model
            that reads token numbers or pixels.
        name: Name of the model in the report; its class by default.

    Returns:
        One entry for each module that computes something.

    Raises:
        InputError: The model needs a sample, and none is given.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    >>> check(model, {"input": torch.ones(2, 4)}).outcome
    'spikes'
    """
    batch = _made_up(model) if sample is None else sample
    try:
        modules = _entries(survey(model, batch, "spiking"))
    except UnsupportedError as error:
        modules = [ModuleCheck("", type(model).__name__, REFUSED, str(error))]
    order = (REFUSED, FLOAT, SPIKES)
    label = name or type(model).__name__
    return CheckReport(
        title=f"What of {label} can run on spikes",
        provenance=Provenance.of(),
        model=label,
        modules=tuple(sorted(modules, key=lambda module: order.index(module.outcome))),
    )


def _made_up(model: nn.Module) -> dict[str, Any]:
    """A small batch for a transformers model."""
    config = getattr(model, "config", None)
    reads = getattr(model, "main_input_name", None)
    if reads == "input_ids":
        ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) % int(config.vocab_size)  # type: ignore[union-attr]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if reads == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        shape = (ROWS, config.num_channels, config.image_size, config.image_size)  # type: ignore[union-attr]
        return {"pixel_values": torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)}
    raise InputError(
        f"check needs a sample batch for a {type(model).__name__}, got none: inputs are made up "
        "only for models of transformers that read tokens or images. Pass sample."
    )


def _entries(found: Survey) -> list[ModuleCheck]:
    """One entry for each module of a survey."""
    model = found.ported.model
    entries = [
        ModuleCheck(name, _kind(model, name), REFUSED, reason[:1].upper() + reason[1:])
        for name, reason in found.refused.items()
    ]
    for product in found.ported.products:
        if product.name not in found.refused:
            entries.append(ModuleCheck(product.name, _PRODUCTS[type(product)], SPIKES))
    for circuit in found.ported.circuits:
        entries.append(ModuleCheck(circuit.name, _CIRCUITS[type(circuit)], SPIKES))
    for name in found.unreached:
        entries.append(
            ModuleCheck(name, "weighted product", FLOAT, "This sample does not reach it.")
        )
    for name, operators in found.in_float.items():
        reason = f"No circuit computes {', '.join(operators)}: in float with every port."
        entries.append(ModuleCheck(name, _kind(model, name), FLOAT, reason))
    return entries


def _kind(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name)).__name__
