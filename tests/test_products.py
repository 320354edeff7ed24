"""Products of spikes: exact where they say so, and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from isospike import products
from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.kernels.product import int8
from isospike.kernels.runtime import precision as unit_of
from isospike.products import (
    pack_spikes,
    spike_attention,
    spike_linear,
    spike_matmul,
    unpack_spikes,
)

TYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.bool]


def draw(seed):
    return torch.Generator().manual_seed(seed)


def random_spikes(shape, seed, rate=0.3):
    return torch.rand(shape, generator=draw(seed)) < rate


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 30),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from(TYPES),
)
def test_the_exact_product_is_within_the_bound_of_a_float32_sum(seed, rows, inputs, outputs, dtype):
    s = random_spikes((rows, inputs), seed)
    weight = torch.randn(outputs, inputs, generator=draw(seed + 1))
    true = s.double() @ weight.double().t()
    ours = spike_linear(s.to(dtype), weight)
    assert ours.dtype == torch.float32
    # Two roundings of the sum, and each weight to 2^-23 of its output's largest.
    count = s.sum(1, keepdim=True).double()
    largest = weight.abs().amax(1).double()
    assert ((ours - true).abs() <= 2**-23 * (count * largest + true.abs() + largest)).all()


def test_the_exact_product_errs_no_more_than_torchs():
    s = random_spikes((512, 384), 0, 0.15)
    weight = torch.randn(96, 384, generator=draw(1))
    true = s.double() @ weight.double().t()
    ours = (spike_linear(s, weight) - true).square().mean()
    torchs = (F.linear(s.float(), weight) - true).square().mean()
    assert ours <= 2 * torchs


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_the_exact_product_keeps_its_digits_over_sixty_decades(scale):
    s = random_spikes((8, 50), 0)
    weight = scale * torch.randn(7, 50, generator=draw(1))
    true = s.double() @ weight.double().t()
    assert ((spike_linear(s, weight) - true).abs().max() / true.abs().max()) < 1e-6


def test_the_exact_product_of_whole_weights_is_whole():
    s, weight = random_spikes((64, 300), 0), torch.randint(-9999, 9999, (20, 300)).float()
    assert torch.equal(spike_linear(s, weight).double(), s.double() @ weight.double().t())


def test_sums_of_spikes_are_as_exact():
    s = torch.randint(0, 256, (9, 40), generator=draw(0), dtype=torch.uint8)
    weight = torch.randint(-50, 50, (5, 40), generator=draw(1)).float()
    true = s.double() @ weight.double().t()
    assert torch.equal(spike_linear(s, weight).double(), true)
    assert torch.equal(spike_linear(s.float(), weight).double(), true)


@pytest.mark.parametrize("largest", [0, 128, 255])
def test_counts_are_exact_whatever_the_eight_bit_unit_holds(monkeypatch, largest):
    if largest > int8.largest_spike():
        pytest.skip("this machine has no such unit")
    monkeypatch.setattr(int8, "largest_spike", lambda: largest)
    weight = torch.randint(-128, 128, (5, 40), generator=draw(1)).float()
    weight[0], weight[1] = 127, -128
    for top in (1, 127, 128, 129, 255):
        s = torch.randint(0, top + 1, (9, 40), generator=draw(0), dtype=torch.uint8)
        s[0] = top
        assert torch.equal(spike_linear(s, weight).double(), s.double() @ weight.double().t())


def test_without_an_eight_bit_unit_the_product_is_torchs(monkeypatch):
    monkeypatch.setattr(products, "can_pack", lambda weight, planes: False)
    s, weight = random_spikes((9, 40), 0), torch.randn(5, 40, generator=draw(1))
    assert torch.equal(spike_linear(s, weight), s.float() @ weight.t())


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_fast_product_has_bfloat16_weights(monkeypatch, dtype, unit):
    monkeypatch.setattr(unit_of, "_HAS_BFLOAT16", unit)
    s = random_spikes((4, 6, 384), 0, 0.15)
    weight = torch.randn(96, 384, generator=draw(1))
    fast = spike_linear(s.to(dtype), weight, precision="fast")
    assert fast.dtype == torch.bfloat16
    true = s.double() @ weight.bfloat16().double().t()
    torch.testing.assert_close(fast.double(), true, rtol=2**-8, atol=1e-4)


def test_a_bias_is_added():
    s, weight = random_spikes((4, 6), 0), torch.randn(3, 6, generator=draw(1))
    bias = torch.randn(3, generator=draw(2))
    assert torch.equal(spike_linear(s, weight, bias), spike_linear(s, weight) + bias)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    terms=st.integers(1, 700),
    columns=st.integers(1, 9),
    rate=st.sampled_from([0.1, 0.9, 1.0]),
    dtype=st.sampled_from(TYPES),
)
def test_counts_of_binary_products_are_exact(seed, rows, terms, columns, rate, dtype):
    a = random_spikes((2, rows, terms), seed, rate)
    b = random_spikes((terms, columns), seed + 1, rate)
    counts = spike_matmul(a.to(dtype), b.to(dtype))
    assert counts.dtype == torch.float32
    assert torch.equal(counts.double(), a.double() @ b.double())


def test_counts_are_exact_with_and_without_a_bfloat16_unit(monkeypatch):
    a, b = random_spikes((5, 600), 0, 0.9), random_spikes((600, 4), 1, 0.9)
    for unit in (True, False):
        monkeypatch.setattr(products, "FAST_BFLOAT16", unit)
        assert torch.equal(spike_matmul(a, b).double(), a.double() @ b.double())


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_gradients_of_the_linear_product(pack, precision):
    s = random_spikes((3, 4, 21), 0).float().requires_grad_()
    weight = torch.randn(5, 21, generator=draw(1)).requires_grad_()
    bias = torch.randn(5, generator=draw(2)).requires_grad_()
    up = torch.randn(3, 4, 5, generator=draw(3))
    ours = torch.autograd.grad(
        spike_linear(s, weight, bias, precision=precision, pack=pack).float(), (s, weight, bias), up
    )
    true = torch.autograd.grad(F.linear(s, weight, bias), (s, weight, bias), up)
    tolerance = 1e-6 if precision == "exact" else 2**-6
    for a, b in zip(ours, true, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_packed_spikes_take_a_bit_each():
    s, kept = random_spikes((6, 64), 0).float(), []
    weight = torch.randn(5, 64, generator=draw(1)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        spike_linear(s, weight, pack=True)
    assert sorted(t.nbytes for t in kept) == [6 * 64 // 8, weight.nbytes]


def test_gradients_of_the_count_product():
    a = random_spikes((2, 3, 8), 0).float().requires_grad_()
    b = random_spikes((8, 4), 1).float().requires_grad_()
    up = torch.randn(2, 3, 4, generator=draw(2))
    ours = torch.autograd.grad(spike_matmul(a, b), (a, b), up)
    true = torch.autograd.grad(a @ b, (a, b), up)
    for x, y in zip(ours, true, strict=True):
        torch.testing.assert_close(x, y)


def test_products_may_be_differentiated_twice():
    s = random_spikes((3, 8), 0).float().requires_grad_()
    weight = torch.randn(4, 8, generator=draw(1)).requires_grad_()
    b = random_spikes((8, 4), 2).float().requires_grad_()
    for product, plain, other in (
        (spike_linear, F.linear, weight),
        (spike_matmul, torch.matmul, b),
    ):
        second = []
        for f in (product, plain):
            (first,) = torch.autograd.grad(f(s, other).square().sum(), s, create_graph=True)
            second.append(torch.autograd.grad(first.square().sum(), (s, other)))
        for x, y in zip(*second, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-4)


def test_a_packed_product_may_not_be_differentiated_twice():
    s = random_spikes((3, 8), 0).float().requires_grad_()
    weight = torch.randn(4, 8, generator=draw(1)).requires_grad_()
    y = spike_linear(s, weight, pack=True).sum()
    with pytest.raises(UnsupportedError, match="pack=False to be differentiated twice"):
        torch.autograd.grad(y, s, create_graph=True)


def test_autocast_makes_the_product_fast():
    s, weight = random_spikes((3, 8), 0), torch.randn(4, 8, generator=draw(1)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = spike_linear(s, weight)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_packing_spikes_is_undone_by_unpacking(seed, n):
    s = random_spikes((3, n), seed)
    packed = pack_spikes(s)
    assert packed.shape == (3, -(-n // 8))
    assert torch.equal(unpack_spikes(packed, n, torch.float32), s.float())
    assert pack_spikes(torch.tensor([True, False, True] + 7 * [False])).tolist() == [5, 0]


def test_inputs_are_not_written_to():
    s, weight = random_spikes((3, 8), 0), torch.randn(4, 8, generator=draw(1))
    before = s.clone(), weight.clone()
    for precision in ("exact", "fast"):
        spike_linear(s, weight, precision=precision)
    spike_matmul(s, s.t())
    assert torch.equal(s, before[0])
    assert torch.equal(weight, before[1])


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, float("nan")])
def test_what_is_no_spike_is_refused(value):
    with pytest.raises(
        RangeError, match=r"^spike_linear needs spikes, whole numbers in \[0, 255\]"
    ):
        spike_linear(torch.tensor([[0.0, value]]), torch.ones(1, 2))


def test_other_types_and_shapes_are_refused():
    with pytest.raises(RangeError, match="got torch.int64 and torch.float32"):
        spike_linear(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2))
    with pytest.raises(RangeError, match="got torch.float32 and torch.float64"):
        spike_linear(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"got \(1, 3\) and \(1, 2\)"):
        spike_linear(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(RangeError, match=r"^spike_matmul needs .* got torch.int64"):
        spike_matmul(torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2))
    with pytest.raises(ShapeError, match=r"^spike_matmul needs .* got \(2, 3\) and \(2, 2\)"):
        spike_matmul(torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(
        UnsupportedError, match="known precision, got 'int8'. Use one of exact, fast"
    ):
        spike_linear(torch.ones(1, 2), torch.ones(1, 2), precision="int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_made_finite(value):
    weight = torch.ones(2, 3)
    weight[1, 2] = value
    s = torch.ones(1, 3)
    assert not spike_linear(s, weight, precision="fast")[0, 1].isfinite()
    if products.can_pack(weight, 3):
        with pytest.raises(
            RangeError, match="needs finite weights, got 1 of 6 that are NaN or inf"
        ):
            spike_linear(s, weight)


def test_strides_do_not_matter():
    s, weight = random_spikes((8, 6), 0), torch.randn(3, 8, generator=draw(1))
    for precision in ("exact", "fast"):
        ours = spike_linear(s.t(), weight, precision=precision)
        assert torch.equal(ours, spike_linear(s.t().contiguous(), weight, precision=precision))
    turned = torch.randn(8, 3, generator=draw(2)).t()
    assert torch.equal(spike_linear(s.t(), turned), spike_linear(s.t(), turned.contiguous()))


@given(
    sizes=st.tuples(*[st.integers(0, 3)] * 4),
    dtype=st.sampled_from(TYPES),
    precision=st.sampled_from(["exact", "fast"]),
    pack=st.booleans(),
)
def test_any_size_of_a_linear_product_may_be_zero(sizes, dtype, precision, pack):
    batch, rows, inputs, outputs = sizes
    s = random_spikes((batch, rows, inputs), 0, 0.5).to(dtype)
    weight = torch.randint(-9, 9, (outputs, inputs), generator=draw(1)).float().requires_grad_()
    bias = torch.arange(float(outputs))
    y = spike_linear(s, weight, bias, precision=precision, pack=pack)
    assert y.shape == (batch, rows, outputs)
    assert torch.equal(y.double(), s.double() @ weight.double().t() + bias)
    (gradient,) = torch.autograd.grad(y.float().sum(), weight)
    assert torch.equal(gradient, s.float().sum((0, 1)).expand(outputs, inputs))


@given(
    sizes=st.tuples(*[st.integers(0, 3)] * 5),
    dtype=st.sampled_from(TYPES),
    strided=st.booleans(),
)
def test_any_size_of_an_attention_may_be_zero(sizes, dtype, strided):
    heads, tokens, keys, channels, values = sizes
    shapes = (tokens, channels), (keys, channels), (keys, values)
    q, k, v = (random_spikes((heads, *s), i, 0.5).to(dtype) for i, s in enumerate(shapes))
    if strided:
        q, k, v = (x.mT.contiguous().mT for x in (q, k, v))
    true = 0.125 * (q.double() @ k.double().mT @ v.double())
    y = spike_attention(q, k, v)
    assert y.dtype == torch.float32
    assert torch.equal(y.double(), true)
    counts = spike_matmul(q, k.mT)
    assert torch.equal(counts.double(), q.double() @ k.double().mT)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("unit", [False, True])
def test_attention_counts_exactly_under_autocast(monkeypatch, dtype, unit):
    monkeypatch.setattr(products, "FAST_BFLOAT16", unit)
    q = random_spikes((300, 5), 0, 0.9).to(dtype)
    k, v = (random_spikes((2501, 5), seed, 0.9).to(dtype) for seed in (1, 2))
    true = 0.125 * (q.double() @ k.double().mT @ v.double())
    with torch.autocast("cpu", torch.bfloat16):
        for y in (spike_attention(q, k, v), spike_attention(q[:3], k, v)):  # in either order
            assert y.dtype == torch.float32
            assert torch.equal(y.double(), true[: len(y)])
        assert torch.equal(spike_matmul(k.mT, v).double(), k.double().mT @ v.double())


def test_gradients_of_attention_are_float32_under_autocast():
    q, k, v = (random_spikes((9, 6), seed).float().requires_grad_() for seed in range(3))
    up = torch.randn(9, 6, generator=draw(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = spike_attention(q, k, v)
    ours = torch.autograd.grad(y, (q, k, v), up)
    true = torch.autograd.grad(0.125 * q @ k.mT @ v, (q, k, v), up)
    for a, b in zip(ours, true, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_sums_of_spikes_cannot_be_packed_and_keep_their_gradient_unpacked(dtype, precision):
    s = torch.tensor([[2, 1, 0]], dtype=dtype)
    weight = torch.ones(2, 3).requires_grad_()
    with pytest.raises(
        RangeError, match=r"needs spikes of 0 or 1 to pack them as bits, got 2 \(1 of 3 are above"
    ):
        spike_linear(s, weight, precision=precision, pack=True)
    y = spike_linear(s, weight, precision=precision)
    assert torch.autograd.grad(y.sum(), weight)[0].tolist() == [[2, 1, 0]] * 2


@pytest.mark.parametrize("shape", [(), (1,), (4,), (5, 1), (1, 5)])
def test_a_bias_has_one_value_for_each_output(shape):
    with pytest.raises(ShapeError, match=r"a bias of one value for each of 5 outputs, got \("):
        spike_linear(torch.ones(2, 3), torch.ones(5, 3), torch.ones(shape))


def test_operands_of_two_devices_are_refused_not_read_as_rubbish():
    s, w, far = torch.ones(2, 3), torch.ones(5, 3), torch.ones(5, 3, device="meta")
    for call in (
        lambda: spike_linear(s, far),
        lambda: spike_linear(s, w, far[:, 0]),
        lambda: spike_matmul(s, far.mT),
        lambda: spike_attention(s, far, w),
        lambda: spike_attention(s, w, far),
    ):
        with pytest.raises(RangeError, match="needs tensors on one device, got .* on cpu"):
            call()


def test_shapes_are_known_without_values():
    s, w = torch.ones(4, 2, 3, device="meta"), torch.ones(5, 3, device="meta")
    assert spike_linear(s, w, w[:, 0]).shape == (4, 2, 5)
    assert spike_matmul(s, s.mT).shape == (4, 2, 2)
    assert spike_attention(s, s, s).shape == (4, 2, 3)


def test_leading_axes_that_do_not_broadcast_are_refused():
    a, b = torch.ones(2, 4, 3), torch.ones(3, 4, 3)
    with pytest.raises(ShapeError, match="spike_matmul needs"):
        spike_matmul(a, b.mT)
    for q, k, v in ((a, b, b), (a, a, b), (b, b, a)):
        with pytest.raises(ShapeError, match="spike_attention needs"):
            spike_attention(q, k, v)
    assert spike_attention(a[:1], a, a[0]).shape == (2, 4, 3)


@pytest.mark.parametrize("place", range(3))
def test_every_operand_of_attention_is_of_a_type_of_spikes(place):
    operands = [torch.ones(4, 3)] * 3
    operands[place] = torch.ones(4, 3, dtype=torch.int64)
    with pytest.raises(RangeError, match=f"spikes, got torch.int64 as {'qkv'[place]}"):
        spike_attention(*operands)
