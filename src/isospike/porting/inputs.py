"""What a port is given to calibrate on and to be measured on, checked once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isospike.errors import InputError, UnsupportedError
from isospike.hf.batches import (
    Batch,
    batch_size,
    count_tokens,
    first_output,
    rows_of,
    token_mask,
)
from isospike.porting.fidelity import in_float32, same_draws

Evaluation = Iterable[Batch] | Batch | Mapping[str, Iterable[Batch]] | None

SAMPLE_ROWS = 2
NEUTRAL_LENGTHS = (8, 32, 128)  # tokens of random rows
NEUTRAL_ROWS, NEUTRAL_IMAGES = 8, 4
EVALUATION_SHARE = 4  # one batch or row in so many is held out, if no evaluation is given


@dataclass(frozen=True)
class Inputs:
    """Batches of keyword arguments.

    Attributes:
        calibration: What the ranges are set on.
        evaluation: Held-out batches, for the measurements.
        names: Of the held-out batches, and of the others.
        others: Further kinds of inputs, to measure the error on.
        divides: Whether the model takes some rows of a batch.
    """

    calibration: tuple[Batch, ...]
    evaluation: tuple[Batch, ...]
    names: tuple[str, ...] = ("held out",)
    others: tuple[tuple[Batch, ...], ...] = ()
    divides: bool = True

    def sampled(self, model: nn.Module) -> "tuple[Inputs, Batch]":
        """These inputs, knowing whether they divide for a model, and a few rows of them."""
        first = self.calibration[0]
        sample = sample_of(model, first)
        return replace(
            self, divides=sample is not first or batch_size(first) <= SAMPLE_ROWS
        ), sample

    def few(self, batch: Batch, rows: int) -> Batch:
        """The first rows of a batch; all of it if it does not divide."""
        return rows_of(batch, slice(0, rows)) if self.divides else batch

    @classmethod
    def of(cls, calibration: Iterable[Batch] | Batch, evaluation: Evaluation) -> "Inputs":
        """The inputs of a port.

        Args:
            calibration: At least one batch.
            evaluation: The last quarter of ``calibration`` if not given; several kinds by name.

        Raises:
            InputError: No batch, something else than a batch, a batch without tokens, or too few
                rows to hold some out.
        """
        given = _listed(calibration, "calibration")
        groups = _named(evaluation)
        if not given:
            raise InputError(
                "port needs at least one calibration batch, got none. Give some real inputs."
            )
        for kind, batches in (
            ("calibration", given),
            *(("evaluation", g) for g in groups.values()),
        ):
            for i, batch in enumerate(batches):
                _check_batch(batch, f"{kind} batch {i}")
        if groups:
            held, *others = groups.values()
            return cls(given, held, tuple(groups), tuple(others))
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

    @property
    def longest(self) -> Batch:
        """The evaluation batch with the most rows."""
        return max(self.evaluation, key=batch_size)

    @property
    def calibration_tokens(self) -> int:
        """Unpadded calibration tokens; rows, for models without tokens."""
        return sum(map(count_tokens, self.calibration))


def _named(evaluation: Evaluation) -> dict[str, tuple[Batch, ...]]:
    """Kinds of inputs by name; none if none is given."""
    if evaluation is None:
        return {}
    if isinstance(evaluation, Mapping):
        values = list(evaluation.values())
        if values and all(isinstance(v, list | tuple) and v for v in values):
            if all(isinstance(b, Mapping) for v in values for b in v):
                return {name: tuple(v) for name, v in evaluation.items()}
    held = _listed(evaluation, "evaluation")
    return {"held out": held} if held else {}


def _listed(group: Iterable[Batch] | Batch, kind: str) -> tuple[Batch, ...]:
    if isinstance(group, Mapping):
        raise InputError(
            f"port needs a list of batches, got one {type(group).__name__} as {kind}. Put it in a "
            "list."
        )
    return tuple(group)


def sample_of(model: nn.Module, batch: Batch) -> Batch:
    """A few rows of a batch, if the model takes them.

    Args:
        model: The float model.
        batch: Its inputs.

    Returns:
        Two rows; or the whole batch, where its arguments do not divide by rows, as the patches of
        several images.
    """
    if batch_size(batch) <= SAMPLE_ROWS:
        return batch
    few = rows_of(batch, slice(0, SAMPLE_ROWS))
    original = in_float32(model)
    with torch.no_grad():
        with same_draws():
            whole = first_output(original(**batch))
        try:
            with same_draws():
                part = first_output(original(**few))
        except Exception:  # noqa: BLE001 - these arguments do not divide
            return batch
    return few if part.shape != whole.shape else batch


def neutral(model: nn.Module) -> list[Batch]:
    """Random tokens of a few lengths, or random pixels: inputs where no data is at hand.

    Raises:
        UnsupportedError: The model reads something else.
    """
    config: Any = getattr(model, "config", None)
    reads = getattr(model, "main_input_name", "")
    draw = torch.Generator().manual_seed(0)
    if reads == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        longest = getattr(config, "max_position_embeddings", None) or max(NEUTRAL_LENGTHS)
        lengths = sorted({min(n, longest) for n in NEUTRAL_LENGTHS})
        shapes = [(NEUTRAL_ROWS, n) for n in lengths]
        tokens = [torch.randint(config.vocab_size, s, generator=draw) for s in shapes]
        return [{"input_ids": t, "attention_mask": torch.ones_like(t)} for t in tokens]
    if reads == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        size = (NEUTRAL_IMAGES, getattr(config, "num_channels", 3), *[config.image_size] * 2)
        return [{"pixel_values": torch.randn(size, generator=draw)} for _ in range(2)]
    raise UnsupportedError(
        f"port needs calibration inputs for a {type(model).__name__}, got None. Give some: random "
        "ones are made for models of transformers that read tokens or images."
    )


def _check_batch(batch: Batch, kind: str) -> None:
    if not isinstance(batch, Mapping):
        raise InputError(
            f"port needs batches of keyword arguments, got {type(batch).__name__} as {kind}. Pass "
            'dictionaries such as {"input_ids": ...}.'
        )
    for key, value in batch.items():
        if isinstance(value, list | np.ndarray):
            raise InputError(
                f"port needs tensors in its batches, got {type(value).__name__} for {key} in "
                f'{kind}. Ask the tokenizer for them with return_tensors="pt".'
            )
    if not any(isinstance(v, Tensor) for v in batch.values()):
        raise InputError(
            f"port needs tensors in its batches, got none in {kind}. Give real inputs."
        )
    mask = token_mask(batch)
    if batch_size(batch) == 0 or (mask is not None and not bool(mask.any())):
        raise InputError(
            f"port needs at least one unpadded token per batch, got only padding in {kind}. Remove "
            "it."
        )
