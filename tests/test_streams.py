"""Models that read several inputs side by side: each has its mask, its error and its figures."""

import functools

import models
import pytest
import torch
import transformers

import isospike
from isospike.porting.report import PortReport


def draw(rows, seed, tokens=9):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (rows, tokens), generator=g)
    mask = torch.arange(tokens) < torch.randint(3, tokens + 1, (rows,), generator=g)[:, None]
    return ids * mask, mask.long()


def pairs(rows, seed):
    """Text of an encoder, and labels of fewer tokens from which the decoder's text is made."""
    ids, mask = draw(rows, seed)
    target, kept = draw(rows, seed + 50, 6)
    return {"input_ids": ids, "attention_mask": mask,
            "labels": target.masked_fill(kept == 0, -100)}  # fmt: skip


@functools.cache
def t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    build = lambda: transformers.T5ForConditionalGeneration(config)  # noqa: E731
    model = models.seeded(lambda: models.scatter(build()).eval())
    return isospike.port(model, [pairs(24, 1)], evaluation=[pairs(8, 2)])


def captions(rows, seed):
    ids, mask = draw(rows, seed)
    g = torch.Generator().manual_seed(seed)
    return {"input_ids": ids, "attention_mask": mask,
            "pixel_values": torch.randn(rows, 3, 8, 8, generator=g)}  # fmt: skip


@functools.cache
def clip():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=8,
    )  # fmt: skip
    model = models.seeded(lambda: models.scatter(transformers.CLIPModel(config)).eval())
    return isospike.port(model, [captions(24, 1)], evaluation=[captions(8, 2)])


def test_an_encoder_and_a_decoder_count_their_own_tokens():
    encoder, decoder = t5().report.streams
    batch = pairs(8, 2)
    assert (encoder.name, encoder.unit, encoder.output) == (
        "encoder", "token", "encoder_last_hidden_state")  # fmt: skip
    assert encoder.positions == int(batch["attention_mask"].sum())
    assert (decoder.name, decoder.unit, decoder.output) == ("decoder", "token", "")
    assert decoder.positions == int((batch["labels"] != -100).sum())
    assert t5().report.held_out_tokens == decoder.positions
    assert t5().report.calibration_tokens == int((pairs(24, 1)["labels"] != -100).sum())


def test_a_site_has_its_channels_for_each_position_of_its_input():
    report = t5().report
    counts = {s.name: s.positions for s in report.streams}
    channels = {"encoder.block.0.layer.1.DenseReluDense.wo": 24,
                "decoder.block.0.layer.0.SelfAttention.q": 16,
                "decoder.block.0.layer.1.EncDecAttention.k": 16}  # fmt: skip
    streams = {s.name: s.stream for s in report.sites}
    assert [streams[name] for name in channels] == ["encoder", "decoder", "encoder"]
    for site in report.sites:
        if site.name in channels:
            own = site.values * report.held_out_tokens / counts[site.stream]
            assert own == pytest.approx(channels[site.name])


def test_the_error_of_an_input_is_that_of_the_output_made_of_it():
    batch = pairs(8, 2)
    model = t5()._builder.discovery.model
    with torch.no_grad():
        x, y = (m(**batch).encoder_last_hidden_state for m in (model, t5().model))
    kept = batch["attention_mask"].bool()
    assert t5().report.streams[0].error == pytest.approx(
        models.relative(x[kept].double(), y[kept].double()), rel=1e-6
    )
    assert t5().report.streams[1].error == t5().report.error


def test_images_and_text_have_their_own_figures():
    report = clip().report
    text, image = report.streams
    assert (text.name, text.output, text.unit) == ("text", "text_embeds", "token")
    assert (image.name, image.output, image.unit) == ("image", "image_embeds", "image")
    assert text.positions == int(captions(8, 2)["attention_mask"].sum())
    assert image.positions == 8
    assert image.values > text.values
    assert all(0 < s.error < 0.1 for s in report.streams)


def test_the_report_shows_each_input(tmp_path):
    report = t5().report
    assert PortReport.from_json(report.to_json()) == report
    assert "encoder_last_hidden_state" in report.headline()["Error"]
    assert report.tables()["streams"].names[0] == "name"
    assert "error, encoder" in isospike.compare(report, report).measures


def test_a_model_with_one_input_has_no_streams():
    port = isospike.port(models.make("bert", num_hidden_layers=1), models.batches("bert", 16, 4))
    assert not port.report.streams
    assert not port.report.choices
    assert not any(site.stream for site in port.report.sites)
