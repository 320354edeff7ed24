"""Watching a stream on line: the surprise of each value, and how unusual the present is."""

import math
import re
from collections import deque
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isospike.errors import InputError, RangeError
from isospike.memory.contexts import MachineSettings, Mixed
from isospike.memory.files import Shapes, damaged, read_machine, write_machine
from isospike.memory.kinds import expected_arrays
from isospike.memory.machine import SequenceMachine
from isospike.memory.symbols import checked_symbol
from isospike.report.numbers import Number

TILINGS = (
    (5, 0.0), (5, 0.5), (8, 0.0), (8, 0.5), (12, 0.25), (12, 0.75), (18, 0.1), (18, 0.6),
    (24, 0.0), (24, 0.5), (40, 0.3),
)  # fmt: skip
"""Cells in which a range of numbers is cut, and by what share of a cell they are moved."""

_CONTEXT = Mixed(depth=4, synapses=2**22, when_full="forget")  # of a machine that watches
_QUIET = 100  # values after an alarm in which only a stronger one counts
_MOST_BITS = 30.0
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

    Attributes:
        machines: One for symbols; for numbers one a tiling.
        count: Values taken so far.
        metadata: Your own notes, JSON values by name; they are saved with the watcher.

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
        self, low: Number | None = None, high: Number | None = None, *, seed: int = 0
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
            self._range = float(low), float(high)
        self.machines = [
            SequenceMachine(range(cells + 3), context=_CONTEXT, seed=seed)
            for cells, _ in (TILINGS if self._range else ())
        ] or [SequenceMachine(context=_CONTEXT, grow=True, seed=seed)]
        self.metadata: dict[str, Any] = {}
        self.count = 0
        self._last: deque[tuple[int, float]] = deque()  # bits of late that nothing has exceeded
        self._broken = False  # whether some machines have learned what others have not

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
            parts = self._parts([checked_symbol(value) for value in values])
            bits = np.zeros(0)
            self._broken = True
            for part in parts:
                bits = np.append(bits, self.machines[0].surprise_sequence(part))
        else:
            rows = [self._cells(value) for value in values]
            columns = [tuple(row[i] for row in rows) for i in range(len(TILINGS))]
            self._broken = True
            found = zip(self.machines, columns, strict=True)
            bits = np.mean([machine.surprise_sequence(column) for machine, column in found], axis=0)
        moments = [Moment(of, 1 - 2.0**-of if self._rare(of) else 0.0) for of in bits.tolist()]
        self._broken = False
        return moments

    @property
    def limits(self) -> tuple[float, float] | None:
        """Least and greatest number expected; None of symbols."""
        return self._range

    @property
    def whole(self) -> bool:
        """Whether it can go on and be saved: not if an exception, as of Ctrl-C, came in between."""
        return not self._broken

    def save(self, path: str | Path) -> None:
        """Write the watcher to one safetensors file; the file before it survives a crash.

        Args:
            path: Where to write; folders are made.

        Raises:
            InputError: An exception has left the watcher half way, symbols that are neither strings
                nor integers, metadata that are no JSON, a place that cannot be written to, or a
                full disk.
        """
        if self._broken:
            raise InputError(
                "save needs a watcher that took every value as a whole, got one that an exception "
                "left half way. Load the one that was saved before."
            )
        states = [machine.state() for machine in self.machines]
        about = {
            "watcher": [about for about, _ in states], "range": self._range, "count": self.count,
            "last": list(self._last), "metadata": self.metadata,
        }  # fmt: skip
        arrays = {
            f"{i}.{name}": array for i, (_, of) in enumerate(states) for name, array in of.items()
        }
        write_machine(Path(path), about, arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Watcher":
        """Read a watcher that :meth:`save` wrote.

        Args:
            path: Its file.

        Returns:
            The watcher, which goes on where it was.

        Raises:
            InputError: Not such a file, cut short, changed, or of another format.
        """
        path = Path(path)
        about, tensors = read_machine(path, _expected)
        watcher = cls(*(about["range"] or ()))
        try:
            watcher.machines = [
                SequenceMachine.of_state(of, {n[len(f"{i}.") :]: a for n, a in tensors.items()
                                              if n.startswith(f"{i}.")})
                for i, of in enumerate(about["watcher"])
            ]  # fmt: skip
        except ValueError as error:
            raise damaged(path, str(error).rstrip(".")) from error
        watcher.metadata, watcher.count = about["metadata"], about["count"]
        watcher._last.extend((place, bits) for place, bits in about["last"])
        return watcher

    def _parts(self, symbols: list[Hashable]) -> list[list[Hashable]]:
        """Cut a sequence before every new symbol: the alphabet does not know it before it comes."""
        parts: list[list[Hashable]] = [[]]
        new: set[Hashable] = set()
        for symbol in symbols:
            if symbol not in new and symbol not in self.machines[0]:
                new.add(symbol)
                parts.append([])
            parts[-1].append(symbol)
        return parts

    def _rare(self, bits: float) -> bool:
        """Whether a value surprises more than each of the last; it then is one of them."""
        last = self._last
        while last and last[0][0] < self.count - _QUIET:
            last.popleft()
        rare = not last or bits > last[0][1]
        while last and last[-1][1] <= bits:
            last.pop()
        last.append((self.count, bits))
        self.count += 1
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


def _expected(about: dict[str, Any]) -> Shapes:
    """The arrays of a watcher's file, as :func:`expected_arrays` has those of a machine's."""
    limits, machines, last = about["range"], about["watcher"], about["last"]
    if limits is not None:
        low, high = limits
        if not all(type(end) is float and math.isfinite(end) for end in limits) or low >= high:
            raise ValueError("its range is none")
    if len(machines) != (1 if limits is None else len(TILINGS)):
        raise ValueError("it has not one machine a tiling")
    if type(about["count"]) is not int or about["count"] < 0:
        raise ValueError("its count is none")
    before = -1
    for place, bits in last:
        if not before < place < about["count"] or not 0 <= bits <= _MOST_BITS:
            raise ValueError("its last surprises are none")
        before = place
    if type(about["metadata"]) is not dict:
        raise ValueError("its metadata are no dictionary")
    shapes: Shapes = {}
    for i, of in enumerate(machines):
        cells = None if limits is None else list(range(TILINGS[i][0] + 3))
        settings = MachineSettings.from_dict(of["settings"])
        if settings.context != _CONTEXT or cells not in (None, of["symbols"]):
            raise ValueError("its machines are not those of a watcher")
        shapes |= {f"{i}.{name}": shape for name, shape in expected_arrays(of).items()}
    return shapes


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
