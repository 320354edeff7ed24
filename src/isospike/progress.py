"""Progress of long work: whoever works calls :func:`update`, whoever listens sees it.

The listener is a context variable, so that no function passes a callback on. A thread that was
started inside ``with shown_by(...)`` is not listened to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Reporter = Callable[[str, int, int], None]
"""Called with what is being done, how many parts of it are done, and how many there are."""

_listener: ContextVar[Reporter | None] = ContextVar("isospike_progress", default=None)


def update(what: str, done: int, total: int) -> None:
    """Report progress to the listener; does nothing without one.

    Args:
        what: Name of the phase, e.g. ``calibrate``.
        done: Number of finished parts.
        total: Number of parts.
    """
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def shown_by(reporter: Reporter) -> Iterator[None]:
    """Send the progress of everything inside to ``reporter``.

    Args:
        reporter: Called by :func:`update`; an outer listener is replaced until the end.

    Returns:
        A context manager.

    >>> with shown_by(lambda what, done, total: print(what, done, "of", total)):
    ...     update("calibrate", 1, 2)
    calibrate 1 of 2
    """
    token = _listener.set(reporter)
    try:
        yield
    finally:
        _listener.reset(token)
