"""``isospike embed`` and ``generate``: use a port that was saved."""

import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from isospike.cli.app import command
from isospike.cli.emit import Outcome, note
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.hf.load import TextModel, find_port
from isospike.report.files import check_file

SHOWN_LINES = 20
NUMPY = b"\x93NUMPY"  # what a file of NumPy begins with
MOST_TOKENS = 1_000_000


@command(
    "Port",
    examples=("isospike embed out/minilm --text lines.txt --out lines.npy",),
    smaller="--text",
)
def embed(
    port: Path,
    *,
    text: Path,
    execution: str | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    tokens: int | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> Outcome:
    """Embed every line of a text on spikes.

    An embedding is the model's output pooled over the tokens of a line, as the folder's
    sentence-transformers files say (their mean where there are none), and scaled to length 1.
    Empty lines are skipped. --json prints one list per line of text; without it or --out, a short
    table is printed.

    Args:
        text: UTF-8 text, one sentence per line; ``-`` for standard input.
        execution (MODE): ``collapsed``, fast, or ``stepped``, every time step. Up to 255 levels (8
            steps of the default code) both give the same bits; above, they agree to about 1e-6.
            [default: as saved]
        batch_size: Number of lines that are computed at once.
        tokens: Most tokens of a line to read; the rest is cut off. [default: as saved]
        out (FILE.npy): Write all embeddings, one row per line of text, as a NumPy array.
    """
    if out is not None:
        _check_array(out, text, as_json)
    from isospike.data import read_text

    find_port(port)
    lines = [line.strip() for line in read_text(text).split("\n") if line.strip()]
    from isospike.porting.embed import check_amounts, embed_text, load_text_port
    from isospike.tensors import check_device

    check_amounts(batch_size, tokens)
    check_device("embed", device)
    text_model = load_text_port(port, execution)
    text_model.model.to(device)
    found = embed_text(text_model, lines, batch_size, tokens)
    if found.cut:
        note(
            "note",
            f"{found.cut} of {len(lines)} lines are longer than the model reads; it read the first "
            f"{tokens or text_model.longest_embedded} tokens of each.",
        )
    if out is not None:
        _write_array(out, found.vectors)
        note("wrote", f"{len(lines)} embeddings of {found.vectors.shape[1]} numbers to {out}")
        return Outcome(data="")
    rows = ([float(f"{value:.9g}") for value in row] for row in found.vectors.tolist())
    data = "\n".join(json.dumps(row, allow_nan=False) for row in rows) if as_json else ""
    return Outcome(data=data, text=_table(lines, found.vectors, found.norms))


@command("Port", examples=("isospike generate out/my-gpt2 --prompt 'Once upon a time'",))
def generate(
    port: Path,
    *,
    prompt: str,
    tokens: int = 50,
    temperature: float = 0.0,
    seed: int | None = None,
    execution: str | None = None,
    as_json: bool = False,
) -> Outcome:
    """Continue a prompt on spikes, token by token.

    The port must be of a causal language model, such as GPT-2 or Llama.

    Args:
        prompt (TEXT): Text to continue.
        tokens: Number of tokens to add, at most.
        temperature: 0 takes the likeliest token each time; above 0 a token is drawn at random, the
            more evenly the larger it is.
        seed: Seed of the random draws. [default: a new one every time]
        execution (MODE): ``collapsed``, fast, or ``stepped``, every time step. Up to 255 levels (8
            steps of the default code) both give the same bits; above, they agree to about 1e-6.
            [default: as saved]
    """
    if not 1 <= tokens <= MOST_TOKENS:
        raise RangeError(
            f"generate needs tokens of at least 1 and at most {MOST_TOKENS}, got {tokens}. Try 50."
        )
    if not 0 <= temperature < math.inf:
        raise RangeError(f"generate needs temperature of at least 0, got {temperature}. Try 0.8.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError(
            "generate needs prompt in UTF-8, got other bytes. Check your terminal."
        ) from None
    find_port(port)
    from isospike.porting.embed import load_text_port

    text_model = load_text_port(port, execution)
    run = partial(_generate, text_model, prompt, tokens, temperature, seed)
    return Outcome(
        data={"prompt": prompt, "text": run()} if as_json else None, text=partial(run, shown=True)
    )


def _generate(
    text_model: TextModel, prompt: str, tokens: int, temperature: float, seed: int | None,
    shown: bool = False,
) -> str:  # fmt: skip
    """The prompt and its continuation; written to stdout as it comes, if it is shown."""
    import torch
    from transformers import TextStreamer

    model, tokenizer = text_model.model, text_model.tokenizer
    if not model.can_generate():
        raise UnsupportedError(
            f"generate needs a causal language model, got the encoder {type(model).__name__}. Use "
            "isospike embed."
        )
    start = text_model.batch([prompt])
    given = start["input_ids"].shape[1]
    room = getattr(model.config, "max_position_embeddings", None) or math.inf
    if given == 0:
        raise InputError(
            f"generate needs prompt of at least one token, got {prompt!r}. Give a word to start "
            "from."
        )
    if given + tokens > room:
        raise RangeError(
            f"generate needs prompt and --tokens within the model's {room} positions, got {given} "
            f"and {tokens}. Ask for fewer."
        )
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # Nothing but the temperature shapes the draw.
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
    ids = model.generate(
        **start,
        **how,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True) if shown else None,
    )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def _check_array(out: Path, text: Path, as_json: bool) -> None:
    if as_json:
        raise InputError("embed needs --out or --json, got both. Choose one.")
    if out.suffix != ".npy":
        raise InputError(f"embed needs out FILE.npy, got {str(out)!r}. Name it .npy.")
    if not out.absolute().parent.is_dir():
        raise InputError(
            f"embed needs out in an existing folder, got {str(out)!r}. Create the folder."
        )
    check_file(out, text)
    if out.exists() and not _is_array(out):
        raise InputError(
            f"embed needs out to be new or a NumPy array, got another file {str(out)!r}. Name "
            "another."
        )


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(NUMPY)) in (NUMPY, b"")


def _table(lines: list[str], vectors: Any, norms: Any) -> Any:
    from rich.console import Group

    from isospike.report.table import Table

    rows = [
        (
            line if len(line) <= 40 else f"{line[:39]}…",
            "  ".join(f"{value:+.4f}" for value in vector[:4].tolist()),
            norm.item(),
        )
        for line, vector, norm in zip(lines[:SHOWN_LINES], vectors, norms, strict=False)
    ]
    head = ("line", f"first 4 of {vectors.shape[1]} numbers", "norm")
    table = Table("Embeddings", head, tuple(rows), formats=("", "", ".3f")).rich()
    more = len(lines) - SHOWN_LINES
    return Group(table, f"and {more} more; --out FILE.npy writes all") if more > 0 else table


def _write_array(path: Path, array: Any) -> None:
    import numpy as np

    from isospike.report.files import write_file

    packed = io.BytesIO()
    np.save(packed, array.numpy(), allow_pickle=False)
    write_file(path, packed.getvalue())
