"""Sentence embeddings on spikes: a port's outputs, pooled as its model was, of length 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isospike import progress
from isospike.errors import InputError, RangeError
from isospike.hf.load import (
    BATCH,
    TextModel,
    find_port,
    load_tokenizer,
    quiet_transformers,
)
from isospike.hf.pooling import read_pooling
from isospike.porting.files import load_from, read_config, reads_probe
from isospike.report.files import open_folder

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")  # one of the two is always there


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


def load_text_port(
    folder: str | Path, execution: str | None = None, *, tokenizer: Any = None
) -> TextModel:
    """Load a port with its tokenizer.

    Args:
        folder: A folder that ``isospike port``, ``save_pretrained`` or sentence-transformers wrote,
            or a name on the hub.
        execution: ``collapsed`` or ``stepped``; as saved by default.
        tokenizer: The tokenizer of the model; that in the folder by default.

    Returns:
        The ported model, its tokenizer and its name.

    Raises:
        InputError: The folder holds no port, or no usable tokenizer.
        UnsupportedError: transformers cannot build the model.
    """
    source = find_port(folder)
    progress.update(f"load {source.name}", 0, 1)
    quiet_transformers()
    place = Path(source.place)
    if tokenizer is None and not any((place / name).is_file() for name in _TOKENIZERS):
        # transformers would make up one that knows no word.
        raise InputError(
            f"load_text_port needs a tokenizer beside the port, got none in {str(folder)!r}. "
            "Save it with port.save(folder, tokenizer)."
        )
    with open_folder(place) as snapshot:
        spec, _ = read_config(snapshot)
        if tokenizer is None:
            tokenizer = load_tokenizer(source.place)
            if spec.tokenizer and reads_probe(tokenizer) != spec.tokenizer:
                raise InputError(
                    "load_text_port needs the tokenizer that the port was saved with, got another "
                    f"in {str(folder)!r}. Save the port again with its own."
                )
        model = load_from(snapshot, execution)
    progress.update(f"load {source.name}", 1, 1)
    return TextModel(model, tokenizer, source.name, read_pooling(source.place))


def embed(
    port: Any,
    sentences: Sequence[str],
    *,
    tokenizer: Any = None,
    batch_size: int = BATCH,
    tokens: int | None = None,
) -> Float[Tensor, "sentences width"]:
    """Embed sentences on spikes: the outputs over the tokens of each, pooled, scaled to length 1.

    They are pooled as sentence-transformers says in the folder of the model that was ported; for
    other models the mean is taken.

    Args:
        port: A folder that ``isospike port`` wrote, or a `Port`, or its model.
        sentences: Texts, each with at least one token. Longer ones are cut to what the model reads.
        tokenizer: The tokenizer of the model; a folder of ``isospike port`` holds its own.
        batch_size: Sentences that are read at once.
        tokens: Most tokens of a sentence that are read; by default what the model's files say.

    Returns:
        One row for each sentence, in their order.

    Raises:
        InputError: The folder holds no port, a tokenizer is missing, a sentence has no token, or
            an output is not finite.
        RangeError: ``batch_size`` is below 1, or ``tokens`` not in what the model reads.
        UnsupportedError: The model's embeddings take more than pooling.

    >>> embed("out/minilm", ["hello", "good day"]).shape  # doctest: +SKIP
    torch.Size([2, 384])
    """
    if isinstance(port, str | Path):
        text_model = load_text_port(port, tokenizer=tokenizer)
    elif tokenizer is None:
        raise InputError(
            "embed needs a tokenizer for a model in memory, got none. Pass tokenizer=, or the "
            "folder that isospike port wrote."
        )
    else:
        text_model = TextModel(getattr(port, "model", port), tokenizer, "the port")
    return embed_text(text_model, sentences, batch_size, tokens).vectors


def embed_text(
    text_model: TextModel,
    sentences: Sequence[str],
    batch_size: int = BATCH,
    tokens: int | None = None,
) -> Embeddings:
    """The embeddings of `embed`, with their norms and the number of sentences that were cut.

    Args:
        text_model: A model with its tokenizer.
        sentences: Texts, each with at least one token.
        batch_size: Sentences that are read at once.
        tokens: Most tokens of a sentence that are read; by default what the model's files say.

    Returns:
        Vectors and norms in the order of the sentences.

    Raises:
        InputError: A sentence has no token, or an output is not finite.
        RangeError: ``batch_size`` is below 1, or ``tokens`` not in what the model reads.
        UnsupportedError: The model's embeddings take more than pooling.
    """
    pooling, longest = text_model.pooling, tokens or text_model.longest_embedded
    pooling.check()
    check_amounts(batch_size, tokens)
    if tokens is not None and tokens > text_model.longest:
        raise RangeError(
            f"embed needs tokens from 1 to {text_model.longest}, which is what this model reads, "
            f"got {tokens}. Choose a number in that range."
        )
    sentences = [s.lower() for s in sentences] if pooling.lower else sentences
    ids = text_model.tokenizer(list(sentences), verbose=False)["input_ids"] if sentences else []
    lengths = [len(row) for row in ids]
    if not lengths or not all(lengths):
        empty = repr(sentences[lengths.index(0)]) if lengths else "no sentence"
        raise InputError(
            f"embed needs sentences of at least one token, got {empty}. Leave empty ones out."
        )
    order = sorted(range(len(lengths)), key=lengths.__getitem__)  # like with like: little padding
    body = text_model.model.base_model  # of a model with a head, the part below it
    rows: list[Tensor] = [torch.empty(0)] * len(order)
    device = next(body.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = text_model.batch([sentences[i] for i in chosen], longest)
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.inference_mode():
            hidden = body(**batch).last_hidden_state
        pooled = pool(hidden, batch["attention_mask"], pooling.mode)
        for i, row in zip(chosen, pooled, strict=True):
            rows[i] = row
        progress.update("embed", start + len(chosen), len(order))
    vectors = torch.stack(rows).float().cpu()
    if not bool(vectors.isfinite().all()):
        raise InputError("embed needs finite outputs, got NaN or infinity. Port the model again.")
    norms = vectors.norm(dim=1, keepdim=True)
    cut = sum(length > longest for length in lengths)
    return Embeddings(vectors / norms.clamp_min(1e-12), norms[:, 0], cut)


def check_amounts(batch_size: int, tokens: int | None) -> None:
    """Raise RangeError unless both are above 0; which tokens a model reads is not known yet."""
    if batch_size < 1:
        raise RangeError(f"embed needs batch_size of at least 1, got {batch_size}. Try {BATCH}.")
    if tokens is not None and tokens < 1:
        raise RangeError(f"embed needs tokens of at least 1, got {tokens}. Leave it out for all.")


def pool(
    hidden: Float[Tensor, "rows tokens width"], mask: Int[Tensor, "rows tokens"], mode: str
) -> Float[Tensor, "rows width"]:
    """One vector for each row, from the outputs over its tokens.

    Args:
        hidden: Outputs of the model, padded on the right.
        mask: 1 for a token, 0 for padding.
        mode: One of :data:`isospike.hf.pooling.MODES`.

    Returns:
        The vectors, not scaled.
    """
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if mode == "max":
        return hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)
    weight = mask.to(hidden.dtype)
    if mode == "weightedmean":
        weight = weight.cumsum(1) * weight
    total, count = (hidden * weight[:, :, None]).sum(1), weight.sum(1, keepdim=True)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)
