"""Lemma 1: is attention invariant to the spike-timing map?"""

from pathlib import Path

import torch

from isospike.experiments import CORRECTED, FAILS, Progress, Result, Table
from isospike.positions import sinusoid
from isospike.theory.equivalence import counterexample, lemma_1a, lemma_1b, lemma_1c, score_terms

CLAIM = (
    "Dot-product attention is invariant to the spike-timing map, up to one global scale of the "
    "positional part (Lemma 1)."
)
LENGTH, WIDTH, DRAWS = 60, 32, 20


def run(size: object, folder: Path, workers: int, progress: Progress) -> Result:
    """Both sides of L1a, L1b, L1c on random weights, and how far the best temperature gets."""
    generator = torch.Generator().manual_seed(0)
    table, factor = sinusoid(torch.arange(LENGTH), WIDTH).double(), 1 / LENGTH
    apart: dict[str, list[float]] = {"L1a": [], "L1b": [], "L1c": [], "with contents": []}
    for draw in range(DRAWS):
        progress("lemma 1", draw, DRAWS)
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
    progress("lemma 1", DRAWS, DRAWS)
    what = {
        "L1a": "L1a, positions alone, temperature 1 / c^2",
        "L1b": "L1b, an orthogonal map of x + E",
        "L1c": "L1c, pre-norm: LN(x + c E) = LN(x / c + E)",
        "with contents": "contents and positions, the best temperature (total variation)",
    }
    rows = tuple((what[name], f"{max(values):.1e}") for name, values in apart.items())
    weaker_wins, stronger_wins = counterexample(0.5), counterexample(1.0)
    flips = bool(weaker_wins.argmax() != stronger_wins.argmax())
    return Result(
        "lemma-1",
        {**{name: max(values) for name, values in apart.items()}, "order_flips": float(flips)},
        (Table(f"Largest difference of both sides, c = 1/{LENGTH}", ("statement", "apart"), rows),),
    )


def holds(result: Result) -> str:
    """The three restricted statements are exact and the unrestricted one is far from it."""
    n = result.numbers
    exact = max(n["L1a"], n["L1b"], n["L1c"]) < 1e-9
    return CORRECTED if exact and n["with contents"] > 0.1 and n["order_flips"] else FAILS
