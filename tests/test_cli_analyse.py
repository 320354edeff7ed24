"""``isospike dimension`` on small models."""

import json

import pytest
from folders import (
    call,
    quiet_transformers,  # noqa: F401 - a fixture
    said,
)

# -------------------------------------------------------------------- dimension


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_dimension_measures_every_site_of_a_model(model, text, request):
    done = call("dimension", request.getfixturevalue(model), "--text", text, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    sites = json.loads(done.stdout)["sites"]
    kinds = [site["kind"] for site in sites]
    found = {site["name"]: site["dimension"] for site in sites}
    assert [kinds.count(kind) for kind in ("query", "key", "value")] == [2, 2, 2]
    assert kinds.count("linear") >= 8
    assert max(site["rows"] for site in found.values()) > 300
    for site in found.values():
        assert 1 <= site["stable_rank"]["value"] <= site["participation"]["value"]
        assert site["participation"]["value"] <= site["entropy"]["value"] <= site["width"]
        assert site["pca"]["capped"] == (site["rows"] < 10 * site["pca"]["value"])
        assert site["curve"][-1]["rows"] == site["kept"] <= site["rows"]


def test_dimension_prints_a_table_and_marks_what_the_text_caps(bert, text):
    done = call("dimension", bert, "--text", text, "--sentences", 3)
    assert done.exit_code == 0
    assert "PCA 95 %" in done.stdout
    assert "≥ " in done.stdout
    assert done.stderr.splitlines() == ["load bert", "run the model", "measure"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--share", 0], "dimension needs --share in (0, 1], got 0"),
        (["--sentences", 0], "dimension needs --sentences from 1 to 320, got 0"),
        (["--text", "missing.txt"], "missing.txt"),
    ],
)
def test_mistakes_of_dimension_are_named(bert, arguments, says):
    assert says in said(call("dimension", bert, *arguments))
