"""Spike codes: between numbers and spike trains, and how their error falls with time steps.

=================  ==============  ========  ====================  ==========================
code               name            neurons   levels                root-mean-square error [1]_
=================  ==============  ========  ====================  ==========================
RateCode           rate            1         T                     1 / (sqrt(12) T)
BernoulliCode      bernoulli       1         T                     1 / sqrt(6 T)
PhaseCode          phase           1         2^T - 1               1 / (sqrt(12) (2^T - 1))
SignedDigitCode    signed-digit    2         2^T - 1 each sign     1 / (sqrt(12) (2^T - 1))
HalfOctaveCode     half-octave     2         2^(T/2) [2]_          1 / (sqrt(12) levels)
LatencyCode        latency         1         T - 1                 1 / (sqrt(12) (T - 1))
RankOrderCode      (vectors)       1         --                    --
=================  ==============  ========  ====================  ==========================

.. [1] For x uniform over the code's range.
.. [2] ``2^((T + 1) / 2) - 1`` for odd T, ``3 * 2^(T / 2 - 1) - 1`` for even T.

To add a code, write its class (the attributes of :class:`WeightedCode`) and name it in
:data:`CODES`.
"""

from isospike.codes.base import Code, WeightedCode
from isospike.codes.digits import HalfOctaveCode, PhaseCode, SignedDigitCode
from isospike.codes.law import Law, fit_law
from isospike.codes.orders import (
    RankOrderCode,
    Similarity,
    nof_m,
    random_orders,
    significance,
    similarity,
)
from isospike.codes.registry import CODES, code
from isospike.codes.unary import BernoulliCode, LatencyCode, RateCode

__all__ = [
    "CODES",
    "BernoulliCode",
    "Code",
    "HalfOctaveCode",
    "LatencyCode",
    "Law",
    "PhaseCode",
    "RankOrderCode",
    "RateCode",
    "SignedDigitCode",
    "Similarity",
    "WeightedCode",
    "code",
    "fit_law",
    "nof_m",
    "random_orders",
    "significance",
    "similarity",
]
