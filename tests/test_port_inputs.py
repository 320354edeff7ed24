"""Inputs of a port: rows and tokens are measured, and what does not fit is refused."""

import functools

import models
import numpy as np
import pytest
import torch
import transformers
from torch import nn

import isospike
from isospike.hf.batches import batch_size, rows_of
from isospike.porting.axes import Axes, measure_axes
from isospike.porting.discover import discover
from isospike.porting.inputs import sample_of
from isospike.porting.ported import Ported
from isospike.porting.run import run_of
from isospike.porting.sensitivity import measure_channels

TOKENS = models.LONGEST


def bart(**config):
    sizes = {
        "vocab_size": models.VOCABULARY, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40, "max_position_embeddings": 32, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    }  # fmt: skip
    made = transformers.BartConfig(**sizes, **config)
    return models.seeded(lambda: models.scatter(transformers.BartModel(made))).eval()


def head(cls, seed=0, **config):
    sizes = {
        "vocab_size": models.VOCABULARY, "hidden_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 32,
    }  # fmt: skip
    made = transformers.BertConfig(**sizes, **config)
    return models.seeded(lambda: models.scatter(cls(made)), seed).eval()


@functools.cache
def plain(name, **sizes):
    """A port on the usual batches, to compare others with."""
    return isospike.port(models.make(name, **sizes), models.batches(name))


def decoded(rows, seed, tokens=TOKENS, padded=True):
    """Inputs of an encoder-decoder whose decoder reads as many tokens as its encoder."""
    inner = models.batch("bert", rows, seed + 50)
    found = {
        **models.batch("bert", rows, seed),
        "decoder_input_ids": inner["input_ids"][:, :tokens],
    }
    if padded:
        found["decoder_attention_mask"] = inner["attention_mask"][:, :tokens]
    return found


def states(result):
    """Ranges of all sites."""
    return [(s.name, s.scale, s.offset) for s in Ported.of(result.model).sites]


def assert_same_port(one, two):
    for (name, *x), (_, *y) in zip(states(one), states(two), strict=True):
        for a, b in zip(x, y, strict=True):
            torch.testing.assert_close(a, b, msg=name)


# Arguments that are no batch of rows.


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_positions_of_one_row_for_all_are_those_of_every_row(name):
    given = models.batches(name)
    expected = plain(name)
    positions = {"position_ids": torch.arange(TOKENS)[None]}
    got = isospike.port(models.make(name), [{**positions, **b} for b in given])
    assert_same_port(expected, got)
    assert got.report.error == pytest.approx(expected.report.error)
    assert got.report.held_out_tokens == expected.report.held_out_tokens


def pairs(batch, kind, causal):
    """The mask of a batch, between queries and keys."""
    seen = batch["attention_mask"].bool()[:, None, None].expand(-1, 1, TOKENS, -1)
    if causal:
        seen = seen & torch.ones(TOKENS, TOKENS).bool().tril()
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {**batch, "attention_mask": seen if kind == "boolean" else added}


@pytest.mark.parametrize("kind", ["boolean", "float"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_mask_between_queries_and_keys_is_the_mask_of_tokens(name, kind):
    """Also where there are as many heads as tokens."""
    sizes = {"hidden_size": 36, "num_attention_heads": 9} if name == "bert" else {}
    given = models.batches(name)
    expected = plain(name, **sizes)
    masked = [pairs(b, kind, name == "llama") for b in given]
    got = isospike.port(models.make(name, **sizes), masked)
    assert_same_port(expected, got)
    assert got.report.error == pytest.approx(expected.report.error)
    assert got.report.held_out_tokens == expected.report.held_out_tokens


@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_masks_of_pairs_are_padded_with_what_sees_nothing(kind):
    given = [models.batch("bert", 8, seed, padded=False) for seed in (1, 2, 3)]
    short = [{k: v[:, : TOKENS - i] for k, v in b.items()} for i, b in enumerate(given)]
    expected = isospike.port(models.make("bert"), short)

    def masked(b):
        n = b["input_ids"].shape[1]
        seen = torch.ones(8, 1, n, n, dtype=torch.bool)
        return {**b, "attention_mask": seen if kind == "boolean" else torch.zeros(8, 1, n, n)}

    assert_same_port(expected, isospike.port(models.make("bert"), [masked(b) for b in short]))


def test_labels_and_decoder_inputs_of_any_length_are_padded():
    def cut(length, seed):
        whole = decoded(8, seed)
        return {k: v[:, : length - ("decoder" in k)] for k, v in whole.items()}

    batches = [cut(length, seed) for seed, length in enumerate((9, 8, 7, 9))]
    assert isospike.port(bart(), batches).report.error < 0.2
    unmasked = [{k: v for k, v in b.items() if k != "decoder_attention_mask"} for b in batches]
    assert isospike.port(bart(), unmasked).report.error < 0.2
    text = [models.batch("gpt2", 8, seed, padded=False) for seed in range(4)]
    text = [{k: v[:, : 9 - i] for k, v in b.items()} for i, b in enumerate(text)]
    labelled = [{**b, "labels": b["input_ids"]} for b in text]
    model = models.make("gpt2", loss_type="ForCausalLM")
    assert_same_port(isospike.port(model, text), isospike.port(model, labelled))


def test_images_of_several_sizes_are_refused_by_name():
    sizes = [{"pixel_values": torch.randn(4, 3, n, 16)} for n in (16, 8, 16)]
    with pytest.raises(isospike.InputError, match=r"model takes.*batch 3: .*image size"):
        isospike.port(models.make("vit"), sizes[:1] * 2 + sizes, evaluation=sizes[:1])


@pytest.mark.parametrize(
    ("value", "got"), [([[3, 4]] * 4, "list"), (np.full((4, 2), 3), "ndarray")]
)
def test_what_is_no_tensor_is_refused_by_its_name(value, got):
    batches = [{"input_ids": value}] * 2
    with pytest.raises(isospike.InputError, match=rf"tensors .* got {got} for input_ids .*batch 0"):
        isospike.port(models.make("bert"), batches)


def test_one_batch_alone_is_to_be_put_in_a_list():
    batch = models.batch("bert")
    for calibration, evaluation in ((batch, None), ([batch], batch)):
        with pytest.raises(isospike.InputError, match="Put it in a list"):
            isospike.port(models.make("bert"), calibration, evaluation=evaluation)


# Axes.


def test_axes_are_those_that_change_with_rows_and_tokens():
    def shapes(batch):
        rows, tokens = batch["input_ids"].shape
        decoder = batch["decoder_input_ids"].shape[1]
        assert batch["attention_mask"].shape == (rows, tokens)
        return {
            "batch first": (rows, tokens, 9), "sequence first": (tokens, rows, 9),
            "flat": (rows * tokens, 9), "heads": (rows, 9, decoder, 4), "table": (tokens, 9),
            "pooled": (rows, 9), "crossed": (rows, 3, decoder, tokens), "constant": (9, 9),
        }  # fmt: skip

    batch = decoded(9, 1, padded=False)
    assert measure_axes(shapes, batch) == {
        "batch first": Axes(0, 1), "sequence first": Axes(1, 0), "flat": Axes(0, 0),
        "heads": Axes(0, 2, "decoder_"), "table": Axes(None, 0), "pooled": Axes(0, None),
        "crossed": Axes(0, 2, "decoder_"), "constant": Axes(),
    }  # fmt: skip


def test_a_mask_lies_over_the_axes_that_were_measured():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    masks = {"": mask}
    assert Axes(0, 1).mask(masks, torch.zeros(2, 3, 5)).tolist() == mask[..., None].tolist()
    assert Axes(1, 0).mask(masks, torch.zeros(3, 2, 5))[..., 0].tolist() == mask.t().tolist()
    assert Axes(0, 2).mask(masks, torch.zeros(2, 7, 3, 5)).shape == (2, 1, 3, 1)
    assert Axes(0, 0).mask(masks, torch.zeros(6, 5))[:, 0].tolist() == mask.flatten().tolist()
    assert Axes(None, 0).mask(masks, torch.zeros(3, 5))[:, 0].tolist() == [True, True, False]
    assert Axes(0, 1).mask(masks, torch.zeros(2, 4, 5)) is None
    assert Axes(0, 1, "decoder_").mask(masks, torch.zeros(2, 3, 5)) is None
    assert Axes(0, None).mask(masks, torch.zeros(2, 3)) is None


@pytest.mark.parametrize("padded", [True, False])
def test_a_decoder_as_long_as_its_encoder_has_a_mask_of_its_own(padded):
    given = [decoded(32, 1, padded=padded), decoded(8, 2, padded=padded)]
    report = isospike.port(bart(), given).report
    held = given[1]
    tokens = int(held["decoder_attention_mask"].sum()) if padded else 8 * TOKENS
    assert report.held_out_tokens == tokens
    values = {s.name: s.values * tokens / 24 for s in report.sites}
    encoder = int(held["attention_mask"].sum())
    assert values["encoder.layers.0.fc1"] == pytest.approx(encoder)
    assert values["decoder.layers.0.fc1"] == pytest.approx(tokens)
    assert values["decoder.layers.0.encoder_attn.k_proj"] == pytest.approx(encoder)
    assert values["decoder.layers.0.encoder_attn:key"] == pytest.approx(encoder)
    assert values["decoder.layers.0.encoder_attn:query"] == pytest.approx(tokens)


def test_the_error_of_a_decoder_is_that_of_its_own_tokens():
    given = [decoded(32, 1), decoded(8, 2)]
    model = bart()
    result = isospike.port(model, given)
    where = given[1]["decoder_attention_mask"].bool()
    expected, got = (models.run(m, given[1])[where] for m in (model, result.model))
    assert result.report.error == pytest.approx(models.relative(expected, got), rel=1e-4)


class SequenceFirst(nn.Module):
    """Reads ``[tokens, rows, channels]`` inside."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids).transpose(0, 1)
        return self.b(self.a(x).relu())


def test_the_axes_of_a_model_with_the_sequence_first_are_measured():
    model = models.seeded(SequenceFirst).eval()
    axes = discover(model, models.batch("bert", 9)).template.run.axes  # as many rows as tokens
    assert axes == {"a": Axes(1, 0), "b": Axes(1, 0), "": Axes(1, 0)}


class Patches(nn.Module):
    """Reads the patches of all images one after the other, and how many each row has."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, patches, counts):
        return torch.stack([part.mean(0) for part in self.a(patches).split(counts.tolist())])


def test_arguments_that_do_not_divide_by_rows_stay_whole():
    model, counts = models.seeded(Patches).eval(), torch.tensor([1, 2, 3, 4])
    whole = {"patches": torch.ones(10, 4), "counts": counts}
    assert batch_size(whole) == 10  # nothing says which argument has the rows
    assert sample_of(model, whole) is whole
    text = models.batch("bert")
    assert sample_of(models.make("bert"), text)["input_ids"].shape == (2, TOKENS)


# Figures of outputs that are no vectors for each token.


def test_one_value_for_each_token_has_no_cosine_and_no_agreement():
    result = isospike.port(head(transformers.BertForQuestionAnswering), models.batches("bert"))
    report = result.report
    assert (report.cosine, report.cosine_pooled, report.agreement) == (None, None, None)
    assert report.held_out_tokens == int(models.batches("bert")[1]["attention_mask"].sum())
    assert "each token has one value" in repr(report)
    assert "each token has one value" in report.html()
    assert type(report).from_json(report.to_json()) == report
    assert "cosine" not in isospike.compare(report, report).measures


def test_one_value_for_each_row_has_no_cosine_and_no_agreement():
    model = head(transformers.BertForSequenceClassification, num_labels=1)
    report = isospike.port(model, models.batches("bert")).report
    assert (report.cosine, report.agreement, report.held_out_tokens) == (None, None, 8)
    model = head(transformers.BertForSequenceClassification, num_labels=3)
    assert isospike.port(model, models.batches("bert")).report.agreement >= 0.5


def test_predictions_are_logits_too():
    model = head(transformers.BertForPreTraining)
    held = models.batches("bert")[1]
    result = isospike.port(model, models.batches("bert"))
    where = models.valid(held)
    best = [models.run(m, held)[where].argmax(-1) for m in (model, result.model)]
    assert result.report.agreement == pytest.approx(float((best[0] == best[1]).double().mean()))


# --------------------------------------------------- modules whose first axis is not the batch


class Mixer(torch.nn.Module):
    """Two linear layers between transposes, tokens first or rows first."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.a, self.b = torch.nn.Linear(12, 24), torch.nn.Linear(24, 12)

    def forward(self, x):
        h = x.transpose(0, 1) if self.first else x
        h = self.b(self.a(h).relu())
        return h.transpose(0, 1) if self.first else h


class Routed(torch.nn.Module):
    """Each token goes to the expert with the largest score; ``dense`` computes both and selects."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense
        self.experts = torch.nn.ModuleList(torch.nn.Linear(12, 12) for _ in range(2))
        self.register_buffer("key", torch.linspace(-1, 1, 12))

    def forward(self, x):
        flat = x.reshape(-1, 12)
        chosen = ((flat * self.key).sum(-1) > 0).long()
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            if self.dense:
                out = torch.where((chosen == i)[:, None], expert(flat), out)
            else:
                out[chosen == i] = expert(flat[chosen == i])
        return out.view_as(x)


class Table(torch.nn.Module):
    """A linear layer of a table that has no batch axis, added to one of the tokens."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.linspace(-1, 1, 9 * 12).view(9, 12).clone())
        self.a, self.b = torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)

    def forward(self, x):
        return self.b(x) + self.a(self.table)


def numbers(rows, seed, tokens=9):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, tokens, 12, generator=generator)}


def error_of(make, ranges):
    model = models.seeded(make).eval()
    batches = [numbers(16, seed) for seed in (1, 2)]
    return isospike.port(model, batches, evaluation=[numbers(8, 3)], ranges=ranges).report.error


@pytest.mark.parametrize("ranges", ["dynamic", "static"])
def test_modules_that_read_tokens_first_a_table_or_some_tokens_are_calibrated_alike(ranges):
    assert error_of(lambda: Mixer(first=True), ranges) == pytest.approx(
        error_of(lambda: Mixer(first=False), ranges), rel=0.1
    )
    # A static range of an expert is fitted to its own tokens, half as many.
    routed, dense = (error_of(lambda d=d: Routed(dense=d), ranges) for d in (False, True))
    assert routed < (1.3 if ranges == "dynamic" else 3) * dense
    assert error_of(Table, ranges) < 0.02


def test_an_allocation_counts_each_sequence_by_its_own_mask():
    batch = decoded(8, seed=3)
    opened = discover(bart(), rows_of(batch, slice(0, 2)), further=[batch]).template
    found = measure_channels(opened, [batch])
    outer, inner = (int(batch[k].sum()) for k in ("attention_mask", "decoder_attention_mask"))
    assert outer != inner
    for name, channels in found.items():
        if name.endswith("fc1"):
            tokens = outer if name.startswith("encoder") else inner
            assert channels.values == pytest.approx(tokens / inner)


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("ranges", ["dynamic", "static"])
def test_an_expert_that_gets_no_token_gives_nothing(ranges, execution):
    model = models.seeded(lambda: Routed(dense=False)).eval()
    port = isospike.port(model, [numbers(16, 1), numbers(8, 2)], ranges=ranges)
    x = numbers(4, 5)["x"]
    ones = torch.where(((x * model.key).sum(-1) > 0)[..., None], x, -x)  # all to the second
    with torch.no_grad(), run_of(port.model).switched(execution=execution):
        got = port.model(ones)
    assert (got - model(ones)).norm() / model(ones).norm() < 0.1


def test_images_of_several_sizes_are_calibrated_where_the_model_takes_them():
    model = models.seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3))
    ).eval()
    draw = torch.Generator().manual_seed(0)
    batches = [{"input": torch.randn(4, 3, n, 8, generator=draw)} for n in (8, 12, 8)]
    assert isospike.port(model, batches, steps=8).report.error < 0.02
