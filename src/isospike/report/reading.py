"""A file that a user names, read whole if it is a plain file of a bounded size."""

import os
import stat
import sys
from pathlib import Path

from isospike.errors import InputError

MAX_BYTES = 2**28
"""Most bytes of a file that is read whole: 256 MiB."""

_KINDS = {
    stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip


def read_file(path: str | os.PathLike[str], who: str, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a plain file; nothing waits, and nothing is endless.

    Args:
        path: The file, or a link to it; ``-`` is standard input, which is waited for.
        who: Name of the function that the errors begin with.
        limit: Most bytes; a larger file is refused before it is read.

    Returns:
        All of them.

    Raises:
        InputError: ``path`` is missing, a folder, a pipe, a device, unreadable, or too large.
    """
    name = os.fspath(path)
    if name == "-":
        return _standard_input(who, limit)
    try:
        # A pipe that nobody writes to would be waited for.
        number = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(number, "rb") as file:
            about = os.fstat(number)
            kind = _KINDS.get(stat.S_IFMT(about.st_mode))
            data = b"" if kind or about.st_size > limit else file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{who} needs an existing file, got {name!r}. Check the path.") from None
    except IsADirectoryError:
        raise InputError(
            f"{who} needs a file, got the folder {name!r}. Name a file in it."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path.
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{who} needs a readable file, got {name!r}: {reason}. Check the path."
        ) from None
    if kind:
        raise InputError(
            f"{who} needs a plain file, got the {kind} {name!r}. Write what it gives to a file "
            "first."
        )
    if max(about.st_size, len(data)) > limit:
        raise InputError(
            f"{who} needs a file of at most {limit // 2**20} MiB, got "
            f"{max(about.st_size, len(data)) / 2**20:.0f} MiB or more in {name!r}. Give a part of "
            "it."
        )
    return data


def _standard_input(who: str, limit: int) -> bytes:
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise InputError(
            f"{who} needs at most {limit // 2**20} MiB, got more on standard input. Give a part of "
            "it."
        )
    return data


def check_plain(folder: Path, who: str) -> None:
    """Raise unless all that a folder holds are plain files and folders, or links to them.

    Args:
        folder: What another library will read.
        who: Name of the function that the errors begin with.

    Raises:
        InputError: It holds a pipe, a device, or a link to nothing.
    """
    for path in sorted(folder.iterdir()):
        if not (path.is_file() or path.is_dir()):
            raise InputError(
                f"{who} needs a folder of plain files, got {path.name!r} in {str(folder)!r}, which "
                "is none. Remove it."
            )
