"""Inputs of the models of the zoo, random, by what is read: text, images, sound, series."""

from typing import Any

import torch
from torch import Generator, Tensor

WORDS, TOKENS = 100, 12
FIRST = 5  # smaller tokens are padding and marks


def lengths(rows: int, g: Generator, longest: int = TOKENS) -> Tensor:
    """Lengths of rows, both ends of the range among them."""
    drawn = torch.randint(4, longest + 1, (rows,), generator=g)
    drawn[0] = longest
    drawn[1:2] = 4
    return drawn


def text(rows: int, g: Generator, tokens: int = TOKENS) -> dict[str, Any]:
    """Tokens, padded on the right."""
    ids = torch.randint(FIRST, WORDS, (rows, tokens), generator=g)
    mask = (torch.arange(tokens) < lengths(rows, g, tokens)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def left(rows: int, g: Generator) -> dict[str, Any]:
    """Tokens, padded on the left."""
    return {name: value.flip(1) for name, value in text(rows, g).items()}


def unpadded(rows: int, g: Generator) -> dict[str, Any]:
    """Tokens without a mask."""
    return {"input_ids": torch.randint(FIRST, WORDS, (rows, TOKENS), generator=g)}


def seq2seq(rows: int, g: Generator, tokens: int = TOKENS) -> dict[str, Any]:
    """Tokens of an encoder and, fewer, of a decoder."""
    target = torch.randint(FIRST, WORDS, (rows, 7), generator=g)
    return {**text(rows, g, tokens), "decoder_input_ids": target}


def images(rows: int, g: Generator, size: int = 32) -> dict[str, Any]:
    """Square images of three colours."""
    return {"pixel_values": torch.randn(rows, 3, size, size, generator=g)}


def sound(rows: int, g: Generator, length: int = 400) -> dict[str, Any]:
    """Samples of sound."""
    return {"input_values": torch.randn(rows, length, generator=g)}


def spectrum(rows: int, g: Generator, bands: int = 8, frames: int = 16) -> dict[str, Any]:
    """Frames of a spectrum, ``[rows, bands, frames]``."""
    return {"input_features": torch.randn(rows, bands, frames, generator=g)}
