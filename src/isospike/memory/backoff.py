"""The inside of a sequence machine that counts what follows contexts of every length."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from isospike.kernels.machine import backoff as kernels
from isospike.kernels.machine.handle import Handle
from isospike.memory.addressed import MOST_COUNT, Found, check_range
from isospike.memory.contexts import Backoff
from isospike.memory.files import Shapes


class BackoffMemory:
    """Contexts of every length up to ``depth``, each of which counts what followed it.

    (1)  p_{-1}(s) = 1 / symbols
    (2)  p_o(s) = (max(c_o(s) - d, 0) + d u_o p_{o-1}(s)) / n_o,  d = 3/4

    with c_o(s) how often s was counted after the last o symbols, n_o the sum of these counts and
    u_o how many are not 0. What the discount d takes from each goes to the shorter context. A
    symbol is counted in the longest context and down to the first that has met it, so a shorter
    context counts the different longer ones before it, not how often the longest came by. Counts
    live in a fixed number of synapses, whatever the alphabet and the length of the stream.

    Args:
        context: Depth and number of synapses.
        seed: Draws the hash that leads from a context to its counts.

    Reference: Kneser and Ney (1995), Improved backing-off for m-gram language modeling; Chen and
    Goodman (1999), An empirical study of smoothing techniques for language modeling (the
    interpolated form); Cormode and Muthukrishnan (2005), An improved data stream summary: the
    count-min sketch.
    """

    def __init__(self, context: Backoff, seed: int) -> None:
        parts = {name: np.zeros(*of) for name, of in self.shapes(context, 0, []).items()}
        hashed = np.random.SeedSequence([seed]).generate_state(1, np.uint64)
        self._sketch = kernels.Sketch(seed=hashed, **parts)
        self._scores: Any = np.zeros(0, np.float32)

    @staticmethod
    def shapes(context: Backoff, symbols: int, extent: list[int]) -> Shapes:
        """Shapes and types of :meth:`tensors`, without making any.

        Args:
            context: Of a machine.
            symbols: Of its alphabet; changes nothing.
            extent: Changes nothing.
        """
        size = 1 << (context.synapses // 2).bit_length() - 1
        table = (2, max(1, size // 4)), "float32"
        return {
            "history": ((context.depth,), "int64"),
            "filled": ((1,), "int64"),
            "counts": ((2, size), "float32"),
            "totals": table,
            "kinds": table,
        }

    @property
    def scores(self) -> Any:
        return self._scores

    @property
    def extent(self) -> list[int]:
        return []

    @property
    def full(self) -> bool:
        return False

    @property
    def synapses(self) -> int:
        return int(self._sketch.counts.size)

    def resize(self, symbols: int, new: Sequence[Hashable] = ()) -> None:
        self._scores = np.zeros(symbols, np.float32)
        self._handle = Handle(self._sketch, self._scores)

    def reset_context(self) -> None:
        self._sketch.filled[0] = 0

    def score(self) -> None:
        kernels.score(self._sketch, self._scores)

    def store(self, symbol: int) -> None:
        kernels.store(self._sketch, symbol)

    def advance(self, symbol: int) -> None:
        kernels.advance(self._sketch, symbol)

    def rank(self, order: Any, value: Any) -> None:
        kernels.step(self._handle, -1, False, True, order, value)

    def step(self, symbol: int, learn: bool, ahead: bool, order: Any, value: Any) -> None:
        kernels.step(self._handle, symbol, learn, ahead, order, value)

    def stream(self, ids: Any, learn: bool, found: Found) -> None:
        kernels.stream(self._handle, ids, learn, *found)

    def tensors(self) -> dict[str, Any]:
        return {name: t for name, t in self._sketch._asdict().items() if name != "seed"}

    def check(self, tensors: dict[str, Any]) -> None:
        filled = tensors["filled"]
        check_range("filled", filled, len(tensors["history"]))
        check_range("history", tensors["history"][: filled[0]], len(self._scores) - 1)
        for name in ("counts", "totals", "kinds"):
            check_range(name, tensors[name], MOST_COUNT)

    def restore(self, tensors: dict[str, Any]) -> None:
        for name, tensor in self.tensors().items():
            tensor[...] = tensors[name]

    def clear(self) -> None:
        for tensor in self.tensors().values():
            tensor[...] = 0
