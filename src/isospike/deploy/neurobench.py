"""What NeuroBench's harness measures of our models, with our counts.

The harness finds layers by their class and counts what enters them, so that it sees nothing in a
port, and attention nowhere. Here a model counts its own work while it runs: every addition that a
spike causes, attention's included. The package ``neurobench`` is in the extra of that name.

>>> Work(synaptic_ops=6.0, samples=2).per_sample("synaptic_ops")
3.0
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import MissingExtraError, UnsupportedError
from isospike.hf.batches import Batch, first_output, token_masks
from isospike.memory.addressed import AddressedMemory
from isospike.memory.machine import SequenceMachine
from isospike.models.classifier import SpikingClassifier
from isospike.models.layers import MaskAttention, SelfAttention, Synapses, TokenAttention
from isospike.models.levels import Gate, LevelNeurons
from isospike.models.spiking_resformer import DualAttention
from isospike.neurons import Neuron
from isospike.porting.measure import Meter
from isospike.porting.run import ATTRIBUTE
from isospike.porting.sites import Site


@dataclass
class Work:
    """What a model did, summed over samples.

    Attributes:
        samples: Rows of the batches.
        synaptic_ops: Additions that spikes caused.
        dense: Multiply-accumulates of the same products without spikes.
        macs: Multiply-accumulates that were done.
        neuron_updates: Neurons times the steps they were awake.
        spikes: Spikes.

    >>> work = Work(samples=2, synaptic_ops=10.0)
    >>> work.samples, work.synaptic_ops
    (2, 10.0)
    """

    samples: int = 0
    synaptic_ops: float = 0.0
    dense: float = 0.0
    macs: float = 0.0
    neuron_updates: float = 0.0
    spikes: float = 0.0

    def include(self, other: "Work") -> None:
        """Add what was done on other samples.

        Args:
            other: Work of other samples.
        """
        for field in fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def per_sample(self, name: str) -> float:
        """The mean over samples of one of the sums.

        Args:
            name: Of the sum.

        Returns:
            The mean.
        """
        return float(getattr(self, name)) / max(1, self.samples)


Counted = Callable[[Any], tuple[Tensor, Work]]


def count_port(model: nn.Module, batch: Batch) -> tuple[Tensor, Work]:
    """The first output of a port, and its work on the unpadded tokens.

    Args:
        model: A port.
        batch: Its inputs by name.

    Returns:
        The output, and the work.

    Raises:
        UnsupportedError: The model is no port.

    >>> import isospike, torch
    >>> x = torch.rand(8, 4)
    >>> port = isospike.port(torch.nn.Sequential(torch.nn.Linear(4, 2)), [{"input": x}] * 4)
    >>> output, work = count_port(port.model, {"input": x})
    >>> output.shape, work.spikes > 0
    (torch.Size([8, 2]), True)
    """
    run = getattr(model, ATTRIBUTE, None)
    if run is None:
        raise UnsupportedError(
            f"count_port needs a port, got a {type(model).__name__}. Port it first."
        )
    meter = Meter(run, dimension=False)
    with torch.no_grad(), run.watching(meter, token_masks(batch)):
        output = first_output(model(**batch))
    known = {site.name: site for site in model.modules() if isinstance(site, Site)}
    sites = [(known[name], sums) for name, sums in meter.sites.items()]
    work = Work(
        samples=len(output),
        synaptic_ops=sum((sums.synaptic_ops for _, sums in sites), 0.0),
        dense=sum((sums.macs for _, sums in sites), 0.0),
        neuron_updates=sum((s.values * m.code.neurons * m.code.steps for m, s in sites), 0.0),
        spikes=sum((sums.spikes for _, sums in sites), 0.0),
    )
    for circuit in meter.circuits:
        work.synaptic_ops += circuit.synaptic_ops
        work.neuron_updates += circuit.neuron_updates
        work.spikes += circuit.spikes
    return output, work


def count_family(
    model: SpikingClassifier, images: Tensor, steps: int | None = None
) -> tuple[Tensor, Work]:
    """The scores of a spiking transformer, and its work.

    A convolution's spike causes an addition at every position of the kernel and output channel, as
    if there were no border; an image's pixels are multiplied instead. In attention, counting a
    query, a key or a pair is one addition, and in ``q k^T v`` so is every product of two spikes; in
    SpikingResformer's products each spike adds the currents of all patches, or channels, of a head.
    Of a network of integer neurons spikes are counted in as many steps as it has levels; in one
    step it multiplies.

    Args:
        model: A model of :mod:`isospike.models`, in inference.
        images: ``[batch, channels, height, width]``, or frames.
        steps: Number of time steps; None for the model's own.

    Returns:
        The scores, and the work.

    >>> import torch
    >>> from isospike.models import QKFormer, QKFormerConfig
    >>> config = QKFormerConfig(channels=32, depths=(1, 1, 1), heads=(2, 2, 2), num_labels=2)
    >>> scores, work = count_family(QKFormer(config).eval(), torch.rand(1, 3, 32, 32), steps=1)
    >>> scores.shape, work.samples
    (torch.Size([1, 2]), 1)
    """
    work, handles = Work(samples=len(images)), []
    given_by: dict[nn.Module, Tensor] = {}

    def synapses(layer: Any, given: tuple[Any, ...], output: Tensor) -> None:
        conv = layer.conv
        _add(work, given[0], conv.weight[:, 0].numel() / conv.stride[0] ** 2 / conv.groups)
        given_by[layer] = output

    def attention(layer: Any, *_: Any) -> None:
        parts = [getattr(layer, name, None) for name in "qkv"]
        spikes = [given_by[part].flatten(2, 3) for part in parts if part is not None]
        work.synaptic_ops += _attention_ops(layer, *spikes)

    def dual(layer: Any, given: tuple[Any, ...], output: Tensor) -> None:
        chosen = given_by[layer.choice]
        work.synaptic_ops += float(given[0].sum()) * chosen.shape[-1]
        work.synaptic_ops += float(chosen.sum()) * output.shape[-1] / layer.heads

    def neurons(layer: nn.Module, given: tuple[Any, ...], spikes: Any) -> None:
        given_by[layer] = spikes
        work.neuron_updates += given[0].numel()
        work.spikes += float(spikes.sum(dtype=torch.float64))

    rules: tuple[tuple[Any, Any], ...] = (
        (Synapses, synapses), (TokenAttention, attention), (MaskAttention, attention),
        (SelfAttention, attention), (DualAttention, dual), (Neuron, neurons),
        (LevelNeurons, neurons), (Gate, neurons),
    )  # fmt: skip
    for module in model.modules():
        for kind, hook in rules:
            if isinstance(module, kind):
                handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            scores: Tensor = model(images, steps=steps).logits
    finally:
        for handle in handles:
            handle.remove()
    return scores, work


def count_machine(
    machine: SequenceMachine, symbols: Sequence[Hashable], learn: bool = True
) -> tuple[list[Hashable], Work]:
    """What a sequence machine with a store expects along a sequence, and its work.

    For each symbol: the spikes of the old context and of the last symbol make the new context, each
    through all its connections; the context's spikes reach locations; those that fire add their
    counters, where these are not 0. Writing is not counted.

    Args:
        machine: A machine whose context addresses a store.
        symbols: Of its alphabet.
        learn: Whether it learns them.

    Returns:
        The symbol that it expected in place of each, None for none, and the work.

    Raises:
        UnsupportedError: The machine counts contexts of many kinds and has no store.
        InputError: As for :meth:`SequenceMachine.learn`.

    >>> from isospike.memory import Combined, SequenceMachine
    >>> machine = SequenceMachine("abc", context=Combined(), seed=0)
    >>> found, work = count_machine(machine, "abcabcabc")
    >>> found[-3:], work.samples, 0 < work.synaptic_ops < work.dense
    (['a', 'b', 'c'], 9, True)
    """
    memory = machine._memory
    if not isinstance(memory, AddressedMemory):
        raise UnsupportedError(
            "count_machine needs a machine with a store, got "
            f"context={type(machine.settings.context).__name__}(). Use Combined()."
        )
    expected: list[Hashable] = []
    work = Work()
    for symbol in symbols:
        expected.append(machine.predict(1).symbol)
        cost = memory.reading
        work.include(
            Work(1, cost["additions"], cost["dense"], 0.0, cost["neurons"], cost["spikes"])
        )
        (machine.learn if learn else machine.follow)(symbol)
    return expected, work


def _add(work: Work, x: Tensor, fan_out: float) -> None:
    """A product of ``x`` with weights: additions for whole numbers, else multiplications."""
    work.dense += x.numel() * fan_out
    if bool((x == x.round()).all()):
        work.synaptic_ops += float(x.abs().sum(dtype=torch.float64)) * fan_out
    else:
        work.macs += float((x != 0).sum()) * fan_out


def _attention_ops(layer: Any, q: Tensor, k: Tensor, v: Tensor | None = None) -> float:
    """Additions of one attention on spikes ``[steps, batch, tokens, channels]``."""
    if v is None:
        return float(q.sum() + k.sum())
    if isinstance(layer, MaskAttention):
        return float((k * v).sum() + q.sum())
    q, k, v = (s.double().view(*s.shape[:3], layer.heads, -1) for s in (q, k, v))
    scores = torch.einsum("tbihc,tbjhc->tbhij", q, k)
    return float(scores.sum() + torch.einsum("tbhij,tbjhc->", scores, v))


def harness_model(count: Counted, net: nn.Module) -> Any:
    """A model for NeuroBench's ``Benchmark`` that keeps the work of its last batch.

    Args:
        count: Gives the output of a batch, and the work.
        net: What it runs, whose parameters the harness counts.

    Returns:
        A ``NeuroBenchModel`` with the attribute ``work``.

    Raises:
        MissingExtraError: The package neurobench is not installed.

    >>> model = harness_model(lambda images: count_family(net, images), net)  # doctest: +SKIP
    >>> Benchmark(model, data, [], [], [[], harness_metrics()]).run()  # doctest: +SKIP
    """
    base: Any = _find("harness_model", "neurobench.models").NeuroBenchModel

    class HarnessModel(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.work = Work()

        def __call__(self, batch: Any) -> Tensor:
            output, self.work = count(batch)
            return output

        def __net__(self) -> nn.Module:
            return net

    return HarnessModel()


def harness_metrics() -> list[Any]:
    """NeuroBench's columns of what a model does, from the work that :func:`harness_model` keeps.

    Returns:
        Classes for the second list of ``Benchmark``: ``SynapticOperations`` with ``Effective_ACs``,
        ``Effective_MACs`` and ``Dense``, ``ActivationSparsity`` and ``MembraneUpdates``.

    Raises:
        MissingExtraError: The package neurobench is not installed.

    >>> [metric.__name__ for metric in harness_metrics()][0]  # doctest: +SKIP
    'SynapticOperations'
    """
    base: Any = _find("harness_metrics", "neurobench.metrics.abstract").AccumulatedMetric

    def metric(name: str, compute: Callable[[Work], Any]) -> Any:
        class Metric(base):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(requires_hooks=False)
                self.total = Work()

            def reset(self) -> None:
                self.total = Work()

            def __call__(self, model: Any, preds: Any, data: Any) -> Any:
                self.total.include(model.work)
                return self.compute()

            def compute(self) -> Any:
                return compute(self.total)

        Metric.__name__ = Metric.__qualname__ = name
        return Metric

    columns: Mapping[str, Callable[[Work], Any]] = {
        "SynapticOperations": lambda w: {
            "Effective_MACs": w.per_sample("macs"),
            "Effective_ACs": w.per_sample("synaptic_ops"),
            "Dense": w.per_sample("dense"),
        },
        "ActivationSparsity": lambda w: 1 - w.spikes / w.neuron_updates if w.neuron_updates else 0,
        "MembraneUpdates": lambda w: w.per_sample("neuron_updates"),
    }
    return [metric(name, compute) for name, compute in columns.items()]


def _find(owner: str, name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(
            f"{owner} needs the package neurobench, got none. Install isospike[neurobench]."
        ) from None
