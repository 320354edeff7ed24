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


class Recurrent(torch.nn.Module):
    """A GRU of its input, scaled."""

    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = torch.nn.GRU(3, 3, batch_first=True), scale

    def forward(self, x):
        return self.layer(x * self.scale)[0]


def test_every_call_of_a_site_is_measured():
    """The first step of a recurrence reads zeros, the others do not."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    gru = Recurrent(1.0).eval()
    report = measure_dimension(gru, [{"x": x}], replicates=2)
    found = {s.name: s.dimension for s in report.sites}
    assert {d.rows for d in found.values()} == {4 * 6}
    with torch.no_grad():
        states = gru(x)
    before = torch.cat([torch.zeros(4, 1, 3), states[:, :-1]], 1).flatten(0, 1)
    own = isospike.EffectiveDimension(replicates=2).fit(before).dimension_
    hidden = found["layer:weight_hh_l0"]
    assert hidden.participation.value == pytest.approx(own.participation.value, rel=1e-4)


class Query(torch.nn.Module):
    """Pools with a learned query, as SigLIP does."""

    def __init__(self):
        super().__init__()
        self.query = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.ask, self.key = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        q = self.ask(self.query.expand(len(x), 1, 8))
        return torch.softmax(q @ self.key(x).mT, -1) @ x


def test_a_site_where_all_tokens_have_the_same_values_is_named_and_left_out():
    torch.manual_seed(0)
    x = torch.randn(30, 5, 8, generator=torch.Generator().manual_seed(1))
    report = measure_dimension(Query().eval(), [{"x": x}], replicates=2)
    assert report.constant[0] == "ask"
    assert "key" in [s.name for s in report.sites]
    assert "the same values there: ask, " in report.verdict()
    with pytest.raises(RangeError, match="at 0: EffectiveDimension needs rows that differ"):
        measure_dimension(model(), [{"input": torch.ones(9, 6)}], replicates=2)


def test_mistakes_are_named():
    with pytest.raises(UnsupportedError, match="a model with matrix products, got a Tanh"):
        measure_dimension(torch.nn.Tanh(), [{"input": torch.ones(2, 3)}])
    with pytest.raises(RangeError, match=r"share in \(0, 1\], got 0"):
        measure_dimension(model(), batches(), share=0.0)
