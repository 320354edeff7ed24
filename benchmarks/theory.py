"""The laws of `isospike.theory` beside what is measured, on made data."""

import torch

from isospike.codes import CODES, BernoulliCode, linear_code
from isospike.theory.circuits import (
    coincidence,
    race_error,
    softmax_race,
    softmax_shunting,
    softmax_subtractive,
)
from isospike.theory.dimension import EffectiveDimension
from isospike.theory.laws import incoherent_law, projection_law, published_steps

WIDTH, ROWS, STEPS = 256, 2000, 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes() -> None:
    print("\n| code | T | law, RMS | measured |\n|---|--:|--:|--:|")
    for name in CODES:
        for steps in (4, 8, 16):
            code = linear_code(name, steps)
            x = code.low + (1 - code.low) * torch.rand(400_000, generator=seeded(0)).double()
            error = (code.quantize(x, generator=seeded(1)) - x).square().mean().sqrt()
            law = code.mean_square_error**0.5
            print(f"| {name} | {steps} | {law:.3g} | {float(error):.3g} |")


def projections() -> None:
    print(
        "\n| latent k | PCA-95 | law (4), RMS at T=4 | form (5) | measured | not projected | "
        "floor | T for .08: ours | `published` |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for latent in (1, 4, 16, 64, 256):
        basis = torch.randn(latent, WIDTH, generator=seeded(latent)).double() / latent**0.5
        x = torch.special.ndtr(
            0.6 * torch.randn(ROWS, latent, generator=seeded(0)).double() @ basis
        )
        found = EffectiveDimension(keep=2, replicates=2).fit(x).dimension_
        rank = int(found.pca.value)
        law = projection_law(x, rank)
        mean = x.mean(0)
        axes = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors[:, WIDTH - rank :]
        noisy = BernoulliCode(STEPS).quantize(x, generator=seeded(2))
        read = (noisy - mean) @ axes @ axes.T + mean
        variance = float(x.var(0, correction=0).mean())
        parts = incoherent_law(
            rank, WIDTH, float((x * (1 - x)).mean()), variance, 1 - law.floor / variance
        )
        try:
            ours = str(law.steps(0.08))
        except ValueError:
            ours = "below the floor"
        print(
            f"| {latent} | {rank} | {law.mean_square_error(STEPS) ** 0.5:.4f} | "
            f"{parts.mean_square_error(STEPS) ** 0.5:.4f} | "
            f"{float((read - x).square().mean().sqrt()):.4f} | "
            f"{float((noisy - x).square().mean().sqrt()):.4f} | {law.floor**0.5:.4f} | {ours} | "
            f"{published_steps(float(rank), 0.08):,} |"
        )


def softmaxes() -> None:
    print(
        "\n| n | T | race, RMS of the norm: law | measured | shunting, sum of errors | "
        "subtractive, best of 20, decay .5 | .9 |\n|--:|--:|--:|--:|--:|--:|--:|"
    )
    for n in (4, 16, 64, 197):
        z = torch.randn(n, generator=seeded(n)).double()
        a = z.softmax(0)
        for steps in (64, 1024, 16_384):
            races = [
                (softmax_race(z, steps, generator=seeded(i)) - a).square().sum() for i in range(40)
            ]
            best = [
                min(
                    float(
                        (softmax_subtractive(z, steps, decay=decay, drive=d, inhibition=w) - a)
                        .abs()
                        .sum()
                    )
                    for d in (0.25, 0.5, 1.0, 2.0, 4.0)
                    for w in (0.0, 0.5, 1.0, 2.0)
                )
                for decay in (0.5, 0.9)
                if steps <= 1024
            ]
            cells = " | ".join(f"{b:.3f}" for b in best) or "– | –"
            print(
                f"| {n} | {steps} | {race_error(z, steps):.4f} | "
                f"{float(torch.stack(races).mean().sqrt()):.4f} | "
                f"{float((softmax_shunting(z, steps) - a).abs().sum()):.4f} | {cells} |"
            )


def exponentials() -> None:
    print("\n| reach M | z | T for 10 %, shared trains (published) | own trains |")
    print("|--:|--:|--:|--:|")
    for reach, z in ((1.0, 0.0), (2.0, 0.0), (5.0, 0.0), (5.0, -4.0), (5.0, 4.0)):
        shared, own = (coincidence(z, reach, 60, shared=s).steps(0.1) for s in (True, False))
        print(f"| {reach:g} | {z:g} | {shared:,} | {own:,} |")


if __name__ == "__main__":
    for table in (codes, projections, softmaxes, exponentials):
        table()
