"""Similarity of the locations that two addresses activate, against that of the addresses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from isospike import progress
from isospike.codes.orders import nof_m, random_orders, significance, similarity
from isospike.experiments.study import CORRECTED, FAILS, Context, Findings, claim
from isospike.memory import AddressDecoder
from isospike.report.table import Table

SPIKES, NEURONS = 11, 256
DECODERS = {  # alpha, (a, w, W)
    "binary, W = 4096, w = 16": (1.0, (20, 16, 4096)),
    "alpha .9, W = 4096, w = 16": (0.9, (20, 16, 4096)),
    "alpha .9, W = 4096, w = 160": (0.9, (20, 160, 4096)),
    "alpha .9, W = 16384, w = 11, a = 8": (0.9, (8, 11, 16384)),
    "alpha .5, W = 4096, w = 16": (0.5, (20, 16, 4096)),
}


@dataclass(frozen=True)
class Preset:
    """How many addresses are compared.

    Attributes:
        bases: Number of addresses whose spikes are moved.
    """

    bases: int = 200


class Fit(NamedTuple):
    """The kernel of a decoder over addresses, and the nearest ``exp(beta (cos - 1))``.

    Attributes:
        cosine, kernel: Means, by number of spikes moved.
        beta: Of the fit to the means.
        error: Largest distance of the means from the fit.
        spread: Root-mean-square distance of single pairs from the fit.
    """

    cosine: tuple[float, ...]
    kernel: tuple[float, ...]
    beta: float
    error: float
    spread: float


def measure(
    alpha: float, decoder: tuple[int, int, int], bases: int, generator: torch.Generator
) -> Fit:
    """Move 0, 1, .. all spikes of random addresses and compare the locations that are active.

    (1)  k(x, y) = phi(x) . phi(y) / phi(x) . phi(x), phi(x) = significance(nof_m(A x; w))

    Args:
        alpha: Factor from one rank of a spike to the next.
        decoder: Connections of a location, active locations, locations.
        bases: Number of addresses.
        generator: Of the connections and addresses.

    Returns:
        The kernel and its fit.
    """
    connections, active, locations = decoder
    matrix = AddressDecoder(NEURONS, connections, active, locations, alpha, generator).matrix()

    def features(orders: Tensor) -> Tensor:
        excited = significance(orders, NEURONS, alpha) @ matrix.T
        return significance(nof_m(excited, active), locations, alpha)

    base = random_orders(bases, SPIKES, NEURONS, generator)
    first = features(base)
    cosines, kernels = [], []
    for moved in range(SPIKES + 1):
        other = base.clone()
        free = torch.rand(bases, NEURONS, generator=generator).scatter_(1, base, -1.0)
        where = torch.rand(bases, SPIKES, generator=generator).argsort(1)[:, :moved]
        other.scatter_(1, where, free.argsort(1, descending=True)[:, :moved])
        cosines.append(similarity(base, other, alpha).cosine)
        kernels.append((first * features(other)).sum(1) / first.square().sum(1))
    cosine, kernel = torch.stack(cosines), torch.stack(kernels)
    means = cosine.mean(1), kernel.mean(1)
    betas = torch.linspace(0.5, 30, 1181, dtype=torch.float64)
    fits = (betas[:, None] * (means[0] - 1)).exp()
    best = int((fits - means[1]).square().mean(1).argmin())
    beta = float(betas[best])
    return Fit(
        tuple(means[0].tolist()),
        tuple(means[1].tolist()),
        beta,
        float((fits[best] - means[1]).abs().max()),
        float(((beta * (cosine - 1)).exp() - kernel).square().mean().sqrt()),
    )


def decide(numbers: Mapping[str, float]) -> str:
    """Corrected: within a tenth of the exponential on average, for the decoders in use.

    Args:
        numbers: Errors of the fits.
    """
    errors = [v for k, v in numbers.items() if k.startswith("error") and ".5" not in k]
    return CORRECTED if max(errors) < 0.1 else FAILS


@claim(
    "overlap-kernel",
    source="Bricken, Pehlevan 2021, for Kanerva's memory",
    statement="The overlap of two reads of a sparse distributed memory falls off as exp(beta cos), "
    "so that reading it approximates softmax attention.",
    verdict=decide,
    question="Does reading a sparse distributed memory approximate softmax attention?",
    presets={"tiny": Preset(20), "small": Preset(), "full": Preset()},
)
def measure_kernels(preset: Preset, context: Context) -> Findings:
    """The kernel of five decoders; nothing is trained.

    Args:
        preset: Number of addresses.
        context: Not used.
    """
    numbers: dict[str, float] = {}
    rows = []
    for done, (name, (alpha, decoder)) in enumerate(DECODERS.items()):
        progress.update("overlap kernel", done, len(DECODERS))
        fit = measure(alpha, decoder, preset.bases, torch.Generator().manual_seed(done))
        numbers |= {f"beta, {name}": fit.beta, f"error, {name}": fit.error}
        half = min(range(len(fit.cosine)), key=lambda i: abs(fit.cosine[i] - 0.5))
        rows.append((
            name, f"{fit.beta:.2f}", f"{fit.error:.3f}", f"{fit.spread:.3f}",
            f"{fit.kernel[half]:.3f} at {fit.cosine[half]:.2f}", f"{fit.kernel[-1]:.4f}",
        ))  # fmt: skip
    progress.update("overlap kernel", len(DECODERS), len(DECODERS))
    head = (
        "decoder", "beta", "error of the mean", "spread of pairs", "k near cos .5", "k at cos 0",
    )  # fmt: skip
    title = f"Overlap kernel, {SPIKES}-of-{NEURONS} addresses, {preset.bases} of them"
    meaning = "The means follow exp(beta (cos - 1)) within .06; single pairs scatter more."
    return Findings(numbers, [Table(title, head, tuple(rows), meaning)])
