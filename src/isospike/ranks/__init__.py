"""Which representations of a transformer collapse, where, and which heads can be identified.

:func:`measure_ranks` makes a report on a model; the others measure matrices.
"""

from isospike.hf.modules import Norm
from isospike.ranks.circuits import Circuit, Factored, head_circuits
from isospike.ranks.collapse import (
    Collapse,
    MapMeasures,
    generic_rank,
    measure_collapse,
    measure_maps,
)
from isospike.ranks.heads import HeadAmbiguity, head_ambiguity, recover_heads
from isospike.ranks.norms import NormRank, norm_rank
from isospike.ranks.numerical import NumericalRank, affine_rank, numerical_rank
from isospike.ranks.report import RankReport, measure_ranks
from isospike.ranks.shares import LogitShares
from isospike.ranks.weights import PowerLaw, Spectrum, fit_power_law, measure_weights, spectrum

__all__ = [
    "Circuit", "Collapse", "Factored", "HeadAmbiguity", "LogitShares", "MapMeasures", "Norm",
    "NormRank", "NumericalRank", "PowerLaw", "RankReport", "Spectrum", "affine_rank",
    "fit_power_law", "generic_rank", "head_ambiguity", "head_circuits", "measure_collapse",
    "measure_maps", "measure_ranks", "measure_weights", "norm_rank", "numerical_rank",
    "recover_heads", "spectrum",
]  # fmt: skip
