"""What a port measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from isospike.codes import Law
from isospike.energy import TABLES, Counts, estimate_energy
from isospike.porting import page
from isospike.porting.advice import fitness, next_step, on_other_inputs, worst_sites
from isospike.porting.costs import cost_table
from isospike.porting.records import (
    ChoiceReport,
    CircuitReport,
    CurvePoint,
    LayerSum,
    Raster,
    SiteReport,
    StreamReport,
    TextErrors,
)
from isospike.report.numbers import number, percent, si
from isospike.report.page import Items, Section
from isospike.report.result import Report
from isospike.report.table import Columns, Table

COSTLIEST = 5  # layers that the summary lists


@dataclass(frozen=True, kw_only=True)
class PortReport(Report):
    """Everything measured about one port. *Error* is the relative root-mean-square error of the
    model's first output over unpadded tokens of held-out batches.

    Attributes:
        model: Its name or class.
        code: Code of every site but the probabilities', which share it.
        steps: Number of steps that was asked for or found; the largest one if steps were given by
            site or allocated.
        steps_by_site: Steps of each site that has another number.
        execution: ``collapsed`` or ``stepped``.
        precision: ``exact`` or ``fast``.
        functions: ``float`` or ``spiking``.
        ranges: ``dynamic``, with a gain for each token and site, or ``static``.
        max_error: The error asked for, if any.
        reached: Whether ``error <= max_error``; True if none was asked for.
        error_predicted: By the law, or by the sensitivities of an allocation, before the held-out
            batches were seen; None without.
        error: Measured on the held-out inputs.
        texts: Errors on the held-out inputs, and on further kinds of them if any were given.
        error_quantised: That of the quantised network of as many bits, run on the same inputs; see
            :mod:`isospike.porting.equal_bits`.
        error_fast: Measured with ``precision="fast"``; None unless that precision was asked for.
        cosine: Mean cosine between the two models' first outputs, token by token; None if a token
            has one value, which has no direction.
        cosine_pooled: The same for the mean over tokens, the sentence embedding; None likewise.
        agreement: Share of tokens with the same arg-max, for models with logits; else None.
        law: The fitted law; None if no target was given, or steps were allocated for it.
        curve: Error against steps for every code.
        sites: One entry per site, in order of execution.
        circuits: One entry per circuit, in order of execution; none if ``functions`` is ``float``.
        raster: Spikes of one real input; None if not recorded.
        choices: What the model chooses by its activations, as a router the experts of a token.
        streams: The figures of each input, if the model reads several; counts elsewhere are for
            each token of the first output.
        counts: Operations per token of the float, the quantised and the spiking model.
        exceptions: Products that are left without a binary operand, by module name.
        unreached: Modules that no calibration input reached; called, they raise.
        in_float: With ``functions="spiking"``, operators without a circuit, by module.
        calibration_tokens, held_out_tokens: Unpadded tokens used.

    >>> import isospike, torch
    >>> batches = [{"input": torch.rand(8, 4)} for _ in range(4)]
    >>> report = isospike.port(torch.nn.Linear(4, 2), batches, steps=8).report
    >>> report.code, report.steps, report.reached
    ('signed-digit', 8, True)
    """

    model: str
    code: str
    steps: int
    steps_by_site: dict[str, int]
    execution: str
    precision: str
    functions: str = "float"
    ranges: str = "static"
    max_error: float | None
    reached: bool
    error_predicted: float | None
    error: float
    texts: tuple[TextErrors, ...] = ()
    error_quantised: float | None = None
    error_fast: float | None
    cosine: float | None
    cosine_pooled: float | None
    agreement: float | None
    law: Law | None
    curve: tuple[CurvePoint, ...]
    sites: tuple[SiteReport, ...]
    circuits: tuple[CircuitReport, ...] = ()
    choices: tuple[ChoiceReport, ...] = ()
    streams: tuple[StreamReport, ...] = ()
    raster: Raster | None
    counts: Counts
    exceptions: tuple[str, ...]
    unreached: tuple[str, ...] = ()
    in_float: dict[str, tuple[str, ...]] = field(default_factory=dict)
    calibration_tokens: int
    held_out_tokens: int

    @property
    def populations(self) -> "list[SiteReport | CircuitReport]":
        """All that spikes: sites, then circuits."""
        return [*self.sites, *self.circuits]

    @property
    def spikes(self) -> float:
        """Spikes per token over all sites and circuits."""
        return sum((s.spikes for s in self.populations), 0.0)

    @property
    def synaptic_ops(self) -> float:
        """Synaptic operations per token over all sites and circuits."""
        return sum((s.synaptic_ops for s in self.populations), 0.0)

    def layers(self) -> tuple[LayerSum, ...]:
        """The sites and circuits added up by layer, in order of execution."""
        groups: dict[str, list[SiteReport | CircuitReport]] = {}
        for site in self.populations:
            groups.setdefault(site.layer, []).append(site)
        total = self.synaptic_ops or 1.0
        return tuple(
            LayerSum(
                name=name,
                spikes=sum(s.spikes for s in group),
                synaptic_ops=sum(s.synaptic_ops for s in group),
                neuron_updates=sum(s.neuron_updates for s in group),
                share=sum(s.synaptic_ops for s in group) / total,
                error=max(s.error for s in group),
            )
            for name, group in groups.items()
        )

    def verdict(self) -> str:
        """How far the outputs differ, what runs on spikes, and whether that saves energy."""
        target = ""
        if self.max_error is not None:
            asked = f"at most {percent(self.max_error)}"
            target = f", as asked ({asked})" if self.reached else f", more than asked ({asked})"
        left = len(self.exceptions)
        products = f"all matrix products but {left}" if left else "every matrix product"
        rows = [estimate_energy(self.counts, table) for table in TABLES]
        compared = [row for row in rows if row.winner is not None]
        cheaper = sum(row.winner == "spiking" for row in compared)
        rate = si(self.synaptic_ops / self.counts.macs) if self.counts.macs else "no"
        return (
            f"The spiking model's outputs differ from the original's by {percent(self.error)}"
            f"{target}. Spikes carry {products}, with {rate} additions in place of each "
            f"multiplication; by {cheaper} of {len(compared)} published cost tables that takes "
            "less energy than the quantised network of as many bits."
        )

    def headline(self) -> dict[str, str]:
        """Code, error, cosine, spikes and synaptic operations."""
        code = [self.code, f"{self.steps_text()} time steps", f"{self.functions} functions"]
        errors = [number(self.error)]
        errors += [f"{number(t.error)} on {t.name} inputs" for t in self.texts[1:]]
        if self.texts:
            errors.append(f"worst token {number(max(t.worst for t in self.texts))}")
        if self.texts and (changed := self.texts[0].changed) is not None:
            errors.append(f"{percent(changed)} of choices are others")
        errors += [f"{number(s.error)} at {s.output}" for s in self.streams
                   if s.error is not None and s.output]  # fmt: skip
        if self.error_predicted is not None:
            errors.append(f"predicted {number(self.error_predicted)}")
        if self.max_error is not None:
            reached = "reached" if self.reached else "not reached"
            errors.append(f"asked for {number(self.max_error)}, {reached}")
        if self.error_quantised is not None:
            errors.append(f"{number(self.error_quantised)} quantised, with as many bits")
        if self.error_fast is not None:
            errors.append(f"{number(self.error_fast)} with fast precision")
        if self.law is not None and self.law.floor:
            errors.append(f"floor of the law {number(self.law.floor)}")
        cosine = ["none", "each token has one value"]
        if self.cosine is not None:
            pooled = f"by token; {self.cosine_pooled:.4f} pooled over tokens"
            cosine = [f"{self.cosine:.4f}", pooled]
        if self.agreement is not None:
            cosine.append(f"same arg-max for {percent(self.agreement)} of tokens")
        spikes = [si(self.spikes), "per token", f"{self.counts.spike_rate:.3g} per neuron and step"]
        operations = [si(self.synaptic_ops), "additions per token"]
        if self.counts.macs:
            operations.append(f"{self.counts.synaptic_ops / self.counts.macs:.3g} per float MAC")
        cards = {
            "Code": code, "Error": errors, "Cosine": cosine, "Spikes": spikes,
            "Synaptic operations": operations,
        }  # fmt: skip
        return {name: "\n".join(lines) for name, lines in cards.items()}

    def steps_text(self) -> str:
        """The number of steps, or its range over the sites."""
        if not self.steps_by_site:
            return str(self.steps)
        steps = [s.steps for s in self.sites] or [self.steps]
        return f"{min(steps)} to {max(steps)}"

    def tables(self) -> dict[str, Table]:
        """Sites, layers, costs, and, where there are any, streams, choices, circuits, the curve."""
        tables = {"sites": self._site_table(), "layers": self._layer_table(self.layers())}
        if self.texts:
            tables["texts"] = self._text_table()
        if self.streams:
            tables["streams"] = self._stream_table()
        if self.choices:
            tables["choices"] = self._choice_table()
        if self.circuits:
            tables["circuits"] = self._circuit_table()
        tables["costs"] = cost_table(self.counts)
        if self.curve:
            columns: Columns = {
                "code": "code",
                "steps": "steps",
                "error": "error",
                "spikes": ("spikes", "si"),
            }
            tables["curve"] = Table.of("Error against time steps", self.curve, columns)
        return tables

    def brief(self) -> Sequence[Table]:
        """The costliest layers."""
        costly = sorted(self.layers(), key=lambda layer: -layer.synaptic_ops)
        return [self._layer_table(costly[:COSTLIEST], "Costliest layers, per token")]

    def sections(self) -> Sequence[Section]:
        """From the error of the whole model to every site, and how all of it was measured."""
        this_port = (self.code, self.steps, self.error)
        sections = [
            self._advice_section(),
            page.curve_section(self.curve, self.law, this_port, self.max_error),
        ]
        if any(s.share is not None for s in self.sites):
            sections.append(page.steps_section(self.sites, self.error_predicted, self.error))
        circuits = self._circuit_table() if self.circuits else None
        if self.texts:
            meaning = (
                "An error that holds is the same on inputs of another kind, and no token of them "
                "is lost. The error of a token is relative to its own output."
            )
            sections.append(Section("On which inputs", meaning, (self._text_table(),)))
        if self.streams:
            sections.append(page.streams_section(self._stream_table()))
        if self.choices:
            sections.append(page.choices_section(self._choice_table()))
        return [
            *sections,
            page.layers_section(self.layers(), self.code),
            page.errors_section(self.sites),
            page.dimension_section(self.sites),
            page.raster_section(self.raster, self._raster_code()),
            page.cost_section(self.counts, self.error, self.code),
            page.float_section(self.counts, circuits, self.exceptions, self.in_float),
            page.sites_section(self.sites),
            self._method_section(),
        ]

    def _advice_section(self) -> Section:
        texts = (
            fitness(self.error, self.cosine_pooled, self.agreement),
            on_other_inputs(self.texts),
            worst_sites(self.sites),
            next_step(self.error, self.steps, self.max_error, self.reached),
        )
        return Section(
            "Is it good enough, and what next?", "", (Items(tuple(filter(None, texts))),)
        )

    def _raster_code(self) -> str:
        """The code of the site that the raster shows."""
        shown = self.raster.site if self.raster is not None else ""
        return next((s.code for s in self.sites if s.name == shown), self.code)

    def _method_section(self) -> Section:
        foresight = ""
        if self.error_predicted is not None:
            foresight = " The prediction was made before they were seen."
        return Section(
            "How it was measured",
            "Every matrix product is given a binary operand: a spike train in place of numbers. "
            "Error: root-mean-square difference between the outputs of the two models, relative "
            "to the output itself. Cosine: mean over tokens. Both on "
            f"{self.held_out_tokens:,} held-out tokens, after calibration on "
            f"{self.calibration_tokens:,} others.{foresight} Run {self.execution}, "
            f"{self.precision} precision, {self.ranges} ranges.",
        )

    def _text_table(self) -> Table:
        columns: dict[str, str | tuple[str, str]] = {
            "name": "inputs", "tokens": "tokens", "error": "error", "median": "median token",
            "p999": "99.9 %", "worst": "worst token",
        }  # fmt: skip
        if any(t.changed is not None for t in self.texts):
            columns["changed"] = ("other choices", "percent")
        return Table.of("Error by kind of input", self.texts, columns)

    def _stream_table(self) -> Table:
        columns: Columns = {
            "name": "input", "positions": ("positions", "si"), "unit": "of", "error": "error",
            "spikes": ("spikes", "si"), "synaptic_ops": ("synaptic ops", "si"),
        }  # fmt: skip
        return Table.of("Each input, by its own positions", self.streams, columns)

    def _choice_table(self) -> Table:
        columns: Columns = {
            "name": ("module", "code"), "chosen": "chosen for a token", "tokens": ("tokens", "si"),
            "changed": ("others than float's", "percent"),
        }  # fmt: skip
        return Table.of("What is chosen by the largest scores", self.choices, columns)

    def _site_table(self) -> Table:
        columns: dict[str, str | tuple[str, str]] = {
            "name": ("site", "code"), "layer": "layer", "kind": "kind", "code": "code",
            "steps": "steps", "values": ("values", "si"), "neurons": ("neurons", "si"),
            "spikes": ("spikes", "si"), "synaptic_ops": ("synaptic ops", "si"),
            "neuron_updates": ("neuron updates", "si"), "macs": ("MACs", "si"), "error": "error",
            "pca95": "PCA-95", "participation": "part. ratio", "capped": "lower bound",
            "share": ("share of error", "percent"), "outside": ("outside", "percent"),
        }  # fmt: skip
        if self.streams:
            columns["stream"] = "made of"
        meaning = "One row per matrix-product input, in order of execution; counts are per token."
        return Table.of("Every site", self.sites, columns, meaning=meaning, small=True)

    def _layer_table(self, layers: Sequence[LayerSum], title: str = "Layers, per token") -> Table:
        columns: Columns = {
            "name": ("layer", "code"), "synaptic_ops": ("synaptic ops", "si"),
            "share": ("share", ".0%"), "spikes": ("spikes", "si"),
            "neuron_updates": ("neuron updates", "si"), "error": "worst error",
        }  # fmt: skip
        return Table.of(title, layers, columns)

    def _circuit_table(self) -> Table:
        columns: Columns = {
            "name": ("circuit", "code"), "layer": "layer", "kind": "kind",
            "values": ("values", "si"), "neurons": ("neurons", "si"), "spikes": ("spikes", "si"),
            "synaptic_ops": ("synaptic ops", "si"), "neuron_updates": ("neuron updates", "si"),
            "error": "error",
        }  # fmt: skip
        return Table.of("Every circuit, per token", self.circuits, columns, small=True)
