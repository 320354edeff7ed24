"""Sentence embeddings on spikes: the mean of a port's output over the tokens, of length 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isospike import progress
from isospike.errors import InputError
from isospike.hf.load import (
    BATCH,
    TextModel,
    find_port,
    load_tokenizer,
    quiet_transformers,
    wrap_foreign_errors,
)
from isospike.porting.files import load


class Embeddings(NamedTuple):
    """Embeddings of sentences, in their order.

    Attributes:
        vectors: One row of length 1 for each sentence.
        norms: The length of each row before it was scaled.
        cut: How many sentences have more tokens than the model reads.
    """

    vectors: Float[Tensor, "sentences width"]
    norms: Float[Tensor, " sentences"]
    cut: int


def load_text_port(folder: str | Path, execution: str | None = None) -> TextModel:
    """Load a port with its tokenizer.

    Args:
        folder: A folder that ``isospike port`` wrote.
        execution: ``collapsed`` or ``stepped``; as saved by default.

    Returns:
        The ported model, its tokenizer and its name.

    Raises:
        InputError: The folder holds no port, or no usable tokenizer.
        UnsupportedError: transformers cannot build the model.
    """
    source = find_port(folder)
    progress.update(f"load {source.name}", 0, 1)
    quiet_transformers()
    needs = f"load_text_port needs a port that transformers can load, {source.place!r}"
    with wrap_foreign_errors(needs, "Port the model again."):
        model = load(source.place, execution=execution)
    tokenizer = load_tokenizer(source.place)
    progress.update(f"load {source.name}", 1, 1)
    return TextModel(model, tokenizer, source.name)


def embed(
    port: Any, sentences: Sequence[str], *, tokenizer: Any = None
) -> Float[Tensor, "sentences width"]:
    """Embed sentences on spikes: the mean output over the tokens of each, scaled to length 1.

    Args:
        port: A folder that ``isospike port`` wrote, or a `Port`, or its model.
        sentences: Texts, each with at least one token. Longer ones are cut to what the model reads.
        tokenizer: The tokenizer of the model; a folder of ``isospike port`` holds its own.

    Returns:
        One row for each sentence, in their order.

    Raises:
        InputError: The folder holds no port, a tokenizer is missing, a sentence has no token, or
            an output is not finite.
    """
    if isinstance(port, str | Path):
        text_model = load_text_port(port)
        if tokenizer is not None:
            text_model = TextModel(text_model.model, tokenizer, text_model.name)
    elif tokenizer is None:
        raise InputError(
            "embed needs a tokenizer for a model in memory, got none. Pass tokenizer=, or the "
            "folder that isospike port wrote."
        )
    else:
        text_model = TextModel(getattr(port, "model", port), tokenizer, "the port")
    return embed_text(text_model, sentences).vectors


def embed_text(text_model: TextModel, sentences: Sequence[str]) -> Embeddings:
    """The embeddings of `embed`, with their norms and the number of sentences that were cut.

    Args:
        text_model: A model with its tokenizer.
        sentences: Texts, each with at least one token.

    Returns:
        Vectors and norms in the order of the sentences.

    Raises:
        InputError: A sentence has no token, or an output is not finite.
    """
    tokens = text_model.tokenizer(list(sentences), verbose=False)["input_ids"] if sentences else []
    lengths = [len(ids) for ids in tokens]
    if not lengths or not all(lengths):
        empty = repr(sentences[lengths.index(0)]) if lengths else "no sentence"
        raise InputError(
            f"embed needs sentences of at least one token, got {empty}. Leave empty ones out."
        )
    order = sorted(range(len(lengths)), key=lengths.__getitem__)  # like with like: little padding
    body = text_model.model.base_model  # of a model with a head, the part below it
    rows: list[Tensor] = [torch.empty(0)] * len(order)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = text_model.batch([sentences[i] for i in chosen], text_model.longest)
        with torch.inference_mode():
            hidden = body(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        means = (hidden * mask).sum(1) / mask.sum(1)
        for i, mean in zip(chosen, means, strict=True):
            rows[i] = mean
        progress.update("embed", start + len(chosen), len(order))
    means = torch.stack(rows).float()
    if not bool(means.isfinite().all()):
        raise InputError("embed needs finite outputs, got NaN or infinity. Port the model again.")
    norms = means.norm(dim=1, keepdim=True)
    cut = sum(length > text_model.longest for length in lengths)
    return Embeddings(means / norms.clamp_min(1e-12), norms[:, 0], cut)
