"""What a sequence machine remembers in: a context that addresses lines, or contexts that vote."""

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from isospike.codes.orders import random_orders
from isospike.errors import RangeError
from isospike.kernels.machine import backoff as votes
from isospike.kernels.machine import stream
from isospike.kernels.machine.locations import OR
from isospike.memory.decoder import AddressDecoder
from isospike.memory.sdm import RULES

ADAPT = {None: stream.CONSTANT, "agreement": stream.AGREEMENT, "activity": stream.ACTIVITY}


@runtime_checkable
class Memory(Protocol):
    """The inside of a sequence machine; symbols are numbers from 0.

    Attributes:
        scores: Match of every symbol, after :meth:`score`.
        synapses: Cells in which symbols are stored.
    """

    @property
    def scores(self) -> Any: ...

    @property
    def synapses(self) -> int: ...

    def resize(self, symbols: int) -> None:
        """Make room for an alphabet of so many symbols."""

    def restart(self) -> None:
        """Go to the context in which sequences start."""

    def score(self) -> None:
        """Match every symbol with what is stored for the present context."""

    def store(self, symbol: int) -> None:
        """Store what follows the present context."""

    def advance(self, symbol: int) -> None:
        """Move on to the next context."""

    def stream(self, ids: Any, learn: bool, guess: Any, match: Any, margin: Any) -> None:
        """Score, store if asked to, and advance, symbol by symbol."""

    def tensors(self) -> dict[str, Any]:
        """All that symbols have changed, by name; views, so that loading can write into them."""

    def refresh(self) -> None:
        """Recompute what follows from :meth:`tensors`."""


class LineMemory:
    """A K-of-M context that addresses a sparse distributed memory."""

    def __init__(
        self,
        context: str,
        code: tuple[int, int],
        context_code: tuple[int, int],
        decoder: tuple[int, int, int],
        data: tuple[int, int] | None,
        alpha: float,
        weight: float,
        depth: int,
        decay: float,
        rule: str,
        keep: float,
        adapt: str | None,
        seed: int,
    ) -> None:
        generator = _generator(seed)
        if context == "shift":
            context_code = (depth * code[0], depth * code[1])
        (n, d), (k, m), (a, w, lines) = code, context_code, decoder
        gains = {s: (alpha ** np.arange(s)).astype(np.float32) for s in {n, k, w}}
        old, new = np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8)
        gain_old, gain_new = gains[k], gains[n]
        if context == "shift":
            gain_old = (decay ** np.arange(depth)).astype(np.float32)
        else:
            # Eight-bit weights: a quarter of the memory traffic, and as random.
            old = torch.randint(256, (m, m), generator=generator, dtype=torch.uint8).numpy()
            new = torch.randint(256, (d, m), generator=generator, dtype=torch.uint8).numpy()
            share = weight if context == "layer" else weight / gain_old.sum()
            rest = 1.0 if context == "layer" else (1 - weight) / gain_new.sum()
            gain_old, gain_new = gain_old * share, gain_new * rest
            # On a grid so coarse that float32 sums are exact: the same in any order of the spikes.
            unit = (gain_old.sum() + gain_new.sum()) / (2**24 / 256)
            gain_old = np.rint(gain_old / unit).astype(np.float32)
            gain_new = np.rint(gain_new / unit).astype(np.float32)
        made = AddressDecoder(m, a, w, lines, alpha, generator, torch.float32)
        gain_data = np.ones(1) if data is None else alpha ** np.arange(data[0])
        self._decoder, self._seed, self._code, self._data = made, seed, code, data
        self._start_code = random_orders(1, n, d, generator).numpy()
        self._fixed = stream.Fixed(
            kind=stream.SHIFT if context == "shift" else stream.RECURRENT,
            codes=self._start_code,
            data_codes=np.empty((0, 1 if data is None else data[0]), np.int64),
            old=old, new=new, gain_old=gain_old, gain_new=gain_new, gain_context=gains[k],
            gain_data=gain_data.astype(np.float32), sigma=gains[w], decoder=made.table,
            rule=RULES[rule], keep=keep, adapt=ADAPT[adapt],
        )  # fmt: skip
        cell = np.uint8 if RULES[rule] == OR else np.float32
        self._state = stream.State(
            context=np.zeros(k, np.int64),
            history=np.zeros(depth, np.int64),
            chosen=np.zeros(w, np.int64),
            cells=np.zeros((lines, 8 if data is None else data[1]), cell),
        )
        self._sizes = (m, lines)
        self.resize(0)

    @property
    def scores(self) -> Any:
        return self._work.scores

    @property
    def synapses(self) -> int:
        return int(self._state.cells.size)

    def resize(self, symbols: int) -> None:
        if self._data is not None and symbols > math.comb(self._data[1], self._data[0]):
            raise RangeError(
                f"SequenceMachine needs a data code for each of {symbols} symbols, got "
                f"{self._data[0]}-of-{self._data[1]}. Give more data neurons."
            )
        codes, data_codes = [self._fixed.codes[:-1]], [self._fixed.data_codes]
        met = len(codes[0])
        for i in range(met, symbols):
            # A generator of its own for each symbol: codes do not depend on when it was met.
            own = _generator(self._seed, i)
            codes.append(random_orders(1, *self._code, own).numpy())
            code = np.array([[i]])
            if self._data is not None:
                code = random_orders(1, *self._data, own).numpy()
                while any((np.sort(code) == np.sort(other)).all(1).any() for other in data_codes):
                    code = random_orders(1, *self._data, own).numpy()  # no two symbols alike
            data_codes.append(code)
        self._fixed = self._fixed._replace(
            codes=np.concatenate([*codes, self._start_code]), data_codes=np.concatenate(data_codes)
        )
        cells = self._state.cells
        if self._data is None and symbols > cells.shape[1]:
            grown = np.zeros((len(cells), 1 << (symbols - 1).bit_length()), cells.dtype)
            grown[:, : cells.shape[1]] = cells
            self._state = self._state._replace(cells=grown)
        # The start symbol comes after all others.
        self._state.history[self._state.history == met] = symbols
        m, lines = self._sizes
        sizes = (m, lines, self._state.cells.shape[1], symbols, (2, 2))
        self._work = stream.Work(*(np.zeros(s, np.float32) for s in sizes))

    def restart(self) -> None:
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

    def stream(self, ids: Any, learn: bool, guess: Any, match: Any, margin: Any) -> None:
        stream.stream(self._fixed, self._state, self._work, ids, learn, guess, match, margin)

    def tensors(self) -> dict[str, Any]:
        s = self._state
        return {"cells": s.cells, "context": s.context, "history": s.history}

    def refresh(self) -> None:
        stream.choose(self._fixed, self._state, self._work)


class VoteMemory:
    """Contexts of every length up to ``depth``, which count what followed and vote.

    (1)  p_{-1}(s) = 1 / symbols
    (2)  p_o(s) = (max(c_o(s) - d, 0) + d u_o p_{o-1}(s)) / n_o,  d = 3/4

    with c_o(s) how often s was counted after the last o symbols, n_o the sum of these counts and
    u_o how many are not 0. What the discount d takes from each goes to the shorter context. A
    symbol is counted in the longest context and down to the first that has met it, so a shorter
    context counts the different longer ones before it, not how often the longest came by. Counts
    live in a fixed number of synapses, whatever the alphabet and the length of the stream.

    Reference: Kneser and Ney (1995), Improved backing-off for m-gram language modeling; Chen and
    Goodman (1999), An empirical study of smoothing techniques for language modeling (the
    interpolated form); Cormode and Muthukrishnan (2005), An improved data stream summary: the
    count-min sketch.
    """

    def __init__(self, depth: int, synapses: int, seed: int) -> None:
        size = 1 << (synapses // 2).bit_length() - 1
        table = (2, max(1, size // 4))
        self._votes = votes.Votes(
            history=np.zeros(depth, np.int64),
            filled=np.zeros(1, np.int64),
            seed=np.random.SeedSequence([seed]).generate_state(1, np.uint64),
            counts=np.zeros((2, size), np.float32),
            totals=np.zeros(table, np.float32),
            kinds=np.zeros(table, np.float32),
        )
        self._scores: Any = np.zeros(0, np.float32)

    @property
    def scores(self) -> Any:
        return self._scores

    @property
    def synapses(self) -> int:
        return int(self._votes.counts.size)

    def resize(self, symbols: int) -> None:
        self._scores = np.zeros(symbols, np.float32)

    def restart(self) -> None:
        self._votes.filled[0] = 0

    def score(self) -> None:
        votes.score(self._votes, self._scores)

    def store(self, symbol: int) -> None:
        votes.store(self._votes, symbol)

    def advance(self, symbol: int) -> None:
        votes.advance(self._votes, symbol)

    def stream(self, ids: Any, learn: bool, guess: Any, match: Any, margin: Any) -> None:
        votes.stream(self._votes, self._scores, ids, learn, guess, match, margin)

    def tensors(self) -> dict[str, Any]:
        return {k: v for k, v in self._votes._asdict().items() if k != "seed"}

    def refresh(self) -> None:
        pass


def _generator(*seed: int) -> torch.Generator:
    """A generator for some numbers; torch's own seeding keeps 32 bits of one."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
