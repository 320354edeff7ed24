"""Rank-order sparse distributed memory."""
