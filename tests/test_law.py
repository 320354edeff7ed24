import pytest
from hypothesis import given
from hypothesis import strategies as st

from isospike.codes import CODES
from isospike.port.law import (
    FIT_AT,
    FORMS,
    MOST_STEPS,
    fit_law,
    predict,
    shape,
    smallest_steps,
)
from isospike.port.result import Law

forms = st.sampled_from(sorted(MOST_STEPS))
factors = st.floats(0.01, 100)
exponents = st.floats(0, 2)


def law(form, exponent, scale):
    return Law(form, exponent, scale, (), ())


def test_shapes_by_hand():
    assert shape("2^-T", 3) == 0.125
    assert shape("T^-1", 4) == 0.25
    assert shape("T^-1/2", 16) == 0.25
    assert predict(law("T^-1", 0.5, 4.0), 16) == 1.0
    assert predict(law("2^-T", 2.0, 4.0), 3) == 1 / 16


def test_every_code_has_a_law_fitted_within_its_steps():
    assert FORMS.keys() == CODES.keys()
    for name, form in FORMS.items():
        assert set(FIT_AT[form]) <= set(range(CODES[name].min_steps, MOST_STEPS[form] + 1))
        assert MOST_STEPS[form] <= CODES[name].max_steps


@given(forms, exponents, factors)
def test_points_on_a_law_give_it_back(form, exponent, scale):
    true = law(form, exponent, scale)
    errors = {t: predict(true, t) for t in FIT_AT[form]}
    found = fit_law(form, errors)
    assert found.form == form
    assert found.steps == FIT_AT[form]
    assert found.errors == tuple(errors.values())
    assert found.exponent == pytest.approx(exponent, rel=1e-9, abs=1e-9)
    assert found.scale == pytest.approx(scale, rel=1e-6)


@given(forms, st.lists(factors, min_size=3, max_size=3))
def test_a_fit_of_anything_falls_with_steps_or_is_flat(form, errors):
    found = fit_law(form, dict(zip(FIT_AT[form], errors, strict=True)))
    assert found.exponent >= 0
    assert found.scale > 0
    predicted = [predict(found, t) for t in range(1, 33)]
    assert all(b <= a * (1 + 1e-12) for a, b in zip(predicted, predicted[1:], strict=False))


@given(forms, factors)
def test_equal_errors_are_predicted_at_any_steps(form, error):
    found = fit_law(form, dict.fromkeys(FIT_AT[form], error))
    assert predict(found, 2) == pytest.approx(error, rel=1e-6)
    assert predict(found, 16) == pytest.approx(error, rel=1e-6)


def test_errors_that_grow_with_steps_give_their_geometric_mean():
    found = fit_law("T^-1", {8: 1.0, 32: 2.0, 128: 4.0})
    assert found.exponent == 0
    assert found.scale == pytest.approx(2.0)


@given(forms, st.lists(factors, min_size=3, max_size=3), factors)
def test_scaling_the_errors_scales_the_law(form, errors, factor):
    steps = FIT_AT[form]
    found = fit_law(form, dict(zip(steps, errors, strict=True)))
    scaled = fit_law(form, {t: e * factor for t, e in zip(steps, errors, strict=True)})
    for t in steps:
        assert predict(scaled, t) == pytest.approx(factor * predict(found, t), rel=1e-6)


def test_a_fit_does_not_depend_on_the_order_of_the_points():
    errors = {4: 0.3, 8: 0.02, 6: 0.07}
    assert fit_law("2^-T", errors) == fit_law("2^-T", dict(sorted(errors.items())))


def test_errors_of_zero_are_fitted():
    found = fit_law("2^-T", dict.fromkeys(FIT_AT["2^-T"], 0.0))
    assert predict(found, 8) < 1e-200
    assert smallest_steps(found, 1e-9, 1) == 1


@given(forms, exponents, factors, st.floats(0.001, 10), st.integers(1, 4))
def test_the_smallest_steps_reach_the_target_and_one_fewer_does_not(
    form, exponent, scale, target, least
):
    found = law(form, exponent, scale)
    steps = smallest_steps(found, target, least)
    if steps is None:
        assert predict(found, MOST_STEPS[form]) > target
        return
    assert least <= steps <= MOST_STEPS[form]
    assert predict(found, steps) <= target
    assert steps == least or predict(found, steps - 1) > target


def test_a_target_out_of_reach_has_no_steps():
    assert smallest_steps(law("2^-T", 1.0, 1.0), 2.0**-16, 1) == 16
    assert smallest_steps(law("2^-T", 1.0, 1.0), 2.0**-17, 1) is None
