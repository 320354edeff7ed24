"""Causal order: violations, edges and time, beside the inverse covariance and simple ways.

    python benchmarks/causal.py [--seeds 5] [--first 100] [--bif DIR]
        [--only linear,extraction,fit,curved,gap,scores,edges,large,guards,sachs,dagma,bnlearn]

D is the number of true edges that an order turns round, SHD the pairs whose edge differs. Means
over seeds with 95 % intervals of the mean (normal). Seconds are CPU seconds of one thread where
nothing else is said.
"""

import argparse
import contextlib
import gzip
import io
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

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

CURVED = ("sin", "quadratic", "gp", "mlp")


def made(mechanism, d, edges, rows, seed, **options):
    draw = torch.Generator().manual_seed(seed)
    return simulate(random_dag(d, edges, "er", draw), rows, mechanism, generator=draw, **options)


def mean(found):
    spread = 1.96 * statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return f"{statistics.fmean(found):.1f} +- {spread:.1f}"


def some(found, asked):
    failed = f" ({asked - len(found)} failed)" if len(found) < asked else ""
    return (mean(found) if found else "") + failed


def linear(seeds):
    """Linear, equal noise, ER2: D on the population, then on N = 5000 rows with the edges."""
    print("| d | D, population (bottom-up, top-down, gamma .05) | D, N = 5000 | TPR | FDR |")
    print("|--:|--:|--:|--:|--:|")
    for d in (20, 50, 100, 200, 500, 1000):
        population, sample, tpr, fdr = [], [], [], []
        for seed in seeds:
            data = made("linear", d, 2.0, 5000, seed)
            minus = np.eye(d)  # I - W, the weights as each function's values at unit vectors
            for i, f in enumerate(data.functions):
                parents = np.flatnonzero(data.truth[:, i])
                minus[parents, i] = -f(torch.eye(len(parents), dtype=torch.float64)).numpy()
            inverse = np.linalg.inv(minus)
            h, cov = minus @ minus.T, inverse.T @ inverse
            orders = (
                schur_sort(h).order,
                schur_sort(cov, top_down=True).order,
                schur_sort(h, gamma=0.05).order,
            )
            population.append([order_divergence(o, data.truth) for o in orders])
            order = schur_sort(precision(data.data), gamma=0.05).order
            sample.append(order_divergence(order, data.truth))
            if d <= 200:
                graph, _ = prune(data.data, order)
                right = (graph & data.truth).sum()
                tpr.append(right / data.truth.sum())
                fdr.append(1 - right / graph.sum())
        shown = f"{np.mean(tpr):.4f} | {np.mean(fdr):.4f}" if tpr else "| "
        print(f"| {d} | {np.sum(population, 0).tolist()} | {mean(sample)} | {shown} |", flush=True)


def extraction(seeds):
    """Order from a matrix: median seconds of the clock; last the obvious loop, on one thread."""
    print("| d | two threads | gamma .05 | one thread | one copy of the rest a step |")
    print("|--:|--:|--:|--:|--:|")
    for d, runs in ((200, len(seeds)), (1000, len(seeds)), (5000, 3)):
        draw = np.random.default_rng(0)
        a = np.eye(d) - np.triu((draw.random((d, d)) < 4 / d) * draw.uniform(-1, 1, (d, d)), 1)
        matrix = a @ a.T
        cells = []
        for threads, gamma in ((2, 0.0), (2, 0.05), (1, 0.0)):
            torch.set_num_threads(threads)
            schur_sort(matrix[:200, :200].copy())
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                schur_sort(matrix, gamma=gamma)
                times.append(time.perf_counter() - start)
            cells.append(f"{statistics.median(times):.4f}")
        torch.set_num_threads(1)
        if d <= 1000:
            start, rest = time.perf_counter(), matrix
            while len(rest) > 1:
                p = rest.diagonal().argmin()
                keep = np.arange(len(rest)) != p
                column = rest[keep, p]
                rest = rest[np.ix_(keep, keep)] - np.outer(column, column) / rest[p, p]
            cells.append(f"{time.perf_counter() - start:.3f}")
        print(f"| {d} | {' | '.join(cells)} |", flush=True)


def fit(seeds):
    """Fit and order and edges, linear d = 200, N = 1000, ER2: seconds, D and SHD."""
    times, wrong, shd = [], [], []
    for seed in seeds:
        data = made("linear", 200, 2.0, 1000, seed)
        start = time.process_time()
        found = ScoreSchurSort().fit(data.data)
        times.append(time.process_time() - start)
        wrong.append(order_divergence(found.order_, data.truth))
        shd.append(structural_hamming_distance(found.adjacency_, data.truth))
    print("| seconds | D | SHD |\n|--:|--:|--:|")
    print(f"| {statistics.median(times):.2f} | {mean(wrong)} | {mean(shd)} |")


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


def curved(seeds):
    """Curved, d = 50, N = 1000: D / SHD of five orders with one pruning, and seconds."""
    names = ("splines (default)", "inverse covariance", "SCORE", "sorted by variance", "random")
    print(f"| | E | {' | '.join(names)} | s, default | s, SCORE |\n|---|{'--:|' * 8}")
    for mechanism in CURVED:
        for edges in (1.0, 2.0):
            rows, true, times = {k: [[], []] for k in names}, [], ([], [])
            for seed in seeds:
                data = made(mechanism, 50, edges, 1000, seed)
                x = data.data
                true.append(int(data.truth.sum()))
                ways = (
                    lambda x: spline_sort(x, gamma=0.05).order,
                    lambda x: schur_sort(precision(x)).order,
                    stein_variance_order,
                    lambda x: x.var(0).argsort(),
                    lambda x, seed=seed: np.random.default_rng(seed).permutation(50),
                )
                for name, way in zip(names, ways, strict=True):
                    start = time.process_time()
                    order = way(x)
                    graph, _ = prune(x, order)
                    if name in (names[0], names[2]):
                        times[name == names[2]].append(time.process_time() - start)
                    rows[name][0].append(order_divergence(order, data.truth))
                    rows[name][1].append(structural_hamming_distance(graph, data.truth))
            shown = " | ".join(f"{mean(a)} / {mean(b)}" for a, b in rows.values())
            a, b = (f"{statistics.median(t):.2f}" for t in times)
            print(
                f"| {mechanism} ER{edges:.0f} | {np.mean(true):.0f} | {shown} | {a} | {b} |",
                flush=True,
            )


def dagma(seeds):
    """DAGMA-nonlinear 1.1.1 on the rows of `curved`: D of an order of its graph, SHD, edges, s.

    Needs `pip install --no-deps dagma`. Its defaults (230,000 steps at a rate of .0002) would take
    hours for each; these are 1,000 steps at .004 in float32, with its other defaults, and with its
    product of a layer of one output written as a sum, which is faster.
    """
    from dagma.locally_connected import LocallyConnected
    from dagma.nonlinear import DagmaMLP, DagmaNonlinear

    LocallyConnected.forward = lambda self, x: (x[..., None] * self.weight).sum(2) + self.bias
    print("| | D | SHD | edges found | s |\n|---|--:|--:|--:|--:|")
    for mechanism in CURVED:
        for edges in (1.0, 2.0):
            rows = [[], [], [], []]
            for seed in seeds:
                data = made(mechanism, 50, edges, 1000, seed)
                torch.manual_seed(seed)
                start = time.process_time()
                model = DagmaMLP([50, 10, 1], dtype=torch.float32)
                search = DagmaNonlinear(model, dtype=torch.float32)
                with contextlib.redirect_stderr(io.StringIO()):
                    weights = search.fit(data.data, lr=0.004, warm_iter=200, max_iter=400)
                rows[3].append(time.process_time() - start)
                graph = weights != 0
                order = np.array(topological_order(graph))
                rows[0].append(order_divergence(order, data.truth))
                rows[1].append(structural_hamming_distance(graph, data.truth))
                rows[2].append(int(graph.sum()))
            print(f"| {mechanism} ER{edges:.0f} | {' | '.join(map(mean, rows))} |", flush=True)


def gap(seeds):
    """The expectation gap: D with exact Jacobians (N = 1000, d = 20, ER1), and of splines."""
    print("| | mean (the paper) | per sample | winsorised | splines, data only |")
    print("|---|--:|--:|--:|--:|")
    for mechanism in ("sin", "quadratic", "additive-gp", "gp", "mlp"):
        found = {"mean": [], "per-sample": [], "winsorised": [], "regression": []}
        for seed in seeds:
            data = made(mechanism, 20, 1.0, 1000, seed)
            h = data.hessians()
            for name, values in found.items():
                score = "precision" if name == "regression" else (lambda _, h=h: h)
                try:
                    order = ScoreSchurSort(score, name, "row", gamma=0.0).fit(data.data).order_
                except RangeError:  # a pivot that is not positive
                    continue
                values.append(order_divergence(order, data.truth))
        cells = [
            (mean(v) if v else "")
            + (f" ({len(seeds) - len(v)} failed)" if len(v) < len(seeds) else "")
            for v in found.values()
        ]
        print(f"| {mechanism} | {' | '.join(cells)} |", flush=True)


def large(seeds):
    """d = 1000, N = 5000, ER1: D (chance is half of the edges), CPU seconds, peak memory."""
    print("| | E | default | s | inverse covariance | s | sorted by variance |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for mechanism in (*CURVED, "linear"):
        rows, times, true = ([], [], []), ([], []), []
        for seed in seeds:
            data = made(mechanism, 1000, 1.0, 5000, seed)
            x = data.data
            start = time.process_time()
            plain = schur_sort(precision(x)).order
            times[1].append(time.process_time() - start)
            start = time.process_time()
            ours = spline_sort(x, gamma=0.05).order
            times[0].append(time.process_time() - start)
            for k, order in enumerate((ours, plain, x.var(0).argsort())):
                rows[k].append(order_divergence(order, data.truth))
            true.append(int(data.truth.sum()))
        a, b = (f"{statistics.median(t):.2f}" for t in times)
        print(
            f"| {mechanism} | {np.mean(true):.0f} | {mean(rows[0])} | {a} | {mean(rows[1])} | {b} "
            f"| {mean(rows[2])} |",
            flush=True,
        )
    print(f"\nLargest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def scores(seeds):
    """D by score (d = 20, ER2, N = 1000): mean of its information; denoising per sample; s."""
    ways = [(name, "mean") for name in SCORES] + [("denoising", "winsorised")]
    print(f"| | E | {' | '.join(f'{a}, {b}' for a, b in ways)} | splines | s, denoising |")
    print(f"|---|{'--:|' * (len(ways) + 3)}")
    for mechanism in CURVED:
        found, true, times = [[] for _ in range(len(ways) + 1)], [], []
        for seed in seeds:
            data = made(mechanism, 20, 2.0, 1000, seed)
            true.append(int(data.truth.sum()))
            for k, (name, correction) in enumerate([*ways, ("precision", "regression")]):
                start = time.process_time()
                try:
                    order = ScoreSchurSort(name, correction, "row").fit(data.data).order_
                except RangeError:  # a pivot that is not positive
                    continue
                if (name, correction) == ("denoising", "mean"):
                    times.append(time.process_time() - start)
                found[k].append(order_divergence(order, data.truth))
        cells = [
            (mean(v) if v else "")
            + (f" ({len(seeds) - len(v)} failed)" if len(v) < len(seeds) else "")
            for v in found
        ]
        shown = " | ".join(cells)
        seconds = f"{statistics.median(times):.1f}" if times else ""
        print(f"| {mechanism} | {np.mean(true):.0f} | {shown} | {seconds} |", flush=True)


def edges(seeds):
    """SHD of three ways to edges along one order (d = 20, ER2, N = 1000); the empty graph is E."""
    print("| | E | cam | row | slopes |\n|---|--:|--:|--:|--:|")
    for mechanism in ("linear", *CURVED):
        found, true = ([], [], []), []
        for seed in seeds:
            data = made(mechanism, 20, 2.0, 1000, seed)
            true.append(int(data.truth.sum()))
            for values, name in zip(found, PRUNES, strict=True):
                graph = ScoreSchurSort(prune=name).fit(data.data).adjacency_
                values.append(structural_hamming_distance(graph, data.truth))
        print(f"| {mechanism} | {np.mean(true):.0f} | {' | '.join(map(mean, found))} |", flush=True)


def guards(seeds):
    """Share of data sets (d = 30, ER1 and ER2, N = 1000) with a warning of scale, and of noise."""
    print("| | data sets | spread of noise | warned of scale | warned of noise |")
    print("|---|--:|--:|--:|--:|")
    forms = {
        "as made": lambda x, _: x,
        "standardised": lambda x, _: x / x.std(0),
        "over the interquartile range": lambda x, _: x / np.ptp(np.quantile(x, [0.25, 0.75], 0), 0),
        "units of 1/10 to 10": lambda x, draw: x * 10 ** draw.uniform(-1, 1, x.shape[1]),
    }
    rows = [(f"{m}, as made", (m,), 1.0, forms["as made"]) for m in MECHANISMS]
    rows += [(name, MECHANISMS[:-1], 1.0, forms[name]) for name in list(forms)[1:]]
    rows.append(
        ("unequal noise, up to a factor of 2 either way", MECHANISMS[:-1], 2.0, forms["as made"])
    )
    for name, mechanisms, unequal, form in rows:
        spread, scale, noise = [], [], []
        for mechanism in mechanisms:
            for density in (1.0, 2.0):
                for seed in seeds:
                    x = made(mechanism, 30, density, 1000, seed, unequal=unequal).data
                    x = form(x, np.random.default_rng(seed))
                    with warnings.catch_warnings(record=True) as said:
                        warnings.simplefilter("always")
                        fit = ScoreSchurSort().fit(x)
                    kinds = {w.category for w in said}
                    spread.append(fit.noise_spread_)
                    scale.append(ScaleWarning in kinds)
                    noise.append(NoiseWarning in kinds)
        print(
            f"| {name} | {len(scale)} | {np.mean(spread):.2f} | {np.mean(scale):.0%} "
            f"| {np.mean(noise):.0%} |",
            flush=True,
        )


def bnlearn(seeds, folder):
    """Networks of the bnlearn repository: D / SHD on rows made along their graphs (gp, N = 1000),
    and on their own discrete rows (2,000, states by number)."""
    print("| | d | E | gp: splines | inverse covariance | by variance | states: splines | random |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in ("asia", "sachs", "child", "insurance", "alarm", "hailfinder", "hepar2"):
        network = parse_bif(gzip.decompress((folder / f"{name}.bif.gz").read_bytes()).decode())
        truth, d = network.truth, len(network.names)
        found = [([], []) for _ in range(5)]
        for seed in seeds:
            x = simulate(truth, 1000, "gp", generator=torch.Generator().manual_seed(seed)).data
            draw = np.random.default_rng(seed)
            orders = [
                (x, spline_sort(x, gamma=0.05).order),
                (x, schur_sort(precision(x)).order),
                (x, x.var(0).argsort()),
            ]
            states = network.sample(2000, draw).astype(float)
            varies = np.flatnonzero(np.ptp(states, 0) > 0)  # rare states may not have come
            for order in (varies[spline_sort(states[:, varies], gamma=0.05).order],
                          draw.permutation(varies)):  # fmt: skip
                orders.append((states, order))
            for (turned, differ), (data, order) in zip(found, orders, strict=True):
                whole = np.concatenate([np.setdiff1d(np.arange(d), order), order])
                graph = np.zeros((d, d), bool)
                graph[np.ix_(order, order)] = prune(data[:, order], np.arange(len(order)))[0]
                turned.append(order_divergence(whole, truth))
                differ.append(structural_hamming_distance(graph, truth))
        cells = " | ".join(f"{mean(a)} / {mean(b)}" for a, b in found)
        print(f"| {name} | {d} | {truth.sum()} | {cells} |", flush=True)


def sachs(_seeds):
    """Sachs, 853 cells, 17 edges; as they are and as logarithms."""
    table = read_table("sachs")
    print("| | D | SHD | SID | TPR | FDR | edges |\n|---|--:|--:|--:|--:|--:|--:|")
    for name, rows in (("raw", table.rows), ("log", np.log(table.rows))):
        report = order_causes(rows, table.truth)
        for m in report.methods:
            turned = "" if m.divergence is None else f"{m.divergence:g}"
            print(
                f"| {name}: {m.name} | {turned} | {m.shd:g} | {m.sid:g} | {m.tpr:.2f} "
                f"| {m.fdr:.2f} | {m.edges:g} |"
            )
        print(f"| {name}: warnings | {len(report.warnings)} | | | | | |")


def main() -> None:
    own = (linear, extraction, fit, curved, gap, scores, edges, large, guards, sachs)
    sections = (*own, dagma, bnlearn)
    known = {f.__name__: f for f in sections}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(f.__name__ for f in own))
    parser.add_argument("--bif", type=Path, help="folder of NAME.bif.gz, for bnlearn")
    # Not the seeds 0 to 9, on which the thresholds were set.
    parser.add_argument("--first", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # counted where they matter
    for name in args.only.split(","):
        if name not in known:
            sys.exit(f"--only needs some of {', '.join(known)}, got {name}")
        print(f"\n{known[name].__doc__.splitlines()[0]}\n")
        with threadpool_limits(1):
            more = (args.bif,) if name == "bnlearn" else ()
            known[name](range(args.first, args.first + args.seeds), *more)


if __name__ == "__main__":
    main()
