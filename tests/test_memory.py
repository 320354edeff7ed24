"""Sparse distributed memory: its decoder, its loops, its write rules and what it recalls."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memories import draw, small, tiny

from isospike.codes.orders import nof_m, random_orders, significance, similarity
from isospike.errors import RangeError
from isospike.kernels.machine.locations import largest
from isospike.memory import sdm
from isospike.memory.decoder import AddressDecoder
from isospike.memory.sdm import (
    RULES,
    SparseDistributedMemory,
    capacity,
    expected_recall,
    occupancy,
)


def pairs(count, seed=1):
    return random_orders(count, 4, 24, draw(seed)), random_orders(count, 3, 20, draw(seed + 1))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


every_rule = pytest.mark.parametrize("rule", RULES)
HERE = torch.tensor([0])  # an address of a tiny memory


# The largest entries.


@given(
    st.integers(0, 2**31),
    st.one_of(st.integers(1, 300), st.integers(300, 5000)),
    st.one_of(st.integers(1, 20), st.integers(1, 300)),
    st.sampled_from([2, 10, 1000, 10**9]),
)
def test_largest_is_numpys_stable_sort(seed, size, count, values):
    count = min(size, count)
    score = np.random.default_rng(seed).integers(-values // 2, values, size).astype(np.float64)
    order = np.empty(count, np.int64)
    largest(score, count, order)
    assert order.tolist() == np.argsort(-score, kind="stable")[:count].tolist()


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("shape", ["rising", "falling", "flat", "last", "ends"])
def test_largest_of_a_shape(shape, count):
    for size in [*range(60, 70), 255, 256, 257, 4095, 4096, 4097]:
        x = np.arange(size, dtype=np.float64)
        score = {
            "rising": x,
            "falling": -x,
            "flat": np.zeros(size),
            "last": (x == size - 1).astype(np.float64),
            "ends": np.abs(x - size / 2),
        }[shape]
        order = np.empty(count, np.int64)
        largest(score, count, order)
        assert order.tolist() == np.argsort(-score, kind="stable")[:count].tolist(), size


# The decoder.


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(0, 12), st.integers(1, 40))
def test_a_location_has_its_connections_and_each_strength_once(seed, connections, more, locations):
    size = connections + more
    matrix = AddressDecoder(size, connections, 1, locations, 0.5, draw(seed)).matrix()
    assert matrix.shape == (locations, size)
    assert (matrix != 0).sum(1).tolist() == [connections] * locations
    strengths = matrix.sort(dim=1, descending=True).values[:, :connections]
    expected = 0.5 ** torch.arange(connections, dtype=torch.float64)
    assert torch.equal(strengths, expected.expand(locations, -1))


@pytest.mark.parametrize("locations", [1, 4096, 4097, 2**16, 2**16 + 1])
def test_every_location_is_connected_however_many(locations):
    matrix = AddressDecoder(4, 2, 1, locations, 0.5, draw(0)).matrix()
    assert ((matrix == 1).sum(1) == 1).all()
    assert ((matrix == 0.5).sum(1) == 1).all()


def test_connections_are_spread_evenly():
    matrix = AddressDecoder(8, 2, 1, 20000, 0.5, draw(0)).matrix()
    for strength in (1.0, 0.5):
        counts = (matrix == strength).sum(0)
        assert (counts - 2500).abs().max() < 5 * (20000 / 8 * 7 / 8) ** 0.5


@pytest.mark.parametrize("alpha", [0.5, 1.0])  # the sums are exact
@pytest.mark.parametrize("locations", [6, 48, 700])
def test_the_active_locations_are_the_most_excited(alpha, locations):
    memory = SparseDistributedMemory(
        (4, 24), (5, 6, locations), (3, 20), alpha, generator=draw(locations)
    )
    address = random_orders(200, 4, 24, draw(1))
    h = significance(address, 24, alpha) @ memory.decoder.matrix().t()
    assert torch.equal(memory.active_locations(address), nof_m(h, 6))


def test_the_active_locations_are_the_most_excited_where_sums_are_rounded():
    memory = small(alpha=0.9)
    address = random_orders(200, 4, 24, draw(1))
    h = significance(address, 24, 0.9) @ memory.decoder.matrix().t()
    close(h.gather(1, memory.active_locations(address)), h.sort(1, descending=True).values[:, :6])


@pytest.mark.parametrize(
    ("decoder", "got"),
    [
        ((0, 1, 4), "got 0 of 24"),
        ((25, 1, 4), "got 25 of 24"),
        ((5, 0, 4), "got 0 of 4"),
        ((5, 5, 4), "got 5 of 4"),
        ((5, 0, 0), "got 0 of 0"),
    ],
)
def test_a_decoder_needs_connections_and_locations(decoder, got):
    with pytest.raises(RangeError, match=f"^AddressDecoder needs .*{got}"):
        SparseDistributedMemory((4, 24), decoder, (3, 20))


# What a memory computes.


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_add_is_linear_attention(alpha):
    # sum over pairs of k(q, p) y, k(q, p) = phi(q) . phi(p), phi(x) = sigma of the locations.
    memory = small("add", alpha)
    p, y = pairs(40)
    memory.write(p, y)

    def phi(x):
        h = significance(x, 24, alpha) @ memory.decoder.matrix().t()
        return significance(nof_m(h, 6), 48, alpha)

    q = torch.cat([p[:10], random_orders(30, 4, 24, draw(9))])
    close(memory.activity(q), phi(q) @ phi(p).t() @ significance(y, 20, alpha))


def written(memory, p, y):
    """What each pair puts into each cell, ``[pairs, locations, D]``."""
    sigma = significance(memory.active_locations(p), 48, memory.alpha)
    return sigma[:, :, None] * significance(y, 20, memory.alpha)[:, None, :]


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("rule", ["add", "max", "or", "decay"])
def test_a_read_is_the_cells_weighted(rule, alpha):
    memory = small(rule, alpha)
    p, y = pairs(60)
    memory.write(p, y)
    store = written(memory, p, y)
    if rule == "add":
        cells = store.sum(0)
    elif rule == "max":
        cells = store.amax(0)  # per-line max pool
    elif rule == "or":
        cells = (store.amax(0) > 0).double()
    else:
        cells = torch.zeros(48, 20, dtype=torch.float64)
        for pair, locations in zip(store, memory.active_locations(p), strict=True):
            cells[locations] = 0.7 * cells[locations] + (1 - 0.7) * pair[locations]
    close(torch.from_numpy(memory.counters).double(), cells)
    q = torch.cat([p[:10], random_orders(30, 4, 24, draw(9))])
    weights = significance(memory.active_locations(q), 48, 1.0 if rule == "or" else alpha)
    close(memory.activity(q), weights @ cells)
    if rule == "or":  # whole numbers: ranked exactly
        expected = nof_m(weights @ cells, 3)
        expected[(weights @ cells).gather(1, expected) == 0] = -1
        assert torch.equal(memory.read(q), expected)


def test_or_is_max_where_every_spike_weighs_the_same():
    one, other = small("or", 1.0), small("max", 1.0)
    p, y = pairs(60)
    one.write(p, y)
    other.write(p, y)
    assert np.array_equal(one.counters, other.counters)
    q = torch.cat([p, random_orders(30, 4, 24, draw(9))])
    assert torch.equal(one.activity(q), other.activity(q))
    assert torch.equal(one.read(q), other.read(q))


def test_or_by_hand():
    memory = tiny("or")
    memory.write(HERE, torch.tensor([2, 0]))
    assert memory.counters.tolist() == [[1, 0, 1]]
    assert memory.read(HERE).tolist() == [0, 2], "by index: no order is kept"


def test_max_and_add_by_hand():
    for rule, cells in {"max": [0.5, 1, 1], "add": [0.5, 1.5, 1]}.items():
        memory = tiny(rule)
        memory.write(HERE, torch.tensor([2, 1]))  # 0, 1/2, 1
        memory.write(HERE, torch.tensor([1, 0]))  # 1/2, 1, 0
        assert memory.counters.tolist() == [cells]
        assert memory.read(HERE).tolist() == [1, 2]


def test_decay_by_hand():
    memory = tiny("decay", decay=0.5)
    memory.write(HERE, torch.tensor([0, 1]))
    assert memory.counters.tolist() == [[0.5, 0.25, 0]]
    memory.write(HERE, torch.tensor([1, 2]))  # 1/2 of that, and 1/2 of 0, 1, 1/2
    assert memory.counters.tolist() == [[0.25, 0.625, 0.25]]
    memory.write(HERE, torch.tensor([2, 1]))
    assert memory.counters.tolist() == [[0.125, 0.5625, 0.625]]
    assert memory.read(HERE).tolist() == [2, 1]


def test_decay_at_its_ends_keeps_all_or_nothing():
    for decay, cells in {0.0: [0, 1, 0.5], 1.0: [0, 0, 0]}.items():
        memory = tiny("decay", decay=decay)
        memory.write(HERE, torch.tensor([0, 1]))
        memory.write(HERE, torch.tensor([1, 2]))
        assert memory.counters.tolist() == [cells]


def test_rank_by_hand():
    memory = tiny("rank", locations=3, data=(3, 5))
    memory.write(HERE, torch.tensor([4, 0, 2]))
    memory.write(HERE, torch.tensor([2, 3, 4]))
    assert memory.counters.tolist() == [[2, 0, 1, 2, 3]] * 3, "the last one wins"
    # Lines with the cell set: 3 1 2 3 1, so 0, 3 and 2; their commonest ranks: 1, 2 and 0.
    memory.counters[:] = [[2, 1, 0, 3, 0], [2, 0, 1, 3, 0], [1, 0, 1, 3, 2]]
    assert memory.activity(HERE).tolist() == [3, 1, 2, 3, 1]
    assert memory.read(HERE).tolist() == [2, 0, 3]


def test_rank_takes_the_earlier_rank_on_a_tie_then_the_earlier_neuron():
    memory = tiny("rank", locations=2)
    memory.counters[:] = [[2, 0, 1], [1, 0, 1]]  # 0 votes for ranks 1 and 0, 2 for 0 twice
    assert memory.read(HERE).tolist() == [0, 2]
    memory.counters[:] = [[2, 0, 1], [2, 0, 1]]
    assert memory.read(HERE).tolist() == [2, 0]


@every_rule
def test_one_pair_is_recalled(rule):
    memory = small(rule)
    p, y = pairs(1)
    memory.write(p, y)
    expected = y.sort().values if rule == "or" else y
    assert torch.equal(memory.read(p), expected)


@pytest.mark.parametrize("rule", ["or", "max", "rank"])
def test_a_pair_written_twice_is_written_once(rule):
    memory = small(rule)
    p, y = pairs(50)
    for n in range(50):
        memory.write(p[n], y[n])
        before = memory.counters.copy()
        memory.write(p[n], y[n])
        assert np.array_equal(memory.counters, before)


@pytest.mark.parametrize("rule", ["or", "max"])
@given(st.permutations(range(30)))
def test_the_order_of_writes_does_not_matter(rule, order):
    memory, other = small(rule), small(rule)
    p, y = pairs(30)
    memory.write(p, y)
    other.write(p[list(order)], y[list(order)])
    assert np.array_equal(memory.counters, other.counters)


def test_what_keeps_nothing_recalls_the_last_write():
    memory = small("decay", decay=0.0)
    p, y = pairs(20)
    memory.write(p[:1].expand(20, -1), y)
    assert torch.equal(memory.read(p[0]), y[-1])


# Batches.


@every_rule
def test_a_batch_is_its_entries_one_by_one(rule):
    memory, other = small(rule), small(rule)
    p, y = pairs(60)
    copies = p.clone(), y.clone()
    memory.write(p.view(5, 12, 4), y.view(5, 12, 3))
    for n in range(60):
        other.write(p[n], y[n])
    assert np.array_equal(memory.counters, other.counters)
    orders, activity, locations = memory.read(p), memory.activity(p), memory.active_locations(p)
    assert [tuple(x.shape) for x in (orders, activity, locations)] == [(60, 3), (60, 20), (60, 6)]
    assert (orders.dtype, activity.dtype) == (torch.int64, torch.float64)
    for n in range(60):
        assert torch.equal(memory.read(p[n]), orders[n])
        assert torch.equal(memory.activity(p[n]), activity[n])
        assert torch.equal(memory.active_locations(p[n]), locations[n])
    assert torch.equal(memory.read(p.view(5, 12, 4)), orders.view(5, 12, 3))
    assert torch.equal(memory.activity(p.view(5, 12, 4)), activity.view(5, 12, 20))
    assert torch.equal(p, copies[0]), "the inputs are not written to"
    assert torch.equal(y, copies[1]), "the inputs are not written to"


def test_orders_may_be_any_whole_numbers_laid_out_in_any_way():
    memory, other = small("max"), small("max")
    p, y = pairs(20)
    memory.write(p, y)
    other.write(p.t().contiguous().t().int(), y.to(torch.int8))
    assert np.array_equal(memory.counters, other.counters)
    assert torch.equal(memory.read(p.to(torch.int16)), memory.read(p))


def test_a_batch_of_nothing_writes_nothing():
    memory = small()
    memory.write(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 3, dtype=torch.int64))
    assert memory.occupancy == 0


@pytest.mark.parametrize(("name", "size"), [("read", 3), ("activity", 20), ("active_locations", 6)])
def test_a_batch_of_nothing_reads_nothing(name, size):
    assert getattr(small(), name)(torch.empty(0, 4, dtype=torch.int64)).shape == (0, size)


@every_rule
def test_reading_changes_nothing(rule):
    memory = small(rule)
    p, y = pairs(30)
    memory.write(p, y)
    before, first = memory.counters.copy(), memory.read(p)
    assert torch.equal(memory.read(p), first)
    assert np.array_equal(memory.counters, before)


# Silence.


@every_rule
def test_an_empty_memory_stays_silent(rule):
    p, _ = pairs(5)
    assert (small(rule).read(p) == -1).all()
    assert (small(rule).activity(p) == 0).all()
    assert small(rule).occupancy == 0


@pytest.mark.parametrize(
    ("floor", "recalled"), [(0.0, [2, 0]), (0.5, [2, 0]), (0.75, [2, -1]), (1.5, [-1, -1])]
)
def test_what_is_below_the_floor_stays_silent(floor, recalled):
    memory = tiny("add", floor=floor)
    memory.write(HERE, torch.tensor([2, 0]))
    assert memory.activity(HERE).tolist() == [0.5, 0, 1]
    assert memory.read(HERE).tolist() == recalled


def test_a_floor_on_votes():
    memory = tiny("rank", locations=3, data=(3, 4), floor=2.0)
    memory.counters[:] = [[2, 0, 1, 3], [2, 0, 1, 0], [2, 0, 0, 0]]
    assert memory.activity(HERE).tolist() == [3, 0, 2, 1]
    assert memory.read(HERE).tolist() == [2, 0, -1]


# Capacity.


def large(rule, count, alpha=0.9):
    memory = SparseDistributedMemory(alpha=alpha, rule=rule, generator=draw(0))
    a, b = random_orders(count, 11, 256, draw(1)), random_orders(count, 11, 256, draw(2))
    memory.write(a, b)
    return memory, a, b


def test_occupancy_is_the_theorys():
    memory, a, b = large("or", 4000)
    assert sdm.occupancy(4000.0, 16, 11, 4096, 256) == pytest.approx(0.489, abs=5e-4)
    assert memory.occupancy == pytest.approx(0.489, abs=0.005)
    assert similarity(memory.read(a), b, 0.9).set_exact.double().mean() > 0.95


def test_occupancy_counts_cells():
    memory = tiny("max", locations=4, data=(2, 8))
    memory.write(HERE, torch.tensor([2, 0]))
    assert memory.occupancy == 0.25
    assert sdm.occupancy(0.0, 4, 2, 4, 8) == 0
    assert sdm.occupancy(1.0, 4, 2, 4, 8) == pytest.approx(0.25)
    assert sdm.occupancy(2.0, 4, 2, 4, 8) == pytest.approx(1 - 0.75**2)


@pytest.mark.parametrize(
    ("w", "locations", "count"),
    [(20, 4096, 6792), (16, 4096, 7355), (16, 1024, 1838), (16, 512, 919), (16, 256, 459)],
)
def test_capacity_is_where_one_spurious_neuron_is_expected(w, locations, count):
    found = capacity(w, 11, locations, 256)
    assert found == pytest.approx(count, abs=0.5)
    assert 245 * sdm.occupancy(found, w, 11, locations, 256) ** w == pytest.approx(1)
    assert expected_recall(found, w, 11, locations, 256) == pytest.approx((1 - 1 / 245) ** 245)
    assert expected_recall(0.0, w, 11, locations, 256) == 1


@pytest.mark.parametrize("shared", [0, 4, 9, 12])
def test_expected_recall_of_a_noisy_address_is_that_of_independent_marks(shared):
    # 12 locations, 3 of 20 neurons: stored ones are marked in shared locations, the rest by chance.
    rng = np.random.default_rng(shared)
    p = occupancy(100.0, 12, 3, 64, 20)
    marks = rng.random((20000, 20, 12)) < p
    marks[:, :3, :shared] = True
    count = marks.sum(2)
    exact = (count[:, :3].min(1) > count[:, 3:].max(1)).mean()
    expected = expected_recall(100.0, 12, 3, 64, 20, shared)
    assert exact == pytest.approx(expected, abs=4 * (expected / 20000) ** 0.5 + 1e-4)


def test_expected_recall_refuses_more_shared_locations_than_are_active():
    with pytest.raises(RangeError, match=r"shared in \[0, 12\], got 13"):
        expected_recall(100.0, 12, 3, 64, 20, 13)


def test_ranks_recall_the_order_where_max_has_lost_it():
    memory, a, b = large("rank", 1000)
    ranked = similarity(memory.read(a), b, 0.9)
    assert ranked.order_exact.double().mean() >= 0.95
    memory, a, b = large("max", 1000, alpha=0.99)
    pooled = similarity(memory.read(a), b, 0.9)
    assert pooled.order_exact.double().mean() < 0.5
    assert pooled.set_exact.double().mean() > 0.95, "the neurons are right, their order is not"


# Determinism.


@every_rule
def test_a_memory_is_its_generators(rule):
    one, same, other = small(rule, seed=3), small(rule, seed=3), small(rule, seed=4)
    p, y = pairs(40)
    for memory in (one, same, other):
        memory.write(p, y)
    assert torch.equal(one.decoder.matrix(), same.decoder.matrix())
    assert np.array_equal(one.counters, same.counters)
    assert torch.equal(one.activity(p), same.activity(p))
    assert not torch.equal(one.decoder.matrix(), other.decoder.matrix())
    assert not np.array_equal(one.counters, other.counters)


def test_two_memories_share_nothing():
    one, other = small("add", seed=3), small("add", seed=3)
    p, y = pairs(40)
    one.write(p, y)
    assert not other.counters.any()
    for a, b in [
        (one.counters, other.counters),
        (one.decoder.location, other.decoder.location),
        (one.decoder.rank, other.decoder.rank),
        (one.decoder.start, other.decoder.start),
    ]:
        assert not np.shares_memory(a, b)


def test_an_answer_is_not_changed_by_the_next_one():
    memory = small("add")
    p, y = pairs(40)
    memory.write(p, y)
    first = memory.read(p[0]), memory.activity(p[0]), memory.active_locations(p[0])
    copies = [x.clone() for x in first]
    memory.read(p[1:])
    memory.write(p[1:], y[1:])
    memory.active_locations(p[1:])
    assert all(torch.equal(x, y) for x, y in zip(first, copies, strict=True))


@pytest.mark.parametrize("alpha", [0.9, 0.5, 1.0])
@pytest.mark.parametrize("connections", [1, 4, 65])
def test_locations_beyond_a_block_are_those_of_one_address_alone(alpha, connections):
    """Sums in bytes find what exact sums find; one address alone has no bound to start from."""
    generator = torch.Generator().manual_seed(5)
    memory = SparseDistributedMemory(
        (9, 70), (connections, 5, 70_001), (3, 8), alpha, generator=generator, dtype=torch.float32
    )
    addresses = torch.stack([torch.randperm(70, generator=generator)[:9] for _ in range(12)])
    alone = torch.stack([memory.active_locations(address) for address in addresses])
    assert torch.equal(memory.active_locations(addresses), alone)
