"""The hash by which contexts are found."""

import numpy as np
from numba import njit

MIX = np.uint64(0x9E3779B97F4A7C15)
SPREAD = np.uint64(2654435769)
_SHIFT = np.uint64(29)
_ONE = np.uint64(1)


@njit(cache=True, nogil=True)
def mix(h, value):
    """A hash of a hash and a number."""
    h = (h ^ (np.uint64(value) + _ONE)) * MIX
    return h ^ (h >> _SHIFT)
