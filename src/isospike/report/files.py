"""A file or a folder, written whole or not at all, and read as one save left it."""

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from isospike.errors import InputError, is_disk_full
from isospike.report.disk import exchange, scratch, sync, take_mode

MANIFEST = "isospike.json"
"""The file of a folder that lists the others, with their digests."""

Content = str | bytes | Callable[[Path], object]
"""What a file holds, or a function that writes it to the path it is given."""

_OF_ONE_MODEL = (".safetensors", ".csv", "report.html", "report.json")
_NAME = re.compile(r"([^/\\.][^/\\]*/)?[^/\\]+")  # of a file of ours, at most one folder deep
_TRIES, _LATE = 1000, 20  # to open a folder that is saved again and again, or is not there yet
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer is no reason to wait
_MANIFEST_BYTES = 2**24


# --------------------------------------------------------------------------- write


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename: a crash leaves the old file or the new one.

    A link is written through. The file keeps its mode.

    Args:
        path: The file; its folder is made.
        data: All of its bytes.

    Raises:
        InputError: It is no file, its folder cannot be written to, or the disk is full.
    """
    with _told(path):
        target = _resolve(path)
        _check_kind(path, target)
        with scratch(target.parent) as place:
            fresh = place / "new"
            _write(fresh, data, target)
            fresh.replace(target)
            sync(target.parent)


def write_folder(path: Path, files: Mapping[str, Content]) -> None:
    """Write all files beside ``path``, then put the folder in its place in one step.

    An error, a full disk, Ctrl-C or a kill leaves what was there before; see
    :mod:`isospike.report.disk`. A link is written through. The folder and the files in it keep
    their modes. A file named :data:`MANIFEST` is added, with the digest of every other.

    Args:
        path: The folder; it must be new, empty, or written by this function.
        files: What each file holds, by name; at most one folder deep.

    Raises:
        InputError: ``path`` holds something else (see :func:`check_destination`), it cannot be
            written to, or the disk is full.
    """
    check_destination(path)
    with _told(path):
        target = _resolve(path)
        with scratch(target.parent) as place:
            fresh = place / "new"
            fresh.mkdir()
            digests = {n: _write(fresh / n, content, target / n) for n, content in files.items()}
            manifest = json.dumps({"sha256": digests}, indent=1).encode()
            _write(fresh / MANIFEST, manifest, target / MANIFEST)
            take_mode(fresh, target)
            sync(fresh)
            exchange(fresh, target)
            if fresh.exists() and (foreign := _foreign(fresh)):  # it came after the check
                exchange(fresh, target)
                raise _not_ours(path, foreign)
            sync(target.parent)


def write_into(path: Path, files: Mapping[str, Content]) -> None:
    """Write all files into a folder that may hold others, which stay.

    They are written beside their places first, then moved there one by one, :data:`MANIFEST` last:
    an error or a full disk leaves what was there before, a kill at the worst moment files that are
    refused. What :func:`write_folder` or this function wrote there before and is not written again
    stays too, but for weights and reports, which are of another model.

    Args:
        path: The folder; it is made.
        files: What each file holds, by name.

    Raises:
        InputError: It is a file, it cannot be written to, or the disk is full.
    """
    with _told(path):
        target = _resolve(path)
        if target.exists() and not target.is_dir():
            raise InputError(f"save needs a folder, got the file {path}. Choose another name.")
        before: dict[str, str] = {}
        with contextlib.suppress(InputError):
            before = read_manifest(target)
        with scratch(target) as place:
            fresh = {name: place / str(i) for i, name in enumerate(files)}
            digests = {n: _write(fresh[n], files[n], target / n) for n in files}
            stale = {n for n in before if n not in files and n.endswith(_OF_ONE_MODEL)}
            kept = {n: d for n, d in before.items() if n not in stale}
            manifest = json.dumps({"sha256": kept | digests}, indent=1).encode()
            _write(place / MANIFEST, manifest, target / MANIFEST)
            for name in stale:
                (target / name).unlink(missing_ok=True)
            for name in files:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                fresh[name].replace(target / name)
            (place / MANIFEST).replace(target / MANIFEST)
            sync(target)


def check_destination(path: Path, *inputs: str | Path) -> None:
    """Raise unless :func:`write_folder` may write ``path``: to be asked before long work.

    Args:
        path: A folder that is new, empty, or was written by :func:`write_folder`.
        inputs: Folders that are read and must stay.

    Raises:
        InputError: ``path`` is a file, a folder that holds something else, one of the inputs, the
            current folder, or in a place that cannot be written to.
    """
    with _told(path):
        target, found = _resolve(path), None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = target.stat()
        if found is not None:
            if not stat.S_ISDIR(found.st_mode):
                raise InputError(f"save needs a folder, got the file {path}. Choose another name.")
            if target == Path.cwd() or os.path.ismount(target):
                what = "the current folder" if target == Path.cwd() else "the mounted folder"
                raise InputError(
                    f"save needs a folder that it may replace, got {what} {path}. Name a folder in "
                    f"it, such as {Path(path) / 'out'}."
                )
            if foreign := _foreign(target):
                raise _not_ours(path, foreign)
        if any(_resolve(Path(given)) == target for given in inputs):
            raise InputError(f"save needs a new folder, got the input {path}. Name another.")
        _check_above(path, target)


def check_file(path: Path, *inputs: Path) -> None:
    """Raise unless :func:`write_file` may write ``path``: to be asked before long work.

    Args:
        path: The file, new or to be replaced.
        inputs: Files that are read and must stay.

    Raises:
        InputError: ``path`` is a folder, one of the inputs, or in a place that cannot be written
            to.
    """
    with _told(path):
        target = _resolve(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.stat()
        _check_kind(path, target)
        if any(_resolve(given) == target for given in inputs):
            raise InputError(f"save needs a new file, got the input {path}. Name another.")
        _check_above(path, target)


def _check_kind(path: Path, target: Path) -> None:
    if target.exists() and not target.is_file():
        what = "folder" if target.is_dir() else "device"
        raise InputError(f"save needs a file, got the {what} {path}. Choose another name.")


def _check_above(path: Path, target: Path) -> None:
    above = next(p for p in target.parents if os.path.lexists(p))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "read-only folder" if above.is_dir() else "file"
        raise InputError(
            f"save needs a place to write {path} in, got the {what} {above}. Choose another place."
        )


def _write(path: Path, content: Content, like: Path) -> str:
    """Write one file to the disk, with the mode of that which it replaces; its digest."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)  # as the user has new files
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    take_mode(path, like)
    sync(path)
    with path.open("rb") as file:
        return _digest(file)


def _foreign(folder: Path) -> str:
    """A file in a folder that :func:`write_folder` did not write there; empty if there is none."""
    found = ""
    for _ in range(_LATE):
        try:
            before = folder.stat()
            if not stat.S_ISDIR(before.st_mode):
                return folder.name
            ours: set[str] = set()
            with contextlib.suppress(InputError):
                ours = {MANIFEST, *read_manifest(folder)}
            found = min(_names(folder, ours) - ours, default="")
            if not found or os.path.samestat(before, folder.stat()):
                return found
        except (FileNotFoundError, NotADirectoryError):  # another save put its own there meanwhile
            time.sleep(0.001)
    return found


def _names(folder: Path, ours: set[str]) -> set[str]:
    """What a folder holds, with what those folders in it hold that are written with it."""
    folders = {name.partition("/")[0] for name in ours if "/" in name}
    found = set()
    for path in folder.iterdir():
        inside = path.iterdir() if path.name in folders and path.is_dir() else ()
        found |= {f"{path.name}/{p.name}" for p in inside} or {path.name}
    return found


def _not_ours(path: Path, foreign: str) -> InputError:
    return InputError(
        f"save needs a new folder or one it wrote itself, got {path} holding {foreign!r}. Choose "
        "another folder or empty it."
    )


def _resolve(path: Path) -> Path:
    """Where a path leads, through links."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # no such name can be
        raise InputError(
            f"save needs a name that the file system can hold, got {str(path)!r} ({error}). Choose "
            "another."
        ) from error


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong in writing ``path``, in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_disk_full(error):
            why, advice = "a full disk", "Free some space; what was there before is untouched"
        elif isinstance(error, OSError):
            why, advice = error.strerror or str(error), "Choose another place"
        else:
            raise
        raise InputError(f"save needs to write {path}, got {why}. {advice}.") from error


# ---------------------------------------------------------------------------- read


class Snapshot:
    """The files of a folder as one save left them, whatever is saved there meanwhile.

    Attributes:
        path: The folder.
        digests: Of every file that was saved, by name.
    """

    def __init__(
        self, path: Path, digests: dict[str, str], files: dict[str, BufferedReader]
    ) -> None:
        self.path, self.digests, self._files = path, digests, files
        self._checked: set[str] = set()

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Args:
            name: Of the file.

        Raises:
            InputError: It is missing, or not as it was saved.
        """
        file = self._whole(name)
        file.seek(0)
        return file.read()

    def place(self, name: str) -> Path:
        """Where a library can open a file.

        Args:
            name: Of the file.

        Returns:
            A path to the very file that was checked, where the system has such paths.

        Raises:
            InputError: It is missing, or not as it was saved.
        """
        pinned = Path(f"/proc/self/fd/{self._whole(name).fileno()}")
        return pinned if pinned.exists() else self.path / name

    def _whole(self, name: str) -> BufferedReader:
        if name not in self._files:
            raise InputError(
                f"load needs the file {self.path / name}, got a folder without it. Save it again."
            )
        file = self._files[name]
        if name not in self._checked:
            file.seek(0)
            if _digest(file) != self.digests[name]:
                raise InputError(
                    f"load needs {self.path / name} as it was saved, got another content. Save it "
                    "again."
                )
            self._checked.add(name)
        return file


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[Snapshot]:
    """Open a folder that :func:`write_folder` wrote, all files at once.

    Args:
        path: The folder.

    Raises:
        InputError: There is no such folder, it is not one of ours, or it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        yield _open(path, stack)


def check_folder(path: Path) -> None:
    """Raise unless every file that :func:`write_folder` wrote is there and unchanged.

    Args:
        path: The folder.

    Raises:
        InputError: A file is missing or damaged; the message names it.
    """
    with open_folder(path) as snapshot:
        for name in snapshot.digests:
            snapshot.place(name)


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
        with _open_plain(path / MANIFEST) as file:
            return _digests(file)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"load needs a folder that isospike saved, got {path} without a readable {MANIFEST}. "
            "Save it again."
        ) from error


def _open(path: Path, stack: contextlib.ExitStack) -> Snapshot:
    """All files of one save, open; once more where a save came between."""
    for attempt in range(_TRIES):
        with contextlib.ExitStack() as tried:
            try:
                manifest = tried.enter_context(_open_plain(path / MANIFEST))
                digests = _digests(manifest)
                files = {
                    name: tried.enter_context(_open_plain(path / name))
                    for name in digests
                    if (path / name).is_file()
                }
                same = os.path.samestat(os.fstat(manifest.fileno()), os.stat(path / MANIFEST))
            except FileNotFoundError:
                if attempt < _LATE:
                    time.sleep(0.001)
                    continue
                break
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                break
            if same:
                stack.push(tried.pop_all())
                return Snapshot(path, digests, files)
    read_manifest(path)  # says what is wrong
    raise InputError(
        f"load needs a folder that does not change while it is read, got {path}, which another "
        "process is saving. Try again."
    )


def _open_plain(path: Path) -> BufferedReader:
    """Open a file, and nothing that never ends."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a file")
    return file


def _digests(manifest: BufferedReader) -> dict[str, str]:
    digests = json.loads(manifest.read(_MANIFEST_BYTES))["sha256"]
    return {str(name): str(digest) for name, digest in digests.items() if _NAME.fullmatch(name)}


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
