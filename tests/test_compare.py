"""Two ports side by side."""

import dataclasses
import json

import models
import pytest
from folders import call, files, quiet_transformers, said  # noqa: F401 - a fixture

import isospike
from isospike.porting.compare import CompareReport


@pytest.fixture(scope="module")
def reports():
    calibration, held_out = models.batches("bert")
    model = models.make("bert")
    model.name_or_path = "bert"
    ports = {}
    for steps in (3, 6):
        ports[steps] = isospike.port(model, [calibration], steps=steps, evaluation=[held_out])
    return ports


def test_more_steps_are_nearer_to_the_original_and_cost_more(reports):
    report = isospike.compare(reports[3], reports[6])
    assert (report.a, report.b) == ("3 steps (A)", "6 steps (B)")
    for name in ("error", "cosine", "spikes", "synaptic_ops", "steps"):
        values = tuple(getattr(reports[steps].report, name) for steps in (3, 6))
        assert report.measures[name] == values
    assert report.verdict().startswith("6 steps (B) is nearer to the original: ")
    assert report.warnings == ()
    assert len(report.costs) >= 3
    assert all(cost.a_pj < cost.b_pj for cost in report.costs)


def test_the_worst_sites_come_first_and_a_site_of_one_port_only_is_listed(reports):
    a, b = (reports[steps].report for steps in (3, 6))
    fewer = dataclasses.replace(b, sites=b.sites[1:])
    report = isospike.compare(a, fewer)
    assert len(report.sites) == len(a.sites)
    errors = [site.worst for site in report.sites]
    assert errors == sorted(errors, reverse=True)
    (alone,) = (site for site in report.sites if site.b_error is None)
    assert alone.name == b.sites[0].name


def test_the_same_port_twice_is_equal_to_itself(reports):
    report = isospike.compare(reports[3], reports[3].report)
    assert "Both ports differ from the original by" in report.verdict()
    assert report.verdict().endswith("They take the same energy.")
    assert (report.a, report.b) == ("A", "B")
    assert {b / a for a, b in report.measures.values()} == {1.0}


def test_the_page_shows_every_site_and_cost_table_of_both(reports):
    report = isospike.compare(reports[3], reports[6])
    both, errors, energy = report.sections()
    figure = errors.blocks[0]
    points, equal = figure.marks
    expected = {s.name: s.a_error for s in report.sites}
    assert dict(zip(points.hover, points.x, strict=True)) == expected
    assert equal.x == equal.y
    assert min(equal.x) < min(*points.x, *points.y)
    assert [list(s.y) for s in energy.blocks[0].marks] == [
        [c.a_pj for c in report.costs], [c.b_pj for c in report.costs]
    ]  # fmt: skip
    assert both.blocks[0].head[1:3] == (report.a, report.b)
    missing = dataclasses.replace(report, sites=())
    assert [type(b).__name__ for b in missing.sections()[1].blocks] == ["Details"]


def test_ports_that_differ_in_their_weights_are_called_by_them(reports):
    one = reports[3].report
    counts = dataclasses.replace(one.counts, weight_bits=8.0)
    report = isospike.compare(one, dataclasses.replace(one, counts=counts))
    assert (report.a, report.b) == ("weights of 16 bits (A)", "weights of 8 bits (B)")


def test_ports_of_two_models_are_announced(reports):
    other = dataclasses.replace(reports[6].report, model="another")
    report = isospike.compare(reports[3], other)
    assert report.warnings == ("These are ports of two models, bert and another.",)


def test_a_comparison_is_a_report(reports, tmp_path):
    report = isospike.compare(reports[3], reports[6])
    assert CompareReport.from_json(report.to_json()) == report
    folder = report.save(tmp_path / "out")
    names = {str(name) for name in files(folder)}
    assert names == {
        "report.html", "report.json", "measures.csv", "sites.csv", "costs.csv", "isospike.json"
    }  # fmt: skip
    assert len(repr(report).splitlines()) <= 10


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        ("nowhere", "got 'nowhere', which holds no report.json"),
        (3, "compare needs a port, its report or its folder, got int"),
    ],
)
def test_what_is_not_a_port_is_refused(thing, line, reports):
    with pytest.raises(isospike.InputError, match=line):
        isospike.compare(reports[3], thing)


def test_compare_reads_two_folders(ported, writer, tmp_path):
    done = call("compare", ported, writer, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["warnings"] == ["These are ports of two models, bert and gpt2."]
    done = call("compare", ported, ported, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "worst sites" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()


def test_compare_ports_one_model_with_two_numbers_of_steps(bert, text):
    done = call("compare", f"{bert}@3", f"{bert}@6", "--text", text, "--sentences", 10, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    error = json.loads(done.stdout)["measures"]["error"]
    assert error[0] > error[1] > 0


@pytest.mark.parametrize(
    ("sides", "line"),
    [
        (["{bert}", "{bert}"], "compare needs a folder that isospike port wrote"),
        (["{bert}@x", "{bert}@3"], "compare needs MODEL@STEPS, got"),
        (["{bert}@3", "{bert}@99"], "compare needs --steps in [1, 32], got 99"),
        (["nowhere@3", "{bert}@3"], "that transformers can load"),
    ],
)
def test_wrong_sides_are_refused(sides, line, bert, text):
    found = said(call("compare", *(s.format(bert=bert) for s in sides), "--text", text, "--json"))
    assert line.replace("--steps", "steps") in found
