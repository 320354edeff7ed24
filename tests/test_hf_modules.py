"""A module is recognised by what it computes; a layer by its name."""

import models
import pytest
import torch
from torch import nn

from isospike.hf.modules import Activation, GatedMLP, Norm, Product, layer_name, recognise


class GemmaNorm(nn.Module):
    """Multiplies by one more than its weight; says nothing of its eps."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(width, generator=torch.Generator().manual_seed(0)).bfloat16().float()
        )

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Gated(nn.Module):
    """A gated MLP with names of its own, as T5's."""

    def __init__(self, swapped):
        super().__init__()
        self.wi_0, self.wi_1, self.wo = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(0.5)
        self.swapped = swapped

    def forward(self, x):
        a, b = self.wi_0(x), self.wi_1(x)
        gate = a * self.act(b) if self.swapped else self.act(a) * b
        return self.wo(self.dropout(gate))


class Ungated(Gated):
    def forward(self, x):
        return self.wo(self.act(self.wi_0(x)) + self.wi_1(x))


class Loud(nn.Module):
    """Fails, draws, and keeps count."""

    def forward(self, x):
        torch.rand(3)
        raise KeyError(x)


class Cube(nn.Module):
    def forward(self, x):
        return x**3


def test_norms_are_told_apart_with_their_gain_and_eps():
    layer = recognise(nn.LayerNorm(8, eps=0.1))
    assert (layer.kind, layer.eps, layer.width) == ("layer", 0.1, 8)
    assert recognise(nn.LayerNorm(8, elementwise_affine=False)).gamma is None
    rms = recognise(nn.RMSNorm(8))
    assert (rms.kind, rms.eps) == ("rms", torch.finfo(torch.float32).eps)
    gemma = GemmaNorm(8)
    found = recognise(gemma)
    assert (found.kind, found.eps) == ("rms", 1e-6)
    assert torch.equal(found.gamma, 1 + gemma.weight.detach())
    assert isinstance(recognise(nn.LayerNorm(8).bfloat16()), Norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_recognised_computes_the_same(dtype):
    norm = nn.LayerNorm(16, eps=1e-3).to(dtype)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    found = recognise(norm)
    tolerance = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.apply(x.to(dtype).float()), norm(x.to(dtype)).float(), rtol=0, atol=tolerance
    )


def test_activations_are_known_by_their_values():
    names = {
        nn.ReLU(): "relu", nn.GELU(): "gelu", nn.GELU("tanh"): "gelu", nn.SiLU(): "silu",
        nn.Tanh(): "tanh",
    }  # fmt: skip
    for module, name in names.items():
        assert recognise(module) == Activation(name)
    for other in (nn.Identity(), nn.Dropout(0.5), nn.Softmax(-1), nn.Mish(), Cube(), Loud()):
        assert recognise(other) is None


@pytest.mark.parametrize("swapped", [False, True])
def test_a_gated_mlp_is_known_whatever_its_parts_are_called(swapped):
    gate, up = ("wi_1", "wi_0") if swapped else ("wi_0", "wi_1")
    found = models.seeded(lambda: recognise(Gated(swapped)))
    assert found == GatedMLP(gate, up, "act", "wo")
    assert models.seeded(lambda: recognise(Ungated(swapped))) is None


def test_products_are_known_with_their_weight_the_right_way_round():
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(5, 3)
    found = recognise(conv)
    assert torch.equal(found.weight, conv.weight.t())
    linear = nn.Linear(3, 5)
    assert recognise(linear).weight is linear.weight
    assert recognise(nn.Conv2d(3, 4, 2)).conv
    assert isinstance(recognise(type("Own", (nn.Linear,), {})(3, 5)), Product)
    assert recognise(nn.Embedding(7, 3)) is None


def test_recognising_leaves_the_module_and_the_random_state_alone():
    module = Gated(False).train()
    before = torch.get_rng_state()
    recognise(module)
    recognise(Loud())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(each.training for each in module.modules())


class GrowingTable(nn.Embedding):
    """Replaces its weight where it is asked for more places."""

    def forward(self, x):
        if x.shape[1] > len(self.weight):
            self.weight = nn.Parameter(torch.zeros(x.shape[1], self.embedding_dim))
            self.grown = True
        return super().forward(x.long())


def test_a_module_that_replaces_its_weight_when_it_is_called_is_left_as_it_was():
    table = GrowingTable(4, 6)
    weight, own = table.weight, dict(vars(table))
    assert recognise(table) is None
    assert table.weight is weight
    assert vars(table).keys() == own.keys()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.0.attention.self.query", "encoder.layer.0"),
        ("vit.stages.0.blocks.1.attn.q", "vit.stages.0.blocks.1"),
        ("h.3.attn:query", "h.3"),
        ("blocks.2.mlp.0", "blocks.2"),
        ("pooler.dense", "pooler.dense"),
        ("net.0", "net.0"),
    ],
)
def test_the_layer_of_a_module_is_its_innermost_block(name, layer):
    assert layer_name(name) == layer


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_every_norm_activation_and_product_of_the_architectures_is_recognised(name):
    kinds = {}
    for path, module in models.make(name).named_modules():
        found = recognise(module)
        if found is not None:
            kinds.setdefault(type(found).__name__, []).append(path)
    norms = {"bert": 5, "gpt2": 5, "llama": 5, "vit": 5}[name]
    assert len(kinds["Norm"]) == norms
    assert len(kinds["Activation"]) >= 2
    assert len(kinds.get("GatedMLP", [])) == (2 if name == "llama" else 0)
