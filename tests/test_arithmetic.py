import math

import pytest
import torch

from isospike.circuits.arithmetic import (
    OCTAVES,
    REACH,
    cells_of,
    exp2_negative,
    exp2_spikes,
    inverse,
    inverse_spikes,
    layer_norm,
    multiply,
    race_spikes,
    softmax,
    subtract_row_max,
)
from isospike.circuits.digits import SignedDigitFormat
from isospike.circuits.few_spike import BUILTIN, few_spike_neuron
from isospike.circuits.integers import CELLS, lookup, lookup_table, relative_error
from isospike.circuits.softcap import UNITS, soft_cap_spikes, soft_capped
from isospike.errors import RangeError

SIZES = (4, 16, 64, 197)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def encode_count(digits, x):
    """Value and number of spikes of the stepped digits."""
    n, count = torch.zeros_like(x), torch.zeros_like(x)
    for w, on, off in digits.spikes(x):
        n += w * (on.to(x.dtype) - off.to(x.dtype))
        count += on | off
    return n, count


# ------------------------------------------------------------------------------ digits


def test_digits_by_hand():
    # 7 = 8 - 1: two spikes; -2.5 rounds up to -2; 100 saturates at 15.
    n, count = encode_count(SignedDigitFormat(1.0, 4), torch.tensor([7.0, -2.5, 0.4, 100.0]))
    assert n.tolist() == [7, -2, 0, 15]
    assert count.tolist() == [2, 1, 0, 4]


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 20])
def test_the_digits_of_a_membrane_spell_its_nearest_whole_number(steps):
    digits = SignedDigitFormat(2.0**-3, steps)
    x = randn(5000, dtype=torch.float64) * 2.0 ** (steps - 3)
    x[:64] = torch.arange(-32, 32) / 16  # at and between the thresholds
    n, count = encode_count(digits, x)
    assert torch.equal(n, digits.integers(x))
    inside = n.abs() <= 2 ** (steps - 1)
    assert torch.equal(count[inside].long(), SignedDigitFormat.count(n)[inside])


def test_fitted_digits_have_the_error_and_the_reach_asked_for():
    for scale in (1e-10, 1.0, 1e10):
        digits = SignedDigitFormat.fit(0.01 * scale, 5 * scale)
        x = (10 * torch.rand(1000, generator=seeded(0), dtype=torch.float64) - 5) * scale
        assert (digits.integers(x) * digits.grid - x).abs().max() <= 0.01 * scale
    assert SignedDigitFormat.fit(1e-9, 1.0).steps == 20


# ------------------------------------------------------------------- functions, inverses


@pytest.mark.parametrize("name", BUILTIN)
def test_a_neuron_in_whole_numbers_is_as_good_as_the_fitted_one(name):
    function, low, high = BUILTIN[name]
    at = (torch.arange(16 * CELLS, dtype=torch.float64) + 0.5) / 16
    y = lookup(name, at)
    assert torch.equal(lookup(name, at, stepped=True), y)  # real membranes, whole thresholds
    error = (y - function(low + (high - low) * at / CELLS)).square().mean().sqrt()
    assert float(error) <= 1.1 * few_spike_neuron(name).error
    assert 1 <= float(lookup_table(name)[1].mean()) <= 16
    assert float(lookup(name, at[-1:] + 5 * CELLS)) == float(lookup_table(name)[0][-1])


@pytest.mark.parametrize("root", [False, True])
def test_an_inverse_has_one_relative_error_over_fifteen_decades(root):
    x = torch.rand(4000, generator=seeded(0), dtype=torch.float64)
    x = torch.exp2(50 * x).floor()
    x[:40] = torch.arange(40)
    found, stepped = inverse(x, root=root), inverse(x, root=root, stepped=True)
    assert torch.equal(found.mantissa, stepped.mantissa)
    assert torch.equal(found.shift, stepped.shift)
    name = "rsqrt" if root else "reciprocal"
    true = x[1:] ** (-0.5 if root else -1)
    assert (found.value[1:] / true - 1).abs().max() <= relative_error(name) + 4e-4
    assert found.value[0] == 0  # below 1 nothing fires
    finding, gates = inverse_spikes(x, root=root)
    assert finding[0] == gates[0] == 0
    assert gates.max() <= 14
    assert finding.max() <= 50 + 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_multiply_exactly(dtype):
    factor = inverse(torch.tensor([[3.0], [1000.0], [0.0]]))
    trace = randn(3, 50).to(dtype)  # float64 leaves room for a factor's 14 bits
    y = multiply(trace, factor, stepped=True)
    assert torch.equal(y, multiply(trace, factor))
    torch.testing.assert_close(y, (trace.double() * factor.value).to(dtype), rtol=0, atol=0)
    assert not y[2].any()


# ------------------------------------------------------------------------------- softmax


@pytest.mark.parametrize("n", SIZES)
def test_the_race_finds_the_largest_at_any_number_of_neurons(n):
    scores = cells_of(5 * randn(32, n, seed=n, dtype=torch.float64))
    scores[1, 1] = scores[1, 0] = 7.0  # a tie
    scores[2] = -torch.inf
    scores[3, 0] = -torch.inf
    found = subtract_row_max(scores, stepped=True)
    assert torch.equal(found, subtract_row_max(scores))
    live = torch.arange(32) != 2
    assert torch.equal(found[live].amax(1), torch.zeros(31, dtype=torch.float64))
    assert bool((found[2] == -torch.inf).all())
    neurons, inhibition = race_spikes(scores)
    assert neurons[2] == inhibition[2] == 0
    assert bool((neurons[live] >= inhibition[live]).all())


def test_exp2_loses_the_same_share_in_every_octave_and_is_silent_beyond_the_last():
    d = torch.arange(0, (OCTAVES + 2) * CELLS, 7, dtype=torch.float64)
    y = exp2_negative(d)
    assert torch.equal(y, exp2_negative(d, stepped=True))
    alive = d < OCTAVES * CELLS
    true = torch.exp2(-d / CELLS)
    assert (y[alive] / true[alive] - 1).abs().max() <= relative_error("exp2")
    assert not y[~alive].any()
    assert exp2_spikes(d).max() <= OCTAVES + 16


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 20.0])
def test_softmax_is_within_its_law(n, spread):
    z = spread * randn(16, n, seed=n, dtype=torch.float64)
    z[:4, n // 2 :] = -torch.inf
    y = softmax(z)
    assert torch.equal(y, softmax(z, stepped=True))
    q = relative_error("reciprocal")
    law = 2 * (relative_error("exp2") + 1 / CELLS) + q + 2 * n * 2.0**-OCTAVES
    assert (y - z.softmax(-1)).abs().sum(-1).max() <= law
    assert (y.sum(-1) - 1).abs().max() <= q + 4e-4
    assert not y[:4, n // 2 :].any()


def test_softmax_shifts_and_is_zero_where_all_is_masked():
    z = randn(5, 9, dtype=torch.float64)
    assert (softmax(z + 300) - softmax(z)).abs().max() < 2e-3
    z[2] = -torch.inf
    assert not softmax(z)[2].any()
    assert not softmax(z, stepped=True)[2].any()


# ------------------------------------------------------------------------------ layer norm


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("width", [4, 33, 768])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_a_norm_is_within_its_law(centre, width, scale):
    x = scale * (randn(20, width, seed=width, dtype=torch.float64) + 0.7)
    x[:, 0] *= 30  # an outlier, as trained models have
    weight, bias = (randn(width, seed=i, dtype=torch.float64) for i in (1, 2))
    digits = SignedDigitFormat.fit(scale / 128, 2 * float(x.abs().max()))
    done = layer_norm(x, weight, bias, 0.0, digits, subtract_mean=centre)
    stepped = layer_norm(x, weight, bias, 0.0, digits, subtract_mean=centre, stepped=True)
    for part in ("y", "integers", "mean", "squares"):
        assert torch.equal(getattr(done, part), getattr(stepped, part))
    if centre:
        x = x - x.mean(1, keepdim=True)
    spread = x.square().mean(1, keepdim=True).sqrt()
    error = (done.y - bias - weight * x / spread).square().mean()
    grid = digits.grid / spread
    q = relative_error("rsqrt") + 4e-4
    # q acts on y itself, whose outlier has its own weight.
    law = q**2 * (weight * x / spread).square() + grid**2 / 2 * weight.square().mean()
    assert float(error) <= float(law.mean())


def test_a_constant_row_gives_the_bias_and_nan_its_row():
    x = torch.full((3, 8), 5.0)
    x[1] = torch.arange(8.0)
    x[2, 3] = math.nan
    bias = torch.arange(8.0)
    for stepped in (False, True):
        y = layer_norm(
            x, torch.ones(8), bias, 1e-5, SignedDigitFormat(2.0**-6, 12), stepped=stepped
        ).y
        assert torch.equal(y[0], bias)
        assert bool(y[1].isfinite().all())
    y = layer_norm(x, torch.ones(8), bias, 1e-5, SignedDigitFormat(2.0**-6, 12)).y
    assert bool(y[2].isnan().any())


def test_float32_steps_and_collapses_alike():
    x = randn(64, 384, seed=3) * 4 + randn(384, seed=4)
    weight, bias = randn(384, seed=5), randn(384, seed=6)
    args = (x, weight, bias, 1e-12, SignedDigitFormat.fit(0.02, 40.0))
    assert torch.equal(layer_norm(*args).y, layer_norm(*args, stepped=True).y)
    assert torch.equal(softmax(x), softmax(x, stepped=True))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: softmax(torch.tensor([0.0, math.nan])), "finite or -inf.*NaN or"),
        (lambda: softmax(torch.tensor([0.0, math.inf])), "softmax needs scores"),
        (lambda: softmax(torch.ones(2, 0)), "at least one in each row, got none"),
        (
            lambda: layer_norm(
                torch.ones(1, 2), torch.ones(2), None, math.nan, SignedDigitFormat(1.0, 4)
            ),
            "finite eps of at least 0, got nan",
        ),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(RangeError, match=text):
        call()


def test_the_reach_of_the_race_is_what_is_said():
    assert math.log(2) * REACH / CELLS > 709


@pytest.mark.parametrize("cap", [1.5, 50.0])
def test_a_soft_cap_is_as_right_for_small_scores_as_for_large_ones(cap):
    x = torch.logspace(-3, 1, 4001, dtype=torch.float64) * cap
    x = torch.cat([x, -x])
    y, true = soft_capped(x, cap), cap * torch.tanh(x / cap)
    assert torch.equal(y, soft_capped(x, cap, stepped=True))
    assert bool(((y - true).abs() <= 0.005 * true.abs() + cap / UNITS).all())
    assert bool((y.abs() < cap).all())
    assert bool((soft_cap_spikes(x, cap)[0] >= soft_cap_spikes(x, cap)[1]).all())


def test_a_soft_cap_of_infinity_is_the_cap_and_of_nan_is_nan():
    ends = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])
    y = soft_capped(ends, 2.0)
    assert bool(y[0].isnan())
    torch.testing.assert_close(y[1:], torch.tensor([2.0, -2.0, 0.0]), atol=0.01, rtol=0)
