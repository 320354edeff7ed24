import math

import pytest
import torch

from isospike.errors import RangeError
from isospike.theory.softmax import (
    coincidence,
    exp_by_coincidence,
    race_error,
    softmax_race,
    softmax_shunting,
    softmax_subtractive,
)

SIZES = (4, 16, 64, 197)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def scores(kind, n):
    z = torch.randn(n, generator=seeded(n), dtype=torch.float64)
    if kind == "near-ties":
        z = 1e-3 * z  # softmax is 1 / n to a part in a thousand
    elif kind == "two near-ties ahead":
        z[:2] = z.max() + 3 + torch.tensor([0.0, 1e-4])
    return z


KINDS = ("normal", "near-ties", "two near-ties ahead")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_race_is_exactly_its_law(kind, n):
    z = scores(kind, n)
    a = z.softmax(0)
    for steps, repeats in ((4, 400), (256, 100)):
        squares = torch.stack([
            (softmax_race(z, steps, generator=seeded(i)) - a).square().sum()
            for i in range(repeats)
        ])  # fmt: skip
        law = race_error(z, steps) ** 2
        slack = 5 * float(squares.std()) / math.sqrt(repeats)
        assert abs(float(squares.mean()) - law) <= slack


@pytest.mark.parametrize("n", SIZES)
def test_a_long_race_is_as_near_as_its_law_says(n):
    z = scores("two near-ties ahead", n)
    rates = softmax_race(z, 16_384, generator=seeded(n))
    assert float(rates.sum()) == pytest.approx(1)
    assert (rates - z.softmax(0)).norm() < 3 * race_error(z, 16_384)


def test_the_law_of_a_race_does_not_grow_with_the_neurons():
    laws = [race_error(torch.zeros(n), 100) for n in SIZES]
    assert laws == sorted(laws)
    assert laws[-1] < 0.1  # 1 / sqrt(T)
    assert race_error(torch.zeros(2), 50) == pytest.approx(0.1)
    assert race_error(torch.zeros(1), 7) == 0


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_shunting_converges_as_one_over_steps(kind, n):
    z = scores(kind, n)
    a = z.softmax(0)
    for steps in (1024, 4096) if kind == "normal" else (1024, 16_384):
        rates = softmax_shunting(z, steps)
        spikes = float(rates.sum()) * steps
        assert float((rates / rates.sum() - a).abs().sum()) <= 2 * n / spikes
        assert abs(spikes / steps - 1) < 0.02
        assert float((rates - a).abs().sum()) < (0.5 * n + 5) / steps


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_subtractive_inhibition_does_not_converge_to_softmax(decay):
    z = scores("normal", 16)
    a = z.softmax(0)

    def best(steps):
        return min(
            float(
                (softmax_subtractive(z, steps, decay=decay, drive=d, inhibition=w) - a).abs().sum()
            )
            for d in (0.25, 0.5, 1.0, 2.0, 4.0)
            for w in (0.0, 0.5, 1.0, 2.0)
        )

    short, long = best(64), best(512)
    assert long > 0.3
    assert long > 0.8 * short  # 1 / sqrt(T) would be a third
    assert float((softmax_shunting(z, 512) - a).abs().sum()) < 0.03


def test_without_a_leak_it_is_the_drive_that_computes_softmax_and_inhibition_that_spoils_it():
    z = scores("normal", 16)
    errors = [
        float((softmax_subtractive(z, 1024, decay=1.0, inhibition=w) - z.softmax(0)).abs().sum())
        for w in (0.0, 0.25, 0.5, 1.0)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.02
    assert errors[1] > 0.1


@pytest.mark.parametrize(("z", "reach"), [(0.0, 1.0), (0.5, 1.0), (-1.0, 2.0), (1.0, 3.0)])
def test_coincidences_compute_exp_with_the_stated_variance(z, reach):
    law = coincidence(z, reach, 30)
    assert law.bias == pytest.approx(0, abs=1e-9)
    got = torch.tensor(
        [exp_by_coincidence(z, reach, 4, generator=seeded(i)) for i in range(3000)]
    ).double()
    assert float(got.mean()) == pytest.approx(math.exp(z), abs=5 * float(got.std()) / 3000**0.5)
    assert float(got.var()) == pytest.approx(law.variance / 4, rel=0.2)


def test_what_exp_by_coincidence_costs():
    def at(z, reach, shared):
        return coincidence(z, reach, 60, shared=shared).steps(0.1)

    assert at(0.0, 1.0, False) == pytest.approx(27, abs=1)
    assert at(0.0, 5.0, False) == pytest.approx(662, rel=0.01)
    assert at(-4.0, 5.0, False) == pytest.approx(1194, rel=0.01)
    assert at(4.0, 5.0, False) == pytest.approx(15, abs=1)
    # With shared trains, as published, more.
    assert at(0.0, 1.0, True) == 57
    assert at(0.0, 5.0, True) > 1500


def test_a_cut_series_is_biased_by_what_it_leaves_out():
    # M = 1, z = 1: r = 1, every train spikes: the polynomial of e^-1 e^2, cut after 2.
    law = coincidence(1.0, 1.0, 2)
    assert law.value == pytest.approx(math.exp(-1) * (1 + 2 + 2))
    assert law.variance == pytest.approx(0, abs=1e-12)
    assert law.spikes == pytest.approx(3)  # two trains, one detector of order 2
    assert law.steps(0.1) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: softmax_race(torch.tensor([0.0, math.nan]), 4), "finite scores"),
        (lambda: softmax_race(torch.ones(0), 4), "at least one"),
        (lambda: softmax_shunting(torch.ones(2), 0), "softmax_shunting needs steps >= 1, got 0"),
        (lambda: softmax_subtractive(torch.ones(2), 4, decay=1.1), "a decay in .* got 1.1"),
        (lambda: coincidence(2.0, 1.0, 3), "got 2, 1 and 3"),
        (lambda: coincidence(0.0, 1.0, 3).steps(0.0), "an error above 0, got 0"),
        (lambda: exp_by_coincidence(0.0, 1.0, 0), "steps >= 1, got 0"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(RangeError, match=text):
        call()
