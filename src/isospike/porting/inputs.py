"""What a port is given to calibrate on and to be measured on, checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from isospike.errors import InputError
from isospike.hf.batches import Batch, batch_size, count_tokens, merge, rows_of, token_mask

SAMPLE_ROWS = 2
EVALUATION_SHARE = 4  # one batch or row in so many is held out, if no evaluation is given


@dataclass(frozen=True)
class Inputs:
    """Batches of keyword arguments.

    Attributes:
        calibration: What the ranges are set on.
        evaluation: Held-out batches, for the measurements.
    """

    calibration: tuple[Batch, ...]
    evaluation: tuple[Batch, ...]

    @classmethod
    def of(cls, calibration: Sequence[Batch], evaluation: Sequence[Batch] | None) -> "Inputs":
        """The inputs of a port.

        Args:
            calibration: At least one batch.
            evaluation: The last quarter of ``calibration`` if not given.

        Raises:
            InputError: No batch, something else than a batch, a batch without tokens, or too few
                rows to hold some out.
        """
        given = tuple(calibration)
        if not given:
            raise InputError("port needs at least one batch, got none. Give some real inputs.")
        for kind, group in (("calibration", given), ("evaluation", evaluation or ())):
            for i, batch in enumerate(group):
                _check_batch(batch, f"{kind} batch {i}")
        if evaluation:
            return cls(given, tuple(evaluation))
        if len(given) > 1:
            kept = max(1, len(given) // EVALUATION_SHARE)
            return cls(given[:-kept], given[-kept:])
        rows = batch_size(given[0])
        if rows < 2:
            raise InputError(
                "port needs one input to calibrate on and one to hold out, got 1 input. Give more "
                "of them."
            )
        cut = rows - max(1, rows // EVALUATION_SHARE)
        return cls((rows_of(given[0], slice(0, cut)),), (rows_of(given[0], slice(cut, None)),))

    @cached_property
    def merged(self) -> Batch:
        """All calibration rows in one batch."""
        return merge(self.calibration)

    @cached_property
    def mask(self) -> Tensor | None:
        """Mask of the unpadded tokens of ``merged``."""
        return token_mask(self.merged)

    @property
    def sample(self) -> Batch:
        """Two rows, to discover a model with."""
        return rows_of(self.calibration[0], slice(0, SAMPLE_ROWS))

    @property
    def longest(self) -> Batch:
        """The evaluation batch with the most rows."""
        return max(self.evaluation, key=batch_size)

    @property
    def calibration_tokens(self) -> int:
        """Unpadded calibration tokens; rows, for models without tokens."""
        return sum(map(count_tokens, self.calibration))


def _check_batch(batch: Batch, kind: str) -> None:
    if not isinstance(batch, Mapping):
        raise InputError(
            f"port needs batches of keyword arguments, got {type(batch).__name__} as {kind}. Pass "
            'dictionaries such as {"input_ids": ...}.'
        )
    mask = token_mask(batch)
    if batch_size(batch) == 0 or (mask is not None and not bool(mask.any())):
        raise InputError(
            f"port needs at least one unpadded token per batch, got only padding in {kind}. Remove "
            "it."
        )
