"""NeuroBench's harness with our counts: MiniLM on STS-B, and the Mackey-Glass series.

The preset ``tiny`` runs without the package. The others need neurobench, and snnTorch for it,
installed without their dependencies.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace as P

import numpy as np
import torch
from torch import nn

from benchmarks.models import load_minilm, random_batches, small_bert, sts_benchmark
from benchmarks.training import CIFAR, trained
from isospike.data.shipped import shakespeare
from isospike.deploy.neurobench import (
    Work,
    count_family,
    count_machine,
    count_port,
    harness_metrics,
    harness_model,
)
from isospike.experiments.study import Findings, Goal, study
from isospike.memory import Combined, SequenceMachine
from isospike.porting.port import port
from isospike.report.table import Table
from isospike.train.fit import batches
from isospike.train.recipe import RECIPES

# Delay, Lyapunov time and constant past of the harness's fourteen series.
SERIES = (
    (17, 197, 0.7206597), (18, 138, 0.7744313), (19, 315, 0.7783468), (20, 131, 0.9225991),
    (21, 191, 0.9479431), (22, 119, 0.5455960), (23, 106, 0.8622247), (24, 97, 0.3259660),
    (25, 98, 0.8297825), (26, 104, 1.0033490), (27, 112, 0.6491406), (28, 119, 1.0957495),
    (29, 131, 0.9256179), (30, 139, 0.2713639),
)  # fmt: skip
POINTS, SHOWN, ASKED = 75, 10, 10  # of a Lyapunov time; Lyapunov times to learn and to predict
MIDDLE = 0.9  # of the values
ORDER = 6  # delays that a value between two of them is found from


def mackey_glass(delay, past, times, fine=20):
    """``dx/dt = .2 x(t - delay) / (1 + x(t - delay)^10) - .1 x`` at some times, by Runge and Kutta.

    Between two of its ``fine`` steps a unit of time a value is Hermite's.
    """
    step, lag = 1 / fine, delay * fine
    count = int(times[-1] * fine) + 2
    x, slope = np.full(lag + count + 1, past), np.zeros(lag + count + 1)

    def rate(y, z):
        return 0.2 * z / (1 + z**10) - 0.1 * y

    for i in range(lag, lag + count):
        before, after = x[i - lag], x[i - lag + 1]
        between = (before + after) / 2 + step / 8 * (slope[i - lag] - slope[i - lag + 1])
        a = slope[i] = rate(x[i], before)
        b = rate(x[i] + step / 2 * a, between)
        c = rate(x[i] + step / 2 * b, between)
        d = rate(x[i] + step * c, after)
        x[i + 1] = x[i] + step / 6 * (a + 2 * b + 2 * c + d)
    place = np.asarray(times) * fine
    i = np.floor(place).astype(int)
    u, i = place - i, i + lag
    ends = (1 + 2 * u) * (1 - u) ** 2 * x[i] + u * u * (3 - 2 * u) * x[i + 1]
    return ends + step * (u * (1 - u) ** 2 * slope[i] + u * u * (u - 1) * slope[i + 1])


class DelayNet(nn.Module):
    """The next value from the last ones: neurons that read one delay each, and a sum.

    A hidden neuron reads the value some time ago, near the series' own delay, which is found from
    six values around it (Lagrange's weights); the sum reads them and all values.
    """

    def __init__(self, delay, hidden, seed):
        super().__init__()
        draw = np.random.default_rng(seed)
        self.count = int(np.ceil(delay)) + ORDER // 2 + 1
        weights = np.stack(
            [between(p, self.count) for p in draw.uniform(delay - 2, delay + 1, hidden)]
        )
        steep = draw.uniform(1, 6, hidden) * draw.choice([-1, 1], hidden)
        self.read = nn.Linear(self.count, hidden).double().requires_grad_(False)
        self.sum = nn.Linear(hidden + self.count, 1).double().requires_grad_(False)
        self.read.weight.copy_(torch.from_numpy(steep[:, None] * weights))
        self.read.bias.copy_(torch.from_numpy(steep * (MIDDLE - draw.uniform(0.2, 1.4, hidden))))

    def forward(self, x):
        """The change of ``x [rows, values]``, the last value first."""
        return self.sum(self.features(x))

    def features(self, x):
        """What the sum reads."""
        x = x - MIDDLE
        return torch.cat([torch.tanh(self.read(x)), x], -1)

    def fit(self, values, ridge, skip):
        """Fit the sum to a series, by least squares; give what was read."""
        last = len(values) - 1
        rows = range(skip + self.count - 1, last)
        x = torch.stack([values[i - self.count + 1 : i + 1].flip(0) for i in rows])
        y = values[skip + self.count :] - x[:, 0]
        a = torch.cat([self.features(x), torch.ones(len(x), 1, dtype=x.dtype)], 1)
        square = a.T @ a + ridge * torch.eye(a.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(square, a.T @ y)
        self.sum.weight.copy_(weight[None, :-1])
        self.sum.bias.copy_(weight[-1:])
        return x


def between(place, count):
    """Weights of ``count`` values that give the value between two of them."""
    start = int(np.clip(np.floor(place) - ORDER // 2 + 1, 0, count - ORDER))
    near, found = range(start, start + ORDER), np.zeros(count)
    for j in near:
        found[j] = np.prod([(place - m) / (j - m) for m in near if m != j])
    return found


def predict(model, values, count):
    """The next ``count`` values, each from those before it, and what was read."""
    seen, read = values.clone(), []
    with torch.no_grad():
        for _ in range(count):
            read.append(seen)
            after = (seen[:1] + model(seen[None])[0]).clamp(0, 2)
            seen = torch.cat([after, seen[:-1]])
    rows = torch.stack(read)
    return torch.cat([rows[1:, 0], seen[:1]])[:, None], rows


def score(found, right):
    """The symmetric mean absolute percentage error."""
    return float(200 * ((found - right).abs() / (found.abs() + right.abs())).mean())


def one_series(p, series, offset, seed):
    """Errors of the float network and of its port, the port's work on a step, and how many values
    it reads."""
    delay, lyapunov, past = series
    step = lyapunov / POINTS
    learnt, asked = SHOWN * POINTS, p.asked * POINTS
    values = mackey_glass(delay, past, np.arange(offset + learnt + asked + 1) * step)
    values = torch.from_numpy(values[offset:])
    net = DelayNet(delay / step, p.hidden, seed)
    inputs = net.fit(values[: learnt + 1], p.ridge, POINTS * 6 // 10)
    # A port is made in float32; its run in float64 adds no rounding to that of the spikes.
    single = copy.deepcopy(net).float()
    ported = port(single, [{"x": inputs.float()}], steps=p.steps).model.double()
    start, right = values[learnt - net.count + 1 : learnt + 1].flip(0), values[learnt + 1 :, None]
    plain, _ = predict(net, start, asked)

    def count(x):
        found, rows = predict(ported, start, len(x))
        return found, count_port(ported, {"x": rows})[1]

    if not p.harness:
        found, work = count(right)
        return score(plain, right), score(found, right), work.per_sample("synaptic_ops"), net.count
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SMAPE
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(right, right), batch_size=len(right))
    metrics = [[], [SMAPE, *harness_metrics()]]
    told = Benchmark(harness_model(count, ported), loader, [], [], metrics).run(quiet=True)
    ops = told["SynapticOperations"]["Effective_ACs"]
    return score(plain, right), told["SMAPE"], ops, net.count


@study(
    "mackey-glass",
    question="Does a small network on spikes predict chaotic series as well as NeuroBench's best?",
    presets={
        "tiny": P(harness=False, runs=((0, 0),), asked=1, hidden=20, steps=12, ridge=1e-8),
        "small": P(
            harness=True, asked=10, hidden=100, steps=20, ridge=1e-8,
            runs=(*((i, 0) for i in range(14)), *((0, half) for half in range(1, 10))),
        ),
        "full": P(
            harness=True, asked=10, hidden=100, steps=20, ridge=1e-8,
            runs=tuple((i, half) for i in range(14) for half in range(10)),
        ),
    },
)  # fmt: skip
def mackey_glass_study(p, ctx):  # noqa: ARG001
    """Networks fitted to ten Lyapunov times, which then go on alone for as long; each again from
    half a Lyapunov time later. Their products run on spikes, their hyperbolic tangents at the
    soma."""
    found = {}
    for series, half in p.runs:
        result = one_series(p, SERIES[series], half * POINTS // 2, seed=half)
        found.setdefault(SERIES[series][0], []).append(result)
    means = {delay: np.mean(results, 0) for delay, results in found.items()}
    rows = tuple(
        (str(delay), str(len(found[delay])), f"{a:.2f}", f"{b:.2f}", f"{ops:,.0f}", f"{read:.0f}")
        for delay, (a, b, ops, read) in means.items()
    )
    every = np.mean(list(means.values()), 0)
    first = means[SERIES[0][0]]
    numbers = {
        "mean error, float": every[0], "mean error": every[1], "mean operations": every[2],
        "error, delay 17": first[1], "operations, delay 17": first[2], "runs": len(p.runs),
    }  # fmt: skip
    goals = {
        "error, mean over the series": Goal(every[1], 13.37),
        "error, delay 17": Goal(first[1], 13.37),
    }
    head = ("delay", "runs", "float, %", "on spikes, %", "additions a step", "values read")
    meaning = (
        "Symmetric mean absolute percentage error over ten Lyapunov times: the leaderboard's LSTM "
        "has 13.37 with 60,300 operations a step, its echo-state network 14.79 with 4,370."
    )
    return Findings(numbers, [Table("Mackey-Glass", head, rows, meaning)], goals)


def sentences(p, ctx):
    """MiniLM's port, tokens of both halves of pairs, and people's scores of them."""
    tokenizer, model = load_minilm()
    texts, scores, pool = sts_benchmark(ctx.file("stsb/stsb-en-dev.csv").parent, 64)
    half, pairs = len(scores), p.rows
    texts, scores = texts[:pairs] + texts[half : half + pairs], scores[:pairs]
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    rest = tokenizer(pool, padding=True, return_tensors="pt")
    batches = [{"input_ids": i, "attention_mask": (i != 0).long()} for i in ids.split(32)]
    calibration = [{name: rest[name] for name in ("input_ids", "attention_mask")}]
    return port(model, calibration, evaluation=batches), ids, scores


def columns(told, ops, correct):
    """Rows of NeuroBench's columns."""
    name, value = correct
    return (
        (f"correctness: {name}", f"{value:.2f}"),
        ("activation sparsity", f"{told['ActivationSparsity']:.3f}"),
        ("dense operations", f"{ops['Dense']:,.0f}"),
        ("effective MACs", f"{ops['Effective_MACs']:,.0f}"),
        ("effective ACs", f"{ops['Effective_ACs']:,.0f}"),
        ("membrane updates", f"{told['MembraneUpdates']:,.0f}"),
    )


def family(p, ctx):
    """QKFormer on images of CIFAR-10 on spikes, in the harness: numbers and a table."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import ClassificationAccuracy
    from torch.utils.data import DataLoader, TensorDataset

    recipe = replace(RECIPES["qkformer"]["small"], epochs=p.epochs)
    model, data, _ = trained(ctx, f"cifar-qkformer-{p.epochs}", recipe)
    held = batches(recipe, data)[1].__getitems__(list(range(p.images)))
    few = DataLoader(TensorDataset(held["pixel_values"], held["labels"]), batch_size=50)

    def count(images):
        scores, work = count_family(model, images, steps=model.config.levels)
        return scores.argmax(-1), work

    metrics = [[], [ClassificationAccuracy, *harness_metrics()]]
    told = Benchmark(harness_model(count, model), few, [], [], metrics).run(quiet=True)
    ops, right = told["SynapticOperations"], 100 * told["ClassificationAccuracy"]
    rows = columns(told, ops, (f"right of {p.images} images, %", right))
    meaning = f"An image on average, in all steps; trained for {p.epochs} of nine epochs."
    found = {f"QKFormer: {name}": value for name, value in ops.items()}
    return {**found, "QKFormer: correctness": right}, Table(
        "QKFormer on CIFAR-10 in the harness", ("", "figure"), rows, meaning
    )


def sequence_machine(p):
    """The machine with a store on English prose, in the harness: numbers and a table."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import ClassificationAccuracy
    from torch.utils.data import DataLoader, TensorDataset

    text = shakespeare()[: p.symbols]
    alphabet = sorted(set(text))
    machine = SequenceMachine(alphabet, context=Combined(), seed=0)
    number = {symbol: i for i, symbol in enumerate(alphabet)}
    ids = torch.tensor([number[symbol] for symbol in text])

    def count(batch):
        expected, work = count_machine(machine, [alphabet[i] for i in batch.tolist()])
        return torch.tensor([number.get(symbol, -1) for symbol in expected]), work

    loader = DataLoader(TensorDataset(ids, ids), batch_size=500)
    metrics = [[], [ClassificationAccuracy, *harness_metrics()]]
    told = Benchmark(harness_model(count, nn.Identity()), loader, [], [], metrics).run(quiet=True)
    ops, right = told["SynapticOperations"], 100 * told["ClassificationAccuracy"]
    rows = columns(told, ops, (f"right of {p.symbols:,} letters, %", right))
    meaning = "A letter on average, each predicted before it is learned, once."
    found = {f"sequence machine: {name}": value for name, value in ops.items()}
    return {**found, "sequence machine: correctness": right}, Table(
        "The sequence machine in the harness", ("", "figure"), rows, meaning
    )


@study(
    "neurobench",
    question="What does NeuroBench's harness say of a port, a spiking transformer and a sequence "
    "machine, with attention counted?",
    data=("stsb/stsb-en-dev.csv", "stsb/stsb-en-train.csv", *CIFAR),
    presets={
        "tiny": P(harness=False, rows=2, length=8),
        "small": P(harness=True, rows=100, length=0, images=500, epochs=1, symbols=5000),
        "full": P(harness=True, rows=1500, length=0, images=10_000, epochs=9, symbols=100_000),
    },
)
def neurobench(p, ctx):
    """MiniLM on pairs of sentences: NeuroBench's columns, by its own hooks and by our counts,
    beside the report of the port on the same inputs. QKFormer on CIFAR-10 and the sequence machine
    on Shakespeare by our counts."""
    if not p.harness:
        model, held_out = small_bert(), random_batches(2, p.rows, p.length, seed=1)
        made = port(model, random_batches(2, 4, p.length), evaluation=held_out)
        work = Work()
        for batch in held_out:
            work.include(count_port(made.model, batch)[1])
        ratio = work.synaptic_ops / made.report.counts.synaptic_ops / made.report.held_out_tokens
        return Findings({"operations over the report's": ratio})
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations
    from scipy.stats import spearmanr
    from torch.utils.data import DataLoader, TensorDataset

    made, ids, scores = sentences(p, ctx)
    pairs = len(scores)
    vectors = []

    def count(batch):
        mask = (batch != 0).long()
        output, work = count_port(made.model, {"input_ids": batch, "attention_mask": mask})
        pooled = (output * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors.append(nn.functional.normalize(pooled, dim=-1))
        return output, work

    loader = DataLoader(TensorDataset(ids, ids), batch_size=32)
    wrapped = harness_model(count, made.model)
    told = Benchmark(wrapped, loader, [], [], [[], harness_metrics()]).run(quiet=True)
    few = DataLoader(TensorDataset(ids[:2], ids[:2]), batch_size=2)
    kept = len(vectors)
    own = Benchmark(wrapped, few, [], [], [[], [SynapticOperations]]).run(quiet=True)
    y = torch.cat(vectors[:kept])
    correct = 100 * spearmanr((y[:pairs] * y[pairs:]).sum(-1), scores).statistic
    ops = told["SynapticOperations"]
    counts, tokens = made.report.counts, made.report.held_out_tokens / len(ids)
    by_hooks = sum(own["SynapticOperations"].values())
    numbers = {
        "correctness": correct, **ops, "report": counts.synaptic_ops * tokens,
        "by the harness's hooks": by_hooks, "sparsity": told["ActivationSparsity"],
        "updates": told["MembraneUpdates"],
    }  # fmt: skip
    rows = (
        *columns(told, ops, ("Spearman with people's scores, %", correct)),
        ("effective ACs by the port's report", f"{counts.synaptic_ops * tokens:,.0f}"),
        ("all three by the harness's own hooks", f"{by_hooks:,.0f}"),
    )
    apart = abs(ops["Effective_ACs"] / (counts.synaptic_ops * tokens) - 1)
    goals = {"effective ACs over the report's, less 1": Goal(apart, 1e-9)}
    meaning = "A sentence of STS-B on average; attention's additions are among the effective ACs."
    first = Table("MiniLM in the harness", ("", "figure"), rows, meaning)
    images, second = family(p, ctx)
    letters, third = sequence_machine(p)
    return Findings(numbers | images | letters, [first, second, third], goals)
