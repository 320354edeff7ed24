"""A port is compared with its original: what its copy would lose is refused by name."""

import models
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import isospike
from isospike.porting.run import run_of
from isospike.porting.trace import trace_products

WIDTH = 6


class Small(nn.Module):
    """Two products with something in between, and a third that only some inputs reach."""

    def __init__(self, between=None):
        super().__init__()
        self.a, self.b, self.rare = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.between = between

    def forward(self, x):
        if x.amax() > 50:
            x = self.rare(x)
        h = self.a(x).relu()
        return self.b(h if self.between is None else self.between(self, h))


def small(between=None):
    return models.seeded(lambda: Small(between)).eval()


def inputs(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"x": size * torch.randn(16, 5, WIDTH, generator=generator)} for size in sizes]


def refused(model, match, batches=None, **settings):
    with pytest.raises(isospike.UnsupportedError, match=match):
        isospike.port(model, inputs(1, 1) if batches is None else batches, **settings)


# What a module does beside its class.


def computes(model):
    """The port's error on other inputs, and the names of its sites."""
    port = isospike.port(model, inputs(1, 1), steps=12)
    x = inputs(1, seed=1)[0]
    error = models.relative(models.run(model, x), models.run(port.model, x))
    return error, [site.name for site in port.report.sites]


def test_a_hook_on_a_product_is_kept():
    model = small()
    model.b.register_forward_hook(lambda module, args, output: 2 * output + 1)
    model.a.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    error, sites = computes(model)
    assert error < 0.1
    assert sorted(sites) == ["a:weight", "b:weight"]


def test_a_hook_on_a_module_that_stays_is_kept():
    model = small()
    model.register_forward_hook(lambda module, args, output: 2 * output + 1)
    port = isospike.port(model, inputs(1, 1), steps=12).model
    x = inputs(1, seed=1)[0]
    assert models.relative(models.run(model, x), models.run(port, x)) < 0.1


def test_a_hook_on_a_circuit_is_refused_with_its_module():
    model = models.make("bert")
    model.encoder.layer[1].output.LayerNorm.register_forward_hook(lambda *_: None)
    refused(model, r"encoder\.layer\.1\.output\.LayerNorm", models.batches("bert"),
            functions="spiking")  # fmt: skip


def test_a_forward_of_its_own_is_kept():
    model = small()
    model.a.forward = lambda x: 2 * x
    error, sites = computes(model)
    assert error < 0.1
    assert sites == ["b"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_weight_that_is_computed_is_a_weight():
    model = small()
    nn.utils.weight_norm(model.a)
    nn.utils.parametrizations.weight_norm(model.b)
    error, sites = computes(model)
    assert error < 0.1
    assert sorted(sites) == ["a:linear", "b:linear"]


@pytest.mark.parametrize(
    "between",
    [lambda m, h: h * m.a.weight.norm(), lambda m, h: h - m.a.bias, lambda m, h: h + m.b.weight[0]],
)
def test_a_weight_that_is_read_elsewhere_is_read_as_it_is(between):
    error, sites = computes(small(between))
    assert error < 0.1
    assert {site.partition(":")[0] for site in sites} == {"a", "b"}


def test_sizes_of_a_replaced_module_can_be_read():
    port = isospike.port(small(lambda m, h: h * m.a.in_features), inputs(1, 1)).model
    assert (port.a.in_features, port.a.out_features) == (WIDTH, WIDTH)
    vit = isospike.port(models.make("vit"), models.batches("vit"), steps=4).model
    filters = vit.vit.embeddings.patch_embeddings.projection
    assert (filters.stride, filters.kernel_size, filters.groups) == ((4, 4), (4, 4), 1)


def test_the_first_module_that_computes_something_else_is_named(monkeypatch):
    """As a new release of transformers might pass attention something that a port does not know."""
    from isospike.porting.attention import SpikingAttention

    right = SpikingAttention._float

    def wrong(self, query, key, value, terms):
        return right(self, query, key, value, terms) + value

    monkeypatch.setattr(SpikingAttention, "_float", wrong)
    with pytest.raises(
        isospike.UnsupportedError,
        match=r"relative difference of .*, first in encoder\.layer\.0\.at",
    ):
        isospike.port(models.make("bert"), models.batches("bert"))


# Random numbers.


@pytest.mark.parametrize(
    "between", [lambda m, h: h + torch.rand_like(h), lambda m, h: nn.functional.dropout(h)]
)
def test_a_model_that_draws_is_compared_under_one_seed_and_the_report_says_so(between):
    before = torch.get_rng_state()
    report = isospike.port(small(between), inputs(1, 1), steps=12).report
    assert report.error < 0.15
    assert "draws random numbers" in report.warnings[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_does_not_draw_says_nothing():
    assert not any("random" in w for w in isospike.port(small(), inputs(1, 1)).report.warnings)


def test_a_model_that_differs_under_one_seed_is_refused():
    noise = np.random.default_rng(0)
    refused(small(lambda m, h: h + noise.random()), "the same twice under one seed of torch")


# What the inputs do not reach.


def test_a_module_that_no_input_reaches_raises_when_it_is_called():
    result = isospike.port(small(), inputs(1, 1))
    assert result.report.unreached == ("rare",)
    assert "No calibration input reached rare." in result.report.warnings[-1]
    with pytest.raises(isospike.UnsupportedError, match="calibration inputs that reach rare, got"):
        result.model(**inputs(100)[0])
    assert (
        isospike.port(models.make("bert"), models.batches("bert"), steps=2).report.unreached == ()
    )


def test_a_module_that_only_later_inputs_reach_is_ported():
    result = isospike.port(small(), inputs(1, 100), evaluation=inputs(100, seed=1))
    assert result.report.unreached == ()
    assert sorted(site.name for site in result.report.sites) == ["a", "b", "rare"]


def test_a_tower_that_no_input_reaches_raises_when_it_is_called():
    """A model of two towers, calibrated on one."""
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1,
                     "num_attention_heads": 3, "intermediate_size": 40, "eos_token_id": 49},
        vision_config={"image_size": 16, "patch_size": 8, "hidden_size": 24,
                       "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40},
        projection_dim=16,
    )  # fmt: skip

    class Towers(transformers.CLIPModel):
        def forward(self, input_ids=None, pixel_values=None, attention_mask=None):
            if pixel_values is None:
                return self.text_model(input_ids, attention_mask).last_hidden_state
            return self.vision_model(pixel_values).last_hidden_state

    model = models.seeded(lambda: models.scatter(Towers(config))).eval()
    result = isospike.port(model, models.batches("bert"), steps=4)
    assert "vision_model.encoder.layers.0.mlp.fc1" in result.report.unreached
    with pytest.raises(isospike.UnsupportedError, match="reach vision_model"):
        result.model(pixel_values=torch.zeros(1, 3, 16, 16))


# Products that are no matrix products.


def fnet():
    config = transformers.FNetConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, intermediate_size=40, pad_token_id=0,
        max_position_embeddings=32, tpu_short_seq_length=models.LONGEST,
    )  # fmt: skip
    return models.seeded(lambda: models.scatter(transformers.FNetModel(config))).eval()


def test_a_fourier_transform_runs_on_spikes():
    batches = [{"input_ids": b["input_ids"]} for b in models.batches("bert")]
    report = isospike.port(fnet(), batches).report
    assert report.exceptions == ()
    mixed = {site.layer for site in report.sites if "fourier" in site.name}
    assert mixed == {f"encoder.layer.{i}" for i in range(2)}


def test_an_elementwise_contraction_runs_on_spikes():
    def attend(m, h):
        return h + (h[:, :, None] * h[:, None].tanh()).sum(-1, keepdim=True).mean(2)

    port = isospike.port(small(attend), inputs(1, 1), steps=12)
    assert port.report.exceptions == ()
    assert {":scale:left", ":scale:right"} <= {site.name for site in port.report.sites}
    x = inputs(1, seed=1)[0]
    with run_of(port.model).switched(execution="stepped"):
        stepped = models.run(port.model, x)
    assert torch.equal(models.run(port.model, x), stepped)
    assert models.relative(models.run(small(attend), x), stepped) < 0.1


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is", "ignore:torch.quantize_per_tensor")
def test_an_operator_of_another_library_is_taken_for_a_product():
    linear = {"b": torch.quantization.default_dynamic_qconfig}
    quantised = torch.ao.quantization.quantize_dynamic(small(), linear)
    found = [p.op for p in trace_products(quantised, inputs(1)[0])]
    assert found == ["addmm", "quantized::linear_dynamic"]
    refused(quantised, r"got a quantised module in b \(Linear\). Port the model as it was before")


def test_weights_that_wrap_others_are_refused_before_the_work():
    model = small()
    weight = model.b.weight.detach()
    model.b.weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    refused(model, r"got weights that wrap others in b \(Linear\). Port the model before it is")


# Weights.


def test_infinity_in_a_buffer_is_a_mask():
    model = small(lambda m, h: h + m.mask[: h.shape[1], :1].exp())
    model.register_buffer("mask", torch.full((9, 9), -torch.inf).triu(1))
    assert isospike.port(model, inputs(1, 1), steps=12).report.error < 0.1
    model.mask[0, 0] = torch.nan
    with pytest.raises(isospike.InputError, match="finite weights, got NaN or infinity in mask"):
        isospike.port(model, inputs(1, 1))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("model", [small().to("meta"), nn.Sequential(nn.LazyLinear(3))])
def test_weights_without_values_are_refused(model):
    with pytest.raises(isospike.InputError, match=r"weights in memory, got (a|0)\.weight without"):
        isospike.port(model, inputs(1, 1))
