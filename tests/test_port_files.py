import copy
import errno
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import models
import pytest
import torch
import transformers
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
    "report.json", "sites.csv", "layers.csv", "costs.csv", "texts.csv",
}  # fmt: skip


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def sign(folder):
    """Write the digests of the folder's files, as somebody who means harm can."""
    digests = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in contents(folder).items()
        if name != "isospike.json"
    }
    (folder / "isospike.json").write_text(json.dumps({"sha256": digests}))


def edit(folder, change):
    """Apply ``change`` to the folder's config, and make the digests right."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


def one_line(caught):
    assert "\n" not in str(caught.value)


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
    monkeypatch.setattr("safetensors.torch.save_model", writer)
    with pytest.raises(error):
        ported("bert", steps=2).save(path)
    if existing:
        assert contents(path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["port"]
        isospike.load(path)
    else:
        assert list(tmp_path.iterdir()) == []


# What cannot be loaded.


def refused(folder, message, kind=isospike.IsospikeError):
    with pytest.raises(kind, match=message) as caught:
        isospike.load(folder)
    one_line(caught)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_is_one_line_of_error(tmp_path):
    refused(tmp_path / "nowhere", r"nowhere without a readable isospike\.json")


@pytest.mark.parametrize("name", ["config.json", "isospike.safetensors", "answers.safetensors"])
def test_a_folder_with_a_file_missing_is_refused(saved, name):
    (saved / name).unlink()
    refused(saved, f"needs the file .*{name}, got a folder without it")
    sign(saved)
    refused(saved, f"needs the file .*{name}, got a folder without it")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "port").write_text("a file")
    refused(tmp_path / "port", "without a readable isospike")


@pytest.mark.parametrize(
    "name", ["config.json", "isospike.safetensors", "answers.safetensors", "isospike.json"]
)
@pytest.mark.parametrize("at", [0, 10, 30, -1])
def test_a_changed_byte_is_refused(saved, name, at):
    data = bytearray((saved / name).read_bytes())
    data[at] ^= 1
    (saved / name).write_bytes(data)
    refused(saved, "as it was saved|without a readable isospike|needs the file")


def test_files_of_different_ports_are_refused(saved, tmp_path):
    other = isospike.port(models.make("bert"), models.batches("bert"), steps=4).save(tmp_path / "o")
    for name in ("isospike.safetensors", "config.json"):
        whole = (saved / name).read_bytes()
        shutil.copy(other / name, saved / name)
        refused(saved, f"needs .*{name} as it was saved, got another content")
        sign(saved)
        refused(saved, "answers as it did when it was saved, got another answer from")
        (saved / name).write_bytes(whole)
    sign(saved)
    isospike.load(saved)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[1, 2]", "null", '{"a": 1}', "[" * 10**5])
def test_a_config_that_is_not_ours_is_one_line_of_error(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    sign(saved)
    refused(saved, "load needs")


def test_a_plain_model_is_refused(tmp_path):
    models.make("bert").save_pretrained(tmp_path / "hf")
    refused(tmp_path / "hf", "without a readable isospike.json")
    sign(tmp_path / "hf")
    refused(tmp_path / "hf", "holds something else. Port a model first")


@pytest.mark.parametrize("number", [0, 2, 4, "3", None, True, 3.0])
def test_another_format_is_refused(saved, number):
    edit(saved, lambda config: config["isospike"].update(format=number))
    refused(saved, f"needs format 3, got {number!r}", isospike.UnsupportedError)


BERT = "transformers.models.bert.modeling_bert:"


@pytest.mark.parametrize(
    "name",
    ["os", "os:system", "transformers:BertModel", "transformers:AutoModel", "isospike:nothing",
     BERT + "BertLayer", BERT + "PreTrainedModel", BERT + "BertConfig", BERT + "__doc__", BERT,
     "transformers.models.gpt2.modeling_gpt2:GPT2Model", "transformers.models.bert:BertModel",
     "transformers.models.roberta.modeling_roberta:RobertaModel", "transformers.pipelines:pipeline",
     "transformers.models...modeling_x:X", "transformers.models.no.modeling_no:NoModel", "a:b:c",
     "torch.nn:Linear", ""],
)  # fmt: skip
def test_a_class_that_is_not_of_the_architecture_is_refused(saved, name):
    edit(saved, lambda config: config["isospike"].update(model=name))
    refused(saved, f"needs a model class .* got {name!r}", isospike.UnsupportedError)


PARTS = ["execution", "precision", "sites", "products", "attention", "model", "nonlinear"]


@pytest.mark.parametrize("key", PARTS)
def test_a_config_with_a_part_missing_or_of_another_kind_is_one_line_of_error(saved, key):
    for value in (None, 7, [[]], {"a": {}}, "phase", float("nan"), True):
        edit(saved, lambda config: config["isospike"].update({key: value}))  # noqa: B023
        refused(saved, "load needs")
    edit(saved, lambda config: config["isospike"].pop(key))
    refused(saved, f"load needs .*'{key}', got none")


def site_of(config):
    return config["isospike"]["sites"]["pooler.dense"]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"].update(num_attention_heads=5),
        lambda config: config["model"].update(num_hidden_layers=1),
        lambda config: config["model"].update(num_hidden_layers="phase"),
        lambda config: config["model"].update(num_hidden_layers=10**5),
        lambda config: config["model"].update(use_cache=-0.5),
        lambda config: config["model"].update(vocab_size=-1),
        lambda config: config["model"].update(vocab_size=10**9),
        lambda config: config["model"].update(intermediate_size=10**9),
        lambda config: config["model"].update(max_position_embeddings=-1),
        lambda config: config["model"].update(type_vocab_size=10**9),
        lambda config: config["model"].update(pad_token_id=100),
        lambda config: config["model"].update(dtype=[1, 2, 3]),
        lambda config: config["model"].update(hidden_act="nothing"),
        lambda config: config["model"].update(initializer_range=-1),
        lambda config: config["model"].update(layer_norm_eps=2.0),
        lambda config: config["model"].update(model_type="rag"),
        lambda config: config["model"].pop("model_type"),
        lambda config: config["isospike"].update(sites=[]),
        lambda config: config["isospike"].update(sites={}, products={}, attention=[]),
        lambda config: config["isospike"].update(products={"nowhere": "nothing"}),
        lambda config: site_of(config).update(code="morse"),
        lambda config: site_of(config).update(code="rate"),
        lambda config: site_of(config).update(steps=-1),
        lambda config: site_of(config).update(steps=1),
        lambda config: site_of(config).update(steps=10**6),
        lambda config: site_of(config).update(shape=[-1]),
        lambda config: site_of(config).update(shape=[2**40]),
        lambda config: site_of(config).update(shape=[1e3]),
        lambda config: site_of(config).update(shape=[True]),
        lambda config: config["isospike"]["products"].update({"pooler.dense": "nowhere"}),
        lambda config: config["isospike"]["products"].update({"embeddings": "pooler.dense"}),
        lambda config: config["isospike"]["products"].popitem(),
        lambda config: config["isospike"].update(digits={"": {"forward": [1.0, 3]}}),
        lambda config: config["isospike"].update(digits={"pooler": {"digits": [1.0, 3]}}),
        lambda config: config["isospike"].update(digits={"pooler": {"digits": [0, 3]}}),
        lambda config: config["isospike"].update(attributes={"": {"forward": 1}}),
        lambda config: config["isospike"].update(attributes={"": {"training": True}}),
        lambda config: config["isospike"].update(attributes={"": {"_x": 1}}),
        lambda config: config["isospike"].update(attributes={"pooler": {"config": "x"}}),
        lambda config: config["isospike"].update(colour="red"),
        lambda config: config["isospike"].update(nonlinear="evil"),
        lambda config: config["isospike"].update(nonlinear="spiking"),
    ],
)
def test_a_config_at_odds_with_itself_is_one_line_of_error(saved, change):
    edit(saved, change)
    start = time.monotonic()
    refused(saved, "load needs")
    assert time.monotonic() - start < 20


def test_what_would_fetch_or_run_code_is_dropped(saved):
    def change(config):
        config["model"] |= {
            "attn_implementation": "org/kernel", "_attn_implementation": "org/kernel",
            "auto_map": {"AutoModel": "evil--x.Y"}, "quantization_config": {"quant_method": "x"},
            "use_kernels": True, "experts_implementation": "org/kernel",
        }  # fmt: skip

    edit(saved, change)
    model = isospike.load(saved)
    assert model.config._attn_implementation != "org/kernel"
    assert not hasattr(model.config, "auto_map")


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_one_line_of_error(saved, kept):
    weights = saved / "isospike.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    refused(saved, "as it was saved, got another content")
    sign(saved)
    refused(saved, "load needs the files that isospike wrote")


def test_a_pickle_in_place_of_the_weights_is_not_opened(saved):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(saved / "sprung"),))

    for name in ("isospike.safetensors", "answers.safetensors"):
        whole = (saved / name).read_bytes()
        torch.save({"weights": Trap()}, saved / name)
        sign(saved)
        refused(saved, "load needs the files that isospike wrote")
        (saved / name).write_bytes(whole)
    assert not (saved / "sprung").exists()


def reweight(folder, change):
    weights = load_file(folder / "isospike.safetensors")
    change(weights)
    save_file(weights, folder / "isospike.safetensors")
    sign(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("pooler.dense.bias"), "got none for pooler.dense.bias"),
        (lambda w: w.update(more=torch.zeros(2)), "got one of shape .* for more"),
        (
            lambda w: w.update({"pooler.dense.bias": torch.zeros(3)}),
            "shape .*for pooler.dense.bias",
        ),
        (lambda w: w.update({"pooler.dense.bias": torch.zeros(24).half()}), "type torch.float16"),
        (lambda w: w["pooler.dense.bias"].fill_(torch.nan), "got NaN or infinity in pooler"),
        (lambda w: w["pooler.dense.bias"].add_(1), "answers as it did"),
        (
            lambda w: w["encoder.layer.0.output.dense.weight"].mul_(1.1),
            "from encoder.layer.0.output",
        ),
        (lambda w: w.update({"pooler.dense.site.scale": torch.zeros(7)}), "load needs"),
        (lambda w: w["pooler.dense.site.scale"].fill_(0), "load needs"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_of_error(saved, change, message):
    reweight(saved, change)
    refused(saved, message)


def test_answers_that_do_not_fit_are_one_line_of_error(saved):
    from safetensors import safe_open

    with safe_open(saved / "answers.safetensors", "pt") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["isospike"])
    for change, text in (
        ({"row.0.input_ids": torch.full((1, 9), 10**6)}, about),
        ({"row.0.input_ids": torch.full((1, 9), -1)}, about),
        ({"values.0": tensors["values.0"][:-1].clone()}, about),
        ({"values.0": tensors["values.0"] + 1}, about),
        ({}, {**about, "rows": [{}]}),
        ({}, {**about, "rows": 3}),
        ({}, []),
    ):
        metadata = {"isospike": json.dumps(text)}
        save_file({**tensors, **change}, saved / "answers.safetensors", metadata=metadata)
        sign(saved)
        refused(saved, "load needs")


# Elsewhere.


def test_nothing_else_takes_a_port_for_a_model_of_numbers(tmp_path):
    path = ported("llama").save(tmp_path / "port")
    kinds = transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoConfig
    opened = [kind.from_pretrained for kind in kinds]
    opened += [lambda place: transformers.pipeline("text-generation", model=str(place))]
    for open_it in opened:
        with pytest.raises(ValueError, match="has model type `isospike` but Transformers does not"):
            open_it(path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.LlamaForCausalLM.from_pretrained(path)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match="has model type `isospike`"):
        sentence_transformers.SentenceTransformer(str(path))


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
