"""Symmetric elimination with the smallest diagonal entry as the next pivot, compiled by Numba.

Only the lower triangle is kept, of the variables that are left, at the first places of the matrix.
A panel of pivots is chosen by the diagonal alone, and each pivot's column is made when it is
chosen. Then the last variables move to the places of those removed, one row and one column a pivot,
and one matrix product a strip of rows updates the rest.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

DONE, STUCK, NOT_POSITIVE = 0, 1, 2
_STRIP = 512  # rows of a product, which ends at the diagonal


class Elimination(NamedTuple):
    """State, changed in place; places are those in the matrix, names those it had at first.

    Attributes:
        rest: The matrix ``[d, d]``; its lower triangle is used.
        diagonal: Of the variables left, by place, up to date; infinite once removed.
        names, places: Which variable is where, and where each variable is.
        waiting: By name, how many must still go first.
        ahead: ``[i, j]`` if i must go before j; empty if none must.
        queue: Names of the block that is being removed.
        line: Next of the queue, its end, and how many variables are gone, ``[3]``.
        order, first: Names as they went, and whether each began a block.
        pivots, margins: By name.
    """

    rest: Any
    diagonal: Any
    names: Any
    places: Any
    waiting: Any
    ahead: Any
    queue: Any
    line: Any
    order: Any
    first: Any
    pivots: Any
    margins: Any


def start(matrix: Any, ahead: Any) -> Elimination:
    """Nothing removed yet; takes the matrix over."""
    d = len(matrix)
    waiting = ahead.sum(0) if ahead.size else np.zeros(d, np.int64)
    return Elimination(
        matrix, matrix.diagonal().copy(), np.arange(d), np.arange(d), waiting, ahead,
        np.empty(d, np.int64), np.zeros(3, np.int64), np.empty(d, np.int64), np.zeros(d, bool),
        np.empty(d), np.empty(d),
    )  # fmt: skip


def eliminate(e: Elimination, count: int, floor: float, ridge: float, gamma: float) -> int:
    """Remove ``count`` variables, the smallest diagonal entry first.

    Entries within ``gamma`` of the smallest make a block that is removed before any other. A pivot
    must be above ``floor``, and ``ridge`` is added to it.

    Returns:
        DONE, STUCK if none may go, or NOT_POSITIVE; the pivot is the last one of ``order`` then.
    """
    size = len(e.rest) - e.line[2]
    columns = np.empty((count, size))
    said = _panel(e, columns, size, floor, ridge, gamma)
    if said != DONE:
        return int(said)
    _close(e, columns, size)
    left = size - count
    rest, c = torch.from_numpy(e.rest), torch.from_numpy(columns)[:, :left]
    for low in range(0, left, _STRIP):
        high = min(low + _STRIP, left)
        rest[low:high, :high].addmm_(c[:, low:high].T, c[:, :high], alpha=-1)
    return DONE


@njit(cache=True, nogil=True, fastmath={"contract"})
def _panel(e, columns, size, floor, ridge, gamma):
    """Choose the pivots and make their columns; of the rest, only the diagonal is updated."""
    for k in range(len(columns)):
        if e.line[0] == e.line[1]:
            if not _gather(e, size, gamma):
                return STUCK
            e.first[e.line[2]] = True
        name = e.queue[e.line[0]]
        p = e.places[name]
        pivot = e.diagonal[p]
        e.order[e.line[2]] = name
        if not pivot > floor:
            return NOT_POSITIVE
        e.line[0] += 1
        e.line[2] += 1
        e.diagonal[p] = np.inf
        others = np.inf
        for j in range(size):
            if e.waiting[e.names[j]] == 0:
                others = min(others, e.diagonal[j])
        e.pivots[name], e.margins[name] = pivot, max(0.0, others / pivot - 1)
        for j in range(len(e.ahead)):
            e.waiting[j] -= e.ahead[name, j]
        column = columns[k]
        column[:p] = e.rest[p, :p]
        column[p:] = e.rest[p:size, p]
        _subtract(columns, k, p)
        scale = 1 / np.sqrt(pivot + ridge)
        for j in range(size):
            column[j] *= scale
            e.diagonal[j] -= column[j] * column[j]
    return DONE


@njit(cache=True, nogil=True)
def _gather(e, size, gamma):
    """The next block, by value, then by name; whether there is one."""
    least = np.inf
    for j in range(size):
        if e.waiting[e.names[j]] == 0:
            least = min(least, e.diagonal[j])
    if least == np.inf:
        return False
    end = 0
    for j in range(size):
        value = e.diagonal[j]
        if value <= least + gamma * abs(least) and e.waiting[e.names[j]] == 0:
            at = end
            while at > 0:
                name = e.queue[at - 1]
                before = e.diagonal[e.places[name]]
                if before < value or (before == value and name < e.names[j]):
                    break
                e.queue[at] = name
                at -= 1
            e.queue[at] = e.names[j]
            end += 1
    e.line[0], e.line[1] = 0, end
    return True


@njit(cache=True, nogil=True, fastmath={"contract"})
def _subtract(columns, k, p):
    """``columns[k] -= columns[:k, p] @ columns[:k]``, four at a time."""
    out = columns[k]
    for i in range(0, k - 3, 4):
        a, b, c, d = columns[i], columns[i + 1], columns[i + 2], columns[i + 3]
        ap, bp, cp, dp = a[p], b[p], c[p], d[p]
        for j in range(len(out)):
            out[j] -= ap * a[j] + bp * b[j] + cp * c[j] + dp * d[j]
    for i in range(k - k % 4, k):
        a = columns[i]
        ap = a[p]
        for j in range(len(out)):
            out[j] -= ap * a[j]


@njit(cache=True, nogil=True)
def _close(e, columns, size):
    """Move the last variables to the places of those removed, until the places left are the first
    ones."""
    last = size - 1
    for hole in range(size - len(columns)):
        if e.diagonal[hole] < np.inf:
            continue
        while e.diagonal[last] == np.inf:
            last -= 1
        e.rest[hole, :hole] = e.rest[last, :hole]
        e.rest[hole, hole] = e.rest[last, last]
        e.rest[hole + 1 : last, hole] = e.rest[last, hole + 1 : last]
        for i in range(len(columns)):
            columns[i, hole] = columns[i, last]
        e.diagonal[hole] = e.diagonal[last]
        e.names[hole] = e.names[last]
        e.places[e.names[hole]] = hole
        last -= 1
