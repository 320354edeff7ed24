"""What a command cannot use is refused before anything is read, loaded or computed."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import call, quiet_transformers, said  # noqa: F401

import isospike
from isospike.causal.edges import prune
from isospike.causal.splines import spline_sort


@pytest.fixture
def nothing_loads(monkeypatch):
    """Loading a port or a model is a failure of the test."""

    def fail(*given, **named):
        raise AssertionError("it was loaded")

    monkeypatch.setattr("isospike.porting.embed.load_text_port", fail)
    monkeypatch.setattr("isospike.porting.files.load", fail)
    monkeypatch.setattr("isospike.hf.load.load", fail)


@pytest.mark.parametrize(("options", "line"), [
    (("--information", "best"), "--information among precision, shrinkage, .*, got 'best'"),
    (("--correction", "none"), "--correction among regression, mean, .*, got 'none'"),
    (("--prune", "das"), "--prune among cam, row, slopes, got 'das'"),
    (("--rule", "nope"), "--rule among auto, .*, got 'nope'"),
    (("--level", 2), "--level above 0 and below 1, got 2"),
    (("--level", 0, "--prune", "row"), "--level above 0 and below 1, got 0"),
    (("--gamma", 2), "--gamma of at least 0 and below 1, got 2"),
    (("--information", "stein", "--correction", "per-sample"), "a matrix for every row with"),
])  # fmt: skip
def test_order_refuses_an_option_before_it_looks_for_the_table(options, line, tmp_path):
    got = said(call("order", "no such table.csv", "--out", tmp_path / "out", *options))
    assert re.search(f"^error: order needs .*{line}", got)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, -0.1])
def test_a_level_has_one_range_wherever_it_is_given(level):
    x = np.random.default_rng(0).normal(size=(40, 2))
    same = rf"needs level above 0 and below 1, got {level:g}\. Try"
    for refused in (
        lambda: prune(x, np.array([0, 1]), level),
        lambda: spline_sort(x, level=level),
        lambda: isospike.ScoreSchurSort(level=level).fit(x),
        lambda: isospike.ScoreSchurSort(level=level, prune="row").check(),
    ):
        with pytest.raises(isospike.RangeError, match=same):
            refused()


def test_too_few_rows_for_halves_are_refused_before_the_fit():
    x, fit = np.random.default_rng(0).normal(size=(9, 3)), isospike.ScoreSchurSort()
    with pytest.raises(isospike.InputError, match="more than 9 rows for halves of 3 columns, got"):
        isospike.order_causes(x, estimator=fit, resamples=5)
    with pytest.raises(isospike.RangeError, match="order_causes needs resamples >= 0, got -1"):
        isospike.order_causes(x, estimator=fit, resamples=-1)
    assert not hasattr(fit, "order_")
    assert isospike.order_causes(x, estimator=fit).rows == 9


@pytest.mark.parametrize(("options", "line"), [
    (("--ranges", "wide"), "--ranges among dynamic, static, got 'wide'"),
    (("--code", "rate", "--max-error", 0.1, "--per-channel"), "of digits for per_channel, signed-"),
    (("--max-error", 0.1, "--per-channel", "--offload", "away"), "--per-channel or --offload, got"),
    (("--weight-bits", 5), "--weight-bits among 16, 8, 4, got 5"),
    (("--precision", "rough"), "--precision among exact, fast, got 'rough'"),
])  # fmt: skip
def test_port_refuses_an_option_before_it_loads_the_model(
    options, line, bert, tmp_path, nothing_loads
):
    got = said(call("port", bert, "--out", tmp_path / "out", *options))
    assert got.startswith("error: port needs ")
    assert line in got
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "line"), [
    (("--batch-size", 0), "embed needs --batch-size of at least 1, got 0"),
    (("--tokens", 0), "embed needs --tokens of at least 1, got 0"),
    (("--device", "abacus"), "embed needs --device to be one that torch finds here, got 'abacus'"),
])  # fmt: skip
def test_embed_refuses_an_option_before_it_loads_the_port(
    options, line, ported, tmp_path, nothing_loads
):
    (tmp_path / "lines.txt").write_text("w1 w2\n")
    assert line in said(call("embed", ported, "--text", tmp_path / "lines.txt", *options))


@pytest.mark.parametrize(("options", "line"), [
    (("--to", "onnx", "--partial"), "export needs --partial only with --to nir, got it with --to"),
    (("--to", "c", "--partial"), "export needs --partial only with --to nir, got it with --to c"),
    (("--to", "nir", "--strict"), "export needs --strict only with --to onnx, got it with --to"),
    (("--to", "nir", "--strict", "--partial"), "export needs --strict only with --to onnx"),
    (("--to", "onnx", "--strict", "--partial"), "export needs --partial only with --to nir"),
])  # fmt: skip
def test_export_refuses_an_option_that_the_format_does_not_have(
    options, line, ported, tmp_path, nothing_loads
):
    assert line in said(call("export", ported, *options, "--out", tmp_path / "a"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["nir", "onnx"])
def test_export_says_which_package_is_missing_before_it_loads_the_port(
    to, ported, tmp_path, monkeypatch, nothing_loads
):
    monkeypatch.setitem(sys.modules, to, None)
    line = said(call("export", ported, "--to", to, "--out", tmp_path / "a"))
    assert line.startswith(f"error: export needs the package {to}, got none.")


def test_train_refuses_to_resume_before_it_reads_the_data(tmp_path):
    line = said(call("train", "integer-net", tmp_path / "no data", "--resume", "--out", tmp_path))
    assert line.startswith("error: train needs a checkpoint to resume from, got none in")


def test_a_study_goes_to_the_folder_that_help_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("reproduce", "lemma-1", "--preset", "tiny")
    assert done.exit_code == 0, done.output
    place = Path("out", "studies", "lemma-1-tiny.json")
    assert place.is_file()
    assert done.stderr.splitlines()[-1] == f"saved: {place}"
    assert f"[default: {os.path.join('out', 'studies')}]" in " ".join(  # noqa: PTH118
        call("reproduce", "--help").stdout.split()
    )
