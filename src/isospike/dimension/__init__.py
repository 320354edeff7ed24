"""Effective dimension: the number of directions in which the rows of a table vary."""

from isospike.dimension.estimator import (
    AtSize,
    Dimension,
    EffectiveDimension,
    Estimate,
    Moments,
)
from isospike.dimension.measures import (
    is_capped,
    is_capped_intrinsic,
    mle,
    participation_ratio,
    pca_count,
    spectral_entropy,
    stable_rank,
    two_nn,
)

__all__ = [
    "AtSize",
    "Dimension",
    "EffectiveDimension",
    "Estimate",
    "Moments",
    "is_capped",
    "is_capped_intrinsic",
    "mle",
    "participation_ratio",
    "pca_count",
    "spectral_entropy",
    "stable_rank",
    "two_nn",
]
