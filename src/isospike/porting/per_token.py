"""What was measured of a port, part by part, for each token of its first output."""

from collections.abc import Mapping, Sequence

from torch import nn

from isospike.dimension import is_capped
from isospike.energy import Counts
from isospike.hf.batches import Batch, count_positions
from isospike.hf.modules import layer_name
from isospike.porting.measure import Comparison, SiteSums, Spread
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct
from isospike.porting.records import ChoiceReport, CircuitReport, SiteReport, StreamReport
from isospike.porting.run import CircuitStats
from isospike.porting.streams import unit
from isospike.porting.trace import count_float_ops

WEIGHTED = ("linear", "conv")  # kinds of sites before a product with a weight


def site_reports(
    ported: Ported, sums: Mapping[str, SiteSums], tokens: int, shares: Mapping[str, float]
) -> list[SiteReport]:
    """What was measured at each site, per token; ``shares`` is an allocation's prediction."""
    reports = []
    for site in ported.sites:
        t = sums.get(site.name)
        if t is None or t.values == 0:
            continue
        t.close()
        spread = t.spread or Spread(0, 0.0, None, None)
        neurons = t.values * site.code.neurons / tokens
        centred = t.squared - spread.rows * spread.resting
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
                pca95=spread.pca95,
                participation=spread.participation,
                capped=spread.pca95 is not None and is_capped(float(spread.pca95), spread.rows),
                share=shares.get(site.name),
                outside=site.share_outside,
                gain_ops=t.gain_ops / tokens,
                stream=ported.run.streams.name_at(site.name),
            )
        )
    return reports


def choice_reports(comparison: Comparison) -> list[ChoiceReport]:
    """What the model chooses, in order of execution."""
    return [
        ChoiceReport(name, layer_name(name), chosen, tokens, other / max(1, tokens))
        for name, (chosen, tokens, other) in comparison.choices.items()
    ]


def stream_reports(
    ported: Ported, reports: Sequence[SiteReport], comparison: Comparison
) -> list[StreamReport]:
    """The figures of each stream; none if the model has one."""
    streams = ported.run.streams
    found = []
    for stream, name in streams.names.items() if streams.several else ():
        own = [site for site in reports if site.stream == name]
        count = comparison.positions.get(stream, 0)
        first = stream == streams.first
        output = "" if first else streams.output(stream) or ""
        measured = comparison if first else comparison.streams.get(stream)
        each = comparison.tokens / max(1, count)  # reports are for a token of the first output
        kinds = ("values", "spikes", "synaptic_ops", "neuron_updates", "macs")
        sums = {kind: sum((getattr(s, kind) for s in own), 0.0) * each for kind in kinds}
        found.append(
            StreamReport(
                name=name,
                unit=unit(stream),
                positions=count,
                sites=len(own),
                output=output,
                error=None if measured is None else measured.error,
                worst=None if measured is None else measured.worst,
                **sums,
            )
        )
    return found


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
    streams = ported.run.streams
    padded = streams.count(batch, padding=True) if streams.several else count_positions(batch)
    count = float(padded)
    gains = sum((s.gain_ops for s in reports), 0.0)
    float_ops = {k: v / count for k, v in count_float_ops(model, batch).items()}
    spiking = float_ops if left is None else {k: float(v) for k, v in left.items()}
    spiking = {**spiking, "gain": gains} if gains else spiking
    weighted = [s for s in ported.sites if s.kind in WEIGHTED] or ported.sites
    products = [p for p in ported.products if isinstance(p, SpikingProduct)]
    weights = sum(p.weight.numel() for p in products)
    return Counts(
        macs=sum((s.macs for s in reports), 0.0),
        synaptic_ops=sum((s.synaptic_ops for s in populations), 0.0),
        spikes=sum((s.spikes for s in populations), 0.0),
        neuron_updates=sum((s.neuron_updates for s in populations), 0.0),
        neurons=sum((s.neurons for s in populations), 0.0),
        bits=max(site.code.bits for site in weighted),
        float_ops=float_ops,
        weights=weights,
        activations=sum((s.values for s in reports), 0.0),
        steps=max(s.steps for s in reports),
        tokens_per_input=tokens,
        spiking_float_ops=spiking if gains or left is not None else None,
        weight_bits=sum(p.weight_bits * p.weight.numel() for p in products) / max(1, weights)
        or 16.0,
    )
