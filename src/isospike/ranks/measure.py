"""Measurements of one forward pass: layer by layer, sequence by sequence."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import InputError, ShapeError, UnsupportedError
from isospike.progress import update
from isospike.ranks.circuits import CircuitRow, circuit_rows
from isospike.ranks.collapse import (
    Collapse,
    MapMeasures,
    generic_rank,
    measure_collapse,
    measure_maps,
)
from isospike.ranks.heads import HeadAmbiguity, invert_heads
from isospike.ranks.norms import NormRank, norm_rank
from isospike.ranks.numerical import NumericalRank, affine_rank, numerical_rank
from isospike.ranks.record import AttentionRecord, LayerRecord, NormRecord, record
from isospike.ranks.shares import Kept, KeptAttention, KeptLayer, head_shares

MEASURED_WITHOUT_FIRST = ("input", "output")
KEPT = "_kept"  # attribute of measurements, in memory only


@dataclass(frozen=True)
class SiteRow:
    """Measures of one sequence at one site of a layer.

    The sites are ``input``: the residual stream before the first layer; ``attention``: what an
    attention adds to it; ``after attention``: residual stream after adding it; ``mlp``: what is
    added after the attentions; ``output``: residual stream after the layer.

    Attributes:
        layer: Name of the layer.
        site: Name of the site.
        sequence: Index of the sequence in the batch.
        tokens: Number of unpadded tokens n.
        width: Width of the model, d.
        dtype: Type in which the activations were computed.
        distinct: Number of different rows.
        rank, affine: Numerical and affine rank; None in a control.
        predicted: Rank for almost all weights, given the rank of the attention's input; None at
            other sites.
        collapse: Measures of collapse of all tokens.
        without_first: The same without the first token, which is often the largest; at ``input``
            and ``output`` for at least three tokens, None elsewhere.
    """

    layer: str
    site: str
    sequence: int
    tokens: int
    width: int
    dtype: str
    distinct: int
    rank: NumericalRank | None
    affine: NumericalRank | None
    predicted: int | None
    collapse: Collapse
    without_first: Collapse | None


@dataclass(frozen=True)
class NormRow:
    """One normalisation of one sequence.

    Attributes:
        name: Name of the module.
        sequence: Index of the sequence in the batch.
        tokens: Number of unpadded tokens.
        width: Number of channels.
        result: Ranks before and after.
    """

    name: str
    sequence: int
    tokens: int
    width: int
    result: NormRank


@dataclass(frozen=True)
class HeadRow:
    """One attention map.

    Attributes:
        layer: Name of the layer.
        head: Index of the head.
        sequence: Index of the sequence in the batch.
        ratio: Second singular value over the first.
        entropy: Entropy of the rows over its maximum.
    """

    layer: str
    head: int
    sequence: int
    ratio: float
    entropy: float


@dataclass(frozen=True)
class LayerRow:
    """New directions that attention and the MLP of a layer add, for one sequence.

    Attributes:
        layer: Name of the layer.
        sequence: Index of the sequence in the batch.
        tokens: Number of unpadded tokens.
        attention_adds: Directions of the attention's output outside the row space of the input;
            None where it has another width.
        mlp_adds: Directions of the MLP's output outside both; None without an MLP.
        mlp_outside: Share of the MLP's squared norm in these directions.
        recovered: Largest error of the heads' outputs recovered from the attention's output,
            relative to their largest value.
        summed: Largest difference between that output and the sum of the heads' contributions,
            relative to its largest value.
    """

    layer: str
    sequence: int
    tokens: int
    attention_adds: int | None
    mlp_adds: int | None
    mlp_outside: float | None
    recovered: float
    summed: float


@dataclass(frozen=True)
class ProjectionRow:
    """The output projection of a layer.

    Attributes:
        layer: Name of the layer.
        result: Which heads can be recovered.
    """

    layer: str
    result: HeadAmbiguity


@dataclass(frozen=True, kw_only=True)
class ForwardMeasurements:
    """All measurements of one forward pass.

    Attributes:
        sites: One row for each layer, site and sequence.
        norms: One row for each normalisation and sequence.
        heads: One row for each attention map.
        layers: One row for each layer and sequence.
        projections: One row for each layer.
        circuits: One row for each head.
        unknown_norms: Names of modules that are neither LayerNorm nor RMSNorm.
        left_out: Names of layers in which no projection was recognised after their attention.
    """

    sites: tuple[SiteRow, ...]
    norms: tuple[NormRow, ...]
    heads: tuple[HeadRow, ...]
    layers: tuple[LayerRow, ...]
    projections: tuple[ProjectionRow, ...]
    circuits: tuple[CircuitRow, ...]
    unknown_norms: tuple[str, ...]
    left_out: tuple[str, ...]

    def at(self, layer: str, site: str) -> list[SiteRow]:
        """The rows of one site, sequence by sequence.

        Args:
            layer: Name of the layer.
            site: Name of the site.

        Returns:
            The rows; none if the layer has no such site.
        """
        return [s for s in self.sites if (s.layer, s.site) == (layer, site)]


def measure_forward(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    outputs_only: bool = False,
    like: "ForwardMeasurements | None" = None,
    what: str = "measure",
) -> ForwardMeasurements:
    """Run the model once and measure each layer as soon as it is done.

    Args:
        model: A model that :func:`isospike.ranks.record.record` understands.
        batch: Arguments of its forward.
        outputs_only: Measure only the collapse of the layers' outputs and the attention maps.
        like: Measurements of a model of the same modules on inputs of the same shapes: its layers
            are then not searched again.
        what: Name of the phase, for progress.

    Returns:
        The measurements.

    Raises:
        UnsupportedError: The model has no attention that hooks can see, or no layer with a
            projection after it.
        InputError: A sequence has fewer than two unpadded tokens.
        RangeError: An activation of an unpadded token is NaN or infinite.
    """
    model = getattr(model, "_orig_mod", model)
    total = getattr(getattr(model, "config", None), "num_hidden_layers", None) or 0
    rows = _Rows()
    done = 0

    def on_layer(layer: LayerRecord) -> None:
        nonlocal done
        if layer.x.shape[1] > 1:
            _check_tokens(layer.mask)
            rows.add_layer(layer, outputs_only)
        else:
            rows.short.append(layer.name)
        done += 1
        update(what, done, max(total, done))

    def on_norm(norm: NormRecord) -> None:
        if not outputs_only:
            rows.add_norm(norm)
            rows.kept.norm = norm.module, norm.tokens.of(norm.x), norm.tokens.of(norm.y)

    update(what, 0, total or 1)
    plan = None if like is None else vars(like)[KEPT].plan
    left_out, rows.kept.plan = record(model, batch, on_layer, on_norm, plan)
    if not rows.sites:
        if rows.short:
            _check_tokens(torch.ones(1, 1, dtype=torch.bool))
        raise UnsupportedError(
            f"measure_ranks needs layers with a linear projection after their attention, got "
            f"{', '.join(left_out)} of {type(model).__name__} without one. Measure another model."
        )
    update(what, total or 1, total or 1)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(head, nn.Linear):
        rows.kept.unembedding = head.weight, head.bias
    found = ForwardMeasurements(
        sites=tuple(rows.sites),
        norms=tuple(rows.norms),
        heads=tuple(rows.heads),
        layers=tuple(rows.layers),
        projections=tuple(rows.projections),
        circuits=tuple(rows.circuits),
        unknown_norms=tuple(rows.unknown_norms),
        left_out=left_out,
    )
    vars(found)[KEPT] = rows.kept
    return found


class _Rows:
    """The rows of one forward pass, as they come."""

    def __init__(self) -> None:
        self.sites: list[SiteRow] = []
        self.norms: list[NormRow] = []
        self.heads: list[HeadRow] = []
        self.layers: list[LayerRow] = []
        self.projections: list[ProjectionRow] = []
        self.circuits: list[CircuitRow] = []
        self.kept = Kept()
        self._before: Tensor | None = None  # output of the layer before
        self.unknown_norms: list[str] = []
        self.short: list[str] = []  # layers that read a single token
        self._inverted: dict[tuple[int, ...], tuple[tuple[HeadAmbiguity, Tensor], Tensor]] = {}

    def add_layer(self, layer: LayerRecord, outputs_only: bool) -> None:
        for attention in layer.attentions:
            self._add_maps(attention, layer.mask)
        if outputs_only:
            for sequence, y in enumerate(layer.y):
                output = y[_rows(layer.mask, sequence, y)]
                self.sites.append(_site_row(layer.name, "output", sequence, output, None, None))
            return
        inverses = []
        for attention in layer.attentions:
            ambiguity, inverse = self._invert(attention)
            self.projections.append(ProjectionRow(attention.name, ambiguity))
            self.circuits += circuit_rows(attention.name, attention.circuits)
            inverses.append(inverse)
        for norm in layer.norms:
            self.add_norm(norm)
        for sequence in range(len(layer.x)):
            self._add_sequence(layer, sequence, inverses)
        self._keep(layer)

    def _keep(self, layer: LayerRecord) -> None:
        """What shares of heads and logits are computed of."""
        before, self._before = self._before, layer.y
        same = before is not None and before.shape == layer.x.shape and before.equal(layer.x)
        attentions = []
        for a in layer.attentions:
            p = a.projection
            attentions.append(
                KeptAttention(a.name, p.heads, p.z, p.weight, p.bias, p.y, a.added, a.circuits)
            )
        self.kept.layers.append(
            KeptLayer(layer.name, None if same else layer.x, layer.mask, attentions, layer.mlp)
        )

    def _invert(self, attention: AttentionRecord) -> tuple[HeadAmbiguity, Tensor]:
        """Once for a weight that several calls share."""
        weight = attention.projection.weight
        key = (weight.data_ptr(), *weight.shape, *weight.stride())
        if key not in self._inverted:
            found = invert_heads(weight, attention.projection.heads, weight.dtype)
            self._inverted = {key: (found, weight)}  # held, so that its address stays its own
        return self._inverted[key][0]

    def _add_maps(self, attention: AttentionRecord, mask: Tensor) -> None:
        if attention.maps is None:
            return
        for sequence, entries in enumerate(attention.entries):
            maps = _measure_maps(attention, entries, mask, sequence)
            self.heads += [
                HeadRow(attention.name, h, sequence, ratio, entropy)
                for h, (ratio, entropy) in enumerate(zip(maps.ratio, maps.entropy, strict=True))
            ]

    def _add_sequence(self, layer: LayerRecord, sequence: int, inverses: list[Tensor]) -> None:
        mask = layer.mask

        def rows(x: Tensor) -> Tensor:
            one = x[min(sequence, len(x) - 1)]
            return one[_rows(mask, sequence, one)]

        x = rows(layer.x)
        rank = numerical_rank(x)
        if not any(row.site == "input" and row.sequence == sequence for row in self.sites):
            self._add_site(layer.name, "input", sequence, x, rank)
        mlp = None if layer.mlp is None else rows(layer.mlp)
        for i, (a, inverse) in enumerate(zip(layer.attentions, inverses, strict=True)):
            before, added = rows(a.before), rows(a.added)
            own = before.shape == x.shape and before.equal(x)
            ranks = (rank if own else numerical_rank(before)), numerical_rank(added)
            predicted = _predict(a, rows(a.read), ranks[0], before.shape[1])
            self.layers.append(
                _layer_row(a, sequence, rows, (before, added, None if i else mlp), ranks, inverse)
            )
            self._add_site(a.name, "attention", sequence, added, ranks[1], predicted[0])
            if a.after is not None:
                self._add_site(a.name, "after attention", sequence, rows(a.after), None,
                               predicted[1])  # fmt: skip
        if mlp is not None:
            self._add_site(layer.name, "mlp", sequence, mlp)
        self._add_site(layer.name, "output", sequence, rows(layer.y))

    def _add_site(
        self, layer: str, site: str, sequence: int, part: Tensor,
        rank: NumericalRank | None = None, predicted: int | None = None,
    ) -> None:  # fmt: skip
        rank = numerical_rank(part) if rank is None else rank
        self.sites.append(_site_row(layer, site, sequence, part, rank, predicted))

    def add_norm(self, norm: NormRecord) -> None:
        inputs, outputs = norm.tokens.of(norm.x), norm.tokens.of(norm.y)
        mask = norm.tokens.mask_of(inputs)
        for sequence, rows in enumerate(mask):
            if norm.name in self.unknown_norms or int(rows.sum()) < 2:
                return
            x, y = inputs[sequence, rows], outputs[sequence, rows]
            try:
                result = norm_rank(x, norm.module, output=y)
            except (UnsupportedError, ShapeError):  # or over other axes than the channels
                self.unknown_norms.append(norm.name)
                return
            self.norms.append(NormRow(norm.name, sequence, len(x), x.shape[1], result))


def _rows(mask: Tensor, sequence: int, x: Tensor) -> Tensor:
    """The unpadded tokens of ``x [tokens, channels]``; all if it has others than the mask."""
    if sequence < len(mask) and len(x) == mask.shape[1]:
        return mask[sequence]
    return torch.ones(len(x), dtype=torch.bool)


def _measure_maps(
    attention: AttentionRecord, entries: Tensor, mask: Tensor, sequence: int
) -> MapMeasures:
    """Of one sequence: each head's, or the mean over its windows."""
    found: Any = attention.maps
    if not bool((entries == entries[0]).all()):
        parts = [measure_maps(found[torch.unique(entries[:, h]).long()].float())
                 for h in range(entries.shape[1])]  # fmt: skip
        ratios, entropies = ([statistics.mean(v) for v in values] for values in zip(*parts,
                             strict=True))  # fmt: skip
        return MapMeasures(tuple(ratios), tuple(entropies))
    maps = found[entries[0].long()]
    fits = sequence < len(mask) and maps.shape[1] == mask.shape[1]
    if fits:
        maps = maps[:, mask[sequence]]
    if fits and maps.shape[2] == mask.shape[1] and not attention.cross:
        maps = maps[:, :, mask[sequence]]
    elif attention.cross:  # whose padding nobody sees
        maps = maps[:, :, (maps != 0).flatten(0, 1).any(0)]
    return measure_maps(maps)


def _site_row(
    layer: str,
    site: str,
    sequence: int,
    part: Tensor,
    rank: NumericalRank | None,
    predicted: int | None,
) -> SiteRow:
    first = site in MEASURED_WITHOUT_FIRST and len(part) > 2
    return SiteRow(
        layer=layer,
        site=site,
        sequence=sequence,
        tokens=len(part),
        width=part.shape[1],
        dtype=str(part.dtype).removeprefix("torch."),
        distinct=len(torch.unique(part, dim=0)),
        rank=rank,
        affine=None if rank is None else affine_rank(part),
        predicted=predicted,
        collapse=_collapse(part),
        without_first=_collapse(part[1:]) if first else None,
    )


def _collapse(x: Tensor) -> Collapse:
    """NaN for zeros, the output of a projection whose weights are all 0."""
    return measure_collapse(x) if bool(x.any()) else Collapse(*[math.nan] * len(Collapse._fields))


def _predict(
    attention: AttentionRecord, read: Tensor, rank: NumericalRank, width: int
) -> tuple[int | None, int | None]:
    """Generic ranks of what attention adds and of the stream with it, from the rank of the stream
    and of the rows that attention reads; None where the values are another sequence's."""
    projection = attention.projection
    if attention.cross:
        return None, None
    # With biases the affine rank counts.
    biased = projection.bias is not None
    source = affine_rank(read) if biased else numerical_rank(read)
    head_width = len(projection.weight) // projection.heads
    z, _ = generic_rank(len(read), width, source.rank, projection.heads, head_width, bias=biased)
    return z, min(len(read), width, rank.rank + z)


def _layer_row(
    attention: AttentionRecord,
    sequence: int,
    rows: Callable[[Tensor], Tensor],
    parts: tuple[Tensor, Tensor, Tensor | None],
    ranks: tuple[NumericalRank, NumericalRank],
    inverse: Tensor,
) -> LayerRow:
    projection, (before, added, mlp) = attention.projection, parts
    adds = mlp_adds = outside = None
    if before.shape[1] == added.shape[1]:
        both = torch.cat([_unit(before), _unit(added)])
        span = numerical_rank(both, before.dtype).rank
        adds = span - ranks[0].rank
    if mlp is not None and adds is not None and mlp.shape[1] == added.shape[1]:
        unit, mlp_adds = _unit(mlp), 0
        if span < both.shape[1]:
            mlp_adds = numerical_rank(torch.cat([both, unit]), mlp.dtype).rank - span
        outside = _outside(unit, both, span) if mlp_adds else 0.0
    # The projection's own output: a norm may follow before it is added.
    total, z = rows(projection.y).double().cpu(), rows(projection.z).double().cpu()
    plain = total if projection.bias is None else total - projection.bias.double().cpu()
    wide = z.view(len(z), projection.heads, -1)
    back = (plain @ inverse).view(wide.shape)
    summed = head_shares(z, projection.weight, projection.heads).sum(1)
    return LayerRow(
        layer=attention.name,
        sequence=sequence,
        tokens=len(z),
        attention_adds=adds,
        mlp_adds=mlp_adds,
        mlp_outside=outside,
        recovered=float((back - wide).abs().max() / wide.abs().max().clamp_min(1e-300)),
        summed=float((summed - plain).abs().max() / total.abs().max().clamp_min(1e-300)),
    )


def _unit(x: Tensor) -> Tensor:
    """The matrix scaled to norm 1, so that parts of different size can be compared."""
    wide = x.double().cpu()
    unit: Tensor = wide / wide.norm().clamp_min(1e-300)
    return unit


def _outside(part: Tensor, span: Tensor, rank: int) -> float:
    """Share of the squared norm of ``part`` outside the leading directions of ``span``."""
    basis = torch.linalg.svd(span, full_matrices=False).Vh[:rank]
    rest = part - part @ basis.T @ basis
    return float(rest.square().sum() / part.square().sum())


def _check_tokens(mask: Tensor) -> None:
    """Raise InputError unless each sequence has at least two unpadded tokens."""
    counts = mask.sum(1)
    if int(counts.min()) < 2:
        at = int(counts.argmin())
        raise InputError(
            f"measure_ranks needs at least 2 unpadded tokens in each sequence, got "
            f"{int(counts[at])} in sequence {at}. Leave it out."
        )
