"""One file, written whole or not at all."""

import contextlib
import os
from pathlib import Path
from uuid import uuid4


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename: a crash leaves the old file or the new one.

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
