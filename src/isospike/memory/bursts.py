"""The inside of a sequence machine in which every layer is of spiking neurons."""

from typing import Any

import numpy as np

from isospike.kernels.machine import spiking, stream
from isospike.kernels.machine.locations import OR
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
        self._former: SpikingLayer | None = None
        contexts = self._form_contexts(layers, k)
        matrix, w = self._decoder.matrix().t().contiguous().numpy(), self._decoder.active
        addresses = [self._address(*burst) for burst in contexts]
        self._chooser = SpikingLayer(layers, matrix, w, addresses)
        chosen = [(np.arange(w), np.linspace(0, w, w))]
        if layers == "rdlif":
            chosen = [self._chooser.run(burst) for burst in addresses]
        excited = [self._excited(*burst) for burst in chosen]
        self._output = SpikingLayer(layers, self._state.counters, 1, excited, strongest=1.0)
        self._layers = spiking.Layers(
            former=(self._former or self._chooser).neurons,
            chooser=self._chooser.neurons,
            output=self._output.neurons,
            times=np.full(k, np.inf),
            spikes=np.full(w, np.inf),
            ones=np.ones(w, np.float32),
        )

    def reset_context(self) -> None:
        self._layers.times[:] = 0
        super().reset_context()

    def score(self) -> None:
        spiking.score(*self._parts)

    def store(self, symbol: int) -> None:
        fixed, state, _, layers = self._parts
        spiking.store(fixed, state, layers, symbol)

    def advance(self, symbol: int) -> None:
        spiking.advance(*self._parts, symbol)

    def step(self, symbol: int, learn: bool, ahead: bool, order: Any, value: Any) -> None:
        spiking.step(self._ready(), symbol, learn, ahead, order, value)

    def stream(self, ids: Any, learn: bool, found: Found) -> None:
        spiking.follow(self._ready(), ids, learn, *found)

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
            context, locations = (
                t[np.isfinite(t)] for t in (self._layers.times, self._layers.spikes)
            )
            start = context[:1].sum()  # of the burst that the locations receive; 0 if there is none
            bursts["context"] = self._state.context[: len(context)].copy(), context
            bursts["locations"] = self._state.active[: len(locations)].copy(), start + locations
            self.score()
            fired = self._layers.output.fired
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
        return {**super().tensors(), "times": self._layers.times}  # infinity: did not fire

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
        spiking.choose(self._fixed, self._state, self._layers)

    @property
    def _parts(self) -> tuple[Any, ...]:
        if self._output.weights is not self._state.counters:  # they grow with the alphabet
            self._output.weights = self._state.counters
            self._layers = self._layers._replace(output=self._output.neurons)
        return *super()._parts, self._layers

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
        f = self._fixed
        gain = f.gain_old[: len(order)]
        return spiking.meet(len(f.old), order, gain, times, code, f.gain_new)  # type: ignore[no-any-return]

    def _address(self, order: Any, times: Any) -> Burst:
        return order, self._fixed.gain_context[: len(order)], times

    def _excited(self, locations: Any, times: Any) -> Burst:
        """The locations' burst at the data neurons; marks are counted, without inhibition."""
        sigma = self._fixed.sigma[: len(locations)]
        return locations, np.ones_like(sigma) if self._fixed.rule == OR else sigma, times
