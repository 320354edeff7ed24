"""The file of a sequence machine: one safetensors file with JSON metadata and a digest."""

import hashlib
import json
from pathlib import Path
from typing import Any

from isospike.errors import InputError
from isospike.report.files import write_file

FORMAT = 2


def write_machine(path: Path, about: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write a machine; the file before it survives a crash.

    Args:
        path: Where to write.
        about: Settings, symbols and metadata, as JSON has them.
        tensors: NumPy arrays by name.

    Raises:
        InputError: The place cannot be written to, or the disk is full.
    """
    from safetensors.numpy import save

    about = {"format": FORMAT, **about}
    text = json.dumps({**about, "sha256": _digest(about, tensors)})
    try:
        write_file(path, save(tensors, metadata={"isospike": text}))
    except OSError as error:
        raise InputError(
            f"save needs to write {path}, got {error.strerror or error}. Free space or choose "
            "another place."
        ) from error


def read_machine(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`write_machine` wrote.

    Args:
        path: The file.

    Returns:
        ``about`` and ``tensors``.

    Raises:
        InputError: There is no such file, it is damaged, or of another format.
    """
    if not path.is_file():
        raise InputError(f"load needs a machine's file, got {path}. Save one first.")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["isospike"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        number = about["format"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise damaged(path, error) from error
    if number != FORMAT:
        raise InputError(
            f"load needs format {FORMAT}, got {number} in {path}. Learn the sequences again with "
            "this version, or use the isospike version that saved it."
        )
    if about.pop("sha256", None) != _digest(about, tensors):
        raise damaged(path, "its digest does not match")
    return about, tensors


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
