"""The inside of a sequence machine in which every layer is of spiking neurons."""

from typing import Any

import numpy as np

from isospike.kernels.machine import stream
from isospike.kernels.machine.locations import OR, largest, write_counters
from isospike.memory.addressed import AddressedMemory, Found, check_range
from isospike.memory.contexts import Recurrent, Shift, Store
from isospike.memory.files import Shapes
from isospike.memory.layers import Burst, SpikingLayer

_SAMPLE = 100  # bursts from which thresholds are chosen


class SpikingMemory(AddressedMemory):
    """The same memory as :class:`AddressedMemory`, computed by bursts of spikes.

    A symbol is a burst of its code, one spike each unit of time. In the context layer it meets the
    burst of the old context, fed back with the delay that lets both start together. The new
    context goes on to the address decoder and the active locations to the data neurons; the time
    at which a data neuron fires says how much it received. Every layer is a
    :class:`SpikingLayer`, with shunting inhibition for each bundle of inputs and reset after its N
    spikes. Active locations stay marked until the next symbol comes, which then is written there.

    Args:
        layers: ``wheel`` or ``rdlif``.
        context, store, seed: As of :class:`AddressedMemory`.

    Raises:
        RangeError: As :class:`AddressedMemory`, or so few connections that no location fires.
    """

    def __init__(self, layers: str, context: Recurrent | Shift, store: Store, seed: int) -> None:
        super().__init__(context, store, seed)
        k = len(self._state.context)
        contexts = self._form_contexts(layers, k)
        matrix, w = self._decoder.matrix().t().contiguous().numpy(), self._decoder.active
        addresses = [self._address(*burst) for burst in contexts]
        self._chooser = SpikingLayer(layers, matrix, w, addresses)
        chosen = [(np.arange(w), np.linspace(0, w, w))]
        if layers == "rdlif":
            chosen = [self._chooser.run(burst) for burst in addresses]
        excited = [self._excited(*burst) for burst in chosen]
        self._output = SpikingLayer(layers, self._state.counters, 1, excited, strongest=1.0)
        self._times = np.zeros(k)

    def reset_context(self) -> None:
        self._times = np.zeros(len(self._state.context))
        super().reset_context()

    def score(self) -> None:
        burst = self._excited(self._active, self._spikes)
        self._output.weights = self._state.counters
        fired = self._output.times(burst)
        self._work.activity[:] = self._output.activity(fired, burst)
        stream.match_symbols(self._fixed, self._work, len(self._state.active))

    def store(self, symbol: int) -> None:
        f = self._fixed
        write_counters(
            self._state.counters, f.rule, f.decay, self._active, f.sigma, f.data_codes[symbol],
            f.gain_data,
        )  # fmt: skip

    def advance(self, symbol: int) -> None:
        state, code = self._state, self._fixed.codes[symbol]
        if self._fixed.kind == stream.SHIFT:
            stream.advance(self._fixed, state, self._work, symbol)
            self._times = np.arange(len(state.context), dtype=np.float64)
        else:
            known = state.context[: len(self._times)]
            order, self._times = self._former.run(self._meet(known, self._times, code))
            state.context[: len(order)] = order
        self.refresh()

    def rank(self, order: Any, value: Any) -> None:
        self.score()
        largest(self.scores, len(order), order)
        value[:] = self.scores[order]

    def step(self, symbol: int, learn: bool, ahead: bool, order: Any, value: Any) -> None:
        if learn:
            self.store(symbol)
        self.advance(symbol)
        if ahead:
            self.rank(order, value)

    def stream(self, ids: Any, learn: bool, found: Found) -> None:
        top = np.empty(min(2, len(self.scores)), np.int64)
        for n, symbol in enumerate(ids.tolist()):
            self.score()
            largest(self.scores, len(top), top)
            best, whole = self.scores[top[0]], self.scores.sum()
            found.guess[n], found.match[n] = top[0], best
            found.margin[n] = best - (self.scores[top[1]] if len(top) > 1 else 0.0)
            found.chance[n] = self.scores[symbol] / whole if whole > 0 else 1 / len(self.scores)
            if learn:
                self.store(symbol)
            self.advance(symbol)

    def spikes(self, symbol: int) -> dict[str, tuple[Any, Any]]:
        """The bursts that carry ``symbol`` in and the next prediction out; nothing changes.

        Args:
            symbol: Its number.

        Returns:
            Neurons and times of each burst, see :meth:`SequenceMachine.spikes`.
        """
        before = {name: t.copy() for name, t in self.tensors().items() if name != "counters"}
        code, data = self._fixed.codes[symbol], self._fixed.data_codes[symbol]
        n = float(len(code) - 1)
        bursts = {
            "input": (code, np.arange(len(code), dtype=np.float64)),
            "learning": (data, np.linspace(0, n, len(data))),
        }
        try:
            self.advance(symbol)
            context, locations = self._times, self._spikes
            start = context[:1].sum()  # of the burst that the locations receive; 0 if there is none
            bursts["context"] = self._state.context[: len(context)].copy(), context
            bursts["locations"] = self._active.copy(), start + locations
            self.score()
            fired = self._output.times(self._excited(self._active, locations))
            first = fired.argsort(kind="stable")[: self._fixed.data_codes.shape[1]]
            first = first[np.isfinite(fired[first])]
            bursts["output"] = first, start + locations[:1].sum() + fired[first]
        finally:
            for name, tensor in self.tensors().items():
                if name != "counters":
                    tensor[...] = before[name]
            self.refresh()
        return bursts

    def tensors(self) -> dict[str, Any]:
        times = np.full(len(self._state.context), np.inf)  # infinity: did not fire
        times[: len(self._times)] = self._times
        self._times = times
        return {**super().tensors(), "times": times}

    @staticmethod
    def shapes(context: Recurrent | Shift, store: Store, symbols: int) -> Shapes:
        known = AddressedMemory.shapes(context, store, symbols)
        return {**known, "times": ((context.context_code[0],), "float64")}

    def check(self, tensors: dict[str, Any]) -> None:
        super().check(tensors)
        times = tensors["times"]
        fired = int(np.isfinite(times).sum())
        check_range("times", times, np.inf)
        if not (np.isfinite(times[:fired]).all() and (np.diff(times[:fired]) >= 0).all()):
            raise ValueError("its times are not in order")

    def _live(self, tensors: dict[str, Any]) -> Any:
        return tensors["context"][: int(np.isfinite(tensors["times"]).sum())]

    def refresh(self) -> None:
        self._times = self._times[np.isfinite(self._times)]
        known = self._state.context[: len(self._times)]
        self._active, self._spikes = self._chooser.run(self._address(known, self._times))

    def _form_contexts(self, layers: str, k: int) -> list[tuple[Any, Any]]:
        """Sample contexts and, unless it is a register, the layer that forms contexts.

        Samples last as long as wheel neurons make them at most; of RDLIF neurons, as long as they
        make them.
        """
        fixed, draw = self._fixed, np.random.default_rng(0)
        m, n = self._sizes[0], fixed.codes.shape[1]
        contexts = [(draw.permutation(m)[:k], np.linspace(0, k, k)) for _ in range(_SAMPLE)]
        if fixed.kind == stream.SHIFT:
            return contexts
        codes = [draw.permutation(len(fixed.new))[:n] for _ in contexts]
        weights = np.concatenate([fixed.old, fixed.new])
        for _ in range(3 if layers == "rdlif" else 1):
            inputs = [self._meet(*c, code) for c, code in zip(contexts, codes, strict=True)]
            self._former = SpikingLayer(layers, weights, k, inputs)
            if layers == "rdlif":
                contexts = [self._former.run(burst) for burst in inputs]
        return contexts

    def _meet(self, order: Any, times: Any, code: Any) -> Burst:
        """The bursts of the old context and of a symbol's code, which start together."""
        fixed = self._fixed
        rows = np.concatenate([order, len(fixed.old) + code])
        gain = np.concatenate([fixed.gain_old[: len(order)], fixed.gain_new])
        start = times[0] if len(times) else 0.0
        when = np.concatenate([times - start, np.arange(len(code), dtype=np.float64)])
        first = when.argsort(kind="stable")
        return rows[first], gain[first], when[first]

    def _address(self, order: Any, times: Any) -> Burst:
        return order, self._fixed.gain_context[: len(order)], times

    def _excited(self, locations: Any, times: Any) -> Burst:
        """The locations' burst at the data neurons; marks are counted, without inhibition."""
        sigma = self._fixed.sigma[: len(locations)]
        return locations, np.ones_like(sigma) if self._fixed.rule == OR else sigma, times
