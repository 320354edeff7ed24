"""What a port's figures mean, in words."""

import pytest
from test_port_report import make_report

from isospike.porting.advice import fitness, next_step, on_other_inputs, worst_sites
from isospike.porting.records import TextErrors


def of_kind(name, error):
    return TextErrors(name, 10, error, error, error, error, 1.0, 1.0)


@pytest.mark.parametrize(
    ("error", "cosine", "agreement", "expected"),
    [
        (0.03, 0.9994, None, "Good where outputs are compared"),
        (0.03, 0.9994, 0.985, "same for 98.5% of the tokens"),
        (0.03, None, None, "As good as the float model"),
        (0.12, 0.9, None, "Measure your task"),
        (0.5, 0.7, None, "Not good enough without"),
    ],
)
def test_an_error_is_said_to_be_good_enough_or_not(error, cosine, agreement, expected):
    assert expected in fitness(error, cosine, agreement)


def test_foreign_inputs_that_err_more_are_named_with_what_to_do():
    texts = [of_kind("held out", 0.02), of_kind("foreign", 0.02), of_kind("code", 0.16)]
    assert on_other_inputs(texts) == (
        "On code inputs it errs 8 times as much as on the held-out ones. Calibrate it on inputs of "
        "that kind too."
    )
    assert on_other_inputs(texts[:2]).endswith("1 times as much as on the held-out ones.")
    assert on_other_inputs(texts[:1]) == ""


def test_the_worst_sites_come_first():
    sites = make_report().sites
    worst = max(sites, key=lambda s: s.error)
    assert worst_sites(sites).startswith(f"The codes err most at {worst.name} ({worst.kind}, ")
    assert worst_sites(()) == ""


def test_a_missed_target_comes_with_more_steps():
    assert "more steps than 6" in next_step(0.08, 6, 0.04, reached=False)
    assert "more steps than 4" in next_step(0.25, 4, None, reached=True)
    assert "isospike export" in next_step(0.03, 8, 0.04, reached=True)
