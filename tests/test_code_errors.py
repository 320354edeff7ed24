"""What is no code, no value of one and no spike train is refused by name."""

import dataclasses
import math

import pytest
import torch

from isospike import codes
from isospike.codes import (
    CODES,
    BernoulliCode,
    Code,
    LatencyCode,
    PhaseCode,
    RankOrderCode,
    RateCode,
    SignedDigitCode,
)
from isospike.codes.base import check_steps, check_values
from isospike.errors import InputError, IsospikeError, RangeError, ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(code: Code, seed: int) -> dict[str, torch.Generator]:
    """The generator of the one code that takes one."""
    return {"generator": seeded(seed)} if isinstance(code, BernoulliCode) else {}


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("action", ["encode", "quantize", "count"])
@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([0.5, 1.5, 1.0], r"1\.5 \(1 of 3 outside\)"),
        ([-2.0, 0.0, 7.0], r"-2\.0 \(2 of 3 outside\)"),
        ([0.5, math.nan], r"nan \(1 of 2 outside\)"),
        ([math.inf, -math.inf], r"inf \(2 of 2 outside\)"),
        ([1 + 2.0**-23], r"1\.00000011920\d* \(1 of 1 outside\)"),
    ],
)
def test_a_value_outside_the_range_is_refused_and_named(name, action, values, got):
    code = CODES[name](4)
    low = f"{CODES[name].low:g}"
    message = (
        rf"^{type(code).__name__} needs values in \[{low}, 1\], got {got}\. Rescale x first\.$"
    )
    with pytest.raises(RangeError, match=message):
        getattr(code, action)(torch.tensor(values))


def test_a_negative_value_needs_the_code_with_an_off_neuron():
    x = torch.tensor([-0.5])
    with pytest.raises(RangeError, match=r"needs values in \[0, 1\], got -0\.5 \(1 of 1 outside\)"):
        PhaseCode(4).encode(x)
    assert SignedDigitCode(4).quantize(x).item() == pytest.approx(-0.5, abs=0.5 / 15)


def test_whole_numbers_are_refused_as_values():
    with pytest.raises(
        RangeError, match=r"^RateCode needs x of a floating-point type, got torch\.int64"
    ):
        check_values(RateCode(4), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_spikes_that_cannot_hold_their_value_are_refused(name, dtype):
    code = CODES[name](4)
    spikes = code.encode(torch.tensor([0.4]), **random(code, 1)).to(dtype)
    with pytest.raises(RangeError, match=rf"decode needs floating-point spikes, .* got {dtype}\. "):
        code.decode(spikes)


@pytest.mark.parametrize("steps", [0, -1, 33])
@pytest.mark.parametrize("kind", [PhaseCode, SignedDigitCode])
def test_positional_codes_refuse_steps_outside_1_to_32(kind, steps):
    message = rf"^{kind.__name__} needs steps in \[1, 32\], got {steps}\. Choose"
    with pytest.raises(RangeError, match=message):
        kind(steps)


@pytest.mark.parametrize(
    ("kind", "steps", "bounds"),
    [
        (RateCode, 0, "1, 4096"),
        (RateCode, 4097, "1, 4096"),
        (BernoulliCode, -1, "1, 4096"),
        (LatencyCode, 1, "2, 4096"),
        (RankOrderCode, 0, "1, 65536"),
    ],
)
def test_every_code_names_its_range_of_steps(kind, steps, bounds):
    message = rf"^{kind.__name__} needs steps in \[{bounds}\], got {steps}\. "
    with pytest.raises(RangeError, match=message):
        kind(steps)


@pytest.mark.parametrize("steps", [2.5, 4.0, True, "8", None])
@pytest.mark.parametrize("kind", [*CODES.values(), RankOrderCode])
def test_steps_that_are_no_whole_number_are_refused(kind, steps):
    with pytest.raises(RangeError, match=rf"needs a whole number of steps, got {steps!r}\. Give"):
        check_steps(kind, steps)  # Not kind(steps): here beartype would refuse it first.


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, math.nan])
def test_a_significance_ratio_outside_zero_to_one_is_refused(alpha):
    with pytest.raises(RangeError, match=rf"needs alpha in \(0, 1\], got {alpha}\. Try 0\.9"):
        RankOrderCode(3, alpha=alpha)


def test_an_unknown_code_name_is_refused_with_the_known_ones():
    with pytest.raises(
        InputError,
        match=r"phase, half-octave, rate, bernoulli, latency, got 'morse'\. Choose one",
    ):
        codes.code("morse", 4)


@pytest.mark.parametrize("name", CODES)
def test_a_code_is_found_by_its_name(name):
    assert codes.code(name, 6) == CODES[name](6)
    assert codes.code(name, 6).name == name


@pytest.mark.parametrize(
    ("code", "shape", "needed"),
    [
        (PhaseCode(4), (3, 5), r"\[4, \.\.\.\], got \[3, 5\]"),
        (SignedDigitCode(4), (4, 5), r"\[4, 2, \.\.\.\], got \[4, 5\]"),
        (SignedDigitCode(4), (4,), r"\[4, 2, \.\.\.\], got \[4\]"),
        (RateCode(4), (), r"\[4, \.\.\.\], got \[\]"),
        (RankOrderCode(2), (3, 5), r"\[2, \.\.\.\], got \[3, 5\]"),
    ],
)
def test_spikes_of_another_shape_are_refused(code, shape, needed):
    message = rf"^{type(code).__name__}\.decode needs spikes of shape {needed}\. Time is axis 0"
    with pytest.raises(ShapeError, match=message):
        code.decode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (2,), (5, 2), (0,)])
def test_a_vector_shorter_than_its_ranks_is_refused(shape):
    message = rf"needs at least steps=3 values in the last axis, got shape \({shape and shape[0]}"
    with pytest.raises(ShapeError, match=message if shape else r"got shape \(\)"):
        RankOrderCode(3).encode(torch.zeros(shape))


def test_nan_has_no_rank():
    x = torch.tensor([1.0, math.nan, 3.0, math.nan])
    with pytest.raises(RangeError, match=r"needs ordered values, got NaN \(2 of 4\)\. Remove"):
        RankOrderCode(2).encode(x)


@pytest.mark.parametrize("kind", [*CODES.values(), RankOrderCode])
def test_a_code_cannot_be_changed_and_serves_as_a_key(kind):
    code = kind(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        code.steps = 5
    assert {code: "found"}[kind(4)] == "found"
    assert kind(5) != code


def test_every_error_of_a_code_is_an_isospike_error_and_a_value_error():
    with pytest.raises(IsospikeError):
        PhaseCode(0)
    assert issubclass(RangeError, ValueError)
    assert issubclass(ShapeError, ValueError)


def test_codes_differ_in_name_summary_and_colour():
    for field in ("name", "summary", "colour"):
        values = [getattr(kind, field) for kind in CODES.values()]
        assert len({*values}) == len(values)
        assert all(values)
    assert {*CODES} == {kind.name for kind in CODES.values()}


def test_only_the_random_code_takes_a_generator():
    x = torch.rand(5, generator=seeded())
    for name, kind in CODES.items():
        if name != "bernoulli":
            with pytest.raises(TypeError, match="generator"):
                kind(4).encode(x, generator=seeded())
    assert torch.equal(
        BernoulliCode(4).encode(x, generator=seeded()),
        BernoulliCode(4).encode(x, generator=seeded()),
    )
