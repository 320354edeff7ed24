import re

import pytest
from browser import Tags, body, browse, needs_chromium
from markupsafe import Markup

from isospike.report import page as pages
from isospike.report.figures import Axis, Series, bar, heatmap, line, matrix, raster, scatter
from isospike.report.page import Details, Drawing, Grid, Items, Note, Section, legend, render
from isospike.report.table import Table

HOSTILE = "</script><script>alert(1)</script><b>&\"'"
NAN, INF = float("nan"), float("inf")


def figures(text="x"):
    points = Series(text, (1, 2, 4), (0.5, None, INF), hover=(text, f"{text}\nb", "c"))
    zero = Series("zero", (1, 2), (0.0, 0.1), dash="", symbol="circle-open", spread=(0.1, 0.2))
    return (
        line("plot-line", text, [points, zero], Axis(text, log=True, ticks={1: text, 2: "2"}),
             Axis(text, log=True, limits=(0.01, 1.0)), levels={text: 0.2}, bands=[(1, 2)],
             title=text),
        scatter("plot-scatter", text, [points], text, Axis("y", from_zero=True, every=2)),
        bar("plot-bar", text, {text: 3.0, "b": 0}, text, hover=(text, "")),
        heatmap("plot-heat", text, [[1, None], [NAN]], axes=(text, "layer"), limits=(0.0, 1.0)),
        heatmap("plot-named", text, [[1, 2]], [text, "b"], [text], texts=".1f", title=text),
        matrix("plot-matrix", text, [[1, 2], [3, 4]], limits=(1, 4), title=text),
        raster("plot-raster", text, {"ON": [(0, 1)], text: [(2, 3)]},
               Axis(text, limits=(0, 4), ticks={0: text}), 4, bands=[(1, 2)], line_at=[1.5]),
    )  # fmt: skip


def whole(text="x", **changes):
    table = Table("t", (text,), ((text,),), formats=("code",))
    blocks = (
        text, Note(text, "aside"), legend({text: "#000"}, [text]), Items((text,)), table,
        Items((text, "b"), numbered=True),
        Details(text, (table, Grid(figures(text)[:1]))), Grid(figures(text)[1:], width=300),
        Drawing(Markup("<svg></svg>")),
    )  # fmt: skip
    made = {
        "verdict": text, "warnings": (text,), "cards": {text: f"{text}\n{text}"},
        "sections": (Section(text, text, blocks),), "footer": (text,),
    }  # fmt: skip
    return render(text, **{**made, **changes})


@pytest.mark.parametrize("text", ["x", HOSTILE])
def test_page_is_well_formed_and_refers_to_nothing_outside(text):
    page = whole(text)
    tags = Tags()
    tags.feed(body(page))
    tags.close()
    assert tags.open == []
    references = [v for _, name, v in tags.values if name in ("src", "href", "srcset", "action")]
    assert references == ["data:,"]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_texts_are_escaped_everywhere():
    page = whole(HOSTILE)
    assert "<script>alert" not in page
    assert page.count("</script>") == 3  # of our own: errors, Plotly, drawing
    assert body(page).count("&lt;script&gt;alert(1)") >= 20


def test_plotly_is_written_in_only_where_there_is_a_figure():
    assert whole().count("plotly.js v") == 1
    page = whole(sections=(Section("a", "b", ("c",)),))
    assert "plotly" not in page.lower()
    assert len(page) < 10_000


def test_a_meaning_may_hold_markup_of_our_own():
    meaning = Markup("at <code>{}</code>").format(HOSTILE)
    page = render("t", sections=[Section("a", meaning)])
    assert "at <code>&lt;/script&gt;" in page


def test_values_that_an_axis_cannot_show_are_left_out():
    for figure in figures():
        for trace in figure.data:
            assert "nan" not in str(trace).lower()
            assert "inf" not in str(trace.get("y")).lower()
    log = figures()[0]
    assert log.data[1]["y"] == [None, 0.1]


def test_series_without_a_colour_differ():
    figure = line("a", "b", [Series("a", (1,), (1,)), Series("b", (1,), (1,))])
    assert figure.data[0]["line"]["color"] != figure.data[1]["line"]["color"]


# Parity: a real browser draws it.


@needs_chromium
@pytest.mark.parametrize("text", ["x", HOSTILE])
def test_browser_draws_every_figure_without_a_word_on_the_console(text, tmp_path):
    dom, log = browse(whole(text), tmp_path)
    assert "CONSOLE" not in log
    assert 'data-errors=""' in dom
    assert 'data-plots="7"' in dom
    assert len(re.findall(r'id="plot-\w+"[^>]*>\s*<div class="plot-container', dom)) == 7


def test_template_is_read_once():
    assert pages._template("page.html") is pages._template("page.html")
