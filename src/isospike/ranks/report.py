"""What collapses in a transformer, where, and which heads can be told apart: one report."""

import copy
import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import MissingExtraError, RangeError
from isospike.porting.run import ATTRIBUTE
from isospike.ranks.measure import Pass, SiteRow, measure
from isospike.ranks.numerical import span
from isospike.report.files import write_file

TABLES = ("sites", "norms", "heads", "layers", "projections")
ALIKE, NARROW, SHARP, DOMINATES = 0.9, 0.1, 0.1, 3.0
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DepthRow:
    """One layer of one run: medians over sequences, means over heads.

    Attributes:
        layer: Its path.
        cosine, residual, entropic: Of its output, see :mod:`isospike.ranks.collapse`.
        ratio, entropy: Of its attention maps.
    """

    layer: str
    cosine: float
    residual: float
    entropic: float
    ratio: float
    entropy: float


@dataclass(frozen=True)
class Control:
    """The same measures of something else: another model, other tokens, fewer of them."""

    name: str
    tokens: int
    rows: tuple[DepthRow, ...]


@dataclass(frozen=True)
class RankReport:
    """What was measured of a model on one batch.

    Attributes:
        name: Of the model.
        tokens: Unpadded ones of each sequence.
        width: d.
        measured: All rows; see :mod:`isospike.ranks.measure`.
        controls: The same along the depth, of controls.
        warnings: What to look at, in words.
        seed: Of the controls.
        versions: Of the packages that computed.
    """

    name: str
    tokens: tuple[int, ...]
    width: int
    measured: Pass
    controls: tuple[Control, ...]
    warnings: tuple[str, ...]
    seed: int
    versions: dict[str, str]

    @property
    def depth(self) -> tuple[DepthRow, ...]:
        """The model itself, layer by layer, as its controls are given."""
        return depth_rows(self.measured)

    def rows(self, table: str = "sites") -> list[dict[str, Any]]:
        """A table as flat dictionaries.

        Args:
            table: ``sites``, ``norms``, ``heads``, ``layers`` or ``projections``.

        Raises:
            RangeError: No such table.
        """
        if table not in TABLES:
            raise RangeError(f"rows needs a table of {', '.join(TABLES)}, got {table!r}.")
        return [_flat(row) for row in getattr(self.measured, table)]

    def to_frame(self, table: str = "sites") -> Any:
        """A table as a pandas ``DataFrame``; see :meth:`rows`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        found = self.rows(table)
        try:
            import pandas
        except ImportError:
            raise MissingExtraError(
                "to_frame needs the package pandas. Install isospike[frame], or use rows()."
            ) from None
        return pandas.DataFrame(found)

    def to_json(self) -> str:
        """All of it; what is not finite becomes null."""
        whole = {
            "name": self.name,
            "tokens": self.tokens,
            "width": self.width,
            "warnings": self.warnings,
            "depth": [asdict(row) for row in self.depth],
            **{table: self.rows(table) for table in TABLES},
            "norms_not_known": self.measured.unknown_norms,
            "controls": [asdict(control) for control in self.controls],
            "seed": self.seed,
            "versions": self.versions,
        }
        return json.dumps(_finite(whole), indent=1, allow_nan=False)

    def summary(self) -> str:
        """A table of the layers and the warnings, as text."""
        head = ("layer", "rank", "affine", "entropic", "cosine", "residual", "s2/s1", "entropy",
                "W_O lost", "gain")  # fmt: skip
        lines = [head]
        lost = {p.layer: p.found for p in self.measured.projections}
        for row in self.depth:
            sites = self.at(row.layer, "output")
            lines.append((
                row.layer,
                span([s.rank for s in sites]),
                span([s.affine for s in sites]),
                f"{row.entropic:.1f}",
                f"{row.cosine:.3f}",
                f"{row.residual:.3f}",
                f"{row.ratio:.3f}",
                f"{row.entropy:.3f}",
                str(lost[row.layer].kernel),
                f"{max(lost[row.layer].gains):.3g}",
            ))  # fmt: skip
        wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(
                cell.ljust(wide[i]) if i == 0 else cell.rjust(wide[i])
                for i, cell in enumerate(line)
            )
            for line in lines
        ]
        return "\n".join([*text, "", *(f"- {w}" for w in self.warnings)])

    def at(self, layer: str, site: str) -> list[SiteRow]:
        """The rows of one place, sequence by sequence."""
        return [s for s in self.measured.sites if (s.layer, s.site) == (layer, site)]

    def html(self) -> str:
        """One self-contained page that makes no request."""
        from isospike.ranks import page as ranks_page

        return ranks_page.html(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html``, ``report.json`` and a CSV file for each table to a folder.

        Raises:
            OSError: The folder cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        files = {"report.html": self.html(), "report.json": self.to_json()}
        for table in TABLES:
            rows = self.rows(table)
            text = io.StringIO()
            if rows:
                fields = dict.fromkeys(key for row in rows for key in row)
                writer = csv.DictWriter(text, fields, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            files[f"{table}.csv"] = text.getvalue()
        for name, content in files.items():
            write_file(folder / name, content.encode())
        return folder


def rank_report(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    controls: bool = True,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> RankReport:
    """Measure which representations of a transformer collapse and which heads can be told apart.

    By hooks only; the model is left as it was. Sequences are measured one by one, without their
    padding, and with and without their first token.

    Args:
        model: Of transformers, if its attention uses the attention interface; a port of one to
            spikes; or a model whose layers call torch's ``scaled_dot_product_attention``. float32,
            bfloat16 and float16 each get the tolerance of their rounding.
        batch: Arguments of its forward, with ``attention_mask`` (``mask`` of
            :class:`isospike.Transformer`) where tokens are padding.
        controls: Whether to run the model also with new random weights, on tokens in random order,
            and on the first d / 2, d and 2 d tokens where there are as many.
        seed: Of the controls.
        name: Of the model, for people.
        progress: Told what is done, how many layers, and of how many.

    Returns:
        The report.

    Raises:
        UnsupportedError: No attention that hooks can see.
        RangeError: Fewer than two unpadded tokens in a sequence, or activations that are not
            finite; the message names where.
        ShapeError: An attention mask that does not fit.
    """
    told = progress or (lambda *_: None)
    found = _measured(model, batch, "measure", told, control=False)
    ordered: dict[str, SiteRow] = {}
    tokens: dict[int, int] = {}
    for site in found.sites:
        ordered.setdefault(site.layer, site)
        tokens.setdefault(site.sequence, site.tokens)
    width = next(iter(ordered.values())).width
    others: list[Control] = []
    if controls:
        for label, other, inputs in _controls(model, batch, width, min(tokens.values()), seed):
            seen = _measured(other, inputs, f"control: {label}", told, control=True)
            others.append(
                Control(
                    label, statistics.median_low(s.tokens for s in seen.sites), depth_rows(seen)
                )  # fmt: skip
            )
    return RankReport(
        name=name or type(model).__name__,
        tokens=tuple(tokens[i] for i in sorted(tokens)),
        width=width,
        measured=found,
        controls=tuple(others),
        warnings=tuple(_warnings(found, width)),
        seed=seed,
        versions={p: version(p) for p in ("isospike", "torch", "transformers")},
    )


def depth_rows(found: Pass) -> tuple[DepthRow, ...]:
    """A pass, layer by layer."""
    rows = []
    for layer in dict.fromkeys(s.layer for s in found.sites):
        outputs = [s.collapse for s in found.sites if (s.layer, s.site) == (layer, "output")]
        maps = [h for h in found.heads if h.layer == layer]

        rows.append(
            DepthRow(
                layer,
                statistics.median(c.cosine for c in outputs),
                statistics.median(c.residual for c in outputs),
                statistics.median(c.entropic for c in outputs),
                statistics.mean(h.ratio for h in maps),
                statistics.mean(h.entropy for h in maps),
            )
        )
    return tuple(rows)


def _measured(
    model: nn.Module, batch: Mapping[str, Any], what: str, told: Progress, *, control: bool
) -> Pass:
    total = getattr(getattr(model, "config", None), "num_hidden_layers", None) or 0
    told(what, 0, total or 1)
    found = measure(
        model, batch, control=control, progress=lambda done: told(what, done, max(total, done))
    )
    told(what, total or 1, total or 1)
    return found


def _controls(
    model: nn.Module, batch: Mapping[str, Any], width: int, tokens: int, seed: int
) -> Any:
    fresh = _fresh(model, seed)
    if fresh is not None:
        yield "new random weights", fresh, batch
    del fresh
    key = next((k for k in ("input_ids", "tokens") if isinstance(batch.get(k), Tensor)), None)
    if key is None:
        return
    yield "tokens in random order", model, {**batch, key: _shuffled(batch, key, seed)}
    longest = batch[key].shape[1]
    for length in (width // 2, width, 2 * width):
        if 2 <= length < longest and length <= tokens:
            cut = {
                k: v[:, :length]
                if isinstance(v, Tensor) and v.dim() == 2 and v.shape[1] == longest
                else v
                for k, v in batch.items()
            }
            yield f"first {length} tokens", model, cut


def _fresh(model: nn.Module, seed: int) -> nn.Module | None:
    """The model with the weights that it would have before training; None for a port."""
    if ATTRIBUTE in vars(model):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "config") and hasattr(model, "set_attn_implementation"):
            kind: Any = type(model)
            fresh: nn.Module = kind(copy.deepcopy(model.config)).eval()
            return fresh.to(next(model.parameters()).dtype)
        other = copy.deepcopy(model)
        for module in other.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        return other


def _shuffled(batch: Mapping[str, Any], key: str, seed: int) -> Tensor:
    """Each sequence's unpadded tokens in random order."""
    generator = torch.Generator().manual_seed(seed)
    ids: Tensor = batch[key].clone()
    mask = batch.get("attention_mask", batch.get("mask"))
    for i, row in enumerate(ids):
        at = torch.arange(len(row)) if mask is None else mask[i].bool().nonzero()[:, 0].cpu()
        ids[i, at] = row[at[torch.randperm(len(at), generator=generator)]]
    return ids


def _warnings(found: Pass, width: int) -> list[str]:
    said = []
    sites = found.sites
    most = max(s.tokens for s in sites)
    if most < width:
        said.append(
            f"Ranks are capped by the tokens ({most} at most), not by the width {width}: give "
            "longer sequences to see more."
        )
    vague = [s for s in sites if s.rank is not None and not s.rank.determined]
    if vague:
        worst = min(vague, key=lambda s: s.rank.gap if s.rank else math.inf)
        said.append(
            f"{len(vague)} of {len(sites)} ranks are undetermined: singular values go on through "
            f"the rounding of {worst.dtype} without a gap (first in {vague[0].layer}, "
            f"{vague[0].site})."
        )
    same = [s for s in sites if s.site == "input" and s.distinct < s.tokens]
    if same:
        said.append(
            f"{same[0].layer} reads {same[0].distinct} different rows of {same[0].tokens} tokens: "
            "equal rows that see the same context stay equal through every layer."
        )
    outputs = [s for s in sites if s.site == "output"]
    alike = _layers(s.layer for s in outputs if s.collapse.cosine > ALIKE)
    if alike:
        said.append(
            f"Tokens are nearly parallel (mean cosine above {ALIKE:g}) after {_listed(alike)}."
        )
    heavy = _layers(
        s.layer
        for s in outputs
        if s.rest is not None and s.rest.stable > DOMINATES * s.collapse.stable
    )
    if heavy:
        said.append(
            f"The first token outweighs the others after {_listed(heavy)}: without it the stable "
            f"rank is more than {DOMINATES:g} times as large."
        )
    for name, field, limit, text in (
        ("s2/s1", "ratio", NARROW, "give every token nearly the same mixture (width collapse)"),
        ("entropy", "entropy", SHARP, "look at one token each (entropy collapse)"),
    ):
        low = [h for h in found.heads if getattr(h, field) < limit]
        if low:
            said.append(
                f"{len(low)} of {len(found.heads)} attention maps {text}: {name} below {limit:g}, "
                f"in {_listed(_layers(h.layer for h in low))}."
            )
    lost = [p for p in found.projections if p.found.kernel]
    if lost:
        said.append(
            f"Heads are mixed for good in {_listed(_layers(p.layer for p in lost))}: up to "
            f"{max(p.found.kernel for p in lost)} dimensions per token cannot be told from the sum."
        )
    ill = [p for p in found.projections if "ill-conditioned" in p.found.verdicts]
    if ill:
        said.append(
            "Heads can be told apart in exact arithmetic only, for rounding is amplified by "
            f"{max(g for p in ill for g in p.found.gains if g < math.inf):.3g}, in "
            f"{_listed(_layers(p.layer for p in ill))}."
        )
    moved = [n for n in found.norms if n.found.change]
    if moved:
        against = sum(n.found.published is True for n in moved)
        steps = sorted({n.found.change for n in moved if n.found.change})
        by = f"{steps[0]:+d}" + (f" to {steps[-1]:+d}" if len(steps) > 1 else "")
        said.append(
            f"{len(moved)} of {len(found.norms)} normalisations change the affine rank, by {by}"
            + (f"; of these, {against} meet H1 to H4 of the published theorem." if against else ".")
        )
    wrong = [n for n in found.norms if n.found.agrees is False]
    if wrong:
        said.append(
            f"{len(wrong)} of {len(found.norms)} affine ranks after a normalisation are not those "
            f"of the identity: rounding has changed them (first in {wrong[0].name})."
        )
    if found.unknown_norms:
        said.append(f"Neither LayerNorm nor RMSNorm, left out: {_listed(found.unknown_norms)}.")
    return said


def _layers(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _flat(row: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dataclasses and named tuples as one dictionary; ``found`` adds no prefix."""
    pairs = (
        {f: getattr(row, f) for f in row.__dataclass_fields__}
        if is_dataclass(row)
        else row._asdict()
    )
    flat: dict[str, Any] = {}
    for key, value in pairs.items():
        if is_dataclass(value) or hasattr(value, "_asdict"):
            if key in ("rank", "affine", "predicted", "measured", "rank_out"):
                flat[f"{prefix}{key}"] = value.rank
                flat |= {f"{prefix}{key}_{k}": v for k, v in value._asdict().items() if k != "rank"}
            else:
                flat |= _flat(value, "" if key in ("found", "collapse") else f"{key}_")
        elif value is None and key in ("rest", "rank", "affine"):
            continue
        elif isinstance(value, tuple):
            flat[f"{prefix}{key}"] = json.dumps(_finite(value))
        else:
            flat[f"{prefix}{key}"] = value
    if hasattr(row, "verdicts"):
        flat |= {"kernel": row.kernel, "published": row.published,
                 "verdicts": json.dumps(row.verdicts)}  # fmt: skip
    if hasattr(row, "agrees"):
        flat |= {"agrees": row.agrees, "change": row.change, "published": row.published}
    return flat


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
