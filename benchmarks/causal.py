"""Causal order: violations, edges and time, beside the inverse covariance and simple ways.

D is the number of true edges that an order turns round, SHD the number of pairs whose edge differs.
Means over seeds with 95 % intervals of the mean (normal). Seconds are CPU seconds of one thread.
Seeds begin at 100: thresholds were set on the seeds 0 to 9.
"""

import contextlib
import functools
import gzip
import io
import resource
import statistics
import time
import warnings
from functools import partial
from types import SimpleNamespace as P

import numpy as np
import scipy.linalg  # noqa: F401 - loaded before its threads are limited
import torch
from threadpoolctl import threadpool_limits

from isospike import ScoreSchurSort, order_causes
from isospike.causal.edges import prune
from isospike.causal.estimator import PRUNES
from isospike.causal.guards import NoiseWarning, ScaleWarning
from isospike.causal.metrics import order_divergence, structural_hamming_distance
from isospike.causal.networks import parse_bif
from isospike.causal.schur import schur_sort
from isospike.causal.scores import SCORES, precision
from isospike.causal.simulate import MECHANISMS, random_dag, simulate, topological_order
from isospike.causal.splines import spline_sort
from isospike.causal.table import read_table
from isospike.errors import RangeError
from isospike.experiments.study import Findings, Goal, shown, study
from isospike.progress import update
from isospike.report.table import Table

CURVED = ("sin", "quadratic", "gp", "mlp")
SHOWN = partial(shown, digits=1)


def causal(name, **more):
    """A study on one thread and without warnings, which are counted where they matter."""

    def decorate(function):
        @functools.wraps(function)
        def run(p, ctx):
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                with threadpool_limits(1), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return function(p, ctx)
            finally:
                torch.set_num_threads(threads)

        return study(f"causal-{name}", **more)(run)

    return decorate


def seeds(p):
    return range(100, 100 + p.seeds)


def made(mechanism, d, edges, rows, seed, **options):
    draw = torch.Generator().manual_seed(seed)
    return simulate(random_dag(d, edges, "er", draw), rows, mechanism, generator=draw, **options)


def some(found, asked):
    """Mean and interval, and how many runs ended with a pivot that is not positive."""
    failed = f" ({asked - len(found)} failed)" if len(found) < asked else ""
    return ((SHOWN(found) if found else "") + failed).strip() or None


def both(turned, differ):
    return f"{SHOWN(turned)} / {SHOWN(differ)}"


def clocked(function, *arguments, **options):
    """What a function returns, and its CPU seconds."""
    start = time.process_time()
    result = function(*arguments, **options)
    return result, time.process_time() - start


@causal(
    "linear",
    question="Does elimination find the order of linear models?",
    presets={"tiny": P(seeds=1, sizes=(10,), rows=300),
             "small": P(seeds=2, sizes=(20, 50), rows=5000),
             "full": P(seeds=5, sizes=(20, 50, 100, 200, 500, 1000), rows=5000)},
)  # fmt: skip
def linear(p, ctx):
    """Equal noise, ER2: D on the population, then on rows, with the edges up to d = 200."""
    rows, goals = [], {}
    for d in p.sizes:
        update("linear", len(rows), len(p.sizes))
        population, sample, tpr, fdr = [], [], [], []
        for seed in seeds(p):
            data = made("linear", d, 2.0, p.rows, seed)
            minus = np.eye(d)  # I - W, the weights as each function's values at unit vectors
            for i, f in enumerate(data.functions):
                parents = np.flatnonzero(data.truth[:, i])
                minus[parents, i] = -f(torch.eye(len(parents), dtype=torch.float64)).numpy()
            inverse = np.linalg.inv(minus)
            h, cov = minus @ minus.T, inverse.T @ inverse
            orders = (schur_sort(h).order, schur_sort(cov, top_down=True).order,
                      schur_sort(h, gamma=0.05).order)  # fmt: skip
            population.append([order_divergence(o, data.truth) for o in orders])
            order = schur_sort(precision(data.data), gamma=0.05).order
            sample.append(order_divergence(order, data.truth))
            if d <= 200:
                graph, _ = prune(data.data, order)
                right = (graph & data.truth).sum()
                tpr.append(right / data.truth.sum())
                fdr.append(1 - right / max(1, graph.sum()))
        total = np.sum(population, 0)
        rows.append((str(d), ", ".join(str(int(v)) for v in total), SHOWN(sample),
                     f"{np.mean(tpr):.4f}" if tpr else None,
                     f"{np.mean(fdr):.4f}" if fdr else None))  # fmt: skip
        if p.seeds > 1:
            goals[f"violations, d = {d}"] = Goal(float(total.sum()), 0)
            if d == 100:
                goals["false edges, d = 100"] = Goal(float(np.mean(fdr)), 0.01)
    head = ("d", "D, population: leaves first, roots first, gamma .05", f"D, N = {p.rows:,}",
            "TPR", "FDR")  # fmt: skip
    meaning = (
        f"Sums over {p.seeds} data sets on population matrices, where no edge is turned round, "
        "and means on rows."
    )
    return Findings({}, [Table("Linear models", head, tuple(rows), meaning)], goals)


@causal(
    "extraction",
    question="How long does it take to order thousands of variables from a matrix?",
    presets={"tiny": P(sizes=(50,), rounds=1, threads=(1,)),
             "small": P(sizes=(200,), rounds=3, threads=(2, 1)),
             "full": P(sizes=(200, 1000, 5000), rounds=5, threads=(2, 1))},
)  # fmt: skip
def extraction(p, ctx):
    """Median seconds of the clock; last the obvious loop, on one thread."""
    rows, goals = [], {}
    for d in p.sizes:
        draw = np.random.default_rng(0)
        a = np.eye(d) - np.triu((draw.random((d, d)) < 4 / d) * draw.uniform(-1, 1, (d, d)), 1)
        matrix, cells = a @ a.T, []
        for threads, gamma in ((p.threads[0], 0.0), (p.threads[0], 0.05), (1, 0.0)):
            torch.set_num_threads(threads)
            runs = {"order": partial(schur_sort, matrix, gamma=gamma)}
            cells.append(ctx.timing(runs, p.rounds, warm_up=int(d <= 1000)).seconds("order"))
        torch.set_num_threads(1)
        loop = (
            ctx.timing({"loop": partial(obvious_loop, matrix)}, 1, warm_up=0).seconds("loop")
            if d <= 1000
            else None
        )
        rows.append((str(d), *(f"{c:.4f}" for c in cells), loop and f"{loop:.3f}"))
        if d >= 1000:
            goals[f"seconds, d = {d}"] = Goal(cells[0], {1000: 0.07, 5000: 3.0}[d])
    head = ("d", f"{p.threads[0]} threads", "gamma .05", "one thread", "a copy at each step")
    meaning = (
        "Seconds of the clock: at a thousand variables elimination in place is a hundred times "
        "faster than the obvious loop, which copies the rest at each step."
    )
    return Findings({}, [Table("Order from a matrix", head, tuple(rows), meaning)], goals)


def obvious_loop(rest):
    while len(rest) > 1:
        least = rest.diagonal().argmin()
        keep = np.arange(len(rest)) != least
        column = rest[keep, least]
        rest = rest[np.ix_(keep, keep)] - np.outer(column, column) / rest[least, least]


@causal(
    "fit",
    question="How long does a whole fit take, and is it right?",
    presets={"tiny": P(seeds=1, d=10), "small": P(seeds=2, d=50), "full": P(seeds=5, d=200)},
)
def fit(p, ctx):
    """Fit, order and edges, linear, N = 1000, ER2."""
    times, wrong, shd = [], [], []
    for seed in seeds(p):
        data = made("linear", p.d, 2.0, 1000, seed)
        found, seconds = clocked(ScoreSchurSort().fit, data.data)
        times.append(seconds)
        wrong.append(order_divergence(found.order_, data.truth))
        shd.append(structural_hamming_distance(found.adjacency_, data.truth))
    rows = ((str(p.d), f"{statistics.median(times):.2f}", SHOWN(wrong), SHOWN(shd)),)
    goals = {"seconds, d = 200": Goal(statistics.median(times), 2.0)} if p.d == 200 else {}
    table = Table("A whole fit", ("d", "s", "D", "SHD"), rows, "Order and edges are right.")
    return Findings({}, [table], goals)


def stein_variance_order(x):
    """The order of SCORE (Rolland et al. 2022), written from its formulas: the leaf is where the
    diagonal of Stein's Hessian varies least, estimated again after every removal."""
    left, back = list(range(x.shape[1])), []
    while left:
        z = x[:, left] - x[:, left].mean(0)
        norms = (z**2).sum(1)
        square = np.maximum(norms[:, None] + norms - 2 * z @ z.T, 0)
        width2 = np.median(square[square > 0])
        kernel = np.exp(-square / (2 * width2)) / width2**0.5  # as its public code scales it
        total = kernel.sum(1)[:, None]
        slope = -(z * total - kernel @ z) / width2
        bend = (z**2 * total - 2 * z * (kernel @ z) + kernel @ z**2) / width2**2 - total / width2
        solved = np.linalg.solve(kernel + 0.001 * np.eye(len(z)), np.hstack([slope, bend]))
        d = len(left)
        back.append(left.pop(int((solved[:, d:] - solved[:, :d] ** 2).var(0).argmin())))
    return np.array(back[::-1])


@causal(
    "curved",
    question="Which method orders curved models best?",
    presets={"tiny": P(seeds=1, d=8, rows=150, mechanisms=("sin",), densities=(1.0,)),
             "small": P(seeds=2, d=50, rows=1000, mechanisms=CURVED[:2], densities=(1.0,)),
             "full": P(seeds=5, d=50, rows=1000, mechanisms=CURVED, densities=(1.0, 2.0))},
)  # fmt: skip
def curved(p, ctx):
    """D / SHD of five orders with one pruning, and seconds."""
    names = ("splines", "inverse covariance", "SCORE", "sorted by variance", "random")
    rows, times, numbers = [], [], {}
    for mechanism in p.mechanisms:
        for edges in p.densities:
            found, seconds, true = {n: ([], []) for n in names}, {n: [] for n in names}, []
            for seed in seeds(p):
                data = made(mechanism, p.d, edges, p.rows, seed)
                true.append(data.truth.sum())
                ways = (
                    lambda x: spline_sort(x, gamma=0.05).order,
                    lambda x: schur_sort(precision(x)).order,
                    stein_variance_order,
                    lambda x: x.var(0).argsort(),
                    lambda x, seed=seed: np.random.default_rng(seed).permutation(x.shape[1]),
                )
                for name, way in zip(names, ways, strict=True):
                    start = time.process_time()
                    order = way(data.data)
                    graph, _ = prune(data.data, order)
                    seconds[name].append(time.process_time() - start)
                    found[name][0].append(order_divergence(order, data.truth))
                    found[name][1].append(structural_hamming_distance(graph, data.truth))
            label = f"{mechanism} ER{edges:.0f}"
            numbers |= {f"D, {label}, {n}": np.mean(turned) for n, (turned, _) in found.items()}
            rows.append((f"{label} ({np.mean(true):.0f})", *(both(*v) for v in found.values())))
            times.append((label, *(f"{statistics.median(seconds[n]):.2f}" for n in names[:3:2])))
    return Findings(
        numbers,
        [
            Table("Curved models: D / SHD", ("model (edges)", *names), tuple(rows),
                  f"d = {p.d}, N = {p.rows:,}, one pruning for all orders; the empty graph's SHD "
                  "is the number of edges. Splines, with which the default begins, are best or "
                  "equal in D in every row."),
            Table("Seconds", ("model", "splines", "SCORE"), tuple(times),
                  "Of the processor, with the pruning: splines take a twentieth of SCORE's time."),
        ],
    )  # fmt: skip


@causal(
    "dagma",
    question="Is DAGMA-nonlinear, cut short, a match for the splines?",
    extra="peers",
    presets={"tiny": P(seeds=0, mechanisms=()), "small": P(seeds=1, mechanisms=("sin",)),
             "full": P(seeds=5, mechanisms=CURVED)},
)  # fmt: skip
def dagma(p, ctx):
    """DAGMA-nonlinear 1.1.1 on the rows of `causal-curved`.

    Needs `pip install --no-deps dagma`. Its defaults (230,000 steps at a rate of .0002) would take
    hours for each; these are 1,000 steps at .004 in float32, with its other defaults, and with its
    product of a layer of one output written as a sum, which is faster.
    """
    rows = []
    for mechanism in p.mechanisms:
        for edges in (1.0, 2.0):
            found = [dagma_run(mechanism, edges, seed) for seed in seeds(p)]
            columns = zip(*found, strict=True)
            rows.append((f"{mechanism} ER{edges:.0f}", *(SHOWN(list(c)) for c in columns)))
    head = ("model", "D of an order of its graph", "SHD", "edges found", "s")
    meaning = (
        "A thousand of its 230,000 steps: no figures of DAGMA at its best. Seconds are the "
        "processor's."
    )
    return Findings({}, [Table("DAGMA, cut short", head, tuple(rows), meaning)])


def dagma_run(mechanism, edges, seed):
    from dagma.locally_connected import LocallyConnected
    from dagma.nonlinear import DagmaMLP, DagmaNonlinear

    LocallyConnected.forward = lambda self, x: (x[..., None] * self.weight).sum(2) + self.bias
    data = made(mechanism, 50, edges, 1000, seed)
    torch.manual_seed(seed)
    search = DagmaNonlinear(DagmaMLP([50, 10, 1], dtype=torch.float32), dtype=torch.float32)
    with contextlib.redirect_stderr(io.StringIO()):
        fitted = partial(search.fit, data.data, lr=0.004, warm_iter=200, max_iter=400)
        weights, seconds = clocked(fitted)
    graph = weights != 0
    order = np.array(topological_order(graph))
    return (order_divergence(order, data.truth), structural_hamming_distance(graph, data.truth),
            int(graph.sum()), seconds)  # fmt: skip


def divergences(ways, data):
    """D of each way ``(score, correction)``; None where a pivot is not positive."""
    found = {}
    for name, (score, correction, options) in ways.items():
        try:
            order = ScoreSchurSort(score, correction, "row", **options).fit(data.data).order_
        except RangeError:
            continue
        found[name] = order_divergence(order, data.truth)
    return found


@causal(
    "gap",
    question="What does averaging the Jacobians of the score lose?",
    presets={"tiny": P(seeds=1, d=6, rows=100, mechanisms=("sin",)),
             "small": P(seeds=2, d=20, rows=1000, mechanisms=("sin", "additive-gp")),
             "full": P(seeds=5, d=20, rows=1000,
                       mechanisms=("sin", "quadratic", "additive-gp", "gp", "mlp"))},
)  # fmt: skip
def gap(p, ctx):
    """D of three corrections with exact Jacobians, and of splines, which see only rows; ER1."""
    rows = []
    names = ("mean (the paper)", "per sample", "winsorised", "splines")
    for mechanism in p.mechanisms:
        found = {name: [] for name in names}
        for seed in seeds(p):
            data = made(mechanism, p.d, 1.0, p.rows, seed)
            h = data.hessians()
            exact = {"gamma": 0.0}
            ways = {
                n: (lambda _, h=h: h, c, exact)
                for n, c in zip(names, ("mean", "per-sample", "winsorised"), strict=False)
            }
            ways["splines"] = ("precision", "regression", exact)
            for name, value in divergences(ways, data).items():
                found[name].append(value)
        rows.append((mechanism, *(some(v, p.seeds) for v in found.values())))
    meaning = (
        f"{p.d} variables, ER1, N = {p.rows:,}; splines see only the rows. Per sample nearly "
        "nothing is lost in additive models; with interactions it breaks down: a mean diagonal "
        "entry became negative, which is refused."
    )
    return Findings({}, [Table("D with exact Jacobians", ("model", *names), tuple(rows), meaning)])


@causal(
    "large",
    question="Are a thousand curved variables ordered better than by chance?",
    presets={"tiny": P(seeds=1, d=20, rows=300, mechanisms=("sin",)),
             "small": P(seeds=1, d=300, rows=3000, mechanisms=("sin",)),
             "full": P(seeds=1, d=1000, rows=5000, mechanisms=(*CURVED, "linear"))},
)  # fmt: skip
def large(p, ctx):
    """ER1; chance is half of the edges. CPU seconds and peak memory."""
    rows, goals = [], {}
    for mechanism in p.mechanisms:
        found, times = ([], [], [], []), ([], [])
        for seed in seeds(p):
            data = made(mechanism, p.d, 1.0, p.rows, seed)
            x = data.data
            plain, seconds = clocked(lambda x: schur_sort(precision(x)).order, x)
            times[1].append(seconds)
            ours, seconds = clocked(lambda x: spline_sort(x, gamma=0.05).order, x)
            times[0].append(seconds)
            for values, order in zip(found, (ours, plain, x.var(0).argsort()), strict=False):
                values.append(order_divergence(order, data.truth))
            found[3].append(int(data.truth.sum()))
        a, b = (f"{statistics.median(t):.1f}" for t in times)
        means = [f"{np.mean(v):.0f}" for v in found]
        rows.append((mechanism, means[3], f"{means[0]} ({a} s)", f"{means[1]} ({b} s)", means[2]))
        if p.d == 1000:
            goals[f"D, {mechanism}"] = Goal(float(np.mean(found[0])), float(np.mean(found[1])))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    head = ("model", "edges", "splines", "inverse covariance", "sorted by variance")
    meaning = (
        "D and seconds of the processor; chance is half of the edges. The splines turn round a "
        "tenth of them at most."
    )
    table = Table(f"d = {p.d}, {p.rows:,} rows", head, tuple(rows), meaning)
    return Findings({"peak memory, GB": peak}, [table], goals)


@causal(
    "scores",
    question="Which estimate of the score orders best?",
    presets={"tiny": P(seeds=1, d=6, rows=100, mechanisms=("sin",), denoising=False),
             "small": P(seeds=1, d=20, rows=1000, mechanisms=("sin",), denoising=True),
             "full": P(seeds=3, d=20, rows=1000, mechanisms=CURVED, denoising=True)},
)  # fmt: skip
def scores(p, ctx):
    """D by score, ER2: mean of its information, the network also winsorised; splines."""
    ways = {n: (n, "mean", {}) for n in SCORES if p.denoising or n != "denoising"}
    if p.denoising:
        ways["denoising, winsorised"] = ("denoising", "winsorised", {})
    ways["splines"] = ("precision", "regression", {})
    found = {m: {name: [] for name in ways} for m in p.mechanisms}
    for done, mechanism in enumerate(p.mechanisms):
        update("scores", done, len(p.mechanisms))
        for seed in seeds(p):
            data = made(mechanism, p.d, 2.0, p.rows, seed)
            for name, value in divergences(ways, data).items():
                found[mechanism][name].append(value)
    rows = [(name, *(some(found[m][name], p.seeds) for m in p.mechanisms)) for name in ways]
    meaning = (
        f"D at d = {p.d}, ER2, N = {p.rows:,}, seeds: {p.seeds}. The network does not beat the "
        "inverse covariance, the splines beat all."
    )
    return Findings({}, [Table("Scores", ("score", *p.mechanisms), tuple(rows), meaning)])


@causal(
    "edges",
    question="Which way finds the edges of an order?",
    presets={"tiny": P(seeds=1, d=6, rows=100, mechanisms=("linear",)),
             "small": P(seeds=1, d=20, rows=1000, mechanisms=("linear", "sin")),
             "full": P(seeds=3, d=20, rows=1000, mechanisms=("linear", *CURVED))},
)  # fmt: skip
def edges(p, ctx):
    """SHD of three ways along one order, ER2; that of the empty graph is the number of edges."""
    rows = []
    for mechanism in p.mechanisms:
        found, true = [[] for _ in PRUNES], []
        for seed in seeds(p):
            data = made(mechanism, p.d, 2.0, p.rows, seed)
            true.append(int(data.truth.sum()))
            for values, name in zip(found, PRUNES, strict=True):
                graph = ScoreSchurSort(prune=name).fit(data.data).adjacency_
                values.append(structural_hamming_distance(graph, data.truth))
        rows.append((mechanism, f"{np.mean(true):.0f}", *map(SHOWN, found)))
    meaning = "SHD: regression with splines (cam) is ahead or equal everywhere."
    return Findings({}, [Table("Edges", ("model", "edges", *PRUNES), tuple(rows), meaning)])


FORMS = {
    "as made": lambda x, _: x,
    "standardised": lambda x, _: x / x.std(0),
    "over the interquartile range": lambda x, _: x / np.ptp(np.quantile(x, [0.25, 0.75], 0), 0),
    "in units of 1/10 to 10": lambda x, draw: x * 10 ** draw.uniform(-1, 1, x.shape[1]),
}


@causal(
    "guards",
    question="Do the warnings of scale and of noise come where they should?",
    presets={"tiny": P(seeds=1, d=6, rows=100, mechanisms=("linear",)),
             "small": P(seeds=1, d=30, rows=1000, mechanisms=("linear", "sin")),
             "full": P(seeds=5, d=30, rows=1000, mechanisms=MECHANISMS)},
)  # fmt: skip
def guards(p, ctx):
    """Share of data sets, ER1 and ER2, with a warning of scale, and of noise."""
    proper = tuple(m for m in p.mechanisms if m != "post-nonlinear")
    cases = [(f"{m}, as made", (m,), 1.0, "as made") for m in p.mechanisms]
    cases += [(name, proper, 1.0, name) for name in list(FORMS)[1:]]
    cases.append(("unequal noise, up to a factor of 2", proper, 2.0, "as made"))
    rows = []
    for done, (name, mechanisms, unequal, form) in enumerate(cases):
        update("guards", done, len(cases))
        found = [warned(m, density, seed, unequal, FORMS[form], p)
                 for m in mechanisms for density in (1.0, 2.0) for seed in seeds(p)]  # fmt: skip
        spread, scale, noise = (np.mean(v) for v in zip(*found, strict=True))
        rows.append((name, str(len(found)), f"{spread:.2f}", f"{100 * scale:.0f} %",
                     f"{100 * noise:.0f} %"))  # fmt: skip
    head = ("data", "data sets", "spread of noise", "warned of scale", "warned of noise")
    meaning = "Changed units and post-nonlinear data are announced, data as made are not."
    return Findings({}, [Table("Warnings", head, tuple(rows), meaning)])


def warned(mechanism, density, seed, unequal, form, p):
    """Spread of the noise, and whether the fit warned of scale and of noise."""
    x = made(mechanism, p.d, density, p.rows, seed, unequal=unequal).data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = ScoreSchurSort().fit(form(x, np.random.default_rng(seed)))
    kinds = {w.category for w in caught}
    return fitted.noise_spread_, ScaleWarning in kinds, NoiseWarning in kinds


@causal(
    "bnlearn",
    question="How well are networks of the bnlearn repository ordered?",
    data=("bnlearn_bif",),
    presets={"tiny": P(seeds=0, names=()), "small": P(seeds=1, names=("asia", "sachs")),
             "full": P(seeds=3, names=("asia", "sachs", "child", "insurance", "alarm"))},
)  # fmt: skip
def bnlearn(p, ctx):
    """D / SHD on rows made along their graphs (gp, N = 1000), and on 2,000 of their own states."""
    rows, own = [], []
    for name in p.names:
        packed = ctx.file("bnlearn_bif", f"{name}.bif.gz").read_bytes()
        network = parse_bif(gzip.decompress(packed).decode())
        truth, d = network.truth, len(network.names)
        found = [([], []) for _ in range(5)]
        for seed in range(100, 100 + p.seeds):
            x = simulate(truth, 1000, "gp", generator=torch.Generator().manual_seed(seed)).data
            draw = np.random.default_rng(seed)
            states = network.sample(2000, draw).astype(float)
            varies = np.flatnonzero(np.ptp(states, 0) > 0)  # rare states may not have come
            orders = [
                (x, spline_sort(x, gamma=0.05).order),
                (x, schur_sort(precision(x)).order),
                (x, x.var(0).argsort()),
                (states, varies[spline_sort(states[:, varies], gamma=0.05).order]),
                (states, draw.permutation(varies)),
            ]
            for (turned, differ), (data, order) in zip(found, orders, strict=True):
                whole = np.concatenate([np.setdiff1d(np.arange(d), order), order])
                graph = np.zeros((d, d), bool)
                graph[np.ix_(order, order)] = prune(data[:, order], np.arange(len(order)))[0]
                turned.append(order_divergence(whole, truth))
                differ.append(structural_hamming_distance(graph, truth))
        label = f"{name}, {d}, {truth.sum()}"
        rows.append((label, *(both(*v) for v in found[:3])))
        own.append((label, *(both(*v) for v in found[3:])))
    return Findings(
        {},
        [
            Table("Gaussian processes along their graphs: D / SHD", ("network, d, edges",
                  "splines", "inverse covariance", "sorted by variance"), tuple(rows),
                  "The splines are ahead in every network."),
            Table("Their own states: D / SHD", ("network, d, edges", "splines", "random"),
                  tuple(own), "Discrete states are no additive noise model: better than chance in "
                  "three networks, worse in two."),
        ],
    )  # fmt: skip


@causal(
    "sachs",
    question="Does the order of the Sachs data mean anything?",
    presets=dict.fromkeys(("tiny", "small", "full"), P(seeds=1)),
)
def sachs(p, ctx):
    """853 cells, 17 edges; as they are and as logarithms."""
    table = read_table("sachs")
    rows, numbers = [], {}
    for name, values in (("raw", table.rows), ("log", np.log(table.rows))):
        report = order_causes(values, table.truth)
        numbers[f"warnings, {name}"] = len(report.warnings)
        for m in report.methods:
            turned = None if m.divergence is None else f"{m.divergence:g}"
            rows.append((f"{name}: {m.name}", turned, f"{m.shd:g}", f"{m.sid:g}",
                         f"{m.tpr:.2f} / {m.fdr:.2f}", f"{m.edges:g}"))  # fmt: skip
    head = ("method", "D", "SHD", "SID", "TPR / FDR", "edges")
    meaning = "Random orders with our pruning do about as well: the benchmark says little."
    return Findings(numbers, [Table("Sachs", head, tuple(rows), meaning)])
