"""Which representations of a transformer collapse, where, and which heads can be told apart."""

from isospike.ranks.collapse import Collapse, measure_collapse
from isospike.ranks.heads import HeadAmbiguity, head_ambiguity, recover_heads
from isospike.ranks.norms import NormRank, norm_rank
from isospike.ranks.numerical import NumericalRank, affine_rank, numerical_rank
from isospike.ranks.report import RankReport, measure_ranks

__all__ = [
    "Collapse",
    "HeadAmbiguity",
    "NormRank",
    "NumericalRank",
    "RankReport",
    "affine_rank",
    "head_ambiguity",
    "measure_collapse",
    "measure_ranks",
    "norm_rank",
    "numerical_rank",
    "recover_heads",
]
