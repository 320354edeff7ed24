"""Causal order: the rule that a fit chooses, and checks of rows and columns."""

import statistics
from types import SimpleNamespace as P

import numpy as np
import torch

from benchmarks.causal import SHOWN, causal, clocked, made, seeds, stein_variance_order
from isospike import ScoreSchurSort
from isospike.causal.checks import check_rows
from isospike.causal.edges import prune
from isospike.causal.metrics import compare_to_truth, structural_hamming_distance
from isospike.causal.simulate import random_dag, topological_order
from isospike.experiments.study import Findings, Goal
from isospike.progress import update
from isospike.report.table import Table

NOISES = {
    "gauss": lambda draw, shape: draw.normal(size=shape),
    "laplace": lambda draw, shape: draw.laplace(size=shape) / 2**0.5,
    "uniform": lambda draw, shape: draw.uniform(-(3**0.5), 3**0.5, shape),
}
# Name: mechanism or noise of lines, largest factor of a noise's size, z-scores, most SHD asked.
KINDS = {
    "lines, Gaussian, equal": ("gauss", 1.0, False, 0.0),
    "sin, equal": ("sin", 1.0, False, 0.2),
    "additive GP, equal": ("additive-gp", 1.0, False, 0.4),
    "lines, Laplace, unequal": ("laplace", 2.0, False, 2.8),
    "lines, Gaussian, z-scores": ("gauss", 1.0, True, 4.0),
    "lines, uniform, z-scores": ("uniform", 1.0, True, 1.5),
    "additive GP, unequal": ("additive-gp", 2.0, False, 6.4),
    "additive GP, z-scores": ("additive-gp", 1.0, True, 19.0),
    "mlp, equal": ("mlp", 1.0, False, None),
    "gp, equal": ("gp", 1.0, False, None),
    "quadratic, equal": ("quadratic", 1.0, False, None),
}


def of_kind(kind, d, edges, rows, seed):
    """Rows and graph of a kind; lines have weights +-U[.5, 2]."""
    name, unequal, scored, _ = KINDS[kind]
    if name in NOISES:
        truth = random_dag(d, edges, "er", torch.Generator().manual_seed(seed))
        draw = np.random.default_rng(seed)
        x = NOISES[name](draw, (rows, d)) * unequal ** draw.uniform(-1, 1, d)
        weights = draw.uniform(0.5, 2, (d, d)) * draw.choice([-1, 1], (d, d)) * truth
        for i in topological_order(truth):
            x[:, i] += x @ weights[:, i]
    else:
        data = made(name, d, edges, rows, seed, unequal=unequal)
        x, truth = data.data, data.truth
    return ((x - x.mean(0)) / x.std(0) if scored else x), truth


def lenient(x, truth, fit):
    """SHD where an edge without a direction is right if its ends are joined, and wrong arrows."""
    shd = compare_to_truth(fit.order_, fit.adjacency_, truth, directed=fit.directed_).shd
    return shd, int((fit.directed_ & truth.T).sum())


@causal(
    "rules",
    question="Does the rule that a fit chooses find the graph, whatever the units and the noise?",
    presets={"tiny": P(seeds=1, sizes=(6,), rows=300, kinds=list(KINDS)[3:5], peer=False),
             "small": P(seeds=2, sizes=(20,), rows=1000, kinds=list(KINDS)[:8], peer=False),
             "full": P(seeds=5, sizes=(20,), rows=1000, kinds=list(KINDS), peer=True)},
)  # fmt: skip
def rules(p, ctx):
    """ER2; SHD and wrong arrows, the rules chosen, CPU seconds; SCORE beside where a goal is it."""
    rows, goals, times = [], {}, []
    for d in p.sizes:
        for kind in p.kinds:
            update("rules", len(rows), len(p.sizes) * len(p.kinds))
            found, chosen, peer, seconds = [], [], [], []
            for seed in seeds(p):
                x, truth = of_kind(kind, d, 2.0, p.rows, seed)
                fit, spent = clocked(ScoreSchurSort().fit, x)
                found.append(lenient(x, truth, fit))
                chosen.append(fit.rule_)
                seconds.append(spent)
                if p.peer and KINDS[kind][3] is None:
                    graph, _ = prune(x, stein_variance_order(x))
                    peer.append(structural_hamming_distance(graph, truth))
            shd, wrong = zip(*found, strict=True)
            times.append(statistics.median(seconds))
            used = ", ".join(f"{n} {chosen.count(n)}" for n in dict.fromkeys(chosen))
            asked = float(np.mean(peer)) if peer else KINDS[kind][3]
            rows.append((f"{kind}, d = {d}", SHOWN(shd), SHOWN(wrong), used,
                         None if asked is None else f"{asked:.1f}",
                         f"{times[-1]:.2f}"))  # fmt: skip
            if d == 20 and asked is not None:
                goals[f"SHD, {kind}"] = Goal(float(np.mean(shd)), asked)
    if 20 in p.sizes:
        goals["CPU s, d = 20"] = Goal(max(times), 0.3)
    head = ("data", "SHD", "wrong arrows", "rules", "asked, or SCORE", "CPU s")
    meaning = "An edge without a direction counts as right if its ends are joined."
    return Findings({}, [Table("Rules", head, tuple(rows), meaning)], goals)


@causal(
    "checks",
    question="How often do the checks of rows and columns warn of nothing?",
    presets={"tiny": P(tables=20), "small": P(tables=200), "full": P(tables=1000)},
)
def checks(p, ctx):
    """Tables of independent rows, 300 x 8, of several noises; then tables with a fault."""
    draw = np.random.default_rng(100)
    names = [f"x{j}" for j in range(8)]
    kinds = {
        "Gaussian": lambda: draw.normal(size=(300, 8)),
        "uniform": lambda: draw.uniform(size=(300, 8)),
        "Laplace": lambda: draw.laplace(size=(300, 8)),
        "exponential": lambda: draw.exponential(size=(300, 8)),
        "Student, 5": lambda: draw.standard_t(5, (300, 8)),
        "log-normal": lambda: draw.lognormal(size=(300, 8)),
    }
    faults = {
        "one cell of -9999": lambda x: np.where(np.arange(300 * 8).reshape(300, 8) == 41, -9999, x),
        "autoregression, .5": lambda x: autoregressed(x, 0.5),
        "random walks": lambda x: np.cumsum(x, 0),
        "a tenth of the rows twice": lambda x: draw.permutation(np.vstack([x, x[:30]])),
        "a column of row numbers": lambda x: np.column_stack([np.arange(300), x[:, 1:]]),
        "a column of 5 values": lambda x: np.column_stack([draw.integers(0, 5, 300), x[:, 1:]]),
        "shares of 1": lambda x: np.abs(x) / np.abs(x).sum(1, keepdims=True),
        "40 rows": lambda x: x[:40],
    }
    rows = []
    for name, make in kinds.items():
        hits = np.mean([bool(check_rows(make(), names)) for _ in range(p.tables)])
        rows.append((name, "none", f"{100 * hits:.1f} %"))
    for name, spoil in faults.items():
        spoilt = [spoil(kinds["Gaussian"]()) for _ in range(max(5, p.tables // 10))]
        rows.append(
            (
                "Gaussian",
                name,
                f"{100 * np.mean([bool(check_rows(x, names)) for x in spoilt]):.1f} %",
            )
        )
    alarms = max(float(r[2][:-2]) for r in rows[: len(kinds)])
    goals = {"false alarms, %": Goal(alarms, 1.0)} if p.tables >= 1000 else {}
    table = Table("Checks", ("noise", "fault", "warned"), tuple(rows), "Faults are announced.")
    return Findings({}, [table], goals)


def autoregressed(x, share):
    out = x.copy()
    for t in range(1, len(x)):
        out[t] += share * out[t - 1]
    return out
