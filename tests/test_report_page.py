import json
import re

import pytest
from browser import Tags, body, browse, needs_chromium
from markupsafe import Markup

from isospike.report import page as pages
from isospike.report.drawing import draw
from isospike.report.figures import Axis, Series, bar, heatmap, line, matrix, raster, scatter
from isospike.report.page import (
    Details,
    Drawing,
    Grid,
    Items,
    Note,
    Section,
    Slider,
    legend,
    render,
)
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
    assert page.count("</script>") == 2  # of our own: errors, tools
    assert body(page).count("&lt;script&gt;alert(1)") >= 20


def test_a_page_is_small():
    assert len(whole()) < 40_000
    page = whole(sections=(Section("a", "b", ("c",)),))
    assert "<svg" not in page
    assert len(page) < 15_000


def test_a_meaning_may_hold_markup_of_our_own():
    meaning = Markup("at <code>{}</code>").format(HOSTILE)
    page = render("t", sections=[Section("a", meaning)])
    assert "at <code>&lt;/script&gt;" in page


def test_values_that_an_axis_cannot_show_are_left_out():
    for figure in figures():
        drawn = draw(figure, 500)
        assert not re.search(r"nan|inf", str(drawn))
        json.dumps(figure.rows(), allow_nan=False)
    log = figures()[0]
    assert str(draw(log, 500)).count("<circle") == 2 + 2  # one of each series, two in the legend


def test_series_without_a_colour_differ():
    figure = line("a", "b", [Series("a", (1,), (1,)), Series("b", (1,), (1,))])
    assert figure.marks[0].colour != figure.marks[1].colour


def colours(page, which):
    """The variables of the light (0) or the dark (1) theme."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    return dict(re.findall(r"--([a-z-]+): (#\w+);", blocks[which]))


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    r, g, b = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in bytes.fromhex(digits))
    )
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("text", ["ink", "muted", "accent"])
@pytest.mark.parametrize("ground", ["paper", "ground", "band", "alarm-ground", "aside-ground"])
def test_every_text_has_the_contrast_that_wcag_aa_asks_for(theme, text, ground):
    found = colours(whole(), theme)
    low, high = sorted((luminance(found[text]), luminance(found[ground])))
    assert (high + 0.05) / (low + 0.05) >= 4.5


# Parity: a real browser draws it.


@needs_chromium
@pytest.mark.parametrize("text", ["x", HOSTILE])
def test_browser_draws_every_figure_without_a_word_on_the_console(text, tmp_path):
    dom, log = browse(whole(text), tmp_path)
    assert "CONSOLE" not in log
    assert 'data-errors=""' in dom
    assert len(re.findall(r'<figure class="plot"', dom)) == 7
    assert len(re.findall(r">SVG</button>", dom)) == 7


PROBE = """<!DOCTYPE html><body>
<iframe id="f" style="width:{width}px;height:900px;border:0"></iframe>
<script>
var frame = document.getElementById("f"), seen = document.body.dataset;
frame.onload = function () {{
  var page = frame.contentDocument;
  seen.wide = page.documentElement.scrollWidth;
  page.querySelectorAll(".tools button").forEach(function (b) {{
    if (b.textContent == "Table") b.click();
  }});
  seen.tables = page.querySelectorAll("figure table").length;
  var slider = page.querySelector(".slider input");
  slider.value = 0;
  slider.dispatchEvent(new frame.contentWindow.Event("input"));
  seen.chosen = page.querySelector(".slider output").textContent;
  seen.card = page.querySelector(".slider .cards:not([hidden])").textContent.trim();
  seen.svg = frame.contentWindow.picture(page.querySelector(".plot")).url;
  seen.errors = page.documentElement.dataset.errors;
}};
frame.srcdoc = {page};
</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 900, 1400])
def test_nothing_is_wider_than_the_screen_and_the_tools_work(width, tmp_path):
    slider = Slider("steps", {"2": {"error": "0.5"}, "4": {"error": "0.1"}}, "4")
    page = whole("a rather long text of several words", sections=(
        Section("a", "b", (Grid(figures()[1:], width=300), slider)),
        Section("c", "d", (line("plot-last", "last", [Series("s", (1, 2), (3, 4))]),)),
    ))  # fmt: skip
    probe = PROBE.format(width=width, page=json.dumps(page).replace("</", "<\\/"))
    dom, log = browse(probe, tmp_path)
    seen = dict(re.findall(r'data-(\w+)="([^"]*)"', dom[dom.index("<body") :]))
    assert int(seen["wide"]) <= width
    assert seen["tables"] == "7"
    assert (seen["chosen"], seen["card"].split()[-1]) == ("2", "0.5")
    assert seen["errors"] == ""
    assert seen["svg"].startswith("data:image/svg+xml")
    assert "var(" not in seen["svg"]


def test_template_is_read_once():
    assert pages._template("page.html") is pages._template("page.html")
