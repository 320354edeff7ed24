"""Is the number of steps a network needs fixed by effective dimension? Trained networks answer.

T is the smallest of the numbers tried whose accuracy is within one interval of the best: 1.96
standard errors of the share of right answers at the best, all seeds' test images together.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from isospike import progress
from isospike.codes import fit_law
from isospike.deploy.neurobench import count_family
from isospike.energy import FLOAT_45NM, INT8_45NM, INT8_SRAM_45NM, Counts, estimate_energy
from isospike.experiments.study import CORRECTED, FAILS, HOLDS, Context, Findings, claim
from isospike.models.layers import Synapses
from isospike.report.files import write_file
from isospike.report.numbers import NORMAL_95, Number
from isospike.report.table import Table
from isospike.theory.laws import published_steps
from isospike.train.timesteps import (
    DATA,
    FAMILIES,
    MEASURES,
    TIMES,
    Images,
    dimensions,
    noise,
    rate_errors,
    run_at_times,
    small_images,
    train_small,
)
from isospike.workers import map_cells

USUAL = 4  # steps that are said to suffice
EXAMPLE = 47.0  # d_eff for which they are said to
COORDINATE_ERROR = 0.265  # gives 4 steps for that example, width 384, where the rule is read so
TABLES = (FLOAT_45NM, INT8_45NM, INT8_SRAM_45NM)

Cell = dict[str, Any]
Cells = Mapping[tuple[str, str], Sequence[Cell]]


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        name: Of the preset, in the names of files.
        families: Networks.
        data: Data sets; of noise if their name begins so.
        seeds: Networks trained at each number of steps.
        retrained: Numbers of steps at which networks are trained; 4 is always one of them.
        shown: Images that a training sees, repeated ones included.
        images, tests: Different images that it sees, and test images.
    """

    name: str
    families: tuple[str, ...] = tuple(FAMILIES)
    data: tuple[str, ...] = tuple(DATA)
    seeds: int = 3
    retrained: tuple[int, ...] = TIMES
    shown: int = 10_000
    images: int = 5000
    tests: int = 400


PRESETS = {
    "tiny": Preset(
        "tiny", ("QKFormer", "SpikingResformer"), ("noise", "noise again"), 1, (2, 4), 12, 12, 12
    ),
    "small": Preset("small", seeds=1, retrained=(2, 4), shown=1000, images=1000, tests=200),
    "full": Preset("full"),
}


def images_at(preset: Preset, folder: Path | None, name: str, steps: int) -> Images:
    """The images of a data set, in frames of ``steps`` if they are events.

    Args:
        preset: Says how many.
        folder: Of the data; None for noise.
        name: Of the data set.
        steps: T.
    """
    if folder is None:
        return noise(preset.images, len(name))
    events = name == "N-MNIST"  # 1,100 recordings in all
    count, tests = (700, 400) if events else (preset.images, preset.tests)
    return small_images(folder, count, tests, steps if events else 0)


def run_cell(preset: Preset, folders: Mapping[str, Path | None], cell: Sequence[Any]) -> Cell:
    """Train one network and measure it.

    Args:
        preset: How much.
        folders: Of the data sets.
        cell: Family, data set, steps in training, seed, and whether attention is frozen.
    """
    family, name, steps, seed, frozen = cell
    of: Callable[[int], Images] = partial(images_at, preset, folders[name], name)
    images = of(steps)
    model = train_small(
        family, images, steps=steps, epochs=preset.shown / len(images.train), seed=seed,
        frozen=frozen,
    )  # fmt: skip
    usual = steps == USUAL
    times = TIMES if usual else (steps,)
    found: Cell = {**run_at_times(model, of, times), "tests": len(images.test)}
    if usual and not frozen:
        found["dimensions"] = dimensions(model, images.train[:400], steps, seed=seed)
        found["rates"] = rate_errors(model, images, of, steps)
        found["energy"] = _energy(model, images, steps)
    return found


def _energy(model: Any, images: Images, steps: int) -> dict[str, float]:
    """Of an image: spikes, additions, and energies of three machines under each table."""
    some = images.test[:20]
    work = count_family(model, some, steps)[1]
    frames = some.mean(1, keepdim=True) if some.dim() == 5 else some
    dense = count_family(model, frames, 1)[1]
    layers = [m.conv.weight for m in model.modules() if isinstance(m, Synapses)]
    neurons = dense.per_sample("neuron_updates")
    macs = dense.per_sample("dense")
    counts = Counts(
        macs=macs, synaptic_ops=work.per_sample("synaptic_ops"), spikes=work.per_sample("spikes"),
        neuron_updates=work.per_sample("neuron_updates"), neurons=neurons,
        bits=math.ceil(math.log2(steps + 1)), float_ops={},
        weights=sum(w.numel() for w in layers), activations=neurons, steps=steps,
        tokens_per_input=1.0, spiking_float_ops={"image": work.per_sample("macs")},
    )  # fmt: skip
    rows = {table.name: estimate_energy(counts, table) for table in TABLES}
    found = {"spikes": counts.spikes, "additions": counts.synaptic_ops, "macs": macs}
    for name, row in rows.items():
        found[f"float over spiking, {name}"] = (row.float_pj or 0.0) / row.spiking_pj
        found[f"equal bits over spiking, {name}"] = (row.quantised_pj or 0.0) / row.spiking_pj
    return found


def collect(preset: Preset, context: Context) -> dict[str, Cells]:
    """All networks of a preset, those that are there already read from their files.

    Args:
        preset: Which.
        context: Folders and processes.

    Returns:
        ``usual``, seed by seed; ``retrained``, by the preset's steps without 4, seed by seed;
        ``frozen``; each by family and data set.
    """
    folders = {
        name: None if name.startswith("noise") else context.file(DATA[name]) for name in preset.data
    }
    pairs = [(family, name) for family in preset.families for name in preset.data]
    others = sorted(steps for steps in preset.retrained if steps != USUAL)
    kinds: dict[str, list[tuple[int, int, bool]]] = {
        "usual": [(USUAL, seed, False) for seed in range(preset.seeds)],
        "frozen": [(USUAL, 0, True)],
        "retrained": [(steps, s, False) for steps in others for s in range(preset.seeds)],
    }
    cells = [(*pair, *more) for wanted in kinds.values() for more in wanted for pair in pairs]
    cells.sort(key=lambda cell: cell[3])  # all of one seed first

    def file(cell: Sequence[Any]) -> Path:
        words = "-".join(str(part).replace(" ", "") for part in cell)
        return context.folder / f"timesteps-{preset.name}" / f"{words}.json"

    missing = [cell for cell in cells if not file(cell).exists()]
    done = [len(cells) - len(missing)]

    def finish(cell: Sequence[Any], found: Cell) -> None:
        write_file(file(cell), json.dumps(found).encode())
        done[0] += 1
        progress.update("networks", done[0], len(cells))

    map_cells(partial(run_cell, preset, folders), missing, context.workers, finish)
    return {
        kind: {
            pair: [json.loads(file((*pair, *more)).read_bytes()) for more in wanted]
            for pair in pairs
        }
        for kind, wanted in kinds.items()
    }


# ----------------------------------------------------------------- the steps needed


def fewest(right: Mapping[int, Number], images: int) -> int:
    """The smallest T within one interval of the best.

    Args:
        right: Share of right answers by T.
        images: Test images behind each.

    >>> fewest({1: 0.5, 2: 0.79, 4: 0.8}, images=100)
    2
    """
    best = max(right.values())
    least = best - NORMAL_95 * math.sqrt(best * (1 - best) / images)
    return min(steps for steps, share in right.items() if share >= least)


def mean_of(cells: Sequence[Cell], *path: str) -> float:
    """The mean over cells of a number at a path of keys."""
    values: list[float] = []
    for cell in cells:
        value: Any = cell
        for key in path:
            value = value[key]
        values.append(value)
    return float(sum(values) / len(values))


def deepest(cell: Cell) -> str:
    """The name of the last layer of a cell's network."""
    names: list[str] = list(cell["dimensions"])
    return names[-1]


def dimension(cells: Sequence[Cell], place: str, measure: str) -> float:
    """Mean effective dimension at a place: pixels, tokens, or ``last`` for the last layer."""
    return mean_of(cells, "dimensions", deepest(cells[0]) if place == "last" else place, measure)


def octaves(predicted: Number, needed: int) -> float:
    """How far a prediction is off, in powers of two."""
    return abs(math.log2(max(predicted, 1)) - math.log2(needed))


def determination(predicted: Sequence[Number], needed: Sequence[int]) -> float:
    """R^2 of predictions in powers of two, at most 1; NaN where all need the same."""
    y = [math.log2(n) for n in needed]
    mean = sum(y) / len(y)
    total = sum((v - mean) ** 2 for v in y)
    rest = sum(octaves(p, n) ** 2 for p, n in zip(predicted, needed, strict=True))
    return 1 - rest / total if total else math.nan


def correlation(x: Sequence[Number], needed: Sequence[int]) -> float:
    """Squared correlation of two logarithms; NaN where one does not vary or is not defined."""
    if any(not v > 0 for v in x):
        return math.nan
    a, b = ([math.log(v) for v in values] for values in (x, needed))
    a, b = ([v - sum(values) / len(values) for v in values] for values in (a, b))
    scale = sum(v * v for v in a) * sum(v * v for v in b)
    return sum(p * q for p, q in zip(a, b, strict=True)) ** 2 / scale if scale else math.nan


def _others(pairs: Sequence[tuple[str, str]], pair: tuple[str, str]) -> list[tuple[str, str]]:
    """Pairs of other data sets, from which a constant for this one may be fitted."""
    return [other for other in pairs if other[1] != pair[1]]


def predictions(usual: Cells, needed: Mapping[tuple[str, str], int]
                ) -> dict[str, dict[tuple[str, str], Number]]:  # fmt: skip
    """T by each rule, for each family and data set.

    Args:
        usual: Networks trained at 4 steps.
        needed: T, from which two rules fit a constant, on other data sets than the one predicted.
    """
    pairs = list(usual)
    pixels = {pair: dimension(usual[pair], "pixels", "pca") for pair in pairs}
    rules: dict[str, dict[tuple[str, str], Number]] = {
        "C d / eps^2 as written, eps = .1": {p: published_steps(pixels[p], 0.1) for p in pairs},
        "C d / eps^2, eps such that d = 47 gives 4": {
            p: math.ceil(USUAL * pixels[p] / EXAMPLE) for p in pairs
        },
    }
    name = f"C d / (width eps^2), eps = {COORDINATE_ERROR:g}"
    rules[name] = {
        p: published_steps(
            pixels[p] / mean_of(usual[p], "dimensions", "pixels", "width"), COORDINATE_ERROR
        )
        for p in pairs
    }
    for what, place, measure in (("pixels", "pixels", "pca"), ("last layer", "last", "pca")):
        d = {p: max(1e-9, dimension(usual[p], place, measure)) for p in pairs}
        rules[f"c d of the {what}, c fitted elsewhere"] = {
            p: max(1.0, round(d[p] * _scale([needed[o] / d[o] for o in _others(pairs, p)])))
            for p in pairs
        }
    errors = {p: {t: mean_of(usual[p], "error", str(t)) for t in TIMES} for p in pairs}
    law: dict[tuple[str, str], Number] = {}
    for p in pairs:
        target = _scale([errors[o][needed[o]] for o in _others(pairs, p)])
        seen = {t: max(1e-9, mean_of(usual[p], "seen", str(t))) for t in (1, 2, 4)}
        fitted = fit_law("rate", seen)
        law[p] = fitted.fewest_steps(target) or TIMES[-1]
    rules["our law: error at 1, 2, 4 steps, target error fitted elsewhere"] = law
    rules["always 4"] = dict.fromkeys(pairs, float(USUAL))
    return rules


def _scale(values: Sequence[Number]) -> float:
    """The geometric mean, of values kept above 0."""
    return math.exp(sum(math.log(max(v, 1e-9)) for v in values) / len(values))


# ----------------------------------------------------------------- tables


def _shares(right: Mapping[Any, float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in right.values())


def _pair_rows(
    found: Mapping[str, Cells], row: Callable[[tuple[str, str]], tuple[Any, ...]]
) -> tuple[tuple[Any, ...], ...]:
    return tuple((*pair, *row(pair)) for pair in found["usual"])


def retrained(
    found: Mapping[str, Cells], pair: tuple[str, str], preset: Preset
) -> dict[int, Sequence[Cell]]:
    """Networks trained at other numbers of steps than 4, of all seeds, by these.

    Args:
        found: What :func:`collect` gave.
        pair: Family and data set.
        preset: Its preset.
    """
    others = sorted(steps for steps in preset.retrained if steps != USUAL)
    cells, n = found["retrained"][pair], preset.seeds
    return {steps: cells[i * n : (i + 1) * n] for i, steps in enumerate(others)}


def summed(found: Mapping[str, Cells], preset: Preset) -> dict[str, Any]:
    """Accuracies and needed steps by family and data set.

    Args:
        found: What :func:`collect` gave.
        preset: Its preset.

    Returns:
        Means over seeds: ``right``, of fixed weights; ``again``, trained at each number of steps;
        fewest T of them, ``needed`` and ``anew``; and ``cold``, of attention that is not trained.
    """
    right, again, needed, anew, cold = {}, {}, {}, {}, {}
    for pair, cells in found["usual"].items():
        tests = cells[0]["tests"]
        right[pair] = {t: mean_of(cells, "right", str(t)) for t in TIMES}
        needed[pair] = fewest(right[pair], tests * len(cells))
        own = {t: mean_of(of, "right", str(t)) for t, of in retrained(found, pair, preset).items()}
        again[pair] = dict(sorted({**own, USUAL: right[pair][USUAL]}.items()))
        anew[pair] = fewest(again[pair], tests * len(cells))
        still = {t: found["frozen"][pair][0]["right"][str(t)] for t in TIMES}
        cold[pair] = fewest(still, tests)
    return {"right": right, "again": again, "needed": needed, "anew": anew, "cold": cold}


PAIR = ("family", "data")


def step_tables(found: Mapping[str, Cells], sums: Mapping[str, Any], preset: Preset) -> list[Table]:
    """Accuracy and error by steps, and those of attention that is not trained.

    Args:
        found: What :func:`collect` gave.
        sums: What :func:`summed` gave.
        preset: Its preset.
    """
    usual, others = found["usual"], sorted(t for t in preset.retrained if t != USUAL)
    times, again = (" / ".join(map(str, ts)) for ts in (TIMES, sorted({*others, USUAL})))
    runs = _pair_rows(found, lambda p: (
        _shares(sums["right"][p]), sums["needed"][p], _shares(sums["again"][p]), sums["anew"][p],
    ))  # fmt: skip
    errors = _pair_rows(found, lambda p: (
        " / ".join(f"{mean_of(usual[p], 'error', str(t)):.2f}" for t in TIMES),
        " / ".join(
            f"{mean_of(cells, 'error', str(t)):.2f}"
            for t, cells in retrained(found, p, preset).items()
        ),
    ))  # fmt: skip
    frozen = _pair_rows(found, lambda p: (
        *(f"{cell['right'][str(USUAL)]:.1%}" for cell in (usual[p][0], found["frozen"][p][0])),
        sums["needed"][p], sums["cold"][p],
    ))  # fmt: skip
    head = (
        *PAIR, f"fixed weights, % at T = {times}", "fewest T", f"retrained, % at T = {again}",
        "fewest T then",
    )  # fmt: skip
    return [
        Table(
            "Right answers by steps", head, runs,
            "Trained at 4 steps and run at others, and trained at each. The fewest T is the "
            f"smallest within one interval of the best. Seeds of each: {preset.seeds}.",
        ),
        Table(
            "Error of the scores by steps", (*PAIR, f"fixed weights, at T = {times}",
            f"retrained, at T = {' / '.join(map(str, others))}"), errors,
            "Relative to the spread of the network's own scores at 32 steps.",
        ),
        Table(
            "Attention that is not trained", (*PAIR, "trained", "frozen", "fewest T", "frozen, T"),
            frozen, "Weights that choose where attention looks stay as drawn; one seed, 4 steps.",
        ),
    ]  # fmt: skip


def state_tables(found: Mapping[str, Cells]) -> list[Table]:
    """Effective dimensions, and spikes with what they cost.

    Args:
        found: What :func:`collect` gave.
    """
    usual = found["usual"]
    places = _pair_rows(found, lambda p: tuple(
        " / ".join(f"{dimension(usual[p], place, m):.3g}" for m in MEASURES)
        for place in ("pixels", "tokens", "layer 1", "last")
    ))  # fmt: skip

    def ratios(pair: tuple[str, str], machine: str) -> str:
        names = (f"{machine} over spiking, {table.name}" for table in TABLES)
        return " / ".join(f"{mean_of(usual[pair], 'energy', name):.2f}" for name in names)

    spent = _pair_rows(found, lambda p: (
        f"{mean_of(usual[p], 'energy', 'spikes'):,.0f}", ratios(p, "float"),
        ratios(p, "equal bits"), f"{mean_of(usual[p], 'rates', 'ratio'):.2f}",
    ))  # fmt: skip
    head = (
        *PAIR, "spikes an image", "float over spiking", "equal bits over spiking",
        "observed over theoretical spikes",
    )  # fmt: skip
    return [
        Table(
            "Effective dimension", (*PAIR, "pixels", "tokens", "first layer", "last layer"), places,
            "Components of 95 % of the variance / participation ratio / TwoNN, means of the seeds. "
            "Pixels of 400 images, so that the first is limited by them.",
        ),
        Table(
            "Spikes and energy at 4 steps", head, spent,
            "Energies by additions, neurons and pixels' multiplications, for 45 nm: float units / "
            "integer units / these with SRAM. The equal-bit network has 3 bits.",
        ),
    ]  # fmt: skip


def rule_tables(
    usual: Cells, needed: Mapping[tuple[str, str], int], anew: Mapping[tuple[str, str], int]
) -> tuple[list[Table], dict[str, float]]:
    """How well each rule predicts the fewest T, and each dimension goes with it.

    Args:
        usual: Networks trained at 4 steps.
        needed: Fewest T of fixed weights.
        anew: Of retrained ones.

    Returns:
        Two tables, and their numbers.
    """
    pairs, numbers, rows = list(usual), {}, []
    for rule in predictions(usual, needed):
        texts: list[str] = []
        for what, true in (("fixed", needed), ("retrained", anew)):
            predicted = predictions(usual, true)[rule]
            p, n = [predicted[pair] for pair in pairs], [true[pair] for pair in pairs]
            off = sum(abs(a - b) for a, b in zip(p, n, strict=True)) / len(p)
            r2 = determination(p, n)
            numbers[f"{rule}, {what}: mean |T - fewest T|"] = off
            numbers[f"{rule}, {what}: R^2"] = r2
            texts += [f"{off:.2f}", "–" if math.isnan(r2) else f"{r2:.2f}"]
        rows.append((rule, *texts))
    first = Table(
        "Rules for T", ("rule", "off, fixed weights", "R^2", "off, retrained", "R^2 then"),
        tuple(rows), "Mean |T - fewest T| in steps; R^2 of log T, below 0 where the mean of the "
        "fewest T would be nearer. C = 2.3, d the components of 95 % of the pixels' variance.",
    )  # fmt: skip
    squares = []
    for place in ("pixels", "tokens", "layer 1", "last"):
        line = []
        for measure in MEASURES:
            d = [dimension(usual[pair], place, measure) for pair in pairs]
            r2 = correlation(d, [needed[pair] for pair in pairs])
            numbers[f"r^2 of {measure} of {place} with the fewest T"] = r2
            line.append("–" if math.isnan(r2) else f"{r2:.2f}")
        squares.append((place, *line))
    second = Table(
        "Squared correlation of log d_eff with log of the fewest T",
        ("place", "95 % of variance", "participation ratio", "TwoNN"), tuple(squares),
        "Fixed weights; over families and data sets.",
    )  # fmt: skip
    return [first, second], {k: v for k, v in numbers.items() if not math.isnan(v)}


def decide(numbers: Mapping[str, float]) -> str:
    """Holds if d_eff predicts T better than the number 4; corrected if 4 suffices all the same.

    Args:
        numbers: Of the study.
    """
    rule = "c d of the pixels, c fitted elsewhere, fixed: mean |T - fewest T|"
    explains = numbers.get("best r^2 of a dimension with the fewest T", 0.0) >= 0.5
    if explains and numbers[rule] < numbers["always 4, fixed: mean |T - fewest T|"]:
        return HOLDS
    return CORRECTED if numbers["share where 4 steps suffice, fixed"] >= 0.75 else FAILS


@claim(
    "timesteps",
    source="arXiv 2604.15769, Theorem 13",
    statement="T = 4 suffices because the effective dimension is small: T = C d_eff / eps^2.",
    verdict=decide,
    question="Is the number of steps a trained network needs fixed by its effective dimension?",
    presets=PRESETS,
)
def timesteps(preset: Preset, context: Context) -> Findings:
    """Train small networks of each family on each data set, and run them at 1 to 16 steps.

    Args:
        preset: How much is run.
        context: Folders and processes.
    """
    found = collect(preset, context)
    sums = summed(found, preset)
    usual, pairs = found["usual"], list(found["usual"])
    rules, numbers = rule_tables(usual, sums["needed"], sums["anew"])
    squares = [v for k, v in numbers.items() if k.startswith("r^2 of")]
    numbers["best r^2 of a dimension with the fewest T"] = max(squares, default=0.0)
    for kind, key in (("fixed", "needed"), ("retrained", "anew")):
        enough = [sums[key][pair] <= USUAL for pair in pairs]
        numbers[f"share where 4 steps suffice, {kind}"] = sum(enough) / len(pairs)
        numbers[f"mean fewest T, {kind}"] = sum(sums[key].values()) / len(pairs)
    lost = [
        usual[p][0]["right"][str(USUAL)] - found["frozen"][p][0]["right"][str(USUAL)] for p in pairs
    ]
    numbers["accuracy lost by frozen attention"] = sum(lost) / len(lost)
    for name in usual[pairs[0]][0]["energy"]:
        if " over " in name:
            values = [mean_of(usual[p], "energy", name) for p in pairs]
            numbers[f"{name}: least"], numbers[f"{name}: most"] = min(values), max(values)
    ratios = [mean_of(usual[p], "rates", "ratio") for p in pairs]
    known = [r for r in ratios if not math.isnan(r)] or [0.0]
    numbers["observed over theoretical spikes: least"] = min(known)
    numbers["observed over theoretical spikes: most"] = max(known)
    return Findings(numbers, [*step_tables(found, sums, preset), *state_tables(found), *rules])
