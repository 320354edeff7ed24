"""The peer of the sequence machine on text: an on-line back-off n-gram."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable


class BackoffNgram:
    """Predicts what most often followed the longest context it has met, of up to ``order`` symbols.

    Counts are exact and unbounded; of equal counts the earlier wins.
    """

    def __init__(self, order: int = 5) -> None:
        self.order = order
        self._counts: defaultdict[tuple[Hashable, ...], Counter[Hashable]] = defaultdict(Counter)
        self._context: tuple[Hashable, ...] = ()

    def predict(self) -> Hashable | None:
        """The next symbol; None before anything is learned."""
        for start in range(len(self._context) + 1):
            counts = self._counts.get(self._context[start:])
            if counts:
                return max(counts, key=counts.__getitem__)
        return None

    def learn(self, symbol: Hashable) -> None:
        """Count ``symbol`` in every context it followed, and move on."""
        for start in range(len(self._context) + 1):
            self._counts[self._context[start:]][symbol] += 1
        self._context = (*self._context, symbol)[-self.order :] if self.order else ()

    def restart(self) -> None:
        """Forget the context; what is counted stays."""
        self._context = ()

    def learn_sequence(self, sequence: Iterable[Hashable]) -> list[bool]:
        """Whether each symbol was predicted before it was learned."""
        right = []
        for symbol in sequence:
            right.append(self.predict() == symbol)
            self.learn(symbol)
        return right
