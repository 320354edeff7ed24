"""Ranks of a transformer: which representations collapse, and which heads can be identified."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from isospike.errors import InputError, RangeError
from isospike.ranks import findings, page
from isospike.ranks.circuits import Circuit
from isospike.ranks.controls import Control, DepthRow, depth_rows, measure_controls
from isospike.ranks.measure import KEPT, ForwardMeasurements, measure_forward
from isospike.ranks.numerical import format_range
from isospike.ranks.shares import Kept, LogitShares, attribute_logits, checked_shares
from isospike.ranks.weights import WeightRow, measure_weights
from isospike.report.page import Section
from isospike.report.result import Provenance, Report
from isospike.report.table import Table


def _ranks(*names: str) -> dict[str, str]:
    """Columns of numerical ranks: their names, and the paths of their values in a row."""
    parts = ("low", "high", "gap", "tolerance", "determined")
    columns: dict[str, str] = {}
    for name in names:
        short = name.rpartition(".")[2]
        columns[short] = f"{name}.rank"
        columns |= {f"{short}_{part}": f"{name}.{part}" for part in parts}
    return columns


_COLLAPSE = ("residual", "mu", "cosine", "entropic", "stable", "participation")
_SITES = {
    **{n: n for n in ("layer", "site", "sequence", "tokens", "width", "dtype", "distinct")},
    **_ranks("rank", "affine"),
    "predicted": "predicted",
    **{n: f"collapse.{n}" for n in _COLLAPSE},
    **{f"without_first_{n}": f"without_first.{n}" for n in _COLLAPSE},
}
_NORMS = {
    **{n: n for n in ("name", "sequence", "tokens", "width")},
    "kind": "result.kind",
    **_ranks(*(f"result.{n}" for n in ("rank", "affine", "predicted", "measured", "rank_out"))),
    **{
        n: f"result.{n}"
        for n in (
            "not_constant", "ones_not_in_rows", "gamma_not_zero", "sigma_not_in_columns",
            "ones_not_in_columns", "agrees", "change", "hypotheses_hold",
        )
    },
}  # fmt: skip
_PROJECTIONS = {
    "layer": "layer",
    **{n: f"result.{n}" for n in ("heads", "head_width", "width")},
    **_ranks("result.rank"),
    **{n: f"result.{n}" for n in ("condition", "rounding", "nullity", "published_nullity")},
}

_WEIGHTS = {
    "name": "name",
    **{n: f"spectrum.{n}" for n in ("rows", "columns", "dtype", "size", "rank", "stable", "above")},
    **{n: f"spectrum.law.{n}" for n in ("alpha", "low", "high", "tail", "distance")},
}


class RecoveryRow(NamedTuple):
    """How well one head's output can be recovered from the output of attention.

    Attributes:
        layer: Name of the layer.
        head: Index of the head.
        coordinates, contributions, noise_gain, verdict: As in
            :class:`isospike.ranks.heads.HeadAmbiguity`.
        angle: Smallest principal angle to another head, in degrees; None for a single head.
    """

    layer: str
    head: int
    coordinates: int
    contributions: int
    noise_gain: float
    verdict: str
    angle: float | None


@dataclass(frozen=True, kw_only=True)
class RankReport(Report, ForwardMeasurements):
    """Measurements of a model on one batch, with baselines.

    Attributes:
        name: Name of the model.
        tokens: Number of unpadded tokens in each sequence.
        width: Width of the model.
        depth: Summary of each layer.
        weights: The spectrum of each weight.
        controls: The same for baselines.

    >>> import torch
    >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True).eval()
    >>> report = measure_ranks(layer, {"src": torch.randn(2, 6, 8)}, controls=False)
    >>> report.tokens
    (6, 6)
    """

    name: str
    tokens: tuple[int, ...]
    width: int
    depth: tuple[DepthRow, ...]
    weights: tuple[WeightRow, ...] = ()
    controls: tuple[Control, ...] = ()

    def shares(self, layer: str) -> Float[Tensor, "rows n heads d"]:
        """What each head of a layer adds to the stream, before its bias; padding included.

        Args:
            layer: Its name; of a decoder's second attention, with ``, cross attention`` behind it.

        Returns:
            In float64. The sum over heads and the bias are the attention's output; that is checked.

        Raises:
            InputError: There is none of this name, or the report was read from a file.
            UnsupportedError: The sum is not the attention's output.
        """
        return checked_shares(self._recorded("shares"), layer)

    def circuit(self, layer: str, head: int) -> Circuit:
        """The circuits of a head, W_V W_O and W_Q W_K^T, as factors.

        Args:
            layer: As for :meth:`shares`.
            head: Its index.

        Returns:
            Both as factors; one is None if a weight is not known.

        Raises:
            InputError: As for :meth:`shares`.
            RangeError: There is no such head.
        """
        circuits = self._recorded("circuit").attention(layer, "circuit").circuits
        if not 0 <= head < len(circuits):
            raise RangeError(
                f"circuit needs a head from 0 to {len(circuits) - 1}, got {head}. Ask for another."
            )
        return circuits[head]

    def logit_shares(self, tokens: Any = None) -> LogitShares:
        """What the embedding, each head and each MLP add to a logit, at each row's last token.

        The last norm's divisor is held fixed, so that the parts sum to the logit.

        Args:
            tokens: Whose logits, one for each row or one for all; the likeliest by default.

        Returns:
            The shares, which sum to the logits.

        Raises:
            InputError: The report was read from a file.
            UnsupportedError: The model does not predict tokens, or its layers do not just add to a
                stream that a norm ends.
            RangeError: A token is not in the vocabulary.
        """
        return attribute_logits(self._recorded("logit_shares"), tokens)

    def _recorded(self, who: str) -> Kept:
        found = vars(self).get(KEPT)
        if not isinstance(found, Kept):
            raise InputError(
                f"{who} needs the report that measure_ranks returned, got one that was read from "
                "a file, which holds no activations. Measure the model again."
            )
        return found

    def verdict(self) -> str:
        """Whether tokens collapse, and whether heads can be recovered."""
        return findings.verdict(self, self.depth)

    def headline(self) -> dict[str, str]:
        """Size, rank at the end, likeness of tokens and lost dimensions."""
        last = self.depth[-1]
        worst = max(self.depth, key=lambda row: row.cosine)
        gains = [g for p in self.projections for g in p.result.noise_gains if g < math.inf]
        low, high, count = min(self.tokens), max(self.tokens), len(self.tokens)
        return {
            "Layers": f"{len(self.depth)}\n{self.width} channels\n{self._heads}",
            "Tokens": f"{low if low == high else f'{low}–{high}'}\n"
            f"in {count} sequence{'s' * (count > 1)}, each measured by itself",
            "Rank at the end": f"{format_range([s.rank for s in self.at(last.layer, 'output')])}\n"
            f"entropic rank {last.entropic:.1f}",
            "Most alike": f"{worst.cosine:.2f}\nmean cosine of two tokens\nafter {worst.layer}",
            "Dimensions lost": f"{max((p.result.nullity for p in self.projections), default=0)}\n"
            f"per token, in the worst layer\nnoise gain up to {max(gains, default=0.0):.3g}",
        }

    @property
    def _heads(self) -> str:
        counts = sorted({p.result.heads for p in self.projections})
        if len(counts) < 2:
            return f"{counts[0]} heads each" if counts else "no attention"
        return f"{counts[0]} to {counts[-1]} heads each"

    def tables(self) -> dict[str, Table]:
        """Layer by layer, then every measurement."""
        recovery = [row for p in self.projections for row in _recovery(p.layer, p.result)]
        controls = [
            {"control": c.name, "tokens": c.tokens, **row.__dict__}
            for c in self.controls
            for row in c.rows
        ]
        return {
            "overview": self._overview(),
            "sites": _table("Sites", self.sites, _SITES),
            "norms": _table("Normalisations", self.norms, _NORMS),
            "heads": Table.of("Attention maps", self.heads),
            "layers": Table.of("Layers", self.layers),
            "projections": _table("Output projections", self.projections, _PROJECTIONS),
            "circuits": Table.of("Circuits of heads", self.circuits),
            "weights": _table("Weights", self.weights, _WEIGHTS),
            "recovery": Table.of("Recovery of heads", recovery),
            "controls": Table.of("Controls", controls),
        }

    def sections(self) -> Sequence[Section]:
        """Likeness, ranks, attention maps, controls, heads, normalisation and layers."""
        name = f"{self.name}, {max(self.tokens)} tokens"
        return page.sections(self, self.depth, self.weights, self.controls, name)

    def _overview(self) -> Table:
        heads = {p.layer: p.result for p in self.projections}
        rows = []
        for row in self.depth:
            sites = self.at(row.layer, "output")
            rows.append((
                row.layer,
                format_range([s.rank for s in sites]),
                format_range([s.affine for s in sites]),
                row.entropic, row.cosine, row.residual, row.ratio, row.entropy,
                *((heads[row.layer].nullity, max(heads[row.layer].noise_gains))
                  if row.layer in heads else (None, None)),
            ))  # fmt: skip
        return Table(
            "Layer by layer",
            ("layer", "rank", "affine", "entropic", "cosine", "residual", "s2/s1", "entropy",
             "lost", "gain"),
            tuple(rows),
            "Ranks, likeness of tokens and attention maps after each layer. Lost: dimensions per "
            "token of the heads' outputs that cannot be recovered from their sum. Gain: largest "
            "noise gain of a head.",
            formats=("", "", "", ".1f", ".3f", ".3f", ".3f", ".3f", "", ".3g"),
            names=("layer", "rank", "affine", "entropic", "cosine", "residual", "ratio", "entropy",
                   "nullity", "noise_gain"),
        )  # fmt: skip


def measure_ranks(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    controls: bool = True,
    seed: int = 0,
    name: str | None = None,
) -> RankReport:
    """Measure which representations of a transformer collapse and which heads can be identified.

    The model is left as it was. Each call of a layer has rows of its own, and so has the cross
    attention of a decoder, under its own name. Sequences are measured one by one, without their
    padding, and with and without their first token.

    >>> import torch
    >>> from isospike.models.transformer import Transformer
    >>> model = Transformer(vocabulary=20, width=16, heads=4, layers=1)
    >>> report = measure_ranks(model, {"tokens": torch.arange(10).view(1, 10)}, controls=False)
    >>> report.tokens, report.width, len(report.depth)
    ((10,), 16, 1)

    Args:
        model: A transformer of any architecture, or a port of one: layers and attentions are found
            by what is called. A model without attention needs repeated layers. float32, bfloat16
            and float16 each get the tolerance of their rounding.
        batch: Arguments of its forward, with ``attention_mask`` (``mask`` for
            :class:`isospike.models.Transformer`) where tokens are padding.
        controls: Whether to measure baselines too: new random weights, tokens in random order, and
            the first d / 2, d and 2 d tokens where there are as many.
        seed: Seed of the baselines.
        name: Name of the model in the report; its class by default.

    Returns:
        The report.

    Raises:
        UnsupportedError: The model has neither attention nor repeated layers, no layer with a
            projection after it, or a tensor is sparse, nested, quantised or on ``meta``.
        InputError: A sequence has fewer than two unpadded tokens, or what is no model, a model
            without weights, or no dictionary of tensors.
        RangeError: An activation is NaN or infinite; the message names its site.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled one, what was compiled
    measured = measure_forward(model, batch)
    tokens: dict[int, int] = {}
    for site in measured.sites:  # a decoder may have fewer than its encoder
        tokens[site.sequence] = max(site.tokens, tokens.get(site.sequence, 0))
    known = name or type(model).__name__
    report = RankReport(
        title=f"Ranks of {known}",
        provenance=Provenance.of({"controls": controls}, seed),
        warnings=findings.warnings(measured),
        name=known,
        tokens=tuple(tokens[i] for i in sorted(tokens)),
        width=measured.sites[0].width,
        depth=depth_rows(measured),
        weights=measure_weights(model),
        controls=measure_controls(model, batch, measured, seed) if controls else (),
        **{field.name: getattr(measured, field.name) for field in fields(measured)},
    )
    vars(report)[KEPT] = vars(measured)[KEPT]
    return report


def _table(title: str, records: Iterable[Any], columns: Mapping[str, str]) -> Table:
    """A table whose columns are values inside the records, by their paths."""
    table = Table.of(title, records, {path: name for name, path in columns.items()})
    return replace(table, names=tuple(columns))


def _recovery(layer: str, result: Any) -> Iterable[RecoveryRow]:
    for head, angles in enumerate(result.angles):
        others = [angle for other, angle in enumerate(angles) if other != head]
        yield RecoveryRow(
            layer,
            head,
            result.coordinates[head],
            result.contributions[head],
            result.noise_gains[head],
            result.verdicts[head],
            min(others, default=None),
        )
