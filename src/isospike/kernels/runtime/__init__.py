"""Buffers, threads and operators that the kernels share."""
