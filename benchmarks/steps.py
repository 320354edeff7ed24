"""How many steps a site's error needs: predicted, and the smallest number that is enough.

    python benchmarks/steps.py --data data

DATA holds the STS benchmark, bert_tiny_splade, stories260k and tinystories_sample (see README.md).
Four models: MiniLM, SPLADE-tiny, stories260K and a vision transformer that is trained here on
scikit-learn's digits; of each, the sites of the first and the last block. A cell is a model, a
site, a code and a target. Predictions see calibration
inputs only; the error of a cell is that of the site's code on other inputs.

`alone`: the law of the code with the crest that the other three models have at sites of the same
kind, before anything is run on this one. `calibrated`: a law fitted to four short runs.
`published`: 2.3 d_eff / eps^2 with the PCA-95 dimension of the site's values. R2 is of the log
error that the calibrated law predicts at the smallest sufficient number of steps and at one fewer.
"""

import argparse
import functools
import itertools
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from sklearn.datasets import load_digits
from stories import Tokenizer, load_llama2c, sample
from stsb import load_minilm, make_batches, read_pairs
from torch import Tensor, nn

from isospike import codes
from isospike.codes import CODES, Law, fit_law
from isospike.dimension import Moments, pca_count
from isospike.hf.batches import rows_of, token_mask
from isospike.porting.discover import discover
from isospike.porting.ranges import fit_range
from isospike.porting.run import Watcher
from isospike.porting.sites import Site
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


class Model(NamedTuple):
    """A float model, its calibration inputs and others."""

    name: str
    model: nn.Module
    calibration: list[dict[str, Any]]
    held: list[dict[str, Any]]


class Cell(NamedTuple):
    """One prediction. ``logs``: log errors predicted and measured at ``enough`` and one fewer."""

    model: str
    site: str
    kind: str
    code: str
    target: float
    enough: int
    alone: int | None
    calibrated: int | None
    published: int
    logs: tuple[tuple[float, float], ...]


def models(data: Path) -> Iterator[Model]:
    tokenizer, model = load_minilm()
    left, right, _ = read_pairs(data / "stsb" / "stsb-en-train.csv")
    texts = random.Random(0).sample(sorted(set(left + right)), 160)
    yield Model("MiniLM", model, *_texts(tokenizer, texts))

    folder = data / "bert_tiny_splade"
    splade = transformers.AutoModel.from_pretrained(folder, dtype="float32").eval()
    yield Model(
        "SPLADE-tiny", splade, *_texts(transformers.AutoTokenizer.from_pretrained(folder), texts)
    )

    llama = load_llama2c(data / "stories260k" / "stories260K.bin")
    words = Tokenizer(data / "stories260k" / "tok512.bin")
    text = (data / "tinystories_sample" / "tinystories_sample.txt").read_text(encoding="utf-8")
    stories = [
        torch.tensor([words.encode(part.strip())[:256]]) for part in text.split("<|endoftext|>")
    ]
    held = [{"input_ids": s} for s in stories if s.shape[1] > 20][:4]
    yield Model("stories260K", llama, [{"input_ids": sample(llama, 8, 256, 0)}], held)

    yield digits_vit()


def _texts(tokenizer: Any, texts: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    half = [[b for _, b in make_batches(tokenizer, part, 32)] for part in (texts[:96], texts[96:])]
    return half[0], half[1]


def digits_vit(seed: int = 0) -> Model:
    """A vision transformer on 8 x 8 digits, trained for a few seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=48, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=96, num_labels=10,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        y = torch.tensor(labels)
        order = torch.randperm(len(x))
        train, test = order[:1400], order[1400:]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(25):
            for rows in train[torch.randperm(len(train))].split(70):
                loss = nn.functional.cross_entropy(model(x[rows]).logits, y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(x[test]).logits.argmax(-1) == y[test]).double().mean()
    print(
        f"vision transformer on digits: {float(right):.3f} of {len(test)} test images", flush=True
    )
    return Model(
        "ViT on digits",
        model,
        [{"pixel_values": x[train[:256]]}],
        [{"pixel_values": x[test[:128]]}],
    )


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
    for batches in (model.calibration, model.held):
        found.clear()
        for batch in batches:
            seen.clear()
            with torch.no_grad(), run.watching(Take(), token_mask(batch)):
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


def site_cells(every: list[Model]) -> list[Cell]:
    """Every site of every model, all codes."""
    table = {m.name: site_rows(m) for m in every}
    crests: dict[tuple[str, bool], dict[str, float]] = {}
    for name, rows in table.items():
        by: dict[tuple[str, bool], list[float]] = {}
        for kind, fit_on, _ in rows.values():
            for pair in (False, True):
                code = codes.code("signed-digit" if pair else "phase", 6)
                scale = torch.ones(1) if kind == "probability" else fit_range(fit_on, code).scale
                crest = scale.norm() * math.sqrt(len(fit_on)) / (fit_on - fit_on.mean(0)).norm()
                by.setdefault((kind, pair), []).append(float(crest))
        for (kind, pair), found in by.items():
            crests.setdefault((kind, pair), {})[name] = statistics.geometric_mean(found)
    cells = []
    for name, rows in table.items():
        for site, (kind, fit_on, held) in rows.items():
            moments = Moments(held.shape[1])
            moments.update(held)
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
                error = functools.cache(partial(coding_error, kind, code, fit_on, held))
                short = {
                    t: coding_error(kind, code, fit_on[~quarter], fit_on[quarter], t)
                    for t in SHORT[code]
                }
                law = fit_law(code, short)
                for target in TARGETS[code]:
                    enough = fewest(error, code, target)
                    if enough is None or enough <= CODES[code].min_steps:
                        continue
                    logs = tuple(
                        (math.log(law.error(t)), math.log(error(t))) for t in (enough, enough - 1)
                    )
                    cells.append(
                        Cell(name, site, kind, code, target, enough, predict(alone, target),
                             predict(law, target), published_steps(dimension, target), logs)
                    )  # fmt: skip
        print(f"{name}: {len(rows)} sites", flush=True)
    return cells


def show(cells: list[Cell]) -> None:
    print(
        "\n| model | code | cells | enough | calibrated | within | alone | within | R2 | "
        "`published` |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    names = [*dict.fromkeys(c.model for c in cells), "all"]
    for model, code in itertools.product(names, CODES):
        group = [c for c in cells if c.code == code and model in (c.model, "all")]
        if not group:
            continue
        columns = [f"{median(group, 'enough')}"]
        for which in ("calibrated", "alone"):
            share = statistics.mean(near(c, getattr(c, which)) for c in group)
            columns += [median(group, which), f"{100 * share:.0f} %"]
        columns += [f"{r_squared({p for c in group for p in c.logs}):.3f}"]
        columns += [median(group, "published")]
        print(f"| {model} | {code} | {len(group)} | {' | '.join(columns)} |", flush=True)


def median(group: list[Cell], which: str) -> str:
    return f"{statistics.median(getattr(c, which) or 10**9 for c in group):,.0f}"


def near(cell: Cell, predicted: int | None) -> bool:
    """Within one step for digits; within 15 %, or one step, for the others."""
    if predicted is None:
        return False
    off = abs(predicted - cell.enough)
    return off <= 1 if cell.code in DIGITS else off <= max(1, 0.15 * cell.enough)


def r_squared(pairs: set[tuple[float, float]]) -> float:
    mean = statistics.mean(m for _, m in pairs)
    left = sum((p - m) ** 2 for p, m in pairs)
    return 1 - left / sum((m - mean) ** 2 for _, m in pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ISOSPIKE_DATA", "data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    every = list(models(Path(args.data)))
    show(site_cells(every))
