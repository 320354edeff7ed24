"""Saving and loading ports of what AutoModel does not build: halves, subclasses, plain PyTorch."""

import copy
import functools
import json
import subprocess
import sys

import models
import pytest
import torch
import transformers
from ports import edit, one_line
from test_port_loading import refused
from torch import nn

import isospike
from isospike.porting.fingerprint import take_fingerprint
from isospike.porting.ported import Ported
from isospike.porting.skeleton import check_builds

TEXT = models.batches("bert")
BERT = models.make("bert", num_hidden_layers=1).config


class Mine(transformers.BertModel):
    """A model of the user's own."""

    def __init__(self, config, halved=False):
        super().__init__(config)
        self.halved = halved

    def forward(self, **batch):
        hidden = super().forward(**batch).last_hidden_state
        return hidden / 2 if self.halved else hidden


class Layer(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Plain(nn.Module):
    """A model of plain PyTorch, with a number that decides what it computes."""

    def __init__(self, width=8, inner=12, layers=2, factor=1.0):
        super().__init__()
        self.factor = factor
        self.layers = nn.ModuleList(Layer(width, inner) for _ in range(layers))
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.factor * x)


NUMBERS = [
    {"x": torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(seed))} for seed in (0, 1)
]


def bart():
    sizes = {
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = transformers.BartConfig(
        vocab_size=models.VOCABULARY, d_model=16, max_position_embeddings=32, **sizes
    )
    return transformers.BartModel(config)


def vision():
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    images = {"image_size": 8, "patch_size": 4}
    config = transformers.ViTConfig(**size, **images, num_hidden_layers=1)
    return transformers.ViTModel(config, add_pooling_layer=False, use_mask_token=True)


IMAGES = [
    {"pixel_values": torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}
    for seed in (0, 1)
]
BUILT = {
    "half an encoder-decoder": (lambda: bart().encoder, TEXT),
    "no pooling layer": (lambda: transformers.BertModel(BERT, add_pooling_layer=False), TEXT),
    "two switches": (vision, IMAGES),
    "a subclass": (lambda: Mine(BERT), TEXT),
    "a subclass with a switch": (lambda: Mine(BERT, halved=True), TEXT),
}


def make(build):
    return models.seeded(lambda: models.scatter(build())).eval()


@functools.cache
def ported(name):
    """A port shared by tests, which leave it as it was."""
    build, batches = BUILT[name]
    return isospike.port(make(build), batches, steps=4)


def same(a, b, batch):
    """Whether two ports give the same outputs, and their products the same values, bit for bit."""
    (x, _), (y, _) = (take_fingerprint(Ported.of(port), [batch]) for port in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("name", BUILT)
def test_what_a_configuration_builds_is_loaded_bit_for_bit(name, tmp_path):
    result, batches = ported(name), BUILT[name][1]
    loaded = isospike.load(result.save(tmp_path / "port"))
    assert type(loaded) is type(result.model)
    assert same(loaded, result.model, batches[1])
    assert torch.equal(models.run(loaded, batches[1]), models.run(result.model, batches[1]))


def test_a_subclass_whose_module_is_not_imported_is_refused_and_never_imported(
    tmp_path, monkeypatch
):
    (tmp_path / "theirs.py").write_text(
        "import transformers\nprint('imported')\nclass Theirs(transformers.BertModel):\n    pass\n"
    )
    folder = ported("a subclass").save(tmp_path / "port")
    edit(folder, lambda config: config["isospike"].update(model="theirs:Theirs"))
    script = (
        "import sys, isospike\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "if sys.argv[3:]:\n"
        "    import theirs\n"
        "try:\n"
        "    print(type(isospike.load(sys.argv[1])).__name__)\n"
        "except isospike.UnsupportedError as error:\n"
        "    print(error)\n"
    )

    def run(*more):
        command = [sys.executable, "-c", script, str(folder), str(tmp_path), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    (line,) = run()
    assert "needs a model class for the architecture 'bert', got 'theirs:Theirs'" in line
    assert "import it yourself, or give a new model: isospike.load(folder, model)" in line
    assert run("import") == ["imported", "Theirs"]


# Plain PyTorch: whoever loads gives the model.


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    result = isospike.port(make(lambda: Plain(factor=2.0)), NUMBERS, steps=4)
    return result, result.save(tmp_path_factory.mktemp("plain") / "port")


def test_plain_pytorch_is_filled_into_a_new_model_bit_for_bit(plain):
    result, folder = plain
    given = Plain().double()
    before = copy.deepcopy(given.state_dict())
    for execution in ("collapsed", "stepped"):
        loaded = isospike.load(folder, given, execution=execution)
        assert type(loaded) is Plain
        assert not loaded.training
        assert same(loaded, result.model, NUMBERS[1])
        got, wanted = (models.run(m, NUMBERS[1], execution) for m in (loaded, result.model))
        assert torch.equal(got, wanted)
    assert type(given.head) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_given_model_gets_the_numbers_of_the_one_that_was_ported(plain):
    _, folder = plain
    assert isospike.load(folder, Plain(factor=3.0)).factor == 2.0


class Deeper(Plain):
    pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Deeper(), "needs a new Plain to fill, got a Deeper"),
        (lambda: Plain(layers=3), "needs a model with nothing at layers.2, as .*, got Layer"),
        (lambda: Plain(layers=1), "needs a model with Layer at layers.1, as it was .* got nothing"),
        (lambda: Plain(width=4), r"shape \(8,\) .* for layers.0.norm.weight, .* shape \(4,\)"),
        (lambda: Plain(inner=6), r"shape \(12, 8\) .* for layers.0.up.weight, .* shape \(6, 8\)"),
        (lambda: Plain().to("meta"), "needs a Plain in memory to fill, got one without values"),
    ],
)
def test_a_model_of_another_kind_or_size_is_refused_by_its_first_difference(plain, given, message):
    with pytest.raises(isospike.InputError, match=message) as caught:
        isospike.load(plain[1], given())
    one_line(caught)


def test_a_port_is_no_model_to_fill(plain):
    with pytest.raises(isospike.InputError, match="needs a new Plain to fill, got a port"):
        isospike.load(plain[1], isospike.load(plain[1], Plain()))


class Cubed(nn.Module):
    def forward(self, x):
        return x**3


class Squared(nn.Module):
    __qualname__ = "Cubed"

    def forward(self, x):
        return x**2


def test_a_model_that_computes_something_else_is_refused(tmp_path):
    batches = [{"input": batch["x"]} for batch in NUMBERS]
    one, other = (nn.Sequential(nn.Linear(8, 8), p(), nn.Linear(8, 8)) for p in (Cubed, Squared))
    folder = isospike.port(make(lambda: one), batches).save(tmp_path / "port")
    with pytest.raises(isospike.InputError, match="it was saved, got another answer from 2 on"):
        isospike.load(folder, other)


def test_without_a_model_plain_pytorch_is_refused_by_what_to_do(plain):
    refused(
        plain[1],
        r"needs a new model to fill, for no configuration builds a Plain, got none.*\(folder, m",
        isospike.UnsupportedError,
    )


def test_a_changed_model_of_transformers_is_filled_too(tmp_path):
    def build():
        model = make(lambda: transformers.BertModel(BERT))
        model.pooler.dense = nn.Linear(24, 6)
        return model

    result = isospike.port(build(), TEXT, steps=4)
    folder = result.save(tmp_path / "port")
    refused(folder, "no configuration builds a BertModel", isospike.UnsupportedError)
    assert same(isospike.load(folder, build()), result.model, TEXT[1])
    with pytest.raises(isospike.InputError, match="with one of shape .*for pooler.dense.weight"):
        isospike.load(folder, transformers.BertModel(BERT))


# What cannot be saved.


@pytest.mark.parametrize("name", BUILT)
def test_what_its_configuration_builds_is_known_before_it_is_ported(name):
    assert check_builds(BUILT[name][0]()) is None  # it raises for others, below


def test_what_its_configuration_does_not_build_is_known_before_it_is_ported():
    model = models.make("bert")
    model.pooler.dense = nn.Linear(24, 6)
    for other in (model, Plain()):
        with pytest.raises(isospike.UnsupportedError, match="its configuration builds again, got"):
            check_builds(other)


class Lora(nn.Module):
    """Stands for a layer of PEFT."""

    __module__ = "peft.tuners.lora.layer"

    def __init__(self):
        super().__init__()
        self.base_layer, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        return self.base_layer(x) + self.b(self.a(x))


def test_adapters_that_are_not_merged_are_loaded_into_a_model_with_adapters(tmp_path):
    batches = [{"input": batch["x"]} for batch in NUMBERS]
    model = make(lambda: nn.Sequential(Lora()))
    result = isospike.port(model, batches)
    folder = result.save(tmp_path / "port")
    with pytest.raises(isospike.UnsupportedError, match="no configuration builds a Sequential"):
        isospike.load(folder)
    loaded = isospike.load(folder, nn.Sequential(Lora()))
    assert same(loaded, result.model, batches[1])
    message = r"needs a model whose adapters are merged .* got a Lora in 0. Call merge_and_unload"
    with pytest.raises(isospike.UnsupportedError, match=message) as caught:
        check_builds(model)  # of the command, whose port is loaded without a model
    one_line(caught)


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft_are_saved_as_they_are_or_merged(tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)

    def build():
        return models.seeded(
            lambda: peft.get_peft_model(transformers.BertModel(BERT), settings)
        ).eval()

    adapted = build()
    result = isospike.port(adapted, TEXT, steps=4)
    loaded = isospike.load(result.save(tmp_path / "adapted"), build())
    assert same(loaded, result.model, TEXT[1])
    merged = isospike.port(adapted.merge_and_unload(), TEXT, steps=4)
    loaded = isospike.load(merged.save(tmp_path / "port"))
    assert type(loaded) is transformers.BertModel
    assert same(loaded, merged.model, TEXT[1])


def test_the_file_says_how_the_model_is_built(plain, tmp_path):
    described = json.loads((plain[1] / "config.json").read_text())["isospike"]
    assert described["model"] == f"{__name__}:Plain"
    assert described["switches"] is None
    assert described["layers"]["layers.1.up"] == "Linear"
    folder = ported("no pooling layer").save(tmp_path / "port")
    described = json.loads((folder / "config.json").read_text())["isospike"]
    assert described["model"] == "transformers.models.bert.modeling_bert:BertModel"
    assert described["switches"] == {"add_pooling_layer": False}
    assert described["layers"] == {}
