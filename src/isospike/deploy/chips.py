"""What of a port fits on a neuromorphic chip, by the limits that its makers published.

Only limits are compared: no energy and no speed is claimed for a chip that has not run the port.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from isospike.errors import InputError, UnsupportedError
from isospike.porting.attention import SpikingAttention
from isospike.porting.product import SpikingProduct
from isospike.porting.run import ATTRIBUTE
from isospike.report.result import Provenance, Report
from isospike.report.table import Table


class Chip(NamedTuple):
    """Published limits of a chip; None where its makers name none.

    Attributes:
        title: Name and maker.
        cores: Cores of a chip.
        neurons: Neurons of a core.
        axons: Lines that enter a core.
        synapses: Synapses of a core.
        weight_bits: Bits of a weight.
        source: Where they are published.
    """

    title: str
    cores: int
    neurons: int | None
    axons: int | None
    synapses: int | None
    weight_bits: int
    source: str


CHIPS = {
    "loihi2": Chip(
        "Loihi 2 (Intel)", 128, 8192, 4096, 120_000_000 // 128, 8,
        "Intel (2021), Taking neuromorphic computing to the next level with Loihi 2, technology "
        "brief: 128 cores, 8,192 neurons a core, 120 million synapses a chip, weights of up to 8 "
        "bits, spikes of up to 32; 4,096 axons a core as the tools of its users say",
    ),
    "spinnaker2": Chip(
        "SpiNNaker 2 (TU Dresden)", 152, None, None, 128 * 1024, 8,
        "Gonzalez et al. (2024), SpiNNaker2: 152 processing elements of 128 kB, in which a weight "
        "of 8 bits is a byte",
    ),
    "truenorth": Chip(
        "TrueNorth (IBM)", 4096, 256, 256, 65_536, 1,
        "Merolla et al. (2014), Science 345: 4,096 cores of 256 axons, 256 neurons and a crossbar "
        "of one bit; four weights a neuron, by the kind of the axon",
    ),
    "speck": Chip(
        "Speck (SynSense)", 9, None, 1024, None, 8,
        "SynSense, documentation of sinabs: 9 layers of up to 1,024 channels, weights of 8 bits, "
        "membranes of 16",
    ),
    "xylo": Chip(
        "Xylo (SynSense)", 1, 1000, 16, None, 8,
        "Bos and Muir (2022), Sub-mW neuromorphic SNN audio processing applications with Rockpool "
        "and Xylo: 16 input channels, up to 1,000 neurons, weights of 8 bits",
    ),
}  # fmt: skip
UNKNOWN = {"akida": "BrainChip names neither neurons nor synapses of a core of its Akida"}
"""Chips whose makers publish no limits that a product can be compared with."""


@dataclass(frozen=True)
class LayerFit:
    """What a product needs of a chip.

    Attributes:
        name: The product.
        axons: Lines in, one for each neuron of its site.
        neurons: Membranes.
        synapses: Weights, once for each line.
        cores: Cores that hold it.
        limit: The limit that is exceeded by most on one core, and by how many times; empty if it
            fits on one.
    """

    name: str
    axons: int
    neurons: int
    synapses: int
    cores: int
    limit: str


@dataclass(frozen=True, kw_only=True)
class ChipReport(Report):
    """What of a port fits on a chip.

    Attributes:
        chip: Its name, and its maker.
        cores: Cores of one chip.
        source: Where its limits are published.
        layers: The products.
        refused: Parts that it cannot compute, and what to change.
        change: What would make more of it fit.

    >>> import isospike, torch
    >>> layer, x = torch.nn.Linear(8, 4), torch.rand(8, 8)
    >>> port = isospike.port(layer, [{"input": x}] * 4, ranges="static", weight_bits=8)
    >>> report = check_chip(port.model, "loihi2")
    >>> report.needed, report.layers[0].neurons
    (1, 4)
    """

    chip: str
    cores: int
    source: str
    layers: tuple[LayerFit, ...]
    refused: tuple[tuple[str, str], ...]
    change: tuple[str, ...]

    @property
    def needed(self) -> int:
        """Cores that the products need together."""
        return sum(layer.cores for layer in self.layers)

    def verdict(self) -> str:
        """Whether the products fit, and on how many chips."""
        chips = math.ceil(self.needed / self.cores)
        where = "one chip" if chips == 1 else f"{chips} chips"
        return (
            f"The products need {self.needed} cores, which are {where} of {self.chip}; "
            f"{len(self.refused)} other parts have no place there."
        )

    def headline(self) -> Mapping[str, str]:
        """Cores and what is left."""
        return {"cores": f"{self.needed} of {self.cores}", "left out": f"{len(self.refused)} parts"}

    def tables(self) -> Mapping[str, Table]:
        """Every product, and what is refused."""
        columns = ("name", "axons", "neurons", "synapses", "cores", "limit")
        return {
            "changes": Table("What to change", ("change",), tuple((c,) for c in self.change)),
            "layers": Table.of("Products", self.layers, {n: n for n in columns}),
            "refused": Table("Not on the chip", ("name", "why"), self.refused),
        }

    def brief(self) -> Sequence[Table]:
        """What to change, and the products."""
        tables = self.tables()
        return [tables["changes"], tables["layers"]] if self.change else [tables["layers"]]


def check_chip(model: nn.Module, target: str) -> ChipReport:
    """Say what of a port fits on a chip, on how many cores, and which limit comes first.

    Args:
        model: A port.
        target: Name of the chip, one of :data:`CHIPS`.

    Returns:
        One entry for each product with weights, and what is refused.

    Raises:
        InputError: Nobody described the chip.
        UnsupportedError: The model is no port.

    >>> import isospike, torch
    >>> layer, x = torch.nn.Linear(8, 4), torch.rand(8, 8)
    >>> port = isospike.port(layer, [{"input": x}] * 4, ranges="static", weight_bits=8)
    >>> check_chip(port.model, "truenorth").change[0]
    'Weights have 8 bits and the chip 1: train for it.'
    """
    chip = find_chip(target)
    if getattr(model, ATTRIBUTE, None) is None:
        raise UnsupportedError(
            f"check needs a port for a target, got a {type(model).__name__}. Port it first."
        )
    layers, refused = [], []
    change: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, SpikingProduct):
            layers.append(_fit(name, module, chip))
            if module.weight_bits > chip.weight_bits:
                change[_fewer_bits(module.weight_bits, chip)] = None
            if module.site.dynamic:
                change["A gain for each token has no place: port with --ranges static."] = None
        elif isinstance(module, SpikingAttention):
            refused.append((name, "a product of two activations; keep it on the host"))
        elif type(module).__name__.endswith(("Norm", "Activation", "Softmax")):
            refused.append((name, "a function in float; keep it on the host"))
    needed = sum(layer.cores for layer in layers)
    if needed > chip.cores:
        parts = math.ceil(needed / chip.cores)
        change[f"Split the port over {parts} chips, layer by layer."] = None
    return ChipReport(
        title=f"{chip.title}", provenance=Provenance.of({"target": target}), chip=chip.title,
        cores=chip.cores, source=chip.source, layers=tuple(layers), refused=tuple(refused),
        change=tuple(change),
    )  # fmt: skip


def find_chip(target: str) -> Chip:
    """The limits of a chip.

    Raises:
        InputError: Nobody described it, or its makers name no limits.
    """
    if target not in CHIPS:
        why = f", of which it is not known: {UNKNOWN[target]}" if target in UNKNOWN else ""
        raise InputError(
            f"check needs a chip that is described, got {target!r}{why}. Choose one of "
            f"{', '.join(CHIPS)}."
        )
    return CHIPS[target]


def _fewer_bits(bits: int, chip: Chip) -> str:
    if chip.weight_bits < 4:
        return f"Weights have {bits} bits and the chip {chip.weight_bits}: train for it."
    return f"Weights have {bits} bits and the chip {chip.weight_bits}: port with --weight-bits 8."


def _fit(name: str, product: SpikingProduct, chip: Chip) -> LayerFit:
    lines = product.site.code.neurons
    axons = product.weight.shape[1] * (1 if product.conv is None else product.conv.groups) * lines
    neurons, synapses = len(product.weight), product.weight.numel() * lines
    needs = {"axons": axons, "neurons": neurons, "synapses": synapses}
    over = {n: needs[n] / limit for n in needs if (limit := getattr(chip, n)) is not None}
    across = max(1, math.ceil(over.get("axons", 0))) * max(1, math.ceil(over.get("neurons", 0)))
    cores = max(across, math.ceil(over.get("synapses", 0)))
    worst = max(over, key=over.__getitem__) if over else ""
    limit = f"{worst}, {over[worst]:.1f} times" if worst and over[worst] > 1 else ""
    return LayerFit(name, axons, neurons, synapses, cores, limit)
