"""The inner loops of a sparse distributed memory: choose lines, write cells, read cells.

All work on firing orders and touch only what fires: the address decoder is an inverted index (for
each address neuron, the lines it reaches), a write touches lines x data spikes cells. Compiled at
first use and cached; sums are taken in a fixed order, so results do not depend on threads.
"""

import numpy as np
from numba import njit

OR, MAX, ADD, DECAY, RANK = range(5)
SILENT = -1  # an output that no neuron gives
BLOCK = 8192  # lines whose scores stay in the cache
_MOST = 64  # entries whose largest is looked at before they are


@njit(cache=True, nogil=True)
def _exceed(score, bound):
    """How many entries exceed ``bound``; a sum of integers is vectorised, a maximum is not."""
    found = np.int32(0)
    for k in range(len(score)):
        found += np.int32(score[k] > bound)
    return found


@njit(cache=True, nogil=True, fastmath=True)
def _peaks(score, size, peaks):
    """The largest entry of each chunk of ``size``."""
    for c in range(len(peaks)):
        best = score[c * size]
        for k in range(c * size + 1, min((c + 1) * size, len(score))):
            best = max(best, score[k])
        peaks[c] = best


@njit(cache=True, nogil=True)
def _insert(score, start, stop, count, order, kept, lowest):
    """Insert entries ``start`` to ``stop`` that exceed ``lowest`` into ``order``, of ``kept``."""
    for k in range(start, stop):
        value = score[k]
        if kept == count and value <= lowest:
            continue
        place = kept if kept < count else count - 1
        kept = min(kept + 1, count)
        while place > 0 and score[order[place - 1]] < value:
            order[place] = order[place - 1]
            place -= 1
        order[place] = k
        lowest = score[order[kept - 1]]
    return kept, lowest


@njit(cache=True, nogil=True)
def largest(score, count, order):
    """Write the ``count`` largest entries of ``score`` to ``order``, equal ones by index."""
    size = min(_MOST, len(score) // (4 * count))
    if size < 4:
        _insert(score, 0, len(score), count, order, 0, score[0])
        return
    # The entries sought are no lower than the count-th peak, and lie in chunks that reach it.
    chunks = (len(score) + size - 1) // size
    peaks = np.empty(chunks, score.dtype)
    _peaks(score, size, peaks)
    _insert(peaks, 0, chunks, count, order, 0, peaks[0])
    bound = peaks[order[count - 1]]
    kept, lowest = 0, bound
    for c in range(chunks):
        if peaks[c] >= bound and (kept < count or peaks[c] > lowest):
            for k in range(c * size, min((c + 1) * size, len(score))):
                if score[k] >= bound:
                    kept, lowest = _insert(score, k, k + 1, count, order, kept, lowest)


@njit(cache=True, nogil=True)
def choose_lines(address, gain, start, line, strength, score, chosen):
    """The lines that fire for one address, the most excited first, equal ones by index.

    Lines are looked at in blocks whose scores stay in the cache; ``score`` is scratch.
    """
    count, lines = len(chosen), len(score)
    best = np.empty(count, score.dtype)
    kept = 0
    for b in range(len(start)):
        first = b * BLOCK
        block = score[: min(BLOCK, lines - first)]
        block[:] = 0
        for r in range(len(address)):
            g = gain[r]
            for p in range(start[b, address[r]], start[b, address[r] + 1]):
                block[line[p]] += g * strength[p]
        for c in range(0, len(block), _MOST):
            chunk = block[c : c + _MOST]
            if kept == count and _exceed(chunk, best[count - 1]) == 0:
                continue
            for k in range(len(chunk)):
                value = chunk[k]
                if kept == count and value <= best[count - 1]:
                    continue
                place = kept if kept < count else count - 1
                kept = min(kept + 1, count)
                while place > 0 and best[place - 1] < value:
                    best[place], chosen[place] = best[place - 1], chosen[place - 1]
                    place -= 1
                best[place], chosen[place] = value, first + c + k


@njit(cache=True, nogil=True)
def write_cells(cells, rule, keep, chosen, sigma, data, gain):
    """Store one data order in the chosen lines."""
    for k in range(len(chosen)):
        row = cells[chosen[k]]
        if rule == DECAY:
            for j in range(len(row)):
                row[j] *= keep
        for r in range(len(data)):
            j = data[r]
            if rule == OR:
                row[j] = 1
            elif rule == RANK:
                row[j] = r + 1
            elif rule == MAX:
                row[j] = max(row[j], sigma[k] * gain[r])
            elif rule == ADD:
                row[j] += sigma[k] * gain[r]
            else:
                row[j] += (1 - keep) * sigma[k] * gain[r]


@njit(cache=True, nogil=True)
def read_cells(cells, rule, chosen, sigma, activity):
    """Activity of every data neuron: the chosen lines' cells, weighted; OR and RANK: counted."""
    activity[:] = 0
    for k in range(len(chosen)):
        row = cells[chosen[k]]
        if rule == OR or rule == RANK:
            for j in range(len(row)):
                activity[j] += row[j] != 0
        else:
            for j in range(len(row)):
                activity[j] += sigma[k] * row[j]


@njit(cache=True, nogil=True)
def vote_ranks(cells, chosen, neurons, ranks, votes):
    """Rank of each neuron: the commonest in its cells of the chosen lines, the earlier on a tie."""
    for i in range(len(neurons)):
        votes[:] = 0
        for k in range(len(chosen)):
            cell = cells[chosen[k], neurons[i]]
            if cell != 0:
                votes[int(cell) - 1] += 1
        best = 0
        for r in range(1, len(votes)):
            if votes[r] > votes[best]:
                best = r
        ranks[i] = best


@njit(cache=True, nogil=True)
def recall_order(cells, rule, chosen, sigma, floor, activity, order, ranks, votes):
    """The order that the chosen lines recall; outputs below ``floor`` stay silent, at the end."""
    read_cells(cells, rule, chosen, sigma, activity)
    largest(activity, len(order), order)
    spikes = len(order)
    while spikes > 0 and (activity[order[spikes - 1]] <= 0 or activity[order[spikes - 1]] < floor):
        spikes -= 1
        order[spikes] = SILENT
    if rule == RANK:
        vote_ranks(cells, chosen, order[:spikes], ranks[:spikes], votes)
        for i in range(1, spikes):  # stable insertion sort by rank
            neuron, rank = order[i], ranks[i]
            place = i
            while place > 0 and ranks[place - 1] > rank:
                order[place], ranks[place] = order[place - 1], ranks[place - 1]
                place -= 1
            order[place], ranks[place] = neuron, rank


@njit(cache=True, nogil=True)
def write_pairs(decoder, cells, rule, keep, sigma, addresses, data, gain_i, gain_d):
    """Write pairs one after another."""
    start, line, strength, lines, count = decoder
    score = np.zeros(lines, strength.dtype)
    chosen = np.empty(count, np.int64)
    for n in range(len(addresses)):
        choose_lines(addresses[n], gain_i, start, line, strength, score, chosen)
        write_cells(cells, rule, keep, chosen, sigma, data[n], gain_d)


@njit(cache=True, nogil=True)
def read_addresses(decoder, cells, rule, floor, sigma, addresses, gain_i, orders, activities):
    """Recall the order and the activity of every address."""
    start, line, strength, lines, count = decoder
    score = np.zeros(lines, strength.dtype)
    chosen = np.empty(count, np.int64)
    ranks = np.empty(orders.shape[1], np.int64)
    votes = np.empty(orders.shape[1], np.int64)
    for n in range(len(addresses)):
        choose_lines(addresses[n], gain_i, start, line, strength, score, chosen)
        recall_order(cells, rule, chosen, sigma, floor, activities[n], orders[n], ranks, votes)


@njit(cache=True, nogil=True)
def choose_all(decoder, addresses, gain, out):
    """The lines of every address."""
    start, line, strength, lines, _ = decoder
    score = np.zeros(lines, strength.dtype)
    for n in range(len(addresses)):
        choose_lines(addresses[n], gain, start, line, strength, score, out[n])
