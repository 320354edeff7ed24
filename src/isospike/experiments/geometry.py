"""The geometry of the sinusoid and of the frequency-compressed sinusoid."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isospike import progress
from isospike.experiments.study import CORRECTED, FAILS, Context, Findings, claim
from isospike.positions import FrequencyCompressed, Sinusoidal
from isospike.report.table import Table
from isospike.theory.equivalence import Geometry, geometry


@dataclass(frozen=True)
class Preset:
    """Which tables are compared.

    Attributes:
        shapes: Length and width of each pair of tables.
    """

    shapes: tuple[tuple[int, int], ...] = ((128, 128), (64, 64), (512, 128), (128, 512))


def decide(numbers: Mapping[str, float]) -> str:
    """Corrected: the numbers are right at L = d = 128, and depend on both.

    Args:
        numbers: Correlations.
    """
    right = abs(numbers["pearson"] - 0.706) < 0.001 and abs(numbers["spearman"] - 0.965) < 0.001
    return (
        CORRECTED
        if right and numbers["largest_spearman"] - numbers["least_spearman"] > 0.05
        else FAILS
    )


@claim(
    "geometry",
    source="arXiv 2605.00662 and its public scripts",
    statement="Compressing the frequencies keeps the order of the similarities of positions "
    "(Spearman .965) and loses their metric (Pearson .706).",
    verdict=decide,
    question="Does frequency compression keep the order of similarities and lose their metric?",
    presets=dict.fromkeys(("tiny", "small", "full"), Preset()),
)
def compare_tables(preset: Preset, context: Context) -> Findings:
    """Compare the Gram matrices of both tables at four shapes; nothing is trained.

    Args:
        preset: The shapes.
        context: Not used.
    """
    shapes = preset.shapes
    found: dict[tuple[int, int], Geometry] = {}
    for done, (length, width) in enumerate(shapes):
        progress.update("geometry", done, len(shapes))
        at = torch.arange(length)
        found[length, width] = geometry(
            Sinusoidal(width).table(at), FrequencyCompressed(width, length).table(at)
        )
    progress.update("geometry", len(shapes), len(shapes))
    rows = tuple(
        (f"{length}, {width}", f"{g.pearson:.4f}", f"{g.spearman:.4f}", f"{g.ranks[0]:.1f}",
         f"{g.ranks[1]:.2f}", f"{g.gaps[0]:.3f}", f"{g.gaps[1]:.2e}")
        for (length, width), g in found.items()
    )  # fmt: skip
    head = (
        "L, d", "Pearson", "Spearman", "effective rank, sinusoid", "compressed",
        "step in the Gram matrix, sinusoid", "compressed",
    )  # fmt: skip
    square = found[128, 128]
    return Findings(
        {
            "pearson": square.pearson,
            "spearman": square.spearman,
            "rank_sinusoid": square.ranks[0],
            "rank_compressed": square.ranks[1],
            "least_spearman": min(g.spearman for g in found.values()),
            "largest_spearman": max(g.spearman for g in found.values()),
        },
        [
            Table(
                "Gram matrices off the diagonal",
                head,
                rows,
                "Spearman stays high and Pearson low: the order of similarities survives, their "
                "size does not.",
            )
        ],
    )
