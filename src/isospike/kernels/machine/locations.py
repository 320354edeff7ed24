"""The inner loops of a sparse distributed memory: hard locations are activated, written and read.

All loops work on firing orders and touch only what fires. The address decoder is an inverted index
(for each address neuron, the locations it reaches); a write changes active locations x data spikes
counters. Loops are compiled at first use and cached. Sums are taken in a fixed order, so results do
not depend on threads.
"""

import math

import numpy as np
from numba import njit
from numba.extending import overload

OR, MAX, ADD, DECAY, RANK = range(5)
SILENT = -1  # an output that no neuron gives
BLOCK = 65536  # locations whose scores stay in the level-2 cache, and whose numbers fit 16 bits
_MOST = 64  # entries whose largest is looked at before they are
_SHORT = 4096  # scores that are looked at one by one sooner than in chunks
_NARROW = 64  # connections of a location whose sum, rounded up, a byte can hold
_EACH = np.uint64(0x0101010101010101)  # one in each byte of a word
_HIGH, _LOW = _EACH * np.uint64(0x80), _EACH * np.uint64(0x7F)


def _bits(score):
    """The same memory as integers: floats above zero are ordered as their bits are."""
    return score.view(np.int32 if score.itemsize == 4 else np.int64)


@overload(_bits)
def _compiled_bits(score):
    integer = np.int32 if score.dtype.bitwidth == 32 else np.int64
    return lambda score: score.view(integer)


@njit(cache=True, nogil=True)
def _peaks(bits, size, peaks):
    """The largest entry of each chunk of ``size``; of integers, since that is vectorised."""
    for c in range(len(peaks)):
        best = bits[c * size]
        for k in range(c * size + 1, min((c + 1) * size, len(bits))):
            best = max(best, bits[k])
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
    _peaks(_bits(score), size, _bits(peaks))
    _insert(peaks, 0, chunks, count, order, 0, peaks[0])
    bound = peaks[order[count - 1]]
    if bound <= 0:  # bits do not order what is below
        _insert(score, 0, len(score), count, order, 0, score[0])
        return
    kept, lowest = 0, bound
    for c in range(chunks):
        if peaks[c] >= bound and (kept < count or peaks[c] > lowest):
            for k in range(c * size, min((c + 1) * size, len(score))):
                if score[k] >= bound:
                    kept, lowest = _insert(score, k, k + 1, count, order, kept, lowest)


@njit(cache=True, nogil=True, fastmath=True)
def _reach(score, bound):
    """How many entries reach the bound; floats are added, which is vectorised best."""
    found = np.float32(0)
    for k in range(len(score)):
        found += np.float32(1) if score[k] >= bound else np.float32(0)
    return found


@njit(cache=True, nogil=True)
def _append(score, first, bound, where, value, found):
    """Append the entries that reach the bound, counted from ``first``; returns how many there are.

    More than there is room for are counted only.
    """
    for k in range(len(score)):
        if score[k] >= bound:
            if found < len(where):
                where[found], value[found] = first + k, score[k]
            found += 1
    return found


@njit(cache=True, nogil=True)
def _gather(score, first, bound, where, value, found):
    """:func:`_append`, which passes over what has no such entry."""
    if len(score) <= _SHORT:
        return _append(score, first, bound, where, value, found)
    for c in range(0, len(score), 1024):
        if _reach(score[c : c + 1024], bound) == 0:
            continue
        for d in range(c, min(c + 1024, len(score)), 64):
            part = score[d : min(d + 64, c + 1024)]
            if _reach(part, bound) > 0:
                found = _append(part, first + d, bound, where, value, found)
    return found


@njit(cache=True, nogil=True)
def _sort(where, value, order):
    """Write the largest of ``value`` to ``order``, equal ones by index; returns the last value.

    ``where`` ascends. By rank, counted pair by pair: a sort would mispredict nearly every branch.
    """
    ranks, by_rank = np.zeros((2, len(value)), np.int64)
    for i in range(len(value)):
        rank = 0
        for j in range(i):
            before = value[j] >= value[i]
            rank += before
            ranks[j] += 1 - before
        ranks[i] = rank
    for i in range(len(value)):
        by_rank[ranks[i]] = i
    for k in range(len(order)):
        order[k] = where[by_rank[k]]
    return value[by_rank[len(order) - 1]]


@njit(cache=True, nogil=True)
def _bound(guess):
    """What the entries sought will nearly always reach, and few others."""
    return guess[0] - 3 * guess[1]


@njit(cache=True, nogil=True)
def _learn(guess, lowest):
    """Update the running mean and deviation of the last entry sought."""
    if guess[0] == 0:
        guess[0], guess[1] = lowest, 0.1 * lowest
    else:
        off = lowest - guess[0]
        guess[0] += 0.1 * off
        guess[1] += 0.1 * (abs(off) - guess[1])


@njit(cache=True, nogil=True)
def likely_largest(score, order, guess):
    """:func:`largest`, sooner if its last entry is near that of the calls before.

    ``guess``, ``[2]``, begins with zeros; it changes the time this takes, never the result.
    """
    room = 8 * len(order)
    where, value = np.empty(room, np.int64), np.empty(room, score.dtype)
    bound = _bound(guess)
    found = _gather(score, 0, bound, where, value, 0) if bound > 0 else 0
    if len(order) <= found <= room:
        lowest = _sort(where[:found], value[:found], order)
    else:
        largest(score, len(order), order)
        lowest = score[order[-1]]
    _learn(guess, lowest)


@njit(cache=True, nogil=True)
def _excite(address, gain, start, location, rank, power, block):
    """Excitation of a block of locations."""
    block[:] = 0
    step = np.empty(len(power), block.dtype)  # what a connection of each rank adds
    for r in range(len(address)):
        for k in range(len(power)):
            step[k] = gain[r] * power[k]
        reached = slice(start[address[r]], start[address[r] + 1])
        where, which = location[reached], rank[reached]
        for p in range(len(where)):
            block[where[p]] += step[which[p]]


@njit(cache=True, nogil=True)
def _round_up(gain, power, bound):
    """What a connection adds to a score, in steps, no less than it is, and the bound in steps.

    ``[gain, power]``; steps are as small as eight bits allow for the largest sum of a location.
    """
    steps, most = np.zeros((len(gain), len(power)), np.uint8), 0.0
    few = min(len(gain), len(power))
    for i in range(few):
        most += gain[i] * power[i]
    scale = (254 - few) / most
    for r in range(len(gain)):
        for k in range(len(power)):
            steps[r, k] = np.uint8(math.ceil(scale * gain[r] * power[k]))
    return steps, np.int64(scale * bound * (1 - 1e-4))


@njit(cache=True, nogil=True)
def _excite_roughly(address, steps, start, location, rank, rough):
    """Excitation of a block of locations in steps, no less than it is."""
    rough[:] = 0
    for r in range(len(address)):
        step = steps[r]
        reached = slice(start[address[r]], start[address[r] + 1])
        where, which = location[reached], rank[reached]
        for p in range(len(where)):
            rough[where[p]] += step[which[p]]


@njit(cache=True, nogil=True)
def _any(words, least):
    """Whether some byte of the words is at least so large, eight bytes at a time."""
    found = np.uint64(0)
    if least > 128:
        more = _EACH * np.uint64(256 - least)
        for i in range(len(words)):
            found |= ((words[i] & _LOW) + more) & words[i]
    else:
        more = _EACH * np.uint64(128 - least)
        for i in range(len(words)):
            found |= ((words[i] & _LOW) + more) | words[i]
    return found & _HIGH != 0


@njit(cache=True, nogil=True)
def _excitation(neurons, came, gain, power, total):
    """Excitation of the location with these connections, summed as :func:`_excite` does.

    ``came`` is the number of each neuron's spike, or of none. Into ``total[0]``.
    """
    total[0] = 0
    before = -1
    while True:
        next_one, by = len(gain), 0
        for k in range(len(neurons)):
            spike = came[neurons[k]]
            if before < spike < next_one:
                next_one, by = spike, k
        if next_one == len(gain):
            return
        total[0] += gain[next_one] * power[by]
        before = next_one


@njit(cache=True, nogil=True)
def _likely_locations(address, gain, decoder, score, bound, where, value):
    """The locations whose excitation reaches a bound, and how many they are.

    First all excitations are summed in bytes, rounded up, of which a cache holds four times as
    many as of floats; the few that then reach the bound are summed exactly.
    """
    start, location, rank, power, neurons = decoder
    steps, least = _round_up(gain, power, bound)
    least, found, total = max(1, least), 0, np.empty(1, score.dtype)
    if least > 255:
        return 0
    came = np.full(start.shape[1], len(address), np.int64)
    for r in range(len(address)):
        came[address[r]] = r
    scratch = score[: len(score) & ~1].view(np.uint64)
    for b in range(len(start)):
        size = min(BLOCK, len(score) - b * BLOCK)
        words = scratch[: (size + 7) // 8]
        rough = words.view(np.uint8)
        _excite_roughly(address, steps, start[b], location, rank, rough)
        for c in range(0, len(words), 64):
            if not _any(words[c : c + 64], least):
                continue
            for k in range(8 * c, min(8 * c + 512, size)):
                if rough[k] < least:
                    continue
                _excitation(neurons[b * BLOCK + k], came, gain, power, total)
                if total[0] >= bound:
                    if found < len(where):
                        where[found], value[found] = b * BLOCK + k, total[0]
                    found += 1
    return found


@njit(cache=True, nogil=True)
def activate_locations(address, gain, decoder, score, active, guess):
    """The locations that fire for one address, the most excited first, equal ones by index.

    Lines are looked at in blocks whose scores stay in the cache. ``score`` is scratch; ``guess`` as
    in :func:`likely_largest`.
    """
    start, location, rank, power, _ = decoder
    room = 8 * len(active)
    where, value = np.empty(room, np.int64), np.empty(room, score.dtype)
    found, bound = 0, _bound(guess)
    if bound > 0 and len(start) > 1 and len(power) <= _NARROW:
        found = _likely_locations(address, gain, decoder, score, bound, where, value)
    elif bound > 0:
        for b in range(len(start)):
            block = score[: min(BLOCK, len(score) - b * BLOCK)]
            _excite(address, gain, start[b], location, rank, power, block)
            found = _gather(block, b * BLOCK, bound, where, value, found)
    if len(active) <= found <= room:
        lowest = _sort(where[:found], value[:found], active)
    else:
        for b in range(len(start)):
            block = score[b * BLOCK : (b + 1) * BLOCK]
            _excite(address, gain, start[b], location, rank, power, block)
        largest(score, len(active), active)
        lowest = score[active[-1]]
    _learn(guess, lowest)


@njit(cache=True, nogil=True)
def write_counters(counters, rule, decay, active, sigma, data, gain):
    """Store one data order in the active locations."""
    for k in range(len(active)):
        row = counters[active[k]]
        if rule == DECAY:
            for j in range(len(row)):
                row[j] *= decay
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
                row[j] += (1 - decay) * sigma[k] * gain[r]


@njit(cache=True, nogil=True)
def read_counters(counters, rule, active, sigma, activity):
    """Activity of each data neuron: the weighted sum of its active counters; OR, RANK: how many."""
    activity[:] = 0
    for k in range(len(active)):
        row = counters[active[k]]
        if rule == OR or rule == RANK:
            for j in range(len(row)):
                activity[j] += row[j] != 0
        else:
            for j in range(len(row)):
                activity[j] += sigma[k] * row[j]


@njit(cache=True, nogil=True)
def vote_ranks(counters, active, neurons, ranks, votes):
    """Rank of each neuron: the commonest in its active counters, the earlier on a tie."""
    for i in range(len(neurons)):
        votes[:] = 0
        for k in range(len(active)):
            counter = counters[active[k], neurons[i]]
            if counter != 0:
                votes[int(counter) - 1] += 1
        best = 0
        for r in range(1, len(votes)):
            if votes[r] > votes[best]:
                best = r
        ranks[i] = best


@njit(cache=True, nogil=True)
def recall_order(counters, rule, active, sigma, floor, activity, order, ranks, votes):
    """The order that active locations recall; outputs below ``floor`` are silent, at the end."""
    read_counters(counters, rule, active, sigma, activity)
    largest(activity, len(order), order)
    spikes = len(order)
    while spikes > 0 and (activity[order[spikes - 1]] <= 0 or activity[order[spikes - 1]] < floor):
        spikes -= 1
        order[spikes] = SILENT
    if rule == RANK:
        vote_ranks(counters, active, order[:spikes], ranks[:spikes], votes)
        for i in range(1, spikes):  # stable insertion sort by rank
            neuron, rank = order[i], ranks[i]
            place = i
            while place > 0 and ranks[place - 1] > rank:
                order[place], ranks[place] = order[place - 1], ranks[place - 1]
                place -= 1
            order[place], ranks[place] = neuron, rank


@njit(cache=True, nogil=True)
def write_pairs(decoder, counters, rule, decay, sigma, addresses, data, gain_i, gain_d):
    """Write pairs one after another."""
    table, locations, count = decoder
    score, guess = np.zeros(locations, sigma.dtype), np.zeros(2, sigma.dtype)
    active = np.empty(count, np.int64)
    for n in range(len(addresses)):
        activate_locations(addresses[n], gain_i, table, score, active, guess)
        write_counters(counters, rule, decay, active, sigma, data[n], gain_d)


@njit(cache=True, nogil=True)
def read_addresses(decoder, counters, rule, floor, sigma, addresses, gain_i, orders, activities):
    """Recall the order and the activity of every address."""
    table, locations, count = decoder
    score, guess = np.zeros(locations, sigma.dtype), np.zeros(2, sigma.dtype)
    active = np.empty(count, np.int64)
    ranks = np.empty(orders.shape[1], np.int64)
    votes = np.empty(orders.shape[1], np.int64)
    for n in range(len(addresses)):
        activate_locations(addresses[n], gain_i, table, score, active, guess)
        recall_order(counters, rule, active, sigma, floor, activities[n], orders[n], ranks, votes)


@njit(cache=True, nogil=True)
def activate_all(decoder, addresses, gain, out):
    """The locations of every address."""
    table, locations, _ = decoder
    score, guess = np.zeros(locations, gain.dtype), np.zeros(2, gain.dtype)
    for n in range(len(addresses)):
        activate_locations(addresses[n], gain, table, score, out[n], guess)
