"""Port a pretrained transformer to spikes: choose the steps, calibrate, verify, measure."""

import copy
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from isospike.codes import CODES, LinearCode, linear_code
from isospike.errors import RangeError, UnsupportedError
from isospike.port.audit import Audit, audit
from isospike.port.calibrate import Batch, batch_size, calibrate, merge, rows_of, valid_tokens
from isospike.port.files import (
    Writer,
    check_destination,
    check_mode,
    check_nonlinear,
    model_files,
    write_folder,
)
from isospike.port.law import FIT_AT, FORMS, MOST_STEPS, fit_law, predict, smallest_steps
from isospike.port.measure import circuit_reports, compare, counts, record_raster, site_reports
from isospike.port.modules import Run
from isospike.port.result import CurvePoint, Law, PortReport
from isospike.port.surgery import open_up, sites

DEFAULT_CODE = "signed-digit"
DEFAULT_STEPS = 8
CURVE_STEPS = {"2^-T": (2, 4, 6, 8), "T^-1": (8, 32, 128), "T^-1/2": (4, 16)}
CURVE_ROWS = 32  # calibration rows per point of the curve; a quarter as many are held back
AUDIT_ROWS = 2

Describe = Callable[[Tensor], tuple[str, list[str]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PortResult:
    """A ported model and what was measured about it.

    Attributes:
        model: Called like the original; returns the same output type.
        report: The measurements.
    """

    model: nn.Module
    report: PortReport

    def save(self, path: str | Path, files: Mapping[str, Writer] | None = None) -> Path:
        """Write ``model.safetensors``, ``config.json`` and ``report.json`` to a folder.

        The folder appears whole or not at all; one that isospike wrote before is replaced.

        Args:
            path: The folder.
            files: Further files by name: text, or a function that writes to the path it is given.

        Raises:
            IsospikeError: The folder holds something else.
            UnsupportedError: The model is not a transformers model.
        """
        extra: dict[str, Writer] = {"report.json": self.report.to_json(), **(files or {})}
        path = Path(path).absolute()
        check_destination(path)
        write_folder(path, model_files(self.model, extra))
        return path


def port(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    code: str = DEFAULT_CODE,
    steps: int | Mapping[str, int] | None = None,
    max_error: float | None = None,
    execution: str = "collapsed",
    precision: str = "exact",
    nonlinear: str = "float",
    held_back: Sequence[Batch] | None = None,
    curve: Sequence[str] = (),
    name: str | None = None,
    describe: Describe | None = None,
    progress: Progress | None = None,
) -> PortResult:
    """Port a pretrained transformer to binary spikes, without training.

    Every matrix product of the copy reads spikes: the input of each linear layer, and the queries,
    keys, values and probabilities of attention. Softmax, normalisation and activation functions
    stay in float at the soma, or run on spikes too. See :mod:`isospike.port.modules` and
    :mod:`isospike.port.nonlinear` for the equations.

    *Error* is the relative root-mean-square error of the model's first output over the unpadded
    tokens of held-back batches.

    Args:
        model: A PyTorch transformer, usually from Hugging Face; it is not changed.
        batches: Keyword arguments of the model, e.g. ``{"input_ids": ..., "attention_mask":
            ...}``. A few hundred sentences are enough. They go through the model at once, twice as
            wide.
        code: ``signed-digit``, ``phase``, ``rate``, ``bernoulli`` or ``latency``.
        steps: Time steps, the same for all sites, or by site name: ``{"*": 8, "*.output.dense":
            6}``, later patterns first. 8 if neither ``steps`` nor ``max_error`` is given.
        max_error: Instead of ``steps``: the smallest number of steps whose predicted error is
            within it, raised further if the measured one is not.
        execution: ``collapsed`` (one product on the integers that spikes spell) or ``stepped`` (the
            specification). Up to 255 levels the two agree bit for bit in float32.
        precision: ``exact``, or ``fast`` for bfloat16 products (collapsed, up to 256 levels).
        nonlinear: ``float``: softmax, normalisation, activations and gates stay in float.
            ``spiking``: they run on spikes, and no float operation is left but to add, to compare
            and to reset; where a module has no circuit, the port is refused and names it.
        held_back: Batches for the measurements; the last quarter of ``batches`` if not given.
        curve: Codes to sweep for the report's plot of error against steps.
        name: Name of the model in the report.
        describe: Text and token labels of a row of ``input_ids``, for the report's raster.
        progress: Called with what is being done, how many parts are done and how many there are.

    Returns:
        The ported model and its report.

    Raises:
        UnsupportedError: A matrix product, or with ``nonlinear="spiking"`` a function, that cannot
            be ported; the message names its module.
        RangeError: A number out of range, NaN in weights or activations, or batches without tokens.
    """
    _check_arguments(code, steps, max_error, curve)
    check_nonlinear(nonlinear)
    known = steps if isinstance(steps, int) else DEFAULT_STEPS
    check_mode(execution, precision, linear_code(code, known).levels)
    _check_model(model)
    calibration, held = _split(batches, held_back)
    tell = progress or (lambda what, done, total: None)
    reference = model if not model.training else copy.deepcopy(model).eval()
    sample = rows_of(calibration[0], slice(0, 2))
    merged = merge(calibration)

    def make(code_of: Callable[[str], LinearCode]) -> tuple[nn.Module, float]:
        """A calibrated port and its error on the calibration inputs."""
        ported = open_up(reference, sample, nonlinear)
        expected, got = calibrate(ported, merged, code_of)
        return ported, _relative_error(expected, got, valid_tokens(merged))

    law = predicted = None
    if max_error is not None:
        law = _fit(code, make, tell)
        steps, predicted = _choose(law, max_error, CODES[code].min_steps)
    steps = DEFAULT_STEPS if steps is None else steps
    assigned = _assignment(reference, sample, code, steps)
    highest = max(assigned.values())
    check_mode(execution, precision, linear_code(code, highest).levels)
    tell("calibrate", 0, 1)
    ported, _ = make(lambda site: linear_code(code, assigned[site]))
    tell("calibrate", 1, 1)
    tell("measure", 0, 1)
    comparison, tallies, uses = compare(reference, ported, held, dimension=True)
    while max_error is not None and law and comparison.error > max_error:
        raised = _raise(law, highest, comparison.error / max_error)
        if raised is None:
            break
        check_mode(execution, precision, linear_code(code, raised).levels)
        highest = raised
        predicted = predict(law, highest)
        assigned = dict.fromkeys(assigned, highest)
        ported, _ = make(_uniform(code, highest))
        comparison, tallies, uses = compare(reference, ported, held, dimension=True)
    tell("measure", 1, 1)
    reports = site_reports(ported, tallies, comparison.tokens)
    circuits = circuit_reports(uses, comparison.tokens)
    longest = max(held, key=batch_size)
    found = _verify(ported, held[0], tell)
    report = PortReport(
        model=name or type(model).__name__,
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
        curve=_sweep(reference, curve, merged, held, tell, nonlinear),
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
        held_back_tokens=comparison.tokens,
        versions={p: version(p) for p in ("isospike", "torch", "transformers")},
        nonlinear=nonlinear,
        circuits=tuple(circuits),
    )
    run: Run = ported.isospike_run  # type: ignore[assignment]
    run.execution, run.precision = execution, precision
    if precision == "fast":
        fast, *_ = compare(reference, ported, held)
        report = replace(report, error_fast=fast.error)
    return PortResult(ported, report)


def _check_arguments(
    code: str,
    steps: int | Mapping[str, int] | None,
    max_error: float | None,
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
    for each_steps in steps.values() if isinstance(steps, Mapping) else [steps]:
        if each_steps is not None:
            linear_code(code, each_steps)


def _check_model(model: nn.Module) -> None:
    if hasattr(model, "isospike_run"):
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
    names = [site.name for site in sites(open_up(model, sample))]
    if not isinstance(steps, Mapping):
        linear_code(code, steps)
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


def _uniform(code: str, steps: int) -> Callable[[str], LinearCode]:
    """The same code at every site."""
    fixed = linear_code(code, steps)
    return lambda site: fixed


def _fit(
    code: str,
    make: Callable[[Callable[[str], LinearCode]], tuple[nn.Module, float]],
    tell: Progress,
) -> Law:
    form = FORMS[code]
    errors = {}
    for done, steps in enumerate(FIT_AT[form]):
        tell("fit the error law", done, len(FIT_AT[form]))
        _, errors[steps] = make(_uniform(code, steps))
    tell("fit the error law", len(FIT_AT[form]), len(FIT_AT[form]))
    return fit_law(form, errors)


def _choose(law: Law, max_error: float, least: int) -> tuple[int, float]:
    steps = smallest_steps(law, max_error, least) or MOST_STEPS[law.form]
    return steps, predict(law, steps)


def _raise(law: Law, steps: int, excess: float) -> int | None:
    """More steps where the measured error is ``excess`` times too large; None at the most."""
    factor = {"2^-T": None, "T^-1": excess, "T^-1/2": excess**2}[law.form]
    raised = steps + 1 if factor is None else math.ceil(steps * factor)
    raised = min(max(raised, steps + 1), MOST_STEPS[law.form])
    return raised if raised > steps else None


def _sweep(
    model: nn.Module,
    codes: Sequence[str],
    merged: Batch,
    held: Sequence[Batch],
    tell: Progress,
    nonlinear: str,
) -> tuple[CurvePoint, ...]:
    """Error and spikes of every code at a few numbers of steps, on fewer inputs."""
    calibration = rows_of(merged, slice(0, CURVE_ROWS))
    sample = rows_of(merged, slice(0, 2))
    few = [rows_of(held[0], slice(0, CURVE_ROWS // 4))]
    cells = [(code, steps) for code in codes for steps in CURVE_STEPS[FORMS[code]]]
    points = []
    for done, (code, steps) in enumerate(cells):
        tell("compare codes", done, len(cells))
        ported = open_up(model, sample, nonlinear)
        calibrate(ported, calibration, _uniform(code, steps))
        comparison, tallies, uses = compare(model, ported, few, dimension=False)
        spikes = sum((t.spikes for t in tallies.values()), 0.0)
        spikes = sum((u.spikes for u in uses), spikes) / comparison.tokens
        points.append(CurvePoint(code, steps, comparison.error, spikes))
    if cells:
        tell("compare codes", len(cells), len(cells))
    return tuple(points)


def _verify(ported: nn.Module, batch: Batch, tell: Progress) -> Audit:
    """Run stepped under audit."""
    tell("audit the stepped run", 0, 1)
    run: Run = ported.isospike_run  # type: ignore[assignment]
    before = run.execution
    run.execution = "stepped"
    try:
        found = audit(ported, rows_of(batch, slice(0, AUDIT_ROWS)))
    finally:
        run.execution = before
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
