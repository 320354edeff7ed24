"""The geometry of the sinusoid and of the frequency-compressed sinusoid."""

from pathlib import Path

import torch

from isospike.experiments import CORRECTED, FAILS, Progress, Result, Table
from isospike.positions import FrequencyCompressed, Sinusoidal
from isospike.theory.equivalence import Geometry, geometry

CLAIM = (
    "Compressing the frequencies keeps the order of the similarities of positions (Spearman .965) "
    "and loses their metric (Pearson .706)."
)
SHAPES = ((128, 128), (64, 64), (512, 128), (128, 512))


def run(size: object, folder: Path, workers: int, progress: Progress) -> Result:
    """Compare both tables at four shapes; nothing is trained."""
    found: dict[tuple[int, int], Geometry] = {}
    for done, (length, width) in enumerate(SHAPES):
        progress("geometry", done, len(SHAPES))
        at = torch.arange(length)
        found[length, width] = geometry(
            Sinusoidal(width).table(at), FrequencyCompressed(width, length).table(at)
        )
    progress("geometry", len(SHAPES), len(SHAPES))
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
    return Result(
        "geometry",
        {
            "pearson": square.pearson,
            "spearman": square.spearman,
            "rank_sinusoid": square.ranks[0],
            "rank_compressed": square.ranks[1],
            "least_spearman": min(g.spearman for g in found.values()),
            "largest_spearman": max(g.spearman for g in found.values()),
        },
        (Table("Gram matrices off the diagonal", head, rows),),
    )


def holds(result: Result) -> str:
    """The numbers are right at L = d = 128, and depend on both."""
    n = result.numbers
    right = abs(n["pearson"] - 0.706) < 0.001 and abs(n["spearman"] - 0.965) < 0.001
    return CORRECTED if right and n["largest_spearman"] - n["least_spearman"] > 0.05 else FAILS
