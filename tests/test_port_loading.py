"""What is no port, or no whole one, is refused in one line when it is loaded."""

import functools
import json
import os
import shutil
import time

import models
import pytest
import torch
from ports import edit, one_line, sign
from safetensors.torch import load_file, save_file

import isospike


@functools.cache
def ported(name="bert", **arguments):
    """A port shared by tests, which leave it as it was."""
    return isospike.port(models.make(name), models.batches(name), **arguments)


@pytest.fixture
def saved(tmp_path):
    return ported().save(tmp_path / "port")


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


@pytest.mark.parametrize("number", [0, 4, 6, "5", None, True, 5.0])
def test_another_format_is_refused(saved, number):
    edit(saved, lambda config: config["isospike"].update(format=number))
    if number == 6:
        refused(saved, "Update isospike, or port the model again", isospike.UnsupportedError)
    refused(saved, f"the file format 5 of a port, got {number!r}", isospike.UnsupportedError)


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
    start = time.process_time()  # of this process: a busy machine does not count
    refused(saved, "load needs")
    assert time.process_time() - start < 20


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
            lambda w: w["encoder.layer.0.output.dense.weight"].floor_divide_(2),
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
