"""Figures as drawings: where marks, ticks and labels come to lie."""

import re

import pytest

from isospike.report import drawing
from isospike.report.drawing import Scale, draw
from isospike.report.figures import Axis, Series, bar, heatmap, line, matrix, raster, scatter


def points(svg):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(.*?)" cy="(.*?)"', str(svg))]


def test_a_scale_maps_its_ends_to_its_pixels():
    assert Scale(1, 3, 10, 30)(2) == 20
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)
    assert not Scale(1, 100, 0, 10, log=True).shows(0)


# Hand trace.
def test_points_lie_where_their_axes_say():
    series = Series("a", (0, 1, 2), (0, 10, 20))
    axes = Axis(limits=(0, 2)), Axis(limits=(0, 20))
    drawn = points(draw(scatter("n", "l", [series], *axes, height=200, legend=False), 400))
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.1)
    assert x2 == pytest.approx(400 - 14)
    assert y2 == pytest.approx(10)


def test_equal_ratios_are_equally_far_apart_on_a_log_axis():
    series = Series("a", (1, 10, 100), (1, 1, 1))
    drawn = points(draw(scatter("n", "l", [series], Axis(log=True), legend=False), 400))
    assert drawn[1][0] - drawn[0][0] == pytest.approx(drawn[2][0] - drawn[1][0], abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, "0 0.2 0.4 0.6 0.8 1"), (-3, 7, "-2 0 2 4 6"),
     (0, 1e-5, "0 2e-06 4e-06 6e-06 8e-06 1e-05"),
     (12000, 16000, "12000 13000 14000 15000 16000")],
)  # fmt: skip
def test_ticks_are_round_numbers(low, high, expected):
    assert " ".join(drawing._ticks(Axis(), low, high, 5).values()) == expected


def test_ticks_of_a_log_axis_are_few():
    assert list(drawing._ticks(Axis(log=True), 0.5, 20, 8).values()) == [
        "0.5", "1", "2", "5", "10", "20",
    ]  # fmt: skip
    assert len(drawing._ticks(Axis(log=True), 1e-30, 1, 8)) <= 17


@pytest.mark.parametrize("value", [0, 5, -2.5])
def test_one_value_alone_has_an_axis(value):
    assert len(points(draw(line("n", "l", [Series("a", (1,), (value,))], legend=False), 300))) == 1


def test_a_gap_breaks_a_line():
    drawn = str(draw(line("n", "l", [Series("a", (1, 2, 3, 4, 5), (1, 2, None, 4, 5))]), 300))
    (path,) = re.findall(r'<path d="(.*?)" fill="none"', drawn)
    assert path.count("M") == 2
    assert path.count("L") == 2


def test_labels_that_do_not_fit_are_slanted():
    names = dict(enumerate(["a rather long name"] * 20))
    figure = line("n", "l", [Series("a", range(20), range(20))], Axis(ticks=names))
    assert "rotate(-40)" in draw(figure, 400)
    assert "rotate(-40)" not in draw(line("n", "l", [Series("a", (0, 9), (0, 1))]), 400)


def test_bars_are_as_long_as_their_values_and_end_in_the_picture():
    drawn = str(draw(bar("n", "l", {"a": 10, "b": 5, "c" * 90: 0}, "x"), 300))
    wide = [float(w) for w in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="(.*?)"', drawn)]
    assert wide[0] == pytest.approx(2 * wide[1], abs=0.2)
    assert wide[2] == 0
    assert wide[0] < 300


def test_cells_have_the_colours_at_both_ends_of_the_scale():
    figure = heatmap("n", "l", [[0, 1], [None]], scale=("#000000", "#ffffff"))
    drawn = str(draw(figure, 300))
    assert drawn.count("<title>") == 2
    assert '"#000000"><title>1, 1: 0' in drawn
    assert '"#ffffff"><title>1, 2: 1' in drawn


def test_many_cells_are_one_picture():
    drawn = str(
        draw(
            matrix("n", "l", [[i * j for i in range(99)] for j in range(99)], limits=(0, 9604)), 300
        )
    )
    assert drawn.count("<rect") == 0
    assert drawn.count("data:image/png;base64,iVBOR") == 1


# Parity: the picture is the one that Pillow reads.
def test_the_picture_of_many_cells_holds_their_colours():
    image = pytest.importorskip("PIL.Image")
    import base64
    import io

    drawn = str(drawing._image([[(1, 2, 3), None], [(4, 5, 6)]], 0, 0, 2, 2))
    picture = image.open(io.BytesIO(base64.b64decode(re.search(r"base64,(.*?)\"", drawn)[1])))
    assert list(picture.getdata()) == [(1, 2, 3, 255), (0, 0, 0, 0), (4, 5, 6, 255), (0, 0, 0, 0)]


def test_a_raster_has_a_line_for_each_spike():
    figure = raster("n", "l", {"a": [(0, 1), (1, 2)], "b": [(2, 3)]}, Axis(limits=(0, 3)), 5)
    drawn = str(draw(figure, 300))
    assert sum(path.count("v") for path in re.findall(r'<path d="(M.*?)" stroke', drawn)) == 3
    assert figure.rows()[1:] == [["a", 0, 1], ["a", 1, 2], ["b", 2, 3]]


def test_rows_are_the_numbers_behind_the_figure():
    series = [Series("a", (1, 2), (3.0, float("inf")), spread=(0.1, 0.2))]
    assert line("n", "l", series, "x", "y").rows() == [
        ("", "x", "y", "plus or minus"), ["a", 1, 3.0, 0.1], ["a", 2, None, 0.2],
    ]  # fmt: skip
    assert bar("n", "l", {"a": 1}, "x").rows() == [("", "x"), ["a", 1]]
    named = heatmap("n", "l", [[1, 2]], ["c", "d"], ["r"], axes=("head", "layer"))
    assert named.rows() == [("layer", "head", "value"), ["r", "c", 1.0], ["r", "d", 2.0]]
