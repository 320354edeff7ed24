"""Numbers to spike trains and back."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.codes import (
    CODES,
    BernoulliCode,
    Code,
    HalfOctaveCode,
    LatencyCode,
    PhaseCode,
    RankOrderCode,
    RateCode,
    SignedDigitCode,
    WeightedCode,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SHAPES = [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 1, 3)]
MOST_STEPS = {
    "phase": 32,
    "signed-digit": 32,
    "half-octave": 32,
    "rate": 100,
    "bernoulli": 20,
    "latency": 100,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(code: Code, seed: int) -> dict[str, torch.Generator]:
    """The generator of the one code that takes one."""
    return {"generator": seeded(seed)} if isinstance(code, BernoulliCode) else {}


def uniform(code: WeightedCode, count: int, seed: int = 0) -> torch.Tensor:
    """Values uniform over the code's range, in float64."""
    unit = torch.rand(count, dtype=torch.float64, generator=seeded(seed))
    return code.low + (1 - code.low) * unit


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, dtype and bits: unlike torch.equal, 0.0 is not -0.0."""
    bits = BITS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(bits), b.view(bits))


@st.composite
def codes_and_values(draw, name: str) -> tuple[WeightedCode, torch.Tensor]:
    """A code and values in its range: ends, denormals, rounding boundaries and any others."""
    code = CODES[name](draw(st.integers(CODES[name].min_steps, MOST_STEPS[name])))
    dtype = draw(st.sampled_from(DTYPES))
    tiny = torch.finfo(dtype).smallest_normal
    boundary = st.builds(
        lambda k, ulps: (k + 0.5) / code.levels * (1 + ulps * 2.0**-52),
        st.integers(0, code.levels - 1),
        st.integers(-2, 2),
    )
    level = st.integers(0, code.levels).map(lambda k: k / code.levels)
    special = st.sampled_from([0.0, -0.0, 1.0, 1 - 2.0**-53, tiny, tiny / 4, 0.5, 1 / 3])
    unsigned = st.one_of(special, boundary, level, st.floats(0, 1))
    value = unsigned if code.low == 0 else st.one_of(unsigned, unsigned.map(lambda v: -v))
    shape = draw(st.sampled_from(SHAPES))
    number = math.prod(shape)
    values = draw(st.lists(value, min_size=number, max_size=number))
    return code, torch.tensor(values, dtype=torch.float64).to(dtype).reshape(shape)


# Property: the contract of every linear code.


@pytest.mark.parametrize("name", CODES)
@given(data=st.data())
def test_quantize_is_decode_of_encode_bit_for_bit(name, data):
    code, x = data.draw(codes_and_values(name))
    spikes = code.encode(x, **random(code, 1))
    assert same_bits(code.quantize(x, **random(code, 1)), code.decode(spikes))


@pytest.mark.parametrize("name", CODES)
@given(data=st.data())
def test_encode_gives_zeros_and_ones_and_never_both_neurons_of_a_pair(name, data):
    code, x = data.draw(codes_and_values(name))
    before = x.clone()
    spikes = code.encode(x, **random(code, 1))
    assert spikes.shape == (code.steps, *((2,) if code.neurons == 2 else ()), *x.shape)
    assert (spikes.dtype, spikes.device) == (x.dtype, x.device)
    assert ((spikes == 0) | (spikes == 1)).all()
    assert same_bits(x, before)
    if code.neurons == 2:
        assert not (spikes[:, 0] * spikes[:, 1]).any()


@pytest.mark.parametrize("name", CODES)
@given(data=st.data())
def test_count_is_the_number_of_spikes(name, data):
    code, x = data.draw(codes_and_values(name))
    spikes = code.encode(x, **random(code, 1)).double()
    counted = code.count(x, **random(code, 1))
    assert counted.dtype == torch.int64
    assert torch.equal(counted.double(), spikes.sum(tuple(range(code.neurons))))


@pytest.mark.parametrize("name", [name for name in CODES if name != "bernoulli"])
@given(data=st.data())
def test_the_error_is_at_most_half_a_level(name, data):
    code, x = data.draw(codes_and_values(name))
    error = (code.quantize(x).double() - x.double()).abs()
    # Rounding: x * levels in float32 or float64 (one ulp of 1), then once to the dtype of x.
    arithmetic = 2.0**-52 if x.dtype == torch.float64 or code.levels >= 2**16 else 2.0**-23
    bound = 0.5 / code.levels + arithmetic + torch.finfo(x.dtype).eps / 2
    assert (error <= bound).all()


@pytest.mark.parametrize("name", CODES)
@given(data=st.data())
def test_decode_is_the_weighted_sum_over_time(name, data):
    code, x = data.draw(codes_and_values(name))
    spikes = code.encode(x, **random(code, 1)).double()
    signed = spikes[:, 0] - spikes[:, 1] if code.neurons == 2 else spikes
    total = torch.einsum("t,t...->...", code.weights.double(), signed)
    # weights are float32, 2^-24 off each.
    torch.testing.assert_close(code.decode(spikes), total, rtol=2.0**-23, atol=2.0**-23)


@pytest.mark.parametrize("name", CODES)
def test_a_matrix_product_commutes_with_decode(name):
    code = CODES[name](12)
    matrix = torch.randn(5, 20, dtype=torch.float64, generator=seeded(2))
    spikes = code.encode(uniform(code, 60).reshape(20, 3), **random(code, 3))
    signed = spikes[:, 0] - spikes[:, 1] if code.neurons == 2 else spikes
    weights = torch.tensor(code.step_weights, dtype=torch.float64) / code.levels
    stepped = sum(w * (matrix @ s) for w, s in zip(weights, signed, strict=True))
    torch.testing.assert_close(matrix @ code.decode(spikes), stepped)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_integer_is_spelled_and_decodes_to_itself(name, dtype):
    for steps in range(CODES[name].min_steps, 9):
        code = CODES[name](steps)
        integers = torch.arange(int(code.low) * code.levels, code.levels + 1, dtype=dtype)
        spikes = code.encode_integers(integers)
        assert ((spikes == 0) | (spikes == 1)).all()
        assert torch.equal(code.decode(spikes), integers / code.levels)


@pytest.mark.parametrize("name", [name for name in CODES if name != "bernoulli"])
def test_every_level_encodes_to_its_spelling(name):
    code = CODES[name](8)
    integers = torch.arange(int(code.low) * code.levels, code.levels + 1, dtype=torch.float64)
    assert torch.equal(code.encode(integers / code.levels), code.encode_integers(integers))


@pytest.mark.parametrize("name", CODES)
def test_decode_stays_exact_where_matrix_products_are_rounded(name):
    # A product would round the latency weights to 8 bits under autocast.
    code = CODES[name](1000 if CODES[name].max_steps > 1000 else 16)
    x = uniform(code, 200).float()
    spikes = code.encode(x, **random(code, 1))
    with torch.autocast("cpu", torch.bfloat16):
        decoded = code.decode(spikes)
    assert same_bits(decoded, code.quantize(x, **random(code, 1)))


@pytest.mark.parametrize("name", [name for name in CODES if name != "bernoulli"])
def test_a_permuted_batch_gives_permuted_spikes(name):
    code = CODES[name](9)
    x = uniform(code, 30)
    order = torch.randperm(30, generator=seeded(4))
    assert torch.equal(code.encode(x[order]), code.encode(x)[..., order])


@pytest.mark.parametrize("name", CODES)
def test_bits_are_the_fewest_that_hold_every_level(name):
    for steps in range(CODES[name].min_steps, 33):
        code = CODES[name](steps)
        values = code.neurons * code.levels + 1
        assert 2 ** (code.bits - 1) < values <= 2**code.bits


# Property: the closed forms of the error.


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("steps", [2, 5, 12])
def test_measured_error_is_the_closed_form(name, steps):
    code = CODES[name](steps)
    x = uniform(code, 200_000)
    error = code.quantize(x, **random(code, 5)) - x
    assert error.square().mean().sqrt().item() == pytest.approx(
        math.sqrt(code.mean_square_error), rel=0.05
    )


def root_mean_square_errors(name: str, all_steps: list[int]) -> list[float]:
    errors = []
    for steps in all_steps:
        code = CODES[name](steps)
        x = uniform(code, 20_000, seed=steps)
        error = code.quantize(x, **random(code, steps + 1)) - x
        errors.append(error.square().mean().sqrt().item())
    return errors


@pytest.mark.parametrize(("name", "slope"), [("bernoulli", -0.5), ("rate", -1.0)])
def test_error_falls_as_a_power_of_the_steps(name, slope):
    steps = [4, 8, 16, 32, 64]
    errors = root_mean_square_errors(name, steps)
    fitted = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert fitted == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("name", ["phase", "signed-digit"])
def test_error_halves_with_every_step_of_a_positional_code(name):
    steps = list(range(4, 15))
    fitted = np.polyfit(steps, np.log2(root_mean_square_errors(name, steps)), 1)[0]
    assert fitted == pytest.approx(-1, rel=0.05)


def test_bernoulli_variance_is_that_of_independent_spikes():
    code = BernoulliCode(10)
    for p in (0.1, 0.5, 0.8):
        x = torch.full((50_000,), p, dtype=torch.float64)
        quantized = code.quantize(x, **random(code, 6))
        assert quantized.mean().item() == pytest.approx(p, rel=0.02)
        assert quantized.var().item() == pytest.approx(p * (1 - p) / 10, rel=0.05)


# Rate.


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 33])
def test_rate_code_is_an_integrate_and_fire_neuron_started_at_half_threshold(steps):
    x = torch.arange(65, dtype=torch.float64) / 64  # Binary fractions, so the floats are exact.
    spikes = RateCode(steps).encode(x)
    for k, current in enumerate(x.tolist()):
        v, expected = 0.5, []
        for _ in range(steps):
            v += current
            fires = v >= 1
            v -= fires
            expected.append(float(fires))
        assert spikes[:, k].tolist() == expected


def test_rate_hand_trace():
    # floor(t / 2 + 1/2) = 0 1 1 2 2 and floor(3 t / 4 + 1/2) = 0 1 2 2 3 for t = 0 .. 4.
    spikes = RateCode(4).encode(torch.tensor([0.5, 0.75]))
    assert spikes.T.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]


# Bernoulli.


def test_bernoulli_spikes_where_the_draw_is_below_the_value():
    x = torch.rand(50, generator=seeded(7))
    generator = seeded(8)
    expected = [(torch.rand(50, generator=generator) < x).float() for _ in range(6)]
    assert torch.equal(BernoulliCode(6).encode(x, generator=seeded(8)), torch.stack(expected))


def test_bernoulli_does_not_spike_where_the_draw_equals_the_value():
    x = torch.rand(50, generator=seeded(8))  # So that 0.0 never spikes, even at a draw of 0.0.
    assert not BernoulliCode(1).encode(x, generator=seeded(8)).any()


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_bernoulli_is_certain_at_both_ends(seed, steps):
    spikes = BernoulliCode(steps).encode(torch.tensor([0.0, 1.0]), generator=seeded(seed))
    assert not spikes[:, 0].any()
    assert spikes[:, 1].all()


# Phase.


def test_phase_hand_trace():
    # levels 7: 5 = 101, 3 = 011; 0.5 * 7 + 1/2 = 4 = 100.
    spikes = PhaseCode(3).encode(torch.tensor([5 / 7, 3 / 7, 0.5]))
    assert spikes.T.tolist() == [[1, 0, 1], [0, 1, 1], [1, 0, 0]]


def test_phase_code_is_numpy_unpackbits():
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[None], axis=0)
    spikes = PhaseCode(8).encode(torch.arange(256, dtype=torch.float64) / 255)
    assert np.array_equal(spikes.numpy(), bits)


# Signed digits.


def test_signed_digit_hand_trace():
    # levels 15: 7 = 8 - 1, -5 = -4 - 1, 0 is silence; 15 has no non-adjacent form in four digits.
    spikes = SignedDigitCode(4).encode(torch.tensor([7 / 15, -5 / 15, 0.0, 1.0]))
    digits = (spikes[:, 0] - spikes[:, 1]).T
    assert digits.tolist() == [[1, 0, 0, -1], [0, -1, 0, -1], [0, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("steps", range(1, 11))
def test_signed_digits_are_non_adjacent_as_far_as_the_digits_reach(steps):
    code = SignedDigitCode(steps)
    reach = 2 ** (steps + 1) // 3
    inside = torch.arange(-reach, reach + 1, dtype=torch.float64)
    busy = code.encode_integers(inside).sum(1)
    assert not (busy[1:] * busy[:-1]).any()
    # Sharp: one more, where it is a value of the code, has no such spelling.
    if reach < code.levels:
        busy = code.encode_integers(torch.tensor([reach + 1.0, -reach - 1.0])).sum(1)
        assert (busy[1:] * busy[:-1]).any(0).all()


@pytest.mark.parametrize("steps", range(1, 7))
def test_no_signed_binary_spelling_has_fewer_spikes(steps):
    fewest: dict[int, int] = {}
    for digits in itertools.product((-1, 0, 1), repeat=steps):
        value = sum(d * 2**k for k, d in enumerate(digits))
        weight = sum(map(abs, digits))
        fewest[value] = min(fewest.get(value, weight), weight)
    code = SignedDigitCode(steps)
    assert sorted(fewest) == list(range(-code.levels, code.levels + 1))
    counted = code.count(torch.tensor(sorted(fewest), dtype=torch.float64) / code.levels)
    assert counted.tolist() == [fewest[n] for n in sorted(fewest)]


@pytest.mark.parametrize("steps", [5, 10, 15])
def test_signed_digit_count_is_the_weight_of_the_non_adjacent_form(steps):
    # Parity: the non-zero digits of the non-adjacent form of n are the bits of n xor 3 n.
    integers = range(2 ** (steps + 1) // 3 + 1)
    code = SignedDigitCode(steps)
    counted = code.count(torch.tensor(integers, dtype=torch.float64) / code.levels)
    assert counted.tolist() == [(n ^ 3 * n).bit_count() for n in integers]


def test_signed_digits_spend_a_third_of_the_steps_and_phase_a_half():
    # (T/3 + 1/9 on average for the non-adjacent form; the shift of the range costs less than 2 %.)
    signed, phase = SignedDigitCode(30), PhaseCode(30)
    third = signed.count(uniform(signed, 20_000) / 2).double().mean().item() / 30
    half = phase.count(uniform(phase, 20_000)).double().mean().item() / 30
    assert third == pytest.approx(1 / 3, rel=0.05)
    assert half == pytest.approx(1 / 2, rel=0.02)


@given(st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_the_negative_swaps_the_neurons_of_a_pair(steps, n):
    code = SignedDigitCode(steps)
    n = n % (code.levels + 1)
    on, off = code.encode_integers(torch.tensor([n, -n], dtype=torch.float64)).unbind(-1)
    assert torch.equal(on, off.flip(1))


# Half-octave digits.


def test_half_octave_hand_trace():
    # Weights 6 4 3 2 1, levels 7: 5 = 4 + 1 (6 - 1 is no shorter), 7 = 6 + 1.
    code = HalfOctaveCode(5)
    assert (code.step_weights, code.levels) == ((6, 4, 3, 2, 1), 7)
    spikes = code.encode(torch.tensor([5 / 7, -2 / 7, 0.0, 1.0]))
    digits = (spikes[:, 0] - spikes[:, 1]).T
    assert digits.tolist() == [[0, 1, 0, 0, 1], [0, 0, 0, -1, 0], [0] * 5, [1, 0, 0, 0, 1]]


@pytest.mark.parametrize("steps", range(1, 9))
def test_no_spelling_with_half_octave_weights_has_fewer_spikes(steps):
    code = HalfOctaveCode(steps)
    fewest: dict[int, int] = {}
    for digits in itertools.product((-1, 0, 1), repeat=steps):
        value = sum(d * w for d, w in zip(digits, code.step_weights, strict=True))
        fewest[value] = min(fewest.get(value, steps), sum(map(abs, digits)))
    integers = torch.arange(-code.levels, code.levels + 1, dtype=torch.float64)
    counted = code.count(integers / code.levels)
    assert counted.tolist() == [fewest[int(n)] for n in integers]


def test_an_octave_costs_half_octave_digits_a_quarter_of_a_spike():
    few, many = (
        code.count(uniform(code, 20_000)).double().mean().item()
        for code in (HalfOctaveCode(11), HalfOctaveCode(31))
    )
    assert few + 10 / 4 == pytest.approx(many, rel=0.01)  # ten octaves more
    same = SignedDigitCode(8)
    assert same.levels == HalfOctaveCode(15).levels
    assert (
        HalfOctaveCode(15).count(uniform(same, 20_000)).double().mean()
        < 0.8 * same.count(uniform(same, 20_000)).double().mean()
    )


# Latency.


def test_latency_hand_trace():
    spikes = LatencyCode(5).encode(torch.tensor([0.0, 0.25, 0.7, 1.0]))
    assert spikes.argmax(0).tolist() == [4, 3, 1, 0]


@given(st.integers(2, 100), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_value_spikes_once_and_a_larger_one_not_later(steps, values):
    x = torch.tensor(sorted(values), dtype=torch.float64)
    spikes = LatencyCode(steps).encode(x)
    assert (spikes.sum(0) == 1).all()
    assert (spikes.argmax(0).diff() <= 0).all()


# Rank order.

# Whole numbers: the maps below keep them apart in float64, and equal ones equal.
vectors = st.lists(st.integers(-20, 20), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@pytest.mark.parametrize(
    "increasing", [lambda x: x**3, torch.exp, lambda x: 2.5 * x - 7], ids=["cube", "exp", "affine"]
)
@given(x=vectors, data=st.data())
def test_an_increasing_map_leaves_the_rank_order_unchanged(increasing, x, data):
    code = RankOrderCode(data.draw(st.integers(1, len(x))))
    assert torch.equal(code.encode(increasing(x)), code.encode(x))


@given(vectors, st.data(), st.sampled_from(DTYPES))
def test_rank_order_decodes_to_the_significance_of_each_rank(x, data, dtype):
    x = x.to(dtype)
    code = RankOrderCode(data.draw(st.integers(1, len(x))), alpha=0.5)
    spikes = code.encode(x)
    assert spikes.dtype == dtype
    assert (spikes.sum(-1) == 1).all()
    assert torch.equal(code.count(x), spikes.sum(0).long())
    expected = [0.0] * len(x)
    order = sorted(range(len(x)), key=lambda i: (-x[i].item(), i))
    for rank, i in enumerate(order[: code.steps]):
        expected[i] = 0.5**rank
    assert code.decode(spikes).tolist() == expected
    assert same_bits(code.quantize(x), code.decode(spikes))


def test_rank_order_hand_trace():
    x = torch.tensor([[0.3, 0.9, 0.1, 0.5], [4.0, 1.0, 2.0, 3.0]])
    code = RankOrderCode(3, alpha=0.5)
    spikes = code.encode(x)
    assert spikes[:, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert code.decode(spikes).tolist() == [[0.25, 1, 0, 0.5], [1, 0, 0.25, 0.5]]


def test_equal_values_spike_in_index_order():
    x = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    assert RankOrderCode(4, alpha=0.5).quantize(x).tolist() == [0.25, 1, 0.125, 0.5, 0]


def test_infinities_have_a_rank():
    x = torch.tensor([-math.inf, 0.0, math.inf])
    assert RankOrderCode(3, alpha=0.5).quantize(x).tolist() == [0.25, 0.5, 1]


def test_rank_order_decode_stays_exact_where_matrix_products_are_rounded():
    code = RankOrderCode(50, alpha=0.9)
    x = torch.randn(4, 80, generator=seeded(9))
    with torch.autocast("cpu", torch.bfloat16):
        decoded = code.decode(code.encode(x))
    assert same_bits(decoded, code.quantize(x))
