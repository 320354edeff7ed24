"""How many steps the error of a site needs, predicted and found; the dimension of its values.

The sites of the first and the last block of four models. A case is a model, a site, a code and a
target. Predictions see calibration inputs only; the error of a case is that of the site's code on
other inputs.

`alone`: the law of the code with the crest factor that the other models have at sites of the same
kind, before anything is run on this one. `calibrated`: a law fitted to four short runs.
`published`: 2.3 d_eff / eps^2 with the PCA-95 dimension of the site's values.
"""

import functools
import itertools
import math
import random
import re
import statistics
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace as P
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from benchmarks.models import (
    Model,
    Tokenizer,
    digits_vit,
    load_llama2c,
    load_minilm,
    make_batches,
    random_batches,
    read_pairs,
    sample,
    small_bert,
)
from benchmarks.port import STORIES, STS
from isospike import codes
from isospike.codes import CODES, Law, fit_law
from isospike.data import passages, shakespeare
from isospike.dimension import Moments, pca_count
from isospike.experiments.study import Findings, Goal, study
from isospike.hf.batches import rows_of, token_masks
from isospike.hf.load import find_model, load
from isospike.porting.dimensions import measure_dimension
from isospike.porting.discover import discover
from isospike.porting.ranges import fit_range
from isospike.porting.run import Watcher
from isospike.porting.sites import Site
from isospike.progress import update
from isospike.report.table import Table
from isospike.theory.laws import published_steps
from isospike.theory.steps import analytic_law

DIGITS = ("signed-digit", "half-octave", "phase")
SHORT = {  # steps of the short calibration
    "signed-digit": (3, 5, 7, 9), "half-octave": (5, 9, 13, 17), "phase": (4, 6, 8, 10),
    "rate": (8, 16, 32, 64), "latency": (8, 16, 32, 64), "bernoulli": (4, 8, 16, 32),
}  # fmt: skip
TARGETS = {
    **dict.fromkeys(DIGITS, (0.1, 0.03, 0.01)),
    **dict.fromkeys(("rate", "latency"), (0.1, 0.05, 0.03)),
    "bernoulli": (1.0, 0.7, 0.5),
}
LONGEST = {"signed-digit": 16, "half-octave": 31, "phase": 16, "bernoulli": 256}
ROWS = 768


class Case(NamedTuple):
    """One prediction. ``logs``: log errors predicted and measured at ``enough`` and one fewer."""

    model: str
    code: str
    enough: int
    alone: int | None
    calibrated: int | None
    published: int
    logs: tuple[tuple[float, float], ...]


def models(p, ctx) -> list[Model]:
    """Two small random models, or four real ones."""
    if p.tiny:
        return [
            Model(f"BERT {i}", small_bert(seed=i), random_batches(4, 8, 12, i),
                  random_batches(2, 8, 12, i + 2))
            for i in range(2)
        ]  # fmt: skip
    tokenizer, model = load_minilm()
    left, right, _ = read_pairs(ctx.file(STS[0]))
    texts = random.Random(0).sample(sorted(set(left + right)), 160)
    found = [Model("MiniLM", model, *_texts(tokenizer, texts))]
    if p.all:
        folder = ctx.file("bert_tiny_splade")
        splade = transformers.AutoModel.from_pretrained(folder, dtype="float32").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found.append(Model("SPLADE-tiny", splade, *_texts(tokenizer, texts)))
    llama = load_llama2c(ctx.file(STORIES[0]))
    words = Tokenizer(ctx.file(STORIES[1]))
    text = ctx.file(STORIES[2]).read_text(encoding="utf-8")
    stories = [
        torch.tensor([words.encode(part.strip())[:256]]) for part in text.split("<|endoftext|>")
    ]
    held_out = [{"input_ids": s} for s in stories if s.shape[1] > 20][:4]
    found.append(Model("stories260K", llama, [{"input_ids": sample(llama, 8, 256, 0)}], held_out))
    return [*found, digits_vit()] if p.all else found


def _texts(tokenizer, texts):
    half = [[b for _, b in make_batches(tokenizer, part, 32)] for part in (texts[:96], texts[96:])]
    return half[0], half[1]


def site_rows(model: Model) -> dict[str, tuple[str, Tensor, Tensor]]:
    """Kind, calibration and held-back values ``[rows, channels]`` of every site."""
    opened = discover(model.model, rows_of(model.calibration[0], slice(0, 2))).template
    run = opened.run
    kinds = {s.name: s.kind for s in opened.sites}
    found: dict[str, list[Tensor]] = {}
    seen: set[str] = set()

    class Take(Watcher):
        sees_probabilities = True

        def on_input(self, site: Site, x: Tensor) -> Tensor:
            rows = x.detach()
            if site.kind == "probability":
                rows = rows[rows > 0][:, None]
            elif site.kind in ("query", "key", "value"):
                rows = run.rows(rows.transpose(1, 2).flatten(2))
            elif site.kind == "conv":
                rows = rows.movedim(1, -1).flatten(0, -2)
            else:
                rows = run.rows(rows)
            if site.name not in seen:
                found.setdefault(site.name, []).append(rows)
                seen.add(site.name)
            return x

    halves = []
    for batches in (model.calibration, model.held_out):
        found.clear()
        for batch in batches:
            seen.clear()
            with torch.no_grad(), run.watching(Take(), token_masks(batch)):
                opened.model(**batch)
        halves.append({n: torch.cat(r) for n, r in found.items()})
    layers = [n.split(".") for n in halves[0]]
    blocks = sorted({int(p) for parts in layers for p in parts if p.isdigit()})
    ends = {str(blocks[0]), str(blocks[-1])}
    kept = [n for n in halves[0] if ends & set(n.split("."))]
    thin = [{n: half[n][:: len(half[n]) // ROWS + 1] for n in kept} for half in halves]
    return {n: (kinds[n], thin[0][n], thin[1][n]) for n in thin[0] if len(thin[0][n]) > 50}


def coding_error(kind: str, code: str, fit_on: Tensor, rows: Tensor, steps: int) -> float:
    """Relative error of a site's code on values its range was not set from."""
    made = codes.code(code, steps)
    rows = rows[:96] if code == "bernoulli" else rows
    if kind == "probability":
        offset, scale = torch.zeros(1), torch.ones(1)
    else:
        offset, scale = fit_range(fit_on, made)
    u = ((rows - offset) / scale).clamp(made.low, 1)
    drawn = {"generator": torch.Generator().manual_seed(steps)} if code == "bernoulli" else {}
    got = offset + scale * made.quantize(u, **drawn)
    return float((got - rows).norm() / (rows - rows.mean(0)).norm())


def fewest(error: Callable[[int], float], code: str, target: float) -> int | None:
    """The smallest sufficient number of steps; errors of counts are taken to fall."""
    low, high = CODES[code].min_steps, LONGEST.get(code, 1024)
    if error(high) > target:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= target else (middle + 1, high)
    return high


def predict(law: Law, target: float) -> int | None:
    """Its steps, without the limit of a port's search."""
    for steps in range(CODES[law.code].min_steps, LONGEST.get(law.code, 4096) + 1):
        if law.error(steps) <= target:
            return steps
    return None


def crest_factors(rows, names) -> dict[tuple[str, bool], dict[str, float]]:
    """Scale over spread of each kind of site, of codes with one and two neurons, by model."""
    found: dict[tuple[str, bool], dict[str, list[float]]] = {}
    for name in names:
        for kind, fit_on, _ in rows[name].values():
            for pair in (False, True):
                code = codes.code("signed-digit" if pair else "phase", 6)
                scale = torch.ones(1) if kind == "probability" else fit_range(fit_on, code).scale
                crest = scale.norm() * math.sqrt(len(fit_on)) / (fit_on - fit_on.mean(0)).norm()
                found.setdefault((kind, pair), {}).setdefault(name, []).append(float(crest))
    return {key: {m: statistics.geometric_mean(v) for m, v in by.items()}
            for key, by in found.items()}  # fmt: skip


def cases_of(every: list[Model], targets: int) -> list[Case]:
    """Every site of every model, all codes."""
    rows = {m.name: site_rows(m) for m in every}
    crests = crest_factors(rows, rows)
    cases = []
    for done, name in enumerate(rows):
        update("sites", done, len(rows))
        for kind, fit_on, held_out in rows[name].values():
            moments = Moments(held_out.shape[1])
            moments.update(held_out)
            variances = moments.variances()
            dimension = pca_count(variances) if float(variances[0]) > 0 else 1
            quarter = torch.arange(len(fit_on)) % 4 == 3
            for code in CODES:
                pair = CODES[code].neurons == 2
                known = [c for m, c in crests.get((kind, pair), {}).items() if m != name]
                known = known or [
                    c for k, d in crests.items() if k[1] == pair for m, c in d.items() if m != name
                ]
                alone = analytic_law(code, statistics.geometric_mean(known))
                error = functools.cache(partial(coding_error, kind, code, fit_on, held_out))
                short = {
                    t: coding_error(kind, code, fit_on[~quarter], fit_on[quarter], t)
                    for t in SHORT[code]
                }
                law = fit_law(code, short)
                for target in TARGETS[code][:targets]:
                    enough = fewest(error, code, target)
                    if enough is None or enough <= CODES[code].min_steps:
                        continue
                    logs = tuple(
                        (math.log(law.error(t)), math.log(error(t))) for t in (enough, enough - 1)
                    )
                    cases.append(
                        Case(name, code, enough, predict(alone, target), predict(law, target),
                             published_steps(float(dimension), target), logs)
                    )  # fmt: skip
    return cases


def near(case: Case, predicted: int | None) -> bool:
    """Within one step for digits; within 15 %, or one step, for the others."""
    if predicted is None:
        return False
    off = abs(predicted - case.enough)
    return off <= 1 if case.code in DIGITS else off <= max(1, 0.15 * case.enough)


def r_squared(pairs: set[tuple[float, float]]) -> float:
    mean = statistics.mean(m for _, m in pairs)
    left = sum((p - m) ** 2 for p, m in pairs)
    return 1 - left / sum((m - mean) ** 2 for _, m in pairs)


def median(group: list[Case], which: str) -> str:
    """Median over cases; what is never reached counts as infinite."""
    return f"{statistics.median(getattr(c, which) or 10**9 for c in group):,.0f}"


@study(
    "steps",
    question="How many steps does a site need for an error, and can it be predicted?",
    data=(*STS, *STORIES, "bert_tiny_splade"),
    extra="demo",
    presets={
        "tiny": P(tiny=True, all=False, targets=1),
        "small": P(tiny=False, all=False, targets=2),
        "full": P(tiny=False, all=True, targets=3),
    },
)
def steps(p, ctx):
    """A case is a site, a code and a target; within: one step for digits, 15 % for others."""
    cases = cases_of(models(p, ctx), p.targets)
    names = [*dict.fromkeys(c.model for c in cases), "all"]
    predicted, laws, numbers, goals = [], [], {}, {}
    for model, code in itertools.product(names, CODES):
        group = [c for c in cases if c.code == code and model in (c.model, "all")]
        if not group:
            continue
        shares = {w: statistics.mean(near(c, getattr(c, w)) for c in group)
                  for w in ("calibrated", "alone")}  # fmt: skip
        fit = r_squared({pair for c in group for pair in c.logs})
        label = f"{model}, {code}"
        predicted.append((label, str(len(group)), median(group, "enough"),
                          *(f"{median(group, w)} ({100 * s:.0f} %)" for w, s in shares.items()),
                          median(group, "published")))  # fmt: skip
        laws.append((label, f"{fit:.3f}"))
        if model == "all":
            numbers |= {f"within, {code}": shares["calibrated"], f"R2, {code}": fit}
            if not p.tiny:
                goals[f"within, {code}"] = Goal(shares["calibrated"], 0.9, at_least=True)
                goals[f"R2, {code}"] = Goal(fit, 0.97, at_least=True)
    head = ("model, code", "cases", "enough", "calibrated (within)", "alone (within)", "published")
    return Findings(
        numbers,
        [
            Table("Steps that are enough, and predictions", head, tuple(predicted),
                  "Medians of steps, and the share of cases that a prediction meets: calibrated "
                  "laws do in nine of ten, the published rule is far off."),
            Table("Fit of the law", ("model, code", "R2 of the log error"), tuple(laws),
                  "Near 1 for all codes but independent spikes."),
        ],
        goals,
    )  # fmt: skip


SITES = {
    "attention.self.query": "input of query, key and value", "attention.self:query": "query",
    "attention.self:key": "key", "attention.self:value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "input of the feed-forward part", "output.dense": "its hidden layer",
}  # fmt: skip
"""What the sites of a BERT's layer are, by their names in it."""


def spread(estimates) -> str:
    """The smallest and the largest of some estimates, with a sign where rows limit them."""
    found = sorted((e.value, e.capped) for e in estimates if e is not None)
    ends = [f"{'≥ ' if capped else ''}{value:.3g}" for value, capped in (found[0], found[-1])]
    return " to ".join(dict.fromkeys(ends))


@study(
    "dimension",
    question="In how many dimensions do a model's activations lie?",
    extra="demo",
    presets={"tiny": P(sentences=None), "small": P(sentences=10), "full": P(sentences=100)},
)
def dimension(p, ctx):
    """MiniLM on sentences of Shakespeare, as ``isospike dimension minilm`` measures it."""
    if p.sentences is None:
        model, batches = small_bert(), random_batches(4, 8, 12)
    else:
        source = load(find_model("minilm"))
        model, batches = source.model, source.batches(passages(shakespeare(), p.sentences))
    report = measure_dimension(model, batches, generator=torch.Generator().manual_seed(0))
    groups: dict[str, list] = {name: [] for name in SITES}
    for site in report.sites:
        inner = re.sub(r".*\.layer\.\d+\.", "", site.name)
        if inner in groups:  # not the pooler, which sees one token of each sentence
            groups[inner].append(site.dimension)
    rows, numbers = [], {}
    for inner, found in groups.items():
        name = f"{SITES[inner]}, {found[0].width}"
        names = ("pca", "participation", "entropy", "stable_rank", "two_nn", "mle")
        cells = [spread(getattr(d, measure) for d in found) for measure in names]
        rows.append((name, *cells[:4], " / ".join(cells[4:])))
        for measure in ("pca", "participation"):
            values = [getattr(d, measure).value for d in found]
            numbers |= {f"{measure}, {name}, least": min(values),
                        f"{measure}, {name}, most": max(values)}  # fmt: skip
    meaning = (
        f"{report.sites[0].dimension.rows:,} tokens, the range over the layers; a number after ≥ "
        "is limited by the rows."
    )
    head = ("site, width", "PCA-95", "participation", "entropy", "stable rank", "TwoNN / MLE")
    title = "Dimension of MiniLM's activations"
    return Findings(numbers, [Table(title, head, tuple(rows), meaning)])
