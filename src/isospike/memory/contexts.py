"""Settings of a sequence machine: how it forms its context, and where it stores what comes next."""

import operator
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from isospike.codes.orders import check_alpha
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.memory.layers import ABSTRACT, KINDS

RULES = ("or", "max", "add", "decay")
MOST_BYTES = 2**32  # of the connections of a machine
Code = tuple[int, int]  # (N, M): of M neurons N fire


@dataclass(frozen=True, kw_only=True)
class Recurrent(ABC):
    """A context made of the old context and the new symbol: :class:`Combined` or :class:`Layer`.

    Attributes:
        weight: Weight of the old context, in [0, 1).
        code: (N, D): of D input neurons, N fire for a symbol.
        context_code: (K, M): of M context neurons, K fire.
        alpha: Significance of a spike over that of the spike before, in (0, 1].

    Raises:
        RangeError: A number outside its range.
    """

    weight: float = 0.5
    code: Code = (11, 256)
    context_code: Code = (22, 512)
    alpha: float = 0.9

    def __post_init__(self) -> None:
        who = type(self).__name__
        _take_types(self, who)
        check_alpha(self.alpha, who)
        _check_code(self.code, f"{who} needs code")
        _check_code(self.context_code, f"{who} needs context_code")
        if not 0 <= self.weight < 1:
            raise RangeError(
                f"{who} needs weight in [0, 1), got {self.weight}. At 1 symbols would not count: "
                "use a number below."
            )

    @abstractmethod
    def gains(self, old: Any, new: Any) -> tuple[Any, Any]:
        """Gains of the spikes of the old context and of the symbol.

        Args:
            old: Significance of the old context's spikes, ``[K]``.
            new: Significance of the symbol's spikes, ``[N]``.

        Returns:
            The two gains, of the same shapes.
        """


@dataclass(frozen=True, kw_only=True)
class Combined(Recurrent):
    """A context that mixes the old context with the new symbol, each scaled to a sum of 1.

    ``C_n = nof_m(weight * P1 C_{n-1} / |C| + (1 - weight) * P2 I_n / |I|)``, with random P1 and P2
    and the code I_n of the symbol. It depends on all symbols before, on the latest most. The
    attributes are those of :class:`Recurrent`.

    Attributes:
        weight: Share of the old context, in [0, 1].
        code: Spikes and neurons of a symbol's code.
        context_code: Spikes and neurons of the context.
        alpha: Significance of a spike over that of the spike before it.

    Example:
        >>> from isospike.memory import Combined, SequenceMachine
        >>> machine = SequenceMachine("abcd", context=Combined(weight=0.3))
        >>> _ = machine.learn_sequence("abcd")
        >>> machine.generate("ab", 2)
        ['c', 'd']
    """

    name: ClassVar[str] = "combined"

    def gains(self, old: Any, new: Any) -> tuple[Any, Any]:
        return old * (self.weight / old.sum()), new * ((1 - self.weight) / new.sum())


@dataclass(frozen=True, kw_only=True)
class Layer(Recurrent):
    """A context that adds the weighted old context to the new symbol.

    ``C_n = nof_m(weight * P1 C_{n-1} + P2 I_n)``: neither part is scaled, so the part with more
    spikes counts more. The attributes are those of :class:`Recurrent`.

    Attributes:
        weight: Factor of the old context.
        code: Spikes and neurons of a symbol's code.
        context_code: Spikes and neurons of the context.
        alpha: Significance of a spike over that of the spike before it.

    Example:
        >>> from isospike.memory import Layer, SequenceMachine
        >>> machine = SequenceMachine("abcd", context=Layer(weight=0.2))
        >>> _ = machine.learn_sequence("abcd")
        >>> machine.generate("ab", 2)
        ['c', 'd']
    """

    name: ClassVar[str] = "layer"

    def gains(self, old: Any, new: Any) -> tuple[Any, Any]:
        return old * self.weight, new


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A context of the last symbols side by side: a shift register.

    Attributes:
        depth: Symbols in the register, at least 1.
        decay: Gain of a symbol over that of the symbol after it, in [0, 1].
        code: (N, D): of D input neurons, N fire for a symbol.
        alpha: Significance of a spike over that of the spike before, in (0, 1].

    Raises:
        RangeError: A number outside its range.

    Example:
        >>> from isospike.memory import SequenceMachine, Shift
        >>> machine = SequenceMachine("abc", context=Shift(depth=1))
        >>> _ = machine.learn_sequence("abca")
        >>> machine.generate("b", 3)
        ['c', 'a', 'b']
    """

    name: ClassVar[str] = "shift"

    depth: int = 2
    decay: float = 0.9
    code: Code = (11, 256)
    alpha: float = 0.9

    def __post_init__(self) -> None:
        _take_types(self, "Shift")
        check_alpha(self.alpha, "Shift")
        _check_code(self.code, "Shift needs code")
        _check_depth(self.depth, "Shift")
        _check_share(self.decay, "Shift needs decay")

    @property
    def context_code(self) -> Code:
        """(K, M) of the whole register."""
        return self.depth * self.code[0], self.depth * self.code[1]


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Contexts of the last 0, 1, .. ``depth`` symbols, each of which counts what followed it.

    Longer contexts correct shorter ones as in Kneser and Ney's smoothing
    (:class:`isospike.memory.backoff.BackoffMemory`). For text, where short contexts repeat and
    long ones do not.

    Attributes:
        depth: Symbols of the longest context, at least 1.
        synapses: Counters, at least 8; rounded down to a power of two.

    Raises:
        RangeError: A number outside its range.

    Example:
        >>> from isospike.memory import Backoff, SequenceMachine
        >>> machine = SequenceMachine(context=Backoff(depth=3), grow=True)
        >>> _ = machine.learn_sequence("to be or not to be")
        >>> machine.predict().symbol
        ' '
    """

    name: ClassVar[str] = "backoff"

    depth: int = 6
    synapses: int = 2**23

    def __post_init__(self) -> None:
        _take_types(self, "Backoff")
        _check_depth(self.depth, "Backoff")
        if self.synapses < 8:
            raise RangeError(
                f"Backoff needs synapses >= 8, got {self.synapses}. Its default is 2**23."
            )


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Contexts of many kinds at once, whose votes are mixed by a reliability that is learned.

    The last 1, 2, .. ``depth`` symbols, those since the commonest symbol (in a text: the word),
    pairs and triples with gaps, and the longest match of the last symbols with what came before
    (:class:`isospike.memory.mixed.MixedMemory`). The store grows with what is learned. The default
    context of a machine: which of its contexts counts is found out on line.

    Attributes:
        depth: Symbols of the longest context, from 1 to 24.
        synapses: Cells that the store may come to have, at least 4096; rounded down to a power of
            two. A character of English prose takes about two, a note with ``notes`` about seven,
            more at first.
        when_full: What happens then: ``keep`` what is known and learn nothing new, ``grow`` beyond,
            or ``forget`` the half of the contexts that was used longest ago.
        notes: Whether symbols are notes or chords, such as ``60``, ``60-64-67/12`` or ``rest``, as
            :func:`isospike.data.read_melodies` gives them. What follows is then counted by its
            distance to the last notes too: a phrase learned in one key is known in all.

    Raises:
        InputError: An unknown ``when_full``.
        RangeError: A number outside its range.

    Example:
        >>> from isospike.memory import Mixed, SequenceMachine
        >>> machine = SequenceMachine(context=Mixed(depth=4), grow=True)
        >>> _ = machine.learn_sequence("to be or not to be")
        >>> "".join(machine.generate("to b", 6))
        'e or n'
        >>> tune = SequenceMachine(context=Mixed(notes=True), grow=True)
        >>> _ = tune.learn_sequence(["60", "62", "64", "60"] * 4 + ["65", "67", "69"])
        >>> tune.generate(["65", "67", "69"], 1)
        ['65']
    """

    name: ClassVar[str] = "mixed"

    depth: int = 6
    synapses: int = 2**23
    when_full: str = "keep"
    notes: bool = False

    def __post_init__(self) -> None:
        _take_types(self, "Mixed")
        if not 1 <= self.depth <= 24:
            raise RangeError(
                f"Mixed needs depth from 1 to 24, got {self.depth}. Its default is 6; longer "
                "repeats are found by their last symbols."
            )
        if not 2**12 <= self.synapses <= 2**30:
            raise RangeError(
                f"Mixed needs synapses from 4096 to 2**30, got {self.synapses}. Its default is "
                "2**23."
            )
        if self.when_full not in WHEN_FULL:
            raise InputError(
                f"Mixed needs when_full of {', '.join(WHEN_FULL)}, got {self.when_full!r}. Use one "
                "of them."
            )

    @property
    def most_bytes(self) -> int:
        """Memory that the store takes once it is full, about."""
        cells = 1 << self.synapses.bit_length() - 1
        return cells * (16 + 2 * 12)


WHEN_FULL = ("keep", "grow", "forget")
Counting = Backoff | Mixed
Context = Combined | Layer | Shift | Backoff | Mixed
CONTEXTS: dict[str, type[Any]] = {
    kind.name: kind for kind in (Combined, Layer, Shift, Backoff, Mixed)
}


@dataclass(frozen=True, kw_only=True)
class Store:
    """The sparse distributed memory in which a machine stores what follows a context.

    By default a symbol is one data neuron, and the synapses that this saves go into more locations:
    two contexts then seldom share all of theirs. ``Store(locations=2048, connections=20,
    data=(11, 256))`` is the published store, with as many synapses for the data.

    Attributes:
        rule: How a location stores a symbol: ``or``, ``max``, ``add`` or ``decay``
            (:class:`isospike.memory.SparseDistributedMemory`).
        locations: Hard locations W.
        connections: Context neurons to which a location is connected.
        active: Locations w that a context activates.
        data: (d, D): of D data neurons, d fire for a symbol; None for one neuron a symbol.
        alpha: Significance of a spike over that of the spike before, in (0, 1].
        decay: What a write leaves of the counters at its locations, in [0, 1]; rule ``decay`` only.

    Raises:
        InputError: An unknown rule.
        RangeError: A number outside its range.

    Example:
        >>> from isospike.memory import SequenceMachine, Store
        >>> machine = SequenceMachine("abcd", store=Store(rule="max", locations=1024))
        >>> _ = machine.learn_sequence("abcd")
        >>> machine.generate("ab", 2)
        ['c', 'd']
    """

    rule: str = "or"
    locations: int = 16384
    connections: int = 8
    active: int = 11
    data: Code | None = None
    alpha: float = 0.9
    decay: float = 0.999

    def __post_init__(self) -> None:
        _take_types(self, "Store")
        check_alpha(self.alpha, "Store")
        if self.rule not in RULES:
            raise InputError(
                f"Store needs a rule of {', '.join(RULES)}, got {self.rule!r}. Use one of them."
            )
        if self.data is not None:
            _check_code(self.data, "Store needs data")
        _check_share(self.decay, "Store needs decay")
        if not 1 <= self.active <= self.locations:
            raise RangeError(
                f"Store needs 1 <= active <= locations, got {self.active} of {self.locations}. "
                "Give more locations."
            )
        if self.connections < 1:
            raise RangeError(
                f"Store needs connections >= 1, got {self.connections}. Its default is 8."
            )


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """Everything that makes a :class:`isospike.memory.SequenceMachine`, but for its symbols.

    Attributes:
        context: How the context is formed.
        store: Where a context stores what follows; None with :class:`Backoff` and :class:`Mixed`.
        layers: ``abstract``, ``wheel`` or ``rdlif``.
        confidence: Share of right predictions required of an accepted one, in [0, 1].
        grow: Whether unknown symbols join the alphabet.
        seed: Draws codes, P1, P2 and connections; at least 0.

    Raises:
        InputError: Not a context or a store, or an unknown kind of layer.
        RangeError: A number outside its range.
        UnsupportedError: Parts that do not go together.

    Example:
        >>> from isospike.memory import Combined, SequenceMachine
        >>> settings = SequenceMachine("abc", context=Combined(), seed=3).settings
        >>> settings.context.name, settings.store.rule, settings.seed
        ('combined', 'or', 3)
    """

    context: Context
    store: Store | None
    layers: str = ABSTRACT
    confidence: float = 0.5
    grow: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _take_types(self, "SequenceMachine")
        self._check_kinds()
        if not 0 <= self.confidence <= 1:
            raise RangeError(
                f"SequenceMachine needs confidence in [0, 1], got {self.confidence}. Its default "
                "is 0.5."
            )
        if self.seed < 0:
            raise RangeError(
                f"SequenceMachine needs a seed >= 0, got {self.seed}. Use another whole number."
            )
        if self.room() > MOST_BYTES:
            raise RangeError(
                f"SequenceMachine needs connections that take at most {MOST_BYTES >> 30} GiB, got "
                f"{self.room() / 2**30:.3g} GiB. Use fewer neurons or connections."
            )
        if self.store is None:
            if self.layers != ABSTRACT:
                raise UnsupportedError(
                    f"SequenceMachine needs a context with a store for layers={self.layers!r}, got "
                    f"{type(self.context).__name__}. Use Combined, Layer or Shift."
                )
            return
        if self.layers != ABSTRACT and self.store.rule not in ("or", "max"):
            raise UnsupportedError(
                f"SequenceMachine needs the rule or or max for layers={self.layers!r}, got "
                f"{self.store.rule!r}. Use one of the two, or layers={ABSTRACT!r}."
            )
        if self.grow and self.store.data is not None:
            raise UnsupportedError(
                "SequenceMachine needs a store with data=None to grow, got "
                f"data={self.store.data}. Leave out data, or name all symbols."
            )

    def room(self, symbols: int = 0) -> int:
        """Memory for connections and codes, about: what a file of the machine does not hold.

        Args:
            symbols: Size of the alphabet.

        Returns:
            Bytes.
        """
        if isinstance(self.context, Counting) or self.store is None:
            return 0
        (n, d), m = self.context.code, self.context.context_code[1]
        recurrent = 0 if isinstance(self.context, Shift) else (m + d) * m
        spiking = 0 if self.layers == ABSTRACT else 8 * self.store.locations * m + 8 * recurrent
        drawn = 4 * 4096 * m + 24 * self.store.locations * self.store.connections
        return recurrent + spiking + drawn + 8 * symbols * (n + (self.store.data or (1, 8))[0])

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them.

        Returns:
            The fields; the context with its ``name``.
        """
        about = asdict(self)
        about["context"] = {"name": self.context.name, **about["context"]}
        return about

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> "MachineSettings":
        """The settings that :meth:`to_dict` wrote.

        Args:
            about: The fields.

        Returns:
            The same settings.

        Raises:
            KeyError, TypeError, ValueError: Not such fields.
        """
        context, store = dict(about["context"]), about["store"]
        kind = CONTEXTS[context.pop("name")]
        if set(about) != {field.name for field in fields(cls)}:
            raise KeyError("settings")
        parts = {
            "context": kind(**_with_tuples(context)),
            "store": None if store is None else Store(**_with_tuples(store)),
        }
        return cls(**{**about, **parts})

    def _check_kinds(self) -> None:
        """Raise unless context, store and layers are of their kinds."""
        names = ", ".join(kind.__name__ for kind in CONTEXTS.values())
        if not isinstance(self.context, Context):
            raise InputError(
                f"SequenceMachine needs a context of {names}, got {self.context!r}. For example: "
                "context=isospike.memory.Shift(depth=2)."
            )
        if self.store is not None and not isinstance(self.store, Store):
            raise InputError(
                f"SequenceMachine needs a Store, got {self.store!r}. For example: "
                "store=isospike.memory.Store(rule='or')."
            )
        if self.layers not in (ABSTRACT, *KINDS):
            raise InputError(
                f"SequenceMachine needs layers of {', '.join((ABSTRACT, *KINDS))}, got "
                f"{self.layers!r}. Use one of them."
            )
        if isinstance(self.context, Counting) != (self.store is None):
            raise UnsupportedError(
                f"SequenceMachine needs no store with {type(self.context).__name__}, got "
                f"{self.store!r}. Leave it out, or use another context."
            )


def _take_types(settings: Any, who: str) -> None:
    """Make whole numbers, numbers, codes, names and switches of the fields, or refuse them.

    Those of NumPy become Python's, which a file can hold; a number out of a file may be anything.
    """
    for field in fields(settings):
        take = _TYPES.get(field.type)
        if take is None:
            continue
        value = getattr(settings, field.name)
        convert, what = take
        try:
            object.__setattr__(settings, field.name, convert(value))
        except (TypeError, ValueError, OverflowError):
            kind = InputError if field.type in (str, bool) else RangeError
            raise kind(
                f"{who} needs {field.name} to be {what}, got {value!r}. Give another."
            ) from None


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _real(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError
    return float(value)


def _code(value: Any) -> Code:
    n, m = value
    return _whole(n), _whole(m)


def _exactly(kind: type) -> Any:
    def take(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError
        return value

    return take


_TYPES: dict[Any, tuple[Any, str]] = {
    int: (_whole, "a whole number"),
    float: (_real, "a number"),
    str: (_exactly(str), "a name"),
    bool: (_exactly(bool), "True or False"),
    Code: (_code, "two whole numbers (N, M)"),
    Code | None: (lambda code: code if code is None else _code(code), "(N, M) or None"),
}


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON had to make lists of is tuples again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _check_code(code: Code, what: str) -> None:
    if not 1 <= code[0] <= code[1]:
        raise RangeError(
            f"{what} = (N, M) with 1 <= N <= M, got {code}. N neurons of M fire: give more neurons."
        )


def _check_depth(depth: int, who: str) -> None:
    if depth < 1:
        raise RangeError(f"{who} needs depth >= 1, got {depth}. Use 1 for the last symbol alone.")


def _check_share(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise RangeError(f"{what} in [0, 1], got {value}. Use a number between 0 and 1.")
