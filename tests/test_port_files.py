import copy
import errno
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import isospike
from isospike.porting.run import run_of

ARCHITECTURES = ("bert", "vit", "gpt2", "llama")


@functools.cache
def ported(name="bert", **arguments):
    """A port shared by tests, which leave it as it was."""
    return isospike.port(models.make(name), models.batches(name), **arguments)


@pytest.fixture
def saved(tmp_path):
    return ported().save(tmp_path / "port")


FILES = {
    "config.json", "model.safetensors", "isospike.json", "report.html", "report.json",
    "sites.csv", "layers.csv", "costs.csv",
}  # fmt: skip


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def edit(folder, change):
    """Apply ``change`` to the folder's config."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def one_line(caught):
    assert "\n" not in str(caught.value)


# Round trip.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_loaded_port_gives_equal_outputs_bit_for_bit(name, tmp_path):
    result = ported(name)
    path = result.save(tmp_path / "deep" / "port")
    assert path == tmp_path / "deep" / "port"
    assert set(contents(path)) == FILES
    inputs = models.batch(name, seed=9)
    for execution in ("collapsed", "stepped"):
        model = isospike.load(path, execution=execution)
        assert type(model) is type(result.model)
        assert not model.training
        assert run_of(model).mode.execution == execution
        got = models.run(model, inputs)
        assert torch.equal(got, models.run(result.model, inputs, execution))
    assert isospike.audit(model, inputs).spiking  # the stepped one


@pytest.mark.parametrize("name", ["llama"])
def test_a_loaded_port_loads_in_a_process_that_never_ported(name, tmp_path):
    path = ported(name).save(tmp_path / "port")
    inputs = models.batch(name, rows=2, seed=9)
    save_file(inputs, tmp_path / "inputs")
    script = (
        "import sys, torch, isospike\n"
        "from safetensors.torch import load_file, save_file\n"
        "with torch.no_grad():\n"
        "    y = isospike.load(sys.argv[1])(**load_file(sys.argv[2]))[0]\n"
        "save_file({'y': y}, sys.argv[3])\n"
    )
    paths = [path, tmp_path / "inputs", tmp_path / "y"]
    command = [sys.executable, "-W", "error", "-c", script, *paths]
    subprocess.run(command, check=True, timeout=120)
    got = load_file(tmp_path / "y")["y"]
    assert torch.equal(got, models.run(ported(name).model, inputs))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_tied_to_the_embedding_survives(name, tied, tmp_path):
    model = models.make(name, tie_word_embeddings=tied)
    result = isospike.port(model, models.batches(name), steps=4)
    loaded = isospike.load(result.save(tmp_path / "port"))
    inputs = models.batch(name, seed=9)
    assert torch.equal(models.run(loaded, inputs), models.run(result.model, inputs))
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_with_rounded_buffers_survives(dtype, tmp_path):
    result = isospike.port(models.make("llama").to(dtype), models.batches("llama"), steps=4)
    loaded = isospike.load(result.save(tmp_path / "port"))
    inputs = models.batch("llama", seed=9)
    assert torch.equal(models.run(loaded, inputs), models.run(result.model, inputs))


def test_sites_of_different_codes_and_steps_survive(tmp_path):
    steps = {"*": 6, "*:key": 3, "*.output.dense": 9}
    result = isospike.port(models.make("bert"), models.batches("bert"), code="phase", steps=steps)
    path = result.save(tmp_path / "port")
    inputs = models.batch("bert", seed=9)
    for execution in ("collapsed", "stepped"):
        got = models.run(isospike.load(path, execution=execution), inputs)
        assert torch.equal(got, models.run(result.model, inputs, execution))


def test_generation_works_on_a_loaded_port(tmp_path):
    loaded = isospike.load(ported("gpt2").save(tmp_path / "port"))
    inputs = models.batch("gpt2", rows=2, seed=9, padded=False)
    expected = ported("gpt2").model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=4, do_sample=False), expected)


def test_the_report_lies_beside_the_model(saved):
    text = (saved / "report.json").read_text()
    assert isospike.porting.PortReport.from_json(text) == ported().report


def test_execution_and_precision_are_kept_or_chosen_at_loading(tmp_path):
    path = ported("bert", precision="fast").save(tmp_path / "port")
    assert run_of(isospike.load(path)).mode.precision == "fast"
    exact = isospike.load(path, precision="exact")
    inputs = models.batch("bert", seed=9)
    assert torch.equal(models.run(exact, inputs), models.run(ported().model, inputs))
    with pytest.raises(isospike.RangeError, match="load needs collapsed .* for precision 'fast'"):
        isospike.load(path, execution="stepped")
    with pytest.raises(isospike.InputError, match="load needs execution among .* got 'sideways'"):
        isospike.load(path, execution="sideways")


def test_saving_keeps_the_model_running_as_it_was(tmp_path):
    inputs = models.batch("llama", seed=9)
    before = models.run(ported("llama").model, inputs)
    ported("llama").save(tmp_path / "port")
    assert torch.equal(models.run(ported("llama").model, inputs), before)


def test_loading_draws_nothing_from_the_global_generator(saved):
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        isospike.load(saved)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_port_can_be_copied(saved):
    model = isospike.load(saved, execution="stepped")
    inputs = models.batch("bert", seed=9)
    expected = models.run(model, inputs)
    assert torch.equal(models.run(copy.deepcopy(model), inputs), expected)


class Tokenizer:
    """What save needs of a tokenizer."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("naïve", encoding="utf-8")


def test_a_tokenizer_is_saved_beside_the_model(tmp_path):
    path = ported().save(tmp_path / "port", Tokenizer())
    assert set(contents(path)) == {*FILES, "tokenizer.json"}
    assert (path / "tokenizer.json").read_text(encoding="utf-8") == "naïve"
    ported().save(path)  # a folder with further files is still ours
    assert set(contents(path)) == FILES


# Where a port may be written.


def test_a_port_replaces_one_saved_before(tmp_path):
    path = isospike.port(models.make("bert"), models.batches("bert"), steps=2).save(tmp_path / "p")
    old = contents(path)
    ported().save(path)
    new = contents(path)
    assert new["model.safetensors"] != old["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    inputs = models.batch("bert", seed=9)
    got = models.run(isospike.load(path), inputs)
    assert torch.equal(got, models.run(ported().model, inputs))


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "port").mkdir()
    assert "config.json" in contents(ported().save(tmp_path / "port"))


@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path, beside):
    path = tmp_path / "port"
    if beside:
        ported().save(path)
    path.mkdir(exist_ok=True)
    (path / "thesis.tex").write_text("years of work")
    before = contents(path)
    with pytest.raises(isospike.IsospikeError, match=r"got .*port holding 'thesis\.tex'") as caught:
        ported().save(path)
    one_line(caught)
    assert contents(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["port"]


def test_a_plain_model_folder_is_refused_and_left_alone(tmp_path):
    models.make("bert").save_pretrained(tmp_path / "hf")
    before = contents(tmp_path / "hf")
    with pytest.raises(isospike.IsospikeError, match="save needs a new folder or one it wrote"):
        ported().save(tmp_path / "hf")
    assert contents(tmp_path / "hf") == before


def test_a_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "port").write_text("a file")
    with pytest.raises(isospike.IsospikeError, match="save needs a folder, got the file"):
        ported().save(tmp_path / "port")
    assert (tmp_path / "port").read_text() == "a file"


def full_disk(model, path):
    Path(path).write_bytes(b"half of")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(model, path):
    Path(path).write_bytes(b"half of")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("writer", "error"), [(full_disk, isospike.InputError), (interrupted, KeyboardInterrupt)]
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_save_cut_short_leaves_what_was_there_and_nothing_else(
    tmp_path, monkeypatch, writer, error, existing
):
    path = tmp_path / "port"
    if existing:
        ported().save(path)
    before = contents(path) if existing else None
    monkeypatch.setattr("safetensors.torch.save_model", writer)
    with pytest.raises(error):
        ported("bert", steps=2).save(path)
    if existing:
        assert contents(path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["port"]
        isospike.load(path)
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_transformers_config_cannot_be_saved(tmp_path):
    model = models.seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    inputs = {"input": torch.randn(16, 8, generator=torch.Generator().manual_seed(0))}
    result = isospike.port(model, [inputs])
    with pytest.raises(
        isospike.UnsupportedError, match="save needs a transformers model, .* got Sequential"
    ) as caught:
        result.save(tmp_path / "port")
    one_line(caught)
    assert list(tmp_path.iterdir()) == []


# What cannot be loaded.


def test_a_missing_folder_is_one_line_of_error(tmp_path):
    with pytest.raises(isospike.IsospikeError, match=r"nowhere without config\.json") as caught:
        isospike.load(tmp_path / "nowhere")
    one_line(caught)


def test_a_folder_without_config_is_refused(saved):
    (saved / "config.json").unlink()
    with pytest.raises(isospike.IsospikeError, match=r"got .*port without config\.json"):
        isospike.load(saved)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "port").write_text("a file")
    with pytest.raises(
        isospike.IsospikeError, match=r"load needs a readable config\.json"
    ) as caught:
        isospike.load(tmp_path / "port")
    one_line(caught)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[1, 2]", "null", '{"a": 1}'])
def test_a_config_that_is_not_ours_is_one_line_of_error(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(isospike.IsospikeError, match="load needs a") as caught:
        isospike.load(saved)
    one_line(caught)


def test_a_plain_model_is_refused(tmp_path):
    models.make("bert").save_pretrained(tmp_path / "hf")
    with pytest.raises(isospike.IsospikeError, match="got a plain model in .* Port it first"):
        isospike.load(tmp_path / "hf")


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused(saved, number):
    edit(saved, lambda config: config["isospike"].update(format=number))
    with pytest.raises(isospike.UnsupportedError, match=f"needs format 1, got {number!r}"):
        isospike.load(saved)


@pytest.mark.parametrize(
    "name",
    ["os", "AutoModel", "PreTrainedModel", "BertConfig", "BertTokenizer", "Nonsense", "__doc__", 7],
)
def test_a_class_that_is_no_model_is_refused(saved, name):
    edit(saved, lambda config: config["isospike"].update({"class": name}))
    with pytest.raises(
        isospike.UnsupportedError, match=f"needs a model class .* got {name!r}"
    ) as c:
        isospike.load(saved)
    one_line(c)


@pytest.mark.parametrize("key", ["execution", "precision", "sites", "products", "attention"])
def test_a_config_with_a_part_missing_is_one_line_of_error(saved, key):
    edit(saved, lambda config: config["isospike"].pop(key))
    with pytest.raises(
        isospike.IsospikeError, match=f"config.json that isospike wrote.*{key}"
    ) as c:
        isospike.load(saved)
    one_line(c)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(num_attention_heads=5),
        lambda config: config.update(num_hidden_layers=1),
        lambda config: config["isospike"].update(sites=[]),
        lambda config: config["isospike"].update(isospike=None, products={"nowhere": "nothing"}),
        lambda config: config["isospike"]["sites"]["pooler.dense"].update(code="morse"),
        lambda config: config["isospike"]["sites"]["pooler.dense"].update(steps=-1),
        lambda config: config["isospike"]["products"].update({"pooler.dense": "nowhere"}),
        lambda config: config["isospike"]["products"].update({"embeddings": "pooler.dense"}),
    ],
)
def test_a_config_at_odds_with_itself_is_one_line_of_error(saved, change):
    edit(saved, change)
    with pytest.raises(isospike.IsospikeError, match="Port the model again") as caught:
        isospike.load(saved)
    one_line(caught)


def test_missing_weights_are_one_line_of_error(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(
        isospike.IsospikeError, match=r"intact weights, got .*safetensors"
    ) as caught:
        isospike.load(saved)
    one_line(caught)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_one_line_of_error(saved, kept):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(isospike.IsospikeError, match="load needs intact weights") as caught:
        isospike.load(saved)
    one_line(caught)


def test_a_pickle_in_place_of_the_weights_is_not_opened(saved):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(saved / "sprung"),))

    torch.save({"weights": Trap()}, saved / "model.safetensors")
    with pytest.raises(isospike.IsospikeError, match="load needs intact weights"):
        isospike.load(saved)
    assert not (saved / "sprung").exists()


def test_weights_of_another_model_are_one_line_of_error(saved):
    weights = load_file(saved / "model.safetensors")
    weights.pop("pooler.dense.bias")
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(isospike.IsospikeError, match="load needs intact weights") as caught:
        isospike.load(saved)
    one_line(caught)


def test_the_saved_config_is_one_that_transformers_reads(saved):
    config = transformers.BertConfig.from_pretrained(saved)
    assert config.hidden_size == 24
