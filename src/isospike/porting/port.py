"""Port a pretrained transformer to spikes: plan the steps, calibrate, measure, report."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isospike.codes import CODES
from isospike.errors import InputError
from isospike.hf.batches import Batch
from isospike.hf.pooling import Pooling
from isospike.kernels.runtime.buffers import trim
from isospike.porting.audit import AuditReport, audit
from isospike.porting.blocks import by_block
from isospike.porting.card import model_card
from isospike.porting.discover import Discovery, discover
from isospike.porting.equal_bits import equal_bit_error
from isospike.porting.fidelity import same_draws
from isospike.porting.files import port_files
from isospike.porting.fingerprint import sample_rows
from isospike.porting.inputs import Evaluation, Inputs, neutral
from isospike.porting.instrument import in_python, own_memory
from isospike.porting.measure import (
    Comparison,
    Meter,
    compare,
)
from isospike.porting.offload import is_offloaded, offload, shelf_of
from isospike.porting.per_token import (
    choice_reports,
    circuit_reports,
    counts,
    site_reports,
    stream_reports,
)
from isospike.porting.plan import (
    Builder,
    Built,
    Plan,
    Steps,
    Target,
    check_code,
    check_in_memory,
    check_ranges,
    check_steps,
    make_planner,
)
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.raster import record_raster
from isospike.porting.records import TextErrors
from isospike.porting.report import PortReport
from isospike.porting.run import Mode, Origin
from isospike.porting.saturation import saturation_of
from isospike.porting.saving import own_saving
from isospike.porting.skeleton import layers_of
from isospike.porting.sweep import sweep as sweep_codes
from isospike.porting.synapses import Synapses
from isospike.porting.training import settled, trainable
from isospike.progress import update
from isospike.report.files import check_destination, write_folder
from isospike.report.result import Provenance
from isospike.workers import Workers, reach_workers

AUDIT_ROWS = 2


@dataclass(frozen=True)
class Port:
    """A ported model and what was measured about it.

    Attributes:
        model: Called like the original; returns the same output type.
        report: The measurements.

    >>> layer, batches = nn.Linear(4, 2), [{"input": torch.rand(8, 4)} for _ in range(4)]
    >>> done = port(layer, batches, steps=6)
    >>> done.report.steps
    6
    """

    model: nn.Module
    report: PortReport
    _builder: Builder = field(repr=False, compare=False)

    def sweep(
        self,
        codes: Sequence[str] = tuple(CODES),
        *,
        workers: Workers | None = None,
        folder: str | Path | None = None,
    ) -> "Port":
        """The same port with the error of other codes and numbers of steps in its report.

        Args:
            codes: Their names; all by default.
            workers: A number of processes, or with the extra ``ray``, ``ray`` or ``ray:ADDRESS``;
                the numbers do not depend on it. None for this process on all its threads.
            folder: Where points are kept, so that a sweep that was cut short goes on.

        Returns:
            A port with the same model and a longer report.

        Raises:
            InputError: There is no such code.
        """
        for code in codes:
            check_code(code)
        workers = None if workers is None else reach_workers("sweep", workers)
        points = sweep_codes(
            self._builder, codes, workers, None if folder is None else Path(folder)
        )
        return replace(self, report=replace(self.report, curve=points))

    def trainable(self) -> nn.Module:
        """A copy of the model that gradients pass: :func:`isospike.porting.training.trainable`.

        Give it to an optimizer, to transformers' Trainer, or to PEFT with ``target_parameters``;
        then :meth:`trained` makes a port of it. This one is not changed.

        Returns:
            The copy, in the mode of the model.

        Raises:
            UnsupportedError: The weights are offloaded.
        """
        return trainable(self.model)

    def trained(self, model: nn.Module) -> "Port":
        """The port that a trained model is: weights on their grid, everything measured anew.

        Args:
            model: What :meth:`trainable` returned; it is not changed. Adapters are merged before.

        Returns:
            A port with the codes, ranges and bits of this one. Its error is against the same float
            model, on the same inputs.

        Raises:
            UnsupportedError: The model is of no :meth:`trainable`.
        """
        builder, before, ported = self._builder, self.report, Ported.of(settled(model))
        steps: Steps = before.steps if before.max_error is None else Target(before.max_error)
        kind = CODES[before.code]
        plan = Plan(kind, lambda site, _: site.code, before.steps, None, before.law,
                    before.error_predicted)  # fmt: skip
        run, mode = ported.run, ported.run.mode
        run.mode = Mode(functions=mode.functions)
        measured = _measure(builder, ported)
        report = _report(builder, Built(ported, plan), *measured, before.code, steps)
        how = Provenance.of({**before.provenance.parameters, "trained": True})
        report = replace(report, model=before.model, title=before.title, provenance=how)
        run.origin = replace(run.origin, card=model_card(report, builder.discovery.model))
        saturation_of(ported.model).reset()
        return Port(ported.model, report, builder)

    def labelled(self, tokenizer: Any) -> "Port":
        """The same port with the words of the tokens in its report's raster.

        Args:
            tokenizer: Of the model.

        Returns:
            A port with the same model.
        """
        raster = self.report.raster
        labelled = None if raster is None else raster.labelled(tokenizer)
        return replace(self, report=replace(self.report, raster=labelled))

    def save(
        self, folder: str | Path, tokenizer: Any = None, pooling: Pooling | None = None
    ) -> Path:
        """Write the model, its report and its tokenizer to a folder, all or nothing.

        Args:
            folder: A new or empty folder, or one that was saved before, which is replaced.
            tokenizer: Of transformers; saved beside the model if given.
            pooling: How outputs become embeddings of sentences; the mean over the tokens by
                default.

        Returns:
            The folder. :func:`isospike.load` reads it, and so do transformers and
            sentence-transformers once isospike is imported; before, they refuse it. It holds the
            weights, ``config.json``, a model card, the tokenizer's files and those of
            :meth:`isospike.report.result.Report.save`. To load what is no model of transformers,
            or one with adapters that are not merged, build the float model and give it:
            ``isospike.load(folder, model)``.

        Raises:
            InputError: The folder holds something else, cannot be written to, or the disk is full.
        """
        folder = Path(folder).absolute()
        check_destination(folder)
        files = {**port_files(self.model, tokenizer), **self.report.files()}
        write_folder(folder, {**files, **(pooling or Pooling()).saved()})
        return folder


def port(
    model: nn.Module,
    calibration: Iterable[Batch] | Batch | None,
    *,
    code: str = "signed-digit",
    steps: Steps = 8,
    evaluation: Evaluation = None,
    execution: str = "collapsed",
    precision: str = "exact",
    functions: str = "float",
    ranges: str = "dynamic",
    weight_bits: int = 16,
    keep: Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> Port:
    """Port a pretrained transformer to binary spikes, without training.

    The port is a copy of the model whose matrix products all read spikes, in modules and in the
    code of a forward: :mod:`isospike.porting.product`, :mod:`isospike.porting.attention`,
    :mod:`isospike.porting.calls`. *Error* is the root-mean-square change of the first output over
    the unpadded tokens of evaluation batches, relative to the output. Before that the copy, still
    in float, is checked against the original. A port runs in float32 or float64, whatever autocast
    says, and has no gradients but those of :meth:`Port.trainable`. Where torchrun has started
    several processes, each calls this with all batches and runs its share:
    :mod:`isospike.porting.parallel`.

    Args:
        model: A PyTorch transformer, usually from Hugging Face; it is not changed. One that is
            larger than memory is given by :func:`isospike.porting.offload.offload`. Of a
            compiled one, the model that was compiled is ported.
        calibration: Batches of inputs like those that will be read, of all their lengths
            (:func:`isospike.hf.groups.group_by_length`): dictionaries of the model's arguments,
            such as ``{"input_ids": ..., "attention_mask": ...}``, of a few hundred sentences in
            all. None for random tokens or pixels, where no data is at hand.
        code: How spikes encode a number: ``signed-digit``, ``half-octave``, ``phase``, ``rate``,
            ``bernoulli`` or ``latency``.
        steps: Number of time steps; or one for each site (the input of a matrix product), by
            patterns of names of which the last that fits counts, as ``{"*": 8, "*.output.dense":
            6}``; or a :class:`Target`, an error to reach.
        evaluation: Batches to measure on; the last quarter of ``calibration`` if None. Several
            kinds of inputs by name, ``{"held out": ..., "foreign": ...}``, have their errors
            reported side by side; all other figures are of the first.
        execution: ``collapsed``, one product on the integers that the spikes encode, or
            ``stepped``, every time step, which is slow. Up to 255 levels (8 steps of the default
            code) both give the same bits; above, they agree to about 1e-6.
        precision: ``exact``, or ``fast`` for bfloat16 products (collapsed, up to 256 levels); on a
            processor without a bfloat16 unit both are exact.
        functions: How softmax, normalisation, activations and gates are computed: in ``float``, or
            ``spiking``, by neurons that add, compare and reset; what these cannot compute stays in
            float and is listed in the report.
        ranges: How large the encoded numbers may be: ``dynamic``, scaled to each token as it is
            read; or ``static``, fixed in calibration, for hardware that cannot rescale. Codes of
            one neuron and channels of ``Target(per_channel=True)`` are static.
        weight_bits: 16, 8 or 4: the weights of products are whole numbers of so many bits, rounded
            so that the calibration's outputs err least.
        keep: Names of modules, with wildcards, whose weights keep 16 bits, such as ``lm_head``.
        generator: Source of randomness; torch's global one if None, whose state does not move.

    Returns:
        The ported model and its report.

    Raises:
        UnsupportedError: A product, function or module that cannot be ported; a copy that differs.
        InputError: A code, site or batch that does not fit; NaN in weights or activations.
        RangeError: A number out of range, or a target below what the code can reach.

    >>> layer, batches = nn.Linear(4, 2), [{"input": torch.rand(8, 4)} for _ in range(4)]
    >>> done = port(layer, batches, steps=8)
    >>> done.model(torch.rand(3, 4)).shape, done.report.error < 0.05
    (torch.Size([3, 2]), True)
    """
    model = in_python(model)
    mode = _check_request(code, steps, Mode(execution, precision, functions))
    if isinstance(keep, str):
        raise InputError(f"port needs a list of names to keep, got {keep!r}. Give [{keep!r}].")
    synapses = Synapses(weight_bits, tuple(keep))
    synapses.check()
    check_ranges(ranges)
    model = offload(model) if is_offloaded(model) else model
    check_in_memory(model, steps)
    _check_weights(model)
    inputs = Inputs.of(neutral(model) if calibration is None else calibration, evaluation)
    with same_draws(None if generator is None else generator.initial_seed()):
        inputs, sample = inputs.sampled(model)
        discovery = discover(model, sample, functions, inputs.calibration)
        builder = Builder(discovery, inputs, mode, ranges, generator, synapses)
        planner = make_planner(builder, code, steps)
        built = planner.first()
        update("measure", 0, 1)
        measured = _measure(builder, built.ported)
        while (better := planner.better(measured[0].error)) is not None:
            built, measured = better, _measure(builder, better.ported)
        update("measure", 1, 1)
        result = Port(built.ported.model, _report(builder, built, *measured, code, steps), builder)
        own_memory(built.ported, builder.discovery.template)
        saturation_of(built.ported.model).reset()
        built.ported.run.origin = Origin(
            sample_rows(inputs.evaluation, inputs.divides), layers_of(discovery.model),
            model_card(result.report, model),
        )  # fmt: skip
        own_saving(built.ported.model, port_files)
        return result


def _check_request(code: str, steps: Steps, mode: Mode) -> Mode:
    """The mode, once all that can be refused before the inputs are seen was not."""
    check_code(code)
    check_steps(code, steps)
    known = CODES[code](steps if isinstance(steps, int) else 8)
    mode.check("port", known.levels)
    return mode


def _check_weights(model: nn.Module) -> None:
    """Raise unless the weights are there and finite; -inf in a buffer is a mask."""
    shelf = shelf_of(model)
    if shelf is not None:
        shelf.check(model, _check_weight)
        return
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        _check_weight(name, tensor)


def _check_weight(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or is_lazy(tensor):
        raise InputError(
            f"port needs weights in memory, got {name} without values. Load the model's weights "
            "first."
        )
    if not tensor.is_floating_point():
        return
    wrong = ~tensor.isfinite() if isinstance(tensor, nn.Parameter) else tensor.isnan()
    if bool(wrong.any()):
        raise InputError(
            f"port needs finite weights, got NaN or infinity in {name} ({int(wrong.sum())} of "
            f"{tensor.numel()}). Check the model's files."
        )


def _measure(builder: Builder, ported: Ported) -> tuple[Comparison, Meter]:
    discovery, batches = builder.discovery, builder.inputs.evaluation

    def measure(blocks: Sequence[str]) -> tuple[Comparison, Meter]:
        for site in ported.sites:
            site.forget_outside()
        meter = Meter(ported.run, dimension=True)
        return compare(discovery.model, ported, batches, meter, blocks=blocks), meter

    return by_block(discovery.blocks, measure)


def _report(
    builder: Builder, built: Built, comparison: Comparison, meter: Meter, code: str, steps: Steps
) -> PortReport:
    """The report of a port, which from then on runs as it was asked to."""
    model, inputs, mode = builder.discovery.model, builder.inputs, builder.mode
    ported, plan = built
    sites = site_reports(ported, meter.sites, comparison.tokens, plan.share)
    circuits = circuit_reports(meter.circuits, comparison.tokens)
    assigned = {site.name: site.code.steps for site in ported.sites}
    highest = plan.steps or max(assigned.values())
    target = steps.error if isinstance(steps, Target) else None
    found = _verify(ported, inputs.few(inputs.evaluation[0], AUDIT_ROWS))
    left = found.nonlinear_ops if mode.spiking else None
    raster = record_raster(ported, inputs.few(inputs.evaluation[0], 1))
    tokens = comparison.tokens / comparison.inputs
    streams, calibrated = ported.run.streams, inputs.calibration_tokens
    if streams.several:
        calibrated = sum(map(streams.count, inputs.calibration))
    for site in ported.sites:
        site.usual_outside = next((s.outside for s in sites if s.name == site.name), 0.0)
    quantised = _quantised_error(builder, ported)
    ported.run.mode = mode
    fast = compare(model, ported, inputs.evaluation).error if mode.fast else None
    return PortReport(
        title=f"{_name(model)} on spikes",
        provenance=_provenance(code, steps, mode, builder.ranges),
        warnings=_warnings(builder.discovery, comparison.error, target),
        model=_name(model),
        code=code,
        steps=highest,
        steps_by_site={s: n for s, n in assigned.items() if n != highest},
        execution=mode.execution,
        precision=mode.precision,
        max_error=target,
        reached=target is None or comparison.error <= target,
        error_predicted=plan.predicted,
        error=comparison.error,
        texts=_texts(builder, ported, comparison),
        error_quantised=quantised,
        error_fast=fast,
        cosine=comparison.cosine,
        cosine_pooled=comparison.cosine_pooled,
        agreement=comparison.agreement,
        law=plan.law,
        curve=(),
        sites=tuple(sites),
        raster=raster,
        counts=counts(model, ported, sites, inputs.longest, tokens, circuits, left),
        exceptions=found.exceptions,
        unreached=builder.discovery.unreached,
        in_float={n: tuple(ops) for n, ops in builder.discovery.in_float.items()},
        choices=tuple(choice_reports(comparison)),
        streams=tuple(stream_reports(ported, sites, comparison)),
        calibration_tokens=calibrated,
        held_out_tokens=comparison.tokens,
        functions=mode.functions,
        ranges="dynamic" if any(site.dynamic for site in ported.sites) else "static",
        circuits=tuple(circuits),
    )


def _texts(builder: Builder, ported: Ported, first: Comparison) -> tuple[TextErrors, ...]:
    """The errors on every kind of inputs, those of the first as they were measured."""
    inputs, texts = builder.inputs, [_text_errors(builder.inputs.names[0], first)]
    for name, batches in zip(inputs.names[1:], inputs.others, strict=True):
        texts.append(_text_errors(name, compare(builder.discovery.model, ported, batches)))
    return tuple(texts)


def _quantised_error(builder: Builder, ported: Ported) -> float:
    found, batches = builder.discovery, builder.inputs.evaluation
    measure = partial(equal_bit_error, found.model, found.template, ported, batches)
    return by_block(found.blocks, measure)


def _text_errors(name: str, c: Comparison) -> TextErrors:
    return TextErrors(
        name=name,
        tokens=c.tokens,
        error=c.error,
        median=c.median,
        p999=c.p999,
        worst=c.worst,
        cosine=c.cosine,
        cosine_pooled=c.cosine_pooled,
        changed=c.changed,
    )


def _warnings(discovery: Discovery, error: float, target: float | None) -> tuple[str, ...]:
    found = []
    if target is not None and error > target:
        found.append(
            f"The error asked for, {target:.3g}, was not reached: measured {error:.3g}. Try "
            "another code, or a larger error."
        )
    if discovery.in_float:
        names = dict.fromkeys(op for ops in discovery.in_float.values() for op in ops)
        found.append(
            f"No circuit computes {', '.join(names)}: {len(discovery.in_float)} modules compute "
            "them in float, which the section on float lists."
        )
    if discovery.random:
        found.append(
            "The model draws random numbers, even in evaluation mode. Both models were compared "
            "under one seed; with different draws they differ by more."
        )
    if discovery.unreached:
        found.append(
            f"No calibration input reached {', '.join(discovery.unreached)}. The port raises an "
            "error when one of these modules is called."
        )
    return tuple(found)


def _provenance(code: str, steps: Steps, mode: Mode, ranges: str) -> Provenance:
    if isinstance(steps, Target):
        plain: Any = asdict(steps)
    else:
        plain = dict(steps) if isinstance(steps, Mapping) else steps
    return Provenance.of({"code": code, "steps": plain, **asdict(mode), "ranges": ranges})


def _verify(ported: Ported, batch: Batch) -> AuditReport:
    """Run stepped under audit."""
    update("audit the stepped run", 0, 1)
    with ported.run.switched(execution="stepped"):
        found = audit(ported.model, batch)
    for product in ported.products:
        if isinstance(product, SpikingProduct):
            product.forget()
    trim()
    update("audit the stepped run", 1, 1)
    return found


def _name(model: nn.Module) -> str:
    """What a model is called: its folder or its name on the hub, or else its class."""
    place = getattr(model, "name_or_path", None)
    if not isinstance(place, str) or not place:
        return type(model).__name__
    return Path(place).resolve().name if Path(place).is_dir() else place
