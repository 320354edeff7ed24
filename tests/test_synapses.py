"""Weights of few bits: their form, their rounding, and what is written of them."""

import pytest
import torch

from isospike.errors import InputError
from isospike.porting.packing import pack, unpack
from isospike.porting.synapses import GROUP, Moments, limits, round_weight, wide_channels


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entered(rows=400, channels=96):
    """Integers of correlated channels, as they enter a product."""
    return (drawn(rows, 20) @ drawn(20, channels, seed=1) * 8).round()


def whole(found, bits, channels):
    group = GROUP if bits < 8 else channels
    quantum = (found.step[:, None] * found.share).repeat_interleave(group, 1)[:, :channels]
    return found.weight / quantum


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("moments", [None, Moments(entered())], ids=["nearest", "in order"])
def test_weights_are_whole_multiples_of_their_groups_quantum(bits, moments):
    found = round_weight(drawn(10, 96, seed=2), torch.zeros(10), bits, moments)
    q = whole(found, bits, 96)
    assert torch.equal(q, q.round())
    assert limits(bits)[0] <= q.min() < 0 < q.max() <= limits(bits)[1]
    assert torch.equal(found.step, found.step.log2().round().exp2())
    assert torch.equal(found.share, found.share.round())
    assert 1 <= found.share.abs().min() <= found.share.abs().max() <= 127


def test_a_weight_by_hand():
    found = round_weight(torch.tensor([[7.0, -7.0, -3.0, 1.0]]), torch.zeros(1), 4, None)
    # 7 quanta of 1, as 8 steps of 1 / 8; a step of 1 / 15 of a quantum is not a power of two.
    assert found.weight.tolist() == [[7.0, -7.0, -3.0, 1.0]]
    assert (found.step * found.share).tolist() == [[1.0]]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_has_its_further_number_on_the_side_of_its_largest_weight(sign):
    weight = sign * torch.tensor([[8.0, -7.0, 3.0]])
    found = round_weight(weight, torch.zeros(1), 4, None)
    assert torch.equal(found.weight, weight)
    assert (found.step * found.share).tolist() == [[-sign]]


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_in_order_errs_less_on_inputs_it_has_not_seen(bits):
    x, other, weight = entered(), (drawn(300, 20, seed=5) @ drawn(20, 96, seed=1)), drawn(10, 96)
    nearest = round_weight(weight, torch.zeros(10), bits, None).weight
    in_order = round_weight(weight, torch.zeros(10), bits, Moments(x)).weight
    errors = [((w - weight) @ other.T).norm() for w in (nearest, in_order)]
    assert errors[1] < 0.5 * errors[0]


def test_no_step_is_below_its_reach():
    found = round_weight(drawn(3, 8), torch.tensor([0.0, 0.5, 3.0]), 8, None)
    assert found.step[1] >= 0.5
    assert found.step[2] == 4


def test_outputs_and_channels_that_are_zero_stay_zero():
    weight = drawn(4, 96)
    weight[1], weight[:, 3] = 0, 0
    x = entered()
    x[:, 3] = 0
    for bits in (8, 4):
        found = round_weight(weight, torch.zeros(4), bits, Moments(x)).weight
        assert torch.equal(found[1], torch.zeros(96))
        assert found.isfinite().all()


def test_a_channel_of_larger_weights_gets_further_synapses():
    assert wide_channels(torch.tensor([1.0, 1, 1, 5, 1, 2.5])).tolist() == [3, 3, 3, 5]
    assert wide_channels(torch.zeros(3)).tolist() == []


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 3, 4)])
def test_packed_numbers_come_back(bits, shape):
    least, most = limits(bits)
    q = torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(bits))
    assert torch.equal(unpack(pack(q, bits), bits, shape), q.short())


@pytest.mark.parametrize("bits", [4, 6])
def test_packed_numbers_take_the_bits_of_their_entropy(bits):
    g = torch.Generator().manual_seed(0)
    q = (torch.randn(100_000, generator=g) * 2**bits / 7).round()
    q = q.clamp(*limits(bits))
    shares = q.unique(return_counts=True)[1] / q.numel()
    entropy = -(shares * shares.log2()).sum()
    assert entropy <= 8 * pack(q, bits).numel() / q.numel() <= min(entropy + 0.1, bits)


def test_what_is_no_packed_numbers_is_refused():
    q = torch.tensor([5, -3, 0, 7])
    whole = pack(q, 4)
    wrong = {
        "got Error": [whole[:0].new_tensor([255, 255, 255])],
        "another number of them": [whole[:-1], torch.cat([whole, whole]), pack(q[:3], 4),
                          pack(torch.zeros(10**6), 4)],
        "4 bits, got larger ones": [pack(torch.tensor([5, -3, 0, 8]), 4)],
    }  # fmt: skip
    for told, files in wrong.items():
        for file in files:
            with pytest.raises(InputError, match=told):
                unpack(file, 4, (4,))
    with pytest.raises(InputError, match="another number of them"):
        unpack(whole, 4, (2, 3))
