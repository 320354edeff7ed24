"""Another encoding at random positions."""

import torch
from jaxtyping import Int
from torch import Tensor

from isospike.errors import RangeError, UnsupportedError
from isospike.positions.additive import Sinusoidal
from isospike.positions.base import At, Bias, Keys, Position, Queries, Vectors, check_positive


class RandomizedOrdered(Position):
    """Another encoding at random positions, of which only the order carries information.

    In training, L tokens stand at L positions drawn from ``max_length`` without repetition, in
    order. In ``eval`` mode they stand at the means of those draws, rounded:
    ``(i + 1) (max_length + 1) / (L + 1) - 1``. Deviates from the paper, which draws then as well.

    Args:
        base: The other encoding.
        max_length: Number of positions to draw from.
        generator: Draws the positions.

    Raises:
        RangeError: ``max_length`` is below 1, or ``base`` has fewer positions.

    >>> RandomizedOrdered(Sinusoidal(64), max_length=100).eval().index(4)
    tensor([19, 39, 60, 80])

    Reference: Ruoss et al. (2023), Randomized positional encodings boost length generalization of
    transformers.
    """

    name = "randomized"

    def __init__(
        self, base: Position, max_length: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_positive("RandomizedOrdered", max_length=max_length)
        if base.max_length is not None and base.max_length < max_length:
            raise RangeError(
                f"RandomizedOrdered needs a base for {max_length} positions, got one for "
                f"{base.max_length}. Make the base with a larger max_length."
            )
        self.base, self.max_length, self.generator = base, max_length, generator

    @classmethod
    def for_model(cls, width: int, heads: int, length: int, causal: bool) -> "RandomizedOrdered":
        return cls(Sinusoidal(width), 8 * length)

    def index(self, length: int, start: int = 0) -> Int[Tensor, "{length}"]:
        super().index(length, start)
        if start:
            raise UnsupportedError(
                "RandomizedOrdered needs the whole sequence at once, got tokens that follow "
                f"{start} others. Use another encoding with a cache."
            )
        limit = self.max_length or 0
        if self.training:
            drawn = torch.randperm(limit, generator=self.generator)[:length]
            return drawn.sort().values
        rank = torch.arange(1, length + 1, dtype=torch.float64)
        return (rank * (limit + 1) / (length + 1) - 1).round().long()

    def add(self, x: Vectors, at: At | None = None) -> Vectors:
        return self.base.add(x, self._at(x, at))

    def rotate(self, q: Vectors, k: Vectors, at: At | None = None) -> tuple[Vectors, Vectors]:
        return self.base.rotate(q, k, self._at(q, at))

    def bias(self, queries: Queries, keys: Keys) -> Bias:
        return self.base.bias(queries, keys)
