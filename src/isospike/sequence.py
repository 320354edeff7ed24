"""The sequence machine: one-shot, on-line memory of sequences of symbols."""

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isospike.errors import IsospikeError, RangeError
from isospike.kernels import stream as kernels
from isospike.kernels.lines import OR, largest
from isospike.memory.decoder import AddressDecoder
from isospike.memory.sdm import RULES
from isospike.orders import check_alpha, random_orders
from isospike.saving import atomic_write

CONTEXTS = ("combined", "layer", "shift")
FORMAT = 1
_BINS = 64  # of the margin, for calibration


@dataclass(frozen=True)
class Prediction:
    """What a machine expects next.

    Attributes:
        symbol: The best match; None if nothing at all is known here.
        similarity: Share of the firing lines' cells that hold the symbol, in [0, 1].
        margin: Similarity less that of the second best.
        alternatives: The best matches with their similarities, best first.
        accepted: Whether predictions of this margin have been right often enough; if not, the
            machine does not know.
    """

    symbol: Hashable | None
    similarity: float
    margin: float
    alternatives: tuple[tuple[Hashable, float], ...]
    accepted: bool


class SequenceMachine:
    """A spiking sequence machine: encode, context, retrieve, store, decode.

    Symbol n has a fixed random N-of-D order I_n. The context C_n is a K-of-M order:

    ========  ==============================================================================
    combined  nof_m(weight * P1 C_{n-1} / |C| + (1 - weight) * P2 I_n / |I|), random P1 and P2
    layer     nof_m(weight * P1 C_{n-1} + P2 I_n)
    shift     the last ``depth`` symbols side by side, age l scaled by decay^l
    ========  ==============================================================================

    It addresses a sparse distributed memory (:class:`isospike.SparseDistributedMemory`), in which
    :meth:`learn` writes the next symbol, once, and :meth:`predict` reads it. A new machine, and one
    after :meth:`restart`, stands in the context of a start symbol.

    By default a symbol is one data neuron, and the synapses that this saves go into more lines:
    two contexts then seldom share all of them. ``data=(11, 256)`` and ``decoder=(20, 11, 2048)``
    are the published machine, with as many synapses for the data.

    Args:
        symbols: The alphabet, any hashable values; they are saved if they are strings or integers.
        context: See the table.
        code: (N, D) of a symbol at the context.
        context_code: (K, M); for ``shift`` it follows from ``code`` and ``depth``.
        decoder: (a, w, W): connections of a line, lines that fire, lines.
        data: (d, D) of a symbol in the store; None for one neuron each.
        alpha: Ratio of significance of consecutive spikes.
        weight: Share of the old context, in [0, 1).
        depth, decay: Of the shift register.
        rule: ``or``, ``max``, ``add``, ``decay``, as in the memory.
        keep: Of the rule ``decay``.
        confidence: Share of right predictions asked of an accepted one.
        grow: Take unknown symbols into the alphabet instead of refusing them (``data=None``).
        seed: Draws codes, P1, P2 and decoder; machines with one seed are equal and share nothing.

    Reference: Bose, Furber, Shapiro (2005), A spiking neural sparse distributed memory
    implementation for learning and predicting temporal sequences (ICANN); An associative memory
    for the on-line recognition and prediction of temporal sequences (IJCNN).
    """

    def __init__(
        self,
        symbols: Iterable[Hashable] = (),
        context: str = "combined",
        *,
        code: tuple[int, int] = (11, 256),
        context_code: tuple[int, int] = (22, 512),
        decoder: tuple[int, int, int] = (8, 11, 16384),
        data: tuple[int, int] | None = None,
        alpha: float = 0.9,
        weight: float = 0.5,
        depth: int = 2,
        decay: float = 0.9,
        rule: str = "or",
        keep: float = 0.999,
        confidence: float = 0.5,
        grow: bool = False,
        seed: int = 0,
    ) -> None:
        self.settings: dict[str, Any] = {
            "context": context, "code": list(code), "context_code": list(context_code),
            "decoder": list(decoder), "data": None if data is None else list(data),
            "alpha": alpha, "weight": weight, "depth": depth, "decay": decay, "rule": rule,
            "keep": keep, "confidence": confidence, "grow": grow, "seed": seed,
        }  # fmt: skip
        self.symbols: list[Hashable] = []
        self._ids: dict[Hashable, int] = {}
        _check(self.settings)
        self.confidence, self.grow, self._data = confidence, grow, data
        generator = torch.Generator().manual_seed(seed)
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
            gain_old, gain_new = gain_old * np.float32(share), gain_new * np.float32(rest)
        made = AddressDecoder(m, a, w, lines, alpha, generator, torch.float32)
        self._start_code = random_orders(1, n, d, generator).numpy()
        self._codes = np.empty((0, n), np.int64)
        self._data_codes = np.empty((0, 1 if data is None else data[0]), np.int64)
        gain_data = np.ones(1) if data is None else alpha ** np.arange(data[0])
        self._parts: dict[str, Any] = {
            "kind": kernels.SHIFT if context == "shift" else kernels.RECURRENT,
            "old": old, "new": new, "gain_old": gain_old, "gain_new": gain_new,
            "gain_context": gains[k], "gain_data": gain_data.astype(np.float32),
            "sigma": gains[w], "start": made.start, "line": made.line, "strength": made.strength,
            "rule": RULES[rule], "keep": keep,
        }  # fmt: skip
        cell = np.uint8 if RULES[rule] == OR else np.float32
        self._state = kernels.State(
            np.zeros(k, np.int64), np.zeros(depth, np.int64), np.zeros(w, np.int64),
            np.zeros((lines, 8 if data is None else data[1]), cell),
        )  # fmt: skip
        self._sizes = (m, lines)
        self._right = np.zeros(_BINS)
        self._seen = np.zeros(_BINS)
        self._expected: tuple[int, float] | None = None
        for symbol in symbols:
            self._add(symbol)
        self._rebuild()
        self.restart()

    # One symbol at a time.

    def predict(self, alternatives: int = 5) -> Prediction:
        """What comes next; changes nothing that is learned.

        Args:
            alternatives: How many matches to rank.
        """
        if not self.symbols:
            return Prediction(None, 0.0, 0.0, (), False)
        kernels.score_symbols(self._fixed, self._state, self._work)
        scores = self._work.scores
        top = np.empty(min(max(2, alternatives), len(scores)), np.int64)
        largest(scores, len(top), top)
        ranked = [(self.symbols[i], float(scores[i])) for i in top]
        best = ranked[0][1]
        if best <= 0:
            self._expected = None
            return Prediction(None, 0.0, 0.0, (), False)
        margin = best - (ranked[1][1] if len(ranked) > 1 else 0.0)
        self._expected = int(top[0]), margin
        return Prediction(
            ranked[0][0], best, margin, tuple(ranked[:alternatives]), self._trusted(margin)
        )

    def learn(self, symbol: Hashable) -> None:
        """Store ``symbol`` as what follows the present context, and move on to the next.

        Raises:
            RangeError: An unknown symbol, unless the machine grows.
        """
        i = self._id(symbol)
        if self._expected is not None:
            guess, margin = self._expected
            self._calibrate(np.array([guess == i]), np.array([margin]))
            self._expected = None
        kernels.store(self._fixed, self._state, i)
        kernels.advance(self._fixed, self._state, self._work, i)

    def follow(self, symbol: Hashable) -> None:
        """Move on to the next context without storing anything."""
        self._expected = None
        kernels.advance(self._fixed, self._state, self._work, self._id(symbol))

    def restart(self) -> None:
        """Go to the start context; what is learned stays."""
        self._expected = None
        self._state.history[:] = len(self.symbols)
        self._state.context[:] = np.arange(len(self._state.context))
        kernels.advance(self._fixed, self._state, self._work, len(self.symbols))

    # Whole sequences.

    def learn_sequence(self, sequence: Iterable[Hashable]) -> Any:
        """Predict and learn every symbol in turn, from where the machine stands.

        Returns:
            Whether each was predicted, ``[length]``; on-line: before it was learned.
        """
        return self._stream(sequence, learn=True)[0]

    def follow_sequence(self, sequence: Iterable[Hashable]) -> Any:
        """Predict every symbol in turn without learning."""
        return self._stream(sequence, learn=False)[0]

    def generate(self, prompt: Iterable[Hashable], count: int) -> list[Hashable]:
        """What follows ``prompt``, from the start context: up to ``count`` symbols, each prediction
        fed back. Stops early where the machine knows nothing."""
        if count < 0:
            raise RangeError(f"generate needs count >= 0, got {count}.")
        self.restart()
        for symbol in prompt:
            self.follow(symbol)
        out: list[Hashable] = []
        while len(out) < count:
            symbol = self.predict().symbol
            if symbol is None:
                break
            out.append(symbol)
            self.follow(symbol)
        return out

    @property
    def synapses(self) -> int:
        """Cells of the store."""
        return int(self._state.cells.size)

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the machine to one safetensors file; the file before it survives a crash.

        Raises:
            RangeError: Symbols that are neither strings nor integers.
        """
        if not all(isinstance(s, str | int) and not isinstance(s, bool) for s in self.symbols):
            raise RangeError("save needs symbols that are strings or integers. Map yours first.")
        from safetensors.numpy import save

        about = {"format": FORMAT, "settings": self.settings, "symbols": self.symbols}
        tensors = {
            "cells": self._state.cells, "context": self._state.context,
            "history": self._state.history, "right": self._right, "seen": self._seen,
        }  # fmt: skip
        atomic_write(Path(path), save(tensors, metadata={"isospike": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> "SequenceMachine":
        """Read a machine that :meth:`save` wrote.

        Raises:
            IsospikeError: Not such a file, cut short, or of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise IsospikeError(f"load needs a machine's file, got {path}. Save one first.")
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["isospike"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise IsospikeError(
                f"load needs a sequence machine that isospike saved, got {path} ({error}). It may "
                "be cut short."
            ) from error
        if about.get("format") != FORMAT:
            raise IsospikeError(
                f"load needs format {FORMAT}, got {about.get('format')} in {path}. Use the "
                "isospike version that saved it."
            )
        settings = about["settings"]
        for key in ("code", "context_code", "decoder", "data"):
            settings[key] = None if settings[key] is None else tuple(settings[key])
        machine = cls(about["symbols"], **settings)
        state = machine._state._asdict()
        for name in ("cells", "context", "history"):
            if tensors[name].shape != state[name].shape or tensors[name].dtype != state[name].dtype:
                raise IsospikeError(f"load needs {name} as saved, got another shape in {path}.")
            state[name][...] = tensors[name]
        machine._right[:], machine._seen[:] = tensors["right"], tensors["seen"]
        machine._choose()
        return machine

    # Inside.

    def _stream(self, sequence: Iterable[Hashable], learn: bool) -> Any:
        known = [self._id(symbol) for symbol in sequence]
        ids = np.array(known, np.int64)
        guess = np.zeros(len(ids), np.int64)
        match, margin = np.zeros((2, len(ids)), np.float32)
        if len(ids):
            kernels.stream(self._fixed, self._state, self._work, ids, learn, guess, match, margin)
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
        return bool(right / seen >= self.confidence)

    def _id(self, symbol: Hashable) -> int:
        i = self._ids.get(symbol)
        if i is None:
            if not self.grow:
                raise RangeError(
                    f"the machine needs a symbol of its alphabet of {len(self.symbols)}, got "
                    f"{symbol!r}. Make it with grow=True to take new ones."
                )
            self._add(symbol)
            i = self._ids[symbol]
            self._rebuild()
            self._state.history[self._state.history == i] = len(self.symbols)  # the start symbol
        return i

    def _add(self, symbol: Hashable) -> None:
        if symbol in self._ids:
            raise RangeError(f"the machine needs each symbol once, got {symbol!r} twice.")
        i = len(self.symbols)
        self.symbols.append(symbol)
        self._ids[symbol] = i
        n, d = self.settings["code"]
        # A generator of its own for each symbol: codes do not depend on when it was met.
        own = torch.Generator().manual_seed((self.settings["seed"] << 32) + i + 1)
        self._codes = np.concatenate([self._codes, random_orders(1, n, d, own).numpy()])
        if self._data is None:
            code = np.array([[i]])
        else:
            code = random_orders(1, *self._data, own).numpy()
        self._data_codes = np.concatenate([self._data_codes, code])

    def _rebuild(self) -> None:
        """Arrays that depend on the alphabet."""
        size = len(self.symbols)
        cells = self._state.cells
        if self._data is None and size > cells.shape[1]:
            grown = np.zeros((len(cells), 1 << (size - 1).bit_length()), cells.dtype)
            grown[:, : cells.shape[1]] = cells
            self._state = self._state._replace(cells=grown)
        m, lines = self._sizes
        self._fixed = kernels.Fixed(
            codes=np.concatenate([self._codes, self._start_code]),
            data_codes=self._data_codes,
            **self._parts,
        )
        width = self._state.cells.shape[1]
        self._work = kernels.Work(*(np.zeros(s, np.float32) for s in (m, lines, width, size)))

    def _choose(self) -> None:
        kernels.choose(self._fixed, self._state, self._work)


def _check(settings: dict[str, Any]) -> None:
    """Raise unless every setting is in its range."""
    check_alpha(settings["alpha"], "SequenceMachine")
    if settings["context"] not in CONTEXTS:
        raise RangeError(
            f"SequenceMachine needs a context of {', '.join(CONTEXTS)}, got "
            f"{settings['context']!r}."
        )
    if settings["rule"] not in RULES or settings["rule"] == "rank":
        raise RangeError(
            f"SequenceMachine needs a rule of or, max, add, decay, got {settings['rule']!r}."
        )
    for name in ("code", "context_code", "data"):
        if settings[name] is not None and not 1 <= settings[name][0] <= settings[name][1]:
            raise RangeError(
                f"SequenceMachine needs 1 <= N <= M in {name}, got {settings[name][0]}-of-"
                f"{settings[name][1]}."
            )
    for name in ("weight", "decay", "keep", "confidence"):
        if not 0 <= settings[name] <= 1:
            raise RangeError(f"SequenceMachine needs {name} in [0, 1], got {settings[name]}.")
    if settings["depth"] < 1:
        raise RangeError(f"SequenceMachine needs depth >= 1, got {settings['depth']}.")
    if settings["grow"] and settings["data"] is not None:
        raise RangeError("SequenceMachine needs data=None to grow, got a fixed data code.")
