"""Predictors that the sequence machine is compared with: PPM-C, a bitwise logistic mixer, PPMd."""

import math
from importlib.util import find_spec

import numpy as np
from numba import njit

ORDER = 6


def ppm_c(ids, alphabet):
    """Whether each symbol was the most probable, and its bits: PPM-C with exclusions, order 6.

    Cleary and Witten (1984); method C of Moffat (1990): an escape has the weight of the number of
    different symbols.
    """
    counts, right, bits = {}, np.zeros(len(ids), bool), np.zeros(len(ids))
    for n, symbol in enumerate(ids):
        contexts = [tuple(ids[max(0, n - k) : n]) for k in range(min(ORDER, n), -1, -1)]
        chance, left, out = {}, 1.0, set()
        for context in contexts:
            seen = {s: c for s, c in counts.get(context, {}).items() if s not in out}
            if not seen:
                continue
            whole = sum(seen.values()) + len(seen)
            for s, c in seen.items():
                chance[s] = left * c / whole
            left *= len(seen) / whole
            out |= seen.keys()
        if len(out) < alphabet:
            rest = left / (alphabet - len(out))
            chance.update((s, rest) for s in range(alphabet) if s not in out)
        else:  # nothing is left to escape to
            chance = {s: p / (1 - left) for s, p in chance.items()}
        bits[n] = -math.log2(chance[symbol])
        right[n] = max(chance, key=chance.__getitem__) == symbol
        for context in contexts:  # update exclusion: not below the first that has met it
            seen = counts.setdefault(context, {})
            seen[symbol] = seen.get(symbol, 0) + 1
            if seen[symbol] > 1:
                break
    return right, bits


def ppmd(text):
    """Bits a character of PPMd, variant H, order 6; None without the package pyppmd."""
    if find_spec("pyppmd") is None:
        return None
    import pyppmd

    return 8 * len(pyppmd.compress(text, max_order=ORDER, mem_size=2**26)) / len(text)


def mixer(ids, alphabet, slots=2**22):
    """The same of a bitwise logistic mixer of the orders 0 to 6 (Mahoney 2005).

    Every bit of a symbol's number is predicted by an adaptive probability of each order; they are
    mixed in the logistic domain, with weights for each bit's place in the tree.
    """
    depth = max(1, (alphabet - 1).bit_length())
    right, bits = np.zeros(len(ids), bool), np.zeros(len(ids))
    table = np.full((ORDER + 1, slots, 2), 0.5, np.float32)
    table[:, :, 1] = 0
    weights = np.full((1 << depth, ORDER + 1), 0.3)
    _mix_all(np.asarray(ids, np.int64), depth, alphabet, table, weights, right, bits)
    return right, bits


@njit(cache=True)
def _slot(h, node, slots):
    h = (h ^ np.uint64(node)) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(h >> np.uint64(40)) & (slots - 1)


@njit(cache=True)
def _chance(hashes, node, table, weights, stretch):
    """Probability that the bit at a node is 1, and each order's logit."""
    dot = 0.0
    for k in range(len(hashes)):
        p = table[k, _slot(hashes[k], node, table.shape[1]), 0]
        stretch[k] = math.log(p / (1 - p))
        dot += weights[node, k] * stretch[k]
    return min(max(1 / (1 + math.exp(-dot)), 1e-6), 1 - 1e-6)


@njit(cache=True)
def _best(hashes, depth, alphabet, table, weights, stretch):
    """The most probable symbol: subtrees are opened, the most probable one first."""
    node, chance = np.zeros(2 << depth, np.int64), np.zeros(2 << depth)
    node[0], chance[0], count = 1, 1.0, 1
    while True:
        top = 0
        for i in range(1, count):
            if chance[i] > chance[top]:
                top = i
        here, p = node[top], chance[top]
        if here >= 1 << depth:
            if here - (1 << depth) < alphabet:
                return here - (1 << depth)
            chance[top] = -1.0
            continue
        one = _chance(hashes, here, table, weights, stretch)
        node[top], chance[top] = 2 * here, p * (1 - one)
        node[count], chance[count] = 2 * here + 1, p * one
        count += 1


@njit(cache=True)
def _mix_all(ids, depth, alphabet, table, weights, right, bits):
    orders = table.shape[0]
    hashes, stretch = np.zeros(orders, np.uint64), np.zeros(orders)
    for n in range(len(ids)):
        h = np.uint64(1)
        for k in range(orders):
            hashes[k] = h * np.uint64(0x9E3779B97F4A7C15)
            h = (h ^ np.uint64(ids[n - 1 - k] + 2 if n > k else 1)) * np.uint64(0xD6E8FEB86659FD93)
            h ^= h >> np.uint64(32)
        right[n] = _best(hashes, depth, alphabet, table, weights, stretch) == ids[n]
        node = 1
        for b in range(depth - 1, -1, -1):
            p = _chance(hashes, node, table, weights, stretch)
            bit = (ids[n] >> b) & 1
            bits[n] -= math.log2(p if bit else 1 - p)
            for k in range(orders):
                weights[node, k] += 0.02 * (bit - p) * stretch[k]
                cell = table[k, _slot(hashes[k], node, table.shape[1])]
                cell[0] += (bit - cell[0]) / (cell[1] + 1.5)
                cell[0] = min(max(cell[0], 1e-4), 1 - 1e-4)
                cell[1] = min(cell[1] + 1, 255)
            node = 2 * node + bit
