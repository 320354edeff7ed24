"""The inside of a sequence machine whose context addresses a sparse distributed memory."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from isospike.codes.orders import random_orders
from isospike.errors import RangeError
from isospike.kernels.machine import stream
from isospike.kernels.machine.handle import Handle
from isospike.kernels.machine.locations import OR
from isospike.memory.contexts import Recurrent, Shift, Store
from isospike.memory.decoder import AddressDecoder
from isospike.memory.files import Shapes
from isospike.memory.sdm import RULES

MOST_COUNT = float(np.finfo(np.float32).max)  # of a counter: not infinity


class Found(NamedTuple):
    """What a memory finds along a stream, each ``[length]``.

    Attributes:
        guess: The best symbol.
        match: Its score.
        margin: Its lead over the second best.
        chance: Share that the symbol which came had of all scores.
    """

    guess: Any
    match: Any
    margin: Any
    chance: Any

    @classmethod
    def empty(cls, length: int) -> "Found":
        """Zeros, to be filled.

        Args:
            length: Of the stream.
        """
        return cls(np.zeros(length, np.int64), *np.zeros((3, length), np.float32))


@runtime_checkable
class Memory(Protocol):
    """The inside of a sequence machine: its context and its store. Symbols are numbers from 0.

    Attributes:
        scores: Match of every symbol, after :meth:`score`.
        synapses: Number of counters in which symbols are stored.
        extent: Sizes of the arrays that grow with what was learned.
        full: Whether nothing new is stored any more.
    """

    @property
    def scores(self) -> Any: ...

    @property
    def synapses(self) -> int: ...

    @property
    def extent(self) -> list[int]: ...

    @property
    def full(self) -> bool: ...

    def resize(self, symbols: int, new: Sequence[Hashable] = ()) -> None:
        """Make room for a larger alphabet.

        Args:
            symbols: Its size.
            new: The symbols that join it; needed where a memory looks into them.

        Raises:
            InputError: A symbol that is no note, of a memory of notes.
            RangeError: The store has no code for each of so many.
        """

    def reset_context(self) -> None:
        """Go to the context in which sequences start."""

    def score(self) -> None:
        """Match every symbol with what is stored for the present context."""

    def store(self, symbol: int) -> None:
        """Store a symbol as what follows the present context.

        Args:
            symbol: Its number.
        """

    def advance(self, symbol: int) -> None:
        """Move on to the context in which a symbol has just come.

        Args:
            symbol: Its number; the size of the alphabet for the start of a sequence.
        """

    def stream(self, ids: Any, learn: bool, found: Found) -> None:
        """Score, store if asked to, and advance, symbol by symbol.

        Args:
            ids: Numbers of the symbols, ``[length]``.
            learn: Whether to store them.
            found: Receives what was found before each of them.
        """

    def rank(self, order: Any, value: Any) -> None:
        """The best symbols for the present context.

        Args:
            order: Receives as many symbols as it has room for, the best one first.
            value: Receives their scores.
        """

    def step(self, symbol: int, learn: bool, ahead: bool, order: Any, value: Any) -> None:
        """Store and advance in one compiled step.

        Args:
            symbol: Its number.
            learn: Whether to store it.
            ahead: Whether to rank what comes next, as :meth:`rank` does.
            order: As for :meth:`rank`.
            value: As for :meth:`rank`.
        """

    def tensors(self) -> dict[str, Any]:
        """Everything that symbols have changed, by name."""

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take what :meth:`tensors` gave.

        Args:
            tensors: Checked by :meth:`check`.
        """

    def clear(self) -> None:
        """Forget everything; :meth:`reset_context` follows."""

    def check(self, tensors: dict[str, Any]) -> None:
        """Raise unless :meth:`tensors` may become these, on which compiled loops then rely.

        Args:
            tensors: Of the same shapes and types.

        Raises:
            ValueError: A number that no machine of these settings can hold.
        """


class AddressedMemory:
    """A K-of-M context that addresses a sparse distributed memory.

    Args:
        context: How the context is formed.
        store: The memory.
        seed: Draws codes, connections of the context, and connections of the locations.

    Raises:
        RangeError: A location has more connections than there are context neurons.
    """

    def __init__(self, context: Recurrent | Shift, store: Store, seed: int) -> None:
        self._seed, self._code, self._data = seed, context.code, store.data
        generator = generator_of(seed)
        (n, d), (k, m) = context.code, context.context_code
        kind, old, new, gain_old, gain_new = _connections(context, generator)
        self._decoder = AddressDecoder(
            m, store.connections, store.active, store.locations, store.alpha, generator,
            torch.float32,
        )  # fmt: skip
        self._start_code = random_orders(1, n, d, generator).numpy()
        rule, data = RULES[store.rule], (1, 8) if store.data is None else store.data
        self._fixed = stream.Fixed(
            kind=kind, codes=self._start_code, data_codes=np.empty((0, data[0]), np.int64),
            old=old, new=new, gain_old=gain_old, gain_new=gain_new,
            gain_context=_significance(store.alpha, k),
            gain_data=_significance(store.alpha, data[0]),
            sigma=_significance(store.alpha, store.active), decoder=self._decoder.table,
            rule=rule, decay=store.decay,
        )  # fmt: skip
        self._state = stream.State(
            context=np.zeros(k, np.int64),
            history=np.zeros(context.depth if isinstance(context, Shift) else 0, np.int64),
            active=np.zeros(store.active, np.int64),
            counters=np.zeros((store.locations, data[1]), np.uint8 if rule == OR else np.float32),
        )
        self._sizes = (m, store.locations)
        self._handle: Handle | None = None
        self.resize(0)

    @staticmethod
    def shapes(context: Recurrent | Shift, store: Store, symbols: int) -> Shapes:
        """Shapes and types of :meth:`tensors`, without making any.

        Args:
            context: Of a machine.
            store: Of the machine.
            symbols: Size of its alphabet.
        """
        width = max(8, _power_of_two(symbols)) if store.data is None else store.data[1]
        register = context.depth if isinstance(context, Shift) else 0
        return {
            "context": ((context.context_code[0],), "int64"),
            "history": ((register,), "int64"),
            "counters": ((store.locations, width), "uint8" if store.rule == "or" else "float32"),
        }

    @property
    def scores(self) -> Any:
        return self._work.scores

    @property
    def extent(self) -> list[int]:
        return []

    @property
    def full(self) -> bool:
        return False

    @property
    def synapses(self) -> int:
        return int(self._state.counters.size)

    @property
    def reading(self) -> dict[str, float]:
        """What the present context costs: ``spikes`` of a symbol, of the context and of locations;
        ``additions`` that they cause, at counters other than 0; ``dense``, those of all neurons;
        ``neurons`` that are updated."""
        k, m, n = len(self._state.context), self._sizes[0], self._code
        reach = np.diff(self._decoder.start, axis=1)
        counters, active = self._state.counters, self._state.active
        shifted = len(self._state.history) * n[0]
        added = (shifted or (k + n[0]) * m) + reach[:, self._state.context].sum()
        return {
            "spikes": float(n[0] + k + len(active)),
            "additions": float(added + np.count_nonzero(counters[active])),
            "dense": float((shifted or (m + n[1]) * m) + reach.sum() + counters.size),
            "neurons": float(m + len(counters) + counters.shape[1]),
        }

    def resize(self, symbols: int, new: Sequence[Hashable] = ()) -> None:
        if self._data is not None and symbols > math.comb(self._data[1], self._data[0]):
            raise RangeError(
                f"SequenceMachine needs a data code for each of {symbols} symbols, got "
                f"{self._data[0]}-of-{self._data[1]}. Give the store more data neurons."
            )
        known = len(self._fixed.codes) - 1
        fixed, counters = self._with_codes(known, symbols), self._state.counters
        if self._data is None and symbols > counters.shape[1]:
            grown = np.zeros((len(counters), _power_of_two(symbols)), counters.dtype)
            grown[:, : counters.shape[1]] = counters
            counters = grown
        m, locations = self._sizes
        sizes = (m, locations, counters.shape[1], symbols, (2, 2))
        work = stream.Work(*(np.zeros(s, np.float32) for s in sizes))
        # All memory is there: what was not changed so far, is now. The start symbol comes last.
        self._state.history[self._state.history == known] = symbols
        self._state = self._state._replace(counters=counters)
        self._fixed, self._work, self._handle = fixed, work, None

    def reset_context(self) -> None:
        start = len(self.scores)
        self._state.history[:] = start
        self._state.context[:] = np.arange(len(self._state.context))
        self.advance(start)

    def score(self) -> None:
        stream.score_symbols(self._fixed, self._state, self._work)

    def store(self, symbol: int) -> None:
        stream.store(self._fixed, self._state, symbol)

    def advance(self, symbol: int) -> None:
        stream.advance(self._fixed, self._state, self._work, symbol)

    def rank(self, order: Any, value: Any) -> None:
        self.step(-1, False, True, order, value)

    def step(self, symbol: int, learn: bool, ahead: bool, order: Any, value: Any) -> None:
        stream.step(self._handle or self._ready(), symbol, learn, ahead, order, value)

    def stream(self, ids: Any, learn: bool, found: Found) -> None:
        stream.stream(self._handle or self._ready(), ids, learn, *found)

    def tensors(self) -> dict[str, Any]:
        names = ("context", "history", "counters")
        return {name: getattr(self._state, name) for name in names}

    def check(self, tensors: dict[str, Any]) -> None:
        context, symbols = tensors["context"], len(self._work.scores)
        check_range("context", context, self._sizes[0] - 1)
        if len(np.unique(self._live(tensors))) < len(self._live(tensors)):
            raise ValueError("a neuron of its context fires twice")
        check_range("history", tensors["history"], symbols)
        check_range("counters", tensors["counters"], 1 if self._fixed.rule == OR else MOST_COUNT)

    def restore(self, tensors: dict[str, Any]) -> None:
        for name, tensor in self.tensors().items():
            tensor[...] = tensors[name]
        self.refresh()

    def clear(self) -> None:
        for tensor in self.tensors().values():
            tensor[...] = 0

    def refresh(self) -> None:
        """Activate the locations of the context."""
        stream.activate(self._fixed, self._state, self._work)

    @property
    def _parts(self) -> tuple[Any, ...]:
        """What the compiled loops take."""
        return self._fixed, self._state, self._work

    def _ready(self) -> Handle:
        """The same as one argument, until the alphabet grows."""
        if self._handle is None:
            self._handle = Handle(*self._parts)
        return self._handle

    def _live(self, tensors: dict[str, Any]) -> Any:
        """Neurons of the context that fire."""
        return tensors["context"]

    def _with_codes(self, known: int, symbols: int) -> Any:
        """Codes of symbols ``known`` to ``symbols`` too, at the context and in the store."""
        codes, data_codes = [self._fixed.codes[:-1]], [self._fixed.data_codes]
        for i in range(known, symbols):
            # A generator of its own for each symbol: codes do not depend on when it was met.
            own = generator_of(self._seed, i)
            codes.append(random_orders(1, *self._code, own).numpy())
            code = np.array([[i]])
            if self._data is not None:
                code = random_orders(1, *self._data, own).numpy()
                while any((np.sort(code) == np.sort(other)).all(1).any() for other in data_codes):
                    code = random_orders(1, *self._data, own).numpy()  # no two symbols alike
            data_codes.append(code)
        return self._fixed._replace(
            codes=np.concatenate([*codes, self._start_code]), data_codes=np.concatenate(data_codes)
        )


def check_range(name: str, values: Any, most: int | float) -> None:
    """Raise unless all values are in [0, most], and none is NaN.

    Args:
        name: What they are.
        values: An array.
        most: The largest that may be.

    Raises:
        ValueError: Some value is outside.
    """
    if values.size and not (values.min() >= 0 and values.max() <= most):
        raise ValueError(f"it has {name} outside [0, {most:g}]")


def _power_of_two(symbols: int) -> int:
    """The counters of a location that knows so many symbols, if more than it had."""
    return 1 << max(0, symbols - 1).bit_length()


def generator_of(*seed: int) -> torch.Generator:
    """A generator for some numbers, of which torch's own seeding would keep 32 bits of one.

    Args:
        seed: Numbers that are at least 0.

    Returns:
        The same generator for the same numbers.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _significance(alpha: float, spikes: int) -> Any:
    return (alpha ** np.arange(spikes)).astype(np.float32)


def _connections(
    context: Recurrent | Shift, generator: torch.Generator
) -> tuple[int, Any, Any, Any, Any]:
    """The kind of a context; weights from the old context and from a symbol; gains of both."""
    new = _significance(context.alpha, context.code[0])
    if isinstance(context, Shift):
        ages = (context.decay ** np.arange(context.depth)).astype(np.float32)
        none = np.zeros((1, 1), np.uint8)
        return stream.SHIFT, none, none, ages, new
    k, m = context.context_code
    # Eight-bit weights: a quarter of the memory traffic, and as random.
    weights = [
        torch.randint(256, (rows, m), generator=generator, dtype=torch.uint8).numpy()
        for rows in (m, context.code[1])
    ]
    gains = context.gains(_significance(context.alpha, k), new)
    # On a grid so coarse that float32 sums are exact: the same in any order of the spikes.
    unit = (gains[0].sum() + gains[1].sum()) / (2**24 / 256)
    old, new = (np.rint(gain / unit).astype(np.float32) for gain in gains)
    return stream.RECURRENT, *weights, old, new
