import html
import json
import math
import random
import re
from dataclasses import replace

import pytest
from browser import Tags, body, browse, needs_chromium
from rich.console import Console

from isospike.codes import Law
from isospike.energy import Counts
from isospike.porting.records import CurvePoint, Raster, SiteReport
from isospike.porting.report import PortReport
from isospike.report.result import Provenance

KINDS = ("linear", "query", "key", "probability", "value", "linear", "linear", "linear")
NAMES = (
    "attention.self.query", "attention.self.query.out", "attention.self.key.out",
    "attention.self.probability", "attention.self.value.out", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
TOKENS = ("[CLS]", "<s>", "spikes", "carry", "numbers", "&", "cost", "##s", "energy", ".", "[SEP]")
LAYERS = 6
STEPS = 6


def make_sites(rng):
    """Sites of each kind in every layer."""
    sites = []
    for layer in range(LAYERS):
        for kind, name in zip(KINDS, NAMES, strict=True):
            values = {"output.dense": 1536.0, "attention.self.probability": 12 * 24.0}.get(
                name, 384.0
            )
            fan_out = {"intermediate.dense": 1536.0, "attention.self.query": 1152.0}.get(
                name, 384.0
            )
            spikes = values * STEPS * rng.uniform(0.12, 0.34)
            capped = name == "output.dense"
            sites.append(
                SiteReport(
                    name=f"encoder.layer.{layer}.{name}",
                    layer=f"encoder.layer.{layer}",
                    kind=kind,
                    code="signed-digit",
                    steps=STEPS,
                    values=values,
                    neurons=2 * values,
                    spikes=spikes,
                    synaptic_ops=spikes * fan_out,
                    neuron_updates=2 * values * STEPS,
                    macs=values * fan_out,
                    error=rng.uniform(0.004, 0.03) * (1 + layer / 4),
                    pca95=None if kind == "probability" else rng.randint(90, 340),
                    participation=None if kind == "probability" else rng.uniform(8, 80),
                    capped=capped,
                )
            )
    return sites


def make_counts(sites):
    """Counts that go with the sites."""
    return Counts(
        macs=sum(s.macs for s in sites),
        synaptic_ops=sum(s.synaptic_ops for s in sites),
        spikes=sum(s.spikes for s in sites),
        neuron_updates=sum(s.neuron_updates for s in sites),
        neurons=sum(s.neurons for s in sites),
        bits=7,
        float_ops={
            "softmax": 12 * 24 * 3 * 6.0,
            "normalisation": 384 * 4 * 13.0,
            "activation": 1536 * 6.0,
            "elementwise": 384 * 12.0,
        },
        weights=10_600_000,
        activations=sum(s.values for s in sites),
        steps=STEPS,
        tokens_per_input=23.7,
    )


def make_curve():
    """Errors of each code by its steps."""
    return [
        CurvePoint(code, steps, 0.004 + scale * shape(steps), 3e4 * steps**0.6)
        for code, scale, shape, longest in (
            ("signed-digit", 1.3, lambda t: 2.0**-t, 12),
            ("phase", 2.1, lambda t: 2.0**-t, 12),
            ("rate", 1.9, lambda t: 1 / t, 256),
            ("bernoulli", 2.4, lambda t: t**-0.5, 256),
            ("latency", 2.2, lambda t: 1 / t, 256),
        )
        for steps in (2, 3, 4, 6, 8, 10, 12, 16, 32, 64, 128, 256)
        if steps <= longest
    ]


def make_report(**changes):
    """A plausible port of a small encoder: every number made up, none of them round."""
    rng = random.Random(7)
    sites, curve = make_sites(rng), make_curve()
    spikes = [
        (token, step, neuron)
        for token in range(len(TOKENS))
        for step in range(STEPS)
        for neuron in range(64)
        if rng.random() < 0.08 + 0.1 * (neuron % 5 == 0) + 0.02 * step
    ]
    measured = {
        "title": "sentence-transformers/all-MiniLM-L6-v2 on spikes",
        "provenance": Provenance.of({"code": "signed-digit"}, packages=("torch",)),
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "code": "signed-digit",
        "steps": STEPS,
        "steps_by_site": {},
        "execution": "collapsed",
        "precision": "exact",
        "max_error": 0.03,
        "reached": True,
        "error_predicted": 0.0231,
        "error": 0.02444,
        "error_fast": None,
        "cosine": 0.99971,
        "cosine_pooled": 0.99992,
        "agreement": None,
        "law": Law("signed-digit", 0.99, 3.4, 0.0, (3, 5, 8), (0.165, 0.0405, 0.0066)),
        "curve": tuple(curve),
        "sites": tuple(sites),
        "raster": Raster(
            "spikes carry numbers & costs energy.",
            "encoder.layer.0.attention.self.query",
            TOKENS,
            64,
            STEPS,
            tuple(spikes),
        ),
        "counts": make_counts(sites),
        "exceptions": ("pooler.dense",),
        "calibration_tokens": 1531,
        "held_out_tokens": 1498,
    }
    return PortReport(**{**measured, **changes})


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def page(report):
    return report.html()


def printed(report, width=100):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(report.summary())
    return capture.get()


# Contract: the page is whole, alone and says what was measured.
def test_json_round_trip_is_exact(report):
    assert PortReport.from_json(report.to_json()) == report
    bare = make_report(law=None, raster=None, max_error=None, error_predicted=None, agreement=0.9)
    assert PortReport.from_json(bare.to_json()) == bare


def test_page_is_well_formed_and_refers_to_nothing_outside(page):
    tags = Tags()
    tags.feed(body(page))
    tags.close()
    assert tags.open == []
    references = [v for _, name, v in tags.values if name in ("src", "href", "srcset", "action")]
    assert references == ["data:,"]
    assert not re.search(r"""src\s*=\s*["']?(https?:)?//""", page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_page_is_small(page):
    assert len(page) < 400_000


def test_page_says_what_was_measured(page, report):
    text = body(page)
    for expected in (
        "signed-digit", "0.0244", "predicted 0.0231", "asked for 0.03, reached", "0.9997",
        "outputs differ from the original&#39;s by 2.4%, as asked (at most 3.0%)",
        "Spikes carry all matrix products but 1", "published cost tables",
        "0.112 per neuron and step", "quantised, 7 x 8 bits", "Show 48 sites", "pooler.dense",
        "Horowitz (2014)", "Davies et al. (2018)", "computes the same numbers", "1,498 held-out",
        "The table has no figure for another machine", "torch 2",
    ):  # fmt: skip
        assert expected in text
    assert all(site.name in text for site in report.sites)


HOSTILE = "</script><script>alert(1)</script><b>&\"'"


def test_texts_from_outside_are_escaped(report):
    site = replace(report.sites[0], name=HOSTILE, layer=HOSTILE, code=HOSTILE, kind=HOSTILE)
    page = make_report(
        model=HOSTILE,
        code=HOSTILE,
        execution=HOSTILE,
        precision=HOSTILE,
        sites=(site,),
        curve=(CurvePoint(HOSTILE, 4, 0.1, 10.0),),
        law=Law(HOSTILE, 0.0, 1.0, 0.0, (4,), (0.1,)),
        raster=Raster(HOSTILE, HOSTILE, (HOSTILE,), 4, 2, ((0, 1, 2),)),
        counts=replace(report.counts, float_ops={HOSTILE: 3.0}),
        exceptions=(HOSTILE,),
        provenance=replace(report.provenance, versions={HOSTILE: HOSTILE}),
        title=HOSTILE,
    ).html()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("</script>") == 2  # of our own: errors, tools
    tags = Tags()
    tags.feed(body(page))
    assert tags.open == []


def test_a_report_without_the_optional_parts_still_makes_a_page(report):
    site = replace(report.sites[0], pca95=None, participation=None)
    silent = replace(report.counts, spikes=0.0, synaptic_ops=0.0, float_ops={})
    page = body(
        make_report(
            law=None,
            raster=None,
            curve=(),
            sites=(site,),
            max_error=None,
            error_predicted=None,
            exceptions=(),
            counts=silent,
        ).html()
    )
    for expected in (
        "No curve was measured", "No raster was recorded", "Nothing spiked", "operand: none",
        "Spikes carry every matrix product", "Not measured for this port",
    ):  # fmt: skip
        assert expected in page


def test_an_allocation_is_shown_site_by_site(report):
    assert "Steps by site" not in report.html()
    sites = tuple(replace(s, share=1 / len(report.sites)) for s in report.sites)
    page = make_report(sites=sites, law=None).html()
    assert "Steps by site" in page
    assert "The error predicted from the sensitivities is 0.0231, measured 0.0244." in page
    assert "% of the squared error" in page


def test_a_floor_is_named(report):
    page = body(make_report(law=replace(report.law, floor=0.004)).html())
    assert "no number of steps brings the error below its floor, 0.004" in page
    assert "no floor was found" in body(report.html())
    assert "floor of the law" in printed(make_report(law=replace(report.law, floor=0.004)))


def test_missed_target_is_said_first(report):
    page = body(make_report(max_error=0.01, reached=False).html())
    assert "by 2.4%, more than asked (at most 1.0%)" in page
    assert "0.01, not reached" in printed(make_report(max_error=0.01, reached=False))


def test_a_random_code_does_not_claim_the_error_of_the_quantised_network():
    page = body(make_report(code="bernoulli").html())
    assert "computes the same numbers" not in page
    assert "its error is smaller" in page


def test_verdict_names_the_winner_of_each_table(page):
    verdicts = re.findall(r"<li><b>(.*?)</b> (.*?)<div", page)
    assert [name for name, _ in verdicts] == [
        "45 nm, 32-bit float.", "45 nm, integers.", "45 nm, integers, with SRAM.",
        "Loihi, 14 nm.",
    ]  # fmt: skip
    starts = ["Spiking wins", "Spiking wins", "The quantised network wins", "Spiking takes"]
    assert all(text.startswith(s) for (_, text), s in zip(verdicts, starts, strict=True))


def test_layers_add_up_to_the_whole(report):
    found = report.layers()
    assert [layer.name for layer in found] == [f"encoder.layer.{i}" for i in range(LAYERS)]
    assert math.isclose(sum(layer.spikes for layer in found), report.spikes)
    assert math.isclose(sum(layer.synaptic_ops for layer in found), report.synaptic_ops)


def test_summary_lists_the_five_costliest_layers_in_order(report):
    text = printed(report)
    costs = {layer.name: layer.synaptic_ops for layer in report.layers()}
    listed = re.findall(r"encoder\.layer\.\d", text)
    assert listed == sorted(costs, key=lambda name: -costs[name])[:5]
    for expected in ("signed-digit", "0.0244", "0.0231", "0.9997", "33.2 k", "18.4 M"):
        assert expected in text


def test_summary_prints_brackets_as_they_are():
    assert "[bold]model[/bold]" in printed(make_report(title="[bold]model[/bold]"))


# Parity: a real browser draws it.


@needs_chromium
def test_browser_draws_every_plot_without_a_word_on_the_console(page, tmp_path):
    dom, log = browse(page, tmp_path)
    assert "CONSOLE" not in log
    assert 'data-errors=""' in dom
    drawn = dict(re.findall(r'<figure class="plot" id="(plot-\w+)"(.*?)</figure>', dom, re.DOTALL))
    # Curve: five codes, law, calibration, this port. Errors: five kinds. Dimension: three marks.
    names = {name: {row[0] for row in rows_of(text)} for name, text in drawn.items()}
    assert {name: len(found) for name, found in names.items()} == {
        "plot-curve": 8, "plot-layers": LAYERS, "plot-errors": 5, "plot-dimension": 3,
        "plot-raster": 2,
    }  # fmt: skip
    assert all(text.count("<svg") == 2 for text in drawn.values())
    # Tokens are labels, not markup: <s> is neither struck out nor lost.
    assert "&lt;s&gt;" in drawn["plot-raster"]


def rows_of(figure):
    return json.loads(html.unescape(re.search(r'data-rows="(.*?)"', figure)[1]))[1:]


@needs_chromium
def test_browser_test_would_notice_an_error(page, tmp_path):
    broken = page.replace("addTools(figure", "addTool(figure")
    dom, log = browse(broken, tmp_path)
    assert "CONSOLE" in log
    assert 'data-errors=""' not in dom
