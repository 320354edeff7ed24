"""The sequence machine: one-shot, on-line memory of sequences of symbols."""

import copy
import functools
import threading
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.memory.addressed import MOST_COUNT, Found, Memory, check_range
from isospike.memory.bursts import SpikingMemory
from isospike.memory.contexts import Combined, Context, Counting, MachineSettings, Mixed, Store
from isospike.memory.files import damaged, read_machine, write_machine
from isospike.memory.kinds import BINS, expected_arrays, make_memory
from isospike.memory.layers import ABSTRACT
from isospike.memory.symbols import checked_symbol, plain_symbol

_RANKED = 5  # symbols that are ranked ahead
_PLAIN = (str, int)  # types of symbols that need no look

P = ParamSpec("P")
T = TypeVar("T")


def _alone(method: Callable[P, T]) -> Callable[P, T]:
    """A method of a machine that no two threads run at a time."""

    @functools.wraps(method)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with args[0]._lock:  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return alone


class Prediction(NamedTuple):
    """The symbol that a machine expects next.

    Attributes:
        symbol: The best match; None, with similarity 0, if nothing is stored for this context.
        similarity: In [0, 1]. With :class:`Mixed` and :class:`Backoff` its probability; with the
            rule ``or`` the share of the active locations' counters that hold the symbol; otherwise
            the symbol's share of the sum of all symbols.
        margin: Similarity less that of the second best.
        alternatives: The best matches with their similarities, best first.
        accepted: Whether predictions of about this margin have been right often enough; if not,
            the machine does not know.

    Example:
        >>> from isospike import SequenceMachine
        >>> machine = SequenceMachine("abc")
        >>> _ = machine.learn_sequence("abc")
        >>> machine.reset_context()
        >>> prediction = machine.predict()
        >>> prediction.symbol, round(prediction.similarity, 2), prediction.accepted
        ('a', 0.49, False)
    """

    symbol: Hashable | None
    similarity: float
    margin: float
    alternatives: tuple[tuple[Hashable, float], ...]
    accepted: bool


_NOTHING = Prediction(None, 0.0, 0.0, (), False)


class SequenceMachine:
    """A spiking sequence machine: encode, context, retrieve, store, decode.

    The symbols before form the context, which makes a few lines of a store fire; :meth:`learn`
    writes the next symbol into their counters, once, and :meth:`predict` reads it. By default
    contexts of many kinds fire one line each (:class:`Mixed`). As published, symbol n has a fixed
    random N-of-D order I_n and the context C_n is one K-of-M order that addresses a sparse
    distributed memory (:class:`Combined`). A new machine, and one after :meth:`reset_context`,
    stands in the context of a start symbol. Machines of one seed are equal, and share nothing.
    Threads may share a machine: its calls then follow one another, each in the context that the
    last one left.

    Attributes:
        symbols: The alphabet, in the order of the symbols' numbers.
        settings: Everything else that made the machine (:class:`MachineSettings`).
        metadata: Your own notes, JSON values by name; they are saved with the machine.

    Args:
        symbols: The alphabet, hashable values other than None and NaN; they are saved if they are
            strings or integers. 1, 1.0 and True are one symbol.
        context: How the context is formed: :class:`Mixed` (the default), :class:`Backoff`,
            :class:`Combined` (the default with a store or spiking layers), :class:`Layer` or
            :class:`Shift`.
        store: What the context addresses, by default ``Store()``; none with :class:`Mixed` and
            :class:`Backoff`, which count.
        layers: ``abstract``; or ``wheel`` or ``rdlif`` to compute every layer with spiking neurons,
            event by event. A wheel machine predicts exactly as an abstract one, an RDLIF machine
            nearly. For contexts with a store of the rule ``or`` or ``max``.
        confidence: Share of right predictions required of an accepted one, in [0, 1].
        grow: Take unknown symbols into the alphabet instead of refusing them; needs a store with
            ``data=None``.
        seed: Draws codes and connections, at least 0; 0 by default.
        generator: Draws the seed, if no seed is given.

    Raises:
        InputError: A symbol twice, one that is not hashable, a part of the wrong kind, or a seed
            and a generator.
        RangeError: A number outside its range.
        UnsupportedError: Parts that do not go together.

    Example:
        >>> from isospike import SequenceMachine
        >>> machine = SequenceMachine(grow=True)
        >>> machine.learn_sequence("abracadabra").tolist().count(True)  # predicted in one pass
        4
        >>> "".join(machine.generate("abr", 8))
        'acadabra'

    With ``context=Mixed(when_full=...)`` the store grows or forgets once it is :attr:`full`.

    Reference: Bose, Furber, Shapiro (2005), A spiking neural sparse distributed memory
    implementation for learning and predicting temporal sequences (ICANN); An associative memory
    for the on-line recognition and prediction of temporal sequences (IJCNN).
    """

    def __init__(
        self,
        symbols: Iterable[Hashable] = (),
        *,
        context: Context | None = None,
        store: Store | None = None,
        layers: str = ABSTRACT,
        confidence: float = 0.5,
        grow: bool = False,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if context is None:
            context = Mixed() if store is None and layers == ABSTRACT else Combined()
        if store is None and not isinstance(context, Counting):
            store = Store()
        self.settings = MachineSettings(
            context=context, store=store, layers=layers, confidence=confidence, grow=grow,
            seed=_seed(seed, generator),
        )  # fmt: skip
        self.symbols: list[Hashable] = []
        self.metadata: dict[str, Any] = {}
        self._ids: dict[Hashable, int] = {}
        # Predictions by their margin; one more number, always 0, lies beyond both ends.
        self._right, self._seen = [0.0] * (BINS + 1), [0.0] * (BINS + 1)
        self._expected: tuple[int, float] | None = None
        self._ranked = False  # whether order and value are those of the present context
        self._order, self._value = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._lock = threading.RLock()
        self._memory = make_memory(self.settings)
        for symbol in map(checked_symbol, symbols):
            if symbol in self._ids:
                raise InputError(
                    f"SequenceMachine needs each symbol once, got {symbol!r} twice. Pass "
                    "sorted(set(...)) of a sequence."
                )
            self._ids[symbol] = len(self.symbols)
            self.symbols.append(symbol)
        self._resize(len(self.symbols), self.symbols)
        self.reset_context()

    def __contains__(self, symbol: Hashable) -> bool:
        return plain_symbol(symbol) in self._ids

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # whole: what another thread learns meanwhile comes after it
            return copy.deepcopy({k: value for k, value in vars(self).items() if k != "_lock"})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # One symbol at a time.

    def predict(self, alternatives: int = 5) -> Prediction:
        """The symbol that comes next; changes nothing that is learned.

        Args:
            alternatives: How many matches to rank, at least 0.

        Returns:
            The best match, how good it is, and the alternatives.

        Raises:
            RangeError: ``alternatives < 0``.
        """
        if alternatives < 0:
            raise RangeError(
                f"predict needs alternatives >= 0, got {alternatives}. Use 0 for none."
            )
        with self._lock:
            symbols = self.symbols
            if not symbols:
                return _NOTHING
            if not self._ranked or alternatives > len(self._order):
                self._rank(min(max(2, alternatives), len(symbols)))
            order, value = self._order.tolist(), self._value.tolist()
            best = value[0]
            if best <= 0:
                self._expected = None
                return _NOTHING
            margin = best - value[1] if len(value) > 1 else best
            self._expected = order[0], margin
            ranked = tuple(zip([symbols[i] for i in order], value, strict=True))
            few = ranked if alternatives >= len(ranked) else ranked[:alternatives]
            return Prediction(ranked[0][0], best, margin, few, self._trusted(margin))

    def learn(self, symbol: Hashable) -> None:
        """Store ``symbol`` as what follows the present context, and move on to the next.

        Args:
            symbol: One of the alphabet, or any if the machine grows.

        Raises:
            InputError: An unknown symbol, unless the machine grows, or one that is not hashable.
        """
        with self._lock:
            i = self._id(symbol)
            expected = self._expected
            asked = expected is not None
            if expected is not None:
                guess, margin = expected
                place = int(margin * BINS) if margin < 1 else BINS - 1
                self._seen[place] += 1
                self._right[place] += guess == i
                self._expected = None
            # Who asked for a prediction before is likely to ask again.
            self._memory.step(i, True, asked, self._order, self._value)
            self._ranked = asked

    @_alone
    def follow(self, symbol: Hashable) -> None:
        """Move on to the next context without storing anything.

        Args:
            symbol: One of the alphabet, or any if the machine grows.

        Raises:
            InputError: As :meth:`learn`.
        """
        i = self._id(symbol)
        self._expected, self._ranked = None, False
        self._memory.step(i, False, False, self._order, self._value)

    @_alone
    def reset_context(self) -> None:
        """Go to the start context; what is learned stays."""
        self._expected, self._ranked = None, False
        self._memory.reset_context()

    # Whole sequences.

    def learn_sequence(self, sequence: Iterable[Hashable]) -> Any:
        """Predict and learn every symbol in turn, from the present context on.

        Args:
            sequence: Symbols.

        Returns:
            Whether each was predicted, ``[length]``; on-line: before it was learned.

        Raises:
            InputError: As :meth:`learn`; then nothing is learned.
        """
        return self._stream(sequence, learn=True)[0]

    def follow_sequence(self, sequence: Iterable[Hashable]) -> Any:
        """Predict every symbol in turn without learning.

        Args:
            sequence: Symbols.

        Returns:
            Whether each was predicted, ``[length]``.

        Raises:
            InputError: As :meth:`learn`.
        """
        return self._stream(sequence, learn=False)[0]

    def match_sequence(
        self, sequence: Iterable[Hashable], learn: bool = False
    ) -> tuple[Any, Any, Any]:
        """The same in full.

        Args:
            sequence: Symbols.
            learn: Whether to learn them.

        Returns:
            Whether each symbol was predicted, the similarity and the margin of the prediction, each
            ``[length]``.

        Raises:
            InputError: As :meth:`learn`.
        """
        right, found = self._stream(sequence, learn)
        return right, found.match, found.margin

    def surprise_sequence(self, sequence: Iterable[Hashable], learn: bool = True) -> Any:
        """How little each symbol was expected: ``-log2`` of its probability before it came.

        Args:
            sequence: Symbols.
            learn: Whether to learn them.

        Returns:
            Bits, at most 30, ``[length]``. With a store, the share that a symbol has of all
            similarities is taken for its probability.

        Raises:
            InputError: As :meth:`learn`.
        """
        chance = self._stream(sequence, learn)[1].chance
        return np.abs(np.log2(np.minimum(np.maximum(chance, 2.0**-30), 1.0)))

    @_alone
    def generate(self, prompt: Iterable[Hashable], count: int) -> list[Hashable]:
        """Continue ``prompt`` from the start context, each prediction fed back.

        Args:
            prompt: Symbols.
            count: Most symbols to add, at least 0.

        Returns:
            The symbols after the prompt; fewer than ``count`` where the machine knows nothing.

        Raises:
            InputError: As :meth:`learn`.
            RangeError: ``count < 0``.
        """
        if count < 0:
            raise RangeError(f"generate needs count >= 0, got {count}. Use 0 for none.")
        self.reset_context()
        for symbol in prompt:
            self.follow(symbol)
        out: list[Hashable] = []
        while len(out) < count:
            guess = self.predict()
            if guess.similarity == 0:
                break
            out.append(guess.symbol)
            self.follow(guess.symbol)
        return out

    @_alone
    def spikes(self, symbol: Hashable) -> dict[str, tuple[Any, Any]]:
        """The spikes of every layer as ``symbol`` comes and its successor is predicted.

        Changes nothing. Time 0 is the first spike of the symbol; the bursts are ``input`` and
        ``learning`` (the same symbol at the data neurons, written to the locations that are still
        marked), ``context``, ``locations`` and ``output`` (as many data neurons as a symbol has).

        Args:
            symbol: One of the alphabet.

        Returns:
            The neurons and their times, the first one first, by layer.

        Raises:
            UnsupportedError: The machine has abstract layers.
            InputError: An unknown symbol.
        """
        if not isinstance(self._memory, SpikingMemory):
            raise UnsupportedError(
                "spikes needs a machine of spiking layers, got abstract ones. Make it with "
                "layers='wheel'."
            )
        if symbol not in self:
            raise InputError(
                f"spikes needs a symbol of the alphabet, got {symbol!r}. See machine.symbols."
            )
        return self._memory.spikes(self._id(symbol))

    @property
    def memory(self) -> Memory:
        """Contexts and store, in which symbol n is the number n of :attr:`symbols`."""
        return self._memory

    @property
    def synapses(self) -> int:
        """Number of counters of the store; with :class:`Mixed`, those in use."""
        return self._memory.synapses

    @property
    def full(self) -> bool:
        """Whether the store is full, so that contexts not met before are not learned any more."""
        return self._memory.full

    # Files.

    @_alone
    def save(self, path: str | Path) -> None:
        """Write the machine to one safetensors file; the file before it survives a crash.

        Args:
            path: Where to write; folders are made.

        Raises:
            InputError: Symbols that are neither strings nor integers, metadata that are no JSON, a
                place that cannot be written to, or a full disk.
        """
        write_machine(Path(path), *self.state())

    @classmethod
    def load(cls, path: str | Path) -> "SequenceMachine":
        """Read a machine that :meth:`save` wrote.

        Args:
            path: Its file.

        Returns:
            The machine, in the context in which it was saved.

        Raises:
            InputError: Not such a file, cut short, changed, or of another format.
        """
        path = Path(path)
        about, tensors = read_machine(path, expected_arrays)
        try:
            return cls.of_state(about, tensors)
        except ValueError as error:
            raise damaged(path, str(error).rstrip(".")) from error

    @_alone
    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that :meth:`save` writes.

        Returns:
            What JSON can hold, and arrays by name.

        Raises:
            InputError: Symbols that are neither strings nor integers.
        """
        if not all(isinstance(s, str | int) and not isinstance(s, bool) for s in self.symbols):
            raise InputError(
                "save needs symbols that are strings or integers, got others. Map yours first."
            )
        about = {
            "settings": self.settings.to_dict(), "symbols": self.symbols, "metadata": self.metadata,
            "expected": self._expected, "extent": self._memory.extent,
        }  # fmt: skip
        counts = {"right": np.array(self._right[:BINS]), "seen": np.array(self._seen[:BINS])}
        return about, {**self._memory.tensors(), **counts}

    @classmethod
    def of_state(cls, about: dict[str, Any], tensors: dict[str, Any]) -> "SequenceMachine":
        """The machine of a :meth:`state`, whose form was checked.

        Args:
            about: What JSON held.
            tensors: Arrays by name.

        Returns:
            The machine, in the context in which it was.

        Raises:
            ValueError: No machine has this state.
        """
        machine = cls(about["symbols"], **vars(MachineSettings.from_dict(about["settings"])))
        machine._memory.check(tensors)
        check_range("seen", tensors["seen"], MOST_COUNT)
        check_range("right", tensors["seen"] - tensors["right"], MOST_COUNT)
        check_range("right", tensors["right"], MOST_COUNT)
        machine.metadata = about["metadata"]
        if about["expected"] is not None:
            machine._expected = about["expected"][0], about["expected"][1]
        machine._right, machine._seen = ([*tensors[n].tolist(), 0.0] for n in ("right", "seen"))
        inside = {name: tensors[name] for name in tensors if name not in ("right", "seen")}
        machine._memory.restore(inside)
        return machine

    # Inside.

    @_alone
    def _stream(self, sequence: Iterable[Hashable], learn: bool) -> tuple[Any, Found]:
        ids = np.array(self._numbers(sequence), np.int64)
        found = Found.empty(len(ids))
        if len(ids):
            self._memory.stream(ids, learn, found)
        right = (found.guess == ids) & (found.match > 0)
        if learn:
            known = found.match > 0
            self._calibrate(right[known], found.margin[known])
        self._expected, self._ranked = None, False
        return right, found

    def _rank(self, count: int) -> None:
        """Rank so many symbols, and no fewer from now on."""
        count = max(count, min(_RANKED, len(self.symbols)))
        if count > len(self._order):
            self._order, self._value = np.zeros(count, np.int64), np.zeros(count, np.float32)
        self._memory.rank(self._order, self._value)
        self._ranked = True

    def _calibrate(self, right: Any, margin: Any) -> None:
        bins = np.minimum(np.maximum((margin * BINS).astype(np.int64), 0), BINS - 1)
        self._seen = (self._seen + np.bincount(bins, minlength=BINS + 1)).tolist()
        self._right = (self._right + np.bincount(bins[right], minlength=BINS + 1)).tolist()

    def _trusted(self, margin: float) -> bool:
        """Whether predictions of at least about this margin were right often enough."""
        right, seen, i = self._right, self._seen, int(margin * BINS) if margin < 1 else BINS - 1
        # A prior of two predictions, as good as their margin.
        good = 2 * (margin if margin < 1 else 1.0) + right[i - 1] + right[i] + right[i + 1]
        return good / (2.0 + seen[i - 1] + seen[i] + seen[i + 1]) >= self.settings.confidence

    def _id(self, symbol: Hashable) -> int:
        if type(symbol) in _PLAIN and (known := self._ids.get(symbol)) is not None:
            return known
        return self._numbers([symbol])[0]

    def _numbers(self, sequence: Iterable[Hashable]) -> list[int]:
        """Numbers of symbols; new ones are added, if the machine grows, or none is."""
        ids, numbers = self._ids, []
        new: dict[Hashable, int] = {}
        for symbol in sequence:
            if type(symbol) not in _PLAIN:
                symbol = checked_symbol(symbol)  # noqa: PLW2901
            number = ids.get(symbol)
            if number is None:
                number = new.setdefault(symbol, len(ids) + len(new))
            numbers.append(number)
        if new and not self.settings.grow:
            raise InputError(
                f"SequenceMachine needs a symbol of its alphabet of {len(self.symbols)}, got "
                f"{next(iter(new))!r}. Make it with grow=True to take new ones."
            )
        if new:
            self._resize(len(ids) + len(new), list(new))  # may fail, before any symbol is known
            self.symbols += new
            ids.update(new)
        return numbers

    def _resize(self, symbols: int, new: list[Hashable]) -> None:
        """Let the memory have room for so many symbols, the last of which are new."""
        self._memory.resize(symbols, new)
        self._ranked = False
        count = min(_RANKED, symbols)
        if len(self._order) < count:
            self._order, self._value = np.zeros(count, np.int64), np.zeros(count, np.float32)


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    if generator is None:
        return 0 if seed is None else int(seed)
    if seed is not None:
        raise InputError(
            f"SequenceMachine needs a seed or a generator, got seed={seed} and a generator. Leave "
            "one out."
        )
    return int(torch.randint(2**62, (), generator=generator))
