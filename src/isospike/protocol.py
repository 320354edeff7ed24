"""Five operations that the sequence machine and the transformer both do, and one way to run them.

==========  =======================================  =============================================
operation   sequence machine                         transformer
==========  =======================================  =============================================
encode      a fixed table of firing orders           a learned table, and a position
context     the old context, scrambled, and the      the token's vector enters the stack of layers
            new code: the K most active fire
retrieve    the lines it excites most, their cells   softmax over the cached keys, their values
store       cells of those lines, for this symbol    the token's keys and values, into the cache
decode      share of the cells that hold a symbol    a linear map and softmax
==========  =======================================  =============================================

They are not the same machine. What is exactly equal: an additive store read by firing lines is
linear attention with the feature map ``phi(x) = nof_m(A x; w, alpha)``, and a store that keeps the
largest value is a maximum per line (``tests/test_protocol.py``). What is not:

- The machine's state is bounded, a context of K spikes and a fixed number of cells; the cache grows
  with every token (:attr:`FiveOperations.state`).
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

from isospike.errors import RangeError, UnsupportedError
from isospike.memory.machine import SequenceMachine
from isospike.models.transformer import Cache, Transformer


class FiveOperations(ABC):
    """A machine that is told symbols, one by one, and asked for others.

    :func:`run_online` calls, for every step: ``context(encode(input))``,
    ``decode(retrieve())``, which changes nothing, and ``store(encode(target))``.
    """

    @property
    @abstractmethod
    def symbols(self) -> Sequence[Hashable]:
        """The alphabet; :meth:`decode` has a share for each."""

    @property
    @abstractmethod
    def state(self) -> int:
        """Numbers it remembers now: what :meth:`store` and :meth:`context` write."""

    @abstractmethod
    def forget(self) -> None:
        """Go to the start, and empty the store."""

    @abstractmethod
    def restart(self) -> None:
        """Go to the start of a sequence, and keep what is stored if that outlives a sequence."""

    @abstractmethod
    def encode(self, symbol: Hashable) -> Any:
        """The code of a symbol.

        Raises:
            RangeError: It is not in the alphabet.
        """

    @abstractmethod
    def context(self, code: Any) -> None:
        """Move on to the context in which this code has just come."""

    @abstractmethod
    def retrieve(self) -> Any:
        """What the store answers in the present context."""

    @abstractmethod
    def store(self, code: Any) -> None:
        """Keep that the present context is to be answered by this code; None for no code.

        A cache keeps the present token instead, whatever the code.
        """

    @abstractmethod
    def decode(self, answer: Any) -> Any:
        """Probability of every symbol, ``[symbols]``."""


class MachineOperations(FiveOperations):
    """The sequence machine as five operations.

    Args:
        machine: Its memory is used, and changed.
        floor: Probability that :meth:`decode` spreads over all symbols: what is not stored is not
            impossible.
    """

    def __init__(self, machine: SequenceMachine, floor: float = 0.01) -> None:
        if not 0 <= floor <= 1:
            raise RangeError(f"MachineOperations needs a floor in [0, 1], got {floor}.")
        if not machine.symbols or machine.grow:
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

    def forget(self) -> None:
        for array in self._memory.tensors().values():
            array[...] = 0
        self.restart()

    def restart(self) -> None:
        self._machine.restart()

    def encode(self, symbol: Hashable) -> int:
        if symbol not in self._ids:
            raise RangeError(
                f"encode needs a symbol of the alphabet of {len(self._ids)}, got {symbol!r}."
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

    Told a sequence token by token, it says what one forward pass says.

    Args:
        model: Causal; it is put into ``eval`` mode, and its weights stay as they are.
        symbols: The alphabet, one symbol for each token of the model; by default the numbers.
    """

    def __init__(self, model: Transformer, symbols: Sequence[Hashable] | None = None) -> None:
        symbols = range(model.vocabulary) if symbols is None else symbols
        if not model.causal:
            raise UnsupportedError(
                "TransformerOperations needs a causal transformer, got one that looks ahead."
            )
        if len(symbols) != model.vocabulary:
            raise RangeError(
                f"TransformerOperations needs {model.vocabulary} symbols, one a token, got "
                f"{len(symbols)}."
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

    def forget(self) -> None:
        self._cache = self._now = self._next = None

    def restart(self) -> None:
        """As :meth:`forget`: a cache belongs to its sequence."""
        self.forget()

    def encode(self, symbol: Hashable) -> Tensor:
        if symbol not in self._ids:
            raise RangeError(
                f"encode needs a symbol of the alphabet of {len(self._ids)}, got {symbol!r}."
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


class Told(NamedTuple):
    """A sequence to run on line.

    Attributes:
        inputs: Symbols it consists of.
        targets: What is to be answered after each, and stored; None for nothing.
        scored: Whether each target is asked for; left out, all that there are.
    """

    inputs: Sequence[Hashable]
    targets: Sequence[Hashable]
    scored: Sequence[bool] | None = None


@dataclass(frozen=True)
class Online:
    """What an on-line run scored.

    Attributes:
        scored: Steps with a target.
        bits: Of the targets, the mean.
        token: Share of the targets that were the most probable symbol.
        sequence: Share of sequences without a mistake.
        state: Numbers remembered at the end of the last sequence.
        largest_state: At the end of any.
    """

    scored: int
    bits: float
    token: float
    sequence: float
    state: int
    largest_state: int


def run_online(
    machine: FiveOperations,
    sequences: Iterable[Told],
    *,
    forget: bool = False,
    learn: bool = True,
    skip: int = 0,
) -> Online:
    """Run a machine over sequences, symbol by symbol: each target is asked for, then stored.

    Args:
        machine: Either implementation.
        sequences: For the next symbol, targets are the inputs one step on.
        forget: Empty the store before each sequence; else only the context goes to the start.
        learn: Store targets.
        skip: Sequences at the start that are learned but not scored.

    Raises:
        RangeError: A sequence's parts differ in length, or nothing is scored.
    """
    index = {symbol: i for i, symbol in enumerate(machine.symbols)}
    bits, right, whole, states = [], [], [], [0]
    for number, (inputs, targets, scored) in enumerate(sequences):
        asked = [target is not None for target in targets] if scored is None else scored
        if not len(inputs) == len(targets) == len(asked):
            raise RangeError(
                "run_online needs inputs, targets and scored of one length, got "
                f"{len(inputs)}, {len(targets)} and {len(asked)}."
            )
        if forget:
            machine.forget()
        else:
            machine.restart()
        hits = []
        for symbol, target, ask in zip(inputs, targets, asked, strict=True):
            machine.context(machine.encode(symbol))
            if ask and number >= skip:
                share = machine.decode(machine.retrieve())
                hits.append(int(share.argmax()) == index[target])
                bits.append(-float(np.log2(max(share[index[target]], 1e-300))))
            machine.store(machine.encode(target) if learn and target is not None else None)
        right += hits
        if hits:
            whole.append(all(hits))
        states.append(machine.state)
    if not right:
        raise RangeError("run_online needs a target to score, got none. Give one, or skip fewer.")
    return Online(
        len(right), float(np.mean(bits)), float(np.mean(right)), float(np.mean(whole)),
        states[-1], max(states),
    )  # fmt: skip
