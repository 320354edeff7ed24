"""The errors isospike raises: one line, what was needed, what was got, what to do."""


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
