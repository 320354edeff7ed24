"""``measure_dimension``: the effective dimension at every site of a model."""

import re

import pytest
import torch

import isospike
from isospike.errors import RangeError, UnsupportedError
from isospike.porting.dimensions import DimensionReport, measure_dimension


def model():
    draw = torch.Generator().manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    for p in layers.parameters():
        torch.nn.init.normal_(p, generator=draw)
    return layers


def batches(rows=60):
    draw = torch.Generator().manual_seed(1)
    return [{"input": torch.randn(rows, 6, generator=draw)}]


@pytest.fixture(scope="module")
def report():
    return measure_dimension(model(), batches(), replicates=2, name="<b>mine</b>")


def test_a_site_is_measured_as_its_values_would_be(report):
    own = isospike.EffectiveDimension(replicates=2).fit(batches()[0]["input"]).dimension_
    assert [(s.name, s.kind) for s in report.sites] == [("0", "linear"), ("2", "linear")]
    found = report.sites[0].dimension
    assert (found.pca.value, found.rows, found.width) == (own.pca.value, 60, 6)
    assert found.participation.value == pytest.approx(own.participation.value)


def test_json_round_trip_is_exact(report):
    assert DimensionReport.from_json(report.to_json()) == report
    assert report.provenance.seed == 0


def test_the_same_generator_gives_the_same_intervals(report):
    draw = torch.Generator().manual_seed(0)
    again = measure_dimension(model(), batches(), replicates=2, generator=draw, name="<b>mine</b>")
    assert again.sites == report.sites


def test_verdict_says_how_much_is_used_and_what_the_rows_limit(report):
    assert re.match(r"At the 2 sites of <b>mine</b>, \d–\d directions hold 95 %", report.verdict())
    few = measure_dimension(model(), batches(12), replicates=2)
    assert "limited by the number of rows, not by the model: give more text" in few.verdict()


def test_tables_hold_every_number_and_the_page_escapes_names(report):
    tables = report.tables()
    assert [len(t.rows) for t in tables.values()] == [
        2, sum(len(s.dimension.curve) for s in report.sites),
    ]  # fmt: skip
    assert {"pca", "pca_low", "pca_high", "pca_capped", "mle"} <= set(tables["sites"].names)
    page = report.html()
    assert "<b>mine" not in page
    for expected in ("Dimensions by layer", "Are there enough rows?", "Show 2 sites"):
        assert expected in page


def test_mistakes_are_named():
    with pytest.raises(UnsupportedError, match="a model with matrix products, got a Tanh"):
        measure_dimension(torch.nn.Tanh(), [{"input": torch.ones(2, 3)}])
    with pytest.raises(RangeError, match=r"share in \(0, 1\], got 0"):
        measure_dimension(model(), batches(), share=0.0)
