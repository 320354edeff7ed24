"""Work beside a file or folder, then put it in its place in one step.

A save works in a folder of its own, ``.isospike-`` and 32 digits, beside what it replaces, and
holds a lock on it. If the process is killed the lock goes and the folder stays; the next save in
that place removes it.

Linux exchanges two names in one step (``renameat2``): a reader finds the old one or the new one.
Where the system or the file system cannot, there are two renames: a reader may find nothing for a
moment, and a process killed between them leaves the old one as ``.isospike-old-`` and 16 digits,
which the next save there puts back first.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # no Unix: nothing is swept
    fcntl = None  # type: ignore[assignment]

PREFIX = ".isospike-"
_AT_CWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2  # of renameat2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # to this system or file system
_TRIES = 20  # to lock what a save may be about to remove
_TWO_RENAMES = threading.Lock()


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder`` to work in, removed at the end.

    Args:
        folder: Made if need be, and removed again if the work fails and it is empty. What dead
            processes left in it is removed.

    Raises:
        OSError: It cannot be written to.
    """
    with _made(folder):
        _sweep(folder)
        place, lock = _new_place(folder)
        try:
            yield place
        finally:
            _remove(place)
            os.close(lock)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes from holding a name, however often the file of that name is replaced.

    A folder beside the file carries the lock. That of a dead process is removed as by
    :func:`scratch`.

    Args:
        path: Of the file, which need not be there.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: Its folder cannot be written to.
    """
    target = Path(os.path.realpath(path))
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]
    with _made(target.parent):
        place = target.parent / f"{PREFIX}{name}"
        lock = _hold(place)
        try:
            yield
        finally:
            _remove(place)
            os.close(lock)


def exchange(fresh: Path, target: Path) -> None:
    """Put a folder in the place of another, which takes its place; of none, it just moves.

    Args:
        fresh: The folder.
        target: Where it goes.

    Raises:
        OSError: One of the two cannot be renamed.
    """
    while True:
        number = _rename(fresh, target, _EXCHANGE)
        if number == errno.ENOENT:  # nothing to exchange it with
            number = _rename(fresh, target, _NO_REPLACE)
        if number in _UNKNOWN:
            _rename_twice(fresh, target)
            number = 0
        if number == 0:
            return
        if number != errno.EEXIST:  # else somebody was faster: exchange with theirs
            raise OSError(number, os.strerror(number), str(target))


def take_mode(fresh: Path, target: Path) -> None:
    """Give what is new the mode, and as far as we may the owner, of what it replaces.

    Args:
        fresh: A file or folder.
        target: What it replaces; if there is nothing, nothing is done.
    """
    try:
        old = target.stat()
    except OSError:
        return
    if hasattr(os, "chown"):
        for owner in (old.st_uid, -1):
            with contextlib.suppress(OSError):
                os.chown(fresh, owner, old.st_gid)
                break
    fresh.chmod(stat.S_IMODE(old.st_mode))


def sync(path: Path) -> None:
    """Have the disk hold a file, or which names a folder has; where it can be asked to.

    Args:
        path: The file or folder.

    Raises:
        OSError: The disk is full, or failing.
    """
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder if need be; remove it again if the work fails and it is empty."""
    missing = [p for p in (folder, *folder.parents) if not os.path.lexists(p)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


def _hold(place: Path) -> int:
    """A handle that locks the folder of that name, which is made."""
    for late in range(_TRIES, -1, -1):
        place.mkdir(exist_ok=True)
        try:
            lock = _lock(place)
            if fcntl is None or os.path.samestat(os.fstat(lock), os.stat(place)):
                return lock
            os.close(lock)  # it was removed, and made anew by somebody else
        except FileNotFoundError:
            continue  # a save has just taken it for one that a dead process left
        except BlockingIOError:
            if not late:
                raise
        time.sleep(0.01)
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(place))


def _new_place(folder: Path) -> tuple[Path, int]:
    while True:
        place = folder / f"{PREFIX}{uuid4().hex}"
        place.mkdir()
        try:
            return place, _lock(place)
        except (BlockingIOError, FileNotFoundError):
            continue  # another save has taken it for one that a dead process left


def _lock(place: Path, *, required: bool = False) -> int:
    """A handle that locks a folder until it is closed.

    Raises:
        FileNotFoundError: It is gone.
        BlockingIOError: Somebody else has locked it.
        OSError: The lock is required, and the file system has none.
    """
    if fcntl is None:
        if required:
            raise OSError(errno.ENOTSUP, "no locks")
        return os.open(os.devnull, os.O_RDONLY)
    handle = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if required:
                raise
        os.stat(place)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sweep(folder: Path) -> None:
    """Remove what dead processes left in a folder."""
    for place in folder.glob(f"{PREFIX}{'[0-9a-f]' * 32}"):
        if place.is_symlink() or not place.is_dir():
            continue
        with contextlib.suppress(OSError):
            lock = _lock(place, required=True)
            _remove(place)
            os.close(lock)


def _remove(place: Path) -> None:
    """Remove a folder, even one whose mode forbids it."""
    for path in (place, *(place.iterdir() if place.is_dir() else ())):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o700)
    shutil.rmtree(place, ignore_errors=True)


def _rename(source: Path, target: Path, flags: int) -> int:
    """The error number of ``renameat2``; 0 if it went well."""
    call: Any = getattr(_libc(), "renameat2", None)
    if call is None:
        return errno.ENOSYS
    if call(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), flags) == 0:
        return 0
    return ctypes.get_errno()


def _libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None


def _rename_twice(fresh: Path, target: Path) -> None:
    """The same as :func:`exchange`, with a moment between."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    parked = target.with_name(f"{PREFIX}old-{name}")
    with _TWO_RENAMES, _locked(target.parent):
        if parked.exists() and not target.exists():
            parked.rename(target)
        _remove(parked)
        try:
            target.rename(parked)
        except FileNotFoundError:
            fresh.rename(target)
            return
        try:
            fresh.rename(target)
        except BaseException:
            parked.rename(target)
            raise
        parked.rename(fresh)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep the other processes of this computer from doing the same in a folder."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks there
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
