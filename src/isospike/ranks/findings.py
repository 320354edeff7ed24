"""What the measurements of a model mean, in words."""

import math
from collections.abc import Iterable, Iterator, Sequence

from isospike.ranks.controls import DepthRow
from isospike.ranks.measure import ForwardMeasurements

ALIKE = 0.9  # mean cosine of two tokens
NARROW = 0.1  # second over first singular value of an attention map
SHARP = 0.1  # relative entropy of an attention map
DOMINATES = 3.0  # growth of the stable rank without the first token


def verdict(measured: ForwardMeasurements, depth: Sequence[DepthRow]) -> str:
    """Whether tokens collapse, and whether heads can be recovered, in two sentences.

    Args:
        measured: The measurements.
        depth: The same layer by layer.

    Returns:
        The sentences.
    """
    worst = max(depth, key=lambda row: -1.0 if math.isnan(row.cosine) else row.cosine)
    if worst.cosine > ALIKE:
        tokens = (
            f"The tokens collapse: after {worst.layer} they are nearly parallel, with a mean "
            f"cosine of {worst.cosine:.2f}."
        )
    else:
        tokens = (
            "The tokens do not collapse: the mean cosine of two of them is at most "
            f"{worst.cosine:.2f}, after {worst.layer}."
        )
    layers = len(measured.projections)
    if not layers:
        return tokens
    lost = sum(p.result.nullity > 0 for p in measured.projections)
    ill = sum("ill-conditioned" in p.result.verdicts for p in measured.projections)
    if lost:
        heads = (
            f"In {lost} of {layers} layers the heads' outputs cannot be recovered from their sum."
        )
    elif ill:
        heads = (
            f"In {ill} of {layers} layers some heads can be recovered from their sum in exact "
            "arithmetic only."
        )
    else:
        heads = "Every head's output can be recovered from their sum."
    return f"{tokens} {heads}"


def warnings(measured: ForwardMeasurements) -> tuple[str, ...]:
    """What deserves attention, a sentence each.

    Args:
        measured: The measurements.

    Returns:
        The sentences; none if nothing is unusual.
    """
    parts = (_of_layers, _of_ranks, _of_tokens, _of_maps, _of_heads, _of_norms)
    return tuple(sentence for part in parts for sentence in part(measured))


def _of_layers(measured: ForwardMeasurements) -> Iterator[str]:
    if measured.left_out:
        yield (
            f"Left out: {_listed(_unique(measured.left_out))}, where no linear projection was "
            "recognised after the attention."
        )


def _of_ranks(measured: ForwardMeasurements) -> Iterator[str]:
    sites = measured.sites
    most, width = max(s.tokens for s in sites), sites[0].width
    if most < width:
        yield (
            f"Ranks are limited by the number of tokens ({most} at most), not by the width "
            f"{width}. Use longer sequences to see more."
        )
    vague = [s for s in sites if s.rank is not None and not s.rank.determined]
    if vague:
        worst = min(vague, key=lambda s: s.rank.gap if s.rank else math.inf)
        yield (
            f"{len(vague)} of {len(sites)} ranks are undetermined: the singular values have no gap "
            f"at the rounding error of {worst.dtype} (first in {vague[0].layer}, {vague[0].site})."
        )
    same = [s for s in sites if s.site == "input" and s.distinct < s.tokens]
    if same:
        yield (
            f"{same[0].layer} reads only {same[0].distinct} different rows for {same[0].tokens} "
            "tokens. Equal rows with the same context stay equal in every layer."
        )


def _of_tokens(measured: ForwardMeasurements) -> Iterator[str]:
    outputs = [s for s in measured.sites if s.site == "output"]
    alike = _unique(s.layer for s in outputs if s.collapse.cosine > ALIKE)
    if alike:
        yield f"Tokens are nearly parallel (mean cosine above {ALIKE:g}) after {_listed(alike)}."
    heavy = _unique(
        s.layer
        for s in outputs
        if s.without_first is not None
        and s.without_first.stable > DOMINATES * s.collapse.stable
    )  # fmt: skip
    if heavy:
        yield (
            f"The first token dominates after {_listed(heavy)}: without it the stable rank is more "
            f"than {DOMINATES:g} times as large."
        )


def _of_maps(measured: ForwardMeasurements) -> Iterator[str]:
    for name, field, limit, text in (
        ("s2/s1", "ratio", NARROW, "give every token nearly the same mixture (width collapse)"),
        ("entropy", "entropy", SHARP, "attend to one token each (entropy collapse)"),
    ):
        low = [h for h in measured.heads if getattr(h, field) < limit]
        if low:
            yield (
                f"{len(low)} of {len(measured.heads)} attention maps {text}: {name} below "
                f"{limit:g}, in {_listed(_unique(h.layer for h in low))}."
            )


def _of_heads(measured: ForwardMeasurements) -> Iterator[str]:
    lost = [p for p in measured.projections if p.result.nullity]
    if lost:
        layers = _listed(_unique(p.layer for p in lost))
        most = max(p.result.nullity for p in lost)
        yield (
            f"The output projection of {layers} is rank-deficient: up to {most} dimensions per "
            "token of the heads' outputs cannot be recovered from their sum."
        )
    ill = [p for p in measured.projections if "ill-conditioned" in p.result.verdicts]
    if ill:
        gain = max(g for p in ill for g in p.result.noise_gains if g < math.inf)
        yield (
            "Heads can be recovered from their sum in exact arithmetic only, since rounding errors "
            f"are amplified by up to {gain:.3g}, in {_listed(_unique(p.layer for p in ill))}."
        )


def _of_norms(measured: ForwardMeasurements) -> Iterator[str]:
    count = len(measured.norms)
    moved = [n.result for n in measured.norms if n.result.change]
    if moved:
        against = sum(r.hypotheses_hold is True for r in moved)
        steps = sorted({r.change for r in moved if r.change})
        by = f"{steps[0]:+d}" + (f" to {steps[-1]:+d}" if len(steps) > 1 else "")
        yield f"{len(moved)} of {count} normalisations change the affine rank, by {by}" + (
            f"; {against} of these meet H1 to H4 of the published theorem." if against else "."
        )
    wrong = [n for n in measured.norms if n.result.agrees is False]
    if wrong:
        yield (
            f"{len(wrong)} of {count} affine ranks after a normalisation differ from the "
            f"identity's prediction, because of rounding (first in {wrong[0].name})."
        )
    if measured.unknown_norms:
        yield (
            "Some modules are neither LayerNorm nor RMSNorm and were left out: "
            f"{_listed(measured.unknown_norms)}."
        )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"
