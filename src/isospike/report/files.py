"""A file or a folder, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

from isospike.errors import InputError

MANIFEST = "isospike.json"
"""The file of a folder that lists the others, with their digests."""

Content = str | bytes | Callable[[Path], object]
"""What a file holds, or a function that writes it to the path it is given."""


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename: a crash leaves the old file or the new one.

    Args:
        path: The file; its folder is made.
        data: All of its bytes.

    Raises:
        OSError: The folder cannot be written to, or the disk is full.
    """
    fresh = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


def write_folder(path: Path, files: Mapping[str, Content]) -> None:
    """Write all files beside ``path``, then put the folder in its place.

    An error, a full disk or Ctrl-C leaves what was there before, and nothing else. A file named
    :data:`MANIFEST` is added, with the digest of every other.

    Args:
        path: The folder; it must be new, empty, or written by this function.
        files: What each file holds, by name.

    Raises:
        InputError: ``path`` holds something else; see :func:`check_destination`.
        OSError: It cannot be written to, or the disk is full.
    """
    check_destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (path.with_name(f".{path.name}.{uuid4().hex}.{end}") for end in ("new", "old"))
    try:
        fresh.mkdir()
        digests = {name: _write(fresh / name, content) for name, content in files.items()}
        _write(fresh / MANIFEST, json.dumps({"sha256": digests}, indent=1))
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_destination(path: Path) -> None:
    """Raise unless :func:`write_folder` may write ``path``.

    Args:
        path: A folder that is new, empty, or was written by :func:`write_folder`.

    Raises:
        InputError: ``path`` is a file, or a folder that holds something else.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"save needs a folder, got the file {path}. Choose another name.")
    present = {p.name for p in path.iterdir()}
    with contextlib.suppress(InputError):
        present -= {MANIFEST, *read_manifest(path)}
    if present:
        raise InputError(
            f"save needs a new folder or one it wrote itself, got {path} holding "
            f"{min(present)!r}. Choose another folder or empty it."
        )


def check_folder(path: Path) -> None:
    """Raise unless every file that :func:`write_folder` wrote is there and unchanged.

    Args:
        path: The folder.

    Raises:
        InputError: A file is missing or damaged; the message names it.
    """
    for name, digest in read_manifest(path).items():
        try:
            found = _digest(path / name)
        except OSError as error:
            raise InputError(
                f"load needs the file {path / name}, got {error.strerror}. Save it again."
            ) from error
        if found != digest:
            raise InputError(
                f"load needs {path / name} as it was saved, got another content. Save it again."
            )


def read_manifest(path: Path) -> dict[str, str]:
    """The digest of every file of a folder, by name.

    Args:
        path: A folder that :func:`write_folder` wrote.

    Returns:
        The digests.

    Raises:
        InputError: It has no readable :data:`MANIFEST`.
    """
    try:
        digests = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        return {str(name): str(digest) for name, digest in digests.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"load needs a folder that isospike saved, got {path} without a readable {MANIFEST}. "
            "Save it again."
        ) from error


def _write(path: Path, content: Content) -> str:
    """Write one file to the disk; its digest."""
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
