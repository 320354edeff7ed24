"""The inner loop of an anomaly's evidence: how often a surprise has been exceeded."""

import math

from numba import njit

STEPS = 10  # intervals of a bit in which means of surprises are counted
BINS = 301  # of them, from 0 to 30 bits


@njit(cache=True, nogil=True)
def judge(counts, last, spans, before, repeats, bits, out):
    """Evidence of each surprise, which then is counted.

    Args:
        counts: How many means of each size there have been, ``[spans, BINS]``; changed.
        last: The last surprises, the latest first; changed.
        spans: Values of a mean, the fewest first.
        before: Values so far.
        repeats: Weight of what has been exceeded.
        bits: Surprises.
        out: Evidence of each, written.
    """
    for i in range(len(bits)):
        for k in range(len(last) - 1, 0, -1):
            last[k] = last[k - 1]
        last[0] = bits[i]
        seen = before + i
        loss, first = 0.0, 0.0
        for k in range(len(spans)):
            width = min(spans[k], seen + 1)
            mean = 0.0
            for j in range(width):
                mean += last[j]
            mean /= width
            if k == 0:
                first = mean
            place = min(int(mean * STEPS), BINS - 1)
            above = 0
            for j in range(place, BINS):
                above += counts[k, j]
            counts[k, place] += 1
            loss += math.log2(1.0 + above)
        out[i] = (first + math.log2(1.0 + seen) - repeats * loss / len(spans)) / 2
