"""The evidence of an anomaly: surprise, and how often it has been exceeded."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isospike.memory.rarity import MOST_BITS, Rarity

surprises = st.lists(st.floats(0, MOST_BITS), min_size=1, max_size=60)


def slow(bits, spans):
    """Equation (1), word by word."""
    means = {s: [np.mean(bits[max(0, i + 1 - s) : i + 1]) for i in range(len(bits))] for s in spans}
    found = []
    for i in range(len(bits)):
        above = [sum(int(10 * a) >= int(10 * means[s][i]) for a in means[s][:i]) for s in spans]
        loss = np.mean([math.log2(1 + u) for u in above])
        found.append((means[spans[0]][i] + math.log2(1 + i) - 3 * loss) / 2)
    return found


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_evidence_is_its_equation(bits):
    # Whole numbers and spans of 1, 2, 4: the means are exact.
    found = Rarity((1, 2, 4)).judge(bits, 0)
    np.testing.assert_allclose(found, slow(bits, (1, 2, 4)), atol=1e-12)


def test_evidence_hand_trace():
    # Spans of 1 value. n = 0: nothing before, (4 + log2 1 - 0) / 2 = 2.
    # n = 1: one as large, (4 + 1 - 3) / 2 = 1. n = 2: none as large, (8 + log2 3) / 2.
    found = Rarity((1,)).judge([4.0, 4.0, 8.0], 0)
    assert found.tolist() == [2.0, 1.0, (8 + math.log2(3)) / 2]


@settings(deadline=None)
@given(surprises, st.integers(0, 60))
def test_evidence_may_be_cut_anywhere(bits, cut):
    whole = Rarity((1, 3)).judge(bits, 0)
    first, rest = Rarity((1, 3)), Rarity((1, 3))
    head = first.judge(bits[:cut], 0)
    rest.restore(first.tensors(), len(head))
    assert [*head, *rest.judge(bits[cut:], len(head))] == whole.tolist()


def test_a_surprise_that_comes_often_is_no_anomaly():
    rarity = Rarity((1, 2))
    found = rarity.judge([10.0, *[0.0] * 20] * 30, 0)[::21]
    assert found[0] > 4
    assert (np.diff(found[1:]) < 0).all()


def test_what_lasts_has_more_evidence_than_its_first_value():
    bits = [0.5, 6.0, 0.5, 0.5] * 50 + [6.0, 6.0, 6.0]
    found = Rarity((1, 2, 3)).judge(bits, 0)
    assert found[-3] < found[-1] < found[-2]


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("counts", (0, 0), 2, "not as many as its values"),
        ("counts", (0, 0), -1, "not as many"),
        ("last", (0,), math.nan, "last surprises are none"),
        ("last", (0,), 31.0, "last surprises are none"),
    ],
)
def test_arrays_of_no_stream_are_refused(name, place, value, message):
    rarity = Rarity((1, 2))
    rarity.judge([1.0, 2.0], 0)
    tensors = {key: array.copy() for key, array in rarity.tensors().items()}
    tensors[name][place] = value
    with pytest.raises(ValueError, match=message):
        Rarity((1, 2)).restore(tensors, 2)
