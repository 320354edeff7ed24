"""The errors isospike raises: one line, what was needed, what was got, what to do."""

import errno
import sys


class IsospikeError(ValueError):
    """Any mistake in what isospike was given.

    >>> import isospike
    >>> try:
    ...     isospike.code("morse", 8)
    ... except IsospikeError as error:
    ...     print(type(error).__name__)
    InputError
    """


class InputError(IsospikeError):
    """A file, a name or data cannot be used.

    >>> import isospike
    >>> isospike.code("morse", 8)
    Traceback (most recent call last):
    isospike.errors.InputError: code needs one of signed-digit, ...
    """


class ShapeError(IsospikeError):
    """A tensor has the wrong shape.

    >>> import isospike
    >>> import torch
    >>> isospike.IF().run(torch.ones(2, 3), isospike.neurons.NeuronState(torch.ones(1)))
    Traceback (most recent call last):
    isospike.errors.ShapeError: ...
    """


class RangeError(IsospikeError):
    """A number is outside its range, or is not a number.

    >>> import isospike
    >>> isospike.code("phase", 0)
    Traceback (most recent call last):
    isospike.errors.RangeError: PhaseCode needs steps ...
    """


class UnsupportedError(IsospikeError):
    """The model, code or file is well formed but cannot be handled.

    >>> import isospike
    >>> import torch
    >>> isospike.code("phase", 4).encode(torch.ones(2, device="meta"))
    Traceback (most recent call last):
    isospike.errors.UnsupportedError: ...
    """


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra.

    >>> issubclass(MissingExtraError, ImportError)
    True
    """


class NotFittedError(IsospikeError, AttributeError):
    """A result was asked for before there was one.

    >>> import isospike
    >>> isospike.ScoreSchurSort().order_
    Traceback (most recent call last):
    isospike.errors.NotFittedError: ScoreSchurSort needs a fit before order_, ...
    """


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
