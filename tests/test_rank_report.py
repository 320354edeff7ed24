"""measure_ranks: hooks on four architectures and on spikes, the page, the command, its mistakes."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from browser import browse, needs_chromium
from models import batch, make, seeded
from torch import nn
from typer.testing import CliRunner

import isospike
from isospike.cli import app
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.models import Transformer
from isospike.ranks import controls, measure_ranks
from isospike.ranks.measure import measure_forward
from isospike.ranks.report import RankReport

NAMES = ("bert", "vit", "gpt2", "llama")


def spiking(name="llama"):
    result = isospike.port(make(name), [batch(name, 16, 1)], evaluation=[batch(name, 4, 2)])
    return result.model


def plain():
    return seeded(lambda: isospike.models.Transformer(50, 16, 4, 2)).eval()


@pytest.fixture(scope="module")
def report():
    return isospike.measure_ranks(make("bert"), batch("bert", 3), name="tiny <b>BERT</b>")


def own_inputs(name, rows=3):
    return {"tokens": batch("bert", rows)["input_ids"]} if name == "own" else batch(name, rows)


# Hooks.


@pytest.mark.parametrize("name", [*NAMES, "own", "gated", "spiking"])
def test_heads_summed_through_their_projection_are_the_attention_output(name):
    if name in ("own", "gated"):
        model = plain() if name == "own" else seeded(
            lambda: isospike.models.Transformer(50, 16, 4, 2, gated=True)
        )  # fmt: skip
        for block in model.blocks if name == "gated" else ():
            nn.init.normal_(block.join.gate.weight, generator=torch.Generator().manual_seed(0))
        inputs = own_inputs("own")
    else:
        model = spiking() if name == "spiking" else make(name)
        inputs = batch("llama" if name == "spiking" else name, 3)
    found = measure_forward(model, inputs)
    assert len(found.layers) == 2 * 3
    assert max(row.summed for row in found.layers) < 1e-5
    # From the sum alone every head comes back, as far as the condition of W_O lets it.
    for row in found.layers:
        gain = next(p.result.condition for p in found.projections if p.layer == row.layer)
        assert row.recovered < 1e-6 * max(10, gain)
    assert all(n.result.agrees is not False for n in found.norms)
    for h in found.heads:
        assert 0 <= h.ratio <= 1
        assert 0 <= h.entropy <= 1 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_attention_maps_and_the_stream_are_the_models_own(name):
    from isospike.ranks.record import record

    model, inputs = make(name), batch(name, 2, padded=False)
    with torch.no_grad():
        before = model(**inputs, output_hidden_states=True)
        implementation = model.config._attn_implementation
        model.set_attn_implementation("eager")
        eager = model(**inputs, output_attentions=True).attentions
        model.set_attn_implementation(implementation)
    layers = []
    record(model, inputs, layers.append, lambda _: None)
    for i, layer in enumerate(layers):
        (attention,) = layer.attentions
        torch.testing.assert_close(attention.maps.view_as(eager[i]), eager[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.x, before.hidden_states[i], atol=1e-5, rtol=1e-5)
        # What the halves add is the difference of the streams; BERT's are normalised after it.
        whole = layer.x + attention.added + layer.mlp
        if name != "bert":
            torch.testing.assert_close(whole, layer.y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "own"])
def test_the_model_is_left_as_it_was(name):
    model = plain() if name == "own" else make(name)
    model.train()
    inputs = own_inputs(name)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state, kept = torch.get_rng_state(), getattr(model, "config", None)
    implementation = kept and kept._attn_implementation
    isospike.measure_ranks(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert implementation == (kept and kept._attn_implementation)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_changes_nothing(name):
    model, inputs = make(name), batch(name, 3)
    padded = measure_forward(model, inputs)
    length = int(inputs["attention_mask"][2].sum())
    alone = measure_forward(model, {k: v[2:, :length] for k, v in inputs.items()})
    for ours, theirs in zip([s for s in padded.sites if s.sequence == 2], alone.sites, strict=True):
        assert (ours.layer, ours.site, ours.tokens) == (theirs.layer, theirs.site, length)
        assert ours.rank.rank == theirs.rank.rank
        assert ours.collapse == pytest.approx(theirs.collapse, rel=1e-4, abs=1e-5)
    own = [h for h in padded.heads if h.sequence == 2]
    for ours, theirs in zip(own, alone.heads, strict=True):
        assert (ours.ratio, ours.entropy) == pytest.approx((theirs.ratio, theirs.entropy), abs=1e-4)


def test_the_first_token_is_measured_with_and_without():
    model = make("gpt2")
    with torch.no_grad():  # a first position that outweighs the others
        model.transformer.wpe.weight[0] *= 100
    found = isospike.measure_ranks(model, batch("gpt2", 2, padded=False), controls=False)
    first = found.sites[0]
    assert first.without_first.stable > 2 * first.collapse.stable
    assert found.sites[1].without_first is None  # of what attention adds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_the_tolerance_of_its_type(dtype):
    found = measure_forward(make("llama").to(dtype), batch("llama", 2))
    assert {row.dtype for row in found.sites} == {str(dtype).removeprefix("torch.")}
    for row in found.sites:
        assert 1 <= row.rank.low <= row.rank.high <= min(row.tokens, row.width)
    assert max(row.summed for row in found.layers) < 8 * torch.finfo(dtype).eps


def test_rotary_and_grouped_heads_are_counted_as_queries():
    found = measure_forward(make("llama"), batch("llama", 2))
    assert {p.result.heads for p in found.projections} == {4}  # of two that hold keys
    wide = make("llama", head_dim=16)  # 4 heads of 16 on 32 channels
    lost = measure_forward(wide, batch("llama", 2)).projections[0].result
    assert (lost.nullity, lost.published_nullity) == (32, 48)
    assert set(lost.verdicts) == {"ambiguous"}


# The report.


def test_a_report_holds_every_layer_site_and_sequence(report):
    assert report.tokens == (9, 3, 8)
    assert len(report.depth) == 2
    assert len(report.sites) == 3 * (1 + 2 * 4)
    assert len(report.norms) == 3 * (1 + 2 * 2)
    assert len(report.heads) == 3 * 2 * 3
    assert [c.name for c in report.controls] == ["new random weights", "tokens in random order"]
    assert "limited by the number of tokens (9 at most)" in report.warnings[0]
    assert report.verdict() == (
        "The tokens do not collapse: the mean cosine of two of them is at most "
        f"{max(row.cosine for row in report.depth):.2f}, after encoder.layer.1. Every head's "
        "output can be recovered from their sum."
    )
    assert (report.provenance.seed, report.provenance.parameters) == (0, {"controls": True})


def test_a_report_survives_json(report):
    again = RankReport.from_json(report.to_json())
    assert again == report
    assert json.loads(report.to_json())["sites"][0]["rank"]["rank"] == 9


def test_controls_are_seeded_and_cut_at_the_width():
    model = make("gpt2", n_embd=6, n_head=2)
    inputs = batch("gpt2", 2, padded=False)
    one, other = (isospike.measure_ranks(model, inputs, seed=3) for _ in range(2))
    assert one.controls == other.controls
    assert [(c.name, c.tokens) for c in one.controls] == [
        ("new random weights", 9), ("tokens in random order", 9), ("first 3 tokens", 3),
        ("first 6 tokens", 6),
    ]  # fmt: skip
    assert one.controls[1].rows != one.depth
    assert isospike.measure_ranks(spiking(), batch("llama", 2)).controls[0].name == (
        "tokens in random order"
    )


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_layers_found_once_serve_the_controls(name):
    model, inputs = make(name), batch(name, 2, padded=False)
    measured = measure_forward(model, inputs)
    other = seeded(lambda: type(model)(model.config).eval(), 1)
    for each in (model, other):
        again = measure_forward(each, inputs, outputs_only=True)
        known = measure_forward(each, inputs, outputs_only=True, like=measured)
        assert known.sites == again.sites
        assert known.heads == again.heads


def test_save_writes_a_page_json_and_every_table(report, tmp_path):
    assert report.save(tmp_path / "deep" / "rank") == tmp_path / "deep" / "rank"
    names = {p.stem for p in (tmp_path / "deep" / "rank").iterdir()}
    assert names == {"report", "isospike", *report.tables()}
    with (tmp_path / "deep" / "rank" / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.sites)
    assert float(rows[0]["cosine"]) == report.sites[0].collapse.cosine
    assert (rows[0]["rank"], rows[0]["rank_low"]) == ("9", "9")
    assert rows[1]["without_first_mu"] == ""  # not measured at this site


def test_a_frame_has_a_column_for_each_measure(report):
    pandas = pytest.importorskip("pandas")
    frame = report.to_frame("sites")
    assert isinstance(frame, pandas.DataFrame)
    names = {"layer", "site", "rank", "rank_gap", "affine", "cosine", "without_first_cosine"}
    assert names <= set(frame)
    assert len(report.to_frame("heads")) == len(report.heads)
    assert list(report.to_frame()["layer"]) == ["encoder.layer.0", "encoder.layer.1"]


def test_every_head_has_a_row_on_its_recovery(report):
    rows = report.tables()["recovery"].rows
    assert len(rows) == 2 * 3
    result = report.projections[0].result
    assert rows[0][4] == result.noise_gains[0]
    assert rows[0][-1] == min(result.angles[0][1:])


def test_the_page_escapes_names_and_draws_every_plot(report):
    page = report.html()
    assert "tiny &lt;b&gt;BERT" in page
    assert "<b>BERT</b>" not in page.split("<main>")[1].split("<script>")[0]
    assert page.count('<figure class="plot"') == 9


@needs_chromium
def test_the_browser_draws_the_page_without_a_word(report, tmp_path):
    dom, log = browse(report.html(), tmp_path)
    assert "CONSOLE" not in log
    assert 'data-errors=""' in dom


# Mistakes.


def no_attention():
    return nn.Sequential(nn.Linear(4, 4))


class Weightless(nn.Module):
    def forward(self, x):
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


def broken(name, where):
    model = make(name)
    with torch.no_grad():
        model.get_parameter(where).view(-1)[0] = math.nan
    return model


def masked(rows):
    inputs = batch("bert", 3)
    inputs["attention_mask"][1] = 0
    inputs["attention_mask"][1, :rows] = 1
    return inputs


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: (no_attention(), {"input": torch.ones(1, 3, 4)}), UnsupportedError,
         "attention or with repeated layers, got a Sequential with neither"),
        (lambda: (Weightless(), {"x": torch.ones(1, 3, 4)}), InputError,
         "a model with weights, got a Weightless without"),
        (lambda: (make("bert"), masked(1)), InputError,
         "at least 2 unpadded tokens in each sequence, got 1 in sequence 1"),
        (lambda: (make("bert"), masked(0)), InputError, "got 0 in sequence 1"),
        (lambda: (make("bert"), {"input_ids": torch.ones(2, 1, dtype=torch.long)}), InputError,
         "got 1 in sequence 0"),
        (lambda: (broken("bert", "encoder.layer.1.attention.self.value.bias"), batch("bert", 2)),
         RangeError, r"finite activations, got nan in encoder.layer.1, attention"),
        (lambda: (broken("gpt2", "transformer.h.0.mlp.c_proj.bias"), batch("gpt2", 2)),
         RangeError, r"got nan in transformer.h.0, output \(sequence 0, token 0"),
        (lambda: (broken("llama", "model.norm.weight"), batch("llama", 2)), RangeError,
         "got nan in model.norm"),
        (lambda: (plain(), {"tokens": torch.ones(2, 5, dtype=torch.long),
                            "mask": torch.ones(2, 5, dtype=torch.bool).fill_(False)}),
         InputError, "at least 2 unpadded tokens"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, error, text):
    model, inputs = call()
    with pytest.raises(error, match=f"^measure_ranks needs .*{text}"):
        isospike.measure_ranks(model, inputs)


def test_a_layer_that_adds_nothing_is_measured_all_the_same():
    model = plain()
    with torch.no_grad():
        model.blocks[0].join.weight.zero_()
    found = isospike.measure_ranks(model, own_inputs("own"), controls=False)
    row = next(s for s in found.sites if s.site == "attention")
    assert row.rank.rank == 0
    assert math.isnan(row.collapse.cosine)
    assert found.projections[0].result.nullity == 16
    assert any("The output projection of blocks.0 is rank-deficient" in w for w in found.warnings)
    assert json.loads(found.to_json())["sites"][1]["collapse"]["cosine"] is None
    found.html()


def test_not_a_number_in_padding_is_not_looked_at():
    model, inputs = make("bert"), batch("bert", 2)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0] = math.nan  # the token of padding
    hidden = inputs["attention_mask"] == 0
    assert hidden.any()
    with pytest.raises(RangeError, match="finite"):  # it reaches the others as 0 times NaN
        isospike.measure_ranks(model, inputs)


# The command.


def run(*arguments):
    return CliRunner().invoke(app, ["rank", *map(str, arguments)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny BERT with a tokenizer, as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    make("bert").save_pretrained(folder)
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    text = folder / "text.txt"
    text.write_text(" ".join("abcdefghij"[(i * i) % 10] for i in range(400)))
    return folder, text


def test_the_command_prints_a_table_and_leaves_a_page(saved, tmp_path):
    folder, text = saved
    done = run(folder, "--text", text, "--tokens", 8, "--out", tmp_path / "r", "--no-controls")
    assert done.exit_code == 0, done.output
    assert "encoder.layer.1" in done.stdout
    assert (tmp_path / "r" / "report.html").exists()
    done = run(folder, "--text", text, "--out", tmp_path / "r", "--no-controls", "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads(done.stdout)["tokens"] == [16, 16]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sequences", "0"), "--sequences from 1 to 64, got 0"),
        (("--tokens", "1"), "--tokens of at least 2, got 1"),
        (("--tokens", "99"), "--tokens of at most 16, which is what this model reads, got 99"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_2(saved, arguments, text, tmp_path):
    folder, file = saved
    done = run(folder, "--text", file, "--out", tmp_path / "none", *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: rank needs ")
    assert not (tmp_path / "none").exists()
    assert run("/no/such/folder").exit_code == 2


def padded(ids, count, left):
    """A batch with padding on one side."""
    parts = [torch.zeros(len(ids), count, dtype=torch.long), ids]
    masks = [torch.zeros(len(ids), count, dtype=torch.long), torch.ones_like(ids)]
    order = slice(None) if left else slice(None, None, -1)
    return {"input_ids": torch.cat(parts[order], 1), "attention_mask": torch.cat(masks[order], 1)}


def figures(report):
    """Every number of a report, but the largest relative error of a recovery."""
    rows = [*report.depth, *(row for control in report.controls for row in control.rows)]
    numbers = [(r.cosine, r.residual, r.entropic, r.ratio, r.entropy) for r in rows]
    numbers += [(s.tokens, s.rank.rank, s.affine.rank, *s.collapse) for s in report.sites]
    numbers += [(n.result.rank.rank, n.result.measured.rank) for n in report.norms]
    numbers += [(h.ratio, h.entropy) for h in report.heads]
    return [c.name for c in report.controls], [x for row in numbers for x in row]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("count", [3, 20, 45])
def test_padding_on_either_side_changes_no_figure(left, count):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, intermediate_size=32,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaModel(config).eval()
    ids = torch.randint(1, 60, (2, 40), generator=torch.Generator().manual_seed(1))
    names, numbers = figures(measure_ranks(model, {"input_ids": ids}))
    own_names, own = figures(measure_ranks(model, padded(ids, count, left)))
    assert own_names == names
    assert len(names) == 4
    assert own == pytest.approx(numbers, rel=1e-3, abs=1e-4, nan_ok=True)


def test_the_first_tokens_of_rows_of_unequal_length_are_their_own():
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(6)[None]}
    batch |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": mask.flip(1)}
    cut = controls._cut(batch | {"use_cache": False}, "input_ids", 2)
    assert cut["input_ids"].tolist() == [[3, 4], [7, 8]]
    assert cut["attention_mask"].tolist() == [[1, 1], [1, 1]]
    assert cut["position_ids"].tolist() == [[2, 3], [0, 1]]
    assert cut["decoder_input_ids"].tolist() == [[6, 5], [9, 8]]
    assert cut["decoder_attention_mask"].tolist() == [[1, 1], [1, 1]]
    assert cut["use_cache"] is False


@pytest.mark.parametrize("decoder", [7, 12])
def test_an_encoder_and_its_decoder_have_masks_of_their_own(decoder):
    from transformers import BartConfig, BartModel

    config = BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1,
                        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
                        decoder_ffn_dim=16, max_position_embeddings=32)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartModel(config).eval()
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    mask, own = torch.ones(2, 12, dtype=torch.long), torch.ones(2, decoder, dtype=torch.long)
    mask[0, 9:], own[1, 4:] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    batch |= {"decoder_input_ids": ids[:, :decoder], "decoder_attention_mask": own}
    report = measure_ranks(model, batch, controls=False)
    tokens = {(site.layer, site.sequence): site.tokens for site in report.sites}
    assert tokens == {
        ("encoder.layers.0", 0): 9, ("encoder.layers.0", 1): 12,
        ("decoder.layers.0", 0): decoder, ("decoder.layers.0", 1): 4,
        ("decoder.layers.0, cross attention", 0): decoder,
        ("decoder.layers.0, cross attention", 1): 4,
    }  # fmt: skip
    assert report.tokens == (max(9, decoder), 12)


class Unprojected(torch.nn.Module):
    """A layer whose attention no linear layer follows."""

    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + y.transpose(1, 2).flatten(2)


class Stack(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_layer_without_a_projection_is_named():
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedError, match=r"got layers.0, layers.1 of Stack without one\. Me"):
        measure_ranks(Stack(Unprojected(), Unprojected()), {"x": x}, controls=False)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"input_ids": [[1, 2, 3]]}, "needs tensors, got list for input_ids. Ask the tokenizer"),
        ({"input_ids": np.ones((1, 3))}, "needs tensors, got ndarray for input_ids"),
        ({}, "needs a batch with rows, got none"),
        ({"tokens": torch.zeros(0, 3, dtype=torch.long)}, "needs a batch with rows, got none"),
    ],
)
def test_a_batch_that_is_none_is_refused_by_name(batch, text):
    with pytest.raises(InputError, match=text):
        measure_ranks(Transformer(20, 16, 2, 1), batch)
