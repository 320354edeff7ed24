"""Sequence models that compute with spikes.

Importing this loads torch and numpy, nothing heavier; transformers, plotly and rich load when used.
"""

from isospike.codes import (
    BernoulliCode,
    Code,
    LatencyCode,
    LinearCode,
    PhaseCode,
    RankOrderCode,
    RateCode,
    SignedDigitCode,
    linear_code,
)
from isospike.errors import (
    IsospikeError,
    MissingExtraError,
    RangeError,
    ShapeError,
    UnsupportedError,
)
from isospike.port.audit import Audit, audit
from isospike.port.files import load
from isospike.port.port import PortResult, port
from isospike.port.result import PortReport

__all__ = [
    "Audit",
    "BernoulliCode",
    "Code",
    "IsospikeError",
    "LatencyCode",
    "LinearCode",
    "MissingExtraError",
    "PhaseCode",
    "PortReport",
    "PortResult",
    "RangeError",
    "RankOrderCode",
    "RateCode",
    "ShapeError",
    "SignedDigitCode",
    "UnsupportedError",
    "audit",
    "linear_code",
    "load",
    "port",
]
