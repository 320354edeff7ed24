"""What no memory takes is refused by name, and nothing is written."""

import inspect

import pytest
import torch
from memories import draw, small, tiny

from isospike.codes.orders import random_orders
from isospike.errors import InputError, RangeError, ShapeError
from isospike.memory.sdm import (
    SparseDistributedMemory,
)

HERE = torch.tensor([0])  # an address of a tiny memory


@pytest.mark.parametrize(
    ("address", "data", "got"),
    [
        ((25, 24), (3, 20), "in address, got 25-of-24"),
        ((0, 24), (3, 20), "in address, got 0-of-24"),
        ((4, 24), (21, 20), "in data, got 21-of-20"),
        ((4, 24), (0, 20), "in data, got 0-of-20"),
    ],
)
def test_no_more_neurons_fire_than_there_are(address, data, got):
    with pytest.raises(RangeError, match=f"needs 1 <= N <= M spikes {got}"):
        SparseDistributedMemory(address, (5, 6, 48), data)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, float("nan")])
def test_alpha_is_above_zero_and_at_most_one(alpha):
    with pytest.raises(RangeError, match=r"^SparseDistributedMemory needs alpha in \(0, 1\], got"):
        small(alpha=alpha)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_is_a_share(decay):
    with pytest.raises(RangeError, match=rf"needs decay in \[0, 1\], got {decay}"):
        small("decay", decay=decay)


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="needs a rule of or, max, .*, stdp, got 'hebb'"):
        small("hebb")


def test_a_rank_fits_in_a_byte():
    memory = tiny("rank", data=(255, 300))
    y = random_orders(1, 255, 300, draw(0))[0]
    memory.write(HERE, y)
    assert torch.equal(memory.read(HERE), y)
    with pytest.raises(RangeError, match="at most 255 data spikes for the rule rank, got 256"):
        tiny("rank", data=(256, 300))


GOOD = [0, 1, 2, 3], [0, 1, 2]


@pytest.mark.parametrize(
    ("address", "data", "error", "got"),
    [
        ([0.0, 1, 2, 3], GOOD[1], RangeError, "^write .* address .* got torch.float32"),
        (GOOD[0], [0.0, 1, 2], RangeError, "^write .* data .* got torch.float32"),
        ([0, 1, 2, 24], GOOD[1], RangeError, r"^write .*address .* in \[0, 24\), got 0 to 24"),
        ([0, 1, 2, -1], GOOD[1], RangeError, r"^write .*address .* in \[0, 24\), got -1 to 2"),
        (GOOD[0], [0, 1, 20], RangeError, r"^write .*data .* in \[0, 20\), got 0 to 20"),
        (GOOD[0], [-1, -1, -1], RangeError, r"^write .*data .* in \[0, 20\), got -1 to -1"),
        ([0, 1, 2, 0], GOOD[1], RangeError, "^write .* address to fire once, got one twice"),
        (GOOD[0], [5, 5, 6], RangeError, "^write .* data to fire once, got one twice"),
        ([0, 1, 2], GOOD[1], ShapeError, r"^write .*address \[\.\.\., 4\], got shape \(3,\)"),
        (GOOD[0], [0, 1, 2, 3], ShapeError, r"^write .*data \[\.\.\., 3\], got shape \(4,\)"),
        (0, GOOD[1], ShapeError, r"^write .*address .* got shape \(\)"),
        ([GOOD[0]], GOOD[1], ShapeError, r"as many .* shapes \(1, 4\) and \(3,\)"),
        ([GOOD[0]] * 2, [GOOD[1]] * 3, ShapeError, r"as many .* shapes \(2, 4\) and \(3, 3\)"),
        ([GOOD[0]] * 2, [[GOOD[1]] * 2], ShapeError, r"as many .* \(2, 4\) and \(1, 2, 3\)"),
        ([GOOD[0]] * 2, [GOOD[1], [0, 1, 1]], RangeError, "^write .*data .* got one twice"),
    ],
)
def test_a_bad_pair_is_refused_and_nothing_is_written(address, data, error, got):
    memory = small("add")
    write = inspect.unwrap(SparseDistributedMemory.write)  # beartype would refuse some first
    with pytest.raises(error, match=got):
        write(memory, torch.tensor(address), torch.tensor(data))
    assert not memory.counters.any()


@pytest.mark.parametrize("name", ["read", "activity", "active_locations"])
@pytest.mark.parametrize(
    ("address", "error", "got"),
    [
        ([0.0, 1, 2, 3], RangeError, "whole numbers, got torch.float32"),
        ([0, 1, 2, 24], RangeError, "got 0 to 24"),
        ([3, 1, 2, 3], RangeError, "got one twice"),
        ([[0, 1, 2]], ShapeError, r"got shape \(1, 3\)"),
    ],
)
def test_a_bad_address_is_not_read(name, address, error, got):
    read = inspect.unwrap(getattr(SparseDistributedMemory, name))
    with pytest.raises(error, match=f"^{name} needs .*address.*{got}"):
        read(small(), torch.tensor(address))
