"""``isospike embed`` and ``generate`` on saved ports."""

import json

import numpy as np
import pytest
import torch
from folders import (
    WORDS,
    call,
    copy,
    quiet_transformers,  # noqa: F401 - a fixture
    run_out_of_disk,
    said,
    truncate,
)

import isospike
from isospike.cli.use import SHOWN_LINES

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
    out.write_bytes(b"\x93NUMPY, the last good one")

    def save(file, *_, **__):
        file.write(b"half")
        run_out_of_disk(out)

    monkeypatch.setattr(np, "save", save)
    done = call("embed", ported, "--text", lines, "--out", out)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: embed needs space on the disk, got a full one while writing "
    )
    assert out.read_bytes() == b"\x93NUMPY, the last good one"
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
    assert "isospike.safetensors as it was saved, got another" in said(
        call("embed", folder, "--text", lines, "--json")
    )


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


def test_embed_reads_standard_input_and_follows_batch_and_length(ported, tmp_path):
    options = ("embed", ported, "--text", "-", "--json", "--batch-size", 2, "--tokens", 4)
    done = call(*options, "--device", "cpu", input="w1 w2 w3\nw1 w2 w3 w4\n\nw5\n")
    assert done.exit_code == 0, done.stderr
    rows = torch.tensor([json.loads(line) for line in done.stdout.splitlines()])
    torch.testing.assert_close(rows[1], rows[0])
    torch.testing.assert_close(
        rows, isospike.embed(ported, ["w1 w2 w3", "w1 w2 w3", "w5"], tokens=4)
    )


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta:x"])
def test_embed_refuses_a_device_that_is_not_there(device, ported, lines):
    done = call("embed", ported, "--text", lines, "--device", device)
    assert f"embed needs --device to be one that torch finds here, got '{device}'" in said(done)


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
        (
            ["--prompt", "w1", "--tokens", 0],
            "needs --tokens of at least 1 and at most 1000000, got 0.",
        ),
        (
            ["--prompt", "w1", "--tokens", -3],
            "needs --tokens of at least 1 and at most 1000000, got -3.",
        ),
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
