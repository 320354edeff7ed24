"""Five operations that the sequence machine and the transformer both do, and one way to run them.

==========  =======================================  =============================================
operation   sequence machine                         transformer
==========  =======================================  =============================================
encode      a fixed table of firing orders           a learned table, and a position
context     the old context, scrambled, and the      the token's vector enters the stack of layers
            new code: the K most active fire
retrieve    counters of the locations it activates   softmax over the cached keys, their values
store       those counters, for this symbol          the token's keys and values, into the cache
decode      share of the counters for each symbol    a linear map and softmax
==========  =======================================  =============================================

They are not the same machine. What is exactly equal: an additive store read by active locations is
linear attention with the feature map ``phi(x) = nof_m(A x; w, alpha)``, and a store that keeps the
largest value is a maximum per location (``tests/test_protocol.py``). What is not:

- The machine's state is bounded, a context of K spikes and a fixed number of counters; the cache
  grows with every token (:attr:`FiveOperations.state`).
- The machine stores the pair (context, next symbol) at once; the transformer stores keys and values
  of one token, and only a second layer can tie a token to the one before it.
- The machine learns while it runs; the transformer's weights were trained before.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.memory.machine import SequenceMachine
from isospike.models.transformer import Cache, Transformer


class FiveOperations(ABC):
    """An on-line sequence model: it reads one symbol at a time and predicts others.

    :func:`run_online` calls, for every step: ``context(encode(input))``,
    ``decode(retrieve())``, which changes nothing, and ``store(encode(target))``.
    """

    @property
    @abstractmethod
    def symbols(self) -> Sequence[Hashable]:
        """The alphabet; :meth:`decode` has a probability for each."""

    @property
    @abstractmethod
    def state(self) -> int:
        """How many numbers :meth:`store` and :meth:`context` have written and are remembered."""

    @abstractmethod
    def reset_memory(self) -> None:
        """Empty the store, and go to the start of a sequence."""

    @abstractmethod
    def reset_context(self) -> None:
        """Go to the start of a sequence; a store that outlives a sequence stays."""

    @abstractmethod
    def encode(self, symbol: Hashable) -> Any:
        """The code of a symbol.

        Args:
            symbol: One of the alphabet.

        Returns:
            What :meth:`context` and :meth:`store` take.

        Raises:
            InputError: It is not in the alphabet.
        """

    @abstractmethod
    def context(self, code: Any) -> None:
        """Move on to the context in which a symbol has just come.

        Args:
            code: Of the symbol, from :meth:`encode`.
        """

    @abstractmethod
    def retrieve(self) -> Any:
        """Ask the store in the present context.

        Returns:
            Its answer, which :meth:`decode` takes.
        """

    @abstractmethod
    def store(self, code: Any) -> None:
        """Store a symbol as the answer in the present context.

        Args:
            code: Of the symbol, from :meth:`encode`; None to store no symbol. A cache stores the
                present token instead, whatever the code.
        """

    @abstractmethod
    def decode(self, answer: Any) -> Any:
        """The prediction that an answer holds.

        Args:
            answer: From :meth:`retrieve`.

        Returns:
            Probability of every symbol, ``[symbols]``.
        """


class MachineOperations(FiveOperations):
    """The sequence machine as five operations.

    Args:
        machine: A machine of a fixed alphabet; its memory is used and changed.
        floor: Probability that :meth:`decode` spreads over all symbols, in [0, 1]: a symbol that is
            not stored is not impossible.

    Raises:
        RangeError: ``floor`` outside [0, 1].
        UnsupportedError: The machine's alphabet is empty or grows.

    Example:
        >>> from isospike import SequenceMachine
        >>> from isospike.protocol import MachineOperations
        >>> machine = MachineOperations(SequenceMachine("abc"))
        >>> machine.context(machine.encode("a"))
        >>> machine.store(machine.encode("b"))
        >>> machine.decode(machine.retrieve()).round(3).tolist()
        [0.138, 0.723, 0.138]
    """

    def __init__(self, machine: SequenceMachine, floor: float = 0.01) -> None:
        if not 0 <= floor <= 1:
            raise RangeError(
                f"MachineOperations needs a floor in [0, 1], got {floor}. Its default is 0.01."
            )
        if not machine.symbols or machine.settings.grow:
            raise UnsupportedError(
                "MachineOperations needs a machine with a fixed alphabet, got one that is empty or "
                "grows. Name its symbols."
            )
        self._machine, self._memory, self._floor = machine, machine.memory, floor
        self._ids = {symbol: i for i, symbol in enumerate(machine.symbols)}

    @property
    def symbols(self) -> Sequence[Hashable]:
        return self._machine.symbols

    @property
    def state(self) -> int:
        return sum(int(array.size) for array in self._memory.tensors().values())

    def reset_memory(self) -> None:
        self._memory.clear()
        self.reset_context()

    def reset_context(self) -> None:
        self._machine.reset_context()

    def encode(self, symbol: Hashable) -> int:
        if symbol not in self._ids:
            raise InputError(
                f"encode needs a symbol of the alphabet of {len(self._ids)}, got {symbol!r}. See "
                "the attribute symbols."
            )
        return self._ids[symbol]

    def context(self, code: int) -> None:
        self._memory.advance(code)

    def retrieve(self) -> Any:
        self._memory.score()
        return self._memory.scores.astype(np.float64)

    def store(self, code: int | None) -> None:
        if code is not None:
            self._memory.store(code)

    def decode(self, answer: Any) -> Any:
        total, count = answer.sum(), len(answer)
        if total <= 0:
            return np.full(count, 1 / count)
        return (1 - self._floor) * answer / total + self._floor / count


class TransformerOperations(FiveOperations):
    """A causal transformer as five operations; its key-value cache is the store.

    Token by token it predicts what one forward pass over the sequence predicts.

    Args:
        model: Causal; it is put into ``eval`` mode, and its weights stay as they are.
        symbols: The alphabet, one symbol for each token of the model; by default the numbers.

    Raises:
        InputError: Not one symbol for each token.
        UnsupportedError: The model is not causal.

    Example:
        >>> from isospike.protocol import TransformerOperations
        >>> from isospike.models.transformer import Transformer
        >>> model = TransformerOperations(Transformer(3, 8, 2, 1), "abc")
        >>> model.context(model.encode("a"))
        >>> model.decode(model.retrieve()).shape
        (3,)
    """

    def __init__(self, model: Transformer, symbols: Sequence[Hashable] | None = None) -> None:
        symbols = range(model.vocabulary) if symbols is None else symbols
        if not model.causal:
            raise UnsupportedError(
                "TransformerOperations needs a causal transformer, got one that looks ahead. Make "
                "it with causal=True."
            )
        if len(symbols) != model.vocabulary:
            raise InputError(
                f"TransformerOperations needs {model.vocabulary} symbols, one a token, got "
                f"{len(symbols)}. Leave them out for the numbers of the tokens."
            )
        self._model, self._symbols = model.eval(), list(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self._cache: Cache | None = None
        self._now: Tensor | None = None
        self._next: Cache | None = None

    @property
    def symbols(self) -> Sequence[Hashable]:
        return self._symbols

    @property
    def state(self) -> int:
        if self._cache is None:
            return 0
        return sum(t.numel() for t in (*self._cache.keys, *self._cache.values))

    def reset_memory(self) -> None:
        self._cache = self._now = self._next = None

    def reset_context(self) -> None:
        """As :meth:`reset_memory`: a cache belongs to its sequence."""
        self.reset_memory()

    def encode(self, symbol: Hashable) -> Tensor:
        if symbol not in self._ids:
            raise InputError(
                f"encode needs a symbol of the alphabet of {len(self._ids)}, got {symbol!r}. See "
                "the attribute symbols."
            )
        return torch.tensor([[self._ids[symbol]]])

    def context(self, code: Tensor) -> None:
        if self._now is not None:
            self.store(None)
        self._now, self._next = code, None

    @torch.no_grad()
    def retrieve(self) -> Tensor | None:
        if self._now is None:
            return None  # No token yet: nothing attends.
        start = self._cache.length if self._cache else 0
        x, at = self._model.embed(self._now, start)
        x, self._next = self._model.attend(x, at, self._cache)
        return x

    def store(self, code: Tensor | None) -> None:
        """Append the present token's keys and values; they do not depend on ``code``."""
        if self._now is None:
            return
        if self._next is None:
            self.retrieve()
        self._cache, self._now = self._next, None

    @torch.no_grad()
    def decode(self, answer: Tensor | None) -> Any:
        if answer is None:
            return np.full(len(self._symbols), 1 / len(self._symbols))
        return self._model.read(answer)[0, -1].double().softmax(-1).numpy()


class OnlineSequence(NamedTuple):
    """A sequence for :func:`run_online`.

    Attributes:
        inputs: Symbols of the sequence.
        targets: Target after each input; None where nothing is predicted.
        scored: Whether each target is scored; None to score every target there is.

    Example:
        >>> from isospike.protocol import OnlineSequence
        >>> OnlineSequence("abc", ["b", "c", None]).targets
        ['b', 'c', None]
    """

    inputs: Sequence[Hashable]
    targets: Sequence[Hashable]
    scored: Sequence[bool] | None = None


@dataclass(frozen=True)
class OnlineScore:
    """What :func:`run_online` measured.

    Attributes:
        scored: Number of scored targets.
        bits: Mean surprise of a target, in bits.
        accuracy: Share of the targets that were the most probable symbol.
        sequence_accuracy: Share of the sequences without a mistake.
        state: Numbers remembered at the end of the last sequence.
        largest_state: Most numbers remembered at the end of any sequence.
    """

    scored: int
    bits: float
    accuracy: float
    sequence_accuracy: float
    state: int
    largest_state: int


def run_online(
    machine: FiveOperations,
    sequences: Iterable[OnlineSequence],
    *,
    reset_memory: bool = False,
    learn: bool = True,
    skip: int = 0,
) -> OnlineScore:
    """Run a model over sequences, symbol by symbol: each target is predicted, then stored.

    Args:
        machine: Either implementation.
        sequences: For the next symbol, targets are the inputs one step on.
        reset_memory: Empty the store before each sequence; otherwise only the context is reset.
        learn: Store targets.
        skip: Sequences at the start that are learned but not scored.

    Returns:
        Accuracy, surprise and size of the state.

    Raises:
        InputError: The parts of a sequence differ in length, a symbol or target is not in the
            alphabet, or no target is scored.

    Example:
        >>> from isospike import SequenceMachine
        >>> from isospike.protocol import MachineOperations, run_online
        >>> from isospike.protocol import OnlineSequence
        >>> machine = MachineOperations(SequenceMachine("abcd"))
        >>> run_online(machine, [OnlineSequence("abcd", ["b", "c", "d", None])] * 2).accuracy
        0.5
    """
    bits: list[float] = []
    right: list[bool] = []
    whole, states = [], [0]
    for number, sequence in enumerate(sequences):
        if reset_memory:
            machine.reset_memory()
        else:
            machine.reset_context()
        hits, surprise = _run_sequence(machine, sequence, learn, score=number >= skip)
        right += hits
        bits += surprise
        if hits:
            whole.append(all(hits))
        states.append(machine.state)
    if not right:
        raise InputError(
            "run_online needs at least one target to score, got none. Give one, or lower skip."
        )
    return OnlineScore(
        len(right), float(np.mean(bits)), float(np.mean(right)), float(np.mean(whole)),
        states[-1], max(states),
    )  # fmt: skip


def _run_sequence(
    machine: FiveOperations, sequence: OnlineSequence, learn: bool, score: bool
) -> tuple[list[bool], list[float]]:
    """Whether each scored target was the most probable symbol, and its surprise in bits."""
    inputs, targets, scored = sequence
    asked = [target is not None for target in targets] if scored is None else scored
    if not len(inputs) == len(targets) == len(asked):
        raise InputError(
            "run_online needs inputs, targets and scored of one length, got "
            f"{len(inputs)}, {len(targets)} and {len(asked)}. Give None for no target."
        )
    index = {symbol: i for i, symbol in enumerate(machine.symbols)}
    hits, bits = [], []
    for symbol, target, ask in zip(inputs, targets, asked, strict=True):
        machine.context(machine.encode(symbol))
        if ask and score:
            if target not in index:
                raise InputError(
                    f"run_online needs scored targets of the alphabet of {len(index)}, got "
                    f"{target!r}. Do not score it, or name another."
                )
            share = machine.decode(machine.retrieve())
            hits.append(int(share.argmax()) == index[target])
            bits.append(-float(np.log2(max(share[index[target]], 1e-300))))
        machine.store(machine.encode(target) if learn and target is not None else None)
    return hits, bits
