"""Measure a calibrated port against the float model, on inputs it has not seen."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike import progress
from isospike.codes import WeightedCode
from isospike.dimension import (
    Dimension,
    EffectiveDimension,
    Moments,
    is_capped,
    participation_ratio,
    pca_count,
)
from isospike.energy import Counts
from isospike.errors import RangeError, UnsupportedError
from isospike.hf.batches import Batch, batch_size, first_output, over_tokens, rows_of, token_mask
from isospike.hf.modules import layer_name
from isospike.kernels.product.trains import spike_steps
from isospike.porting.discover import discover
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.records import CircuitReport, Raster, SiteReport
from isospike.porting.run import CircuitStats, Run, Watcher
from isospike.porting.sites import Site
from isospike.porting.trace import count_float_ops

TABLE_LEVELS = 2**16  # up to here spikes are counted by looking them up
RASTER_NEURONS = 40  # ON neurons shown


@dataclass(frozen=True)
class Comparison:
    """Two models' first outputs over unpadded tokens.

    Attributes:
        error: Root-mean-square difference over root-mean-square of the float output.
        cosine: Mean over tokens.
        cosine_pooled: Mean over inputs, of the outputs averaged over tokens.
        agreement: Share of equal arg-max; None unless the model returns logits.
        tokens: Tokens compared.
        inputs: Rows compared.
    """

    error: float
    cosine: float
    cosine_pooled: float
    agreement: float | None
    tokens: int
    inputs: int


@dataclass
class SiteSums:
    """Sums over all values that passed one site."""

    values: float = 0.0
    spikes: float = 0.0
    synaptic_ops: float = 0.0
    macs: float = 0.0
    squared_error: float = 0.0
    squared: float = 0.0
    moments: Moments | None = None


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
        integers = site.integers(x.movedim(-1, 1) if site.kind == "conv" else x)
        integers = integers.movedim(1, -1) if site.kind == "conv" else integers
        spikes = count_spikes(site.code, integers)
        for mask in (live, over_tokens(self.run.token_mask, x)):
            if mask is not None:
                spikes = spikes * mask
        total = float(spikes.sum(dtype=torch.float64))
        self.sites[site.name] = self.sites.get(site.name, 0.0) + total

    def on_circuit(self, stats: CircuitStats) -> None:
        self.circuits.append(stats.spikes)


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
        sums = self.sites.setdefault(site.name, SiteSums())
        keep = self._keep(x, live)
        integers = site.integers(x.movedim(-1, 1) if site.kind == "conv" else x)
        decoded = torch.addcmul(site.offset, integers, site.amplitude)
        if site.kind == "conv":
            integers, decoded = integers.movedim(1, -1), decoded.movedim(1, -1)
        spikes = count_spikes(site.code, integers) * keep
        sums.values += float(keep.sum())
        sums.spikes += float(spikes.sum(dtype=torch.float64))
        sums.synaptic_ops += float((spikes * fan_out).sum(dtype=torch.float64))
        if macs:
            sums.macs += float((keep * fan_out).sum(dtype=torch.float64))
        sums.squared_error += float(((decoded - x).square() * keep).sum(dtype=torch.float64))
        sums.squared += float((x.square() * keep).sum(dtype=torch.float64))
        if self.dimension and site.kind != "probability":
            rows = site_rows(self.run, site.kind, x)
            sums.moments = sums.moments or Moments(rows.shape[1])
            sums.moments.update(rows)

    def on_circuit(self, stats: CircuitStats) -> None:
        self.circuits.append(stats)

    def _keep(self, x: Tensor, live: Tensor | None) -> Tensor:
        """1 where a value belongs to an unpadded token, of the shape of ``x``."""
        keep = torch.ones_like(x) if live is None else live.to(x.dtype).expand_as(x).clone()
        mask = over_tokens(self.run.token_mask, x)
        return keep if mask is None else keep * mask


def compare(
    model: nn.Module,
    ported: Ported,
    batches: Sequence[Batch],
    meter: Watcher | None = None,
    expected: Sequence[Any] = (),
) -> Comparison:
    """Run both models on the same inputs.

    Args:
        model: The float model.
        ported: Its calibrated port.
        batches: Inputs neither was calibrated on.
        meter: Sees what passes the port.
        expected: What the float model gives for the batches; computed here if empty.
    """
    difference = power = cosine = pooled = agreement = 0.0
    tokens = inputs = 0
    has_logits = False
    for i, batch in enumerate(batches):
        valid = token_mask(batch)
        with torch.no_grad():
            true = expected[i] if expected else model(**batch)
            with ported.run.watching(meter, valid):
                got = ported.model(**batch)
        has_logits = hasattr(true, "logits")
        x, y = first_output(true).double(), first_output(got).double()
        if valid is None or x.shape[:2] != valid.shape:
            valid = torch.ones(x.shape[: max(1, x.dim() - 1)], dtype=torch.bool)
        difference += float((x - y)[valid].square().sum())
        power += float(x[valid].square().sum())
        cosine += float(F.cosine_similarity(x[valid], y[valid], dim=-1).sum())
        agreement += float((x[valid].argmax(-1) == y[valid].argmax(-1)).sum())
        pooled += float(F.cosine_similarity(_pool(x, valid), _pool(y, valid), dim=-1).sum())
        tokens += int(valid.sum())
        inputs += len(x)
    return Comparison(
        error=(difference / max(power, 1e-300)) ** 0.5,
        cosine=cosine / tokens,
        cosine_pooled=pooled / inputs,
        agreement=agreement / tokens if has_logits else None,
        tokens=tokens,
        inputs=inputs,
    )


def site_reports(
    ported: Ported, sums: Mapping[str, SiteSums], tokens: int, shares: Mapping[str, float]
) -> list[SiteReport]:
    """What was measured at each site, per token; ``shares`` is an allocation's prediction."""
    reports = []
    for site in ported.sites:
        t = sums.get(site.name)
        if t is None or t.values == 0:
            continue
        pca95, participation = _dimension(t.moments)
        neurons = t.values * site.code.neurons / tokens
        centred = t.squared
        if t.moments is not None:
            centred -= t.moments.rows * float(t.moments.mean.square().sum())
        reports.append(
            SiteReport(
                name=site.name,
                layer=layer_name(site.name),
                kind=site.kind,
                code=site.code.name,
                steps=site.code.steps,
                values=t.values / tokens,
                neurons=neurons,
                spikes=t.spikes / tokens,
                synaptic_ops=t.synaptic_ops / tokens,
                neuron_updates=neurons * site.code.steps,
                macs=t.macs / tokens,
                error=(t.squared_error / max(centred, 1e-300)) ** 0.5,
                pca95=pca95,
                participation=participation,
                capped=t.moments is not None
                and pca95 is not None
                and is_capped(float(pca95), t.moments.rows),
                share=shares.get(site.name),
            )
        )
    return reports


def circuit_reports(stats: Sequence[CircuitStats], tokens: int) -> list[CircuitReport]:
    """What each circuit did, per token, in order of execution."""
    by_name: dict[tuple[str, str], list[CircuitStats]] = {}
    for each in stats:
        by_name.setdefault((each.name, each.kind), []).append(each)

    def total(group: list[CircuitStats], what: str) -> float:
        return sum((float(getattr(each, what)) for each in group), 0.0)

    return [
        CircuitReport(
            name=name,
            layer=layer_name(name),
            kind=kind,
            values=total(group, "values") / tokens,
            neurons=total(group, "neurons") / tokens,
            spikes=total(group, "spikes") / tokens,
            synaptic_ops=total(group, "synaptic_ops") / tokens,
            neuron_updates=total(group, "neuron_updates") / tokens,
            error=(total(group, "squared_error") / max(total(group, "squared"), 1e-300)) ** 0.5,
        )
        for (name, kind), group in by_name.items()
    ]


def counts(
    model: nn.Module,
    ported: Ported,
    reports: Sequence[SiteReport],
    batch: Batch,
    tokens: float,
    circuits: Sequence[CircuitReport] = (),
    left: Mapping[str, int] | None = None,
) -> Counts:
    """Operations per token of the whole model.

    Args:
        model: The float model.
        ported: Its port.
        reports: Its sites.
        batch: Inputs to count the float model's operations on.
        tokens: Mean number per input.
        circuits: Its circuits.
        left: Non-linear float operations found in the port, if functions run on spikes.
    """
    populations: list[SiteReport | CircuitReport] = [*reports, *circuits]
    valid = token_mask(batch)
    positions = float(batch_size(batch)) if valid is None else float(valid.numel())
    if valid is None and isinstance(batch.get("input_ids"), Tensor):
        positions = float(batch["input_ids"].numel())
    return Counts(
        macs=sum((s.macs for s in reports), 0.0),
        synaptic_ops=sum((s.synaptic_ops for s in populations), 0.0),
        spikes=sum((s.spikes for s in populations), 0.0),
        neuron_updates=sum((s.neuron_updates for s in populations), 0.0),
        neurons=sum((s.neurons for s in populations), 0.0),
        bits=max(site.code.bits for site in ported.sites),
        float_ops={k: v / positions for k, v in count_float_ops(model, batch).items()},
        weights=sum(p.weight.numel() for p in ported.products if isinstance(p, SpikingProduct)),
        activations=sum((s.values for s in reports), 0.0),
        steps=max(s.steps for s in reports),
        tokens_per_input=tokens,
        spiking_float_ops=None if left is None else {k: float(v) for k, v in left.items()},
    )


def site_dimensions(
    model: nn.Module,
    batches: Sequence[Batch],
    make: Callable[[], EffectiveDimension],
) -> dict[str, tuple[str, Dimension]]:
    """Kind and effective dimension of every site of a float model: nothing is coded.

    Args:
        model: The float model.
        batches: Its inputs; only unpadded tokens count.
        make: An estimator for each site.

    Returns:
        By name of the site, in order of execution.

    Raises:
        UnsupportedError: The model has no site, or cannot be ported.
        RangeError: NaN, infinity or constant values at a site, which is named.
    """
    opened = discover(model, rows_of(batches[0], slice(0, 2))).template
    rows = _Rows(opened.run, make)
    for done, batch in enumerate(batches, 1):
        rows.seen.clear()
        with torch.no_grad(), opened.run.watching(rows, token_mask(batch)):
            opened.model(**batch)
        progress.update("run the model", done, len(batches))
    found = rows.estimators
    if not found:
        raise UnsupportedError(
            f"dimension needs a model with matrix products, got a {type(model).__name__} without. "
            "Give a transformer."
        )
    measured = {}
    for done, (name, (kind, estimator)) in enumerate(found.items(), 1):
        with _at_site(name):
            measured[name] = kind, estimator.dimension_
        progress.update("measure", done, len(found))
    return measured


class _Rows(Watcher):
    """Gives an estimator of each site the values that reach it, once a pass."""

    def __init__(self, run: Run, make: Callable[[], EffectiveDimension]) -> None:
        self.run, self.make = run, make
        self.estimators: dict[str, tuple[str, EffectiveDimension]] = {}
        self.seen: set[str] = set()

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        if site.name not in self.seen:
            self.seen.add(site.name)
            _, estimator = self.estimators.setdefault(site.name, (site.kind, self.make()))
            last = x.movedim(1, -1) if site.kind == "conv" else x
            with _at_site(site.name):
                estimator.partial_fit(site_rows(self.run, site.kind, last))
        return x


@contextlib.contextmanager
def _at_site(name: str) -> Iterator[None]:
    try:
        yield
    except RangeError as error:
        raise RangeError(f"at {name}: {error}") from None


def site_rows(run: Run, kind: str, x: Tensor) -> Tensor:
    """Values at a site, channels last, with one row per unpadded token."""
    if kind in ("query", "key", "value"):
        x = x.transpose(1, 2).flatten(2)
    return run.rows(x)


def _dimension(moments: Moments | None) -> tuple[int | None, float | None]:
    """PCA-95 and participation ratio; None where nothing varies."""
    if moments is None or moments.rows < 2:
        return None, None
    variances = moments.variances()
    if variances[0] <= 0:
        return None, None
    return pca_count(variances), participation_ratio(variances)


class _FirstLinear(Watcher):
    """Keeps what entered the first linear site."""

    def __init__(self) -> None:
        self.seen: list[tuple[Site, Tensor]] = []

    def on_site(self, site: Site, x: Tensor, **_: Any) -> None:
        if site.kind == "linear" and x.dim() == 3 and not self.seen:
            self.seen.append((site, x))


def record_raster(ported: Ported, batch: Batch) -> Raster | None:
    """The spikes of the first row of a batch at the model's first linear site."""
    row = rows_of(batch, slice(0, 1))
    watcher = _FirstLinear()
    with torch.no_grad(), ported.run.watching(watcher):
        ported.model(**row)
    seen = watcher.seen
    if not seen:
        return None
    site, x = seen[0]
    valid = token_mask(row)
    kept = slice(None) if valid is None else valid[0]
    shown = min(RASTER_NEURONS, x.shape[-1])
    words = site.words(x)[0, kept, :shown]
    steps = [s.bool().view(*words.shape, -1) for _, s in spike_steps(site.code, words)]
    spikes = torch.stack(steps).permute(0, 3, 1, 2)  # [steps, neurons, tokens, shown]
    ids = row["input_ids"][0][kept].tolist() if "input_ids" in row else None
    return Raster(
        text=f"first held-back input of {x.shape[1]} tokens",
        site=site.name,
        tokens=tuple(str(i) for i in range(spikes.shape[2])),
        token_ids=None if ids is None else tuple(ids[: spikes.shape[2]]),
        neurons=shown * site.code.neurons,
        steps=site.code.steps,
        spikes=tuple(
            (token, step, sign * shown + neuron)
            for step, sign, token, neuron in spikes.nonzero().tolist()
        ),
    )


def count_spikes(code: WeightedCode, integers: Tensor) -> Tensor:
    """Spikes that spell each integer."""
    if code.levels >= TABLE_LEVELS:
        return code.encode_integers(integers).sum(tuple(range(code.neurons)))
    every = torch.arange(code.levels + 1, dtype=torch.float32)
    table = code.encode_integers(every).sum(tuple(range(code.neurons)))
    return table.to(integers.dtype)[integers.abs().long()]


def _pool(x: Tensor, valid: Tensor) -> Tensor:
    """Mean over the tokens of each row."""
    if x.dim() != 3:
        return x
    weight = valid[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1)
