"""The inside of a sequence machine that mixes what contexts of many kinds have counted."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from isospike.data.readers import MOST_NOTE
from isospike.errors import InputError
from isospike.kernels.machine import mixing, mixture
from isospike.kernels.machine.handle import Handle
from isospike.kernels.machine.intervals import HOME, MIDDLE, PITCH, RELATIVE
from isospike.memory.addressed import MOST_COUNT, Found, check_range
from isospike.memory.contexts import Mixed
from isospike.memory.files import Shapes
from isospike.memory.notes import Notes

_LEAST = 256  # of lines, cells and symbols of the history, each a power of two
_MOST_GAIN = 100.0  # of a weight in a file, and of how often pitches occurred lately


class MixedMemory:
    """Lines of counters, of which one a kind of context fires; their votes are mixed.

    A line is a context that has occurred. For symbol s, which it counted c times of n, among u
    different symbols, it votes, with d = 3/4,

    (1)  v(s) = log(1 + (c - d) / (d u q(s)))

    where q is the unigram or, for contexts of the last 1, 2, .. ``depth`` symbols, the back-off of
    the shorter ones (Kneser and Ney). With the unigram p_0 the probability of s is

    (2)  p(s) ~ p_0(s) exp(sum over lines of (w v(s) + b + g))

    All weights w of a line's votes, by its kind, its state (n, u), the longest context known and
    the latest symbol, the biases b of a state's counts and of the symbol that came last, and the
    gain g of each cell are learned with every symbol, by a step along the slope of log p. With
    w = 1 for the last symbols' contexts and the rest 0, (2) is back-off itself; they begin with
    .7 for the last symbol and less, down to .3, for longer contexts: what follows a context seldom
    met is less sure than back-off has it. One more vote is that of the longest match of the last
    symbols in the history.

    Args:
        context: Depth, size, and what happens when the store is full.
        seed: Draws the hash that leads from a context to its line.

    Reference: Mahoney (2005), Adaptive weighing of context models for lossless data compression;
    Kneser and Ney (1995), Improved backing-off for m-gram language modeling.
    """

    def __init__(self, context: Mixed, seed: int) -> None:
        self._context, self._seed = context, seed
        self._notes = Notes()
        kinds = _kinds(context)
        by_state = np.zeros((kinds, mixture.STATES, 2 + mixture.COUNTS), np.float32)
        by_state[: context.depth, :, 0] = np.linspace(0.7, 0.3, context.depth)[:, None]
        by_state[context.depth :, :, 0] = 0.1
        self._mixture = mixture.Mixture(
            at=np.zeros(mixture.PLACES, np.int64), last=np.full(mixture.SEEN, -1, np.int64),
            spans=np.zeros(2, np.uint64),
            seed=np.random.SeedSequence([seed]).generate_state(1, np.uint64),
            history=np.zeros(_LEAST, np.int32), recent=np.zeros(_LEAST, np.int64),
            lines=np.zeros((_LEAST, 3), np.int32), cells=np.zeros((_LEAST, 3), np.int32),
            gains=np.zeros(_LEAST, np.float32), often=np.zeros(0, np.float32), by_state=by_state,
            by_depth=np.zeros((kinds, context.depth + 1), np.float32),
            by_latest=np.zeros((kinds, mixture.LATEST), np.float32),
            by_match=np.full(mixture.MATCHES, 0.5, np.float32), notes=self._notes.rows,
            index=self._notes.index, tone=np.array([MIDDLE, 0], np.int64), classes=np.zeros(12),
        )  # fmt: skip
        widest = (kinds, mixture.WIDEST)
        self._votes = mixture.Votes(
            ready=np.zeros(6, np.int64), place=np.zeros((kinds, 4), np.int64),
            cell=np.zeros((*widest, 2), np.int32), vote=np.zeros(widest),
            marked=np.zeros(0, np.int64), candidates=np.zeros(0, np.int64), base=np.zeros(0),
            chain=np.zeros(0), score=np.zeros(0), share=np.zeros(0), rest=np.zeros(1),
        )  # fmt: skip
        self._handle = Handle(self._mixture, self._votes)
        self._room: dict[str, Any] = {}

    @staticmethod
    def shapes(context: Mixed, symbols: int, extent: list[int]) -> Shapes:
        """Shapes and types of :meth:`tensors`.

        Args:
            context: Of a machine.
            symbols: Size of its alphabet.
            extent: Of its memory.

        Raises:
            ValueError: No machine has such an extent.
        """
        lines, cells, history = extent
        if not 0 <= lines <= cells or not 0 <= history <= mixture.MOST_HISTORY:
            raise ValueError("its extent is none")
        kinds = _kinds(context)
        tonal: Shapes = {"tone": ((2,), "int64"), "classes": ((12,), "float64")}
        return {
            "at": ((mixture.PLACES,), "int64"),
            "last": ((mixture.SEEN,), "int64"),
            "spans": ((2,), "int64"),
            "history": ((history,), "int32"),
            "recent": ((_room_for(history),), "int64"),
            "checks": ((lines,), "int32"),
            "sizes": ((lines,), "uint8"),
            "cell_symbols": ((cells,), "int32"),
            "cell_counts": ((cells,), "int32"),
            "gains": ((cells,), "float32"),
            "often": ((symbols,), "float32"),
            "by_state": ((kinds, mixture.STATES, 2 + mixture.COUNTS), "float32"),
            "by_depth": ((kinds, context.depth + 1), "float32"),
            "by_latest": ((kinds, mixture.LATEST), "float32"),
            "by_match": ((mixture.MATCHES,), "float32"),
            **(tonal if context.notes else {}),
        }

    @property
    def scores(self) -> Any:
        m = self._mixture
        if m.at[mixture.CLOCK] == 0:
            return np.zeros(len(m.often), np.float32)
        mixing.vote(m, self._votes)
        scores = self._votes.rest[0] * (m.often + 0.5) / (m.at[mixture.CLOCK] + 0.5 * len(m.often))
        found = self._votes.candidates[: self._votes.ready[mixture.FOUND]]
        scores[found] = self._votes.share[found]
        return scores.astype(np.float32)

    @property
    def synapses(self) -> int:
        return int(self._mixture.at[mixture.CELLS])

    @property
    def full(self) -> bool:
        return bool(self._mixture.at[mixture.CLOSED])

    @property
    def extent(self) -> list[int]:
        at = self._mixture.at
        history = min(int(at[mixture.CLOCK]), mixture.MOST_HISTORY)
        return [int(at[mixture.LINES]), int(at[mixture.CELLS]), history]

    def resize(self, symbols: int, new: Sequence[Hashable] = ()) -> None:
        if symbols == len(self._mixture.often):
            return
        self._votes.ready[mixture.READY] = 0
        if symbols > len(self._room.get("often", ())):
            size = max(_LEAST, 1 << (symbols - 1).bit_length())
            often = np.zeros(size, np.float32)
            often[: len(self._mixture.often)] = self._mixture.often
            whole = {name: np.zeros(size, np.int64) for name in ("marked", "candidates")}
            real = {name: np.zeros(size) for name in ("base", "chain", "score", "share")}
            self._room = {"often": often, **whole, **real}
        else:  # a copy's counts are no longer a part of its room
            self._room["often"][: len(self._mixture.often)] = self._mixture.often
        room = {name: array[:symbols] for name, array in self._room.items()}
        if self._context.notes:
            if len(self._notes.rows) + len(new) != symbols:
                raise InputError(
                    f"resize needs the new symbols of a memory of notes, got {len(new)}. Pass them."
                )
            self._notes.add(new)
        self._mixture = self._mixture._replace(
            often=room.pop("often"), notes=self._notes.rows, index=self._notes.index
        )
        self._votes = self._votes._replace(**room)

    def reset_context(self) -> None:
        m = self._mixture
        m.last[:] = -1
        m.spans[:] = 0
        m.at[mixture.LENGTH] = 0
        m.tone[:], m.classes[:] = (MIDDLE, 0), 0
        self._votes.ready[mixture.READY] = 0

    def clear(self) -> None:
        symbols, notes = len(self._mixture.often), self._notes
        self.__init__(self._context, self._seed)  # type: ignore[misc]
        self._notes = notes
        self.resize(symbols)

    def score(self) -> None:
        mixing.vote(self._mixture, self._votes)

    def store(self, symbol: int) -> None:
        while not mixing.has_room(self._mixture):
            self._make_room()
        mixing.store(self._mixture, self._votes, symbol)

    def advance(self, symbol: int) -> None:
        mixing.advance(self._mixture, self._votes, symbol)

    def rank(self, order: Any, value: Any) -> None:
        mixing.step(self._parts(), -1, False, True, order, value)

    def step(self, symbol: int, learn: bool, ahead: bool, order: Any, value: Any) -> None:
        while not mixing.step(self._parts(), symbol, learn, ahead, order, value):
            self._make_room()

    def stream(self, ids: Any, learn: bool, found: Found) -> None:
        done = 0
        while True:
            rest = [array[done:] for array in found]
            done += mixing.stream(self._parts(), ids[done:], learn, *rest)
            if done == len(ids):
                return
            self._make_room()

    def tensors(self) -> dict[str, Any]:
        m = self._mixture
        lines, cells, history = self.extent
        packed = self._pack(lines, cells)
        at, first = m.at.copy(), int(m.at[mixture.CLOCK]) - history
        at[[mixture.STAMP, mixture.CLOSED]] = lines, 0
        past = m.history[np.arange(first, first + history) & (len(m.history) - 1)]
        same = {name: getattr(m, name) for name in ("recent", *self._kept)}
        return {"at": at, "spans": m.spans.view(np.int64), "history": past, **packed, **same}

    def check(self, tensors: dict[str, Any]) -> None:
        symbols, at = len(self._mixture.often), tensors["at"]
        check_range("last", tensors["last"] + 1, symbols)
        check_range("history", tensors["history"], symbols - 1)
        check_range("recent", tensors["recent"], int(at[mixture.CLOCK]))
        check_range("cell_counts", tensors["cell_counts"] - 1, 2**31 - 2)
        check_range("sizes", tensors["sizes"] - 1.0, mixture.WIDEST - 1)
        check_range("often", tensors["often"], MOST_COUNT)
        checks, relative = tensors["checks"], self._context.notes
        check_range("checks", (np.abs(checks) if relative else checks) - 1.0, 2**31 - 2)
        for name in ("gains", "by_state", "by_depth", "by_latest", "by_match"):
            check_range(name, tensors[name] + _MOST_GAIN, 2 * _MOST_GAIN)
        if len(np.unique(checks)) < len(checks) or tensors["sizes"].sum(dtype=np.int64) != len(
            tensors["gains"]
        ):
            raise ValueError("its lines are not those of a store")
        cells = tensors["cell_symbols"]
        check_range("cell_symbols", cells, 2**31 - 1)
        check_range("cell_symbols", cells[np.repeat(checks > 0, tensors["sizes"])], symbols - 1)
        if relative:
            check_range("tone", tensors["tone"][PITCH], MOST_NOTE)
            check_range("tone", tensors["tone"][HOME], 11)
            check_range("classes", tensors["classes"], _MOST_GAIN)
        clock = int(at[mixture.CLOCK])
        most = {
            mixture.CLOCK: 2**62, mixture.MATCH: clock, mixture.LENGTH: mixture.LONGEST,
            mixture.COMMON: max(0, symbols - 1), mixture.CLOSED: 0,
        }  # fmt: skip
        for place, value in most.items():
            check_range("at", at[place : place + 1], value)
        if [int(at[mixture.LINES]), int(at[mixture.CELLS])] != [len(checks), len(tensors["gains"])]:
            raise ValueError("it has at outside its store")
        if len(tensors["history"]) != min(clock, mixture.MOST_HISTORY):
            raise ValueError("it has history outside its clock")

    def restore(self, tensors: dict[str, Any]) -> None:
        m, clock = self._mixture, int(tensors["at"][mixture.CLOCK])
        for name in ("at", *self._kept):
            getattr(m, name)[...] = tensors[name]
        m.spans[:] = tensors["spans"].view(np.uint64)
        self._votes.ready[mixture.READY], self._votes.ready[mixture.SECOND] = 0, -1
        past = tensors["history"]
        self._mixture = m._replace(
            history=np.zeros(len(tensors["recent"]), np.int32),
            recent=tensors["recent"].copy(),
        )
        m = self._mixture
        m.history[np.arange(clock - len(past), clock) & (len(m.history) - 1)] = past
        names = ("checks", "sizes", "cell_symbols", "cell_counts", "gains")
        packed = {name: tensors[name] for name in names}
        self._unpack(_room_for(len(packed["gains"]) + 1), packed)

    @property
    def _kept(self) -> tuple[str, ...]:
        """Arrays that a file has as they are."""
        notes = ("tone", "classes") if self._context.notes else ()
        return "last", "often", "by_state", "by_depth", "by_latest", "by_match", *notes

    def _parts(self) -> Handle:
        """What was learned, and the votes, as one argument."""
        learned, votes = self._handle.parts
        if learned is not self._mixture or votes is not self._votes:
            self._handle = Handle(self._mixture, self._votes)
        return self._handle

    def _pack(self, lines: int, cells: int) -> dict[str, Any]:
        """The ``lines`` that fired last, which have ``cells``, as a file has them."""
        m = self._mixture
        places = self._by_age()[-lines:] if lines else np.zeros(0, np.int64)
        packed = {
            "checks": np.zeros(lines, np.int32), "sizes": np.zeros(lines, np.uint8),
            "cell_symbols": np.zeros(cells, np.int32), "cell_counts": np.zeros(cells, np.int32),
            "gains": np.zeros(cells, np.float32),
        }  # fmt: skip
        mixture.pack(m, places, *packed.values())
        return packed

    def _unpack(self, size: int, packed: dict[str, Any]) -> None:
        """Lines and cells as :meth:`_pack` made them, in room for ``size`` cells."""
        lines, m = len(packed["checks"]), self._mixture
        m = m._replace(
            at=m.at.copy(), lines=np.zeros((_room_for(3 * lines // 2 + 1), 3), np.int32),
            cells=np.zeros((size, 3), np.int32), gains=np.zeros(size, np.float32),
        )  # fmt: skip
        mixture.unpack(m, *packed.values())
        self._mixture = m  # all at once: nothing is lost if a key interrupts before

    def _by_age(self) -> Any:
        """Where the lines are, the one that fired longest ago first."""
        lines = self._mixture.lines
        places = np.flatnonzero(lines[:, 0])
        return places[lines[places, 2].argsort(kind="stable")]

    def _make_room(self) -> None:
        """Larger arrays; if that is not allowed, forget or close the store."""
        self._votes.ready[mixture.READY] = 0  # places change
        m, most = self._mixture, 1 << self._context.synapses.bit_length() - 1
        need = len(m.by_state)
        if m.at[mixture.STAMP] > mixture.MOST_STAMP:
            places = self._by_age()
            m.lines[places, 2] = np.arange(1, len(places) + 1)
            m.at[mixture.STAMP] = len(places)
        if m.at[mixture.CLOCK] >= len(m.history) and len(m.history) < mixture.MOST_HISTORY:
            self._lengthen()
        full = not m.at[mixture.CLOSED] and m.at[mixture.CELLS] + need >= len(m.cells)
        if full and len(m.cells) >= most and self._context.when_full != "grow":
            if self._context.when_full == "keep":
                m.at[mixture.CLOSED] = 1
            else:
                self._forget()
        elif full:  # a line's cells come to lie side by side, which makes them quick to read
            packed = self._pack(int(m.at[mixture.LINES]), int(m.at[mixture.CELLS]))
            self._unpack(2 * len(m.cells), packed)
        m = self._mixture
        if 3 * (m.at[mixture.LINES] + need) >= 2 * len(m.lines):
            lines = np.zeros((2 * len(m.lines), 3), np.int32)
            mixture.move_lines(m.lines, lines)
            self._mixture = m._replace(lines=lines)

    def _forget(self) -> None:
        """Drop the half of the lines that fired longest ago."""
        lines = int(self._mixture.at[mixture.LINES])
        kept = self._by_age()[lines // 2 :]
        cells = mixture.count_cells(self._mixture, kept)
        self._unpack(_room_for(cells + 1), self._pack(len(kept), cells))

    def _lengthen(self) -> None:
        """Room for twice the history."""
        m = self._mixture
        history = np.zeros(2 * len(m.history), np.int32)
        history[: len(m.history)] = m.history
        self._mixture = m._replace(history=history, recent=np.zeros(len(history), np.int64))
        mixing.find_places(self._mixture)


def _kinds(context: Mixed) -> int:
    """Kinds of contexts, each of which fires one line."""
    return context.depth + mixture.OTHERS + (RELATIVE if context.notes else 0)


def _room_for(number: int) -> int:
    """The size of an array for so many: a power of two."""
    return max(_LEAST, 1 << max(0, number - 1).bit_length())
