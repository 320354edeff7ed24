"""Measure a calibrated port against the float model, on inputs it has not seen."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.circuits.octaves import HIGHEST, LOWEST
from isospike.codes import WeightedCode
from isospike.dimension import Moments, participation_ratio, pca_count
from isospike.errors import InputError
from isospike.hf.batches import (
    Batch,
    first_output,
    named_outputs,
    token_masks,
)
from isospike.kernels.runtime.buffers import cache_blocks
from isospike.porting import parallel
from isospike.porting.axes import Axes
from isospike.porting.blocks import in_step, part_of, without_cache
from isospike.porting.choices import Choice, Choices, changed
from isospike.porting.fidelity import same_draws
from isospike.porting.ported import Ported
from isospike.porting.run import CircuitStats, Run, Watcher
from isospike.porting.sites import OPERANDS, Reading, Site
from isospike.porting.streams import positions

TABLE_LEVELS = 2**16  # up to here spikes are counted by looking them up
WEIGHTED = ("linear", "conv")  # kinds of sites before a product with a weight
MOST_VALUES = 2**23  # of an output, that are compared at once


@dataclass(frozen=True)
class Comparison:
    """Two models' first outputs over unpadded tokens.

    Attributes:
        error: Root-mean-square difference over root-mean-square of the float output.
        cosine: Mean over tokens; None if a token has one value, which has no direction.
        cosine_pooled: Mean over inputs, of the outputs averaged over tokens; None likewise.
        agreement: Share of equal arg-max; None unless the model returns logits of two or more.
        tokens: Tokens compared.
        inputs: Rows compared.
        median, p999, worst: Of the error of single tokens, each over the norm of its own output.
        choices: For each choice, how many are chosen for a token, for how many tokens, and for how
            many of them the float model chooses others.
        positions: Of each stream, if there are several.
        streams: The same of an output of each stream but the first output's; none if the model has
            one stream.
    """

    error: float
    cosine: float | None
    cosine_pooled: float | None
    agreement: float | None
    tokens: int
    inputs: int
    median: float
    p999: float
    worst: float
    choices: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    streams: Mapping[str, "Comparison"] = field(default_factory=dict)

    @property
    def changed(self) -> float | None:
        """Share of choices that are not the float model's; None without."""
        made = sum(tokens for _, tokens, _ in self.choices.values())
        return sum(other for *_, other in self.choices.values()) / made if made else None


@dataclass
class SiteSums:
    """Sums over all values that passed one site."""

    values: float = 0.0
    spikes: float = 0.0
    synaptic_ops: float = 0.0
    macs: float = 0.0
    squared_error: float = 0.0
    squared: float = 0.0
    gain_ops: float = 0.0
    moments: Moments | None = None
    spread: "Spread | None" = None

    def include(self, other: "SiteSums") -> None:
        """Add the values that another process has seen."""
        for name in (
            "values",
            "spikes",
            "synaptic_ops",
            "macs",
            "squared_error",
            "squared",
            "gain_ops",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.moments is not None:
            self.moments = self.moments or Moments(other.moments.width, other.moments.mean.device)
            self.moments.include(other.moments)

    def close(self) -> None:
        """Keep of the moments what is reported of them."""
        if self.moments is not None:
            self.spread, self.moments = Spread.of(self.moments), None


class Spread(NamedTuple):
    """How the values of a site vary.

    Attributes:
        rows: How many there were.
        resting: Squared mean, summed over channels.
        pca95, participation: See :class:`isospike.porting.report.SiteReport`.
    """

    rows: int
    resting: float
    pca95: int | None
    participation: float | None

    @classmethod
    def of(cls, moments: Moments) -> "Spread":
        """That of the rows that were seen."""
        return cls(moments.rows, float(moments.mean.square().sum()), *_dimension(moments))


class SpikeMeter(Watcher):
    """Counts the spikes of sites and circuits of one port, and nothing else.

    Attributes:
        spikes: Of each site, in the order of their first use, then of each circuit.
    """

    sees_circuits = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sites: dict[str, float] = {}
        self.circuits: list[float] = []

    @property
    def spikes(self) -> float:
        """All of them."""
        return sum(self.circuits, sum(self.sites.values(), 0.0))

    def on_site(self, site: Site, x: Tensor, *, live: Tensor | None = None, **_: Any) -> None:
        integers = site.read(x.movedim(-1, 1) if site.kind == "conv" else x).value
        integers = integers.movedim(1, -1) if site.kind == "conv" else integers
        spikes = count_spikes(site.code, integers)
        for mask in (live, mask_at(self.run, site, x)):
            if mask is not None:
                spikes = spikes * mask
        total = float(spikes.sum(dtype=torch.float64))
        self.sites[site.name] = self.sites.get(site.name, 0.0) + total

    def on_circuit(self, stats: CircuitStats) -> None:
        self.circuits.append(stats.spikes)

    def join(self) -> None:
        every, self.sites = parallel.from_all(self.sites), {}
        for name, spikes in (item for sites in every for item in sites.items()):
            self.sites[name] = self.sites.get(name, 0.0) + spikes
        self.circuits = [each for circuits in parallel.from_all(self.circuits) for each in circuits]


class Meter(Watcher):
    """Measures what passes the sites and the circuits of one port.

    Args:
        run: The port's.
        dimension: Whether to keep the covariance of each site's values.

    Attributes:
        sites: What passed each site, by its name.
        circuits: What each circuit did, once a pass.
    """

    sees_circuits = True

    def __init__(self, run: Run, dimension: bool) -> None:
        self.run, self.dimension = run, dimension
        self.sites: dict[str, SiteSums] = {}
        self.circuits: list[CircuitStats] = []

    def on_site(
        self,
        site: Site,
        x: Tensor,
        *,
        fan_out: Tensor | float,
        macs: bool = True,
        live: Tensor | None = None,
    ) -> None:
        if not bool(x.isfinite().all()):
            raise InputError(
                f"port needs finite activations, got NaN or infinity at {site.name}. Check the "
                "model's weights and inputs."
            )
        sums = self.sites.setdefault(site.name, SiteSums())
        keep = self._keep(site, x, live)
        reading = site.read(x.movedim(-1, 1) if site.kind == "conv" else x)
        integers, decoded = reading.value, site.decode(reading)
        if site.kind == "conv":
            integers, decoded = integers.movedim(1, -1), decoded.movedim(1, -1)
        wide = fan_out.expand_as(x) if isinstance(fan_out, Tensor) else None
        for part in cache_blocks(x, x.numel()):
            kept, real = keep[part], x[part]
            outgoing = fan_out if wide is None else wide[part]
            spikes = count_spikes(site.code, integers[part]) * kept
            sums.values += float(kept.sum())
            sums.spikes += float(spikes.sum(dtype=torch.float64))
            sums.synaptic_ops += float((spikes * outgoing).sum(dtype=torch.float64))
            if macs:
                sums.macs += float((kept * outgoing).sum(dtype=torch.float64))
            error = (decoded[part] - real).square() * kept
            sums.squared_error += float(error.sum(dtype=torch.float64))
            sums.squared += float((real.square() * kept).sum(dtype=torch.float64))
        del decoded, integers
        if site.dynamic:
            self._add_gain(site, reading, keep, fan_out)
        del reading, keep
        if self.dimension and site.kind not in ("probability", *OPERANDS):
            rows = site_rows(self.run, site, x)
            sums.moments = sums.moments or Moments(rows.shape[1], rows.device)
            sums.moments.update(rows)

    def on_circuit(self, stats: CircuitStats) -> None:
        self.circuits.append(stats)

    def join(self) -> None:
        every, self.sites = parallel.from_all(self.sites), {}
        for name, sums in (item for sites in every for item in sites.items()):
            self.sites.setdefault(name, SiteSums()).include(sums)
        self.circuits = [each for circuits in parallel.from_all(self.circuits) for each in circuits]

    def close(self, block: str) -> None:
        """Nothing more will pass the sites of a block."""
        for name, sums in self.sites.items():
            if part_of(name, (block,)):
                sums.close()

    def _add_gain(
        self, site: Site, reading: Reading, keep: Tensor, fan_out: Tensor | float
    ) -> None:
        """Comparisons that find a gain, and what it multiplies: each sum over channels once."""
        gain = reading.gain
        if gain is None:
            return
        values = float(keep.sum())
        tokens = keep[..., :1] if site.kind != "conv" else keep.flatten(1)[:, :1]
        # A score is multiplied by its query's gain and by its key's.
        sums = {"query": 2 * fan_out, "key": 0.0, "value": 1.0}.get(site.kind, fan_out)
        if not gain.octaves:
            more = float((tokens * sums).sum(dtype=torch.float64))
            self.sites[site.name].gain_ops += values + more
            return
        octaves = gain.factor.movedim(1, -1) if site.kind == "conv" else gain.factor
        spikes = octaves * tokens if site.kind != "conv" else octaves.flatten(1)[:, :1] * tokens
        self.circuits.append(
            CircuitStats(
                site.name,
                "gain",
                float(tokens.sum()),
                values,
                float(spikes.sum()),
                float((spikes * sums).sum(dtype=torch.float64)),
                values * (HIGHEST - LOWEST),
                0.0,
                1.0,
            )  # fmt: skip
        )

    def _keep(self, site: Site, x: Tensor, live: Tensor | None) -> Tensor:
        """1 where a value belongs to an unpadded token, of the shape of ``x``."""
        keep = x.new_ones(()) if live is None else live.to(x.dtype)
        mask = mask_at(self.run, site, x)
        return (keep if mask is None else keep * mask).expand_as(x)


def compare(
    model: nn.Module,
    ported: Ported,
    batches: Sequence[Batch],
    meter: Watcher | None = None,
    expected: Sequence[Any] = (),
    blocks: Sequence[str] = (),
) -> Comparison:
    """Run both models on the same inputs.

    Args:
        model: The float model.
        ported: Its calibrated port.
        batches: Inputs neither was calibrated on.
        meter: Sees what passes the port.
        expected: What the float model gives for the batches; computed here if empty.
        blocks: Names of the blocks that all batches pass together.

    Raises:
        OutOfOrderError: A batch runs the blocks in another order.
    """
    run = ported.run
    choices = () if expected else run.choices
    others = {} if expected else _outputs_of_streams(run)
    found: dict[int, _Totals] = {}
    before = {site.name: site.outside for site in ported.sites}

    def both(number: int) -> None:
        batch = batches[number]
        masks = token_masks(batch)
        with torch.no_grad(), same_draws(), _seeing(model, choices) as chosen:
            true = expected[number] if expected else model(**batch)
        logits, named, true = _has_logits(true), _named(true, others), first_output(true)
        with torch.no_grad(), same_draws(), run.watching(meter, masks):
            with _seeing(ported.model, choices) as also_chosen:
                got = ported.model(**batch)
        also_named, got = _named(got, others), first_output(got)
        total = found[number] = _Totals()
        total.add(true, got, run.axes.get("", Axes(0)), masks, logits)
        total.add_choices(chosen, also_chosen, masks)
        for stream in run.streams.names:
            total.positions[stream] = total.positions.get(stream, 0) + positions(batch, stream)
        for name, x in named.items():
            totals = total.streams.setdefault(others[name], _Totals())
            totals.add(x, also_named[name], run.axes[f"->{name}"], masks, False)

    def left(number: int) -> None:
        if isinstance(meter, Meter) and number >= len(blocks):
            meter.close(blocks[number - len(blocks)])

    parts = [(each.get_submodule(name),) for each in (model, ported.model) for name in blocks]
    passes = [partial(both, number) for number in parallel.own(len(batches))]
    with without_cache(model), without_cache(ported.model):
        parallel.together(partial(in_step, [ported.run], parts, passes, left))
    _join(ported, meter, before)
    total = _Totals()
    for each in parallel.by_number(found):
        total.include(each)
    streams = {stream: one.comparison() for stream, one in total.streams.items() if one.inputs}
    return replace(total.comparison(), streams=streams)


def _join(ported: Ported, meter: Watcher | None, before: Mapping[str, Tensor]) -> None:
    """Add what the meter and the sites have counted in the other processes."""
    if parallel.processes() == 1:
        return
    if meter is not None:
        meter.join()
    own = {s.name: (s.outside - before[s.name].to(s.outside)).cpu() for s in ported.sites}
    every = parallel.from_all(own)
    for site in ported.sites:
        counted = torch.stack([each[site.name] for each in every]).sum(0)
        site.outside = before[site.name] + counted.to(before[site.name])


def _outputs_of_streams(run: Run) -> dict[str, str]:
    """By name of an output, the stream that it is made of; not of the first."""
    found: dict[str, str] = {}
    for stream in run.streams.names if run.streams.several else ():
        name = run.streams.output(stream)
        if stream != run.streams.first and name is not None:
            found[name] = stream
    return found


def _named(output: Any, names: Collection[str]) -> dict[str, Tensor]:
    """Some of a model's outputs."""
    return {k: x for k, x in named_outputs(output).items() if k in names} if names else {}


def _seeing(model: nn.Module, choices: Sequence[Choice]) -> Any:
    """Sees these choices of a model; does nothing for none."""
    return Choices(model, choices) if choices else nullcontext()


@dataclass
class _Totals:
    """Sums over the batches of a comparison."""

    difference: float = 0.0
    power: float = 0.0
    cosine: float = 0.0
    pooled: float = 0.0
    agreement: float = 0.0
    tokens: int = 0
    inputs: int = 0
    vectors: bool = True  # whether a token has more than one value
    logits: bool = True
    single: list[Tensor] = field(default_factory=list)
    choices: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    streams: dict[str, "_Totals"] = field(default_factory=dict)

    def include(self, other: "_Totals") -> None:
        """Add those of further batches."""
        for name in ("difference", "power", "cosine", "pooled", "agreement", "tokens", "inputs"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.vectors &= other.vectors
        self.logits &= other.logits
        self.single += other.single
        for name, (chosen, tokens, changes) in other.choices.items():
            _, known, count = self.choices.get(name, (0, 0, 0))
            self.choices[name] = chosen, known + tokens, count + changes
        for stream, count in other.positions.items():
            self.positions[stream] = self.positions.get(stream, 0) + count
        for stream, totals in other.streams.items():
            self.streams.setdefault(stream, _Totals()).include(totals)

    def add_choices(
        self, expected: Choices | None, got: Choices | None, masks: Mapping[str, Tensor]
    ) -> None:
        """What both chose on one batch."""
        if expected is None or got is None:
            return
        mine: dict[Choice, list[Tensor]] = {}
        for choice, places in got.made:
            mine.setdefault(choice, []).append(places)
        for choice, places in expected.made:
            others = mine.get(choice)
            other = changed(places, others.pop(0) if others else places[:0], masks)
            name = f"{choice[0]}:{choice[1]}" if choice[1] else choice[0]
            _, tokens, count = self.choices.get(name, (0, 0, 0))
            chosen = places.shape[-1], tokens + len(other), count + int(other.sum())
            self.choices[name] = chosen

    def add(
        self, x: Tensor, y: Tensor, axes: Axes, masks: Mapping[str, Tensor], logits: bool
    ) -> None:
        """Both first outputs on one batch."""
        at = axes.rows
        if at is None or at == axes.tokens or x.numel() <= MOST_VALUES:
            self._add(x.double(), y.double(), axes, masks, logits)
            return
        count = x.shape[at]
        step = max(1, MOST_VALUES * count // x.numel())
        for i in range(0, count, step):
            rows = min(step, count - i)
            few = {k: m[i : i + rows] if len(m) == count else m for k, m in masks.items()}
            one, two = (t.narrow(at, i, rows).double() for t in (x, y))
            self._add(one, two, axes, few, logits)

    def _add(
        self, x: Tensor, y: Tensor, axes: Axes, masks: Mapping[str, Tensor], logits: bool
    ) -> None:
        places = {d for d in (axes.rows, axes.tokens) if d is not None} or {0}
        mask = axes.mask(masks, x)
        valid = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
        self.difference += float((x - y)[valid].square().sum())
        self.power += float(x[valid].square().sum())
        self.vectors &= x.dim() > 1 + max(places) and x.shape[-1] > 1
        self.logits &= logits
        self.inputs += x.shape[axes.rows or 0]
        x, y = (v.unsqueeze(-1) if x.dim() - 1 in places else v for v in (x, y))
        valid = valid.view(*x.shape[:-1], -1)[..., 0]
        self.tokens += int(valid.sum())
        self.single.append(_token_errors(x[valid], y[valid]))
        self.cosine += float(F.cosine_similarity(x[valid], y[valid], dim=-1).sum())
        self.agreement += float((x[valid].argmax(-1) == y[valid].argmax(-1)).sum())
        a, b = (_pool(v, valid, axes) for v in (x, y))
        self.pooled += float(F.cosine_similarity(a, b, dim=-1).sum())

    def comparison(self) -> Comparison:
        """The means."""
        single = torch.cat(self.single)
        return Comparison(
            error=(self.difference / max(self.power, 1e-300)) ** 0.5,
            cosine=self.cosine / self.tokens if self.vectors else None,
            cosine_pooled=self.pooled / self.inputs if self.vectors else None,
            agreement=self.agreement / self.tokens if self.vectors and self.logits else None,
            tokens=self.tokens,
            inputs=self.inputs,
            median=float(single.median()),
            p999=float(single.quantile(0.999)),
            worst=float(single.max()),
            choices=self.choices,
            positions=self.positions,
        )


def _token_errors(x: Tensor, y: Tensor) -> Tensor:
    """Norm of each token's difference over the norm of what the float model gives."""
    x, y = (t.reshape(len(t), -1) for t in (x, y))
    size: Tensor = x.norm(dim=-1)
    difference: Tensor = (x - y).norm(dim=-1)
    return difference / size.clamp_min(1e-300)


def _has_logits(output: Any) -> bool:
    """Whether the first output is a score for each of several answers."""
    logits = (getattr(output, name, None) for name in ("logits", "prediction_logits"))
    return any(x is first_output(output) for x in logits)


def mask_at(run: Run, site: Site, x: Tensor) -> Tensor | None:
    """The mask of the unpadded tokens at a site; None if all are, or tokens are summed over."""
    mask = None if site.kind == "conv" else run.mask_at(site.name, x)
    return None if mask is None or mask.shape[-1] > 1 else mask


def site_rows(run: Run, site: Site, x: Tensor) -> Tensor:
    """Values at a site, channels last, with one row per unpadded token."""
    mask = mask_at(run, site, x)
    if site.kind in ("query", "key", "value"):
        x = x.transpose(1, 2).flatten(2)
        mask = None if mask is None else mask.transpose(1, 2).flatten(2)
    rows = x.reshape(-1, x.shape[-1])
    return rows if mask is None else rows[mask.expand(*x.shape[:-1], 1).flatten()]


def _dimension(moments: Moments) -> tuple[int | None, float | None]:
    """PCA-95 and participation ratio; None where nothing varies."""
    if moments.rows < 2:
        return None, None
    variances = moments.variances()
    if variances[0] <= 0:
        return None, None
    return pca_count(variances), participation_ratio(variances)


def count_spikes(code: WeightedCode, integers: Tensor) -> Tensor:
    """Spikes that encode each integer; none for a value that is not finite."""
    integers = integers.nan_to_num(0, 0, 0)
    if code.levels >= TABLE_LEVELS:
        return code.encode_integers(integers).sum(tuple(range(code.neurons)))
    every = torch.arange(code.levels + 1, dtype=torch.float32, device=integers.device)
    table = code.encode_integers(every).sum(tuple(range(code.neurons)))
    return table.to(integers.dtype)[integers.abs().long()]


def _pool(x: Tensor, valid: Tensor, axes: Axes) -> Tensor:
    """Mean over the unpadded tokens of each row."""
    if axes.tokens is None or axes.rows is None or axes.tokens == axes.rows:
        return x
    weight = valid[..., None].to(x.dtype)
    return (x * weight).sum(axes.tokens) / weight.sum(axes.tokens).clamp_min(1)
