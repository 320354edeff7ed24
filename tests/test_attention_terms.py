"""What attention computes beside the softmax of products: softcap, sinks, position bias."""

import ast
import inspect
import itertools
import re
from pathlib import Path

import models
import pytest
import torch
import transformers
from torch import nn

import isospike
from isospike.errors import UnsupportedError
from isospike.hf.attention import COMPUTED, HANDLE, IGNORED, routed
from isospike.porting.discover import discover
from isospike.porting.run import run_of

SIZES = {
    "vocab_size": models.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "head_dim": 8,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


class Dense(nn.Module):
    """One feed-forward network in the place of a mixture of experts."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.down(torch.relu(self.up(x))), None


def gemma2(cap=3.0, **config):
    sizes = {**SIZES, "query_pre_attn_scalar": 8, "sliding_window": 4, **config}
    made = transformers.Gemma2Config(attn_logit_softcapping=cap, **sizes)
    return models.seeded(lambda: models.scatter(transformers.Gemma2ForCausalLM(made)).eval())


def gpt_oss(**config):
    """Without its experts. The keys have biases, and the sinks are where scores are."""
    made = transformers.GptOssConfig(
        **{**SIZES, "sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1,
           "attn_implementation": "eager", **config}
    )  # fmt: skip

    def build():
        model = models.scatter(transformers.GptOssForCausalLM(made)).eval()
        for layer in model.model.layers:
            layer.mlp = models.scatter(Dense(32))
            nn.init.normal_(layer.self_attn.k_proj.bias, std=1.0)
            nn.init.normal_(layer.self_attn.sinks, mean=1.0)
        return model

    return models.seeded(build)


class Biased(transformers.PreTrainedModel):
    """Attention through the interface, with a position bias and whatever else is given."""

    config_class = transformers.BertConfig
    _supports_sdpa = True

    class Attention(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config, self.is_causal = config, False
            self.qkv = nn.Linear(24, 72)
            self.o = nn.Linear(24, 24)

        def forward(self, x, mask, **keywords):
            q, k, v = self.qkv(x).unflatten(-1, (9, 8)).transpose(1, 2).chunk(3, 1)
            attend = transformers.AttentionInterface().get_interface(
                self.config._attn_implementation, eager
            )
            y, weights = attend(self, q, k, v, mask, scaling=0.5, dropout=0.0, **keywords)
            return self.o(y.flatten(2)), weights

    def __init__(self, config, **keywords):
        super().__init__(config)
        self.embed = nn.Embedding(models.VOCABULARY, 24)
        self.attention = self.Attention(config)
        self.bias = nn.Parameter(torch.randn(1, 3, models.LONGEST, models.LONGEST))
        self.keywords = keywords

    def forward(self, input_ids, attention_mask=None):
        n = input_ids.shape[1]
        mask = None
        if attention_mask is not None:
            mask = (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
        keywords = {"position_bias": self.bias[:, :, :n, :n], **self.keywords}
        return self.attention(self.embed(input_ids), mask, **keywords)


def eager(module, query, key, value, mask, scaling, position_bias=None, is_causal=None, **others):
    """Attention of real numbers, each term written out on its own."""
    scores = query @ key.transpose(-1, -2) * scaling
    if others.get("softcap") is not None:
        scores = others["softcap"] * torch.tanh(scores / others["softcap"])
    scores = scores if position_bias is None else scores + position_bias
    scores = scores if mask is None else scores + mask
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores).bool().triu(1), -1e30)
    if others.get("indices") is not None:
        chosen = torch.zeros_like(scores).scatter(-1, others["indices"][:, None].expand(
            -1, scores.shape[1], -1, -1), 1)  # fmt: skip
        scores = scores.masked_fill(chosen == 0, -1e30)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    if others.get("sinks") is not None:
        weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + others["sinks"].exp())
    return (weights @ value).transpose(1, 2).contiguous(), weights


def biased(**keywords):
    config = transformers.BertConfig(attn_implementation="eager")
    return models.seeded(lambda: models.scatter(Biased(config, **keywords)).eval())


MAKERS = {
    "gemma2": gemma2,
    "gpt_oss": gpt_oss,
    "bias": biased,
    "all": lambda: biased(softcap=1.5, sinks=torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1)),
}


def batches():
    return models.batches("llama")


def left_padded(inputs):
    return {name: x.flip(1) for name, x in inputs.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_the_float_phase_computes_what_eager_does_with_padding_on_either_side(name):
    model = MAKERS[name]()
    model.set_attn_implementation("eager")
    port = discover(model, models.batch("llama", 3)).template.model
    inputs = models.batch("llama", 4, seed=9)
    for given in (inputs, left_padded(inputs)):
        where = models.valid(given)
        expected, got = (models.run(m, given)[where] for m in (model, port))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def ported():
    made = {}

    def get(name, ranges="dynamic", functions="float"):
        key = name, ranges, functions
        if key not in made:
            model = MAKERS[name]()
            port = isospike.port(model, batches(), steps=8, ranges=ranges, functions=functions)
            made[key] = model, port.model
        return made[key]

    return get


@pytest.mark.parametrize("ranges", ["dynamic", "static"])
@pytest.mark.parametrize("name", MAKERS)
def test_terms_are_computed_step_by_step_as_at_once_and_cost_no_accuracy(name, ranges, ported):
    model, port = ported(name, ranges)
    inputs = models.batch("llama", 4, seed=9)
    for given in (inputs, left_padded(inputs)):
        where = models.valid(given)
        stepped, collapsed = (models.run(port, given, e) for e in ("stepped", "collapsed"))
        assert torch.equal(stepped[where], collapsed[where])
        error = models.relative(models.run(model, given)[where], collapsed[where])
        assert error < (0.02 if ranges == "dynamic" else 0.05)


def test_a_softcap_and_sinks_run_on_spikes(ported):
    model, port = ported("all", functions="spiking")
    inputs = models.batch("llama", 4, seed=9)
    stepped, collapsed = (models.run(port, inputs, e) for e in ("stepped", "collapsed"))
    where = models.valid(inputs)
    assert torch.equal(stepped[where], collapsed[where])
    assert models.relative(models.run(model, inputs)[where], collapsed[where]) < 0.01
    models.switch(port, execution="stepped")
    assert isospike.audit(port, inputs).nonlinear_ops == {}


def test_a_cap_far_above_the_scores_costs_nothing_on_spikes():
    inputs = models.batch("llama", 4, seed=9)
    where, errors = models.valid(inputs), []
    for cap in (None, 50.0):
        model = biased(softcap=cap)
        port = isospike.port(model, batches(), steps=8, functions="spiking").model
        errors += [models.relative(*(models.run(m, inputs)[where] for m in (model, port)))]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "all"])
def test_maps_are_those_of_the_model_and_add_up_to_one_less_the_sinks(name, ported):
    model, port = ported(name)
    inputs = models.batch("llama", 4, seed=9, padded=False)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        wanted = {} if name == "all" else {"output_attentions": True}
        run_of(port).wants_maps = True
        expected, got = (maps_of(m(**inputs, **wanted)) for m in (model, port))
        run_of(port).wants_maps = False
    torch.testing.assert_close(got, expected, atol=0.03, rtol=0)
    total = got.sum(-1)
    assert bool((total < 0.99).any()) == (name != "gemma2")
    assert total.max() <= 1 + 1e-6
    if name == "gemma2":
        torch.testing.assert_close(total, torch.ones_like(total))


def maps_of(output):
    return output[1] if isinstance(output, tuple) else output.attentions[-1]


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_generation_with_a_cache_is_that_without(name, ported):
    _, port = ported(name)
    inputs = left_padded(models.batch("llama", 3, seed=9))
    texts = [
        port.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*texts)


def test_keys_far_from_zero_are_counted_in_what_a_softcap_and_sinks_see():
    generator = torch.Generator().manual_seed(3)
    model = MAKERS["all"]()
    with torch.no_grad():  # the part of each score that all keys share: softmax alone ignores it
        model.attention.qkv.bias[24:48] += 3 * torch.randn(24, generator=generator)
    port = isospike.port(model, batches(), steps=8).model
    inputs = models.batch("llama", 4, seed=9)
    where = models.valid(inputs)
    stepped, collapsed = (models.run(port, inputs, e) for e in ("stepped", "collapsed"))
    assert torch.equal(stepped[where], collapsed[where])
    assert models.relative(models.run(model, inputs)[where], collapsed[where]) < 0.01


def test_a_saved_port_bounds_its_scores_as_before(tmp_path):
    port = isospike.port(gemma2(num_hidden_layers=1), batches(), steps=8)
    inputs = models.batch("llama", 4, seed=9)
    port.save(tmp_path / "port")
    loaded = isospike.load(tmp_path / "port")
    assert torch.equal(models.run(loaded, inputs), models.run(port.model, inputs))


@pytest.mark.parametrize(
    "keywords",
    [
        {"is_causal": True},
        {"indices": torch.tensor([[[0, 2], [1, 2], [2, 3]]]).repeat(4, 3, 1)},
    ],
)
def test_keys_that_no_mask_hides_are_hidden_by_causality_and_by_indices(keywords):
    model = biased(**keywords)
    inputs = {"input_ids": models.batch("llama", 4, padded=False)["input_ids"]}
    template = discover(model, inputs).template.model
    torch.testing.assert_close(models.run(template, inputs), models.run(model, inputs))


@pytest.mark.parametrize("argument", ["head_mask", "block_indices", "another"])
def test_an_argument_that_nobody_knows_is_refused_by_name(argument):
    model = biased(**{argument: torch.ones(3)})
    with pytest.raises(UnsupportedError, match=f"got {argument} in attention"):
        isospike.port(model, batches())
    isospike.port(biased(**{argument: None, "position_ids": torch.ones(3)}), batches(), steps=2)


def test_transformers_passes_no_argument_that_is_neither_known_nor_refused():
    refused = {"block_indices"}  # of MiniMax-M3
    own = {"dropout", "scaling", "attention_mask", None}
    folder = Path(inspect.getfile(transformers)).parent / "models"
    passed = set()
    for file in sorted(folder.glob("*/modeling_*.py")):
        text = file.read_text("utf-8")
        for start in (match.end() for match in re.finditer(r"= attention_interface\(", text)):
            depth = itertools.accumulate({"(": 1, ")": -1}.get(c, 0) for c in text[start:])
            end = start + next(i for i, open_ in enumerate(depth) if open_ < 0)
            call = ast.parse(f"f({text[start:end]})", mode="eval").body
            passed |= {keyword.arg for keyword in call.keywords}
    assert {"softcap", "s_aux", "position_bias"} < passed
    assert passed <= {*COMPUTED, *IGNORED, *refused, *own, "query", "key", "value"}


def test_each_part_of_a_model_gets_its_own_implementation_back():
    text = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=24,
        vocab_size=models.VOCABULARY,
    )  # fmt: skip
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(text, text)
    model = models.seeded(lambda: transformers.EncoderDecoderModel(config)).eval()
    model.encoder.set_attn_implementation("eager")
    model.decoder.set_attn_implementation("sdpa")
    parts = [m.config for m in (model.encoder, model.decoder)]
    with routed(nn.Sequential(nn.Sequential(model)), eager):  # in a wrapper of its own
        assert {part._attn_implementation for part in parts} == {"isospike"}
    assert [part._attn_implementation for part in parts] == ["eager", "sdpa"]


class Wrapped(nn.Module):
    """A model of transformers within a module of one's own."""

    def __init__(self):
        super().__init__()
        self.bert = models.make("bert")
        self.head = nn.Linear(24, 3)

    def forward(self, **inputs):
        return self.head(self.bert(**inputs).last_hidden_state[:, 0])


def test_a_model_within_a_module_of_ones_own_is_ported():
    model = models.seeded(Wrapped)
    port = isospike.port(model, models.batches("bert"), steps=8).model
    inputs = models.batch("bert", 4, seed=9)
    assert models.relative(models.run(model, inputs), models.run(port, inputs)) < 0.05
    assert sum(hasattr(module, HANDLE) for module in port.modules()) == 2


class Looped(Biased):
    """Attention that one module calls for some tokens after the others, as for each image."""

    def forward(self, input_ids, attention_mask=None):
        layer, sizes = self.attention, [4, input_ids.shape[1] - 4]
        heads = layer.qkv(self.embed(input_ids)).unflatten(-1, (9, 8)).transpose(1, 2)
        attend = transformers.AttentionInterface().get_interface(
            layer.config._attn_implementation, eager
        )
        each = [
            attend(layer, *part.chunk(3, 1), None, scaling=0.5)[0] for part in heads.split(sizes, 2)
        ]
        return layer.o(torch.cat(each, 1).flatten(2))


def test_a_module_that_attends_to_one_image_after_the_other_has_the_sites_of_one_attention():
    config = transformers.BertConfig(attn_implementation="eager")
    model = models.seeded(lambda: models.scatter(Looped(config)).eval())
    made = isospike.port(model, batches(), steps=8)
    inputs = models.batch("llama", 4, seed=9, padded=False)
    stepped, collapsed = (models.run(made.model, inputs, e) for e in ("stepped", "collapsed"))
    assert torch.equal(stepped, collapsed)
    assert models.relative(models.run(model, inputs), collapsed) < 0.01
    kinds = [site.kind for site in made.report.sites]
    assert sorted(kinds) == ["key", "linear", "linear", "probability", "query", "value"]
