"""One file, written whole or not at all."""

import os
import tempfile
from pathlib import Path

from isospike.errors import IsospikeError


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename: a crash leaves the old file or the new one.

    Raises:
        IsospikeError: The folder cannot be written to, or the disk is full.
    """
    fresh = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        fresh = None
    except OSError as error:
        raise IsospikeError(
            f"save needs to write {path}, got {error.strerror or error}. Free space or choose "
            "another place."
        ) from error
    finally:
        if fresh is not None:
            Path(fresh).unlink(missing_ok=True)
