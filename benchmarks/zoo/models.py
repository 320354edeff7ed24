"""Every model of the zoo: importing this registers them."""

from benchmarks.zoo import (
    audio,
    decoders,
    multimodal,
    plain,
    seq2seq,
    series,
    text,
    variants,
    vision,
)  # noqa: F401
