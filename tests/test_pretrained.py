"""Ports as transformers loads, saves and pushes them."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import models
import pytest
import torch
import transformers
from folders import make_tokenizer
from ports import default, edit, one_line
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import isospike
from isospike.porting.run import run_of
from isospike.pretrained.quantizer import IsospikeConfig

AUTO = {
    "bert": transformers.AutoModel,
    "vit": transformers.AutoModelForImageClassification,
    "gpt2": transformers.AutoModelForCausalLM,
    "llama": transformers.AutoModelForCausalLM,
}


@pytest.fixture
def saved(tmp_path):
    """A port of a tiny BERT, saved as transformers saves models."""
    default().model.save_pretrained(tmp_path / "port")
    return tmp_path / "port"


# ------------------------------------------------------------------------- load and save


@pytest.mark.parametrize("name", AUTO)
def test_a_port_goes_through_transformers_bit_for_bit(name, tmp_path):
    port, inputs = default(name).model, models.batch(name, seed=9)
    port.save_pretrained(tmp_path / "once")
    loaded = AUTO[name].from_pretrained(tmp_path / "once")
    assert type(loaded) is type(port)
    loaded.save_pretrained(tmp_path / "twice")
    again = AUTO[name].from_pretrained(str(tmp_path / "twice"), execution="stepped")
    assert again.name_or_path == str(tmp_path / "twice")
    assert run_of(again).mode.stepped
    expected = models.run(port, inputs)
    assert torch.equal(models.run(loaded, inputs), expected)
    assert torch.equal(models.run(again, inputs), expected)
    assert torch.equal(models.run(isospike.load(tmp_path / "twice"), inputs), expected)


def test_what_port_save_wrote_is_loaded_by_transformers_too(tmp_path):
    folder = default().save(tmp_path / "port", make_tokenizer(pad_token="[PAD]"))
    loaded = transformers.AutoModel.from_pretrained(folder)
    inputs = models.batch("bert", seed=9)
    assert torch.equal(models.run(loaded, inputs), models.run(default().model, inputs))
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == models.VOCABULARY


def test_the_configuration_of_a_port_is_that_of_its_model(saved):
    config = transformers.AutoConfig.from_pretrained(saved)
    assert isinstance(config, transformers.BertConfig)
    assert (config.model_type, config.hidden_size) == ("bert", 24)
    assert config.architectures == ["BertModel"]


def test_copies_of_a_port_save_themselves(tmp_path):
    port = default().model
    for made in (copy.deepcopy(port), pickle.loads(pickle.dumps(port))):
        assert made.save_pretrained.model is made


def test_saving_keeps_what_else_is_in_the_folder(saved, tmp_path):
    (saved / "notes.txt").write_text("mine")
    (saved / "old.csv").write_text("1")
    manifest = json.loads((saved / "isospike.json").read_text())
    manifest["sha256"]["old.csv"] = "0"
    (saved / "isospike.json").write_text(json.dumps(manifest))
    default("gpt2").model.save_pretrained(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert not (saved / "old.csv").exists()
    assert type(isospike.load(saved)).__name__ == "GPT2LMHeadModel"
    with pytest.raises(isospike.InputError, match="save needs a folder, got the file"):
        default().model.save_pretrained(saved / "notes.txt")


def test_without_isospike_transformers_refuses_a_port(saved, monkeypatch):
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "isospike")
    for load in (
        transformers.AutoConfig,
        transformers.AutoModel,
        transformers.AutoModelForMaskedLM,
    ):
        with pytest.raises(ValueError, match="`isospike` but Transformers does not recognize"):
            load.from_pretrained(saved)
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        transformers.BertModel.from_pretrained(saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["isospike", "transformers", "transformers.models.auto.modeling_auto"]
)
def test_it_does_not_matter_which_is_imported_first(first, saved):
    second = "transformers" if first == "isospike" else "isospike"
    script = (
        f"import {first}, {second}, sys\n"
        "from transformers import AutoModel\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as found\n"
        "print(hasattr(AutoModel.from_pretrained(sys.argv[1]), 'saturation'), 'isospike' in found)"
    )
    command = [sys.executable, "-W", "error", "-c", script, saved]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.slow
def test_a_process_without_isospike_refuses_a_port(saved):
    for loads in ("AutoModel", "AutoConfig", "BertModel", "AutoModelForMaskedLM"):
        script = (
            f"import sys; from transformers import {loads} as c; c.from_pretrained(sys.argv[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, saved], timeout=120, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "not recognize" in done.stderr or "no file named" in done.stderr


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("auto", "given", "line"),
    [
        ("AutoModelForMaskedLM", {}, "AutoModelForMaskedLM needs a port of BertForMaskedLM, got "),
        ("AutoModel", {"dtype": torch.float16}, "AutoModel needs dtype float32 for a port, got fl"),
        (
            "AutoModel",
            {"hidden_size": 8},
            "needs the configuration that was ported, got hidden_siz",
        ),
        ("AutoModel", {"steps": 8}, "AutoModel needs arguments that a port can follow, got steps"),
        ("AutoModel", {"execution": "fast"}, "needs execution among"),
    ],
)
def test_what_a_port_cannot_follow_is_refused(auto, given, line, saved):
    with pytest.raises(isospike.errors.IsospikeError, match=line) as caught:
        getattr(transformers, auto).from_pretrained(saved, **given)
    one_line(caught)


def test_a_port_of_another_kind_of_model_is_refused(tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x)

    x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    folder = isospike.port(Plain(), [{"x": x}], steps=2).save(tmp_path / "port")
    with pytest.raises(
        isospike.UnsupportedError, match="needs a port of a model that transformers"
    ):
        transformers.AutoModel.from_pretrained(folder)
    with pytest.raises(isospike.InputError, match="AutoConfig needs a config.json that isospike"):
        transformers.AutoConfig.for_model("isospike").from_dict({"model_type": "isospike"})


def test_a_configuration_alone_makes_no_port(saved):
    config = transformers.AutoConfig.from_pretrained(saved)
    with pytest.raises(isospike.UnsupportedError, match="needs from_pretrained for a port"):
        transformers.AutoModel.from_config(config)


def test_what_may_be_asked_of_outputs_is_followed(saved):
    model, found = transformers.AutoModel.from_pretrained(
        saved, output_hidden_states=True, output_loading_info=True, device_map="cpu"
    )
    assert not any(found.values())
    with torch.no_grad():
        assert len(model(**models.batch("bert")).hidden_states) == 3


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_automodel_loads_what_the_head_of_a_port_reads(name, tmp_path):
    port, inputs = default(name).model, models.batch(name, seed=9)
    port.save_pretrained(tmp_path / "head")
    base = transformers.AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is type(port.base_model)
    expected = models.run(port.base_model, inputs)
    assert torch.equal(models.run(base, inputs), expected)
    base.save_pretrained(tmp_path / "base")
    again = transformers.AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(models.run(again, inputs, "stepped"), expected)


def test_a_port_is_saved_with_arguments_it_can_follow(tmp_path):
    save = default().model.save_pretrained
    save(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(isospike.UnsupportedError, match="that a port can follow, got variant"):
        save(tmp_path / "none", variant="fp16")


# ----------------------------------------------------------------------------------- hub


def cached(cache, folder, name="user/port", commit="a" * 40, refs=("main", "v1")):
    """A folder as the cache of the hub keeps one."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    for ref in refs:
        (place / "refs" / ref).write_text(commit)
    (place / "blobs").mkdir()
    for path in (p for p in Path(folder).rglob("*") if p.is_file()):
        link = place / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = place / "blobs" / str(path.relative_to(folder)).replace("/", "-")
        blob.write_bytes(path.read_bytes())
        link.symlink_to(blob)
    return cache


def test_a_port_is_loaded_by_its_name_on_the_hub(saved, tmp_path):
    cache = cached(tmp_path / "hub", saved)
    inputs = models.batch("bert", seed=9)
    for revision in (None, "v1", "a" * 40):
        model = transformers.AutoModel.from_pretrained(
            "user/port", revision=revision, cache_dir=cache
        )
        assert torch.equal(models.run(model, inputs), models.run(default().model, inputs))


def test_a_hub_out_of_reach_is_one_line_that_says_what_is_cached(saved, tmp_path, monkeypatch):
    cache = cached(tmp_path / "hub", saved)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert run_of(isospike.load("user/port", revision="v1")).origin.rows
    with pytest.raises(isospike.InputError, match="Cached are the revisions main, v1") as caught:
        isospike.load("user/port", revision="v2")
    one_line(caught)
    with pytest.raises(
        isospike.InputError, match="'user/other' .*Nothing of it is cached"
    ) as caught:
        isospike.load("user/other")
    one_line(caught)


def test_a_half_pushed_port_is_refused(saved, tmp_path):
    (saved / "isospike.safetensors").unlink()
    cache = cached(tmp_path / "hub", saved)
    with pytest.raises(isospike.InputError, match=r"needs the file .*isospike.safetensors, got"):
        transformers.AutoModel.from_pretrained("user/port", cache_dir=cache)


class Hub:
    """Stands for the HfApi: what is uploaded becomes a folder."""

    def __init__(self, folder, has_card=False):
        self.folder, self.has_card, self.said = folder, has_card, {}

    def __call__(self, token=None):
        self.said["token"] = token
        return self

    def create_repo(self, name, private=None, exist_ok=False):
        assert exist_ok
        self.said["private"] = private
        return huggingface_hub.RepoUrl(f"https://huggingface.co/user/{name}")

    def file_exists(self, name, file, revision=None):
        return self.has_card

    def upload_folder(self, repo_id, folder_path, ignore_patterns, **said):
        import shutil

        self.said |= {"repo_id": repo_id, **said}
        shutil.copytree(folder_path, self.folder, ignore=shutil.ignore_patterns(*ignore_patterns))
        return "committed"


@pytest.mark.parametrize("has_card", [False, True])
def test_a_port_is_pushed_in_one_commit_and_loads_from_there(has_card, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "pushed", has_card)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    port = default().model
    answer = port.push_to_hub("port", private=True, token="t", revision="v1", max_shard_size="5GB")
    assert answer == "committed"
    assert hub.said == {
        "token": "t", "private": True, "repo_id": "user/port", "revision": "v1",
        "commit_message": "Upload a port to spikes",
    }  # fmt: skip
    assert (hub.folder / "README.md").exists() is not has_card
    inputs = models.batch("bert", seed=9)
    cache = cached(tmp_path / "hub", hub.folder)
    model = transformers.AutoModel.from_pretrained("user/port", cache_dir=cache)
    assert torch.equal(models.run(model, inputs), models.run(port, inputs))


def test_a_port_is_saved_and_pushed_at_once(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "pushed")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    default().model.save_pretrained(tmp_path / "port", push_to_hub=True, commit_message="mine")
    assert hub.said["repo_id"], hub.said["commit_message"] == ("user/port", "mine")
    assert (hub.folder / "config.json").read_text() == (tmp_path / "port/config.json").read_text()


# ------------------------------------------------------------------------ port on load


def test_a_model_is_ported_as_it_is_loaded(tmp_path):
    original = models.make("bert")
    original.save_pretrained(tmp_path / "float")
    how = IsospikeConfig(code="signed-digit", steps=8)
    model = transformers.AutoModel.from_pretrained(tmp_path / "float", quantization_config=how)
    inputs = models.batch("bert", seed=9)
    neutral = isospike.port(original, None, steps=8).model
    assert torch.equal(models.run(model, inputs), models.run(neutral, inputs))
    assert models.relative(models.run(original, inputs), models.run(model, inputs)) < 0.01
    assert getattr(model, "hf_quantizer", None) is None
    model.save_pretrained(tmp_path / "port")
    again = transformers.AutoModel.from_pretrained(tmp_path / "port")
    assert torch.equal(models.run(again, inputs), models.run(model, inputs))


def test_a_setting_that_port_has_not_is_refused():
    assert IsospikeConfig(steps=6, functions="spiking").to_dict()["steps"] == 6
    with pytest.raises(
        isospike.UnsupportedError, match="needs arguments of isospike.port, got 'bi"
    ):
        IsospikeConfig(bits=8)


# ------------------------------------------------------------------------- bad folders


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda f: edit(f, lambda c: c["isospike"].update(format=99)), "Update isospike"),
        (lambda f: (f / "config.json").unlink(), "Unrecognized model"),
        (lambda f: (f / "isospike.json").unlink(), "without a readable isospike.json"),
        (lambda f: (f / "isospike.safetensors").unlink(), "got a folder without it"),
        (lambda f: (f / "isospike.safetensors").write_bytes(b"half"), "as it was saved"),
    ],
    ids=["of a newer version", "without its config", "half pushed", "no weights", "half of them"],
)
def test_a_folder_that_is_no_whole_port_is_one_line_of_error(harm, line, saved):
    harm(saved)
    with pytest.raises(Exception, match=line) as caught:
        transformers.AutoModel.from_pretrained(saved)
    one_line(caught)
