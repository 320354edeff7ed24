"""``isospike port --offload`` and ``--device``: models in shards, and what is wrong with them."""

import json
import shutil

import models
import pytest
import torch
from folders import call, make_folder, quiet_transformers  # noqa: F401

import isospike
from isospike.hf.load import find_model, load
from isospike.porting import offload as offloading


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A tiny Llama in bfloat16, in several files."""
    folder = make_folder(tmp_path_factory.mktemp("shards") / "llama", "llama")
    (folder / "model.safetensors").unlink()
    models.make("llama").bfloat16().save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"w{i} w{i + 1} w{2 * i} w3 w{i % 5} w1 w7 w8" for i in range(20)))
    return path


def port(model, text, out, *arguments):
    return call("port", model, "--text", text, "--out", out, "--json", "--steps", 4,
                "--sentences", 8, *arguments)  # fmt: skip


def test_a_folder_of_shards_is_ported_block_by_block(shards, text, tmp_path, monkeypatch):
    monkeypatch.setattr(offloading, "SMALL", 100)
    kept = tmp_path / "kept"
    done = port(shards, text, tmp_path / "one", "--offload", kept)
    assert (done.exit_code, done.stderr) == (0, "")
    assert list(kept.iterdir()) == []
    other = port(shards, text, tmp_path / "two", "--no-curve")
    assert json.loads(done.stdout)["error"] == json.loads(other.stdout)["error"]
    said = [call("generate", tmp_path / name, "--prompt", "w1 w2", "--tokens", 4).stdout
            for name in ("one", "two")]  # fmt: skip
    assert said[0] == said[1]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_shard_that_is_missing_or_cut_is_one_line(damage, shards, text, tmp_path):
    model = shutil.copytree(shards, tmp_path / "model")
    shard = sorted(model.glob("*.safetensors"))[1]
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    done = port(model, text, tmp_path / "port", "--offload", tmp_path / "kept")
    assert (done.exit_code, done.stdout) == (2, "")
    said = {
        "missing": f"got No such file or directory: {shard}.",
        "cut": f"port needs whole files of weights, got {shard.name} of 'model' damaged",
    }
    assert said[damage] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "text.txt"]


def test_a_disk_too_small_for_the_offload_is_one_line(shards, text, tmp_path, monkeypatch):
    monkeypatch.setattr(offloading, "SMALL", 100)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    done = port(shards, text, tmp_path / "port", "--offload", tmp_path / "kept")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "for the weights of the port, got 0.0 GiB free" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "port").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_there_is_not_is_one_line(shards, text, tmp_path):
    done = port(shards, text, tmp_path / "port", "--device", "cuda")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: port needs a CUDA device that torch sees")
    assert len(done.stderr.splitlines()) == 1
    for wrong in (("--device", "tpu"), ("--device", "cuda", "--offload", tmp_path)):
        done = port(shards, text, tmp_path / "port", *wrong)
        assert done.stderr.startswith("error: port needs --device cpu, or cuda without --offload")
    assert not (tmp_path / "port").exists()


def test_channels_of_an_offloaded_model_are_refused(shards, text, tmp_path):
    done = call("port", shards, "--text", text, "--out", tmp_path / "port", "--max-error", 0.1,
                "--per-channel", "--sentences", 8, "--offload", tmp_path)  # fmt: skip
    assert done.exit_code == 2
    assert done.stderr.startswith("error: port needs --per-channel or --offload, got both")
    with pytest.raises(isospike.UnsupportedError, match="in memory to allocate steps by channel"):
        isospike.port(
            offloading.offload(load(find_model(shards)).model, tmp_path / "weights"), None,
            steps=isospike.Target(0.1, per_channel=True),
        )  # fmt: skip
