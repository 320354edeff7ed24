"""Port a pretrained transformer to spikes: choose the steps, calibrate, verify, measure."""

import copy
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isospike import codes
from isospike.codes import CODES, Law, WeightedCode, fit_law
from isospike.errors import RangeError, UnsupportedError
from isospike.porting.audit import AuditReport, audit
from isospike.porting.calibrate import Batch, batch_size, calibrate, merge, rows_of, valid_tokens
from isospike.porting.files import model_files, tokenizer_files
from isospike.porting.instrument import open_up
from isospike.porting.measure import (
    Comparison,
    Meter,
    circuit_reports,
    compare,
    counts,
    record_raster,
    site_reports,
)
from isospike.porting.ported import Ported
from isospike.porting.product import EXACT_LEVELS
from isospike.porting.records import CurvePoint
from isospike.porting.report import PortReport
from isospike.porting.run import ATTRIBUTE, Mode
from isospike.porting.sensitivity import assign_amplitudes, max_sensitivity, measure_channels
from isospike.porting.water_filling import Channels, check_allocation, water_fill
from isospike.report.files import write_folder
from isospike.report.result import Provenance

DEFAULT_CODE = "signed-digit"
DEFAULT_STEPS = 8
CURVE_ROWS = 32  # calibration rows per point of the curve; a quarter as many are held back
AUDIT_ROWS = 2
ROUNDS = 5  # most calibrations that correct an allocation
NEAR = 0.96  # share of the target that an allocation may stay below

Describe = Callable[[Tensor], tuple[str, list[str]]]
Progress = Callable[[str, int, int], None]
Given = Callable[[Ported], None]  # gives the sites of an opened-up model their codes
Make = Callable[[Given], tuple[Ported, float]]


@dataclass(frozen=True)
class PortResult:
    """A ported model and what was measured about it.

    Attributes:
        model: Called like the original; returns the same output type.
        report: The measurements.
    """

    model: nn.Module
    report: PortReport

    def save(self, folder: str | Path, tokenizer: Any = None) -> Path:
        """Write the model, its report and its tokenizer to a folder, all or nothing.

        Args:
            folder: A new or empty folder, or one that was saved before, which is replaced.
            tokenizer: Of transformers; saved beside the model if given.

        Returns:
            The folder. It holds ``model.safetensors``, ``config.json`` and the tokenizer's files,
            and those of :meth:`isospike.report.result.Report.save`.

        Raises:
            InputError: The folder holds something else.
            UnsupportedError: The model is not a transformers model.
            OSError: The folder cannot be written to, or the disk is full.
        """
        folder = Path(folder).absolute()
        files = {**model_files(self.model), **tokenizer_files(tokenizer), **self.report.files()}
        write_folder(folder, files)
        return folder


def port(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    code: str = DEFAULT_CODE,
    steps: int | Mapping[str, int] | None = None,
    max_error: float | None = None,
    allocate: bool = False,
    execution: str = "collapsed",
    precision: str = "exact",
    nonlinear: str = "float",
    held_back: Sequence[Batch] | None = None,
    curve: Sequence[str] = (),
    generator: torch.Generator | None = None,
    name: str | None = None,
    describe: Describe | None = None,
    progress: Progress | None = None,
) -> PortResult:
    """Port a pretrained transformer to binary spikes, without training.

    Every matrix product of the copy reads spikes: the input of each linear layer, and the queries,
    keys, values and probabilities of attention. Softmax, normalisation and activation functions
    stay in float at the soma, or run on spikes too. See :mod:`isospike.porting.product` and
    :mod:`isospike.porting.functions` for the equations.

    *Error* is the relative root-mean-square error of the model's first output over the unpadded
    tokens of held-back batches.

    Args:
        model: A PyTorch transformer, usually from Hugging Face; it is not changed.
        batches: Keyword arguments of the model, e.g. ``{"input_ids": ..., "attention_mask":
            ...}``. A few hundred sentences are enough. They go through the model at once, twice as
            wide.
        code: ``signed-digit``, ``half-octave``, ``phase``, ``rate``, ``bernoulli`` or ``latency``.
        steps: Time steps, the same for all sites, or by site name: ``{"*": 8, "*.output.dense":
            6}``, later patterns first. 8 if neither ``steps`` nor ``max_error`` is given.
        max_error: Instead of ``steps``: the smallest number of steps whose predicted error is
            within it, raised further if the measured one is not.
        allocate: With ``max_error`` and a code of digits: give every channel the resolution with
            which all values add the same error to the output, and every site the steps it needs for
            that, so that the error costs the fewest spikes. See
            :mod:`isospike.porting.water_filling`.
        execution: ``collapsed`` (one product on the integers that spikes spell) or ``stepped`` (the
            specification). Up to 255 levels the two agree bit for bit in float32.
        precision: ``exact``, or ``fast`` for bfloat16 products (collapsed, up to 256 levels).
        nonlinear: ``float``: softmax, normalisation, activations and gates stay in float.
            ``spiking``: they run on spikes, and no float operation is left but to add, to compare
            and to reset; where a module has no circuit, the port is refused and names it.
        held_back: Batches for the measurements; the last quarter of ``batches`` if not given.
        curve: Codes to sweep for the report's plot of error against steps.
        generator: Source of randomness of the Bernoulli code, for the port too; torch's global one
            if None.
        name: Name of the model in the report.
        describe: Text and token labels of a row of ``input_ids``, for the report's raster.
        progress: Called with what is being done, how many parts are done and how many there are.

    Returns:
        The ported model and its report.

    Raises:
        UnsupportedError: A matrix product, or with ``nonlinear="spiking"`` a function, that cannot
            be ported; the message names its module.
        RangeError: A number out of range, ``max_error`` below the floor of the law, NaN in weights
            or activations, or batches without tokens.
    """
    _check_arguments(code, steps, max_error, allocate, curve)
    known = steps if isinstance(steps, int) else DEFAULT_STEPS
    mode = Mode(execution, precision, nonlinear)
    mode.check("port", codes.code(code, known).levels)
    _check_model(model)
    calibration, held = _split(batches, held_back)
    tell = progress or (lambda what, done, total: None)
    reference = model if not model.training else copy.deepcopy(model).eval()
    sample = rows_of(calibration[0], slice(0, 2))
    if not open_up(reference, sample).sites:
        raise UnsupportedError(
            f"port needs a model with matrix products, got a {type(model).__name__} without. Give "
            "a transformer."
        )
    merged = merge(calibration)

    def make(given: Given) -> tuple[Ported, float]:
        """A calibrated port and its error on the calibration inputs."""
        ported = open_up(reference, sample, nonlinear)
        ported.seed(generator)
        given(ported)
        expected, got = calibrate(ported, merged)
        return ported, _relative_error(expected, got, valid_tokens(merged))

    law = predicted = None
    shares: dict[str, float] = {}
    if allocate and max_error is not None:
        opened = open_up(reference, sample)
        ported, plan = _allocated(opened, calibration, make, code, max_error, precision, tell)
        tell("measure", 0, 1)
        comparison, meter = _measured(reference, ported, held)
        for _ in range(ROUNDS):
            if comparison.error <= max_error:
                break
            aim = max_error * 0.99 * plan.reached / comparison.error
            ported, plan = _allocated(opened, calibration, make, code, aim, precision, tell, plan)
            comparison, meter = _measured(reference, ported, held)
        predicted, shares = plan.predicted, plan.share
        assigned = {site.name: site.code.steps for site in ported.sites}
        highest = max(assigned.values())
    else:
        if max_error is not None:
            law = _fit(code, make, tell)
            steps, predicted = _choose(law, max_error)
        steps = DEFAULT_STEPS if steps is None else steps
        assigned = _assignment(reference, sample, code, steps)
        highest = max(assigned.values())
        mode.check("port", codes.code(code, highest).levels)
        tell("calibrate", 0, 1)
        ported, _ = make(_codes(lambda site: codes.code(code, assigned[site])))
        tell("calibrate", 1, 1)
        tell("measure", 0, 1)
        comparison, meter = _measured(reference, ported, held)
        while max_error is not None and law and comparison.error > max_error:
            raised = law.more_steps(highest, comparison.error / max_error)
            if raised is None:
                break
            mode.check("port", codes.code(code, raised).levels)
            highest = raised
            predicted = law.error(highest)
            assigned = dict.fromkeys(assigned, highest)
            ported, _ = make(_uniform(code, highest))
            comparison, meter = _measured(reference, ported, held)
    tell("measure", 1, 1)
    reports = site_reports(ported, meter.sites, comparison.tokens, shares)
    circuits = circuit_reports(meter.circuits, comparison.tokens)
    longest = max(held, key=batch_size)
    found = _verify(ported, held[0], tell)
    known_as = name or type(model).__name__
    report = PortReport(
        title=f"{known_as} on spikes",
        provenance=Provenance.of(
            {
                "code": code,
                "steps": dict(steps) if isinstance(steps, Mapping) else steps,
                "max_error": max_error,
                "allocate": allocate,
                "execution": execution,
                "precision": precision,
                "functions": nonlinear,
            }
        ),
        model=known_as,
        code=code,
        steps=highest,
        steps_by_site={s: n for s, n in assigned.items() if n != highest},
        execution=execution,
        precision=precision,
        max_error=max_error,
        reached=max_error is None or comparison.error <= max_error,
        error_predicted=predicted,
        error=comparison.error,
        error_fast=None,
        cosine=comparison.cosine,
        cosine_pooled=comparison.cosine_pooled,
        agreement=comparison.agreement,
        law=law,
        curve=_sweep(reference, curve, merged, held, tell, nonlinear, generator),
        sites=tuple(reports),
        raster=record_raster(ported, held[0], describe),
        counts=counts(
            reference,
            ported,
            reports,
            longest,
            comparison.tokens / comparison.inputs,
            circuits,
            found.nonlinear_ops if nonlinear == "spiking" else None,
        ),
        exceptions=found.exceptions,
        calibration_tokens=_count_tokens(calibration),
        held_out_tokens=comparison.tokens,
        functions=nonlinear,
        circuits=tuple(circuits),
    )
    ported.run.mode = mode
    if mode.fast:
        report = replace(report, error_fast=compare(reference, ported, held).error)
    return PortResult(ported.model, report)


def _measured(
    model: nn.Module, ported: Ported, batches: Sequence[Batch]
) -> tuple[Comparison, Meter]:
    meter = Meter(ported.run, dimension=True)
    return compare(model, ported, batches, meter), meter


def _check_arguments(
    code: str,
    steps: int | Mapping[str, int] | None,
    max_error: float | None,
    allocate: bool,
    curve: Sequence[str],
) -> None:
    for each in (code, *curve):
        if each not in CODES:
            raise RangeError(
                f"port needs a code among {', '.join(CODES)}, got {each!r}. Choose one of them."
            )
    if steps is not None and max_error is not None:
        raise RangeError(
            f"port needs steps or max_error, got both ({steps} and {max_error:g}). Give one of "
            "them."
        )
    if max_error is not None and not (math.isfinite(max_error) and max_error > 0):
        raise RangeError(f"port needs a positive max_error, got {max_error:g}. Try 0.05.")
    if allocate:
        check_allocation(code)
        if max_error is None:
            raise RangeError(
                "port needs max_error to allocate steps for, got none. Give the error, such as "
                "0.05."
            )
    for each_steps in steps.values() if isinstance(steps, Mapping) else [steps]:
        if each_steps is not None:
            codes.code(code, each_steps)


def _check_model(model: nn.Module) -> None:
    if ATTRIBUTE in vars(model):
        raise UnsupportedError(
            f"port needs a float model, got a {type(model).__name__} that is already ported. Port "
            "the original."
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RangeError(
                f"port needs finite weights, got NaN or infinity in {name} "
                f"({int((~tensor.isfinite()).sum())} of {tensor.numel()}). Check the model's files."
            )


def _split(
    batches: Sequence[Batch], held_back: Sequence[Batch] | None
) -> tuple[list[Batch], list[Batch]]:
    """Calibration and held-back batches, checked."""
    given = list(batches)
    if not given:
        raise RangeError("port needs at least one batch, got none. Give some real inputs.")
    for kind, group in (("batch", given), ("held-back batch", list(held_back or []))):
        for i, batch in enumerate(group):
            if not isinstance(batch, Mapping):
                raise RangeError(
                    f"port needs batches of keyword arguments, got {type(batch).__name__} as "
                    f"{kind} {i}. "
                    'Pass dictionaries such as {"input_ids": ...}.'
                )
            valid = valid_tokens(batch)
            if batch_size(batch) == 0 or (valid is not None and not bool(valid.any())):
                raise RangeError(
                    "port needs at least one unpadded token per batch, got only padding in "
                    f"{kind} {i}. Remove it."
                )
    if held_back:
        return given, list(held_back)
    if len(given) > 1:
        kept = max(1, len(given) // 4)
        return given[:-kept], given[-kept:]
    rows = batch_size(given[0])
    if rows < 2:
        raise RangeError(
            "port needs one input to calibrate on and one to hold back, got 1 input. Give more of "
            "them."
        )
    cut = rows - max(1, rows // 4)
    return [rows_of(given[0], slice(0, cut))], [rows_of(given[0], slice(cut, None))]


def _assignment(
    model: nn.Module, sample: Batch, code: str, steps: int | Mapping[str, int]
) -> dict[str, int]:
    """Steps of every site."""
    names = [site.name for site in open_up(model, sample).sites]
    if not isinstance(steps, Mapping):
        codes.code(code, steps)
        return dict.fromkeys(names, steps)
    assigned = {}
    for name in names:
        matching = [n for pattern, n in steps.items() if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise RangeError(
                f"port needs steps for every site, got none for {name}. Add a default: "
                f'{{"*": 8, ...}}.'
            )
        assigned[name] = matching[-1]
    for pattern in steps:
        if not fnmatch.filter(names, pattern):
            raise RangeError(
                f"port needs steps by site names, got {pattern!r} which matches none of "
                f"{len(names)} sites such as {names[0]}. See the names in report.sites."
            )
    return assigned


def _codes(code_of: Callable[[str], WeightedCode]) -> Given:
    """Give sites their codes by name."""
    return lambda ported: ported.assign(code_of)


def _uniform(code: str, steps: int) -> Given:
    """Give every site the same code."""
    fixed = codes.code(code, steps)
    return _codes(lambda site: fixed)


def _fit(code: str, make: Make, tell: Progress) -> Law:
    errors = {}
    fit_steps = CODES[code].fit_steps
    for done, steps in enumerate(fit_steps):
        tell("fit the error law", done, len(fit_steps))
        _, errors[steps] = make(_uniform(code, steps))
    tell("fit the error law", len(fit_steps), len(fit_steps))
    return fit_law(code, errors)


def _choose(law: Law, max_error: float) -> tuple[int, float]:
    if max_error <= law.floor:
        raise RangeError(
            f"port needs max_error above the floor of its law, {law.floor:.3g}, got "
            f"{max_error:.3g}: no number of {law.code} steps reaches it. Ask for more error, or "
            "try another code."
        )
    steps = law.fewest_steps(max_error) or law.kind.search_limit
    return steps, law.error(steps)


class _Plan(NamedTuple):
    """An allocation and what came of it on the calibration inputs.

    Attributes:
        channels: What it was made from.
        most: Most steps of a site.
        aim: Error that the water level was set for.
        predicted: Error that its theory predicts.
        reached: Error measured.
        share: By site, its part of the squared error, predicted.
    """

    channels: dict[str, Channels]
    most: int
    aim: float
    predicted: float
    reached: float
    share: dict[str, float]


def _allocated(
    opened: Ported,
    batches: Sequence[Batch],
    make: Make,
    code: str,
    target: float,
    precision: str,
    tell: Progress,
    plan: _Plan | None = None,
) -> tuple[Ported, _Plan]:
    """A port whose error on the calibration inputs lies just below ``target``.

    Sensitivities are measured at the float model, then where its own rounding takes it. What first
    order leaves out is found by porting: the aim moves until the error is right, and sites get more
    steps where their ranges hold it up.
    """
    longest = CODES[code].search_limit
    if plan is None:
        tell("measure sensitivities", 0, 2)
        channels = measure_channels(opened, batches)
        tell("measure sensitivities", 1, 2)
        wanted = water_fill(channels, target).amplitude
        channels = max_sensitivity(channels, measure_channels(opened, batches, wanted))
        tell("measure sensitivities", 2, 2)
        most = max(t for t in range(1, longest + 1) if codes.code(code, t).levels <= EXACT_LEVELS)
        aim = target
    else:
        channels, most, aim = plan.channels, plan.most, plan.aim * target / max(plan.reached, 1e-12)
    best = before = None
    for done in range(ROUNDS):
        tell("allocate steps", done, ROUNDS)
        found = water_fill(channels, aim)
        ported, error = make(partial(assign_amplitudes, allocation=found, code=code, most=most))
        now = ported, _Plan(channels, most, aim, found.error, error, found.share)
        if best is None or _rank(error, target) < _rank(best[1].reached, target):
            best = now
        if NEAR * target <= error <= target:
            break
        if before is not None and error > target:
            stuck = error / before[1] > (aim / before[0]) ** 0.5 and aim < before[0]
            if stuck and most < longest and precision != "fast":
                most = min(longest, most + 2 * (CODES[code].steps_per_octave or 1))
        before = aim, error
        aim *= min(3.0, max(0.2, (1 + NEAR) / 2 * target / max(error, 1e-12)))
    tell("allocate steps", ROUNDS, ROUNDS)
    return now if best is None else best


def _rank(error: float, target: float) -> tuple[bool, float]:
    """Smallest for the error nearest to a target that is within it, or else the smallest."""
    return error > target, abs(error - target)


def _sweep(
    model: nn.Module,
    codes: Sequence[str],
    merged: Batch,
    held: Sequence[Batch],
    tell: Progress,
    nonlinear: str,
    generator: torch.Generator | None,
) -> tuple[CurvePoint, ...]:
    """Error and spikes of every code at a few numbers of steps, on fewer inputs."""
    calibration = rows_of(merged, slice(0, CURVE_ROWS))
    sample = rows_of(merged, slice(0, 2))
    few = [rows_of(held[0], slice(0, CURVE_ROWS // 4))]
    cells = [(code, steps) for code in codes for steps in CODES[code].sweep_steps]
    points = []
    for done, (code, steps) in enumerate(cells):
        tell("compare codes", done, len(cells))
        ported = open_up(model, sample, nonlinear)
        ported.seed(generator)
        _uniform(code, steps)(ported)
        calibrate(ported, calibration)
        meter = Meter(ported.run, dimension=False)
        comparison = compare(model, ported, few, meter)
        spikes = sum((s.spikes for s in meter.sites.values()), 0.0)
        spikes = sum((c.spikes for c in meter.circuits), spikes) / comparison.tokens
        points.append(CurvePoint(code, steps, comparison.error, spikes))
    if cells:
        tell("compare codes", len(cells), len(cells))
    return tuple(points)


def _verify(ported: Ported, batch: Batch, tell: Progress) -> AuditReport:
    """Run stepped under audit."""
    tell("audit the stepped run", 0, 1)
    with ported.run.switched(execution="stepped"):
        found = audit(ported.model, rows_of(batch, slice(0, AUDIT_ROWS)))
    tell("audit the stepped run", 1, 1)
    return found


def _relative_error(expected: Tensor, got: Tensor, valid: Tensor | None) -> float:
    if valid is not None and expected.shape[:2] == valid.shape:
        expected, got = expected[valid], got[valid]
    return float((expected - got).norm() / expected.norm().clamp_min(1e-30))


def _count_tokens(batches: Sequence[Any]) -> int:
    total = 0
    for batch in batches:
        valid = valid_tokens(batch)
        ids = batch.get("input_ids")
        if valid is not None:
            total += int(valid.sum())
        else:
            total += ids.numel() if isinstance(ids, Tensor) else batch_size(batch)
    return total
