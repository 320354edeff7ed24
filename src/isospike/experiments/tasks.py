"""Sequence tasks: which of them need position, and how."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from isospike.data import shakespeare
from isospike.errors import RangeError
from isospike.models.training import IGNORE


@dataclass(frozen=True)
class Task(ABC):
    """Inputs and the target of each position.

    Attributes:
        name: On the command line and in files.
        causal: Whether a model may only look back.
        next_token: Whether targets are the tokens that follow.
        length: Number of tokens of a training sequence.
        batch: Number of sequences of a training step.
        symbols: Number of different symbols of the content.
    """

    name: ClassVar[str]
    causal: ClassVar[bool] = True
    next_token: ClassVar[bool] = False
    length: int = 32
    batch: int = 16
    symbols: int = 16

    @property
    def vocabulary(self) -> int:
        """Number of different tokens, separators included."""
        return self.symbols

    @abstractmethod
    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw sequences.

        Args:
            count: Number of sequences.
            length: Tokens of each.
            generator: Of the symbols.
            test: Whether to draw from data that training does not see, where there is such a
                difference.

        Returns:
            Tokens and targets, ``[count, length]`` each; a target of ``IGNORE`` is not scored.
        """

    def _content(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.symbols, (count, length), generator=generator)


@dataclass(frozen=True)
class Successor(Task):
    """The task of the published table, the next symbol of the alphabet: needs no position.

    ``y_t = (x_t + 1) mod symbols``
    """

    name = "successor"
    causal = False
    symbols: int = 50

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = self._content(count, length, generator)
        return x, (x + 1) % self.symbols


@dataclass(frozen=True)
class DelayedCopy(Task):
    """``y_t = x_{t - delay}``: needs a distance."""

    delay: int = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"copy-{self.delay}"

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = self._content(count, length, generator)
        y = torch.full_like(x, IGNORE)
        y[:, self.delay :] = x[:, : max(0, length - self.delay)]
        return x, y


@dataclass(frozen=True)
class Reversal(Task):
    """``y_t = x_{length - 1 - t}``: needs both ends."""

    name = "reversal"
    causal = False

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = self._content(count, length, generator)
        return x, x.flip(1)


@dataclass(frozen=True)
class Sort(Task):
    """``y_t`` is the t-th smallest of x: content decides which, position where."""

    name = "sort"
    causal = False

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = self._content(count, length, generator)
        return x, x.sort(1).values


@dataclass(frozen=True)
class SeparatorCopy(Task):
    """``x | x``: the second half is predicted token by token, from the separator on."""

    name = "separator-copy"
    next_token = True

    @property
    def vocabulary(self) -> int:
        return self.symbols + 1

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        half = length // 2
        x = self._content(count, half, generator)
        separator = torch.full((count, 1), self.symbols)
        tokens = torch.cat([x, separator, x], 1)[:, :length]
        y = torch.full_like(tokens, IGNORE)
        y[:, half : 2 * half] = x
        return tokens, y


@dataclass(frozen=True)
class Recall(Task):
    """Multi-query associative recall: pairs ``key value``, then each key again, in another order.

    Position serves to tie a value to the key before it. A quarter of the tokens are keys; keys do
    not repeat, so there are as many symbols as the longest test needs.

    Reference: Arora et al. (2023), Zoology: measuring and improving recall in efficient language
    models.
    """

    name = "recall"
    next_token = True
    symbols: int = 32

    @property
    def vocabulary(self) -> int:
        return 2 * self.symbols  # keys, then values

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        pairs = length // 4
        if pairs > self.symbols:
            raise RangeError(
                f"Recall needs at most {self.symbols} pairs, got {pairs}. Use more symbols."
            )
        keys = torch.rand(count, self.symbols, generator=generator).argsort(1)[:, :pairs]
        values = self.symbols + torch.randint(self.symbols, (count, pairs), generator=generator)
        again = torch.rand(count, pairs, generator=generator).argsort(1)
        written = torch.stack([keys, values], 2).flatten(1)
        asked = torch.stack([keys.gather(1, again), values.gather(1, again)], 2).flatten(1)
        tokens = torch.cat([written, asked], 1)
        y = torch.full_like(tokens, IGNORE)
        y[:, 2 * pairs :: 2] = values.gather(1, again)
        return tokens, y


@dataclass(frozen=True)
class Text(Task):
    """The next character of Tiny Shakespeare; the last tenth is for testing."""

    name = "text"
    next_token = True
    length: int = 256
    batch: int = 4
    symbols: int = 65

    def sample(
        self, count: int, length: int, generator: torch.Generator, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        text = _shakespeare()
        cut = len(text) * 9 // 10
        part = text[cut:] if test else text[:cut]
        first = torch.randint(len(part) - length, (count, 1), generator=generator)
        window = part[first + torch.arange(length + 1)]
        return window[:, :-1], window[:, 1:]


@cache
def _shakespeare() -> Tensor:
    text = shakespeare()
    number = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([number[c] for c in text])


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Successor(), DelayedCopy(), DelayedCopy(delay=8), DelayedCopy(64, 8, delay=32), Reversal(),
        SeparatorCopy(), Sort(), Recall(), Text(),
    )
}  # fmt: skip
"""Every task by name."""
