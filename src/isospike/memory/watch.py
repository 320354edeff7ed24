"""Watching a stream on line: the surprise of each value, and how unusual the present is."""

import math
import re
from collections import deque
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

from isospike.errors import InputError, RangeError
from isospike.memory.contexts import Mixed
from isospike.memory.machine import SequenceMachine

TILINGS = (
    (5, 0.0), (5, 0.5), (8, 0.0), (8, 0.5), (12, 0.25), (12, 0.75), (18, 0.1), (18, 0.6),
    (24, 0.0), (24, 0.5), (40, 0.3),
)  # fmt: skip
"""Cells in which a range of numbers is cut, and by what share of a cell they are moved."""

_DEPTH = 4  # symbols of the longest context of a machine that watches
_QUIET = 100  # values after an alarm in which only a stronger one counts
_VARIABLE = re.compile(r"(?<![A-Za-z])[-+./:\w]*\d[-+./:\w]*")


class Moment(NamedTuple):
    """What a watcher says of one value.

    Attributes:
        bits: Its surprise: ``-log2`` of the probability it had before it came.
        anomaly: In [0, 1): ``1 - 2**-bits``, and 0 if one of the last hundred values surprised as
            much, so that one event is one alarm.

    >>> Moment(bits=1.0, anomaly=0.5).bits
    1.0
    """

    bits: float
    anomaly: float


class Watcher:
    """Predicts every value of a stream before it comes, and learns it.

    A symbol is learned by one machine. A number is coded by overlapping tilings of its range: in
    each tiling it falls into one cell, near numbers fall into the same cells, and a machine a
    tiling predicts the next cell. Its surprise is the mean over the tilings, so that a number near
    the expected one surprises little.

    Args:
        low: Least number expected; None for a stream of symbols.
        high: Greatest number expected, above ``low``. Numbers outside fall into a cell of their
            own at either end.
        seed: Draws the machines.

    Raises:
        InputError: Only one of ``low`` and ``high``.
        RangeError: They are not finite, or not in order.

    Example:
        >>> from isospike.memory import Watcher
        >>> watcher = Watcher()
        >>> moments = [watcher.take(symbol) for symbol in "ab" * 50 + "c"]
        >>> moments[-2].bits < 0.1 < 5 < moments[-1].bits
        True
    """

    def __init__(
        self, low: float | None = None, high: float | None = None, *, seed: int = 0
    ) -> None:
        if (low is None) != (high is None):
            raise InputError(
                f"Watcher needs low and high for numbers, or neither, got {low} and {high}. Give "
                "both."
            )
        self._range: tuple[float, float] | None = None
        if low is not None and high is not None:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise RangeError(
                    f"Watcher needs finite low < high, got {low} and {high}. Give the range in "
                    "which numbers are expected."
                )
            self._range = low, high
        self.machines = [
            SequenceMachine(range(cells + 3), context=Mixed(depth=_DEPTH), seed=seed)
            for cells, _ in (TILINGS if self._range else ())
        ] or [SequenceMachine(context=Mixed(depth=_DEPTH), grow=True, seed=seed)]
        self._last: deque[tuple[int, float]] = deque()  # bits of late that nothing has exceeded
        self._count = 0

    def take(self, value: Hashable) -> Moment:
        """The surprise of a value, which then is learned.

        Args:
            value: A number, or a symbol.

        Returns:
            Its surprise and how unusual it is.

        Raises:
            RangeError: A number that is not finite.
            InputError: No number where one is needed, or what is no symbol.
        """
        return self.take_all([value])[0]

    def take_all(self, values: Iterable[Hashable]) -> list[Moment]:
        """The same for many values, one after another.

        Args:
            values: Numbers, or symbols.

        Returns:
            What :meth:`take` says of each.

        Raises:
            RangeError: As :meth:`take`; then nothing is learned.
            InputError: Likewise.
        """
        if self._range is None:
            columns = [tuple(values)]
        else:
            rows = [self._cells(value) for value in values]
            columns = [tuple(row[i] for row in rows) for i in range(len(TILINGS))]
        found = zip(self.machines, columns, strict=True)
        bits = np.mean([machine.surprise_sequence(column) for machine, column in found], axis=0)
        return [Moment(of, 1 - 2.0**-of if self._rare(of) else 0.0) for of in bits.tolist()]

    def _rare(self, bits: float) -> bool:
        """Whether a value surprises more than each of the last; it then is one of them."""
        last = self._last
        while last and last[0][0] < self._count - _QUIET:
            last.popleft()
        rare = not last or bits > last[0][1]
        while last and last[-1][1] <= bits:
            last.pop()
        last.append((self._count, bits))
        self._count += 1
        return rare

    def _cells(self, value: Hashable) -> list[Hashable]:
        """The cell of each tiling in which a number falls."""
        low, high = self._range or (0.0, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise InputError(f"take needs a number, got {value!r}. Leave it out.")
        if not math.isfinite(value):
            raise RangeError(f"take needs a finite number, got {value}. Leave it out.")
        share = (value - low) / (high - low)
        return [
            min(max(math.floor(share * cells + moved) + 1, 0), cells + 2)
            for cells, moved in TILINGS
        ]


def line_template(line: str) -> str:
    """A line of a log without what varies: every word with a digit becomes ``*``.

    Args:
        line: Of a log.

    Returns:
        Its template.

    >>> line_template("Jun 14 15:16:01 combo sshd[19939]: failure; rhost=218.188.2.4")
    'Jun * * combo sshd[*]: failure; rhost=*'
    """
    return _VARIABLE.sub("*", line.strip())
