"""A baseline for the sequence machine on text: an on-line back-off n-gram."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable

from isospike.errors import RangeError


class BackoffNgram:
    """Predicts what most often followed the longest known context of up to ``order`` symbols.

    Counts are exact and unbounded; of equal counts the earlier symbol wins.

    Args:
        order: Symbols of the longest context, at least 0.

    Raises:
        RangeError: ``order < 0``.

    Example:
        >>> from isospike.memory import BackoffNgram
        >>> ngram = BackoffNgram(order=2)
        >>> ngram.learn_sequence("abab")
        [False, False, True, True]
        >>> ngram.predict()
        'a'
    """

    def __init__(self, order: int = 5) -> None:
        if order < 0:
            raise RangeError(f"BackoffNgram needs order >= 0, got {order}. Use 5, for example.")
        self.order = order
        self._counts: defaultdict[tuple[Hashable, ...], Counter[Hashable]] = defaultdict(Counter)
        self._context: tuple[Hashable, ...] = ()

    def predict(self) -> Hashable | None:
        """The next symbol.

        Returns:
            The best one; None before anything is learned.
        """
        for start in range(len(self._context) + 1):
            counts = self._counts.get(self._context[start:])
            if counts:
                return max(counts, key=counts.__getitem__)
        return None

    def learn(self, symbol: Hashable) -> None:
        """Count ``symbol`` in every context it followed, and move on.

        Args:
            symbol: Any hashable value.
        """
        for start in range(len(self._context) + 1):
            self._counts[self._context[start:]][symbol] += 1
        self._context = (*self._context, symbol)[-self.order :] if self.order else ()

    def reset_context(self) -> None:
        """Empty the context; counts stay."""
        self._context = ()

    def learn_sequence(self, sequence: Iterable[Hashable]) -> list[bool]:
        """Predict and learn every symbol in turn.

        Args:
            sequence: The symbols.

        Returns:
            Whether each symbol was predicted before it was learned.
        """
        right = []
        for symbol in sequence:
            right.append(self.predict() == symbol)
            self.learn(symbol)
        return right
