"""Firing orders: making, weighing, drawing and comparing them."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from isospike.codes.orders import bits, check_order, nof_m, random_orders, significance, similarity
from isospike.errors import RangeError, ShapeError


def draw(seed):
    return torch.Generator().manual_seed(seed)


whole = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=30)


@given(st.data(), whole)
def test_nof_m_is_numpys_stable_sort(data, values):
    n = data.draw(st.integers(1, len(values)))
    expected = np.argsort(-np.array(values), kind="stable")[:n]
    assert nof_m(torch.tensor(values), n).tolist() == expected.tolist()


def test_nof_m_takes_equal_values_by_index():
    assert nof_m(torch.tensor([1.0, 2.0, 1.0, 2.0, 2.0]), 4).tolist() == [1, 3, 4, 0]
    assert nof_m(torch.tensor([0.0, -0.0, 0.0]), 3).tolist() == [0, 1, 2]
    assert nof_m(torch.zeros(5000), 5000).tolist() == list(range(5000))


def test_nof_m_ranks_infinities():
    assert nof_m(torch.tensor([-torch.inf, 0.0, torch.inf]), 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "increasing", [lambda x: 3 * x + 7, lambda x: x**3, torch.atan, torch.exp, lambda x: x / 1024]
)
@given(whole)
def test_an_increasing_map_leaves_nof_m_unchanged(increasing, values):
    x = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(nof_m(increasing(x), len(values)), nof_m(x, len(values)))


def test_nof_m_of_a_batch_is_nof_m_of_each():
    x = torch.randint(0, 5, (2, 3, 9), generator=draw(0)).float()
    before = x.clone()
    orders = nof_m(x, 4)
    assert orders.shape == (2, 3, 4)
    assert orders.dtype == torch.int64
    for i in range(2):
        for j in range(3):
            assert torch.equal(orders[i, j], nof_m(x[i, j], 4))
    assert torch.equal(x, before), "the input is not written to"
    assert nof_m(torch.empty(0, 9), 4).shape == (0, 4)


@pytest.mark.parametrize("n", [0, -1])
def test_nof_m_needs_a_neuron_to_fire(n):
    with pytest.raises(RangeError, match=rf"needs n >= 1, got {n}\."):
        nof_m(torch.ones(3), n)


def test_nof_m_refuses_short_vectors():
    with pytest.raises(ShapeError, match=r"at least n=4 .* got shape \(2, 3\)"):
        nof_m(torch.ones(2, 3), 4)
    with pytest.raises(ShapeError, match=r"got shape \(\)"):
        inspect.unwrap(nof_m)(torch.tensor(1.0), 1)  # beartype would refuse it first


def test_nof_m_refuses_nan():
    with pytest.raises(RangeError, match="ordered values, got NaN in 2 places"):
        nof_m(torch.tensor([[1.0, torch.nan], [torch.nan, 0.0]]), 1)


def test_significance_by_hand():
    # 3-of-5: the third neuron fires first, then the second, then the fourth.
    order = torch.tensor([3, 2, 4]) - 1
    assert significance(order, 5, 0.5).tolist() == [0, 0.5, 1, 0.25, 0]
    assert significance(order, 5, 1.0).tolist() == [0, 1, 1, 1, 0]
    assert significance(order, 5, 0.9).tolist() == pytest.approx([0, 0.9, 1, 0.81, 0], abs=1e-15)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 20), st.floats(0.3, 0.99))
def test_nof_m_takes_back_significance(seed, n, more, alpha):
    order = random_orders(3, n, n + more, draw(seed))
    x = significance(order, n + more, alpha)
    assert torch.equal(nof_m(x, n), order)
    assert (x != 0).sum(-1).tolist() == [n] * 3
    energy = (1 - alpha ** (2 * n)) / (1 - alpha**2)
    torch.testing.assert_close(x.square().sum(-1), torch.full((3,), energy, dtype=x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_significance_keeps_the_batch_and_takes_the_type(dtype):
    order = random_orders(6, 3, 8, draw(1)).view(2, 3, 3)
    x = significance(order, 8, 0.5, dtype)
    assert x.shape == (2, 3, 8)
    assert x.dtype == dtype
    assert torch.equal(x[1, 2], significance(order[1, 2], 8, 0.5, dtype))
    assert torch.equal(significance(order.int(), 8, 0.5, dtype), x), "of any integers"


@pytest.mark.parametrize(
    ("order", "got"),
    [
        ([0, 5], r"neurons in \[0, 5\), got 0 to 5"),
        ([-1, 2], r"neurons in \[0, 5\), got -1 to 2"),
        ([1, 3, 1], "fire once, got one twice"),
        ([[0, 1], [2, 2]], "fire once, got one twice"),
    ],
)
def test_significance_refuses_what_is_no_order(order, got):
    with pytest.raises(RangeError, match=f"^significance needs .*{got}"):
        significance(torch.tensor(order), 5, 0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_an_order_is_of_whole_numbers(dtype):
    with pytest.raises(RangeError, match=f"^here needs order in whole numbers, got {dtype}"):
        check_order(torch.tensor([0, 1]).to(dtype), 2, 5, "here")


def test_an_order_has_the_right_length():
    with pytest.raises(ShapeError, match=r"^here needs order \[\.\.\., 3\], got shape \(4, 2\)"):
        check_order(torch.zeros(4, 2, dtype=torch.int64), 3, 5, "here")
    with pytest.raises(ShapeError, match=r"got shape \(\)"):
        check_order(torch.tensor(1), 1, 5, "here")


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.0001, float("nan"), float("inf")])
def test_alpha_is_above_zero_and_at_most_one(alpha):
    order = torch.tensor([0, 1])
    with pytest.raises(RangeError, match=r"^significance needs alpha in \(0, 1\], got"):
        significance(order, 5, alpha)
    with pytest.raises(RangeError, match=r"^similarity needs alpha in \(0, 1\], got"):
        similarity(order, order, alpha)


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(1, 12), st.integers(0, 20))
def test_random_orders_are_orders_and_the_generators(seed, count, n, more):
    orders = random_orders(count, n, n + more, draw(seed))
    assert orders.shape == (count, n)
    check_order(orders, n, n + more, "test")
    assert torch.equal(orders, random_orders(count, n, n + more, draw(seed)))


def test_random_orders_go_on_where_the_generator_is():
    one = draw(0)
    assert not torch.equal(random_orders(5, 4, 50, one), random_orders(5, 4, 50, one))


def test_random_orders_are_equally_likely():
    orders = random_orders(6000, 2, 3, draw(0))
    counts = (orders * torch.tensor([3, 1])).sum(1).bincount()
    assert stats.chisquare(counts[counts > 0].tolist()).pvalue > 0.01
    assert (counts > 0).sum() == 6


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 4)])
def test_random_orders_need_neurons_to_choose_from(n, m):
    with pytest.raises(RangeError, match=rf"1 <= n <= m, got n={n} and m={m}\."):
        random_orders(2, n, m)


@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.3, 1))
def test_an_order_is_wholly_like_itself(seed, n, alpha):
    a = random_orders(2, n, 20, draw(seed))
    s = similarity(a, a, alpha)
    assert s.matched.tolist() == [1, 1]
    assert s.set_exact.all()
    assert s.order_exact.all()
    assert s.kendall.isnan().all() if n == 1 else s.kendall.tolist() == [1, 1]
    torch.testing.assert_close(s.cosine, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("alpha", "cosine"),
    [(0.5, 0.008), (0.7, 0.159), (0.8, 0.428), (0.9, 0.808), (0.95, 0.949), (0.99, 0.998)],
)
def test_the_reversed_order_is_less_like(alpha, cosine):
    a = random_orders(1, 11, 256, draw(0))[0]
    s = similarity(a, a.flip(0), alpha)
    energy = (1 - alpha**22) / (1 - alpha**2)
    assert s.cosine.item() == pytest.approx(11 * alpha**10 / energy, rel=1e-12)
    assert s.cosine.item() == pytest.approx(cosine, abs=5e-4)
    assert (s.matched, s.set_exact, s.order_exact, s.kendall) == (1, True, False, -1)


def test_likeness_by_hand():
    # In both: 1 and 3. 1 fires at ranks 1 and 2, 3 at ranks 3 and 0: the other way round.
    s = similarity(torch.tensor([0, 1, 2, 3]), torch.tensor([3, 9, 1, 8]), 0.5)
    assert (s.matched, s.set_exact, s.order_exact, s.kendall) == (0.5, False, False, -1)
    assert s.cosine.item() == (0.5**3 + 0.5**3) / (1 + 0.25 + 0.0625 + 0.015625)


def test_disjoint_orders_are_not_alike():
    s = similarity(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), 0.9)
    assert (s.matched, s.set_exact, s.order_exact, s.cosine) == (0, False, False, 0)
    assert s.kendall.isnan()
    one = similarity(torch.tensor([0, 1, 2]), torch.tensor([0, 4, 5]), 0.9)
    assert one.kendall.isnan(), "one neuron makes no pair"


@given(st.integers(0, 2**31), st.integers(2, 15))
def test_kendall_is_scipys(seed, n):
    a, order = random_orders(1, n, 30, draw(seed))[0], random_orders(1, n, n, draw(seed + 1))[0]
    b = a[order]
    true = stats.kendalltau(np.arange(n), np.argsort(order.numpy())).statistic
    assert similarity(a, b, 0.9).kendall.item() == pytest.approx(true, abs=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(0, 10), st.floats(0.3, 1))
def test_cosine_is_that_of_the_significance_vectors(seed, n, more, alpha):
    a, b = random_orders(8, n, n + more, draw(seed)).view(2, 4, n)
    true = torch.cosine_similarity(
        significance(a, n + more, alpha), significance(b, n + more, alpha), dim=-1
    )
    torch.testing.assert_close(similarity(a, b, alpha).cosine, true, rtol=1e-12, atol=1e-12)


def test_likeness_is_symmetric_and_taken_entry_by_entry():
    a, b = random_orders(12, 5, 8, draw(3)).view(2, 2, 3, 5)
    ab, ba = similarity(a, b, 0.8), similarity(b, a, 0.8)
    for name in ab._fields:
        whole, other = getattr(ab, name), getattr(ba, name)
        assert whole.shape == (2, 3)
        torch.testing.assert_close(whole, other, rtol=0, atol=1e-15)
        one = getattr(similarity(a[1, 2], b[1, 2], 0.8), name)
        torch.testing.assert_close(whole[1, 2], one, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 3), (3,)), ((), ())])
def test_likeness_needs_one_shape(shapes):
    a, b = (torch.zeros(shape, dtype=torch.int64) for shape in shapes)
    with pytest.raises(ShapeError, match="needs orders of one shape, got"):
        inspect.unwrap(similarity)(a, b, 0.9)  # beartype would refuse it first


@pytest.mark.parametrize(
    ("n", "plain", "ordered"), [(1, 8, 8), (10, 57.95, 79.74), (11, 62.44, 87.69)]
)
def test_bits_of_256_neurons(n, plain, ordered):
    assert bits(n, 256, ordered=False) == pytest.approx(plain, abs=0.005)
    assert bits(n, 256) == pytest.approx(ordered, abs=0.005)


def test_bits_at_the_ends():
    assert bits(0, 5) == bits(5, 5, ordered=False) == 0
    assert bits(256, 256) == pytest.approx(1684, abs=0.5)
    for n in (-1, 6):
        with pytest.raises(RangeError, match=rf"0 <= n <= m, got n={n} and m=5\."):
            bits(n, 5)
