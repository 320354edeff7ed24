"""Lemma 1: is attention invariant to the spike-timing map?"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isospike import progress
from isospike.experiments.study import CORRECTED, FAILS, Context, Findings, claim
from isospike.positions import sinusoid
from isospike.report.table import Table
from isospike.theory.equivalence import counterexample, lemma_1a, lemma_1b, lemma_1c, score_terms

LENGTH, WIDTH = 60, 32


@dataclass(frozen=True)
class Preset:
    """How often the lemma is tried.

    Attributes:
        draws: Number of random weights.
    """

    draws: int = 20


def decide(numbers: Mapping[str, float]) -> str:
    """Corrected: the three restricted statements are exact, the unrestricted one is far from it.

    Args:
        numbers: Largest differences of both sides.
    """
    exact = max(numbers["L1a"], numbers["L1b"], numbers["L1c"]) < 1e-9
    return (
        CORRECTED if exact and numbers["with contents"] > 0.1 and numbers["order_flips"] else FAILS
    )


@claim(
    "lemma-1",
    source="arXiv 2605.00662, Lemma 1",
    statement="Dot-product attention is invariant to the spike-timing map, up to one global scale "
    "of the positional part (Lemma 1).",
    verdict=decide,
    question="Is attention invariant to the spike-timing map?",
    presets={"tiny": Preset(5), "small": Preset(), "full": Preset()},
)
def compare_sides(preset: Preset, context: Context) -> Findings:
    """Both sides of L1a, L1b, L1c on random weights, and how far the best temperature gets.

    Args:
        preset: Number of draws.
        context: Not used.
    """
    generator = torch.Generator().manual_seed(0)
    table, factor = sinusoid(torch.arange(LENGTH), WIDTH).double(), 1 / LENGTH
    apart: dict[str, list[float]] = {"L1a": [], "L1b": [], "L1c": [], "with contents": []}
    for draw in range(preset.draws):
        progress.update("lemma 1", draw, preset.draws)
        x = torch.randn(LENGTH, WIDTH, generator=generator, dtype=torch.float64)
        form, turn = torch.randn(2, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        form = form / WIDTH
        sides = {
            "L1a": lemma_1a(table, form, factor),
            "L1b": lemma_1b(x, table, form, torch.linalg.qr(turn).Q),
            "L1c": lemma_1c(x, table, factor),
        }
        for name, (ours, true) in sides.items():
            apart[name].append(float((ours - true).abs().max()))
        terms = score_terms(x, table, form)
        true = terms.at(1.0).softmax(-1)
        temperatures = torch.logspace(-3, 4, 300, dtype=torch.float64)
        weaker = torch.stack([(b * terms.at(factor)).softmax(-1) for b in temperatures])
        apart["with contents"].append(float((weaker - true).abs().sum(-1).mean(-1).min() / 2))
    progress.update("lemma 1", preset.draws, preset.draws)
    labels = {
        "L1a": "L1a, positions alone, temperature 1 / c^2",
        "L1b": "L1b, an orthogonal map of x + E",
        "L1c": "L1c, pre-norm: LN(x + c E) = LN(x / c + E)",
        "with contents": "contents and positions, the best temperature (total variation)",
    }
    rows = tuple((labels[name], f"{max(values):.1e}") for name, values in apart.items())
    weaker_wins, stronger_wins = counterexample(0.5), counterexample(1.0)
    flips = bool(weaker_wins.argmax() != stronger_wins.argmax())
    title = f"Largest difference of both sides, c = 1/{LENGTH}"
    meaning = "The restricted statements are exact; with contents no temperature makes up for it."
    return Findings(
        {**{name: max(values) for name, values in apart.items()}, "order_flips": float(flips)},
        [Table(title, ("statement", "difference"), rows, meaning)],
    )
