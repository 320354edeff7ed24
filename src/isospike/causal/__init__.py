"""Causal order of tabular data by Schur complements of score Jacobians."""

from isospike.causal.background import BackgroundKnowledge, read_background
from isospike.causal.estimator import ScoreSchurSort
from isospike.causal.report import OrderReport, order_causes
from isospike.causal.schur import SchurOrder, schur_sort
from isospike.causal.table import DataTable, read_table

__all__ = [
    "BackgroundKnowledge",
    "DataTable",
    "OrderReport",
    "SchurOrder",
    "ScoreSchurSort",
    "order_causes",
    "read_background",
    "read_table",
    "schur_sort",
]
