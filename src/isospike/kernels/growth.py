"""Forward and backward selection of a regression's parents, and negentropy, compiled by Numba."""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def grow(gram, count, child, candidates, penalty, room):
    """Choose the parents of one variable, each as a line or as a spline.

    A step adds the parent whose log likelihood grows most after the penalty; then parents are
    dropped while that raises the penalised likelihood.

    Args:
        gram: Inner products of all features, ``count`` for each variable; the first feature of
            each is the variable itself, of norm 1.
        count: Features of a variable.
        child: The variable.
        candidates: Variables that may be parents.
        penalty: Cost of one feature, as a share of the residual: ``log(rows) / rows`` is BIC.
        room: Most features.

    Returns:
        How many features of each candidate were chosen (0, 1 or ``count``), the logarithm of the
        residual variance over the variance, and the number of features.
    """
    m = len(candidates)
    size = m * count
    at = np.empty(size + 1, np.int64)
    for k in range(m):
        for f in range(count):
            at[k * count + f] = candidates[k] * count + f
    at[size] = child * count
    whole = np.empty((size + 1, size + 1))
    for i in range(size + 1):
        for j in range(size + 1):
            whole[i, j] = gram[at[i], at[j]]
    width = np.zeros(m, np.int64)
    residual, used = _forward(whole.copy(), width, count, penalty, room)
    residual, used = _backward(whole, width, count, penalty, residual, used)
    return width, math.log(residual), used


@njit(cache=True, nogil=True)
def _forward(rest, width, count, penalty, room):
    """Add parents; ``rest`` becomes the inner products of what they do not explain."""
    size = len(width) * count
    residual, used = 1.0, 0
    while True:
        best, best_width, best_gain = -1, 0, 0.0
        for k in range(len(width)):
            for w in (1, count):
                if w <= width[k] or used + w - width[k] > room:
                    continue
                gain = _explained(rest, k * count + width[k], k * count + w, size)
                gain = min(gain, residual * (1 - 1e-9))
                value = -math.log1p(-gain / residual) - penalty * (w - width[k])
                if value > best_gain:
                    best, best_width, best_gain = k, w, value
        if best < 0:
            return residual, used
        for f in range(best * count + width[best], best * count + best_width):
            _sweep(rest, f)
        used += best_width - width[best]
        width[best] = best_width
        residual = max(rest[size, size], 1e-9)


@njit(cache=True, nogil=True)
def _backward(whole, width, count, penalty, residual, used):
    """Drop parents, or their curves, while the penalised likelihood grows."""
    size = len(width) * count
    while True:
        best, best_width, best_gain, best_residual = -1, 0, 0.0, residual
        for k in range(len(width)):
            for w in (0, 1):
                if w < width[k]:
                    left = _without(whole, width, count, k, w, size)
                    value = penalty * (width[k] - w) - math.log(left / residual)
                    if value > best_gain:
                        best, best_width, best_gain, best_residual = k, w, value, left
        if best < 0:
            return residual, used
        used -= width[best] - best_width
        width[best] = best_width
        residual = best_residual


@njit(cache=True, nogil=True, fastmath=True)
def residual(gram, features, at, target):
    """What a regression leaves of one feature.

    Args:
        gram: Inner products of all features, of norm 1 each.
        features: Their values, ``[features, rows]``.
        at: Those it regresses on.
        target: The feature that is explained.

    Returns:
        ``[rows]``.
    """
    k = len(at)
    lower, weight = np.zeros((k, k)), np.zeros(k)
    for i in range(k):
        for j in range(i + 1):
            value = gram[at[i], at[j]] + (1e-9 if i == j else 0.0)
            for m in range(j):
                value -= lower[i, m] * lower[j, m]
            lower[i, j] = math.sqrt(max(value, 1e-9)) if i == j else value / lower[j, j]
        value = gram[at[i], target]
        for m in range(i):
            value -= lower[i, m] * weight[m]
        weight[i] = value / lower[i, i]
    left = features[target].copy()
    for i in range(k - 1, -1, -1):
        for m in range(i + 1, k):
            weight[i] -= lower[m, i] * weight[m]
        weight[i] /= lower[i, i]
        for row in range(len(left)):
            left[row] -= weight[i] * features[at[i], row]
    return left


@njit(cache=True, nogil=True, fastmath=True)
def negentropy(sample):
    """How far the entropy of a sample, once standardised, is below a Gaussian's, in nats.

    Hyvarinen's approximation: ``79.047 (E log cosh u - .37457)^2 + 7.4129 (E u exp(-u^2 / 2))^2``.
    """
    n = len(sample)
    mean = 0.0
    for v in sample:
        mean += v
    mean /= n
    square = 0.0
    for v in sample:
        square += (v - mean) ** 2
    scale = math.sqrt(n / square) if square > 0 else 0.0
    even = odd = 0.0
    for v in sample:
        u = (v - mean) * scale
        a = abs(u)
        even += a + math.log1p(math.exp(-2 * a)) - 0.6931471805599453
        odd += u * math.exp(-u * u / 2)
    even = even / n - 0.37457
    odd /= n
    return 79.047 * even * even + 7.4129 * odd * odd


@njit(cache=True, nogil=True)
def _explained(rest, low, high, target):
    """Squared length of the target that the features ``low`` to ``high`` explain."""
    c = high - low
    lower = np.zeros((c, c))
    solved = np.zeros(c)
    gain = 0.0
    for i in range(c):
        for j in range(i + 1):
            value = rest[low + i, low + j]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            if i == j:
                lower[i, i] = np.sqrt(value) if value > 1e-8 else 0.0
            else:
                lower[i, j] = value / lower[j, j] if lower[j, j] > 0 else 0.0
        if lower[i, i] > 0:
            value = rest[low + i, target]
            for k in range(i):
                value -= lower[i, k] * solved[k]
            solved[i] = value / lower[i, i]
            gain += solved[i] ** 2
    return gain


@njit(cache=True, nogil=True)
def _sweep(rest, p):
    """Remove what feature p explains from all others."""
    n = len(rest)
    pivot = rest[p, p]
    if pivot <= 1e-8:
        return
    column = rest[:, p].copy()
    for i in range(n):
        if column[i] != 0.0:
            scale = column[i] / pivot
            for j in range(n):
                rest[i, j] -= scale * column[j]


@njit(cache=True, nogil=True)
def _without(whole, width, count, drop, keep, target):
    """Residual of the regression with only ``keep`` features of one parent."""
    size = 0
    for k in range(len(width)):
        size += keep if k == drop else width[k]
    at = np.empty(size + 1, np.int64)
    t = 0
    for k in range(len(width)):
        for f in range(keep if k == drop else width[k]):
            at[t] = k * count + f
            t += 1
    at[size] = target
    lower = np.zeros((size + 1, size + 1))
    for i in range(size + 1):
        for j in range(i + 1):
            value = whole[at[i], at[j]]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            if i < j or i > j:
                lower[i, j] = value / lower[j, j] if lower[j, j] > 0 else 0.0
            elif i == size:
                return max(value, 1e-9)
            else:
                lower[i, i] = np.sqrt(value) if value > 1e-8 else 0.0
    return 1.0
