"""The bytes of weights, compiled by Numba; see :mod:`isospike.kernels.product.int8`."""

import math

import numpy as np
from numba import njit

MAX_WEIGHT = 127 * 65536 + 127 * 256 + 127  # what three signed bytes hold


@njit(cache=True, nogil=True)
def find_steps(weight, steps):
    """The power of two that brings the largest weight of each row into three bytes."""
    for i in range(len(weight)):
        largest = 0.0
        for w in weight[i]:
            largest = max(largest, abs(w))
        steps[i] = 2.0 ** math.ceil(math.log2(max(largest, 1e-30) / MAX_WEIGHT))


@njit(cache=True, nogil=True)
def find_digits(weight, steps, digits):
    """The bytes of ``weight / steps``, rounded, highest plane first.

    ``digits`` is a tuple, whose length the compiler knows.
    """
    for i in range(len(weight)):
        step = np.float64(steps[i])
        for j in range(weight.shape[1]):
            w = np.int64(round(weight[i, j] / step))
            for plane in range(len(digits) - 1, 0, -1):
                low = (w + 128) % 256 - 128
                digits[plane][i, j] = low
                w = (w - low) // 256
            digits[0][i, j] = w
