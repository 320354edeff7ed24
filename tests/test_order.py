"""``isospike order``: tables as they come, the page, and one line for what goes wrong."""

import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import isospike
from isospike.causal.background import BackgroundKnowledge
from isospike.causal.report import OrderReport
from isospike.causal.simulate import random_dag, simulate
from isospike.causal.table import parse_edges, parse_table, read_table
from isospike.cli import app
from isospike.data import sachs
from isospike.errors import InputError, ShapeError


def run(*args):
    few = [] if "--resamples" in args else ["--resamples", "0"]
    return CliRunner().invoke(app, ["order", *map(str, args), *few])


def csv_text(rows, header=None, separator=",", decimal="."):
    lines = [separator.join(header)] if header else []
    lines += [separator.join(f"{v:.6f}".replace(".", decimal) for v in row) for row in rows]
    return "\n".join(lines) + "\n"


def data(d=5, rows=300):
    draw = torch.Generator().manual_seed(0)
    return simulate(random_dag(d, 1.0, "er", draw), rows, "linear", generator=draw)


@pytest.mark.parametrize("header", [None, ["a b", "b", "c, d"]])
@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), (";", ","), ("\t", "."), ("|", ".")]
)
def test_separator_header_and_decimal_mark_are_found_out(header, separator, decimal):
    rows = np.random.default_rng(0).normal(size=(20, 3))
    names = None if header is None else [f'"{h}"' for h in header]
    table = parse_table(csv_text(rows, names, separator, decimal))
    np.testing.assert_allclose(table.rows, rows, atol=1e-6)
    assert list(table.columns) == (header or ["x0", "x1", "x2"])
    assert ("no header" in table.file_format) == (header is None)
    assert ("decimal commas" in table.file_format) == (decimal == ",")


def test_columns_may_be_aligned_by_spaces():
    table = parse_table("a   bb\n 1  2.5\n10  -3e1\n")
    assert table.rows.tolist() == [[1, 2.5], [10, -30]]
    assert table.file_format == "space-separated, a header"


def test_missing_cells_are_not_a_number_whatever_they_are_called():
    assert np.isnan(parse_table("a,b\n1,\nNA,2\nnull,nan\n").rows).sum() == 4


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a\n1\n2\n", "at least two columns"),
        ("a,b\n1,2\n3,4,5\n", "got 3 cells in line 3 of .* and 2 in the first"),
        ("a,b\n1,2\n3,red\n", "numbers, got 'red' in line 3, column b"),
        ("a,a\n1,2\n", "got 'a' twice"),
        ("a,b\n", "only a header"),
    ],
)
def test_tables_that_are_none_are_refused(text, got):
    with pytest.raises(InputError, match=got):
        parse_table(text)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a,b\nb,c\nc,a\n", "a graph without cycles, got one in the truth"),
        ("a,b\nb,d\n", "names of columns, got 'd'"),
        ("a,b\nb\n", "a cause and an effect on each line, got 1"),
    ],
)
def test_truths_that_are_none_are_refused(text, got):
    with pytest.raises(InputError, match=got):
        parse_edges(text, ["a", "b", "c"])


def test_a_truth_may_have_a_header_or_none():
    for text in ("a,b\nb,c\n", "cause,effect\na,b\nb,c\n", "from;to\na;b\nb;c\n"):
        assert np.argwhere(parse_edges(text, "abc")).tolist() == [[0, 1], [1, 2]]


def test_sachs_is_853_cells_and_an_acyclic_graph_of_17_edges():
    text, edges = sachs()
    table = parse_table(text)
    assert table.rows.shape == (853, 11)
    assert parse_edges("\n".join(map(",".join, edges)), table.columns).sum() == 17
    cyclic = "pip2,pip3\npip3,plc\nplc,pip2\n"  # in the file of 18 edges
    with pytest.raises(InputError, match="without cycles"):
        parse_edges(cyclic, table.columns)


def test_the_report_puts_simple_ways_beside_the_fit():
    made = data(8)
    report = isospike.order_causes(made.data, made.truth)
    names = [m.name for m in report.methods]
    assert names == [
        "this fit", "inverse covariance", "sorted by variance", "random orders", "empty graph",
    ]  # fmt: skip
    ours, empty = report.methods[0], report.methods[-1]
    assert (ours.divergence, ours.shd, ours.sid) == (0, 0, 0)
    assert (empty.shd, empty.edges, empty.divergence) == (made.truth.sum(), 0, None)
    assert isospike.order_causes(made.data).methods == ()
    again = isospike.order_causes(made.data, made.truth)
    assert again.to_json() == report.to_json()
    assert OrderReport.from_json(report.to_json()).to_json() == report.to_json()
    by_size = report.methods[2].divergence
    assert report.verdict() == (
        f"The order reverses 0 of {empty.shd:g} true edges; random orders reverse "
        f"{report.methods[3].divergence:.1f} on average. The graph differs from the truth in 0 "
        f"pairs of variables, the empty graph in {empty.shd:g}. "
        f"Sorting by variance reverses {by_size:g}: the order is "
        f"{'better' if by_size else 'no better'}. Directions come from noises of one variance in "
        "the columns' own units; 1 of 6 edges have none."
    )
    with pytest.raises(ShapeError, match=r"a truth of 8 variables, got shape \(3, 3\)"):
        isospike.order_causes(made.data, np.zeros((3, 3), bool))


def test_a_report_tells_its_settings_and_whether_an_assumption_seems_broken():
    x = data(4).data
    known = BackgroundKnowledge(forbidden=[("x0", "x1")])
    fit = isospike.ScoreSchurSort(lambda v: v, "mean", background=known)
    report = isospike.order_causes(x, estimator=fit)
    assert report.provenance.parameters["information"] == "<lambda>"
    assert report.provenance.parameters["background"]["forbidden"] == [["x0", "x1"]]
    assert isospike.order_causes(x).verdict().endswith("no sign of a broken assumption.")
    scaled = isospike.order_causes((x - x.mean(0)) / x.std(0))
    assert scaled.rule == "partial"
    assert "Directions come from independences" in scaled.verdict() or not scaled.edges


def test_a_table_knows_its_truth_and_where_it_came_from():
    report = isospike.order_causes(read_table("sachs"))
    assert report.file_format == "comma-separated, a header"
    assert "the order is no better" in report.verdict()
    assert report.methods[-1].shd == 17
    assert report.tables()["order"].rows[-1][0] == report.order[-1]
    assert report.tables()["edges"].csv().splitlines()[0] == "cause,edge,effect,share"


def test_the_page_asks_for_nothing_and_escapes_names():
    x = data(4).data
    frame = type("F", (), {"columns": ["<b>", "b&", "c", "d"], "__array__": lambda *_, **__: x})()
    page = isospike.order_causes(frame).html()
    assert "<b>" not in page.replace("<b></b>", "")
    assert "&lt;b&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("marker-end") == len(isospike.order_causes(frame).edges)


def test_order_writes_page_json_and_edges_and_says_what_it_read(tmp_path):
    made = data()
    file, truth, out = tmp_path / "d.csv", tmp_path / "t.csv", tmp_path / "out"
    file.write_text(csv_text(made.data, list("abcde"), ";"))
    truth.write_text("\n".join(f"{'abcde'[i]},{'abcde'[j]}" for i, j in np.argwhere(made.truth)))
    done = run(file, "--truth", truth, "--out", out)
    assert done.exit_code == 0, done.output
    assert "300 rows, 5 columns, semicolon-separated, a header" in done.stderr
    assert ["this", "fit", "0", "0"] in [line.split()[:4] for line in done.stdout.splitlines()]
    assert sorted(p.name for p in out.iterdir()) == [
        "edges.csv", "graph.dot", "graph.graphml", "isospike.json", "methods.csv", "order.csv",
        "report.html", "report.json",
    ]  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert sorted(report["order"]) == list("abcde")
    assert len((out / "edges.csv").read_text().splitlines()) == made.truth.sum() + 1
    assert json.loads(run(file, "--json", "--out", out).stdout)["methods"] == []


def test_order_of_standardised_columns_warns(tmp_path):
    x = data().data
    (tmp_path / "d.csv").write_text(csv_text((x - x.mean(0)) / x.std(0)))
    done = run(tmp_path / "d.csv", "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "! The columns look standardised." in done.stdout
    assert "look standardised" in (tmp_path / "out" / "report.html").read_text()


def test_order_of_sachs_stands_beside_the_empty_graph(tmp_path):
    done = run("sachs", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert ["empty", "graph", "–", "17"] in [line.split()[:4] for line in done.stdout.splitlines()]
    assert "! The noise of" in done.stdout


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "got the empty file"),
        ("a,b\n1,2\n3,4\n1,\n", "the first missing in row 3, column b"),
        ("a,b\n1,2\n3,4\n1,inf\n", "the first infinite"),
        ("a\n1\n2\n3\n", "at least two columns"),
        ("a,b\nx,y\nz,t\nu,v\n", "numbers, got 'x'"),
        ("a,b\n1,2\n1,4\n1,6\n", "the constant column a"),
        ("a,b\n1,2\n2,4\n3,6\n", "got b, which is a multiple of a"),
        ("a,b,c\n1,2,7\n2,4.5,9\n3,1,1\n", "more rows than columns"),
    ],
)
def test_bad_tables_end_in_one_line(text, got, tmp_path):
    (tmp_path / "d.csv").write_text(text)
    done = run(tmp_path / "d.csv", "--out", tmp_path / "out")
    assert done.exit_code == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(got, errors[0])
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_order_takes_what_is_known(tmp_path):
    made = data(5)
    (tmp_path / "d.csv").write_text(csv_text(made.data, list("abcde")))
    first = json.loads(run(tmp_path / "d.csv", "--json", "--out", tmp_path / "out").stdout)["order"]
    (tmp_path / "tiers").write_text(f"{first[-1]},{first[-2]}\n{first[0]}\n")
    (tmp_path / "required").write_text(f"{first[-1]},{first[1]}\n")
    (tmp_path / "forbidden").write_text("a,b\nb,a\n")
    (tmp_path / "scale").write_text("name,scale\n" + "".join(f"{c},2\n" for c in "abcde"))
    files = [f"--{k}" for k in ("tiers", "required", "forbidden")]
    done = run(
        tmp_path / "d.csv", "--json", "--out", tmp_path / "out",
        "--noise-scale", tmp_path / "scale",
        "--correction", "mean", "--prune", "row", "--threshold", "0.2", "--gamma", "0",
        *(v for f in files for v in (f, tmp_path / f[2:])),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    place = report["order"].index
    assert max(place(first[-1]), place(first[-2])) < place(first[0])
    assert [first[-1], first[1]] in report["edges"]
    assert not {("a", "b"), ("b", "a")} & {tuple(e) for e in report["edges"]}
    assert report["provenance"]["parameters"]["correction"] == "mean"


def test_a_folder_of_something_else_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    done = run("no such file", "--out", tmp_path)
    assert done.exit_code == 2
    assert "error: order needs a new folder or one it wrote itself" in done.stderr


@pytest.mark.parametrize(
    ("option", "text", "got"),
    [
        ("--tiers", "a,b\nq\n", "got 'q', which is not a column"),
        ("--tiers", "a,b\nb\n", "got 'b' twice"),
        ("--noise-scale", "a,1\nb,-2\n", "a positive number on each line, got 'b -2'"),
        ("--noise-scale", "a,1\n", "a line for each column, got none for 'b'"),
        ("--required", "a,b\nb,a\n", "a graph without cycles"),
        ("--forbidden", "a,z\n", "names of columns, got 'z'"),
    ],
)
def test_what_is_known_wrongly_ends_in_one_line(option, text, got, tmp_path):
    (tmp_path / "d.csv").write_text(csv_text(data(3).data, list("abc")))
    (tmp_path / "f").write_text(text)
    done = run(tmp_path / "d.csv", option, tmp_path / "f", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert re.search(got, done.stderr)
    assert not (tmp_path / "out").exists()
