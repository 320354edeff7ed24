"""The file of a sequence machine: one safetensors file with JSON metadata and a digest."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isospike.errors import InputError, first_sentence
from isospike.report.files import write_file

FORMAT = 4
_TYPES = {
    "F64": "float64", "F32": "float32", "I64": "int64", "I32": "int32", "U8": "uint8",
}  # fmt: skip

Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Shape and NumPy type of every array, by name."""


def write_machine(path: Path, about: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write a machine; the file before it survives a crash.

    Args:
        path: Where to write.
        about: Settings, symbols and metadata, as JSON has them.
        tensors: NumPy arrays by name.

    Raises:
        InputError: The metadata are not values of JSON, the place cannot be written to, or the
            disk is full.
    """
    from safetensors.numpy import save

    about = {"format": FORMAT, **about}
    try:
        same = json.loads(json.dumps(about["metadata"])) == about["metadata"]
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise InputError(
            "save needs metadata of JSON: numbers, texts, lists, and dictionaries with texts as "
            f"keys, got {str(about['metadata'])[:80]}. Change machine.metadata."
        )
    text = json.dumps({**about, "sha256": _digest(about, tensors)})
    write_file(path, save(tensors, metadata={"isospike": text}))


def read_machine(
    path: Path, expect: Callable[[dict[str, Any]], Shapes]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`write_machine` wrote.

    Args:
        path: The file.
        expect: The arrays of a machine, by what the file says about it.

    Returns:
        ``about`` and ``tensors``, of the shapes that were expected.

    Raises:
        InputError: There is no such file, it is damaged, or of another format.
    """
    if not path.is_file():
        raise InputError(f"load needs a machine's file, got {str(path)!r}. Save one first.")
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["isospike"])
            if (number := about["format"]) == FORMAT:
                _check_shapes(file, expect(about))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of a library: whatever is in the file
        raise damaged(path, first_sentence(error).rstrip(".")) from error
    if number != FORMAT:
        raise InputError(
            f"load needs format {FORMAT}, got {number!r} in {path}. Learn the sequences again with "
            "this version, or use the isospike version that saved it."
        )
    if about.pop("sha256", None) != _digest(about, tensors):
        raise damaged(path, "its digest does not match")
    return about, tensors


def _check_shapes(file: Any, expected: Shapes) -> None:
    """Raise unless a file holds just the arrays that are expected; none is read."""
    found = {}
    for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        found[name] = tuple(part.get_shape()), _TYPES.get(part.get_dtype())
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            raise ValueError(f"it has no {name} of this machine's size")


def damaged(path: Path, why: object) -> InputError:
    """The error for a file that is no machine's, or no longer.

    Args:
        path: The file.
        why: What is wrong with it.

    Returns:
        An error to raise.
    """
    return InputError(
        f"load needs a sequence machine that isospike saved, got {path} ({why}). It may be cut "
        "short: use a copy, or learn the sequences again."
    )


def _digest(about: dict[str, Any], tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.reshape(-1).view("uint8"))
    return digest.hexdigest()
