"""What a port measured: frozen, and the same after a round trip through JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from isospike.codes import Law
from isospike.energy import Counts


@dataclass(frozen=True)
class SiteReport:
    """One site: the input of one or more matrix products.

    All counts are per unpadded token (per image for models without an attention mask), measured on
    held-back batches.

    Attributes:
        name: Module whose input it is; for attention, ``<module>:query``, ``:key``, ``:value`` or
            ``:probability``.
        layer: The block it belongs to, e.g. ``encoder.layer.0``; its module's name outside a block.
        kind: ``linear``, ``conv``, ``query``, ``key``, ``value`` or ``probability``.
        code: Name of its code.
        steps: Time steps.
        values: Values coded per token.
        neurons: Neurons spent on them per token (twice ``values`` for ON/OFF pairs).
        spikes: Spikes emitted per token.
        synaptic_ops: Additions those spikes cause per token: spikes times fan-out.
        neuron_updates: ``neurons * steps``.
        macs: Multiply-accumulates of the float product(s) it feeds, per token.
        error: Root-mean-square coding error over the root-mean-square of the centred values.
        pca95: Principal components holding 95 % of the variance of its values; None where not
            defined.
        participation: Participation ratio ``(sum l)^2 / sum l^2`` of the covariance eigenvalues.
        capped: Whether ``pca95`` is limited by the number of tokens rather than by the data.
        share: Its part of the output's squared error as an allocation predicts it; None without.
    """

    name: str
    layer: str
    kind: str
    code: str
    steps: int
    values: float
    neurons: float
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    macs: float
    error: float
    pca95: int | None
    participation: float | None
    capped: bool
    share: float | None = None


@dataclass(frozen=True)
class CircuitReport:
    """One circuit that computes a function no product computes; counts as in :class:`SiteReport`.

    Attributes:
        name: The module it belongs to.
        layer: Its block.
        kind: ``activation``, ``normalisation``, ``softmax``, ``product`` (of a gate and a value) or
            ``relay`` (values spelled so that other neurons can read them).
        values: Values it gives per token.
        neurons, spikes, synaptic_ops, neuron_updates: Per token.
        error: Root-mean-square error against the float function of the same inputs, over that
            function's root-mean-square value.
    """

    name: str
    layer: str
    kind: str
    values: float
    neurons: float
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    error: float


@dataclass(frozen=True)
class CurvePoint:
    """Error of the whole model under one uniform code and number of steps, on held-back batches."""

    code: str
    steps: int
    error: float
    spikes: float  # per token


@dataclass(frozen=True)
class Raster:
    """The spikes of one real input at one site.

    Attributes:
        text: The sentence, or a description of the input.
        site: Name of the site.
        tokens: One label per token.
        neurons: Number of neurons shown (the first ones).
        steps: Time steps per token.
        spikes: ``(token, step, neuron)`` triples; the OFF neurons come after the ON neurons.
    """

    text: str
    site: str
    tokens: tuple[str, ...]
    neurons: int
    steps: int
    spikes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PortReport:
    """Everything measured about one port. *Error* is the relative root-mean-square error of the
    model's first output over unpadded tokens of held-back batches.

    Attributes:
        model: Its name or class.
        code: Code of every site but the probabilities', which share it.
        steps: Uniform number of steps; the largest one if sites differ.
        steps_by_site: Steps of each site that was given its own.
        execution: ``collapsed`` or ``stepped``.
        precision: ``exact`` or ``fast``.
        max_error: The error asked for, if any.
        reached: Whether ``error <= max_error``; True if none was asked for.
        error_predicted: By the law, or by the sensitivities of an allocation, before the held-back
            batches were seen; None without.
        error: Measured.
        error_fast: Measured with ``precision="fast"``; None unless that precision was asked for.
        cosine: Mean cosine between the two models' first outputs, token by token.
        cosine_pooled: The same for the mean over tokens, the sentence embedding.
        agreement: Share of tokens with the same arg-max, for models with logits; else None.
        law: The fitted law; None if no target was given, or steps were allocated for it.
        curve: Error against steps for every code.
        sites: One entry per site, in order of execution.
        raster: Spikes of one real input; None if not recorded.
        counts: Operations per token of the float, the quantised and the spiking model.
        exceptions: Matrix products that are left without a binary operand, by module name.
        calibration_tokens, held_back_tokens: Unpadded tokens used.
        versions: Of isospike, torch and transformers.
        nonlinear: ``float`` or ``spiking``.
        circuits: One entry per circuit, in order of execution; none if ``nonlinear`` is ``float``.
    """

    model: str
    code: str
    steps: int
    steps_by_site: dict[str, int]
    execution: str
    precision: str
    max_error: float | None
    reached: bool
    error_predicted: float | None
    error: float
    error_fast: float | None
    cosine: float
    cosine_pooled: float
    agreement: float | None
    law: Law | None
    curve: tuple[CurvePoint, ...]
    sites: tuple[SiteReport, ...]
    raster: Raster | None
    counts: Counts
    exceptions: tuple[str, ...]
    calibration_tokens: int
    held_back_tokens: int
    versions: dict[str, str]
    nonlinear: str = "float"
    circuits: tuple[CircuitReport, ...] = ()

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

    def to_json(self) -> str:
        """The report as JSON text; :meth:`from_json` restores it exactly."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "PortReport":
        """The report that :meth:`to_json` wrote."""
        d: dict[str, Any] = json.loads(text)
        d["law"] = d["law"] and Law(
            **{**d["law"], "steps": tuple(d["law"]["steps"]), "errors": tuple(d["law"]["errors"])}
        )
        d["curve"] = tuple(CurvePoint(**p) for p in d["curve"])
        d["sites"] = tuple(SiteReport(**s) for s in d["sites"])
        r = d["raster"]
        d["raster"] = r and Raster(
            **{**r, "tokens": tuple(r["tokens"]), "spikes": tuple(tuple(s) for s in r["spikes"])}
        )
        d["counts"] = Counts(**d["counts"])
        d["exceptions"] = tuple(d["exceptions"])
        d["circuits"] = tuple(CircuitReport(**c) for c in d.get("circuits", ()))
        return cls(**d)
