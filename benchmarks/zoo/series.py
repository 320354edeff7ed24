"""Models of time series and of decisions."""

import torch

from benchmarks.zoo.registry import Shelf

# fmt: off


def past(rows, g):
    """Two channels, 32 steps."""
    return {"past_values": torch.randn(rows, 32, 2, generator=g)}


def windows(rows, g):
    """One channel with its future, its lags and one time feature."""
    return {
        "past_values": torch.randn(rows, 15, generator=g).abs(),
        "past_time_features": torch.randn(rows, 15, 1, generator=g),
        "past_observed_mask": torch.ones(rows, 15),
        "future_values": torch.randn(rows, 4, generator=g).abs(),
        "future_time_features": torch.randn(rows, 4, 1, generator=g),
    }


def single(rows, g):
    """One channel, 32 steps, and its frequency."""
    return {"past_values": torch.randn(rows, 32, generator=g),
            "past_values_padding": torch.zeros(rows, 32),
            "freq": torch.zeros(rows, 1, dtype=torch.long)}


def listed(rows, g):
    """One channel, 32 steps."""
    return {"past_values": torch.randn(rows, 32, generator=g)}


def played(rows, g):
    """States, actions and rewards of 6 steps."""
    return {
        "states": torch.randn(rows, 6, 5, generator=g),
        "actions": torch.randn(rows, 6, 3, generator=g),
        "rewards": torch.randn(rows, 6, 1, generator=g),
        "returns_to_go": torch.randn(rows, 6, 1, generator=g),
        "timesteps": torch.arange(6).expand(rows, 6).clone(),
        "attention_mask": torch.ones(rows, 6),
    }


PATCHES = {"num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4,
           "num_hidden_layers": 2, "d_model": 32, "num_attention_heads": 4, "ffn_dim": 64,
           "prediction_length": 4, "num_layers": 2}
add = Shelf("time series", past, **PATCHES).add
add("PatchTST", "PatchTSTForPrediction")
add("PatchTST channel attention", "PatchTSTForPrediction", channel_attention=True)
add("PatchTSMixer", "PatchTSMixerForPrediction", mode="mix_channel")
FORMER = {"prediction_length": 4, "context_length": 8, "num_time_features": 1, "d_model": 32,
          "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
          "lags_sequence": [1, 2, 3, 4, 5, 6, 7]}
former = Shelf("time series", windows, **FORMER).add
former("TimeSeriesTransformer", "TimeSeriesTransformerForPrediction")
former("TimeSeriesTransformer base", "TimeSeriesTransformerModel")
former("Informer", "InformerModel")
former("Autoformer", "AutoformerModel", label_length=4, moving_average=3)
PATCHED = {"patch_length": 8, "context_length": 32, "horizon_length": 8, "num_hidden_layers": 2,
           "hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_attention_heads": 4}
Shelf("time series", single, **PATCHED).add("TimesFM", "TimesFmModel")
Shelf("time series", listed, **PATCHED).add(
    "TimesFM 2.5", "TimesFm2_5Model", num_key_value_heads=4, output_quantile_len=8)
Shelf("time series", played).add(
    "Decision Transformer", "DecisionTransformerModel", state_dim=5, act_dim=3, hidden_size=32,
    n_layer=2, n_head=4, max_ep_len=16, n_positions=64)
