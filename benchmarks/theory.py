"""The laws of `isospike.theory` beside what is measured, on made data."""

import torch

from isospike.circuits.arithmetic import (
    OCTAVES,
    cells_of,
    exp2_negative,
    exp2_spikes,
    inverse_spikes,
    layer_norm,
    race_spikes,
    softmax,
    subtract_row_max,
)
from isospike.circuits.digits import SignedDigitFormat
from isospike.circuits.integers import CELLS, FINE, relative_error
from isospike.codes import CODES, BernoulliCode
from isospike.dimension import EffectiveDimension
from isospike.theory.approximation import (
    EquivariantTable,
    bits_needed,
    published_bits,
    published_steps,
)
from isospike.theory.laws import incoherent_law, projection_law
from isospike.theory.laws import published_steps as published_rule
from isospike.theory.softmax import (
    coincidence,
    race_error,
    softmax_race,
    softmax_shunting,
    softmax_subtractive,
)

WIDTH, ROWS, STEPS = 256, 2000, 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes() -> None:
    print("\n| code | T | law, RMS | measured |\n|---|--:|--:|--:|")
    for name in CODES:
        for steps in (4, 8, 16):
            code = CODES[name](steps)
            x = code.low + (1 - code.low) * torch.rand(400_000, generator=seeded(0)).double()
            drawn = {"generator": seeded(1)} if name == "bernoulli" else {}
            error = (code.quantize(x, **drawn) - x).square().mean().sqrt()
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
            f"{published_rule(float(rank), 0.08):,} |"
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


def arithmetic() -> None:
    print("\n| n | softmax on spikes: largest sum of errors, 200 rows | law | spikes per score |")
    print("|--:|--:|--:|--:|")
    for n in (4, 16, 64, 197):
        z = 2 * torch.randn(200, n, generator=seeded(n)).double()
        law = 2 * (relative_error("exp2") + 1 / CELLS) + relative_error("reciprocal")
        law += 2 * n * 2.0**-OCTAVES
        scores = cells_of(z)
        below = subtract_row_max(scores)
        finding, gates = inverse_spikes((exp2_negative(-below) * FINE * 2.0**OCTAVES).sum(-1))
        spikes = race_spikes(scores).sum() + exp2_spikes(-below).sum()
        spikes = spikes + (finding + gates).sum()
        error = (softmax(z) - z.softmax(-1)).abs().sum(-1).max()
        print(f"| {n} | {float(error):.4f} | {law:.4f} | {float(spikes) / z.numel():.1f} |")
    print("\n| width | layer norm on spikes: RMS error | law, RMS |")
    print("|--:|--:|--:|")
    for width in (4, 64, 768):
        x = torch.randn(500, width, generator=seeded(width)).double()
        one = torch.ones(width, dtype=torch.float64)
        digits = SignedDigitFormat.fit(1 / 256, 2 * float(x.abs().max()))
        y = layer_norm(x, one, None, 0.0, digits).y
        true = torch.nn.functional.layer_norm(x, (width,))
        law = relative_error("rsqrt") ** 2 + (digits.grid / x.std(1, correction=0)).square() / 2
        error = (y - true).square().mean().sqrt()
        print(f"| {width} | {float(error):.5f} | {float(law.mean().sqrt()):.5f} |")


def approximations() -> None:
    def spread(x: torch.Tensor) -> torch.Tensor:
        return (x[:, :, None] - x[:, None]).abs().amax(2)

    print(
        "\n| n | d | steps | neurons | largest error | bound | spikes per input | published steps |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for n, d, bits in (
        (2, 2, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 4, 2), (3, 2, 2), (3, 4, 1),
        (4, 2, 2), (4, 3, 1), (8, 2, 1),
    ):  # fmt: skip
        network = EquivariantTable(spread, n, d, bits)
        x = torch.rand(200, n, d, generator=seeded(n)).double()
        found = network(x)
        bound = network.bound(2.0)
        print(
            f"| {n} | {d} | {bits} | {network.neurons:,} | "
            f"{float((found.y - spread(x)).abs().max()):.3f} | {bound:.3f} | "
            f"{float(found.spikes.double().mean()):.1f} | {published_steps(n, d, bound):,.0f} |"
        )
    print("\n| n | d | eps | bits that any network needs | bits of the published size |")
    print("|--:|--:|--:|--:|--:|")
    for n, d, eps in ((2, 2, 0.01), (2, 2, 1e-4), (4, 2, 0.01), (4, 4, 0.01), (8, 4, 0.01)):
        print(
            f"| {n} | {d} | {eps:g} | {bits_needed(n, d, eps):.2g} | "
            f"{published_bits(n, d, eps):.2g} |"
        )


if __name__ == "__main__":
    for table in (codes, projections, softmaxes, exponentials, arithmetic, approximations):
        table()
