"""Steps for an error: the law alone, a fit and its interval, the choice of a code."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike import codes
from isospike.codes import CODES, Law, fit_law
from isospike.errors import InputError, RangeError
from isospike.theory.steps import analytic_law, bootstrap_steps, choose

names = st.sampled_from(sorted(CODES))
factors = st.floats(0.01, 100)
exponents = st.floats(0, 2)
POINTS = (4, 6, 9, 12)


def test_every_code_has_a_law_fitted_within_its_steps():
    for kind in CODES.values():
        allowed = range(kind.min_steps, kind.search_limit + 1)
        assert {*kind.fit_steps, *kind.sweep_steps} <= {*allowed}
        assert kind.search_limit <= kind.max_steps


@pytest.mark.parametrize("kind", CODES.values(), ids=CODES)
def test_what_a_code_says_of_its_error_is_how_its_error_falls(kind):
    base, power = kind.error_law.split("^-")
    few, many = 6, 12
    if base == "T":
        assert kind.error_power == float(Fraction(power))
        fall = (few / many) ** kind.error_power
        assert kind.steps_per_octave is None
    else:
        assert kind.error_power is None
        assert kind.error_law == ("2^-T" if kind.steps_per_octave == 1 else "2^-T/2")
        fall = 2.0 ** (-(many - few) / kind.steps_per_octave)
    errors = [kind(steps).mean_square_error ** 0.5 for steps in (few, many)]
    assert errors[1] / errors[0] == pytest.approx(fall, rel=0.2)


@pytest.mark.parametrize("kind", CODES.values(), ids=CODES)
def test_an_octave_costs_the_spikes_that_a_code_says(kind):
    if kind.spikes_per_octave is None:
        return
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(20_000, generator=draw, dtype=torch.float64) / 2
    octave = kind.steps_per_octave
    few, many = (kind(steps * octave).count(x).double().mean().item() for steps in (5, 13))
    assert (many - few) / 8 == pytest.approx(kind.spikes_per_octave, rel=0.02)


def test_more_steps_are_those_of_the_law_within_the_limit():
    assert Law("rate", 1.0, 1.0).more_steps(10, 1.5) == 15
    assert Law("bernoulli", 1.0, 1.0).more_steps(10, 1.5) == 23
    assert Law("phase", 1.0, 1.0).more_steps(10, 1.5) == 11
    assert Law("rate", 1.0, 1.0).more_steps(200, 2.0) == 256
    assert Law("phase", 1.0, 1.0).more_steps(16, 2.0) is None


def test_the_law_by_hand():
    assert Law("phase", 1.0, math.sqrt(12)).error(3) == pytest.approx(1 / 7)
    assert Law("rate", 0.5, 1.0).error(4) == pytest.approx((1 / (4 * math.sqrt(12))) ** 0.5)
    assert Law("phase", 1.0, 3 * math.sqrt(12), 4 / 7).error(3) == pytest.approx(5 / 7)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("steps", [3, 6])
def test_the_law_alone_is_the_error_of_uniform_values(name, steps):
    code = codes.code(name, steps)
    draw = torch.Generator().manual_seed(0)
    x = code.low + (1 - code.low) * torch.rand(100_000, generator=draw).double()
    drawn = {"generator": draw} if name == "bernoulli" else {}
    error = float((code.quantize(x, **drawn) - x).norm() / (x - x.mean()).norm())
    crest = math.sqrt(12) if code.low == 0 else math.sqrt(3)
    assert analytic_law(name, crest).error(steps) == pytest.approx(error, rel=0.03)


@given(names, exponents, factors)
def test_points_on_a_law_without_floor_give_it_back(name, exponent, scale):
    true = Law(name, exponent, scale)
    found = fit_law(name, {t: true.error(t) for t in POINTS})
    assert found.floor == 0
    assert found.exponent == pytest.approx(exponent, rel=1e-6, abs=1e-6)
    assert found.scale == pytest.approx(scale, rel=1e-5)


@given(names, st.floats(0.5, 1.5), factors)
def test_a_floor_is_found_where_four_points_show_it(name, exponent, scale):
    bare = Law(name, exponent, scale)
    true = Law(name, exponent, scale, bare.error(9))
    found = fit_law(name, {t: true.error(t) for t in (3, 6, 9, 12)})
    assert found.floor == pytest.approx(true.floor, rel=0.1)
    with pytest.raises(RangeError, match=f"above the floor of the law, {found.floor:.3g}, got"):
        found.fewest_steps(found.floor * 0.9)


def test_three_points_leave_no_room_for_a_floor():
    assert fit_law("phase", {3: 0.2, 5: 0.11, 7: 0.1}).floor == 0


@given(names, st.lists(factors, min_size=4, max_size=4))
def test_a_fit_of_anything_falls_with_steps_or_is_flat(name, errors):
    found = fit_law(name, dict(zip(POINTS, errors, strict=True)))
    assert found.exponent >= 0
    assert 0 <= found.floor < min(errors)
    predicted = [found.error(t) for t in range(2, 33)]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(predicted, predicted[1:], strict=False))


@given(names, st.lists(factors, min_size=3, max_size=3), factors)
def test_scaling_the_errors_scales_the_law(name, errors, factor):
    steps = (4, 6, 9)
    found = fit_law(name, dict(zip(steps, errors, strict=True)))
    scaled = fit_law(name, {t: e * factor for t, e in zip(steps, errors, strict=True)})
    for t in steps:
        assert scaled.error(t) == pytest.approx(factor * found.error(t), rel=1e-6)


def test_a_fit_does_not_depend_on_the_order_of_the_points():
    errors = {4: 0.3, 8: 0.02, 6: 0.07, 10: 0.01}
    assert fit_law("phase", errors) == fit_law("phase", dict(sorted(errors.items())))


def test_errors_of_zero_are_fitted():
    found = fit_law("phase", dict.fromkeys((5, 7, 9), 0.0))
    assert found.error(8) < 1e-100
    assert found.fewest_steps(1e-9) == 1


@given(names, st.floats(0.1, 1.5), factors, st.floats(0.001, 10))
def test_the_fewest_steps_reach_the_target_and_one_fewer_does_not(name, exponent, scale, target):
    found = Law(name, exponent, scale)
    steps = found.fewest_steps(target)
    if steps is None:
        assert found.error(found.kind.search_limit) > target
        return
    assert found.error(steps) <= target
    assert steps == CODES[name].min_steps or found.error(steps - 1) > target


# Parity: a law fitted to made errors of known noise covers its own steps.
def test_the_interval_holds_the_steps_of_the_law_behind_the_noise():
    draw = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(6):
        true = Law("phase", 0.9, 3.0)
        noise = {t: torch.rand(60, generator=draw) + 0.5 for t in POINTS}
        squares = {t: n * true.error(t) ** 2 for t, n in noise.items()}
        low, high = bootstrap_steps("phase", squares, torch.ones(60), 0.02, generator=draw)
        held += low is not None and high is not None and low <= true.fewest_steps(0.02) <= high
    assert held >= 5


def test_the_interval_of_equal_inputs_is_one_number():
    squares = {t: torch.full((5,), 0.01 / t) for t in POINTS}
    law = fit_law("rate", {t: math.sqrt(0.01 / t) for t in POINTS})
    steps = law.fewest_steps(0.03)
    assert bootstrap_steps("rate", squares, torch.ones(5), 0.03) == (steps, steps)


def test_the_best_code_depends_on_what_is_counted():
    laws = [analytic_law(name, 3.0) for name in CODES]
    by_steps = choose(0.01, laws)
    assert by_steps[0].steps == min(c.steps for c in by_steps)
    assert {by_steps[0].code} <= {"signed-digit", "phase"}
    by_spikes = choose(0.01, [law for law in laws if law.code != "latency"], by="spikes")
    assert by_spikes[0].code == "half-octave"
    assert all(c.error <= 0.01 for c in by_steps)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit_law("phase", {3: 0.1}), "two numbers of steps at least, got 1"),
        (lambda: fit_law("phase", {3: 0.1, 5: math.nan}), "finite errors .*got nan at 5 steps"),
        (lambda: fit_law("phase", {3: 0.1, 5: -1.0}), "got -1.0 at 5 steps"),
        (lambda: analytic_law("phase", 0.0), "crest_factor above 0 and finite, got 0"),
        (lambda: analytic_law("phase", 1.0).fewest_steps(math.nan), "target above 0 and finite"),
        (lambda: choose(1e-9, [analytic_law("rate", 1.0)]), "least error of these laws is 0.00113"),
        (
            lambda: bootstrap_steps(
                "rate", {4: torch.ones(1), 8: torch.ones(1)}, torch.ones(1), 0.1
            ),
            "at least 2 inputs to draw from, got 1",
        ),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(RangeError, match=says):
        call()


def test_an_unknown_code_or_wish_is_refused():
    with pytest.raises(InputError, match="got 'morse'"):
        analytic_law("morse", 1.0)
    with pytest.raises(InputError, match="got 'luck'"):
        choose(0.1, [analytic_law("rate", 1.0)], by="luck")
