"""One file, written whole or not at all."""

import contextlib
import os
from pathlib import Path
from uuid import uuid4

from isospike.errors import IsospikeError


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename: a crash leaves the old file or the new one.

    Raises:
        IsospikeError: The folder cannot be written to, or the disk is full.
    """
    fresh = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise IsospikeError(
            f"save needs to write {path}, got {error.strerror or error}. Free space or choose "
            "another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
