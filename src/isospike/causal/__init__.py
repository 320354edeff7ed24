"""Causal order of tabular data by Schur complements of score Jacobians.

:func:`order_causes` makes a report; :class:`ScoreSchurSort` is the estimator behind it. The other
names are its parts: scores, elimination, pruning, metrics, simulated data and readers of files.
"""

from isospike.causal.background import BackgroundKnowledge, read_background
from isospike.causal.edges import parent_slopes, prune, threshold_edges
from isospike.causal.estimator import ScoreSchurSort
from isospike.causal.guards import NoiseWarning, ScaleWarning, Sortability, sortability
from isospike.causal.metrics import (
    Comparison,
    compare_to_truth,
    order_divergence,
    structural_hamming_distance,
    structural_intervention_distance,
)
from isospike.causal.networks import Network, parse_bif
from isospike.causal.report import OrderReport, order_causes
from isospike.causal.schur import SchurOrder, leaf_rows, sample_sort, schur_complement, schur_sort
from isospike.causal.scores import information, stein_score
from isospike.causal.simulate import Simulation, random_dag, simulate
from isospike.causal.splines import spline_sort
from isospike.causal.table import (
    DataTable,
    parse_edges,
    parse_scales,
    parse_table,
    parse_tiers,
    read_table,
)

__all__ = [
    "BackgroundKnowledge", "Comparison", "DataTable", "Network",
    "NoiseWarning", "OrderReport", "ScaleWarning", "SchurOrder", "ScoreSchurSort",
    "Simulation", "Sortability", "compare_to_truth", "information", "leaf_rows",
    "order_causes", "order_divergence", "parent_slopes", "parse_bif", "parse_edges",
    "parse_scales", "parse_table", "parse_tiers", "prune", "random_dag", "read_background",
    "read_table", "sample_sort", "schur_complement", "schur_sort", "simulate", "sortability",
    "spline_sort", "stein_score", "structural_hamming_distance",
    "structural_intervention_distance", "threshold_edges",
]  # fmt: skip
