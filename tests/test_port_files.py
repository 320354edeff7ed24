"""A port on disk: what it keeps, and where it may be written."""

import copy
import errno
import functools
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
from ports import contents, one_line
from safetensors.torch import load_file, save_file

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
    "config.json", "isospike.safetensors", "answers.safetensors", "isospike.json", "report.html",
    "report.json", "sites.csv", "layers.csv", "costs.csv", "texts.csv", "README.md",
}  # fmt: skip


# Round trip.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_loaded_port_gives_equal_outputs_bit_for_bit(name, tmp_path):
    result = ported(name)
    path = result.save(tmp_path / "deep" / "port")
    assert path == tmp_path / "deep" / "port"
    assert set(contents(path)) - {"generation_config.json"} == FILES
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
    assert new["isospike.safetensors"] != old["isospike.safetensors"]
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
    monkeypatch.setattr("safetensors.torch.save_file", writer)
    with pytest.raises(error):
        ported("bert", steps=2).save(path)
    if existing:
        assert contents(path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["port"]
        isospike.load(path)
    else:
        assert list(tmp_path.iterdir()) == []


# Elsewhere. (In transformers: test_pretrained.py.)


def test_how_a_model_generates_goes_with_it(tmp_path):
    result = isospike.port(models.make("gpt2"), models.batches("gpt2"), steps=4)
    result.model.generation_config.max_new_tokens = 3
    result.model.generation_config.repetition_penalty = 1.5
    loaded = isospike.load(result.save(tmp_path / "port"))
    assert loaded.generation_config.to_dict() == result.model.generation_config.to_dict()


# Nothing is lost.


def test_what_a_forward_changes_in_a_module_is_kept(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = models.make("llama", rope_parameters=rope, max_position_embeddings=8)
    result = isospike.port(model, models.batches("llama"), steps=8)
    rows = [models.batch("llama", rows=1, seed=3, padded=False)]
    rows.append({key: x[:, :4] for key, x in rows[0].items()})
    for first in rows:
        models.run(result.model, first)
        for second in rows:
            loaded = isospike.load(result.save(tmp_path / "port"))
            expected = models.run(copy.deepcopy(result.model), second)
            assert torch.equal(models.run(loaded, second), expected)


def test_attributes_of_our_own_modules_are_kept_whatever_they_are(tmp_path):
    result = isospike.port(models.make("bert"), models.batches("bert"), steps=4)
    site = result.model.get_submodule("pooler.dense").site
    site.fan_out = 3.5
    loaded = isospike.load(result.save(tmp_path / "port"))
    assert loaded.get_submodule("pooler.dense").site.fan_out == 3.5


@pytest.mark.parametrize("code", ["bernoulli", "rate"])
def test_a_random_code_is_compared_under_one_seed_and_draws_from_nobody(tmp_path, code):
    generator = torch.Generator().manual_seed(3)
    result = isospike.port(
        models.make("bert"), models.batches("bert"), code=code, steps=4, generator=generator
    )
    before, global_before = generator.get_state(), torch.get_rng_state()
    isospike.load(result.save(tmp_path / "port"))
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), global_before)


def test_arguments_that_share_memory_are_kept_with_the_answers(tmp_path):
    inputs = models.batches("llama")
    given = [{**batch, "labels": batch["input_ids"]} for batch in inputs]
    port = isospike.port(models.make("llama"), given)
    loaded = isospike.load(port.save(tmp_path / "port"))
    assert torch.equal(models.run(loaded, inputs[1]), models.run(port.model, inputs[1]))
