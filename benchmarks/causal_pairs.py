"""Causal order of two columns: simulated pairs of many kinds, and files of real ones."""

from types import SimpleNamespace as P

import numpy as np

from benchmarks.causal import causal
from isospike import ScoreSchurSort
from isospike.experiments.study import Findings, Goal
from isospike.progress import update
from isospike.report.table import Table

FIRST_SEED = 2000  # the limits of the rule were set on pairs of the seeds 1000 to 1015


def curve(draw, x, scale=None):
    """A random smooth function of a column, as values of mean 0 and standard deviation 1."""
    scale = scale or draw.uniform(0.8, 1.6)
    z = (x - x.mean()) / x.std()
    frequency, phase = draw.normal(size=60) / scale, draw.uniform(0, 2 * np.pi, 60)
    y = np.cos(np.outer(z, frequency) + phase) @ draw.normal(size=60)
    return (y - y.mean()) / y.std()


def gauss(draw, n):
    return draw.normal(size=n)


def uniform(draw, n):
    return draw.uniform(-1.7, 1.7, n)


def laplace(draw, n):
    return draw.laplace(size=n) / 2**0.5


def lognormal(draw, n):
    return np.exp(0.6 * draw.normal(size=n))


def mixture(draw, n):
    part, mean, size = draw.integers(0, 3, n), 1.5 * draw.normal(size=3), draw.uniform(0.3, 0.8, 3)
    return mean[part] + size[part] * draw.normal(size=n)


def of_cause(cause, effect):
    """Draws of a cause and then, given it, of its effect."""

    def pair(draw, n):
        x = cause(draw, n)
        return x, effect(draw, x, n)

    return pair


def of_common(first, second, hidden=gauss):
    """Draws of two columns that a third one causes."""

    def pair(draw, n):
        c = hidden(draw, n)
        return first(draw, c, n), second(draw, c, n)

    return pair


def blurred(draw, c, n):
    return curve(draw, c) + 0.4 * gauss(draw, n)


def scaled_noise(draw, x, n):
    return curve(draw, x) + 0.4 * np.exp(0.7 * curve(draw, x)) * gauss(draw, n)


def cubed(draw, x, n):
    total = curve(draw, x) + 0.4 * gauss(draw, n)
    return total**3 + 0.3 * total


def not_additive(draw, x, n):
    weight, phase = draw.normal(size=(2, 80)) / 1.5, draw.uniform(0, 2 * np.pi, 80)
    z = (x - x.mean()) / x.std()
    inside = np.outer(z, weight[0]) + np.outer(0.5 * gauss(draw, n), weight[1]) + phase
    return np.cos(inside) @ draw.normal(size=80)


def size(draw):
    return draw.uniform(0.3, 0.7)


# Those on which the limits of the rule were set: (a draw, whether there is a direction to find).
CALIBRATED = {
    "tanh, added noise": (of_cause(gauss, lambda d, x, n: np.tanh(2 * x) + 0.3 * gauss(d, n)), 1),
    "square, added noise": (
        of_cause(gauss, lambda d, x, n: (x + 0.5) ** 2 + 0.5 * gauss(d, n)), 1),
    "line, Laplace": (
        of_cause(laplace, lambda d, x, n: x + d.uniform(0.5, 1.5) * laplace(d, n)), 1),
    "exp times noise": (
        of_cause(gauss, lambda d, x, n: np.exp(0.7 * x) * (1 + 0.4 * gauss(d, n))), 1),
    "curve, noise of varying size": (of_cause(gauss, scaled_noise), 1),
    "line, Gaussian": (of_cause(gauss, lambda d, x, n: x + d.uniform(0.3, 2) * gauss(d, n)), 0),
    "exp of a Gaussian sum": (
        of_cause(gauss, lambda d, x, n: np.exp(0.7 * x + 0.5 * gauss(d, n))), 0),
    "log-normal times log-normal": (
        of_cause(lognormal, lambda d, x, n: x * np.exp(0.5 * gauss(d, n))), 0),
    "independent": (of_cause(mixture, lambda d, x, n: d.exponential(size=n)), 0),
    "common cause, lines, Gaussian": (
        of_common(lambda d, c, n: c + 0.7 * gauss(d, n), lambda d, c, n: 0.5 * gauss(d, n) - c), 0),
}  # fmt: skip
OTHERS = {
    "curve, added noise": (
        of_cause(gauss, lambda d, x, n: curve(d, x) + size(d) * gauss(d, n)), 1),
    "curve of a mixture": (
        of_cause(mixture, lambda d, x, n: curve(d, x) + size(d) * gauss(d, n)), 1),
    "curve, uniform noise": (
        of_cause(mixture, lambda d, x, n: curve(d, x) + size(d) * uniform(d, n)), 1),
    "sigmoid, added noise": (
        of_cause(uniform, lambda d, x, n: 1 / (1 + np.exp(-3 * x)) + 0.1 * gauss(d, n)), 1),
    "line, uniform": (
        of_cause(uniform, lambda d, x, n: x + d.uniform(0.5, 1.5) * uniform(d, n)), 1),
    "line, exponential noise": (of_cause(gauss, lambda d, x, n: x + d.exponential(size=n)), 1),
    "sigmoid times uniform": (of_cause(
        gauss, lambda d, x, n: (0.2 + 1 / (1 + np.exp(-2 * x))) * d.uniform(0.2, 1, n)), 1),
    "exp of a curve times uniform": (
        of_cause(mixture, lambda d, x, n: np.exp(0.8 * curve(d, x)) * d.uniform(0.3, 1, n)), 1),
    "line times gamma": (of_cause(
        lambda d, n: d.uniform(0.5, 2, n), lambda d, x, n: x * d.gamma(8, 1 / 8, n)), 1),
    "curve of a mixture, noise of varying size": (of_cause(mixture, scaled_noise), 1),
    "line, noise of varying size": (of_cause(
        lambda d, n: d.uniform(0, 2, n), lambda d, x, n: x + (0.2 + 0.4 * x) * gauss(d, n)), 1),
    "cube of a sum": (of_cause(mixture, cubed), 1),
    "logistic of a sum": (
        of_cause(uniform, lambda d, x, n: 1 / (1 + np.exp(-2 * x - 0.8 * gauss(d, n)))), 1),
    "exp of a sum": (
        of_cause(gauss, lambda d, x, n: np.exp(0.8 * curve(d, x) + 0.32 * gauss(d, n))), 1),
    "sinh of a sum": (of_cause(gauss, lambda d, x, n: np.sinh(x + 0.5 * laplace(d, n))), 1),
    "function of cause and noise": (of_cause(mixture, not_additive), 1),
    "counts": (of_cause(
        uniform, lambda d, x, n: d.poisson(np.exp(1 + 0.7 * x)).astype(float)), 1),
    "tanh, rounded": (
        of_cause(gauss, lambda d, x, n: np.round(4 * np.tanh(2 * x) + 1.2 * gauss(d, n))), 1),
    "both rounded": (of_cause(
        lambda d, n: np.round(5 * gauss(d, n)),
        lambda d, x, n: np.round(3 * np.tanh(x / 3) + gauss(d, n))), 1),
    "independent log-normals": (of_cause(lognormal, lambda d, x, n: np.exp(gauss(d, n))), 0),
    "Gaussian pair, both warped": (of_common(
        lambda d, c, n: np.exp(c), lambda d, c, n: np.tanh(0.6 * c + 0.8 * gauss(d, n))), 0),
    "common cause, lines, Laplace": (
        of_common(*2 * (lambda d, c, n: c + 0.6 * laplace(d, n),), laplace), 0),
    "common cause, curves": (of_common(blurred, blurred), 0),
    "common cause, tanh and exp": (of_common(
        lambda d, c, n: np.tanh(2 * c) + 0.3 * gauss(d, n),
        lambda d, c, n: np.exp(0.6 * c) + 0.3 * gauss(d, n)), 0),
}  # fmt: skip


def answer(x):
    """1 for an arrow from the first column, -1 for one from the second, 0 for none."""
    directed = ScoreSchurSort().fit(x).directed_
    return int(directed[0, 1]) - int(directed[1, 0])


def answers(pair, n, seeds):
    """Answers, 1 for the true direction; of every second pair z-scores, the effect first."""
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        x = np.column_stack(pair(np.random.default_rng(seed), n))
        turned = seed % 2
        if turned:
            x = ((x - x.mean(0)) / x.std(0))[:, ::-1]
        found.append(answer(x) * (-1 if turned else 1))
    return found


@causal(
    "pairs",
    question="How often is the arrow between two columns right, wrong, or left out?",
    presets={"tiny": P(seeds=2, rows=(100,), most=3),
             "small": P(seeds=6, rows=(300,), most=100),
             "full": P(seeds=20, rows=(100, 300, 1000), most=100)},
)  # fmt: skip
def pairs(p, ctx):
    """Limits were set on the first ten kinds; goals are those of the others."""
    table, shares = [], {"right": [], "wrong": [], "undue": [], "common": []}
    worse = 0
    groups = (("calibrated", CALIBRATED), ("other", OTHERS))
    for group, kinds in groups:
        for name, (pair, direction) in list(kinds.items())[: p.most]:
            update("pairs", len(table), len(CALIBRATED) + len(OTHERS))
            by_rows = [answers(pair, n, p.seeds) for n in p.rows]
            cells = [(v.count(1), v.count(-1)) for v in by_rows]
            shown = (f"{r} / {w}" if direction else f"{r + w} undue" for r, w in cells)
            table.append((name, group, *shown))
            if group == "calibrated":
                continue
            right, wrong = np.sum(cells, 0) / (len(p.rows) * p.seeds)
            if direction:
                shares["right"].append(right)
                shares["wrong"].append(wrong)
                worse += wrong > right
            else:
                shares["common" if "common" in name else "undue"].append(right + wrong)
    mean = {name: float(np.mean(values)) for name, values in shares.items() if values}
    goals = {}
    if p.seeds >= 20:
        goals = {
            "wrong arrows, share of pairs with a direction": Goal(mean["wrong"], 0.02),
            "arrows where there is none to find, share": Goal(mean["undue"], 0.05),
            "kinds with more wrong than right arrows": Goal(float(worse), 0),
        }
    head = ("pairs", "limits", *(f"{n} rows" for n in p.rows))
    meaning = (
        f"Right and wrong arrows of {p.seeds} pairs; the rest has none. Undue: no direction can be "
        "found in such pairs, or neither column is a cause."
    )
    return Findings(mean, [Table("Two columns", head, tuple(table), meaning)], goals)


@causal(
    "two-columns",
    question="Is the cause of two columns found, whatever their units?",
    data=("pairs",),
    presets={"tiny": P(most=0), "small": P(most=20), "full": P(most=10_000)},
)
def two_columns(p, ctx):
    """Files of the folder ``pairs``, two columns each: cause, then effect.

    A file ``turned.txt`` there may name files that have the effect first. Ties count half.
    """
    files, turned = [], set()
    if p.most:
        folder = ctx.file("pairs")
        files = sorted(folder.glob("pair*"))[: p.most]
        turned = set(ctx.file("pairs", "turned.txt").read_text().split())
    rows, goals = [], {}
    for form in ("raw", "z-scores"):
        arrows, first, by_size = [], [], []
        for number, file in enumerate(files):
            update("two-columns", number, len(files))
            x = np.loadtxt(file)[:, :2]
            if form == "z-scores":
                x = (x - x.mean(0)) / x.std(0)
            cause = int(file.name in turned)
            fit = ScoreSchurSort().fit(x)
            right = float(fit.order_[0] == cause)
            arrows.append(right if fit.directed_.any() else None)
            first.append(right if fit.margins_[fit.order_[0]] > 0 else 0.5)
            by_size.append(float(x[:, cause].var() < x[:, 1 - cause].var()))
        if files:
            sure = [a for a in arrows if a is not None]
            half = [0.5 if a is None else a for a in arrows]
            shares = (len(sure) / len(files), np.mean(sure), np.mean(half), np.mean(first))
            rows.append((form, *(f"{v:.2f}" for v in (*shares, np.mean(by_size)))))
            for name, values in (("arrows", half), ("likelier first", first)):
                value = float(np.mean(values))
                goals[f"{name}, ties half, {form}"] = Goal(value, 0.65, at_least=True)
    head = ("columns", "with an arrow", "right of these", "arrows, ties half",
            "likelier first, ties half", "sorted by variance")  # fmt: skip
    meaning = "Pairs of real causes and effects; chance is 0.5."
    goals = goals if p.most > 1000 else {}
    return Findings({}, [Table("Two columns", head, tuple(rows), meaning)], goals)
