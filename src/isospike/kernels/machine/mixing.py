"""The inner loops of the mixed context: lines of counters fire, and their votes are mixed.

A line is a context that has occurred; its cells count what followed. Every symbol, one line a kind
of context fires. How much a line's votes weigh is learned with every symbol, on line.
"""

import math

import numpy as np
from numba import njit

from isospike.kernels.machine.handle import parts
from isospike.kernels.machine.hashing import mix
from isospike.kernels.machine.intervals import at_distance, distance, hear, relate
from isospike.kernels.machine.mixture import (
    CELLS,
    CLOCK,
    CLOSED,
    COMMON,
    COUNTS,
    FOUND,
    KEY,
    KNOWN,
    LATEST,
    LENGTH,
    LINES,
    LONGEST,
    MATCH,
    MATCHED,
    MATCHES,
    MOST_HISTORY,
    MOST_STAMP,
    NUMBER,
    OTHERS,
    READY,
    SECOND,
    SEEN,
    STAMP,
    STORED,
    WIDEST,
    find_line,
)

_DISCOUNT = 0.75  # taken off every count
_PRIOR = 0.5  # of every symbol, where no line has counted
_FEW = 255  # counts of which a gain's step is told apart
_STEP = 0.02 / np.sqrt(np.maximum(1, np.arange(_FEW + 1)))


@njit(cache=True, nogil=True)
def _depth(m):
    """Of the longest context of the last symbols."""
    return m.by_depth.shape[1] - 1


@njit(cache=True, nogil=True)
def _contexts(m, votes):
    """Hash of each kind of context at the present place, and its line."""
    last, place, depth = m.last, votes.place, _depth(m)
    h = m.seed[0]
    for k in range(depth):
        h = mix(h, last[k])
        place[k, 1] = min(np.int64(mix(h, k) >> np.uint64(33)) + 1, 2**31 - 1)
    pair = mix(mix(mix(m.seed[0], 1), last[1]), last[2])
    gap = mix(mix(mix(m.seed[0], 2), last[0]), last[2])
    hashes = (
        mix(m.spans[0], 3), mix(m.spans[0] ^ (m.spans[1] * np.uint64(31)), 4), mix(pair, 5),
        mix(mix(pair, last[3]), 6), mix(mix(gap, last[3]), 7),
        mix(mix(m.spans[1], last[0]), 8),
    )  # fmt: skip
    for k in range(OTHERS):
        place[depth + k, 1] = min(np.int64(hashes[k] >> np.uint64(33)) + 1, 2**31 - 1)
    if len(place) > depth + OTHERS:
        relate(m, place, depth + OTHERS)
    votes.ready[KNOWN] = 0
    for k in range(len(place)):
        place[k, 0] = find_line(m.lines, place[k, 1])
        if k < depth and m.lines[place[k, 0], 0] != 0:
            votes.ready[KNOWN] = k + 1


@njit(cache=True, nogil=True)
def _state(total, kinds):
    """How much a line has counted, in eight steps, and how many symbols, in five."""
    much = min(total - 1, 1)
    while total >= 4 and much < 7:
        much += 1
        total >>= 1
    if total == 3 and much == 1:
        much = 2
    many = 0 if kinds == 1 else 1 if kinds == 2 else 2 if kinds <= 4 else 3 if kinds <= 8 else 4
    return 5 * much + many


@njit(cache=True, nogil=True)
def _take(often, votes, symbol, whole):
    """Make a symbol a candidate."""
    if votes.marked[symbol] == votes.ready[NUMBER]:
        return
    votes.marked[symbol] = votes.ready[NUMBER]
    votes.candidates[votes.ready[FOUND]] = symbol
    votes.ready[FOUND] += 1
    share = (often[symbol] + _PRIOR) / whole
    votes.base[symbol] = share
    votes.chain[symbol] = share
    votes.score[symbol] = math.log(share)


@njit(cache=True, nogil=True)
def _gather(cells, line, place, cell):
    """Note the cells of a line and their symbols; returns its counts."""
    total, kinds, j = 0, 0, line[1]
    while j != 0:
        cell[kinds, 0], cell[kinds, 1] = j, cells[j, 0]
        total += cells[j, 1]
        kinds += 1
        j = cells[j, 2]
    place[3] = kinds
    return total


@njit(cache=True, nogil=True)
def _gather_notes(m, line, place, cell):
    """Likewise, of a relative line; notes that the alphabet lacks do not count."""
    total, kinds, j = 0, 0, line[1]
    while j != 0:
        symbol = at_distance(m, m.cells[j, 0])
        if symbol >= 0:
            cell[kinds, 0], cell[kinds, 1] = j, symbol
            total += m.cells[j, 1]
            kinds += 1
        j = m.cells[j, 2]
    place[3] = kinds
    return total


@njit(cache=True, nogil=True)
def _hear(cells, gains, often, bias, votes, k, total, weight, whole, scale):
    """Add the votes of one line; returns the share of the back-off that it leaves to others.

    ``scale`` is what longer ones left, 0 of a line that has no part in the back-off.
    """
    cell, vote, kinds = votes.cell[k], votes.vote[k], votes.place[k, 3]
    lower = votes.chain if scale > 0 else votes.base
    unit = 1 / (_DISCOUNT * kinds * (scale if scale > 0 else 1.0))
    for i in range(kinds):
        j, symbol = cell[i, 0], cell[i, 1]
        _take(often, votes, symbol, whole)
        count = cells[j, 1]
        more = (count - _DISCOUNT) * unit
        vote[i] = math.log(np.float32(1 + more / lower[symbol]))  # half the time of float64's
        if scale > 0:
            lower[symbol] += more
        votes.score[symbol] += weight * vote[i] + gains[j] + bias[1 + min(count, COUNTS)]
        if i == 0:
            votes.score[symbol] += bias[1]
    return _DISCOUNT * kinds / total * scale


@njit(cache=True, nogil=True)
def vote(m, votes):
    """Probabilities of all symbols at the present place, if they are not known yet."""
    if votes.ready[READY]:
        return
    _contexts(m, votes)
    votes.ready[READY], votes.ready[FOUND], votes.ready[MATCHED] = 1, 0, -1
    votes.ready[NUMBER] += 1
    whole = m.at[CLOCK] + _PRIOR * len(m.often)
    _take(m.often, votes, m.at[COMMON], whole)
    depth, known, latest = _depth(m), votes.ready[KNOWN], m.last[0] % LATEST
    scale = 1.0
    for k in range(len(votes.place)):
        line, place = m.lines[votes.place[k, 0]], votes.place[k]
        place[3] = 0
        if line[0] == 0:
            continue
        if k < depth + OTHERS:
            total = _gather(m.cells, line, place, votes.cell[k])
        else:
            total = _gather_notes(m, line, place, votes.cell[k])
        if total == 0:
            continue
        place[2] = _state(total, place[3])
        bias = m.by_state[k, place[2]]
        weight = bias[0] + m.by_depth[k, known] + m.by_latest[k, latest]
        left = scale if k < depth else 0.0
        left = _hear(m.cells, m.gains, m.often, bias, votes, k, total, weight, whole, left)
        scale = left if k < depth else scale
    length = m.at[LENGTH]
    if length > 0:
        symbol = m.history[m.at[MATCH] & (len(m.history) - 1)]
        _take(m.often, votes, symbol, whole)
        state = length if length < 16 else min(16 + (length - 16) // 8, MATCHES - 1)
        votes.ready[MATCHED] = state
        votes.score[symbol] += m.by_match[state]
    _share(votes)


@njit(cache=True, nogil=True)
def _share(votes):
    """Probabilities out of scores."""
    found, most, base = votes.ready[FOUND], -1e30, 0.0
    for i in range(found):
        symbol = votes.candidates[i]
        most = max(most, votes.score[symbol])
        base += votes.base[symbol]
    other = math.exp(-most)
    whole = max(1 - base, 1e-9) * other
    for i in range(found):
        symbol = votes.candidates[i]
        votes.share[symbol] = math.exp(votes.score[symbol] - most)
        whole += votes.share[symbol]
    for i in range(found):
        votes.share[votes.candidates[i]] /= whole
    votes.rest[0] = other / whole


@njit(cache=True, nogil=True)
def probability(m, votes, symbol):
    """Of one symbol."""
    if votes.marked[symbol] == votes.ready[NUMBER]:
        return votes.share[symbol]
    whole = m.at[CLOCK] + _PRIOR * len(m.often)
    return votes.rest[0] * (m.often[symbol] + _PRIOR) / whole


@njit(cache=True, nogil=True)
def rank(m, votes, order, value):
    """The most probable symbols, equal ones by number, and their probabilities."""
    if m.at[CLOCK] == 0:
        value[:] = 0
        order[:] = np.arange(len(order))
        return
    vote(m, votes)
    kept, last = 0, len(order) - 1
    for i in range(votes.ready[FOUND]):
        symbol = votes.candidates[i]
        kept = _insert(votes.share[symbol], symbol, kept, order, value)
    whole, rest = m.at[CLOCK] + _PRIOR * len(m.often), votes.rest[0]
    least = _least(value[last], whole, rest) if kept > last else -1.0
    if _second(m, votes) < least:
        return
    for symbol in range(len(m.often)):
        if m.often[symbol] >= least and votes.marked[symbol] != votes.ready[NUMBER]:
            kept = _insert(probability(m, votes, symbol), symbol, kept, order, value)
            least = _least(value[last], whole, rest) if kept > last else -1.0


@njit(cache=True, nogil=True)
def _least(p, whole, rest):
    """How often a symbol without a vote occurred if its probability is ``p``, or a bit less."""
    return 0.999999 * p * whole / rest - _PRIOR if rest > 0 else math.inf


@njit(cache=True, nogil=True)
def _second(m, votes):
    """The second largest count, -1 if not known; the commonest symbol is always a candidate."""
    if votes.ready[SECOND] < 0:
        others = m.often.copy()
        others[m.at[COMMON]] = 0
        votes.ready[SECOND] = np.int64(others.max())
    return votes.ready[SECOND]


@njit(cache=True, nogil=True)
def _insert(p, symbol, kept, order, value):
    """Put a symbol into its place among the ``kept`` best ones; how many there are now."""
    place = min(kept, len(order) - 1)
    if kept > place and not _before(p, symbol, value[place], order[place]):
        return kept
    while place > 0 and _before(p, symbol, value[place - 1], order[place - 1]):
        order[place], value[place] = order[place - 1], value[place - 1]
        place -= 1
    order[place], value[place] = symbol, p
    return min(kept + 1, len(order))


@njit(cache=True, nogil=True)
def _before(p, symbol, q, other):
    p = np.float32(p)
    return p > q or (p == q and symbol < other)


@njit(cache=True, nogil=True)
def _teach(m, votes, symbol):
    """Move all weights towards what would have given the symbol more probability."""
    rate = max(0.002, 0.01 / (1 + 0.0002 * m.at[CLOCK]))
    latest, known = m.last[0] % LATEST, votes.ready[KNOWN]
    for k in range(len(votes.place)):
        state, kinds = votes.place[k, 2], votes.place[k, 3]
        slope = 0.0
        for i in range(kinds):
            j, s = votes.cell[k, i, 0], votes.cell[k, i, 1]
            off = (1.0 if s == symbol else 0.0) - votes.share[s]
            slope += off * votes.vote[k, i]
            count = m.cells[j, 1]
            m.by_state[k, state, 1 + min(count, COUNTS)] += rate * off
            m.gains[j] += _STEP[min(count, _FEW)] * off
            if i == 0:
                m.by_state[k, state, 1] += rate * off
        if kinds > 0:
            m.by_state[k, state, 0] += rate * slope
            m.by_depth[k, known] += 0.5 * rate * slope
            m.by_latest[k, latest] += 0.3 * rate * slope
    if votes.ready[MATCHED] >= 0:
        s = m.history[m.at[MATCH] & (len(m.history) - 1)]
        off = (1.0 if s == symbol else 0.0) - votes.share[s]
        m.by_match[votes.ready[MATCHED]] += 4 * rate * off


@njit(cache=True, nogil=True)
def _count(at, lines, cells, gains, place, symbol):
    """Count a symbol in one line, which is made if need be; whether it had been met there."""
    check = place[1]
    line = lines[place[0]]
    if line[0] != check:  # one that was just made may have taken the place
        line = lines[find_line(lines, check)]
    if line[0] == 0:
        if at[CLOSED]:
            return False
        line[0], line[1] = check, 0
        at[LINES] += 1
    at[STAMP] += 1
    line[2] = at[STAMP]
    j, before, earlier, kinds = line[1], 0, 0, 0
    while j != 0 and cells[j, 0] != symbol:
        before, earlier, j = j, before, cells[j, 2]
        kinds += 1
    known = j != 0
    if not known:
        if kinds >= WIDEST:  # the symbol that was met longest ago gives way
            j, before = before, earlier
        elif at[CLOSED]:
            return False
        else:
            at[CELLS] += 1
            j, before = at[CELLS], 0
            cells[j, 2] = line[1]
            line[1] = j
        cells[j, 0], cells[j, 1], gains[j] = symbol, 0, 0
    cells[j, 1] += 1
    if before != 0:
        cells[before, 2], cells[j, 2], line[1] = cells[j, 2], line[1], j
    return known


@njit(cache=True, nogil=True)
def store(m, votes, symbol):
    """Learn what follows the present context: first the weights, then the counts.

    Of the last symbols' contexts, the longest known and the next longer one count, and shorter
    ones down to the first that has met the symbol.
    """
    vote(m, votes)
    _teach(m, votes, symbol)
    depth = _depth(m)
    for k in range(min(votes.ready[KNOWN], depth - 1), -1, -1):
        if _count(m.at, m.lines, m.cells, m.gains, votes.place[k], symbol):
            break
    for k in range(depth, depth + OTHERS):
        _count(m.at, m.lines, m.cells, m.gains, votes.place[k], symbol)
    for k in range(depth + OTHERS, len(votes.place)):
        _count(m.at, m.lines, m.cells, m.gains, votes.place[k], distance(m, symbol))
    m.often[symbol] += 1
    other = symbol
    if m.often[symbol] > m.often[m.at[COMMON]]:
        other, m.at[COMMON] = m.at[COMMON], symbol
    if other != m.at[COMMON] and votes.ready[SECOND] >= 0:
        votes.ready[SECOND] = max(votes.ready[SECOND], np.int64(m.often[other]))
    size = len(m.history)
    m.history[m.at[CLOCK] & (size - 1)] = symbol
    m.at[CLOCK] += 1
    m.at[STORED] = 1
    votes.ready[READY] = 0


@njit(cache=True, nogil=True)
def advance(m, votes, symbol):
    """Put a symbol into the context."""
    votes.ready[READY] = 0
    at, size, learned = m.at, len(m.history), m.at[STORED]
    at[STORED] = 0
    for i in range(len(m.last) - 1, 0, -1):
        m.last[i] = m.last[i - 1]
    m.last[0] = symbol
    if len(m.notes) > 0:
        hear(m, symbol)
    if symbol == at[COMMON]:
        m.spans[1], m.spans[0] = m.spans[0], np.uint64(0)
    else:
        m.spans[0] = mix(m.spans[0], symbol)
    if at[LENGTH] > 0 and m.history[at[MATCH] & (size - 1)] == symbol:
        at[LENGTH] = min(at[LENGTH] + 1, LONGEST)
        at[MATCH] += 1
        if at[MATCH] == at[CLOCK]:  # nothing follows there yet
            at[LENGTH] = 0
    else:
        at[LENGTH] = 0
    if m.last[KEY - 1] < 0:
        return
    h = m.seed[0]
    for i in range(KEY):
        h = mix(h, m.last[i])
    slot = np.int64(h >> np.uint64(24)) & (len(m.recent) - 1)
    found = m.recent[slot]
    if at[LENGTH] == 0 and max(0, at[CLOCK] - size) < found < at[CLOCK]:
        at[MATCH], at[LENGTH] = found, _matched(m, found)
    if learned:
        m.recent[slot] = at[CLOCK]


@njit(cache=True, nogil=True)
def find_places(m):
    """Note every place of the history, as if it had just been learned."""
    size = len(m.history)
    for position in range(max(0, m.at[CLOCK] - size) + KEY, m.at[CLOCK] + 1):
        h = m.seed[0]
        for i in range(KEY):
            h = mix(h, m.history[(position - 1 - i) & (size - 1)])
        m.recent[np.int64(h >> np.uint64(24)) & (len(m.recent) - 1)] = position


@njit(cache=True, nogil=True)
def _matched(m, found):
    """How many of the last symbols came before a position as well; 0 if less than KEY."""
    size, length = len(m.history), 0
    while (
        length < SEEN
        and found - 1 - length >= max(0, m.at[CLOCK] - size)
        and m.history[(found - 1 - length) & (size - 1)] == m.last[length]
    ):
        length += 1
    return length if length >= KEY else 0


@njit(cache=True, nogil=True)
def has_room(m):
    """Whether one more symbol can be stored, whatever it adds."""
    most, at = len(m.by_state), m.at
    if at[CLOCK] >= len(m.history) and len(m.history) < MOST_HISTORY:
        return False
    if at[STAMP] > MOST_STAMP:
        return False
    cells, lines = at[CELLS] + most < len(m.cells), 3 * (at[LINES] + most) < 2 * len(m.lines)
    return at[CLOSED] != 0 or (cells and lines)


@njit(cache=True, nogil=True)
def step(handle, symbol, learn, ahead, order, value):
    """Store a symbol, or only follow it, and rank what comes next if asked to; False without room.

    Without room nothing changes. ``handle`` holds a Mixture and Votes; symbol -1 is none.
    """
    m, votes = parts(handle)
    if learn:
        if not has_room(m):
            return False
        store(m, votes, symbol)
    if symbol >= 0:
        advance(m, votes, symbol)
    if ahead:
        rank(m, votes, order, value)
    return True


@njit(cache=True, nogil=True)
def stream(handle, ids, learn, guess, match, margin, chance):
    """Predict every symbol of ``ids``, then learn it, or follow it; how many had room."""
    m, votes = parts(handle)
    order, value = np.empty(min(2, len(m.often)), np.int64), np.zeros(2, np.float32)
    for n in range(len(ids)):
        if learn and not has_room(m):
            return n
        rank(m, votes, order, value[: len(order)])
        guess[n], match[n], margin[n] = order[0], value[0], value[0] - value[1]
        chance[n] = probability(m, votes, ids[n]) if value[0] > 0 else 1 / len(m.often)
        if learn:
            store(m, votes, ids[n])
        advance(m, votes, ids[n])
    return len(ids)
