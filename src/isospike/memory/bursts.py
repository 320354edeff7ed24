"""A sequence machine's memory in which every layer is of spiking neurons."""

from typing import Any

import numpy as np

from isospike.kernels.machine import stream
from isospike.kernels.machine.locations import OR, largest, write_cells
from isospike.memory.contexts import LineMemory
from isospike.memory.layers import Burst, SpikingLayer

_SAMPLE = 100  # bursts from which thresholds are chosen


class BurstMemory(LineMemory):
    """The same memory as :class:`LineMemory`, computed by bursts of spikes.

    A symbol is a burst of its code, one spike each unit of time. In the context layer it meets the
    burst of the old context, fed back with the delay that lets both start together. The new
    context goes on to the address decoder, the lines to the data neurons, and a data neuron tells
    by when it fires how much it received. Every layer is a :class:`SpikingLayer`, with shunting
    inhibition for each bundle of inputs and reset after its N spikes. A line that is excited
    stays marked until the next symbol comes, which then is written there.
    """

    def __init__(self, layers: str, *settings: Any) -> None:
        super().__init__(*settings)
        fixed, m, k = self._fixed, self._sizes[0], len(self._state.context)
        n = fixed.codes.shape[1]
        draw = np.random.default_rng(0)
        # Contexts as long as wheel neurons make them at most; of RDLIF, then, as they form them.
        contexts = [(draw.permutation(m)[:k], np.linspace(0, k, k)) for _ in range(_SAMPLE)]
        if fixed.kind == stream.RECURRENT:
            codes = [draw.permutation(len(fixed.new))[:n] for _ in contexts]
            weights = np.concatenate([fixed.old, fixed.new])
            for _ in range(3 if layers == "rdlif" else 1):
                heard = [self._meet(*c, code) for c, code in zip(contexts, codes, strict=True)]
                self._former = SpikingLayer(layers, weights, k, heard)
                if layers == "rdlif":
                    contexts = [self._former.run(burst) for burst in heard]
        matrix, w = self._decoder.matrix().t().contiguous().numpy(), self._decoder.fire
        heard = [self._address(*c) for c in contexts]
        self._chooser = SpikingLayer(layers, matrix, w, heard)
        chosen = [(np.arange(w), np.linspace(0, w, w))]
        if layers == "rdlif":
            chosen = [self._chooser.run(burst) for burst in heard]
        heard = [self._excited(*c) for c in chosen]
        self._output = SpikingLayer(layers, self._state.cells, 1, heard, strongest=1.0)
        self._times = np.zeros(k)

    def restart(self) -> None:
        self._times = np.zeros(len(self._state.context))
        super().restart()

    def score(self) -> None:
        burst = self._excited(self._lines, self._spikes)
        self._output.weights = self._state.cells
        fired = self._output.times(burst)
        self._work.activity[:] = self._output.activity(fired, burst)
        stream.match_symbols(self._fixed, self._work, len(self._state.chosen))

    def store(self, symbol: int) -> None:
        f = self._fixed
        write_cells(
            self._state.cells, f.rule, f.keep, self._lines, f.sigma, f.data_codes[symbol],
            f.gain_data,
        )  # fmt: skip

    def advance(self, symbol: int) -> None:
        state, code = self._state, self._fixed.codes[symbol]
        known = state.context[: len(self._times)]
        if self._fixed.kind == stream.SHIFT:
            stream.advance(self._fixed, state, self._work, symbol)
            self._times = np.arange(len(state.context), dtype=np.float64)
        else:
            weight = 1.0
            if self._fixed.adapt != stream.CONSTANT and symbol < len(self.scores):
                self.score()
                agrees = self._fixed.adapt == stream.AGREEMENT
                weight = float(self.scores[symbol] if agrees else self.scores.max())
            order, self._times = self._former.run(self._meet(known, self._times, code, weight))
            state.context[: len(order)] = order
        self.refresh()

    def stream(self, ids: Any, learn: bool, guess: Any, match: Any, margin: Any) -> None:
        top = np.empty(min(2, len(self.scores)), np.int64)
        for n, symbol in enumerate(ids.tolist()):
            self.score()
            largest(self.scores, len(top), top)
            guess[n], match[n] = top[0], self.scores[top[0]]
            margin[n] = match[n] - (self.scores[top[1]] if len(top) > 1 else 0.0)
            if learn:
                self.store(symbol)
            self.advance(symbol)

    def spikes(self, symbol: int) -> dict[str, tuple[Any, Any]]:
        """Neurons and times of every burst as ``symbol`` comes and the next one is predicted."""
        before = {name: tensor.copy() for name, tensor in self.tensors().items() if name != "cells"}
        code, data = self._fixed.codes[symbol], self._fixed.data_codes[symbol]
        n = float(len(code) - 1)
        bursts = {
            "input": (code, np.arange(len(code), dtype=np.float64)),
            "learning": (data, np.linspace(0, n, len(data))),
        }
        try:
            self.advance(symbol)
            context, lines = self._times, self._spikes
            start = context[:1].sum()  # of the burst that the lines hear; 0 if there is none
            bursts["context"] = self._state.context[: len(context)].copy(), context
            bursts["lines"] = self._lines.copy(), start + lines
            self.score()
            fired = self._output.times(self._excited(self._lines, lines))
            first = fired.argsort(kind="stable")[: self._fixed.data_codes.shape[1]]
            first = first[np.isfinite(fired[first])]
            bursts["output"] = first, start + lines[:1].sum() + fired[first]
        finally:
            for name, tensor in self.tensors().items():
                if name != "cells":
                    tensor[...] = before[name]
            self.refresh()
        return bursts

    def tensors(self) -> dict[str, Any]:
        times = np.full(len(self._state.context), np.inf)  # infinity: did not fire
        times[: len(self._times)] = self._times
        self._times = times
        return {**super().tensors(), "times": times}

    def refresh(self) -> None:
        self._times = self._times[np.isfinite(self._times)]
        known = self._state.context[: len(self._times)]
        self._lines, self._spikes = self._chooser.run(self._address(known, self._times))

    def _meet(self, order: Any, times: Any, code: Any, weight: float = 1.0) -> Burst:
        """The old context, its share times ``weight``, and a symbol's code, starting together."""
        fixed = self._fixed
        rows = np.concatenate([order, len(fixed.old) + code])
        old = np.rint(np.float32(weight) * fixed.gain_old[: len(order)])
        gain = np.concatenate([old, fixed.gain_new])
        start = times[0] if len(times) else 0.0
        when = np.concatenate([times - start, np.arange(len(code), dtype=np.float64)])
        first = when.argsort(kind="stable")
        return rows[first], gain[first], when[first]

    def _address(self, order: Any, times: Any) -> Burst:
        return order, self._fixed.gain_context[: len(order)], times

    def _excited(self, lines: Any, times: Any) -> Burst:
        """The lines' burst at the data neurons; marks are counted, without shunting inhibition."""
        sigma = self._fixed.sigma[: len(lines)]
        return lines, np.ones_like(sigma) if self._fixed.rule == OR else sigma, times
