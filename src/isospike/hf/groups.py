"""Texts of every length as batches, each padded only to the longest of its own rows."""

import math
from collections.abc import Sequence
from typing import Any

from isospike.errors import InputError, RangeError
from isospike.hf.load import LETTERS, TextModel, wrap_foreign_errors

TOKENS = 8192
LONGEST = 512
SHORTEST = 8

Row = dict[str, list[int]]


def group_by_length(
    text_model: TextModel, texts: Sequence[str], tokens: int = TOKENS, longest: int = LONGEST
) -> list[dict[str, Any]]:
    """Choose texts of every length that a model reads, a batch for each octave of lengths.

    The longest batch has rows of up to ``longest`` tokens, the next of up to half as many, and so
    on down to 8. Each gets the same share of ``tokens``, from texts that are evenly spaced over
    those of its lengths. A text that is too long is cut into windows; where an octave has too few
    texts, windows of all texts one after the other, again and again if need be, make up for them.
    One row at least is as long as can be, so that every position is read. No choice is random.

    Args:
        text_model: A model and its tokenizer.
        texts: In any order; those of a kind one after the other are all represented.
        tokens: About how many unpadded tokens all batches have; at least one row for each length.
        longest: Most tokens of a row, if the model reads so many; at least 8.

    Returns:
        Batches as of :meth:`TextModel.batch`, the shortest rows first.

    Raises:
        RangeError: ``tokens`` or ``longest`` is less than 8.
        InputError: There is no text, or the tokenizer does not know it or does not fit the model.
        UnsupportedError: The tokenizer cannot read a text.
    """
    for name, given in (("tokens", tokens), ("longest", longest)):
        if given < SHORTEST:
            raise RangeError(
                f"group_by_length needs {name} of at least {SHORTEST}, got {given}. Give more."
            )
    if not texts:
        raise InputError("group_by_length needs at least one text, got none. Give some.")
    longest = min(longest, text_model.longest)
    rows = _windows(text_model, texts, longest)
    special = text_model.tokenizer.num_special_tokens_to_add()
    again = longest // max(1, sum(_length(row) - special for row in rows)) + 1
    stream = "\n".join([*texts] * again)
    octaves = max(1, math.ceil(math.log2(longest / SHORTEST)) + 1)
    budget, most, batches = tokens // octaves, longest, []
    for octave in range(octaves):
        least = 1 if octave == octaves - 1 else most // 2 + 1
        chosen = _spread([row for row in rows if least <= _length(row) <= most], budget)
        missing = budget - sum(map(_length, chosen))
        full = any(_length(row) == most for row in chosen)
        if missing > most // 2 or not (chosen if octave else full):
            pieces = _pieces(stream, max(1, missing // most), LETTERS * most)
            chosen += [
                r for r in _windows(text_model, pieces, most, cut=True) if _length(r) == most
            ]
        if chosen:
            batches.append(text_model.pad(chosen))
        most = least - 1
    text_model.check_known(batches)
    return batches[::-1]


def _windows(
    text_model: TextModel, texts: Sequence[str], longest: int, *, cut: bool = False
) -> list[Row]:
    """The tokens of each text, a long one in windows or cut; none without a token."""
    tokenizer = text_model.tokenizer
    with wrap_foreign_errors("the tokenizer cannot read this text", "Try another text."):
        found = tokenizer(
            list(texts), truncation=True, max_length=longest, return_attention_mask=True,
            return_overflowing_tokens=tokenizer.is_fast and not cut,
        )  # fmt: skip
    names = [name for name in tokenizer.model_input_names if name in found]
    columns = [found[name] for name in names]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [row for row in rows if _length(row)]


def _pieces(text: str, count: int, length: int) -> list[str]:
    """Parts of a text, evenly spaced over it, each from the start of a word."""
    last = max(0, len(text) - length)
    starts = [i * last // max(1, count - 1) for i in range(count)]
    starts = [text.rfind(" ", 0, start + 1) + 1 if start else 0 for start in starts]
    return [text[start : start + length] for start in dict.fromkeys(starts)]


def _spread(rows: Sequence[Row], tokens: int) -> list[Row]:
    """Rows evenly spaced over all of them, with about so many tokens; at least one."""
    have = sum(map(_length, rows))
    count = len(rows) if have <= tokens else max(1, len(rows) * tokens // have)
    return [rows[i * len(rows) // count] for i in range(count)] if rows else []


def _length(row: Row) -> int:
    return len(row["input_ids"])
