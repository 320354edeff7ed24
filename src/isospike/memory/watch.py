"""Watching a stream on line: the surprise of each value, and how unusual the present is."""

import math
import re
from collections import deque
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isospike.errors import InputError, RangeError
from isospike.memory.contexts import Backoff, MachineSettings, Mixed
from isospike.memory.files import Shapes, damaged, read_machine, write_machine
from isospike.memory.kinds import expected_arrays
from isospike.memory.machine import SequenceMachine
from isospike.memory.rarity import Rarity
from isospike.memory.symbols import checked_symbol
from isospike.report.numbers import Number

TILINGS = (
    (5, 0.0), (5, 0.5), (8, 0.0), (8, 0.5), (12, 0.25), (12, 0.75), (18, 0.1), (18, 0.6),
    (24, 0.0), (24, 0.5), (40, 0.3),
)  # fmt: skip
"""Cells in which a range of numbers is cut, and by what share of a cell they are moved."""

_CONTEXT = Mixed(depth=4, synapses=2**22, when_full="forget")  # of a machine that watches
_PHASE_ONLY = Backoff(depth=1, synapses=2**13)  # of one that sees the phase and nothing else
_SHORT, _LONG = (1, 2, 3, 5), (6, 12, 24)  # values over which surprises are compared
_AGREED = 4  # tilings that surprise less than the one whose surprise counts
_QUIET = 100  # values after an alarm in which only a stronger one counts
_MOST_PHASES = 1024
_MOST_EVIDENCE = 100.0
_VARIABLE = re.compile(r"(?<![A-Za-z])[-+./:\w]*\d[-+./:\w]*")


class Moment(NamedTuple):
    """What a watcher says of one value.

    Attributes:
        bits: Its surprise: ``-log2`` of the probability it had before it came.
        anomaly: In [0, 1): ``1 - 2**-e`` of the evidence e that surprise and rarity are
            (:class:`isospike.memory.rarity.Rarity`); 0 if that is not above 0, or not above that of
            each of the last hundred values, so that one event is one alarm.

    >>> Moment(bits=1.0, anomaly=0.5).bits
    1.0
    """

    bits: float
    anomaly: float


class Watcher:
    """Predicts every value of a stream before it comes, and learns it.

    A symbol is learned by one machine. A number is coded by eleven overlapping tilings of its
    range: in each tiling it falls into one cell, near numbers fall into the same cells, and a
    machine a tiling predicts the next cell. Of the tilings' surprises the fifth least is taken, so
    that a number near the expected one surprises little.

    What recurs by the hour of the day, or in any cycle, is learned if the phase of each number is
    given. Eleven more machines then read phase and cell in turn, and the mean of both surprises is
    taken. Eleven others see the phase alone: what is usual, but not at this time, surprises them,
    and as long as it lasts.

    How unusual a surprise is, is judged by all before it, in means of 1, 2, 3 and 5 values; that of
    the phase alone in means of 6, 12 and 24. The larger evidence counts.

    Attributes:
        machines: One for symbols; for numbers one a tiling, or three with phases.
        phases: Phases of a cycle; 0 for none.
        count: Values taken so far.
        metadata: Your own notes, JSON values by name; they are saved with the watcher.

    Args:
        low: Least number expected; None for a stream of symbols.
        high: Greatest number expected, above ``low``. Numbers outside fall into a cell of their
            own at either end.
        phases: Phases of a cycle, such as 24 hours of the day, at most 1024; 0 for none. For
            numbers.
        seed: Draws the machines.

    Raises:
        InputError: Only one of ``low`` and ``high``, or phases of symbols.
        RangeError: They are not finite, not in order, or there are no such phases.

    Example:
        >>> from isospike.memory import Watcher
        >>> watcher = Watcher()
        >>> moments = [watcher.take(symbol) for symbol in "ab" * 50 + "c"]
        >>> moments[-2].bits < 0.1 < 5 < moments[-1].bits
        True
    """

    def __init__(
        self, low: Number | None = None, high: Number | None = None, *, phases: int = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self._range = _checked_range(low, high)
        if phases and self._range is None:
            raise InputError(
                f"Watcher needs numbers for phases, got phases={phases} without low and high. Give "
                "the range, or leave phases out."
            )
        if not 0 <= phases <= _MOST_PHASES:
            raise RangeError(
                f"Watcher needs phases from 0 to {_MOST_PHASES}, got {phases}. Use 24 for the "
                "hours of a day."
            )
        self.phases = phases
        self.machines = [
            SequenceMachine(symbols or (), context=context, grow=not symbols, seed=seed)
            for symbols, context in _machines(self._range is not None, phases)
        ]
        self._rarities = [Rarity(spans) for spans in _spans(phases)]
        self.metadata: dict[str, Any] = {}
        self.count = 0
        self._last: deque[tuple[int, float]] = deque()  # evidence of late that nothing has exceeded
        self._broken = False  # whether some machines have learned what others have not

    def take(self, value: Hashable, phase: int | None = None) -> Moment:
        """The surprise of a value, which then is learned.

        Args:
            value: A number, or a symbol.
            phase: Of the number, from 0 on, if there are phases.

        Returns:
            Its surprise and how unusual it is.

        Raises:
            RangeError: A number that is not finite, or a phase that is none.
            InputError: No number where one is needed, what is no symbol, a phase where there are
                none, or an exception has left the watcher half way.
        """
        return self.take_all([value], None if phase is None else [phase])[0]

    def take_all(
        self, values: Iterable[Hashable], phases: Iterable[int] | None = None
    ) -> list[Moment]:
        """The same for many values, one after another.

        Args:
            values: Numbers, or symbols.
            phases: Of the numbers, as many, if there are phases.

        Returns:
            What :meth:`take` says of each.

        Raises:
            RangeError: As :meth:`take`; then nothing is learned.
            InputError: Likewise, or not as many phases as values.
        """
        if self._broken:
            raise InputError(
                "take needs a watcher that took every value as a whole, got one that an exception "
                "left half way. Load the one that was saved before."
            )
        values = list(values)
        turns = self._turns(phases, len(values))
        if self._range is None:
            parts = self._parts([checked_symbol(value) for value in values])
            self._broken = True
            first = self.machines[0]
            level = np.concatenate([np.zeros(0), *(first.surprise_sequence(p) for p in parts)])
            groups = [level]
        else:
            rows = np.array([self._cells(value) for value in values], np.int64)
            self._broken = True
            groups = self._surprises(rows.reshape(-1, len(TILINGS)), turns)
            level = groups[0]
        evidence = np.max(
            [of.judge(bits, self.count) for of, bits in zip(self._rarities, groups, strict=True)],
            axis=0,
        )
        moments = [
            Moment(bits, max(0.0, 1 - 2.0**-e) if self._rare(e) else 0.0)
            for bits, e in zip(level.tolist(), evidence.tolist(), strict=True)
        ]
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
            "phases": self.phases, "last": list(self._last), "metadata": self.metadata,
        }  # fmt: skip
        arrays = {
            f"{i}.{name}": array for i, (_, of) in enumerate(states) for name, array in of.items()
        }
        for i, of in enumerate(self._rarities):
            arrays |= {f"rarity.{i}.{name}": array for name, array in of.tensors().items()}
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
        watcher = cls(*(about["range"] or ()), phases=about["phases"])
        try:
            watcher.machines = [
                SequenceMachine.of_state(of, _under(f"{i}.", tensors))
                for i, of in enumerate(about["watcher"])
            ]
            for i, rarity in enumerate(watcher._rarities):
                rarity.restore(_under(f"rarity.{i}.", tensors), about["count"])
        except ValueError as error:
            raise damaged(path, str(error).rstrip(".")) from error
        watcher.metadata, watcher.count = about["metadata"], about["count"]
        watcher._last.extend((place, evidence) for place, evidence in about["last"])
        return watcher

    def _turns(self, phases: Iterable[int] | None, count: int) -> Any:
        """Phases of so many values."""
        if (phases is None) != (self.phases == 0):
            what = "none" if phases is None else "some"
            raise InputError(
                f"take needs {'a phase a value' if self.phases else 'no phases'}, got {what}. "
                f"The watcher was made with phases={self.phases}."
            )
        turns = [] if phases is None else list(phases)
        for phase in turns:
            if type(phase) is not int or not 0 <= phase < self.phases:
                raise RangeError(
                    f"take needs a phase from 0 to {self.phases - 1}, got {phase!r}. Count phases "
                    "from 0."
                )
        if self.phases and len(turns) != count:
            raise InputError(
                f"take_all needs a phase a value, got {len(turns)} for {count}. Give as many."
            )
        return np.array(turns, np.int64)

    def _surprises(self, cells: Any, turns: Any) -> list[Any]:
        """Of numbers in the cells of the tilings: by what came before, and by the phase alone."""
        groups, count = [], len(TILINGS)
        for at in range(0, len(self.machines), count):
            bits = []
            for machine, column, (most, _) in zip(
                self.machines[at : at + count], cells.T, TILINGS, strict=True
            ):
                if at == 0:
                    bits.append(machine.surprise_sequence(column.tolist()))
                    continue
                both = np.empty(2 * len(turns), np.int64)
                both[0::2], both[1::2] = turns + most + 3, column
                bits.append(machine.surprise_sequence(both.tolist())[1::2])
            groups.append(np.sort(bits, axis=0)[_AGREED])
        if self.phases:
            plain, timed, alone = groups
            return [(plain + timed) / 2, alone]
        return groups

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

    def _rare(self, evidence: float) -> bool:
        """Whether a value has more evidence than each of the last; it then is one of them."""
        last = self._last
        while last and last[0][0] < self.count - _QUIET:
            last.popleft()
        rare = not last or evidence > last[0][1]
        while last and last[-1][1] <= evidence:
            last.pop()
        last.append((self.count, evidence))
        self.count += 1
        return rare

    def _cells(self, value: Hashable) -> list[Hashable]:
        """The cell of each tiling in which a number falls."""
        low, high = self._range or (0.0, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise InputError(f"take needs a number, got {value!r}. Leave it out.")
        try:
            number = float(value)  # of a narrow type, in which differences would be rounded
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise RangeError(f"take needs a finite number, got {value}. Leave it out.")
        share = min(max((number / 2 - low / 2) / (high / 2 - low / 2), -1.0), 2.0)
        return [
            min(max(math.floor(share * cells + moved) + 1, 0), cells + 2)
            for cells, moved in TILINGS
        ]


def _checked_range(low: Number | None, high: Number | None) -> tuple[float, float] | None:
    if (low is None) != (high is None):
        raise InputError(
            f"Watcher needs low and high for numbers, or neither, got {low} and {high}. Give both."
        )
    if low is None or high is None:
        return None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RangeError(
            f"Watcher needs finite low < high, got {low} and {high}. Give the range in which "
            "numbers are expected."
        )
    return float(low), float(high)


def _machines(numbers: bool, phases: int) -> list[tuple[list[Hashable], Mixed | Backoff]]:
    """Alphabet and context of each machine; a phase follows the cells."""
    if not numbers:
        return [([], _CONTEXT)]
    kinds: list[tuple[int, Mixed | Backoff]]
    kinds = [(0, _CONTEXT), (phases, _CONTEXT), (phases, _PHASE_ONLY)]
    return [
        (list(range(cells + 3 + more)), context)
        for more, context in (kinds if phases else kinds[:1])
        for cells, _ in TILINGS
    ]


def _spans(phases: int) -> list[tuple[int, ...]]:
    return [_SHORT, _LONG] if phases else [_SHORT]


def _under(start: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The arrays whose names start so, by the rest of their names."""
    return {name[len(start) :]: a for name, a in tensors.items() if name.startswith(start)}


def _expected(about: dict[str, Any]) -> Shapes:
    """The arrays of a watcher's file, as :func:`expected_arrays` has those of a machine's."""
    limits, machines, last, phases = (about[n] for n in ("range", "watcher", "last", "phases"))
    if limits is not None:
        low, high = limits
        if not all(type(end) is float and math.isfinite(end) for end in limits) or low >= high:
            raise ValueError("its range is none")
    if type(phases) is not int or not 0 <= phases <= (0 if limits is None else _MOST_PHASES):
        raise ValueError("its phases are none")
    if type(about["count"]) is not int or about["count"] < 0:
        raise ValueError("its count is none")
    before = -1
    for place, evidence in last:
        if not before < place < about["count"] or not abs(evidence) <= _MOST_EVIDENCE:
            raise ValueError("its last surprises are none")
        before = place
    if type(about["metadata"]) is not dict:
        raise ValueError("its metadata are no dictionary")
    shapes: Shapes = {}
    made = _machines(limits is not None, phases)
    for i, (of, (symbols, context)) in enumerate(zip(machines, made, strict=True)):
        if MachineSettings.from_dict(of["settings"]).context != context or symbols not in (
            [], of["symbols"],
        ):  # fmt: skip
            raise ValueError("its machines are not those of a watcher")
        shapes |= {f"{i}.{name}": shape for name, shape in expected_arrays(of).items()}
    for i, spans in enumerate(_spans(phases)):
        shapes |= {f"rarity.{i}.{name}": shape for name, shape in Rarity.shapes(spans).items()}
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
