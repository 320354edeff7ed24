"""Compiled kernels: neurons, products of spikes, the sequence machine, elimination.

They are called by the functions above them. A user needs :func:`empty_cache` at most.
"""

from isospike.kernels.runtime.buffers import empty_cache

__all__ = ["empty_cache"]
