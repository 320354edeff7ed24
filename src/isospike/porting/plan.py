"""Who gets how many steps: as given, by the code's error law, or by water-filling."""

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isospike import codes
from isospike.codes import CODES, Law, WeightedCode, fit_law
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.hf.batches import Batch, batch_size, first_output, token_masks
from isospike.kernels.runtime.buffers import trim
from isospike.porting.axes import Axes
from isospike.porting.blocks import OutOfOrderError, by_block, can_wait
from isospike.porting.calibrate import Calibration, CodeOf
from isospike.porting.discover import Discovery
from isospike.porting.fidelity import same_draws
from isospike.porting.inputs import SAMPLE_ROWS, Inputs
from isospike.porting.offload import at_hand, shelf_of
from isospike.porting.ported import Ported
from isospike.porting.product import EXACT_LEVELS
from isospike.porting.reround import round_again
from isospike.porting.run import Mode
from isospike.porting.sensitivity import assign_amplitudes, max_sensitivity, measure_channels
from isospike.porting.sites import HEADS, Site
from isospike.porting.statistics import NotReachedError, Statistics
from isospike.porting.synapses import SIXTEEN, Synapses
from isospike.porting.tables import round_tables
from isospike.porting.water_filling import Allocation, Channels, check_allocation, water_fill
from isospike.progress import update

MAX_REFINEMENTS = 5  # most calibrations that correct an allocation
TARGET_SLACK = 0.96  # share of the target that an allocation may stay below
WEIGHT_LEVELS = 511  # of an attention weight that has two octaves more than other values
RANGES = ("dynamic", "static")
PROBE_TOKENS = 2048  # of the calibration inputs, to measure a candidate's error on
REACH = 0.99  # of the target, where a measured error was too large


@dataclass(frozen=True)
class Target:
    """An error to reach with the fewest steps, in place of a number of steps.

    Attributes:
        error: Relative root-mean-square error of the model's output.
        per_channel: Give every channel the resolution with which all values add the same error to
            the output, and every site the steps it needs for that, so that the error costs the
            fewest spikes; for codes of digits. See :mod:`isospike.porting.water_filling`.

    Raises:
        RangeError: ``error`` is not positive and finite.

    >>> Target(0.05)
    Target(error=0.05, per_channel=False)
    """

    error: float
    per_channel: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.error) and self.error > 0):
            raise RangeError(
                f"Target needs error above 0 and finite, got {self.error:g}. Try 0.05."
            )


Steps = int | Mapping[str, int] | Target


@dataclass(frozen=True)
class Plan:
    """Which code each site gets.

    Attributes:
        kind: Of all codes.
        code_of: Code of a site, once it is known what reaches it; the longest it may have, if
            amplitudes are allocated.
        steps: Number of steps that was asked for, or that a law gives; None without.
        allocation: Amplitudes of channels; None without.
        law: The law that the steps follow from; None without.
        predicted: Error of the output, as law or allocation predict it; None without.
    """

    kind: type[WeightedCode]
    code_of: CodeOf
    steps: int | None = None
    allocation: Allocation | None = None
    law: Law | None = None
    predicted: float | None = None

    @property
    def share(self) -> Mapping[str, float]:
        """Part of the squared error of each site, as an allocation predicts it."""
        return {} if self.allocation is None else self.allocation.share


class Built(NamedTuple):
    """A calibrated port.

    Attributes:
        ported: It.
        plan: What its codes follow from.
    """

    ported: Ported
    plan: Plan


@dataclass(frozen=True)
class Builder:
    """Makes calibrated ports of one model.

    Attributes:
        discovery: The model and its sites.
        inputs: What it is calibrated and measured on.
        mode: How the ports will run.
        ranges: ``dynamic`` or ``static``. Codes of one neuron, which has no place to rest at inside
            its range, and allocated amplitudes have static ranges in any case.
        generator: Source of randomness of the Bernoulli code; torch's global one if None.
        synapses: Bits of the weights.
    """

    discovery: Discovery
    inputs: Inputs
    mode: Mode
    ranges: str = "dynamic"
    generator: torch.Generator | None = None
    synapses: Synapses = SIXTEEN

    def __post_init__(self) -> None:
        if not self.discovery.names:
            raise UnsupportedError(
                "port needs a model with matrix products, got a "
                f"{type(self.discovery.model).__name__} without. Give a transformer."
            )
        self.synapses.check(self.discovery.product_names)

    @cached_property
    def statistics(self) -> Statistics:
        """What a float pass over the calibration inputs shows; taken once, for several ports."""
        template = self.discovery.template
        return Statistics(template.model, template.run, self.batches)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The calibration inputs, with the few rows that discovery saw where only these reach all
        products."""
        return (*self.inputs.calibration, *self._few)

    @cached_property
    def _few(self) -> list[Batch]:
        return []

    @cached_property
    def probes(self) -> list[tuple[Batch, Tensor]]:
        """Some rows of every calibration batch, and the float model's first output."""
        tokens = max(1, self.inputs.calibration_tokens)
        share = min(1.0, PROBE_TOKENS / tokens)
        found = []
        for batch in self.inputs.calibration:
            rows = self.inputs.few(batch, math.ceil(share * batch_size(batch)))
            with torch.no_grad(), same_draws():
                found.append((rows, first_output(self.discovery.model(**rows))))
        return found

    def build(self, plan: Plan, once: bool = False) -> Built:
        """A port with these codes, calibrated on all calibration inputs.

        Args:
            plan: The codes.
            once: Whether this is the only port, as far as is known: what the float pass shows is
                then kept of one block at a time.
        """
        shelf = shelf_of(self.discovery.model)
        once = once or shelf is not None
        blocks = self.discovery.blocks if once else ()
        if self.synapses.bits < 16 and shelf is None and can_wait():
            with suppress(OutOfOrderError):
                built = by_block(blocks, partial(self._calibrated, plan, True))
                round_again(built.ported, self.discovery.template, self.batches)
                return built
        return by_block(blocks, partial(self._calibrated, plan, False))

    def _calibrated(self, plan: Plan, again: bool, blocks: Sequence[str]) -> Built:
        dynamic = self.ranges == "dynamic" and plan.allocation is None and plan.kind.neurons == 2
        template = self.discovery.template

        def calibrated() -> Built:
            ported = self.discovery.instrument()
            ported.seed(self.generator)
            if plan.allocation is not None:
                assign_amplitudes(ported, plan.allocation)
            if shelf_of(self.discovery.model) is None:
                round_tables(ported.model, self.synapses.bits)
            calibration = Calibration(
                ported, template, plan.code_of, dynamic, blocks, self.synapses, again
            )
            shelf = shelf_of(self.discovery.model)

            def finish(block: str, statistics: Statistics) -> None:
                with at_hand(template.model, block):
                    calibration.part(block, statistics)
                    if shelf is not None:
                        shelf.keep(ported.model, block, blocks, calibration.late)
                trim()

            if blocks:
                Statistics(template.model, template.run, self.batches, blocks, finish)
            else:
                finish("", self.statistics)
            return Built(ported, plan)

        try:
            return calibrated()
        except NotReachedError:
            first = self.inputs.calibration[0]
            sample = self.inputs.few(first, SAMPLE_ROWS)
            if self._few or batch_size(sample) == batch_size(first):
                raise
        self._few.append(sample)
        vars(self).pop("statistics", None)
        return calibrated()

    def error(self, built: Built) -> float:
        """Error of a port's first output on some of the calibration inputs."""
        difference = power = 0.0
        for batch, expected in self.probes:
            with torch.no_grad(), same_draws():
                got = first_output(built.ported.model(**batch))
            axes = built.ported.run.axes.get("", Axes(0))
            mask = axes.mask(token_masks(batch), expected)
            kept = torch.ones(()) if mask is None else mask.to(expected.dtype)
            difference += float(((expected - got) * kept).double().square().sum())
            power += float((expected * kept).double().square().sum())
        return math.sqrt(difference / max(power, 1e-300))

    def uniform(self, kind: type[WeightedCode], steps: int) -> Plan:
        """The codes for one number of steps.

        With ranges that follow the input, sites differ in what an octave of resolution buys. An
        attention weight is one of many that add up, and nearly all are small: two more octaves, or
        one where two would be more than ``WEIGHT_LEVELS`` levels. A query, key or value has
        all levels to itself, being scaled by head, and its error counts less: fewer, from five
        steps on. A value on one side of its rest, an activation function's,
        has half of a pair's levels: one more octave, up to ``EXACT_LEVELS``.
        """
        plain = kind(steps)
        octave = kind.steps_per_octave or 1
        if self.ranges != "dynamic" or kind.neurons != 2:
            return Plan(kind, lambda site, _: plain, steps)

        def code_of(site: Site, statistics: Statistics) -> WeightedCode:
            one_sided = statistics.one_sided(site)
            longer = kind(min(kind.max_steps, steps + octave))
            if site.kind == "probability" or (site.kind == "left" and one_sided):
                longest = kind(min(kind.max_steps, steps + 2 * octave))
                return longer if longest.levels > WEIGHT_LEVELS else longest
            if site.kind in HEADS:
                return kind(min(steps, steps // 2 + 2 * octave))
            return longer if one_sided and longer.levels <= EXACT_LEVELS else plain

        return Plan(kind, code_of, steps)


class Planner(ABC):
    """Chooses the codes of a port, and better ones where its error is too large."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    @abstractmethod
    def first(self) -> Built:
        """A port by what is known before the evaluation inputs are seen."""

    def better(self, error: float) -> Built | None:
        """A port with more steps where the last one's measured error is ``error``.

        None if that is small enough, or if there are no more steps.
        """
        return None


class Given(Planner):
    """Codes as they are given."""

    def __init__(self, builder: Builder, plan: Plan) -> None:
        super().__init__(builder)
        self.plan = plan

    def first(self) -> Built:
        return self.builder.build(self.plan, once=True)


class ByLaw(Planner):
    """One code for all sites, by a law fitted to a few short ones; more steps where it errs."""

    def __init__(self, builder: Builder, kind: type[WeightedCode], error: float) -> None:
        super().__init__(builder)
        self.kind, self.error = kind, error
        self.law: Law | None = None
        self.steps = 0

    def first(self) -> Built:
        errors = {}
        for done, steps in enumerate(self.kind.fit_steps):
            update("fit the error law", done, len(self.kind.fit_steps))
            errors[steps] = self.builder.error(self.builder.build(self._plan(steps)))
        update("fit the error law", len(self.kind.fit_steps), len(self.kind.fit_steps))
        self.law = fit_law(self.kind.name, errors)
        if self.error <= self.law.floor:
            self._beyond(errors)
        measured = [steps for steps, error in errors.items() if error <= self.error]
        if self.error > self.law.floor:  # else a measurement reaches what the law does not
            measured.append(self.law.fewest_steps(self.error) or self.kind.search_limit)
        self.steps = min(measured)
        return self.builder.build(self._plan(self.steps))

    def _beyond(self, errors: dict[int, float]) -> None:
        """Fit the law again with the longest code: a floor that short ones show may not be there.

        Raises:
            RangeError: All codes that were measured err more than was asked for.
        """
        longest = self.kind.search_limit
        errors[longest] = self.builder.error(self.builder.build(self._plan(longest)))
        if min(errors.values()) > self.error:
            raise RangeError(
                f"port needs a target that its longest code reaches, {errors[longest]:.3g} at "
                f"{longest} {self.kind.name} steps, got {self.error:.3g}. Ask for more error, or "
                "try another code."
            )
        self.law = fit_law(self.kind.name, errors)

    def better(self, error: float) -> Built | None:
        if self.law is None or error <= self.error:
            return None
        raised = self.law.more_steps(self.steps, error / self.error)
        if raised is None:
            return None
        self.steps = raised
        return self.builder.build(self._plan(raised))

    def _plan(self, steps: int) -> Plan:
        code, law = self.kind(steps), self.law
        if law is not None:
            self.builder.mode.check("port", code.levels)
        predicted = None if law is None else law.error(steps)
        return replace(self.builder.uniform(self.kind, steps), law=law, predicted=predicted)


class Allocated(Planner):
    """Amplitudes of channels by water-filling; the aim moves until the error is right.

    Sensitivities are measured at the float model, then where its own rounding takes it. What first
    order leaves out shows when the model is ported, and sites get more steps where their ranges
    hold the error up.
    """

    def __init__(self, builder: Builder, kind: type[WeightedCode], error: float) -> None:
        super().__init__(builder)
        self.kind, self.error = kind, error
        self.channels: dict[str, Channels] = {}
        self.most = max(
            steps for steps in range(1, kind.search_limit + 1) if kind(steps).levels <= EXACT_LEVELS
        )
        self.aim = error
        self.last: float | None = None
        self.left = MAX_REFINEMENTS

    def first(self) -> Built:
        opened, batches = self.builder.discovery.template, self.builder.inputs.calibration
        update("measure sensitivities", 0, 2)
        channels = measure_channels(opened, batches)
        update("measure sensitivities", 1, 2)
        wanted = water_fill(channels, self.error).amplitude
        self.channels = max_sensitivity(channels, measure_channels(opened, batches, wanted))
        update("measure sensitivities", 2, 2)
        return self._approach(self.error)

    def better(self, error: float) -> Built | None:
        if self.last is None or error <= self.error or self.left == 0:
            return None
        self.left -= 1
        target = self.error * REACH * self.last / error
        self.aim = self.aim * target / max(self.last, 1e-12)
        return self._approach(target)

    def _approach(self, target: float) -> Built:
        """A port whose error on the calibration inputs lies just below ``target``."""
        before: tuple[float, float] | None = None
        best: Built
        least = math.inf
        for done in range(MAX_REFINEMENTS):
            update("allocate steps", done, MAX_REFINEMENTS)
            aim, most = self.aim, self.most
            built = self.builder.build(self._plan(aim))
            error = self.builder.error(built)
            if done == 0 or _rank(error, target) < _rank(least, target):
                best, best_aim, best_most, least = built, aim, most, error
            if TARGET_SLACK * target <= error <= target:
                break
            if before is not None and error > target:
                self._lengthen(error / before[1], aim / before[0])
            before = aim, error
            middle = (1 + TARGET_SLACK) / 2 * target
            self.aim *= min(3.0, max(0.2, middle / max(error, 1e-12)))
        update("allocate steps", MAX_REFINEMENTS, MAX_REFINEMENTS)
        self.last, self.aim, self.most = least, best_aim, best_most
        return best

    def _lengthen(self, gained: float, asked: float) -> None:
        """Allow longer codes where a smaller aim did not make the error smaller."""
        longest = self.kind.search_limit
        stuck = gained > asked**0.5 and asked < 1
        if stuck and self.most < longest and not self.builder.mode.fast:
            self.most = min(longest, self.most + 2 * (self.kind.steps_per_octave or 1))

    def _plan(self, aim: float) -> Plan:
        found = water_fill(self.channels, aim)
        code = self.kind(self.most)
        return Plan(self.kind, lambda *_: code, allocation=found, predicted=found.error)


def make_planner(builder: Builder, code: str, steps: Steps) -> Planner:
    """The planner for what ``port`` was asked.

    Args:
        builder: Makes the ports.
        code: Name of the code.
        steps: A number for all sites, numbers by site name, or a target.
    """
    if isinstance(steps, Target):
        kind = Allocated if steps.per_channel else ByLaw
        return kind(builder, CODES[code], steps.error)
    if isinstance(steps, Mapping):
        given = by_name(code, steps, builder.discovery.names)
        sites = builder.discovery.template.sites
        linear = [given[s.name].levels for s in sites if s.kind in ("linear", "conv")]
        builder.mode.check("port", max(linear, default=0))
        return Given(builder, Plan(CODES[code], lambda site, _: given[site.name]))
    return Given(builder, builder.uniform(CODES[code], steps))


def check_code(code: str) -> None:
    """Raise InputError unless there is such a code."""
    if code not in CODES:
        raise InputError(
            f"port needs a code among {', '.join(CODES)}, got {code!r}. Choose one of them."
        )


def check_ranges(ranges: str) -> None:
    """Raise InputError unless there are such ranges."""
    if ranges not in RANGES:
        raise InputError(
            f"port needs ranges among {', '.join(RANGES)}, got {ranges!r}. Choose one of them."
        )


def check_steps(code: str, steps: Steps) -> None:
    """Raise unless a code can have these steps.

    Raises:
        RangeError: The code cannot have so many steps, or so few.
        UnsupportedError: An allocation with a code that has no digits.
    """
    if isinstance(steps, Target):
        if steps.per_channel:
            check_allocation(CODES[code])
        return
    for each in steps.values() if isinstance(steps, Mapping) else [steps]:
        codes.code(code, each)


def check_in_memory(model: nn.Module, steps: Steps) -> None:
    """Raise UnsupportedError if steps are allocated by channel and the weights are offloaded."""
    if isinstance(steps, Target) and steps.per_channel and shelf_of(model) is not None:
        raise UnsupportedError(
            "port needs a model in memory to allocate steps by channel, which follows gradients, "
            "got an offloaded one. Give steps, or an error without per_channel."
        )


def by_name(code: str, steps: Mapping[str, int], names: list[str]) -> dict[str, WeightedCode]:
    """The code of every site, by patterns of their names; later patterns first.

    Raises:
        InputError: A site without steps, or a pattern without a site.
    """
    assigned = {}
    for name in names:
        matching = [n for pattern, n in steps.items() if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise InputError(
                f"port needs steps for every site, got none for {name}. Add a default: "
                f'{{"*": 8, ...}}.'
            )
        assigned[name] = codes.code(code, matching[-1])
    for pattern in steps:
        if not fnmatch.filter(names, pattern):
            raise InputError(
                f"port needs steps by site names, got {pattern!r} which matches none of "
                f"{len(names)} sites such as {names[0]}. See the names in report.sites."
            )
    return assigned


def _rank(error: float, target: float) -> tuple[bool, float]:
    """Smallest for the error nearest to a target that is within it, or else the smallest."""
    return error > target, abs(error - target)
