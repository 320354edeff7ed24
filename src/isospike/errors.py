"""The errors isospike raises: one line, what was needed, what was got, what to do."""

import errno
import sys


class IsospikeError(ValueError):
    """Any mistake in what isospike was given."""


class InputError(IsospikeError):
    """A file, a name or data cannot be used."""


class ShapeError(IsospikeError):
    """A tensor has the wrong shape."""


class RangeError(IsospikeError):
    """A number is outside its range, or is not a number."""


class UnsupportedError(IsospikeError):
    """The model, code or file is well formed but cannot be handled."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra."""


class NotFittedError(IsospikeError, AttributeError):
    """A result was asked for before there was one."""


def not_fitted(owner: str, name: str) -> AttributeError:
    """The error for a result that is not there yet; scikit-learn's too where that is loaded."""
    text = f"{owner} needs a fit before {name}, got none. Call fit first."
    theirs = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", None)
    if theirs is None:
        return NotFittedError(text)
    both: type[AttributeError] = type("NotFittedError", (NotFittedError, theirs), {})
    return both(text)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error of a library says that the disk is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = ("No space left on device", "File too large")  # of safetensors
    return full or any(word in str(error) for word in words)


def first_sentence(error: BaseException) -> str:
    """The first line of what a library said, at a readable length, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # a heading says little
    if len(line) > 200:
        line = f"{line[:200].rsplit(' ', 1)[0]} ..."
    return line if line.endswith((".", "!", "?")) else f"{line}."
