"""The models of the zoo: one small random configuration each, and inputs for it."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn

from isospike.errors import InputError

Inputs = Callable[[int, torch.Generator], dict[str, Any]]
"""``inputs(rows, generator)``: a batch, its keyword arguments by name."""


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: As it is asked for.
        kind: What it belongs to, such as ``decoders``.
        build: Makes the model, its weights drawn from torch's seed.
        inputs: Makes a batch.
        prompt: Makes a batch to generate from; None if the model does not generate.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    prompt: Inputs | None = None


ENTRIES: dict[str, Entry] = {}
"""Every model, by name."""


class Shelf:
    """Registers models of one kind, of which most differ by a class and a few fields.

    Args:
        kind: Of its models.
        inputs: Of those that name no others.
        prompt: Likewise.
        fields: Of every configuration.
    """

    def __init__(
        self, kind: str, inputs: Inputs, prompt: Inputs | None = None, **fields: Any
    ) -> None:
        self.kind, self.inputs, self.prompt, self.fields = kind, inputs, prompt, fields

    def add(
        self, name: str, cls: str, inputs: Inputs | None = None, prompt: Inputs | None = None,
        **fields: Any,
    ) -> None:  # fmt: skip
        """Register a class of transformers.

        Args:
            name: Of the model.
            cls: Name of its class.
            inputs: Its inputs.
            prompt: What it generates from.
            fields: Of its configuration, beside those of the shelf.
        """
        build = partial(from_config, cls, {**self.fields, **fields})
        self.built(name, build, inputs, prompt)

    def built(
        self, name: str, build: Callable[[], nn.Module], inputs: Inputs | None = None,
        prompt: Inputs | None = None,
    ) -> None:  # fmt: skip
        """Register what a function makes; the arguments are those of :class:`Entry`."""
        if name in ENTRIES:
            raise InputError(f"the zoo needs a name for each model, got {name!r} twice. Rename it.")
        ENTRIES[name] = Entry(name, self.kind, build, inputs or self.inputs, prompt or self.prompt)


def from_config(cls: str, fields: dict[str, Any], **more: Any) -> nn.Module:
    """A model of transformers by its class; ``more`` are arguments beside its configuration."""
    import transformers

    model_class = getattr(transformers, cls)
    return model_class(model_class.config_class(**fields), **more)


def scattered(model: nn.Module) -> nn.Module:
    """Weights as wide as a trained model's, and nothing at 0 or 1, so that what is lost shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


def make(entry: Entry) -> nn.Module:
    """The model of an entry, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scattered(entry.build())


def draw(inputs: Inputs, rows: int, seed: int) -> dict[str, Any]:
    """A batch, always the same."""
    return inputs(rows, torch.Generator().manual_seed(seed))


def named(patterns: list[str]) -> list[Entry]:
    """The entries that fit one of the patterns, such as ``t5*``; all without a pattern.

    Raises:
        InputError: Nothing fits a pattern.
    """
    found: dict[str, Entry] = {}
    for pattern in patterns or ["*"]:
        fits = {n: e for n, e in ENTRIES.items() if fnmatchcase(n.lower(), pattern.lower())}
        if not fits:
            raise InputError(f"the zoo needs the name of a model, got {pattern!r}. List them all.")
        found |= fits
    return list(found.values())
