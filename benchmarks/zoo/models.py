"""Every model of the zoo: importing this registers them."""

from benchmarks.zoo import audio, decoders, seq2seq, series, text, vision  # noqa: F401
