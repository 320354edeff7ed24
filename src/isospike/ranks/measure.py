"""Measurements of one forward pass: layer by layer, sequence by sequence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import InputError, UnsupportedError
from isospike.progress import update
from isospike.ranks.collapse import Collapse, generic_rank, measure_collapse, measure_maps
from isospike.ranks.heads import HeadAmbiguity, invert_heads
from isospike.ranks.norms import NormRank, norm_rank
from isospike.ranks.numerical import NumericalRank, affine_rank, numerical_rank
from isospike.ranks.record import (
    LayerRecord,
    NormRecord,
    output_weight,
    quantised_input,
    record,
    unpadded,
)

MEASURED_WITHOUT_FIRST = ("input", "output")
_Projection = tuple[Tensor, Tensor | None, Tensor]  # weight, bias, pseudoinverse


@dataclass(frozen=True)
class SiteRow:
    """Measures of one sequence at one site of a layer.

    The sites are ``input``: the residual stream before the first layer; ``attention``: output of
    the attention block; ``after attention``: residual stream after adding it; ``mlp``: output of
    the MLP; ``output``: residual stream after the layer.

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
        attention_adds: Directions of the attention's output outside the row space of the input.
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
    attention_adds: int
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
        unknown_norms: Names of modules that are neither LayerNorm nor RMSNorm.
        left_out: Names of layers in which no projection was recognised after their attention.
    """

    sites: tuple[SiteRow, ...]
    norms: tuple[NormRow, ...]
    heads: tuple[HeadRow, ...]
    layers: tuple[LayerRow, ...]
    projections: tuple[ProjectionRow, ...]
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
    model: nn.Module, batch: Mapping[str, Any], *, outputs_only: bool = False, what: str = "measure"
) -> ForwardMeasurements:
    """Run the model once and measure each layer as soon as it is done.

    Args:
        model: A model that :func:`isospike.ranks.record.record` understands.
        batch: Arguments of its forward.
        outputs_only: Measure only the collapse of the layers' outputs and the attention maps.
        what: Name of the phase, for progress.

    Returns:
        The measurements.

    Raises:
        UnsupportedError: The model has no attention that hooks can see, or no layer with a
            projection after it.
        InputError: A sequence has fewer than two unpadded tokens.
        RangeError: An activation of an unpadded token is NaN or infinite.
    """
    total = getattr(getattr(model, "config", None), "num_hidden_layers", None) or 0
    rows = _Rows()
    done = 0

    def on_layer(layer: LayerRecord) -> None:
        nonlocal done
        rows.add_layer(layer, _unpadded(model, batch, layer.name, layer.x), outputs_only)
        done += 1
        update(what, done, max(total, done))

    def on_norm(norm: NormRecord) -> None:
        if not outputs_only:
            rows.add_norm(norm, _unpadded(model, batch, norm.name, norm.x))

    update(what, 0, total or 1)
    left_out = record(model, batch, on_layer, on_norm)
    if not rows.sites:
        raise UnsupportedError(
            f"measure_ranks needs layers with a linear projection after their attention, got "
            f"{', '.join(left_out)} of {type(model).__name__} without one. Measure another model."
        )
    update(what, total or 1, total or 1)
    return ForwardMeasurements(
        sites=tuple(rows.sites),
        norms=tuple(rows.norms),
        heads=tuple(rows.heads),
        layers=tuple(rows.layers),
        projections=tuple(rows.projections),
        unknown_norms=tuple(rows.unknown_norms),
        left_out=left_out,
    )


class _Rows:
    """The rows of one forward pass, as they come."""

    def __init__(self) -> None:
        self.sites: list[SiteRow] = []
        self.norms: list[NormRow] = []
        self.heads: list[HeadRow] = []
        self.layers: list[LayerRow] = []
        self.projections: list[ProjectionRow] = []
        self.unknown_norms: list[str] = []

    def add_layer(self, layer: LayerRecord, mask: Tensor, outputs_only: bool) -> None:
        weight, bias = output_weight(layer.projection)
        inverse = weight
        if not outputs_only:
            ambiguity, inverse = invert_heads(weight, layer.maps.shape[1], weight.dtype)
            self.projections.append(ProjectionRow(layer.name, ambiguity))
            for norm in layer.norms:
                self.add_norm(norm, mask)
        for sequence, rows in enumerate(mask):
            maps = measure_maps(layer.maps[sequence][:, rows][:, :, rows])
            self.heads += [
                HeadRow(layer.name, h, sequence, ratio, entropy)
                for h, (ratio, entropy) in enumerate(zip(maps.ratio, maps.entropy, strict=True))
            ]
            if outputs_only:
                output = layer.y[sequence, rows]
                self.sites.append(_site_row(layer.name, "output", sequence, output, None, None))
            else:
                self._add_sequence(layer, sequence, rows, (weight, bias, inverse))

    def _add_sequence(
        self, layer: LayerRecord, sequence: int, rows: Tensor, projection: _Projection
    ) -> None:
        x, added, mlp = layer.x, layer.added, layer.added_by_mlp
        parts = {
            "input": x[sequence, rows],
            "attention": added[sequence, rows],
            "after attention": (x + added)[sequence, rows],
            **({} if mlp is None else {"mlp": mlp[sequence, rows]}),
            "output": layer.y[sequence, rows],
        }
        ranks = {site: numerical_rank(part) for site, part in parts.items()}
        predicted = _predict(layer, layer.read[sequence, rows], ranks["input"], projection)
        self.layers.append(_layer_row(layer, sequence, parts, ranks, projection, rows))
        if any(row.site == "input" and row.sequence == sequence for row in self.sites):
            del parts["input"]  # the output of the layer before
        for site, part in parts.items():
            self.sites.append(
                _site_row(layer.name, site, sequence, part, ranks[site], predicted.get(site))
            )

    def add_norm(self, norm: NormRecord, mask: Tensor) -> None:
        for sequence, rows in enumerate(mask):
            if norm.name in self.unknown_norms:
                return
            x, y = norm.x[sequence, rows], norm.y[sequence, rows]
            try:
                result = norm_rank(x, norm.module, output=y)
            except UnsupportedError:
                self.unknown_norms.append(norm.name)
                return
            self.norms.append(NormRow(norm.name, sequence, len(x), x.shape[1], result))


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
    layer: LayerRecord,
    read: Tensor,
    rank: NumericalRank,
    projection: _Projection,
) -> dict[str, int]:
    """Generic ranks at two sites, from the rank of the stream and of the rows attention reads."""
    weight, bias, _ = projection
    heads, width = layer.maps.shape[1], layer.x.shape[2]
    # With biases the affine rank counts.
    source = numerical_rank(read) if bias is None else affine_rank(read)
    head_width = len(weight) // heads
    z, _ = generic_rank(len(read), width, source.rank, heads, head_width, bias=bias is not None)
    return {"attention": z, "after attention": min(len(read), width, rank.rank + z)}


def _layer_row(
    layer: LayerRecord,
    sequence: int,
    parts: dict[str, Tensor],
    ranks: dict[str, NumericalRank],
    projection: _Projection,
    rows: Tensor,
) -> LayerRow:
    weight, bias, inverse = projection
    heads = layer.maps.shape[1]
    both = torch.cat([_unit(parts["input"]), _unit(parts["attention"])])
    span = numerical_rank(both, parts["input"].dtype).rank
    mlp_adds = outside = None
    if "mlp" in parts:
        mlp, mlp_adds = _unit(parts["mlp"]), 0
        if span < both.shape[1]:
            mlp_adds = numerical_rank(torch.cat([both, mlp]), parts["mlp"].dtype).rank - span
        outside = _outside(mlp, both, span) if mlp_adds else 0.0
    # The projection's own output: a norm may follow before it is added.
    z = quantised_input(layer.projection, layer.z)[sequence, rows]
    total = layer.attention[sequence, rows].double().cpu()
    plain = total if bias is None else total - bias.double().cpu()
    wide = z.double().cpu().view(len(z), heads, -1)
    blocks = weight.double().cpu().view(heads, wide.shape[2], -1)
    shares = torch.einsum("nhk,hkd->nhd", wide, blocks).sum(1)
    back = (plain @ inverse).view(wide.shape)
    return LayerRow(
        layer=layer.name,
        sequence=sequence,
        tokens=len(z),
        attention_adds=span - ranks["input"].rank,
        mlp_adds=mlp_adds,
        mlp_outside=outside,
        recovered=float((back - wide).abs().max() / wide.abs().max().clamp_min(1e-300)),
        summed=float((shares - plain).abs().max() / total.abs().max().clamp_min(1e-300)),
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


def _unpadded(model: nn.Module, batch: Mapping[str, Any], name: str, x: Tensor) -> Tensor:
    """The tokens that a module reads, at least two in each sequence."""
    mask = unpadded(model, batch, name, (x.shape[0], x.shape[1]))
    counts = mask.sum(1)
    if int(counts.min()) < 2:
        at = int(counts.argmin())
        raise InputError(
            f"measure_ranks needs at least 2 unpadded tokens in each sequence, got "
            f"{int(counts[at])} in sequence {at}. Leave it out."
        )
    return mask
