"""Models that send each token to some of their experts."""

import functools

import models
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import isospike
from isospike.porting.choices import changed, find_choices

SIZES = {
    "vocab_size": models.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32, "bos_token_id": 1,
    "max_position_embeddings": 32, "eos_token_id": None, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "head_dim": 8, "moe_intermediate_size": 16,
}  # fmt: skip


def make(name="Mixtral", seed=0, **config):
    def build():
        config_class = getattr(transformers, f"{name}Config")
        model = getattr(transformers, f"{name}ForCausalLM")(config_class(**{**SIZES, **config}))
        return models.scatter(model).eval()

    return models.seeded(build, seed)


@functools.cache
def mixtral():
    """A port of one layer."""
    batches = [models.batch("llama", 24), models.batch("llama", 64, 2)]
    return isospike.port(make(num_hidden_layers=1), batches[:1], evaluation=batches[1:], steps=4)


def test_the_report_counts_the_tokens_whose_experts_are_others():
    (found,) = mixtral().report.choices
    batch, chosen = models.batch("llama", 64, 2), []
    for model in (mixtral()._builder.discovery.model, mixtral().model):
        keep = lambda m, args, y: chosen.append(y[2].sort(-1).values)  # noqa: E731
        hook = model.model.layers[0].mlp.gate.register_forward_hook(keep)
        models.run(model, batch)
        hook.remove()
    kept = batch["attention_mask"].flatten().bool()
    share = float((chosen[0] != chosen[1]).any(-1)[kept].float().mean())
    assert (found.name, found.chosen, found.tokens) == ("model.layers.0.mlp.gate", 2, kept.sum())
    assert 0 < found.changed == pytest.approx(share)
    assert mixtral().report.texts[0].changed == found.changed
    assert "of choices are others" in mixtral().report.headline()["Error"]
    assert mixtral().report.tables()["choices"].rows


class Scored(nn.Module):
    """Scores and what is made of them: ``make`` is given the scores."""

    def __init__(self, make):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.eye(4))

    def forward(self, x):
        return self.make(F.linear(x, self.weight))


CHOOSING = {
    "largest": (lambda z: z.gather(-1, z.topk(2, -1)[1]), 1),
    "an order": (lambda z: z.gather(-1, z.argsort(-1)), 1),
    "one": (lambda z: z.gather(-1, z.argmax(-1, keepdim=True)), 1),
    "two": (lambda z: z.gather(-1, z.argmax(-1, keepdim=True) + z.topk(1)[1] * 0), 2),
    "a bound only": (lambda z: z - z.max(-1, keepdim=True)[0], 0),
    "of whole numbers": (lambda z: z + z.round().long().argmax(-1, keepdim=True) * z, 0),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_a_choice_is_what_gives_places_that_are_read(name):
    make, count = CHOOSING[name]
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert set(find_choices(Scored(make), {"x": x})) == {("", i) for i in range(count)}


def test_a_changed_choice_is_counted_for_unpadded_tokens():
    x, y = torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[[0, 1], [2, 1]]])
    assert changed(x, y, {}).tolist() == [False, True]
    assert changed(x, y, {"": torch.tensor([[True, False]])}).tolist() == [False]
    assert changed(x, y[:, :1], {}).tolist() == [True, True]


def test_a_model_that_calls_products_gives_the_maps_of_its_attention():
    with torch.no_grad():
        (maps,) = mixtral().model(**models.batch("llama", 2), output_attentions=True).attentions
    assert torch.allclose(maps.sum(-1), torch.ones(()))


def test_a_token_alone_with_its_expert_gives_the_bits_that_it_gives_among_others():
    port = mixtral().model
    ids = models.batch("llama", 1, seed=4, padded=False)["input_ids"]
    with torch.no_grad():
        whole = port(input_ids=ids, use_cache=False).logits
        cache = port(input_ids=ids[:, :-1], use_cache=True).past_key_values
        step = port(input_ids=ids[:, -1:], cache=cache).logits
    assert torch.equal(step[0, -1], whole[0, -1])


class Written(nn.Module):
    """Attention that is written out; the first token has one key."""

    def forward(self, x):
        gone = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        return (x @ x.mT).masked_fill(gone, -1e9).softmax(-1) @ x


def test_a_sum_over_one_key_runs_on_spikes_where_longer_ones_do():
    x = torch.randn(24, 6, 16, generator=torch.Generator().manual_seed(0))
    port = isospike.port(Written(), [{"x": x}]).model
    with torch.no_grad():
        assert torch.equal(port(x[:, :1]), port(x)[:, :1])
        assert not torch.equal(port(x[:, :1]), x[:, :1])


class Banded(nn.Module):
    """Attention whose mask is spread by the line that multiplies queries and keys."""

    @staticmethod
    def _scores(a, b):
        return torch.einsum("bic,bjc->bij", a, b)

    def forward(self, x):
        far = torch.zeros(len(x), x.shape[1], 1)
        far[:, 4:] = torch.finfo(x.dtype).min
        scores = self._scores(x, x) + self._scores(torch.ones_like(far), far)
        return torch.einsum("bij,bjc->bic", scores.softmax(-1), x)


def test_a_mask_that_the_line_of_the_scores_spreads_is_no_product():
    x = torch.randn(24, 6, 16, generator=torch.Generator().manual_seed(0))
    port = isospike.port(Banded(), [{"x": x}])
    assert len(port.report.sites) == 4
    assert port.report.error < 0.02


class Sorted(nn.Module):
    """One expert for each token, and a text of two tokens that reaches an expert of its own."""

    def __init__(self):
        super().__init__()
        self.config = transformers.PretrainedConfig()
        self.gate, self.experts = (
            nn.Parameter(torch.empty(3, 8)),
            nn.Parameter(torch.empty(3, 8, 8)),
        )

    def can_generate(self):
        return True

    def generate(self, x, **_):
        return self(-x.abs())

    def forward(self, x):
        flat = x.reshape(-1, 8)
        chosen, y = F.linear(flat, self.gate).argmax(-1), torch.zeros_like(flat)
        for e in range(3):
            rows = (chosen == e).nonzero()[:, 0]
            y[rows] = F.linear(flat[rows], self.experts[e])
        return y.view_as(x)


def test_an_expert_that_only_a_written_text_reaches_is_calibrated_if_a_batch_reaches_it():
    x = torch.randn(24, 6, 8, generator=torch.Generator().manual_seed(0))
    model = models.seeded(lambda: models.scatter(Sorted()).eval())
    with torch.no_grad():
        model.gate.zero_()[0], model.gate[1, 0], model.gate[2] = 0.1, 1.0, -0.1
    few = x.clone()
    few[:2] = x[:2].abs()  # the sample reaches two experts, the text the third
    assert not isospike.port(model, [{"x": few}]).report.unreached
    positive = isospike.port(model, [{"x": x.abs()}])
    assert positive.report.unreached == ("experts",)
    with pytest.raises(isospike.UnsupportedError, match="needs calibration inputs that reach"):
        positive.model(-x.abs())
