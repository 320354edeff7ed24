"""Ranks by execution: layers, attentions and what they add are found by what a model calls."""

import pytest
import torch
import torch.nn.functional as F
from models import make, seeded
from torch import nn

from isospike.ranks import measure_ranks
from isospike.ranks.measure import measure_forward


def text(rows=2, tokens=8, seed=1):
    ids = torch.randint(3, 40, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids}


def build(kind, **sizes):
    """A small random model of transformers, its weights as wide as a trained one's."""
    import transformers as t

    def model():
        found = getattr(t, kind)
        found = found(found.config_class(vocab_size=40, **sizes)).eval()
        for p in found.parameters():
            nn.init.normal_(p, std=0.2) if p.dim() > 1 else p.data.add_(0.1 * torch.randn(p.shape))
        return found

    return seeded(model)


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def names(rows):
    return list(dict.fromkeys(row.layer for row in rows))


def site(found, layer, name, sequence=0):
    return found.at(layer, name)[sequence]


def test_layers_that_share_their_weights_have_a_row_for_each_call():
    model = build("AlbertModel", embedding_size=8, num_hidden_layers=12, **SMALL)
    report = measure_ranks(model, text(), controls=False)
    shared = "encoder.albert_layer_groups.0.albert_layers.0"
    assert names(report.depth) == [shared, *(f"{shared}, call {i}" for i in range(2, 13))]
    assert len(report.projections) == 12
    assert len({row.cosine for row in report.depth}) == 12
    assert max(row.summed for row in report.layers) < 1e-5
    assert len(report.circuits) == 2  # weights are measured once


@pytest.mark.parametrize("decoder", [5, 8])
def test_sublayers_of_t5_belong_to_their_block_and_cross_attention_has_a_name(decoder):
    model = build("T5Model", d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    inputs = text() | {"decoder_input_ids": text(2, decoder)["input_ids"]}
    found = measure_forward(model, inputs)
    cross = [f"decoder.block.{i}, cross attention" for i in range(2)]
    own = [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in range(2)]
    assert names(found.layers) == [*own[:3], cross[0], own[3], cross[1]]
    assert max(row.summed for row in found.layers) < 1e-5
    for layer in own:
        assert site(found, layer, "mlp").tokens == (decoder if "decoder" in layer else 8)
        assert site(found, layer, "output").rank is not None
    assert len([h for h in found.heads if h.layer == cross[0]]) == 2 * 2


def recorded(model, inputs):
    from isospike.ranks.record import record

    layers = []
    record(model, inputs, layers.append, lambda _: None)
    return layers


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("OPTModel", {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24,
                      "num_hidden_layers": 2, "num_attention_heads": 2}),
        ("FalconModel", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}),
        ("MixtralModel", {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 1,
                          "num_local_experts": 3}),
        ("Gemma2Model", {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 1,
                         "head_dim": 8}),
        ("GPTJModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}),
        ("BloomModel", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    ],
)  # fmt: skip
def test_what_attention_and_mlp_add_is_what_the_layer_does_to_the_stream(kind, sizes):
    layers = recorded(build(kind, **sizes), text())
    assert len(layers) == 2
    for layer in layers:
        (attention,) = layer.attentions
        assert not attention.cross
        whole = layer.x + attention.added + layer.mlp
        torch.testing.assert_close(whole, layer.y, atol=1e-5, rtol=1e-5)
        summed = attention.projection.z @ attention.projection.weight
        bias = attention.projection.bias
        summed = summed if bias is None else summed + bias
        torch.testing.assert_close(attention.projection.y, summed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_rows_and_tokens_are_told_apart_in_plain_pytorch(first):
    layer = seeded(lambda: nn.TransformerEncoderLayer(16, 2, 24, batch_first=first))
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(0))  # as many as tokens
    found = measure_forward(model, {"src": x})
    rows = [x[i] if first else x[:, i] for i in range(3)]
    for i, row in enumerate(rows):
        cosine = F.cosine_similarity(row[:, None], row[None], dim=-1)
        expected = float(cosine.triu(1).sum() / 3)
        assert site(found, "layers.0", "input", i).collapse.cosine == pytest.approx(expected)
    assert max(row.summed for row in found.layers) < 1e-5


class ByHand(nn.Module):
    """Attention by einsum, its heads last but one and its projection a stored tensor."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Parameter(torch.randn(3, 4, 12))

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 3, 4).unbind(2)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        z = torch.einsum("bhnm,bmhd->bnhd", weights, v)
        return x + torch.einsum("bnhd,hdo->bno", z, self.out)


def test_attention_by_einsum_in_a_model_of_its_own_is_found():
    model = seeded(lambda: nn.Sequential(ByHand(), ByHand()))
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    report = measure_ranks(model, {"input": x}, controls=False)
    assert names(report.layers) == ["0", "1"]
    assert max(row.summed for row in report.layers) < 1e-5
    block = model[0]
    with torch.no_grad():
        q, k, v = block.qkv(x).view(2, 5, 3, 3, 4).unbind(2)
        z = torch.einsum("bhnm,bmhd->bnhd", torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1), v)
        expected = torch.einsum("bnhd,hdo->bnho", z, block.out).double()
    torch.testing.assert_close(report.shares("0"), expected, atol=1e-5, rtol=1e-5)
    # The circuits are those of the weights.
    wq, wk, wv = (w.T for w in block.qkv.weight.detach().view(3, 3, 4, 12)[:, 1])
    circuit = report.circuit("0", 1)
    torch.testing.assert_close(circuit.ov.matrix(), wv @ block.out[1].detach())
    torch.testing.assert_close(circuit.qk.matrix(), wq @ wk.T)


class InPlace(nn.Module):
    """A block that writes over what its attention gave, and over its probabilities."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        p = (q @ k.mT / 2).softmax(-1)
        heads = (p @ v).transpose(1, 2).flatten(2)
        p.zero_()
        y = self.out(heads)
        heads.mul_(2)
        y += x
        added = self.down(self.up(y).relu_())
        added += y
        y[:, 0] = 7
        return added


def test_what_a_model_writes_over_is_recorded_as_it_was():
    block = seeded(InPlace).eval()
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    (layer,) = recorded(block, {"x": x})
    (attention,) = layer.attentions
    projection = attention.projection
    torch.testing.assert_close(attention.maps.sum(-1), torch.ones(6, 5))
    torch.testing.assert_close(projection.y, block.out(projection.z))
    torch.testing.assert_close(attention.added, projection.y)
    torch.testing.assert_close(layer.x, x)
    torch.testing.assert_close(layer.x + attention.added + layer.mlp, layer.y)


def test_windows_of_an_image_are_rows_of_one_sequence():
    import transformers as t

    config = t.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2],
                          window_size=4)  # fmt: skip
    model = seeded(lambda: t.SwinModel(config)).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = measure_forward(model, {"pixel_values": pixels})
    assert {s.tokens for s in found.sites} == {64}
    assert max(row.summed for row in found.layers) < 1e-5
    assert len(found.heads) == 2 * 2 * 2


def test_a_model_without_attention_has_layers_and_no_heads():
    import transformers as t

    config = t.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = seeded(lambda: t.MambaModel(config)).eval()
    report = measure_ranks(model, text(), controls=False)
    assert names(report.depth) == ["layers.0", "layers.1"]
    assert not report.heads
    assert not report.projections
    assert "no attention" in report.headline()["Layers"]
    assert "Which heads" not in report.html()


def test_heads_whose_values_are_joined_have_no_ov_circuit():
    sizes = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2}
    report = measure_ranks(build("DiffLlamaModel", **sizes), text(), controls=False)
    assert len(report.projections) == 2
    assert {row.ov_norm for row in report.circuits} == {None}
    assert max(row.summed for row in report.layers) < 1e-5


def test_a_compiled_model_has_the_ranks_of_the_model_that_was_compiled():
    model = make("bert")
    reports = [
        measure_ranks(m, text(), controls=False)
        for m in (model, torch.compile(model, backend="eager"))
    ]
    assert reports[0].depth == reports[1].depth
    assert reports[0].name == reports[1].name == "BertModel"


# Logits.


def test_shares_of_a_logit_are_those_of_each_head_by_hand():
    model = make("gpt2")
    inputs = text(2, 7)
    kept = {}
    for i, block in enumerate(model.transformer.h):
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args, i=i: kept.__setitem__(i, args[0])
        )
    model.transformer.ln_f.register_forward_pre_hook(
        lambda _, args: kept.__setitem__("last", args[0])
    )
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    seen = dict(kept)  # norms are called again, to be recognised
    report = measure_ranks(model, inputs, controls=False)
    found = report.logit_shares(tokens=7)
    assert found.places.tolist() == [6, 6]
    torch.testing.assert_close(found.logits, logits[:, 7].double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.values.sum(0), found.logits, atol=1e-4, rtol=1e-4)
    # TransformerLens: the head's output, centred, over the deviation, times gain and unembedding.
    norm = model.transformer.ln_f
    with torch.no_grad():
        last = seen["last"][:, -1]
        scale = (last.var(-1, unbiased=False) + norm.eps).sqrt()
        z = seen[1][:, -1].view(2, 3, 8)[:, 2]
        out = z @ model.transformer.h[1].attn.c_proj.weight[16:]
        out = (out - out.mean(-1, keepdim=True)) / scale[:, None] * norm.weight
        expected = (out @ model.lm_head.weight[7]).double()
    at = found.names.index("transformer.h.1, head 2")
    torch.testing.assert_close(found.values[at], expected, atol=1e-5, rtol=1e-4)


def test_logits_of_padded_rows_are_those_of_their_last_token():
    model = make("llama")
    ids = text(2, 6)["input_ids"]
    for side in (1, -1):
        mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])[:, ::side] if side == 1 else (
            torch.tensor([[1] * 6, [0] * 2 + [1] * 4]))  # fmt: skip
        report = measure_ranks(model, {"input_ids": ids, "attention_mask": mask}, controls=False)
        found = report.logit_shares()
        assert found.places.tolist() == ([5, 3] if side == 1 else [5, 5])
        torch.testing.assert_close(found.values.sum(0), found.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "text_of_it"),
    [
        (lambda r: r.shares("nowhere"), "shares needs the name of a layer with attention"),
        (lambda r: r.circuit("encoder.layer.0", 9), "circuit needs a head from 0 to 2, got 9"),
        (lambda r: r.logit_shares(), "logit_shares needs a model that predicts tokens"),
        (lambda r: type(r).from_json(r.to_json()).shares("encoder.layer.0"),
         "shares needs the report that measure_ranks returned"),
    ],
)  # fmt: skip
def test_what_a_report_cannot_give_is_named(call, text_of_it):
    from isospike.errors import IsospikeError

    report = measure_ranks(make("bert"), text(), controls=False)
    with pytest.raises(IsospikeError, match=text_of_it):
        call(report)
