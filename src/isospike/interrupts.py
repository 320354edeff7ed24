"""Ctrl-C in a command: one line and exit code 130, whatever the process is doing.

It imports nothing that takes time, so that the answer is ready before anything else is loaded.

Where a command works, the first Ctrl-C raises ``KeyboardInterrupt``, and what is half written is
cleaned up. The process ends at once, without cleaning up, where that is not possible: while modules
are being imported (native code does not survive an exception there), at the second Ctrl-C, and
where code that is not ours has kept the exception to itself for :data:`GRACE_S`.
"""

import _signal as signal  # type: ignore[import-not-found]  # signal itself loads enum first
import os
from _thread import start_new_thread

STATUS = 130
GRACE_S = 3.0  # from Ctrl-C to the end, at most

_IMPORTS = "<frozen importlib._bootstrap>"


class _State:
    kept = "nothing was written."
    works = False
    asked = False
    told = False


def answer() -> None:
    """Answer Ctrl-C from now on; for the entry of a process, in its main thread."""
    signal.signal(signal.SIGINT, _interrupt)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    start_new_thread(_watch, (reader,))


def begin_work(kept: str) -> None:
    """From now on the first Ctrl-C raises ``KeyboardInterrupt``.

    Args:
        kept: What an interrupted command leaves, a sentence.
    """
    _State.kept, _State.works, _State.asked, _State.told = kept, True, False, False


def end_work() -> None:
    """From now on Ctrl-C ends the process at once."""
    _State.works = False


def ignore() -> None:
    """Let the process end as it would: everything is printed, and Ctrl-C comes too late."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave() -> None:
    """End the process with the line of an interrupted command, unless that was printed before."""
    if not _State.told:
        _State.told = True
        # A bar may have left the cursor hidden, and its line unfinished.
        start = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        try:
            os.write(2, f"{start}interrupted: {_State.kept}\n".encode())
        except OSError:
            pass  # There is nobody to tell.
    os._exit(STATUS)


def tell() -> None:
    """The caller prints the line of an interrupted command itself."""
    _State.told = True


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - what signal calls
    if _State.asked or not _State.works or _imports(frame):
        leave()
    _State.asked = True
    raise KeyboardInterrupt


def _imports(frame: object) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:  # type: ignore[attr-defined]
            return True
        frame = frame.f_back  # type: ignore[attr-defined]
    return False


def _watch(reader: int) -> None:
    """End the process where the main thread does not, as in a long call of native code."""
    import select

    while signal.SIGINT not in os.read(reader, 16):
        pass
    select.select([reader], [], [], GRACE_S)  # or until the next one
    leave()
