"""Models of sound."""

from functools import partial

import torch

from benchmarks.zoo.inputs import FIRST, WORDS, lengths, sound, spectrum
from benchmarks.zoo.registry import Shelf

# fmt: off
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "pad_token_id": 0}
WAVES = {**SIZES, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8],
         "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
         "apply_spec_augment": False, "layerdrop": 0.0}
SPEECH = {"vocab_size": WORDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
          "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
          "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
          "decoder_start_token_id": 1, "max_source_positions": 32, "max_target_positions": 64}


def padded(rows, g):
    """Sound of several lengths."""
    batch = sound(rows, g)
    mask = (torch.arange(400) < 40 * lengths(rows, g, 10)[:, None]).long()
    return {"input_values": batch["input_values"] * mask, "attention_mask": mask}


def with_target(inputs):
    """The same with the tokens of a decoder."""
    def both(rows, g):
        target = torch.randint(FIRST, WORDS, (rows, 6), generator=g)
        return {**inputs(rows, g), "decoder_input_ids": target}
    return both


def pages(rows, g):
    """A spectrum as a picture, ``[rows, frames, bands]``."""
    return {"input_values": torch.randn(rows, 24, 16, generator=g)}


def bands(rows, g):
    """Frames of features, ``[rows, frames, bands]``, of several lengths."""
    mask = (torch.arange(24) < 2 * lengths(rows, g)[:, None]).long()
    features = torch.randn(rows, 24, 8, generator=g)
    return {"input_features": features * mask[..., None], "attention_mask": mask}


def codes(rows, g):
    """Tokens of four codebooks, row by row."""
    return {"input_ids": torch.randint(0, WORDS, (4 * rows, 10), generator=g)}


wave = Shelf("audio", padded, **WAVES).add
wave("Wav2Vec2 CTC", "Wav2Vec2ForCTC")
wave("HuBERT", "HubertModel")
wave("WavLM", "WavLMModel", num_buckets=8, max_bucket_distance=16)
wave("UniSpeech", "UniSpeechModel")
speech = Shelf("audio", with_target(spectrum), spectrum, **SPEECH).add
speech("Whisper", "WhisperForConditionalGeneration", with_target(partial(spectrum, frames=64)),
       partial(spectrum, frames=64), num_mel_bins=8, begin_suppress_tokens=None)
speech("Speech2Text", "Speech2TextForConditionalGeneration", with_target(bands), bands,
       input_feat_per_channel=8, conv_channels=16, max_source_positions=64)


def whisper_encoder():
    """Half of a Whisper."""
    import transformers as t

    return t.WhisperModel(t.WhisperConfig(**SPEECH, num_mel_bins=8)).get_encoder()


Shelf("audio", partial(spectrum, frames=64)).built("Whisper encoder", whisper_encoder)
hear = Shelf("audio", sound, **SIZES)
hear.add("AST", "ASTModel", pages, patch_size=8, frequency_stride=8, time_stride=8, max_length=24,
         num_mel_bins=16)
hear.add("Wav2Vec2-BERT", "Wav2Vec2BertModel", bands, feature_projection_input_dim=8,
         apply_spec_augment=False, layerdrop=0.0, conv_depthwise_kernel_size=5)
Shelf("audio", with_target(partial(sound, length=4000)), partial(sound, length=4000)).add(
    "Moonshine", "MoonshineForConditionalGeneration", **SIZES, encoder_num_hidden_layers=2,
    decoder_num_hidden_layers=2, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
    bos_token_id=1, eos_token_id=None, decoder_start_token_id=1, max_position_embeddings=64)
hear.add("MusicGen decoder", "MusicgenForCausalLM", codes, ffn_dim=64, num_codebooks=4,
         bos_token_id=WORDS)


def heard(rows, g):
    """A picture of sound, for CLAP."""
    return {"input_features": torch.randn(rows, 1, 32, 16, generator=g)}


Shelf("audio", heard).add("CLAP audio", "ClapAudioModel", num_mel_bins=16, spec_size=32,
    patch_size=4, patch_stride=[4, 4], window_size=4, depths=[2, 2], num_attention_heads=[2, 4],
    patch_embeds_hidden_size=16, hidden_size=32, num_hidden_layers=2, mlp_ratio=2.0)
Shelf("audio", lambda n, g: {"input_values": torch.randn(n, 1, 160, generator=g)}).add(
    "Encodec", "EncodecModel", hidden_size=16, num_filters=4, upsampling_ratios=[4, 2],
    num_lstm_layers=1, codebook_size=16, target_bandwidths=[24.0])
