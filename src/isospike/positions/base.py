"""The interface of the positional encodings, and what they share."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isospike.errors import RangeError, ShapeError
from isospike.tensors import check_devices, check_floating, check_whole, unwrapped

BASE = 10000.0
"""The sinusoid's wavelengths grow from 2 pi to 2 pi times this."""

Vectors = Float[Tensor, "*batch length width"]
At = Int[Tensor, "length"]  # the position of each token
Queries = Int[Tensor, "queries"]
Keys = Int[Tensor, "keys"]
Bias = Float[Tensor, "heads queries keys"] | None


class Position(nn.Module, ABC):
    """A positional encoding: three hooks, of which a subclass overrides those that it needs.

    Positions are counted from 0 and passed as ``at``, one per token; left out, they are 0, 1, ...
    :meth:`index` gives them, and refuses those past :attr:`max_length`.

    Attributes:
        name: Its name on the command line, see :data:`POSITIONS`.
        relative: Whether the shift law holds: scores depend on distances only.
        max_length: Positions it is defined for; None for any number.

    >>> NoPE().index(3)
    tensor([0, 1, 2])
    """

    name: ClassVar[str]
    relative: ClassVar[bool] = False
    max_length: int | None = None

    @classmethod
    @abstractmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "Position":
        """The encoding for a model of this shape; see :func:`isospike.positions.position`.

        Args:
            width: Channels of the model.
            heads: Number of attention heads.
            length: Length of the sequences.
            causal: Whether attention looks back only.

        Returns:
            The encoding.
        """

    def index(self, length: int, start: int = 0) -> Int[Tensor, "{length}"]:
        """Positions of ``length`` tokens that follow ``start`` others.

        Args:
            length: Number of tokens.
            start: Number of tokens before them.

        Returns:
            The positions.

        Raises:
            RangeError: A negative number, or a position past :attr:`max_length`.
        """
        if length < 0 or start < 0:
            raise RangeError(
                f"index needs length and start >= 0, got {length} and {start}. Count tokens from 0."
            )
        if self.max_length is not None and start + length > self.max_length:
            raise RangeError(
                f"{type(self).__name__} needs at most {self.max_length} positions, got "
                f"{start + length}. Make it with a larger max_length, or take an encoding without "
                "a limit."
            )
        return torch.arange(start, start + length)

    def add(self, x: Vectors, at: At | None = None) -> Vectors:
        """Add the encoding to the input of the first layer; by default, nothing.

        Args:
            x: The input.
            at: Position of each token; 0, 1, ... by default.

        Returns:
            The encoded input; type of ``x``.

        Raises:
            InputError: ``x`` or ``at`` is not a tensor.
            ShapeError: ``x`` or ``at`` has another shape.
            RangeError: A position past :attr:`max_length`, or one that is not a whole number.
        """
        return x

    def rotate(self, q: Vectors, k: Vectors, at: At | None = None) -> tuple[Vectors, Vectors]:
        """Rotate queries and keys of the same tokens; by default, not at all.

        Args:
            q: Queries of one head, or of several with the same width.
            k: Keys.
            at: Position of each token; 0, 1, ... by default.

        Returns:
            Rotated queries and keys.

        Raises:
            InputError: ``q``, ``k`` or ``at`` is not a tensor.
            ShapeError: ``q``, ``k`` or ``at`` has another shape.
            RangeError: A position past :attr:`max_length`, or one that is not a whole number.
        """
        return q, k

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        """The bias of the scores of queries and keys at these positions; None for no bias.

        Args:
            queries: Position of each query, the same in every row of a batch.
            keys: Position of each key, likewise.

        Returns:
            The bias. Where it is computed from distances it is float32, whatever the type of the
            module: bfloat16 counts to 256 only.

        Raises:
            InputError: Something is not a tensor.
            ShapeError: Not one axis each.
            RangeError: A position past :attr:`max_length`, or one that is not a whole number.
        """
        return None

    def _at(self, x: Tensor, at: Tensor | None) -> Tensor:
        """Positions of the tokens of ``x``, both checked."""
        owner = type(self).__name__
        check_floating(owner, "its input", x)
        if x.dim() < 2:
            raise ShapeError(
                f"{type(self).__name__} needs tensors [..., length, width], got {tuple(x.shape)}. "
                "Add the missing axis."
            )
        if at is None:
            return self.index(x.shape[-2]).to(x.device)
        check_whole(owner, "at", at)
        if at.shape != x.shape[-2:-1]:
            raise ShapeError(
                f"{type(self).__name__} needs a position for each of {x.shape[-2]} tokens, got "
                f"{tuple(at.shape)}. Give one number per token, or leave at out."
            )
        self._check_range(at)
        return at.to(x.device)

    def _check_pair(self, queries: Tensor, keys: Tensor) -> None:
        """Raise unless these are the positions of queries and keys, one axis each."""
        owner = type(self).__name__
        for name, at in {"queries": queries, "keys": keys}.items():
            check_whole(owner, name, at)
            if at.dim() != 1:
                raise ShapeError(
                    f"{owner} needs {name} [length], got {tuple(at.shape)}. Give the positions of "
                    "one row; for rows that differ, call it for each."
                )
        check_devices(owner, queries=queries, keys=keys)

    def _check_range(self, at: Tensor) -> None:
        if self.max_length is None or not at.numel() or at.is_meta:
            return
        at = unwrapped(at)
        if int(at.min()) < 0 or int(at.max()) >= self.max_length:
            raise RangeError(
                f"{type(self).__name__} needs positions in [0, {self.max_length}), got "
                f"{int(at.min())} to {int(at.max())}. Make it with a larger max_length."
            )


class Additive(Position):
    """An encoding that adds a vector for each position to the input of the first layer.

    >>> from isospike.positions import Sinusoidal
    >>> isinstance(Sinusoidal(width=4), Additive)
    True
    """

    @abstractmethod
    def table(self, at: At) -> Float[Tensor, "length width"]:
        """The vector of each position.

        Args:
            at: Positions, whole numbers.

        Returns:
            ``[length, width]``.
        """

    def add(self, x: Vectors, at: At | None = None) -> Vectors:
        table = self.table(self._at(x, at))
        if x.shape[-1] != table.shape[-1]:
            raise ShapeError(
                f"{type(self).__name__} needs input of width {table.shape[-1]}, got "
                f"{tuple(x.shape)}. Make it with the width of the model."
            )
        return x + table.to(x.dtype)


class NoPE(Position):
    """No positional encoding.

    Without a causal mask the model is then equivariant to permutations of its tokens. With one it
    is not: how many tokens a query sees betrays its position.

    >>> NoPE().bias(torch.arange(3), torch.arange(3)) is None
    True

    Reference: Kazemnejad et al. (2023), The impact of positional encoding on length generalization
    in transformers.
    """

    name = "none"
    relative = True

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "NoPE":
        return cls()


def check_positive(owner: str, **sizes: int) -> None:
    """Raise RangeError unless all ``sizes`` of ``owner`` are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise RangeError(f"{owner} needs {name} >= 1, got {size}. Give a positive number.")


def check_even(owner: str, **sizes: int) -> None:
    """Raise RangeError unless all ``sizes`` of ``owner`` are even and at least 2."""
    for name, size in sizes.items():
        if size < 2 or size % 2:
            raise RangeError(
                f"{owner} needs an even {name}, two channels to a frequency, got {size}. "
                "Choose an even width for every head."
            )
