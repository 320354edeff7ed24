"""Which representations of a transformer collapse, where, and which heads can be identified.

:func:`measure_ranks` makes a report on a model; the others measure matrices.
"""

from isospike.hf.modules import Norm
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

__all__ = [
    "Collapse", "HeadAmbiguity", "MapMeasures", "Norm", "NormRank", "NumericalRank", "RankReport",
    "affine_rank", "generic_rank", "head_ambiguity", "measure_collapse", "measure_maps",
    "measure_ranks", "norm_rank", "numerical_rank", "recover_heads",
]  # fmt: skip
