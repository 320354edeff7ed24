"""Sequence models that compute with spikes.

Importing this loads nothing heavy: every public name is imported when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from isospike.errors import (
    InputError,
    IsospikeError,
    MissingExtraError,
    RangeError,
    ShapeError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from isospike.causal.estimator import ScoreSchurSort
    from isospike.causal.report import CausalReport, causal_report
    from isospike.codes import (
        BernoulliCode,
        Code,
        HalfOctaveCode,
        LatencyCode,
        PhaseCode,
        RankOrderCode,
        RateCode,
        SignedDigitCode,
        Similarity,
        WeightedCode,
        code,
        nof_m,
        random_orders,
        significance,
        similarity,
    )
    from isospike.dimension import EffectiveDimension
    from isospike.memory.machine import Prediction, SequenceMachine
    from isospike.memory.sdm import SparseDistributedMemory
    from isospike.models.gated_output import GatedOutputProjection
    from isospike.models.transformer import Transformer
    from isospike.neurons import IF, LIF, PLIF, NeuronParams, NeuronState
    from isospike.porting.audit import Audit, audit
    from isospike.porting.files import load
    from isospike.porting.port import PortResult, port
    from isospike.porting.report import PortReport
    from isospike.positions import Position, position
    from isospike.products import spike_linear, spike_matmul
    from isospike.protocol import (
        FiveOperations,
        MachineOperations,
        TransformerOperations,
        run_online,
    )
    from isospike.ranks.heads import HeadAmbiguity, head_ambiguity, recover_heads
    from isospike.ranks.norms import NormRank, norm_rank
    from isospike.ranks.numerical import NumericalRank, affine_rank, numerical_rank
    from isospike.ranks.report import RankReport, rank_report

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Audit",
    "BernoulliCode",
    "CausalReport",
    "Code",
    "EffectiveDimension",
    "FiveOperations",
    "GatedOutputProjection",
    "HeadAmbiguity",
    "HalfOctaveCode",
    "InputError",
    "IsospikeError",
    "LatencyCode",
    "MachineOperations",
    "MissingExtraError",
    "NeuronParams",
    "NeuronState",
    "NormRank",
    "NumericalRank",
    "PhaseCode",
    "PortReport",
    "PortResult",
    "Position",
    "Prediction",
    "RangeError",
    "RankOrderCode",
    "RankReport",
    "RateCode",
    "ScoreSchurSort",
    "SequenceMachine",
    "ShapeError",
    "SignedDigitCode",
    "Similarity",
    "SparseDistributedMemory",
    "Transformer",
    "TransformerOperations",
    "UnsupportedError",
    "WeightedCode",
    "affine_rank",
    "audit",
    "causal_report",
    "code",
    "head_ambiguity",
    "load",
    "nof_m",
    "norm_rank",
    "numerical_rank",
    "port",
    "position",
    "random_orders",
    "rank_report",
    "recover_heads",
    "run_online",
    "significance",
    "similarity",
    "spike_linear",
    "spike_matmul",
]

_HOMES = {
    "isospike.causal.estimator": ("ScoreSchurSort",),
    "isospike.porting": ("Audit", "PortReport", "PortResult", "audit", "load", "port"),
    "isospike.products": ("spike_linear", "spike_matmul"),
    "isospike.neurons": ("IF", "LIF", "PLIF", "NeuronParams", "NeuronState"),
    "isospike.causal.report": ("CausalReport", "causal_report"),
    "isospike.memory.sdm": ("SparseDistributedMemory",),
    "isospike.models.gated_output": ("GatedOutputProjection",),
    "isospike.models.transformer": ("Transformer",),
    "isospike.positions": ("Position", "position"),
    "isospike.protocol": (
        "FiveOperations",
        "MachineOperations",
        "TransformerOperations",
        "run_online",
    ),
    "isospike.ranks.heads": ("HeadAmbiguity", "head_ambiguity", "recover_heads"),
    "isospike.ranks.norms": ("NormRank", "norm_rank"),
    "isospike.ranks.numerical": ("NumericalRank", "affine_rank", "numerical_rank"),
    "isospike.ranks.report": ("RankReport", "rank_report"),
    "isospike.memory.machine": ("Prediction", "SequenceMachine"),
    "isospike.dimension": ("EffectiveDimension",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """Looks a public name up when it is first used: `isospike --help` needs no torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'isospike' has no attribute {name!r}")
        value = getattr(import_module(_HOME.get(name, "isospike.codes")), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system would put the folder isospike.port where the function isospike.port is.
        if name == "port" and isinstance(value, ModuleType):
            value = value.port
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
