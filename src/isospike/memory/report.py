"""What a watcher said of a stream, in bounded memory, and its page."""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

from isospike.memory.watch import Moment
from isospike.report.figures import INK, OFF, ON, Axis, Figure, Series, line
from isospike.report.numbers import Number
from isospike.report.page import Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Table

MOST_SPANS = 1200
"""More parts of a stream are joined, two and two."""
MOST_EVENTS = 12
_FIRST = 100  # values to which everything is new
_LONGEST = 120  # characters of a symbol that is shown
PACKAGES = ("isospike", "numpy", "torch")


class Event(NamedTuple):
    """One value that was unusual.

    Attributes:
        anomaly: How unusual it was, in [0, 1].
        bits: Its surprise.
        number: Its place in the stream, from 1 on.
        shown: The value as it was printed.

    >>> Event(anomaly=0.9, bits=12.0, number=7, shown="disk failure").number
    7
    """

    anomaly: float
    bits: float
    number: int
    shown: str


class Span(NamedTuple):
    """Some values of a stream that follow one another.

    Attributes:
        first: Place of the first in the stream, from 1 on.
        low: Least number; None without numbers.
        high: Greatest number; None without numbers.
        bits: Largest surprise.
        anomaly: Largest anomaly.

    >>> Span(first=1, low=None, high=None, bits=3.0, anomaly=0.0).bits
    3.0
    """

    first: int
    low: float | None
    high: float | None
    bits: float
    anomaly: float


class Trace:
    """Keeps what is needed of an endless stream for a :class:`WatchReport`.

    Args:
        unit: What a value is, such as ``line``.
        start: Values that were taken before.

    Example:
        >>> from isospike.memory import Watcher
        >>> watcher, trace = Watcher(), Trace("char")
        >>> for symbol in "ab" * 100 + "c":
        ...     trace.add(watcher.take(symbol), symbol)
        >>> trace.report().events[0].shown
        'c'
    """

    def __init__(self, unit: str, start: int = 0) -> None:
        self._unit, self._start, self._count, self._sum = unit, start, 0, 0.0
        self._spans: list[Span] = []
        self._each = 1  # values of a span
        self._events: list[Event] = []

    def add(self, moment: Moment, shown: str, number: float | None = None) -> None:
        """Keep what matters of one value.

        Args:
            moment: What the watcher says of it.
            shown: The value as it is printed.
            number: The value, if it is a number.
        """
        self._count += 1
        self._sum += moment.bits
        place = self._start + self._count
        span = Span(place, number, number, moment.bits, moment.anomaly)
        if (self._count - 1) % self._each:
            self._spans[-1] = _joined(self._spans[-1], span)
        elif len(self._spans) < MOST_SPANS:
            self._spans.append(span)
        else:
            spans = self._spans
            self._spans = [_joined(a, b) for a, b in zip(spans[::2], spans[1::2], strict=True)]
            self._spans.append(span)
            self._each *= 2
        if place > _FIRST and moment.anomaly > 0:
            event = Event(moment.anomaly, moment.bits, place, shown[:_LONGEST])
            if len(self._events) < MOST_EVENTS:
                heapq.heappush(self._events, event)
            else:
                heapq.heappushpop(self._events, event)

    def report(self, parameters: dict[str, object] | None = None) -> "WatchReport":
        """What has been kept so far.

        Args:
            parameters: What decided the result, by name.

        Returns:
            The report.
        """
        return WatchReport(
            title=f"A stream, {self._unit} by {self._unit}",
            provenance=Provenance.of(parameters, packages=PACKAGES),
            unit=self._unit,
            count=self._count,
            mean_bits=self._sum / max(1, self._count),
            spans=tuple(self._spans),
            events=tuple(sorted(self._events, reverse=True)),
        )


@dataclass(frozen=True, kw_only=True)
class WatchReport(Report):
    """How much a stream surprised a watcher, and where it was unusual.

    Attributes:
        unit: What a value is: ``line``, ``char`` or ``number``.
        count: Number of values.
        mean_bits: Mean surprise.
        spans: The stream from its beginning to its end.
        events: The most unusual values, the most unusual first; none of a stream's first hundred.

    >>> report = Trace("line").report()
    >>> report.verdict()
    'The stream was empty.'
    """

    unit: str
    count: int
    mean_bits: float
    spans: tuple[Span, ...]
    events: tuple[Event, ...]

    def verdict(self) -> str:
        """Which value was the most unusual."""
        if not self.count:
            return "The stream was empty."
        if not self.events:
            return f"Nothing unusual in {self.count:,} values."
        top = self.events[0]
        return (
            f"The most unusual of {self.count:,} values is number {top.number:,}: {top.shown}. It "
            f"surprised by {top.bits:.1f} bits, where {self.mean_bits:.1f} are the mean."
        )

    def headline(self) -> dict[str, str]:
        """Length, mean surprise, and the largest anomaly."""
        top = self.events[0] if self.events else None
        most = f"{top.anomaly:.3f}\nof 1, number {top.number:,}" if top else "0"
        return {
            "Values": f"{self.count:,}\n{self.unit} by {self.unit}",
            "Mean surprise": f"{self.mean_bits:.2f} bits\nbefore each was learned",
            "Largest anomaly": most,
        }

    def tables(self) -> dict[str, Table]:
        """The most unusual values, and the whole stream in spans."""
        events = Table(
            "The most unusual values",
            ("number", "value", "anomaly", "bits"),
            tuple((e.number, e.shown, e.anomaly, e.bits) for e in self.events),
            "Everything is new at first: the first hundred values are left out.",
            formats=("", "code", ".3f", ".2f"),
        )
        spans = Table(
            "The stream",
            ("first", "least", "greatest", "bits", "anomaly"),
            tuple(self.spans),
            "Of a span of values the largest surprise and anomaly.",
        )
        return {"events": events, "stream": spans}

    def sections(self) -> list[Section]:
        """The pictures above the table of the most unusual values."""
        if not self.spans:
            return []
        x = [span.first for span in self.spans]
        axis = Axis("number of the value")
        series = [("Surprise", "bits", [span.bits for span in self.spans], Axis("bits"))]
        limits = Axis("0 to 1", limits=(0.0, 1.05))
        series.append(("Anomaly", "anomaly", [span.anomaly for span in self.spans], limits))
        figures = [
            line(name, f"{title} along the stream.",
                 [Series(title, x, y, ON, symbol="", width=1)], axis, up, height=190, title=title,
                 legend=False)
            for title, name, y, up in series
        ]  # fmt: skip
        if self.unit == "number":
            figures.insert(0, self._values(x, axis))
        stream = Section(
            "Along the stream",
            "A value surprises by -log2 of the probability it had before it came. The anomaly says "
            "how unusual that is.",
            tuple(figures),
        )
        events = self.tables()["events"]
        return [stream, Section(events.title, events.meaning, (events,))]

    def _values(self, x: list[int], axis: Axis) -> Figure:
        """The numbers, with the most unusual marked."""
        shown = [("least", [s.low for s in self.spans])]
        if any(s.low != s.high for s in self.spans):
            shown.append(("greatest", [s.high for s in self.spans]))
        lines = [Series(n, x, y, INK, symbol="", width=1, legend=False) for n, y in shown]
        marked = [(e.number, float(e.shown), f"{e.anomaly:.3f}") for e in self.events]
        marks = Series(
            "most unusual", [m[0] for m in marked], [m[1] for m in marked], OFF, dash="", mark=8,
            hover=[m[2] for m in marked],
        )  # fmt: skip
        label = "The numbers along the stream; the most unusual are marked."
        return line("values", label, [*lines, marks], axis, "value", height=260, title="Values")


def _joined(a: Span, b: Span) -> Span:
    lows: list[Number] = [s.low for s in (a, b) if s.low is not None]
    highs: list[Number] = [s.high for s in (a, b) if s.high is not None]
    low, high = min(lows, default=None), max(highs, default=None)
    return Span(a.first, low, high, max(a.bits, b.bits), max(a.anomaly, b.anomaly))
