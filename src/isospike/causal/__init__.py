"""Causal order of tabular data by Schur complements of score Jacobians."""
