"""Everything that is measured of one forward pass: layer by layer, sequence by sequence."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import RangeError, UnsupportedError
from isospike.ranks.collapse import Collapse, collapse, generic_rank, measure_maps
from isospike.ranks.heads import HeadAmbiguity, invert_heads
from isospike.ranks.norms import NormRank, norm_rank
from isospike.ranks.numerical import (
    NumericalRank,
    affine_rank,
    numerical_rank,
)
from isospike.ranks.record import (
    LayerRecord,
    NormRecord,
    output_weight,
    record,
    spelled,
    valid_mask,
)

RESTS = ("input", "output")


@dataclass(frozen=True)
class SiteRow:
    """One sequence at one place: ``input`` (of the first layer), ``attention`` (what it adds),
    ``after attention`` (the stream with that), ``mlp`` (what it adds) or ``output`` of a layer.

    Attributes:
        layer, site, sequence: Where, and which row of the batch.
        tokens, width: n, d.
        dtype: The type in which it was made.
        distinct: Rows that differ.
        rank, affine: Numerical and affine rank; None in a control.
        predicted: Rank for almost all weights, given that of what attention read; None elsewhere.
        collapse: Of all tokens.
        rest: Without the first token, which is often the largest; of ``input`` and ``output`` and
            of at least three tokens, None elsewhere.
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
    rest: Collapse | None


@dataclass(frozen=True)
class NormRow:
    """One normalisation, one sequence."""

    name: str
    sequence: int
    tokens: int
    width: int
    found: NormRank


@dataclass(frozen=True)
class HeadRow:
    """One attention map: second over first singular value, and row entropy over its maximum."""

    layer: str
    head: int
    sequence: int
    ratio: float
    entropy: float


@dataclass(frozen=True)
class LayerRow:
    """What a layer's two halves add outside what was there, one sequence.

    Attributes:
        attention_adds: Directions of attention's rows outside the row space of the input.
        mlp_adds: Directions of the MLP's rows outside those two; None without an MLP.
        mlp_outside: Share of the MLP's squared norm that lies there.
        recovered: Largest error of the heads' outputs computed from attention's output alone,
            over their largest value.
        summed: Largest difference of that output and the sum of the heads' shares, over its
            largest value.
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
    """The output projection of a layer."""

    layer: str
    found: HeadAmbiguity


@dataclass
class Pass:
    """All rows of one forward pass."""

    sites: list[SiteRow] = field(default_factory=list)
    norms: list[NormRow] = field(default_factory=list)
    heads: list[HeadRow] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    projections: list[ProjectionRow] = field(default_factory=list)
    unknown_norms: list[str] = field(default_factory=list)


def measure(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    control: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Pass:
    """Run the model once and measure each layer as it is done.

    Args:
        model: See :func:`isospike.ranks.record.record`.
        batch: Arguments of its forward.
        control: Measure collapse and attention maps only, of the layers' outputs.
        progress: Told after each layer how many are done.

    Raises:
        UnsupportedError: As :func:`isospike.ranks.record.record`.
        RangeError: So, or a sequence of fewer than two unpadded tokens.
    """
    found = Pass()
    done = 0

    def on_layer(layer: LayerRecord) -> None:
        nonlocal done
        _measure_layer(found, layer, batch, control)
        done += 1
        if progress is not None:
            progress(done)

    def on_norm(norm: NormRecord) -> None:
        if not control:
            valid = _rows(batch, norm.x)
            for sequence, rows in enumerate(valid):
                _measure_norm(found, norm, sequence, rows)

    record(model, batch, on_layer, on_norm)
    return found


def _measure_layer(
    found: Pass, layer: LayerRecord, batch: Mapping[str, Any], control: bool
) -> None:
    x, y, maps = layer.x, layer.y, layer.maps
    added, mlp = layer.added, layer.added_by_mlp
    valid = _rows(batch, x)
    weight, bias = output_weight(layer.projection)
    heads = maps.shape[1]
    inverse = weight
    if not control:
        told, inverse = invert_heads(weight, heads, weight.dtype)
        found.projections.append(ProjectionRow(layer.name, told))
        for norm in layer.norms:
            for sequence, rows in enumerate(valid):
                _measure_norm(found, norm, sequence, rows)
    for sequence, rows in enumerate(valid):
        seen = measure_maps(maps[sequence][:, rows][:, :, rows])
        found.heads += [
            HeadRow(layer.name, h, sequence, ratio, entropy)
            for h, (ratio, entropy) in enumerate(zip(seen.ratio, seen.entropy, strict=True))
        ]
        parts = {"output": y[sequence, rows]}
        if not control:
            parts = {
                "input": x[sequence, rows],
                "attention": added[sequence, rows],
                "after attention": (x + added)[sequence, rows],
                **({} if mlp is None else {"mlp": mlp[sequence, rows]}),
                **parts,
            }
        ranks: dict[str, NumericalRank] = {}
        predicted: dict[str, int] = {}
        if not control:
            ranks = {site: numerical_rank(part) for site, part in parts.items()}
            read = layer.read[sequence, rows]
            predicted = _predict(ranks["input"], read, x, heads, len(weight) // heads, bias)
            found.layers.append(
                _layer_row(layer, sequence, parts, ranks, (weight, bias, inverse), rows, heads)
            )
        first = not any(row.site == "input" and row.sequence == sequence for row in found.sites)
        for site, part in parts.items():
            if site == "input" and not first:
                continue  # the output of the layer before
            found.sites.append(
                SiteRow(
                    layer=layer.name,
                    site=site,
                    sequence=sequence,
                    tokens=len(part),
                    width=part.shape[1],
                    dtype=str(part.dtype).removeprefix("torch."),
                    distinct=len(torch.unique(part, dim=0)),
                    rank=ranks.get(site),
                    affine=None if control else affine_rank(part),
                    predicted=predicted.get(site),
                    collapse=_collapse(part),
                    rest=_collapse(part[1:]) if site in RESTS and len(part) > 2 else None,
                )
            )


def _collapse(x: Tensor) -> Collapse:
    """NaN where a part adds nothing, as an output projection of zeros does."""
    return collapse(x) if bool(x.any()) else Collapse(*[math.nan] * len(Collapse._fields))


def _predict(
    rank: NumericalRank, read: Tensor, x: Tensor, heads: int, head_width: int, bias: Tensor | None
) -> dict[str, int]:
    # With biases, values are those of the affine hull.
    source = numerical_rank(read) if bias is None else affine_rank(read)
    z, _ = generic_rank(
        len(read), x.shape[2], source.rank, heads, head_width, bias=bias is not None
    )
    return {"attention": z, "after attention": min(len(read), x.shape[2], rank.rank + z)}


def _layer_row(
    layer: LayerRecord,
    sequence: int,
    parts: dict[str, Tensor],
    ranks: dict[str, NumericalRank],
    output: tuple[Tensor, Tensor | None, Tensor],
    rows: Tensor,
    heads: int,
) -> LayerRow:
    weight, bias, inverse = output
    both = torch.cat([_unit(parts["input"]), _unit(parts["attention"])])
    span = numerical_rank(both, parts["input"].dtype).rank
    mlp_adds = outside = None
    if "mlp" in parts:
        mlp, mlp_adds = _unit(parts["mlp"]), 0
        if span < both.shape[1]:
            mlp_adds = numerical_rank(torch.cat([both, mlp]), parts["mlp"].dtype).rank - span
        outside = _outside(mlp, both, span) if mlp_adds else 0.0
    # The product's own output: a norm may follow before it is added.
    z = spelled(layer.projection, layer.z)[sequence, rows]
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
    """The same row space, of norm 1: neither part shall drown the other."""
    wide = x.double().cpu()
    unit: Tensor = wide / wide.norm().clamp_min(1e-300)
    return unit


def _outside(part: Tensor, span: Tensor, rank: int) -> float:
    """Share of the squared norm of ``part`` outside the leading directions of ``span``."""
    basis = torch.linalg.svd(span, full_matrices=False).Vh[:rank]
    rest = part - part @ basis.T @ basis
    return float(rest.square().sum() / part.square().sum())


def _measure_norm(found: Pass, norm: NormRecord, sequence: int, rows: Tensor) -> None:
    if norm.name in found.unknown_norms:
        return
    x, y = norm.x[sequence, rows], norm.y[sequence, rows]
    try:
        seen = norm_rank(x, norm.module, output=y)
    except UnsupportedError:
        found.unknown_norms.append(norm.name)
        return
    found.norms.append(NormRow(norm.name, sequence, len(x), x.shape[1], seen))


def _rows(batch: Mapping[str, Any], x: Tensor) -> Tensor:
    valid: Tensor = valid_mask(batch, (x.shape[0], x.shape[1]))
    counts = valid.sum(1)
    if int(counts.min()) < 2:
        at = int(counts.argmin())
        raise RangeError(
            f"rank_report needs at least 2 unpadded tokens in each sequence, got {int(counts[at])} "
            f"in sequence {at}. Leave it out."
        )
    return valid
