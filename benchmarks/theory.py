"""The laws of :mod:`isospike.theory` and the circuits of spikes beside what is measured."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace as P

import torch

from isospike.circuits.arithmetic import (
    OCTAVES,
    cells_of,
    exp2_negative,
    exp2_spikes,
    inverse_spikes,
    layer_norm,
    race_spikes,
    subtract_row_max,
)
from isospike.circuits.arithmetic import softmax as spiking_softmax
from isospike.circuits.digits import SignedDigitFormat
from isospike.circuits.few_spike import BUILTIN, few_spike_neuron, fit_few_spike, measure
from isospike.circuits.integers import CELLS, FINE, relative_error
from isospike.codes import CODES, BernoulliCode
from isospike.dimension import EffectiveDimension
from isospike.errors import IsospikeError
from isospike.experiments.study import Findings, study
from isospike.report.table import Table
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

WIDTH, STEPS = 256, 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@study(
    "code-errors",
    question="Which error has a code after so many steps?",
    presets={"tiny": P(values=2000), "small": P(values=40_000), "full": P(values=400_000)},
)
def code_errors(p, ctx):
    """Uniform values, root-mean-square error, beside the closed form of each code."""
    rows, numbers = [], {}
    for name in CODES:
        for steps in (4, 8, 16):
            code = CODES[name](steps)
            x = code.low + (1 - code.low) * torch.rand(p.values, generator=seeded(0)).double()
            drawn = {"generator": seeded(1)} if name == "bernoulli" else {}
            error = float((code.quantize(x, **drawn) - x).square().mean().sqrt())
            numbers[f"{name}, T={steps}"] = error
            rows.append((name, str(steps), f"{code.mean_square_error**0.5:.3g}", f"{error:.3g}"))
    head = ("code", "steps", "law", "measured")
    meaning = "Root-mean-square errors: digits halve them with every step or two, counts do not."
    return Findings(numbers, [Table("Errors of the codes", head, tuple(rows), meaning)])


@study(
    "projection",
    question="How many steps does a population need if its values lie in few dimensions?",
    presets={"tiny": P(rows=200, latents=(4,)), "small": P(rows=2000, latents=(4, 64)),
             "full": P(rows=2000, latents=(1, 4, 16, 64, 256))},
)  # fmt: skip
def projection(p, ctx):
    """Rates of a latent Gaussian of k dimensions, Bernoulli spikes, T = 4, read by the projector
    on the PCA-95 subspace.
    """
    errors, needed, numbers = [], [], {}
    for latent in p.latents:
        basis = torch.randn(latent, WIDTH, generator=seeded(latent)).double() / latent**0.5
        x = torch.special.ndtr(
            0.6 * torch.randn(p.rows, latent, generator=seeded(0)).double() @ basis
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
        except IsospikeError:
            ours = "below the floor"
        measured = float((read - x).square().mean().sqrt())
        numbers[f"law over measured, k={latent}"] = law.mean_square_error(STEPS) ** 0.5 / measured
        errors.append((
            f"{latent}, {rank}", f"{law.mean_square_error(STEPS) ** 0.5:.4f}",
            f"{parts.mean_square_error(STEPS) ** 0.5:.4f}", f"{measured:.4f}",
            f"{float((noisy - x).square().mean().sqrt()):.4f}", f"{law.floor**0.5:.4f}",
        ))  # fmt: skip
        needed.append((f"{latent}, {rank}", ours, f"{published_rule(float(rank), 0.08):,}"))
    return Findings(
        numbers,
        [
            Table("Errors with and without the projection",
                  ("latent k, PCA-95", "law (4)", "form (5)", "measured", "not projected", "floor"),
                  tuple(errors), "The law meets the measured error within 1 %; without the "
                  "projection the dimension does not matter."),
            Table("Steps for an error of .08", ("latent k, PCA-95", "ours", "published rule"),
                  tuple(needed), "The published rule asks for hundreds to thousands of times "
                  "the steps."),
        ],
    )  # fmt: skip


@study(
    "softmax",
    question="Do races, shunting and lateral inhibition compute softmax?",
    presets={"tiny": P(sizes=(4,), steps=(64,), races=5),
             "small": P(sizes=(4, 16), steps=(64, 1024), races=20),
             "full": P(sizes=(4, 16, 64, 197), steps=(64, 1024, 16_384), races=40)},
)  # fmt: skip
def softmax(p, ctx):
    """Standard normal scores. Subtractive inhibition: the best of five drives and four weights."""
    rows = []
    for n in p.sizes:
        z = torch.randn(n, generator=seeded(n)).double()
        a = z.softmax(0)
        for steps in p.steps:
            races = [
                (softmax_race(z, steps, generator=seeded(i)) - a).square().sum()
                for i in range(p.races)
            ]
            best = [
                min(
                    float((softmax_subtractive(z, steps, decay=decay, drive=d, inhibition=w) - a)
                          .abs().sum())
                    for d in (0.25, 0.5, 1.0, 2.0, 4.0)
                    for w in (0.0, 0.5, 1.0, 2.0)
                )
                for decay in (0.5, 0.9)
                if steps <= 1024
            ]  # fmt: skip
            rows.append((
                f"{n}, {steps:,}", f"{race_error(z, steps):.4f}",
                f"{float(torch.stack(races).mean().sqrt()):.4f}",
                f"{float((softmax_shunting(z, steps) - a).abs().sum()):.4f}",
                *([f"{b:.3f}" for b in best] or [None, None]),
            ))  # fmt: skip
    head = ("scores, steps", "race: law", "measured", "shunting", "subtractive, decay .5", ".9")
    meaning = "The race's and shunting's errors fall with steps; those of a leaky net stay."
    return Findings({}, [Table("Softmax by spikes", head, tuple(rows), meaning)])


@study(
    "coincidence",
    question="How many steps does exp by coincidences need?",
    presets={"tiny": P(cases=((1.0, 0.0),)), "small": P(cases=((1.0, 0.0), (5.0, 0.0))),
             "full": P(cases=((1.0, 0.0), (2.0, 0.0), (5.0, 0.0), (5.0, -4.0), (5.0, 4.0)))},
)  # fmt: skip
def exponentials(p, ctx):
    """Steps for a relative standard deviation of 10 %."""
    rows = []
    for reach, z in p.cases:
        counts = [coincidence(z, reach, 60, shared=s).steps(0.1) for s in (True, False)]
        rows.append((f"{reach:g}, {z:g}", *(f"{count:,}" for count in counts)))
    head = ("reach M, z", "shared trains (published)", "own trains")
    meaning = "Trains of its own for each factor need an eighth to three fifths of the steps."
    return Findings({}, [Table("exp by coincidences", head, tuple(rows), meaning)])


@study(
    "circuits",
    question="How exact are softmax and layer norm on spikes?",
    presets={"tiny": P(sizes=(4,), widths=(4,)), "small": P(sizes=(4, 64), widths=(4, 64)),
             "full": P(sizes=(4, 16, 64, 197), widths=(4, 64, 768))},
)  # fmt: skip
def circuits(p, ctx):
    """200 rows of scores and 500 rows of activations, beside the laws of their errors."""
    scores_table, norms, numbers = [], [], {}
    for n in p.sizes:
        z = 2 * torch.randn(200, n, generator=seeded(n)).double()
        law = 2 * (relative_error("exp2") + 1 / CELLS) + relative_error("reciprocal")
        law += 2 * n * 2.0**-OCTAVES
        scores = cells_of(z)
        below = subtract_row_max(scores)
        finding, gates = inverse_spikes((exp2_negative(-below) * FINE * 2.0**OCTAVES).sum(-1))
        spikes = race_spikes(scores).sum() + exp2_spikes(-below).sum() + (finding + gates).sum()
        error = float((spiking_softmax(z) - z.softmax(-1)).abs().sum(-1).max())
        numbers[f"softmax, n={n}"] = error
        scores_table.append((str(n), f"{error:.4f}", f"{law:.4f}",
                             f"{float(spikes) / z.numel():.1f}"))  # fmt: skip
    for width in p.widths:
        x = torch.randn(500, width, generator=seeded(width)).double()
        one = torch.ones(width, dtype=torch.float64)
        digits = SignedDigitFormat.fit(1 / 256, 2 * float(x.abs().max()))
        y = layer_norm(x, one, None, 0.0, digits).y
        true = torch.nn.functional.layer_norm(x, (width,))
        law = relative_error("rsqrt") ** 2 + (digits.grid / x.std(1, correction=0)).square() / 2
        error = float((y - true).square().mean().sqrt())
        numbers[f"layer norm, {width}"] = error
        norms.append((str(width), f"{error:.5f}", f"{float(law.mean().sqrt()):.5f}"))
    return Findings(
        numbers,
        [
            Table("Softmax on spikes", ("scores", "largest sum of errors", "law",
                  "spikes per score"), tuple(scores_table), "Whatever the number of scores, a "
                  "third of the law."),
            Table("Layer norm on spikes", ("width", "RMS error", "law"), tuple(norms),
                  "About half of the law."),
        ],
    )  # fmt: skip


@study(
    "approximation",
    question="How large is a network of spikes that approximates any equivariant map?",
    presets={"tiny": P(cases=((2, 2, 1),), bounds=((2, 2, 0.01),)),
             "small": P(cases=((2, 2, 1), (2, 2, 2), (4, 2, 2)), bounds=((2, 2, 0.01),)),
             "full": P(cases=((2, 2, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 4, 2),
                              (3, 2, 2), (3, 4, 1), (4, 2, 2), (4, 3, 1), (8, 2, 1)),
                       bounds=((2, 2, 0.01), (2, 2, 1e-4), (4, 2, 0.01), (4, 4, 0.01),
                               (8, 4, 0.01)))},
)  # fmt: skip
def approximations(p, ctx):
    """The distance to the farthest other token, by channel; published steps at the same bound."""

    def spread(x):
        return (x[:, :, None] - x[:, None]).abs().amax(2)

    rows, numbers = [], {}
    for n, d, steps in p.cases:
        network = EquivariantTable(spread, n, d, steps)
        x = torch.rand(200, n, d, generator=seeded(n)).double()
        found, bound = network(x), network.bound(2.0)
        error = float((found.y - spread(x)).abs().max())
        numbers[f"error over bound, {n}, {d}, {steps}"] = error / bound
        rows.append((f"{n}, {d}, {steps}", f"{network.neurons:,}", f"{error:.3f}", f"{bound:.3f}",
                     f"{float(found.spikes.double().mean()):.1f}",
                     f"{published_steps(n, d, bound):,.0f}"))  # fmt: skip
    sizes = [(f"{n}, {d}, {eps:g}", f"{bits_needed(n, d, eps):.2g}",
              f"{published_bits(n, d, eps):.2g}") for n, d, eps in p.bounds]  # fmt: skip
    return Findings(
        numbers,
        [
            Table("A network that is built", ("tokens, channels, steps", "neurons",
                  "largest error", "bound", "spikes per input", "published steps"), tuple(rows),
                  "Every error is below its bound, in a handful of steps."),
            Table("Information that any network needs", ("tokens, channels, error",
                  "bits needed", "bits of the published size"), tuple(sizes),
                  "The published size cannot hold some maps of four tokens."),
        ],
    )  # fmt: skip


@study(
    "few-spike",
    question="How exact are the few-spike neurons that the package ships?",
    presets=dict.fromkeys(("tiny", "small", "full"), P(points=4001)),
)
def few_spikes(p, ctx):
    """RMS error over the range of each function, beside counting to the same number of steps."""
    rows, numbers = [], {}
    for name, (function, low, high) in BUILTIN.items():
        neuron = measure(few_spike_neuron(name), function)
        values = function(torch.linspace(low, high, p.points, dtype=torch.float64))
        share = neuron.error / float(values.max() - values.min())
        stairs = 1 / (math.sqrt(12) * (neuron.steps + 1))
        numbers[name] = share
        rows.append((f"{name}, [{low:g}, {high:g}]", f"{neuron.error:.4f}",
                     f"{100 * share:.2f} %", f"{neuron.largest:.4f}", f"{neuron.spikes:.2f}",
                     f"{100 * stairs:.2f} %"))  # fmt: skip
    head = ("function, range", "RMS error", "of the range", "largest", "spikes", "counting")
    meaning = "In 16 steps; the last column is the error of counting to 16."
    return Findings(numbers, [Table("Few-spike neurons", head, tuple(rows), meaning)])


def write_few_spikes(path, rounds=20_000):
    """Fit the few-spike neurons anew and write the table of src/isospike/data/few_spike.json."""
    table = {}
    for name, (function, low, high) in BUILTIN.items():
        fitted = fit_few_spike(function, low, high, 16, rounds=rounds, generator=seeded(0))
        table[name] = asdict(fitted)
    Path(path).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
