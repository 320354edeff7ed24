"""The sequence machine: one-shot, on-line memory of sequences of symbols."""

import functools
import math
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.kernels.machine.locations import largest
from isospike.memory.addressed import MOST_COUNT, AddressedMemory, Memory, check_range
from isospike.memory.backoff import BackoffMemory
from isospike.memory.bursts import SpikingMemory
from isospike.memory.contexts import (
    MOST_BYTES,
    Backoff,
    Combined,
    Context,
    MachineSettings,
    Store,
)
from isospike.memory.files import Shapes, damaged, read_machine, write_machine
from isospike.memory.layers import ABSTRACT

_BINS = 64  # intervals of the margin, for calibration

P = ParamSpec("P")
T = TypeVar("T")


def _alone(method: Callable[P, T]) -> Callable[P, T]:
    """A method of a machine that no two threads run at a time."""

    @functools.wraps(method)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with args[0]._lock:  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return alone


@dataclass(frozen=True)
class Prediction:
    """The symbol that a machine expects next.

    Attributes:
        symbol: The best match; None, with similarity 0, if nothing is stored for this context.
        similarity: In [0, 1]. With the rule ``or``, the share of the active locations' counters
            that hold the symbol; otherwise the symbol's share of the sum of all symbols.
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
        >>> prediction.symbol, prediction.similarity, prediction.margin
        ('a', 1.0, 1.0)
    """

    symbol: Hashable | None
    similarity: float
    margin: float
    alternatives: tuple[tuple[Hashable, float], ...]
    accepted: bool


class SequenceMachine:
    """A spiking sequence machine: encode, context, retrieve, store, decode.

    Symbol n has a fixed random N-of-D order I_n. The symbols before form the context C_n, a K-of-M
    order that addresses a sparse distributed memory, in which :meth:`learn` writes the next symbol,
    once, and :meth:`predict` reads it. A new machine, and one after :meth:`reset_context`, stands
    in the context of a start symbol. Machines of one seed are equal, and share nothing. Threads may
    share a machine: its calls then follow one another, each in the context that the last one left.

    Attributes:
        symbols: The alphabet, in the order of the symbols' numbers.
        settings: Everything else that made the machine (:class:`MachineSettings`).
        metadata: Your own notes, JSON values by name; they are saved with the machine.

    Args:
        symbols: The alphabet, hashable values other than None and NaN; they are saved if they are
            strings or integers. 1, 1.0 and True are one symbol.
        context: How the context is formed: :class:`Combined` (the default), :class:`Layer`,
            :class:`Shift`, or :class:`Backoff` for text.
        store: What the context addresses, by default ``Store()``; none with :class:`Backoff`.
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
        3
        >>> "".join(machine.generate("abr", 8))
        'acadabra'

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
        context = Combined() if context is None else context
        if store is None and not isinstance(context, Backoff):
            store = Store()
        self.settings = MachineSettings(
            context=context, store=store, layers=layers, confidence=confidence, grow=grow,
            seed=_seed(seed, generator),
        )  # fmt: skip
        self.symbols: list[Hashable] = []
        self.metadata: dict[str, Any] = {}
        self._ids: dict[Hashable, int] = {}
        self._right, self._seen = np.zeros(_BINS), np.zeros(_BINS)
        self._expected: tuple[int, float] | None = None
        self._lock = threading.RLock()
        self._memory = _memory(self.settings)
        for symbol in map(_checked, symbols):
            if symbol in self._ids:
                raise InputError(
                    f"SequenceMachine needs each symbol once, got {symbol!r} twice. Pass "
                    "sorted(set(...)) of a sequence."
                )
            self._add(symbol)
        self._memory.resize(len(self.symbols))
        self.reset_context()

    def __contains__(self, symbol: Hashable) -> bool:
        return _plain(symbol) in self._ids

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # One symbol at a time.

    @_alone
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
        if not self.symbols:
            return Prediction(None, 0.0, 0.0, (), False)
        self._memory.score()
        scores = self._memory.scores
        top = np.empty(min(max(2, alternatives), len(scores)), np.int64)
        largest(scores, len(top), top)
        ranked = [(self.symbols[i], float(scores[i])) for i in top]
        best = ranked[0][1]
        if best <= 0:
            self._expected = None
            return Prediction(None, 0.0, 0.0, (), False)
        margin = float(scores[top[0]] - (scores[top[1]] if len(ranked) > 1 else 0))
        self._expected = int(top[0]), margin
        return Prediction(
            ranked[0][0], best, margin, tuple(ranked[:alternatives]), self._trusted(margin)
        )

    @_alone
    def learn(self, symbol: Hashable) -> None:
        """Store ``symbol`` as what follows the present context, and move on to the next.

        Args:
            symbol: One of the alphabet, or any if the machine grows.

        Raises:
            InputError: An unknown symbol, unless the machine grows, or one that is not hashable.
        """
        i = self._id(symbol)
        if self._expected is not None:
            guess, margin = self._expected
            self._calibrate(np.array([guess == i]), np.array([margin]))
            self._expected = None
        self._memory.store(i)
        self._memory.advance(i)

    @_alone
    def follow(self, symbol: Hashable) -> None:
        """Move on to the next context without storing anything.

        Args:
            symbol: One of the alphabet, or any if the machine grows.

        Raises:
            InputError: As :meth:`learn`.
        """
        self._expected = None
        self._memory.advance(self._id(symbol))

    @_alone
    def reset_context(self) -> None:
        """Go to the start context; what is learned stays."""
        self._expected = None
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
        right, match, margin = self._stream(sequence, learn)
        return right, match, margin

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
        """Number of counters of the store."""
        return self._memory.synapses

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
        if not all(isinstance(s, str | int) and not isinstance(s, bool) for s in self.symbols):
            raise InputError(
                "save needs symbols that are strings or integers, got others. Map yours first."
            )
        about = {
            "settings": self.settings.to_dict(), "symbols": self.symbols, "metadata": self.metadata,
            "expected": self._expected,
        }  # fmt: skip
        write_machine(Path(path), about, self._tensors())

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
        about, tensors = read_machine(path, _expect)
        try:
            settings = MachineSettings.from_dict(about["settings"])
            machine = cls(about["symbols"], **vars(settings))
            machine._memory.check(tensors)
            check_range("seen", tensors["seen"], MOST_COUNT)
            check_range("right", tensors["seen"] - tensors["right"], MOST_COUNT)
            check_range("right", tensors["right"], MOST_COUNT)
        except ValueError as error:
            raise damaged(path, str(error).rstrip(".")) from error
        machine.metadata = about["metadata"]
        if about["expected"] is not None:
            machine._expected = about["expected"][0], about["expected"][1]
        for name, tensor in machine._tensors().items():
            tensor[...] = tensors[name]
        machine._memory.refresh()
        return machine

    # Inside.

    def _tensors(self) -> dict[str, Any]:
        return {**self._memory.tensors(), "right": self._right, "seen": self._seen}

    @_alone
    def _stream(self, sequence: Iterable[Hashable], learn: bool) -> Any:
        checked = [_checked(symbol) for symbol in sequence]  # all before the first is added
        known = [self._id(symbol) for symbol in checked]
        ids = np.array(known, np.int64)
        guess = np.zeros(len(ids), np.int64)
        match, margin = np.zeros((2, len(ids)), np.float32)
        if len(ids):
            self._memory.stream(ids, learn, guess, match, margin)
        right = (guess == ids) & (match > 0)
        if learn:
            self._calibrate(right[match > 0], margin[match > 0])
        self._expected = None
        return right, match, margin

    def _calibrate(self, right: Any, margin: Any) -> None:
        bins = np.clip((margin * _BINS).astype(np.int64), 0, _BINS - 1)
        np.add.at(self._seen, bins, 1)
        np.add.at(self._right, bins, right)

    def _trusted(self, margin: float) -> bool:
        """Whether predictions of at least about this margin were right often enough."""
        middle = min(int(margin * _BINS), _BINS - 1)
        near = slice(max(0, middle - 1), middle + 2)
        # A prior of two predictions, as good as their margin.
        right, seen = self._right[near].sum() + 2 * min(1.0, margin), self._seen[near].sum() + 2
        return bool(right / seen >= self.settings.confidence)

    def _id(self, symbol: Hashable) -> int:
        symbol = _checked(symbol)
        i = self._ids.get(symbol)
        if i is None:
            if not self.settings.grow:
                raise InputError(
                    f"SequenceMachine needs a symbol of its alphabet of {len(self.symbols)}, got "
                    f"{symbol!r}. Make it with grow=True to take new ones."
                )
            i = self._add(symbol)
            self._memory.resize(len(self.symbols))
        return i

    def _add(self, symbol: Hashable) -> int:
        self._ids[symbol] = len(self.symbols)
        self.symbols.append(symbol)
        return self._ids[symbol]


def _plain(symbol: Any) -> Hashable:
    """A symbol as Python has it: the number in an array's element, which a file can hold."""
    if isinstance(symbol, np.generic | np.ndarray | torch.Tensor) and symbol.ndim == 0:
        symbol = symbol.item()
    # A tensor's hash is not that of its values; a tuple may hold a list.
    if isinstance(symbol, torch.Tensor) or not _is_hashable(symbol):
        raise InputError(
            f"SequenceMachine needs hashable symbols, got a {type(symbol).__name__}. Make "
            "strings, numbers or tuples of yours."
        )
    found: Hashable = symbol
    return found


def _checked(symbol: Any) -> Hashable:
    """:func:`_plain`, and InputError unless it may be a symbol."""
    plain = _plain(symbol)
    if plain is None or plain != plain:
        raise InputError(
            "SequenceMachine needs symbols that equal themselves and are not None, which says that "
            f"nothing is known, got {plain}. Use a text such as 'none'."
        )
    return plain


def _is_hashable(symbol: object) -> bool:
    try:
        hash(symbol)
    except TypeError:
        return False
    return True


def _expect(about: dict[str, Any]) -> Shapes:
    """The arrays of a machine's file by what it says about itself, every part of which is checked.

    Raises:
        LookupError, TypeError, ValueError: It says what no machine says.
    """
    settings, symbols = MachineSettings.from_dict(about["settings"]), about["symbols"]
    if not isinstance(symbols, list) or not all(type(s) in (str, int) for s in symbols):
        raise ValueError("its symbols are not strings and integers")
    if len(set(symbols)) < len(symbols) or settings.room(len(symbols)) > MOST_BYTES:
        raise ValueError("its alphabet has a symbol twice, or is too large")
    if not isinstance(about["metadata"], dict):
        raise ValueError("its metadata are no dictionary")
    expected = about["expected"]
    if expected is not None:
        guess, margin = expected
        if type(guess) is not int or type(margin) is not float or not math.isfinite(margin):
            raise ValueError("its last prediction is none")
        if not (0 <= guess < len(symbols) and margin >= 0):
            raise ValueError("its last prediction is out of range")
    context, store = settings.context, settings.store
    if isinstance(context, Backoff) or store is None:
        shapes = BackoffMemory.shapes(context)  # type: ignore[arg-type]
    else:
        kind = AddressedMemory if settings.layers == ABSTRACT else SpikingMemory
        shapes = kind.shapes(context, store, len(symbols))
    bins = (_BINS,), "float64"
    return {**shapes, "right": bins, "seen": bins}


def _memory(settings: MachineSettings) -> Memory:
    context, seed = settings.context, settings.seed
    if isinstance(context, Backoff):
        return BackoffMemory(context, seed)
    store = settings.store or Store()
    if settings.layers != ABSTRACT:
        return SpikingMemory(settings.layers, context, store, seed)
    return AddressedMemory(context, store, seed)


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    if generator is None:
        return 0 if seed is None else int(seed)
    if seed is not None:
        raise InputError(
            f"SequenceMachine needs a seed or a generator, got seed={seed} and a generator. Leave "
            "one out."
        )
    return int(torch.randint(2**62, (), generator=generator))
