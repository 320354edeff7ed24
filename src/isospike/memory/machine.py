"""The sequence machine: one-shot, on-line memory of sequences of symbols."""

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isospike.codes.orders import check_alpha
from isospike.errors import IsospikeError, RangeError, UnsupportedError
from isospike.kernels.machine.locations import largest
from isospike.memory.bursts import BurstMemory
from isospike.memory.contexts import ADAPT, LineMemory, Memory, VoteMemory
from isospike.memory.layers import KINDS
from isospike.memory.sdm import RULES
from isospike.report.files import write_file

CONTEXTS = ("combined", "layer", "shift", "voting")
FORMAT = 1
_BINS = 64  # of the margin, for calibration


@dataclass(frozen=True)
class Prediction:
    """What a machine expects next.

    Attributes:
        symbol: The best match; None, with similarity 0, if nothing at all is known here.
        similarity: In [0, 1]: with the rule ``or`` the share of the firing lines' cells that hold
            the symbol; otherwise its share of what all symbols have there.
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
    voting    the last 0, 1, .. ``depth`` symbols, each a context of its own; they count what
              followed and vote (:class:`isospike.memory.contexts.VoteMemory`). For text.
    ========  ==============================================================================

    The first three address a sparse distributed memory (:class:`isospike.SparseDistributedMemory`),
    in which :meth:`learn` writes the next symbol, once, and :meth:`predict` reads it. A new
    machine, and one after :meth:`restart`, stands in the context of a start symbol.

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
        depth, decay: Of the shift register (depth 2 by default) and of ``voting`` (6).
        rule: ``or``, ``max``, ``add``, ``decay``, as in the memory.
        keep: Of the rule ``decay``.
        synapses: Of ``voting``, rounded down to a power of two.
        adapt: Of ``combined`` and ``layer``: multiply the old context's share by the similarity of
            the symbol that came (``agreement``) or of the best match (``activity``). It seldom
            helped, with wrong cues or from the middle of a sequence (docs/measurements.md).
        layers: ``wheel`` or ``rdlif`` to compute every layer with spiking neurons, event by event:
            a wheel machine predicts exactly as without, an RDLIF machine nearly. Not for
            ``voting``; rules ``or`` and ``max``.
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
        depth: int | None = None,
        decay: float = 0.9,
        rule: str = "or",
        keep: float = 0.999,
        synapses: int = 2**23,
        adapt: str | None = None,
        layers: str | None = None,
        confidence: float = 0.5,
        grow: bool = False,
        seed: int = 0,
    ) -> None:
        if depth is None:
            depth = 6 if context == "voting" else 2
        self.settings: dict[str, Any] = {
            "context": context, "code": code, "context_code": context_code, "decoder": decoder,
            "data": data, "alpha": alpha, "weight": weight, "depth": depth, "decay": decay,
            "rule": rule, "keep": keep, "synapses": synapses, "adapt": adapt, "layers": layers,
            "confidence": confidence, "grow": grow, "seed": int(seed),
        }  # fmt: skip
        _check(self.settings)
        self.symbols: list[Hashable] = []
        self.notes: dict[str, Any] = {}
        self.confidence, self.grow = confidence, grow
        self._ids: dict[Hashable, int] = {}
        self._right, self._seen = np.zeros(_BINS), np.zeros(_BINS)
        self._expected: tuple[int, float] | None = None
        self._memory: Memory
        if context == "voting":
            self._memory = VoteMemory(depth, synapses, seed)
        else:
            sizes = (
                context, code, context_code, decoder, data, alpha, weight, depth, decay, rule,
                keep, adapt, seed,
            )  # fmt: skip
            self._memory = BurstMemory(layers, *sizes) if layers else LineMemory(*sizes)
        for symbol in symbols:
            if symbol in self._ids:
                raise RangeError(f"SequenceMachine needs each symbol once, got {symbol!r} twice.")
            self._add(symbol)
        self._memory.resize(len(self.symbols))
        self.restart()

    def __contains__(self, symbol: Hashable) -> bool:
        return symbol in self._ids

    # One symbol at a time.

    def predict(self, alternatives: int = 5) -> Prediction:
        """What comes next; changes nothing that is learned.

        Args:
            alternatives: How many matches to rank.
        """
        if alternatives < 0:
            raise RangeError(f"predict needs alternatives >= 0, got {alternatives}.")
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
        self._memory.store(i)
        self._memory.advance(i)

    def follow(self, symbol: Hashable) -> None:
        """Move on to the next context without storing anything."""
        self._expected = None
        self._memory.advance(self._id(symbol))

    def restart(self) -> None:
        """Go to the start context; what is learned stays."""
        self._expected = None
        self._memory.restart()

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

    def match_sequence(
        self, sequence: Iterable[Hashable], learn: bool = False
    ) -> tuple[Any, Any, Any]:
        """The same in full: whether each was predicted, the similarity and the margin of the
        prediction, each ``[length]``."""
        right, match, margin = self._stream(sequence, learn)
        return right, match, margin

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
            guess = self.predict()
            if guess.similarity == 0:
                break
            out.append(guess.symbol)
            self.follow(guess.symbol)
        return out

    def spikes(self, symbol: Hashable) -> dict[str, tuple[Any, Any]]:
        """When which neurons fire as ``symbol`` comes and its successor is predicted.

        Changes nothing. Time 0 is the first spike of the symbol; the bursts are ``input`` and
        ``learning`` (the same symbol at the data neurons, marked where the lines before still are),
        ``context``, ``lines`` and ``output`` (as many data neurons as a symbol has).

        Returns:
            The neurons and their times, the first one first, by layer.

        Raises:
            UnsupportedError: The machine has no spiking ``layers``.
            RangeError: An unknown symbol.
        """
        if not isinstance(self._memory, BurstMemory):
            raise UnsupportedError("spikes needs layers, got none. Make it with layers='wheel'.")
        if symbol not in self:
            raise RangeError(f"spikes needs a symbol of the alphabet, got {symbol!r}.")
        return self._memory.spikes(self._ids[symbol])

    @property
    def memory(self) -> Memory:
        """Contexts and store, in which symbol n is the number n of :attr:`symbols`."""
        return self._memory

    @property
    def synapses(self) -> int:
        """Cells of the store."""
        return self._memory.synapses

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the machine to one safetensors file; the file before it survives a crash.

        Raises:
            RangeError: Symbols that are neither strings nor integers.
            IsospikeError: The place cannot be written to, or the disk is full.
        """
        if not all(isinstance(s, str | int) and not isinstance(s, bool) for s in self.symbols):
            raise RangeError("save needs symbols that are strings or integers. Map yours first.")
        from safetensors.numpy import save

        about = {
            "format": FORMAT, "settings": self.settings, "symbols": self.symbols,
            "notes": self.notes,
        }  # fmt: skip
        tensors = {**self._memory.tensors(), "right": self._right, "seen": self._seen}
        try:
            write_file(Path(path), save(tensors, metadata={"isospike": json.dumps(about)}))
        except OSError as error:
            raise IsospikeError(
                f"save needs to write {path}, got {error.strerror or error}. Free space or choose "
                "another place."
            ) from error

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
            if about["format"] == FORMAT:
                machine = cls._described(about)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise IsospikeError(
                f"load needs a sequence machine that isospike saved, got {path} ({error}). It may "
                "be cut short."
            ) from error
        if about["format"] != FORMAT:
            raise IsospikeError(
                f"load needs format {FORMAT}, got {about['format']} in {path}. Use the "
                "isospike version that saved it."
            )
        own = {**machine._memory.tensors(), "right": machine._right, "seen": machine._seen}
        for name, tensor in own.items():
            saved = tensors.get(name)
            if saved is None or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                raise IsospikeError(f"load needs {name} as a machine has it, got none in {path}.")
            tensor[...] = saved
        machine._memory.refresh()
        return machine

    # Inside.

    @classmethod
    def _described(cls, about: dict[str, Any]) -> "SequenceMachine":
        """A machine of saved settings that has learned nothing yet."""
        settings: dict[str, Any] = dict(about["settings"])
        for name, value in settings.items():
            settings[name] = tuple(value) if isinstance(value, list) else value
        machine = cls(about["symbols"], **settings)
        machine.notes = dict(about["notes"])
        return machine

    def _stream(self, sequence: Iterable[Hashable], learn: bool) -> Any:
        known = [self._id(symbol) for symbol in sequence]
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
        return bool(right / seen >= self.confidence)

    def _id(self, symbol: Hashable) -> int:
        i = self._ids.get(symbol)
        if i is None:
            if not self.grow:
                raise RangeError(
                    f"the machine needs a symbol of its alphabet of {len(self.symbols)}, got "
                    f"{symbol!r}. Make it with grow=True to take new ones."
                )
            i = self._add(symbol)
            self._memory.resize(len(self.symbols))
        return i

    def _add(self, symbol: Hashable) -> int:
        self._ids[symbol] = len(self.symbols)
        self.symbols.append(symbol)
        return self._ids[symbol]


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
    if settings["weight"] == 1:
        raise RangeError("SequenceMachine needs weight below 1, got 1: symbols would not count.")
    if settings["synapses"] < 8:
        raise RangeError(f"SequenceMachine needs synapses >= 8, got {settings['synapses']}.")
    if settings["adapt"] not in ADAPT:
        raise RangeError(
            f"SequenceMachine needs adapt agreement, activity or None, got {settings['adapt']!r}."
        )
    if settings["adapt"] and settings["context"] not in ("combined", "layer"):
        raise UnsupportedError(
            f"adapt needs the context combined or layer, got {settings['context']!r}."
        )
    layers, rule = settings["layers"], settings["rule"]
    if layers not in (None, *KINDS):
        raise RangeError(f"SequenceMachine needs layers wheel or rdlif, or None, got {layers!r}.")
    if layers and (settings["context"] == "voting" or rule not in ("or", "max")):
        raise UnsupportedError(
            f"layers={layers!r} needs a context of lines and the rule or or max, got "
            f"{settings['context']!r} and {rule!r}."
        )
    if settings["depth"] < 1:
        raise RangeError(f"SequenceMachine needs depth >= 1, got {settings['depth']}.")
    if settings["grow"] and settings["data"] is not None:
        raise RangeError("SequenceMachine needs data=None to grow, got a fixed data code.")
